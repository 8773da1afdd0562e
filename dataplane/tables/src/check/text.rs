//! Forms of identifiers, names and addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use postern_wire::IpPrefix;

use super::Checker;
use crate::error::Problem;

/// Why no host can have an address, or none but on its own link; `None` if one can.
#[must_use]
pub fn why_not_unicast(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("a link-local address"),
        address => why_not_router(address),
    }
}

/// Why no host can have an address on its link; `None` if one can.
#[must_use]
pub fn why_not_router(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => why_not_unicast4(address),
        IpAddr::V6(address) => why_not_unicast6(address),
    }
}

fn why_not_unicast6(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address.to_ipv4_mapped().is_some() {
        Some("an IPv4-mapped address, which is an IPv4 address in another form")
    } else if address.segments()[..6] == [0; 6] {
        Some("in ::/96, which is not in use")
    } else {
        None
    }
}

fn why_not_unicast4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets()[0] {
        0 => Some("in 0.0.0.0/8, \"this network\""),
        127 => Some("a loopback address"),
        224..=239 => Some("a multicast address"),
        240..=255 => Some("in 240.0.0.0/4, which is reserved"),
        _ => None,
    }
}

/// Whether an address is the network or broadcast address of an on-link prefix, of which there are none in /31 and /32; or,
/// of IPv6, the anycast address of its routers (RFC 4291 §2.6.1), which there is not in /127 and /128 (RFC 6164).
#[must_use]
pub fn network_end(prefix: IpPrefix, address: IpAddr) -> Option<&'static str> {
    match (prefix, address) {
        (IpPrefix::V4(prefix), IpAddr::V4(address)) if prefix.length() <= 30 && prefix.contains(address) => {
            let host_bits = u32::MAX >> prefix.length();
            match address.to_bits() & host_bits {
                0 => Some("network"),
                bits if bits == host_bits => Some("broadcast"),
                _ => None,
            }
        }
        (IpPrefix::V6(prefix), IpAddr::V6(address)) if prefix.length() <= 126 && address == prefix.network() => {
            Some("routers' anycast")
        }
        _ => None,
    }
}

/// `1024-65535` or `5000`.
#[must_use]
pub fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    ports(text).filter(|range| *range.start() >= 1024)
}

/// The same from port 0 on.
pub(super) fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some(first..=last)
}

/// 32 hexadecimal digits.
pub(super) fn key_bytes(text: &str) -> Option<[u8; 16]> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)).flatten()
}

impl Checker<'_> {
    /// A name: 1…128 of letters, digits and `. _ - : /`.
    pub(super) fn name(&mut self, key: impl FnOnce() -> String, value: &str) {
        const ALLOWED: &str = "1 to 128 letters, digits and . _ - : /";
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
        if value.is_empty() {
            self.error(key(), value, Problem::Missing(ALLOWED));
        } else if value.len() > 128 || !value.bytes().all(fits) {
            self.error(key(), value, Problem::Form(format!("a name; allowed is {ALLOWED}")));
        }
    }

    /// A zone: 1…64 of a-z, 0-9 and `-`; empty where none is written.
    pub(super) fn zone(&mut self, key: impl FnOnce() -> String, value: Option<&str>) -> Arc<str> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let Some(value) = value else { return Arc::default() };
        if value.is_empty() || value.len() > 64 || !value.bytes().all(fits) {
            self.error(key(), value, Problem::Form("a zone; allowed is 1 to 64 of a-z, 0-9 and -".to_owned()));
        }
        value.into()
    }

    /// An identifier: `prefix` and 1…64 of a-z, 0-9 and `-`.
    pub(super) fn identifier(&mut self, key: impl FnOnce() -> String, value: &str, prefix: &'static str) {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let allowed = match prefix {
            "vpce-" => "vpce- (not vpce-svc-) and 1 to 64 of a-z, 0-9 and -, such as vpce-0123456789abcdef0",
            "vpce-svc-" => "vpce-svc- and 1 to 64 of a-z, 0-9 and -, such as vpce-svc-0123456789abcdef0",
            _ => "vpc- and 1 to 64 of a-z, 0-9 and -, such as vpc-0123456789abcdef0",
        };
        let rest = value.strip_prefix(prefix).unwrap_or_default();
        if value.is_empty() {
            self.error(key(), value, Problem::Missing(allowed));
        } else if rest.is_empty()
            || rest.len() > 64
            || !rest.bytes().all(fits)
            || prefix == "vpce-" && rest.starts_with("svc-")
        {
            self.error(key(), value, Problem::Form(format!("an identifier of its kind; allowed is {allowed}")));
        }
    }
}

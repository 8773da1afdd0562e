//! MAC addresses and IPv4 prefixes.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A 48-bit Ethernet address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, which no station may use.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether the group bit (IEEE 802, least significant bit of the first octet) is set; true for broadcast too.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an address or prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not six colon-separated pairs of hexadecimal digits.
    #[error("\"{0}\" is not a MAC address such as 02:00:00:00:00:01")]
    Mac(String),
    /// Not an IPv4 prefix.
    #[error("\"{0}\" is not an IPv4 prefix such as 10.0.0.0/24")]
    Prefix(String),
    /// The address has bits set below the prefix length.
    #[error("\"{0}\" has host bits set; the network is {1}")]
    HostBits(String, Ipv4Prefix),
}

impl FromStr for MacAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError::Mac(text.to_owned());
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(octets)) }
    }
}

/// An IPv4 network in CIDR form (RFC 4632). Host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    network: Ipv4Addr,
    length: u8,
}

impl Ipv4Prefix {
    /// The network of `length` bits (0…32) that `address` is in; host bits are cleared. `None` above 32.
    #[must_use]
    pub fn containing(address: Ipv4Addr, length: u8) -> Option<Self> {
        (length <= 32).then(|| Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(length)), length })
    }

    /// The network's first address.
    #[must_use]
    pub const fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The number of leading bits that are fixed, 0…32.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Whether `address` is in the network.
    #[inline]
    #[must_use]
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.length) == self.network.to_bits()
    }
}

/// The leading `length` (0…32) bits.
#[inline]
const fn mask(length: u8) -> u32 {
    // In 64 bits, so that a shift by 32 is one.
    (u32::MAX as u64).wrapping_shl(32 - length as u32) as u32
}

impl FromStr for Ipv4Prefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError::Prefix(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let length: u8 = length.parse().map_err(|_| error())?;
        let prefix = Self::containing(address, length).ok_or_else(error)?;
        if prefix.network == address { Ok(prefix) } else { Err(AddressError::HostBits(text.to_owned(), prefix)) }
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl fmt::Debug for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_with_host_bits_is_refused_and_the_network_named() {
        let error = "10.0.0.7/24".parse::<Ipv4Prefix>().unwrap_err();
        assert_eq!(error.to_string(), "\"10.0.0.7/24\" has host bits set; the network is 10.0.0.0/24");
    }

    #[test]
    fn the_default_route_contains_everything() {
        let all: Ipv4Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn a_mac_address_survives_printing_and_parsing() {
        let mac = MacAddress([2, 0, 0xab, 0, 0, 1]);
        assert_eq!(mac.to_string().parse::<MacAddress>(), Ok(mac));
        assert!("02:00:00:00:00".parse::<MacAddress>().is_err());
        assert!("02:00:00:00:00:01:02".parse::<MacAddress>().is_err());
    }
}

//! ICMP errors in transit: the quoted packet is recognised and, with the outer header, translated back into what its
//! sender sent (RFC 5508 §4).

use postern_wire::checksum::{Delta, fold, sum};
use postern_wire::parse::{PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{AttachmentIndex, FlowKey, PacketKind, Parsed, icmp, ipv4, tcp};

use crate::plan::RewritePlan;

/// Bytes of the transport header that every quote has (RFC 792): ports and, for TCP, the sequence number.
const LEAST_TRANSPORT: usize = 8;
/// Offset of the checksum field in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// What an ICMP error quotes. All offsets count from the frame's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote {
    /// Key of the quoted packet, as it was sent to where the error comes from; attachment 0.
    pub key: FlowKey,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Offset of the quoted IPv4 header.
    pub l3: u16,
    /// Offset of the quoted transport header, of which at least 8 bytes are there.
    pub l4: u16,
    /// Offset of the quoted transport checksum, if it lies within the quote.
    pub checksum: Option<u16>,
}

/// Why an ICMP message is no error that quotes a TCP or UDP packet. None is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum QuoteError {
    /// Another type of message.
    #[error("ICMP type {0} is no error that quotes a packet")]
    Kind(u8),
    /// The ICMP checksum is wrong.
    #[error("the ICMP checksum is wrong")]
    Checksum,
    /// The quote ends before the eighth byte of the transport header.
    #[error("the quoted packet ends after {0} bytes, inside its headers")]
    Truncated(u16),
    /// The quoted packet is not IPv4, or has an impossible header length.
    #[error("the quoted IPv4 version or header length is impossible (first byte {0:#04x})")]
    IpHeader(u8),
    /// The quoted header's checksum is wrong (RFC 5508 REQ-3 a).
    #[error("the quoted IPv4 header checksum is wrong")]
    IpChecksum,
    /// The quoted packet is a fragment without ports.
    #[error("the quoted packet is a fragment that is not the first")]
    Fragment,
    /// The quoted packet is neither TCP nor UDP.
    #[error("the quoted packet has IP protocol {0}, neither TCP nor UDP")]
    Protocol(u8),
}

/// Checks an ICMP error and finds out which packet it quotes.
///
/// # Errors
/// When it is no error, a checksum is wrong (the quoted transport checksum is not looked at, RFC 5508 REQ-3 c), or too
/// little is quoted to know the flow.
pub fn quote(bytes: &[u8], parsed: &Parsed) -> Result<Quote, QuoteError> {
    let start = usize::from(parsed.l4);
    let message = bytes.get(start..parsed.end as usize).unwrap_or(&[]);
    let (Some(header), PacketKind::Icmp) = (message.first_chunk::<{ icmp::HEADER }>(), parsed.kind) else {
        return Err(QuoteError::Truncated(0));
    };
    let kind = header[0];
    if !icmp::is_error(kind) {
        return Err(QuoteError::Kind(kind));
    }
    if fold(sum(message)) != 0xffff {
        return Err(QuoteError::Checksum);
    }
    // RFC 4884 §4: with a length attribute, extensions follow the quote. Source quench has none.
    let attribute = usize::from(header[icmp::QUOTE_LENGTH]) * 4;
    let room = message.len() - icmp::HEADER;
    let length = if attribute == 0 || kind == icmp::SOURCE_QUENCH { room } else { attribute.min(room) };
    let quoted = &message[icmp::HEADER..icmp::HEADER + length];

    let truncated = QuoteError::Truncated(length as u16);
    let ip = quoted.first_chunk::<{ ipv4::HEADER }>().ok_or(truncated)?;
    let header_length = ipv4::header_length(ip[0]).ok_or(QuoteError::IpHeader(ip[0]))?;
    let transport = quoted.get(header_length..).ok_or(truncated)?;
    if fold(sum(&quoted[..header_length])) != 0xffff {
        return Err(QuoteError::IpChecksum);
    }
    if u16::from_be_bytes([ip[ipv4::FRAGMENT], ip[ipv4::FRAGMENT + 1]]) & 0x1fff != 0 {
        return Err(QuoteError::Fragment);
    }
    let protocol = ip[ipv4::PROTOCOL];
    let checksum_at = match protocol {
        PROTOCOL_TCP => tcp::CHECKSUM,
        PROTOCOL_UDP => UDP_CHECKSUM,
        other => return Err(QuoteError::Protocol(other)),
    };
    let ports = transport.first_chunk::<LEAST_TRANSPORT>().ok_or(truncated)?;
    let ports = u32::from_le_bytes([ports[0], ports[1], ports[2], ports[3]]);
    let addresses = addresses_of(ip);
    // Behind the quoted packet's own end is padding.
    let total = usize::from(u16::from_be_bytes([ip[ipv4::TOTAL_LENGTH], ip[ipv4::TOTAL_LENGTH + 1]]));
    let quoted_end = total.min(quoted.len());
    let l3 = start + icmp::HEADER;
    let checksum = header_length + checksum_at;
    Ok(Quote {
        key: FlowKey::from_wire(AttachmentIndex(0), protocol, addresses, ports),
        kind,
        code: header[1],
        l3: l3 as u16,
        l4: (l3 + header_length) as u16,
        checksum: (checksum + 2 <= quoted_end).then_some((l3 + checksum) as u16),
    })
}

/// Translates an ICMP error: `outer_addresses` become the outer source and destination (the eight bytes at offset 12 of
/// the IPv4 header, little-endian), one is taken from the outer time to live, which is at least 2, and the quoted packet is
/// rewritten by `inner`, the plan from the quoted key to the key that its sender used.
///
/// All checksums follow: outer header, quoted header, quoted transport header if its field is there, ICMP. A quote that ends
/// after the first byte of the transport checksum keeps that byte: the carry out of the missing one is not known. The MTU
/// field, extensions (RFC 4884) and all other bytes stay.
pub fn translate_error(bytes: &mut [u8], parsed: &Parsed, quote: &Quote, outer_addresses: u64, inner: &RewritePlan) {
    let Some(outer) = bytes.get_mut(usize::from(parsed.l3)..).and_then(<[u8]>::first_chunk_mut::<{ ipv4::HEADER }>)
    else {
        return;
    };
    let before = sum(&outer[ipv4::TTL..ipv4::CHECKSUM]) + sum(&outer[ipv4::ADDRESSES..]);
    outer[ipv4::TTL] = outer[ipv4::TTL].wrapping_sub(1);
    outer[ipv4::ADDRESSES..].copy_from_slice(&outer_addresses.to_le_bytes());
    let after = sum(&outer[ipv4::TTL..ipv4::CHECKSUM]) + sum(&outer[ipv4::ADDRESSES..]);
    apply(outer, ipv4::CHECKSUM, Delta::between(before, after));

    // Every field lies at an even offset of the ICMP message, so the changes add up.
    let Some(ip) = bytes.get_mut(usize::from(quote.l3)..).and_then(<[u8]>::first_chunk_mut::<{ ipv4::HEADER }>) else {
        return;
    };
    // The quoted header keeps a sum of all ones: what the addresses add, its checksum takes away. The ICMP checksum covers
    // both, so only the transport header's changes are left.
    apply(ip, ipv4::CHECKSUM, inner.address_delta);
    ip[ipv4::ADDRESSES..].copy_from_slice(&inner.addresses.to_le_bytes());
    let Some(ports) = bytes.get_mut(usize::from(quote.l4)..).and_then(<[u8]>::first_chunk_mut::<4>) else { return };
    let mut delta = Delta::between(u64::from(u32::from_le_bytes(*ports)), u64::from(inner.ports));
    *ports = inner.ports.to_le_bytes();
    if let Some(at) = quote.checksum
        && let Some(field) = bytes.get_mut(usize::from(at)..).and_then(<[u8]>::first_chunk_mut::<2>)
    {
        let is_udp = quote.key.protocol() == PROTOCOL_UDP;
        let old = u16::from_le_bytes(*field);
        // A UDP checksum of zero says that there is none (RFC 768), and a sum of zero is written as all ones.
        let new = match inner.full_delta.apply(old) {
            _ if is_udp && old == 0 => 0,
            0 if is_udp => 0xffff,
            new => new,
        };
        *field = new.to_le_bytes();
        delta = delta.plus(Delta::between(u64::from(old), u64::from(new)));
    }
    if let Some(message) = bytes.get_mut(usize::from(parsed.l4)..) {
        apply(message, icmp::CHECKSUM, delta);
    }
}

/// The address bytes of a header, little-endian.
fn addresses_of(ip: &[u8; ipv4::HEADER]) -> u64 {
    ip[ipv4::ADDRESSES..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Applies a change to the checksum field at offset `at`.
fn apply(bytes: &mut [u8], at: usize, delta: Delta) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *field = delta.apply(u16::from_le_bytes(*field)).to_le_bytes();
    }
}

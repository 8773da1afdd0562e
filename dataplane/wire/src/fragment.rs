//! Fragments of IP datagrams (RFC 791 §3.2, RFC 8200 §4.5): where they lie, and what the first says of the whole.

use crate::frame::Frame;
use crate::parse::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, PacketKind, Parsed};
use crate::{ipv4, ipv6, tcp};

/// Longest datagram, header included, in bytes.
const LONGEST: usize = 65_535;
/// Fragments but the last carry multiples of so many bytes.
const UNIT: usize = 8;
/// Shortest UDP and ICMP header, in bytes.
const SHORT_HEADER: usize = 8;

/// What the header of a fragment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// What the fragments of one datagram have in common: 16 bits in IPv4, 32 in IPv6, read as big-endian.
    pub identification: u32,
    /// Offset of its first byte in the datagram's payload, a multiple of 8.
    pub start: u16,
    /// Offset behind its last byte, above `start`.
    pub end: u16,
    /// Whether others come behind it.
    pub more: bool,
}

/// Why there can be no such fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum FragmentError {
    /// It carries nothing, or a number of bytes that only the last may carry.
    #[error("a fragment carries {0} bytes, though others follow it")]
    Length(u16),
    /// The datagram would be longer than 65,535 bytes.
    #[error("the fragment ends {0} bytes behind the start of the datagram")]
    TooLong(u32),
    /// A fragment of TCP that begins in the middle of its header (RFC 1858 §3, RFC 3128), or a first one that ends there.
    #[error("the transport header is not in the first fragment as a whole")]
    Tiny,
    /// A UDP datagram over IPv6 without a checksum (RFC 8200 §8.1).
    #[error("the UDP datagram has no checksum, which IPv6 does not allow")]
    Checksum,
}

impl Fragment {
    /// Reads a fragment that [`parse`](crate::parse()) has taken.
    ///
    /// # Errors
    /// When it can be part of no datagram, or splits the header that decides about it.
    pub fn read(frame: &Frame<'_>, parsed: &Parsed) -> Result<Self, FragmentError> {
        let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), parsed.end as usize);
        let packet = frame.bytes().get(l3..end).unwrap_or(&[]);
        let length = end.saturating_sub(l4);
        let (identification, start, more, headers) = if parsed.key.is_wide() {
            let header = ipv6::upper(packet).ok().and_then(|upper| upper.fragment);
            let Some(header) = header.filter(|header| l3 + header.at + ipv6::FRAGMENT_HEADER == l4) else {
                return Err(FragmentError::Length(0));
            };
            (header.identification, usize::from(header.offset), header.more, header.at - ipv6::HEADER)
        } else {
            let Some(header) = packet.first_chunk::<{ ipv4::HEADER }>() else { return Err(FragmentError::Length(0)) };
            let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
            let start = usize::from(field(ipv4::FRAGMENT) & 0x1fff) * UNIT;
            (u32::from(field(ipv4::IDENTIFICATION)), start, field(ipv4::FRAGMENT) & 0x2000 != 0, l4 - l3)
        };
        if length == 0 || more && !length.is_multiple_of(UNIT) {
            return Err(FragmentError::Length(length as u16));
        }
        if headers + start + length > LONGEST {
            return Err(FragmentError::TooLong((headers + start + length) as u32));
        }
        if parsed.key.protocol() == PROTOCOL_TCP && start > 0 && start < tcp::HEADER {
            return Err(FragmentError::Tiny);
        }
        Ok(Self { identification, start: start as u16, end: (start + length) as u16, more })
    }

    /// Whether it holds the transport header.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.start == 0
    }
}

/// What the first fragment of a TCP, UDP or ICMP datagram says of it: kind, ports and flags, as if it were whole.
///
/// # Errors
/// Above all [`FragmentError::Tiny`] if it does not hold the whole transport header, with all options (RFC 1858 §3, RFC 3128).
pub fn first(frame: &Frame<'_>, parsed: &Parsed) -> Result<Parsed, FragmentError> {
    let transport = frame.bytes().get(usize::from(parsed.l4)..parsed.end as usize).unwrap_or(&[]);
    let header = transport.first_chunk::<SHORT_HEADER>().ok_or(FragmentError::Tiny)?;
    let ports = u64::from(u32::from_le_bytes([header[0], header[1], header[2], header[3]]));
    let mut first = *parsed;
    match parsed.key.protocol() {
        PROTOCOL_TCP => {
            let header = transport.first_chunk::<{ tcp::HEADER }>().ok_or(FragmentError::Tiny)?;
            let length = tcp::header_length(header[tcp::DATA_OFFSET]);
            if length < tcp::HEADER || length > transport.len() {
                return Err(FragmentError::Tiny);
            }
            first.kind = PacketKind::Tcp;
            first.tcp_flags = header[tcp::FLAGS];
            first.key.rest |= ports;
        }
        PROTOCOL_UDP => {
            if usize::from(u16::from_be_bytes([header[4], header[5]])) < transport.len() {
                return Err(FragmentError::Length(transport.len() as u16));
            }
            if parsed.key.is_wide() && header[6..8] == [0, 0] {
                return Err(FragmentError::Checksum);
            }
            first.kind = PacketKind::Udp;
            first.key.rest |= ports;
        }
        PROTOCOL_ICMP if !parsed.key.is_wide() => first.kind = PacketKind::Icmp,
        PROTOCOL_ICMPV6 if parsed.key.is_wide() => first.kind = PacketKind::Icmpv6,
        _ => first.kind = PacketKind::OtherProtocol,
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;

    fn frame(protocol: u8, field: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend((20 + payload.len() as u16).to_be_bytes());
        bytes.extend([0x12, 0x34]);
        bytes.extend(field.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ipv4::complete_checksum(&mut bytes[14..34]);
        bytes.extend(payload);
        bytes
    }

    fn read(protocol: u8, field: u16, payload: &[u8]) -> Result<Fragment, FragmentError> {
        let mut bytes = frame(protocol, field, payload);
        let length = bytes.len();
        let frame = Frame::new(&mut bytes, 0, length).unwrap();
        let parsed = parse(&frame).unwrap();
        assert_eq!(parsed.kind, PacketKind::Fragment);
        let fragment = Fragment::read(&frame, &parsed)?;
        if fragment.is_first() {
            let first = first(&frame, &parsed)?;
            assert_eq!((first.l4, first.end), (parsed.l4, parsed.end));
            assert_eq!(first.key.source_port(), u16::from_be_bytes([payload[0], payload[1]]));
        }
        Ok(fragment)
    }

    #[test]
    fn a_fragment_lies_where_its_header_says() {
        let fragment = read(PROTOCOL_UDP, 0x2000 | 5, &[7; 16]).unwrap();
        assert_eq!(fragment, Fragment { identification: 0x1234, start: 40, end: 56, more: true });
        assert_eq!(read(PROTOCOL_TCP, 5, &[7; 3]).map(|last| (last.start, last.end, last.more)), Ok((40, 43, false)));
        let (mut udp, mut tcp) = ([0; 16], [0; 24]);
        udp[5] = 40;
        tcp[12] = 0x50;
        assert!(read(PROTOCOL_UDP, 0x2000, &udp).unwrap().is_first());
        assert!(read(PROTOCOL_TCP, 0x2000, &tcp).unwrap().is_first());
    }

    #[test]
    fn impossible_fragments_and_split_headers_are_refused() {
        assert_eq!(read(PROTOCOL_UDP, 0x2005, &[7; 15]), Err(FragmentError::Length(15)));
        assert_eq!(read(PROTOCOL_UDP, 5, &[]), Err(FragmentError::Length(0)));
        assert_eq!(read(PROTOCOL_UDP, 0x1fff, &[7; 200]), Err(FragmentError::TooLong(20 + 65_528 + 200)));
        assert_eq!(
            read(PROTOCOL_UDP, 0x2000, &[0; 16]),
            Err(FragmentError::Length(16)),
            "UDP ends before its fragment"
        );
        for offset in 1..3 {
            assert_eq!(read(PROTOCOL_TCP, offset, &[7; 64]), Err(FragmentError::Tiny));
        }
        let mut tcp = [0; 24];
        tcp[12] = 0x70;
        assert_eq!(read(PROTOCOL_TCP, 0x2000, &tcp), Err(FragmentError::Tiny), "options are not there");
        assert_eq!(read(PROTOCOL_TCP, 0x2000, &tcp[..16]), Err(FragmentError::Tiny));
    }
}

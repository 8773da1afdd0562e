//! The IPv6 header and its extension headers (RFC 8200 §3, §4).

use std::net::Ipv6Addr;

use crate::parse::{PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};

/// Length of the header without extension headers, in bytes.
pub const HEADER: usize = 40;
/// Offset of the payload length, which counts everything behind the header, extension headers included.
pub const PAYLOAD_LENGTH: usize = 4;
/// Offset of the next header: an extension header's number, or the transport protocol's.
pub const NEXT_HEADER: usize = 6;
/// Offset of the hop limit.
pub const HOP_LIMIT: usize = 7;
/// Offset of the source address, behind which is the destination address.
pub const ADDRESSES: usize = 8;
/// The MTU that every link has at least (RFC 8200 §5), in bytes.
pub const LEAST_MTU: u16 = 1280;

/// Hop-by-hop options (RFC 8200 §4.3).
pub const HOP_BY_HOP: u8 = 0;
/// Routing header (RFC 8200 §4.4).
pub const ROUTING: u8 = 43;
/// Fragment header (RFC 8200 §4.5).
pub const FRAGMENT: u8 = 44;
/// Destination options (RFC 8200 §4.6).
pub const DESTINATION_OPTIONS: u8 = 60;
/// Length of a fragment header, in bytes.
pub const FRAGMENT_HEADER: usize = 8;

/// Most extension headers of a packet that is looked into.
pub const MOST_EXTENSIONS: usize = 8;
/// Most bytes of extension headers of a packet that is looked into.
pub const MOST_EXTENSION_BYTES: usize = 256;

/// Source and destination address, as they stand one behind the other in a header.
pub type AddressPair = [u8; 32];

/// The addresses of the header that begins at `l3`; `None` if the bytes end before.
#[inline]
#[must_use]
pub fn addresses(bytes: &[u8], l3: usize) -> Option<&AddressPair> {
    bytes.get(l3 + ADDRESSES..)?.first_chunk()
}

/// Both addresses, one behind the other.
#[must_use]
pub fn pair(source: Ipv6Addr, destination: Ipv6Addr) -> AddressPair {
    let mut pair = [0; 32];
    pair[..16].copy_from_slice(&source.octets());
    pair[16..].copy_from_slice(&destination.octets());
    pair
}

/// The two addresses of a pair: source, destination.
#[inline]
#[must_use]
pub const fn octets(pair: &AddressPair) -> (&[u8; 16], &[u8; 16]) {
    let (source, destination) = pair.split_at(16);
    match (source.first_chunk(), destination.first_chunk()) {
        (Some(source), Some(destination)) => (source, destination),
        _ => unreachable!(),
    }
}

/// Source address of a pair.
#[must_use]
pub const fn source(pair: &AddressPair) -> Ipv6Addr {
    Ipv6Addr::from_octets(*octets(pair).0)
}

/// Destination address of a pair.
#[must_use]
pub const fn destination(pair: &AddressPair) -> Ipv6Addr {
    Ipv6Addr::from_octets(*octets(pair).1)
}

/// The pair of the answering packet.
#[must_use]
pub fn reversed(pair: &AddressPair) -> AddressPair {
    let mut reversed = [0; 32];
    reversed[..16].copy_from_slice(&pair[16..]);
    reversed[16..].copy_from_slice(&pair[..16]);
    reversed
}

/// An address in 32 bits for a hash that has no secret of its own: the exclusive or of its four words, read as
/// little-endian. Whoever needs to be hard to collide with mixes a secret in where the parts meet.
#[inline]
#[must_use]
pub const fn fold(address: &[u8; 16]) -> u32 {
    let all = u128::from_le_bytes(*address);
    let half = (all ^ (all >> 64)) as u64;
    (half ^ (half >> 32)) as u32
}

/// Writes a header with traffic class and flow label 0. `payload_length` is what follows the header, in bytes.
pub fn write_header(
    bytes: &mut [u8; HEADER],
    addresses: &AddressPair,
    next_header: u8,
    payload_length: u16,
    hop_limit: u8,
) {
    bytes[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 2].copy_from_slice(&payload_length.to_be_bytes());
    bytes[NEXT_HEADER] = next_header;
    bytes[HOP_LIMIT] = hop_limit;
    bytes[ADDRESSES..].copy_from_slice(addresses);
}

/// Traffic class: DSCP and ECN (RFC 2474, RFC 3168). It straddles the first two bytes.
#[inline]
#[must_use]
pub const fn traffic_class(first: u8, second: u8) -> u8 {
    first << 4 | second >> 4
}

/// A fragment header (RFC 8200 §4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentHeader {
    /// Where it begins, from the first byte of the packet.
    pub at: usize,
    /// Where this fragment's data begins in the whole packet's fragmentable part, in bytes: a multiple of 8.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// What all fragments of a packet have in common, as it stands in the header, read as big-endian.
    pub identification: u32,
}

impl FragmentHeader {
    fn read(at: usize, header: &[u8; FRAGMENT_HEADER]) -> Self {
        let field = u16::from_be_bytes([header[2], header[3]]);
        Self {
            at,
            offset: field & !7,
            more: field & 1 != 0,
            identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        }
    }

    /// Whether the packet is whole: neither an offset nor more fragments (RFC 6946).
    #[must_use]
    pub const fn is_atomic(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// What lies behind the header and its extension headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upper {
    /// Transport protocol; of a fragment, what its fragment header says comes next, which may be an extension header.
    pub protocol: u8,
    /// Where that begins, from the first byte of the packet.
    pub at: usize,
    /// The fragment header, also of an atomic fragment. Nothing behind that of a true fragment is looked into.
    pub fragment: Option<FragmentHeader>,
}

/// Why the extension headers of a packet are not walked to their end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum ExtensionError {
    /// The packet ends inside of one.
    #[error("the packet ends inside its extension headers")]
    Truncated,
    /// More than [`MOST_EXTENSIONS`] or [`MOST_EXTENSION_BYTES`].
    #[error(
        "there are more than {MOST_EXTENSIONS} extension headers, or more than {MOST_EXTENSION_BYTES} bytes of them"
    )]
    TooMany,
    /// A routing header that still names stations to visit, or of type 0 (RFC 5095).
    #[error("the packet has a routing header that is not to be followed")]
    Routing,
}

/// Walks over the extension headers of a packet that begins with a whole header.
///
/// # Errors
/// See [`ExtensionError`].
pub fn upper(packet: &[u8]) -> Result<Upper, ExtensionError> {
    let mut upper =
        Upper { protocol: *packet.get(NEXT_HEADER).ok_or(ExtensionError::Truncated)?, at: HEADER, fragment: None };
    for _ in 0..=MOST_EXTENSIONS {
        if !is_extension(upper.protocol) {
            return Ok(upper);
        }
        let header: &[u8; 8] = packet.get(upper.at..).and_then(<[u8]>::first_chunk).ok_or(ExtensionError::Truncated)?;
        let length = match upper.protocol {
            FRAGMENT => {
                let fragment = FragmentHeader::read(upper.at, header);
                upper.fragment = Some(fragment);
                if !fragment.is_atomic() {
                    return Ok(Upper { protocol: header[0], at: upper.at + FRAGMENT_HEADER, ..upper });
                }
                FRAGMENT_HEADER
            }
            ROUTING if header[2] == 0 || header[3] != 0 => return Err(ExtensionError::Routing),
            _ => (usize::from(header[1]) + 1) * 8,
        };
        upper = Upper { protocol: header[0], at: upper.at + length, ..upper };
        if upper.at > HEADER + MOST_EXTENSION_BYTES {
            return Err(ExtensionError::TooMany);
        }
        if upper.at > packet.len() {
            return Err(ExtensionError::Truncated);
        }
    }
    Err(ExtensionError::TooMany)
}

/// Whether a next header is one of those that are walked over.
const fn is_extension(number: u8) -> bool {
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Whether a protocol's checksum covers the pseudo-header (RFC 8200 §8.1) and Postern knows where it is.
#[must_use]
pub const fn has_pseudo_header(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMPV6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet with these extension headers, each of them next header and all further bytes, in front of UDP.
    fn packet(first: u8, extensions: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        write_header(bytes.first_chunk_mut().unwrap(), &[7; 32], first, 0, 64);
        bytes.extend(extensions.concat());
        bytes.extend([0; 8]);
        bytes
    }

    const OPTIONS: [u8; 8] = [DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0];

    #[test]
    fn ipv6_extension_headers_are_walked_to_the_transport_header() {
        assert_eq!(upper(&packet(17, &[])), Ok(Upper { protocol: 17, at: 40, fragment: None }));
        let long = [&[17, 2, 1, 20][..], &[0; 20]].concat();
        let routing = [DESTINATION_OPTIONS, 0, 2, 0, 0, 0, 0, 0];
        let bytes = packet(HOP_BY_HOP, &[&[ROUTING, 0, 1, 4, 0, 0, 0, 0], &routing, &long]);
        assert_eq!(upper(&bytes), Ok(Upper { protocol: 17, at: 40 + 8 + 8 + 24, fragment: None }));
    }

    #[test]
    fn ipv6_fragment_headers_end_the_walk_unless_they_are_atomic() {
        let header = |field: u16| {
            let [a, b] = field.to_be_bytes();
            [17, 0, a, b, 1, 2, 3, 4]
        };
        let found = upper(&packet(FRAGMENT, &[&header(8 | 1)])).unwrap();
        let fragment = FragmentHeader { at: 40, offset: 8, more: true, identification: 0x0102_0304 };
        assert_eq!(found, Upper { protocol: 17, at: 48, fragment: Some(fragment) });
        let found = upper(&packet(FRAGMENT, &[&header(0)])).unwrap();
        assert_eq!((found.protocol, found.at, found.fragment.unwrap().is_atomic()), (17, 48, true));
        // What follows the fragment header of a first fragment belongs to the fragmented packet.
        let mut first = packet(FRAGMENT, &[&header(1), &OPTIONS]);
        first[40] = DESTINATION_OPTIONS;
        assert_eq!(upper(&first).map(|upper| (upper.protocol, upper.at)), Ok((DESTINATION_OPTIONS, 48)));
    }

    #[test]
    fn ipv6_extension_headers_beyond_the_bounds_are_refused() {
        let eight: Vec<&[u8]> = vec![&OPTIONS[..]; 7].into_iter().chain([&[17, 0, 1, 4, 0, 0, 0, 0][..]]).collect();
        assert!(upper(&packet(DESTINATION_OPTIONS, &eight)).is_ok());
        let nine: Vec<&[u8]> = [&OPTIONS[..]].into_iter().chain(eight).collect();
        assert_eq!(upper(&packet(DESTINATION_OPTIONS, &nine)), Err(ExtensionError::TooMany));
        let long = [&[17, 32, 1, 4][..], &[0; 260]].concat();
        assert_eq!(upper(&packet(DESTINATION_OPTIONS, &[&long])), Err(ExtensionError::TooMany));
        assert_eq!(upper(&packet(DESTINATION_OPTIONS, &[&[17, 9]])), Err(ExtensionError::Truncated));
        for routing in [[17, 0, 0, 0, 0, 0, 0, 0], [17, 0, 2, 1, 0, 0, 0, 0]] {
            assert_eq!(upper(&packet(ROUTING, &[&routing])), Err(ExtensionError::Routing));
        }
        assert_eq!(upper(&[0; 3]), Err(ExtensionError::Truncated));
    }

    #[test]
    fn addresses_come_back_from_a_written_header() {
        let (a, b): (Ipv6Addr, Ipv6Addr) = ("2001:db8::1".parse().unwrap(), "fd00:1:2:3:4:5:6:7".parse().unwrap());
        let mut bytes = [0xff; HEADER];
        write_header(&mut bytes, &pair(a, b), 6, 20, 3);
        let theirs = etherparse::Ipv6HeaderSlice::from_slice(&bytes).unwrap();
        assert_eq!((theirs.source_addr(), theirs.destination_addr()), (a, b));
        assert_eq!((theirs.payload_length(), theirs.hop_limit(), theirs.next_header().0), (20, 3, 6));
        assert_eq!((theirs.traffic_class(), theirs.flow_label().value()), (0, 0));
        let found = addresses(&bytes, 0).unwrap();
        assert_eq!((source(found), destination(found)), (a, b));
        assert_eq!(reversed(found), pair(b, a));
        assert_eq!(fold(&b.octets()), (0xfd00_0001u32 ^ 0x0002_0003 ^ 0x0004_0005 ^ 0x0006_0007).swap_bytes());
    }
}

//! TCP and UDP packets (RFC 7915 §4.1, §5.1).

use postern_wire::checksum::{Delta, checksum, pseudo_header_v6};
use postern_wire::ipv6::{self, AddressPair};
use postern_wire::parse::PROTOCOL_UDP;
use postern_wire::{Frame, Offload, PacketKind, Parsed, ipv4};

use crate::ipv6::rewrite_transport;

/// Offsets of the length and checksum fields in a UDP header.
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
/// Longest IPv4 packet, and longest payload of an IPv6 packet, in bytes.
const LONGEST: usize = 65_535;
/// IPv4 options that name stations to visit: loose and strict source route (RFC 791 §3.1).
const SOURCE_ROUTES: [u8; 2] = [131, 137];

/// Why a packet has no form in the other version. None of its bytes were changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum Nat64Error {
    /// An IPv4 packet of more than 65,535 bytes.
    #[error("the packet would have {0} bytes, more than IPv4 can have")]
    TooLong(usize),
    /// An IPv4 packet with a source route that has not come to its end.
    #[error("the packet has a source route")]
    SourceRoute,
    /// A run of UDP datagrams without checksums, each of which would need its own.
    #[error("a super-frame of datagrams without checksums cannot become one of IPv6")]
    NoChecksum,
    /// The frame's buffer has no room in front of it.
    #[error("there is no room for a longer header")]
    NoRoom,
}

/// The ports that a packet gets, and how the sums of its pseudo-header change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewEnds {
    /// The first four bytes of the transport header, little-endian.
    pub ports: u32,
    /// Change of the sum over the addresses, from one version's to the other's.
    pub address_delta: Delta,
    /// Change of the sum over addresses and ports.
    pub full_delta: Delta,
}

/// Turns an IPv6 packet, whose hop limit is at least 2, into one of IPv4 between `addresses` (the eight bytes at offset 12 of
/// the header, little-endian). The frame then begins with the IPv4 header; the offsets of what is returned count from there.
///
/// Extension headers go; of a fragment header, offset and flag stay. `whole` says that the packet, or each segment of a super-frame, is larger than 1,260 bytes and so may
/// not be fragmented on its way; smaller ones may be, which is what an IPv6 sender that was told of a smaller MTU relies
/// on (RFC 7915 §5.1). `identification` is the packet's, unless an atomic fragment brings one.
///
/// # Errors
/// See [`Nat64Error`].
pub fn to_ipv4(
    frame: &mut Frame<'_>,
    parsed: &Parsed,
    addresses: u64,
    ends: &NewEnds,
    whole: bool,
    identification: u16,
) -> Result<Parsed, Nat64Error> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let length = ipv4::HEADER + (parsed.end as usize - l4);
    if length > LONGEST {
        return Err(Nat64Error::TooLong(length));
    }
    let packet = &frame.bytes()[l3..parsed.end as usize];
    let fragment = ipv6::upper(packet).ok().and_then(|upper| upper.fragment);
    let atomic = fragment.filter(ipv6::FragmentHeader::is_atomic);
    let mut header = [0; ipv4::HEADER];
    header[0] = 0x45;
    header[ipv4::TYPE_OF_SERVICE] = ipv6::traffic_class(packet[0], packet[1]);
    header[ipv4::TOTAL_LENGTH..ipv4::TOTAL_LENGTH + 2].copy_from_slice(&(length as u16).to_be_bytes());
    let identification = atomic.map_or(identification, |fragment| fragment.identification as u16);
    header[ipv4::IDENTIFICATION..ipv4::IDENTIFICATION + 2].copy_from_slice(&identification.to_be_bytes());
    // A fragment stays one (RFC 7915 §5.1.1); a whole packet may have DF set.
    let field = match fragment {
        Some(fragment) => (fragment.offset / 8) | (u16::from(fragment.more) << 13),
        None => u16::from(whole) << 14,
    };
    header[ipv4::FRAGMENT..ipv4::FRAGMENT + 2].copy_from_slice(&field.to_be_bytes());
    header[ipv4::TTL] = parsed.ttl.wrapping_sub(1);
    header[ipv4::PROTOCOL] = parsed.key.protocol();
    header[ipv4::ADDRESSES..].copy_from_slice(&addresses.to_le_bytes());
    ipv4::complete_checksum(&mut header);

    replace_header(frame, parsed, &header, Offload::TCP_V6, Offload::TCP_V4, ends)?;
    let mut key = parsed.key;
    (key.addresses, key.rest) = (addresses, key.rest & !(0xff << 56 | 0xffff_ffff) | u64::from(ends.ports));
    let end = length as u32;
    Ok(Parsed { key, ttl: parsed.ttl.wrapping_sub(1), l3: 0, l4: ipv4::HEADER as u16, end, vlan: 0, ..*parsed })
}

/// Turns an IPv4 packet, whose time to live is at least 2, into one of IPv6 between `addresses`, with flow label 0. The frame
/// then begins with the IPv6 header; the offsets of what is returned count from there. A UDP checksum of zero is computed. A
/// fragment gets a fragment header with its own identification, whose upper half is zero.
///
/// # Errors
/// See [`Nat64Error`].
pub fn to_ipv6(
    frame: &mut Frame<'_>,
    parsed: &Parsed,
    addresses: &AddressPair,
    ends: &NewEnds,
) -> Result<Parsed, Nat64Error> {
    let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), parsed.end as usize);
    let bytes = frame.bytes();
    if has_source_route(&bytes[l3 + ipv4::HEADER..l4]) {
        return Err(Nat64Error::SourceRoute);
    }
    let partial = frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4;
    let udp = parsed.kind == PacketKind::Udp;
    let without_checksum = udp && !partial && bytes[l4 + UDP_CHECKSUM..l4 + UDP_CHECKSUM + 2] == [0, 0];
    let field = u16::from_be_bytes([bytes[l3 + ipv4::FRAGMENT], bytes[l3 + ipv4::FRAGMENT + 1]]);
    let is_fragment = field & 0x3fff != 0;
    if without_checksum && (frame.offload.is_segmented() || is_fragment) {
        return Err(Nat64Error::NoChecksum);
    }
    let length = ipv6::HEADER + if is_fragment { ipv6::FRAGMENT_HEADER } else { 0 };
    let payload = length - ipv6::HEADER + (end - l4);
    let mut headers = [0; ipv6::HEADER + ipv6::FRAGMENT_HEADER];
    let Some((header, fragment)) = headers.split_first_chunk_mut() else { return Err(Nat64Error::NoRoom) };
    let next = if is_fragment { ipv6::FRAGMENT } else { parsed.key.protocol() };
    ipv6::write_header(header, addresses, next, payload as u16, parsed.ttl.wrapping_sub(1));
    let class = bytes[l3 + ipv4::TYPE_OF_SERVICE];
    header[0] |= class >> 4;
    header[1] |= class << 4;
    // Offset in words of eight bytes in the upper 13 bits, "more fragments" in the lowest.
    let [high, low] = (field << 3 | field >> 13 & 1).to_be_bytes();
    let [a, b] = [bytes[l3 + ipv4::IDENTIFICATION], bytes[l3 + ipv4::IDENTIFICATION + 1]];
    fragment.copy_from_slice(&[parsed.key.protocol(), 0, high, low, 0, 0, a, b]);
    replace_header(frame, parsed, &headers[..length], Offload::TCP_V4, Offload::TCP_V6, ends)?;
    if without_checksum {
        complete_datagram(&mut frame.bytes_mut()[ipv6::HEADER..], addresses);
    }
    let mut key = parsed.key;
    (key.addresses, key.rest) = (0, key.rest & !(0xff << 56 | 0xffff_ffff) | 1 << 56 | u64::from(ends.ports));
    let end = (ipv6::HEADER + payload) as u32;
    Ok(Parsed { key, ttl: parsed.ttl.wrapping_sub(1), l3: 0, l4: length as u16, end, vlan: 0, ..*parsed })
}

/// Replaces everything in front of the transport header, and brings that and the offload state in order.
fn replace_header(
    frame: &mut Frame<'_>,
    parsed: &Parsed,
    header: &[u8],
    old_type: u8,
    new_type: u8,
    ends: &NewEnds,
) -> Result<(), Nat64Error> {
    let partial = frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4;
    let udp = parsed.kind == PacketKind::Udp;
    frame.truncate(parsed.end as usize);
    if !frame.resize_front(usize::from(parsed.l4), header.len()) {
        return Err(Nat64Error::NoRoom);
    }
    // A run of TCP segments in a UDP tunnel is none of this version of IP.
    if !udp && frame.offload.segmentation_type & !Offload::ECN == old_type {
        frame.offload.segmentation_type = new_type | frame.offload.segmentation_type & Offload::ECN;
    }
    let bytes = frame.bytes_mut();
    bytes[..header.len()].copy_from_slice(header);
    // A fragment that is not the first has none of it. Of a datagram without checksum the change says nothing.
    if parsed.kind != PacketKind::Fragment {
        let transport = &mut bytes[header.len()..];
        rewrite_transport(transport, udp, partial, ends.ports, [ends.address_delta, ends.full_delta]);
    }
    Ok(())
}

/// Writes the checksum of a UDP datagram, which may be followed by bytes that are not its own.
fn complete_datagram(transport: &mut [u8], addresses: &AddressPair) {
    let length = u16::from_be_bytes([transport[UDP_LENGTH], transport[UDP_LENGTH + 1]]);
    let Some(datagram) = transport.get_mut(..usize::from(length)) else { return };
    datagram[UDP_CHECKSUM..UDP_CHECKSUM + 2].fill(0);
    let sum = match checksum(datagram, pseudo_header_v6(addresses, PROTOCOL_UDP, length)) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
}

/// Whether there is a source route among the options of a header whose pointer has not passed its end.
fn has_source_route(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        match (kind, rest.first()) {
            // End of the list.
            (0, _) => return false,
            (1, _) => options = rest,
            (kind, Some(length)) if usize::from(*length) >= 2 && usize::from(*length) <= options.len() => {
                let pointer = options.get(2).copied().unwrap_or(0);
                if SOURCE_ROUTES.contains(kind) && pointer <= *length {
                    return true;
                }
                options = &options[usize::from(*length)..];
            }
            // Malformed, and so no route that anyone could follow.
            _ => return false,
        }
    }
    false
}

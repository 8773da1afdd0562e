//! Packets of our own that answer one over IPv6: ICMPv6 errors (RFC 4443 §2.4), echo replies, and TCP resets.

use std::net::Ipv6Addr;

use postern_wire::checksum::{Delta, checksum, pseudo_header_v6};
use postern_wire::icmpv6::{self, ECHO_REPLY, ECHO_REQUEST};
use postern_wire::ipv6::{self, AddressPair};
use postern_wire::parse::{PROTOCOL_ICMPV6, PROTOCOL_TCP};
use postern_wire::{Frame, PacketKind, Parsed, tcp};

/// Longest ICMPv6 error, IPv6 header included, in bytes (RFC 4443 §2.4 (c)): what every link carries.
pub const LONGEST_ERROR6: usize = ipv6::LEAST_MTU as usize;
/// Length of a reset, IPv6 header included, in bytes.
pub const RESET6_LENGTH: usize = ipv6::HEADER + tcp::HEADER;

/// Hop limit of what the gateway sends itself.
const HOP_LIMIT: u8 = 64;

/// Whether an ICMPv6 error or a reset may be sent in answer to a packet (RFC 4443 §2.4 (e)): not to an ICMPv6 error or
/// redirect, not to anything sent to many by Ethernet or IPv6 address, not to a fragment that is not the first, and not to a
/// source that is no single host.
#[must_use]
pub fn may_answer6(parsed: &Parsed, bytes: &[u8]) -> bool {
    let Some(addresses) = ipv6::addresses(bytes, usize::from(parsed.l3)) else { return false };
    let single = |address: Ipv6Addr| !address.is_multicast() && !address.is_unspecified() && !address.is_loopback();
    if bytes.first().is_none_or(|octet| octet & 1 != 0)
        || !single(ipv6::source(addresses))
        || !single(ipv6::destination(addresses))
    {
        return false;
    }
    let transport = bytes.get(usize::from(parsed.l4)..parsed.end as usize).unwrap_or(&[]);
    match parsed.kind {
        PacketKind::Fragment => {
            let packet = bytes.get(usize::from(parsed.l3)..parsed.end as usize).unwrap_or(&[]);
            let fragment = ipv6::upper(packet).ok().and_then(|upper| upper.fragment);
            fragment.is_some_and(|fragment| fragment.offset == 0) && parsed.key.protocol() != PROTOCOL_ICMPV6
        }
        // Types below 128 are errors, known or not.
        PacketKind::Icmpv6 => transport.first().is_some_and(|kind| *kind >= ECHO_REQUEST),
        PacketKind::NeighbourDiscovery => transport.first().is_some_and(|kind| *kind != icmpv6::REDIRECT),
        _ => true,
    }
}

/// Writes an ICMPv6 error as an IPv6 packet into `out` and returns its length, at most [`LONGEST_ERROR6`]. It quotes as much
/// of `quoted_packet` (from its IPv6 header on) as fits. `rest` is the second word of the ICMPv6 header: the MTU of a packet
/// too big, the pointer of a parameter problem.
///
/// Returns 0, with nothing written, if `out` has no room for the headers and a byte of quote.
pub fn icmpv6_error(
    out: &mut [u8],
    addresses: &AddressPair,
    (kind, code): (u8, u8),
    rest: u32,
    quoted_packet: &[u8],
) -> usize {
    const HEADERS: usize = ipv6::HEADER + icmpv6::HEADER;
    let length = (HEADERS + quoted_packet.len()).min(LONGEST_ERROR6).min(out.len());
    if length <= HEADERS {
        return 0;
    }
    let Some((ip, message)) = out[..length].split_first_chunk_mut() else { return 0 };
    ipv6::write_header(ip, addresses, PROTOCOL_ICMPV6, message.len() as u16, HOP_LIMIT);
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..icmpv6::HEADER].copy_from_slice(&rest.to_be_bytes());
    message[icmpv6::HEADER..].copy_from_slice(&quoted_packet[..length - HEADERS]);
    icmpv6::complete_checksum(message, addresses);
    length
}

/// Writes the reset that answers a TCP segment for which there is no connection, as an IPv6 packet of [`RESET6_LENGTH`]
/// bytes from the segment's destination to its source, with the sequence numbers that its sender accepts.
///
/// `None`, with nothing written, in answer to a reset, to what [`may_answer6`] excludes, or if `out` is too short.
pub fn tcp_reset6(out: &mut [u8], parsed: &Parsed, bytes: &[u8]) -> Option<usize> {
    if parsed.kind != PacketKind::Tcp || parsed.tcp_flags & tcp::RST != 0 || !may_answer6(parsed, bytes) {
        return None;
    }
    let addresses = ipv6::reversed(ipv6::addresses(bytes, usize::from(parsed.l3))?);
    let segment = bytes.get(usize::from(parsed.l4)..parsed.end as usize)?;
    let (ip, reset) = out.get_mut(..RESET6_LENGTH)?.split_first_chunk_mut()?;
    ipv6::write_header(ip, &addresses, PROTOCOL_TCP, tcp::HEADER as u16, HOP_LIMIT);
    crate::icmp::write_reset(reset.first_chunk_mut()?, parsed, segment)?;
    let sum = checksum(reset, pseudo_header_v6(&addresses, PROTOCOL_TCP, tcp::HEADER as u16));
    reset[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
    Some(RESET6_LENGTH)
}

/// Turns an echo request into its reply, in place: addresses exchanged, type 129, hop limit 64. The Ethernet header is left
/// to whoever sends it. False, with nothing changed, if the packet is no echo request.
///
/// A complete checksum is updated, so that a wrong one stays wrong and its sender notices; a partial one is a sum that the
/// device has still to make over the new type.
pub fn echo_reply6(frame: &mut Frame<'_>, parsed: &Parsed) -> bool {
    let l4 = usize::from(parsed.l4);
    let partial = frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4;
    let is_request = frame
        .bytes()
        .get(l4..)
        .and_then(<[u8]>::first_chunk::<{ icmpv6::HEADER }>)
        .is_some_and(|message| parsed.kind == PacketKind::Icmpv6 && message[..2] == [ECHO_REQUEST, 0]);
    if !is_request {
        return false;
    }
    // The pseudo-header's sum does not ask which address is which.
    return_to_source6(frame, parsed);
    let message = &mut frame.bytes_mut()[l4..];
    message[0] = ECHO_REPLY;
    if !partial {
        let delta = Delta::between(u64::from(ECHO_REQUEST), u64::from(ECHO_REPLY));
        let sum = delta.apply(u16::from_le_bytes([message[icmpv6::CHECKSUM], message[icmpv6::CHECKSUM + 1]]));
        message[icmpv6::CHECKSUM..icmpv6::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
    }
    true
}

/// Exchanges the addresses of an IPv6 packet and makes its hop limit 64: one that goes back to where it came from.
pub fn return_to_source6(frame: &mut Frame<'_>, parsed: &Parsed) {
    let l3 = usize::from(parsed.l3);
    let ip = frame.bytes_mut().get_mut(l3..).and_then(<[u8]>::first_chunk_mut::<{ ipv6::HEADER }>);
    let Some(ip) = ip else { return };
    let (source, destination) = ip[ipv6::ADDRESSES..].split_at_mut(16);
    source.swap_with_slice(destination);
    ip[ipv6::HOP_LIMIT] = HOP_LIMIT;
}

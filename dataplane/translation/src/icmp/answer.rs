//! Packets of our own that answer one: ICMP errors (RFC 1812 §4.3), echo replies, and TCP resets (RFC 9293 §3.10.7.1).

use std::net::Ipv4Addr;

use postern_wire::checksum::{Delta, checksum, pseudo_header};
use postern_wire::parse::{PROTOCOL_ICMP, PROTOCOL_TCP};
use postern_wire::{FlowKey, Frame, PacketKind, Parsed, icmp, ipv4, tcp};

/// Longest ICMP error, IPv4 header included, in bytes (RFC 1812 §4.3.2.3).
pub const LONGEST_ERROR: usize = 576;
/// Length of a reset, IPv4 header included, in bytes.
pub const RESET_LENGTH: usize = ipv4::HEADER + tcp::HEADER;

/// Time to live of what the gateway sends itself.
const TTL: u8 = 64;
/// Type of service of errors: precedence internetwork control (RFC 1812 §4.3.2.5).
const ERROR_TYPE_OF_SERVICE: u8 = 0xc0;

/// Whether an ICMP error or a reset may be sent in answer to a packet (RFC 1812 §4.3.2.7): not to an ICMP error or
/// redirect, not to a fragment that is not the first, not to anything sent to many by Ethernet or IP address, and not to a
/// source that is no single host.
#[must_use]
pub fn may_answer(parsed: &Parsed, bytes: &[u8]) -> bool {
    let single = |address: Ipv4Addr| {
        !address.is_multicast() && !address.is_broadcast() && !address.is_unspecified() && address.octets()[0] < 240
    };
    let source = parsed.key.source();
    if parsed.kind == PacketKind::Arp || bytes.first().is_none_or(|octet| octet & 1 != 0) {
        return false;
    }
    if !single(source) || source.is_loopback() || !single(parsed.key.destination()) {
        return false;
    }
    let at = usize::from(parsed.l3) + ipv4::FRAGMENT;
    let Some([high, low]) = bytes.get(at..).and_then(<[u8]>::first_chunk::<2>) else { return false };
    if u16::from_be_bytes([*high, *low]) & 0x1fff != 0 {
        return false;
    }
    if parsed.key.protocol() != PROTOCOL_ICMP {
        return true;
    }
    // The first fragment of an ICMP message may be short.
    let message = bytes.get(usize::from(parsed.l4)..parsed.end as usize).unwrap_or(&[]);
    message.first().is_some_and(|kind| !icmp::is_error(*kind) && *kind != icmp::REDIRECT)
}

/// Writes an ICMP error as an IPv4 packet into `out` and returns its length, at most [`LONGEST_ERROR`]. It quotes as much of
/// `quoted_packet` (from its IPv4 header on) as fits. `rest` is the second word of the ICMP header: for type 3 code 4, two
/// zeros and the MTU (RFC 1191 §4).
///
/// Returns 0, with nothing written, if `out` has no room for a header and a byte of quote.
pub fn icmp_error(
    out: &mut [u8],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    quoted_packet: &[u8],
) -> usize {
    const HEADERS: usize = ipv4::HEADER + icmp::HEADER;
    let length = (HEADERS + quoted_packet.len()).min(LONGEST_ERROR).min(out.len());
    if length <= HEADERS {
        return 0;
    }
    let Some((ip, message)) = out[..length].split_first_chunk_mut::<{ ipv4::HEADER }>() else { return 0 };
    ipv4::write_header(ip, source, destination, PROTOCOL_ICMP, length as u16, TTL);
    ip[ipv4::TYPE_OF_SERVICE] = ERROR_TYPE_OF_SERVICE;
    ip[ipv4::FRAGMENT] = 0;
    ipv4::complete_checksum(ip);
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..icmp::HEADER].copy_from_slice(&rest);
    message[icmp::HEADER..].copy_from_slice(&quoted_packet[..length - HEADERS]);
    let sum = checksum(message, 0);
    message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
    length
}

/// Writes the reset that answers a TCP segment for which there is no connection, as an IPv4 packet of [`RESET_LENGTH`] bytes
/// from the segment's destination to its source, with the sequence numbers that its sender accepts.
///
/// `None`, with nothing written, in answer to a reset, to what [`may_answer`] excludes, or if `out` is too short.
pub fn tcp_reset(out: &mut [u8], parsed: &Parsed, bytes: &[u8]) -> Option<usize> {
    if parsed.kind != PacketKind::Tcp || parsed.tcp_flags & tcp::RST != 0 || !may_answer(parsed, bytes) {
        return None;
    }
    let segment = bytes.get(usize::from(parsed.l4)..parsed.end as usize)?;
    let answer = parsed.key.reversed();
    let (ip, reset) = out.get_mut(..RESET_LENGTH)?.split_first_chunk_mut::<{ ipv4::HEADER }>()?;
    ipv4::write_header(ip, answer.source(), answer.destination(), PROTOCOL_TCP, RESET_LENGTH as u16, TTL);
    write_reset(reset.first_chunk_mut()?, parsed, segment)?;
    let sum = checksum(reset, pseudo_header(answer.addresses, PROTOCOL_TCP, tcp::HEADER as u16));
    reset[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
    Some(RESET_LENGTH)
}

/// Writes the header of the reset that answers a segment (RFC 9293 §3.10.7.1), its checksum zero. `None`, with nothing
/// written, if the segment is shorter than its header.
pub(crate) fn write_reset(reset: &mut [u8; tcp::HEADER], parsed: &Parsed, segment: &[u8]) -> Option<()> {
    let header = segment.first_chunk::<{ tcp::HEADER }>()?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let payload = segment.len().checked_sub(tcp::header_length(header[tcp::DATA_OFFSET]))?;
    let has = |flag: u8| parsed.tcp_flags & flag != 0;
    let (sequence, acknowledgement, flags) = if has(tcp::ACK) {
        (word(tcp::ACKNOWLEDGEMENT), 0, tcp::RST)
    } else {
        let length = payload as u32 + u32::from(has(tcp::SYN)) + u32::from(has(tcp::FIN));
        (0, word(tcp::SEQUENCE).wrapping_add(length), tcp::RST | tcp::ACK)
    };
    reset.fill(0);
    reset[..4].copy_from_slice(&parsed.key.reversed().ports().to_le_bytes());
    reset[tcp::SEQUENCE..tcp::SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
    reset[tcp::ACKNOWLEDGEMENT..tcp::ACKNOWLEDGEMENT + 4].copy_from_slice(&acknowledgement.to_be_bytes());
    reset[tcp::DATA_OFFSET] = (tcp::HEADER as u8 / 4) << 4;
    reset[tcp::FLAGS] = flags;
    Some(())
}

/// Writes the reset that goes on in the place of a TCP segment, as an IPv4 packet of [`RESET_LENGTH`] bytes with the source,
/// destination and ports of `translated`: at the segment's own sequence number, which its receiver waits for (RFC 5961
/// section 3.2).
///
/// `None`, with nothing written, in the place of a reset, where the packet on its way is not IPv4, or if `out` is too short.
pub fn tcp_reset_onward(out: &mut [u8], parsed: &Parsed, translated: FlowKey, bytes: &[u8]) -> Option<usize> {
    if parsed.kind != PacketKind::Tcp || parsed.tcp_flags & tcp::RST != 0 || translated.is_wide() {
        return None;
    }
    let header = bytes.get(usize::from(parsed.l4)..parsed.end as usize)?.first_chunk::<{ tcp::HEADER }>()?;
    let (ip, reset) = out.get_mut(..RESET_LENGTH)?.split_first_chunk_mut::<{ ipv4::HEADER }>()?;
    ipv4::write_header(ip, translated.source(), translated.destination(), PROTOCOL_TCP, RESET_LENGTH as u16, TTL);
    reset.fill(0);
    reset[..4].copy_from_slice(&translated.ports().to_le_bytes());
    let acknowledges = parsed.tcp_flags & tcp::ACK;
    let numbers = if acknowledges == 0 { 4 } else { 8 };
    reset[tcp::SEQUENCE..tcp::SEQUENCE + numbers].copy_from_slice(&header[tcp::SEQUENCE..tcp::SEQUENCE + numbers]);
    reset[tcp::DATA_OFFSET] = (tcp::HEADER as u8 / 4) << 4;
    reset[tcp::FLAGS] = tcp::RST | acknowledges;
    let sum = checksum(reset, pseudo_header(translated.addresses, PROTOCOL_TCP, tcp::HEADER as u16));
    reset[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
    Some(RESET_LENGTH)
}

/// Turns an echo request into its reply, in place: addresses exchanged, type 0, time to live 64. The Ethernet header is left
/// to whoever sends it. False, with nothing changed, if the packet is no echo request.
///
/// A complete ICMP checksum is updated, so that a wrong one stays wrong and its sender notices; a partial one is a sum that
/// the device has still to make over the new type.
pub fn echo_reply(frame: &mut Frame<'_>, parsed: &Parsed) -> bool {
    let l4 = usize::from(parsed.l4);
    let partial = frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4;
    let is_request = frame
        .bytes()
        .get(l4..)
        .and_then(<[u8]>::first_chunk::<{ icmp::HEADER }>)
        .is_some_and(|message| parsed.kind == PacketKind::Icmp && message[..2] == [icmp::ECHO_REQUEST, 0]);
    if !is_request {
        return false;
    }
    return_to_source(frame, parsed);
    let message = &mut frame.bytes_mut()[l4..];
    message[0] = icmp::ECHO_REPLY;
    if !partial {
        let delta = Delta::between(u64::from(icmp::ECHO_REQUEST), u64::from(icmp::ECHO_REPLY));
        let sum = delta.apply(u16::from_le_bytes([message[icmp::CHECKSUM], message[icmp::CHECKSUM + 1]]));
        message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
    }
    true
}

/// Exchanges the addresses of an IPv4 packet and makes its time to live 64: one that goes back to where it came from.
pub fn return_to_source(frame: &mut Frame<'_>, parsed: &Parsed) {
    let l3 = usize::from(parsed.l3);
    let ip = frame.bytes_mut().get_mut(l3..).and_then(<[u8]>::first_chunk_mut::<{ ipv4::HEADER }>);
    let Some(ip) = ip else { return };
    ip[ipv4::ADDRESSES..].copy_from_slice(&parsed.key.reversed().addresses.to_le_bytes());
    let delta = Delta::between(u64::from(ip[ipv4::TTL]), u64::from(TTL));
    ip[ipv4::TTL] = TTL;
    let sum = delta.apply(u16::from_le_bytes([ip[ipv4::CHECKSUM], ip[ipv4::CHECKSUM + 1]]));
    ip[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
}

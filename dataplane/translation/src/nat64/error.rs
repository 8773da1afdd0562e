//! ICMP errors (RFC 7915 §4.2, §4.3, §5.2, §5.3): types, codes, pointers and MTUs have counterparts, or the error ends here;
//! the quoted packet becomes the one that its sender sent, in its sender's version of IP.

use postern_wire::checksum::{Delta, checksum};
use postern_wire::ipv6::{self, AddressPair};
use postern_wire::parse::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP};
use postern_wire::{Parsed, icmp, icmpv6, ipv4};

use crate::icmp::Quote;
use crate::icmpv6::Quote6;

/// Longest error that is made, IP header included, in bytes: what every IPv6 link carries (RFC 4443 §2.4 (c)).
pub const LONGEST_TRANSLATED_ERROR: usize = ipv6::LEAST_MTU as usize;
/// Longest ICMP error of IPv4 (RFC 1812 §4.3.2.3).
const LONGEST_ICMP: usize = 576;
/// A quote in front of extensions has at least so many bytes (RFC 4884 §3).
const LEAST_QUOTE: usize = 128;
/// Plateaus of MTUs for routers that do not say which (RFC 1191 §7.1).
const PLATEAUS: [u16; 10] = [65_535, 32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296];
/// How much longer an IPv6 header is.
const GROWTH: u32 = 20;

/// MTUs of the two sides of a flow, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mtus {
    /// Of the next hop toward the IPv4 side.
    pub ipv4: u16,
    /// Of the next hop toward the IPv6 side.
    pub ipv6: u16,
}

/// What the quoted packet becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TranslatedQuote<A> {
    /// Source and destination of the packet that the sender sent.
    pub addresses: A,
    /// Its ports: the first four bytes of the transport header, little-endian.
    pub ports: u32,
    /// Change of the sum over addresses and ports from the quoted packet to that one.
    pub full_delta: Delta,
}

/// Writes the ICMPv6 error that an ICMP error becomes into `out`, as an IPv6 packet between the addresses `outer`, and
/// returns its length. `None` for an error that has no counterpart.
pub fn error_to_ipv6(
    out: &mut [u8; LONGEST_TRANSLATED_ERROR],
    bytes: &[u8],
    parsed: &Parsed,
    quote: &Quote,
    outer: &AddressPair,
    inner: &TranslatedQuote<AddressPair>,
    mtus: Mtus,
) -> Option<usize> {
    let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), parsed.end as usize);
    let message = bytes.get(l4..end)?;
    let rest: [u8; 4] = *message.get(4..icmp::HEADER)?.first_chunk()?;
    let (inner_l3, inner_l4) = (usize::from(quote.l3), usize::from(quote.l4));
    let ip = bytes.get(inner_l3..)?.first_chunk::<{ ipv4::HEADER }>()?;
    let total = u16::from_be_bytes([ip[ipv4::TOTAL_LENGTH], ip[ipv4::TOTAL_LENGTH + 1]]);
    let mtu = u16::from_be_bytes([rest[2], rest[3]]);
    let (kind, code, word) = to_icmpv6(quote.kind, quote.code, rest[0], mtu, total, mtus)?;

    // RFC 4884: with a length attribute, extensions follow the quote. Source quench, which has none, is not translated.
    let room = message.len() - icmp::HEADER;
    let attribute = usize::from(message[icmp::QUOTE_LENGTH]) * 4;
    let quoted = if attribute == 0 { room } else { attribute.min(room) };
    let extensions = &message[icmp::HEADER + quoted..];
    let transport_end = inner_l3 + quoted.min(usize::from(total));

    let mut header = [0; ipv6::HEADER];
    let payload = usize::from(total).saturating_sub(inner_l4 - inner_l3) as u16;
    ipv6::write_header(&mut header, &inner.addresses, ip[ipv4::PROTOCOL], payload, ip[ipv4::TTL]);
    set_class(&mut header, ip[ipv4::TYPE_OF_SERVICE]);
    let transport = Transport {
        bytes: bytes.get(inner_l4..transport_end.max(inner_l4))?,
        ports: inner.ports,
        checksum: quote.checksum.map(|at| usize::from(at) - inner_l4),
        delta: inner.full_delta,
        udp: quote.key.protocol() == PROTOCOL_UDP,
    };
    let (front, body) = out.split_first_chunk_mut::<{ ipv6::HEADER }>()?;
    let (length, words) = write_message(body, &header, &transport, extensions, 8);
    let message = &mut body[..length];
    message[..2].copy_from_slice(&[kind, code]);
    message[4..icmpv6::HEADER].copy_from_slice(&word.to_be_bytes());
    if words > 0 && matches!(kind, icmpv6::DESTINATION_UNREACHABLE | icmpv6::TIME_EXCEEDED) {
        message[icmpv6::QUOTE_LENGTH] = words;
    }
    icmpv6::complete_checksum(message, outer);
    ipv6::write_header(front, outer, PROTOCOL_ICMPV6, length as u16, parsed.ttl.wrapping_sub(1));
    set_class(front, bytes[l3 + ipv4::TYPE_OF_SERVICE]);
    Some(ipv6::HEADER + length)
}

/// Writes the ICMP error that an ICMPv6 error becomes into `out`, as an IPv4 packet between the addresses `outer` (the
/// eight bytes at offset 12 of the header, little-endian), and returns its length. `None` for an error that has no
/// counterpart.
pub fn error_to_ipv4(
    out: &mut [u8; LONGEST_TRANSLATED_ERROR],
    bytes: &[u8],
    parsed: &Parsed,
    quote: &Quote6,
    outer: u64,
    inner: &TranslatedQuote<u64>,
    mtus: Mtus,
) -> Option<usize> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let word = u32::from_be_bytes(*bytes.get(l4 + 4..)?.first_chunk()?);
    let (kind, code, rest) = to_icmp(quote.kind, quote.code, word, mtus)?;
    let (inner_l3, inner_l4) = (usize::from(quote.l3), usize::from(quote.l4));
    let ip = bytes.get(inner_l3..)?.first_chunk::<{ ipv6::HEADER }>()?;
    let extensions = quote.extensions.map_or(&[][..], |at| &bytes[at as usize..parsed.end as usize]);

    let payload = usize::from(u16::from_be_bytes([ip[ipv6::PAYLOAD_LENGTH], ip[ipv6::PAYLOAD_LENGTH + 1]]));
    let upper = payload.saturating_sub(inner_l4 - inner_l3 - ipv6::HEADER);
    let mut header = [0; ipv4::HEADER];
    write_ipv4(&mut header, inner.addresses, quote.key.protocol(), ipv4::HEADER + upper, ip[ipv6::HOP_LIMIT]);
    header[ipv4::TYPE_OF_SERVICE] = ipv6::traffic_class(ip[0], ip[1]);
    ipv4::complete_checksum(&mut header);
    let transport = Transport {
        bytes: bytes.get(inner_l4..quote.end as usize)?,
        ports: inner.ports,
        checksum: quote.checksum.map(|at| usize::from(at) - inner_l4),
        delta: inner.full_delta,
        udp: quote.key.protocol() == PROTOCOL_UDP,
    };
    let (front, body) = out[..LONGEST_ICMP].split_first_chunk_mut::<{ ipv4::HEADER }>()?;
    let (length, words) = write_message(body, &header, &transport, extensions, 4);
    let message = &mut body[..length];
    message[..2].copy_from_slice(&[kind, code]);
    message[4..icmp::HEADER].copy_from_slice(&rest);
    if words > 0 {
        message[icmp::QUOTE_LENGTH] = words;
    }
    let sum = checksum(message, 0);
    message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
    write_ipv4(front, outer, PROTOCOL_ICMP, ipv4::HEADER + length, parsed.ttl.wrapping_sub(1));
    front[ipv4::TYPE_OF_SERVICE] = ipv6::traffic_class(bytes[l3], bytes[l3 + 1]);
    // An error is small enough to be fragmented rather than lost.
    front[ipv4::FRAGMENT] = 0;
    ipv4::complete_checksum(front);
    Some(ipv4::HEADER + length)
}

/// What is quoted of a transport segment, and how it changes.
struct Transport<'a> {
    bytes: &'a [u8],
    ports: u32,
    /// Offset of its checksum, if that is quoted.
    checksum: Option<usize>,
    delta: Delta,
    udp: bool,
}

/// Writes a message with an empty header: the quote behind it, and extensions in a place that the quote is padded to, in
/// words of `word` bytes. Returns the length, and the words of the quote if extensions follow.
fn write_message(
    out: &mut [u8],
    header: &[u8],
    transport: &Transport<'_>,
    extensions: &[u8],
    word: usize,
) -> (usize, u8) {
    let start = icmp::HEADER;
    out[..start].fill(0);
    let wanted = header.len() + transport.bytes.len();
    let room = out.len() - start;
    // Extensions that leave no room for the least quote are left out.
    let extensions = if LEAST_QUOTE + extensions.len() <= room { extensions } else { &[] };
    let most = (room - extensions.len()) / word * word;
    let quoted = if extensions.is_empty() {
        wanted.min(room)
    } else {
        wanted.max(LEAST_QUOTE).next_multiple_of(word).min(most).min(255 * word)
    };
    let quote = &mut out[start..start + quoted];
    quote.fill(0);
    quote[..header.len()].copy_from_slice(header);
    let copied = transport.bytes.len().min(quoted - header.len());
    let to = &mut quote[header.len()..][..copied];
    to.copy_from_slice(&transport.bytes[..copied]);
    if let Some(ports) = to.first_chunk_mut::<4>() {
        *ports = transport.ports.to_le_bytes();
    }
    if let Some(field) = transport.checksum.and_then(|at| to.get_mut(at..)).and_then(<[u8]>::first_chunk_mut::<2>) {
        let old = u16::from_le_bytes(*field);
        let new = match old {
            0 if transport.udp => 0,
            old if transport.udp => transport.delta.apply_to_udp(old),
            old => transport.delta.apply(old),
        };
        *field = new.to_le_bytes();
    }
    out[start + quoted..start + quoted + extensions.len()].copy_from_slice(extensions);
    let words = if extensions.is_empty() { 0 } else { (quoted / word) as u8 };
    (start + quoted + extensions.len(), words)
}

fn set_class(header: &mut [u8; ipv6::HEADER], class: u8) {
    header[0] |= class >> 4;
    header[1] |= class << 4;
}

/// A header with DF set; the checksum is left to the caller.
fn write_ipv4(header: &mut [u8; ipv4::HEADER], addresses: u64, protocol: u8, length: usize, ttl: u8) {
    header.fill(0);
    header[0] = 0x45;
    header[ipv4::TOTAL_LENGTH..ipv4::TOTAL_LENGTH + 2].copy_from_slice(&(length as u16).to_be_bytes());
    header[ipv4::FRAGMENT] = 0x40;
    header[ipv4::TTL] = ttl;
    header[ipv4::PROTOCOL] = protocol;
    header[ipv4::ADDRESSES..].copy_from_slice(&addresses.to_le_bytes());
}

/// Type, code and second word of the ICMPv6 error (RFC 7915 §4.2).
fn to_icmpv6(kind: u8, code: u8, pointer: u8, mtu: u16, total: u16, mtus: Mtus) -> Option<(u8, u8, u32)> {
    use icmpv6::{
        ADMINISTRATIVELY_PROHIBITED, DESTINATION_UNREACHABLE, ERRONEOUS_FIELD, NO_ROUTE, PACKET_TOO_BIG,
        PARAMETER_PROBLEM, PORT_UNREACHABLE, TIME_EXCEEDED, UNRECOGNISED_NEXT_HEADER,
    };
    Some(match (kind, code) {
        (icmp::DESTINATION_UNREACHABLE, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => (DESTINATION_UNREACHABLE, NO_ROUTE, 0),
        (icmp::DESTINATION_UNREACHABLE, 2) => (PARAMETER_PROBLEM, UNRECOGNISED_NEXT_HEADER, ipv6::NEXT_HEADER as u32),
        (icmp::DESTINATION_UNREACHABLE, 3) => (DESTINATION_UNREACHABLE, PORT_UNREACHABLE, 0),
        (icmp::DESTINATION_UNREACHABLE, icmp::FRAGMENTATION_NEEDED) => {
            let mtu = if mtu == 0 { PLATEAUS.into_iter().find(|plateau| *plateau < total).unwrap_or(68) } else { mtu };
            let least = (u32::from(mtu) + GROWTH).min(u32::from(mtus.ipv6)).min(u32::from(mtus.ipv4) + GROWTH);
            (PACKET_TOO_BIG, 0, least.max(u32::from(ipv6::LEAST_MTU)))
        }
        (icmp::DESTINATION_UNREACHABLE, 9 | 10 | 13 | 15) => (DESTINATION_UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0),
        (icmp::TIME_EXCEEDED, code) => (TIME_EXCEEDED, code, 0),
        (icmp::PARAMETER_PROBLEM, 0 | 2) => (PARAMETER_PROBLEM, ERRONEOUS_FIELD, to_ipv6_pointer(pointer)?),
        _ => return None,
    })
}

/// Type, code and second word of the ICMP error (RFC 7915 §5.2).
fn to_icmp(kind: u8, code: u8, word: u32, mtus: Mtus) -> Option<(u8, u8, [u8; 4])> {
    use icmp::{DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, HOST_UNREACHABLE, PARAMETER_PROBLEM, TIME_EXCEEDED};
    Some(match (kind, code) {
        (icmpv6::DESTINATION_UNREACHABLE, 0 | 2 | 3) => (DESTINATION_UNREACHABLE, HOST_UNREACHABLE, [0; 4]),
        (icmpv6::DESTINATION_UNREACHABLE, 1) => (DESTINATION_UNREACHABLE, 10, [0; 4]),
        (icmpv6::DESTINATION_UNREACHABLE, 4) => (DESTINATION_UNREACHABLE, 3, [0; 4]),
        (icmpv6::PACKET_TOO_BIG, _) => {
            let least =
                word.saturating_sub(GROWTH).min(u32::from(mtus.ipv4)).min(u32::from(mtus.ipv6).saturating_sub(GROWTH));
            let [_, _, high, low] = least.to_be_bytes();
            (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, [0, 0, high, low])
        }
        (icmpv6::TIME_EXCEEDED, code) => (TIME_EXCEEDED, code, [0; 4]),
        (icmpv6::PARAMETER_PROBLEM, 0) => (PARAMETER_PROBLEM, 0, [to_ipv4_pointer(word)?, 0, 0, 0]),
        (icmpv6::PARAMETER_PROBLEM, 1) => (DESTINATION_UNREACHABLE, 2, [0; 4]),
        _ => return None,
    })
}

/// The field of an IPv6 header that a field of an IPv4 header becomes (RFC 7915 figure 3).
const fn to_ipv6_pointer(pointer: u8) -> Option<u32> {
    Some(match pointer {
        0 | 1 => pointer as u32,
        2 | 3 => 4,
        8 => 7,
        9 => 6,
        12..=15 => 8,
        16..=19 => 24,
        _ => return None,
    })
}

/// The field of an IPv4 header that a field of an IPv6 header becomes (RFC 7915 figure 6).
const fn to_ipv4_pointer(pointer: u32) -> Option<u8> {
    Some(match pointer {
        0 | 1 => pointer as u8,
        4 | 5 => 2,
        6 => 9,
        7 => 8,
        8..=23 => 12,
        24..=39 => 16,
        _ => return None,
    })
}

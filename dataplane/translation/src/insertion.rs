//! What it takes to put bytes in front of a TCP stream without terminating it: the target-side initial sequence number moves
//! back by their length, so that every later number fits unchanged; until the target has acknowledged them, its numbers below
//! the client's own start are lifted to it.
//!
//! All checksums are updated, so that a wrong one stays wrong; a partial one holds the pseudo-header's sum and takes the change of the
//! length only.

use postern_wire::checksum::{Delta, checksum, pseudo_header, pseudo_header_v6, sum};
use postern_wire::ipv6::AddressPair;
use postern_wire::parse::PROTOCOL_TCP;
use postern_wire::{FlowKey, Frame, Offload, Parsed, ipv4, ipv6, tcp};

/// Kinds of options: no operation, SACK blocks (RFC 2018 §3), timestamps (RFC 7323 §3.2).
const OPTION_NOP: u8 = 1;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMPS: u8 = 8;
/// Bytes of one SACK block: its first sequence number, and the one behind its last.
const SACK_BLOCK: usize = 8;
/// Bytes of the timestamps' data.
const TIMESTAMPS: usize = 8;
/// The header of a segment with timestamps, which two no-operations align.
const HEADER_WITH_TIMESTAMPS: usize = tcp::HEADER + 12;
/// Time to live of segments of our own.
const TTL: u8 = 64;

/// The TCP header of a segment.
fn header<'f>(frame: &'f Frame<'_>, parsed: &Parsed) -> &'f [u8] {
    let segment = frame.bytes().get(usize::from(parsed.l4)..parsed.end as usize).unwrap_or(&[]);
    let length = segment.get(tcp::DATA_OFFSET).map_or(0, |byte| tcp::header_length(*byte));
    segment.get(..length).unwrap_or(&[])
}

fn word(header: &[u8], at: usize) -> u32 {
    let bytes = header.get(at..at + 4).and_then(<[u8]>::first_chunk::<4>);
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Its sequence number.
#[must_use]
pub fn sequence(frame: &Frame<'_>, parsed: &Parsed) -> u32 {
    word(header(frame, parsed), tcp::SEQUENCE)
}

/// Its acknowledgement number.
#[must_use]
pub fn acknowledgement(frame: &Frame<'_>, parsed: &Parsed) -> u32 {
    word(header(frame, parsed), tcp::ACKNOWLEDGEMENT)
}

/// Its window, as it stands in the header.
#[must_use]
pub fn window(frame: &Frame<'_>, parsed: &Parsed) -> u16 {
    (word(header(frame, parsed), tcp::DATA_OFFSET) & 0xffff) as u16
}

/// Its timestamps (RFC 7323 §3.2): its own, and the echoed one.
#[must_use]
pub fn timestamps(frame: &Frame<'_>, parsed: &Parsed) -> Option<(u32, u32)> {
    let header = header(frame, parsed);
    let option = tcp::options(header).find(|option| option.kind == OPTION_TIMESTAMPS && option.length == TIMESTAMPS)?;
    Some((word(header, option.data), word(header, option.data + 4)))
}

/// Length of its data, in bytes.
#[must_use]
pub fn payload(frame: &Frame<'_>, parsed: &Parsed) -> usize {
    (parsed.end as usize).saturating_sub(usize::from(parsed.l4) + header(frame, parsed).len())
}

/// Writes four bytes at an even offset of the TCP header.
fn write_word(frame: &mut Frame<'_>, parsed: &Parsed, at: usize, value: u32) {
    let partial = is_partial(frame, parsed);
    let l4 = usize::from(parsed.l4);
    let Some(header) = frame.bytes_mut().get_mut(l4..).and_then(<[u8]>::first_chunk_mut::<{ tcp::HEADER }>) else {
        return;
    };
    let old = sum(&header[at..at + 4]);
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
    if !partial {
        update(header, Delta::between(old, sum(&value.to_be_bytes())));
    }
}

fn is_partial(frame: &Frame<'_>, parsed: &Parsed) -> bool {
    frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4
}

/// Applies a change to a complete checksum.
fn update(header: &mut [u8], delta: Delta) {
    let field = u16::from_le_bytes([header[tcp::CHECKSUM], header[tcp::CHECKSUM + 1]]);
    header[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&delta.apply(field).to_le_bytes());
}

/// Replaces its sequence number.
pub fn set_sequence(frame: &mut Frame<'_>, parsed: &Parsed, value: u32) {
    write_word(frame, parsed, tcp::SEQUENCE, value);
}

/// Lifts an acknowledgement number that lies less than `room` below `start` to `start`; true if it did.
pub fn lift_acknowledgement(frame: &mut Frame<'_>, parsed: &Parsed, start: u32, room: u32) -> bool {
    let below = start.wrapping_sub(acknowledgement(frame, parsed));
    let lifts = (1..=room).contains(&below);
    if lifts {
        write_word(frame, parsed, tcp::ACKNOWLEDGEMENT, start);
    }
    lifts
}

/// Lifts SACK blocks that begin less than `room` below `start`: one that lies wholly below it (the target got the inserted
/// bytes twice, RFC 2883) goes, and no-operations take its place.
pub fn lift_sack_blocks(frame: &mut Frame<'_>, parsed: &Parsed, start: u32, room: u32) {
    let old = header(frame, parsed);
    let Some(option) = tcp::options(old).find(|option| option.kind == OPTION_SACK) else { return };
    let is_below = |edge: u32| (1..=room).contains(&start.wrapping_sub(edge));
    let blocks = option.data..option.data + option.length - option.length % SACK_BLOCK;
    if !blocks.clone().step_by(SACK_BLOCK).any(|at| is_below(word(old, at))) {
        return;
    }
    let mut bytes = [0; 60];
    let length = old.len();
    bytes[..length].copy_from_slice(old);
    let new = &mut bytes[..length];
    let mut kept = option.data;
    for at in blocks.step_by(SACK_BLOCK) {
        let (first, behind) = (word(old, at), word(old, at + 4));
        if is_below(first) && (is_below(behind) || behind == start) {
            continue;
        }
        let first = if is_below(first) { start } else { first };
        new[kept..kept + 4].copy_from_slice(&first.to_be_bytes());
        new[kept + 4..kept + 8].copy_from_slice(&behind.to_be_bytes());
        kept += SACK_BLOCK;
    }
    new[kept..option.data + option.length].fill(OPTION_NOP);
    if kept == option.data {
        new[option.data - 2..option.data].fill(OPTION_NOP);
    } else {
        new[option.data - 1] = (kept - option.data + 2) as u8;
    }
    let delta = Delta::between(sum(old), sum(new));
    let partial = is_partial(frame, parsed);
    let l4 = usize::from(parsed.l4);
    let Some(header) = frame.bytes_mut().get_mut(l4..l4 + length) else { return };
    header.copy_from_slice(new);
    if !partial {
        update(header, delta);
    }
}

/// Tells the network header of a datagram's new length, and gives the change that the TCP checksum takes by it.
fn set_length(frame: &mut Frame<'_>, parsed: &Parsed, old_end: u32) -> Delta {
    let l3 = usize::from(parsed.l3);
    let segment = |end: u32| (end - u32::from(parsed.l4)) as u16;
    let (old, new) = (segment(old_end), segment(parsed.end));
    let bytes = frame.bytes_mut();
    if bytes[l3] >> 4 == 6 {
        // RFC 8200 §3: what is behind the fixed header.
        let payload = (parsed.end - u32::from(parsed.l3) - 40) as u16;
        bytes[l3 + 4..l3 + 6].copy_from_slice(&payload.to_be_bytes());
    } else {
        let total = (parsed.end - u32::from(parsed.l3)) as u16;
        let ip = &mut bytes[l3..l3 + ipv4::HEADER];
        let before = sum(&ip[ipv4::TOTAL_LENGTH..ipv4::TOTAL_LENGTH + 2]);
        ip[ipv4::TOTAL_LENGTH..ipv4::TOTAL_LENGTH + 2].copy_from_slice(&total.to_be_bytes());
        let delta = Delta::between(before, sum(&total.to_be_bytes()));
        let field = delta.apply(u16::from_le_bytes([ip[ipv4::CHECKSUM], ip[ipv4::CHECKSUM + 1]]));
        ip[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&field.to_le_bytes());
    }
    Delta::between(u64::from(old.swap_bytes()), u64::from(new.swap_bytes()))
}

/// Takes the data out of a segment, whose flags and numbers stay. It is no super-frame any more.
pub fn strip_payload(frame: &mut Frame<'_>, parsed: &mut Parsed) {
    let data = payload(frame, parsed);
    if data == 0 {
        return;
    }
    let (old_end, l4) = (parsed.end, usize::from(parsed.l4));
    let at = old_end as usize - data;
    let removed = Delta::between(sum(&frame.bytes()[at..old_end as usize]), 0);
    parsed.end = at as u32;
    let length = set_length(frame, parsed, old_end);
    change_checksum(frame, parsed, l4, length, removed);
    frame.truncate(at);
    frame.offload = Offload { segmentation_type: 0, segment_size: 0, header_length: 0, ..frame.offload };
}

fn change_checksum(frame: &mut Frame<'_>, parsed: &Parsed, l4: usize, length: Delta, data: Delta) {
    let partial = is_partial(frame, parsed);
    let Some(header) = frame.bytes_mut().get_mut(l4..l4 + tcp::HEADER) else { return };
    if partial {
        let field = u16::from_le_bytes([header[tcp::CHECKSUM], header[tcp::CHECKSUM + 1]]);
        header[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&length.apply_to_sum(field).to_le_bytes());
    } else {
        update(header, length.plus(data));
    }
}

/// Gives data to a segment that has none, and that data's sequence number, with PSH; false, with nothing changed, if the
/// frame has no room in front for it beside `reserve` bytes, or has data.
#[must_use]
pub fn insert(frame: &mut Frame<'_>, parsed: &mut Parsed, data: &[u8], sequence: u32, reserve: usize) -> bool {
    if payload(frame, parsed) != 0 || frame.headroom() < data.len() + reserve {
        return false;
    }
    let end = parsed.end as usize;
    frame.truncate(end);
    let offload = frame.offload;
    if !frame.resize_front(end, end + data.len()) {
        return false;
    }
    // The headers stay where they are in the frame, which begins earlier now.
    frame.offload = offload;
    let bytes = frame.bytes_mut();
    bytes.copy_within(data.len()..data.len() + end, 0);
    bytes[end..end + data.len()].copy_from_slice(data);
    let old_end = parsed.end;
    parsed.end += data.len() as u32;
    let length = set_length(frame, parsed, old_end);
    change_checksum(frame, parsed, usize::from(parsed.l4), length, Delta::between(0, sum(data)));
    set_sequence(frame, parsed, sequence);
    let flags = word(header(frame, parsed), tcp::DATA_OFFSET) | u32::from(tcp::PSH) << 16;
    write_word(frame, parsed, tcp::DATA_OFFSET, flags);
    true
}

/// What a segment of our own says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'d> {
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Next byte that is expected from the other side; 0 without ACK.
    pub acknowledgement: u32,
    /// Flags.
    pub flags: u8,
    /// Window, as it stands in the header.
    pub window: u16,
    /// Own and echoed timestamp, on connections that have them.
    pub timestamps: Option<(u32, u32)>,
    /// Data.
    pub data: &'d [u8],
}

/// Writes a segment as an IPv4 packet with this key into `out` and returns its length; 0, with nothing written, if it does
/// not fit.
#[must_use]
pub fn write_segment(out: &mut [u8], key: FlowKey, segment: &Segment<'_>) -> usize {
    let header = if segment.timestamps.is_some() { HEADER_WITH_TIMESTAMPS } else { tcp::HEADER };
    let total = ipv4::HEADER + header + segment.data.len();
    let Some((ip, rest)) = out.get_mut(..total).and_then(|out| out.split_first_chunk_mut::<{ ipv4::HEADER }>()) else {
        return 0;
    };
    ipv4::write_header(ip, key.source(), key.destination(), PROTOCOL_TCP, total as u16, TTL);
    let pseudo = pseudo_header(key.addresses, PROTOCOL_TCP, (header + segment.data.len()) as u16);
    write_tcp(rest, header, key.ports(), segment, pseudo);
    total
}

/// The same as an IPv6 packet with these addresses, and the ports of this key.
#[must_use]
pub fn write_segment_v6(out: &mut [u8], addresses: &AddressPair, key: FlowKey, segment: &Segment<'_>) -> usize {
    let header = if segment.timestamps.is_some() { HEADER_WITH_TIMESTAMPS } else { tcp::HEADER };
    let payload = header + segment.data.len();
    let total = ipv6::HEADER + payload;
    let Some((ip, rest)) = out.get_mut(..total).and_then(|out| out.split_first_chunk_mut::<{ ipv6::HEADER }>()) else {
        return 0;
    };
    ipv6::write_header(ip, addresses, PROTOCOL_TCP, payload as u16, TTL);
    let pseudo = pseudo_header_v6(addresses, PROTOCOL_TCP, payload as u16);
    write_tcp(rest, header, key.ports(), segment, pseudo);
    total
}

/// Writes a segment whose header is of this length; `pseudo` is the sum of the pseudo-header.
fn write_tcp(out: &mut [u8], header: usize, ports: u32, segment: &Segment<'_>, pseudo: u64) {
    let (bytes, data) = out.split_at_mut(header);
    bytes.fill(0);
    bytes[..4].copy_from_slice(&ports.to_le_bytes());
    bytes[tcp::SEQUENCE..tcp::SEQUENCE + 4].copy_from_slice(&segment.sequence.to_be_bytes());
    bytes[tcp::ACKNOWLEDGEMENT..tcp::ACKNOWLEDGEMENT + 4].copy_from_slice(&segment.acknowledgement.to_be_bytes());
    bytes[tcp::DATA_OFFSET] = (header as u8 / 4) << 4;
    bytes[tcp::FLAGS] = segment.flags;
    bytes[14..16].copy_from_slice(&segment.window.to_be_bytes());
    if let Some((own, echoed)) = segment.timestamps {
        bytes[20..24].copy_from_slice(&[OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMPS, TIMESTAMPS as u8 + 2]);
        bytes[24..28].copy_from_slice(&own.to_be_bytes());
        bytes[28..32].copy_from_slice(&echoed.to_be_bytes());
    }
    data.copy_from_slice(segment.data);
    let field = checksum(out, pseudo);
    out[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&field.to_le_bytes());
}

#[cfg(test)]
#[path = "insertion/tests.rs"]
mod tests;

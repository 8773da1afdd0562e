//! Cutting a packet into fragments (RFC 791 §3.2, RFC 8200 §4.5), also one that is a fragment already.

use postern_wire::checksum::{Delta, checksum};
use postern_wire::parse::PROTOCOL_UDP;
use postern_wire::{Frame, Parsed, ipv4, ipv6};

/// Fragments but the last carry multiples of so many bytes.
const UNIT: usize = 8;
/// Set in the field of flags and offset where others follow.
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Set in an option's kind if every fragment carries it.
const COPIED: u8 = 0x80;
/// Fields of the IPv6 header, and the number of the fragment header.
const PAYLOAD_LENGTH: usize = 4;
const NEXT_HEADER: usize = 6;
const FRAGMENT: u8 = 44;
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;

/// A packet that is cut into fragments.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    header: &'a [u8],
    payload: &'a [u8],
    /// Bytes that every fragment but the last carries.
    most: usize,
    /// Flags and offset of the packet itself, as IPv4 has them.
    field: u16,
    /// Of IPv6: what the fragment header says beside that.
    wide: Option<Wide>,
}

/// What is in a fragment header of IPv6.
#[derive(Clone, Copy, Debug)]
struct Wide {
    next_header: u8,
    identification: [u8; 4],
}

impl<'a> Pieces<'a> {
    /// Fragments of at most `mtu` bytes of a packet that begins at its IPv4 header and ends where that says. All its
    /// checksums are complete. `None` if the header is impossible or leaves no room for eight bytes.
    #[must_use]
    pub fn new(packet: &'a [u8], mtu: u16) -> Option<Self> {
        let header_length = ipv4::header_length(*packet.first()?)?;
        let (header, payload) = packet.split_at_checked(header_length)?;
        let most = usize::from(mtu).checked_sub(header_length)? / UNIT * UNIT;
        let field = u16::from_be_bytes([header[ipv4::FRAGMENT], header[ipv4::FRAGMENT + 1]]);
        (most > 0).then_some(Self { header, payload, most, field, wide: None })
    }

    /// The same of an IPv6 packet without extension headers, but for a fragment header if it is a fragment; if it is none, its
    /// fragments have `identification`.
    #[must_use]
    pub fn new_ipv6(packet: &'a [u8], mtu: u16, identification: u32) -> Option<Self> {
        let (header, rest) = packet.split_at_checked(ipv6::HEADER)?;
        let most = usize::from(mtu).checked_sub(ipv6::HEADER + ipv6::FRAGMENT_HEADER)? / UNIT * UNIT;
        let next_header = header[NEXT_HEADER];
        let (field, wide, payload) = if next_header == FRAGMENT {
            let ([next_header, _, high, low, identification @ ..], payload) =
                rest.split_first_chunk::<{ ipv6::FRAGMENT_HEADER }>()?;
            let field = u16::from_be_bytes([*high, *low]);
            let more = if field & 1 != 0 { MORE } else { 0 };
            (field >> 3 | more, Wide { next_header: *next_header, identification: *identification }, payload)
        } else {
            (0, Wide { next_header, identification: identification.to_be_bytes() }, rest)
        };
        (most > 0).then_some(Self { header, payload, most, field, wide: Some(wide) })
    }

    /// How many there are, at least 1.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload.len().div_ceil(self.most).max(1)
    }

    /// Whether there are none, which is never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes fragment `index` (0…) into `out` and returns its length; 0 if there is no such fragment, or no room for it.
    pub fn write(&self, index: usize, out: &mut [u8]) -> usize {
        let from = index.saturating_mul(self.most);
        let Some(rest) = self.payload.get(from..).filter(|_| index < self.len()) else { return 0 };
        let part = &rest[..rest.len().min(self.most)];
        let more = if part.len() < rest.len() { MORE } else { self.field & MORE };
        let offset = (self.field & OFFSET) + (from / UNIT) as u16;
        if let Some(wide) = self.wide {
            return self.write_ipv6(wide, part, offset << 3 | u16::from(more != 0), out);
        }
        let length = self.header.len() + part.len();
        let Some(out) = out.get_mut(..length) else { return 0 };
        let (header, payload) = out.split_at_mut(self.header.len());
        header.copy_from_slice(self.header);
        payload.copy_from_slice(part);
        if index > 0 {
            leave_out_options(header);
        }
        let field = self.field & !(MORE | OFFSET) | more | offset & OFFSET;
        header[ipv4::TOTAL_LENGTH..ipv4::TOTAL_LENGTH + 2].copy_from_slice(&(length as u16).to_be_bytes());
        header[ipv4::FRAGMENT..ipv4::FRAGMENT + 2].copy_from_slice(&field.to_be_bytes());
        ipv4::complete_checksum(header);
        length
    }

    fn write_ipv6(&self, wide: Wide, part: &[u8], field: u16, out: &mut [u8]) -> usize {
        let behind = ipv6::FRAGMENT_HEADER + part.len();
        let length = self.header.len() + behind;
        let Some(out) = out.get_mut(..length) else { return 0 };
        let (header, rest) = out.split_at_mut(self.header.len());
        header.copy_from_slice(self.header);
        header[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 2].copy_from_slice(&(behind as u16).to_be_bytes());
        header[NEXT_HEADER] = FRAGMENT;
        let (fragment, payload) = rest.split_at_mut(ipv6::FRAGMENT_HEADER);
        let [high, low] = field.to_be_bytes();
        fragment[..4].copy_from_slice(&[wide.next_header, 0, high, low]);
        fragment[4..].copy_from_slice(&wide.identification);
        payload.copy_from_slice(part);
        length
    }
}

/// Overwrites the options that only the first fragment carries; the others keep their places.
fn leave_out_options(header: &mut [u8]) {
    let mut at = ipv4::HEADER;
    while at < header.len() && header[at] != OPTION_END {
        let kind = header[at];
        let length = match header.get(at + 1) {
            _ if kind == OPTION_NOTHING => 1,
            Some(length) if *length >= 2 => usize::from(*length),
            _ => return,
        };
        let end = (at + length).min(header.len());
        if kind & COPIED == 0 {
            header[at..end].fill(OPTION_NOTHING);
        }
        at = end;
    }
}

/// Writes another identification into the IPv4 header that begins at `l3`; its checksum follows.
pub fn identify(bytes: &mut [u8], l3: usize, identification: u16) {
    let Some(ip) = bytes.get_mut(l3..).and_then(<[u8]>::first_chunk_mut::<{ ipv4::HEADER }>) else { return };
    let field = [ip[ipv4::IDENTIFICATION], ip[ipv4::IDENTIFICATION + 1]];
    let new = identification.to_be_bytes();
    let delta = Delta::between(u64::from(u16::from_le_bytes(field)), u64::from(u16::from_le_bytes(new)));
    ip[ipv4::IDENTIFICATION..ipv4::IDENTIFICATION + 2].copy_from_slice(&new);
    let sum = delta.apply(u16::from_le_bytes([ip[ipv4::CHECKSUM], ip[ipv4::CHECKSUM + 1]]));
    ip[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
}

/// Writes another identification into the fragment header of an IPv6 packet that begins at `l3`, if it has one.
pub fn identify6(bytes: &mut [u8], l3: usize, identification: u32) {
    let Some(packet) = bytes.get_mut(l3..) else { return };
    let Some(header) = ipv6::upper(packet).ok().and_then(|upper| upper.fragment) else { return };
    if let Some(field) = packet.get_mut(header.at + 4..header.at + 8) {
        field.copy_from_slice(&identification.to_be_bytes());
    }
}

/// Does what a device was to do: sums the packet from where the offload state says, so that it can be cut. The field holds
/// the sum of the pseudo-header so far.
pub fn complete_transport_checksum(frame: &mut Frame<'_>, parsed: &Parsed) {
    if !frame.offload.is_partial() {
        return;
    }
    let start = usize::from(frame.offload.checksum_start);
    let field = start + usize::from(frame.offload.checksum_offset);
    frame.offload.flags &= !postern_wire::Offload::NEEDS_CHECKSUM;
    let is_udp = parsed.key.protocol() == PROTOCOL_UDP;
    let bytes = frame.bytes_mut();
    let Some(covered) = bytes.get(start..parsed.end as usize) else { return };
    let sum = match checksum(covered, 0) {
        0 if is_udp => 0xffff,
        sum => sum,
    };
    if let Some(field) = bytes.get_mut(field..field + 2) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use postern_wire::{Offload, parse};
    use proptest::prelude::*;

    use super::*;

    /// A packet with options and this field of flags and offset.
    fn packet(options: &[u8], field: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45 + (options.len() / 4) as u8, 0];
        bytes.extend((20 + options.len() as u16 + payload.len() as u16).to_be_bytes());
        bytes.extend([0x12, 0x34]);
        bytes.extend(field.to_be_bytes());
        bytes.extend([64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(options);
        ipv4::complete_checksum(&mut bytes);
        bytes.extend(payload);
        bytes
    }

    proptest! {
        #[test]
        fn ipv6_fragments_hold_the_packet_in_order_within_the_mtu(
            payload in proptest::collection::vec(any::<u8>(), 1..5000),
            mtu in 1280u16..3000,
            offset in 0u16..1000,
            more: bool,
            is_fragment: bool,
            identification: u32,
        ) {
            let payload = if more { &payload[..payload.len() / 8 * 8] } else { &payload[..] };
            let more = more && is_fragment;
            let mut bytes = vec![0x65, 0x43, 0x21, 0];
            let header = if is_fragment { 8 } else { 0 };
            bytes.extend((header + payload.len() as u16).to_be_bytes());
            bytes.extend([if is_fragment { 44 } else { 17 }, 64]);
            bytes.extend([7; 32]);
            if is_fragment {
                bytes.extend([17, 0]);
                bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
                bytes.extend(identification.to_be_bytes());
            }
            bytes.extend(payload);
            let pieces = Pieces::new_ipv6(&bytes, mtu, identification).unwrap();
            let mut whole: Vec<u8> = Vec::new();
            for index in 0..pieces.len() {
                let mut out = [0; 6000];
                let length = pieces.write(index, &mut out);
                prop_assert!(length > 48 || payload.is_empty());
                prop_assert!(length <= usize::from(mtu));
                let parsed = etherparse::IpSlice::from_slice(&out[..length]).unwrap();
                let etherparse::IpSlice::Ipv6(parsed) = parsed else { panic!("not IPv6") };
                prop_assert_eq!(&out[..4], &bytes[..4], "traffic class and flow label stay");
                let Some(etherparse::Ipv6ExtensionSlice::Fragment(fragment)) = parsed.extensions().clone().into_iter().next() else {
                    panic!("no fragment header")
                };
                let first = if is_fragment { usize::from(offset) * 8 } else { 0 };
                prop_assert_eq!(usize::from(fragment.fragment_offset().value()) * 8, first + whole.len());
                prop_assert_eq!(fragment.more_fragments(), more || index + 1 < pieces.len());
                prop_assert_eq!(fragment.identification(), identification);
                prop_assert_eq!(fragment.next_header().0, 17);
                whole.extend_from_slice(&out[48..length]);
            }
            prop_assert_eq!(whole, payload);
        }

        #[test]
        fn the_fragments_hold_the_packet_in_order_within_the_mtu(
            payload in proptest::collection::vec(any::<u8>(), 0..5000),
            words in 0usize..=10,
            mtu in 68u16..3000,
            offset in 0u16..100,
            more: bool,
        ) {
            let payload = if more { &payload[..payload.len() / 8 * 8] } else { &payload[..] };
            let field = offset | if more { MORE } else { 0 };
            let bytes = packet(&vec![1; words * 4], field, payload);
            let pieces = Pieces::new(&bytes, mtu).unwrap();
            let mut whole: Vec<u8> = Vec::new();
            for index in 0..pieces.len() {
                let mut out = [0; 6000];
                let length = pieces.write(index, &mut out);
                prop_assert!(length <= usize::from(mtu).max(bytes.len().min(usize::from(mtu))));
                let slice = etherparse::Ipv4Slice::from_slice(&out[..length]).unwrap();
                let header = slice.header().to_header();
                prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                prop_assert_eq!((header.identification, header.protocol.0, header.time_to_live), (0x1234, 17, 64));
                prop_assert_eq!(usize::from(header.fragment_offset.value()) * 8, usize::from(offset) * 8 + whole.len());
                prop_assert_eq!(header.more_fragments, more || index + 1 < pieces.len());
                whole.extend(slice.payload().payload);
            }
            prop_assert_eq!(&whole[..], payload);
            prop_assert_eq!(pieces.write(pieces.len(), &mut [0; 6000]), 0);
        }

        #[test]
        fn a_completed_checksum_is_what_the_sender_would_have_written(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = Vec::new();
            etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 8).write(&mut bytes, &payload).unwrap();
            let wanted = bytes.clone();
            let length = bytes.len();
            let pseudo = postern_wire::checksum::sum(&bytes[26..34]) + (17 << 8) + u64::from((8 + payload.len() as u16).swap_bytes());
            bytes[40..42].copy_from_slice(&postern_wire::checksum::fold(pseudo).to_le_bytes());
            let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
            frame.offload = Offload { flags: 1, checksum_start: 34, checksum_offset: 6, ..Offload::NONE };
            let parsed = parse(&frame).unwrap();
            complete_transport_checksum(&mut frame, &parsed);
            prop_assert_eq!((frame.bytes(), frame.offload.is_partial()), (&wanted[..], false));
        }
    }

    #[test]
    fn later_fragments_carry_the_options_that_say_so_only() {
        // Record route (not copied), strict source route (copied), end.
        let options = [7, 7, 4, 1, 2, 3, 4, 137, 3, 9, 0, 0];
        let bytes = packet(&options, 0, &[5; 100]);
        let pieces = Pieces::new(&bytes, 72).unwrap();
        let mut out = [0; 100];
        assert_eq!(pieces.write(0, &mut out), 72);
        assert_eq!(out[20..32], options);
        assert_eq!(pieces.write(1, &mut out), 72);
        assert_eq!(out[20..32], [1, 1, 1, 1, 1, 1, 1, 137, 3, 9, 0, 0]);
    }

    #[test]
    fn an_mtu_without_room_for_eight_bytes_cuts_nothing() {
        let bytes = packet(&[], 0, &[5; 100]);
        assert!(Pieces::new(&bytes, 27).is_none());
        assert_eq!(Pieces::new(&bytes, 28).unwrap().len(), 13);
        assert!(Pieces::new(&[], 1500).is_none());
    }

    #[test]
    fn another_identification_leaves_the_header_checksum_right() {
        for new in [0, 1, 0x1234, 0xffff] {
            let mut bytes = packet(&[], 0, &[5; 4]);
            identify(&mut bytes, 0, new);
            let header = etherparse::Ipv4Slice::from_slice(&bytes).unwrap().header().to_header();
            assert_eq!((header.identification, header.header_checksum), (new, header.calc_header_checksum()));
        }
    }
}

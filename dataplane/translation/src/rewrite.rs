//! Applying a plan to a packet: addresses, ports, time to live and all checksums, by incremental update (RFC 1624).

use postern_wire::checksum::Delta;
use postern_wire::parse::PLAIN;
use postern_wire::{Frame, Offload, PacketKind, Parsed};

use crate::plan::RewritePlan;

/// Change of the header's sum when the time to live, the low byte of its word in memory order, goes down by one.
const TTL_DELTA: Delta = Delta(!1);

/// Offset of the checksum field in a UDP header.
const UDP_CHECKSUM: usize = 6;
/// Offset of the checksum field in a TCP header.
const TCP_CHECKSUM: usize = 16;

/// Rewrites a TCP or UDP packet by its plan and takes one from the time to live, which is at least 2. A first fragment is
/// rewritten like the whole datagram, whose checksum it carries; the others have addresses only.
///
/// A partial checksum (the device has still to add the segment's own sum) holds the plain pseudo-header sum: it takes the
/// change of the addresses only, as the kernel's `inet_proto_csum_replace` does. A UDP checksum of zero stays zero, and one that
/// comes out as zero is written as all ones (RFC 768).
#[inline]
pub fn rewrite(frame: &mut Frame<'_>, parsed: &Parsed, plan: &RewritePlan) {
    let l3 = usize::from(parsed.l3);
    let l4 = usize::from(parsed.l4);
    let partial = frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4;
    let bytes = frame.bytes_mut();
    // `parse` has checked that both headers lie within the frame.
    let Some(ip) = bytes.get_mut(l3..).and_then(<[u8]>::first_chunk_mut::<20>) else { return };
    let sum = u16::from_le_bytes([ip[10], ip[11]]);
    let sum = TTL_DELTA.apply(plan.address_delta.apply(sum));
    ip[8] = ip[8].wrapping_sub(1);
    ip[10..12].copy_from_slice(&sum.to_le_bytes());
    ip[12..20].copy_from_slice(&plan.addresses.to_le_bytes());
    // What is left is in a datagram's first fragment only.
    if parsed.kind == PacketKind::Fragment {
        return;
    }

    let Some(transport) = bytes.get_mut(l4..).and_then(<[u8]>::first_chunk_mut::<8>) else { return };
    transport[..4].copy_from_slice(&plan.ports.to_le_bytes());
    if parsed.kind == PacketKind::Udp {
        let field = u16::from_le_bytes([transport[UDP_CHECKSUM], transport[UDP_CHECKSUM + 1]]);
        let field = match (partial, field) {
            (true, _) => plan.address_delta.apply_to_sum(field),
            (false, 0) => 0,
            (false, field) => plan.full_delta.apply_to_udp(field),
        };
        transport[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&field.to_le_bytes());
    } else {
        let Some(field) = bytes.get_mut(l4 + TCP_CHECKSUM..).and_then(<[u8]>::first_chunk_mut::<2>) else { return };
        let old = u16::from_le_bytes(*field);
        let new = if partial { plan.address_delta.apply_to_sum(old) } else { plan.full_delta.apply(old) };
        *field = new.to_le_bytes();
    }
}

/// [`rewrite`] for a packet that [`parse_plain`](postern_wire::parse::parse_plain) has taken: all offsets are fixed. `tcp`
/// says which of the two protocols it is.
#[inline(always)]
pub fn rewrite_plain(head: &mut [u8; PLAIN], tcp: bool, plan: &RewritePlan, offload: &Offload) {
    let sum = u16::from_le_bytes([head[24], head[25]]);
    let sum = TTL_DELTA.apply(plan.address_delta.apply(sum));
    head[22] = head[22].wrapping_sub(1);
    head[24..26].copy_from_slice(&sum.to_le_bytes());
    head[26..34].copy_from_slice(&plan.addresses.to_le_bytes());
    head[34..38].copy_from_slice(&plan.ports.to_le_bytes());
    if offload.is_partial() {
        let own = offload.checksum_start == 34;
        finish_partial(head, tcp, plan.address_delta, plan.full_delta, own);
    } else if tcp {
        let field = u16::from_le_bytes([head[50], head[51]]);
        head[50..52].copy_from_slice(&plan.full_delta.apply(field).to_le_bytes());
    } else {
        let field = u16::from_le_bytes([head[40], head[41]]);
        if field != 0 {
            head[40..42].copy_from_slice(&plan.full_delta.apply_to_udp(field).to_le_bytes());
        }
    }
}

/// The transport checksum of [`rewrite_plain`] where the offload state names a partial one: `own`, this packet's, or that of
/// a packet in it.
#[inline(never)]
fn finish_partial(head: &mut [u8; PLAIN], tcp: bool, address_delta: Delta, full_delta: Delta, own: bool) {
    let at = if tcp { 50 } else { 40 };
    let field = u16::from_le_bytes([head[at], head[at + 1]]);
    let field = match field {
        _ if own => address_delta.apply_to_sum(field),
        _ if tcp => full_delta.apply(field),
        0 => 0,
        _ => full_delta.apply_to_udp(field),
    };
    head[at..at + 2].copy_from_slice(&field.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use etherparse::PacketBuilder;
    use postern_wire::{AttachmentIndex, FlowKey, parse};
    use proptest::prelude::*;

    use super::*;

    fn packet(tcp: bool, source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(
            source.ip().octets(),
            destination.ip().octets(),
            64,
        );
        let mut bytes = Vec::new();
        if tcp {
            ip.tcp(source.port(), destination.port(), 7, 1000).ack(9).write(&mut bytes, payload).unwrap();
        } else {
            ip.udp(source.port(), destination.port()).write(&mut bytes, payload).unwrap();
        }
        bytes
    }

    fn socket() -> impl Strategy<Value = SocketAddrV4> {
        (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| SocketAddrV4::new(Ipv4Addr::from_bits(ip), port))
    }

    proptest! {
        #[test]
        fn a_rewritten_packet_is_the_one_that_the_new_ends_would_have_sent(
            tcp: bool,
            old in (socket(), socket()),
            new in (socket(), socket()),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let protocol = if tcp { 6 } else { 17 };
            let key = |ends: (SocketAddrV4, SocketAddrV4)| FlowKey::new(AttachmentIndex(0), protocol, ends.0, ends.1);
            let plan = RewritePlan::between(key(old), key(new));
            let mut bytes = packet(tcp, old.0, old.1, &payload);
            let length = bytes.len();
            let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
            let parsed = parse(&frame).unwrap();
            let mut plain = frame.bytes().to_vec();
            if let Some(head) = plain.first_chunk_mut() {
                rewrite_plain(head, tcp, &plan, &Offload::NONE);
                // The link header is the hop's to write.
            }
            rewrite(&mut frame, &parsed, &plan);
            if plain.len() >= PLAIN {
                prop_assert_eq!(frame.bytes(), &plain[..]);
            }
            let mut wanted = packet(tcp, new.0, new.1, &payload);
            wanted[22] = 63;
            // One less in the time to live is 0x0100 more in the checksum.
            let headers = etherparse::Ipv4HeaderSlice::from_slice(&wanted[14..]).unwrap().to_header();
            wanted[24..26].copy_from_slice(&headers.calc_header_checksum().to_be_bytes());
            prop_assert_eq!(frame.bytes(), &wanted[..]);
        }

        #[test]
        fn a_partial_checksum_takes_the_change_of_the_addresses_only(old in (socket(), socket()), new in (socket(), socket())) {
            let key = |ends: (SocketAddrV4, SocketAddrV4)| FlowKey::new(AttachmentIndex(0), 6, ends.0, ends.1);
            let mut bytes = packet(true, old.0, old.1, b"payload");
            let length = bytes.len();
            let pseudo = |key: FlowKey| postern_wire::checksum::fold(postern_wire::checksum::pseudo_header(key.addresses, 6, 27));
            bytes[50..52].copy_from_slice(&pseudo(key(old)).to_le_bytes());
            let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
            frame.offload = Offload { flags: Offload::NEEDS_CHECKSUM, checksum_start: 34, checksum_offset: 16, ..Offload::NONE };
            let parsed = parse(&frame).unwrap();
            let plan = RewritePlan::between(key(old), key(new));
            let mut plain = frame.bytes().to_vec();
            rewrite_plain(plain.first_chunk_mut().unwrap(), true, &plan, &frame.offload);
            rewrite(&mut frame, &parsed, &plan);
            prop_assert_eq!(frame.bytes(), &plain[..]);
            let found = u16::from_le_bytes([frame.bytes()[50], frame.bytes()[51]]);
            // Zero and all ones are the same sum.
            prop_assert_eq!(found % 0xffff, pseudo(key(new)) % 0xffff);
        }

        #[test]
        fn forward_then_reverse_restores_the_packet(
            tcp: bool, client in socket(), endpoint in socket(), target in socket(), snat in socket(),
            payload in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let protocol = if tcp { 6 } else { 17 };
            let key = |a, b| FlowKey::new(AttachmentIndex(0), protocol, a, b);
            let there = RewritePlan::between(key(client, endpoint), key(snat, target));
            let back = RewritePlan::between(key(snat, target), key(client, endpoint));
            let mut bytes = packet(tcp, client, endpoint, &payload);
            let before = bytes.clone();
            let length = bytes.len();
            let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
            let parsed = parse(&frame).unwrap();
            rewrite(&mut frame, &parsed, &there);
            let parsed = parse(&frame).unwrap();
            rewrite(&mut frame, &parsed, &back);
            prop_assert_eq!(frame.bytes()[22], 62);
            prop_assert_eq!(&frame.bytes()[26..], &before[26..]);
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_stays_zero() {
        let ends = (SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2));
        let key = FlowKey::new(AttachmentIndex(0), 17, ends.0, ends.1);
        let mut bytes = packet(false, ends.0, ends.1, b"x");
        bytes[40..42].fill(0);
        let length = bytes.len();
        let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
        let parsed = parse(&frame).unwrap();
        let plan = RewritePlan::between(key, key.reversed());
        rewrite(&mut frame, &parsed, &plan);
        assert_eq!(frame.bytes()[40..42], [0, 0]);
        let mut head = [0; PLAIN];
        rewrite_plain(&mut head, false, &plan, &Offload::NONE);
        assert_eq!(head[40..42], [0, 0]);
    }
}

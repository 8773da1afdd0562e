//! Fragments: whatever their order, way and number, what arrives is the translated datagram, or nothing of it.

use std::net::{Ipv4Addr, SocketAddrV4};

use postern_translation::fragments::Pieces;
use postern_wire::checksum::checksum;
use postern_wire::{Offload, PortIndex};
use proptest::prelude::*;

use super::bed::*;
use crate::{DropReason, Verdict};

const DNS: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 53);
const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);

/// A whole frame as fragments that carry so many bytes each, the last the rest.
pub(super) fn fragments(frame: &[u8], identification: u16, lengths: &[usize]) -> Vec<Vec<u8>> {
    let (header, payload) = (&frame[..34], &frame[34..]);
    let mut from = 0usize;
    let mut parts = Vec::new();
    for (at, length) in lengths.iter().chain(&[usize::MAX]).enumerate() {
        let until = payload.len().min(from.saturating_add(*length));
        if until == from {
            break;
        }
        let more = until < payload.len();
        let part = fragment(header, identification, from, more, &payload[from..until]);
        assert!(at == lengths.len() || !more || length % 8 == 0);
        parts.push(part);
        from = until;
    }
    parts
}

/// One fragment with the Ethernet and IPv4 header of another packet.
pub(super) fn fragment(header: &[u8], identification: u16, from: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&header[..34], payload].concat();
    let length = (20 + payload.len()) as u16;
    let field = (from / 8) as u16 | if more { 0x2000 } else { 0 };
    bytes[16..18].copy_from_slice(&length.to_be_bytes());
    bytes[18..20].copy_from_slice(&identification.to_be_bytes());
    bytes[20..22].copy_from_slice(&field.to_be_bytes());
    mend(&mut bytes);
    bytes
}

pub(super) fn mend(bytes: &mut [u8]) {
    bytes[24..26].fill(0);
    let sum = checksum(&bytes[14..34], 0);
    bytes[24..26].copy_from_slice(&sum.to_le_bytes());
}

pub(super) fn identification(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[18], frame[19]])
}

/// Puts the fragments of one datagram together, slowly and strictly: all have one header but for their place, no byte comes
/// twice, none is missing.
pub(super) fn reassemble(sent: &[Sent]) -> Vec<u8> {
    let first = &sent[0].bytes;
    let mut payload = vec![None; 65_536];
    let mut end = None;
    for fragment in sent {
        assert_eq!(fragment.bytes[26..34], first[26..34], "addresses");
        assert_eq!(identification(&fragment.bytes), identification(first));
        assert_eq!((fragment.bytes[22], fragment.bytes[23]), (first[22], first[23]), "time to live and protocol");
        let field = u16::from_be_bytes([fragment.bytes[20], fragment.bytes[21]]);
        let from = usize::from(field & 0x1fff) * 8;
        for (at, byte) in fragment.bytes[34..].iter().enumerate() {
            assert_eq!(payload[from + at].replace(*byte), None, "a byte came twice");
        }
        if field & 0x2000 == 0 {
            assert_eq!(end.replace(from + fragment.bytes.len() - 34), None, "two ends");
        }
    }
    let end = end.expect("the last fragment has come");
    let payload: Vec<u8> = payload[..end].iter().map(|byte| byte.expect("no byte is missing")).collect();
    fragment(first, 0, 0, false, &payload)
}

/// Sends frames one by one; returns all that came of them.
fn receive_all(bed: &mut Bed, port: PortIndex, frames: &[Vec<u8>]) -> Vec<Sent> {
    frames.iter().flat_map(|frame| bed.receive(port, frame)).collect()
}

/// What the whole frame becomes, as a fragment that is none: identification 0, DF clear.
fn translated(bed: &mut Bed, port: PortIndex, frame: &[u8]) -> Vec<u8> {
    let sent = bed.one(port, frame);
    fragment(&sent.bytes, 0, 0, false, &sent.bytes[34..])
}

const LETTERS: &[u8] = b"aaaabbbbbbbbbbbbbbbbccc";

#[test]
fn fragments_of_tcp_and_udp_pass_both_ways_in_order_and_reversed() {
    for workers in [1, 4] {
        let mut bed = Bed::with(workers, POOL, ONE_TARGET);
        for round in 0..12u16 {
            let client = socket(CLIENT, 4000 + round);
            let (snat, target) = bed.connect(CONSUMER_A, client);
            let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
            let long = [&LETTERS[4..20], LETTERS, &LETTERS[..8]].concat();
            for (port, whole, lengths) in [
                // As four, sixteen and three bytes of data.
                (CONSUMER_A, tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, LETTERS), [24, 16]),
                (PROVIDER, tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, LETTERS), [24, 16]),
                // As sixteen, sixteen and the rest.
                (CONSUMER_A, udp(CONSUMER_A, client, DNS, &long[..35]), [24, 16]),
                (PROVIDER, udp(PROVIDER, TARGET, query.source(), &long[..35]), [24, 16]),
            ] {
                let wanted = translated(&mut bed, port, &whole);
                let mut parts = fragments(&whole, 77 + round, &lengths);
                assert_eq!(parts.len(), 3);
                for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1], [2, 0, 1]] {
                    let parts: Vec<_> = order.iter().map(|at| parts[*at].clone()).collect();
                    let sent = receive_all(&mut bed, port, &parts);
                    assert_eq!(sent.len(), 3, "{order:?}");
                    assert_eq!(reassemble(&sent), wanted, "{order:?}");
                }
                // The first goes on at once, and nothing before it.
                parts.reverse();
                assert!(bed.receive(port, &parts[0]).is_empty());
                assert_eq!(bed.total(|counters| counters.held.get()), 1);
                bed.wait_seconds(8);
                assert_eq!(bed.total(|counters| counters.held.get()), 0);
            }
        }
        assert_eq!(bed.drops(DropReason::FragmentTimeout), 48);
    }
}

#[test]
fn a_flow_may_begin_with_fragments_in_any_order_at_any_worker() {
    for workers in [1, 4] {
        let mut bed = Bed::with(workers, POOL, ONE_TARGET);
        for port in 1..60 {
            let client = socket(CLIENT, port);
            let mut parts = fragments(&udp(CONSUMER_A, client, DNS, &[7; 2000]), port, &[1480]);
            if port % 2 == 0 {
                parts.reverse();
            }
            let sent = receive_all(&mut bed, CONSUMER_A, &parts);
            assert_eq!(sent.len(), 2);
            let whole = reassemble(&sent);
            assert_valid(&whole, Offload::NONE);
            assert_eq!(ends(&whole).1, TARGET);
            let flows = bed.total(|counters| counters.flows.get());
            assert_eq!(flows, 2 * u64::from(port) - 1, "one flow for each datagram");
            let syn = tcp(CONSUMER_A, client, WEB, Flags::SYN, 1, 0, b"early data that is long enough to be cut");
            let sent = receive_all(&mut bed, CONSUMER_A, &fragments(&syn, port, &[32]));
            assert_valid(&reassemble(&sent), Offload::NONE);
            bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"still the same flow"));
            assert_eq!(bed.total(|counters| counters.flows.get()), 2 * u64::from(port));
        }
    }
}

#[test]
fn fragments_of_two_clients_with_the_same_identification_leave_with_different_ones() {
    let mut bed = Bed::with(3, POOL, ONE_TARGET);
    let mut seen = std::collections::HashSet::new();
    for last in 2..50 {
        let client = socket(Ipv4Addr::new(10, 0, 0, last), 4000);
        let parts = fragments(&udp(CONSUMER_A, client, DNS, &[last; 2000]), 1234, &[1480]);
        let sent = receive_all(&mut bed, CONSUMER_A, &parts);
        assert!(seen.insert(identification(&sent[0].bytes)), "two datagrams of one source with one identification");
        assert_eq!(reassemble(&sent)[42..], [last; 2000]);
    }
}

#[test]
fn interleaved_fragments_of_many_sources_find_their_own() {
    let mut bed = Bed::with(2, POOL, ONE_TARGET);
    let client = |at: u8| socket(Ipv4Addr::new(10, 0, 0, 2 + at), 4000);
    let cut = |at: u8| fragments(&udp(CONSUMER_A, client(at), DNS, &[at; 4000]), 9, &[1480, 1480]);
    let all: Vec<_> = (0..90).map(cut).collect();
    let mut sent: Vec<Vec<Sent>> = vec![Vec::new(); 90];
    for part in [2, 0, 1] {
        for fragments in &all {
            for frame in bed.receive(CONSUMER_A, &fragments[part]) {
                // What is in it says whose it is; the end of a datagram has no header.
                sent[usize::from(*frame.bytes.last().unwrap())].push(frame);
            }
        }
    }
    for (at, sent) in sent.iter().enumerate() {
        assert_eq!(reassemble(sent)[42..], [at as u8; 4000]);
    }
    assert_eq!(bed.total(|counters| counters.held.get()), 0);
}

#[test]
fn a_fragment_that_comes_twice_goes_on_once() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let whole = udp(CONSUMER_A, client, DNS, &[7; 4000]);
    let wanted = [7; 4000];
    let parts = fragments(&whole, 9, &[1480, 1480]);
    for order in [[0, 0, 1, 1, 2], [2, 2, 1, 1, 0], [1, 0, 1, 0, 2]] {
        let frames: Vec<_> = order.iter().map(|at| parts[*at].clone()).collect();
        let before = bed.drops(DropReason::FragmentDuplicate);
        let sent = receive_all(&mut bed, CONSUMER_A, &frames);
        assert_eq!(bed.drops(DropReason::FragmentDuplicate), before + 2, "{order:?}");
        assert_eq!(reassemble(&sent)[42..], wanted);
    }
}

#[test]
fn overlapping_fragments_are_dropped_with_all_that_is_left_of_their_datagram() {
    let mut bed = Bed::new();
    let whole = udp(CONSUMER_A, socket(CLIENT, 4000), DNS, &[7; 72]);
    let payload = &whole[34..];
    let part = |from: usize, to: usize| fragment(&whole, 9, from, to < payload.len(), &payload[from..to]);
    // Teardrop and its kin: before and behind the first, in part, inside, around, another end.
    for parts in [
        vec![part(0, 40), part(24, 64)],
        vec![part(0, 40), part(8, 16)],
        vec![part(0, 16), part(32, 80), part(24, 40)],
        vec![part(40, 80), part(24, 48)],
        vec![part(40, 64), part(32, 80)],
        vec![part(0, 24), part(40, 80), fragment(&whole, 9, 24, false, &[7; 8])],
    ] {
        bed.wait_seconds(20);
        let (last, before) = parts.split_last().unwrap();
        receive_all(&mut bed, CONSUMER_A, before);
        bed.none(CONSUMER_A, last, DropReason::FragmentOverlap);
        assert_eq!(bed.total(|counters| counters.held.get()), 0, "what was held is gone");
        for from in (0..80).step_by(8) {
            bed.none(CONSUMER_A, &part(from, from + 8), DropReason::FragmentOverlap);
        }
    }
}

#[test]
fn split_headers_and_impossible_fragments_pass_no_rule() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    bed.connect(CONSUMER_A, client);
    let segment = tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &[1; 40]);
    // RFC 1858: eight bytes of TCP, and then the flags.
    for part in fragments(&segment, 9, &[8, 8]).iter().take(2) {
        bed.none(CONSUMER_A, part, DropReason::FragmentHeader);
    }
    let rest = fragment(&segment, 9, 24, false, &segment[58..]);
    bed.none(CONSUMER_A, &rest, DropReason::FragmentRefused);
    // RFC 3128: a second first fragment with other ports.
    let other = tcp(CONSUMER_A, client, socket(ENDPOINT, 22), Flags::SYN, 1, 0, &[1; 40]);
    bed.one(CONSUMER_A, &fragments(&segment, 10, &[24])[0]);
    bed.none(CONSUMER_A, &fragments(&other, 10, &[24])[0], DropReason::FragmentDuplicate);
    bed.none(CONSUMER_A, &fragments(&other, 11, &[32])[0], DropReason::NoListener);
    bed.none(CONSUMER_A, &fragments(&other, 11, &[32])[1], DropReason::FragmentRefused);
    // Longer than a datagram can be, of an odd length, and empty.
    let datagram = udp(CONSUMER_A, client, DNS, &[1; 40]);
    bed.none(CONSUMER_A, &fragment(&datagram, 12, 65_528, false, &[0; 40]), DropReason::FragmentHeader);
    bed.none(CONSUMER_A, &fragment(&datagram, 13, 8, true, &[0; 13]), DropReason::FragmentHeader);
    bed.none(CONSUMER_A, &fragment(&datagram, 14, 8, false, &[]), DropReason::FragmentHeader);
    let stranger = udp(CONSUMER_A, client, socket(Ipv4Addr::new(10, 0, 0, 77), 53), &[1; 40]);
    bed.none(CONSUMER_A, &fragments(&stranger, 15, &[24])[1], DropReason::NotLocal);
    let unsolicited = udp(PROVIDER, TARGET, socket(SNAT, 4000), &[1; 40]);
    bed.none(PROVIDER, &fragments(&unsolicited, 16, &[24])[0], DropReason::Unsolicited);
    bed.none(PROVIDER, &fragments(&unsolicited, 16, &[24])[1], DropReason::FragmentRefused);
}

#[test]
fn fragments_without_a_first_are_bounded_in_memory_and_time_and_cost_live_flows_nothing() {
    let mut bed = Bed::new();
    let client = socket(Ipv4Addr::new(10, 0, 0, 9), 4000);
    let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
    let header = udp(CONSUMER_A, socket(CLIENT, 1), DNS, &[1; 1400]);
    let mut most = 0;
    for at in 0..65_536u32 {
        let mut header = header.clone();
        // From one source, then from many.
        if at % 2 == 1 {
            header[26..30].copy_from_slice(&Ipv4Addr::from_bits(0x0a40_0000 + at).octets());
        }
        let lone = fragment(&header, at as u16, 1480, false, &[1; 1400]);
        assert!(bed.receive(CONSUMER_A, &lone).is_empty());
        most = most.max(bed.total(|counters| counters.held.get()));
        if at % 1024 == 0 {
            bed.now = bed.now.plus_milliseconds(10);
            let parts = fragments(&udp(CONSUMER_A, client, DNS, &[5; 4000]), at as u16, &[1480, 1480]);
            let reversed: Vec<_> = parts.into_iter().rev().collect();
            assert_eq!(reassemble(&receive_all(&mut bed, CONSUMER_A, &reversed))[42..], [5; 4000]);
            bed.one(PROVIDER, &udp(PROVIDER, TARGET, query.source(), b"a"));
        }
    }
    assert!((2_000..=4_096).contains(&most), "{most}");
    assert!(bed.drops(DropReason::FragmentFull) > 60_000);
    bed.wait_seconds(10);
    assert_eq!(bed.total(|counters| counters.held.get()), 0);
    assert!(bed.drops(DropReason::FragmentTimeout) > 1_000);
    bed.assert_balanced();
}

#[test]
fn an_identification_that_is_used_again_begins_another_datagram() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let cut = |value: u8| fragments(&udp(CONSUMER_A, client, DNS, &[value; 4000]), 9, &[1480, 1480]);
    // The middle of the first datagram is lost.
    let lost: Vec<_> = [0, 2].map(|at| cut(1)[at].clone()).to_vec();
    let before = receive_all(&mut bed, CONSUMER_A, &lost);
    bed.wait_seconds(2);
    let sent = receive_all(&mut bed, CONSUMER_A, &cut(2));
    assert_ne!(identification(&sent[0].bytes), identification(&before[0].bytes), "its receiver mixes nothing");
    assert_eq!(reassemble(&sent)[42..], [2; 4000]);
}

#[test]
fn a_large_echo_request_is_answered_fragment_by_fragment() {
    let mut bed = Bed::with(3, POOL, ONE_TARGET);
    let mut echo = Vec::new();
    etherparse::PacketBuilder::ethernet2(station(CLIENT).0, port_mac(CONSUMER_A).0)
        .ipv4(CLIENT.octets(), ENDPOINT.octets(), 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut echo, &[9; 20_000])
        .unwrap();
    for reversed in [false, true] {
        let mut parts = fragments(&echo, 5 + u16::from(reversed), &[1480; 13]);
        if reversed {
            parts.reverse();
        }
        let sent = receive_all(&mut bed, CONSUMER_A, &parts);
        assert_eq!(sent.len(), 14);
        let whole = reassemble(&sent);
        assert_valid(&whole, Offload::NONE);
        assert_eq!((whole[34], &whole[26..30], &whole[30..34]), (0, &ENDPOINT.octets()[..], &CLIENT.octets()[..]));
        assert_eq!(&whole[42..], &[9; 20_000]);
    }
    let mut other = echo.clone();
    other[34] = 13;
    let parts = fragments(&other, 50, &[1480]);
    bed.none(CONSUMER_A, &parts[0], DropReason::IcmpType);
    bed.none(CONSUMER_A, &parts[1], DropReason::FragmentRefused);
}

#[test]
fn what_is_too_large_for_the_way_out_and_may_be_cut_leaves_in_fragments() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    for (length, pieces) in [(1473, 2), (8000, 6), (60_000, 41)] {
        let mut whole = udp(CONSUMER_A, client, DNS, &vec![3; length]);
        whole[20] &= !0x40;
        mend(&mut whole);
        let sent = bed.receive(CONSUMER_A, &whole[..]);
        assert_eq!((bed.verdict, sent.len()), (Verdict::Hold, pieces));
        assert!(sent.iter().all(|sent| sent.bytes.len() <= 1514));
        let translated = reassemble(&sent);
        assert_valid(&translated, Offload::NONE);
        assert_eq!(translated[42..], vec![3; length]);
    }
    // A fragment that is too large becomes smaller ones of the same datagram.
    let whole = udp(CONSUMER_A, client, DNS, &[4; 9000]);
    let sent = receive_all(&mut bed, CONSUMER_A, &fragments(&whole, 9, &[4000, 4000]));
    assert_eq!(sent.len(), 3 + 3 + 1);
    assert_eq!(reassemble(&sent)[42..], [4; 9000]);
}

#[test]
fn super_frames_whose_segments_are_too_large_and_may_be_cut_leave_in_fragments() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    bed.connect(CONSUMER_A, client);
    let offload = |kind: u8, segment_size, checksum_offset, header_length| Offload {
        flags: 1,
        segmentation_type: kind,
        header_length,
        segment_size,
        checksum_start: 34,
        checksum_offset,
    };
    let mut datagrams = udp(CONSUMER_A, client, DNS, &[6; 9000]);
    let mut segments = tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &[6; 9000]);
    for (whole, offload) in [(&mut datagrams, offload(5, 3000, 6, 42)), (&mut segments, offload(1, 3000, 16, 54))] {
        whole[20] &= !0x40;
        mend(whole);
        let sent = bed.receive_offloaded(CONSUMER_A, whole, offload);
        assert_eq!(sent.len(), 9);
        let mut names = std::collections::HashSet::new();
        for fragments in sent.chunks(3) {
            let segment = reassemble(fragments);
            assert_valid(&segment, Offload::NONE);
            assert!(segment.ends_with(&[6; 3000]));
            assert!(names.insert(identification(&fragments[0].bytes)));
        }
    }
}

#[test]
fn fragments_wait_for_a_neighbour_and_leave_when_it_answers() {
    let mut bed = Bed::new();
    bed.neighbours_answer = false;
    let client = socket(CLIENT, 4000);
    let mut whole = udp(CONSUMER_A, client, DNS, &[3; 4000]);
    whole[20] &= !0x40;
    mend(&mut whole);
    assert!(bed.receive(CONSUMER_A, &whole).is_empty());
    let parts = fragments(&whole, 9, &[1480, 1480]);
    assert!(receive_all(&mut bed, CONSUMER_A, &parts).is_empty());
    assert_eq!(bed.total(|counters| counters.held.get()), 4);
    bed.assert_balanced();
    let request = bed.requests[0];
    bed.answer(request, Some(station(request.address)));
    bed.assert_balanced();
    let sent = std::mem::take(&mut bed.sent);
    assert_eq!(sent.len(), 6);
    assert_eq!(reassemble(&sent[..3])[42..], [3; 4000]);
    assert_eq!(reassemble(&sent[3..])[42..], [3; 4000]);
    assert_ne!(identification(&sent[0].bytes), identification(&sent[3].bytes));
}

#[test]
fn held_fragments_that_find_no_room_to_leave_do_so_later() {
    let mut bed = Bed::new();
    bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 4000), DNS, b"q"));
    bed.outbox = crate::Outbox::new(4);
    let parts = fragments(&udp(CONSUMER_A, socket(CLIENT, 4000), DNS, &[3; 20_000]), 9, &[1480; 13]);
    let reversed: Vec<_> = parts.into_iter().rev().collect();
    let mut sent = receive_all(&mut bed, CONSUMER_A, &reversed);
    assert_eq!(sent.len(), 5);
    for _ in 0..3 {
        bed.housekeeping();
    }
    sent.append(&mut bed.sent);
    assert_eq!(reassemble(&sent)[42..], [3; 20_000]);
    assert_eq!(bed.total(|counters| counters.held.get()), 0);
    bed.assert_balanced();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_put_together_from_translated_fragments_is_the_translated_datagram(
        length in 1usize..6000,
        cut in 8u16..200,
        order in any::<u64>(),
        tcp_segment: bool,
        from_target: bool,
        workers in 1u16..4,
    ) {
        let mut bed = Bed::from_toml(workers, &CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE_TARGET), 1024);
        let client = socket(CLIENT, 4000);
        let (snat, _) = bed.connect(CONSUMER_A, client);
        let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
        let data: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
        let (port, mut whole) = match (tcp_segment, from_target) {
            (true, false) => (CONSUMER_A, tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &data)),
            (true, true) => (PROVIDER, tcp(PROVIDER, TARGET, snat, Flags::ACK, 5001, 1001, &data)),
            (false, false) => (CONSUMER_A, udp(CONSUMER_A, client, DNS, &data)),
            (false, true) => (PROVIDER, udp(PROVIDER, TARGET, query.source(), &data)),
        };
        whole[20] &= !0x40;
        mend(&mut whole);
        // The whole datagram, as the gateway cuts it.
        let wanted = match &bed.receive(port, &whole)[..] {
            [one] => fragment(&one.bytes, 0, 0, false, &one.bytes[34..]),
            several => reassemble(several),
        };
        // And as its sender did.
        let pieces = Pieces::new(&whole[14..], (cut * 8).max(48)).unwrap();
        prop_assume!((2..=128).contains(&pieces.len()));
        let mut frames: Vec<Vec<u8>> = (0..pieces.len())
            .map(|at| {
                let mut bytes = vec![0; 1700];
                bytes[..14].copy_from_slice(&whole[..14]);
                let length = pieces.write(at, &mut bytes[14..]);
                bytes.truncate(14 + length);
                bytes
            })
            .collect();
        let mut state = order | 1;
        for at in (1..frames.len()).rev() {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            frames.swap(at, (state >> 33) as usize % (at + 1));
        }
        let sent = receive_all(&mut bed, port, &frames);
        prop_assert_eq!(reassemble(&sent), wanted);
        prop_assert_eq!(bed.total(|counters| counters.held.get()), 0);
    }

    #[test]
    fn whatever_fragments_come_no_byte_of_a_datagram_leaves_twice_and_nothing_is_held_for_ever(
        steps in proptest::collection::vec(
            ((0u8..3, any::<bool>(), any::<bool>()), 0u16..3, 0usize..12, 1usize..8, any::<bool>(), 0u64..1200),
            1..100,
        ),
        workers in 1u16..4,
        cramped: bool,
    ) {
        let mut bed = Bed::from_toml(workers, &CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE_TARGET), 1024);
        let clients = [2, 3, 4].map(|last| socket(Ipv4Addr::new(10, 0, 0, last), 4000));
        let seen = clients.map(|client| bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q")).source());
        if cramped {
            bed.outbox = crate::Outbox::new(2);
        }
        let mut left = std::collections::HashSet::new();
        for ((client, from_target, tcp_segment), number, start, length, more, milliseconds) in steps {
            let client = usize::from(client);
            let (port, whole) = match (from_target, tcp_segment) {
                (false, false) => (CONSUMER_A, udp(CONSUMER_A, clients[client], DNS, &[7; 200])),
                (false, true) => (CONSUMER_A, tcp(CONSUMER_A, clients[client], WEB, Flags::SYN, 1, 0, &[7; 200])),
                (true, _) => (PROVIDER, udp(PROVIDER, TARGET, seen[client], &[7; 200])),
            };
            let from = start * 8;
            let until = (from + length * 8).min((whole.len() - 34) & !7);
            // From the start to the end it would be a whole packet.
            let part = fragment(&whole, number, from, more || start == 0, &whole[34 + from..34 + until]);
            bed.now = bed.now.plus_milliseconds(milliseconds);
            let mut sent = bed.receive(port, &part);
            bed.housekeeping();
            sent.append(&mut bed.sent);
            for Sent { bytes, .. } in sent {
                let field = u16::from_be_bytes([bytes[20], bytes[21]]);
                prop_assert_ne!(field & 0x3fff, 0);
                for byte in 0..bytes.len() - 34 {
                    let at = usize::from(field & 0x1fff) * 8 + byte;
                    prop_assert!(left.insert((bytes[26..34].to_vec(), bytes[23], identification(&bytes), at)));
                }
            }
        }
        bed.wait_seconds(20);
        bed.assert_balanced();
        prop_assert_eq!(bed.total(|counters| counters.held.get()), 0);
    }
}

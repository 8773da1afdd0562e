//! Fragments of IPv6, and those that change their version of IP.

use std::net::{Ipv6Addr, SocketAddrV6};

use postern_wire::{Offload, PortIndex};

use super::bed::*;
use super::fragments::{fragments, identification, mend, reassemble};
use super::ipv6::{at, tcp6, udp6};
use super::{ipv6, nat64};
use crate::DropReason;

const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const ENDPOINT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);
const TARGET6: SocketAddrV6 = at(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x11), 8080);
const DNS: SocketAddrV6 = at(ENDPOINT6, 53);
const WEB: SocketAddrV6 = at(ENDPOINT6, 80);

/// One fragment of an IPv6 packet without extension headers.
fn fragment6(frame: &[u8], identification: u32, from: usize, until: usize) -> Vec<u8> {
    let payload = &frame[54..];
    let until = until.min(payload.len());
    let field = from as u16 | u16::from(until < payload.len());
    let mut bytes = frame[..54].to_vec();
    bytes[18..20].copy_from_slice(&((8 + until - from) as u16).to_be_bytes());
    bytes[20] = 44;
    bytes.extend([frame[20], 0]);
    bytes.extend(field.to_be_bytes());
    bytes.extend(identification.to_be_bytes());
    bytes.extend(&payload[from..until]);
    bytes
}

fn fragments6(frame: &[u8], identification: u32, each: usize) -> Vec<Vec<u8>> {
    (0..frame.len() - 54).step_by(each).map(|from| fragment6(frame, identification, from, from + each)).collect()
}

/// Puts the fragments of one packet together; all must agree.
fn reassemble6(sent: &[Sent]) -> Vec<u8> {
    let first = &sent[0].bytes;
    let mut parts: Vec<(usize, bool, &[u8])> = Vec::new();
    for Sent { bytes, .. } in sent {
        assert_eq!((bytes[20], &bytes[21..54], bytes[54]), (44, &first[21..54], first[54]), "one header");
        assert_eq!(bytes[58..62], first[58..62], "one identification");
        let field = u16::from_be_bytes([bytes[56], bytes[57]]);
        parts.push((usize::from(field & !7), field & 1 != 0, &bytes[62..]));
    }
    parts.sort_unstable();
    let mut whole = first[..54].to_vec();
    whole[20] = first[54];
    for (at, (from, more, part)) in parts.iter().enumerate() {
        assert_eq!((*from, *more), (whole.len() - 54, at + 1 < parts.len()));
        whole.extend(*part);
    }
    let length = (whole.len() - 54) as u16;
    whole[18..20].copy_from_slice(&length.to_be_bytes());
    whole
}

fn receive_all(bed: &mut Bed, port: PortIndex, frames: &[Vec<u8>]) -> Vec<Sent> {
    frames.iter().flat_map(|frame| bed.receive(port, frame)).collect()
}

#[test]
fn ipv6_fragments_pass_both_ways_in_any_order_at_any_worker() {
    for count in [1, 4] {
        let mut bed = ipv6::workers(count);
        for number in 0..10u16 {
            let client = at(CLIENT6, 4000 + number);
            let snat = ipv6::connect(&mut bed, CONSUMER_A, client);
            let query = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"q"));
            let asked = ipv6::ends6(&query.bytes).0;
            let data = [number as u8; 700];
            for (port, whole) in [
                (CONSUMER_A, tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &data)),
                (PROVIDER, tcp6(PROVIDER, TARGET6, snat, Flags::ACK, 5001, 1001, &data)),
                (CONSUMER_A, udp6(CONSUMER_A, client, DNS, &data)),
                (PROVIDER, udp6(PROVIDER, TARGET6, asked, &data)),
            ] {
                let wanted = bed.one(port, &whole).bytes;
                for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
                    let parts = fragments6(&whole, 77, 304);
                    let parts: Vec<_> = order.iter().map(|at| parts[*at].clone()).collect();
                    let sent = receive_all(&mut bed, port, &parts);
                    assert_eq!(sent.len(), 3, "{order:?}");
                    assert_eq!(reassemble6(&sent), wanted, "{order:?}");
                    assert_ne!(sent[0].bytes[58..62], 77u32.to_be_bytes(), "another identification");
                }
            }
        }
        assert_eq!(bed.total(|counters| counters.held.get()), 0);
    }
}

#[test]
fn ipv6_flows_may_begin_with_fragments_and_two_clients_identifications_never_meet() {
    let mut bed = ipv6::workers(3);
    let mut seen = std::collections::HashSet::new();
    for number in 1..40u16 {
        let client = at(CLIENT6, number);
        let mut parts = fragments6(&udp6(CONSUMER_A, client, DNS, &[7; 2000]), 5, 1008);
        if number % 2 == 0 {
            parts.reverse();
        }
        // One after the other, or they would be one packet's: source, destination and identification are the same.
        let sent = receive_all(&mut bed, CONSUMER_A, &parts);
        assert_eq!(sent.len(), 2);
        let whole = reassemble6(&sent);
        assert_valid(&whole, Offload::NONE);
        assert_eq!(ipv6::ends6(&whole).1, TARGET6);
        assert!(seen.insert(sent[0].bytes[58..62].to_vec()));
        assert_eq!(bed.total(|counters| counters.flows.get()), u64::from(number));
    }
}

#[test]
fn ipv6_fragments_that_overlap_or_split_headers_are_dropped() {
    let mut bed = ipv6::workers(1);
    let client = at(CLIENT6, 4000);
    let whole = udp6(CONSUMER_A, client, DNS, &[7; 72]);
    bed.receive(CONSUMER_A, &fragment6(&whole, 9, 0, 40));
    bed.none(CONSUMER_A, &fragment6(&whole, 9, 24, 64), DropReason::FragmentOverlap);
    bed.none(CONSUMER_A, &fragment6(&whole, 9, 40, 80), DropReason::FragmentOverlap);
    let segment = tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1, 1, &[7; 72]);
    bed.none(CONSUMER_A, &fragment6(&segment, 10, 0, 8), DropReason::FragmentHeader);
    bed.none(CONSUMER_A, &fragment6(&segment, 10, 8, 48), DropReason::FragmentHeader);
    bed.none(CONSUMER_A, &fragment6(&segment, 10, 48, 99), DropReason::FragmentRefused);
    // Without a first: held, and given up in time.
    assert!(bed.receive(CONSUMER_A, &fragment6(&whole, 11, 40, 80)).is_empty());
    assert_eq!(bed.total(|counters| counters.held.get()), 1);
    bed.wait_seconds(10);
    assert_eq!(bed.drops(DropReason::FragmentTimeout), 1);
    bed.assert_balanced();
}

#[test]
fn ipv6_echo_requests_in_fragments_are_answered() {
    let mut bed = ipv6::workers(2);
    let mut echo = ipv6::error6(CONSUMER_A, CLIENT6, ENDPOINT6, (128, 0), [0, 7, 0, 1], &[9; 5000]);
    echo[21] = 64;
    for reversed in [false, true] {
        let mut parts = fragments6(&echo, 5, 1208);
        if reversed {
            parts.reverse();
        }
        let sent = receive_all(&mut bed, CONSUMER_A, &parts);
        assert_eq!(sent.len(), 5);
        let whole = reassemble6(&sent);
        assert_valid(&whole, Offload::NONE);
        assert_eq!((whole[54], &whole[22..38], &whole[62..]), (129, &ENDPOINT6.octets()[..], &[9; 5000][..]));
    }
}

#[test]
fn nat64_fragments_change_their_version_of_ip_in_both_directions() {
    for count in [1, 3] {
        let mut bed = nat64::workers(count);
        let mut seen = std::collections::HashSet::new();
        for number in 0..10u16 {
            let client = at(CLIENT6, 4000 + number);
            let snat = nat64::connect(&mut bed, client);
            let query = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"q"));
            let data = [number as u8; 700];
            for whole in
                [tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &data), udp6(CONSUMER_A, client, DNS, &data)]
            {
                for reversed in [false, true] {
                    let mut parts = fragments6(&whole, 77, 304);
                    if reversed {
                        parts.reverse();
                    }
                    let sent = receive_all(&mut bed, CONSUMER_A, &parts);
                    assert_eq!(sent.len(), 3);
                    assert!(seen.insert((sent[0].bytes[23], identification(&sent[0].bytes))));
                    let whole = reassemble(&sent);
                    assert_valid(&whole, Offload::NONE);
                    assert!(whole.ends_with(&data));
                    assert_eq!(ends(&whole).1, TARGET);
                }
            }
            for mut whole in [
                tcp(PROVIDER, TARGET, snat, Flags::ACK, 5001, 1001, &data),
                udp(PROVIDER, TARGET, query.source(), &data),
            ] {
                whole[20] &= !0x40;
                mend(&mut whole);
                for reversed in [false, true] {
                    let mut parts = fragments(&whole, 77, &[304, 304]);
                    if reversed {
                        parts.reverse();
                    }
                    let sent = receive_all(&mut bed, PROVIDER, &parts);
                    assert_eq!(sent.len(), 3);
                    let whole = reassemble6(&sent);
                    assert_valid(&whole, Offload::NONE);
                    assert!(whole.ends_with(&data));
                    assert_eq!(ipv6::ends6(&whole).1, client);
                }
            }
        }
        assert_eq!(bed.total(|counters| counters.held.get()), 0);
    }
}

//! SNAT ports across workers: every one used before the first failure, none shared.

use std::collections::HashSet;
use std::net::SocketAddrV4;

use super::bed::*;
use crate::{DropReason, Verdict};

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);
const DNS: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 53);
const ONE: &str = "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n";

#[test]
fn all_ports_toward_a_target_are_used_before_the_first_failure_with_any_number_of_workers() {
    for workers in [1, 2, 3, 4, 8] {
        let mut bed = Bed::with(workers, POOL, ONE);
        let mut seen = HashSet::new();
        let mut refused = 0;
        for number in 0..64_512 + 256u32 {
            let client =
                socket(std::net::Ipv4Addr::new(10, 0, 0, 2 + (number / 40_000) as u8), (number % 40_000) as u16);
            let sent = bed.receive(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
            match sent.first() {
                Some(sent) => {
                    assert!(seen.insert(sent.source()), "{} given twice with {workers} workers", sent.source());
                    assert_eq!(refused, 0, "a port was free after a refusal with {workers} workers");
                }
                None => refused += 1,
            }
        }
        assert_eq!((seen.len(), refused), (64_512, 256), "{workers} workers");
        assert_eq!(bed.drops(DropReason::PortsExhausted), 256);
        assert_eq!(bed.total(|counters| counters.endpoints[0].port_allocation_errors.get()), 256);
        // Every reply finds its flow, wherever it comes in.
        for snat in seen.iter().step_by(97) {
            let answer = bed.one(PROVIDER, &udp(PROVIDER, TARGET, *snat, b"a"));
            assert_eq!(answer.port, CONSUMER_A);
        }
    }
}

#[test]
fn a_lent_flow_is_found_from_both_sides_until_it_ends() {
    let mut bed = Bed::with(4, "addresses = [\"10.9.0.200\"]\nports = \"2048-2175\"", ONE);
    // One block of 128 ports has one owner; three quarters of the flows are other workers'.
    for port in 1..=128 {
        let client = socket(CLIENT, port);
        let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
        let again = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
        assert_eq!(again.source(), query.source());
        let answer = bed.one(PROVIDER, &udp(PROVIDER, TARGET, query.source(), b"a"));
        assert_eq!(answer.destination(), client);
    }
    assert!(bed.total(|counters| counters.flows_lent.get()) > 50);
    bed.none(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 500), DNS, b"q"), DropReason::PortsExhausted);
    bed.wait_seconds(122);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    // Notes of lent flows are gone too: nothing but new flows is made now.
    bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"q"));
    assert_eq!(bed.total(|counters| counters.flows.get()), 1);
}

#[test]
fn a_lent_connection_that_is_opened_anew_by_the_same_client_is_lent_anew() {
    let mut bed = Bed::with(4, "addresses = [\"10.9.0.200\"]\nports = \"2048-2175\"", ONE);
    for port in 1..=40 {
        let client = socket(CLIENT, port);
        let (snat, target) = bed.connect(CONSUMER_A, client);
        bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::FIN, 1001, 5001, b""));
        bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1002, b""));
        let (snat, target) = bed.connect(CONSUMER_A, client);
        let sent = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"again"));
        assert_eq!((sent.source(), sent.destination()), (snat, target));
    }
    assert!(bed.total(|counters| counters.flows_lent.get()) > 40);
    assert_eq!(bed.drops(DropReason::NoFlow), 0);
}

#[test]
fn a_pool_of_one_port_is_reused_after_close_and_never_while_open() {
    let mut bed = Bed::pool("addresses = [\"10.9.0.200\"]\nports = \"4000-4000\"");
    let (snat, target) = bed.connect(CONSUMER_A, socket(CLIENT, 1));
    assert_eq!(snat.port(), 4000);
    bed.none(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 2), WEB, Flags::SYN, 1, 0, b""), DropReason::PortsExhausted);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 1), WEB, Flags::FIN, 1001, 5001, b""));
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1002, b""));
    bed.wait_seconds(6);
    let (again, _) = bed.connect(CONSUMER_A, socket(CLIENT, 2));
    assert_eq!(again.port(), 4000);
    assert_eq!(bed.total(|counters| counters.ports_early.get()), 1, "it had not rested, but no other was free");
}

#[test]
fn the_oldest_half_open_flow_gives_its_port_up_before_a_new_flow_is_refused() {
    let mut bed = Bed::pool("addresses = [\"10.9.0.200\"]\nports = \"4000-4003\"");
    let (kept, _) = bed.connect(CONSUMER_A, socket(CLIENT, 1));
    let syn = |port| tcp(CONSUMER_A, socket(CLIENT, port), WEB, Flags::SYN, 1, 0, b"");
    let half_open: Vec<_> = (2..=4).map(|port| bed.one(CONSUMER_A, &syn(port)).source()).collect();
    let newcomer = bed.one(CONSUMER_A, &syn(5)).source();
    assert_eq!(newcomer, half_open[0], "the oldest goes first");
    assert_eq!(bed.total(|counters| counters.half_open_evicted.get()), 1);
    assert_ne!(newcomer, kept);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 1), WEB, Flags::ACK, 1001, 5001, b"x"));
}

#[test]
fn a_second_address_doubles_the_room_and_none_refuses_all() {
    let mut bed = Bed::pool("addresses = [\"10.9.0.200\", \"10.9.0.201\"]\nports = \"4000-4009\"");
    let sent: HashSet<_> =
        (1..=20).map(|port| bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, port), DNS, b"q")).source()).collect();
    assert_eq!(sent.len(), 20);
    bed.none(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 21), DNS, b"q"), DropReason::PortsExhausted);
}

#[test]
fn ports_toward_different_targets_are_counted_apart() {
    let two = "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n[[target_group.target]]\naddress = \"10.9.0.12\"\nport = 8080\n";
    let mut bed = Bed::with(1, "addresses = [\"10.9.0.200\"]\nports = \"4000-4049\"", two);
    let mut sent = HashSet::new();
    for port in 1..=2000 {
        if let Some(frame) = bed.receive(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, port), DNS, b"q")).first() {
            assert!(sent.insert((frame.source(), frame.destination())));
        }
    }
    assert_eq!(sent.len(), 100);
}

#[test]
fn two_first_packets_in_one_burst_make_one_flow() {
    let mut bed = Bed::new();
    bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 9), DNS, b"q"));
    let bytes = udp(CONSUMER_A, socket(CLIENT, 10), DNS, b"q");
    let mut buffers = [bytes.clone(), bytes.clone(), bytes];
    let mut frames: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| {
            let length = buffer.len();
            postern_wire::Frame::new(buffer, 0, length).unwrap()
        })
        .collect();
    let mut verdicts = [Verdict::Punt; 3];
    bed.workers[0].process(&mut frames, &mut verdicts, &mut bed.outbox, bed.now);
    assert_eq!(verdicts, [Verdict::Forward(PROVIDER); 3]);
    let sources: HashSet<_> = frames.iter().map(|frame| ends(frame.bytes()).0).collect();
    assert_eq!(sources.len(), 1);
    assert_eq!(bed.total(|counters| counters.flows.get()), 2);
}

#[test]
fn rests_that_find_no_room_are_counted() {
    // Rests have room for a quarter of the flows: 2,048 of 8,192 and a few for IPv6.
    let toml = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE);
    let mut bed = Bed::from_toml(1, &toml, 8192);
    for port in 1..=2500 {
        bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, port), DNS, b"q"));
    }
    bed.wait_seconds(10);
    assert_eq!(bed.total(|counters| counters.rests_cut_short.get()), 0);
    bed.wait_seconds(115);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    let room = u64::from(postern_translation::ports::PortCapacity::for_flows(8192 + IPV6_FLOWS).resting);
    assert_eq!(bed.total(|counters| counters.rests_cut_short.get()), 2500 - room);
}

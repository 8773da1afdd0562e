//! Limits of endpoints, pools without ports, and addresses that come and go.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::bed::*;
use crate::{DropReason, Verdict};

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);
const DNS: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 53);

/// The gateway; endpoint `vpce-a` has the lines `limits`.
fn toml(pool: &str, limits: &str) -> String {
    let text = CONFIGURATION.replace("{pool}", pool).replace("{targets}", ONE_TARGET);
    text.replacen("addresses = [\"10.0.0.100\"]", &format!("addresses = [\"10.0.0.100\"]\n{limits}"), 1)
}

fn syn(number: u16) -> Vec<u8> {
    tcp(CONSUMER_A, socket(CLIENT, 4000 + number), WEB, Flags::SYN, 1000, 0, b"")
}

fn flows_made(bed: &mut Bed, frames: impl Iterator<Item = Vec<u8>>) -> usize {
    frames.filter(|frame| !bed.receive(CONSUMER_A, frame).is_empty()).count()
}

#[test]
fn of_ten_syns_with_a_budget_of_five_exactly_five_pass_with_any_number_of_workers() {
    for workers in [1, 2, 3, 4, 8] {
        for (limit, reason) in [
            ("snat_port_budget = 5", DropReason::PortBudget),
            ("max_flows = 5", DropReason::FlowLimit),
            ("new_flows_per_second = 5", DropReason::NewFlowRate),
        ] {
            let mut bed = Bed::from_toml(workers, &toml(POOL, limit), 1024);
            assert_eq!(flows_made(&mut bed, (0..10).map(syn)), 5, "{limit} with {workers} workers");
            assert_eq!(bed.drops(reason), 5);
            assert_eq!(bed.total(|counters| counters.endpoints[0].flows.get()), 5);
            // The other endpoint's are its own.
            bed.connect(CONSUMER_B, socket(CLIENT, 4000));
            // Retransmissions of what lives pass.
            assert_eq!(flows_made(&mut bed, (0..10).map(syn)), 5);
        }
    }
}

#[test]
fn a_flow_that_ends_gives_its_budget_back() {
    let mut bed = Bed::from_toml(2, &toml(POOL, "snat_port_budget = 1\nmax_flows = 1"), 1024);
    let client = socket(CLIENT, 4000);
    bed.connect(CONSUMER_A, client);
    bed.none(CONSUMER_A, &syn(1), DropReason::PortBudget);
    bed.receive(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::RST, 1001, 0, b""));
    bed.wait_seconds(60);
    bed.connect(CONSUMER_A, socket(CLIENT, 4001));
}

#[test]
fn new_flows_come_at_their_budget_of_a_second() {
    let mut bed = Bed::from_toml(3, &toml(POOL, "new_flows_per_second = 10"), 4096);
    let mut made = 0;
    let mut number = 0;
    for _ in 0..50 {
        made += flows_made(&mut bed, (number..number + 10).map(syn));
        number += 10;
        bed.now = bed.now.plus_milliseconds(100);
    }
    // Ten at once, and ten in each second.
    assert_eq!(made, 10 + 49);
}

#[test]
fn bytes_of_both_directions_share_the_budget_of_the_endpoint_and_others_pay_nothing() {
    let mut bed = Bed::from_toml(2, &toml(POOL, "bytes_per_second = 100000"), 4096);
    let client = socket(CLIENT, 4000);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.connect(CONSUMER_B, client);
    let request = tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &[1; 960]);
    let reply = tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, &[2; 960]);
    let other = tcp(CONSUMER_B, client, WEB, Flags::ACK, 1001, 5001, &[3; 960]);
    let mut passed = 0;
    for _ in 0..1000 {
        passed += bed.receive(CONSUMER_A, &request).len() + bed.receive(PROVIDER, &reply).len();
        bed.one(CONSUMER_B, &other);
        bed.now = bed.now.plus_milliseconds(5);
    }
    // Five seconds of 100 packets of 1,000 bytes, and a tenth of a second at once.
    assert!((500..=512).contains(&passed), "{passed}");
    assert_eq!(bed.drops(DropReason::Bandwidth), 2000 - passed as u64);
    // A limit that comes and goes while the flow lives.
    bed.reload(&toml(POOL, ""));
    for _ in 0..100 {
        bed.one(CONSUMER_A, &request);
    }
    bed.reload(&toml(POOL, "bytes_per_second = 100000"));
    bed.now = bed.now.plus_milliseconds(1000);
    let passed = (0..100).map(|_| bed.receive(CONSUMER_A, &request).len()).sum::<usize>();
    assert!(passed < 15, "{passed}");
}

#[test]
fn a_client_is_told_what_the_pool_says_when_ports_or_budget_are_used_up() {
    let small = "ports = \"2000-2000\"\naddresses = [\"10.9.0.200\"]\nexhausted = ";
    for (pool, limits, code) in [(small, "", 1), (&*format!("{POOL}\nexhausted = "), "max_flows = 1", 13)] {
        for workers in [1, 3] {
            let mut bed = Bed::from_toml(workers, &toml(&format!("{pool}\"reset\""), limits), 1024);
            bed.connect(CONSUMER_A, socket(CLIENT, 3999));
            let sent = bed.receive(CONSUMER_A, &syn(0));
            assert_eq!(sent.len(), 1, "{pool} {limits}");
            let reset = sent[0].tcp();
            assert!(reset.rst && reset.ack && reset.acknowledgment_number == 1001);
            assert_eq!((sent[0].source(), sent[0].destination()), (WEB, socket(CLIENT, 4000)));
            assert_eq!(
                bed.receive(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"q")).len(),
                usize::from(code == 1)
            );

            let mut bed = Bed::from_toml(workers, &toml(&format!("{pool}\"unreachable\""), limits), 1024);
            bed.connect(CONSUMER_A, socket(CLIENT, 3999));
            let sent = bed.receive(CONSUMER_A, &syn(0));
            assert_eq!(sent.len(), 1);
            let icmp = &sent[0].bytes[34..];
            assert_eq!((icmp[0], icmp[1]), (3, code));
            // It quotes what the client sent.
            assert_eq!(icmp[8 + 12..8 + 24], syn(0)[26..38]);

            let mut bed = Bed::from_toml(workers, &toml(&format!("{pool}\"drop\""), limits), 1024);
            bed.connect(CONSUMER_A, socket(CLIENT, 3999));
            assert!(bed.receive(CONSUMER_A, &syn(0)).is_empty());
            assert!(matches!(bed.verdict, Verdict::Drop(_)));
        }
    }
}

#[test]
fn without_an_snat_address_everything_is_dropped_and_counted_and_adding_one_heals() {
    let mut bed = Bed::from_toml(2, &toml("", ""), 1024);
    assert_eq!(flows_made(&mut bed, (0..10).map(syn)), 0);
    assert_eq!(bed.drops(DropReason::NoSnatAddress), 10);
    bed.reload(&toml(POOL, ""));
    bed.connect(CONSUMER_A, socket(CLIENT, 4000));
}

#[test]
fn a_draining_snat_address_gets_no_new_flows_and_keeps_those_that_it_has() {
    let second = Ipv4Addr::new(10, 9, 0, 201);
    let both = "addresses = [\"10.9.0.200\", \"10.9.0.201\"]";
    let mut bed = Bed::from_toml(2, &toml(both, ""), 4096);
    let ends: Vec<_> = (0..40).map(|at| bed.connect(CONSUMER_A, socket(CLIENT, 4000 + at))).collect();
    let used: HashSet<_> = ends.iter().map(|(snat, _)| *snat.ip()).collect();
    assert_eq!(used, HashSet::from([SNAT, second]));
    bed.reload(&toml(&format!("{both}\ndraining = [\"10.9.0.201\"]"), ""));
    for (snat, target) in &ends {
        bed.one(PROVIDER, &tcp(PROVIDER, *target, *snat, Flags::ACK, 5001, 1001, b"r"));
    }
    for at in 0..40 {
        let (snat, _) = bed.connect(CONSUMER_A, socket(CLIENT, 5000 + at));
        assert_eq!(*snat.ip(), SNAT);
    }
    // It is still the gateway's: what belongs to no flow is unsolicited there, not somebody else's.
    let stray = udp(PROVIDER, TARGET, socket(second, 9), b"x");
    bed.none(PROVIDER, &stray, DropReason::Unsolicited);
    // All of them drained: no new flows.
    bed.reload(&toml(&format!("{both}\ndraining = [\"10.9.0.201\", \"10.9.0.200\"]"), ""));
    bed.none(CONSUMER_A, &syn(9000), DropReason::NoSnatAddress);
}

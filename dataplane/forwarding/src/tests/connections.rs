//! Twice NAT, the life of connections, tables that change.

use postern_tables::{Change, Declaration, Tables, Usable};
use postern_wire::{Offload, PortIndex};

use super::bed::*;
use crate::{DropReason, Verdict};
use std::net::{Ipv4Addr, SocketAddrV4};

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);
const DNS: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 53);

#[test]
fn a_tcp_connection_is_translated_at_both_ends_and_back() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 12345);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    assert_eq!(*snat.ip(), SNAT);
    assert!(snat.port() >= 1024);
    assert_eq!(target, TARGET);
    let request = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"GET /"));
    assert_eq!((request.port, request.source(), request.destination()), (PROVIDER, snat, target));
    assert_eq!(request.bytes[..6], station(*target.ip()).0);
    assert_eq!(&request.bytes[54..], b"GET /");
    assert_eq!(request.bytes[22], 63, "the time to live goes down by one");
    let answer = bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1006, b"200 OK"));
    assert_eq!((answer.port, answer.source(), answer.destination()), (CONSUMER_A, WEB, client));
    assert_eq!(&answer.bytes[54..], b"200 OK");
    let endpoint = &bed.workers[0].counters().endpoints[0];
    assert_eq!((endpoint.packets_forward.get(), endpoint.packets_reverse.get()), (3, 2));
    assert_eq!((endpoint.flows.get(), endpoint.flows_new.get()), (1, 1));
}

#[test]
fn two_consumers_with_the_same_address_and_port_are_kept_apart() {
    for workers in [1, 3] {
        let mut bed = Bed::with(workers, POOL, "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n");
        let client = socket(CLIENT, 5555);
        let query_a = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"a"));
        let query_b = bed.one(CONSUMER_B, &udp(CONSUMER_B, client, DNS, b"b"));
        assert_ne!(query_a.source(), query_b.source());
        let answer_b = bed.one(PROVIDER, &udp(PROVIDER, TARGET, query_b.source(), b"to b"));
        let answer_a = bed.one(PROVIDER, &udp(PROVIDER, TARGET, query_a.source(), b"to a"));
        assert_eq!((answer_a.port, answer_b.port), (CONSUMER_A, CONSUMER_B));
        assert_eq!((answer_a.destination(), answer_b.destination()), (client, client));
        assert_eq!((&answer_a.bytes[42..], &answer_b.bytes[42..]), (&b"to a"[..], &b"to b"[..]));
    }
}

#[test]
fn nothing_that_no_consumer_has_opened_passes_from_the_provider() {
    let mut bed = Bed::new();
    let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 7), DNS, b"q"));
    let snat = query.source();
    let other_port = socket(SNAT, if snat.port() == 2000 { 2001 } else { 2000 });
    bed.none(PROVIDER, &udp(PROVIDER, TARGET, other_port, b"x"), DropReason::Unsolicited);
    bed.none(PROVIDER, &udp(PROVIDER, socket(*TARGET.ip(), 9999), snat, b"x"), DropReason::Unsolicited);
    bed.none(PROVIDER, &udp(PROVIDER, socket(Ipv4Addr::new(10, 9, 0, 77), 8080), snat, b"x"), DropReason::Unsolicited);
    bed.none(PROVIDER, &tcp(PROVIDER, TARGET, other_port, Flags::SYN, 1, 0, b""), DropReason::Unsolicited);
    bed.none(PROVIDER, &udp(PROVIDER, TARGET, socket(Ipv4Addr::new(10, 9, 0, 3), 2000), b"x"), DropReason::NotLocal);
    assert_eq!(bed.total(|counters| counters.flows.get()), 1);
}

#[test]
fn a_port_without_listener_and_a_foreign_protocol_are_refused() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 7);
    bed.none(CONSUMER_A, &tcp(CONSUMER_A, client, socket(ENDPOINT, 81), Flags::SYN, 1, 0, b""), DropReason::NoListener);
    bed.none(CONSUMER_A, &udp(CONSUMER_A, client, WEB, b"x"), DropReason::NoListener);
    let mut gre = udp(CONSUMER_A, client, DNS, b"x");
    gre[23] = 47;
    gre[24..26].fill(0);
    let sum = postern_wire::checksum::checksum(&gre[14..34], 0);
    gre[24..26].copy_from_slice(&sum.to_le_bytes());
    bed.none(CONSUMER_A, &gre, DropReason::Protocol);
    assert_eq!(bed.workers[0].counters().endpoints[0].drops.get(), 3);
}

#[test]
fn a_closed_connection_lingers_for_retransmissions_and_then_frees_its_port() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::FIN, 1001, 5001, b""));
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1002, b""));
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 1002, 5002, b""));
    bed.wait_seconds(3);
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1002, b""));
    bed.wait_seconds(6);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    let sent = bed.receive(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1002, b""));
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::Unsolicited));
    // The registered target is told that the connection is gone.
    assert!(sent.len() == 1 && sent[0].tcp().rst && sent[0].port == PROVIDER);
}

#[test]
fn a_reset_ends_the_flow_unless_data_follows_and_a_new_syn_opens_anew() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::RST, 1001, 0, b""));
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, b"still here"));
    bed.wait_seconds(30);
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5011, 1001, b"and here"));
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::RST_ACK, 5019, 1001, b""));
    let again = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 9000, 0, b""));
    assert_ne!(again.source(), snat, "the old port rests");
    assert_eq!(bed.total(|counters| counters.flows.get()), 1);
    bed.wait_seconds(40);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    let counters = &bed.workers[0].counters().endpoints[0];
    assert_eq!((counters.client_resets.get(), counters.target_resets.get()), (1, 1));
}

#[test]
fn an_unanswered_syn_lives_thirty_seconds_whatever_is_retransmitted() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let syn = tcp(CONSUMER_A, client, WEB, Flags::SYN, 1, 0, b"");
    let first = bed.one(CONSUMER_A, &syn);
    bed.wait_seconds(20);
    assert_eq!(bed.one(CONSUMER_A, &syn).source(), first.source());
    assert_eq!(bed.total(|counters| counters.half_open.get()), 1);
    bed.wait_seconds(12);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    assert_eq!(bed.total(|counters| counters.half_open.get()), 0);
}

#[test]
fn idle_connections_end_after_their_time_and_one_sided_traffic_keeps_both_halves() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
    for _ in 0..4 {
        bed.wait_seconds(100);
        bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
    }
    bed.one(PROVIDER, &udp(PROVIDER, TARGET, query.source(), b"late"));
    bed.wait_seconds(121);
    bed.none(PROVIDER, &udp(PROVIDER, TARGET, query.source(), b"too late"), DropReason::Unsolicited);

    let (snat, target) = bed.connect(CONSUMER_A, socket(CLIENT, 2));
    bed.wait_seconds(349);
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, b"x"));
    bed.wait_seconds(352);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn expiry_is_exact_even_before_housekeeping_has_come_by() {
    let mut bed = Bed::new();
    let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"q"));
    bed.now = bed.now.plus_milliseconds(120_001);
    bed.none(PROVIDER, &udp(PROVIDER, TARGET, query.source(), b"late"), DropReason::Unsolicited);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn a_segment_in_the_middle_of_nothing_is_reset_with_numbers_that_its_sender_accepts() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let sent = bed.receive(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 77, 4242, b"data"));
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::NoFlow));
    let reset = sent[0].tcp();
    assert!(reset.rst && reset.sequence_number == 4242);
    assert_eq!((sent[0].source(), sent[0].destination(), sent[0].port), (WEB, client, CONSUMER_A));
    bed.none(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::RST, 77, 0, b""), DropReason::NoFlow);
    let answers = (0..5000)
        .filter(|_| !bed.receive(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 77, 1, b"")).is_empty())
        .count();
    assert!((1..=200).contains(&answers), "resets are limited: {answers}");
}

#[test]
fn the_mss_is_lowered_to_what_fits_and_never_raised() {
    let mut bed = Bed::from_toml(
        1,
        &CONFIGURATION
            .replace("{pool}", POOL)
            .replace("{targets}", "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n")
            .replace("protocol = \"tcp\"\nport = 80", "protocol = \"tcp\"\nport = 80\nmss = 1000"),
        1024,
    );
    let syn = bed.one(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 1), WEB, Flags::SYN, 1, 0, b""));
    assert_eq!(syn.bytes[54..58], [2, 4, 3, 232]);
    let syn_ack = bed.one(PROVIDER, &tcp(PROVIDER, TARGET, syn.source(), Flags::SYN_ACK, 1, 2, b""));
    assert_eq!(syn_ack.bytes[54..58], [2, 4, 3, 232]);
    let mut plain = Bed::new();
    let syn = plain.one(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 1), WEB, Flags::SYN, 1, 0, b""));
    assert_eq!(syn.bytes[54..58], [2, 4, 5, 180], "1460 fits an MTU of 1500");
}

#[test]
fn frames_wait_for_a_neighbour_within_bounds_and_leave_when_it_answers() {
    let mut bed = Bed::new();
    bed.neighbours_answer = false;
    let query = |port| udp(CONSUMER_A, socket(CLIENT, port), DNS, b"q");
    for port in 1..=20 {
        assert!(bed.receive(CONSUMER_A, &query(port)).is_empty());
    }
    assert_eq!(bed.total(|counters| counters.held.get()), 16);
    assert_eq!(bed.drops(DropReason::HoldFull), 4);
    let request = bed.requests[0];
    assert_eq!(request.address, *TARGET.ip());
    bed.answer(request, Some(station(*TARGET.ip())));
    bed.assert_balanced();
    let sent = std::mem::take(&mut bed.sent);
    assert_eq!(sent.len(), 16);
    assert!(sent.iter().all(|sent| sent.destination() == TARGET && sent.bytes[..6] == station(*TARGET.ip()).0));
    // A neighbour that goes away takes the waiting frames with it.
    bed.answer(request, None);
    assert!(bed.receive(CONSUMER_A, &query(1)).is_empty());
    bed.answer(request, None);
    assert_eq!(bed.drops(DropReason::NeighbourUnreachable), 1);
    assert!(bed.receive(CONSUMER_A, &query(1)).is_empty());
    bed.wait_seconds(6);
    assert_eq!(bed.drops(DropReason::NeighbourUnreachable), 2);
    bed.assert_balanced();
}

#[test]
fn a_changed_mac_address_touches_no_flow() {
    let mut bed = Bed::new();
    let (snat, _) = bed.connect(CONSUMER_A, socket(CLIENT, 1));
    let request = bed.requests[0];
    let moved = postern_wire::MacAddress([2, 9, 9, 9, 9, 9]);
    bed.answer(request, Some(moved));
    let sent = bed.one(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 1), WEB, Flags::ACK, 1001, 5001, b"x"));
    assert_eq!((sent.source(), &sent.bytes[..6]), (snat, &moved.0[..]));
}

#[test]
fn replies_go_by_route_or_back_to_where_the_request_came_from() {
    let behind_router = socket(Ipv4Addr::new(10, 64, 5, 5), 9);
    let configuration = CONFIGURATION
        .replace("{pool}", POOL)
        .replace("{targets}", "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n");
    let mut bed = Bed::from_toml(1, &configuration, 1024);
    let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, behind_router, DNS, b"q"));
    let answer = bed.receive(PROVIDER, &udp(PROVIDER, TARGET, query.source(), b"a"));
    // The first reply waits for the router's address, and comes out when it is known.
    assert_eq!(answer[0].bytes[..6], station(Ipv4Addr::new(10, 0, 0, 1)).0);

    let last_hop = configuration.replace("port = \"a\"\nprefixes", "port = \"a\"\nreturn = \"last_hop\"\nprefixes");
    let mut bed = Bed::from_toml(1, &last_hop, 1024);
    let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, behind_router, DNS, b"q"));
    let answer = bed.one(PROVIDER, &udp(PROVIDER, TARGET, query.source(), b"a"));
    assert_eq!(answer.bytes[..6], station(*behind_router.ip()).0);
}

#[test]
fn frames_for_another_station_or_from_impossible_sources_are_dropped() {
    let mut bed = Bed::new();
    let mut foreign = udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"x");
    foreign[..6].copy_from_slice(&[2, 8, 8, 8, 8, 8]);
    bed.none(CONSUMER_A, &foreign, DropReason::ForeignMac);
    for source in
        [Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::UNSPECIFIED, ENDPOINT]
    {
        let mut bytes = udp(CONSUMER_A, socket(source, 1), DNS, b"x");
        bytes[6..12].copy_from_slice(&[2, 1, 1, 1, 1, 1]);
        bed.none(CONSUMER_A, &bytes, DropReason::BadSource);
    }
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn padding_is_not_forwarded() {
    let mut bed = Bed::new();
    let mut bytes = udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"x");
    bytes.resize(60, 0xee);
    let sent = bed.one(CONSUMER_A, &bytes);
    assert_eq!(sent.bytes.len(), 43);
}

#[test]
fn a_removed_endpoint_cuts_its_flows_and_a_changed_table_moves_no_flow() {
    let two = "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n[[target_group.target]]\naddress = \"10.9.0.12\"\nport = 8080\n";
    let configuration = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", two);
    let mut bed = Bed::from_toml(1, &configuration, 4096);
    let flows: Vec<_> = (0..200).map(|at| (at, bed.connect(CONSUMER_A, socket(CLIENT, 1000 + at)))).collect();
    let first = flows.iter().filter(|(_, (_, target))| *target == TARGET).count();
    assert!((60..140).contains(&first), "{first}");
    // The first target leaves the group: its flows stay.
    bed.reload(&configuration.replace("[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n", ""));
    for (at, (snat, target)) in &flows {
        let sent = bed.one(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 1000 + at), WEB, Flags::ACK, 1001, 5001, b"x"));
        assert_eq!((sent.source(), sent.destination()), (*snat, *target));
    }
    for at in 0..50 {
        assert_ne!(bed.connect(CONSUMER_A, socket(CLIENT, 3000 + at)).1, TARGET);
    }
    let without = configuration.replace(
        "[[endpoint]]\nid = \"vpce-a\"\nvpc = \"vpc-a\"\nservice = \"vpce-svc-web\"\naddresses = [\"10.0.0.100\"]\n",
        "",
    );
    bed.reload(&without);
    let data = tcp(CONSUMER_A, socket(CLIENT, 1000), WEB, Flags::ACK, 1001, 5001, b"x");
    bed.none(CONSUMER_A, &data, DropReason::AccessWithdrawn);
    let (snat, target) = flows[1].1;
    bed.none(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, b"x"), DropReason::AccessWithdrawn);
    bed.none(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, 9), WEB, Flags::SYN, 1, 0, b""), DropReason::NotLocal);
}

#[test]
fn an_endpoint_that_comes_back_for_another_service_cuts_the_flows_of_the_first() {
    let one = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE_TARGET);
    let endpoint =
        "[[endpoint]]\nid = \"vpce-a\"\nvpc = \"vpc-a\"\nservice = \"vpce-svc-web\"\naddresses = [\"10.0.0.100\"]\n";
    let other = "[[target_group]]\nname = \"other\"\nvpc = \"vpc-p\"\nsnat_pool = \"pool\"\n\
        [[target_group.target]]\naddress = \"10.9.0.99\"\nport = 8080\n\
        [[load_balancer]]\nname = \"other\"\n\
        [[load_balancer.listener]]\nprotocol = \"tcp\"\nport = 80\ntarget_groups = [{ name = \"other\" }]\n\
        [[service]]\nid = \"vpce-svc-other\"\nload_balancers = [\"other\"]\n";
    let client = socket(CLIENT, 1000);
    let data = tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"x");
    // The same service once more: the flow goes on, to the same target.
    let mut bed = Bed::from_toml(1, &one, 4096);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.reload(&one.replace(endpoint, ""));
    bed.reload(&one);
    let sent = bed.one(CONSUMER_A, &data);
    assert_eq!((sent.source(), sent.destination()), (snat, target));
    // Another service, with a listener on the same port: its consumer must not reach the first one's target.
    bed.reload(&one.replace(endpoint, ""));
    let changed = one.replace(endpoint, &endpoint.replace("vpce-svc-web", "vpce-svc-other")) + other;
    bed.reload(&changed);
    bed.none(CONSUMER_A, &data, DropReason::AccessWithdrawn);
    bed.none(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN_ACK, 5001, 1001, b""), DropReason::Unsolicited);
    assert_eq!(bed.connect(CONSUMER_A, socket(CLIENT, 1001)).1, socket(Ipv4Addr::new(10, 9, 0, 99), 8080));
}

#[test]
fn changed_tables_hold_for_the_next_flow_on_a_way_that_was_known() {
    let configuration = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE_TARGET);
    let mut bed = Bed::from_toml(1, &configuration, 4096);
    bed.connect(CONSUMER_A, socket(CLIENT, 1));
    bed.reload(
        &configuration.replace("protocol = \"tcp\"\nport = 80\n", "protocol = \"tcp\"\nport = 80\nidle_seconds = 77\n"),
    );
    bed.connect(CONSUMER_A, socket(CLIENT, 2));
    let idle_seconds = [0, 1].map(|flow| bed.workers[0].table.record(flow).listener_idle_seconds);
    assert_eq!(idle_seconds, [350, 77]);
}

#[test]
fn flows_of_an_unhealthy_target_end_with_a_rst_and_those_of_others_and_of_targets_that_left_go_on() {
    let target = |last: u8| format!("[[target_group.target]]\naddress = \"10.9.0.{last}\"\nport = 8080\n");
    let with = |lasts: &[u8]| {
        let targets: String = lasts.iter().map(|last| target(*last)).collect();
        let text = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", &targets);
        Declaration::from_toml(&text, "test.toml").unwrap()
    };
    let mut tables = Tables::new(&with(&[11, 12, 13]).check().unwrap());
    let mut bed = Bed::new();
    bed.apply(tables.snapshot().clone());
    let flows: Vec<_> =
        (0..60).map(|at| (socket(CLIENT, 1000 + at), bed.connect(CONSUMER_A, socket(CLIENT, 1000 + at)))).collect();
    let asked = |bed: &mut Bed, at: u16| {
        bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 2000 + at), DNS, b"q")).destination()
    };
    let queries: Vec<_> = (0..60).map(|at| asked(&mut bed, at)).collect();
    bed.apply(tables.update(Change::full(&with(&[12, 13]))).unwrap());
    let unhealthy = Ipv4Addr::new(10, 9, 0, 12);
    bed.apply(tables.set_health(&[("web".to_owned(), unhealthy.into(), 8080, Usable::CutFlows)]).unwrap());
    let mut seen = std::collections::BTreeMap::new();
    for (client, (snat, target)) in flows {
        *seen.entry(target.ip().octets()[3]).or_insert(0) += 1;
        let data = tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"x");
        if *target.ip() == unhealthy {
            let sent = bed.receive(CONSUMER_A, &data);
            assert_eq!(bed.verdict, Verdict::Drop(DropReason::TargetUnhealthy));
            let [reset, onward] = &sent[..] else { panic!("{sent:?}") };
            assert_eq!((reset.source(), reset.destination(), reset.tcp().rst), (WEB, client, true));
            assert_eq!((onward.source(), onward.destination(), onward.tcp().rst), (snat, target, true));
            let answer = tcp(PROVIDER, target, snat, Flags::SYN_ACK, 5001, 1001, b"x");
            bed.none(PROVIDER, &answer, DropReason::Unsolicited);
        } else {
            let sent = bed.one(CONSUMER_A, &data);
            assert_eq!((sent.source(), sent.destination()), (snat, target));
        }
    }
    assert!(seen.len() == 3 && seen.values().all(|count| *count > 5), "{seen:?}");
    // Datagrams and new connections of the same tuple lose nothing: another target gets them.
    for (at, before) in (0..).zip(queries) {
        let now = asked(&mut bed, at);
        assert_eq!(now.ip().octets()[3], if *before.ip() == unhealthy { 13 } else { before.ip().octets()[3] });
    }
    for at in 0..20 {
        assert_eq!(bed.connect(CONSUMER_A, socket(CLIENT, 3000 + at)).1.ip().octets()[3], 13);
    }
}

#[test]
fn flows_of_a_target_that_was_taken_out_go_on_for_the_delay_and_then_end_for_both_sides_if_the_group_says_so() {
    for ends in [true, false] {
        let target = |last: u8| format!("[[target_group.target]]\naddress = \"10.9.0.{last}\"\nport = 8080\n");
        let with = |lasts: &[u8]| {
            let targets: String = lasts.iter().map(|last| target(*last)).collect();
            let text = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", &targets);
            let mut declaration = Declaration::from_toml(&text, "test.toml").unwrap();
            declaration.target_groups.iter_mut().for_each(|group| group.deregistration_ends_flows = Some(ends));
            declaration
        };
        let mut tables = Tables::new(&with(&[11]).check().unwrap());
        let mut bed = Bed::new();
        bed.apply(tables.snapshot().clone());
        let flows = [1, 2].map(|port| (socket(CLIENT, port), bed.connect(CONSUMER_A, socket(CLIENT, port))));
        bed.apply(tables.update(Change::full(&with(&[12]))).unwrap());
        let data = |client| tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"x");
        let answer = |target, snat| tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1002, b"y");
        for (client, (_, target)) in flows {
            assert_eq!(bed.one(CONSUMER_A, &data(client)).destination(), target, "the delay is not over");
        }
        let left = Ipv4Addr::new(10, 9, 0, 11);
        if let Some(snapshot) = tables.set_health(&[("web".to_owned(), left.into(), 8080, Usable::CutFlows)]) {
            bed.apply(snapshot);
        }
        let [(client, (snat, target)), (other_client, (other_snat, other_target))] = flows;
        if !ends {
            assert_eq!(bed.one(CONSUMER_A, &data(client)).destination(), target);
            assert_eq!(bed.one(PROVIDER, &answer(other_target, other_snat)).destination(), other_client);
            continue;
        }
        // Whoever sends first: both are told, with numbers that they accept.
        let sent = bed.receive(CONSUMER_A, &data(client));
        assert_eq!(bed.verdict, Verdict::Drop(DropReason::TargetDeregistered));
        let told: Vec<_> = sent.iter().map(|sent| (sent.source(), sent.destination())).collect();
        assert_eq!(told, [(WEB, client), (snat, target)]);
        let numbers: Vec<_> = sent.iter().map(|sent| (sent.tcp().rst, sent.tcp().sequence_number)).collect();
        assert_eq!(numbers, [(true, 5001), (true, 1001)]);
        let sent = bed.receive(PROVIDER, &answer(other_target, other_snat));
        assert_eq!(bed.verdict, Verdict::Drop(DropReason::TargetDeregistered));
        let told: Vec<_> = sent.iter().map(|sent| (sent.source(), sent.destination())).collect();
        assert_eq!(told, [(other_snat, other_target), (WEB, other_client)]);
        let numbers: Vec<_> = sent.iter().map(|sent| (sent.tcp().rst, sent.tcp().sequence_number)).collect();
        assert_eq!(numbers, [(true, 1002), (true, 5001)]);
        assert_eq!(bed.workers[0].counters().flows.get(), 0);
        assert_eq!(bed.connect(CONSUMER_A, client).1.ip().octets()[3], 12);
    }
}

#[test]
fn an_unrelated_change_of_tables_lets_flows_go_on() {
    let mut bed = Bed::new();
    let (snat, _) = bed.connect(CONSUMER_B, socket(CLIENT, 1));
    let configuration = CONFIGURATION
        .replace("{pool}", POOL)
        .replace("{targets}", "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n");
    bed.reload(&configuration.replace(
        "[[endpoint]]\nid = \"vpce-a\"\nvpc = \"vpc-a\"\nservice = \"vpce-svc-web\"\naddresses = [\"10.0.0.100\"]\n",
        "",
    ));
    let sent = bed.one(CONSUMER_B, &tcp(CONSUMER_B, socket(CLIENT, 1), WEB, Flags::ACK, 1001, 5001, b"x"));
    assert_eq!(sent.source(), snat);
}

#[test]
fn a_super_frame_leaves_whole_and_counts_as_its_segments() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    bed.connect(CONSUMER_A, client);
    let bytes = tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &[7; 10_000]);
    let offload = Offload {
        flags: Offload::NEEDS_CHECKSUM,
        segmentation_type: Offload::TCP_V4,
        header_length: 54,
        segment_size: 1460,
        checksum_start: 34,
        checksum_offset: 16,
    };
    let before = bed.workers[0].counters().endpoints[0].packets_forward.get();
    let bytes_before = bed.workers[0].counters().endpoints[0].bytes_forward.get();
    let sent = bed.receive_offloaded(CONSUMER_A, &bytes, offload);
    assert_eq!((sent.len(), sent[0].bytes.len(), sent[0].offload), (1, 10_054, offload));
    let endpoint = &bed.workers[0].counters().endpoints[0];
    assert_eq!(endpoint.packets_forward.get() - before, 7);
    assert_eq!(endpoint.bytes_forward.get() - bytes_before, 10_000 + 7 * 40);
}

#[test]
fn a_vlan_attachment_takes_and_gives_tagged_frames() {
    let configuration = CONFIGURATION
        .replace("{pool}", POOL)
        .replace("{targets}", "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n")
        .replace("port = \"b\"\n", "port = \"a\"\nvlan = 100\n");
    let mut bed = Bed::from_toml(1, &configuration, 1024);
    let untagged = udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"x");
    let mut tagged = untagged.clone();
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    let query_a = bed.one(CONSUMER_A, &untagged);
    let query_b = bed.one(CONSUMER_A, &tagged);
    assert_eq!(query_b.bytes[12..14], [8, 0]);
    assert_ne!(query_a.source(), query_b.source());
    let answer = bed.receive(PROVIDER, &udp(PROVIDER, TARGET, query_b.source(), b"y"));
    assert_eq!(answer[0].port, PortIndex(0));
    assert_eq!(answer[0].bytes[12..16], [0x81, 0, 0, 100]);
    // The device may have taken the tag out of the frame.
    bed.vlan = 100 | 5 << 13;
    let query_c = bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 2), DNS, b"x"));
    assert_eq!(query_c.bytes[12..14], [8, 0]);
    bed.vlan = postern_wire::frame::NO_VLAN;
    let mut stray = tagged;
    stray[15] = 101;
    bed.none(CONSUMER_A, &stray, DropReason::NoAttachment);
}

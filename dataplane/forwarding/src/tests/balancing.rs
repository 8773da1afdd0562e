//! What decides on a target beside the flow's hash: the port, the zone, and where a client was sent before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use postern_tables::{Declaration, compile};
use postern_wire::PortIndex;

use super::bed::*;
use crate::DropReason;

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);
/// Targets of the tests are 10.9.0.11 and those behind it.
const TARGETS: u8 = 10;

/// `lines` are one target's, in which `{}` is its number from 0 on.
fn targets(count: u8, lines: &str) -> String {
    let target = |at: u8| {
        let address = format!("[[target_group.target]]\naddress = \"10.9.0.{}\"\nport = 8080\n", 11 + at);
        address + &lines.replace("{}", &at.to_string()) + "\n"
    };
    (0..count).map(target).collect()
}

fn toml(targets: &str) -> String {
    CONFIGURATION.replace("{pool}", POOL).replace("{targets}", targets)
}

fn sticky(seconds: u32, count: u8) -> String {
    toml(&targets(count, "")).replacen(
        "snat_pool = \"pool\"",
        &format!("snat_pool = \"pool\"\nsticky_seconds = {seconds}"),
        1,
    )
}

/// The target of a new flow; `None` if it is dropped.
fn target_of(bed: &mut Bed, port: PortIndex, client: SocketAddrV4, to: SocketAddrV4) -> Option<SocketAddrV4> {
    let syn = tcp(port, client, to, Flags::SYN, 1000 + u32::from(client.port()), 0, b"");
    bed.receive(port, &syn).first().map(Sent::destination)
}

fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 110 + number)
}

#[test]
fn a_sticky_client_goes_to_one_target_whichever_worker_has_its_flows() {
    for workers in [1, 2, 4] {
        let mut bed = Bed::from_toml(workers, &sticky(60, TARGETS), 4096);
        let mut used = BTreeSet::new();
        for number in 0..40 {
            let flows =
                (4000..4008).map(|port| target_of(&mut bed, CONSUMER_A, socket(client(number), port), WEB).unwrap());
            let targets: BTreeSet<_> = flows.collect();
            assert_eq!(targets.len(), 1, "client {number} with {workers} workers");
            used.extend(targets);
        }
        assert!(used.len() > TARGETS as usize / 2, "clients are spread: {used:?}");
    }
}

#[test]
fn a_sticky_client_keeps_its_target_when_others_come_and_when_its_time_is_over_it_does_not() {
    let mut bed = Bed::from_toml(2, &sticky(60, 2), 8192);
    let ask = |bed: &mut Bed, port: u16| -> Vec<_> {
        (0..60).map(|number| target_of(bed, CONSUMER_A, socket(client(number), port), WEB).unwrap()).collect()
    };
    let before = ask(&mut bed, 4000);
    bed.reload(&sticky(60, TARGETS));
    bed.wait_seconds(40);
    assert_eq!(ask(&mut bed, 4001), before);
    bed.wait_seconds(40);
    assert_eq!(ask(&mut bed, 4002), before, "each flow begins the time anew");
    bed.wait_seconds(65);
    let after = ask(&mut bed, 4003);
    assert_ne!(after, before);
    // A target that is taken out is left at once, and only its clients move.
    bed.reload(&sticky(60, TARGETS - 1));
    let gone = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 10 + TARGETS), 8080);
    for (now, was) in ask(&mut bed, 4004).into_iter().zip(after) {
        assert_eq!(now == was, was != gone, "{was} -> {now}");
    }
}

#[test]
fn without_stickiness_flows_of_a_client_are_spread() {
    let mut bed = Bed::from_toml(1, &toml(&targets(TARGETS, "")), 4096);
    let flows = (4000..4100).map(|port| target_of(&mut bed, CONSUMER_A, socket(CLIENT, port), WEB).unwrap());
    assert!(flows.collect::<BTreeSet<_>>().len() > 5);
}

fn mapped(count: u8, lines: &str) -> String {
    let text = toml(&targets(count, lines));
    text.replacen("protocol = \"tcp\"\nport = 80\n", "protocol = \"tcp\"\nports = \"9092-9191\"\n", 1)
}

#[test]
fn port_mapping_leads_each_port_of_a_range_to_its_target_and_no_other() {
    for workers in [1, 3] {
        let mut bed = Bed::from_toml(workers, &mapped(TARGETS, "mapped_port = 91{}0"), 4096);
        for at in 0..TARGETS {
            for number in 0..4 {
                let to = SocketAddrV4::new(ENDPOINT, 9100 + 10 * u16::from(at));
                let target = target_of(&mut bed, CONSUMER_A, socket(CLIENT, 4000 + number), to);
                assert_eq!(target, Some(SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 11 + at), 8080)));
            }
        }
        for (port, reason) in [
            (9101, DropReason::NoTarget),
            (9092, DropReason::NoTarget),
            (9191, DropReason::NoTarget),
            (9091, DropReason::NoListener),
            (9192, DropReason::NoListener),
            (80, DropReason::NoListener),
        ] {
            let before = bed.drops(reason);
            assert_eq!(target_of(&mut bed, CONSUMER_A, socket(CLIENT, 4000), SocketAddrV4::new(ENDPOINT, port)), None);
            assert_eq!(bed.drops(reason), before + 1, "port {port}");
        }
    }
}

#[test]
fn a_changed_port_mapping_moves_new_flows_and_no_live_one_and_a_target_without_weight_gets_none() {
    let mut bed = Bed::from_toml(1, &mapped(2, "mapped_port = 910{}"), 4096);
    let to = SocketAddrV4::new(ENDPOINT, 9100);
    let port = socket(CLIENT, 4000);
    let first = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 11), 8080);
    assert_eq!(target_of(&mut bed, CONSUMER_A, port, to), Some(first));
    let swapped = mapped(2, "mapped_port = 910{}").replace("mapped_port = 9100", "mapped_port = 9199");
    let swapped = swapped.replace("mapped_port = 9101", "mapped_port = 9100");
    bed.reload(&swapped);
    let again = tcp(CONSUMER_A, port, to, Flags::SYN, 1000 + u32::from(port.port()), 0, b"");
    assert_eq!(bed.one(CONSUMER_A, &again).destination(), first, "a live flow keeps its target");
    let second = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 12), 8080);
    assert_eq!(target_of(&mut bed, CONSUMER_A, socket(CLIENT, 4001), to), Some(second));
    bed.reload(&swapped.replace("mapped_port = 9100", "mapped_port = 9100\nweight = 0"));
    assert_eq!(target_of(&mut bed, CONSUMER_A, socket(CLIENT, 4002), to), None);
    assert_eq!(bed.drops(DropReason::NoTarget), 1);
}

/// Targets in zones by turns; consumer A's endpoint in zone `a`, B's in none.
fn zoned(balancer: &str) -> String {
    let lines: String = (0..TARGETS)
        .map(|at| {
            let zone = ["a", "b", "c"][usize::from(at) % 3];
            format!("[[target_group.target]]\naddress = \"10.9.0.{}\"\nport = 8080\nzone = \"{zone}\"\n", 11 + at)
        })
        .collect();
    toml(&lines).replacen("addresses = [\"10.0.0.100\"]", "addresses = [\"10.0.0.100\"]\nzones = [\"a\"]", 1).replacen(
        "name = \"lb\"",
        &format!("name = \"lb\"\n{balancer}"),
        1,
    )
}

/// How many flows each zone's targets get.
fn by_zone(bed: &mut Bed, port: PortIndex) -> BTreeMap<usize, usize> {
    let mut zones = BTreeMap::new();
    for number in 0..300 {
        let target = target_of(bed, port, socket(CLIENT, 4000 + number), WEB).unwrap();
        *zones.entry(usize::from(target.ip().octets()[3] - 11) % 3).or_default() += 1;
    }
    zones
}

#[test]
fn an_endpoint_address_with_a_zone_has_the_targets_of_its_zone_unless_its_load_balancer_crosses_zones() {
    let mut bed = Bed::from_toml(2, &zoned(""), 8192);
    assert_eq!(by_zone(&mut bed, CONSUMER_A).into_iter().collect::<Vec<_>>(), [(0, 300)]);
    assert_eq!(by_zone(&mut bed, CONSUMER_B).len(), 3, "an address without a zone has all");
    let mut bed = Bed::from_toml(2, &zoned("cross_zone = true"), 8192);
    assert_eq!(by_zone(&mut bed, CONSUMER_A).len(), 3);
}

#[test]
fn where_no_target_of_the_zone_may_have_flows_those_of_other_zones_get_them_and_no_live_flow_moves() {
    let mut bed = Bed::from_toml(1, &zoned(""), 8192);
    let flow = socket(CLIENT, 3999);
    let before = target_of(&mut bed, CONSUMER_A, flow, WEB).unwrap();
    let without = zoned("").replace("zone = \"a\"\n", "zone = \"a\"\nweight = 0\n");
    bed.reload(&without);
    let zones = by_zone(&mut bed, CONSUMER_A);
    assert_eq!(zones.keys().copied().collect::<Vec<_>>(), [1, 2]);
    let again = tcp(CONSUMER_A, flow, WEB, Flags::SYN, 1000 + 3999, 0, b"");
    assert_eq!(bed.one(CONSUMER_A, &again).destination(), before);
    // Switched on the way, tables are there at once.
    bed.reload(&zoned("cross_zone = true"));
    bed.reload(&zoned(""));
    let snapshot = Declaration::from_toml(&zoned(""), "test.toml").unwrap().check().unwrap();
    bed.apply(Arc::new(compile(&snapshot, Some(&bed.snapshot))));
    let target = target_of(&mut bed, CONSUMER_A, socket(CLIENT, 5000), WEB).unwrap();
    assert_eq!((target.ip().octets()[3] - 11) % 3, 0);
}

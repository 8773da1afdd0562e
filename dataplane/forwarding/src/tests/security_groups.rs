//! Security groups: who may open a flow, and what becomes of flows whose rule is withdrawn.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use etherparse::PacketBuilder;
use postern_tables::{Change, Declaration, Resource, Tables};

use super::bed::*;
use crate::{DropReason, Verdict};

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);
const DNS: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 53);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

/// The gateway with security groups; endpoint `vpce-a` has `of_endpoint`, the load balancer the lines `of_balancer`.
fn toml(groups: &str, of_endpoint: &str, of_balancer: &str) -> String {
    let text = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE_TARGET);
    let text =
        text.replacen("addresses = [\"10.0.0.100\"]", &format!("addresses = [\"10.0.0.100\"]\n{of_endpoint}"), 1);
    text.replace("name = \"lb\"\n", &format!("name = \"lb\"\n{of_balancer}\n")) + groups
}

fn group(name: &str, more: &str, rules: &str) -> String {
    format!("\n[[security_group]]\nname = \"{name}\"\n{more}\nrules = [{rules}]\n")
}

/// Clients of 10.0.0.0/29 may reach the web port by TCP.
const NEAR: &str = "{ protocol = \"tcp\", ports = \"80\", source = \"10.0.0.0/29\" }";
const OF_ENDPOINT: &str = "security_groups = [\"near\"]";

fn echo(client: Ipv4Addr) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(station(client).0, port_mac(CONSUMER_A).0)
        .ipv4(client.octets(), ENDPOINT.octets(), 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut bytes, b"ping")
        .unwrap();
    bytes
}

fn syn(client: SocketAddrV4) -> Vec<u8> {
    tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b"")
}

#[test]
fn a_security_group_lets_in_what_a_rule_allows_and_replies_pass() {
    for workers in [1, 3] {
        let mut bed = Bed::from_toml(workers, &toml(&group("near", "", NEAR), OF_ENDPOINT, ""), 1024);
        bed.connect(CONSUMER_A, socket(CLIENT, 4000));
        bed.none(CONSUMER_A, &syn(socket(STRANGER, 4000)), DropReason::SecurityGroup);
        bed.none(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 4000), DNS, b"q"), DropReason::SecurityGroup);
        assert_eq!(bed.total(|counters| counters.flows.get()), 1, "what is blocked makes no state");
        // Counted under the endpoint and the group.
        let pairs: u64 = bed
            .workers
            .iter()
            .flat_map(|worker| worker.counters().drop_pairs.iter().collect::<Vec<_>>())
            .filter(|(endpoint, reason, _)| (*endpoint, *reason) == (0, DropReason::SecurityGroup))
            .map(|(_, _, count)| count)
            .sum();
        assert_eq!(pairs, 2);
        assert_eq!(bed.total(|counters| counters.security_groups[0].get()), 2);
        // The other endpoint has no groups, and all may connect.
        bed.connect(CONSUMER_B, socket(STRANGER, 4000));
    }
}

#[test]
fn a_client_that_a_security_group_does_not_let_in_learns_nothing() {
    let mut bed = Bed::from_toml(1, &toml(&group("near", "", NEAR), OF_ENDPOINT, ""), 1024);
    let ack = |client| tcp(CONSUMER_A, socket(client, 4000), WEB, Flags::ACK, 1, 1, b"");
    assert_eq!(bed.receive(CONSUMER_A, &ack(CLIENT)).len(), 1, "a RST tells that there is no connection");
    bed.none(CONSUMER_A, &ack(STRANGER), DropReason::SecurityGroup);
    let mut last_hop = udp(CONSUMER_A, socket(STRANGER, 1), DNS, b"q");
    last_hop[22] = 1;
    last_hop[24..26].fill(0);
    let sum = postern_wire::checksum::checksum(&last_hop[14..34], 0);
    last_hop[24..26].copy_from_slice(&sum.to_le_bytes());
    bed.none(CONSUMER_A, &last_hop, DropReason::SecurityGroup);
}

#[test]
fn a_flood_that_the_security_group_blocks_costs_no_half_open_flow_its_place() {
    let mut bed = Bed::from_toml(1, &toml(&group("near", "", NEAR), OF_ENDPOINT, ""), 1024);
    let half_open = |bed: &Bed| bed.total(|counters| counters.half_open.get());
    // As many as one endpoint may have.
    for port in 1..=64 {
        bed.receive(CONSUMER_A, &syn(socket(CLIENT, port)));
    }
    assert_eq!(half_open(&bed), 64);
    for port in 1..=100 {
        bed.none(CONSUMER_A, &syn(socket(STRANGER, port)), DropReason::SecurityGroup);
    }
    assert_eq!((half_open(&bed), bed.total(|counters| counters.half_open_evicted.get())), (64, 0));
    // One that may come in takes the oldest's.
    bed.receive(CONSUMER_A, &syn(socket(CLIENT, 65)));
    assert_eq!((half_open(&bed), bed.total(|counters| counters.half_open_evicted.get())), (64, 1));
}

#[test]
fn echo_to_an_endpoint_obeys_its_security_group() {
    let rules = format!("{NEAR}, {{ protocol = \"icmp\", source = \"10.0.0.9/32\" }}");
    let mut bed = Bed::from_toml(1, &toml(&group("near", "", &rules), OF_ENDPOINT, ""), 1024);
    bed.none(CONSUMER_A, &echo(CLIENT), DropReason::SecurityGroup);
    bed.one(CONSUMER_A, &echo(STRANGER));
    assert!(matches!(bed.verdict, Verdict::Reply(_)));
}

#[test]
fn a_security_group_of_a_load_balancer_sees_the_clients_own_address_unless_private_links_are_left_out() {
    let of_balancer = "security_groups = [\"near\"]";
    let mut bed = Bed::from_toml(1, &toml(&group("near", "", NEAR), "", of_balancer), 1024);
    bed.connect(CONSUMER_A, socket(CLIENT, 4000));
    bed.none(CONSUMER_A, &syn(socket(STRANGER, 4000)), DropReason::SecurityGroup);
    // Both endpoints stand for it.
    let syn_of_b = tcp(CONSUMER_B, socket(STRANGER, 4000), WEB, Flags::SYN, 1, 0, b"");
    bed.none(CONSUMER_B, &syn_of_b, DropReason::SecurityGroup);
    // An echo is the endpoint's own matter.
    bed.one(CONSUMER_A, &echo(STRANGER));
    let left_out = format!("{of_balancer}\nenforce_on_private_link = false");
    let mut bed = Bed::from_toml(1, &toml(&group("near", "", NEAR), "", &left_out), 1024);
    bed.connect(CONSUMER_A, socket(STRANGER, 4000));
}

#[test]
fn endpoint_and_load_balancer_must_both_let_a_client_in_and_of_several_security_groups_one_is_enough() {
    let other = "{ source = \"10.0.0.8/29\" }";
    let groups = group("near", "", NEAR) + &group("other", "", other);
    let text = toml(&groups, "security_groups = [\"near\", \"other\"]", "security_groups = [\"other\"]");
    let mut bed = Bed::from_toml(1, &text, 1024);
    bed.connect(CONSUMER_A, socket(STRANGER, 4000));
    bed.none(CONSUMER_A, &syn(socket(CLIENT, 4000)), DropReason::SecurityGroup);
}

#[test]
fn a_withdrawn_security_group_rule_leaves_live_flows_alone_unless_the_group_cuts_them() {
    for cuts in [false, true] {
        let more = format!("cut_flows = {cuts}");
        let near = |rules: &str| toml(&group("near", &more, rules), OF_ENDPOINT, "");
        let with_stranger = format!("{NEAR}, {{ protocol = \"tcp\", source = \"10.0.0.9/32\" }}");
        let mut bed = Bed::from_toml(1, &near(&with_stranger), 1024);
        let allowed = bed.connect(CONSUMER_A, socket(CLIENT, 4000));
        let withdrawn = bed.connect(CONSUMER_A, socket(STRANGER, 4000));
        let other_endpoint = bed.connect(CONSUMER_B, socket(STRANGER, 4000));
        bed.reload(&near(NEAR));
        bed.none(CONSUMER_A, &syn(socket(STRANGER, 4001)), DropReason::SecurityGroup);
        let reply = |ends: (SocketAddrV4, SocketAddrV4)| tcp(PROVIDER, ends.1, ends.0, Flags::ACK, 5001, 1001, b"r");
        bed.one(PROVIDER, &reply(allowed));
        bed.one(PROVIDER, &reply(other_endpoint));
        if cuts {
            bed.none(PROVIDER, &reply(withdrawn), DropReason::SecurityGroup);
            let data = tcp(CONSUMER_A, socket(STRANGER, 4000), WEB, Flags::ACK, 1001, 5001, b"d");
            bed.none(CONSUMER_A, &data, DropReason::SecurityGroup);
        } else {
            bed.one(PROVIDER, &reply(withdrawn));
        }
        assert_eq!(bed.total(|counters| counters.flows.get()), 3 - u64::from(cuts));
    }
}

#[test]
fn a_security_group_that_cuts_flows_is_judged_whichever_way_a_rule_goes() {
    let cut = |rules: &str| group("near", "cut_flows = true", rules);
    let branch = |prefix: &str| group("branch", &format!("prefixes = [\"{prefix}\"]"), "");
    let named = "{ ports = \"1-1000\", source_group = \"branch\" }";
    let all = toml(&(cut(named) + &branch("10.0.0.0/28")), OF_ENDPOINT, "");
    // The named set shrinks; the group leaves the endpoint and another takes its place; the load balancer gets one.
    let shrunk = toml(&(cut(named) + &branch("10.0.0.0/29")), OF_ENDPOINT, "");
    let replaced = toml(&(group("new", "", NEAR) + &branch("10.0.0.0/28")), "security_groups = [\"new\"]", "");
    let balancer = toml(&(cut(NEAR) + &branch("10.0.0.0/28")), "", "security_groups = [\"near\"]");
    for after in [shrunk, replaced, balancer] {
        let mut bed = Bed::from_toml(1, &all, 1024);
        let (snat, target) = bed.connect(CONSUMER_A, socket(CLIENT, 4000));
        let (withdrawn, _) = bed.connect(CONSUMER_A, socket(STRANGER, 4000));
        bed.reload(&after);
        bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, b"r"));
        bed.none(PROVIDER, &tcp(PROVIDER, target, withdrawn, Flags::ACK, 5001, 1001, b"r"), DropReason::SecurityGroup);
    }
}

#[test]
fn a_pushed_change_of_a_security_group_costs_what_it_touches_and_is_refused_whole_if_it_is_wrong() {
    let more = "cut_flows = true";
    let text = toml(&group("near", more, "{ source = \"10.0.0.0/24\" }"), OF_ENDPOINT, "");
    let checked = Declaration::from_toml(&text, "test.toml").unwrap().check().unwrap();
    let mut tables = Tables::new(&checked);
    let mut bed = Bed::from_toml(1, &text, 1024);
    bed.apply(Arc::clone(tables.snapshot()));
    let (snat, target) = bed.connect(CONSUMER_A, socket(STRANGER, 4000));
    let declared = Declaration::from_toml(&group("near", more, NEAR), "").unwrap();
    let change = Change { full: false, changed: declared.resources().collect(), removed: Vec::new() };
    bed.apply(tables.update(change).unwrap());
    bed.none(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, b"r"), DropReason::SecurityGroup);

    let before = Arc::clone(tables.snapshot());
    let key = declared.resources().next().as_ref().map(Resource::key).unwrap();
    let error = tables.update(Change { removed: vec![key.clone()], ..Change::default() }).unwrap_err().to_string();
    assert!(error.contains("endpoint[vpce-a].security_groups[0] = \"near\": is not the name of a declared"), "{error}");
    assert!(Arc::ptr_eq(&before, tables.snapshot()));
    assert!(tables.resources().any(|resource| resource.key() == key));
}

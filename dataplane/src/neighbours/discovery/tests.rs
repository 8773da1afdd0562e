use std::sync::Arc;

use postern_forwarding::{NeighbourRequest, PortInfo};
use postern_tables::Snapshot;
use postern_tables::sharded::Sharded;
use postern_tables::snapshot::{Attachment, EndpointIndex, LocalAddress, PoolIndex, ReturnPath, VpcIndex};
use postern_wire::frame::NO_VLAN;

use super::super::entries::{RETRY, SUSPICIOUS_RETRY};
use super::*;

const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xaa]);
const TARGET_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const STRANGER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x66]);
const TARGET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5);
const SNAT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x200);
const ENDPOINT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);
const PROVIDER: AttachmentIndex = AttachmentIndex(0);
const CONSUMER: AttachmentIndex = AttachmentIndex(1);

/// A provider's attachment on port 0 and a consumer's, VLAN 7 on port 1, with the same on-link prefix in two VPCs.
fn neighbours() -> Neighbours {
    let attachment = |vpc, port, vlan| Attachment {
        name: format!("{vpc}"),
        vpc: VpcIndex(vpc),
        port: PortIndex(port),
        vlan,
        mtu: None,
        return_path: ReturnPath::Route,
        prefixes: Vec::new(),
        prefixes6: vec!["2001:db8:1::/64".parse().unwrap()],
        mac: None,
    };
    let snapshot = Snapshot {
        attachments: Arc::new(vec![attachment(0, 0, None), attachment(1, 1, Some(7))]),
        local6: Sharded::from_iter([
            ((VpcIndex(0), SNAT), LocalAddress::Snat(PoolIndex(0))),
            ((VpcIndex(1), ENDPOINT), LocalAddress::Endpoint(EndpointIndex(0))),
        ]),
        ..Snapshot::default()
    };
    let port = PortInfo { mac: OWN, mtu: 1500, up: true };
    Neighbours::new(Arc::new(snapshot), vec![port, port], at(0))
}

fn at(milliseconds: u64) -> Now {
    Now::from_milliseconds(milliseconds)
}

/// Neighbours whose announcements are over.
fn quiet() -> Neighbours {
    let mut neighbours = neighbours();
    for time in [0, 2000] {
        neighbours.pass(at(time), &mut Output::default());
    }
    neighbours
}

fn received(port: u16, vlan: u16, from: MacAddress, to: MacAddress, packet: &NeighbourPacket) -> NeighbourFrame {
    let frame = NeighbourFrame::discovery(PortIndex(port), None, from, to, packet);
    NeighbourFrame::received(PortIndex(port), vlan, frame.bytes())
}

fn solicitation(from: (MacAddress, Ipv6Addr), target: Ipv6Addr) -> NeighbourPacket {
    let mac = (!from.1.is_unspecified()).then_some(from.0);
    let destination = solicited_node(target);
    NeighbourPacket { source: from.1, destination, kind: Kind::Solicitation, target, mac }
}

fn advertisement(mac: MacAddress, solicited: bool) -> NeighbourFrame {
    let destination = if solicited { SNAT } else { ALL_NODES };
    let kind = Kind::Advertisement { router: false, solicited, overrides: true };
    let packet = NeighbourPacket { source: TARGET, destination, kind, target: TARGET, mac: Some(mac) };
    received(0, NO_VLAN, mac, if solicited { OWN } else { multicast_mac(ALL_NODES) }, &packet)
}

fn event(mac: Option<MacAddress>) -> NeighbourEvent {
    NeighbourEvent { attachment: PROVIDER, address: TARGET.into(), mac }
}

fn asked(neighbours: &mut Neighbours) -> Output {
    let mut output = Output::default();
    neighbours.request(NeighbourRequest { attachment: PROVIDER, address: TARGET.into() }, at(5000), &mut output);
    output
}

#[test]
fn an_ipv6_address_that_postern_holds_is_answered_on_its_own_vpc_only() {
    let (mut neighbours, mut output) = (quiet(), Output::default());
    let client = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
    let question = |target| {
        let packet = solicitation((STRANGER, client), target);
        received(1, 7, STRANGER, multicast_mac(packet.destination), &packet)
    };
    neighbours.receive(&question(ENDPOINT), at(5000), &mut output);
    let frame = output.frames.pop().unwrap();
    let answer = frame.parse_discovery().unwrap();
    assert_eq!((frame.port, answer.vlan, answer.destination, answer.source), (PortIndex(1), 7, STRANGER, OWN));
    let expected =
        NeighbourPacket { source: ENDPOINT, destination: client, kind: ASKED, target: ENDPOINT, mac: Some(OWN) };
    assert_eq!(answer.packet, expected);
    // Another VPC's address, one that nobody holds, the right one on an unknown VLAN.
    neighbours.receive(&question(SNAT), at(5000), &mut output);
    neighbours.receive(&question(TARGET), at(5000), &mut output);
    let packet = solicitation((STRANGER, client), ENDPOINT);
    neighbours.receive(&received(1, 8, STRANGER, OWN, &packet), at(5000), &mut output);
    assert!(output.frames.is_empty() && output.events.is_empty());
    assert_eq!((neighbours.counters().answered, neighbours.counters().ignored), (1, 1));
}

#[test]
fn who_wants_to_take_an_ipv6_address_that_postern_holds_is_told_with_all_others_that_it_is_taken() {
    let (mut neighbours, mut output) = (quiet(), Output::default());
    let probe = solicitation((STRANGER, Ipv6Addr::UNSPECIFIED), SNAT);
    neighbours.receive(
        &received(0, NO_VLAN, STRANGER, multicast_mac(probe.destination), &probe),
        at(5000),
        &mut output,
    );
    let answer = output.frames.pop().unwrap().parse_discovery().unwrap();
    assert_eq!((answer.destination, answer.packet.destination), (multicast_mac(ALL_NODES), ALL_NODES));
    assert_eq!((answer.packet.kind, answer.packet.target, answer.packet.mac), (UNASKED, SNAT, Some(OWN)));
}

#[test]
fn a_new_ipv6_address_is_announced_twice_to_all_nodes() {
    let (mut neighbours, mut output) = (neighbours(), Output::default());
    for time in (0..5000).step_by(50) {
        neighbours.pass(at(time), &mut output);
    }
    let told = |address, port| {
        let of_it = output.frames.iter().filter(|frame| frame.port == PortIndex(port));
        of_it.filter_map(NeighbourFrame::parse_discovery).filter(move |told| told.packet.target == address).count()
    };
    assert_eq!((told(SNAT, 0), told(ENDPOINT, 1), output.frames.len()), (2, 2, 4));
    assert!(output.frames.iter().all(|frame| frame.parse_discovery().unwrap().packet.kind == UNASKED));
}

#[test]
fn an_ipv6_neighbour_is_asked_from_an_address_that_postern_holds_and_only_its_answer_counts() {
    let mut neighbours = quiet();
    let question = asked(&mut neighbours).frames.pop().unwrap().parse_discovery().unwrap();
    assert_eq!(question.destination, multicast_mac(solicited_node(TARGET)));
    let expected = NeighbourPacket {
        source: SNAT,
        destination: solicited_node(TARGET),
        kind: Kind::Solicitation,
        target: TARGET,
        mac: Some(OWN),
    };
    assert_eq!(question.packet, expected);
    let mut output = Output::default();
    // Told to all nodes: nobody asked for that.
    neighbours.receive(&advertisement(STRANGER, false), at(5001), &mut output);
    assert_eq!((output.events.len(), neighbours.counters().unsolicited), (0, 1));
    neighbours.receive(&advertisement(TARGET_MAC, true), at(5002), &mut output);
    assert_eq!(output.events, [event(Some(TARGET_MAC))]);
    assert_eq!(neighbours.station(PROVIDER, TARGET.into()).unwrap().mac, TARGET_MAC);
    assert_eq!(neighbours.station(CONSUMER, TARGET.into()), None);
}

#[test]
fn a_stranger_cannot_move_a_known_ipv6_neighbour() {
    let mut neighbours = quiet();
    asked(&mut neighbours);
    let mut output = Output::default();
    neighbours.receive(&advertisement(TARGET_MAC, true), at(5001), &mut output);
    output = Output::default();
    for (time, solicited) in [(7000, true), (7001, false)] {
        neighbours.receive(&advertisement(STRANGER, solicited), at(time), &mut output);
    }
    // The known station is asked, by itself, and answers.
    let question = output.frames.pop().unwrap().parse_discovery().unwrap();
    assert_eq!((question.destination, question.packet.destination), (TARGET_MAC, TARGET));
    neighbours.receive(&advertisement(TARGET_MAC, true), at(7002), &mut output);
    assert!(output.events.is_empty());
    assert_eq!(neighbours.station(PROVIDER, TARGET.into()).unwrap().mac, TARGET_MAC);
    // One that is silent loses its place.
    neighbours.receive(&advertisement(STRANGER, false), at(9000), &mut output);
    for time in (9000..9000 + 3 * SUSPICIOUS_RETRY + 50).step_by(50) {
        neighbours.pass(at(time), &mut output);
    }
    neighbours.receive(&advertisement(STRANGER, true), at(9900), &mut output);
    assert_eq!(output.events, [event(Some(STRANGER))]);
}

#[test]
fn a_silent_ipv6_neighbour_is_asked_three_times_and_then_given_up() {
    let mut neighbours = quiet();
    let mut output = asked(&mut neighbours);
    for time in (5000..5000 + 4 * RETRY).step_by(50) {
        neighbours.pass(at(time), &mut output);
    }
    assert_eq!((output.frames.len(), output.events.as_slice()), (3, &[event(None)][..]));
    assert_eq!((neighbours.unresolved(), neighbours.counters().unreachable), (0, 1));
}

#[test]
fn the_link_local_address_that_questions_may_come_from_is_answered_for() {
    let (mut neighbours, mut output) = (quiet(), Output::default());
    let mut packet = solicitation((TARGET_MAC, TARGET), link_local(OWN));
    packet.destination = link_local(OWN);
    neighbours.receive(&received(0, NO_VLAN, TARGET_MAC, OWN, &packet), at(5000), &mut output);
    let answer = output.frames.pop().unwrap().parse_discovery().unwrap();
    assert_eq!((answer.packet.target, answer.packet.destination, answer.packet.kind), (link_local(OWN), TARGET, ASKED));
}

#[test]
fn another_station_that_claims_an_ipv6_address_of_ours_makes_it_be_announced_again() {
    let (mut neighbours, mut output) = (quiet(), Output::default());
    let packet =
        NeighbourPacket { source: SNAT, destination: ALL_NODES, kind: UNASKED, target: SNAT, mac: Some(STRANGER) };
    for time in [5000, 5100] {
        neighbours.receive(&received(0, NO_VLAN, STRANGER, OWN, &packet), at(time), &mut output);
    }
    let told = output.frames.pop().unwrap().parse_discovery().unwrap();
    assert_eq!((told.packet.kind, told.packet.target, output.frames.len()), (UNASKED, SNAT, 0));
    assert_eq!(neighbours.counters().conflicts, 2);
}

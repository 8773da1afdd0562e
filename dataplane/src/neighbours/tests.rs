use postern_tables::sharded::Sharded;
use postern_tables::snapshot::{EndpointIndex, LocalAddress, PoolIndex, Vpc};
use postern_wire::Ipv4Prefix;
use postern_wire::frame::NO_VLAN;
use proptest::prelude::*;

use super::entries::{MOST_UNRESOLVED, REACHABLE, RETRY, SUSPICIOUS_RETRY};
use super::*;

const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xaa]);
const TARGET_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const STRANGER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x66]);
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const SNAT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 200);
const FAR_SNAT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 100);
const PROVIDER: AttachmentIndex = AttachmentIndex(0);
const CONSUMER: AttachmentIndex = AttachmentIndex(1);

/// A provider's attachment on port 0 and a consumer's, VLAN 7 on port 1, with the same on-link prefix in two VPCs.
fn snapshot() -> Snapshot {
    let prefix: Ipv4Prefix = "10.1.0.0/24".parse().unwrap();
    let attachment = |name: &str, vpc, port, vlan| Attachment {
        name: name.to_owned(),
        vpc: VpcIndex(vpc),
        port: PortIndex(port),
        vlan,
        mtu: None,
        return_path: postern_tables::snapshot::ReturnPath::Route,
        prefixes: vec![prefix],
        prefixes6: Vec::new(),
        mac: None,
    };
    Snapshot {
        vpcs: Arc::new(vec![
            Vpc { id: "vpc-provider".into(), routes: vec![], routes6: vec![] },
            Vpc { id: "vpc-consumer".into(), routes: vec![], routes6: vec![] },
        ]),
        attachments: Arc::new(vec![attachment("provider", 0, 0, None), attachment("consumer", 1, 1, Some(7))]),
        local: Sharded::from_iter([
            ((VpcIndex(0), SNAT), LocalAddress::Snat(PoolIndex(0))),
            ((VpcIndex(0), FAR_SNAT), LocalAddress::Snat(PoolIndex(0))),
            ((VpcIndex(1), ENDPOINT), LocalAddress::Endpoint(EndpointIndex(0))),
        ]),
        ..Snapshot::default()
    }
}

fn at(milliseconds: u64) -> Now {
    Now::from_milliseconds(milliseconds)
}

fn port() -> PortInfo {
    PortInfo { mac: OWN, mtu: 1500, up: true }
}

/// Neighbours whose announcements are over.
fn quiet() -> (Neighbours, Output) {
    let mut neighbours = Neighbours::new(Arc::new(snapshot()), vec![port(), port()], at(0));
    let mut output = Output::default();
    for time in [0, 2000] {
        neighbours.pass(at(time), &mut output);
    }
    (neighbours, Output::default())
}

fn ask(address: Ipv4Addr) -> NeighbourRequest {
    NeighbourRequest { attachment: PROVIDER, address: address.into() }
}

fn arp(operation: Operation, from: (MacAddress, Ipv4Addr), to: (MacAddress, Ipv4Addr)) -> NeighbourFrame {
    let packet = ArpPacket { operation, sender_mac: from.0, sender: from.1, target_mac: to.0, target: to.1 };
    let frame = NeighbourFrame::new(PortIndex(0), None, from.0, to.0, &packet);
    NeighbourFrame::received(PortIndex(0), NO_VLAN, frame.bytes())
}

fn reply(mac: MacAddress) -> NeighbourFrame {
    arp(Operation::Reply, (mac, TARGET), (OWN, SNAT))
}

fn gratuitous(mac: MacAddress) -> NeighbourFrame {
    arp(Operation::Reply, (mac, TARGET), (MacAddress::BROADCAST, TARGET))
}

fn event(mac: Option<MacAddress>) -> NeighbourEvent {
    NeighbourEvent { attachment: PROVIDER, address: TARGET.into(), mac }
}

/// Lets time pass in steps of 50 ms and collects what is done.
fn pass(neighbours: &mut Neighbours, from: u64, to: u64) -> Output {
    let mut output = Output::default();
    for time in (from..=to).step_by(50) {
        neighbours.pass(at(time), &mut output);
    }
    output
}

fn known(neighbours: &mut Neighbours) {
    let mut output = Output::default();
    neighbours.request(ask(TARGET), at(5000), &mut output);
    neighbours.receive(&reply(TARGET_MAC), at(5001), &mut output);
    assert_eq!(output.events, [event(Some(TARGET_MAC))]);
}

#[test]
fn an_address_that_postern_holds_is_answered_on_its_own_vpc_only() {
    let (mut neighbours, mut output) = quiet();
    let question = |target| arp(Operation::Request, (TARGET_MAC, TARGET), (MacAddress::BROADCAST, target));
    neighbours.receive(&question(SNAT), at(5000), &mut output);
    let answer = output.frames.pop().unwrap();
    let read = answer.parse().unwrap();
    assert_eq!((answer.port, read.vlan, read.destination), (PortIndex(0), 0, TARGET_MAC));
    assert_eq!(
        read.packet,
        ArpPacket {
            operation: Operation::Reply,
            sender_mac: OWN,
            sender: SNAT,
            target_mac: TARGET_MAC,
            target: TARGET
        }
    );
    neighbours.receive(&question(ENDPOINT), at(5000), &mut output);
    neighbours.receive(&question(Ipv4Addr::new(10, 1, 0, 77)), at(5000), &mut output);
    assert!(output.frames.is_empty() && output.events.is_empty());
    assert_eq!(neighbours.counters().answered, 1);
}

#[test]
fn on_a_vlan_the_answer_carries_the_tag_and_the_wrong_vlan_is_ignored() {
    let (mut neighbours, mut output) = quiet();
    let packet = ArpPacket {
        operation: Operation::Request,
        sender_mac: STRANGER,
        sender: Ipv4Addr::new(10, 1, 0, 9),
        target_mac: MacAddress::ZERO,
        target: ENDPOINT,
    };
    let untagged = NeighbourFrame::new(PortIndex(1), None, STRANGER, MacAddress::BROADCAST, &packet);
    neighbours.receive(&NeighbourFrame::received(PortIndex(1), 7, untagged.bytes()), at(5000), &mut output);
    let answer = output.frames.pop().unwrap();
    assert_eq!((answer.port, answer.parse().unwrap().vlan, answer.bytes().len()), (PortIndex(1), 7, 46));
    neighbours.receive(&NeighbourFrame::received(PortIndex(1), 8, untagged.bytes()), at(5000), &mut output);
    neighbours.receive(&NeighbourFrame::received(PortIndex(1), NO_VLAN, untagged.bytes()), at(5000), &mut output);
    assert!(output.frames.is_empty());
    assert_eq!(neighbours.counters().ignored, 2);
}

#[test]
fn a_new_address_is_announced_twice_where_it_is_on_link() {
    let mut neighbours = Neighbours::new(Arc::new(snapshot()), vec![port(), port()], at(0));
    let first = pass(&mut neighbours, 0, 1950);
    let mut announced: Vec<_> =
        first.frames.iter().map(|frame| (frame.port.0, frame.parse().unwrap().packet.sender)).collect();
    announced.sort_unstable();
    assert_eq!(announced, [(0, FAR_SNAT), (0, SNAT), (1, ENDPOINT)]);
    for frame in &first.frames {
        let read = frame.parse().unwrap();
        assert_eq!((read.destination, read.packet.sender), (MacAddress::BROADCAST, read.packet.target));
    }
    assert_eq!(pass(&mut neighbours, 2000, 10_000).frames.len(), 3);

    let mut next = snapshot();
    let added = Ipv4Addr::new(10, 1, 0, 101);
    next.local.insert((VpcIndex(1), added), LocalAddress::Endpoint(EndpointIndex(1)));
    let mut output = Output::default();
    neighbours.apply(Arc::new(next), at(11_000), &mut output);
    neighbours.pass(at(11_000), &mut output);
    assert_eq!(output.frames.len(), 1);
    assert_eq!(output.frames[0].parse().unwrap().packet.sender, added);
}

#[test]
fn ten_thousand_new_addresses_are_announced_in_bounded_passes() {
    let mut next = snapshot();
    for number in 0..10_000u32 {
        let address = Ipv4Addr::from_bits(0x0a01_0000 + (number << 8));
        next.local.insert((VpcIndex(1), address), LocalAddress::Endpoint(EndpointIndex(number)));
    }
    let mut neighbours = Neighbours::new(Arc::new(next), vec![port(), port()], at(0));
    let mut output = Output::default();
    neighbours.pass(at(0), &mut output);
    assert!(output.frames.len() <= 256);
    assert!(pass(&mut neighbours, 50, 10_000).frames.len() > 20_000 - 256);
}

#[test]
fn a_port_that_comes_up_announces_its_addresses_again() {
    let (mut neighbours, _) = quiet();
    neighbours.set_ports(&[PortInfo { up: false, ..port() }, port()], at(5000));
    assert!(pass(&mut neighbours, 5000, 6000).frames.is_empty());
    neighbours.set_ports(&[port(), port()], at(6050));
    let output = pass(&mut neighbours, 6050, 6100);
    assert_eq!(output.frames.len(), 2);
    assert!(output.frames.iter().all(|frame| frame.port == PortIndex(0)));
}

#[test]
fn a_question_asks_as_the_address_that_is_on_link_with_the_target_and_the_answer_is_told() {
    let (mut neighbours, mut output) = quiet();
    neighbours.request(ask(TARGET), at(5000), &mut output);
    neighbours.request(ask(TARGET), at(5000), &mut output);
    assert_eq!(output.frames.len(), 1);
    let question = output.frames[0].parse().unwrap();
    assert_eq!(
        (question.destination, question.packet.sender, question.packet.target),
        (MacAddress::BROADCAST, SNAT, TARGET)
    );
    assert!(output.events.is_empty());
    neighbours.receive(&reply(TARGET_MAC), at(5001), &mut output);
    assert_eq!(output.events, [event(Some(TARGET_MAC))]);
    assert_eq!(neighbours.known().collect::<Vec<_>>(), [event(Some(TARGET_MAC))]);
    neighbours.request(ask(TARGET), at(5002), &mut output);
    assert_eq!(output.events.len(), 2, "a known neighbour is told at once");
}

#[test]
fn the_first_of_two_answers_wins() {
    let (mut neighbours, mut output) = quiet();
    neighbours.request(ask(TARGET), at(5000), &mut output);
    neighbours.receive(&reply(TARGET_MAC), at(5001), &mut output);
    neighbours.receive(&reply(STRANGER), at(5001), &mut output);
    assert_eq!(output.events, [event(Some(TARGET_MAC))]);
    assert_eq!(neighbours.counters().unsolicited, 1);
}

#[test]
fn a_silent_neighbour_is_asked_three_times_a_second_apart_and_then_told_as_gone() {
    let (mut neighbours, mut output) = quiet();
    neighbours.request(ask(TARGET), at(5000), &mut output);
    let more = pass(&mut neighbours, 5000, 5000 + 3 * RETRY - 50);
    assert_eq!((output.frames.len() + more.frames.len(), more.events.len()), (3, 0));
    let end = pass(&mut neighbours, 5000 + 3 * RETRY, 20_000);
    assert_eq!((end.frames.len(), end.events), (0, vec![event(None)]));
    assert_eq!((neighbours.counters().unreachable, neighbours.unresolved()), (1, 0));
}

#[test]
fn a_known_neighbour_is_refreshed_by_unicast_and_stays_usable_meanwhile() {
    let (mut neighbours, _) = quiet();
    known(&mut neighbours);
    assert!(pass(&mut neighbours, 5050, 5000 + REACHABLE).frames.is_empty());
    let probe = pass(&mut neighbours, 5001 + REACHABLE, 5001 + REACHABLE + 500);
    assert_eq!(probe.frames.len(), 1);
    assert_eq!(probe.frames[0].parse().unwrap().destination, TARGET_MAC);
    assert_eq!(neighbours.known().count(), 1);
    let mut output = Output::default();
    neighbours.receive(&reply(TARGET_MAC), at(5600 + REACHABLE), &mut output);
    assert!(output.events.is_empty(), "nothing changed, nothing to tell");
    let after = pass(&mut neighbours, 5650 + REACHABLE, 5500 + 2 * REACHABLE);
    assert!(after.frames.is_empty() && after.events.is_empty());
}

#[test]
fn a_neighbour_that_died_is_told_as_gone_after_unicast_and_broadcast_questions() {
    let (mut neighbours, _) = quiet();
    known(&mut neighbours);
    let output = pass(&mut neighbours, 5050, 5050 + REACHABLE + 6 * RETRY + 100);
    let destinations: Vec<_> = output.frames.iter().map(|frame| frame.parse().unwrap().destination).collect();
    let broadcast = MacAddress::BROADCAST;
    assert_eq!(destinations, [TARGET_MAC, TARGET_MAC, TARGET_MAC, broadcast, broadcast, broadcast]);
    assert_eq!(output.events, [event(None)]);
    assert_eq!(neighbours.known().count(), 0);
}

#[test]
fn a_strangers_gratuitous_arp_only_makes_us_ask_and_the_old_station_keeps_its_place() {
    let (mut neighbours, mut output) = quiet();
    known(&mut neighbours);
    neighbours.receive(&gratuitous(STRANGER), at(8000), &mut output);
    assert_eq!((output.frames.len(), output.events.len()), (1, 0));
    assert_eq!(output.frames[0].parse().unwrap().destination, TARGET_MAC);
    neighbours.receive(&reply(STRANGER), at(8001), &mut output);
    neighbours.receive(&reply(TARGET_MAC), at(8002), &mut output);
    assert!(output.events.is_empty());
    assert_eq!(neighbours.known().next(), Some(event(Some(TARGET_MAC))));
    let frames = output.frames.len();
    neighbours.receive(&gratuitous(STRANGER), at(8003), &mut output);
    assert_eq!(output.frames.len(), frames, "an answer is trusted for a second");
}

#[test]
fn a_target_that_really_changed_its_mac_address_moves_within_two_seconds() {
    let (mut neighbours, mut output) = quiet();
    known(&mut neighbours);
    neighbours.receive(&gratuitous(STRANGER), at(8000), &mut output);
    let probes = pass(&mut neighbours, 8050, 8000 + 3 * SUSPICIOUS_RETRY);
    assert_eq!(probes.frames.last().unwrap().parse().unwrap().destination, MacAddress::BROADCAST);
    neighbours.receive(&reply(STRANGER), at(8800), &mut output);
    assert_eq!(output.events, [event(Some(STRANGER))]);
}

#[test]
fn behind_a_port_that_comes_up_a_station_that_was_exchanged_is_found_within_a_second() {
    let (mut neighbours, mut output) = quiet();
    known(&mut neighbours);
    neighbours.set_ports(&[PortInfo { up: false, ..port() }, port()], at(6000));
    neighbours.set_ports(&[port(), port()], at(7000));
    let probes = pass(&mut neighbours, 7000, 7000 + 3 * SUSPICIOUS_RETRY);
    let asked = probes.frames.iter().filter_map(|frame| frame.parse()).filter(|arp| arp.packet.target == TARGET);
    assert_eq!(
        asked.map(|arp| arp.destination).collect::<Vec<_>>(),
        [TARGET_MAC, TARGET_MAC, TARGET_MAC, MacAddress::BROADCAST]
    );
    neighbours.receive(&reply(STRANGER), at(7800), &mut output);
    assert_eq!(output.events, [event(Some(STRANGER))]);
}

#[test]
fn a_claim_to_an_address_of_ours_is_counted_and_defended_at_most_once_a_second() {
    let (mut neighbours, mut output) = quiet();
    let claim = arp(Operation::Request, (STRANGER, SNAT), (MacAddress::BROADCAST, SNAT));
    for time in 0..10 {
        neighbours.receive(&claim, at(5000 + time), &mut output);
    }
    assert_eq!((neighbours.counters().conflicts, output.frames.len()), (10, 1));
    assert_eq!(output.frames[0].parse().unwrap().packet.sender, SNAT);
}

#[test]
fn the_table_is_bounded_by_attachment_and_a_refused_request_is_told_at_once() {
    let (mut neighbours, mut output) = quiet();
    for number in 0..MOST_UNRESOLVED as u32 + 10 {
        neighbours.request(ask(Ipv4Addr::from_bits(0x0a02_0000 + number)), at(5000), &mut output);
    }
    assert_eq!(neighbours.unresolved(), MOST_UNRESOLVED);
    assert_eq!((output.events.len(), neighbours.counters().refused), (10, 10));
    let other = NeighbourRequest { attachment: CONSUMER, address: TARGET.into() };
    output.frames.clear();
    neighbours.request(other, at(5000), &mut output);
    assert_eq!(output.frames.len(), 1, "another tenant's attachment has room of its own");
    assert_eq!(output.frames[0].parse().unwrap().vlan, 7);
}

#[test]
fn entries_of_an_attachment_that_is_gone_are_told_as_gone() {
    let (mut neighbours, mut output) = quiet();
    known(&mut neighbours);
    let mut next = snapshot();
    Arc::make_mut(&mut next.attachments)[0].vlan = Some(9);
    neighbours.apply(Arc::new(next), at(9000), &mut output);
    assert_eq!(output.events, [event(None)]);
    assert_eq!((neighbours.known().count(), neighbours.next_due().is_some()), (0, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The station answers each unicast question; a stranger says whatever it likes, whenever it likes.
    #[test]
    fn while_a_station_answers_no_stranger_can_take_its_place(
        lies in prop::collection::vec((0u64..70_000, any::<bool>(), 0u8..4, any::<bool>()), 0..200)
    ) {
        let (mut neighbours, _) = quiet();
        known(&mut neighbours);
        let mut lies = lies;
        lies.sort_unstable();
        let mut lies = lies.into_iter().peekable();
        for time in (5050..75_000).step_by(10) {
            let mut output = Output::default();
            neighbours.pass(at(time), &mut output);
            while let Some((_, request, kind, to_us)) = lies.next_if(|lie| lie.0 + 5050 <= time) {
                let operation = if request { Operation::Request } else { Operation::Reply };
                let target = [SNAT, TARGET, FAR_SNAT, Ipv4Addr::new(10, 1, 0, 3)][usize::from(kind)];
                let destination = if to_us { OWN } else { MacAddress::BROADCAST };
                neighbours.receive(&arp(operation, (STRANGER, TARGET), (destination, target)), at(time), &mut output);
            }
            let asked = output.frames.iter().filter_map(NeighbourFrame::parse).any(|read| {
                read.destination == TARGET_MAC && read.packet.operation == Operation::Request
            });
            if asked {
                neighbours.receive(&reply(TARGET_MAC), at(time), &mut output);
            }
            prop_assert!(output.events.is_empty());
        }
        prop_assert_eq!(neighbours.known().next(), Some(event(Some(TARGET_MAC))));
    }

    #[test]
    fn random_bytes_never_panic_and_never_make_an_entry(
        frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..64), 0u16..3, any::<u16>()), 0..64)
    ) {
        let (mut neighbours, mut output) = quiet();
        for (bytes, port, vlan) in frames {
            neighbours.receive(&NeighbourFrame::received(PortIndex(port), vlan, &bytes), at(6000), &mut output);
        }
        prop_assert!(output.events.is_empty());
        prop_assert_eq!(neighbours.known().count(), 0);
    }
}

//! IPv6 clients, endpoints and targets: frames in, frames out.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use etherparse::PacketBuilder;
use postern_wire::{Offload, PortIndex, nd};
use proptest::prelude::*;

use super::bed::*;
use crate::{DropReason, Verdict};

const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const ENDPOINT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);
const SNAT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x200);
const TARGET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x11);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

pub(super) const fn at(address: Ipv6Addr, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(address, port, 0, 0)
}

const WEB: SocketAddrV6 = at(ENDPOINT6, 80);
const DNS: SocketAddrV6 = at(ENDPOINT6, 53);
const TARGET: SocketAddrV6 = at(TARGET6, 8080);

const POOL6: &str = "addresses = [\"2001:db8:9::200\"]";
const TARGET_LINES: &str = "[[target_group.target]]\naddress = \"2001:db8:9::11\"\nport = 8080\n";

/// The usual configuration with IPv6 in the place of IPv4.
fn configuration(pool: &str, targets: &str) -> String {
    CONFIGURATION
        .replace("10.0.0.0/24", "2001:db8:1::/64")
        .replace("10.9.0.0/24", "2001:db8:9::/64")
        .replace("10.64.0.0/10", "2001:db8:64::/48")
        .replace("\"10.0.0.1\"", "\"2001:db8:1::1\"")
        .replace("10.0.0.100", "2001:db8:1::100")
        .replace("{pool}", pool)
        .replace("{targets}", targets)
}

fn bed() -> Bed {
    workers(1)
}

pub(super) fn workers(count: u16) -> Bed {
    Bed::from_toml(count, &configuration(POOL6, TARGET_LINES), 4096)
}

fn ip(
    port: PortIndex,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let mut header = etherparse::Ipv6Header { hop_limit: 64, traffic_class: 0xb9, ..Default::default() };
    header.flow_label = 0x5_4321.try_into().unwrap();
    (header.source, header.destination) = (source.octets(), destination.octets());
    PacketBuilder::ethernet2(station(source).0, port_mac(port).0)
        .ip(etherparse::IpHeaders::Ipv6(header, Default::default()))
}

pub(super) fn udp6(port: PortIndex, source: SocketAddrV6, destination: SocketAddrV6, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = ip(port, *source.ip(), *destination.ip()).udp(source.port(), destination.port());
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

pub(super) fn tcp6(
    port: PortIndex,
    source: SocketAddrV6,
    destination: SocketAddrV6,
    flags: Flags,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(source.port(), destination.port(), sequence, 64_000);
    header.acknowledgment_number = acknowledgement;
    header.syn = flags.0 & 2 != 0;
    header.ack = flags.0 & 16 != 0;
    header.fin = flags.0 & 1 != 0;
    header.rst = flags.0 & 4 != 0;
    if header.syn {
        header.set_options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1440)]).unwrap();
    }
    let mut bytes = Vec::new();
    ip(port, *source.ip(), *destination.ip()).tcp_header(header).write(&mut bytes, payload).unwrap();
    bytes
}

/// Source and destination of a TCP or UDP frame without extension headers.
pub(super) fn ends6(bytes: &[u8]) -> (SocketAddrV6, SocketAddrV6) {
    let address = |at: usize| Ipv6Addr::from_octets(*bytes[at..].first_chunk().unwrap());
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    (at(address(22), port(54)), at(address(38), port(56)))
}

/// A whole handshake; returns the SNAT socket that the target sees.
pub(super) fn connect(bed: &mut Bed, port: PortIndex, client: SocketAddrV6) -> SocketAddrV6 {
    let syn = bed.one(port, &tcp6(port, client, WEB, Flags::SYN, 1000, 0, b""));
    let (snat, target) = ends6(&syn.bytes);
    assert_eq!((syn.port, *snat.ip(), target), (PROVIDER, SNAT6, TARGET));
    let syn_ack = bed.one(PROVIDER, &tcp6(PROVIDER, target, snat, Flags::SYN_ACK, 5000, 1001, b""));
    assert_eq!((ends6(&syn_ack.bytes), syn_ack.port), ((WEB, client), port));
    bed.one(port, &tcp6(port, client, WEB, Flags::ACK, 1001, 5001, b""));
    snat
}

/// An ICMPv6 error about `quoted` (an IPv6 packet), as it arrives on a port.
pub(super) fn error6(
    port: PortIndex,
    from: Ipv6Addr,
    to: Ipv6Addr,
    kind: (u8, u8),
    rest: [u8; 4],
    quoted: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(port, from, to).icmpv6_raw(kind.0, kind.1, rest).write(&mut bytes, quoted).unwrap();
    bytes
}

#[test]
fn ipv6_tcp_goes_to_the_target_and_back_with_traffic_class_and_flow_label_kept() {
    let mut bed = bed();
    for (port, number) in [(CONSUMER_A, 4000), (CONSUMER_B, 4000), (CONSUMER_A, 4001)] {
        let client = at(CLIENT6, number);
        let snat = connect(&mut bed, port, client);
        for payload in [&b""[..], b"data", &[7; 1400]] {
            let there = bed.one(port, &tcp6(port, client, WEB, Flags::ACK, 1001, 5001, payload));
            let mut wanted = tcp6(PROVIDER, snat, TARGET, Flags::ACK, 1001, 5001, payload);
            wanted[..12].copy_from_slice(&[station(TARGET6).0, port_mac(PROVIDER).0].concat());
            wanted[21] = 63;
            assert_eq!(there.bytes, wanted);
            let back = bed.one(PROVIDER, &tcp6(PROVIDER, TARGET, snat, Flags::ACK, 5001, 1001, payload));
            let mut wanted = tcp6(port, WEB, client, Flags::ACK, 5001, 1001, payload);
            wanted[..12].copy_from_slice(&[station(CLIENT6).0, port_mac(port).0].concat());
            wanted[21] = 63;
            assert_eq!((back.bytes, back.port), (wanted, port));
        }
    }
    assert_eq!(bed.total(|counters| counters.flows.get()), 3);
    assert_eq!(bed.total(|counters| counters.half_open.get()), 0);
}

#[test]
fn ipv6_udp_and_super_frames_pass_and_segments_are_counted() {
    let mut bed = bed();
    let client = at(CLIENT6, 5000);
    let there = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"question"));
    let (snat, target) = ends6(&there.bytes);
    assert_eq!(target, at(TARGET6, 8080));
    let back = bed.one(PROVIDER, &udp6(PROVIDER, target, snat, b"the answer, which is a plain frame"));
    assert_eq!(ends6(&back.bytes), (DNS, client));
    let snat = connect(&mut bed, CONSUMER_A, client);
    let large = tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &[7; 5000]);
    let offload = Offload {
        flags: 1,
        segmentation_type: Offload::TCP_V6,
        header_length: 74,
        segment_size: 1428,
        checksum_start: 54,
        checksum_offset: 16,
    };
    let packets = |bed: &Bed| bed.total(|counters| counters.endpoints[0].packets_forward.get());
    let before = packets(&bed);
    let sent = bed.receive_offloaded(CONSUMER_A, &large, offload).remove(0);
    assert_eq!((ends6(&sent.bytes), sent.offload), ((snat, TARGET), offload));
    assert_eq!(packets(&bed) - before, 4);
    let too_large = Offload { segment_size: 1441, ..offload };
    assert_eq!(bed.receive_offloaded(CONSUMER_A, &large, too_large)[0].bytes[54..56], [2, 0]);
}

#[test]
fn ipv6_extension_headers_travel_with_their_packet() {
    let mut bed = bed();
    let client = at(CLIENT6, 5000);
    let plain = udp6(CONSUMER_A, client, DNS, b"question");
    let with_options = |plain: &[u8]| {
        let mut bytes = plain.to_vec();
        bytes.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        (bytes[19], bytes[20]) = (bytes[19] + 8, 60);
        bytes
    };
    let without = bed.one(CONSUMER_A, &plain);
    let with = bed.one(CONSUMER_A, &with_options(&plain));
    assert_eq!(with.bytes, with_options(&without.bytes));
    let mut routed = with_options(&plain);
    (routed[20], routed[57]) = (43, 1);
    bed.none(CONSUMER_A, &routed, DropReason::Ipv6Extensions);
}

#[test]
fn ipv6_syn_offers_are_clamped_to_what_fits_with_headers_of_sixty_bytes() {
    let toml = configuration(POOL6, TARGET_LINES).replace("port = \"p\"\n", "port = \"p\"\nmtu = 1400\n");
    let mut bed = Bed::from_toml(1, &toml, 1024);
    let syn = bed.one(CONSUMER_A, &tcp6(CONSUMER_A, at(CLIENT6, 1), WEB, Flags::SYN, 1, 0, b""));
    assert_eq!(syn.bytes[74..78], [2, 4, 0x05, 0x3c], "1340");
    let (snat, target) = ends6(&syn.bytes);
    let syn_ack = bed.one(PROVIDER, &tcp6(PROVIDER, target, snat, Flags::SYN_ACK, 1, 2, b""));
    assert_eq!(syn_ack.bytes[74..78], [2, 4, 0x05, 0x3c]);
}

#[test]
fn ipv6_flows_and_icmp_echoes_obey_the_security_group_of_the_endpoint() {
    let toml = configuration(POOL6, TARGET_LINES).replacen(
        "addresses = [\"2001:db8:1::100\"]",
        "addresses = [\"2001:db8:1::100\"]\nsecurity_groups = [\"web\"]",
        1,
    ) + "\n[[security_group]]\nname = \"web\"\nrules = [{ protocol = \"tcp\", ports = \"80\", source = \"::/0\" }]\n";
    let mut bed = Bed::from_toml(1, &toml, 1024);
    bed.one(CONSUMER_A, &tcp6(CONSUMER_A, at(CLIENT6, 1), WEB, Flags::SYN, 1, 0, b""));
    bed.none(CONSUMER_A, &udp6(CONSUMER_A, at(CLIENT6, 1), DNS, b"q"), DropReason::SecurityGroup);
    let mut echo = Vec::new();
    ip(CONSUMER_A, CLIENT6, ENDPOINT6).icmpv6_echo_request(7, 1).write(&mut echo, b"ping").unwrap();
    bed.none(CONSUMER_A, &echo, DropReason::SecurityGroup);
}

#[test]
fn an_ipv6_icmp_echo_to_an_endpoint_is_answered_unless_it_is_told_not_to() {
    let mut echo = Vec::new();
    ip(CONSUMER_A, CLIENT6, ENDPOINT6).icmpv6_echo_request(7, 1).write(&mut echo, b"ping").unwrap();
    let mut one = bed();
    let sent = one.one(CONSUMER_A, &echo);
    assert!(matches!(one.verdict, Verdict::Reply(port) if port == CONSUMER_A));
    assert_eq!((sent.bytes[54], &sent.bytes[22..38], &sent.bytes[62..]), (129, &ENDPOINT6.octets()[..], &b"ping"[..]));
    assert_eq!((&sent.bytes[..6], &sent.bytes[12..14]), (&station(CLIENT6).0[..], &[0x86, 0xdd][..]));
    let quiet = configuration(POOL6, TARGET_LINES)
        .replace("addresses = [\"2001:db8:1::100\"]", "addresses = [\"2001:db8:1::100\"]\necho = false");
    Bed::from_toml(1, &quiet, 1024).none(CONSUMER_A, &echo, DropReason::EchoDisabled);
    let mut reply = Vec::new();
    ip(CONSUMER_A, CLIENT6, ENDPOINT6).icmpv6_echo_reply(7, 1).write(&mut reply, b"ping").unwrap();
    one.none(CONSUMER_A, &reply, DropReason::IcmpType);
}

#[test]
fn ipv6_icmp_errors_reach_both_ends_about_the_packets_that_they_sent() {
    for count in [1, 4] {
        let mut bed = workers(count);
        for number in 1..30 {
            let client = at(CLIENT6, number);
            let request = udp6(CONSUMER_A, client, DNS, b"question");
            let seen = bed.one(CONSUMER_A, &request);
            let (snat, target) = ends6(&seen.bytes);
            for (kind, rest) in [((1, 4), [0; 4]), ((2, 0), [0, 0, 5, 120]), ((3, 0), [0; 4]), ((4, 1), [0, 0, 0, 6])] {
                let sent = bed.one(PROVIDER, &error6(PROVIDER, ROUTER6, SNAT6, kind, rest, &seen.bytes[14..]));
                assert_eq!(sent.port, CONSUMER_A);
                assert_eq!(
                    (&sent.bytes[22..38], &sent.bytes[38..54]),
                    (&ENDPOINT6.octets()[..], &CLIENT6.octets()[..])
                );
                assert_eq!(((sent.bytes[54], sent.bytes[55]), &sent.bytes[58..62]), (kind, &rest[..]));
                assert_eq!(sent.bytes[62 + 8..], request[22..], "addresses, ports, checksum and payload as sent");
            }
            let reply = udp6(PROVIDER, target, snat, b"answer");
            let delivered = bed.one(PROVIDER, &reply);
            let bytes = error6(CONSUMER_A, CLIENT6, ENDPOINT6, (1, 4), [0; 4], &delivered.bytes[14..]);
            let sent = bed.one(CONSUMER_A, &bytes);
            assert_eq!(sent.port, PROVIDER);
            assert_eq!((&sent.bytes[22..38], &sent.bytes[38..54]), (&SNAT6.octets()[..], &TARGET6.octets()[..]));
            assert_eq!(sent.bytes[62 + 8..], reply[22..]);
        }
    }
}

#[test]
fn ipv6_icmp_errors_about_nothing_known_or_with_a_wrong_checksum_are_dropped() {
    let mut bed = bed();
    let seen = bed.one(CONSUMER_A, &udp6(CONSUMER_A, at(CLIENT6, 1), DNS, b"q"));
    let (snat, _) = ends6(&seen.bytes);
    let stranger = udp6(PROVIDER, at(SNAT6, snat.port() ^ 1), TARGET, b"q");
    let about = |quoted: &[u8]| error6(PROVIDER, ROUTER6, SNAT6, (1, 4), [0; 4], quoted);
    bed.none(PROVIDER, &about(&stranger[14..]), DropReason::IcmpUnknownQuote);
    let mut broken = about(&seen.bytes[14..]);
    broken[56] ^= 1;
    bed.none(PROVIDER, &broken, DropReason::IcmpChecksum);
    bed.one(PROVIDER, &about(&seen.bytes[14..14 + 48]));
    for length in 0..48 {
        bed.none(PROVIDER, &about(&seen.bytes[14..14 + length]), DropReason::IcmpUnknownQuote);
    }
}

#[test]
fn an_ipv6_packet_that_does_not_fit_is_answered_with_the_mtu() {
    let mut bed = bed();
    let client = at(CLIENT6, 1);
    connect(&mut bed, CONSUMER_A, client);
    let large = tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &[1; 1600]);
    let sent = bed.receive(CONSUMER_A, &large).remove(0);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TooBig));
    assert_eq!((&sent.bytes[54..56], &sent.bytes[58..62]), (&[2, 0][..], &1500u32.to_be_bytes()[..]));
    assert_eq!((sent.bytes.len(), &sent.bytes[62..]), (14 + 1280, &large[14..14 + 1232]));
    assert_eq!((&sent.bytes[22..38], &sent.bytes[38..54]), (&ENDPOINT6.octets()[..], &CLIENT6.octets()[..]));
}

#[test]
fn an_ipv6_packet_whose_hop_limit_is_over_is_answered_and_makes_no_flow() {
    let mut bed = bed();
    let mut bytes = udp6(CONSUMER_A, at(CLIENT6, 1), DNS, b"q");
    bytes[21] = 1;
    let sent = bed.receive(CONSUMER_A, &bytes).remove(0);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TtlExpired));
    assert_eq!((sent.bytes[54], sent.bytes[55], &sent.bytes[62..]), (3, 0, &bytes[14..]));
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn ipv6_segments_without_a_flow_are_reset_and_unsolicited_packets_make_no_state() {
    let mut bed = bed();
    let client = at(CLIENT6, 1);
    let sent = bed.receive(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::ACK, 77, 99, b"")).remove(0);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::NoFlow));
    let reset = sent.tcp();
    assert_eq!((ends6(&sent.bytes), reset.rst, reset.sequence_number), ((WEB, client), true, 99));
    assert!(bed.receive(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::RST, 77, 99, b"")).is_empty());
    let told = bed.receive(PROVIDER, &tcp6(PROVIDER, TARGET, at(SNAT6, 2000), Flags::ACK, 77, 99, b""));
    assert_eq!((told.len(), bed.verdict), (1, Verdict::Drop(DropReason::Unsolicited)));
    for stranger in [at(TARGET6, 1), at(ROUTER6, 8080)] {
        let bytes = tcp6(PROVIDER, stranger, at(SNAT6, 2000), Flags::ACK, 77, 99, b"");
        bed.none(PROVIDER, &bytes, DropReason::Unsolicited);
    }
    bed.none(PROVIDER, &udp6(PROVIDER, TARGET, at(SNAT6, 2000), b"x"), DropReason::Unsolicited);
    bed.none(PROVIDER, &udp6(PROVIDER, TARGET, at(ROUTER6, 2000), b"x"), DropReason::NotLocal);
    bed.none(CONSUMER_A, &udp6(CONSUMER_A, client, at(ENDPOINT6, 54), b"x"), DropReason::NoListener);
    for source in ["::", "::1", "ff02::1", "::ffff:10.0.0.1", "2001:db8:1::100"] {
        let bytes = udp6(CONSUMER_A, at(source.parse().unwrap(), 5), DNS, b"x");
        bed.none(CONSUMER_A, &bytes, DropReason::BadSource);
    }
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn ipv6_flows_are_lent_by_workers_that_have_ports_left() {
    let pool = "addresses = [\"2001:db8:9::200\"]\nports = \"1024-1535\"\nrest_seconds = 0";
    let mut bed = Bed::from_toml(4, &configuration(pool, TARGET_LINES), 4096);
    let mut seen = std::collections::HashMap::new();
    // A few less than there are ports, so that some buckets' owners must borrow. A worker holds 64 flows.
    for number in 0..200 {
        let client = at(CLIENT6, 3000 + number);
        let there = bed.receive(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"question"));
        if let [there] = &there[..] {
            let (snat, _) = ends6(&there.bytes);
            assert_eq!(seen.insert(snat.port(), client), None, "a port is used once");
        }
    }
    assert!(seen.len() > 150, "{}", seen.len());
    for (port, client) in &seen {
        let back = bed.one(PROVIDER, &udp6(PROVIDER, TARGET, at(SNAT6, *port), b"answer"));
        assert_eq!(ends6(&back.bytes), (DNS, *client));
        let again = bed.one(CONSUMER_A, &udp6(CONSUMER_A, *client, DNS, b"more"));
        assert_eq!(ends6(&again.bytes).0.port(), *port, "whichever worker gets it");
    }
    bed.wait_seconds(130);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn an_ipv6_borrowed_port_is_found_from_the_owner_of_the_bucket() {
    // One block of ports, which one worker owns: all others must borrow.
    let pool = "addresses = [\"2001:db8:9::200\"]\nports = \"1024-1087\"";
    let mut bed = Bed::from_toml(4, &configuration(pool, TARGET_LINES), 4096);
    for number in 0..40 {
        let client = at(CLIENT6, 3000 + number);
        let there = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"question"));
        for _ in 0..5 {
            let again = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"more"));
            assert_eq!(ends6(&again.bytes), ends6(&there.bytes));
        }
    }
    assert!(bed.total(|counters| counters.flows_lent.get()) > 10);
    assert_eq!(bed.total(|counters| counters.flows.get()), 40);
    bed.wait_seconds(130);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn ipv6_flows_have_room_of_their_own_and_are_listed_with_their_addresses() {
    let mut bed = bed();
    for number in 0..IPV6_FLOWS as u16 {
        bed.one(CONSUMER_A, &udp6(CONSUMER_A, at(CLIENT6, 3000 + number), DNS, b"question"));
    }
    bed.none(CONSUMER_A, &udp6(CONSUMER_A, at(CLIENT6, 2000), DNS, b"question"), DropReason::FlowTableFull);
    let mut views = Vec::new();
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        cursor = bed.workers[0].flows(from, 7, bed.now, &mut views);
    }
    assert_eq!(views.len(), IPV6_FLOWS as usize);
    for view in views {
        assert_eq!((view.client().ip(), view.service()), (IpAddr::V6(CLIENT6), SocketAddr::V6(DNS)));
        assert_eq!((view.target_socket(), view.snat().ip()), (SocketAddr::V6(TARGET), IpAddr::V6(SNAT6)));
    }
}

#[test]
fn an_ipv6_flow_ends_when_its_endpoint_is_withdrawn_and_goes_on_when_it_is_not() {
    let mut bed = bed();
    let client = at(CLIENT6, 1);
    let snat = connect(&mut bed, CONSUMER_A, client);
    let data = tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"data");
    let toml = configuration(POOL6, TARGET_LINES);
    let other = toml.replace("id = \"vpce-b\"\nvpc = \"vpc-b\"\n", "id = \"vpce-b\"\nvpc = \"vpc-b\"\nmtu = 1400\n");
    bed.reload(&other);
    assert_eq!(ends6(&bed.one(CONSUMER_A, &data).bytes).0, snat);
    let at_a = toml.find("[[endpoint]]\nid = \"vpce-a\"").unwrap();
    let at_b = toml.find("[[endpoint]]\nid = \"vpce-b\"").unwrap();
    bed.reload(&format!("{}{}", &toml[..at_a], &toml[at_b..]));
    bed.none(CONSUMER_A, &data, DropReason::AccessWithdrawn);
    bed.none(CONSUMER_A, &data, DropReason::NotLocal);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn an_ipv6_packet_waits_until_its_neighbour_is_known() {
    let mut bed = bed();
    bed.neighbours_answer = false;
    let bytes = udp6(CONSUMER_A, at(CLIENT6, 1), DNS, b"question");
    assert!(bed.receive(CONSUMER_A, &bytes).is_empty());
    assert_eq!(bed.verdict, Verdict::Hold);
    let request = bed.requests[0];
    assert_eq!(request.address, IpAddr::V6(TARGET6));
    bed.answer(request, Some(station(TARGET6)));
    assert_eq!(bed.total(|counters| counters.forwarded.get()), 1);
    assert_eq!(bed.total(|counters| counters.held.get()), 0);
}

#[test]
fn ipv6_neighbour_messages_are_for_the_control_side_and_what_routers_say_is_dropped() {
    let mut bed = bed();
    let message = |destination: Ipv6Addr, hop_limit: u8, kind: u8| {
        let packet = nd::NeighbourPacket {
            source: CLIENT6,
            destination,
            kind: nd::Kind::Solicitation,
            target: ENDPOINT6,
            mac: Some(station(CLIENT6)),
        };
        let mut out = [0; nd::LONGEST];
        let length = packet.write(&mut out);
        (out[7], out[40]) = (hop_limit, kind);
        let to = if destination.is_multicast() { nd::multicast_mac(destination) } else { port_mac(CONSUMER_A) };
        [&to.0[..], &station(CLIENT6).0, &[0x86, 0xdd], &out[..length]].concat()
    };
    for destination in [ENDPOINT6, nd::solicited_node(ENDPOINT6)] {
        for kind in [135, 136] {
            bed.receive(CONSUMER_A, &message(destination, 255, kind));
            assert_eq!(bed.verdict, Verdict::Punt);
        }
        bed.none(CONSUMER_A, &message(destination, 254, 135), DropReason::NeighbourDiscovery);
        for kind in [133, 134, 137] {
            bed.none(CONSUMER_A, &message(destination, 255, kind), DropReason::NeighbourDiscovery);
        }
    }
}

/// Both families everywhere: IPv6 clients have targets of both.
fn dual_stack() -> String {
    CONFIGURATION
        .replace("{pool}", "addresses = [\"10.9.0.200\", \"2001:db8:9::200\"]")
        .replace("{targets}", ONE_TARGET)
        .replace("[\"10.0.0.0/24\"]", "[\"10.0.0.0/24\", \"2001:db8:1::/64\"]")
        .replace("[\"10.9.0.0/24\"]", "[\"10.9.0.0/24\", \"2001:db8:9::/64\"]")
        .replace("addresses = [\"10.0.0.100\"]", "addresses = [\"10.0.0.100\", \"2001:db8:1::100\"]")
        .replace(
            "[[load_balancer]]",
            &format!("[[target_group]]\nname = \"web6\"\nvpc = \"vpc-p\"\nsnat_pool = \"pool\"\n{TARGET_LINES}[[load_balancer]]"),
        )
        .replace("{ name = \"web\" }", "{ name = \"web\" }, { name = \"web6\" }")
}

#[test]
fn ipv6_and_ipv4_live_beside_each_other() {
    let mut bed = Bed::from_toml(2, &dual_stack(), 4096);
    let mut to = std::collections::HashMap::new();
    for number in 1..40 {
        bed.connect(CONSUMER_A, socket(CLIENT, number));
        let sent = bed.one(CONSUMER_A, &udp6(CONSUMER_A, at(CLIENT6, number), DNS, b"question"));
        let wide = sent.bytes[12..14] == [0x86, 0xdd];
        if wide {
            assert_eq!(ends6(&sent.bytes).1, TARGET);
        } else {
            assert_eq!(sent.destination(), super::bed::TARGET);
        }
        *to.entry(wide).or_insert(0) += 1;
    }
    assert!(to[&true] > 5 && to[&false] > 5, "IPv6 clients are shared out among targets of both families: {to:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_packets_of_live_ipv6_and_nat64_flows_never_panic(
        damage in proptest::collection::vec((0usize..140, any::<u8>()), 0..6),
        (kind, number) in (0u8..6, 1u16..9),
        raw in any::<[u8; 10]>(),
        (offloaded, mend, cut) in (any::<bool>(), any::<bool>(), 0usize..20),
    ) {
        BED.with_borrow_mut(|bed| {
            bed.checks = true;
            let client = at(CLIENT6, number);
            let query = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"some payload, long enough for a plain frame"));
            let wide = query.bytes[12..14] == [0x86, 0xdd];
            let mut bytes = match kind {
                0 => udp6(CONSUMER_A, client, DNS, b"some payload, long enough for a plain frame"),
                1 => tcp6(CONSUMER_A, client, WEB, Flags::SYN, 1, 0, b""),
                2 => error6(CONSUMER_A, CLIENT6, ENDPOINT6, (1, 4), [0; 4], &udp6(CONSUMER_A, DNS, client, b"answer")[14..]),
                _ if wide => {
                    let (snat, target) = ends6(&query.bytes);
                    match kind {
                        3 => udp6(PROVIDER, target, snat, b"some payload, long enough for a plain frame"),
                        _ => error6(PROVIDER, ROUTER6, *snat.ip(), (kind % 4 + 1, 0), [0, 0, 5, 0], &query.bytes[14..]),
                    }
                }
                3 => udp(PROVIDER, query.destination(), query.source(), b"some payload"),
                _ => {
                    let mut bytes = Vec::new();
                    PacketBuilder::ethernet2([2; 6], port_mac(PROVIDER).0)
                        .ipv4([10, 9, 0, 1], SNAT.octets(), 64)
                        .icmpv4_raw([3, 11][usize::from(kind & 1)], 0, [0, 32, 5, 0])
                        .write(&mut bytes, &query.bytes[14..])
                        .unwrap();
                    bytes
                }
            };
            for (at, value) in damage {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            if mend {
                repair(&mut bytes);
            }
            let offload = if offloaded {
                Offload {
                    flags: raw[0] & 3,
                    segmentation_type: raw[1] & 7,
                    header_length: u16::from(raw[2]),
                    segment_size: u16::from(raw[4]),
                    checksum_start: u16::from(raw[6]) % 90,
                    checksum_offset: u16::from(raw[8]) % 32,
                }
            } else {
                Offload::NONE
            };
            bed.unchecked(if kind < 3 { CONSUMER_A } else { PROVIDER }, &bytes, offload);
            bed.assert_balanced();
        });
    }
}

/// Makes lengths, the IPv4 header checksum and the ICMP checksums right again.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < 62 {
        return;
    }
    let length = bytes.len() - 14;
    if bytes[12..14] == [0x86, 0xdd] {
        bytes[18..20].copy_from_slice(&(length as u16 - 40).to_be_bytes());
        if bytes[20] == 58 {
            let addresses = *postern_wire::ipv6::addresses(bytes, 14).unwrap();
            postern_wire::icmpv6::complete_checksum(&mut bytes[54..], &addresses);
        }
    } else if bytes[14] == 0x45 {
        bytes[16..18].copy_from_slice(&(length as u16).to_be_bytes());
        postern_wire::ipv4::complete_checksum(&mut bytes[14..34]);
        if bytes[23] == 1 {
            bytes[36..38].fill(0);
            let sum = postern_wire::checksum::checksum(&bytes[34..], 0);
            bytes[36..38].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

thread_local! {
    /// One gateway for all cases.
    static BED: RefCell<Bed> = RefCell::new(Bed::from_toml(1, &dual_stack(), 4096));
}

//! ICMP: echo, errors translated both ways, errors of our own.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::PacketBuilder;

use super::bed::*;
use crate::{DropReason, Verdict};

const DNS: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 53);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// An ICMP error about `quoted` (an IP packet), as it arrives on a port.
fn error(
    port: postern_wire::PortIndex,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    quoted: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(station(source).0, port_mac(port).0)
        .ipv4(source.octets(), destination.octets(), 64)
        .icmpv4_raw(kind, code, rest)
        .write(&mut bytes, quoted)
        .unwrap();
    bytes
}

#[test]
fn an_error_from_behind_the_target_reaches_the_client_about_the_packet_that_it_sent() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let request = udp(CONSUMER_A, client, DNS, b"question");
    let seen = bed.one(CONSUMER_A, &request);
    for (kind, code, rest) in [(3, 3, [0; 4]), (3, 4, [0, 0, 5, 120]), (11, 0, [0; 4])] {
        let bytes = error(PROVIDER, ROUTER, *seen.source().ip(), kind, code, rest, &seen.bytes[14..]);
        let sent = bed.one(PROVIDER, &bytes);
        assert_eq!(sent.port, CONSUMER_A);
        assert_eq!(sent.bytes[26..30], ENDPOINT.octets());
        assert_eq!(sent.bytes[30..34], CLIENT.octets());
        assert_eq!((sent.bytes[34], sent.bytes[35], &sent.bytes[38..42]), (kind, code, &rest[..]));
        let quoted = &sent.bytes[42..];
        assert_eq!(quoted[12..], request[26..], "addresses, ports, checksum and payload as the client sent them");
    }
    assert_eq!(bed.total(|counters| counters.flows.get()), 1);
}

#[test]
fn an_error_from_the_client_reaches_the_target_about_the_packet_that_it_sent() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"question"));
    let reply = udp(PROVIDER, TARGET, seen.source(), b"answer");
    let delivered = bed.one(PROVIDER, &reply);
    let bytes = error(CONSUMER_A, CLIENT, ENDPOINT, 3, 3, [0; 4], &delivered.bytes[14..]);
    let sent = bed.one(CONSUMER_A, &bytes);
    assert_eq!(sent.port, PROVIDER);
    assert_eq!((&sent.bytes[26..30], &sent.bytes[30..34]), (&SNAT.octets()[..], &TARGET.ip().octets()[..]));
    assert_eq!(sent.bytes[42 + 12..], reply[26..]);
}

#[test]
fn eight_bytes_of_tcp_are_enough_and_every_shorter_quote_is_dropped() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    let segment = tcp(PROVIDER, snat, target, Flags::ACK, 1001, 5001, b"payload");
    let sent = bed.one(PROVIDER, &error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &segment[14..42]));
    assert_eq!(sent.bytes[30..34], CLIENT.octets());
    for length in 0..28 {
        bed.none(
            PROVIDER,
            &error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &segment[14..14 + length]),
            DropReason::IcmpUnknownQuote,
        );
    }
}

#[test]
fn errors_about_nothing_known_or_with_a_wrong_checksum_are_dropped() {
    let mut bed = Bed::new();
    let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"q"));
    let stranger = udp(PROVIDER, socket(SNAT, seen.source().port() ^ 1), TARGET, b"q");
    bed.none(PROVIDER, &error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &stranger[14..]), DropReason::IcmpUnknownQuote);
    let mut broken = error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &seen.bytes[14..]);
    broken[36] ^= 1;
    bed.none(PROVIDER, &broken, DropReason::IcmpChecksum);
}

#[test]
fn errors_do_not_keep_a_flow_alive() {
    let mut bed = Bed::new();
    let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 1), DNS, b"q"));
    let bytes = error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &seen.bytes[14..]);
    for _ in 0..119 {
        bed.wait_seconds(1);
        bed.one(PROVIDER, &bytes);
    }
    bed.wait_seconds(3);
    bed.none(PROVIDER, &bytes, DropReason::IcmpUnknownQuote);
}

#[test]
fn errors_find_their_flow_at_whichever_worker_it_is() {
    let one = "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n";
    let mut bed = Bed::with(4, POOL, one);
    for port in 1..50 {
        let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, port), DNS, b"q"));
        let sent = bed.one(PROVIDER, &error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &seen.bytes[14..]));
        assert_eq!(sent.bytes[30..34], CLIENT.octets());
        let reply = bed.one(PROVIDER, &udp(PROVIDER, TARGET, seen.source(), b"a"));
        let sent = bed.one(CONSUMER_A, &error(CONSUMER_A, CLIENT, ENDPOINT, 3, 3, [0; 4], &reply.bytes[14..]));
        assert_eq!(sent.bytes[30..34], TARGET.ip().octets());
    }
}

#[test]
fn an_endpoint_answers_echo_unless_it_is_told_not_to() {
    let mut echo = Vec::new();
    PacketBuilder::ethernet2(station(CLIENT).0, port_mac(CONSUMER_A).0)
        .ipv4(CLIENT.octets(), ENDPOINT.octets(), 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut echo, b"ping")
        .unwrap();
    let mut bed = Bed::new();
    let sent = bed.one(CONSUMER_A, &echo);
    assert!(matches!(bed.verdict, Verdict::Reply(port) if port == CONSUMER_A));
    assert_eq!(
        (sent.bytes[34], &sent.bytes[26..30], &sent.bytes[30..34]),
        (0, &ENDPOINT.octets()[..], &CLIENT.octets()[..])
    );
    assert_eq!(&sent.bytes[42..], b"ping");
    assert_eq!(sent.bytes[..6], station(CLIENT).0);
    let quiet = CONFIGURATION
        .replace("{pool}", POOL)
        .replace("{targets}", "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n")
        .replace("addresses = [\"10.0.0.100\"]", "addresses = [\"10.0.0.100\"]\necho = false");
    Bed::from_toml(1, &quiet, 1024).none(CONSUMER_A, &echo, DropReason::EchoDisabled);
}

#[test]
fn a_packet_whose_time_is_over_is_answered_with_what_its_sender_sent() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let mut bytes = udp(CONSUMER_A, client, DNS, b"q");
    bytes[22] = 1;
    bytes[24..26].fill(0);
    let sum = postern_wire::checksum::checksum(&bytes[14..34], 0);
    bytes[24..26].copy_from_slice(&sum.to_le_bytes());
    let sent = bed.receive(CONSUMER_A, &bytes);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TtlExpired));
    assert_eq!((sent[0].bytes[34], &sent[0].bytes[42..]), (11, &bytes[14..]));
    assert_eq!(bed.total(|counters| counters.flows.get()), 0, "no flow is made for it");
}

#[test]
fn what_does_not_fit_is_answered_with_the_mtu_judged_by_segments() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    bed.connect(CONSUMER_A, client);
    let endpoint = socket(ENDPOINT, 80);
    let large = tcp(CONSUMER_A, client, endpoint, Flags::ACK, 1001, 5001, &[1; 1600]);
    let sent = bed.receive(CONSUMER_A, &large);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TooBig));
    assert_eq!((&sent[0].bytes[34..36], &sent[0].bytes[40..42]), (&[3, 4][..], &1500u16.to_be_bytes()[..]));
    assert_eq!(sent[0].bytes.len(), 14 + 576);
    let offload = |segment_size| postern_wire::Offload {
        flags: 1,
        segmentation_type: 1,
        header_length: 54,
        segment_size,
        checksum_start: 34,
        checksum_offset: 16,
    };
    assert_eq!(bed.receive_offloaded(CONSUMER_A, &large, offload(1460)).len(), 1);
    assert!(matches!(bed.verdict, Verdict::Forward(_)));
    bed.receive_offloaded(CONSUMER_A, &large, offload(1461));
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TooBig));
}

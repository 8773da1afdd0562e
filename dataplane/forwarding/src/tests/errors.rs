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

#[test]
fn icmp_errors_about_the_first_fragment_reach_the_client() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let whole = udp(CONSUMER_A, client, DNS, &[7; 4000]);
    let parts = super::fragments::fragments(&whole, 9, &[1480, 1480]);
    let seen = bed.one(CONSUMER_A, &parts[0]);
    for length in [28, 60, 548] {
        let sent = bed.one(PROVIDER, &error(PROVIDER, ROUTER, SNAT, 11, 1, [0; 4], &seen.bytes[14..14 + length]));
        assert_eq!((&sent.bytes[26..30], &sent.bytes[30..34]), (&ENDPOINT.octets()[..], &CLIENT.octets()[..]));
        let quoted = &sent.bytes[42..];
        assert_eq!(quoted[12..], parts[0][26..14 + length], "what the client sent");
        assert_eq!(quoted[6..8], parts[0][20..22], "flags and offset");
    }
    // Of a fragment without ports nobody knows the flow.
    let later = bed.one(CONSUMER_A, &parts[1]);
    bed.none(
        PROVIDER,
        &error(PROVIDER, ROUTER, SNAT, 11, 0, [0; 4], &later.bytes[14..60]),
        DropReason::IcmpUnknownQuote,
    );
}

#[test]
fn icmp_extensions_and_the_quotes_length_are_kept() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let request = udp(CONSUMER_A, client, DNS, &[7; 40]);
    let seen = bed.one(CONSUMER_A, &request);
    // RFC 4884 §4.1: the quote padded to 128 bytes, 32 words, then the extension, here an MPLS label (RFC 4950).
    let mut quoted = seen.bytes[14..].to_vec();
    quoted.resize(128, 0);
    let mut extension = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 0xf1, 1];
    let sum = postern_wire::checksum::checksum(&extension, 0);
    extension[2..4].copy_from_slice(&sum.to_le_bytes());
    quoted.extend(&extension);
    let sent = bed.one(PROVIDER, &error(PROVIDER, ROUTER, SNAT, 11, 0, [0, 32, 0, 0], &quoted));
    assert_eq!(sent.bytes[38..42], [0, 32, 0, 0], "the length attribute");
    assert_eq!(sent.bytes[42 + 128..], extension);
    assert_eq!(sent.bytes[42 + 12..42 + 68], request[26..]);
    assert_eq!(sent.bytes[42 + 68..42 + 128], [0; 60]);
}

#[test]
fn icmp_errors_that_quote_ip_options_are_translated() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"question"));
    let mut quoted = seen.bytes[14..].to_vec();
    quoted.splice(20..20, [7, 7, 4, 0, 0, 0, 0, 0]);
    quoted[0] = 0x47;
    quoted[10..12].fill(0);
    let sum = postern_wire::checksum::checksum(&quoted[..28], 0);
    quoted[10..12].copy_from_slice(&sum.to_le_bytes());
    let sent = bed.one(PROVIDER, &error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &quoted));
    assert_eq!(sent.bytes[42 + 12..42 + 20], [CLIENT.octets(), ENDPOINT.octets()].concat());
    assert_eq!(sent.bytes[42 + 28..42 + 32], [4000u16.to_be_bytes(), 53u16.to_be_bytes()].concat());
    assert_eq!(postern_wire::checksum::fold(postern_wire::checksum::sum(&sent.bytes[42..70])), 0xffff);
}

#[test]
fn other_icmp_messages_go_nowhere() {
    let mut bed = Bed::new();
    let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, socket(CLIENT, 4000), DNS, b"q"));
    // Redirect, router advertisement and solicitation, timestamp, information and mask requests, echo reply.
    for kind in [0, 5, 9, 10, 13, 15, 17] {
        bed.none(
            PROVIDER,
            &error(PROVIDER, ROUTER, SNAT, kind, 1, [10, 9, 0, 1], &seen.bytes[14..]),
            DropReason::IcmpType,
        );
        bed.none(
            CONSUMER_A,
            &error(CONSUMER_A, CLIENT, ENDPOINT, kind, 1, [10, 0, 0, 1], &seen.bytes[14..]),
            DropReason::IcmpType,
        );
    }
    bed.none(PROVIDER, &error(PROVIDER, ROUTER, SNAT, 8, 0, [0; 4], b"ping"), DropReason::IcmpType);
}

#[test]
fn icmp_errors_of_our_own_are_limited_and_one_endpoint_leaves_room_for_another() {
    let mut bed = Bed::new();
    let mut expired = |port| {
        let mut bytes = udp(port, socket(CLIENT, 4000), DNS, b"q");
        bytes[22] = 1;
        super::fragments::mend(&mut bytes);
        bed.receive(port, &bytes).len()
    };
    let answers: usize = (0..1000).map(|_| expired(CONSUMER_A)).sum();
    assert_eq!(answers, 100);
    assert_eq!(expired(CONSUMER_B), 1, "another endpoint's client is answered");
}

#[test]
fn icmp_errors_larger_than_the_mtu_are_cut_if_they_may_be() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 4000);
    let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, &[7; 1400]));
    let quoted = [&seen.bytes[14..], &[0; 500]].concat();
    let mut bytes = error(PROVIDER, ROUTER, SNAT, 3, 3, [0; 4], &quoted);
    bed.none(PROVIDER, &bytes, DropReason::TooBig);
    bytes[20] &= !0x40;
    super::fragments::mend(&mut bytes);
    let sent = bed.receive(PROVIDER, &bytes);
    assert_eq!(sent.len(), 2);
    let whole = super::fragments::reassemble(&sent);
    assert_valid(&whole, postern_wire::Offload::NONE);
    assert_eq!((whole.len(), &whole[30..34]), (14 + 20 + 8 + quoted.len(), &CLIENT.octets()[..]));
}

#[test]
fn the_mtu_that_icmp_tells_is_of_the_way_that_the_packet_goes() {
    let narrow = CONFIGURATION
        .replace("{pool}", POOL)
        .replace("{targets}", ONE_TARGET)
        .replace("prefixes = [\"10.9.0.0/24\"]", "prefixes = [\"10.9.0.0/24\"]\nmtu = 1400");
    let mut bed = Bed::from_toml(1, &narrow, 1024);
    let client = socket(CLIENT, 4000);
    let seen = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, DNS, b"q"));
    let large = udp(CONSUMER_A, client, DNS, &[1; 1400]);
    let sent = bed.receive(CONSUMER_A, &large);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TooBig));
    assert_eq!((&sent[0].bytes[34..36], &sent[0].bytes[40..42]), (&[3, 4][..], &1400u16.to_be_bytes()[..]));
    assert_eq!(sent[0].bytes[42..], large[14..14 + 548], "quoted as its sender sent it");
    assert_eq!((&sent[0].bytes[26..30], sent[0].bytes[20] & 0x40), (&ENDPOINT.octets()[..], 0), "from the endpoint");
    // The other way there is room.
    bed.one(PROVIDER, &udp(PROVIDER, TARGET, seen.source(), &[1; 1400]));
    // Back to the target the quote is of what the target sent.
    let larger = udp(PROVIDER, TARGET, seen.source(), &[1; 1500]);
    let sent = bed.receive(PROVIDER, &larger);
    assert_eq!(sent[0].bytes[40..42], 1500u16.to_be_bytes());
    assert_eq!((sent[0].port, &sent[0].bytes[42..]), (PROVIDER, &larger[14..14 + 548]));
    // Of fragments only the first is answered (RFC 1812 §4.3.2.7).
    let mut parts = super::fragments::fragments(&udp(CONSUMER_A, client, DNS, &[1; 4000]), 9, &[1480, 1480]);
    for (part, answers) in parts.iter_mut().zip([1, 0]) {
        part[20] |= 0x40;
        super::fragments::mend(part);
        let sent = bed.receive(CONSUMER_A, part);
        assert_eq!(sent.len(), answers);
    }
}

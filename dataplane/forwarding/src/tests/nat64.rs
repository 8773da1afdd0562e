//! IPv6 clients of IPv4 targets: frames in, frames of the other version out.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use etherparse::PacketBuilder;
use postern_wire::Offload;

use super::bed::*;
use super::ipv6::{at, ends6, error6, tcp6, udp6};
use crate::{DropReason, Verdict};

const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const ENDPOINT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);
const WEB: SocketAddrV6 = at(ENDPOINT6, 80);
const DNS: SocketAddrV6 = at(ENDPOINT6, 53);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// The usual configuration with IPv6 on the consumers' side only.
fn configuration(pool: &str) -> String {
    CONFIGURATION
        .replace("10.0.0.0/24", "2001:db8:1::/64")
        .replace("10.64.0.0/10", "2001:db8:64::/48")
        .replace("\"10.0.0.1\"", "\"2001:db8:1::1\"")
        .replace("10.0.0.100", "2001:db8:1::100")
        .replace("{pool}", pool)
        .replace("{targets}", ONE_TARGET)
}

pub(super) fn workers(count: u16) -> Bed {
    Bed::from_toml(count, &configuration(POOL), 4096)
}

/// A whole handshake; returns the SNAT socket that the target sees.
pub(super) fn connect(bed: &mut Bed, client: SocketAddrV6) -> SocketAddrV4 {
    let syn = bed.one(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
    let (snat, target) = (syn.source(), syn.destination());
    assert_eq!((syn.port, *snat.ip(), target), (PROVIDER, SNAT, TARGET));
    assert_eq!(syn.bytes[54..58], [2, 4, 0x05, 0xa0], "1440: what fits in IPv6 on the way back");
    let syn_ack = bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN_ACK, 5000, 1001, b""));
    assert_eq!((ends6(&syn_ack.bytes), syn_ack.port), ((WEB, client), CONSUMER_A));
    assert_eq!(syn_ack.bytes[74..78], [2, 4, 0x05, 0xa0], "1460 would not fit in IPv6");
    bed.one(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b""));
    snat
}

/// An IPv4 ICMP error about `quoted` from the provider's router.
fn error4(kind: (u8, u8), rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(station(ROUTER).0, port_mac(PROVIDER).0)
        .ipv4(ROUTER.octets(), SNAT.octets(), 64)
        .icmpv4_raw(kind.0, kind.1, rest)
        .write(&mut bytes, quoted)
        .unwrap();
    bytes
}

#[test]
fn nat64_connections_go_to_the_target_and_back() {
    for count in [1, 3] {
        let mut bed = workers(count);
        for number in 4000..4020 {
            let client = at(CLIENT6, number);
            let snat = connect(&mut bed, client);
            for payload in [&b""[..], b"data", &[7; 1300]] {
                let there = bed.one(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, payload));
                assert_eq!((there.source(), there.destination(), &there.bytes[54..]), (snat, TARGET, payload));
                assert_eq!((there.bytes[15], there.bytes[22]), (0xb9, 63), "traffic class and hop limit");
                let back = bed.one(PROVIDER, &tcp(PROVIDER, TARGET, snat, Flags::ACK, 5001, 1001, payload));
                assert_eq!((ends6(&back.bytes), &back.bytes[74..]), ((WEB, client), payload));
                assert_eq!((back.port, back.bytes[21]), (CONSUMER_A, 63));
                assert_eq!(back.bytes[..6], station(CLIENT6).0);
            }
        }
        assert_eq!(bed.total(|counters| counters.flows.get()), 20);
        assert_eq!(bed.total(|counters| counters.half_open.get()), 0);
        bed.wait_seconds(360);
        assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    }
}

#[test]
fn a_nat64_udp_answer_without_checksum_gets_one() {
    let mut bed = workers(1);
    let client = at(CLIENT6, 5000);
    let there = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"question"));
    let mut answer = udp(PROVIDER, TARGET, there.source(), b"answer");
    answer[40..42].fill(0);
    let back = bed.one(PROVIDER, &answer);
    let mut wanted = udp6(CONSUMER_A, DNS, client, b"answer");
    wanted[..6].copy_from_slice(&station(CLIENT6).0);
    assert_eq!(back.bytes[54..], wanted[54..], "checksum and payload");
}

#[test]
fn nat64_super_frames_get_the_other_type_and_are_cut_where_they_become_too_long() {
    let mut bed = workers(1);
    let client = at(CLIENT6, 1);
    let snat = connect(&mut bed, client);
    let offload = |wide: bool| Offload {
        flags: 1,
        segmentation_type: if wide { Offload::TCP_V6 } else { Offload::TCP_V4 },
        header_length: if wide { 74 } else { 54 },
        segment_size: 1428,
        checksum_start: if wide { 54 } else { 34 },
        checksum_offset: 16,
    };
    let there = tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, &[7; 5000]);
    let sent = bed.receive_offloaded(CONSUMER_A, &there, offload(true)).remove(0);
    assert_eq!((sent.source(), sent.offload, sent.bytes.len()), (snat, offload(false), 5054));
    assert_eq!(sent.bytes[20], 0x40, "its segments may not be fragmented");
    let back = tcp(PROVIDER, TARGET, snat, Flags::ACK, 5001, 1001, &[7; 5000]);
    let sent = bed.receive_offloaded(PROVIDER, &back, offload(false)).remove(0);
    assert_eq!((ends6(&sent.bytes), sent.offload, sent.bytes.len()), ((WEB, client), offload(true), 5074));

    let mut back = tcp(PROVIDER, TARGET, snat, Flags::ACK, 5001, 1001, &[7; 65_495]);
    back[50..52].fill(0);
    let sent = bed.receive_offloaded(PROVIDER, &back, offload(false));
    assert_eq!(sent.len(), 65_495usize.div_ceil(1428), "with a longer header it would have 65,555 bytes");
    assert!(sent.iter().all(|sent| ends6(&sent.bytes) == (WEB, client) && sent.offload == Offload::NONE));
    assert_eq!(sent.iter().map(|sent| sent.bytes.len() - 74).sum::<usize>(), 65_495);
}

#[test]
fn nat64_icmp_errors_reach_both_ends_about_the_packets_that_they_sent() {
    for count in [1, 4] {
        let mut bed = workers(count);
        for number in 1..20 {
            let client = at(CLIENT6, number);
            let request = udp6(CONSUMER_A, client, DNS, b"question");
            let seen = bed.one(CONSUMER_A, &request);
            for (kind, rest, wanted, word) in [
                ((3, 3), [0; 4], [1, 4], 0u32),
                ((3, 1), [0; 4], [1, 0], 0),
                ((3, 4), [0, 0, 5, 120], [2, 0], 1420),
                ((11, 0), [0; 4], [3, 0], 0),
            ] {
                let sent = bed.one(PROVIDER, &error4(kind, rest, &seen.bytes[14..]));
                assert_eq!(sent.port, CONSUMER_A);
                assert_eq!(
                    (&sent.bytes[22..38], &sent.bytes[38..54]),
                    (&ENDPOINT6.octets()[..], &CLIENT6.octets()[..])
                );
                assert_eq!((&sent.bytes[54..56], &sent.bytes[58..62]), (&wanted[..], &word.to_be_bytes()[..]));
                assert_eq!(sent.bytes[62 + 8..], request[22..], "addresses, ports, checksum and payload as sent");
            }
            bed.none(PROVIDER, &error4((3, 14), [0; 4], &seen.bytes[14..]), DropReason::Nat64);
            let reply = udp(PROVIDER, TARGET, seen.source(), b"answer");
            let delivered = bed.one(PROVIDER, &reply);
            let bytes = error6(CONSUMER_A, CLIENT6, ENDPOINT6, (1, 4), [0; 4], &delivered.bytes[14..]);
            let sent = bed.one(CONSUMER_A, &bytes);
            assert_eq!((sent.port, &sent.bytes[34..36]), (PROVIDER, &[3, 3][..]));
            assert_eq!((&sent.bytes[26..30], &sent.bytes[30..34]), (&SNAT.octets()[..], &TARGET.ip().octets()[..]));
            assert_eq!(sent.bytes[42 + 12..], reply[26..]);
        }
    }
}

#[test]
fn a_nat64_packet_that_does_not_fit_is_answered_with_the_mtu_in_its_senders_version() {
    let toml = configuration(POOL).replace("port = \"p\"\n", "port = \"p\"\nmtu = 1400\n");
    let mut bed = Bed::from_toml(1, &toml, 4096);
    let client = at(CLIENT6, 1);
    let seen = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"question"));
    // 1,420 bytes of IPv6 are 1,400 of IPv4.
    let fits = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, &[7; 1372]));
    assert_eq!((fits.bytes.len(), fits.bytes[20]), (1414, 0x40));
    let large = udp6(CONSUMER_A, client, DNS, &[7; 1373]);
    let sent = bed.receive(CONSUMER_A, &large).remove(0);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TooBig));
    assert_eq!((&sent.bytes[54..56], &sent.bytes[58..62]), (&[2, 0][..], &1420u32.to_be_bytes()[..]));
    // 1,481 bytes of IPv4 with DF are 1,501 of IPv6.
    let mut reply = udp(PROVIDER, TARGET, seen.source(), &[7; 1453]);
    let sent = bed.receive(PROVIDER, &reply).remove(0);
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TooBig));
    assert_eq!((&sent.bytes[34..36], &sent.bytes[40..42]), (&[3, 4][..], &1480u16.to_be_bytes()[..]));
    reply.truncate(reply.len() - 1);
    let reply = udp(PROVIDER, TARGET, seen.source(), &[7; 1452]);
    assert_eq!(bed.one(PROVIDER, &reply).bytes.len(), 1514);
}

#[test]
fn a_nat64_packet_of_the_least_ipv6_mtu_is_fragmented_where_ipv4_has_less() {
    let toml = configuration(POOL).replace("port = \"p\"\n", "port = \"p\"\nmtu = 1000\n");
    let mut bed = Bed::from_toml(1, &toml, 4096);
    let client = at(CLIENT6, 1);
    let sent = bed.receive(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, &[7; 1300]));
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TooBig));
    assert_eq!(sent[0].bytes[58..62], 1280u32.to_be_bytes(), "no less than every link of IPv6 carries");
    bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"makes the neighbour known"));
    let sent = bed.receive(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, &[7; 1232]));
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|sent| sent.bytes.len() <= 1014 && sent.bytes[20] & 0x40 == 0));
    assert_eq!(sent.iter().map(|sent| sent.bytes.len() - 34).sum::<usize>(), 1240);
    assert_eq!(sent[0].bytes[18..20], sent[1].bytes[18..20], "one identification");
}

#[test]
fn nat64_fragments_of_an_ipv4_answer_become_fragments_of_ipv6() {
    let mut bed = workers(1);
    let client = at(CLIENT6, 1);
    let seen = bed.one(CONSUMER_A, &udp6(CONSUMER_A, client, DNS, b"question"));
    let whole = udp(PROVIDER, TARGET, seen.source(), &[7; 2000]);
    let fragment = |from: usize, to: usize, more: bool| {
        let mut bytes = [&whole[..34], &whole[34 + from..34 + to]].concat();
        let length = (bytes.len() - 14) as u16;
        bytes[16..18].copy_from_slice(&length.to_be_bytes());
        let field = (from / 8) as u16 | u16::from(more) << 13;
        bytes[20..22].copy_from_slice(&field.to_be_bytes());
        bytes[24..26].fill(0);
        let sum = postern_wire::checksum::checksum(&bytes[14..34], 0);
        bytes[24..26].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    let mut payload = Vec::new();
    for (from, to, more) in [(0, 1000, true), (1000, 2008, false)] {
        let sent = bed.one(PROVIDER, &fragment(from, to, more));
        let upper = postern_wire::ipv6::upper(&sent.bytes[14..]).unwrap();
        let found = upper.fragment.unwrap();
        assert_eq!((usize::from(found.offset), found.more, upper.protocol), (from, more, 17));
        payload.extend_from_slice(&sent.bytes[14 + upper.at..]);
    }
    assert_eq!(payload[8..], [7; 2000]);
    let mut wanted = udp6(CONSUMER_A, DNS, client, &[7; 2000]);
    wanted[..14].fill(0);
    assert_eq!(payload, wanted[54..], "ports and checksum of the whole datagram");
}

#[test]
fn a_nat64_segment_without_flow_is_reset_in_its_senders_version() {
    let mut bed = workers(1);
    let sent = bed.receive(CONSUMER_A, &tcp6(CONSUMER_A, at(CLIENT6, 1), WEB, Flags::ACK, 77, 99, b"")).remove(0);
    assert_eq!((ends6(&sent.bytes), sent.tcp().rst), ((WEB, at(CLIENT6, 1)), true));
    let told = bed.receive(PROVIDER, &tcp(PROVIDER, TARGET, socket(SNAT, 2000), Flags::ACK, 77, 99, b""));
    assert_eq!((told.len(), bed.verdict), (1, Verdict::Drop(DropReason::Unsolicited)));
    let client = at(CLIENT6, 2);
    let snat = connect(&mut bed, client);
    bed.one(PROVIDER, &tcp(PROVIDER, TARGET, snat, Flags::RST, 5001, 1001, b""));
    bed.wait_seconds(10);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn a_nat64_connection_gets_a_proxy_protocol_header_of_ipv6_and_its_repetition() {
    let configuration = configuration(POOL)
        .replace(
            "[[target_group.target]]\naddress = \"10.9.0.11\"",
            "proxy_protocol = \"aws\"\n[[target_group.target]]\naddress = \"10.9.0.11\"",
        )
        .replace(
            "[[load_balancer.listener]]\nprotocol = \"udp\"\nport = 53\ntarget_groups = [{ name = \"web\" }]\n",
            "",
        );
    let mut bed = Bed::from_toml(1, &configuration, 4096);
    let client = at(CLIENT6, 4000);
    let syn = bed.one(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
    assert_eq!(syn.tcp().sequence_number, 1000 - 124);
    let snat = syn.source();
    bed.one(PROVIDER, &tcp(PROVIDER, TARGET, snat, Flags::SYN_ACK, 5000, 1001 - 124, b""));
    let mut wanted = [0; postern_translation::proxy_header::LONGEST];
    let dialect = postern_translation::proxy_header::Dialect::Aws;
    let length = postern_translation::proxy_header::write(&mut wanted, dialect, client.into(), WEB.into(), "vpce-a");
    assert_eq!(length, 124);
    // The header does not fit in front of the frame, and goes before it.
    let sent = bed.receive(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b""));
    let [first, ack] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((ack.destination(), ack.tcp().sequence_number), (TARGET, 1001));
    bed.wait_seconds(1);
    let again = std::mem::take(&mut bed.sent);
    assert_eq!(again.len(), 2);
    for sent in [first].into_iter().chain(&again) {
        assert_eq!((sent.source(), sent.destination()), (snat, TARGET));
        assert_eq!((sent.tcp().sequence_number, &sent.bytes[54..]), (1001 - 124, &wanted[..]));
    }
    let back = bed.one(PROVIDER, &tcp(PROVIDER, TARGET, snat, Flags::ACK, 5001, 1001, b"hello"));
    assert_eq!((ends6(&back.bytes), &back.bytes[74..]), ((WEB, client), &b"hello"[..]));
    assert_eq!(bed.workers[0].insertions.live(), 0);
    let there = bed.one(CONSUMER_A, &tcp6(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5006, b"data"));
    assert_eq!((there.tcp().sequence_number, &there.bytes[54..]), (1001, &b"data"[..]));
}

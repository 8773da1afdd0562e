//! The PROXY protocol header in front of connections: numbers, loss, and everything that clients and targets do meanwhile.

use std::net::SocketAddrV4;

use postern_flows::insertions::WAITS;
use postern_wire::{Offload, PortIndex};

use super::bed::*;
use crate::{DropReason, Verdict};

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);
/// Length of the header.
const L: u32 = 100;
const PSH_ACK: u8 = 0x18;

fn configuration(dialect: &str) -> String {
    CONFIGURATION
        .replace("{pool}", POOL)
        .replace("{targets}", &format!("proxy_protocol = \"{dialect}\"\n{ONE_TARGET}"))
        .replace(
            "[[load_balancer.listener]]\nprotocol = \"udp\"\nport = 53\ntarget_groups = [{ name = \"web\" }]\n",
            "",
        )
}

fn bed(workers: u16) -> Bed {
    Bed::from_toml(workers, &configuration("aws"), 4096)
}

/// The header that the client's connection gets.
fn header(client: SocketAddrV4) -> Vec<u8> {
    let mut bytes = [0; postern_translation::proxy_header::LONGEST];
    let dialect = postern_translation::proxy_header::Dialect::Aws;
    let length = postern_translation::proxy_header::write(&mut bytes, dialect, client.into(), WEB.into(), "vpce-a");
    bytes[..length].to_vec()
}

/// A segment with options, which fill whole words.
#[expect(clippy::too_many_arguments, reason = "the parts of a segment")]
fn with_options(
    port: PortIndex,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(source.port(), destination.port(), sequence, 1234);
    header.acknowledgment_number = acknowledgement;
    (header.fin, header.syn, header.rst) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    (header.psh, header.ack) = (flags & 8 != 0, flags & 16 != 0);
    header.set_options_raw(options).unwrap();
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2(station(*source.ip()).0, port_mac(port).0)
        .ipv4(source.ip().octets(), destination.ip().octets(), 64)
        .tcp_header(header)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

fn timestamps(own: u32, echoed: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &own.to_be_bytes(), &echoed.to_be_bytes()].concat()
}

impl Sent {
    fn flags(&self) -> u8 {
        self.bytes[47]
    }

    fn numbers(&self) -> (u32, u32) {
        (self.tcp().sequence_number, self.tcp().acknowledgment_number)
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[34 + self.tcp().header_len()..]
    }
}

/// Opens a connection up to the target's SYN-ACK; returns the SNAT socket.
fn half_open(bed: &mut Bed, client: SocketAddrV4) -> SocketAddrV4 {
    let syn = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
    assert_eq!((syn.numbers(), syn.payload()), ((1000 - L, 0), &b""[..]));
    let snat = syn.source();
    let syn_ack = bed.one(PROVIDER, &tcp(PROVIDER, TARGET, snat, Flags::SYN_ACK, 5000, 1001 - L, b""));
    assert_eq!(syn_ack.numbers(), (5000, 1001), "the client knows nothing of the header");
    snat
}

fn from_client(client: SocketAddrV4, flags: Flags, sequence: u32, payload: &[u8]) -> Vec<u8> {
    tcp(CONSUMER_A, client, WEB, flags, sequence, 5001, payload)
}

fn from_target(snat: SocketAddrV4, flags: Flags, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    tcp(PROVIDER, TARGET, snat, flags, sequence, acknowledgement, payload)
}

fn pending(bed: &Bed) -> u32 {
    bed.workers.iter().map(|worker| worker.insertions.live()).sum()
}

fn assert_header(sent: &Sent, client: SocketAddrV4) {
    assert_eq!((sent.port, sent.destination()), (PROVIDER, TARGET));
    assert_eq!(sent.numbers(), (1001 - L, 5001));
    assert_eq!(sent.payload(), header(client));
    assert_eq!(sent.flags(), PSH_ACK);
}

#[test]
fn the_proxy_protocol_header_goes_with_the_acknowledgement_that_completes_the_handshake_and_then_nothing_is_left_of_it()
{
    for workers in [1, 3] {
        let mut bed = bed(workers);
        let client = socket(CLIENT, 4000);
        let snat = half_open(&mut bed, client);
        let sent = bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
        assert_header(&sent, client);
        assert_eq!(sent.source(), snat);
        // The client's data waits for nothing and keeps its numbers.
        let data = bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b"GET /"));
        assert_eq!((data.numbers(), data.payload()), ((1001, 5001), &b"GET /"[..]));
        assert_eq!(pending(&bed), 1);
        let answer = bed.one(PROVIDER, &from_target(snat, Flags::ACK, 5001, 1006, b"200"));
        assert_eq!(answer.numbers(), (5001, 1006));
        assert_eq!(pending(&bed), 0);
        let records: Vec<_> = bed.workers.iter().map(|worker| worker.table.record(0).goes_long_way()).collect();
        assert!(records.iter().all(|long| !long));
        bed.wait_seconds(60);
        assert!(bed.sent.is_empty());
        assert_eq!(bed.total(|counters| counters.proxy_headers.get()), 1);
        assert_eq!(bed.total(|counters| counters.proxy_headers_repeated.get()), 0);
        bed.assert_balanced();
    }
}

#[test]
fn a_target_that_speaks_first_gets_its_proxy_protocol_header_from_a_silent_client() {
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    let snat = half_open(&mut bed, client);
    assert_header(&bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b"")), client);
    let greeting = bed.one(PROVIDER, &from_target(snat, Flags::ACK, 5001, 1001, b"220 hello"));
    assert_eq!((greeting.numbers(), greeting.payload()), ((5001, 1001), &b"220 hello"[..]));
    assert_eq!(pending(&bed), 0);
}

#[test]
fn a_lost_proxy_protocol_header_is_sent_again_until_it_is_acknowledged() {
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    let snat = half_open(&mut bed, client);
    let ack = |own, options: &[u8], payload: &[u8]| {
        let options = [options, &timestamps(own, 77)].concat();
        with_options(CONSUMER_A, client, WEB, 0x10, 1001, 5001, &options, payload)
    };
    let first = bed.one(CONSUMER_A, &ack(500, &[], b""));
    assert_header(&first, client);
    assert_eq!(first.bytes[54..66], timestamps(500, 77));
    // The target has the client's data, out of order, and says so; the client must not see what it acknowledges.
    bed.one(CONSUMER_A, &ack(501, &[], b"hello"));
    let options = [&[1, 1, 5, 10][..], &1001u32.to_be_bytes(), &1006u32.to_be_bytes()].concat();
    let duplicate = with_options(PROVIDER, TARGET, snat, 0x10, 5001, 1001 - L, &options, b"");
    let seen = bed.one(PROVIDER, &duplicate);
    assert_eq!((seen.numbers(), &seen.bytes[54..66]), ((5001, 1001), &options[..]));
    assert_eq!(pending(&bed), 1);
    bed.wait_seconds(1);
    let again = std::mem::take(&mut bed.sent);
    assert_eq!(again.len(), 2, "after a quarter and three quarters of a second");
    for sent in again {
        assert_header(&sent, client);
        assert_eq!((&sent.bytes[54..66], sent.tcp().window_size), (&timestamps(501, 77)[..], 1234));
        assert_eq!(sent.source(), snat);
    }
    // The header came twice: what says so lies before the client's start.
    let options = [&[1, 1, 5, 10][..], &(1001 - L).to_be_bytes(), &1001u32.to_be_bytes()].concat();
    let seen = bed.one(PROVIDER, &with_options(PROVIDER, TARGET, snat, 0x10, 5001, 1006, &options, b""));
    assert_eq!((seen.numbers(), &seen.bytes[54..66]), ((5001, 1006), &[1; 12][..]));
    bed.wait_seconds(30);
    assert!(bed.sent.is_empty() && pending(&bed) == 0);
    assert_eq!(bed.total(|counters| counters.proxy_headers_repeated.get()), 2);
}

#[test]
fn a_proxy_protocol_header_that_is_never_acknowledged_ends_the_flow_after_some_tries_and_both_ends_hear_of_it() {
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    half_open(&mut bed, client);
    bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
    bed.wait_seconds(u64::from(WAITS.iter().sum::<u32>()) / 1000 + 2);
    let mut sent = std::mem::take(&mut bed.sent);
    let told: Vec<_> = sent.split_off(WAITS.len() - 1);
    sent.iter().for_each(|sent| assert_header(sent, client));
    let [target, consumer] = &told[..] else { panic!("{told:?}") };
    assert!(target.tcp().rst && consumer.tcp().rst);
    assert_eq!((target.port, target.numbers().0), (PROVIDER, 1001 - L));
    assert_eq!((consumer.port, consumer.source(), consumer.numbers().0), (CONSUMER_A, WEB, 5001));
    assert_eq!((pending(&bed), bed.total(|counters| counters.flows.get())), (0, 0));
    assert_eq!(bed.total(|counters| counters.proxy_headers_given_up.get()), 1);
}

#[test]
fn a_first_segment_with_data_goes_unchanged_behind_its_proxy_protocol_header() {
    let mut bed = bed(1);
    for (port, offload, payload) in [
        (4000, Offload::NONE, vec![7; 1400]),
        (
            4001,
            Offload {
                flags: Offload::NEEDS_CHECKSUM,
                segmentation_type: Offload::TCP_V4,
                header_length: 54,
                segment_size: 1400,
                checksum_start: 34,
                checksum_offset: 16,
            },
            vec![8; 20_000],
        ),
    ] {
        let client = socket(CLIENT, port);
        half_open(&mut bed, client);
        let sent = bed.receive_offloaded(CONSUMER_A, &from_client(client, Flags::ACK, 1001, &payload), offload);
        assert_eq!(bed.verdict, Verdict::Hold);
        let [first, data] = &sent[..] else { panic!("{}", sent.len()) };
        assert_header(first, client);
        assert_eq!((data.numbers(), data.payload(), data.offload), ((1001, 5001), &payload[..], offload));
    }
}

#[test]
fn fast_open_data_is_left_to_the_client_to_send_again_behind_the_proxy_protocol_header() {
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    let cookie = [2, 4, 5, 180, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
    let syn = with_options(CONSUMER_A, client, WEB, 0x02, 1000, 0, &cookie, b"early data");
    for _ in 0..2 {
        let sent = bed.one(CONSUMER_A, &syn);
        assert_eq!((sent.numbers().0, sent.payload()), (1000 - L, &b""[..]));
        assert_eq!(sent.bytes[54..70], cookie);
    }
    let snat = bed.one(CONSUMER_A, &syn).source();
    bed.one(PROVIDER, &from_target(snat, Flags::SYN_ACK, 5000, 1001 - L, b""));
    let sent = bed.receive(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b"early data"));
    let [first, data] = &sent[..] else { panic!("{sent:?}") };
    assert_header(first, client);
    assert_eq!((data.numbers().0, data.payload()), (1001, &b"early data"[..]));
}

#[test]
fn a_target_that_missed_the_end_of_the_handshake_gets_the_proxy_protocol_header_with_the_clients_next_segment() {
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    let snat = half_open(&mut bed, client);
    bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
    let again = bed.one(PROVIDER, &from_target(snat, Flags::SYN_ACK, 5000, 1001 - L, b""));
    assert_eq!(again.numbers(), (5000, 1001));
    assert_header(&bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b"")), client);
    // Once it has been sent, acknowledgements go as they are.
    let plain = bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
    assert_eq!((plain.numbers(), plain.payload()), ((1001, 5001), &b""[..]));
}

#[test]
fn resets_have_the_numbers_that_their_receiver_accepts_whether_or_not_it_has_the_proxy_protocol_header() {
    // The target refuses.
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    let snat = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b"")).source();
    let refusal = bed.one(PROVIDER, &from_target(snat, Flags::RST_ACK, 0, 1001 - L, b""));
    assert_eq!(refusal.numbers(), (0, 1001));
    // The client refuses the target's answer.
    let client = socket(CLIENT, 4001);
    half_open(&mut bed, client);
    let reset = bed.one(CONSUMER_A, &from_client(client, Flags::RST, 1001, b""));
    assert_eq!(reset.numbers().0, 1001 - L);
    // The client resets while the header is under way: the target expects one number or the other.
    let client = socket(CLIENT, 4002);
    half_open(&mut bed, client);
    bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
    let sent = bed.receive(CONSUMER_A, &from_client(client, Flags::RST, 1001, b""));
    let mut numbers: Vec<_> = sent.iter().map(|sent| (sent.tcp().rst, sent.numbers().0)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [(true, 1001 - L), (true, 1001)]);
    bed.wait_seconds(5);
    assert!(bed.sent.is_empty(), "nothing is sent into a connection that was reset");
    assert_eq!((pending(&bed), bed.total(|counters| counters.flows.get())), (0, 0));
    // What a target resets that remembers an older connection is none of ours.
    let client = socket(CLIENT, 4003);
    let snat = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b"")).source();
    assert_eq!(bed.one(PROVIDER, &from_target(snat, Flags::ACK, 9000, 8000, b"")).numbers(), (9000, 8000));
    assert_eq!(bed.one(CONSUMER_A, &from_client(client, Flags::RST, 8000, b"")).numbers().0, 8000);
}

#[test]
fn a_connection_that_is_closed_at_once_closes_behind_its_proxy_protocol_header() {
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    let snat = half_open(&mut bed, client);
    let sent = bed.one(CONSUMER_A, &from_client(client, Flags::FIN, 1001, b""));
    assert_eq!((sent.numbers(), sent.flags()), ((1001 - L, 5001), PSH_ACK | 1));
    assert_eq!(sent.payload(), header(client));
    let closed = bed.one(PROVIDER, &from_target(snat, Flags::FIN, 5001, 1002, b""));
    assert_eq!((closed.numbers(), pending(&bed)), ((5001, 1002), 0));
    // A FIN behind data that was lost on the way here stays where it is.
    let client = socket(CLIENT, 4001);
    half_open(&mut bed, client);
    let sent = bed.receive(CONSUMER_A, &from_client(client, Flags::FIN, 1300, b""));
    let [first, fin] = &sent[..] else { panic!("{sent:?}") };
    assert_header(first, client);
    assert_eq!((fin.numbers().0, fin.flags()), (1300, 0x11));
}

#[test]
fn the_byte_of_a_keep_alive_does_not_get_into_the_proxy_protocol_header() {
    let mut bed = bed(1);
    let client = socket(CLIENT, 4000);
    half_open(&mut bed, client);
    bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
    let sent = bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1000, b"x"));
    assert_eq!((sent.numbers().0, sent.payload()), (1000, &b""[..]));
}

#[test]
fn a_frame_without_room_in_front_has_its_proxy_protocol_header_sent_before_it() {
    let mut bed = bed(1);
    bed.headroom = 32;
    let client = socket(CLIENT, 4000);
    half_open(&mut bed, client);
    let sent = bed.receive(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
    let [first, ack] = &sent[..] else { panic!("{sent:?}") };
    assert_header(first, client);
    assert_eq!((ack.numbers(), ack.payload()), ((1001, 5001), &b""[..]));
}

#[test]
fn half_open_flows_that_never_complete_leave_no_proxy_protocol_header_behind() {
    let mut bed = bed(1);
    for port in 1000..3000 {
        bed.receive(CONSUMER_A, &tcp(CONSUMER_A, socket(CLIENT, port), WEB, Flags::SYN, 1000, 0, b""));
        assert!(!matches!(bed.verdict, Verdict::Drop(_)), "{:?}", bed.verdict);
        let half_open = bed.total(|counters| counters.half_open.get());
        assert_eq!(u64::from(pending(&bed)), half_open);
        assert!(half_open <= 256, "an endpoint's share of 4,096 flows");
    }
    bed.wait_seconds(32);
    assert_eq!((pending(&bed), bed.total(|counters| counters.flows.get())), (0, 0));
    assert_eq!(bed.drops(DropReason::ProxyHeadersFull), 0);
}

#[test]
fn the_proxy_protocol_headers_of_the_other_clouds_and_of_none_have_their_own_lengths() {
    for (dialect, length) in [("google", 39), ("azure", 36), ("off", 0)] {
        let mut bed = Bed::from_toml(1, &configuration(dialect), 4096);
        let client = socket(CLIENT, 4000);
        let syn = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
        assert_eq!(syn.numbers().0, 1000 - length);
        let snat = syn.source();
        let syn_ack = bed.one(PROVIDER, &from_target(snat, Flags::SYN_ACK, 5000, 1001 - length, b""));
        assert_eq!(syn_ack.numbers().1, 1001);
        let sent = bed.one(CONSUMER_A, &from_client(client, Flags::ACK, 1001, b""));
        assert_eq!((sent.numbers().0, sent.payload().len()), (1001 - length, length as usize));
        assert_eq!(pending(&bed), u32::from(length > 0));
    }
}

//! The life of TCP connections where it is not as in the book: nonsense, simultaneous opens, lost segments, reused tuples.

use std::net::SocketAddrV4;

use super::bed::*;
use crate::{DropReason, Verdict};

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);

fn state(bed: &Bed) -> &'static str {
    let mut views = Vec::new();
    bed.workers[0].flows(0, 100, bed.now, &mut views);
    assert_eq!(views.len(), 1);
    views[0].state
}

#[test]
fn segments_that_no_tcp_sends_go_nowhere_and_change_nothing() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let nonsense = [0x03, 0x06, 0x29, 0x05, 0x17, 0x3f];
    // Without a flow they are not even answered.
    for flags in nonsense {
        bed.none(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags(flags), 1, 1, b""), DropReason::TcpFlags);
    }
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    for flags in nonsense {
        bed.none(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags(flags), 1001, 5001, b""), DropReason::TcpFlags);
        bed.none(PROVIDER, &tcp(PROVIDER, target, snat, Flags(flags), 5001, 1001, b""), DropReason::TcpFlags);
        assert_eq!(state(&bed), "established");
    }
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"still here"));
}

#[test]
fn a_simultaneous_open_becomes_a_connection() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let syn = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
    let (snat, target) = (syn.source(), syn.destination());
    let crossing = bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN, 5000, 0, b""));
    assert_eq!((crossing.port, crossing.source(), crossing.destination()), (CONSUMER_A, WEB, client));
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN_ACK, 1000, 5001, b""));
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN_ACK, 5000, 1001, b""));
    assert_eq!(state(&bed), "established");
    bed.wait_seconds(300);
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5001, 1001, b"x"));
    assert_eq!(bed.total(|counters| counters.half_open.get()), 0);
}

#[test]
fn data_behind_a_lost_last_acknowledgement_completes_the_handshake() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let syn = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
    let (snat, target) = (syn.source(), syn.destination());
    for _ in 0..3 {
        bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN_ACK, 5000, 1001, b""));
        bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
        assert_eq!(state(&bed), "syn_received");
    }
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"GET /"));
    assert_eq!(state(&bed), "established");
    // The target had not heard of it, and sends its part again.
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN_ACK, 5000, 1001, b""));
    assert_eq!(state(&bed), "established");
}

#[test]
fn a_client_whose_connection_is_gone_is_told_while_its_tuple_is_half_open() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b""));
    let sent = bed.receive(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 77, 4242, b"old"));
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::TcpState));
    let [reset] = &sent[..] else { panic!("{sent:?}") };
    assert!(reset.tcp().rst && reset.tcp().sequence_number == 4242 && reset.port == CONSUMER_A);
    assert_eq!(state(&bed), "syn_sent");
}

#[test]
fn a_target_that_remembers_an_older_connection_is_led_to_forget_it() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let syn = tcp(CONSUMER_A, client, WEB, Flags::SYN, 1000, 0, b"");
    let first = bed.one(CONSUMER_A, &syn);
    let (snat, target) = (first.source(), first.destination());
    // RFC 5961: a challenge, which the client resets.
    let challenge = bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 9000, 8000, b""));
    assert_eq!(challenge.port, CONSUMER_A);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::RST, 8000, 0, b""));
    assert_eq!(state(&bed), "syn_sent");
    assert_eq!(bed.one(CONSUMER_A, &syn).source(), snat);
    // A RST that acknowledges nothing is not for a client that has only sent a SYN.
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::RST, 9000, 0, b""));
    assert_eq!(state(&bed), "syn_sent");
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::RST_ACK, 0, 1001, b""));
    assert_eq!(state(&bed), "reset");
}

#[test]
fn a_tuple_is_reused_within_the_closing_time_and_the_target_cannot_use_it() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1001, b""));
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::FIN, 1001, 5002, b""));
    assert_eq!(state(&bed), "closing");
    bed.none(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN, 9000, 0, b""), DropReason::TcpState);
    let (again, _) = bed.connect(CONSUMER_A, client);
    assert_ne!(again, snat, "the target may remember the old port");
    assert_eq!(state(&bed), "established");
    bed.none(PROVIDER, &tcp(PROVIDER, target, again, Flags::SYN, 9000, 0, b""), DropReason::TcpState);
    // What is left of the old connection finds nothing.
    bed.receive(PROVIDER, &tcp(PROVIDER, target, snat, Flags::ACK, 5002, 1002, b""));
    assert_eq!(bed.verdict, Verdict::Drop(DropReason::Unsolicited));
}

#[test]
fn retransmissions_keep_a_closing_flow_until_both_ends_are_silent() {
    let mut bed = Bed::new();
    let client = socket(CLIENT, 1);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1001, b""));
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::FIN, 1101, 5002, b""));
    // The client's last data was lost behind the gateway, and takes its time.
    for _ in 0..5 {
        bed.wait_seconds(3);
        bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5002, &[7; 100]));
    }
    assert_eq!(state(&bed), "closing");
    bed.wait_seconds(6);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
}

#[test]
fn both_ends_of_an_idle_connection_get_a_rst_with_their_own_numbers_where_the_listener_says_so() {
    let configuration = CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE_TARGET);
    let telling = configuration.replace("port = 80\n", "port = 80\nidle_seconds = 60\nreset_on_expiry = true\n");
    let mut bed = Bed::from_toml(1, &telling, 1024);
    let client = socket(CLIENT, 1);
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::SYN, 500, 0, b""));
    bed.wait_seconds(55);
    assert!(bed.sent.is_empty());
    bed.wait_seconds(10);
    assert_eq!(bed.total(|counters| counters.flows.get()), 0);
    let asked = std::mem::take(&mut bed.sent);
    let ends: Vec<_> = asked.iter().map(|sent| (sent.port, sent.source(), sent.destination())).collect();
    let (to_target, to_client) = ((PROVIDER, snat, target), (CONSUMER_A, WEB, client));
    assert_eq!(ends, [to_target, to_target, to_client, to_client]);
    for pair in asked.chunks(2) {
        // Whatever the receiver's window is, one of the two is outside of it, and is answered with an acknowledgement.
        let [one, other] = pair else { panic!() };
        assert_eq!(one.tcp().sequence_number.wrapping_sub(other.tcp().sequence_number), 1 << 31);
        assert!(pair.iter().all(|sent| sent.tcp().ack && !sent.tcp().rst && !sent.tcp().syn && sent.bytes.len() == 54));
    }
    for (side, own, to, numbers) in [(CONSUMER_A, client, WEB, (1001, 5001)), (PROVIDER, target, snat, (5001, 1001))] {
        let sent = bed.receive(side, &tcp(side, own, to, Flags::ACK, numbers.0, numbers.1, b""));
        let [reset] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!((reset.port, reset.source(), reset.destination()), (side, to, own));
        assert!(reset.tcp().rst && reset.tcp().sequence_number == numbers.1);
    }
    // A connection that was closed, or of another listener, ends in silence.
    let mut silent = Bed::from_toml(1, &configuration, 1024);
    silent.connect(CONSUMER_A, client);
    silent.wait_seconds(400);
    assert_eq!((silent.total(|counters| counters.flows.get()), silent.sent.len()), (0, 0));
    let (snat, target) = bed.connect(CONSUMER_A, client);
    bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::FIN, 1001, 5001, b""));
    bed.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::FIN, 5001, 1002, b""));
    bed.wait_seconds(70);
    assert_eq!((bed.total(|counters| counters.flows.get()), bed.sent.len()), (0, 0));
}

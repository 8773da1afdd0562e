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

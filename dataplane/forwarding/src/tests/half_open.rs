//! SYN floods: half-open flows have a bounded share of the table, and nobody else notices.

use std::net::{Ipv4Addr, SocketAddrV4};

use postern_wire::Frame;

use super::bed::*;
use crate::{BURST, DropReason, Verdict};

const WEB: SocketAddrV4 = SocketAddrV4::new(ENDPOINT, 80);

/// Puts bursts of SYNs of sources that nobody has into the forwarder, `count` in all, from number `first` on.
fn flood(bed: &mut Bed, first: u32, count: u32) {
    let model = tcp(CONSUMER_A, socket(Ipv4Addr::new(10, 64, 0, 1), 1024), WEB, Flags::SYN, 1, 0, b"");
    let mut buffers = vec![vec![0; 128 + model.len()]; BURST];
    let forwarder = &mut bed.workers[0];
    let counters = forwarder.counters().clone();
    for begin in (first..first + count).step_by(BURST) {
        let size = BURST.min((first + count - begin) as usize);
        let mut frames: Vec<_> = buffers[..size]
            .iter_mut()
            .zip(begin..)
            .map(|(buffer, number)| {
                let source =
                    socket(Ipv4Addr::from_bits(0x0a40_0000 + number / 50_000), 1024 + (number % 50_000) as u16);
                buffer[128..].copy_from_slice(&tcp_with_source(&model, source));
                let length = buffer.len() - 128;
                let mut frame = Frame::new(buffer, 128, length).unwrap();
                frame.ingress = CONSUMER_A;
                frame
            })
            .collect();
        let mut verdicts = [Verdict::Punt; BURST];
        forwarder.process(&mut frames, &mut verdicts, &mut bed.outbox, bed.now);
        for verdict in &verdicts[..size] {
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
            counters.forwarded.add(1);
        }
    }
}

/// The frame with another source; sums are made anew.
fn tcp_with_source(model: &[u8], source: SocketAddrV4) -> Vec<u8> {
    let mut bytes = model.to_vec();
    bytes[26..30].copy_from_slice(&source.ip().octets());
    bytes[34..36].copy_from_slice(&source.port().to_be_bytes());
    bytes[24..26].fill(0);
    let sum = postern_wire::checksum::checksum(&bytes[14..34], 0);
    bytes[24..26].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn a_million_half_open_flows_a_minute_at_one_endpoint_cost_no_established_flow_and_no_other_endpoints_connections() {
    let mut bed = Bed::new();
    // The flood's frames are not looked at one by one, and the target answers none.
    let request = {
        bed.connect(CONSUMER_A, socket(CLIENT, 1));
        bed.requests[0]
    };
    assert_eq!(request.address, *TARGET.ip());
    let established: Vec<_> =
        (0..2000).map(|at| (socket(CLIENT, 2000 + at), bed.connect(CONSUMER_A, socket(CLIENT, 2000 + at)).0)).collect();
    let (mut tried, mut flooded) = (0u16, 0);
    for second in 0..60 {
        for part in 0..10 {
            let share = 1_000_000 / 600;
            flood(&mut bed, flooded, share);
            flooded += share;
            bed.now = bed.now.plus_milliseconds(100);
            bed.housekeeping();
            bed.sent.clear();
            // A legitimate client of the other endpoint, whose target takes its time.
            let client = socket(CLIENT, 10_000 + tried);
            let syn = bed.one(CONSUMER_B, &tcp(CONSUMER_B, client, WEB, Flags::SYN, 1000, 0, b""));
            flood(&mut bed, flooded, 300);
            flooded += 300;
            bed.now = bed.now.plus_milliseconds(if part % 3 == 0 { 90 } else { 0 });
            let answer = bed.one(PROVIDER, &tcp(PROVIDER, TARGET, syn.source(), Flags::SYN_ACK, 5000, 1001, b""));
            assert_eq!((answer.port, answer.destination()), (CONSUMER_B, client));
            bed.one(CONSUMER_B, &tcp(CONSUMER_B, client, WEB, Flags::ACK, 1001, 5001, b""));
            tried += 1;
        }
        let half_open = bed.total(|counters| counters.half_open.get());
        assert!(half_open <= 4096 + 64, "second {second}: {half_open} of 80,000 flows");
        assert_eq!(bed.drops(DropReason::HalfOpenFull) + bed.drops(DropReason::PortsExhausted), 0);
    }
    assert!(flooded >= 1_000_000 && tried == 600);
    // Every one of them succeeded, and of the established ones none is gone.
    for (client, snat) in established {
        let sent = bed.one(CONSUMER_A, &tcp(CONSUMER_A, client, WEB, Flags::ACK, 1001, 5001, b"x"));
        assert_eq!(sent.source(), snat);
    }
    assert!(bed.total(|counters| counters.half_open_evicted.get()) > 900_000);
    bed.wait_seconds(35);
    assert_eq!(bed.total(|counters| counters.half_open.get()), 0);
}

#[test]
fn the_half_open_flows_of_all_endpoints_together_have_an_eighth_of_the_table_and_the_oldest_goes_first() {
    let mut bed = Bed::from_toml(1, &CONFIGURATION.replace("{pool}", POOL).replace("{targets}", ONE_TARGET), 2048);
    let first = bed.one(CONSUMER_B, &tcp(CONSUMER_B, socket(CLIENT, 9), WEB, Flags::SYN, 1, 0, b""));
    bed.now = bed.now.plus_milliseconds(1);
    for port in 0..400u16 {
        for (at, side) in [CONSUMER_A, CONSUMER_B].into_iter().enumerate() {
            let client = socket(CLIENT, 1000 + port);
            bed.one(side, &tcp(side, client, WEB, Flags::SYN, 1, 0, b""));
            let half_open = bed.total(|counters| counters.half_open.get());
            assert!(half_open <= 256, "{port} {at}: {half_open}");
        }
    }
    assert_eq!(bed.total(|counters| counters.half_open.get()), 256);
    // The oldest of all was the first to go.
    bed.receive(PROVIDER, &tcp(PROVIDER, TARGET, first.source(), Flags::SYN_ACK, 1, 2, b""));
    assert_ne!(bed.verdict, Verdict::Forward(CONSUMER_B));
    assert_eq!(bed.total(|counters| counters.half_open_evicted.get()), 801 - 256);
}

//! Connections one after the other: open, one request, close. The target closes first.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use postern_lab::{Topology, network};

use crate::bed::Bed;
use crate::counters::{ANY, SOME};

#[test]
fn a_hundred_thousand_connections_in_turn_never_fail() {
    const CONNECTIONS: u64 = 100_000;
    // Room for as many resting ports as connections end within a minute: a quarter of the flows.
    let Some(bed) = Bed::start(Topology::builder().workers(2).flows(524_288)) else { return };
    let start = Instant::now();
    bed.ask(0, |client| {
        for number in 0..CONNECTIONS {
            if let Err(error) = client.ask_tcp(network::page(), 0) {
                panic!("connection {number} failed: {error}");
            }
        }
    });
    println!("{CONNECTIONS} connections in turn in {:?}", start.elapsed());
    // A FIN that is sent once more to a client that is done already.
    let report = bed.expect_counters(&[("endpoints.client_resets", 0..=10)]);
    assert_eq!(report.total.frames.flows_new, CONNECTIONS);
}

#[test]
fn ports_that_still_rest_are_used_when_no_other_is_free_and_counted() {
    /// 768 ports toward each of three targets, for 3,000 connections within the minute for which a port rests.
    const CONNECTIONS: usize = 3000;
    /// Closed connections keep their ports for four seconds: that many at once must fit.
    const PAUSE: Duration = Duration::from_millis(2);
    let start = Bed::start_with(Topology::builder().workers(2), |declaration| {
        declaration.snat_pools[0].addresses.truncate(1);
        declaration.snat_pools[0].ports = Some("1024-1791".into());
    });
    let Some(bed) = start else { return };
    let mut used: BTreeSet<(String, SocketAddr)> = BTreeSet::new();
    let mut again = 0;
    bed.ask(0, |client| {
        for number in 0..CONNECTIONS {
            let reply = client.ask_tcp(network::page(), 0).unwrap_or_else(|error| panic!("{number}: {error}"));
            again += u64::from(!used.insert((reply.answer.target, reply.answer.seen)));
            std::thread::sleep(PAUSE);
        }
    });
    assert!(again > 0, "{} ports were enough", used.len());
    let report = bed.expect_counters(&[
        ("frames.ports_early", SOME),
        // The target may still be in TIME_WAIT: then the client resets that and asks once more.
        ("endpoints.client_resets", ANY),
        // A worker without a rested port asks the other.
        ("frames.handed_out", ANY),
        ("frames.handed_in", ANY),
        ("frames.flows_lent", ANY),
    ]);
    assert_eq!(report.total.frames.ports_early, again);
}

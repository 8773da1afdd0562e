//! Fragments of real stacks: datagrams larger than any frame, both ways, with and without the kernel's help.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use postern_lab::network::{self, ENDPOINT, Network};
use postern_lab::{Client, Offloads, Topology, Way};

use crate::bed::{Bed, eventually, run};
use crate::counters::ANY;
use crate::frames::Sender;
use crate::noise::frame;
use crate::sizes::ping;
use crate::traffic::PingPong;

/// Counters that move as the workers happen to own datagrams and flows.
const HANDED: [(&str, std::ops::RangeInclusive<u64>); 2] = [("frames.handed_out", ANY), ("frames.handed_in", ANY)];

/// Has all stacks leave DF clear, as senders without path MTU discovery do: before there is any socket, which keeps what was
/// set when it was made.
fn leave_df_clear(network: &Network) {
    for node in network.clients.iter().chain(&network.targets) {
        node.namespace().set_sysctl("net.ipv4.ip_no_pmtu_disc", "1").unwrap();
    }
}

/// Has the gateway find all targets: for one that it does not know yet only a few frames wait.
fn meet_the_targets(client: Client) {
    for seed in 0..40 {
        client.ask_udp(network::echo(), 0, seed, 10).unwrap();
    }
}

#[test]
fn fragments_of_datagrams_of_every_size_cross_both_ways() {
    for (workers, offloads) in [(1, Offloads::On), (3, Offloads::Off)] {
        let Some(bed) = Bed::start(Topology::builder().workers(workers).offloads(offloads)) else { return };
        bed.ask(0, |client| {
            meet_the_targets(client);
            let sizes = [1, 1472, 1473, 2000, 2952, 2953, 9000, 20_000, 60_000];
            for (seed, size) in (1..).zip(sizes) {
                client.ask_udp(network::echo(), 0, seed, size).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
            }
            // Several in one flow.
            for seed in 100..110 {
                client.ask_udp(network::echo(), 40_000, seed, 5000).unwrap_or_else(|error| panic!("{seed}: {error}"));
            }
        });
        let report = bed.expect_counters(&HANDED);
        assert!(report.endpoints[0].traffic.packets_forward > 100, "the datagrams came in fragments");
    }
}

#[test]
fn fragments_of_a_ping_of_any_size_are_answered() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    run(bed.client(0), || {
        for (size, sequence) in [1473, 3000, 20_000, 60_000].into_iter().zip(1..) {
            assert!(ping(ENDPOINT, sequence, size).is_some(), "{size} bytes");
        }
    });
    // 2 + 3 + 14 + 41 fragments.
    let expected = [&HANDED[..], &[("frames.answered", 60..=60)]].concat();
    bed.expect_counters(&expected);
}

#[test]
fn mtu_of_jumbo_frames_and_ordinary_ones_is_bridged_by_fragments_where_df_is_clear_and_told_where_it_is_set() {
    // Set: the client's first datagram comes back as ICMP, the next fits.
    let Some(bed) = Bed::start(Topology::builder().mtus(9000, 1500)) else { return };
    run(bed.client(0), || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.connect(network::echo()).unwrap();
        let mut answer = [0; 9000];
        let answered = (0..20).find_map(|_| {
            // The error of the one before may be reported here.
            let _told = socket.send(&[7; 4000]);
            socket.recv(&mut answer).ok()
        });
        let length = answered.expect("the client learns the MTU");
        assert!(answer[..length].ends_with(&[7; 4000]));
    });
    bed.expect_counters(&[("drops.too_big", 1..=1), ("endpoints.drops", 1..=1), ("frames.made", 1..=1)]);
    drop(bed);

    // Clear: the gateway cuts.
    for (consumers, provider) in [(9000, 1500), (1500, 9000)] {
        let topology = Topology::builder().mtus(consumers, provider).workers(2).prepare(leave_df_clear);
        let Some(bed) = Bed::start(topology) else { return };
        bed.ask(0, |client| {
            meet_the_targets(client);
            for (seed, size) in (1..).zip([1000, 1473, 4000, 8400, 8472, 30_000, 60_000]) {
                client.ask_udp(network::echo(), 0, seed, size).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
            }
            for (seed, way) in [(1, Way::Upload), (2, Way::Download)] {
                client.bulk(network::bulk(), way, seed, 1 << 20).unwrap();
            }
        });
        let expected = [&HANDED[..], &[("frames.made", 1..=1000), ("endpoints.client_resets", ANY)]].concat();
        bed.expect_counters(&expected);
    }
}

#[test]
fn super_frames_whose_segments_exceed_the_mtu_are_cut_into_fragments_where_df_is_clear() {
    const SEGMENT: usize = 2000;
    let Some(bed) = Bed::start(Topology::builder().mtus(9000, 1500).prepare(leave_df_clear)) else { return };
    run(bed.client(0), || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.connect(network::echo()).unwrap();
        let mut answer = [0; 9000];
        // The neighbours are found by an ordinary datagram.
        socket.send(b"first").unwrap();
        socket.recv(&mut answer).unwrap();
        setsockopt(&socket, UdpGsoSegment, &(SEGMENT as i32)).unwrap();
        let burst: Vec<u8> = (0..4).flat_map(|number| [number as u8; SEGMENT]).collect();
        assert_eq!(socket.send(&burst).unwrap(), burst.len());
        let mut numbers: Vec<u8> = (0..4)
            .map(|_| {
                let length = socket.recv(&mut answer).unwrap();
                let echoed = &answer[length - SEGMENT..length];
                assert!(echoed.iter().all(|byte| *byte == echoed[0]), "segments are mixed");
                echoed[0]
            })
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3]);
    });
    bed.expect_counters(&[("frames.made", 1..=7)]);
}

/// A fragment of which no first will come.
fn lone(number: u32) -> Vec<u8> {
    let source = Ipv4Addr::from_bits(0x0a40_0000 + number % 5000);
    let mut packet = vec![0x45, 0];
    packet.extend(1220_u16.to_be_bytes());
    packet.extend((number as u16).to_be_bytes());
    packet.extend([0, 185, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(ENDPOINT.octets());
    let sum = postern_wire::checksum::checksum(&packet, 0);
    packet[10..12].copy_from_slice(&sum.to_le_bytes());
    packet.resize(1220, 7);
    packet
}

#[test]
fn fragments_without_a_first_in_any_number_leave_live_flows_and_other_fragments_alone() {
    const FRAMES: u32 = 65_536;
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let ping_pong = PingPong::start(bed.client(1));
    let mut sender = Sender::new(bed.client(0).namespace(), "eth0");
    for number in 0..FRAMES {
        sender.send(&frame(&lone(number)));
        // No faster than they are taken: nothing may get lost before the gateway sees it.
        if number % 1024 == 0 {
            bed.ask(0, |client: Client| client.ask_udp(network::echo(), 0, 7, 9000).unwrap());
        }
    }
    assert_eq!(ping_pong.stop(), Vec::<u64>::new());
    eventually("all that was held is given up", Duration::from_secs(60), || bed.counters().total.frames.held == 0);
    let expected = [
        &HANDED[..],
        &[
            ("drops.fragment_full", ANY),
            ("drops.fragment_timeout", 1..=u64::MAX),
            ("drops.fragment_duplicate", ANY),
            ("endpoints.drops", ANY),
        ],
    ]
    .concat();
    let report = bed.expect_counters(&expected);
    assert_eq!(report.total.drops.values().sum::<u64>(), u64::from(FRAMES));
}

//! Frames that make no sense: counted by their reason, while live flows go on.

use postern_lab::network::{CLIENT, ENDPOINT};
use postern_lab::{Topology, Way};

use crate::bed::Bed;
use crate::counters::ANY;
use crate::frames::Sender;
use crate::traffic::{PingPong, Transfers};
use crate::wiring::datagram;

/// The gateway's port toward the first consumer, and a sender of ours.
const ETHERNET: [u8; 14] = [2, 0, 0, 0, 0x0a, 1, 2, 0, 0, 0, 0, 9, 8, 0];

pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    [&ETHERNET[..], packet].concat()
}

/// The packet with some bytes of its IPv4 header exchanged and the header's checksum made right again.
fn changed(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    packet[10..12].fill(0);
    let sum = postern_wire::checksum::checksum(&packet[..20], 0);
    packet[10..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

#[test]
fn each_kind_of_bad_frame_is_counted_by_its_reason_and_makes_no_flow() {
    let Some(bed) = Bed::start(Topology::builder()) else { return };
    let good = || datagram(CLIENT, ENDPOINT, 7);
    let mut foreign = frame(&good());
    foreign[5] = 0x77;
    let mut checksum = good();
    checksum[10] ^= 1;
    let mut udp = good();
    udp[24..26].copy_from_slice(&200_u16.to_be_bytes());
    let other_type = [&ETHERNET[..12], &[0x88, 0xb5], &[0; 40]].concat();
    let frames: [(&str, Vec<u8>); 11] = [
        ("foreign_mac", foreign),
        ("ethertype", other_type),
        ("truncated", frame(&good()[..15])),
        ("ip_header", frame(&changed(good(), 0, &[0x44]))),
        ("ip_length", frame(&changed(good(), 2, &[0x10, 0]))),
        ("ip_checksum", frame(&checksum)),
        ("udp_length", frame(&udp)),
        ("fragment_header", frame(&changed(good(), 6, &[0x20, 0]))),
        ("protocol", frame(&changed(good(), 9, &[132]))),
        ("bad_source", frame(&datagram(ENDPOINT, ENDPOINT, 7))),
        ("not_local", frame(&datagram(CLIENT, [10, 0, 0, 99].into(), 7))),
    ];
    let mut sender = Sender::new(bed.client(0).namespace(), "eth0");
    for (_, bytes) in &frames {
        sender.send(bytes);
    }
    let names: Vec<String> = frames.iter().map(|(reason, _)| format!("drops.{reason}")).collect();
    let mut expected: Vec<_> = names.iter().map(|name| (name.as_str(), 1..=1)).collect();
    // Where the endpoint is known it counts too.
    expected.push(("endpoints.drops", 2..=2));
    let report = bed.expect_counters(&expected);
    assert_eq!((report.total.frames.flows_new, report.total.frames.forwarded), (0, 0));
}

#[test]
fn a_flood_of_random_frames_is_counted_and_live_flows_go_on() {
    const FRAMES: usize = 20_000;
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let transfers = Transfers::start(bed.client(1), Way::Upload);
    let ping_pong = PingPong::start(bed.client(1));
    let mut sender = Sender::new(bed.client(0).namespace(), "eth0");
    let mut random = postern_lab::stream::Stream::new(99);
    for number in 0..FRAMES {
        let mut bytes = vec![0; 1 + number % 400];
        random.fill(&mut bytes);
        // Half of them look like IPv4 to the endpoint.
        if number % 2 == 0 && bytes.len() >= 20 {
            bytes[0] = 0x45;
            bytes[16..20].copy_from_slice(&ENDPOINT.octets());
        }
        sender.send(&frame(&bytes));
    }
    assert_eq!(ping_pong.stop(), Vec::<u64>::new());
    assert!(!transfers.stop().is_empty());
    let report = bed.expect_counters(&[
        ("drops.truncated", ANY),
        ("drops.ip_header", ANY),
        ("drops.ip_length", ANY),
        ("drops.ip_checksum", ANY),
        ("drops.not_local", ANY),
        ("drops.bad_source", ANY),
        ("drops.protocol", ANY),
        ("drops.fragment_header", ANY),
    ]);
    assert_eq!(report.total.drops.values().sum::<u64>(), FRAMES as u64);
}

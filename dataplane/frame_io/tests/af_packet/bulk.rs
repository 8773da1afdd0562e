//! A kernel's TCP through a bridge of two devices: bytes and checksums right, with and without super-frames.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use postern_frame_io::features::{self, Features, set_features};
use postern_wire::Segmentation;

use super::*;
use crate::topology::RIGHT;

const TOTAL: usize = 48 << 20;

struct Transfer {
    gigabits_per_second: f64,
    super_frames: u64,
    longest: usize,
    partial: u64,
}

/// Sends `total` bytes from left to right, and checks each byte.
fn transfer(topology: &Topology, total: usize) -> Transfer {
    let mut bridge = Bridge::open(topology, &ReceiverConfig { slots: 8192, ..small() });
    let listener = topology.right.run(|| TcpListener::bind((RIGHT, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    // Of a length that no segment size divides, so that a lost or repeated segment is seen.
    let pattern: Vec<u8> = (0..1_000_003u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut result = Transfer { gigabits_per_second: 0.0, super_frames: 0, longest: 0, partial: 0 };
    let observe = |frame: &Frame<'_>| {
        if frame.offload.is_segmented() {
            assert_eq!(frame.offload.segmentation(), Segmentation::TcpV4);
            result.super_frames += 1;
        }
        result.partial += u64::from(frame.offload.is_partial());
        result.longest = result.longest.max(frame.len());
    };
    let seconds = bridge.run(observe, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = topology.left.run(|| TcpStream::connect((RIGHT, port)).unwrap());
                let mut left = total;
                while left > 0 {
                    let part = left.min(pattern.len());
                    client.write_all(&pattern[..part]).unwrap();
                    left -= part;
                }
            });
            let (mut server, _) = listener.accept().unwrap();
            server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let start = Instant::now();
            let mut buffer = vec![0; pattern.len()];
            let mut left = total;
            while left > 0 {
                let part = left.min(pattern.len());
                server.read_exact(&mut buffer[..part]).unwrap();
                assert!(buffer[..part] == pattern[..part], "bytes were changed on the way");
                left -= part;
            }
            start.elapsed().as_secs_f64()
        })
    });
    for (namespace, side) in [(&topology.left, "left"), (&topology.right, "right")] {
        assert_eq!(namespace.counter("Tcp", "InCsumErrors"), 0, "{side}");
        assert_eq!(namespace.counter("Ip", "InHdrErrors"), 0, "{side}");
    }
    for statistics in bridge.statistics() {
        assert_clean(&ReceiveStatistics { kernel_drops: 0, ..statistics });
    }
    result.gigabits_per_second = total as f64 * 8.0 / seconds / 1e9;
    result
}

#[test]
fn tcp_super_frames_of_64_kb_pass_with_partial_checksums() {
    let Some(topology) = Topology::new() else { return };
    let result = transfer(&topology, TOTAL);
    eprintln!("{:.2} Gbit/s", result.gigabits_per_second);
    assert!(result.super_frames > 100);
    assert!(result.longest > 60_000, "{}", result.longest);
    assert!(result.partial > 100);
}

#[test]
fn tcp_passes_a_sender_without_offloads_frame_by_frame() {
    let Some(topology) = Topology::new() else { return };
    topology.left.run(|| set_features("eth0", &[("tx-checksum-ip-generic", false)]).unwrap());
    assert!(!topology.left.run(|| Features::read("eth0").unwrap().is_active(features::TCP_SEGMENTATION)));
    let result = transfer(&topology, TOTAL / 4);
    eprintln!("{:.2} Gbit/s", result.gigabits_per_second);
    assert_eq!((result.super_frames, result.longest), (0, 1514));
}

#[test]
fn receive_offload_makes_super_frames_of_a_sender_without_offloads() {
    let Some(topology) = Topology::new() else { return };
    topology.left.run(|| set_features("eth0", &[("tx-checksum-ip-generic", false)]).unwrap());
    let changed = topology.middle.run(|| set_features("port0", &[(features::GRO, true)]).unwrap());
    assert_eq!(changed, [(features::GRO.to_owned(), false)]);
    let result = transfer(&topology, TOTAL / 2);
    eprintln!("{:.2} Gbit/s", result.gigabits_per_second);
    assert!(result.super_frames > 100);
    // And what it changed can be put back.
    let wanted: Vec<_> = changed.iter().map(|(name, on)| (name.as_str(), *on)).collect();
    let back = topology.middle.run(|| set_features("port0", &wanted).unwrap());
    assert_eq!(back, [(features::GRO.to_owned(), true)]);
}

#[test]
#[ignore = "measures; run it alone and in release"]
fn tcp_reaches_several_gigabits_a_second() {
    let Some(topology) = Topology::new() else { return };
    let result = transfer(&topology, 4 << 30);
    eprintln!("{:.2} Gbit/s", result.gigabits_per_second);
    assert!(result.gigabits_per_second > 3.0);
}

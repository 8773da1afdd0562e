//! Frames keep their bytes, their order, their tag and their offload state.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use postern_wire::Segmentation;

use super::*;
use crate::topology::RIGHT;

#[test]
fn frames_of_every_size_pass_in_order_with_their_bytes() {
    let Some(topology) = Topology::new() else { return };
    let frames: Vec<_> = (0..1500).map(|number| numbered(number, 18 + number as usize % 1497)).collect();
    let mut bridge = Bridge::open(&topology, &ReceiverConfig { slots: 4096, ..small() });
    let mut from = transmitter(&topology.left, "eth0");
    let mut to = receiver(&topology.right, "eth0", &ReceiverConfig { slots: 4096, ..small() });
    let seen = bridge.run(
        |_| {},
        || {
            assert_eq!(send(&mut from, &frames, NO_VLAN), []);
            collect(&mut to, frames.len())
        },
    );
    let expected: Vec<_> =
        frames.into_iter().map(|bytes| Seen { bytes, offload: Offload::NONE, vlan: NO_VLAN }).collect();
    assert_eq!(seen.len(), expected.len());
    assert!(seen == expected);
    bridge.statistics().iter().for_each(assert_clean);
}

#[test]
fn a_udp_super_frame_passes_as_one_frame_and_arrives_as_its_datagrams() {
    let Some(topology) = Topology::new() else { return };
    let server = topology.right.run(|| UdpSocket::bind((RIGHT, 9000)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let client = topology.left.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let mut bridge = Bridge::open(&topology, &small());
    let mut segmented = Vec::new();
    let payload: Vec<u8> = (0..56_000).map(|at| (at / 1400 + at % 251) as u8).collect();
    bridge.run(
        |frame| {
            if frame.offload.is_segmented() {
                segmented.push((frame.len(), frame.offload));
            }
        },
        || {
            setsockopt(&client.as_fd(), UdpGsoSegment, &1400).unwrap();
            client.send_to(&payload, (RIGHT, 9000)).unwrap();
            let mut datagram = [0; 2000];
            for expected in payload.chunks(1400) {
                let length = server.recv(&mut datagram).unwrap();
                assert!(datagram[..length] == *expected);
            }
        },
    );
    let [(length, offload)] = segmented[..] else { panic!("{segmented:?}") };
    assert_eq!(length, 14 + 20 + 8 + 56_000);
    assert_eq!((offload.segmentation(), offload.segment_size), (Segmentation::UdpL4, 1400));
    assert_eq!((offload.checksum_start, offload.checksum_offset), (34, 6));
    assert_eq!(topology.right.counter("Udp", "InCsumErrors"), 0);
    assert_eq!(bridge.statistics()[0].large, 1);
}

#[test]
fn a_tag_arrives_beside_the_frame_and_goes_back_into_it() {
    let Some(topology) = Topology::new() else { return };
    let mut bridge = Bridge::open(&topology, &small());
    let mut from = transmitter(&topology.left, "eth0");
    let mut to = receiver(&topology.right, "eth0", &small());
    let tag = 3 << 13 | 100;
    let mut tags = Vec::new();
    let mut service = numbered(7, 60);
    service.splice(12..12, [0x88, 0xa8, 0, 200]);
    let seen = bridge.run(
        |frame| tags.push((frame.len(), frame.vlan)),
        || {
            assert_eq!(send(&mut from, &[numbered(1, 60)], tag), []);
            assert_eq!(send(&mut from, &[numbered(2, 60)], NO_VLAN), []);
            assert_eq!(send(&mut from, std::slice::from_ref(&service), NO_VLAN), []);
            // A tag in a tag: the outer one is beside the frame, the inner stays.
            assert_eq!(send(&mut from, std::slice::from_ref(&service), 5), []);
            collect(&mut to, 4)
        },
    );
    // A service tag (802.1ad) has no place beside the frame, and stays visible in it.
    assert_eq!(tags, [(60, tag), (60, NO_VLAN), (64, NO_VLAN), (64, 5)]);
    let expected = [(numbered(1, 60), tag), (numbered(2, 60), NO_VLAN), (service.clone(), NO_VLAN), (service, 5)];
    let seen: Vec<_> = seen.into_iter().map(|seen| (seen.bytes, seen.vlan)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn a_frame_that_is_too_long_is_refused_alone_and_those_behind_it_are_sent() {
    let Some(topology) = Topology::new() else { return };
    let mut from = transmitter(&topology.middle, "port1");
    let mut to = receiver(&topology.right, "eth0", &small());
    let lengths = [60, 1514, 3000, 1514, 1519, 60];
    let frames: Vec<_> = (0..).zip(lengths).map(|(number, length)| numbered(number, length)).collect();
    let refusals = send(&mut from, &frames, NO_VLAN);
    assert_eq!(refusals, [(2, Errno::EMSGSIZE), (4, Errno::EMSGSIZE)]);
    let seen: Vec<_> = collect(&mut to, 4).into_iter().map(|seen| seen.bytes).collect();
    assert!(seen == [0, 1, 3, 5].map(|at: usize| frames[at].clone()));
    let statistics = from.statistics();
    assert_eq!((statistics.accepted, statistics.refused), (4, 2));
}

#[test]
fn a_frame_without_room_for_its_offload_state_is_refused_alone() {
    let Some(topology) = Topology::new() else { return };
    let mut from = transmitter(&topology.middle, "port1");
    let mut to = receiver(&topology.right, "eth0", &small());
    let mut buffers: Vec<_> = (0..3).map(|number| [&[0; 10], numbered(number, 60).as_slice()].concat()).collect();
    let mut burst = Burst::new();
    for (buffer, start) in buffers.iter_mut().zip([10, 9, 10]) {
        let length = buffer.len() - start;
        burst.push(Frame::new(buffer, start, length).unwrap()).unwrap();
    }
    let mut report = TransmitReport::new();
    from.transmit(burst.frames_mut(), &[2, 1, 0], &mut report);
    assert_eq!(report.refusals().collect::<Vec<_>>(), [(1, Errno::EINVAL)]);
    let seen: Vec<_> = collect(&mut to, 2).into_iter().map(|seen| seen.bytes).collect();
    assert_eq!(seen, [numbered(2, 60), numbered(0, 60)]);
}

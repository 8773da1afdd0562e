//! What is lost is counted, and one frame's bytes never travel under another's header.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt::UdpGsoSegment};
use postern_wire::Segmentation;

use super::*;

/// A sender of super-frames, each of its own length, segment size and contents.
struct Sender {
    socket: UdpSocket,
}

impl Sender {
    /// Without a bridge no neighbour answers, so that super-frames go to the network's broadcast address.
    fn new(topology: &Topology) -> Self {
        let socket = topology.left.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_broadcast(true).unwrap();
        Self { socket }
    }

    fn send(&self, numbers: std::ops::Range<u16>) {
        for number in numbers {
            let payload = vec![number as u8; payload_length(number)];
            setsockopt(&self.socket, UdpGsoSegment, &i32::from(segment_size(number))).unwrap();
            self.socket.send_to(&payload, ("10.99.0.255", 9000)).unwrap();
        }
    }
}

fn payload_length(number: u16) -> usize {
    20_000 + 100 * usize::from(number)
}

fn segment_size(number: u16) -> u16 {
    1000 + number
}

/// The numbers of the super-frames that came, each checked: length, contents, and what came beside it belong together.
fn numbers(seen: &[Seen]) -> Vec<u16> {
    let number = |seen: &Seen| {
        let number = u16::from(seen.bytes[100]);
        assert_eq!(seen.bytes.len(), 42 + payload_length(number), "length of {number}");
        assert!(seen.bytes[42..].iter().all(|byte| *byte == number as u8), "contents of {number}");
        assert_eq!(seen.offload.segmentation(), Segmentation::UdpL4);
        assert_eq!(seen.offload.segment_size, segment_size(number), "segment size of {number}");
        number
    };
    seen.iter().map(number).collect()
}

/// A sender on the left, and the device that receives from it.
fn prepare(config: &ReceiverConfig<'_>) -> Option<(Topology, Sender, PacketReceiver)> {
    let topology = Topology::new()?;
    let sender = Sender::new(&topology);
    let receiver = receiver(&topology.middle, "port0", config);
    Some((topology, sender, receiver))
}

fn wait_for_ring(receiver: &PacketReceiver) {
    assert!(sleep(receiver.poll_fd(), None, Duration::from_secs(2)));
    thread::sleep(Duration::from_millis(20));
}

#[test]
fn after_a_frame_was_taken_from_under_us_no_frame_is_mispaired_and_later_ones_come() {
    let Some((_topology, sender, mut receiver)) = prepare(&small()) else { return };
    sender.send(0..8);
    wait_for_ring(&receiver);
    let mut burst = Burst::new();
    // Something else reads the first frame of the receive queue.
    let socket = receiver.poll_fd().unwrap().as_raw_fd();
    assert!(recv(socket, &mut [0; 64], MsgFlags::MSG_TRUNC).unwrap() > 0);
    receiver.receive(&mut burst).unwrap();
    assert_eq!(burst.len(), 0, "the queue was emptied, and with it the other seven");
    let statistics = receiver.statistics();
    assert_eq!((statistics.pairing_mismatches, statistics.unpaired, statistics.resynchronisations), (1, 7, 1));
    sender.send(8..20);
    assert_eq!(numbers(&collect(&mut receiver, 12)), (8..20).collect::<Vec<_>>());
    assert_eq!(receiver.statistics(), ReceiveStatistics { delivered: 12, large: 12, ..statistics });
}

#[test]
fn after_a_failed_recv_in_the_middle_no_frame_is_mispaired_and_later_ones_come() {
    let Some((topology, sender, mut receiver)) = prepare(&ReceiverConfig { large_buffers: 3, ..small() }) else {
        return;
    };
    sender.send(0..8);
    wait_for_ring(&receiver);
    let mut burst = Burst::new();
    assert_eq!(receiver.receive(&mut burst).unwrap(), 3, "as many as there are buffers");
    // The kernel keeps ENETDOWN for the socket: the next recv fails, and takes nothing out of the queue.
    topology.middle.set_up("port0", false);
    topology.middle.set_up("port0", true);
    let mut seen = Vec::new();
    collect_once(&mut receiver, &mut seen);
    assert_eq!(seen, [], "the queue was emptied");
    let statistics = receiver.statistics();
    assert_eq!((statistics.receive_failures, statistics.unpaired, statistics.resynchronisations), (1, 4, 1));
    topology.wait_for_carrier("port0", &topology.left).unwrap();
    sender.send(8..12);
    assert_eq!(numbers(&collect(&mut receiver, 4)), (8..12).collect::<Vec<_>>());
    assert_eq!(receiver.statistics(), ReceiveStatistics { delivered: 7, large: 7, ..statistics });
}

#[test]
fn more_large_frames_than_buffers_come_in_several_bursts() {
    let Some((_topology, sender, mut receiver)) = prepare(&ReceiverConfig { large_buffers: 2, ..small() }) else {
        return;
    };
    sender.send(0..15);
    assert_eq!(numbers(&collect(&mut receiver, 15)), (0..15).collect::<Vec<_>>());
    assert_clean(&receiver.statistics());
}

#[test]
fn large_frames_that_do_not_fit_the_receive_queue_are_counted_and_those_that_do_come_whole() {
    let config = ReceiverConfig { receive_buffer: 100_000, ..small() };
    let Some((_topology, sender, mut receiver)) = prepare(&config) else { return };
    sender.send(0..20);
    wait_for_ring(&receiver);
    let seen = numbers(&collect(&mut receiver, 20));
    let statistics = receiver.statistics();
    assert!(!seen.is_empty() && seen.len() < 20, "{seen:?}");
    assert_eq!(seen.len() as u64 + statistics.truncated, 20);
    assert_eq!(statistics.pairing_mismatches + statistics.unpaired, 0);
    sender.send(20..21);
    assert_eq!(numbers(&collect(&mut receiver, 1)), [20]);
}

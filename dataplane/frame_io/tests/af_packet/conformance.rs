//! What every device does alike: frames keep their bytes, their order, their tag and their offload state, what is lost is
//! counted, and an interface may go down, away, and come back.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use postern_frame_io::af_packet::{FanoutMode, PacketFanout};
use postern_frame_io::io_uring::{RingReceiver, RingReceiverConfig, RingTransmitter};
use postern_frame_io::{DeviceError, Errno};
use postern_wire::Segmentation;

use super::*;
use crate::pressure::{
    a_full_send_buffer_is_waited_for_once_a_call_and_then_its_frames_are_refused_and_later_ones_go,
    frames_that_the_queue_of_an_interface_drops_are_refused_one_by_one_and_nothing_else_is_lost,
};
use crate::topology::RIGHT;

/// A kind of device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    AfPacket,
    IoUring,
    /// A thread of the kernel receives.
    IoUringWithKernelThread,
}

/// How a test wants a receiver.
#[derive(Clone, Copy)]
struct Wanted {
    port: PortIndex,
    fanout: Option<PacketFanout<'static>>,
    /// Whether there is hardly any room for frames that wait.
    little_room: bool,
}

const PLAIN: Wanted = Wanted { port: PortIndex(0), fanout: None, little_room: false };

impl Kind {
    fn receiver(self, namespace: &Namespace, name: &str, wanted: &Wanted) -> Box<dyn Receive> {
        let interface = namespace.interface(name);
        let Wanted { port, fanout, little_room } = *wanted;
        namespace.run(|| match self {
            Self::AfPacket => {
                let slots = if little_room { 64 } else { 4096 };
                let config = ReceiverConfig { port, fanout, slots, ..ReceiverConfig::default() };
                Box::new(PacketReceiver::open(&interface, &config).unwrap()) as Box<dyn Receive>
            }
            Self::IoUring | Self::IoUringWithKernelThread => {
                let config = RingReceiverConfig {
                    port,
                    fanout,
                    receive_buffer: if little_room { 48 << 10 } else { 16 << 20 },
                    kernel_thread: self == Self::IoUringWithKernelThread,
                    ..RingReceiverConfig::default()
                };
                Box::new(RingReceiver::open(&interface, &config).unwrap())
            }
        })
    }

    pub(crate) fn transmitter(self, namespace: &Namespace, name: &str) -> Box<dyn Transmit> {
        self.transmitter_with(namespace, name, SEND_BUFFER)
    }

    pub(crate) fn transmitter_with(self, namespace: &Namespace, name: &str, send_buffer: u32) -> Box<dyn Transmit> {
        let interface = namespace.interface(name);
        namespace.run(|| match self {
            Self::AfPacket => Box::new(PacketTransmitter::open(&interface, send_buffer).unwrap()) as Box<dyn Transmit>,
            Self::IoUring | Self::IoUringWithKernelThread => {
                Box::new(RingTransmitter::open(&interface, send_buffer).unwrap())
            }
        })
    }

    fn bridge(self, topology: &Topology) -> Bridge {
        let middle = &topology.middle;
        let receiver = |at| self.receiver(middle, &format!("port{at}"), &Wanted { port: PortIndex(at), ..PLAIN });
        Bridge {
            receivers: [receiver(0), receiver(1)],
            transmitters: [self.transmitter(middle, "port0"), self.transmitter(middle, "port1")],
        }
    }
}

/// Each test for each kind of device.
macro_rules! each_kind {
    ($($test:ident,)*) => {
        each_kind! { @ af_packet AfPacket: $($test,)* }
        each_kind! { @ io_uring IoUring: $($test,)* }
        each_kind! { @ io_uring_with_kernel_thread IoUringWithKernelThread: $($test,)* }
    };
    (@ $module:ident $kind:ident: $($test:ident,)*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    if let Some(topology) = super::Topology::new() {
                        super::$test(super::Kind::$kind, &topology);
                    }
                }
            )*
        }
    };
}

each_kind! {
    frames_of_every_size_pass_in_order_with_their_bytes,
    a_udp_super_frame_passes_as_one_frame_and_arrives_as_its_datagrams,
    a_tag_arrives_beside_the_frame_and_goes_back_into_it,
    a_frame_that_is_too_long_is_refused_alone_and_those_behind_it_are_sent,
    a_frame_without_room_for_its_offload_state_is_refused_alone,
    our_own_frames_do_not_come_back_also_in_a_fan_out_group,
    frames_for_which_there_was_no_room_are_counted_however_often_the_count_is_read,
    an_interface_that_goes_down_is_told_once_and_the_socket_survives,
    an_interface_that_is_deleted_is_told_and_its_successor_is_opened,
    a_device_that_was_let_go_with_frames_in_it_leaves_nothing_behind,
    a_full_send_buffer_is_waited_for_once_a_call_and_then_its_frames_are_refused_and_later_ones_go,
    frames_that_the_queue_of_an_interface_drops_are_refused_one_by_one_and_nothing_else_is_lost,
}

fn frames_of_every_size_pass_in_order_with_their_bytes(kind: Kind, topology: &Topology) {
    let frames: Vec<_> = (0..1500).map(|number| numbered(number, 18 + number as usize % 1497)).collect();
    let mut bridge = kind.bridge(topology);
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

fn a_udp_super_frame_passes_as_one_frame_and_arrives_as_its_datagrams(kind: Kind, topology: &Topology) {
    let server = topology.right.run(|| UdpSocket::bind((RIGHT, 9000)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let client = topology.left.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let mut bridge = kind.bridge(topology);
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
    assert_eq!(bridge.statistics()[0].large, u64::from(kind == Kind::AfPacket));
}

fn a_tag_arrives_beside_the_frame_and_goes_back_into_it(kind: Kind, topology: &Topology) {
    let mut bridge = kind.bridge(topology);
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

fn a_frame_that_is_too_long_is_refused_alone_and_those_behind_it_are_sent(kind: Kind, topology: &Topology) {
    let mut from = kind.transmitter(&topology.middle, "port1");
    let mut to = receiver(&topology.right, "eth0", &small());
    let lengths = [60, 1514, 3000, 1514, 1519, 60];
    let frames: Vec<_> = (0..).zip(lengths).map(|(number, length)| numbered(number, length)).collect();
    let refusals = send(from.as_mut(), &frames, NO_VLAN);
    assert_eq!(refusals, [(2, Errno::EMSGSIZE), (4, Errno::EMSGSIZE)]);
    let seen: Vec<_> = collect(&mut to, 4).into_iter().map(|seen| seen.bytes).collect();
    assert!(seen == [0, 1, 3, 5].map(|at: usize| frames[at].clone()));
    let statistics = from.statistics();
    assert_eq!((statistics.accepted, statistics.refused), (4, 2));
}

fn a_frame_without_room_for_its_offload_state_is_refused_alone(kind: Kind, topology: &Topology) {
    let mut from = kind.transmitter(&topology.middle, "port1");
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

fn our_own_frames_do_not_come_back_also_in_a_fan_out_group(kind: Kind, topology: &Topology) {
    let group = PacketFanout { group: 1, mode: FanoutMode::Hash };
    let wanted = Wanted { fanout: Some(group), ..PLAIN };
    let mut members = [0, 1].map(|_| kind.receiver(&topology.middle, "port0", &wanted));
    let mut alone = kind.receiver(&topology.middle, "port1", &PLAIN);
    let frames: Vec<_> = (0..64).map(|number| numbered(number, 60)).collect();
    for port in ["port0", "port1"] {
        assert_eq!(send(kind.transmitter(&topology.middle, port).as_mut(), &frames, NO_VLAN), []);
    }
    assert_eq!(collect(alone.as_mut(), 0), []);
    for member in &mut members {
        assert_eq!(collect(member.as_mut(), 0), []);
    }
    // What the peer sends comes to one member, once.
    assert_eq!(send(&mut transmitter(&topology.left, "eth0"), &frames, NO_VLAN), []);
    let seen: usize = members.iter_mut().map(|member| collect(member.as_mut(), 0).len()).sum();
    assert_eq!(seen, 64);
}

fn frames_for_which_there_was_no_room_are_counted_however_often_the_count_is_read(kind: Kind, topology: &Topology) {
    let mut from = transmitter(&topology.left, "eth0");
    let mut to = kind.receiver(&topology.middle, "port0", &Wanted { little_room: true, ..PLAIN });
    // No more than wait on their way through a veth pair.
    let frames: Vec<_> = (0..900).map(|number| numbered(number, 60)).collect();
    assert_eq!(send(&mut from, &frames, NO_VLAN), []);
    let deadline = Instant::now() + Duration::from_secs(2);
    let before = loop {
        let before = to.statistics();
        thread::sleep(Duration::from_millis(50));
        if (before.kernel_drops > 0 && to.statistics() == before) || Instant::now() > deadline {
            break before;
        }
    };
    assert!(before.kernel_drops > 0);
    assert_eq!(to.statistics(), before);
    let seen = collect(to.as_mut(), 128);
    let after = to.statistics();
    assert_eq!(after.delivered + after.kernel_drops, 900);
    assert_eq!(after.delivered, seen.len() as u64);
    // The oldest came, and what comes behind them comes whole.
    assert!(!seen.is_empty() && seen.iter().zip(&frames).all(|(seen, frame)| seen.bytes == *frame));
    assert_eq!(send(&mut from, &frames[..20], NO_VLAN), []);
    assert_eq!(collect(to.as_mut(), 20).len(), 20);
}

/// Receives until the device tells an error, at most as often as it may take to be told.
fn error_of(receiver: &mut dyn Receive) -> Option<DeviceError> {
    (0..40).find_map(|_| {
        let error = receiver.receive(&mut Burst::new()).err();
        thread::sleep(Duration::from_millis(1));
        error
    })
}

fn an_interface_that_goes_down_is_told_once_and_the_socket_survives(kind: Kind, topology: &Topology) {
    let mut receiver = kind.receiver(&topology.middle, "port0", &PLAIN);
    let mut answering = kind.transmitter(&topology.middle, "port0");
    assert_eq!(collect(receiver.as_mut(), 0), []);
    topology.middle.set_up("port0", false);
    // It is worth a wake-up, but not one after another.
    assert!(sleep(receiver.poll_fd(), None, Duration::from_secs(2)));
    let error = error_of(receiver.as_mut());
    assert!(matches!(&error, Some(DeviceError::Down(name)) if name == "port0"), "{error:?}");
    assert!(error_of(receiver.as_mut()).is_none());
    assert!(!sleep(receiver.poll_fd(), None, Duration::from_millis(5)));
    let refusals = send(answering.as_mut(), &[numbered(0, 60), numbered(1, 60)], NO_VLAN);
    assert_eq!(refusals, [(0, Errno::ENETDOWN), (1, Errno::ENETDOWN)]);
    assert_eq!(answering.statistics().calls, 1, "one call is enough to know it");

    topology.middle.set_up("port0", true);
    topology.wait_for_carrier("port0", &topology.left).unwrap();
    let frame = [numbered(2, 60)];
    assert_eq!(send(&mut transmitter(&topology.left, "eth0"), &frame, NO_VLAN), []);
    assert!(sleep(receiver.poll_fd(), None, Duration::from_secs(2)));
    assert_eq!(collect(receiver.as_mut(), 1).len(), 1);
    assert_eq!(send(answering.as_mut(), &frame, NO_VLAN), []);
}

fn an_interface_that_is_deleted_is_told_and_its_successor_is_opened(kind: Kind, topology: &Topology) {
    let mut receiver = kind.receiver(&topology.middle, "port0", &PLAIN);
    let mut answering = kind.transmitter(&topology.middle, "port0");
    assert_eq!(send(&mut transmitter(&topology.left, "eth0"), &[numbered(1, 60)], NO_VLAN), []);
    assert_eq!(collect(receiver.as_mut(), 1).len(), 1);

    topology.delete_left();
    let error = error_of(receiver.as_mut());
    assert!(matches!(&error, Some(DeviceError::Gone(name)) if name == "port0"), "{error:?}");
    assert!(error_of(receiver.as_mut()).is_none(), "it is told once");
    assert_eq!(send(answering.as_mut(), &[numbered(1, 60)], NO_VLAN).len(), 1);

    topology.make_left();
    let mut receiver = kind.receiver(&topology.middle, "port0", &PLAIN);
    let mut answering = kind.transmitter(&topology.middle, "port0");
    let mut peer = super::receiver(&topology.left, "eth0", &small());
    assert_eq!(send(&mut transmitter(&topology.left, "eth0"), &[numbered(2, 60)], NO_VLAN), []);
    assert_eq!(collect(receiver.as_mut(), 1).len(), 1);
    assert_eq!(send(answering.as_mut(), &[numbered(3, 60)], NO_VLAN), []);
    assert_eq!(collect(&mut peer, 1)[0].bytes, numbered(3, 60));
}

fn a_device_that_was_let_go_with_frames_in_it_leaves_nothing_behind(kind: Kind, topology: &Topology) {
    let mut from = transmitter(&topology.left, "eth0");
    let frames: Vec<_> = (0..300).map(|number| numbered(number, 1514)).collect();
    for _ in 0..10 {
        let mut to = kind.receiver(&topology.middle, "port0", &PLAIN);
        assert_eq!(send(&mut from, &frames[..1], NO_VLAN), []);
        assert_eq!(collect(to.as_mut(), 1).len(), 1);
        assert_eq!(send(&mut from, &frames, NO_VLAN), []);
        let mut burst = Burst::new();
        to.receive(&mut burst).unwrap();
        // Let go by another thread, while the kernel may be at work.
        thread::spawn(move || drop(to)).join().unwrap();
        let memory = vec![0u8; 1 << 20];
        thread::sleep(Duration::from_millis(2));
        assert!(memory.iter().all(|byte| *byte == 0), "the kernel wrote into memory that it was not given");
    }
}

#[test]
fn io_uring_goes_on_after_every_buffer_was_taken() {
    let Some(topology) = Topology::new() else { return };
    let mut from = transmitter(&topology.left, "eth0");
    for kernel_thread in [false, true] {
        let interface = topology.middle.interface("port0");
        let config = RingReceiverConfig { buffers: 4, kernel_thread, ..RingReceiverConfig::default() };
        let mut to = topology.middle.run(|| RingReceiver::open(&interface, &config).unwrap());
        let frames: Vec<_> = (0..500).map(|number| numbered(number, 60 + number as usize)).collect();
        assert_eq!(send(&mut from, &frames, NO_VLAN), []);
        let seen = collect(&mut to, frames.len());
        assert_eq!(seen.len(), frames.len());
        assert!(seen.iter().zip(&frames).all(|(seen, frame)| seen.bytes == *frame));
        assert_clean(&to.statistics());
    }
}

#[test]
fn io_uring_is_refused_to_a_second_thread_and_for_a_wrong_setting() {
    let Some(topology) = Topology::new() else { return };
    let interface = topology.middle.interface("port1");
    let config = RingReceiverConfig { buffers: 100, ..RingReceiverConfig::default() };
    let error = RingReceiver::open(&interface, &config).unwrap_err().to_string();
    assert_eq!(error, "buffers = 100 on interface \"port1\": a power of two, 2…16384, is allowed");
    let mut sender = Kind::IoUring.transmitter(&topology.middle, "port1");
    assert_eq!(send(sender.as_mut(), &[numbered(1, 60)], NO_VLAN), []);
    let refusals = thread::scope(|scope| {
        scope.spawn(|| send(sender.as_mut(), &[numbered(2, 60), numbered(3, 60)], NO_VLAN)).join().unwrap()
    });
    assert_eq!(refusals, [(0, Errno::EEXIST), (1, Errno::EEXIST)]);
    assert_eq!(send(sender.as_mut(), &[numbered(4, 60)], NO_VLAN), []);
}

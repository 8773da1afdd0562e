//! What the kernel decides: packet devices on real veth pairs, in network namespaces that each test makes for itself.

mod bulk;
mod conformance;
mod forbidden;
mod loss;
mod netlink;
mod ports;
mod pressure;
mod topology;

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postern_frame_io::af_packet::{PacketReceiver, PacketTransmitter, ReceiverConfig, SEND_BUFFER};
use postern_frame_io::poll::{Waker, sleep};
use postern_frame_io::{BURST, Burst, Receive, ReceiveStatistics, Transmit, TransmitReport};
use postern_wire::frame::{HEADROOM, NO_VLAN};
use postern_wire::{Frame, Offload, PortIndex};
use topology::{Namespace, Topology};

/// What a test keeps of a received frame.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    bytes: Vec<u8>,
    offload: Offload,
    vlan: u16,
}

fn receiver(namespace: &Namespace, name: &str, config: &ReceiverConfig<'_>) -> PacketReceiver {
    let interface = namespace.interface(name);
    namespace.run(|| PacketReceiver::open(&interface, config).unwrap())
}

fn transmitter(namespace: &Namespace, name: &str) -> PacketTransmitter {
    let interface = namespace.interface(name);
    namespace.run(|| PacketTransmitter::open(&interface, SEND_BUFFER).unwrap())
}

/// A ring that is large enough for a test and no larger.
fn small() -> ReceiverConfig<'static> {
    ReceiverConfig { slots: 1024, ..ReceiverConfig::default() }
}

/// An Ethernet frame of an experimental EtherType (IEEE 802, 0x88b5) with a number, and contents that follow from it.
fn numbered(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend((bytes.len()..length).map(|at| (at as u32 ^ number) as u8));
    bytes
}

/// Sends frames that a test has made, and returns the errnos of the refused by position.
fn send(transmitter: &mut dyn Transmit, frames: &[Vec<u8>], vlan: u16) -> Vec<(usize, postern_frame_io::Errno)> {
    let mut refusals = Vec::new();
    for (part, frames) in frames.chunks(BURST).enumerate() {
        let mut buffers: Vec<_> = frames.iter().map(|bytes| [&[0; HEADROOM], bytes.as_slice()].concat()).collect();
        let mut burst = Burst::new();
        for buffer in &mut buffers {
            let length = buffer.len() - HEADROOM;
            let mut frame = Frame::new(buffer, HEADROOM, length).unwrap();
            frame.vlan = vlan;
            burst.push(frame).unwrap();
        }
        let selected: Vec<u8> = (0..burst.len() as u8).collect();
        let mut report = TransmitReport::new();
        transmitter.transmit(burst.frames_mut(), &selected, &mut report);
        assert_eq!(report.len(), selected.len());
        refusals.extend(report.refusals().map(|(at, error)| (part * BURST + at, error)));
    }
    refusals
}

/// Receives until there are `expected` frames or two seconds are over, and then for another 20 ms what should not come.
fn collect(receiver: &mut dyn Receive, expected: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(2);
    while seen.len() < expected && Instant::now() < deadline {
        collect_once(receiver, &mut seen);
    }
    let deadline = Instant::now() + Duration::from_millis(20);
    while Instant::now() < deadline {
        collect_once(receiver, &mut seen);
    }
    seen
}

fn collect_once(receiver: &mut dyn Receive, seen: &mut Vec<Seen>) {
    let mut burst = Burst::new();
    receiver.receive(&mut burst).unwrap();
    seen.extend(burst.frames().iter().map(|frame| {
        assert!(frame.headroom() >= HEADROOM);
        Seen { bytes: frame.bytes().to_vec(), offload: frame.offload, vlan: frame.vlan }
    }));
    if burst.is_empty() {
        receiver.release();
        sleep(receiver.poll_fd(), None, Duration::from_millis(5));
    }
}

/// Both ports of the middle.
struct Bridge {
    receivers: [Box<dyn Receive>; 2],
    transmitters: [Box<dyn Transmit>; 2],
}

impl Bridge {
    fn open(topology: &Topology, config: &ReceiverConfig<'_>) -> Self {
        let open = |port: u16| {
            let name = format!("port{port}");
            let config = ReceiverConfig { port: PortIndex(port), ..*config };
            (receiver(&topology.middle, &name, &config), transmitter(&topology.middle, &name))
        };
        let ((receiver0, transmitter0), (receiver1, transmitter1)) = (open(0), open(1));
        Self {
            receivers: [Box::new(receiver0), Box::new(receiver1)],
            transmitters: [Box::new(transmitter0), Box::new(transmitter1)],
        }
    }

    /// Passes frames between the ports while `work` runs, and shows each to `observe`. No frame may be refused.
    fn run<T>(&mut self, mut observe: impl FnMut(&Frame<'_>) + Send, work: impl FnOnce() -> T) -> T {
        let (stop, waker) = (AtomicBool::new(false), Waker::new().unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut report = TransmitReport::new();
                let selected: [u8; BURST] = std::array::from_fn(|at| at as u8);
                while !stop.load(Ordering::Relaxed) {
                    if self.step(&selected, &mut report, &mut observe) == 0 {
                        sleep(self.descriptors(), Some(&waker), Duration::from_millis(100));
                    }
                }
            });
            // Also if the work panics, so that the thread ends and the panic is seen.
            let stopped = StopOnDrop(&stop, &waker);
            let result = work();
            drop(stopped);
            result
        })
    }

    fn step(&mut self, selected: &[u8], report: &mut TransmitReport, observe: &mut impl FnMut(&Frame<'_>)) -> usize {
        let mut total = 0;
        for port in 0..2 {
            let mut burst = Burst::new();
            let received = self.receivers[port].receive(&mut burst).unwrap();
            for frame in burst.frames() {
                assert_eq!(frame.ingress, PortIndex(port as u16));
                observe(frame);
            }
            if received > 0 {
                self.transmitters[1 - port].transmit(burst.frames_mut(), &selected[..received], report);
                assert_eq!(report.refused(), 0, "{report:?}");
            }
            total += received;
        }
        total
    }

    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.receivers.iter().filter_map(|receiver| receiver.poll_fd())
    }

    fn statistics(&mut self) -> [ReceiveStatistics; 2] {
        self.receivers.each_mut().map(|receiver| receiver.statistics())
    }
}

struct StopOnDrop<'a>(&'a AtomicBool, &'a Waker);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.wake();
    }
}

/// Nothing was lost.
fn assert_clean(statistics: &ReceiveStatistics) {
    let clean =
        ReceiveStatistics { delivered: statistics.delivered, large: statistics.large, ..ReceiveStatistics::default() };
    assert_eq!(*statistics, clean);
}

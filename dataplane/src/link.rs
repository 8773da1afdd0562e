//! What a worker shares with the control-side thread and the other workers. Every ring has one writer and one reader.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use postern_forwarding::{FlowView, NeighbourEvent, NeighbourRequest, PortInfo, SharedState, WorkerCounters};
use postern_frame_io::{Receive, ReceiveStatistics, Transmit, TransmitStatistics};
use postern_measurement::{Clock, Counter};
use postern_tables::Snapshot;

use crate::handoff::{HandoffRing, HandoffRings};
use crate::health::HealthLink;
use crate::neighbours::neighbour_frame::NeighbourFrame;
use crate::wake::{Bell, Wake};

/// Flow slots that a worker reads at a time for a listing.
pub const LISTING_SLICE: u32 = 256;
/// Slices of a listing that may wait for their reader.
const LISTING_SLICES: usize = 16;
/// Answers to probes that may wait for the health thread.
const PROBED: usize = 128;
/// One more than the largest errno.
pub const ERRNOS: usize = 134;

/// Both halves of a device.
pub struct PortDevice {
    /// Frames in.
    pub receive: Box<dyn Receive>,
    /// Frames out.
    pub transmit: Box<dyn Transmit>,
}

impl fmt::Debug for PortDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortDevice").finish_non_exhaustive()
    }
}

/// The devices that a worker is lent, by port. The halves are apart, so that a burst can be borrowed from one port while
/// it is sent on the others.
#[derive(Default)]
pub struct WorkerDevices {
    /// Frames in.
    pub receive: Vec<Box<dyn Receive>>,
    /// Frames out.
    pub transmit: Vec<Box<dyn Transmit>>,
    /// What the devices had counted that were here before.
    before: Vec<(ReceiveStatistics, TransmitStatistics)>,
}

impl fmt::Debug for WorkerDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerDevices").field("ports", &self.receive.len()).finish_non_exhaustive()
    }
}

impl WorkerDevices {
    /// Adds the next port's device.
    pub fn push(&mut self, device: PortDevice) {
        self.receive.push(device.receive);
        self.transmit.push(device.transmit);
        self.before.push(Default::default());
    }

    /// What a port's device and those before it counted.
    pub fn statistics(&mut self, port: usize) -> (ReceiveStatistics, TransmitStatistics) {
        let (received, sent) = &self.before[port];
        (add_received(received, &self.receive[port].statistics()), add_sent(sent, &self.transmit[port].statistics()))
    }

    /// Puts another device in a port's place, which counts on, and returns the old one.
    #[must_use]
    pub fn replace(&mut self, port: usize, by: PortDevice) -> PortDevice {
        self.before[port] = self.statistics(port);
        PortDevice {
            receive: std::mem::replace(&mut self.receive[port], by.receive),
            transmit: std::mem::replace(&mut self.transmit[port], by.transmit),
        }
    }
}

/// Part of a listing of flows.
#[derive(Debug)]
pub struct FlowSlice {
    /// Which listing.
    pub listing: u64,
    /// The flows.
    pub views: Vec<FlowView>,
    /// Whether it is the last.
    pub last: bool,
}

/// What a worker says of one port's device, in the fields of [`ReceiveStatistics`] and [`TransmitStatistics`].
#[derive(Debug, Default)]
pub struct PortCounters {
    received: [Counter; 8],
    sent: [Counter; 4],
    /// The device said that its interface went down or away.
    pub lost: AtomicBool,
}

impl PortCounters {
    /// Publishes what the device counted.
    pub fn publish(&self, received: &ReceiveStatistics, sent: &TransmitStatistics) {
        let ReceiveStatistics {
            delivered,
            kernel_drops,
            large,
            pairing_mismatches,
            receive_failures,
            unpaired,
            resynchronisations,
            truncated,
        } = *received;
        let values = [
            delivered,
            kernel_drops,
            large,
            pairing_mismatches,
            receive_failures,
            unpaired,
            resynchronisations,
            truncated,
        ];
        for (counter, value) in self.received.iter().zip(values) {
            counter.set(value);
        }
        let TransmitStatistics { accepted, refused, calls, waits } = *sent;
        for (counter, value) in self.sent.iter().zip([accepted, refused, calls, waits]) {
            counter.set(value);
        }
    }

    /// What was received.
    #[must_use]
    pub fn received(&self) -> ReceiveStatistics {
        let value = |at: usize| self.received[at].get();
        ReceiveStatistics {
            delivered: value(0),
            kernel_drops: value(1),
            large: value(2),
            pairing_mismatches: value(3),
            receive_failures: value(4),
            unpaired: value(5),
            resynchronisations: value(6),
            truncated: value(7),
        }
    }

    /// What was sent.
    #[must_use]
    pub fn sent(&self) -> TransmitStatistics {
        let value = |at: usize| self.sent[at].get();
        TransmitStatistics { accepted: value(0), refused: value(1), calls: value(2), waits: value(3) }
    }
}

/// Adds up, field by field.
#[must_use]
pub fn add_received(a: &ReceiveStatistics, b: &ReceiveStatistics) -> ReceiveStatistics {
    ReceiveStatistics {
        delivered: a.delivered + b.delivered,
        kernel_drops: a.kernel_drops + b.kernel_drops,
        large: a.large + b.large,
        pairing_mismatches: a.pairing_mismatches + b.pairing_mismatches,
        receive_failures: a.receive_failures + b.receive_failures,
        unpaired: a.unpaired + b.unpaired,
        resynchronisations: a.resynchronisations + b.resynchronisations,
        truncated: a.truncated + b.truncated,
    }
}

/// Adds up, field by field.
#[must_use]
pub fn add_sent(a: &TransmitStatistics, b: &TransmitStatistics) -> TransmitStatistics {
    TransmitStatistics {
        accepted: a.accepted + b.accepted,
        refused: a.refused + b.refused,
        calls: a.calls + b.calls,
        waits: a.waits + b.waits,
    }
}

/// What a worker counts of itself, beside its forwarder's [`WorkerCounters`].
#[derive(Debug)]
pub struct LoopCounters {
    /// Looks at all ports, rings and timers.
    pub steps: Counter,
    /// Sleeps in the kernel.
    pub sleeps: Counter,
    /// Frames of every kind that the kernel refused, by errno.
    pub refused: [Counter; ERRNOS],
    /// Neighbour requests lost because the ring was full; the next frame asks again.
    pub requests_lost: Counter,
    /// Restarts after a panic.
    pub restarts: Counter,
    /// Generation of the snapshot in use.
    pub generation: Counter,
    /// Longest time that taking a new snapshot took, in nanoseconds.
    pub tables_longest: Counter,
}

/// One worker, seen from outside.
#[derive(Debug)]
pub struct WorkerLink {
    /// ARP frames for the owner of the neighbour tables.
    pub punted: ArrayQueue<NeighbourFrame>,
    /// Targets' answers to probes, for the health thread.
    pub probed: HandoffRing,
    /// Next hops to be found.
    pub requests: ArrayQueue<NeighbourRequest>,
    /// Next hops that were found or lost.
    pub events: ArrayQueue<NeighbourEvent>,
    /// Devices that take the place of others, by port.
    pub replacements: ArrayQueue<(usize, PortDevice)>,
    /// Devices whose place was taken.
    pub replaced: ArrayQueue<PortDevice>,
    /// Snapshots that the worker no longer uses; the publisher frees them.
    pub returned: ArrayQueue<Arc<Snapshot>>,
    /// Number of the listing of flows that is wanted, 0 for none.
    pub listing: AtomicU64,
    /// Slices of the listing.
    pub slices: ArrayQueue<FlowSlice>,
    /// Empty slices.
    pub free_slices: ArrayQueue<Vec<FlowView>>,
    /// Another worker has sent a message.
    pub told: AtomicBool,
    /// Wakes the worker.
    pub wake: Wake,
    /// The forwarder's counters.
    pub counters: Arc<WorkerCounters>,
    /// The worker's own.
    pub loops: LoopCounters,
    /// By port.
    pub ports: Vec<PortCounters>,
}

impl WorkerLink {
    /// A link to a worker with so many ports.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(ports: usize, counters: Arc<WorkerCounters>) -> io::Result<Self> {
        let free_slices = ArrayQueue::new(LISTING_SLICES);
        for _ in 0..LISTING_SLICES {
            let pushed = free_slices.push(Vec::with_capacity(LISTING_SLICE as usize));
            debug_assert!(pushed.is_ok());
        }
        Ok(Self {
            punted: ArrayQueue::new(256),
            // Probes let no target send more at a time than fits a small buffer.
            probed: HandoffRing::with_room(PROBED, 0, 1),
            requests: ArrayQueue::new(1024),
            events: ArrayQueue::new(1024),
            replacements: ArrayQueue::new(ports.max(1)),
            replaced: ArrayQueue::new(ports.max(1)),
            returned: ArrayQueue::new(8),
            listing: AtomicU64::new(0),
            slices: ArrayQueue::new(LISTING_SLICES),
            free_slices,
            told: AtomicBool::new(false),
            wake: Wake::new()?,
            counters,
            loops: LoopCounters {
                steps: Counter::default(),
                sleeps: Counter::default(),
                refused: std::array::from_fn(|_| Counter::default()),
                requests_lost: Counter::default(),
                restarts: Counter::default(),
                generation: Counter::default(),
                tables_longest: Counter::default(),
            },
            ports: (0..ports).map(|_| PortCounters::default()).collect(),
        })
    }
}

/// What all workers and the control-side thread share.
#[derive(Debug)]
pub struct Shared {
    /// The clock that every thread reads.
    pub clock: Clock,
    /// The tables.
    pub tables: Publication<Snapshot>,
    /// The ports.
    pub ports: Mutex<Vec<PortInfo>>,
    /// Moves when `ports` changes.
    pub ports_version: AtomicU64,
    /// Links, by worker.
    pub links: Vec<WorkerLink>,
    /// Limits of endpoints that the workers hold together.
    pub limits: Arc<SharedState>,
    /// Ways between workers.
    pub handoff: HandoffRings,
    /// Wakes the control-side thread.
    pub control: Bell,
    /// What the health thread shares.
    pub health: HealthLink,
    /// Workers end when it is set.
    pub stop: AtomicBool,
}

impl Shared {
    /// What workers with these counters share; the clock starts here.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(snapshot: Arc<Snapshot>, ports: Vec<PortInfo>, counters: Vec<Arc<WorkerCounters>>) -> io::Result<Self> {
        let limits = Arc::new(SharedState::new(counters.clone()));
        let links: io::Result<Vec<_>> =
            counters.into_iter().map(|counters| WorkerLink::new(ports.len(), counters)).collect();
        let links = links?;
        Ok(Self {
            clock: Clock::start(),
            tables: Publication::new(snapshot),
            ports: Mutex::new(ports),
            ports_version: AtomicU64::new(0),
            limits,
            handoff: HandoffRings::new(links.len()),
            links,
            control: Bell::default(),
            health: HealthLink::new()?,
            stop: AtomicBool::new(false),
        })
    }

    /// Makes new ports known to the workers.
    ///
    /// # Panics
    /// Never: no thread panics while it holds the lock.
    pub fn publish_ports(&self, ports: &[PortInfo]) {
        ports.clone_into(&mut self.ports.lock().expect("the lock is held for a copy only"));
        self.ports_version.fetch_add(1, Ordering::Release);
        self.wake_workers();
    }

    /// Wakes all workers.
    pub fn wake_workers(&self) {
        for link in &self.links {
            link.wake.wake();
        }
    }
}

/// A value that one thread replaces and the others read, with a version that costs one load to watch.
#[derive(Debug)]
pub struct Publication<T> {
    value: ArcSwap<T>,
    version: AtomicU64,
}

impl<T> Publication<T> {
    /// The first value, version 1.
    #[must_use]
    pub fn new(value: Arc<T>) -> Self {
        Self { value: ArcSwap::new(value), version: AtomicU64::new(1) }
    }

    /// Replaces the value; the old one is returned, so that it is freed here.
    pub fn publish(&self, value: Arc<T>) -> Arc<T> {
        let old = self.value.swap(value);
        self.version.fetch_add(1, Ordering::Release);
        old
    }

    /// The version.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The value.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        self.value.load_full()
    }
}

//! One worker's forwarder.

use std::net::Ipv4Addr;
use std::sync::Arc;

use postern_measurement::Now;
use postern_steering::Ownership;
use postern_tables::Snapshot;
use postern_wire::{AttachmentIndex, FlowKey, Frame, MacAddress};

use crate::counters::WorkerCounters;
use crate::outbox::{Outbox, PeerMessage};
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};

/// Largest number of frames in a burst.
pub const BURST: usize = 64;

/// What a forwarder is made with.
#[derive(Clone, Debug)]
pub struct ForwarderConfig {
    /// Which worker it is.
    pub worker: WorkerIndex,
    /// How many workers there are.
    pub workers: u16,
    /// Most live flows, 1,024…16,777,216.
    pub flows: u32,
    /// Secret for the flow table's hash and the port choice; from the system's random source.
    pub secret: [u64; 4],
    /// Ports, by index.
    pub ports: Vec<PortInfo>,
}

/// What a forwarder must know of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its MTU: largest IP datagram, in bytes.
    pub mtu: u16,
    /// Whether it can send.
    pub up: bool,
}

/// Why a forwarder cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// The memory is smaller than [`Forwarder::region_size`].
    #[error("the flow region has {given} bytes, {needed} are needed")]
    Memory {
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
}

/// What the owner of the neighbour tables tells every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEvent {
    /// Attachment of the neighbour.
    pub attachment: AttachmentIndex,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its MAC address; `None`: it does not answer (any more).
    pub mac: Option<MacAddress>,
}

/// One flow, for listings.
#[derive(Clone, Copy, Debug)]
pub struct FlowView {
    /// Consumer to endpoint.
    pub forward: FlowKey,
    /// Target to SNAT address.
    pub reverse: FlowKey,
    /// Name of the TCP state, or "udp".
    pub state: &'static str,
    /// Endpoint index.
    pub endpoint: u32,
    /// Target index.
    pub target: u32,
    /// Seconds since the first packet.
    pub age_seconds: u32,
    /// Seconds since the last packet.
    pub idle_seconds: u32,
    /// Packets and bytes from the consumer.
    pub forward_count: (u64, u64),
    /// Packets and bytes to the consumer.
    pub reverse_count: (u64, u64),
}

/// One worker's forwarder: flow memory, the snapshot that it works by, and its counters.
#[derive(Debug)]
pub struct Forwarder<'m> {
    memory: &'m mut [u8],
    counters: Arc<WorkerCounters>,
    snapshot: Arc<Snapshot>,
}

impl<'m> Forwarder<'m> {
    /// Bytes of memory that a forwarder of so many flows needs.
    #[must_use]
    pub fn region_size(flows: u32) -> usize {
        flows as usize * 160
    }

    /// Makes a forwarder in `memory`, which is zeroed.
    ///
    /// # Errors
    /// When the memory is too small.
    pub fn new(
        config: &ForwarderConfig,
        memory: &'m mut [u8],
        snapshot: Arc<Snapshot>,
        ownership: Arc<Ownership>,
        counters: Arc<WorkerCounters>,
    ) -> Result<Self, ForwarderError> {
        let _ = (config, ownership);
        Ok(Self { memory, counters, snapshot })
    }

    /// Handles one burst of at most [`BURST`] frames: writes one verdict for each, changes the frames in place, and may put
    /// frames, neighbour requests and messages into the outbox. The caller counts `forwarded` and `answered` (or
    /// `TransmitRefused`) when the kernel has said; everything else is counted here.
    pub fn process(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], outbox: &mut Outbox, now: Now) {
        let _ = (outbox, now, &self.memory);
        for verdict in &mut verdicts[..frames.len()] {
            *verdict = Verdict::Drop(DropReason::NoFlow);
        }
    }

    /// Handles one frame that another worker handed over.
    pub fn process_handed(
        &mut self,
        frame: &mut Frame<'_>,
        note: HandoffNote,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let _ = (frame, note, outbox, now);
        Verdict::Drop(DropReason::NoFlow)
    }

    /// Does a bounded slice of what is due: expires flows, ends rests, gives up on neighbours. True if more is due now.
    pub fn housekeeping(&mut self, outbox: &mut Outbox, now: Now) -> bool {
        let _ = (outbox, now);
        false
    }

    /// Takes a new snapshot and returns the old one, which the publisher frees.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// Learns MACs, MTUs and states of the ports, by index.
    pub fn set_ports(&mut self, ports: &[PortInfo]) {
        let _ = ports;
    }

    /// Learns of a neighbour; frames that waited for it go into the outbox.
    pub fn neighbour(&mut self, event: NeighbourEvent, outbox: &mut Outbox, now: Now) {
        let _ = (event, outbox, now);
    }

    /// Takes a message of another worker.
    pub fn peer_message(&mut self, message: PeerMessage, now: Now) {
        let _ = (message, now);
    }

    /// Appends views of at most `most` flow slots from slot `cursor` on; returns where to go on, `None` at the end.
    pub fn flows(&self, cursor: u32, most: u32, now: Now, views: &mut Vec<FlowView>) -> Option<u32> {
        let _ = (cursor, most, now, views);
        None
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.counters
    }
}

//! What one worker counts. The worker writes, any thread reads.

use std::hint::select_unpredictable;

use postern_measurement::Counter;
use postern_tables::security::GROUPS;

use crate::drop_pairs::DropPairs;
use crate::verdict::DropReason;

/// Counters of one worker. In frames unless said otherwise.
///
/// At every moment between bursts: `received + handed_in = forwarded + answered + punted + handed_out + Σ drops + held`,
/// where `forwarded` and `answered` count what the kernel accepted; frames of the forwarder's own making are in `made`.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Frames that the devices delivered.
    pub received: Counter,
    /// Frames taken from other workers.
    pub handed_in: Counter,
    /// Frames handed to other workers.
    pub handed_out: Counter,
    /// Translated frames that the kernel accepted, frames that had waited for a neighbour included.
    pub forwarded: Counter,
    /// Frames turned into an answer, accepted by the kernel.
    pub answered: Counter,
    /// Frames passed to the control-side thread.
    pub punted: Counter,
    /// Frames held now for a neighbour, or for the first fragment of their datagram (gauge).
    pub held: Counter,
    /// Frames of the forwarder's own making that the kernel accepted; in no other counter.
    pub made: Counter,
    /// Frames of the forwarder's own making that the kernel refused; in no other counter.
    pub made_refused: Counter,
    /// Drops by reason.
    pub drops: [Counter; DropReason::COUNT],
    /// Drops by endpoint and reason, as far as there is room to tell them apart.
    pub drop_pairs: DropPairs,
    /// Live flows (gauge).
    pub flows: Counter,
    /// Half-open TCP flows (gauge).
    pub half_open: Counter,
    /// Flows made.
    pub flows_new: Counter,
    /// Flows ended.
    pub flows_ended: Counter,
    /// Ports given before their rest was over, because no other was free.
    pub ports_early: Counter,
    /// Rests of ports that ended early because there was no room to remember more.
    pub rests_cut_short: Counter,
    /// Half-open flows evicted for their port, or for another one where there are as many as may be.
    pub half_open_evicted: Counter,
    /// PROXY headers sent, first tries only.
    pub proxy_headers: Counter,
    /// PROXY headers sent once more, because no acknowledgement had come in time.
    pub proxy_headers_repeated: Counter,
    /// Flows ended because their target never acknowledged the PROXY header.
    pub proxy_headers_given_up: Counter,
    /// Flows made with a port of this worker for another worker's bucket.
    pub flows_lent: Counter,
    /// Bursts processed.
    pub bursts: Counter,
    /// Flows, and echo requests, that a security group has not let in, by its index (SecurityGroupBlockedFlowCount).
    pub security_groups: Box<[Counter]>,
    /// By endpoint index.
    pub endpoints: Box<[EndpointCounters]>,
    /// By target index.
    pub targets: Box<[TargetCounters]>,
}

/// Counters of one endpoint address at one worker: 128 bytes. Packets and bytes are IP datagrams; a super-frame counts as
/// its segments with their headers.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EndpointCounters {
    /// From the consumer.
    pub packets_forward: Counter,
    /// Bytes from the consumer.
    pub bytes_forward: Counter,
    /// To the consumer.
    pub packets_reverse: Counter,
    /// Bytes to the consumer.
    pub bytes_reverse: Counter,
    /// Live flows (gauge).
    pub flows: Counter,
    /// Flows made.
    pub flows_new: Counter,
    /// Frames dropped.
    pub drops: Counter,
    /// Flows refused because all ports toward their target were in use.
    pub port_allocation_errors: Counter,
    /// RSTs from clients.
    pub client_resets: Counter,
    /// RSTs from targets.
    pub target_resets: Counter,
    /// RSTs of our own.
    pub own_resets: Counter,
}

impl EndpointCounters {
    /// Counts packets of one direction.
    #[inline(always)]
    pub(crate) fn count(&self, reverse: bool, packets: u64, bytes: u64) {
        select_unpredictable(reverse, &self.packets_reverse, &self.packets_forward).add(packets);
        select_unpredictable(reverse, &self.bytes_reverse, &self.bytes_forward).add(bytes);
    }
}

/// Counters of one target at one worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct TargetCounters {
    /// To the target.
    pub packets_forward: Counter,
    /// Bytes to the target.
    pub bytes_forward: Counter,
    /// From the target.
    pub packets_reverse: Counter,
    /// Bytes from the target.
    pub bytes_reverse: Counter,
    /// Live flows (gauge).
    pub flows: Counter,
    /// Flows made.
    pub flows_new: Counter,
    /// Flows refused because all ports toward the target were in use.
    pub port_allocation_errors: Counter,
}

impl TargetCounters {
    /// Counts packets of one direction.
    #[inline(always)]
    pub(crate) fn count(&self, reverse: bool, packets: u64, bytes: u64) {
        select_unpredictable(reverse, &self.packets_reverse, &self.packets_forward).add(packets);
        select_unpredictable(reverse, &self.bytes_reverse, &self.bytes_forward).add(bytes);
    }
}

impl WorkerCounters {
    /// All zero, with room for so many endpoint addresses and targets.
    #[must_use]
    pub fn new(endpoints: usize, targets: usize) -> Self {
        Self {
            received: Counter::default(),
            handed_in: Counter::default(),
            handed_out: Counter::default(),
            forwarded: Counter::default(),
            answered: Counter::default(),
            punted: Counter::default(),
            held: Counter::default(),
            made: Counter::default(),
            made_refused: Counter::default(),
            drops: std::array::from_fn(|_| Counter::default()),
            drop_pairs: DropPairs::default(),
            flows: Counter::default(),
            half_open: Counter::default(),
            flows_new: Counter::default(),
            flows_ended: Counter::default(),
            ports_early: Counter::default(),
            rests_cut_short: Counter::default(),
            half_open_evicted: Counter::default(),
            proxy_headers: Counter::default(),
            proxy_headers_repeated: Counter::default(),
            proxy_headers_given_up: Counter::default(),
            flows_lent: Counter::default(),
            bursts: Counter::default(),
            security_groups: (0..GROUPS).map(|_| Counter::default()).collect(),
            endpoints: (0..endpoints).map(|_| EndpointCounters::default()).collect(),
            targets: (0..targets).map(|_| TargetCounters::default()).collect(),
        }
    }

    /// Counts `frames` drops.
    #[inline]
    pub fn count_drop(&self, reason: DropReason, frames: u64) {
        self.drops[reason as usize].add(frames);
    }

    /// Counts a drop of one frame under its endpoint.
    pub fn count_endpoint_drop(&self, endpoint: u32, reason: DropReason) {
        if let Some(counters) = self.endpoints.get(endpoint as usize) {
            counters.drops.add(1);
            self.drop_pairs.add(endpoint, reason);
        }
        self.count_drop(reason, 1);
    }

    /// Sum of all drops.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }

    /// Frames that came in minus frames that were accounted for: zero between bursts.
    #[must_use]
    pub fn imbalance(&self) -> i128 {
        let into = self.received.get() + self.handed_in.get();
        let out = self.forwarded.get()
            + self.answered.get()
            + self.punted.get()
            + self.handed_out.get()
            + self.dropped()
            + self.held.get();
        i128::from(into) - i128::from(out)
    }
}

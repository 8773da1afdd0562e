//! What the receiver makes of the frames that arrive: each sent frame either arrived, once or more often, or is lost.

use serde::Serialize;

use super::histogram::{Histogram, Quantiles};
use super::stamp::Stamp;

/// What became of the frames of one run. `sent = received + lost`; all else is counted beside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counts {
    /// Frames that the kernel or the NIC took.
    pub sent: u64,
    /// Of these, those that arrived, each counted once.
    pub received: u64,
    /// Of these, those that did not.
    pub lost: u64,
    /// Arrivals of frames that had arrived before.
    pub duplicated: u64,
    /// Frames that arrived behind one with a larger sequence number (RFC 4737 §3, Type-P-Reordered).
    pub reordered: u64,
    /// The same within each flow: what an application sees.
    pub reordered_in_flow: u64,
    /// Frames to the place of the test frames whose content is not what was sent. Their numbers cannot be trusted, so that
    /// the frames that they were are counted as lost.
    pub corrupted: u64,
    /// Frames of an earlier run that arrived in this one.
    pub stale: u64,
    /// From the moment before the system call that sent a frame until the receiver saw it, in microseconds.
    pub latency: Option<Quantiles>,
}

/// Arrivals of a run.
#[derive(Debug)]
pub struct Arrivals {
    first: u64,
    /// One bit for each sequence number from `first` on.
    seen: Vec<u64>,
    received: u64,
    duplicated: u64,
    reordered: u64,
    reordered_in_flow: u64,
    corrupted: u64,
    stale: u64,
    /// The sequence number behind the largest one that arrived, of all and of each flow (less `first`).
    next: u64,
    flow_next: Vec<u32>,
    latency: Histogram,
}

impl Arrivals {
    /// For frames with sequence numbers from `first` on, of so many flows.
    #[must_use]
    pub fn new(first: u64, flows: u32) -> Self {
        Self {
            first,
            seen: Vec::new(),
            received: 0,
            duplicated: 0,
            reordered: 0,
            reordered_in_flow: 0,
            corrupted: 0,
            stale: 0,
            next: first,
            flow_next: vec![0; flows as usize],
            latency: Histogram::default(),
        }
    }

    /// A frame with a right stamp arrived, at `now` (nanoseconds since the generator was made).
    pub fn record(&mut self, stamp: Stamp, now: u64) {
        let Some(number) = stamp.sequence.checked_sub(self.first) else {
            self.stale += 1;
            return;
        };
        let (word, bit) = ((number / 64) as usize, 1u64 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize((word + 1).next_power_of_two(), 0);
        }
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.received += 1;
        self.reordered += u64::from(stamp.sequence < self.next);
        self.next = self.next.max(stamp.sequence + 1);
        if let Some(next) = self.flow_next.get_mut(stamp.flow as usize) {
            self.reordered_in_flow += u64::from((number as u32) < *next);
            *next = (*next).max(number as u32 + 1);
        }
        self.latency.record(now.saturating_sub(stamp.time));
    }

    /// A frame to the place of the test frames has another content.
    pub const fn record_corrupted(&mut self) {
        self.corrupted += 1;
    }

    /// Frames that arrived, each counted once.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Latencies of the frames that arrived, in nanoseconds.
    #[must_use]
    pub const fn latency(&self) -> &Histogram {
        &self.latency
    }

    /// What became of `sent` frames.
    #[must_use]
    pub fn counts(&self, sent: u64) -> Counts {
        Counts {
            sent,
            received: self.received,
            lost: sent.saturating_sub(self.received),
            duplicated: self.duplicated,
            reordered: self.reordered,
            reordered_in_flow: self.reordered_in_flow,
            corrupted: self.corrupted,
            stale: self.stale,
            latency: self.latency.quantiles(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sent: u64, sequences: &[u64]) -> Counts {
        let mut arrivals = Arrivals::new(100, 2);
        for sequence in sequences {
            let stamp = Stamp { sequence: *sequence, flow: (*sequence % 2) as u32, time: 1_000 };
            arrivals.record(stamp, 3_000);
        }
        arrivals.counts(sent)
    }

    #[test]
    fn every_sent_frame_is_received_or_lost_and_all_else_is_beside() {
        let counts = counts(10, &[100, 101, 101, 103, 102, 105, 104, 99, 105, 109]);
        assert_eq!((counts.sent, counts.received, counts.lost), (10, 7, 3));
        assert_eq!((counts.duplicated, counts.stale, counts.corrupted), (2, 1, 0));
        let latency = counts.latency.unwrap();
        assert_eq!((latency.count, latency.max), (7, 2.0));
    }

    #[test]
    fn a_frame_behind_a_later_one_is_reordered_and_in_its_flow_only_if_it_is_behind_one_of_its_own() {
        // 102 is behind 103, which is of the other flow; 104 is behind 106 of its own flow.
        let counts = counts(7, &[100, 101, 103, 102, 106, 105, 104]);
        assert_eq!((counts.reordered, counts.reordered_in_flow), (3, 1));
        assert_eq!(self::counts(3, &[100, 101, 102]).reordered, 0);
        // A repeated frame is a duplicate and nothing else (RFC 4737 §4).
        assert_eq!(self::counts(2, &[101, 100, 101, 100]).reordered, 1);
    }
}

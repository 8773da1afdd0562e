//! Limits of endpoints that hold for all workers together.
//!
//! Only first packets of limited endpoints, and packets of endpoints with limited bandwidth, come here: they alone touch memory
//! that other workers write too.
//!
//! Live flows are the sum of the workers' own gauges. A worker enters its new flow in its gauge first and reads the others'
//! then, with a fence in between: of two that do so at one moment at least one sees the other. So the limit is never
//! exceeded; where the last place is asked for by several workers within a microsecond, all of them may be refused.
//!
//! Rates are token buckets, each one number: the moment at which it would be full again (the generic cell rate algorithm of
//! ITU-T I.371). They are exact with any number of workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use postern_measurement::Now;

use crate::counters::WorkerCounters;
use crate::stickiness::Stickiness;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// What the bandwidth of an endpoint may be ahead of time: nanoseconds.
const BURST: u64 = SECOND / 10;

/// What the workers of a gateway must know of each other: to hold limits together, and to send a client where another has sent
/// it.
#[derive(Debug)]
pub struct SharedState {
    counters: Vec<Arc<WorkerCounters>>,
    /// By endpoint index.
    buckets: Box<[Buckets]>,
    /// Which targets clients stay with.
    pub(crate) stickiness: Stickiness,
}

/// The token buckets of an endpoint address: nanoseconds since the clock's start at which each is full.
#[derive(Debug, Default)]
struct Buckets {
    new_flows: AtomicU64,
    bytes: AtomicU64,
}

impl SharedState {
    /// Of workers with these counters.
    #[must_use]
    pub fn new(counters: Vec<Arc<WorkerCounters>>) -> Self {
        let endpoints = counters.first().map_or(0, |counters| counters.endpoints.len());
        Self { counters, buckets: (0..endpoints).map(|_| Buckets::default()).collect(), stickiness: Stickiness::new() }
    }

    /// Live flows of an endpoint at all workers, after the caller's own gauge was written.
    pub(crate) fn flows(&self, endpoint: u32) -> u64 {
        fence(Ordering::SeqCst);
        let of =
            |counters: &Arc<WorkerCounters>| counters.endpoints.get(endpoint as usize).map(|of_it| of_it.flows.get());
        self.counters.iter().filter_map(of).sum()
    }

    /// Takes a new flow's token: `rate` of them in a second, and as many at once.
    pub(crate) fn take_flow(&self, endpoint: u32, rate: u32, now: Now) -> bool {
        let Some(buckets) = self.buckets.get(endpoint as usize) else { return true };
        let now = now.milliseconds() * 1_000_000;
        let cost = SECOND / u64::from(rate.max(1));
        let take = |full_at: u64| Some(full_at.max(now) + cost).filter(|then| *then <= now + SECOND);
        buckets.new_flows.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Takes the tokens of a packet: `rate` bytes in a second. A packet passes whole while the tenth of a second that may come
    /// at once is not used up.
    pub(crate) fn take_bytes(&self, endpoint: u32, rate: u64, bytes: u32, now: Now) -> bool {
        let Some(buckets) = self.buckets.get(endpoint as usize) else { return true };
        let now = now.milliseconds() * 1_000_000;
        let cost = u64::from(bytes) * SECOND / rate.max(1);
        let take = |full_at: u64| Some(full_at.max(now)).filter(|from| *from < now + BURST).map(|from| from + cost);
        buckets.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> SharedState {
        SharedState::new(vec![Arc::new(WorkerCounters::new(2, 0))])
    }

    #[test]
    fn so_many_flows_pass_in_a_second_and_no_more_at_once() {
        let limits = limits();
        let mut now = Now::from_milliseconds(5_000);
        for rate in [1, 5, 7, 1000, 100_000] {
            now = now.plus_milliseconds(10_000);
            let taken = (0..rate * 2).filter(|_| limits.take_flow(0, rate, now)).count();
            assert_eq!(taken as u32, rate);
            assert!(limits.take_flow(1, 1_000_000, now), "another endpoint has its own");
            now = now.plus_milliseconds(500);
            let taken = (0..rate * 2).filter(|_| limits.take_flow(0, rate, now)).count();
            assert_eq!(taken as u32, rate / 2);
        }
    }

    #[test]
    fn bytes_pass_at_their_rate_whatever_their_packets_are() {
        for size in [100, 1500, 60_000] {
            let limits = limits();
            let (mut now, mut passed) = (Now::from_milliseconds(5_000), 0);
            for _ in 0..10_000 {
                for _ in 0..20 {
                    passed += u64::from(size) * u64::from(limits.take_bytes(0, 1_000_000, size, now));
                }
                now = now.plus_milliseconds(1);
            }
            let offered = u64::from(size) * 200_000;
            // Ten seconds, the tenth that comes at once, and the packet that ends it.
            let most = 10_100_000 + u64::from(size);
            assert!(passed <= most && passed >= (10_000_000 - u64::from(size)).min(offered), "{size}: {passed}");
        }
    }
}

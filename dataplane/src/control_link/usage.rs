//! What each endpoint has used since this process began, as control bills it: cumulative by endpoint, over all its addresses
//! and workers, over indices that are used again, and over endpoints that leave this gateway and come back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use postern_forwarding::WorkerCounters;
use postern_push::proto::EndpointUsage;
use postern_tables::Snapshot;
use postern_tables::snapshot::{EndpointIndex, TargetIndex};

use super::target_views::TargetKey;

/// Endpoints that have left this gateway whose sums are kept, in case they come back. The longest away are forgotten.
const DEPARTED: usize = 1 << 18;

/// Counters of one endpoint address, or sums of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    new_connections: u64,
    packets: u64,
    bytes: u64,
    packets_dropped: u64,
    resets_received: u64,
    /// Gauge.
    active_connections: u64,
}

/// Where one endpoint address is counted.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// The endpoint that has it; 0: none.
    incarnation: u32,
    /// What was read last.
    read: Counts,
}

/// One endpoint.
#[derive(Debug, Default)]
struct Sum {
    counts: Counts,
    /// Its addresses here.
    addresses: u32,
    /// In the list of those that moved.
    moved: bool,
}

/// The sums of all endpoints.
#[derive(Debug)]
pub struct UsageBook {
    counters: Vec<Arc<WorkerCounters>>,
    /// What every worker forwards by.
    snapshot: Arc<Snapshot>,
    slots: Vec<Slot>,
    sums: HashMap<String, Sum>,
    /// Identifiers whose sums moved since they were taken.
    moved: VecDeque<String>,
    departed: VecDeque<String>,
}

impl UsageBook {
    /// Nothing used yet, by workers that forward by `snapshot` and count in `counters`.
    #[must_use]
    pub fn new(counters: Vec<Arc<WorkerCounters>>, snapshot: Arc<Snapshot>) -> Self {
        Self {
            counters,
            snapshot,
            slots: Vec::new(),
            sums: HashMap::new(),
            moved: VecDeque::new(),
            departed: VecDeque::new(),
        }
    }

    /// Every worker forwards by `snapshot` now: what endpoints that left had used is read for the last time. To be called
    /// before the next snapshot is published, because that one may give their indices to others. Costs what changed.
    pub fn settled(&mut self, snapshot: Arc<Snapshot>) {
        let before = self.snapshot.clone();
        for at in before.endpoints.unshared(&snapshot.endpoints) {
            let incarnation =
                |of: &Snapshot| of.endpoint(EndpointIndex(at as u32)).map_or(0, |endpoint| endpoint.incarnation);
            if incarnation(&before) != 0 && incarnation(&before) != incarnation(&snapshot) {
                self.read(at);
                self.leave(at);
            }
        }
        self.snapshot = snapshot;
    }

    /// Reads the counters of `length` endpoint addresses from `first` on; `None` behind the last.
    pub fn read_slice(&mut self, first: usize, length: usize) -> Option<usize> {
        let end = self.snapshot.endpoints.len().min(first.saturating_add(length));
        (first..end).for_each(|at| self.read(at));
        (end < self.snapshot.endpoints.len()).then_some(end)
    }

    /// Counts every endpoint that ever used anything as moved: whoever takes the next ones knows nothing.
    pub fn begin(&mut self) {
        for (id, sum) in &mut self.sums {
            if !sum.moved && sum.counts != Counts::default() {
                sum.moved = true;
                self.moved.push_back(id.clone());
            }
        }
    }

    /// Takes at most `most` endpoints whose sums moved.
    pub fn take_moved(&mut self, most: usize) -> Vec<EndpointUsage> {
        let ids = self.moved.drain(..most.min(self.moved.len()));
        let usage = ids.filter_map(|endpoint| {
            let sum = self.sums.get_mut(&endpoint)?;
            sum.moved = false;
            let Counts { new_connections, packets, bytes, packets_dropped, resets_received, active_connections } =
                sum.counts;
            Some(EndpointUsage {
                endpoint,
                new_connections,
                active_connections,
                packets,
                bytes,
                packets_dropped,
                resets_received,
            })
        });
        usage.collect()
    }

    /// Whether there is nothing to take.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.moved.is_empty()
    }

    /// Live flows of each of these targets now; 0 for one that is in no table.
    #[must_use]
    pub fn flows_of_targets<'k>(&self, keys: impl Iterator<Item = &'k TargetKey>) -> Vec<u64> {
        let wanted: Vec<_> = keys.map(|key| (key.group.as_str(), key.address, key.port)).collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        let place: HashMap<_, usize> = wanted.iter().copied().zip(0..).collect();
        let mut flows = vec![0; wanted.len()];
        for at in 0..self.snapshot.targets.len() {
            let target = self.snapshot.target(TargetIndex(at as u32));
            let place = target.and_then(|target| place.get(&(&*target.group, target.address, target.port)));
            if let Some(&place) = place {
                let counters = self.counters.iter().filter_map(|worker| worker.targets.get(at));
                flows[place] += counters.map(|target| target.flows.get()).sum::<u64>();
            }
        }
        flows
    }

    fn read(&mut self, at: usize) {
        let Some(endpoint) = self.snapshot.endpoint(EndpointIndex(at as u32)) else {
            return;
        };
        if self.slots.len() <= at {
            self.slots.resize(at + 1, Slot::default());
        }
        let slot = &mut self.slots[at];
        let now = Counts::of(&self.counters, at);
        if now == slot.read {
            return;
        }
        // The index was nobody's before it was this endpoint's: all that was counted since is its own.
        let arrived = slot.incarnation != endpoint.incarnation;
        slot.incarnation = endpoint.incarnation;
        let before = std::mem::replace(&mut slot.read, now);
        if !self.sums.contains_key(&*endpoint.id) {
            self.sums.insert(endpoint.id.to_string(), Sum::default());
        }
        let Some(sum) = self.sums.get_mut(&*endpoint.id) else { return };
        sum.addresses += u32::from(arrived);
        sum.counts.advance(&before, &now);
        if !std::mem::replace(&mut sum.moved, true) {
            self.moved.push_back(endpoint.id.to_string());
        }
    }

    /// An endpoint address is gone.
    fn leave(&mut self, at: usize) {
        let Some(endpoint) = self.snapshot.endpoint(EndpointIndex(at as u32)) else {
            return;
        };
        // One without any traffic never arrived.
        let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.incarnation == endpoint.incarnation) else {
            return;
        };
        slot.incarnation = 0;
        let active = std::mem::take(&mut slot.read.active_connections);
        let Some(sum) = self.sums.get_mut(&*endpoint.id) else { return };
        sum.addresses = sum.addresses.saturating_sub(1);
        if active > 0 {
            sum.counts.active_connections = sum.counts.active_connections.saturating_sub(active);
            if !std::mem::replace(&mut sum.moved, true) {
                self.moved.push_back(endpoint.id.to_string());
            }
        }
        if sum.addresses == 0 {
            self.departed.push_back(endpoint.id.to_string());
            if self.departed.len() > DEPARTED
                && let Some(longest) = self.departed.pop_front()
                && self.sums.get(&longest).is_some_and(|sum| sum.addresses == 0)
            {
                self.sums.remove(&longest);
            }
        }
    }
}

impl Counts {
    /// Of all workers now.
    fn of(counters: &[Arc<WorkerCounters>], at: usize) -> Self {
        let mut counts = Self::default();
        for endpoint in counters.iter().filter_map(|worker| worker.endpoints.get(at)) {
            counts.new_connections += endpoint.flows_new.get();
            counts.packets += endpoint.packets_forward.get() + endpoint.packets_reverse.get();
            counts.bytes += endpoint.bytes_forward.get() + endpoint.bytes_reverse.get();
            counts.packets_dropped += endpoint.drops.get();
            counts.resets_received += endpoint.client_resets.get() + endpoint.target_resets.get();
            counts.active_connections += endpoint.flows.get();
        }
        counts
    }

    /// Adds what was counted between two readings.
    fn advance(&mut self, before: &Self, now: &Self) {
        self.new_connections += now.new_connections.saturating_sub(before.new_connections);
        self.packets += now.packets.saturating_sub(before.packets);
        self.bytes += now.bytes.saturating_sub(before.bytes);
        self.packets_dropped += now.packets_dropped.saturating_sub(before.packets_dropped);
        self.resets_received += now.resets_received.saturating_sub(before.resets_received);
        let active = self.active_connections + now.active_connections;
        self.active_connections = active.saturating_sub(before.active_connections);
    }
}

#[cfg(test)]
mod tests {
    use postern_tables::declaration::Endpoint;
    use postern_tables::{Change, Resource, ResourceKey, ResourceKind, Tables};

    use super::*;
    use crate::test_bed::checked;

    struct Bed {
        tables: Tables,
        counters: Vec<Arc<WorkerCounters>>,
        book: UsageBook,
    }

    impl Bed {
        fn new() -> Self {
            let tables = Tables::new(&checked());
            let counters: Vec<_> = (0..2).map(|_| Arc::new(WorkerCounters::new(16, 16))).collect();
            let book = UsageBook::new(counters.clone(), tables.snapshot().clone());
            Self { tables, counters, book }
        }

        fn declare(&mut self, id: &str, addresses: &[&str]) {
            let endpoint = Resource::Endpoint(Endpoint {
                id: id.to_owned(),
                vpc: "vpc-consumer".to_owned(),
                service: "vpce-svc-0123456789abcdef0".to_owned(),
                addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
                ..Endpoint::default()
            });
            self.update(Change { changed: vec![endpoint], ..Change::default() });
        }

        fn remove(&mut self, id: &str) {
            let removed = vec![ResourceKey { kind: ResourceKind::Endpoint, name: id.to_owned() }];
            self.update(Change { removed, ..Change::default() });
        }

        fn update(&mut self, change: Change) {
            let snapshot = self.tables.update(change).unwrap();
            self.book.settled(snapshot);
        }

        fn index(&self, address: &str) -> usize {
            let address: std::net::Ipv4Addr = address.parse().unwrap();
            let endpoints = self.tables.snapshot().endpoints.iter();
            endpoints
                .into_iter()
                .position(|endpoint| endpoint.as_ref().is_some_and(|it| it.address == address))
                .unwrap()
        }

        fn traffic(&self, worker: usize, at: usize, packets: u64) {
            let endpoint = &self.counters[worker].endpoints[at];
            endpoint.packets_forward.add(packets);
            endpoint.bytes_reverse.add(100 * packets);
            endpoint.flows_new.add(1);
            endpoint.flows.add(1);
        }

        /// Id, connections, live ones, packets, bytes of what moved.
        fn moved(&mut self) -> Vec<(String, u64, u64, u64, u64)> {
            let mut next = Some(0);
            while let Some(first) = next {
                next = self.book.read_slice(first, 2);
            }
            let mut moved: Vec<_> =
                std::iter::from_fn(|| Some(self.book.take_moved(1)).filter(|some| !some.is_empty()))
                    .flatten()
                    .map(|usage| {
                        (usage.endpoint, usage.new_connections, usage.active_connections, usage.packets, usage.bytes)
                    })
                    .collect();
            moved.sort();
            moved
        }
    }

    fn row(id: &str, connections: u64, active: u64, packets: u64) -> (String, u64, u64, u64, u64) {
        (id.to_owned(), connections, active, packets, 100 * packets)
    }

    #[test]
    fn workers_and_addresses_of_an_endpoint_add_up_and_only_what_moved_is_told() {
        let mut bed = Bed::new();
        bed.declare("vpce-a", &["10.0.0.101", "10.0.0.102"]);
        bed.declare("vpce-b", &["10.0.0.103"]);
        assert_eq!(bed.moved(), []);
        bed.traffic(0, bed.index("10.0.0.101"), 1);
        bed.traffic(1, bed.index("10.0.0.101"), 2);
        bed.traffic(1, bed.index("10.0.0.102"), 4);
        assert_eq!(bed.moved(), [row("vpce-a", 3, 3, 7)]);
        assert_eq!(bed.moved(), []);
        bed.traffic(0, bed.index("10.0.0.103"), 9);
        assert_eq!(bed.moved(), [row("vpce-b", 1, 1, 9)]);
        bed.book.begin();
        assert_eq!(bed.moved(), [row("vpce-a", 3, 3, 7), row("vpce-b", 1, 1, 9)], "a new reader is told all");
    }

    #[test]
    fn an_index_that_is_used_again_starts_at_nothing_and_a_returning_endpoint_where_it_was() {
        let mut bed = Bed::new();
        bed.declare("vpce-a", &["10.0.0.101"]);
        let at = bed.index("10.0.0.101");
        bed.traffic(0, at, 5);
        assert_eq!(bed.moved(), [row("vpce-a", 1, 1, 5)]);
        // Traffic between the last reading and the removal is not lost.
        bed.traffic(1, at, 3);
        bed.remove("vpce-a");
        for worker in &bed.counters {
            worker.endpoints[at].flows.set(0);
        }
        assert_eq!(bed.moved(), [row("vpce-a", 2, 0, 8)]);

        bed.declare("vpce-b", &["10.0.0.111"]);
        assert_eq!(bed.index("10.0.0.111"), at, "the index is used again");
        assert_eq!(bed.moved(), []);
        bed.traffic(0, at, 1);
        assert_eq!(bed.moved(), [row("vpce-b", 1, 1, 1)]);
        bed.declare("vpce-a", &["10.0.0.101"]);
        bed.traffic(0, bed.index("10.0.0.101"), 2);
        assert_eq!(bed.moved(), [row("vpce-a", 3, 1, 10)]);
    }

    #[test]
    fn a_worker_that_was_started_again_counts_on() {
        let mut bed = Bed::new();
        bed.declare("vpce-a", &["10.0.0.101"]);
        let at = bed.index("10.0.0.101");
        bed.traffic(0, at, 5);
        assert_eq!(bed.moved(), [row("vpce-a", 1, 1, 5)]);
        // What the supervisor does after a panic.
        bed.counters[0].endpoints[at].flows.set(0);
        bed.traffic(0, at, 1);
        bed.traffic(0, at, 1);
        assert_eq!(bed.moved(), [row("vpce-a", 3, 2, 7)]);
    }
}

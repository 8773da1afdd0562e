//! Clients that stay with their targets: which target a client's last new flow went to, known to all workers.
//!
//! Flows of one client are spread over the workers, so the memory is one for all. It is written by first packets of sticky
//! groups only, each entry is one word, and no entry decides anything but the target of a new flow: nothing needs a lock or
//! an order. It is bounded ([`ENTRIES`]); where more clients are remembered than there is room for, those that would be
//! forgotten first are, and a client without an entry is sent where the hash of its address says, which every worker and
//! every gateway answers alike as long as the group stays as it is.

use std::sync::atomic::{AtomicU64, Ordering};

use postern_measurement::Now;
use postern_tables::snapshot::{EndpointIndex, Snapshot, TargetGroup, TargetGroupIndex, TargetIndex};
use postern_wire::{AttachmentIndex, FlowKey};

/// Clients that are remembered, of all groups together: 512 KiB.
pub(crate) const ENTRIES: usize = 1 << 16;
/// Entries that one client may have its place among.
const WAYS: usize = 4;
/// A unit of time in an entry, in seconds: 20 bits of them are 24 days, and the longest time is 7.
const UNIT: u64 = 2;
/// Bits of an entry: target, then the moment until which it holds, then a part of the client's hash.
const TARGET_BITS: u32 = 24;
const TIME_BITS: u32 = 20;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// Who went where.
#[derive(Debug)]
pub(crate) struct Stickiness {
    entries: Box<[AtomicU64]>,
}

/// An entry; none is 0.
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    fn new(tag: u64, until: u64, target: TargetIndex) -> Self {
        Self(tag << (TARGET_BITS + TIME_BITS) | (until & TIME_MASK) << TARGET_BITS | u64::from(target.0))
    }

    const fn tag(self) -> u64 {
        self.0 >> (TARGET_BITS + TIME_BITS)
    }

    const fn target(self) -> TargetIndex {
        TargetIndex((self.0 & ((1 << TARGET_BITS) - 1)) as u32)
    }

    /// Units from `now` until it is forgotten; 0: it is.
    const fn left(self, now: u64) -> u64 {
        let left = ((self.0 >> TARGET_BITS) & TIME_MASK).wrapping_sub(now) & TIME_MASK;
        // The other half of the circle is the past.
        if self.0 == 0 || left > TIME_MASK / 2 { 0 } else { left }
    }
}

impl Stickiness {
    pub(crate) fn new() -> Self {
        Self { entries: (0..ENTRIES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The target that `client`, a hash, went to, if it is one that `is_good`; else what `choose` says. It is remembered for
    /// `seconds` from now on.
    pub(crate) fn target(
        &self,
        client: u64,
        seconds: u32,
        now: Now,
        is_good: impl Fn(TargetIndex) -> bool,
        choose: impl FnOnce() -> Option<TargetIndex>,
    ) -> Option<TargetIndex> {
        let now = now.seconds() / UNIT;
        let until = now + u64::from(seconds).div_ceil(UNIT);
        let place = (client as usize % (ENTRIES / WAYS)) * WAYS;
        let tag = client >> (TARGET_BITS + TIME_BITS);
        let entries = &self.entries[place..place + WAYS];
        let load = |entry: &AtomicU64| Entry(entry.load(Ordering::Relaxed));
        let own = entries.iter().find(|entry| load(entry).left(now) > 0 && load(entry).tag() == tag);
        let kept = own.map(|entry| load(entry).target()).filter(|target| is_good(*target));
        let target = kept.or_else(choose)?;
        let entry = own.or_else(|| entries.iter().min_by_key(|entry| load(entry).left(now)))?;
        if target.0 >> TARGET_BITS == 0 {
            entry.store(Entry::new(tag, until, target).0, Ordering::Relaxed);
        }
        Some(target)
    }
}

/// The selection hash of a client at an endpoint address: its flows' with both ports, protocol and sequence number 0.
pub(crate) fn client_hash(snapshot: &Snapshot, key: FlowKey, addresses: Option<&[u8; 32]>) -> u64 {
    match addresses {
        Some(addresses) => snapshot.selection.hash_v6(addresses, FlowKey::wide(AttachmentIndex(0), 0, [0; 2], 0), 0),
        None => {
            let (source, destination) = (key.source_socket(), key.destination_socket());
            let bare = |socket: std::net::SocketAddrV4| std::net::SocketAddrV4::new(*socket.ip(), 0);
            snapshot.selection.hash(FlowKey::new(AttachmentIndex(0), 0, bare(source), bare(destination)), 0)
        }
    }
}

/// What stands for a client in the memory: nobody else's, but for a chance of one in a million that two share their targets.
pub(crate) fn client_of(hash: u64, endpoint: EndpointIndex, group: TargetGroupIndex) -> u64 {
    // The finalizer of SplitMix64.
    let word = hash ^ (u64::from(endpoint.0) << 32 | u64::from(group.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Whether a remembered target may have a new flow of the group: its index may have gone to another.
pub(crate) fn is_good(snapshot: &Snapshot, group: &TargetGroup, target: TargetIndex) -> bool {
    snapshot.target(target).is_some_and(|of| of.group == group.name) && group.offers(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now::from_milliseconds(seconds * 1000)
    }

    /// What a client gets that would else get target `or`.
    fn ask(memory: &Stickiness, client: u64, seconds: u32, now: Now, or: u32) -> u32 {
        memory.target(client, seconds, now, |_| true, || Some(TargetIndex(or))).unwrap().0
    }

    #[test]
    fn a_sticky_client_keeps_its_target_until_its_time_is_over_and_each_flow_begins_it_anew() {
        for start in [0, 5_000, (TIME_MASK + 1) * UNIT - 30, 90_000_000] {
            let memory = Stickiness::new();
            assert_eq!(ask(&memory, 77 << 50, 60, at(start), 3), 3);
            assert_eq!(ask(&memory, 77 << 50, 60, at(start + 50), 4), 3);
            assert_eq!(ask(&memory, 77 << 50, 60, at(start + 100), 4), 3);
            assert_eq!(ask(&memory, 77 << 50, 60, at(start + 164), 4), 4);
            let week = 604_800;
            assert_eq!(ask(&memory, 78 << 50, week, at(start), 5), 5);
            assert_eq!(ask(&memory, 78 << 50, week, at(start + u64::from(week) - 4), 6), 5);
        }
    }

    #[test]
    fn a_sticky_target_that_may_have_no_flows_is_left_and_the_next_one_is_kept() {
        let memory = Stickiness::new();
        assert_eq!(ask(&memory, 1 << 50, 60, at(5), 3), 3);
        let choose = || Some(TargetIndex(9));
        assert_eq!(memory.target(1 << 50, 60, at(6), |target| target.0 != 3, choose), Some(TargetIndex(9)));
        assert_eq!(ask(&memory, 1 << 50, 60, at(7), 3), 9);
        assert_eq!(memory.target(1 << 50, 60, at(8), |_| false, || None), None);
    }

    #[test]
    fn sticky_clients_beyond_the_room_cost_those_who_would_be_forgotten_first() {
        let memory = Stickiness::new();
        let client = |tag: u64| tag << 50;
        for tag in 1..=4 {
            ask(&memory, client(tag), 100 * tag as u32, at(10), tag as u32);
        }
        ask(&memory, client(5), 1000, at(10), 5);
        assert_eq!(ask(&memory, client(2), 200, at(11), 99), 2);
        assert_eq!(ask(&memory, client(5), 1000, at(11), 99), 5);
        assert_eq!(ask(&memory, client(1), 100, at(11), 99), 99, "the first was to be forgotten first");
    }
}

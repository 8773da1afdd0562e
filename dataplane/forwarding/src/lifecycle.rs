//! The end of flows, half-open lists, neighbours, messages of other workers, listings.

use postern_flows::{FlowRecord, Found, NONE, State, WideAddresses};
use postern_measurement::Now;
use postern_wire::ipv6::AddressPair;
use postern_wire::{Direction, FlowKey};

use crate::forwarder::{FlowView, Forwarder, NeighbourEvent};
use crate::outbox::{NeighbourRequest, Outbox, PeerMessage};
use crate::verdict::{DropReason, WorkerIndex};

/// Seconds after which a note of a flow that lives elsewhere is given up if its end was never told: longer than any idle
/// time.
const AWAY_SECONDS: u16 = 7000;

/// An epoch that differs from that of every endpoint, and from what stands for a missing one.
const NO_EPOCH: u32 = u32::MAX;

impl Forwarder<'_> {
    /// Ends a flow: its port rests, its hops are let go, a lender tells the bucket's owner.
    pub(crate) fn end(&mut self, index: u32, outbox: &mut Outbox, now: Now) {
        let record = *self.table.record(index);
        if record.flags & FlowRecord::FLAG_AWAY != 0 {
            self.table.remove(index);
            return;
        }
        if record.flags & FlowRecord::FLAG_HALF_OPEN != 0 {
            self.leave_half_open(index);
        }
        if record.goes_long_way() {
            self.insertions.remove(index);
        }
        if record.flags & FlowRecord::FLAG_LENT != 0 {
            // If there is no room the note ends by itself.
            outbox.message(
                WorkerIndex(u16::from(record.bucket_owner)),
                PeerMessage::Returned {
                    key: record.forward,
                    addresses: self.table.wide(index).map(|addresses| addresses.forward),
                    holder: self.worker,
                },
            );
        }
        let rest = u32::from(record.rest_seconds) * 1000;
        self.snat.release(record.lane, record.reverse.destination_port(), rest, now);
        self.hops.let_go(record.forward_hop);
        self.hops.let_go(record.reverse_hop);
        self.table.remove(index);
        self.counters.flows.subtract(1);
        self.counters.flows_ended.add(1);
        if let Some(counters) = self.counters.endpoints.get(record.endpoint as usize) {
            counters.flows.subtract(1);
        }
        if let Some(counters) = self.counters.targets.get(record.target as usize) {
            counters.flows.subtract(1);
        }
    }

    /// Makes room for another half-open flow of an endpoint that has its share, or while the worker has: the oldest goes. False
    /// if none is found at once and the worker has its share.
    #[cold]
    #[inline(never)]
    pub(crate) fn make_half_open_room(&mut self, endpoint: u32, outbox: &mut Outbox, now: Now) -> bool {
        let table = &self.table;
        let is_half_open = |index: u32| {
            let record = table.record(index);
            (record.flags & FlowRecord::FLAG_HALF_OPEN != 0).then_some(record.endpoint)
        };
        let Some(oldest) = self.half_open.oldest(endpoint, is_half_open) else { return !self.half_open.is_full() };
        self.counters.half_open_evicted.add(1);
        self.end(oldest, outbox, now);
        true
    }

    /// Puts a flow at the young end of its lane's half-open list.
    #[inline(always)]
    pub(crate) fn enter_half_open(&mut self, index: u32, lane: u32, endpoint: u32) {
        self.half_open.enter(index, endpoint);
        let list = self.snat.half_open(lane);
        let last = list.last;
        list.last = index;
        if last == NONE {
            list.first = index;
        } else {
            self.table.record_mut(last).half_open_next = index;
        }
        let record = self.table.record_mut(index);
        record.half_open_previous = last;
        record.half_open_next = NONE;
        record.flags |= FlowRecord::FLAG_HALF_OPEN;
        self.counters.half_open.add(1);
    }

    /// Takes a flow out of its lane's half-open list.
    pub(crate) fn leave_half_open(&mut self, index: u32) {
        let record = self.table.record_mut(index);
        if record.flags & FlowRecord::FLAG_HALF_OPEN == 0 {
            return;
        }
        record.flags &= !FlowRecord::FLAG_HALF_OPEN;
        let (lane, previous, next) = (record.lane, record.half_open_previous, record.half_open_next);
        self.half_open.leave(record.endpoint);
        if previous == NONE {
            self.snat.half_open(lane).first = next;
        } else {
            self.table.record_mut(previous).half_open_next = next;
        }
        if next == NONE {
            self.snat.half_open(lane).last = previous;
        } else {
            self.table.record_mut(next).half_open_previous = previous;
        }
        self.counters.half_open.subtract(1);
    }

    /// Learns of a neighbour; frames that waited for it go into the outbox, or are dropped and counted.
    pub fn neighbour(&mut self, event: NeighbourEvent, outbox: &mut Outbox, now: Now) {
        let Some(hop) = self.hops.learn(event.attachment, event.address, event.mac) else { return };
        if event.mac.is_some() {
            let sent = self.waiting.send(hop, self.hops.at(hop), outbox);
            self.counters.held.subtract(sent);
        } else {
            let counters = &self.counters;
            self.waiting.give_up(hop, |endpoint| count_unreachable(counters, endpoint));
        }
        let _ = now;
    }

    /// Sends what found no room before, asks again, and gives up what has waited for too long.
    pub(crate) fn retry_waiting(&mut self, outbox: &mut Outbox, now: Now) {
        let counters = &self.counters;
        self.waiting.expire(now, |endpoint| count_unreachable(counters, endpoint));
        let resolved = self.waiting.hops().find(|hop| self.hops.at(*hop).resolved);
        if let Some(hop) = resolved {
            let sent = self.waiting.send(hop, self.hops.at(hop), outbox);
            self.counters.held.subtract(sent);
        }
    }

    /// Asks for the neighbour of a hop.
    pub(crate) fn ask(&self, hop: u32, outbox: &mut Outbox) {
        let hop = self.hops.at(hop);
        outbox.request(NeighbourRequest { attachment: hop.attachment, address: hop.address });
    }

    /// Takes a message of another worker.
    pub fn peer_message(&mut self, message: PeerMessage, now: Now) {
        match message {
            PeerMessage::Lent { key, addresses, holder } => {
                let (key, found) = self.find_peer_flow(key, addresses.as_ref());
                if !found.is_nothing() {
                    // That the last holder is rid of it may be heard only after that another has it.
                    let record = self.table.record_mut(found.index());
                    if record.flags & FlowRecord::FLAG_AWAY != 0 {
                        record.target = u32::from(holder.0);
                        record.last_seen = now.tick();
                    }
                    return;
                }
                let note = FlowRecord {
                    forward: key,
                    flags: FlowRecord::FLAG_AWAY,
                    target: u32::from(holder.0),
                    endpoint: NONE,
                    policy_epoch: NO_EPOCH,
                    idle_seconds: AWAY_SECONDS,
                    last_seen: now.tick(),
                    started: now.tick(),
                    ..FlowRecord::default()
                };
                // Without room the flow's packets go through the same search for a port again, which finds the flow.
                let _ = match addresses {
                    None => self.table.insert(note, now.seconds()),
                    Some(forward) => {
                        let addresses = WideAddresses { forward, ..WideAddresses::NONE };
                        self.table.insert_wide(self.table.hash(key), now.seconds(), &note, &addresses, |_| {})
                    }
                };
            }
            PeerMessage::Returned { key, addresses, holder } => {
                let (_, found) = self.find_peer_flow(key, addresses.as_ref());
                if found.is_nothing() {
                    return;
                }
                let record = self.table.record(found.index());
                if record.flags & FlowRecord::FLAG_AWAY != 0 && record.target == u32::from(holder.0) {
                    self.table.remove(found.index());
                }
            }
        }
    }

    /// The flow that another worker's message is about, under this worker's key for it.
    fn find_peer_flow(&self, mut key: FlowKey, addresses: Option<&AddressPair>) -> (FlowKey, Found) {
        let Some(addresses) = addresses else { return (key, self.table.find_key(key)) };
        let [source, destination] = self.table.words(addresses);
        key.addresses = u64::from(source) | u64::from(destination) << 32;
        (key, self.table.find_wide(key, self.table.hash(key), addresses))
    }

    /// Appends views of at most `most` flow slots from slot `cursor` on; returns where to go on, `None` at the end.
    pub fn flows(&self, cursor: u32, most: u32, now: Now, views: &mut Vec<FlowView>) -> Option<u32> {
        let mut next = self.table.used_from(cursor);
        for _ in 0..most {
            let Some(index) = next else { break };
            next = self.table.used_from(index + 1);
            let record = self.table.record(index);
            if !record.is_live() || record.flags & FlowRecord::FLAG_AWAY != 0 {
                continue;
            }
            views.push(FlowView {
                forward: record.key(Direction::Forward),
                reverse: record.key(Direction::Reverse),
                addresses: self.table.wide(index).copied(),
                state: State::of(record).name(),
                endpoint: record.endpoint,
                target: record.target,
                age_seconds: now.tick().wrapping_sub(record.started) / 1000,
                idle_seconds: now.tick().wrapping_sub(record.last_seen) / 1000,
                forward_count: (record.forward_packets, record.forward_bytes),
                reverse_count: (record.reverse_packets, record.reverse_bytes),
            });
        }
        next
    }
}

fn count_unreachable(counters: &crate::counters::WorkerCounters, endpoint: u32) {
    counters.held.subtract(1);
    counters.count_endpoint_drop(endpoint, DropReason::NeighbourUnreachable);
}

//! First packets: endpoint, listener, target group, target, SNAT port, and a record with both directions. The decision is
//! made once and stored.

use std::net::Ipv4Addr;

use postern_flows::{FlowRecord, InsertError, State};
use postern_measurement::Now;
use postern_tables::snapshot::{
    Endpoint, EndpointIndex, Listener, LocalAddress, PoolIndex, ReturnPath, SnatPool, Target, TargetIndex, VpcIndex,
};
use postern_translation::RewritePlan;
use postern_translation::ports::{LaneKey, Lease, Need, Refusal};
use postern_wire::tcp::{ACK, FIN, RST, SYN};
use postern_wire::{AttachmentIndex, FlowKey, Frame, MacAddress, PacketKind, Parsed};
use std::net::SocketAddrV4;
use std::sync::Arc;

use crate::forwarder::{Forwarder, Slot};
use crate::outbox::{Outbox, PeerMessage};
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};

/// Half-open flows looked at for one to evict.
const EVICTIONS: usize = 4;

/// What a first packet leads to.
struct Choice<'s> {
    endpoint_index: EndpointIndex,
    endpoint: &'s Endpoint,
    listener: &'s Listener,
    target_index: TargetIndex,
    target: &'s Target,
    pool: PoolIndex,
    /// The attachment behind which the target is, and the neighbour to send to.
    attachment: AttachmentIndex,
    neighbour: Ipv4Addr,
}

impl Forwarder<'_> {
    /// A TCP or UDP packet whose flow was not found.
    #[cold]
    pub(crate) fn first(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let key = slot.parsed.key;
        if is_bad_source(key) {
            return self.refuse(DropReason::BadSource);
        }
        match self.snapshot.local(key.attachment(), key.destination()) {
            None => self.refuse(DropReason::NotLocal),
            Some(LocalAddress::Snat(_)) => self.without_flow_from_provider(frame, &slot.parsed, note, outbox, now),
            Some(LocalAddress::Endpoint(index)) => self.open(frame, slot, index, note, outbox, now),
        }
    }

    /// The provider can never open a connection: hand the packet to the port's owner, else drop it.
    fn without_flow_from_provider(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let owner = self.ownership.of_port(parsed.key.destination_port());
        if owner != self.worker.0 && owner < self.workers && note.is_none() {
            return Verdict::Handoff(WorkerIndex(owner), HandoffNote::Owned);
        }
        if parsed.kind == PacketKind::Tcp && parsed.tcp_flags & (SYN | RST) == 0 {
            let vpc = self.snapshot.attachments.get(usize::from(parsed.key.attachment().0)).map(|at| at.vpc);
            let source = parsed.key.source_socket();
            if vpc.is_some_and(|vpc| self.snapshot.is_target(vpc, *source.ip(), source.port())) {
                self.answer_reset(frame, parsed, outbox, now);
            }
        }
        self.refuse(DropReason::Unsolicited)
    }

    fn open(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        index: EndpointIndex,
        mut note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let parsed = &slot.parsed;
        let owner = self.ownership.of_flow(parsed.key);
        if owner != self.worker.0 && owner < self.workers {
            match note {
                None => return Verdict::Handoff(WorkerIndex(owner), HandoffNote::Owned),
                // The bucket's owner believes that the flow lives here. It is to forget that; a flow that begins anew is lent to
                // it like any other, or its next packet would find nothing there.
                Some(HandoffNote::Owned) => {
                    let origin = WorkerIndex(owner);
                    outbox.message(origin, PeerMessage::Returned { key: parsed.key, holder: self.worker });
                    note = Some(HandoffNote::Borrow { origin, asked: 1, round: 0 });
                }
                Some(HandoffNote::Borrow { .. }) => {}
            }
        }
        if parsed.kind == PacketKind::Tcp && parsed.tcp_flags & (SYN | ACK | RST | FIN) != SYN {
            return self.segment_without_flow(frame, parsed, index, outbox, now);
        }
        if parsed.ttl <= 1 {
            return self.ttl_expired(frame, parsed, index.0, outbox, now);
        }
        let snapshot = Arc::clone(&self.snapshot);
        let sequence = match parsed.kind {
            PacketKind::Tcp => sequence_number(frame, parsed),
            _ => 0,
        };
        let choice = match self.choose(&snapshot, index, parsed.key, sequence) {
            Ok(choice) => choice,
            Err(reason) => return self.refuse_for(index.0, reason),
        };
        let (lease, snat) = match self.lease(&snapshot, &choice, parsed.key, note, outbox, now) {
            Ok(lease) => lease,
            Err(Leaseless::Ask(worker, note)) => return Verdict::Handoff(worker, note),
            Err(Leaseless::Refused(reason)) => {
                if reason == DropReason::PortsExhausted {
                    self.count_port_error(&choice);
                }
                return self.refuse_for(index.0, reason);
            }
        };
        let made = self.record(frame, parsed, &choice, &lease, snat, note, outbox, now);
        match made {
            Ok(flow) => {
                if parsed.kind == PacketKind::Tcp {
                    let (mtu, mss) = (choice.endpoint.mtu, choice.listener.mss);
                    self.clamp_to(frame, parsed, self.table.record(flow), mtu, mss);
                }
                self.forward(frame, parsed, flow, false, choice.endpoint.mtu, outbox, now)
            }
            Err(reason) => {
                self.snat.release(lease.lane, lease.port, 0, now);
                self.refuse_for(index.0, reason)
            }
        }
    }

    /// A TCP segment on the consumer's side that is no SYN and has no flow.
    fn segment_without_flow(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        index: EndpointIndex,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let listening = self.snapshot.endpoint(index).is_some_and(|endpoint| {
            self.snapshot.listener(endpoint.service, parsed.key.protocol(), parsed.key.destination_port()).is_some()
        });
        if !listening {
            return self.refuse_for(index.0, DropReason::NoListener);
        }
        if parsed.tcp_flags & RST == 0
            && self.answer_reset(frame, parsed, outbox, now)
            && let Some(counters) = self.counters.endpoints.get(index.at())
        {
            counters.own_resets.add(1);
        }
        self.refuse_for(index.0, DropReason::NoFlow)
    }

    /// Endpoint → listener → target group → target → route.
    fn choose<'s>(
        &self,
        snapshot: &'s postern_tables::Snapshot,
        index: EndpointIndex,
        key: FlowKey,
        sequence: u32,
    ) -> Result<Choice<'s>, DropReason> {
        let endpoint = snapshot.endpoint(index).ok_or(DropReason::NotLocal)?;
        let listener = snapshot
            .listener(endpoint.service, key.protocol(), key.destination_port())
            .and_then(|listener| snapshot.listeners.get(listener.at()))
            .ok_or(DropReason::NoListener)?;
        let hash = snapshot.selection.hash(key, sequence);
        let group = listener.group(hash).and_then(|group| snapshot.target_groups.get(group.at()));
        let group = group.ok_or(DropReason::NoTarget)?;
        let target_index = group.target(hash).ok_or(DropReason::NoTarget)?;
        let target = snapshot.target(target_index).ok_or(DropReason::NoTarget)?;
        let route = snapshot.route(target.vpc, target.address).ok_or(DropReason::NoRoute)?;
        Ok(Choice {
            endpoint_index: index,
            endpoint,
            listener,
            target_index,
            target,
            pool: group.pool,
            attachment: route.attachment,
            neighbour: route.via.unwrap_or(target.address),
        })
    }

    /// Finds a port toward the target: first a rested one of our own, then of another worker, then one that still rests, then
    /// that of the oldest half-open flow.
    fn lease(
        &mut self,
        snapshot: &postern_tables::Snapshot,
        choice: &Choice<'_>,
        key: FlowKey,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(Lease, Ipv4Addr), Leaseless> {
        let refused = |reason| Err(Leaseless::Refused(reason));
        let Some(pool) = snapshot.pools.get(choice.pool.at()).filter(|pool| !pool.addresses.is_empty()) else {
            return refused(DropReason::NoSnatAddress);
        };
        let (origin, asked, round) = match note {
            Some(HandoffNote::Borrow { origin, asked, round }) => (origin, asked, round),
            _ => (self.worker, 1, 0),
        };
        let alone = self.workers == 1;
        if round == 0 {
            if let Some(lease) = self.lease_from(pool, choice, key, Need::Rested, now) {
                return Ok(lease);
            }
            if !alone {
                return Err(self.ask_next(origin, asked, 0));
            }
        }
        if let Some((lease, snat)) = self.lease_from(pool, choice, key, Need::Any, now) {
            if lease.early {
                self.counters.ports_early.add(1);
            }
            return Ok((lease, snat));
        }
        if self.evict_half_open(pool, choice, key, outbox, now)
            && let Some(lease) = self.lease_from(pool, choice, key, Need::Any, now)
        {
            return Ok(lease);
        }
        if !alone && (round == 0 || asked < self.workers) {
            return Err(self.ask_next(origin, asked, 1));
        }
        refused(DropReason::PortsExhausted)
    }

    /// Whom to ask after this worker has found nothing: everyone in turn, then everyone once more with less restraint.
    fn ask_next(&self, origin: WorkerIndex, asked: u16, round: u8) -> Leaseless {
        let next = WorkerIndex((self.worker.0 + 1) % self.workers);
        let note = if asked < self.workers {
            HandoffNote::Borrow { origin, asked: asked + 1, round }
        } else {
            HandoffNote::Borrow { origin, asked: 1, round: 1 }
        };
        Leaseless::Ask(next, note)
    }

    fn lease_from(
        &mut self,
        pool: &SnatPool,
        choice: &Choice<'_>,
        key: FlowKey,
        need: Need,
        now: Now,
    ) -> Option<(Lease, Ipv4Addr)> {
        let start = ((u128::from(self.table.hash(key)) * pool.addresses.len() as u128) >> 64) as usize;
        let (after, before) = (&pool.addresses[start..], &pool.addresses[..start]);
        for snat in after.iter().chain(before) {
            match self.snat.allocate(lane(*snat, choice, key), pool.ports.clone(), need, now) {
                Ok(lease) => return Some((lease, *snat)),
                Err(Refusal::Exhausted) => {}
                Err(Refusal::LanesFull | Refusal::BlocksFull) => return None,
            }
        }
        None
    }

    /// Ends the oldest half-open flow toward the target, if there is one.
    fn evict_half_open(
        &mut self,
        pool: &SnatPool,
        choice: &Choice<'_>,
        key: FlowKey,
        outbox: &mut Outbox,
        now: Now,
    ) -> bool {
        let mut oldest: Option<(u32, u32)> = None;
        for snat in pool.addresses.iter().take(EVICTIONS) {
            let Some(lane) = self.snat.find(lane(*snat, choice, key)) else { continue };
            let first = self.snat.half_open(lane).first;
            if first == postern_flows::NONE {
                continue;
            }
            let age = now.tick().wrapping_sub(self.table.record(first).started);
            if oldest.is_none_or(|(_, other)| age > other) {
                oldest = Some((first, age));
            }
        }
        let Some((index, _)) = oldest else { return false };
        self.counters.half_open_evicted.add(1);
        self.end(index, outbox, now);
        true
    }

    /// Writes the record of a new flow.
    #[expect(clippy::too_many_arguments, reason = "everything that a flow is made of")]
    fn record(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        choice: &Choice<'_>,
        lease: &Lease,
        snat: Ipv4Addr,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<u32, DropReason> {
        let forward = parsed.key;
        let protocol = forward.protocol();
        let target = SocketAddrV4::new(choice.target.address, choice.target.port);
        let reverse = FlowKey::new(choice.attachment, protocol, target, SocketAddrV4::new(snat, lease.port));
        let reverse_hop = self.return_hop(frame, forward, choice.endpoint.vpc)?;
        let forward_hop = self
            .hops
            .neighbour(&self.snapshot, &self.ports, choice.attachment, choice.neighbour)
            .ok_or(DropReason::NextHopsFull)?;
        let plan = RewritePlan::between(forward, reverse.reversed());
        let tcp = parsed.kind == PacketKind::Tcp;
        let state = if tcp { State::SynSent } else { State::Udp };
        let lent_to = match note {
            Some(HandoffNote::Borrow { origin, .. }) if origin != self.worker => Some(origin),
            _ => None,
        };
        let pool = &self.snapshot.pools[choice.pool.at()];
        let record = FlowRecord {
            forward,
            reverse,
            address_delta: plan.address_delta.0,
            full_delta: plan.full_delta.0,
            forward_hop,
            reverse_hop,
            last_seen: now.tick(),
            started: now.tick(),
            state: state as u8,
            flags: if lent_to.is_some() { FlowRecord::FLAG_LENT } else { 0 },
            idle_seconds: state.idle_seconds(choice.listener.idle_seconds),
            listener_idle_seconds: choice.listener.idle_seconds,
            endpoint: choice.endpoint_index.0,
            policy_epoch: choice.endpoint.policy_epoch,
            target: choice.target_index.0,
            target_incarnation: choice.target.incarnation,
            lane: lease.lane,
            rest_seconds: pool.rest_seconds.min(240) as u8,
            bucket_owner: lent_to.map_or(0, |worker| worker.0 as u8),
            half_open_next: postern_flows::NONE,
            half_open_previous: postern_flows::NONE,
            ..FlowRecord::default()
        };
        if let Some(origin) = lent_to
            && !outbox.message(origin, PeerMessage::Lent { key: forward, holder: self.worker })
        {
            return Err(DropReason::OutboxFull);
        }
        let index = self.table.insert(record, now.seconds()).map_err(|error| match error {
            InsertError::TableFull => DropReason::FlowTableFull,
            InsertError::BucketFull => DropReason::FlowBucketFull,
        })?;
        self.hops.hold(forward_hop);
        self.hops.hold(reverse_hop);
        if tcp {
            self.enter_half_open(index);
        }
        if lent_to.is_some() {
            self.counters.flows_lent.add(1);
        }
        self.counters.flows.add(1);
        self.counters.flows_new.add(1);
        if let Some(counters) = self.counters.endpoints.get(choice.endpoint_index.at()) {
            counters.flows.add(1);
            counters.flows_new.add(1);
        }
        if let Some(counters) = self.counters.targets.get(choice.target_index.at()) {
            counters.flows.add(1);
            counters.flows_new.add(1);
        }
        Ok(index)
    }

    /// The hop for replies: by route, or to where the request came from.
    fn return_hop(&mut self, frame: &Frame<'_>, forward: FlowKey, vpc: VpcIndex) -> Result<u32, DropReason> {
        let attachment = forward.attachment();
        let return_path =
            self.snapshot.attachments.get(usize::from(attachment.0)).ok_or(DropReason::NoRoute)?.return_path;
        let hop = match return_path {
            ReturnPath::LastHop => {
                let Some(addresses) = frame.bytes().first_chunk::<12>() else { return Err(DropReason::Truncated) };
                let [_, _, _, _, _, _, a, b, c, d, e, f] = *addresses;
                self.hops.station(&self.snapshot, &self.ports, attachment, MacAddress([a, b, c, d, e, f]))
            }
            ReturnPath::Route => {
                let client = forward.source();
                let route = self.snapshot.route(vpc, client).ok_or(DropReason::NoRoute)?;
                let neighbour = route.via.unwrap_or(client);
                self.hops.neighbour(&self.snapshot, &self.ports, route.attachment, neighbour)
            }
        };
        hop.ok_or(DropReason::NextHopsFull)
    }

    fn count_port_error(&self, choice: &Choice<'_>) {
        if let Some(counters) = self.counters.endpoints.get(choice.endpoint_index.at()) {
            counters.port_allocation_errors.add(1);
        }
        if let Some(counters) = self.counters.targets.get(choice.target_index.at()) {
            counters.port_allocation_errors.add(1);
        }
    }

    /// Counts a drop under the endpoint that the packet is for, if it is for one.
    pub(crate) fn refuse_at(&self, parsed: &Parsed, reason: DropReason) -> Verdict {
        match self.snapshot.local(parsed.key.attachment(), parsed.key.destination()) {
            Some(LocalAddress::Endpoint(index)) => self.refuse_for(index.0, reason),
            Some(LocalAddress::Snat(_)) => self.refuse(reason),
            None => self.refuse(DropReason::NotLocal),
        }
    }
}

/// Why there is no lease.
enum Leaseless {
    /// Another worker may have a port.
    Ask(WorkerIndex, HandoffNote),
    Refused(DropReason),
}

fn lane(snat: Ipv4Addr, choice: &Choice<'_>, key: FlowKey) -> LaneKey {
    LaneKey {
        snat,
        target: choice.target.address,
        target_port: choice.target.port,
        vpc: choice.attachment.0,
        protocol: key.protocol(),
    }
}

fn is_bad_source(key: FlowKey) -> bool {
    let source = key.source();
    source == key.destination()
        || source.is_multicast()
        || source.is_broadcast()
        || source.is_loopback()
        || source.octets()[0] == 0
}

fn sequence_number(frame: &Frame<'_>, parsed: &Parsed) -> u32 {
    frame
        .bytes()
        .get(usize::from(parsed.l4) + 4..)
        .and_then(<[u8]>::first_chunk::<4>)
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

//! First packets: endpoint, listener, target group, target, SNAT port, and a record with both directions. The decision is
//! made once and stored.

use std::net::IpAddr;

use postern_flows::tcp::Segment;
use postern_flows::{FlowRecord, InsertError, State};
use postern_measurement::Now;
use postern_tables::health::PROBE_PORTS;
use postern_tables::snapshot::{
    EndpointIndex, LocalAddress, ReturnPath, TargetGroup, TargetGroupIndex, TargetIndex, VpcIndex, Zone,
};
use postern_translation::RewritePlan;
use postern_translation::ports::{Lease, Need, Refusal};
use postern_wire::tcp::{ACK, FIN, RST, SEQUENCE, SYN};
use postern_wire::{Family, FlowKey, Frame, MacAddress, PacketKind, Parsed, ipv6};

use crate::forwarder::{Forwarder, Slot};
use crate::ipv6::first::{aim_wide, consumer_addresses, is_bad_source6, wide_addresses};
use crate::outbox::{Outbox, PeerMessage};
use crate::stickiness::{client_hash, client_of, is_good};
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};
use crate::ways::{Way, WayKey};

/// Half-open flows looked at for one to evict.
const EVICTIONS: usize = 4;

impl Forwarder<'_> {
    /// A TCP or UDP packet whose flow was not found.
    // Rare beside other packets, but whoever opens many connections waits for it: not cold, or nothing is inlined into it.
    #[inline(never)]
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
            Some(LocalAddress::Endpoint(index)) => self.open::<false>(frame, slot, index, note, outbox, now),
        }
    }

    /// The same of IPv6, or of either family.
    #[cold]
    #[inline(never)]
    pub(crate) fn first_of_any(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if !slot.parsed.key.is_wide() {
            return self.first(frame, slot, note, outbox, now);
        }
        let attachment = slot.parsed.key.attachment();
        let Some(addresses) = ipv6::addresses(frame.bytes(), usize::from(slot.parsed.l3)) else {
            return self.refuse(DropReason::Truncated);
        };
        if is_bad_source6(addresses) {
            return self.refuse(DropReason::BadSource);
        }
        match self.snapshot.local6(attachment, ipv6::destination(addresses)) {
            None => self.refuse(DropReason::NotLocal),
            Some(LocalAddress::Snat(_)) => self.without_flow_from_provider(frame, &slot.parsed, note, outbox, now),
            Some(LocalAddress::Endpoint(index)) => self.open::<true>(frame, slot, index, note, outbox, now),
        }
    }

    /// The provider can never open a connection: hand the packet to the port's owner, else drop it. Answers to probes have no
    /// flow, but ports of their own.
    #[cold]
    #[inline(never)]
    fn without_flow_from_provider(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if parsed.kind == PacketKind::Tcp && PROBE_PORTS.contains(&parsed.key.destination_port()) {
            return Verdict::Probe;
        }
        let owner = self.ownership.of_port(parsed.key.destination_port());
        if owner != self.worker.0 && owner < self.workers && note.is_none() {
            return Verdict::Handoff(WorkerIndex(owner), HandoffNote::Owned);
        }
        if parsed.kind == PacketKind::Tcp && parsed.tcp_flags & (SYN | RST) == 0 {
            let vpc = self.snapshot.attachments.get(usize::from(parsed.key.attachment().0)).map(|at| at.vpc);
            if vpc.is_some_and(|vpc| self.is_from_target(frame, parsed, vpc)) {
                self.answer_reset(frame, parsed, outbox, now);
            }
        }
        self.refuse(DropReason::Unsolicited)
    }

    /// Whether a packet comes from a registered target's address and port.
    fn is_from_target(&self, frame: &Frame<'_>, parsed: &Parsed, vpc: VpcIndex) -> bool {
        let source = parsed.key.source_socket();
        match ipv6::addresses(frame.bytes(), usize::from(parsed.l3)) {
            Some(addresses) if parsed.key.is_wide() => {
                self.snapshot.is_target6(vpc, ipv6::source(addresses), source.port())
            }
            _ => self.snapshot.is_target(vpc, *source.ip(), source.port()),
        }
    }

    /// Opens a flow to an endpoint: of an IPv6 packet if `WIDE`.
    #[inline]
    fn open<const WIDE: bool>(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        index: EndpointIndex,
        mut note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let parsed = &slot.parsed;
        let owner = if self.workers == 1 {
            self.worker.0
        } else if WIDE {
            self.bucket_owner(frame, parsed)
        } else {
            self.ownership.of_flow(parsed.key)
        };
        if owner != self.worker.0 && owner < self.workers {
            match note {
                None => return Verdict::Handoff(WorkerIndex(owner), HandoffNote::Owned),
                // The bucket's owner believes that the flow lives here. It is to forget that; a flow that begins anew is lent to
                // it like any other, or its next packet would find nothing there.
                Some(HandoffNote::Owned) => {
                    let origin = WorkerIndex(owner);
                    let addresses = consumer_addresses(frame, parsed);
                    let returned = PeerMessage::Returned { key: parsed.key, addresses, holder: self.worker };
                    outbox.message(origin, returned);
                    note = Some(HandoffNote::Borrow { origin, asked: 1, round: 0 });
                }
                Some(HandoffNote::Borrow { .. } | HandoffNote::Gather) => {}
            }
        }
        if parsed.kind == PacketKind::Tcp && parsed.tcp_flags & (SYN | ACK | RST | FIN) != SYN {
            return self.segment_without_flow(frame, parsed, index, outbox, now);
        }
        if parsed.ttl <= 1 {
            return self.first_expired(frame, parsed, index, outbox, now);
        }
        let sequence = match parsed.kind {
            PacketKind::Tcp => sequence_number(frame, parsed),
            _ => 0,
        };
        let place = match self.choose::<WIDE>(frame, parsed, index, sequence, now) {
            Ok(place) => place,
            Err(reason) => return self.refuse_first(frame, parsed, index, reason, outbox, now),
        };
        if self.ways.at(place).is_some_and(|way| way.guarded) {
            return self.begin_guarded::<WIDE>(frame, slot, index, place, note, outbox, now);
        }
        self.begin::<WIDE>(frame, slot, index, place, note, false, outbox, now)
    }

    /// Begins a flow that nothing keeps from it: port, record, and the first packet on its way. Of a flow that is `metered` every
    /// packet goes the long way.
    #[expect(clippy::too_many_arguments, reason = "everything that a flow is made of")]
    #[inline(always)]
    pub(crate) fn begin<const WIDE: bool>(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        index: EndpointIndex,
        place: usize,
        note: Option<HandoffNote>,
        metered: bool,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        // Only now: what may not open a flow must not cost another its place.
        if slot.parsed.kind == PacketKind::Tcp
            && self.half_open.is_full_for(index.0)
            && !self.make_half_open_room(index.0, outbox, now)
        {
            return self.refuse_for(index.0, DropReason::HalfOpenFull);
        }
        let (lease, snat) = match self.lease::<WIDE>(place, slot, note, outbox, now) {
            Ok(lease) => lease,
            Err(Leaseless::Ask(worker, note)) => return Verdict::Handoff(worker, note),
            Err(Leaseless::Refused(reason)) => {
                return self.refuse_first(frame, &slot.parsed, index, reason, outbox, now);
            }
        };
        match self.record::<WIDE>(frame, slot, place, &lease, snat, note, outbox, now) {
            Ok((flow, mtu)) if self.table.record(flow).goes_long_way() => {
                let verdict = self.begin_long_way(frame, slot, flow, mtu, outbox, now);
                if metered && self.table.record(flow).is_live() {
                    self.table.record_mut(flow).state |= FlowRecord::LONG_WAY;
                }
                verdict
            }
            Ok((flow, mtu)) if metered => {
                self.table.record_mut(flow).state |= FlowRecord::LONG_WAY;
                self.forward(frame, &slot.parsed, flow, false, mtu, outbox, now)
            }
            Ok((flow, mtu)) if WIDE => self.forward(frame, &slot.parsed, flow, false, mtu, outbox, now),
            Ok((flow, mtu)) => self.forward_first(frame, slot, flow, mtu, outbox, now),
            Err(reason) => {
                self.snat.release(lease.lane, lease.port, 0, now);
                self.refuse_for(index.0, reason)
            }
        }
    }

    /// A TCP segment on the consumer's side that is no SYN and has no flow.
    #[cold]
    #[inline(never)]
    fn segment_without_flow(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        index: EndpointIndex,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if let Err(reason) = self.guard(frame, index, parsed) {
            return self.refuse_for(index.0, reason);
        }
        if matches!(Segment::of(parsed.tcp_flags), Segment::Null | Segment::Nonsense) {
            return self.refuse_for(index.0, DropReason::TcpFlags);
        }
        if parsed.tcp_flags & RST == 0
            && self.answer_reset(frame, parsed, outbox, now)
            && let Some(counters) = self.counters.endpoints.get(index.at())
        {
            counters.own_resets.add(1);
        }
        self.refuse_for(index.0, DropReason::NoFlow)
    }

    /// The time to live of a first packet has run out: who may not connect is not told.
    #[cold]
    #[inline(never)]
    fn first_expired(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        index: EndpointIndex,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        match self.guard(frame, index, parsed) {
            Ok(()) => self.ttl_expired(frame, parsed, index.0, outbox, now),
            Err(reason) => self.refuse_for(index.0, reason),
        }
    }

    /// Endpoint → listener → target group → target: the place of that way.
    #[inline]
    fn choose<const WIDE: bool>(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        index: EndpointIndex,
        sequence: u32,
        now: Now,
    ) -> Result<usize, DropReason> {
        let key = parsed.key;
        let snapshot = &*self.snapshot;
        let endpoint = snapshot.endpoint(index).ok_or(DropReason::NotLocal)?;
        let number = snapshot
            .listener(endpoint.service, key.protocol(), key.destination_port())
            .ok_or(DropReason::NoListener)?;
        let listener = snapshot.listeners.get(number.at()).ok_or(DropReason::NoListener)?;
        let (hash, number_of_group) = if WIDE {
            let addresses = ipv6::addresses(frame.bytes(), usize::from(parsed.l3)).ok_or(DropReason::Truncated)?;
            let hash = match listener.sticky {
                true => client_hash(snapshot, key, Some(addresses)),
                false => snapshot.selection.hash_v6(addresses, key, sequence),
            };
            (hash, listener.group6(hash))
        } else {
            let hash = match listener.sticky {
                true => client_hash(snapshot, key, None),
                false => snapshot.selection.hash(key, sequence),
            };
            (hash, listener.group(hash))
        };
        let number_of_group = number_of_group.ok_or(DropReason::NoTarget)?;
        let group = snapshot.target_groups.get(number_of_group.at()).ok_or(DropReason::NoTarget)?;
        let target = if group.is_particular() {
            let zone = if listener.cross_zone { Zone::NONE } else { endpoint.zone };
            self.choose_particularly((index, zone), (number_of_group, group), key.destination_port(), hash, now)
        } else {
            group.target(hash)
        };
        let target = target.ok_or(DropReason::NoTarget)?;
        self.ways.find(snapshot, WayKey { endpoint: index, listener: number, target, pool: group.pool })
    }

    /// The target where more than the flow's hash counts: the port, the endpoint address's zone, or where the client was sent
    /// before.
    #[cold]
    #[inline(never)]
    fn choose_particularly(
        &self,
        (endpoint, zone): (EndpointIndex, Zone),
        (number, group): (TargetGroupIndex, &TargetGroup),
        port: u16,
        hash: u64,
        now: Now,
    ) -> Option<TargetIndex> {
        if let Some(mapping) = &group.mapping {
            return group.mapped(mapping, port);
        }
        let choose = || group.target_in(zone, hash);
        if group.sticky_seconds == 0 {
            return choose();
        }
        let client = client_of(hash, endpoint, number);
        let is_good = |target| is_good(&self.snapshot, group, target);
        self.shared.stickiness.target(client, group.sticky_seconds, now, is_good, choose)
    }

    /// Finds a port toward the target: first a rested one of our own, then of another worker, then one that still rests, then
    /// that of the oldest half-open flow.
    #[inline]
    fn lease<const WIDE: bool>(
        &mut self,
        place: usize,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(Lease, IpAddr), Leaseless> {
        let none = Leaseless::Refused(DropReason::NoSnatAddress);
        let Some(way) = self.ways.at(place) else { return Err(none) };
        let Some(pool) = self.snapshot.pools.get(way.pool.at()) else { return Err(none) };
        // The flow's hash chooses the address.
        let addresses = if WIDE { way.snat_addresses(pool).len() } else { pool.addresses.len() };
        let first = ((u128::from(slot.hash) * addresses as u128) >> 64) as usize;
        let asked_before = matches!(note, Some(HandoffNote::Borrow { round: 1.., .. }));
        if !WIDE
            && !asked_before
            && let Some(snat) = pool.addresses.get(first)
            && let Ok(lease) = self.snat.allocate(way.lane(*snat), pool.ports.clone(), Need::Rested, now)
        {
            return Ok((lease, IpAddr::V4(*snat)));
        }
        let way = *way;
        self.search_lease(&way, first, note, outbox, now)
    }

    /// The same where the first address has no rested port.
    #[cold]
    #[inline(never)]
    fn search_lease(
        &mut self,
        way: &Way,
        first: usize,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(Lease, IpAddr), Leaseless> {
        let (origin, asked, round) = match note {
            Some(HandoffNote::Borrow { origin, asked, round }) => (origin, asked, round),
            _ => (self.worker, 1, 0),
        };
        let alone = self.workers == 1;
        if round == 0 {
            if let Some(lease) = self.lease_from(way, first, Need::Rested, now) {
                return Ok(lease);
            }
            if !alone {
                return Err(self.ask_next(origin, asked, 0));
            }
        }
        if let Some((lease, snat)) = self.lease_from(way, first, Need::Any, now) {
            if lease.early {
                self.counters.ports_early.add(1);
            }
            return Ok((lease, snat));
        }
        if self.evict_half_open(way, outbox, now)
            && let Some(lease) = self.lease_from(way, first, Need::Any, now)
        {
            return Ok(lease);
        }
        if !alone && (round == 0 || asked < self.workers) {
            return Err(self.ask_next(origin, asked, 1));
        }
        self.count_port_error(way);
        Err(Leaseless::Refused(DropReason::PortsExhausted))
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

    /// A port of one of the pool's addresses, which are tried in turn from the position `first` on.
    fn lease_from(&mut self, way: &Way, first: usize, need: Need, now: Now) -> Option<(Lease, IpAddr)> {
        let pool = self.snapshot.pools.get(way.pool.at())?;
        let addresses = way.snat_addresses(pool);
        for at in (first..addresses.len()).chain(0..first) {
            let snat = addresses.at(at)?;
            match self.snat.allocate(self.ways.lane(way, snat), pool.ports.clone(), need, now) {
                Ok(lease) => return Some((lease, snat)),
                Err(Refusal::Exhausted) => {}
                Err(Refusal::LanesFull | Refusal::BlocksFull) => return None,
            }
        }
        None
    }

    /// Ends the oldest half-open flow toward the target, if there is one.
    fn evict_half_open(&mut self, way: &Way, outbox: &mut Outbox, now: Now) -> bool {
        let Some(pool) = self.snapshot.pools.get(way.pool.at()) else { return false };
        let mut oldest: Option<(u32, u32)> = None;
        let addresses = way.snat_addresses(pool);
        for snat in (0..EVICTIONS).map_while(|at| addresses.at(at)) {
            let Some(lane) = self.snat.find(self.ways.lane(way, snat)) else { continue };
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

    /// Writes the record of a new flow, and clamps what a SYN offers; returns its number and the endpoint's MTU.
    #[expect(clippy::too_many_arguments, reason = "everything that a flow is made of")]
    #[inline]
    fn record<const WIDE: bool>(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        place: usize,
        lease: &Lease,
        snat: IpAddr,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(u32, u16), DropReason> {
        let forward = slot.parsed.key;
        let reverse_hop = if WIDE { self.return_hop6(frame, &slot.parsed)? } else { self.return_hop(frame, forward)? };
        let way = self.ways.at(place).ok_or(DropReason::NoTarget)?;
        let (mtu, mss, endpoint, target) = (way.mtu, way.mss, way.record.endpoint, way.record.target);
        let forward_hop = match way.wide {
            Some(wide) if WIDE => self.hops.neighbour6(&self.snapshot, &self.ports, way.attachment, wide.neighbour),
            _ => self.hops.neighbour(&self.snapshot, &self.ports, way.attachment, way.neighbour),
        };
        let forward_hop = forward_hop.ok_or(DropReason::NextHopsFull)?;
        let lent_to = match note {
            Some(HandoffNote::Borrow { origin, .. }) if origin != self.worker => Some(origin),
            _ => None,
        };
        if let Some(origin) = lent_to
            && !outbox.message(origin, self.lent(frame, &slot.parsed))
        {
            return Err(DropReason::OutboxFull);
        }
        let tcp = slot.parsed.kind == PacketKind::Tcp;
        let state = if tcp { State::SynSent } else { State::Udp };
        let complete = |record: &mut FlowRecord| {
            record.forward = forward;
            (record.forward_hop, record.reverse_hop) = (forward_hop, reverse_hop);
            (record.last_seen, record.started) = (now.tick(), now.tick());
            // The way's record says whether its flows need more than the plan.
            record.state |= state as u8;
            record.idle_seconds = state.idle_seconds(record.listener_idle_seconds);
            record.lane = lease.lane;
            if let Some(origin) = lent_to {
                record.flags |= FlowRecord::FLAG_LENT;
                record.bucket_owner = origin.0 as u8;
            }
        };
        let inserted = if WIDE {
            let addresses = wide_addresses(frame, &slot.parsed, way, snat).ok_or(DropReason::Truncated)?;
            let words = self.table.address_words();
            self.table.insert_wide(slot.hash, now.seconds(), &way.record, &addresses, |record| {
                complete(record);
                aim_wide(record, &addresses, lease.port, words);
            })
        } else {
            self.table.insert_with(slot.hash, now.seconds(), &way.record, |record| {
                complete(record);
                if let IpAddr::V4(snat) = snat {
                    record.reverse = record.reverse.to(snat, lease.port);
                }
                let plan = RewritePlan::between(forward, record.reverse.reversed());
                (record.address_delta, record.full_delta) = (plan.address_delta.0, plan.full_delta.0);
            })
        };
        let index = inserted.map_err(|error| match error {
            InsertError::TableFull => DropReason::FlowTableFull,
            InsertError::BucketFull => DropReason::FlowBucketFull,
        })?;
        self.hops.hold(forward_hop);
        self.hops.hold(reverse_hop);
        if tcp {
            self.enter_half_open(index, lease.lane, endpoint);
            if WIDE {
                self.clamp_to6(frame, &slot.parsed, [forward_hop, reverse_hop], mtu, mss);
            } else {
                self.clamp_to(frame, &slot.parsed, [forward_hop, reverse_hop], mtu, mss);
            }
        }
        self.count_new(endpoint, target);
        if lent_to.is_some() {
            self.counters.flows_lent.add(1);
        }
        Ok((index, mtu))
    }

    #[inline]
    fn count_new(&self, endpoint: u32, target: u32) {
        let counters = &*self.counters;
        counters.flows.add(1);
        counters.flows_new.add(1);
        if let Some(counters) = counters.endpoints.get(endpoint as usize) {
            counters.flows.add(1);
            counters.flows_new.add(1);
        }
        if let Some(counters) = counters.targets.get(target as usize) {
            counters.flows.add(1);
            counters.flows_new.add(1);
        }
    }

    /// The hop for replies: by route, or to where the request came from.
    #[inline]
    fn return_hop(&mut self, frame: &Frame<'_>, forward: FlowKey) -> Result<u32, DropReason> {
        let attachment = forward.attachment();
        let at = self.snapshot.attachments.get(usize::from(attachment.0)).ok_or(DropReason::NoRoute)?;
        let vpc = at.vpc;
        let hop = match at.return_path {
            ReturnPath::LastHop => {
                let Some(addresses) = frame.bytes().first_chunk::<12>() else { return Err(DropReason::Truncated) };
                let [_, _, _, _, _, _, a, b, c, d, e, f] = *addresses;
                self.hops.station(&self.snapshot, &self.ports, attachment, MacAddress([a, b, c, d, e, f]), Family::V4)
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

    fn count_port_error(&self, way: &Way) {
        if let Some(counters) = self.counters.endpoints.get(way.record.endpoint as usize) {
            counters.port_allocation_errors.add(1);
        }
        if let Some(counters) = self.counters.targets.get(way.record.target as usize) {
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

/// Whether a packet's source can be no host: its own destination, "this network" (0/8), loopback (127/8), multicast or
/// broadcast.
#[inline]
const fn is_bad_source(key: FlowKey) -> bool {
    let source = key.source().to_bits();
    let first = source >> 24;
    key.addresses as u32 == (key.addresses >> 32) as u32
        || first == 0
        || first == 127
        || first >> 4 == 14
        || source == u32::MAX
}

fn sequence_number(frame: &Frame<'_>, parsed: &Parsed) -> u32 {
    let at = usize::from(parsed.l4) + SEQUENCE;
    let bytes = frame.bytes().get(at..at + 4).and_then(<[u8]>::first_chunk::<4>);
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

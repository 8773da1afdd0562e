//! Packets of known flows: check that the flow may go on, track TCP, rewrite by the plan, count. This is the packet path.

use std::hint::select_unpredictable;
use std::net::IpAddr;

use postern_flows::tcp::{Action, Segment};
use postern_flows::{FlowRecord, State, WideAddresses};
use postern_measurement::Now;
use postern_tables::snapshot::{Endpoint, EndpointIndex, TargetIndex};
use postern_translation::RewritePlan;
use postern_translation::rewrite::{rewrite, rewrite_plain};
use postern_wire::checksum::Delta;
use postern_wire::parse::{PLAIN, plain_length, plain_tcp_flags, plain_ttl};
use postern_wire::tcp::{ACK, FIN, RST, SYN};
use postern_wire::{Direction, Frame, Offload, PacketKind, Parsed, Segmentation};

use crate::counters::WorkerCounters;
use crate::forwarder::{Forwarder, Slot};
use crate::fragments::{is_fragment, may_be_cut};
use crate::next_hops::NextHop;
use crate::outbox::Outbox;
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};

/// States in which a segment without SYN, FIN and RST changes nothing but the time: UDP and established.
const STEADY: u32 = 1 << State::Udp as u32 | 1 << State::Established as u32;

/// A frame as its segments: what users see and pay for.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) packets: u64,
    /// IP datagrams of all segments together, in bytes.
    pub(crate) bytes: u64,
    /// The largest IP datagram, in bytes.
    pub(crate) largest: u32,
}

impl Forwarder<'_> {
    /// A plain packet of a steady flow: no state changes but time and counts, and all headers are where they always are.
    /// False, with nothing changed, for every other packet, whose way is [`Self::decide`].
    #[inline(always)]
    pub(crate) fn steady(&mut self, frame: &mut Frame<'_>, slot: &Slot, verdict: &mut Verdict, tick: u32) -> bool {
        // A flow that ended since the look-up has left no key, or its number to a flow with another key.
        let Some(record) = self.table.confirm(slot.found, slot.plain) else { return false };
        let Some((head, offload)) = frame.head_mut::<PLAIN>() else { return false };
        let tcp = record.state == State::Established as u8;
        if tcp && plain_tcp_flags(head) & (SYN | FIN | RST) != 0 || !tcp && record.state != State::Udp as u8 {
            return false;
        }
        let reverse = slot.found.is_reverse();
        let Some(policy) = self.snapshot.policies.get(record.endpoint as usize) else { return false };
        let hop = *select_unpredictable(reverse, &record.reverse_hop, &record.forward_hop);
        let Some(hop) = self.hops.hop(hop) else { return false };
        let length = plain_length(head);
        // A note of a flow that lives elsewhere has an epoch that no endpoint has.
        if policy.epoch != record.policy_epoch
            || record.is_expired(tick)
            || length > policy.mtu
            || length > hop.plain_mtu
            || plain_ttl(head) <= 1
        {
            return false;
        }
        *verdict = Verdict::Forward(hop.port);
        record.last_seen = tick;
        send_plain(head, length, tcp, offload, record, reverse, hop, &self.counters);
        frame.truncate(usize::from(length) + 14);
        true
    }

    /// Sends a flow's first packet, whose time to live is above one, on its way.
    #[inline]
    pub(crate) fn forward_first(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        index: u32,
        endpoint_mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if slot.is_plain()
            && let Some((head, offload)) = frame.head_mut::<PLAIN>()
        {
            let record = self.table.record_mut(index);
            let hop = self.hops.at(record.forward_hop);
            let length = plain_length(head);
            if length <= endpoint_mtu && length <= hop.plain_mtu {
                let tcp = slot.parsed.kind == PacketKind::Tcp;
                send_plain(head, length, tcp, offload, record, false, hop, &self.counters);
                frame.truncate(usize::from(length) + 14);
                return Verdict::Forward(hop.port);
            }
        }
        self.forward(frame, &slot.parsed, index, false, endpoint_mtu, outbox, now)
    }

    /// A packet whose flow is in the table. Any packet: plain ones of steady flows come here only if something is amiss.
    pub(crate) fn known(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let parsed = &slot.parsed;
        let index = slot.found.index();
        let record = self.table.record_mut(index);
        let endpoint_mtu = match self.snapshot.policies.get(record.endpoint as usize) {
            Some(policy) if policy.epoch == record.policy_epoch => policy.mtu,
            _ => return self.judge_again(frame, slot, note, outbox, now),
        };
        if record.is_expired(now.tick()) {
            return self.stale(frame, slot, note, outbox, now);
        }
        if record.goes_long_way() && !self.has_bandwidth(slot, now) {
            return self.refuse_for(self.table.record(index).endpoint, DropReason::Bandwidth);
        }
        let record = self.table.record_mut(index);
        if parsed.tcp_flags & (SYN | FIN | RST) != 0 || STEADY >> (record.state & 31) & 1 == 0 {
            match self.track(frame, slot, now) {
                Action::Forward => {}
                Action::Reopen => return self.reopen(frame, slot, note, outbox, now),
                action => return self.refuse_segment(frame, slot, action, outbox, now),
            }
        } else {
            record.last_seen = now.tick();
        }
        let reverse = slot.found.is_reverse();
        if self.table.record(index).goes_long_way() {
            return self.forward_long_way(frame, parsed, index, reverse, endpoint_mtu, outbox, now);
        }
        self.forward(frame, parsed, index, reverse, endpoint_mtu, outbox, now)
    }

    /// Sends a packet of a flow on its way: size, time to live, counts, rewriting, next hop. Any packet, super-frames
    /// and tagged frames too.
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet, all in registers")]
    pub(crate) fn forward(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        index: u32,
        reverse: bool,
        endpoint_mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let record = self.table.record_mut(index);
        let (hop_index, to) =
            if reverse { (record.reverse_hop, record.forward) } else { (record.forward_hop, record.reverse) };
        let hop = self.hops.at(hop_index);
        let length = parsed.end - u32::from(parsed.l3);
        let size = if frame.offload.is_segmented() {
            segments(frame, parsed)
        } else {
            Size { packets: 1, bytes: u64::from(length), largest: length }
        };
        if record.forward.is_wide() {
            return self.forward_wide(frame, parsed, index, reverse, size, endpoint_mtu, outbox, now);
        }
        let endpoint = record.endpoint;
        let mtu = endpoint_mtu.min(hop.mtu);
        let too_large = size.largest > u32::from(mtu);
        if too_large && !may_be_cut(frame, parsed) {
            return self.too_big(frame, parsed, endpoint, mtu, outbox, now);
        }
        if parsed.ttl <= 1 {
            return self.ttl_expired(frame, parsed, endpoint, outbox, now);
        }
        if let Some(counters) = self.counters.endpoints.get(endpoint as usize) {
            counters.count(reverse, size.packets, size.bytes);
        }
        if let Some(counters) = self.counters.targets.get(record.target as usize) {
            counters.count(reverse, size.packets, size.bytes);
        }
        record.count(reverse, size.packets, size.bytes);
        let to = to.reversed();
        let plan = RewritePlan {
            addresses: to.addresses,
            ports: to.ports(),
            address_delta: Delta(record.address_delta).negated_if(reverse),
            full_delta: Delta(record.full_delta).negated_if(reverse),
        };
        rewrite(frame, parsed, &plan);
        frame.truncate(parsed.end as usize);
        if too_large || is_fragment(frame, parsed) {
            self.identify(frame, parsed, to);
            if too_large {
                return self.forward_in_pieces(frame, parsed, endpoint, hop_index, mtu, to, outbox, now);
            }
        }
        let hop = self.hops.at(hop_index);
        let tunnelled = frame.offload.is_segmented() && frame.offload.checksum_start != parsed.l4;
        if !hop.resolved || tunnelled {
            return self.detour(frame, parsed, endpoint, hop_index, outbox, now);
        }
        if !hop.write(frame, usize::from(parsed.l3)) {
            return self.refuse_for(endpoint, DropReason::Unsegmentable);
        }
        Verdict::Forward(hop.port)
    }

    /// Moves the TCP state by the one table of [`State::outcome`].
    #[cold]
    fn track(&mut self, frame: &mut Frame<'_>, slot: &Slot, now: Now) -> Action {
        let index = slot.found.index();
        let record = *self.table.record(index);
        let segment = Segment::of(slot.parsed.tcp_flags);
        let state = State::of(&record);
        let direction = slot.found.direction();
        let outcome = state.outcome(direction, segment);
        if outcome.action != Action::Forward {
            return outcome.action;
        }
        match segment {
            Segment::Rst | Segment::RstAck => {
                if let Some(counters) = self.counters.endpoints.get(record.endpoint as usize) {
                    let counter =
                        if direction == Direction::Forward { &counters.client_resets } else { &counters.target_resets };
                    counter.add(1);
                }
            }
            Segment::Syn | Segment::SynAck => self.clamp(frame, &slot.parsed, &record),
            _ => {}
        }
        let next = outcome.next;
        if next == state {
            if outcome.refreshes {
                self.table.record_mut(index).last_seen = now.tick();
            }
            return Action::Forward;
        }
        if state.is_half_open() && !next.is_half_open() {
            self.leave_half_open(index);
        }
        let idle_seconds = next.idle_seconds(record.listener_idle_seconds);
        let record = self.table.record_mut(index);
        let shorter = idle_seconds < record.idle_seconds;
        record.state = next as u8 | record.state & FlowRecord::LONG_WAY;
        record.idle_seconds = idle_seconds;
        record.last_seen = now.tick();
        if shorter {
            self.table.reschedule(index, now.seconds());
        }
        Action::Forward
    }

    /// A segment that the state of its flow does not allow, or that no TCP sends; the flow stays as it is.
    #[cold]
    fn refuse_segment(
        &mut self,
        frame: &Frame<'_>,
        slot: &Slot,
        action: Action,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let endpoint = self.table.record(slot.found.index()).endpoint;
        if action == Action::Refuse
            && self.answer_reset(frame, &slot.parsed, outbox, now)
            && let Some(counters) = self.counters.endpoints.get(endpoint as usize)
        {
            counters.own_resets.add(1);
        }
        let reason = match Segment::of(slot.parsed.tcp_flags) {
            Segment::Null | Segment::Nonsense => DropReason::TcpFlags,
            _ => DropReason::TcpState,
        };
        self.refuse_for(endpoint, reason)
    }

    /// The client opens a new connection with the tuple of one that has ended.
    #[cold]
    fn reopen(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        self.end(slot.found.index(), outbox, now);
        self.first_of_any(frame, slot, note, outbox, now)
    }

    /// A flow whose idle time is over, or only a note that the flow lives elsewhere.
    #[cold]
    fn stale(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let index = slot.found.index();
        let record = self.table.record_mut(index);
        if record.is_expired(now.tick()) {
            self.tell_ends(index, outbox);
            return self.reopen(frame, slot, note, outbox, now);
        }
        record.last_seen = now.tick();
        Verdict::Handoff(WorkerIndex(record.target as u16), HandoffNote::Owned)
    }

    /// The endpoint's access or rules have changed since the flow was judged: judge it once more, target and port kept.
    #[cold]
    fn judge_again(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let index = slot.found.index();
        let record = *self.table.record(index);
        if record.flags & FlowRecord::FLAG_AWAY != 0 {
            return self.stale(frame, slot, note, outbox, now);
        }
        let endpoint = self.snapshot.endpoint(EndpointIndex(record.endpoint));
        let allowed = endpoint.filter(|endpoint| self.is_allowed(index, &record, endpoint));
        let limited = endpoint.is_some_and(|endpoint| endpoint.limits.bytes_per_second.is_some());
        let Some(epoch) = allowed.map(|endpoint| endpoint.policy_epoch) else {
            self.end(index, outbox, now);
            return self.refuse_for(record.endpoint, DropReason::AccessWithdrawn);
        };
        if endpoint.is_some_and(|endpoint| record.policy_epoch < endpoint.guard_epoch) && !self.still_admits(index) {
            self.end(index, outbox, now);
            return self.refuse_for(record.endpoint, DropReason::SecurityGroup);
        }
        let target = self.snapshot.target(TargetIndex(record.target));
        if target.is_some_and(|target| target.cut && target.incarnation == record.target_incarnation) {
            return self.cut(frame, slot, note, DropReason::TargetUnhealthy, outbox, now);
        }
        if self.snapshot.ended.contains(&record.target_incarnation) {
            return self.cut(frame, slot, note, DropReason::TargetDeregistered, outbox, now);
        }
        let record = self.table.record_mut(index);
        record.policy_epoch = epoch;
        if limited {
            record.state |= FlowRecord::LONG_WAY;
        }
        self.known(frame, slot, note, outbox, now)
    }

    /// Ends a flow whose target is not to have any. A client that can begin anew does so at once, with another target: a
    /// datagram, or a SYN. Both ends of any other connection are told.
    #[cold]
    fn cut(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        reason: DropReason,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let parsed = &slot.parsed;
        let begins = parsed.kind == PacketKind::Udp
            || parsed.kind == PacketKind::Tcp && parsed.tcp_flags & (SYN | ACK | RST | FIN) == SYN;
        if begins && slot.found.direction() == Direction::Forward {
            return self.reopen(frame, slot, note, outbox, now);
        }
        let record = *self.table.record(slot.found.index());
        if parsed.kind == PacketKind::Tcp && parsed.tcp_flags & RST == 0 {
            let answered = self.answer_reset(frame, parsed, outbox, now);
            let passed_on = self.pass_reset_on(frame, parsed, &record, slot.found.is_reverse(), outbox, now);
            if let Some(counters) = self.counters.endpoints.get(record.endpoint as usize) {
                counters.own_resets.add(u64::from(answered) + u64::from(passed_on));
            }
        }
        self.end(slot.found.index(), outbox, now);
        self.refuse_for(record.endpoint, reason)
    }

    /// Whether an endpoint, as it is now, may hold a flow: it is the flow's address in the same VPC, and what it stands for
    /// still leads to the flow's target. An index may have gone to another endpoint, or an endpoint to another service.
    fn is_allowed(&self, index: u32, record: &FlowRecord, endpoint: &Endpoint) -> bool {
        let snapshot = &*self.snapshot;
        let key = record.forward;
        let attachment = snapshot.attachments.get(usize::from(key.attachment().0));
        let target = TargetIndex(record.target);
        // It was judged when access and rules were those of now: an epoch is never smaller than one before.
        if record.policy_epoch >= endpoint.access_epoch {
            return true;
        }
        let address = self.table.wide(index).map_or(IpAddr::V4(key.destination()), WideAddresses::endpoint);
        endpoint.address == address
            && attachment.is_some_and(|attachment| attachment.vpc == endpoint.vpc)
            && snapshot.target(target).is_some_and(|now| now.incarnation == record.target_incarnation)
            && snapshot
                .listener(endpoint.service, key.protocol(), key.destination_port())
                .and_then(|listener| snapshot.listeners.get(listener.at()))
                .is_some_and(|listener| {
                    let groups = if key.is_wide() { &listener.groups6 } else { &listener.groups };
                    let groups = groups.iter().filter_map(|(_, group)| snapshot.target_groups.get(group.at()));
                    groups.into_iter().any(|group| group.members.contains(&target))
                })
    }
}

/// Rewrites a plain packet by its flow's record and counts it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the pieces of one packet, all in registers")]
fn send_plain(
    head: &mut [u8; PLAIN],
    length: u16,
    tcp: bool,
    offload: &Offload,
    record: &mut FlowRecord,
    reverse: bool,
    hop: &NextHop,
    counters: &WorkerCounters,
) {
    hop.write_plain(head);
    // Which direction it is cannot be foreseen: what depends on it is selected, not branched to.
    let bytes = u64::from(length);
    if let Some(counters) = counters.endpoints.get(record.endpoint as usize) {
        counters.count(reverse, 1, bytes);
    }
    if let Some(counters) = counters.targets.get(record.target as usize) {
        counters.count(reverse, 1, bytes);
    }
    record.count(reverse, 1, bytes);
    let to = select_unpredictable(reverse, &record.forward, &record.reverse).reversed();
    let plan = RewritePlan {
        addresses: to.addresses,
        ports: to.ports(),
        address_delta: Delta(record.address_delta).negated_if(reverse),
        full_delta: Delta(record.full_delta).negated_if(reverse),
    };
    rewrite_plain(head, tcp, &plan, offload);
}

/// The segments of a super-frame.
#[cold]
fn segments(frame: &Frame<'_>, parsed: &Parsed) -> Size {
    let length = parsed.end - u32::from(parsed.l3);
    let offload = &frame.offload;
    let segment_size = u32::from(offload.segment_size).max(1);
    // Where the headers of every segment end: behind the transport header that the checksum belongs to.
    let transport = if offload.is_partial() { u32::from(offload.checksum_start) } else { u32::from(parsed.l4) };
    let transport_header = match offload.segmentation() {
        Segmentation::UdpL4 => 8,
        _ => frame.bytes().get(transport as usize + 12).map_or(20, |byte| u32::from(byte >> 4) * 4),
    };
    let headers = (transport + transport_header).saturating_sub(u32::from(parsed.l3)).min(length);
    let packets = (length - headers).div_ceil(segment_size).max(1);
    Size {
        packets: u64::from(packets),
        bytes: u64::from(length) + u64::from(packets - 1) * u64::from(headers),
        largest: length.min(headers + segment_size),
    }
}

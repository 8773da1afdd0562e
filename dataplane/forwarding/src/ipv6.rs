//! Packets of IPv6, as far as they go another way than those of IPv4.

mod answers;
pub(crate) mod first;

use std::hint::select_unpredictable;

use postern_flows::{FlowRecord, State};
use postern_measurement::Now;
use postern_tables::snapshot::LocalAddress;
use postern_translation::ipv6::{WidePlan, rewrite_plain6, rewrite6};
use postern_wire::checksum::Delta;
use postern_wire::icmpv6::{NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use postern_wire::plain6::{PLAIN6, parse_plain6, plain6_addresses, plain6_hop_limit, plain6_length, plain6_tcp_flags};
use postern_wire::tcp::{FIN, RST, SYN};
use postern_wire::{Frame, Parsed, ipv6, nd};

use crate::established::Size;
use crate::forwarder::{Admission, Forwarder, NOT_PLAIN, Slot};
use crate::fragments::is_fragment6;
use crate::outbox::Outbox;
use crate::verdict::{DropReason, Verdict};

impl Forwarder<'_> {
    /// The common case of IPv6: an untagged, ordinary TCP or UDP frame to the port's own address, which has been found to be
    /// untagged, ordinary and so addressed.
    #[inline(never)]
    pub(crate) fn admit_plain6(&self, frame: &Frame<'_>, slot: &mut Slot, attachment: u64, wide: &mut bool) -> bool {
        let Some(head) = frame.head::<PLAIN6>() else { return false };
        let Some(mut key) = parse_plain6(head, frame.len()) else { return false };
        let [source, destination] = self.table.words(plain6_addresses(head));
        key.addresses = u64::from(source) | u64::from(destination) << 32;
        key.rest |= attachment;
        slot.plain.rest = NOT_PLAIN.rest;
        slot.parsed.key = key;
        slot.hash = self.table.hash(key);
        slot.place = self.table.place(slot.hash);
        slot.admission = Admission::Plain6;
        self.table.prefetch_bucket(slot.place);
        *wide = true;
        true
    }

    /// Gives the key of a parsed packet its address words.
    pub(crate) fn complete_key(&self, frame: &Frame<'_>, parsed: &mut Parsed) {
        if let Some(addresses) = ipv6::addresses(frame.bytes(), usize::from(parsed.l3)) {
            let [source, destination] = self.table.words(addresses);
            parsed.key.addresses = u64::from(source) | u64::from(destination) << 32;
        }
    }

    /// Fetches the addresses of the flows that the IPv6 packets of a burst most likely belong to.
    #[inline(never)]
    pub(crate) fn prefetch_wide(&self, slots: &[Slot]) {
        for slot in slots {
            // Of an IPv4 packet, nothing: which does not matter.
            self.table.prefetch_wide(slot.found);
        }
    }

    /// A plain packet of a steady flow between IPv6 ends. False, with nothing changed, for every other packet.
    #[inline(always)]
    pub(crate) fn steady6(&mut self, frame: &mut Frame<'_>, slot: &Slot, verdict: &mut Verdict, tick: u32) -> bool {
        let Some((head, offload)) = frame.head_mut::<PLAIN6>() else { return false };
        let found = self.table.confirm_wide(slot.found, slot.parsed.key, plain6_addresses(head));
        let Some((record, addresses)) = found else { return false };
        let tcp = record.state == State::Established as u8;
        if tcp && plain6_tcp_flags(head) & (SYN | FIN | RST) != 0 || !tcp && record.state != State::Udp as u8 {
            return false;
        }
        let reverse = slot.found.is_reverse();
        let Some(policy) = self.snapshot.policies.get(record.endpoint as usize) else { return false };
        let hop = *select_unpredictable(reverse, &record.reverse_hop, &record.forward_hop);
        let Some(hop) = self.hops.hop(hop) else { return false };
        let length = plain6_length(head);
        // A note of a flow that lives elsewhere has an epoch that no endpoint has.
        if policy.epoch != record.policy_epoch
            || record.is_expired(tick)
            || length > u32::from(policy.mtu)
            || length > u32::from(hop.plain_mtu)
            || plain6_hop_limit(head) <= 1
        {
            return false;
        }
        *verdict = Verdict::Forward(hop.port);
        record.last_seen = tick;
        hop.write_plain6(head);
        let bytes = u64::from(length);
        if let Some(counters) = self.counters.endpoints.get(record.endpoint as usize) {
            counters.count(reverse, 1, bytes);
        }
        if let Some(counters) = self.counters.targets.get(record.target as usize) {
            counters.count(reverse, 1, bytes);
        }
        record.count(reverse, 1, bytes);
        let ports = select_unpredictable(reverse, &record.forward, &record.reverse).reversed().ports();
        // The packet leaves as the answer to what the other side sends.
        let other = select_unpredictable(reverse, &addresses.forward, &addresses.reverse);
        let (destination, source) = ipv6::octets(other);
        let deltas = [record.address_delta, record.full_delta].map(|delta| Delta(delta).negated_if(reverse));
        rewrite_plain6(head, tcp, [source, destination], ports, deltas, offload);
        frame.truncate(length as usize + 14);
        true
    }

    /// Sends a packet of an IPv6 client's flow on its way: any packet.
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet, all in registers")]
    #[cold]
    pub(crate) fn forward_wide(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        index: u32,
        reverse: bool,
        size: Size,
        endpoint_mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if !self.table.record(index).reverse.is_wide() {
            return self.forward_nat64(frame, parsed, index, reverse, size, endpoint_mtu, outbox, now);
        }
        let Some(addresses) = self.table.wide(index).copied() else { return self.refuse(DropReason::NoFlow) };
        let record = self.table.record_mut(index);
        let (hop_index, to, other) = if reverse {
            (record.reverse_hop, record.forward, &addresses.forward)
        } else {
            (record.forward_hop, record.reverse, &addresses.reverse)
        };
        let hop = self.hops.at(hop_index);
        let endpoint = record.endpoint;
        let mtu = endpoint_mtu.min(hop.mtu);
        if size.largest > u32::from(mtu) {
            return self.too_big6(frame, parsed, endpoint, mtu, outbox, now);
        }
        if parsed.ttl <= 1 {
            return self.ttl_expired(frame, parsed, endpoint, outbox, now);
        }
        count(&self.counters, record, reverse, size);
        let plan = WidePlan {
            addresses: ipv6::reversed(other),
            ports: to.reversed().ports(),
            address_delta: Delta(record.address_delta).negated_if(reverse),
            full_delta: Delta(record.full_delta).negated_if(reverse),
        };
        if is_fragment6(frame, parsed) {
            self.identify_wide(frame, parsed, &plan.addresses);
        }
        rewrite6(frame, parsed, &plan);
        frame.truncate(parsed.end as usize);
        self.send_rewritten(frame, parsed, endpoint, hop_index, outbox, now)
    }

    /// Sends a translated packet to its hop, in segments or later if it must be.
    pub(crate) fn send_rewritten(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        endpoint: u32,
        hop_index: u32,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let hop = self.hops.at(hop_index);
        // A super-frame of another version of IP may have become longer than an ordinary one can be.
        let too_long = parsed.end - u32::from(parsed.l3) > u32::from(u16::MAX);
        let in_segments = frame.offload.is_segmented() && (frame.offload.checksum_start != parsed.l4 || too_long);
        if !hop.resolved || in_segments {
            return self.detour(frame, parsed, endpoint, hop_index, outbox, now);
        }
        if !hop.write(frame, usize::from(parsed.l3)) {
            return self.refuse_for(endpoint, DropReason::Unsegmentable);
        }
        Verdict::Forward(hop.port)
    }

    /// Solicitations and advertisements are for the owner of the neighbour tables, who checks them further; what routers say
    /// is not heeded, because routes are declared.
    #[cold]
    pub(crate) fn neighbour_discovery(&self, frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
        let kind = frame.bytes().get(usize::from(parsed.l4));
        let is_neighbours = matches!(kind, Some(&(NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT)));
        if is_neighbours && parsed.ttl == nd::HOP_LIMIT {
            Verdict::Punt
        } else {
            self.refuse(DropReason::NeighbourDiscovery)
        }
    }

    /// What an IPv6 packet's destination is to the gateway.
    pub(crate) fn local_destination6(&self, frame: &Frame<'_>, parsed: &Parsed) -> Option<LocalAddress> {
        let addresses = ipv6::addresses(frame.bytes(), usize::from(parsed.l3))?;
        self.snapshot.local6(parsed.key.attachment(), ipv6::destination(addresses))
    }

    /// Counts a drop under the endpoint that a packet of either family is for, if it is for one.
    pub(crate) fn refuse_of_any(&self, frame: &Frame<'_>, parsed: &Parsed, reason: DropReason) -> Verdict {
        if !parsed.key.is_wide() {
            return self.refuse_at(parsed, reason);
        }
        match self.local_destination6(frame, parsed) {
            Some(LocalAddress::Endpoint(index)) => self.refuse_for(index.0, reason),
            Some(LocalAddress::Snat(_)) => self.refuse(reason),
            None => self.refuse(DropReason::NotLocal),
        }
    }
}

/// Counts packets of a flow for its endpoint, its target and itself.
pub(crate) fn count(counters: &crate::WorkerCounters, record: &mut FlowRecord, reverse: bool, size: Size) {
    if let Some(counters) = counters.endpoints.get(record.endpoint as usize) {
        counters.count(reverse, size.packets, size.bytes);
    }
    if let Some(counters) = counters.targets.get(record.target as usize) {
        counters.count(reverse, size.packets, size.bytes);
    }
    record.count(reverse, size.packets, size.bytes);
}

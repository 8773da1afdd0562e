//! Flows of endpoints with security groups or limits, and what a client is told whose flow is refused.

use postern_measurement::Now;
use postern_tables::declaration::Exhausted;
use postern_tables::snapshot::EndpointIndex;
use postern_wire::icmp::DESTINATION_UNREACHABLE;
use postern_wire::{Frame, PacketKind, Parsed};

use crate::forwarder::{Forwarder, Slot};
use crate::outbox::Outbox;
use crate::verdict::{DropReason, HandoffNote, Verdict};

/// Codes of ICMP destination unreachable (RFC 792, RFC 1812 §5.2.7.1).
const HOST_UNREACHABLE: u8 = 1;
const ADMINISTRATIVELY_PROHIBITED: u8 = 13;

impl Forwarder<'_> {
    /// Begins a flow if security groups let its client in and the endpoint's limits leave room.
    #[expect(clippy::too_many_arguments, reason = "everything that a flow is made of")]
    #[cold]
    #[inline(never)]
    pub(crate) fn begin_guarded<const WIDE: bool>(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        index: EndpointIndex,
        place: usize,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if let Err(reason) = self.guard(frame, index, &slot.parsed) {
            return self.refuse_for(index.0, reason);
        }
        // The gauge has the flow while it is not made yet, so that other workers see it.
        let counters = self.counters.clone();
        let gauge = counters.endpoints.get(index.at()).map(|counters| &counters.flows);
        gauge.inspect(|flows| flows.add(1));
        let metered = self.is_metered(index.0);
        let verdict = match self.leave_room(index, slot, note, now) {
            Ok(()) => self.begin::<WIDE>(frame, slot, index, place, note, metered, outbox, now),
            Err(reason) => self.refuse_first(frame, &slot.parsed, index, reason, outbox, now),
        };
        gauge.inspect(|flows| flows.subtract(1));
        verdict
    }

    /// Whether the endpoint's limits leave room for one more flow.
    fn leave_room(
        &self,
        index: EndpointIndex,
        slot: &Slot,
        note: Option<HandoffNote>,
        now: Now,
    ) -> Result<(), DropReason> {
        let limits = self.snapshot.endpoint(index).map(|endpoint| endpoint.limits).unwrap_or_default();
        if limits.ports.is_some() || limits.flows.is_some() {
            let flows = self.shared.flows(index.0);
            if limits.ports.is_some_and(|ports| flows > u64::from(ports)) {
                return Err(DropReason::PortBudget);
            }
            if limits.flows.is_some_and(|most| flows > u64::from(most)) {
                return Err(DropReason::FlowLimit);
            }
        }
        // A worker that is asked for a port by another is not the first to see the packet.
        if matches!(note, Some(HandoffNote::Borrow { asked, round, .. }) if asked > 1 || round > 0) {
            return Ok(());
        }
        if limits.new_flows_per_second.is_some_and(|rate| !self.shared.take_flow(index.0, rate, now)) {
            return Err(DropReason::NewFlowRate);
        }
        let bytes = slot.parsed.end - u32::from(slot.parsed.l3);
        if limits.bytes_per_second.is_some_and(|rate| !self.shared.take_bytes(index.0, rate, bytes, now)) {
            return Err(DropReason::Bandwidth);
        }
        Ok(())
    }

    /// Whether the endpoint's bandwidth is limited.
    #[cold]
    pub(crate) fn is_metered(&self, endpoint: u32) -> bool {
        let endpoint = self.snapshot.endpoint(EndpointIndex(endpoint));
        endpoint.is_some_and(|endpoint| endpoint.limits.bytes_per_second.is_some())
    }

    /// Whether the endpoint's bandwidth leaves room for a packet of a live flow. A super-frame counts as it is.
    #[cold]
    pub(crate) fn has_bandwidth(&self, slot: &Slot, now: Now) -> bool {
        let endpoint = self.table.record(slot.found.index()).endpoint;
        let rate =
            self.snapshot.endpoint(EndpointIndex(endpoint)).and_then(|endpoint| endpoint.limits.bytes_per_second);
        let bytes = slot.parsed.end - u32::from(slot.parsed.l3);
        rate.is_none_or(|rate| self.shared.take_bytes(endpoint, rate, bytes, now))
    }

    /// Drops a first packet; where it is for want of ports or because of a limit, the client is told what the pool says.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse_first(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        index: EndpointIndex,
        reason: DropReason,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let code = match reason {
            DropReason::PortsExhausted | DropReason::NoSnatAddress => Some(HOST_UNREACHABLE),
            DropReason::PortBudget | DropReason::FlowLimit | DropReason::NewFlowRate => {
                Some(ADMINISTRATIVELY_PROHIBITED)
            }
            _ => None,
        };
        match code.zip(self.told_when_exhausted(index, parsed)) {
            Some((_, Exhausted::Reset)) if parsed.kind == PacketKind::Tcp => {
                if self.answer_reset(frame, parsed, outbox, now)
                    && let Some(counters) = self.counters.endpoints.get(index.at())
                {
                    counters.own_resets.add(1);
                }
            }
            Some((code, Exhausted::Unreachable)) => {
                self.answer_error(frame, parsed, (DESTINATION_UNREACHABLE, code, [0; 4]), outbox, now);
            }
            _ => {}
        }
        self.refuse_for(index.0, reason)
    }

    /// What the pool says that the endpoint's listener leads to; of several the first.
    fn told_when_exhausted(&self, index: EndpointIndex, parsed: &Parsed) -> Option<Exhausted> {
        let (_, group) = self.listener(index, parsed.key)?.groups.first()?;
        let group = self.snapshot.target_groups.get(group.at())?;
        Some(self.snapshot.pools.get(group.pool.at())?.exhausted)
    }
}

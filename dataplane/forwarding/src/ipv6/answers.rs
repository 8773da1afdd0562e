//! ICMPv6: echoes, errors in transit, errors of our own.

use postern_flows::FlowRecord;
use postern_measurement::Now;
use postern_tables::snapshot::LocalAddress;
use postern_translation::icmp::QuoteError;
use postern_translation::icmpv6::{self, Quote6};
use postern_translation::ipv6::WidePlan;
use postern_wire::icmpv6::{ECHO_REQUEST, HOP_LIMIT_EXCEEDED, PACKET_TOO_BIG, TIME_EXCEEDED, is_error};
use postern_wire::{Frame, Parsed, ipv6};

use super::first::folded;
use crate::forwarder::Forwarder;
use crate::outbox::Outbox;
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};

impl Forwarder<'_> {
    /// An ICMPv6 message: an echo to an endpoint is answered, an error about a live flow translated, all else dropped.
    pub(crate) fn icmpv6(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, outbox: &mut Outbox, now: Now) -> Verdict {
        let kind = frame.bytes()[usize::from(parsed.l4)];
        match self.local_destination6(frame, parsed) {
            None => self.refuse(DropReason::NotLocal),
            Some(LocalAddress::Endpoint(index)) if kind == ECHO_REQUEST => {
                if !self.snapshot.endpoint(index).is_some_and(|endpoint| endpoint.echo) {
                    return self.refuse_for(index.0, DropReason::EchoDisabled);
                }
                match self.guard_echo(frame, index, parsed) {
                    Ok(()) => self.echo6(frame, parsed, index.0),
                    Err(reason) => self.refuse_for(index.0, reason),
                }
            }
            Some(_) if is_error(kind) => self.icmpv6_error(frame, parsed, outbox, now),
            Some(LocalAddress::Endpoint(index)) => self.refuse_for(index.0, DropReason::IcmpType),
            Some(LocalAddress::Snat(_)) => self.refuse(DropReason::IcmpType),
        }
    }

    fn echo6(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, endpoint: u32) -> Verdict {
        frame.truncate(parsed.end as usize);
        if !icmpv6::echo_reply6(frame, parsed) {
            return self.refuse_for(endpoint, DropReason::IcmpChecksum);
        }
        match self.turn_around(frame, parsed) {
            Some(port) => Verdict::Reply(port),
            None => self.refuse_for(endpoint, DropReason::NoAttachment),
        }
    }

    /// An ICMPv6 error to an endpoint or SNAT address: finds the flow of the quoted packet and translates both headers. It
    /// neither refreshes nor ends the flow.
    fn icmpv6_error(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, outbox: &mut Outbox, now: Now) -> Verdict {
        let quote = match icmpv6::quote6(frame.bytes(), parsed) {
            Ok(quote) => quote,
            Err(QuoteError::Checksum) => return self.refuse_of_any(frame, parsed, DropReason::IcmpChecksum),
            Err(_) => return self.refuse_of_any(frame, parsed, DropReason::IcmpUnknownQuote),
        };
        // The quoted packet went the other way: its key reversed is that of packets that come from here.
        let from_here = ipv6::reversed(&quote.addresses);
        let mut key = quote.key.reversed().on(parsed.key.attachment());
        let [source, destination] = self.table.words(&from_here);
        key.addresses = u64::from(source) | u64::from(destination) << 32;
        let found = self.table.find_wide(key, self.table.hash(key), &from_here);
        if found.is_nothing() {
            let to_endpoint = matches!(self.local_destination6(frame, parsed), Some(LocalAddress::Endpoint(_)));
            let owner = if to_endpoint {
                self.ownership.of_flow(folded(&from_here, key))
            } else {
                self.ownership.of_port(key.destination_port())
            };
            if owner != self.worker.0 && owner < self.workers {
                return Verdict::Handoff(WorkerIndex(owner), HandoffNote::Owned);
            }
            return self.refuse_of_any(frame, parsed, DropReason::IcmpUnknownQuote);
        }
        let record = *self.table.record(found.index());
        if record.flags & FlowRecord::FLAG_AWAY != 0 {
            return Verdict::Handoff(WorkerIndex(record.target as u16), HandoffNote::Owned);
        }
        if record.is_expired(now.tick()) {
            return self.refuse_for(record.endpoint, DropReason::IcmpUnknownQuote);
        }
        if parsed.ttl <= 1 {
            return self.refuse_for(record.endpoint, DropReason::TtlExpired);
        }
        self.pass_error6(frame, parsed, &quote, found, outbox, now)
    }

    /// The error leaves on the other side of the flow, as if it were the flow's own packet; what it quotes is put back into
    /// what that side had sent.
    fn pass_error6(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        quote: &Quote6,
        found: postern_flows::Found,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let record = *self.table.record(found.index());
        if !record.reverse.is_wide() {
            return self.pass_error_to_ipv4(frame, parsed, quote, found, outbox, now);
        }
        let Some(addresses) = self.table.wide(found.index()) else { return self.refuse(DropReason::NoFlow) };
        let (sent, of_sent, hop_index) = if found.is_reverse() {
            (record.forward, addresses.forward, record.reverse_hop)
        } else {
            (record.reverse, addresses.reverse, record.forward_hop)
        };
        let inner = WidePlan::between((&quote.addresses, quote.key.ports()), (&of_sent, sent.ports()));
        icmpv6::translate_error6(frame.bytes_mut(), parsed, quote, &ipv6::reversed(&of_sent), &inner);
        frame.truncate(parsed.end as usize);
        self.send_rewritten(frame, parsed, record.endpoint, hop_index, outbox, now)
    }

    /// Answers with an ICMPv6 error that quotes the packet as it came, from the address that it was sent to.
    pub(crate) fn answer_error6(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        kind: (u8, u8),
        rest: u32,
        outbox: &mut Outbox,
        now: Now,
    ) {
        let bytes = frame.bytes();
        let Some(addresses) = ipv6::addresses(bytes, usize::from(parsed.l3)).map(ipv6::reversed) else { return };
        if !icmpv6::may_answer6(parsed, bytes) {
            return;
        }
        let packet = &bytes[usize::from(parsed.l3)..parsed.end as usize];
        self.answer(frame, parsed, outbox, now, |room| icmpv6::icmpv6_error(room, &addresses, kind, rest, packet));
    }

    /// The packet's hop limit has run out.
    pub(crate) fn hop_limit_exceeded(&mut self, frame: &Frame<'_>, parsed: &Parsed, outbox: &mut Outbox, now: Now) {
        self.answer_error6(frame, parsed, (TIME_EXCEEDED, HOP_LIMIT_EXCEEDED), 0, outbox, now);
    }

    /// The packet, or a segment of the super-frame, is larger than the way out allows.
    pub(crate) fn too_big6(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        endpoint: u32,
        mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        self.answer_error6(frame, parsed, (PACKET_TOO_BIG, 0), u32::from(mtu), outbox, now);
        self.refuse_for(endpoint, DropReason::TooBig)
    }
}

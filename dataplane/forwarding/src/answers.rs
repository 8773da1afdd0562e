//! What is not plain forwarding: ICMP, RSTs and ICMP errors of our own, MSS, and packets that cannot leave as they are.

use postern_flows::FlowRecord;
use postern_measurement::Now;
use postern_tables::snapshot::LocalAddress;
use postern_translation::icmp::{self, QuoteError};
use postern_translation::icmpv6;
use postern_translation::segmentation::Segments;
use postern_translation::{RewritePlan, mss};
use postern_wire::frame::NO_VLAN;
use postern_wire::icmp::{DESTINATION_UNREACHABLE, ECHO_REQUEST, FRAGMENTATION_NEEDED, TIME_EXCEEDED, is_error};
use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, PROTOCOL_ICMP};
use postern_wire::{Direction, FlowKey, Frame, Offload, Parsed, PortIndex};

use crate::forwarder::Forwarder;
use crate::fragments::may_be_cut;
use crate::outbox::{Origin, Outbox};
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};

/// Largest ICMP error or RST of our own with its Ethernet header, in bytes (RFC 4443 §2.4: 1280 of IPv6; RFC 1812 §4.3.2.3:
/// 576 of IPv4, where the error itself ends).
const ANSWER: usize = 18 + 1280;
/// IPv4 and TCP headers without options: what the MSS does not count (RFC 9293 §3.7.1).
const MSS_HEADERS: u16 = 40;

impl Forwarder<'_> {
    /// An ICMP message: an echo to an endpoint is answered, an error about a live flow translated, all else dropped.
    pub(crate) fn icmp(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, outbox: &mut Outbox, now: Now) -> Verdict {
        let kind = frame.bytes()[usize::from(parsed.l4)];
        let local = self.snapshot.local(parsed.key.attachment(), parsed.key.destination());
        match local {
            None => self.refuse(DropReason::NotLocal),
            Some(LocalAddress::Endpoint(index)) if kind == ECHO_REQUEST => {
                if !self.snapshot.endpoint(index).is_some_and(|endpoint| endpoint.echo) {
                    return self.refuse_for(index.0, DropReason::EchoDisabled);
                }
                match self.guard_echo(frame, index, parsed) {
                    Ok(()) => self.echo(frame, parsed, index.0),
                    Err(reason) => self.refuse_for(index.0, reason),
                }
            }
            Some(_) if is_error(kind) => self.icmp_error(frame, parsed, outbox, now),
            Some(LocalAddress::Endpoint(index)) => self.refuse_for(index.0, DropReason::IcmpType),
            Some(LocalAddress::Snat(_)) => self.refuse(DropReason::IcmpType),
        }
    }

    fn echo(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, endpoint: u32) -> Verdict {
        frame.truncate(parsed.end as usize);
        if !icmp::echo_reply(frame, parsed) {
            return self.refuse_for(endpoint, DropReason::IcmpChecksum);
        }
        match self.turn_around(frame, parsed) {
            Some(port) => Verdict::Reply(port),
            None => self.refuse_for(endpoint, DropReason::NoAttachment),
        }
    }

    /// An ICMP error to an endpoint or SNAT address: finds the flow of the quoted packet and translates both headers. It
    /// neither refreshes nor ends the flow.
    fn icmp_error(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, outbox: &mut Outbox, now: Now) -> Verdict {
        let quote = match icmp::quote(frame.bytes(), parsed) {
            Ok(quote) => quote,
            Err(QuoteError::Checksum) => return self.refuse_at(parsed, DropReason::IcmpChecksum),
            Err(_) => return self.refuse_at(parsed, DropReason::IcmpUnknownQuote),
        };
        // The quoted packet went the other way: its key reversed is that of packets that come from here.
        let key = quote.key.reversed().on(parsed.key.attachment());
        let found = self.table.find_key(key);
        if found.is_nothing() {
            let to_endpoint = matches!(
                self.snapshot.local(parsed.key.attachment(), parsed.key.destination()),
                Some(LocalAddress::Endpoint(_))
            );
            let owner =
                if to_endpoint { self.ownership.of_flow(key) } else { self.ownership.of_port(key.destination_port()) };
            if owner != self.worker.0 && owner < self.workers {
                return Verdict::Handoff(WorkerIndex(owner), HandoffNote::Owned);
            }
            return self.refuse_at(parsed, DropReason::IcmpUnknownQuote);
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
        if record.forward.is_wide() {
            return self.pass_error_to_ipv6(frame, parsed, &quote, found, outbox, now);
        }
        // The error leaves on the other side of the flow, as if it were the flow's own packet; what it quotes is put back into
        // what that side had sent.
        let (sent, hop_index) = match found.direction() {
            Direction::Forward => (record.reverse, record.forward_hop),
            Direction::Reverse => (record.forward, record.reverse_hop),
        };
        let outer = sent.reversed().addresses;
        let inner = RewritePlan::between(quote.key, sent);
        icmp::translate_error(frame.bytes_mut(), parsed, &quote, outer, &inner);
        frame.truncate(parsed.end as usize);
        let hop = self.hops.at(hop_index);
        if parsed.end - u32::from(parsed.l3) > u32::from(hop.mtu) {
            return self.large_error(frame, parsed, record.endpoint, hop_index, outer, outbox, now);
        }
        if !hop.resolved {
            return self.detour(frame, parsed, record.endpoint, hop_index, outbox, now);
        }
        if !hop.write(frame, usize::from(parsed.l3)) {
            return self.refuse_for(record.endpoint, DropReason::Unsegmentable);
        }
        Verdict::Forward(hop.port)
    }

    /// A translated error that is larger than the way out allows: cut if it may be, else dropped, as nobody answers an error.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet")]
    fn large_error(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        endpoint: u32,
        hop_index: u32,
        addresses: u64,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if !may_be_cut(frame, parsed) {
            return self.refuse_for(endpoint, DropReason::TooBig);
        }
        let to = FlowKey::from_wire(parsed.key.attachment(), PROTOCOL_ICMP, addresses, 0);
        self.identify(frame, parsed, to);
        let mtu = self.hops.at(hop_index).mtu;
        self.forward_in_pieces(frame, parsed, endpoint, hop_index, mtu, to, outbox, now)
    }

    /// Sends a frame back to the station that it came from, on the port on which it came.
    pub(crate) fn turn_around(&self, frame: &mut Frame<'_>, parsed: &Parsed) -> Option<PortIndex> {
        let mut header = [0; 18];
        let (length, port) = self.link_header(frame, parsed, &mut header)?;
        if !frame.resize_front(usize::from(parsed.l3), length) {
            return None;
        }
        frame.bytes_mut()[..length].copy_from_slice(&header[..length]);
        frame.vlan = NO_VLAN;
        Some(port)
    }

    /// Writes the Ethernet header of an answer; returns its length and the port.
    fn link_header(&self, frame: &Frame<'_>, parsed: &Parsed, header: &mut [u8; 18]) -> Option<(usize, PortIndex)> {
        let attachment = self.snapshot.attachments.get(usize::from(parsed.key.attachment().0))?;
        let own = crate::next_hops::own_mac(attachment, self.ports.get(usize::from(attachment.port.0))?);
        header[..6].copy_from_slice(frame.bytes().get(6..12)?);
        header[6..12].copy_from_slice(&own.0);
        let length = match attachment.vlan {
            Some(vlan) => {
                header[12..14].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
                header[14..16].copy_from_slice(&vlan.to_be_bytes());
                18
            }
            None => 14,
        };
        let ethertype = if parsed.key.is_wide() { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        header[length - 2..length].copy_from_slice(&ethertype.to_be_bytes());
        Some((length, attachment.port))
    }

    /// Puts an answer to a frame into the outbox, if the limit allows; `write` fills in the IP packet and returns its length.
    pub(crate) fn answer(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        outbox: &mut Outbox,
        now: Now,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        let mut header = [0; 18];
        let Some((front, port)) = self.link_header(frame, parsed, &mut header) else { return false };
        let who = parsed.key.addresses >> 32 ^ u64::from(parsed.key.attachment().0) << 32;
        if outbox.room() == 0 || !self.answers.take(who, now) {
            return false;
        }
        outbox.push(port, Origin::Made, Offload::NONE, ANSWER, |room| {
            room[..front].copy_from_slice(&header[..front]);
            front + write(&mut room[front..])
        })
    }

    /// Answers a TCP segment with a RST that its sender accepts; false if none may be sent.
    pub(crate) fn answer_reset(&mut self, frame: &Frame<'_>, parsed: &Parsed, outbox: &mut Outbox, now: Now) -> bool {
        let mut packet = [0; 64];
        let length = if parsed.key.is_wide() {
            icmpv6::tcp_reset6(&mut packet, parsed, frame.bytes())
        } else {
            icmp::tcp_reset(&mut packet, parsed, frame.bytes())
        };
        let Some(length) = length else { return false };
        self.answer(frame, parsed, outbox, now, |room| {
            room[..length].copy_from_slice(&packet[..length]);
            length
        })
    }

    /// Tells the other end of a flow, in the place of a TCP segment, that the connection is gone; false if it cannot be told.
    pub(crate) fn pass_reset_on(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        record: &FlowRecord,
        reverse: bool,
        outbox: &mut Outbox,
        now: Now,
    ) -> bool {
        let (hop, to) =
            if reverse { (record.reverse_hop, record.forward) } else { (record.forward_hop, record.reverse) };
        let mut packet = [0; 64];
        let Some(length) = icmp::tcp_reset_onward(&mut packet, parsed, to.reversed(), frame.bytes()) else {
            return false;
        };
        let hop = self.hops.at(hop);
        let who = parsed.key.addresses >> 32 ^ u64::from(parsed.key.attachment().0) << 32;
        if !hop.resolved || outbox.room() == 0 || !self.answers.take(who, now) {
            return false;
        }
        outbox.push(hop.port, Origin::Made, Offload::NONE, ANSWER, |room| {
            let header = hop.header();
            room[..header.len()].copy_from_slice(header);
            room[header.len()..header.len() + length].copy_from_slice(&packet[..length]);
            header.len() + length
        })
    }

    /// Answers with an ICMP error that quotes the packet as it came, from the address that it was sent to.
    pub(crate) fn answer_error(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        (kind, code, rest): (u8, u8, [u8; 4]),
        outbox: &mut Outbox,
        now: Now,
    ) {
        let bytes = frame.bytes();
        if !icmp::may_answer(parsed, bytes) {
            return;
        }
        let packet = &bytes[usize::from(parsed.l3)..parsed.end as usize];
        let (source, destination) = (parsed.key.destination(), parsed.key.source());
        self.answer(frame, parsed, outbox, now, |room| {
            icmp::icmp_error(room, source, destination, kind, code, rest, packet)
        });
    }

    /// The packet's time to live has run out.
    #[cold]
    pub(crate) fn ttl_expired(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        endpoint: u32,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if parsed.key.is_wide() {
            self.hop_limit_exceeded(frame, parsed, outbox, now);
        } else {
            self.answer_error(frame, parsed, (TIME_EXCEEDED, 0, [0; 4]), outbox, now);
        }
        self.refuse_for(endpoint, DropReason::TtlExpired)
    }

    /// The packet, or a segment of the super-frame, is larger than the way out allows, and may not be cut.
    #[cold]
    pub(crate) fn too_big(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        endpoint: u32,
        mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let [high, low] = mtu.to_be_bytes();
        let kind = (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, [0, 0, high, low]);
        self.answer_error(frame, parsed, kind, outbox, now);
        self.refuse_for(endpoint, DropReason::TooBig)
    }

    /// Lowers the MSS option of a SYN or SYN-ACK to what fits both ways.
    #[cold]
    pub(crate) fn clamp(&self, frame: &mut Frame<'_>, parsed: &Parsed, record: &FlowRecord) {
        let endpoint = self.snapshot.endpoints.get(record.endpoint as usize);
        let configured = endpoint
            .and_then(|endpoint| {
                let port = record.forward.destination_port();
                self.snapshot.listener(endpoint.service, record.forward.protocol(), port)
            })
            .and_then(|listener| self.snapshot.listeners.get(listener.at())?.mss);
        let mtu = endpoint.map_or(u16::MAX, |endpoint| endpoint.mtu);
        let hops = [record.forward_hop, record.reverse_hop];
        if record.forward.is_wide() {
            self.clamp_to6(frame, parsed, hops, mtu, configured);
        } else {
            self.clamp_to(frame, parsed, hops, mtu, configured);
        }
    }

    /// The same where the endpoint's MTU and the listener's bound are known already.
    #[inline(always)]
    pub(crate) fn clamp_to(
        &self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        [forward_hop, reverse_hop]: [u32; 2],
        endpoint_mtu: u16,
        configured: Option<u16>,
    ) {
        let mtu = endpoint_mtu.min(self.hops.at(forward_hop).mtu).min(self.hops.at(reverse_hop).mtu);
        let most = mtu.saturating_sub(MSS_HEADERS);
        mss::clamp(frame, parsed, configured.map_or(most, |mss| mss.min(most)));
    }

    /// A translated packet that cannot leave as it is: its neighbour is not known yet, or it is a tunnelled super-frame, which
    /// the kernel would not segment (its checksum starts behind an inner header).
    #[cold]
    pub(crate) fn detour(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        endpoint: u32,
        hop_index: u32,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let l3 = usize::from(parsed.l3);
        if !self.hops.at(hop_index).resolved {
            self.ask(hop_index, outbox);
            let mut offload = frame.offload;
            offload.shift(-(l3 as isize));
            if !self.waiting.keep(hop_index, endpoint, &frame.bytes()[l3..], offload, now) {
                return self.refuse_for(endpoint, DropReason::HoldFull);
            }
            self.counters.held.add(1);
            return Verdict::Hold;
        }
        let hop = self.hops.at(hop_index);
        let Ok(segments) = Segments::new(frame.bytes(), frame.offload, parsed) else {
            return self.refuse_for(endpoint, DropReason::Unsegmentable);
        };
        if segments.len() > outbox.room() {
            return self.refuse_for(endpoint, DropReason::OutboxFull);
        }
        let front = hop.header();
        for at in 0..segments.len() {
            let origin = if at == 0 { Origin::Held } else { Origin::Made };
            outbox.push(hop.port, origin, Offload::NONE, crate::outbox::BUFFER, |room| {
                // The segment comes with the old Ethernet header in front, which gives way to the hop's.
                let shift = front.len().saturating_sub(l3);
                let length = segments.write(at, &mut room[shift..]);
                room.copy_within(shift + l3..shift + length, front.len());
                room[..front.len()].copy_from_slice(front);
                length - l3 + front.len()
            });
        }
        Verdict::Hold
    }
}

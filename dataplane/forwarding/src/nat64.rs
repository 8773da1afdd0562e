//! IPv6 clients of IPv4 targets (RFC 6146): their flows have an IPv6 and an IPv4 side, and each packet changes its version of
//! IP on its way (RFC 7915).

use postern_flows::{Found, WideAddresses};
use postern_measurement::Now;
use postern_translation::icmp::Quote;
use postern_translation::icmpv6::Quote6;
use postern_translation::nat64::{self, LONGEST_TRANSLATED_ERROR, Mtus, NewEnds, TranslatedQuote};
use postern_wire::checksum::{Delta, sum};
use postern_wire::{Frame, Parsed, ipv4, ipv6};

use crate::established::Size;
use crate::forwarder::Forwarder;
use crate::fragments::{is_fragment, is_fragment6, may_be_cut};
use crate::ipv6::count;
use crate::outbox::Outbox;
use crate::verdict::{DropReason, Verdict};

/// How much longer an IPv6 header is than one of IPv4.
const GROWTH: u16 = (ipv6::HEADER - ipv4::HEADER) as u16;
/// IPv4 packets up to this length may be fragmented on their way (RFC 7915 §5.1).
const MAY_BE_CUT: u32 = ipv6::LEAST_MTU as u32 - GROWTH as u32;

impl Forwarder<'_> {
    /// Sends a packet of a flow with an IPv6 and an IPv4 side on its way.
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet, all in registers")]
    #[cold]
    #[inline(never)]
    pub(crate) fn forward_nat64(
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
        let record = *self.table.record(index);
        let endpoint = record.endpoint;
        let hop_index = if reverse { record.reverse_hop } else { record.forward_hop };
        let mtu = self.hops.at(hop_index).mtu;
        let headers = u32::from(parsed.l4 - parsed.l3);
        let payload = size.largest.saturating_sub(headers);
        // What the packet, or each of its segments, will have.
        let fragment = !parsed.key.is_wide() && is_fragment(frame, parsed);
        let fragment_header = if fragment { ipv6::FRAGMENT_HEADER } else { 0 };
        let translated = payload + if reverse { ipv6::HEADER + fragment_header } else { ipv4::HEADER } as u32;
        let (cut, mtu) = if reverse {
            let mtu = mtu.min(endpoint_mtu);
            // RFC 7915 §4: what the sender lets routers fragment, the translator does.
            let cut = translated > u32::from(mtu) && may_be_cut(frame, parsed);
            if translated > u32::from(mtu) && !cut {
                return self.too_big(frame, parsed, endpoint, mtu.saturating_sub(GROWTH), outbox, now);
            }
            (cut, mtu)
        } else {
            let too_large = translated > u32::from(mtu);
            // A sender that was told of a smaller MTU sends packets of the least size that IPv6 has, and relies on this.
            let cut = too_large && translated <= MAY_BE_CUT;
            if size.largest > u32::from(endpoint_mtu) || too_large && !cut {
                let mtu = endpoint_mtu.min(mtu.saturating_add(GROWTH)).max(ipv6::LEAST_MTU);
                return self.too_big6(frame, parsed, endpoint, mtu, outbox, now);
            }
            (cut, mtu)
        };
        if parsed.ttl <= 1 {
            return self.ttl_expired(frame, parsed, endpoint, outbox, now);
        }
        let Some(addresses) = self.table.wide(index).copied() else { return self.refuse(DropReason::NoFlow) };
        count(&self.counters, self.table.record_mut(index), reverse, size);
        let to = if reverse { record.forward } else { record.reverse }.reversed();
        let ends = NewEnds {
            ports: to.ports(),
            address_delta: Delta(record.address_delta).negated_if(reverse),
            full_delta: Delta(record.full_delta).negated_if(reverse),
        };
        if fragment {
            self.identify(frame, parsed, to);
        }
        let new = if reverse {
            nat64::to_ipv6(frame, parsed, &ipv6::reversed(&addresses.forward), &ends)
        } else {
            let identification = if is_fragment6(frame, parsed) {
                self.identification(frame, parsed, |all| u32::from(all.next_identification(to))) as u16
            } else {
                self.fragments.next_identification(to)
            };
            nat64::to_ipv4(frame, parsed, to.addresses, &ends, translated > MAY_BE_CUT, identification)
        };
        let Ok(new) = new else { return self.refuse_for(endpoint, DropReason::Nat64) };
        if cut {
            return self.forward_in_pieces(frame, &new, endpoint, hop_index, mtu, to, outbox, now);
        }
        self.send_rewritten(frame, &new, endpoint, hop_index, outbox, now)
    }

    /// An ICMP error from the IPv4 side of a flow, about a packet that its client sent.
    #[cold]
    pub(crate) fn pass_error_to_ipv6(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        quote: &Quote,
        found: Found,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let record = *self.table.record(found.index());
        let Some(WideAddresses { forward, .. }) = self.table.wide(found.index()).copied() else {
            return self.refuse(DropReason::NoFlow);
        };
        let before = sum(&quote.key.addresses.to_le_bytes()) + u64::from(quote.key.ports());
        let after = sum(&forward) + u64::from(record.forward.ports());
        let inner = TranslatedQuote {
            addresses: forward,
            ports: record.forward.ports(),
            full_delta: Delta::between(before, after),
        };
        let mut packet = [0; LONGEST_TRANSLATED_ERROR];
        let (outer, mtus) = (ipv6::reversed(&forward), self.mtus(record.reverse_hop, record.forward_hop));
        let length = nat64::error_to_ipv6(&mut packet, frame.bytes(), parsed, quote, &outer, &inner, mtus);
        let packet = length.map(|length| &packet[..length]);
        self.send_error(frame, parsed, packet, record.endpoint, record.reverse_hop, outbox, now)
    }

    /// An ICMPv6 error from a client, about a packet that an IPv4 target sent.
    #[cold]
    pub(crate) fn pass_error_to_ipv4(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        quote: &Quote6,
        found: Found,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let record = *self.table.record(found.index());
        let before = sum(&quote.addresses) + u64::from(quote.key.ports());
        let after = sum(&record.reverse.addresses.to_le_bytes()) + u64::from(record.reverse.ports());
        let inner = TranslatedQuote {
            addresses: record.reverse.addresses,
            ports: record.reverse.ports(),
            full_delta: Delta::between(before, after),
        };
        let mut packet = [0; LONGEST_TRANSLATED_ERROR];
        let (outer, mtus) = (record.reverse.reversed().addresses, self.mtus(record.reverse_hop, record.forward_hop));
        let length = nat64::error_to_ipv4(&mut packet, frame.bytes(), parsed, quote, outer, &inner, mtus);
        let packet = length.map(|length| &packet[..length]);
        self.send_error(frame, parsed, packet, record.endpoint, record.forward_hop, outbox, now)
    }

    fn mtus(&self, wide: u32, narrow: u32) -> Mtus {
        Mtus { ipv4: self.hops.at(narrow).mtu, ipv6: self.hops.at(wide).mtu }
    }

    /// Puts a translated error in the place of the frame, and sends it.
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet")]
    fn send_error(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        packet: Option<&[u8]>,
        endpoint: u32,
        hop: u32,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let Some(packet) = packet else { return self.refuse_for(endpoint, DropReason::Nat64) };
        if !frame.resize_front(frame.len(), packet.len()) {
            return self.refuse_for(endpoint, DropReason::Nat64);
        }
        frame.bytes_mut().copy_from_slice(packet);
        // A message of this size has all of its checksum, whatever was said of the one that it was.
        frame.offload = postern_wire::Offload::NONE;
        let new = Parsed { l3: 0, l4: 0, end: packet.len() as u32, vlan: 0, ..*parsed };
        self.send_rewritten(frame, &new, endpoint, hop, outbox, now)
    }
}

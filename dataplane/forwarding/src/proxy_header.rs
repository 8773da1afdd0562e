//! The PROXY header in front of a TCP connection's data, put in without terminating the connection.
//!
//! Toward the target, the client's SYN carries a sequence number that is lower by the header's length; every later number of
//! the client then fits unchanged. Until the target has acknowledged the header, the flow goes the long way
//! ([`FlowRecord::LONG_WAY`]): the target's numbers below the client's own start are lifted to it, and the header is sent
//! again when it is lost, because a silent client would cause nothing. Then the flow is like any other.
//!
//! - The client's segment that completes the handshake takes the header along where it has no data itself, which is nearly
//!   always: it comes first even at a target with SYN cookies, which knows only the number of the SYN. Before a segment
//!   with data the header goes by itself.
//! - Data in a SYN (RFC 7413) is taken out, as if the target had not accepted it, and the client sends it again at once:
//!   its numbers would be those of the header.
//! - A RST of the client must have the number that the target expects (RFC 5961 §3), which may be that before or behind the header.

use std::net::{IpAddr, SocketAddr};

use postern_flows::{FlowRecord, Insertion, State};
use postern_measurement::Now;
use postern_tables::snapshot::{ProxyProtocol, TargetIndex};
use postern_translation::insertion::{self, Segment};
use postern_translation::proxy_header::{self, Dialect, LONGEST};
use postern_wire::ipv6::{destination, reversed, source};
use postern_wire::tcp::{ACK, FIN, PSH, RST, SYN};
use postern_wire::{Frame, Offload, Parsed};

use crate::forwarder::{Forwarder, Slot};
use crate::outbox::{Origin, Outbox};
use crate::verdict::{DropReason, Verdict};

/// Room in front of a frame beside the header: a VLAN tag, and what a device puts there itself.
const RESERVE: usize = 20;
/// Longest frame of a segment of our own: Ethernet with a tag, IPv6, TCP with timestamps, the header.
const OWN_SEGMENT: usize = 18 + 40 + 32 + LONGEST;
/// Headers sent again in one slice of housekeeping.
const RETRIES: usize = 64;
/// Numbers ahead of the client's start that an acknowledgement of its data may have: more than any window (RFC 7323 §2.3).
const AHEAD: u32 = 1 << 30;

impl Forwarder<'_> {
    /// The first packet of a flow that goes the long way: one that gets a header, or goes between two families.
    #[cold]
    #[inline(never)]
    pub(crate) fn begin_long_way(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        index: u32,
        endpoint_mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let record = *self.table.record(index);
        if let Some(dialect) = self.dialect(&record) {
            let start = insertion::sequence(frame, &slot.parsed).wrapping_add(1);
            let length = proxy_header::length(dialect, record.forward.is_wide()) as u8;
            if !self.insertions.insert(index, start, length) {
                // One whose handshake is not complete gives room, never one that is.
                let Some(oldest) = self.insertions.oldest_unsent() else {
                    self.end(index, outbox, now);
                    return self.refuse_for(record.endpoint, DropReason::ProxyHeadersFull);
                };
                self.counters.half_open_evicted.add(1);
                self.end(oldest, outbox, now);
                let _ = self.insertions.insert(index, start, length);
            }
        }
        self.forward_long_way(frame, &slot.parsed, index, false, endpoint_mtu, outbox, now)
    }

    /// The TLVs that a flow's target wants.
    fn dialect(&self, record: &FlowRecord) -> Option<Dialect> {
        let target = self.snapshot.target(TargetIndex(record.target));
        match target.filter(|target| target.incarnation == record.target_incarnation)?.proxy_protocol {
            ProxyProtocol::Off => None,
            ProxyProtocol::Aws => Some(Dialect::Aws),
            ProxyProtocol::Google => Some(Dialect::Google),
            ProxyProtocol::Azure => Some(Dialect::Azure),
        }
    }

    /// A packet of a flow that needs more than its plan.
    #[cold]
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet, as in `forward`")]
    pub(crate) fn forward_long_way(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        index: u32,
        reverse: bool,
        endpoint_mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let Some(insertion) = self.insertions.find(index).copied() else {
            return self.forward(frame, parsed, index, reverse, endpoint_mtu, outbox, now);
        };
        let mut parsed = *parsed;
        if reverse {
            self.lift(frame, &parsed, insertion);
            return self.forward(frame, &parsed, index, true, endpoint_mtu, outbox, now);
        }
        let before = u32::from(insertion.length);
        let sequence = insertion::sequence(frame, &parsed);
        if parsed.tcp_flags & SYN != 0 {
            insertion::strip_payload(frame, &mut parsed);
            let mut start = insertion.start;
            if State::of(self.table.record(index)) == State::SynSent {
                // A client that begins anew before anything was answered.
                start = sequence.wrapping_add(1);
                self.change(index, |insertion| insertion.start = start);
            }
            if sequence.wrapping_add(1) == start {
                insertion::set_sequence(frame, &parsed, sequence.wrapping_sub(before));
            }
            return self.forward(frame, &parsed, index, false, endpoint_mtu, outbox, now);
        }
        if parsed.tcp_flags & RST != 0 {
            if sequence == insertion.start {
                if insertion.has(Insertion::SENT) {
                    // The target expects either number, and ignores a RST with the other.
                    self.send_reset(index, insertion, outbox);
                } else if insertion.has(Insertion::TARGET_SEEN) {
                    insertion::set_sequence(frame, &parsed, sequence.wrapping_sub(before));
                }
            }
            return self.forward(frame, &parsed, index, false, endpoint_mtu, outbox, now);
        }
        // What a client may send below its start is the byte of a keep-alive (RFC 9293 §3.8.4): the header's last.
        if (1..=before).contains(&insertion.start.wrapping_sub(sequence)) {
            insertion::strip_payload(frame, &mut parsed);
        }
        if parsed.tcp_flags & ACK != 0 {
            let acknowledgement = insertion::acknowledgement(frame, &parsed);
            let window = insertion::window(frame, &parsed);
            let timestamps = insertion::timestamps(frame, &parsed);
            self.change(index, |insertion| {
                (insertion.acknowledgement, insertion.window) = (acknowledgement, window);
                if let Some((own, echoed)) = timestamps {
                    insertion.timestamps = [own, echoed];
                    insertion.flags |= Insertion::TIMESTAMPS;
                }
            });
        }
        if insertion.has(Insertion::TARGET_SEEN) && !insertion.has(Insertion::SENT) {
            return self.first_header(frame, parsed, index, sequence, endpoint_mtu, outbox, now);
        }
        self.forward(frame, &parsed, index, false, endpoint_mtu, outbox, now)
    }

    fn change(&mut self, index: u32, change: impl FnOnce(&mut Insertion)) {
        if let Some(insertion) = self.insertions.find(index) {
            change(insertion);
        }
    }

    /// A segment of the target, to the client: it must not see numbers below its own start.
    fn lift(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, insertion: Insertion) {
        let Insertion { start, length, flow: index, .. } = insertion;
        if parsed.tcp_flags & SYN != 0 {
            let next = insertion::sequence(frame, parsed).wrapping_add(1);
            self.change(index, |insertion| {
                insertion.acknowledgement = next;
                // Once more: the target has not got the header, and the client's next segment takes it along.
                insertion.flags = insertion.flags & !Insertion::SENT | Insertion::TARGET_SEEN;
            });
        }
        if parsed.tcp_flags & ACK == 0 {
            return;
        }
        let acknowledged = insertion::acknowledgement(frame, parsed).wrapping_sub(start) < AHEAD;
        insertion::lift_acknowledgement(frame, parsed, start, length.into());
        insertion::lift_sack_blocks(frame, parsed, start, length.into());
        if acknowledged && insertion.has(Insertion::SENT) && parsed.tcp_flags & RST == 0 {
            self.insertions.remove(index);
            let metered = self.is_metered(self.table.record(index).endpoint);
            let record = self.table.record_mut(index);
            // What else needs the long way is a flow between two families, or of limited bandwidth.
            if record.forward.is_wide() == record.reverse.is_wide() && !metered {
                record.state &= !FlowRecord::LONG_WAY;
            }
        }
    }

    /// The client's first segment that the target may take: the header goes with it, or before it.
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet, as in `forward`")]
    fn first_header(
        &mut self,
        frame: &mut Frame<'_>,
        mut parsed: Parsed,
        index: u32,
        sequence: u32,
        endpoint_mtu: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let mut bytes = [0; LONGEST];
        let length = self.header(index, &mut bytes);
        let Some(insertion) = self.insertions.find(index).copied().filter(|_| length > 0) else {
            return self.forward(frame, &parsed, index, false, endpoint_mtu, outbox, now);
        };
        self.counters.proxy_headers.add(1);
        self.insertions.wait(index, 0, now.tick());
        let first = insertion.start.wrapping_sub(length as u32);
        // A FIN stands behind all data, some of which may be lost.
        let fits = parsed.tcp_flags & FIN == 0 || sequence == insertion.start;
        if fits && insertion::insert(frame, &mut parsed, &bytes[..length], first, RESERVE) {
            return self.forward(frame, &parsed, index, false, endpoint_mtu, outbox, now);
        }
        let sent = self.send_header(index, insertion, &bytes[..length], outbox);
        let verdict = self.forward(frame, &parsed, index, false, endpoint_mtu, outbox, now);
        // Frames of the outbox leave behind those of the burst: the segment goes there too, behind its header.
        if let Verdict::Forward(port) = verdict
            && sent
            && outbox.push(port, Origin::Held, frame.offload, frame.len(), |room| {
                room.copy_from_slice(frame.bytes());
                room.len()
            })
        {
            return Verdict::Hold;
        }
        verdict
    }

    /// Writes a flow's header; returns its length, 0 if there is none any more.
    fn header(&self, index: u32, bytes: &mut [u8; LONGEST]) -> usize {
        let record = self.table.record(index);
        let endpoint = self.snapshot.endpoints.get(record.endpoint as usize);
        let (Some(dialect), Some(endpoint)) = (self.dialect(record), endpoint) else { return 0 };
        let [client, address] = self.consumer_ends(index);
        proxy_header::write(bytes, dialect, client, address, &endpoint.id)
    }

    /// Sends a segment of our own to a flow's target; false if that is not possible now.
    fn send_to_target(&mut self, index: u32, segment: &Segment<'_>, outbox: &mut Outbox) -> bool {
        let record = *self.table.record(index);
        let hop = self.hops.at(record.forward_hop);
        if !hop.resolved {
            self.ask(record.forward_hop, outbox);
            return false;
        }
        self.push_segment(index, record.forward_hop, true, segment, outbox)
    }

    /// Puts a segment of our own into the outbox, for the target or the client of a flow, whose hop is resolved.
    pub(crate) fn push_segment(
        &self,
        index: u32,
        hop: u32,
        to_target: bool,
        segment: &Segment<'_>,
        outbox: &mut Outbox,
    ) -> bool {
        let record = self.table.record(index);
        let key = if to_target { record.reverse } else { record.forward }.reversed();
        let addresses = self.table.wide(index).filter(|_| key.is_wide());
        let addresses = addresses.map(|wide| reversed(if to_target { &wide.reverse } else { &wide.forward }));
        let hop = self.hops.at(hop);
        let front = hop.header();
        outbox.push(hop.port, Origin::Made, Offload::NONE, OWN_SEGMENT, |room| {
            room[..front.len()].copy_from_slice(front);
            let packet = &mut room[front.len()..];
            front.len()
                + match &addresses {
                    Some(addresses) => insertion::write_segment_v6(packet, addresses, key, segment),
                    None => insertion::write_segment(packet, key, segment),
                }
        })
    }

    /// The client and the endpoint of a flow.
    fn consumer_ends(&self, index: u32) -> [SocketAddr; 2] {
        let key = self.table.record(index).forward;
        let [client, endpoint] = match self.table.wide(index).filter(|_| key.is_wide()) {
            Some(wide) => [IpAddr::V6(source(&wide.forward)), IpAddr::V6(destination(&wide.forward))],
            None => [IpAddr::V4(key.source()), IpAddr::V4(key.destination())],
        };
        [SocketAddr::new(client, key.source_port()), SocketAddr::new(endpoint, key.destination_port())]
    }

    fn send_header(&mut self, index: u32, insertion: Insertion, header: &[u8], outbox: &mut Outbox) -> bool {
        let [own, echoed] = insertion.timestamps;
        let segment = Segment {
            sequence: insertion.start.wrapping_sub(header.len() as u32),
            acknowledgement: insertion.acknowledgement,
            flags: ACK | PSH,
            window: insertion.window,
            timestamps: insertion.has(Insertion::TIMESTAMPS).then_some((own, echoed)),
            data: header,
        };
        self.send_to_target(index, &segment, outbox)
    }

    /// Sends a RST with the number of the header's first byte.
    fn send_reset(&mut self, index: u32, insertion: Insertion, outbox: &mut Outbox) {
        let segment = Segment {
            sequence: insertion.start.wrapping_sub(insertion.length.into()),
            acknowledgement: 0,
            flags: RST,
            window: 0,
            timestamps: None,
            data: &[],
        };
        self.send_to_target(index, &segment, outbox);
    }

    /// Sends headers again that were not acknowledged in time. Where all tries were in vain, the flow ends, and both ends
    /// are told.
    #[cold]
    pub(crate) fn retry_headers(&mut self, outbox: &mut Outbox, now: Now) {
        for _ in 0..RETRIES {
            let Some((insertion, attempt)) = self.insertions.next_due(now.tick()) else { return };
            if outbox.room() < 2 {
                return;
            }
            let index = insertion.flow;
            if !self.insertions.wait(index, attempt + 1, now.tick()) {
                self.counters.proxy_headers_given_up.add(1);
                self.send_reset(index, insertion, outbox);
                self.tell_client(index, insertion, outbox);
                self.end(index, outbox, now);
                continue;
            }
            let mut bytes = [0; LONGEST];
            let length = self.header(index, &mut bytes);
            // Whoever was reset is told nothing more, unless the flow lives on.
            if length > 0 && State::of(self.table.record(index)) != State::Reset {
                self.counters.proxy_headers_repeated.add(1);
                self.send_header(index, insertion, &bytes[..length], outbox);
            }
        }
    }

    /// Resets the client of a flow whose target never took the header.
    fn tell_client(&mut self, index: u32, insertion: Insertion, outbox: &mut Outbox) {
        let record = *self.table.record(index);
        let hop = self.hops.at(record.reverse_hop);
        if !hop.resolved {
            return;
        }
        let segment = Segment {
            sequence: insertion.acknowledgement,
            acknowledgement: 0,
            flags: RST,
            window: 0,
            timestamps: None,
            data: &[],
        };
        let told = self.push_segment(index, record.reverse_hop, false, &segment, outbox);
        if told && let Some(counters) = self.counters.endpoints.get(record.endpoint as usize) {
            counters.own_resets.add(1);
        }
    }
}

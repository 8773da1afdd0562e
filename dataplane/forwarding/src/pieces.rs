//! Packets that are larger than the way out allows, and may be cut: they leave as fragments (RFC 791 §3.2; RFC 7915 §4 for
//! what becomes IPv6).

use postern_measurement::Now;
use postern_translation::fragments::{Pieces, complete_transport_checksum, identify};
use postern_translation::segmentation::Segments;
use postern_wire::{FlowKey, Frame, Offload, Parsed};

use crate::forwarder::Forwarder;
use crate::outbox::{Origin, Outbox};
use crate::verdict::{DropReason, Verdict};

fn is_ipv6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

/// Where the pieces of one received frame go.
struct Way {
    hop: u32,
    endpoint: u32,
    mtu: u16,
    now: Now,
}

impl Forwarder<'_> {
    /// Cuts a translated packet, or each segment of a super-frame, and sends the fragments, or keeps them until the neighbour
    /// is known. `to` has the addresses that the packet has now.
    #[cold]
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the pieces of one packet")]
    pub(crate) fn forward_in_pieces(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        endpoint: u32,
        hop: u32,
        mtu: u16,
        to: FlowKey,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let way = Way { hop, endpoint, mtu, now };
        let l3 = usize::from(parsed.l3);
        let sent = if frame.offload.is_segmented() {
            self.send_segments(frame, parsed, &way, to, outbox)
        } else {
            complete_transport_checksum(frame, parsed);
            match self.fragments_of(&frame.bytes()[l3..], mtu, to) {
                None => Err(DropReason::Unsegmentable),
                Some(pieces) => {
                    self.room_for(pieces.len(), &way, outbox).map(|()| self.send_pieces(&pieces, true, &way, outbox))
                }
            }
        };
        if let Err(reason) = sent {
            return self.refuse_for(endpoint, reason);
        }
        if !self.hops.at(hop).resolved {
            self.ask(hop, outbox);
            self.counters.held.add(1);
        }
        Verdict::Hold
    }

    /// Cuts every segment of a super-frame: each is a datagram of its own, with an identification of its own.
    fn send_segments(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        way: &Way,
        to: FlowKey,
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let l3 = usize::from(parsed.l3);
        let segments = Segments::new(frame.bytes(), frame.offload, parsed).map_err(|_| DropReason::Unsegmentable)?;
        let mut buffer = self.fragments.lend_buffer();
        let mut send = || {
            for at in 0..segments.len() {
                let length = segments.write(at, &mut buffer);
                if at > 0 && !is_ipv6(buffer.get(l3..).unwrap_or_default()) {
                    identify(&mut buffer, l3, self.fragments.next_identification(to));
                }
                let packet = buffer.get(l3..length).ok_or(DropReason::Unsegmentable)?;
                let pieces = self.fragments_of(packet, way.mtu, to).ok_or(DropReason::Unsegmentable)?;
                if at == 0 {
                    // No segment is longer than the first.
                    self.room_for(pieces.len() * segments.len(), way, outbox)?;
                }
                self.send_pieces(&pieces, at == 0, way, outbox);
            }
            Ok(())
        };
        let sent = send();
        self.fragments.return_buffer(buffer);
        sent
    }

    /// The fragments of a packet of either family.
    fn fragments_of<'p>(&mut self, packet: &'p [u8], mtu: u16, to: FlowKey) -> Option<Pieces<'p>> {
        if is_ipv6(packet) {
            return Pieces::new_ipv6(packet, mtu, self.fragments.next_identification(to).into());
        }
        Pieces::new(packet, mtu)
    }

    /// Whether so many pieces can be sent or kept.
    fn room_for(&self, pieces: usize, way: &Way, outbox: &Outbox) -> Result<(), DropReason> {
        if self.hops.at(way.hop).resolved {
            if pieces > outbox.room() { Err(DropReason::OutboxFull) } else { Ok(()) }
        } else if pieces > self.waiting.room(way.hop) {
            Err(DropReason::HoldFull)
        } else {
            Ok(())
        }
    }

    /// Sends or keeps the pieces of one packet. The first of a received frame's counts as the frame.
    fn send_pieces(&mut self, pieces: &Pieces<'_>, first: bool, way: &Way, outbox: &mut Outbox) {
        let hop = self.hops.at(way.hop);
        let front = hop.header();
        for at in 0..pieces.len() {
            let origin = if first && at == 0 { Origin::Held } else { Origin::Made };
            if hop.resolved {
                let most = front.len() + usize::from(way.mtu);
                outbox.push(hop.port, origin, Offload::NONE, most, |room| {
                    room[..front.len()].copy_from_slice(front);
                    front.len() + pieces.write(at, &mut room[front.len()..])
                });
            } else {
                let write = |room: &mut [u8]| pieces.write(at, room);
                self.waiting.keep_with(way.hop, way.endpoint, origin, Offload::NONE, way.now, write);
            }
        }
    }
}

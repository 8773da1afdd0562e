//! Flows that were idle for too long.

use postern_flows::{FlowRecord, State};
use postern_measurement::Now;
use postern_translation::insertion::Segment;
use postern_wire::tcp::ACK;

use crate::forwarder::Forwarder;
use crate::outbox::Outbox;

/// Two sequence numbers of which at least one is outside of every window, which is below 2³⁰ (RFC 7323 §2.3).
const NUMBERS: [u32; 2] = [0, 1 << 31];

impl Forwarder<'_> {
    /// Ends a flow whose time is over; false if there is no room to tell its ends, which must be tried again then.
    pub(crate) fn expire(&mut self, index: u32, outbox: &mut Outbox, now: Now) -> bool {
        let told = self.tell_ends(index, outbox);
        if told {
            self.end(index, outbox, now);
        }
        told
    }

    /// Tells both ends of a connection that it is gone, where its listener wants that; false if there is no room.
    ///
    /// A RST counts only with the number that its receiver expects (RFC 5961 §3), and the forwarder remembers no numbers: that would cost
    /// every packet. But whoever still has the connection answers a segment outside of its window with an
    /// acknowledgement that names both numbers (RFC 9293 §3.10.7.4), and an acknowledgement without a flow is answered with
    /// the RST that fits. Whoever has no connection answers with a RST, which ends here.
    #[inline]
    pub(crate) fn tell_ends(&mut self, index: u32, outbox: &mut Outbox) -> bool {
        let record = self.table.record(index);
        if record.flags & FlowRecord::FLAG_TELL_ENDS == 0
            || !matches!(State::of(record), State::Established | State::ClientClosed | State::TargetClosed)
        {
            return true;
        }
        let record = *record;
        if outbox.room() < 2 * NUMBERS.len() {
            return false;
        }
        self.ask_for_acknowledgement(index, record.forward_hop, true, outbox);
        self.ask_for_acknowledgement(index, record.reverse_hop, false, outbox);
        true
    }

    #[cold]
    fn ask_for_acknowledgement(&self, index: u32, hop: u32, target: bool, outbox: &mut Outbox) {
        if !self.hops.at(hop).resolved {
            return;
        }
        for sequence in NUMBERS {
            let segment = Segment { sequence, acknowledgement: 0, flags: ACK, window: 0, timestamps: None, data: &[] };
            self.push_segment(index, hop, target, &segment, outbox);
        }
    }
}

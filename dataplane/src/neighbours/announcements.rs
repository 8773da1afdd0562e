//! Gratuitous ARP (RFC 5227 §2.3) and unsolicited neighbor advertisements (RFC 4861 §7.2.6) that are still to be sent: each address twice, two seconds apart, so many at a time that
//! ten thousand new addresses do not flood a wire.

use std::collections::VecDeque;
use std::net::IpAddr;

use postern_measurement::Now;
use postern_wire::AttachmentIndex;

/// Announcements of one address (ANNOUNCE_NUM).
const TIMES: u8 = 2;
/// Between two of one address, in milliseconds (ANNOUNCE_INTERVAL).
const INTERVAL: u64 = 2000;
/// Most announcements in one pass.
const BATCH: usize = 256;
/// Pause between two full passes, in milliseconds.
const PAUSE: u64 = 20;

#[derive(Debug)]
struct Announcement {
    due: Now,
    attachment: AttachmentIndex,
    address: IpAddr,
    left: u8,
}

/// Announcements that are still to be made, in the order in which they are due.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    first: VecDeque<Announcement>,
    again: VecDeque<Announcement>,
    in_pass: usize,
    not_before: Now,
}

impl Announcements {
    /// Announces an address from now on.
    pub(super) fn add(&mut self, attachment: AttachmentIndex, address: IpAddr, now: Now) {
        self.first.push_back(Announcement { due: now, attachment, address, left: TIMES });
    }

    /// The next that is due, if this pass has not done enough.
    pub(super) fn due(&mut self, now: Now) -> Option<(AttachmentIndex, IpAddr)> {
        if self.in_pass >= BATCH || now < self.not_before {
            return None;
        }
        let queue = [&mut self.first, &mut self.again]
            .into_iter()
            .find(|queue| queue.front().is_some_and(|front| front.due <= now))?;
        let mut announcement = queue.pop_front()?;
        self.in_pass += 1;
        if self.in_pass == BATCH {
            self.not_before = now.plus_milliseconds(PAUSE);
        }
        let found = (announcement.attachment, announcement.address);
        announcement.left -= 1;
        if announcement.left > 0 {
            announcement.due = now.plus_milliseconds(INTERVAL);
            self.again.push_back(announcement);
        }
        Some(found)
    }

    /// The pass is over; the next may do as much again.
    pub(super) fn end_of_pass(&mut self) {
        self.in_pass = 0;
    }

    /// When the next is due.
    pub(super) fn next_due(&self) -> Option<Now> {
        let fronts = [self.first.front(), self.again.front()];
        fronts.into_iter().flatten().map(|front| front.due.max(self.not_before)).min()
    }
}

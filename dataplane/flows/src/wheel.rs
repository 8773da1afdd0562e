//! The timer wheel: one slot a second, records linked by index, laziness instead of moving.
//!
//! A packet only stores its time in its record. When a slot comes up, a record that has seen a packet since is linked into the
//! slot of its new deadline; the others have expired.

use crate::record::{FlowRecord, NONE};

/// Slots of the wheel, one a second: more than the longest idle time.
pub const SLOTS: usize = 8192;
/// Marks a `timer_previous` that names a slot, not a record.
const SLOT: u32 = 1 << 31;

/// The slot of a deadline in seconds.
const fn slot(seconds: u64) -> usize {
    seconds as usize % SLOTS
}

/// Links a record that is in no list into the slot of `seconds`.
#[inline]
pub fn link(slots: &mut [u32], records: &mut [FlowRecord], index: u32, seconds: u64) {
    let slot = slot(seconds);
    let head = slots[slot];
    let record = &mut records[index as usize];
    record.timer_next = head;
    record.timer_previous = SLOT | slot as u32;
    if head != NONE {
        records[head as usize].timer_previous = index;
    }
    slots[slot] = index;
}

/// Takes a record out of its slot.
pub fn unlink(slots: &mut [u32], records: &mut [FlowRecord], index: u32) {
    let FlowRecord { timer_next: next, timer_previous: previous, .. } = records[index as usize];
    if previous & SLOT != 0 {
        slots[(previous & !SLOT) as usize % SLOTS] = next;
    } else {
        records[previous as usize].timer_next = next;
    }
    if next != NONE {
        records[next as usize].timer_previous = previous;
    }
}

/// The first record of the slot of `seconds`.
#[must_use]
pub fn first(slots: &[u32], seconds: u64) -> Option<u32> {
    Some(slots[slot(seconds)]).filter(|index| *index != NONE)
}

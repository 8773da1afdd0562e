//! What a worker remembers of flows into whose stream it puts bytes of its own, until their target has acknowledged them.
//!
//! Few flows need it, each for a moment: a table of fixed size in the worker's region, found by the number of the flow's
//! record. Those whose bytes have been sent stand in one queue for each try, which has one waiting time, so that each queue
//! is in the order of its deadlines and only heads are looked at.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::record::NONE;
use crate::table::RegionError;

/// Milliseconds to wait for the acknowledgement after each try; after the last, the insertion is given up.
pub const WAITS: [u32; 7] = [250, 500, 1000, 2000, 4000, 8000, 8000];

/// The queue of those whose bytes were not sent yet, behind those of the tries.
const UNSENT: usize = WAITS.len();

/// One flow's insertion: 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Insertion {
    /// Number of the flow's record.
    pub flow: u32,
    /// Sequence number of the client's first byte, as the client counts: its initial sequence number and one.
    pub start: u32,
    /// Next byte that the client expects from the target.
    pub acknowledgement: u32,
    /// The client's last timestamps: its own, and the echoed one; see [`Self::TIMESTAMPS`].
    pub timestamps: [u32; 2],
    /// The client's last window, as it stands in its segments.
    pub window: u16,
    /// Bytes inserted.
    pub length: u8,
    /// See the constants.
    pub flags: u8,
    /// When the present wait ends: low 32 bits of the time in milliseconds.
    due: u32,
    /// Queue that it stands in, plus one; 0 for none.
    queue: u32,
    /// Neighbours in the queue; of a free place, `next` is the next free one.
    next: u32,
    previous: u32,
}

const _: () = assert!(size_of::<Insertion>() == 40);

impl Insertion {
    /// The target's SYN was seen.
    pub const TARGET_SEEN: u8 = 1;
    /// The bytes were sent.
    pub const SENT: u8 = 2;
    /// The client's segments have timestamps.
    pub const TIMESTAMPS: u8 = 4;

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    free: u32,
    fresh: u32,
    live: u32,
    capacity: u32,
    /// First and last of each queue.
    queues: [[u32; 2]; WAITS.len() + 1],
}

/// The table in its region.
#[derive(Debug)]
pub struct InsertionTable<'m> {
    header: &'m mut Header,
    places: &'m mut [Insertion],
    /// Open addressing by the flow's number: places plus one, 0 where nothing is.
    index: &'m mut [u32],
}

impl<'m> InsertionTable<'m> {
    fn index_size(capacity: u32) -> usize {
        (capacity as usize * 2).next_power_of_two()
    }

    /// Bytes of a region for so many flows at once, at least one.
    #[must_use]
    pub fn region_size(capacity: u32) -> usize {
        size_of::<Header>() + capacity as usize * size_of::<Insertion>() + Self::index_size(capacity) * size_of::<u32>()
    }

    /// Makes an empty table in zeroed memory.
    ///
    /// # Errors
    /// When the memory is too small or not aligned to 4 bytes.
    pub fn create(memory: &'m mut [u8], capacity: u32) -> Result<Self, RegionError> {
        let (given, needed) = (memory.len(), Self::region_size(capacity));
        let memory = memory.get_mut(..needed).ok_or(RegionError::Size { given, needed })?;
        let (header, rest) = Header::mut_from_prefix(memory).map_err(|_| RegionError::Alignment)?;
        let (places, rest) =
            <[Insertion]>::mut_from_prefix_with_elems(rest, capacity as usize).map_err(|_| RegionError::Alignment)?;
        let (index, _) = <[u32]>::mut_from_prefix_with_elems(rest, Self::index_size(capacity))
            .map_err(|_| RegionError::Alignment)?;
        *header = Header { free: NONE, fresh: 0, live: 0, capacity, ..Header::new_zeroed() };
        header.queues = [[NONE; 2]; WAITS.len() + 1];
        Ok(Self { header, places, index })
    }

    /// Insertions that are under way.
    #[must_use]
    pub const fn live(&self) -> u32 {
        self.header.live
    }

    /// Where the look-up of a flow begins.
    fn home(&self, flow: u32) -> usize {
        // The high bits of a product depend on all bits of the number.
        let bits = self.index.len().trailing_zeros();
        ((u64::from(flow).wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> (64 - bits)) as usize
    }

    /// Position in the index of a flow's entry.
    fn position(&self, flow: u32) -> Option<usize> {
        let mask = self.index.len() - 1;
        let mut at = self.home(flow);
        // At most half of the index is in use, so that the walk ends.
        loop {
            let place = self.index[at].checked_sub(1)?;
            if self.places[place as usize].flow == flow {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    fn place(&self, flow: u32) -> Option<u32> {
        self.position(flow).map(|at| self.index[at] - 1)
    }

    /// The insertion of a flow, if it has one.
    #[must_use]
    pub fn find(&mut self, flow: u32) -> Option<&mut Insertion> {
        let place = self.place(flow)?;
        self.places.get_mut(place as usize)
    }

    /// Begins a flow's insertion of `length` bytes before its byte `start`; false if there is no room, or it has one.
    #[must_use]
    pub fn insert(&mut self, flow: u32, start: u32, length: u8) -> bool {
        if self.position(flow).is_some() {
            return false;
        }
        let place = if self.header.free == NONE { self.header.fresh } else { self.header.free };
        let Some(insertion) = self.places.get_mut(place as usize) else { return false };
        if self.header.free == NONE {
            self.header.fresh += 1;
        } else {
            self.header.free = insertion.next;
        }
        *insertion = Insertion { flow, start, length, ..Insertion::default() };
        self.header.live += 1;
        let mask = self.index.len() - 1;
        let mut at = self.home(flow);
        while self.index[at] != 0 {
            at = (at + 1) & mask;
        }
        self.index[at] = place + 1;
        self.enter_queue(place, UNSENT);
        true
    }

    /// The flow whose insertion has waited longest for its first try: one that is half open.
    #[must_use]
    pub fn oldest_unsent(&self) -> Option<u32> {
        self.places.get(self.header.queues[UNSENT][0] as usize).map(|insertion| insertion.flow)
    }

    /// Puts a place that is in no queue at the end of one.
    fn enter_queue(&mut self, place: u32, queue: usize) {
        let last = std::mem::replace(&mut self.header.queues[queue][1], place);
        if last == NONE {
            self.header.queues[queue][0] = place;
        } else {
            self.places[last as usize].next = place;
        }
        let insertion = &mut self.places[place as usize];
        (insertion.queue, insertion.previous, insertion.next) = (queue as u32 + 1, last, NONE);
    }

    /// Ends a flow's insertion; false if it has none.
    pub fn remove(&mut self, flow: u32) -> bool {
        let Some(mut hole) = self.position(flow) else { return false };
        let place = self.index[hole] - 1;
        self.leave_queue(place);
        // What stands behind the hole moves up, unless it would come before its home.
        let mask = self.index.len() - 1;
        let mut at = (hole + 1) & mask;
        while self.index[at] != 0 {
            let home = self.home(self.places[self.index[at] as usize - 1].flow);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.index[hole] = self.index[at];
                hole = at;
            }
            at = (at + 1) & mask;
        }
        self.index[hole] = 0;
        self.places[place as usize] = Insertion { flow: NONE, next: self.header.free, ..Insertion::default() };
        self.header.free = place;
        self.header.live -= 1;
        true
    }

    fn leave_queue(&mut self, place: u32) {
        let Insertion { queue, next, previous, .. } = self.places[place as usize];
        let Some(queue) = queue.checked_sub(1) else { return };
        let ends = &mut self.header.queues[queue as usize];
        if previous == NONE {
            ends[0] = next;
        } else {
            self.places[previous as usize].next = next;
        }
        if next == NONE {
            ends[1] = previous;
        } else {
            self.places[next as usize].previous = previous;
        }
        self.places[place as usize].queue = 0;
    }

    /// The bytes of a flow were sent: waits for the acknowledgement as after the try with this number, 0…; false where there is
    /// no such try, or no insertion.
    pub fn wait(&mut self, flow: u32, attempt: usize, tick: u32) -> bool {
        let (Some(place), Some(wait)) = (self.place(flow), WAITS.get(attempt)) else { return false };
        self.leave_queue(place);
        self.enter_queue(place, attempt);
        let insertion = &mut self.places[place as usize];
        insertion.flags |= Insertion::SENT;
        insertion.due = tick.wrapping_add(*wait);
        true
    }

    /// A flow whose wait is over, with the number of the try that it waited after. It is returned again until its
    /// next wait or end is told.
    #[must_use]
    pub fn next_due(&self, tick: u32) -> Option<(Insertion, usize)> {
        self.header.queues[..UNSENT].iter().enumerate().find_map(|(attempt, [first, _])| {
            let insertion = self.places.get(*first as usize)?;
            (tick.wrapping_sub(insertion.due) as i32 >= 0).then_some((*insertion, attempt))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn churn_agrees_with_a_map_and_every_place_comes_back() {
        let capacity = 64;
        let mut memory = vec![0u64; InsertionTable::region_size(capacity) / 8 + 1];
        let mut table = InsertionTable::create(memory.as_mut_bytes(), capacity).unwrap();
        let mut oracle = BTreeMap::new();
        let mut state = 1u64;
        for step in 0..100_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let flow = (state >> 33) as u32 % 100;
            match state >> 20 & 3 {
                0 => {
                    let fits = oracle.len() < capacity as usize && !oracle.contains_key(&flow);
                    assert_eq!(table.insert(flow, step, 100), fits);
                    if fits {
                        oracle.insert(flow, step);
                    }
                }
                1 => assert_eq!(table.remove(flow), oracle.remove(&flow).is_some()),
                2 => assert_eq!(table.wait(flow, step as usize % 7, step), oracle.contains_key(&flow)),
                _ => assert_eq!(table.find(flow).map(|found| found.start), oracle.get(&flow).copied()),
            }
            assert_eq!(table.live() as usize, oracle.len());
        }
        for flow in oracle.into_keys() {
            assert!(table.remove(flow));
        }
        assert!(table.index.iter().all(|entry| *entry == 0));
        assert!(table.header.queues.iter().flatten().all(|end| *end == NONE));
        assert!((0..capacity).all(|flow| table.insert(flow, 0, 1)) && !table.insert(capacity, 0, 1));
        // Those that were sent give no room.
        assert!(table.wait(0, 0, 0) && table.oldest_unsent() == Some(1));
        assert!(table.remove(1) && table.insert(capacity, 0, 1) && table.oldest_unsent() == Some(2));
    }

    #[test]
    fn waits_end_in_their_order_and_across_the_wrap_of_the_clock() {
        let mut memory = vec![0u64; InsertionTable::region_size(8) / 8 + 1];
        let mut table = InsertionTable::create(memory.as_mut_bytes(), 8).unwrap();
        let begin = u32::MAX - 300;
        for flow in 0..4 {
            assert!(table.insert(flow, 7, 100));
            assert!(table.wait(flow, 0, begin.wrapping_add(flow * 10)));
        }
        assert!(table.remove(1));
        assert_eq!(table.next_due(begin.wrapping_add(249)), None);
        let mut seen = Vec::new();
        for tick in 0..1000u32 {
            while let Some((insertion, attempt)) = table.next_due(begin.wrapping_add(tick)) {
                assert!(insertion.has(Insertion::SENT));
                seen.push((insertion.flow, attempt, tick));
                if attempt == 0 && insertion.flow != 3 {
                    assert!(table.wait(insertion.flow, 1, begin.wrapping_add(tick)));
                } else {
                    assert!(table.remove(insertion.flow));
                }
            }
        }
        assert_eq!(seen, [(0, 0, 250), (2, 0, 270), (3, 0, 280), (0, 1, 750), (2, 1, 770)]);
        assert!(!table.wait(9, 0, 0));
        assert_eq!(table.live(), 0);
    }
}

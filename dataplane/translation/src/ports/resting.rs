//! The resting ring: freed ports in the order of release, chained by lane, and how a port, its block and its lane become free.

use postern_measurement::Now;

use super::bitmap::{block_of, contains, insert, remove};
use super::region::{Block, NONE, Region, Rest};

/// Most rests that one call ends early to make room.
const SACRIFICES: u32 = 16;

impl Region<'_> {
    /// Takes the first rest off the lane; the port stays taken. Returns its block.
    pub(super) fn end_first_rest(&mut self, lane: u32) -> u32 {
        let owner = &mut self.lanes[lane as usize];
        let rest = &mut self.rests[owner.first_rest as usize];
        owner.first_rest = rest.next;
        if rest.next == NONE {
            owner.last_rest = NONE;
        }
        rest.lane = NONE;
        let port = rest.port;
        self.header.resting_now -= 1;
        // A resting port is taken, and a block with a taken port exists.
        let block = self.block(lane, block_of(port)).expect("a resting port's block exists");
        let entry = &mut self.blocks[block as usize];
        entry.set_resting(entry.resting() & !(1 << (port % 128)));
        block
    }

    pub(super) fn push_rest(&mut self, lane: u32, port: u16, due: u32) {
        let capacity = self.rests.len() as u32;
        if self.header.ring_length == capacity {
            self.cut_front_short();
        }
        let header = &mut *self.header;
        let position = (header.ring_front + header.ring_length) % capacity;
        header.ring_length += 1;
        header.resting_now += 1;
        self.rests[position as usize] = Rest { lane, next: NONE, due, port, unused: 0 };
        let owner = &mut self.lanes[lane as usize];
        if owner.last_rest == NONE {
            owner.first_rest = position;
        } else {
            self.rests[owner.last_rest as usize].next = position;
        }
        owner.last_rest = position;
    }

    pub(super) fn front_is_due(&self, now: Now) -> bool {
        let header = &*self.header;
        let front = &self.rests[header.ring_front as usize];
        header.ring_length > 0 && (front.lane == NONE || is_due(front.due, now))
    }

    /// Takes the front entry out of the ring, which is not empty, and ends its rest if that has not happened yet.
    pub(super) fn pop_rest(&mut self) {
        let header = &mut *self.header;
        let front = header.ring_front;
        header.ring_front = (front + 1) % self.rests.len() as u32;
        header.ring_length -= 1;
        let Rest { lane, port, .. } = self.rests[front as usize];
        if lane != NONE {
            // The ring and each lane's list are in the order of release, so this is the lane's first.
            let block = self.end_first_rest(lane);
            self.free(block, 1 << (port % 128));
        }
    }

    pub(super) fn cut_front_short(&mut self) {
        let header = &mut *self.header;
        if self.rests[header.ring_front as usize].lane != NONE {
            header.rests_cut_short += 1;
        }
        self.pop_rest();
    }

    /// Ends a few of the oldest rests until `enough`, for the lanes and blocks that only they hold.
    pub(super) fn sacrifice_rests(&mut self, enough: impl Fn(&Region<'_>) -> bool) {
        for _ in 0..SACRIFICES {
            if enough(self) || self.header.ring_length == 0 {
                return;
            }
            self.cut_front_short();
        }
    }

    /// Frees a taken port, and its block and lane if they hold nothing any more.
    pub(super) fn free(&mut self, block: u32, bit: u128) {
        let Block { lane, number, .. } = self.blocks[block as usize];
        self.free_in_live_lane(block, number * 128 + bit.trailing_zeros() as u16);
        self.remove_lane_if_empty(lane);
    }

    /// Frees a taken port, and its block if that holds nothing any more.
    pub(super) fn free_in_live_lane(&mut self, block: u32, port: u16) {
        let entry = &mut self.blocks[block as usize];
        let taken = entry.taken() & !(1 << (port % 128));
        entry.set_taken(taken);
        let (lane, number) = (entry.lane, entry.number);
        let owner = &mut self.lanes[lane as usize];
        owner.taken -= 1;
        if contains(&owner.full, number) {
            remove(&mut owner.full, number);
            insert(&mut owner.open, number);
            owner.full_blocks -= 1;
        }
        if taken == 0 {
            self.remove_block(block);
        }
    }
}

/// Whether the tick `due` is not in the future; ticks wrap.
pub(super) const fn is_due(due: u32, now: Now) -> bool {
    now.tick().wrapping_sub(due) as i32 >= 0
}

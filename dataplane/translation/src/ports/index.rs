//! The hash indexes of lanes and blocks, whose chains are bounded, and the free lists behind them.

use super::bitmap::{insert, remove};
use super::hand::Hand;
use super::random::index_hash;
use super::region::{Block, HalfOpenList, Lane, NONE, Region};
use super::{Need, Refusal};

/// Longest chain of an index; a longer one would need some 2¹⁰⁰ tries, as the hash is keyed. It bounds every search.
const CHAIN: usize = 32;

impl Region<'_> {
    #[inline]
    pub(super) fn lane_head(&self, key: [u64; 2]) -> usize {
        index_hash(self.header.secret, key[0], key[1]) as usize & (self.lane_heads.len() - 1)
    }

    #[inline(always)]
    pub(super) fn lane(&self, key: [u64; 2]) -> Option<u32> {
        let mut at = self.lane_heads[self.lane_head(key)];
        for _ in 0..CHAIN {
            let lane = self.lanes.get(at as usize)?;
            if lane.key == key {
                return Some(at);
            }
            at = lane.next;
        }
        None
    }

    pub(super) fn add_lane(&mut self, key: [u64; 2], need: Need) -> Result<u32, Refusal> {
        if need == Need::Any {
            self.sacrifice_rests(|region| region.header.lanes_used < region.lanes.len() as u32);
        }
        let head = self.lane_head(key);
        let Region { header, lane_heads, lanes, .. } = self;
        if chain_is_full(lane_heads[head], |at| lanes[at as usize].next) {
            return Err(Refusal::LanesFull);
        }
        let lane = if header.free_lane != NONE {
            let lane = header.free_lane;
            header.free_lane = lanes[lane as usize].next;
            lane
        } else if (header.fresh_lane as usize) < lanes.len() {
            header.fresh_lane += 1;
            header.fresh_lane - 1
        } else {
            return Err(Refusal::LanesFull);
        };
        header.lanes_used += 1;
        lanes[lane as usize] = Lane {
            key,
            open: [0; 8],
            full: [0; 8],
            blocks: 0,
            taken: 0,
            next: lane_heads[head],
            first_rest: NONE,
            last_rest: NONE,
            half_open: HalfOpenList::EMPTY,
            live: 1,
            full_blocks: 0,
            hand: Hand::EMPTY,
        };
        lane_heads[head] = lane;
        Ok(lane)
    }

    pub(super) fn remove_lane_if_empty(&mut self, lane: u32) {
        let entry = &self.lanes[lane as usize];
        if entry.taken != 0 || entry.live == 0 {
            return;
        }
        let head = self.lane_head(entry.key);
        let Region { header, lane_heads, lanes, .. } = self;
        let next = lanes[lane as usize].next;
        if lane_heads[head] == lane {
            lane_heads[head] = next;
        } else {
            let mut at = lane_heads[head];
            while lanes[at as usize].next != lane {
                at = lanes[at as usize].next;
            }
            lanes[at as usize].next = next;
        }
        let entry = &mut lanes[lane as usize];
        entry.live = 0;
        entry.next = header.free_lane;
        header.free_lane = lane;
        header.lanes_used -= 1;
    }

    pub(super) fn block_head(&self, lane: u32, number: u16) -> usize {
        let hash = index_hash(self.header.secret, u64::from(lane), u64::from(number));
        hash as usize & (self.block_heads.len() - 1)
    }

    pub(super) fn block(&self, lane: u32, number: u16) -> Option<u32> {
        let mut at = self.block_heads[self.block_head(lane, number)];
        for _ in 0..CHAIN {
            let block = self.blocks.get(at as usize)?;
            if block.lane == lane && block.number == number {
                return Some(at);
            }
            at = block.next;
        }
        None
    }

    pub(super) fn add_block(&mut self, lane: u32, number: u16) -> Option<u32> {
        let head = self.block_head(lane, number);
        let Region { header, block_heads, lanes, blocks, .. } = self;
        if chain_is_full(block_heads[head], |at| blocks[at as usize].next) {
            return None;
        }
        let block = if header.free_block != NONE {
            let block = header.free_block;
            header.free_block = blocks[block as usize].next;
            block
        } else if (header.fresh_block as usize) < blocks.len() {
            header.fresh_block += 1;
            header.fresh_block - 1
        } else {
            return None;
        };
        header.blocks_used += 1;
        blocks[block as usize] = Block::new(lane, number, block_heads[head]);
        block_heads[head] = block;
        let owner = &mut lanes[lane as usize];
        owner.blocks += 1;
        insert(&mut owner.open, number);
        Some(block)
    }

    pub(super) fn remove_block(&mut self, block: u32) {
        let Block { lane, number, next, .. } = self.blocks[block as usize];
        let head = self.block_head(lane, number);
        let Region { header, block_heads, lanes, blocks, .. } = self;
        if block_heads[head] == block {
            block_heads[head] = next;
        } else {
            let mut at = block_heads[head];
            while blocks[at as usize].next != block {
                at = blocks[at as usize].next;
            }
            blocks[at as usize].next = next;
        }
        // A free block belongs to no lane, so that a late release finds nothing.
        blocks[block as usize] = Block::new(NONE, 0, header.free_block);
        header.free_block = block;
        header.blocks_used -= 1;
        let owner = &mut lanes[lane as usize];
        owner.blocks -= 1;
        remove(&mut owner.open, number);
        owner.hand.lay_down(block);
    }
}

/// Whether a chain has no room for another entry.
fn chain_is_full(head: u32, next: impl Fn(u32) -> u32) -> bool {
    let mut at = head;
    for _ in 1..CHAIN {
        if at == NONE {
            return false;
        }
        at = next(at);
    }
    true
}

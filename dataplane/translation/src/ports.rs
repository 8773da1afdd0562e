//! SNAT ports of one worker: leases of ports toward each target, in a region of fixed size.
//!
//! A port may be used once toward each target address and port, so ports are counted by **lane**: one SNAT address toward
//! one target address and port. A lane holds blocks of 128 ports, taken up on demand at random places among the blocks that
//! the worker owns, so memory follows the flows that live and not addresses × targets. A lane keeps at least eight blocks
//! open and half of its ports free while memory and the range allow, so that the next port is hard to guess (RFC 6056);
//! under need it goes on until the very last port.
//!
//! A freed port **rests** before it is used again toward the same target, which may still be in TIME-WAIT (RFC 6056 §3.1).
//! Rests end in the order of release. Every call does a small bounded amount of work.

mod bitmap;
mod random;
mod region;

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use postern_measurement::Now;

use bitmap::{BlockSet, block_of, contains, insert, pick_block, pick_port, ports_in_block, range_word, remove};
use random::{draw, index_hash};
use region::{Block, Lane, Region, Rest};
pub use region::{HalfOpenList, NONE, PortCapacity, RegionError};

/// One SNAT address toward one target address and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct LaneKey {
    /// The SNAT address.
    pub snat: Ipv4Addr,
    /// The target's address.
    pub target: Ipv4Addr,
    /// The target's port.
    pub target_port: u16,
    /// What keeps equal addresses apart: the index of the provider's VPC or attachment.
    pub vpc: u16,
    /// IP protocol number, 6 or 17.
    pub protocol: u8,
}

impl LaneKey {
    const fn words(&self) -> [u64; 2] {
        let addresses = self.snat.to_bits() as u64 | (self.target.to_bits() as u64) << 32;
        [addresses, self.target_port as u64 | (self.vpc as u64) << 16 | (self.protocol as u64) << 32]
    }
}

/// How badly a port is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Only a port that has rested.
    Rested,
    /// If none has, also the port of the lane that was freed first.
    Any,
}

/// A leased port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Index of the lane, valid until its last leased and resting port is gone.
    pub lane: u32,
    /// The port.
    pub port: u16,
    /// Whether its rest was cut short.
    pub early: bool,
}

/// Why there is no port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Every port of the range that this worker owns is leased (or rests, if only a rested one will do).
    #[error("every owned port toward the target is in use")]
    Exhausted,
    /// The region has no room for another lane.
    #[error("there is no room for another SNAT address and target")]
    LanesFull,
    /// The region has no room for another block of ports.
    #[error("there is no room for another block of SNAT ports")]
    BlocksFull,
}

/// What an allocator holds now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStatistics {
    /// Leased ports.
    pub leased: u32,
    /// Resting ports.
    pub resting: u32,
    /// Lanes.
    pub lanes: u32,
    /// Blocks.
    pub blocks: u32,
    /// Rests that ended early for want of memory, ever; early leases are not among them.
    pub rests_cut_short: u64,
}

/// Blocks that a lane keeps open while memory allows.
const OPEN_BLOCKS: u32 = 8;
/// Longest chain of an index; a longer one would need some 2¹⁰⁰ tries, as the hash is keyed. It bounds every search.
const CHAIN: usize = 32;
/// Most rests that one call ends early to make room.
const SACRIFICES: u32 = 16;
/// Most rests outside the range that one call passes over.
const STRAYS: u32 = 64;

/// The SNAT ports of one worker.
#[derive(Debug)]
pub struct PortAllocator<'m> {
    region: Region<'m>,
}

impl<'m> PortAllocator<'m> {
    /// Bytes of memory that the capacity needs.
    #[must_use]
    pub fn region_size(capacity: &PortCapacity) -> usize {
        capacity.region_size()
    }

    /// Makes an empty allocator in memory that starts at a multiple of 8 bytes. It owns no port yet. `secret` comes from the
    /// system's random source.
    ///
    /// # Errors
    /// When the memory is too small or misaligned, or a capacity out of range.
    pub fn create(memory: &'m mut [u8], capacity: PortCapacity, secret: [u64; 2]) -> Result<Self, RegionError> {
        Ok(Self { region: Region::create(memory, capacity, secret)? })
    }

    /// Takes over a region that [`PortAllocator::create`] made, or a copy of one, with everything in it.
    ///
    /// # Errors
    /// When the memory holds no such region, or one of another layout version.
    pub fn open(memory: &'m mut [u8]) -> Result<Self, RegionError> {
        Ok(Self { region: Region::open(memory)? })
    }

    /// Sets which of the 512 blocks of 128 ports this worker owns: block n in bit n mod 64 of word n / 64. Leased ports of
    /// blocks that it no longer owns stay leased.
    pub fn set_owned(&mut self, owned: [u64; 8]) {
        self.region.header.owned = owned;
    }

    /// Leases a port of `ports` toward the lane's target.
    ///
    /// # Errors
    /// When no owned port of the range is to be had, or the region is full.
    pub fn allocate(
        &mut self,
        key: LaneKey,
        ports: RangeInclusive<u16>,
        need: Need,
        now: Now,
    ) -> Result<Lease, Refusal> {
        let key = key.words();
        let random = self.draw();
        let lane = match self.lane(key) {
            Some(lane) => lane,
            None => self.add_lane(key, &ports, need)?,
        };
        let lease = self.allocate_in(lane, &ports, need, now, random);
        if lease.is_err() {
            self.remove_lane_if_empty(lane);
        }
        lease
    }

    /// Takes a leased port back; it rests for `rest_milliseconds` (0: not at all). Returns false, with nothing changed, if
    /// the port is not leased.
    ///
    /// A lane whose last port this was is gone when its rest ends: take flows off its half-open list before.
    pub fn release(&mut self, lane: u32, port: u16, rest_milliseconds: u32, now: Now) -> bool {
        let Some(block) = self.block(lane, block_of(port)) else {
            return false;
        };
        let bit = 1u128 << (port % 128);
        let entry = &mut self.region.blocks[block as usize];
        if entry.taken() & !entry.resting() & bit == 0 {
            return false;
        }
        self.region.header.leased -= 1;
        if rest_milliseconds == 0 {
            self.free(block, bit);
            return true;
        }
        let resting = entry.resting() | bit;
        entry.set_resting(resting);
        self.push_rest(lane, port, now.tick().wrapping_add(rest_milliseconds));
        true
    }

    /// Ends at most `budget` rests that are due; true if more are due now.
    pub fn advance(&mut self, now: Now, budget: u32) -> bool {
        for _ in 0..budget {
            if !self.front_is_due(now) {
                return false;
            }
            self.pop_rest();
        }
        self.front_is_due(now)
    }

    /// The list that the flow table keeps of a lane's half-open flows. Empty in a new lane.
    ///
    /// # Panics
    /// If `lane` is not an index that a [`Lease`] named.
    pub fn half_open(&mut self, lane: u32) -> &mut HalfOpenList {
        &mut self.region.lanes[lane as usize].half_open
    }

    /// The lane with this key, if it has a leased or resting port.
    #[must_use]
    pub fn find(&self, key: LaneKey) -> Option<u32> {
        self.lane(key.words())
    }

    /// Leased ports.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.region.header.leased
    }

    /// Whether a lane's port is leased.
    #[must_use]
    pub fn is_leased(&self, lane: u32, port: u16) -> bool {
        self.block(lane, block_of(port)).is_some_and(|block| {
            let block = &self.region.blocks[block as usize];
            (block.taken() & !block.resting()) >> (port % 128) & 1 == 1
        })
    }

    /// What the allocator holds now.
    #[must_use]
    pub fn statistics(&self) -> PortStatistics {
        let header = &*self.region.header;
        PortStatistics {
            leased: header.leased,
            resting: header.resting_now,
            lanes: header.lanes_used,
            blocks: header.blocks_used,
            rests_cut_short: header.rests_cut_short,
        }
    }

    fn draw(&mut self) -> u64 {
        let header = &mut *self.region.header;
        header.draws = header.draws.wrapping_add(1);
        draw(header.secret, header.draws)
    }

    fn allocate_in(
        &mut self,
        lane: u32,
        ports: &RangeInclusive<u16>,
        need: Need,
        now: Now,
        random: u64,
    ) -> Result<Lease, Refusal> {
        if let Some(block) = self.grow(lane, ports, random) {
            return Ok(self.lease_in(lane, block, ports, random));
        }
        if let Some(block) = self.open_block(lane, ports, random) {
            return Ok(self.lease_in(lane, block, ports, random));
        }
        if let Some(lease) = self.lease_resting(lane, ports, need, now) {
            return Ok(lease);
        }
        // What is left is a block that the lane does not have yet, if there is room for it.
        let Some(number) = pick_block(&self.absent_blocks(lane, ports), random) else {
            return Err(Refusal::Exhausted);
        };
        if need == Need::Any {
            self.sacrifice_rests(|region| region.header.blocks_used < region.blocks.len() as u32);
            if self.region.lanes[lane as usize].live == 0 {
                // Strays were all that the lane had, and they were among those that ended.
                return Err(Refusal::BlocksFull);
            }
        }
        let block = self.add_block(lane, number).ok_or(Refusal::BlocksFull)?;
        Ok(self.lease_in(lane, block, ports, random))
    }

    /// A new block for the lane, if it should have one more: it has too few or too full ones, and memory is not scarce.
    fn grow(&mut self, lane: u32, ports: &RangeInclusive<u16>, random: u64) -> Option<u32> {
        let free = self.region.blocks.len() as u32 - self.region.header.blocks_used;
        let (scarce, short) =
            (free * 4 <= self.region.blocks.len() as u32, free * 2 <= self.region.blocks.len() as u32);
        let Lane { blocks, taken, .. } = self.region.lanes[lane as usize];
        let few = if short { 1 } else { OPEN_BLOCKS };
        let dense = if scarce { taken == blocks * 128 } else { taken * 2 >= blocks * 128 };
        if blocks >= few && !dense {
            return None;
        }
        let number = pick_block(&self.absent_blocks(lane, ports), random)?;
        self.add_block(lane, number)
    }

    /// Owned blocks of the range that the lane does not have.
    fn absent_blocks(&self, lane: u32, ports: &RangeInclusive<u16>) -> BlockSet {
        let (owned, lane) = (&self.region.header.owned, &self.region.lanes[lane as usize]);
        std::array::from_fn(|word| owned[word] & range_word(ports, word) & !(lane.open[word] | lane.full[word]))
    }

    /// A block of the lane with a port that is owned, in the range and free.
    fn open_block(&self, lane: u32, ports: &RangeInclusive<u16>, random: u64) -> Option<u32> {
        let (owned, entry) = (&self.region.header.owned, &self.region.lanes[lane as usize]);
        let mut candidates: BlockSet =
            std::array::from_fn(|word| owned[word] & range_word(ports, word) & entry.open[word]);
        // Only the two blocks at the edges of the range can be open without a free port in the range.
        for _ in 0..3 {
            let number = pick_block(&candidates, random)?;
            let block = self.block(lane, number)?;
            if !self.region.blocks[block as usize].taken() & ports_in_block(ports, number) != 0 {
                return Some(block);
            }
            remove(&mut candidates, number);
        }
        None
    }

    /// Leases a free port of the range in a block that has one.
    fn lease_in(&mut self, lane: u32, block: u32, ports: &RangeInclusive<u16>, random: u64) -> Lease {
        let entry = &mut self.region.blocks[block as usize];
        let bit = pick_port(!entry.taken() & ports_in_block(ports, entry.number), random);
        let taken = entry.taken() | 1 << bit;
        entry.set_taken(taken);
        let number = entry.number;
        let owner = &mut self.region.lanes[lane as usize];
        owner.taken += 1;
        if taken == u128::MAX {
            remove(&mut owner.open, number);
            insert(&mut owner.full, number);
        }
        self.region.header.leased += 1;
        Lease { lane, port: number * 128 + bit, early: false }
    }

    /// The lane's port that was freed first, if its rest is over or [`Need::Any`] will do. Rests of ports outside the range
    /// or the owned blocks end on the way: nobody can be given them.
    fn lease_resting(&mut self, lane: u32, ports: &RangeInclusive<u16>, need: Need, now: Now) -> Option<Lease> {
        for _ in 0..STRAYS {
            let position = self.region.lanes[lane as usize].first_rest;
            if position == NONE {
                return None;
            }
            let Rest { due, port, .. } = self.region.rests[position as usize];
            if !ports.contains(&port) || !contains(&self.region.header.owned, block_of(port)) {
                let block = self.end_first_rest(lane);
                // The lane's being was decided by the caller: it may be left without a port.
                self.free_in_live_lane(block, port);
                continue;
            }
            let early = !is_due(due, now);
            if early && need == Need::Rested {
                return None;
            }
            self.end_first_rest(lane);
            self.region.header.leased += 1;
            return Some(Lease { lane, port, early });
        }
        None
    }

    /// Takes the first rest off the lane; the port stays taken. Returns its block.
    fn end_first_rest(&mut self, lane: u32) -> u32 {
        let owner = &mut self.region.lanes[lane as usize];
        let rest = &mut self.region.rests[owner.first_rest as usize];
        owner.first_rest = rest.next;
        if rest.next == NONE {
            owner.last_rest = NONE;
        }
        rest.lane = NONE;
        let port = rest.port;
        self.region.header.resting_now -= 1;
        // A resting port is taken, and a block with a taken port exists.
        let block = self.block(lane, block_of(port)).expect("a resting port's block exists");
        let entry = &mut self.region.blocks[block as usize];
        entry.set_resting(entry.resting() & !(1 << (port % 128)));
        block
    }

    fn push_rest(&mut self, lane: u32, port: u16, due: u32) {
        let capacity = self.region.rests.len() as u32;
        if self.region.header.ring_length == capacity {
            self.cut_front_short();
        }
        let header = &mut *self.region.header;
        let position = (header.ring_front + header.ring_length) % capacity;
        header.ring_length += 1;
        header.resting_now += 1;
        self.region.rests[position as usize] = Rest { lane, next: NONE, due, port, unused: 0 };
        let owner = &mut self.region.lanes[lane as usize];
        if owner.last_rest == NONE {
            owner.first_rest = position;
        } else {
            self.region.rests[owner.last_rest as usize].next = position;
        }
        owner.last_rest = position;
    }

    fn front_is_due(&self, now: Now) -> bool {
        let header = &*self.region.header;
        let front = &self.region.rests[header.ring_front as usize];
        header.ring_length > 0 && (front.lane == NONE || is_due(front.due, now))
    }

    /// Takes the front entry out of the ring, which is not empty, and ends its rest if that has not happened yet.
    fn pop_rest(&mut self) {
        let header = &mut *self.region.header;
        let front = header.ring_front;
        header.ring_front = (front + 1) % self.region.rests.len() as u32;
        header.ring_length -= 1;
        let Rest { lane, port, .. } = self.region.rests[front as usize];
        if lane != NONE {
            // The ring and each lane's list are in the order of release, so this is the lane's first.
            let block = self.end_first_rest(lane);
            self.free(block, 1 << (port % 128));
        }
    }

    fn cut_front_short(&mut self) {
        let header = &mut *self.region.header;
        if self.region.rests[header.ring_front as usize].lane != NONE {
            header.rests_cut_short += 1;
        }
        self.pop_rest();
    }

    /// Ends a few of the oldest rests until `enough`, for the lanes and blocks that only they hold.
    fn sacrifice_rests(&mut self, enough: impl Fn(&Region<'_>) -> bool) {
        for _ in 0..SACRIFICES {
            if enough(&self.region) || self.region.header.ring_length == 0 {
                return;
            }
            self.cut_front_short();
        }
    }

    /// Frees a taken port, and its block and lane if they hold nothing any more.
    fn free(&mut self, block: u32, bit: u128) {
        let Block { lane, number, .. } = self.region.blocks[block as usize];
        self.free_in_live_lane(block, number * 128 + bit.trailing_zeros() as u16);
        self.remove_lane_if_empty(lane);
    }

    /// Frees a taken port, and its block if that holds nothing any more.
    fn free_in_live_lane(&mut self, block: u32, port: u16) {
        let entry = &mut self.region.blocks[block as usize];
        let taken = entry.taken() & !(1 << (port % 128));
        entry.set_taken(taken);
        let (lane, number) = (entry.lane, entry.number);
        let owner = &mut self.region.lanes[lane as usize];
        owner.taken -= 1;
        remove(&mut owner.full, number);
        insert(&mut owner.open, number);
        if taken == 0 {
            self.remove_block(block);
        }
    }

    fn lane_head(&self, key: [u64; 2]) -> usize {
        index_hash(self.region.header.secret, key[0], key[1]) as usize & (self.region.lane_heads.len() - 1)
    }

    fn lane(&self, key: [u64; 2]) -> Option<u32> {
        let mut at = self.region.lane_heads[self.lane_head(key)];
        for _ in 0..CHAIN {
            let lane = self.region.lanes.get(at as usize)?;
            if lane.key == key {
                return Some(at);
            }
            at = lane.next;
        }
        None
    }

    fn add_lane(&mut self, key: [u64; 2], ports: &RangeInclusive<u16>, need: Need) -> Result<u32, Refusal> {
        let owned = &self.region.header.owned;
        if (0..owned.len()).all(|word| owned[word] & range_word(ports, word) == 0) {
            return Err(Refusal::Exhausted);
        }
        if need == Need::Any {
            self.sacrifice_rests(|region| region.header.lanes_used < region.lanes.len() as u32);
        }
        let head = self.lane_head(key);
        let Region { header, lane_heads, lanes, .. } = &mut self.region;
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
        };
        lane_heads[head] = lane;
        Ok(lane)
    }

    fn remove_lane_if_empty(&mut self, lane: u32) {
        let entry = &self.region.lanes[lane as usize];
        if entry.taken != 0 || entry.live == 0 {
            return;
        }
        let head = self.lane_head(entry.key);
        let Region { header, lane_heads, lanes, .. } = &mut self.region;
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

    fn block_head(&self, lane: u32, number: u16) -> usize {
        let hash = index_hash(self.region.header.secret, u64::from(lane), u64::from(number));
        hash as usize & (self.region.block_heads.len() - 1)
    }

    fn block(&self, lane: u32, number: u16) -> Option<u32> {
        let mut at = self.region.block_heads[self.block_head(lane, number)];
        for _ in 0..CHAIN {
            let block = self.region.blocks.get(at as usize)?;
            if block.lane == lane && block.number == number {
                return Some(at);
            }
            at = block.next;
        }
        None
    }

    fn add_block(&mut self, lane: u32, number: u16) -> Option<u32> {
        let head = self.block_head(lane, number);
        let Region { header, block_heads, lanes, blocks, .. } = &mut self.region;
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

    fn remove_block(&mut self, block: u32) {
        let Block { lane, number, next, .. } = self.region.blocks[block as usize];
        let head = self.block_head(lane, number);
        let Region { header, block_heads, lanes, blocks, .. } = &mut self.region;
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

/// Whether the tick `due` is not in the future; ticks wrap.
const fn is_due(due: u32, now: Now) -> bool {
    now.tick().wrapping_sub(due) as i32 >= 0
}

#[cfg(test)]
mod tests;

//! SNAT ports of one worker: leases of ports toward each target, in a region of fixed size.
//!
//! A port may be used once toward each target address and port, so ports are counted by **lane**: one SNAT address toward
//! one target address and port. A lane holds blocks of 128 ports, taken up on demand at random places among the blocks that
//! the worker owns, so memory follows the flows that live and not addresses × targets. A lane keeps at least eight blocks
//! open and half of its ports free while memory and the range allow, so that the next port is hard to guess (RFC 6056);
//! under need it goes on until the very last port.
//!
//! Eight open blocks are at **hand**: the common lease draws one of them and tries two of its ports, which takes some
//! dozens of instructions however many ports are in use. Where that fails, all open blocks are looked at, and the one that
//! is found comes to hand for another.
//!
//! A freed port **rests** before it is used again toward the same target, which may still be in TIME-WAIT (RFC 6056 §3.1).
//! Rests end in the order of release. Every call does a small bounded amount of work.

mod bitmap;
mod hand;
mod index;
mod random;
mod region;
mod resting;

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use postern_measurement::Now;

use bitmap::{
    BLOCK_PORTS, BlockSet, block_of, blocks_of, contains, insert, pick_block, pick_of_few, pick_port, ports_in_block,
    remove,
};
pub use region::{HalfOpenList, NONE, PortCapacity, RegionError};
use region::{Lane, Region, Rest, halves};
use resting::is_due;

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
/// No port at all, which nobody asks for twice.
#[allow(clippy::reversed_empty_ranges)]
const NO_RANGE: RangeInclusive<u16> = 1..=0;
/// Most rests outside the range that one call passes over.
const STRAYS: u32 = 64;

/// The SNAT ports of one worker.
#[derive(Debug)]
pub struct PortAllocator<'m> {
    region: Region<'m>,
    /// The range of the last allocation, and its owned blocks: most often the next one's too.
    range: RangeInclusive<u16>,
    allowed: BlockSet,
    /// Those of them all of whose ports are in the range.
    whole: BlockSet,
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
        Ok(Self::new(Region::create(memory, capacity, secret)?))
    }

    /// Takes over a region that [`PortAllocator::create`] made, or a copy of one, with everything in it.
    ///
    /// # Errors
    /// When the memory holds no such region, or one of another layout version.
    pub fn open(memory: &'m mut [u8]) -> Result<Self, RegionError> {
        Ok(Self::new(Region::open(memory)?))
    }

    const fn new(region: Region<'m>) -> Self {
        Self { region, range: NO_RANGE, allowed: [0; 8], whole: [0; 8] }
    }

    /// Sets which of the 512 blocks of 128 ports this worker owns: block n in bit n mod 64 of word n / 64. Leased ports of
    /// blocks that it no longer owns stay leased.
    pub fn set_owned(&mut self, owned: [u64; 8]) {
        self.region.header.owned = owned;
        (self.range, self.allowed, self.whole) = (NO_RANGE, [0; 8], [0; 8]);
    }

    /// Leases a port of `ports` toward the lane's target.
    ///
    /// # Errors
    /// When no owned port of the range is to be had, or the region is full.
    #[inline(always)]
    pub fn allocate(
        &mut self,
        key: LaneKey,
        ports: RangeInclusive<u16>,
        need: Need,
        now: Now,
    ) -> Result<Lease, Refusal> {
        if (ports.start(), ports.end()) != (self.range.start(), self.range.end()) {
            self.learn_range(&ports);
        }
        let key = key.words();
        let lane = self.region.lane(key);
        if let Some(lane) = lane
            && let Some(lease) = self.lease_from_hand(lane)
        {
            return Ok(lease);
        }
        self.search(lane, key, &ports, need, now)
    }

    #[cold]
    fn learn_range(&mut self, ports: &RangeInclusive<u16>) {
        let (owned, blocks) = (&self.region.header.owned, blocks_of(ports));
        self.allowed = std::array::from_fn(|word| owned[word] & blocks[word]);
        self.whole = self.allowed;
        for edge in [*ports.start(), *ports.end()].map(block_of) {
            if ports_in_block(ports, edge) != u128::MAX {
                remove(&mut self.whole, edge);
            }
        }
        self.range = ports.clone();
    }

    /// The common case: one of the blocks at hand has one of two ports that are drawn at random.
    #[inline(always)]
    fn lease_from_hand(&mut self, lane: u32) -> Option<Lease> {
        let random = self.region.draw_few();
        let Region { header, lanes, blocks, .. } = &mut self.region;
        let owner = &mut lanes[lane as usize];
        let memory_is_short = header.blocks_used as usize * 2 >= blocks.len();
        if owner.taken * 2 >= owner.blocks * BLOCK_PORTS
            || owner.blocks < OPEN_BLOCKS && !memory_is_short
            || !owner.hand.is_whole(owner.blocks - owner.full_blocks)
        {
            return None;
        }
        let block = owner.hand.draw(random);
        let entry = blocks.get_mut(block as usize)?;
        if !contains(&self.whole, entry.number) {
            return None;
        }
        let tries = [random >> 7, random >> 14].map(|bits| bits % BLOCK_PORTS);
        let port = tries.into_iter().find(|port| entry.take(*port))?;
        let number = entry.number;
        owner.taken += 1;
        header.leased += 1;
        if entry.is_full() {
            owner.fill(block, number);
        }
        Some(Lease { lane, port: number * BLOCK_PORTS as u16 + port as u16, early: false })
    }

    /// Every other case: a lane's first port, more blocks, the edges of a range, ports that rest, none at all.
    #[cold]
    #[inline(never)]
    fn search(
        &mut self,
        lane: Option<u32>,
        key: [u64; 2],
        ports: &RangeInclusive<u16>,
        need: Need,
        now: Now,
    ) -> Result<Lease, Refusal> {
        let random = self.region.draw();
        let lane = match lane {
            Some(lane) => lane,
            None if self.allowed == [0; 8] => return Err(Refusal::Exhausted),
            None => self.region.add_lane(key, need)?,
        };
        let lease = self.allocate_in(lane, ports, need, now, random);
        if lease.is_err() {
            self.region.remove_lane_if_empty(lane);
        }
        lease
    }

    /// Takes a leased port back; it rests for `rest_milliseconds` (0: not at all). Returns false, with nothing changed, if
    /// the port is not leased.
    ///
    /// A lane whose last port this was is gone when its rest ends: take flows off its half-open list before.
    pub fn release(&mut self, lane: u32, port: u16, rest_milliseconds: u32, now: Now) -> bool {
        let Some(block) = self.region.block(lane, block_of(port)) else {
            return false;
        };
        let bit = 1u128 << (port % 128);
        let entry = &mut self.region.blocks[block as usize];
        if entry.taken() & !entry.resting() & bit == 0 {
            return false;
        }
        self.region.header.leased -= 1;
        if rest_milliseconds == 0 {
            self.region.free(block, bit);
            return true;
        }
        let resting = entry.resting() | bit;
        entry.set_resting(resting);
        self.region.push_rest(lane, port, now.tick().wrapping_add(rest_milliseconds));
        true
    }

    /// Ends at most `budget` rests that are due; true if more are due now.
    pub fn advance(&mut self, now: Now, budget: u32) -> bool {
        for _ in 0..budget {
            if !self.region.front_is_due(now) {
                return false;
            }
            self.region.pop_rest();
        }
        self.region.front_is_due(now)
    }

    /// The list that the flow table keeps of a lane's half-open flows. Empty in a new lane.
    ///
    /// # Panics
    /// If `lane` is not an index that a [`Lease`] named.
    #[inline]
    pub fn half_open(&mut self, lane: u32) -> &mut HalfOpenList {
        &mut self.region.lanes[lane as usize].half_open
    }

    /// The lane with this key, if it has a leased or resting port.
    #[must_use]
    pub fn find(&self, key: LaneKey) -> Option<u32> {
        self.region.lane(key.words())
    }

    /// Leased ports.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.region.header.leased
    }

    /// Whether a lane's port is leased.
    #[must_use]
    pub fn is_leased(&self, lane: u32, port: u16) -> bool {
        self.region.block(lane, block_of(port)).is_some_and(|block| {
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

    fn allocate_in(
        &mut self,
        lane: u32,
        ports: &RangeInclusive<u16>,
        need: Need,
        now: Now,
        random: u64,
    ) -> Result<Lease, Refusal> {
        if let Some(block) = self.grow(lane, random) {
            return Ok(self.lease_in(lane, block, ports, random));
        }
        if let Some(block) = self.open_block(lane, ports, random) {
            return Ok(self.lease_in(lane, block, ports, random));
        }
        if let Some(lease) = self.lease_resting(lane, ports, need, now) {
            return Ok(lease);
        }
        // What is left is a block that the lane does not have yet, if there is room for it.
        let Some(number) = self.absent_block(lane, random) else {
            return Err(Refusal::Exhausted);
        };
        if need == Need::Any {
            self.region.sacrifice_rests(|region| region.header.blocks_used < region.blocks.len() as u32);
            if self.region.lanes[lane as usize].live == 0 {
                // Strays were all that the lane had, and they were among those that ended.
                return Err(Refusal::BlocksFull);
            }
        }
        let block = self.region.add_block(lane, number).ok_or(Refusal::BlocksFull)?;
        Ok(self.lease_in(lane, block, ports, random))
    }

    /// A new block for the lane, if it should have one more: it has too few or too full ones, and memory is not scarce.
    fn grow(&mut self, lane: u32, random: u64) -> Option<u32> {
        let free = self.region.blocks.len() as u32 - self.region.header.blocks_used;
        let (scarce, short) =
            (free * 4 <= self.region.blocks.len() as u32, free * 2 <= self.region.blocks.len() as u32);
        let Lane { blocks, taken, .. } = self.region.lanes[lane as usize];
        let few = if short { 1 } else { OPEN_BLOCKS };
        let dense = if scarce { taken == blocks * BLOCK_PORTS } else { taken * 2 >= blocks * BLOCK_PORTS };
        if blocks >= few && !dense {
            return None;
        }
        let number = self.absent_block(lane, random)?;
        self.region.add_block(lane, number)
    }

    /// A block that is owned, has ports in the range, and that the lane does not have.
    fn absent_block(&self, lane: u32, random: u64) -> Option<u16> {
        let lane = &self.region.lanes[lane as usize];
        pick_block(|word| self.allowed[word] & !(lane.open[word] | lane.full[word]), random)
    }

    /// A block of the lane with a port that is owned, in the range and free.
    fn open_block(&self, lane: u32, ports: &RangeInclusive<u16>, random: u64) -> Option<u32> {
        let entry = &self.region.lanes[lane as usize];
        let open = |word: usize| self.allowed[word] & entry.open[word];
        let with_room = |number| {
            let block = self.region.block(lane, number)?;
            let free = !self.region.blocks[block as usize].taken() & ports_in_block(ports, number);
            (free != 0).then_some(block)
        };
        let mut number = pick_of_few(open, random)?;
        if let Some(block) = with_room(number) {
            return Some(block);
        }
        // Only the two blocks at the edges of the range can be open without a free port in the range.
        let mut closed = BlockSet::default();
        for _ in 0..2 {
            insert(&mut closed, number);
            number = pick_of_few(|word| open(word) & !closed[word], random)?;
            if let Some(block) = with_room(number) {
                return Some(block);
            }
        }
        None
    }

    /// Leases a free port of the range in a block that has one, which comes to hand.
    fn lease_in(&mut self, lane: u32, block: u32, ports: &RangeInclusive<u16>, random: u64) -> Lease {
        let entry = &mut self.region.blocks[block as usize];
        let bit = pick_port(halves(!entry.taken() & ports_in_block(ports, entry.number)), random);
        let taken = entry.taken() | 1 << bit;
        entry.set_taken(taken);
        let number = entry.number;
        let owner = &mut self.region.lanes[lane as usize];
        owner.taken += 1;
        if taken == u128::MAX {
            owner.fill(block, number);
        } else {
            owner.hand.take_up(block, (random >> 40) as usize);
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
                let block = self.region.end_first_rest(lane);
                // The lane's being was decided by the caller: it may be left without a port.
                self.region.free_in_live_lane(block, port);
                continue;
            }
            let early = !is_due(due, now);
            if early && need == Need::Rested {
                return None;
            }
            self.region.end_first_rest(lane);
            self.region.header.leased += 1;
            return Some(Lease { lane, port, early });
        }
        None
    }
}

#[cfg(test)]
mod tests;

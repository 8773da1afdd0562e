//! The region's layout: a header, two hash indexes, lanes, blocks of ports and the resting ring, all plain values that
//! are linked by index. The layout version changes whenever one of these types does.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::bitmap::BlockSet;
use super::hand::Hand;

/// The index that points nowhere.
pub const NONE: u32 = u32::MAX;

const MAGIC: u64 = u64::from_le_bytes(*b"PstnSnat");
const LAYOUT_VERSION: u32 = 2;
/// Largest number of entries of a kind: byte sizes stay far below the address space.
const MOST: u32 = 1 << 28;

/// How much an allocator can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortCapacity {
    /// Most lanes (SNAT address toward target address and port) with a leased or resting port, 1…2²⁸.
    pub lanes: u32,
    /// Most blocks of 128 ports of a lane with a leased or resting port, 1…2²⁸.
    pub blocks: u32,
    /// Most resting ports, 1…2²⁸; beyond, the oldest rest ends early.
    pub resting: u32,
}

impl PortCapacity {
    /// Capacity for so many live flows in up to `flows / 48` lanes, below 12 bytes a flow at a million flows.
    #[must_use]
    pub fn for_flows(flows: u32) -> Self {
        let at_least = |count: u32| count.clamp(1024, MOST);
        Self { lanes: at_least(flows / 48), blocks: at_least(flows / 16), resting: at_least(flows / 4) }
    }

    const fn lane_heads(&self) -> usize {
        heads(self.lanes)
    }

    const fn block_heads(&self) -> usize {
        heads(self.blocks)
    }

    pub(super) fn region_size(&self) -> usize {
        size_of::<Header>()
            + (self.lane_heads() + self.block_heads()) * size_of::<u32>()
            + self.lanes as usize * size_of::<Lane>()
            + self.blocks as usize * size_of::<Block>()
            + self.resting as usize * size_of::<Rest>()
    }
}

/// Chain heads for so many entries: a power of two, so that a hash's low bits choose, and even, so that what lies behind
/// stays aligned.
const fn heads(entries: u32) -> usize {
    let heads = (entries as usize).next_power_of_two();
    if heads < 2 { 2 } else { heads }
}

/// Why memory is not an allocator's region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegionError {
    /// Fewer bytes than the capacity needs.
    #[error("the SNAT port region has {given} bytes, {needed} are needed")]
    TooSmall {
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The first byte's address is no multiple of 8.
    #[error("the SNAT port region does not start at a multiple of 8 bytes")]
    Misaligned,
    /// A capacity of zero, or above 2²⁸.
    #[error(
        "a capacity of {lanes} lanes, {blocks} blocks and {resting} resting ports is not within 1 to 268435456 each"
    )]
    Capacity {
        /// Lanes asked for.
        lanes: u32,
        /// Blocks asked for.
        blocks: u32,
        /// Resting ports asked for.
        resting: u32,
    },
    /// The first eight bytes are not those of a region of SNAT ports.
    #[error("the memory holds no SNAT port region (it begins with {0:#018x})")]
    Magic(u64),
    /// Made by another layout version.
    #[error("the SNAT port region has layout version {found}, this program has {expected}")]
    Version {
        /// In the region.
        found: u32,
        /// Of this program.
        expected: u32,
    },
    /// The size in the header is not that of the capacities in the header.
    #[error("the SNAT port region says that it has {found} bytes, its capacities need {expected}")]
    Size {
        /// In the header.
        found: u64,
        /// By its capacities.
        expected: u64,
    },
}

/// The head of the region.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    magic: u64,
    size: u64,
    version: u32,
    lanes: u32,
    blocks: u32,
    resting: u32,
    pub(super) secret: [u64; 2],
    /// Draws made so far: the counter of the random stream.
    pub(super) draws: u64,
    /// Rests that ended early because the ring was full, or for the sake of lanes or blocks.
    pub(super) rests_cut_short: u64,
    /// Blocks that this worker owns.
    pub(super) owned: BlockSet,
    /// Live entries.
    pub(super) leased: u32,
    pub(super) resting_now: u32,
    pub(super) lanes_used: u32,
    pub(super) blocks_used: u32,
    /// Heads of the free lists, and the first entries that were never used.
    pub(super) free_lane: u32,
    pub(super) free_block: u32,
    pub(super) fresh_lane: u32,
    pub(super) fresh_block: u32,
    /// Oldest entry of the resting ring, and entries in it, those included that have ended.
    pub(super) ring_front: u32,
    pub(super) ring_length: u32,
    /// What is left of the last draw, and how often it will do.
    pub(super) spare: u64,
    pub(super) spares: u32,
    unused: u32,
}

/// The first and last entry of a list that the flow table keeps for a lane; [`NONE`] where it is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HalfOpenList {
    /// The oldest half-open flow.
    pub first: u32,
    /// The youngest.
    pub last: u32,
}

impl HalfOpenList {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };
}

/// One SNAT address toward one target address and port.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Lane {
    pub(super) key: [u64; 2],
    /// Blocks here with a port that is neither leased nor resting.
    pub(super) open: BlockSet,
    /// Blocks here without one.
    pub(super) full: BlockSet,
    /// Blocks here.
    pub(super) blocks: u32,
    /// Leased and resting ports.
    pub(super) taken: u32,
    /// Next lane of the same chain, or of the free list.
    pub(super) next: u32,
    /// Oldest and youngest resting port, as positions in the ring.
    pub(super) first_rest: u32,
    pub(super) last_rest: u32,
    pub(super) half_open: HalfOpenList,
    /// 1 while in use.
    pub(super) live: u32,
    /// Blocks of `full`.
    pub(super) full_blocks: u32,
    /// Some of the open blocks, at hand for the next lease.
    pub(super) hand: Hand,
}

/// 128 ports of a lane.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Block {
    /// Leased or resting ports: low half, high half.
    taken: [u64; 2],
    /// Resting ports.
    resting: [u64; 2],
    pub(super) lane: u32,
    /// Next block of the same chain, or of the free list.
    pub(super) next: u32,
    /// First port divided by 128.
    pub(super) number: u16,
    unused: [u16; 3],
}

const fn join(halves: [u64; 2]) -> u128 {
    halves[0] as u128 | (halves[1] as u128) << 64
}

pub(super) const fn halves(bits: u128) -> [u64; 2] {
    [bits as u64, (bits >> 64) as u64]
}

impl Block {
    pub(super) const fn new(lane: u32, number: u16, next: u32) -> Self {
        Self { taken: [0; 2], resting: [0; 2], lane, next, number, unused: [0; 3] }
    }

    pub(super) const fn taken(&self) -> u128 {
        join(self.taken)
    }

    pub(super) const fn resting(&self) -> u128 {
        join(self.resting)
    }

    /// Takes a port (0…127) if it is free.
    #[inline(always)]
    pub(super) const fn take(&mut self, port: u32) -> bool {
        let (half, bit) = (port as usize / 64 % 2, 1 << (port % 64));
        let free = self.taken[half] & bit == 0;
        self.taken[half] |= bit;
        free
    }

    /// Whether no port is free.
    #[inline(always)]
    pub(super) const fn is_full(&self) -> bool {
        self.taken[0] & self.taken[1] == u64::MAX
    }

    pub(super) const fn set_taken(&mut self, bits: u128) {
        self.taken = halves(bits);
    }

    pub(super) const fn set_resting(&mut self, bits: u128) {
        self.resting = halves(bits);
    }
}

/// A freed port that is not to be used yet.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Rest {
    /// [`NONE`] once it has ended.
    pub(super) lane: u32,
    /// Next younger rest of the lane, as a position in the ring.
    pub(super) next: u32,
    /// The tick at which it ends.
    pub(super) due: u32,
    pub(super) port: u16,
    pub(super) unused: u16,
}

/// The region, taken apart.
#[derive(Debug)]
pub(super) struct Region<'m> {
    pub(super) header: &'m mut Header,
    pub(super) lane_heads: &'m mut [u32],
    pub(super) block_heads: &'m mut [u32],
    pub(super) lanes: &'m mut [Lane],
    pub(super) blocks: &'m mut [Block],
    pub(super) rests: &'m mut [Rest],
}

impl<'m> Region<'m> {
    pub(super) fn create(memory: &'m mut [u8], capacity: PortCapacity, secret: [u64; 2]) -> Result<Self, RegionError> {
        let size = check(&capacity, memory.len())?;
        let region = carve(memory, capacity)?;
        *region.header = Header {
            magic: MAGIC,
            size,
            version: LAYOUT_VERSION,
            lanes: capacity.lanes,
            blocks: capacity.blocks,
            resting: capacity.resting,
            secret,
            draws: 0,
            rests_cut_short: 0,
            owned: [0; 8],
            leased: 0,
            resting_now: 0,
            lanes_used: 0,
            blocks_used: 0,
            free_lane: NONE,
            free_block: NONE,
            fresh_lane: 0,
            fresh_block: 0,
            ring_front: 0,
            ring_length: 0,
            spare: 0,
            spares: 0,
            unused: 0,
        };
        // Lanes, blocks and rests are written before they are read: their pages stay untouched until then.
        region.lane_heads.fill(NONE);
        region.block_heads.fill(NONE);
        Ok(region)
    }

    pub(super) fn open(memory: &'m mut [u8]) -> Result<Self, RegionError> {
        let given = memory.len();
        let too_small = RegionError::TooSmall { given, needed: size_of::<Header>() };
        let head = memory.get(..size_of::<Header>()).ok_or(too_small)?;
        let header = Header::ref_from_bytes(head).map_err(|_| RegionError::Misaligned)?;
        if header.magic != MAGIC {
            return Err(RegionError::Magic(header.magic));
        }
        if header.version != LAYOUT_VERSION {
            return Err(RegionError::Version { found: header.version, expected: LAYOUT_VERSION });
        }
        let capacity = PortCapacity { lanes: header.lanes, blocks: header.blocks, resting: header.resting };
        let found = header.size;
        let expected = check(&capacity, given)?;
        if found != expected {
            return Err(RegionError::Size { found, expected });
        }
        carve(memory, capacity)
    }
}

fn check(capacity: &PortCapacity, given: usize) -> Result<u64, RegionError> {
    let &PortCapacity { lanes, blocks, resting } = capacity;
    if [lanes, blocks, resting].iter().any(|count| !(1..=MOST).contains(count)) {
        return Err(RegionError::Capacity { lanes, blocks, resting });
    }
    let needed = capacity.region_size();
    if given < needed { Err(RegionError::TooSmall { given, needed }) } else { Ok(needed as u64) }
}

/// Cuts the memory, whose size was checked.
fn carve(memory: &mut [u8], capacity: PortCapacity) -> Result<Region<'_>, RegionError> {
    let (header, rest) = Header::mut_from_prefix(memory).map_err(|_| RegionError::Misaligned)?;
    let (lane_heads, rest) = slice(rest, capacity.lane_heads())?;
    let (block_heads, rest) = slice(rest, capacity.block_heads())?;
    let (lanes, rest) = slice(rest, capacity.lanes as usize)?;
    let (blocks, rest) = slice(rest, capacity.blocks as usize)?;
    let (rests, _) = slice(rest, capacity.resting as usize)?;
    Ok(Region { header, lane_heads, block_heads, lanes, blocks, rests })
}

fn slice<T: FromBytes + IntoBytes + KnownLayout>(
    memory: &mut [u8],
    count: usize,
) -> Result<(&mut [T], &mut [u8]), RegionError> {
    <[T]>::mut_from_prefix_with_elems(memory, count).map_err(|_| RegionError::Misaligned)
}

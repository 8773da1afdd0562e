//! Bitmaps over the 512 blocks of 128 ports, and the choice of a set bit from a random position on.

use std::ops::RangeInclusive;

/// Blocks in the range 0…65535.
pub(super) const BLOCKS: usize = 512;
/// Ports in a block.
pub(super) const BLOCK_PORTS: u32 = 128;

/// One bit for each block, block 0 in bit 0 of the first word.
pub(super) type BlockSet = [u64; BLOCKS / 64];

/// The block that a port lies in.
pub(super) const fn block_of(port: u16) -> u16 {
    port / BLOCK_PORTS as u16
}

pub(super) const fn contains(set: &BlockSet, block: u16) -> bool {
    set[block as usize / 64] >> (block % 64) & 1 != 0
}

pub(super) const fn insert(set: &mut BlockSet, block: u16) {
    set[block as usize / 64] |= 1 << (block % 64);
}

pub(super) const fn remove(set: &mut BlockSet, block: u16) {
    set[block as usize / 64] &= !(1 << (block % 64));
}

/// Word `word` of the set of blocks that have a port in `ports`.
pub(super) const fn range_word(ports: &RangeInclusive<u16>, word: usize) -> u64 {
    let (first, last) = (block_of(*ports.start()) as usize, block_of(*ports.end()) as usize);
    let (low, high) = (word * 64, word * 64 + 63);
    if *ports.start() > *ports.end() || last < low || first > high {
        return 0;
    }
    let from = if first > low { first - low } else { 0 };
    let to = if last < high { last - low } else { 63 };
    (u64::MAX >> (63 - (to - from))) << from
}

/// The bits of block `block` whose ports lie in `ports`.
pub(super) const fn ports_in_block(ports: &RangeInclusive<u16>, block: u16) -> u128 {
    let base = block as u32 * BLOCK_PORTS;
    let (first, last) = (*ports.start() as u32, *ports.end() as u32);
    if first > last || last < base || first >= base + BLOCK_PORTS {
        return 0;
    }
    let from = if first > base { first - base } else { 0 };
    let to = if last < base + BLOCK_PORTS - 1 { last - base } else { BLOCK_PORTS - 1 };
    (u128::MAX >> (BLOCK_PORTS - 1 - (to - from))) << from
}

/// The first block of `set` at or behind a random position, in cyclic order; `random` gives its low 9 bits.
pub(super) fn pick_block(set: &BlockSet, random: u64) -> Option<u16> {
    let start = random as usize % BLOCKS;
    let (word, bit) = (start / 64, start % 64);
    let ahead = set[word] & u64::MAX << bit;
    if ahead != 0 {
        return Some((word * 64) as u16 + ahead.trailing_zeros() as u16);
    }
    // The start word comes once more at the end, for the bits in front of the position.
    for step in 1..=set.len() {
        let at = (word + step) % set.len();
        if set[at] != 0 {
            return Some((at * 64) as u16 + set[at].trailing_zeros() as u16);
        }
    }
    None
}

/// The first set bit of `free`, which is not zero, at or behind a random position, in cyclic order; `random` gives its low 7 bits.
pub(super) const fn pick_port(free: u128, random: u64) -> u16 {
    let start = (random % BLOCK_PORTS as u64) as u32;
    ((free.rotate_right(start).trailing_zeros() + start) % BLOCK_PORTS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_and_bits_of_a_range_are_exactly_its_ports() {
        for ports in [1024..=65535, 1024..=1024, 65535..=65535, 2000..=2047, 2047..=2048, 8191..=16384, 1151..=1152] {
            let mut seen = Vec::new();
            for block in 0..BLOCKS as u16 {
                let bits = ports_in_block(&ports, block);
                assert_eq!(range_word(&ports, usize::from(block) / 64) >> (block % 64) & 1 == 1, bits != 0);
                seen.extend((0..128).filter(|bit| bits >> bit & 1 == 1).map(|bit| block * 128 + bit));
            }
            assert_eq!(seen, ports.collect::<Vec<_>>());
        }
        #[allow(clippy::reversed_empty_ranges)]
        let empty = 2000..=1999;
        assert_eq!((range_word(&empty, 0), ports_in_block(&empty, 15)), (0, 0));
    }

    #[test]
    fn a_pick_goes_round_and_misses_no_bit() {
        for block in [0u16, 1, 63, 64, 300, 511] {
            let mut set = BlockSet::default();
            insert(&mut set, block);
            assert!((0..512).all(|random| pick_block(&set, random) == Some(block)));
            remove(&mut set, block);
            assert_eq!(pick_block(&set, u64::from(block)), None);
        }
        assert_eq!(pick_port(1 << 5, 6), 5);
        assert_eq!(pick_port(1 << 127 | 1, 1), 127);
    }
}

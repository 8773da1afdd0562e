//! Bitmaps over the 512 blocks of 128 ports, and the random choice of a set bit.

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

/// The set of blocks that have a port in `ports`.
pub(super) fn blocks_of(ports: &RangeInclusive<u16>) -> BlockSet {
    let mut set = BlockSet::default();
    if !ports.is_empty() {
        (block_of(*ports.start())..=block_of(*ports.end())).for_each(|block| insert(&mut set, block));
    }
    set
}

/// The bits of block `block` whose ports lie in `ports`.
pub(super) const fn ports_in_block(ports: &RangeInclusive<u16>, block: u16) -> u128 {
    let base = block as u32 * BLOCK_PORTS;
    let (first, last) = (*ports.start() as u32, *ports.end() as u32);
    if first <= base && last >= base + BLOCK_PORTS - 1 {
        return u128::MAX;
    }
    if first > last || last < base || first >= base + BLOCK_PORTS {
        return 0;
    }
    let from = first.saturating_sub(base);
    let to = if last < base + BLOCK_PORTS - 1 { last - base } else { BLOCK_PORTS - 1 };
    (u128::MAX >> (BLOCK_PORTS - 1 - (to - from))) << from
}

/// A block of the set whose words `word` gives, each as likely as the other. Uses the low 43 bits of `random`.
#[inline]
pub(super) fn pick_block(word: impl Fn(usize) -> u64, random: u64) -> Option<u16> {
    // Where most blocks are in the set one of these finds one; where few are, counting is short.
    for shift in [0, 9, 18] {
        let block = (random >> shift) as usize % BLOCKS;
        if word(block / 64) >> (block % 64) & 1 != 0 {
            return Some(block as u16);
        }
    }
    let words: BlockSet = std::array::from_fn(word);
    let counts = words.map(u64::count_ones);
    let total: u32 = counts.iter().sum();
    let mut nth = ((random >> 27 & 0xffff) as u32 * total) >> 16;
    for (at, here) in counts.into_iter().enumerate() {
        if nth < here {
            return Some((at * 64) as u16 + nth_bit(words[at], nth));
        }
        nth -= here;
    }
    None
}

/// The same for a set that most likely has few blocks: they are listed first.
#[inline]
pub(super) fn pick_of_few(word: impl Fn(usize) -> u64, random: u64) -> Option<u16> {
    const FEW: usize = 16;
    let mut few = [0; FEW];
    let mut count = 0;
    for at in 0..BLOCKS / 64 {
        let mut bits = word(at);
        while bits != 0 {
            if count == FEW {
                return pick_block(word, random);
            }
            few[count] = (at * 64) as u16 + bits.trailing_zeros() as u16;
            count += 1;
            bits &= bits - 1;
        }
    }
    let nth = ((random >> 27 & 0xffff) as usize * count) >> 16;
    (count > 0).then(|| few[nth % FEW])
}

/// A set bit of `free`, which is not zero. Uses the high 21 bits of `random`.
#[inline]
pub(super) fn pick_port(free: [u64; 2], random: u64) -> u16 {
    for shift in [43, 50] {
        let port = (random >> shift) as usize % BLOCK_PORTS as usize;
        if free[port / 64] >> (port % 64) & 1 != 0 {
            return port as u16;
        }
    }
    let counts = free.map(u64::count_ones);
    let nth = ((random >> 57) as u32 * (counts[0] + counts[1])) >> 7;
    if nth < counts[0] { nth_bit(free[0], nth) } else { 64 + nth_bit(free[1], nth - counts[0]) }
}

/// Position of the set bit below which `nth` others are set.
fn nth_bit(mut bits: u64, mut nth: u32) -> u16 {
    let mut base = 0;
    // By bytes first, then bit by bit.
    loop {
        let here = (bits as u8).count_ones();
        if nth < here {
            break;
        }
        nth -= here;
        bits >>= 8;
        base += 8;
    }
    while nth > 0 {
        bits &= bits - 1;
        nth -= 1;
    }
    base + bits.trailing_zeros() as u16
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
                assert_eq!(contains(&blocks_of(&ports), block), bits != 0);
                seen.extend((0..128).filter(|bit| bits >> bit & 1 == 1).map(|bit| block * 128 + bit));
            }
            assert_eq!(seen, ports.collect::<Vec<_>>());
        }
        #[allow(clippy::reversed_empty_ranges)]
        let empty = 2000..=1999;
        assert_eq!((blocks_of(&empty), ports_in_block(&empty, 15)), ([0; 8], 0));
    }

    #[test]
    fn each_block_and_port_of_a_set_is_picked_as_often_as_the_others_and_none_outside() {
        let draws = || (0..20_000).map(|counter| super::super::random::draw([1, 2], counter));
        for blocks in [vec![0u16], vec![511], vec![63, 64], vec![3, 4, 5, 300], (0..500).collect()] {
            let mut set = BlockSet::default();
            blocks.iter().for_each(|block| insert(&mut set, *block));
            let mut counts = [0u32; BLOCKS];
            let mut counts_of_few = [0u32; BLOCKS];
            draws().for_each(|random| {
                counts[usize::from(pick_block(|word| set[word], random).unwrap())] += 1;
                counts_of_few[usize::from(pick_of_few(|word| set[word], random).unwrap())] += 1;
            });
            let fair = 20_000 / blocks.len() as u32;
            for (block, count) in (0..BLOCKS as u16).zip(counts).chain((0..BLOCKS as u16).zip(counts_of_few)) {
                let wanted = if blocks.contains(&block) { fair / 4..fair * 2 + 1 } else { 0..1 };
                assert!(wanted.contains(&count), "block {block} of {} came {count} times", blocks.len());
            }
        }
        assert_eq!((pick_block(|_| 0, 7), pick_of_few(|_| 0, 7)), (None, None));
        for free in [1u128, 1 << 127, 1 | 1 << 64 | 1 << 127, u128::MAX, u128::MAX << 100] {
            let mut counts = [0u32; 128];
            draws().for_each(|random| counts[usize::from(pick_port([free as u64, (free >> 64) as u64], random))] += 1);
            let fair = 20_000 / free.count_ones();
            for (bit, count) in counts.iter().enumerate() {
                let wanted = if free >> bit & 1 == 1 { fair / 2..fair * 2 } else { 0..1 };
                assert!(wanted.contains(count), "bit {bit} of {free:#x} came {count} times");
            }
        }
    }
}

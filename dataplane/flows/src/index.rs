//! The index: buckets of one cache line, twelve entries each, two buckets a key.
//!
//! An entry is a one-byte tag and a record number with the direction in its top bit. A key lives in its first bucket, or in
//! its second where the first is full; a bucket that has sent entries away says so, so that most look-ups touch one line.
//! Where both are full, one entry of theirs that has room in its own other bucket is moved there; where none has, the
//! insertion fails and is counted: a found collision costs its buckets, not the table.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of a bucket.
pub const WAYS: usize = 12;
/// Top bit of an entry: the record is found by its reverse key.
pub const REVERSE: u32 = 1 << 31;

/// One cache line. Layout: tags (12), entries sent to their second bucket (2), ways in use (2), entries (48).
///
/// A free way keeps its tag and entry, so that a tag may have every value: whoever finds such an entry compares the key of
/// its record, and a record that is not in use has none.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct Bucket {
    tags: [u8; WAYS],
    spilled: u16,
    /// Bit n is set where way n is in use.
    used: u16,
    entries: [u32; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// All ways.
const FULL: u16 = (1 << WAYS) - 1;

/// The tag of a hash.
#[inline(always)]
const fn tag(hash: u64) -> u8 {
    hash as u8
}

/// Marks the bytes of `word` that equal the tag; above a right mark there may be a wrong one, which the key comparison
/// sorts out.
#[inline(always)]
const fn matches(word: u64, tag: u64) -> u64 {
    let difference = word ^ tag;
    difference.wrapping_sub(LOW) & !difference & HIGH
}

impl Bucket {
    /// Marks the first eight ways that have the tag of the hash, each in the top bit of its byte.
    #[inline(always)]
    const fn low(&self, hash: u64) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.tags;
        matches(u64::from_le_bytes([a, b, c, d, e, f, g, h]), tag(hash) as u64 * LOW)
    }

    /// The same for the last four.
    #[inline(always)]
    const fn high(&self, hash: u64) -> u64 {
        let [.., i, j, k, l] = self.tags;
        matches(u32::from_le_bytes([i, j, k, l]) as u64 | !0xffff_ffff, tag(hash) as u64 * LOW) & 0xffff_ffff
    }

    /// The entry of the first way with the tag of the hash, in use or not.
    #[inline(always)]
    fn candidate(&self, hash: u64) -> Option<u32> {
        let low = self.low(hash);
        if low != 0 {
            return Some(self.entries[(low.trailing_zeros() / 8) as usize & 7]);
        }
        let high = self.high(hash);
        (high != 0).then(|| self.entries[8 + ((high.trailing_zeros() / 8) as usize & 3)])
    }

    /// The first entry whose tag and key match.
    #[inline(always)]
    fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let (mut low, mut high) = (self.low(hash), self.high(hash));
        while low != 0 {
            let way = (low.trailing_zeros() / 8) as usize & 7;
            if self.used >> way & 1 != 0 && is(self.entries[way]) {
                return Some(self.entries[way]);
            }
            low &= low - 1;
        }
        while high != 0 {
            let way = 8 + ((high.trailing_zeros() / 8) as usize & 3);
            if self.used >> way & 1 != 0 && is(self.entries[way]) {
                return Some(self.entries[way]);
            }
            high &= high - 1;
        }
        None
    }

    #[inline(always)]
    fn free_way(&self) -> Option<usize> {
        (self.used != FULL).then_some(self.used.trailing_ones() as usize)
    }

    #[inline(always)]
    fn put(&mut self, way: usize, hash: u64, entry: u32) {
        self.tags[way] = tag(hash);
        self.entries[way] = entry;
        self.used |= 1 << way;
    }

    fn take(&mut self, entry: u32) -> bool {
        let Some(way) = (0..WAYS).find(|way| self.used >> way & 1 != 0 && self.entries[*way] == entry) else {
            return false;
        };
        self.used &= !(1 << way);
        true
    }
}

/// Buckets for so many flows: two entries a flow, seven ways of twelve in use, so that less than one key in a hundred finds
/// its first bucket full and costs a line more. An even number, so that what lies behind them begins
/// at a multiple of two cache lines where they do.
#[must_use]
pub const fn buckets_for(flows: u32) -> usize {
    (flows as usize * 2).div_ceil(7).next_multiple_of(2) + 2
}

/// The two buckets of a hash, among `count`.
#[inline(always)]
const fn places(hash: u64, count: usize) -> (usize, usize) {
    (place(hash, count), place(hash << 32, count))
}

/// The high bits of a number, reduced to 0…count-1.
#[inline(always)]
const fn place(number: u64, count: usize) -> usize {
    ((number as u128 * count as u128) >> 64) as usize
}

/// The first bucket of a hash.
#[inline(always)]
#[must_use]
pub const fn first_place(buckets: &[Bucket], hash: u64) -> usize {
    place(hash, buckets.len())
}

/// The entry that the hash most likely leads to, whose first bucket is `place`: the first with its tag. It may belong to
/// another hash, and even have been removed.
#[inline(always)]
#[must_use]
pub fn candidate(buckets: &[Bucket], place: usize, hash: u64) -> Option<u32> {
    let bucket = &buckets[place];
    match bucket.candidate(hash) {
        Some(entry) => Some(entry),
        None if bucket.spilled == 0 => None,
        None => spilled_candidate(buckets, hash),
    }
}

#[cold]
#[inline(never)]
fn spilled_candidate(buckets: &[Bucket], hash: u64) -> Option<u32> {
    buckets[places(hash, buckets.len()).1].candidate(hash)
}

/// The entry for which `is` holds, among those with the tag of the hash, whose first bucket is `place`.
#[must_use]
pub fn find(buckets: &[Bucket], place: usize, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
    let bucket = &buckets[place];
    match bucket.find(hash, &is) {
        None if bucket.spilled != 0 => buckets[places(hash, buckets.len()).1].find(hash, is),
        found => found,
    }
}

/// Adds an entry to the first bucket of its hash; false if that is full.
#[inline]
#[must_use]
pub fn insert_first(buckets: &mut [Bucket], hash: u64, entry: u32) -> bool {
    let bucket = &mut buckets[first_place(buckets, hash)];
    let Some(way) = bucket.free_way() else { return false };
    bucket.put(way, hash, entry);
    true
}

/// Adds an entry whose first bucket is full; false if there is no way free in its second and none can be made. `hash_of`
/// gives the hash of an entry that is already in.
#[must_use]
pub fn insert_elsewhere(buckets: &mut [Bucket], hash: u64, entry: u32, hash_of: impl Fn(u32) -> u64) -> bool {
    let (first, second) = places(hash, buckets.len());
    if let Some(way) = buckets[second].free_way() {
        buckets[second].put(way, hash, entry);
        buckets[first].spilled += 1;
        return true;
    }
    for full in [first, second] {
        for way in 0..WAYS {
            let resident = buckets[full].entries[way];
            let resident_hash = hash_of(resident);
            let (home, other) = places(resident_hash, buckets.len());
            if home == other {
                continue;
            }
            let goal = if home == full { other } else { home };
            let Some(goal_way) = buckets[goal].free_way() else { continue };
            buckets[goal].put(goal_way, resident_hash, resident);
            if home == full {
                buckets[home].spilled += 1;
            } else {
                buckets[home].spilled -= 1;
            }
            buckets[full].put(way, hash, entry);
            if full != first {
                buckets[first].spilled += 1;
            }
            return true;
        }
    }
    false
}

/// Takes an entry out.
pub fn remove(buckets: &mut [Bucket], hash: u64, entry: u32) {
    let (first, second) = places(hash, buckets.len());
    if !buckets[first].take(entry) && buckets[second].take(entry) {
        buckets[first].spilled -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use zerocopy::FromZeros;

    fn insert(buckets: &mut [Bucket], hash: u64, entry: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        insert_first(buckets, hash, entry) || insert_elsewhere(buckets, hash, entry, hash_of)
    }

    fn hash_of(entry: u32) -> u64 {
        let mut x = u64::from(entry).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 31;
        x.wrapping_mul(0x94d0_49bb_1331_11eb) ^ (x >> 29)
    }

    #[test]
    fn an_index_at_its_design_load_takes_every_entry_and_finds_them_all() {
        let flows = 50_000u32;
        let mut buckets = vec![Bucket::new_zeroed(); buckets_for(flows)];
        for entry in 0..2 * flows {
            assert!(insert(&mut buckets, hash_of(entry), entry, hash_of), "entry {entry}");
        }
        for entry in 0..2 * flows {
            assert_eq!(
                find(&buckets, first_place(&buckets, hash_of(entry)), hash_of(entry), |found| found == entry),
                Some(entry)
            );
        }
    }

    #[test]
    fn churn_agrees_with_a_hash_map() {
        let mut buckets = vec![Bucket::new_zeroed(); 8];
        let mut oracle = HashMap::new();
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let entry = (state >> 33) as u32 % 200;
            if oracle.remove(&entry).is_some() {
                remove(&mut buckets, hash_of(entry), entry);
            } else if insert(&mut buckets, hash_of(entry), entry, hash_of) {
                oracle.insert(entry, ());
            }
            let probe = (state >> 17) as u32 % 200;
            let found = find(&buckets, first_place(&buckets, hash_of(probe)), hash_of(probe), |found| found == probe);
            assert_eq!(found.is_some(), oracle.contains_key(&probe));
        }
        for entry in oracle.keys() {
            remove(&mut buckets, hash_of(*entry), *entry);
        }
        assert!(buckets.iter().all(|bucket| bucket.spilled == 0 && bucket.used == 0));
    }

    #[test]
    fn the_candidate_of_a_lone_entry_is_that_entry_in_either_bucket() {
        let mut buckets = vec![Bucket::new_zeroed(); 64];
        // The first bucket is filled by keys of the same place with other tags.
        let hash = |entry: u32| 7 << 56 | u64::from(entry) | 0xff00;
        for entry in 1..=WAYS as u32 + 1 {
            assert!(insert(&mut buckets, hash(entry), entry, hash));
            assert_eq!(candidate(&buckets, first_place(&buckets, hash(entry)), hash(entry)), Some(entry));
        }
        assert_eq!(buckets.iter().map(|bucket| bucket.spilled).sum::<u16>(), 1);
    }

    #[test]
    fn colliding_keys_fill_two_buckets_and_are_then_refused() {
        let mut buckets = vec![Bucket::new_zeroed(); 64];
        let same = |_| 0x1234_5678_9abc_def0;
        let taken = (0..100).filter(|entry| insert(&mut buckets, same(*entry), *entry, same)).count();
        assert_eq!(taken, 2 * WAYS);
    }
}

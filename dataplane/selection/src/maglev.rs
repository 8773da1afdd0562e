//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, §3.4), with weights.
//!
//! Each backend has its own permutation of the slots, made from its identity alone. The backends take turns; in its
//! turn a backend takes the first slot of its permutation that is still free. A backend of weight w takes w turns while
//! the heaviest, of weight m, takes m. In a round the heavier come first, equal ones in the order of their identities, so
//! the same backends with the same weights always make the same table, whatever the order in which they are listed.
//!
//! Removing one of n equal backends moves its share of new flows, 1/n, and with 65,537 slots between 0 and 1 percentage
//! point more (most around 400 backends). In one group of some 500 it is up to 2 points, where two permutations happen to
//! run alongside each other.

use std::cmp::Reverse;

/// A selection table: slot to backend position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaglevTable {
    slots: Box<[u16]>,
}

/// Why a table cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MaglevError {
    /// The number of slots is no prime of 2…65,537, so a permutation would not visit every slot.
    #[error("{0} slots: the number of slots of a selection table is a prime of 2…65,537")]
    Slots(usize),
    /// More backends than positions can be numbered or slots can be given.
    #[error("{backends} backends do not fit a selection table of {slots} slots")]
    Backends {
        /// Backends given.
        backends: usize,
        /// Slots of the table.
        slots: usize,
    },
    /// No backend has a weight above zero.
    #[error("no backend has a weight above zero")]
    NoWeight,
}

impl MaglevTable {
    /// Version of the way from identities to permutations. Tables are the same only if this is the same.
    pub const VERSION: u32 = 1;
    /// Slots of a group of up to [`MaglevTable::FEW`] targets.
    pub const SLOTS: usize = 16_381;
    /// Slots of a larger group.
    pub const SLOTS_FOR_MANY: usize = 65_537;
    /// Most targets for which [`MaglevTable::SLOTS`] slots divide evenly enough (1 slot in 163).
    pub const FEW: usize = 100;

    /// The number of slots for so many targets, where none is configured.
    #[must_use]
    pub const fn slots_for(targets: usize) -> usize {
        if targets > Self::FEW { Self::SLOTS_FOR_MANY } else { Self::SLOTS }
    }

    /// Builds the table of `backends`, each an identity that is its own for years and a weight. [`Self::lookup`] will
    /// give positions in `backends`. A backend of weight 0 gets no slot.
    ///
    /// The time grows with slots × ln slots, whatever the weights.
    ///
    /// # Errors
    /// When `slots` is no prime up to 65,537, when there are more backends than slots or than 65,535, and when no backend
    /// has a weight.
    pub fn build(backends: &[(u64, u16)], slots: usize) -> Result<Self, MaglevError> {
        if !is_prime(slots) || slots > Self::SLOTS_FOR_MANY {
            return Err(MaglevError::Slots(slots));
        }
        if backends.len() > slots.min(usize::from(u16::MAX)) {
            return Err(MaglevError::Backends { backends: backends.len(), slots });
        }
        let mut order: Vec<u16> = (0..backends.len() as u16).filter(|&at| backends[usize::from(at)].1 > 0).collect();
        order.sort_by_key(|&at| {
            let (identity, weight) = backends[usize::from(at)];
            (Reverse(weight), identity)
        });
        let turns: Vec<Turns> = order
            .into_iter()
            .map(|position| {
                let (identity, weight) = backends[usize::from(position)];
                let (offset, skip) = permutation(identity, slots as u32);
                Turns { position, weight: u32::from(weight), next: offset, skip }
            })
            .collect();
        fill(turns, slots)
    }

    /// Builds the table of backends with given permutations (first slot, step), which take turns in the order given.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn from_permutations(permutations: &[(u32, u32)], slots: usize) -> Result<Self, MaglevError> {
        if !is_prime(slots) || slots > Self::SLOTS_FOR_MANY {
            return Err(MaglevError::Slots(slots));
        }
        if permutations.len() > slots.min(usize::from(u16::MAX)) {
            return Err(MaglevError::Backends { backends: permutations.len(), slots });
        }
        let modulus = slots as u32;
        let turns = permutations.iter().zip(0..).map(|(&(offset, skip), position)| Turns {
            position,
            weight: 1,
            next: offset % modulus,
            skip: (skip % modulus).max(1),
        });
        fill(turns.collect(), slots)
    }

    /// The backend position for a hash.
    #[inline]
    #[must_use]
    pub fn lookup(&self, hash: u64) -> usize {
        // The low half decides first: a choice between groups by the high half of the same hash leaves it free.
        let at = (u128::from(hash.rotate_left(32)) * self.slots.len() as u128) >> 64;
        usize::from(self.slots[at as usize])
    }

    /// The backend position of each slot.
    #[must_use]
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }
}

/// A backend while the table fills.
struct Turns {
    position: u16,
    weight: u32,
    /// The next slot of its permutation.
    next: u32,
    skip: u32,
}

const FREE: u16 = u16::MAX;

/// Fills the table; `backends` stand heaviest first.
fn fill(mut backends: Vec<Turns>, slots: usize) -> Result<MaglevTable, MaglevError> {
    let heaviest = backends.first().ok_or(MaglevError::NoWeight)?.weight;
    // Backends of equal weight have their turns in the same rounds, so one account serves them all: a round costs as much
    // as there are different weights, and there are only many rounds where the different weights are few. It opens with half
    // a turn, so that turns are rounded to the nearest and not down.
    let mut classes: Vec<(u32, &mut [Turns])> =
        backends.chunk_by_mut(|one, next| one.weight == next.weight).map(|class| (heaviest / 2, class)).collect();
    let mut table = vec![FREE; slots].into_boxed_slice();
    let mut free = slots;
    loop {
        for (credit, class) in &mut classes {
            *credit += class[0].weight;
            if *credit < heaviest {
                continue;
            }
            *credit -= heaviest;
            for backend in &mut **class {
                let slot = backend.next_free(&table);
                table[slot] = backend.position;
                free -= 1;
                if free == 0 {
                    return Ok(MaglevTable { slots: table });
                }
            }
        }
    }
}

impl Turns {
    /// The first slot of the permutation that is free.
    ///
    /// One is, and it is found: `skip` and the prime number of slots have no common divisor, so all slots are visited.
    #[inline]
    fn next_free(&mut self, table: &[u16]) -> usize {
        loop {
            let at = self.next as usize;
            self.next += self.skip;
            if self.next as usize >= table.len() {
                self.next -= table.len() as u32;
            }
            if table[at] == FREE {
                return at;
            }
        }
    }
}

/// First slot and step (1…slots−1) of an identity's permutation.
fn permutation(identity: u64, slots: u32) -> (u32, u32) {
    let offset = reduce(mix(identity ^ 0x6f66_6673_6574_2f31), slots);
    let skip = reduce(mix(identity ^ 0x736b_6970_2f31_2f31), slots - 1) + 1;
    (offset, skip)
}

/// The finalizer of SplitMix64 (Steele et al., OOPSLA 2014): every bit of the input moves every bit of the output.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const fn reduce(hash: u64, below: u32) -> u32 {
    ((hash as u128 * below as u128) >> 64) as u32
}

fn is_prime(number: usize) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Identities as a group of targets has them: addresses that follow one another, one port.
    fn equal(count: u64, seed: u64) -> Vec<(u64, u16)> {
        let first = mix(seed) & 0xffff_ffff;
        (0..count).map(|at| ((first + at) << 16 | 443, 1)).collect()
    }

    /// The share of hashes whose backend differs, in percentage points; backends are compared by identity.
    fn moved(before: &[(u64, u16)], after: &[(u64, u16)], slots: usize) -> f64 {
        let [old, new] = [before, after].map(|backends| MaglevTable::build(backends, slots).unwrap());
        let identity = |backends: &[(u64, u16)], position: &u16| backends[usize::from(*position)].0;
        let differs = old.slots().iter().zip(new.slots()).filter(|(b, a)| identity(before, b) != identity(after, a));
        differs.count() as f64 * 100.0 / slots as f64
    }

    /// Of five groups. In one of some 500 two permutations run alongside, and up to two points more than usual move.
    fn middle_and_most(excess: impl Fn(u64) -> f64) -> (f64, f64) {
        let mut five: Vec<f64> = (0..5).map(excess).collect();
        five.sort_by(f64::total_cmp);
        (five[2], five[4])
    }

    #[test]
    fn the_example_of_the_paper_comes_out() {
        let all = MaglevTable::from_permutations(&[(3, 4), (0, 2), (3, 1)], 7).unwrap();
        assert_eq!(all.slots(), [1, 0, 1, 0, 2, 2, 0]);
        let without_the_second = MaglevTable::from_permutations(&[(3, 4), (3, 1)], 7).unwrap();
        assert_eq!(
            without_the_second.slots().iter().map(|&at| [0, 2][usize::from(at)]).collect::<Vec<_>>(),
            [0, 0, 0, 0, 2, 2, 2]
        );
    }

    #[test]
    fn version_1_gives_the_same_table_for_years() {
        let table = MaglevTable::build(&[(10, 1), (20, 2), (30, 1), (40, 0)], 31).unwrap();
        assert_eq!(MaglevTable::VERSION, 1);
        assert_eq!(
            table.slots(),
            [1, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 2, 1, 1, 1, 1, 0, 1, 2, 1, 1, 2, 0, 0, 2, 0, 0, 1, 1, 2, 2]
        );
        let digest = |slots: usize, targets: u64| {
            let table = MaglevTable::build(&equal(targets, 1), slots).unwrap();
            table.slots().iter().fold(0, |digest, &at| mix(digest ^ u64::from(at)))
        };
        assert_eq!(
            [digest(16_381, 10), digest(65_537, 1_000)],
            [11_788_146_743_246_637_922, 1_367_973_124_732_422_885]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn the_order_of_the_list_does_not_matter(
            backends in prop::collection::btree_map(any::<u64>(), 0u16..1000, 1..40),
            order in any::<u64>(),
        ) {
            let listed: Vec<(u64, u16)> = backends.into_iter().collect();
            prop_assume!(listed.iter().any(|backend| backend.1 > 0));
            let mut shuffled = listed.clone();
            shuffled.sort_by_key(|backend| mix(backend.0 ^ order));
            let [one, other] = [&listed, &shuffled].map(|list| MaglevTable::build(list, 1021).unwrap());
            for (a, b) in one.slots().iter().zip(other.slots()) {
                prop_assert_eq!(listed[usize::from(*a)], shuffled[usize::from(*b)]);
            }
        }

        #[test]
        fn each_backend_gets_slots_in_proportion_to_its_weight(
            weights in prop::collection::vec(0u16..1000, 1..60), seed: u64,
        ) {
            let total: u32 = weights.iter().copied().map(u32::from).sum();
            prop_assume!(total > 0);
            let mut backends = equal(weights.len() as u64, seed);
            for (backend, weight) in backends.iter_mut().zip(&weights) {
                backend.1 = *weight;
            }
            let table = MaglevTable::build(&backends, MaglevTable::SLOTS).unwrap();
            for (position, weight) in weights.iter().enumerate() {
                let slots = table.slots().iter().filter(|&&at| usize::from(at) == position).count() as f64;
                let share = f64::from(*weight) * MaglevTable::SLOTS as f64 / f64::from(total);
                // Each has its turns of all rounds, rounded, give or take the last round; what rounding gives to or takes
                // from all others together is shared out by weight.
                let bound = 1.5 + share / MaglevTable::SLOTS as f64 * weights.len() as f64 / 2.0;
                prop_assert!((slots - share).abs() <= bound, "weight {weight}: {slots} slots for a share of {share}");
            }
        }

        #[test]
        fn a_hundred_thousand_flows_spread_evenly(seed: u64) {
            let ten = MaglevTable::build(&equal(10, seed), MaglevTable::SLOTS).unwrap();
            let mut hits = [0u32; 10];
            (0..100_000).for_each(|flow| hits[ten.lookup(mix(mix(seed).wrapping_add(flow)))] += 1);
            prop_assert!(hits.iter().all(|hits| (9_500..=10_500).contains(hits)), "{hits:?}");

            let mut uneven = equal(2, seed);
            (uneven[0].1, uneven[1].1) = (90, 10);
            let uneven = MaglevTable::build(&uneven, MaglevTable::SLOTS).unwrap();
            let first = (0..100_000).filter(|flow| uneven.lookup(mix(mix(seed).wrapping_add(*flow))) == 0).count();
            prop_assert!((89_000..=91_000).contains(&first), "{first}");
        }

        #[test]
        fn adding_or_removing_one_of_n_moves_at_most_its_share_and_a_point(
            seed: u64, targets in prop::sample::select(vec![2u64, 3, 5, 10, 30, 100, 300, 1000]), which: u64,
        ) {
            let excess = |at: u64| {
                let all = equal(targets, mix(seed).wrapping_add(at));
                let mut fewer = all.clone();
                fewer.remove((which % targets) as usize);
                moved(&all, &fewer, MaglevTable::SLOTS_FOR_MANY) - 100.0 / targets as f64
            };
            let (middle, most) = middle_and_most(excess);
            prop_assert!(middle <= 1.0 && most <= 3.0, "one of {targets}: {middle}, at most {most} points");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn with_weights_too_removing_one_moves_little_more_than_its_share(
            weights in prop::collection::vec(1u16..=100, 3..200), seed: u64, which: prop::sample::Index,
        ) {
            let excess = |at: u64| {
                let mut all = equal(weights.len() as u64, mix(seed).wrapping_add(at));
                all.iter_mut().zip(&weights).for_each(|(backend, weight)| backend.1 = *weight);
                let mut fewer = all.clone();
                let removed = fewer.remove(which.index(all.len()));
                let total: u32 = weights.iter().copied().map(u32::from).sum();
                moved(&all, &fewer, MaglevTable::SLOTS_FOR_MANY) - f64::from(removed.1) * 100.0 / f64::from(total)
            };
            let (middle, most) = middle_and_most(excess);
            prop_assert!(middle <= 1.5 && most <= 4.0, "{middle}, at most {most} points");
        }
    }

    #[test]
    fn the_group_that_the_high_bits_choose_does_not_bias_the_target() {
        let table = MaglevTable::build(&equal(2, 7), MaglevTable::SLOTS).unwrap();
        let in_the_lowest_tenth = (0..200_000).map(mix).filter(|hash| *hash < u64::MAX / 10);
        let (mut flows, mut first) = (0, 0);
        in_the_lowest_tenth.for_each(|hash| {
            flows += 1;
            first += usize::from(table.lookup(hash) == 0);
        });
        assert!((45..=55).contains(&(first * 100 / flows)), "{first} of {flows}");
    }

    #[test]
    fn what_cannot_be_a_table_is_refused() {
        assert_eq!(MaglevTable::build(&[(1, 1)], 16_384), Err(MaglevError::Slots(16_384)));
        assert_eq!(MaglevTable::build(&[(1, 1)], 65_539), Err(MaglevError::Slots(65_539)));
        assert_eq!(MaglevTable::build(&[(1, 0)], 7), Err(MaglevError::NoWeight));
        assert_eq!(MaglevTable::build(&[], 7), Err(MaglevError::NoWeight));
        assert_eq!(MaglevTable::build(&equal(8, 0), 7), Err(MaglevError::Backends { backends: 8, slots: 7 }));
    }
}

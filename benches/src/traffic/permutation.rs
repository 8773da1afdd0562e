//! A pseudorandom order of the numbers below a bound, without a table: a Feistel network (Luby and Rackoff 1988) over the
//! next even number of bits, walked until the result is below the bound (Black and Rogaway 2002, "cycle walking"). Each number
//! comes exactly once, and the same seed gives the same order.

/// Rounds; with four a Feistel network looks random, and generators need no more.
const ROUNDS: u64 = 4;

/// A permutation of `0..bound`.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    bound: u64,
    half: u32,
    seed: u64,
}

impl Permutation {
    /// The permutation of `0..bound` that belongs to a seed. `bound` is 1…2⁴⁸.
    #[must_use]
    pub const fn new(bound: u64, seed: u64) -> Self {
        let bits = u64::BITS - bound.saturating_sub(1).leading_zeros();
        let half = bits.div_ceil(2);
        Self { bound, half: if half == 0 { 1 } else { half }, seed }
    }

    /// The number at a place of the order, below the bound as `place` is.
    #[must_use]
    pub fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.bound, "{place} is not below {}", self.bound);
        let mut number = place;
        loop {
            number = self.network(number);
            // The network permutes at most four times the bound's numbers, so this ends soon.
            if number < self.bound {
                return number;
            }
        }
    }

    fn network(&self, number: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..ROUNDS {
            (left, right) =
                (right, left ^ (mix(right ^ self.seed.rotate_left(16 * round as u32) ^ round << 56) & mask));
        }
        left << self.half | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
const fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once_and_a_seed_gives_its_own_order() {
        for bound in [1, 2, 3, 17, 256, 1000, 65_537] {
            let order = |seed| (0..bound).map(|place| Permutation::new(bound, seed).at(place)).collect::<Vec<_>>();
            let mut sorted = order(1);
            assert_eq!(sorted, order(1));
            sorted.sort_unstable();
            assert_eq!(sorted, (0..bound).collect::<Vec<_>>());
        }
        let order = |seed| (0..100).map(|place| Permutation::new(1000, seed).at(place)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn neighbours_in_the_order_are_far_apart() {
        let permutation = Permutation::new(1 << 24, 7);
        let near = (1..10_000u64).filter(|place| permutation.at(*place).abs_diff(permutation.at(place - 1)) < 1 << 14);
        assert!(near.count() < 40);
    }
}

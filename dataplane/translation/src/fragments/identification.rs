//! Identifications of fragmented datagrams that leave the gateway (RFC 791 §3.2, RFC 6864 §5.3: who rewrites addresses
//! answers for the identification as if it were the source).

/// Counters that pairs of addresses share.
const COUNTERS: usize = 2048;

/// Counters of identifications, by source, destination and protocol as they leave. Pairs that share a counter get distinct
/// values all the same, only sooner all of them. Every worker has its own part of the numbers, so that two workers never give
/// the same.
#[derive(Debug)]
pub struct Identifications {
    counters: Box<[u32]>,
    secret: [u64; 2],
    worker: u32,
    workers: u32,
}

impl Identifications {
    /// Those of one of `workers` workers. Where a count begins is as secret as `secret` (RFC 7739).
    #[must_use]
    pub fn new(worker: u16, workers: u16, secret: [u64; 2]) -> Self {
        let begin = |at: usize| (mix(secret[0] ^ at as u64, secret[1]) >> 32) as u32;
        let workers = u32::from(workers.max(1));
        Self {
            counters: (0..COUNTERS).map(begin).collect(),
            secret,
            worker: u32::from(worker).min(workers - 1),
            workers,
        }
    }

    /// The next identification of an IPv4 datagram from `source` to `destination`: not given again before 65,536 divided by
    /// the number of workers others were.
    pub fn next(&mut self, source: u128, destination: u128, protocol: u8) -> u16 {
        let count = self.count(source, destination, protocol) % (0x1_0000 / self.workers).max(1);
        (count * self.workers + self.worker) as u16
    }

    /// The same for IPv6, with 32 bits.
    pub fn next_wide(&mut self, source: u128, destination: u128, protocol: u8) -> u32 {
        let count = self.count(source, destination, protocol) % (u32::MAX / self.workers);
        count * self.workers + self.worker
    }

    fn count(&mut self, source: u128, destination: u128, protocol: u8) -> u32 {
        let [first, second] = self.secret;
        let source = mix(source as u64 ^ first, (source >> 64) as u64 ^ second);
        let both = mix(destination as u64 ^ source, (destination >> 64) as u64 ^ second.rotate_left(17));
        let place = mix(both ^ u64::from(protocol), first.rotate_left(29)) as usize % COUNTERS;
        let count = self.counters[place];
        self.counters[place] = count.wrapping_add(1);
        count
    }
}

/// A folded multiplication.
const fn mix(a: u64, b: u64) -> u64 {
    let product = (a ^ 0x9e37_79b9_7f4a_7c15) as u128 * ((b | 1) ^ 0xd6e8_feb8_6659_fd92) as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_identification_comes_again_among_all_workers_before_the_numbers_are_used_up() {
        for workers in [1, 2, 3, 7] {
            let mut seen = HashSet::new();
            for worker in 0..workers {
                let mut identifications = Identifications::new(worker, workers, [5, 6]);
                for _ in 0..65_536 / u32::from(workers) {
                    assert!(seen.insert(identifications.next(1, 2, 17)), "worker {worker} of {workers}");
                }
            }
            assert!(seen.len() > 65_536 - usize::from(workers));
        }
    }

    #[test]
    fn wide_identifications_of_two_workers_differ_and_where_they_begin_is_secret() {
        let take = |worker, secret| {
            let mut identifications = Identifications::new(worker, 2, secret);
            (0..1000).map(|_| identifications.next_wide(1, 2, 17)).collect::<HashSet<_>>()
        };
        assert!(take(0, [5, 6]).is_disjoint(&take(1, [5, 6])));
        assert_ne!(take(0, [5, 6]), take(0, [5, 7]));
    }
}

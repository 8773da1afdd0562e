//! Drops by endpoint and reason together, in a table of bounded size: dense counters of every pair would cost every
//! endpoint the memory of every reason.

use std::sync::atomic::{AtomicU64, Ordering};

use postern_measurement::Counter;

use crate::verdict::DropReason;

/// Pairs that one worker tells apart.
const PAIRS: usize = 1024;
/// Places looked at for one pair.
const PROBES: usize = 16;

/// Counts of (endpoint, reason). One thread writes, any thread reads.
#[derive(Debug)]
pub struct DropPairs {
    /// Endpoint index and reason plus one; 0 where free. A key never changes once it is set.
    keys: Box<[AtomicU64]>,
    counts: Box<[Counter]>,
    /// Drops of pairs for which there was no room.
    pub others: Counter,
}

impl Default for DropPairs {
    fn default() -> Self {
        Self {
            keys: (0..PAIRS).map(|_| AtomicU64::new(0)).collect(),
            counts: (0..PAIRS).map(|_| Counter::default()).collect(),
            others: Counter::default(),
        }
    }
}

impl DropPairs {
    /// Counts one drop. Only the owning thread may call this.
    pub fn add(&self, endpoint: u32, reason: DropReason) {
        let key = u64::from(endpoint) << 8 | (reason as u64 + 1);
        let start = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        for at in (start..start + PROBES).map(|at| at % PAIRS) {
            match self.keys[at].load(Ordering::Relaxed) {
                found if found == key => return self.counts[at].add(1),
                0 => {
                    self.counts[at].add(1);
                    self.keys[at].store(key, Ordering::Release);
                    return;
                }
                _ => {}
            }
        }
        self.others.add(1);
    }

    /// Every pair that was counted: endpoint index, reason, drops.
    pub fn iter(&self) -> impl Iterator<Item = (u32, DropReason, u64)> + '_ {
        self.keys.iter().zip(&self.counts).filter_map(|(key, count)| {
            let key = key.load(Ordering::Acquire);
            let reason = DropReason::ALL.get(usize::try_from(key & 0xff).ok()?.checked_sub(1)?)?;
            Some(((key >> 8) as u32, *reason, count.get()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_told_apart_and_what_finds_no_room_is_counted_together() {
        let pairs = DropPairs::default();
        for _ in 0..3 {
            pairs.add(7, DropReason::NoListener);
        }
        pairs.add(7, DropReason::TooBig);
        pairs.add(8, DropReason::NoListener);
        let mut found: Vec<_> = pairs.iter().collect();
        found.sort_unstable();
        assert_eq!(found, [(7, DropReason::NoListener, 3), (7, DropReason::TooBig, 1), (8, DropReason::NoListener, 1)]);
        for endpoint in 0..10_000 {
            pairs.add(endpoint, DropReason::NoFlow);
        }
        let told: u64 = pairs.iter().map(|(_, _, drops)| drops).sum();
        assert_eq!(told + pairs.others.get(), 10_005);
        assert!(told > 900);
    }
}

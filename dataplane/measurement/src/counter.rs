//! Counters with one writer: plain loads and stores, no locked instruction, readable from another thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that exactly one thread writes. Readers see each value whole, and never a value going back.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the owning thread may call this: two writers would lose counts (but nothing worse).
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Takes `amount` away; for gauges such as live flows. Saturates at zero.
    #[inline]
    pub fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_sub(amount), Ordering::Relaxed);
    }

    /// Replaces the value; for gauges.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_does_not_wrap_below_zero() {
        let gauge = Counter::default();
        gauge.add(2);
        gauge.subtract(3);
        assert_eq!(gauge.get(), 0);
    }
}

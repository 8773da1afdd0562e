//! A token bucket in integers: bounds the frames of our own making that strangers can cause.

use postern_measurement::Now;

/// A bucket that fills at `per_second` tokens a second up to `burst`.
#[derive(Debug, Clone)]
pub(crate) struct TokenBucket {
    per_second: u64,
    /// In thousandths of a token, so that every millisecond counts.
    most: u64,
    level: u64,
    filled: Now,
}

impl TokenBucket {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let most = u64::from(burst) * 1000;
        Self { per_second: u64::from(per_second), most, level: most, filled: Now::default() }
    }

    /// Takes one token; false if there is none.
    pub(crate) fn take(&mut self, now: Now) -> bool {
        let elapsed = now.milliseconds().saturating_sub(self.filled.milliseconds());
        self.level = self.level.saturating_add(elapsed.saturating_mul(self.per_second)).min(self.most);
        self.filled = now;
        let enough = self.level >= 1000;
        if enough {
            self.level -= 1000;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = TokenBucket::new(10, 3);
        let now = Now::from_milliseconds(5000);
        assert_eq!((0..10).filter(|_| bucket.take(now)).count(), 3);
        assert!(!bucket.take(now.plus_milliseconds(99)));
        assert!(bucket.take(now.plus_milliseconds(100)));
        let later = now.plus_milliseconds(1_000_000);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 3);
    }
}

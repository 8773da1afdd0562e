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

/// Endpoints that are told apart; those that share a place share its rate.
const SHARES: usize = 256;

/// What all may send together, of which nobody gets more than half: who makes a gateway answer a flood leaves room for others.
#[derive(Debug, Clone)]
pub(crate) struct FairLimiter {
    all: TokenBucket,
    shares: Box<[TokenBucket]>,
}

impl FairLimiter {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let share = TokenBucket::new(per_second / 2, burst / 2);
        Self { all: TokenBucket::new(per_second, burst), shares: vec![share; SHARES].into_boxed_slice() }
    }

    /// Takes one token on behalf of `who`, a local address in whichever form; false if there is none for it.
    pub(crate) fn take(&mut self, who: u64, now: Now) -> bool {
        // The high bits of a product depend on all bits of the factors.
        let place = (who.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % SHARES;
        self.shares[place].take(now) && self.all.take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_half_of_what_there_is_for_all() {
        let mut limiter = FairLimiter::new(1000, 200);
        let mut now = Now::from_milliseconds(5000);
        let mut taken = [0; 2];
        for _ in 0..1000 {
            now = now.plus_milliseconds(1);
            taken[0] += (0..100).filter(|_| limiter.take(1, now)).count();
            taken[1] += usize::from(now.milliseconds().is_multiple_of(10) && limiter.take(2, now));
        }
        assert!((500..=600).contains(&taken[0]), "{taken:?}");
        assert_eq!(taken[1], 100, "the other is answered each time");
    }

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

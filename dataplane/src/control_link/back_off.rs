//! When to connect again: exponential back-off with full jitter, so that a thousand gateways that lost control in one moment
//! do not come back in one moment.

use std::time::Duration;

/// Upper bound of the first pause.
const FIRST: Duration = Duration::from_millis(100);
/// Upper bound of every pause after a broken connection.
const LONGEST: Duration = Duration::from_secs(30);
/// Pause after control said no, half to one and a half times: somebody must change something first.
const REFUSED: Duration = Duration::from_secs(30);

/// Pauses between connections.
#[derive(Debug)]
pub struct BackOff {
    failures: u32,
    random: u64,
}

impl BackOff {
    /// No failure yet; `seed` should differ from gateway to gateway.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { failures: 0, random: seed }
    }

    /// The pause after a connection that failed or broke: anything from nothing to 100 ms, the bound doubled with each
    /// failure in a row up to 30 s.
    pub fn failed(&mut self) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.up_to(bound)
    }

    /// The pause after control refused this gateway: 15 to 45 s.
    pub fn refused(&mut self) -> Duration {
        REFUSED / 2 + self.up_to(REFUSED)
    }

    /// A connection was good: the next failure is the first.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Evenly from 0 to `bound`.
    fn up_to(&mut self, bound: Duration) -> Duration {
        // SplitMix64 (Steele, Lea, Flood 2014): no secret, only a spread.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let nanoseconds = (u128::from(mixed) * bound.as_nanos()) >> 64;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_from_nothing_to_a_bound_that_doubles_to_thirty_seconds() {
        let mut longest = [Duration::ZERO; 12];
        let mut sum = [Duration::ZERO; 12];
        for seed in 0..1000 {
            let mut back_off = BackOff::new(seed);
            for (longest, sum) in longest.iter_mut().zip(&mut sum) {
                let pause = back_off.failed();
                *longest = pause.max(*longest);
                *sum += pause;
            }
        }
        for (failure, (longest, sum)) in longest.into_iter().zip(sum).enumerate() {
            let bound = FIRST.saturating_mul(1 << failure).min(LONGEST);
            assert!(longest <= bound && longest > bound.mul_f64(0.95), "{failure}: {longest:?} of {bound:?}");
            let mean = (sum / 1000).as_secs_f64() / bound.as_secs_f64();
            assert!((0.45..0.55).contains(&mean), "{failure}: {mean}");
        }
    }

    #[test]
    fn a_good_connection_starts_anew_and_a_refusal_is_retried_slowly() {
        let mut back_off = BackOff::new(7);
        for _ in 0..100 {
            assert!(back_off.failed() <= LONGEST);
        }
        back_off.succeeded();
        assert!(back_off.failed() <= FIRST);
        for _ in 0..100 {
            let pause = back_off.refused();
            assert!(pause >= Duration::from_secs(15) && pause <= Duration::from_secs(45), "{pause:?}");
        }
    }
}

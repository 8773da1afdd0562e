//! What a worker does when there is nothing to do.

use std::time::Duration;

pub use postern_tables::declaration::Polling;

/// Longest spin of an adaptive worker without a frame.
pub const LONGEST_SPIN: Duration = Duration::from_micros(300);
/// Shortest spin of an adaptive worker without a frame.
pub const SHORTEST_SPIN: Duration = Duration::from_micros(20);

/// A yield that lasted longer than this let another thread run.
const CONTENDED: Duration = Duration::from_micros(5);
/// Sleeps for which a worker whose core another thread wanted keeps to the shortest spin.
const CAUTIOUS_SLEEPS: u8 = 64;

/// What to do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Look again at once.
    Spin,
    /// Let another thread run, then look again.
    Yield,
    /// Sleep in the kernel.
    Sleep,
}

/// Decides between spinning and sleeping. An adaptive worker spins as long as the last sleeps were worth avoiding: a
/// sleep shorter than [`LONGEST_SPIN`] doubles the next spin, a longer one halves it. It yields while it spins, and when
/// that shows that another thread wants the core (whoever is to send the next frame, perhaps), it soon sleeps instead.
#[derive(Clone, Copy, Debug)]
pub struct IdlePolicy {
    polling: Polling,
    spin: Duration,
    cautious: u8,
}

impl IdlePolicy {
    /// As configured.
    #[must_use]
    pub const fn new(polling: Polling) -> Self {
        Self { polling, spin: SHORTEST_SPIN, cautious: 0 }
    }

    /// What to do when nothing has come for `idle`.
    #[must_use]
    pub fn idle(&self, idle: Duration) -> Idle {
        match self.polling {
            Polling::Spin => Idle::Spin,
            Polling::Adaptive if idle < self.spin => Idle::Yield,
            Polling::Adaptive | Polling::Sleep => Idle::Sleep,
        }
    }

    /// A yield took so long.
    pub fn yielded(&mut self, length: Duration) {
        if length > CONTENDED {
            self.spin = SHORTEST_SPIN;
            self.cautious = CAUTIOUS_SLEEPS;
        }
    }

    /// A frame ended a sleep of this length.
    pub fn slept(&mut self, length: Duration) {
        if self.cautious > 0 {
            self.cautious -= 1;
            return;
        }
        self.spin = if length < LONGEST_SPIN { self.spin * 2 } else { self.spin / 2 };
        self.spin = self.spin.clamp(SHORTEST_SPIN, LONGEST_SPIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(50);

    fn busy() -> IdlePolicy {
        let mut policy = IdlePolicy::new(Polling::Adaptive);
        for _ in 0..10 {
            policy.slept(SHORT);
        }
        policy
    }

    #[test]
    fn an_adaptive_worker_spins_longer_under_traffic_and_soon_sleeps_without() {
        assert_eq!(IdlePolicy::new(Polling::Adaptive).idle(Duration::from_micros(100)), Idle::Sleep);
        let mut policy = busy();
        assert_eq!(policy.idle(Duration::from_micros(299)), Idle::Yield);
        assert_eq!(policy.idle(LONGEST_SPIN), Idle::Sleep);
        for _ in 0..10 {
            policy.slept(Duration::from_millis(5));
        }
        assert_eq!(policy.idle(SHORTEST_SPIN), Idle::Sleep);
    }

    #[test]
    fn a_worker_whose_core_another_thread_wants_sleeps_soon_until_that_has_passed() {
        let mut policy = busy();
        policy.yielded(Duration::from_micros(1));
        assert_eq!(policy.idle(SHORTEST_SPIN), Idle::Yield);
        policy.yielded(Duration::from_micros(200));
        for _ in 0..CAUTIOUS_SLEEPS {
            assert_eq!(policy.idle(SHORTEST_SPIN), Idle::Sleep);
            policy.slept(SHORT);
        }
        policy.slept(SHORT);
        assert_eq!(policy.idle(SHORTEST_SPIN), Idle::Yield);
    }

    #[test]
    fn a_spinning_worker_never_sleeps_and_a_sleeping_one_never_spins() {
        assert_eq!(IdlePolicy::new(Polling::Spin).idle(Duration::from_secs(9)), Idle::Spin);
        assert_eq!(IdlePolicy::new(Polling::Sleep).idle(Duration::ZERO), Idle::Sleep);
    }
}

//! What a worker does when there is nothing to do.

use std::time::Duration;

pub use postern_tables::declaration::Polling;

/// Longest spin of an adaptive worker without a frame.
pub const LONGEST_SPIN: Duration = Duration::from_micros(300);
/// Shortest spin of an adaptive worker without a frame.
pub const SHORTEST_SPIN: Duration = Duration::from_micros(20);

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
/// sleep shorter than [`LONGEST_SPIN`] doubles the next spin, a longer one halves it.
#[derive(Clone, Copy, Debug)]
pub struct IdlePolicy {
    polling: Polling,
    spin: Duration,
    shared_cores: bool,
}

impl IdlePolicy {
    /// `shared_cores`: there are not more cores than workers, so that whoever is to answer may wait for this core.
    #[must_use]
    pub const fn new(polling: Polling, shared_cores: bool) -> Self {
        Self { polling, spin: SHORTEST_SPIN, shared_cores }
    }

    /// What to do when nothing has come for `idle`.
    #[must_use]
    pub fn idle(&self, idle: Duration) -> Idle {
        match self.polling {
            Polling::Spin => Idle::Spin,
            Polling::Adaptive if idle < self.spin => {
                if self.shared_cores {
                    Idle::Yield
                } else {
                    Idle::Spin
                }
            }
            Polling::Adaptive | Polling::Sleep => Idle::Sleep,
        }
    }

    /// A frame ended a sleep of this length.
    pub fn slept(&mut self, length: Duration) {
        self.spin = if length < LONGEST_SPIN { self.spin * 2 } else { self.spin / 2 };
        self.spin = self.spin.clamp(SHORTEST_SPIN, LONGEST_SPIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adaptive_worker_spins_longer_under_traffic_and_soon_sleeps_without() {
        let mut policy = IdlePolicy::new(Polling::Adaptive, false);
        assert_eq!(policy.idle(Duration::from_micros(100)), Idle::Sleep);
        for _ in 0..10 {
            policy.slept(Duration::from_micros(50));
        }
        assert_eq!(policy.idle(Duration::from_micros(299)), Idle::Spin);
        assert_eq!(policy.idle(LONGEST_SPIN), Idle::Sleep);
        for _ in 0..10 {
            policy.slept(Duration::from_millis(5));
        }
        assert_eq!(policy.idle(SHORTEST_SPIN), Idle::Sleep);
    }

    #[test]
    fn a_worker_that_shares_its_core_lets_others_run_and_a_spinning_one_never_sleeps() {
        assert_eq!(IdlePolicy::new(Polling::Adaptive, true).idle(Duration::ZERO), Idle::Yield);
        assert_eq!(IdlePolicy::new(Polling::Spin, false).idle(Duration::from_secs(9)), Idle::Spin);
        assert_eq!(IdlePolicy::new(Polling::Sleep, false).idle(Duration::ZERO), Idle::Sleep);
    }
}

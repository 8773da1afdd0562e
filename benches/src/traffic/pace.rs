//! When frames are due: an absolute schedule, so that a late frame makes no other late, and the mean rate is exact.

use serde::Serialize;

use super::histogram::{Histogram, Quantiles};

/// How many frames a generator that was held up sends at once at most before its trial counts as disturbed: what comes in a
/// burst tests the device's buffers, not its rate.
const BURST: f64 = 1024.0;
/// How much less than asked for may be sent.
const SHORT: f64 = 0.01;

/// How many nanoseconds a generator may be late at the end in any case until it gives up.
const GRACE: u64 = 100_000_000;

/// How fast frames are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// So many frames a second.
    Paced(f64),
    /// As fast as the sender can.
    FlatOut,
}

/// The schedule of one run.
#[derive(Debug)]
pub struct Schedule {
    rate: Rate,
    frames: u64,
    lateness: Histogram,
}

/// How well the generator kept its schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pace {
    /// Frames a second that were asked for; `None` for flat out.
    pub intended: Option<f64>,
    /// Frames a second that were sent.
    pub achieved: f64,
    /// How late the bursts left in microseconds, by the first frame of each; `None` for flat out.
    pub lateness: Option<Quantiles>,
    /// Frames that the kernel or the NIC did not take.
    pub refused: u64,
    /// Whether all frames were sent in time, to within a hundredth. Flat out they always are.
    pub in_time: bool,
    /// Whether besides no more than 1,024 of them came at once because the generator had been held up.
    pub kept: bool,
}

impl Schedule {
    /// So many frames at a rate.
    #[must_use]
    pub fn new(rate: Rate, frames: u64) -> Self {
        Self { rate, frames, lateness: Histogram::default() }
    }

    /// How many frames are to have been sent `elapsed` nanoseconds after the start.
    #[must_use]
    pub fn due(&self, elapsed: u64) -> u64 {
        match self.rate {
            Rate::FlatOut => self.frames,
            // The first is due at once.
            Rate::Paced(rate) => ((elapsed as f64 * rate / 1e9) as u64 + 1).min(self.frames),
        }
    }

    /// When a frame is due, in nanoseconds after the start.
    #[must_use]
    pub fn at(&self, frame: u64) -> u64 {
        match self.rate {
            Rate::FlatOut => 0,
            Rate::Paced(rate) => (frame as f64 * 1e9 / rate) as u64,
        }
    }

    /// Whether the last frame was due so long ago that it is no use to send the rest: what the generator can send is known.
    #[must_use]
    pub fn is_hopeless(&self, elapsed: u64) -> bool {
        self.rate != Rate::FlatOut && elapsed > self.at(self.frames) * 5 / 4 + GRACE
    }

    /// Notes that a burst that begins with `frame` leaves `elapsed` nanoseconds after the start.
    pub fn leaves(&mut self, frame: u64, elapsed: u64) {
        if self.rate != Rate::FlatOut {
            self.lateness.record(elapsed.saturating_sub(self.at(frame)));
        }
    }

    /// How well it was kept: `sent` frames were taken and `refused` were not until `elapsed` nanoseconds after the start. These
    /// may be fewer than there should have been: a run can be interrupted.
    #[must_use]
    pub fn pace(&self, sent: u64, refused: u64, elapsed: u64) -> Pace {
        let frames = (sent + refused) as f64;
        let seconds = elapsed.max(1) as f64 / 1e9;
        let (intended, in_time, even) = match self.rate {
            Rate::FlatOut => (None, true, true),
            Rate::Paced(rate) => {
                // The last frame is due one interval before the end.
                let planned = frames / rate;
                let in_time = seconds <= planned * (1.0 + SHORT) + BURST / rate;
                let backlog = self.lateness.max() as f64 / 1e9 * rate;
                (Some(rate), in_time && refused as f64 <= sent as f64 * SHORT, backlog <= BURST)
            }
        };
        let planned = intended.map_or(seconds, |rate| f64::max(seconds, frames / rate));
        Pace {
            intended,
            achieved: sent as f64 / planned,
            lateness: self.lateness.quantiles(),
            refused,
            in_time,
            kept: in_time && even,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_due_at_exact_times_however_late_others_were() {
        let mut schedule = Schedule::new(Rate::Paced(1_000.0), 10);
        assert_eq!([0, 999_999, 1_000_000, 4_500_000, 1 << 40].map(|at| schedule.due(at)), [1, 1, 2, 5, 10]);
        assert_eq!((schedule.at(0), schedule.at(7)), (0, 7_000_000));
        schedule.leaves(2, 2_000_000);
        schedule.leaves(3, 3_500_000);
        let pace = schedule.pace(10, 0, 9_000_000);
        assert!(pace.kept && pace.achieved == 1_000.0, "{pace:?}");
        assert_eq!(pace.lateness.unwrap().max, 500.0);
    }

    #[test]
    fn a_generator_that_was_late_for_many_frames_or_sent_too_few_has_not_kept_its_pace() {
        let rate = Rate::Paced(1e6);
        let mut held_up = Schedule::new(rate, 1_000_000);
        held_up.leaves(10, 10_000 + 2_000_000);
        let pace = held_up.pace(1_000_000, 0, 1_000_000_000);
        assert!(pace.in_time && !pace.kept, "{pace:?}");
        let schedule = Schedule::new(rate, 1_000_000);
        assert!(schedule.pace(1_000_000, 0, 1_000_000_000).kept);
        assert!(!schedule.pace(1_000_000, 0, 1_100_000_000).in_time);
        assert!(!schedule.pace(900_000, 100_000, 1_000_000_000).in_time);
        assert!(!schedule.is_hopeless(1_340_000_000) && schedule.is_hopeless(1_360_000_000));
        assert!(!Schedule::new(Rate::FlatOut, 10).is_hopeless(u64::MAX));
        // Interrupted in the middle.
        let half = schedule.pace(500_000, 0, 500_000_000);
        assert!(half.kept && half.achieved == 1e6, "{half:?}");
        assert!(Schedule::new(Rate::FlatOut, 10).pace(10, 0, 5_000).kept);
    }
}

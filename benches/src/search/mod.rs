//! Searches for the rate that a device can forward. They know nothing of packets: a trial is a function from an intended
//! load and a duration to counts, so that they are tested against devices that are simulated.
//!
//! A generator that does not keep its pace says nothing about the device. Such a trial is repeated, and if it stays so the
//! generator's own rate is the highest load that is tried: what is found then is called *generator-bound*.

pub mod mlr;
pub mod rate;

#[cfg(test)]
mod simulated;

use std::time::Duration;

use serde::Serialize;

/// What became of the frames of one trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Frames a second that were asked for.
    pub load: f64,
    /// Seconds for which frames were sent.
    pub seconds: f64,
    /// Frames that the generator sent.
    pub sent: u64,
    /// Of these, those that arrived, each once.
    pub received: u64,
    /// Whether the generator kept its pace. If not, the counts hold for another load, or for bursts.
    pub paced: bool,
}

impl Trial {
    /// The share of the sent frames that did not arrive, 0…1; 1 if nothing was sent.
    #[must_use]
    pub fn loss_ratio(&self) -> f64 {
        if self.sent == 0 { 1.0 } else { self.sent.saturating_sub(self.received) as f64 / self.sent as f64 }
    }

    /// Frames a second that were sent.
    #[must_use]
    pub fn offered(&self) -> f64 {
        self.sent as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Frames a second that arrived.
    #[must_use]
    pub fn forwarded(&self) -> f64 {
        self.received as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// Between which loads to search, in frames a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// Less is not tried.
    pub lowest: f64,
    /// More is not tried.
    pub highest: f64,
}

/// How often a trial is repeated in which the generator did not keep its pace.
pub const PATIENCE: usize = 3;

/// Runs a trial, again as long as the generator does not keep its pace and there is patience. All trials go to `trials`; the
/// last is returned.
fn patient<E>(
    load: f64,
    duration: Duration,
    trials: &mut Vec<Trial>,
    measure: &mut impl FnMut(f64, Duration) -> Result<Trial, E>,
) -> Result<Trial, E> {
    let mut tries = 0;
    loop {
        let trial = measure(load, duration)?;
        trials.push(trial);
        tries += 1;
        // What cannot keep half of its pace will not keep the whole at the next try.
        if trial.paced || tries == PATIENCE || trial.offered() < load / 2.0 {
            return Ok(trial);
        }
    }
}

/// The load at which a generator that did not keep its pace may do so: a little less than the most that it sent.
fn slower(trials: &[Trial], load: f64) -> f64 {
    let most = trials.iter().filter(|trial| trial.load == load).map(Trial::offered).fold(0.0, f64::max);
    f64::min(most * 0.95, load * 0.9)
}

//! A device and a generator in memory, for the tests of searches.

use std::convert::Infallible;
use std::time::Duration;

use super::Trial;

/// Forwards up to a limit and drops what is more.
pub(crate) struct Device {
    /// Frames a second.
    pub(crate) limit: f64,
    /// By which share, at most, the limit is another in each trial.
    pub(crate) noise: f64,
    /// The share of the frames that is lost at any load.
    pub(crate) constant_loss: f64,
    /// Frames a second that the generator can send.
    pub(crate) generator: f64,
    /// The share of trials that lose one in a hundred frames for a reason that has nothing to do with the load.
    pub(crate) accidents: f64,
    pub(crate) random: u64,
}

impl Device {
    pub(crate) const fn with_limit(limit: f64) -> Self {
        Self {
            limit,
            noise: 0.0,
            constant_loss: 0.0,
            generator: f64::INFINITY,
            accidents: 0.0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// 0…1, xorshift64 (Marsaglia 2003).
    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn measure(&mut self, load: f64, duration: Duration) -> Result<Trial, Infallible> {
        let seconds = duration.as_secs_f64();
        let offered = load.min(self.generator);
        let limit = self.limit * (1.0 + self.noise * (2.0 * self.random() - 1.0));
        let mut passed = offered.min(limit) * (1.0 - self.constant_loss);
        if self.random() < self.accidents {
            passed *= 0.99;
        }
        let sent = (offered * seconds).round() as u64;
        let received = ((passed * seconds).round() as u64).min(sent);
        Ok(Trial { load, seconds, sent, received, paced: offered >= load * 0.99 })
    }
}

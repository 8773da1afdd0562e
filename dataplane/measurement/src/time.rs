//! Coarse monotonic time. The worker reads the clock once a burst and passes [`Now`] in.

use std::time::Instant;

/// Milliseconds since the clock was made. Flow records keep the low 32 bits, which wrap after 49 days; differences up
/// to 24 days are told right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now(u64);

impl Now {
    /// A point in time, in milliseconds.
    #[must_use]
    pub const fn from_milliseconds(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since the clock was made.
    #[must_use]
    pub const fn milliseconds(self) -> u64 {
        self.0
    }

    /// The low 32 bits of the milliseconds.
    #[inline]
    #[must_use]
    pub const fn tick(self) -> u32 {
        self.0 as u32
    }

    /// Whole seconds since the clock was made.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// The time `milliseconds` later.
    #[must_use]
    pub const fn plus_milliseconds(self, milliseconds: u64) -> Self {
        Self(self.0 + milliseconds)
    }
}

/// The source of [`Now`]: the monotonic clock, counted from when this was made. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at one second, so that nothing is ever younger than its own age.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Reads the clock.
    #[must_use]
    pub fn now(&self) -> Now {
        Now(1000 + u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

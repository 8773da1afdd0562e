//! What is said of those who got no stream. Strangers can be many: no more lines than a person reads.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines at once, and how often one more may be said.
const LINES: u32 = 20;
const ANOTHER: Duration = Duration::from_secs(10);

/// Says why somebody is refused.
#[derive(Debug)]
pub(super) struct Refusals {
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    /// How many may be said now.
    left: u32,
    since: Instant,
    unsaid: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { lines: Mutex::new(Lines { left: LINES, since: Instant::now(), unsaid: 0 }) }
    }
}

impl Refusals {
    /// Writes a line about a refusal, if there is room for one.
    pub(super) fn say(&self, text: &str) {
        match self.lines.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            None => {}
            Some(0) => tracing::warn!("{text}"),
            Some(unsaid) => tracing::warn!("{text} ({unsaid} more refusals were not written down)"),
        }
    }
}

impl Lines {
    /// How many went unsaid since the last line, if there may be one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let ticks = now.saturating_duration_since(self.since).as_nanos() / ANOTHER.as_nanos();
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        if ticks > 0 {
            self.left = self.left.saturating_add(ticks).min(LINES);
            self.since = now;
        }
        if self.left == 0 {
            self.unsaid += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_a_few_lines_and_a_number() {
        let since = Instant::now();
        let mut lines = Lines { left: LINES, since, unsaid: 0 };
        let said = (0..100_000).filter(|_| lines.take(since).is_some()).count();
        assert_eq!(said, LINES as usize);
        assert_eq!(lines.take(since + ANOTHER), Some(100_000 - u64::from(LINES)));
        assert_eq!(lines.take(since + ANOTHER), None);
        let later = since + 1000 * ANOTHER;
        assert_eq!((0..100).filter(|_| lines.take(later).is_some()).count(), LINES as usize);
    }
}

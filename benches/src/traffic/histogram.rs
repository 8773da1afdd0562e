//! Latencies in a log-linear histogram: each power of two is cut into 64 equal parts, so that a value is known to within
//! 1/64 of itself, from a nanosecond to a minute and more, in 18 KB that never grow.

use serde::Serialize;

/// Bits of the value that are kept below its highest one.
const BITS: u32 = 6;
const PARTS: usize = 1 << BITS;
/// Powers of two that are told apart; larger values are in the last.
const POWERS: usize = 36;

/// How often which value came.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u64; (POWERS + 1) * PARTS]>,
    total: u64,
    largest: u64,
}

/// Latencies of a trial in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Values.
    pub count: u64,
    /// Half of the values are not above it.
    pub p50: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
    /// 999 of 1,000 are not above it.
    pub p999: f64,
    /// The largest, exactly.
    pub max: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; (POWERS + 1) * PARTS]), total: 0, largest: 0 }
    }
}

/// The cell of a value: values below 64 have one each, then 64 for each power of two.
fn cell(value: u64) -> usize {
    let power = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    let part = (value >> power) as usize;
    // Within a power the highest bit is set, so `part` is 64…127 there.
    (power as usize * PARTS + part).min((POWERS + 1) * PARTS - 1)
}

/// The largest value that is in a cell.
const fn upper(cell: usize) -> u64 {
    if cell < 2 * PARTS {
        return cell as u64;
    }
    let power = cell / PARTS - 1;
    let part = cell - power * PARTS;
    ((part as u64 + 1) << power) - 1
}

impl Histogram {
    /// Counts a value, in nanoseconds.
    pub fn record(&mut self, value: u64) {
        self.counts[cell(value)] += 1;
        self.total += 1;
        self.largest = self.largest.max(value);
    }

    /// How many values there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.total
    }

    /// The largest value.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.largest
    }

    /// The smallest value that at least this share of all are not above, to within 1/64; 0 if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(at).min(self.largest);
            }
        }
        self.largest
    }

    /// The usual ones, in microseconds; `None` if there are no values.
    #[must_use]
    pub fn quantiles(&self) -> Option<Quantiles> {
        let microseconds = |share| self.quantile(share) as f64 / 1e3;
        (self.total > 0).then(|| Quantiles {
            count: self.total,
            p50: microseconds(0.5),
            p99: microseconds(0.99),
            p999: microseconds(0.999),
            max: self.largest as f64 / 1e3,
        })
    }

    /// Which values came how often: the upper end of each cell in microseconds and its count, cells without values left out.
    #[must_use]
    pub fn cells(&self) -> Vec<(f64, u64)> {
        let counted = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(at, count)| (upper(at) as f64 / 1e3, *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_sixty_fourth_above_the_exact_one() {
        let mut histogram = Histogram::default();
        let mut values: Vec<u64> = (0..20_000u64).map(|at| at * at % 1_000_003 * 37 + at % 50).collect();
        values.iter().for_each(|value| histogram.record(*value));
        values.sort_unstable();
        for share in [0.0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let rank = ((values.len() as f64 * share).ceil() as usize).max(1);
            let (exact, found) = (values[rank - 1], histogram.quantile(share));
            assert!(exact <= found && found <= exact + exact / 64 + 1, "{share}: {exact} {found}");
        }
        let quantiles = histogram.quantiles().unwrap();
        assert_eq!((quantiles.count, quantiles.max), (20_000, values[19_999] as f64 / 1e3));
        assert_eq!(histogram.cells().iter().map(|(_, count)| count).sum::<u64>(), 20_000);
    }

    #[test]
    fn every_cell_ends_right_before_the_next_begins() {
        for at in 0..(POWERS + 1) * PARTS - 1 {
            assert_eq!((cell(upper(at)), cell(upper(at) + 1)), (at, at + 1));
        }
        assert_eq!(cell(u64::MAX), (POWERS + 1) * PARTS - 1);
        assert_eq!(Histogram::default().quantiles(), None);
    }
}

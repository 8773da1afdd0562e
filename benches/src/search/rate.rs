//! Throughput by RFC 2544 §26.1: the highest rate at which no frame is lost, by halving; and the loss at rates from the
//! highest down in steps, §26.3.

use std::time::Duration;

use serde::Serialize;

use super::{Range, Trial, patient, slower};

/// How to search.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// Where.
    pub range: Range,
    /// The search ends when the rates with and without loss are this share apart, for instance 0.02.
    pub precision: f64,
    /// How long one trial sends. RFC 2544 §24 wants 60 s for the last one.
    pub duration: Duration,
    /// Trials at most.
    pub most_trials: usize,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Throughput {
    /// No frame is lost at `rate`, some are at `lossy`.
    Found {
        /// Frames a second.
        rate: f64,
        /// The lowest rate, above it, at which frames were lost.
        lossy: f64,
    },
    /// No frame is lost at the highest rate that was asked for.
    Ceiling {
        /// Frames a second.
        rate: f64,
    },
    /// No frame is lost at the highest rate that the generator keeps: not a result of the device.
    GeneratorBound {
        /// Frames a second; `None` if the generator does not keep the lowest rate either.
        rate: Option<f64>,
    },
    /// Frames are lost at the lowest rate, too.
    NeverLossFree {
        /// Frames a second.
        lowest: f64,
        /// Share of the frames that were lost there.
        loss_ratio: f64,
    },
    /// The trials were used up before the rates were close enough.
    Unfinished {
        /// The highest rate without loss, if there was one.
        rate: Option<f64>,
        /// The lowest rate with loss, if there was one.
        lossy: Option<f64>,
    },
}

impl Throughput {
    /// The highest rate at which no frame was lost.
    #[must_use]
    pub const fn rate(&self) -> Option<f64> {
        match *self {
            Self::Found { rate, .. } | Self::Ceiling { rate } => Some(rate),
            Self::GeneratorBound { rate } | Self::Unfinished { rate, .. } => rate,
            Self::NeverLossFree { .. } => None,
        }
    }
}

/// Searches, and returns what was found with every trial.
///
/// # Errors
/// What `measure` says.
pub fn throughput<E>(
    search: Search,
    mut measure: impl FnMut(f64, Duration) -> Result<Trial, E>,
) -> Result<(Throughput, Vec<Trial>), E> {
    let Range { lowest, highest } = search.range;
    let mut trials = Vec::new();
    // The highest rate without loss, the lowest with loss, and the highest that may be tried.
    let (mut good, mut lossy, mut ceiling) = (None::<f64>, None::<f64>, highest);
    let mut lowest_loss = 1.0;
    let mut bound = false;
    loop {
        let top = lossy.map_or(ceiling, |lossy| lossy.min(ceiling));
        let load = match good {
            _ if trials.is_empty() => highest,
            Some(good) if lossy.is_none() && good >= ceiling => break,
            Some(good) if top - good <= top * search.precision => break,
            None if top <= lowest => break,
            // Nobody has tried the ceiling since the generator lowered it.
            _ if lossy.is_none_or(|lossy| lossy > ceiling) => ceiling,
            Some(good) => f64::midpoint(good, top),
            // Down fast at first.
            None => (top / 2.0).max(lowest),
        };
        if trials.len() >= search.most_trials {
            return Ok((Throughput::Unfinished { rate: good, lossy }, trials));
        }
        let trial = patient(load, search.duration, &mut trials, &mut measure)?;
        if !trial.paced {
            (ceiling, bound) = (slower(&trials, load), true);
            if let Some(good) = good {
                ceiling = ceiling.max(good);
            } else if ceiling <= lowest {
                return Ok((Throughput::GeneratorBound { rate: None }, trials));
            }
        } else if trial.received < trial.sent || trial.sent == 0 {
            lossy = Some(load);
            if load <= lowest {
                lowest_loss = trial.loss_ratio();
            }
        } else {
            good = Some(load);
        }
    }
    let found = match (good, lossy) {
        (None, _) => Throughput::NeverLossFree { lowest, loss_ratio: lowest_loss },
        (Some(rate), Some(lossy)) if lossy <= ceiling || !bound => Throughput::Found { rate, lossy },
        (Some(rate), _) if bound => Throughput::GeneratorBound { rate: Some(rate) },
        (Some(rate), _) => Throughput::Ceiling { rate },
    };
    Ok((found, trials))
}

/// The loss at 100, 90, 80 … % of `highest`, until two rates in a row lose nothing (RFC 2544 §26.3).
///
/// # Errors
/// What `measure` says.
pub fn loss_by_rate<E>(
    highest: f64,
    duration: Duration,
    mut measure: impl FnMut(f64, Duration) -> Result<Trial, E>,
) -> Result<Vec<Trial>, E> {
    let mut steps: Vec<Trial> = Vec::new();
    for tenth in (1..=10).rev() {
        let mut tries = Vec::new();
        steps.push(patient(highest * f64::from(tenth) / 10.0, duration, &mut tries, &mut measure)?);
        let clean = |trial: &Trial| trial.paced && trial.sent > 0 && trial.received == trial.sent;
        if steps.len() >= 2 && steps[steps.len() - 2..].iter().all(clean) {
            break;
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::super::simulated::Device;
    use super::*;

    const SEARCH: Search = Search {
        range: Range { lowest: 1_000.0, highest: 1_000_000.0 },
        precision: 0.01,
        duration: Duration::from_secs(1),
        most_trials: 40,
    };

    fn search(mut device: Device) -> (Throughput, Vec<Trial>) {
        throughput(SEARCH, |load, duration| device.measure(load, duration)).unwrap()
    }

    #[test]
    fn the_rate_of_a_device_with_a_sharp_limit_is_found_within_the_precision() {
        for limit in [1_500.0, 333_333.0, 890_000.0] {
            let (found, trials) = search(Device::with_limit(limit));
            let Throughput::Found { rate, lossy } = found else { panic!("{found:?}") };
            assert!(rate <= limit && limit < lossy && lossy - rate <= 0.0101 * lossy, "{limit}: {found:?}");
            assert!(trials.len() < 25, "{}", trials.len());
        }
    }

    #[test]
    fn a_noisy_device_gives_a_rate_that_was_loss_free_when_it_was_tried() {
        let (found, trials) = search(Device { noise: 0.1, ..Device::with_limit(300_000.0) });
        let rate = found.rate().unwrap();
        assert!((250_000.0..=340_000.0).contains(&rate), "{found:?}");
        assert!(trials.iter().any(|trial| trial.load == rate && trial.received == trial.sent));
    }

    #[test]
    fn a_device_that_always_loses_something_has_no_loss_free_rate() {
        let (found, _) = search(Device { constant_loss: 0.001, ..Device::with_limit(300_000.0) });
        let Throughput::NeverLossFree { lowest: 1_000.0, loss_ratio } = found else { panic!("{found:?}") };
        assert!((0.0005..0.002).contains(&loss_ratio), "{loss_ratio}");
    }

    #[test]
    fn a_generator_that_is_slower_than_the_device_is_named_as_the_bound() {
        let (found, _) = search(Device { generator: 200_000.0, ..Device::with_limit(300_000.0) });
        let Throughput::GeneratorBound { rate: Some(rate) } = found else { panic!("{found:?}") };
        assert!((150_000.0..=200_000.0).contains(&rate), "{rate}");
        let (found, _) = search(Device { generator: 10.0, ..Device::with_limit(300_000.0) });
        assert_eq!(found, Throughput::GeneratorBound { rate: None });
    }

    #[test]
    fn a_device_that_is_slower_than_a_bounded_generator_is_found_all_the_same() {
        let (found, _) = search(Device { generator: 500_000.0, ..Device::with_limit(300_000.0) });
        let Throughput::Found { rate, .. } = found else { panic!("{found:?}") };
        assert!((295_000.0..=300_000.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_device_that_forwards_all_that_is_asked_for_has_reached_the_ceiling() {
        assert_eq!(search(Device::with_limit(2e6)).0, Throughput::Ceiling { rate: 1_000_000.0 });
    }

    #[test]
    fn trials_that_are_used_up_give_no_result_but_bounds() {
        let mut device = Device::with_limit(300_000.0);
        let search = Search { most_trials: 3, ..SEARCH };
        let (found, trials) = throughput(search, |load, duration| device.measure(load, duration)).unwrap();
        assert_eq!(
            (trials.len(), found),
            (3, Throughput::Unfinished { rate: Some(250_000.0), lossy: Some(500_000.0) })
        );
    }

    #[test]
    fn loss_by_rate_goes_down_until_two_rates_lose_nothing() {
        let mut device = Device::with_limit(55_000.0);
        let steps =
            loss_by_rate(100_000.0, Duration::from_secs(1), |load, duration| device.measure(load, duration)).unwrap();
        let loads: Vec<f64> = steps.iter().map(|trial| (trial.load / 1000.0).round()).collect();
        assert_eq!(loads, [100.0, 90.0, 80.0, 70.0, 60.0, 50.0, 40.0]);
        assert!((steps[0].loss_ratio() - 0.45).abs() < 0.01 && steps[5].loss_ratio() == 0.0);
    }
}

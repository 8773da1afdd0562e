//! Multiple loss ratio search (draft-ietf-bmwg-mlrsearch): one search for several goals, each a loss ratio that a load may
//! have, which shares its trials and bears with trials that were disturbed.
//!
//! A load is a *lower bound* of a goal when enough time was measured there with no more than the goal's loss ratio, even if
//! all that is still missing would go wrong; an *upper bound* when even the best outcome could not make it one. The share of
//! the time that may exceed the loss ratio is the goal's exceed ratio. The result is the highest lower bound below the lowest
//! upper bound, and the *conditional throughput* there: what is forwarded by the trial at the exceed ratio's quantile.

use std::time::Duration;

use serde::Serialize;

use super::{Range, Trial, patient, slower};

/// What is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    /// For tables: `NDR`, `PDR`.
    pub name: &'static str,
    /// The largest share of lost frames, 0…1.
    pub loss_ratio: f64,
    /// The share of the measured time in which more may be lost, 0…1 (exclusive).
    pub exceed_ratio: f64,
    /// Seconds of the first, coarse trials.
    pub initial_seconds: f64,
    /// Seconds of the trials that count in full.
    pub final_seconds: f64,
    /// Seconds that must be measured at a load before it is decided.
    pub sum_seconds: f64,
    /// How far apart the bounds may be at the end, as a share of the upper one.
    pub width: f64,
}

/// What a goal's search came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Bound {
    /// The device was measured.
    Found {
        /// The relevant lower bound in frames a second.
        load: f64,
        /// The relevant upper bound.
        upper: f64,
        /// Frames a second that are forwarded at the lower bound, at the quantile of the exceed ratio.
        conditional_throughput: f64,
    },
    /// The highest load that was asked for is a lower bound.
    Ceiling {
        /// The load.
        load: f64,
        /// As above.
        conditional_throughput: f64,
    },
    /// The highest load that the generator keeps is a lower bound: not a result of the device.
    GeneratorBound {
        /// The load; `None` if the generator does not keep the lowest one either.
        load: Option<f64>,
    },
    /// The lowest load is an upper bound already ("irregular goal result").
    NeverReached {
        /// The lowest load.
        lowest: f64,
        /// The smallest share of frames that was lost there.
        loss_ratio: f64,
    },
    /// The trials were used up.
    Unfinished {
        /// The highest lower bound, if there was one.
        load: Option<f64>,
        /// The lowest upper bound, if there was one.
        upper: Option<f64>,
    },
}

impl Bound {
    /// The load that the device bears.
    #[must_use]
    pub const fn load(&self) -> Option<f64> {
        match *self {
            Self::Found { load, .. } | Self::Ceiling { load, .. } => Some(load),
            Self::GeneratorBound { load } | Self::Unfinished { load, .. } => load,
            Self::NeverReached { .. } => None,
        }
    }
}

/// How a load stands to a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Lower,
    Upper,
    Undecided,
}

impl Goal {
    /// What the trials at one load say (the draft's load classification): each measured second is good or bad by its trial's
    /// loss; short trials can only count against a load, and good ones only balance bad ones.
    fn classify<'t>(&self, trials: impl Iterator<Item = &'t Trial>) -> Class {
        let [mut full_good, mut full_bad, mut short_good, mut short_bad] = [0.0; 4];
        for trial in trials {
            // A trial lasts a little longer or shorter than it was asked to.
            let full = trial.seconds >= self.final_seconds * 0.95;
            let sum = match (full, trial.loss_ratio() <= self.loss_ratio) {
                (true, true) => &mut full_good,
                (true, false) => &mut full_bad,
                (false, true) => &mut short_good,
                (false, false) => &mut short_bad,
            };
            *sum += trial.seconds;
        }
        let balance = short_good * self.exceed_ratio / (1.0 - self.exceed_ratio);
        let bad = full_bad + f64::max(0.0, short_bad - balance);
        let whole = f64::max(bad + full_good, self.sum_seconds * 0.95);
        let quantile = whole * self.exceed_ratio;
        if whole - full_good <= quantile {
            Class::Lower
        } else if bad > quantile {
            Class::Upper
        } else {
            Class::Undecided
        }
    }

    /// The rate that is forwarded at a load by the trial at which the exceed ratio's quantile of the time is reached, the
    /// trials in the order of their loss.
    fn conditional_throughput(&self, load: f64, trials: impl Iterator<Item = Trial>) -> f64 {
        let mut full: Vec<Trial> = trials.filter(|trial| trial.seconds >= self.final_seconds * 0.95).collect();
        full.sort_by(|one, other| one.loss_ratio().total_cmp(&other.loss_ratio()));
        let measured: f64 = full.iter().map(|trial| trial.seconds).sum();
        let mut remaining = f64::max(measured, self.sum_seconds * 0.95) * (1.0 - self.exceed_ratio);
        for trial in full {
            remaining -= trial.seconds;
            if remaining <= 0.0 {
                return load * (1.0 - trial.loss_ratio());
            }
        }
        0.0
    }

    /// The goal of an earlier, coarser phase: phase 0 is the goal itself, each phase more has trials of half the length and
    /// bounds twice as far apart, and decides by one trial.
    fn coarser(&self, phase: i32) -> Self {
        if phase == 0 {
            return *self;
        }
        let halved = self.final_seconds / 2f64.powi(phase);
        let seconds = halved.max(self.initial_seconds);
        Self { final_seconds: seconds, sum_seconds: seconds, width: self.width * 2f64.powi(phase), ..*self }
    }
}

/// The trials so far, and what bounds the search.
struct State {
    trials: Vec<Trial>,
    range: Range,
    /// The highest load that may be tried: less than the range's where the generator does not keep more.
    ceiling: f64,
    generator_bound: bool,
}

impl State {
    /// Loads with a trial that counts, ascending.
    fn loads(&self) -> Vec<f64> {
        let mut loads: Vec<f64> = self.trials.iter().filter(|trial| trial.paced).map(|trial| trial.load).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        loads
    }

    fn at(&self, load: f64) -> impl Iterator<Item = &Trial> {
        self.trials.iter().filter(move |trial| trial.paced && trial.load == load)
    }

    /// The relevant bounds of a goal: the lowest upper bound and the highest lower bound below it, and an undecided load
    /// between them.
    fn bounds(&self, goal: &Goal) -> (Option<f64>, Option<f64>, Option<f64>) {
        let classes: Vec<(f64, Class)> =
            self.loads().into_iter().map(|load| (load, goal.classify(self.at(load)))).collect();
        let upper = classes.iter().find(|(_, class)| *class == Class::Upper).map(|(load, _)| *load);
        let below = |load: f64| upper.is_none_or(|upper| load < upper);
        let lower = classes.iter().rfind(|(load, class)| *class == Class::Lower && below(*load)).map(|(load, _)| *load);
        let above = |load: f64| lower.is_none_or(|lower| load > lower);
        // What short trials say at a load may be too little for a longer goal: only a load that is a candidate is tried again.
        let undecided = classes
            .iter()
            .rfind(|(load, class)| {
                *class == Class::Undecided
                    && *load <= self.ceiling
                    && below(*load)
                    && above(*load)
                    && self.at(*load).any(|trial| trial.seconds >= goal.final_seconds * 0.95)
            })
            .map(|(load, _)| *load);
        (lower, upper, undecided)
    }

    /// The load to try next for a goal; `None` if the bounds are close enough, or there is nothing more to try.
    fn next(&self, goal: &Goal) -> Option<f64> {
        let Range { lowest, .. } = self.range;
        let (lower, upper, undecided) = self.bounds(goal);
        if undecided.is_some() {
            return undecided;
        }
        match (lower, upper) {
            (None, None) => Some(self.hint(goal).unwrap_or(self.ceiling)),
            (Some(lower), None) if lower >= self.ceiling => None,
            // Upward, as far as shorter trials found the upper bound.
            (Some(lower), None) => Some(f64::min(self.ceiling, lower / (1.0 - goal.width).powi(2))),
            (None, Some(upper)) if upper <= lowest => None,
            (None, Some(upper)) => {
                // What was forwarded there is about what the device can forward.
                let forwarded = self.at(upper).map(Trial::forwarded).fold(0.0, f64::max);
                let uppers =
                    self.loads().into_iter().filter(|load| goal.classify(self.at(*load)) == Class::Upper).count();
                let step = 1.0 - f64::min(0.5, goal.width * 2f64.powi(uppers as i32 - 1));
                let below = if forwarded < upper * (1.0 - goal.width) { forwarded } else { upper * step };
                Some(below.min(upper * step.max(0.5)).max(lowest))
            }
            (Some(lower), Some(_)) if lower >= self.ceiling => None,
            (Some(lower), Some(upper)) => {
                let middle = f64::midpoint(lower, upper).min(self.ceiling);
                (upper - lower > upper * goal.width).then_some(middle)
            }
        }
    }

    /// What the search for a goal came to.
    fn outcome(&self, goal: &Goal) -> Bound {
        let Range { lowest, .. } = self.range;
        let (lower, upper, _) = self.bounds(goal);
        let conditional = |load| goal.conditional_throughput(load, self.at(load).copied());
        match (lower, upper) {
            (Some(load), Some(upper)) if upper - load <= upper * goal.width * 1.001 => {
                Bound::Found { load, upper, conditional_throughput: conditional(load) }
            }
            (Some(load), _) if load >= self.ceiling && self.generator_bound => {
                Bound::GeneratorBound { load: Some(load) }
            }
            (Some(load), None) if load >= self.ceiling => {
                Bound::Ceiling { load, conditional_throughput: conditional(load) }
            }
            (None, Some(upper)) if upper <= lowest => {
                let losses = self.at(upper).map(Trial::loss_ratio);
                Bound::NeverReached { lowest, loss_ratio: losses.fold(1.0, f64::min) }
            }
            (load, upper) => Bound::Unfinished { load, upper },
        }
    }

    /// Where trials of any length let the goal's bound expect.
    fn hint(&self, goal: &Goal) -> Option<f64> {
        self.loads().into_iter().rev().find(|load| self.at(*load).all(|trial| trial.loss_ratio() <= goal.loss_ratio))
    }
}

/// Searches for all goals, and returns what became of each, with every trial.
///
/// # Errors
/// What `measure` says.
pub fn search<E>(
    goals: &[Goal],
    range: Range,
    most_trials: usize,
    mut measure: impl FnMut(f64, Duration) -> Result<Trial, E>,
) -> Result<(Vec<Bound>, Vec<Trial>), E> {
    let mut state = State { trials: Vec::new(), range, ceiling: range.highest, generator_bound: false };
    let mut bounds = Vec::new();
    for goal in goals {
        let phases = (goal.final_seconds / goal.initial_seconds).log2().ceil().clamp(0.0, 6.0) as i32 + 1;
        for phase in (0..phases).rev() {
            let coarse = goal.coarser(phase);
            while let Some(load) = state.next(&coarse) {
                if state.trials.len() >= most_trials {
                    break;
                }
                let duration = Duration::from_secs_f64(coarse.final_seconds);
                let trial = patient(load, duration, &mut state.trials, &mut measure)?;
                if !trial.paced {
                    state.generator_bound = true;
                    let most = state.loads().into_iter().rfind(|kept| *kept < load).unwrap_or(0.0);
                    state.ceiling = slower(&state.trials, load).max(most).min(state.ceiling * 0.99);
                    if state.ceiling <= range.lowest {
                        return Ok((vec![Bound::GeneratorBound { load: None }; goals.len()], state.trials));
                    }
                }
            }
        }
        // At once: what is tried for the next goal may make a load undecided again, and nobody would look there any more.
        bounds.push(state.outcome(goal));
    }
    Ok((bounds, state.trials))
}

#[cfg(test)]
mod tests {
    use super::super::simulated::Device;
    use super::*;

    const RANGE: Range = Range { lowest: 1_000.0, highest: 1_000_000.0 };
    const NDR: Goal = Goal {
        name: "NDR",
        loss_ratio: 0.0,
        exceed_ratio: 0.5,
        initial_seconds: 1.0,
        final_seconds: 1.0,
        sum_seconds: 5.0,
        width: 0.005,
    };
    const PDR: Goal = Goal { name: "PDR", loss_ratio: 0.005, ..NDR };

    fn find(mut device: Device) -> (Vec<Bound>, Vec<Trial>) {
        search(&[NDR, PDR], RANGE, 1000, |load, duration| device.measure(load, duration)).unwrap()
    }

    fn trial(loss: f64, seconds: f64) -> Trial {
        let sent = (100_000.0 * seconds) as u64;
        Trial { load: 100_000.0, seconds, sent, received: (sent as f64 * (1.0 - loss)) as u64, paced: true }
    }

    #[test]
    fn a_sharp_limit_is_between_the_bounds_and_the_drop_rate_of_half_a_percent_lies_above_it() {
        for limit in [2_000.0, 123_456.0, 700_000.0] {
            let (bounds, trials) = find(Device::with_limit(limit));
            let Bound::Found { load, upper, conditional_throughput } = bounds[0] else { panic!("{bounds:?}") };
            assert!(load <= limit && limit <= upper && upper - load <= 0.0051 * upper, "{limit}: {bounds:?}");
            assert_eq!(conditional_throughput, load);
            let Bound::Found { load: partial, upper, conditional_throughput } = bounds[1] else { panic!("{bounds:?}") };
            let exact = limit / 0.995;
            assert!(partial <= exact * 1.001 && exact <= upper * 1.001, "{limit}: {bounds:?}");
            assert!((conditional_throughput - limit).abs() <= 0.006 * limit, "{conditional_throughput}");
            assert!(trials.len() < 150, "{}", trials.len());
        }
    }

    #[test]
    fn disturbed_trials_do_not_pull_the_result_down_as_they_do_with_plain_halving() {
        let device = || Device { accidents: 0.2, ..Device::with_limit(300_000.0) };
        let (bounds, _) = find(device());
        let load = bounds[0].load().unwrap();
        assert!((290_000.0..=300_000.0).contains(&load), "{bounds:?}");
    }

    #[test]
    fn a_noisy_limit_is_found_near_its_middle() {
        let (bounds, _) = find(Device { noise: 0.05, ..Device::with_limit(300_000.0) });
        let load = bounds[0].load().unwrap();
        assert!((285_000.0..=315_000.0).contains(&load), "{bounds:?}");
    }

    #[test]
    fn however_the_limit_wavers_the_search_ends_with_bounds_around_it() {
        for seed in 1..200 {
            let mut device = Device { noise: 0.08, accidents: 0.05, ..Device::with_limit(200_000.0) };
            device.random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
            let goals = [NDR, PDR];
            let found = search(&goals, RANGE, 2000, |load, duration| device.measure(load, duration)).unwrap();
            for bound in found.0 {
                let Bound::Found { load, upper, .. } = bound else { panic!("{seed}: {bound:?}") };
                assert!(load < upper && (170_000.0..=225_000.0).contains(&load), "{seed}: {bound:?}");
            }
        }
    }

    #[test]
    fn a_device_that_always_loses_a_thousandth_has_a_partial_drop_rate_only() {
        let (bounds, _) = find(Device { constant_loss: 0.001, ..Device::with_limit(300_000.0) });
        assert!(matches!(bounds[0], Bound::NeverReached { lowest: 1_000.0, .. }), "{bounds:?}");
        let load = bounds[1].load().unwrap();
        assert!((295_000.0..=303_000.0).contains(&load), "{bounds:?}");
    }

    #[test]
    fn a_generator_that_is_slower_than_the_device_is_named_as_the_bound() {
        let (bounds, _) = find(Device { generator: 150_000.0, ..Device::with_limit(300_000.0) });
        for bound in bounds {
            let Bound::GeneratorBound { load: Some(load) } = bound else { panic!("{bound:?}") };
            assert!((100_000.0..=152_000.0).contains(&load), "{bound:?}");
        }
        let (bounds, _) = find(Device { generator: 5.0, ..Device::with_limit(300_000.0) });
        assert_eq!(bounds, [Bound::GeneratorBound { load: None }; 2]);
    }

    #[test]
    fn what_forwards_everything_reaches_the_ceiling() {
        let (bounds, _) = find(Device::with_limit(3e6));
        assert!(matches!(bounds[0], Bound::Ceiling { load: 1_000_000.0, .. }), "{bounds:?}");
    }

    #[test]
    fn used_up_trials_are_no_result() {
        let mut device = Device::with_limit(300_000.0);
        let (bounds, trials) = search(&[NDR], RANGE, 4, |load, duration| device.measure(load, duration)).unwrap();
        assert!(matches!(bounds[0], Bound::Unfinished { .. }) && trials.len() <= 4 + super::super::PATIENCE);
    }

    #[test]
    fn a_load_is_decided_when_what_is_missing_cannot_change_it() {
        let classify = |trials: &[Trial]| NDR.classify(trials.iter());
        let (good, bad) = (trial(0.0, 1.0), trial(0.1, 1.0));
        assert_eq!(classify(&[good, good]), Class::Undecided);
        assert_eq!(classify(&[good, good, good]), Class::Lower);
        assert_eq!(classify(&[bad, good, bad]), Class::Undecided);
        assert_eq!(classify(&[bad, good, bad, bad]), Class::Upper);
        // Short good trials make no lower bound; they only speak for short bad ones.
        let (short_good, short_bad) = (trial(0.0, 0.5), trial(0.1, 0.5));
        assert_eq!(classify(&[short_good; 12]), Class::Undecided);
        assert_eq!(classify(&[short_bad; 6]), Class::Upper);
        assert_eq!(classify(&[&[short_good; 6][..], &[short_bad; 6]].concat()), Class::Undecided);
    }

    #[test]
    fn the_conditional_throughput_is_that_of_the_trial_at_the_quantile() {
        let trials = [0.0, 0.3, 0.001, 0.0, 0.4].map(|loss| trial(loss, 1.0));
        let forwarded = PDR.conditional_throughput(100_000.0, trials.into_iter());
        assert!((forwarded - 99_900.0).abs() < 1.0, "{forwarded}");
        assert_eq!(PDR.conditional_throughput(100_000.0, trials.into_iter().take(2)), 0.0);
    }

    #[test]
    fn longer_trials_follow_shorter_ones() {
        let goal = Goal { final_seconds: 4.0, sum_seconds: 8.0, ..NDR };
        let mut device = Device::with_limit(123_456.0);
        let (bounds, trials) = search(&[goal], RANGE, 500, |load, duration| device.measure(load, duration)).unwrap();
        let Bound::Found { load, upper, .. } = bounds[0] else { panic!("{bounds:?}") };
        assert!(load <= 123_456.0 && 123_456.0 <= upper, "{bounds:?}");
        assert!(trials[0].seconds == 1.0 && trials.iter().any(|trial| trial.seconds == 4.0));
        // The long ones are few, because the short ones found where to look.
        let long = trials.iter().filter(|trial| trial.seconds == 4.0).count();
        assert!(long < 16, "{long}");
    }
}

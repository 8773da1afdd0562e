//! `postern bench ndr`: non-drop rate and partial drop rate (0.5 %) by MLRsearch (draft-ietf-bmwg-mlrsearch).

use std::fmt::Write as _;

use serde::Serialize;

use super::report::{Report, Results};
use super::throughput::told;
use super::{Bench, Options, gigabits, pinned};
use crate::search::Trial;
use crate::search::mlr::{Bound, Goal, search};
use crate::traffic::TrafficError;
use crate::traffic::stream::{Sizes, Stream};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// By frame size.
    pub sizes: Vec<Size>,
}

/// One frame size.
#[derive(Debug, Serialize)]
pub struct Size {
    /// The size.
    pub size: Sizes,
    /// Each goal and what it came to.
    pub goals: Vec<(Goal, Bound)>,
    /// Every trial.
    pub trials: Vec<Trial>,
}

/// The goals of a run: no loss, and half a percent.
#[must_use]
pub fn goals(options: &Options) -> [Goal; 2] {
    let seconds = options.seconds;
    let ndr = Goal {
        name: "NDR",
        loss_ratio: 0.0,
        exceed_ratio: 0.5,
        initial_seconds: if options.quick { seconds } else { seconds.min(1.0) },
        final_seconds: seconds,
        sum_seconds: if options.quick { 2.0 * seconds } else { 20.0 * seconds },
        width: if options.quick { 0.3 } else { 0.005 },
    };
    [ndr, Goal { name: "PDR", loss_ratio: 0.005, ..ndr }]
}

/// Trials at most.
pub(super) const fn most_trials(quick: bool) -> usize {
    if quick { 40 } else { 600 }
}

/// Searches one size.
pub(super) fn one(
    bench: &mut Bench,
    stream: &Stream,
    options: &Options,
    goals: &[Goal],
    progress: &mut impl FnMut(&str),
) -> Result<(Vec<Bound>, Vec<Trial>), TrafficError> {
    search(goals, options.range, most_trials(options.quick), |load, duration| {
        let trial = bench.trial(stream, load, duration)?;
        progress(&told(stream.sizes(), &trial));
        Ok(trial)
    })
}

/// Runs the method.
///
/// # Errors
/// When something cannot be set up, or no frame passes.
pub(super) fn run(options: &Options, mut progress: impl FnMut(&str) + Send) -> Result<Report, TrafficError> {
    progress("starting the device under test");
    let goals = goals(options);
    let mut bench = Bench::open(options, |setup| setup)?;
    let sizes = pinned(&mut bench, |bench| {
        let mut found = Vec::new();
        for &size in &options.sizes {
            let stream = bench.stream(options.transport, options.flows, size, 0)?;
            progress(&format!("{size} bytes: opening {} flows", options.flows));
            bench.prepare(&stream)?;
            let (bounds, trials) = one(bench, &stream, options, &goals, &mut progress)?;
            found.push(Size { size, goals: goals.into_iter().zip(bounds).collect(), trials });
        }
        Ok(found)
    })?;
    // A rate that is not found is a result; that nothing passes is an error before.
    let passed = sizes.iter().all(|size| size.trials.iter().any(|trial| trial.received > 0));
    Ok(Report::new("ndr", options, Results::Ndr(Found { sizes }), passed, Vec::new()))
}

/// What a goal came to, in a line.
pub(super) fn told_bound(bound: &Bound, sizes: Sizes) -> String {
    match *bound {
        Bound::Found { load, upper, conditional_throughput } => format!(
            "{load:.0} frames/s, {:.3} Gbit/s of a link (upper bound {upper:.0}); conditional throughput \
             {conditional_throughput:.0}",
            gigabits(load, sizes)
        ),
        Bound::Ceiling { load, .. } => format!("{load:.0} frames/s: the highest that was asked for"),
        Bound::GeneratorBound { load: Some(load) } => {
            format!("generator-bound: reached at {load:.0} frames/s, the generator's limit")
        }
        Bound::GeneratorBound { load: None } => "generator-bound at the lowest rate".to_owned(),
        Bound::NeverReached { lowest, loss_ratio } => {
            format!("none: {:.4} % lost at {lowest:.0} frames/s", loss_ratio * 100.0)
        }
        Bound::Unfinished { load, upper } => format!("not found in time: between {load:?} and {upper:?}"),
    }
}

impl Found {
    pub(super) fn write(&self, text: &mut String) {
        let _ = writeln!(text, "MLRsearch (draft-ietf-bmwg-mlrsearch)");
        for Size { size, goals, trials } in &self.sizes {
            for (goal, bound) in goals {
                let percent = goal.loss_ratio * 100.0;
                let _ = writeln!(text, "  {size:>5} bytes  {} ({percent} %)  {}", goal.name, told_bound(bound, *size));
            }
            let seconds: f64 = trials.iter().map(|trial| trial.seconds).sum();
            let _ = writeln!(text, "               {} trials, {seconds:.1} s", trials.len());
        }
    }
}

//! `postern bench latency`: latency at 0, 10, 50 and 90 % of the partial drop rate.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::ndr::{goals, one, told_bound};
use super::report::{Report, Results};
use super::throughput::counted;
use super::{Bench, Measured, Options, pinned};
use crate::search::mlr::Bound;
use crate::traffic::TrafficError;
use crate::traffic::stream::Sizes;

/// Frames a second at 0 %: so few that none waits for another.
const IDLE: f64 = 200.0;
/// Shares of the partial drop rate.
const SHARES: [f64; 4] = [0.0, 0.1, 0.5, 0.9];

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
    /// The partial drop rate, unless it was given.
    pub partial_drop_rate: Option<Bound>,
    /// By load.
    pub loads: Vec<AtLoad>,
}

/// One load.
#[derive(Debug, Serialize)]
pub struct AtLoad {
    /// Share of the partial drop rate, 0…1.
    pub share: f64,
    /// What was measured.
    pub measured: Measured,
    /// The histogram: upper ends of cells in microseconds, and how many frames took so long.
    pub cells: Vec<(f64, u64)>,
}

/// Runs the method; with `rate` the partial drop rate is not searched for.
///
/// # Errors
/// When something cannot be set up, or no frame passes.
pub(super) fn run(
    options: &Options,
    rate: Option<f64>,
    mut progress: impl FnMut(&str) + Send,
) -> Result<Report, TrafficError> {
    let duration = Duration::from_secs_f64(options.seconds);
    let [_, mut goal] = goals(options);
    // It only says where to measure.
    goal.width = goal.width.max(0.02);
    goal.sum_seconds = goal.sum_seconds.min(5.0 * goal.final_seconds);
    progress("starting the device under test");
    let mut bench = Bench::open(options, |setup| super::Setup { spin: true, ..setup })?;
    let sizes = pinned(&mut bench, |bench| {
        let mut found = Vec::new();
        for &size in &options.sizes {
            let stream = bench.stream(options.transport, options.flows, size, 0)?;
            progress(&format!("{size} bytes: opening {} flows", options.flows));
            bench.prepare(&stream)?;
            let bound = match rate {
                Some(_) => None,
                None => one(bench, &stream, options, &[goal], &mut progress)?.0.into_iter().next(),
            };
            let full = rate.or(bound.as_ref().and_then(Bound::load)).unwrap_or(options.range.lowest);
            let mut loads = Vec::new();
            for share in SHARES {
                let load = if share == 0.0 { IDLE } else { (full * share).max(IDLE) };
                progress(&format!("{size} bytes: {:.0} % of {full:.0} frames/s", share * 100.0));
                let outcome = bench.measure(&stream, load, duration)?;
                loads.push(AtLoad { share, measured: Measured::of(load, &outcome), cells: outcome.cells });
            }
            found.push(Size { size, partial_drop_rate: bound, loads });
        }
        Ok(found)
    })?;
    let passed =
        sizes.iter().flat_map(|size| &size.loads).all(|at| at.measured.is_whole() && at.measured.counts.received > 0);
    let notes = vec![
        "latency is from before the system call that sends a frame until the receiver has it, so it has both in it; the \
         gateway never sleeps"
            .to_owned(),
    ];
    Ok(Report::new("latency", options, Results::Latency(Found { sizes }), passed, notes))
}

impl Found {
    pub(super) fn write(&self, text: &mut String) {
        let _ = writeln!(text, "latency by load");
        for Size { size, partial_drop_rate, loads } in &self.sizes {
            if let Some(bound) = partial_drop_rate {
                let _ = writeln!(text, "  {size:>5} bytes  PDR {}", told_bound(bound, *size));
            }
            for AtLoad { share, measured, .. } in loads {
                let _ = writeln!(
                    text,
                    "  {size:>5} bytes  {:>3.0} %  {:>9.0} frames/s  {}",
                    share * 100.0,
                    measured.load,
                    counted(measured)
                );
            }
        }
    }
}

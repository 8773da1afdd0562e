//! `postern bench traffic`: the generator and the receiver by themselves: frames at one rate, or as fast as can be.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::report::{Report, Results};
use super::throughput::{counted, write_overload};
use super::{Bench, Measured, Options, pinned};
use crate::traffic::TrafficError;
use crate::traffic::in_kernel::Overload;
use crate::traffic::stream::Sizes;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// By frame size.
    pub sizes: Vec<Size>,
    /// Frames that were made inside the kernel, by size.
    pub overload: Vec<Overload>,
}

/// One frame size.
#[derive(Debug, Serialize)]
pub struct Size {
    /// The size.
    pub size: Sizes,
    /// What was measured.
    pub measured: Measured,
    /// The histogram of latencies: upper ends of cells in microseconds, and how many frames took so long.
    pub cells: Vec<(f64, u64)>,
}

/// Sends `rate` frames a second, or flat out; or, `in_kernel`, frames that the kernel makes.
///
/// # Errors
/// When something cannot be set up, or no frame passes.
pub(super) fn run(
    options: &Options,
    rate: Option<f64>,
    in_kernel: bool,
    mut progress: impl FnMut(&str) + Send,
) -> Result<Report, TrafficError> {
    let duration = Duration::from_secs_f64(options.seconds);
    progress("starting the device under test");
    let mut bench = Bench::open(options, |setup| setup)?;
    if in_kernel {
        let overload = bench.overload(options, duration, &mut progress)?;
        let found = Found { sizes: Vec::new(), overload };
        return Ok(Report::new("traffic", options, Results::Traffic(found), true, Vec::new()));
    }
    let sizes = pinned(&mut bench, |bench| {
        let mut found = Vec::new();
        for &size in &options.sizes {
            let stream = bench.stream(options.transport, options.flows, size, 0)?;
            progress(&format!("{size} bytes: opening {} flows", options.flows));
            bench.prepare(&stream)?;
            progress(&format!("{size} bytes: sending"));
            let outcome = match rate {
                Some(rate) => bench.measure(&stream, rate, duration)?,
                None => bench.flat_out(&stream, duration)?,
            };
            let load = rate.unwrap_or(outcome.pace.achieved);
            found.push(Size { size, measured: Measured::of(load, &outcome), cells: outcome.cells });
        }
        Ok(found)
    })?;
    let passed = sizes.iter().all(|size| size.measured.is_whole() && size.measured.counts.received > 0);
    let found = Found { sizes, overload: Vec::new() };
    Ok(Report::new("traffic", options, Results::Traffic(found), passed, Vec::new()))
}

impl Found {
    pub(super) fn write(&self, text: &mut String) {
        for Size { size, measured, .. } in &self.sizes {
            let (achieved, pace) = (measured.pace.achieved, measured.pace);
            let intended = pace.intended.map_or_else(|| "flat out".to_owned(), |rate| format!("{rate:.0} asked for"));
            let kept = if pace.kept { "" } else { ", the generator did not keep its pace" };
            let _ = writeln!(text, "  {size:>5} bytes  {achieved:.1} frames/s sent, {intended}{kept}");
            let _ = writeln!(text, "               {}", counted(measured));
        }
        write_overload(text, &self.overload);
    }
}

//! `postern bench throughput`: RFC 2544 §26.1 and §26.3, for each frame size.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::report::{Report, Results};
use super::{Bench, Measured, Options, Place, gigabits, pinned};
use crate::nat::NatError;
use crate::search::rate::{Search, Throughput, loss_by_rate, throughput};
use crate::search::{PATIENCE, Trial};
use crate::traffic::TrafficError;
use crate::traffic::in_kernel::Overload;
use crate::traffic::stream::{Sizes, Transport};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// By frame size.
    pub sizes: Vec<Size>,
    /// Frames as fast as the kernel makes them, by size; in namespaces, for IPv4 and UDP only.
    pub overload: Vec<Overload>,
}

/// One frame size.
#[derive(Debug, Serialize)]
pub struct Size {
    /// The size.
    pub size: Sizes,
    /// The highest rate without loss.
    pub throughput: Throughput,
    /// One more trial at that rate, with all that is counted.
    pub there: Option<Measured>,
    /// What the generator sends flat out, and what arrives of it.
    pub flat_out: Measured,
    /// The loss by rate, from the highest down.
    pub loss_by_rate: Vec<Trial>,
    /// Every trial of the search.
    pub trials: Vec<Trial>,
}

/// Runs the method.
///
/// # Errors
/// When something cannot be set up, or no frame passes.
pub(super) fn run(options: &Options, mut progress: impl FnMut(&str) + Send) -> Result<Report, TrafficError> {
    let duration = Duration::from_secs_f64(options.seconds);
    let (precision, most_trials) = if options.quick { (0.25, 8 * PATIENCE) } else { (0.02, 60) };
    progress("starting the device under test");
    let mut bench = Bench::open(options, |setup| setup)?;
    let sizes = pinned(&mut bench, |bench| {
        let mut found = Vec::new();
        for &size in &options.sizes {
            let stream = bench.stream(options.transport, options.flows, size, 0)?;
            progress(&format!("{size} bytes: opening {} flows", options.flows));
            bench.prepare(&stream)?;
            let search = Search { range: options.range, precision, duration, most_trials };
            let (throughput, trials) = throughput(search, |load, duration| {
                let trial = bench.trial(&stream, load, duration)?;
                progress(&told(size, &trial));
                Ok::<_, TrafficError>(trial)
            })?;
            let there = match throughput.rate() {
                Some(rate) => Some(Measured::of(rate, &bench.measure(&stream, rate, duration)?)),
                None => None,
            };
            progress(&format!("{size} bytes: flat out"));
            let outcome = bench.flat_out(&stream, duration)?;
            let flat_out = Measured::of(outcome.pace.achieved, &outcome);
            let highest = trials.iter().filter(|trial| trial.paced).map(|trial| trial.load).fold(0.0, f64::max);
            let steps = if highest > 0.0 && !options.quick {
                loss_by_rate(highest, duration, |load, duration| bench.trial(&stream, load, duration))?
            } else {
                Vec::new()
            };
            found.push(Size { size, throughput, there, flat_out, loss_by_rate: steps, trials });
        }
        Ok(found)
    })?;
    let mut notes = Vec::new();
    let overload = match (&options.place, options.transport) {
        (Place::Lab(_), Transport::Udp) if !options.six => match bench.overload(options, duration, &mut progress) {
            Ok(overload) => overload,
            Err(TrafficError::Bpf(error) | TrafficError::Nat(NatError::Bpf(error))) => {
                notes.push(format!("no frames were made inside the kernel: {error}"));
                Vec::new()
            }
            Err(error) => return Err(error),
        },
        _ => Vec::new(),
    };
    let passed = sizes.iter().all(|size| size.there.iter().all(Measured::is_whole) && size.flat_out.is_whole());
    Ok(Report::new("throughput", options, Results::Throughput(Found { sizes, overload }), passed, notes))
}

pub(super) fn told(size: Sizes, trial: &Trial) -> String {
    let late = if trial.paced { "" } else { ", the generator did not keep its pace" };
    format!(
        "{size} bytes: {:.0} frames/s for {:.2} s: {:.4} % lost{late}",
        trial.load,
        trial.seconds,
        trial.loss_ratio() * 100.0
    )
}

impl Found {
    pub(super) fn write(&self, text: &mut String) {
        let _ = writeln!(text, "throughput (RFC 2544 §26.1): the highest rate at which no frame is lost");
        for Size { size, throughput, there, flat_out, loss_by_rate, .. } in &self.sizes {
            let rate = |rate: f64| format!("{rate:.0} frames/s, {:.3} Gbit/s of a link", gigabits(rate, *size));
            let said = match *throughput {
                Throughput::Found { rate: found, lossy } => format!("{} (loss at {lossy:.0})", rate(found)),
                Throughput::Ceiling { rate: found } => format!("{}: the highest that was asked for", rate(found)),
                Throughput::GeneratorBound { rate: Some(found) } => {
                    format!("generator-bound: no loss at {}, the generator's limit", rate(found))
                }
                Throughput::GeneratorBound { rate: None } => "generator-bound at the lowest rate".to_owned(),
                Throughput::NeverLossFree { lowest, loss_ratio } => {
                    format!("none: {:.4} % lost at {lowest:.0} frames/s", loss_ratio * 100.0)
                }
                Throughput::Unfinished { rate, lossy } => format!("not found in time: between {rate:?} and {lossy:?}"),
            };
            let _ = writeln!(text, "  {size:>5} bytes  {said}");
            if let Some(there) = there {
                let _ = writeln!(text, "               there: {}", counted(there));
            }
            let _ = writeln!(
                text,
                "               flat out: {:.0} frames/s sent, {:.2} % lost",
                flat_out.pace.achieved,
                flat_out.counts.lost as f64 * 100.0 / flat_out.counts.sent.max(1) as f64
            );
            for trial in loss_by_rate {
                let late = if trial.paced { "" } else { "  (generator late)" };
                let _ = writeln!(
                    text,
                    "      {:>12.0} frames/s  {:>9.4} % lost{late}",
                    trial.load,
                    trial.loss_ratio() * 100.0
                );
            }
        }
        write_overload(text, &self.overload);
    }
}

/// Frames that the kernel made.
pub(super) fn write_overload(text: &mut String, overload: &[Overload]) {
    if !overload.is_empty() {
        let _ =
            writeln!(text, "overload by frames that are made inside the kernel (BPF_PROG_RUN, live frames), 64 flows");
    }
    for Overload { size, offered, forwarded } in overload {
        let _ = writeln!(text, "  {size:>5} bytes  {forwarded:.0} frames/s come out of {offered:.0} that are sent");
    }
}

/// The counts of one trial in a line.
pub(super) fn counted(measured: &Measured) -> String {
    let counts = &measured.counts;
    let mut text = format!(
        "{} sent = {} received + {} lost; {} reordered ({} within their flow), {} duplicated, {} corrupted",
        counts.sent,
        counts.received,
        counts.lost,
        counts.reordered,
        counts.reordered_in_flow,
        counts.duplicated,
        counts.corrupted
    );
    if let Some(latency) = counts.latency {
        let _ = write!(
            text,
            "; µs p50 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}",
            latency.p50, latency.p99, latency.p999, latency.max
        );
    }
    if let Some(back) = &measured.back {
        let _ = write!(text, "; there and back {} received + {} lost", back.received, back.lost);
        if let Some(latency) = back.latency {
            let _ = write!(text, ", µs p50 {:.1}, p99 {:.1}", latency.p50, latency.p99);
        }
    }
    if let Some(lateness) = measured.pace.lateness {
        let _ = write!(text, "; generator late by p99 {:.1}, max {:.1} µs", lateness.p99, lateness.max);
    }
    if !measured.pace.kept || measured.own_drops > 0 {
        text += ": IT DID NOT KEEP ITS PACE";
    }
    text
}

//! `postern bench reconf`: how long traffic is blocked while tables change or the process restarts. Frames go at a fixed
//! rate, so that the frames that are lost, divided by the rate, are the time in which none passed.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::report::{Report, Results};
use super::throughput::counted;
use super::{Bench, Measured, Options};
use crate::nat::processor::{LOAD_CPU, cores, pin};
use crate::traffic::TrafficError;
use crate::traffic::lab::Lab;
use crate::traffic::station::Plan;
use crate::traffic::stream::Sizes;

/// How long frames pass before and after what is done.
const AROUND: Duration = Duration::from_millis(300);
/// Endpoints that a reload adds or takes away.
const ENDPOINTS: u16 = 200;
/// The longest run.
const LONGEST: Duration = Duration::from_secs(120);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Frame size.
    pub size: Sizes,
    /// By event.
    pub events: Vec<Event>,
}

/// Something that was done under traffic.
#[derive(Debug, Serialize)]
pub struct Event {
    /// What.
    pub name: String,
    /// How often, in the same run.
    pub times: u32,
    /// Seconds that it took, all times together.
    pub seconds: f64,
    /// What became of the frames.
    pub measured: Measured,
    /// Frames that the kernel did not deliver to the gateway because its ring was full; `None` where it was restarted.
    pub ring_drops: Option<u64>,
    /// Milliseconds in which no frame passed: lost / rate, ring drops left out.
    pub blocked_milliseconds: f64,
    /// Whether nothing may be lost by it.
    pub none_ever: bool,
}

impl Event {
    /// Whether it cost no more than it may.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.measured.is_whole() && !(self.none_ever && self.blocked_milliseconds > 0.0)
    }
}

/// Runs the method at `rate` frames a second.
///
/// # Errors
/// When something cannot be set up, no frame passes, or the gateway does not come back.
pub(super) fn run(options: &Options, rate: f64, mut progress: impl FnMut(&str)) -> Result<Report, TrafficError> {
    progress("starting the device under test");
    let size = options.sizes.first().copied().unwrap_or(Sizes::Fixed(64));
    let mut bench = Bench::open(options, |setup| setup)?;
    if bench.lab.is_none() {
        return Err(TrafficError::Argument("reconf changes the gateway, so that it needs one of its own".to_owned()));
    }
    let stream = bench.stream(options.transport, options.flows, size, 0)?;
    bench.prepare(&stream)?;
    let times = if options.quick { 2 } else { 20 };
    let mut events = Vec::new();
    let mut event = |bench: &mut Bench, name: &str, times: u32, kind: Kind| -> Result<(), TrafficError> {
        progress(&format!("{name} under {rate:.0} frames/s"));
        events.push(under_load(bench, &stream, rate, name, times, kind)?);
        Ok(())
    };
    event(&mut bench, "nothing", 1, Kind::Nothing)?;
    event(&mut bench, &format!("reload: {ENDPOINTS} endpoints added or removed"), times, Kind::Reload)?;
    event(&mut bench, "restart (SIGTERM)", 1, Kind::Restart)?;
    event(&mut bench, "restart (SIGKILL)", 1, Kind::Kill)?;
    let passed = events.iter().all(Event::passed);
    let notes = vec![format!(
        "blocked time = lost / {rate:.0} frames/s; a restart has no mark, and its flows are made anew by their next frames"
    )];
    Ok(Report::new("reconf", options, Results::Reconf(Found { size, events }), passed, notes))
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Reload,
    Restart,
    Kill,
}

fn act(lab: &mut Lab, kind: Kind, times: u32) -> Result<(), TrafficError> {
    for time in 0..times {
        match kind {
            Kind::Nothing => std::thread::sleep(AROUND),
            Kind::Reload => drop(lab.reload(if time % 2 == 0 { ENDPOINTS } else { 0 })?),
            Kind::Restart => lab.restart(true)?,
            Kind::Kill => lab.restart(false)?,
        }
    }
    Ok(())
}

fn under_load(
    bench: &mut Bench,
    stream: &crate::traffic::stream::Stream,
    rate: f64,
    name: &str,
    times: u32,
    kind: Kind,
) -> Result<Event, TrafficError> {
    let Bench { lab: Some(lab), station, .. } = bench else { return Err(TrafficError::NoPath(0)) };
    let keeps = matches!(kind, Kind::Nothing | Kind::Reload);
    let ring = if keeps { lab.ring_drops()? } else { 0 };
    let stop = AtomicBool::new(false);
    let pins = cores() > 1;
    let (outcome, seconds) = std::thread::scope(|scope| {
        let stop = &stop;
        let sending = scope.spawn(move || {
            if pins {
                pin(LOAD_CPU)?;
            }
            station.run(stream, &Plan::data(rate, LONGEST), || stop.load(Ordering::Relaxed))
        });
        std::thread::sleep(AROUND);
        let since = Instant::now();
        let done = act(lab, kind, times);
        let seconds = since.elapsed().as_secs_f64();
        std::thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        let outcome = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done.map(|()| (outcome, seconds))
    })?;
    let ring_drops = if keeps { Some(lab.ring_drops()?.saturating_sub(ring)) } else { None };
    let measured = Measured::of(rate, &outcome);
    let lost = measured.counts.lost.saturating_sub(ring_drops.unwrap_or(0)).saturating_sub(measured.own_drops);
    Ok(Event {
        name: name.to_owned(),
        times,
        seconds,
        ring_drops,
        blocked_milliseconds: lost as f64 * 1e3 / rate,
        none_ever: kind == Kind::Reload,
        measured,
    })
}

impl Found {
    pub(super) fn write(&self, text: &mut String) {
        let _ = writeln!(text, "blocked time");
        for event in &self.events {
            let mark = match (event.none_ever, event.passed()) {
                (true, true) => "  none, as it must be",
                (true, false) => "  MUST BE NONE",
                _ => "",
            };
            let _ = writeln!(
                text,
                "  {:<44} {:>3} times in {:>6.2} s  {:>9.3} ms blocked{mark}",
                event.name, event.times, event.seconds, event.blocked_milliseconds
            );
            let ring =
                event.ring_drops.map_or_else(String::new, |drops| format!("; {drops} in the gateway's full ring"));
            let _ = writeln!(text, "      {}{ring}", counted(&event.measured));
        }
    }
}

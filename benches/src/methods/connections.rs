//! `postern bench connections`: RFC 9693, benchmarking of stateful NAT gateways: how many connections there can be, how fast
//! they are made and let go, and the throughput when the table is full.
//!
//! A connection is a flow of its own, with pseudorandom addresses and ports (RFC 4814), that passes in both directions. The
//! responder keeps no table of four-tuples, as the RFC's does: it turns each frame round, which takes it back through the
//! same connection.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::report::{Report, Results};
use super::throughput::told;
use super::{Bench, Options, opening, pinned, trial};
use crate::search::rate::{Search, Throughput, throughput};
use crate::search::{PATIENCE, Trial};
use crate::traffic::TrafficError;
use crate::traffic::station::{Plan, Responder};
use crate::traffic::stream::{Kind, Sizes, Stream, Transport};

/// Frames a second at which the table is filled.
const FILLING: f64 = 30_000.0;
/// Seconds that a TCP flow lingers after a RST, as the documentation of Postern says.
const LINGER: f64 = 2.0;
/// How long the table may take until it is empty.
const EMPTY: Duration = Duration::from_secs(60);
/// Flows of the comparison with a table that is all but empty.
const FEW: u32 = 64;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Flows that the gateway was told to have room for; `None` for another device.
    pub configured: Option<u32>,
    /// How many connections there can be.
    pub capacity: Capacity,
    /// How fast connections are made.
    pub establishment: Establishment,
    /// How fast they are let go; in namespaces only, because the table's size must be known.
    pub tear_down: Option<TearDown>,
    /// The throughput with a full table.
    pub full: Throughput,
    /// Flows of it.
    pub full_flows: u32,
    /// The throughput with few flows.
    pub few: Throughput,
    /// Flows of it.
    pub few_flows: u32,
}

/// How many connections there can be (RFC 9693 §4.7).
#[derive(Debug, Serialize)]
pub struct Capacity {
    /// Connections that were tried.
    pub tried: u32,
    /// Connections that pass in both directions afterwards.
    pub established: u64,
    /// Whether fewer than tried, so that this is the device's limit.
    pub is_limit: bool,
}

/// How fast connections are made (RFC 9693 §4.4): the highest rate at which each first frame makes one.
#[derive(Debug, Serialize)]
pub struct Establishment {
    /// Connections of a trial, at most.
    pub connections: u32,
    /// The rate.
    pub rate: Throughput,
    /// Connections of one more trial at that rate, and of these, those that pass in both directions (RFC 9693 §4.4,
    /// validation).
    pub validated: Option<(u64, u64)>,
    /// Every trial.
    pub trials: Vec<Trial>,
}

/// How fast connections are let go (RFC 9693 §4.6).
#[derive(Debug, Serialize)]
pub struct TearDown {
    /// Connections before.
    pub connections: u64,
    /// RSTs a second that were sent.
    pub resets: f64,
    /// Seconds from the first RST until the table was empty; `None` if it was not within a minute.
    pub seconds: Option<f64>,
    /// Of these, how long each connection lingers by design.
    pub linger: f64,
    /// Connections a second, the lingering taken off. The RSTs' own rate bounds it.
    pub rate: Option<f64>,
}

/// Runs the method. `options.flows` is the room of the table, in namespaces.
///
/// # Errors
/// When something cannot be set up, or no frame passes.
pub(super) fn run(options: &Options, mut progress: impl FnMut(&str) + Send) -> Result<Report, TrafficError> {
    let room = options.flows;
    let size = options.sizes.first().copied().unwrap_or(Sizes::Fixed(64));
    progress("starting the device under test");
    let mut bench = Bench::open(options, |setup| super::Setup { flows: room, ..setup })?;
    let found = pinned(&mut bench, |bench| {
        let establishment = establishment(bench, options, size, &mut progress)?;
        let tear_down = tear_down(bench, options, size, establishment.rate.rate(), &mut progress)?;
        let capacity = capacity(bench, options, size, &mut progress)?;
        let full_flows = u32::try_from(capacity.established).unwrap_or(u32::MAX).max(1);
        let mut at = |bench: &mut Bench, flows, variant| -> Result<Throughput, TrafficError> {
            bench.empty()?;
            progress(&format!("{size} bytes: opening {flows} flows"));
            let stream = bench.stream(options.transport, flows, size, variant)?;
            bench.prepare(&stream)?;
            let found = throughput(search(options), |load, duration| {
                let trial = bench.trial(&stream, load, duration)?;
                progress(&told(size, &trial));
                Ok::<_, TrafficError>(trial)
            })?;
            Ok(found.0)
        };
        // Not quite full: a frame whose flow there is no room for would be a loss at any rate.
        let full_flows = (full_flows - full_flows / 50).max(1);
        let few_flows = FEW.min(full_flows);
        let full = at(bench, full_flows, 3)?;
        let few = at(bench, few_flows, 4)?;
        let configured = bench.lab.is_some().then_some(room);
        Ok(Found { configured, capacity, establishment, tear_down, full, full_flows, few, few_flows })
    })?;
    let passed = found.capacity.established > 0
        && found.establishment.validated.is_none_or(|(made, back)| made > 0 && back > 0)
        && found.tear_down.as_ref().is_none_or(|tear_down| tear_down.connections > 0 && tear_down.seconds.is_some());
    Ok(Report::new("connections", options, Results::Connections(found), passed, Vec::new()))
}

fn search(options: &Options) -> Search {
    let (precision, most_trials) = if options.quick { (0.3, 4 * PATIENCE) } else { (0.05, 40) };
    let duration = Duration::from_secs_f64(options.seconds);
    Search { range: options.range, precision, duration, most_trials }
}

/// Makes new connections at a rate, each by its first frame.
fn open(bench: &mut Bench, stream: &Stream, count: u32, load: f64) -> Result<Trial, TrafficError> {
    let plan = Plan::each(opening(stream), count, load);
    let outcome = bench.station.run(stream, &plan, || false)?;
    let made = if stream.transport() == Transport::Tcp { outcome.answered } else { outcome.counts.received };
    let duration = Duration::from_secs_f64(f64::from(count) / load);
    Ok(Trial { received: made, ..trial(load, duration, &outcome) })
}

/// How many of the first connections pass in both directions.
fn validate(bench: &mut Bench, stream: &Stream, count: u32) -> Result<u64, TrafficError> {
    let plan = Plan { responder: Responder::Reflect, ..Plan::each(Kind::Data, count, FILLING / 2.0) };
    Ok(bench.station.run(stream, &plan, || false)?.back.received)
}

fn establishment(
    bench: &mut Bench,
    options: &Options,
    size: Sizes,
    progress: &mut impl FnMut(&str),
) -> Result<Establishment, TrafficError> {
    // Half of the room, so that the table's being full has nothing to do with it.
    let most = (options.flows / 2).max(1);
    let mut variant = 100;
    let mut fresh = |bench: &mut Bench| -> Result<Stream, TrafficError> {
        bench.empty()?;
        variant += 1;
        let stream = bench.stream(options.transport, most, size, variant)?;
        bench.first(&stream)?;
        Ok(stream)
    };
    let (rate, trials) = throughput(search(options), |load, duration| {
        let stream = fresh(bench)?;
        let count = ((load * duration.as_secs_f64()) as u32).clamp(1, most);
        let trial = open(bench, &stream, count, load)?;
        progress(&format!("{} new connections: {}", trial.sent, told(size, &trial)));
        Ok::<_, TrafficError>(trial)
    })?;
    let validated = match rate.rate() {
        Some(load) => {
            let stream = fresh(bench)?;
            let count = ((load * options.seconds) as u32).clamp(1, most);
            let made = open(bench, &stream, count, load)?;
            progress(&format!("validating {count} connections in both directions"));
            Some((made.received, validate(bench, &stream, count)?))
        }
        None => None,
    };
    Ok(Establishment { connections: most, rate, validated, trials })
}

fn capacity(
    bench: &mut Bench,
    options: &Options,
    size: Sizes,
    progress: &mut impl FnMut(&str),
) -> Result<Capacity, TrafficError> {
    bench.empty()?;
    let tried = options.flows + options.flows / 4;
    progress(&format!("opening {tried} connections where there is room for {}", options.flows));
    // The first datagrams of a flow are answered, so that TCP's limit for half-open flows is not what is measured.
    let stream = bench.stream(options.transport, tried, size, 50)?;
    bench.first(&stream)?;
    open(bench, &stream, tried, FILLING)?;
    let established = validate(bench, &stream, tried)?;
    Ok(Capacity { tried, established, is_limit: established < u64::from(tried) })
}

fn tear_down(
    bench: &mut Bench,
    options: &Options,
    size: Sizes,
    rate: Option<f64>,
    progress: &mut impl FnMut(&str),
) -> Result<Option<TearDown>, TrafficError> {
    if bench.lab.is_none() {
        return Ok(None);
    }
    bench.empty()?;
    let size = match size {
        // A TCP frame with its stamp needs more than 64 bytes.
        Sizes::Fixed(bytes) => Sizes::Fixed(bytes.max(128)),
        Sizes::Imix => Sizes::Imix,
    };
    let count = if options.quick { 2000.min(options.flows / 2) } else { options.flows / 2 };
    let stream = bench.stream(Transport::Tcp, count, size, 60)?;
    progress(&format!("opening {count} TCP connections, to end them by RST"));
    bench.prepare(&stream)?;
    // The gateway publishes its counters now and then.
    bench.station.idle(Duration::from_millis(300))?;
    let connections = bench.live_flows()?;
    let resets = rate.unwrap_or(FILLING).min(FILLING * 4.0);
    let since = Instant::now();
    let outcome = bench.station.run(&stream, &Plan::each(Kind::Reset, count, resets), || false)?;
    let sent = Instant::now();
    let mut seconds = None;
    while seconds.is_none() && sent.elapsed() < EMPTY {
        if bench.live_flows()? == 0 {
            seconds = Some(since.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let rate = seconds.map(|seconds| connections as f64 / (seconds - LINGER).max(0.001));
    Ok(Some(TearDown { connections, resets: outcome.pace.achieved, seconds, linger: LINGER, rate }))
}

impl Found {
    pub(super) fn write(&self, text: &mut String) {
        let Self { configured, capacity, establishment, tear_down, full, full_flows, few, few_flows } = self;
        let _ = writeln!(text, "connections (RFC 9693)");
        let limit = if capacity.is_limit { "the limit" } else { "not the limit: all that were tried" };
        let _ = write!(text, "  table capacity      {} connections, {limit}", capacity.established);
        let _ = match configured {
            Some(configured) => writeln!(text, " (configured: {configured})"),
            None => writeln!(text),
        };
        let _ = writeln!(text, "  establishment rate  {}", rate(&establishment.rate, "connections/s"));
        if let Some((made, back)) = establishment.validated {
            let _ =
                writeln!(text, "                      at that rate {made} were made, {back} pass in both directions");
        }
        if let Some(TearDown { connections, resets, seconds, linger, rate }) = tear_down {
            let _ = match (seconds, rate) {
                (Some(seconds), Some(rate)) => writeln!(
                    text,
                    "  tear-down rate      {rate:.0} connections/s: {connections} were gone {seconds:.2} s after the first \
                     of {resets:.0} RSTs/s, {linger} s of that by design"
                ),
                _ => writeln!(text, "  tear-down rate      {connections} connections were not gone after a minute"),
            };
        }
        let _ = writeln!(text, "  throughput          {} with {full_flows} connections", rate(full, "frames/s"));
        let _ = writeln!(text, "                      {} with {few_flows}", rate(few, "frames/s"));
    }
}

fn rate(found: &Throughput, unit: &str) -> String {
    match *found {
        Throughput::Found { rate, lossy } => format!("{rate:.0} {unit} (loss at {lossy:.0})"),
        Throughput::Ceiling { rate } => format!("{rate:.0} {unit}, the highest that was asked for"),
        Throughput::GeneratorBound { rate: Some(rate) } => format!("generator-bound: no loss at {rate:.0} {unit}"),
        Throughput::GeneratorBound { rate: None } => "generator-bound at the lowest rate".to_owned(),
        Throughput::NeverLossFree { lowest, loss_ratio } => {
            format!("none without loss: {:.4} % at {lowest:.0} {unit}", loss_ratio * 100.0)
        }
        Throughput::Unfinished { rate, lossy } => format!("not found in time: between {rate:?} and {lossy:?} {unit}"),
    }
}

//! `postern bench control`: how long a change takes until a gateway has it, and what it costs the traffic.
//!
//! A real `postern control` and a real `postern dataplane` run in the gateway's namespace of the same topology as `postern
//! bench nat`. The catalog is filled through the API. A change counts as applied when control says so, which it does when
//! the gateway has acknowledged it and the acknowledgement is on control's disk: every worker forwards by it then, its
//! address is announced, and it is on the gateway's disk.

pub mod api;
pub mod bed;
pub mod frames;
pub mod report;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde_json::Value;

use crate::nat::flood::Sink;
use crate::nat::processor::{Machine, busy_seconds};
use crate::nat::topology::Topology;
use crate::nat::{self, NatError};
use api::Api;
use bed::{Bed, Size, TARGETS, listening, target_port};
use frames::{Arrivals, Sender};
use report::{Figure, Report, quantiles};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    Kernel(&'static str, Errno),
    /// Input or output failed.
    #[error("cannot {0}: {1}")]
    Io(&'static str, std::io::Error),
    /// The topology.
    #[error(transparent)]
    Topology(#[from] NatError),
    /// A namespace.
    #[error(transparent)]
    Namespace(#[from] postern_lab::NamespaceError),
    /// An interface.
    #[error(transparent)]
    Interface(#[from] postern_lab::InterfaceError),
    /// A process.
    #[error(transparent)]
    Process(#[from] postern_lab::ProcessError),
    /// The gateway's process.
    #[error(transparent)]
    Gateway(#[from] postern_lab::GatewayError),
    /// Control's process.
    #[error(transparent)]
    Control(#[from] postern_lab::ControlError),
    /// A call that control refused.
    #[error("control answers {call} with status {status}: {said}")]
    Refused {
        /// Method and path.
        call: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// Something did not become so.
    #[error("{what}: not within {} s", .within.as_secs())]
    NotInTime {
        /// What.
        what: String,
        /// How long it had.
        within: Duration,
    },
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `postern` binary, started as control and as the gateway.
    pub binary: PathBuf,
    /// Endpoints of the large tables.
    pub endpoints: u32,
    /// Services of the large tables, with ten targets each; at most 50,000.
    pub services: u32,
    /// Endpoints made one by one, with small tables and with large ones.
    pub additions: [u32; 2],
    /// Changes under traffic.
    pub changes: u32,
    /// Whether it is to show that it works, and not how fast it is.
    pub quick: bool,
}

/// Flows of the traffic.
const FLOWS: u16 = 64;
/// First source port of the traffic.
const FIRST_PORT: u16 = 20_000;
/// First source port of first packets.
const FIRST_PACKET_PORT: u16 = 40_000;
/// Endpoints whose first packets are waited for, spread evenly over all.
const SAMPLES: u32 = 64;
/// How long the first packets may take.
const FORWARDED: Duration = Duration::from_secs(120);
/// The share of the loss-free rate at which tables are changed.
const SHARE: f64 = 0.2;
/// Frames a second at which the search for the loss-free rate begins and ends.
const RATES: (f64, f64) = (25_000.0, 1_600_000.0);
/// How long a rate is tried.
const TRIAL: Duration = Duration::from_millis(500);
/// How long the last frames may be on their way.
const SETTLE: Duration = Duration::from_millis(300);
/// How long traffic goes on before and after what is done under it.
const AROUND: Duration = Duration::from_millis(500);

/// Runs everything. `progress` gets a line of text before each step.
///
/// # Errors
/// When something cannot be set up, or a step fails.
pub fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<Report, BenchError> {
    let size = Size { endpoints: options.endpoints, services: options.services };
    let mut notes: Vec<String> = nat::strangers()?.into_iter().collect();
    progress("starting control and a gateway");
    let mut bed = Bed::build(&options.binary, size)?;
    notes.push(format!("store, tables and logs are in {}; each change waits for its disk", bed.directory().display()));
    let mut figures = Vec::new();
    let mut consumer = bed.consumer()?;

    progress(&format!("adding {} endpoints one by one to small tables", options.additions[0]));
    keep(&mut figures, additions(&mut bed, &mut consumer, "small", options.additions[0], 50.0)?, &mut progress);
    let empty = bed.gateway_memory()?;

    progress(&format!("declaring {} services and {} endpoints through the API", size.services, size.endpoints));
    let (called, applied) = bed.fill(size)?;
    let (called, applied) = (called.as_secs_f64(), applied.as_secs_f64());
    notes.push(format!(
        "the large tables were declared by POST /v1/apply in {called:.1} s; {applied:.1} s after that the gateway had all"
    ));
    let full = bed.gateway_memory()?;

    progress(&format!("adding {} endpoints one by one to large tables", options.additions[1]));
    keep(&mut figures, additions(&mut bed, &mut consumer, "large", options.additions[1], 20.0)?, &mut progress);
    let swap = workers(&bed.counters()?, "tables_longest").max().unwrap_or_default();
    let swap = Figure::new("worker_swap_longest", swap as f64 / 1e3, "µs").at_most(100.0);
    keep(&mut figures, [swap], &mut progress);
    keep(&mut figures, memory(size, empty, full), &mut progress);
    keep(&mut figures, cold_loads(&mut bed, size, &mut progress)?, &mut progress);
    let busy = busy_seconds()?;
    let (under_load, more) = under_load(&mut bed, &mut consumer, options.changes, &mut progress)?;
    keep(&mut figures, under_load, &mut progress);
    notes.extend(more);
    notes.push(format!("the traffic and the changes under it took {:.1} CPU seconds", busy_seconds()? - busy));
    Ok(Report {
        machine: Machine::here(),
        quick: options.quick,
        endpoints: size.endpoints,
        services: size.services,
        targets: size.services * TARGETS,
        notes,
        figures,
    })
}

/// Keeps what was measured, and says it: a run is long.
fn keep(figures: &mut Vec<Figure>, new: impl IntoIterator<Item = Figure>, progress: &mut impl FnMut(&str)) {
    for figure in new {
        progress(&format!("  {} {:.2} {}", figure.name, figure.value, figure.unit));
        figures.push(figure);
    }
}

/// Endpoints made one by one: from the call until the gateway has it.
fn additions(
    bed: &mut Bed,
    consumer: &mut Api,
    tables: &str,
    count: u32,
    most: f64,
) -> Result<Vec<Figure>, BenchError> {
    let (mut calls, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (id, called, applied) = bed.add_one(consumer)?;
        calls.push(called);
        whole.push(applied);
        bed.remove(consumer, &id)?;
    }
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let [call, ..] = quantiles(calls).map(milliseconds);
    let [median, p99, worst] = quantiles(whole).map(milliseconds);
    Ok(vec![
        Figure::new(format!("{tables}_tables_call_median"), call, "ms"),
        Figure::new(format!("{tables}_tables_applied_median"), median, "ms").at_most(most),
        Figure::new(format!("{tables}_tables_applied_p99"), p99, "ms").at_most(most),
        Figure::new(format!("{tables}_tables_applied_worst"), worst, "ms"),
    ])
}

/// Memory of an endpoint: what the gateway's whole process has in use with many, less what it had with one.
fn memory(size: Size, empty: u64, full: u64) -> Vec<Figure> {
    let counters = size_of::<postern_forwarding::counters::EndpointCounters>();
    let tables = full.saturating_sub(empty) as f64 / f64::from(size.endpoints);
    vec![
        // Counters of all endpoints that there may be are made at the start, so they are in both.
        Figure::new("tables_an_endpoint", tables, "bytes").at_most(1000.0),
        Figure::new("counters_an_endpoint_and_worker", counters as f64, "bytes").at_most(128.0),
    ]
}

/// From the start of the gateway's process until a first packet of every sampled endpoint is at the server.
fn cold_loads(bed: &mut Bed, size: Size, progress: &mut impl FnMut(&str)) -> Result<[Figure; 2], BenchError> {
    progress("starting the gateway with nothing on its disk");
    bed.until_applied()?;
    bed.stop_gateway(true)?;
    let from_control = cold_load(bed, size)?;
    progress("starting the gateway without control");
    bed.until_applied()?;
    bed.stop_gateway(false)?;
    bed.kill_control()?;
    let from_disk = cold_load(bed, size)?;
    bed.restart_control()?;
    let seconds = |name, time: Duration| Figure::new(name, time.as_secs_f64(), "s").at_most(3.0);
    Ok([seconds("cold_load_from_control", from_control), seconds("cold_load_from_disk", from_disk)])
}

fn cold_load(bed: &mut Bed, size: Size) -> Result<Duration, BenchError> {
    let samples = SAMPLES.min(size.services).min(size.endpoints);
    let (sender, arrivals) = (Sender::open(bed.topology())?, Arrivals::open(bed.topology())?);
    // The next one is of the next service, too.
    let endpoint = |sample: u32| (sample * (size.endpoints / samples) + sample).min(size.endpoints - 1);
    let mut missing: BTreeSet<u16> = (0..samples).map(|at| target_port(endpoint(at) % size.services)).collect();
    let frames: Vec<Vec<u8>> =
        (0..samples).map(|at| sender.frame(FIRST_PACKET_PORT + at as u16, listening(endpoint(at)))).collect();
    let since = Instant::now();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| bed.start_gateway());
        let mut sent = since;
        sender.send(&frames)?;
        while !missing.is_empty() {
            if since.elapsed() > FORWARDED {
                let what = format!(
                    "first packets of {} of {samples} endpoints are forwarded",
                    samples as usize - missing.len()
                );
                return Err(BenchError::NotInTime { what, within: FORWARDED });
            }
            for port in arrivals.ports()? {
                missing.remove(&port);
            }
            if sent.elapsed() > Duration::from_millis(10) {
                sent = Instant::now();
                sender.send(&frames)?;
            }
        }
        let took = since.elapsed();
        starting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(took)
    })
}

/// What was sent, and what became of it.
#[derive(Debug, Clone, Copy, Default)]
struct Loss {
    sent: u64,
    arrived: u64,
    /// Frames that the kernel did not deliver, because the gateway's ring was full.
    ring: u64,
}

impl Loss {
    /// Frames that the kernel delivered and that did not arrive.
    const fn lost(self) -> u64 {
        self.sent.saturating_sub(self.arrived).saturating_sub(self.ring)
    }
}

/// Changes, and a restart of control, while frames pass at a fifth of the rate at which none is lost.
fn under_load(
    bed: &mut Bed,
    consumer: &mut Api,
    changes: u32,
    progress: &mut impl FnMut(&str),
) -> Result<(Vec<Figure>, Vec<String>), BenchError> {
    bed.topology().exchange_one_datagram()?;
    let sender = Sender::open(bed.topology())?;
    let frames: Vec<Vec<u8>> = (0..FLOWS).map(|flow| sender.frame(FIRST_PORT + flow, Topology::endpoint())).collect();
    progress("looking for the rate at which no frame is lost");
    let rate = loss_free_rate(bed, &sender, &frames)?;
    let pace = rate * SHARE;

    progress(&format!("making {changes} changes under {pace:.0} frames a second"));
    let before = applied(&bed.counters()?);
    let since = Instant::now();
    let (loss, flows) = with_traffic(bed, (&sender, &frames, pace), |bed| {
        for _ in 0..changes.div_ceil(2) {
            let (id, ..) = bed.add_one(consumer)?;
            bed.remove(consumer, &id)?;
        }
        Ok(())
    })?;
    let seconds = since.elapsed().as_secs_f64();
    let made = applied(&bed.counters()?).saturating_sub(before);
    progress(&format!("killing control under {pace:.0} frames a second, and starting it again"));
    let (restart, changed) = with_traffic(bed, (&sender, &frames, pace), |bed| {
        bed.kill_control()?;
        std::thread::sleep(AROUND);
        bed.restart_control()
    })?;
    let frames = |name: &str, count: u64| Figure::new(name, count as f64, "frames");
    let figures = vec![
        Figure::new("loss_free_rate", rate, "frames/s"),
        Figure::new("changes_under_load", made as f64, "changes"),
        frames("changes_under_load_sent", loss.sent),
        frames("changes_under_load_ring_drops", loss.ring),
        frames("changes_under_load_lost", loss.lost()).none_ever(),
        Figure::new("changes_under_load_flows_changed", flows as f64, "flows").none_ever(),
        frames("control_restart_sent", restart.sent),
        frames("control_restart_ring_drops", restart.ring),
        frames("control_restart_lost", restart.lost()).none_ever(),
        Figure::new("control_restart_flows_changed", changed as f64, "flows").none_ever(),
    ];
    let notes = vec![
        format!(
            "{made} changes were applied one after the other in {seconds:.1} s, {:.1} a second",
            made as f64 / seconds
        ),
        "ring drops are frames that the kernel could not deliver to the gateway; they are in no other number"
            .to_owned(),
    ];
    Ok((figures, notes))
}

/// The highest of some rates, each twice the one before, at which nothing is lost.
fn loss_free_rate(bed: &mut Bed, sender: &Sender, frames: &[Vec<u8>]) -> Result<f64, BenchError> {
    let (mut rate, mut best) = (RATES.0, RATES.0);
    while rate <= RATES.1 {
        let since = Instant::now();
        let (loss, _) = with_traffic(bed, (sender, frames, rate), |_| {
            std::thread::sleep(TRIAL);
            Ok(())
        })?;
        let reached = loss.sent as f64 / since.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        if loss.arrived < loss.sent {
            break;
        }
        best = rate;
        // The generator has no more to give.
        if reached < rate / 4.0 {
            break;
        }
        rate *= 2.0;
    }
    Ok(best)
}

/// Sends frames in turn while something is done. Returns what became of them, and how many of their flows are not as they
/// were.
fn with_traffic(
    bed: &mut Bed,
    (sender, frames, rate): (&Sender, &[Vec<u8>], f64),
    work: impl FnOnce(&mut Bed) -> Result<(), BenchError>,
) -> Result<(Loss, usize), BenchError> {
    // Every flow is there before the first frame counts.
    sender.send(frames)?;
    std::thread::sleep(SETTLE);
    let flows = flows(bed)?;
    let ring = ring_drops(&bed.counters()?);
    let topology = bed.topology().clone();
    let sink = Sink::open(&topology)?;
    let arrived = sink.count()?;
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result<(), BenchError> {
        let _stop = StopOnDrop(&stop);
        let sending = scope.spawn(|| sender.pace(frames, rate, &sent, &stop));
        std::thread::sleep(AROUND);
        work(bed)?;
        std::thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    std::thread::sleep(SETTLE);
    let loss = Loss {
        sent: sent.load(Ordering::Relaxed),
        arrived: sink.count()?.saturating_sub(arrived),
        ring: ring_drops(&bed.counters()?).saturating_sub(ring),
    };
    let changed = flows.difference(&self::flows(bed)?).count();
    Ok((loss, changed))
}

/// Tells the generator to end, however the work ended.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The traffic's flows: who translates them how.
fn flows(bed: &mut Bed) -> Result<BTreeSet<String>, BenchError> {
    let flows = bed.gateway()?.flows()?;
    let of_traffic = |flow: &&Value| flow["service"].as_str() == Some(Topology::endpoint().to_string().as_str());
    let flows = flows.as_array().into_iter().flatten().filter(of_traffic);
    let flows: BTreeSet<String> =
        flows.map(|flow| ["client", "snat", "target"].map(|key| flow[key].to_string()).join(" ")).collect();
    Ok(flows)
}

/// Updates that the gateway has applied.
fn applied(counters: &Value) -> u64 {
    counters["control"]["applied"].as_u64().unwrap_or_default()
}

/// A number of each worker.
fn workers<'c>(counters: &'c Value, name: &'c str) -> impl Iterator<Item = u64> + 'c {
    counters["workers"].as_array().into_iter().flatten().filter_map(move |worker| worker["worker"][name].as_u64())
}

/// Frames that the kernel did not deliver to the gateway, of all ports.
fn ring_drops(counters: &Value) -> u64 {
    let ports = counters["ports"].as_array().into_iter().flatten();
    ports.filter_map(|port| port["received"]["kernel_drops"].as_u64()).sum()
}

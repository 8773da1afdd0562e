//! `postern lab demo`: everything up, real traffic, every byte checked, everything down.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use postern_dataplane::inspection::CountersReport;
use postern_lab::enclosure::{self, Privilege};
use postern_lab::{
    Gateway, Launcher, NamespaceError, Node, Offloads, ProcessError, Topology, TopologyError, Way, Wiring,
};
use serde::Serialize;

use super::requests::{self, Bulk, Series};
use super::tenants::{self, Tenants, TenantsError};
use super::{Shape, report, usual_workers};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    shape: Shape,
    /// Requests of each consumer over TCP, and as many over UDP
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u16).range(1..=20_000))]
    requests: u16,
    /// Mebibytes that each consumer moves each way; 0: none
    #[arg(long, default_value = "256", value_parser = clap::value_parser!(u64).range(0..=65_536))]
    bulk: u64,
    /// Declare everything in the gateway's file, without control; so it is with one-armed wiring, whose one network
    /// cannot belong to several tenants
    #[arg(long)]
    file: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the demonstration saw.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether all was right.
    pub(super) passed: bool,
    /// What was not.
    pub(super) problems: Vec<String>,
    /// Whether the lab ran as the root of a user namespace.
    pub(super) user_namespace: bool,
    pub(super) workers: usize,
    pub(super) offloads: bool,
    pub(super) mtu: u32,
    pub(super) series: Vec<Series>,
    pub(super) bulk: Vec<Bulk>,
    /// What was seen of the control plane; none without one.
    pub(super) control: Option<Tenants>,
    /// Wrong checksums that the stacks of clients and targets saw.
    pub(super) checksum_errors: i64,
    /// TCP segments that clients and targets sent again.
    pub(super) retransmits: i64,
    /// The gateway's counters, when all was quiet again.
    pub(super) counters: Option<CountersReport>,
    /// From the first namespace to the end, in seconds.
    pub(super) seconds: f64,
}

#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Enclosure(#[from] enclosure::EnclosureError),
    #[error("cannot take over the signals that interrupt: {0}")]
    Signals(nix::errno::Errno),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Tenants(#[from] TenantsError),
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match demonstrate(arguments) {
        Ok(report) => {
            if arguments.json {
                println!("{}", serde_json::json!(report));
            } else {
                print!("{}", report::demo(&report));
            }
            if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            if arguments.json {
                println!("{}", serde_json::json!({ "passed": false, "problems": [error.to_string()] }));
            }
            super::fail(&error)
        }
    }
}

fn demonstrate(arguments: &Arguments) -> Result<Report, DemoError> {
    let start = Instant::now();
    // What is known only outside: the path of the program that is to be started again.
    let launcher = Launcher::current()?;
    let (privilege, directory) = enclosure::enter()?;
    end_at_signals()?;
    let default_workers = if privilege == Privilege::Root { usual_workers() } else { 1 };
    let say = |words: &str| {
        if !arguments.json {
            eprintln!("{words}");
        }
    };
    say(
        "Building two consumer VPCs with the same addresses, a provider with three targets, and a gateway between them …",
    );
    let plan = arguments.shape.plan(default_workers);
    let mut builder = Topology::builder().plan(plan.clone()).directory(&directory);
    if !arguments.file && plan.wiring != Wiring::OneArmed {
        builder = builder.with_control();
    }
    let mut lab = builder.build(launcher.binary())?;
    let mut tenants = None;
    if let Some(control) = lab.control() {
        say("Both consumers have asked for an endpoint; the provider accepts them …");
        tenants::accept(control, tenants.insert(Tenants::default()))?;
    }
    say("Asking the endpoint from both VPCs at once, over TCP and UDP …");
    let mut report = Report {
        passed: false,
        problems: Vec::new(),
        user_namespace: privilege == Privilege::UserNamespace,
        workers: lab.plan().workers,
        offloads: lab.plan().offloads == Offloads::On,
        mtu: lab.plan().consumer_mtu,
        series: ask(lab.clients(), arguments.requests)?,
        bulk: Vec::new(),
        control: tenants,
        checksum_errors: 0,
        retransmits: 0,
        counters: None,
        seconds: 0.0,
    };
    judge_series(&mut report, arguments.requests);
    if arguments.bulk > 0 && report.problems.is_empty() {
        say("Moving bytes both ways …");
        move_bytes(lab.clients(), arguments.bulk << 20, &mut report)?;
    }
    judge_counters(&mut report, lab.gateway());
    if report.problems.is_empty() && report.control.is_some() {
        show_control(&mut lab, arguments.requests, &mut report, say)?;
    }
    for node in lab.clients().iter().chain(lab.targets().iter().map(postern_lab::Target::node)) {
        let statistics = node.namespace().statistics()?;
        report.checksum_errors += statistics.checksum_errors();
        report.retransmits += statistics.retransmits();
    }
    if report.checksum_errors > 0 {
        report.problems.push(format!("{} frames arrived with a wrong checksum", report.checksum_errors));
    }
    match lab.gateway_mut().stop() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            let status = postern_lab::process::describe(status);
            report.problems.push(format!("the gateway ended with {status} instead of exit code 0"));
        }
        Err(error) => report.problems.push(error.to_string()),
    }
    if !report.problems.is_empty() {
        eprint!("{}", report::log("gateway", &lab.gateway().log()));
        if let Some(control) = lab.control() {
            eprint!("{}", report::log("control", &control.process.log()));
        }
    }
    drop(lab);
    report.passed = report.problems.is_empty();
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// Both consumers at once, from the same ports: what they do shall not touch.
fn ask(clients: &[Node; 2], count: u16) -> Result<Vec<Series>, DemoError> {
    type Ask = fn(&Node, u16) -> Result<Series, NamespaceError>;
    let asks: [Ask; 2] = [requests::tcp, requests::udp];
    let mut all = Vec::new();
    for ask in asks {
        let both = thread::scope(|scope| {
            let running = clients.each_ref().map(|client| scope.spawn(move || ask(client, count)));
            running.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        for series in both {
            all.push(series?);
        }
    }
    Ok(all)
}

fn judge_series(report: &mut Report, requests: u16) {
    /// With fewer requests a target may be missed by chance: 3 · (2/3)^50 is less than one in a hundred million.
    const ENOUGH: u16 = 50;
    const TARGETS: usize = 3;
    for series in &mut report.series {
        report.problems.append(&mut series.problems);
        if series.answered == usize::from(requests) && requests >= ENOUGH && series.by_target.len() < TARGETS {
            let Series { consumer, protocol, by_target, .. } = series;
            let answered = by_target.len();
            report.problems.push(format!("only {answered} of {TARGETS} targets answered {consumer} over {protocol}"));
        }
    }
}

fn move_bytes(clients: &[Node; 2], bytes: u64, report: &mut Report) -> Result<(), DemoError> {
    for (client, way, seed) in [
        (&clients[0], Way::Upload, 1),
        (&clients[0], Way::Download, 2),
        (&clients[1], Way::Upload, 3),
        (&clients[1], Way::Download, 4),
    ] {
        match requests::bulk(client, way, seed, bytes)? {
            Ok(bulk) => report.bulk.push(bulk),
            Err(error) => report.problems.push(format!("{}: {error}", client.name())),
        }
    }
    Ok(())
}

/// A target dies, a consumer is rejected, and the traffic is accounted for.
fn show_control(lab: &mut Topology, requests: u16, report: &mut Report, say: impl Fn(&str)) -> Result<(), DemoError> {
    let mut tenants = report.control.take().unwrap_or_default();
    let mut steps = || -> Result<(), TenantsError> {
        if lab.control().is_some_and(|control| control.declared.probed) {
            say("Killing a target, and waiting until probes have found out …");
            tenants::lose_a_target(lab, requests, &mut tenants)?;
        }
        // Before the rejection: an endpoint that is gone has no counters at the gateway any more.
        say("Comparing what usage shows with what was moved …");
        let counters = || quiet_counters(lab.gateway());
        let payload = lab.clients().each_ref().map(|client| payload(client.name(), report));
        if let Some(control) = lab.control() {
            tenants::account(control, payload, counters, &mut tenants)?;
        }
        say("Rejecting a consumer while both talk …");
        tenants::reject(lab, &mut tenants)
    };
    let outcome = steps();
    report.control = Some(tenants);
    match outcome {
        Ok(()) => {}
        Err(TenantsError::Wrong(problem)) => report.problems.push(problem),
        Err(error) => return Err(error.into()),
    }
    report.counters = Some(match quiet_counters(lab.gateway()) {
        Ok(counters) => counters,
        Err(problem) => {
            report.problems.push(problem);
            return Ok(());
        }
    });
    Ok(())
}

/// Bytes of payload that a consumer moved.
fn payload(consumer: &str, report: &Report) -> u64 {
    let series = report.series.iter().filter(|series| series.consumer == consumer).map(|series| series.payload);
    let bulk = report.bulk.iter().filter(|bulk| bulk.consumer == consumer).map(|bulk| bulk.bytes);
    series.chain(bulk).sum()
}

/// Every frame is accounted for, and none of the endpoints' was dropped.
fn judge_counters(report: &mut Report, gateway: &Gateway) {
    let counters = match quiet_counters(gateway) {
        Ok(counters) => counters,
        Err(problem) => return report.problems.push(problem),
    };
    for endpoint in counters.endpoints.iter().filter(|endpoint| endpoint.traffic.drops > 0) {
        let (id, drops) = (&endpoint.id, endpoint.traffic.drops);
        report.problems.push(format!("the gateway dropped {drops} frames of {id}"));
    }
    report.counters = Some(counters);
}

/// The gateway's counters when all is quiet, or what is wrong with them.
fn quiet_counters(gateway: &Gateway) -> Result<CountersReport, String> {
    /// Bursts end, and held frames leave, within moments.
    const QUIET: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + QUIET;
    loop {
        let counters = gateway.counters().map_err(|error| error.to_string())?;
        let counters: CountersReport = serde_json::from_value(counters).map_err(|error| error.to_string())?;
        match counters.total.imbalance {
            0 => return Ok(counters),
            _ if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            imbalance => {
                return Err(format!("the gateway's counters differ by {imbalance} frames from what it received"));
            }
        }
    }
}

/// Interrupted, the process ends at once, and with it everything: the kernel kills the gateway with the thread that started
/// it, and namespaces, interfaces and files in them go with their last process.
fn end_at_signals() -> Result<(), DemoError> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Blocked here and in all threads to come, they wait for the one that waits for them.
    signals.thread_block().map_err(DemoError::Signals)?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            const BY_SIGNAL: i32 = 128;
            eprintln!("\nInterrupted by {signal}; the lab is gone.");
            std::process::exit(BY_SIGNAL + signal as i32);
        }
    });
    Ok(())
}

//! `postern bench`: Postern against the kernel's own NAT, the packet path alone, changes of the tables, and methods of
//! measurement with test frames.

mod documents;
mod methods;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use postern_benches::{control, nat, path};

/// `postern bench`
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare Postern with nftables: the same topology in network namespaces, alternating in one run; needs root
    Nat(Nat),
    /// Compare Postern's back ends with nftables, a bare reflector and peers of your own, in turn, and report all CPU time that
    /// each took; needs root
    Compare(documents::Compare),
    /// Show a report that was written as JSON: as tables, or as one HTML page
    Report(documents::Show),
    /// Measure the packet path in memory, without kernel and devices: by packet mix, number of flows and of workers
    Path(Path),
    /// Measure how long changes take until a gateway has them, and what they cost the traffic: a control plane and a gateway
    /// in network namespaces; needs root
    Control(Control),
    #[command(flatten)]
    Method(methods::Method),
}

#[derive(Args)]
struct Nat {
    /// Print JSON; `ratios` are larger where Postern is better
    #[arg(long)]
    json: bool,
    /// One short round of everything: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// How often each contender has its turn at each line
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds of one measurement, 0.1 to 60
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Connections in turn for each contender, over all rounds
    #[arg(long, default_value_t = 100_000)]
    connections: u64,
    /// Only the lines whose name contains this: tcp_1_stream, tcp_4_streams, udp_64, udp_64_sink_apart, rtt, rtt_udp, connections
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

#[derive(Args)]
struct Path {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the report as one HTML page to a file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// One short round of everything: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Numbers of flows of each worker
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000],
          value_parser = clap::value_parser!(u32).range(64..=4_000_000))]
    flows: Vec<u32>,
    /// Packet mixes: tcp, udp, imix, tcp6, udp6, nat64, new_tcp, new_udp; all of them by default
    #[arg(long, value_delimiter = ',', value_name = "MIX")]
    mix: Vec<String>,
    /// Numbers of workers; 1 and, where there are two CPUs, 2 by default
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Vec<u16>,
    /// Seconds of one measurement, 0.1 to 60
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
}

#[derive(Args)]
struct Control {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Small tables and few changes: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Endpoints of the large tables
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=400_000))]
    endpoints: u32,
    /// Services of the large tables, with ten targets each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    services: u32,
    /// Endpoints made one by one, with small tables and again with large ones
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    additions: u32,
    /// Changes under traffic
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    changes: u32,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number from 0.1 to 60".to_owned()),
    }
}

/// Runs it; the exit code is 0 only if Postern passed every measurement that is judged.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let progress = |text: &str| eprintln!("{text}");
    let outcome = match arguments.command {
        Command::Nat(arguments) => compare(&arguments, progress),
        Command::Compare(arguments) => arguments.run(progress),
        Command::Report(arguments) => arguments.run(),
        Command::Path(arguments) => in_memory(&arguments, progress),
        Command::Control(arguments) => change(&arguments, progress),
        Command::Method(method) => method.run(progress),
    };
    match outcome {
        Ok((text, passed)) => {
            // A reader that has gone away is no failure of the measurement.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Nat, progress: impl FnMut(&str)) -> Result<(String, bool), String> {
    let binary: PathBuf = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let quick = arguments.quick;
    let options = nat::Options {
        binary,
        rounds: if quick { 1 } else { usize::from(arguments.rounds) },
        window: Duration::from_secs_f64(if quick { 0.3 } else { arguments.seconds }),
        connections: if quick { arguments.connections.min(500) } else { arguments.connections },
        only: arguments.only.clone(),
    };
    let report = nat::run(&options, progress).map_err(|error| error.to_string())?;
    let text = if arguments.json { report.to_json() } else { report.to_text() };
    Ok((text, report.passed()))
}

fn in_memory(arguments: &Path, progress: impl FnMut(&str)) -> Result<(String, bool), String> {
    let quick = arguments.quick;
    let workers = match arguments.workers.as_slice() {
        [] => (1..=nat::processor::cores().min(2)).collect(),
        given => given.iter().copied().map(usize::from).collect(),
    };
    let options = path::Options {
        flows: if quick { vec![1000] } else { arguments.flows.clone() },
        workers,
        mixes: arguments.mix.clone(),
        window: Duration::from_secs_f64(if quick { 0.1 } else { arguments.seconds }),
    };
    let since = SystemTime::now();
    let report = path::run(&options, progress).map_err(|error| error.to_string())?;
    if let Some(path) = &arguments.html {
        documents::write(path, &report.to_document(since, quick).to_html())?;
    }
    Ok((if arguments.json { report.to_json() } else { report.to_text() }, true))
}

fn change(arguments: &Control, progress: impl FnMut(&str)) -> Result<(String, bool), String> {
    let binary: PathBuf = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let Control { json, quick, endpoints, services, additions, changes } = *arguments;
    let options = if quick {
        control::Options { binary, endpoints: 2000, services: 20, additions: [20, 20], changes: 100, quick }
    } else {
        control::Options { binary, endpoints, services, additions: [additions; 2], changes, quick }
    };
    let report = control::run(&options, progress).map_err(|error| error.to_string())?;
    let text = if json { report.to_json() } else { report.to_text() };
    Ok((text, report.passed()))
}

//! `postern`, a private link for Linux: one program for the gateway, control and its clients, the lab and the benchmark.
#![forbid(unsafe_code)]

mod apply;
mod bench;
mod client;
mod completions;
mod control;
mod counters;
mod dataplane;
mod events;
mod flows;
mod gateway_socket;
mod lab;
mod objects;
mod print;
mod replay;
mod usage;
mod whoami;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A private link for Linux: consumers reach a service of another network through one private address of their own.
#[derive(Parser)]
#[command(name = "postern", version, propagate_version = true)]
struct Postern {
    #[command(subcommand)]
    command: Command,
}

/// One line for each subcommand; its arguments and what it does are in the module of its name.
#[derive(Subcommand)]
enum Command {
    /// Make what control knows what files say
    Apply(apply::Arguments),
    /// Measure Postern on this machine
    Bench(bench::Arguments),
    /// Print what a shell needs to complete these commands
    Completions(completions::Arguments),
    /// Run control: what is declared, by whom, and who may connect
    Control(control::Arguments),
    /// Show everything that a running gateway counts
    Counters(counters::Arguments),
    /// Run a gateway
    Dataplane(dataplane::Arguments),
    /// List what happened to connections
    Events(events::Arguments),
    /// List the live flows of a running gateway
    Flows(flows::Arguments),
    /// Build a private link out of network namespaces on this machine, and try it
    Lab(lab::Arguments),
    /// Push a capture through the forwarder, offline
    Replay(replay::Arguments),
    /// Show endpoint hours and bytes by month
    Usage(usage::Arguments),
    /// Show as whom control knows you
    Whoami(whoami::Arguments),
    #[command(flatten)]
    Objects(objects::Command),
}

fn main() -> ExitCode {
    // No thread may start before a command does: the lab moves the process into a user namespace, which the kernel
    // allows to single-threaded processes only.
    match Postern::parse().command {
        Command::Apply(arguments) => apply::run(&arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Control(arguments) => control::run(arguments),
        Command::Counters(arguments) => counters::run(&arguments),
        Command::Dataplane(arguments) => dataplane::run(arguments),
        Command::Events(arguments) => events::run(&arguments),
        Command::Flows(arguments) => flows::run(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
        Command::Replay(arguments) => replay::run(arguments),
        Command::Usage(arguments) => usage::run(&arguments),
        Command::Whoami(arguments) => whoami::run(&arguments),
        Command::Objects(command) => objects::run(&command),
    }
}

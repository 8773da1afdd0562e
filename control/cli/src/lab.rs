//! `postern lab`: a private link out of network namespaces.

mod background;
mod demo;
mod report;
mod requests;
mod tenants;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use postern_lab::{Offloads, Plan, Servers, Wiring};

/// `postern lab …`
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up, try it with real traffic, check every byte, and take it down
    Demo(demo::Arguments),
    /// Bring a lab up and leave it running (root only)
    Up {
        #[command(flatten)]
        shape: Shape,
        /// Have the gateway told by a control plane, in which an operator, a provider and two consumers declare it all
        #[arg(long)]
        control: bool,
    },
    /// Take the running lab down
    Down,
    /// Say what runs
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command on a host of the running lab
    #[command(after_help = "Example: postern lab exec client-a -- curl http://10.0.0.100/")]
    Exec {
        /// client-a, client-b, target-1, target-2, target-3, provider, consumers, gateway; or control, where `postern`
        /// asks the lab's control plane
        node: String,
        /// At control: as whom to ask [default: operator]
        #[arg(long = "as", value_name = "PRINCIPAL")]
        principal: Option<String>,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Run the servers of a target in this namespace
    #[command(hide = true)]
    Serve { name: String },
    /// Become a program whose life is tied to the starter's
    #[command(hide = true)]
    Launch {
        #[arg(long)]
        starter: Option<i32>,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// What the lab is to be like.
#[derive(Args, Clone)]
struct Shape {
    /// Workers of the gateway [default: 2, or 1 on one CPU or without root]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Whether clients and targets use super-frames and partial checksums
    #[arg(long, value_enum, default_value = "on")]
    offloads: Switch,
    /// MTU of all links in bytes
    #[arg(long, default_value = "1500", value_parser = clap::value_parser!(u32).range(576..=65535))]
    mtu: u32,
    /// How the parts are joined
    #[arg(long, value_enum, default_value = "ports")]
    wiring: WiringName,
    /// What an idle worker does
    #[arg(long, default_value = "adaptive", value_parser = ["adaptive", "spin", "sleep"])]
    polling: String,
    /// How frames come in and go out of the gateway's ports
    #[arg(long, default_value = "af_packet", value_parser = ["af_packet", "io_uring", "af_xdp", "auto"])]
    io: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
enum WiringName {
    /// A port for each VPC
    Ports,
    /// Both consumers on one port, in VLANs
    Vlans,
    /// Consumers and targets behind one port
    OneArmed,
}

impl Shape {
    fn plan(&self, default_workers: usize) -> Plan {
        Plan {
            wiring: match self.wiring {
                WiringName::Ports => Wiring::Ports,
                WiringName::Vlans => Wiring::Vlans,
                WiringName::OneArmed => Wiring::OneArmed,
            },
            offloads: match self.offloads {
                Switch::On => Offloads::On,
                Switch::Off => Offloads::Off,
            },
            consumer_mtu: self.mtu,
            provider_mtu: self.mtu,
            workers: self.workers.map_or(default_workers, usize::from),
            polling: self.polling.clone(),
            io: self.io.clone(),
            ..Plan::default()
        }
    }
}

/// Workers for a machine that lends BPF: two, where there are two CPUs to run them.
fn usual_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(2))
}

pub(crate) fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Up { shape, control } => finish(background::up(&shape, control)),
        Command::Down => finish(background::down()),
        Command::Status { json } => background::status(json),
        Command::Exec { node, principal, command } => {
            finish(Err(background::exec(&node, principal.as_deref(), &command)))
        }
        Command::Serve { name } => serve(&name),
        Command::Launch { starter, command } => {
            fail(&postern_lab::process::launch(starter, &command[0], &command[1..]))
        }
    }
}

fn finish(outcome: Result<(), background::BackgroundError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("postern lab: {error}");
    ExitCode::FAILURE
}

/// Serves until it is ended by a signal.
fn serve(name: &str) -> ExitCode {
    let _servers = match Servers::start_here(name) {
        Ok(servers) => servers,
        Err(error) => return fail(&error),
    };
    println!("ready");
    if let Err(error) = std::io::stdout().flush() {
        return fail(&error);
    }
    loop {
        std::thread::park();
    }
}

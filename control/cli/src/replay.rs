//! `postern replay`: a capture through the forwarder, offline.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use postern_dataplane::{configuration, replay};

use crate::counters;

/// `postern replay …`
#[derive(Args)]
pub(crate) struct Arguments {
    /// Configuration file of the gateway that the frames are for
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Capture to push through: pcap or pcapng
    #[arg(long = "in", value_name = "CAPTURE")]
    input: PathBuf,
    /// Capture to write: what the gateway sends
    #[arg(long = "out", value_name = "FILE")]
    output: PathBuf,
    /// Port on which every frame arrives; by default the one that the capture names, or where the destination is
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// Print the counters as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let Arguments { config, input, output, port, json } = arguments;
    let checked = match configuration::load(&config) {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match replay::replay(&checked, &replay::Replay { input, output, port }) {
        Ok(report) if json => match serde_json::to_string_pretty(&report) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Ok(report) => {
            counters::print(&report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

//! `postern control`: the role that decides.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use postern_control::server;
use postern_control::settings::Settings;
use tracing::error;

use crate::dataplane;

/// Settings that cannot be used: the exit code for bad usage, as clap has it.
const REFUSED: u8 = 2;

/// `postern control …`
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Run with this file of settings
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Check a file of settings without running
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    match (arguments.command, arguments.config) {
        (Some(Command::Check { file }), _) => check(&file),
        (None, Some(file)) => serve(&file),
        (None, None) => unreachable!("clap requires one or the other"),
    }
}

fn serve(file: &Path) -> ExitCode {
    let settings = match Settings::load(file) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(REFUSED);
        }
    };
    dataplane::log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!("cannot start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(server::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> ExitCode {
    match Settings::load(file) {
        Ok(_) => {
            println!("{} is right", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(REFUSED)
        }
    }
}

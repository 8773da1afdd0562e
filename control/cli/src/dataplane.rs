//! `postern dataplane`: the gateway, and what goes with it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use postern_dataplane::back_end::BackEnd;
use postern_dataplane::ports::PortError;
use postern_dataplane::{Checked, Port, configuration, startup};
use tracing::error;
use tracing_subscriber::EnvFilter;

/// Where a gateway keeps its files unless its configuration says otherwise.
const RUN_DIRECTORY: &str = "/run/postern";
/// Exit code for a configuration that is refused.
const REFUSED: u8 = 2;

/// `postern dataplane …`
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Configuration file of the gateway to run
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Say everything that is wrong with a configuration file; exit code 2 if anything is
    Check {
        /// The file
        file: PathBuf,
    },
    /// Put ports back as they were before a gateway that was killed
    Restore {
        /// Configuration file of that gateway
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    match (arguments.command, arguments.config) {
        (Some(Command::Check { file }), _) => check(&file),
        (Some(Command::Restore { config }), _) => restore(config.as_deref()),
        (None, Some(file)) => forward(&file),
        (None, None) => unreachable!("clap requires one or the other"),
    }
}

/// Writes logs to standard error; `POSTERN_LOG` chooses which (`info` by default).
pub(crate) fn log() {
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // journald has its own clock.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
}

fn forward(file: &Path) -> ExitCode {
    log();
    match startup::run(file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(startup::StartupError::Configuration(error)) => {
            eprintln!("{error}");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> ExitCode {
    match configuration::load(file) {
        Ok(checked) => {
            for warning in &checked.warnings {
                eprintln!("warning: {warning}");
            }
            match back_ends(&checked) {
                Ok(lines) => {
                    println!("{} is right\n{lines}", file.display());
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::from(REFUSED)
                }
            }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(REFUSED)
        }
    }
}

/// Which back end each port would have on this machine, and why, one a line.
fn back_ends(checked: &Checked) -> Result<String, PortError> {
    let line = |port: &Port| {
        let choice = BackEnd::choose(port.io, &port.interface).map_err(|source| PortError::BackEnd {
            file: checked.file.clone(),
            interface: port.interface.clone(),
            source,
        })?;
        Ok(format!("port {}: {}: {}", port.interface, choice.back_end, choice.reason))
    };
    Ok(checked.ports.iter().map(line).collect::<Result<Vec<_>, PortError>>()?.join("\n"))
}

fn restore(file: Option<&Path>) -> ExitCode {
    log();
    let directory = match file.map(configuration::load) {
        None => PathBuf::from(RUN_DIRECTORY),
        Some(Ok(checked)) => checked.gateway.run_directory,
        Some(Err(error)) => {
            eprintln!("{error}");
            return ExitCode::from(REFUSED);
        }
    };
    match startup::restore(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

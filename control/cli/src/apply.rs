//! `postern apply`: a whole desired state out of files.

mod difference;
mod manifest;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::client::{ClientError, EXIT_CODES, Options, Request};
use crate::print;

/// `postern apply …`
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// TOML file with objects, or a directory of such files (*.toml); may be said several times
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Also delete your objects of which the files do not speak
    #[arg(long)]
    prune: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: Options,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match apply(arguments) {
        Ok(plan) if arguments.json => print::json(&plan),
        Ok(plan) => {
            let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            print::text(&difference::plan(&plan, arguments.dry_run, colours))
        }
        Err(error) => print::error(&error),
    }
}

fn apply(arguments: &Arguments) -> Result<serde_json::Value, ClientError> {
    let manifests = manifest::read(&arguments.files).map_err(|error| ClientError::Usage(error.to_string()))?;
    let body = json!({ "manifests": manifests, "prune": arguments.prune, "dry_run": arguments.dry_run });
    arguments.control.api()?.send(&Request::post("/v1/apply", body))
}

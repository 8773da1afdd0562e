//! `postern whoami`: as whom control knows the caller.

use std::process::ExitCode;

use clap::Args;

use crate::client::{EXIT_CODES, Options, Request};
use crate::objects::show;
use crate::print;

/// `postern whoami …`
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: Options,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match arguments.control.api().and_then(|api| api.send(&Request::get("/v1/whoami"))) {
        Ok(answer) if arguments.json => print::json(&answer),
        Ok(answer) => print::text(&show::one(&answer)),
        Err(error) => print::error(&error),
    }
}

//! `postern events`: what happened to connections.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::client::{Api, ClientError, EXIT_CODES, Options, Request};
use crate::objects::show;
use crate::print;

/// `postern events …`
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Only events behind this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
    /// Go on with those to come, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Print JSON: an event a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: Options,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match arguments.control.api().and_then(|api| follow(&api, arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print::error(&error),
    }
}

fn follow(api: &Api, arguments: &Arguments) -> Result<(), ClientError> {
    /// How long control may hold an answer back until there is an event.
    const WAIT_SECONDS: u64 = 20;
    let mut after = arguments.after;
    let mut wait = 0;
    loop {
        let answer = api.send(&Request::get(format!("/v1/events?after={after}&wait_seconds={wait}")))?;
        let events = match &answer {
            Value::Array(events) => events.as_slice(),
            other => other["events"].as_array().map_or(&[][..], Vec::as_slice),
        };
        for event in events {
            if arguments.json {
                print::json_line(event);
            } else {
                print::text(&line(event));
            }
            after = event["sequence"].as_u64().unwrap_or(after).max(after);
        }
        // Those of others are passed over.
        after = answer["next"].as_u64().unwrap_or(after).max(after);
        if events.is_empty() && !arguments.follow {
            return Ok(());
        }
        wait = if arguments.follow { WAIT_SECONDS } else { 0 };
    }
}

fn line(event: &Value) -> String {
    let time = event["time"].as_u64().map(show::time).unwrap_or_default();
    let [sequence, kind, service, provider, endpoint, consumer] =
        ["sequence", "event", "service", "provider", "endpoint", "consumer"].map(|key| show::cell(&event[key]));
    format!("{sequence:>6}  {time}  {kind:<7}  {endpoint} of {consumer} → {service} of {provider}")
}

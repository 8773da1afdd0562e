//! `postern usage`: endpoint hours and bytes by month.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::client::{ClientError, EXIT_CODES, Options, Request, escape};
use crate::objects::show;
use crate::print;

/// `postern usage …`
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// The month, as 2026-11; without: the present one
    #[arg(long, value_name = "YEAR-MONTH")]
    month: Option<String>,
    /// What the rows are
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values with a head line
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    control: Options,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Endpoint,
    Consumer,
    Service,
}

/// Heads of the table, and where the values are in a row of the answer.
const COLUMNS: [(&str, &str); 10] = [
    ("month", "month"),
    ("consumer", "consumer"),
    ("endpoint", "endpoint"),
    ("service", "service"),
    ("endpoint hours", "endpoint_hours"),
    ("by zone", "hours_by_zone"),
    ("connections", "connections"),
    ("packets", "packets"),
    ("bytes", "bytes"),
    ("GB", "gigabytes"),
];

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let answer = || -> Result<ExitCode, ClientError> {
        let api = arguments.control.api()?;
        let request = Request::get(path(arguments));
        if arguments.csv {
            return Ok(print::text(&api.send_text(&request)?));
        }
        let answer = api.send(&request)?;
        Ok(if arguments.json { print::json(&answer) } else { print::text(&table(&answer)) })
    };
    answer().unwrap_or_else(|error| print::error(&error))
}

fn path(arguments: &Arguments) -> String {
    let by = arguments.by.and_then(|by| by.to_possible_value()).map(|by| ("by", by.get_name().to_owned()));
    let month = arguments.month.clone().map(|month| ("month", month));
    let format = ("format", if arguments.csv { "csv" } else { "json" }.to_owned());
    let parameters = month.into_iter().chain(by).chain([format]);
    let query = parameters.map(|(key, value)| format!("{key}={}", escape(&value))).collect::<Vec<_>>();
    format!("/v1/usage?{}", query.join("&"))
}

fn table(answer: &Value) -> String {
    let rows = answer["usage"].as_array().into_iter().flatten();
    let rows = rows.map(|row| COLUMNS.iter().map(|(_, key)| show::cell(&row[key])).collect());
    show::table(&COLUMNS.map(|(head, _)| head), rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_of_usage_has_its_values_under_their_heads() {
        let row = json!({ "month": "2026-11", "consumer": "shop", "endpoint": "vpce-1", "service": "vpce-svc-1",
            "endpoint_hours": 3, "hours_by_zone": { "zone-a": 2, "any": 1 }, "connections": 5, "packets": 60,
            "bytes": 1_500_000_000, "gigabytes": 1.5 });
        let text = table(&json!({ "month": "2026-11", "usage": [row] }));
        for (head, key) in COLUMNS {
            assert!(text.contains(head), "no {key} in {text}");
        }
        for value in ["shop", "any 1, zone-a 2", "1500000000", "1.5"] {
            assert!(text.contains(value), "no {value} in {text}");
        }
    }
}

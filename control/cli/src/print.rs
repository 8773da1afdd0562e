//! How commands that ask control print.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::client::ClientError;

/// Prints a text that may end with a line end.
pub(crate) fn text(text: &str) -> ExitCode {
    let text = text.trim_end_matches('\n');
    if text.is_empty() { ExitCode::SUCCESS } else { line(&text) }
}

/// Prints JSON, indented.
pub(crate) fn json(value: &impl Serialize) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints JSON on one line, as a stream of objects wants it.
pub(crate) fn json_line(value: &impl Serialize) -> ExitCode {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints why a command failed, and returns its exit code.
pub(crate) fn error(error: &ClientError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(error.exit_code())
}

fn line(text: &impl Display) -> ExitCode {
    let mut output = io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot print: {error}");
            ExitCode::FAILURE
        }
    }
}

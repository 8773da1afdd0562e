//! Subcommands of `postern bench` that make a report document or show one: `compare` and `report`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use postern_benches::compare;
use postern_benches::report::Report;

use super::seconds;

#[derive(Args)]
pub(super) struct Compare {
    /// Postern's back ends that take part; what is not possible here is skipped with the reason
    #[arg(long, value_delimiter = ',', value_name = "IO", default_value = "af_packet,io_uring,af_xdp",
          value_parser = ["af_packet", "io_uring", "af_xdp", "auto"])]
    io: Vec<String>,
    /// A peer that takes part, described by a TOML file; may be given several times
    #[arg(long, value_name = "FILE")]
    peer: Vec<PathBuf>,
    /// How often each contender has its turn at each line
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds of one measurement, 0.1 to 60
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Connections in turn, for each turn
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    connections: u64,
    /// How often a turn that other load disturbed is repeated, 0 to 20; the turn that was disturbed least counts
    #[arg(long, value_name = "TIMES", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=20))]
    repeat: u16,
    /// Only these lines
    #[arg(long, value_delimiter = ',', value_name = "LINE", value_parser = compare::Line::NAMES)]
    only: Vec<String>,
    /// One short round of everything: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Write the report as JSON to a file, or with - print it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as one HTML page to a file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What is printed, and whether it passed.
type Printed = Result<(String, bool), String>;

impl Compare {
    pub(super) fn run(&self, progress: impl FnMut(&str)) -> Printed {
        let binary = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let quick = self.quick;
        let options = compare::Options {
            binary,
            io: self.io.clone(),
            peers: self.peer.clone(),
            rounds: if quick { 1 } else { usize::from(self.rounds) },
            window: Duration::from_secs_f64(if quick { 0.3 } else { self.seconds }),
            connections: if quick { self.connections.min(300) } else { self.connections },
            repeats: usize::from(self.repeat),
            only: self.only.clone(),
            quick,
        };
        let (report, passed) = compare::run(&options, progress).map_err(|error| error.to_string())?;
        Ok((written(&report, self.json.as_deref(), self.html.as_deref())?, passed))
    }
}

#[derive(Args)]
pub(super) struct Show {
    /// A report that --json wrote
    file: PathBuf,
    /// Write it as one HTML page to a file, or with - print that; else it is printed as tables
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Show {
    pub(super) fn run(&self) -> Printed {
        let file = self.file.display();
        let text = std::fs::read_to_string(&self.file).map_err(|error| format!("cannot read {file}: {error}"))?;
        let report = Report::from_json(&text).map_err(|error| format!("{file}: {error}"))?;
        match &self.html {
            Some(path) if is_output(path) => Ok((report.to_html(), true)),
            html => Ok((written(&report, None, html.as_deref())?, true)),
        }
    }
}

/// Writes the files that are asked for, and returns what is to be printed.
fn written(report: &Report, json: Option<&Path>, html: Option<&Path>) -> Result<String, String> {
    if let Some(path) = html {
        write(path, &report.to_html())?;
    }
    match json {
        Some(path) if is_output(path) => return Ok(report.to_json()),
        Some(path) => write(path, &report.to_json())?,
        None => {}
    }
    Ok(report.to_text())
}

fn is_output(path: &Path) -> bool {
    path == Path::new("-")
}

/// Writes a text to a file.
pub(super) fn write(path: &Path, text: &str) -> Result<(), String> {
    let mut file = std::fs::File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    writeln!(file, "{}", text.trim_end()).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

//! What a run of `postern bench` found, as a document: printed in a terminal, kept as JSON, and shown as one HTML page that
//! needs nothing else.
//!
//! A report has sections; a section has tables and plots. A cell of a table is a [`Figure`]: all that was measured, the median
//! and the spread. The document is read back by [`Report::from_json`], so that a kept run can be shown again.

pub mod figure;
mod number;
mod page;
mod plot;
mod terminal;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_lab::{Namespace, Offload, OffloadError};
use serde::{Deserialize, Serialize};

pub use figure::{Figure, Sample};

use crate::nat::processor;

/// The version of the document. It changes when older programs cannot read it.
const FORMAT: u32 = 1;

/// Why a document is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not JSON, or not this JSON.
    #[error("this is no report of postern bench: {0}")]
    Document(#[from] serde_json::Error),
    /// Of another version.
    #[error("this report has format {found}; this program reads format {FORMAT}")]
    Format {
        /// What the document says.
        found: u32,
    },
}

/// Everything that a run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of the document.
    pub format: u32,
    /// What it is about, in a few words.
    pub title: String,
    /// What it was measured on.
    pub machine: Machine,
    /// How it was measured.
    pub run: Run,
    /// What a reader must know: what was skipped and why, what was disturbed.
    pub notes: Vec<String>,
    /// What was measured.
    pub sections: Vec<Section>,
}

/// How a report came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The command line.
    pub command: Vec<String>,
    /// When it was started, in UTC as RFC 3339 has it.
    pub started: String,
    /// Seconds that it took.
    pub seconds: f64,
    /// Whether it was to show that it works only, not how fast it is.
    pub quick: bool,
}

/// What the numbers were measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// CPU model as the kernel names it.
    pub cpu: String,
    /// CPUs that the run could use.
    pub cores: usize,
    /// Whether it runs under a hypervisor.
    pub virtual_machine: bool,
    /// Programs and their versions: postern first.
    pub versions: Vec<(String, String)>,
    /// The interfaces that frames passed.
    pub interfaces: Vec<Interface>,
}

/// An interface and what it does for the CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, and where it is.
    pub name: String,
    /// Offloads that are on.
    pub on: Vec<String>,
    /// Offloads that are off.
    pub off: Vec<String>,
}

/// A part of a report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// What was done, in a sentence or two.
    pub text: String,
    /// Numbers.
    pub tables: Vec<Table>,
    /// Pictures.
    pub plots: Vec<Plot>,
    /// What a reader must know here: failures, bounds.
    pub notes: Vec<String>,
}

/// Numbers in rows and columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// The heading of the first column.
    pub of: String,
    /// The other columns.
    pub columns: Vec<Column>,
    /// Rows, each with a cell for every column.
    pub rows: Vec<Row>,
    /// Whether a page draws the first column as bars.
    pub bars: bool,
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Of what; may be empty.
    pub unit: String,
    /// Whether larger is better; `None` where neither is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub larger_is_better: Option<bool>,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Whose numbers these are.
    pub name: String,
    /// Whether the report is about this one; the others are there to compare with.
    pub own: bool,
    /// A cell for every column; `None` where there is nothing.
    pub cells: Vec<Option<Figure>>,
    /// Why numbers are missing, in a few words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remark: Option<String>,
}

/// A picture of some series over two axes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// The heading.
    pub title: String,
    /// From left to right.
    pub x: Axis,
    /// From below to above.
    pub y: Axis,
    /// What is drawn.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// What it shows.
    pub name: String,
    /// Of what; may be empty.
    pub unit: String,
    /// Whether equal distances are equal factors. Values that are not above zero are then drawn at the edge.
    pub logarithmic: bool,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// In the order in which a line joins them.
    pub points: Vec<Point>,
}

/// One point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Where it is on the first axis.
    pub x: f64,
    /// Where it is on the second axis: the median, if there are several.
    pub y: f64,
    /// The smallest and the largest of several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spread: Option<[f64; 2]>,
}

impl Report {
    /// An empty report of a run that began at `since`; the command line is this process's.
    #[must_use]
    pub fn new(title: impl Into<String>, since: SystemTime, quick: bool) -> Self {
        let seconds = since.elapsed().unwrap_or_default().as_secs_f64();
        let run = Run { command: std::env::args().collect(), started: utc(since), seconds, quick };
        let (notes, sections) = (Vec::new(), Vec::new());
        Self { format: FORMAT, title: title.into(), machine: Machine::here(), run, notes, sections }
    }

    /// As a JSON document.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    /// When it is something else, or of another version.
    pub fn from_json(text: &str) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_str(text)?;
        if format != FORMAT {
            return Err(ReportError::Format { found: format });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// As tables for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        terminal::text(self)
    }

    /// As one HTML page: styles and pictures are in it, scripts there are none.
    #[must_use]
    pub fn to_html(&self) -> String {
        page::html(self)
    }
}

impl Machine {
    /// Describes this machine. Its interfaces are to be added.
    #[must_use]
    pub fn here() -> Self {
        let processor::Machine { kernel, cpu, cores, virtual_machine, .. } = processor::Machine::here();
        let mut versions = vec![("postern".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        versions.extend(version_of("nft").map(|version| ("nft".to_owned(), version)));
        Self { kernel, cpu, cores, virtual_machine, versions, interfaces: Vec::new() }
    }

    /// In one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let kind = if self.virtual_machine { "virtual machine" } else { "physical machine" };
        format!("{}, {} CPUs, {kind}, Linux {}", self.cpu, self.cores, self.kernel)
    }
}

impl Interface {
    /// Asks the kernel about an interface of a namespace.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn of(namespace: &Namespace, interface: &str) -> Result<Self, OffloadError> {
        const OFFLOADS: [(Offload, &str); 6] = [
            (Offload::TransmitChecksum, "transmit checksums"),
            (Offload::TcpSegmentation, "TSO"),
            (Offload::UdpSegmentation, "USO"),
            (Offload::GenericSegmentation, "GSO"),
            (Offload::GenericReceive, "GRO"),
            (Offload::UdpReceiveForwarding, "UDP GRO when forwarding"),
        ];
        let device = namespace.interface(interface);
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for (offload, name) in OFFLOADS {
            let state = if device.offload(offload)? { &mut on } else { &mut off };
            state.push(name.to_owned());
        }
        Ok(Self { name: format!("{interface} ({})", namespace.name()), on, off })
    }
}

impl Section {
    /// A section without content.
    #[must_use]
    pub fn new(title: impl Into<String>, text: impl Into<String>) -> Self {
        Self { title: title.into(), text: text.into(), ..Self::default() }
    }
}

impl Column {
    /// A column in which neither more nor less is better.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: impl Into<String>) -> Self {
        Self { name: name.into(), unit: unit.into(), larger_is_better: None }
    }

    /// More is better.
    #[must_use]
    pub fn larger(self) -> Self {
        Self { larger_is_better: Some(true), ..self }
    }

    /// Less is better.
    #[must_use]
    pub fn smaller(self) -> Self {
        Self { larger_is_better: Some(false), ..self }
    }

    fn heading(&self) -> String {
        if self.unit.is_empty() { self.name.clone() } else { format!("{}, {}", self.name, self.unit) }
    }
}

impl Axis {
    /// An axis with equal distances.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: impl Into<String>) -> Self {
        Self { name: name.into(), unit: unit.into(), logarithmic: false }
    }

    /// An axis of factors.
    #[must_use]
    pub fn logarithmic(self) -> Self {
        Self { logarithmic: true, ..self }
    }
}

impl Point {
    /// A point that was measured once.
    #[must_use]
    pub const fn at(x: f64, y: f64) -> Self {
        Self { x, y, spread: None }
    }

    /// A point that was measured several times.
    #[must_use]
    pub fn of(x: f64, figure: &Figure) -> Self {
        Self { x, y: figure.median, spread: (figure.samples.len() > 1).then_some([figure.smallest, figure.largest]) }
    }
}

/// The first version number in what `program --version` says.
#[must_use]
pub fn version_of(program: &str) -> Option<String> {
    let output = std::process::Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = |word: &&str| word.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit());
    text.split_whitespace().find(digits).map(str::to_owned)
}

/// A time in UTC as RFC 3339 has it, whole seconds.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let months = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= months[month] {
        day -= months[month];
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report with something of everything, and texts that a page must not take for its own.
    pub(super) fn example() -> Report {
        let hostile = "<script>alert(\"1\")</script> & 'x'";
        let mut report = Report::new(hostile, UNIX_EPOCH, true);
        report.run.command = vec!["postern".to_owned(), hostile.to_owned()];
        // Read back exactly; of other numbers the last bit may differ.
        report.run.seconds = 12.5;
        report.notes = vec![hostile.to_owned()];
        report.machine.interfaces =
            vec![Interface { name: hostile.to_owned(), on: vec!["TSO".to_owned()], off: vec![hostile.to_owned()] }];
        report.machine.versions.push((hostile.to_owned(), hostile.to_owned()));
        let cells = vec![Figure::of(vec![Sample::new(612_345.0), Sample::disturbed(598_000.0)]), None];
        let mut section = Section::new(hostile, hostile);
        section.notes.push(hostile.to_owned());
        section.tables.push(Table {
            of: hostile.to_owned(),
            columns: vec![Column::new(hostile, hostile).larger(), Column::new("CPU", "µs").smaller()],
            rows: vec![Row { name: hostile.to_owned(), own: true, cells, remark: Some(hostile.to_owned()) }],
            bars: true,
        });
        let points = vec![Point::at(0.0, 1.0), Point { x: 10.0, y: 0.5, spread: Some([0.4, 0.6]) }];
        section.plots.push(Plot {
            title: hostile.to_owned(),
            x: Axis::new(hostile, hostile).logarithmic(),
            y: Axis::new(hostile, hostile),
            series: vec![Series { name: hostile.to_owned(), points }],
        });
        report.sections.push(section);
        report
    }

    #[test]
    fn a_report_is_read_back_as_it_was_written() {
        let report = example();
        assert_eq!(Report::from_json(&report.to_json()).unwrap(), report);
    }

    #[test]
    fn another_document_and_another_version_are_refused_with_words() {
        for text in ["", "[]", "{\"machine\":{}}"] {
            let error = Report::from_json(text).unwrap_err().to_string();
            assert!(error.starts_with("this is no report of postern bench"), "{error}");
        }
        let newer = example().to_json().replacen("\"format\": 1", "\"format\": 2", 1);
        let error = Report::from_json(&newer).unwrap_err().to_string();
        assert_eq!(error, "this report has format 2; this program reads format 1");
    }

    #[test]
    fn times_are_calendar_dates_in_utc() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}

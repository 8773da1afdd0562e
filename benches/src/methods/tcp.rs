//! `postern bench tcp`: TCP with the kernel's own stacks at both ends: bulk by one and four streams, round trips of a byte,
//! connections in turn. Against other gateways: `postern bench nat`.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::report::{Report, Results};
use super::{Options, Place};
use crate::nat::gateway::{Polling, PosternGateway};
use crate::nat::processor::cores;
use crate::nat::{Line, Measured, Metric, bulk, connections, round_trip};
use crate::traffic::TrafficError;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// By line.
    pub lines: Vec<(Line, Measured)>,
}

/// Runs the method.
///
/// # Errors
/// When something cannot be set up, or nothing passes.
pub(super) fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<Report, TrafficError> {
    let Place::Lab(binary) = &options.place else {
        return Err(TrafficError::Argument("tcp needs the kernel's stacks in namespaces of its own".to_owned()));
    };
    let window = Duration::from_secs_f64(options.seconds);
    let warm_up = (window / 4).min(Duration::from_millis(500));
    let count = if options.quick { 200 } else { 20_000 };
    let gateway = PosternGateway::build(binary)?;
    let topology = gateway.topology();
    let mut lines = Vec::new();
    for line in [Line::Tcp1, Line::Tcp4, Line::RoundTripTcp, Line::Connections] {
        progress(line.title());
        let spin = line == Line::RoundTripTcp && cores() > 1;
        let mut running = gateway.start(if spin { Polling::Spin } else { Polling::Adaptive })?;
        let measured = match line {
            Line::Tcp1 => bulk::measure(topology, 1, warm_up, window),
            Line::Tcp4 => bulk::measure(topology, 4, warm_up, window),
            Line::RoundTripTcp => round_trip::measure_tcp(topology, window),
            _ => connections::measure(topology, count),
        };
        running.check()?;
        lines.push((line, measured?));
    }
    let failed = |measured: &Measured| measured.get(&Metric::FailedConnections).copied().unwrap_or(0.0);
    let passed = lines.iter().all(|(_, measured)| failed(measured) == 0.0);
    Ok(Report::new("tcp", options, Results::Tcp(Found { lines }), passed, Vec::new()))
}

impl Found {
    pub(super) fn write(&self, text: &mut String) {
        for (line, measured) in &self.lines {
            let _ = write!(text, "  {:<48}", line.title());
            for (metric, value) in measured {
                let (digits, unit) = (metric.digits(), metric.unit());
                let _ = write!(text, " {value:>9.digits$} {unit}");
            }
            text.push('\n');
        }
    }
}

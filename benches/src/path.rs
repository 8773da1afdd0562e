//! `postern bench path`: the packet path in memory, without kernel and devices, by number of flows.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bed::{self, Bed, BedError, FRAMES, Protocol};
use crate::nat::processor::Machine;

/// The rates of one machine.
#[derive(Debug, Serialize)]
pub struct PathReport {
    /// What it was measured on.
    pub machine: Machine,
    /// By protocol and number of flows.
    pub rates: Vec<Rate>,
}

/// How fast established flows are forwarded by one worker's forwarder.
#[derive(Debug, Serialize)]
pub struct Rate {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Live flows, all of them used in random order, both directions.
    pub flows: u32,
    /// Time for a packet in nanoseconds, the median of the slices, without what the fixture costs.
    pub nanoseconds: f64,
    /// Packets a second that one CPU could forward if devices cost nothing, in millions.
    pub million_packets_per_second: f64,
}

/// Measures each number of flows for about `window` with each protocol.
///
/// # Errors
/// When the fixture cannot be built.
pub fn run(flow_counts: &[u32], window: Duration, mut progress: impl FnMut(&str)) -> Result<PathReport, BedError> {
    let mut rates = Vec::new();
    for (protocol, name) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
        for &flows in flow_counts {
            progress(&format!("{name}, {flows} flows"));
            let nanoseconds = measure(protocol, flows, window)?;
            rates.push(Rate { protocol: name, flows, nanoseconds, million_packets_per_second: 1e3 / nanoseconds });
        }
    }
    Ok(PathReport { machine: Machine::here(), rates })
}

/// Nanoseconds a packet.
fn measure(protocol: Protocol, flows: u32, window: Duration) -> Result<f64, BedError> {
    let capacity = flows.next_power_of_two().max(1024);
    let mut region = bed::region(capacity)?;
    let mut bed = Bed::new(region.bytes_mut(), capacity)?;
    let bursts = bed::shuffled::<FRAMES>(&bed.establish(protocol, 0..flows)?);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let start = Instant::now();
    // The first pass brings code and, as far as they fit, flows into the caches.
    while with.len() < 2 || start.elapsed() < window {
        // Slices of at least 512 bursts, so that reading the clock does not count.
        for slice in bursts.chunks(1 << 15) {
            let rounds = (512 / slice.len()).max(1);
            let mut time = |process: bool| {
                let start = Instant::now();
                for _ in 0..rounds {
                    for burst in slice {
                        if process {
                            bed.burst(burst)
                        } else {
                            bed.empty_burst(burst)
                        };
                    }
                }
                start.elapsed().as_nanos() as f64 / (rounds * slice.len() * FRAMES) as f64
            };
            with.push(time(true));
            without.push(time(false));
        }
    }
    Ok((median(with) - median(without)).max(0.001))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl PathReport {
    /// As a JSON document.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// As a table for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{}, Linux {}\n", self.machine.cpu, self.machine.kernel);
        let _ = writeln!(text, "{:>8} {:>9} {:>12} {:>20}", "protocol", "flows", "ns a packet", "million packets/s");
        for Rate { protocol, flows, nanoseconds, million_packets_per_second } in &self.rates {
            let _ = writeln!(text, "{protocol:>8} {flows:>9} {nanoseconds:>12.1} {million_packets_per_second:>20.2}");
        }
        text
    }
}

//! What is compared, and how each line is measured.

use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::CompareError;
use crate::nat::processor::{LOAD_CPU, busy_seconds, pin};
use crate::nat::topology::{CLIENT, CLIENT_INTERFACE, PORT, SERVER_INTERFACE, Topology};
use crate::nat::{self, Measured, Metric, NatError, flood};
use crate::search::rate::{Search, Throughput, throughput};
use crate::search::{Range, Trial};
use crate::traffic::TrafficError;
use crate::traffic::station::{Plan, Side, Station};
use crate::traffic::stream::{Ends, Kind, Sizes, Stream, Transport};

/// A line of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// 64-byte frames as fast as the kernel makes them, 64 flows.
    #[serde(rename = "udp_64")]
    Udp64,
    /// The same with a million flows.
    #[serde(rename = "udp_64_many_flows")]
    ManyFlows,
    /// The highest rate of 64-byte frames at which none is lost.
    #[serde(rename = "udp_64_loss_free")]
    LossFree,
    /// Bulk TCP, one stream.
    #[serde(rename = "tcp_1_stream")]
    Tcp1,
    /// Bulk TCP, four streams.
    #[serde(rename = "tcp_4_streams")]
    Tcp4,
    /// One byte there and back over TCP.
    #[serde(rename = "rtt")]
    RoundTrip,
    /// Connections in turn.
    Connections,
}

impl Line {
    /// All lines, in the order in which they run.
    pub const ALL: [Self; 7] =
        [Self::Udp64, Self::ManyFlows, Self::LossFree, Self::Tcp1, Self::Tcp4, Self::RoundTrip, Self::Connections];

    /// The names of [`Line::ALL`].
    pub const NAMES: [&'static str; 7] =
        ["udp_64", "udp_64_many_flows", "udp_64_loss_free", "tcp_1_stream", "tcp_4_streams", "rtt", "connections"];

    /// The name on the command line and in peer files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Udp64 => "UDP overload, 64 flows",
            Self::ManyFlows => "UDP overload, many flows",
            Self::LossFree => "UDP without loss",
            Self::Tcp1 => "TCP, 1 stream",
            Self::Tcp4 => "TCP, 4 streams",
            Self::RoundTrip => "Round trip",
            Self::Connections => "Connections",
        }
    }

    /// What is done, in a sentence or two.
    #[must_use]
    pub fn text(self, quick: bool) -> String {
        match self {
            Self::Udp64 => {
                "64-byte frames from one CPU, more than any contender forwards; what arrives is counted and dropped \
                            early, on the CPU that forwards."
                    .to_owned()
            }
            Self::ManyFlows => format!(
                "The same with {} flows, so that each frame's flow is looked up in memory. The kernel's connection tracking has \
                 no room for so many by default and takes no part.",
                Self::many_flows(quick)
            ),
            Self::LossFree => {
                "The highest rate of 64-byte frames, 64 flows, at which none is lost, by halving (RFC 2544 §26.1). \
                               Frames are paced and received through packet sockets by one thread."
                    .to_owned()
            }
            Self::Tcp1 | Self::Tcp4 => {
                "Bulk data between the kernel's own TCP stacks, client and server on one CPU.".to_owned()
            }
            Self::RoundTrip => {
                "One byte there and back over one TCP connection, one after another. Postern's worker and the \
                                reflector never sleep here."
                    .to_owned()
            }
            Self::Connections => "Open, one request of 64 bytes and its answer, close; then the next.".to_owned(),
        }
    }

    /// Flows of [`Line::ManyFlows`].
    pub(super) const fn many_flows(quick: bool) -> u32 {
        if quick { 1 << 16 } else { 1 << 20 }
    }

    /// Whether frames are sent that only a gateway between networks passes on, and no proxy of connections.
    #[must_use]
    pub const fn is_udp(self) -> bool {
        matches!(self, Self::Udp64 | Self::ManyFlows | Self::LossFree)
    }

    /// Whether the kernel's own NAT takes part.
    #[must_use]
    pub const fn has_reference(self) -> bool {
        !matches!(self, Self::ManyFlows)
    }

    /// Whether Postern is asked to poll without sleeping.
    #[must_use]
    pub const fn wants_spin(self) -> bool {
        matches!(self, Self::RoundTrip)
    }

    /// What is shown, in this order; the first is the line's own.
    #[must_use]
    pub const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Udp64 | Self::ManyFlows => {
                &[Metric::PacketsPerSecond, Metric::OfferedPerSecond, Metric::CpuMicrosecondsPerPacket]
            }
            Self::LossFree => &[Metric::PacketsPerSecond, Metric::CpuMicrosecondsPerPacket],
            Self::Tcp1 | Self::Tcp4 => &[Metric::GigabitsPerSecond, Metric::CpuSecondsPerGigabyte],
            Self::RoundTrip => &[Metric::P50Microseconds, Metric::P99Microseconds],
            Self::Connections => {
                &[Metric::ConnectionsPerSecond, Metric::CpuMicrosecondsPerConnection, Metric::FailedConnections]
            }
        }
    }
}

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// How long one measurement lasts.
    pub window: Duration,
    /// Connections in turn.
    pub connections: u64,
    /// Whether it is to show that it works only.
    pub quick: bool,
}

/// What one measurement gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// The numbers.
    pub measured: Measured,
    /// Whether the rate is a lower bound, because the generator was the limit.
    pub at_least: bool,
}

/// Measures a line through a gateway that forwards.
///
/// # Errors
/// When the path is not up, or nothing arrives.
pub fn measure(topology: &Topology, line: Line, how: How) -> Result<Outcome, CompareError> {
    if line.is_udp() {
        topology.exchange_one_datagram()?;
    } else {
        topology.exchange_over_tcp()?;
    }
    let plain = |line| nat::measure_line(topology, line, how.window, how.connections);
    let measured = match line {
        Line::Udp64 => plain(nat::Line::Udp64)?,
        Line::ManyFlows => {
            // Every flow has been seen before it is measured.
            let warm_up = if how.quick { Duration::from_secs(1) } else { Duration::from_secs(6) };
            flood::measure_flows(topology, Line::many_flows(how.quick), warm_up, how.window)?
        }
        Line::LossFree => return loss_free(topology, how),
        Line::Tcp1 => plain(nat::Line::Tcp1)?,
        Line::Tcp4 => plain(nat::Line::Tcp4)?,
        Line::RoundTrip => plain(nat::Line::RoundTripTcp)?,
        Line::Connections => plain(nat::Line::Connections)?,
    };
    Ok(Outcome { measured, at_least: false })
}

/// The highest rate without loss.
fn loss_free(topology: &Topology, how: How) -> Result<Outcome, CompareError> {
    // Held, so that no ICMP error is made.
    let socket = topology.bind_udp_server()?;
    setsockopt(&socket, sockopt::RcvBuf, &0).map_err(|error| NatError::Kernel("shrink the sink's buffer", error))?;
    let client = topology.at_client(|| Side::open(CLIENT_INTERFACE, Vec::new()))??;
    let server = topology.at_server(|| Side::open(SERVER_INTERFACE, Vec::new()))??;
    let mut station = Station::new(client, server, PORT);
    let ends = Ends {
        macs: (station.client_mac(), topology.gateway_mac()),
        clients: CLIENT.into(),
        hosts: 1,
        destination: Topology::endpoint().into(),
    };
    let stream = Stream::new(ends, Transport::Udp, 64, Sizes::Fixed(64), 1).map_err(TrafficError::from)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<Outcome, CompareError> {
            pin(LOAD_CPU)?;
            // Opens the flows.
            station.run(&stream, &Plan::each(Kind::Data, 64, 1000.0), || false)?;
            search(&mut station, &stream, how)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn search(station: &mut Station, stream: &Stream, how: How) -> Result<Outcome, CompareError> {
    let duration = if how.quick { Duration::from_millis(100) } else { (how.window / 4).min(Duration::from_secs(1)) };
    let (precision, most_trials) = if how.quick { (0.25, 12) } else { (0.03, 40) };
    let range = Range { lowest: 1_000.0, highest: 1_500_000.0 };
    let (found, _) = throughput(Search { range, precision, duration, most_trials }, |load, duration| {
        let sent = station.run(stream, &Plan::data(load, duration), || false)?;
        let seconds = duration.as_secs_f64().max(sent.elapsed as f64 / 1e9);
        let paced = sent.pace.kept && sent.own_drops == 0;
        Ok::<_, TrafficError>(Trial { load, seconds, sent: sent.counts.sent, received: sent.counts.received, paced })
    })?;
    let at_least = matches!(found, Throughput::GeneratorBound { .. } | Throughput::Ceiling { .. });
    let Some(rate) = found.rate() else {
        return Err(CompareError::NoRate(match found {
            Throughput::NeverLossFree { lowest, loss_ratio } => {
                format!("{:.3} % are lost at {lowest:.0} frames a second", loss_ratio * 100.0)
            }
            Throughput::GeneratorBound { .. } => "the generator does not keep the lowest rate".to_owned(),
            _ => "the trials were used up".to_owned(),
        }));
    };
    // Once more there, for the CPU time of everything.
    let (busy, start) = (busy_seconds()?, Instant::now());
    let sent = station.run(stream, &Plan::data(rate, duration.max(how.window / 2)), || false)?;
    let (busy, elapsed) = (busy_seconds()? - busy, start.elapsed());
    let mut measured = Measured::from([(Metric::PacketsPerSecond, rate)]);
    if sent.counts.received > 0 && !elapsed.is_zero() {
        measured.insert(Metric::CpuMicrosecondsPerPacket, busy * 1e6 / sent.counts.received as f64);
    }
    Ok(Outcome { measured, at_least })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_one_name_everywhere() {
        for (line, name) in Line::ALL.into_iter().zip(Line::NAMES) {
            assert_eq!((line.name(), serde_json::to_value(line).unwrap()), (name, name.into()));
        }
    }
}

//! `postern bench nat`: Postern against the kernel's own NAT (nftables), the same topology, alternating in one run.
//!
//! Clients, servers and generators run on CPU 0, the gateway on CPU 1. The kernel has no thread of its own for
//! forwarding, so nftables is measured twice: *pinned*, with receive packet steering of the gateway's interfaces to
//! CPU 1, which is the like-for-like comparison; and *inline*, where the sender's own CPU forwards in the middle of its
//! send call, as veth does by default.
//!
//! Postern is measured on packet sockets with a ring, which all ratios are of, and on the same sockets through io_uring, so that
//! the ratios `…_vs_io_uring` say where the ring is better (above 1) and where io_uring is.
//!
//! Beside them a *bare reflector* on Postern's own devices, which only writes MAC addresses: what it reaches is the most that
//! any forwarder in user space can, and the rest up to nftables is what crossing into user space costs.

pub mod bulk;
pub mod connections;
pub mod flood;
pub mod gateway;
pub mod live_frames;
pub mod nftables;
pub mod processor;
pub mod reflector;
pub mod report;
pub mod round_trip;
pub mod topology;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use postern_frame_io::interface::Interface;
use postern_frame_io::io_uring::RingTransmitter;
use serde::Serialize;

use gateway::{Polling, PosternGateway, ReferenceGateway};
use processor::{GATEWAY_CPU, LOAD_CPU, Machine, cores};
use reflector::ReflectorGateway;
use report::{Report, Turns};
use topology::Topology;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    Kernel(&'static str, Errno),
    /// Input or output failed.
    #[error("cannot {0}: {1}")]
    Io(&'static str, std::io::Error),
    /// A namespace.
    #[error(transparent)]
    Namespace(#[from] postern_lab::NamespaceError),
    /// An interface.
    #[error(transparent)]
    Interface(#[from] postern_lab::InterfaceError),
    /// The dataplane's process.
    #[error(transparent)]
    Process(#[from] postern_lab::ProcessError),
    /// An interface that was made has no address.
    #[error("the interface {0} has no link-layer address or no counters")]
    NoInterface(&'static str),
    /// An offload switch.
    #[error(transparent)]
    Offload(#[from] postern_lab::OffloadError),
    /// A packet socket.
    #[error(transparent)]
    Device(#[from] postern_frame_io::DeviceError),
    /// A BPF program.
    #[error(transparent)]
    Bpf(#[from] postern_frame_io::bpf::BpfError),
    /// `nft` refused.
    #[error("nft refused: {0}")]
    Nft(String),
    /// `/proc/stat` is not as expected.
    #[error("/proc/stat has no line of CPU times")]
    ProcStat,
    /// The gateway does not forward.
    #[error("no answer through the gateway within half a minute")]
    NoPath,
    /// The dataplane ended by itself.
    #[error("the dataplane ended while it was being measured: {0}")]
    DataplaneEnded(String),
    /// Nothing was measured.
    #[error("nothing arrived: {0}")]
    Nothing(&'static str),
    /// An unknown line.
    #[error("there is no line \"{0}\"; there are: {1}")]
    UnknownLine(String, String),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `postern` binary, started as the gateway.
    pub binary: PathBuf,
    /// How often each contender has its turn at each line, 1…100.
    pub rounds: usize,
    /// How long one measurement lasts.
    pub window: Duration,
    /// Connections in turn for each contender, over all rounds.
    pub connections: u64,
    /// Only the lines whose name contains this.
    pub only: Option<String>,
}

/// Who forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Contender {
    /// Postern, its worker on CPU 1, on packet sockets with a ring (`af_packet`).
    Postern,
    /// Postern on the same sockets through io_uring.
    PosternIoUring,
    /// nftables, forwarding on CPU 1.
    NftablesPinned,
    /// nftables, forwarding wherever the sender runs.
    NftablesInline,
    /// Postern's devices without Postern: MAC addresses are written, nothing else. On CPU 1, never sleeping.
    Reflector,
}

impl Contender {
    /// The name in tables.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Postern => "Postern",
            Self::PosternIoUring => "Postern, io_uring",
            Self::NftablesPinned => "nftables, pinned",
            Self::NftablesInline => "nftables, inline",
            Self::Reflector => "bare reflector",
        }
    }

    /// The name in ratios; `None` for Postern.
    #[must_use]
    pub const fn reference_name(self) -> Option<&'static str> {
        match self {
            Self::Postern => None,
            Self::PosternIoUring => Some("io_uring"),
            Self::NftablesPinned => Some("pinned"),
            Self::NftablesInline => Some("inline"),
            Self::Reflector => Some("reflector"),
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Bulk TCP, one stream.
    #[serde(rename = "tcp_1_stream")]
    Tcp1,
    /// Bulk TCP, four streams.
    #[serde(rename = "tcp_4_streams")]
    Tcp4,
    /// 64-byte frames, the sink on the CPU that forwards.
    #[serde(rename = "udp_64")]
    Udp64,
    /// 64-byte frames, the sink on the load's CPU.
    #[serde(rename = "udp_64_sink_apart")]
    Udp64SinkApart,
    /// One byte there and back over TCP.
    #[serde(rename = "rtt")]
    RoundTripTcp,
    /// One byte there and back over UDP.
    #[serde(rename = "rtt_udp")]
    RoundTripUdp,
    /// Connections in turn.
    Connections,
}

impl Line {
    /// All lines, in the order in which they run.
    pub const ALL: [Self; 7] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Udp64,
        Self::Udp64SinkApart,
        Self::RoundTripTcp,
        Self::RoundTripUdp,
        Self::Connections,
    ];

    /// The name on the command line and in ratios.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp_1_stream",
            Self::Tcp4 => "tcp_4_streams",
            Self::Udp64 => "udp_64",
            Self::Udp64SinkApart => "udp_64_sink_apart",
            Self::RoundTripTcp => "rtt",
            Self::RoundTripUdp => "rtt_udp",
            Self::Connections => "connections",
        }
    }

    /// The heading in tables.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "bulk TCP, 1 stream",
            Self::Tcp4 => "bulk TCP, 4 streams",
            Self::Udp64 => "UDP overload, 64-byte frames, 64 flows, sink on the gateway's CPU",
            Self::Udp64SinkApart => "UDP overload, 64-byte frames, 64 flows, sink on the load's CPU",
            Self::RoundTripTcp => "round trip of one byte, TCP",
            Self::RoundTripUdp => "round trip of one byte, UDP",
            Self::Connections => "connections in turn: open, one request, close",
        }
    }

    /// The metrics of which ratios are made; the first is the line's own.
    #[must_use]
    pub const fn compared(self) -> &'static [Metric] {
        match self {
            Self::Tcp1 | Self::Tcp4 => &[Metric::GigabitsPerSecond, Metric::CpuSecondsPerGigabyte],
            Self::Udp64 | Self::Udp64SinkApart => &[Metric::PacketsPerSecond, Metric::CpuMicrosecondsPerPacket],
            Self::RoundTripTcp | Self::RoundTripUdp => &[Metric::P50Microseconds, Metric::P99Microseconds],
            Self::Connections => &[Metric::ConnectionsPerSecond],
        }
    }

    /// The name of a ratio, without its reference.
    #[must_use]
    pub fn ratio_name(self, metric: Metric) -> String {
        let suffix = match metric {
            Metric::P50Microseconds => "_p50",
            Metric::P99Microseconds => "_p99",
            Metric::CpuSecondsPerGigabyte | Metric::CpuMicrosecondsPerPacket => "_cpu",
            _ => "",
        };
        format!("{}{suffix}", self.name())
    }

    /// Whether Postern is asked to poll without sleeping, where there is a CPU for it: for latency only.
    pub(crate) const fn wants_spin(self) -> bool {
        matches!(self, Self::RoundTripTcp | Self::RoundTripUdp)
    }
}

/// A number that a line gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Payload received, in 10⁹ bits a second.
    GigabitsPerSecond,
    /// CPU seconds of the whole machine for 10⁹ bytes of payload.
    CpuSecondsPerGigabyte,
    /// Frames that reached the sink, a second.
    PacketsPerSecond,
    /// Frames that the generator sent, a second.
    OfferedPerSecond,
    /// CPU time of the whole machine, generator and sink included, for each frame at the sink, in microseconds.
    CpuMicrosecondsPerPacket,
    /// Half of the round trips took no longer, in microseconds.
    P50Microseconds,
    /// 99 of 100 round trips took no longer, in microseconds.
    P99Microseconds,
    /// Connections that succeeded, a second.
    ConnectionsPerSecond,
    /// Connections tried.
    Connections,
    /// Connections that did not give the right answer.
    FailedConnections,
    /// CPU time of the whole machine for a connection, in microseconds.
    CpuMicrosecondsPerConnection,
}

impl Metric {
    pub(crate) const fn larger_is_better(self) -> bool {
        matches!(self, Self::GigabitsPerSecond | Self::PacketsPerSecond | Self::ConnectionsPerSecond)
    }

    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::GigabitsPerSecond => "Gbit/s",
            Self::CpuSecondsPerGigabyte => "CPU-s/GB",
            Self::PacketsPerSecond => "packets/s",
            Self::OfferedPerSecond => "offered/s",
            Self::CpuMicrosecondsPerPacket => "CPU-µs/packet",
            Self::P50Microseconds => "µs p50",
            Self::P99Microseconds => "µs p99",
            Self::ConnectionsPerSecond => "connections/s",
            Self::Connections => "tried",
            Self::FailedConnections => "failed",
            Self::CpuMicrosecondsPerConnection => "CPU-µs/connection",
        }
    }

    pub(crate) const fn digits(self) -> usize {
        match self {
            Self::GigabitsPerSecond | Self::CpuMicrosecondsPerPacket => 2,
            Self::CpuSecondsPerGigabyte => 3,
            Self::P50Microseconds | Self::P99Microseconds | Self::CpuMicrosecondsPerConnection => 1,
            _ => 0,
        }
    }
}

/// The numbers of one turn.
pub type Measured = BTreeMap<Metric, f64>;

/// Tells the threads of a measurement to end, however the measurement ended.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs the comparison. `progress` gets a line of text before each turn.
///
/// # Errors
/// When the topology cannot be built or a line is unknown. A turn that fails is part of the report.
pub fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<Report, NatError> {
    let lines = chosen(options.only.as_deref())?;
    let mut notes = placement();
    notes.extend(strangers()?);
    let postern = PosternGateway::build(&options.binary)?;
    notes.push(match flood::live_frames_refused(postern.topology())? {
        None => "UDP frames are made inside the kernel (BPF_PROG_RUN, live frames); GRO is on where they are received"
            .to_owned(),
        Some(why) => format!("UDP frames are sent through a packet socket: {why}"),
    });
    let reflector = ReflectorGateway::build()?;
    let mut contenders = vec![Contender::Postern];
    match Interface::by_name("lo").and_then(|lo| RingTransmitter::open(&lo, 1 << 20)) {
        Ok(_) => contenders.push(Contender::PosternIoUring),
        Err(why) => notes.push(format!("Postern on io_uring skipped: {why}")),
    }
    contenders.push(Contender::Reflector);
    let reference = if nftables::available() {
        contenders.extend([Contender::NftablesPinned, Contender::NftablesInline]);
        Some(ReferenceGateway::build()?)
    } else {
        notes.push("nftables skipped: there is no program nft on this machine, so there are no ratios".to_owned());
        notes.push("the UDP sink is a socket whose buffer is full, not an early drop by nftables".to_owned());
        None
    };

    let mut turns = Turns::default();
    for round in 0..options.rounds {
        for line in &lines {
            for contender in &contenders {
                progress(&format!("round {}: {}: {}", round + 1, line.title(), contender.title()));
                let outcome = match (contender, &reference) {
                    (Contender::Postern, _) => postern_turn(&postern, "af_packet", *line, options),
                    (Contender::PosternIoUring, _) => postern_turn(&postern, "io_uring", *line, options),
                    (Contender::Reflector, _) => reflector.start().and_then(|running| {
                        let measured = measure(reflector.topology(), *line, options);
                        drop(running);
                        measured
                    }),
                    (_, None) => continue,
                    (pinned, Some(reference)) => {
                        let cpus =
                            if *pinned == Contender::NftablesPinned { 1 << GATEWAY_CPU.min(cores() - 1) } else { 0 };
                        reference
                            .topology()
                            .steer_gateway(cpus)
                            .and_then(|()| measure(reference.topology(), *line, options))
                    }
                };
                if let Err(error) = &outcome {
                    progress(&format!("  failed: {error}"));
                }
                turns.add(round, *line, *contender, outcome.map_err(|error| error.to_string()));
            }
        }
    }

    let ratios = turns.ratios();
    Ok(Report {
        machine: Machine::here(),
        rounds: options.rounds,
        seconds: options.window.as_secs_f64(),
        notes,
        spreads: ratios.iter().map(|(name, ratio)| (name.clone(), [ratio.smallest, ratio.largest])).collect(),
        ratios: ratios.into_iter().map(|(name, ratio)| (name, ratio.median)).collect(),
        lines: turns.lines(),
    })
}

/// Postern runs only while it is its turn, so that a worker that polls takes nothing from the others.
fn postern_turn(gateway: &PosternGateway, io: &str, line: Line, options: &Options) -> Result<Measured, NatError> {
    let polling = if line.wants_spin() && cores() > 1 { Polling::Spin } else { Polling::Adaptive };
    let mut running = gateway.start_with(polling, io)?;
    let measured = measure(gateway.topology(), line, options);
    running.check()?;
    measured
}

fn measure(topology: &Topology, line: Line, options: &Options) -> Result<Measured, NatError> {
    topology.exchange_one_datagram()?;
    let connections = options.connections.div_ceil(options.rounds.max(1) as u64);
    measure_line(topology, line, options.window, connections)
}

/// Measures one line through a gateway that forwards.
pub(crate) fn measure_line(
    topology: &Topology,
    line: Line,
    window: Duration,
    connections: u64,
) -> Result<Measured, NatError> {
    let warm_up = (window / 4).min(Duration::from_millis(500));
    match line {
        Line::Tcp1 => bulk::measure(topology, 1, warm_up, window),
        Line::Tcp4 => bulk::measure(topology, 4, warm_up, window),
        Line::Udp64 => flood::measure(topology, warm_up, window),
        Line::Udp64SinkApart => {
            topology.steer_server(1 << LOAD_CPU)?;
            let measured = flood::measure(topology, warm_up, window);
            topology.steer_server(0)?;
            measured
        }
        Line::RoundTripTcp => round_trip::measure_tcp(topology, window),
        Line::RoundTripUdp => round_trip::measure_udp(topology, window),
        Line::Connections => connections::measure(topology, connections),
    }
}

fn chosen(only: Option<&str>) -> Result<Vec<Line>, NatError> {
    let lines: Vec<Line> =
        Line::ALL.into_iter().filter(|line| only.is_none_or(|only| line.name().contains(only))).collect();
    if lines.is_empty() {
        let names: Vec<&str> = Line::ALL.iter().map(|line| line.name()).collect();
        return Err(NatError::UnknownLine(only.unwrap_or_default().to_owned(), names.join(", ")));
    }
    Ok(lines)
}

/// Looks for half a second whether other programs keep the machine busy: the worker is a thread like any other, while the
/// kernel's own forwarding runs before all threads, so that a busy machine slows Postern only.
pub(crate) fn strangers() -> Result<Option<String>, NatError> {
    let (busy, start) = (processor::busy_seconds()?, Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let share = (processor::busy_seconds()? - busy) / start.elapsed().as_secs_f64();
    Ok((share > 0.1).then(|| {
        format!("not a quiet machine: before the start other programs used {share:.1} of {} CPUs; do not trust these numbers", cores())
    }))
}

fn placement() -> Vec<String> {
    if cores() > 1 {
        vec![
            format!("clients, servers and generators on CPU {LOAD_CPU}, the gateway on CPU {GATEWAY_CPU}"),
            "Postern polls without sleeping (spin) for the round trips, adaptively for all else".to_owned(),
        ]
    } else {
        vec![
            "one CPU only: load and gateway share it, Postern polls adaptively, nftables pinned equals inline"
                .to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Options =
        Options { binary: PathBuf::new(), rounds: 1, window: Duration::from_millis(200), connections: 50, only: None };

    #[test]
    fn the_ratios_have_the_names_that_the_marks_use() {
        assert_eq!(Line::Tcp1.ratio_name(Metric::GigabitsPerSecond), "tcp_1_stream");
        assert_eq!(Line::Udp64.ratio_name(Metric::PacketsPerSecond), "udp_64");
        assert_eq!(Line::RoundTripTcp.ratio_name(Metric::P50Microseconds), "rtt_p50");
    }

    #[test]
    fn an_unknown_line_is_refused_with_the_list_of_lines() {
        let error = chosen(Some("icmp")).unwrap_err().to_string();
        assert!(error.contains("\"icmp\"") && error.contains("tcp_1_stream, tcp_4_streams"), "{error}");
        assert_eq!(chosen(Some("tcp")).unwrap(), [Line::Tcp1, Line::Tcp4]);
    }

    #[test]
    fn every_line_measures_something_through_the_bare_reflector() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let reflector = ReflectorGateway::build().unwrap();
        let _running = reflector.start().unwrap();
        for line in Line::ALL {
            let measured = measure(reflector.topology(), line, &SHORT).unwrap();
            assert!(measured[&line.compared()[0]] > 0.0, "{line:?}");
            assert_eq!(measured.get(&Metric::FailedConnections).copied().unwrap_or(0.0), 0.0);
        }
    }

    #[test]
    fn every_line_measures_something_through_the_reference() {
        if !nix::unistd::geteuid().is_root() || !nftables::available() {
            eprintln!("skipped: needs root and the program nft");
            return;
        }
        let reference = ReferenceGateway::build().unwrap();
        reference.topology().steer_gateway(1).unwrap();
        for line in Line::ALL {
            let measured = measure(reference.topology(), line, &SHORT).unwrap();
            eprintln!("{line:?} {measured:?}");
            assert!(measured[&line.compared()[0]] > 0.0, "{line:?}");
            assert_eq!(measured.get(&Metric::FailedConnections).copied().unwrap_or(0.0), 0.0);
        }
    }
}

//! Methods of measurement with test frames: RFC 2544 throughput and loss, NDR and PDR by MLRsearch, RFC 9693 connections,
//! latency by load, what a change of tables or a restart costs; and TCP with real network stacks.
//!
//! The device under test is a gateway of Postern in network namespaces, started for the run ([`Lab`]); or whatever is between
//! two interfaces of this host.

pub mod connections;
mod document;
pub mod latency;
pub mod ndr;
pub mod reconf;
pub mod report;
pub mod tcp;
pub mod throughput;
pub mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use postern_frame_io::pin::allowed_cpus;
pub use postern_wire::MacAddress;
use serde::Serialize;

use crate::nat::processor::{LOAD_CPU, cores, pin};
use crate::nat::{self, NatError};
use crate::search::{Range, Trial};
use crate::traffic::TrafficError;
use crate::traffic::arrivals::Counts;
use crate::traffic::in_kernel::{self, Overload};
use crate::traffic::lab::{Io, Lab, Setup};
use crate::traffic::pace::{Pace, Rate};
use crate::traffic::station::{Outcome, Plan, Responder, Side, Station};
use crate::traffic::stream::{Ends, Kind, Sizes, Stream, Transport};

/// Frames a second at which flows are opened before a measurement, at first.
const OPENING: f64 = 40_000.0;
/// How often it is tried to open those that are missing.
const OPENING_ROUNDS: usize = 6;
/// More frames than can be sent while somebody waits.
const FLAT_OUT: u64 = 1 << 36;
/// How long the first frame may take to come through.
const FIRST: Duration = Duration::from_secs(5);

/// A method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// RFC 2544.
    Throughput,
    /// MLRsearch.
    Ndr,
    /// RFC 9693.
    Connections,
    /// By load.
    Latency {
        /// The partial drop rate in frames a second; `None` to search for it.
        partial_drop_rate: Option<f64>,
    },
    /// Between the kernel's stacks.
    Tcp,
    /// Frames at one rate.
    Traffic {
        /// Frames a second; `None` for flat out.
        rate: Option<f64>,
        /// Whether the kernel makes the frames, flat out.
        in_kernel: bool,
    },
    /// Blocked time.
    Reconf {
        /// Frames a second.
        rate: f64,
    },
}

/// Runs a method. `progress` gets a line of text before each step.
///
/// # Errors
/// When something cannot be set up, or no frame passes.
pub fn run(
    method: Method,
    options: &Options,
    progress: impl FnMut(&str) + Send,
) -> Result<report::Report, TrafficError> {
    let disturbed = nat::strangers()?;
    let mut report = match method {
        Method::Throughput => throughput::run(options, progress),
        Method::Ndr => ndr::run(options, progress),
        Method::Connections => connections::run(options, progress),
        Method::Latency { partial_drop_rate } => latency::run(options, partial_drop_rate, progress),
        Method::Tcp => tcp::run(options, progress),
        Method::Traffic { rate, in_kernel } => traffic::run(options, rate, in_kernel, progress),
        Method::Reconf { rate } => reconf::run(options, rate, progress),
    }?;
    report.notes.splice(0..0, disturbed);
    Ok(report)
}

/// Where the device under test is.
#[derive(Debug, Clone)]
pub enum Place {
    /// Postern, in namespaces; the program's binary.
    Lab(PathBuf),
    /// Between two interfaces of this host.
    Ports(Ports),
}

/// Two interfaces of this host, and what is between them as the frames see it.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Where frames are sent.
    pub tx: String,
    /// Where they come out.
    pub rx: String,
    /// The station's own address on the sending side, with which it asks for neighbours and for which it answers.
    pub source: IpAddr,
    /// The first of the clients' addresses.
    pub clients: IpAddr,
    /// How many they are.
    pub hosts: u32,
    /// Where frames are sent to.
    pub destination: SocketAddr,
    /// The MAC address to send to; `None` to ask for the destination's.
    pub mac: Option<MacAddress>,
    /// The address and port that frames have when they come out, for which the receiving side answers.
    pub target: SocketAddr,
}

/// What all methods need.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the device under test is.
    pub place: Place,
    /// IPv6 instead of IPv4, in namespaces.
    pub six: bool,
    /// Workers of the gateway, in namespaces.
    pub workers: u16,
    /// The back end of its devices.
    pub io: Io,
    /// UDP or TCP.
    pub transport: Transport,
    /// Number of flows.
    pub flows: u32,
    /// Frame sizes, each measured for itself.
    pub sizes: Vec<Sizes>,
    /// Seconds of a trial.
    pub seconds: f64,
    /// Whether every frame that comes out is sent back, so that traffic passes both ways; it then counts as received when it is
    /// back.
    pub both: bool,
    /// Loads, in frames a second and direction.
    pub range: Range,
    /// Which addresses and ports the flows have.
    pub seed: u64,
    /// Whether it is to show that it works, and not how fast it is.
    pub quick: bool,
}

/// A device under test with a station around it.
#[derive(Debug)]
pub struct Bench {
    lab: Option<Lab>,
    station: Station,
    ends: Ends,
    seed: u64,
    both: bool,
    /// The CPUs that a process started by the run may use.
    cpus: Vec<usize>,
}

/// A trial with all that was counted.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Frames a second that were asked for.
    pub load: f64,
    /// What became of the frames.
    pub counts: Counts,
    /// What became of the same frames on their way back, where they were sent back: there and back for latency, and lost in
    /// either direction.
    pub back: Option<Counts>,
    /// How well the generator kept its schedule.
    pub pace: Pace,
    /// Frames that the station's own rings could not hold.
    pub own_drops: u64,
}

impl Measured {
    fn of(load: f64, outcome: &Outcome) -> Self {
        let Outcome { counts, back, reflected, pace, own_drops, .. } = outcome;
        let back = reflected.then(|| back.clone());
        Self { load, counts: counts.clone(), back, pace: *pace, own_drops: *own_drops }
    }

    /// Whether no frame came twice or changed: at no load may a device do that.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        [Some(&self.counts), self.back.as_ref()]
            .into_iter()
            .flatten()
            .all(|counts| counts.duplicated == 0 && counts.corrupted == 0)
    }
}

impl Bench {
    /// Starts the gateway, or opens the interfaces.
    ///
    /// # Errors
    /// When the kernel refuses, the gateway does not start, or a neighbour does not answer.
    pub fn open(options: &Options, setup: impl FnOnce(Setup) -> Setup) -> Result<Self, TrafficError> {
        let cpus = allowed_cpus()?;
        match &options.place {
            Place::Lab(binary) => {
                let largest = options.sizes.iter().map(|sizes| u32::from(sizes.largest())).max().unwrap_or(64);
                // A frame is 18 bytes longer than its IP packet.
                let mtu = largest.saturating_sub(18).max(1500);
                let setup = setup(Setup {
                    six: options.six,
                    workers: options.workers,
                    io: options.io,
                    mtu,
                    ..Setup::new(options.flows)
                });
                let lab = Lab::start(binary, setup)?;
                let station = lab.station()?;
                let ends = lab.ends(&station);
                Ok(Self { lab: Some(lab), station, ends, seed: options.seed, both: options.both, cpus })
            }
            Place::Ports(ports) => {
                let client = Side::open(&ports.tx, vec![ports.source])?;
                let server = Side::open(&ports.rx, vec![ports.target.ip()])?;
                let mut station = Station::new(client, server, ports.target.port());
                let mac = match ports.mac {
                    Some(mac) => mac,
                    None => station.resolve(ports.source, ports.destination.ip(), FIRST)?,
                };
                let ends = Ends {
                    macs: (station.client_mac(), mac),
                    clients: ports.clients,
                    hosts: ports.hosts,
                    destination: ports.destination,
                };
                Ok(Self { lab: None, station, ends, seed: options.seed, both: options.both, cpus })
            }
        }
    }

    /// A stream through the device. Streams of other `variant`s have other flows.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stream(&self, transport: Transport, flows: u32, sizes: Sizes, variant: u64) -> Result<Stream, TrafficError> {
        let seed = self.seed ^ variant.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Ok(Stream::new(self.ends, transport, flows, sizes, seed)?)
    }

    /// Sends a frame until one comes through.
    ///
    /// # Errors
    /// When none does.
    pub fn first(&mut self, stream: &Stream) -> Result<(), TrafficError> {
        let since = Instant::now();
        let plan = Plan { settle: Duration::from_millis(100), ..Plan::each(opening(stream), 1, 1000.0) };
        while since.elapsed() < FIRST {
            let outcome = self.station.run(stream, &plan, || false)?;
            if outcome.counts.received + outcome.answered > 0 {
                return Ok(());
            }
        }
        Err(TrafficError::NoPath(FIRST.as_secs()))
    }

    /// Opens all flows of a stream.
    ///
    /// # Errors
    /// When some cannot be opened.
    pub fn prepare(&mut self, stream: &Stream) -> Result<(), TrafficError> {
        self.first(stream)?;
        let (mut rate, mut opened) = (OPENING, 0);
        for _ in 0..OPENING_ROUNDS {
            let outcome = self.station.run(stream, &Plan::each(opening(stream), stream.flows(), rate), || false)?;
            opened = outcome.counts.received.max(outcome.answered);
            if opened >= u64::from(stream.flows()) {
                return Ok(());
            }
            rate /= 2.0;
        }
        Err(TrafficError::NotOpened { opened, flows: stream.flows() })
    }

    /// Empties the gateway's table by starting it again; another device's is what it is.
    ///
    /// # Errors
    /// When it does not start.
    pub fn empty(&mut self) -> Result<(), TrafficError> {
        let Some(lab) = &mut self.lab else { return Ok(()) };
        let cpus = &self.cpus;
        // What is started has the CPUs of the thread that starts it.
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                pin_to_cpus(cpus)?;
                lab.restart(true)
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Flows that the gateway has; none where there is no gateway.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn live_flows(&self) -> Result<u64, TrafficError> {
        self.lab.as_ref().map_or(Ok(0), Lab::flows)
    }

    /// Sends data at a load.
    ///
    /// # Errors
    /// When an interface is down.
    pub fn measure(&mut self, stream: &Stream, load: f64, duration: Duration) -> Result<Outcome, TrafficError> {
        let plan = Plan { responder: self.responder(), ..Plan::data(load, duration) };
        self.station.run(stream, &plan, || false)
    }

    const fn responder(&self) -> Responder {
        if self.both { Responder::Reflect } else { Responder::Sink }
    }

    /// The same, as searches want it.
    ///
    /// # Errors
    /// When an interface is down.
    pub fn trial(&mut self, stream: &Stream, load: f64, duration: Duration) -> Result<Trial, TrafficError> {
        Ok(trial(load, duration, &self.measure(stream, load, duration)?))
    }

    /// Sends data for so long as fast as the generator can.
    ///
    /// # Errors
    /// When an interface is down.
    pub fn flat_out(&mut self, stream: &Stream, duration: Duration) -> Result<Outcome, TrafficError> {
        let since = Instant::now();
        let responder = self.responder();
        let plan = Plan { frames: FLAT_OUT, rate: Rate::FlatOut, responder, ..Plan::data(1.0, Duration::ZERO) };
        self.station.run(stream, &plan, || since.elapsed() >= duration)
    }

    /// Sends frames that the kernel makes, of each size for itself, and counts what comes out. The station is gone after it.
    ///
    /// # Errors
    /// When the kernel cannot or may not make frames, or there is no gateway of our own.
    pub fn overload(
        self,
        options: &Options,
        duration: Duration,
        progress: &mut impl FnMut(&str),
    ) -> Result<Vec<Overload>, TrafficError> {
        let Self { lab: Some(lab), station, ends, seed, both, cpus } = self else {
            return Err(TrafficError::Argument(
                "frames are made inside the kernel for a gateway in namespaces only".into(),
            ));
        };
        drop(station);
        let mut bench = Self { station: lab.station()?, lab: Some(lab), ends, seed, both, cpus };
        let mut found = Vec::new();
        for size in options.sizes.iter().filter_map(|sizes| sizes.fixed()) {
            progress(&format!("{size} bytes: made inside the kernel"));
            // The gateway asks for its neighbours, and somebody answers.
            bench.first(&bench.stream(Transport::Udp, 1, Sizes::Fixed(size), 0)?)?;
            let Self { lab: Some(lab), station, .. } = bench else { return Err(TrafficError::NoPath(0)) };
            drop(station);
            // A call that makes frames lasts half a second.
            let window = duration.max(Duration::from_millis(500));
            found.push(in_kernel::overload(&lab, &ends, size, window / 2, window)?);
            bench = Self { station: lab.station()?, lab: Some(lab), ends, seed, both, cpus: bench.cpus };
        }
        Ok(found)
    }
}

/// Lets the calling thread run on these CPUs.
fn pin_to_cpus(cpus: &[usize]) -> Result<(), NatError> {
    let failed = |error| NatError::Kernel("choose the CPUs of a thread", error);
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).map_err(failed)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(failed)
}

/// What opens a flow.
const fn opening(stream: &Stream) -> Kind {
    match stream.transport() {
        Transport::Udp => Kind::Data,
        Transport::Tcp => Kind::Open,
    }
}

/// A trial's outcome for a search. It is paced only if the station itself lost nothing. Frames that came at once because the
/// generator had been held up excuse a loss; where none was lost in spite of them, none would have been without them.
fn trial(load: f64, duration: Duration, outcome: &Outcome) -> Trial {
    let Outcome { counts, back, reflected, pace, own_drops, .. } = outcome;
    let received = if *reflected { back.received } else { counts.received };
    let paced = *own_drops == 0 && (pace.kept || pace.in_time && received >= counts.sent);
    let seconds = duration.as_secs_f64().max(outcome.elapsed as f64 / 1e9);
    Trial { load, seconds, sent: counts.sent, received, paced }
}

/// Runs a measurement in a thread of its own, pinned to the load's CPU where a gateway has the other one.
fn pinned<T: Send>(
    bench: &mut Bench,
    work: impl FnOnce(&mut Bench) -> Result<T, TrafficError> + Send,
) -> Result<T, TrafficError> {
    let pins = bench.lab.is_some() && cores() > 1;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            if pins {
                pin(LOAD_CPU)?;
            }
            work(bench)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A load and how much of a link it takes, in Gbit/s with preamble and gap (20 bytes a frame).
fn gigabits(load: f64, sizes: Sizes) -> f64 {
    load * (sizes.mean() + 20.0) * 8.0 / 1e9
}

#[cfg(test)]
mod tests {
    use postern_lab::{Namespace, VethEnd};

    use super::*;

    /// Two interfaces of the host with nothing but a wire between them.
    fn options(transport: Transport) -> Options {
        let [source, clients]: [IpAddr; 2] = ["10.71.1.2", "10.128.0.0"].map(|text| text.parse().unwrap());
        let destination: SocketAddr = "10.71.1.100:5201".parse().unwrap();
        let (tx, rx) = ("one".to_owned(), "other".to_owned());
        let ports = Ports { tx, rx, source, clients, hosts: 16, destination, mac: None, target: destination };
        Options {
            place: Place::Ports(ports),
            six: false,
            workers: 1,
            io: Io::AfPacket,
            transport,
            flows: 500,
            sizes: vec![Sizes::Fixed(128)],
            seconds: 0.1,
            both: false,
            range: Range { lowest: 200.0, highest: 2_000.0 },
            seed: 1,
            quick: true,
        }
    }

    fn over_a_wire<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let namespace = Namespace::anonymous("wire").unwrap();
        let (one, other) = VethEnd::new(&namespace, "one").pair(&VethEnd::new(&namespace, "other")).unwrap();
        one.disable_ipv6().unwrap();
        other.disable_ipv6().unwrap();
        Some(namespace.run(work).unwrap())
    }

    #[test]
    fn between_two_interfaces_the_neighbour_is_asked_for_and_a_wire_loses_nothing() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let Some(report) = over_a_wire(|| throughput::run(&options(transport), |_| ()).unwrap()) else { return };
            let report::Results::Throughput(found) = &report.results else { panic!("{report:?}") };
            let size = &found.sizes[0];
            assert!(report.passed && found.overload.is_empty(), "{report:?}");
            // The machine may be slow, so that the generator is the bound; a wire never is.
            assert!(matches!(
                size.throughput,
                crate::search::rate::Throughput::Ceiling { .. }
                    | crate::search::rate::Throughput::GeneratorBound { .. }
            ));
            assert!(report.to_text().contains("128 bytes") && report.to_json().contains("\"outcome\""));
        }
    }

    #[test]
    fn frames_that_are_sent_back_are_received_when_they_are_back() {
        let options = Options { both: true, ..options(Transport::Udp) };
        let method = Method::Traffic { rate: Some(1_000.0), in_kernel: false };
        let Some(report) = over_a_wire(|| run(method, &options, |_| ()).unwrap()) else { return };
        let report::Results::Traffic(found) = &report.results else { panic!("{report:?}") };
        let measured = &found.sizes[0].measured;
        let back = measured.back.as_ref().unwrap();
        assert_eq!((measured.counts.received, back.received, back.lost), (100, 100, 0));
        assert!(report.passed && report.to_text().contains("and back"), "{}", report.to_text());
    }

    #[test]
    fn every_method_that_needs_no_gateway_of_its_own_works_between_two_interfaces() {
        let options = options(Transport::Udp);
        let Some(reports) = over_a_wire(|| {
            [
                ndr::run(&options, |_| ()).unwrap(),
                latency::run(&options, Some(1_000.0), |_| ()).unwrap(),
                connections::run(&options, |_| ()).unwrap(),
            ]
        }) else {
            return;
        };
        for report in &reports {
            assert!(report.passed, "{}", report.to_text());
        }
        let report::Results::Latency(found) = &reports[1].results else { panic!("no latencies") };
        let loads: Vec<f64> = found.sizes[0].loads.iter().map(|at| at.measured.load).collect();
        assert_eq!(loads, [200.0, 200.0, 500.0, 900.0]);
        let report::Results::Connections(found) = &reports[2].results else { panic!("no connections") };
        // A wire has no table: all that were tried pass in both directions.
        assert_eq!((found.capacity.established, found.capacity.is_limit), (625, false));
        let refused = over_a_wire(|| reconf::run(&options, 1_000.0, |_| ()).map(drop)).unwrap();
        assert!(matches!(refused, Err(TrafficError::Argument(_))));
    }
}

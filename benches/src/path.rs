//! `postern bench path`: the packet path in memory, without kernel and devices: by what the packets are, by number of flows,
//! and by number of workers. Each worker is a pinned thread with a forwarder and flow memory of its own, as in the dataplane.

use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use postern_frame_io::pin::{PinError, allowed_cpus, pin_to_cpu};
use serde::Serialize;

use crate::bed::{self, ALL_TARGETS, Bed, BedError, Ends, FRAME, FRAMES, Protocol, Template};
use crate::nat::processor::Machine;
use crate::report::{self, Axis, Plot, Point, Section, Series};

/// Room for flows where every packet is the first of one.
const FIRST_CAPACITY: u32 = 1 << 17;
/// Flows that are opened there until all are let go: half-open ones may have a sixteenth of the room.
const FIRST_FLOWS: u32 = FIRST_CAPACITY / 16;
/// Seconds after which these have ended and their ports have rested.
const FORGOTTEN: u64 = 420;
/// How often each number of workers has its turn.
const ROUNDS: usize = 5;
/// What two workers must reach of twice one.
pub const SCALING_MARK: f64 = 1.9;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The fixture.
    #[error(transparent)]
    Bed(#[from] BedError),
    /// A thread cannot be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A thread ended.
    #[error("a worker ended before it had measured")]
    Ended,
    /// There are fewer CPUs than workers.
    #[error("{wanted} workers need a CPU each, and this process may use {there}")]
    TooFewCpus {
        /// Workers.
        wanted: usize,
        /// CPUs.
        there: usize,
    },
    /// An unknown mix.
    #[error("there is no packet mix \"{0}\"; there are: {1}")]
    UnknownMix(String, String),
}

/// What the packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Established TCP over IPv4.
    Tcp,
    /// Established UDP over IPv4.
    Udp,
    /// The same in the lengths of IMIX: 7 of 64, 4 of 594, 1 of 1,518 bytes, frame check sequence included.
    Imix,
    /// Established TCP over IPv6.
    Tcp6,
    /// Established UDP over IPv6.
    Udp6,
    /// Established TCP, IPv6 clients and IPv4 targets.
    Nat64,
    /// SYNs, each of a new flow.
    NewTcp,
    /// Datagrams, each of a new flow.
    NewUdp,
}

impl Mix {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Tcp, Self::Udp, Self::Imix, Self::Tcp6, Self::Udp6, Self::Nat64, Self::NewTcp, Self::NewUdp];

    /// The name in tables and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Imix => "imix",
            Self::Tcp6 => "tcp6",
            Self::Udp6 => "udp6",
            Self::Nat64 => "nat64",
            Self::NewTcp => "new_tcp",
            Self::NewUdp => "new_udp",
        }
    }

    const fn ends(self) -> Ends {
        match self {
            Self::Tcp6 | Self::Udp6 => Ends::V6,
            Self::Nat64 => Ends::Nat64,
            _ => Ends::V4,
        }
    }

    const fn protocol(self) -> Protocol {
        match self {
            Self::Udp | Self::Imix | Self::Udp6 | Self::NewUdp => Protocol::Udp,
            _ => Protocol::Tcp,
        }
    }

    /// Whether each packet is the first of its flow.
    const fn opens(self) -> bool {
        matches!(self, Self::NewTcp | Self::NewUdp)
    }

    /// Bytes of a frame of this connection, without frame check sequence.
    const fn length(self, number: u32) -> usize {
        match (self, number % 12) {
            (Self::Imix, 0..7) => 60,
            (Self::Imix, 7..11) => 590,
            (Self::Imix, _) => 1514,
            _ => FRAME,
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of live flows, of each worker.
    pub flows: Vec<u32>,
    /// Numbers of workers, each 1…64.
    pub workers: Vec<usize>,
    /// Packet mixes, by name; empty for all.
    pub mixes: Vec<String>,
    /// How long one measurement lasts: all rounds of a number of workers together.
    pub window: Duration,
}

/// The rates of one machine.
#[derive(Debug, Serialize)]
pub struct PathReport {
    /// What it was measured on.
    pub machine: Machine,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// By mix, number of flows and number of workers.
    pub rates: Vec<Rate>,
}

/// How fast packets are forwarded.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// What the packets are.
    pub mix: Mix,
    /// Live flows of each worker, all of them used in random order, both directions; of `new_…` the flows that are opened
    /// until all are let go.
    pub flows: u32,
    /// Workers, each on a CPU of its own.
    pub workers: usize,
    /// Time for a packet at one worker in nanoseconds, without what the fixture costs: the median of the rounds.
    pub nanoseconds: f64,
    /// Packets a second that all workers together could forward if devices cost nothing, in millions.
    pub million_packets_per_second: f64,
    /// The rate over that of one worker, the median of the rounds; `None` where one worker was not measured.
    pub scaling: Option<f64>,
}

/// Measures every mix with every number of flows and of workers.
///
/// # Errors
/// When the fixture cannot be built or a thread not pinned.
pub fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<PathReport, PathError> {
    let mixes = chosen(&options.mixes)?;
    let cpus = allowed_cpus()?;
    let most = options.workers.iter().copied().max().unwrap_or(1).max(1);
    if cpus.len() < most {
        return Err(PathError::TooFewCpus { wanted: most, there: cpus.len() });
    }
    let mut rates = Vec::new();
    for mix in mixes {
        let flow_counts: &[u32] = if mix.opens() { &[FIRST_FLOWS] } else { &options.flows };
        for &flows in flow_counts {
            progress(&format!("{}, {flows} flows, {most} workers at most", mix.name()));
            rates.extend(measure(mix, flows, options, &cpus[..most])?);
        }
    }
    let notes = vec![format!(
        "workers on CPUs {:?}, each with flows and frames of its own; numbers of workers alternate, {ROUNDS} rounds",
        &cpus[..most]
    )];
    Ok(PathReport { machine: Machine::here(), notes, rates })
}

fn chosen(names: &[String]) -> Result<Vec<Mix>, PathError> {
    if names.is_empty() {
        return Ok(Mix::ALL.to_vec());
    }
    let find = |name: &String| {
        let all = || Mix::ALL.map(Mix::name).join(", ");
        Mix::ALL.into_iter().find(|mix| mix.name() == name).ok_or_else(|| PathError::UnknownMix(name.clone(), all()))
    };
    names.iter().map(find).collect()
}

/// One mix and number of flows, with each number of workers in turn.
fn measure(mix: Mix, flows: u32, options: &Options, cpus: &[usize]) -> Result<Vec<Rate>, PathError> {
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for &cpu in cpus {
            let (ask, asked) = channel();
            let (answer, answered) = channel();
            scope.spawn(move || work(cpu, mix, flows, &asked, &answer));
            workers.push((ask, answered));
        }
        // The first answer of each says that it is ready.
        for (_, answered) in &workers {
            answered.recv().map_err(|_| PathError::Ended)??;
        }
        let slice = options.window / ROUNDS as u32;
        let mut rounds = vec![Vec::new(); options.workers.len()];
        for _ in 0..ROUNDS {
            for (count, times) in options.workers.iter().zip(&mut rounds) {
                let active = &workers[..(*count).max(1)];
                for (ask, _) in active {
                    ask.send(slice).map_err(|_| PathError::Ended)?;
                }
                let mut each = Vec::new();
                for (_, answered) in active {
                    each.push(answered.recv().map_err(|_| PathError::Ended)??);
                }
                times.push(each);
            }
        }
        // The threads end when nobody can ask any more.
        drop(workers);
        let rate = |each: &Vec<f64>| each.iter().map(|nanoseconds| 1e3 / nanoseconds).sum::<f64>();
        let alone = options.workers.iter().position(|count| *count == 1).map(|at| rounds[at].clone());
        let rates = options.workers.iter().zip(&rounds).map(|(&workers, rounds)| Rate {
            mix,
            flows,
            workers,
            nanoseconds: median(rounds.iter().map(|each| each.iter().sum::<f64>() / each.len() as f64).collect()),
            million_packets_per_second: median(rounds.iter().map(rate).collect()),
            scaling: alone
                .as_ref()
                .map(|alone| median(rounds.iter().zip(alone).map(|(many, one)| rate(many) / rate(one)).collect())),
        });
        Ok(rates.collect())
    })
}

type Answer = Result<f64, PathError>;

/// A worker: builds its forwarder, says so, and measures for as long as it is asked to.
fn work(cpu: usize, mix: Mix, flows: u32, asked: &Receiver<Duration>, answer: &Sender<Answer>) {
    let run = || -> Result<(), PathError> {
        pin_to_cpu(cpu)?;
        let capacity = if mix.opens() { FIRST_CAPACITY } else { flows.next_power_of_two().max(1024) };
        let mut region = bed::region_of(mix.ends(), capacity)?;
        let mut bed = Bed::between(mix.ends(), region.bytes_mut(), capacity)?;
        let bursts = if mix.opens() {
            bed.establish(mix.protocol(), 0..ALL_TARGETS)?;
            let packets = Bed::first_packets_between(mix.ends(), mix.protocol(), ALL_TARGETS..FIRST_FLOWS);
            packets.as_chunks::<FRAMES>().0.to_vec()
        } else {
            bed::shuffled::<FRAMES>(&bed.establish_sized(mix.protocol(), 0..flows, |number| mix.length(number))?)
        };
        // Brings code and, as far as they fit, flows into the caches.
        nanoseconds(&mut bed, mix, &bursts, Duration::ZERO);
        let _ = answer.send(Ok(0.0));
        while let Ok(window) = asked.recv() {
            let _ = answer.send(Ok(nanoseconds(&mut bed, mix, &bursts, window)));
        }
        Ok(())
    };
    if let Err(error) = run() {
        let _ = answer.send(Err(error));
    }
}

/// Nanoseconds a packet, without the fixture: medians of slices with and without the forwarder, in turn.
fn nanoseconds(bed: &mut Bed<'_>, mix: Mix, bursts: &[[Template; FRAMES]], window: Duration) -> f64 {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while with.is_empty() || start.elapsed() < window {
        if mix.opens() {
            bed.advance(FORGOTTEN);
        }
        for slice in bursts.chunks(if mix.opens() { 64 } else { 1 << 13 }) {
            // Slices of at least 512 bursts, so that reading the clock does not count; first packets come once.
            let repeats = if mix.opens() { 1 } else { (512 / slice.len()).max(1) };
            let mut time = |process: bool| {
                let start = Instant::now();
                for _ in 0..repeats {
                    for burst in slice {
                        if process {
                            bed.burst(burst)
                        } else {
                            bed.empty_burst(burst)
                        };
                    }
                }
                start.elapsed().as_nanos() as f64 / (repeats * slice.len() * FRAMES) as f64
            };
            with.push(time(true));
            without.push(time(false));
        }
    }
    (median(with) - median(without)).max(0.001)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl PathReport {
    /// As a document of a run that began at `since`: the rate by flows, and by workers.
    #[must_use]
    pub fn to_document(&self, since: SystemTime, quick: bool) -> report::Report {
        let mut document = report::Report::new("postern bench path", since, quick);
        document.notes.clone_from(&self.notes);
        let mut section = Section::new(
            "The packet path in memory",
            "Packets that the code alone could forward, without kernel and devices, by packet mix.",
        );
        let mut mixes: Vec<Mix> = self.rates.iter().map(|rate| rate.mix).collect();
        mixes.dedup();
        let plot = |title: &str, x: Axis, of: &dyn Fn(&Rate) -> Option<f64>| {
            let series = mixes.iter().map(|mix| {
                let rates = self.rates.iter().filter(|rate| rate.mix == *mix);
                let points = rates.filter_map(|rate| Some(Point::at(of(rate)?, rate.million_packets_per_second * 1e6)));
                Series { name: mix.name().to_owned(), points: points.collect() }
            });
            Plot { title: title.to_owned(), x, y: Axis::new("rate", "packets/s"), series: series.collect() }
        };
        let fewest = |mix| self.rates.iter().filter(|rate| rate.mix == mix).map(|rate| rate.flows).min();
        section.plots = vec![
            plot("Rate by flows, one worker", Axis::new("flows", "").logarithmic(), &|rate| {
                (rate.workers == 1).then(|| rate.flows.into())
            }),
            plot("Rate by workers", Axis::new("workers", ""), &|rate| {
                (Some(rate.flows) == fewest(rate.mix)).then_some(rate.workers as f64)
            }),
        ];
        document.sections.push(section);
        document
    }

    /// As a JSON document.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// As a table for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{}, Linux {}\n", self.machine.cpu, self.machine.kernel);
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let head = ["packets", "flows", "workers", "ns a packet", "million packets/s", "of one worker"];
        let [mix, flows, workers, nanoseconds, rate, scaling] = head;
        let _ = writeln!(text, "{mix:>8} {flows:>9} {workers:>8} {nanoseconds:>12} {rate:>18} {scaling:>14}");
        for rate in &self.rates {
            let Rate { mix, flows, workers, nanoseconds, million_packets_per_second, scaling } = rate;
            let scaling = scaling.map_or_else(String::new, |scaling| format!("{scaling:.2}"));
            let _ = writeln!(
                text,
                "{:>8} {flows:>9} {workers:>8} {nanoseconds:>12.1} {million_packets_per_second:>18.2} {scaling:>14}",
                mix.name()
            );
        }
        if self.rates.iter().any(|rate| rate.workers == 2 && rate.scaling.is_some()) {
            let _ = writeln!(text, "two workers are to reach {SCALING_MARK} of one or more");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mix_is_forwarded_by_every_number_of_workers() {
        let workers: Vec<usize> = (1..=allowed_cpus().unwrap().len().min(2)).collect();
        let options =
            Options { flows: vec![256], workers: workers.clone(), mixes: Vec::new(), window: Duration::from_millis(5) };
        let report = run(&options, |_| ()).unwrap();
        assert_eq!(report.rates.len(), Mix::ALL.len() * workers.len());
        for rate in &report.rates {
            assert!(rate.nanoseconds > 1.0, "{rate:?}");
            assert_eq!(rate.scaling == Some(1.0), rate.workers == 1, "{rate:?}");
        }
        assert!(report.to_text().contains("nat64"));
    }

    #[test]
    fn an_unknown_mix_is_refused_with_the_list_of_all() {
        let error = chosen(&["sctp".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("\"sctp\"") && error.contains("tcp, udp, imix"), "{error}");
    }

    #[test]
    fn imix_is_seven_four_one() {
        let lengths: Vec<usize> = (0..12).map(|number| Mix::Imix.length(number) + 4).collect();
        let count = |length| lengths.iter().filter(|other| **other == length).count();
        assert_eq!([count(64), count(594), count(1518)], [7, 4, 1]);
    }
}

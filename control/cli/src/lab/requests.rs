//! Series of requests from one consumer, and what came of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postern_lab::network::{self, SNAT};
use postern_lab::{Client, NamespaceError, Node, Reply, RequestError, Transfer, Way};
use serde::Serialize;

/// A series is given up after so many failures: each may cost a deadline.
const PATIENCE: usize = 3;
/// First of the client ports; both consumers use the same ones at the same time.
const FIRST_PORT: u16 = 40_000;
/// Sizes of the UDP payloads in bytes, in turn.
const DATAGRAMS: [usize; 5] = [0, 1, 64, 512, 1200];

/// What a consumer did, one request after another.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    pub(super) consumer: String,
    pub(super) protocol: &'static str,
    /// Requests sent.
    pub(super) asked: usize,
    /// Answers that were right to the last byte.
    pub(super) answered: usize,
    /// Bytes of payload that were sent and answered over UDP; TCP's are few, and are not counted.
    #[serde(skip)]
    pub(super) payload: u64,
    /// How many of them each target gave.
    pub(super) by_target: BTreeMap<String, usize>,
    /// Half of the answers came within so many microseconds (with TCP: connection, request, answer, end).
    pub(super) median_microseconds: f64,
    /// 99 of 100 did.
    pub(super) p99_microseconds: f64,
    #[serde(skip)]
    pub(super) problems: Vec<String>,
}

/// A transfer of many bytes.
#[derive(Debug, Serialize)]
pub(super) struct Bulk {
    pub(super) consumer: String,
    pub(super) way: Way,
    /// Bytes of payload, each of them checked.
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) gigabits_per_second: f64,
}

/// Asks over TCP, from ports of its own one after another.
pub(super) fn tcp(node: &Node, count: u16) -> Result<Series, NamespaceError> {
    let client = Client::default();
    node.run(|| series(node, "tcp", count, |at| client.ask_tcp(network::page(), FIRST_PORT + at)))
}

/// Asks over UDP with payloads of several sizes.
pub(super) fn udp(node: &Node, count: u16) -> Result<Series, NamespaceError> {
    let client = Client::default();
    node.run(|| {
        series(node, "udp", count, |at| {
            let length = DATAGRAMS[usize::from(at) % DATAGRAMS.len()];
            client.ask_udp(network::echo(), FIRST_PORT + at, u64::from(at), length)
        })
    })
}

/// Moves bytes one way, and checks each.
pub(super) fn bulk(node: &Node, way: Way, seed: u64, bytes: u64) -> Result<Result<Bulk, RequestError>, NamespaceError> {
    let client = Client { deadline: Duration::from_secs(5) };
    let transfer = node.run(|| client.bulk(network::bulk(), way, seed, bytes))?;
    Ok(transfer.map(|transfer: Transfer| Bulk {
        consumer: node.name().to_owned(),
        way,
        bytes: transfer.bytes,
        seconds: transfer.elapsed.as_secs_f64(),
        gigabits_per_second: transfer.gigabits_per_second(),
    }))
}

/// A UDP flow that goes on until it is stopped: a numbered datagram, its answer, the next.
pub(super) struct Conversation {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    lost: AtomicU64,
    /// Lost since the last answer.
    silence: AtomicU64,
    last_answer: Mutex<Option<Instant>>,
}

impl Conversation {
    /// A datagram without an answer for so long is lost.
    const PATIENCE: Duration = Duration::from_millis(250);
    /// Between an answer and the next datagram.
    const PAUSE: Duration = Duration::from_millis(1);
    /// So many in a row without an answer: nobody answers any more.
    const SILENCE: u64 = 4;

    /// Begins it from a client.
    pub(super) fn start(node: &Node) -> Self {
        let shared = Arc::new(Shared::default());
        let (node, talking) = (node.clone(), shared.clone());
        let thread = thread::spawn(move || {
            // A client that cannot even send never gets an answer, and that is noticed.
            drop(node.run(|| converse(&talking)));
        });
        Self { shared, thread: Some(thread) }
    }

    /// Waits until more answers come; false if none do in time.
    pub(super) fn goes_on(&self, within: Duration) -> bool {
        let before = self.shared.answered.load(Ordering::Relaxed);
        wait(within, || self.shared.answered.load(Ordering::Relaxed) > before + 3)
    }

    /// Waits until no answers come any more; false if they still do in time.
    pub(super) fn falls_silent(&self, within: Duration) -> bool {
        wait(within, || self.shared.silence.load(Ordering::Relaxed) >= Self::SILENCE)
    }

    /// When the last answer came.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        *self.shared.last_answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it; returns how many datagrams were answered and how many were not.
    pub(super) fn stop(mut self) -> (u64, u64) {
        self.end();
        (self.shared.answered.load(Ordering::Relaxed), self.shared.lost.load(Ordering::Relaxed))
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.end();
    }
}

fn wait(within: Duration, condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + within;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

fn converse(shared: &Shared) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(network::echo())?;
    socket.set_read_timeout(Some(Conversation::PATIENCE))?;
    let mut answer = [0; 2048];
    for number in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let question = number.to_be_bytes();
        // What comes back is who answers, and the question; an answer that comes late is not that to this question.
        let came = socket.send(&question).is_ok()
            && loop {
                match socket.recv(&mut answer) {
                    Ok(length) if answer[..length].ends_with(&question) => break true,
                    Ok(_) => {}
                    Err(_) => break false,
                }
            };
        if came {
            *shared.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            shared.answered.fetch_add(1, Ordering::Relaxed);
            shared.silence.store(0, Ordering::Relaxed);
        } else {
            shared.lost.fetch_add(1, Ordering::Relaxed);
            shared.silence.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Conversation::PAUSE);
    }
    Ok(())
}

fn series(node: &Node, protocol: &'static str, count: u16, ask: impl Fn(u16) -> Result<Reply, RequestError>) -> Series {
    let mut series = Series {
        consumer: node.name().to_owned(),
        protocol,
        asked: 0,
        answered: 0,
        payload: 0,
        by_target: BTreeMap::new(),
        median_microseconds: 0.0,
        p99_microseconds: 0.0,
        problems: Vec::new(),
    };
    let mut times = Vec::with_capacity(usize::from(count));
    for at in 0..count {
        series.asked += 1;
        match ask(at) {
            Ok(reply) => {
                if protocol == "udp" {
                    series.payload += 2 * DATAGRAMS[usize::from(at) % DATAGRAMS.len()] as u64;
                }
                series.problems.extend(wrong(node.address(), &reply));
                *series.by_target.entry(reply.answer.target).or_default() += 1;
                series.answered += 1;
                times.push(reply.elapsed);
            }
            Err(error) => series.problems.push(format!("{} over {protocol}: {error}", node.name())),
        }
        if series.problems.len() >= PATIENCE {
            break;
        }
    }
    times.sort_unstable();
    series.median_microseconds = quantile(&times, 0.5);
    series.p99_microseconds = quantile(&times, 0.99);
    series
}

/// What is not as it must be in an answer that came.
fn wrong(client: Ipv4Addr, reply: &Reply) -> Option<String> {
    let target = &reply.answer.target;
    match reply.answer.seen.ip() {
        IpAddr::V4(seen) if SNAT.contains(&seen) => None,
        seen if seen == client => Some(format!("{target} saw the client's own address {seen}: nothing was translated")),
        seen => Some(format!("{target} saw the source {seen}, which is not in the SNAT pool")),
    }
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let times: Vec<_> = (1..=101).map(Duration::from_micros).collect();
        assert!((quantile(&times, 0.5) - 51.0).abs() < 1e-6);
        assert!((quantile(&times, 0.99) - 100.0).abs() < 1e-6);
        assert!(quantile(&[], 0.5).abs() < 1e-6);
    }

    #[test]
    fn an_untranslated_source_is_named() {
        let reply = |seen: &str| Reply {
            answer: postern_lab::Answer { target: "target-1".to_owned(), seen: seen.parse().unwrap() },
            local: "10.0.0.2:40000".parse().unwrap(),
            elapsed: Duration::ZERO,
        };
        let client = network::CLIENT;
        assert!(wrong(client, &reply("10.0.0.2:40000")).unwrap().contains("nothing was translated"));
        assert!(wrong(client, &reply("192.0.2.1:40000")).unwrap().contains("not in the SNAT pool"));
        assert_eq!(wrong(client, &reply(&format!("{}:1024", SNAT[0]))), None);
    }
}

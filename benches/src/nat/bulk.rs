//! Bulk TCP: streams of zeroes from the client to the server through the gateway, both ends on the load's CPU.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::processor::{LOAD_CPU, busy_seconds, pin};
use super::topology::Topology;
use super::{Measured, Metric, NatError, StopOnDrop};

/// Bytes of one write, as iperf3 does it.
const BUFFER: usize = 128 * 1024;
/// How long a stream may stand still before it counts as broken.
const STALL: Duration = Duration::from_secs(2);

/// Moves bytes over `streams` connections and measures what arrives in `window`, after a `warm_up`.
///
/// # Errors
/// When a connection cannot be opened, or nothing arrives.
pub fn measure(topology: &Topology, streams: usize, warm_up: Duration, window: Duration) -> Result<Measured, NatError> {
    let listener = topology.listen_tcp()?;
    let mut pairs = Vec::with_capacity(streams);
    for _ in 0..streams {
        let client = topology.connect_tcp()?;
        let (server, _) = listener.accept().map_err(|error| NatError::Io("accept a connection", error))?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(STALL)).map_err(|error| NatError::Io("set a time-out", error))?;
            end.set_write_timeout(Some(STALL)).map_err(|error| NatError::Io("set a time-out", error))?;
        }
        pairs.push((client, server));
    }

    let stop = AtomicBool::new(false);
    let received = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for (client, server) in pairs {
            let (stop, received) = (&stop, &received);
            scope.spawn(move || send(client, stop));
            scope.spawn(move || receive(server, received, stop));
        }
        std::thread::sleep(warm_up);
        let (bytes, busy, start) = (received.load(Ordering::Relaxed), busy_seconds()?, Instant::now());
        std::thread::sleep(window);
        let (bytes, elapsed) = (received.load(Ordering::Relaxed) - bytes, start.elapsed().as_secs_f64());
        let busy = busy_seconds()? - busy;
        if bytes == 0 {
            return Err(NatError::Nothing("bulk TCP"));
        }
        Ok(Measured::from([
            (Metric::GigabitsPerSecond, bytes as f64 * 8.0 / 1e9 / elapsed),
            (Metric::CpuSecondsPerGigabyte, busy / (bytes as f64 / 1e9)),
        ]))
    })
}

fn send(mut stream: TcpStream, stop: &AtomicBool) {
    let _ = pin(LOAD_CPU);
    let zeroes = vec![0u8; BUFFER];
    while !stop.load(Ordering::Relaxed) && stream.write_all(&zeroes).is_ok() {}
}

fn receive(mut stream: TcpStream, received: &AtomicU64, stop: &AtomicBool) {
    let _ = pin(LOAD_CPU);
    let mut buffer = vec![0u8; BUFFER];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => received.fetch_add(bytes as u64, Ordering::Relaxed),
        };
    }
}

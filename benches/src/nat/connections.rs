//! Connections in turn: open, one request, one answer, close; then the next.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::processor::{LOAD_CPU, busy_seconds, pin};
use super::topology::Topology;
use super::{Measured, Metric, NatError, StopOnDrop};

/// Bytes of a request and of its answer.
const MESSAGE: usize = 64;
/// How long one step of a connection may take before the connection counts as failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Failures after which no more are tried: each may cost [`PATIENCE`].
const FAILURES_ENOUGH: u64 = 20;

/// Opens `count` connections in turn and counts those that did not give the right answer.
///
/// # Errors
/// When the sockets cannot be made. A failed connection is not an error but counted.
pub fn measure(topology: &Topology, count: u64) -> Result<Measured, NatError> {
    let listener = topology.listen_tcp()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let (stop, listener) = (&stop, &listener);
        scope.spawn(move || serve(listener, stop));
        let busy = busy_seconds()?;
        let start = Instant::now();
        let (done, failed) = topology.at_client(move || -> Result<(u64, u64), NatError> {
            pin(LOAD_CPU)?;
            let (mut done, mut failed) = (0u64, 0u64);
            while done < count && failed < FAILURES_ENOUGH {
                // A request of its own for each, so that an answer that belongs to another connection is noticed.
                failed += u64::from(one(done).is_err());
                done += 1;
            }
            Ok((done, failed))
        })??;
        let elapsed = start.elapsed().as_secs_f64();
        let busy = busy_seconds()? - busy;
        stop.store(true, Ordering::Relaxed);
        // Wakes the server's accept; also where the path is broken, it stops within its own poll interval.
        Ok(Measured::from([
            (Metric::ConnectionsPerSecond, (done - failed) as f64 / elapsed),
            (Metric::Connections, done as f64),
            (Metric::FailedConnections, failed as f64),
            (Metric::CpuMicrosecondsPerConnection, busy * 1e6 / done.max(1) as f64),
        ]))
    })
}

fn one(number: u64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&Topology::endpoint().into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0u8; MESSAGE];
    request[..8].copy_from_slice(&number.to_le_bytes());
    stream.write_all(&request)?;
    let mut answer = [0u8; MESSAGE];
    stream.read_exact(&mut answer)?;
    if answer == request { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let _ = pin(LOAD_CPU);
    while !stop.load(Ordering::Relaxed) {
        // The listener has a time-out (SO_RCVTIMEO), so this ends soon after `stop`.
        if let Ok((stream, _)) = listener.accept() {
            let _ = answer(stream);
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0u8; MESSAGE];
    stream.read_exact(&mut request)?;
    stream.write_all(&request)?;
    // The client closes first; waiting for it keeps TIME_WAIT on the client's side.
    stream.read(&mut request).map(drop)
}

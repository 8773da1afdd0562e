//! Round trips of one byte, one after another, over one connection.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::processor::{LOAD_CPU, pin};
use super::topology::Topology;
use super::{Measured, Metric, NatError, StopOnDrop};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Round trips that are not counted.
const WARM_UP: usize = 100;

/// One byte there and back over TCP, for `window`.
///
/// # Errors
/// When the connection cannot be opened or breaks.
pub fn measure_tcp(topology: &Topology, window: Duration) -> Result<Measured, NatError> {
    let listener = topology.listen_tcp()?;
    let mut client = topology.connect_tcp()?;
    let (server, _) = listener.accept().map_err(|error| NatError::Io("accept a connection", error))?;
    let prepare = |stream: &TcpStream| {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))
    };
    prepare(&client).and_then(|()| prepare(&server)).map_err(|error| NatError::Io("prepare a connection", error))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let stop = &stop;
        scope.spawn(move || echo_tcp(server, stop));
        let result = ask(window, || {
            client.write_all(&[1])?;
            client.read_exact(&mut [0])
        });
        // Ends the echo's read at once.
        let _ = client.shutdown(std::net::Shutdown::Both);
        result
    })
}

/// One byte there and back over UDP, for `window`. A lost datagram is an error: the path is otherwise idle.
///
/// # Errors
/// When the first answer, or a later one, does not come.
pub fn measure_udp(topology: &Topology, window: Duration) -> Result<Measured, NatError> {
    let server = topology.bind_udp_server()?;
    let client = topology.connect_udp()?;
    for socket in [&server, &client] {
        let patience = Some(PATIENCE / 4);
        socket.set_read_timeout(patience).map_err(|error| NatError::Io("set a time-out", error))?;
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let stop = &stop;
        scope.spawn(move || echo_udp(&server, stop));
        ask(window, || {
            client.send(&[1])?;
            client.recv(&mut [0; 16]).map(drop)
        })
    })
}

/// Asks from a thread on the load's CPU until the window is over, and sorts the times.
fn ask(window: Duration, mut round_trip: impl FnMut() -> std::io::Result<()> + Send) -> Result<Measured, NatError> {
    let times = std::thread::scope(|scope| {
        let asking = scope.spawn(move || -> Result<Vec<u64>, NatError> {
            pin(LOAD_CPU)?;
            for _ in 0..WARM_UP {
                round_trip().map_err(|error| NatError::Io("get one byte back", error))?;
            }
            let mut times = Vec::with_capacity(1 << 16);
            let start = Instant::now();
            while start.elapsed() < window {
                let sent = Instant::now();
                round_trip().map_err(|error| NatError::Io("get one byte back", error))?;
                times.push(sent.elapsed().as_nanos() as u64);
            }
            Ok(times)
        });
        asking.join().unwrap_or(Err(NatError::Nothing("round trips")))
    });
    let mut times = times?;
    times.sort_unstable();
    let (Some(p50), Some(p99)) = (percentile(&times, 50), percentile(&times, 99)) else {
        return Err(NatError::Nothing("round trips"));
    };
    Ok(Measured::from([(Metric::P50Microseconds, p50 as f64 / 1e3), (Metric::P99Microseconds, p99 as f64 / 1e3)]))
}

/// The smallest value that at least `percent` of all are not above (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

fn echo_tcp(mut stream: TcpStream, stop: &AtomicBool) {
    let _ = pin(LOAD_CPU);
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) && stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

fn echo_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let _ = pin(LOAD_CPU);
    let mut buffer = [0; 16];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let times: Vec<u64> = (1..=200).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 99)), (Some(100), Some(198)));
        assert_eq!((percentile(&[7], 99), percentile(&[], 50)), (Some(7), None));
    }
}

//! Every port of an SNAT address, through real sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use postern_lab::network::{self, CLIENT, SECOND_CLIENT, SNAT};
use postern_lab::server::ECHO_PORT;
use postern_lab::{Namespace, Topology};

use crate::bed::{Bed, eventually, run};

/// Ports of one SNAT address toward one target.
const PORTS: u32 = 64_512;
/// Flows beyond them.
const BEYOND: u32 = 256;
/// Datagrams on their way at once.
const AT_ONCE: usize = 512;

/// Datagrams that are sent one by one.
const AT_FIRST: usize = 64;

/// A UDP server that answers nothing and remembers who wrote.
struct Sink {
    stop: Arc<AtomicBool>,
    seen: Arc<std::sync::Mutex<BTreeMap<SocketAddrV4, u32>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    fn start(namespace: &Namespace, port: u16) -> Self {
        let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(BTreeMap::new())));
        let (ending, writing) = (stop.clone(), seen.clone());
        let thread = thread::spawn(move || {
            let mut datagram = [0; 64];
            while !ending.load(Ordering::Relaxed) {
                if let Ok((_, std::net::SocketAddr::V4(from))) = socket.recv_from(&mut datagram) {
                    *writing.lock().unwrap().entry(from).or_insert(0) += 1;
                }
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    /// Datagrams so far, and how many sources they had.
    fn count(&self) -> (u32, usize) {
        let seen = self.seen.lock().unwrap();
        (seen.values().sum(), seen.len())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[test]
fn one_worker_uses_every_port_before_the_first_refusal() {
    uses_every_port(1);
}

#[test]
fn three_workers_use_every_port_before_the_first_refusal() {
    uses_every_port(3);
}

fn uses_every_port(workers: usize) {
    let start = Bed::start_with(Topology::builder().workers(workers).flows(131_072), |declaration| {
        declaration.snat_pools[0].addresses.truncate(1);
        declaration.target_groups.iter_mut().for_each(|group| group.targets.truncate(1));
    });
    let Some(mut bed) = start else { return };
    bed.target_mut(0).stop();
    let sink = Sink::start(bed.targets()[0].node().namespace(), ECHO_PORT);
    bed.client(0).interface().add_address(IpAddr::V4(SECOND_CLIENT), 24).unwrap();

    let sources = |address| (1024..=65_535).map(move |port| SocketAddrV4::new(address, port));
    let all: Vec<_> = sources(CLIENT).chain(sources(SECOND_CLIENT).take(BEYOND as usize)).collect();
    let (within, beyond) = all.split_at(PORTS as usize);
    // The first find the neighbour, each worker for itself.
    let (first, others) = within.split_at(AT_FIRST);
    let mut sent = 0;
    for part in first.chunks(1).chain(others.chunks(AT_ONCE)) {
        send(&bed, part);
        sent += part.len() as u32;
        let deadline = Instant::now() + Duration::from_secs(5);
        while sink.count().0 < sent {
            assert!(Instant::now() < deadline, "only {} of {sent} datagrams came", sink.count().0);
            thread::sleep(Duration::from_micros(200));
        }
    }
    assert_eq!(sink.count(), (PORTS, PORTS as usize), "two flows share a port");
    let ports = sink.seen.lock().unwrap().keys().map(|from| (*from.ip(), from.port())).collect::<Vec<_>>();
    assert!(ports.iter().all(|(address, port)| *address == SNAT[0] && *port >= 1024));
    assert_eq!(bed.counters().total.drops["ports_exhausted"], 0);

    send(&bed, beyond);
    eventually("the refusals are counted", Duration::from_secs(5), || {
        bed.counters().total.drops["ports_exhausted"] == u64::from(BEYOND)
    });
    assert_eq!(sink.count().0, PORTS);
    // Flows that live are not touched.
    send(&bed, &within[..AT_ONCE]);
    eventually("live flows go on", Duration::from_secs(5), || sink.count().0 == PORTS + AT_ONCE as u32);
    assert_eq!(sink.count().1, PORTS as usize);

    let beyond = u64::from(BEYOND);
    let most = if workers > 1 { u64::MAX } else { 0 };
    let report = bed.expect_counters(&[
        ("drops.ports_exhausted", beyond..=beyond),
        ("endpoints.drops", beyond..=beyond),
        ("endpoints.port_allocation_errors", beyond..=beyond),
        ("targets.port_allocation_errors", beyond..=beyond),
        // Workers whose own ports are used up borrow of the others.
        ("frames.handed_out", 0..=most),
        ("frames.handed_in", 0..=most),
        ("frames.flows_lent", 0..=most),
    ]);
    assert_eq!(report.total.frames.flows, u64::from(PORTS));
    assert_eq!(report.total.frames.flows_lent > 0, workers > 1);
}

/// One datagram from each of the sources.
fn send(bed: &Bed, sources: &[SocketAddrV4]) {
    run(bed.client(0), || {
        for source in sources {
            UdpSocket::bind(source).unwrap().send_to(b"x", network::echo()).unwrap();
        }
    });
}

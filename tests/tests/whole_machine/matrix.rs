//! Requests and bulk transfers from both consumers, by workers and offloads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::thread;

use postern_dataplane::inspection::CountersReport;
use postern_lab::network::{self, SNAT};
use postern_lab::{Client, Offloads, Reply, Topology, Way};

use crate::bed::{Bed, run};
use crate::counters::Expected;

/// Requests of each consumer over each protocol.
const REQUESTS: u16 = 64;
/// First source port of the requests: the same for both consumers.
const FROM: u16 = 30_000;
/// Bytes of each bulk transfer.
const BULK: u64 = 24 << 20;

#[test]
fn one_worker_with_offloads() {
    forwards_everything(1, Offloads::On);
}

#[test]
fn one_worker_without_offloads() {
    forwards_everything(1, Offloads::Off);
}

#[test]
fn two_workers_with_offloads() {
    forwards_everything(2, Offloads::On);
}

#[test]
fn two_workers_without_offloads() {
    forwards_everything(2, Offloads::Off);
}

#[test]
fn three_workers_with_offloads() {
    forwards_everything(3, Offloads::On);
}

#[test]
fn four_workers_with_offloads() {
    forwards_everything(4, Offloads::On);
}

#[test]
fn four_workers_without_offloads() {
    forwards_everything(4, Offloads::Off);
}

#[test]
fn eight_workers_with_offloads() {
    forwards_everything(8, Offloads::On);
}

#[test]
fn eight_workers_without_offloads() {
    forwards_everything(8, Offloads::Off);
}

fn forwards_everything(workers: usize, offloads: Offloads) {
    let builder = Topology::builder().workers(workers).offloads(offloads).flows(16_384);
    let Some(bed) = Bed::start(builder) else { return };
    use_everything(&bed, workers, &[]);
}

/// Both consumers, which have the same addresses, ask from the same ports at the same time, and move bytes both ways.
pub(crate) fn use_everything(bed: &Bed, workers: usize, expected: &[Expected<'_>]) -> CountersReport {
    let tcp = both(bed, |client, port| client.ask_tcp(network::page(), port).unwrap());
    let udp = both(bed, |client, port| {
        client.ask_udp(network::echo(), port, u64::from(port), usize::from(port % 1400)).unwrap()
    });
    for (protocol, replies) in [("TCP", &tcp), ("UDP", &udp)] {
        for (consumer, replies) in replies.iter().enumerate() {
            let targets: BTreeSet<_> = replies.iter().map(|reply| &reply.answer.target).collect();
            assert_eq!(targets.len(), 3, "consumer {consumer} reached only {targets:?} over {protocol}");
        }
        no_port_is_shared(replies.iter().flatten());
    }
    thread::scope(|scope| {
        for consumer in 0..2 {
            scope.spawn(move || {
                bed.ask(consumer, |client| {
                    for (seed, way) in [(1, Way::Upload), (2, Way::Download)] {
                        let transfer = client.bulk(network::bulk(), way, seed << 8 | consumer as u64, BULK).unwrap();
                        assert_eq!(transfer.bytes, BULK);
                    }
                });
            });
        }
    });

    // Steering puts every frame before its owner: nothing is handed over, and every worker has its share.
    let report = bed.expect_counters(expected);
    assert_eq!(report.total.frames.flows_new, 2 * (2 * u64::from(REQUESTS) + 2));
    assert_eq!(report.workers.len(), workers);
    for (at, worker) in report.workers.iter().enumerate() {
        assert!(worker.frames.flows_new > 0, "worker {at} got no flow");
        assert!(worker.frames.forwarded > worker.frames.flows_new, "worker {at} forwarded no replies");
    }
    for endpoint in &report.endpoints {
        assert_eq!(endpoint.traffic.flows_new, 2 * u64::from(REQUESTS) + 2, "{}", endpoint.id);
        assert!(endpoint.traffic.bytes_forward > BULK && endpoint.traffic.bytes_reverse > BULK, "{}", endpoint.id);
    }
    report
}

/// All requests of both consumers at once.
fn both(bed: &Bed, ask: impl Fn(Client, u16) -> Reply + Sync) -> [Vec<Reply>; 2] {
    thread::scope(|scope| {
        let ask = &ask;
        let asking = [0, 1].map(|consumer| {
            scope.spawn(move || {
                bed.ask(consumer, |client| (FROM..FROM + REQUESTS).map(|port| ask(client, port)).collect())
            })
        });
        asking.map(|asking| asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Targets see SNAT addresses only, and no two flows to one target with the same port.
fn no_port_is_shared<'r>(replies: impl Iterator<Item = &'r Reply>) {
    let mut seen: BTreeMap<(&str, SocketAddr), SocketAddr> = BTreeMap::new();
    for reply in replies {
        let SocketAddr::V4(source) = reply.answer.seen else { panic!("{} is not IPv4", reply.answer.seen) };
        assert!(SNAT.contains(source.ip()) && source.port() >= 1024, "a target saw {source}");
        let before = seen.insert((&reply.answer.target, reply.answer.seen), reply.local);
        assert_eq!(before, None, "{} and {} share {source}", before.unwrap(), reply.local);
    }
}

#[test]
fn each_consumer_is_answered_by_its_own_provider_behind_the_same_address() {
    // The first consumer's service has the first target, the second's the other two.
    let start = Bed::start_with(Topology::builder().workers(2), |declaration| {
        let mut others = declaration.target_groups.clone();
        for group in &mut declaration.target_groups {
            group.targets.truncate(1);
        }
        for group in &mut others {
            group.targets.remove(0);
            group.name.push_str("-b");
        }
        declaration.target_groups.extend(others);
        let mut balancer = declaration.load_balancers[0].clone();
        "balancer-b".clone_into(&mut balancer.name);
        for listener in &mut balancer.listeners {
            listener.target_groups.iter_mut().for_each(|group| group.name.push_str("-b"));
        }
        declaration.load_balancers.push(balancer);
        let mut service = declaration.services[0].clone();
        "vpce-svc-00000000000000002".clone_into(&mut service.id);
        service.load_balancers = vec!["balancer-b".to_owned()];
        declaration.endpoints[1].service.clone_from(&service.id);
        declaration.services.push(service);
    });
    let Some(bed) = start else { return };
    for ask in
        [(|client, port| client.ask_tcp(network::page(), port).unwrap()) as fn(Client, u16) -> Reply, |client, port| {
            client.ask_udp(network::echo(), port, 1, 100).unwrap()
        }]
    {
        let [first, second] = both(&bed, ask).map(|replies| {
            replies
                .into_iter()
                .map(|reply| reply.answer.target)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        });
        assert_eq!((first, second), (vec!["target-1".to_owned()], vec!["target-2".to_owned(), "target-3".to_owned()]));
    }
    bed.expect_counters(&[]);
}

#[test]
fn datagrams_with_unfinished_checksums_are_answered_and_a_burst_of_segments_passes_whole() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    send_a_burst_of_segments(&bed);
}

/// A burst of datagrams that the client's kernel sends as one super-frame.
pub(crate) fn send_a_burst_of_segments(bed: &Bed) {
    use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
    const SEGMENT: usize = 1200;
    const SEGMENTS: usize = 40;
    let answers = run(bed.client(0), || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        socket.connect(SocketAddrV4::new(network::ENDPOINT, network::echo().port())).unwrap();
        // The neighbours are found by an ordinary datagram.
        socket.send(b"first").unwrap();
        let mut answer = [0; 2048];
        socket.recv(&mut answer).unwrap();
        setsockopt(&socket, UdpGsoSegment, &(SEGMENT as i32)).unwrap();
        let burst: Vec<u8> = (0..SEGMENTS).flat_map(|number| [number as u8; SEGMENT]).collect();
        assert_eq!(socket.send(&burst).unwrap(), SEGMENT * SEGMENTS);
        let mut numbers: Vec<u8> = (0..SEGMENTS)
            .map(|_| {
                let length = socket.recv(&mut answer).unwrap();
                let echoed = &answer[length - SEGMENT..length];
                assert!(echoed.iter().all(|byte| *byte == echoed[0]), "segments are mixed");
                echoed[0]
            })
            .collect();
        numbers.sort_unstable();
        numbers
    });
    assert_eq!(answers, (0..SEGMENTS as u8).collect::<Vec<_>>());
    let report = bed.expect_counters(&[]);
    let endpoint = report.endpoints[0].traffic;
    // Each segment counts with its own headers.
    assert_eq!(endpoint.packets_forward, 1 + SEGMENTS as u64);
    assert_eq!(endpoint.bytes_forward, 28 + 5 + (SEGMENTS * (SEGMENT + 28)) as u64);
    assert!(report.total.frames.received < 2 * SEGMENTS as u64, "the burst crossed as one frame");
}

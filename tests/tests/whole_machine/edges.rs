//! What lies at the edge of forwarding: ports of every kind, packets that belong to nothing, a gateway that forgets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use postern_lab::network::{self, ENDPOINT, SNAT};
use postern_lab::{Client, Topology, Way};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bed::{Bed, eventually, run};
use crate::counters::{ANY, SOME};

#[test]
fn clients_may_use_any_port() {
    let Some(bed) = Bed::start(Topology::builder().workers(3)) else { return };
    for consumer in 0..2 {
        bed.ask(consumer, |client| {
            for port in [1, 53, 1023, 1024, 32_767, 65_535] {
                assert_eq!(client.ask_tcp(network::page(), port).unwrap().local.port(), port);
                assert_eq!(client.ask_udp(network::echo(), port, 9, 30).unwrap().local.port(), port);
            }
        });
    }
    bed.expect_counters(&[]);
}

#[test]
fn what_nobody_listens_for_is_dropped_and_counted_and_makes_no_flow() {
    let Some(bed) = Bed::start(Topology::builder()) else { return };
    bed.ask(0, |_| {
        let client = Client { deadline: Duration::from_millis(300) };
        let error = client.ask_tcp(SocketAddrV4::new(ENDPOINT, 81), 0).unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
        // The page's port is of TCP only, the echo's of UDP only.
        let error = client.ask_udp(SocketAddrV4::new(ENDPOINT, 80), 0, 1, 10).unwrap_err();
        assert!(error.to_string().contains("nothing came"), "{error}");
        let error = client.ask_tcp(SocketAddrV4::new(ENDPOINT, 7), 0).unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
    });
    let report = bed.expect_counters(&[("drops.no_listener", 3..=3), ("endpoints.drops", 3..=3)]);
    assert_eq!((report.total.frames.flows_new, report.total.frames.forwarded), (0, 0));
}

#[test]
fn a_provider_can_open_nothing_and_leaves_no_trace() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let target = bed.targets()[0].node();
    run(target, || {
        let client = Client { deadline: Duration::from_millis(200) };
        for snat in SNAT {
            for port in [1023, 1024, 40_000] {
                client.connect(SocketAddrV4::new(snat, port), 0).unwrap_err();
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"let me in", (snat, port)).unwrap();
            }
        }
    });
    // TCP to a port below 1024 could be the answer to a probe, and is not.
    let report = bed.expect_counters(&[
        ("drops.unsolicited", 10..=10),
        ("probes.stray", 2..=2),
        ("frames.handed_out", ANY),
        ("frames.handed_in", ANY),
    ]);
    assert_eq!((report.total.frames.flows_new, report.total.frames.forwarded), (0, 0));
}

#[test]
fn only_the_target_that_was_asked_can_answer() {
    let Some(bed) = Bed::start(Topology::builder()) else { return };
    let socket = run(bed.client(0), || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // Not connected: this client would take an answer of anyone.
        socket.send_to(b"who?", network::echo()).unwrap();
        socket
    });
    let mut answer = [0; 2048];
    let (length, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(from, SocketAddr::V4(network::echo()));
    let line = answer[..length].split(|byte| *byte == b'\n').next().unwrap();
    let answer: postern_lab::Answer = serde_json::from_slice(line).unwrap();
    for target in bed.targets() {
        run(target.node(), || {
            // From another port, also of the right target; and from the right port of the other targets.
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"me!", answer.seen).unwrap();
            if target.node().name() != answer.target {
                send_from_echo_port(target.node().address(), answer.seen);
            }
        });
    }
    assert_eq!(socket.recv(&mut [0; 2048]).unwrap_err().kind(), ErrorKind::WouldBlock);
    bed.expect_counters(&[("drops.unsolicited", 0..=5), ("drops.wrong_target", 0..=5)]);
    let drops = bed.counters().total.drops;
    assert_eq!(drops["unsolicited"] + drops["wrong_target"], 5);
}

/// A UDP datagram from port 7, written by hand, because the echo server holds the port.
fn send_from_echo_port(from: std::net::Ipv4Addr, to: SocketAddr) {
    use postern_wire::checksum::checksum;
    let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    let mut datagram = vec![0, 7];
    datagram.extend(to.port().to_be_bytes());
    datagram.extend([0, 11, 0, 0]);
    datagram.extend(b"me!");
    let pseudo = [&from.octets()[..], &to.ip().octets(), &[0, 17, 0, 11], &datagram].concat();
    let sum = checksum(&pseudo, 0);
    datagram[6..8].copy_from_slice(&sum.to_le_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
    assert_eq!(socket.send_to(&datagram, &SocketAddrV4::new(*to.ip(), 0).into()).unwrap(), datagram.len());
}

#[test]
fn a_client_that_resets_is_heard_by_the_target_and_its_port_comes_free() {
    let Some(bed) = Bed::start(Topology::builder()) else { return };
    bed.ask(0, |client| client.reset(network::page(), 0).unwrap());
    // Two seconds after a RST the flow ends.
    eventually("the flow ends", Duration::from_secs(6), || bed.counters().total.frames.flows == 0);
    let report = bed.expect_counters(&[("endpoints.client_resets", 1..=1)]);
    assert_eq!((report.total.frames.flows_new, report.total.frames.flows_ended), (1, 1));
}

/// The error that ends a connection, which must come soon.
fn end_of(mut stream: TcpStream) -> ErrorKind {
    let start = Instant::now();
    let mut piece = [0; 65_536];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return ErrorKind::UnexpectedEof,
            Ok(_) => {}
            Err(error) => {
                assert!(start.elapsed() < Duration::from_secs(2), "{error} only after {:?}", start.elapsed());
                return error.kind();
            }
        }
    }
}

#[test]
fn after_a_crash_every_connection_is_reset_at_once_and_new_ones_work() {
    let Some(mut bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let connect = |bed: &Bed, count: usize| {
        bed.ask(0, |client| {
            (0..count)
                .map(|_| {
                    let mut stream = client.connect(network::page(), 0).unwrap();
                    stream.write_all(b"GET / HT").unwrap();
                    stream
                })
                .collect::<Vec<_>>()
        })
    };
    let streams = connect(&bed, 20);
    // An upload, in which the client speaks first after the restart, and a download, in which the target does.
    let resets = |bed: &Bed| {
        let of =
            |target: &postern_lab::Target| target.node().namespace().statistics().unwrap().counter("Tcp.EstabResets");
        bed.targets().iter().map(of).sum::<i64>()
    };
    let transfer = |way| {
        let node = bed.client(1).clone();
        std::thread::spawn(move || run(&node, || Client::default().bulk(network::bulk(), way, 1, 1 << 40)))
    };
    let (upload, download) = (transfer(Way::Upload), transfer(Way::Download));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(resets(&bed), 0);
    bed.gateway_mut().restart().unwrap();
    for mut stream in streams {
        stream.write_all(b"TP/1.0\r\n").unwrap();
        assert_eq!(end_of(stream), ErrorKind::ConnectionReset);
    }
    let restarted = Instant::now();
    let error = upload.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("reset"), "{error}");
    assert!(restarted.elapsed() < Duration::from_secs(3), "the upload ended {:?} late", restarted.elapsed());
    eventually("the downloads' target is told", Duration::from_secs(3), || resets(&bed) > 0);
    // Its client only listens, and the gateway does not know of it any more: it gives up by itself.
    download.join().unwrap().unwrap_err();
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    bed.expect_counters(&[
        ("drops.no_flow", SOME),
        ("drops.unsolicited", SOME),
        ("endpoints.drops", SOME),
        ("endpoints.own_resets", 20..=200),
        ("frames.made", 20..=400),
        ("frames.handed_out", ANY),
        ("frames.handed_in", ANY),
    ]);
}

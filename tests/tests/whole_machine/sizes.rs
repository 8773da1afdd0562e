//! Sizes and lifetimes of packets, and the ICMP messages that tell of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{IpMtu, Ipv4RecvErr, TcpMaxSeg, UdpGsoSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, getsockopt, recvmsg, setsockopt};
use postern_lab::network::{self, ENDPOINT};
use postern_lab::{Client, Offloads, Topology, Way};
use postern_tables::declaration::{Listener, Protocol, Target, WeightedGroup};
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};

use crate::bed::{Bed, run};
use crate::counters::ANY;

/// Bytes of a transfer.
const BULK: u64 = 8 << 20;

#[test]
fn large_transfers_cross_from_jumbo_frames_to_ordinary_ones_and_back() {
    for (consumers, provider, offloads) in [
        (9000, 1500, Offloads::On),
        (1500, 9000, Offloads::On),
        (9000, 1500, Offloads::Off),
        (9000, 9000, Offloads::Off),
    ] {
        let Some(bed) = Bed::start(Topology::builder().mtus(consumers, provider).offloads(offloads)) else { return };
        transfer_as_large_as_fits(&bed, consumers.min(provider));
    }
}

/// Transfers both ways in segments that fit the smaller of both MTUs.
pub(crate) fn transfer_as_large_as_fits(bed: &Bed, mtu: u32) {
    bed.ask(0, |client| {
        let stream = client.connect(network::page(), 0).unwrap();
        let segment = getsockopt(&stream, TcpMaxSeg).unwrap();
        // The endpoint's own bound is 8,500 bytes.
        let most = mtu.min(8500) - 40;
        assert!((most - 12..=most).contains(&segment), "segments of {segment} bytes where {mtu} fit");
        drop(stream);
        for (seed, way) in [(1, Way::Upload), (2, Way::Download)] {
            client.bulk(network::bulk(), way, seed, BULK).unwrap();
        }
    });
    // A connection that is closed without a word may end with a RST.
    bed.expect_counters(&[("endpoints.client_resets", ANY)]);
}

/// What an error queue says of an ICMP error.
#[derive(Debug, PartialEq, Eq)]
struct IcmpError {
    errno: Errno,
    kind: u8,
    code: u8,
    /// With type 3 code 4, the MTU.
    info: u32,
    offender: Ipv4Addr,
}

/// A socket connected to an endpoint's port whose ICMP errors can be read in full.
fn watched_socket(to: SocketAddrV4) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    setsockopt(&socket, Ipv4RecvErr, &true).unwrap();
    socket
}

/// The next ICMP error that comes for a socket.
fn next_error(socket: &UdpSocket) -> IcmpError {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let mut room = nix::cmsg_space!([u8; 64]);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        match recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut [], Some(&mut room), flags) {
            Ok(message) => {
                let errors = message.cmsgs().unwrap().filter_map(|message| match message {
                    ControlMessageOwned::Ipv4RecvErr(error, offender) => Some(IcmpError {
                        errno: Errno::from_raw(error.ee_errno as i32),
                        kind: error.ee_type,
                        code: error.ee_code,
                        info: error.ee_info,
                        offender: Ipv4Addr::from(u32::from_be(offender.unwrap().sin_addr.s_addr)),
                    }),
                    _ => None,
                });
                return errors.last().expect("an error queue has errors");
            }
            Err(Errno::EAGAIN) => assert!(Instant::now() < deadline, "no ICMP error came"),
            Err(error) => panic!("{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_datagram_that_may_not_be_fragmented_and_is_too_large_comes_back_as_icmp_with_the_mtu() {
    let Some(bed) = Bed::start(Topology::builder().mtus(9000, 1500)) else { return };
    run(bed.client(0), || {
        let socket = watched_socket(network::echo());
        socket.send(&[7; 3000]).unwrap();
        let expected = IcmpError { errno: Errno::EMSGSIZE, kind: 3, code: 4, info: 1500, offender: ENDPOINT };
        assert_eq!(next_error(&socket), expected);
        assert_eq!(getsockopt(&socket, IpMtu).unwrap(), 1500);

        // So does a super-frame whose segments are too large, and one whose segments fit passes.
        let socket = watched_socket(network::echo());
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        setsockopt(&socket, UdpGsoSegment, &1400).unwrap();
        socket.send(&[8; 1400 * 3]).unwrap();
        for _ in 0..3 {
            socket.recv(&mut [0; 2048]).unwrap();
        }
    });
    run(bed.client(1), || {
        let socket = watched_socket(network::echo());
        setsockopt(&socket, UdpGsoSegment, &2000).unwrap();
        socket.send(&[9; 2000 * 4]).unwrap();
        let error = next_error(&socket);
        assert_eq!((error.errno, error.info, error.offender), (Errno::EMSGSIZE, 1500, ENDPOINT));
    });
    bed.expect_counters(&[("drops.too_big", 2..=2), ("endpoints.drops", 2..=2), ("frames.made", 2..=2)]);
}

#[test]
fn a_packet_whose_time_to_live_runs_out_comes_back_as_icmp_from_the_endpoint() {
    let Some(bed) = Bed::start(Topology::builder()) else { return };
    run(bed.client(0), || {
        let expired = || IcmpError { errno: Errno::EHOSTUNREACH, kind: 11, code: 0, info: 0, offender: ENDPOINT };
        // The first packet of a flow, then one of a flow that is there.
        let socket = watched_socket(network::echo());
        socket.set_ttl(1).unwrap();
        socket.send(b"one").unwrap();
        assert_eq!(next_error(&socket), expired());
        socket.set_ttl(2).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send(b"two").unwrap();
        socket.recv(&mut [0; 2048]).unwrap();
        socket.set_ttl(1).unwrap();
        socket.send(b"three").unwrap();
        assert_eq!(next_error(&socket), expired());
    });
    let report =
        bed.expect_counters(&[("drops.ttl_expired", 2..=2), ("endpoints.drops", 2..=2), ("frames.made", 2..=2)]);
    assert_eq!(report.total.frames.flows_new, 1, "a packet that goes nowhere makes no flow");
}

/// Sends an ICMP echo with `length` bytes behind the header; the echoed bytes, if an answer comes within a second.
pub(crate) fn ping(to: Ipv4Addr, sequence: u8, length: usize) -> Option<Vec<u8>> {
    let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(IpProtocol::ICMPV4)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.connect(&SocketAddrV4::new(to, 0).into()).unwrap();
    let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, sequence];
    message.extend((0..length).map(|at| at as u8 ^ sequence));
    let checksum = postern_wire::checksum::checksum(&message, 0);
    message[2..4].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(socket.write(&message).unwrap(), message.len());
    let mut answer = vec![0; 20 + 8 + 65_536];
    loop {
        let length = match socket.read(&mut answer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
            Err(error) => panic!("{error}"),
        };
        let packet = &answer[20..length];
        if packet[0] == 0 && packet[4..8] == message[4..8] {
            assert_eq!(postern_wire::checksum::checksum(packet, 0), 0, "the answer's checksum is wrong");
            assert_eq!(packet[8..], message[8..], "the answer's bytes are others");
            return Some(packet[8..].to_vec());
        }
    }
}

#[test]
fn an_endpoint_answers_pings_of_every_size_and_stops_when_told() {
    let Some(bed) = Bed::start_with(Topology::builder().workers(2), |declaration| {
        declaration.endpoints[1].echo = Some(false);
    }) else {
        return;
    };
    let answered = run(bed.client(0), || {
        let sizes = [0, 1, 56, 57, 1000, 1472];
        sizes.iter().zip(1..).filter(|(size, sequence)| ping(ENDPOINT, *sequence, **size).is_some()).count()
    });
    assert_eq!(answered, 6);
    assert_eq!(run(bed.client(1), || ping(ENDPOINT, 1, 56)), None);
    bed.expect_counters(&[("frames.answered", 6..=6), ("drops.echo_disabled", 1..=1), ("endpoints.drops", 1..=1)]);
}

#[test]
fn a_target_that_refuses_is_heard_by_the_client() {
    const CLOSED: u16 = 5353;
    let Some(bed) = Bed::start_with(Topology::builder().workers(2), |declaration| {
        let mut group = declaration.target_groups[0].clone();
        "closed".clone_into(&mut group.name);
        group.targets.iter_mut().for_each(|target: &mut Target| target.port = i64::from(CLOSED));
        declaration.target_groups.push(group);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            declaration.load_balancers[0].listeners.push(Listener {
                protocol,
                port: i64::from(CLOSED),
                target_groups: vec![WeightedGroup { name: "closed".into(), weight: None }],
                ..Listener::default()
            });
        }
    }) else {
        return;
    };
    let to = SocketAddrV4::new(ENDPOINT, CLOSED);
    run(bed.client(0), || {
        // UDP: ICMP port unreachable, translated, with the endpoint's address and what the client had sent.
        for _ in 0..8 {
            let socket = watched_socket(to);
            socket.send(b"nobody there").unwrap();
            let expected = IcmpError { errno: Errno::ECONNREFUSED, kind: 3, code: 3, info: 0, offender: ENDPOINT };
            assert_eq!(next_error(&socket), expected);
        }
        // TCP: a RST.
        let error = Client::default().connect(to, 0).unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    });
    // An error may arrive at a worker that does not own its flow: the worker hands it over.
    let report = bed.expect_counters(&[
        ("endpoints.target_resets", 1..=1),
        ("frames.handed_out", 0..=8),
        ("frames.handed_in", 0..=8),
    ]);
    assert_eq!(report.total.frames.flows_new, 9);
}

#[test]
fn a_smaller_mss_is_left_and_a_listener_may_ask_for_less() {
    let Some(bed) = Bed::start_with(Topology::builder(), |declaration| {
        declaration.load_balancers[0].listeners[0].mss = Some(1000);
    }) else {
        return;
    };
    let segment = |to: SocketAddrV4, offered: u32| {
        run(bed.client(0), || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(IpProtocol::TCP)).unwrap();
            setsockopt(&socket, TcpMaxSeg, &offered).unwrap();
            socket.connect_timeout(&to.into(), Duration::from_secs(2)).unwrap();
            getsockopt(&socket, TcpMaxSeg).unwrap()
        })
    };
    assert!((988..=1000).contains(&segment(network::page(), 1400)));
    assert!((588..=600).contains(&segment(network::page(), 600)));
    assert!((1388..=1400).contains(&segment(network::bulk(), 1400)));
    // A connection that is closed without a word may end with a RST.
    let report = bed.expect_counters(&[("endpoints.client_resets", ANY)]);
    assert_eq!(report.total.frames.flows_new, 3);
}

//! IPv6 with real stacks: clients of IPv6 targets, and of IPv4 targets (NAT64), with offloads on and off, by one worker and by
//! several; two consumers with the same addresses. The kernels of clients and targets do Neighbor Discovery with the gateway.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use postern_lab::network::{Network, TARGETS};
use postern_lab::{Node, Offloads, Topology};
use postern_tables::declaration::{Declaration, ProxyProtocol};

use crate::bed::{Bed, run};
use crate::counters::ANY;

const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, 2);
const ENDPOINT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, 0x100);
const SNAT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x100);
const TARGET6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x11);

/// Where the first target serves what these tests ask for.
const PORT: u16 = 7000;
/// Bytes of a bulk transfer, each way.
const BULK: usize = 24 << 20;
/// No step takes longer, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients and targets get IPv6 addresses that they may use at once.
fn number(network: &Network) {
    let numbered = network.clients.iter().map(|node| (node, CLIENT6));
    for (node, address) in numbered.chain([(&network.targets[0], TARGET6)]) {
        for (key, value) in [("accept_dad", "0"), ("router_solicitations", "0"), ("disable_ipv6", "0")] {
            for scope in ["all", "default", "eth0"] {
                node.namespace().set_sysctl(&format!("net.ipv6.conf.{scope}.{key}"), value).unwrap();
            }
        }
        node.interface().add_address(IpAddr::V6(address), 64).unwrap();
    }
}

/// The listeners of bulk transfers and of the echo lead to [`PORT`] of the first target, at `target`.
fn dual(target: IpAddr) -> impl FnOnce(&mut Declaration) + 'static {
    move |declaration| {
        for attachment in &mut declaration.attachments {
            let prefix = if attachment.vpc == "vpc-p" { "fd00:9::/64" } else { "fd00:a::/64" };
            attachment.prefixes.push(prefix.to_owned());
        }
        declaration.snat_pools.iter_mut().for_each(|pool| pool.addresses.push(SNAT6.to_string()));
        declaration.endpoints.iter_mut().for_each(|endpoint| endpoint.addresses.push(ENDPOINT6.to_string()));
        for group in declaration.target_groups.iter_mut().filter(|group| group.name != "page") {
            group.targets.truncate(1);
            (group.targets[0].address, group.targets[0].port) = (target.to_string(), PORT.into());
        }
    }
}

fn start(workers: usize, offloads: Offloads, target: IpAddr) -> Option<Bed> {
    Bed::start_with(Topology::builder().workers(workers).offloads(offloads).prepare(number), dual(target))
}

fn server(bed: &Bed) -> &Node {
    bed.targets()[0].node()
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((ENDPOINT6, port))
}

/// What `number` of transfers is made of.
fn pattern(number: u8) -> Vec<u8> {
    (0..BULK).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ number).collect()
}

fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// Takes so many connections, skips a header of `header` bytes, and answers what it read with the complement of each byte.
/// Returns the peers' addresses and headers.
fn serve(
    bed: &Bed,
    target: IpAddr,
    connections: usize,
    header: usize,
) -> thread::JoinHandle<Vec<(SocketAddr, Vec<u8>)>> {
    let listener = run(server(bed), || TcpListener::bind((target, PORT)).unwrap());
    thread::spawn(move || {
        let accept = |_| {
            let (mut stream, peer) = listener.accept().unwrap();
            patient(&stream);
            let mut head = vec![0; header];
            stream.read_exact(&mut head).unwrap();
            let mut data = Vec::with_capacity(BULK);
            stream.read_to_end(&mut data).unwrap();
            data.iter_mut().for_each(|byte| *byte = !*byte);
            stream.write_all(&data).unwrap();
            (peer, head)
        };
        (0..connections).map(accept).collect()
    })
}

/// Moves a bulk transfer there and back, and checks every byte.
fn transfer(bed: &Bed, client: usize, number: u8) {
    bed.ask(client, |_| {
        let mut stream = TcpStream::connect_timeout(&at(postern_lab::network::bulk().port()), PATIENCE).unwrap();
        patient(&stream);
        let mut sent = pattern(number);
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::with_capacity(BULK);
        stream.read_to_end(&mut back).unwrap();
        sent.iter_mut().for_each(|byte| *byte = !*byte);
        assert!(back == sent, "{} bytes came back, some of them not as they were sent", back.len());
    });
}

/// Sends datagrams of these sizes and expects each back.
fn datagrams(bed: &Bed, client: usize, target: IpAddr, sizes: &[usize]) {
    let socket = run(server(bed), || UdpSocket::bind((target, PORT)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let count = sizes.len();
    let echo = thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        for _ in 0..count {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..length], peer).unwrap();
        }
    });
    bed.ask(client, |_| {
        let socket = UdpSocket::bind((CLIENT6, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(at(postern_lab::network::echo().port())).unwrap();
        for &size in sizes {
            let sent: Vec<u8> = (0..size).map(|at| (at * 7) as u8).collect();
            socket.send(&sent).unwrap();
            let mut back = vec![0; 65_536];
            let length = socket.recv(&mut back).unwrap();
            assert!(back[..length] == sent[..], "{size} bytes were sent, {length} came back");
        }
    });
    echo.join().unwrap();
}

/// Checksums that came out wrong would have been counted by the stacks.
fn no_stack_saw_a_bad_checksum(bed: &Bed) {
    for node in [server(bed), bed.client(0), bed.client(1)] {
        let (snmp, snmp6) = run(node, || {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
            (read("snmp"), read("snmp6"))
        });
        let tcp: Vec<&str> = snmp.lines().filter(|line| line.starts_with("Tcp:")).collect();
        let place = tcp[0].split(' ').position(|name| name == "InCsumErrors").unwrap();
        assert_eq!(tcp[1].split(' ').nth(place), Some("0"), "{}: TCP", node.name());
        let udp = snmp6.lines().find_map(|line| line.strip_prefix("Udp6InCsumErrors")).map(str::trim);
        assert_eq!(udp, Some("0"), "{}: UDP over IPv6", node.name());
    }
}

fn crosses(target: IpAddr) {
    for (workers, offloads) in [(1, Offloads::On), (2, Offloads::On), (2, Offloads::Off)] {
        let Some(bed) = start(workers, offloads, target) else { return };
        let serving = serve(&bed, target, 4, 0);
        for number in 0..2 {
            transfer(&bed, 0, number);
            // The other consumer has the same addresses.
            transfer(&bed, 1, 100 + number);
        }
        let snat: Vec<IpAddr> = serving.join().unwrap().into_iter().map(|(peer, _)| peer.ip()).collect();
        assert!(snat.iter().all(|address| address.is_ipv6() == target.is_ipv6() && *address != IpAddr::V6(CLIENT6)));
        // Whole, and in fragments both ways.
        datagrams(&bed, 0, target, &[0, 1, 100, 1400, 1452, 3000, 8000, 30_000]);
        no_stack_saw_a_bad_checksum(&bed);
        let counters = bed.gateway().counters().unwrap();
        assert_eq!(counters["total"]["imbalance"], 0, "{counters}");
        bed.expect_counters(&[
            ("frames.handed_out", ANY),
            ("frames.handed_in", ANY),
            ("frames.made", ANY),
            ("frames.held", ANY),
            ("frames.half_open", ANY),
            // Multicast of the kernels' own IPv6.
            ("drops.not_local", ANY),
        ]);
    }
}

#[test]
fn ipv6_clients_reach_ipv6_targets_with_bulk_tcp_and_datagrams_whole_and_in_fragments() {
    crosses(IpAddr::V6(TARGET6));
}

#[test]
fn nat64_clients_reach_ipv4_targets_with_bulk_tcp_and_datagrams_whole_and_in_fragments() {
    crosses(IpAddr::V4(TARGETS[0]));
}

#[test]
fn an_ipv6_target_is_told_by_the_proxy_protocol_who_calls() {
    let target = IpAddr::V6(TARGET6);
    let edit = |declaration: &mut Declaration| {
        dual(IpAddr::V6(TARGET6))(declaration);
        let bulk = declaration.target_groups.iter_mut().find(|group| group.name == "bulk").unwrap();
        bulk.proxy_protocol = Some(ProxyProtocol::Aws);
    };
    let builder = Topology::builder().workers(2).prepare(number);
    let Some(bed) = Bed::start_with(builder, edit) else { return };
    let serving = serve(&bed, target, 2, 124);
    transfer(&bed, 0, 1);
    transfer(&bed, 1, 2);
    for (_, header) in serving.join().unwrap() {
        // Signature, version 2 and PROXY, TCP over IPv6, 108 bytes behind this.
        assert_eq!(header[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x6c");
        assert_eq!(header[16..32], CLIENT6.octets());
        assert_eq!(header[32..48], ENDPOINT6.octets());
        assert_eq!(u16::from_be_bytes([header[50], header[51]]), postern_lab::network::bulk().port());
    }
    no_stack_saw_a_bad_checksum(&bed);
}

//! The clients and servers of the lab agree over a plain veth pair, and notice when something is wrong.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use postern_lab::server::{BULK_PORT, ECHO_PORT, PAGE_PORT};
use postern_lab::{Client, Namespace, RequestError, Servers, VethEnd, Way};

const CONSUMER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn lab() -> Option<(Namespace, Namespace)> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return None;
    }
    let (consumer, target) = (Namespace::anonymous("consumer").unwrap(), Namespace::anonymous("target").unwrap());
    let (near, far) = VethEnd::new(&consumer, "eth0").pair(&VethEnd::new(&target, "eth0")).unwrap();
    near.add_address(IpAddr::V4(CONSUMER), 24).unwrap();
    far.add_address(IpAddr::V4(TARGET), 24).unwrap();
    Some((consumer, target))
}

const fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(TARGET, port)
}

#[test]
fn tcp_and_udp_answers_name_the_target_and_the_source_that_it_saw() {
    let Some((consumer, target)) = lab() else { return };
    let _servers = Servers::start(&target, "target-1").unwrap();
    let client = Client::default();
    let tcp = consumer.run(|| client.ask_tcp(at(PAGE_PORT), 40_001)).unwrap().unwrap();
    assert_eq!(tcp.answer.target, "target-1");
    assert_eq!(tcp.answer.seen, SocketAddr::from((CONSUMER, 40_001)));
    assert_eq!(tcp.local, tcp.answer.seen);
    for length in [0, 1, 18, 1400, 9000] {
        let udp = consumer.run(|| client.ask_udp(at(ECHO_PORT), 40_002, 5, length)).unwrap().unwrap();
        assert_eq!(udp.answer.seen, SocketAddr::from((CONSUMER, 40_002)));
    }
}

#[test]
fn a_bulk_transfer_is_checked_both_ways() {
    let Some((consumer, target)) = lab() else { return };
    let _servers = Servers::start(&target, "target-1").unwrap();
    let client = Client::default();
    for way in [Way::Upload, Way::Download] {
        let length = 10_000_019;
        let transfer = consumer.run(|| client.bulk(at(BULK_PORT), way, 3, length)).unwrap().unwrap();
        assert_eq!(transfer.bytes, length);
        assert!(transfer.gigabits_per_second() > 0.0);
    }
    assert_eq!(target.statistics().unwrap().checksum_errors(), 0);
}

#[test]
fn nobody_there_is_an_error_within_the_deadline() {
    let Some((consumer, _target)) = lab() else { return };
    let client = Client { deadline: Duration::from_millis(100) };
    let refused = consumer.run(|| client.ask_tcp(at(PAGE_PORT), 0)).unwrap().unwrap_err();
    assert!(matches!(refused, RequestError::Connect { .. }), "{refused}");
    let silent = consumer.run(|| client.ask_udp(at(ECHO_PORT), 0, 1, 10)).unwrap().unwrap_err();
    assert!(matches!(silent, RequestError::Broken { .. }), "{silent}");
}

#[test]
fn ports_are_free_again_when_the_servers_are_dropped() {
    let Some((consumer, target)) = lab() else { return };
    let client = Client::default();
    for name in ["first", "second"] {
        let servers = Servers::start(&target, name).unwrap();
        let udp = consumer.run(|| client.ask_udp(at(ECHO_PORT), 0, 1, 10)).unwrap().unwrap();
        assert_eq!(udp.answer.target, name);
        drop(servers);
    }
    assert!(consumer.run(|| client.ask_tcp(at(PAGE_PORT), 0)).unwrap().is_err());
}

//! New tables under traffic.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use postern_lab::network;
use postern_lab::server::PAGE_PORT;
use postern_lab::{Client, Topology, Way};
use postern_tables::declaration::{Declaration, Endpoint};

use crate::bed::Bed;
use crate::counters::ANY;
use crate::traffic::{PingPong, Transfers};

/// Address of the endpoint that comes and goes.
const VISITOR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 101);
/// How long a reload may take.
const RELOAD: Duration = Duration::from_secs(5);

fn visitor(declaration: &mut Declaration, addresses: impl Iterator<Item = Ipv4Addr>) {
    let endpoint = Endpoint {
        id: "vpce-0000000000000000c".into(),
        addresses: addresses.map(|address| address.to_string()).collect(),
        ..declaration.endpoints[0].clone()
    };
    declaration.endpoints.push(endpoint);
}

impl Bed {
    /// Reloads and waits until every worker forwards by the new tables.
    fn reload(&mut self, configuration: &str) {
        let from = self.gateway().log().len();
        self.gateway_mut().reload(configuration).unwrap();
        assert!(self.gateway().wait_for_log(from, "every worker forwards by the new tables", RELOAD), "not reloaded");
    }

    /// Reloads and waits until that is refused; returns what the log says of it.
    fn reload_refused(&mut self, configuration: &str) -> String {
        let from = self.gateway().log().len();
        self.gateway_mut().reload(configuration).unwrap();
        assert!(self.gateway().wait_for_log(from, "reload refused", RELOAD), "not refused");
        // The reasons follow line by line.
        std::thread::sleep(Duration::from_millis(50));
        self.gateway().log()[from..].to_owned()
    }
}

#[test]
fn fifty_reloads_under_traffic_lose_nothing() {
    let Some(mut bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let with = bed.configuration(|declaration| visitor(declaration, std::iter::once(VISITOR)));
    let without = bed.configuration(|_| {});
    let transfers = Transfers::start(bed.client(0), Way::Upload);
    let ping_pong = PingPong::start(bed.client(1));
    let mut visits = 0;
    for _ in 0..25 {
        bed.reload(&with);
        visits += u64::from(bed.ask(0, |client| client.ask_tcp(SocketAddrV4::new(VISITOR, PAGE_PORT), 0)).is_ok());
        bed.reload(&without);
    }
    assert_eq!(ping_pong.stop(), Vec::<u64>::new());
    assert!(!transfers.stop().is_empty());
    assert_eq!(visits, 25, "an endpoint that was added did not answer");
    // What was left of the visitor's connections when it went.
    let report = bed.expect_counters(&[
        ("drops.access_withdrawn", 0..=100),
        ("drops.not_local", 0..=100),
        ("drops.unsolicited", 0..=100),
        ("frames.made", 0..=100),
    ]);
    assert_eq!(report.generation, 51);
}

#[test]
fn ten_thousand_mappings_come_and_go_under_traffic() {
    const MANY: u32 = 10_000;
    let start = Bed::start_with(Topology::builder().workers(2), |declaration| {
        declaration.limits.endpoints = Some(16_384);
    });
    let Some(mut bed) = start else { return };
    let many = (0..MANY).map(|number| Ipv4Addr::from(0x0a01_0000 + number));
    let with = bed.configuration(|declaration| visitor(declaration, many));
    let without = bed.configuration(|_| {});
    let transfers = Transfers::start(bed.client(0), Way::Download);
    let ping_pong = PingPong::start(bed.client(1));
    for _ in 0..2 {
        bed.reload(&with);
        assert_eq!(bed.counters().endpoints.len(), 2 + MANY as usize);
        bed.reload(&without);
        assert_eq!(bed.counters().endpoints.len(), 2);
    }
    assert_eq!(ping_pong.stop(), Vec::<u64>::new());
    assert!(!transfers.stop().is_empty());
    bed.expect_counters(&[]);
}

#[test]
fn a_bad_file_is_refused_whole_with_its_reason_and_traffic_goes_on() {
    let Some(mut bed) = Bed::start(Topology::builder()) else { return };
    let transfers = Transfers::start(bed.client(0), Way::Upload);
    let ping_pong = PingPong::start(bed.client(1));
    let good = bed.configuration(|declaration| visitor(declaration, std::iter::once(VISITOR)));

    // A new endpoint that is right, and a target that is not.
    let bad = bed.configuration(|declaration| {
        visitor(declaration, std::iter::once(VISITOR));
        declaration.target_groups[0].targets[1].port = 70_000;
    });
    let log = bed.reload_refused(&bad);
    for word in ["gateway.toml", "port", "70000", "65535", "generation 1"] {
        assert!(log.contains(word), "the log does not say {word}: {log}");
    }
    let client = Client { deadline: Duration::from_millis(500) };
    let visit = |bed: &Bed| bed.ask(0, |_| client.ask_tcp(SocketAddrV4::new(VISITOR, PAGE_PORT), 0).is_ok());
    assert!(!visit(&bed), "a part of a refused file was applied");

    let log = bed.reload_refused("[gateway\nname = ");
    assert!(log.contains("gateway.toml"), "{log}");
    // What is fixed while the process runs.
    let log = bed.reload_refused(&bed.configuration(|declaration| declaration.workers.count = Some(2)));
    assert!(log.contains("workers"), "{log}");
    assert_eq!(bed.counters().generation, 1);
    ping_pong.wait_for_more(Duration::from_secs(1));

    bed.reload(&good);
    assert!(visit(&bed));
    assert_eq!(bed.counters().generation, 2);
    assert_eq!(ping_pong.stop(), Vec::<u64>::new());
    assert!(!transfers.stop().is_empty());
    // A SYN that had waited in the client for the endpoint's MAC address was answered after the client had given up.
    bed.expect_counters(&[("endpoints.client_resets", 0..=1)]);
}

#[test]
fn an_endpoint_that_is_taken_away_carries_no_byte_more_and_comes_back_anew() {
    use std::io::{ErrorKind, Read, Write};
    let Some(mut bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let mut stream = bed.ask(1, |client| client.connect(network::page(), 0).unwrap());
    let with = bed.configuration(|_| {});
    bed.reload(&bed.configuration(|declaration| drop(declaration.endpoints.remove(1))));
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let error = stream.read(&mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    assert_eq!(bed.counters().endpoints.len(), 1);

    bed.reload(&with);
    // Whether the old connection goes on or is reset: it does not hang.
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    match stream.read(&mut [0; 100]) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    bed.ask(1, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    bed.expect_counters(&[
        ("drops.access_withdrawn", 0..=10),
        ("drops.not_local", 0..=10),
        ("drops.no_flow", 0..=1),
        ("endpoints.drops", ANY),
        ("endpoints.own_resets", 0..=1),
        ("endpoints.client_resets", ANY),
        ("frames.made", 0..=1),
    ]);
}

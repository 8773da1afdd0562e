//! Targets that die and move, interfaces that go and come.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use postern_lab::network::{self, CLIENT};
use postern_lab::{Client, Interface, Topology, VethEnd, Way};
use postern_wire::MacAddress;

use crate::bed::{Bed, eventually};
use crate::counters::{ANY, SOME};
use crate::traffic::{PingPong, Transfers};

impl Bed {
    /// A target's interface.
    fn target_interface(&self, at: usize) -> &Interface {
        self.targets()[at].node().interface()
    }

    /// Asks the page so often, giving up quickly; returns who answered, and how often nobody did.
    fn ask_often(&self, count: usize) -> (BTreeSet<String>, usize) {
        let client = Client { deadline: Duration::from_millis(200) };
        let replies = self.ask(0, |_| (0..count).map(|_| client.ask_tcp(network::page(), 0)).collect::<Vec<_>>());
        let failed = replies.iter().filter(|reply| reply.is_err()).count();
        (replies.into_iter().flatten().map(|reply| reply.answer.target).collect(), failed)
    }
}

fn names(numbers: &[u8]) -> BTreeSet<String> {
    numbers.iter().map(|number| format!("target-{number}")).collect()
}

#[test]
fn a_target_that_was_never_there_fails_within_bounds_and_comes_into_use_when_it_appears() {
    let Some(bed) = Bed::start(Topology::builder()) else { return };
    bed.target_interface(0).down().unwrap();
    let (answered, failed) = bed.ask_often(24);
    assert_eq!(answered, names(&[2, 3]));
    assert!((1..24).contains(&failed), "{failed} of 24 failed");
    eventually("the neighbour is given up", Duration::from_secs(6), || {
        let counters = bed.counters();
        counters.neighbours.unreachable > 0 && counters.total.frames.held == 0
    });
    let unreachable = bed.counters().total.drops["neighbour_unreachable"];
    assert!(
        (failed as u64..=3 * failed as u64).contains(&unreachable),
        "{unreachable} frames for {failed} connections"
    );

    bed.target_interface(0).up().unwrap();
    eventually("the target comes into use", Duration::from_secs(6), || bed.ask_often(12) == (names(&[1, 2, 3]), 0));
    bed.expect_counters(&[
        ("drops.neighbour_unreachable", SOME),
        ("drops.hold_full", ANY),
        ("endpoints.drops", SOME),
        ("neighbours.unreachable", SOME),
        // SYNs that were held for the target came through after their client had given up.
        ("endpoints.client_resets", ANY),
    ]);
}

#[test]
fn a_target_that_dies_takes_only_its_own_connections_along_and_they_go_on_when_it_is_back() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    assert_eq!(bed.ask_often(24), (names(&[1, 2, 3]), 0));
    // A connection to the first target that is under way.
    let mut stream = bed.ask(0, |client| {
        (0..100)
            .map(|_| client.connect(network::page(), 0).unwrap())
            .find(|_| {
                let flows = bed.gateway().flows().unwrap();
                let newest = flows["flows"].as_array().unwrap_or_else(|| flows.as_array().unwrap());
                let mut open = newest.iter().filter(|flow| flow["state"] == "established");
                open.next_back().is_some_and(|flow| flow["target"].as_str().unwrap().starts_with("10.9.0.11:"))
            })
            .expect("the first target gets a share")
    });
    stream.write_all(b"GET / HTTP").unwrap();
    bed.target_interface(0).down().unwrap();
    let start = Instant::now();
    let (answered, failed) = bed.ask_often(24);
    assert_eq!(answered, names(&[2, 3]));
    assert!((1..24).contains(&failed), "{failed} of 24 failed");
    assert!(start.elapsed() < Duration::from_secs(7));
    stream.write_all(b"/1.0\r\n\r\n").unwrap();
    bed.target_interface(0).up().unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains("target-1"), "{page}");
    eventually("all targets answer", Duration::from_secs(6), || bed.ask_often(12) == (names(&[1, 2, 3]), 0));
    bed.expect_counters(&[("endpoints.client_resets", ANY), ("endpoints.target_resets", ANY)]);
}

#[test]
fn a_target_that_changes_its_mac_address_is_found_again_soon() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let transfers = Transfers::start(bed.client(0), Way::Download);
    let ping_pong = PingPong::start(bed.client(1));
    // Its last answer is a second old at least: younger ones are trusted.
    std::thread::sleep(Duration::from_millis(1500));
    for (at, target) in bed.targets().iter().enumerate() {
        // As failover software does, it tells its neighbours.
        target.node().namespace().set_sysctl("net.ipv4.conf.eth0.arp_notify", "1").unwrap();
        bed.target_interface(at).set_mac(MacAddress([2, 0, 0, 0, 0x91, at as u8])).unwrap();
    }
    let start = Instant::now();
    ping_pong.wait_for_more(Duration::from_secs(4));
    eventually("all targets answer", Duration::from_secs(4), || bed.ask_often(12) == (names(&[1, 2, 3]), 0));
    assert!(start.elapsed() < Duration::from_secs(8));
    let lost = ping_pong.stop();
    assert!(lost.len() <= 8, "{} datagrams were lost", lost.len());
    assert!(!transfers.stop().is_empty());
    bed.expect_counters(&[("neighbours.unsolicited", ANY), ("endpoints.client_resets", ANY)]);
}

#[test]
fn a_port_that_goes_down_and_comes_up_goes_on() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    take_a_port_down_and_up(&bed);
}

/// Takes the first consumer's port down and up three times, under traffic.
pub(crate) fn take_a_port_down_and_up(bed: &Bed) {
    let stays = Transfers::start(bed.client(1), Way::Download);
    let suffers = PingPong::start(bed.client(0));
    let port = bed.network().gateway.interface("vpc-a");
    for _ in 0..3 {
        port.down().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        port.up().unwrap();
        suffers.wait_for_more(Duration::from_secs(3));
    }
    let lost = suffers.stop();
    assert!((1..=15).contains(&lost.len()), "{} datagrams were lost", lost.len());
    assert!(!stays.stop().is_empty());
    bed.expect_counters(&[
        ("drops.port_down", 0..=15),
        ("drops.neighbour_unreachable", ANY),
        ("endpoints.drops", ANY),
        ("refused.ENETDOWN", 0..=15),
        ("sent.refused", 0..=15),
    ]);
}

#[test]
fn an_interface_that_is_deleted_and_made_again_is_taken_up_again() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    delete_a_port_and_make_it_again(&bed);
}

/// Deletes the second consumer's port and makes it again, twice, under traffic.
pub(crate) fn delete_a_port_and_make_it_again(bed: &Bed) {
    let stays = PingPong::start(bed.client(0));
    let suffers = PingPong::start(bed.client(1));
    let gateway = &bed.network().gateway;
    for round in 0..2_u8 {
        gateway.interface("vpc-b").delete().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let client = bed.client(1).namespace();
        let end = VethEnd::new(client, "eth0").mac(MacAddress([2, 0, 0, 0, 0x0b, 0x10 + round]));
        end.pair(&VethEnd::new(gateway, "vpc-b").mac(MacAddress([2, 0, 0, 0, 0x0b, 0x20 + round]))).unwrap();
        client.interface("eth0").add_address(IpAddr::V4(CLIENT), 24).unwrap();
        suffers.wait_for_more(Duration::from_secs(6));
        bed.ask(1, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    }
    let lost = suffers.stop();
    assert!(lost.len() >= 2, "an interface was deleted without a loss");
    assert_eq!(stays.stop(), Vec::<u64>::new());
    let log = bed.gateway().log();
    assert_eq!(log.matches("the interface was made again").count(), 2, "{log}");
    bed.expect_counters(&[
        ("drops.port_down", 0..=30),
        ("drops.foreign_mac", 0..=30),
        ("drops.neighbour_unreachable", ANY),
        ("endpoints.drops", ANY),
        ("refused.ENODEV", 0..=30),
        ("refused.ENXIO", 0..=30),
        ("refused.ENETDOWN", 0..=30),
        ("sent.refused", 0..=30),
        ("neighbours.unsolicited", ANY),
    ]);
}

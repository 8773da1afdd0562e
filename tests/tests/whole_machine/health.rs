//! Health checks by the gateway itself: targets that die, come back, and die all.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use postern_lab::{Client, Topology, network};
use postern_tables::declaration::{Declaration, HealthCheck, HealthCheckProtocol};

use crate::bed::{Bed, eventually};
use crate::counters::{ANY, SOME};

/// A dead target is to get no new flows within 12 seconds; machines that test are busy.
const LEAVES: Duration = Duration::from_secs(30);

/// Every group is probed as often as may be.
fn probed(protocol: HealthCheckProtocol) -> impl FnOnce(&mut Declaration) + 'static {
    move |declaration| {
        for group in &mut declaration.target_groups {
            group.health_check = Some(HealthCheck {
                protocol,
                // Every target of the lab has a page.
                port: Some(80),
                interval_seconds: Some(5),
                timeout_seconds: Some(2),
                healthy_threshold: Some(2),
                unhealthy_threshold: Some(2),
                ..HealthCheck::default()
            });
        }
    }
}

impl Bed {
    /// Healthy and unhealthy targets of all groups, and how many groups fail open.
    fn health(&self) -> (u64, u64, u64) {
        let counters = self.gateway().counters().unwrap_or_else(|error| panic!("{error}"));
        let groups = counters["target_groups"].as_array().cloned().unwrap_or_default();
        let sum = |field: &str| groups.iter().filter_map(|group| group["health"][field].as_u64()).sum();
        (sum("healthy"), sum("unhealthy"), sum("fails_open"))
    }

    /// Asks the page so often; every answer must come. Returns who answered.
    fn all_answer(&self, count: usize) -> Vec<String> {
        let ask = |client: Client| (0..count).map(|_| client.ask_tcp(network::page(), 0)).collect::<Vec<_>>();
        let replies = self.ask(0, ask).into_iter();
        let mut names: Vec<_> =
            replies.map(|reply| reply.unwrap_or_else(|error| panic!("{error}")).answer.target).collect();
        names.sort();
        names.dedup();
        names
    }
}

fn a_dead_target_leaves_and_comes_back(workers: usize, protocol: HealthCheckProtocol) {
    let Some(bed) = Bed::start_with(Topology::builder().workers(workers), probed(protocol)) else { return };
    let targets = bed.targets().len() as u64;
    let groups = bed.counters().target_groups.len() as u64;
    let all = targets * groups;
    eventually("every target is healthy", LEAVES, || bed.health() == (all, 0, 0));
    assert_eq!(bed.all_answer(24).len() as u64, targets);

    let interface = bed.targets()[0].node().interface();
    interface.down().unwrap();
    eventually("the dead target is unhealthy", LEAVES, || bed.health() == (all - groups, groups, 0));
    // New connections all succeed, on the others.
    assert_eq!(bed.all_answer(24).len() as u64, targets - 1);

    interface.up().unwrap();
    eventually("it is healthy again", 2 * LEAVES, || bed.health() == (all, 0, 0));
    eventually("it is used again", LEAVES, || bed.all_answer(24).len() as u64 == targets);

    let counters = bed.counters();
    assert!(counters.probes.passed > 0 && counters.probes.failed > 0, "{:?}", counters.probes);
    // Probes are nobody's traffic: each flow is a connection that a client opened.
    let flows: u64 = counters.targets.iter().map(|target| target.traffic.flows_new).sum();
    assert_eq!(flows, counters.endpoints.iter().map(|endpoint| endpoint.traffic.flows_new).sum::<u64>());
    bed.expect_counters(&[
        ("probes.passed", SOME),
        ("probes.failed", SOME),
        ("probes.sent", SOME),
        ("probes.received", SOME),
        ("probes.stray", ANY),
        ("neighbours.unreachable", ANY),
        ("drops.target_unhealthy", ANY),
        ("endpoints.drops", ANY),
    ]);
}

#[test]
fn a_dead_target_leaves_and_comes_back_with_one_worker() {
    a_dead_target_leaves_and_comes_back(1, HealthCheckProtocol::Http);
}

#[test]
fn a_dead_target_leaves_and_comes_back_with_two_workers() {
    a_dead_target_leaves_and_comes_back(2, HealthCheckProtocol::Tcp);
}

#[test]
fn when_all_targets_fail_their_checks_all_are_used_and_the_flows_are_counted() {
    let edit = |declaration: &mut Declaration| {
        probed(HealthCheckProtocol::Http)(declaration);
        for check in declaration.target_groups.iter_mut().filter_map(|group| group.health_check.as_mut()) {
            // The page says 200.
            check.matcher = Some("204".to_owned());
        }
    };
    let Some(bed) = Bed::start_with(Topology::builder(), edit) else { return };
    let targets = bed.targets().len() as u64;
    let groups = bed.counters().target_groups.len() as u64;
    eventually("every target is unhealthy", LEAVES, || bed.health() == (0, targets * groups, groups));
    assert_eq!(bed.all_answer(24).len() as u64, targets);
    let routed = || bed.counters().target_groups.iter().map(|group| group.health.unhealthy_routing_flows).sum::<u64>();
    eventually("the flows are counted", Duration::from_secs(10), || routed() == 24);
}

#[test]
fn flows_of_a_target_that_was_taken_out_end_after_the_delay_and_not_before_and_others_go_on() {
    const DELAY: Duration = Duration::from_secs(2);
    let edit = |declaration: &mut Declaration| {
        for group in &mut declaration.target_groups {
            group.deregistration_delay_seconds = Some(DELAY.as_secs() as i64);
            group.deregistration_ends_flows = Some(true);
        }
    };
    let Some(mut bed) = Bed::start_with(Topology::builder(), edit) else { return };
    let mut connections =
        bed.ask(0, |client| (0..24).map(|_| client.connect(network::page(), 0).unwrap()).collect::<Vec<_>>());
    let flows = bed.gateway().flows().unwrap();
    let left = network::TARGETS[0].to_string();
    let of_it: Vec<bool> = connections
        .iter()
        .map(|connection| {
            let own = connection.local_addr().unwrap().to_string();
            let flow = flows.as_array().unwrap().iter().find(|flow| flow["client"] == own.as_str());
            flow.expect("every connection is a flow")["target"].as_str().unwrap().starts_with(&left)
        })
        .collect();
    assert!(of_it.contains(&true) && of_it.contains(&false), "one target got all connections: {flows}");

    let taken_out = bed.configuration(|declaration| {
        declaration.target_groups.iter_mut().for_each(|group| group.targets.retain(|target| target.address != left));
    });
    let since = Instant::now();
    bed.gateway_mut().reload(&taken_out).unwrap();
    let mut ended = vec![false; connections.len()];
    eventually("the flows of the target end", LEAVES, || {
        for (connection, ended) in connections.iter_mut().zip(&mut ended).filter(|(_, ended)| !**ended) {
            // One more line of a request that does not end.
            if connection.write_all(b"still: here\r\n").is_err() {
                *ended = true;
                assert!(since.elapsed() >= DELAY, "a flow ended before the delay was over");
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        ended == of_it
    });
    for (connection, _) in connections.iter_mut().zip(&of_it).filter(|(_, of_it)| !**of_it) {
        connection.write_all(b"\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("target-") && !answer.contains("target-1"), "{answer}");
    }
    let counters = bed.gateway().counters().unwrap();
    let drops = counters["total"]["drops"]["target_deregistered"].as_u64();
    let told = of_it.iter().filter(|of_it| **of_it).count() as u64;
    // A client that wrote again before it had heard is told again.
    assert!(drops.is_some_and(|drops| drops >= told), "each of {told} was told: {counters}");
    assert!(bed.all_answer(24).iter().all(|name| name != "target-1"));
}

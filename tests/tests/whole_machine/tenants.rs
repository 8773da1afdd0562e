//! Control and gateway together: an operator, a provider and two consumers declare over the API, by the commands that people
//! type, and the gateway does what they agree on.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use postern_lab::control::{self, CONSUMERS, Commands, ControlError, Declared, OPERATOR, PROVIDER};
use postern_lab::network::{self, TARGETS};
use postern_lab::server::{BULK_PORT, ECHO_PORT, PAGE_PORT};
use postern_lab::topology::Controlled;
use postern_lab::{Client, Topology, Way};
use serde_json::Value;

use crate::balancing::who_answers;
use crate::bed::{Bed, eventually};
use crate::traffic::{PingPong, Transfers};

/// What control and gateway do together takes moments; machines that test are busy.
const SOON: Duration = Duration::from_secs(60);

/// A lab in which both endpoints wait for the provider.
fn pending() -> Option<Bed> {
    Bed::start(Topology::builder().workers(2).with_control())
}

/// A lab in which both endpoints are accepted and forwarded.
fn available() -> Option<Bed> {
    let bed = pending()?;
    let (commands, declared) = asked(&bed);
    control::accept(commands, declared).unwrap_or_else(|error| panic!("{error}"));
    Some(bed)
}

fn controlled(bed: &Bed) -> &Controlled {
    bed.control().expect("the lab was built with control")
}

fn asked(bed: &Bed) -> (&Commands, &Declared) {
    let Controlled { commands, declared, .. } = controlled(bed);
    (commands, declared)
}

fn run(bed: &Bed, who: &str, line: &str) -> Value {
    run_refused(bed, who, line).unwrap_or_else(|error| panic!("{error}"))
}

fn run_refused(bed: &Bed, who: &str, line: &str) -> Result<Value, ControlError> {
    asked(bed).0.run(who, &line.split(' ').collect::<Vec<_>>())
}

/// Whether the page behind the endpoint answers.
fn answers(bed: &Bed, consumer: usize) -> bool {
    let client = Client { deadline: Duration::from_millis(500) };
    bed.ask(consumer, |_| client.ask_tcp(network::page(), 0).is_ok())
}

/// Live flows that came from a client's port to the echo: who translates them how.
fn conversations(bed: &Bed) -> BTreeSet<String> {
    let flows = bed.gateway().flows().unwrap();
    let udp = flows.as_array().unwrap().iter().filter(|flow| flow["protocol"] == "udp");
    udp.map(|flow| ["vpc", "client", "service", "snat", "target"].map(|key| flow[key].to_string()).join(" ")).collect()
}

#[test]
fn a_consumer_gets_through_when_the_provider_accepts_and_loses_its_flows_when_rejected() {
    let Some(bed) = pending() else { return };
    let (commands, declared) = asked(&bed);
    for consumer in 0..2 {
        assert_eq!(commands.state(consumer, &declared.endpoints[consumer]).unwrap(), "pendingAcceptance");
        assert!(!answers(&bed, consumer), "traffic passes before the provider's word");
    }
    let connections = run(&bed, PROVIDER, &format!("service connections {}", declared.service));
    let consumers: BTreeSet<_> =
        connections.as_array().unwrap().iter().filter_map(|one| one["consumer"].as_str()).collect();
    assert_eq!(consumers, BTreeSet::from(CONSUMERS));
    // Whoever owns the endpoint does not own the service.
    let refused =
        run_refused(&bed, CONSUMERS[0], &format!("service accept {} {}", declared.service, declared.endpoints[0]));
    assert!(matches!(refused, Err(ControlError::Refused { code: 1, .. })), "{refused:?}");

    control::accept(commands, declared).unwrap();
    for consumer in 0..2 {
        assert_eq!(commands.state(consumer, &declared.endpoints[consumer]).unwrap(), "available");
        eventually("an accepted endpoint answers", SOON, || answers(&bed, consumer));
    }

    let (stays, goes) = (PingPong::start(bed.client(0)), PingPong::start(bed.client(1)));
    run(&bed, PROVIDER, &format!("service reject {} {}", declared.service, declared.endpoints[1]));
    let silent = |before: &mut u64| {
        let now = goes.answered();
        std::thread::sleep(Duration::from_millis(700));
        *before = now;
        goes.answered() == now
    };
    eventually("a rejected consumer's live flow ends", SOON, || silent(&mut 0));
    stays.wait_for_more(SOON);
    assert_eq!(stays.stop(), Vec::<u64>::new(), "the other consumer's flow lost datagrams");
    assert!(!goes.stop().is_empty());
    assert!(!answers(&bed, 1));
    assert!(answers(&bed, 0));
    assert_eq!(commands.state(1, &declared.endpoints[1]).unwrap(), "rejected");
}

#[test]
fn a_load_balancer_is_exchanged_under_live_endpoints_without_losing_a_flow() {
    let Some(bed) = available() else { return };
    let (ping_pong, transfers) = (PingPong::start(bed.client(0)), Transfers::start(bed.client(1), Way::Upload));
    let before = conversations(&bed);
    let vpc = postern_lab::declaration::VPCS[2];
    let mut listeners = String::new();
    for (name, protocol, port) in [("page", "tcp", PAGE_PORT), ("echo", "udp", ECHO_PORT), ("bulk", "tcp", BULK_PORT)] {
        let target = TARGETS[0];
        let group = format!("target-group create {name}-2 --vpc {vpc} --snat-pool pool --target {target}:{port}");
        run(&bed, PROVIDER, &group);
        listeners.push_str(&format!(" --listener {protocol}:{port}={name}-2"));
    }
    run(&bed, PROVIDER, &format!("load-balancer create second{listeners}"));
    run(&bed, PROVIDER, "service update service --load-balancer second");
    // New flows go to the one target of the new balancer, and to no other.
    let mut in_a_row = 0;
    eventually("new flows go through the new balancer", SOON, || {
        let reply = bed.ask(0, |client| client.ask_tcp(network::page(), 0).unwrap());
        in_a_row = if reply.answer.target == "target-1" { in_a_row + 1 } else { 0 };
        in_a_row == 20
    });
    run(&bed, PROVIDER, "load-balancer delete balancer");
    ping_pong.wait_for_more(SOON);
    assert_eq!(conversations(&bed), before, "an established flow changed");
    assert_eq!(ping_pong.stop(), Vec::<u64>::new(), "an established flow lost datagrams");
    assert!(!transfers.stop().is_empty());
}

#[test]
fn control_that_is_killed_and_started_again_under_traffic_changes_no_flow() {
    let Some(mut bed) = available() else { return };
    let (ping_pong, transfers) = (PingPong::start(bed.client(0)), Transfers::start(bed.client(1), Way::Download));
    let before = conversations(&bed);
    assert_eq!(before.len(), 1);
    bed.control_mut().unwrap().process.process().kill().unwrap();
    let reached = run_refused(&bed, OPERATOR, "vpc list");
    assert!(matches!(reached, Err(ControlError::Refused { code: 3, .. })), "{reached:?}");
    ping_pong.wait_for_more(SOON);
    assert!(answers(&bed, 0));

    bed.control_mut().unwrap().process.restart().unwrap();
    let (commands, declared) = asked(&bed);
    control::connected(commands, &declared.gateway).unwrap();
    // What was agreed on before is known, and what is new is done.
    assert_eq!(commands.state(0, &declared.endpoints[0]).unwrap(), "available");
    let second = Ipv4Addr::new(10, 0, 0, 101);
    let create = format!("endpoint create second --vpc vpc-a --service {} --address {second}", declared.service);
    let endpoint = run(&bed, CONSUMERS[0], &create)["id"].as_str().unwrap().to_owned();
    run(&bed, PROVIDER, &format!("service accept {} {endpoint} --wait=60", declared.service));
    eventually("the new endpoint answers", SOON, || {
        let page = std::net::SocketAddrV4::new(second, PAGE_PORT);
        bed.ask(0, |client| client.ask_tcp(page, 0).is_ok())
    });
    ping_pong.wait_for_more(SOON);
    assert_eq!(conversations(&bed), before, "a flow changed");
    assert_eq!(ping_pong.stop(), Vec::<u64>::new(), "a flow lost datagrams");
    assert!(!transfers.stop().is_empty());
}

#[test]
fn a_gateway_that_starts_while_control_is_away_forwards_by_what_it_had_applied() {
    let Some(mut bed) = available() else { return };
    eventually("the endpoints answer", SOON, || answers(&bed, 0) && answers(&bed, 1));
    bed.control_mut().unwrap().process.process().kill().unwrap();
    bed.gateway_mut().restart().unwrap();
    for consumer in 0..2 {
        eventually("the endpoint answers without control", SOON, || answers(&bed, consumer));
    }
}

#[test]
fn a_budget_stickiness_and_port_mapping_declared_over_the_api_hold_for_real_traffic() {
    let Some(bed) = available() else { return };
    let (_, declared) = asked(&bed);
    let endpoint = &declared.endpoints[0];
    run(&bed, PROVIDER, "target-group update page --sticky-seconds 600");
    eventually("clients stay with their target", SOON, || who_answers(&bed, 0, network::page(), 30).len() == 1);

    let vpc = postern_lab::declaration::VPCS[2];
    let mut group = format!("target-group create brokers --vpc {vpc} --snat-pool pool");
    for (at, target) in TARGETS.iter().enumerate() {
        group.push_str(&format!(" --target {target}:{PAGE_PORT},mapped_port={}", 9100 + at));
    }
    run(&bed, PROVIDER, &group);
    run(&bed, PROVIDER, "load-balancer create mapped --listener tcp:9100-9109=brokers");
    run(&bed, PROVIDER, "service update service --load-balancer balancer --load-balancer mapped");
    let to = |at: u16| std::net::SocketAddrV4::new(network::ENDPOINT, 9100 + at);
    let quick = Client { deadline: Duration::from_millis(500) };
    eventually("a mapped port answers", SOON, || bed.ask(0, |_| quick.ask_tcp(to(0), 0).is_ok()));
    for at in 0..TARGETS.len() as u16 {
        assert_eq!(who_answers(&bed, 0, to(at), 5), BTreeSet::from([format!("target-{}", at + 1)]));
    }

    // Flows of before linger, so the budget is above what they take.
    let flows = || {
        let counters = bed.gateway().counters().unwrap();
        counters["endpoints"].as_array().unwrap().iter().find(|of| of["id"] == endpoint.as_str()).unwrap()["traffic"]["flows"]
            .as_u64()
            .unwrap()
    };
    eventually("flows of before have ended", 3 * SOON, || flows() == 0);
    let connect = |count: usize| -> Vec<_> {
        bed.ask(0, |_| (0..count).filter_map(|_| quick.connect(network::bulk(), 0).ok()).collect())
    };
    let generation = || {
        let counters = bed.gateway().counters().unwrap();
        let workers = counters["workers"].as_array().unwrap().iter();
        workers.map(|worker| worker["worker"]["generation"].as_u64().unwrap()).min().unwrap()
    };
    let before = generation();
    run(&bed, CONSUMERS[0], &format!("endpoint update {endpoint} --max-flows 5 --wait"));
    eventually("every worker has the tables with the budget", SOON, || generation() > before);
    let few = connect(8);
    assert_eq!(few.len(), 5, "a budget of five");
    run(&bed, CONSUMERS[0], &format!("endpoint update {endpoint} --max-flows 7 --wait"));
    let mut more = Vec::new();
    eventually("a raised budget holds at run time", SOON, || {
        more.extend(connect(1));
        more.len() == 2
    });
    assert_eq!(connect(3).len(), 0);
    let refused = run_refused(&bed, CONSUMERS[0], &format!("endpoint update {endpoint} --max-flows 0"));
    assert!(matches!(refused, Err(ControlError::Refused { .. })), "{refused:?}");
}

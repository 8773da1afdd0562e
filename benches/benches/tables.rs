//! Tables at size: what a full load, one endpoint more, and a worker's swap cost, and how much memory an endpoint takes, as
//! `NAME VALUE UNIT` lines with the mark behind.
//!
//! 100,000 endpoints of 100 VPCs, 1,000 services, 10,000 targets. `-- --test` takes a hundredth of all, and compares nothing
//! with the marks.

use std::alloc::System;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_benches::bed::region;
use postern_forwarding::{Forwarder, ForwarderConfig, PortInfo, WorkerCounters, WorkerIndex};
use postern_steering::Ownership;
use postern_tables::declaration::{
    Attachment, Declaration, Endpoint, Limits, Listener, LoadBalancer, Port, Service, SnatPool, Target, TargetGroup,
    Vpc, WeightedGroup,
};
use postern_tables::{Change, Resource, Snapshot, Tables};
use postern_wire::MacAddress;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region as Allocations, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Flows of the worker that swaps.
const FLOWS: u32 = 1024;

/// How large the tables are.
#[derive(Clone, Copy)]
struct Size {
    endpoints: u32,
    services: u32,
    vpcs: u32,
    /// Endpoints added one by one.
    additions: u32,
}

const FULL: Size = Size { endpoints: 100_000, services: 1000, vpcs: 100, additions: 200 };
const QUICK: Size = Size { endpoints: 1000, services: 10, vpcs: 4, additions: 10 };
/// Targets of each service.
const TARGETS: u32 = 10;

/// One line of the report.
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    most: f64,
}

fn main() -> ExitCode {
    let quick = std::env::args().any(|argument| argument == "--test");
    let figures = measure(if quick { QUICK } else { FULL });
    let mut missed = false;
    for Figure { name, value, unit, most } in figures {
        missed |= value > most;
        println!("{name:<28} {value:>10.3} {unit:<5} (at most {most})");
    }
    if missed && !quick {
        eprintln!("a mark is missed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(size: Size) -> Vec<Figure> {
    let process = process(size).check().unwrap_or_else(|errors| panic!("{errors}"));
    let mut tables = Tables::new(&process);
    // What the change itself takes is given back within.
    let memory = Allocations::new(ALLOCATOR);
    let change = Change { full: true, changed: everything(size), removed: Vec::new() };
    let begin = Instant::now();
    let snapshot = tables.update(change).unwrap_or_else(|errors| panic!("{errors}"));
    let load = begin.elapsed();
    let change = memory.change();
    let kept = change.bytes_allocated as f64 - change.bytes_deallocated as f64;

    let counters = Arc::new(WorkerCounters::new(process.limits.endpoints as usize, process.limits.targets as usize));
    let mut memory = region(FLOWS).unwrap_or_else(|error| panic!("{error}"));
    let config = ForwarderConfig {
        worker: WorkerIndex(0),
        workers: 1,
        flows: FLOWS,
        ipv6_flows: 0,
        secret: [1, 2, 3, 4],
        ports: vec![PortInfo { mac: MacAddress([2, 0, 0, 0, 0, 1]), mtu: 1500, up: true }],
    };
    let ownership = Arc::new(Ownership::even(1, [3, 4]));
    let mut worker = Forwarder::new(&config, memory.bytes_mut(), snapshot, ownership, counters)
        .unwrap_or_else(|error| panic!("{error}"));

    let mut times = Times::default();
    for number in 0..size.additions {
        add_one(&mut tables, &mut worker, endpoint(size, size.endpoints + number), &mut times);
    }
    let endpoints = f64::from(size.endpoints);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    let figure = |name, value, unit, most| Figure { name, value, unit, most };
    vec![
        figure("cold_load", load.as_secs_f64(), "s", 3.0),
        figure("one_endpoint_added_median", milliseconds(middle(&mut times.whole)), "ms", 20.0),
        figure("one_endpoint_added_worst", milliseconds(worst(&times.whole)), "ms", 20.0),
        figure("worker_swap_median", microseconds(middle(&mut times.swap)), "us", 100.0),
        figure("worker_swap_worst", microseconds(worst(&times.swap)), "us", 100.0),
        figure("free_old_tables_median", microseconds(middle(&mut times.free)), "us", 1000.0),
        figure("tables_an_endpoint", kept / endpoints, "bytes", 1000.0),
        figure(
            "counters_an_endpoint",
            size_of::<postern_forwarding::counters::EndpointCounters>() as f64,
            "bytes",
            128.0,
        ),
    ]
}

/// The process part: one port, and room for all.
fn process(size: Size) -> Declaration {
    Declaration {
        file: "bench.toml".to_owned(),
        ports: vec![Port { interface: "eth0".to_owned(), ..Port::default() }],
        limits: Limits {
            endpoints: Some(i64::from(2 * size.endpoints)),
            targets: Some(i64::from(2 * size.services * TARGETS)),
        },
        ..Declaration::default()
    }
}

/// VPC 0 is the provider's.
fn everything(size: Size) -> Vec<Resource> {
    let vpcs = (0..=size.vpcs).flat_map(|number| {
        let vpc = vpc(number);
        let attachment = Attachment {
            name: vpc.clone(),
            vpc: vpc.clone(),
            port: "eth0".to_owned(),
            vlan: Some(i64::from(number + 1)),
            prefixes: vec!["10.0.0.0/8".to_owned()],
            ..Attachment::default()
        };
        [Resource::Vpc(Vpc { id: vpc }), Resource::Attachment(attachment, Vec::new())]
    });
    let pool = Resource::SnatPool(SnatPool {
        name: "pool".to_owned(),
        vpc: vpc(0),
        addresses: vec!["10.255.0.1".to_owned()],
        ..SnatPool::default()
    });
    let services = (0..size.services).flat_map(|number| {
        let target = |last: u32| {
            let [_, a, b, c] = (256 + number * TARGETS + last).to_be_bytes();
            Target { address: format!("10.{}.{b}.{c}", 1 + a), port: 8080, ..Target::default() }
        };
        let group = TargetGroup {
            name: format!("group-{number}"),
            vpc: vpc(0),
            snat_pool: "pool".to_owned(),
            targets: (0..TARGETS).map(target).collect(),
            ..TargetGroup::default()
        };
        let listener = Listener {
            port: 80,
            target_groups: vec![WeightedGroup { name: group.name.clone(), weight: None }],
            ..Listener::default()
        };
        let balancer =
            LoadBalancer { name: format!("balancer-{number}"), listeners: vec![listener], ..LoadBalancer::default() };
        let service = Service { id: service(number), load_balancers: vec![balancer.name.clone()] };
        [Resource::TargetGroup(group), Resource::LoadBalancer(balancer), Resource::Service(service)]
    });
    let endpoints = (0..size.endpoints).map(|number| endpoint(size, number));
    vpcs.chain([pool]).chain(services).chain(endpoints).collect()
}

fn vpc(number: u32) -> String {
    format!("vpc-{number:017x}")
}

fn service(number: u32) -> String {
    format!("vpce-svc-{number:017x}")
}

fn endpoint(size: Size, number: u32) -> Resource {
    let [_, a, b, c] = (number + 256).to_be_bytes();
    Resource::Endpoint(Endpoint {
        id: format!("vpce-{number:017x}"),
        vpc: vpc(1 + number % size.vpcs),
        service: service(number % size.services),
        addresses: vec![format!("10.{}.{b}.{c}", 1 + a)],
        ..Endpoint::default()
    })
}

/// What additions took.
#[derive(Default)]
struct Times {
    /// From the change to the worker's new tables.
    whole: Vec<Duration>,
    /// The worker's part.
    swap: Vec<Duration>,
    /// Freeing the old tables.
    free: Vec<Duration>,
}

fn add_one(tables: &mut Tables, worker: &mut Forwarder<'_>, endpoint: Resource, times: &mut Times) {
    let change = Change { changed: vec![endpoint], ..Change::default() };
    let begin = Instant::now();
    let snapshot: Arc<Snapshot> = tables.update(change).unwrap_or_else(|errors| panic!("{errors}"));
    let swap = Instant::now();
    let old = worker.apply(snapshot);
    let end = Instant::now();
    drop(old);
    times.free.push(end.elapsed());
    times.swap.push(end - swap);
    times.whole.push(end - begin);
}

fn middle(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn worst(times: &[Duration]) -> Duration {
    times.iter().copied().max().unwrap_or_default()
}

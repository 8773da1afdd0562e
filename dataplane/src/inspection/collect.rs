//! From counters that workers write to reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use postern_forwarding::DropReason;
use postern_frame_io::Errno;
use postern_tables::Snapshot;
use postern_tables::snapshot::VpcIndex;

use super::report::{
    CountersReport, EndpointReport, EndpointTraffic, FrameReport, GroupReport, LoopReport, NeighbourReport, PortReport,
    ProbeReport, ReceivedReport, SecurityGroupReport, SentReport, TargetGroupReport, TargetReport, TargetStatus,
    TargetTraffic, WorkerReport, WorkerStatus,
};
use crate::back_end::BackEnd;
use crate::control_link::target_views::{TargetKey, TargetView};
use crate::health::GroupHealth;
use crate::link::{Shared, WorkerLink};
use crate::neighbours::NeighbourCounters;

/// Every counter now.
#[must_use]
pub fn counters(
    gateway: &str,
    shared: &Shared,
    neighbours: &NeighbourCounters,
    back_ends: &[BackEnd],
) -> CountersReport {
    let snapshot = shared.tables.load();
    let workers: Vec<_> = shared.links.iter().map(worker).collect();
    let mut total = WorkerReport::default();
    for worker in &workers {
        add(&mut total, worker);
    }
    let (groups, probes) = shared.health.summary();
    CountersReport {
        gateway: gateway.to_owned(),
        generation: snapshot.generation.0,
        uptime_seconds: uptime(shared),
        total,
        workers,
        endpoints: endpoints(&snapshot, shared),
        targets: targets(&snapshot, shared),
        target_groups: target_groups(groups),
        security_groups: security_groups(&snapshot, shared),
        probes: ProbeReport::read(&probes),
        ports: ports(&snapshot, shared, back_ends),
        neighbours: NeighbourReport::read(neighbours),
        control: None,
    }
}

/// Workers, in short.
#[must_use]
pub fn worker_statuses(shared: &Shared) -> Vec<WorkerStatus> {
    let status = |(worker, link): (usize, &WorkerLink)| WorkerStatus {
        worker,
        generation: link.loops.generation.get(),
        flows: link.counters.flows.get(),
        restarts: link.loops.restarts.get(),
    };
    shared.links.iter().enumerate().map(status).collect()
}

/// The health of every target, by group.
#[must_use]
pub fn target_statuses(shared: &Shared) -> Vec<TargetStatus> {
    let (views, _) = shared.health.views.changed_since(0, usize::MAX);
    let status = |(key, view): (TargetKey, Option<TargetView>)| {
        let view = view?;
        Some(TargetStatus {
            target: SocketAddr::new(key.address, key.port),
            group: key.group,
            state: view.health.name().to_owned(),
            reason: view.reason,
        })
    };
    let mut statuses: Vec<_> = views.into_iter().filter_map(status).collect();
    statuses.sort_by(|a, b| (&a.group, a.target).cmp(&(&b.group, b.target)));
    statuses
}

/// Seconds since the clock was started.
#[must_use]
pub fn uptime(shared: &Shared) -> u64 {
    // The clock starts at one second.
    shared.clock.now().seconds().saturating_sub(1)
}

/// The id of a VPC; empty if it has none.
#[must_use]
pub fn vpc_id(snapshot: &Snapshot, vpc: VpcIndex) -> String {
    snapshot.vpcs.get(vpc.at()).map(|vpc| vpc.id.clone()).unwrap_or_default()
}

fn worker(link: &WorkerLink) -> WorkerReport {
    let counters = &link.counters;
    // A burst may be in hand between two reads: what was taken in is read last, so that it shows as accounted for.
    let frames = FrameReport::read(counters);
    let drops =
        DropReason::ALL.iter().map(|reason| (reason.label().to_owned(), counters.drops[*reason as usize].get()));
    let refused = link.loops.refused.iter().enumerate().filter(|(_, count)| count.get() > 0);
    WorkerReport {
        frames,
        drops: drops.collect(),
        imbalance: i64::try_from(counters.imbalance()).unwrap_or(i64::MAX),
        worker: LoopReport::read(&link.loops),
        refused: refused.map(|(errno, count)| (errno_name(errno), count.get())).collect(),
    }
}

fn add(total: &mut WorkerReport, worker: &WorkerReport) {
    total.frames.add(&worker.frames);
    total.worker.add(&worker.worker);
    total.imbalance += worker.imbalance;
    let sum = |into: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>| {
        for (name, count) in from {
            *into.entry(name.clone()).or_default() += count;
        }
    };
    sum(&mut total.drops, &worker.drops);
    sum(&mut total.refused, &worker.refused);
    total.worker.generation = worker.worker.generation;
}

fn errno_name(errno: usize) -> String {
    format!("{:?}", Errno::from_raw(errno as i32))
}

fn endpoints(snapshot: &Snapshot, shared: &Shared) -> Vec<EndpointReport> {
    let present = snapshot.endpoints.iter().enumerate().filter_map(|(at, endpoint)| Some((at, endpoint?)));
    let mut drops: BTreeMap<u32, BTreeMap<String, u64>> = BTreeMap::new();
    for (endpoint, reason, count) in shared.links.iter().flat_map(|link| link.counters.drop_pairs.iter()) {
        *drops.entry(endpoint).or_default().entry(reason.label().to_owned()).or_default() += count;
    }
    let mut report = |(at, endpoint): (usize, &postern_tables::snapshot::Endpoint)| {
        let mut traffic = EndpointTraffic::default();
        for counters in shared.links.iter().filter_map(|link| link.counters.endpoints.get(at)) {
            traffic.add(&EndpointTraffic::read(counters));
        }
        EndpointReport {
            id: endpoint.id.to_string(),
            vpc: vpc_id(snapshot, endpoint.vpc),
            address: endpoint.address,
            traffic,
            drops: drops.remove(&(at as u32)).unwrap_or_default(),
        }
    };
    present.map(&mut report).collect()
}

fn targets(snapshot: &Snapshot, shared: &Shared) -> Vec<TargetReport> {
    let present = snapshot.targets.iter().enumerate().filter_map(|(at, target)| Some((at, target?)));
    let report = |(at, target): (usize, &postern_tables::snapshot::Target)| {
        let mut traffic = TargetTraffic::default();
        for counters in shared.links.iter().filter_map(|link| link.counters.targets.get(at)) {
            traffic.add(&TargetTraffic::read(counters));
        }
        TargetReport {
            group: target.group.to_string(),
            vpc: vpc_id(snapshot, target.vpc),
            target: SocketAddr::new(target.address, target.port),
            traffic,
        }
    };
    present.map(report).collect()
}

fn security_groups(snapshot: &Snapshot, shared: &Shared) -> Vec<SecurityGroupReport> {
    let present = snapshot.security_groups.iter().enumerate().filter_map(|(at, group)| Some((at, group?)));
    let blocked = |at: usize| {
        let counters = shared.links.iter().filter_map(|link| link.counters.security_groups.get(at));
        counters.map(postern_measurement::Counter::get).sum()
    };
    present.map(|(at, group)| SecurityGroupReport { group: group.name.to_string(), blocked: blocked(at) }).collect()
}

fn target_groups(groups: Vec<GroupHealth>) -> Vec<TargetGroupReport> {
    let report = |group: GroupHealth| TargetGroupReport {
        health: GroupReport::read(&group),
        group: group.target_group,
        states: group.targets,
    };
    groups.into_iter().map(report).collect()
}

fn ports(snapshot: &Snapshot, shared: &Shared, back_ends: &[BackEnd]) -> Vec<PortReport> {
    let report = |(at, port): (usize, &postern_tables::snapshot::Port)| {
        let (mut received, mut sent) = (ReceivedReport::default(), SentReport::default());
        for counters in shared.links.iter().filter_map(|link| link.ports.get(at)) {
            received.add(&ReceivedReport::read(&counters.received()));
            sent.add(&SentReport::read(&counters.sent()));
        }
        let io = back_ends.get(at).map(BackEnd::to_string).unwrap_or_default();
        PortReport { interface: port.interface.clone(), io, received, sent }
    };
    snapshot.ports.iter().enumerate().map(report).collect()
}

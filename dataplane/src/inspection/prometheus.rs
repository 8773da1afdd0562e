//! The report of all counters as a Prometheus page (text exposition format 0.0.4).

use std::fmt::Write;

use postern_forwarding::DropReason;

use super::report::{
    ControlReport, CountersReport, EndpointTraffic, FrameReport, GroupReport, Kind, LoopReport, Metric,
    NeighbourReport, ProbeReport, ReceivedReport, SentReport, TargetTraffic,
};

/// The page.
#[must_use]
pub fn page(report: &CountersReport) -> String {
    let mut page = String::with_capacity(64 * 1024);
    let gauge = |name, help| Metric { name, labels: "", kind: Kind::Gauge, help };
    let gateway = label("gateway", &report.gateway);
    header(&mut page, &gauge("postern_uptime_seconds", "Seconds since the start of the gateway."));
    sample(&mut page, "postern_uptime_seconds", &[&gateway], report.uptime_seconds);
    header(&mut page, &gauge("postern_generation", "Generation of the published tables."));
    sample(&mut page, "postern_generation", &[&gateway], report.generation);

    let workers: Vec<_> = (0..report.workers.len()).map(|worker| label("worker", worker)).collect();
    let of_workers = |values: fn(&super::report::WorkerReport) -> Vec<u64>| {
        report.workers.iter().zip(&workers).map(move |(worker, label)| (label.clone(), values(worker)))
    };
    family(&mut page, FrameReport::METRICS, of_workers(|worker| worker.frames.values()));
    family(&mut page, LoopReport::METRICS, of_workers(|worker| worker.worker.values()));

    header(
        &mut page,
        &Metric {
            name: "postern_frames_dropped_total",
            labels: "",
            kind: Kind::Counter,
            help: "Frames dropped, by reason.",
        },
    );
    for reason in DropReason::ALL {
        let _ = writeln!(page, "# {}: {}", reason.label(), reason.description().trim());
        for (worker, labels) in report.workers.iter().zip(&workers) {
            let count = worker.drops.get(reason.label()).copied().unwrap_or_default();
            sample(&mut page, "postern_frames_dropped_total", &[labels, &label("reason", reason.label())], count);
        }
    }
    header(
        &mut page,
        &Metric {
            name: "postern_frames_refused_total",
            labels: "",
            kind: Kind::Counter,
            help: "Frames of every kind that the kernel refused, by errno.",
        },
    );
    for (worker, labels) in report.workers.iter().zip(&workers) {
        for (errno, count) in &worker.refused {
            sample(&mut page, "postern_frames_refused_total", &[labels, &label("errno", errno)], *count);
        }
    }

    let endpoints = report.endpoints.iter().map(|endpoint| {
        let labels = [label("endpoint", &endpoint.id), label("address", endpoint.address), label("vpc", &endpoint.vpc)];
        (labels.join(","), endpoint.traffic.values())
    });
    family(&mut page, EndpointTraffic::METRICS, endpoints);
    header(&mut page, &HANDOFF_SHARE);
    for (worker, report) in report.workers.iter().enumerate() {
        sample(&mut page, HANDOFF_SHARE.name, &[&label("worker", worker)], report.handoff_permille());
    }
    header(&mut page, &ENDPOINT_DROPS);
    for endpoint in &report.endpoints {
        let labels = [label("endpoint", &endpoint.id), label("address", endpoint.address), label("vpc", &endpoint.vpc)];
        for (reason, count) in &endpoint.drops {
            sample(&mut page, ENDPOINT_DROPS.name, &[&labels.join(","), &label("reason", reason)], *count);
        }
    }
    let targets = report.targets.iter().map(|target| {
        let labels = [label("target", target.target), label("group", &target.group), label("vpc", &target.vpc)];
        (labels.join(","), target.traffic.values())
    });
    family(&mut page, TargetTraffic::METRICS, targets);
    let groups = || report.target_groups.iter().map(|group| (label("group", &group.group), group));
    family(&mut page, GroupReport::METRICS, groups().map(|(labels, group)| (labels, group.health.values())));
    header(&mut page, &GROUP_TARGETS);
    for (labels, group) in groups() {
        for (state, count) in &group.states {
            sample(&mut page, GROUP_TARGETS.name, &[&labels, &label("state", state)], *count);
        }
    }
    header(&mut page, &GROUP_BLOCKED);
    for group in &report.security_groups {
        sample(&mut page, GROUP_BLOCKED.name, &[&label("security_group", &group.group)], group.blocked);
    }
    family(&mut page, ProbeReport::METRICS, std::iter::once((gateway.clone(), report.probes.values())));
    header(&mut page, &PORT_INFO);
    for port in &report.ports {
        sample(&mut page, PORT_INFO.name, &[&label("interface", &port.interface), &label("io", &port.io)], 1);
    }
    let ports = || report.ports.iter().map(|port| (label("interface", &port.interface), port));
    family(&mut page, ReceivedReport::METRICS, ports().map(|(labels, port)| (labels, port.received.values())));
    family(&mut page, SentReport::METRICS, ports().map(|(labels, port)| (labels, port.sent.values())));
    family(&mut page, NeighbourReport::METRICS, std::iter::once((gateway.clone(), report.neighbours.values())));
    let control = report.control.iter().map(|control| (gateway.clone(), control.values()));
    family(&mut page, ControlReport::METRICS, control);
    page
}

/// How much of what a worker received was another worker's.
const HANDOFF_SHARE: Metric = Metric {
    kind: Kind::Gauge,
    name: "postern_handoff_permille",
    labels: "",
    help: "Thousandths of the received frames that were handed to another worker.",
};

/// Targets of a group by what is known of their health.
const GROUP_TARGETS: Metric = Metric {
    kind: Kind::Gauge,
    name: "postern_target_group_targets",
    labels: "",
    help: "Targets by the state of their health.",
};

/// What a port's devices are.
const PORT_INFO: Metric = Metric {
    kind: Kind::Gauge,
    name: "postern_port_info",
    labels: "",
    help: "Always 1; the label `io` is the back end of the port's devices.",
};

/// What security groups kept out.
const GROUP_BLOCKED: Metric = Metric {
    kind: Kind::Counter,
    name: "postern_security_group_blocked_flows_total",
    labels: "",
    help: "First packets and echo requests that the security group did not let in (SecurityGroupBlockedFlowCount).",
};

/// Drops of an endpoint that were told apart by reason.
const ENDPOINT_DROPS: Metric = Metric {
    kind: Kind::Counter,
    name: "postern_endpoint_drops_total",
    labels: "",
    help: "Frames of the endpoint that were dropped, by reason, as far as there was room to tell the pairs apart.",
};

/// Samples of metrics that share their labels; metrics of one name stand together.
fn family(page: &mut String, metrics: &[Metric], rows: impl Iterator<Item = (String, Vec<u64>)>) {
    let rows: Vec<_> = rows.collect();
    let mut last = "";
    for (at, metric) in metrics.iter().enumerate() {
        if metric.name != last {
            header(page, metric);
            last = metric.name;
        }
        for (labels, values) in &rows {
            sample(page, metric.name, &[labels, metric.labels], values[at]);
        }
    }
}

fn header(page: &mut String, metric: &Metric) {
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# HELP {} {}\n# TYPE {} {kind}", metric.name, metric.help, metric.name);
}

fn sample(page: &mut String, name: &str, labels: &[&str], value: u64) {
    let labels: Vec<_> = labels.iter().filter(|labels| !labels.is_empty()).copied().collect();
    let _ = writeln!(page, "{name}{{{}}} {value}", labels.join(","));
}

fn label(name: &str, value: impl std::fmt::Display) -> String {
    let value = value.to_string().replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    format!("{name}=\"{value}\"")
}

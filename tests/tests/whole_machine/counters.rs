//! All counters, compared whole: those that a test does not name must not have moved.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use postern_dataplane::inspection::CountersReport;
use serde_json::Value;

use crate::bed::Bed;

/// Any value.
pub(crate) const ANY: RangeInclusive<u64> = 0..=u64::MAX;
/// Any value but zero.
pub(crate) const SOME: RangeInclusive<u64> = 1..=u64::MAX;

/// What moves when packets are forwarded and nothing else happens.
const TRAFFIC: &[&str] = &[
    "frames.received",
    "frames.forwarded",
    "frames.punted",
    "frames.flows",
    "frames.half_open",
    "frames.flows_new",
    "frames.flows_ended",
    "frames.bursts",
    "worker.steps",
    "worker.sleeps",
    "worker.generation",
    "worker.tables_longest",
    "endpoints.packets_forward",
    "endpoints.packets_reverse",
    "endpoints.bytes_forward",
    "endpoints.bytes_reverse",
    "endpoints.flows",
    "endpoints.flows_new",
    "targets.packets_forward",
    "targets.packets_reverse",
    "targets.bytes_forward",
    "targets.bytes_reverse",
    "targets.flows",
    "targets.flows_new",
    "received.delivered",
    "received.large",
    "sent.accepted",
    "sent.calls",
    // The kernel was busy; the frame went out a moment later.
    "sent.waits",
    "neighbours.answered",
    "neighbours.asked",
    "neighbours.announced",
];

/// How long bursts, held frames and published statistics may take to be still.
const QUIET: Duration = Duration::from_secs(5);

/// A counter that the test expects to move, and to where.
pub(crate) type Expected<'e> = (&'e str, RangeInclusive<u64>);

impl Bed {
    /// The gateway's counters when all is still, compared whole with what a test expects beside forwarded traffic: each
    /// counter named must be in its range, every other must be zero, every frame must be accounted for, and no host may
    /// have seen a wrong checksum.
    pub(crate) fn expect_counters(&self, expected: &[Expected<'_>]) -> CountersReport {
        let report = self.quiet_counters();
        let counters = totals(&report);
        let mut wrong = Vec::new();
        for (name, range) in expected {
            // An errno that never came is not listed.
            let none = name.starts_with("refused.").then_some(&0);
            match counters.get(*name).or(none) {
                None => wrong.push(format!("{name} is no counter")),
                Some(value) if !range.contains(value) => {
                    wrong.push(format!("{name} is {value}, not in {}..={}", range.start(), range.end()));
                }
                Some(_) => {}
            }
        }
        let named = |name: &str| TRAFFIC.contains(&name) || expected.iter().any(|(other, _)| *other == name);
        for (name, value) in counters.iter().filter(|(name, value)| **value != 0 && !named(name)) {
            wrong.push(format!("{name} is {value}, but should not have moved"));
        }
        wrong.extend(unbalanced(&report, &counters));
        for node in self.clients().iter().chain(self.targets().iter().map(postern_lab::Target::node)) {
            let statistics = node.namespace().statistics().unwrap_or_else(|error| panic!("{error}"));
            for name in ["Tcp.InCsumErrors", "Udp.InCsumErrors", "Icmp.InCsumErrors", "Ip.InHdrErrors"] {
                if statistics.counter(name) != 0 {
                    wrong.push(format!("{} counts {} {name}", node.name(), statistics.counter(name)));
                }
            }
        }
        assert!(wrong.is_empty(), "counters:\n  {}", wrong.join("\n  "));
        report
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> CountersReport {
        let counters = self.gateway().counters().unwrap_or_else(|error| panic!("{error}"));
        serde_json::from_value(counters).expect("the binary is of this version")
    }

    /// The counters when nothing moves any more.
    fn quiet_counters(&self) -> CountersReport {
        let deadline = Instant::now() + QUIET;
        let mut before = self.counters();
        loop {
            // Devices publish their statistics ten times a second.
            thread::sleep(Duration::from_millis(120));
            let now = self.counters();
            if Instant::now() > deadline {
                return now;
            }
            let same = now.total.frames == before.total.frames && now.ports == before.ports;
            if same && unbalanced(&now, &totals(&now)).is_empty() {
                return now;
            }
            before = now;
        }
    }
}

/// What must be equal at rest and is not.
fn unbalanced(report: &CountersReport, counters: &BTreeMap<String, u64>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, worker) in report.workers.iter().enumerate().filter(|(_, worker)| worker.imbalance != 0) {
        wrong.push(format!("worker {at} has an imbalance of {} frames", worker.imbalance));
    }
    let sum = |names: &[&str]| names.iter().map(|name| counters[*name]).sum::<u64>();
    for (left, right) in [
        (&["frames.received"][..], &["received.delivered"][..]),
        (&["frames.forwarded", "frames.answered", "frames.made"], &["sent.accepted"]),
        (&["frames.handed_out"], &["frames.handed_in"]),
        (&["frames.flows_new"], &["frames.flows", "frames.flows_ended"]),
    ] {
        if sum(left) != sum(right) {
            wrong.push(format!("{} is {}, but {} is {}", left.join(" + "), sum(left), right.join(" + "), sum(right)));
        }
    }
    let drops: u64 = report.total.drops.values().sum();
    if sum(&["endpoints.drops"]) > drops {
        wrong.push(format!("endpoints count more drops than the {drops} that there are"));
    }
    wrong
}

/// Every counter by its name, summed over workers, endpoints, targets and ports.
fn totals(report: &CountersReport) -> BTreeMap<String, u64> {
    flatten(&serde_json::to_value(report).expect("counters are JSON"))
}

fn flatten(report: &Value) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let mut add = |family: &str, values: &Value| {
        for (name, value) in values.as_object().into_iter().flatten() {
            *counters.entry(format!("{family}.{name}")).or_default() += value.as_u64().unwrap_or_default();
        }
    };
    let total = &report["total"];
    for family in ["frames", "drops", "refused", "worker"] {
        add(family, &total[family]);
    }
    for family in ["endpoints", "targets"] {
        report[family].as_array().into_iter().flatten().for_each(|one| add(family, &one["traffic"]));
    }
    for port in report["ports"].as_array().into_iter().flatten() {
        add("received", &port["received"]);
        add("sent", &port["sent"]);
    }
    add("neighbours", &report["neighbours"]);
    add("probes", &report["probes"]);
    counters
}

/// Names and values of what is not zero.
pub(crate) fn moved(report: &Value) -> Vec<String> {
    let counters = flatten(report).into_iter().filter(|(_, value)| *value != 0);
    counters.map(|(name, value)| format!("{name} {value}")).collect()
}

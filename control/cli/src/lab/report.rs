//! What people read.

use std::collections::BTreeSet;
use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use postern_dataplane::inspection::CountersReport;
use postern_dataplane::inspection::report::WorkerReport;
use postern_lab::Way;

use super::demo::Report;
use super::tenants::Tenants;

/// The demonstration's tables and verdict.
pub(super) fn demo(report: &Report) -> String {
    let mut text = String::new();
    let offloads = if report.offloads { "on" } else { "off" };
    let whose = if report.user_namespace { ", in a user namespace" } else { "" };
    let Report { workers, mtu, .. } = report;
    let workers = if *workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
    line(&mut text, &format!("\nGateway: {workers}, offloads {offloads}, MTU {mtu}{whose}\n"));
    line(&mut text, "Who answered whom");
    line(&mut text, &requests(report).to_string());
    if !report.bulk.is_empty() {
        line(&mut text, "\nBulk transfers, every byte checked");
        line(&mut text, &bulk(report).to_string());
    }
    if let Some(tenants) = &report.control {
        line(&mut text, "\nTenants");
        line(&mut text, &self::tenants(tenants).to_string());
        if !tenants.usage.is_empty() {
            line(&mut text, "\nUsage");
            line(&mut text, &usage(tenants).to_string());
        }
    }
    let Report { checksum_errors, retransmits, .. } = report;
    line(&mut text, "\nAt the hosts");
    line(&mut text, &format!("wrong checksums: {checksum_errors}, TCP segments sent again: {retransmits}"));
    if let Some(counters) = &report.counters {
        line(&mut text, "\nAt the gateway");
        line(&mut text, &gateway(counters).to_string());
    }
    line(&mut text, "");
    for problem in &report.problems {
        line(&mut text, &format!("PROBLEM: {problem}"));
    }
    let asked: usize = report.series.iter().map(|series| series.asked).sum();
    let answered: usize = report.series.iter().map(|series| series.answered).sum();
    let bytes: u64 = report.bulk.iter().map(|bulk| bulk.bytes).sum();
    let verdict = if report.passed { "PASSED" } else { "FAILED" };
    let sums = format!("{answered} of {asked} requests answered, {} MiB moved and checked", bytes >> 20);
    line(&mut text, &format!("{verdict}: {sums}, in {:.1} s; nothing is left behind.", report.seconds));
    text
}

/// The end of a process's log, for those who look for the reason.
pub(super) fn log(whose: &str, log: &str) -> String {
    const SHOWN: usize = 30;
    let lines: Vec<&str> = log.lines().collect();
    if lines.is_empty() {
        return String::new();
    }
    let last = &lines[lines.len().saturating_sub(SHOWN)..];
    format!("\nThe {whose}'s last words:\n{}\n", last.join("\n"))
}

/// Processes of a lab in the background: name, process id, condition, log.
pub(super) fn processes(rows: &[[String; 4]]) -> Table {
    let mut table = table(&["process", "pid", "condition", "log"], &[1]);
    for row in rows {
        table.add_row(row);
    }
    table
}

fn requests(report: &Report) -> Table {
    let targets: BTreeSet<&String> = report.series.iter().flat_map(|series| series.by_target.keys()).collect();
    let mut heads = vec!["consumer", "protocol", "asked", "answered"];
    heads.extend(targets.iter().map(|target| target.as_str()));
    heads.extend(["median µs", "p99 µs"]);
    let numbers: Vec<usize> = (2..heads.len()).collect();
    let mut table = table(&heads, &numbers);
    for series in &report.series {
        let mut row = vec![series.consumer.clone(), series.protocol.to_owned()];
        row.extend([series.asked.to_string(), series.answered.to_string()]);
        row.extend(targets.iter().map(|target| series.by_target.get(*target).unwrap_or(&0).to_string()));
        row.extend([format!("{:.0}", series.median_microseconds), format!("{:.0}", series.p99_microseconds)]);
        table.add_row(row);
    }
    table
}

fn bulk(report: &Report) -> Table {
    let mut table = table(&["consumer", "way", "MiB", "seconds", "Gbit/s"], &[2, 3, 4]);
    for bulk in &report.bulk {
        let way = match bulk.way {
            Way::Upload => "to the target",
            Way::Download => "from the target",
        };
        let numbers = [
            (bulk.bytes >> 20).to_string(),
            format!("{:.2}", bulk.seconds),
            format!("{:.2}", bulk.gigabits_per_second),
        ];
        table.add_row([bulk.consumer.clone(), way.to_owned()].into_iter().chain(numbers));
    }
    table
}

/// What happened between operator, provider and consumers, in the order of time.
fn tenants(tenants: &Tenants) -> Table {
    let mut table = table(&["what happened", "what was seen"], &[]);
    let mut row = |what: &str, seen: String| {
        table.add_row([what.to_owned(), seen]);
    };
    row("two consumers ask for an endpoint", tenants.before.join(", "));
    let accepted = tenants.accepted_milliseconds;
    row("the provider accepts both", format!("the gateway forwards for both {accepted:.0} ms later"));
    if tenants.target_left_seconds > 0.0 {
        let left = tenants.target_left_seconds;
        row("a target dies", format!("{left:.1} s later no new flow goes to it"));
        let answered: usize = tenants.without_target.iter().map(|series| series.answered).sum();
        let asked: usize = tenants.without_target.iter().map(|series| series.asked).sum();
        row("both go on asking", format!("{answered} of {asked} requests answered by the other targets"));
    }
    if tenants.others_answered > 0 {
        row("the provider rejects a consumer", format!("its live flow ends {:.0} ms later", tenants.cut_milliseconds));
        let Tenants { others_answered, others_lost, .. } = tenants;
        row("the other's flow goes on", format!("{others_answered} datagrams answered, {others_lost} lost"));
    }
    table
}

fn usage(tenants: &Tenants) -> Table {
    let heads = ["consumer", "endpoint", "bytes in usage", "bytes at the gateway", "payload at the client"];
    let mut table = table(&heads, &[2, 3, 4]);
    for usage in &tenants.usage {
        let numbers = [usage.bytes, usage.gateway_bytes, usage.payload_bytes].map(|bytes| bytes.to_string());
        table.add_row([usage.consumer.clone(), usage.endpoint.clone()].into_iter().chain(numbers));
    }
    table
}

/// What became of the frames, and every drop by its reason.
fn gateway(counters: &CountersReport) -> Table {
    let mut table = table(&["frames", "count"], &[1]);
    let WorkerReport { frames, drops, .. } = &counters.total;
    let mut row = |name: &str, count: u64| {
        table.add_row([name.to_owned(), count.to_string()]);
    };
    row("received", frames.received);
    row("forwarded", frames.forwarded);
    row("answered", frames.answered);
    row("punted (ARP)", frames.punted);
    row("dropped", drops.values().sum());
    for (reason, count) in drops.iter().filter(|(_, count)| **count > 0) {
        row(&format!("  {reason}"), *count);
    }
    row("held for a neighbour", frames.held);
    row("of its own making", frames.made);
    row("handed between workers", frames.handed_out);
    row("dropped by the kernel before", counters.ports.iter().map(|port| port.received.kernel_drops).sum());
    table
}

fn table(heads: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(heads);
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn line(text: &mut String, words: &str) {
    writeln!(text, "{words}").expect("a String takes everything that is written");
}

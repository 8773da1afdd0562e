//! `postern counters`: everything that a running gateway counts.

use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use postern_dataplane::inspection::client::ask;
use postern_dataplane::inspection::report::{
    ControlReport, EndpointTraffic, FrameReport, GroupReport, LoopReport, Metric, NeighbourReport, ProbeReport,
    ReceivedReport, SentReport, TargetTraffic, WorkerReport,
};
use postern_dataplane::inspection::{Answer, CountersReport, Request};

use crate::gateway_socket::GatewaySocket;

/// `postern counters …`
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    gateway: GatewaySocket,
    /// Print JSON, zeros included
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match counters(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn counters(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut report = None;
    ask(&arguments.gateway.path()?, &Request::Counters, |answer| {
        if let Answer::Counters(counters) = answer {
            report = Some(counters);
        }
        true
    })?;
    let report = report.ok_or("the gateway answered something else")?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// Tables of what is not zero.
pub(crate) fn print(report: &CountersReport) {
    println!(
        "Gateway {}, generation {}, up for {} s, imbalance {}, handoff share {}.{} %",
        report.gateway,
        report.generation,
        report.uptime_seconds,
        report.total.imbalance,
        report.total.handoff_permille() / 10,
        report.total.handoff_permille() % 10
    );
    workers(report);
    let endpoints = report.endpoints.iter().map(|endpoint| {
        (format!("{} {} ({})", endpoint.id, endpoint.address, endpoint.vpc), endpoint.traffic.values())
    });
    by_row("endpoint", EndpointTraffic::METRICS, "postern_endpoint_", endpoints);
    let targets = report
        .targets
        .iter()
        .map(|target| (format!("{} {} ({})", target.group, target.target, target.vpc), target.traffic.values()));
    by_row("target", TargetTraffic::METRICS, "postern_target_", targets);
    let groups = report.target_groups.iter().map(|group| (group.group.clone(), group.health.values()));
    by_row("target group", GroupReport::METRICS, "postern_target_group_", groups);
    let probes = std::iter::once((report.gateway.clone(), report.probes.values()));
    by_row("health checks", ProbeReport::METRICS, "postern_", probes);
    let ports = || report.ports.iter().map(|port| (format!("{} ({})", port.interface, port.io), port));
    let received = ports().map(|(label, port)| (label, port.received.values()));
    by_row("port, received", ReceivedReport::METRICS, "postern_device_", received);
    let sent = ports().map(|(label, port)| (label, port.sent.values()));
    by_row("port, sent", SentReport::METRICS, "postern_device_", sent);
    let neighbours = std::iter::once((report.gateway.clone(), report.neighbours.values()));
    by_row("neighbours", NeighbourReport::METRICS, "postern_", neighbours);
    let control = report.control.iter().map(|control| (report.gateway.clone(), control.values()));
    by_row("control", ControlReport::METRICS, "postern_control_", control);
}

/// One row for each counter, one column for each worker.
fn workers(report: &CountersReport) {
    let mut columns = vec![("total".to_owned(), &report.total)];
    if report.workers.len() > 1 {
        columns.extend(report.workers.iter().enumerate().map(|(at, worker)| (format!("worker {at}"), worker)));
    }
    let mut table = table();
    table.set_header(std::iter::once("frames").chain(columns.iter().map(|column| column.0.as_str())));
    let mut row = |name: &str, value: &dyn Fn(&WorkerReport) -> u64| {
        let values: Vec<_> = columns.iter().map(|column| value(column.1)).collect();
        if values.iter().any(|value| *value > 0) {
            table.add_row(std::iter::once(name.to_owned()).chain(values.iter().map(u64::to_string)));
        }
    };
    for (at, metric) in FrameReport::METRICS.iter().enumerate() {
        row(&name(metric, "postern_"), &|worker| worker.frames.values()[at]);
    }
    for reason in report.total.drops.keys() {
        row(&format!("dropped: {reason}"), &|worker| worker.drops.get(reason).copied().unwrap_or_default());
    }
    for errno in report.total.refused.keys() {
        row(&format!("refused: {errno}"), &|worker| worker.refused.get(errno).copied().unwrap_or_default());
    }
    for (at, metric) in LoopReport::METRICS.iter().enumerate() {
        row(&name(metric, "postern_"), &|worker| worker.worker.values()[at]);
    }
    align(&mut table);
    println!("\n{table}");
}

/// One row for each thing, one column for each counter that is not zero for all.
fn by_row(title: &str, metrics: &[Metric], prefix: &str, rows: impl Iterator<Item = (String, Vec<u64>)>) {
    let rows: Vec<_> = rows.collect();
    let shown: Vec<_> = (0..metrics.len()).filter(|at| rows.iter().any(|row| row.1[*at] > 0)).collect();
    if shown.is_empty() {
        return;
    }
    let mut table = table();
    table.set_header(std::iter::once(title.to_owned()).chain(shown.iter().map(|at| name(&metrics[*at], prefix))));
    for (label, values) in rows {
        table.add_row(std::iter::once(label).chain(shown.iter().map(|at| values[*at].to_string())));
    }
    align(&mut table);
    println!("\n{table}");
}

/// What a metric is called in a table.
fn name(metric: &Metric, prefix: &str) -> String {
    let short = metric.name.trim_start_matches(prefix).trim_end_matches("_total").replace('_', " ");
    match metric.labels.split_once('=') {
        Some((_, value)) => format!("{short} {}", value.trim_matches('"')),
        None => short,
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table
}

/// Numbers stand at the right.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

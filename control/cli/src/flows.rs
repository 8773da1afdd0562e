//! `postern flows`: the live flows of a running gateway.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use postern_dataplane::inspection::client::ask;
use postern_dataplane::inspection::{Answer, FLOWS, FlowFilter, FlowReport, Request};

use crate::gateway_socket::GatewaySocket;

/// `postern flows …`
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    gateway: GatewaySocket,
    /// Only flows of this endpoint
    #[arg(long, value_name = "ID")]
    endpoint: Option<String>,
    /// Only flows of this client
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// Most flows to list
    #[arg(long, default_value_t = FLOWS)]
    limit: u64,
    /// Print JSON: an array of flows
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match flows(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn flows(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let filter =
        FlowFilter { endpoint: arguments.endpoint.clone(), client: arguments.client, limit: Some(arguments.limit) };
    let (mut flows, mut complete) = (Vec::new(), false);
    ask(&arguments.gateway.path()?, &Request::Flows(filter), |answer| {
        match answer {
            Answer::Flow(flow) => flows.push(flow),
            Answer::End(end) => complete = end.complete,
            _ => {}
        }
        true
    })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&flows)?);
    } else {
        println!("{}", table(&flows));
        println!("{} flows", flows.len());
    }
    if !complete {
        eprintln!("there are more flows; raise --limit or filter by --endpoint or --client");
    }
    Ok(())
}

fn table(flows: &[FlowReport]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "",
        "VPC",
        "client",
        "endpoint",
        "SNAT",
        "target",
        "state",
        "age",
        "idle",
        "packets →",
        "bytes →",
        "packets ←",
        "bytes ←",
        "worker",
    ]);
    for flow in flows {
        table.add_row([
            flow.protocol.clone(),
            flow.vpc.clone(),
            flow.client.to_string(),
            flow.service.to_string(),
            flow.snat.to_string(),
            flow.target.to_string(),
            flow.state.clone(),
            format!("{} s", flow.age_seconds),
            format!("{} s", flow.idle_seconds),
            flow.packets_forward.to_string(),
            flow.bytes_forward.to_string(),
            flow.packets_reverse.to_string(),
            flow.bytes_reverse.to_string(),
            flow.worker.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

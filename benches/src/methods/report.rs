//! What a method found, as text and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Options, Place, connections, latency, ndr, reconf, tcp, throughput, traffic};
use crate::nat::processor::{GATEWAY_CPU, LOAD_CPU, Machine, cores};

/// A report of one method.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The method: the subcommand's name.
    pub method: &'static str,
    /// The command line.
    pub command: Vec<String>,
    /// What it was measured on.
    pub machine: Machine,
    /// Whether it was to show that it works only.
    pub quick: bool,
    /// What a reader must know: where the device was, which generator was used, what was disturbed.
    pub notes: Vec<String>,
    /// What was found.
    pub results: Results,
    /// Whether everything is as it must be on any machine.
    pub passed: bool,
}

/// Results by method.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Results {
    /// RFC 2544.
    Throughput(throughput::Found),
    /// MLRsearch.
    Ndr(ndr::Found),
    /// RFC 9693.
    Connections(connections::Found),
    /// By load.
    Latency(latency::Found),
    /// By event.
    Reconf(reconf::Found),
    /// The generator by itself.
    Traffic(traffic::Found),
    /// Real stacks.
    Tcp(tcp::Found),
}

impl Report {
    /// A report of what was found.
    #[must_use]
    pub(super) fn new(
        method: &'static str,
        options: &Options,
        results: Results,
        passed: bool,
        notes: Vec<String>,
    ) -> Self {
        let notes = placement(options).into_iter().chain(notes).collect();
        let command = std::env::args().collect();
        Self { method, command, machine: Machine::here(), quick: options.quick, notes, results, passed }
    }

    /// As a JSON document.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// As tables for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let machine = &self.machine;
        let kind = if machine.virtual_machine { "virtual machine" } else { "physical machine" };
        let mut text = format!("{}, {} cores, {kind}, Linux {}\n", machine.cpu, machine.cores, machine.kernel);
        if self.quick {
            text += "note: quick: this shows that it works, not how fast it is\n";
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text.push('\n');
        match &self.results {
            Results::Throughput(found) => found.write(&mut text),
            Results::Ndr(found) => found.write(&mut text),
            Results::Connections(found) => found.write(&mut text),
            Results::Latency(found) => found.write(&mut text),
            Results::Reconf(found) => found.write(&mut text),
            Results::Traffic(found) => found.write(&mut text),
            Results::Tcp(found) => found.write(&mut text),
        }
        text
    }
}

fn placement(options: &Options) -> Vec<String> {
    let Options { place, six, transport, flows, workers, io, .. } = options;
    let io = io.name();
    let both = if options.both { "; what comes out is sent back, and rates are those of each direction" } else { "" };
    let family = if *six { "IPv6" } else { "IPv4" };
    let place = match place {
        Place::Lab(_) if cores() > 1 => format!(
            "Postern in network namespaces on veth, io {io}, {workers} workers from CPU {GATEWAY_CPU} on; the generator on \
             CPU {LOAD_CPU}"
        ),
        Place::Lab(_) => {
            format!(
                "Postern in network namespaces on veth, io {io}; one CPU only, which generator and {workers} workers share"
            )
        }
        Place::Ports(ports) => format!("from {} to {}, {} to {}", ports.tx, ports.rx, ports.destination, ports.target),
    };
    vec![
        place,
        format!(
            "{transport:?} over {family}, {flows} flows with pseudorandom addresses and ports; sizes include the FCS{both}"
        ),
        "test frames are sent and received through packet sockets by one thread, which also takes the times".to_owned(),
    ]
}

//! Looking into a running gateway: one line of JSON asks over a Unix socket, lines of JSON answer. The same reports make
//! the Prometheus page.
//!
//! Requests are `{"command": "status"}`, `{"command": "counters"}` and `{"command": "flows"}` with the optional keys
//! `endpoint` (id), `client` (address) and `limit`. Status and counters are answered by one line. Flows are answered by
//! one line each, then `{"end": …}`. What cannot be answered is `{"error": "…"}`.

pub mod client;
pub mod collect;
pub mod flows;
pub mod prometheus;
pub mod report;
pub mod server;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use report::{CountersReport, FlowReport, StatusReport};

/// Flows in one listing, unless the request says otherwise.
pub const FLOWS: u64 = 1000;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Generation, ports, workers, neighbours.
    Status,
    /// Every counter.
    Counters,
    /// Live flows.
    Flows(FlowFilter),
}

/// Which flows are asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowFilter {
    /// Of this endpoint only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Of this client only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// Most flows; default [`FLOWS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// One line of an answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(StatusReport),
    /// To [`Request::Counters`].
    Counters(Box<CountersReport>),
    /// To [`Request::Flows`], for each flow.
    Flow(FlowReport),
    /// Behind the last flow.
    End(FlowsEnd),
    /// Why there is no answer.
    Error(String),
}

/// How a listing ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowsEnd {
    /// Flows that were listed.
    pub flows: u64,
    /// Whether there are no more.
    pub complete: bool,
}

#[cfg(test)]
mod tests;

//! Joins the rooms: frames in, verdicts and frames out. Pure: no clock, no randomness, no threads, no I/O, no
//! allocation per packet.
#![forbid(unsafe_code)]

mod answers;
pub mod counters;
pub mod drop_pairs;
mod established;
mod expiry;
mod first_packet;
pub mod forwarder;
mod fragments;
mod guarded;
mod guards;
mod ipv6;
mod lifecycle;
mod limiter;
pub mod limits;
mod nat64;
mod next_hops;
pub mod outbox;
mod pieces;
mod proxy_header;
mod stickiness;
#[cfg(test)]
mod tests;
pub mod verdict;
mod waiting;
mod ways;

pub use counters::WorkerCounters;
pub use forwarder::{BURST, FlowView, Forwarder, ForwarderConfig, ForwarderError, NeighbourEvent, PortInfo};
pub use limits::SharedState;
pub use outbox::{NeighbourRequest, Origin, Outbox, PeerMessage};
pub use verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};

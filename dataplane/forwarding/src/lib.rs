//! Joins the rooms: frames in, verdicts and frames out. Pure: no clock, no randomness, no threads, no I/O, no
//! allocation per packet.
#![forbid(unsafe_code)]

pub mod counters;
pub mod forwarder;
pub mod outbox;
pub mod verdict;

pub use counters::WorkerCounters;
pub use forwarder::{BURST, FlowView, Forwarder, ForwarderConfig, ForwarderError, NeighbourEvent, PortInfo};
pub use outbox::{NeighbourRequest, Origin, Outbox, PeerMessage};
pub use verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};

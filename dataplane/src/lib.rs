//! The role that moves packets: startup, workers, supervisor, neighbours, inspection.
#![forbid(unsafe_code)]

pub mod handoff;
pub mod link;
pub mod neighbours;
pub mod polling;
pub mod wake;
pub mod worker;

//! The role that moves packets: startup, workers, supervisor, neighbours, inspection.
#![forbid(unsafe_code)]

pub mod neighbours;

//! The role that moves packets: startup, workers, supervisor, neighbours, inspection.
#![forbid(unsafe_code)]

pub use postern_tables::Checked;
pub use postern_tables::snapshot::Port;

pub mod back_end;
pub mod configuration;
pub mod control_link;
pub mod control_side;
pub mod handoff;
pub mod health;
pub mod inspection;
pub mod link;
pub mod neighbours;
pub mod polling;
pub mod ports;
pub mod replay;
pub mod run_directory;
pub mod startup;
pub mod steered_port;
pub mod supervisor;
#[cfg(test)]
mod test_bed;
pub mod wake;
pub mod worker;

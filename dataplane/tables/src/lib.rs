//! The contract between what was declared and the workers: the immutable [`Snapshot`], and the one library that checks
//! what was declared (TOML file today, control later) and compiles it.
#![forbid(unsafe_code)]

pub mod snapshot;

pub use snapshot::Snapshot;

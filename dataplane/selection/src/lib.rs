//! Which target: a documented keyed hash of the connection, and Maglev tables with weights.
#![forbid(unsafe_code)]

pub mod hash;
pub mod maglev;

pub use hash::SelectionHash;
pub use maglev::{MaglevError, MaglevTable};

//! Time that is passed in, and counters that one thread writes and any thread reads.
#![forbid(unsafe_code)]

pub mod counter;
pub mod time;

pub use counter::Counter;
pub use time::{Clock, Now};

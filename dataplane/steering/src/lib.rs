//! `owner(frame) → worker`: one meaning, computed here in Rust and by BPF instructions from the same description.
#![forbid(unsafe_code)]

pub mod ownership;

pub use ownership::{BLOCK_PORTS, BLOCKS, BUCKETS, Ownership};

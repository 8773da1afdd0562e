//! How to rewrite: plans, SNAT ports, ICMP quotes, MSS, segmentation.
#![forbid(unsafe_code)]

pub mod icmp;
pub mod mss;
pub mod plan;
pub mod ports;
pub mod rewrite;
pub mod segmentation;

pub use plan::RewritePlan;
pub use ports::{LaneKey, Lease, Need, PortAllocator, PortCapacity, Refusal};

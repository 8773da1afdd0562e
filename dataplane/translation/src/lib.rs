//! How to rewrite: plans, SNAT ports, ICMP quotes, MSS, fragments, segmentation.
#![forbid(unsafe_code)]

pub mod crc32c;
pub mod fragments;
pub mod icmp;
pub mod icmpv6;
pub mod insertion;
pub mod ipv6;
pub mod mss;
pub mod nat64;
pub mod plan;
pub mod ports;
pub mod proxy_header;
pub mod rewrite;
pub mod segmentation;

pub use ipv6::WidePlan;
pub use plan::RewritePlan;
pub use ports::{LaneKey, Lease, Need, PortAllocator, PortCapacity, Refusal};

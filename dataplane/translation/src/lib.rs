//! How to rewrite: plans, SNAT ports, ICMP quotes, MSS, segmentation.
#![forbid(unsafe_code)]

pub mod plan;

pub use plan::RewritePlan;

//! Memory of connections: flow records in a region of fixed size, the index that finds them by either key, the timer
//! wheel that ends them, and the TCP tracker.
//!
//! A region is one block of memory that the caller lends: header, index buckets, wheel slots, records, addresses of flows
//! with an IPv6 side. Links are indices, never pointers, so that a copied or adopted region opens with the same flows.
//! Nothing grows or rehashes.
#![forbid(unsafe_code)]

pub mod half_open;
pub mod index;
pub mod insertions;
pub mod record;
pub mod table;
pub mod tcp;
pub mod wheel;
pub mod wide;

pub use half_open::HalfOpen;
pub use insertions::{Insertion, InsertionTable};
pub use record::{FlowRecord, NONE};
pub use table::{AddressWords, FlowTable, Found, InsertError, RegionError};
pub use tcp::State;
pub use wide::WideAddresses;

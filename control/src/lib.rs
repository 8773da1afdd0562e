//! The role that decides: it keeps what providers and consumers declare, places addresses on gateways, compiles what each
//! gateway must know, and pushes it. It never touches a packet; losing it changes nothing for traffic.
#![forbid(unsafe_code)]

pub mod api;
pub mod catalog;
pub mod compile;
pub mod metering;
pub mod placement;
pub mod push;
pub mod server;
pub mod settings;
pub mod store;
pub mod tls;

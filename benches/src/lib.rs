//! Benches of Postern: the library of `postern bench`, and the fixtures of the in-memory benches.
#![forbid(unsafe_code)]

pub mod bed;
pub mod compare;
pub mod control;
pub mod methods;
pub mod nat;
pub mod packet;
pub mod path;
pub mod report;
pub mod search;
pub mod traffic;

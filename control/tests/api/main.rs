//! The API through real sockets: who may do what, what goes wrong, and what clients cannot do to the process.

mod acceptance;
mod bed;
mod client;
mod errors;
mod objects;
mod slow;
mod start;
mod tenants;
mod transport;
mod usage;
mod waiting;

//! The forwarder with whole frames: each test is a sentence of what it must do.

mod balancing;
mod bed;
mod budgets;
mod connections;
mod errors;
mod fragments;
mod fragments6;
mod half_open;
mod ipv6;
mod nat64;
mod noise;
mod ports;
mod proxy_header;
mod security_groups;
mod tcp_life;

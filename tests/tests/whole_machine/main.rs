//! The product as a whole: the real binary, real namespaces, veth pairs and TCP stacks. Each test makes a network of its
//! own, is bounded in time, and at its end compares every counter of the gateway.
//!
//! They need root (namespaces, packet sockets, BPF) and say so where they are skipped.

mod balancing;
mod bed;
mod binary;
mod conformance;
mod control;
mod counters;
mod drain;
mod edges;
mod failures;
mod fragments;
mod frames;
mod health;
mod host;
mod inspection;
mod ipv6;
mod life;
mod matrix;
mod noise;
mod ports;
mod proxy_protocol;
mod reload;
mod sizes;
mod tenants;
mod traffic;
mod turns;
mod wiring;

//! Memory of connections: flow table, TCP tracker, timer wheel.

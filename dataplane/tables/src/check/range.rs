//! What numbers may be, first and last: the same for a gateway's file, and for control, which must take nothing that a gateway
//! would refuse.

/// Flows and SNAT ports of an endpoint.
pub const FLOWS: (i64, i64) = (1, 1 << 24);
/// New flows of an endpoint in a second.
pub const NEW_FLOWS: (i64, i64) = (1, 1_000_000);
/// Bytes of an endpoint in a second.
pub const BANDWIDTH: (i64, i64) = (10_000, 100_000_000_000);
/// How long a client stays with its target, in seconds.
pub const STICKY_SECONDS: (i64, i64) = (1, 604_800);

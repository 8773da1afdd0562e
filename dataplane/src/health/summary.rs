//! What the gateway sees of its target groups, and what its probes counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the gateway sees of one target group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GroupHealth {
    /// Its name.
    pub target_group: String,
    /// Targets that answer.
    pub healthy: u64,
    /// Targets that do not, draining ones included.
    pub unhealthy: u64,
    /// Targets by the name of their state; states that no target has are left out.
    pub targets: BTreeMap<String, u64>,
    /// No target is known to be healthy, so new flows go to all.
    pub fails_open: bool,
    /// Flows that began while that was so.
    pub unhealthy_routing_flows: u64,
}

/// What the prober counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProbeCounters {
    /// Probes that passed.
    pub passed: u64,
    /// Probes that failed.
    pub failed: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets of targets that belong to a probe.
    pub received: u64,
    /// Packets to the ports of probes that belong to none, or whose checksum is wrong.
    pub stray: u64,
    /// Packets lost because a ring was full.
    pub lost: u64,
    /// Probes that began late because too many were on their way.
    pub late: u64,
}

//! What this build can enforce beyond what every gateway can. Control refuses what a gateway does not name here, instead of
//! storing it as if it held. A feature enters the list in the change that makes gateways enforce it.

/// The features, by the names that control knows.
pub const CAPABILITIES: &[&str] = &[
    "budgets",
    "health-checks",
    "ipv6",
    "port-mapping",
    "proxy-protocol",
    "reset-on-expiry",
    "security-groups",
    "stickiness",
    "zones",
];

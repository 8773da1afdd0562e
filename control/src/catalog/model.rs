//! The objects of the catalog as people and programs see them: the bodies of the API, of `postern apply` files, and of the
//! store are these types.
//!
//! An object is its metadata, a `spec` that its owner writes, and a `status` that control writes. References in a spec are
//! the id of any object, or the name of one of the owner's own; control stores and shows ids. Unknown fields are refused.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Who calls: an operator or a tenant.
    Principal,
    /// A gateway host.
    Gateway,
    /// A tenant's network.
    Vpc,
    /// How a gateway reaches a VPC.
    Attachment,
    /// Addresses that targets see as the source.
    SnatPool,
    /// Targets with a health check.
    TargetGroup,
    /// Listeners.
    LoadBalancer,
    /// An endpoint service.
    Service,
    /// An interface endpoint.
    Endpoint,
    /// Rules of who may connect.
    SecurityGroup,
}

impl Kind {
    /// Every kind, such that each refers only to kinds before it.
    pub const ALL: [Self; 10] = [
        Self::Principal,
        Self::Gateway,
        Self::Vpc,
        Self::Attachment,
        Self::SnatPool,
        Self::SecurityGroup,
        Self::TargetGroup,
        Self::LoadBalancer,
        Self::Service,
        Self::Endpoint,
    ];

    /// What its ids begin with; 17 hexadecimal digits follow.
    #[must_use]
    pub const fn id_prefix(self) -> &'static str {
        match self {
            Self::Principal => "pr-",
            Self::Gateway => "gw-",
            Self::Vpc => "vpc-",
            Self::Attachment => "att-",
            Self::SnatPool => "snat-",
            Self::TargetGroup => "tg-",
            Self::LoadBalancer => "lb-",
            Self::Service => "vpce-svc-",
            Self::Endpoint => "vpce-",
            Self::SecurityGroup => "sg-",
        }
    }

    /// Its name in paths of the API.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Principal => "principals",
            Self::Gateway => "gateways",
            Self::Vpc => "vpcs",
            Self::Attachment => "attachments",
            Self::SnatPool => "snat-pools",
            Self::TargetGroup => "target-groups",
            Self::LoadBalancer => "load-balancers",
            Self::Service => "services",
            Self::Endpoint => "endpoints",
            Self::SecurityGroup => "security-groups",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Principal => "principal",
            Self::Gateway => "gateway",
            Self::Vpc => "vpc",
            Self::Attachment => "attachment",
            Self::SnatPool => "snat-pool",
            Self::TargetGroup => "target-group",
            Self::LoadBalancer => "load-balancer",
            Self::Service => "service",
            Self::Endpoint => "endpoint",
            Self::SecurityGroup => "security-group",
        })
    }
}

/// What every object has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Metadata {
    /// Given at creation, never given again: [`Kind::id_prefix`] and 17 hexadecimal digits.
    pub id: String,
    /// 1…128 of a-z, 0-9, `-`, `.`; unique among the owner's objects of this kind; never changes.
    pub name: String,
    /// Name of the principal that it belongs to.
    pub owner: String,
    /// Counts changes of the spec and tags, from 1; what a conditional change is compared with.
    pub version: u64,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    /// When its spec or tags changed last, in milliseconds since 1970.
    pub updated: u64,
    /// Up to 50 pairs for the owner's own use; keys 1…128 characters, values up to 256.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// An object: metadata, what its owner wants, and what is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object<Spec, Status = NoStatus> {
    /// Identity and history.
    #[serde(flatten)]
    pub metadata: Metadata,
    /// What the owner wants.
    pub spec: Spec,
    /// What is.
    pub status: Status,
}

/// The status of kinds of which there is nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NoStatus {}

/// What a principal may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees and changes everything; alone makes principals, gateways and attachments.
    Operator,
    /// Sees and changes its own.
    #[default]
    Tenant,
}

/// A principal. Its credentials are not part of it: tokens are made by a call of their own and stored as digests; the
/// common name of a client certificate is a principal's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrincipalSpec {
    /// What it may do.
    pub role: Role,
}

/// A gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySpec {
    /// Availability zone of the host.
    pub zone: Option<String>,
    /// Whether its addresses are to move to other gateways.
    pub drained: bool,
}

/// What is known of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GatewayStatus {
    /// Whether its stream is open.
    pub connected: bool,
    /// When it was heard of last, in milliseconds since 1970; 0: never.
    pub last_seen: u64,
    /// Version of its program.
    pub software: String,
    /// What it can enforce, see [`crate::catalog::model::feature`].
    pub capabilities: Vec<String>,
    /// Generation of what it is to apply.
    pub desired_generation: u64,
    /// Generation that it has applied.
    pub applied_generation: u64,
    /// Why it refused the last one, if it did.
    pub refused: Option<String>,
    /// Live flows.
    pub flows: u64,
    /// Ports of SNAT pools in use.
    pub ports_used: u64,
    /// Frames dropped since it started.
    pub drops: u64,
}

/// A VPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VpcSpec {
    /// Address ranges from which endpoint addresses are chosen.
    pub prefixes: Vec<String>,
}

/// An attachment; for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttachmentSpec {
    /// The gateway.
    pub gateway: String,
    /// The VPC.
    pub vpc: String,
    /// Linux interface name of the gateway's port.
    pub port: String,
    /// 802.1Q VLAN identifier, 1…4094; `None`: untagged.
    pub vlan: Option<u16>,
    /// On-link prefixes.
    pub prefixes: Vec<String>,
    /// Largest IP datagram that may be sent, 576…65535 bytes.
    pub mtu: Option<u16>,
    /// How replies go back to consumers: `route` or `last-hop`.
    #[serde(rename = "return")]
    pub return_path: ReturnPath,
    /// A MAC address of its own.
    pub mac: Option<String>,
    /// What lies behind routers.
    pub routes: Vec<RouteSpec>,
}

/// How replies go back to consumers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReturnPath {
    /// By the attachment's routes.
    #[default]
    Route,
    /// To the MAC address from which the flow's first packet came.
    LastHop,
}

/// A route of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteSpec {
    /// Prefix of the destinations.
    pub destination: String,
    /// The router; `None`: destinations are neighbours themselves.
    #[schema(value_type = Option<String>)]
    pub via: Option<IpAddr>,
}

/// An SNAT pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SnatPoolSpec {
    /// The provider's VPC.
    pub vpc: String,
    /// Its addresses, within an attachment's on-link prefixes.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// First and last port of each address, within 1024…65535, as `1024-65535`.
    pub ports: Option<String>,
    /// How long a freed port rests, 0…240 seconds (60).
    pub rest_seconds: Option<u16>,
    /// Those of `addresses` that get no new flows; live ones go on. Needs [`feature::BUDGETS`].
    #[schema(value_type = Vec<String>)]
    pub draining: Vec<IpAddr>,
    /// What a client is told whose flow cannot be opened for want of ports, or because of a limit of its endpoint. Other than
    /// `drop` it needs [`feature::BUDGETS`].
    pub exhausted: Exhausted,
    /// Addresses that a given gateway holds; the others are placed by hash.
    #[schema(value_type = BTreeMap<String, String>)]
    pub pinned: BTreeMap<IpAddr, String>,
}

/// What a client is told whose flow cannot be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Exhausted {
    /// Nothing.
    #[default]
    Drop,
    /// A RST, for TCP.
    Reset,
    /// ICMP destination unreachable.
    Unreachable,
}

/// Which gateway holds each address of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SnatPoolStatus {
    /// Gateway ids by address; none while no gateway can hold it.
    #[schema(value_type = BTreeMap<String, String>)]
    pub holders: BTreeMap<IpAddr, String>,
}

/// Protocol of a listener or target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A target group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TargetGroupSpec {
    /// The provider's VPC.
    pub vpc: String,
    /// The pool that the targets see, of the same VPC.
    pub snat_pool: String,
    /// Slots of the selection table, 16381 or 65537; the same for the group's life.
    pub slots: Option<u32>,
    /// How targets are probed; `None`: they are not, and all are taken for healthy.
    pub health_check: Option<HealthCheckSpec>,
    /// Flows of a target that became unhealthy: `None`: reset at once; else they may go on for so long, 0…360000 seconds.
    pub unhealthy_drain_seconds: Option<u32>,
    /// How long a deregistered target is `draining`, 0…3600 seconds (300).
    pub deregistration_delay_seconds: Option<u16>,
    /// Whether its flows end after that (not by default).
    pub deregistration_ends_flows: bool,
    /// The PROXY protocol header, version 2, that tells targets who is calling; TCP only. Other than `off` it needs
    /// [`feature::PROXY_PROTOCOL`].
    pub proxy_protocol: ProxyProtocol,
    /// How long a client's new flows go to the target of its last one, 1…604800 seconds after that; `None`: each flow is sent
    /// by itself. Needs [`feature::STICKINESS`].
    pub sticky_seconds: Option<u32>,
    /// The targets.
    pub targets: Vec<TargetSpec>,
}

/// The PROXY protocol header that targets get in front of each TCP connection's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// None.
    #[default]
    Off,
    /// With AWS' TLVs: CRC32C, the endpoint's id, padding.
    Aws,
    /// With Google's TLV: the connection id.
    Google,
    /// With Azure's TLV: the link id.
    Azure,
}

impl ProxyProtocol {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Aws => "aws",
            Self::Google => "google",
            Self::Azure => "azure",
        }
    }
}

/// A target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// Address in the provider's VPC.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Port, 1…65535.
    pub port: u16,
    /// Share of the group's new flows, 0…999 (1); 0: no new flows.
    #[serde(default = "one")]
    pub weight: u16,
    /// Port of the listener, 1…65535, whose flows all go to this target, and to no other; either all targets of a group have
    /// one or none. Needs [`feature::PORT_MAPPING`].
    #[serde(default)]
    pub mapped_port: Option<u16>,
    /// Availability zone; needs [`feature::ZONES`].
    #[serde(default)]
    pub zone: Option<String>,
}

const fn one() -> u16 {
    1
}

/// How targets are probed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheckSpec {
    /// What a probe is.
    pub protocol: HealthCheckProtocol,
    /// Port to probe, 1…65535; `None`: the target's own.
    pub port: Option<u16>,
    /// Path of an HTTP request (`/`).
    pub path: Option<String>,
    /// Status codes that pass, within 200–599, as `200-399` or `200,204`.
    pub matcher: Option<String>,
    /// Time between probes, 5…300 seconds (30).
    pub interval_seconds: Option<u16>,
    /// How long a probe may take, 2…120 seconds (TCP and HTTPS 10, HTTP 6).
    pub timeout_seconds: Option<u16>,
    /// Passes in a row until a target is healthy again, 2…10 (5). A new target needs one.
    pub healthy_threshold: Option<u8>,
    /// Failures in a row until a target is unhealthy, 2…10 (2).
    pub unhealthy_threshold: Option<u8>,
}

/// What a probe is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheckProtocol {
    /// A TCP handshake.
    #[default]
    Tcp,
    /// An HTTP/1.1 GET.
    Http,
    /// The same within TLS; the certificate is not verified.
    Https,
}

/// What the gateways see of the targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TargetGroupStatus {
    /// One for each target, registered or draining.
    pub targets: Vec<TargetStatus>,
}

/// What the gateways see of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetStatus {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The joined view: healthy where any gateway sees it healthy.
    pub health: TargetHealth,
    /// The view of each gateway, by gateway id.
    pub by_gateway: BTreeMap<String, TargetHealth>,
}

/// State of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub enum TargetHealth {
    /// Not probed yet.
    #[default]
    #[serde(rename = "initial")]
    Initial,
    /// Passes.
    #[serde(rename = "healthy")]
    Healthy,
    /// Fails.
    #[serde(rename = "unhealthy")]
    Unhealthy,
    /// Fails, its flows may still go on.
    #[serde(rename = "unhealthy.draining")]
    UnhealthyDraining,
    /// Deregistered, its flows may still go on.
    #[serde(rename = "draining")]
    Draining,
    /// No listener uses its group.
    #[serde(rename = "unused")]
    Unused,
    /// Not probed: the group has no health check.
    #[serde(rename = "unavailable")]
    Unavailable,
}

/// A load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoadBalancerSpec {
    /// What it listens on; one for a protocol and port.
    pub listeners: Vec<ListenerSpec>,
    /// Whether an endpoint address with a zone gets targets of all zones, not of its own only (no).
    pub cross_zone: Option<bool>,
    /// Security groups; need [`feature::SECURITY_GROUPS`].
    pub security_groups: Vec<String>,
    /// Whether they hold for clients that come by a private link (yes).
    pub enforce_on_private_link: Option<bool>,
}

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerSpec {
    /// Protocol.
    pub protocol: Protocol,
    /// Port, 1…65535. This or `ports`.
    pub port: u16,
    /// First and last port of a range within 1…65535, as `9092-9191`; needs [`feature::PORT_MAPPING`].
    pub ports: Option<String>,
    /// Idle time of an established flow: TCP 60…6000 seconds (350), UDP 10…6000 seconds (120).
    pub idle_seconds: Option<u16>,
    /// Upper bound of the MSS option, 88…65495 bytes; TCP only.
    pub mss: Option<u16>,
    /// Whether both ends of a flow that was idle for too long are told by a RST; TCP only. Needs
    /// [`feature::RESET_ON_EXPIRY`].
    pub reset_on_expiry: Option<bool>,
    /// The groups that share its flows, one to five.
    pub target_groups: Vec<WeightedGroupSpec>,
}

/// A target group of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedGroupSpec {
    /// The group.
    pub target_group: String,
    /// Share of the listener's new flows, 0…999 (1).
    #[serde(default = "one")]
    pub weight: u16,
}

/// An endpoint service: load balancers, or plain targets without one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSpec {
    /// Its load balancers; together at most one listener for a protocol and port.
    pub load_balancers: Vec<String>,
    /// Plain targets: listeners that lead straight to targets. Not beside `load_balancers`.
    pub plain: Option<PlainSpec>,
    /// Names of the principals that may connect; `*`: all.
    pub allowed_principals: Vec<String>,
    /// Whether the provider accepts each connection by hand.
    pub acceptance_required: bool,
    /// Whether access that is withdrawn from the allow-list also ends connections that were accepted.
    pub reconcile: bool,
    /// A private DNS name of the provider's.
    pub private_dns_name: Option<String>,
}

/// Plain targets of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlainSpec {
    /// The provider's VPC.
    pub vpc: String,
    /// The pool that the targets see.
    pub snat_pool: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at which consumers connect, 1…65535.
    pub port: u16,
    /// The targets.
    pub targets: Vec<TargetSpec>,
}

/// What became of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ServiceStatus {
    /// Endpoints that stand for it, in any state but `deleted`.
    pub endpoints: u64,
}

/// An interface endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointSpec {
    /// The consumer's VPC.
    pub vpc: String,
    /// Id of the service.
    pub service: String,
    /// Its addresses, one for each zone; an address that is left out is chosen. Empty: one address in any zone.
    pub addresses: Vec<EndpointAddressSpec>,
    /// Largest IP datagram through it, 576…65535 bytes (8500).
    pub mtu: Option<u16>,
    /// Whether ICMP echo is answered (yes).
    pub echo: Option<bool>,
    /// Security groups; need [`feature::SECURITY_GROUPS`].
    pub security_groups: Vec<String>,
    /// Most SNAT ports at a time, 1…16777216; needs [`feature::BUDGETS`].
    pub snat_port_budget: Option<u32>,
    /// Most live flows, 1…16777216; needs [`feature::BUDGETS`].
    pub max_flows: Option<u32>,
    /// Most new flows in a second, 1…1000000; needs [`feature::BUDGETS`].
    pub new_flows_per_second: Option<u32>,
    /// Most bytes in a second, both directions together, 10000…100000000000; needs [`feature::BUDGETS`].
    pub bytes_per_second: Option<u64>,
}

/// An address that an endpoint is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointAddressSpec {
    /// Only gateways of this zone may hold it; `None`: any.
    pub zone: Option<String>,
    /// The address, in the VPC's prefixes; `None`: one is chosen.
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The gateway that is to hold it; `None`: placed by hash.
    pub gateway: Option<String>,
}

/// State of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EndpointState {
    /// The provider has to accept it.
    #[default]
    PendingAcceptance,
    /// Accepted; its gateways have not applied it yet.
    Pending,
    /// Its gateways forward.
    Available,
    /// The provider has refused it, at once or later.
    Rejected,
    /// It cannot be: no gateway can hold it, or its gateway refused it.
    Failed,
    /// Nobody has accepted it in seven days.
    Expired,
    /// Its gateways still have to let it go.
    Deleting,
    /// Gone; shown for an hour.
    Deleted,
}

/// What became of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct EndpointStatus {
    /// Its state.
    pub state: EndpointState,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// Why, in a sentence, for `rejected`, `failed` and `expired`.
    pub reason: Option<String>,
    /// Its addresses, which stay for its life.
    pub addresses: Vec<EndpointAddressStatus>,
}

/// An address that an endpoint has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointAddressStatus {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The zone that was asked for.
    pub zone: Option<String>,
    /// Id of the gateway that holds it, if one does.
    pub gateway: Option<String>,
}

/// A security group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityGroupSpec {
    /// What may come in, up to 1,000; nothing else may.
    pub rules: Vec<SecurityRuleSpec>,
    /// Whether live flows end that no rule allows any more (not by default).
    pub cut_flows: bool,
}

/// A rule of a security group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityRuleSpec {
    /// Protocol; `None`: any.
    pub protocol: Option<RuleProtocol>,
    /// First and last port, as `443` or `1000-2000`; `None`: any. Not for ICMP.
    pub ports: Option<String>,
    /// Source prefix.
    pub source: String,
}

/// Protocol of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo to the endpoint, of both families.
    Icmp,
}

/// What happened to a connection, as its two sides are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts events, from 1, without gaps.
    pub sequence: u64,
    /// When, in milliseconds since 1970.
    pub time: u64,
    /// What happened.
    pub event: EventKind,
    /// The service.
    pub service: String,
    /// Who owns the service.
    pub provider: String,
    /// The endpoint.
    pub endpoint: String,
    /// Who owns the endpoint.
    pub consumer: String,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum EventKind {
    /// An endpoint was made.
    Connect,
    /// It was accepted, by hand or automatically.
    Accept,
    /// It was rejected.
    Reject,
    /// It was deleted.
    Delete,
}

/// What a gateway may be able to do, as it says when it connects. What it cannot is refused, not stored.
pub mod feature {
    /// Rules of security groups.
    pub const SECURITY_GROUPS: &str = "security-groups";
    /// Targets by zone.
    pub const ZONES: &str = "zones";
    /// Limits of endpoints, what a client is told that meets one, and addresses of pools that drain.
    pub const BUDGETS: &str = "budgets";
    /// IPv6.
    pub const IPV6: &str = "ipv6";
    /// Probes of targets.
    pub const HEALTH_CHECKS: &str = "health-checks";
    /// PROXY protocol headers.
    pub const PROXY_PROTOCOL: &str = "proxy-protocol";
    /// Clients that stay with their targets.
    pub const STICKINESS: &str = "stickiness";
    /// Ports that each lead to one target, and listeners with many ports.
    pub const PORT_MAPPING: &str = "port-mapping";
    /// A RST to both ends of flows that were idle for too long.
    pub const RESET_ON_EXPIRY: &str = "reset-on-expiry";
}

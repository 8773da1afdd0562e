//! What an operator declares, as written: the TOML file's tables and keys, nothing checked yet but names and types.
//!
//! A key that is left out has the default that stands at its field; a required key that is left out is reported by
//! [`Declaration::check`] like every other mistake, so that one run names them all. The same types can be made in a
//! program and written with [`Declaration::to_toml`]. `configs/gateway.toml` shows every key.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Errors;
pub use crate::snapshot::ProxyProtocol;

/// A whole configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Declaration {
    /// Name of the file, for errors; not part of it.
    #[serde(skip)]
    pub file: String,
    /// `[gateway]`: the process.
    pub gateway: Gateway,
    /// `[control]`: where the rest is declared, if not in this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// `[workers]`: the threads that forward.
    pub workers: Workers,
    /// `[selection]`: the choice of targets.
    pub selection: Selection,
    /// `[limits]`: room that is made once, at the start.
    pub limits: Limits,
    /// `[[port]]`: interfaces.
    #[serde(rename = "port")]
    pub ports: Vec<Port>,
    /// `[[vpc]]`: tenants' networks.
    #[serde(rename = "vpc")]
    pub vpcs: Vec<Vpc>,
    /// `[[attachment]]`: how the gateway reaches the VPCs.
    #[serde(rename = "attachment")]
    pub attachments: Vec<Attachment>,
    /// `[[route]]`: what lies behind routers.
    #[serde(rename = "route")]
    pub routes: Vec<Route>,
    /// `[[snat_pool]]`: what targets see as the source.
    #[serde(rename = "snat_pool")]
    pub snat_pools: Vec<SnatPool>,
    /// `[[security_group]]`: who may connect.
    #[serde(rename = "security_group")]
    pub security_groups: Vec<SecurityGroup>,
    /// `[[target_group]]`: targets.
    #[serde(rename = "target_group")]
    pub target_groups: Vec<TargetGroup>,
    /// `[[load_balancer]]`: listeners.
    #[serde(rename = "load_balancer")]
    pub load_balancers: Vec<LoadBalancer>,
    /// `[[service]]`: endpoint services.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
    /// `[[endpoint]]`: interface endpoints.
    #[serde(rename = "endpoint")]
    pub endpoints: Vec<Endpoint>,
}

/// `[gateway]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Name of the gateway in logs and metrics, 1…128 characters. Default: `gateway`.
    pub name: Option<String>,
    /// Absolute path of the directory for sockets and for what is to be restored. Default: `/run/postern`.
    pub run_directory: Option<String>,
    /// Address and port of the Prometheus page, for example `127.0.0.1:9464`. Default: no page.
    pub metrics: Option<String>,
    /// Allows `metrics` on an address that other hosts reach. Default: `false`.
    pub metrics_public: Option<bool>,
    /// Absolute path of the Unix socket for `postern flows` and others. Default: `control.sock` in the run directory.
    pub control_socket: Option<String>,
    /// How frames come in and go out of all ports that say nothing else. Default: `af_packet`.
    pub io: Option<Io>,
    /// Whether threads of the kernel receive for ports with `io_uring`, one for each of them and each worker, which take a CPU as
    /// long as frames come. Default: `false`.
    pub io_uring_sqpoll: Option<bool>,
}

/// `[control]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// `https://HOST:PORT` of the control plane; `http://` on a loopback address only. Required.
    pub address: String,
    /// Absolute path of the certificates (PEM) that control's certificate is checked with. Required for `https://`.
    pub ca: Option<String>,
    /// Absolute path of the gateway's certificate chain (PEM). Default: the gateway shows its token only.
    pub certificate: Option<String>,
    /// Absolute path of the certificate's key (PEM).
    pub key: Option<String>,
    /// Absolute path of a file with the gateway's token. Default: the gateway shows its certificate only.
    pub token_file: Option<String>,
    /// Absolute path of the directory for what was applied last, which outlives a reboot. Default: `/var/lib/postern`.
    pub state_directory: Option<String>,
}

/// `[workers]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// Threads that forward, 1…64. Default: 1.
    pub count: Option<i64>,
    /// The CPU of each worker, 0…4095, as many as workers. Default: not pinned.
    pub cpus: Option<Vec<i64>>,
    /// What a worker does when there is nothing to do. Default: `adaptive`.
    pub polling: Option<Polling>,
    /// Most live flows of each worker, 1,024…16,777,216. Default: 1,048,576.
    pub flows: Option<i64>,
    /// Most live flows of each worker with an IPv6 client or target, beside these, 0 or 1,024…16,777,216. Default: a quarter of
    /// `flows`.
    pub ipv6_flows: Option<i64>,
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Polling {
    /// Spins while there is traffic, sleeps when there has been none for a while.
    #[default]
    Adaptive,
    /// Never sleeps: the lowest latency for a whole CPU.
    Spin,
    /// Sleeps in the kernel until there is a frame.
    Sleep,
}

impl fmt::Display for Polling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adaptive => "adaptive",
            Self::Spin => "spin",
            Self::Sleep => "sleep",
        })
    }
}

/// `[selection]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// Key of the target choice, 32 hexadecimal digits, the same on every gateway. Default: a public constant.
    pub key: Option<String>,
}

/// `[limits]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most endpoint addresses until the next restart, 1…16,777,216. Default: twice the declared, as a power of two, at
    /// least 4,096; with `[control]` 131,072.
    pub endpoints: Option<i64>,
    /// Most targets until the next restart, 1…16,777,216. Default: likewise; with `[control]` 32,768.
    pub targets: Option<i64>,
}

/// `[[port]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Port {
    /// Linux interface name, 1…15 bytes. Required.
    pub interface: String,
    /// Who uses the interface. Default: `shared`.
    pub mode: Mode,
    /// How frames come in and go out. Default: `gateway.io`.
    pub io: Option<Io>,
}

/// How frames come in and go out of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// Packet sockets with a receive ring: any interface.
    #[default]
    AfPacket,
    /// Packet sockets through io_uring: any interface, kernel 6.1 or newer.
    IoUring,
    /// AF_XDP sockets.
    AfXdp,
    /// What suits the interface and the kernel best.
    Auto,
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AfPacket => "af_packet",
            Self::IoUring => "io_uring",
            Self::AfXdp => "af_xdp",
            Self::Auto => "auto",
        })
    }
}

/// Who uses an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Postern alone.
    Own,
    /// Postern and the host.
    #[default]
    Shared,
}

/// `[[vpc]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vpc {
    /// `vpc-` and 1…64 of a-z, 0-9, `-`. Required.
    pub id: String,
}

/// `[[attachment]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attachment {
    /// Name, 1…128 characters; keeps its meaning across reloads. Required.
    pub name: String,
    /// The VPC behind it. Required.
    pub vpc: String,
    /// The port's interface name. Required.
    pub port: String,
    /// 802.1Q VLAN identifier, 1…4094. Default: untagged.
    pub vlan: Option<i64>,
    /// On-link prefixes of IPv4 and IPv6: their addresses are neighbours. Default: none.
    pub prefixes: Vec<String>,
    /// Largest IP datagram that may be sent, 576…65535 bytes. Default: the interface's MTU.
    pub mtu: Option<i64>,
    /// How replies go back to consumers. Default: `route`.
    #[serde(rename = "return")]
    pub return_path: ReturnPath,
    /// A MAC address of its own. Default: the interface's.
    pub mac: Option<String>,
}

/// How replies go back to consumers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReturnPath {
    /// By the VPC's routes.
    #[default]
    Route,
    /// To the MAC address from which the flow's first packet came.
    LastHop,
}

/// `[[route]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// The attachment to send on. Required.
    pub attachment: String,
    /// Prefix of the destinations. Required.
    pub destination: String,
    /// The router, of the same family: in an on-link prefix of the attachment, or link-local. Default: destinations are
    /// neighbours themselves.
    pub via: Option<String>,
}

/// `[[snat_pool]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnatPool {
    /// Name, 1…128 characters. Required.
    pub name: String,
    /// The provider's VPC. Required.
    pub vpc: String,
    /// Its addresses, of both families. Without one of a group's family, new flows to it are refused and counted.
    pub addresses: Vec<String>,
    /// Ports of each address, within 1024…65535. Default: `1024-65535`.
    pub ports: Option<String>,
    /// How long a freed port rests before it is used again toward the same target, 0…240 seconds. Default: 60.
    pub rest_seconds: Option<i64>,
    /// Those of `addresses` that get no new flows; live ones go on. Default: none.
    pub draining: Vec<String>,
    /// What a client is told for whom there is no port. Default: `drop`.
    pub exhausted: Option<Exhausted>,
}

/// What a client is told whose flow cannot be opened for want of ports, or because of a limit of its endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exhausted {
    /// Nothing.
    #[default]
    Drop,
    /// A RST, for TCP.
    Reset,
    /// ICMP destination unreachable: code 1 (host) where there is no port, 13 (administratively prohibited) at a limit.
    Unreachable,
}

/// `[[security_group]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityGroup {
    /// Name, 1…128 characters. Required.
    pub name: String,
    /// What the group stands for as the source of rules: up to 1,000 prefixes. Default: none.
    pub prefixes: Vec<String>,
    /// Whether live flows end that no rule allows any more. Default: `false`.
    pub cut_flows: Option<bool>,
    /// What may come in, up to 1,000; nothing else may.
    pub rules: Vec<SecurityRule>,
}

/// `{ protocol = …, ports = …, source = … }` in a security group's `rules`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityRule {
    /// Protocol. Default: any.
    pub protocol: Option<RuleProtocol>,
    /// Port of the endpoint, or first and last one: `443` or `1000-2000`; not with `icmp`. Default: all.
    pub ports: Option<String>,
    /// Prefix of the clients' addresses, IPv4 or IPv6. This or `source_group` is required.
    pub source: Option<String>,
    /// The security group whose `prefixes` the clients' addresses are in.
    pub source_group: Option<String>,
}

/// Protocol of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo to the endpoint, of both families.
    Icmp,
}

/// `[[target_group]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetGroup {
    /// Name, 1…128 characters. Required.
    pub name: String,
    /// The provider's VPC. Required.
    pub vpc: String,
    /// The pool that the targets see, of the same VPC. Required.
    pub snat_pool: String,
    /// Slots of the selection table, 16381 or 65537; the same for the group's life. Default: 16381 up to 100 targets,
    /// else 65537.
    pub slots: Option<i64>,
    /// How its targets are probed. Default: they are not, and all are taken for usable.
    pub health_check: Option<HealthCheck>,
    /// How long flows of a target that became unhealthy may go on, 0…360000 seconds. Default: they are reset at once.
    pub unhealthy_drain_seconds: Option<i64>,
    /// How long a target that was taken out of the group is `draining`, 0…3600 seconds. Default: 300.
    pub deregistration_delay_seconds: Option<i64>,
    /// Whether its flows end after that. Default: `false`.
    pub deregistration_ends_flows: Option<bool>,
    /// The header that tells targets who is calling; TCP only. Default: `off`.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How long a client's new flows go to the target that its last one went to, 1…604800 seconds after that. Default: each
    /// flow is sent by itself.
    pub sticky_seconds: Option<i64>,
    /// `[[target_group.target]]`: the targets, all of one family.
    #[serde(rename = "target")]
    pub targets: Vec<Target>,
}

/// `health_check = { … }` in a target group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// What a probe is. Default: `tcp`.
    pub protocol: HealthCheckProtocol,
    /// Port to probe, 1…65535. Default: each target's own.
    pub port: Option<i64>,
    /// What an HTTP request asks for: `/` and up to 1,023 printable ASCII characters. Default: `/`.
    pub path: Option<String>,
    /// Status codes that pass, within 200…599, such as `200-399` or `200,204`. Default: `200-399`.
    pub matcher: Option<String>,
    /// Time from probe to probe of a target, 5…300 seconds. Default: 30.
    pub interval_seconds: Option<i64>,
    /// How long a probe may take, 2…120 seconds. Default: TCP and HTTPS 10, HTTP 6.
    pub timeout_seconds: Option<i64>,
    /// Passes in a row until an unhealthy target is healthy again, 2…10. Default: 5. A new target needs one.
    pub healthy_threshold: Option<i64>,
    /// Failures in a row until a target is unhealthy, 2…10. Default: 2.
    pub unhealthy_threshold: Option<i64>,
}

/// What a probe is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheckProtocol {
    /// A TCP handshake.
    #[default]
    Tcp,
    /// An HTTP/1.1 GET whose status passes.
    Http,
    /// The same within TLS; the target's certificate is not verified.
    Https,
}

/// `[[target_group.target]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Target {
    /// Address in the provider's VPC. Required.
    pub address: String,
    /// Port, 1…65535. Required.
    pub port: i64,
    /// Share of the group's new flows, 0…999; 0: no new flows. Default: 1.
    pub weight: Option<i64>,
    /// Port of the listener, 1…65535, whose flows all go to this target, and to no other: the group maps ports. Either all
    /// targets of a group have one, each another, or none has. Default: none.
    pub mapped_port: Option<i64>,
    /// Zone, 1…64 of a-z, 0-9, `-`. Default: none.
    pub zone: Option<String>,
}

/// `[[load_balancer]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadBalancer {
    /// Name, 1…128 characters. Required.
    pub name: String,
    /// Security groups that its clients must pass, up to 16; the source that a rule sees is the client's own address.
    pub security_groups: Vec<String>,
    /// Whether they hold for clients that come by a private link, which all clients of a gateway do. Default: `true`.
    pub enforce_on_private_link: Option<bool>,
    /// Whether targets of all zones get the flows of each endpoint address. Default: `false`, and an address with a zone
    /// has those of its zone only, as long as there is one that may have flows.
    pub cross_zone: Option<bool>,
    /// `[[load_balancer.listener]]`: what it listens on.
    #[serde(rename = "listener")]
    pub listeners: Vec<Listener>,
}

/// `[[load_balancer.listener]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listener {
    /// Protocol. Default: `tcp`.
    pub protocol: Protocol,
    /// Port, 1…65535. This or `ports` is required.
    pub port: i64,
    /// First and last port of a range, `9092-9191`, within 1-65535.
    pub ports: Option<String>,
    /// Idle time of an established flow: TCP 60…6000 seconds (350), UDP 10…6000 seconds (120).
    pub idle_seconds: Option<i64>,
    /// Upper bound of the MSS option in SYN and SYN-ACK, 88…65495 bytes; TCP only. Default: from the MTUs only.
    pub mss: Option<i64>,
    /// Whether both ends of a flow that was idle for too long are told by a RST; TCP only. Default: `false`.
    pub reset_on_expiry: Option<bool>,
    /// The groups that share its flows. Required.
    pub target_groups: Vec<WeightedGroup>,
}

/// Protocol of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// `{ name = "…", weight = … }` in a listener's `target_groups`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightedGroup {
    /// Name of the group. Required.
    pub name: String,
    /// Share of the listener's new flows, 0…999; 0: no new flows. Default: 1.
    pub weight: Option<i64>,
}

/// `[[service]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// `vpce-svc-` and 1…64 of a-z, 0-9, `-`; from control always 17 hexadecimal digits. Required.
    pub id: String,
    /// Names of its load balancers; together at most one listener for a protocol and port.
    pub load_balancers: Vec<String>,
}

/// `[[endpoint]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Endpoint {
    /// `vpce-` and 1…64 of a-z, 0-9, `-`; from control always 17 hexadecimal digits. Required.
    pub id: String,
    /// The consumer's VPC. Required.
    pub vpc: String,
    /// The service that it stands for. Required.
    pub service: String,
    /// Its addresses in the consumer's VPC, at least one, of one family or both.
    pub addresses: Vec<String>,
    /// The zone of each address, in the same order, `""` for none; each 1…64 of a-z, 0-9, `-`. Default: none has one.
    pub zones: Vec<String>,
    /// Largest IP datagram through the endpoint, 576…65535 bytes. Default: 8500.
    pub mtu: Option<i64>,
    /// Whether ICMP echo to the addresses is answered. Default: `true`.
    pub echo: Option<bool>,
    /// Security groups that its clients must pass, up to 16. Default: none, and all may connect.
    pub security_groups: Vec<String>,
    /// Most SNAT ports that flows of each address have at a time, 1…16,777,216. Default: no limit.
    pub snat_port_budget: Option<i64>,
    /// Most live flows of each address, 1…16,777,216. Default: no limit.
    pub max_flows: Option<i64>,
    /// Most new flows of each address in a second, and at once, 1…1,000,000. Default: no limit.
    pub new_flows_per_second: Option<i64>,
    /// Most bytes of IP datagrams through each address in a second, both directions together, 10,000…100,000,000,000.
    /// Default: no limit.
    pub bytes_per_second: Option<i64>,
}

impl Declaration {
    /// Reads a file's text; `file_name` is what errors call it.
    ///
    /// # Errors
    /// When the text is not TOML, has a key that does not exist, or a value of the wrong type: with the line. Ranges and
    /// references are not looked at; [`Self::check`] does.
    pub fn from_toml(text: &str, file_name: &str) -> Result<Self, Errors> {
        let mut declaration: Self =
            toml::from_str(text).map_err(|error| Errors::from_syntax(file_name, text, &error))?;
        file_name.clone_into(&mut declaration.file);
        Ok(declaration)
    }

    /// Writes the file that reads back as this declaration.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every declaration is a TOML table of tables, texts, integers and lists of them")
    }
}

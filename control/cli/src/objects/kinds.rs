//! What commands can set and show of each kind of object. Everything else about the commands is the same for all kinds.

use postern_control::catalog::model::Kind;

use super::fields::{Field, Form};

/// A column of a listing: its head, and where its value is in the object, with dots.
pub(super) type Column = (&'static str, &'static str);

/// The fields of a kind that commands can set.
pub(super) const fn fields(kind: Kind) -> &'static [Field] {
    match kind {
        Kind::Principal => PRINCIPAL,
        Kind::Gateway => GATEWAY,
        Kind::Vpc => VPC,
        Kind::Attachment => ATTACHMENT,
        Kind::SnatPool => SNAT_POOL,
        Kind::TargetGroup => TARGET_GROUP,
        Kind::LoadBalancer => LOAD_BALANCER,
        Kind::Service => SERVICE,
        Kind::Endpoint => ENDPOINT,
        Kind::SecurityGroup => SECURITY_GROUP,
    }
}

/// Columns of a kind's listing behind id, name and owner.
pub(super) const fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Principal => &[("role", "spec.role")],
        Kind::Gateway => &[
            ("zone", "spec.zone"),
            ("drained", "spec.drained"),
            ("connected", "status.connected"),
            ("software", "status.software"),
            ("applied", "status.applied_generation"),
            ("of", "status.desired_generation"),
            ("flows", "status.flows"),
            ("drops", "status.drops"),
            ("refused", "status.refused"),
        ],
        Kind::Vpc => &[("prefixes", "spec.prefixes")],
        Kind::Attachment => &[
            ("gateway", "spec.gateway"),
            ("VPC", "spec.vpc"),
            ("port", "spec.port"),
            ("VLAN", "spec.vlan"),
            ("prefixes", "spec.prefixes"),
        ],
        Kind::SnatPool => &[("VPC", "spec.vpc"), ("addresses", "spec.addresses"), ("held by", "status.holders")],
        Kind::TargetGroup => &[
            ("VPC", "spec.vpc"),
            ("SNAT pool", "spec.snat_pool"),
            ("probes", "spec.health_check.protocol"),
            ("targets", "spec.targets"),
        ],
        Kind::LoadBalancer => &[("listeners", "spec.listeners")],
        Kind::Service => &[
            ("load balancers", "spec.load_balancers"),
            ("allowed", "spec.allowed_principals"),
            ("acceptance", "spec.acceptance_required"),
            ("endpoints", "status.endpoints"),
        ],
        Kind::Endpoint => &[
            ("VPC", "spec.vpc"),
            ("service", "spec.service"),
            ("state", "status.state"),
            ("addresses", "status.addresses"),
            ("reason", "status.reason"),
        ],
        Kind::SecurityGroup => &[("rules", "spec.rules")],
    }
}

/// What a kind is, for help.
pub(super) const fn about(kind: Kind) -> &'static str {
    match kind {
        Kind::Principal => "Principals: operators and tenants, and their tokens",
        Kind::Gateway => "Gateways: hosts that forward",
        Kind::Vpc => "VPCs: tenants' networks",
        Kind::Attachment => "Attachments: how gateways reach VPCs",
        Kind::SnatPool => "SNAT pools: the addresses that targets see as the source",
        Kind::TargetGroup => "Target groups: targets and how they are probed",
        Kind::LoadBalancer => "Load balancers: listeners in front of target groups",
        Kind::Service => "Endpoint services, and who may connect to them",
        Kind::Endpoint => "Interface endpoints: private addresses of a service",
        Kind::SecurityGroup => "Security groups: who may connect",
    }
}

/// Parameters of the listing that only some kinds have.
pub(super) const fn filters(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Endpoint => &["vpc", "service", "state"],
        Kind::Attachment | Kind::SnatPool | Kind::TargetGroup => &["vpc"],
        _ => &[],
    }
}

const VPC_NAME: Form = Form::Text("VPC");

const PRINCIPAL: &[Field] = &[Field::new(
    "role",
    "role",
    Form::Choice(&["operator", "tenant"]),
    "What it may do: operators everything, tenants what is their own",
)];

const GATEWAY: &[Field] = &[
    Field::new("zone", "zone", Form::Text("ZONE"), "Availability zone of the host"),
    Field::new("drained", "drained", Form::Switch, "Whether its addresses are to move to other gateways"),
];

const VPC: &[Field] = &[Field::new(
    "prefix",
    "prefixes",
    Form::Texts("PREFIX"),
    "A range from which endpoint addresses are chosen, as 10.0.0.0/24",
)];

const ATTACHMENT: &[Field] = &[
    Field::new("gateway", "gateway", Form::Text("GATEWAY"), "The gateway").required(),
    Field::new("vpc", "vpc", VPC_NAME, "The VPC").required(),
    Field::new("port", "port", Form::Text("INTERFACE"), "Linux interface name of the gateway's port").required(),
    Field::new("vlan", "vlan", Form::Number, "802.1Q VLAN identifier, 1 to 4094; without: untagged"),
    Field::new("prefix", "prefixes", Form::Texts("PREFIX"), "An on-link prefix"),
    Field::new("mtu", "mtu", Form::Number, "Largest IP datagram, 576 to 65535 bytes"),
    Field::new("return", "return", Form::Choice(&["route", "last-hop"]), "How replies go back to consumers"),
    Field::new("mac", "mac", Form::Text("MAC"), "A MAC address of its own"),
    Field::new("route", "routes", Form::Routes, "A prefix behind a router"),
];

const SNAT_POOL: &[Field] = &[
    Field::new("vpc", "vpc", VPC_NAME, "The provider's VPC").required(),
    Field::new("address", "addresses", Form::Texts("ADDRESS"), "An address of the VPC that nobody else has"),
    Field::new("ports", "ports", Form::Text("FIRST-LAST"), "Ports of each address, within 1024-65535"),
    Field::new("rest-seconds", "rest_seconds", Form::Number, "How long a freed port rests, 0 to 240 seconds"),
    Field::new("draining", "draining", Form::Texts("ADDRESS"), "One of its addresses that gets no new flows"),
    Field::new(
        "exhausted",
        "exhausted",
        Form::Choice(&["drop", "reset", "unreachable"]),
        "What a client is told for whom there is no port, or who meets a limit",
    ),
    Field::new("pin", "pinned", Form::Pins, "An address that a given gateway holds"),
];

const PROTOCOL: Form = Form::Choice(&["tcp", "udp"]);

const TARGET_GROUP: &[Field] = &[
    Field::new("vpc", "vpc", VPC_NAME, "The provider's VPC").required(),
    Field::new("snat-pool", "snat_pool", Form::Text("POOL"), "The pool that the targets see").required(),
    Field::new("slots", "slots", Form::Number, "Slots of the selection table, 16381 or 65537"),
    Field::new(
        "health-check",
        "health_check.protocol",
        Form::Choice(&["tcp", "http", "https"]),
        "Probe the targets; what a probe is",
    ),
    Field::new("health-check-port", "health_check.port", Form::Number, "Port to probe; without: the target's own"),
    Field::new("health-check-path", "health_check.path", Form::Text("PATH"), "Path of an HTTP request"),
    Field::new("health-check-matcher", "health_check.matcher", Form::Text("CODES"), "Codes that pass, as 200-399"),
    Field::new(
        "health-check-interval-seconds",
        "health_check.interval_seconds",
        Form::Number,
        "Time between probes, 5 to 300 seconds",
    ),
    Field::new(
        "health-check-timeout-seconds",
        "health_check.timeout_seconds",
        Form::Number,
        "How long a probe may take, 2 to 120 seconds",
    ),
    Field::new(
        "healthy-threshold",
        "health_check.healthy_threshold",
        Form::Number,
        "Passes until a target is healthy again, 2 to 10",
    ),
    Field::new(
        "unhealthy-threshold",
        "health_check.unhealthy_threshold",
        Form::Number,
        "Failures until a target is unhealthy, 2 to 10",
    ),
    Field::new(
        "unhealthy-drain-seconds",
        "unhealthy_drain_seconds",
        Form::Number,
        "How long flows of an unhealthy target may go on, 0 to 360000 seconds; without: they are reset",
    ),
    Field::new(
        "deregistration-delay-seconds",
        "deregistration_delay_seconds",
        Form::Number,
        "How long a deregistered target drains, 0 to 3600 seconds",
    ),
    Field::new(
        "deregistration-ends-flows",
        "deregistration_ends_flows",
        Form::Switch,
        "Whether its flows end after that",
    ),
    Field::new(
        "proxy-protocol",
        "proxy_protocol",
        Form::Choice(&["off", "aws", "google", "azure"]),
        "PROXY protocol header in front of each TCP connection's data",
    ),
    Field::new(
        "sticky-seconds",
        "sticky_seconds",
        Form::Number,
        "How long clients stay with their targets, 1 to 604800 seconds; without: they do not",
    ),
    Field::new("target", "targets", Form::Targets, "A target"),
];

const LOAD_BALANCER: &[Field] = &[
    Field::new("listener", "listeners", Form::Listeners, "What it listens on, and the target groups behind"),
    Field::new("cross-zone", "cross_zone", Form::Switch, "Whether targets of all zones get flows of each address"),
    Field::new("security-group", "security_groups", Form::Texts("GROUP"), "A security group"),
    Field::new(
        "enforce-on-private-link",
        "enforce_on_private_link",
        Form::Switch,
        "Whether they hold for clients that come by a private link",
    ),
];

const SERVICE: &[Field] = &[
    Field::new("load-balancer", "load_balancers", Form::Texts("BALANCER"), "A load balancer of it"),
    Field::new("plain-vpc", "plain.vpc", VPC_NAME, "Without load balancers: the provider's VPC"),
    Field::new("plain-snat-pool", "plain.snat_pool", Form::Text("POOL"), "Without: the pool that the targets see"),
    Field::new("plain-protocol", "plain.protocol", PROTOCOL, "Without: the protocol"),
    Field::new("plain-port", "plain.port", Form::Number, "Without: the port at which consumers connect"),
    Field::new("plain-target", "plain.targets", Form::Targets, "Without: a target"),
    Field::new("allow", "allowed_principals", Form::Texts("PRINCIPAL"), "Who may connect; *: all"),
    Field::new(
        "acceptance-required",
        "acceptance_required",
        Form::Switch,
        "Whether each connection is accepted by hand",
    ),
    Field::new(
        "reconcile",
        "reconcile",
        Form::Switch,
        "Whether access that is withdrawn also ends connections that were accepted",
    ),
    Field::new("private-dns-name", "private_dns_name", Form::Text("NAME"), "A private DNS name of the provider's"),
];

const ENDPOINT: &[Field] = &[
    Field::new("vpc", "vpc", VPC_NAME, "The consumer's VPC").required(),
    Field::new("service", "service", Form::Text("SERVICE"), "Id of the service").required(),
    Field::new("address", "addresses", Form::Addresses, "An address; `any`: one is chosen"),
    Field::new("mtu", "mtu", Form::Number, "Largest IP datagram through it, 576 to 65535 bytes"),
    Field::new("echo", "echo", Form::Switch, "Whether ICMP echo is answered"),
    Field::new("security-group", "security_groups", Form::Texts("GROUP"), "A security group"),
    Field::new("snat-port-budget", "snat_port_budget", Form::Number, "Most SNAT ports at a time"),
    Field::new("max-flows", "max_flows", Form::Number, "Most live flows"),
    Field::new("new-flows-per-second", "new_flows_per_second", Form::Number, "Most new flows in a second"),
    Field::new(
        "bytes-per-second",
        "bytes_per_second",
        Form::Number,
        "Most bytes in a second, both directions together",
    ),
];

const SECURITY_GROUP: &[Field] = &[
    Field::new("rule", "rules", Form::Rules, "Who may come in"),
    Field::new("cut-flows", "cut_flows", Form::Switch, "Whether live flows end that no rule allows any more"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use postern_control::catalog::model;
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::fields::put;

    /// A spec in which every option is set to something.
    fn full(kind: Kind) -> Value {
        let mut spec = json!({});
        for field in fields(kind) {
            let text = match field.form {
                Form::Text(_) | Form::Texts(_) if matches!(field.path, "addresses" | "draining") => "10.0.0.1",
                Form::Text(_) | Form::Texts(_) => "word",
                Form::Choice(words) => words[words.len() - 1],
                Form::Number => "7",
                Form::Switch => "true",
                Form::Pins => "10.0.0.1=gw",
                Form::Targets => "10.0.0.1:80,weight=2,mapped_port=3,zone=a",
                Form::Listeners => "udp:53-54=a*2+b,idle_seconds=9,mss=1000,reset_on_expiry=true",
                Form::Routes => "10.0.0.0/8=10.0.0.1",
                Form::Addresses => "10.0.0.1,zone=a,gateway=b",
                Form::Rules => "10.0.0.0/8,protocol=udp,ports=1-2",
            };
            put(&mut spec, field.path, field.form.join(vec![field.form.value(text).unwrap()]));
        }
        spec
    }

    /// Everything that differs from nothing, with dots; lists by their first item.
    fn leaves(value: &Value, path: &str, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                for (key, value) in object {
                    leaves(value, &format!("{path}.{key}"), into);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| leaves(item, path, into)),
            Value::Null => drop(into.insert(format!("{path} is null"))),
            _ => drop(into.insert(path.to_owned())),
        }
    }

    fn check<Spec: Serialize + DeserializeOwned>(kind: Kind) {
        let written = full(kind);
        let spec: Spec = serde_json::from_value(written.clone()).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let read = serde_json::to_value(spec).unwrap();
        let (mut of_written, mut of_read) = (BTreeSet::new(), BTreeSet::new());
        leaves(&written, "", &mut of_written);
        leaves(&read, "", &mut of_read);
        assert_eq!(of_written, of_read, "{kind}: not every field of the spec has an option");
    }

    #[test]
    fn every_field_of_every_spec_has_an_option_and_every_option_a_field() {
        for kind in Kind::ALL {
            match kind {
                Kind::Principal => check::<model::PrincipalSpec>(kind),
                Kind::Gateway => check::<model::GatewaySpec>(kind),
                Kind::Vpc => check::<model::VpcSpec>(kind),
                Kind::Attachment => check::<model::AttachmentSpec>(kind),
                Kind::SnatPool => check::<model::SnatPoolSpec>(kind),
                Kind::TargetGroup => check::<model::TargetGroupSpec>(kind),
                Kind::LoadBalancer => check::<model::LoadBalancerSpec>(kind),
                Kind::Service => check::<model::ServiceSpec>(kind),
                Kind::Endpoint => check::<model::EndpointSpec>(kind),
                Kind::SecurityGroup => check::<model::SecurityGroupSpec>(kind),
            }
        }
    }
}

//! Objects of the tables as messages, and back.
//!
//! A message may come from anybody who reached the port, so each field that has no meaning is named in an error. Ranges
//! and references are left to the checks of the tables.

use postern_tables::declaration as declared;
use postern_tables::{Resource, ResourceKey, ResourceKind};

use crate::proto;

/// A message that stands for nothing, or an object that no message can carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    /// A message without its content.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number of an enumeration that this version does not know.
    #[error("{field} is {value}, which this version of the protocol does not know")]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// A number that does not fit its field.
    #[error("{field} is {value}; the protocol carries 0 to {most}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
        /// Largest that fits.
        most: u32,
    },
}

impl From<ResourceKind> for proto::Kind {
    fn from(kind: ResourceKind) -> Self {
        match kind {
            ResourceKind::Vpc => Self::Vpc,
            ResourceKind::Attachment => Self::Attachment,
            ResourceKind::SnatPool => Self::SnatPool,
            ResourceKind::SecurityGroup => Self::SecurityGroup,
            ResourceKind::TargetGroup => Self::TargetGroup,
            ResourceKind::LoadBalancer => Self::LoadBalancer,
            ResourceKind::Service => Self::Service,
            ResourceKind::Endpoint => Self::Endpoint,
        }
    }
}

impl From<&ResourceKey> for proto::Key {
    fn from(key: &ResourceKey) -> Self {
        Self { kind: proto::Kind::from(key.kind).into(), name: key.name.clone() }
    }
}

impl TryFrom<proto::Key> for ResourceKey {
    type Error = ConversionError;

    fn try_from(key: proto::Key) -> Result<Self, ConversionError> {
        let kind = match proto::Kind::try_from(key.kind) {
            Ok(proto::Kind::Vpc) => ResourceKind::Vpc,
            Ok(proto::Kind::Attachment) => ResourceKind::Attachment,
            Ok(proto::Kind::SnatPool) => ResourceKind::SnatPool,
            Ok(proto::Kind::SecurityGroup) => ResourceKind::SecurityGroup,
            Ok(proto::Kind::TargetGroup) => ResourceKind::TargetGroup,
            Ok(proto::Kind::LoadBalancer) => ResourceKind::LoadBalancer,
            Ok(proto::Kind::Service) => ResourceKind::Service,
            Ok(proto::Kind::Endpoint) => ResourceKind::Endpoint,
            Ok(proto::Kind::Unspecified) | Err(_) => {
                return Err(ConversionError::Unknown { field: "key.kind", value: key.kind.to_string() });
            }
        };
        Ok(Self { kind, name: key.name })
    }
}

impl TryFrom<&Resource> for proto::Resource {
    type Error = ConversionError;

    fn try_from(resource: &Resource) -> Result<Self, ConversionError> {
        use proto::resource::Resource as Message;
        let message = match resource {
            Resource::Vpc(vpc) => Message::Vpc(proto::Vpc { id: vpc.id.clone() }),
            Resource::Attachment(attachment, routes) => Message::Attachment(from_attachment(attachment, routes)?),
            Resource::SnatPool(pool) => Message::SnatPool(proto::SnatPool {
                name: pool.name.clone(),
                vpc: pool.vpc.clone(),
                addresses: pool.addresses.clone(),
                ports: pool.ports.clone(),
                rest_seconds: small("snat_pool.rest_seconds", pool.rest_seconds)?,
                draining: pool.draining.clone(),
                exhausted: pool.exhausted.map(|exhausted| from_exhausted(exhausted).into()),
            }),
            Resource::SecurityGroup(group) => Message::SecurityGroup(from_security_group(group)),
            Resource::TargetGroup(group) => Message::TargetGroup(from_group(group)?),
            Resource::LoadBalancer(balancer) => Message::LoadBalancer(proto::LoadBalancer {
                name: balancer.name.clone(),
                listeners: balancer.listeners.iter().map(from_listener).collect::<Result<_, _>>()?,
                security_groups: balancer.security_groups.clone(),
                enforce_on_private_link: balancer.enforce_on_private_link,
                cross_zone: balancer.cross_zone,
            }),
            Resource::Service(service) => Message::Service(proto::Service {
                id: service.id.clone(),
                load_balancers: service.load_balancers.clone(),
            }),
            Resource::Endpoint(endpoint) => Message::Endpoint(proto::Endpoint {
                id: endpoint.id.clone(),
                vpc: endpoint.vpc.clone(),
                service: endpoint.service.clone(),
                addresses: endpoint.addresses.clone(),
                mtu: small("endpoint.mtu", endpoint.mtu)?,
                echo: endpoint.echo,
                security_groups: endpoint.security_groups.clone(),
                snat_port_budget: small("endpoint.snat_port_budget", endpoint.snat_port_budget)?,
                max_flows: small("endpoint.max_flows", endpoint.max_flows)?,
                new_flows_per_second: small("endpoint.new_flows_per_second", endpoint.new_flows_per_second)?,
                bytes_per_second: endpoint.bytes_per_second.map(large).transpose()?,
                zones: endpoint.zones.clone(),
            }),
        };
        Ok(Self { resource: Some(message) })
    }
}

impl TryFrom<proto::Resource> for Resource {
    type Error = ConversionError;

    fn try_from(message: proto::Resource) -> Result<Self, ConversionError> {
        use proto::resource::Resource as Message;
        Ok(match message.resource.ok_or(ConversionError::Missing("resource"))? {
            Message::Vpc(vpc) => Self::Vpc(declared::Vpc { id: vpc.id }),
            Message::Attachment(attachment) => into_attachment(attachment),
            Message::SnatPool(pool) => Self::SnatPool(declared::SnatPool {
                name: pool.name,
                vpc: pool.vpc,
                addresses: pool.addresses,
                ports: pool.ports,
                rest_seconds: pool.rest_seconds.map(i64::from),
                draining: pool.draining,
                exhausted: pool.exhausted.map(into_exhausted).transpose()?,
            }),
            Message::SecurityGroup(group) => Self::SecurityGroup(into_security_group(group)?),
            Message::TargetGroup(group) => Self::TargetGroup(into_group(group)?),
            Message::LoadBalancer(balancer) => Self::LoadBalancer(declared::LoadBalancer {
                name: balancer.name,
                listeners: balancer.listeners.into_iter().map(into_listener).collect::<Result<_, _>>()?,
                security_groups: balancer.security_groups,
                enforce_on_private_link: balancer.enforce_on_private_link,
                cross_zone: balancer.cross_zone,
            }),
            Message::Service(service) => {
                Self::Service(declared::Service { id: service.id, load_balancers: service.load_balancers })
            }
            Message::Endpoint(endpoint) => Self::Endpoint(declared::Endpoint {
                id: endpoint.id,
                vpc: endpoint.vpc,
                service: endpoint.service,
                addresses: endpoint.addresses,
                mtu: endpoint.mtu.map(i64::from),
                echo: endpoint.echo,
                security_groups: endpoint.security_groups,
                zones: endpoint.zones,
                snat_port_budget: endpoint.snat_port_budget.map(i64::from),
                max_flows: endpoint.max_flows.map(i64::from),
                new_flows_per_second: endpoint.new_flows_per_second.map(i64::from),
                // More than the checks allow stays more than they allow.
                bytes_per_second: endpoint.bytes_per_second.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            }),
        })
    }
}

fn from_attachment(
    attachment: &declared::Attachment,
    routes: &[declared::Route],
) -> Result<proto::Attachment, ConversionError> {
    let route =
        |route: &declared::Route| proto::Route { destination: route.destination.clone(), via: route.via.clone() };
    Ok(proto::Attachment {
        name: attachment.name.clone(),
        vpc: attachment.vpc.clone(),
        port: attachment.port.clone(),
        vlan: small("attachment.vlan", attachment.vlan)?,
        prefixes: attachment.prefixes.clone(),
        mtu: small("attachment.mtu", attachment.mtu)?,
        return_to_last_hop: attachment.return_path == declared::ReturnPath::LastHop,
        mac: attachment.mac.clone(),
        routes: routes.iter().map(route).collect(),
    })
}

fn into_attachment(message: proto::Attachment) -> Resource {
    let name = message.name;
    let route = |route: proto::Route| declared::Route {
        attachment: name.clone(),
        destination: route.destination,
        via: route.via,
    };
    let routes = message.routes.into_iter().map(route).collect();
    let return_path = match message.return_to_last_hop {
        true => declared::ReturnPath::LastHop,
        false => declared::ReturnPath::Route,
    };
    let attachment = declared::Attachment {
        name,
        vpc: message.vpc,
        port: message.port,
        vlan: message.vlan.map(i64::from),
        prefixes: message.prefixes,
        mtu: message.mtu.map(i64::from),
        return_path,
        mac: message.mac,
    };
    Resource::Attachment(attachment, routes)
}

fn from_security_group(group: &declared::SecurityGroup) -> proto::SecurityGroup {
    let rule = |rule: &declared::SecurityRule| {
        let protocol = match rule.protocol {
            None => proto::RuleProtocol::Any,
            Some(declared::RuleProtocol::Tcp) => proto::RuleProtocol::Tcp,
            Some(declared::RuleProtocol::Udp) => proto::RuleProtocol::Udp,
            Some(declared::RuleProtocol::Icmp) => proto::RuleProtocol::Icmp,
        };
        proto::SecurityRule {
            protocol: protocol.into(),
            ports: rule.ports.clone(),
            source: rule.source.clone(),
            source_group: rule.source_group.clone(),
        }
    };
    proto::SecurityGroup {
        name: group.name.clone(),
        prefixes: group.prefixes.clone(),
        cut_flows: group.cut_flows,
        rules: group.rules.iter().map(rule).collect(),
    }
}

fn into_security_group(message: proto::SecurityGroup) -> Result<declared::SecurityGroup, ConversionError> {
    let rule = |rule: proto::SecurityRule| {
        let protocol = match proto::RuleProtocol::try_from(rule.protocol) {
            Ok(proto::RuleProtocol::Any) => None,
            Ok(proto::RuleProtocol::Tcp) => Some(declared::RuleProtocol::Tcp),
            Ok(proto::RuleProtocol::Udp) => Some(declared::RuleProtocol::Udp),
            Ok(proto::RuleProtocol::Icmp) => Some(declared::RuleProtocol::Icmp),
            Ok(proto::RuleProtocol::Unspecified) | Err(_) => {
                let value = rule.protocol.to_string();
                return Err(ConversionError::Unknown { field: "security_group.rules.protocol", value });
            }
        };
        let (ports, source, source_group) = (rule.ports, rule.source, rule.source_group);
        Ok(declared::SecurityRule { protocol, ports, source, source_group })
    };
    Ok(declared::SecurityGroup {
        name: message.name,
        prefixes: message.prefixes,
        cut_flows: message.cut_flows,
        rules: message.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
    })
}

fn from_group(group: &declared::TargetGroup) -> Result<proto::TargetGroup, ConversionError> {
    let target = |target: &declared::Target| {
        Ok(proto::Target {
            address: target.address.clone(),
            port: number("target_group.target.port", target.port)?,
            weight: small("target_group.target.weight", target.weight)?,
            mapped_port: small("target_group.target.mapped_port", target.mapped_port)?,
            zone: target.zone.clone(),
        })
    };
    Ok(proto::TargetGroup {
        name: group.name.clone(),
        vpc: group.vpc.clone(),
        snat_pool: group.snat_pool.clone(),
        slots: small("target_group.slots", group.slots)?,
        targets: group.targets.iter().map(target).collect::<Result<_, _>>()?,
        health_check: group.health_check.as_ref().map(from_health_check).transpose()?,
        unhealthy_drain_seconds: small("target_group.unhealthy_drain_seconds", group.unhealthy_drain_seconds)?,
        deregistration_delay_seconds: small(
            "target_group.deregistration_delay_seconds",
            group.deregistration_delay_seconds,
        )?,
        deregistration_ends_flows: group.deregistration_ends_flows,
        proxy_protocol: group.proxy_protocol.map(|header| from_proxy_protocol(header).into()),
        sticky_seconds: small("target_group.sticky_seconds", group.sticky_seconds)?,
    })
}

fn into_group(message: proto::TargetGroup) -> Result<declared::TargetGroup, ConversionError> {
    let target = |target: proto::Target| declared::Target {
        address: target.address,
        port: target.port.into(),
        weight: target.weight.map(i64::from),
        mapped_port: target.mapped_port.map(i64::from),
        zone: target.zone,
    };
    Ok(declared::TargetGroup {
        name: message.name,
        vpc: message.vpc,
        snat_pool: message.snat_pool,
        slots: message.slots.map(i64::from),
        health_check: message.health_check.map(into_health_check).transpose()?,
        unhealthy_drain_seconds: message.unhealthy_drain_seconds.map(i64::from),
        deregistration_delay_seconds: message.deregistration_delay_seconds.map(i64::from),
        deregistration_ends_flows: message.deregistration_ends_flows,
        proxy_protocol: message.proxy_protocol.map(into_proxy_protocol).transpose()?,
        sticky_seconds: message.sticky_seconds.map(i64::from),
        targets: message.targets.into_iter().map(target).collect(),
    })
}

const fn from_exhausted(exhausted: declared::Exhausted) -> proto::Exhausted {
    match exhausted {
        declared::Exhausted::Drop => proto::Exhausted::Drop,
        declared::Exhausted::Reset => proto::Exhausted::Reset,
        declared::Exhausted::Unreachable => proto::Exhausted::Unreachable,
    }
}

fn into_exhausted(message: i32) -> Result<declared::Exhausted, ConversionError> {
    match proto::Exhausted::try_from(message) {
        Ok(proto::Exhausted::Drop) => Ok(declared::Exhausted::Drop),
        Ok(proto::Exhausted::Reset) => Ok(declared::Exhausted::Reset),
        Ok(proto::Exhausted::Unreachable) => Ok(declared::Exhausted::Unreachable),
        Ok(proto::Exhausted::Unspecified) | Err(_) => {
            Err(ConversionError::Unknown { field: "snat_pool.exhausted", value: message.to_string() })
        }
    }
}

const fn from_proxy_protocol(header: declared::ProxyProtocol) -> proto::ProxyProtocol {
    match header {
        declared::ProxyProtocol::Off => proto::ProxyProtocol::Off,
        declared::ProxyProtocol::Aws => proto::ProxyProtocol::Aws,
        declared::ProxyProtocol::Google => proto::ProxyProtocol::Google,
        declared::ProxyProtocol::Azure => proto::ProxyProtocol::Azure,
    }
}

fn into_proxy_protocol(message: i32) -> Result<declared::ProxyProtocol, ConversionError> {
    match proto::ProxyProtocol::try_from(message) {
        Ok(proto::ProxyProtocol::Off) => Ok(declared::ProxyProtocol::Off),
        Ok(proto::ProxyProtocol::Aws) => Ok(declared::ProxyProtocol::Aws),
        Ok(proto::ProxyProtocol::Google) => Ok(declared::ProxyProtocol::Google),
        Ok(proto::ProxyProtocol::Azure) => Ok(declared::ProxyProtocol::Azure),
        Ok(proto::ProxyProtocol::Unspecified) | Err(_) => {
            Err(ConversionError::Unknown { field: "target_group.proxy_protocol", value: message.to_string() })
        }
    }
}

fn from_health_check(check: &declared::HealthCheck) -> Result<proto::HealthCheck, ConversionError> {
    let protocol = match check.protocol {
        declared::HealthCheckProtocol::Tcp => proto::HealthCheckProtocol::Tcp,
        declared::HealthCheckProtocol::Http => proto::HealthCheckProtocol::Http,
        declared::HealthCheckProtocol::Https => proto::HealthCheckProtocol::Https,
    };
    Ok(proto::HealthCheck {
        protocol: protocol.into(),
        port: small("health_check.port", check.port)?,
        path: check.path.clone(),
        matcher: check.matcher.clone(),
        interval_seconds: small("health_check.interval_seconds", check.interval_seconds)?,
        timeout_seconds: small("health_check.timeout_seconds", check.timeout_seconds)?,
        healthy_threshold: small("health_check.healthy_threshold", check.healthy_threshold)?,
        unhealthy_threshold: small("health_check.unhealthy_threshold", check.unhealthy_threshold)?,
    })
}

fn into_health_check(message: proto::HealthCheck) -> Result<declared::HealthCheck, ConversionError> {
    let protocol = match proto::HealthCheckProtocol::try_from(message.protocol) {
        Ok(proto::HealthCheckProtocol::Tcp) => declared::HealthCheckProtocol::Tcp,
        Ok(proto::HealthCheckProtocol::Http) => declared::HealthCheckProtocol::Http,
        Ok(proto::HealthCheckProtocol::Https) => declared::HealthCheckProtocol::Https,
        Ok(proto::HealthCheckProtocol::Unspecified) | Err(_) => {
            let value = message.protocol.to_string();
            return Err(ConversionError::Unknown { field: "health_check.protocol", value });
        }
    };
    Ok(declared::HealthCheck {
        protocol,
        port: message.port.map(i64::from),
        path: message.path,
        matcher: message.matcher,
        interval_seconds: message.interval_seconds.map(i64::from),
        timeout_seconds: message.timeout_seconds.map(i64::from),
        healthy_threshold: message.healthy_threshold.map(i64::from),
        unhealthy_threshold: message.unhealthy_threshold.map(i64::from),
    })
}

fn from_listener(listener: &declared::Listener) -> Result<proto::Listener, ConversionError> {
    let protocol = match listener.protocol {
        declared::Protocol::Tcp => proto::Protocol::Tcp,
        declared::Protocol::Udp => proto::Protocol::Udp,
    };
    let group = |group: &declared::WeightedGroup| {
        Ok(proto::WeightedGroup {
            name: group.name.clone(),
            weight: small("listener.target_groups.weight", group.weight)?,
        })
    };
    Ok(proto::Listener {
        protocol: protocol.into(),
        port: number("listener.port", listener.port)?,
        idle_seconds: small("listener.idle_seconds", listener.idle_seconds)?,
        mss: small("listener.mss", listener.mss)?,
        reset_on_expiry: listener.reset_on_expiry,
        ports: listener.ports.clone(),
        target_groups: listener.target_groups.iter().map(group).collect::<Result<_, _>>()?,
    })
}

fn into_listener(message: proto::Listener) -> Result<declared::Listener, ConversionError> {
    let protocol = match proto::Protocol::try_from(message.protocol) {
        Ok(proto::Protocol::Tcp) => declared::Protocol::Tcp,
        Ok(proto::Protocol::Udp) => declared::Protocol::Udp,
        Ok(proto::Protocol::Unspecified) | Err(_) => {
            let value = message.protocol.to_string();
            return Err(ConversionError::Unknown { field: "listener.protocol", value });
        }
    };
    let group =
        |group: proto::WeightedGroup| declared::WeightedGroup { name: group.name, weight: group.weight.map(i64::from) };
    Ok(declared::Listener {
        protocol,
        port: message.port.into(),
        idle_seconds: message.idle_seconds.map(i64::from),
        mss: message.mss.map(i64::from),
        reset_on_expiry: message.reset_on_expiry,
        ports: message.ports,
        target_groups: message.target_groups.into_iter().map(group).collect(),
    })
}

fn small(field: &'static str, value: Option<i64>) -> Result<Option<u32>, ConversionError> {
    value.map(|value| number(field, value)).transpose()
}

fn large(value: i64) -> Result<u64, ConversionError> {
    u64::try_from(value).map_err(|_| ConversionError::Range {
        field: "endpoint.bytes_per_second",
        value,
        most: u32::MAX,
    })
}

fn number(field: &'static str, value: i64) -> Result<u32, ConversionError> {
    u32::try_from(value).map_err(|_| ConversionError::Range { field, value, most: u32::MAX })
}

#[cfg(test)]
mod tests {
    use postern_tables::Declaration;

    use super::*;

    /// Every key of every table.
    const ALL: &str = r#"
        [[vpc]]
        id = "vpc-a"
        [[attachment]]
        name = "ops/a"
        vpc = "vpc-a"
        port = "eth1"
        vlan = 7
        prefixes = ["10.0.0.0/24"]
        mtu = 9000
        return = "last_hop"
        mac = "02:00:00:00:00:01"
        [[route]]
        attachment = "ops/a"
        destination = "10.1.0.0/16"
        via = "10.0.0.1"
        [[route]]
        attachment = "ops/a"
        destination = "10.2.0.0/16"
        [[snat_pool]]
        name = "p/pool"
        vpc = "vpc-a"
        addresses = ["10.0.0.5", "10.0.0.6"]
        ports = "2000-3000"
        rest_seconds = 0
        draining = ["10.0.0.6"]
        exhausted = "reset"
        [[security_group]]
        name = "p/near"
        prefixes = ["10.0.0.0/8", "2001:db8::/32"]
        cut_flows = true
        rules = [
            { protocol = "tcp", ports = "443", source = "10.0.0.0/8" },
            { protocol = "udp", ports = "1-2", source_group = "p/near" },
            { protocol = "icmp", source = "::/0" },
            { source = "10.1.0.0/16" },
        ]
        [[target_group]]
        name = "p/web"
        vpc = "vpc-a"
        snat_pool = "p/pool"
        slots = 65537
        health_check = { protocol = "https", port = 9, path = "/x", matcher = "204", interval_seconds = 5, timeout_seconds = 2, healthy_threshold = 3, unhealthy_threshold = 4 }
        unhealthy_drain_seconds = 0
        deregistration_delay_seconds = 9
        deregistration_ends_flows = true
        sticky_seconds = 7
        target = [{ address = "10.0.0.9", port = 80, weight = 0, zone = "a" }, { address = "10.0.0.10", port = 81 }]
        [[target_group]]
        name = "p/brokers"
        vpc = "vpc-a"
        snat_pool = "p/pool"
        target = [{ address = "10.0.0.9", port = 9092, mapped_port = 9100 }]
        [[load_balancer]]
        name = "p/front"
        security_groups = ["p/near"]
        enforce_on_private_link = false
        cross_zone = true
        [[load_balancer.listener]]
        protocol = "udp"
        port = 53
        idle_seconds = 10
        target_groups = [{ name = "p/web", weight = 3 }]
        [[load_balancer.listener]]
        port = 80
        mss = 1000
        target_groups = [{ name = "p/web" }]
        [[load_balancer.listener]]
        ports = "9100-9199"
        target_groups = [{ name = "p/brokers" }]
        [[service]]
        id = "vpce-svc-1"
        load_balancers = ["p/front"]
        [[endpoint]]
        id = "vpce-1"
        vpc = "vpc-a"
        service = "vpce-svc-1"
        addresses = ["10.0.0.77"]
        zones = ["a"]
        snat_port_budget = 1
        max_flows = 2
        new_flows_per_second = 3
        bytes_per_second = 10000000000
        mtu = 1500
        echo = false
        security_groups = ["p/near"]
    "#;

    #[test]
    fn every_field_of_every_object_arrives() {
        let declaration = Declaration::from_toml(ALL, "all.toml").unwrap();
        let mut kinds = 0;
        for resource in declaration.resources() {
            let message = proto::Resource::try_from(&resource).unwrap();
            let bytes = prost::Message::encode_to_vec(&message);
            let decoded = <proto::Resource as prost::Message>::decode(&*bytes).unwrap();
            assert_eq!(Resource::try_from(decoded).unwrap(), resource);
            let key = proto::Key::from(&resource.key());
            assert_eq!(ResourceKey::try_from(key).unwrap(), resource.key());
            kinds += 1;
        }
        assert_eq!(kinds, 9);
    }

    #[test]
    fn what_was_left_out_stays_left_out() {
        let group = Resource::TargetGroup(declared::TargetGroup { name: "g".to_owned(), ..Default::default() });
        let message = proto::Resource::try_from(&group).unwrap();
        assert_eq!(Resource::try_from(message).unwrap(), group);
    }

    #[test]
    fn an_error_names_the_field() {
        let error = Resource::try_from(proto::Resource { resource: None }).unwrap_err();
        assert_eq!(error.to_string(), "resource is missing");
        let error = ResourceKey::try_from(proto::Key { kind: 99, name: "x".to_owned() }).unwrap_err();
        assert_eq!(error.to_string(), "key.kind is 99, which this version of the protocol does not know");
        let listener = proto::Listener { protocol: 0, ..Default::default() };
        let balancer = proto::LoadBalancer { name: "b".to_owned(), listeners: vec![listener], ..Default::default() };
        let message = proto::Resource { resource: Some(proto::resource::Resource::LoadBalancer(balancer)) };
        let error = Resource::try_from(message).unwrap_err();
        assert_eq!(error.to_string(), "listener.protocol is 0, which this version of the protocol does not know");
        let endpoint = Resource::Endpoint(declared::Endpoint { mtu: Some(-1), ..Default::default() });
        let error = proto::Resource::try_from(&endpoint).unwrap_err();
        assert_eq!(error.to_string(), "endpoint.mtu is -1; the protocol carries 0 to 4294967295");
    }
}

//! Objects of the catalog as the tables of a gateway have them.
//!
//! Names are unique across tenants: ids for VPCs, services and endpoints, `owner/name` for the others.

use std::collections::BTreeSet;

use postern_push::proto;
use postern_tables::declaration as declared;
use postern_tables::{Resource, ResourceKey, ResourceKind};
use prost::Message;
use sha2::{Digest, Sha256};

use super::{Node, Releasing};
use crate::catalog::State;
use crate::catalog::model::{
    AttachmentSpec, EndpointState, Exhausted, HealthCheckProtocol, HealthCheckSpec, Kind, ListenerSpec, Metadata,
    Object, Protocol, ProxyProtocol, ReturnPath, RuleProtocol, SecurityRuleSpec, SnatPoolSpec, SnatPoolStatus,
    TargetGroupSpec, TargetSpec,
};

/// Longest name that tables take, in characters.
const LONGEST_NAME: usize = 128;

/// A resource with the digest of its content.
#[derive(Debug)]
pub struct Rendered {
    /// The resource.
    pub resource: Resource,
    /// The first 128 bits of SHA-256 of its message.
    pub digest: u128,
    /// Size of its message, in bytes.
    pub bytes: usize,
}

impl Rendered {
    pub(super) fn new(resource: Resource) -> Self {
        let bytes = message(&resource).encode_to_vec();
        let digest = Sha256::digest(&bytes);
        let digest = u128::from_be_bytes(digest[..16].try_into().expect("SHA-256 has 32 bytes"));
        Self { resource, digest, bytes: bytes.len() }
    }

    /// The message that carries it.
    #[must_use]
    pub fn message(&self) -> proto::Resource {
        message(&self.resource)
    }
}

fn message(resource: &Resource) -> proto::Resource {
    proto::Resource::try_from(resource)
        .expect("numbers of rendered resources come from unsigned types of at most 32 bits")
}

/// Whether an endpoint in this state is on gateways. One that failed is tried again with each change that concerns it.
#[must_use]
pub const fn has_access(state: EndpointState) -> bool {
    matches!(state, EndpointState::Pending | EndpointState::Available | EndpointState::Failed)
}

/// The pools that flows to a service need, by id.
#[must_use]
pub fn pools_of_service(state: &State, service: &str) -> BTreeSet<String> {
    let Some(service) = state.service(service) else { return BTreeSet::new() };
    let balancers = service.spec.load_balancers.iter().filter_map(|id| state.load_balancer(id));
    let groups =
        balancers.flat_map(|balancer| balancer.spec.listeners.iter().flat_map(|listener| &listener.target_groups));
    let groups = groups.filter_map(|group| state.target_group(&group.target_group));
    groups
        .map(|group| group.spec.snat_pool.clone())
        .chain(service.spec.plain.iter().map(|plain| plain.snat_pool.clone()))
        .collect()
}

/// The resources that an object is on a gateway, and the objects that they lead to.
pub(super) fn node(state: &State, gateway: &str, node: &Node, releasing: &Releasing) -> (Vec<Resource>, Vec<Node>) {
    let (kind, id) = node;
    match kind {
        Kind::Vpc => (vec![Resource::Vpc(declared::Vpc { id: id.clone() })], Vec::new()),
        Kind::Attachment => attachment(state, id),
        Kind::SnatPool => pool(state, gateway, id, releasing),
        Kind::TargetGroup => group(state, id),
        Kind::LoadBalancer => balancer(state, id),
        Kind::Service => service(state, id),
        Kind::Endpoint => endpoint(state, gateway, id, releasing),
        Kind::SecurityGroup => (security_group(state, id).into_iter().collect(), Vec::new()),
        Kind::Principal | Kind::Gateway => (Vec::new(), Vec::new()),
    }
}

/// The name under which gateways know an object of which only the owner's names are unique.
fn qualified(metadata: &Metadata) -> String {
    let name = format!("{}/{}", metadata.owner, metadata.name);
    if name.chars().count() <= LONGEST_NAME { name } else { metadata.id.clone() }
}

fn attachment(state: &State, id: &str) -> (Vec<Resource>, Vec<Node>) {
    let Some(attachment) = state.attachment(id) else { return Default::default() };
    let name = qualified(&attachment.metadata);
    let AttachmentSpec { gateway: _, vpc, port, vlan, prefixes, mtu, return_path, mac, routes } = &attachment.spec;
    let routes = routes.iter().map(|route| declared::Route {
        attachment: name.clone(),
        destination: route.destination.clone(),
        via: route.via.map(|via| via.to_string()),
    });
    let routes = routes.collect();
    let return_path = match return_path {
        ReturnPath::Route => declared::ReturnPath::Route,
        ReturnPath::LastHop => declared::ReturnPath::LastHop,
    };
    let attachment = declared::Attachment {
        name,
        vpc: vpc.clone(),
        port: port.clone(),
        vlan: vlan.map(i64::from),
        prefixes: prefixes.clone(),
        mtu: mtu.map(i64::from),
        return_path,
        mac: mac.clone(),
    };
    (vec![Resource::Attachment(attachment, routes)], vec![(Kind::Vpc, vpc.clone())])
}

fn pool(state: &State, gateway: &str, id: &str, releasing: &Releasing) -> (Vec<Resource>, Vec<Node>) {
    let Some(pool) = state.snat_pool(id) else { return Default::default() };
    let held = pool.spec.addresses.iter().filter(|&&address| {
        pool.status.holders.get(&address).is_some_and(|holder| holder == gateway)
            && !releasing.contains(&(id.to_owned(), address))
    });
    let resource = declared::SnatPool {
        name: qualified(&pool.metadata),
        vpc: pool.spec.vpc.clone(),
        draining: held
            .clone()
            .filter(|address| pool.spec.draining.contains(address))
            .map(ToString::to_string)
            .collect(),
        addresses: held.map(ToString::to_string).collect(),
        exhausted: match pool.spec.exhausted {
            Exhausted::Drop => None,
            Exhausted::Reset => Some(declared::Exhausted::Reset),
            Exhausted::Unreachable => Some(declared::Exhausted::Unreachable),
        },
        ports: pool.spec.ports.clone(),
        rest_seconds: pool.spec.rest_seconds.map(i64::from),
    };
    (vec![Resource::SnatPool(resource)], vec![(Kind::Vpc, pool.spec.vpc.clone())])
}

fn security_group(state: &State, id: &str) -> Option<Resource> {
    let group = state.security_group(id)?;
    let rule = |rule: &SecurityRuleSpec| declared::SecurityRule {
        protocol: rule.protocol.map(|protocol| match protocol {
            RuleProtocol::Tcp => declared::RuleProtocol::Tcp,
            RuleProtocol::Udp => declared::RuleProtocol::Udp,
            RuleProtocol::Icmp => declared::RuleProtocol::Icmp,
        }),
        ports: rule.ports.clone(),
        source: Some(rule.source.clone()),
        source_group: None,
    };
    Some(Resource::SecurityGroup(declared::SecurityGroup {
        name: qualified(&group.metadata),
        prefixes: Vec::new(),
        cut_flows: Some(group.spec.cut_flows),
        rules: group.spec.rules.iter().map(rule).collect(),
    }))
}

/// The names under which gateways know security groups, and the objects that they are.
fn guards(state: &State, ids: &[String]) -> (Vec<String>, Vec<Node>) {
    let groups = ids.iter().filter_map(|id| state.security_group(id));
    (
        groups.map(|group| qualified(&group.metadata)).collect(),
        ids.iter().map(|id| (Kind::SecurityGroup, id.clone())).collect(),
    )
}

fn pool_name(state: &State, id: &str) -> String {
    state.snat_pool(id).map_or_else(|| id.to_owned(), |pool| qualified(&pool.metadata))
}

fn target(target: &TargetSpec) -> declared::Target {
    declared::Target {
        address: target.address.to_string(),
        port: target.port.into(),
        weight: Some(target.weight.into()),
        mapped_port: target.mapped_port.map(i64::from),
        zone: target.zone.clone(),
    }
}

fn group(state: &State, id: &str) -> (Vec<Resource>, Vec<Node>) {
    let Some(group) = state.target_group(id) else { return Default::default() };
    let TargetGroupSpec { vpc, snat_pool, slots, health_check, targets, .. } = &group.spec;
    let resource = declared::TargetGroup {
        name: qualified(&group.metadata),
        vpc: vpc.clone(),
        snat_pool: pool_name(state, snat_pool),
        slots: slots.map(i64::from),
        health_check: health_check.as_ref().map(probe),
        unhealthy_drain_seconds: group.spec.unhealthy_drain_seconds.map(i64::from),
        deregistration_delay_seconds: group.spec.deregistration_delay_seconds.map(i64::from),
        deregistration_ends_flows: Some(group.spec.deregistration_ends_flows),
        proxy_protocol: Some(proxy_protocol(group.spec.proxy_protocol)),
        sticky_seconds: group.spec.sticky_seconds.map(i64::from),
        targets: targets.iter().map(target).collect(),
    };
    (vec![Resource::TargetGroup(resource)], vec![(Kind::SnatPool, snat_pool.clone()), (Kind::Vpc, vpc.clone())])
}

fn probe(check: &HealthCheckSpec) -> declared::HealthCheck {
    let protocol = match check.protocol {
        HealthCheckProtocol::Tcp => declared::HealthCheckProtocol::Tcp,
        HealthCheckProtocol::Http => declared::HealthCheckProtocol::Http,
        HealthCheckProtocol::Https => declared::HealthCheckProtocol::Https,
    };
    declared::HealthCheck {
        protocol,
        port: check.port.map(i64::from),
        path: check.path.clone(),
        matcher: check.matcher.clone(),
        interval_seconds: check.interval_seconds.map(i64::from),
        timeout_seconds: check.timeout_seconds.map(i64::from),
        healthy_threshold: check.healthy_threshold.map(i64::from),
        unhealthy_threshold: check.unhealthy_threshold.map(i64::from),
    }
}

const fn proxy_protocol(header: ProxyProtocol) -> declared::ProxyProtocol {
    match header {
        ProxyProtocol::Off => declared::ProxyProtocol::Off,
        ProxyProtocol::Aws => declared::ProxyProtocol::Aws,
        ProxyProtocol::Google => declared::ProxyProtocol::Google,
        ProxyProtocol::Azure => declared::ProxyProtocol::Azure,
    }
}

const fn protocol(protocol: Protocol) -> declared::Protocol {
    match protocol {
        Protocol::Tcp => declared::Protocol::Tcp,
        Protocol::Udp => declared::Protocol::Udp,
    }
}

fn balancer(state: &State, id: &str) -> (Vec<Resource>, Vec<Node>) {
    let Some(balancer) = state.load_balancer(id) else { return Default::default() };
    let listener = |listener: &ListenerSpec| {
        let groups = listener.target_groups.iter().map(|group| declared::WeightedGroup {
            name: state.target_group(&group.target_group).map_or_else(String::new, |group| qualified(&group.metadata)),
            weight: Some(group.weight.into()),
        });
        declared::Listener {
            protocol: protocol(listener.protocol),
            port: listener.port.into(),
            ports: listener.ports.clone(),
            idle_seconds: listener.idle_seconds.map(i64::from),
            mss: listener.mss.map(i64::from),
            reset_on_expiry: listener.reset_on_expiry,
            target_groups: groups.collect(),
        }
    };
    let listeners = &balancer.spec.listeners;
    let (security_groups, mut leads_to) = guards(state, &balancer.spec.security_groups);
    let resource = declared::LoadBalancer {
        name: qualified(&balancer.metadata),
        listeners: listeners.iter().map(listener).collect(),
        security_groups,
        enforce_on_private_link: balancer.spec.enforce_on_private_link,
        cross_zone: balancer.spec.cross_zone,
    };
    let groups: BTreeSet<&String> =
        listeners.iter().flat_map(|listener| listener.target_groups.iter().map(|group| &group.target_group)).collect();
    leads_to.extend(groups.into_iter().map(|group| (Kind::TargetGroup, group.clone())));
    (vec![Resource::LoadBalancer(resource)], leads_to)
}

/// A service with plain targets has a load balancer and a group of its own, named as the service is.
fn service(state: &State, id: &str) -> (Vec<Resource>, Vec<Node>) {
    let Some(service) = state.service(id) else { return Default::default() };
    let Some(plain) = &service.spec.plain else {
        let balancers = service.spec.load_balancers.iter().filter_map(|id| state.load_balancer(id));
        let load_balancers = balancers.map(|balancer| qualified(&balancer.metadata)).collect();
        let leads_to = service.spec.load_balancers.iter().map(|id| (Kind::LoadBalancer, id.clone())).collect();
        return (vec![Resource::Service(declared::Service { id: id.to_owned(), load_balancers })], leads_to);
    };
    let group = declared::TargetGroup {
        name: id.to_owned(),
        vpc: plain.vpc.clone(),
        snat_pool: pool_name(state, &plain.snat_pool),
        targets: plain.targets.iter().map(target).collect(),
        ..declared::TargetGroup::default()
    };
    let listener = declared::Listener {
        protocol: protocol(plain.protocol),
        port: plain.port.into(),
        target_groups: vec![declared::WeightedGroup { name: id.to_owned(), weight: None }],
        ..declared::Listener::default()
    };
    let balancer =
        declared::LoadBalancer { name: id.to_owned(), listeners: vec![listener], ..declared::LoadBalancer::default() };
    let service = declared::Service { id: id.to_owned(), load_balancers: vec![id.to_owned()] };
    let resources = vec![Resource::TargetGroup(group), Resource::LoadBalancer(balancer), Resource::Service(service)];
    (resources, vec![(Kind::SnatPool, plain.snat_pool.clone()), (Kind::Vpc, plain.vpc.clone())])
}

fn endpoint(state: &State, gateway: &str, id: &str, releasing: &Releasing) -> (Vec<Resource>, Vec<Node>) {
    let Some(endpoint) = state.endpoint(id) else { return Default::default() };
    let held =
        endpoint.status.addresses.iter().filter(|held| {
            held.gateway.as_deref() == Some(gateway) && !releasing.contains(&(id.to_owned(), held.address))
        });
    let zones: Vec<String> = held.clone().map(|held| held.zone.clone().unwrap_or_default()).collect();
    let spec = &endpoint.spec;
    let (security_groups, mut leads_to) = guards(state, &endpoint.spec.security_groups);
    let resource = declared::Endpoint {
        id: id.to_owned(),
        vpc: endpoint.spec.vpc.clone(),
        service: endpoint.spec.service.clone(),
        addresses: held.map(|held| held.address.to_string()).collect(),
        mtu: endpoint.spec.mtu.map(i64::from),
        echo: endpoint.spec.echo,
        security_groups,
        zones: if zones.iter().all(String::is_empty) { Vec::new() } else { zones },
        snat_port_budget: spec.snat_port_budget.map(i64::from),
        max_flows: spec.max_flows.map(i64::from),
        new_flows_per_second: spec.new_flows_per_second.map(i64::from),
        bytes_per_second: spec.bytes_per_second.and_then(|bytes| i64::try_from(bytes).ok()),
    };
    leads_to.push((Kind::Service, endpoint.spec.service.clone()));
    (vec![Resource::Endpoint(resource)], leads_to)
}

/// The key under which gateways know a pool.
#[must_use]
pub fn pool_key(pool: &Object<SnatPoolSpec, SnatPoolStatus>) -> ResourceKey {
    ResourceKey { kind: ResourceKind::SnatPool, name: qualified(&pool.metadata) }
}

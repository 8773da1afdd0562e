//! Target groups, load balancers, services and endpoints.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use postern_selection::MaglevTable;
use postern_wire::Family;

use super::network::{Facts, LEAST_MTU, LocalKey, Network};
use super::security;
use super::{
    CheckedBalancer, CheckedEndpoint, CheckedGroup, CheckedListener, CheckedService, CheckedTarget, Checker, Names,
    World, text,
};
use super::{health, range};
use crate::declaration::{self, Declaration, Protocol};
use crate::error::Problem;
use crate::resource::ResourceKind;
use crate::snapshot::{self, ProxyProtocol};

/// Largest weight.
const WEIGHT: i64 = 999;
/// Why a group that maps ports has no stickiness.
const MAPPED_IS_STICKY: &str = "for a group that maps ports, where the port says which target it is; leave it out";

pub(super) fn groups(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    vpcs: &Names<'_>,
    (pools, pool_vpcs): (&Names<'_>, &[Option<usize>]),
    network: &Network<'_>,
) -> Vec<CheckedGroup> {
    let keys = checker.keys;
    let facts = network.facts;
    let place = |at: usize| keys.place("target_group", at, &declaration.target_groups[at].name);
    let key = |at: usize, field: &str| format!("{}.{field}", place(at));
    checker.unique(declaration.target_groups.iter().map(|group| group.name.as_str()), |at| key(at, "name"));
    let mut checked = Vec::new();
    for (at, written) in declaration.target_groups.iter().enumerate() {
        checker.name(|| key(at, "name"), &written.name);
        let vpc = checker.reference(|| key(at, "vpc"), &written.vpc, vpcs);
        let pool = checker.reference(|| key(at, "snat_pool"), &written.snat_pool, pools);
        if let (Some(vpc), Some(pool)) = (vpc, pool)
            // A pool whose own VPC is not declared was reported already.
            && let Some(of_pool) = pool_vpcs[pool].filter(|of_pool| *of_pool != vpc)
        {
            let problem = Problem::OtherVpc {
                other: facts.vpc_id(of_pool).to_owned(),
                of: format!("the group \"{}\"", written.name),
                vpc: facts.vpc_id(vpc).to_owned(),
            };
            checker.error(key(at, "snat_pool"), &written.snat_pool, problem);
        }
        let slots = slots(checker, &|| key(at, "slots"), written);
        let targets = targets(checker, &|| place(at), written, vpc, facts);
        checked.push(CheckedGroup {
            name: written.name.clone(),
            vpc: vpc.unwrap_or(0),
            pool: pool.unwrap_or(0),
            slots,
            health: Arc::new(health::settings(checker, &|field| key(at, field), written)),
            proxy_protocol: written.proxy_protocol.unwrap_or_default(),
            sticky_seconds: written.sticky_seconds.map_or(0, |seconds| {
                if written.targets.iter().any(|target| target.mapped_port.is_some()) {
                    checker.error(key(at, "sticky_seconds"), seconds, Problem::Form(MAPPED_IS_STICKY.to_owned()));
                }
                checker.number(&|| key(at, "sticky_seconds"), seconds, range::STICKY_SECONDS, " seconds") as u32
            }),
            targets,
        });
    }
    checked
}

fn slots(checker: &mut Checker<'_>, key: &dyn Fn() -> String, group: &declaration::TargetGroup) -> usize {
    let by_count = MaglevTable::slots_for(group.targets.len());
    let slots = match group.slots {
        None => by_count,
        Some(written) => match usize::try_from(written) {
            Ok(slots @ (MaglevTable::SLOTS | MaglevTable::SLOTS_FOR_MANY)) => slots,
            _ => {
                checker.error(key(), written, Problem::Form("a number of slots; allowed is 16381 or 65537".to_owned()));
                by_count
            }
        },
    };
    let most = slots.min(usize::from(u16::MAX));
    if group.targets.len() > most {
        let name = key().replace(".slots", ".target");
        checker.error(name, group.targets.len(), Problem::Range { low: 0, high: most as i64, unit: " targets" });
    }
    slots
}

fn targets(
    checker: &mut Checker<'_>,
    group: &dyn Fn() -> String,
    written: &declaration::TargetGroup,
    vpc: Option<usize>,
    facts: &Facts,
) -> Vec<CheckedTarget> {
    let key = |at: usize, field: &str| format!("{}.target[{at}].{field}", group());
    let mut first = HashMap::new();
    let mut checked: Vec<CheckedTarget> = Vec::new();
    let mut mapped = HashMap::new();
    let maps = written.targets.iter().any(|target| target.mapped_port.is_some());
    for (at, target) in written.targets.iter().enumerate() {
        let mapped_port = match target.mapped_port {
            Some(port) => checker.number(&|| key(at, "mapped_port"), port, (1, 65_535), "") as u16,
            None => 0,
        };
        if maps && target.mapped_port.is_none() {
            let problem = Problem::Missing("1 to 65535, because other targets of the group have one");
            checker.error(key(at, "mapped_port"), "", problem);
        } else if let Some(earlier) = mapped.insert(mapped_port, at).filter(|_| maps) {
            checker.error(
                key(at, "mapped_port"),
                i64::from(mapped_port),
                Problem::Duplicate(key(earlier, "mapped_port")),
            );
        }
        let zone = checker.zone(|| key(at, "zone"), target.zone.as_deref());
        let port = checker.number(&|| key(at, "port"), target.port, (1, 65_535), "") as u16;
        let weight = checker.number(&|| key(at, "weight"), target.weight.unwrap_or(1), (0, WEIGHT), "") as u16;
        let Some(address) = checker.address(&|| key(at, "address"), &target.address) else { continue };
        if let Some(vpc) = vpc {
            if let Some(problem) = facts.network_end(vpc, address) {
                checker.error(key(at, "address"), &target.address, problem);
            } else if !facts.has_route(vpc, address) {
                let problem = Problem::NoRoute(facts.vpc_id(vpc).to_owned());
                checker.error(key(at, "address"), &target.address, problem);
            }
        }
        let (family, of_first) = (Family::of(address), checked.first().map(|first| first.address));
        if let Some(first) = of_first.map(Family::of).filter(|first| *first != family) {
            checker.error(key(at, "address"), &target.address, Problem::OtherFamily { family, first });
            continue;
        }
        match first.get(&(address, port)) {
            None => {
                first.insert((address, port), at);
                checked.push(CheckedTarget { address, port, weight, mapped_port, zone });
            }
            Some(&earlier) => {
                let problem = Problem::Duplicate(format!("{} with the same port", key(earlier, "address")));
                checker.error(key(at, "address"), &target.address, problem);
            }
        }
    }
    checked.sort_unstable();
    checked
}

/// A target that is an address of Postern's own would be a loop.
pub(super) fn targets_are_not_local(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    groups: &[CheckedGroup],
    network: &Network<'_>,
    world: Option<&World<'_>>,
) {
    let keys = checker.keys;
    let mut look = |vpc: usize, group: usize, written: &declaration::TargetGroup| {
        for (at, target) in written.targets.iter().enumerate() {
            let Ok(address) = target.address.parse() else { continue };
            if let Some(local) = network.local_key(vpc, address) {
                let place = keys.place("target_group", group, &written.name);
                checker.error(format!("{place}.target[{at}].address"), &target.address, Problem::Duplicate(local));
            }
        }
    };
    for (group, (written, checked)) in declaration.target_groups.iter().zip(groups).enumerate() {
        look(checked.vpc, group, written);
    }
    let Some(world) = world else { return };
    // New addresses, where targets of groups are that nothing was said of.
    let taken = declaration.endpoints.iter().flat_map(|endpoint| {
        endpoint.addresses.iter().filter_map(|address| Some((endpoint.vpc.as_str(), address.parse().ok()?)))
    });
    let taken: BTreeSet<&str> = taken.flat_map(|(vpc, address)| world.groups_with_target(vpc, address)).collect();
    for name in taken {
        let (vpc, written) = world.group(name);
        look(vpc, usize::MAX, written);
    }
}

pub(super) fn load_balancers(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    world: Option<&World<'_>>,
) -> Vec<CheckedBalancer> {
    let keys = checker.keys;
    let groups = Names::of("target_group", declaration.target_groups.iter().map(|group| &group.name));
    let place = |at: usize| keys.place("load_balancer", at, &declaration.load_balancers[at].name);
    let key = |at: usize| format!("{}.name", place(at));
    checker.unique(declaration.load_balancers.iter().map(|balancer| balancer.name.as_str()), key);
    let mut checked = Vec::new();
    for (at, written) in declaration.load_balancers.iter().enumerate() {
        checker.name(|| key(at), &written.name);
        let key = || format!("{}.security_groups", place(at));
        let security_groups = security::references(checker, &key, &written.security_groups, declaration, world);
        let enforced = written.enforce_on_private_link.unwrap_or(true);
        let mut listeners = Vec::new();
        let mut taken: Vec<(Ports, String)> = Vec::new();
        for (position, listener) in written.listeners.iter().enumerate() {
            let prefix = format!("{}.listener[{position}]", place(at));
            let checked = check_listener(checker, &prefix, listener, (&groups, &declaration.target_groups), world);
            let flows = Ports { protocol: checked.protocol, first: checked.port, last: checked.last_port };
            if let Some((port, first)) = overlap(&taken, flows) {
                let problem = listener_twice((flows.protocol, port), "load balancer", first.clone());
                match &listener.ports {
                    Some(ports) => checker.error(format!("{prefix}.ports"), ports, problem),
                    None => checker.error(format!("{prefix}.port"), listener.port, problem),
                }
            }
            let key = if listener.ports.is_some() { "ports" } else { "port" };
            taken.push((flows, format!("{prefix}.{key}")));
            listeners.push(checked);
        }
        checked.push(CheckedBalancer {
            name: written.name.clone(),
            listeners,
            security_groups: if enforced { security_groups } else { Vec::new() },
            cross_zone: written.cross_zone.unwrap_or(false),
        });
    }
    checked
}

fn check_listener(
    checker: &mut Checker<'_>,
    prefix: &str,
    written: &declaration::Listener,
    (groups, declared): (&Names<'_>, &[declaration::TargetGroup]),
    world: Option<&World<'_>>,
) -> CheckedListener {
    let key = |field: &str| format!("{prefix}.{field}");
    let tcp = written.protocol == Protocol::Tcp;
    let (idle_range, idle_default) = if tcp { ((60, 6000), 350) } else { ((10, 6000), 120) };
    let unit = if tcp { " seconds for TCP" } else { " seconds for UDP" };
    let idle = written.idle_seconds.unwrap_or(idle_default);
    let mss = written.mss.map(|mss| {
        if !tcp {
            checker.error(key("mss"), mss, Problem::TcpOnly);
        }
        checker.number(&|| key("mss"), mss, (88, 65_495), " bytes") as u16
    });
    let reset_on_expiry = written.reset_on_expiry.unwrap_or(false);
    if reset_on_expiry && !tcp {
        checker.error(key("reset_on_expiry"), "true", Problem::TcpOnly);
    }
    if written.target_groups.is_empty() {
        checker.error(key("target_groups"), "", Problem::Missing("at least one { name = \"…\", weight = … }"));
    }
    let mut shares = Vec::new();
    for (at, group) in written.target_groups.iter().enumerate() {
        let key = |field: &str| format!("{prefix}.target_groups[{at}].{field}");
        let weight = checker.number(&|| key("weight"), group.weight.unwrap_or(1), (0, WEIGHT), "") as u32;
        let known = declared.iter().find(|declared| declared.name == group.name);
        let known = known.or_else(|| world.and_then(|world| world.find_group(&group.name)));
        if !tcp && known.and_then(|group| group.proxy_protocol).unwrap_or_default() != ProxyProtocol::Off {
            checker.error(key("name"), &group.name, Problem::ProxyTcpOnly);
        }
        let world = world.map(|world| (world, ResourceKind::TargetGroup));
        checker.refers(|| key("name"), &group.name, groups, world);
        if weight > 0 {
            shares.push((weight, group.name.clone()));
        }
    }
    checker.unique(written.target_groups.iter().map(|group| group.name.as_str()), |at| {
        format!("{prefix}.target_groups[{at}].name")
    });
    let (port, last_port) = listener_ports(checker, &key, written);
    CheckedListener {
        protocol: if tcp { 6 } else { 17 },
        port,
        last_port,
        shares,
        idle_seconds: checker.number(&|| key("idle_seconds"), idle, idle_range, unit) as u16,
        mss,
        reset_on_expiry,
    }
}

/// First and last port.
fn listener_ports(
    checker: &mut Checker<'_>,
    key: &dyn Fn(&str) -> String,
    written: &declaration::Listener,
) -> (u16, u16) {
    let Some(ports) = &written.ports else {
        let port = checker.number(&|| key("port"), written.port, (1, 65_535), "") as u16;
        return (port, port);
    };
    if written.port != 0 {
        let problem = Problem::Form("beside port; allowed is one of the two".to_owned());
        checker.error(key("ports"), ports, problem);
    }
    match text::ports(ports).filter(|range| *range.start() > 0) {
        Some(range) => range.into_inner(),
        None => {
            let form = "a range of ports; allowed is FIRST-LAST within 1-65535".to_owned();
            checker.error(key("ports"), ports, Problem::Form(form));
            (1, 1)
        }
    }
}

/// The ports of a listener, both included.
#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub(super) protocol: u8,
    pub(super) first: u16,
    pub(super) last: u16,
}

/// A port that a listener would take from one before, and what that one is.
fn overlap<T>(taken: &[(Ports, T)], ports: Ports) -> Option<(u16, &T)> {
    let common = |other: Ports| {
        let meet = other.protocol == ports.protocol && other.first <= ports.last && ports.first <= other.last;
        meet.then(|| other.first.max(ports.first))
    };
    taken.iter().find_map(|(other, of)| Some((common(*other)?, of)))
}

pub(super) fn services(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    load_balancers: &[CheckedBalancer],
    world: Option<&World<'_>>,
) -> Vec<CheckedService> {
    let keys = checker.keys;
    let names = Names::of("load_balancer", declaration.load_balancers.iter().map(|balancer| &balancer.name));
    let place = |at: usize| keys.place("service", at, &declaration.services[at].id);
    let key = |at: usize| format!("{}.id", place(at));
    checker.unique(declaration.services.iter().map(|service| service.id.as_str()), key);
    let mut checked = Vec::new();
    for (at, written) in declaration.services.iter().enumerate() {
        checker.identifier(|| key(at), &written.id, "vpce-svc-");
        let mut balancers: Vec<String> = Vec::new();
        let mut taken: Vec<(Ports, (&String, usize, usize))> = Vec::new();
        for (position, name) in written.load_balancers.iter().enumerate() {
            let key = || format!("{}.load_balancers[{position}]", place(at));
            if !checker.refers(key, name, &names, world.map(|world| (world, ResourceKind::LoadBalancer))) {
                continue;
            }
            if balancers.contains(name) {
                checker.error(key(), name, Problem::Duplicate(place(at)));
                continue;
            }
            balancers.push(name.clone());
            let found = names.find(name);
            let listeners: Vec<Ports> = match (found, world) {
                (Some(found), _) => {
                    let ports = |listener: &CheckedListener| Ports {
                        protocol: listener.protocol,
                        first: listener.port,
                        last: listener.last_port,
                    };
                    load_balancers[found].listeners.iter().map(ports).collect()
                }
                (None, Some(world)) => world.listeners(name),
                (None, None) => Vec::new(),
            };
            for (number, flows) in listeners.into_iter().enumerate() {
                match overlap(&taken, flows) {
                    // Two of one load balancer were reported there.
                    Some((port, (other, other_at, number))) if *other != name => {
                        let other = keys.place("load_balancer", *other_at, other);
                        let first = format!("{other}.listener[{number}].port");
                        checker.error(key(), name, listener_twice((flows.protocol, port), "service", first));
                    }
                    _ => {}
                }
                taken.push((flows, (name, found.unwrap_or(usize::MAX), number)));
            }
        }
        checked.push(CheckedService { id: written.id.clone(), load_balancers: balancers });
    }
    checked
}

fn listener_twice((protocol, port): (u8, u16), of: &'static str, first: String) -> Problem {
    let protocol = if protocol == 6 { "tcp" } else { "udp" };
    Problem::ListenerTwice { protocol, port, of, first }
}

pub(super) fn endpoints(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    vpcs: &Names<'_>,
    network: &mut Network<'_>,
    world: Option<&World<'_>>,
) -> Vec<CheckedEndpoint> {
    let keys = checker.keys;
    let services = Names::of("service", declaration.services.iter().map(|service| &service.id));
    let place = |at: usize| keys.place("endpoint", at, &declaration.endpoints[at].id);
    let key = |at: usize, field: &str| format!("{}.{field}", place(at));
    checker.unique(declaration.endpoints.iter().map(|endpoint| endpoint.id.as_str()), |at| key(at, "id"));
    let mut checked = Vec::new();
    for (at, written) in declaration.endpoints.iter().enumerate() {
        checker.identifier(|| key(at, "id"), &written.id, "vpce-");
        let vpc = checker.reference(|| key(at, "vpc"), &written.vpc, vpcs);
        let of_world = world.map(|world| (world, ResourceKind::Service));
        checker.refers(|| key(at, "service"), &written.service, &services, of_world);
        let mtu = written.mtu.map(|mtu| checker.number(&|| key(at, "mtu"), mtu, (576, 65_535), " bytes") as u16);
        if let Some(vpc) = vpc
            && !network.facts.is_attached(vpc)
        {
            checker.error(key(at, "vpc"), &written.vpc, Problem::NoAttachment);
        }
        if !written.zones.is_empty() && written.zones.len() != written.addresses.len() {
            let form = format!(
                "{} zones for {} addresses; allowed is one for each",
                written.zones.len(),
                written.addresses.len()
            );
            checker.error(key(at, "zones"), &written.zones.join(", "), Problem::Form(form));
        }
        if written.addresses.is_empty() {
            checker.error(key(at, "addresses"), "", Problem::Missing("at least one address of the consumer's VPC"));
        }
        let mut addresses = Vec::with_capacity(written.addresses.len());
        for (position, text) in written.addresses.iter().enumerate() {
            let place = LocalKey { kind: ResourceKind::Endpoint, at, position };
            let Some(address) = checker.address(&|| network.text(place), text) else { continue };
            if let Some(vpc) = vpc {
                network.claim(checker, vpc, place, address);
            }
            let zone = written.zones.get(position).map(String::as_str).filter(|zone| !zone.is_empty());
            let zone = checker.zone(|| format!("{}[{position}]", key(at, "zones")), zone);
            addresses.push((address, zone));
        }
        if addresses.iter().any(|(address, _)| address.is_ipv6())
            && let Some(mtu) = mtu.filter(|mtu| *mtu < LEAST_MTU)
        {
            let range = (i64::from(LEAST_MTU), 65_535);
            checker.number(&|| key(at, "mtu"), mtu.into(), range, " bytes with an IPv6 address");
        }
        let groups = &written.security_groups;
        let security_groups = security::references(checker, &|| key(at, "security_groups"), groups, declaration, world);
        let limits = limits(checker, &|field| key(at, field), written);
        checked.push(CheckedEndpoint {
            id: written.id.clone(),
            vpc: vpc.unwrap_or(0),
            service: written.service.clone(),
            addresses,
            written: (mtu, written.echo),
            security_groups,
            limits,
        });
    }
    checked
}

fn limits(
    checker: &mut Checker<'_>,
    key: &dyn Fn(&str) -> String,
    written: &declaration::Endpoint,
) -> snapshot::EndpointLimits {
    let mut limit = |field: &str, value: Option<i64>, range: (i64, i64), unit: &'static str| {
        value.map(|value| checker.number(&|| key(field), value, range, unit))
    };
    let ports = limit("snat_port_budget", written.snat_port_budget, range::FLOWS, " ports");
    let most = limit("max_flows", written.max_flows, range::FLOWS, " flows");
    let new = limit("new_flows_per_second", written.new_flows_per_second, range::NEW_FLOWS, " flows");
    let bytes = limit("bytes_per_second", written.bytes_per_second, range::BANDWIDTH, " bytes");
    snapshot::EndpointLimits {
        ports: ports.map(|ports| ports as u32),
        flows: most.map(|flows| flows as u32),
        new_flows_per_second: new.map(|flows| flows as u32),
        bytes_per_second: bytes.map(|bytes| bytes as u64),
    }
}

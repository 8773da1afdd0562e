//! Target groups, load balancers, services and endpoints.

use std::collections::HashMap;
use std::sync::Arc;

use postern_selection::MaglevTable;

use super::health;
use super::network::{LocalKey, Network};
use super::{CheckedEndpoint, CheckedGroup, CheckedService, Checker, Names};
use crate::declaration::{self, Declaration, Protocol};
use crate::error::Problem;
use crate::snapshot::{Listener, SnatPool, TargetGroupIndex};

/// Largest weight.
const WEIGHT: i64 = 999;

pub(super) fn groups(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    vpcs: &Names<'_>,
    pools: &[SnatPool],
    network: &Network<'_>,
) -> Vec<CheckedGroup> {
    let pool_names = Names::of("snat_pool", declaration.snat_pools.iter().map(|pool| &pool.name));
    let key = |at: usize, field: &str| format!("target_group[{at}].{field}");
    checker.unique(declaration.target_groups.iter().map(|group| group.name.as_str()), |at| key(at, "name"));
    let mut checked = Vec::new();
    for (at, written) in declaration.target_groups.iter().enumerate() {
        checker.name(|| key(at, "name"), &written.name);
        let vpc = checker.reference(|| key(at, "vpc"), &written.vpc, vpcs);
        let pool = checker.reference(|| key(at, "snat_pool"), &written.snat_pool, &pool_names);
        if let (Some(vpc), Some(pool)) = (vpc, pool)
            // A pool whose own VPC is not declared was reported already.
            && vpcs.find(&declaration.snat_pools[pool].vpc).is_some_and(|of_pool| of_pool != vpc)
        {
            let problem = Problem::OtherVpc {
                other: network.vpc_id(pools[pool].vpc.at()).to_owned(),
                of: format!("the group \"{}\"", written.name),
                vpc: network.vpc_id(vpc).to_owned(),
            };
            checker.error(key(at, "snat_pool"), &written.snat_pool, problem);
        }
        let slots = slots(checker, &|| key(at, "slots"), written);
        let targets = targets(checker, at, written, vpc, network);
        checked.push(CheckedGroup {
            name: written.name.clone(),
            vpc: vpc.unwrap_or(0),
            pool: pool.unwrap_or(0),
            slots,
            health: Arc::new(health::settings(checker, &|field| key(at, field), written)),
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
    group: usize,
    written: &declaration::TargetGroup,
    vpc: Option<usize>,
    network: &Network<'_>,
) -> Vec<(std::net::Ipv4Addr, u16, u16)> {
    let key = |at: usize, field: &str| format!("target_group[{group}].target[{at}].{field}");
    let mut first = HashMap::new();
    let mut checked = Vec::new();
    for (at, target) in written.targets.iter().enumerate() {
        let port = checker.number(&|| key(at, "port"), target.port, (1, 65_535), "") as u16;
        let weight = checker.number(&|| key(at, "weight"), target.weight.unwrap_or(1), (0, WEIGHT), "") as u16;
        let Some(address) = checker.address(&|| key(at, "address"), &target.address) else { continue };
        if let Some(vpc) = vpc {
            if let Some(problem) = network.network_end(vpc, address) {
                checker.error(key(at, "address"), &target.address, problem);
            } else if !network.has_route(vpc, address) {
                let problem = Problem::NoRoute(network.vpc_id(vpc).to_owned());
                checker.error(key(at, "address"), &target.address, problem);
            }
        }
        match first.get(&(address, port)) {
            None => {
                first.insert((address, port), at);
                checked.push((address, port, weight));
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
) {
    for (group, (written, checked)) in declaration.target_groups.iter().zip(groups).enumerate() {
        for (at, target) in written.targets.iter().enumerate() {
            let Ok(address) = target.address.parse() else { continue };
            if let Some(local) = network.local_key(checked.vpc, address) {
                let key = format!("target_group[{group}].target[{at}].address");
                checker.error(key, &target.address, Problem::Duplicate(local.text()));
            }
        }
    }
}

pub(super) fn load_balancers(checker: &mut Checker<'_>, declaration: &Declaration) -> Vec<Vec<Listener>> {
    let groups = Names::of("target_group", declaration.target_groups.iter().map(|group| &group.name));
    let key = |at: usize| format!("load_balancer[{at}].name");
    checker.unique(declaration.load_balancers.iter().map(|balancer| balancer.name.as_str()), key);
    let mut checked = Vec::new();
    for (at, written) in declaration.load_balancers.iter().enumerate() {
        checker.name(|| key(at), &written.name);
        let mut listeners = Vec::new();
        let mut taken = HashMap::new();
        for (position, listener) in written.listeners.iter().enumerate() {
            let prefix = format!("load_balancer[{at}].listener[{position}]");
            let checked = check_listener(checker, &prefix, listener, &written.name, &groups);
            if let Some(first) = taken.insert((checked.protocol, checked.port), format!("{prefix}.port")) {
                checker.error(
                    format!("{prefix}.port"),
                    listener.port,
                    listener_twice(&checked, "load balancer", first),
                );
            }
            listeners.push(checked);
        }
        checked.push(listeners);
    }
    checked
}

fn check_listener(
    checker: &mut Checker<'_>,
    prefix: &str,
    written: &declaration::Listener,
    load_balancer: &str,
    groups: &Names<'_>,
) -> Listener {
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
    if written.target_groups.is_empty() {
        checker.error(key("target_groups"), "", Problem::Missing("at least one { name = \"…\", weight = … }"));
    }
    let mut shares = Vec::new();
    let mut total = 0;
    for (at, group) in written.target_groups.iter().enumerate() {
        let key = |field: &str| format!("{prefix}.target_groups[{at}].{field}");
        let weight = checker.number(&|| key("weight"), group.weight.unwrap_or(1), (0, WEIGHT), "") as u32;
        let index = checker.reference(|| key("name"), &group.name, groups);
        if weight > 0 {
            total += weight;
            shares.push((total, TargetGroupIndex(index.unwrap_or(0) as u32)));
        }
    }
    checker.unique(written.target_groups.iter().map(|group| group.name.as_str()), |at| {
        format!("{prefix}.target_groups[{at}].name")
    });
    Listener {
        load_balancer: load_balancer.to_owned(),
        protocol: if tcp { 6 } else { 17 },
        port: checker.number(&|| key("port"), written.port, (1, 65_535), "") as u16,
        groups: shares,
        idle_seconds: checker.number(&|| key("idle_seconds"), idle, idle_range, unit) as u16,
        mss,
    }
}

pub(super) fn services(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    load_balancers: &[Vec<Listener>],
) -> Vec<CheckedService> {
    let names = Names::of("load_balancer", declaration.load_balancers.iter().map(|balancer| &balancer.name));
    let key = |at: usize| format!("service[{at}].id");
    checker.unique(declaration.services.iter().map(|service| service.id.as_str()), key);
    let mut checked = Vec::new();
    for (at, written) in declaration.services.iter().enumerate() {
        checker.identifier(|| key(at), &written.id, "vpce-svc-");
        let mut balancers = Vec::new();
        let mut taken = HashMap::new();
        for (position, name) in written.load_balancers.iter().enumerate() {
            let key = || format!("service[{at}].load_balancers[{position}]");
            let Some(balancer) = checker.reference(key, name, &names) else { continue };
            if balancers.contains(&balancer) {
                checker.error(key(), name, Problem::Duplicate(format!("service[{at}]")));
                continue;
            }
            balancers.push(balancer);
            for (number, listener) in load_balancers[balancer].iter().enumerate() {
                match taken.insert((listener.protocol, listener.port), (balancer, number)) {
                    // Two of one load balancer were reported there.
                    Some((other, number)) if other != balancer => {
                        let first = format!("load_balancer[{other}].listener[{number}].port");
                        checker.error(key(), name, listener_twice(listener, "service", first));
                    }
                    _ => {}
                }
            }
        }
        checked.push(CheckedService { id: written.id.clone(), load_balancers: balancers });
    }
    checked
}

fn listener_twice(listener: &Listener, of: &'static str, first: String) -> Problem {
    let protocol = if listener.protocol == 6 { "tcp" } else { "udp" };
    Problem::ListenerTwice { protocol, port: listener.port, of, first }
}

pub(super) fn endpoints(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    vpcs: &Names<'_>,
    network: &mut Network<'_>,
) -> Vec<CheckedEndpoint> {
    let services = Names::of("service", declaration.services.iter().map(|service| &service.id));
    let key = |at: usize, field: &str| format!("endpoint[{at}].{field}");
    checker.unique(declaration.endpoints.iter().map(|endpoint| endpoint.id.as_str()), |at| key(at, "id"));
    let mut checked = Vec::new();
    for (at, written) in declaration.endpoints.iter().enumerate() {
        checker.identifier(|| key(at, "id"), &written.id, "vpce-");
        let vpc = checker.reference(|| key(at, "vpc"), &written.vpc, vpcs);
        let service = checker.reference(|| key(at, "service"), &written.service, &services);
        let mtu = checker.number(&|| key(at, "mtu"), written.mtu.unwrap_or(8500), (576, 65_535), " bytes") as u16;
        if let Some(vpc) = vpc
            && !network.is_attached(vpc)
        {
            checker.error(key(at, "vpc"), &written.vpc, Problem::NoAttachment);
        }
        if written.addresses.is_empty() {
            checker.error(key(at, "addresses"), "", Problem::Missing("at least one address of the consumer's VPC"));
        }
        for (position, text) in written.addresses.iter().enumerate() {
            let place = LocalKey { table: "endpoint", at, position };
            let Some(address) = checker.address(&|| place.text(), text) else { continue };
            if let Some(vpc) = vpc {
                network.claim(checker, vpc, place, address);
            }
            checked.push(CheckedEndpoint {
                id: written.id.clone(),
                vpc: vpc.unwrap_or(0),
                service: service.unwrap_or(0),
                address,
                mtu,
                echo: written.echo.unwrap_or(true),
            });
        }
    }
    checked
}

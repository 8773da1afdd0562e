//! What only some gateways can enforce is refused where one cannot: it is never stored as if it held.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::addresses::Prefix;
use super::super::model::{EndpointSpec, Exhausted, Kind, ProxyProtocol, TargetSpec, feature};
use super::super::object::AnyObject;
use super::super::{Code, Refusal};
use super::Checker;

/// A feature, and the field that asks for it.
type Need = (&'static str, &'static str);

impl Checker<'_, '_> {
    /// Every gateway that would hold the object has what it asks for.
    pub(super) fn features(&self, object: &AnyObject) -> Result<(), Refusal> {
        let needs = needs(object);
        if needs.is_empty() {
            return Ok(());
        }
        let gateways = match object {
            AnyObject::Attachment(attachment) => BTreeSet::from([attachment.spec.gateway.clone()]),
            _ => self.holders(object),
        };
        for (feature, field) in needs {
            if gateways.is_empty() {
                let message = format!("{field}: no gateway is attached to its VPC, so none can enforce {feature}");
                return Err(Refusal::new(Code::NotSupportedByGateway, message).at(field));
            }
            for id in &gateways {
                let gateway = self.draft.object(Kind::Gateway, id).and_then(|object| object.as_gateway());
                let Some(gateway) = gateway else { continue };
                if !gateway.status.capabilities.iter().any(|capability| capability == feature) {
                    let message = format!("not supported by gateway {}: {feature}", gateway.metadata.name);
                    return Err(Refusal::new(Code::NotSupportedByGateway, message).at(field));
                }
            }
        }
        Ok(())
    }

    /// Gateways that would hold the object: those attached to its VPCs, and in its zones if it has any.
    fn holders(&self, object: &AnyObject) -> BTreeSet<String> {
        let mut vpcs = BTreeSet::new();
        let mut zones = BTreeSet::new();
        match object {
            AnyObject::Vpc(vpc) => drop(vpcs.insert(vpc.metadata.id.as_str())),
            AnyObject::SnatPool(pool) => drop(vpcs.insert(pool.spec.vpc.as_str())),
            AnyObject::TargetGroup(group) => drop(vpcs.insert(group.spec.vpc.as_str())),
            AnyObject::LoadBalancer(balancer) => {
                let groups = balancer.spec.listeners.iter().flat_map(|listener| &listener.target_groups);
                let groups = groups.filter_map(|group| self.draft.object(Kind::TargetGroup, &group.target_group));
                vpcs.extend(groups.filter_map(|group| Some(group.as_target_group()?.spec.vpc.as_str())));
            }
            AnyObject::Service(service) => vpcs.extend(service.spec.plain.iter().map(|plain| plain.vpc.as_str())),
            AnyObject::Endpoint(endpoint) => {
                vpcs.insert(endpoint.spec.vpc.as_str());
                let wanted = &endpoint.spec.addresses;
                if wanted.iter().all(|wanted| wanted.zone.is_some()) {
                    zones.extend(wanted.iter().filter_map(|wanted| wanted.zone.as_deref()));
                }
            }
            _ => {}
        }
        let in_zone = |gateway: &&String| {
            let object = self.draft.object(Kind::Gateway, gateway).and_then(|object| object.as_gateway());
            let zone = object.and_then(|gateway| gateway.spec.zone.as_deref());
            zones.is_empty() || zone.is_some_and(|zone| zones.contains(zone))
        };
        let networks = vpcs.into_iter().filter_map(|vpc| self.network(vpc));
        networks
            .flat_map(|network| {
                let gateways = network.reaches.iter().map(|reach| reach.gateway.clone());
                gateways.collect::<Vec<_>>()
            })
            .filter(|gateway| in_zone(&gateway))
            .collect()
    }
}

/// What an object asks for.
fn needs(object: &AnyObject) -> BTreeSet<Need> {
    let mut needs = BTreeSet::new();
    let mut need = |feature, field, asked: bool| {
        if asked {
            needs.insert((feature, field));
        }
    };
    let six =
        |prefixes: &[String]| prefixes.iter().any(|text| Prefix::parse(String::new, text).is_ok_and(Prefix::is_ipv6));
    let targets = |targets: &[TargetSpec]| {
        let six = targets.iter().any(|target| target.address.is_ipv6());
        (six, targets.iter().any(|target| target.zone.is_some()))
    };
    match object {
        AnyObject::Vpc(vpc) => need(feature::IPV6, "spec.prefixes", six(&vpc.spec.prefixes)),
        AnyObject::Attachment(attachment) => {
            need(feature::IPV6, "spec.prefixes", six(&attachment.spec.prefixes));
            let routes: Vec<_> = attachment.spec.routes.iter().map(|route| route.destination.clone()).collect();
            need(feature::IPV6, "spec.routes", six(&routes));
        }
        AnyObject::SnatPool(pool) => {
            need(feature::IPV6, "spec.addresses", pool.spec.addresses.iter().any(IpAddr::is_ipv6));
            need(feature::BUDGETS, "spec.draining", !pool.spec.draining.is_empty());
            need(feature::BUDGETS, "spec.exhausted", pool.spec.exhausted != Exhausted::Drop);
        }
        AnyObject::TargetGroup(group) => {
            let (six, zones) = targets(&group.spec.targets);
            need(feature::IPV6, "spec.targets", six);
            need(feature::ZONES, "spec.targets", zones);
            let maps = group.spec.targets.iter().any(|target| target.mapped_port.is_some());
            need(feature::PORT_MAPPING, "spec.targets", maps);
            need(feature::STICKINESS, "spec.sticky_seconds", group.spec.sticky_seconds.is_some());
            need(feature::HEALTH_CHECKS, "spec.health_check", group.spec.health_check.is_some());
            let has_header = group.spec.proxy_protocol != ProxyProtocol::Off;
            need(feature::PROXY_PROTOCOL, "spec.proxy_protocol", has_header);
        }
        AnyObject::LoadBalancer(balancer) => {
            need(feature::SECURITY_GROUPS, "spec.security_groups", !balancer.spec.security_groups.is_empty());
            need(feature::ZONES, "spec.cross_zone", balancer.spec.cross_zone == Some(false));
            let ranges = balancer.spec.listeners.iter().any(|listener| listener.ports.is_some());
            need(feature::PORT_MAPPING, "spec.listeners", ranges);
            let tells = balancer.spec.listeners.iter().any(|listener| listener.reset_on_expiry == Some(true));
            need(feature::RESET_ON_EXPIRY, "spec.listeners", tells);
        }
        AnyObject::Service(service) => {
            if let Some(plain) = &service.spec.plain {
                let (six, zones) = targets(&plain.targets);
                need(feature::IPV6, "spec.plain.targets", six);
                need(feature::ZONES, "spec.plain.targets", zones);
            }
        }
        AnyObject::Endpoint(endpoint) if !object.is_deleted() => {
            let mut addresses = endpoint.status.addresses.iter().map(|held| held.address);
            need(feature::IPV6, "spec.addresses", addresses.any(|address| address.is_ipv6()));
            need(feature::SECURITY_GROUPS, "spec.security_groups", !endpoint.spec.security_groups.is_empty());
            let EndpointSpec { snat_port_budget, max_flows, new_flows_per_second, bytes_per_second, .. } =
                &endpoint.spec;
            need(feature::BUDGETS, "spec.snat_port_budget", snat_port_budget.is_some());
            need(feature::BUDGETS, "spec.max_flows", max_flows.is_some());
            need(feature::BUDGETS, "spec.new_flows_per_second", new_flows_per_second.is_some());
            need(feature::BUDGETS, "spec.bytes_per_second", bytes_per_second.is_some());
        }
        _ => {}
    }
    needs
}

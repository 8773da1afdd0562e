//! What is declared already, for the checks of what changes.

use std::collections::HashSet;
use std::net::IpAddr;

use postern_wire::Family;

use super::Keys;
use super::services::Ports;
use crate::declaration;
use crate::place::{Base, Placed};
use crate::resource::ResourceKind;
use crate::snapshot::{Endpoint, EndpointIndex, LocalAddress, Snapshot, VpcIndex};
use crate::tables::Declared;

/// What is declared and stays as it is.
pub(crate) struct World<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) placed: &'a Placed,
    pub(crate) base: &'a Base,
    pub(crate) declared: &'a Declared,
    /// What is removed or looked at anew: no part of this world.
    pub(crate) touched: HashSet<(ResourceKind, &'a str)>,
}

impl<'a> World<'a> {
    pub(super) fn has(&self, kind: ResourceKind, name: &str) -> bool {
        self.declared.has(kind, name) && !self.touched.contains(&(kind, name))
    }

    pub(super) fn names(&self, kind: ResourceKind) -> impl Iterator<Item = &'a str> {
        self.declared.names(kind).filter(move |name| !self.touched.contains(&(kind, name)))
    }

    /// IP protocol numbers and ports of a load balancer's listeners, as declared.
    pub(super) fn listeners(&self, load_balancer: &str) -> Vec<Ports> {
        let listeners = self.placed.listeners(load_balancer).iter();
        let listeners = listeners.filter_map(|(_, index)| self.snapshot.listeners.get(index.at()));
        let ports = listeners.map(|one| Ports { protocol: one.protocol, first: one.port, last: one.last_port });
        ports.collect()
    }

    /// The key of what has an address in a VPC (declared index).
    pub(super) fn holder(&self, vpc: usize, address: IpAddr) -> Option<String> {
        let (place, position) = match self.snapshot.local_in(self.base.vpc(vpc), address)? {
            LocalAddress::Endpoint(index) => {
                let id = &*self.snapshot.endpoint(index)?.id;
                if self.touched.contains(&(ResourceKind::Endpoint, id)) {
                    return None;
                }
                let position = self.placed.endpoints(id).iter().position(|of_it| *of_it == index);
                (Keys::Names.place("endpoint", 0, id), position)
            }
            LocalAddress::Snat(pool) => {
                let pool = self.snapshot.pools.get(pool.at())?;
                let position = match self.declared.pool(&pool.name) {
                    Some(pool) => pool.addresses.iter().position(|of_it| of_it.parse() == Ok(address)),
                    None => None,
                };
                (Keys::Names.place("snat_pool", 0, &pool.name), position)
            }
        };
        Some(format!("{place}.addresses[{}]", position.unwrap_or(0)))
    }

    /// Groups with a target of this address.
    pub(super) fn groups_with_target(&self, vpc: &str, address: IpAddr) -> Vec<&'a str> {
        let index = self.base.vpc_index.get(vpc).map_or(VpcIndex(u32::MAX), |vpc| self.base.vpc(*vpc));
        if !self.placed.has_target(index, address) {
            return Vec::new();
        }
        let has = |group: &&'a declaration::TargetGroup| {
            group.vpc == vpc && group.targets.iter().any(|target| target.address.parse() == Ok(address))
        };
        let untouched =
            |group: &&'a declaration::TargetGroup| !self.touched.contains(&(ResourceKind::TargetGroup, &*group.name));
        self.declared.groups.values().filter(has).filter(untouched).map(|group| group.name.as_str()).collect()
    }

    /// That of a group's targets; IPv4 where there is none.
    pub(super) fn family(&self, group: &str) -> Family {
        self.family_before(group).unwrap_or_default()
    }

    /// That of a group's targets before the change.
    pub(super) fn family_before(&self, group: &str) -> Option<Family> {
        self.placed.group(group).map(|index| self.snapshot.target_groups[index.at()].family)
    }

    /// Ids of the services.
    pub(super) fn services(&self) -> impl Iterator<Item = &'a str> {
        self.names(ResourceKind::Service)
    }

    /// Names of a service's load balancers.
    pub(super) fn balancers_of(&self, service: &str) -> &'a [String] {
        if self.has(ResourceKind::Service, service) { self.declared.balancers_of(service) } else { &[] }
    }

    /// Names of the groups with a weight, of each listener of a load balancer.
    pub(super) fn groups_of_listeners(&self, load_balancer: &str) -> Vec<Vec<&'a str>> {
        if !self.has(ResourceKind::LoadBalancer, load_balancer) {
            return Vec::new();
        }
        let listeners = self.declared.listeners_of(load_balancer).iter();
        let groups = listeners.map(|listener| {
            let groups = listener.target_groups.iter().filter(|group| group.weight != Some(0));
            groups.map(|group| group.name.as_str()).collect()
        });
        groups.collect()
    }

    /// Endpoint addresses.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &'a Endpoint> {
        let untouched = |endpoint: &&'a Endpoint| !self.touched.contains(&(ResourceKind::Endpoint, &*endpoint.id));
        self.snapshot.endpoints.iter().flatten().filter(untouched)
    }

    /// The id of the service that an endpoint stands for.
    pub(super) fn service_id(&self, endpoint: &Endpoint) -> &'a str {
        &self.snapshot.services[endpoint.service.at()].id
    }

    /// Which of its endpoint's addresses it is.
    pub(super) fn position_of(&self, endpoint: &Endpoint) -> usize {
        let is_it = |index: &EndpointIndex| {
            self.snapshot.endpoint(*index).is_some_and(|other| other.address == endpoint.address)
        };
        self.placed.endpoints(&endpoint.id).iter().position(is_it).unwrap_or(0)
    }

    /// A group that stays as it is, if there is one of this name.
    pub(super) fn find_group(&self, name: &str) -> Option<&'a declaration::TargetGroup> {
        self.declared
            .groups
            .get(name)
            .filter(|group| !self.touched.contains(&(ResourceKind::TargetGroup, &*group.name)))
    }

    /// A security group.
    pub(super) fn security_group(&self, name: &str) -> Option<&'a declaration::SecurityGroup> {
        self.declared.security_groups.get(name)
    }

    /// A group and its VPC (declared index).
    pub(super) fn group(&self, name: &str) -> (usize, &'a declaration::TargetGroup) {
        let group = &self.declared.groups[name];
        (self.base.vpc_index[&group.vpc], group)
    }
}

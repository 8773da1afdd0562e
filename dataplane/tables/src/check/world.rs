//! What is declared already, for the checks of what changes.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use super::Keys;
use crate::declaration;
use crate::place::{Base, Placed};
use crate::resource::ResourceKind;
use crate::snapshot::{LocalAddress, Snapshot, VpcIndex};
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
    pub(super) fn listeners(&self, load_balancer: &str) -> Vec<(u8, u16)> {
        self.placed.listeners(load_balancer).iter().map(|(flows, _)| *flows).collect()
    }

    /// The key of what has an address in a VPC (declared index).
    pub(super) fn holder(&self, vpc: usize, address: Ipv4Addr) -> Option<String> {
        let (place, position) = match *self.snapshot.local.get(&(self.base.vpc(vpc), address))? {
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
                let position = pool.addresses.iter().position(|of_it| *of_it == address);
                (Keys::Names.place("snat_pool", 0, &pool.name), position)
            }
        };
        Some(format!("{place}.addresses[{}]", position.unwrap_or(0)))
    }

    /// Groups with a target of this address.
    pub(super) fn groups_with_target(&self, vpc: &str, address: Ipv4Addr) -> Vec<&'a str> {
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

    /// A group and its VPC (declared index).
    pub(super) fn group(&self, name: &str) -> (usize, &'a declaration::TargetGroup) {
        let group = &self.declared.groups[name];
        (self.base.vpc_index[&group.vpc], group)
    }
}

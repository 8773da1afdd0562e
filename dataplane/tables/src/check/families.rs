//! IPv4 clients reach IPv4 targets only: an endpoint's IPv4 address must lead to some.

use std::collections::{HashMap, HashSet};

use postern_wire::Family;

use super::{CheckedBalancer, CheckedGroup, CheckedService, Checker, Objects, World};
use crate::error::Problem;

/// What checked objects, and those of the world that stay as they are, lead to.
struct Families<'a> {
    groups: HashMap<&'a str, &'a CheckedGroup>,
    balancers: HashMap<&'a str, &'a CheckedBalancer>,
    services: HashMap<&'a str, &'a CheckedService>,
    world: Option<&'a World<'a>>,
}

/// Notes IPv4 addresses of endpoints all of whose service's listeners lead to IPv6 targets only.
pub(super) fn endpoints_lead_somewhere(checker: &mut Checker<'_>, objects: &Objects, world: Option<&World<'_>>) {
    let families = Families {
        groups: objects.groups.iter().map(|group| (&*group.name, group)).collect(),
        balancers: objects.load_balancers.iter().map(|balancer| (&*balancer.name, balancer)).collect(),
        services: objects.services.iter().map(|service| (&*service.id, service)).collect(),
        world,
    };
    let keys = checker.keys;
    for (at, endpoint) in objects.endpoints.iter().enumerate() {
        let narrow = endpoint.addresses.iter().enumerate().find(|(_, (address, _))| address.is_ipv4());
        if let Some((position, address)) = narrow
            && families.is_wide_only(&endpoint.service)
        {
            let key = format!("{}.addresses[{position}]", keys.place("endpoint", at, &endpoint.id));
            checker.error(key, &address.0.to_string(), Problem::OnlyIpv6Targets(endpoint.service.clone()));
        }
    }
    let Some(world) = world else { return };
    // Endpoints that nothing was said of, whose service leads to something new.
    let services = families.turned_wide(world);
    if services.is_empty() {
        return;
    }
    for endpoint in world.endpoints().filter(|endpoint| endpoint.address.is_ipv4()) {
        let service = world.service_id(endpoint);
        if services.contains(service) {
            let position = world.position_of(endpoint);
            let key = format!("{}.addresses[{position}]", keys.place("endpoint", 0, &endpoint.id));
            checker.error(key, &endpoint.address.to_string(), Problem::OnlyIpv6Targets(service.to_owned()));
        }
    }
}

impl Families<'_> {
    /// Whether a service has listeners, and all lead to IPv6 targets only.
    fn is_wide_only(&self, service: &str) -> bool {
        let wide: Vec<bool> = match (self.services.get(service), self.world) {
            (Some(service), _) => {
                service.load_balancers.iter().flat_map(|balancer| self.listeners_are_wide(balancer)).collect()
            }
            (None, Some(world)) => {
                world.balancers_of(service).iter().flat_map(|balancer| self.listeners_are_wide(balancer)).collect()
            }
            (None, None) => Vec::new(),
        };
        !wide.is_empty() && wide.into_iter().all(|wide| wide)
    }

    /// Of each listener of a load balancer, whether it leads to IPv6 targets only.
    fn listeners_are_wide(&self, balancer: &str) -> Vec<bool> {
        let are_wide = |groups: &mut dyn Iterator<Item = &str>| {
            let wide: Vec<bool> = groups.map(|group| self.family(group) == Family::V6).collect();
            !wide.is_empty() && wide.into_iter().all(|wide| wide)
        };
        match (self.balancers.get(balancer), self.world) {
            (Some(balancer), _) => {
                let listeners = balancer.listeners.iter();
                listeners.map(|listener| are_wide(&mut listener.shares.iter().map(|share| &*share.1))).collect()
            }
            (None, Some(world)) => {
                let listeners = world.groups_of_listeners(balancer);
                listeners.iter().map(|groups| are_wide(&mut groups.iter().copied())).collect()
            }
            (None, None) => Vec::new(),
        }
    }

    fn family(&self, group: &str) -> Family {
        match (self.groups.get(group), self.world) {
            (Some(group), _) => group.family(),
            (None, Some(world)) => world.family(group),
            (None, None) => Family::V4,
        }
    }

    /// Services that lead to IPv6 targets only, if that can be new: a group changes to IPv6, or a load balancer or a service is
    /// declared anew.
    fn turned_wide(&self, world: &World<'_>) -> HashSet<String> {
        let turned = |group: &&CheckedGroup| {
            group.family() == Family::V6 && world.family_before(&group.name) != Some(Family::V6)
        };
        let is_new = self.groups.values().any(turned)
            || self.balancers.keys().any(|balancer| self.listeners_are_wide(balancer).contains(&true))
            || self.services.keys().any(|service| self.is_wide_only(service));
        if !is_new {
            return HashSet::new();
        }
        let declared = self.services.keys().copied();
        let of_world = world.services();
        let all = declared.chain(of_world).filter(|service| self.is_wide_only(service));
        all.map(str::to_owned).collect()
    }
}

//! Security groups: which index each has, who refers to them, and whose flows are judged again when they change.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::{Placing, free_slot};
use crate::check::{CheckedSecurityGroup, Objects};
use crate::snapshot::{
    Endpoint, EndpointIndex, ListenerIndex, SecurityGroup, SecurityGroupIndex, Service, ServiceIndex, Snapshot,
};

/// The security groups of an endpoint or listener.
type Guards = [SecurityGroupIndex];

impl Placing<'_> {
    /// Returns the groups of which something changed.
    pub(super) fn security_groups(
        &mut self,
        groups: &[CheckedSecurityGroup],
        removed: &[Arc<str>],
    ) -> HashSet<SecurityGroupIndex> {
        let mut changed = HashSet::new();
        for name in removed {
            if let Some(index) = self.placed.security_groups.remove(name) {
                self.next.security_groups.set(index.at(), None);
                self.next.history.free_security_groups.push_back(index.0);
                changed.insert(index);
            }
        }
        for group in groups {
            let known = self.placed.security_groups.get_key_value(&*group.name);
            let (name, index) = known.map(|(name, index)| (name.clone(), *index)).unwrap_or_else(|| {
                let free = &mut self.next.history.free_security_groups;
                let index = SecurityGroupIndex(free_slot(free, &self.next.security_groups));
                let name: Arc<str> = group.name.as_str().into();
                self.placed.security_groups.insert(name.clone(), index);
                (name, index)
            });
            let before = self.old.security_groups.get(index.at()).filter(|before| before.name == name);
            let same_rules = before.filter(|before| *before.rules == group.rules);
            let rules = same_rules.map_or_else(|| Arc::new(group.rules.clone()), |before| before.rules.clone());
            if same_rules.is_none_or(|before| before.cut_flows != group.cut_flows) {
                changed.insert(index);
            }
            let group = SecurityGroup { name, rules, cut_flows: group.cut_flows };
            self.next.security_groups.set(index.at(), Some(group));
        }
        changed
    }

    /// The indices of security groups.
    pub(super) fn guards(&self, names: &[String]) -> Arc<Guards> {
        names.iter().map(|name| self.placed.security_groups[&**name]).collect()
    }

    /// Has the flows of all endpoints judged by the rules again for which these have changed, if one of their groups, of
    /// before or of now, cuts flows.
    pub(super) fn guard_again(&mut self, changed: &HashSet<SecurityGroupIndex>, objects: &Objects) {
        let of_services = !changed.is_empty() || !objects.load_balancers.is_empty() || !objects.services.is_empty();
        let services = if of_services { self.services_guarded_otherwise(changed) } else { HashSet::new() };
        let endpoints: BTreeSet<usize> = if changed.is_empty() && services.is_empty() {
            let touched = objects.endpoints.iter().flat_map(|endpoint| self.placed.endpoints(&endpoint.id));
            touched.map(|index| index.at()).collect()
        } else {
            (0..self.next.endpoints.len()).collect()
        };
        for at in endpoints {
            let before = self.old.endpoint(EndpointIndex(at as u32));
            let Some((before, endpoint)) = before.zip(self.next.endpoints.get(at)) else { continue };
            if before.incarnation != endpoint.incarnation {
                continue;
            }
            let otherwise = before.security_groups != endpoint.security_groups
                || names_any(&endpoint.security_groups, changed)
                || services.contains(&endpoint.service)
                || before.service != endpoint.service;
            if !otherwise || !(cuts(self.old, before) || cuts(self.next, endpoint)) {
                continue;
            }
            let endpoint = endpoint.clone();
            let epoch = self.next.history.policy_epoch();
            self.next.policies[at].epoch = epoch;
            let endpoint = Endpoint { policy_epoch: epoch, guard_epoch: epoch, ..endpoint };
            self.next.endpoints.set(at, Some(endpoint));
        }
    }

    /// Services of which a listener has other security groups than before, or other rules.
    fn services_guarded_otherwise(&self, changed: &HashSet<SecurityGroupIndex>) -> HashSet<ServiceIndex> {
        let guards = |snapshot: &Snapshot, index: ListenerIndex| {
            snapshot.listeners.get(index.at()).map(|listener| listener.security_groups.clone()).unwrap_or_default()
        };
        let otherwise = |index: ListenerIndex| {
            let now = guards(self.next, index);
            names_any(&now, changed) || guards(self.old, index) != now
        };
        let guarded = |snapshot: &Snapshot, service: Option<&Service>| {
            let listeners = service.map(|service| service.listeners.clone()).unwrap_or_default();
            listeners.iter().any(|(_, index)| !guards(snapshot, *index).is_empty())
        };
        let services = (0..).zip(self.next.services.iter()).filter(|(at, service)| {
            let Some(service) = service else { return false };
            let before = self.old.services.get(*at as usize);
            let other_listeners = before.is_none_or(|before| before.listeners != service.listeners);
            service.listeners.iter().any(|(_, index)| otherwise(*index))
                || other_listeners && (guarded(self.old, before) || guarded(self.next, Some(service)))
        });
        services.map(|(at, _)| ServiceIndex(at)).collect()
    }
}

fn names_any(guards: &Guards, groups: &HashSet<SecurityGroupIndex>) -> bool {
    !groups.is_empty() && guards.iter().any(|guard| groups.contains(guard))
}

/// Whether a security group of the endpoint or of what it stands for cuts flows.
fn cuts(snapshot: &Snapshot, endpoint: &Endpoint) -> bool {
    let cut = |guards: &Guards| {
        guards.iter().any(|guard| snapshot.security_groups.get(guard.at()).is_some_and(|group| group.cut_flows))
    };
    let listeners = snapshot.services.get(endpoint.service.at()).map(|service| service.listeners.clone());
    let mut listeners = listeners.iter().flat_map(|listeners| listeners.iter());
    cut(&endpoint.security_groups)
        || listeners
            .any(|(_, index)| snapshot.listeners.get(index.at()).is_some_and(|listener| cut(&listener.security_groups)))
}

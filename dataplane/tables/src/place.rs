//! Puts checked objects into a snapshot: which index each has, and what the packet path reads of it. What lives on keeps its
//! index; pages of what does not change stay shared with the snapshot before.

mod guards;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use postern_wire::Family;

use crate::check::{CheckedBalancer, CheckedEndpoint, CheckedGroup, CheckedService, CheckedTarget, Objects};
use crate::pages::Pages;
use crate::selection_tables;
use crate::snapshot::{
    Endpoint, EndpointIndex, EndpointPolicy, Listener, ListenerIndex, LocalAddress, PoolIndex, SecurityGroupIndex,
    Service, ServiceIndex, Snapshot, Target, TargetGroup, TargetGroupIndex, TargetIndex, VpcIndex,
};
use crate::usable::Health;

/// IP protocol number and port.
pub(crate) type Flows = (u8, u16);
/// Target groups with cumulative weights.
type Shares = Arc<[(u32, TargetGroupIndex)]>;

/// What objects refer to by declared index.
#[derive(Debug, Default)]
pub(crate) struct Base {
    pub(crate) vpc_index: HashMap<String, usize>,
    pub(crate) pool_index: HashMap<String, usize>,
    /// VPC of each pool, all by declared index.
    pub(crate) pool_vpcs: Vec<Option<usize>>,
    /// Indices in the snapshot by declared index.
    pub(crate) vpc_at: Vec<u32>,
    pub(crate) pool_at: Vec<u32>,
}

impl Base {
    /// The VPC with a declared index.
    pub(crate) fn vpc(&self, declared: usize) -> VpcIndex {
        VpcIndex(self.vpc_at[declared])
    }
}

/// Where the objects of a snapshot are, by name.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    security_groups: HashMap<Arc<str>, SecurityGroupIndex>,
    groups: HashMap<Arc<str>, TargetGroupIndex>,
    /// Listeners as declared.
    balancers: HashMap<Arc<str>, Vec<(Flows, ListenerIndex)>>,
    services: HashMap<Arc<str>, ServiceIndex>,
    endpoints: HashMap<Arc<str>, PlacedEndpoint>,
    /// How many endpoints stand for each service.
    service_endpoints: HashMap<ServiceIndex, usize>,
    target_addresses: HashMap<(VpcIndex, IpAddr), u32>,
    /// How many endpoint addresses and targets there are.
    pub(crate) endpoint_addresses: usize,
    pub(crate) targets: usize,
}

/// Where an endpoint is.
#[derive(Debug, Default)]
pub(crate) struct PlacedEndpoint {
    /// Addresses as declared.
    pub(crate) indices: Vec<EndpointIndex>,
    /// Whether the MTU and the answer to echo were written or left out.
    pub(crate) written: (bool, bool),
}

/// Names of objects that are no more.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) security_groups: Vec<Arc<str>>,
    pub(crate) groups: Vec<Arc<str>>,
    pub(crate) balancers: Vec<Arc<str>>,
    pub(crate) services: Vec<Arc<str>>,
    pub(crate) endpoints: Vec<Arc<str>>,
}

impl Placed {
    /// What is in a snapshot.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let mut placed = Self::default();
        for (at, group) in (0..).zip(snapshot.security_groups.iter()) {
            placed.security_groups.extend(group.map(|group| (group.name.clone(), SecurityGroupIndex(at))));
        }
        for (at, group) in (0..).zip(snapshot.target_groups.iter()) {
            let Some(group) = group else { continue };
            placed.groups.insert(group.name.clone(), TargetGroupIndex(at));
            for target in group.members.iter().filter_map(|member| snapshot.target(*member)) {
                placed.count_target(target);
            }
        }
        for (at, listener) in (0..).zip(snapshot.listeners.iter()) {
            let Some(listener) = listener else { continue };
            let listeners = placed.balancers.entry(listener.load_balancer.clone()).or_default();
            listeners.push(((listener.protocol, listener.port), ListenerIndex(at)));
        }
        for (at, service) in (0..).zip(snapshot.services.iter()) {
            placed.services.extend(service.map(|service| (service.id.clone(), ServiceIndex(at))));
        }
        for (at, endpoint) in (0..).zip(snapshot.endpoints.iter()) {
            let Some(endpoint) = endpoint else { continue };
            let of_it = placed.endpoints.entry(endpoint.id.clone()).or_default();
            of_it.indices.push(EndpointIndex(at));
            if of_it.indices.len() == 1 {
                *placed.service_endpoints.entry(endpoint.service).or_default() += 1;
            }
            placed.endpoint_addresses += 1;
        }
        placed
    }

    pub(crate) fn listeners(&self, load_balancer: &str) -> &[(Flows, ListenerIndex)] {
        self.balancers.get(load_balancer).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn group(&self, name: &str) -> Option<TargetGroupIndex> {
        self.groups.get(name).copied()
    }

    pub(crate) fn security_group(&self, name: &str) -> Option<SecurityGroupIndex> {
        self.security_groups.get(name).copied()
    }

    pub(crate) fn service(&self, id: &str) -> Option<ServiceIndex> {
        self.services.get(id).copied()
    }

    pub(crate) fn endpoints(&self, id: &str) -> &[EndpointIndex] {
        self.endpoints.get(id).map_or(&[], |endpoint| &endpoint.indices)
    }

    pub(crate) fn endpoint(&self, id: &str) -> Option<&PlacedEndpoint> {
        self.endpoints.get(id)
    }

    /// How many endpoints stand for a service.
    pub(crate) fn endpoints_of(&self, service: ServiceIndex) -> usize {
        self.service_endpoints.get(&service).copied().unwrap_or(0)
    }

    pub(crate) fn endpoint_ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.endpoints.keys()
    }

    pub(crate) fn has_target(&self, vpc: VpcIndex, address: IpAddr) -> bool {
        self.target_addresses.contains_key(&(vpc, address))
    }

    /// What `objects` does not have.
    fn but(&self, objects: &Objects) -> Removed {
        fn but<V>(placed: &HashMap<Arc<str>, V>, declared: &HashSet<&str>) -> Vec<Arc<str>> {
            placed.keys().filter(|name| !declared.contains(&***name)).cloned().collect()
        }
        let groups = objects.security_groups.iter().map(|group| group.name.as_str()).collect();
        Removed {
            security_groups: but(&self.security_groups, &groups),
            groups: but(&self.groups, &objects.groups.iter().map(|group| group.name.as_str()).collect()),
            balancers: but(&self.balancers, &objects.load_balancers.iter().map(|one| one.name.as_str()).collect()),
            services: but(&self.services, &objects.services.iter().map(|service| service.id.as_str()).collect()),
            endpoints: but(&self.endpoints, &objects.endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect()),
        }
    }

    fn count_target(&mut self, target: &Target) {
        *self.target_addresses.entry((target.vpc, target.address)).or_default() += 1;
        self.targets += 1;
    }

    fn forget_target(&mut self, target: &Target) {
        self.targets -= 1;
        let key = (target.vpc, target.address);
        if let Some(count) = self.target_addresses.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.target_addresses.remove(&key);
            }
        }
    }
}

/// Puts objects into `next`, which is a clone of `old` with the generation, VPCs, attachments and pools of the new tables.
pub(crate) struct Placing<'a> {
    pub(crate) old: &'a Snapshot,
    pub(crate) next: &'a mut Snapshot,
    pub(crate) placed: &'a mut Placed,
    pub(crate) base: &'a Base,
    pub(crate) health: &'a mut Health,
}

impl Placing<'_> {
    /// Puts `objects`, which passed the checks, and takes all others out.
    pub(crate) fn all(&mut self, objects: &Objects) {
        let removed = self.placed.but(objects);
        self.run(objects, &removed);
    }

    /// Puts `objects`, which passed the checks, and takes the removed ones out.
    pub(crate) fn run(&mut self, objects: &Objects, removed: &Removed) {
        let changed = self.security_groups(&objects.security_groups, &removed.security_groups);
        let touched = self.groups(&objects.groups, &removed.groups);
        let mut without_table = touched.clone();
        self.balancers(&objects.load_balancers, &removed.balancers, &mut without_table);
        self.services(&objects.services, &removed.services);
        self.endpoints(&objects.endpoints, &removed.endpoints);
        self.guard_again(&changed, objects);
        selection_tables::build(self.next, &without_table);
        let cut = |target: TargetIndex, snapshot: &Snapshot| snapshot.target(target).map(|target| target.cut);
        let members = |group: &u32| self.next.target_groups[*group as usize].members.iter();
        let newly_cut = |group: &u32| {
            members(group).any(|target| cut(*target, self.next) == Some(true) && cut(*target, self.old) != Some(true))
        };
        let groups: BTreeSet<u32> = touched.into_iter().filter(newly_cut).collect();
        if !groups.is_empty() {
            self.judge_flows_to(&groups);
        }
    }

    /// Ends the flows of targets that are in no group any more.
    pub(crate) fn end_flows(&mut self, incarnations: Vec<u32>) {
        let mut ended = BTreeSet::clone(&self.old.ended);
        ended.extend(incarnations);
        while ended.len() > Snapshot::MOST_ENDED {
            ended.pop_first();
        }
        self.next.ended = Arc::new(ended);
        // Nothing says any more which endpoints led to them.
        self.judge_again(|_| true);
    }

    /// Returns the groups that may need a selection table.
    fn groups(&mut self, groups: &[CheckedGroup], removed: &[Arc<str>]) -> BTreeSet<u32> {
        let mut freed = Vec::new();
        for name in removed {
            if let Some(index) = self.placed.groups.remove(name) {
                self.next.history.free_groups.push_back(index.0);
                self.next.target_groups.set(index.at(), None);
                let group = &self.old.target_groups[index.at()];
                freed.extend(group.members.iter().map(|member| (*member, group.health.deregistration_ends_flows)));
            }
        }
        // Who lives on, before the slots of the others are given again.
        let mut kept = Vec::with_capacity(groups.len());
        for group in groups {
            let vpc = self.base.vpc(group.vpc);
            let before = self.placed.group(&group.name).and_then(|index| self.old.target_groups.get(index.at()));
            let ends = before.is_some_and(|before| before.health.deregistration_ends_flows);
            let mut members: HashMap<_, TargetIndex> = HashMap::new();
            for index in before.iter().flat_map(|group| group.members.iter()) {
                match self.old.target(*index) {
                    Some(target) if target.vpc == vpc => {
                        members.insert((target.address, target.port), *index);
                    }
                    _ => freed.push((*index, ends)),
                }
            }
            let of_it: Vec<_> =
                group.targets.iter().map(|target| members.remove(&(target.address, target.port))).collect();
            kept.push(of_it);
            freed.extend(members.into_values().map(|index| (index, ends)));
        }
        freed.sort_unstable();
        for (index, ends) in freed {
            if let Some(target) = self.old.target(index) {
                self.placed.forget_target(target);
                self.next.count_registered(target, -1);
                self.health.leave(&target.group, (target.address, target.port), target.incarnation, ends);
            }
            self.next.targets.set(index.at(), None);
            self.next.history.free_targets.push_back(index.0);
        }
        groups.iter().zip(kept).map(|(group, kept)| self.group(group, kept)).collect()
    }

    fn group(&mut self, group: &CheckedGroup, kept: Vec<Option<TargetIndex>>) -> u32 {
        let vpc = self.base.vpc(group.vpc);
        let known = self.placed.groups.get_key_value(&*group.name).map(|(name, index)| (name.clone(), *index));
        let (name, index) = known.unwrap_or_else(|| {
            let index = free_slot(&mut self.next.history.free_groups, &self.next.target_groups);
            let name: Arc<str> = group.name.as_str().into();
            self.placed.groups.insert(name.clone(), TargetGroupIndex(index));
            (name, TargetGroupIndex(index))
        });
        if group.health.check.is_some() {
            for (target, _) in group.targets.iter().zip(&kept).filter(|(_, kept)| kept.is_none()) {
                self.health.begin(&name, (target.address, target.port));
            }
        }
        let verdict = self.health.verdict(&name, &group.targets);
        let mut members = Vec::with_capacity(kept.len());
        for ((checked, kept), cut) in group.targets.iter().zip(kept).zip(&verdict.cut) {
            let CheckedTarget { address, port, weight, mapped_port, .. } = *checked;
            let before = kept.and_then(|index| Some((index, self.old.target(index)?.incarnation)));
            let (index, incarnation) = before.unwrap_or_else(|| {
                let index = free_slot(&mut self.next.history.free_targets, &self.next.targets);
                (TargetIndex(index), self.next.history.incarnation())
            });
            let proxy_protocol = group.proxy_protocol;
            let zone = self.next.zone(&checked.zone);
            let target = Target {
                vpc,
                address,
                port,
                group: name.clone(),
                weight,
                incarnation,
                cut: *cut,
                proxy_protocol,
                zone,
                mapped_port,
            };
            if before.is_none() {
                self.placed.count_target(&target);
                self.next.count_registered(&target, 1);
            }
            self.next.targets.set(index.at(), Some(target));
            members.push(index);
        }
        let mut placed = TargetGroup {
            name,
            vpc,
            pool: PoolIndex(self.base.pool_at[group.pool]),
            family: group.family(),
            slots: group.slots as u32,
            members: members.into(),
            shares: verdict.shares.into(),
            fail_open: verdict.fail_open,
            table: None,
            zonal: Arc::default(),
            mapping: mapping(&group.targets),
            sticky_seconds: group.sticky_seconds,
            health: group.health.clone(),
        };
        // The slot may have been another group's.
        let before = self.old.target_groups.get(index.at()).filter(|before| before.name == placed.name);
        if let Some(before) = before.filter(|before| self.shares_tables(before, &placed)) {
            placed.table.clone_from(&before.table);
            placed.zonal.clone_from(&before.zonal);
        }
        self.next.target_groups.set(index.at(), Some(placed));
        index.0
    }

    /// Whether the tables of a group before are still right.
    fn shares_tables(&self, before: &TargetGroup, group: &TargetGroup) -> bool {
        let place = |snapshot: &Snapshot, index: TargetIndex| {
            snapshot.target(index).map(|target| (target.address, target.port, target.zone))
        };
        before.slots == group.slots
            && before.mapping.is_some() == group.mapping.is_some()
            && before.shares == group.shares
            && before.members == group.members
            && group.members.iter().all(|&member| place(self.old, member) == place(self.next, member))
    }

    fn balancers(&mut self, balancers: &[CheckedBalancer], removed: &[Arc<str>], without_table: &mut BTreeSet<u32>) {
        let mut freed = Vec::new();
        for name in removed {
            freed.extend(self.placed.balancers.remove(name).into_iter().flatten().map(|(_, index)| index));
        }
        let mut kept = Vec::with_capacity(balancers.len());
        for balancer in balancers {
            let before = self.placed.balancers.get(&*balancer.name);
            let mut before: HashMap<Flows, ListenerIndex> = before.into_iter().flatten().copied().collect();
            let of_it = |listener: &crate::check::CheckedListener| before.remove(&(listener.protocol, listener.port));
            kept.push(balancer.listeners.iter().map(of_it).collect::<Vec<_>>());
            freed.extend(before.into_values());
        }
        freed.sort_unstable();
        for index in freed {
            self.next.listeners.set(index.at(), None);
            self.next.history.free_listeners.push_back(index.0);
        }
        for (balancer, kept) in balancers.iter().zip(kept) {
            let name: Arc<str> = balancer.name.as_str().into();
            let security_groups = self.guards(&balancer.security_groups);
            let mut listeners = Vec::with_capacity(kept.len());
            for (listener, kept) in balancer.listeners.iter().zip(kept) {
                let history = &mut self.next.history;
                let index =
                    kept.unwrap_or_else(|| ListenerIndex(free_slot(&mut history.free_listeners, &self.next.listeners)));
                let shares = listener.shares.iter().map(|(weight, group)| (*weight, self.placed.groups[&**group]));
                let shares: Vec<_> = shares.collect();
                let is_sticky = |(_, group): &(u32, TargetGroupIndex)| {
                    self.next.target_groups.get(group.at()).is_some_and(|group| group.sticky_seconds > 0)
                };
                without_table.extend(shares.iter().map(|(_, group)| group.0));
                let (groups, groups6) = self.groups_of_clients(&shares);
                let flows = (listener.protocol, listener.port);
                let listener = Listener {
                    load_balancer: name.clone(),
                    protocol: flows.0,
                    port: flows.1,
                    last_port: listener.last_port,
                    sticky: shares.iter().any(is_sticky),
                    cross_zone: balancer.cross_zone,
                    groups,
                    groups6,
                    idle_seconds: listener.idle_seconds,
                    mss: listener.mss,
                    reset_on_expiry: listener.reset_on_expiry,
                    security_groups: security_groups.clone(),
                };
                self.next.listeners.set(index.at(), Some(listener));
                listeners.push((flows, index));
            }
            self.placed.balancers.insert(name, listeners);
        }
    }

    /// The groups for IPv4 and for IPv6 clients, with cumulative weights. An IPv4 client cannot be sent to an IPv6 target.
    fn groups_of_clients(&self, shares: &[(u32, TargetGroupIndex)]) -> (Shares, Shares) {
        let cumulative = |which: &dyn Fn(TargetGroupIndex) -> bool| {
            let mut total = 0;
            let groups = shares.iter().filter(|(_, group)| which(*group));
            let above = groups.map(|&(weight, group)| {
                total += weight;
                (total, group)
            });
            above.collect::<Shares>()
        };
        let all = cumulative(&|_| true);
        let is_wide = |group: TargetGroupIndex| self.next.target_groups[group.at()].family == Family::V6;
        if shares.iter().any(|(_, group)| is_wide(*group)) {
            (cumulative(&|group| !is_wide(group)), all)
        } else {
            (all.clone(), all)
        }
    }

    fn services(&mut self, services: &[CheckedService], removed: &[Arc<str>]) {
        for id in removed {
            if let Some(index) = self.placed.services.remove(id) {
                self.next.services.set(index.at(), None);
                self.next.history.free_services.push_back(index.0);
            }
        }
        for service in services {
            let balancers = service.load_balancers.iter();
            let own = balancers.flat_map(|balancer| self.placed.balancers[&**balancer].iter().copied());
            let last = |index: ListenerIndex| self.next.listeners.get(index.at()).map(|listener| listener.last_port);
            let (mut listeners, ranges): (Vec<_>, Vec<_>) =
                own.partition(|((_, first), index)| last(*index).is_none_or(|last| last == *first));
            let with_last = |((protocol, first), index)| ((protocol, first, last(index).unwrap_or(first)), index);
            let mut ranges: Vec<_> = ranges.into_iter().map(with_last).collect();
            listeners.sort_unstable();
            ranges.sort_unstable();
            let id: Arc<str> = service.id.as_str().into();
            let index = self.placed.services.get(&id).copied().unwrap_or_else(|| {
                let index = ServiceIndex(free_slot(&mut self.next.history.free_services, &self.next.services));
                self.placed.services.insert(id.clone(), index);
                index
            });
            self.next
                .services
                .set(index.at(), Some(Service { id, listeners: listeners.into(), ranges: ranges.into() }));
        }
    }

    fn endpoints(&mut self, endpoints: &[CheckedEndpoint], removed: &[Arc<str>]) {
        let mut freed = Vec::new();
        for id in removed {
            self.leave_service(id);
            freed.extend(self.placed.endpoints.remove(id).into_iter().flat_map(|endpoint| endpoint.indices));
        }
        let mut kept = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            self.leave_service(&endpoint.id);
            let vpc = self.base.vpc(endpoint.vpc);
            let mut before: Vec<EndpointIndex> = self.placed.endpoints(&endpoint.id).to_vec();
            let mut of_it = Vec::with_capacity(endpoint.addresses.len());
            for (address, _) in &endpoint.addresses {
                let same = |index: &EndpointIndex| {
                    self.old.endpoint(*index).is_some_and(|old| old.vpc == vpc && old.address == *address)
                };
                of_it.push(before.iter().position(same).map(|at| before.swap_remove(at)));
            }
            kept.push(of_it);
            freed.extend(before);
        }
        freed.sort_unstable();
        for index in freed {
            if let Some(endpoint) = self.old.endpoint(index) {
                self.next.set_local(endpoint.vpc, endpoint.address, None);
            }
            self.next.endpoints.set(index.at(), None);
            self.next.policies[index.at()] = EndpointPolicy::default();
            self.next.history.free_endpoints.push_back(index.0);
            self.placed.endpoint_addresses -= 1;
        }
        for (endpoint, kept) in endpoints.iter().zip(kept) {
            self.endpoint(endpoint, &kept);
        }
    }

    /// The endpoint is no more, or is counted again.
    fn leave_service(&mut self, id: &str) {
        let first = self.placed.endpoints(id).first().and_then(|index| self.old.endpoint(*index));
        if let Some(count) = first.and_then(|first| self.placed.service_endpoints.get_mut(&first.service)) {
            *count -= 1;
        }
    }

    fn endpoint(&mut self, written: &CheckedEndpoint, kept: &[Option<EndpointIndex>]) {
        let vpc = self.base.vpc(written.vpc);
        let service = self.placed.services[&*written.service];
        let known = self.placed.endpoints.get_key_value(&*written.id).map(|(id, _)| id.clone());
        let id = known.unwrap_or_else(|| written.id.as_str().into());
        let security_groups = self.guards(&written.security_groups);
        let mut indices = Vec::with_capacity(kept.len());
        for ((address, zone), kept) in written.addresses.iter().zip(kept) {
            let zone = self.next.zone(zone);
            let before = kept.and_then(|index| self.old.endpoint(index));
            // Services keep their index, but it may have been another's.
            let same_rules = before.filter(|before| {
                self.old.services.get(before.service.at()).is_some_and(|service| *service.id == *written.service)
            });
            let index = kept.unwrap_or_else(|| {
                self.placed.endpoint_addresses += 1;
                EndpointIndex(free_slot(&mut self.next.history.free_endpoints, &self.next.endpoints))
            });
            let history = &mut self.next.history;
            let incarnation = before.map_or_else(|| history.incarnation(), |before| before.incarnation);
            // Live flows learn by it that their bytes are counted now.
            let counted = |before: &&Endpoint| {
                before.limits.bytes_per_second.is_some() == written.limits.bytes_per_second.is_some()
            };
            let epochs = same_rules.filter(counted).map(|before| (before.policy_epoch, before.access_epoch));
            let (policy_epoch, access_epoch) = epochs.unwrap_or_else(|| {
                let epoch = history.policy_epoch();
                (epoch, epoch)
            });
            let endpoint = Endpoint {
                id: id.clone(),
                vpc,
                address: *address,
                service,
                incarnation,
                policy_epoch,
                access_epoch,
                mtu: written.written.0.unwrap_or(Endpoint::MTU),
                echo: written.written.1.unwrap_or(true),
                security_groups: security_groups.clone(),
                guard_epoch: before.map_or(0, |before| before.guard_epoch),
                limits: written.limits,
                zone,
            };
            let policy = EndpointPolicy { epoch: endpoint.policy_epoch, mtu: endpoint.mtu };
            if index.at() == self.next.policies.len() {
                self.next.policies.push(policy);
            } else {
                self.next.policies[index.at()] = policy;
            }
            self.next.set_local(vpc, *address, Some(LocalAddress::Endpoint(index)));
            self.next.endpoints.set(index.at(), Some(endpoint));
            indices.push(index);
        }
        *self.placed.service_endpoints.entry(service).or_default() += 1;
        let written = (written.written.0.is_some(), written.written.1.is_some());
        self.placed.endpoints.insert(id, PlacedEndpoint { indices, written });
    }

    /// Has the flows of all endpoints judged again whose services lead to one of `groups`.
    fn judge_flows_to(&mut self, groups: &BTreeSet<u32>) {
        let leads = |listener: &ListenerIndex| {
            let listener = self.next.listeners.get(listener.at());
            listener.is_some_and(|listener| listener.groups6.iter().any(|(_, group)| groups.contains(&group.0)))
        };
        let services = (0..).zip(self.next.services.iter());
        let services: HashSet<ServiceIndex> = services
            .filter(|(_, service)| {
                service.is_some_and(|service| service.listeners.iter().any(|(_, listener)| leads(listener)))
            })
            .map(|(at, _)| ServiceIndex(at))
            .collect();
        self.judge_again(|endpoint| services.contains(&endpoint.service));
    }

    /// Has the flows of some endpoints judged again.
    fn judge_again(&mut self, concerned: impl Fn(&Endpoint) -> bool) {
        for at in 0..self.next.endpoints.len() {
            let endpoint = self.next.endpoints.get(at).filter(|endpoint| concerned(endpoint));
            if let Some(endpoint) = endpoint.cloned() {
                let policy_epoch = self.next.history.policy_epoch();
                self.next.policies[at].epoch = policy_epoch;
                self.next.endpoints.set(at, Some(Endpoint { policy_epoch, ..endpoint }));
            }
        }
    }
}

/// Positions of targets by the port that leads to each, where ports are mapped.
fn mapping(targets: &[CheckedTarget]) -> Option<Arc<[(u16, u16)]>> {
    let mapped = (0..).zip(targets).filter(|(_, target)| target.mapped_port != 0);
    let mut mapping: Vec<(u16, u16)> = mapped.map(|(at, target)| (target.mapped_port, at)).collect();
    mapping.sort_unstable();
    (!mapping.is_empty()).then(|| mapping.into())
}

/// A slot that is free, the longest free first, or the one behind the last.
fn free_slot<T>(free: &mut VecDeque<u32>, slots: &Pages<T>) -> u32 {
    free.pop_front().unwrap_or(slots.len() as u32)
}

//! What is declared now, and its tables: the only writer.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use postern_wire::Family;

use crate::check::{self, Checked, CheckedGroup, CheckedTarget, Checker, Keys, Names, Network, Objects, World};
use crate::compile::compile_onto;
use crate::declaration::{self, Declaration, Route};
use crate::error::{Errors, Problem};
use crate::place::{Base, Placed, Placing, Removed};
use crate::resource::{Change, Resource, ResourceKey, ResourceKind};
use crate::snapshot::{Endpoint, EndpointIndex, Generation, ProxyProtocol, Snapshot, Zone};
use crate::usable::{Health, Usable};

/// What errors call a change that did not come from a file.
const ORIGIN: &str = "pushed tables";

/// What is declared now, and its tables.
///
/// A change of endpoints, services, load balancers and target groups costs what it touches: only that is checked and placed,
/// and the new snapshot shares the rest with the one before. A change of VPCs, attachments or pools is checked and compiled
/// with all that there is.
#[derive(Debug)]
pub struct Tables {
    /// The process part, with what VPCs, attachments and routes say of addresses.
    process: Checked,
    base: Base,
    declared: Declared,
    placed: Placed,
    health: Health,
    snapshot: Arc<Snapshot>,
}

/// What is declared. Endpoints are not among it, because the snapshot has all of them.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    /// VPCs, attachments and pools.
    network: BTreeMap<ResourceKey, Resource>,
    pub(crate) security_groups: BTreeMap<String, declaration::SecurityGroup>,
    pub(crate) groups: BTreeMap<String, declaration::TargetGroup>,
    balancers: BTreeMap<String, declaration::LoadBalancer>,
    services: BTreeMap<String, declaration::Service>,
}

/// What becomes of each object that changes; `None`: it goes.
type Edits = BTreeMap<ResourceKey, Option<Resource>>;

impl Tables {
    /// Compiles what `checked` declares. Its process part and its ports hold for the life of the tables.
    #[must_use]
    pub fn new(checked: &Checked) -> Self {
        let mut tables = Self {
            process: checked.without_objects(),
            base: Base::default(),
            declared: Declared::default(),
            placed: Placed::default(),
            health: Health::default(),
            snapshot: Arc::default(),
        };
        tables.take(checked);
        tables
    }

    /// Changes what is declared and compiles it. The same tables come back where nothing changes.
    ///
    /// New targets get flows at once, unless they are to pass a check first: [`Tables::await_first_pass`].
    ///
    /// # Errors
    /// Everything that is wrong with what would be declared then. Nothing is changed in that case.
    pub fn update(&mut self, change: Change) -> Result<Arc<Snapshot>, Errors> {
        let mut edits: Edits = change.removed.into_iter().map(|key| (key, None)).collect();
        for mut resource in change.changed {
            if let Resource::Attachment(attachment, routes) = &mut resource {
                routes.iter_mut().for_each(|route| attachment.name.clone_into(&mut route.attachment));
            }
            edits.insert(resource.key(), Some(resource));
        }
        if change.full {
            for key in self.keys() {
                edits.entry(key).or_insert(None);
            }
        }
        edits.retain(|key, new| self.resource(key.kind, &key.name) != *new);
        if edits.is_empty() {
            return Ok(self.snapshot.clone());
        }
        let of_network = |kind| matches!(kind, ResourceKind::Vpc | ResourceKind::Attachment | ResourceKind::SnatPool);
        if edits.keys().any(|key| of_network(key.kind)) { self.compile_anew(edits) } else { self.apply(edits) }?;
        Ok(self.snapshot.clone())
    }

    /// Takes what a file declares now, its process part included: `checked` came out of [`Checked::reload`].
    pub fn reload(&mut self, checked: &Checked) -> Arc<Snapshot> {
        self.take(checked);
        self.snapshot.clone()
    }

    /// From now on a new target of a group with a health check gets no new flows until [`Tables::set_health`] says that it
    /// may, unless no target of its group may. For gateways that probe; targets that are there already stay as they are.
    pub const fn await_first_pass(&mut self) {
        self.health.first_pass = true;
    }

    /// Notes which targets may have flows: group, address, port and what. Selection tables of these groups are made again,
    /// and the flows of targets that are cut are judged again. Of targets that are not declared only those are looked at that
    /// were taken out of a group which ends their flows: cut, their flows end. `None`: nothing changed.
    pub fn set_health(&mut self, changes: &[(String, IpAddr, u16, Usable)]) -> Option<Arc<Snapshot>> {
        let mut touched = BTreeSet::new();
        let mut ended = Vec::new();
        for (name, address, port, usable) in changes {
            let group = self.placed.group(name).map(|index| &self.snapshot.target_groups[index.at()]);
            let mut targets = group.iter().flat_map(|group| group.members.iter()).map(|at| self.snapshot.target(*at));
            let declared = targets.any(|target| target.is_some_and(|of| (of.address, of.port) == (*address, *port)));
            if declared && self.health.set(name, (*address, *port), *usable) {
                touched.insert(name.as_str());
            }
            if !declared && *usable == Usable::CutFlows {
                ended.extend(self.health.left(name, (*address, *port)));
            }
        }
        if touched.is_empty() && ended.is_empty() {
            return None;
        }
        let groups = touched.into_iter().map(|name| self.checked_group(name)).collect();
        self.place(&Objects { groups, ..Objects::default() }, &Removed::default(), ended);
        Some(self.snapshot.clone())
    }

    /// The tables.
    #[must_use]
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// What is declared, those objects first that others refer to, by name.
    pub fn resources(&self) -> impl Iterator<Item = Resource> + '_ {
        self.keys().into_iter().filter_map(|key| self.resource(key.kind, &key.name))
    }

    fn keys(&self) -> Vec<ResourceKey> {
        let key = |kind| move |name: &str| ResourceKey { kind, name: name.to_owned() };
        let named =
            [ResourceKind::SecurityGroup, ResourceKind::TargetGroup, ResourceKind::LoadBalancer, ResourceKind::Service];
        let mut keys: Vec<ResourceKey> = self.declared.network.keys().cloned().collect();
        keys.extend(named.into_iter().flat_map(|kind| self.declared.names(kind).map(key(kind))));
        let mut ids: Vec<&str> = self.placed.endpoint_ids().map(|id| &**id).collect();
        ids.sort_unstable();
        keys.extend(ids.into_iter().map(key(ResourceKind::Endpoint)));
        keys
    }

    /// A declared object.
    fn resource(&self, kind: ResourceKind, name: &str) -> Option<Resource> {
        let Declared { network, security_groups, groups, balancers, services } = &self.declared;
        match kind {
            ResourceKind::Vpc | ResourceKind::Attachment | ResourceKind::SnatPool => {
                network.get(&ResourceKey { kind, name: name.to_owned() }).cloned()
            }
            ResourceKind::SecurityGroup => security_groups.get(name).cloned().map(Resource::SecurityGroup),
            ResourceKind::TargetGroup => groups.get(name).cloned().map(Resource::TargetGroup),
            ResourceKind::LoadBalancer => balancers.get(name).cloned().map(Resource::LoadBalancer),
            ResourceKind::Service => services.get(name).cloned().map(Resource::Service),
            ResourceKind::Endpoint => self.endpoint(name).map(Resource::Endpoint),
        }
    }

    /// An endpoint as declared.
    fn endpoint(&self, id: &str) -> Option<declaration::Endpoint> {
        let placed = self.placed.endpoint(id)?;
        let addresses: Vec<&Endpoint> = placed.indices.iter().filter_map(|at| self.snapshot.endpoint(*at)).collect();
        let first = addresses.first()?;
        Some(declaration::Endpoint {
            id: id.to_owned(),
            vpc: self.snapshot.vpcs[first.vpc.at()].id.clone(),
            service: self.snapshot.services[first.service.at()].id.to_string(),
            addresses: addresses.iter().map(|endpoint| endpoint.address.to_string()).collect(),
            zones: match addresses.iter().all(|endpoint| endpoint.zone == Zone::NONE) {
                true => Vec::new(),
                false => addresses.iter().map(|at| self.snapshot.zone_name(at.zone).to_string()).collect(),
            },
            mtu: placed.written.0.then_some(i64::from(first.mtu)),
            echo: placed.written.1.then_some(first.echo),
            security_groups: self.snapshot.security_group_names(&first.security_groups),
            snat_port_budget: first.limits.ports.map(i64::from),
            max_flows: first.limits.flows.map(i64::from),
            new_flows_per_second: first.limits.new_flows_per_second.map(i64::from),
            bytes_per_second: first.limits.bytes_per_second.map(|bytes| bytes as i64),
        })
    }

    /// A declared group as it was checked.
    fn checked_group(&self, name: &str) -> CheckedGroup {
        let written = &self.declared.groups[name];
        let index = self.placed.group(name).expect("a declared group has a place");
        let group = &self.snapshot.target_groups[index.at()];
        let targets = group.members.iter().filter_map(|member| self.snapshot.target(*member));
        CheckedGroup {
            name: name.to_owned(),
            vpc: self.base.vpc_index[&written.vpc],
            pool: self.base.pool_index[&written.snat_pool],
            slots: group.slots as usize,
            health: group.health.clone(),
            proxy_protocol: written.proxy_protocol.unwrap_or_default(),
            sticky_seconds: group.sticky_seconds,
            targets: targets
                .map(|target| CheckedTarget {
                    address: target.address,
                    port: target.port,
                    weight: target.weight,
                    mapped_port: target.mapped_port,
                    zone: self.snapshot.zone_name(target.zone),
                })
                .collect(),
        }
    }

    /// Checks and compiles all that there is after `edits`.
    fn compile_anew(&mut self, mut edits: Edits) -> Result<(), Errors> {
        let kept = self.keys().into_iter().filter(|key| !edits.contains_key(key)).collect::<Vec<_>>();
        for key in kept {
            let resource = self.resource(key.kind, &key.name);
            edits.insert(key, resource);
        }
        let process = &self.process.declaration;
        let mut declaration = Declaration {
            file: ORIGIN.to_owned(),
            gateway: process.gateway.clone(),
            workers: process.workers.clone(),
            selection: process.selection.clone(),
            limits: process.limits.clone(),
            ports: process.ports.clone(),
            ..Declaration::default()
        };
        edits.into_values().flatten().for_each(|resource| declaration.add(resource));
        let mut checked = declaration.check_as(Keys::Names)?;
        // What is pushed says nothing of where it comes from.
        checked.control.clone_from(&self.process.control);
        let checked = checked.reload(&self.process)?;
        self.take(&checked);
        Ok(())
    }

    /// Compiles what was checked.
    fn take(&mut self, checked: &Checked) {
        let health = &mut self.health;
        for group in &checked.objects.groups {
            health.keep(&group.name, &group.targets);
        }
        let (snapshot, base) = compile_onto(checked, Some(&self.snapshot), &mut self.placed, health);
        self.declared = Declared::default();
        let process = checked.without_objects();
        for resource in checked.declaration.resources().filter(|resource| resource.kind() != ResourceKind::Endpoint) {
            self.declared.set(resource.key(), Some(resource));
        }
        (self.process, self.base, self.snapshot) = (process, base, Arc::new(snapshot));
    }

    /// Checks and places what `edits` touch.
    fn apply(&mut self, edits: Edits) -> Result<(), Errors> {
        let touched = self.touched(&edits);
        let mut declaration = Declaration { file: ORIGIN.to_owned(), ..Declaration::default() };
        for key in &touched {
            let kept = || self.resource(key.0, &key.1);
            let edit = edits.get(&ResourceKey { kind: key.0, name: key.1.clone() });
            if let Some(resource) = edit.cloned().unwrap_or_else(kept) {
                declaration.add(resource);
            }
        }
        let objects = self.check(&declaration, &touched)?;
        let gone = |of: ResourceKind| {
            let gone = edits.iter().filter(move |(key, new)| key.kind == of && new.is_none());
            gone.map(|(key, _)| key.name.as_str().into()).collect::<Vec<Arc<str>>>()
        };
        let removed = Removed {
            security_groups: gone(ResourceKind::SecurityGroup),
            groups: gone(ResourceKind::TargetGroup),
            balancers: gone(ResourceKind::LoadBalancer),
            services: gone(ResourceKind::Service),
            endpoints: gone(ResourceKind::Endpoint),
        };
        removed.groups.iter().for_each(|group| self.health.forget(group));
        objects.groups.iter().for_each(|group| self.health.keep(&group.name, &group.targets));
        self.place(&objects, &removed, Vec::new());
        edits.into_iter().for_each(|(key, new)| self.declared.set(key, new));
        Ok(())
    }

    /// What must be looked at again when `edits` are made: these, and what refers to what they change.
    fn touched(&self, edits: &Edits) -> BTreeSet<(ResourceKind, String)> {
        let edited = |kind, gone: bool| -> HashSet<&str> {
            let of_kind = edits.iter().filter(|(key, new)| key.kind == kind && (!gone || new.is_none()));
            of_kind.map(|(key, _)| key.name.as_str()).collect()
        };
        let mut touched: BTreeSet<_> = edits.keys().map(|key| (key.kind, key.name.clone())).collect();
        let mut groups = edited(ResourceKind::TargetGroup, true);
        // Whom a listener leads to depends on the families of its groups; a header is for TCP listeners only.
        groups.extend(edits.iter().filter_map(|(key, new)| match new {
            Some(Resource::TargetGroup(group))
                if self.changes_listeners(group) || group.proxy_protocol.unwrap_or_default() != ProxyProtocol::Off =>
            {
                Some(key.name.as_str())
            }
            _ => None,
        }));
        self.touched_by_security_groups(edits, &mut touched);
        if !groups.is_empty() {
            let names = |listener: &declaration::Listener| {
                listener.target_groups.iter().any(|group| groups.contains(&*group.name))
            };
            let users = self.declared.balancers.values().filter(|balancer| balancer.listeners.iter().any(names));
            touched.extend(users.map(|balancer| (ResourceKind::LoadBalancer, balancer.name.clone())));
        }
        let balancers: HashSet<String> = touched
            .iter()
            .filter(|(kind, _)| *kind == ResourceKind::LoadBalancer)
            .map(|(_, name)| name.clone())
            .collect();
        if !balancers.is_empty() {
            let users = self.declared.services.values();
            let users = users.filter(|service| service.load_balancers.iter().any(|name| balancers.contains(name)));
            touched.extend(users.map(|service| (ResourceKind::Service, service.id.clone())));
        }
        let services = edited(ResourceKind::Service, true);
        let services: HashSet<_> = services.into_iter().filter_map(|id| self.placed.service(id)).collect();
        let first = |id: &str| self.placed.endpoints(id).first().and_then(|index| self.snapshot.endpoint(*index));
        let leaving = edited(ResourceKind::Endpoint, false).into_iter().filter_map(first);
        let leaving = leaving.filter(|endpoint| services.contains(&endpoint.service)).count();
        if services.iter().map(|service| self.placed.endpoints_of(*service)).sum::<usize>() > leaving {
            let users = self.snapshot.endpoints.iter().flatten();
            let users = users.filter(|endpoint| services.contains(&endpoint.service));
            touched.extend(users.map(|endpoint| (ResourceKind::Endpoint, endpoint.id.to_string())));
        }
        touched
    }

    /// Whether a listener's say of its groups would be another: their family, or whether clients stay with their targets.
    fn changes_listeners(&self, group: &declaration::TargetGroup) -> bool {
        let before = self.declared.groups.get(&group.name);
        let is_sticky = |group: &declaration::TargetGroup| group.sticky_seconds.is_some();
        self.changes_family(group) || before.is_some_and(|before| is_sticky(before) != is_sticky(group))
    }

    /// Whether a group's targets will be of another family than now.
    fn changes_family(&self, group: &declaration::TargetGroup) -> bool {
        let before = self.placed.group(&group.name).map(|index| self.snapshot.target_groups[index.at()].family);
        let after = group.targets.first().and_then(|target| target.address.parse().ok()).map(Family::of);
        before.is_some_and(|before| before != after.unwrap_or_default())
    }

    /// Groups whose rules name an edited group as their source, and who refers to one that goes.
    fn touched_by_security_groups(&self, edits: &Edits, touched: &mut BTreeSet<(ResourceKind, String)>) {
        let of_kind = || edits.iter().filter(|(key, _)| key.kind == ResourceKind::SecurityGroup);
        if of_kind().next().is_none() {
            return;
        }
        let edited: HashSet<&str> = of_kind().map(|(key, _)| key.name.as_str()).collect();
        let is_source = |rule: &declaration::SecurityRule| {
            rule.source_group.as_ref().is_some_and(|group| edited.contains(group.as_str()))
        };
        let users = self.declared.security_groups.values().filter(|group| group.rules.iter().any(is_source));
        touched.extend(users.map(|group| (ResourceKind::SecurityGroup, group.name.clone())));
        let gone = of_kind().filter(|(_, new)| new.is_none()).map(|(key, _)| key.name.as_str());
        let gone: HashSet<&str> = gone.collect();
        if gone.is_empty() {
            return;
        }
        let names = |groups: &[String]| groups.iter().any(|group| gone.contains(group.as_str()));
        let users = self.declared.balancers.values().filter(|balancer| names(&balancer.security_groups));
        touched.extend(users.map(|balancer| (ResourceKind::LoadBalancer, balancer.name.clone())));
        let gone: HashSet<_> = gone.into_iter().filter_map(|name| self.placed.security_group(name)).collect();
        let users = self.snapshot.endpoints.iter().flatten();
        let users = users.filter(|endpoint| endpoint.security_groups.iter().any(|group| gone.contains(group)));
        touched.extend(users.map(|endpoint| (ResourceKind::Endpoint, endpoint.id.to_string())));
    }

    /// Checks the objects of `declaration` among those that are not `touched`.
    fn check(&self, declaration: &Declaration, touched: &BTreeSet<(ResourceKind, String)>) -> Result<Objects, Errors> {
        let Self { process, base, declared, placed, snapshot, .. } = self;
        let world = World {
            snapshot,
            placed,
            base,
            declared,
            touched: touched.iter().map(|(kind, name)| (*kind, name.as_str())).collect(),
        };
        let mut checker = Checker::new(ORIGIN, Keys::Names);
        let vpcs = Names::kept("VPC", &base.vpc_index, process.facts.vpcs.iter());
        let pools = declared.names(ResourceKind::SnatPool).map(str::to_owned).take(check::LISTED).collect::<Vec<_>>();
        let pools = Names::kept("snat_pool", &base.pool_index, pools.iter());
        let mut network = Network::new(&process.facts, declaration, Keys::Names, Some(&world));
        let pools = (&pools, &base.pool_vpcs[..]);
        let objects = check::objects(&mut checker, declaration, &vpcs, pools, &mut network, Some(&world));
        let of = |kind| touched.iter().filter(move |(of, _)| *of == kind).map(|(_, name)| name.as_str());
        let endpoints = of(ResourceKind::Endpoint).map(|id| placed.endpoints(id).len()).sum::<usize>();
        let groups = of(ResourceKind::TargetGroup).filter_map(|name| placed.group(name));
        let targets = groups.map(|index| snapshot.target_groups[index.at()].members.len()).sum::<usize>();
        let new_endpoints = objects.endpoints.iter().map(|endpoint| endpoint.addresses.len()).sum::<usize>();
        let new_targets = objects.groups.iter().map(|group| group.targets.len()).sum::<usize>();
        if checker.errors.is_empty() {
            for (key, declared, room) in [
                ("limits.endpoints", placed.endpoint_addresses - endpoints + new_endpoints, process.limits.endpoints),
                ("limits.targets", placed.targets - targets + new_targets, process.limits.targets),
            ] {
                if declared > room as usize {
                    checker.error(key, i64::from(room), Problem::NoRoom { declared, room, key });
                }
            }
        }
        Errors::unless_empty(checker.errors)?;
        Ok(objects)
    }

    /// Makes the next snapshot; `ended` are incarnations of targets whose flows end.
    fn place(&mut self, objects: &Objects, removed: &Removed, ended: Vec<u32>) {
        let mut next = Snapshot::clone(&self.snapshot);
        next.generation = Generation(self.snapshot.generation.0 + 1);
        let Self { base, placed, health, snapshot, .. } = self;
        let mut placing = Placing { old: snapshot, next: &mut next, placed, base, health };
        placing.run(objects, removed);
        if !ended.is_empty() {
            placing.end_flows(ended);
        }
        self.snapshot = Arc::new(next);
    }

    /// The indices of an endpoint's addresses, as declared.
    #[must_use]
    pub fn endpoint_indices(&self, id: &str) -> &[EndpointIndex] {
        self.placed.endpoints(id)
    }
}

impl Declared {
    pub(crate) fn has(&self, kind: ResourceKind, name: &str) -> bool {
        match kind {
            ResourceKind::SecurityGroup => self.security_groups.contains_key(name),
            ResourceKind::TargetGroup => self.groups.contains_key(name),
            ResourceKind::LoadBalancer => self.balancers.contains_key(name),
            ResourceKind::Service => self.services.contains_key(name),
            kind => self.network.contains_key(&ResourceKey { kind, name: name.to_owned() }),
        }
    }

    pub(crate) fn balancers_of(&self, service: &str) -> &[String] {
        self.services.get(service).map_or(&[], |service| &service.load_balancers)
    }

    pub(crate) fn listeners_of(&self, load_balancer: &str) -> &[declaration::Listener] {
        self.balancers.get(load_balancer).map_or(&[], |balancer| &balancer.listeners)
    }

    pub(crate) fn pool(&self, name: &str) -> Option<&declaration::SnatPool> {
        match self.network.get(&ResourceKey { kind: ResourceKind::SnatPool, name: name.to_owned() })? {
            Resource::SnatPool(pool) => Some(pool),
            _ => None,
        }
    }

    pub(crate) fn names(&self, kind: ResourceKind) -> Box<dyn Iterator<Item = &str> + '_> {
        match kind {
            ResourceKind::SecurityGroup => Box::new(self.security_groups.keys().map(String::as_str)),
            ResourceKind::TargetGroup => Box::new(self.groups.keys().map(String::as_str)),
            ResourceKind::LoadBalancer => Box::new(self.balancers.keys().map(String::as_str)),
            ResourceKind::Service => Box::new(self.services.keys().map(String::as_str)),
            kind => Box::new(self.network.keys().filter(move |key| key.kind == kind).map(|key| key.name.as_str())),
        }
    }

    fn set(&mut self, key: ResourceKey, new: Option<Resource>) {
        fn set<V>(of_kind: &mut BTreeMap<String, V>, name: String, new: Option<V>) {
            match new {
                Some(new) => drop(of_kind.insert(name, new)),
                None => drop(of_kind.remove(&name)),
            }
        }
        match (key.kind, new) {
            (_, Some(Resource::SecurityGroup(group))) => set(&mut self.security_groups, key.name, Some(group)),
            (_, Some(Resource::TargetGroup(group))) => set(&mut self.groups, key.name, Some(group)),
            (_, Some(Resource::LoadBalancer(balancer))) => set(&mut self.balancers, key.name, Some(balancer)),
            (_, Some(Resource::Service(service))) => set(&mut self.services, key.name, Some(service)),
            (ResourceKind::SecurityGroup, None) => set(&mut self.security_groups, key.name, None),
            (ResourceKind::TargetGroup, None) => set(&mut self.groups, key.name, None),
            (ResourceKind::LoadBalancer, None) => set(&mut self.balancers, key.name, None),
            (ResourceKind::Service, None) => set(&mut self.services, key.name, None),
            (ResourceKind::Endpoint, _) => {}
            (_, Some(resource)) => drop(self.network.insert(key, resource)),
            (_, None) => drop(self.network.remove(&key)),
        }
    }
}

impl Declaration {
    /// Declares one more object.
    fn add(&mut self, resource: Resource) {
        match resource {
            Resource::Vpc(vpc) => self.vpcs.push(vpc),
            Resource::Attachment(attachment, routes) => {
                let name = &attachment.name;
                self.routes.extend(routes.into_iter().map(|route| Route { attachment: name.clone(), ..route }));
                self.attachments.push(attachment);
            }
            Resource::SnatPool(pool) => self.snat_pools.push(pool),
            Resource::SecurityGroup(group) => self.security_groups.push(group),
            Resource::TargetGroup(group) => self.target_groups.push(group),
            Resource::LoadBalancer(balancer) => self.load_balancers.push(balancer),
            Resource::Service(service) => self.services.push(service),
            Resource::Endpoint(endpoint) => self.endpoints.push(endpoint),
        }
    }
}

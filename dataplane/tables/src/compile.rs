//! From what was checked to the tables of the workers.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postern_selection::MaglevTable;
use postern_wire::AttachmentIndex;

use crate::check::{Checked, CheckedGroup};
use crate::history::{History, place};
use crate::lookup::AttachmentLookup;
use crate::snapshot::{
    Attachment, Endpoint, EndpointIndex, EndpointPolicy, Generation, Listener, ListenerIndex, LocalAddress, PoolIndex,
    Route, Service, ServiceIndex, Snapshot, SnatPool, Target, TargetGroup, TargetIndex, Vpc, VpcIndex,
};

/// Compiles the tables; `previous` is the snapshot that they replace.
///
/// What lives on keeps its index: VPCs by id, attachments and pools by name, endpoint addresses by id, VPC and address,
/// targets by group, address and port. An endpoint's policy epoch changes when its service does. Selection tables
/// whose members and weights did not change are shared with `previous`; the others are built on all CPUs.
///
/// Services, listeners and target groups are numbered anew each time.
#[must_use]
pub fn compile(checked: &Checked, previous: Option<&Snapshot>) -> Snapshot {
    let nothing = Snapshot::default();
    let old = previous.unwrap_or(&nothing);
    let mut history = old.history.clone();

    let vpc_at = positions(&old.vpcs, |vpc| &vpc.id, checked.vpcs.iter());
    let attachment_names = checked.attachments.iter().map(|attachment| &attachment.name);
    let attachment_at = positions(&old.attachments, |attachment| &attachment.name, attachment_names);
    let pool_at = positions(&old.pools, |pool| &pool.name, checked.pools.iter().map(|pool| &pool.name));
    let vpc = |declared: usize| VpcIndex(vpc_at.index[declared]);

    let vpcs = vpcs(checked, &vpc_at, &attachment_at);
    let mut attachments = old.attachments.clone();
    attachments.iter_mut().for_each(|attachment| attachment.port = Attachment::REMOVED);
    put(&mut attachments, &attachment_at, checked.attachments.iter(), |attachment| Attachment {
        vpc: vpc(attachment.vpc.at()),
        ..attachment.clone()
    });
    let mut pools = old.pools.clone();
    pools.iter_mut().for_each(|pool| pool.addresses.clear());
    put(&mut pools, &pool_at, checked.pools.iter(), |pool| SnatPool { vpc: vpc(pool.vpc.at()), ..pool.clone() });

    let (targets, target_groups) = groups(checked, old, &mut history, &vpc_at, &pool_at);
    let (services, listeners) = services(checked);
    let (endpoints, endpoint_indices) = endpoints(checked, old, &mut history, &vpc_at);

    let snat = pools.iter().zip(0..).flat_map(|(pool, index)| {
        let local = LocalAddress::Snat(PoolIndex(index));
        pool.addresses.iter().map(move |address| ((pool.vpc, *address), local))
    });
    let own = checked.endpoints.iter().zip(endpoint_indices);
    let own =
        own.map(|(written, index)| ((vpc(written.vpc), written.address), LocalAddress::Endpoint(EndpointIndex(index))));
    Snapshot {
        generation: Generation(old.generation.0 + 1),
        ports: checked.ports.clone(),
        vpcs,
        policies: EndpointPolicy::of(&endpoints),
        endpoints,
        services,
        listeners,
        target_groups,
        registered: targets.iter().flatten().map(|target| (target.vpc, target.address, target.port)).collect(),
        targets,
        local: own.chain(snat).collect(),
        pools,
        selection: checked.selection.clone(),
        attachment_lookup: AttachmentLookup::new(&attachments),
        attachments,
        history,
    }
}

/// Places of VPCs, attachments and pools. A removed one's place is taken again only when all have been used, because
/// flows may still hold its index.
const PLACES: usize = u16::MAX as usize;

/// Where declared objects stand among the old ones.
struct Positions {
    /// By declared index.
    index: Vec<u32>,
    length: usize,
}

/// Objects with the name of an old one keep its place, the others come behind.
fn positions<'n, T>(
    old: &'n [T],
    name: impl Fn(&'n T) -> &'n String,
    names: impl Iterator<Item = &'n String>,
) -> Positions {
    let known: HashMap<&String, u32> = old.iter().map(name).zip(0..).collect();
    let mut index: Vec<u32> = names.map(|name| known.get(name).copied().unwrap_or(u32::MAX)).collect();
    let mut length = old.len();
    let mut taken = vec![false; old.len()];
    index.iter().filter(|&&at| at != u32::MAX).for_each(|&at| taken[at as usize] = true);
    let mut removed = (0..old.len()).filter(|&at| !taken[at]);
    for at in index.iter_mut().filter(|at| **at == u32::MAX) {
        let place = if length < PLACES { length } else { removed.next().unwrap_or(length) };
        length = length.max(place + 1);
        *at = place as u32;
    }
    Positions { index, length }
}

/// Puts declared objects in their places.
fn put<'c, T: Clone + 'c>(
    objects: &mut Vec<T>,
    positions: &Positions,
    declared: impl Iterator<Item = &'c T>,
    make: impl Fn(&'c T) -> T,
) {
    objects.reserve(positions.length - objects.len());
    for (object, &at) in declared.zip(&positions.index) {
        if at as usize == objects.len() {
            objects.push(make(object));
        } else {
            objects[at as usize] = make(object);
        }
    }
}

fn vpcs(checked: &Checked, vpc_at: &Positions, attachment_at: &Positions) -> Vec<Vpc> {
    let mut vpcs = vec![Vpc { id: String::new(), routes: Vec::new() }; vpc_at.length];
    for (id, &at) in checked.vpcs.iter().zip(&vpc_at.index) {
        id.clone_into(&mut vpcs[at as usize].id);
    }
    for (vpc, route) in &checked.routes {
        let attachment = AttachmentIndex(attachment_at.index[usize::from(route.attachment.0)] as u16);
        vpcs[vpc_at.index[*vpc] as usize].routes.push(Route { attachment, ..*route });
    }
    vpcs
}

fn services(checked: &Checked) -> (Vec<Service>, Vec<Listener>) {
    let mut listeners = Vec::new();
    let mut of_balancer = Vec::new();
    for balancer in &checked.load_balancers {
        let numbered = balancer.iter().zip(listeners.len() as u32..);
        let entry = |(listener, at): (&Listener, u32)| ((listener.protocol, listener.port), ListenerIndex(at));
        of_balancer.push(numbered.map(entry).collect::<Vec<_>>());
        listeners.extend(balancer.iter().cloned());
    }
    let services = checked.services.iter().map(|service| {
        let own = service.load_balancers.iter().flat_map(|&balancer| of_balancer[balancer].iter().copied());
        let mut listeners: Vec<_> = own.collect();
        listeners.sort_unstable();
        Service { id: service.id.clone(), listeners }
    });
    (services.collect(), listeners)
}

fn endpoints(
    checked: &Checked,
    old: &Snapshot,
    history: &mut History,
    vpc_at: &Positions,
) -> (Vec<Option<Endpoint>>, Vec<u32>) {
    let mut free = std::mem::take(&mut history.free_endpoints);
    let placed = place(
        &old.endpoints,
        &checked.endpoints,
        &mut free,
        |endpoint: &Endpoint| (endpoint.id.as_str(), endpoint.vpc, endpoint.address),
        |written| (written.id.as_str(), VpcIndex(vpc_at.index[written.vpc]), written.address),
        |written, kept| {
            let same_rules =
                kept.filter(|kept| old.services[kept.service.at()].id == checked.services[written.service].id);
            Endpoint {
                id: written.id.clone(),
                vpc: VpcIndex(vpc_at.index[written.vpc]),
                address: written.address,
                service: ServiceIndex(written.service as u32),
                incarnation: kept.map_or_else(|| history.incarnation(), |kept| kept.incarnation),
                policy_epoch: same_rules.map_or_else(|| history.policy_epoch(), |kept| kept.policy_epoch),
                mtu: written.mtu,
                echo: written.echo,
            }
        },
    );
    history.free_endpoints = free;
    placed
}

/// A target as written, with its group.
struct WrittenTarget<'c> {
    group: &'c CheckedGroup,
    address: Ipv4Addr,
    port: u16,
    weight: u16,
}

fn groups(
    checked: &Checked,
    old: &Snapshot,
    history: &mut History,
    vpc_at: &Positions,
    pool_at: &Positions,
) -> (Vec<Option<Target>>, Vec<TargetGroup>) {
    let written: Vec<WrittenTarget<'_>> = checked
        .groups
        .iter()
        .flat_map(|group| {
            group.targets.iter().map(move |&(address, port, weight)| WrittenTarget { group, address, port, weight })
        })
        .collect();
    let mut free = std::mem::take(&mut history.free_targets);
    let (targets, indices) = place(
        &old.targets,
        &written,
        &mut free,
        |target: &Target| (target.group.as_str(), target.vpc, target.address, target.port),
        |target| (target.group.name.as_str(), VpcIndex(vpc_at.index[target.group.vpc]), target.address, target.port),
        |target, kept| Target {
            vpc: VpcIndex(vpc_at.index[target.group.vpc]),
            address: target.address,
            port: target.port,
            group: target.group.name.clone(),
            weight: target.weight,
            incarnation: kept.map_or_else(|| history.incarnation(), |kept| kept.incarnation),
        },
    );
    history.free_targets = free;

    let mut indices = indices.into_iter().map(TargetIndex);
    let mut groups: Vec<TargetGroup> = checked
        .groups
        .iter()
        .map(|group| TargetGroup {
            name: group.name.clone(),
            vpc: VpcIndex(vpc_at.index[group.vpc]),
            pool: PoolIndex(pool_at.index[group.pool]),
            members: indices.by_ref().take(group.targets.len()).collect(),
            table: None,
            health: group.health.clone(),
        })
        .collect();
    let shared = shared_tables(checked, old);
    for (group, table) in groups.iter_mut().zip(tables(&checked.groups, shared)) {
        group.table = table;
    }
    (targets, groups)
}

/// The old table of each group whose members and weights are the old ones.
fn shared_tables(checked: &Checked, old: &Snapshot) -> Vec<Option<Arc<MaglevTable>>> {
    let known: HashMap<&str, &TargetGroup> =
        old.target_groups.iter().map(|group| (group.name.as_str(), group)).collect();
    let shared = |group: &CheckedGroup| {
        let before = known.get(group.name.as_str())?;
        let table = before.table.as_ref().filter(|table| table.slots().len() == group.slots)?;
        let members = before.members.iter().filter_map(|&index| old.target(index));
        let members = members.map(|target| (target.address, target.port, target.weight));
        members.eq(group.targets.iter().copied()).then(|| Arc::clone(table))
    };
    checked.groups.iter().map(shared).collect()
}

/// The tables of all groups: shared, or built by as many threads as there are CPUs.
fn tables(groups: &[CheckedGroup], shared: Vec<Option<Arc<MaglevTable>>>) -> Vec<Option<Arc<MaglevTable>>> {
    let mut tables = shared;
    let missing: Vec<usize> = (0..groups.len()).filter(|&at| tables[at].is_none()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len().div_ceil(8));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut built = Vec::new();
        while let Some(&at) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            built.push((at, table(&groups[at])));
        }
        built
    };
    let built = if threads <= 1 {
        work()
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(built) => built,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().flat_map(join).collect()
        })
    };
    for (at, table) in built {
        tables[at] = table;
    }
    tables
}

/// `None` where no member has weight. That slots and members fit was checked.
fn table(group: &CheckedGroup) -> Option<Arc<MaglevTable>> {
    let backends: Vec<(u64, u16)> =
        group.targets.iter().map(|&(address, port, weight)| (identity(address, port), weight)).collect();
    MaglevTable::build(&backends, group.slots).ok().map(Arc::new)
}

/// What a target is in the selection table, on every gateway: address in bits 16…47, port below.
fn identity(address: Ipv4Addr, port: u16) -> u64 {
    u64::from(address.to_bits()) << 16 | u64::from(port)
}

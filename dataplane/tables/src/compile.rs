//! From what was checked to the tables of the workers, all of it. Changes of a part are [`crate::Tables`]'.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use postern_wire::AttachmentIndex;

use crate::check::Checked;
use crate::lookup::AttachmentLookup;
use crate::place::{Base, Placed, Placing};
use crate::snapshot::{
    Attachment, Generation, LocalAddress, PoolIndex, Route, Route6, Snapshot, SnatPool, Vpc, VpcIndex,
};
use crate::usable::Health;

/// Compiles the tables; `previous` is the snapshot that they replace.
///
/// What lives on keeps its index: VPCs, services and endpoints by id, attachments, pools and groups by name, listeners by
/// load balancer, protocol and port, targets by group, address and port. An endpoint's policy epoch changes when its service
/// does. Selection tables whose members and weights did not change are shared with `previous`; the others are built on all
/// CPUs.
#[must_use]
pub fn compile(checked: &Checked, previous: Option<&Snapshot>) -> Snapshot {
    let mut placed = previous.map(Placed::of).unwrap_or_default();
    compile_onto(checked, previous, &mut placed, &mut Health::default()).0
}

/// Compiles the tables; `placed` is what `previous` has, and then what the new snapshot has.
pub(crate) fn compile_onto(
    checked: &Checked,
    previous: Option<&Snapshot>,
    placed: &mut Placed,
    health: &mut Health,
) -> (Snapshot, Base) {
    let nothing = Snapshot::default();
    let old = previous.unwrap_or(&nothing);

    let vpc_at = positions(&old.vpcs, |vpc| &vpc.id, checked.facts.vpcs.iter());
    let attachment_names = checked.attachments.iter().map(|attachment| &attachment.name);
    let attachment_at = positions(&old.attachments, |attachment| &attachment.name, attachment_names);
    let pool_at = positions(&old.pools, |pool| &pool.name, checked.pools.iter().map(|pool| &pool.name));
    let vpc = |declared: usize| VpcIndex(vpc_at.index[declared]);

    let mut attachments = old.attachments.to_vec();
    attachments.iter_mut().for_each(|attachment| attachment.port = Attachment::REMOVED);
    put(&mut attachments, &attachment_at, checked.attachments.iter(), |attachment| Attachment {
        vpc: vpc(attachment.vpc.at()),
        ..attachment.clone()
    });
    let mut pools = old.pools.to_vec();
    for pool in &mut pools {
        pool.addresses.clear();
        pool.addresses6.clear();
        pool.draining.clear();
    }
    put(&mut pools, &pool_at, checked.pools.iter(), |pool| SnatPool { vpc: vpc(pool.vpc.at()), ..pool.clone() });

    let mut next = old.clone();
    next.generation = Generation(old.generation.0 + 1);
    next.ports.clone_from(&checked.ports);
    next.selection = checked.selection.clone();
    next.vpcs = unless_equal(&old.vpcs, vpcs(checked, &vpc_at, &attachment_at));
    if *old.attachments != attachments {
        next.attachment_lookup = Arc::new(AttachmentLookup::new(&attachments));
    }
    next.attachments = unless_equal(&old.attachments, attachments);
    next.pools = unless_equal(&old.pools, pools);

    let base = Base {
        vpc_index: index(checked.facts.vpcs.iter()),
        pool_index: index(checked.pools.iter().map(|pool| &pool.name)),
        pool_vpcs: checked.pools.iter().map(|pool| Some(pool.vpc.at())).collect(),
        vpc_at: vpc_at.index,
        pool_at: pool_at.index,
    };
    // An address may go from a pool to an endpoint, or the other way.
    let snat: HashSet<_> = snat_addresses(&next).collect();
    for entry in snat_addresses(old).filter(|entry| !snat.contains(entry)) {
        next.set_local(entry.0.0, entry.0.1, None);
    }
    Placing { old, next: &mut next, placed, base: &base, health }.all(&checked.objects);
    for (key, pool) in snat {
        next.set_local(key.0, key.1, Some(LocalAddress::Snat(pool)));
    }
    (next, base)
}

fn snat_addresses(snapshot: &Snapshot) -> impl Iterator<Item = ((VpcIndex, IpAddr), PoolIndex)> {
    let pools = snapshot.pools.iter().zip(0..);
    pools.flat_map(|(pool, index)| pool.all_addresses().map(move |address| ((pool.vpc, address), PoolIndex(index))))
}

/// The old vector, where the new one is the same.
fn unless_equal<T: PartialEq>(old: &Arc<Vec<T>>, new: Vec<T>) -> Arc<Vec<T>> {
    if **old == new { Arc::clone(old) } else { Arc::new(new) }
}

fn index<'n>(names: impl Iterator<Item = &'n String>) -> HashMap<String, usize> {
    names.cloned().zip(0..).collect()
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
    let mut vpcs = vec![Vpc { id: String::new(), routes: Vec::new(), routes6: Vec::new() }; vpc_at.length];
    for (id, &at) in checked.facts.vpcs.iter().zip(&vpc_at.index) {
        id.clone_into(&mut vpcs[at as usize].id);
    }
    let attachment = |declared: AttachmentIndex| AttachmentIndex(attachment_at.index[usize::from(declared.0)] as u16);
    for (vpc, route) in &checked.routes.v4 {
        let route = Route { attachment: attachment(route.attachment), ..*route };
        vpcs[vpc_at.index[*vpc] as usize].routes.push(route);
    }
    for (vpc, route) in &checked.routes.v6 {
        let route = Route6 { attachment: attachment(route.attachment), ..*route };
        vpcs[vpc_at.index[*vpc] as usize].routes6.push(route);
    }
    vpcs
}

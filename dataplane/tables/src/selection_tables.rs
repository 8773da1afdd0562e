//! Selection tables of target groups: for groups that a listener leads to, by as many threads as there are CPUs, none of
//! them a worker.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postern_selection::MaglevTable;

use crate::snapshot::{Snapshot, TargetGroup};

/// Gives those of `groups` a table that need one and have none.
pub(crate) fn build(snapshot: &mut Snapshot, groups: &BTreeSet<u32>) {
    let without = |group: &TargetGroup| group.table.is_none() && group.shares.iter().any(|share| *share > 0);
    let candidates = groups.iter().copied();
    let mut missing: Vec<u32> =
        candidates.filter(|&at| snapshot.target_groups.get(at as usize).is_some_and(without)).collect();
    if !missing.is_empty() {
        let listeners = snapshot.listeners.iter().flatten();
        let needed: HashSet<u32> =
            listeners.flat_map(|listener| listener.groups.iter().map(|(_, group)| group.0)).collect();
        missing.retain(|at| needed.contains(at));
    }
    for (at, table) in tables(snapshot, &missing) {
        if let Some(group) = snapshot.target_groups.get(at as usize) {
            let group = TargetGroup { table, ..group.clone() };
            snapshot.target_groups.set(at as usize, Some(group));
        }
    }
}

fn tables(snapshot: &Snapshot, missing: &[u32]) -> Vec<(u32, Option<Arc<MaglevTable>>)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len().div_ceil(8));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut built = Vec::new();
        while let Some(&at) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            built.push((at, table(snapshot, &snapshot.target_groups[at as usize])));
        }
        built
    };
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(built) => built,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().flat_map(join).collect()
    })
}

/// `None` where no member has a share. That slots and members fit was checked.
fn table(snapshot: &Snapshot, group: &TargetGroup) -> Option<Arc<MaglevTable>> {
    let targets = group.members.iter().filter_map(|member| snapshot.target(*member));
    let backends: Vec<(u64, u16)> = targets
        .zip(group.shares.iter())
        .map(|(target, share)| (identity(target.address, target.port), *share))
        .collect();
    MaglevTable::build(&backends, group.slots as usize).ok().map(Arc::new)
}

/// What a target is in the selection table, on every gateway: address in bits 16…47, port below.
fn identity(address: Ipv4Addr, port: u16) -> u64 {
    u64::from(address.to_bits()) << 16 | u64::from(port)
}

//! Selection tables of target groups: for groups that a listener leads to, by as many threads as there are CPUs, none of
//! them a worker.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postern_selection::MaglevTable;

use crate::snapshot::{Snapshot, TargetGroup, Zone};

/// Gives those of `groups` tables that need some and have none.
pub(crate) fn build(snapshot: &mut Snapshot, groups: &BTreeSet<u32>) {
    let group = |at: u32| snapshot.target_groups.get(at as usize);
    let has_shares = |group: &&TargetGroup| group.mapping.is_none() && group.shares.iter().any(|share| *share > 0);
    let mut missing: Vec<u32> = groups.iter().copied().filter(|&at| group(at).filter(has_shares).is_some()).collect();
    missing.retain(|&at| group(at).is_some_and(|group| group.table.is_none() || has_zones(snapshot, group)));
    let (mut needed, mut zonal) = (HashSet::new(), HashSet::new());
    if !missing.is_empty() {
        for listener in snapshot.listeners.iter().flatten() {
            let groups = listener.groups6.iter().map(|(_, group)| group.0);
            needed.extend(groups.clone());
            if !listener.cross_zone {
                zonal.extend(groups);
            }
        }
        zonal.retain(|at| group(*at).is_some_and(|group| has_zones(snapshot, group)));
        missing.retain(|at| {
            let wanted = zonal.contains(at);
            needed.contains(at)
                && group(*at).is_some_and(|group| group.table.is_none() || group.zonal.is_empty() == wanted)
        });
    }
    for (at, tables) in tables(snapshot, &missing, &zonal) {
        if let Some(group) = snapshot.target_groups.get(at as usize) {
            let group = TargetGroup { table: tables.all, zonal: tables.zonal.into(), ..group.clone() };
            snapshot.target_groups.set(at as usize, Some(group));
        }
    }
}

/// The tables of a group.
struct GroupTables {
    all: Option<Arc<MaglevTable>>,
    zonal: Vec<(Zone, Arc<MaglevTable>)>,
}

/// Whether a target of a group has a zone.
fn has_zones(snapshot: &Snapshot, group: &TargetGroup) -> bool {
    !snapshot.zones.is_empty() && zones(snapshot, group).any(|zone| zone != Zone::NONE)
}

/// The zone of each member.
fn zones(snapshot: &Snapshot, group: &TargetGroup) -> impl Iterator<Item = Zone> {
    group.members.iter().map(|member| snapshot.target(*member).map_or(Zone::NONE, |target| target.zone))
}

fn tables(snapshot: &Snapshot, missing: &[u32], zonal: &HashSet<u32>) -> Vec<(u32, GroupTables)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len().div_ceil(8));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut built = Vec::new();
        while let Some(&at) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let group = &snapshot.target_groups[at as usize];
            let all = group.table.clone().or_else(|| table(snapshot, group, &group.shares));
            let mut tables = GroupTables { all, zonal: Vec::new() };
            if zonal.contains(&at) {
                let wanted: BTreeSet<Zone> = zones(snapshot, group).filter(|zone| *zone != Zone::NONE).collect();
                for zone in wanted {
                    let members = zones(snapshot, group).zip(group.shares.iter());
                    let shares: Vec<u16> = members.map(|(of, share)| if of == zone { *share } else { 0 }).collect();
                    tables.zonal.extend(table(snapshot, group, &shares).map(|table| (zone, table)));
                }
            }
            built.push((at, tables));
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

/// `None` where no member has one of the `shares`. That slots and members fit was checked.
fn table(snapshot: &Snapshot, group: &TargetGroup, shares: &[u16]) -> Option<Arc<MaglevTable>> {
    let targets = group.members.iter().filter_map(|member| snapshot.target(*member));
    let backends: Vec<(u64, u16)> =
        targets.zip(shares).map(|(target, share)| (identity(target.address, target.port), *share)).collect();
    MaglevTable::build(&backends, group.slots as usize).ok().map(Arc::new)
}

/// What a target is in the selection table, on every gateway. IPv4: the address in bits 16…47, the port below. IPv6: port,
/// low half and high half of the address, one after the other exclusive-ored into what [`mixed`] made of those before.
fn identity(address: IpAddr, port: u16) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()) << 16 | u64::from(port),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            mixed((bits >> 64) as u64 ^ mixed(bits as u64 ^ mixed(u64::from(port))))
        }
    }
}

/// A bijection of 64 bits in which every bit depends on every other (the finalizer of SplitMix64).
const fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_an_ipv6_target_is_the_documented_one_for_years() {
        let of = |text: &str, port| identity(text.parse().unwrap(), port);
        assert_eq!(of("10.0.0.1", 80), 0x0a00_0001_0050);
        assert_eq!(of("2001:db8::1", 80), IDENTITY);
        assert_ne!(of("2001:db8::1", 80), of("2001:db8::1", 81));
        assert_ne!(of("2001:db8::1", 80), of("2001:db8:0:1::1", 80));
    }

    /// Computed by hand from the three steps that are documented.
    const IDENTITY: u64 = 0xf090_1d79_abdb_e771;
}

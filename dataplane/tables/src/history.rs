//! Which index, incarnation and policy epoch an object has: the same for as long as it lives, from snapshot to snapshot.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// What a compilation must know of the ones before it.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub(crate) free_endpoints: VecDeque<u32>,
    pub(crate) free_targets: VecDeque<u32>,
    incarnation: u32,
    policy_epoch: u32,
}

impl History {
    /// An incarnation that no object has had.
    pub(crate) fn incarnation(&mut self) -> u32 {
        self.incarnation = next(self.incarnation);
        self.incarnation
    }

    /// A policy epoch that no endpoint has had.
    pub(crate) fn policy_epoch(&mut self) -> u32 {
        self.policy_epoch = next(self.policy_epoch);
        self.policy_epoch
    }
}

/// The next number after four thousand million is 1 again: by then no flow of the first one lives.
fn next(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

/// Puts `new` objects into the slots of `old` ones.
///
/// `make` gets the old object with the same identity, or `None` for a new one. An object keeps its slot; the slots of
/// removed objects are given again, the longest free first. Returns the slots and the slot of each new object.
pub(crate) fn place<'o, Old, New, Item, Identity: Hash + Eq>(
    old: &'o [Option<Old>],
    new: &'o [Item],
    free: &mut VecDeque<u32>,
    old_identity: impl Fn(&'o Old) -> Identity,
    identity: impl Fn(&'o Item) -> Identity,
    mut make: impl FnMut(&'o Item, Option<&'o Old>) -> New,
) -> (Vec<Option<New>>, Vec<u32>) {
    let mut known: HashMap<Identity, u32> = HashMap::with_capacity(old.len());
    for (index, object) in (0..).zip(old) {
        if let Some(object) = object {
            known.insert(old_identity(object), index);
        }
    }
    let mut slots: Vec<Option<New>> = Vec::with_capacity(old.len().max(new.len()));
    slots.resize_with(old.len(), || None);
    let mut indices = vec![u32::MAX; new.len()];
    for (item, index) in new.iter().zip(&mut indices) {
        if let Some(kept) = known.remove(&identity(item)) {
            let at = kept as usize;
            slots[at] = Some(make(item, old[at].as_ref()));
            *index = kept;
        }
    }
    let mut removed: Vec<u32> = known.into_values().collect();
    removed.sort_unstable();
    free.extend(removed);
    for (item, index) in new.iter().zip(&mut indices) {
        if *index == u32::MAX {
            *index = free.pop_front().unwrap_or(slots.len() as u32);
            if *index as usize == slots.len() {
                slots.push(None);
            }
            slots[*index as usize] = Some(make(item, None));
        }
    }
    (slots, indices)
}

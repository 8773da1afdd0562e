//! Which index, incarnation and policy epoch an object has: the same for as long as it lives, from snapshot to snapshot.

use std::collections::VecDeque;

/// What a compilation must know of the ones before it.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub(crate) free_endpoints: VecDeque<u32>,
    pub(crate) free_targets: VecDeque<u32>,
    pub(crate) free_groups: VecDeque<u32>,
    pub(crate) free_listeners: VecDeque<u32>,
    pub(crate) free_services: VecDeque<u32>,
    pub(crate) free_security_groups: VecDeque<u32>,
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

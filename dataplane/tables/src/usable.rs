//! Which targets get flows: what the gateway's own probes say of them, kept from change to change.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::check::CheckedTarget;

/// What a target may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Usable {
    /// New flows.
    #[default]
    Usable,
    /// The flows that it has, but no new ones.
    NoNewFlows,
    /// None: those that it has end too.
    CutFlows,
}

/// Earlier lives of one target whose flows may still end together; of more the oldest are forgotten.
const LIVES: usize = 16;

/// Targets that are not [`Usable::Usable`], by group, address and port.
#[derive(Debug, Default)]
pub(crate) struct Health {
    groups: HashMap<String, HashMap<(IpAddr, u16), Usable>>,
    /// Incarnations of targets that were taken out of groups that will end their flows, the oldest first.
    leaving: HashMap<String, HashMap<(IpAddr, u16), Vec<u32>>>,
    /// Whether a new target of a group with a health check gets no flows before it has passed one.
    pub(crate) first_pass: bool,
}

/// What health makes of a group, by target.
#[derive(Debug)]
pub(crate) struct GroupVerdict {
    /// Shares of new flows.
    pub(crate) shares: Vec<u16>,
    /// Whose flows end.
    pub(crate) cut: Vec<bool>,
    /// Whether no target may have new flows, so that all with a weight get them.
    pub(crate) fail_open: bool,
}

impl Health {
    /// Notes what a target may have; true if that is another thing than before.
    pub(crate) fn set(&mut self, group: &str, target: (IpAddr, u16), usable: Usable) -> bool {
        let before = self.of(group, target);
        if usable != Usable::Usable {
            self.groups.entry(group.to_owned()).or_default().insert(target, usable);
        } else if let Some(targets) = self.groups.get_mut(group) {
            targets.remove(&target);
            if targets.is_empty() {
                self.groups.remove(group);
            }
        }
        before != usable
    }

    /// A target is new in a group with a health check.
    pub(crate) fn begin(&mut self, group: &str, target: (IpAddr, u16)) {
        if self.first_pass {
            self.set(group, target, Usable::NoNewFlows);
        }
    }

    /// A target was taken out of its group, which ends its flows later, or lets them go on.
    pub(crate) fn leave(&mut self, group: &str, target: (IpAddr, u16), incarnation: u32, ends: bool) {
        if ends {
            let lives = self.leaving.entry(group.to_owned()).or_default().entry(target).or_default();
            if lives.len() == LIVES {
                lives.remove(0);
            }
            lives.push(incarnation);
        } else {
            self.left(group, target);
        }
    }

    /// The incarnations of a target that was taken out and whose flows end now.
    pub(crate) fn left(&mut self, group: &str, target: (IpAddr, u16)) -> Vec<u32> {
        let Some(targets) = self.leaving.get_mut(group) else { return Vec::new() };
        let lives = targets.remove(&target).unwrap_or_default();
        if targets.is_empty() {
            self.leaving.remove(group);
        }
        lives
    }

    /// Forgets the targets of a group that are not among `targets`.
    pub(crate) fn keep(&mut self, group: &str, targets: &[CheckedTarget]) {
        if let Some(known) = self.groups.get_mut(group) {
            known.retain(|known, _| targets.iter().any(|target| (target.address, target.port) == *known));
        }
    }

    /// Forgets a group.
    pub(crate) fn forget(&mut self, group: &str) {
        self.groups.remove(group);
    }

    /// What becomes of the targets of a group.
    pub(crate) fn verdict(&self, group: &str, targets: &[CheckedTarget]) -> GroupVerdict {
        let usable = |target: &CheckedTarget| self.of(group, (target.address, target.port));
        let fail_open = targets.iter().any(|target| target.weight > 0)
            && !targets.iter().any(|target| target.weight > 0 && usable(target) == Usable::Usable);
        let share =
            |target: &CheckedTarget| if fail_open || usable(target) == Usable::Usable { target.weight } else { 0 };
        GroupVerdict {
            shares: targets.iter().map(share).collect(),
            cut: targets.iter().map(|target| !fail_open && usable(target) == Usable::CutFlows).collect(),
            fail_open,
        }
    }

    fn of(&self, group: &str, target: (IpAddr, u16)) -> Usable {
        self.groups.get(group).and_then(|targets| targets.get(&target)).copied().unwrap_or_default()
    }
}

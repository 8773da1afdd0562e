//! What this gateway thinks of its targets' health: written by whoever probes them, read by the link to control.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// A target as control knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetKey {
    /// Name of the target group.
    pub group: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// The states of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetHealth {
    /// Not probed yet.
    Initial,
    /// Gets new flows.
    Healthy,
    /// Gets no new flows while another target is healthy.
    Unhealthy,
    /// Unhealthy, and its flows may go on for a while.
    UnhealthyDraining,
    /// Taken out of its group; its flows go on for a while.
    Draining,
    /// In no listener's group.
    Unused,
    /// Its group is not probed.
    Unavailable,
}

impl TargetHealth {
    /// The name in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::UnhealthyDraining => "unhealthy.draining",
            Self::Draining => "draining",
            Self::Unused => "unused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What is thought of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    /// Its state.
    pub health: TargetHealth,
    /// Why it is not healthy; empty if it is.
    pub reason: String,
}

/// The views of all targets. Each change has a version, so that a reader asks for what is new to it.
#[derive(Debug, Default)]
pub struct TargetViews {
    views: Mutex<Views>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Views {
    version: u64,
    by_key: HashMap<TargetKey, (u64, TargetView)>,
}

impl TargetViews {
    /// What is thought of a target from now on. The same again is no change.
    pub fn set(&self, key: TargetKey, view: TargetView) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if views.by_key.get(&key).is_some_and(|(_, known)| *known == view) {
            return;
        }
        views.version += 1;
        let version = views.version;
        views.by_key.insert(key, (version, view));
        drop(views);
        self.changed.notify_one();
    }

    /// Forgets a target that is no more. Control knows that by its tables.
    pub fn remove(&self, key: &TargetKey) {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).by_key.remove(key);
    }

    /// At most `limit` views that changed after `version`, the oldest first, and the version to go on from. From 0 on: all.
    #[must_use]
    pub fn changed_since(&self, version: u64, limit: usize) -> (Vec<(TargetKey, TargetView)>, u64) {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let mut news: Vec<_> = views.by_key.iter().filter(|(_, (at, _))| *at > version).collect();
        news.sort_unstable_by_key(|(_, (at, _))| *at);
        let next = if news.len() > limit { news[limit - 1].1.0 } else { views.version };
        let news = news.into_iter().take(limit).map(|(key, (_, view))| (key.clone(), view.clone()));
        (news.collect(), next)
    }

    /// Waits for the next change; at once if there was one since the last wait. For one reader.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> TargetKey {
        TargetKey { group: "web".to_owned(), address: IpAddr::from([10, 9, 0, 1]), port }
    }

    fn view(health: TargetHealth) -> TargetView {
        TargetView { health, reason: String::new() }
    }

    #[test]
    fn a_reader_gets_each_change_once_and_in_bounded_portions() {
        let views = TargetViews::default();
        for port in 1..=5 {
            views.set(key(port), view(TargetHealth::Initial));
        }
        let (first, version) = views.changed_since(0, 3);
        assert_eq!(first.len(), 3);
        let (rest, version) = views.changed_since(version, 3);
        let mut ports: Vec<_> = first.iter().chain(&rest).map(|(key, _)| key.port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 2, 3, 4, 5]);
        views.set(key(2), view(TargetHealth::Initial));
        assert_eq!(views.changed_since(version, 3), (vec![], version), "the same again is no change");
        views.set(key(2), view(TargetHealth::Healthy));
        views.remove(&key(3));
        let (news, _) = views.changed_since(version, 3);
        assert_eq!(news, [(key(2), view(TargetHealth::Healthy))]);
        assert_eq!(views.changed_since(0, 100).0.len(), 4);
    }

    #[tokio::test]
    async fn a_change_between_two_waits_is_not_missed() {
        let views = TargetViews::default();
        views.set(key(1), view(TargetHealth::Healthy));
        views.changed().await;
    }
}

//! What this gateway thinks of its targets' health: written by whoever probes them, read by the link to control.

use std::collections::{HashMap, VecDeque};
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

/// Targets that are no more of which a reader can still hear; of more the oldest are forgotten.
const MOST_GONE: usize = 4096;

#[derive(Debug, Default)]
struct Views {
    version: u64,
    /// The version of the last change, and the view; `None`: the target is no more.
    by_key: HashMap<TargetKey, (u64, Option<TargetView>)>,
    /// Versions at which targets went, the oldest first.
    gone: VecDeque<(u64, TargetKey)>,
}

impl TargetViews {
    /// What is thought of a target from now on. The same again is no change.
    pub fn set(&self, key: TargetKey, view: TargetView) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if views.by_key.get(&key).is_some_and(|(_, known)| known.as_ref() == Some(&view)) {
            return;
        }
        views.version += 1;
        let version = views.version;
        views.by_key.insert(key, (version, Some(view)));
        drop(views);
        self.changed.notify_one();
    }

    /// A target is no more: taken out of its group, and its flows were given their time.
    pub fn remove(&self, key: &TargetKey) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if views.by_key.get(key).is_none_or(|(_, view)| view.is_none()) {
            return;
        }
        views.version += 1;
        let version = views.version;
        views.by_key.insert(key.clone(), (version, None));
        views.gone.push_back((version, key.clone()));
        if views.gone.len() > MOST_GONE
            && let Some((at, key)) = views.gone.pop_front()
            && views.by_key.get(&key).is_some_and(|(version, _)| *version == at)
        {
            views.by_key.remove(&key);
        }
        drop(views);
        self.changed.notify_one();
    }

    /// At most `limit` views that changed after `version`, the oldest first, and the version to go on from. From 0 on: all.
    /// `None`: the target is no more.
    #[must_use]
    pub fn changed_since(&self, version: u64, limit: usize) -> (Vec<(TargetKey, Option<TargetView>)>, u64) {
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
        assert_eq!(news, [(key(2), Some(view(TargetHealth::Healthy))), (key(3), None)]);
        let all = views.changed_since(0, 100).0;
        assert_eq!(all.iter().filter(|(_, view)| view.is_some()).count(), 4);
        // Back again, it is one more change.
        views.set(key(3), view(TargetHealth::Initial));
        assert!(views.changed_since(0, 100).0.contains(&(key(3), Some(view(TargetHealth::Initial)))));
    }

    #[test]
    fn targets_that_come_and_go_for_ever_take_no_more_room() {
        let views = TargetViews::default();
        for port in 0..3 * MOST_GONE as u32 {
            let key = TargetKey { group: port.to_string(), address: IpAddr::from([10, 9, 0, 1]), port: 1 };
            views.set(key.clone(), view(TargetHealth::Healthy));
            views.remove(&key);
            views.remove(&key);
        }
        assert_eq!(views.changed_since(0, usize::MAX).0.len(), MOST_GONE);
        // One that is back is not forgotten with those that went before it.
        let first = TargetKey { group: (2 * MOST_GONE).to_string(), address: IpAddr::from([10, 9, 0, 1]), port: 1 };
        views.set(first.clone(), view(TargetHealth::Healthy));
        views.set(key(1), view(TargetHealth::Healthy));
        views.remove(&key(1));
        assert!(views.changed_since(0, usize::MAX).0.iter().any(|(key, view)| *key == first && view.is_some()));
    }

    #[tokio::test]
    async fn a_change_between_two_waits_is_not_missed() {
        let views = TargetViews::default();
        views.set(key(1), view(TargetHealth::Healthy));
        views.changed().await;
    }
}

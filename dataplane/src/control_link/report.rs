//! The status that a gateway sends to control, in parts: read slice by slice, made only when control takes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use postern_forwarding::{DropReason, WorkerCounters};
use postern_push::proto;

use super::target_views::{TargetHealth, TargetKey, TargetView, TargetViews};
use super::usage::UsageBook;

/// Endpoint addresses whose counters are read in one go.
const SLICE: usize = 1024;
/// Endpoints, and targets, in one message: some 250 kB.
const PART: usize = 4096;

/// Reads what is to be told.
#[derive(Debug)]
pub(super) struct StatusReader {
    counters: Vec<Arc<WorkerCounters>>,
    usage: Arc<Mutex<UsageBook>>,
    views: Arc<TargetViews>,
    views_told: u64,
    /// Where the reading of endpoints goes on.
    reading: Option<usize>,
    /// The next message, or the next part of it, waits to be taken.
    ready: bool,
}

impl StatusReader {
    pub(super) fn new(
        counters: Vec<Arc<WorkerCounters>>,
        usage: Arc<Mutex<UsageBook>>,
        views: Arc<TargetViews>,
    ) -> Self {
        Self { counters, usage, views, views_told: 0, reading: None, ready: false }
    }

    /// A new stream: everything is news.
    pub(super) fn begin(&mut self) {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).begin();
        (self.views_told, self.reading, self.ready) = (0, None, false);
    }

    pub(super) fn views(&self) -> Arc<TargetViews> {
        self.views.clone()
    }

    /// It is time for a status. If the one before is not taken yet, that one will say more.
    pub(super) fn due(&mut self) {
        if self.reading.is_none() && !self.ready {
            self.reading = Some(0);
        }
    }

    /// Targets changed, which is told at once.
    pub(super) fn views_changed(&mut self) {
        self.ready = true;
    }

    pub(super) const fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    pub(super) fn read_slice(&mut self) {
        let Some(first) = self.reading else { return };
        self.reading = self.usage.lock().unwrap_or_else(PoisonError::into_inner).read_slice(first, SLICE);
        self.ready |= self.reading.is_none();
    }

    pub(super) const fn has_something(&self) -> bool {
        self.ready
    }

    /// The next message. As long as there is more, [`Self::has_something`] stays true.
    pub(super) fn take(&mut self) -> proto::Status {
        let sum = |counter: fn(&WorkerCounters) -> u64| self.counters.iter().map(|counters| counter(counters)).sum();
        let drops_by_reason: HashMap<String, u64> = DropReason::ALL
            .iter()
            .map(|reason| {
                let frames = self.counters.iter().map(|counters| counters.drops[*reason as usize].get()).sum();
                (reason.label().to_owned(), frames)
            })
            .filter(|(_, frames)| *frames > 0)
            .collect();
        let flows = sum(|counters| counters.flows.get());
        let (targets, told) = self.views.changed_since(self.views_told, PART);
        self.views_told = told;
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoints = usage.take_moved(PART);
        self.ready = !usage.is_taken() || targets.len() == PART;
        let flows_of_targets = usage.flows_of_targets(targets.iter().map(|(key, _)| key));
        proto::Status {
            flows,
            // Each flow has one port of a pool.
            ports_used: flows,
            drops: sum(WorkerCounters::dropped),
            endpoints,
            targets: targets
                .into_iter()
                .zip(flows_of_targets)
                .map(|((key, view), flows)| target(key, view, flows))
                .collect(),
            drops_by_reason,
        }
    }
}

/// Of a target that is no more the health is unspecified.
fn target(key: TargetKey, view: Option<TargetView>, active_flows: u64) -> proto::TargetView {
    let health = match view.as_ref().map(|view| view.health) {
        None => proto::Health::Unspecified,
        Some(TargetHealth::Initial) => proto::Health::Initial,
        Some(TargetHealth::Healthy) => proto::Health::Healthy,
        Some(TargetHealth::Unhealthy) => proto::Health::Unhealthy,
        Some(TargetHealth::UnhealthyDraining) => proto::Health::UnhealthyDraining,
        Some(TargetHealth::Draining) => proto::Health::Draining,
        Some(TargetHealth::Unused) => proto::Health::Unused,
        Some(TargetHealth::Unavailable) => proto::Health::Unavailable,
    };
    proto::TargetView {
        target_group: key.group,
        address: key.address.to_string(),
        port: key.port.into(),
        health: health.into(),
        reason: view.map(|view| view.reason).unwrap_or_default(),
        active_flows,
    }
}

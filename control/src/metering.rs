//! What is billed: endpoint hours by zone, and bytes processed, by endpoint, consumer, service and month.
//!
//! Everything is in the store, and what is counted is written in one transaction with that up to which it is counted. So
//! nothing counts twice, whatever is told again and whoever restarts.

mod calendar;
mod ledger;
mod report;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tracing::warn;

pub use calendar::{Month, hour_of};
pub use ledger::{Availability, EndpointUsage, Ledger, MeteringError, Parties, Usage};
pub use report::{By, UsageRow, csv};

use crate::api::stopped;
use crate::catalog::model::{EndpointState, Kind};
use crate::catalog::{Caller, Catalog, Clock, State};

/// Endpoints of one transaction when the hour changes for many.
const PART: usize = 500;

/// Joins the ledger with the catalog, which knows whose endpoints are.
#[derive(Debug)]
pub struct Metering {
    catalog: Arc<Catalog>,
    ledger: Ledger,
    clock: ClockOf,
}

/// The time, in milliseconds since 1970.
struct ClockOf(Clock);

impl std::fmt::Debug for ClockOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Metering {
    /// Over a catalog and a ledger.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, ledger: Ledger, clock: Clock) -> Self {
        Self { catalog, ledger, clock: ClockOf(clock) }
    }

    /// Counts what a gateway reports: counters since the life `boot_id` of its process began. Waits for the disk.
    ///
    /// What was reported before counts only by its growth; a counter that is smaller than before counts nothing. Endpoints
    /// that nobody knows count nothing.
    ///
    /// # Errors
    /// When the store failed; then nothing of it is counted, and the same or a later report makes it good.
    pub fn record(&self, gateway: &str, boot_id: &str, endpoints: &[EndpointUsage]) -> Result<(), MeteringError> {
        let parties = |endpoint: &str| parties(&self.catalog.read(), endpoint);
        self.ledger.record((self.clock.0)(), gateway, boot_id, endpoints, &parties)
    }

    /// Counts the hours that have begun for all endpoints that are available. Waits for the disk.
    ///
    /// # Errors
    /// When the store failed; the next call makes it good.
    pub fn count_hours(&self) -> Result<(), MeteringError> {
        let mut endpoints: BTreeSet<String> = self.ledger.present();
        endpoints.extend(self.catalog.read().endpoints().map(|endpoint| endpoint.metadata.id.clone()));
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        endpoints.chunks(PART).try_for_each(|part| self.count_hours_of(part))
    }

    fn count_hours_of(&self, endpoints: &[String]) -> Result<(), MeteringError> {
        let observed: Vec<_> = {
            let state = self.catalog.read();
            endpoints.iter().map(|endpoint| (endpoint.as_str(), availability(&state, endpoint))).collect()
        };
        self.ledger.observe((self.clock.0)(), &observed)
    }

    /// Forgets counters that were not told since `before`, in milliseconds since 1970, of endpoints that are gone.
    ///
    /// # Errors
    /// When the store failed.
    pub fn forget_counters(&self, before: u64) -> Result<(), MeteringError> {
        self.ledger.forget_counters(before, &|endpoint| self.catalog.read().endpoint(endpoint).is_some())
    }

    /// Usage of a month as the caller may see it: operators see everything; others what their endpoints used, and what
    /// others used of their services, of which they see no hours.
    ///
    /// # Errors
    /// When the store failed.
    pub fn usage(&self, caller: &Caller, month: Month, by: By) -> Result<Vec<UsageRow>, MeteringError> {
        Ok(report::rows(caller, month, by, &self.ledger.usage(month)?))
    }

    /// The month that it is now.
    #[must_use]
    pub fn this_month(&self) -> Month {
        Month::at((self.clock.0)())
    }

    /// Counts hours whenever an endpoint changes, and when an hour begins, until `stop` is true.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut changes = self.catalog.changes();
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(20));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // `None`: all of them.
            let touched: Option<Vec<String>> = tokio::select! {
                () = stopped(&mut stop) => return,
                _ = ticks.tick() => None,
                change = changes.recv() => match change {
                    Ok(change) => {
                        let endpoints = change.touched.iter().filter(|(kind, _)| *kind == Kind::Endpoint);
                        let endpoints: Vec<_> = endpoints.map(|(_, id)| id.clone()).collect();
                        if endpoints.is_empty() { continue } else { Some(endpoints) }
                    }
                    Err(RecvError::Lagged(_)) => None,
                    Err(RecvError::Closed) => return,
                },
            };
            let metering = self.clone();
            let counted = tokio::task::spawn_blocking(move || match touched {
                None => metering.count_hours(),
                Some(endpoints) => endpoints.chunks(PART).try_for_each(|part| metering.count_hours_of(part)),
            });
            if let Ok(Err(error)) = counted.await {
                warn!("endpoint hours are counted later: {error}");
            }
        }
    }
}

/// Who pays for an endpoint, and to whom.
fn parties(state: &State, endpoint: &str) -> Option<Parties> {
    let endpoint = state.endpoint(endpoint)?;
    let service = &endpoint.spec.service;
    let provider = state.service(service).map(|service| service.metadata.owner.clone()).unwrap_or_default();
    Some(Parties { consumer: endpoint.metadata.owner.clone(), provider, service: service.clone() })
}

/// In which zones an endpoint is available, and whose it is; `None` while it is not.
fn availability(state: &State, id: &str) -> Option<Availability> {
    let endpoint = state.endpoint(id)?;
    if endpoint.status.state != EndpointState::Available {
        return None;
    }
    let zone = |zone: &Option<String>| zone.clone().unwrap_or_else(|| ledger::ANY_ZONE.to_owned());
    let zones = endpoint.status.addresses.iter().map(|address| zone(&address.zone)).collect();
    Some((parties(state, id)?, zones))
}

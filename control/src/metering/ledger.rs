//! The ledger in the store: counters of gateways as they were told last, presence of endpoints, and what both add up to.
//!
//! Keys begin with `metering/`: `counter/{gateway}/{endpoint}`, `presence/{endpoint}` and
//! `usage/{month}/{endpoint}/{service}`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::calendar::{Month, hour_of};
use crate::store::{Condition, Outcome, Store, StoreError, Transaction};

/// The zone of addresses that any gateway may hold.
pub(super) const ANY_ZONE: &str = "any";
/// Lives of a gateway's process that are told apart, so that late reports of an earlier one count nothing twice.
const LIVES: usize = 4;
/// Longest name of a life, in bytes.
const BOOT_ID: usize = 128;
/// Most hours that are counted for an endpoint that stayed available while control was away: a year.
const LONGEST_ABSENCE: u64 = 366 * 24;
/// Entries read from the store at a time.
const PART: usize = 1000;
/// How often a transaction is tried again because another process changed the ledger meanwhile.
const TRIES: usize = 8;

/// What a gateway counted for an endpoint since a life of its process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointUsage {
    /// Id of the endpoint.
    pub endpoint: String,
    /// Connections.
    pub connections: u64,
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions; this is billed.
    pub bytes: u64,
}

/// Who pays for an endpoint, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parties {
    /// Owner of the endpoint.
    pub consumer: String,
    /// Owner of the service.
    pub provider: String,
    /// Id of the service.
    pub service: String,
}

/// What an endpoint used of a service in a month.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Whose it is.
    pub parties: Parties,
    /// Hours that began while it was available, by zone.
    #[serde(default)]
    pub hours: BTreeMap<String, u64>,
    /// Connections.
    #[serde(default)]
    pub connections: u64,
    /// Packets.
    #[serde(default)]
    pub packets: u64,
    /// Bytes.
    #[serde(default)]
    pub bytes: u64,
}

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
pub enum MeteringError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An entry that cannot be read.
    #[error("{key} in the store is not what metering wrote: {problem}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A name of a life that cannot be.
    #[error("the boot id of gateway {gateway} has {length} bytes; it needs 1 to 128")]
    BootId {
        /// The gateway.
        gateway: String,
        /// Bytes.
        length: usize,
    },
    /// Others change the ledger all the time.
    #[error("another process changes the ledger")]
    Conflict,
}

/// Counters of an endpoint on a gateway, as they were told last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    /// Whose the endpoint was, for reports after it is forgotten.
    parties: Parties,
    /// The latest lives, the newest last.
    lives: Vec<Life>,
    /// When it was told last, in milliseconds since 1970.
    told: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    boot_id: String,
    connections: u64,
    packets: u64,
    bytes: u64,
}

/// In which zones an endpoint is available, and the last hour that was counted in each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Presence {
    parties: Parties,
    /// Zones in which it is available now.
    open: BTreeSet<String>,
    /// Last hours, also of zones in which it was available.
    last: BTreeMap<String, u64>,
}

/// Whose an available endpoint is, and in which zones it is available.
pub type Availability = (Parties, BTreeSet<String>);

/// A zone and an hour.
type ZoneHour = (String, u64);

/// The ledger.
pub struct Ledger {
    store: Arc<dyn Store>,
    /// What is in the store under `presence/`, because it is looked at for every endpoint again and again.
    presence: Mutex<HashMap<String, Presence>>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

/// Months, endpoints and services with what was used.
pub(super) type MonthUsage = Vec<(String, Usage)>;

impl Ledger {
    /// The ledger in a store.
    ///
    /// # Errors
    /// When the store failed, or has what metering did not write.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, MeteringError> {
        let ledger = Self { store, presence: Mutex::default() };
        let presence = ledger.range("metering/presence/")?.into_iter().collect();
        *ledger.presence() = presence;
        Ok(ledger)
    }

    fn presence(&self) -> MutexGuard<'_, HashMap<String, Presence>> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts counters of a gateway by their growth, see [`super::Metering::record`]. `parties` knows whose endpoints are.
    ///
    /// # Errors
    /// When the store failed; then nothing of it is counted.
    pub fn record(
        &self,
        now: u64,
        gateway: &str,
        boot_id: &str,
        endpoints: &[EndpointUsage],
        parties: &dyn Fn(&str) -> Option<Parties>,
    ) -> Result<(), MeteringError> {
        if !(1..=BOOT_ID).contains(&boot_id.len()) {
            return Err(MeteringError::BootId { gateway: gateway.to_owned(), length: boot_id.len() });
        }
        let month = Month::at(now);
        for part in endpoints.chunks(PART) {
            self.write(|book| {
                for told in part {
                    let key = format!("metering/counter/{gateway}/{}", told.endpoint);
                    let mut counter: Counter = book.read(&key)?.unwrap_or_default();
                    match parties(&told.endpoint) {
                        Some(parties) => counter.parties = parties,
                        // Forgotten meanwhile, or never known.
                        None if counter.lives.is_empty() => continue,
                        None => {}
                    }
                    let grown = counter.grow(boot_id, told);
                    if grown == EndpointUsage::default() {
                        continue;
                    }
                    counter.told = now;
                    let usage_key = usage_key(month, &told.endpoint, &counter.parties.service);
                    let mut usage: Usage = book.read(&usage_key)?.unwrap_or_default();
                    usage.parties = counter.parties.clone();
                    usage.connections = usage.connections.saturating_add(grown.connections);
                    usage.packets = usage.packets.saturating_add(grown.packets);
                    usage.bytes = usage.bytes.saturating_add(grown.bytes);
                    book.write(key, &counter);
                    book.write(usage_key, &usage);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Endpoints that were available when they were looked at last, or within the hour before.
    #[must_use]
    pub fn present(&self) -> BTreeSet<String> {
        self.presence().keys().cloned().collect()
    }

    /// Counts the hour of `now` for each zone in which an endpoint is available, and, for those that were available when
    /// they were looked at last, the hours between.
    ///
    /// # Errors
    /// When the store failed; then nothing of it is counted.
    pub fn observe(&self, now: u64, endpoints: &[(&str, Option<Availability>)]) -> Result<(), MeteringError> {
        let hour = hour_of(now);
        let mut presence = self.presence();
        let mut changed: Vec<(String, Presence, Vec<ZoneHour>)> = Vec::new();
        for (endpoint, available) in endpoints {
            let before = presence.get(*endpoint).cloned().unwrap_or_default();
            let mut after = before.clone();
            let mut hours = Vec::new();
            match available {
                None => after.open.clear(),
                Some((parties, zones)) => {
                    after.parties = parties.clone();
                    for zone in zones {
                        let last = before.last.get(zone).copied();
                        let first = match last {
                            Some(last) if before.open.contains(zone) => {
                                (last + 1).max(hour.saturating_sub(LONGEST_ABSENCE))
                            }
                            Some(last) => hour.max(last + 1),
                            None => hour,
                        };
                        hours.extend((first..=hour).map(|hour| (zone.clone(), hour)));
                        after.last.insert(zone.clone(), last.unwrap_or(0).max(hour));
                    }
                    after.open.clone_from(zones);
                }
            }
            // Zones that it left long ago are forgotten: their hour cannot be counted again.
            after.last.retain(|zone, last| after.open.contains(zone) || *last >= hour);
            if after != before {
                changed.push(((*endpoint).to_owned(), after, hours));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.write(|book| {
            for (endpoint, presence, hours) in &changed {
                for (zone, hour) in hours {
                    let key = usage_key(Month::of_hour(*hour), endpoint, &presence.parties.service);
                    let mut usage: Usage = book.read(&key)?.unwrap_or_default();
                    usage.parties = presence.parties.clone();
                    *usage.hours.entry(zone.clone()).or_default() += 1;
                    book.write(key, &usage);
                }
                let key = format!("metering/presence/{endpoint}");
                if presence.last.is_empty() {
                    book.remove(key);
                } else {
                    book.write(key, presence);
                }
            }
            Ok(())
        })?;
        for (endpoint, after, _) in changed {
            if after.last.is_empty() {
                presence.remove(&endpoint);
            } else {
                presence.insert(endpoint, after);
            }
        }
        Ok(())
    }

    /// What each endpoint used in a month, by endpoint id.
    ///
    /// # Errors
    /// When the store failed.
    pub fn usage(&self, month: Month) -> Result<MonthUsage, MeteringError> {
        let entries: Vec<(String, Usage)> = self.range(&format!("metering/usage/{month}/"))?;
        let endpoint = |key: String| key.split_once('/').map_or(key.clone(), |(endpoint, _)| endpoint.to_owned());
        Ok(entries.into_iter().map(|(key, usage)| (endpoint(key), usage)).collect())
    }

    /// Forgets counters that were not told since `before` of endpoints that nobody knows any more. A gateway that still
    /// told of them would have done so.
    ///
    /// # Errors
    /// When the store failed.
    pub fn forget_counters(&self, before: u64, known: &dyn Fn(&str) -> bool) -> Result<(), MeteringError> {
        let counters: Vec<(String, Counter)> = self.range("metering/counter/")?;
        let endpoint = |key: &str| key.rsplit_once('/').map_or(key.to_owned(), |(_, endpoint)| endpoint.to_owned());
        let gone = counters.into_iter().filter(|(key, counter)| counter.told < before && !known(&endpoint(key)));
        let gone: Vec<_> = gone.map(|(key, _)| format!("metering/counter/{key}")).collect();
        for part in gone.chunks(PART) {
            self.write(|book| {
                part.iter().for_each(|key| book.remove(key.clone()));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Everything under a prefix, with the rest of the keys.
    fn range<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, MeteringError> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let part = self.store.range(prefix, after.as_deref(), PART)?;
            let last = part.len() < PART;
            after = part.last().map(|(key, _)| key.clone());
            for (key, entry) in part {
                found.push((key[prefix.len()..].to_owned(), decoded(&key, &entry.value)?));
            }
            if last {
                return Ok(found);
            }
        }
    }

    /// Makes changes that rest on what was read, all or none.
    fn write(&self, change: impl Fn(&mut Book<'_>) -> Result<(), MeteringError>) -> Result<(), MeteringError> {
        for _ in 0..TRIES {
            let mut book = Book { store: &*self.store, read: HashMap::new(), written: BTreeMap::new() };
            change(&mut book)?;
            if book.written.is_empty() {
                return Ok(());
            }
            let conditions = book
                .written
                .keys()
                .filter_map(|key| Some(Condition { key: key.clone(), revision: *book.read.get(key)? }));
            let transaction =
                Transaction { conditions: conditions.collect(), changes: book.written.into_iter().collect() };
            if let Outcome::Committed(_) = self.store.commit(&transaction)? {
                return Ok(());
            }
        }
        Err(MeteringError::Conflict)
    }
}

impl Counter {
    /// Takes new counters of a life, and says by how much they grew.
    fn grow(&mut self, boot_id: &str, told: &EndpointUsage) -> EndpointUsage {
        let life = match self.lives.iter().position(|life| life.boot_id == boot_id) {
            Some(at) => &mut self.lives[at],
            None => {
                if self.lives.len() == LIVES {
                    self.lives.remove(0);
                }
                self.lives.push(Life { boot_id: boot_id.to_owned(), ..Life::default() });
                let newest = self.lives.len() - 1;
                &mut self.lives[newest]
            }
        };
        let grow = |before: &mut u64, after: u64| {
            let growth = after.saturating_sub(*before);
            *before += growth;
            growth
        };
        EndpointUsage {
            endpoint: String::new(),
            connections: grow(&mut life.connections, told.connections),
            packets: grow(&mut life.packets, told.packets),
            bytes: grow(&mut life.bytes, told.bytes),
        }
    }
}

fn usage_key(month: Month, endpoint: &str, service: &str) -> String {
    format!("metering/usage/{month}/{endpoint}/{service}")
}

fn decoded<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MeteringError> {
    serde_json::from_slice(value)
        .map_err(|error| MeteringError::Damaged { key: key.to_owned(), problem: error.to_string() })
}

/// A transaction that is being made: what was read, at which revision, and what is to be written.
struct Book<'s> {
    store: &'s dyn Store,
    read: HashMap<String, u64>,
    written: BTreeMap<String, Option<Vec<u8>>>,
}

impl Book<'_> {
    /// What is there, with what this transaction has written.
    fn read<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, MeteringError> {
        if let Some(written) = self.written.get(key) {
            return written.as_deref().map(|value| decoded(key, value)).transpose();
        }
        let entry = self.store.entry(key)?;
        self.read.insert(key.to_owned(), entry.as_ref().map_or(0, |entry| entry.revision));
        entry.map(|entry| decoded(key, &entry.value)).transpose()
    }

    fn write(&mut self, key: String, value: &impl Serialize) {
        // Types of this module, whose keys are strings.
        let value = serde_json::to_vec(value).unwrap_or_else(|_| unreachable!("these types are JSON"));
        self.written.insert(key, Some(value));
    }

    fn remove(&mut self, key: String) {
        self.written.insert(key, None);
    }
}

#[cfg(test)]
mod tests;

//! What one gateway is to have, has been offered, and has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_tables::declaration::{Declaration, Gateway as Process, Limits, Port};
use postern_tables::{Change, Resource, ResourceKey, ResourceKind, Tables};

use super::session::Outbox;
use crate::catalog::model::GatewayStatus;
use crate::compile::{Compiled, Rendered};

/// An update for a gateway.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) generation: u64,
    pub(super) full: bool,
    pub(super) digest: u128,
    pub(super) changed: Vec<Arc<Rendered>>,
    pub(super) removed: Vec<ResourceKey>,
}

/// What becomes of a key; `None`: it goes.
type Difference = (ResourceKey, Option<Arc<Rendered>>);
type Differences = Vec<Difference>;

/// An update that is not answered yet.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) generation: u64,
    pub(super) full: bool,
    pub(super) since: Instant,
    digest: u128,
    differences: Differences,
}

/// A gateway as the director knows it.
#[derive(Default)]
pub(super) struct Gateway {
    pub(super) session: Option<(u64, Outbox)>,
    pub(super) status: GatewayStatus,
    pub(super) in_flight: Option<InFlight>,
    /// Whether `applied` is what the gateway has.
    pub(super) known: bool,
    applied: HashMap<ResourceKey, Arc<Rendered>>,
    applied_digest: u128,
    /// What the checks have passed: `applied`, and what is in flight or goes next.
    offered: HashMap<ResourceKey, Arc<Rendered>>,
    offered_digest: u128,
    /// The tables that the gateway would have: what is wrong is found here, before it is sent.
    tables: Option<Tables>,
    ports: BTreeSet<String>,
    /// Ports that the tables have because attachments name them: of a gateway that does not name its own.
    assumed: BTreeSet<String>,
    /// What became different and was not offered yet.
    pub(super) fresh: BTreeSet<ResourceKey>,
    /// What cannot be, and why; tried again after the next change.
    pub(super) withheld: BTreeMap<ResourceKey, String>,
    retry: bool,
    /// A whole snapshot was refused: nothing goes until something changes, or it is tried again.
    blocked: bool,
    /// Refusals since the gateway has last applied all that it was to have, and when what it refused is tried again.
    refusals: u32,
    retry_at: Option<Instant>,
    /// The catalog, digest and ports of its Hello, until it is known what it has.
    hello: Option<u128>,
}

impl Gateway {
    /// A stream begins. `digest`: of what the gateway says it has from this catalog.
    pub(super) fn connected(&mut self, digest: Option<u128>, ports: Vec<String>) {
        let ports: BTreeSet<String> = ports.into_iter().collect();
        if self.ports != ports {
            self.ports = ports;
            self.tables = None;
        }
        self.retry = true;
        self.blocked = false;
        self.retry_at = None;
        self.hello = digest;
        if let Some(in_flight) = self.in_flight.take() {
            if digest == Some(in_flight.digest) {
                self.take_over(in_flight);
            } else {
                self.take_back(in_flight);
            }
        }
        if self.known && digest != Some(self.applied_digest) {
            self.known = false;
        }
    }

    pub(super) fn has_something_to_send(&self) -> bool {
        self.session.is_some()
            && self.in_flight.is_none()
            && !self.blocked
            && (!self.known || !self.fresh.is_empty() || (self.retry && !self.withheld.is_empty()))
    }

    /// Whether what goes next may be everything, which few may get at a time.
    pub(super) const fn needs_all(&self) -> bool {
        !self.known
    }

    /// Checks what became different, and makes the update that carries it; `None`: there is nothing to send.
    pub(super) fn prepare(&mut self, compiled: &Compiled, generation: u64) -> Option<Batch> {
        if !self.known {
            return Some(self.prepare_all(compiled, generation));
        }
        let mut keys = std::mem::take(&mut self.fresh);
        if keys.is_empty() {
            self.retry = false;
            keys = self.withheld.keys().cloned().collect();
        } else {
            self.retry = !self.withheld.is_empty();
        }
        let before = self.applied_digest;
        let differences = self.check(compiled, keys);
        if differences.is_empty() {
            return None;
        }
        debug_assert_eq!(before, self.applied_digest);
        Some(self.send(generation, false, differences))
    }

    /// What is not known to be at the gateway: it has exactly this already, or gets it whole.
    fn prepare_all(&mut self, compiled: &Compiled, generation: u64) -> Batch {
        self.fresh.clear();
        self.offered.clear();
        self.offered_digest = 0;
        self.applied.clear();
        self.applied_digest = 0;
        self.tables = None;
        // What the gateway itself refused stays away until the retry.
        let keys = compiled.resources().map(|(key, _)| key.clone());
        let keys = if self.retry {
            self.withheld.clear();
            keys.collect()
        } else {
            keys.filter(|key| !self.withheld.contains_key(key)).collect()
        };
        let differences = self.check(compiled, keys);
        if self.hello == Some(self.offered_digest) {
            self.known = true;
            self.applied = self.offered.clone();
            self.applied_digest = self.offered_digest;
            return self.send(generation, false, Vec::new());
        }
        self.send(generation, true, differences)
    }

    fn send(&mut self, generation: u64, full: bool, differences: Differences) -> Batch {
        let changed = differences.iter().filter_map(|(_, rendered)| rendered.clone()).collect();
        let removed = differences.iter().filter(|(_, rendered)| rendered.is_none()).map(|(key, _)| key.clone());
        let removed = if full { Vec::new() } else { removed.collect() };
        let digest = self.offered_digest;
        self.in_flight = Some(InFlight { generation, full, since: Instant::now(), digest, differences });
        self.status.desired_generation = generation;
        Batch { generation, full, digest, changed, removed }
    }

    /// Compares what is compiled with what was offered, and takes what the checks pass into the offer.
    fn check(&mut self, compiled: &Compiled, keys: BTreeSet<ResourceKey>) -> Differences {
        let mut differences: Differences = Vec::new();
        let mut goes = Vec::new();
        for key in keys {
            self.withheld.remove(&key);
            let after = compiled.resource(&key).cloned();
            match (self.offered.get(&key), after) {
                (None, None) => {}
                (Some(before), Some(after)) if before.digest == after.digest => {}
                (_, None) => goes.push((key, None)),
                (_, after) => differences.push((key, after)),
            }
        }
        // What refers to others goes first, what is referred to comes first.
        goes.reverse();
        goes.extend(differences);
        let differences = goes;
        if let Err(reason) = self.make_tables(compiled) {
            for (key, _) in differences {
                self.withheld.insert(key, reason.clone());
            }
            return Vec::new();
        }
        let mut passed = Vec::with_capacity(differences.len());
        let mut failed = Vec::new();
        self.pass(&differences, &mut passed, &mut failed);
        if !failed.is_empty() && failed.len() > 1 {
            // Two that have to change together failed one by one.
            let again: Differences = failed.iter().map(|(difference, _)| difference.clone()).collect();
            if self.try_all(&again).is_ok() {
                passed.extend(again);
                failed.clear();
            }
        }
        for ((key, _), reason) in failed {
            self.withheld.insert(key, reason);
        }
        for (key, rendered) in &passed {
            put(&mut self.offered, &mut self.offered_digest, key, rendered.as_ref());
        }
        passed
    }

    /// Takes as much as can be; what cannot is found by halves.
    fn pass(&mut self, differences: &[Difference], passed: &mut Differences, failed: &mut Vec<(Difference, String)>) {
        if differences.is_empty() {
            return;
        }
        match self.try_all(differences) {
            Ok(()) => passed.extend_from_slice(differences),
            Err(reason) if differences.len() == 1 => failed.push((differences[0].clone(), reason)),
            Err(_) => {
                let (first, second) = differences.split_at(differences.len() / 2);
                self.pass(first, passed, failed);
                self.pass(second, passed, failed);
            }
        }
    }

    fn try_all(&mut self, differences: &[Difference]) -> Result<(), String> {
        let changed =
            differences.iter().filter_map(|(_, rendered)| Some(rendered.as_ref()?.resource.clone())).collect();
        let removed = differences.iter().filter(|(_, rendered)| rendered.is_none()).map(|(key, _)| key.clone());
        let change = Change { full: false, changed, removed: removed.collect() };
        let Some(tables) = &mut self.tables else { return Err("there are no tables to check with".to_owned()) };
        match tables.update(change) {
            Ok(_) => Ok(()),
            Err(errors) => {
                let texts =
                    errors.iter().take(3).map(|error| format!("{} = {}: {}", error.key, error.value, error.problem));
                Err(texts.collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// Tables with the ports of all attachments, or of the gateway, holding what was offered.
    fn make_tables(&mut self, compiled: &Compiled) -> Result<(), String> {
        // A gateway that does not name its ports refuses by itself what it does not have.
        let named = !self.ports.is_empty();
        let needed = compiled.attachments().map(|attachment| &attachment.port).filter(|_| !named);
        let new: Vec<String> = needed.take(1024).filter(|port| !self.assumed.contains(*port)).cloned().collect();
        if self.tables.is_some() && new.is_empty() {
            return Ok(());
        }
        self.assumed.extend(new);
        let ports = self.ports.iter().chain(self.assumed.iter().filter(|_| !named));
        let port = |name: &String| Port { interface: name.clone(), ..Port::default() };
        let declaration = Declaration {
            file: "gateway".to_owned(),
            gateway: Process { name: Some("gateway".to_owned()), ..Process::default() },
            limits: Limits { endpoints: Some(1 << 20), targets: Some(1 << 20) },
            ports: ports.map(port).collect(),
            ..Declaration::default()
        };
        let checked = declaration.check().map_err(|errors| errors.to_string())?;
        let mut tables = Tables::new(&checked);
        if !self.offered.is_empty() {
            let changed = self.offered.values().map(|rendered| rendered.resource.clone()).collect();
            let change = Change { full: true, changed, removed: Vec::new() };
            tables.update(change).map_err(|errors| errors.to_string())?;
        }
        self.tables = Some(tables);
        Ok(())
    }

    /// The gateway has applied what was in flight. Returns what became of its keys.
    pub(super) fn applied(&mut self, generation: u64) -> Option<Differences> {
        if self.in_flight.as_ref().is_none_or(|in_flight| in_flight.generation != generation) {
            return None;
        }
        let in_flight = self.in_flight.take()?;
        self.status.applied_generation = generation;
        let differences = in_flight.differences.clone();
        self.take_over(in_flight);
        if self.withheld.is_empty() {
            (self.refusals, self.retry_at) = (0, None);
        }
        Some(differences)
    }

    fn take_over(&mut self, in_flight: InFlight) {
        if in_flight.full {
            self.applied.clear();
            self.applied_digest = 0;
        }
        for (key, rendered) in &in_flight.differences {
            put(&mut self.applied, &mut self.applied_digest, key, rendered.as_ref());
        }
        self.known = true;
    }

    /// The gateway has refused what was in flight. Returns the endpoints concerned.
    /// It is tried again after a change, or after a pause within `pauses`.
    pub(super) fn refused(
        &mut self,
        generation: u64,
        reason: &str,
        about: &BTreeSet<ResourceKey>,
        pauses: (Duration, Duration),
    ) -> Vec<String> {
        if self.in_flight.as_ref().is_none_or(|in_flight| in_flight.generation != generation) {
            return Vec::new();
        }
        let Some(in_flight) = self.in_flight.take() else { return Vec::new() };
        let keys: Vec<ResourceKey> = in_flight.differences.iter().map(|(key, _)| key.clone()).collect();
        let full = in_flight.full;
        self.take_back(in_flight);
        let concerned: Vec<ResourceKey> =
            keys.into_iter().filter(|key| about.is_empty() || about.contains(key)).collect();
        self.retry = false;
        // Without the ones that it named the rest may go.
        self.blocked = full && (about.is_empty() || concerned.is_empty());
        for key in &concerned {
            if !self.blocked {
                self.fresh.remove(key);
                self.withheld.insert(key.clone(), reason.to_owned());
            }
        }
        if about.is_empty() {
            self.fresh.clear();
        }
        self.refusals = self.refusals.saturating_add(1);
        self.retry_at = Some(Instant::now() + pause_after(self.refusals, pauses));
        let endpoints = concerned.into_iter().filter(|key| key.kind == ResourceKind::Endpoint);
        endpoints.map(|key| key.name).collect()
    }

    /// What was in flight is not at the gateway.
    fn take_back(&mut self, in_flight: InFlight) {
        self.offered = self.applied.clone();
        self.offered_digest = self.applied_digest;
        self.tables = None;
        if !in_flight.full {
            self.fresh.extend(in_flight.differences.into_iter().map(|(key, _)| key));
        }
    }

    /// Whether the gateway has refused something since it has last applied all that it was to have.
    pub(super) const fn is_refusing(&self) -> bool {
        self.refusals > 0
    }

    /// Time has passed: what the gateway refused is tried again when its pause is over.
    pub(super) fn pass_time(&mut self, now: Instant) {
        if self.in_flight.is_none() && self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.retry = true;
            self.blocked = false;
        }
    }

    /// Something became different: what was withheld is tried once more.
    pub(super) fn changed(&mut self, keys: BTreeSet<ResourceKey>) {
        if keys.is_empty() {
            return;
        }
        self.retry = true;
        self.blocked = false;
        self.fresh.extend(keys);
    }

    /// Whether the gateway may have an address.
    pub(super) fn may_have(&self, key: &ResourceKey, address: IpAddr) -> bool {
        let text = address.to_string();
        let has = |rendered: &Arc<Rendered>| addresses(rendered).contains(&text);
        let in_flight = self.in_flight.iter().flat_map(|in_flight| &in_flight.differences);
        !self.known
            || self.applied.get(key).is_some_and(has)
            || in_flight.filter(|(of, _)| of == key).filter_map(|(_, rendered)| rendered.as_ref()).any(has)
    }

    /// Whether the gateway has applied an address.
    pub(super) fn has_applied(&self, key: &ResourceKey, address: IpAddr) -> bool {
        let text = address.to_string();
        self.known && self.applied.get(key).is_some_and(|rendered| addresses(rendered).contains(&text))
    }

    /// The endpoints that the gateway has.
    pub(super) fn applied_endpoints(&self) -> impl Iterator<Item = &str> {
        let endpoints = self.applied.keys().filter(|key| key.kind == ResourceKind::Endpoint);
        endpoints.map(|key| key.name.as_str())
    }

    /// Why an endpoint is withheld, in words that its owner may see; `None`: it is not.
    pub(super) fn why_withheld(&self, endpoint: &ResourceKey) -> Option<String> {
        let reason = self.withheld.get(endpoint)?;
        let others = self.withheld.keys().any(|key| key.kind != ResourceKind::Endpoint);
        if others && reason.contains("is not the name of a declared") {
            return Some("a gateway cannot have what the service consists of; its operator sees why".to_owned());
        }
        Some(reason.clone())
    }

    /// Everything that is withheld, for operators.
    pub(super) fn withheld_text(&self) -> Option<String> {
        let shown = self.withheld.iter().take(5).map(|(key, reason)| format!("{}: {reason}", key.name));
        let text = shown.collect::<Vec<_>>().join("\n");
        let more = self.withheld.len().saturating_sub(5);
        match (text.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(text),
            (false, more) => Some(format!("{text}\n… and {more} more")),
        }
    }
}

/// How long what was refused so often waits: twice as long each time.
fn pause_after(refusals: u32, (shortest, longest): (Duration, Duration)) -> Duration {
    shortest.saturating_mul(1 << (refusals.clamp(1, 16) - 1)).min(longest)
}

fn addresses(rendered: &Rendered) -> &[String] {
    match &rendered.resource {
        Resource::Endpoint(endpoint) => &endpoint.addresses,
        Resource::SnatPool(pool) => &pool.addresses,
        _ => &[],
    }
}

/// The digest of a set is the sum of those of its members, so that one that changes costs one.
fn put(
    map: &mut HashMap<ResourceKey, Arc<Rendered>>,
    digest: &mut u128,
    key: &ResourceKey,
    rendered: Option<&Arc<Rendered>>,
) {
    let before = match rendered {
        Some(rendered) => {
            *digest = digest.wrapping_add(rendered.digest);
            map.insert(key.clone(), rendered.clone())
        }
        None => map.remove(key),
    };
    if let Some(before) = before {
        *digest = digest.wrapping_sub(before.digest);
    }
}

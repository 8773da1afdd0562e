//! The thread that knows what every gateway has and is to have.
//!
//! It takes everything that waits for it at once, works out what follows, writes to the catalog what is to be kept, and
//! gives each gateway that has answered its last update the next one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use postern_push::proto;
use postern_tables::{ResourceKey, ResourceKind};
use tokio::sync::mpsc;
use tonic::Status;

use super::Settings;
use super::gateway::Gateway;
use super::session::Outbox;
use crate::catalog::model::{EndpointAddressStatus, EndpointState, GatewaySpec, Kind, TargetHealth};
use crate::catalog::{Catalog, Change, State};
use crate::compile::{Compiler, has_access, pool_key};
use crate::placement::{Decisions, Gateways, Placement};

/// What the director is told.
#[derive(Debug)]
pub(super) enum Event {
    /// The catalog changed.
    Change(Arc<Change>),
    /// The catalog changed more than it was said.
    Resync,
    /// A session has something to say.
    Gateway {
        /// Id of the gateway.
        id: String,
        /// Number of the session.
        session: u64,
        /// What.
        message: FromSession,
    },
    /// Time goes by.
    Tick,
}

/// What a session says.
#[derive(Debug)]
pub(super) enum FromSession {
    Connected(Box<proto::Hello>, Outbox),
    Applied(u64),
    Refused(proto::Refused),
    Status(Box<proto::Status>),
    Disconnected,
}

/// Events that are taken at once.
const AT_ONCE: usize = 4096;

/// Endpoints in one transaction.
const ENDPOINTS_AT_ONCE: usize = 2000;

/// See the module.
pub(super) struct Director {
    catalog: Arc<Catalog>,
    settings: Settings,
    inbox: mpsc::Receiver<Event>,
    compiler: Compiler,
    placement: Placement,
    gateways: BTreeMap<String, Gateway>,
    touched: Vec<(Kind, String)>,
    /// Endpoints and pools to think about.
    about: BTreeSet<(Kind, String)>,
    /// Endpoints of which gateways have applied something.
    applied: BTreeSet<String>,
    failed: BTreeMap<String, String>,
    /// Gateways that get everything now.
    full: HashMap<String, Instant>,
    everything: bool,
    /// Zones of the gateways, and whether they are drained.
    wishes: HashMap<String, GatewaySpec>,
    /// Gateways whose status is to be shown anew.
    shown: BTreeSet<String>,
}

/// What placement wants to know of gateways.
struct View<'v> {
    gateways: &'v BTreeMap<String, Gateway>,
    state: &'v State,
}

impl Gateways for View<'_> {
    fn is_connected(&self, gateway: &str) -> bool {
        self.gateways.get(gateway).is_some_and(|gateway| gateway.session.is_some())
    }

    fn may_hold(&self, gateway: &str, id: &str, address: IpAddr) -> bool {
        let key = match self.state.snat_pool(id) {
            Some(pool) => pool_key(pool),
            None => endpoint_key(id),
        };
        self.gateways.get(gateway).is_none_or(|gateway| gateway.may_have(&key, address))
    }
}

fn endpoint_key(id: &str) -> ResourceKey {
    ResourceKey { kind: ResourceKind::Endpoint, name: id.to_owned() }
}

impl Director {
    pub(super) fn new(catalog: Arc<Catalog>, settings: Settings, inbox: mpsc::Receiver<Event>) -> Self {
        Self {
            catalog,
            settings,
            inbox,
            compiler: Compiler::default(),
            placement: Placement::default(),
            gateways: BTreeMap::new(),
            touched: Vec::new(),
            about: BTreeSet::new(),
            applied: BTreeSet::new(),
            failed: BTreeMap::new(),
            full: HashMap::new(),
            everything: true,
            wishes: HashMap::new(),
            shown: BTreeSet::new(),
        }
    }

    pub(super) fn run(mut self) {
        self.work();
        while let Some(event) = self.inbox.blocking_recv() {
            self.take(event);
            for _ in 0..AT_ONCE {
                let Ok(event) = self.inbox.try_recv() else { break };
                self.take(event);
            }
            self.work();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Change(change) => self.touched.extend(change.touched.iter().cloned()),
            Event::Resync => self.everything = true,
            Event::Tick => self.tick(),
            Event::Gateway { id, session, message: FromSession::Connected(hello, outbox) } => {
                self.connected(id, session, *hello, outbox);
            }
            Event::Gateway { id, session, message } => {
                let current = self.gateways.get(&id).and_then(|gateway| gateway.session.as_ref());
                if current.is_some_and(|(current, _)| *current == session) {
                    self.said(&id, message);
                }
            }
        }
    }

    fn connected(&mut self, id: String, session: u64, hello: proto::Hello, outbox: Outbox) {
        let of_this_catalog = hello.catalog == self.catalog.id();
        let digest = <[u8; 16]>::try_from(hello.digest.as_slice()).ok().map(u128::from_be_bytes);
        let gateway = self.gateways.entry(id.clone()).or_default();
        if let Some((_, older)) = gateway.session.replace((session, outbox)) {
            let _ = older.end.send(Status::aborted("a newer stream of the same gateway has begun"));
        }
        gateway.connected(digest.filter(|_| of_this_catalog), hello.ports);
        gateway.status.connected = true;
        gateway.status.last_seen = now();
        gateway.status.software = hello.software.chars().take(128).collect();
        gateway.status.capabilities = hello.capabilities.into_iter().take(64).collect();
        gateway.status.applied_generation = if of_this_catalog { hello.generation } else { 0 };
        self.full.remove(&id);
        self.catalog.forget_views_of(&id);
        self.about.extend(self.placement.waiting().cloned());
        self.shown.insert(id);
    }

    fn said(&mut self, id: &str, message: FromSession) {
        let Some(gateway) = self.gateways.get_mut(id) else { return };
        gateway.status.last_seen = now();
        self.shown.insert(id.to_owned());
        match message {
            FromSession::Connected(..) => {}
            FromSession::Applied(generation) => {
                let was_known = gateway.known;
                let Some(differences) = gateway.applied(generation) else { return };
                if !gateway.is_refusing() {
                    gateway.status.refused = None;
                }
                self.full.remove(id);
                if was_known && !differences.is_empty() {
                    for (key, rendered) in differences {
                        if key.kind == ResourceKind::Endpoint {
                            if rendered.is_none() {
                                self.about.insert((Kind::Endpoint, key.name.clone()));
                            }
                            self.applied.insert(key.name);
                        }
                    }
                } else {
                    self.applied.extend(gateway.applied_endpoints().map(str::to_owned));
                    self.about.extend(self.placement.waiting().cloned());
                }
                self.about.extend(self.placement.after_applied(id));
            }
            FromSession::Refused(refused) => {
                let reason = refused.reasons.iter().take(5).map(|reason| reason.chars().take(512).collect::<String>());
                let reason = reason.collect::<Vec<_>>().join("\n");
                let about = refused.resources.into_iter().filter_map(|key| ResourceKey::try_from(key).ok()).collect();
                let endpoints = gateway.refused(refused.generation, &reason, &about, self.settings.retry_within);
                gateway.status.refused = Some(reason);
                self.full.remove(id);
                for endpoint in endpoints {
                    self.failed.insert(endpoint, "its gateway refused it; its operator sees why".to_owned());
                }
            }
            FromSession::Status(status) => {
                gateway.status.flows = status.flows;
                gateway.status.ports_used = status.ports_used;
                gateway.status.drops = status.drops;
                self.views(id, &status.targets);
            }
            FromSession::Disconnected => {
                gateway.session = None;
                gateway.status.connected = false;
                self.full.remove(id);
                self.catalog.forget_views_of(id);
            }
        }
    }

    fn views(&self, gateway: &str, views: &[proto::TargetView]) {
        let Some(compiled) = self.compiler.gateway(gateway) else { return };
        for view in views {
            let key = ResourceKey { kind: ResourceKind::TargetGroup, name: view.target_group.clone() };
            let (Some((Kind::TargetGroup, group)), Ok(address), Ok(port)) =
                (compiled.object(&key), view.address.parse(), u16::try_from(view.port))
            else {
                continue;
            };
            let health = match view.health() {
                proto::Health::Initial => Some(TargetHealth::Initial),
                proto::Health::Healthy => Some(TargetHealth::Healthy),
                proto::Health::Unhealthy => Some(TargetHealth::Unhealthy),
                proto::Health::UnhealthyDraining => Some(TargetHealth::UnhealthyDraining),
                proto::Health::Draining => Some(TargetHealth::Draining),
                proto::Health::Unused => Some(TargetHealth::Unused),
                proto::Health::Unavailable => Some(TargetHealth::Unavailable),
                proto::Health::Unspecified => None,
            };
            self.catalog.set_target_view(group, gateway, address, port, health);
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for (id, gateway) in &mut self.gateways {
            gateway.pass_time(now);
            let Some(in_flight) = &gateway.in_flight else { continue };
            let waited = in_flight.since.elapsed();
            if gateway.session.is_some() && waited >= self.settings.answer_within {
                let seconds = waited.as_secs();
                let text = format!("generation {} is not answered for {seconds} seconds", in_flight.generation);
                gateway.status.refused = Some(text);
                self.shown.insert(id.clone());
            }
        }
        let within = self.settings.full_within;
        self.full.retain(|_, since| since.elapsed() < within);
    }

    /// Works out what follows from what was taken.
    fn work(&mut self) {
        let catalog = self.catalog.clone();
        let (made, generation) = {
            let state = catalog.read();
            let made = self.follow(&state);
            (made, state.generation())
        };
        self.keep(made);
        let ready: Vec<String> = self
            .gateways
            .iter()
            .filter(|(_, gateway)| gateway.has_something_to_send())
            .map(|(id, _)| id.clone())
            .collect();
        for id in ready {
            self.send(&id, generation);
        }
        self.tell();
        for id in std::mem::take(&mut self.shown) {
            if let Some(gateway) = self.gateways.get(&id)
                && let Err(refusal) = self.catalog.set_gateway_status(&id, gateway.status.clone())
            {
                tracing::error!("the status of gateway {id} cannot be kept: {}", refusal.message);
            }
        }
    }

    /// Compiles what was touched, and places what has to be.
    fn follow(&mut self, state: &State) -> Decisions {
        if std::mem::take(&mut self.everything) {
            self.touched.clear();
            self.compiler = Compiler::new(state, self.placement.releasing());
            for gateway in self.gateways.values_mut().filter(|gateway| gateway.known) {
                // Compared with what the gateway has.
                gateway.known = false;
            }
            self.about.extend(state.snat_pools().map(|pool| (Kind::SnatPool, pool.metadata.id.clone())));
            self.about.extend(state.endpoints().map(|endpoint| (Kind::Endpoint, endpoint.metadata.id.clone())));
        }
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            let endpoints = self.compiler.update(state, &touched, self.placement.releasing());
            self.about.extend(endpoints.into_iter().map(|id| (Kind::Endpoint, id)));
            for (kind, id) in touched {
                self.concern(state, kind, &id);
            }
        }
        let mut made = Decisions::default();
        let mut about = std::mem::take(&mut self.about);
        // What never was at its gateway is released at once: seen in the second round.
        for _ in 0..2 {
            if about.is_empty() {
                break;
            }
            let view = View { gateways: &self.gateways, state };
            let round = self.placement.think(state, &view, &about);
            for id in &round.released {
                self.compiler.released(state, id, self.placement.releasing());
            }
            about = round
                .released
                .iter()
                .map(|id| (if state.endpoint(id).is_some() { Kind::Endpoint } else { Kind::SnatPool }, id.clone()))
                .collect();
            made.holders
                .retain(|(id, address, _)| !round.holders.iter().any(|(other, at, _)| (other, at) == (id, address)));
            made.holders.extend(round.holders);
            made.failed.extend(round.failed);
            made.gone.extend(round.gone);
        }
        for (id, gateway) in &mut self.gateways {
            if let Some(compiled) = self.compiler.gateway_mut(id) {
                gateway.changed(compiled.take_changed());
            }
        }
        made
    }

    /// What has to be thought about because an object was touched.
    fn concern(&mut self, state: &State, kind: Kind, id: &str) {
        match kind {
            Kind::SnatPool => {
                self.about.insert((kind, id.to_owned()));
                self.about.extend(self.placement.waiting().cloned());
            }
            Kind::Gateway | Kind::Attachment => {
                if kind == Kind::Gateway
                    && let Some(gateway) = state.gateway(id)
                    && self.wishes.insert(id.to_owned(), gateway.spec.clone()).as_ref() == Some(&gateway.spec)
                {
                    return;
                }
                let mut gateways = vec![id.to_owned()];
                if kind == Kind::Attachment {
                    let attachment = state.attachment(id);
                    gateways = attachment.map(|attachment| attachment.spec.gateway.clone()).into_iter().collect();
                    if attachment.is_none() {
                        gateways = state.gateways().map(|gateway| gateway.metadata.id.clone()).collect();
                    }
                }
                for gateway in gateways {
                    let users =
                        state.users(&gateway).filter(|(kind, _)| matches!(kind, Kind::SnatPool | Kind::Endpoint));
                    self.about.extend(users.map(|(kind, id)| (kind, id.to_owned())));
                }
                self.about.extend(self.placement.waiting().cloned());
                // Pools wait for gateways also where no endpoint does.
                self.about.extend(state.snat_pools().map(|pool| (Kind::SnatPool, pool.metadata.id.clone())));
            }
            _ => {}
        }
        if kind == Kind::Gateway && state.gateway(id).is_none() {
            self.wishes.remove(id);
            if let Some((_, outbox)) = self.gateways.remove(id).and_then(|gateway| gateway.session) {
                let _ = outbox.end.send(Status::not_found("the gateway was taken out of the catalog"));
            }
            self.shown.remove(id);
        }
    }

    /// Writes to the catalog what is to be kept.
    fn keep(&mut self, made: Decisions) {
        let Decisions { holders, failed, gone, released: _ } = made;
        let placed: Vec<String> = holders.iter().map(|(id, ..)| id.clone()).collect();
        if !holders.is_empty()
            && let Err(refusal) = self.catalog.set_placement(holders)
        {
            tracing::error!("the placement of addresses cannot be kept: {}", refusal.message);
            self.about.extend(self.placement.waiting().cloned());
            // They are thought about again, or they would have no holder until somebody touches them.
            self.about.extend(placed.into_iter().map(|id| (crate::placement::kind_of(&id), id)));
        }
        self.failed.extend(failed);
        for ids in gone.chunks(ENDPOINTS_AT_ONCE) {
            if let Err(refusal) = self.catalog.endpoints_applied(ids) {
                tracing::error!("the end of endpoints cannot be kept: {}", refusal.message);
            }
        }
    }

    fn send(&mut self, id: &str, generation: u64) {
        let Some(gateway) = self.gateways.get_mut(id) else { return };
        let Some(compiled) = self.compiler.gateway(id) else { return };
        if gateway.needs_all() && self.full.len() >= self.settings.full_at_once {
            return;
        }
        let batch = gateway.prepare(compiled, generation);
        self.shown.insert(id.to_owned());
        // What it refused is said until it has applied it.
        gateway.status.refused =
            gateway.withheld_text().or_else(|| gateway.status.refused.take().filter(|_| gateway.is_refusing()));
        for key in gateway.withheld.keys().filter(|key| key.kind == ResourceKind::Endpoint) {
            if let Some(reason) = gateway.why_withheld(key) {
                self.failed.insert(key.name.clone(), reason);
            }
        }
        let Some(batch) = batch else {
            gateway.status.desired_generation = gateway.status.applied_generation;
            return;
        };
        if batch.full {
            self.full.insert(id.to_owned(), Instant::now());
        }
        if let Some((_, outbox)) = &gateway.session {
            // There is room for the one that is under way; a session that ended says so.
            let _ = outbox.updates.try_send(batch);
        }
    }

    /// Says in the catalog what gateways have applied or cannot have.
    fn tell(&mut self) {
        let applied = std::mem::take(&mut self.applied);
        let failed = std::mem::take(&mut self.failed);
        let mut available = Vec::new();
        let mut fails = Vec::new();
        {
            let state = self.catalog.read();
            for id in applied {
                let Some(endpoint) = state.endpoint(&id) else { continue };
                let key = endpoint_key(&id);
                let has = |holder: &String, address| {
                    self.gateways.get(holder).is_some_and(|gateway| gateway.has_applied(&key, address))
                };
                let addresses = &endpoint.status.addresses;
                let held = |held: &EndpointAddressStatus| {
                    held.gateway.as_ref().is_some_and(|holder| has(holder, held.address))
                };
                let everywhere = !addresses.is_empty() && addresses.iter().all(held);
                if everywhere
                    && matches!(endpoint.status.state, EndpointState::Pending | EndpointState::Failed)
                    && !failed.contains_key(&id)
                {
                    available.push(id);
                }
            }
            for (id, reason) in failed {
                let Some(endpoint) = state.endpoint(&id) else { continue };
                if has_access(endpoint.status.state) && endpoint.status.reason.as_ref() != Some(&reason) {
                    fails.push((id, reason));
                }
            }
        }
        for ids in available.chunks(ENDPOINTS_AT_ONCE) {
            if let Err(refusal) = self.catalog.endpoints_applied(ids) {
                tracing::error!("what gateways have applied cannot be kept: {}", refusal.message);
            }
        }
        for (id, reason) in fails {
            if let Err(refusal) = self.catalog.endpoint_failed(&id, &reason) {
                tracing::error!("the failure of endpoint {id} cannot be kept: {}", refusal.message);
            }
        }
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

//! Which gateway holds which address: each endpoint address and each SNAT address is held by one gateway at a time.
//!
//! Who may hold an address: gateways attached to its VPC, in its zone if it has one, that are not drained; for an endpoint
//! also attached to the VPCs of all pools that its service needs, and with an address of each. Among them a rendezvous
//! hash over gateway ids decides, or a pin. An address that has a holder stays there while it may: a new gateway moves
//! nothing. One that has to move is first released: the holder's tables no longer have it, and only when the holder
//! has applied that, the next one gets it. A holder that is not connected cannot release, so nothing moves from it; a gateway
//! that is no object of the catalog any more was taken away by an operator, and releases nothing.
//!
//! Nothing is placed on a gateway that is not connected. Addresses of a pool are shared out evenly: none gets more than its
//! share while others of its gateways have not been seen yet, unless an endpoint needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::catalog::State;
use crate::catalog::model::{EndpointSpec, EndpointState, EndpointStatus, Kind, Object};
use crate::compile::{Releasing, has_access, pools_of_service};

/// Addresses of one gateway that are released at a time, so that each is without a holder only briefly.
pub const RELEASED_AT_ONCE: usize = 256;

/// What is known of gateways beside the catalog.
pub trait Gateways {
    /// Whether its stream is open, and what it has is known.
    fn is_connected(&self, gateway: &str) -> bool;
    /// Whether it may still act for an address of an endpoint or pool: its tables have it, or may have it.
    fn may_hold(&self, gateway: &str, id: &str, address: IpAddr) -> bool;
}

/// What is to be kept in the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Holders: id of the endpoint or pool, address, gateway.
    pub holders: Vec<(String, IpAddr, Option<String>)>,
    /// Endpoints that cannot be, and why.
    pub failed: Vec<(String, String)>,
    /// Endpoints and pools whose addresses began or ended to be released.
    pub released: BTreeSet<String>,
    /// Endpoints that are deleted and on no gateway any more.
    pub gone: Vec<String>,
}

/// Places addresses.
#[derive(Debug, Default)]
pub struct Placement {
    releasing: Releasing,
    /// Where each address that is released is to go, and from where.
    moves: HashMap<(String, IpAddr), Move>,
    /// Pool addresses that an endpoint needs elsewhere.
    wanted: HashMap<(String, IpAddr), String>,
    /// What has no holder that may hold it, until something changes.
    waiting: BTreeSet<(Kind, String)>,
    /// What has to leave a gateway when others have left.
    queued: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug)]
struct Move {
    from: String,
    to: String,
}

impl Placement {
    /// Addresses that their holders are to let go.
    #[must_use]
    pub const fn releasing(&self) -> &Releasing {
        &self.releasing
    }

    /// What has no holder that may hold it.
    pub fn waiting(&self) -> impl Iterator<Item = &(Kind, String)> {
        self.waiting.iter()
    }

    /// What may go on because a gateway has applied something.
    pub fn after_applied(&mut self, gateway: &str) -> BTreeSet<(Kind, String)> {
        let moves = self.moves.iter().filter(|(_, found)| found.from == gateway);
        let mut next: BTreeSet<_> = moves.map(|((id, _), _)| (kind_of(id), id.clone())).collect();
        if let Some(queue) = self.queued.get_mut(gateway) {
            for _ in 0..RELEASED_AT_ONCE {
                let Some(id) = queue.pop_first() else { break };
                next.insert((kind_of(&id), id));
            }
        }
        next
    }

    /// Thinks about endpoints and pools, pools first: what they refer to is as in `state`.
    pub fn think(&mut self, state: &State, gateways: &dyn Gateways, about: &BTreeSet<(Kind, String)>) -> Decisions {
        let mut thought =
            Thought { placement: self, state, gateways, planned: HashMap::new(), made: Decisions::default() };
        for (_, pool) in about.iter().filter(|(kind, _)| *kind == Kind::SnatPool) {
            thought.pool(pool);
        }
        for (_, endpoint) in about.iter().filter(|(kind, _)| *kind == Kind::Endpoint) {
            thought.endpoint(endpoint);
        }
        thought.finish()
    }
}

/// One run of thinking: what it has planned counts as if it were in the catalog already.
struct Thought<'t> {
    placement: &'t mut Placement,
    state: &'t State,
    gateways: &'t dyn Gateways,
    planned: HashMap<(String, IpAddr), Option<String>>,
    made: Decisions,
}

impl Thought<'_> {
    fn finish(mut self) -> Decisions {
        let planned = std::mem::take(&mut self.planned);
        self.made.holders = planned.into_iter().map(|((id, address), gateway)| (id, address, gateway)).collect();
        self.made.holders.sort();
        self.made
    }

    fn pool(&mut self, id: &str) {
        self.placement.waiting.remove(&(Kind::SnatPool, id.to_owned()));
        let Some(pool) = self.state.snat_pool(id) else {
            self.forget(id);
            return;
        };
        let attached = self.attached(&pool.spec.vpc);
        let candidates: BTreeSet<String> = attached.iter().filter(|id| !self.is_drained(id)).cloned().collect();
        let share = pool.spec.addresses.len().div_ceil(candidates.len().max(1));
        for &address in &pool.spec.addresses {
            let key = (id.to_owned(), address);
            let pin = pool.spec.pinned.get(&address).cloned();
            let wanted = self.placement.wanted.get(&key).cloned().filter(|gateway| candidates.contains(gateway));
            let pin = pin.or(wanted);
            let may = |gateway: &String| match &pin {
                Some(pin) => pin == gateway && attached.contains(gateway),
                None => candidates.contains(gateway),
            };
            let holder = self.holder(id, address).filter(|holder| self.state.gateway(holder).is_some());
            if holder.as_ref().is_some_and(may) {
                self.keep(&key);
                continue;
            }
            let open: Vec<&String> =
                attached.iter().filter(|gateway| may(gateway) && self.gateways.is_connected(gateway)).collect();
            let count = |gateway: &str| self.held(id, &pool.spec.addresses, gateway);
            let limit = if pin.is_some() || holder.is_some() { usize::MAX } else { share };
            let open = open.into_iter().filter(|gateway| count(gateway) < limit);
            let chosen =
                open.min_by_key(|gateway| (count(gateway), std::cmp::Reverse(weight(gateway, id, address)))).cloned();
            match (holder, chosen) {
                (None, Some(gateway)) => self.give(&key, Some(gateway)),
                // Endpoints that can go elsewhere leave before what they need does.
                (Some(holder), Some(gateway)) if pin.is_some() || !self.keeps_endpoints(&holder, id) => {
                    self.release(&key, Kind::SnatPool, holder, gateway);
                }
                _ => {
                    self.placement.waiting.insert((Kind::SnatPool, id.to_owned()));
                }
            }
        }
    }

    /// Whether a gateway has endpoints that need its addresses of a pool and could go where there are others.
    fn keeps_endpoints(&self, gateway: &str, pool: &str) -> bool {
        self.endpoints_needing(gateway, pool).any(|endpoint| {
            let pools = pools_of_service(self.state, &endpoint.spec.service);
            endpoint.status.addresses.iter().filter(|held| held.gateway.as_deref() == Some(gateway)).any(|held| {
                let others = self.candidates(endpoint, held.zone.as_deref(), &pools);
                others.iter().any(|other| self.gateways.is_connected(other) && self.has_all(other, &pools))
            })
        })
    }

    fn endpoints_needing<'s>(
        &'s self,
        gateway: &'s str,
        pool: &'s str,
    ) -> impl Iterator<Item = &'s Object<EndpointSpec, EndpointStatus>> {
        let endpoints = self.state.users_of_kind(gateway, Kind::Endpoint).filter_map(|id| self.state.endpoint(id));
        endpoints.filter(move |endpoint| {
            has_access(endpoint.status.state)
                && endpoint
                    .status
                    .addresses
                    .iter()
                    .any(|held| self.holder(&endpoint.metadata.id, held.address).as_deref() == Some(gateway))
                && pools_of_service(self.state, &endpoint.spec.service).contains(pool)
        })
    }

    fn endpoint(&mut self, id: &str) {
        self.placement.waiting.remove(&(Kind::Endpoint, id.to_owned()));
        let Some(endpoint) = self.state.endpoint(id) else {
            self.forget(id);
            return;
        };
        if !has_access(endpoint.status.state) {
            self.let_go(id, endpoint);
            return;
        }
        let pools = pools_of_service(self.state, &endpoint.spec.service);
        let mut impossible = None;
        for (at, held) in endpoint.status.addresses.iter().enumerate() {
            let key = (id.to_owned(), held.address);
            let pin = endpoint.spec.addresses.get(at).and_then(|wanted| wanted.gateway.as_ref());
            let mut candidates = self.candidates(endpoint, held.zone.as_deref(), &pools);
            if let Some(pin) = pin {
                // A pin holds also for a gateway that is drained.
                let reachable = self.reaching(endpoint, &pools).contains(pin);
                candidates = if reachable { vec![pin.clone()] } else { Vec::new() };
            }
            let holder = self.holder(id, held.address).filter(|holder| self.state.gateway(holder).is_some());
            if let Some(holder) = &holder
                && candidates.contains(holder)
                && self.has_all(holder, &pools)
            {
                self.keep(&key);
                continue;
            }
            let open: Vec<String> = candidates.iter().filter(|id| self.gateways.is_connected(id)).cloned().collect();
            let ready = open.iter().filter(|gateway| self.will_have_all(gateway, &pools));
            let chosen = ready.max_by_key(|gateway| weight(gateway, id, held.address)).cloned();
            match (holder, chosen) {
                (None, Some(gateway)) if self.has_all(&gateway, &pools) => self.give(&key, Some(gateway)),
                (Some(holder), Some(gateway)) if holder != gateway => {
                    self.release(&key, Kind::Endpoint, holder, gateway);
                }
                (None, None) if candidates.is_empty() => {
                    impossible = Some(self.why_nowhere(endpoint, held.zone.as_deref(), &pools));
                }
                // What cannot be held any more is not forwarded either; what is only drained is.
                (Some(holder), None) if candidates.is_empty() && self.has_lost(&holder, endpoint, &pools) => {
                    impossible = Some(self.why_nowhere(endpoint, held.zone.as_deref(), &pools));
                }
                (None, None) if !open.is_empty() => impossible = self.ask_for_addresses(&key, &open, &pools),
                _ => {
                    self.placement.waiting.insert((Kind::Endpoint, id.to_owned()));
                }
            }
        }
        if let Some(reason) = impossible {
            self.placement.waiting.insert((Kind::Endpoint, id.to_owned()));
            if endpoint.status.reason.as_ref() != Some(&reason) {
                self.made.failed.push((id.to_owned(), reason));
            }
        }
    }

    /// An endpoint that lost its access keeps its holders until they have let it go.
    fn let_go(&mut self, id: &str, endpoint: &Object<EndpointSpec, EndpointStatus>) {
        let mut held_still = false;
        for held in &endpoint.status.addresses {
            let key = (id.to_owned(), held.address);
            self.keep(&key);
            let Some(holder) = &held.gateway else { continue };
            let exists = self.state.gateway(holder).is_some();
            if exists && (!self.gateways.is_connected(holder) || self.gateways.may_hold(holder, id, held.address)) {
                held_still = true;
            } else if endpoint.status.state != EndpointState::Deleting {
                self.planned.insert(key, None);
            }
        }
        if held_still {
            self.placement.waiting.insert((Kind::Endpoint, id.to_owned()));
        } else if endpoint.status.state == EndpointState::Deleting {
            self.made.gone.push(id.to_owned());
        }
    }

    /// Gets addresses of the pools that no gateway has that could hold the endpoint. Returns why not, if that cannot be.
    fn ask_for_addresses(
        &mut self,
        key: &(String, IpAddr),
        open: &[String],
        pools: &BTreeSet<String>,
    ) -> Option<String> {
        let mut open = open.to_vec();
        open.sort_by_key(|gateway| std::cmp::Reverse(weight(gateway, &key.0, key.1)));
        let mut lacking = String::new();
        'gateways: for gateway in &open {
            let mut asked = Vec::new();
            for pool in pools.iter().filter(|pool| !self.has_one(gateway, pool)) {
                match self.spare(pool) {
                    Some(address) => asked.push((pool.clone(), address)),
                    None => {
                        lacking.clone_from(pool);
                        continue 'gateways;
                    }
                }
            }
            for (pool, address) in asked {
                self.placement.wanted.insert((pool.clone(), address), gateway.clone());
                self.pool(&pool);
            }
            if self.has_all(gateway, pools) {
                self.give(key, Some(gateway.clone()));
            } else {
                self.placement.waiting.insert((Kind::Endpoint, key.0.clone()));
            }
            return None;
        }
        let name = self.state.snat_pool(&lacking).map_or(lacking.as_str(), |pool| pool.metadata.name.as_str());
        Some(format!(
            "every address of SNAT pool {name} is needed on gateways that cannot hold the endpoint; the pool needs one more"
        ))
    }

    /// An address of a pool that nobody has, or that its gateway can do without.
    fn spare(&self, id: &str) -> Option<IpAddr> {
        let pool = self.state.snat_pool(id)?;
        let free = pool.spec.addresses.iter().filter(|address| {
            let key = (id.to_owned(), **address);
            !pool.spec.pinned.contains_key(address) && !self.placement.wanted.contains_key(&key)
        });
        let unheld = free.clone().find(|address| self.holder(id, **address).is_none());
        let unneeded = || {
            free.clone().find(|address| {
                let Some(holder) = self.holder(id, **address) else { return false };
                self.gateways.is_connected(&holder)
                    && (self.held(id, &pool.spec.addresses, &holder) > 1
                        || self.endpoints_needing(&holder, id).next().is_none())
            })
        };
        unheld.or_else(unneeded).copied()
    }

    fn why_nowhere(
        &self,
        endpoint: &Object<EndpointSpec, EndpointStatus>,
        zone: Option<&str>,
        pools: &BTreeSet<String>,
    ) -> String {
        let vpc = &endpoint.spec.vpc;
        let reaching = self.reaching(endpoint, pools);
        if self.attached(vpc).is_empty() {
            return format!("no gateway is attached to {vpc}");
        }
        if reaching.is_empty() {
            return format!("no gateway is attached to {vpc} and to the network of the service");
        }
        match zone {
            Some(zone) if !reaching.iter().any(|id| self.is_in(id, zone)) => {
                format!("no gateway of zone {zone} is attached to {vpc} and to the network of the service")
            }
            _ => "every gateway that could hold it is drained, or it is to be held by one that is not attached"
                .to_owned(),
        }
    }

    /// Gateways that may hold an address of the endpoint, whether or not they have the pools' addresses.
    fn candidates(
        &self,
        endpoint: &Object<EndpointSpec, EndpointStatus>,
        zone: Option<&str>,
        pools: &BTreeSet<String>,
    ) -> Vec<String> {
        let mut candidates = self.reaching(endpoint, pools);
        candidates.retain(|id| !self.is_drained(id) && zone.is_none_or(|zone| self.is_in(id, zone)));
        candidates
    }

    /// Gateways attached to the endpoint's VPC and to those of the pools.
    fn reaching(&self, endpoint: &Object<EndpointSpec, EndpointStatus>, pools: &BTreeSet<String>) -> Vec<String> {
        let mut reaching = self.attached(&endpoint.spec.vpc);
        for pool in pools.iter().filter_map(|pool| self.state.snat_pool(pool)) {
            if pool.spec.vpc != endpoint.spec.vpc {
                let attached = self.attached(&pool.spec.vpc);
                reaching.retain(|gateway| attached.contains(gateway));
            }
        }
        reaching.into_iter().collect()
    }

    /// Whether a gateway is not attached any more to what an endpoint needs, and knows that.
    fn has_lost(
        &self,
        gateway: &str,
        endpoint: &Object<EndpointSpec, EndpointStatus>,
        pools: &BTreeSet<String>,
    ) -> bool {
        self.gateways.is_connected(gateway) && !self.reaching(endpoint, pools).iter().any(|id| id == gateway)
    }

    fn attached(&self, vpc: &str) -> BTreeSet<String> {
        let attachments = self.state.users_of_kind(vpc, Kind::Attachment).filter_map(|id| self.state.attachment(id));
        attachments.map(|attachment| attachment.spec.gateway.clone()).collect()
    }

    fn is_drained(&self, gateway: &str) -> bool {
        self.state.gateway(gateway).is_none_or(|gateway| gateway.spec.drained)
    }

    fn is_in(&self, gateway: &str, zone: &str) -> bool {
        self.state.gateway(gateway).is_some_and(|gateway| gateway.spec.zone.as_deref() == Some(zone))
    }

    fn holder(&self, id: &str, address: IpAddr) -> Option<String> {
        if let Some(planned) = self.planned.get(&(id.to_owned(), address)) {
            return planned.clone();
        }
        match self.state.endpoint(id) {
            Some(endpoint) => endpoint
                .status
                .addresses
                .iter()
                .find(|held| held.address == address)
                .and_then(|held| held.gateway.clone()),
            None => self.state.snat_pool(id).and_then(|pool| pool.status.holders.get(&address).cloned()),
        }
    }

    /// How many addresses of a pool a gateway holds or is about to get.
    fn held(&self, id: &str, addresses: &[IpAddr], gateway: &str) -> usize {
        let holds = |address: &&IpAddr| match self.placement.moves.get(&(id.to_owned(), **address)) {
            Some(found) => found.to == gateway,
            None => self.holder(id, **address).as_deref() == Some(gateway),
        };
        addresses.iter().filter(holds).count()
    }

    /// Whether a gateway holds an address of a pool, and keeps it. Of a pool without addresses everybody has what there is.
    fn has_one(&self, gateway: &str, id: &str) -> bool {
        self.state.snat_pool(id).is_none_or(|pool| {
            pool.spec.addresses.is_empty()
                || pool.spec.addresses.iter().any(|address| {
                    !self.placement.releasing.contains(&(id.to_owned(), *address))
                        && self.holder(id, *address).as_deref() == Some(gateway)
                })
        })
    }

    fn has_all(&self, gateway: &str, pools: &BTreeSet<String>) -> bool {
        pools.iter().all(|pool| self.has_one(gateway, pool))
    }

    /// The same, when everything has moved that moves now.
    fn will_have_all(&self, gateway: &str, pools: &BTreeSet<String>) -> bool {
        pools.iter().all(|id| {
            let pool = self.state.snat_pool(id);
            pool.is_none_or(|pool| pool.spec.addresses.is_empty() || self.held(id, &pool.spec.addresses, gateway) > 0)
        })
    }

    fn give(&mut self, key: &(String, IpAddr), gateway: Option<String>) {
        self.keep(key);
        self.planned.insert(key.clone(), gateway);
        if kind_of(&key.0) == Kind::SnatPool {
            self.placement.wanted.remove(key);
        }
    }

    /// Stays where it is.
    fn keep(&mut self, key: &(String, IpAddr)) {
        self.placement.moves.remove(key);
        if self.placement.releasing.remove(key) {
            self.made.released.insert(key.0.clone());
        }
    }

    /// Lets the holder let it go, or, when it has, gives it to the next one.
    fn release(&mut self, key: &(String, IpAddr), kind: Kind, from: String, to: String) {
        let (id, address) = key;
        if !self.gateways.is_connected(&from) {
            self.placement.waiting.insert((kind, id.clone()));
            return;
        }
        let begun = self.placement.releasing.contains(key);
        if begun && !self.gateways.may_hold(&from, id, *address) {
            self.give(key, Some(to));
            return;
        }
        if !begun {
            let released = self.placement.moves.values().filter(|found| found.from == from).count();
            if kind == Kind::Endpoint && released >= RELEASED_AT_ONCE {
                self.placement.queued.entry(from).or_default().insert(id.clone());
                return;
            }
            self.placement.releasing.insert(key.clone());
            self.made.released.insert(id.clone());
        }
        self.placement.moves.insert(key.clone(), Move { from, to });
        self.placement.waiting.insert((kind, id.clone()));
    }

    fn forget(&mut self, id: &str) {
        self.placement.releasing.retain(|(of, _)| of != id);
        self.placement.moves.retain(|(of, _), _| of != id);
        self.placement.wanted.retain(|(of, _), _| of != id);
    }
}

/// Whether an id is that of a pool or of an endpoint.
pub(crate) fn kind_of(id: &str) -> Kind {
    if id.starts_with(Kind::SnatPool.id_prefix()) { Kind::SnatPool } else { Kind::Endpoint }
}

/// The rendezvous hash: the gateway with the largest value has the address, so that each address has its own order of
/// gateways, and one that goes takes only its own addresses with it.
fn weight(gateway: &str, id: &str, address: IpAddr) -> u64 {
    let digest = Sha256::digest(format!("{gateway}\n{id}\n{address}"));
    u64::from_be_bytes(digest[..8].try_into().expect("SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests;

//! The life of an endpoint, and the two sides of a connection.
//!
//! `pendingAcceptance → pending → available`; `rejected`, `failed` and `expired` beside; `deleting → deleted` at the end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::access::{called, find};
use super::addresses::Network;
use super::draft::Draft;
use super::model::{
    EndpointAddressSpec, EndpointAddressStatus, EndpointSpec, EndpointState, EndpointStatus, EventKind, Kind, Object,
};
use super::object::AnyObject;
use super::resolve::allows;
use super::{Caller, Catalog, Code, Refusal};

type Endpoint = Object<EndpointSpec, EndpointStatus>;

/// What a provider sees of an endpoint that stands for its service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Connection {
    /// Id of the endpoint.
    pub endpoint: String,
    /// Name of the principal that it belongs to.
    pub consumer: String,
    /// The endpoint's state.
    pub state: EndpointState,
    /// Why, for `rejected`, `failed` and `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the endpoint was made, in milliseconds since 1970.
    pub created: u64,
}

impl Connection {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            endpoint: endpoint.metadata.id.clone(),
            consumer: endpoint.metadata.owner.clone(),
            state: endpoint.status.state,
            reason: endpoint.status.reason.clone(),
            created: endpoint.metadata.created,
        }
    }
}

impl Catalog {
    /// The endpoints that stand for a service, but for deleted ones, by id; or one of them.
    ///
    /// # Errors
    /// When the service is not the caller's.
    pub fn connections(
        &self,
        caller: &Caller,
        service: &str,
        endpoint: Option<&str>,
    ) -> Result<Vec<Connection>, Refusal> {
        let state = self.read();
        let draft = Draft::new(&state, self.now());
        let id = find(&draft, caller, Kind::Service, service)?.id();
        if let Some(endpoint) = endpoint {
            let one = state.endpoint(endpoint).filter(|endpoint| endpoint.spec.service == id);
            let one = one.filter(|endpoint| endpoint.status.state != EndpointState::Deleted);
            return Ok(one.map(Connection::of).into_iter().collect());
        }
        let endpoints = state.users_of_kind(id, Kind::Endpoint).filter_map(|id| state.endpoint(id));
        Ok(endpoints.map(Connection::of).collect())
    }

    /// Accepts a connection that waits for it, or that was rejected before. One that is accepted stays so.
    ///
    /// # Errors
    /// When the service is not the caller's, no such endpoint stands for it, its principal is not on the allow-list, or
    /// it is in another state.
    pub fn accept(&self, caller: &Caller, service: &str, endpoint: &str) -> Result<Connection, Refusal> {
        self.change(|draft| {
            let endpoint = connected(draft, caller, service, endpoint)?;
            match endpoint.status.state {
                EndpointState::Pending | EndpointState::Available | EndpointState::Failed => {}
                EndpointState::PendingAcceptance | EndpointState::Rejected => {
                    let service = draft.object(Kind::Service, &endpoint.spec.service).cloned();
                    let spec = service.as_ref().and_then(|service| service.as_service()).map(|service| &service.spec);
                    let consumer = &endpoint.metadata.owner;
                    if !spec.is_some_and(|spec| allows(spec, consumer)) {
                        let message = format!("{consumer} is not on the allow-list of the service; put it there first");
                        return Err(Refusal::new(Code::Conflict, message));
                    }
                    turn(draft, &endpoint, EndpointState::Pending, None);
                    tell(draft, EventKind::Accept, &endpoint);
                }
                state => return Err(in_state(&endpoint, state, "accepted")),
            }
            now_connected(draft, &endpoint)
        })
    }

    /// Rejects a connection, also one that was accepted: it loses access. `reason` is shown to the consumer.
    ///
    /// # Errors
    /// When the service is not the caller's, no such endpoint stands for it, it is in another state, or the reason is
    /// longer than 256 characters.
    pub fn reject(
        &self,
        caller: &Caller,
        service: &str,
        endpoint: &str,
        reason: Option<&str>,
    ) -> Result<Connection, Refusal> {
        let reason = reason.map_or("the provider rejected it", |reason| reason);
        if reason.chars().count() > 256 || reason.contains(char::is_control) {
            return Err(Refusal::form("reason", reason, "a reason; allowed are up to 256 printable characters"));
        }
        self.change(|draft| {
            let endpoint = connected(draft, caller, service, endpoint)?;
            match endpoint.status.state {
                EndpointState::Rejected => {}
                state if may_be_rejected(state) => {
                    turn(draft, &endpoint, EndpointState::Rejected, Some(reason.to_owned()));
                    tell(draft, EventKind::Reject, &endpoint);
                }
                state => return Err(in_state(&endpoint, state, "rejected")),
            }
            now_connected(draft, &endpoint)
        })
    }

    /// Says that every gateway concerned has applied what these endpoints are now: `pending` and `failed` become
    /// `available`, `deleting` becomes `deleted`; others stay. One transaction for all.
    ///
    /// # Errors
    /// When the store failed.
    pub fn endpoints_applied<Id: AsRef<str>>(&self, endpoints: &[Id]) -> Result<(), Refusal> {
        self.change(|draft| {
            for id in endpoints {
                let Some(endpoint) = endpoint(draft, id.as_ref()) else { continue };
                match endpoint.status.state {
                    EndpointState::Pending | EndpointState::Failed => {
                        turn(draft, &endpoint, EndpointState::Available, None);
                    }
                    EndpointState::Deleting => turn(draft, &endpoint, EndpointState::Deleted, None),
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// [`Self::endpoints_applied`] for one endpoint.
    ///
    /// # Errors
    /// When the store failed.
    pub fn endpoint_applied(&self, endpoint: &str) -> Result<(), Refusal> {
        self.endpoints_applied(&[endpoint])
    }

    /// Says that an endpoint that has access cannot be: it becomes `failed`, and `available` again when it was applied.
    ///
    /// # Errors
    /// When the store failed.
    pub fn endpoint_failed(&self, id: &str, reason: &str) -> Result<(), Refusal> {
        self.change(|draft| {
            let Some(endpoint) = endpoint(draft, id) else { return Ok(()) };
            match endpoint.status.state {
                EndpointState::Pending | EndpointState::Available => {
                    turn(draft, &endpoint, EndpointState::Failed, Some(reason.to_owned()));
                }
                EndpointState::Failed if endpoint.status.reason.as_deref() != Some(reason) => {
                    turn(draft, &endpoint, EndpointState::Failed, Some(reason.to_owned()));
                }
                _ => {}
            }
            Ok(())
        })
    }

    /// Keeps which gateway is to hold each address of endpoints and pools: id of the endpoint or pool, address, id of the
    /// gateway. What is not there any more is left out.
    ///
    /// # Errors
    /// When there is no such gateway, or the store failed. Nothing is kept then.
    pub fn set_placement(&self, placement: Vec<(String, IpAddr, Option<String>)>) -> Result<(), Refusal> {
        self.change(|draft| {
            for (id, address, gateway) in placement {
                if let Some(gateway) = &gateway
                    && draft.object(Kind::Gateway, gateway).is_none()
                {
                    return Err(Refusal::new(
                        Code::NotFound,
                        format!("there is no gateway {gateway} to hold {address}"),
                    ));
                }
                if let Some(mut endpoint) = endpoint(draft, &id) {
                    let held = endpoint.status.addresses.iter_mut().find(|held| held.address == address);
                    if let Some(held) = held.filter(|held| held.gateway != gateway) {
                        held.gateway = gateway;
                        draft.put(AnyObject::Endpoint(endpoint));
                    }
                } else if let Some(object) = draft.object(Kind::SnatPool, &id)
                    && let Some(pool) = object.as_snat_pool()
                    && pool.spec.addresses.contains(&address)
                    && pool.status.holders.get(&address) != gateway.as_ref()
                {
                    let mut pool = pool.clone();
                    match gateway {
                        Some(gateway) => pool.status.holders.insert(address, gateway),
                        None => pool.status.holders.remove(&address),
                    };
                    draft.put(AnyObject::SnatPool(pool));
                }
            }
            Ok(())
        })
    }

    /// Lets happen what happens by time: connections that nobody accepted in seven days expire, endpoints that are
    /// deleted for an hour are forgotten, and old idempotency tokens and events too. To be called about every minute.
    ///
    /// # Errors
    /// When the store failed.
    pub fn tick(&self, now: u64) -> Result<(), Refusal> {
        /// Endpoints in one transaction.
        const AT_A_TIME: usize = 1000;
        loop {
            let due: Vec<String> = self.read().due(now).take(AT_A_TIME).map(str::to_owned).collect();
            if due.is_empty() {
                break;
            }
            self.change(|draft| {
                draft.now = now;
                for id in &due {
                    let Some(endpoint) = endpoint(draft, id) else { continue };
                    match endpoint.status.state {
                        EndpointState::PendingAcceptance => {
                            let reason = "the provider did not accept it within seven days".to_owned();
                            turn(draft, &endpoint, EndpointState::Expired, Some(reason));
                        }
                        EndpointState::Deleted => draft.remove(Kind::Endpoint, id),
                        _ => {}
                    }
                }
                Ok(())
            })?;
        }
        while self.forget_old(now)? {}
        Ok(())
    }
}

/// The name of a state, as users see it.
pub(super) const fn state_name(state: EndpointState) -> &'static str {
    match state {
        EndpointState::PendingAcceptance => "pendingAcceptance",
        EndpointState::Pending => "pending",
        EndpointState::Available => "available",
        EndpointState::Rejected => "rejected",
        EndpointState::Failed => "failed",
        EndpointState::Expired => "expired",
        EndpointState::Deleting => "deleting",
        EndpointState::Deleted => "deleted",
    }
}

/// Gives a new endpoint its addresses and its first state.
pub(super) fn begin(draft: &mut Draft<'_>, id: &str) -> Result<(), Refusal> {
    let Some(mut endpoint) = endpoint(draft, id) else { return Ok(()) };
    let Some(network) = Network::of(draft, &endpoint.spec.vpc) else { return Ok(()) };
    let anywhere = [EndpointAddressSpec::default()];
    let wanted = if endpoint.spec.addresses.is_empty() { &anywhere } else { endpoint.spec.addresses.as_slice() };
    let mut taken: BTreeSet<_> = wanted.iter().filter_map(|wanted| wanted.address).collect();
    let mut addresses = Vec::new();
    for wanted in wanted {
        let address = match wanted.address {
            Some(address) => address,
            None => network.choose(draft, &taken)?,
        };
        taken.insert(address);
        addresses.push(EndpointAddressStatus { address, zone: wanted.zone.clone(), gateway: None });
    }
    let service = draft.object(Kind::Service, &endpoint.spec.service).and_then(|service| service.as_service());
    let by_hand = service.is_none_or(|service| service.spec.acceptance_required);
    let state = if by_hand { EndpointState::PendingAcceptance } else { EndpointState::Pending };
    endpoint.status = EndpointStatus { state, since: draft.now, reason: None, addresses };
    tell(draft, EventKind::Connect, &endpoint);
    if !by_hand {
        tell(draft, EventKind::Accept, &endpoint);
    }
    draft.put(AnyObject::Endpoint(endpoint));
    Ok(())
}

/// Begins the end of an endpoint.
pub(super) fn begin_to_go(draft: &mut Draft<'_>, endpoint: &Endpoint) -> Result<(), Refusal> {
    let held = endpoint.status.addresses.iter().any(|address| address.gateway.is_some());
    let next = match endpoint.status.state {
        EndpointState::Deleting => return Ok(()),
        EndpointState::Deleted => {
            return Err(Refusal::new(Code::NotFound, format!("endpoint {} is deleted", endpoint.metadata.id)));
        }
        // No gateway was ever told of it.
        EndpointState::PendingAcceptance | EndpointState::Expired => EndpointState::Deleted,
        _ if held => EndpointState::Deleting,
        _ => EndpointState::Deleted,
    };
    tell(draft, EventKind::Delete, endpoint);
    turn(draft, endpoint, next, None);
    Ok(())
}

/// Where a service asks for it, withdraws the access of those who are not on its allow-list any more.
pub(super) fn reconcile(draft: &mut Draft<'_>, id: &str) {
    let Some(object) = draft.object(Kind::Service, id).cloned() else { return };
    let Some(service) = object.as_service().filter(|service| service.spec.reconcile) else { return };
    let same = draft.before(Kind::Service, id).and_then(|before| before.as_service()).is_some_and(|before| {
        before.spec.reconcile && before.spec.allowed_principals == service.spec.allowed_principals
    });
    if same {
        return;
    }
    let endpoints = draft.users_of_kind(id, Kind::Endpoint).filter_map(|id| endpoint(draft, id));
    let loses = |endpoint: &Endpoint| {
        may_be_rejected(endpoint.status.state) && !allows(&service.spec, &endpoint.metadata.owner)
    };
    let endpoints: Vec<_> = endpoints.filter(loses).collect();
    for endpoint in endpoints {
        let reason = "its principal was taken off the allow-list of the service".to_owned();
        turn(draft, &endpoint, EndpointState::Rejected, Some(reason));
        tell(draft, EventKind::Reject, &endpoint);
    }
}

const fn may_be_rejected(state: EndpointState) -> bool {
    matches!(
        state,
        EndpointState::PendingAcceptance | EndpointState::Pending | EndpointState::Available | EndpointState::Failed
    )
}

fn endpoint(draft: &Draft<'_>, id: &str) -> Option<Endpoint> {
    draft.object(Kind::Endpoint, id)?.as_endpoint().cloned()
}

/// The endpoint, if it stands for the caller's service.
fn connected(draft: &Draft<'_>, caller: &Caller, service: &str, id: &str) -> Result<Endpoint, Refusal> {
    let service = find(draft, caller, Kind::Service, service)?;
    let found = endpoint(draft, id).filter(|endpoint| endpoint.spec.service == service.id());
    let found = found.filter(|endpoint| endpoint.status.state != EndpointState::Deleted);
    found.ok_or_else(|| {
        let shown: String = id.chars().take(64).filter(|character| !character.is_control()).collect();
        Refusal::new(Code::NotFound, format!("no endpoint \"{shown}\" stands for {}", called(service)))
    })
}

fn now_connected(draft: &Draft<'_>, endpoint: &Endpoint) -> Result<Connection, Refusal> {
    let now = self::endpoint(draft, &endpoint.metadata.id);
    Ok(Connection::of(now.as_ref().unwrap_or(endpoint)))
}

fn in_state(endpoint: &Endpoint, state: EndpointState, what: &str) -> Refusal {
    let message = format!("endpoint {} is {}; it cannot be {what}", endpoint.metadata.id, state_name(state));
    Refusal::new(Code::Conflict, message)
}

fn turn(draft: &mut Draft<'_>, endpoint: &Endpoint, state: EndpointState, reason: Option<String>) {
    let mut endpoint = endpoint.clone();
    let EndpointStatus { addresses, .. } = endpoint.status;
    endpoint.status = EndpointStatus { state, since: draft.now, reason, addresses };
    draft.put(AnyObject::Endpoint(endpoint));
}

fn tell(draft: &mut Draft<'_>, event: EventKind, endpoint: &Endpoint) {
    let service = &endpoint.spec.service;
    let known = draft.object(Kind::Service, service).or_else(|| draft.before(Kind::Service, service));
    let provider = known.map(|service| service.metadata().owner.clone());
    let parties =
        [service.clone(), provider.unwrap_or_default(), endpoint.metadata.id.clone(), endpoint.metadata.owner.clone()];
    draft.events.push((event, parties));
}

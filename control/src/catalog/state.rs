//! All objects in memory, with what is needed to find them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::model::{
    AttachmentSpec, EndpointSpec, EndpointState, EndpointStatus, GatewaySpec, GatewayStatus, Kind, LoadBalancerSpec,
    NoStatus, Object, SecurityGroupSpec, ServiceSpec, ServiceStatus, SnatPoolSpec, SnatPoolStatus, TargetGroupSpec,
    TargetGroupStatus, VpcSpec,
};
use super::object::AnyObject;

/// How long an endpoint waits for its provider, in milliseconds: seven days.
pub(super) const ACCEPTANCE_TIME: u64 = 7 * 24 * 3600 * 1000;
/// How long a deleted endpoint is shown, in milliseconds: an hour.
pub(super) const DELETED_SHOWN: u64 = 3600 * 1000;

/// The objects of one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub(super) generation: u64,
    objects: [BTreeMap<String, Arc<AnyObject>>; Kind::ALL.len()],
    /// Kind, owner, name, id.
    names: BTreeSet<(Kind, String, String, String)>,
    /// By what is referred to: an id, or [`principal_key`].
    users: BTreeMap<String, BTreeSet<(Kind, String)>>,
    /// Who uses an address of a VPC.
    claims: BTreeMap<(String, IpAddr), BTreeSet<(Kind, String)>>,
    /// By the digest of the token.
    pub(super) tokens: BTreeMap<String, Credential>,
    /// When an endpoint expires or is forgotten.
    timers: BTreeSet<(u64, String)>,
}

/// A token, of which only the digest is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Credential {
    /// Id of the principal.
    pub(super) principal: String,
    /// When it was made, in milliseconds since 1970.
    pub(super) created: u64,
}

macro_rules! typed {
    ($($one:ident, $all:ident, $kind:ident($spec:ty, $status:ty), $as_kind:ident;)*) => {
        impl State {
            $(
                #[doc = concat!("The ", stringify!($kind), " with this id.")]
                #[must_use]
                pub fn $one(&self, id: &str) -> Option<&Object<$spec, $status>> {
                    self.object(Kind::$kind, id)?.$as_kind()
                }

                #[doc = concat!("Every ", stringify!($kind), ", by id.")]
                pub fn $all(&self) -> impl Iterator<Item = &Object<$spec, $status>> {
                    self.objects[Kind::$kind as usize].values().filter_map(|object| object.$as_kind())
                }
            )*
        }
    };
}

typed! {
    gateway, gateways, Gateway(GatewaySpec, GatewayStatus), as_gateway;
    vpc, vpcs, Vpc(VpcSpec, NoStatus), as_vpc;
    attachment, attachments, Attachment(AttachmentSpec, NoStatus), as_attachment;
    snat_pool, snat_pools, SnatPool(SnatPoolSpec, SnatPoolStatus), as_snat_pool;
    target_group, target_groups, TargetGroup(TargetGroupSpec, TargetGroupStatus), as_target_group;
    load_balancer, load_balancers, LoadBalancer(LoadBalancerSpec, NoStatus), as_load_balancer;
    service, services, Service(ServiceSpec, ServiceStatus), as_service;
    endpoint, endpoints, Endpoint(EndpointSpec, EndpointStatus), as_endpoint;
    security_group, security_groups, SecurityGroup(SecurityGroupSpec, NoStatus), as_security_group;
}

impl State {
    /// Counts committed changes, over restarts.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// An object.
    #[must_use]
    pub fn object(&self, kind: Kind, id: &str) -> Option<&Arc<AnyObject>> {
        self.objects[kind as usize].get(id)
    }

    /// All objects of a kind, by id.
    pub fn objects(&self, kind: Kind) -> impl Iterator<Item = &Arc<AnyObject>> {
        self.objects[kind as usize].values()
    }

    /// Ids of the objects of a kind that refer to an object.
    pub fn users_of_kind<'s>(&'s self, id: &str, kind: Kind) -> impl Iterator<Item = &'s str> + use<'s> {
        let users = self.users.get(id).into_iter();
        let users = users.flat_map(move |users| users.range((kind, String::new())..));
        users.take_while(move |(of, _)| *of == kind).map(|(_, id)| id.as_str())
    }

    /// How many objects refer to an object.
    #[must_use]
    pub fn count_users(&self, id: &str) -> usize {
        self.users.get(id).map_or(0, BTreeSet::len)
    }

    /// Kinds and ids of all objects that refer to an object.
    pub fn users<'s>(&'s self, id: &str) -> impl Iterator<Item = (Kind, &'s str)> + use<'s> {
        self.users.get(id).into_iter().flatten().map(|(kind, id)| (*kind, id.as_str()))
    }

    /// Who has or names an address of a VPC: endpoints, pools, and groups and services with a target there.
    pub fn claims<'s>(&'s self, vpc: &str, address: IpAddr) -> impl Iterator<Item = (Kind, &'s str)> + use<'s> {
        let claims = self.claims.get(&(vpc.to_owned(), address));
        claims.into_iter().flatten().map(|(kind, id)| (*kind, id.as_str()))
    }

    /// Ids of the objects of a kind by owner and name, from `after` on. Owner and name are those of the index:
    /// [`index_owner`].
    pub(super) fn named<'s>(
        &'s self,
        kind: Kind,
        after: (String, String, String),
    ) -> impl Iterator<Item = (&'s str, &'s str, &'s str)> + use<'s> {
        let names = self.names.range((kind, after.0, after.1, after.2)..).take_while(move |name| name.0 == kind);
        names.map(|(_, owner, name, id)| (owner.as_str(), name.as_str(), id.as_str()))
    }

    /// Ids with the name.
    pub(super) fn ids_by_name<'s>(
        &'s self,
        kind: Kind,
        owner: &'s str,
        name: &'s str,
    ) -> impl Iterator<Item = &'s str> {
        let names = self.named(kind, (owner.to_owned(), name.to_owned(), String::new()));
        names.take_while(move |found| (found.0, found.1) == (owner, name)).map(|found| found.2)
    }

    /// Ids of endpoints whose time has come.
    pub(super) fn due(&self, now: u64) -> impl Iterator<Item = &str> {
        self.timers.iter().take_while(move |(due, _)| *due <= now).map(|(_, id)| id.as_str())
    }

    /// Takes an object in, in place of the one with its id.
    pub(super) fn put(&mut self, object: Arc<AnyObject>) {
        self.remove(object.kind(), object.id());
        let kind = object.kind();
        let metadata = object.metadata();
        let id = metadata.id.clone();
        self.names.insert((kind, index_owner(kind, &metadata.owner).to_owned(), metadata.name.clone(), id.clone()));
        for target in references(&object) {
            self.users.entry(target).or_default().insert((kind, id.clone()));
        }
        for claim in claims(&object) {
            self.claims.entry(claim).or_default().insert((kind, id.clone()));
        }
        self.timers.extend(timer(&object).map(|due| (due, id.clone())));
        self.objects[kind as usize].insert(id, object);
    }

    /// Takes an object out.
    pub(super) fn remove(&mut self, kind: Kind, id: &str) -> Option<Arc<AnyObject>> {
        let object = self.objects[kind as usize].remove(id)?;
        let metadata = object.metadata();
        let name = (kind, index_owner(kind, &metadata.owner).to_owned(), metadata.name.clone(), id.to_owned());
        self.names.remove(&name);
        let user = (kind, id.to_owned());
        for target in references(&object) {
            if let Some(users) = self.users.get_mut(&target) {
                users.remove(&user);
                if users.is_empty() {
                    self.users.remove(&target);
                }
            }
        }
        for claim in claims(&object) {
            if let Some(users) = self.claims.get_mut(&claim) {
                users.remove(&user);
                if users.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
        if let Some(due) = timer(&object) {
            self.timers.remove(&(due, id.to_owned()));
        }
        Some(object)
    }
}

/// Principals and gateways have names of their own in the whole catalog; others, among their owner's.
pub(super) fn index_owner(kind: Kind, owner: &str) -> &str {
    match kind {
        Kind::Principal | Kind::Gateway => "",
        _ => owner,
    }
}

/// What a principal's name is referred to by, so that no name can be taken for an id.
pub(super) fn principal_key(name: &str) -> String {
    format!("principal/{name}")
}

/// Everything that an object refers to.
pub(super) fn references(object: &AnyObject) -> BTreeSet<String> {
    let mut references = BTreeSet::new();
    let mut add = |id: &str| {
        if !id.is_empty() {
            references.insert(id.to_owned());
        }
    };
    match object {
        AnyObject::Principal(_) | AnyObject::Gateway(_) | AnyObject::Vpc(_) | AnyObject::SecurityGroup(_) => {}
        AnyObject::Attachment(attachment) => {
            add(&attachment.spec.gateway);
            add(&attachment.spec.vpc);
        }
        AnyObject::SnatPool(pool) => {
            add(&pool.spec.vpc);
            pool.spec.pinned.values().chain(pool.status.holders.values()).for_each(|id| add(id));
        }
        AnyObject::TargetGroup(group) => {
            add(&group.spec.vpc);
            add(&group.spec.snat_pool);
        }
        AnyObject::LoadBalancer(balancer) => {
            let groups = balancer.spec.listeners.iter().flat_map(|listener| &listener.target_groups);
            groups.for_each(|group| add(&group.target_group));
            balancer.spec.security_groups.iter().for_each(|id| add(id));
        }
        AnyObject::Service(service) => {
            service.spec.load_balancers.iter().for_each(|id| add(id));
            if let Some(plain) = &service.spec.plain {
                add(&plain.vpc);
                add(&plain.snat_pool);
            }
            service.spec.allowed_principals.iter().for_each(|name| add(&principal_key(name)));
        }
        AnyObject::Endpoint(_) if object.is_deleted() => {}
        AnyObject::Endpoint(endpoint) => {
            add(&endpoint.spec.vpc);
            add(&endpoint.spec.service);
            endpoint.spec.security_groups.iter().for_each(|id| add(id));
            endpoint.spec.addresses.iter().filter_map(|address| address.gateway.as_ref()).for_each(|id| add(id));
            endpoint.status.addresses.iter().filter_map(|address| address.gateway.as_ref()).for_each(|id| add(id));
        }
    }
    references
}

/// Addresses that an object has or names.
fn claims(object: &AnyObject) -> BTreeSet<(String, IpAddr)> {
    let of = |vpc: &str, addresses: &mut dyn Iterator<Item = IpAddr>| {
        addresses.map(|address| (vpc.to_owned(), address)).collect()
    };
    match object {
        AnyObject::SnatPool(pool) => of(&pool.spec.vpc, &mut pool.spec.addresses.iter().copied()),
        AnyObject::TargetGroup(group) => {
            of(&group.spec.vpc, &mut group.spec.targets.iter().map(|target| target.address))
        }
        AnyObject::Service(service) => {
            service.spec.plain.as_ref().map_or_else(BTreeSet::new, |plain| {
                of(&plain.vpc, &mut plain.targets.iter().map(|target| target.address))
            })
        }
        AnyObject::Endpoint(endpoint) if !object.is_deleted() => {
            of(&endpoint.spec.vpc, &mut endpoint.status.addresses.iter().map(|address| address.address))
        }
        _ => BTreeSet::new(),
    }
}

/// When an endpoint's state ends by itself.
fn timer(object: &AnyObject) -> Option<u64> {
    let endpoint = object.as_endpoint()?;
    match endpoint.status.state {
        EndpointState::PendingAcceptance => Some(endpoint.metadata.created.saturating_add(ACCEPTANCE_TIME)),
        EndpointState::Deleted => Some(endpoint.status.since.saturating_add(DELETED_SHOWN)),
        _ => None,
    }
}

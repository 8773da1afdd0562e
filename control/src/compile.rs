//! What each gateway has to know, worked out from the catalog.
//!
//! A gateway's resources are a graph: endpoints lead to services, these to load balancers, groups and pools. The roots are
//! the gateway's attachments and the endpoints that it holds; everything else is there as long as something leads to it.
//! A change of the catalog renders anew only what it touches, on those gateways that have it, so that one endpoint among
//! 100,000 costs one endpoint.

mod render;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use postern_tables::declaration as declared;
use postern_tables::{Resource, ResourceKey, ResourceKind};

use crate::catalog::State;
use crate::catalog::model::Kind;

pub use render::{Rendered, has_access, pool_key, pools_of_service};

/// An object: its kind and id.
type Node = (Kind, String);

/// What a gateway is not to have any more, although it is still its holder: id of the endpoint or pool, and the address.
pub type Releasing = HashSet<(String, IpAddr)>;

/// The resources of every gateway, kept up to date with the catalog.
#[derive(Debug, Default)]
pub struct Compiler {
    gateways: HashMap<String, Compiled>,
    /// The gateways that have an endpoint, by its id.
    endpoints: HashMap<String, BTreeSet<String>>,
    /// The gateway of an attachment, by its id.
    attachments: HashMap<String, String>,
    /// The pools that flows of a service need, by its id.
    pools: HashMap<String, BTreeSet<String>>,
}

/// The resources of one gateway.
#[derive(Debug, Default)]
pub struct Compiled {
    nodes: HashMap<Node, Entry>,
    /// By the key under which the gateway knows it: the object, and how it is rendered.
    resources: BTreeMap<ResourceKey, (Node, Arc<Rendered>)>,
    /// VPCs that it is attached to, with the number of attachments.
    vpcs: HashMap<String, usize>,
    changed: BTreeSet<ResourceKey>,
}

#[derive(Debug, Default)]
struct Entry {
    keys: Vec<ResourceKey>,
    leads_to: Vec<Node>,
    /// How many lead to it; a root counts as one.
    users: usize,
}

impl Compiled {
    /// A resource.
    #[must_use]
    pub fn resource(&self, key: &ResourceKey) -> Option<&Arc<Rendered>> {
        self.resources.get(key).map(|(_, rendered)| rendered)
    }

    /// All resources, those first that others refer to.
    pub fn resources(&self) -> impl Iterator<Item = (&ResourceKey, &Arc<Rendered>)> {
        self.resources.iter().map(|(key, (_, rendered))| (key, rendered))
    }

    /// The attachments.
    pub fn attachments(&self) -> impl Iterator<Item = &declared::Attachment> {
        let first = ResourceKey { kind: ResourceKind::Attachment, name: String::new() };
        let all = self.resources.range(first..).map(|(_, (_, rendered))| &rendered.resource);
        all.map_while(|resource| match resource {
            Resource::Attachment(attachment, _) => Some(attachment),
            _ => None,
        })
    }

    /// The object behind a resource.
    #[must_use]
    pub fn object(&self, key: &ResourceKey) -> Option<(Kind, &str)> {
        self.resources.get(key).map(|((kind, id), _)| (*kind, id.as_str()))
    }

    /// Keys of what became different since this was asked last: new, other, or gone.
    pub fn take_changed(&mut self) -> BTreeSet<ResourceKey> {
        std::mem::take(&mut self.changed)
    }

    /// Ids of the endpoints that are there because of an object.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().filter(|(kind, _)| *kind == Kind::Endpoint).map(|(_, id)| id.as_str())
    }
}

impl Compiler {
    /// Works everything out.
    #[must_use]
    pub fn new(state: &State, releasing: &Releasing) -> Self {
        let mut compiler = Self::default();
        let kinds = [Kind::Gateway, Kind::Attachment, Kind::Service, Kind::Endpoint];
        let all =
            kinds.into_iter().flat_map(|kind| state.objects(kind).map(move |object| (kind, object.id().to_owned())));
        compiler.update(state, &all.collect::<Vec<_>>(), releasing);
        compiler
    }

    /// The resources of a gateway, by its id.
    #[must_use]
    pub fn gateway(&self, id: &str) -> Option<&Compiled> {
        self.gateways.get(id)
    }

    /// The resources of a gateway, by its id.
    pub fn gateway_mut(&mut self, id: &str) -> Option<&mut Compiled> {
        self.gateways.get_mut(id)
    }

    /// Takes in that objects were made, changed or removed. What follows from it for each gateway is among what its
    /// [`Compiled::take_changed`] gives. Returns the endpoints whose holders have to be thought over besides those
    /// touched: what their service needs became different.
    pub fn update(&mut self, state: &State, touched: &[(Kind, String)], releasing: &Releasing) -> BTreeSet<String> {
        let mut endpoints: BTreeSet<String> = BTreeSet::new();
        let mut services: BTreeSet<String> = BTreeSet::new();
        let ordered = Kind::ALL.iter().flat_map(|kind| touched.iter().filter(move |(of, _)| of == kind));
        for (kind, id) in ordered {
            match kind {
                Kind::Gateway => self.gateway_changed(state, id),
                Kind::Attachment => self.attachment_changed(state, id, &mut endpoints),
                Kind::SnatPool => self.render_everywhere(state, *kind, id, releasing),
                Kind::TargetGroup => {
                    let balancers = state.users_of_kind(id, Kind::LoadBalancer);
                    services.extend(balancers.flat_map(|id| state.users_of_kind(id, Kind::Service)).map(str::to_owned));
                    self.render_everywhere(state, *kind, id, releasing);
                }
                Kind::LoadBalancer => {
                    services.extend(state.users_of_kind(id, Kind::Service).map(str::to_owned));
                    self.render_everywhere(state, *kind, id, releasing);
                }
                Kind::Service => {
                    services.insert(id.clone());
                    self.render_everywhere(state, *kind, id, releasing);
                }
                Kind::Endpoint => {
                    endpoints.insert(id.clone());
                }
                Kind::SecurityGroup => self.render_everywhere(state, *kind, id, releasing),
                Kind::Principal | Kind::Vpc => {}
            }
        }
        for service in services {
            let pools = pools_of_service(state, &service);
            if self.pools.get(&service) == Some(&pools) {
                continue;
            }
            endpoints.extend(state.users_of_kind(&service, Kind::Endpoint).map(str::to_owned));
            match state.service(&service) {
                Some(_) => self.pools.insert(service, pools),
                None => self.pools.remove(&service),
            };
        }
        for endpoint in &endpoints {
            self.endpoint_changed(state, endpoint, releasing);
        }
        endpoints
    }

    /// Takes in that an address began or ended to be released.
    pub fn released(&mut self, state: &State, id: &str, releasing: &Releasing) {
        match state.endpoint(id) {
            Some(_) => self.endpoint_changed(state, id, releasing),
            None => self.render_everywhere(state, Kind::SnatPool, id, releasing),
        }
    }

    /// Whether a gateway is attached to all that flows of an endpoint go through.
    fn reaches(&self, state: &State, gateway: &Compiled, vpc: &str, service: &str) -> bool {
        let pool_vpc =
            |pool: &String| state.snat_pool(pool).is_some_and(|pool| gateway.vpcs.contains_key(&pool.spec.vpc));
        gateway.vpcs.contains_key(vpc) && self.pools.get(service).is_none_or(|pools| pools.iter().all(pool_vpc))
    }

    fn gateway_changed(&mut self, state: &State, id: &str) {
        if state.gateway(id).is_some() {
            self.gateways.entry(id.to_owned()).or_default();
        } else {
            self.gateways.remove(id);
        }
    }

    fn attachment_changed(&mut self, state: &State, id: &str, endpoints: &mut BTreeSet<String>) {
        let node = (Kind::Attachment, id.to_owned());
        let attachment = state.attachment(id);
        let before = self.attachments.remove(id);
        let after = attachment.map(|attachment| attachment.spec.gateway.clone());
        let concerned: BTreeSet<&String> = before.iter().chain(&after).collect();
        for gateway in concerned {
            let Some(compiled) = self.gateways.get_mut(gateway) else { continue };
            let vpcs: BTreeSet<String> = compiled.vpcs.keys().cloned().collect();
            if before.as_ref() == Some(gateway) {
                let vpc = compiled.nodes.get(&node).and_then(|entry| entry.leads_to.first()).map(|(_, id)| id.clone());
                if let Some(vpc) = vpc
                    && let Some(count) = compiled.vpcs.get_mut(&vpc)
                {
                    *count -= 1;
                    if *count == 0 {
                        compiled.vpcs.remove(&vpc);
                    }
                }
            }
            if let (Some(attachment), true) = (attachment, after.as_ref() == Some(gateway)) {
                *compiled.vpcs.entry(attachment.spec.vpc.clone()).or_default() += 1;
                compiled.root(state, gateway, node.clone(), &Releasing::new());
            } else {
                compiled.unroot(&node);
            }
            if !vpcs.iter().eq(compiled.vpcs.keys().collect::<BTreeSet<_>>()) {
                endpoints.extend(state.users_of_kind(gateway, Kind::Endpoint).map(str::to_owned));
                endpoints.extend(compiled.endpoints().map(str::to_owned));
            }
        }
        if let Some(gateway) = after {
            self.attachments.insert(id.to_owned(), gateway);
        }
    }

    fn endpoint_changed(&mut self, state: &State, id: &str, releasing: &Releasing) {
        let node = (Kind::Endpoint, id.to_owned());
        let before = self.endpoints.remove(id).unwrap_or_default();
        let mut after = BTreeSet::new();
        if let Some(endpoint) = state.endpoint(id).filter(|endpoint| has_access(endpoint.status.state)) {
            for address in &endpoint.status.addresses {
                if let Some(gateway) = &address.gateway
                    && !releasing.contains(&(id.to_owned(), address.address))
                    && let Some(compiled) = self.gateways.get(gateway)
                    && self.reaches(state, compiled, &endpoint.spec.vpc, &endpoint.spec.service)
                {
                    after.insert(gateway.clone());
                }
            }
        }
        for gateway in before.union(&after) {
            let Some(compiled) = self.gateways.get_mut(gateway) else { continue };
            if after.contains(gateway) {
                compiled.root(state, gateway, node.clone(), releasing);
            } else {
                compiled.unroot(&node);
            }
        }
        if !after.is_empty() {
            self.endpoints.insert(id.to_owned(), after);
        }
    }

    fn render_everywhere(&mut self, state: &State, kind: Kind, id: &str, releasing: &Releasing) {
        let node = (kind, id.to_owned());
        for (gateway, compiled) in &mut self.gateways {
            if compiled.nodes.contains_key(&node) {
                compiled.render(state, gateway, &node, releasing);
            }
        }
    }
}

impl Compiled {
    /// Has a node for its own sake.
    fn root(&mut self, state: &State, gateway: &str, node: Node, releasing: &Releasing) {
        if !self.nodes.contains_key(&node) {
            self.nodes.insert(node.clone(), Entry { users: 1, ..Entry::default() });
        }
        self.render(state, gateway, &node, releasing);
    }

    fn unroot(&mut self, node: &Node) {
        if self.nodes.contains_key(node) {
            self.unuse(node);
        }
    }

    /// Renders a node anew, and what it newly leads to.
    fn render(&mut self, state: &State, gateway: &str, node: &Node, releasing: &Releasing) {
        let (rendered, leads_to) = render::node(state, gateway, node, releasing);
        let keys: Vec<ResourceKey> = rendered.iter().map(Resource::key).collect();
        let entry = self.nodes.get_mut(node).expect("only what is there is rendered");
        let keys_before = std::mem::replace(&mut entry.keys, keys);
        let before = std::mem::replace(&mut entry.leads_to, leads_to.clone());
        for resource in rendered {
            let key = resource.key();
            let rendered = Arc::new(Rendered::new(resource));
            let same = self.resources.get(&key).is_some_and(|(_, before)| before.digest == rendered.digest);
            if !same {
                self.changed.insert(key.clone());
            }
            self.resources.insert(key, (node.clone(), rendered));
        }
        for next in &leads_to {
            if let Some(entry) = self.nodes.get_mut(next) {
                entry.users += 1;
            } else {
                self.nodes.insert(next.clone(), Entry { users: 1, ..Entry::default() });
                self.render(state, gateway, next, releasing);
            }
        }
        for next in &before {
            self.unuse(next);
        }
        self.forget(
            node,
            keys_before
                .iter()
                .filter(|key| self.nodes.get(node).is_none_or(|entry| !entry.keys.contains(key)))
                .cloned()
                .collect(),
        );
    }

    fn unuse(&mut self, node: &Node) {
        let Some(entry) = self.nodes.get_mut(node) else { return };
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        let Some(entry) = self.nodes.remove(node) else { return };
        for next in &entry.leads_to {
            self.unuse(next);
        }
        self.forget(node, entry.keys);
    }

    /// Takes resources out, unless another object has their names by now.
    fn forget(&mut self, node: &Node, keys: Vec<ResourceKey>) {
        for key in keys {
            if self.resources.get(&key).is_some_and(|(of, _)| of == node) {
                self.resources.remove(&key);
                self.changed.insert(key);
            }
        }
    }
}

#[cfg(test)]
mod tests;

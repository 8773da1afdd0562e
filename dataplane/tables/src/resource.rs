//! What is declared, object by object: how control hands tables to a gateway, and how a change is written.

use crate::declaration::{
    Attachment, Declaration, Endpoint, LoadBalancer, Route, SecurityGroup, Service, SnatPool, TargetGroup, Vpc,
};

/// One declared object, as written. Everything that a configuration file can declare beyond the process itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// A tenant's network.
    Vpc(Vpc),
    /// An attachment with the routes that lead over it. The routes' own `attachment` is this one, whatever they say.
    Attachment(Attachment, Vec<Route>),
    /// An SNAT pool.
    SnatPool(SnatPool),
    /// A security group.
    SecurityGroup(SecurityGroup),
    /// A target group.
    TargetGroup(TargetGroup),
    /// A load balancer.
    LoadBalancer(LoadBalancer),
    /// An endpoint service.
    Service(Service),
    /// An interface endpoint.
    Endpoint(Endpoint),
}

/// The kinds of declared objects, those that others refer to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// [`Resource::Vpc`]
    Vpc,
    /// [`Resource::Attachment`]
    Attachment,
    /// [`Resource::SnatPool`]
    SnatPool,
    /// [`Resource::SecurityGroup`]
    SecurityGroup,
    /// [`Resource::TargetGroup`]
    TargetGroup,
    /// [`Resource::LoadBalancer`]
    LoadBalancer,
    /// [`Resource::Service`]
    Service,
    /// [`Resource::Endpoint`]
    Endpoint,
}

/// Which object: one of a kind has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its identifier or name.
    pub name: String,
}

/// A change of what is declared; applied whole or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Whether `changed` is everything: what is not in it is removed.
    pub full: bool,
    /// New objects, and those that take the place of the one with their key.
    pub changed: Vec<Resource>,
    /// Objects that are no more. What is not declared may be named, and nothing happens.
    pub removed: Vec<ResourceKey>,
}

impl Resource {
    /// What kind it is.
    #[must_use]
    pub const fn kind(&self) -> ResourceKind {
        match self {
            Self::Vpc(_) => ResourceKind::Vpc,
            Self::Attachment(..) => ResourceKind::Attachment,
            Self::SnatPool(_) => ResourceKind::SnatPool,
            Self::SecurityGroup(_) => ResourceKind::SecurityGroup,
            Self::TargetGroup(_) => ResourceKind::TargetGroup,
            Self::LoadBalancer(_) => ResourceKind::LoadBalancer,
            Self::Service(_) => ResourceKind::Service,
            Self::Endpoint(_) => ResourceKind::Endpoint,
        }
    }

    /// Its identifier or name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Vpc(vpc) => &vpc.id,
            Self::Attachment(attachment, _) => &attachment.name,
            Self::SnatPool(pool) => &pool.name,
            Self::SecurityGroup(group) => &group.name,
            Self::TargetGroup(group) => &group.name,
            Self::LoadBalancer(balancer) => &balancer.name,
            Self::Service(service) => &service.id,
            Self::Endpoint(endpoint) => &endpoint.id,
        }
    }

    /// Kind and name.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        ResourceKey { kind: self.kind(), name: self.name().to_owned() }
    }
}

impl Change {
    /// Everything that `declaration` declares beyond the process itself.
    #[must_use]
    pub fn full(declaration: &Declaration) -> Self {
        Self { full: true, changed: declaration.resources().collect(), removed: Vec::new() }
    }
}

impl Declaration {
    /// The objects that it declares, those that others refer to first. A route whose attachment is not declared is not
    /// among them; [`Declaration::check`] reports it.
    pub fn resources(&self) -> impl Iterator<Item = Resource> + '_ {
        let routes = |attachment: &Attachment| {
            self.routes.iter().filter(|route| route.attachment == attachment.name).cloned().collect()
        };
        let vpcs = self.vpcs.iter().cloned().map(Resource::Vpc);
        let attachments =
            self.attachments.iter().map(move |attachment| Resource::Attachment(attachment.clone(), routes(attachment)));
        vpcs.chain(attachments)
            .chain(self.snat_pools.iter().cloned().map(Resource::SnatPool))
            .chain(self.security_groups.iter().cloned().map(Resource::SecurityGroup))
            .chain(self.target_groups.iter().cloned().map(Resource::TargetGroup))
            .chain(self.load_balancers.iter().cloned().map(Resource::LoadBalancer))
            .chain(self.services.iter().cloned().map(Resource::Service))
            .chain(self.endpoints.iter().cloned().map(Resource::Endpoint))
    }
}

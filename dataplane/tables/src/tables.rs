//! What is declared now, and its tables: the only writer.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::check::Checked;
use crate::compile::compile;
use crate::declaration::{Declaration, Route};
use crate::error::Errors;
use crate::resource::{Change, Resource, ResourceKey};
use crate::snapshot::Snapshot;

/// What errors call a change that did not come from a file.
const ORIGIN: &str = "pushed tables";

/// What is declared now, and its tables.
#[derive(Debug)]
pub struct Tables {
    checked: Checked,
    resources: BTreeMap<ResourceKey, Resource>,
    snapshot: Arc<Snapshot>,
}

impl Tables {
    /// Compiles what `checked` declares. Its process part and its ports hold for the life of the tables.
    #[must_use]
    pub fn new(checked: &Checked) -> Self {
        let resources = checked.declaration.resources().map(|resource| (resource.key(), resource)).collect();
        Self { checked: checked.clone(), resources, snapshot: Arc::new(compile(checked, None)) }
    }

    /// Changes what is declared and compiles it.
    ///
    /// # Errors
    /// Everything that is wrong with what would be declared then. Nothing is changed in that case.
    pub fn update(&mut self, change: Change) -> Result<Arc<Snapshot>, Errors> {
        let mut resources = if change.full { BTreeMap::new() } else { self.resources.clone() };
        for key in &change.removed {
            resources.remove(key);
        }
        resources.extend(change.changed.into_iter().map(|resource| (resource.key(), resource)));
        let mut checked = self.declaration(resources.values()).check()?;
        // What is pushed says nothing of where it comes from.
        checked.control.clone_from(&self.checked.control);
        let checked = checked.reload(&self.checked)?;
        let snapshot = Arc::new(compile(&checked, Some(&self.snapshot)));
        (self.checked, self.resources, self.snapshot) = (checked, resources, snapshot);
        Ok(self.snapshot.clone())
    }

    /// The tables.
    #[must_use]
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// What is declared, those objects first that others refer to.
    pub fn resources(&self) -> impl Iterator<Item = Resource> + '_ {
        self.resources.values().cloned()
    }

    /// The process part with other objects.
    fn declaration<'r>(&self, resources: impl Iterator<Item = &'r Resource>) -> Declaration {
        let process = &self.checked.declaration;
        let mut declaration = Declaration {
            file: ORIGIN.to_owned(),
            gateway: process.gateway.clone(),
            workers: process.workers.clone(),
            selection: process.selection.clone(),
            limits: process.limits.clone(),
            ports: process.ports.clone(),
            ..Declaration::default()
        };
        for resource in resources.cloned() {
            match resource {
                Resource::Vpc(vpc) => declaration.vpcs.push(vpc),
                Resource::Attachment(attachment, routes) => {
                    let name = &attachment.name;
                    declaration
                        .routes
                        .extend(routes.into_iter().map(|route| Route { attachment: name.clone(), ..route }));
                    declaration.attachments.push(attachment);
                }
                Resource::SnatPool(pool) => declaration.snat_pools.push(pool),
                Resource::TargetGroup(group) => declaration.target_groups.push(group),
                Resource::LoadBalancer(balancer) => declaration.load_balancers.push(balancer),
                Resource::Service(service) => declaration.services.push(service),
                Resource::Endpoint(endpoint) => declaration.endpoints.push(endpoint),
            }
        }
        declaration
    }
}

//! What gateways report: kept in memory only, because they report it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

use super::model::{GatewayStatus, Kind, TargetGroupSpec, TargetHealth, TargetStatus};
use super::object::AnyObject;
use super::state::State;
use super::{Catalog, Refusal};

/// The views of the gateways on a group's targets, by address and port of the target and id of the gateway.
type Views = BTreeMap<(IpAddr, u16), BTreeMap<String, TargetHealth>>;

/// What gateways report.
#[derive(Debug, Default)]
pub(super) struct Reports {
    gateways: HashMap<String, GatewayStatus>,
    targets: HashMap<String, Views>,
    /// Ids of gateways that are in `targets`.
    viewers: HashSet<String>,
}

impl Catalog {
    /// Notes what is known of a gateway, by its id. Only what it can do and its software are kept over a restart.
    ///
    /// # Errors
    /// When the store failed.
    pub fn set_gateway_status(&self, id: &str, status: GatewayStatus) -> Result<(), Refusal> {
        let kept = GatewayStatus {
            software: status.software.clone(),
            capabilities: status.capabilities.clone(),
            ..GatewayStatus::default()
        };
        let known = self.read().gateway(id).map(|gateway| gateway.status == kept);
        match known {
            None => return Ok(()),
            Some(true) => {}
            Some(false) => self.change(|draft| {
                let gateway = draft.object(Kind::Gateway, id).and_then(|object| object.as_gateway()).cloned();
                if let Some(mut gateway) = gateway {
                    gateway.status = kept;
                    draft.put(AnyObject::Gateway(gateway));
                }
                Ok(())
            })?,
        }
        self.write_reports().gateways.insert(id.to_owned(), status);
        Ok(())
    }

    /// What is known of a gateway now; `None` if it was never heard of since control started.
    #[must_use]
    pub fn gateway_status(&self, id: &str) -> Option<GatewayStatus> {
        self.read_reports().gateways.get(id).cloned()
    }

    /// Notes what a gateway sees of a target; `None`: nothing any more.
    pub fn set_target_view(
        &self,
        group: &str,
        gateway: &str,
        address: IpAddr,
        port: u16,
        health: Option<TargetHealth>,
    ) {
        let mut reports = self.write_reports();
        match health {
            Some(health) => {
                let views = reports.targets.entry(group.to_owned()).or_default();
                views.entry((address, port)).or_default().insert(gateway.to_owned(), health);
                if !reports.viewers.contains(gateway) {
                    reports.viewers.insert(gateway.to_owned());
                }
            }
            None => {
                let Some(views) = reports.targets.get_mut(group) else { return };
                if let Some(view) = views.get_mut(&(address, port)) {
                    view.remove(gateway);
                    if view.is_empty() {
                        views.remove(&(address, port));
                    }
                }
                if views.is_empty() {
                    reports.targets.remove(group);
                }
            }
        }
    }

    /// Forgets everything that a gateway has said of targets.
    pub fn forget_views_of(&self, gateway: &str) {
        let mut reports = self.write_reports();
        // Many that come at once have said nothing yet.
        if !reports.viewers.remove(gateway) {
            return;
        }
        reports.targets.retain(|_, views| {
            views.retain(|_, view| {
                view.remove(gateway);
                !view.is_empty()
            });
            !views.is_empty()
        });
    }

    /// Forgets what was said of an object that is gone.
    pub(super) fn forget_reports_of(&self, kind: Kind, id: &str) {
        match kind {
            Kind::Gateway => drop(self.write_reports().gateways.remove(id)),
            Kind::TargetGroup => drop(self.write_reports().targets.remove(id)),
            _ => {}
        }
    }

    /// An object as callers see it: with what is known beside what is stored.
    pub(super) fn presented(&self, state: &State, object: &AnyObject) -> AnyObject {
        let mut object = object.clone();
        match &mut object {
            AnyObject::Gateway(gateway) => {
                if let Some(status) = self.read_reports().gateways.get(&gateway.metadata.id) {
                    gateway.status = status.clone();
                }
            }
            AnyObject::Service(service) => {
                // Nothing else refers to services.
                service.status.endpoints = state.count_users(&service.metadata.id) as u64;
            }
            AnyObject::TargetGroup(group) => {
                let id = &group.metadata.id;
                let used = state.users_of_kind(id, Kind::LoadBalancer).next().is_some();
                group.status.targets = targets(&group.spec, used, self.read_reports().targets.get(id));
            }
            _ => {}
        }
        object
    }

    fn read_reports(&self) -> RwLockReadGuard<'_, Reports> {
        self.reports.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_reports(&self) -> RwLockWriteGuard<'_, Reports> {
        self.reports.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registered targets in order, then those that are gone but still have flows.
fn targets(spec: &TargetGroupSpec, used: bool, views: Option<&Views>) -> Vec<TargetStatus> {
    let nothing = Views::new();
    let views = views.unwrap_or(&nothing);
    let registered = spec.targets.iter().map(|target| {
        let by_gateway = views.get(&(target.address, target.port)).cloned().unwrap_or_default();
        let health = match (used, &spec.health_check) {
            (false, _) => TargetHealth::Unused,
            (true, None) => TargetHealth::Unavailable,
            (true, Some(_)) => joined(by_gateway.values().copied()),
        };
        TargetStatus { address: target.address, port: target.port, health, by_gateway }
    });
    let is_registered = |key: &(IpAddr, u16)| spec.targets.iter().any(|target| (target.address, target.port) == *key);
    let draining = views
        .iter()
        .filter(|(key, view)| view.values().any(|health| *health == TargetHealth::Draining) && !is_registered(key));
    let draining = draining.map(|(&(address, port), view)| TargetStatus {
        address,
        port,
        health: TargetHealth::Draining,
        by_gateway: view.clone(),
    });
    registered.chain(draining).collect()
}

/// Healthy where any gateway sees it healthy; else the worst.
fn joined(views: impl Iterator<Item = TargetHealth>) -> TargetHealth {
    views.fold(TargetHealth::Initial, |joined, view| match (joined, view) {
        (TargetHealth::Healthy, _) | (_, TargetHealth::Healthy) => TargetHealth::Healthy,
        (joined, view) => joined.max(view),
    })
}

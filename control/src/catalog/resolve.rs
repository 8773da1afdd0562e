//! References: as they are written, the id of an object or the name of one of the owner's own; as they are stored, ids.

use std::fmt::Debug;

use super::access::called;
use super::draft::Draft;
use super::model::{EndpointSpec, EndpointStatus, GatewaySpec, Kind, ServiceSpec, TargetGroupSpec};
use super::object::{AnyObject, Spec, kind_of_id};
use super::{Caller, Code, Refusal};

/// Slots of a group's selection table, for few and for many targets.
pub(super) const SLOTS: [u32; 2] = [16_381, 65_537];
/// Targets that are few.
const FEW: usize = 100;

/// The spec with ids in place of names, checked against what may not change about `old`.
pub(super) fn spec(
    draft: &Draft<'_>,
    caller: &Caller,
    owner: &str,
    spec: &Spec,
    old: Option<&AnyObject>,
) -> Result<Spec, Refusal> {
    let resolver = Resolver { draft, caller, owner, old };
    let mut spec = spec.clone();
    resolver.spec(&mut spec)?;
    Ok(spec)
}

struct Resolver<'r, 's> {
    draft: &'r Draft<'s>,
    caller: &'r Caller,
    owner: &'r str,
    old: Option<&'r AnyObject>,
}

impl Resolver<'_, '_> {
    fn spec(&self, spec: &mut Spec) -> Result<(), Refusal> {
        match spec {
            Spec::Principal(_) | Spec::Gateway(GatewaySpec { .. }) | Spec::Vpc(_) | Spec::SecurityGroup(_) => {}
            Spec::Attachment(spec) => {
                self.gateway("spec.gateway", &mut spec.gateway)?;
                self.anyones(Kind::Vpc, "spec.vpc", &mut spec.vpc)?;
                if let Some(old) = self.old.and_then(AnyObject::as_attachment) {
                    fixed("spec.gateway", &spec.gateway, &old.spec.gateway)?;
                    fixed("spec.vpc", &spec.vpc, &old.spec.vpc)?;
                }
            }
            Spec::SnatPool(spec) => {
                self.own(Kind::Vpc, "spec.vpc", &mut spec.vpc)?;
                for (address, gateway) in &mut spec.pinned {
                    self.gateway(&format!("spec.pinned.{address}"), gateway)?;
                }
                if let Some(old) = self.old.and_then(AnyObject::as_snat_pool) {
                    fixed("spec.vpc", &spec.vpc, &old.spec.vpc)?;
                }
            }
            Spec::TargetGroup(spec) => self.target_group(spec)?,
            Spec::LoadBalancer(spec) => {
                for (at, listener) in spec.listeners.iter_mut().enumerate() {
                    for (number, group) in listener.target_groups.iter_mut().enumerate() {
                        let field = format!("spec.listeners[{at}].target_groups[{number}].target_group");
                        self.own(Kind::TargetGroup, &field, &mut group.target_group)?;
                    }
                }
                self.security_groups(&mut spec.security_groups)?;
            }
            Spec::Service(spec) => self.service(spec)?,
            Spec::Endpoint(spec) => self.endpoint(spec)?,
        }
        Ok(())
    }

    fn target_group(&self, spec: &mut TargetGroupSpec) -> Result<(), Refusal> {
        self.own(Kind::Vpc, "spec.vpc", &mut spec.vpc)?;
        self.own(Kind::SnatPool, "spec.snat_pool", &mut spec.snat_pool)?;
        match self.old.and_then(AnyObject::as_target_group) {
            Some(old) => {
                fixed("spec.vpc", &spec.vpc, &old.spec.vpc)?;
                let slots = spec.slots.or(old.spec.slots);
                if slots != old.spec.slots {
                    fixed("spec.slots", &slots.unwrap_or(0), &old.spec.slots.unwrap_or(0))?;
                }
                spec.slots = slots;
            }
            None => spec.slots = spec.slots.or(Some(SLOTS[usize::from(spec.targets.len() > FEW)])),
        }
        Ok(())
    }

    fn service(&self, spec: &mut ServiceSpec) -> Result<(), Refusal> {
        for (at, balancer) in spec.load_balancers.iter_mut().enumerate() {
            self.own(Kind::LoadBalancer, &format!("spec.load_balancers[{at}]"), balancer)?;
        }
        if let Some(plain) = &mut spec.plain {
            self.own(Kind::Vpc, "spec.plain.vpc", &mut plain.vpc)?;
            self.own(Kind::SnatPool, "spec.plain.snat_pool", &mut plain.snat_pool)?;
        }
        Ok(())
    }

    fn endpoint(&self, spec: &mut EndpointSpec) -> Result<(), Refusal> {
        self.own(Kind::Vpc, "spec.vpc", &mut spec.vpc)?;
        self.security_groups(&mut spec.security_groups)?;
        for (at, address) in spec.addresses.iter_mut().enumerate() {
            if let Some(gateway) = &mut address.gateway {
                self.gateway(&format!("spec.addresses[{at}].gateway"), gateway)?;
            }
        }
        match self.old.and_then(AnyObject::as_endpoint) {
            None => self.service_of_endpoint(&mut spec.service),
            Some(old) => {
                fixed("spec.vpc", &spec.vpc, &old.spec.vpc)?;
                if spec.service != old.spec.service {
                    self.service_of_endpoint(&mut spec.service)?;
                    fixed("spec.service", &spec.service, &old.spec.service)?;
                }
                same_addresses(spec, &old.spec, &old.status)
            }
        }
    }

    /// The service that an endpoint stands for: any whose allow-list has the owner.
    fn service_of_endpoint(&self, reference: &mut String) -> Result<(), Refusal> {
        const FIELD: &str = "spec.service";
        if reference.is_empty() {
            return Err(Refusal::missing(FIELD, "the id of an endpoint service"));
        }
        let found = match kind_of_id(reference) {
            Some(Kind::Service) => self.draft.object(Kind::Service, reference),
            _ => self.draft.named(Kind::Service, self.owner, reference),
        };
        let owner = self.owner;
        let service = found.and_then(|object| object.as_service());
        if let Some(service) = service.filter(|service| allows(&service.spec, owner)) {
            reference.clone_from(&service.metadata.id);
            return Ok(());
        }
        match found.filter(|object| super::access::sees(self.caller, object)) {
            Some(object) => {
                let problem = format!("{owner} is not on the allow-list of {}", called(object));
                let message = format!("{FIELD} = \"{reference}\": {problem}");
                Err(Refusal::new(Code::Forbidden, message).at(FIELD))
            }
            None => Err(self.unknown(FIELD, reference, &format!("of a service to which {owner} may connect"))),
        }
    }

    /// An object of the owner's own.
    fn own(&self, kind: Kind, field: &str, reference: &mut String) -> Result<(), Refusal> {
        if reference.is_empty() {
            return Err(Refusal::missing(field, "the id of an object, or the name of one of the owner's own"));
        }
        let found = match kind_of_id(reference) {
            Some(of) if of == kind => self.draft.object(kind, reference),
            _ => self.draft.named(kind, self.owner, reference),
        };
        match found.filter(|object| object.metadata().owner == self.owner) {
            Some(object) => object.id().clone_into(reference),
            None => return Err(self.unknown(field, reference, &format!("of a {kind} of {}", self.owner))),
        }
        Ok(())
    }

    /// An object by id, whoever owns it, or by name among the owner's own; operators only come here.
    fn anyones(&self, kind: Kind, field: &str, reference: &mut String) -> Result<(), Refusal> {
        match kind_of_id(reference) {
            Some(of) if of == kind && self.draft.object(kind, reference).is_some() => Ok(()),
            _ => self.own(kind, field, reference),
        }
    }

    /// A gateway; only operators name one, but what one has named, the owner may leave as it is.
    fn gateway(&self, field: &str, reference: &mut String) -> Result<(), Refusal> {
        if reference.is_empty() {
            return Err(Refusal::missing(field, "the id or name of a gateway"));
        }
        if !self.caller.is_operator() {
            let pinned = self.old.is_some_and(|old| super::state::references(old).contains(reference.as_str()));
            if pinned {
                return Ok(());
            }
            let message = format!("{field} = \"{reference}\": only operators choose gateways; leave it out");
            return Err(Refusal::new(Code::Forbidden, message).at(field));
        }
        let found = match kind_of_id(reference) {
            Some(Kind::Gateway) => self.draft.object(Kind::Gateway, reference),
            _ => self.draft.named(Kind::Gateway, "", reference),
        };
        match found {
            Some(object) => object.id().clone_into(reference),
            None => return Err(self.unknown(field, reference, "of a gateway")),
        }
        Ok(())
    }

    fn security_groups(&self, groups: &mut [String]) -> Result<(), Refusal> {
        for (at, group) in groups.iter_mut().enumerate() {
            self.own(Kind::SecurityGroup, &format!("spec.security_groups[{at}]"), group)?;
        }
        Ok(())
    }

    fn unknown(&self, field: &str, reference: &str, what: &str) -> Refusal {
        let problem = format_args!("is not the id or name {what}");
        Refusal { code: Code::NotFound, ..Refusal::value(field, format_args!("\"{reference}\""), problem) }
    }
}

/// Whether a principal may connect to a service.
pub(super) fn allows(service: &ServiceSpec, principal: &str) -> bool {
    service.allowed_principals.iter().any(|allowed| allowed == "*" || allowed == principal)
}

fn fixed<T: PartialEq + Debug>(field: &str, new: &T, old: &T) -> Result<(), Refusal> {
    if new == old {
        return Ok(());
    }
    let problem = format!("was {old:?} when the object was made, and stays so; make another object instead");
    Err(Refusal::value(field, format_args!("{new:?}"), problem))
}

/// Addresses stay for an endpoint's life; only the gateway that is to hold one may change.
fn same_addresses(new: &mut EndpointSpec, old: &EndpointSpec, status: &EndpointStatus) -> Result<(), Refusal> {
    fixed("spec.addresses", &new.addresses.len(), &old.addresses.len())?;
    for (at, (address, before)) in new.addresses.iter_mut().zip(&old.addresses).enumerate() {
        fixed(&format!("spec.addresses[{at}].zone"), &address.zone, &before.zone)?;
        let has = status.addresses.get(at).map(|has| has.address);
        if address.address != has {
            fixed(&format!("spec.addresses[{at}].address"), &address.address, &before.address)?;
        }
        address.address = before.address;
    }
    Ok(())
}

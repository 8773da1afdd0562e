//! The checks of a draft: every touched object, and every object that a touched one could break, is right in what would
//! be, in any order of the changes that lead there. Ranges are those of a gateway's file.

mod balancing;
mod features;
mod network;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::access::{called, in_use};
use super::addresses::Network;
use super::draft::Draft;
use super::model::{Kind, Role};
use super::object::AnyObject;
use super::state::principal_key;
use super::{Caller, Code, Refusal};

/// Checks everything that the draft changes.
pub(super) fn all(draft: &Draft<'_>, caller: &Caller) -> Result<(), Refusal> {
    let checker = Checker { draft, caller, networks: RefCell::default() };
    let mut reached = draft.touched().clone();
    let mut queue: Vec<_> = reached.iter().cloned().collect();
    // What is nearest to the call is said first.
    for (kind, id) in draft.touched() {
        checker.touched(*kind, id).map_err(|refusal| draft.placed(id, refusal))?;
    }
    while let Some((kind, id)) = queue.pop() {
        for dependent in checker.dependents(kind, &id) {
            if reached.insert(dependent.clone()) {
                if let Some(object) = draft.object(dependent.0, &dependent.1) {
                    checker.object(object).map_err(|refusal| checker.broken(object, &kind, &id, refusal))?;
                }
                queue.push(dependent);
            }
        }
    }
    Ok(())
}

/// Refuses what is not a name.
pub(super) fn name(name: &str) -> Result<(), Refusal> {
    const FORM: &str = "a name; allowed is 1 to 128 of a-z, 0-9, - and .";
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(fits) {
        return Err(Refusal::form("name", name, FORM));
    }
    if super::change::looks_like_an_id(name) {
        return Err(Refusal::form(
            "name",
            name,
            "a name, but looks like the id of an object; allowed is anything else",
        ));
    }
    Ok(())
}

/// Refuses tags that are too many or too long.
pub(super) fn tags(tags: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if tags.len() > 50 {
        return Err(Refusal { code: Code::TooLarge, ..Refusal::range("tags", tags.len() as i64, (0, 50), " tags") });
    }
    for (key, value) in tags {
        if !(1..=128).contains(&key.chars().count()) || key.contains(char::is_control) {
            return Err(Refusal::form("tags", key, "a tag's key; allowed are 1 to 128 printable characters"));
        }
        if value.chars().count() > 256 || value.contains(char::is_control) {
            let field = format!("tags.{key}");
            return Err(Refusal::form(field, value, "a tag's value; allowed are up to 256 printable characters"));
        }
    }
    Ok(())
}

struct Checker<'c, 's> {
    draft: &'c Draft<'s>,
    caller: &'c Caller,
    networks: RefCell<HashMap<String, Option<Rc<Network>>>>,
}

impl Checker<'_, '_> {
    /// An object that the call changes.
    fn touched(&self, kind: Kind, id: &str) -> Result<(), Refusal> {
        match self.draft.object(kind, id) {
            Some(object) => {
                self.object(object)?;
                self.still_an_operator(kind, id)
            }
            None => self.gone(kind, id),
        }
    }

    /// An object as it would be.
    fn object(&self, object: &AnyObject) -> Result<(), Refusal> {
        match object {
            AnyObject::Principal(_) => {}
            AnyObject::Gateway(gateway) => zone("spec.zone", gateway.spec.zone.as_deref())?,
            AnyObject::Vpc(vpc) => self.vpc(&vpc.spec)?,
            AnyObject::Attachment(attachment) => self.attachment(&attachment.metadata.id, &attachment.spec)?,
            AnyObject::SnatPool(pool) => self.snat_pool(&pool.metadata.id, &pool.spec)?,
            AnyObject::SecurityGroup(group) => self.security_group(&group.spec)?,
            AnyObject::TargetGroup(group) => self.target_group(&group.metadata.id, &group.spec)?,
            AnyObject::LoadBalancer(balancer) => self.load_balancer(&balancer.spec)?,
            AnyObject::Service(service) => self.service(&service.spec)?,
            AnyObject::Endpoint(endpoint) => {
                if !object.is_deleted() {
                    self.endpoint(&endpoint.metadata.id, &endpoint.spec, &endpoint.status)?;
                }
            }
        }
        self.features(object)
    }

    /// An object that would be gone.
    fn gone(&self, kind: Kind, id: &str) -> Result<(), Refusal> {
        let Some(before) = self.draft.before(kind, id) else { return Ok(()) };
        let users: Vec<_> = match before.as_principal() {
            None if kind == Kind::Attachment => self.only_through(id),
            None => self.draft.users(id).collect(),
            Some(principal) => {
                let name = &principal.metadata.name;
                let owned = Kind::ALL.into_iter().flat_map(|kind| self.draft.owned(kind, name));
                let owned = owned.filter(|object| object.id() != id).map(|object| (object.kind(), object.id()));
                owned.chain(self.draft.users(&principal_key(name))).collect()
            }
        };
        in_use(self.draft, self.caller, &called(before), users.into_iter())?;
        self.still_an_operator(kind, id)
    }

    /// Refuses to leave the catalog without an operator.
    fn still_an_operator(&self, kind: Kind, id: &str) -> Result<(), Refusal> {
        let operator =
            |object: &AnyObject| object.as_principal().is_some_and(|principal| principal.spec.role == Role::Operator);
        let was = kind == Kind::Principal && self.draft.before(kind, id).is_some_and(|before| operator(before));
        if !was || self.draft.all(Kind::Principal).any(|object| operator(object)) {
            return Ok(());
        }
        Err(Refusal::new(Code::InUse, "there must be an operator left: make another one first"))
    }

    /// Objects that a change of this one could break.
    fn dependents(&self, kind: Kind, id: &str) -> Vec<(Kind, String)> {
        let of = |id: &str, kinds: &[Kind]| -> Vec<_> {
            let users = |&kind: &Kind| self.draft.users_of_kind(id, kind).map(move |id| (kind, id.to_owned()));
            kinds.iter().flat_map(users).collect()
        };
        let in_vpc = [Kind::SnatPool, Kind::TargetGroup, Kind::Service, Kind::Endpoint];
        match kind {
            Kind::Vpc if self.draft.before(kind, id).is_some() => of(id, &in_vpc),
            Kind::Attachment => {
                let object = self.draft.object(kind, id).or_else(|| self.draft.before(kind, id));
                object.and_then(|object| object.as_attachment()).map_or_else(Vec::new, |a| of(&a.spec.vpc, &in_vpc))
            }
            Kind::SnatPool => of(id, &[Kind::TargetGroup, Kind::Service]),
            Kind::TargetGroup => of(id, &[Kind::LoadBalancer]),
            Kind::LoadBalancer => of(id, &[Kind::Service]),
            _ => Vec::new(),
        }
    }

    /// The refusal of a change that would break another object.
    fn broken(&self, object: &AnyObject, kind: &Kind, id: &str, refusal: Refusal) -> Refusal {
        let what = self.draft.object(*kind, id).or_else(|| self.draft.before(*kind, id));
        let what = what.map_or_else(|| id.to_owned(), |what| called(what));
        let shown = super::access::sees(self.caller, object);
        let message = if shown {
            format!("with this change of {what}, {} would be wrong: {}", called(object), refusal.message)
        } else {
            format!("with this change of {what}, an object of another principal would be wrong")
        };
        let users = if shown { vec![object.id().to_owned()] } else { Vec::new() };
        self.draft.placed(id, Refusal { message, field: None, users, ..refusal })
    }

    fn network(&self, vpc: &str) -> Option<Rc<Network>> {
        let mut networks = self.networks.borrow_mut();
        networks.entry(vpc.to_owned()).or_insert_with(|| Network::of(self.draft, vpc).map(Rc::new)).clone()
    }
}

/// A number in a range.
fn number(
    field: impl FnOnce() -> String,
    value: impl Into<i64>,
    range: (i64, i64),
    unit: &'static str,
) -> Result<(), Refusal> {
    let value = value.into();
    if (range.0..=range.1).contains(&value) { Ok(()) } else { Err(Refusal::range(field(), value, range, unit)) }
}

/// The name of a zone.
fn zone(field: impl Into<String>, zone: Option<&str>) -> Result<(), Refusal> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match zone {
        Some(zone) if zone.is_empty() || zone.len() > 64 || !zone.bytes().all(fits) => {
            Err(Refusal::form(field, zone, "a zone; allowed is 1 to 64 of a-z, 0-9 and -"))
        }
        _ => Ok(()),
    }
}

/// Refuses what is there twice.
fn unique<T: Ord>(
    values: impl Iterator<Item = T>,
    field: impl Fn(usize) -> String,
    shown: impl Fn(&T) -> String,
) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for (at, value) in values.enumerate() {
        let text = shown(&value);
        if !seen.insert(value) {
            return Err(Refusal::value(field(at), text, "is there twice; each may be there once"));
        }
    }
    Ok(())
}

//! Making, replacing and deleting objects.

use std::collections::BTreeMap;

use super::access::{called, find, may_change};
use super::draft::Draft;
use super::model::{EndpointState, Kind, Metadata, TargetSpec};
use super::object::{AnyObject, Spec, kind_of_id};
use super::{Caller, Catalog, Code, New, Refusal, check, life, resolve};
use std::net::IpAddr;

impl Catalog {
    /// Makes an object. With an idempotency token (1…128 printable characters), the same call within 24 hours gives the
    /// same answer and makes nothing anew.
    ///
    /// # Errors
    /// When something about it is not allowed, or the token was used for another call.
    pub fn create(&self, caller: &Caller, new: New, token: Option<&str>) -> Result<AnyObject, Refusal> {
        let call = ("create", new.spec.kind(), &new);
        self.idempotent(caller, token, &call, |draft| {
            let id = created(draft, caller, &new)?;
            settle(draft, caller)?;
            Ok((new.spec.kind(), id))
        })
    }

    /// Replaces an object's spec and, if given, its tags. `if_version`: only if it is of that version.
    ///
    /// # Errors
    /// When it is not there, something about it is not allowed, or it is of another version.
    #[expect(clippy::too_many_arguments, reason = "a call of the API has these parts")]
    pub fn replace(
        &self,
        caller: &Caller,
        kind: Kind,
        reference: &str,
        spec: Spec,
        tags: Option<BTreeMap<String, String>>,
        if_version: Option<u64>,
        token: Option<&str>,
    ) -> Result<AnyObject, Refusal> {
        let call = ("replace", kind, reference, &spec, &tags, if_version);
        self.idempotent(caller, token, &call, |draft| {
            let id = find(draft, caller, kind, reference)?.id().to_owned();
            replaced(draft, caller, (kind, &id), &spec, tags.as_ref(), if_version)?;
            settle(draft, caller)?;
            Ok((kind, id))
        })
    }

    /// Deletes an object that nothing uses. An endpoint is `deleting` until its gateways have let it go.
    ///
    /// # Errors
    /// When it is not there, is used, or is of another version.
    pub fn delete(
        &self,
        caller: &Caller,
        kind: Kind,
        reference: &str,
        if_version: Option<u64>,
    ) -> Result<AnyObject, Refusal> {
        let object = self.change(|draft| {
            let object = find(draft, caller, kind, reference)?.clone();
            deleted(draft, caller, &object, if_version)?;
            settle(draft, caller)?;
            Ok(draft.object(kind, object.id()).unwrap_or(&object).clone())
        })?;
        Ok(self.presented(&self.read(), &object))
    }

    /// Adds targets to a group. One with the address and port of a registered one takes its place.
    ///
    /// # Errors
    /// When the group is not there, or a target is not allowed.
    pub fn register_targets(
        &self,
        caller: &Caller,
        group: &str,
        targets: Vec<TargetSpec>,
    ) -> Result<AnyObject, Refusal> {
        self.change_targets(caller, group, |registered| {
            for target in targets {
                match registered.iter_mut().find(|old| (old.address, old.port) == (target.address, target.port)) {
                    Some(old) => *old = target,
                    None => registered.push(target),
                }
            }
            Ok(())
        })
    }

    /// Takes targets, by address and port, out of a group.
    ///
    /// # Errors
    /// When the group, or a target in it, is not there.
    pub fn deregister_targets(
        &self,
        caller: &Caller,
        group: &str,
        targets: &[(IpAddr, u16)],
    ) -> Result<AnyObject, Refusal> {
        self.change_targets(caller, group, |registered| {
            for (at, (address, port)) in targets.iter().enumerate() {
                let before = registered.len();
                registered.retain(|target| (target.address, target.port) != (*address, *port));
                if registered.len() == before {
                    let message = format!("target {address} port {port} is not registered in the target group");
                    return Err(Refusal::new(Code::NotFound, message).at(format!("targets[{at}]")));
                }
            }
            Ok(())
        })
    }

    fn change_targets(
        &self,
        caller: &Caller,
        group: &str,
        change: impl FnOnce(&mut Vec<TargetSpec>) -> Result<(), Refusal>,
    ) -> Result<AnyObject, Refusal> {
        let object = self.change(|draft| {
            let object = find(draft, caller, Kind::TargetGroup, group)?;
            let id = object.id().to_owned();
            let Spec::TargetGroup(mut spec) = object.spec() else {
                return Err(Refusal::new(Code::NotFound, format!("there is no target-group \"{group}\"")));
            };
            change(&mut spec.targets)?;
            replaced(draft, caller, (Kind::TargetGroup, &id), &Spec::TargetGroup(spec), None, None)?;
            settle(draft, caller)?;
            draft.object(Kind::TargetGroup, &id).cloned().ok_or_else(|| gone(&id))
        })?;
        Ok(self.presented(&self.read(), &object))
    }
}

fn gone(id: &str) -> Refusal {
    Refusal::new(Code::Internal, format!("{id} is gone in its own change"))
}

/// Puts a new object into the draft, its references resolved, and gives its id.
pub(super) fn created(draft: &mut Draft<'_>, caller: &Caller, new: &New) -> Result<String, Refusal> {
    let kind = new.spec.kind();
    may_change(caller, kind)?;
    let owner = owner(draft, caller, new.owner.as_deref())?;
    let id = loop {
        let id = super::writing::random_id(kind.id_prefix())?;
        if draft.object(kind, &id).is_none() && draft.before(kind, &id).is_none() {
            break id;
        }
    };
    let name = new.name.clone().unwrap_or_else(|| id.clone());
    if let Some(name) = &new.name {
        check::name(name)?;
        let taken = draft.named(kind, &owner, name).filter(|object| !object.is_deleted());
        if let Some(object) = taken {
            let message =
                format!("name = \"{name}\": is taken by {}; names are unique by owner and kind", called(object));
            return Err(Refusal::new(Code::AlreadyExists, message).at("name"));
        }
    }
    check::tags(&new.tags)?;
    let spec = resolve::spec(draft, caller, &owner, &new.spec, None)?;
    let now = draft.now;
    let tags = new.tags.clone();
    let metadata = Metadata { id: id.clone(), name, owner, version: 1, created: now, updated: now, tags };
    draft.put(AnyObject::new(metadata, spec));
    Ok(id)
}

/// Whose a new object is.
fn owner(draft: &Draft<'_>, caller: &Caller, owner: Option<&str>) -> Result<String, Refusal> {
    let Some(owner) = owner.filter(|&owner| owner != caller.principal) else { return Ok(caller.principal.clone()) };
    if !caller.is_operator() {
        let message = format!("only operators make objects for others; {} is a tenant", caller.principal);
        return Err(Refusal::new(Code::Forbidden, message).at("owner"));
    }
    match draft.named(Kind::Principal, "", owner) {
        Some(principal) => Ok(principal.metadata().name.clone()),
        None => {
            Err(Refusal::new(Code::NotFound, format!("owner = \"{owner}\": is not the name of a principal"))
                .at("owner"))
        }
    }
}

/// Puts the new version of an object into the draft, if it differs.
pub(super) fn replaced(
    draft: &mut Draft<'_>,
    caller: &Caller,
    (kind, id): (Kind, &str),
    spec: &Spec,
    tags: Option<&BTreeMap<String, String>>,
    if_version: Option<u64>,
) -> Result<(), Refusal> {
    may_change(caller, kind)?;
    let old = draft.object(kind, id).ok_or_else(|| gone(id))?.clone();
    of_version(&old, if_version)?;
    if spec.kind() != kind {
        let message = format!("spec: is that of a {}; {} is a {kind}", spec.kind(), called(&old));
        return Err(Refusal::new(Code::Invalid, message).at("spec"));
    }
    if let Some(endpoint) = old.as_endpoint()
        && matches!(endpoint.status.state, EndpointState::Deleting | EndpointState::Deleted)
    {
        let state = life::state_name(endpoint.status.state);
        return Err(Refusal::new(Code::Conflict, format!("{} is {state}; it cannot be changed", called(&old))));
    }
    let spec = resolve::spec(draft, caller, &old.metadata().owner, spec, Some(&old))?;
    if let Some(tags) = tags {
        check::tags(tags)?;
    }
    let same_tags = tags.is_none_or(|tags| *tags == old.metadata().tags);
    if spec == old.spec() && same_tags {
        return Ok(());
    }
    let mut object = (*old).clone();
    object.set_spec(spec);
    let now = draft.now;
    let metadata = object.metadata_mut();
    metadata.version += 1;
    metadata.updated = now;
    if let Some(tags) = tags {
        metadata.tags.clone_from(tags);
    }
    draft.put(object);
    Ok(())
}

/// Takes an object out of the draft, or lets an endpoint begin to go.
pub(super) fn deleted(
    draft: &mut Draft<'_>,
    caller: &Caller,
    object: &AnyObject,
    if_version: Option<u64>,
) -> Result<(), Refusal> {
    may_change(caller, object.kind())?;
    of_version(object, if_version)?;
    match object {
        AnyObject::Endpoint(endpoint) => life::begin_to_go(draft, endpoint),
        _ => {
            draft.remove(object.kind(), object.id());
            Ok(())
        }
    }
}

fn of_version(object: &AnyObject, version: Option<u64>) -> Result<(), Refusal> {
    let found = object.metadata().version;
    match version {
        Some(version) if version != found => {
            let message = format!("{} is of version {found}, not {version}: it was changed meanwhile", called(object));
            Err(Refusal::new(Code::Conflict, message))
        }
        _ => Ok(()),
    }
}

/// Lets what the changes of the draft bring with them happen, and checks all of it together.
pub(super) fn settle(draft: &mut Draft<'_>, caller: &Caller) -> Result<(), Refusal> {
    let touched: Vec<_> = draft.touched().iter().cloned().collect();
    for (kind, id) in &touched {
        match kind {
            Kind::Service => life::reconcile(draft, id),
            Kind::Endpoint if draft.before(*kind, id).is_none() => {
                life::begin(draft, id).map_err(|refusal| draft.placed(id, refusal))?;
            }
            Kind::Principal if draft.object(*kind, id).is_none() => draft.forget_tokens_of(id),
            _ => {}
        }
    }
    check::all(draft, caller)
}

/// Whether a text could be taken for the id of some object.
pub(super) fn looks_like_an_id(text: &str) -> bool {
    kind_of_id(text).is_some()
}

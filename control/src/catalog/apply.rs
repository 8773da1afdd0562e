//! The whole desired state of a caller's own objects, compared with what is and made so in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::change::{created, deleted, replaced, settle};
use super::draft::Draft;
use super::model::{EndpointState, Kind};
use super::object::{AnyObject, Manifest};
use super::{Caller, Catalog, Code, New, Refusal, life};

/// Most objects in one call.
const MANIFESTS: usize = 200_000;

/// What is to be done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is made.
    Create,
    /// Its spec or tags change.
    Change,
    /// It is deleted.
    Delete,
    /// It is as it should be.
    Keep,
}

/// A value that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Difference {
    /// Where, such as `spec.listeners[0].port`.
    pub field: String,
    /// The value as it is; `None`: there is none.
    pub before: Option<Value>,
    /// The value as it will be; `None`: there will be none.
    pub after: Option<Value>,
}

/// What is to be done with one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What changes, for [`Action::Change`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// What is to be done, objects before those that refer to them, and deletions last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Plan {
    /// Step by step.
    pub steps: Vec<Step>,
}

impl Catalog {
    /// Makes the caller's own objects what the manifests say, all or none. Manifests refer to each other by name, in any
    /// order. `prune` deletes objects of the caller that no manifest names, but for principals. With `dry_run` the plan is
    /// made and checked, and nothing is changed.
    ///
    /// # Errors
    /// When anything about it is not allowed; the field begins with `manifests[…]`.
    pub fn apply(
        &self,
        caller: &Caller,
        manifests: Vec<Manifest>,
        prune: bool,
        dry_run: bool,
    ) -> Result<Plan, Refusal> {
        if manifests.len() > MANIFESTS {
            let range = (0, MANIFESTS as i64);
            let refusal = Refusal::range("manifests", manifests.len() as i64, range, " objects");
            return Err(Refusal { code: Code::TooLarge, ..refusal });
        }
        if dry_run {
            let state = self.read();
            return planned(&mut Draft::new(&state, self.now()), caller, &manifests, prune);
        }
        self.change(|draft| planned(draft, caller, &manifests, prune))
    }
}

/// Puts everything into the draft, checks it, and says what it is.
fn planned(draft: &mut Draft<'_>, caller: &Caller, manifests: &[Manifest], prune: bool) -> Result<Plan, Refusal> {
    let place = |at: usize| format!("manifests[{at}]");
    let mut named = BTreeMap::new();
    for (at, manifest) in manifests.iter().enumerate() {
        if let Some(first) = named.insert((manifest.kind, manifest.name.as_str()), at) {
            let message = format!("{}: {} \"{}\" is also {}", place(at), manifest.kind, manifest.name, place(first));
            return Err(Refusal::new(Code::Invalid, message).at(format!("{}.name", place(at))));
        }
    }
    let mut steps = Vec::new();
    for kind in Kind::ALL {
        for (&(_, name), &at) in named.range((kind, "")..).take_while(|((of, _), _)| *of == kind) {
            let in_place = |refusal: Refusal| {
                let field = refusal.field.as_ref().map_or_else(|| place(at), |field| format!("{}.{field}", place(at)));
                let message = format!("{} ({kind} \"{name}\"): {}", place(at), refusal.message);
                Refusal { message, field: Some(field), ..refusal }
            };
            let (id, step) = applied(draft, caller, &manifests[at]).map_err(in_place)?;
            draft.places.insert(id, format!("{} ({kind} \"{name}\")", place(at)));
            steps.push(step);
        }
    }
    if prune {
        for kind in Kind::ALL.into_iter().rev().filter(|kind| *kind != Kind::Principal) {
            let going = |object: &AnyObject| {
                let state = object.as_endpoint().map(|endpoint| endpoint.status.state);
                matches!(state, Some(EndpointState::Deleting | EndpointState::Deleted))
            };
            let owned = draft.owned(kind, &caller.principal);
            let surplus =
                owned.filter(|object| !named.contains_key(&(kind, object.metadata().name.as_str())) && !going(object));
            let surplus: Vec<_> = surplus.cloned().collect();
            for object in surplus {
                deleted(draft, caller, &object, None)?;
                let name = object.metadata().name.clone();
                steps.push(Step { action: Action::Delete, kind, name, differences: Vec::new() });
            }
        }
    }
    settle(draft, caller)?;
    Ok(Plan { steps })
}

/// Puts one object into the draft; its id, and what is done with it.
fn applied(draft: &mut Draft<'_>, caller: &Caller, manifest: &Manifest) -> Result<(String, Step), Refusal> {
    let Manifest { kind, name, tags, spec } = manifest;
    if spec.kind() != *kind {
        return Err(Refusal::new(Code::Invalid, format!("spec: is that of a {}", spec.kind())).at("spec"));
    }
    let step = |action, differences| Step { action, kind: *kind, name: name.clone(), differences };
    let old = draft.named(*kind, &caller.principal, name).filter(|object| !object.is_deleted()).cloned();
    let Some(old) = old else {
        let new = New { name: Some(name.clone()), owner: None, tags: tags.clone(), spec: spec.clone() };
        return Ok((created(draft, caller, &new)?, step(Action::Create, Vec::new())));
    };
    if let Some(endpoint) = old.as_endpoint()
        && endpoint.status.state == EndpointState::Deleting
    {
        let state = life::state_name(endpoint.status.state);
        let message = format!("endpoint {} of that name is {state}; apply again when it is gone", endpoint.metadata.id);
        return Err(Refusal::new(Code::Conflict, message).at("name"));
    }
    let id = old.id().to_owned();
    replaced(draft, caller, (*kind, &id), spec, Some(tags), None)?;
    let differences = draft.object(*kind, &id).map_or_else(Vec::new, |new| differences(&old, new));
    let action = if differences.is_empty() { Action::Keep } else { Action::Change };
    Ok((id, step(action, differences)))
}

/// Where the specs and tags of two objects differ.
fn differences(old: &AnyObject, new: &AnyObject) -> Vec<Difference> {
    let value = |object: &AnyObject| serde_json::json!({ "tags": object.metadata().tags, "spec": object.spec() });
    let mut found = Vec::new();
    compare(String::new(), Some(&value(old)), Some(&value(new)), &mut found);
    found
}

fn compare(field: String, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Difference>) {
    match (old, new) {
        _ if old == new => {}
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
                let field = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
                compare(field, before.get(key), after.get(key), found);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for at in 0..before.len().max(after.len()) {
                compare(format!("{field}[{at}]"), before.get(at), after.get(at), found);
            }
        }
        _ => found.push(Difference { field, before: old.cloned(), after: new.cloned() }),
    }
}

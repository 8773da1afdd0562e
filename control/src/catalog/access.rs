//! Who sees and touches what.

use std::sync::Arc;

use super::draft::Draft;
use super::model::Kind;
use super::object::{AnyObject, kind_of_id};
use super::{Caller, Code, Refusal};

/// Whether the caller may see an object.
pub(super) fn sees(caller: &Caller, object: &AnyObject) -> bool {
    caller.is_operator() || object.metadata().owner == caller.principal
}

/// The object that the caller means.
///
/// # Errors
/// When there is none that the caller may see: the same for what belongs to another and for what is not there.
pub(super) fn find<'d>(
    draft: &'d Draft<'_>,
    caller: &Caller,
    kind: Kind,
    reference: &str,
) -> Result<&'d Arc<AnyObject>, Refusal> {
    let by_id = || draft.object(kind, reference);
    let found = match kind_of_id(reference) {
        Some(of) if of == kind => by_id(),
        _ => draft.named(kind, &caller.principal, reference),
    };
    found.filter(|object| sees(caller, object)).ok_or_else(|| {
        let mut shown: String = reference.chars().take(128).collect();
        shown = shown.replace(char::is_control, " ");
        Refusal::new(
            Code::NotFound,
            format!("there is no {kind} \"{shown}\" among the objects of {}", caller.principal),
        )
    })
}

/// Refuses kinds that only operators make and change.
pub(super) fn may_change(caller: &Caller, kind: Kind) -> Result<(), Refusal> {
    match kind {
        Kind::Principal | Kind::Gateway | Kind::Attachment if !caller.is_operator() => Err(Refusal::new(
            Code::Forbidden,
            format!("only operators make and change a {kind}; {} is a tenant", caller.principal),
        )),
        _ => Ok(()),
    }
}

/// How an error calls an object.
pub(super) fn called(object: &AnyObject) -> String {
    let metadata = object.metadata();
    if metadata.name == metadata.id {
        format!("{} {}", object.kind(), metadata.id)
    } else {
        format!("{} \"{}\" ({})", object.kind(), metadata.name, metadata.id)
    }
}

/// The error for something that others use; it names those that the caller may see, and counts the others.
pub(super) fn in_use<'d>(
    draft: &'d Draft<'_>,
    caller: &Caller,
    what: &str,
    users: impl Iterator<Item = (Kind, &'d str)>,
) -> Result<(), Refusal> {
    const NAMED: usize = 8;
    let mut seen = Vec::new();
    let mut named = Vec::new();
    let mut hidden = 0;
    for (kind, id) in users {
        match draft.object(kind, id) {
            Some(object) if sees(caller, object) => {
                if named.len() < NAMED {
                    named.push(called(object));
                }
                seen.push(id.to_owned());
            }
            _ => hidden += 1,
        }
    }
    if seen.is_empty() && hidden == 0 {
        return Ok(());
    }
    if seen.len() > named.len() {
        named.push(format!("{} more", seen.len() - named.len()));
    }
    match hidden {
        0 => {}
        1 => named.push("1 object of another principal".to_owned()),
        _ => named.push(format!("{hidden} objects of other principals")),
    }
    seen.truncate(1000);
    Err(Refusal { users: seen, ..Refusal::new(Code::InUse, format!("{what} is used by {}", named.join(", "))) })
}

//! What commands about objects ask of control, and what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_control::catalog::model::Kind;
use serde_json::{Value, json};

use super::fields::{put, remove};
use super::{show, wait};
use crate::client::{Api, ClientError, Request, escape};

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Create {
        name: Option<String>,
        owner: Option<String>,
        tags: BTreeMap<String, String>,
        spec: Value,
        key: Option<String>,
    },
    List {
        /// Parameters of the query.
        filters: Vec<(String, String)>,
        limit: Option<u64>,
    },
    Show {
        reference: String,
    },
    Update {
        reference: String,
        /// Paths in the spec, and what they are to be.
        set: Vec<(&'static str, Value)>,
        /// Paths in the spec that are to go.
        unset: Vec<&'static str>,
        tags: BTreeMap<String, String>,
        untag: Vec<String>,
        if_version: Option<u64>,
    },
    Delete {
        references: Vec<String>,
        if_version: Option<u64>,
    },
    Connections {
        service: String,
    },
    Accept {
        service: String,
        endpoint: String,
    },
    Reject {
        service: String,
        endpoint: String,
        reason: Option<String>,
    },
    Targets {
        group: String,
        /// Else: deregister.
        register: bool,
        targets: Vec<Value>,
    },
    ListTargets {
        group: String,
    },
    Drain {
        gateway: String,
        drained: bool,
    },
    Token {
        principal: String,
    },
    Tokens {
        principal: String,
    },
    Revoke {
        principal: String,
        /// Ids of its tokens.
        tokens: Vec<String>,
    },
}

/// What a command prints.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Output {
    /// An object, and what became of it.
    Changed(&'static str, Kind, Value),
    /// Everything about an object.
    One(Value),
    /// A listing.
    Many(Kind, Vec<Value>),
    Connections(Vec<Value>),
    /// Targets as a group's status has them.
    Targets(Vec<Value>),
    Token(Value),
    /// What is known of the tokens of a principal.
    Tokens(Vec<Value>),
}

impl Output {
    /// As JSON, as control said it.
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Changed(_, _, object) | Self::One(object) | Self::Token(object) => object.clone(),
            Self::Many(_, objects) | Self::Connections(objects) | Self::Targets(objects) | Self::Tokens(objects) => {
                Value::Array(objects.clone())
            }
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Changed(done, kind, object) => show::changed(done, *kind, object),
            Self::One(object) => show::one(object),
            Self::Many(kind, objects) => show::many(*kind, objects),
            Self::Connections(connections) => show::connections(connections),
            Self::Targets(targets) => show::targets(targets),
            Self::Token(answer) => answer["token"].as_str().unwrap_or_default().to_owned(),
            Self::Tokens(tokens) => show::tokens(tokens),
        }
    }
}

/// Asks it.
pub(super) fn run(api: &Api, kind: Kind, action: &Action, wait: Option<Duration>) -> Result<Output, ClientError> {
    match action {
        Action::Create { name, owner, tags, spec, key } => {
            let body = json!({ "name": name, "owner": owner, "tags": tags, "spec": spec });
            let key = match key {
                Some(key) => key.clone(),
                None => fresh_key()?,
            };
            let made = api.send(&Request::post(collection(kind), body).idempotency_key(key))?;
            let made = match wait {
                Some(patience) => wait::available(api, id(&made), patience)?,
                None => made,
            };
            Ok(Output::Changed("created", kind, made))
        }
        Action::List { filters, limit } => Ok(Output::Many(kind, list(api, kind, filters, *limit)?)),
        Action::Show { reference } => Ok(Output::One(api.send(&Request::get(path(kind, reference)))?)),
        Action::Update { reference, set, unset, tags, untag, if_version } => {
            let edit = |object: &mut Value| {
                for path in unset {
                    remove(&mut object["spec"], path);
                }
                for (path, value) in set {
                    put(&mut object["spec"], path, value.clone());
                }
                for key in untag {
                    remove_tag(object, key);
                }
                for (key, value) in tags {
                    object["tags"][key] = value.as_str().into();
                }
            };
            let changed = replace(api, kind, reference, *if_version, edit)?;
            let changed = match wait {
                Some(patience) => wait::available(api, id(&changed), patience)?,
                None => changed,
            };
            Ok(Output::Changed("updated", kind, changed))
        }
        Action::Delete { references, if_version } => {
            let mut deleted = Vec::new();
            for reference in references {
                deleted.push(api.send(&Request::delete(path(kind, reference)).if_version(*if_version))?);
            }
            if let Some(patience) = wait {
                deleted.iter().try_for_each(|object| wait::deleted(api, id(object), patience))?;
            }
            match <[Value; 1]>::try_from(deleted) {
                Ok([one]) => Ok(Output::Changed("deleted", kind, one)),
                Err(many) => Ok(Output::Many(kind, many)),
            }
        }
        Action::Connections { service } => {
            let answer = api.send(&Request::get(format!("{}/connections", path(Kind::Service, service))))?;
            Ok(Output::Connections(items(answer)))
        }
        Action::Accept { service, endpoint } => {
            let connection = api.send(&Request::post(connection(service, endpoint, "accept"), json!({})))?;
            match wait {
                // The provider does not see the endpoint, but the connection's state is the endpoint's.
                Some(patience) => Ok(Output::Connections(vec![wait::connected(api, service, endpoint, patience)?])),
                None => Ok(Output::Connections(vec![connection])),
            }
        }
        Action::Reject { service, endpoint, reason } => {
            let body = json!({ "reason": reason });
            Ok(Output::Connections(vec![api.send(&Request::post(connection(service, endpoint, "reject"), body))?]))
        }
        Action::Targets { group, register, targets } => {
            let path = format!("{}/targets", path(Kind::TargetGroup, group));
            let request = if *register {
                Request::post(path, json!({ "targets": targets }))
            } else {
                let places =
                    targets.iter().map(|target| json!({ "address": target["address"], "port": target["port"] }));
                Request::delete(path).body(json!({ "targets": places.collect::<Vec<_>>() }))
            };
            let changed = api.send(&request)?;
            match (wait, register) {
                (None, _) => Ok(Output::Targets(show::targets_of(&changed))),
                (Some(patience), true) => Ok(Output::Targets(wait::healthy(api, group, targets, patience)?)),
                (Some(patience), false) => Ok(Output::Targets(wait::deregistered(api, group, targets, patience)?)),
            }
        }
        Action::ListTargets { group } => {
            let group = api.send(&Request::get(path(Kind::TargetGroup, group)))?;
            Ok(Output::Targets(show::targets_of(&group)))
        }
        Action::Drain { gateway, drained } => {
            let edit = |object: &mut Value| object["spec"]["drained"] = (*drained).into();
            let changed = replace(api, Kind::Gateway, gateway, None, edit)?;
            if let Some(patience) = wait {
                wait::released(api, id(&changed), patience)?;
            }
            Ok(Output::Changed(if *drained { "drained" } else { "undrained" }, kind, changed))
        }
        Action::Token { principal } => {
            let request = Request::post(format!("{}/tokens", path(Kind::Principal, principal)), json!({}));
            Ok(Output::Token(api.send(&request)?))
        }
        Action::Tokens { principal } => tokens(api, principal),
        Action::Revoke { principal, tokens: ids } => {
            for token in ids {
                api.send(&Request::delete(format!("{}/tokens/{}", path(Kind::Principal, principal), escape(token))))?;
            }
            // What is left.
            tokens(api, principal)
        }
    }
}

fn tokens(api: &Api, principal: &str) -> Result<Output, ClientError> {
    let answer = api.send(&Request::get(format!("{}/tokens", path(Kind::Principal, principal))))?;
    Ok(Output::Tokens(items(answer)))
}

/// Where all objects of a kind are.
pub(super) fn collection(kind: Kind) -> String {
    format!("/v1/{}", kind.plural())
}

/// Where an object is.
pub(super) fn path(kind: Kind, reference: &str) -> String {
    format!("{}/{}", collection(kind), escape(reference))
}

fn connection(service: &str, endpoint: &str, verb: &str) -> String {
    format!("{}/connections/{}/{verb}", path(Kind::Service, service), escape(endpoint))
}

pub(super) fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap_or_default()
}

/// What a listing lists.
pub(super) fn items(answer: Value) -> Vec<Value> {
    match answer {
        Value::Array(items) => items,
        Value::Object(mut object) => {
            let key = ["objects", "items", "connections", "tokens"].into_iter().find(|key| object.contains_key(*key));
            key.and_then(|key| object.remove(key)).map(items).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// All objects that pass the filters, page by page.
pub(super) fn list(
    api: &Api,
    kind: Kind,
    filters: &[(String, String)],
    limit: Option<u64>,
) -> Result<Vec<Value>, ClientError> {
    /// Largest page of the API.
    const PAGE: u64 = 1000;
    let mut objects = Vec::new();
    let mut page: Option<String> = None;
    loop {
        let missing = limit.map_or(PAGE, |limit| limit.saturating_sub(objects.len() as u64)).min(PAGE);
        let mut query = format!("?limit={missing}");
        let token = page.as_ref().map(|token| ("page".to_owned(), token.clone()));
        for (key, value) in filters.iter().cloned().chain(token) {
            query.push_str(&format!("&{}={}", escape(&key), escape(&value)));
        }
        let answer = api.send(&Request::get(collection(kind) + &query))?;
        page = answer["next"].as_str().filter(|next| !next.is_empty()).map(str::to_owned);
        objects.extend(items(answer));
        if page.is_none() || limit.is_some_and(|limit| objects.len() as u64 >= limit) {
            return Ok(objects);
        }
    }
}

/// Reads an object, changes its spec and tags, and writes it back if nobody else has changed it meanwhile; with a version of
/// the caller's, only if it has that one.
fn replace(
    api: &Api,
    kind: Kind,
    reference: &str,
    if_version: Option<u64>,
    edit: impl Fn(&mut Value),
) -> Result<Value, ClientError> {
    /// Others may be changing it too.
    const ATTEMPTS: usize = 5;
    let mut attempt = 1;
    loop {
        let mut object = api.send(&Request::get(path(kind, reference)))?;
        let version = if_version.or_else(|| object["version"].as_u64());
        edit(&mut object);
        let body = json!({ "spec": object["spec"], "tags": object["tags"] });
        match api.send(&Request::put(path(kind, id(&object)), body).if_version(version)) {
            Err(ClientError::Refused(refusal))
                if refusal.is_conflict() && if_version.is_none() && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

fn remove_tag(object: &mut Value, key: &str) {
    if let Some(tags) = object["tags"].as_object_mut() {
        tags.remove(key);
    }
}

/// A key that nobody else has: 128 random bits.
fn fresh_key() -> Result<String, ClientError> {
    use std::io::Read;
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| ClientError::Usage(format!("cannot read /dev/urandom: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

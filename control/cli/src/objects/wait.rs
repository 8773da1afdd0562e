//! Waiting until what was asked for is so.

use std::time::{Duration, Instant};

use postern_control::catalog::model::Kind;
use serde_json::Value;

use super::action::{items, list, path};
use super::show::{held_by, targets_of};
use crate::client::{Api, ClientError, Refusal, Request};

/// Between two questions, at first and at last.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];

/// Asks until there is an answer; gives up with the last that was said of the state.
fn until<T>(
    patience: Duration,
    mut ask: impl FnMut() -> Result<Result<T, String>, ClientError>,
) -> Result<T, ClientError> {
    let deadline = Instant::now() + patience;
    let mut pause = PAUSES[0];
    loop {
        match ask()? {
            Ok(answer) => return Ok(answer),
            Err(state) if Instant::now() >= deadline => {
                return Err(ClientError::NotInTime(format!("not within {} s: {state}", patience.as_secs())));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// Until the endpoint is `available`; an error where it ends otherwise.
pub(super) fn available(api: &Api, id: &str, patience: Duration) -> Result<Value, ClientError> {
    until(patience, || {
        let endpoint = api.send(&Request::get(path(Kind::Endpoint, id)))?;
        let state = endpoint["status"]["state"].as_str().unwrap_or_default().to_owned();
        settled(&state, &format!("endpoint {id}"), endpoint["status"]["reason"].as_str()).map(|done| match done {
            true => Ok(endpoint),
            false => Err(format!("endpoint {id} is {state}")),
        })
    })
}

/// Until the connection is `available`.
pub(super) fn connected(api: &Api, service: &str, endpoint: &str, patience: Duration) -> Result<Value, ClientError> {
    until(patience, || {
        let answer = api.send(&Request::get(format!("{}/connections", path(Kind::Service, service))))?;
        let connection = items(answer).into_iter().find(|connection| connection["endpoint"] == endpoint);
        let Some(connection) = connection else {
            return Ok(Err(format!("the service has no connection of {endpoint}")));
        };
        let state = connection["state"].as_str().unwrap_or_default().to_owned();
        settled(&state, &format!("endpoint {endpoint}"), None).map(|done| match done {
            true => Ok(connection),
            false => Err(format!("endpoint {endpoint} is {state}")),
        })
    })
}

/// Whether a state is what was waited for; an error where that can no longer be.
fn settled(state: &str, what: &str, reason: Option<&str>) -> Result<bool, ClientError> {
    match state {
        "available" => Ok(true),
        "rejected" | "failed" | "expired" | "deleting" | "deleted" => {
            let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            Err(ClientError::Refused(Refusal::of_state(format!("{what} is {state}{reason}"))))
        }
        _ => Ok(false),
    }
}

/// Until the endpoint is gone.
pub(super) fn deleted(api: &Api, id: &str, patience: Duration) -> Result<(), ClientError> {
    until(patience, || match api.send(&Request::get(path(Kind::Endpoint, id))) {
        Ok(endpoint) if endpoint["status"]["state"] == "deleted" => Ok(Ok(())),
        Ok(endpoint) => {
            let state = endpoint["status"]["state"].as_str().unwrap_or_default();
            Ok(Err(format!("endpoint {id} is {state}")))
        }
        Err(error) if error.is_not_found() => Ok(Ok(())),
        Err(error) => Err(error),
    })
}

fn is_same(target: &Value, other: &Value) -> bool {
    target["address"] == other["address"] && target["port"] == other["port"]
}

/// Until each of the targets gets flows: healthy, or not probed.
pub(super) fn healthy(
    api: &Api,
    group: &str,
    targets: &[Value],
    patience: Duration,
) -> Result<Vec<Value>, ClientError> {
    until(patience, || {
        let seen = targets_of(&api.send(&Request::get(path(Kind::TargetGroup, group)))?);
        let health = |target: &Value| {
            let seen = seen.iter().find(|seen| is_same(seen, target));
            seen.and_then(|seen| seen["health"].as_str()).unwrap_or("unknown").to_owned()
        };
        let missing =
            targets.iter().find(|target| !matches!(health(target).as_str(), "healthy" | "unavailable" | "unused"));
        Ok(match missing {
            None => Ok(seen),
            Some(target) => Err(format!("{} is {}", super::show::cell(target), health(target))),
        })
    })
}

/// Until none of the targets is left, not even draining.
pub(super) fn deregistered(
    api: &Api,
    group: &str,
    targets: &[Value],
    patience: Duration,
) -> Result<Vec<Value>, ClientError> {
    until(patience, || {
        let seen = targets_of(&api.send(&Request::get(path(Kind::TargetGroup, group)))?);
        let left = seen.iter().find(|seen| targets.iter().any(|target| is_same(seen, target)));
        let left = left.map(|left| format!("{} is {}", super::show::cell(left), super::show::cell(&left["health"])));
        Ok(left.map_or(Ok(seen), Err))
    })
}

/// Until a gateway holds no address.
pub(super) fn released(api: &Api, gateway: &str, patience: Duration) -> Result<(), ClientError> {
    until(patience, || {
        let mut held = Vec::new();
        for kind in [Kind::Endpoint, Kind::SnatPool] {
            for object in list(api, kind, &[], None)? {
                held.extend(held_by(&object, gateway));
            }
        }
        Ok(match held.len() {
            0 => Ok(()),
            count => Err(format!("{gateway} still holds {count} addresses, {} among them", held[0])),
        })
    })
}

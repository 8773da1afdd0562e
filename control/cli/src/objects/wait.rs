//! Waiting until what was asked for is so.

use std::time::{Duration, Instant};

use postern_control::catalog::model::Kind;
use serde_json::Value;

use super::action::{items, list, path};
use super::show::{held_by, targets_of};
use crate::client::{Api, ClientError, Refusal, Request, escape};

/// Between two questions, at first and at last.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];
/// Longest wait of one question, in seconds.
const LONGEST_WAIT: u64 = 60;

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

/// Asks for something about an endpoint, and from then on lets control wait with its answer until the state is another;
/// `next` is the path of a question, and `judge` says of an answer what it is worth, or the state that was seen in it.
fn until_state<T>(
    api: &Api,
    path: &str,
    patience: Duration,
    mut judge: impl FnMut(Result<Value, ClientError>) -> Result<Result<T, Unsettled>, ClientError>,
) -> Result<T, ClientError> {
    let deadline = Instant::now() + patience;
    let mut request = Request::get(path);
    loop {
        let answer = match api.send(&request) {
            // Too many wait: control is asked as often as is good for it.
            Err(ClientError::Refused(refusal)) if refusal.code == "Busy" => {
                std::thread::sleep(PAUSES[1]);
                api.send(&Request::get(path))
            }
            answer => answer,
        };
        let Unsettled { state, said } = match judge(answer)? {
            Ok(answer) => return Ok(answer),
            Err(unsettled) => unsettled,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::NotInTime(format!("not within {} s: {said}", patience.as_secs())));
        }
        request = match state {
            Some(state) => {
                let seconds = left.as_secs().clamp(1, LONGEST_WAIT);
                let joint = if path.contains('?') { '&' } else { '?' };
                Request::get(format!("{path}{joint}while={}&wait_seconds={seconds}", escape(&state)))
            }
            None => {
                std::thread::sleep(PAUSES[1]);
                Request::get(path)
            }
        };
    }
}

/// What is not yet as it should be.
struct Unsettled {
    /// The endpoint's state, if one was seen.
    state: Option<String>,
    /// How that reads.
    said: String,
}

impl Unsettled {
    fn of(state: String, what: &str) -> Self {
        Self { said: format!("{what} is {state}"), state: Some(state) }
    }
}

/// Until the endpoint is `available`; an error where it ends otherwise.
pub(super) fn available(api: &Api, id: &str, patience: Duration) -> Result<Value, ClientError> {
    until_state(api, &path(Kind::Endpoint, id), patience, |answer| {
        let endpoint = answer?;
        let state = endpoint["status"]["state"].as_str().unwrap_or_default().to_owned();
        let what = format!("endpoint {id}");
        settled(&state, &what, endpoint["status"]["reason"].as_str()).map(|done| match done {
            true => Ok(endpoint),
            false => Err(Unsettled::of(state, &what)),
        })
    })
}

/// Until the connection is `available`.
pub(super) fn connected(api: &Api, service: &str, endpoint: &str, patience: Duration) -> Result<Value, ClientError> {
    let path = format!("{}/connections?endpoint={}", path(Kind::Service, service), escape(endpoint));
    until_state(api, &path, patience, |answer| {
        let Some(connection) = items(answer?).into_iter().next() else {
            let said = format!("the service has no connection of {endpoint}");
            return Ok(Err(Unsettled { state: None, said }));
        };
        let state = connection["state"].as_str().unwrap_or_default().to_owned();
        let what = format!("endpoint {endpoint}");
        settled(&state, &what, None).map(|done| match done {
            true => Ok(connection),
            false => Err(Unsettled::of(state, &what)),
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
    until_state(api, &path(Kind::Endpoint, id), patience, |answer| match answer {
        Ok(endpoint) if endpoint["status"]["state"] == "deleted" => Ok(Ok(())),
        Ok(endpoint) => {
            let state = endpoint["status"]["state"].as_str().unwrap_or_default().to_owned();
            Ok(Err(Unsettled::of(state, &format!("endpoint {id}"))))
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

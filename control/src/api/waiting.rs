//! Answers that wait until an endpoint has left a state.

use std::time::Duration;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use super::listener::stopped;
use super::query::{Query, shown};
use super::{Api, Shared};
use crate::catalog::Refusal;
use crate::catalog::model::{EndpointState, Kind};

/// Longest wait of a call, in seconds.
pub(super) const LONGEST_WAIT: u64 = 60;

/// How long an answer waits, at most, and for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    state: EndpointState,
    deadline: Instant,
}

impl Waiting {
    /// What `while` and `wait_seconds` ask for; `None`: to be answered at once.
    pub(super) fn take(query: &mut Query) -> Result<Option<Self>, ApiError> {
        let seconds = query.number("wait_seconds", 0, LONGEST_WAIT)?;
        let state = state(query, "while")?;
        match (state, seconds) {
            (None, None | Some(0)) => Ok(None),
            (None, Some(_)) => {
                Err(ApiError::invalid("wait_seconds", "wait_seconds needs while: the state that is to be left"))
            }
            (Some(state), seconds) => {
                Ok(Some(Self { state, deadline: Instant::now() + Duration::from_secs(seconds.unwrap_or(0)) }))
            }
        }
    }
}

/// A state of endpoints that a parameter names.
pub(super) fn state(query: &mut Query, name: &str) -> Result<Option<EndpointState>, ApiError> {
    let Some(state) = query.take(name)? else { return Ok(None) };
    let parsed = EndpointState::deserialize(StrDeserializer::<serde::de::value::Error>::new(&state));
    let refused = |error| ApiError::invalid(name, format!("{name} = \"{}\": {error}", shown(&state)));
    parsed.map(Some).map_err(refused)
}

/// Makes a call of the catalog about one endpoint, again whenever that endpoint changes, until its answer shows another
/// state than the one that is to be left, the time is over, or the process is to end. `seen` says which endpoint an answer
/// shows, and in which state; none: there is nothing to wait for.
pub(super) async fn left<T: Send + 'static>(
    api: &Shared,
    waiting: Option<Waiting>,
    call: impl Fn(&Api) -> Result<T, Refusal> + Clone + Send + 'static,
    seen: impl Fn(&T) -> Option<(&str, EndpointState)>,
) -> Result<T, ApiError> {
    let Some(Waiting { state, deadline }) = waiting else {
        return api.call(call).await;
    };
    let place = api.streams.clone().try_acquire_owned();
    let _place = place.map_err(|_| ApiError::busy("too many clients wait"))?;
    // Before the first reading: no change after it is missed.
    let mut changes = api.catalog.changes();
    let mut stop = api.stop.clone();
    loop {
        let answer = api.call(call.clone()).await?;
        let endpoint = match seen(&answer) {
            Some((endpoint, now)) if now == state => (Kind::Endpoint, endpoint.to_owned()),
            _ => return Ok(answer),
        };
        let touched = async {
            loop {
                match changes.recv().await {
                    Ok(change) if !change.touched.contains(&endpoint) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => return true,
                    Err(RecvError::Closed) => return false,
                }
            }
        };
        let again = async {
            tokio::select! {
                touched = touched => touched,
                () = stopped(&mut stop) => false,
            }
        };
        if !matches!(timeout_at(deadline, again).await, Ok(true)) {
            return Ok(answer);
        }
    }
}

//! Events of connections: what has been, and what comes, as an answer that waits or as a stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

use super::Shared;
use super::authentication::Authenticated;
use super::error::ApiError;
use super::listener::stopped;
use super::query::{Query, shown};
use super::waiting::LONGEST_WAIT;
use crate::catalog::Caller;
use crate::catalog::model::Event;

/// How often a silent stream says that it is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Events read at a time by a stream.
const PART: usize = 100;

/// Events, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Events {
    /// Those after `after` that concern the caller.
    events: Vec<Event>,
    /// What `after` is to be in the next call.
    next: u64,
}

pub(super) async fn events(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    mut query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let after = query.number("after", 0, u64::MAX)?;
    let limit = query.number("limit", 1, 1000)?.unwrap_or(1000);
    let wait = query.number("wait_seconds", 0, LONGEST_WAIT)?.unwrap_or(0);
    query.end()?;
    let accepted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepted.split(',').any(|kind| kind.trim().starts_with("text/event-stream")) {
        let after = match last_event(&headers)? {
            Some(sequence) => sequence,
            None => after.unwrap_or(0),
        };
        return Ok(event_stream(Feed::new(&api, caller, after, PART)?));
    }
    let limit = usize::try_from(limit).unwrap_or(1);
    let mut feed = Feed::new(&api, caller, after.unwrap_or(0), limit)?;
    let events = feed.wait(Instant::now() + Duration::from_secs(wait)).await;
    Ok(Json(Events { events, next: feed.after }).into_response())
}

/// What a client that connects anew has had last.
fn last_event(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    text.parse().map(Some).map_err(|_| {
        ApiError::invalid("Last-Event-ID", format!("Last-Event-ID = \"{}\": must be a sequence number", shown(text)))
    })
}

/// Events of a caller, from a place on.
struct Feed {
    api: Shared,
    caller: Caller,
    after: u64,
    limit: usize,
    last: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    fn new(api: &Shared, caller: Caller, after: u64, limit: usize) -> Result<Self, ApiError> {
        let place = api.streams.clone().try_acquire_owned();
        let place = place.map_err(|_| ApiError::busy("too many clients wait for events"))?;
        let (last, stop) = (api.catalog.last_event(), api.stop.clone());
        Ok(Self { api: api.clone(), caller, after, limit, last, stop, _place: place })
    }

    /// The next events; none when there are none by the deadline, or the process is to end.
    async fn wait(&mut self, deadline: Instant) -> Vec<Event> {
        loop {
            // What comes after this is noticed below.
            let seen = *self.last.borrow_and_update();
            let events = self.api.catalog.events(&self.caller, self.after, self.limit);
            if let Some(event) = events.last() {
                self.after = event.sequence;
                return events;
            }
            // None of these was the caller's.
            self.after = self.after.max(seen);
            let changed = async {
                tokio::select! {
                    changed = self.last.changed() => changed.is_ok(),
                    () = stopped(&mut self.stop) => false,
                }
            };
            if !matches!(timeout_at(deadline, changed).await, Ok(true)) {
                return Vec::new();
            }
        }
    }
}

/// Events as they come (HTML Living Standard, section 9.2, Server-sent events).
fn event_stream(feed: Feed) -> Response {
    let parts = stream::unfold(feed, |mut feed| async move {
        let events = feed.wait(Instant::now() + SIGN_OF_LIFE).await;
        if events.is_empty() && *feed.stop.borrow() {
            return None;
        }
        let mut part = String::new();
        if events.is_empty() {
            part.push_str(":\n\n");
        }
        for event in &events {
            let data = serde_json::to_string(event).unwrap_or_default();
            part.push_str(&format!("id: {}\nevent: {:?}\ndata: {data}\n\n", event.sequence, event.event));
        }
        Some((Ok::<_, Infallible>(Bytes::from(part)), feed))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(parts)).into_response()
}

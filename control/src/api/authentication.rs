//! Who calls: by a token, or by the client certificate of the connection.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tracing::warn;

use super::Shared;
use super::error::ApiError;
use super::listener::Peer;
use crate::catalog::Caller;

/// Failed authentications that stand in the log for each minute; the others are counted.
const LINES: u32 = 10;

/// Lets only known callers pass, and tells the handlers who they are.
pub(super) async fn authenticate(
    State(api): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match caller(&api, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            Ok(next.run(request).await)
        }
        Err(reason) => {
            api.failures.count(reason, Instant::now());
            Err(ApiError::unauthenticated(reason))
        }
    }
}

/// A token counts more than a certificate; one that is wrong is not made good by a certificate.
fn caller(api: &Shared, request: &Request) -> Result<Caller, &'static str> {
    if let Some(value) = request.headers().get(AUTHORIZATION) {
        let text = value.to_str().unwrap_or_default();
        let Some((scheme, token)) = text.split_once(' ') else {
            return Err("the Authorization header must be \"Bearer\" and a token");
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err("the Authorization header must be \"Bearer\" and a token");
        }
        return api.catalog.caller_of_token(token.trim()).ok_or("the token is not known");
    }
    match request.extensions().get::<Peer>() {
        Some(Peer { certificate_name: Some(name), .. }) => {
            api.catalog.caller_of_name(name).ok_or("the client certificate names no principal")
        }
        Some(Peer { has_certificate: true, .. }) => Err("the client certificate has not exactly one name"),
        _ => Err("credentials are missing: an Authorization header with a token, or a client certificate"),
    }
}

/// The caller, for handlers behind [`authenticate`].
pub(super) struct Authenticated(pub(super) Caller);

impl<S: Send + Sync> FromRequestParts<S> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.map(Self).ok_or_else(|| ApiError::unauthenticated("credentials are missing"))
    }
}

/// Counts failed authentications and writes some of them to the log.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Minute>);

#[derive(Debug, Default)]
struct Minute {
    began: Option<Instant>,
    lines: u32,
    silent: u64,
    all: u64,
}

impl Failures {
    fn count(&self, reason: &str, now: Instant) {
        let mut minute = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        minute.all += 1;
        if minute.began.is_none_or(|began| now.duration_since(began) >= Duration::from_secs(60)) {
            if minute.silent > 0 {
                warn!(count = minute.silent, "more failed authentications in the last minute");
            }
            *minute = Minute { began: Some(now), all: minute.all, ..Minute::default() };
        }
        if minute.lines < LINES {
            minute.lines += 1;
            warn!("failed authentication: {reason}");
        } else {
            minute.silent += 1;
        }
    }

    /// All since the process began.
    pub(super) fn all(&self) -> u64 {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failed_authentications_writes_ten_lines_a_minute_and_is_counted_whole() {
        let failures = Failures::default();
        let start = Instant::now();
        for _ in 0..1000 {
            failures.count("the token is not known", start);
        }
        let minute = |failures: &Failures| {
            let minute = failures.0.lock().unwrap();
            (minute.lines, minute.silent)
        };
        assert_eq!(minute(&failures), (10, 990));
        failures.count("the token is not known", start + Duration::from_secs(61));
        assert_eq!(minute(&failures), (1, 0));
        assert_eq!(failures.all(), 1001);
    }
}

//! Parameters of requests: every one is known, stands once, and has a value that can be.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::header::IF_MATCH;
use axum::http::request::Parts;

use super::error::ApiError;

/// The query string, from which parameters are taken until none is left.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let text = parts.uri.query().unwrap_or_default();
        Ok(Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect()))
    }
}

impl Query {
    /// A parameter that may stand there once.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let Some(at) = self.0.iter().position(|(key, _)| key == name) else { return Ok(None) };
        let (_, value) = self.0.remove(at);
        if self.0.iter().any(|(key, _)| key == name) {
            return Err(ApiError::invalid(name, format!("the parameter {name} stands there more than once")));
        }
        Ok(Some(value))
    }

    /// A parameter of another type, described by `form`.
    pub(super) fn parsed<T: FromStr>(&mut self, name: &str, form: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name)? else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(ApiError::invalid(name, format!("{name} = \"{}\": must be {form}", shown(&value)))),
        }
    }

    /// A number within a range.
    pub(super) fn number(&mut self, name: &str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let form = format!("a number within {low} to {high}");
        let number = self.parsed(name, &form)?;
        match number {
            Some(number) if !(low..=high).contains(&number) => {
                Err(ApiError::invalid(name, format!("{name} = \"{number}\": must be {form}")))
            }
            _ => Ok(number),
        }
    }

    /// All parameters whose names begin with `prefix`, without it.
    pub(super) fn with_prefix(&mut self, prefix: &str) -> Vec<(String, String)> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key.starts_with(prefix));
        self.0 = left;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect()
    }

    /// All parameters but one.
    pub(super) fn without(&self, name: &str) -> Vec<(String, String)> {
        self.0.iter().filter(|(key, _)| key != name).cloned().collect()
    }

    /// Refuses what nobody took.
    pub(super) fn end(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let name = shown(&name);
                Err(ApiError::invalid(&name, format!("there is no parameter \"{name}\" here")))
            }
        }
    }
}

/// The beginning of a text of the client's, for a message.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String =
        text.chars().take(80).map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

/// The variable parts of a path, decoded, in their order.
#[derive(Clone, Debug)]
pub(super) struct Segments(Vec<String>);

impl<S: Send + Sync> FromRequestParts<S> for Segments {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<Vec<String>>::from_request_parts(parts, state).await;
        let Path(segments) = path.map_err(|error| ApiError::invalid("path", error.body_text()))?;
        Ok(Self(segments))
    }
}

impl Segments {
    /// The part at a place; the route has it.
    pub(super) fn at(&self, place: usize) -> &str {
        self.0.get(place).map_or("", String::as_str)
    }
}

/// The version that `If-Match` names; `*` and no header: any.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let version = match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(version) => version,
        None if text == "*" => return Ok(None),
        None => text,
    };
    let refused = || {
        let message = format!("If-Match = {}: must be a version as in the ETag, such as \"3\"", shown(text));
        ApiError::invalid("If-Match", message)
    };
    version.parse().map(Some).map_err(|_| refused())
}

/// The token by which a call may be made again.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=128).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::invalid("Idempotency-Key", "Idempotency-Key must be 1 to 128 printable characters")),
    }
}

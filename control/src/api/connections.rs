//! Calls about what belongs to an object: connections of a service, targets of a group, tokens of a principal.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::authentication::Authenticated;
use super::body::{BODY, DecisionBody, DeregisterBody, RegisterBody, decode};
use super::error::ApiError;
use super::objects::with_version;
use super::query::{Query, Segments};
use super::waiting::{Waiting, left};
use super::{Api, Shared};
use crate::catalog::{Connection, Refusal, TokenInfo};

/// Connections of a service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connections {
    /// One for each endpoint, of which a provider sees nothing else.
    connections: Vec<Connection>,
}

pub(super) async fn list(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    mut query: Query,
) -> Result<Json<Connections>, ApiError> {
    let endpoint = query.take("endpoint")?;
    let waiting = if endpoint.is_some() { Waiting::take(&mut query)? } else { None };
    query.end()?;
    let call = move |api: &Api| api.catalog.connections(&caller, path.at(0), endpoint.as_deref());
    let connections = left(&api, waiting, call, |found| {
        let one = found.first()?;
        Some((one.endpoint.as_str(), one.state))
    });
    let connections = connections.await?;
    Ok(Json(Connections { connections }))
}

pub(super) async fn accept(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Connection>, ApiError> {
    query.end()?;
    decide(&api, &headers, body, move |api, _| api.catalog.accept(&caller, path.at(0), path.at(1))).await
}

pub(super) async fn reject(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Connection>, ApiError> {
    query.end()?;
    let reject = move |api: &Api, reason: Option<&str>| api.catalog.reject(&caller, path.at(0), path.at(1), reason);
    decide(&api, &headers, body, reject).await
}

/// Makes a decision with the reason in the body, which may be left out.
async fn decide(
    api: &Shared,
    headers: &HeaderMap,
    body: Body,
    decision: impl FnOnce(&Api, Option<&str>) -> Result<Connection, Refusal> + Send + 'static,
) -> Result<Json<Connection>, ApiError> {
    let none = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0")
        && !headers.contains_key(axum::http::header::TRANSFER_ENCODING);
    let DecisionBody { reason } =
        if none { DecisionBody::default() } else { api.bodies.read(headers, body, BODY, decode).await? };
    api.call(move |api| decision(api, reason.as_deref())).await.map(Json)
}

pub(super) async fn register(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.end()?;
    let RegisterBody { targets } = api.bodies.read(&headers, body, BODY, decode).await?;
    let group = api.call(move |api| api.catalog.register_targets(&caller, path.at(0), targets)).await?;
    Ok(with_version(StatusCode::OK, &group))
}

pub(super) async fn deregister(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.end()?;
    let DeregisterBody { targets } = api.bodies.read(&headers, body, BODY, decode).await?;
    let targets: Vec<_> = targets.iter().map(|target| (target.address, target.port)).collect();
    let group = api.call(move |api| api.catalog.deregister_targets(&caller, path.at(0), &targets)).await?;
    Ok(with_version(StatusCode::OK, &group))
}

/// A token that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct NewToken {
    /// The token, which is shown only here.
    token: String,
}

/// Tokens of a principal.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tokens {
    /// What is known of each; not the tokens themselves.
    tokens: Vec<TokenInfo>,
}

pub(super) async fn make_token(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    query: Query,
) -> Result<Response, ApiError> {
    query.end()?;
    let token = api.call(move |api| api.catalog.make_token(&caller, path.at(0))).await?;
    let headers = [(axum::http::header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, Json(NewToken { token })).into_response())
}

pub(super) async fn tokens(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    query: Query,
) -> Result<Json<Tokens>, ApiError> {
    query.end()?;
    let tokens = api.call(move |api| api.catalog.tokens(&caller, path.at(0))).await?;
    Ok(Json(Tokens { tokens }))
}

pub(super) async fn revoke_token(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.end()?;
    api.call(move |api| api.catalog.revoke_token(&caller, path.at(0), path.at(1))).await?;
    Ok(StatusCode::NO_CONTENT)
}

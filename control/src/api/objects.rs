//! The calls that every kind of object has: one set of handlers for all kinds.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ETAG, LINK, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::Shared;
use super::authentication::Authenticated;
use super::body::{APPLY_BODY, ApplyBody, BODY, decode, decode_new, decode_replacement};
use super::error::ApiError;
use super::query::{Query, Segments, idempotency_key, if_match};
use super::waiting::{self, Waiting, left};
use crate::catalog::model::Kind;
use crate::catalog::{AnyObject, Filter, Listing, Page, Plan};

/// Objects in an answer unless `limit` says otherwise.
const PAGE: u64 = 100;

/// Adds the routes of a kind.
pub(super) fn routes(router: Router<Shared>, kind: Kind) -> Router<Shared> {
    let all = format!("/v1/{}", kind.plural());
    let one = format!("{all}/{{reference}}");
    let create = move |api, caller, query, headers, body: Body| create(kind, api, caller, query, headers, body);
    let list = move |api, caller, query| list(kind, api, caller, query);
    let read = move |api, caller, path, query| read(kind, api, caller, path, query);
    let delete = move |api, caller, path, query, headers: HeaderMap| delete(kind, (api, caller, path, query), headers);
    let replace = move |api, caller, path, query, headers: HeaderMap, body: Body| {
        replace(kind, (api, caller, path, query), headers, body)
    };
    router.route(&all, get(list).post(create)).route(&one, get(read).put(replace).delete(delete))
}

/// What calls about one object get from their request.
type About = (State<Shared>, Authenticated, Segments, Query);

async fn create(
    kind: Kind,
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.end()?;
    let key = idempotency_key(&headers)?;
    let new = api.bodies.read(&headers, body, BODY, |bytes| decode_new(kind, bytes)).await?;
    let object = api.call(move |api| api.catalog.create(&caller, new, key.as_deref())).await?;
    let location = format!("/v1/{}/{}", kind.plural(), object.id());
    let mut response = with_version(StatusCode::CREATED, &object);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

async fn read(
    kind: Kind,
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    path: Segments,
    mut query: Query,
) -> Result<Response, ApiError> {
    let waiting = if kind == Kind::Endpoint { Waiting::take(&mut query)? } else { None };
    query.end()?;
    let call = move |api: &super::Api| api.catalog.one(&caller, kind, path.at(0));
    let state = |object: &AnyObject| object.as_endpoint().map(|endpoint| endpoint.status.state);
    let object = left(&api, waiting, call, |object| Some((object.id(), state(object)?))).await?;
    Ok(with_version(StatusCode::OK, &object))
}

async fn replace(
    kind: Kind,
    (State(api), Authenticated(caller), path, query): About,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.end()?;
    let (key, version) = (idempotency_key(&headers)?, if_match(&headers)?);
    let (spec, tags) = api.bodies.read(&headers, body, BODY, |bytes| decode_replacement(kind, bytes)).await?;
    let call =
        move |api: &super::Api| api.catalog.replace(&caller, kind, path.at(0), spec, tags, version, key.as_deref());
    Ok(with_version(StatusCode::OK, &api.call(call).await?))
}

async fn delete(
    kind: Kind,
    (State(api), Authenticated(caller), path, query): About,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    query.end()?;
    let version = if_match(&headers)?;
    let object = api.call(move |api| api.catalog.delete(&caller, kind, path.at(0), version)).await?;
    Ok(with_version(StatusCode::OK, &object))
}

/// An object, with its version as its entity tag.
pub(super) fn with_version(status: StatusCode, object: &AnyObject) -> Response {
    let version = format!("\"{}\"", object.metadata().version);
    let mut response = (status, Json(object)).into_response();
    if let Ok(version) = HeaderValue::from_str(&version) {
        response.headers_mut().insert(ETAG, version);
    }
    response
}

/// A page of objects.
#[derive(Debug, Serialize)]
struct ObjectPage {
    objects: Vec<AnyObject>,
    /// Token of the page after it; none after the last.
    next: Option<String>,
}

async fn list(
    kind: Kind,
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    mut query: Query,
) -> Result<Response, ApiError> {
    let again = query.without("page");
    let filter = filter(&mut query)?;
    let size = query.number("limit", 1, 1000)?.unwrap_or(PAGE);
    let page = Page { size: usize::try_from(size).unwrap_or(1), token: query.take("page")? };
    query.end()?;
    let Listing { objects, next } = api.call(move |api| api.catalog.list(&caller, kind, &filter, &page)).await?;
    let link = next.as_ref().map(|next| {
        let mut link = form_urlencoded::Serializer::new(String::new());
        link.extend_pairs(again).append_pair("page", next);
        format!("</v1/{}?{}>; rel=\"next\"", kind.plural(), link.finish())
    });
    let mut response = Json(ObjectPage { objects, next }).into_response();
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

fn filter(query: &mut Query) -> Result<Filter, ApiError> {
    Ok(Filter {
        owner: query.take("owner")?,
        name: query.take("name")?,
        tags: query.with_prefix("tag.").into_iter().collect(),
        vpc: query.take("vpc")?,
        service: query.take("service")?,
        state: waiting::state(query, "state")?,
    })
}

pub(super) async fn apply(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Plan>, ApiError> {
    query.end()?;
    let ApplyBody { manifests, prune, dry_run } = api.bodies.read(&headers, body, APPLY_BODY, decode).await?;
    let call = move |api: &super::Api| api.catalog.apply(&caller, manifests, prune, dry_run);
    api.call(call).await.map(Json)
}

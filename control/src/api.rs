//! The HTTP API for people and programs: the catalog's calls, who may make them, and how they are written.
//!
//! `docs/control.md` tells operators and callers its conventions; `docs/openapi.json` is its document, which a test
//! compares with what is served.

mod authentication;
mod body;
mod connections;
mod error;
mod events;
mod listener;
mod metrics;
mod objects;
pub mod openapi;
mod query;
mod usage;
mod waiting;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use utoipa::ToSchema;

pub use body::{ApplyBody, DecisionBody, DeregisterBody, NewBody, RegisterBody, ReplaceBody, TargetReference};
pub use error::ErrorBody;
pub(crate) use listener::stopped;
pub use listener::{ListenError, Listener, Patience};

use crate::catalog::model::{Kind, Role};
use crate::catalog::{Catalog, Refusal};
use crate::metering::Metering;
use authentication::{Authenticated, Failures, authenticate};
use body::BodyReader;
use error::{ApiError, no_such_method, no_such_path};
use metrics::{Metrics, count};
use query::Query;

/// Event streams and long polls at a time; they hold connections for long.
const STREAMS: usize = 256;

/// What the handlers share.
struct Api {
    catalog: Arc<Catalog>,
    metering: Arc<Metering>,
    bodies: BodyReader,
    streams: Arc<Semaphore>,
    metrics: Metrics,
    failures: Failures,
    /// Whether the process serves; false before and after.
    ready: watch::Receiver<bool>,
    /// Whether it is to end.
    stop: watch::Receiver<bool>,
}

type Shared = Arc<Api>;

impl Api {
    /// Makes a call of the catalog, which may wait for the disk, where it holds up nobody else.
    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce(&Self) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, ApiError> {
        let api = self.clone();
        match tokio::task::spawn_blocking(move || call(&api)).await {
            Ok(result) => result.map_err(ApiError::from),
            Err(_) => Err(ApiError::internal("the call failed for a fault of control's; its log has more")),
        }
    }
}

/// The API over a catalog. `ready` and `stop` are told by the process that serves it.
pub fn router(
    catalog: Arc<Catalog>,
    metering: Arc<Metering>,
    patience: Patience,
    ready: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
) -> Router {
    let api = Arc::new(Api {
        catalog,
        metering,
        bodies: BodyReader::new(patience.body),
        streams: Arc::new(Semaphore::new(STREAMS)),
        metrics: Metrics::default(),
        failures: Failures::default(),
        ready,
        stop,
    });
    let mut calls = Router::new();
    for kind in Kind::ALL {
        calls = objects::routes(calls, kind);
    }
    let calls = calls
        .route("/v1/principals/{principal}/tokens", get(connections::tokens).post(connections::make_token))
        .route("/v1/principals/{principal}/tokens/{token}", delete(connections::revoke_token))
        .route("/v1/services/{service}/connections", get(connections::list))
        .route("/v1/services/{service}/connections/{endpoint}/accept", post(connections::accept))
        .route("/v1/services/{service}/connections/{endpoint}/reject", post(connections::reject))
        .route("/v1/target-groups/{group}/targets", post(connections::register).delete(connections::deregister))
        .route("/v1/apply", post(objects::apply))
        .route("/v1/events", get(events::events))
        .route("/v1/usage", get(usage::usage))
        .route("/v1/whoami", get(whoami))
        .route_layer(middleware::from_fn_with_state(api.clone(), authenticate));
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics::page))
        .route("/v1/openapi.json", get(openapi::serve))
        .merge(calls)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        // Bodies are read by BodyReader, which has its own limits.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), count))
        .with_state(api)
}

/// Who calls.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Whoami {
    /// Name of the principal.
    pub principal: String,
    /// What it may do.
    pub role: Role,
}

async fn whoami(Authenticated(caller): Authenticated, query: Query) -> Result<Json<Whoami>, ApiError> {
    query.end()?;
    Ok(Json(Whoami { principal: caller.principal, role: caller.role }))
}

/// How the process is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// Whether it serves.
    pub ready: bool,
}

async fn health(State(api): State<Shared>) -> Response {
    let ready = *api.ready.borrow();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Health { ready })).into_response()
}

/// A text of another type than JSON.
fn text(kind: &'static str, text: String) -> Response {
    ([(CONTENT_TYPE, kind)], text).into_response()
}

//! Bodies of requests: read within bounds of size, time and memory, and decoded with the place of every mistake.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::error::ApiError;
use crate::catalog::model::{
    AttachmentSpec, EndpointSpec, GatewaySpec, Kind, LoadBalancerSpec, PrincipalSpec, SecurityGroupSpec, ServiceSpec,
    SnatPoolSpec, TargetGroupSpec, TargetSpec, VpcSpec,
};
use crate::catalog::{Manifest, New, Spec};

/// Longest body of a call, in bytes.
pub(super) const BODY: usize = 1 << 20;
/// Longest body of an `apply`, in bytes.
pub(super) const APPLY_BODY: usize = 64 << 20;
/// Memory for all bodies that are being read, in [`BODY`]s.
const ROOM: u32 = 256;

/// Reads bodies.
#[derive(Debug)]
pub(super) struct BodyReader {
    room: Semaphore,
    patience: Duration,
}

impl BodyReader {
    pub(super) fn new(patience: Duration) -> Self {
        Self { room: Semaphore::new(ROOM as usize), patience }
    }

    /// Reads a JSON body of at most `limit` bytes, and decodes it by `decode`.
    pub(super) async fn read<T>(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit: usize,
        decode: impl FnOnce(&[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            let message = format!("the body must be application/json, not \"{kind}\"");
            let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message);
            return Err(error.at("Content-Type"));
        }
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        let most = announced.unwrap_or(limit).div_ceil(BODY).max(1);
        let slow = || {
            let message = format!("the body did not come within {} seconds", self.patience.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "Timeout", message)
        };
        let whole = async {
            let room = self.room.acquire_many(u32::try_from(most).unwrap_or(ROOM)).await;
            let bytes = collect(body, limit).await?;
            drop(room);
            Ok::<_, ApiError>(bytes)
        };
        let bytes = timeout(self.patience, whole).await.map_err(|_| slow())??;
        decode(&bytes)
    }
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is longer than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", message)
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    let mut stream = body.into_data_stream();
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "Invalid", format!("the body ended before its length: {error}"))
        })?;
        if bytes.len() + part.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes.into())
}

/// Decodes JSON; an error says line, column and field.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let message = error.into_inner().to_string();
        let error = ApiError::new(StatusCode::BAD_REQUEST, "Invalid", format!("the body is not right: {message}"));
        if field == "." { error } else { error.at(field) }
    })?;
    json.end().map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "Invalid", format!("the body goes on after its end: {error}"))
    })?;
    Ok(value)
}

/// An object to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBody<S> {
    /// Its name; without one its id is its name.
    pub name: Option<String>,
    /// Principal whose it is to be; without one, the caller's. Only operators make objects for others.
    pub owner: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// What it is to be.
    #[serde(default)]
    pub spec: S,
}

/// What is to replace an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceBody<S> {
    /// Its tags, all of them; without this field they stay.
    pub tags: Option<BTreeMap<String, String>>,
    /// What it is to be, whole: what is left out has its default.
    pub spec: S,
}

macro_rules! by_kind {
    ($kind:expr, |$spec:ident, $variant:ident| $body:expr) => {{
        macro_rules! arm {
            ($type:ty, $constructor:path) => {{
                type $spec = $type;
                let $variant = $constructor;
                $body
            }};
        }
        match $kind {
            Kind::Principal => arm!(PrincipalSpec, Spec::Principal),
            Kind::Gateway => arm!(GatewaySpec, Spec::Gateway),
            Kind::Vpc => arm!(VpcSpec, Spec::Vpc),
            Kind::Attachment => arm!(AttachmentSpec, Spec::Attachment),
            Kind::SnatPool => arm!(SnatPoolSpec, Spec::SnatPool),
            Kind::TargetGroup => arm!(TargetGroupSpec, Spec::TargetGroup),
            Kind::LoadBalancer => arm!(LoadBalancerSpec, Spec::LoadBalancer),
            Kind::Service => arm!(ServiceSpec, Spec::Service),
            Kind::Endpoint => arm!(EndpointSpec, Spec::Endpoint),
            Kind::SecurityGroup => arm!(SecurityGroupSpec, Spec::SecurityGroup),
        }
    }};
}

/// Decodes an object to be made, of a kind.
pub(super) fn decode_new(kind: Kind, bytes: &[u8]) -> Result<New, ApiError> {
    by_kind!(kind, |Wanted, variant| {
        let NewBody { name, owner, tags, spec } = decode::<NewBody<Wanted>>(bytes)?;
        Ok(New { name, owner, tags, spec: variant(spec) })
    })
}

/// Decodes spec and tags that replace those of an object of a kind.
pub(super) fn decode_replacement(
    kind: Kind,
    bytes: &[u8],
) -> Result<(Spec, Option<BTreeMap<String, String>>), ApiError> {
    by_kind!(kind, |Wanted, variant| {
        let ReplaceBody { tags, spec } = decode::<ReplaceBody<Wanted>>(bytes)?;
        Ok((variant(spec), tags))
    })
}

/// Targets to be registered.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterBody {
    /// The targets; one with the address and port of a registered target takes its place.
    pub targets: Vec<TargetSpec>,
}

/// Targets to be deregistered.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeregisterBody {
    /// The targets.
    pub targets: Vec<TargetReference>,
}

/// A registered target.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetReference {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Why a connection is accepted or rejected.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecisionBody {
    /// A sentence that the consumer may read.
    pub reason: Option<String>,
}

/// A whole desired state.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyBody {
    /// Objects of the caller's, by kind and name.
    pub manifests: Vec<Manifest>,
    /// Whether the caller's objects that are not among them are deleted.
    #[serde(default)]
    pub prune: bool,
    /// Whether to say only what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

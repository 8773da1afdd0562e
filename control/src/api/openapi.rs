//! The API's document (OpenAPI 3.1), made from the types that are served.
//!
//! `docs/openapi.json` is a copy for readers and generators, which a test compares; `POSTERN_REGENERATE=1 cargo test -p
//! postern-control openapi` writes it anew.

use std::sync::LazyLock;

use axum::response::Response;
use serde_json::Value;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{
    AdditionalProperties, AllOfBuilder, ArrayBuilder, ObjectBuilder, Ref, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, HeaderBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder,
    PathsBuilder, RefOr, Required, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use super::body::{DecisionBody, DeregisterBody, RegisterBody};
use super::connections::{Connections, NewToken, Tokens};
use super::error::ErrorBody;
use super::events::Events;
use super::usage::UsagePage;
use super::{Health, Whoami, text};
use crate::catalog::Plan;
use crate::catalog::model::{
    AttachmentSpec, EndpointSpec, EndpointStatus, GatewaySpec, GatewayStatus, Kind, LoadBalancerSpec, Metadata,
    NoStatus, PrincipalSpec, SecurityGroupSpec, ServiceSpec, ServiceStatus, SnatPoolSpec, SnatPoolStatus,
    TargetGroupSpec, TargetGroupStatus, VpcSpec,
};

static TEXT: LazyLock<String> = LazyLock::new(document_text);

pub(super) async fn serve() -> Response {
    text("application/json", TEXT.clone())
}

/// The document as it is served.
#[must_use]
pub fn document_text() -> String {
    let mut text = document().to_pretty_json().unwrap_or_else(|error| unreachable!("the document is JSON: {error}"));
    text.push('\n');
    text
}

/// The document.
#[must_use]
pub fn document() -> OpenApi {
    let paths = Kind::ALL.into_iter().fold(PathsBuilder::new(), paths_of_kind);
    let info = InfoBuilder::new()
        .title("Postern control")
        .version("v1")
        .description(Some(DESCRIPTION))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let token = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of POST /v1/principals/{principal}/tokens. A client certificate does as well."))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .paths(other_paths(paths).build())
        .components(Some(components().security_scheme("token", SecurityScheme::Http(token)).build()))
        .security(Some([SecurityRequirement::new("token", Vec::<String>::new())]))
        .build()
}

const DESCRIPTION: &str = "Objects have metadata, a spec that their owner writes, and a status that control writes. A \
    reference is the id of an object, or the name of one of the caller's own. What belongs to another tenant is as if it \
    were not there. Every error is JSON with code, message, field and users. Unknown fields and parameters are refused.";

/// Type names of a kind: the object's, its spec's, its status's.
fn types(kind: Kind) -> (String, String, String) {
    let name: String = kind.to_string().split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    let status = match kind {
        Kind::Gateway | Kind::SnatPool | Kind::TargetGroup | Kind::Service | Kind::Endpoint => format!("{name}Status"),
        _ => NoStatus::name().into_owned(),
    };
    (name.clone(), format!("{name}Spec"), status)
}

fn components() -> ComponentsBuilder {
    let mut schemas = Vec::new();
    macro_rules! add {
        ($($schema:ty),* $(,)?) => {
            $(
                schemas.push((<$schema>::name().into_owned(), <$schema>::schema()));
                <$schema>::schemas(&mut schemas);
            )*
        };
    }
    add!(
        Metadata,
        NoStatus,
        ErrorBody,
        Plan,
        Connections,
        Events,
        Tokens,
        NewToken,
        Health,
        Whoami,
        UsagePage,
        RegisterBody,
        DeregisterBody,
        DecisionBody,
        PrincipalSpec,
        GatewaySpec,
        GatewayStatus,
        VpcSpec,
        AttachmentSpec,
        SnatPoolSpec,
        SnatPoolStatus,
        TargetGroupSpec,
        TargetGroupStatus,
        LoadBalancerSpec,
        ServiceSpec,
        ServiceStatus,
        EndpointSpec,
        EndpointStatus,
        SecurityGroupSpec,
        Kind,
    );
    for kind in Kind::ALL {
        let (name, spec, status) = types(kind);
        let own = ObjectBuilder::new()
            .property("spec", reference(&spec))
            .property("status", reference(&status))
            .required("spec")
            .required("status");
        let object = AllOfBuilder::new().item(reference(&Metadata::name())).item(own).build();
        schemas.push((name.clone(), RefOr::T(Schema::AllOf(object))));
        let page = ObjectBuilder::new()
            .property("objects", ArrayBuilder::new().items(reference(&name)))
            .property("next", described(Type::String, "Token of the page after it; null after the last"))
            .required("objects");
        schemas.push((format!("{name}Page"), page.into()));
        let new = ObjectBuilder::new()
            .property("name", described(Type::String, "Its name; without one its id is its name"))
            .property("owner", described(Type::String, "Principal whose it is to be; for operators"))
            .property("tags", tags())
            .property("spec", reference(&spec))
            .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)));
        schemas.push((format!("New{name}"), new.into()));
        let replacement = ObjectBuilder::new()
            .property("tags", tags())
            .property("spec", reference(&spec))
            .required("spec")
            .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)));
        schemas.push((format!("{name}Replacement"), replacement.into()));
    }
    let specs = Kind::ALL.into_iter().map(|kind| reference(&types(kind).1));
    let spec = specs.fold(utoipa::openapi::schema::OneOfBuilder::new(), utoipa::openapi::schema::OneOfBuilder::item);
    let manifest = ObjectBuilder::new()
        .property("kind", reference(&Kind::name()))
        .property("name", described(Type::String, "Its name among the caller's own"))
        .property("tags", tags())
        .property("spec", spec)
        .required("kind")
        .required("name");
    schemas.push(("Manifest".into(), manifest.into()));
    let apply = ObjectBuilder::new()
        .property("manifests", ArrayBuilder::new().items(reference("Manifest")))
        .property("prune", described(Type::Boolean, "Whether the caller's objects that are not named are deleted"))
        .property("dry_run", described(Type::Boolean, "Whether to say only what would be done"))
        .required("manifests");
    schemas.push(("ApplyBody".into(), apply.into()));
    schemas.into_iter().fold(ComponentsBuilder::new(), |components, (name, schema)| components.schema(name, schema))
}

fn reference(name: &str) -> RefOr<Schema> {
    Ref::from_schema_name(name).into()
}

fn described(kind: Type, description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::Type(kind)).description(Some(description))
}

fn tags() -> ObjectBuilder {
    let text = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).build();
    ObjectBuilder::new().additional_properties(Some(Schema::Object(text)))
}

/// The calls that every kind has.
fn paths_of_kind(paths: PathsBuilder, kind: Kind) -> PathsBuilder {
    let (name, ..) = types(kind);
    let plural = kind.plural();
    let all = format!("/v1/{plural}");
    let one = format!("{all}/{{reference}}");
    let tag = |operation: Call| operation.tag(plural);
    let listing = FILTERS.iter().fold(Call::new(&format!("List {plural}")), |call, (parameter, description)| {
        call.query(parameter, Type::String, description)
    });
    let listing = listing
        .query("limit", Type::Integer, "Most objects in the answer, 1 to 1000 (100)")
        .query("page", Type::String, "`next` of the page before")
        .answer("200", "A page; the Link header leads to the next", Some(&format!("{name}Page")));
    let create = Call::new(&format!("Make a {kind}"))
        .header("Idempotency-Key", IDEMPOTENCY)
        .body(&format!("New{name}"), true)
        .answer("201", "Made", Some(&name));
    let read = Call::new(&format!("Read a {kind}")).path("reference", REFERENCE);
    let read = if kind == Kind::Endpoint { read.waits() } else { read }.answer("200", "It", Some(&name));
    let replace = Call::new(&format!("Replace a {kind}"))
        .path("reference", REFERENCE)
        .header("If-Match", IF_MATCH)
        .header("Idempotency-Key", IDEMPOTENCY)
        .body(&format!("{name}Replacement"), true)
        .answer("200", "As it is now", Some(&name));
    let delete = Call::new(&format!("Delete a {kind}"))
        .path("reference", REFERENCE)
        .header("If-Match", IF_MATCH)
        .answer("200", "As it was last, or as it goes", Some(&name));
    let item = |calls: Vec<(HttpMethod, Call)>| item(calls.into_iter().map(|(method, call)| (method, tag(call))));
    paths
        .path(all, item(vec![(HttpMethod::Get, listing), (HttpMethod::Post, create)]))
        .path(one, item(vec![(HttpMethod::Get, read), (HttpMethod::Put, replace), (HttpMethod::Delete, delete)]))
}

const REFERENCE: &str = "Id, or name among the caller's own";
const IDEMPOTENCY: &str = "1 to 128 printable characters: the same call with it within 24 hours has the same answer";
const IF_MATCH: &str = "Version as in the ETag: the call is refused if the object has another";
const FILTERS: [(&str, &str); 6] = [
    ("owner", "Name of the owner"),
    ("name", "The name"),
    ("tag.{key}", "Value of the tag of that key; for several tags, several parameters"),
    ("vpc", "What belongs to this VPC"),
    ("service", "Endpoints that stand for this service"),
    ("state", "Endpoints in this state"),
];

/// The calls that are no kind's.
fn other_paths(paths: PathsBuilder) -> PathsBuilder {
    use HttpMethod::{Delete, Get, Post};
    let principal = "Id or name of the principal";
    let connections = Call::new("Connections of a service")
        .tag("services")
        .path("service", REFERENCE)
        .query("endpoint", Type::String, "Only the one of this endpoint; the other parameters need it")
        .waits()
        .answer("200", "Those that there are", Some(&Connections::name()));
    let decision = |summary: &str| {
        Call::new(summary)
            .tag("services")
            .path("service", REFERENCE)
            .path("endpoint", "Id of the endpoint")
            .body(&DecisionBody::name(), false)
            .answer("200", "The connection as it is now", Some("Connection"))
    };
    let targets = |summary: &str, body: &str| {
        Call::new(summary).tag("target-groups").path("group", REFERENCE).body(body, true).answer(
            "200",
            "The target group as it is now",
            Some("TargetGroup"),
        )
    };
    let tokens = |summary: &str| Call::new(summary).tag("principals").path("principal", principal);
    let listed = tokens("Tokens of a principal").answer("200", "What is known of each", Some(&Tokens::name()));
    let made = tokens("Make a token").answer("201", "The token, which is shown only here", Some(&NewToken::name()));
    let revoked = tokens("Revoke a token").path("token", "Id of the token").answer("204", "Revoked", None);
    let apply = Call::new("Make the caller's objects what manifests say, all or none").body("ApplyBody", true).answer(
        "200",
        "What was, or would be, done",
        Some(&Plan::name()),
    );
    let events = Call::new("Events of connections; as text/event-stream if that is accepted")
        .query("after", Type::Integer, "Sequence number after which they begin (0)")
        .query("wait_seconds", Type::Integer, "How long to wait for one if there is none, 0 to 60 (0)")
        .query("limit", Type::Integer, "Most events in the answer, 1 to 1000 (1000)")
        .header("Last-Event-ID", "For a stream: the same as `after`")
        .answer("200", "Events", Some(&Events::name()));
    let usage = Call::new("Usage of a month, as JSON or CSV")
        .query("month", Type::String, "Month of UTC as 2026-11 (this one)")
        .query("by", Type::String, "consumer, endpoint or service (endpoint)")
        .query("format", Type::String, "json or csv; without it, as the Accept header says")
        .answer("200", "Usage", Some(&UsagePage::name()));
    let whoami = Call::new("Who calls").answer("200", "The caller", Some(&Whoami::name()));
    let health = Call::new("Whether control serves").public().answer("200", "It does", Some(&Health::name())).answer(
        "503",
        "It does not yet, or no more",
        Some(&Health::name()),
    );
    let metrics = Call::new("Metrics for Prometheus").public().answer("200", "Text", None);
    let this = Call::new("This document").public().answer("200", "OpenAPI 3.1", None);
    paths
        .path("/v1/principals/{principal}/tokens", item([(Get, listed), (Post, made)]))
        .path("/v1/principals/{principal}/tokens/{token}", item([(Delete, revoked)]))
        .path("/v1/services/{service}/connections", item([(Get, connections)]))
        .path("/v1/services/{service}/connections/{endpoint}/accept", item([(Post, decision("Accept a connection"))]))
        .path(
            "/v1/services/{service}/connections/{endpoint}/reject",
            item([(Post, decision("Reject a connection, also one that was accepted"))]),
        )
        .path(
            "/v1/target-groups/{group}/targets",
            item([
                (Post, targets("Register targets", &RegisterBody::name())),
                (Delete, targets("Deregister targets", &DeregisterBody::name())),
            ]),
        )
        .path("/v1/apply", item([(Post, apply)]))
        .path("/v1/events", item([(Get, events)]))
        .path("/v1/usage", item([(Get, usage)]))
        .path("/v1/whoami", item([(Get, whoami)]))
        .path("/v1/openapi.json", item([(Get, this)]))
        .path("/healthz", item([(Get, health)]))
        .path("/metrics", item([(Get, metrics)]))
}

fn item(calls: impl IntoIterator<Item = (HttpMethod, Call)>) -> utoipa::openapi::PathItem {
    let builder = utoipa::openapi::path::PathItemBuilder::new();
    calls.into_iter().fold(builder, |item, (method, call)| item.operation(method, call.build())).build()
}

/// An operation that is being described.
struct Call(OperationBuilder);

impl Call {
    fn new(summary: &str) -> Self {
        Self(OperationBuilder::new().summary(Some(summary)))
    }

    fn tag(self, tag: &str) -> Self {
        Self(self.0.tag(tag))
    }

    /// Without credentials.
    fn public(self) -> Self {
        Self(self.0.securities(Some(Vec::<SecurityRequirement>::new())))
    }

    fn parameter(self, place: ParameterIn, name: &str, kind: Type, description: &str) -> Self {
        let required = if place == ParameterIn::Path { Required::True } else { Required::False };
        let mut schema = ObjectBuilder::new().schema_type(SchemaType::Type(kind.clone()));
        if kind == Type::Integer {
            schema = schema.format(Some(SchemaFormat::Custom("uint64".into())));
        }
        let parameter: Parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(place)
            .required(required)
            .description(Some(description))
            .schema(Some(schema))
            .build();
        Self(self.0.parameter(parameter))
    }

    fn path(self, name: &str, description: &str) -> Self {
        self.parameter(ParameterIn::Path, name, Type::String, description)
    }

    fn query(self, name: &str, kind: Type, description: &str) -> Self {
        self.parameter(ParameterIn::Query, name, kind, description)
    }

    /// Whose answer may wait for an endpoint.
    fn waits(self) -> Self {
        self.query("while", Type::String, "State of the endpoint: the answer waits until it has another").query(
            "wait_seconds",
            Type::Integer,
            "How long it waits at most, 0 to 60 (0)",
        )
    }

    fn header(self, name: &str, description: &str) -> Self {
        self.parameter(ParameterIn::Header, name, Type::String, description)
    }

    fn body(self, schema: &str, required: bool) -> Self {
        let content = ContentBuilder::new().schema(Some(reference(schema))).build();
        let required = if required { Required::True } else { Required::False };
        let body = RequestBodyBuilder::new().content("application/json", content).required(Some(required)).build();
        Self(self.0.request_body(Some(body)))
    }

    fn answer(self, status: &str, description: &str, schema: Option<&str>) -> Self {
        let mut response = ResponseBuilder::new().description(description);
        if let Some(schema) = schema {
            let content = ContentBuilder::new().schema(Some(reference(schema))).build();
            response = response.content("application/json", content);
            if Kind::ALL.into_iter().any(|kind| types(kind).0 == schema) {
                let version = HeaderBuilder::new()
                    .schema(Some(ObjectBuilder::new().schema_type(SchemaType::Type(Type::String))))
                    .description(Some("The object's version, for If-Match"));
                response = response.header("ETag", version.build());
            }
        }
        Self(self.0.response(status, response.build()))
    }

    fn build(self) -> Operation {
        let error = ContentBuilder::new().schema(Some(reference(&ErrorBody::name()))).build();
        let error = ResponseBuilder::new().description("Why not").content("application/json", error).build();
        self.0.response("default", error).build()
    }
}

/// The document as a value, to be compared.
#[must_use]
pub fn document_value() -> Value {
    serde_json::to_value(document()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_what_is_served() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        if std::env::var_os("POSTERN_REGENERATE").is_some() {
            std::fs::write(&path, document_text()).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == document_text(),
            "docs/openapi.json is not what is served; POSTERN_REGENERATE=1 cargo test -p postern-control openapi writes it"
        );
    }

    #[test]
    fn every_reference_of_the_document_leads_to_a_schema_of_it() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document_value();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100, "the document was not read");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} is not there");
        }
    }
}

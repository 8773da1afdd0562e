//! What control counts of itself, for Prometheus. Nothing in it is of a tenant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::{Shared, text};
use crate::catalog::model::Kind;

/// Requests by route, method and status: all of them from small sets.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<BTreeMap<(String, &'static str, u16), Requests>>);

#[derive(Clone, Copy, Debug, Default)]
struct Requests {
    count: u64,
    time: Duration,
}

/// Counts a request by what became of it.
pub(super) async fn count(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = match request.method().as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    };
    let response = next.run(request).await;
    let mut requests = api.metrics.0.lock().unwrap_or_else(PoisonError::into_inner);
    let of = requests.entry((route, method, response.status().as_u16())).or_default();
    of.count += 1;
    of.time += start.elapsed();
    drop(requests);
    response
}

/// Names and meanings of the metrics, in the order of the page.
pub(super) const METRICS: [(&str, &str, &str); 6] = [
    ("postern_control_requests_total", "counter", "Requests by route, method and status"),
    ("postern_control_request_seconds_total", "counter", "Time that their answers took, by route, method and status"),
    ("postern_control_failed_authentications_total", "counter", "Requests without credentials that are known"),
    ("postern_control_objects", "gauge", "Objects of the catalog by kind"),
    ("postern_control_gateways_connected", "gauge", "Gateways whose stream is open"),
    ("postern_control_generation", "gauge", "Generation of the catalog"),
];

pub(super) async fn page(State(api): State<Shared>) -> Response {
    let requests = api.metrics.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (objects, connected, generation) = {
        let state = api.catalog.read();
        let objects = Kind::ALL.map(|kind| (kind, state.objects(kind).count()));
        let connected = |id: &&str| api.catalog.gateway_status(id).is_some_and(|status| status.connected);
        let connected = state.gateways().map(|gateway| gateway.metadata.id.as_str()).filter(connected).count();
        (objects, connected, state.generation())
    };
    let labels = |(route, method, status): &(String, &str, u16)| {
        format!("{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}")
    };
    let mut page = String::new();
    for (name, kind, help) in METRICS {
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        let _ = match name {
            "postern_control_requests_total" => {
                requests.iter().try_for_each(|(of, requests)| writeln!(page, "{name}{} {}", labels(of), requests.count))
            }
            "postern_control_request_seconds_total" => requests
                .iter()
                .try_for_each(|(of, requests)| writeln!(page, "{name}{} {}", labels(of), requests.time.as_secs_f64())),
            "postern_control_failed_authentications_total" => writeln!(page, "{name} {}", api.failures.all()),
            "postern_control_objects" => {
                objects.iter().try_for_each(|(kind, count)| writeln!(page, "{name}{{kind=\"{kind}\"}} {count}"))
            }
            "postern_control_gateways_connected" => writeln!(page, "{name} {connected}"),
            _ => writeln!(page, "{name} {generation}"),
        };
    }
    text("text/plain; version=0.0.4; charset=utf-8", page)
}

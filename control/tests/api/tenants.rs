//! Every call of the document as those who must not make it.

use postern_control::api::openapi;
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::client::{Answer, Client};

/// Method, path with its parts in braces, and whether credentials are needed.
fn calls() -> Vec<(String, String, bool)> {
    let document = openapi::document_value();
    let mut calls = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, call) in item.as_object().unwrap() {
            if ["get", "put", "post", "delete"].contains(&method.as_str()) {
                let public = call["security"].as_array().is_some_and(Vec::is_empty);
                calls.push((method.to_uppercase(), path.clone(), !public));
            }
        }
    }
    assert!(calls.len() > 60, "the document was not read: {}", calls.len());
    calls
}

/// A body that the call would take from one who may make it.
fn body(method: &str, path: &str, spec: Option<&Value>) -> Option<Value> {
    match (method, path) {
        ("GET", _) => None,
        (_, path) if path.ends_with("/targets") => {
            Some(json!({ "targets": [{ "address": "10.1.0.10", "port": 8443 }] }))
        }
        (_, "/v1/apply") => Some(json!({ "manifests": [], "prune": true })),
        ("PUT", _) => Some(json!({ "spec": spec.cloned().unwrap_or_else(|| json!({})) })),
        ("POST", path) if !path.ends_with("/tokens") && !path.ends_with("/accept") => Some(json!({})),
        _ => None,
    }
}

fn send(client: &Client, method: &str, path: &str, body: Option<&Value>) -> Answer {
    client.send(method, path, &[], body.map(Value::to_string).as_deref())
}

/// Objects of the provider and the consumer: plural, id, spec.
fn all(bed: &Bed) -> Vec<(String, Value)> {
    let kinds = calls().into_iter().filter_map(|(_, path, _)| {
        let plural = path.strip_prefix("/v1/")?.strip_suffix("/{reference}")?.to_owned();
        Some(plural)
    });
    let kinds: std::collections::BTreeSet<_> = kinds.collect();
    assert_eq!(kinds.len(), 10);
    let mut objects = Vec::new();
    for plural in kinds {
        let page = bed.operator.get(&format!("/v1/{plural}?limit=1000")).expect(200);
        for object in page["objects"].as_array().unwrap() {
            objects.push((plural.clone(), object.clone()));
        }
    }
    objects
}

/// An id of the same kind that nothing has.
fn absent(id: &str) -> String {
    let (prefix, digits) = id.split_at(id.len() - 17);
    assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    format!("{prefix}{}", "0".repeat(17))
}

fn world() -> (Bed, String) {
    let bed = Bed::start();
    let service = bed.provide();
    bed.make(&bed.provider, "security-groups", "bank-group", json!({}));
    let endpoint = bed.connect("shop-endpoint", &service);
    (bed, endpoint)
}

/// Words of the objects of others that an answer has.
#[track_caller]
fn assert_leaks_nothing(answer: &Answer, asked: &[&str], objects: &[(String, Value)], whose: &[&str], what: &str) {
    let text = answer.body.clone() + &format!("{:?}", answer.headers);
    for (_, object) in objects {
        if !whose.contains(&object["owner"].as_str().unwrap()) {
            continue;
        }
        for secret in [&object["id"], &object["name"], &object["tags"]["secret"]] {
            let Some(secret) = secret.as_str() else { continue };
            assert!(asked.contains(&secret) || !text.contains(secret), "{what} shows {secret}: {text}");
        }
    }
    assert!(!text.contains("10.1.0."), "{what} shows an address: {text}");
    assert!(!text.contains("10.2.0."), "{what} shows an address: {text}");
}

#[test]
fn without_credentials_or_with_wrong_ones_no_call_says_anything() {
    let (bed, _) = world();
    let objects = all(&bed);
    let nobody = bed.nobody();
    let wrong = Client { token: Some(format!("postern-token-{}", "0".repeat(64))), ..nobody.clone() };
    for (method, path, needs_credentials) in calls() {
        for client in [&nobody, &wrong] {
            let mut paths = vec![path.clone()];
            paths.extend(objects.iter().map(|(_, object)| filled(&path, object["id"].as_str().unwrap())));
            for filled in paths.iter().take(3) {
                let body = body(&method, &path, None);
                let answer = send(client, &method, filled, body.as_ref());
                if needs_credentials {
                    assert_eq!(answer.error().1, "Unauthenticated", "{method} {filled}");
                    assert_eq!(answer.status, 401);
                    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
                } else {
                    assert_eq!(answer.status, 200, "{method} {filled}");
                }
                if path != "/v1/openapi.json" {
                    assert_leaks_nothing(
                        &answer,
                        &[],
                        &objects,
                        &["bank", "shop", "operator"],
                        &format!("{method} {filled}"),
                    );
                }
            }
        }
    }
    assert_eq!(all(&bed), objects);
}

fn filled(path: &str, id: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { id } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn every_call_of_another_tenant_is_answered_as_if_the_object_were_not_there() {
    let (bed, endpoint) = world();
    let objects = all(&bed);
    let mut tried = 0;
    for (method, path, needs_credentials) in calls() {
        if !needs_credentials {
            continue;
        }
        let plural = path.strip_prefix("/v1/").unwrap().split('/').next().unwrap();
        let body_of = |object: Option<&Value>| body(&method, &path, object.map(|object| &object["spec"]));
        if !path.contains('{') {
            let body = body_of(None);
            let answer = send(&bed.stranger, &method, &path, body.as_ref());
            assert!([200, 201, 400, 403].contains(&answer.status), "{method} {path}: {}", answer.body);
            assert_leaks_nothing(&answer, &[], &objects, &["bank", "shop"], &format!("{method} {path}"));
            tried += 1;
            continue;
        }
        for (_, object) in objects.iter().filter(|(of, object)| of == plural && object["name"] != "spy") {
            let (id, name) = (object["id"].as_str().unwrap(), object["name"].as_str().unwrap());
            let missing = absent(id);
            let call = |id: &str| {
                let path = match path.contains("{endpoint}") {
                    true => path.replace("{service}", id).replace("{endpoint}", &endpoint),
                    false => filled(&path, id),
                };
                let body = body_of(Some(object));
                (path.clone(), send(&bed.stranger, &method, &path, body.as_ref()))
            };
            let (asked, answer) = call(id);
            let what = format!("{method} {asked}");
            let (status, code, _) = answer.error();
            assert!(
                matches!((status, code.as_str()), (404, "NotFound") | (403, "Forbidden")),
                "{what}: {}",
                answer.body
            );
            assert_leaks_nothing(&answer, &[id, endpoint.as_str()], &objects, &["bank", "shop"], &what);
            // The same words as for what is not there at all, and by name too.
            let (_, none) = call(&missing);
            assert_eq!(
                (status, answer.body.replace(id, "ID")),
                (none.status, none.body.replace(&missing, "ID")),
                "{what}"
            );
            let (_, named) = call(name);
            assert_eq!(
                (status, answer.body.replace(id, "ID")),
                (named.status, named.body.replace(name, "ID")),
                "{what}"
            );
            tried += 1;
        }
    }
    assert!(tried > 60, "{tried}");
    // The stranger's own attempts to make something may have left something of its own; nothing else is different.
    let left: Vec<_> = all(&bed).into_iter().filter(|(_, object)| object["owner"] != "spy").collect();
    let before: Vec<_> = objects.into_iter().filter(|(_, object)| object["owner"] != "spy").collect();
    assert_eq!(left, before);
}

#[test]
fn a_provider_sees_of_an_endpoint_only_what_its_connection_shows() {
    let (bed, endpoint) = world();
    let objects = all(&bed);
    let consumers: Vec<_> = objects.iter().filter(|(_, object)| object["owner"] == "shop").cloned().collect();
    assert!(consumers.len() >= 2);
    for (method, path, needs_credentials) in calls() {
        if !needs_credentials || path.contains("{service}") || method == "DELETE" || path == "/v1/apply" {
            continue;
        }
        let path = filled(&path, &endpoint);
        let answer = send(&bed.provider, &method, &path, body(&method, &path, None).as_ref());
        let hidden: Vec<_> = consumers
            .iter()
            .map(|(plural, object)| {
                let mut object = object.clone();
                // Its events name the endpoint, as the connection does.
                if plural == "endpoints" {
                    object["id"] = Value::Null;
                }
                (plural.clone(), object)
            })
            .collect();
        let text = answer.body.clone();
        for (_, object) in &hidden {
            for secret in [&object["id"], &object["name"], &object["tags"]["secret"]] {
                if let Some(secret) = secret.as_str() {
                    assert!(!text.contains(secret), "{method} {path} shows {secret}: {text}");
                }
            }
        }
        assert!(!text.contains("10.2.0."), "{method} {path} shows an address: {text}");
    }
    let answer = bed.provider.get(&format!("/v1/endpoints/{endpoint}"));
    assert_eq!(answer.status, 404, "{}", answer.body);
    assert_eq!(bed.provider.get("/v1/endpoints").expect(200)["objects"], json!([]));
    let connections = bed.provider.get("/v1/services/bank-api/connections").expect(200);
    let [connection] = &connections["connections"].as_array().unwrap()[..] else { panic!("{connections}") };
    let fields: Vec<_> = connection.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["consumer", "created", "endpoint", "state"], "{connection}");
}

#[test]
fn a_consumer_sees_nothing_of_the_service_but_its_id() {
    let (bed, _) = world();
    let service = bed.provider.get("/v1/services/bank-api").expect(200)["id"].as_str().unwrap().to_owned();
    assert_eq!(bed.consumer.get(&format!("/v1/services/{service}")).status, 404);
    assert_eq!(bed.consumer.get(&format!("/v1/services/{service}/connections")).status, 404);
    let endpoint = bed.consumer.get("/v1/endpoints/shop-endpoint").expect(200);
    assert_eq!(endpoint["spec"]["service"], service);
    assert!(!endpoint.to_string().contains("10.1.0."), "{endpoint}");
}

#[test]
fn a_tenant_makes_tokens_for_itself_only_and_a_revoked_one_is_nobody() {
    let bed = Bed::start();
    assert_eq!(bed.stranger.send("POST", "/v1/principals/bank/tokens", &[], None).status, 404);
    assert_eq!(bed.stranger.send("POST", "/v1/principals/operator/tokens", &[], None).status, 404);
    let made = bed.stranger.send("POST", "/v1/principals/spy/tokens", &[], None);
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let token = made.expect(201)["token"].as_str().unwrap().to_owned();
    let other = Client { token: Some(token.clone()), ..bed.stranger.clone() };
    assert_eq!(other.get("/v1/whoami").expect(200), json!({ "principal": "spy", "role": "tenant" }));
    let listed = bed.stranger.get("/v1/principals/spy/tokens").expect(200);
    assert!(!listed.to_string().contains(&token), "{listed}");
    let tokens = listed["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 2);
    for id in tokens {
        let path = format!("/v1/principals/spy/tokens/{}", id["id"].as_str().unwrap());
        assert_eq!(bed.consumer.delete(&path).status, 404);
        assert_eq!(bed.operator.delete(&path).status, 204);
    }
    assert_eq!((other.get("/v1/whoami").status, bed.stranger.get("/v1/whoami").status), (401, 401));
}

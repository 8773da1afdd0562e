//! Versions, retries, filters and pages.

use std::collections::BTreeSet;

use serde_json::json;

use crate::bed::Bed;

#[test]
fn of_two_who_change_the_same_version_one_is_refused_and_nothing_of_it_is_kept() {
    let bed = Bed::start();
    let made = bed.provider.post("/v1/vpcs", json!({ "name": "net", "spec": { "prefixes": ["10.1.0.0/16"] } }));
    let id = made.expect(201)["id"].as_str().unwrap().to_owned();
    assert_eq!(made.header("etag"), Some("\"1\""));
    assert_eq!(made.header("location"), Some(format!("/v1/vpcs/{id}").as_str()));
    let body = |prefix: &str| json!({ "spec": { "prefixes": [prefix] } }).to_string();
    let change = |prefix: &str, version: &str| {
        bed.provider.send("PUT", "/v1/vpcs/net", &[("If-Match", version)], Some(&body(prefix)))
    };
    // Both have read version 1 and write at the same time.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            ["10.2.0.0/16", "10.3.0.0/16"].map(|prefix| scope.spawn(move || change(prefix, "\"1\""))).into();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let won = answers.iter().find(|answer| answer.status == 200).unwrap();
    assert_eq!(won.header("etag"), Some("\"2\""));
    let lost = answers.iter().find(|answer| answer.status == 409).unwrap();
    assert_eq!(lost.error().1, "Conflict");
    assert_eq!(bed.provider.get("/v1/vpcs/net").expect(200), won.json());
    change("10.4.0.0/16", "*").expect(200);
    change("10.5.0.0/16", "3").expect(200);
    let delete = |version| bed.provider.send("DELETE", "/v1/vpcs/net", &[("If-Match", version)], None);
    assert_eq!(delete("\"3\"").error().1, "Conflict");
    delete("\"4\"").expect(200);
    assert_eq!(bed.provider.get("/v1/vpcs/net").status, 404);
}

#[test]
fn a_call_that_is_made_again_with_its_key_makes_nothing_anew() {
    let bed = Bed::start();
    let body = json!({ "name": "net", "spec": { "prefixes": ["10.1.0.0/16"] } }).to_string();
    let make = |body: &str| bed.provider.send("POST", "/v1/vpcs", &[("Idempotency-Key", "k-1")], Some(body));
    let first = make(&body).expect(201);
    assert_eq!(make(&body).expect(201), first);
    let other = body.replace("10.1", "10.2");
    let (status, code, _) = make(&other).error();
    assert!(status == 409 || status == 400, "{status} {code}");
    assert_eq!(bed.provider.get("/v1/vpcs").expect(200)["objects"].as_array().unwrap().len(), 1);
    // The key is the caller's own.
    let theirs = bed.consumer.send("POST", "/v1/vpcs", &[("Idempotency-Key", "k-1")], Some(&body)).expect(201);
    assert_ne!(theirs["id"], first["id"]);
}

#[test]
fn pages_give_each_object_once_and_their_links_keep_the_filter() {
    let bed = Bed::start();
    for number in 0..7 {
        let body =
            json!({ "name": format!("net-{number}"), "tags": { "team of": if number < 5 { "a&b" } else { "c" } } });
        let body = {
            let mut body = body;
            body["spec"] = json!({ "prefixes": ["10.1.0.0/16"] });
            body
        };
        bed.provider.post("/v1/vpcs", body).expect(201);
    }
    let mut next = Some("/v1/vpcs?limit=2&tag.team%20of=a%26b".to_owned());
    let mut seen = BTreeSet::new();
    let mut pages = 0;
    while let Some(path) = next {
        let answer = bed.provider.get(&path);
        let page = answer.expect(200);
        for object in page["objects"].as_array().unwrap() {
            assert!(seen.insert(object["name"].as_str().unwrap().to_owned()));
        }
        pages += 1;
        let link = answer.header("link").map(|link| {
            let (path, relation) = link.strip_prefix('<').and_then(|rest| rest.split_once('>')).unwrap();
            assert_eq!(relation, "; rel=\"next\"");
            path.to_owned()
        });
        assert_eq!(link.is_some(), page["next"].is_string());
        next = link;
    }
    assert_eq!((pages, seen.len()), (3, 5));
    let only = bed.provider.get("/v1/vpcs?name=net-3").expect(200);
    assert_eq!(only["objects"].as_array().unwrap().len(), 1);
    assert_eq!(bed.consumer.get("/v1/vpcs?owner=bank").expect(200)["objects"], json!([]));
    assert_eq!(bed.operator.get("/v1/vpcs?owner=bank").expect(200)["objects"].as_array().unwrap().len(), 7);
}

#[test]
fn targets_are_registered_and_deregistered_one_by_one() {
    let bed = Bed::start();
    bed.provide();
    let path = "/v1/target-groups/bank-web/targets";
    let more = json!({ "targets": [{ "address": "10.1.0.11", "port": 80, "weight": 3 }] });
    let group = bed.provider.post(path, more.clone()).expect(200);
    assert_eq!(group["spec"]["targets"].as_array().unwrap().len(), 2);
    let gone = json!({ "targets": [{ "address": "10.1.0.11", "port": 80 }] }).to_string();
    let group = bed.provider.send("DELETE", path, &[], Some(&gone)).expect(200);
    assert_eq!(group["spec"]["targets"].as_array().unwrap().len(), 1);
    assert_eq!(bed.provider.send("DELETE", path, &[], Some(&gone)).error().1, "NotFound");
}

#[test]
fn a_whole_state_is_planned_applied_and_pruned() {
    let bed = Bed::start();
    let vpc = |name: &str| json!({ "kind": "vpc", "name": name, "spec": { "prefixes": ["10.1.0.0/16"] } });
    let apply = |manifests: serde_json::Value, prune, dry_run| {
        let body = json!({ "manifests": manifests, "prune": prune, "dry_run": dry_run });
        let plan = bed.provider.post("/v1/apply", body).expect(200);
        let steps = plan["steps"].as_array().unwrap().clone();
        steps
            .iter()
            .map(|step| format!("{} {}", step["action"].as_str().unwrap(), step["name"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(apply(json!([vpc("one"), vpc("two")]), false, true), ["create one", "create two"]);
    assert_eq!(bed.provider.get("/v1/vpcs").expect(200)["objects"], json!([]));
    assert_eq!(apply(json!([vpc("one"), vpc("two")]), false, false), ["create one", "create two"]);
    assert_eq!(apply(json!([vpc("two")]), true, false), ["keep two", "delete one"]);
    assert_eq!(bed.provider.get("/v1/vpcs").expect(200)["objects"].as_array().unwrap().len(), 1);
}

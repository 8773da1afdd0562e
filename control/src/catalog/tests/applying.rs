//! Whole desired states.

use serde_json::{Value, json};

use super::builder::World;
use crate::catalog::model::Kind;
use crate::catalog::{Action, Code, Manifest, Plan};

fn manifests(value: Value) -> Vec<Manifest> {
    serde_json::from_value(value).unwrap()
}

fn actions(plan: &Plan) -> Vec<(Action, &str)> {
    plan.steps.iter().map(|step| (step.action, step.name.as_str())).collect()
}

/// A service whose objects stand in the file before those that they refer to.
fn shop(port: u16) -> Value {
    json!([
        { "kind": "service", "name": "api", "spec": { "load_balancers": ["front"], "allowed_principals": ["bank"] } },
        { "kind": "load-balancer", "name": "front", "tags": { "team": "a" },
          "spec": { "listeners": [{ "port": port, "target_groups": [{ "target_group": "web" }] }] } },
        { "kind": "target-group", "name": "web",
          "spec": { "vpc": "net", "snat_pool": "pool", "targets": [{ "address": "10.1.0.10", "port": 80 }] } },
        { "kind": "snat-pool", "name": "pool", "spec": { "vpc": "net", "addresses": ["10.1.0.9"] } },
        { "kind": "vpc", "name": "net", "spec": { "prefixes": ["10.1.0.0/24"] } }
    ])
}

#[test]
fn a_file_in_any_order_is_applied_in_one_transaction_and_then_changes_nothing() {
    let world = World::bare();
    let before = world.catalog.read().generation();
    let dry = world.catalog.apply(&world.provider, manifests(shop(443)), true, true).unwrap();
    assert_eq!(world.catalog.read().generation(), before, "a dry run changes nothing");
    let plan = world.catalog.apply(&world.provider, manifests(shop(443)), true, false).unwrap();
    assert_eq!(plan, dry);
    assert_eq!(actions(&plan).iter().map(|step| step.1).collect::<Vec<_>>(), ["net", "pool", "web", "front", "api"]);
    assert!(plan.steps.iter().all(|step| step.action == Action::Create));
    assert_eq!(world.catalog.read().generation(), before + 1);
    let again = world.catalog.apply(&world.provider, manifests(shop(443)), true, false).unwrap();
    assert!(again.steps.iter().all(|step| step.action == Action::Keep), "{again:?}");
    assert_eq!(world.catalog.read().generation(), before + 1);
    let changed = world.catalog.apply(&world.provider, manifests(shop(444)), false, false).unwrap();
    let step = changed.steps.iter().find(|step| step.action == Action::Change).unwrap();
    assert_eq!((step.name.as_str(), step.differences.len()), ("front", 1));
    let difference = &step.differences[0];
    assert_eq!(difference.field, "spec.listeners[0].port");
    assert_eq!((&difference.before, &difference.after), (&Some(json!(443)), &Some(json!(444))));
    world.compare_with_store();
}

#[test]
fn pruning_deletes_what_no_manifest_names_and_refuses_what_others_use() {
    let world = World::bare();
    world.catalog.apply(&world.provider, manifests(shop(443)), false, false).unwrap();
    let mut fewer = manifests(shop(443));
    fewer.retain(|manifest| manifest.kind != Kind::TargetGroup);
    let refusal = world.catalog.apply(&world.provider, fewer, true, false).unwrap_err();
    assert_eq!((refusal.code, refusal.field.as_deref()), (Code::InUse, None), "{}", refusal.message);
    let only = json!([{ "kind": "vpc", "name": "net", "spec": { "prefixes": ["10.1.0.0/24"] } }]);
    let plan = world.catalog.apply(&world.provider, manifests(only), true, false).unwrap();
    let deleted = actions(&plan).into_iter().filter(|step| step.0 == Action::Delete).map(|step| step.1);
    assert_eq!(deleted.collect::<Vec<_>>(), ["api", "front", "web", "pool"], "users go before what they use");
    world.compare_with_store();
}

#[test]
fn a_file_with_one_mistake_changes_nothing_and_the_mistake_is_placed() {
    let world = World::bare();
    let before = world.catalog.read().clone();
    let refusal = world.catalog.apply(&world.provider, manifests(shop(0)), true, false).unwrap_err();
    assert_eq!(refusal.code, Code::Invalid);
    assert!(refusal.field.as_ref().unwrap().starts_with("manifests[1]"), "{refusal:?}");
    assert!(refusal.message.contains("front") && refusal.message.contains("allowed is 1 to 65535"), "{refusal:?}");
    let unknown = json!([{ "kind": "service", "name": "api", "spec": { "load_balancers": ["absent"] } }]);
    let refusal = world.catalog.apply(&world.provider, manifests(unknown), false, false).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("manifests[0].spec.load_balancers[0]"));
    let twice = json!([{ "kind": "vpc", "name": "n" }, { "kind": "vpc", "name": "n" }]);
    assert_eq!(world.catalog.apply(&world.provider, manifests(twice), false, false).unwrap_err().code, Code::Invalid);
    assert_eq!(*world.catalog.read(), before);
    let field = json!([{ "kind": "vpc", "name": "n", "spec": { "prefix": [] } }]);
    let error = serde_json::from_value::<Vec<Manifest>>(field).unwrap_err();
    assert!(error.to_string().contains("unknown field `prefix`"), "{error}");
}

#[test]
fn two_load_balancers_of_a_service_swap_their_ports_in_one_call() {
    let world = World::bare();
    let ports = |first: u16, second: u16| {
        let balancer = |name: &str, port: u16| {
            json!({ "kind": "load-balancer", "name": name,
            "spec": { "listeners": [{ "port": port, "target_groups": [{ "target_group": "web" }] }] } })
        };
        let mut all = shop(1);
        let all = all.as_array_mut().unwrap();
        all.retain(|manifest| manifest["kind"] != "load-balancer");
        all[0]["spec"]["load_balancers"] = json!(["one", "two"]);
        all.extend([balancer("one", first), balancer("two", second)]);
        json!(all)
    };
    world.catalog.apply(&world.provider, manifests(ports(80, 443)), false, false).unwrap();
    world.catalog.apply(&world.provider, manifests(ports(443, 80)), false, false).unwrap();
    assert!(world.catalog.apply(&world.provider, manifests(ports(443, 443)), false, false).is_err());
    world.compare_with_store();
}

/// How long it takes at size; run by hand with `--ignored --nocapture`, in release.
#[test]
#[ignore = "a measurement"]
fn a_hundred_thousand_endpoints() {
    let world = World::bare();
    world.provide(json!({ "allowed_principals": ["*"] }));
    let vpc = json!({ "prefixes": ["10.64.0.0/14"] });
    world.make(&world.consumer, Kind::Vpc, "large", vpc);
    let service = world.service_id();
    let endpoint = |number: usize| json!({ "kind": "endpoint", "name": format!("e{number}"), "spec": { "vpc": "large", "service": service } });
    let started = std::time::Instant::now();
    let all = manifests(json!((0..100_000).map(endpoint).collect::<Vec<_>>()));
    world.catalog.apply(&world.consumer, all, false, false).unwrap();
    println!("apply 100,000: {:?}", started.elapsed());
    let started = std::time::Instant::now();
    super::builder::open(&world.store, &world.time);
    println!("open: {:?}", started.elapsed());
    let started = std::time::Instant::now();
    for number in 0..1000 {
        let endpoint = json!({ "vpc": "large", "service": service });
        world.make(&world.consumer, Kind::Endpoint, &format!("more{number}"), endpoint);
    }
    println!("each of 1,000 more, without a disk: {:?}", started.elapsed() / 1000);
}

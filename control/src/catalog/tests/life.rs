//! The life of an endpoint.

use serde_json::json;

use super::builder::{DAY, World};
use crate::catalog::Code;
use crate::catalog::model::{EventKind, Kind};

fn open_to_all() -> serde_json::Value {
    json!({ "allowed_principals": ["*"] })
}

fn by_hand() -> serde_json::Value {
    json!({ "allowed_principals": ["bank"], "acceptance_required": true })
}

fn events(world: &World) -> Vec<EventKind> {
    let events = world.all_events();
    for (event, sequence) in events.iter().zip(1..) {
        assert_eq!(event.sequence, sequence, "events have no gaps");
        assert_eq!((event.provider.as_str(), event.consumer.as_str()), ("shop", "bank"));
    }
    events.iter().map(|event| event.event).collect()
}

#[test]
fn an_endpoint_of_an_open_service_is_pending_until_its_gateways_have_applied_it() {
    let world = World::with_service(open_to_all());
    let endpoint = world.connect("e");
    assert_eq!(world.state("e"), "pending");
    world.catalog.endpoint_applied(endpoint.id()).unwrap();
    assert_eq!(world.state("e"), "available");
    assert_eq!(events(&world), [EventKind::Connect, EventKind::Accept]);
    world.compare_with_store();
}

#[test]
fn a_provider_accepts_rejects_after_that_and_accepts_again() {
    let world = World::with_service(by_hand());
    let id = world.connect("e").id().to_owned();
    assert_eq!(world.state("e"), "pendingAcceptance");
    let waiting = world.catalog.connections(&world.provider, "api", None).unwrap();
    assert_eq!((waiting.len(), waiting[0].consumer.as_str()), (1, "bank"));
    world.catalog.endpoint_applied(&id).unwrap();
    assert_eq!(world.state("e"), "pendingAcceptance", "what is not accepted does not become available");
    world.catalog.accept(&world.provider, "api", &id).unwrap();
    world.catalog.accept(&world.provider, "api", &id).unwrap();
    world.catalog.endpoint_applied(&id).unwrap();
    world.catalog.reject(&world.provider, "api", &id, Some("bills were not paid")).unwrap();
    assert_eq!(world.endpoint("e")["reason"], "bills were not paid");
    assert_eq!(world.state("e"), "rejected");
    world.catalog.endpoint_applied(&id).unwrap();
    assert_eq!(world.state("e"), "rejected", "what is rejected stays so");
    world.catalog.accept(&world.provider, "api", &id).unwrap();
    assert_eq!(world.state("e"), "pending");
    use EventKind::{Accept, Connect, Reject};
    assert_eq!(events(&world), [Connect, Accept, Reject, Accept]);
    world.compare_with_store();
}

#[test]
fn only_the_provider_accepts_and_rejects() {
    let world = World::with_service(by_hand());
    let id = world.connect("e").id().to_owned();
    let service = world.service_id();
    for caller in [&world.consumer, &super::builder::tenant("else")] {
        let refusal = world.catalog.accept(caller, &service, &id).unwrap_err();
        assert_eq!(refusal.code, Code::NotFound);
        assert_eq!(world.catalog.reject(caller, &service, &id, None).unwrap_err().code, Code::NotFound);
        assert_eq!(world.catalog.connections(caller, &service, None).unwrap_err().code, Code::NotFound);
    }
    assert_eq!(world.state("e"), "pendingAcceptance");
}

#[test]
fn a_connection_that_nobody_accepts_in_seven_days_expires() {
    let world = World::with_service(by_hand());
    let id = world.connect("e").id().to_owned();
    world.pass(7 * DAY - 1);
    assert_eq!(world.state("e"), "pendingAcceptance");
    world.pass(1);
    assert_eq!(world.state("e"), "expired");
    assert_eq!(world.catalog.accept(&world.provider, "api", &id).unwrap_err().code, Code::Conflict);
    world.compare_with_store();
}

#[test]
fn a_deleted_endpoint_is_shown_for_an_hour_and_frees_its_name_address_and_service() {
    let world = World::with_service(open_to_all());
    let endpoint = world.connect("e");
    let address = world.endpoint("e")["addresses"][0]["address"].as_str().unwrap().parse().unwrap();
    let gateway = world.catalog.one(&world.operator, Kind::Gateway, "gw1").unwrap().id().to_owned();
    world.catalog.set_placement(vec![(endpoint.id().to_owned(), address, Some(gateway))]).unwrap();
    world.catalog.endpoint_applied(endpoint.id()).unwrap();
    world.catalog.delete(&world.consumer, Kind::Endpoint, "e", None).unwrap();
    assert_eq!(world.state("e"), "deleting");
    assert_eq!(world.catalog.delete(&world.provider, Kind::Service, "api", None).unwrap_err().code, Code::InUse);
    world.catalog.endpoint_applied(endpoint.id()).unwrap();
    assert_eq!(world.state("e"), "deleted");
    let again = json!({ "vpc": "bank-net", "service": world.service_id(), "addresses": [{ "address": address }] });
    world.make(&world.consumer, Kind::Endpoint, "e", again);
    assert_eq!(world.state("e"), "pending", "a name is first that of who is alive");
    world.catalog.delete(&world.consumer, Kind::Endpoint, "e", None).unwrap();
    world.catalog.delete(&world.provider, Kind::Service, "api", None).unwrap();
    world.pass(3_599_999);
    assert!(world.catalog.one(&world.consumer, Kind::Endpoint, endpoint.id()).is_ok());
    world.compare_with_store();
    world.pass(1);
    assert_eq!(world.catalog.one(&world.consumer, Kind::Endpoint, endpoint.id()).unwrap_err().code, Code::NotFound);
    world.compare_with_store();
}

#[test]
fn taking_a_principal_off_the_allow_list_leaves_accepted_endpoints_alone_unless_the_service_reconciles() {
    let world = World::with_service(open_to_all());
    let id = world.connect("e").id().to_owned();
    world.catalog.endpoint_applied(&id).unwrap();
    let closed = json!({ "load_balancers": ["front"], "allowed_principals": [] });
    world.change(&world.provider, Kind::Service, "api", closed).unwrap();
    assert_eq!(world.state("e"), "available");
    let another = json!({ "vpc": "bank-net", "service": world.service_id() });
    assert_eq!(world.try_make(&world.consumer, Kind::Endpoint, "f", another).unwrap_err().code, Code::NotFound);
    let closed = json!({ "load_balancers": ["front"], "allowed_principals": [], "reconcile": true });
    world.change(&world.provider, Kind::Service, "api", closed).unwrap();
    assert_eq!(world.state("e"), "rejected");
    assert_eq!(world.catalog.accept(&world.provider, "api", &id).unwrap_err().code, Code::Conflict);
    assert_eq!(events(&world), [EventKind::Connect, EventKind::Accept, EventKind::Reject]);
    world.compare_with_store();
}

#[test]
fn an_endpoint_that_its_gateway_refuses_has_failed_until_it_is_applied() {
    let world = World::with_service(open_to_all());
    let id = world.connect("e").id().to_owned();
    world.catalog.endpoint_failed(&id, "no gateway in zone b").unwrap();
    assert_eq!(
        (world.state("e"), world.endpoint("e")["reason"].as_str()),
        ("failed".to_owned(), Some("no gateway in zone b"))
    );
    world.catalog.endpoint_applied(&id).unwrap();
    assert_eq!(world.state("e"), "available");
    assert!(world.endpoint("e")["reason"].is_null());
}

#[test]
fn a_load_balancer_is_exchanged_under_live_endpoints() {
    let world = World::with_service(open_to_all());
    let id = world.connect("e").id().to_owned();
    world.catalog.endpoint_applied(&id).unwrap();
    let listeners = json!([{ "port": 443, "target_groups": [{ "target_group": "web" }] }]);
    world.make(&world.provider, Kind::LoadBalancer, "new-front", json!({ "listeners": listeners }));
    let service = json!({ "load_balancers": ["new-front"], "allowed_principals": ["*"] });
    world.change(&world.provider, Kind::Service, "api", service).unwrap();
    world.catalog.delete(&world.provider, Kind::LoadBalancer, "front", None).unwrap();
    assert_eq!(world.state("e"), "available");
    world.compare_with_store();
}

#[test]
fn placement_outlives_a_restart() {
    let world = World::with_service(open_to_all());
    let endpoint = world.connect("e");
    let address = world.endpoint("e")["addresses"][0]["address"].as_str().unwrap().parse().unwrap();
    let gateway = world.catalog.one(&world.operator, Kind::Gateway, "gw1").unwrap().id().to_owned();
    let pool = world.catalog.one(&world.provider, Kind::SnatPool, "pool").unwrap().id().to_owned();
    let source: std::net::IpAddr = "10.1.0.200".parse().unwrap();
    let placement =
        vec![(endpoint.id().to_owned(), address, Some(gateway.clone())), (pool.clone(), source, Some(gateway.clone()))];
    world.catalog.set_placement(placement).unwrap();
    world.compare_with_store();
    let state = world.catalog.read();
    assert_eq!(state.endpoint(endpoint.id()).unwrap().status.addresses[0].gateway.as_ref(), Some(&gateway));
    assert_eq!(state.snat_pool(&pool).unwrap().status.holders.get(&source), Some(&gateway));
    assert_eq!(state.endpoint(endpoint.id()).unwrap().metadata.version, 1, "placement is not a change of the owner's");
}

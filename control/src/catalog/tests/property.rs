//! Whatever is called in whatever order, what must always hold does.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;

use super::builder::{DAY, World};
use crate::catalog::model::{EndpointState, Kind};
use crate::catalog::state::references;

#[derive(Clone, Debug)]
enum Command {
    Connect(u8, Option<u8>),
    Delete(u8),
    Accept(u8),
    Reject(u8),
    Applied(u8),
    Failed(u8),
    Place(u8, bool),
    Service { allowed: bool, by_hand: bool, reconcile: bool },
    DeleteOf(u8),
    Pass(u32),
}

fn command() -> impl Strategy<Value = Command> {
    let name = 0..6_u8;
    prop_oneof![
        4 => (name.clone(), prop::option::of(2..8_u8)).prop_map(|(name, host)| Command::Connect(name, host)),
        2 => name.clone().prop_map(Command::Delete),
        2 => name.clone().prop_map(Command::Accept),
        1 => name.clone().prop_map(Command::Reject),
        3 => name.clone().prop_map(Command::Applied),
        1 => name.clone().prop_map(Command::Failed),
        2 => (name, any::<bool>()).prop_map(|(name, held)| Command::Place(name, held)),
        2 => any::<(bool, bool, bool)>()
            .prop_map(|(allowed, by_hand, reconcile)| Command::Service { allowed, by_hand, reconcile }),
        1 => (0..5_u8).prop_map(Command::DeleteOf),
        2 => prop_oneof![Just(3_600_000_u32), Just(DAY as u32), Just(1000)].prop_map(Command::Pass),
    ]
}

/// Does it; whether it is refused is not the question.
fn call(world: &World, command: &Command) {
    let id = |name: u8| {
        let endpoint = world.catalog.one(&world.consumer, Kind::Endpoint, &format!("e{name}"));
        endpoint.map_or_else(|_| "vpce-00000000000000000".to_owned(), |endpoint| endpoint.id().to_owned())
    };
    let catalog = &world.catalog;
    match command {
        Command::Connect(name, host) => {
            let service = catalog.one(&world.provider, Kind::Service, "api").map(|service| service.id().to_owned());
            let addresses = host.map_or(json!([]), |host| json!([{ "address": format!("10.2.0.{host}") }]));
            let endpoint = json!({ "vpc": "bank-net", "service": service.unwrap_or_default(), "addresses": addresses });
            drop(world.try_make(&world.consumer, Kind::Endpoint, &format!("e{name}"), endpoint));
        }
        Command::Delete(name) => drop(catalog.delete(&world.consumer, Kind::Endpoint, &format!("e{name}"), None)),
        Command::Accept(name) => drop(catalog.accept(&world.provider, "api", &id(*name))),
        Command::Reject(name) => drop(catalog.reject(&world.provider, "api", &id(*name), None)),
        Command::Applied(name) => catalog.endpoint_applied(&id(*name)).unwrap(),
        Command::Failed(name) => catalog.endpoint_failed(&id(*name), "it cannot be").unwrap(),
        Command::Place(name, held) => {
            let id = id(*name);
            let gateway = catalog.one(&world.operator, Kind::Gateway, "gw1").unwrap().id().to_owned();
            let state = catalog.read();
            let address = state.endpoint(&id).map(|endpoint| endpoint.status.addresses[0].address);
            drop(state);
            let placement = address.map(|address| (id, address, held.then_some(gateway)));
            catalog.set_placement(placement.into_iter().collect()).unwrap();
        }
        Command::Service { allowed, by_hand, reconcile } => {
            let allowed: &[&str] = if *allowed { &["bank"] } else { &[] };
            let service = json!({ "load_balancers": ["front"], "allowed_principals": allowed,
                "acceptance_required": by_hand, "reconcile": reconcile });
            drop(world.change(&world.provider, Kind::Service, "api", service));
        }
        Command::DeleteOf(which) => {
            let objects = [
                (Kind::Service, "api"),
                (Kind::LoadBalancer, "front"),
                (Kind::TargetGroup, "web"),
                (Kind::SnatPool, "pool"),
                (Kind::Vpc, "shop-net"),
            ];
            let (kind, name) = objects[usize::from(*which)];
            drop(catalog.delete(&world.provider, kind, name, None));
        }
        Command::Pass(time) => world.pass(u64::from(*time)),
    }
}

fn check(world: &World) {
    let state = world.catalog.read();
    let mut addresses: BTreeSet<(String, IpAddr)> = BTreeSet::new();
    for kind in Kind::ALL {
        for object in state.objects(kind) {
            for target in references(object).iter().filter(|target| !target.starts_with("principal/")) {
                let there = Kind::ALL.into_iter().any(|kind| state.object(kind, target).is_some());
                assert!(there, "{} refers to {target}, which is gone", object.id());
                assert!(state.users(target).any(|user| user == (kind, object.id())), "{target} does not know its user");
            }
        }
    }
    for endpoint in state.endpoints().filter(|endpoint| endpoint.status.state != EndpointState::Deleted) {
        assert_eq!(endpoint.status.addresses.len(), 1);
        let address = endpoint.status.addresses[0].address;
        assert!(addresses.insert((endpoint.spec.vpc.clone(), address)), "{address} is there twice");
    }
    drop(state);
    for (event, sequence) in world.all_events().iter().zip(1..) {
        assert_eq!(event.sequence, sequence, "events have gaps");
    }
    world.compare_with_store();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_calls_breaks_what_must_hold(commands in prop::collection::vec(command(), 1..40)) {
        let world = World::with_service(json!({ "allowed_principals": ["bank"] }));
        for command in &commands {
            call(&world, command);
        }
        check(&world);
    }
}

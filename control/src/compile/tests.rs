//! Whatever changes in whatever order, what was kept up to date is what would be worked out anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use postern_tables::ResourceKey;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;

use super::{Compiler, Releasing};
use crate::catalog::model::{Kind, Role};
use crate::catalog::{Caller, Catalog, Change, New, Settings, Spec};
use crate::store::MemoryStore;

#[derive(Clone, Debug)]
enum Command {
    Connect {
        name: u8,
        service: u8,
    },
    Delete(u8),
    /// Gateways have applied what the endpoint is: `deleting` becomes `deleted`.
    Applied(u8),
    Reject(u8),
    PlaceEndpoint(u8, Option<u8>),
    PlacePool {
        pool: u8,
        address: u8,
        gateway: Option<u8>,
    },
    Release(u8),
    Gateway {
        gateway: u8,
        there: bool,
    },
    Attach {
        gateway: u8,
        vpc: u8,
        there: bool,
    },
    /// Group 0 has a second pool of its VPC to choose from.
    Pool {
        second: bool,
    },
    Targets {
        group: u8,
        targets: u8,
    },
    Balance {
        balancer: u8,
        groups: u8,
    },
    Exchange {
        service: u8,
        balancer: u8,
    },
    Plain {
        service: u8,
        pool: u8,
    },
}

fn command() -> impl Strategy<Value = Command> {
    let (name, two) = (0..5_u8, 0..2_u8);
    let gateway = || prop::option::weighted(0.8, 0..2_u8);
    prop_oneof![
        4 => (name.clone(), two.clone()).prop_map(|(name, service)| Command::Connect { name, service }),
        1 => name.clone().prop_map(Command::Delete),
        1 => name.clone().prop_map(Command::Applied),
        1 => name.clone().prop_map(Command::Reject),
        4 => (name.clone(), gateway()).prop_map(|(name, gateway)| Command::PlaceEndpoint(name, gateway)),
        2 => (two.clone(), two.clone(), gateway())
            .prop_map(|(pool, address, gateway)| Command::PlacePool { pool, address, gateway }),
        2 => name.prop_map(Command::Release),
        1 => (two.clone(), any::<bool>()).prop_map(|(gateway, there)| Command::Gateway { gateway, there }),
        4 => (two.clone(), 0..3_u8, prop::bool::weighted(0.8))
            .prop_map(|(gateway, vpc, there)| Command::Attach { gateway, vpc, there }),
        2 => any::<bool>().prop_map(|second| Command::Pool { second }),
        2 => (two.clone(), 0..4_u8).prop_map(|(group, targets)| Command::Targets { group, targets }),
        2 => (two.clone(), 1..4_u8).prop_map(|(balancer, groups)| Command::Balance { balancer, groups }),
        2 => (two.clone(), two.clone()).prop_map(|(service, balancer)| Command::Exchange { service, balancer }),
        1 => (two.clone(), two).prop_map(|(service, pool)| Command::Plain { service, pool }),
    ]
}

/// Kind and digest of everything that each gateway is to have.
type Everything = BTreeMap<String, BTreeMap<ResourceKey, u128>>;

struct World {
    catalog: Catalog,
    changes: Receiver<Arc<Change>>,
    compiler: Compiler,
    releasing: Releasing,
    operator: Caller,
    /// What gateways had when they were looked at last.
    seen: Everything,
}

impl World {
    /// VPC 0 is the consumer's, 1 and 2 are the provider's with a pool, a group, a balancer and a service each.
    fn new() -> Self {
        let catalog = Catalog::open(Arc::new(MemoryStore::new()), Settings::default()).unwrap();
        catalog.begin_with_operator("root").unwrap();
        let changes = catalog.changes();
        let operator = Caller { principal: "root".to_owned(), role: Role::Operator };
        let compiler = Compiler::new(&catalog.read(), &Releasing::new());
        let mut world =
            Self { catalog, changes, compiler, releasing: Releasing::new(), operator, seen: Everything::new() };
        for vpc in 0..3 {
            world.make(Kind::Vpc, &format!("v{vpc}"), json!({ "prefixes": [format!("10.{vpc}.0.0/24")] }));
        }
        for number in 0..2 {
            world.make(Kind::Gateway, &format!("g{number}"), json!({}));
            let addresses = [200, 201].map(|host| format!("10.{}.0.{host}", number + 1));
            let pool = json!({ "vpc": format!("v{}", number + 1), "addresses": addresses });
            world.make(Kind::SnatPool, &format!("p{number}"), pool);
            world.make(Kind::TargetGroup, &format!("t{number}"), group(number, &format!("p{number}"), 1));
            world.make(Kind::LoadBalancer, &format!("b{number}"), balancer(1 + number));
            world.make(
                Kind::Service,
                &format!("s{number}"),
                service_of(json!({ "load_balancers": [format!("b{number}")] })),
            );
        }
        world.make(Kind::SnatPool, "p2", json!({ "vpc": "v1", "addresses": ["10.1.0.202"] }));
        world.follow();
        world
    }

    fn make(&mut self, kind: Kind, name: &str, spec: Value) {
        let spec = Spec::from_value(kind, spec).unwrap();
        let new = New { name: Some(name.to_owned()), owner: None, tags: BTreeMap::new(), spec };
        // Whether it is refused is not the question.
        drop(self.catalog.create(&self.operator, new, None));
    }

    fn change(&self, kind: Kind, name: &str, spec: Value) {
        let spec = Spec::from_value(kind, spec).unwrap();
        drop(self.catalog.replace(&self.operator, kind, name, spec, None, None, None));
    }

    fn id(&self, kind: Kind, name: &str) -> Option<String> {
        self.catalog.one(&self.operator, kind, name).ok().map(|object| object.id().to_owned())
    }

    fn gateway(&self, number: Option<u8>) -> Option<String> {
        self.id(Kind::Gateway, &format!("g{}", number?))
    }

    /// Id and address.
    fn endpoint(&self, name: u8) -> Option<(String, IpAddr)> {
        let id = self.id(Kind::Endpoint, &format!("e{name}"))?;
        let address = self.catalog.read().endpoint(&id)?.status.addresses.first()?.address;
        Some((id, address))
    }

    fn call(&mut self, command: &Command) {
        match *command {
            Command::Connect { name, service } => {
                let service = self.id(Kind::Service, &format!("s{service}")).unwrap_or_default();
                self.make(Kind::Endpoint, &format!("e{name}"), json!({ "vpc": "v0", "service": service }));
            }
            Command::Delete(name) => {
                drop(self.catalog.delete(&self.operator, Kind::Endpoint, &format!("e{name}"), None));
            }
            Command::Applied(name) => {
                let endpoint = self.endpoint(name).map(|(id, _)| id);
                self.catalog.endpoints_applied(&endpoint.into_iter().collect::<Vec<_>>()).unwrap();
            }
            Command::Reject(name) => {
                let Some((id, _)) = self.endpoint(name) else { return };
                let service = self.catalog.read().endpoint(&id).unwrap().spec.service.clone();
                drop(self.catalog.reject(&self.operator, &service, &id, None));
            }
            Command::PlaceEndpoint(name, gateway) => {
                let Some((id, address)) = self.endpoint(name) else { return };
                self.catalog.set_placement(vec![(id, address, self.gateway(gateway))]).unwrap();
            }
            Command::PlacePool { pool, address, gateway } => {
                let Some(id) = self.id(Kind::SnatPool, &format!("p{pool}")) else { return };
                let address = format!("10.{}.0.{}", pool + 1, 200 + address).parse().unwrap();
                self.catalog.set_placement(vec![(id, address, self.gateway(gateway))]).unwrap();
            }
            Command::Release(name) => {
                let Some(endpoint) = self.endpoint(name) else { return };
                if !self.releasing.remove(&endpoint) {
                    self.releasing.insert(endpoint.clone());
                }
                self.follow();
                self.compiler.released(&self.catalog.read(), &endpoint.0, &self.releasing);
            }
            Command::Gateway { gateway, there: true } => {
                self.make(Kind::Gateway, &format!("g{gateway}"), json!({}));
            }
            Command::Gateway { gateway, there: false } => {
                drop(self.catalog.delete(&self.operator, Kind::Gateway, &format!("g{gateway}"), None));
            }
            Command::Attach { gateway, vpc, there: true } => {
                let prefix = format!("10.{vpc}.0.0/24");
                let spec = json!({ "gateway": format!("g{gateway}"), "vpc": format!("v{vpc}"),
                    "port": format!("eth{vpc}"), "prefixes": [prefix] });
                self.make(Kind::Attachment, &format!("a{gateway}{vpc}"), spec);
            }
            Command::Attach { gateway, vpc, there: false } => {
                drop(self.catalog.delete(&self.operator, Kind::Attachment, &format!("a{gateway}{vpc}"), None));
            }
            Command::Pool { second } => {
                self.change(Kind::TargetGroup, "t0", group(0, if second { "p2" } else { "p0" }, 1));
            }
            Command::Targets { group: number, targets } => {
                self.change(Kind::TargetGroup, &format!("t{number}"), group(number, &format!("p{number}"), targets));
            }
            Command::Balance { balancer: number, groups } => {
                self.change(Kind::LoadBalancer, &format!("b{number}"), balancer(groups));
            }
            Command::Exchange { service, balancer } => {
                let spec = service_of(json!({ "load_balancers": [format!("b{balancer}")] }));
                self.change(Kind::Service, &format!("s{service}"), spec);
            }
            Command::Plain { service, pool } => {
                let vpc = format!("v{}", pool + 1);
                let targets = json!([{ "address": format!("10.{}.0.9", pool + 1), "port": 9 }]);
                let plain = json!({ "vpc": vpc, "snat_pool": format!("p{pool}"), "port": 9, "targets": targets });
                self.change(Kind::Service, &format!("s{service}"), service_of(json!({ "plain": plain })));
            }
        }
        self.follow();
    }

    /// Takes in what the catalog says of its changes.
    fn follow(&mut self) {
        let mut touched = Vec::new();
        while let Ok(change) = self.changes.try_recv() {
            touched.extend(change.touched.iter().cloned());
        }
        self.compiler.update(&self.catalog.read(), &touched, &self.releasing);
    }

    fn everything(&self, compiler: &Compiler) -> Everything {
        let state = self.catalog.read();
        let gateways = state.gateways().map(|gateway| gateway.metadata.id.clone());
        let of = |id: String| {
            let compiled = compiler.gateway(&id).expect("every gateway is compiled");
            (id, compiled.resources().map(|(key, rendered)| (key.clone(), rendered.digest)).collect())
        };
        gateways.map(of).collect()
    }

    /// What was kept up to date is what would be worked out anew, and whatever became different was told.
    fn check(&mut self) {
        let kept = self.everything(&self.compiler);
        let anew = self.everything(&Compiler::new(&self.catalog.read(), &self.releasing));
        assert_eq!(kept, anew);
        for (gateway, resources) in &kept {
            let told = self.compiler.gateway_mut(gateway).unwrap().take_changed();
            let before = self.seen.get(gateway).cloned().unwrap_or_default();
            let keys: BTreeSet<&ResourceKey> = before.keys().chain(resources.keys()).collect();
            for key in keys {
                assert!(before.get(key) == resources.get(key) || told.contains(key), "{key:?} was not told");
            }
        }
        self.seen = kept;
    }
}

fn group(number: u8, pool: &str, targets: u8) -> Value {
    let net = number + 1;
    let target = |host: u8| json!({ "address": format!("10.{net}.0.{}", 10 + host), "port": 80 });
    json!({ "vpc": format!("v{net}"), "snat_pool": pool, "targets": (0..targets).map(target).collect::<Vec<_>>() })
}

/// Everybody may connect.
fn service_of(mut spec: Value) -> Value {
    spec["allowed_principals"] = json!(["*"]);
    spec
}

/// A listener for each group of a set.
fn balancer(groups: u8) -> Value {
    let listeners = (0..2_u8).filter(|group| groups & (1 << group) != 0).map(
        |group| json!({ "port": 1000 + u16::from(group), "target_groups": [{ "target_group": format!("t{group}") }] }),
    );
    json!({ "listeners": listeners.collect::<Vec<_>>() })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_up_to_date_is_what_would_be_worked_out_anew(commands in prop::collection::vec(command(), 1..60)) {
        let mut world = World::new();
        for command in &commands {
            world.call(command);
            world.check();
        }
    }
}

#[test]
fn the_sequences_of_the_property_reach_endpoints_on_gateways() {
    let mut world = World::new();
    let attach = |gateway, vpc| Command::Attach { gateway, vpc, there: true };
    let place = Command::PlacePool { pool: 0, address: 0, gateway: Some(0) };
    let commands = [
        attach(0, 0),
        attach(0, 1),
        place,
        Command::Connect { name: 0, service: 0 },
        Command::PlaceEndpoint(0, Some(0)),
    ];
    for command in &commands {
        world.call(command);
        world.check();
    }
    let gateway = world.gateway(Some(0)).unwrap();
    // Two VPCs, two attachments, pool, group, balancer, service, endpoint.
    assert_eq!(world.seen[&gateway].len(), 9, "{:?}", world.seen[&gateway].keys());
    world.call(&Command::Release(0));
    world.check();
    assert_eq!(world.seen[&gateway].len(), 4);
}

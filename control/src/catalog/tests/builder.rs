//! A catalog with two tenants, an operator, and a gateway that both tenants' networks are attached to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::catalog::model::{Event, GatewayStatus, Kind, Role};
use crate::catalog::{AnyObject, Caller, Catalog, Filter, New, Page, Refusal, Settings, Spec};
use crate::store::{MemoryStore, Store};

pub(super) const DAY: u64 = 24 * 3600 * 1000;

pub(super) struct World {
    pub(super) store: Arc<dyn Store>,
    pub(super) catalog: Catalog,
    pub(super) time: Arc<AtomicU64>,
    pub(super) operator: Caller,
    pub(super) provider: Caller,
    pub(super) consumer: Caller,
}

pub(super) fn tenant(name: &str) -> Caller {
    Caller { principal: name.to_owned(), role: Role::Tenant }
}

pub(super) fn spec(kind: Kind, value: Value) -> Spec {
    Spec::from_value(kind, value).unwrap()
}

pub(super) fn new(kind: Kind, name: &str, value: Value) -> New {
    New { name: Some(name.to_owned()), owner: None, tags: BTreeMap::new(), spec: spec(kind, value) }
}

impl World {
    /// Principals and a gateway, nothing else.
    pub(super) fn bare() -> Self {
        Self::in_store(Arc::new(MemoryStore::new()))
    }

    pub(super) fn in_store(store: Arc<dyn Store>) -> Self {
        let time = Arc::new(AtomicU64::new(1_700_000_000_000));
        let catalog = open(&store, &time);
        let operator = Caller { principal: "root".to_owned(), role: Role::Operator };
        catalog.begin_with_operator("root").unwrap().unwrap();
        let world = Self { store, catalog, time, operator, provider: tenant("shop"), consumer: tenant("bank") };
        for name in ["shop", "bank", "else"] {
            world.make(&world.operator, Kind::Principal, name, json!({}));
        }
        world.make(&world.operator, Kind::Gateway, "gw1", json!({ "zone": "a" }));
        world
    }

    /// A provider's network with a service on TCP 443, and a consumer's network, both attached.
    pub(super) fn with_service(service: Value) -> Self {
        let world = Self::bare();
        world.provide(service);
        world
    }

    pub(super) fn provide(&self, mut service: Value) {
        let (operator, provider) = (&self.operator, &self.provider);
        let vpc = self.make(provider, Kind::Vpc, "shop-net", json!({ "prefixes": ["10.1.0.0/16"] }));
        self.attach("shop-port", vpc.id(), 10, "10.1.0.0/24");
        let vpc = self.make(&self.consumer, Kind::Vpc, "bank-net", json!({ "prefixes": ["10.2.0.0/24"] }));
        self.attach("bank-port", vpc.id(), 20, "10.2.0.0/24");
        assert!(operator.is_operator());
        let pool = json!({ "vpc": "shop-net", "addresses": ["10.1.0.200"] });
        self.make(provider, Kind::SnatPool, "pool", pool);
        let targets = json!([{ "address": "10.1.0.10", "port": 8443 }]);
        let group = json!({ "vpc": "shop-net", "snat_pool": "pool", "targets": targets });
        self.make(provider, Kind::TargetGroup, "web", group);
        let listeners = json!([{ "port": 443, "target_groups": [{ "target_group": "web" }] }]);
        self.make(provider, Kind::LoadBalancer, "front", json!({ "listeners": listeners }));
        service["load_balancers"] = json!(["front"]);
        self.make(provider, Kind::Service, "api", service);
    }

    pub(super) fn attach(&self, name: &str, vpc: &str, vlan: u16, prefix: &str) -> AnyObject {
        let attachment = json!({ "gateway": "gw1", "vpc": vpc, "port": "eth1", "vlan": vlan, "prefixes": [prefix] });
        self.make(&self.operator, Kind::Attachment, name, attachment)
    }

    pub(super) fn make(&self, caller: &Caller, kind: Kind, name: &str, value: Value) -> AnyObject {
        self.try_make(caller, kind, name, value).unwrap_or_else(|refusal| panic!("{kind} {name}: {refusal}"))
    }

    pub(super) fn try_make(&self, caller: &Caller, kind: Kind, name: &str, value: Value) -> Result<AnyObject, Refusal> {
        self.catalog.create(caller, new(kind, name, value), None)
    }

    pub(super) fn change(&self, caller: &Caller, kind: Kind, name: &str, value: Value) -> Result<AnyObject, Refusal> {
        self.catalog.replace(caller, kind, name, spec(kind, value), None, None, None)
    }

    pub(super) fn service_id(&self) -> String {
        self.catalog.one(&self.provider, Kind::Service, "api").unwrap().id().to_owned()
    }

    /// An endpoint of the consumer for the provider's service.
    pub(super) fn connect(&self, name: &str) -> AnyObject {
        let endpoint = json!({ "vpc": "bank-net", "service": self.service_id() });
        self.make(&self.consumer, Kind::Endpoint, name, endpoint)
    }

    /// State and reason of the consumer's endpoint.
    pub(super) fn endpoint(&self, name: &str) -> Value {
        let endpoint = self.catalog.one(&self.consumer, Kind::Endpoint, name).unwrap();
        serde_json::to_value(&endpoint).unwrap()["status"].clone()
    }

    pub(super) fn state(&self, name: &str) -> String {
        self.endpoint(name)["state"].as_str().unwrap().to_owned()
    }

    /// The gateway says what it can do.
    pub(super) fn capable(&self, capabilities: &[&str]) {
        let gateway = self.catalog.one(&self.operator, Kind::Gateway, "gw1").unwrap();
        let capabilities = capabilities.iter().map(|&capability| capability.to_owned()).collect();
        let status = GatewayStatus { connected: true, capabilities, ..GatewayStatus::default() };
        self.catalog.set_gateway_status(gateway.id(), status).unwrap();
    }

    pub(super) fn pass(&self, milliseconds: u64) {
        let now = self.time.fetch_add(milliseconds, Ordering::SeqCst) + milliseconds;
        self.catalog.tick(now).unwrap();
    }

    pub(super) fn all_events(&self) -> Vec<Event> {
        self.catalog.events(&self.operator, 0, usize::MAX)
    }

    pub(super) fn names(&self, caller: &Caller, kind: Kind, filter: &Filter) -> Vec<String> {
        let listing = self.catalog.list(caller, kind, filter, &Page { size: 1000, token: None }).unwrap();
        listing.objects.iter().map(|object| object.metadata().name.clone()).collect()
    }

    /// Opens the store anew, and compares what is in memory with what it gives.
    pub(super) fn compare_with_store(&self) {
        let reopened = open(&self.store, &self.time);
        assert_eq!(reopened.id(), self.catalog.id());
        assert_eq!(*reopened.read(), *self.catalog.read(), "memory is not what the store gives");
        assert_eq!(reopened.events(&self.operator, 0, usize::MAX), self.all_events());
    }
}

pub(super) fn open(store: &Arc<dyn Store>, time: &Arc<AtomicU64>) -> Catalog {
    let time = time.clone();
    let settings = Settings { clock: Arc::new(move || time.load(Ordering::SeqCst)) };
    Catalog::open(store.clone(), settings).unwrap()
}

//! A catalog with a provider, a consumer and gateways, served on loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_push::proto::Hello;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::fake::Fake;
use crate::catalog::model::{EndpointState, GatewayStatus, Kind, Role, TargetHealth};
use crate::catalog::{self, AnyObject, Caller, Catalog, New, Spec};
use crate::metering::{By, EndpointUsage, Ledger, Metering};
use crate::push::{PushError, Settings, serve};
use crate::store::{MemoryStore, Store};

/// What ends the server, and how it ended.
type Serving = (oneshot::Sender<()>, JoinHandle<Result<(), PushError>>);

pub(super) struct World {
    store: Arc<dyn Store>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) token: String,
    pub(super) address: SocketAddr,
    pub(super) operator: Caller,
    pub(super) provider: Caller,
    pub(super) consumer: Caller,
    metering: Option<Arc<Metering>>,
    server: Option<Serving>,
}

fn tenant(name: &str) -> Caller {
    Caller { principal: name.to_owned(), role: Role::Tenant }
}

impl World {
    /// A provider with a service, a consumer's network, and gateways that are attached to both.
    pub(super) async fn with_gateways(names: &[&str]) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let catalog = Arc::new(Catalog::open(store.clone(), catalog::Settings::default()).unwrap());
        let token = catalog.begin_with_operator("root").unwrap().unwrap();
        let operator = Caller { principal: "root".to_owned(), role: Role::Operator };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self {
            store,
            catalog,
            token,
            address,
            operator,
            provider: tenant("shop"),
            consumer: tenant("bank"),
            metering: None,
            server: None,
        };
        for name in ["shop", "bank", "gw1"] {
            world.make(&world.operator, Kind::Principal, name, json!({}));
        }
        world.make(&world.provider, Kind::Vpc, "shop-net", json!({ "prefixes": ["10.1.0.0/16"] }));
        world.make(&world.consumer, Kind::Vpc, "bank-net", json!({ "prefixes": ["10.2.0.0/15"] }));
        let pool = json!({ "vpc": "shop-net", "addresses": ["10.1.0.200", "10.1.0.201"] });
        world.make(&world.provider, Kind::SnatPool, "pool", pool);
        world.make_service("api", "10.1.0.10");
        for name in names {
            world.make_gateway(name);
        }
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.address = listener.local_addr().unwrap();
        let settings = Settings {
            answer_within: Duration::from_secs(1),
            retry_within: (Duration::from_secs(2), Duration::from_secs(4)),
            // No machine is so slow that a gateway loses its turn.
            full_within: Duration::from_secs(600),
            ..Settings::default()
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let ledger = Ledger::open(self.store.clone()).unwrap();
        let clock = catalog::Settings::default().clock;
        let metering = Arc::new(Metering::new(self.catalog.clone(), ledger, clock));
        self.metering = Some(metering.clone());
        let usage = Arc::new(move |gateway: &str, boot: &str, endpoints: &[postern_push::proto::EndpointUsage]| {
            let told = endpoints.iter().map(|told| EndpointUsage {
                endpoint: told.endpoint.clone(),
                connections: told.new_connections,
                packets: told.packets,
                bytes: told.bytes,
            });
            metering.record(gateway, boot, &told.collect::<Vec<_>>()).unwrap();
        });
        let stopped = async move {
            let _ = stopped.await;
        };
        let server = tokio::spawn(serve(self.catalog.clone(), usage, settings, listener, stopped));
        self.server = Some((stop, server));
    }

    pub(super) async fn stop(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        let (stop, server) = self.server.take().unwrap();
        let _ = stop.send(());
        tokio::time::timeout(Duration::from_secs(60), server).await.expect("it ends").unwrap().unwrap();
    }

    /// Control ends and begins anew on the same store.
    pub(super) async fn restart(&mut self) {
        self.end().await;
        self.catalog = Arc::new(Catalog::open(self.store.clone(), catalog::Settings::default()).unwrap());
        self.start().await;
    }

    pub(super) fn make(&self, caller: &Caller, kind: Kind, name: &str, spec: Value) -> String {
        let spec = Spec::from_value(kind, spec).unwrap();
        let new = New { name: Some(name.to_owned()), owner: None, tags: BTreeMap::new(), spec };
        self.catalog.create(caller, new, None).unwrap().id().to_owned()
    }

    pub(super) fn make_bare_gateway(&self, name: &str) {
        self.make(&self.operator, Kind::Gateway, name, json!({}));
    }

    pub(super) fn make_gateway(&self, name: &str) {
        self.make_bare_gateway(name);
        let vpc = |caller: &Caller, name: &str| self.catalog.one(caller, Kind::Vpc, name).unwrap().id().to_owned();
        let shop = vpc(&self.provider, "shop-net");
        let bank = vpc(&self.consumer, "bank-net");
        for (at, vpc, vlan, prefix) in [("shop", shop, 10, "10.1.0.0/24"), ("bank", bank, 20, "10.2.0.0/15")] {
            let spec = json!({ "gateway": name, "vpc": vpc, "port": "eth1", "vlan": vlan, "prefixes": [prefix] });
            self.make(&self.operator, Kind::Attachment, &format!("{name}-{at}"), spec);
        }
    }

    pub(super) fn make_service(&self, name: &str, target: &str) -> String {
        let targets = json!([{ "address": target, "port": 8443 }]);
        let group = json!({ "vpc": "shop-net", "snat_pool": "pool", "targets": targets });
        self.make(&self.provider, Kind::TargetGroup, name, group);
        let listeners = json!([{ "port": 443, "target_groups": [{ "target_group": name }] }]);
        self.make(&self.provider, Kind::LoadBalancer, name, json!({ "listeners": listeners }));
        let service = json!({ "load_balancers": [name], "allowed_principals": ["*"] });
        self.make(&self.provider, Kind::Service, name, service)
    }

    fn service_id(&self, name: &str) -> String {
        self.catalog.one(&self.provider, Kind::Service, name).unwrap().id().to_owned()
    }

    pub(super) fn make_endpoint(&self, name: &str) -> String {
        self.make_endpoint_of(name, "api")
    }

    pub(super) fn make_endpoint_of(&self, name: &str, service: &str) -> String {
        let service = self.service_id(service);
        self.make(&self.consumer, Kind::Endpoint, name, json!({ "vpc": "bank-net", "service": service }))
    }

    /// Only operators choose gateways.
    pub(super) fn make_endpoint_at(&self, name: &str, gateway: &str) -> String {
        let vpc = self.catalog.one(&self.consumer, Kind::Vpc, "bank-net").unwrap().id().to_owned();
        let addresses = json!([{ "gateway": self.gateway_id(gateway) }]);
        let spec = json!({ "vpc": vpc, "service": self.service_id("api"), "addresses": addresses });
        let spec = Spec::from_value(Kind::Endpoint, spec).unwrap();
        let owner = Some(self.consumer.principal.clone());
        let new = New { name: Some(name.to_owned()), owner, tags: BTreeMap::new(), spec };
        self.catalog.create(&self.operator, new, None).unwrap().id().to_owned()
    }

    pub(super) fn drain(&self, name: &str) {
        let spec = Spec::from_value(Kind::Gateway, json!({ "drained": true })).unwrap();
        self.catalog.replace(&self.operator, Kind::Gateway, name, spec, None, None, None).unwrap();
    }

    pub(super) fn token_of(&self, principal: &str) -> String {
        self.catalog.make_token(&self.operator, principal).unwrap()
    }

    pub(super) fn gateway_id(&self, name: &str) -> String {
        self.catalog.one(&self.operator, Kind::Gateway, name).unwrap().id().to_owned()
    }

    pub(super) fn status_of(&self, name: &str) -> GatewayStatus {
        let AnyObject::Gateway(gateway) = self.catalog.one(&self.operator, Kind::Gateway, name).unwrap() else {
            unreachable!("a gateway was asked for");
        };
        gateway.status
    }

    pub(super) fn state_of(&self, endpoint: &str) -> EndpointState {
        self.catalog.read().endpoint(endpoint).unwrap().status.state
    }

    pub(super) fn holder_of(&self, endpoint: &str) -> Option<String> {
        self.catalog.read().endpoint(endpoint).unwrap().status.addresses[0].gateway.clone()
    }

    pub(super) async fn until_state(&self, endpoint: &str, state: EndpointState) {
        self.until(&format!("the endpoint is {state:?}"), || self.state_of(endpoint) == state).await;
    }

    pub(super) async fn until(&self, what: &str, is: impl Fn() -> bool) {
        let since = Instant::now();
        while !is() {
            assert!(since.elapsed() < Duration::from_secs(60), "not yet: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    /// One that takes only so many bytes before somebody reads.
    pub(super) fn narrow_channel(&self, bytes: u32) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.initial_stream_window_size(bytes).initial_connection_window_size(bytes).connect_lazy()
    }

    /// Has the service's targets checked by gateways that can.
    pub(super) fn check_targets(&self) {
        let targets = json!([{ "address": "10.1.0.10", "port": 8443 }]);
        let group = json!({ "vpc": "shop-net", "snat_pool": "pool", "targets": targets, "health_check": {} });
        let spec = Spec::from_value(Kind::TargetGroup, group).unwrap();
        self.catalog.replace(&self.provider, Kind::TargetGroup, "api", spec, None, None, None).unwrap();
    }

    /// Targets of the service as its provider sees them: address, health, and how many gateways see them.
    pub(super) fn targets(&self) -> Vec<(String, TargetHealth, usize)> {
        let AnyObject::TargetGroup(group) = self.catalog.one(&self.provider, Kind::TargetGroup, "api").unwrap() else {
            unreachable!("a target group was asked for");
        };
        let targets = group.status.targets.iter();
        targets.map(|seen| (seen.address.to_string(), seen.health, seen.by_gateway.len())).collect()
    }

    /// All bytes of this month.
    pub(super) fn bytes(&self) -> u64 {
        let metering = self.metering.as_ref().unwrap();
        let rows = metering.usage(&self.operator, metering.this_month(), By::Endpoint).unwrap();
        rows.iter().map(|row| row.bytes).sum()
    }

    /// Gives the service's target another weight.
    pub(super) fn weigh_target(&self, weight: u16) {
        let targets = json!([{ "address": "10.1.0.10", "port": 8443, "weight": weight }]);
        let group = json!({ "vpc": "shop-net", "snat_pool": "pool", "targets": targets });
        let spec = Spec::from_value(Kind::TargetGroup, group).unwrap();
        self.catalog.replace(&self.provider, Kind::TargetGroup, "api", spec, None, None, None).unwrap();
    }

    pub(super) async fn gateway(&self, name: &str) -> Fake {
        Fake::try_connect(self, name, Some(&self.token), |_| {}).await.unwrap()
    }

    pub(super) async fn try_gateway(&self, name: &str, change: impl FnOnce(&mut Hello)) -> Status {
        Fake::try_connect(self, name, Some(&self.token), change).await.unwrap_err()
    }
}

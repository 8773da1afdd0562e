//! A control process on loopback with an operator, two tenants that do business, and one that has nothing to do with them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postern_control::api::Patience;
use postern_control::server::Server;
use postern_control::settings::{ListenAddress, Settings};
use postern_control::store::{MemoryStore, Store};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::client::Client;

/// 2026-11-22, 21:00 UTC.
pub(crate) const NOW: u64 = 1_795_381_200_000;

pub(crate) struct Bed {
    pub(crate) time: Arc<AtomicU64>,
    pub(crate) address: SocketAddr,
    pub(crate) operator: Client,
    pub(crate) provider: Client,
    pub(crate) consumer: Client,
    pub(crate) stranger: Client,
    server: Option<Server>,
    runtime: Runtime,
}

pub(crate) fn settings(more: &str) -> Settings {
    let text = format!("region = \"test\"\n[api]\nlisten = [\"127.0.0.1:0\"]\n{more}\n");
    Settings::from_toml(&text, "test").unwrap()
}

impl Bed {
    pub(crate) fn start() -> Self {
        Self::with(&settings(""), Patience::default())
    }

    pub(crate) fn with(settings: &Settings, patience: Patience) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let time = Arc::new(AtomicU64::new(NOW));
        let clock = time.clone();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let clock = Arc::new(move || clock.load(Ordering::SeqCst));
        let server = runtime.block_on(Server::start_with(settings, store, patience, clock)).unwrap();
        let ListenAddress::Tcp(address) = server.addresses()[0].clone() else { panic!("a TCP address") };
        let token = server.catalog().begin_with_operator("operator").unwrap();
        let nobody = Client { address, token: None };
        let operator = Client { address, token };
        let mut bed = Self {
            time,
            address,
            operator,
            provider: nobody.clone(),
            consumer: nobody.clone(),
            stranger: nobody,
            server: Some(server),
            runtime,
        };
        // A listener with TLS needs another client.
        if settings.api.transport.certificate.is_none() {
            bed.provider = bed.tenant("bank");
            bed.consumer = bed.tenant("shop");
            bed.stranger = bed.tenant("spy");
        }
        bed
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Nobody in particular.
    pub(crate) fn nobody(&self) -> Client {
        Client { address: self.address, token: None }
    }

    /// Makes a tenant with a token.
    pub(crate) fn tenant(&self, name: &str) -> Client {
        self.operator.post("/v1/principals", json!({ "name": name })).expect(201);
        let token = self.operator.send("POST", &format!("/v1/principals/{name}/tokens"), &[], None).expect(201);
        Client { address: self.address, token: Some(token["token"].as_str().unwrap().to_owned()) }
    }

    /// Makes an object and says its id.
    #[track_caller]
    pub(crate) fn make(&self, client: &Client, plural: &str, name: &str, spec: Value) -> String {
        let body = json!({ "name": name, "tags": { "secret": format!("secret-of-{name}") }, "spec": spec });
        let made = client.post(&format!("/v1/{plural}"), body).expect(201);
        made["id"].as_str().unwrap().to_owned()
    }

    /// Everything from networks to a service of the provider's, which accepts by hand; says the service's id.
    pub(crate) fn provide(&self) -> String {
        self.make(&self.operator, "gateways", "gw1", json!({}));
        let vpc = self.make(&self.provider, "vpcs", "bank-net", json!({ "prefixes": ["10.1.0.0/16"] }));
        self.attach("bank-port", &vpc, 10, "10.1.0.0/24");
        let vpc = self.make(&self.consumer, "vpcs", "shop-net", json!({ "prefixes": ["10.2.0.0/24"] }));
        self.attach("shop-port", &vpc, 20, "10.2.0.0/24");
        let pool = json!({ "vpc": "bank-net", "addresses": ["10.1.0.200"] });
        self.make(&self.provider, "snat-pools", "bank-pool", pool);
        let targets = json!([{ "address": "10.1.0.10", "port": 8443 }]);
        let group = json!({ "vpc": "bank-net", "snat_pool": "bank-pool", "targets": targets });
        self.make(&self.provider, "target-groups", "bank-web", group);
        let listeners = json!([{ "port": 443, "target_groups": [{ "target_group": "bank-web" }] }]);
        self.make(&self.provider, "load-balancers", "bank-front", json!({ "listeners": listeners }));
        let service = json!({
            "load_balancers": ["bank-front"], "allowed_principals": ["shop"], "acceptance_required": true,
        });
        self.make(&self.provider, "services", "bank-api", service)
    }

    fn attach(&self, name: &str, vpc: &str, vlan: u16, prefix: &str) {
        let spec = json!({ "gateway": "gw1", "vpc": vpc, "port": "eth1", "vlan": vlan, "prefixes": [prefix] });
        self.make(&self.operator, "attachments", name, spec);
    }

    /// An endpoint of the consumer's for the provider's service; says its id.
    pub(crate) fn connect(&self, name: &str, service: &str) -> String {
        self.make(&self.consumer, "endpoints", name, json!({ "vpc": "shop-net", "service": service }))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}

//! `postern control` and `postern dataplane` as processes, between a client and a server, and what is declared there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postern_lab::control::{self, CONSUMERS, Commands, Control, GATEWAY, OPERATOR, PROVIDER};
use postern_lab::{Gateway, Launcher};
use serde_json::{Value, json};

use super::BenchError;
use super::api::Api;
use crate::nat::topology::{
    ENDPOINT, GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE, PORT, SERVER_INTERFACE, SNAT, TARGET, Topology,
};

/// The consumer of all endpoints.
const CONSUMER: &str = CONSUMERS[0];
/// Targets of each service.
pub const TARGETS: u32 = 10;
/// The UDP port of the first service's targets; each service has its own.
const FIRST_TARGET_PORT: u16 = 10_000;
/// From here on endpoints have their addresses, one after the other.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 128, 1, 0);
/// Endpoints of one call that fills the catalog.
const AT_ONCE: u32 = 5000;
/// Longest that filling may take until the gateway has applied it.
const FILLED: Duration = Duration::from_secs(600);
/// How long something may take that a client waits for.
const SOON: Duration = Duration::from_secs(60);

/// How large the tables are.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Endpoints.
    pub endpoints: u32,
    /// Services, at most 50,000.
    pub services: u32,
}

/// A directory of the run's own, removed with its contents.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Everything that runs.
#[derive(Debug)]
pub struct Bed {
    // Ends before its directory and its namespaces go.
    gateway: Option<Gateway>,
    control: Control,
    commands: Commands,
    gateway_id: String,
    launcher: Launcher,
    configuration: String,
    topology: Topology,
    directory: Directory,
    /// Number of the next endpoint that is made by itself.
    next: u32,
    /// Id of the service whose target is the server's echo.
    traffic: String,
}

impl Bed {
    /// Starts both with small tables: one service, and an endpoint for it at the topology's address.
    ///
    /// # Errors
    /// When something does not start, or control refuses what is declared.
    pub fn build(binary: &Path, size: Size) -> Result<Self, BenchError> {
        let topology = Topology::build()?;
        topology.gateway().set_sysctl("net.ipv4.ip_forward", "0")?;
        topology.at_server(|| {
            let interface = topology.server().interface(SERVER_INTERFACE);
            (1..TARGETS as u8).try_for_each(|number| interface.add_address(target(number).into(), 24))
        })??;
        let path = std::env::temp_dir().join(format!("postern-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| BenchError::Io("make a temporary directory", error))?;
        let directory = Directory(path);
        let launcher = Launcher::new(binary);
        let control = Control::start(&launcher, topology.gateway(), &directory.0)?;
        let commands = Commands::new(&launcher, &directory.0);
        let gateway_id = control::admit(&commands)?;
        let configuration = configuration(&directory.0, size);
        let gateway = Gateway::start(&launcher, topology.gateway(), &directory.0, &configuration)?;
        control::connected(&commands, &gateway_id)?;
        let gateway = Some(gateway);
        let traffic = String::new();
        let mut bed = Self {
            gateway,
            control,
            commands,
            gateway_id,
            launcher,
            configuration,
            topology,
            directory,
            next: 0,
            traffic,
        };
        bed.declare()?;
        Ok(bed)
    }

    /// The namespaces.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The API as the consumer sees it.
    ///
    /// # Errors
    /// When its token cannot be read.
    pub fn consumer(&self) -> Result<Api, BenchError> {
        self.api(CONSUMER)
    }

    /// Where the directory of the store, the tables and the logs is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    fn api(&self, who: &str) -> Result<Api, BenchError> {
        Api::new(&control::socket(&self.directory.0), &control::token_file(&self.directory.0, who))
    }

    /// Networks, the service of the traffic, and its endpoint.
    fn declare(&mut self) -> Result<(), BenchError> {
        let (mut operator, mut provider, mut consumer) =
            (self.api(OPERATOR)?, self.api(PROVIDER)?, self.api(CONSUMER)?);
        // Endpoints that choose their addresses leave alone what the client has.
        let networks = [
            (&mut consumer, "consumer", GATEWAY_CLIENT_INTERFACE, ["10.71.1.96/27", "10.128.0.0/13"], "10.71.1.0/24"),
            (&mut provider, "provider", GATEWAY_SERVER_INTERFACE, ["10.71.2.0/24", "10.72.0.0/24"], "10.71.2.0/24"),
        ];
        for (owner, name, port, prefixes, first) in networks {
            let vpc = owner.post("/v1/vpcs", &json!({ "name": name, "spec": { "prefixes": prefixes } }))?;
            let prefixes = [first, prefixes[1]];
            let attachment =
                json!({ "gateway": self.gateway_id, "vpc": vpc["id"], "port": port, "prefixes": prefixes });
            operator.post("/v1/attachments", &json!({ "name": name, "spec": attachment }))?;
        }
        let pool = json!({ "vpc": "provider", "addresses": [SNAT] });
        provider.post("/v1/snat-pools", &json!({ "name": "pool", "spec": pool }))?;
        apply(&mut provider, service("traffic", &[(TARGET, PORT)]).into())?;
        self.traffic = text(&provider.get("/v1/services/traffic")?["id"]);
        let endpoint = endpoint("traffic", &self.traffic, Some(ENDPOINT));
        let made = consumer.post("/v1/endpoints", &endpoint)?;
        self.leave(&mut consumer, &text(&made["id"]), "pending")?;
        self.topology.exchange_one_datagram()?;
        Ok(())
    }

    /// Declares many services and endpoints through the API, and waits until the gateway has applied all. Returns how long
    /// the calls took, and how long the gateway after them.
    ///
    /// # Errors
    /// When control refuses, or the gateway does not come to the end.
    pub fn fill(&mut self, size: Size) -> Result<(Duration, Duration), BenchError> {
        let since = Instant::now();
        let (mut provider, mut consumer) = (self.api(PROVIDER)?, self.api(CONSUMER)?);
        for first in (0..size.services).step_by(AT_ONCE as usize) {
            let numbers = first..size.services.min(first + AT_ONCE);
            let manifests = numbers.flat_map(|number| {
                let port = target_port(number);
                let targets: Vec<_> = (0..TARGETS as u8).map(|at| (target(at), port)).collect();
                service(&format!("service-{number}"), &targets)
            });
            apply(&mut provider, manifests.collect())?;
        }
        let services = self.services(size.services)?;
        for first in (0..size.endpoints).step_by(AT_ONCE as usize) {
            let numbers = first..size.endpoints.min(first + AT_ONCE);
            let manifests = numbers.map(|number| {
                let service = &services[(number % size.services) as usize];
                let mut manifest = endpoint(&format!("endpoint-{number}"), service, Some(address(number)));
                manifest["kind"] = "endpoint".into();
                manifest
            });
            apply(&mut consumer, manifests.collect())?;
        }
        let called = since.elapsed();
        let since = Instant::now();
        self.until("the gateway has applied everything", FILLED, |bed| {
            Ok(bed.api(OPERATOR)?.get("/v1/endpoints?state=pending&limit=1")?["objects"] == json!([]))
        })?;
        Ok((called, since.elapsed()))
    }

    /// Ids of the services that were made, by their numbers.
    fn services(&self, count: u32) -> Result<Vec<String>, BenchError> {
        let mut provider = self.api(PROVIDER)?;
        let mut ids = vec![String::new(); count as usize];
        let mut page = String::new();
        loop {
            let answer = provider.get(&format!("/v1/services?limit=1000{page}"))?;
            for service in answer["objects"].as_array().into_iter().flatten() {
                let number = service["name"].as_str().and_then(|name| name.strip_prefix("service-")?.parse().ok());
                if let Some(id) = number.and_then(|number: usize| ids.get_mut(number)) {
                    *id = text(&service["id"]);
                }
            }
            match answer["next"].as_str() {
                Some(next) => page = format!("&page={next}"),
                None => return Ok(ids),
            }
        }
    }

    /// Makes one endpoint more and waits until its gateway has applied it. Returns its id, how long the call took, and how
    /// long until control said, on disk, that the gateway had acknowledged it.
    ///
    /// # Errors
    /// When control refuses, or it does not become available.
    pub fn add_one(&mut self, consumer: &mut Api) -> Result<(String, Duration, Duration), BenchError> {
        self.next += 1;
        let body = endpoint(&format!("one-{}", self.next), &self.traffic, None);
        let since = Instant::now();
        let made = consumer.post("/v1/endpoints", &body)?;
        let called = since.elapsed();
        let id = text(&made["id"]);
        self.leave(consumer, &id, "pending")?;
        Ok((id, called, since.elapsed()))
    }

    /// Deletes an endpoint and waits until its gateway has let it go.
    ///
    /// # Errors
    /// When control refuses, or it does not go.
    pub fn remove(&self, consumer: &mut Api, id: &str) -> Result<(), BenchError> {
        consumer.delete(&format!("/v1/endpoints/{id}"))?;
        self.leave(consumer, id, "deleting")
    }

    /// Waits until an endpoint has left a state; it must be where it was to go then.
    fn leave(&self, consumer: &mut Api, id: &str, state: &str) -> Result<(), BenchError> {
        let endpoint = consumer.get(&format!("/v1/endpoints/{id}?while={state}&wait_seconds=60"))?;
        match endpoint["status"]["state"].as_str() {
            Some("available" | "deleted") => Ok(()),
            _ => Err(BenchError::NotInTime { what: format!("endpoint {id}: {}", endpoint["status"]), within: SOON }),
        }
    }

    /// The gateway.
    ///
    /// # Errors
    /// When it does not run.
    pub fn gateway(&mut self) -> Result<&mut Gateway, BenchError> {
        let stopped = || BenchError::NotInTime { what: "the gateway runs".to_owned(), within: Duration::ZERO };
        self.gateway.as_mut().ok_or_else(stopped)
    }

    /// Its counters.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counters(&mut self) -> Result<Value, BenchError> {
        Ok(self.gateway()?.counters()?)
    }

    /// Memory that the gateway's process has in use, in bytes.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn gateway_memory(&mut self) -> Result<u64, BenchError> {
        let pid = self.gateway()?.process().pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|error| BenchError::Io("read the gateway's memory", error))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = kilobytes.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Ok(kilobytes.unwrap_or_default() * 1024)
    }

    /// Ends the gateway. With `forget` also what it has on disk goes.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop_gateway(&mut self, forget: bool) -> Result<(), BenchError> {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.stop()?;
        }
        if forget {
            fs::remove_dir_all(self.directory.0.join("state"))
                .map_err(|error| BenchError::Io("remove the gateway's tables", error))?;
        }
        Ok(())
    }

    /// Starts it; returns when it says that it is ready.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_gateway(&mut self) -> Result<(), BenchError> {
        let gateway = Gateway::start(&self.launcher, self.topology.gateway(), &self.directory.0, &self.configuration)?;
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Kills control.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_control(&mut self) -> Result<(), BenchError> {
        self.control.process().kill()?;
        Ok(())
    }

    /// Starts control again on what it has on disk, and waits until the gateway has applied what it says.
    ///
    /// # Errors
    /// When it does not start, or the gateway does not connect.
    pub fn restart_control(&mut self) -> Result<(), BenchError> {
        self.control.restart()?;
        self.until_applied()
    }

    /// Waits until the gateway is connected and has applied everything.
    ///
    /// # Errors
    /// When that does not come.
    pub fn until_applied(&self) -> Result<(), BenchError> {
        self.until("the gateway is connected and has applied everything", FILLED, |bed| {
            let shown = bed.commands.run(OPERATOR, &["gateway", "show", &bed.gateway_id])?;
            let status = &shown["status"];
            let applied = status["applied_generation"] == status["desired_generation"];
            Ok(status["connected"] == true && applied && status["applied_generation"] != 0)
        })
    }

    fn until(
        &self,
        what: &str,
        within: Duration,
        condition: impl Fn(&Self) -> Result<bool, BenchError>,
    ) -> Result<(), BenchError> {
        let since = Instant::now();
        while !condition(self)? {
            if since.elapsed() > within {
                return Err(BenchError::NotInTime { what: what.to_owned(), within });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// The endpoint of that number: where it listens.
#[must_use]
pub const fn listening(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(address(number), PORT)
}

/// The port of a service's targets.
#[must_use]
pub const fn target_port(service: u32) -> u16 {
    FIRST_TARGET_PORT + service as u16
}

const fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + number)
}

/// An address of the server's.
const fn target(number: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(TARGET.to_bits() + number as u32)
}

fn apply(api: &mut Api, manifests: Vec<Value>) -> Result<(), BenchError> {
    api.post("/v1/apply", &json!({ "manifests": manifests })).map(drop)
}

/// A service with everything behind it.
fn service(name: &str, targets: &[(Ipv4Addr, u16)]) -> [Value; 3] {
    let targets: Vec<_> = targets.iter().map(|(address, port)| json!({ "address": address, "port": port })).collect();
    let group = json!({ "vpc": "provider", "snat_pool": "pool", "targets": targets });
    let listener =
        |protocol: &str| json!({ "protocol": protocol, "port": PORT, "target_groups": [{ "target_group": name }] });
    let listeners = [listener("udp"), listener("tcp")];
    let service = json!({ "load_balancers": [name], "allowed_principals": [CONSUMER], "acceptance_required": false });
    [
        json!({ "kind": "target-group", "name": name, "spec": group }),
        json!({ "kind": "load-balancer", "name": name, "spec": { "listeners": listeners } }),
        json!({ "kind": "service", "name": name, "spec": service }),
    ]
}

fn endpoint(name: &str, service: &str, address: Option<Ipv4Addr>) -> Value {
    let addresses: Vec<_> = address.iter().map(|address| json!({ "address": address })).collect();
    json!({ "name": name, "spec": { "vpc": "consumer", "service": service, "addresses": addresses } })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The gateway's file: two ports, one worker, and room for the tables.
fn configuration(directory: &Path, Size { endpoints, services }: Size) -> String {
    let (token, state) = (control::token_file(directory, GATEWAY), directory.join("state"));
    let push = control::PUSH;
    let (endpoints, targets) = (2 * endpoints.max(1000), 2 * TARGETS * services.max(100));
    format!(
        r#"
[gateway]
name = "{GATEWAY}"
run_directory = {directory:?}

[control]
address = "http://{push}"
token_file = {token:?}
state_directory = {state:?}

[limits]
endpoints = {endpoints}
targets = {targets}

[workers]
count = 1
flows = 65536

[[port]]
interface = "{GATEWAY_CLIENT_INTERFACE}"
mode = "own"

[[port]]
interface = "{GATEWAY_SERVER_INTERFACE}"
mode = "own"
"#
    )
}

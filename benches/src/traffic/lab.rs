//! A gateway of Postern between two veth pairs, with the station's ports at their other ends. The kernel has no address on any
//! of the four interfaces: the station answers for the client's router and for the target.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use postern_lab::{Gateway, Launcher, Namespace, VethEnd};
use postern_wire::MacAddress;
use serde::Serialize;

use super::TrafficError;
use super::station::{Side, Station};
use super::stream::Ends;
use crate::nat::processor::{GATEWAY_CPU, cores};
use crate::nat::topology::{
    CLIENT_INTERFACE, GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE, PORT, SERVER_INTERFACE,
};

/// Source ports of an SNAT address toward one target (1024…65535).
const SNAT_PORTS: u32 = 64_512;
/// Clients' addresses.
const HOSTS: u32 = 256;
/// Most flows that a worker may be told to have room for.
const MOST_FLOWS: u32 = 1 << 24;
/// How long a reload may take.
const RELOADED: Duration = Duration::from_secs(20);

/// How frames come in and go out of the gateway's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// Packet sockets with a receive ring.
    AfPacket,
    /// Packet sockets through io_uring.
    IoUring,
    /// AF_XDP sockets.
    AfXdp,
    /// What the gateway chooses.
    Auto,
}

impl Io {
    /// The name in the gateway's configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AfPacket => "af_packet",
            Self::IoUring => "io_uring",
            Self::AfXdp => "af_xdp",
            Self::Auto => "auto",
        }
    }
}

impl FromStr for Io {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::AfPacket, Self::IoUring, Self::AfXdp, Self::Auto];
        let refused = || format!("must be one of {}", all.map(Self::name).join(", "));
        all.into_iter().find(|io| io.name() == text).ok_or_else(refused)
    }
}

/// What the gateway is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// IPv6 clients and targets; else IPv4.
    pub six: bool,
    /// Workers, 1…64.
    pub workers: u16,
    /// The back end of the ports' devices, as the gateway's configuration names it.
    pub io: Io,
    /// Most live flows of each worker.
    pub flows: u32,
    /// MTU of all interfaces, 1,280 or more.
    pub mtu: u32,
    /// Whether the worker never sleeps.
    pub spin: bool,
    /// Seconds after which an idle UDP flow ends.
    pub udp_idle: u32,
    /// Endpoints that nobody uses, beside the one that the frames go to.
    pub more_endpoints: u16,
}

impl Setup {
    /// For so many flows, IPv4, an MTU of 1,500.
    #[must_use]
    pub fn new(flows: u32) -> Self {
        // No fuller than half, at least a quarter of a million.
        let flows = flows.saturating_mul(2).clamp(1 << 18, MOST_FLOWS);
        Self {
            six: false,
            workers: 1,
            io: Io::AfPacket,
            flows,
            mtu: 1500,
            spin: false,
            udp_idle: 600,
            more_endpoints: 0,
        }
    }
}

/// A directory of the run's own, removed with its contents.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self, TrafficError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("postern-traffic-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|error| TrafficError::Io("make a temporary directory", error))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The namespaces and the gateway's process. All end with this value.
#[derive(Debug)]
pub struct Lab {
    gateway: Gateway,
    client: Namespace,
    server: Namespace,
    setup: Setup,
    gateway_mac: MacAddress,
    directory: Directory,
}

impl Lab {
    /// Makes the namespaces and starts the gateway with one worker.
    ///
    /// # Errors
    /// When the kernel refuses, most often for want of privilege, or the gateway does not start.
    pub fn start(binary: &Path, setup: Setup) -> Result<Self, TrafficError> {
        let client = Namespace::anonymous("bench-client")?;
        let inner = Namespace::anonymous("bench-gateway")?;
        let server = Namespace::anonymous("bench-server")?;
        let pair = |namespace, name, other| {
            VethEnd::new(namespace, name).mtu(setup.mtu).pair(&VethEnd::new(&inner, other).mtu(setup.mtu))
        };
        let (client_end, consumer) = pair(&client, CLIENT_INTERFACE, GATEWAY_CLIENT_INTERFACE)?;
        let (server_end, provider) = pair(&server, SERVER_INTERFACE, GATEWAY_SERVER_INTERFACE)?;
        for interface in [&client_end, &consumer, &server_end, &provider] {
            interface.disable_ipv6()?;
        }
        inner.set_sysctl("net.ipv4.ip_forward", "0")?;
        let gateway_mac = consumer.mac()?;
        let directory = Directory::new()?;
        let text = configuration(&directory.0, setup);
        let gateway = Gateway::start(&Launcher::new(binary), &inner, &directory.0, &text)?;
        Ok(Self { gateway, client, server, setup, gateway_mac, directory })
    }

    /// Opens the station's ports.
    ///
    /// # Errors
    /// When a packet socket cannot be had.
    pub fn station(&self) -> Result<Station, TrafficError> {
        let network = Network::of(self.setup.six);
        let side = |namespace: &Namespace, interface, address| -> Result<Side, TrafficError> {
            namespace.run(|| Side::open(interface, vec![address]))?
        };
        let client = side(&self.client, CLIENT_INTERFACE, network.router)?;
        Ok(Station::new(client, side(&self.server, SERVER_INTERFACE, network.target)?, PORT))
    }

    /// Between whom a station's frames pass.
    #[must_use]
    pub fn ends(&self, station: &Station) -> Ends {
        let network = Network::of(self.setup.six);
        Ends {
            macs: (station.client_mac(), self.gateway_mac),
            clients: network.clients,
            hosts: HOSTS,
            destination: SocketAddr::new(network.endpoint, PORT),
        }
    }

    /// Gives the gateway another table: so many endpoints that nobody uses. Returns how long it took until every worker
    /// forwarded by it.
    ///
    /// # Errors
    /// When it is not taken in time.
    pub fn reload(&mut self, more_endpoints: u16) -> Result<Duration, TrafficError> {
        let from = self.gateway.log().len();
        let since = Instant::now();
        self.setup.more_endpoints = more_endpoints;
        self.gateway.reload(&configuration(&self.directory.0, self.setup))?;
        if !self.gateway.wait_for_log(from, "every worker forwards by the new tables", RELOADED) {
            return Err(TrafficError::NotInTime("take new tables"));
        }
        Ok(since.elapsed())
    }

    /// Ends the process by SIGTERM, or else by SIGKILL, and starts it again.
    ///
    /// # Errors
    /// When it does not end, or does not start.
    pub fn restart(&mut self, politely: bool) -> Result<(), TrafficError> {
        if politely {
            self.gateway.stop()?;
        }
        Ok(self.gateway.restart()?)
    }

    /// Runs something in the client's namespace.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn at_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, TrafficError> {
        Ok(self.client.run(work)?)
    }

    /// Frames that have come to the server's interface.
    ///
    /// # Errors
    /// When its counters cannot be read.
    pub fn arrived(&self) -> Result<u64, TrafficError> {
        Ok(self.server.interface(SERVER_INTERFACE).statistics()?.receive_packets)
    }

    /// Live flows of all workers.
    ///
    /// # Errors
    /// When the gateway cannot be asked.
    pub fn flows(&self) -> Result<u64, TrafficError> {
        let counters = self.gateway.counters()?;
        let workers = counters["workers"].as_array().into_iter().flatten();
        Ok(workers.filter_map(|worker| worker["frames"]["flows"].as_u64()).sum())
    }

    /// Frames that the kernel did not deliver to the gateway.
    ///
    /// # Errors
    /// When the gateway cannot be asked.
    pub fn ring_drops(&self) -> Result<u64, TrafficError> {
        let counters = self.gateway.counters()?;
        let ports = counters["ports"].as_array().into_iter().flatten();
        Ok(ports.filter_map(|port| port["received"]["kernel_drops"].as_u64()).sum())
    }
}

/// Addresses of a family.
struct Network {
    router: IpAddr,
    clients: IpAddr,
    endpoint: IpAddr,
    target: IpAddr,
    prefixes: [&'static str; 3],
}

impl Network {
    fn of(six: bool) -> Self {
        if six {
            let address = |network, host| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host));
            Self {
                router: address(0x71, 2),
                clients: address(0x80, 0),
                endpoint: address(0x71, 0x100),
                target: address(0x72, 2),
                prefixes: ["2001:db8:71::/64", "2001:db8:80::/48", "2001:db8:72::/64"],
            }
        } else {
            Self {
                router: IpAddr::V4(Ipv4Addr::new(10, 71, 1, 2)),
                clients: IpAddr::V4(Ipv4Addr::new(10, 128, 0, 0)),
                endpoint: IpAddr::V4(Ipv4Addr::new(10, 71, 1, 100)),
                target: IpAddr::V4(Ipv4Addr::new(10, 72, 0, 2)),
                prefixes: ["10.71.0.0/16", "10.128.0.0/9", "10.72.0.0/16"],
            }
        }
    }

    /// The SNAT addresses: each has 64,512 ports toward the one target.
    fn snat(six: bool, flows: u32) -> Vec<String> {
        // As many again, because ports rest before they are used again.
        let count = (flows / SNAT_PORTS + 1) * 2;
        (0..count)
            .map(|at| {
                if six {
                    format!("\"2001:db8:72::1:{at:x}\"")
                } else {
                    format!("\"10.72.{}.{}\"", 1 + at / 250, 1 + at % 250)
                }
            })
            .collect()
    }
}

fn configuration(directory: &Path, setup: Setup) -> String {
    let Setup { six, workers, io, flows, mtu, spin, udp_idle, more_endpoints } = setup;
    let Network { router, endpoint, target, prefixes: [consumer, clients, provider], .. } = Network::of(six);
    // From the gateway's CPU on; where there are not so many, also the load's.
    let cpus: Vec<String> =
        (0..usize::from(workers)).map(|worker| ((GATEWAY_CPU + worker) % cores()).to_string()).collect();
    let (cpus, io) = (cpus.join(", "), io.name());
    let polling = if spin { "spin" } else { "adaptive" };
    let (narrow, wide) = if six { (1024, flows) } else { (flows, 0) };
    let snat = Network::snat(six, flows.saturating_mul(workers.into())).join(", ");
    let mut text = format!(
        r#"
[gateway]
name = "bench"
run_directory = {directory:?}
io = "{io}"

[workers]
count = {workers}
cpus = [{cpus}]
polling = "{polling}"
flows = {narrow}
ipv6_flows = {wide}

[limits]
endpoints = 16384

[[port]]
interface = "{GATEWAY_CLIENT_INTERFACE}"
mode = "own"

[[port]]
interface = "{GATEWAY_SERVER_INTERFACE}"
mode = "own"

[[vpc]]
id = "vpc-consumer"

[[vpc]]
id = "vpc-provider"

[[attachment]]
name = "consumer"
vpc = "vpc-consumer"
port = "{GATEWAY_CLIENT_INTERFACE}"
prefixes = ["{consumer}"]

[[attachment]]
name = "provider"
vpc = "vpc-provider"
port = "{GATEWAY_SERVER_INTERFACE}"
prefixes = ["{provider}"]

[[route]]
attachment = "consumer"
destination = "{clients}"
via = "{router}"

[[snat_pool]]
name = "snat"
vpc = "vpc-provider"
addresses = [{snat}]

[[target_group]]
name = "servers"
vpc = "vpc-provider"
snat_pool = "snat"

[[target_group.target]]
address = "{target}"
port = {PORT}

[[load_balancer]]
name = "balancer"

[[load_balancer.listener]]
protocol = "tcp"
port = {PORT}
target_groups = [{{ name = "servers" }}]

[[load_balancer.listener]]
protocol = "udp"
port = {PORT}
idle_seconds = {udp_idle}
target_groups = [{{ name = "servers" }}]

[[service]]
id = "vpce-svc-00000000000000001"
load_balancers = ["balancer"]

[[endpoint]]
id = "vpce-00000000000000001"
vpc = "vpc-consumer"
service = "vpce-svc-00000000000000001"
addresses = ["{endpoint}"]
mtu = {mtu}
"#
    );
    for number in 0..more_endpoints {
        let address = if six {
            format!("2001:db8:71::2:{number:x}")
        } else {
            format!("10.71.{}.{}", 2 + number / 250, 1 + number % 250)
        };
        text += &format!(
            "\n[[endpoint]]\nid = \"vpce-1{number:016x}\"\nvpc = \"vpc-consumer\"\nservice = \
             \"vpce-svc-00000000000000001\"\naddresses = [\"{address}\"]\n"
        );
    }
    text
}

//! The contenders as gateways between client and server.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use postern_lab::{Launcher, Process, process};

use super::processor::{GATEWAY_CPU, cores};
use super::topology::{
    CLIENT, ENDPOINT, GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE, PORT, SNAT, TARGET, Topology,
};
use super::{NatError, nftables};

/// How Postern's worker waits for frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// Never sleeps.
    Spin,
    /// Sleeps when nothing comes.
    Adaptive,
}

/// What tables have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// A quarter of a million flows, as many as one SNAT address has ports.
    Few,
    /// Two million flows, SNAT addresses for them, and clients behind the client.
    Many,
}

/// Postern between client and server, started for each turn.
#[derive(Debug)]
pub struct PosternGateway {
    topology: Topology,
    binary: PathBuf,
    directory: Directory,
}

/// A directory of the run's own, removed with its contents.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl PosternGateway {
    /// Builds the topology; nothing runs yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn build(binary: &Path) -> Result<Self, NatError> {
        let topology = Topology::build()?;
        topology.gateway().set_sysctl("net.ipv4.ip_forward", "0")?;
        let directory = std::env::temp_dir().join(format!("postern-bench-{}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| NatError::Io("make a temporary directory", error))?;
        Ok(Self { topology, binary: binary.to_owned(), directory: Directory(directory) })
    }

    /// The namespaces.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Starts the dataplane with one worker on the gateway's CPU, and waits until it forwards.
    ///
    /// # Errors
    /// When it does not start, or does not forward within five seconds.
    pub fn start(&self, polling: Polling) -> Result<RunningPostern, NatError> {
        self.start_with(polling, "af_packet")
    }

    /// The same with another back end: the value of `io`.
    ///
    /// # Errors
    /// As [`PosternGateway::start`].
    pub fn start_with(&self, polling: Polling, io: &str) -> Result<RunningPostern, NatError> {
        self.start_for(polling, io, Room::Few)
    }

    /// The same with room for more flows.
    ///
    /// # Errors
    /// As [`PosternGateway::start`].
    pub fn start_for(&self, polling: Polling, io: &str, room: Room) -> Result<RunningPostern, NatError> {
        let file = |name: &str| self.directory.0.join(name);
        let failed = |error| NatError::Io("write the gateway's configuration", error);
        fs::write(file("gateway.toml"), configuration(polling, io, room, &self.directory.0)).map_err(failed)?;
        let log = fs::File::create(file("log")).map_err(failed)?;
        let mut command: Command = Launcher::new(&self.binary).command(&self.binary);
        command.args(["dataplane", "--config"]).arg(file("gateway.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = self.topology.gateway().spawn(command)?;
        let mut running = RunningPostern { process, log: file("log") };
        if let Err(error) = self.topology.exchange_one_datagram() {
            running.check()?;
            return Err(error);
        }
        Ok(running)
    }
}

/// The dataplane's process. Ends with this value.
#[derive(Debug)]
pub struct RunningPostern {
    process: Process,
    log: PathBuf,
}

impl RunningPostern {
    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When it does not, with the last line that it logged.
    pub fn check(&mut self) -> Result<(), NatError> {
        let Some(status) = self.process.try_wait()? else {
            return Ok(());
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it logged nothing");
        Err(NatError::DataplaneEnded(format!("{}; {last}", process::describe(status))))
    }
}

impl Drop for RunningPostern {
    fn drop(&mut self) {
        // It restores what it changed on its ports; if it hangs it is killed.
        let _ = self.process.terminate(Duration::from_secs(3));
    }
}

/// One service with one target behind one endpoint, for TCP and UDP.
fn configuration(polling: Polling, io: &str, room: Room, directory: &Path) -> String {
    let cpu = GATEWAY_CPU.min(cores() - 1);
    let polling = match polling {
        Polling::Spin => "spin",
        Polling::Adaptive => "adaptive",
    };
    let run = directory.join("run");
    let run = run.display();
    let (flows, addresses) = match room {
        Room::Few => (1 << 18, vec![SNAT]),
        Room::Many => (1 << 21, (101..=140).map(|host| Ipv4Addr::new(10, 71, 2, host)).collect()),
    };
    let listed = |suffix: &str| {
        let texts: Vec<String> = addresses.iter().map(|address| format!("\"{address}{suffix}\"")).collect();
        texts.join(", ")
    };
    let (snat, snat_prefixes) = (listed(""), listed("/32"));
    let routes = match room {
        Room::Few => String::new(),
        Room::Many => {
            format!("[[route]]\nattachment = \"consumer\"\ndestination = \"10.128.0.0/16\"\nvia = \"{CLIENT}\"\n")
        }
    };
    format!(
        r#"
[gateway]
name = "bench"
run_directory = "{run}"
io = "{io}"

[workers]
count = 1
cpus = [{cpu}]
polling = "{polling}"
flows = {flows}

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
prefixes = ["{CLIENT}/32", "{ENDPOINT}/32"]

[[attachment]]
name = "provider"
vpc = "vpc-provider"
port = "{GATEWAY_SERVER_INTERFACE}"
prefixes = ["{TARGET}/32", {snat_prefixes}]

{routes}
[[snat_pool]]
name = "snat"
vpc = "vpc-provider"
addresses = [{snat}]

[[target_group]]
name = "servers"
vpc = "vpc-provider"
snat_pool = "snat"

[[target_group.target]]
address = "{TARGET}"
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
target_groups = [{{ name = "servers" }}]

[[service]]
id = "vpce-svc-00000000000000001"
load_balancers = ["balancer"]

[[endpoint]]
id = "vpce-00000000000000001"
vpc = "vpc-consumer"
service = "vpce-svc-00000000000000001"
addresses = ["{ENDPOINT}"]
"#
    )
}

/// The kernel's own NAT between client and server.
#[derive(Debug)]
pub struct ReferenceGateway {
    topology: Topology,
}

impl ReferenceGateway {
    /// Builds the topology, gives the gateway its addresses and rules, and lets it forward.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn build() -> Result<Self, NatError> {
        let topology = Topology::build()?;
        let gateway = topology.gateway();
        gateway.interface(GATEWAY_CLIENT_INTERFACE).add_address(IpAddr::V4(ENDPOINT), 24)?;
        gateway.interface(GATEWAY_SERVER_INTERFACE).add_address(IpAddr::V4(SNAT), 24)?;
        gateway.set_sysctl("net.ipv4.ip_forward", "1")?;
        gateway.run(|| nftables::apply(&nftables::rules()))??;
        Ok(Self { topology })
    }

    /// The namespaces.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }
}

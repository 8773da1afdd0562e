//! The standard lab with everything running, as a value.
//!
//! ```no_run
//! # use std::path::Path;
//! # use postern_lab::{Client, Offloads, Topology, network};
//! # fn test(binary: &Path) -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Topology::builder().workers(2).offloads(Offloads::Off).build(binary)?;
//! let reply = lab.client_a().run(|| Client::default().ask_tcp(network::page(), 0))??;
//! assert!(reply.answer.target.starts_with("target-"));
//! # Ok(())
//! # }
//! ```

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::control::{self, Commands, Control, ControlError, Declared};
use crate::declaration;
use crate::gateway::{Gateway, GatewayError};
use crate::namespace::Namespace;
use crate::network::{Network, NetworkError, Node, Offloads, Plan, Wiring};
use crate::process::Launcher;
use crate::server::{ServerError, Servers};

/// What can go wrong with a lab.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// With its network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// With the servers of a target.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// With the gateway's process.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// With the control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Both consumers and the provider are in one network, which can have only one owner.
    #[error("a lab with control needs a network for each tenant; one-armed wiring has one for all of them")]
    OneNetwork,
}

/// Does something to a network before anything runs in it.
type Preparation = Box<dyn FnOnce(&Network)>;

/// What a lab is to be like. Made by [`Topology::builder`].
#[derive(Default)]
pub struct Builder {
    plan: Plan,
    directory: Option<PathBuf>,
    control: bool,
    edit: Option<Box<dyn FnOnce(String) -> String>>,
    prepare: Option<Preparation>,
}

impl Builder {
    /// All at once.
    #[must_use]
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// Workers of the gateway, 1…64. Default: 1.
    #[must_use]
    pub const fn workers(mut self, count: usize) -> Self {
        self.plan.workers = count;
        self
    }

    /// What the kernel may do for senders. Default: on.
    #[must_use]
    pub const fn offloads(mut self, offloads: Offloads) -> Self {
        self.plan.offloads = offloads;
        self
    }

    /// How the parts are joined. Default: a port for each VPC.
    #[must_use]
    pub const fn wiring(mut self, wiring: Wiring) -> Self {
        self.plan.wiring = wiring;
        self
    }

    /// MTU of both sides in bytes, 576…65535. Default: 1500.
    #[must_use]
    pub const fn mtu(self, mtu: u32) -> Self {
        self.mtus(mtu, mtu)
    }

    /// MTUs of the consumers' and the provider's side in bytes.
    #[must_use]
    pub const fn mtus(mut self, consumers: u32, provider: u32) -> Self {
        self.plan.consumer_mtu = consumers;
        self.plan.provider_mtu = provider;
        self
    }

    /// What an idle worker does: `adaptive` (default), `spin` or `sleep`.
    #[must_use]
    pub fn polling(mut self, polling: &str) -> Self {
        polling.clone_into(&mut self.plan.polling);
        self
    }

    /// Most flows of each worker. Default: 65,536.
    #[must_use]
    pub const fn flows(mut self, flows: u32) -> Self {
        self.plan.flows = flows;
        self
    }

    /// The back end of the gateway's ports: `af_packet` (default), `io_uring`, `af_xdp` or `auto`.
    #[must_use]
    pub fn io(mut self, io: &str) -> Self {
        io.clone_into(&mut self.plan.io);
        self
    }

    /// Changes the configuration before the gateway starts with it, behind earlier changes.
    #[must_use]
    pub fn configure(mut self, edit: impl FnOnce(String) -> String + 'static) -> Self {
        self.edit = Some(match self.edit {
            Some(earlier) => Box::new(|text| edit(earlier(text))),
            None => Box::new(edit),
        });
        self
    }

    /// Has the gateway told by a control plane, to which operator, provider and consumers declare the same as the file
    /// would: endpoints are made, and wait for the provider's word. Not with [`Wiring::OneArmed`].
    #[must_use]
    pub const fn with_control(mut self) -> Self {
        self.control = true;
        self
    }

    /// Does something to the network before the gateway starts on it.
    #[must_use]
    pub fn prepare(mut self, prepare: impl FnOnce(&Network) + 'static) -> Self {
        self.prepare = Some(Box::new(prepare));
        self
    }

    /// Where the gateway's files go, an existing directory. Default: one of its own, removed at the end.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Makes the network, starts the targets' servers and the gateway with the given `postern` binary; returns when all
    /// are ready.
    pub fn build(self, binary: &Path) -> Result<Topology, TopologyError> {
        if self.control && self.plan.wiring == Wiring::OneArmed {
            return Err(TopologyError::OneNetwork);
        }
        let launcher = Launcher::new(binary);
        let directory = Directory::new(self.directory)?;
        let network = Network::build(&self.plan, Namespace::anonymous)?;
        if let Some(prepare) = self.prepare {
            prepare(&network);
        }
        let mut targets = Vec::new();
        for node in &network.targets {
            targets.push(Target { servers: Some(Servers::start(node.namespace(), node.name())?), node: node.clone() });
        }
        let edit = self.edit.unwrap_or_else(|| Box::new(|text| text));
        let start = |configuration: &str| Gateway::start(&launcher, &network.gateway, &directory.path, configuration);
        let (gateway, configuration, control) = if self.control {
            let process = Control::start(&launcher, &network.gateway, &directory.path)?;
            let commands = Commands::new(&launcher, &directory.path);
            let id = control::admit(&commands)?;
            let configuration = edit(declaration::with_control(&self.plan, &directory.path));
            let gateway = start(&configuration)?;
            control::connected(&commands, &id)?;
            let declared = control::declare(&commands, &self.plan, id)?;
            (gateway, configuration, Some(Controlled { process, commands, declared }))
        } else {
            let configuration = edit(declaration::configuration(&self.plan, &directory.path));
            (start(&configuration)?, configuration, None)
        };
        let plan = self.plan;
        Ok(Topology { gateway, control, targets, network, configuration, plan, _directory: directory })
    }
}

/// A target: a host with servers that can be stopped and started.
#[derive(Debug)]
pub struct Target {
    node: Node,
    servers: Option<Servers>,
}

impl Target {
    /// The host.
    #[must_use]
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// Closes its ports, as when the program dies; the host still answers with RST and ICMP.
    pub fn stop(&mut self) {
        self.servers = None;
    }

    /// Opens them again.
    pub fn start(&mut self) -> Result<(), TopologyError> {
        if self.servers.is_none() {
            self.servers = Some(Servers::start(self.node.namespace(), self.node.name())?);
        }
        Ok(())
    }
}

/// The control plane of a lab.
#[derive(Debug)]
pub struct Controlled {
    /// Its process.
    pub process: Control,
    /// What its users type.
    pub commands: Commands,
    /// What they have declared.
    pub declared: Declared,
}

/// A running lab. Dropped: everything is gone.
#[derive(Debug)]
pub struct Topology {
    // Fields are dropped in this order: the gateway ends before the wires go.
    gateway: Gateway,
    control: Option<Controlled>,
    targets: Vec<Target>,
    network: Network,
    configuration: String,
    plan: Plan,
    _directory: Directory,
}

impl Topology {
    /// A lab with one worker, offloads on, MTU 1500 and a port for each VPC.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The client of the first consumer.
    #[must_use]
    pub const fn client_a(&self) -> &Node {
        &self.network.clients[0]
    }

    /// The client of the second consumer, with the same address in another VPC.
    #[must_use]
    pub const fn client_b(&self) -> &Node {
        &self.network.clients[1]
    }

    /// Both clients.
    #[must_use]
    pub const fn clients(&self) -> &[Node; 2] {
        &self.network.clients
    }

    /// The three targets.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// A target, 0…2, to stop or start its servers.
    pub fn target_mut(&mut self, at: usize) -> &mut Target {
        &mut self.targets[at]
    }

    /// The namespaces and wires.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The gateway.
    #[must_use]
    pub const fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The gateway, to reload, stop or restart it.
    pub const fn gateway_mut(&mut self) -> &mut Gateway {
        &mut self.gateway
    }

    /// The control plane, if the lab was built with one.
    #[must_use]
    pub const fn control(&self) -> Option<&Controlled> {
        self.control.as_ref()
    }

    /// The control plane, to stop and restart it.
    pub const fn control_mut(&mut self) -> Option<&mut Controlled> {
        self.control.as_mut()
    }

    /// The configuration that the gateway started with.
    #[must_use]
    pub fn configuration(&self) -> &str {
        &self.configuration
    }

    /// What the lab was asked to be.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// A directory that is removed at the end if it is ours.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    own: bool,
}

impl Directory {
    fn new(given: Option<PathBuf>) -> Result<Self, GatewayError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if let Some(path) = given {
            return Ok(Self { path, own: false });
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("postern-lab-{}-{number}", std::process::id()));
        // For us alone: whoever could write here could tell the gateway what to do.
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path, own: true }),
            Err(source) => Err(GatewayError::File { path, source }),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.own {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

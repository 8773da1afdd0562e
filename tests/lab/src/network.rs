//! The standard lab: two consumer VPCs with the same address range, a provider with three targets behind a switch, and a
//! gateway namespace in between whose ports have no addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use postern_wire::MacAddress;

use crate::interface::{Interface, InterfaceError, VethEnd};
use crate::namespace::{Namespace, NamespaceError};
use crate::offload::{Offload, OffloadError};
use crate::server::{BULK_PORT, ECHO_PORT, PAGE_PORT};

/// Address of the client in both consumer VPCs.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Address of the second client where both are in one VPC ([`Wiring::OneArmed`]).
pub const SECOND_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
/// Address of the endpoint in both consumer VPCs.
pub const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
/// Addresses of the targets.
pub const TARGETS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 9, 0, 11), Ipv4Addr::new(10, 9, 0, 12), Ipv4Addr::new(10, 9, 0, 13)];
/// Addresses that the targets see.
pub const SNAT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 100), Ipv4Addr::new(10, 9, 0, 101)];
/// VLAN identifiers of the two consumers ([`Wiring::Vlans`]).
pub const VLANS: [u16; 2] = [101, 102];

/// Names of the namespaces, in the order of [`Network::nodes`].
pub const NODES: [&str; 8] =
    ["client-a", "client-b", "target-1", "target-2", "target-3", "provider", "consumers", "gateway"];

/// How the parts are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wiring {
    /// The gateway has a port for each consumer VPC and one for the provider.
    #[default]
    Ports,
    /// The gateway has one port for both consumer VPCs, each in a VLAN, and one for the provider. Needs a kernel with
    /// 802.1Q interfaces.
    Vlans,
    /// The gateway has one port; consumers and targets are behind it, in one VPC.
    OneArmed,
}

/// What the kernel may do for the senders of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offloads {
    /// As veth pairs come: super-frames and partial checksums.
    #[default]
    On,
    /// Clients and targets send only frames that fit the wire, with complete checksums.
    Off,
}

/// What is to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How the parts are joined.
    pub wiring: Wiring,
    /// What the kernel may do for senders.
    pub offloads: Offloads,
    /// MTU of the consumers' side in bytes, 576…65535.
    pub consumer_mtu: u32,
    /// MTU of the provider's side in bytes, 576…65535.
    pub provider_mtu: u32,
    /// Workers of the gateway, 1…64.
    pub workers: usize,
    /// What an idle worker does: `adaptive`, `spin` or `sleep`.
    pub polling: String,
    /// Most flows of each worker.
    pub flows: u32,
    /// The back end of the gateway's ports: `af_packet`, `io_uring`, `af_xdp` or `auto`.
    pub io: String,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            wiring: Wiring::default(),
            offloads: Offloads::default(),
            consumer_mtu: 1500,
            provider_mtu: 1500,
            workers: 1,
            polling: "adaptive".to_owned(),
            flows: 65_536,
            io: "af_packet".to_owned(),
        }
    }
}

/// What can go wrong while the network is made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// With a namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// With an interface.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// With an offload switch.
    #[error(transparent)]
    Offload(#[from] OffloadError),
}

/// A host of the lab: a namespace with one interface and address.
#[derive(Debug, Clone)]
pub struct Node {
    namespace: Namespace,
    interface: Interface,
    address: Ipv4Addr,
}

impl Node {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its interface (with [`Wiring::Vlans`] a consumer's VLAN interface).
    #[must_use]
    pub const fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Runs a closure in its namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        self.namespace.run(work)
    }
}

/// The namespaces and what joins them.
#[derive(Debug)]
pub struct Network {
    /// The two consumers' clients.
    pub clients: [Node; 2],
    /// The provider's targets.
    pub targets: Vec<Node>,
    /// The namespace of the provider's switch.
    pub provider: Namespace,
    /// The namespace of the consumers' switch; unused with [`Wiring::Ports`].
    pub consumers: Namespace,
    /// The gateway's namespace.
    pub gateway: Namespace,
}

/// The locally administered address that tells what it belongs to.
const fn mac(group: u8, number: u8) -> MacAddress {
    MacAddress([0x02, 0, 0, 0, group, number])
}

impl Network {
    /// Makes it in the namespaces that `make` gives for a name of [`NODES`].
    pub fn build(
        plan: &Plan,
        mut make: impl FnMut(&str) -> Result<Namespace, NamespaceError>,
    ) -> Result<Self, NetworkError> {
        let mut namespaces = Vec::with_capacity(NODES.len());
        for name in NODES {
            let namespace = make(name)?;
            silence_ipv6(&namespace)?;
            namespaces.push(namespace);
        }
        let [client_a, client_b, target_1, target_2, target_3, provider, consumers, gateway] =
            <[Namespace; NODES.len()]>::try_from(namespaces).unwrap_or_else(|_| unreachable!("one for each name"));
        let clients = [client_a, client_b];

        let provider_switch = Interface::bridge(&provider, "switch", plan.provider_mtu)?;
        let consumer_switch = match plan.wiring {
            Wiring::Ports => None,
            Wiring::Vlans => Some(Interface::bridge(&consumers, "switch", plan.consumer_mtu)?),
            Wiring::OneArmed => Some(provider_switch.clone()),
        };
        let mut targets = Vec::new();
        for (at, namespace) in [target_1, target_2, target_3].into_iter().enumerate() {
            let number = at as u8 + 1;
            let port = format!("target-{number}");
            let end = VethEnd::new(&namespace, "eth0").mac(mac(0x90, 10 + number)).mtu(plan.provider_mtu);
            let interface = plug(&end, &VethEnd::new(&provider, &port).mtu(plan.provider_mtu), &provider_switch)?;
            targets.push(node(&namespace, interface, TARGETS[at])?);
        }
        let mut made = Vec::new();
        for (at, namespace) in clients.iter().enumerate() {
            let end = VethEnd::new(namespace, "eth0").mac(mac(0x0a + at as u8, 2)).mtu(plan.consumer_mtu);
            let port = PORTS[at];
            let interface = match &consumer_switch {
                None => {
                    let far = VethEnd::new(&gateway, port).mac(mac(0x0a + at as u8, 1)).mtu(plan.consumer_mtu);
                    end.pair(&far)?.0
                }
                Some(switch) => plug(&end, &VethEnd::new(switch.namespace(), port).mtu(plan.consumer_mtu), switch)?,
            };
            let (interface, address) = match plan.wiring {
                Wiring::Ports => (interface, CLIENT),
                Wiring::Vlans => (interface.add_vlan(VLANS[at])?, CLIENT),
                Wiring::OneArmed => (interface, [CLIENT, SECOND_CLIENT][at]),
            };
            made.push(node(namespace, interface, address)?);
        }
        if plan.wiring == Wiring::Vlans {
            let end = VethEnd::new(&gateway, PORTS[0]).mac(mac(0x0a, 1)).mtu(plan.consumer_mtu);
            let switch = Interface::new(&consumers, "switch");
            plug(&end, &VethEnd::new(&consumers, "gateway").mtu(plan.consumer_mtu), &switch)?;
        }
        let end = VethEnd::new(&gateway, PORTS[2]).mac(mac(0x90, 1)).mtu(plan.provider_mtu);
        plug(&end, &VethEnd::new(&provider, "gateway").mtu(plan.provider_mtu), &provider_switch)?;

        if plan.offloads == Offloads::Off {
            for namespace in clients.iter().chain(targets.iter().map(Node::namespace)) {
                namespace.interface("eth0").set_offloads(&Offload::TRANSMIT, false)?;
            }
        }
        let clients = <[Node; 2]>::try_from(made).unwrap_or_else(|_| unreachable!("one for each client"));
        Ok(Self { clients, targets, provider, consumers, gateway })
    }

    /// All namespaces, in the order of [`NODES`].
    #[must_use]
    pub fn nodes(&self) -> Vec<&Namespace> {
        let hosts = self.clients.iter().chain(&self.targets).map(Node::namespace);
        hosts.chain([&self.provider, &self.consumers, &self.gateway]).collect()
    }
}

/// Names of the gateway's interfaces toward the first consumer, the second, and the provider.
pub const PORTS: [&str; 3] = ["vpc-a", "vpc-b", "vpc-p"];

fn plug(end: &VethEnd<'_>, port: &VethEnd<'_>, switch: &Interface) -> Result<Interface, InterfaceError> {
    let (interface, attached) = end.pair(port)?;
    attached.attach_to(switch)?;
    Ok(interface)
}

fn node(namespace: &Namespace, interface: Interface, address: Ipv4Addr) -> Result<Node, NetworkError> {
    interface.add_address(IpAddr::V4(address), 24)?;
    Ok(Node { namespace: namespace.clone(), interface, address })
}

/// Nothing but what is sent on purpose shall be on the wires: no router solicitations, no neighbour discovery.
fn silence_ipv6(namespace: &Namespace) -> Result<(), NamespaceError> {
    for scope in ["all", "default"] {
        match namespace.set_sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1") {
            // A kernel without IPv6 is silent already.
            Err(NamespaceError::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// The page behind the endpoint.
#[must_use]
pub const fn page() -> SocketAddrV4 {
    SocketAddrV4::new(ENDPOINT, PAGE_PORT)
}

/// The echo behind the endpoint.
#[must_use]
pub const fn echo() -> SocketAddrV4 {
    SocketAddrV4::new(ENDPOINT, ECHO_PORT)
}

/// The bulk service behind the endpoint.
#[must_use]
pub const fn bulk() -> SocketAddrV4 {
    SocketAddrV4::new(ENDPOINT, BULK_PORT)
}

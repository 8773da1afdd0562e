//! Interfaces of a namespace: veth pairs, bridges, VLANs, their addresses, routes and neighbours, over netlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use nix::net::if_::if_nametoindex;
use postern_wire::MacAddress;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, State};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan, RouteMessageBuilder, new_connection,
};

use crate::namespace::{Namespace, NamespaceError};
use crate::statistics::InterfaceStatistics;

/// How long [`Interface::wait_for_carrier`] waits: the kernel's own delay is a second at most.
const CARRIER: Duration = Duration::from_secs(2);

/// What can go wrong with an interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// There is none of that name.
    #[error("there is no interface {interface} in the network namespace {namespace}")]
    Missing {
        /// Its name.
        interface: String,
        /// The namespace.
        namespace: String,
    },
    /// The kernel refused a change.
    #[error("cannot {action} {interface} in the network namespace {namespace}: {source}")]
    Change {
        /// What was to be done.
        action: &'static str,
        /// To which interface or prefix.
        interface: String,
        /// In which namespace.
        namespace: String,
        /// Why not.
        source: io::Error,
    },
    /// The kernel was built without 802.1Q interfaces.
    #[error(
        "cannot make {interface} in the network namespace {namespace}: this kernel has no 802.1Q interfaces \
         (CONFIG_VLAN_8021Q; modprobe 8021q where it is a module)"
    )]
    NoVlans {
        /// Its name.
        interface: String,
        /// In which namespace.
        namespace: String,
    },
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket in the network namespace {namespace}: {source}")]
    Netlink {
        /// In which namespace.
        namespace: String,
        /// Why not.
        source: io::Error,
    },
    /// It is not an Ethernet interface.
    #[error("the interface {0} has no MAC address")]
    NoMacAddress(String),
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// One end of a veth pair that is to be made.
#[derive(Debug, Clone)]
pub struct VethEnd<'a> {
    /// Where it is to be.
    pub namespace: &'a Namespace,
    /// Its name there, at most 15 bytes.
    pub name: &'a str,
    /// Its MAC address; `None`: the kernel chooses.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes, 68…65535.
    pub mtu: u32,
}

impl<'a> VethEnd<'a> {
    /// An end with an MTU of 1500 bytes and a MAC address of the kernel's choice.
    #[must_use]
    pub const fn new(namespace: &'a Namespace, name: &'a str) -> Self {
        Self { namespace, name, mac: None, mtu: 1500 }
    }

    /// The same with a MAC address.
    #[must_use]
    pub const fn mac(mut self, mac: MacAddress) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The same with an MTU in bytes.
    #[must_use]
    pub const fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Makes the pair; both ends are up and have carrier.
    pub fn pair(&self, other: &VethEnd<'_>) -> Result<(Interface, Interface), InterfaceError> {
        // Made in the first namespace with a name that nobody else has there, then moved and renamed in one step.
        let waiting = format!("~{}", other.name.chars().take(14).collect::<String>());
        let pair = LinkVeth::new(self.name, &waiting).mtu(self.mtu).build();
        netlink(self.namespace, "make the veth pair", self.name, async |handle| {
            handle.link().add(pair).execute().await
        })?;
        let moved = LinkUnspec::new_with_index(index(self.namespace, &waiting)?)
            .name(other.name)
            .setns_by_fd(other.namespace.raw_handle())
            .build();
        change(self.namespace, "move to its namespace", other.name, moved)
            .inspect_err(|_| drop(self.namespace.interface(self.name).delete()))?;
        let ends = (self.namespace.interface(self.name), other.namespace.interface(other.name));
        for (end, interface) in [(self, &ends.0), (other, &ends.1)] {
            let mut settings = interface.message()?.mtu(end.mtu).up();
            if let Some(mac) = end.mac {
                settings = settings.address(mac.0.to_vec());
            }
            change(end.namespace, "configure", end.name, settings.build())?;
        }
        for end in [&ends.0, &ends.1] {
            end.wait_for_carrier()?;
        }
        Ok(ends)
    }
}

/// An interface of a namespace, by name. It need not exist (yet, or any more): each call looks it up.
#[derive(Debug, Clone)]
pub struct Interface {
    namespace: Namespace,
    name: String,
}

impl Interface {
    pub(crate) fn new(namespace: &Namespace, name: &str) -> Self {
        Self { namespace: namespace.clone(), name: name.to_owned() }
    }

    /// Makes a learning bridge with spanning tree and multicast snooping off; it is up.
    pub fn bridge(namespace: &Namespace, name: &str, mtu: u32) -> Result<Self, InterfaceError> {
        let bridge = LinkBridge::new(name).mcast_snooping(false).mtu(mtu).up().build();
        netlink(namespace, "make the bridge", name, async |handle| handle.link().add(bridge).execute().await)?;
        Ok(namespace.interface(name))
    }

    /// Makes an 802.1Q interface on this one, named `NAME.ID`; it is up.
    pub fn add_vlan(&self, id: u16) -> Result<Self, InterfaceError> {
        let name = format!("{}.{id}", self.name);
        let vlan = LinkVlan::new(&name, self.index()?, id).up().build();
        let made =
            netlink(&self.namespace, "make the VLAN", &name, async |handle| handle.link().add(vlan).execute().await);
        match made {
            Ok(()) => Ok(self.namespace.interface(&name)),
            Err(InterfaceError::Change { source, interface, namespace, .. })
                if source.kind() == io::ErrorKind::Unsupported =>
            {
                Err(InterfaceError::NoVlans { interface, namespace })
            }
            Err(error) => Err(error),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its index in the namespace; an error if it does not exist.
    pub fn index(&self) -> Result<u32, InterfaceError> {
        index(&self.namespace, &self.name)
    }

    /// Whether it exists.
    pub fn exists(&self) -> Result<bool, InterfaceError> {
        match self.index() {
            Ok(_) => Ok(true),
            Err(InterfaceError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Its MAC address.
    pub fn mac(&self) -> Result<MacAddress, InterfaceError> {
        let index = self.index()?;
        let link = netlink(&self.namespace, "read", &self.name, async |handle| {
            handle.link().get().match_index(index).execute().try_next().await
        })?;
        let attributes = link.ok_or_else(|| self.missing())?.attributes;
        let address = attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes).ok(),
            _ => None,
        });
        address.map(MacAddress).ok_or_else(|| InterfaceError::NoMacAddress(self.name.clone()))
    }

    /// Its counters since it was made.
    pub fn statistics(&self) -> Result<InterfaceStatistics, InterfaceError> {
        let all = self.namespace.interfaces()?;
        let own = all.into_iter().find(|(name, _)| *name == self.name);
        own.map(|(_, statistics)| statistics).ok_or_else(|| self.missing())
    }

    /// Sets it up.
    pub fn up(&self) -> Result<(), InterfaceError> {
        change(&self.namespace, "set up", &self.name, self.message()?.up().build())
    }

    /// Sets it down.
    pub fn down(&self) -> Result<(), InterfaceError> {
        change(&self.namespace, "set down", &self.name, self.message()?.down().build())
    }

    /// Gives it another MAC address.
    pub fn set_mac(&self, mac: MacAddress) -> Result<(), InterfaceError> {
        let message = self.message()?.address(mac.0.to_vec()).build();
        change(&self.namespace, "change the MAC address of", &self.name, message)
    }

    /// Gives it another MTU, in bytes.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), InterfaceError> {
        change(&self.namespace, "change the MTU of", &self.name, self.message()?.mtu(mtu).build())
    }

    /// Waits until the kernel takes its carrier for up, which it does in the background: before, a device drops what it is to
    /// send, and a bridge keeps a new port disabled. After two seconds without that, which a caller will notice, it goes on.
    fn wait_for_carrier(&self) -> Result<(), InterfaceError> {
        let deadline = Instant::now() + CARRIER;
        let index = self.index()?;
        loop {
            let link = netlink(&self.namespace, "read", &self.name, async |handle| {
                handle.link().get().match_index(index).execute().try_next().await
            })?;
            let attributes = link.ok_or_else(|| self.missing())?.attributes;
            if attributes.contains(&LinkAttribute::OperState(State::Up)) || Instant::now() > deadline {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Makes it a port of a bridge in the same namespace.
    pub fn attach_to(&self, bridge: &Self) -> Result<(), InterfaceError> {
        let message = self.message()?.controller(bridge.index()?).build();
        change(&self.namespace, "attach to the bridge", &self.name, message)
    }

    /// Deletes it, and with it the other end of a veth pair.
    pub fn delete(&self) -> Result<(), InterfaceError> {
        let index = self.index()?;
        netlink(&self.namespace, "delete", &self.name, async |handle| handle.link().del(index).execute().await)
    }

    /// Adds an address with the length of its on-link prefix.
    pub fn add_address(&self, address: IpAddr, length: u8) -> Result<(), InterfaceError> {
        let index = self.index()?;
        netlink(&self.namespace, "add an address to", &self.name, async |handle| {
            handle.address().add(index, address, length).execute().await
        })
    }

    /// Adds or replaces a permanent neighbour.
    pub fn add_neighbour(&self, address: IpAddr, mac: MacAddress) -> Result<(), InterfaceError> {
        let index = self.index()?;
        netlink(&self.namespace, "add a neighbour to", &self.name, async |handle| {
            handle.neighbours().add(index, address).link_layer_address(&mac.0).replace().execute().await
        })
    }

    /// Keeps the kernel from speaking IPv6 on it, so that nothing but what is sent on purpose is on the wire.
    pub fn disable_ipv6(&self) -> Result<(), InterfaceError> {
        let key = format!("net.ipv6.conf.{}.disable_ipv6", self.name.replace('.', "/"));
        match self.namespace.set_sysctl(&key, "1") {
            // A kernel without IPv6 has nothing to disable.
            Err(NamespaceError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }

    fn message(&self) -> Result<LinkMessageBuilder<LinkUnspec>, InterfaceError> {
        Ok(LinkUnspec::new_with_index(self.index()?))
    }

    fn missing(&self) -> InterfaceError {
        InterfaceError::Missing { interface: self.name.clone(), namespace: self.namespace.name().to_owned() }
    }
}

pub(crate) fn add_route(
    namespace: &Namespace,
    destination: IpAddr,
    length: u8,
    via: IpAddr,
) -> Result<(), InterfaceError> {
    let route = match (destination, via) {
        (IpAddr::V4(destination), IpAddr::V4(via)) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, length).gateway(via).build()
        }
        (destination, via) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(mapped(destination), length)
            .gateway(mapped(via))
            .build(),
    };
    netlink(namespace, "add the route to", &format!("{destination}/{length}"), async |handle| {
        handle.route().add(route).execute().await
    })
}

const fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn index(namespace: &Namespace, name: &str) -> Result<u32, InterfaceError> {
    namespace
        .run(|| if_nametoindex(name))?
        .map_err(|_| InterfaceError::Missing { interface: name.to_owned(), namespace: namespace.name().to_owned() })
}

fn change(namespace: &Namespace, action: &'static str, name: &str, message: LinkMessage) -> Result<(), InterfaceError> {
    netlink(namespace, action, name, async |handle| handle.link().change(message).execute().await)
}

/// One conversation with the namespace's kernel, on a thread of its own that ends with it.
fn netlink<T: Send>(
    namespace: &Namespace,
    action: &'static str,
    interface: &str,
    operation: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
) -> Result<T, InterfaceError> {
    let no_socket = |source| InterfaceError::Netlink { namespace: namespace.name().to_owned(), source };
    let outcome = namespace.run(|| -> io::Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = new_connection()?;
            tokio::spawn(connection);
            Ok(operation(handle).await)
        })
    })?;
    outcome.map_err(no_socket)?.map_err(|source| InterfaceError::Change {
        action,
        interface: interface.to_owned(),
        namespace: namespace.name().to_owned(),
        source: match source {
            rtnetlink::Error::NetlinkError(answer) => answer.to_io(),
            other => io::Error::other(other),
        },
    })
}

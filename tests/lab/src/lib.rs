//! Networks in a box: namespaces, veth pairs, clients and servers, made over netlink without iproute2.
//!
//! `postern lab` builds its demonstration from it, and the whole-machine tests build theirs. Everything that is made
//! belongs to a value: a [`Namespace`] without a name disappears when its last holder does, a [`Process`] is ended when
//! it is dropped, and by the kernel if the process that started it dies.
#![forbid(unsafe_code)]

pub mod client;
pub mod control;
pub mod declaration;
pub mod enclosure;
pub mod gateway;
pub mod interface;
pub mod namespace;
pub mod network;
pub mod offload;
pub mod process;
pub mod server;
pub mod statistics;
pub mod stream;
pub mod topology;

pub use client::{Client, Reply, RequestError, Transfer, Way};
pub use control::{Control, ControlError};
pub use gateway::{Gateway, GatewayError};
pub use interface::{Interface, InterfaceError, VethEnd};
pub use namespace::{Namespace, NamespaceError};
pub use network::{Network, NetworkError, Node, Offloads, Plan, Wiring};
pub use offload::{Offload, OffloadError};
pub use process::{Launcher, Process, ProcessError};
pub use server::{Answer, ServerError, Servers};
pub use statistics::{InterfaceStatistics, ProtocolStatistics};
pub use topology::{Builder, Target, Topology, TopologyError};

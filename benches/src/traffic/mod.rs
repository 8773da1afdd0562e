//! Generator, responder and receiver of test frames.
//!
//! A [`Stream`](stream::Stream) says what the frames are: flows with pseudorandom addresses and ports, sizes, UDP or TCP, and
//! a stamp in each payload. A [`Station`](station::Station) has a port on each side of a device, sends a stream by a
//! [`Schedule`](pace::Schedule), and says what became of every frame ([`Arrivals`](arrivals::Arrivals)): in namespaces around
//! a gateway of Postern ([`Lab`](lab::Lab)), or on two interfaces of the host.
//!
//! It sends through a packet socket. What no socket can send, frames made inside the kernel, is
//! in [`in_kernel`]; those have no stamps, so that they can only be counted.

pub mod arrivals;
pub mod histogram;
pub mod in_kernel;
pub mod lab;
pub mod pace;
pub mod permutation;
mod segment;
pub mod stamp;
pub mod station;
pub mod stream;

use std::net::IpAddr;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// A packet socket or an interface.
    #[error(transparent)]
    Device(#[from] postern_frame_io::DeviceError),
    /// The stream cannot be made.
    #[error(transparent)]
    Stream(#[from] stream::StreamError),
    /// A namespace.
    #[error(transparent)]
    Namespace(#[from] postern_lab::NamespaceError),
    /// An interface of a namespace.
    #[error(transparent)]
    Interface(#[from] postern_lab::InterfaceError),
    /// The gateway's process.
    #[error(transparent)]
    Gateway(#[from] postern_lab::GatewayError),
    /// A process.
    #[error(transparent)]
    Process(#[from] postern_lab::ProcessError),
    /// The topology of real network stacks.
    #[error(transparent)]
    Nat(#[from] crate::nat::NatError),
    /// A BPF program.
    #[error(transparent)]
    Bpf(#[from] postern_frame_io::bpf::BpfError),
    /// The CPUs of a thread.
    #[error(transparent)]
    Pin(#[from] postern_frame_io::pin::PinError),
    /// Input or output failed.
    #[error("cannot {0}: {1}")]
    Io(&'static str, std::io::Error),
    /// Nobody has an address.
    #[error("nobody answers for {0}; give its MAC address if it has one")]
    NoNeighbour(IpAddr),
    /// Nothing passes.
    #[error("no frame passed through the device within {0} s")]
    NoPath(u64),
    /// Flows cannot be opened.
    #[error("only {opened} of {flows} flows could be opened")]
    NotOpened {
        /// How many could.
        opened: u64,
        /// How many should.
        flows: u32,
    },
    /// The gateway did not do something.
    #[error("the gateway did not {0} in time")]
    NotInTime(&'static str),
    /// An argument.
    #[error("{0}")]
    Argument(String),
}

//! Frames through the gateway: a generator that keeps to a pace, and what arrives at the server.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind, recv, sendmmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use postern_wire::MacAddress;

use super::BenchError;
use crate::nat::topology::{CLIENT, CLIENT_INTERFACE, SERVER_INTERFACE, Topology};
use crate::packet::{Carried, frame};

/// Bytes of a frame without frame check sequence.
const FRAME: usize = 60;
/// Frames of a system call, at most.
const BATCH: usize = 32;
/// Between two looks at the clock.
const PAUSE: Duration = Duration::from_micros(200);
/// A generator that was held up for longer than this much does not catch up: what comes at once must fit a ring.
const LATE: Duration = Duration::from_millis(2);
/// Where the destination port is in a frame without VLAN tag and IP options.
const DESTINATION_PORT: std::ops::Range<usize> = 36..38;
/// Where the protocol of an IP packet is.
const PROTOCOL: usize = 23;
/// UDP (RFC 768).
const UDP: u8 = 17;

/// A packet socket of the client's that only sends.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    macs: (MacAddress, MacAddress),
}

impl Sender {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(topology: &Topology) -> Result<Self, BenchError> {
        let macs = (topology.gateway_mac(), topology.end_macs()[0]);
        let opened = topology.at_client(|| -> Result<_, Errno> {
            // Protocol 0: nothing is received.
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            bind(socket.as_raw_fd(), &link_address(CLIENT_INTERFACE)?)?;
            setsockopt(&socket, sockopt::SndBufForce, &(16 << 20))?;
            Ok(socket)
        })?;
        Ok(Self { socket: opened.map_err(|error| BenchError::Kernel("open a packet socket", error))?, macs })
    }

    /// A frame of a flow, by its source port.
    #[must_use]
    pub fn frame(&self, from: u16, to: SocketAddrV4) -> Vec<u8> {
        frame(self.macs, SocketAddrV4::new(CLIENT, from), to, Carried::Udp, FRAME)
    }

    /// Sends frames once; how many the kernel took.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self, frames: &[Vec<u8>]) -> Result<u64, BenchError> {
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let bound: Vec<Option<LinkAddr>> = vec![None; frames.len()];
        let mut headers = MultiHeaders::<LinkAddr>::preallocate(frames.len(), None);
        match sendmmsg(self.socket.as_raw_fd(), &mut headers, &slices, &bound, [], MsgFlags::empty()) {
            Ok(results) => Ok(results.count() as u64),
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(BenchError::Kernel("send frames", error)),
        }
    }

    /// Sends frames in turn, so many a second, until it is told to stop; counts them in `sent`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn pace(&self, frames: &[Vec<u8>], rate: f64, sent: &AtomicU64, stop: &AtomicBool) -> Result<(), BenchError> {
        let most = (LATE.as_secs_f64() * rate).max(1.0);
        let (mut due, mut last, mut next) = (0.0, Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            due = f64::min(due + (now - last).as_secs_f64() * rate, most);
            last = now;
            while due >= 1.0 {
                let count = BATCH.min(due as usize).min(frames.len() - next);
                let taken = self.send(&frames[next..next + count])?;
                sent.fetch_add(taken, Ordering::Relaxed);
                due -= count as f64;
                next = (next + count) % frames.len();
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// A packet socket of the server's that sees UDP datagrams arrive.
#[derive(Debug)]
pub struct Arrivals {
    socket: OwnedFd,
}

impl Arrivals {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(topology: &Topology) -> Result<Self, BenchError> {
        let open = || -> Result<_, Errno> {
            let protocol = Some(SockProtocol::EthAll);
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            bind(socket.as_raw_fd(), &link_address(SERVER_INTERFACE)?)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(5))?;
            Ok(socket)
        };
        let socket = topology.at_server(open)?;
        Ok(Self { socket: socket.map_err(|error| BenchError::Kernel("open a packet socket", error))? })
    }

    /// The destination ports of datagrams that arrived; waits a moment for one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn ports(&self) -> Result<BTreeSet<u16>, BenchError> {
        let mut ports = BTreeSet::new();
        let (mut buffer, mut flags) = ([0; 128], MsgFlags::empty());
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
                Ok(length) if length > DESTINATION_PORT.end && buffer[PROTOCOL] == UDP => {
                    ports
                        .insert(u16::from_be_bytes([buffer[DESTINATION_PORT.start], buffer[DESTINATION_PORT.end - 1]]));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(ports),
                Err(error) => return Err(BenchError::Kernel("receive frames", error)),
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
    }
}

/// The link-layer address of an interface of the calling thread's namespace.
fn link_address(name: &str) -> Result<LinkAddr, Errno> {
    let mut interfaces = getifaddrs()?.filter(|interface| interface.interface_name == name);
    interfaces.find_map(|interface| interface.address?.as_link_addr().copied()).ok_or(Errno::ENODEV)
}

//! UDP at overload: a generator that sends 64-byte Ethernet frames (60 without the frame check sequence) as fast as
//! one CPU can, from inside the kernel or, where that is not to be had, through a packet socket; and a sink that counts and
//! drops them early at the server.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg, setsockopt, socket, sockopt,
};

use postern_lab::Offload;
use postern_wire::MacAddress;

use super::live_frames::{LiveFrames, PORTS};
use super::nftables;
use super::processor::{LOAD_CPU, busy_seconds, pin};
use super::topology::{CLIENT, CLIENT_INTERFACE, GATEWAY_CLIENT_INTERFACE, PORT, SERVER_INTERFACE, Topology};
use super::{Measured, Metric, NatError, StopOnDrop};
use crate::packet::{Carried, frame};

/// Flows that the generator uses in turn.
pub const FLOWS: u32 = 64;
/// First source port.
const FIRST_PORT: u16 = 20_000;
/// Of more flows than one address has ports in use, the first source address.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// Bytes of a frame without frame check sequence.
const FRAME: usize = 60;

/// Sends as fast as possible for `warm_up` and `window` and counts in `window` what reaches the sink.
///
/// # Errors
/// When the generator or the sink cannot be set up, or nothing arrives.
pub fn measure(topology: &Topology, warm_up: Duration, window: Duration) -> Result<Measured, NatError> {
    measure_flows(topology, FLOWS, warm_up, window)
}

/// The same with `flows` flows, a power of two. More than [`PORTS`] have source addresses from 10.128.0.0 on, which the gateway
/// must reach through the client, and need frames that are made inside the kernel.
///
/// # Errors
/// As [`measure`].
pub fn measure_flows(
    topology: &Topology,
    flows: u32,
    warm_up: Duration,
    window: Duration,
) -> Result<Measured, NatError> {
    // Makes every neighbour known, and proves the path before frames are thrown at it.
    topology.exchange_one_datagram()?;
    let sink = Sink::open(topology)?;
    let generator = Generator::open(topology, flows)?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let (stop, sent) = (&stop, &sent);
        let generator = &generator;
        let sender = scope.spawn(move || topology.at_client(|| generator.send(sent, stop))?);
        std::thread::sleep(warm_up);
        let (busy, offered, arrived) = (busy_seconds()?, generator.count(sent)?, sink.count()?);
        let start = Instant::now();
        std::thread::sleep(window);
        let elapsed = start.elapsed().as_secs_f64();
        let (busy, offered) = (busy_seconds()? - busy, generator.count(sent)? - offered);
        let arrived = sink.count()?.saturating_sub(arrived);
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap_or(Err(NatError::Nothing("UDP")))?;
        if arrived == 0 {
            return Err(NatError::Nothing("UDP"));
        }
        Ok(Measured::from([
            (Metric::PacketsPerSecond, arrived as f64 / elapsed),
            (Metric::OfferedPerSecond, offered as f64 / elapsed),
            (Metric::CpuMicrosecondsPerPacket, busy * 1e6 / arrived as f64),
        ]))
    })
}

/// Where the frames come from.
struct Generator<'t> {
    source: Source,
    /// Receives with GRO while it generates, and whether it did before: frames that an XDP program sends to a veth device are
    /// taken by NAPI, which GRO turns on.
    receiver: Option<(&'t Topology, bool)>,
}

enum Source {
    Live(LiveFrames),
    Socket(OwnedFd, Vec<Vec<u8>>),
}

/// Whether frames can be made inside the kernel here; if not, why.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn live_frames_refused(topology: &Topology) -> Result<Option<String>, NatError> {
    Ok(Generator::live(topology, FLOWS).err().map(|error| error.to_string()))
}

impl<'t> Generator<'t> {
    fn open(topology: &'t Topology, flows: u32) -> Result<Self, NatError> {
        let live = match Self::live(topology, flows) {
            Ok(live) => live,
            Err(error) if flows > FLOWS => return Err(error),
            Err(_) => {
                let (socket, frames) = topology.at_client(|| Self::socket(topology))??;
                return Ok(Self { source: Source::Socket(socket, frames), receiver: None });
            }
        };
        let receiver = topology.gateway().interface(GATEWAY_CLIENT_INTERFACE);
        let before = receiver.offload(Offload::GenericReceive)?;
        receiver.set_offloads(&[Offload::GenericReceive], true)?;
        Ok(Self { source: Source::Live(live), receiver: Some((topology, before)) })
    }

    fn live(topology: &Topology, flows: u32) -> Result<LiveFrames, NatError> {
        topology.at_client(|| {
            let (_, macs) = client_interface(topology)?;
            let frame = if flows > PORTS { first_of_many(macs, flows) } else { flow_frame(macs, 0) };
            LiveFrames::new(CLIENT_INTERFACE, &frame, flows)
        })?
    }

    /// A packet socket that only sends, bound to the client's interface, and one frame of each flow.
    fn socket(topology: &Topology) -> Result<(OwnedFd, Vec<Vec<u8>>), NatError> {
        let kernel = |what| move |error: Errno| NatError::Kernel(what, error);
        let open = "open the generator's packet socket";
        // Protocol 0: nothing is received.
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map_err(kernel(open))?;
        let (interface, macs) = client_interface(topology)?;
        bind(fd.as_raw_fd(), &interface).map_err(kernel(open))?;
        // Deep enough that the generator never waits for the gateway: the load must be an overload.
        setsockopt(&fd, sockopt::SndBufForce, &(64 << 20)).map_err(kernel("enlarge the generator's send buffer"))?;
        Ok((fd, (0..FLOWS as u16).map(|flow| flow_frame(macs, flow)).collect()))
    }

    /// Frames sent so far.
    fn count(&self, sent: &AtomicU64) -> Result<u64, NatError> {
        match &self.source {
            Source::Socket(..) => Ok(sent.load(Ordering::Relaxed)),
            Source::Live(frames) => Ok(frames.count()?),
        }
    }

    /// Sends until it is told to stop. To be called in the client's namespace.
    fn send(&self, sent: &AtomicU64, stop: &AtomicBool) -> Result<(), NatError> {
        pin(LOAD_CPU)?;
        match &self.source {
            Source::Socket(socket, frames) => send(socket, frames, sent, stop),
            Source::Live(frames) => {
                while !stop.load(Ordering::Relaxed) {
                    frames.send()?;
                }
                Ok(())
            }
        }
    }
}

impl Drop for Generator<'_> {
    fn drop(&mut self) {
        if let Some((topology, false)) = self.receiver {
            let receiver = topology.gateway().interface(GATEWAY_CLIENT_INTERFACE);
            let _ = receiver.set_offloads(&[Offload::GenericReceive], false);
        }
    }
}

/// The client's interface, the gateway's and its own MAC address.
fn client_interface(topology: &Topology) -> Result<(LinkAddr, (MacAddress, MacAddress)), NatError> {
    let interface = getifaddrs()
        .map_err(|error| NatError::Kernel("list the client's interfaces", error))?
        .filter(|interface| interface.interface_name == CLIENT_INTERFACE)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .ok_or(NatError::NoInterface(CLIENT_INTERFACE))?;
    let source = interface.addr().ok_or(NatError::NoInterface(CLIENT_INTERFACE))?;
    Ok((interface, (topology.gateway_mac(), MacAddress(source))))
}

fn flow_frame(macs: (MacAddress, MacAddress), flow: u16) -> Vec<u8> {
    frame(macs, SocketAddrV4::new(CLIENT, FIRST_PORT + flow), Topology::endpoint(), Carried::Udp, FRAME)
}

/// The first frame of many flows: its checksums are larger than what the program in the kernel takes off them.
fn first_of_many(macs: (MacAddress, MacAddress), flows: u32) -> Vec<u8> {
    let least = |at: usize, taken: u32| {
        move |frame: &Vec<u8>| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]])) > taken
    };
    let (udp, ip) = (least(40, PORTS + flows / PORTS), least(24, flows / PORTS));
    let from = |port| frame(macs, SocketAddrV4::new(FIRST_SOURCE, port), Topology::endpoint(), Carried::Udp, FRAME);
    let mut ports = FIRST_PORT..=u16::MAX - PORTS as u16;
    // Of so many ports some leave the checksum large enough; the header's checksum does not depend on them.
    ports.find_map(|port| Some(from(port)).filter(&udp).filter(&ip)).unwrap_or_else(|| from(FIRST_PORT))
}

fn send(socket: &OwnedFd, frames: &[Vec<u8>], sent: &AtomicU64, stop: &AtomicBool) -> Result<(), NatError> {
    let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let bound: Vec<Option<LinkAddr>> = vec![None; frames.len()];
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(frames.len(), None);
    while !stop.load(Ordering::Relaxed) {
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &bound, [], MsgFlags::empty()) {
            Ok(results) => sent.fetch_add(results.count() as u64, Ordering::Relaxed),
            // The device's queue is full: that is what overload means.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(NatError::Kernel("send frames", error)),
        };
    }
    Ok(())
}

/// Where the frames end: dropped and counted at the server's ingress by nftables where there is `nft`, else dropped by
/// a socket whose buffer is full and counted by the interface.
pub(crate) struct Sink<'t> {
    topology: &'t Topology,
    /// Held open so that no ICMP error is made.
    _socket: UdpSocket,
    early: bool,
}

impl<'t> Sink<'t> {
    pub(crate) fn open(topology: &'t Topology) -> Result<Self, NatError> {
        let socket = topology.bind_udp_server()?;
        setsockopt(&socket, sockopt::RcvBuf, &0)
            .map_err(|error| NatError::Kernel("shrink the sink's buffer", error))?;
        let early = nftables::available();
        if early {
            topology.at_server(|| {
                nftables::apply(&format!(
                    "table netdev postern_sink {{\n counter arrived {{ }}\n chain ingress {{\n  type filter hook \
                     ingress device \"{SERVER_INTERFACE}\" priority -500; policy accept;\n  udp dport {PORT} counter \
                     name arrived drop\n }}\n}}\n"
                ))
            })??;
        }
        Ok(Self { topology, _socket: socket, early })
    }

    /// Frames that have come so far.
    pub(crate) fn count(&self) -> Result<u64, NatError> {
        if self.early {
            self.topology.at_server(|| nftables::counter("netdev", "postern_sink", "arrived"))?
        } else {
            self.topology.at_server(|| received_packets(SERVER_INTERFACE))?
        }
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        if self.early {
            let _ = self.topology.at_server(|| nftables::apply("delete table netdev postern_sink\n"));
        }
    }
}

/// Packets that an interface of the calling thread's namespace has received.
fn received_packets(interface: &'static str) -> Result<u64, NatError> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")
        .map_err(|error| NatError::Io("read the interface counters", error))?;
    table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == interface)
        .and_then(|(_, columns)| columns.split_whitespace().nth(1)?.parse().ok())
        .ok_or(NatError::NoInterface(interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flows_checksum_is_the_firsts_less_its_number_which_the_program_in_the_kernel_relies_on() {
        let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
        let checksum = |flow| {
            let frame = flow_frame(macs, flow);
            assert_eq!(frame.len(), FRAME);
            u16::from_be_bytes([frame[40], frame[41]])
        };
        for flow in 0..FLOWS as u16 {
            assert_eq!(checksum(flow), checksum(0).checked_sub(flow).unwrap());
        }
    }

    #[test]
    fn of_many_flows_no_checksum_wraps_and_each_is_right() {
        let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
        let first = first_of_many(macs, 1 << 20);
        let half = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        for (address, port) in [(0, 0), (1, 0), (63, 0), (0, 16_383), (63, 16_383)] {
            let from = SocketAddrV4::new(Ipv4Addr::new(10, 128, 0, address), half(&first, 34) + port);
            let right = frame(macs, from, Topology::endpoint(), Carried::Udp, FRAME);
            assert_eq!(half(&right, 24), half(&first, 24).checked_sub(address.into()).unwrap());
            assert_eq!(half(&right, 40), half(&first, 40).checked_sub(port + u16::from(address)).unwrap());
        }
    }
}

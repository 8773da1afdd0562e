//! A bare reflector between client and server: it takes frames and sends them out of the other port as Postern does (the same
//! packet sockets, rings, super-frames and bursts), and in between only writes both MAC addresses. It parses nothing, knows no
//! flow and translates nothing, so it shows what the kernel's part of forwarding in user space costs: no forwarder on these
//! devices can be faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use postern_frame_io::af_packet::{PacketReceiver, PacketTransmitter, ReceiverConfig, SEND_BUFFER};
use postern_frame_io::interface::Interface;
use postern_frame_io::poll;
use postern_frame_io::{Burst, Receive, Transmit, TransmitReport};
use postern_lab::Offload;
use postern_wire::MacAddress;
use postern_wire::parse::ETHERTYPE_IPV4;

use super::processor::{GATEWAY_CPU, cores, pin};
use super::topology::{GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE, Topology};
use super::{NatError, StopOnDrop};

/// Slots of each ring and buffers for super-frames, as a worker of Postern has them.
const SLOTS: u32 = 4096;
const LARGE_BUFFERS: u32 = 32;
const RECEIVE_BUFFER: u32 = 32 << 20;
/// How long the thread sleeps at most where it shares the only CPU with the load.
const NAP: Duration = Duration::from_millis(1);

/// Client and server with a reflector between them, which runs from turn to turn.
#[derive(Debug)]
pub struct ReflectorGateway {
    topology: Topology,
}

impl ReflectorGateway {
    /// Builds the topology: the server has the endpoint's address itself, because nothing translates it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn build() -> Result<Self, NatError> {
        let mut topology = Topology::build()?;
        topology.serve_at_endpoint()?;
        topology.gateway().set_sysctl("net.ipv4.ip_forward", "0")?;
        for interface in [GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE] {
            topology.gateway().interface(interface).set_offloads(&[Offload::GenericReceive], true)?;
        }
        Ok(Self { topology })
    }

    /// The namespaces.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Starts the reflector on the gateway's CPU, and waits until it forwards.
    ///
    /// # Errors
    /// When a socket cannot be opened, or nothing is forwarded within half a minute.
    pub fn start(&self) -> Result<RunningReflector, NatError> {
        let sides = self.topology.gateway().run(|| -> Result<_, NatError> {
            let client = Interface::by_name(GATEWAY_CLIENT_INTERFACE)?;
            let server = Interface::by_name(GATEWAY_SERVER_INTERFACE)?;
            let (there, back) = (Side::open(&client, &server)?, Side::open(&server, &client)?);
            Ok((there, back))
        })??;
        let [client_mac, server_mac] = self.topology.end_macs();
        let own = [GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE]
            .map(|interface| self.topology.gateway().interface(interface).mac());
        let [toward_client, toward_server] = own;
        let sides = [(sides.0, server_mac, toward_server?), (sides.1, client_mac, toward_client?)];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("reflector".to_owned())
            .spawn(move || reflect(sides, &stopped))
            .map_err(|error| NatError::Io("start the reflector's thread", error))?;
        let running = RunningReflector { stop, thread: Some(thread) };
        self.topology.exchange_one_datagram()?;
        Ok(running)
    }
}

/// The reflector's thread. Ends with this value.
#[derive(Debug)]
pub struct RunningReflector {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for RunningReflector {
    fn drop(&mut self) {
        drop(StopOnDrop(&self.stop));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Frames from one port to the other.
struct Side {
    from: PacketReceiver,
    to: PacketTransmitter,
}

impl Side {
    fn open(from: &Interface, to: &Interface) -> Result<Self, NatError> {
        let config = ReceiverConfig {
            slots: SLOTS,
            large_buffers: LARGE_BUFFERS,
            receive_buffer: RECEIVE_BUFFER,
            promiscuous: true,
            ..ReceiverConfig::default()
        };
        Ok(Self { from: PacketReceiver::open(from, &config)?, to: PacketTransmitter::open(to, SEND_BUFFER)? })
    }

    /// Moves one burst; true if there was any frame. IPv4 gets new MAC addresses; ARP passes as it is, so that both ends
    /// learn each other's.
    fn step(&mut self, destination: MacAddress, source: MacAddress, report: &mut TransmitReport) -> bool {
        let mut burst = Burst::new();
        let Ok(received @ 1..) = self.from.receive(&mut burst) else { return false };
        for frame in burst.frames_mut() {
            let bytes = frame.bytes_mut();
            if bytes.get(12..14) == Some(&ETHERTYPE_IPV4.to_be_bytes()) {
                bytes[..6].copy_from_slice(&destination.0);
                bytes[6..12].copy_from_slice(&source.0);
            }
        }
        let selected: [u8; postern_frame_io::BURST] = std::array::from_fn(|at| at as u8);
        self.to.transmit(burst.frames_mut(), &selected[..received], report);
        true
    }
}

/// Reflects until it is told to stop; never sleeps where it has a CPU of its own.
fn reflect(mut sides: [(Side, MacAddress, MacAddress); 2], stop: &AtomicBool) {
    // Asked before: a pinned thread has one CPU.
    let alone = cores() > 1;
    let _ = pin(GATEWAY_CPU);
    let mut report = TransmitReport::default();
    while !stop.load(Ordering::Relaxed) {
        let mut any = false;
        for (side, destination, source) in &mut sides {
            any |= side.step(*destination, *source, &mut report);
        }
        if !any && alone {
            // The other CPU may be a thread of the same core.
            std::hint::spin_loop();
        } else if !any {
            poll::sleep(sides.iter().filter_map(|(side, ..)| side.from.poll_fd()), None, NAP);
        }
    }
}

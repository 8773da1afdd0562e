//! The interfaces that the gateway uses: what is checked of them at the start, how their devices are opened, and how they
//! are found again after they went away.

use std::fs;
use std::os::fd::AsFd;

use postern_forwarding::PortInfo;
use postern_frame_io::af_packet::{FanoutMode, PacketFanout, PacketTransmitter};
use postern_frame_io::bpf::BpfError;
use postern_frame_io::interface::Interface;
use postern_frame_io::tc::TcError;
use postern_frame_io::{DeviceError, features};
use postern_steering::Ownership;
use postern_tables::{Checked, Snapshot};
use postern_wire::{MacAddress, PortIndex};
use tracing::{info, warn};

use crate::back_end::{BackEnd, BackEndError, Opening};
use crate::link::PortDevice;
use crate::run_directory::{RunDirectory, RunDirectoryError};
use crate::steered_port::SteeredPort;

/// Smallest MTU of IPv4 that makes sense here (RFC 791 §3.2).
const SMALLEST_MTU: u32 = 576;
/// SNAT addresses beyond the endpoints' that the address map of a port has room for.
const MORE_ADDRESSES: u32 = 65_536;

/// Why the ports cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The interface is down.
    #[error("interface \"{0}\" is down; switch it on (ip link set dev {0} up) before starting")]
    Down(String),
    /// The MTU is too small.
    #[error("interface \"{interface}\" has an MTU of {mtu} bytes; at least {SMALLEST_MTU} is needed")]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
    },
    /// The interface is not Ethernet.
    #[error("interface \"{0}\" has no MAC address; only Ethernet interfaces can be ports")]
    NotEthernet(String),
    /// The back end is not to be had.
    #[error("{file}: io of port \"{interface}\": {source}")]
    BackEnd {
        /// The configuration file.
        file: String,
        /// The interface.
        interface: String,
        /// Why.
        source: BackEndError,
    },
    /// Steering is not permitted, but needed.
    #[error(
        "{needed} needs BPF, which is not permitted here ({source}); as an unprivileged user only one worker with ports \
         of mode \"own\" works"
    )]
    SteeringNeeded {
        /// What needs it.
        needed: String,
        /// The kernel's answer.
        source: BpfError,
    },
    /// A program could not be loaded.
    #[error(transparent)]
    Steering(#[from] BpfError),
    /// A program could not be attached.
    #[error(transparent)]
    Ingress(#[from] TcError),
    /// A change could not be written down.
    #[error(transparent)]
    RunDirectory(#[from] RunDirectoryError),
}

/// One port.
#[derive(Debug)]
struct Port {
    name: String,
    back_end: BackEnd,
    shared: bool,
    interface: Interface,
    present: bool,
    /// The sockets belong to an interface that is gone.
    stale: bool,
    /// An attachment has a MAC address of its own, which the interface would not let in.
    promiscuous: bool,
    steering: Option<SteeredPort>,
}

/// All ports, by [`PortIndex`].
#[derive(Debug)]
pub struct Ports {
    ports: Vec<Port>,
    workers: u16,
    /// Threads of the kernel receive, where the back end is io_uring.
    kernel_threads: bool,
    /// Number of the next fan-out group.
    next_group: u16,
}

/// What became of a port since the last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortNews {
    /// Nothing.
    Same,
    /// MAC address, MTU or state changed.
    Changed,
    /// The interface is another one of the same name: devices must be opened anew.
    Successor,
}

impl Ports {
    /// Looks the ports up, checks them, and loads their steering programs.
    ///
    /// # Errors
    /// The first port that cannot be used, and why.
    pub fn check(checked: &Checked, snapshot: &Snapshot, ownership: &Ownership) -> Result<Self, PortError> {
        let workers = checked.workers.count;
        let mut ports = Vec::new();
        for (at, port) in checked.ports.iter().enumerate() {
            let interface = Interface::by_name(&port.interface)?;
            check_interface(&interface)?;
            if !port.shared {
                warn_of_host(&interface);
            }
            let choice = BackEnd::choose(port.io, &port.interface).map_err(|source| PortError::BackEnd {
                file: checked.file.clone(),
                interface: port.interface.clone(),
                source,
            })?;
            let back_end = choice.back_end;
            info!(interface = port.interface, io = %back_end, "{}", choice.reason);
            let index = PortIndex(at as u16);
            let room = checked.limits.endpoints.saturating_mul(2).saturating_add(MORE_ADDRESSES);
            let steering = match SteeredPort::load(index, port.shared, ownership, snapshot, room) {
                Ok(steering) => Some(steering),
                Err(source) if source.is_not_permitted() => {
                    let needed = match (workers, port.shared) {
                        (_, true) => Some(format!("port \"{}\", shared with the host,", port.interface)),
                        (1, false) => None,
                        _ => Some(format!("workers.count = {workers}")),
                    };
                    if let Some(needed) = needed {
                        return Err(PortError::SteeringNeeded { needed, source });
                    }
                    warn!(
                        interface = port.interface,
                        "BPF is not permitted: the host sees this port's frames too; leave it without addresses there"
                    );
                    None
                }
                Err(error) => return Err(error.into()),
            };
            ports.push(Port {
                name: port.interface.clone(),
                back_end,
                shared: port.shared,
                interface,
                present: true,
                stale: false,
                promiscuous: snapshot.attachments.iter().any(|at| at.port == index && at.mac.is_some()),
                steering,
            });
        }
        let next_group = std::process::id() as u16;
        Ok(Self { ports, workers, kernel_threads: checked.gateway.io_uring_sqpoll, next_group })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Name of a port's interface.
    #[must_use]
    pub fn name(&self, port: usize) -> &str {
        &self.ports[port].name
    }

    /// Whether a port is shared with the host.
    #[must_use]
    pub fn is_shared(&self, port: usize) -> bool {
        self.ports[port].shared
    }

    /// The back end of a port's devices.
    #[must_use]
    pub fn back_end(&self, port: usize) -> BackEnd {
        self.ports[port].back_end
    }

    /// The back end of each port's devices.
    #[must_use]
    pub fn back_ends(&self) -> Vec<BackEnd> {
        self.ports.iter().map(|port| port.back_end).collect()
    }

    /// What the forwarders must know.
    #[must_use]
    pub fn infos(&self) -> Vec<PortInfo> {
        self.ports.iter().map(Port::info).collect()
    }

    /// Switches offloads that make super-frames of segments on, so that one look-up serves many segments.
    ///
    /// # Errors
    /// When the change cannot be written down first.
    pub fn prepare(&self, port: usize, run: &mut RunDirectory) -> Result<(), RunDirectoryError> {
        let wanted = [(features::LRO, false), (features::GRO, true), (features::UDP_GRO_FORWARDING, true)];
        run.switch_features(&self.ports[port].interface, &wanted)
    }

    /// Opens a port's devices, one for each worker.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(&mut self, port: usize) -> Result<Vec<PortDevice>, DeviceError> {
        let group = self.next_group;
        self.next_group = self.next_group.wrapping_add(1);
        let Port { back_end, interface, steering, promiscuous, .. } = &self.ports[port];
        let fanout = steering
            .as_ref()
            .filter(|_| self.workers > 1)
            .map(|steering| PacketFanout { group, mode: FanoutMode::Program(steering.fan_out().as_fd()) });
        back_end.open(&Opening {
            interface,
            port: PortIndex(port as u16),
            workers: self.workers,
            promiscuous: *promiscuous,
            fanout,
            filter: steering.as_ref().and_then(SteeredPort::claimed).map(AsFd::as_fd),
            kernel_thread: self.kernel_threads,
        })
    }

    /// Opens a transmitter for the control-side thread's own frames.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open_transmitter(&self, port: usize) -> Result<PacketTransmitter, DeviceError> {
        PacketTransmitter::open(&self.ports[port].interface, 1 << 20)
    }

    /// Takes from the host what is Postern's.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn hide_from_host(&mut self, port: usize, run: &mut RunDirectory) -> Result<(), PortError> {
        let Port { interface, steering, .. } = &mut self.ports[port];
        if let Some(steering) = steering {
            // Written first: on an older kernel the filter would outlive a crash.
            run.record_ingress_filter(interface)?;
            steering.attach(interface)?;
        }
        Ok(())
    }

    /// Gives the frames of every port back to the host.
    pub fn give_back(&mut self) {
        self.ports.iter_mut().filter_map(|port| port.steering.as_mut()).for_each(SteeredPort::detach);
    }

    /// Brings the address maps up to a snapshot.
    ///
    /// # Errors
    /// The first that fails.
    pub fn publish(&mut self, snapshot: &Snapshot) -> Result<(), BpfError> {
        self.ports
            .iter_mut()
            .filter_map(|port| port.steering.as_mut())
            .try_for_each(|steering| steering.publish(snapshot))
    }

    /// Looks at a port again.
    pub fn look_again(&mut self, port: usize) -> PortNews {
        let port = &mut self.ports[port];
        let Ok(now) = Interface::by_name(&port.name) else {
            let was = std::mem::replace(&mut port.present, false);
            return if was { PortNews::Changed } else { PortNews::Same };
        };
        port.stale |= now.index() != port.interface.index();
        if port.stale {
            let was = std::mem::replace(&mut port.present, false);
            // A socket joins a fan-out group only on an interface that is up.
            if now.is_up() {
                port.interface = now;
                return PortNews::Successor;
            }
            return if was { PortNews::Changed } else { PortNews::Same };
        }
        let before = (port.info(), port.present);
        port.interface = now;
        port.present = true;
        if before == (port.info(), true) { PortNews::Same } else { PortNews::Changed }
    }

    /// A port has new devices.
    pub fn recovered(&mut self, port: usize) {
        self.ports[port].stale = false;
        self.ports[port].present = true;
    }
}

impl Port {
    fn info(&self) -> PortInfo {
        PortInfo {
            mac: self.interface.mac(),
            mtu: u16::try_from(self.interface.mtu()).unwrap_or(u16::MAX),
            up: self.present && self.interface.is_up() && self.interface.is_running(),
        }
    }
}

fn check_interface(interface: &Interface) -> Result<(), PortError> {
    let name = || interface.name().to_owned();
    if interface.mac() == MacAddress::ZERO || interface.mac().is_group() {
        return Err(PortError::NotEthernet(name()));
    }
    if !interface.is_up() {
        return Err(PortError::Down(name()));
    }
    if interface.mtu() < SMALLEST_MTU {
        return Err(PortError::Mtu { interface: name(), mtu: interface.mtu() });
    }
    Ok(())
}

/// On a port of Postern's own the host should be silent. It is kept from seeing frames; addresses there are a mistake.
fn warn_of_host(interface: &Interface) {
    let name = interface.name();
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let address = addresses
        .filter(|address| address.interface_name == name)
        .find_map(|address| address.address.and_then(|address| address.as_sockaddr_in().map(|address| address.ip())));
    if let Some(address) = address {
        warn!(
            interface = name,
            "the host has address {address} on this port, which is Postern's own: no frame will reach it; set mode = \
             \"shared\" or take the address away"
        );
    }
    let forwarding = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"));
    if forwarding.is_ok_and(|value| value.trim() == "1") {
        warn!(interface = name, "the host forwards IPv4 on this port; Postern hides its frames from the host");
    }
}

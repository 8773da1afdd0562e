//! A gateway on memory devices, for the tests of this crate: a consumer's port and a provider's, one service.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use etherparse::PacketBuilder;
use postern_forwarding::{Forwarder, ForwarderConfig, NeighbourEvent, PortInfo, WorkerCounters, WorkerIndex};
use postern_frame_io::memory::{MemoryReceiver, MemoryTransmitter, link};
use postern_frame_io::region::{Region, RegionOptions};
use postern_frame_io::{Burst, Receive, Transmit, TransmitReport};
use postern_steering::Ownership;
use postern_tables::{Checked, Declaration, compile};
use postern_wire::frame::HEADROOM;
use postern_wire::{AttachmentIndex, Frame, MacAddress, PortIndex};

use crate::link::{PortDevice, Shared, WorkerDevices};

pub(crate) const CONFIGURATION: &str = r#"
[[port]]
interface = "consumer0"
mode = "own"
[[port]]
interface = "provider0"
mode = "own"
[[vpc]]
id = "vpc-consumer"
[[vpc]]
id = "vpc-provider"
[[attachment]]
name = "consumer"
vpc = "vpc-consumer"
port = "consumer0"
prefixes = ["10.0.0.0/24"]
[[attachment]]
name = "provider"
vpc = "vpc-provider"
port = "provider0"
prefixes = ["10.0.0.0/24"]
[[snat_pool]]
name = "pool"
vpc = "vpc-provider"
addresses = ["10.0.0.200"]
[[target_group]]
name = "group"
vpc = "vpc-provider"
snat_pool = "pool"
[[target_group.target]]
address = "10.0.0.80"
port = 8080
[[load_balancer]]
name = "balancer"
[[load_balancer.listener]]
protocol = "udp"
port = 80
target_groups = [{ name = "group" }]
[[service]]
id = "vpce-svc-0123456789abcdef0"
load_balancers = ["balancer"]
[[endpoint]]
id = "vpce-0123456789abcdef0"
vpc = "vpc-consumer"
service = "vpce-svc-0123456789abcdef0"
addresses = ["10.0.0.100"]
"#;

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 100), 80);
pub(crate) const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 80), 8080);
pub(crate) const CLIENT_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
pub(crate) const TARGET_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 80]);
pub(crate) const CONSUMER: usize = 0;
pub(crate) const PROVIDER: usize = 1;
const LARGEST: usize = 2048;

pub(crate) fn checked() -> Checked {
    Declaration::from_toml(CONFIGURATION, "test.toml").unwrap().check().unwrap()
}

pub(crate) fn infos() -> Vec<PortInfo> {
    let info = |port: u8| PortInfo { mac: MacAddress([2, 0xff, 0, 0, 0, port]), mtu: 1500, up: true };
    vec![info(0), info(1)]
}

/// A UDP datagram to a port of the gateway.
pub(crate) fn datagram(port: usize, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let source = if port == CONSUMER { CLIENT_MAC } else { TARGET_MAC };
    let builder = PacketBuilder::ethernet2(source.0, infos()[port].mac.0)
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port());
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// The addresses of an untagged UDP frame.
pub(crate) fn addresses(frame: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4: {frame:?}") };
    let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP: {frame:?}") };
    let header = ip.header();
    (
        SocketAddrV4::new(header.source_addr(), udp.source_port()),
        SocketAddrV4::new(header.destination_addr(), udp.destination_port()),
    )
}

/// The far end of one worker's device.
pub(crate) struct Wire {
    pub(crate) send: MemoryTransmitter,
    pub(crate) receive: MemoryReceiver,
}

impl Wire {
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(frame);
        let mut report = TransmitReport::new();
        self.send.transmit(&mut [Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap()], &[0], &mut report);
        assert_eq!(report.accepted(), 1);
    }

    pub(crate) fn received(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.receive.receive(&mut burst).unwrap();
        burst.frames().iter().map(|frame| frame.bytes().to_vec()).collect()
    }
}

/// A device of `port`, and its far end. `room` frames that were sent wait there.
pub(crate) fn device(port: usize, room: usize) -> (PortDevice, Wire) {
    let (send, receive) = link(PortIndex(port as u16), 1024, LARGEST).unwrap();
    let (transmit, far) = link(PortIndex(port as u16), room, LARGEST).unwrap();
    let device = PortDevice { receive: Box::new(receive), transmit: Box::new(transmit) };
    (device, Wire { send, receive: far })
}

/// What `workers` workers share, their devices, and the devices' far ends by worker and port.
pub(crate) fn bed(workers: usize) -> (Arc<Shared>, Vec<WorkerDevices>, Vec<[Wire; 2]>) {
    let counters = (0..workers).map(|_| Arc::new(WorkerCounters::new(16, 16))).collect();
    let shared = Arc::new(Shared::new(Arc::new(compile(&checked(), None)), infos(), counters).unwrap());
    let (mut all, mut wires) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        let mut devices = WorkerDevices::default();
        wires.push([CONSUMER, PROVIDER].map(|port| {
            let (device, wire) = device(port, 1024);
            devices.push(device);
            wire
        }));
        all.push(devices);
    }
    (shared, all, wires)
}

pub(crate) fn ownership(workers: usize) -> Arc<Ownership> {
    Arc::new(Ownership::even(workers as u16, [1, 2]))
}

pub(crate) fn forwarder(shared: &Shared, worker: usize) -> Forwarder<'static> {
    let config = ForwarderConfig {
        worker: WorkerIndex(worker as u16),
        workers: shared.links.len() as u16,
        flows: 1024,
        ipv6_flows: 1024,
        secret: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89],
        ports: infos(),
    };
    let region =
        Region::anonymous(Forwarder::region_size(config.flows, config.ipv6_flows), RegionOptions::default()).unwrap();
    let counters = shared.links[worker].counters.clone();
    Forwarder::new(&config, region.leak(), shared.tables.load(), ownership(shared.links.len()), counters).unwrap()
}

/// Tells a worker both neighbours.
pub(crate) fn introduce(shared: &Shared, worker: usize) {
    for (attachment, address, mac) in [(0, CLIENT, CLIENT_MAC), (1, *TARGET.ip(), TARGET_MAC)] {
        let event = NeighbourEvent { attachment: AttachmentIndex(attachment), address: address.into(), mac: Some(mac) };
        shared.links[worker].events.push(event).unwrap();
    }
}

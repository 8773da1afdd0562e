//! A gateway in memory: some workers, two consumers with the same addresses, one provider. Frames in, frames out, every
//! output checked, and the books balanced after every frame.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use postern_measurement::Now;
use postern_steering::Ownership;
use postern_tables::{Checked, Declaration, Snapshot, compile};
use postern_wire::frame::NO_VLAN;
use postern_wire::{Frame, MacAddress, Offload, PortIndex};
use zerocopy::IntoBytes;

use crate::*;

pub(super) const CONSUMER_A: PortIndex = PortIndex(0);
pub(super) const CONSUMER_B: PortIndex = PortIndex(1);
pub(super) const PROVIDER: PortIndex = PortIndex(2);

pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(super) const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
pub(super) const SNAT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 200);

/// The configuration of most tests; `{pool}` is the pool's lines, `{targets}` those of the targets.
pub(super) const CONFIGURATION: &str = r#"
[[port]]
interface = "a"
[[port]]
interface = "b"
[[port]]
interface = "p"
[[vpc]]
id = "vpc-a"
[[vpc]]
id = "vpc-b"
[[vpc]]
id = "vpc-p"
[[attachment]]
name = "a"
vpc = "vpc-a"
port = "a"
prefixes = ["10.0.0.0/24"]
[[attachment]]
name = "b"
vpc = "vpc-b"
port = "b"
prefixes = ["10.0.0.0/24"]
[[attachment]]
name = "p"
vpc = "vpc-p"
port = "p"
prefixes = ["10.9.0.0/24"]
[[route]]
attachment = "a"
destination = "10.64.0.0/10"
via = "10.0.0.1"
[[snat_pool]]
name = "pool"
vpc = "vpc-p"
{pool}
[[target_group]]
name = "web"
vpc = "vpc-p"
snat_pool = "pool"
{targets}
[[load_balancer]]
name = "lb"
[[load_balancer.listener]]
protocol = "tcp"
port = 80
target_groups = [{ name = "web" }]
[[load_balancer.listener]]
protocol = "udp"
port = 53
target_groups = [{ name = "web" }]
[[service]]
id = "vpce-svc-web"
load_balancers = ["lb"]
[[endpoint]]
id = "vpce-a"
vpc = "vpc-a"
service = "vpce-svc-web"
addresses = ["10.0.0.100"]
[[endpoint]]
id = "vpce-b"
vpc = "vpc-b"
service = "vpce-svc-web"
addresses = ["10.0.0.100"]
"#;

pub(super) const ONE_TARGET: &str = "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n";
pub(super) const POOL: &str = "addresses = [\"10.9.0.200\"]";

/// Room for flows with an IPv6 side.
pub(super) const IPV6_FLOWS: u32 = 64;

/// The target of [`Bed::new`].
pub(super) const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 11), 8080);

/// A frame that came out.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) port: PortIndex,
    pub(super) bytes: Vec<u8>,
    pub(super) offload: Offload,
}

impl Sent {
    pub(super) fn source(&self) -> SocketAddrV4 {
        ends(&self.bytes).0
    }

    pub(super) fn destination(&self) -> SocketAddrV4 {
        ends(&self.bytes).1
    }

    pub(super) fn tcp(&self) -> etherparse::TcpHeader {
        match SlicedPacket::from_ethernet(&self.bytes).unwrap().transport {
            Some(TransportSlice::Tcp(tcp)) => tcp.to_header(),
            other => panic!("not TCP: {other:?}"),
        }
    }
}

/// Source and destination of a TCP or UDP frame.
pub(super) fn ends(bytes: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
    let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    (SocketAddrV4::new(address(26), port(34)), SocketAddrV4::new(address(30), port(36)))
}

pub(super) fn station(address: impl Into<IpAddr>) -> MacAddress {
    let [a, b, c, d] = match address.into() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => (address.to_bits() as u32).to_be_bytes(),
    };
    MacAddress([2, 1, a, b, c, d])
}

pub(super) fn port_mac(port: PortIndex) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, port.0 as u8 + 1])
}

/// What was in the outbox.
#[derive(Default)]
struct Taken {
    frames: Vec<(PortIndex, Vec<u8>, Offload)>,
    handed: Vec<(WorkerIndex, HandoffNote, PortIndex, Vec<u8>)>,
    requests: Vec<NeighbourRequest>,
}

pub(super) struct Bed {
    pub(super) workers: Vec<Forwarder<'static>>,
    pub(super) outbox: Outbox,
    pub(super) now: Now,
    pub(super) checked: Checked,
    pub(super) snapshot: Arc<Snapshot>,
    /// Whether neighbour requests are answered at once.
    pub(super) neighbours_answer: bool,
    pub(super) requests: Vec<NeighbourRequest>,
    pub(super) sent: Vec<Sent>,
    pub(super) verdict: Verdict,
    /// Whether frames that come out are looked at; not for damaged ones, whose damage goes through.
    pub(super) checks: bool,
    /// The tag that travels beside received frames.
    pub(super) vlan: u16,
    /// Room in front of received frames.
    pub(super) headroom: usize,
    next_worker: usize,
}

impl Bed {
    /// A frame whose transport may be damaged: what comes out is not looked at.
    pub(super) fn unchecked(&mut self, port: PortIndex, bytes: &[u8], offload: Offload) {
        self.checks = false;
        self.receive_offloaded(port, bytes, offload);
    }

    /// One worker, one target, one SNAT address.
    pub(super) fn new() -> Self {
        Self::with(1, POOL, ONE_TARGET)
    }

    pub(super) fn with(workers: u16, pool: &str, targets: &str) -> Self {
        Self::from_toml(workers, &CONFIGURATION.replace("{pool}", pool).replace("{targets}", targets), 80_000)
    }

    pub(super) fn pool(pool: &str) -> Self {
        Self::with(1, pool, ONE_TARGET)
    }

    pub(super) fn from_toml(workers: u16, toml: &str, flows: u32) -> Self {
        let checked = Declaration::from_toml(toml, "test.toml").unwrap().check().unwrap();
        let snapshot = Arc::new(compile(&checked, None));
        let ownership = Arc::new(Ownership::even(workers, [3, 4]));
        let port_info = |at| PortInfo { mac: port_mac(PortIndex(at)), mtu: 1500, up: true };
        let make = |worker| {
            let memory = vec![0u64; Forwarder::region_size(flows, IPV6_FLOWS) / 8 + 1].leak().as_mut_bytes();
            let config = ForwarderConfig {
                worker: WorkerIndex(worker),
                workers,
                flows,
                ipv6_flows: IPV6_FLOWS,
                secret: [0x1111_2222_3333_4444 + u64::from(worker), 0x9e37_79b9, 77, 0x0123_4567_89ab_cdef],
                ports: (0..3).map(port_info).collect(),
            };
            let counters = Arc::new(WorkerCounters::new(16, 16));
            Forwarder::new(&config, memory, Arc::clone(&snapshot), Arc::clone(&ownership), counters).unwrap()
        };
        let mut workers: Vec<_> = (0..workers).map(make).collect();
        let counters = workers.iter().map(|worker| Arc::clone(worker.counters())).collect();
        let limits = Arc::new(SharedState::new(counters));
        workers.iter_mut().for_each(|worker| worker.share(Arc::clone(&limits)));
        Self {
            workers,
            outbox: Outbox::new(128),
            now: Now::from_milliseconds(10_000),
            checked,
            snapshot,
            neighbours_answer: true,
            requests: Vec::new(),
            sent: Vec::new(),
            verdict: Verdict::Punt,
            checks: true,
            vlan: NO_VLAN,
            headroom: 128,
            next_worker: 0,
        }
    }

    /// Applies a changed configuration at every worker.
    pub(super) fn reload(&mut self, toml: &str) {
        let checked =
            Declaration::from_toml(toml, "test.toml").unwrap().check().unwrap().reload(&self.checked).unwrap();
        self.checked = checked;
        self.apply(Arc::new(compile(&self.checked, Some(&self.snapshot))));
    }

    /// Gives every worker new tables.
    pub(super) fn apply(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        for worker in &mut self.workers {
            worker.apply(Arc::clone(&self.snapshot));
        }
    }

    /// A frame comes in; what comes out because of it is returned (and checked).
    pub(super) fn receive(&mut self, port: PortIndex, bytes: &[u8]) -> Vec<Sent> {
        self.receive_offloaded(port, bytes, Offload::NONE)
    }

    pub(super) fn receive_offloaded(&mut self, port: PortIndex, bytes: &[u8], offload: Offload) -> Vec<Sent> {
        // Any worker may get the frame first: ownership must lead it to the right one.
        self.next_worker = (self.next_worker + 1) % self.workers.len();
        self.deliver(self.next_worker, port, bytes, offload, None);
        self.assert_balanced();
        std::mem::take(&mut self.sent)
    }

    fn deliver(&mut self, worker: usize, port: PortIndex, bytes: &[u8], offload: Offload, note: Option<HandoffNote>) {
        let mut buffer = vec![0; self.headroom + bytes.len()];
        buffer[self.headroom..].copy_from_slice(bytes);
        let mut frame = Frame::new(&mut buffer, self.headroom, bytes.len()).unwrap();
        frame.ingress = port;
        frame.offload = offload;
        frame.vlan = self.vlan;
        let forwarder = &mut self.workers[worker];
        let verdict = match note {
            Some(note) => forwarder.process_handed(&mut frame, note, &mut self.outbox, self.now),
            None => {
                let mut verdict = [Verdict::Punt];
                forwarder.process(std::slice::from_mut(&mut frame), &mut verdict, &mut self.outbox, self.now);
                verdict[0]
            }
        };
        self.verdict = verdict;
        if matches!(verdict, Verdict::Forward(_) | Verdict::Reply(_)) {
            assert_eq!(frame.vlan, NO_VLAN, "the device would tag the frame once more");
        }
        let counters = Arc::clone(forwarder.counters());
        let (out, out_offload) = (frame.bytes().to_vec(), frame.offload);
        match verdict {
            Verdict::Forward(egress) => {
                counters.forwarded.add(1);
                self.send(egress, out, out_offload);
            }
            Verdict::Reply(egress) => {
                counters.answered.add(1);
                self.send(egress, out, out_offload);
            }
            Verdict::Punt | Verdict::Probe => counters.punted.add(1),
            Verdict::Handoff(to, note) => {
                counters.handed_out.add(1);
                let rest = self.take_outbox(worker);
                self.deliver(usize::from(to.0), port, bytes, offload, Some(note));
                self.carry_out(rest);
            }
            Verdict::Hold | Verdict::Drop(_) => {}
        }
        self.empty_outbox(worker);
    }

    fn empty_outbox(&mut self, worker: usize) {
        let taken = self.take_outbox(worker);
        self.carry_out(taken);
    }

    /// Counts what a worker put into the outbox and takes it out. What workers say to each other goes ahead of all frames.
    fn take_outbox(&mut self, worker: usize) -> Taken {
        let messages: Vec<_> = self.outbox.take_messages().collect();
        for (to, message) in messages {
            self.workers[usize::from(to.0)].peer_message(message, self.now);
        }
        let counters = Arc::clone(self.workers[worker].counters());
        let mut taken = Taken { requests: self.outbox.requests().to_vec(), ..Taken::default() };
        for (egress, origin, frame) in self.outbox.frames() {
            match origin {
                Origin::Held => counters.forwarded.add(1),
                Origin::Made => counters.made.add(1),
            }
            taken.frames.push((egress, frame.bytes().to_vec(), frame.offload));
        }
        for (to, note, frame) in self.outbox.handed() {
            counters.handed_out.add(1);
            taken.handed.push((to, note, frame.ingress, frame.bytes().to_vec()));
        }
        self.outbox.clear();
        taken
    }

    fn carry_out(&mut self, taken: Taken) {
        for (egress, bytes, offload) in taken.frames {
            self.send(egress, bytes, offload);
        }
        for (to, note, port, bytes) in taken.handed {
            self.deliver(usize::from(to.0), port, &bytes, Offload::NONE, Some(note));
        }
        self.requests.extend(&taken.requests);
        if self.neighbours_answer {
            for request in taken.requests {
                self.answer(request, Some(station(request.address)));
            }
        }
    }

    /// Tells every worker of a neighbour.
    pub(super) fn answer(&mut self, request: NeighbourRequest, mac: Option<MacAddress>) {
        let NeighbourRequest { attachment, address } = request;
        for worker in 0..self.workers.len() {
            let event = NeighbourEvent { attachment, address, mac };
            self.workers[worker].neighbour(event, &mut self.outbox, self.now);
            self.empty_outbox(worker);
        }
    }

    /// Time passes, in steps of 100 ms, with housekeeping.
    pub(super) fn wait_seconds(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.now = self.now.plus_milliseconds(100);
            self.housekeeping();
        }
    }

    pub(super) fn housekeeping(&mut self) {
        for worker in 0..self.workers.len() {
            while self.workers[worker].housekeeping(&mut self.outbox, self.now) {
                self.empty_outbox(worker);
            }
            self.empty_outbox(worker);
        }
    }

    fn send(&mut self, port: PortIndex, bytes: Vec<u8>, offload: Offload) {
        if !self.checks {
            return;
        }
        assert_valid(&bytes, offload);
        assert_eq!(bytes[6..12], port_mac(port).0, "the source MAC is the port's");
        self.sent.push(Sent { port, bytes, offload });
    }

    pub(super) fn assert_balanced(&self) {
        for worker in &self.workers {
            assert_eq!(worker.counters().imbalance(), 0, "{:?}", worker.counters());
        }
    }

    pub(super) fn drops(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|worker| worker.counters().drops[reason as usize].get()).sum()
    }

    pub(super) fn total(&self, counter: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.workers.iter().map(|worker| counter(worker.counters())).sum()
    }

    /// The single frame that a received frame became.
    pub(super) fn one(&mut self, port: PortIndex, bytes: &[u8]) -> Sent {
        let mut sent = self.receive(port, bytes);
        assert_eq!(sent.len(), 1, "{:?}", self.verdict);
        sent.remove(0)
    }

    pub(super) fn none(&mut self, port: PortIndex, bytes: &[u8], reason: DropReason) {
        let sent = self.receive(port, bytes);
        assert_eq!(self.verdict, Verdict::Drop(reason));
        assert!(sent.is_empty(), "{sent:?}");
    }

    /// A whole handshake; returns the SNAT socket that the target sees, and the target.
    pub(super) fn connect(&mut self, port: PortIndex, client: SocketAddrV4) -> (SocketAddrV4, SocketAddrV4) {
        let endpoint = SocketAddrV4::new(ENDPOINT, 80);
        let syn = self.one(port, &tcp(port, client, endpoint, Flags::SYN, 1000, 0, b""));
        let (snat, target) = (syn.source(), syn.destination());
        let syn_ack = self.one(PROVIDER, &tcp(PROVIDER, target, snat, Flags::SYN_ACK, 5000, 1001, b""));
        assert_eq!((syn_ack.source(), syn_ack.destination(), syn_ack.port), (endpoint, client, port));
        self.one(port, &tcp(port, client, endpoint, Flags::ACK, 1001, 5001, b""));
        (snat, target)
    }
}

/// TCP flags of a test segment.
#[derive(Clone, Copy)]
pub(super) struct Flags(pub(super) u8);

impl Flags {
    pub(super) const SYN: Self = Self(0x02);
    pub(super) const SYN_ACK: Self = Self(0x12);
    pub(super) const ACK: Self = Self(0x10);
    pub(super) const FIN: Self = Self(0x11);
    pub(super) const RST: Self = Self(0x04);
    pub(super) const RST_ACK: Self = Self(0x14);
}

/// A TCP frame as it arrives on a port; SYNs offer an MSS of 1460.
pub(super) fn tcp(
    port: PortIndex,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    flags: Flags,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(source.port(), destination.port(), sequence, 64_000);
    header.acknowledgment_number = acknowledgement;
    header.syn = flags.0 & 2 != 0;
    header.ack = flags.0 & 16 != 0;
    header.fin = flags.0 & 1 != 0;
    header.rst = flags.0 & 4 != 0;
    header.psh = flags.0 & 8 != 0;
    header.urg = flags.0 & 32 != 0;
    if header.syn {
        header.set_options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1460)]).unwrap();
    }
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(station(*source.ip()).0, port_mac(port).0)
        .ipv4(source.ip().octets(), destination.ip().octets(), 64)
        .tcp_header(header)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

pub(super) fn udp(port: PortIndex, source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(station(*source.ip()).0, port_mac(port).0)
        .ipv4(source.ip().octets(), destination.ip().octets(), 64)
        .udp(source.port(), destination.port())
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// Every frame that comes out has valid checksums.
pub(super) fn assert_valid(bytes: &[u8], offload: Offload) {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
    if let Some(etherparse::NetSlice::Ipv6(ip)) = &packet.net {
        return assert_valid6(bytes, ip, packet.transport.as_ref(), offload);
    }
    let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("not IP") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
    let link = if bytes[12..14] == [0x81, 0] { 18 } else { 14 };
    assert_eq!(usize::from(header.total_len) + link, bytes.len(), "no padding, no trailer");
    if offload.is_partial() {
        return;
    }
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let wanted = tcp.calc_checksum_ipv4(header.source, header.destination).unwrap();
            assert_eq!(tcp.checksum(), wanted, "TCP checksum");
        }
        Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
            let wanted =
                udp.to_header().calc_checksum_ipv4_raw(header.source, header.destination, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), wanted, "UDP checksum");
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            // Of some types etherparse's own sum leaves out what it does not know (RFC 4884's length).
            let sum = postern_wire::checksum::fold(postern_wire::checksum::sum(icmp.slice()));
            assert_eq!(sum, 0xffff, "ICMP checksum");
        }
        _ => {}
    }
}

/// The same of IPv6.
fn assert_valid6(
    bytes: &[u8],
    ip: &etherparse::Ipv6Slice<'_>,
    transport: Option<&TransportSlice<'_>>,
    offload: Offload,
) {
    let header = ip.header().to_header();
    let link = if bytes[12..14] == [0x81, 0] { 18 } else { 14 };
    assert_eq!(usize::from(header.payload_length) + 40 + link, bytes.len(), "no padding, no trailer");
    if offload.is_partial() {
        return;
    }
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let wanted = tcp.calc_checksum_ipv6(header.source, header.destination).unwrap();
            assert_eq!(tcp.checksum(), wanted, "TCP checksum");
        }
        Some(TransportSlice::Udp(udp)) => {
            let wanted =
                udp.to_header().calc_checksum_ipv6_raw(header.source, header.destination, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), wanted, "UDP checksum");
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            assert!(icmp.is_checksum_valid(header.source, header.destination), "ICMPv6 checksum");
        }
        _ => {}
    }
}

pub(super) fn socket(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

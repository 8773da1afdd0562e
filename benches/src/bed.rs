//! A forwarder in memory: one consumer, one endpoint with TCP and UDP, some targets; neighbours that always answer; and
//! flows that are opened by real handshakes, so that benches measure the very function that a worker calls, with
//! nothing prepared behind its back.

use std::array;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use postern_forwarding::{
    BURST, Forwarder, ForwarderConfig, ForwarderError, NeighbourEvent, Outbox, PortInfo, Verdict, WorkerCounters,
    WorkerIndex,
};
use postern_frame_io::region::{Region, RegionError, RegionOptions};
use postern_measurement::Now;
use postern_steering::Ownership;
use postern_tables::{Declaration, Errors, Snapshot, compile, declaration};
use postern_wire::frame::HEADROOM;
use postern_wire::{Frame, MacAddress, PortIndex};

use crate::packet::{Carried, frame};

/// Bytes of every frame of an established flow, without frame check sequence: TCP with timestamps and 30 bytes of
/// payload, UDP with 54.
pub const FRAME: usize = 96;
/// Flows of the hot cases.
pub const HOT_FLOWS: u32 = 1024;
/// Frames of a burst.
pub const FRAMES: usize = 32;
/// So many connections meet every target of the fixture, and so make every neighbour known.
pub const ALL_TARGETS: u32 = 256;
/// How many bursts pass in a millisecond of the fixture's time: about two million packets a second.
const BURSTS_PER_MILLISECOND: u64 = 64;
/// Bytes of a receive buffer: the longest frame of an MTU of 1,500, and what NAT64 adds.
const SLOT: usize = HEADROOM + 1600;

/// The endpoint's port.
const SERVICE_PORT: u16 = 443;
const CONSUMER_PORT: PortIndex = PortIndex(0);
const PROVIDER_PORT: PortIndex = PortIndex(1);
const CONSUMER_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const PROVIDER_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
/// Every neighbour's.
const NEIGHBOUR_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 1]);

/// What can go wrong with the fixture.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// The flow memory cannot be had.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The declaration is wrong.
    #[error(transparent)]
    Declaration(#[from] Errors),
    /// The forwarder refuses its memory.
    #[error(transparent)]
    Forwarder(#[from] ForwarderError),
    /// A packet that must be forwarded was not.
    #[error("packet {packet} of connection {connection} was not forwarded: {verdict}")]
    NotForwarded {
        /// What was sent.
        packet: &'static str,
        /// Number of the connection.
        connection: u32,
        /// What happened to it.
        verdict: String,
    },
}

/// Which protocol a case uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP with timestamps.
    Tcp,
    /// UDP.
    Udp,
}

/// Between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// IPv4 clients and targets.
    V4,
    /// IPv6 clients and targets.
    V6,
    /// IPv6 clients and IPv4 targets.
    Nat64,
}

impl Ends {
    /// Networks of consumer and clients, the router to these, and the endpoint.
    const fn consumer(self) -> [&'static str; 4] {
        match self {
            Self::V4 => ["172.20.0.0/24", "10.0.0.0/8", "172.20.0.1", "172.20.0.100"],
            Self::V6 | Self::Nat64 => ["2001:db8:1::/64", "2001:db8:a::/48", "2001:db8:1::1", "2001:db8:1::100"],
        }
    }

    /// The provider's network, and the beginnings of SNAT addresses and targets.
    const fn provider(self) -> [&'static str; 3] {
        match self {
            Self::V4 | Self::Nat64 => ["192.168.0.0/16", "192.168.1.", "192.168.2."],
            Self::V6 => ["2001:db8:2::/64", "2001:db8:2::1:", "2001:db8:2::2:"],
        }
    }

    fn endpoint(self) -> SocketAddr {
        let address: IpAddr = match self {
            Self::V4 => Ipv4Addr::new(172, 20, 0, 100).into(),
            Self::V6 | Self::Nat64 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100).into(),
        };
        SocketAddr::new(address, SERVICE_PORT)
    }

    /// The client of a connection: an address and port of its own for each of 16 million.
    fn client(self, number: u32) -> SocketAddr {
        let host = number >> 4;
        let address: IpAddr = match self {
            Self::V4 => Ipv4Addr::from_bits(0x0a00_0001 + host).into(),
            Self::V6 | Self::Nat64 => {
                Ipv6Addr::new(0x2001, 0xdb8, 0xa, (host >> 16) as u16, 0, 0, host as u16, 1).into()
            }
        };
        SocketAddr::new(address, 2048 + (number & 15) as u16 * 4000)
    }

    const fn room(self, flows: u32) -> (u32, u32) {
        match self {
            Self::V4 => (flows, 0),
            Self::V6 | Self::Nat64 => (1024, flows),
        }
    }
}

/// One frame to be received: what to copy into a receive buffer, and where it comes in. Of a frame that is longer than
/// [`FRAME`] the beginning is kept, which has all headers; the rest is what the buffer has there, as a forwarder reads none of it.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    bytes: [u8; FRAME],
    length: u16,
    ingress: PortIndex,
}

impl Template {
    fn new(bytes: &[u8], ingress: PortIndex) -> Self {
        let mut template = Self { bytes: [0; FRAME], length: bytes.len() as u16, ingress };
        let kept = bytes.len().min(FRAME);
        template.bytes[..kept].copy_from_slice(&bytes[..kept]);
        template
    }

    /// The frame's bytes, [`FRAME`] at most.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length).min(FRAME)]
    }
}

/// The frames of an established flow.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// From the client.
    pub forward: Template,
    /// From the target.
    pub reverse: Template,
}

/// Flow memory for so many IPv4 flows, as a worker has it.
///
/// # Errors
/// When the memory cannot be had.
pub fn region(flows: u32) -> Result<Region, BedError> {
    region_of(Ends::V4, flows)
}

/// Flow memory for so many flows.
///
/// # Errors
/// When the memory cannot be had.
pub fn region_of(ends: Ends, flows: u32) -> Result<Region, BedError> {
    let (narrow, wide) = ends.room(flows);
    Ok(Region::anonymous(Forwarder::region_size(narrow, wide), RegionOptions { populate: false, huge_pages: true })?)
}

/// The tables of the fixture. With the same `targets`, two snapshots differ in nothing but their generation.
///
/// # Errors
/// When the declaration is refused.
pub fn snapshot(targets: u8, previous: Option<&Snapshot>) -> Result<Snapshot, BedError> {
    Ok(compile(&declare(targets, Ends::V4).check()?, previous))
}

/// Clients are behind a router, so that a million of them need one neighbour.
fn declare(targets: u8, ends: Ends) -> Declaration {
    let name = |text: &str| text.to_owned();
    let [consumer_network, clients, router, endpoint] = ends.consumer();
    let [provider_network, snat, target] = ends.provider();
    let (consumer, provider) = (name("vpc-consumer"), name("vpc-provider"));
    let port = |interface: &str| declaration::Port {
        interface: name(interface),
        mode: declaration::Mode::Own,
        ..declaration::Port::default()
    };
    let attachment = |vpc: &String, port: &str, prefix: &str| declaration::Attachment {
        name: name(port),
        vpc: vpc.clone(),
        port: name(port),
        prefixes: vec![name(prefix)],
        ..declaration::Attachment::default()
    };
    let listener = |protocol| declaration::Listener {
        protocol,
        port: i64::from(SERVICE_PORT),
        target_groups: vec![declaration::WeightedGroup { name: name("group"), weight: None }],
        ..declaration::Listener::default()
    };
    Declaration {
        file: name("bed"),
        ports: vec![port("consumer0"), port("provider0")],
        vpcs: vec![declaration::Vpc { id: consumer.clone() }, declaration::Vpc { id: provider.clone() }],
        attachments: vec![
            attachment(&consumer, "consumer0", consumer_network),
            attachment(&provider, "provider0", provider_network),
        ],
        routes: vec![declaration::Route {
            attachment: name("consumer0"),
            destination: name(clients),
            via: Some(name(router)),
        }],
        snat_pools: vec![declaration::SnatPool {
            name: name("pool"),
            vpc: provider.clone(),
            addresses: (1..=4).map(|at| format!("{snat}{at}")).collect(),
            ..declaration::SnatPool::default()
        }],
        target_groups: vec![declaration::TargetGroup {
            name: name("group"),
            vpc: provider,
            snat_pool: name("pool"),
            targets: (1..=targets)
                .map(|at| declaration::Target {
                    address: format!("{target}{at}"),
                    port: 8443,
                    ..declaration::Target::default()
                })
                .collect(),
            ..declaration::TargetGroup::default()
        }],
        load_balancers: vec![declaration::LoadBalancer {
            name: name("balancer"),
            listeners: vec![listener(declaration::Protocol::Tcp), listener(declaration::Protocol::Udp)],
            ..declaration::LoadBalancer::default()
        }],
        services: vec![declaration::Service {
            id: name("vpce-svc-00000000000000001"),
            load_balancers: vec![name("balancer")],
        }],
        endpoints: vec![declaration::Endpoint {
            id: name("vpce-00000000000000001"),
            vpc: consumer,
            service: name("vpce-svc-00000000000000001"),
            addresses: vec![name(endpoint)],
            ..declaration::Endpoint::default()
        }],
        ..Declaration::default()
    }
}

/// The forwarder with its surroundings.
#[derive(Debug)]
pub struct Bed<'m> {
    forwarder: Forwarder<'m>,
    outbox: Outbox,
    /// Receive buffers.
    slots: Box<[[u8; SLOT]; BURST]>,
    now: Now,
    bursts: u64,
    ends: Ends,
}

impl<'m> Bed<'m> {
    /// A forwarder with room for `flows` flows in `memory` (see [`region`]), one endpoint and 16 targets.
    ///
    /// # Errors
    /// When the fixture itself is wrong.
    pub fn new(memory: &'m mut [u8], flows: u32) -> Result<Self, BedError> {
        Self::between(Ends::V4, memory, flows)
    }

    /// The same between other ends, in memory of [`region_of`].
    ///
    /// # Errors
    /// When the fixture itself is wrong.
    pub fn between(ends: Ends, memory: &'m mut [u8], flows: u32) -> Result<Self, BedError> {
        let snapshot = compile(&declare(16, ends).check()?, None);
        let (flows, ipv6_flows) = ends.room(flows);
        let counters = Arc::new(WorkerCounters::new(snapshot.endpoints.len(), snapshot.targets.len()));
        let port = |mac| PortInfo { mac, mtu: 1500, up: true };
        let config = ForwarderConfig {
            worker: WorkerIndex(0),
            workers: 1,
            flows,
            ipv6_flows,
            // Fixed, so that two runs execute the same instructions.
            secret: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89],
            ports: vec![port(CONSUMER_MAC), port(PROVIDER_MAC)],
        };
        let ownership = Arc::new(Ownership::even(1, [1, 2]));
        Ok(Self {
            forwarder: Forwarder::new(&config, memory, Arc::new(snapshot), ownership, counters)?,
            outbox: Outbox::new(BURST),
            slots: Box::new([[0; SLOT]; BURST]),
            now: Now::from_milliseconds(1000),
            bursts: 0,
            ends,
        })
    }

    /// The forwarder.
    pub const fn forwarder(&mut self) -> &mut Forwarder<'m> {
        &mut self.forwarder
    }

    /// Lets time pass and does all housekeeping that becomes due, second by second.
    pub fn advance(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.plus_milliseconds(1000);
            self.housekeeping();
        }
    }

    /// Lets time pass in which the worker does nothing, not even housekeeping.
    pub fn sleep(&mut self, seconds: u64) {
        self.now = self.now.plus_milliseconds(seconds * 1000);
    }

    /// Does all housekeeping that is due; returns the number of slices that it took.
    pub fn housekeeping(&mut self) -> u64 {
        let mut slices = 1;
        while self.forwarder.housekeeping(&mut self.outbox, self.now) {
            slices += 1;
            self.outbox.clear();
        }
        self.outbox.clear();
        slices
    }

    /// Opens connections `numbers` by handshakes (TCP) or a datagram each way (UDP).
    ///
    /// # Errors
    /// When a packet of a handshake is not forwarded.
    pub fn establish(
        &mut self,
        protocol: Protocol,
        numbers: std::ops::Range<u32>,
    ) -> Result<Vec<Connection>, BedError> {
        self.establish_sized(protocol, numbers, |_| FRAME)
    }

    /// The same with frames of other lengths, by the connection's number, in bytes without frame check sequence.
    ///
    /// # Errors
    /// When a packet of a handshake is not forwarded.
    pub fn establish_sized(
        &mut self,
        protocol: Protocol,
        numbers: std::ops::Range<u32>,
        length: impl Fn(u32) -> usize,
    ) -> Result<Vec<Connection>, BedError> {
        numbers.map(|number| self.open(protocol, number, length(number))).collect()
    }

    fn open(&mut self, protocol: Protocol, number: u32, length: usize) -> Result<Connection, BedError> {
        let tcp = |flags, sequence| Carried::Tcp { flags, sequence };
        let (first, answer, data) = match protocol {
            Protocol::Tcp => {
                (tcp(Carried::SYN, 100), tcp(Carried::SYN | Carried::ACK, 200), tcp(Carried::ACK | Carried::PSH, 101))
            }
            Protocol::Udp => (Carried::Udp, Carried::Udp, Carried::Udp),
        };
        let (client, endpoint) = (self.ends.client(number), self.ends.endpoint());
        let from_client = |carried| {
            let macs = (CONSUMER_MAC, NEIGHBOUR_MAC);
            Template::new(&frame(macs, client, endpoint, carried, length), CONSUMER_PORT)
        };
        let translated = self.send("first", number, &from_client(first))?;
        let (snat, target) = sockets(&translated);
        let from_target = |carried| {
            let macs = (PROVIDER_MAC, NEIGHBOUR_MAC);
            Template::new(&frame(macs, target, snat, carried, length), PROVIDER_PORT)
        };
        self.send("answer", number, &from_target(answer))?;
        let connection = Connection { forward: from_client(data), reverse: from_target(data) };
        self.send("data", number, &connection.forward)?;
        self.send("data from the target", number, &connection.reverse)?;
        Ok(connection)
    }

    /// First packets of connections `numbers` of IPv4, not sent yet.
    #[must_use]
    pub fn first_packets(protocol: Protocol, numbers: std::ops::Range<u32>) -> Vec<Template> {
        Self::first_packets_between(Ends::V4, protocol, numbers)
    }

    /// First packets of connections `numbers`, not sent yet.
    #[must_use]
    pub fn first_packets_between(ends: Ends, protocol: Protocol, numbers: std::ops::Range<u32>) -> Vec<Template> {
        let carried = match protocol {
            Protocol::Tcp => Carried::Tcp { flags: Carried::SYN, sequence: 100 },
            Protocol::Udp => Carried::Udp,
        };
        let macs = (CONSUMER_MAC, NEIGHBOUR_MAC);
        let template =
            |number| Template::new(&frame(macs, ends.client(number), ends.endpoint(), carried, FRAME), CONSUMER_PORT);
        numbers.map(template).collect()
    }

    /// Sends one frame, answers for the neighbours if they are asked, and returns it as it leaves.
    fn send(&mut self, packet: &'static str, connection: u32, template: &Template) -> Result<Vec<u8>, BedError> {
        let length = usize::from(template.length);
        self.slots[0][HEADROOM..HEADROOM + template.bytes().len()].copy_from_slice(template.bytes());
        let mut frame = Frame::new(&mut self.slots[0], HEADROOM, length).expect("a template fits its receive buffer");
        frame.ingress = template.ingress;
        let mut verdict = [Verdict::Hold];
        let counters = self.forwarder.counters().clone();
        self.forwarder.process(array::from_mut(&mut frame), &mut verdict, &mut self.outbox, self.now);
        let mut sent = match verdict[0] {
            Verdict::Forward(_) => Some(frame.bytes().to_vec()),
            _ => None,
        };
        loop {
            let requests = self.outbox.requests().to_vec();
            let held = self.outbox.frames().next().map(|(_, _, frame)| frame.bytes().to_vec());
            self.outbox.clear();
            sent = sent.or(held);
            if requests.is_empty() {
                break;
            }
            for request in requests {
                let event = NeighbourEvent {
                    attachment: request.attachment,
                    address: request.address,
                    mac: Some(NEIGHBOUR_MAC),
                };
                self.forwarder.neighbour(event, &mut self.outbox, self.now);
            }
        }
        counters.forwarded.add(u64::from(sent.is_some()));
        sent.ok_or_else(|| BedError::NotForwarded { packet, connection, verdict: format!("{:?}", verdict[0]) })
    }

    /// Receives `N` frames as one burst, counts as a worker does, and returns how many were forwarded.
    #[inline]
    pub fn burst<const N: usize>(&mut self, templates: &[Template; N]) -> usize {
        self.receive::<N, true>(templates)
    }

    /// The same with nothing in the place of [`Forwarder::process`]: what the fixture itself costs.
    #[inline]
    pub fn empty_burst<const N: usize>(&mut self, templates: &[Template; N]) -> usize {
        self.receive::<N, false>(templates)
    }

    #[inline]
    fn receive<const N: usize, const PROCESS: bool>(&mut self, templates: &[Template; N]) -> usize {
        let mut slots = self.slots.iter_mut();
        let mut frames: [Frame<'_>; N] = array::from_fn(|at| {
            let (slot, template) = (slots.next().expect("a burst has at most BURST frames"), &templates[at]);
            slot[HEADROOM..HEADROOM + FRAME].copy_from_slice(&template.bytes);
            let mut frame =
                Frame::new(slot, HEADROOM, usize::from(template.length)).expect("a template fits its receive buffer");
            frame.ingress = template.ingress;
            frame
        });
        let mut verdicts = [Verdict::Hold; N];
        self.bursts += 1;
        if self.bursts.is_multiple_of(BURSTS_PER_MILLISECOND) {
            self.now = self.now.plus_milliseconds(1);
        }
        if PROCESS {
            self.forwarder.process(&mut frames, &mut verdicts, &mut self.outbox, self.now);
        } else {
            verdicts = [Verdict::Forward(PROVIDER_PORT); N];
        }
        black_box(&mut frames);
        let forwarded = black_box(&verdicts).iter().filter(|verdict| matches!(verdict, Verdict::Forward(_))).count();
        let counters = self.forwarder.counters();
        counters.forwarded.add(forwarded as u64);
        if !self.outbox.is_empty() {
            self.outbox.clear();
        }
        forwarded
    }
}

/// Source and destination of a translated frame.
fn sockets(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    if bytes[12..14] == [0x86, 0xdd] {
        let address = |at: usize| IpAddr::from(array::from_fn::<u8, 16, _>(|byte| bytes[at + byte]));
        return (SocketAddr::new(address(22), port(54)), SocketAddr::new(address(38), port(56)));
    }
    let address = |at: usize| IpAddr::from(array::from_fn::<u8, 4, _>(|byte| bytes[at + byte]));
    (SocketAddr::new(address(26), port(34)), SocketAddr::new(address(30), port(36)))
}

/// The frames of `connections` in a random order, directions alternating, in whole bursts of `N` distinct flows. They lie
/// in memory in the order of their use, so that reading them costs no cache misses of the fixture's own.
#[must_use]
pub fn shuffled<const N: usize>(connections: &[Connection]) -> Vec<[Template; N]> {
    let mut order: Vec<u32> = (0..connections.len() as u32).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..order.len()).rev() {
        // Xorshift64 (Marsaglia 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(last, (random % (last as u64 + 1)) as usize);
    }
    order
        .chunks_exact(N)
        .enumerate()
        .map(|(burst, order)| {
            array::from_fn(|at| {
                let connection = &connections[order[at] as usize];
                if (burst + at).is_multiple_of(2) { connection.forward } else { connection.reverse }
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_of_every_established_flow_is_forwarded_and_counted() {
        for (protocol, ends) in
            [(Protocol::Tcp, Ends::V4), (Protocol::Udp, Ends::V4), (Protocol::Tcp, Ends::V6), (Protocol::Udp, Ends::V6)]
        {
            let mut region = region_of(ends, 4096).unwrap();
            let mut bed = Bed::between(ends, region.bytes_mut(), 4096).unwrap();
            let connections = bed.establish(protocol, 0..HOT_FLOWS).unwrap();
            let bursts = shuffled::<FRAMES>(&connections);
            for burst in &bursts {
                assert_eq!(bed.burst(burst), FRAMES);
            }
            let counters = bed.forwarder().counters();
            assert_eq!((counters.flows.get(), counters.dropped()), (u64::from(HOT_FLOWS), 0));
            assert_eq!(counters.imbalance(), 0);
        }
    }

    #[test]
    fn first_packets_in_bursts_make_flows_and_idle_flows_end() {
        let mut region = region(4096).unwrap();
        let mut bed = Bed::new(region.bytes_mut(), 4096).unwrap();
        bed.establish(Protocol::Udp, 0..ALL_TARGETS).unwrap();
        for burst in Bed::first_packets(Protocol::Udp, ALL_TARGETS..1024).as_chunks::<FRAMES>().0 {
            assert_eq!(bed.burst(burst), FRAMES);
        }
        assert_eq!(bed.forwarder().counters().flows.get(), 1024);
        bed.advance(130);
        assert_eq!(bed.forwarder().counters().flows.get(), 0);
    }
}

//! Generator, responder and receiver in one thread: it sends what is due, answers what arrives at the server's side, and
//! takes what arrives at the client's, in turn, without sleeping while frames are due. One thread, because on few cores two
//! that never sleep would take turns by the millisecond, and because its clock is one.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use postern_frame_io::af_packet::{PacketReceiver, PacketTransmitter, ReceiverConfig, SEND_BUFFER};
use postern_frame_io::interface::Interface;
use postern_frame_io::{BURST, Burst, Receive, Transmit, TransmitReport, poll};
use postern_wire::arp::{ArpPacket, Operation};
use postern_wire::frame::HEADROOM;
use postern_wire::nd::{self, NeighbourPacket};
use postern_wire::parse::{ETHERTYPE_ARP, ETHERTYPE_IPV6};
use postern_wire::{Frame, MacAddress, Offload};

use super::TrafficError;
use super::arrivals::{Arrivals, Counts};
use super::pace::{Pace, Rate, Schedule};
use super::segment::Segment;
use super::stamp::{FLOWS, SEQUENCES, Stamp};
use super::stream::{Kind, Stream};
use crate::nat::processor::cores;
use crate::packet::Carried;

/// Bytes of the largest frame, and a little more.
const LARGEST: usize = 9216;
/// When the next frame is due in less than this, the thread does not sleep.
const SPIN: Duration = Duration::from_micros(300);
/// The longest sleep.
const NAP: Duration = Duration::from_millis(1);
/// RST (RFC 9293 §3.1).
const RST: u8 = 0x04;
/// The server's first sequence number.
const SERVER_SEQUENCE: u32 = 1_000_000;

/// One port of the station.
#[derive(Debug)]
pub struct Side {
    transmit: PacketTransmitter,
    receive: PacketReceiver,
    mac: MacAddress,
    /// Addresses for which it answers ARP and Neighbor Discovery.
    addresses: Vec<IpAddr>,
}

impl Side {
    /// Opens an interface of the calling thread's network namespace, and answers for these addresses.
    ///
    /// # Errors
    /// If a packet socket cannot be had.
    pub fn open(interface: &str, addresses: Vec<IpAddr>) -> Result<Self, TrafficError> {
        let interface = Interface::by_name(interface)?;
        let config = ReceiverConfig {
            // As much memory for large slots as for small ones.
            slots: if interface.mtu() > 2000 { 8192 } else { 32_768 },
            promiscuous: true,
            ..ReceiverConfig::default()
        };
        Ok(Self {
            transmit: PacketTransmitter::open(&interface, SEND_BUFFER)?,
            receive: PacketReceiver::open(&interface, &config)?,
            mac: interface.mac(),
            addresses,
        })
    }

    /// Its MAC address.
    #[must_use]
    pub const fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Sends one frame.
    fn send(&mut self, bytes: &[u8]) {
        let mut buffer = [0; HEADROOM + 128];
        let Some(place) = buffer.get_mut(HEADROOM..HEADROOM + bytes.len()) else { return };
        place.copy_from_slice(bytes);
        if let Some(frame) = Frame::new(&mut buffer, HEADROOM, bytes.len()) {
            self.transmit.transmit(&mut [frame], &[0], &mut TransmitReport::new());
        }
    }

    /// Frames that the kernel could not put into the ring.
    fn ring_drops(&mut self) -> u64 {
        self.receive.statistics().kernel_drops
    }
}

/// What the server's side does with what arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Responder {
    /// It counts; a SYN and a FIN it answers.
    Sink,
    /// It also sends every frame with a right stamp back.
    Reflect,
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What the frames are for.
    pub kind: Kind,
    /// How many.
    pub frames: u64,
    /// How fast.
    pub rate: Rate,
    /// What the server's side does.
    pub responder: Responder,
    /// The flow of the first frame; the flows follow in turn.
    pub first_flow: u32,
    /// How long to wait for what is still on its way when nothing arrives any more.
    pub settle: Duration,
}

impl Plan {
    /// Data at a rate for about so long.
    #[must_use]
    pub fn data(rate: f64, duration: Duration) -> Self {
        Self {
            kind: Kind::Data,
            frames: ((rate * duration.as_secs_f64()).round() as u64).max(1),
            rate: Rate::Paced(rate),
            responder: Responder::Sink,
            first_flow: 0,
            settle: Duration::from_millis(300),
        }
    }

    /// One frame for each of so many flows.
    #[must_use]
    pub fn each(kind: Kind, flows: u32, rate: f64) -> Self {
        Self { kind, frames: flows.into(), ..Self::data(rate, Duration::ZERO) }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Frames at the server's side.
    pub counts: Counts,
    /// Of [`Responder::Reflect`], frames that came back.
    pub back: Counts,
    /// Whether it was [`Responder::Reflect`].
    pub reflected: bool,
    /// How well the generator kept its schedule.
    pub pace: Pace,
    /// Flows whose SYN or FIN the client has seen answered.
    pub answered: u64,
    /// SYNs, FINs and RSTs that arrived at the server's side.
    pub controls: u64,
    /// RSTs that came to the client.
    pub refused: u64,
    /// Frames that the kernel could not put into the station's own rings: a loss that is not the device's.
    pub own_drops: u64,
    /// Nanoseconds from the first frame to the last.
    pub elapsed: u64,
    /// Latencies at the server's side: the upper end of each cell in microseconds and its count.
    pub cells: Vec<(f64, u64)>,
}

/// Client's and server's side.
#[derive(Debug)]
pub struct Station {
    client: Side,
    server: Side,
    /// The port that test frames have when they leave the device.
    port: u16,
    epoch: Instant,
    sequence: u64,
    buffers: Vec<Vec<u8>>,
    /// Whether it has a CPU for itself. Asked when it is made: a pinned thread has one.
    alone: bool,
}

impl Station {
    /// A station whose server's side takes frames to this port. To be made before its thread is pinned.
    #[must_use]
    pub fn new(client: Side, server: Side, port: u16) -> Self {
        let buffers = vec![vec![0; HEADROOM + LARGEST]; BURST];
        Self { client, server, port, epoch: Instant::now(), sequence: 0, buffers, alone: cores() > 1 }
    }

    /// The client's side's MAC address.
    #[must_use]
    pub const fn client_mac(&self) -> MacAddress {
        self.client.mac
    }

    /// Nanoseconds since the station was made.
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Runs a plan. With `interrupt` it ends early when that says so; it is asked about every millisecond.
    ///
    /// # Errors
    /// If an interface is down or gone.
    pub fn run(
        &mut self,
        stream: &Stream,
        plan: &Plan,
        mut interrupt: impl FnMut() -> bool,
    ) -> Result<Outcome, TrafficError> {
        self.drain()?;
        if self.sequence + plan.frames >= SEQUENCES {
            self.sequence = 0;
        }
        let first = self.sequence;
        let mut run = Run::new(first, stream.flows());
        let own_drops = self.client.ring_drops() + self.server.ring_drops();
        let mut schedule = Schedule::new(plan.rate, plan.frames);
        let mut report = TransmitReport::new();
        let (mut handed, mut taken, mut refused) = (0, 0u64, 0u64);
        let mut planned = plan.frames;
        let start = self.now();
        let (mut last, mut asked, mut moved) = (start, start, start);
        loop {
            let now = self.now();
            let due = schedule.due(now - start).min(planned);
            let mut busy = false;
            if handed < due {
                busy = true;
                schedule.leaves(handed, now - start);
                let count = (due - handed).min(BURST as u64);
                let (accepted, not) = self.burst(stream, plan, handed, count, &mut report);
                handed += count;
                taken += accepted;
                refused += not;
                last = self.now();
            }
            // Two bursts arrive for each that is sent, so that the rings do not fill.
            for _ in 0..2 {
                let arrived = self.take_at_server(plan.responder, &mut run)? + self.take_at_client(&mut run)?;
                if arrived == 0 {
                    break;
                }
                (busy, moved) = (true, self.now());
            }
            if handed == planned {
                let whole = match (plan.kind, plan.responder) {
                    (Kind::Data, Responder::Sink) => run.at_server.received() >= taken,
                    (Kind::Data, Responder::Reflect) => run.at_client.received() >= taken,
                    (Kind::Open | Kind::Close, _) => run.answered.count >= taken,
                    (Kind::Reset, _) => run.controls >= taken,
                };
                if whole || self.now().saturating_sub(moved.max(last)) > plan.settle.as_nanos() as u64 {
                    break;
                }
            }
            if now.saturating_sub(asked) > 1_000_000 && handed < planned {
                asked = now;
                if interrupt() || schedule.is_hopeless(now - start) {
                    planned = handed;
                }
            }
            if !busy {
                let next = if handed < planned {
                    Duration::from_nanos((start + schedule.at(handed)).saturating_sub(self.now()))
                } else {
                    NAP
                };
                self.wait(next);
            }
        }
        self.sequence += handed;
        let own_drops = self.client.ring_drops() + self.server.ring_drops() - own_drops;
        let elapsed = last - start;
        Ok(Outcome {
            counts: run.at_server.counts(taken),
            back: run.at_client.counts(taken),
            reflected: plan.responder == Responder::Reflect,
            pace: schedule.pace(taken, refused, elapsed),
            answered: run.answered.count,
            controls: run.controls,
            refused: run.refused,
            own_drops,
            elapsed,
            cells: run.at_server.latency().cells(),
        })
    }

    /// Sends the next frames; how many were taken, and how many not.
    fn burst(
        &mut self,
        stream: &Stream,
        plan: &Plan,
        from: u64,
        count: u64,
        report: &mut TransmitReport,
    ) -> (u64, u64) {
        let flows = u64::from(stream.flows());
        let (sequence, time) = (self.sequence, self.now());
        let mut frames: Vec<Frame<'_>> = Vec::with_capacity(BURST);
        for (at, buffer) in (from..from + count).zip(&mut self.buffers) {
            let flow = ((u64::from(plan.first_flow) + at) % flows) as u32;
            let stamp = Stamp { sequence: sequence + at, flow, time };
            let length = stream.write(plan.kind, stamp, &mut buffer[HEADROOM..]);
            frames.push(Frame::new(buffer, HEADROOM, length).expect("a buffer holds the largest frame"));
        }
        let selected: [u8; BURST] = std::array::from_fn(|at| at as u8);
        self.client.transmit.transmit(&mut frames, &selected[..count as usize], report);
        (report.accepted() as u64, report.refused() as u64)
    }

    fn take_at_server(&mut self, responder: Responder, run: &mut Run) -> Result<usize, TrafficError> {
        let Self { server, port, epoch, .. } = self;
        let Side { transmit, receive, mac, addresses } = server;
        let mut burst = Burst::new();
        let count = receive.receive(&mut burst)?;
        if count == 0 {
            return Ok(0);
        }
        let now = epoch.elapsed().as_nanos() as u64;
        let (mut back, mut turned) = ([0; BURST], 0);
        let mut answers = Vec::new();
        for (at, frame) in burst.frames_mut().iter_mut().enumerate() {
            let bytes = frame.bytes();
            let Some(segment) = Segment::of(bytes) else {
                answers.extend(neighbour_answer(bytes, *mac, addresses));
                continue;
            };
            if segment.destination_port(bytes) != *port {
                continue;
            }
            let flags = if segment.tcp { segment.flags(bytes) } else { 0 };
            let answer = if flags & Carried::SYN != 0 {
                Some((Carried::SYN | Carried::ACK, SERVER_SEQUENCE))
            } else {
                (flags & Carried::FIN != 0).then_some((Carried::FIN | Carried::ACK, SERVER_SEQUENCE + 1))
            };
            if let Some((flags, sequence)) = answer {
                run.controls += 1;
                segment.answer(frame.bytes_mut(), flags, Some(sequence));
            } else if flags & RST != 0 {
                run.controls += 1;
                continue;
            } else {
                let right = run.at_server.take(bytes, &segment, frame.offload, now);
                if !right || responder == Responder::Sink {
                    continue;
                }
                segment.turn_round(frame.bytes_mut());
            }
            back[turned] = at as u8;
            turned += 1;
        }
        if turned > 0 {
            transmit.transmit(burst.frames_mut(), &back[..turned], &mut TransmitReport::new());
        }
        for answer in answers {
            server.send(&answer);
        }
        Ok(count)
    }

    fn take_at_client(&mut self, run: &mut Run) -> Result<usize, TrafficError> {
        let Self { client, epoch, .. } = self;
        let Side { transmit, receive, mac, addresses } = client;
        let mut burst = Burst::new();
        let count = receive.receive(&mut burst)?;
        if count == 0 {
            return Ok(0);
        }
        let now = epoch.elapsed().as_nanos() as u64;
        let (mut back, mut turned) = ([0; BURST], 0);
        let mut answers = Vec::new();
        for (at, frame) in burst.frames_mut().iter_mut().enumerate() {
            let bytes = frame.bytes();
            let Some(segment) = Segment::of(bytes) else {
                answers.extend(neighbour_answer(bytes, *mac, addresses));
                continue;
            };
            let flags = if segment.tcp { segment.flags(bytes) } else { 0 };
            if flags & RST != 0 {
                run.refused += 1;
                continue;
            }
            // The flow of a SYN is its sequence number, that of a FIN is one less.
            let number = segment.tcp.then(|| segment.acknowledged(bytes).wrapping_sub(1));
            let flow = if flags & Carried::SYN != 0 {
                number
            } else if flags & Carried::FIN != 0 {
                number.map(|number| number.wrapping_sub(1))
            } else {
                run.at_client.take(bytes, &segment, frame.offload, now);
                continue;
            };
            if let Some(flow) = flow {
                run.answered.insert(flow);
                segment.answer(frame.bytes_mut(), Carried::ACK, None);
                back[turned] = at as u8;
                turned += 1;
            }
        }
        if turned > 0 {
            transmit.transmit(burst.frames_mut(), &back[..turned], &mut TransmitReport::new());
        }
        for answer in answers {
            client.send(&answer);
        }
        Ok(count)
    }

    /// Answers neighbours and lets everything else go, until nothing comes any more.
    fn drain(&mut self) -> Result<(), TrafficError> {
        let mut nothing = Run::nothing();
        for _ in 0..1000 {
            if self.take_at_server(Responder::Sink, &mut nothing)? + self.take_at_client(&mut nothing)? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Answers neighbours for so long.
    ///
    /// # Errors
    /// If an interface is down or gone.
    pub fn idle(&mut self, duration: Duration) -> Result<(), TrafficError> {
        let end = Instant::now() + duration;
        loop {
            self.drain()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.wait(left.max(SPIN * 2));
        }
    }

    /// Waits until frames arrive or the next is due.
    fn wait(&self, next: Duration) {
        if next > SPIN || !self.alone {
            let time = next.saturating_sub(SPIN / 2).clamp(Duration::from_micros(20), NAP);
            let sides = [&self.client.receive, &self.server.receive];
            poll::sleep(sides.into_iter().filter_map(Receive::poll_fd), None, time);
        } else {
            std::hint::spin_loop();
        }
    }

    /// Asks the client's side's network who has an address, for at most so long.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn resolve(&mut self, own: IpAddr, wanted: IpAddr, patience: Duration) -> Result<MacAddress, TrafficError> {
        let question = question(self.client.mac, own, wanted).ok_or(TrafficError::NoNeighbour(wanted))?;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            self.client.send(&question);
            let asked = Instant::now();
            while asked.elapsed() < Duration::from_millis(100) {
                // On a wire or a switch it may be the other side that is asked.
                self.take_at_server(Responder::Sink, &mut Run::nothing())?;
                let found = {
                    let mut burst = Burst::new();
                    self.client.receive.receive(&mut burst)?;
                    burst.frames().iter().find_map(|frame| answer_of(frame.bytes(), wanted))
                };
                if let Some(mac) = found {
                    return Ok(mac);
                }
                poll::sleep(self.client.receive.poll_fd(), None, NAP);
            }
        }
        Err(TrafficError::NoNeighbour(wanted))
    }
}

/// What arrives in a run.
struct Run {
    at_server: Arrivals,
    at_client: Arrivals,
    answered: Flows,
    controls: u64,
    refused: u64,
}

impl Run {
    fn new(first: u64, flows: u32) -> Self {
        Self {
            at_server: Arrivals::new(first, flows),
            at_client: Arrivals::new(first, flows),
            answered: Flows::new(flows),
            controls: 0,
            refused: 0,
        }
    }

    /// Of what arrives between runs.
    fn nothing() -> Self {
        Self::new(0, 0)
    }
}

impl Arrivals {
    /// Takes a frame apart, of a super-frame each segment; true if all was as it was sent.
    fn take(&mut self, bytes: &[u8], segment: &Segment, offload: Offload, now: u64) -> bool {
        let payload = &bytes[segment.payload..segment.end];
        // An acknowledgement.
        if payload.is_empty() {
            return false;
        }
        let size = if offload.is_segmented() { usize::from(offload.segment_size).max(1) } else { payload.len() };
        let mut right = true;
        for payload in payload.chunks(size) {
            match Stamp::read(payload) {
                Some(stamp) => self.record(stamp, now),
                None => {
                    right = false;
                    self.record_corrupted();
                }
            }
        }
        right
    }
}

/// A set of flows.
struct Flows {
    bits: Vec<u64>,
    flows: u32,
    count: u64,
}

impl Flows {
    fn new(flows: u32) -> Self {
        Self { bits: vec![0; flows.div_ceil(64) as usize], flows, count: 0 }
    }

    fn insert(&mut self, flow: u32) {
        debug_assert!(self.flows <= FLOWS);
        if flow < self.flows {
            let (word, bit) = (&mut self.bits[flow as usize / 64], 1u64 << (flow % 64));
            self.count += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }
}

/// An Ethernet frame around something.
fn ethernet(to: MacAddress, from: MacAddress, ethertype: u16, content: &[u8]) -> Vec<u8> {
    [to.0.as_slice(), &from.0, &ethertype.to_be_bytes(), content].concat()
}

/// The answer to an ARP request or a neighbour solicitation for one of the addresses.
fn neighbour_answer(bytes: &[u8], mac: MacAddress, addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let content = bytes.get(14..)?;
    match u16::from_be_bytes([bytes[12], bytes[13]]) {
        ETHERTYPE_ARP => {
            let asked = ArpPacket::parse(content)?;
            if asked.operation != Operation::Request || !addresses.contains(&asked.target.into()) {
                return None;
            }
            let answer = ArpPacket {
                operation: Operation::Reply,
                sender_mac: mac,
                sender: asked.target,
                target_mac: asked.sender_mac,
                target: asked.sender,
            };
            Some(ethernet(asked.sender_mac, mac, ETHERTYPE_ARP, &answer.to_bytes()))
        }
        ETHERTYPE_IPV6 => {
            let asked = NeighbourPacket::parse(content)?;
            if asked.kind != nd::Kind::Solicitation || !addresses.contains(&asked.target.into()) {
                return None;
            }
            let to = asked.mac.or_else(|| Some(MacAddress(*bytes.get(6..12)?.first_chunk()?)))?;
            let answer = NeighbourPacket {
                source: asked.target,
                destination: asked.source,
                kind: nd::Kind::Advertisement { router: false, solicited: true, overrides: true },
                target: asked.target,
                mac: Some(mac),
            };
            let mut packet = [0; nd::LONGEST];
            let length = answer.write(&mut packet);
            Some(ethernet(to, mac, ETHERTYPE_IPV6, &packet[..length]))
        }
        _ => None,
    }
}

/// The question who has an address.
fn question(mac: MacAddress, own: IpAddr, wanted: IpAddr) -> Option<Vec<u8>> {
    match (own, wanted) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => {
            let target_mac = MacAddress::ZERO;
            let packet = ArpPacket { operation: Operation::Request, sender_mac: mac, sender, target_mac, target };
            Some(ethernet(MacAddress([0xff; 6]), mac, ETHERTYPE_ARP, &packet.to_bytes()))
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let destination = nd::solicited_node(target);
            let kind = nd::Kind::Solicitation;
            let question = NeighbourPacket { source, destination, kind, target, mac: Some(mac) };
            let mut packet = [0; nd::LONGEST];
            let length = question.write(&mut packet);
            Some(ethernet(nd::multicast_mac(destination), mac, ETHERTYPE_IPV6, &packet[..length]))
        }
        _ => None,
    }
}

/// The MAC address that a frame says somebody has.
fn answer_of(bytes: &[u8], wanted: IpAddr) -> Option<MacAddress> {
    let content = bytes.get(14..)?;
    match u16::from_be_bytes([bytes[12], bytes[13]]) {
        ETHERTYPE_ARP => {
            let packet = ArpPacket::parse(content)?;
            (packet.operation == Operation::Reply && IpAddr::from(packet.sender) == wanted).then_some(packet.sender_mac)
        }
        ETHERTYPE_IPV6 => {
            let packet = NeighbourPacket::parse(content)?;
            let advertised = matches!(packet.kind, nd::Kind::Advertisement { .. });
            (advertised && IpAddr::from(packet.target) == wanted).then_some(packet.mac?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use postern_lab::{Namespace, VethEnd};

    use super::super::stream::{Ends, Sizes, Transport};
    use super::*;

    const PORT: u16 = 5201;

    /// A station whose two sides are the ends of one wire.
    fn wire(namespace: &Namespace) -> Option<Station> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let pair = VethEnd::new(namespace, "one").mtu(9000).pair(&VethEnd::new(namespace, "other").mtu(9000)).unwrap();
        pair.0.disable_ipv6().unwrap();
        pair.1.disable_ipv6().unwrap();
        let [client, server] = ["10.71.1.2", "10.71.1.100"].map(|address| vec![address.parse().unwrap()]);
        let open = || (Side::open("one", client).unwrap(), Side::open("other", server).unwrap());
        let (client, server) = namespace.run(open).unwrap();
        Some(Station::new(client, server, PORT))
    }

    fn stream(station: &Station, transport: Transport, flows: u32, sizes: Sizes) -> Stream {
        let macs = (station.client_mac(), station.server.mac);
        let [clients, destination] = ["10.128.0.0", "10.71.1.100"].map(|text| text.parse::<IpAddr>().unwrap());
        let ends = Ends { macs, clients, hosts: 16, destination: SocketAddr::new(destination, PORT) };
        Stream::new(ends, transport, flows, sizes, 3).unwrap()
    }

    #[test]
    fn over_a_bare_wire_every_frame_arrives_once_in_order_and_whole_at_the_rate_that_was_asked_for() {
        let namespace = Namespace::anonymous("wire").unwrap();
        let Some(mut station) = wire(&namespace) else { return };
        for (transport, sizes) in [
            (Transport::Udp, Sizes::Fixed(64)),
            (Transport::Udp, Sizes::Imix),
            (Transport::Udp, Sizes::Fixed(9000)),
            (Transport::Tcp, Sizes::Fixed(1518)),
        ] {
            let stream = stream(&station, transport, 100, sizes);
            let plan = Plan::data(2_000.0, Duration::from_millis(500));
            let outcome = station.run(&stream, &plan, || false).unwrap();
            let counts = &outcome.counts;
            assert_eq!((counts.sent, counts.received, counts.lost), (1000, 1000, 0), "{sizes} {outcome:?}");
            let others = [counts.duplicated, counts.reordered, counts.reordered_in_flow, counts.corrupted];
            assert_eq!(others, [0; 4], "{sizes}");
            // 999 intervals of 500 µs; the last frame cannot leave earlier.
            assert!(outcome.elapsed >= 499_400_000, "{outcome:?}");
            assert!(outcome.pace.achieved <= 2_000.5, "{outcome:?}");
            assert_eq!(counts.latency.unwrap().count, 1000);
        }
    }

    #[test]
    fn frames_come_back_from_a_reflecting_server_and_handshakes_are_answered() {
        let namespace = Namespace::anonymous("wire").unwrap();
        let Some(mut station) = wire(&namespace) else { return };
        let udp = stream(&station, Transport::Udp, 64, Sizes::Fixed(128));
        let plan = Plan { responder: Responder::Reflect, ..Plan::each(Kind::Data, 64, 5_000.0) };
        let outcome = station.run(&udp, &plan, || false).unwrap();
        assert_eq!((outcome.counts.received, outcome.back.received, outcome.back.corrupted), (64, 64, 0));
        let tcp = stream(&station, Transport::Tcp, 64, Sizes::Fixed(128));
        for kind in [Kind::Open, Kind::Close] {
            let outcome = station.run(&tcp, &Plan::each(kind, 64, 5_000.0), || false).unwrap();
            assert_eq!((outcome.answered, outcome.controls), (64, 64), "{kind:?} {outcome:?}");
        }
        let outcome = station.run(&tcp, &Plan::each(Kind::Reset, 64, 5_000.0), || false).unwrap();
        assert_eq!((outcome.answered, outcome.controls, outcome.counts.corrupted), (0, 64, 0));
    }

    #[test]
    fn a_rate_that_nobody_can_send_is_given_up_and_what_was_sent_is_counted() {
        let namespace = Namespace::anonymous("wire").unwrap();
        let Some(mut station) = wire(&namespace) else { return };
        let udp = stream(&station, Transport::Udp, 4, Sizes::Fixed(64));
        let since = Instant::now();
        let plan = Plan::data(1e9, Duration::from_millis(200));
        let outcome = station.run(&udp, &plan, || false).unwrap();
        assert!(since.elapsed() < Duration::from_secs(60) && !outcome.pace.in_time, "{outcome:?}");
        assert!(outcome.counts.sent < plan.frames && outcome.counts.sent > 0, "{outcome:?}");
        assert_eq!(outcome.counts.received + outcome.counts.lost, outcome.counts.sent);
    }

    /// Forwards frames with stamps from one interface to another: of each ten it drops the fourth, repeats the sixth, changes
    /// the eighth and exchanges the last two.
    fn faulty_device(mut from: PacketReceiver, mut to: PacketTransmitter, stop: &AtomicBool) {
        let mut kept: Option<Vec<u8>> = None;
        let mut number = 0;
        let mut send = |bytes: &[u8]| {
            let mut buffer = vec![0; HEADROOM + bytes.len()];
            buffer[HEADROOM..].copy_from_slice(bytes);
            let frame = Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap();
            to.transmit(&mut [frame], &[0], &mut TransmitReport::new());
        };
        while !stop.load(Ordering::Relaxed) {
            let mut burst = Burst::new();
            if from.receive(&mut burst).unwrap() == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
            for frame in burst.frames_mut() {
                if Segment::of(frame.bytes()).is_none() {
                    continue;
                }
                match number % 10 {
                    3 => {}
                    5 => (0..2).for_each(|_| send(frame.bytes())),
                    7 => {
                        *frame.bytes_mut().last_mut().unwrap() ^= 1;
                        send(frame.bytes());
                    }
                    8 => kept = Some(frame.bytes().to_vec()),
                    9 => {
                        send(frame.bytes());
                        send(&kept.take().unwrap());
                    }
                    _ => send(frame.bytes()),
                }
                number += 1;
            }
        }
    }

    #[test]
    fn what_a_device_does_to_the_frames_is_what_the_receiver_says() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let namespace = Namespace::anonymous("faults").unwrap();
        for (one, other) in [("client", "in"), ("server", "out")] {
            let (one, other) = VethEnd::new(&namespace, one).pair(&VethEnd::new(&namespace, other)).unwrap();
            one.disable_ipv6().unwrap();
            other.disable_ipv6().unwrap();
        }
        let open = || {
            let config = ReceiverConfig { promiscuous: true, ..ReceiverConfig::default() };
            let from = PacketReceiver::open(&Interface::by_name("in").unwrap(), &config).unwrap();
            let to = PacketTransmitter::open(&Interface::by_name("out").unwrap(), SEND_BUFFER).unwrap();
            (Side::open("client", Vec::new()).unwrap(), Side::open("server", Vec::new()).unwrap(), from, to)
        };
        let (client, server, from, to) = namespace.run(open).unwrap();
        let mut station = Station::new(client, server, PORT);
        let stream = stream(&station, Transport::Udp, 5, Sizes::Fixed(256));
        let stop = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| faulty_device(from, to, &stop));
            let outcome = station.run(&stream, &Plan::data(4_000.0, Duration::from_millis(500)), || false);
            stop.store(true, Ordering::Relaxed);
            outcome.unwrap()
        });
        let counts = outcome.counts;
        assert_eq!((counts.sent, counts.received, counts.lost), (2000, 1600, 400), "{counts:?}");
        assert_eq!((counts.duplicated, counts.corrupted, counts.stale), (200, 200, 0), "{counts:?}");
        // 8 and 9 are of different flows.
        assert_eq!((counts.reordered, counts.reordered_in_flow), (200, 0), "{counts:?}");
    }

    #[test]
    fn a_run_can_be_interrupted_and_a_neighbour_be_asked_for() {
        let namespace = Namespace::anonymous("wire").unwrap();
        let Some(mut station) = wire(&namespace) else { return };
        let udp = stream(&station, Transport::Udp, 4, Sizes::Fixed(64));
        let start = Instant::now();
        let plan = Plan::data(1_000.0, Duration::from_secs(100));
        let outcome = station.run(&udp, &plan, || start.elapsed() > Duration::from_millis(100)).unwrap();
        assert!(outcome.counts.sent < 50_000 && outcome.counts.received == outcome.counts.sent, "{outcome:?}");
        assert_eq!(question(station.client.mac, udp.client(0).ip(), "2001:db8::1".parse().unwrap()), None);
        let nobody = station.resolve(udp.client(0).ip(), "10.71.1.9".parse().unwrap(), Duration::from_millis(150));
        assert!(matches!(nobody, Err(TrafficError::NoNeighbour(_))));
    }

    #[test]
    fn arp_and_neighbor_discovery_are_answered_for_own_addresses_only() {
        let (own, other) = (MacAddress([2; 6]), MacAddress([4; 6]));
        let [four, six]: [IpAddr; 2] = ["10.0.0.2", "2001:db8::2"].map(|text| text.parse().unwrap());
        let [asks_four, asks_six]: [IpAddr; 2] = ["10.0.0.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        for (asks, wanted) in [(asks_four, four), (asks_six, six)] {
            let question = question(other, asks, wanted).unwrap();
            let answer = neighbour_answer(&question, own, &[four, six]).unwrap();
            assert_eq!(answer_of(&answer, wanted), Some(own));
            assert_eq!(answer[..6], other.0);
            assert_eq!(neighbour_answer(&question, own, &[asks]), None);
            assert_eq!(answer_of(&question, wanted), None);
        }
    }
}

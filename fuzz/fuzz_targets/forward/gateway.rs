//! A gateway in memory: some forwarders with everything that goes between them, and what must hold at every moment.

use std::collections::HashSet;
use std::sync::Arc;

use postern_forwarding::{
    Forwarder, ForwarderConfig, HandoffNote, NeighbourEvent, NeighbourRequest, Origin, Outbox, PortInfo, Verdict,
    WorkerCounters, WorkerIndex,
};
use postern_measurement::Now;
use postern_steering::Ownership;
use postern_wire::frame::{HEADROOM, NO_VLAN};
use postern_wire::{Frame, MacAddress, Offload, PortIndex, parse};

use super::packet::{self, Input, port_mac, station};
use super::tables::SNAPSHOTS;

/// Ports of the tables.
const PORTS: u16 = 3;
/// Frames of a burst.
const MOST_FRAMES: usize = 8;
/// Neighbour requests that wait for an answer.
const MOST_REQUESTS: usize = 32;
/// Longer than any idle time, any rest and any wait, in seconds.
const SILENCE: u64 = 7200;

/// A frame on its way to a worker.
struct Arrival {
    port: u16,
    bytes: Vec<u8>,
    offload: Offload,
    vlan: u16,
}

/// What was in the outbox.
#[derive(Default)]
struct Taken {
    sent: Vec<(PortIndex, Vec<u8>, Offload)>,
    handed: Vec<(WorkerIndex, HandoffNote, Arrival)>,
}

/// Forwarders, and the world around them.
pub(crate) struct Gateway<'m> {
    workers: Vec<Forwarder<'m>>,
    flows: u64,
    outbox: Outbox,
    now: Now,
    snapshot: usize,
    requests: Vec<NeighbourRequest>,
    /// The last frame that came out.
    last: Option<(u16, Vec<u8>)>,
}

impl<'m> Gateway<'m> {
    pub(crate) fn new(memory: &'m mut [Vec<u64>], flows: u32) -> Self {
        let workers = memory.len() as u16;
        let ownership = Arc::new(Ownership::even(workers, [3, 4]));
        let make = |(worker, memory): (usize, &'m mut Vec<u64>)| {
            let config = ForwarderConfig {
                worker: WorkerIndex(worker as u16),
                workers,
                flows,
                ipv6_flows: flows,
                secret: [0x1111_2222_3333_4444 + worker as u64, 0x9e37_79b9, 77, 0x0123_4567_89ab_cdef],
                ports: ports(0),
            };
            let counters = Arc::new(WorkerCounters::new(16, 16));
            let memory = zerocopy::IntoBytes::as_mut_bytes(memory.as_mut_slice());
            Forwarder::new(&config, memory, SNAPSHOTS[0].clone(), ownership.clone(), counters)
                .expect("the memory is as large as a forwarder says that it needs")
        };
        Self {
            workers: memory.iter_mut().enumerate().map(make).collect(),
            flows: u64::from(flows),
            outbox: Outbox::new(64),
            now: Now::from_milliseconds(10_000),
            snapshot: 0,
            requests: Vec::new(),
            last: None,
        }
    }

    /// Does what the next bytes of the input say.
    pub(crate) fn step(&mut self, input: &mut Input<'_>) {
        let step = input.byte();
        match step % 16 {
            // A burst of one to eight frames at one worker, mostly of the kinds that a gateway sees.
            0..=5 => {
                let burst = (0..1 + usize::from(step >> 4) % MOST_FRAMES).map(|_| self.arrival(input)).collect();
                self.burst(usize::from(input.byte()), burst);
            }
            // The fragments of one packet, at one worker or at any.
            6 => {
                let (port, whole) = packet::arriving(input);
                for (at, bytes) in packet::fragments(input, &whole).into_iter().enumerate() {
                    let arrival = Arrival { port, bytes, offload: Offload::NONE, vlan: NO_VLAN };
                    self.burst(usize::from(step >> 4) * at, vec![arrival]);
                }
            }
            // An answer to what came out last.
            7..=9 => {
                let flags = [0x12, 0x10, 0x11, 0x14][usize::from(step >> 4 & 3)];
                let answer = self.last.as_ref().and_then(|(port, frame)| Some((*port, packet::answer(frame, flags)?)));
                if let Some((port, bytes)) = answer {
                    let arrival = Arrival { port, bytes, offload: Offload::NONE, vlan: NO_VLAN };
                    self.burst(usize::from(input.byte()), vec![arrival]);
                }
            }
            // Any bytes.
            10 => {
                let (port, length) = (u16::from(step >> 4) % (PORTS + 1), usize::from(input.byte()));
                let bytes = input.take(length).to_vec();
                self.burst(0, vec![Arrival { port, bytes, offload: Offload::NONE, vlan: NO_VLAN }]);
            }
            // Time passes.
            11 => {
                let milliseconds = u64::from(input.word());
                self.wait(milliseconds);
            }
            12 => self.reload(),
            // Neighbours answer, are silent, or move.
            13 => {
                for request in std::mem::take(&mut self.requests) {
                    let NeighbourRequest { attachment, address } = request;
                    let octets = match address {
                        std::net::IpAddr::V4(address) => address.octets(),
                        std::net::IpAddr::V6(address) => (address.to_bits() as u32).to_be_bytes(),
                    };
                    let mut mac = station(octets);
                    mac[0] |= step >> 5 << 2;
                    let mac = (step & 16 == 0).then_some(MacAddress(mac));
                    self.tell(NeighbourEvent { attachment, address, mac });
                }
            }
            // A port goes down, comes up, or changes its MTU.
            14 => {
                let infos = ports(step >> 4);
                self.workers.iter_mut().for_each(|worker| worker.set_ports(&infos));
            }
            _ => self.housekeeping(),
        }
    }

    /// What must hold whenever nothing is on its way.
    pub(crate) fn assert_sound(&self) {
        for worker in &self.workers {
            let counters = worker.counters();
            assert_eq!(counters.imbalance(), 0, "frames are lost or counted twice: {counters:?}");
            // As many with an IPv6 side as without.
            assert!(counters.flows.get() <= 2 * self.flows);
            assert!(counters.half_open.get() <= counters.flows.get());
            let made = counters.flows_new.get() - counters.flows_ended.get();
            assert_eq!(made, counters.flows.get());
            let [by_endpoint, by_target] = [
                counters.endpoints.iter().map(|endpoint| endpoint.flows.get()).sum::<u64>(),
                counters.targets.iter().map(|target| target.flows.get()).sum::<u64>(),
            ];
            assert_eq!([by_endpoint, by_target], [made; 2]);
        }
        self.assert_flows_are_told_apart();
    }

    /// No two live flows have the same key in either direction, whoever of the workers has them.
    fn assert_flows_are_told_apart(&self) {
        let (mut views, mut seen) = (Vec::new(), HashSet::new());
        for worker in &self.workers {
            let mut cursor = Some(0);
            while let Some(from) = cursor {
                cursor = worker.flows(from, 256, self.now, &mut views);
            }
        }
        let live: u64 = self.workers.iter().map(|worker| worker.counters().flows.get()).sum();
        assert_eq!(views.len() as u64, live);
        for view in views {
            // Of IPv6, keys have only words of the addresses, which are each worker's own.
            let reverse = match view.addresses.filter(|_| view.reverse.is_wide()) {
                None => (view.reverse.addresses, view.reverse.rest, None),
                Some(addresses) => (0, view.reverse.rest, Some(addresses.reverse)),
            };
            assert!(seen.insert(reverse), "two flows share an SNAT port toward one target: {view:?}");
        }
    }

    /// Everything ends by itself.
    pub(crate) fn fall_silent(&mut self) {
        for _ in 0..SILENCE / 60 {
            self.now = self.now.plus_milliseconds(60_000);
            self.housekeeping();
        }
        self.assert_sound();
        for worker in &self.workers {
            let counters = worker.counters();
            let left = [&counters.flows, &counters.half_open, &counters.held].map(|gauge| gauge.get());
            assert_eq!(left, [0; 3], "flows, half-open flows and held frames that never end");
        }
    }

    fn arrival(&mut self, input: &mut Input<'_>) -> Arrival {
        let how = input.byte();
        let (port, mut bytes) = if how & 32 == 0 { packet::arriving(input) } else { packet::arriving6(input) };
        if how & 1 != 0 {
            packet::damage(input, &mut bytes);
        }
        let offload = if how & 6 == 6 { packet::offload(input) } else { Offload::NONE };
        let vlan = if how & 24 == 24 { input.word() } else { NO_VLAN };
        Arrival { port, bytes, offload, vlan }
    }

    fn burst(&mut self, worker: usize, mut arrivals: Vec<Arrival>) {
        let worker = worker % self.workers.len();
        let whole: Vec<Vec<u8>> = arrivals.iter().map(|arrival| arrival.bytes.clone()).collect();
        let mut buffers: Vec<Vec<u8>> = whole.iter().map(|bytes| [&[0; HEADROOM], &bytes[..]].concat()).collect();
        let mut frames: Vec<Frame<'_>> = Vec::new();
        for (buffer, arrival) in buffers.iter_mut().zip(&arrivals) {
            frames.push(frame(buffer, arrival));
        }
        let mut verdicts = vec![Verdict::Punt; frames.len()];
        self.workers[worker].process(&mut frames, &mut verdicts, &mut self.outbox, self.now);
        let outcomes: Vec<_> = frames
            .iter()
            .zip(&verdicts)
            .map(|(frame, verdict)| (*verdict, frame.bytes().to_vec(), frame.offload))
            .collect();
        drop(frames);
        for (at, (verdict, bytes, offload)) in outcomes.into_iter().enumerate() {
            if matches!(verdict, Verdict::Handoff(..)) {
                assert_eq!(bytes, whole[at], "a frame is handed over as it came");
            }
            let arrival = arrivals.remove(0);
            self.carry_out(worker, verdict, bytes, offload, arrival, 0);
        }
        self.empty_outbox(worker);
    }

    fn carry_out(
        &mut self,
        worker: usize,
        verdict: Verdict,
        bytes: Vec<u8>,
        offload: Offload,
        arrival: Arrival,
        handed: usize,
    ) {
        let counters = self.workers[worker].counters().clone();
        match verdict {
            Verdict::Forward(port) => {
                counters.forwarded.add(1);
                self.sent(port, bytes, offload);
            }
            Verdict::Reply(port) => {
                counters.answered.add(1);
                self.sent(port, bytes, offload);
            }
            Verdict::Punt | Verdict::Probe => counters.punted.add(1),
            Verdict::Handoff(to, note) => {
                counters.handed_out.add(1);
                let rest = self.take_outbox(worker);
                assert!(usize::from(to.0) < self.workers.len());
                assert!(handed < 4 * self.workers.len(), "a frame goes around among the workers for ever");
                self.hand_over(usize::from(to.0), note, arrival, handed + 1);
                self.carry_on(rest);
            }
            Verdict::Hold | Verdict::Drop(_) => {}
        }
    }

    fn hand_over(&mut self, worker: usize, note: HandoffNote, arrival: Arrival, handed: usize) {
        let mut buffer = [&[0; HEADROOM], &arrival.bytes[..]].concat();
        let mut frame = frame(&mut buffer, &arrival);
        let verdict = self.workers[worker].process_handed(&mut frame, note, &mut self.outbox, self.now);
        let (bytes, offload) = (frame.bytes().to_vec(), frame.offload);
        self.carry_out(worker, verdict, bytes, offload, arrival, handed);
        self.empty_outbox(worker);
    }

    fn empty_outbox(&mut self, worker: usize) {
        let taken = self.take_outbox(worker);
        self.carry_on(taken);
    }

    /// Counts what a worker put into the outbox and takes it out. What workers say to each other goes ahead of all frames.
    fn take_outbox(&mut self, worker: usize) -> Taken {
        for (to, message) in self.outbox.take_messages().collect::<Vec<_>>() {
            self.workers[usize::from(to.0)].peer_message(message, self.now);
        }
        let counters = self.workers[worker].counters().clone();
        let mut taken = Taken::default();
        for (port, origin, frame) in self.outbox.frames() {
            match origin {
                Origin::Held => counters.forwarded.add(1),
                Origin::Made => counters.made.add(1),
            }
            taken.sent.push((port, frame.bytes().to_vec(), frame.offload));
        }
        for (to, note, frame) in self.outbox.handed() {
            counters.handed_out.add(1);
            let arrival = Arrival {
                port: frame.ingress.0,
                bytes: frame.bytes().to_vec(),
                offload: frame.offload,
                vlan: frame.vlan,
            };
            taken.handed.push((to, note, arrival));
        }
        self.requests.extend(self.outbox.requests());
        self.requests.truncate(MOST_REQUESTS);
        self.outbox.clear();
        taken
    }

    fn carry_on(&mut self, taken: Taken) {
        for (port, bytes, offload) in taken.sent {
            self.sent(port, bytes, offload);
        }
        for (to, note, arrival) in taken.handed {
            self.hand_over(usize::from(to.0), note, arrival, 1);
        }
    }

    /// A frame leaves: it is one that the gateway itself would take for well-formed.
    fn sent(&mut self, port: PortIndex, mut bytes: Vec<u8>, offload: Offload) {
        assert!(port.0 < PORTS);
        let length = bytes.len();
        let mut out = Frame::new(&mut bytes, 0, length).expect("the frame is the whole buffer");
        out.offload = offload;
        let parsed = parse(&out);
        let parsed = parsed.unwrap_or_else(|error| panic!("{error:?} of a frame that was sent: {:02x?}", out.bytes()));
        assert_eq!(parsed.end as usize, length, "padding leaves the gateway");
        assert_eq!(out.bytes()[6..12], port_mac(port.0));
        self.last = Some((port.0, bytes));
    }

    fn tell(&mut self, event: NeighbourEvent) {
        for worker in 0..self.workers.len() {
            self.workers[worker].neighbour(event, &mut self.outbox, self.now);
            self.empty_outbox(worker);
        }
    }

    fn reload(&mut self) {
        let Some(next) = SNAPSHOTS.get(self.snapshot + 1) else { return };
        self.snapshot += 1;
        for worker in &mut self.workers {
            worker.apply(next.clone());
        }
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now = self.now.plus_milliseconds(milliseconds);
        self.housekeeping();
    }

    fn housekeeping(&mut self) {
        for worker in 0..self.workers.len() {
            let mut more = true;
            while more {
                more = self.workers[worker].housekeeping(&mut self.outbox, self.now);
                self.empty_outbox(worker);
            }
        }
    }
}

/// What the forwarders know of the ports; each bit of `changes` is a change.
fn ports(changes: u8) -> Vec<PortInfo> {
    let port = |at: u16| PortInfo {
        mac: MacAddress(port_mac(at)),
        mtu: if changes & 8 != 0 { 600 } else { 1500 },
        up: changes >> at & 1 == 0,
    };
    (0..PORTS).map(port).collect()
}

fn frame<'f>(buffer: &'f mut [u8], arrival: &Arrival) -> Frame<'f> {
    let mut frame = Frame::new(buffer, HEADROOM, arrival.bytes.len()).expect("the buffer holds headroom and frame");
    frame.ingress = PortIndex(arrival.port);
    frame.offload = arrival.offload;
    frame.vlan = arrival.vlan;
    frame
}

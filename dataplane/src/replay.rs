//! A capture pushed through the forwarder offline: frames from a file, time from their time stamps, what leaves into another
//! file. Needs no privilege and no interface.
//!
//! Next hops answer at once, with MAC addresses made of their attachment and address (`02:` attachment, then the address).
//! A frame is taken as addressed to the gateway whatever MAC address the capture has.

pub mod capture_file;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pcap_file::PcapError;
use postern_forwarding::{
    DropReason, Forwarder, ForwarderConfig, ForwarderError, NeighbourEvent, NeighbourRequest, Origin, Outbox, PortInfo,
    Verdict, WorkerCounters, WorkerIndex,
};
use postern_measurement::Now;
use postern_steering::Ownership;
use postern_tables::{Checked, Snapshot, compile};
use postern_wire::frame::HEADROOM;
use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN};
use postern_wire::{Frame, MacAddress, PortIndex};

use crate::inspection::collect;
use crate::inspection::report::CountersReport;
use crate::link::Shared;
use crate::neighbours::NeighbourCounters;
use capture_file::{CaptureReader, CaptureWriter, CapturedFrame};

/// MTU of ports whose attachment says nothing.
const MTU: u16 = 1500;
/// Secrets of a replay: the same each time, so that its output is.
const SECRET: [u64; 4] = [0x706f_7374_6572_6e31, 0x706f_7374_6572_6e32, 0x706f_7374_6572_6e33, 0x706f_7374_6572_6e34];

/// What to replay.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The capture to read: pcap or pcapng.
    pub input: PathBuf,
    /// The capture to write: pcap.
    pub output: PathBuf,
    /// The port on which every frame arrives; `None`: the one that the capture names, or else the first on which the
    /// frame's destination is an address of Postern's.
    pub port: Option<String>,
}

/// Why a capture cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A capture file.
    #[error("{path}: {source}")]
    Capture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: PcapError,
    },
    /// A port that is not configured.
    #[error("there is no port \"{given}\" in the configuration; it has {known}")]
    Port {
        /// What was given.
        given: String,
        /// What there is.
        known: String,
    },
    /// The forwarder.
    #[error(transparent)]
    Forwarder(#[from] ForwarderError),
    /// The system.
    #[error("cannot prepare the replay: {0}")]
    System(#[from] io::Error),
}

/// Replays a capture and returns what was counted.
///
/// # Errors
/// When a file cannot be read or written, or the port is unknown.
pub fn replay(checked: &Checked, replay: &Replay) -> Result<CountersReport, ReplayError> {
    let snapshot = Arc::new(compile(checked, None));
    let names: Vec<_> = snapshot.ports.iter().map(|port| port.interface.as_str()).collect();
    let port = match &replay.port {
        None => None,
        Some(given) => Some(PortIndex(
            names
                .iter()
                .position(|name| name == given)
                .ok_or_else(|| ReplayError::Port { given: given.clone(), known: names.join(", ") })? as u16,
        )),
    };
    let infos: Vec<_> = (0..names.len()).map(|at| port_info(&snapshot, PortIndex(at as u16))).collect();
    let counters = Arc::new(WorkerCounters::new(checked.limits.endpoints as usize, checked.limits.targets as usize));
    let shared = Shared::new(snapshot.clone(), infos.clone(), vec![counters.clone()])?;
    let config = ForwarderConfig {
        worker: WorkerIndex(0),
        workers: 1,
        flows: checked.workers.flows,
        ipv6_flows: checked.workers.ipv6_flows,
        secret: SECRET,
        ports: infos.clone(),
    };
    let mut memory = vec![0u64; Forwarder::region_size(config.flows, config.ipv6_flows).div_ceil(8)];
    let memory = zerocopy::IntoBytes::as_mut_bytes(memory.as_mut_slice());
    let ownership = Arc::new(Ownership::even(1, [SECRET[0], SECRET[1]]));
    let forwarder = Forwarder::new(&config, memory, snapshot.clone(), ownership, counters.clone())?;

    let at = |path: &PathBuf| {
        let path = path.clone();
        move |source| ReplayError::Capture { path, source }
    };
    let mut reader = CaptureReader::open(&replay.input).map_err(at(&replay.input))?;
    let writer = CaptureWriter::create(&replay.output).map_err(at(&replay.output))?;
    let mut player =
        Player { forwarder, counters, snapshot, infos, outbox: Outbox::new(64), writer, start: None, written: Ok(()) };
    while let Some(frame) = reader.next_frame().map_err(at(&replay.input))? {
        player.play(frame, port);
    }
    player.written.and_then(|()| player.writer.finish()).map_err(at(&replay.output))?;
    Ok(collect::counters(&checked.gateway.name, &shared, &NeighbourCounters::default(), &[]))
}

struct Player<'m> {
    forwarder: Forwarder<'m>,
    counters: Arc<WorkerCounters>,
    snapshot: Arc<Snapshot>,
    infos: Vec<PortInfo>,
    outbox: Outbox,
    writer: CaptureWriter,
    /// Time of the first frame.
    start: Option<Duration>,
    /// The first error of writing.
    written: Result<(), PcapError>,
}

impl Player<'_> {
    fn play(&mut self, captured: CapturedFrame, port: Option<PortIndex>) {
        if !captured.whole || captured.bytes.len() < 14 {
            self.counters.received.add(1);
            self.counters.count_drop(DropReason::Truncated, 1);
            return;
        }
        let start = *self.start.get_or_insert(captured.time);
        let now = Now::from_milliseconds(1000 + captured.time.saturating_sub(start).as_millis() as u64);
        while self.forwarder.housekeeping(&mut self.outbox, now) {
            self.empty_outbox(captured.time, now);
        }
        self.empty_outbox(captured.time, now);

        let port = port.unwrap_or_else(|| self.arrival(&captured));
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(&captured.bytes);
        if buffer[HEADROOM] & 1 == 0
            && let Some(mac) = self.own_mac(port, &captured.bytes)
        {
            buffer[HEADROOM..HEADROOM + 6].copy_from_slice(&mac.0);
        }
        let length = captured.bytes.len();
        let Some(mut frame) = Frame::new(&mut buffer, HEADROOM, length) else { return };
        frame.ingress = port;
        let mut verdicts = [Verdict::Hold];
        self.forwarder.process(std::slice::from_mut(&mut frame), &mut verdicts, &mut self.outbox, now);
        match verdicts[0] {
            Verdict::Forward(_) => self.counters.forwarded.add(1),
            Verdict::Reply(_) => self.counters.answered.add(1),
            Verdict::Punt | Verdict::Probe => self.counters.punted.add(1),
            // There is one worker.
            Verdict::Handoff(..) => self.counters.count_drop(DropReason::HandoffFull, 1),
            Verdict::Hold | Verdict::Drop(_) => {}
        }
        if matches!(verdicts[0], Verdict::Forward(_) | Verdict::Reply(_)) {
            write(&mut self.writer, &mut self.written, captured.time, &frame);
        }
        self.empty_outbox(captured.time, now);
    }

    /// Writes what the forwarder made, and finds the next hops that it asked for, until it wants nothing more.
    fn empty_outbox(&mut self, time: Duration, now: Now) {
        while !self.outbox.is_empty() {
            for (_, origin, frame) in self.outbox.frames() {
                match origin {
                    Origin::Held => self.counters.forwarded.add(1),
                    Origin::Made => self.counters.made.add(1),
                }
                write(&mut self.writer, &mut self.written, time, &frame);
            }
            let requests = self.outbox.requests().to_vec();
            self.outbox.clear();
            for NeighbourRequest { attachment, address } in requests {
                let mac = Some(made_up(attachment.0, address));
                self.forwarder.neighbour(NeighbourEvent { attachment, address, mac }, &mut self.outbox, now);
            }
        }
    }

    /// Where a frame arrives: at the port that the capture names, else where its destination is an address of Postern's.
    fn arrival(&self, captured: &CapturedFrame) -> PortIndex {
        let named = captured.interface.as_ref();
        let named = named.and_then(|name| self.snapshot.ports.iter().position(|port| port.interface == **name));
        if let Some(at) = named {
            return PortIndex(at as u16);
        }
        let (vlan, header) = vlan_and_header(&captured.bytes);
        let destination = header.and_then(|header| destination(captured.bytes.get(header..)?));
        let holds = |attachment: &&postern_tables::snapshot::Attachment| {
            attachment.vlan.unwrap_or(0) == vlan
                && destination.is_some_and(|address| self.snapshot.holds(attachment.vpc, address))
        };
        self.snapshot.attachments.iter().find(holds).map_or(PortIndex(0), |attachment| attachment.port)
    }

    fn own_mac(&self, port: PortIndex, bytes: &[u8]) -> Option<MacAddress> {
        let attachment = self.snapshot.attachment(port, vlan_and_header(bytes).0)?;
        let own = self.snapshot.attachments.get(usize::from(attachment.0))?.mac;
        own.or_else(|| self.infos.get(usize::from(port.0)).map(|info| info.mac))
    }
}

fn write(writer: &mut CaptureWriter, written: &mut Result<(), PcapError>, time: Duration, frame: &Frame<'_>) {
    if written.is_ok() {
        *written = writer.write(time, frame.bytes());
    }
}

/// The destination address of an IP packet.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        6 => packet.get(24..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => packet.get(16..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
    }
}

/// VLAN identifier (0: none), and where the IP header begins, if it is IP.
fn vlan_and_header(bytes: &[u8]) -> (u16, Option<usize>) {
    let be16 = |at: usize| bytes.get(at..at + 2).map(|field| u16::from_be_bytes([field[0], field[1]]));
    let is_ip = |at| matches!(be16(at), Some(ETHERTYPE_IPV4 | ETHERTYPE_IPV6));
    match be16(12) {
        Some(ETHERTYPE_VLAN) => (be16(14).unwrap_or(0) & 0x0fff, is_ip(16).then_some(18)),
        _ => (0, is_ip(12).then_some(14)),
    }
}

fn made_up(attachment: u16, address: IpAddr) -> MacAddress {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => postern_wire::ipv6::fold(&address.octets()).to_be_bytes(),
    };
    MacAddress([2, attachment as u8, a, b, c, d])
}

fn port_info(snapshot: &Snapshot, port: PortIndex) -> PortInfo {
    let mtus = snapshot.attachments.iter().filter(|attachment| attachment.port == port);
    let mtu = mtus.filter_map(|attachment| attachment.mtu).max().unwrap_or(MTU);
    PortInfo { mac: MacAddress([2, 0xff, 0, 0, (port.0 >> 8) as u8, port.0 as u8]), mtu, up: true }
}

#[cfg(test)]
mod tests;

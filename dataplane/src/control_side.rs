//! The control-side thread's work: the one owner of neighbours, tables and ports. It sleeps until a worker rings, a timer is
//! due or the operator asks for something, and never makes a worker wait.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postern_forwarding::NeighbourEvent;
use postern_frame_io::af_packet::PacketTransmitter;
use postern_frame_io::{Transmit, TransmitReport};
use postern_measurement::Now;
use postern_tables::Snapshot;
use postern_wire::frame::HEADROOM;
use postern_wire::{AttachmentIndex, Frame, MacAddress, PortIndex};
use tracing::{error, info, warn};

use crate::health::ProbeEgress;
use crate::link::{Shared, WorkerLink};
use crate::neighbours::{Neighbours, Output};
use crate::ports::{PortError, PortNews, Ports};
use crate::run_directory::RunDirectory;

/// How often the ports are looked at, in milliseconds.
const LOOK_AT_PORTS: u64 = 1000;
/// Pause while a worker's ring is full or a worker has not taken the tables.
const RETRY: Duration = Duration::from_millis(1);
/// Frames of ARP and Neighbor Discovery of one worker taken in a turn.
const PUNTED: usize = 256;

/// Longest frame of this thread's own, a probe with a tag, in bytes.
const LONGEST_FRAME: usize = 18 + crate::health::LONGEST_PROBE;

/// Events that a worker has not taken yet: the last of each neighbour, so that the backlog is bounded by their number.
type Backlog = BTreeMap<(AttachmentIndex, IpAddr), Option<MacAddress>>;

/// State of the control-side thread.
#[derive(Debug)]
pub struct ControlSide {
    shared: Arc<Shared>,
    neighbours: Neighbours,
    output: Output,
    backlogs: Vec<Backlog>,
    ports: Ports,
    /// By port; `None` while the interface is gone.
    transmitters: Vec<Option<PacketTransmitter>>,
    report: TransmitReport,
    probes: ProbeEgress,
    run: RunDirectory,
    looked_at: Now,
    /// A snapshot that workers are still taking; the ports' address maps follow when all have it.
    publishing: Option<Arc<Snapshot>>,
}

impl ControlSide {
    /// Takes over ports whose devices are open and whose workers run.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        ports: Ports,
        transmitters: Vec<PacketTransmitter>,
        run: RunDirectory,
        now: Now,
    ) -> Self {
        let neighbours = Neighbours::new(shared.tables.load(), ports.infos(), now);
        Self {
            backlogs: shared.links.iter().map(|_| Backlog::new()).collect(),
            neighbours,
            output: Output::default(),
            transmitters: transmitters.into_iter().map(Some).collect(),
            report: TransmitReport::new(),
            probes: ProbeEgress::default(),
            ports,
            run,
            looked_at: now,
            publishing: None,
            shared,
        }
    }

    /// Does everything that is to be done now.
    pub fn turn(&mut self, now: Now) {
        let mut lost = false;
        for link in &self.shared.links {
            // What workers let go is freed here.
            while link.returned.pop().is_some() {}
            while link.replaced.pop().is_some() {}
            for frame in (0..PUNTED).map_while(|_| link.punted.pop()) {
                self.neighbours.receive(&frame, now, &mut self.output);
            }
            while let Some(request) = link.requests.pop() {
                self.neighbours.request(request, now, &mut self.output);
            }
            for port in &link.ports {
                lost |= port.lost.load(Ordering::Relaxed) && port.lost.swap(false, Ordering::Relaxed);
            }
        }
        self.finish_publishing(now);
        if lost || now.milliseconds() >= self.looked_at.milliseconds() + LOOK_AT_PORTS {
            self.looked_at = now;
            self.look_at_ports(now);
        }
        self.neighbours.pass(now, &mut self.output);
        self.send_probes(now);
        self.emit();
    }

    /// How long to sleep, unless something happens: not at all while a worker's ring has something.
    #[must_use]
    pub fn pause(&self, now: Now) -> Duration {
        let left = |link: &WorkerLink| {
            !link.punted.is_empty()
                || !link.requests.is_empty()
                || !link.returned.is_empty()
                || !link.replaced.is_empty()
        };
        if self.shared.links.iter().any(left) || !self.shared.health.packets.is_empty() {
            return Duration::ZERO;
        }
        if self.publishing.is_some() || self.backlogs.iter().any(|backlog| !backlog.is_empty()) {
            return RETRY;
        }
        let look = self.looked_at.plus_milliseconds(LOOK_AT_PORTS);
        let due = self.neighbours.next_due().map_or(look, |due| due.min(look));
        Duration::from_millis(due.milliseconds().saturating_sub(now.milliseconds()))
    }

    /// Publishes a snapshot. Addresses that are new are steered and announced when every worker has it.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        drop(self.shared.tables.publish(snapshot.clone()));
        self.shared.wake_workers();
        self.publishing = Some(snapshot);
    }

    /// Whether every worker has taken the last snapshot.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.publishing.is_none()
    }

    /// The neighbours.
    #[must_use]
    pub const fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// The ports.
    #[must_use]
    pub const fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Takes the frames of every port from the host that are Postern's.
    ///
    /// # Errors
    /// The first that fails.
    pub fn hide_from_host(&mut self) -> Result<(), PortError> {
        (0..self.ports.len()).try_for_each(|port| self.ports.hide_from_host(port, &mut self.run))
    }

    /// Gives every port back to the host as it was.
    pub fn restore(mut self) {
        self.ports.give_back();
        if let Err(error) = self.run.restore() {
            error!("{error}");
        }
    }

    fn finish_publishing(&mut self, now: Now) {
        let Some(snapshot) = &self.publishing else {
            return;
        };
        let taken = |link: &WorkerLink| link.loops.generation.get() >= snapshot.generation.0;
        if !self.shared.links.iter().all(taken) {
            return;
        }
        if let Err(error) = self.ports.publish(snapshot) {
            error!("{error}; new addresses are not steered to Postern");
        }
        self.neighbours.apply(snapshot.clone(), now, &mut self.output);
        info!(generation = snapshot.generation.0, "every worker forwards by the new tables");
        self.publishing = None;
    }

    fn look_at_ports(&mut self, now: Now) {
        let before = self.ports.infos();
        let mut changed = false;
        for port in 0..self.ports.len() {
            match self.ports.look_again(port) {
                PortNews::Same => {}
                PortNews::Changed => changed = true,
                PortNews::Successor => changed |= self.reopen(port, now),
            }
        }
        if changed {
            let infos = self.ports.infos();
            for (port, (info, _)) in infos.iter().zip(&before).enumerate().filter(|(_, (new, old))| new != old) {
                info!(interface = self.ports.name(port), up = info.up, mtu = info.mtu, mac = %info.mac, "port changed");
            }
            self.shared.publish_ports(&infos);
            self.neighbours.set_ports(&infos, now);
        }
    }

    /// Opens new devices on an interface that took the place of a deleted one; true if that went well. If not, the next look
    /// tries again.
    fn reopen(&mut self, port: usize, now: Now) -> bool {
        self.transmitters[port] = None;
        if self.shared.links.iter().any(|link| link.replacements.is_full()) {
            return false;
        }
        let prepared = self.ports.prepare(port, &mut self.run).map_err(|error| error.to_string());
        let opened = prepared.and_then(|()| {
            let devices = self.ports.open(port).map_err(|error| error.to_string())?;
            self.transmitters[port] = Some(self.ports.open_transmitter(port).map_err(|error| error.to_string())?);
            self.ports.hide_from_host(port, &mut self.run).map_err(|error| error.to_string())?;
            Ok(devices)
        });
        match opened {
            Ok(devices) => {
                for (link, device) in self.shared.links.iter().zip(devices) {
                    let pushed = link.replacements.push((port, device));
                    debug_assert!(pushed.is_ok(), "there is room, and this thread alone fills the ring");
                    link.wake.wake();
                }
                self.ports.recovered(port);
                self.neighbours.announce_port(PortIndex(port as u16), now);
                info!(interface = self.ports.name(port), "the interface was made again; its devices were opened anew");
                true
            }
            Err(error) => {
                warn!(interface = self.ports.name(port), "{error}; trying again in a second");
                false
            }
        }
    }

    fn send_probes(&mut self, now: Now) {
        let Self { shared, probes, neighbours, output, transmitters, report, .. } = self;
        let snapshot = shared.tables.load();
        probes.turn(&shared.health, &snapshot, neighbours, now, output, |port, frame| {
            if let Some(Some(transmitter)) = transmitters.get_mut(usize::from(port.0)) {
                send(transmitter, frame, report);
            }
        });
    }

    /// Sends frames and tells workers what the neighbours have to say.
    fn emit(&mut self) {
        for frame in self.output.frames.drain(..) {
            if let Some(Some(transmitter)) = self.transmitters.get_mut(usize::from(frame.port.0)) {
                send(transmitter, frame.bytes(), &mut self.report);
            }
        }
        for NeighbourEvent { attachment, address, mac } in self.output.events.drain(..) {
            for backlog in &mut self.backlogs {
                backlog.insert((attachment, address), mac);
            }
        }
        for (link, backlog) in self.shared.links.iter().zip(&mut self.backlogs) {
            if backlog.is_empty() {
                continue;
            }
            while let Some(entry) = backlog.first_entry() {
                let ((attachment, address), mac) = (*entry.key(), *entry.get());
                if link.events.push(NeighbourEvent { attachment, address, mac }).is_err() {
                    break;
                }
                entry.remove();
            }
            link.wake.wake();
        }
    }
}

fn send(transmitter: &mut PacketTransmitter, bytes: &[u8], report: &mut TransmitReport) {
    let mut buffer = [0; HEADROOM + LONGEST_FRAME];
    let Some(place) = buffer.get_mut(HEADROOM..HEADROOM + bytes.len()) else { return };
    place.copy_from_slice(bytes);
    if let Some(frame) = Frame::new(&mut buffer, HEADROOM, bytes.len()) {
        // A frame that the kernel refuses is one that got lost: questions are asked again.
        transmitter.transmit(&mut [frame], &[0], report);
    }
}

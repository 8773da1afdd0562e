//! Who is where on the wire: answers ARP and Neighbor Discovery (RFC 4861) for the addresses that Postern holds, announces
//! them, and finds the MAC addresses of next hops. A pure state machine: frames in, frames out, time passed in. One thread owns it.
//!
//! Only an answer to a question of ours changes an entry. An entry that exists moves only after its old station has left
//! three unicast questions unanswered; until then a stranger's answers and announcements are no more than a reason to ask.

mod announcements;
mod discovery;
mod entries;
pub mod neighbour_frame;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use postern_forwarding::{NeighbourEvent, NeighbourRequest, PortInfo};
use postern_measurement::Now;
use postern_tables::Snapshot;
use postern_tables::snapshot::{Attachment, VpcIndex};
use postern_wire::arp::{ArpPacket, Operation};
use postern_wire::{AttachmentIndex, MacAddress, PortIndex};

use announcements::Announcements;
use entries::{Ask, Entries, Step};
use neighbour_frame::{NeighbourFrame, ReceivedArp};

/// Most entries that one pass asks again or gives up.
const MOST_QUESTIONS: usize = 1024;

/// What the state machine wants done. The caller empties both lists after each call.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames to send.
    pub frames: Vec<NeighbourFrame>,
    /// What every worker must hear.
    pub events: Vec<NeighbourEvent>,
}

/// Where the control-side thread's own frames to a neighbour go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Station {
    /// The port.
    pub port: PortIndex,
    /// 802.1Q VLAN identifier.
    pub vlan: Option<u16>,
    /// Our MAC address there.
    pub own_mac: MacAddress,
    /// The neighbour's.
    pub mac: MacAddress,
}

/// What was counted, in frames unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct NeighbourCounters {
    /// Requests for addresses of ours that were answered.
    pub answered: u64,
    /// Requests that we sent.
    pub asked: u64,
    /// Announcements that we sent.
    pub announced: u64,
    /// Replies that nobody asked for, or that another station gave; they changed nothing.
    pub unsolicited: u64,
    /// Frames in which another station claims an address of ours.
    pub conflicts: u64,
    /// Frames that are neither ARP nor Neighbor Discovery, or that belong to no attachment.
    pub ignored: u64,
    /// Next hops that did not answer.
    pub unreachable: u64,
    /// Requests of workers that were refused because the table was full.
    pub refused: u64,
}

/// The neighbour tables of all attachments.
#[derive(Debug)]
pub struct Neighbours {
    snapshot: Arc<Snapshot>,
    ports: Vec<PortInfo>,
    /// Addresses that Postern holds, by VPC.
    held: HashMap<VpcIndex, BTreeSet<IpAddr>>,
    /// Attachments by VPC.
    attachments: HashMap<VpcIndex, Vec<AttachmentIndex>>,
    entries: Entries,
    announcements: Announcements,
    counters: NeighbourCounters,
    last_defence: Option<Now>,
}

impl Neighbours {
    /// An empty table. Addresses of `snapshot` are announced as time passes; see [`Neighbours::pass`].
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, ports: Vec<PortInfo>, now: Now) -> Self {
        let mut neighbours = Self {
            snapshot: Arc::new(Snapshot::default()),
            ports,
            held: HashMap::new(),
            attachments: HashMap::new(),
            entries: Entries::default(),
            announcements: Announcements::default(),
            counters: NeighbourCounters::default(),
            last_defence: None,
        };
        neighbours.apply(snapshot, now, &mut Output::default());
        neighbours
    }

    /// Takes a new snapshot: new addresses are announced, entries of attachments that are gone are forgotten. Costs what
    /// changed, unless attachments did.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>, now: Now, output: &mut Output) {
        let old = std::mem::replace(&mut self.snapshot, snapshot);
        let same_attachments = Arc::ptr_eq(&old.attachments, &self.snapshot.attachments);
        if !same_attachments {
            self.attachments.clear();
            for (at, attachment) in self.snapshot.attachments.iter().enumerate() {
                if !attachment.is_removed() {
                    self.attachments.entry(attachment.vpc).or_default().push(AttachmentIndex(at as u16));
                }
            }
        }
        let mut new = Vec::new();
        let narrow = self.snapshot.local.differences(&old.local);
        let narrow = narrow.map(|((vpc, address), was, is)| (vpc, IpAddr::V4(address), was, is));
        let wide = self.snapshot.local6.differences(&old.local6);
        let wide = wide.map(|((vpc, address), was, is)| (vpc, IpAddr::V6(address), was, is));
        for (vpc, address, was, is) in narrow.chain(wide) {
            if is.is_some() {
                self.held.entry(vpc).or_default().insert(address);
                if was.is_none() {
                    new.push((vpc, address));
                }
            } else if let Some(held) = self.held.get_mut(&vpc) {
                held.remove(&address);
                if held.is_empty() {
                    self.held.remove(&vpc);
                }
            }
        }
        new.sort_unstable();
        if same_attachments {
            for (vpc, address) in new {
                self.announce_new(vpc, address, |_| true, now);
            }
            return;
        }
        let same = |index: AttachmentIndex| {
            let (before, after) = (attachment_of(&old, index), attachment_of(&self.snapshot, index));
            before.zip(after).is_some_and(|(before, after)| {
                (before.vpc, before.port, before.vlan) == (after.vpc, after.port, after.vlan)
            })
        };
        for (attachment, address) in self.entries.forget(|key| !same(key.0)) {
            output.events.push(NeighbourEvent { attachment, address, mac: None });
        }
        let known: Vec<bool> = (0..self.snapshot.attachments.len())
            .map(|at| same(AttachmentIndex(at as u16)) && old.attachments[at].mac == self.snapshot.attachments[at].mac)
            .collect();
        for (vpc, address) in new {
            self.announce_new(vpc, address, |index| known[usize::from(index.0)], now);
        }
        for (at, _) in known.iter().enumerate().filter(|(_, known)| !**known) {
            let index = AttachmentIndex(at as u16);
            for address in self.announced_on(index) {
                self.announcements.add(index, address, now);
            }
        }
    }

    /// Announces an address on those attachments of its VPC that `which` names, where it is to be announced.
    fn announce_new(&mut self, vpc: VpcIndex, address: IpAddr, which: impl Fn(AttachmentIndex) -> bool, now: Now) {
        let attachments = self.attachments.get(&vpc).map_or(&[][..], Vec::as_slice);
        let on_link = |index: &AttachmentIndex| is_on_link(&self.snapshot, *index, address);
        let elsewhere = attachments.iter().any(on_link);
        for &index in attachments.iter().filter(|index| which(**index) && (on_link(index) || !elsewhere)) {
            self.announcements.add(index, address, now);
        }
    }

    /// Learns the state of the ports. A port that came up, or whose MAC address changed, gets its addresses announced.
    pub fn set_ports(&mut self, ports: &[PortInfo], now: Now) {
        let old = std::mem::replace(&mut self.ports, ports.to_vec());
        for (at, port) in ports.iter().enumerate() {
            let before = old.get(at);
            if port.up && before.is_none_or(|before| !before.up || before.mac != port.mac) {
                self.announce_port(PortIndex(at as u16), now);
            }
        }
    }

    /// Announces every address of a port's attachments again, and asks every neighbour there whether it is still the same:
    /// what was plugged in behind the port may be something else.
    pub fn announce_port(&mut self, port: PortIndex, now: Now) {
        let snapshot = &self.snapshot;
        let there = |attachment| attachment_of(snapshot, attachment).is_some_and(|attachment| attachment.port == port);
        self.entries.verify(|key| there(key.0), now);
        for at in 0..self.snapshot.attachments.len() {
            let index = AttachmentIndex(at as u16);
            if self.snapshot.attachments[at].port == port {
                for address in self.announced_on(index) {
                    self.announcements.add(index, address, now);
                }
            }
        }
    }

    /// Looks for a neighbour on behalf of a worker. A known one is told at once.
    pub fn request(&mut self, request: NeighbourRequest, now: Now, output: &mut Output) {
        let NeighbourRequest { attachment, address } = request;
        let ours = self.snapshot.local_of(attachment, address).is_some();
        if ours || attachment_of(&self.snapshot, attachment).is_none() {
            output.events.push(NeighbourEvent { attachment, address, mac: None });
            return;
        }
        match self.entries.request((attachment, address), now) {
            Step::Ask(ask) => self.ask(attachment, address, ask, output),
            Step::Tell(mac) => output.events.push(NeighbourEvent { attachment, address, mac }),
            Step::Refuse => {
                self.counters.refused += 1;
                output.events.push(NeighbourEvent { attachment, address, mac: None });
            }
            Step::Nothing => {}
        }
    }

    /// Takes a received frame of ARP or Neighbor Discovery.
    pub fn receive(&mut self, frame: &NeighbourFrame, now: Now, output: &mut Output) {
        if let Some(message) = frame.parse_discovery() {
            self.receive_discovery(frame.port, &message, now, output);
            return;
        }
        let found = frame.parse().and_then(|arp| Some((arp, self.snapshot.attachment(frame.port, arp.vlan)?)));
        let Some((arp, attachment)) = found else {
            self.counters.ignored += 1;
            return;
        };
        let sender = arp.packet.sender_mac;
        let own = self.mac(attachment);
        if sender.is_group() || sender == MacAddress::ZERO || own.is_none() || own == Some(sender) {
            self.counters.ignored += 1;
            return;
        }
        if self.snapshot.local(attachment, arp.packet.sender).is_some() {
            self.defend(attachment, arp.packet.sender.into(), now, output);
            return;
        }
        match arp.packet.operation {
            Operation::Request => self.answer(attachment, &arp, now, output),
            Operation::Reply => self.learn(attachment, &arp, now, output),
        }
    }

    /// Does what is due by time: questions again, ageing, announcements. Bounded in what it does at once.
    pub fn pass(&mut self, now: Now, output: &mut Output) {
        for _ in 0..MOST_QUESTIONS {
            let Some(((attachment, address), step)) = self.entries.due(now) else {
                break;
            };
            match step {
                Step::Ask(ask) => self.ask(attachment, address, ask, output),
                Step::Tell(mac) => {
                    self.counters.unreachable += 1;
                    output.events.push(NeighbourEvent { attachment, address, mac });
                }
                Step::Refuse | Step::Nothing => {}
            }
        }
        while let Some((attachment, address)) = self.announcements.due(now) {
            if self.snapshot.local_of(attachment, address).is_some() {
                self.announce(attachment, address, output);
            }
        }
        self.announcements.end_of_pass();
    }

    /// When [`Neighbours::pass`] has something to do next.
    #[must_use]
    pub fn next_due(&self) -> Option<Now> {
        [self.entries.next_due(), self.announcements.next_due()].into_iter().flatten().min()
    }

    /// Every known neighbour, for a worker that starts.
    pub fn known(&self) -> impl Iterator<Item = NeighbourEvent> + '_ {
        self.entries.known().map(|((attachment, address), mac)| NeighbourEvent { attachment, address, mac: Some(mac) })
    }

    /// A neighbour's station, if it is known.
    #[must_use]
    pub fn station(&self, attachment: AttachmentIndex, address: IpAddr) -> Option<Station> {
        let at = attachment_of(&self.snapshot, attachment)?;
        let (own_mac, mac) = (self.mac(attachment)?, self.entries.mac((attachment, address))?);
        Some(Station { port: at.port, vlan: at.vlan, own_mac, mac })
    }

    /// How many neighbours are being looked for.
    #[must_use]
    pub fn unresolved(&self) -> usize {
        self.entries.unresolved()
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> NeighbourCounters {
        self.counters
    }

    fn answer(&mut self, attachment: AttachmentIndex, arp: &ReceivedArp, now: Now, output: &mut Output) {
        let ArpPacket { sender_mac, sender, target, .. } = arp.packet;
        if self.snapshot.local(attachment, target).is_some() {
            let packet = ArpPacket {
                operation: Operation::Reply,
                sender_mac: MacAddress::ZERO,
                sender: target,
                target_mac: sender_mac,
                target: sender,
            };
            if self.send(attachment, sender_mac, packet, output) {
                self.counters.answered += 1;
            }
        }
        self.suspect(attachment, sender.into(), sender_mac, now, output);
    }

    fn learn(&mut self, attachment: AttachmentIndex, arp: &ReceivedArp, now: Now, output: &mut Output) {
        let ArpPacket { sender_mac, sender, target, target_mac, .. } = arp.packet;
        let to_us = self.mac(attachment).is_some_and(|own| arp.destination == own && target_mac == own);
        let asked_as = self.sender_for(attachment, sender);
        if !to_us || target != asked_as || !self.entries.answer((attachment, sender.into()), sender_mac, now) {
            self.counters.unsolicited += 1;
            self.suspect(attachment, sender.into(), sender_mac, now, output);
        } else if self.entries.take_changed() {
            output.events.push(NeighbourEvent { attachment, address: sender.into(), mac: Some(sender_mac) });
        }
    }

    /// Another station speaks as `address`: a reason to ask the station that we know.
    fn suspect(
        &mut self,
        attachment: AttachmentIndex,
        address: IpAddr,
        mac: MacAddress,
        now: Now,
        output: &mut Output,
    ) {
        if let Step::Ask(ask) = self.entries.suspect((attachment, address), mac, now) {
            self.ask(attachment, address, ask, output);
        }
    }

    /// Another station claims an address of ours (RFC 5227 §2.4): announce it again, at most once a second in all.
    fn defend(&mut self, attachment: AttachmentIndex, address: IpAddr, now: Now, output: &mut Output) {
        self.counters.conflicts += 1;
        if self.last_defence.is_none_or(|last| now >= last.plus_milliseconds(1000)) {
            self.last_defence = Some(now);
            self.announce(attachment, address, output);
        }
    }

    fn announce(&mut self, attachment: AttachmentIndex, address: IpAddr, output: &mut Output) {
        let address = match address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => {
                self.announce_wide(attachment, address, output);
                return;
            }
        };
        let packet = ArpPacket {
            operation: Operation::Request,
            sender_mac: MacAddress::ZERO,
            sender: address,
            target_mac: MacAddress::ZERO,
            target: address,
        };
        if self.send(attachment, MacAddress::BROADCAST, packet, output) {
            self.counters.announced += 1;
        }
    }

    fn ask(&mut self, attachment: AttachmentIndex, address: IpAddr, ask: Ask, output: &mut Output) {
        let address = match address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => {
                self.solicit(attachment, address, ask, output);
                return;
            }
        };
        let packet = ArpPacket {
            operation: Operation::Request,
            sender_mac: MacAddress::ZERO,
            sender: self.sender_for(attachment, address),
            target_mac: MacAddress::ZERO,
            target: address,
        };
        let destination = match ask {
            Ask::Everyone => MacAddress::BROADCAST,
            Ask::Known(mac) => mac,
        };
        if self.send(attachment, destination, packet, output) {
            self.counters.asked += 1;
        }
    }

    /// Sends a packet with our MAC address as sender; false if the attachment or its port is gone.
    fn send(
        &self,
        attachment: AttachmentIndex,
        destination: MacAddress,
        mut packet: ArpPacket,
        output: &mut Output,
    ) -> bool {
        let Some((at, own)) = attachment_of(&self.snapshot, attachment).zip(self.mac(attachment)) else {
            return false;
        };
        packet.sender_mac = own;
        output.frames.push(NeighbourFrame::new(at.port, at.vlan, own, destination, &packet));
        true
    }

    /// The MAC address that Postern has on an attachment.
    fn mac(&self, attachment: AttachmentIndex) -> Option<MacAddress> {
        let attachment = attachment_of(&self.snapshot, attachment)?;
        attachment.mac.or_else(|| self.ports.get(usize::from(attachment.port.0)).map(|port| port.mac))
    }

    /// The address that we ask with: one that Postern holds in the VPC, in the on-link prefix of `address` if it can be;
    /// 0.0.0.0 (an RFC 5227 probe) where Postern holds none.
    fn sender_for(&self, attachment: AttachmentIndex, address: Ipv4Addr) -> Ipv4Addr {
        let Some(attachment) = attachment_of(&self.snapshot, attachment) else {
            return Ipv4Addr::UNSPECIFIED;
        };
        let Some(held) = self.held.get(&attachment.vpc) else {
            return Ipv4Addr::UNSPECIFIED;
        };
        let narrow = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        let near = attachment.prefixes.iter().filter(|prefix| prefix.contains(address)).find_map(|prefix| {
            held.range(IpAddr::V4(prefix.network())..).find_map(narrow).filter(|it| prefix.contains(*it))
        });
        // IPv4 addresses stand before those of IPv6.
        near.or_else(|| held.first().and_then(narrow)).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The addresses to announce on an attachment: those on-link there, and those that are on-link nowhere.
    fn announced_on(&self, index: AttachmentIndex) -> Vec<IpAddr> {
        let Some(attachment) = attachment_of(&self.snapshot, index) else {
            return Vec::new();
        };
        let attachments = self.attachments.get(&attachment.vpc).map_or(&[][..], Vec::as_slice);
        let on_link = |index, address| is_on_link(&self.snapshot, index, address);
        let elsewhere = |address| attachments.iter().any(|other| on_link(*other, address));
        let held = self.held.get(&attachment.vpc).into_iter().flatten().copied();
        held.filter(|address| on_link(index, *address) || !elsewhere(*address)).collect()
    }
}

fn is_on_link(snapshot: &Snapshot, index: AttachmentIndex, address: IpAddr) -> bool {
    attachment_of(snapshot, index).is_some_and(|attachment| match address {
        IpAddr::V4(address) => attachment.prefixes.iter().any(|prefix| prefix.contains(address)),
        IpAddr::V6(address) => attachment.prefixes6.iter().any(|prefix| prefix.contains(address)),
    })
}

fn attachment_of(snapshot: &Snapshot, index: AttachmentIndex) -> Option<&Attachment> {
    snapshot.attachments.get(usize::from(index.0)).filter(|attachment| !attachment.is_removed())
}

#[cfg(test)]
mod tests;

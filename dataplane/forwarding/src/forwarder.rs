//! One worker's forwarder.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use postern_flows::{FlowTable, Found, HalfOpen, InsertionTable, RegionError, WideAddresses};
use postern_measurement::Now;
use postern_steering::Ownership;
use postern_tables::Snapshot;
use postern_translation::ports::{PortAllocator, PortCapacity};
use postern_wire::frame::NO_VLAN;
use postern_wire::parse::{PLAIN, parse_plain, plain};
use postern_wire::plain6::plain6;
use postern_wire::{AttachmentIndex, FlowKey, Frame, MacAddress, PacketKind, Parsed, PortIndex, ipv6, parse};

use crate::counters::WorkerCounters;
use crate::fragments::Fragments;
use crate::limiter::FairLimiter;
use crate::limits::SharedState;
use crate::next_hops::{NextHops, own_mac};
use crate::outbox::Outbox;
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};
use crate::waiting::WaitingRoom;
use crate::ways::Ways;

/// Largest number of frames in a burst.
pub const BURST: usize = 64;

/// What a forwarder is made with.
#[derive(Clone, Debug)]
pub struct ForwarderConfig {
    /// Which worker it is.
    pub worker: WorkerIndex,
    /// How many workers there are.
    pub workers: u16,
    /// Most live flows whose addresses are all IPv4, 1,024…16,777,216.
    pub flows: u32,
    /// Most live flows with an IPv6 side, 0…16,777,216.
    pub ipv6_flows: u32,
    /// Secret for the flow table's hash and the port choice; from the system's random source.
    pub secret: [u64; 4],
    /// Ports, by index.
    pub ports: Vec<PortInfo>,
}

/// What a forwarder must know of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its MTU: largest IP datagram, in bytes.
    pub mtu: u16,
    /// Whether it can send.
    pub up: bool,
}

/// Why a forwarder cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// The memory is smaller than [`Forwarder::region_size`].
    #[error("the worker's region has {given} bytes, {needed} are needed")]
    Memory {
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The flow table cannot live in it.
    #[error(transparent)]
    Flows(#[from] RegionError),
    /// The SNAT ports cannot live in it.
    #[error(transparent)]
    Ports(#[from] postern_translation::ports::RegionError),
}

/// What the owner of the neighbour tables tells every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEvent {
    /// Attachment of the neighbour.
    pub attachment: AttachmentIndex,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address; `None`: it does not answer (any more).
    pub mac: Option<MacAddress>,
}

/// One flow, for listings.
#[derive(Clone, Copy, Debug)]
pub struct FlowView {
    /// Consumer to endpoint.
    pub forward: FlowKey,
    /// Target to SNAT address.
    pub reverse: FlowKey,
    /// The addresses, where keys have only words of them: of a flow with an IPv6 side.
    pub addresses: Option<WideAddresses>,
    /// Name of the TCP state, or "udp".
    pub state: &'static str,
    /// Endpoint index.
    pub endpoint: u32,
    /// Target index.
    pub target: u32,
    /// Seconds since the first packet.
    pub age_seconds: u32,
    /// Seconds since the last packet.
    pub idle_seconds: u32,
    /// Packets and bytes from the consumer.
    pub forward_count: (u64, u64),
    /// Packets and bytes to the consumer.
    pub reverse_count: (u64, u64),
}

impl FlowView {
    /// The client's address and port.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.socket(self.forward.source_socket(), WideAddresses::client)
    }

    /// The endpoint's address and port.
    #[must_use]
    pub fn service(&self) -> SocketAddr {
        self.socket(self.forward.destination_socket(), WideAddresses::endpoint)
    }

    /// The target's address and port.
    #[must_use]
    pub fn target_socket(&self) -> SocketAddr {
        self.socket(self.reverse.source_socket(), WideAddresses::target)
    }

    /// The SNAT address and port.
    #[must_use]
    pub fn snat(&self) -> SocketAddr {
        self.socket(self.reverse.destination_socket(), WideAddresses::snat)
    }

    fn socket(&self, of_key: SocketAddrV4, wide: impl Fn(&WideAddresses) -> IpAddr) -> SocketAddr {
        match &self.addresses {
            None => of_key.into(),
            Some(addresses) => SocketAddr::new(wide(addresses), of_key.port()),
        }
    }
}

/// RSTs and ICMP errors of our own that a worker sends in a second, and at once; half of them on behalf of one address.
const ANSWERS_PER_SECOND: u32 = 1000;
const ANSWERS_AT_ONCE: u32 = 200;
/// Flows and rests that one slice of housekeeping looks at.
const SLICE: u32 = 256;

/// One worker's forwarder: flow memory, the snapshot that it works by, and its counters.
#[derive(Debug)]
pub struct Forwarder<'m> {
    pub(crate) worker: WorkerIndex,
    pub(crate) workers: u16,
    pub(crate) table: FlowTable<'m>,
    pub(crate) half_open: HalfOpen,
    pub(crate) insertions: InsertionTable<'m>,
    pub(crate) snat: PortAllocator<'m>,
    pub(crate) hops: NextHops,
    pub(crate) ways: Ways,
    pub(crate) waiting: WaitingRoom,
    pub(crate) fragments: Fragments,
    pub(crate) answers: FairLimiter,
    /// How many rests the allocator had cut short when they were counted last.
    rests_cut_short: u64,
    pub(crate) ports: Vec<PortInfo>,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) shared: Arc<SharedState>,
    /// By port: the attachment of its untagged frames.
    links: Vec<Link>,
    slots: Vec<Slot>,
}

/// What is known of a frame between the passes over a burst.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// The key of a TCP or UDP packet whose headers are where [`parse_plain`] has them; [`NOT_PLAIN`] of every other frame.
    pub(crate) plain: FlowKey,
    pub(crate) hash: u64,
    /// Where the look-up of the hash begins.
    pub(crate) place: usize,
    /// First the record that the hash most likely leads to, later the one that the key leads to.
    pub(crate) found: Found,
    /// Of a plain packet nothing, until [`Forwarder::decide`] needs it.
    pub(crate) parsed: Parsed,
    /// Of frames that are not plain.
    pub(crate) admission: Admission,
}

impl Slot {
    /// A TCP or UDP packet that is not plain, with its hash and where the look-up of that begins.
    pub(crate) const fn of_flow(parsed: Parsed, hash: u64, place: usize) -> Self {
        Self { parsed, hash, place, admission: Admission::Flow, ..SLOT }
    }

    /// Whether all headers are where [`parse_plain`] has them.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        // No flow has such a protocol, family and attachment.
        self.plain.rest != NOT_PLAIN.rest
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Admission {
    /// TCP or UDP on an attachment: to be looked up.
    Flow,
    /// The same of IPv6 with all headers where [`plain6`] has them; of what was parsed there is only the key.
    Plain6,
    /// ARP, ICMP, fragments and other protocols.
    Other,
    Refused(DropReason),
}

/// Whose the frames of a port are.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// The attachment, in the place that it has in a flow key.
    attachment: u64,
    /// The six bytes that the destination address should have, as the high ones of a little-endian integer.
    mac: u64,
}

impl Link {
    /// No frame has this address.
    const NONE: Self = Self { attachment: 0, mac: u64::MAX };

    /// Whether a frame that begins with these bytes is for it.
    #[inline(always)]
    const fn is_for(&self, front: [u8; 8]) -> bool {
        u64::from_le_bytes(front) << 16 == self.mac
    }
}

/// A key that no flow has.
pub(crate) const NOT_PLAIN: FlowKey = FlowKey { addresses: 0, rest: u64::MAX };

const SLOT: Slot = Slot {
    plain: NOT_PLAIN,
    parsed: Parsed {
        key: FlowKey { addresses: 0, rest: 0 },
        kind: PacketKind::Arp,
        tcp_flags: 0,
        ttl: 0,
        l3: 0,
        l4: 0,
        end: 0,
        vlan: 0,
    },
    hash: 0,
    place: 0,
    found: Found::NOTHING,
    admission: Admission::Other,
};

impl<'m> Forwarder<'m> {
    /// Bytes of memory that a forwarder of so many flows, and so many with an IPv6 side, needs.
    #[must_use]
    pub fn region_size(flows: u32, ipv6_flows: u32) -> usize {
        flow_region(flows, ipv6_flows)
            + insertion_region(flows)
            + PortAllocator::region_size(&port_capacity(flows, ipv6_flows))
    }

    /// Makes a forwarder in `memory`, which is zeroed and begins at a multiple of 8 bytes (better 64).
    ///
    /// # Errors
    /// When the memory is too small or not aligned.
    pub fn new(
        config: &ForwarderConfig,
        memory: &'m mut [u8],
        snapshot: Arc<Snapshot>,
        ownership: Arc<Ownership>,
        counters: Arc<WorkerCounters>,
    ) -> Result<Self, ForwarderError> {
        let needed = Self::region_size(config.flows, config.ipv6_flows);
        if memory.len() < needed {
            return Err(ForwarderError::Memory { given: memory.len(), needed });
        }
        let [a, b, c, d] = config.secret;
        let (flows, rest) = memory.split_at_mut(flow_region(config.flows, config.ipv6_flows));
        let (insertions, ports) = rest.split_at_mut(insertion_region(config.flows));
        let capacity = port_capacity(config.flows, config.ipv6_flows);
        let mut snat = PortAllocator::create(ports, capacity, [a ^ d, b ^ c.rotate_left(32)])?;
        snat.set_owned(owned_blocks(&ownership, config.worker));
        let table = FlowTable::create(flows, config.flows, config.ipv6_flows, config.secret)?;
        let ways = Ways::new(table.address_words());
        let mut forwarder = Self {
            worker: config.worker,
            workers: config.workers.max(1),
            table,
            half_open: HalfOpen::new(config.flows, counters.endpoints.len()),
            insertions: InsertionTable::create(insertions, insertion_capacity(config.flows))?,
            snat,
            hops: NextHops::new(c ^ a.rotate_left(7)),
            ways,
            waiting: WaitingRoom::new(),
            fragments: Fragments::new(config.worker, config.workers, [b ^ d.rotate_left(19), a ^ c.rotate_left(45)]),
            answers: FairLimiter::new(ANSWERS_PER_SECOND, ANSWERS_AT_ONCE),
            rests_cut_short: 0,
            ports: config.ports.clone(),
            snapshot,
            ownership,
            shared: Arc::new(SharedState::new(vec![counters.clone()])),
            counters,
            links: Vec::new(),
            slots: vec![SLOT; BURST],
        };
        forwarder.link_up();
        Ok(forwarder)
    }

    /// Handles one burst of at most [`BURST`] frames: writes one verdict for each, changes the frames in place, and may put
    /// frames, neighbour requests and messages into the outbox.
    ///
    /// Received frames, drops and held frames are counted here. The caller counts what it does with the other verdicts:
    /// `forwarded`, `answered`, `punted`, `handed_out`, or the drop when that fails.
    pub fn process(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], outbox: &mut Outbox, now: Now) {
        let count = frames.len().min(verdicts.len()).min(BURST);
        let mut slots = std::mem::take(&mut self.slots);
        self.counters.received.add(count as u64);
        self.counters.bursts.add(1);
        self.look_up(&frames[..count], &mut slots[..count]);
        for ((frame, slot), verdict) in frames.iter_mut().zip(&mut slots[..count]).zip(verdicts) {
            if !self.steady_of_any(frame, slot, verdict, now.tick()) {
                *verdict = self.decide(frame, slot, None, outbox, now);
            }
        }
        self.slots = slots;
    }

    /// Handles one frame that another worker handed over.
    pub fn process_handed(
        &mut self,
        frame: &mut Frame<'_>,
        note: HandoffNote,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        self.counters.handed_in.add(1);
        let mut slot = SLOT;
        self.look_up(std::slice::from_ref(frame), std::slice::from_mut(&mut slot));
        let mut verdict = Verdict::Hold;
        if !self.steady_of_any(frame, &slot, &mut verdict, now.tick()) {
            verdict = self.decide(frame, &mut slot, Some(note), outbox, now);
        }
        verdict
    }

    /// Parses all frames and fetches their buckets, then the records that these lead to: cache misses overlap.
    #[inline(always)]
    fn look_up(&self, frames: &[Frame<'_>], slots: &mut [Slot]) {
        let mut wide = false;
        for (frame, slot) in frames.iter().zip(slots.iter_mut()) {
            if !self.admit_plain(frame, slot, &mut wide) {
                self.admit_other(frame, slot);
            }
        }
        for slot in slots.iter_mut() {
            // Of a frame that is no flow's, some record: which does not matter.
            slot.found = self.table.candidate(slot.place, slot.hash);
            self.table.prefetch_record(slot.found);
        }
        if wide {
            self.prefetch_wide(slots);
        }
    }

    /// A frame that is no plain one.
    #[cold]
    #[inline(never)]
    fn admit_other(&self, frame: &Frame<'_>, slot: &mut Slot) {
        slot.plain = NOT_PLAIN;
        slot.admission = match parse(frame) {
            Ok(parsed) => {
                slot.parsed = parsed;
                self.admit(frame, slot)
            }
            Err(error) => Admission::Refused(error.into()),
        };
    }

    /// A plain packet of a steady flow of either family.
    #[inline(always)]
    fn steady_of_any(&mut self, frame: &mut Frame<'_>, slot: &Slot, verdict: &mut Verdict, tick: u32) -> bool {
        if slot.is_plain() {
            self.steady(frame, slot, verdict, tick)
        } else {
            matches!(slot.admission, Admission::Plain6) && self.steady6(frame, slot, verdict, tick)
        }
    }

    /// The common case of [`Self::admit`]: an untagged, ordinary TCP or UDP frame to the port's own address. `wide` becomes
    /// true if it is one of IPv6.
    #[inline(always)]
    fn admit_plain(&self, frame: &Frame<'_>, slot: &mut Slot, wide: &mut bool) -> bool {
        let Some(head) = frame.head::<PLAIN>() else { return false };
        let Some(link) = self.links.get(usize::from(frame.ingress.0)) else { return false };
        let [a, b, c, d, e, f, g, h, ..] = *head;
        if !link.is_for([a, b, c, d, e, f, g, h]) || frame.vlan != NO_VLAN || frame.offload.segmentation_type != 0 {
            return false;
        }
        let Some(mut key) = parse_plain(head, frame.len()) else {
            return self.admit_plain6(frame, slot, link.attachment, wide);
        };
        key.rest |= link.attachment;
        slot.plain = key;
        slot.hash = self.table.hash(key);
        slot.place = self.table.place(slot.hash);
        self.table.prefetch_bucket(slot.place);
        true
    }

    /// Finds the attachment, checks the destination MAC address and hashes the key.
    #[cold]
    fn admit(&self, frame: &Frame<'_>, slot: &mut Slot) -> Admission {
        let parsed = &mut slot.parsed;
        let Some(link) = self.link(frame.ingress, parsed.vlan) else {
            return Admission::Refused(DropReason::NoAttachment);
        };
        let Some(front) = frame.bytes().first_chunk::<8>() else { return Admission::Refused(DropReason::Truncated) };
        if !link.is_for(*front) && front[0] & 1 == 0 {
            return Admission::Refused(DropReason::ForeignMac);
        }
        parsed.key.rest |= link.attachment;
        if parsed.key.is_wide() {
            self.complete_key(frame, parsed);
        }
        if matches!(parsed.kind, PacketKind::Tcp | PacketKind::Udp) {
            slot.hash = self.table.hash(parsed.key);
            slot.place = self.table.place(slot.hash);
            self.table.prefetch_bucket(slot.place);
            Admission::Flow
        } else {
            Admission::Other
        }
    }

    fn link(&self, ingress: PortIndex, vlan: u16) -> Option<Link> {
        let index = self.snapshot.attachment(ingress, vlan)?;
        let attachment = self.snapshot.attachments.get(usize::from(index.0))?;
        let [a, b, c, d, e, f] = own_mac(attachment, self.ports.get(usize::from(ingress.0))?).0;
        Some(Link { attachment: u64::from(index.0) << 32, mac: u64::from_le_bytes([0, 0, a, b, c, d, e, f]) })
    }

    /// Works out once what every untagged frame of a port has in common.
    fn link_up(&mut self) {
        let links = (0..self.ports.len()).map(|at| self.link(PortIndex(at as u16), 0).unwrap_or(Link::NONE)).collect();
        self.links = links;
        self.hops.refresh(&self.snapshot, &self.ports);
    }

    /// What happens to a frame that is not a plain packet of a steady flow.
    #[cold]
    #[inline(never)]
    pub(crate) fn decide(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &mut Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        if !slot.is_plain() {
            return self.decide_other(frame, slot, note, outbox, now);
        }
        let Some(head) = frame.head() else { return self.refuse(DropReason::Truncated) };
        slot.parsed = plain(head, slot.plain);
        // Looked up only now: an earlier packet of the burst may have made the flow, or ended it.
        slot.found = self.table.candidate(slot.place, slot.hash);
        if !slot.found.is_nothing() {
            slot.found = self.table.find(slot.parsed.key, slot.hash);
        }
        if slot.found.is_nothing() {
            self.first(frame, slot, note, outbox, now)
        } else {
            self.known(frame, slot, note, outbox, now)
        }
    }

    /// The same of a frame that is no plain one of IPv4.
    #[inline(never)]
    fn decide_other(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &mut Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        match slot.admission {
            Admission::Flow => {}
            Admission::Plain6 => {
                let Some(head) = frame.head() else { return self.refuse(DropReason::Truncated) };
                slot.parsed = plain6(head, slot.parsed.key);
            }
            Admission::Other => return self.other(frame, slot, note, outbox, now),
            Admission::Refused(reason) => return self.refuse(reason),
        }
        self.look_up_any(frame, slot);
        if slot.found.is_nothing() {
            self.first_of_any(frame, slot, note, outbox, now)
        } else {
            self.known(frame, slot, note, outbox, now)
        }
    }

    /// Looks a packet of either family up: an earlier packet of the burst may have made the flow, or ended it.
    #[cold]
    fn look_up_any(&self, frame: &Frame<'_>, slot: &mut Slot) {
        let key = slot.parsed.key;
        slot.found = match ipv6::addresses(frame.bytes(), usize::from(slot.parsed.l3)) {
            Some(addresses) if key.is_wide() => self.table.find_wide(key, slot.hash, addresses),
            _ => self.table.find(key, slot.hash),
        };
    }

    #[cold]
    fn other(
        &mut self,
        frame: &mut Frame<'_>,
        slot: &Slot,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        match slot.parsed.kind {
            PacketKind::Arp => Verdict::Punt,
            PacketKind::Icmp => self.icmp(frame, &slot.parsed, outbox, now),
            PacketKind::NeighbourDiscovery => self.neighbour_discovery(frame, &slot.parsed),
            PacketKind::Icmpv6 => self.icmpv6(frame, &slot.parsed, outbox, now),
            PacketKind::Fragment => self.fragment(frame, &slot.parsed, note, outbox, now),
            _ => self.refuse_of_any(frame, &slot.parsed, DropReason::Protocol),
        }
    }

    /// Counts a drop whose endpoint is not known.
    #[cold]
    pub(crate) fn refuse(&self, reason: DropReason) -> Verdict {
        self.counters.count_drop(reason, 1);
        Verdict::Drop(reason)
    }

    /// Counts a drop under an endpoint.
    #[cold]
    pub(crate) fn refuse_for(&self, endpoint: u32, reason: DropReason) -> Verdict {
        self.counters.count_endpoint_drop(endpoint, reason);
        Verdict::Drop(reason)
    }

    /// Does a bounded slice of what is due: expires flows, ends rests, gives up on neighbours. True if more is due now.
    pub fn housekeeping(&mut self, outbox: &mut Outbox, now: Now) -> bool {
        let mut budget = SLICE;
        while let Some(index) = self.table.next_expired(now.milliseconds(), &mut budget) {
            if !self.expire(index, outbox, now) {
                break;
            }
        }
        let more_ports = self.snat.advance(now, SLICE);
        let cut_short = self.snat.statistics().rests_cut_short;
        self.counters.rests_cut_short.add(cut_short - std::mem::replace(&mut self.rests_cut_short, cut_short));
        if !self.waiting.is_empty() {
            self.retry_waiting(outbox, now);
        }
        self.tend_fragments(outbox, now);
        if self.insertions.live() > 0 {
            self.retry_headers(outbox, now);
        }
        more_ports || self.table.is_due(now.milliseconds())
    }

    /// Takes a new snapshot and returns the old one, which the publisher frees. No flow is walked: each is judged again
    /// by its next packet if its endpoint's policy epoch has moved.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let old = std::mem::replace(&mut self.snapshot, snapshot);
        self.ways.forget();
        // Most changes share them.
        if !Arc::ptr_eq(&old.attachments, &self.snapshot.attachments) && old.attachments != self.snapshot.attachments {
            self.link_up();
        }
        old
    }

    /// Holds the limits of endpoints together with the other workers of the gateway, and sends clients where they have sent
    /// them. Without it each worker does that alone.
    pub fn share(&mut self, shared: Arc<SharedState>) {
        self.shared = shared;
    }

    /// Learns MACs, MTUs and states of the ports, by index.
    pub fn set_ports(&mut self, ports: &[PortInfo]) {
        self.ports.clear();
        self.ports.extend_from_slice(ports);
        self.link_up();
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.counters
    }
}

/// Room for a port of every flow.
fn port_capacity(flows: u32, ipv6_flows: u32) -> PortCapacity {
    PortCapacity::for_flows(flows.saturating_add(ipv6_flows))
}

/// Bytes of the region that hold the flow table.
fn flow_region(flows: u32, ipv6_flows: u32) -> usize {
    FlowTable::region_size(flows, ipv6_flows).next_multiple_of(64)
}

/// Flows into whose stream the forwarder puts a header at once: each is one for a round trip or two. A 128th of all, and in a
/// small table up to a quarter.
const fn insertion_capacity(flows: u32) -> u32 {
    let few = if flows / 4 < 4096 { flows / 4 } else { 4096 };
    if flows / 128 > few { flows / 128 } else { few }
}

fn insertion_region(flows: u32) -> usize {
    InsertionTable::region_size(insertion_capacity(flows)).next_multiple_of(64)
}

/// The blocks of ports that a worker owns, as the allocator takes them.
fn owned_blocks(ownership: &Ownership, worker: WorkerIndex) -> [u64; 8] {
    let mut owned = [0; 8];
    for (block, owner) in ownership.blocks.iter().enumerate() {
        if *owner == worker.0 {
            owned[block / 64] |= 1 << (block % 64);
        }
    }
    owned
}

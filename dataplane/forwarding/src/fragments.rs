//! Fragments (RFC 791 §3.2, RFC 8200 §4.5): the first decides for all of its datagram, and each is translated by itself, without putting the
//! datagram together. What comes before the first waits, within bounds of memory and time.
//!
//! All fragments of a datagram meet at one worker, which gathers them: it sees to it that no two overlap, so that nothing
//! that was decided by the first can be changed by another (RFC 1858, RFC 3128). The first may belong to a flow that lives at
//! another worker: it goes there, and the others follow it.

mod hold;
mod table;

use postern_measurement::Now;
use postern_steering::Ownership;
use postern_tables::snapshot::LocalAddress;
use postern_translation::fragments::{Identifications, Seen, identify, identify6};
use postern_translation::icmp::return_to_source;
use postern_translation::icmpv6::return_to_source6;
use postern_wire::frame::HEADROOM;
use postern_wire::ipv6::AddressPair;
use postern_wire::parse::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{
    AttachmentIndex, FlowKey, Fragment, Frame, PacketKind, Parsed, fragment, icmp, icmpv6, ipv4, ipv6, parse,
};

use crate::forwarder::{Forwarder, Slot};
use crate::ipv6::first::folded;
use crate::outbox::{Origin, Outbox};
use crate::verdict::{DropReason, HandoffNote, Verdict, WorkerIndex};
use hold::{HoldingRoom, NoRoom};
use table::{Course, DatagramKey, Datagrams, mapped};

/// A fragment that contradicts what came so many milliseconds before is of another datagram with the same identification, and
/// no copy that took another way: after 65,536 datagrams a sender begins again.
const REUSE: u64 = 1_000;
/// Places of the table that one slice of housekeeping looks at.
const SLICE: u32 = 256;

/// What one worker knows and holds of fragmented datagrams: about 11 MB, taken once.
#[derive(Debug)]
pub(crate) struct Fragments {
    datagrams: Datagrams,
    room: HoldingRoom,
    identifications: Identifications,
    /// Room for one frame that is taken out.
    buffer: Box<[u8]>,
    /// Whether fragments whose first is known are still held, because there was no room in the outbox.
    backlog: bool,
}

impl Fragments {
    pub(crate) fn new(worker: WorkerIndex, workers: u16, secret: [u64; 2]) -> Self {
        let [first, second] = secret;
        Self {
            datagrams: Datagrams::new([first.rotate_left(11), second.rotate_left(3)]),
            room: HoldingRoom::new(),
            identifications: Identifications::new(worker.0, workers, [second, first]),
            buffer: vec![0; HEADROOM + crate::outbox::BUFFER].into_boxed_slice(),
            backlog: false,
        }
    }

    /// Room for one frame, to be given back. Whoever is lent it twice gets none.
    pub(crate) fn lend_buffer(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.buffer)
    }

    pub(crate) fn return_buffer(&mut self, buffer: Box<[u8]>) {
        self.buffer = buffer;
    }

    /// The identification of a datagram that is going to leave in fragments with these addresses.
    pub(crate) fn next_identification(&mut self, to: FlowKey) -> u16 {
        self.identifications.next(mapped(to.source()), mapped(to.destination()), to.protocol())
    }
}

/// Whether an IPv4 packet is a fragment, the first included.
#[inline]
pub(crate) fn is_fragment(frame: &Frame<'_>, parsed: &Parsed) -> bool {
    flags_and_offset(frame, parsed) & 0x3fff != 0
}

/// Whether an IPv6 packet is a fragment, the first included.
pub(crate) fn is_fragment6(frame: &Frame<'_>, parsed: &Parsed) -> bool {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    // Without extension headers there is none for fragments.
    l4 > l3 + ipv6::HEADER
        && frame
            .bytes()
            .get(l3..l4)
            .and_then(|headers| ipv6::upper(headers).ok()?.fragment)
            .is_some_and(|header| !header.is_atomic())
}

/// Whether an IPv4 packet may be cut: DF is clear.
pub(crate) fn may_be_cut(frame: &Frame<'_>, parsed: &Parsed) -> bool {
    flags_and_offset(frame, parsed) & 0x4000 == 0
}

#[inline]
fn flags_and_offset(frame: &Frame<'_>, parsed: &Parsed) -> u16 {
    let at = usize::from(parsed.l3) + ipv4::FRAGMENT;
    let field = frame.bytes().get(at..at + 2).and_then(<[u8]>::first_chunk::<2>);
    field.map_or(0x4000, |field| u16::from_be_bytes(*field))
}

/// The worker at which all fragments of a datagram meet, as steering has it.
fn gatherer(ownership: &Ownership, frame: &Frame<'_>, parsed: &Parsed, identification: u32) -> WorkerIndex {
    let key = parsed.key;
    let addresses = ipv6::addresses(frame.bytes(), usize::from(parsed.l3)).filter(|_| key.is_wide());
    WorkerIndex(match addresses {
        Some(addresses) => {
            let named = FlowKey { rest: key.rest & !0xffff_ffff | u64::from(identification.swap_bytes()), ..key };
            ownership.of_flow(folded(addresses, named))
        }
        None => {
            let identification = u32::from((identification as u16).swap_bytes());
            let ports = identification | u32::from(parsed.vlan) << 16;
            ownership.of_flow(FlowKey::from_wire(AttachmentIndex(0), key.protocol(), key.addresses, ports))
        }
    })
}

impl Forwarder<'_> {
    /// A fragment of any datagram.
    #[cold]
    #[inline(never)]
    pub(crate) fn fragment(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let icmp = if parsed.key.is_wide() { PROTOCOL_ICMPV6 } else { PROTOCOL_ICMP };
        let nameless = DatagramKey::of(frame, parsed, 0);
        let Some(nameless) = nameless.filter(|key| key.local(&self.snapshot).is_some()) else {
            return self.refuse(DropReason::NotLocal);
        };
        if ![PROTOCOL_TCP, PROTOCOL_UDP, icmp].contains(&parsed.key.protocol()) {
            return self.refuse_of_any(frame, parsed, DropReason::Protocol);
        }
        // Nobody can complete a sum over bytes that are not there.
        if frame.offload.is_partial() {
            return self.refuse_of_any(frame, parsed, DropReason::Offload);
        }
        let Ok(fragment) = Fragment::read(frame, parsed) else {
            return self.refuse_of_any(frame, parsed, DropReason::FragmentHeader);
        };
        let gathers = match note {
            None => {
                let gatherer = gatherer(&self.ownership, frame, parsed, fragment.identification);
                if gatherer != self.worker && gatherer.0 < self.workers {
                    return Verdict::Handoff(gatherer, HandoffNote::Gather);
                }
                true
            }
            Some(HandoffNote::Gather) => true,
            Some(_) => false,
        };
        let note = note.filter(|note| *note != HandoffNote::Gather);
        let key = DatagramKey { identification: fragment.identification, ..nameless };
        let Some(at) = self.datagram(&key, gathers || fragment.is_first(), now) else {
            return self.refuse_of_any(frame, parsed, DropReason::FragmentRefused);
        };
        if let Err(reason) = self.see(at, &fragment, gathers, now) {
            return self.refuse_of_any(frame, parsed, reason);
        }
        let verdict = if fragment.is_first() {
            let verdict = self.first_fragment(frame, parsed, at, note, outbox, now);
            self.release(at, outbox, now);
            verdict
        } else if gathers && self.fragments.datagrams.at(at).course == Course::Unknown {
            self.hold(frame, parsed, at)
        } else {
            self.later_fragment(frame, parsed, at, outbox, now)
        };
        self.settle(at);
        verdict
    }

    /// The datagram that a fragment is of, new if need be and `may_begin`.
    fn datagram(&mut self, key: &DatagramKey, may_begin: bool, now: Now) -> Option<u16> {
        if let Some(at) = self.fragments.datagrams.find(key) {
            if self.fragments.datagrams.at(at).is_stale(now) {
                self.forget(at, DropReason::FragmentTimeout);
                self.fragments.datagrams.at_mut(at).begin_again(now);
            }
            return Some(at);
        }
        if !may_begin {
            return None;
        }
        if let Some(other) = self.fragments.datagrams.in_the_way(key, now) {
            self.forget(other, DropReason::FragmentFull);
            self.fragments.datagrams.remove(other);
        }
        self.fragments.datagrams.add(*key, now)
    }

    /// Compares a fragment with those before it.
    fn see(&mut self, at: u16, fragment: &Fragment, gathers: bool, now: Now) -> Result<(), DropReason> {
        let datagram = self.fragments.datagrams.at_mut(at);
        let mut seen = match datagram.course {
            Course::Overlapping => Seen::Conflict,
            _ => datagram.coverage.add(fragment),
        };
        let idle = now.milliseconds() > datagram.latest.milliseconds() + REUSE;
        if matches!(seen, Seen::Duplicate | Seen::Conflict) && idle && (gathers || fragment.is_first()) {
            self.forget(at, DropReason::FragmentTimeout);
            let datagram = self.fragments.datagrams.at_mut(at);
            datagram.begin_again(now);
            seen = datagram.coverage.add(fragment);
        }
        let datagram = self.fragments.datagrams.at_mut(at);
        let reason = match seen {
            Seen::New => {
                datagram.latest = now;
                return Ok(());
            }
            Seen::Duplicate => return Err(DropReason::FragmentDuplicate),
            Seen::Conflict => DropReason::FragmentOverlap,
            Seen::TooMany => DropReason::FragmentFull,
        };
        datagram.latest = now;
        datagram.course = Course::Overlapping;
        self.forget(at, reason);
        Err(reason)
    }

    /// The fragment that holds the transport header: what becomes of it becomes of the others.
    fn first_fragment(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        at: u16,
        note: Option<HandoffNote>,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let (key, verdict) = match fragment::first(frame, parsed) {
            Err(_) => (parsed.key, self.refuse_of_any(frame, parsed, DropReason::FragmentHeader)),
            Ok(first) if matches!(first.kind, PacketKind::Icmp | PacketKind::Icmpv6) => {
                let kind = frame.bytes().get(usize::from(first.l4)).copied();
                let verdict = if first.kind == PacketKind::Icmp && kind == Some(icmp::ECHO_REQUEST) {
                    self.icmp(frame, &first, outbox, now)
                } else if first.kind == PacketKind::Icmpv6 && kind == Some(icmpv6::ECHO_REQUEST) {
                    self.icmpv6(frame, &first, outbox, now)
                } else {
                    self.refuse_of_any(frame, parsed, DropReason::IcmpType)
                };
                (first.key, verdict)
            }
            Ok(first) => {
                let hash = self.table.hash(first.key);
                let mut slot = Slot::of_flow(first, hash, self.table.place(hash));
                (first.key, self.decide(frame, &mut slot, note, outbox, now))
            }
        };
        self.fragments.datagrams.at_mut(at).course = match verdict {
            Verdict::Forward(_) | Verdict::Hold => Course::Flow(key),
            Verdict::Reply(_) => Course::Echo,
            Verdict::Handoff(to, _) => Course::Elsewhere(to),
            Verdict::Punt | Verdict::Probe | Verdict::Drop(_) => Course::Refused,
        };
        verdict
    }

    /// A fragment without ports, whose first has decided.
    fn later_fragment(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        at: u16,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        match self.fragments.datagrams.at(at).course {
            Course::Flow(key) => self.follow(frame, parsed, key, outbox, now),
            Course::Elsewhere(to) => Verdict::Handoff(to, HandoffNote::Owned),
            Course::Echo => {
                frame.truncate(parsed.end as usize);
                if parsed.key.is_wide() {
                    return_to_source6(frame, parsed);
                } else {
                    return_to_source(frame, parsed);
                }
                match self.turn_around(frame, parsed) {
                    Some(port) => Verdict::Reply(port),
                    None => self.refuse_of_any(frame, parsed, DropReason::NoAttachment),
                }
            }
            Course::Overlapping => self.refuse_of_any(frame, parsed, DropReason::FragmentOverlap),
            Course::Unknown | Course::Refused => self.refuse_of_any(frame, parsed, DropReason::FragmentRefused),
        }
    }

    /// Sends a fragment the way of its datagram's flow, which the first has just gone.
    fn follow(
        &mut self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        key: FlowKey,
        outbox: &mut Outbox,
        now: Now,
    ) -> Verdict {
        let found = match ipv6::addresses(frame.bytes(), usize::from(parsed.l3)) {
            Some(addresses) if key.is_wide() => self.table.find_wide(key, self.table.hash(key), addresses),
            _ => self.table.find_key(key),
        };
        if found.is_nothing() {
            return self.refuse_of_any(frame, parsed, DropReason::FragmentRefused);
        }
        let record = self.table.record(found.index());
        match self.snapshot.policies.get(record.endpoint as usize) {
            Some(policy) if policy.epoch == record.policy_epoch && !record.is_expired(now.tick()) => {
                let mtu = policy.mtu;
                self.forward(frame, parsed, found.index(), found.is_reverse(), mtu, outbox, now)
            }
            _ => self.refuse_of_any(frame, parsed, DropReason::FragmentRefused),
        }
    }

    /// Keeps a fragment until the first of its datagram comes. Whoever holds most gives way.
    fn hold(&mut self, frame: &Frame<'_>, parsed: &Parsed, at: u16) -> Verdict {
        loop {
            let Fragments { datagrams, room, .. } = &mut self.fragments;
            let datagram = datagrams.at_mut(at);
            let set = datagram.set();
            let full = match room.keep(&mut datagram.held, set, frame) {
                Ok(()) => {
                    self.counters.held.add(1);
                    return Verdict::Hold;
                }
                Err(NoRoom::Share) => datagrams.oldest_held(set, at),
                Err(NoRoom::Memory) => datagrams.oldest_held(room.fullest(), at),
                Err(NoRoom::Length) => None,
            };
            let Some(other) = full else { return self.refuse_of_any(frame, parsed, DropReason::FragmentFull) };
            self.forget(other, DropReason::FragmentFull);
            self.fragments.datagrams.remove(other);
        }
    }

    /// Sends held fragments after the first of their datagram, or drops them, as far as there is room in the outbox.
    fn release(&mut self, at: u16, outbox: &mut Outbox, now: Now) {
        let mut buffer = self.fragments.lend_buffer();
        loop {
            let Fragments { datagrams, room, backlog, .. } = &mut self.fragments;
            let datagram = datagrams.at_mut(at);
            if datagram.held.is_empty() || datagram.course == Course::Unknown {
                break;
            }
            if outbox.room() == 0 {
                *backlog = true;
                break;
            }
            let (set, key) = (datagram.set(), datagram.key);
            let Some(taken) = room.take(&mut datagram.held, set, &mut buffer[HEADROOM..]) else { break };
            self.counters.held.subtract(1);
            let Some(mut frame) = Frame::new(&mut buffer, HEADROOM, taken.length) else { break };
            (frame.ingress, frame.vlan) = (taken.ingress, taken.vlan);
            let verdict = match parse(&frame) {
                Ok(mut parsed) => {
                    parsed.key = parsed.key.on(key.attachment);
                    if parsed.key.is_wide() {
                        self.complete_key(&frame, &mut parsed);
                    }
                    self.later_fragment(&mut frame, &parsed, at, outbox, now)
                }
                Err(error) => self.refuse(error.into()),
            };
            match verdict {
                Verdict::Forward(port) | Verdict::Reply(port) => {
                    let bytes = frame.bytes();
                    outbox.push(port, Origin::Held, frame.offload, bytes.len(), |room| {
                        room.copy_from_slice(bytes);
                        bytes.len()
                    });
                }
                Verdict::Handoff(to, note) => outbox.hand_over(to, note, &frame),
                Verdict::Hold | Verdict::Drop(_) | Verdict::Punt | Verdict::Probe => {}
            }
        }
        self.fragments.return_buffer(buffer);
    }

    /// Drops what is held of a datagram.
    fn forget(&mut self, at: u16, reason: DropReason) {
        let Fragments { datagrams, room, .. } = &mut self.fragments;
        let datagram = datagrams.at_mut(at);
        let set = datagram.set();
        let frames = room.discard(&mut datagram.held, set);
        if frames == 0 {
            return;
        }
        self.counters.held.subtract(frames);
        let local = datagram.key.local(&self.snapshot);
        for _ in 0..frames {
            match local {
                Some(LocalAddress::Endpoint(index)) => self.refuse_for(index.0, reason),
                _ => self.refuse(reason),
            };
        }
    }

    /// A datagram of which everything has come and gone is over.
    fn settle(&mut self, at: u16) {
        let datagram = self.fragments.datagrams.at(at);
        let decided = !matches!(datagram.course, Course::Unknown | Course::Overlapping);
        if decided && datagram.coverage.is_complete() && datagram.held.is_empty() {
            self.fragments.datagrams.remove(at);
        }
    }

    /// Gives an IPv4 packet that leaves in fragments, with these addresses, an identification that no other has; all fragments
    /// of a datagram get the same.
    pub(crate) fn identify(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, to: FlowKey) {
        let new = if is_fragment(frame, parsed) {
            self.identification(frame, parsed, |all| u32::from(all.next_identification(to))) as u16
        } else {
            self.fragments.next_identification(to)
        };
        identify(frame.bytes_mut(), usize::from(parsed.l3), new);
    }

    /// The same for an IPv6 packet before it is translated, if it is a fragment.
    pub(crate) fn identify_wide(&mut self, frame: &mut Frame<'_>, parsed: &Parsed, addresses: &AddressPair) {
        let (source, destination) = (ipv6::source(addresses).to_bits(), ipv6::destination(addresses).to_bits());
        let protocol = parsed.key.protocol();
        let new =
            self.identification(frame, parsed, |all| all.identifications.next_wide(source, destination, protocol));
        identify6(frame.bytes_mut(), usize::from(parsed.l3), new);
    }

    /// The identification with which a fragment's datagram leaves: that of the first, which is made by `next`.
    pub(crate) fn identification(
        &mut self,
        frame: &Frame<'_>,
        parsed: &Parsed,
        next: impl FnOnce(&mut Fragments) -> u32,
    ) -> u32 {
        let old = Fragment::read(frame, parsed).map_or(0, |fragment| fragment.identification);
        let key = DatagramKey::of(frame, parsed, old);
        let datagram = key.and_then(|key| self.fragments.datagrams.find(&key));
        let known = datagram.and_then(|at| self.fragments.datagrams.at(at).identification);
        let new = known.unwrap_or_else(|| next(&mut self.fragments));
        if let Some(at) = datagram {
            self.fragments.datagrams.at_mut(at).identification = Some(new);
        }
        new
    }

    /// Housekeeping: sends what found no room, gives up what has waited for too long.
    pub(crate) fn tend_fragments(&mut self, outbox: &mut Outbox, now: Now) {
        if self.fragments.datagrams.is_empty() {
            return;
        }
        if std::mem::take(&mut self.fragments.backlog) {
            for at in self.fragments.datagrams.positions() {
                self.release(at, outbox, now);
                self.settle(at);
            }
        }
        let mut budget = SLICE;
        while let Some(at) = self.fragments.datagrams.next_stale(&mut budget, now) {
            self.forget(at, DropReason::FragmentTimeout);
            self.fragments.datagrams.remove(at);
        }
    }
}

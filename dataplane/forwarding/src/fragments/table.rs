//! Datagrams of which fragments have come and others are still to come: a table of fixed size, in which every source has its
//! place, so that one who sends half datagrams only pushes out its own.

use std::net::Ipv6Addr;

use postern_measurement::Now;
use postern_tables::Snapshot;
use postern_tables::snapshot::LocalAddress;
use postern_translation::fragments::Coverage;
use postern_wire::{AttachmentIndex, FlowKey, Frame, Parsed, ipv6};

use crate::verdict::WorkerIndex;

/// Places that sources share, by a keyed hash.
const SETS: usize = 128;
/// Datagrams of one place.
const WAYS: usize = 32;
/// No datagram.
const NONE: u16 = u16::MAX;
/// For how long fragments wait for the first of their datagram, in milliseconds.
const PATIENCE: u64 = 5_000;
/// For how long the rest of a datagram is waited for behind its first fragment, in milliseconds (RFC 791 §3.2).
const LIFE: u64 = 15_000;

/// Which datagram a fragment is of. IPv4 addresses are mapped (::ffff:a.b.c.d).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DatagramKey {
    pub(crate) source: u128,
    pub(crate) destination: u128,
    pub(crate) identification: u32,
    pub(crate) attachment: AttachmentIndex,
    pub(crate) protocol: u8,
}

/// An IPv4 address as the table has it.
pub(crate) const fn mapped(address: std::net::Ipv4Addr) -> u128 {
    0xffff_0000_0000 | address.to_bits() as u128
}

impl DatagramKey {
    /// That of a parsed fragment.
    pub(crate) fn of(frame: &Frame<'_>, parsed: &Parsed, identification: u32) -> Option<Self> {
        let (source, destination) = if parsed.key.is_wide() {
            let addresses = ipv6::addresses(frame.bytes(), usize::from(parsed.l3))?;
            (ipv6::source(addresses).to_bits(), ipv6::destination(addresses).to_bits())
        } else {
            (mapped(parsed.key.source()), mapped(parsed.key.destination()))
        };
        let (attachment, protocol) = (parsed.key.attachment(), parsed.key.protocol());
        Some(Self { source, destination, identification, attachment, protocol })
    }

    /// What its destination is to the gateway.
    pub(crate) fn local(&self, snapshot: &Snapshot) -> Option<LocalAddress> {
        match Ipv6Addr::from_bits(self.destination).to_ipv4_mapped() {
            Some(address) => snapshot.local(self.attachment, address),
            None => snapshot.local6(self.attachment, Ipv6Addr::from_bits(self.destination)),
        }
    }
}

/// What becomes of a datagram's fragments, as its first has decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Course {
    /// The first has not come.
    Unknown,
    /// They belong to this flow, which lives here.
    Flow(FlowKey),
    /// They follow the first to another worker.
    Elsewhere(WorkerIndex),
    /// They are of an echo request, and are sent back.
    Echo,
    /// The first was dropped, and they are too.
    Refused,
    /// Two of them overlap: none goes on.
    Overlapping,
}

/// One datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    pub(crate) key: DatagramKey,
    pub(crate) course: Course,
    pub(crate) coverage: Coverage,
    /// The identification with which it leaves, once the first fragment has been translated.
    pub(crate) identification: Option<u32>,
    /// When its first fragment to come, and its last so far, came.
    since: Now,
    pub(crate) latest: Now,
    /// Its held fragments, see [`super::hold`].
    pub(crate) held: super::hold::List,
    set: u16,
}

impl Datagram {
    fn new(key: DatagramKey, set: usize, now: Now) -> Self {
        Self {
            key,
            course: Course::Unknown,
            coverage: Coverage::new(),
            identification: None,
            since: now,
            latest: now,
            held: super::hold::List::EMPTY,
            set: set as u16,
        }
    }

    /// Whether its time is over.
    pub(crate) fn is_stale(&self, now: Now) -> bool {
        let most = if self.course == Course::Unknown { PATIENCE } else { LIFE };
        now.milliseconds() > self.since.milliseconds() + most
    }

    /// The place of its source, for fairness among sources.
    pub(crate) const fn set(&self) -> usize {
        self.set as usize
    }

    /// What is begun again must not meet what came before: everything about it is forgotten.
    pub(crate) fn begin_again(&mut self, now: Now) {
        *self = Self { held: self.held, ..Self::new(self.key, self.set(), now) };
    }
}

/// The table. A datagram is named by its position, which stays until it is removed.
#[derive(Debug)]
pub(crate) struct Datagrams {
    /// By set: number of the datagram and part of its hash.
    ways: Box<[[(u16, u16); WAYS]]>,
    datagrams: Vec<Datagram>,
    free: Vec<u16>,
    secret: [u64; 2],
    hand: usize,
}

impl Datagrams {
    /// Most datagrams at once.
    pub(crate) const CAPACITY: usize = SETS * WAYS;
    /// Sources are told apart by so many places.
    pub(crate) const SETS: usize = SETS;

    pub(crate) fn new(secret: [u64; 2]) -> Self {
        Self {
            ways: vec![[(NONE, 0); WAYS]; SETS].into_boxed_slice(),
            datagrams: Vec::with_capacity(Self::CAPACITY),
            free: Vec::with_capacity(Self::CAPACITY),
            secret,
            hand: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.datagrams.len()
    }

    pub(crate) fn find(&self, key: &DatagramKey) -> Option<u16> {
        let (set, tag) = self.place(key);
        let mut found = self.ways[set].iter().filter(|way| way.0 != NONE && way.1 == tag).map(|way| way.0);
        found.find(|at| self.datagrams[usize::from(*at)].key == *key)
    }

    pub(crate) fn at(&self, at: u16) -> &Datagram {
        &self.datagrams[usize::from(at)]
    }

    pub(crate) fn at_mut(&mut self, at: u16) -> &mut Datagram {
        &mut self.datagrams[usize::from(at)]
    }

    /// Who gives way when the source's place is full: what is stale, then the oldest whose first fragment is missing, then the
    /// oldest. `None` if there is room.
    pub(crate) fn in_the_way(&self, key: &DatagramKey, now: Now) -> Option<u16> {
        let ways = &self.ways[self.place(key).0];
        if ways.iter().any(|way| way.0 == NONE) {
            return None;
        }
        let rank = |at: &u16| {
            let datagram = self.at(*at);
            let known = datagram.course != Course::Unknown;
            (!datagram.is_stale(now), known, datagram.latest.milliseconds())
        };
        ways.iter().map(|way| way.0).min_by_key(rank)
    }

    /// The oldest datagram of a set whose first fragment is missing, but for `except`.
    pub(crate) fn oldest_held(&self, set: usize, except: u16) -> Option<u16> {
        let held = self.ways[set].iter().map(|way| way.0).filter(|at| {
            *at != NONE && *at != except && self.at(*at).course == Course::Unknown && !self.at(*at).held.is_empty()
        });
        held.min_by_key(|at| self.at(*at).since.milliseconds())
    }

    /// Adds a datagram; `None` if there is no room, which [`Self::in_the_way`] tells before.
    pub(crate) fn add(&mut self, key: DatagramKey, now: Now) -> Option<u16> {
        let (set, tag) = self.place(&key);
        let way = self.ways[set].iter_mut().find(|way| way.0 == NONE)?;
        let datagram = Datagram::new(key, set, now);
        let at = match self.free.pop() {
            Some(at) => {
                self.datagrams[usize::from(at)] = datagram;
                at
            }
            None => {
                self.datagrams.push(datagram);
                (self.datagrams.len() - 1) as u16
            }
        };
        *way = (at, tag);
        Some(at)
    }

    /// Removes a datagram that holds nothing any more.
    pub(crate) fn remove(&mut self, at: u16) {
        let set = self.at(at).set();
        if let Some(way) = self.ways[set].iter_mut().find(|way| way.0 == at) {
            *way = (NONE, 0);
            self.free.push(at);
        }
    }

    /// The next of at most `budget` places whose datagram is stale.
    pub(crate) fn next_stale(&mut self, budget: &mut u32, now: Now) -> Option<u16> {
        while *budget > 0 {
            *budget -= 1;
            self.hand = (self.hand + 1) % Self::CAPACITY;
            let (at, _) = self.ways[self.hand / WAYS][self.hand % WAYS];
            if at != NONE && self.at(at).is_stale(now) {
                return Some(at);
            }
        }
        None
    }

    /// Every position that a datagram has or had. What was removed holds nothing.
    pub(crate) fn positions(&self) -> std::ops::Range<u16> {
        0..self.datagrams.len() as u16
    }

    /// Set and tag of a key.
    fn place(&self, key: &DatagramKey) -> (usize, u16) {
        let [first, second] = self.secret;
        let source = mix(key.source as u64 ^ first, (key.source >> 64) as u64 ^ second);
        let source = mix(source ^ u64::from(key.attachment.0), second.rotate_left(31));
        let rest = mix(key.destination as u64 ^ source, (key.destination >> 64) as u64 ^ first);
        let rest = mix(rest ^ u64::from(key.identification), first ^ u64::from(key.protocol));
        ((source >> 57) as usize % SETS, (rest >> 40) as u16)
    }
}

/// A folded multiplication.
const fn mix(a: u64, b: u64) -> u64 {
    let product = (a ^ 0x9e37_79b9_7f4a_7c15) as u128 * ((b | 1) ^ 0xd6e8_feb8_6659_fd92) as u128;
    product as u64 ^ (product >> 64) as u64
}

//! What is known of each neighbour, and when to ask again.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use postern_measurement::Now;
use postern_wire::{AttachmentIndex, MacAddress};

/// Questions before a neighbour counts as gone.
pub(super) const TRIES: u8 = 3;
/// Between two questions, in milliseconds.
pub(super) const RETRY: u64 = 1000;
/// Between two questions to a station whose place another claims, in milliseconds.
pub(super) const SUSPICIOUS_RETRY: u64 = 250;
/// How long an answer is good for, in milliseconds. Then the station is asked again, and used meanwhile.
pub(super) const REACHABLE: u64 = 30_000;
/// After an answer, how long claims of other stations are no reason to ask again, in milliseconds.
pub(super) const TRUSTED: u64 = 1000;
/// Most known neighbours of one attachment.
pub(super) const MOST_KNOWN: usize = 4096;
/// Most neighbours of one attachment that are being looked for.
pub(super) const MOST_UNRESOLVED: usize = 512;

/// Attachment and address of a neighbour.
pub(super) type Key = (AttachmentIndex, IpAddr);

/// Whom to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    /// By broadcast.
    Everyone,
    /// The station that we know.
    Known(MacAddress),
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Send a request.
    Ask(Ask),
    /// Tell the workers.
    Tell(Option<MacAddress>),
    /// The table is full.
    Refuse,
    /// Nothing.
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Asked by broadcast; the first answer wins. `old` is used meanwhile, where there is one.
    Resolving { tries: u8, old: Option<MacAddress> },
    /// Answered lately, at the time given.
    Reachable { mac: MacAddress, since: Now },
    /// Used, and asked by unicast.
    Probing { mac: MacAddress, tries: u8, retry: u64 },
}

impl State {
    const fn mac(self) -> Option<MacAddress> {
        match self {
            Self::Resolving { old, .. } => old,
            Self::Reachable { mac, .. } | Self::Probing { mac, .. } => Some(mac),
        }
    }
}

#[derive(Debug)]
struct Entry {
    state: State,
    due: Now,
}

#[derive(Debug, Default)]
struct Population {
    known: usize,
    unresolved: usize,
}

/// The table, bounded by attachment so that no tenant can fill another's part.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: HashMap<Key, Entry>,
    timers: BTreeSet<(Now, Key)>,
    populations: HashMap<AttachmentIndex, Population>,
    changed: bool,
}

impl Entries {
    /// A worker needs this neighbour.
    pub(super) fn request(&mut self, key: Key, now: Now) -> Step {
        if let Some(entry) = self.entries.get(&key) {
            return entry.state.mac().map_or(Step::Nothing, |mac| Step::Tell(Some(mac)));
        }
        let population = self.populations.entry(key.0).or_default();
        if population.unresolved >= MOST_UNRESOLVED || population.known >= MOST_KNOWN {
            return Step::Refuse;
        }
        self.set(key, State::Resolving { tries: 1, old: None }, now.plus_milliseconds(RETRY));
        Step::Ask(Ask::Everyone)
    }

    /// An answer to a question of ours; false if it is not one, or another station's. [`Entries::take_changed`] tells
    /// whether the workers must hear of it.
    pub(super) fn answer(&mut self, key: Key, mac: MacAddress, now: Now) -> bool {
        let Some(entry) = self.entries.get(&key) else {
            return false;
        };
        let old = entry.state.mac();
        let accepted = match entry.state {
            State::Resolving { .. } => true,
            State::Probing { mac: known, .. } | State::Reachable { mac: known, .. } => known == mac,
        };
        if accepted {
            self.changed = old != Some(mac);
            self.set(key, State::Reachable { mac, since: now }, now.plus_milliseconds(REACHABLE));
        }
        accepted
    }

    /// Whether the last answer changed a MAC address.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A station with `mac` speaks as this neighbour without having been asked.
    pub(super) fn suspect(&mut self, key: Key, mac: MacAddress, now: Now) -> Step {
        match self.entries.get(&key).map(|entry| entry.state) {
            Some(State::Reachable { mac: known, since }) if known != mac && now >= since.plus_milliseconds(TRUSTED) => {
                let state = State::Probing { mac: known, tries: 1, retry: SUSPICIOUS_RETRY };
                self.set(key, state, now.plus_milliseconds(SUSPICIOUS_RETRY));
                Step::Ask(Ask::Known(known))
            }
            _ => Step::Nothing,
        }
    }

    /// Asks the stations of these neighbours again as soon as may be, because they may have gone; they are used meanwhile.
    pub(super) fn verify(&mut self, which: impl Fn(&Key) -> bool, now: Now) {
        let known = self.known().filter(|(key, _)| which(key)).collect::<Vec<_>>();
        for (key, mac) in known {
            self.set(key, State::Probing { mac, tries: 0, retry: SUSPICIOUS_RETRY }, now);
        }
    }

    /// The next entry whose time has come, and what is to be done about it.
    pub(super) fn due(&mut self, now: Now) -> Option<(Key, Step)> {
        let (due, key) = *self.timers.first()?;
        if due > now {
            return None;
        }
        let state = self.entries.get(&key)?.state;
        let step = match state {
            State::Reachable { mac, .. } => {
                self.set(key, State::Probing { mac, tries: 1, retry: RETRY }, now.plus_milliseconds(RETRY));
                Step::Ask(Ask::Known(mac))
            }
            State::Probing { mac, tries, retry } if tries < TRIES => {
                self.set(key, State::Probing { mac, tries: tries + 1, retry }, now.plus_milliseconds(retry));
                Step::Ask(Ask::Known(mac))
            }
            State::Probing { mac, .. } => {
                let state = State::Resolving { tries: 1, old: Some(mac) };
                self.set(key, state, now.plus_milliseconds(RETRY));
                Step::Ask(Ask::Everyone)
            }
            State::Resolving { tries, old } if tries < TRIES => {
                self.set(key, State::Resolving { tries: tries + 1, old }, now.plus_milliseconds(RETRY));
                Step::Ask(Ask::Everyone)
            }
            State::Resolving { .. } => {
                self.remove(key);
                Step::Tell(None)
            }
        };
        Some((key, step))
    }

    /// When the next entry is due.
    pub(super) fn next_due(&self) -> Option<Now> {
        self.timers.first().map(|timer| timer.0)
    }

    /// Removes the entries that `which` names and returns them.
    pub(super) fn forget(&mut self, which: impl Fn(&Key) -> bool) -> Vec<Key> {
        let gone: Vec<Key> = self.entries.keys().copied().filter(|key| which(key)).collect();
        for key in &gone {
            self.remove(*key);
        }
        gone
    }

    /// Every neighbour that is in use.
    pub(super) fn known(&self) -> impl Iterator<Item = (Key, MacAddress)> + '_ {
        self.entries.iter().filter_map(|(key, entry)| Some((*key, entry.state.mac()?)))
    }

    /// The station of a neighbour, if it is known.
    pub(super) fn mac(&self, key: Key) -> Option<MacAddress> {
        self.entries.get(&key)?.state.mac()
    }

    /// How many are being looked for.
    pub(super) fn unresolved(&self) -> usize {
        self.populations.values().map(|population| population.unresolved).sum()
    }

    fn set(&mut self, key: Key, state: State, due: Now) {
        self.remove(key);
        self.count(key, state, 1);
        self.timers.insert((due, key));
        self.entries.insert(key, Entry { state, due });
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.timers.remove(&(entry.due, key));
            self.count(key, entry.state, -1);
        }
    }

    fn count(&mut self, key: Key, state: State, by: isize) {
        let population = self.populations.entry(key.0).or_default();
        let field = if state.mac().is_some() { &mut population.known } else { &mut population.unresolved };
        *field = field.wrapping_add_signed(by);
    }
}

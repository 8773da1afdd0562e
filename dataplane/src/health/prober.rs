//! All probes of a gateway: which target is asked when, and what its answers mean for flows. No clock, no thread and no
//! socket: time, packets and tables go in; packets, views and changes of usage come out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use postern_measurement::Now;
use postern_tables::health::{HealthSettings, PROBE_PORTS};
use postern_tables::snapshot::{TargetIndex, VpcIndex};
use postern_tables::{Snapshot, Usable};
use postern_wire::ipv6;

use super::connection::Connection;
use super::exchange::{Outcome, Tls};
use super::state::Health;
use super::summary::{GroupHealth, ProbeCounters};
use crate::control_link::target_views::TargetHealth;

/// Most connections at a time; what is due beyond that waits.
const MOST_CONNECTIONS: usize = 4096;
/// How long a probe waits for a place among them, in milliseconds.
const WAIT: u64 = 50;
/// New targets are first asked within this time, in milliseconds, and one more for each of them.
const FIRST_PROBES: u64 = 250;

/// Group, address and port of a target.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct TargetKey {
    pub(super) group: Arc<str>,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// A probe's connection: its VPC, the SNAT address and port, the target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct ConnectionKey {
    vpc: VpcIndex,
    local: SocketAddr,
    target: SocketAddr,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// The next probe of a target begins.
    Probe(TargetKey),
    /// A drain of a target ends.
    Drain(TargetKey),
    /// A connection has something to do.
    Connection(ConnectionKey),
}

/// What is to be seen of a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TargetView {
    pub(super) state: TargetHealth,
    /// Why it is not healthy; empty where it is.
    pub(super) reason: String,
}

/// What the prober wants done. The caller empties it after each call.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// IP packets to send in a VPC.
    pub(super) packets: Vec<(VpcIndex, Vec<u8>)>,
    /// What flows may do with targets from now on.
    pub(super) usages: Vec<(TargetKey, Usable)>,
    /// What is to be seen of targets; `None`: nothing any more.
    pub(super) views: Vec<(TargetKey, Option<TargetView>)>,
}

struct Target {
    settings: Arc<HealthSettings>,
    health: Health,
    vpc: VpcIndex,
    /// The SNAT address that probes come from.
    source: Option<IpAddr>,
    index: TargetIndex,
    /// Which life of this group, address and port it is.
    incarnation: u32,
    weighted: bool,
    /// Why the last probe failed.
    reason: String,
    /// What the tables were told, if they were.
    usage: Option<Usable>,
    /// When the next probe begins.
    next_probe: Option<Now>,
    /// How many probes there were.
    probes: u64,
    drain_timer: Option<Now>,
    /// Counts up through the ports of probes.
    port: u16,
    /// Flows that it had got when they were counted last.
    flows: u64,
}

#[derive(Debug, Default)]
struct Group {
    members: Vec<TargetKey>,
    fails_open: bool,
    unhealthy_routing_flows: u64,
}

/// All probes of a gateway.
pub(super) struct Prober {
    tls: Tls,
    random: u64,
    targets: HashMap<TargetKey, Target>,
    groups: HashMap<Arc<str>, Group>,
    connections: HashMap<ConnectionKey, (Connection, TargetKey, Now)>,
    timers: BTreeSet<(Now, Timer)>,
    counters: ProbeCounters,
}

impl Prober {
    /// Knows no target yet. `seed` comes from the system's random source.
    pub(super) fn new(tls: Tls, seed: u64) -> Self {
        Self {
            tls,
            random: seed,
            targets: HashMap::new(),
            groups: HashMap::new(),
            connections: HashMap::new(),
            timers: BTreeSet::new(),
            counters: ProbeCounters::default(),
        }
    }

    /// Takes new tables: targets that are new, changed or gone.
    pub(super) fn apply(&mut self, snapshot: &Snapshot, now: Now, output: &mut Output) {
        let used: HashSet<_> = snapshot
            .listeners
            .iter()
            .flatten()
            .flat_map(|listener| listener.groups6.iter().map(|(_, group)| group.at()))
            .collect();
        let old = std::mem::take(&mut self.groups);
        let mut fresh = Vec::new();
        let groups = snapshot.target_groups.iter().enumerate();
        for (at, group) in groups.filter_map(|(at, group)| Some((at, group?))) {
            let name = group.name.clone();
            let source = snapshot.pools.get(group.pool.at()).and_then(|pool| pool.first_address(group.family));
            let mut members = Vec::with_capacity(group.members.len());
            for (index, member) in group.members.iter().filter_map(|index| Some((*index, snapshot.target(*index)?))) {
                let key = TargetKey { group: name.clone(), address: member.address, port: member.port };
                let port = (splitmix(&mut self.random) % 128) as u16;
                let target = self.targets.entry(key.clone()).or_insert_with(|| Target::new(port));
                if target.incarnation != member.incarnation {
                    // Taken out and put in again, maybe between two looks: it is new, as it is to the tables.
                    target.begin_again(member.incarnation);
                }
                target.settings = group.health.clone();
                (target.vpc, target.index, target.weighted) = (member.vpc, index, member.weight > 0);
                target.source = source;
                target.health.declare(group.health.check.is_some() && source.is_some(), used.contains(&at));
                target.update_reason();
                if target.is_probed() && target.next_probe.is_none() {
                    fresh.push(key.clone());
                }
                members.push(key);
            }
            let before = old.get(&name);
            let group = Group {
                members,
                fails_open: before.is_some_and(|before| before.fails_open),
                unhealthy_routing_flows: before.map_or(0, |before| before.unhealthy_routing_flows),
            };
            self.groups.insert(name, group);
        }
        self.deregister_missing(now, output);
        self.schedule_first(fresh, now);
        let names: Vec<_> = self.groups.keys().cloned().collect();
        for name in names {
            self.judge(&name, output);
        }
        let all: Vec<_> = self.targets.keys().cloned().collect();
        for key in all {
            self.show(&key, output);
        }
    }

    /// Takes an IP packet that came for a port of probes, its checksums right.
    pub(super) fn receive(&mut self, vpc: VpcIndex, packet: &[u8], now: Now, output: &mut Output) {
        let key = connection_of(vpc, packet).filter(|key| self.connections.contains_key(key));
        let Some(key) = key else {
            self.counters.stray += 1;
            return;
        };
        self.counters.received += 1;
        if let Some((connection, ..)) = self.connections.get_mut(&key) {
            connection.receive(packet);
        }
        self.serve(key, now, output);
    }

    /// Does what is due.
    pub(super) fn pass(&mut self, now: Now, output: &mut Output) {
        while let Some((due, _)) = self.timers.first()
            && *due <= now
            && let Some((due, timer)) = self.timers.pop_first()
        {
            match timer {
                Timer::Probe(key) => self.begin(&key, due, now, output),
                Timer::Drain(key) => self.end_drain(&key, now, output),
                Timer::Connection(key) => self.serve(key, now, output),
            }
        }
    }

    /// When [`Self::pass`] has something to do.
    pub(super) fn next_due(&self) -> Option<Now> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Counts flows that began while their group failed open; `flows` tells how many a target has got so far.
    pub(super) fn count_flows(&mut self, flows: impl Fn(TargetIndex) -> u64) {
        for group in self.groups.values_mut() {
            for key in &group.members {
                let Some(target) = self.targets.get_mut(key) else { continue };
                let now = flows(target.index);
                let began = now.saturating_sub(std::mem::replace(&mut target.flows, now));
                if group.fails_open && target.settings.check.is_some() {
                    group.unhealthy_routing_flows += began;
                }
            }
        }
    }

    /// What is to be seen of the groups.
    pub(super) fn groups(&self) -> Vec<GroupHealth> {
        let mut groups: BTreeMap<&str, GroupHealth> = BTreeMap::new();
        for (key, target) in &self.targets {
            let health = groups.entry(&key.group).or_default();
            let state = target.health.state();
            *health.targets.entry(state.name().to_owned()).or_default() += 1;
            match state {
                TargetHealth::Healthy => health.healthy += 1,
                TargetHealth::Unhealthy | TargetHealth::UnhealthyDraining => health.unhealthy += 1,
                _ => {}
            }
        }
        let finish = |(name, mut health): (&str, GroupHealth)| {
            name.clone_into(&mut health.target_group);
            if let Some(group) = self.groups.get(name) {
                (health.fails_open, health.unhealthy_routing_flows) = (group.fails_open, group.unhealthy_routing_flows);
            }
            health
        };
        groups.into_iter().map(finish).collect()
    }

    pub(super) const fn counters(&self) -> ProbeCounters {
        self.counters
    }

    /// Packets were lost on their way in or out.
    pub(super) const fn count_lost(&mut self, packets: u64) {
        self.counters.lost += packets;
    }

    /// A packet came whose checksum is wrong.
    pub(super) const fn count_stray(&mut self) {
        self.counters.stray += 1;
    }

    /// Targets that are in no group any more drain, or are forgotten.
    fn deregister_missing(&mut self, now: Now, output: &mut Output) {
        let there: HashSet<&TargetKey> = self.groups.values().flat_map(|group| &group.members).collect();
        let missing: Vec<TargetKey> = self
            .targets
            .iter()
            .filter(|(key, target)| !there.contains(key) && target.health.state() != TargetHealth::Draining)
            .map(|(key, _)| key.clone())
            .collect();
        for key in missing {
            if let Some(target) = self.targets.get_mut(&key) {
                let settings = target.settings.clone();
                target.health.deregister(&settings, now);
                target.update_reason();
                target.next_probe = None;
                // The tables do not know it any more.
                target.usage = None;
            }
            self.set_drain_timer(&key);
            // A delay of nothing is over.
            if self.targets.get(&key).is_some_and(|target| target.settings.deregistration_delay_seconds == 0) {
                self.end_drain(&key, now, output);
            }
        }
    }

    /// The first probes of new targets: soon, but not at once.
    fn schedule_first(&mut self, fresh: Vec<TargetKey>, now: Now) {
        let within = FIRST_PROBES + fresh.len() as u64;
        for key in fresh {
            let delay = splitmix(&mut self.random) % within;
            self.schedule(&key, now.plus_milliseconds(delay));
        }
    }

    fn schedule(&mut self, key: &TargetKey, at: Now) {
        if let Some(target) = self.targets.get_mut(key) {
            target.next_probe = Some(at);
            self.timers.insert((at, Timer::Probe(key.clone())));
        }
    }

    /// Begins a probe.
    fn begin(&mut self, key: &TargetKey, due: Now, now: Now, output: &mut Output) {
        let Some(target) = self.targets.get_mut(key) else { return };
        if target.next_probe != Some(due) {
            // An old timer.
            return;
        }
        let settings = target.settings.clone();
        let (Some(check), Some(source), true) = (&settings.check, target.source, target.is_probed()) else {
            target.next_probe = None;
            return;
        };
        if self.connections.len() >= MOST_CONNECTIONS {
            self.counters.late += 1;
            self.schedule(key, now.plus_milliseconds(WAIT));
            return;
        }
        let to = SocketAddr::new(key.address, check.port.unwrap_or(key.port));
        let ports = PROBE_PORTS.end() - PROBE_PORTS.start() + 1;
        let free = (0..ports).find_map(|_| {
            target.port = (target.port + 1) % ports;
            let local = SocketAddr::new(source, PROBE_PORTS.start() + target.port);
            let connection = ConnectionKey { vpc: target.vpc, local, target: to };
            (!self.connections.contains_key(&connection)).then_some(connection)
        });
        let interval = u64::from(check.interval_seconds) * 1000;
        // The second probe comes at any time within the interval: from there on probes are spread over it.
        let pause = if target.probes == 0 { 1000 + splitmix(&mut self.random) % (interval - 1000) } else { interval };
        target.probes += 1;
        let next = Now::from_milliseconds((due.milliseconds() + pause).max(now.milliseconds() + pause / 2));
        let opened = free.map(|connection| {
            let seed = splitmix(&mut self.random);
            (connection, Connection::open(check, connection.local, to, &self.tls, seed, now))
        });
        self.schedule(key, next);
        match opened {
            // More than a hundred probes of one target on their way at a time: this one is left out.
            None => self.counters.late += 1,
            Some((_, Err(failure))) => self.probed(key, Err(failure), now, output),
            Some((at, Ok(connection))) => {
                self.connections.insert(at, (connection, key.clone(), now));
                self.serve(at, now, output);
            }
        }
    }

    /// Lets a connection do what it can.
    fn serve(&mut self, at: ConnectionKey, now: Now, output: &mut Output) {
        let Some((connection, key, due)) = self.connections.get_mut(&at) else { return };
        let mut packets = Vec::new();
        let outcome = connection.pass(now, &mut packets);
        let over = connection.is_over();
        let key = key.clone();
        self.timers.remove(&(*due, Timer::Connection(at)));
        if !over {
            *due = connection.next_due(now).max(now.plus_milliseconds(1));
            self.timers.insert((*due, Timer::Connection(at)));
        }
        self.counters.sent += packets.len() as u64;
        output.packets.extend(packets.into_iter().map(|packet| (at.vpc, packet)));
        if over {
            self.connections.remove(&at);
        }
        if let Some(outcome) = outcome {
            self.probed(&key, outcome, now, output);
        }
    }

    /// Takes the outcome of a probe.
    fn probed(&mut self, key: &TargetKey, outcome: Outcome, now: Now, output: &mut Output) {
        *if outcome.is_ok() { &mut self.counters.passed } else { &mut self.counters.failed } += 1;
        let Some(target) = self.targets.get_mut(key).filter(|target| target.is_probed()) else { return };
        let settings = target.settings.clone();
        let before = target.health.state();
        target.health.probed(outcome.is_ok(), &settings, now);
        let after = target.health.state();
        let reason = match outcome {
            Err(failure) => failure.to_string(),
            Ok(()) if after == TargetHealth::Healthy => String::new(),
            Ok(()) => "answers again, but not often enough yet".to_owned(),
        };
        let shown = before != after || target.reason != reason;
        target.reason = reason;
        if before != after {
            self.set_drain_timer(key);
            self.judge(&key.group, output);
        }
        if shown {
            self.show(key, output);
        }
    }

    fn set_drain_timer(&mut self, key: &TargetKey) {
        let Some(target) = self.targets.get_mut(key) else { return };
        let ends = target.health.ends();
        if ends != target.drain_timer {
            target.drain_timer = ends;
            if let Some(ends) = ends {
                self.timers.insert((ends, Timer::Drain(key.clone())));
            }
        }
    }

    fn end_drain(&mut self, key: &TargetKey, now: Now, output: &mut Output) {
        let Some(target) = self.targets.get_mut(key) else { return };
        if target.health.pass_time(now) {
            if target.settings.deregistration_ends_flows {
                output.usages.push((key.clone(), Usable::CutFlows));
            }
            self.targets.remove(key);
            output.views.push((key.clone(), None));
            return;
        }
        self.set_drain_timer(key);
        self.judge(&key.group, output);
        self.show(key, output);
    }

    /// Works out what flows may do with each target of a group.
    fn judge(&mut self, name: &str, output: &mut Output) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let known = |key: &TargetKey| self.targets.get(key).filter(|target| target.weighted);
        let states = || group.members.iter().filter_map(known).map(|target| target.health.state());
        group.fails_open = states().next().is_some() && !states().any(TargetHealth::is_usable);
        for key in &group.members {
            let Some(target) = self.targets.get_mut(key) else { continue };
            let state = target.health.state();
            let usage = if group.fails_open || state.is_usable() {
                Usable::Usable
            } else if state.cuts_flows() {
                Usable::CutFlows
            } else {
                Usable::NoNewFlows
            };
            if target.usage.replace(usage) != Some(usage) {
                output.usages.push((key.clone(), usage));
            }
        }
    }

    fn show(&self, key: &TargetKey, output: &mut Output) {
        let Some(target) = self.targets.get(key) else { return };
        let view = TargetView { state: target.health.state(), reason: target.reason.clone() };
        output.views.push((key.clone(), Some(view)));
    }
}

impl Target {
    fn new(port: u16) -> Self {
        Self {
            settings: Arc::default(),
            health: Health::new(),
            vpc: VpcIndex(0),
            source: None,
            index: TargetIndex(0),
            incarnation: 0,
            weighted: false,
            reason: String::new(),
            usage: None,
            next_probe: None,
            probes: 0,
            drain_timer: None,
            port,
            flows: 0,
        }
    }

    /// Nothing that was known of it holds any more.
    fn begin_again(&mut self, incarnation: u32) {
        self.incarnation = incarnation;
        self.health = Health::new();
        self.reason.clear();
        self.usage = None;
        self.next_probe = None;
        self.probes = 0;
    }

    /// Whether probes say something about it.
    const fn is_probed(&self) -> bool {
        use TargetHealth::{Healthy, Initial, Unhealthy, UnhealthyDraining};
        matches!(self.health.state(), Initial | Healthy | Unhealthy | UnhealthyDraining)
    }

    /// Says why no probe decides.
    fn update_reason(&mut self) {
        let reason = match self.health.state() {
            TargetHealth::Unused => "no listener sends flows to its group",
            TargetHealth::Unavailable if self.settings.check.is_some() => "its group's SNAT pool has no address",
            TargetHealth::Unavailable => "its group has no health check",
            TargetHealth::Draining => "taken out of its group",
            TargetHealth::Initial => "not probed yet",
            _ => return,
        };
        if !(self.health.state() == TargetHealth::Initial && self.probes > 0) {
            reason.clone_into(&mut self.reason);
        }
    }
}

/// The connection that a target's packet belongs to.
fn connection_of(vpc: VpcIndex, packet: &[u8]) -> Option<ConnectionKey> {
    let (header, addresses): (usize, [IpAddr; 2]) = match packet.first()? >> 4 {
        6 => {
            let addresses = ipv6::addresses(packet, 0)?;
            let ends = [ipv6::source(addresses), ipv6::destination(addresses)];
            (ipv6::upper(packet).ok()?.at, ends.map(IpAddr::V6))
        }
        _ => {
            let address = |at: usize| packet.get(at..)?.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
            (usize::from(packet.first()? & 0x0f) * 4, [address(12)?, address(16)?])
        }
    };
    let port = |at: usize| packet.get(header + at..)?.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes));
    let target = SocketAddr::new(addresses[0], port(0)?);
    let local = SocketAddr::new(addresses[1], port(2)?);
    Some(ConnectionKey { vpc, local, target })
}

/// SplitMix64: numbers that spread timers and make sequence numbers hard to guess for who does not know the seed.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests;

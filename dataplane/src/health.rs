//! Health checks: each gateway asks the targets itself, and its own view decides its own flows.
//!
//! A thread of its own runs the [`prober`](self), which has a small network stack for each probe. Its packets leave as the
//! control-side thread's own frames, from an SNAT address and a port that no flow ever has; the workers pass the answers on
//! by their ports. Nothing of it is on the packet path, and nothing of it is in the kernel.

mod connection;
mod egress;
mod exchange;
mod prober;
mod state;
mod summary;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use postern_measurement::Now;
use postern_tables::snapshot::{TargetIndex, VpcIndex};
use postern_tables::{Snapshot, Usable};
use postern_wire::checksum::{fold, pseudo_header, pseudo_header_v6, sum};
use postern_wire::parse::PROTOCOL_TCP;
use postern_wire::{Frame, Offload, PacketKind, ipv6, parse};
use tracing::{error, info};

use crate::control_link::target_views::{self as views, TargetHealth, TargetViews};
use crate::link::Shared;
use crate::wake::Wake;
use exchange::Tls;
use prober::{Output, Prober, TargetKey, TargetView};

pub(crate) use connection::MTU_V6 as LONGEST_PROBE;
pub use egress::ProbeEgress;
pub use summary::{GroupHealth, ProbeCounters};

/// Packets of probes that may wait for the control-side thread.
const PACKETS: usize = 4096;
/// Answers of one worker taken in a turn.
const ANSWERS: usize = 128;
/// How often flows are counted and groups are published, in milliseconds.
const PUBLISH: u64 = 500;
/// Pause before a thread that panicked goes on.
const PAUSE: Duration = Duration::from_secs(1);

/// Why no health check can be made.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// TLS cannot be set up.
    #[error("cannot set up TLS for health checks: {0}")]
    Tls(#[from] rustls::Error),
    /// The thread cannot be started.
    #[error("cannot start the thread of health checks: {0}")]
    Thread(#[from] io::Error),
}

/// Group, address and port of a target.
pub type TargetName = (String, IpAddr, u16);

/// A packet of a probe on its way out.
#[derive(Debug)]
pub struct ProbePacket {
    /// The VPC of its target.
    pub vpc: VpcIndex,
    /// The IP packet.
    pub bytes: Vec<u8>,
}

/// What the health thread shares with the others.
#[derive(Debug)]
pub struct HealthLink {
    /// Wakes the health thread.
    pub wake: Wake,
    /// Packets to be sent, for the control-side thread.
    pub packets: ArrayQueue<ProbePacket>,
    /// What is seen of the targets.
    pub views: Arc<TargetViews>,
    summary: Mutex<(Vec<GroupHealth>, ProbeCounters)>,
    news: Mutex<HealthNews>,
    stop: AtomicBool,
}

impl HealthLink {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            wake: Wake::new()?,
            packets: ArrayQueue::new(PACKETS),
            views: Arc::default(),
            summary: Mutex::default(),
            news: Mutex::default(),
            stop: AtomicBool::new(false),
        })
    }

    /// What is seen of the groups, and what the probes counted; as of the last half second.
    #[must_use]
    pub fn summary(&self) -> (Vec<GroupHealth>, ProbeCounters) {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what the tables have not been told yet; `None`: nothing.
    #[must_use]
    pub fn take_news(&self) -> Option<HealthNews> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = news.usages.is_empty() && news.views.is_empty();
        (!empty).then(|| std::mem::take(&mut *news))
    }

    /// Whether there is something that the tables have not been told.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        !(news.usages.is_empty() && news.views.is_empty())
    }

    /// Shows what is seen of targets.
    fn show(&self, views: ShownViews) {
        for (target, view) in views {
            let Some(view) = view else {
                self.views.remove(&target);
                continue;
            };
            if matches!(view.health, TargetHealth::Unhealthy | TargetHealth::UnhealthyDraining) {
                let (state, reason) = (view.health.name(), &view.reason);
                info!(group = target.group, address = %target.address, port = target.port, "{state}: {reason}");
            }
            self.views.set(target, view);
        }
    }
}

/// What is to be seen of targets, in the order in which it came to be; `None`: nothing any more.
type ShownViews = Vec<(views::TargetKey, Option<views::TargetView>)>;

/// What became of targets. It is shown when workers forward by it: until then somebody who looks could see a target that is
/// healthy and gets no flows.
#[derive(Debug, Default)]
pub struct HealthNews {
    /// What flows may do with targets.
    usages: BTreeMap<TargetName, Usable>,
    views: ShownViews,
}

impl HealthNews {
    /// What flows may do with targets, as [`postern_tables::Tables::set_health`] wants it.
    #[must_use]
    pub fn usages(&self) -> Vec<(String, IpAddr, u16, Usable)> {
        let usages = self.usages.iter();
        usages.map(|((group, address, port), usable)| (group.clone(), *address, *port, *usable)).collect()
    }

    /// Shows it: every worker forwards by it.
    pub fn show(self, link: &HealthLink) {
        link.show(self.views);
    }
}

/// The thread that makes the health checks; ends when it is dropped.
#[derive(Debug)]
pub struct HealthThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl HealthThread {
    /// Starts it. `seed` comes from the system's random source.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub fn start(shared: &Arc<Shared>, seed: u64) -> Result<Self, HealthError> {
        let tls = Tls::new()?;
        let thread = thread::Builder::new().name("health".to_owned()).spawn({
            let shared = shared.clone();
            move || live(&shared, &tls, seed)
        })?;
        Ok(Self { shared: shared.clone(), thread: Some(thread) })
    }
}

impl Drop for HealthThread {
    fn drop(&mut self) {
        self.shared.health.stop.store(true, Ordering::SeqCst);
        self.shared.health.wake.wake();
        if let Some(thread) = self.thread.take() {
            // Panics were caught and logged in the thread.
            let _ = thread.join();
        }
    }
}

/// The life of the thread: a panic costs what is known of the targets, and no more.
fn live(shared: &Shared, tls: &Tls, seed: u64) {
    let mut lives = 0;
    while !shared.health.stop.load(Ordering::SeqCst) {
        let prober = Prober::new(tls.clone(), seed.wrapping_add(lives));
        let mut keeper = Keeper { shared, prober, output: Output::default(), published_at: Now::default() };
        if catch_unwind(AssertUnwindSafe(|| keeper.run())).is_err() {
            error!("the health checks panicked; every target counts as new");
            lives += 1;
            thread::sleep(PAUSE);
        }
    }
}

/// One life of the thread.
struct Keeper<'s> {
    shared: &'s Shared,
    prober: Prober,
    output: Output,
    published_at: Now,
}

impl Keeper<'_> {
    fn run(&mut self) {
        let link = &self.shared.health;
        let mut version = 0;
        let mut snapshot = Arc::new(Snapshot::default());
        while !link.stop.load(Ordering::SeqCst) {
            let now = self.shared.clock.now();
            if self.shared.tables.version() != version {
                version = self.shared.tables.version();
                let before = std::mem::replace(&mut snapshot, self.shared.tables.load());
                if concerns_targets(&before, &snapshot) {
                    self.prober.apply(&snapshot, now, &mut self.output);
                }
            }
            self.take_answers(&snapshot, now);
            self.prober.pass(now, &mut self.output);
            self.emit();
            if now.milliseconds() >= self.published_at.milliseconds() + PUBLISH {
                self.publish(now);
            }
            link.wake.about_to_sleep();
            let idle = self.shared.links.iter().all(|link| link.probed.is_empty())
                && self.shared.tables.version() == version
                && !link.stop.load(Ordering::SeqCst);
            if idle {
                let due = self.prober.next_due().map_or(u64::MAX, Now::milliseconds);
                let wait = due.saturating_sub(now.milliseconds()).clamp(1, PUBLISH);
                link.wake.sleep([], Duration::from_millis(wait));
            }
            link.wake.awake();
        }
    }

    fn take_answers(&mut self, snapshot: &Snapshot, now: Now) {
        for link in &self.shared.links {
            for mut handed in (0..ANSWERS).map_while(|_| link.probed.pop()) {
                match handed.frame().and_then(|(frame, _)| answer(snapshot, &frame)) {
                    Some((vpc, packet)) => self.prober.receive(vpc, &packet, now, &mut self.output),
                    None => self.prober.count_stray(),
                }
                link.probed.done(handed);
            }
        }
    }

    /// Passes on what the prober wants done.
    fn emit(&mut self) {
        let link = &self.shared.health;
        let mut wake = false;
        for (vpc, bytes) in self.output.packets.drain(..) {
            wake = true;
            if link.packets.push(ProbePacket { vpc, bytes }).is_err() {
                self.prober.count_lost(1);
            }
        }
        if !self.output.usages.is_empty() || !self.output.views.is_empty() {
            wake = true;
            // The summary follows at once.
            self.published_at = Now::default();
            let mut news = link.news.lock().unwrap_or_else(PoisonError::into_inner);
            news.usages.extend(self.output.usages.drain(..).map(|(key, usage)| (name(&key), usage)));
            news.views.extend(self.output.views.drain(..).map(|(key, view)| {
                let target = views::TargetKey { group: key.group.to_string(), address: key.address, port: key.port };
                let view = view.map(|TargetView { state, reason }| views::TargetView { health: state, reason });
                (target, view)
            }));
        }
        if wake {
            self.shared.control.wake();
        }
    }

    fn publish(&mut self, now: Now) {
        self.published_at = now;
        let links = &self.shared.links;
        let flows = |target: TargetIndex| {
            let counters = links.iter().filter_map(|link| link.counters.targets.get(target.at()));
            counters.map(|counters| counters.flows_new.get()).sum()
        };
        self.prober.count_flows(flows);
        let summary = (self.prober.groups(), self.prober.counters());
        *self.shared.health.summary.lock().unwrap_or_else(PoisonError::into_inner) = summary;
    }
}

/// Whether a change of the tables can concern any target: most are about endpoints only.
fn concerns_targets(before: &Snapshot, after: &Snapshot) -> bool {
    !(after.targets.is_shared_with(&before.targets)
        && after.target_groups.is_shared_with(&before.target_groups)
        && after.listeners.is_shared_with(&before.listeners)
        && Arc::ptr_eq(&after.pools, &before.pools)
        && Arc::ptr_eq(&after.vpcs, &before.vpcs))
}

fn name(key: &TargetKey) -> TargetName {
    (key.group.to_string(), key.address, key.port)
}

/// The VPC and the IP packet of a frame, if it is a whole TCP segment.
fn answer(snapshot: &Snapshot, frame: &Frame<'_>) -> Option<(VpcIndex, Vec<u8>)> {
    let parsed = parse(frame).ok().filter(|parsed| parsed.kind == PacketKind::Tcp)?;
    let attachment = snapshot.attachment(frame.ingress, parsed.vlan)?;
    let vpc = snapshot.attachments.get(usize::from(attachment.0))?.vpc;
    let packet = frame.bytes().get(usize::from(parsed.l3)..parsed.end as usize)?;
    let segment = frame.bytes().get(usize::from(parsed.l4)..parsed.end as usize)?;
    // The sender's checksum, unless its host or a device answers for it.
    let vouched = frame.offload.flags & (Offload::NEEDS_CHECKSUM | Offload::CHECKSUM_VALID) != 0;
    let length = u16::try_from(segment.len()).ok()?;
    let pseudo_header = if parsed.key.is_wide() {
        pseudo_header_v6(ipv6::addresses(packet, 0)?, PROTOCOL_TCP, length)
    } else {
        pseudo_header(u64::from_le_bytes(*packet.get(12..)?.first_chunk::<8>()?), PROTOCOL_TCP, length)
    };
    let right = vouched || fold(sum(segment) + pseudo_header) == u16::MAX;
    right.then(|| (vpc, packet.to_vec()))
}

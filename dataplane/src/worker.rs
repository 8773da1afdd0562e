//! The loop of a worker: frames in, verdicts, frames out, and what is to be done between bursts. Nothing in it allocates,
//! locks or waits while frames flow.

mod dispatch;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postern_forwarding::{Forwarder, PortInfo};
use postern_frame_io::{Burst, DeviceError};
use postern_measurement::Now;

use crate::handoff::HandedFrame;
use crate::link::{FlowSlice, LISTING_SLICE, Shared, WorkerDevices, WorkerLink};
use crate::polling::{Idle, IdlePolicy};
use dispatch::{Dispatch, NO_VERDICTS};

/// Longest sleep: timers are late by no more than this.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// Longest sleep where a device has nothing to sleep on.
const UNPOLLED_SLEEP: Duration = Duration::from_millis(1);
/// Handed frames taken in a step.
const HANDED: usize = 64;
/// Neighbour events taken in a step.
const EVENTS: usize = 64;
/// Messages of one other worker taken in a step.
const MESSAGES: usize = 256;
/// How often device statistics are published, in milliseconds.
const PUBLISH: u64 = 100;

/// A worker: lent devices, a forwarder, and its place among the others.
#[derive(Debug)]
pub struct Worker<'w, 'm> {
    index: usize,
    devices: &'w mut WorkerDevices,
    forwarder: Forwarder<'m>,
    dispatch: Dispatch<'w>,
    shared: &'w Shared,
    link: &'w WorkerLink,
    /// Frames of other workers, and the rings that they came by.
    handed: Vec<(usize, HandedFrame)>,
    port_infos: Vec<PortInfo>,
    ports_version: u64,
    tables_version: u64,
    /// Number of the listing of flows that is being served, and where it goes on.
    listing: (u64, Option<u32>),
    housekeeping_at: Now,
    more_housekeeping: bool,
    published_at: Now,
}

impl<'w, 'm> Worker<'w, 'm> {
    /// Worker `index` of `shared`, with devices in the order of the configuration's ports. `tables_version` is the version
    /// of the tables that the forwarder was made with.
    #[must_use]
    pub fn new(
        index: usize,
        devices: &'w mut WorkerDevices,
        forwarder: Forwarder<'m>,
        shared: &'w Shared,
        tables_version: u64,
    ) -> Self {
        Self {
            index,
            dispatch: Dispatch::new(index, devices.transmit.len(), shared),
            forwarder,
            link: &shared.links[index],
            handed: Vec::with_capacity(HANDED),
            port_infos: Vec::with_capacity(devices.transmit.len()),
            devices,
            ports_version: 0,
            tables_version,
            listing: (0, None),
            housekeeping_at: Now::default(),
            more_housekeeping: false,
            published_at: Now::default(),
            shared,
        }
    }

    /// Forwards until [`Shared::stop`] is set.
    pub fn run(&mut self, mut policy: IdlePolicy) {
        let mut idle_since = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.take_replacements();
            if self.step(self.shared.clock.now()) {
                idle_since = None;
                continue;
            }
            let now = Instant::now();
            match policy.idle(now - *idle_since.get_or_insert(now)) {
                Idle::Spin => std::hint::spin_loop(),
                Idle::Yield => {
                    std::thread::yield_now();
                    policy.yielded(now.elapsed());
                }
                Idle::Sleep => {
                    self.link.wake.about_to_sleep();
                    if !self.has_work() {
                        self.link.loops.sleeps.add(1);
                        if self.sleep() {
                            policy.slept(now.elapsed());
                        }
                    }
                    self.link.wake.awake();
                }
            }
        }
        self.publish(self.shared.clock.now());
    }

    /// Looks once at every port, ring and timer; false if there was nothing to do.
    pub fn step(&mut self, now: Now) -> bool {
        self.link.loops.steps.add(1);
        let mut busy = false;
        for port in 0..self.devices.receive.len() {
            busy |= self.receive(port, now);
        }
        busy |= self.take_handed(now);
        busy |= self.take_events(now);
        self.take_tables();
        self.take_ports();
        if self.more_housekeeping || now != self.housekeeping_at {
            self.housekeeping_at = now;
            self.more_housekeeping = self.forwarder.housekeeping(self.dispatch.outbox(), now);
            self.dispatch.send_outbox(&mut self.devices.transmit);
            busy |= self.more_housekeeping;
        }
        busy |= self.serve_listing(now);
        if now.milliseconds() >= self.published_at.milliseconds() + PUBLISH {
            self.publish(now);
        }
        self.dispatch.wake_others();
        busy
    }

    /// The forwarder.
    #[must_use]
    pub const fn forwarder(&self) -> &Forwarder<'m> {
        &self.forwarder
    }

    fn receive(&mut self, port: usize, now: Now) -> bool {
        let mut burst = Burst::new();
        match self.devices.receive[port].receive(&mut burst) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => {
                if matches!(error, DeviceError::Down(_) | DeviceError::Gone(_)) {
                    self.link.ports[port].lost.store(true, Ordering::Relaxed);
                    self.shared.control.wake();
                }
                return false;
            }
        }
        // What other workers said before these frames came: whose flows they are may depend on it.
        hear(self.shared, self.index, &mut self.forwarder, now);
        let frames = burst.frames_mut();
        let mut verdicts = NO_VERDICTS;
        self.forwarder.process(frames, &mut verdicts, self.dispatch.outbox(), now);
        self.dispatch.dispatch(frames, &verdicts, &mut self.devices.transmit);
        self.dispatch.send_outbox(&mut self.devices.transmit);
        true
    }

    /// Takes messages, then frames, of the other workers.
    fn take_handed(&mut self, now: Now) -> bool {
        let workers = self.shared.links.len();
        let share = HANDED / workers.clamp(2, HANDED);
        let mut heard = hear(self.shared, self.index, &mut self.forwarder, now);
        for from in 0..workers {
            let Some(ring) = self.shared.handoff.ring(from, self.index) else {
                continue;
            };
            let frames = (0..share).map_while(|_| ring.pop());
            self.handed.extend(frames.map(|frame| (from, frame)));
        }
        // A frame may have come behind a message that was not there a moment ago.
        heard |= hear(self.shared, self.index, &mut self.forwarder, now);
        if self.handed.is_empty() {
            return heard;
        }
        let mut burst = Burst::new();
        let mut verdicts = NO_VERDICTS;
        for (_, handed) in &mut self.handed {
            let Some((mut frame, note)) = handed.frame() else {
                continue;
            };
            verdicts[burst.len()] = self.forwarder.process_handed(&mut frame, note, self.dispatch.outbox(), now);
            let pushed = burst.push(frame);
            debug_assert!(pushed.is_ok(), "no more frames are taken than a burst holds");
        }
        self.dispatch.dispatch(burst.frames_mut(), &verdicts, &mut self.devices.transmit);
        self.dispatch.send_outbox(&mut self.devices.transmit);
        for (from, handed) in self.handed.drain(..) {
            if let Some(ring) = self.shared.handoff.ring(from, self.index) {
                ring.done(handed);
            }
        }
        true
    }

    fn take_events(&mut self, now: Now) -> bool {
        let mut any = false;
        for event in (0..EVENTS).map_while(|_| self.link.events.pop()) {
            self.forwarder.neighbour(event, self.dispatch.outbox(), now);
            self.dispatch.send_outbox(&mut self.devices.transmit);
            any = true;
        }
        any
    }

    fn take_tables(&mut self) {
        let version = self.shared.tables.version();
        if version != self.tables_version && !self.link.returned.is_full() {
            self.tables_version = version;
            let begin = Instant::now();
            let snapshot = self.shared.tables.load();
            self.link.loops.generation.set(snapshot.generation.0);
            let old = self.forwarder.apply(snapshot);
            let returned = self.link.returned.push(old);
            debug_assert!(returned.is_ok(), "only this worker fills the ring");
            let longest = &self.link.loops.tables_longest;
            longest.set(longest.get().max(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)));
            self.shared.control.wake();
        }
    }

    fn take_ports(&mut self) {
        let version = self.shared.ports_version.load(Ordering::Acquire);
        if version == self.ports_version {
            return;
        }
        if let Ok(ports) = self.shared.ports.try_lock() {
            self.ports_version = version;
            self.port_infos.clone_from(&ports);
            drop(ports);
            self.forwarder.set_ports(&self.port_infos);
        }
    }

    fn take_replacements(&mut self) {
        while let Some((port, device)) = self.link.replacements.pop() {
            let old = self.devices.replace(port, device);
            // The control-side thread empties the ring; if it is full, the old device is closed here.
            drop(self.link.replaced.push(old));
        }
    }

    /// True if something ended the sleep before its time.
    fn sleep(&self) -> bool {
        let receive = &self.devices.receive;
        let timeout =
            if receive.iter().any(|device| device.poll_fd().is_none()) { UNPOLLED_SLEEP } else { LONGEST_SLEEP };
        self.link.wake.sleep(receive.iter().filter_map(|device| device.poll_fd()), timeout)
    }

    /// Reads one slice of a listing of flows, if one is wanted and its reader keeps up.
    fn serve_listing(&mut self, now: Now) -> bool {
        let wanted = self.link.listing.load(Ordering::Acquire);
        if wanted != self.listing.0 {
            self.listing = (wanted, (wanted != 0).then_some(0));
        }
        let (listing, Some(cursor)) = self.listing else {
            return false;
        };
        let Some(mut views) = self.link.free_slices.pop() else {
            return false;
        };
        views.clear();
        let next = self.forwarder.flows(cursor, LISTING_SLICE, now, &mut views);
        self.listing.1 = next;
        let pushed = self.link.slices.push(FlowSlice { listing, views, last: next.is_none() });
        debug_assert!(pushed.is_ok(), "there are no more slices than places");
        true
    }

    /// Whether another thread left something to do, apart from frames on ports.
    fn has_work(&self) -> bool {
        !self.link.events.is_empty()
            || !self.link.replacements.is_empty()
            || self.shared.handoff.into_worker(self.index).any(|ring| !ring.is_empty())
            || self.shared.stop.load(Ordering::Relaxed)
            || self.shared.tables.version() != self.tables_version
            || self.shared.ports_version.load(Ordering::Acquire) != self.ports_version
            || self.link.listing.load(Ordering::Acquire) != self.listing.0
            || self.listing.1.is_some() && !self.link.free_slices.is_empty()
    }

    fn publish(&mut self, now: Now) {
        self.published_at = now;
        for (port, counters) in self.link.ports.iter().enumerate() {
            let (received, sent) = self.devices.statistics(port);
            counters.publish(&received, &sent);
        }
    }
}

/// Takes messages of the other workers; false if there was none.
#[inline]
fn hear(shared: &Shared, worker: usize, forwarder: &mut Forwarder<'_>, now: Now) -> bool {
    let told = &shared.links[worker].told;
    if !told.load(Ordering::Acquire) {
        return false;
    }
    told.store(false, Ordering::SeqCst);
    for ring in shared.handoff.into_worker(worker) {
        let mut messages = 0;
        while messages < MESSAGES
            && let Some(message) = ring.hear()
        {
            forwarder.peer_message(message, now);
            messages += 1;
        }
        if messages == MESSAGES {
            told.store(true, Ordering::Relaxed);
        }
    }
    true
}

impl Drop for Worker<'_, '_> {
    /// Gives handed frames' buffers back, also when a panic ends this worker.
    fn drop(&mut self) {
        for (from, handed) in self.handed.drain(..) {
            if let Some(ring) = self.shared.handoff.ring(from, self.index) {
                ring.done(handed);
            }
        }
    }
}

#[cfg(test)]
mod tests;

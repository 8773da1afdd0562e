//! Worker threads: started, pinned, and started again after a panic. A thread owns its worker's devices and memory over
//! all its worker's lives, so that a restarted worker closes no socket and loses no frame that waits in a ring.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postern_forwarding::{DropReason, Forwarder, ForwarderConfig, ForwarderError, WorkerCounters, WorkerIndex};
use postern_frame_io::pin::{PinError, pin_to_cpu};
use postern_frame_io::region::{Region, RegionError, RegionOptions};
use postern_steering::Ownership;
use tracing::{error, info};

use crate::link::{Shared, WorkerDevices};
use crate::polling::IdlePolicy;
use crate::worker::Worker;

/// Pause before a worker is started again; doubled while it keeps failing.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause before a worker is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A worker that lived so long has recovered.
const RECOVERED: Duration = Duration::from_secs(10);

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It cannot run on its CPU.
    #[error("worker {worker}: {source}")]
    Pin {
        /// Which worker.
        worker: usize,
        /// Why.
        source: PinError,
    },
    /// There is not enough memory.
    #[error("worker {worker}: {source}; lower workers.flows")]
    Region {
        /// Which worker.
        worker: usize,
        /// Why.
        source: RegionError,
    },
    /// The forwarder cannot be made.
    #[error("worker {worker}: {source}")]
    Forwarder {
        /// Which worker.
        worker: usize,
        /// Why.
        source: ForwarderError,
    },
    /// The thread cannot be started.
    #[error("cannot start the thread of worker {worker}: {source}")]
    Thread {
        /// Which worker.
        worker: usize,
        /// Why.
        source: io::Error,
    },
    /// The thread ended before it had started forwarding.
    #[error("worker {0} ended while it started")]
    Ended(usize),
}

/// What all workers are started with.
#[derive(Clone, Debug)]
pub struct WorkerPlan {
    /// Most live flows of each whose addresses are all IPv4.
    pub flows: u32,
    /// Most live flows of each with an IPv6 side.
    pub ipv6_flows: u32,
    /// The CPU of each; empty: not pinned.
    pub cpus: Vec<usize>,
    /// What they do when there is nothing to do.
    pub policy: IdlePolicy,
    /// Who owns what.
    pub ownership: Arc<Ownership>,
    /// Secret from the system's random source; each worker's is derived from it.
    pub secret: [u64; 4],
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts one worker for each of `devices` and waits until all forward.
    ///
    /// # Errors
    /// Why the first one could not start. None runs then.
    pub fn start(shared: &Arc<Shared>, plan: &WorkerPlan, devices: Vec<WorkerDevices>) -> Result<Self, WorkerError> {
        let mut workers = Self { shared: shared.clone(), threads: Vec::new() };
        let (started, starts) = mpsc::channel();
        let count = devices.len();
        for (worker, devices) in devices.into_iter().enumerate() {
            let (shared, plan, started) = (shared.clone(), plan.clone(), started.clone());
            let thread = thread::Builder::new().name(format!("worker-{worker}"));
            let thread = thread.spawn(move || live(worker, &shared, &plan, devices, &started));
            workers.threads.push(thread.map_err(|source| WorkerError::Thread { worker, source })?);
        }
        drop(started);
        for worker in 0..count {
            starts.recv().unwrap_or(Err(WorkerError::Ended(worker)))?;
        }
        Ok(workers)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for Workers {
    /// Ends the workers and waits for them.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_workers();
        for thread in self.threads.drain(..) {
            // Panics were caught and counted in the thread.
            let _ = thread.join();
        }
    }
}

/// The life of a worker's thread.
fn live(
    worker: usize,
    shared: &Shared,
    plan: &WorkerPlan,
    mut devices: WorkerDevices,
    started: &mpsc::Sender<Result<(), WorkerError>>,
) {
    let pinned = plan.cpus.get(worker).map_or(Ok(()), |cpu| pin_to_cpu(*cpu));
    if let Err(source) = pinned {
        drop(started.send(Err(WorkerError::Pin { worker, source })));
        return;
    }
    let mut first = Some(started);
    let mut pause = FIRST_PAUSE;
    let mut lives = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let born = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| forward(worker, lives, shared, plan, &mut devices, &mut first)));
        match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => match first.take() {
                Some(started) => {
                    drop(started.send(Err(error)));
                    return;
                }
                None => error!("{error}"),
            },
            Err(panic) => {
                error!(worker, "panicked: {}; its flows are lost, and it is started again", message(panic.as_ref()));
            }
        }
        lives += 1;
        shared.links[worker].loops.restarts.add(1);
        settle(&shared.links[worker].counters);
        if born.elapsed() > RECOVERED {
            pause = FIRST_PAUSE;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One life of a worker, with fresh flow memory: what a panic left is not to be trusted.
fn forward(
    worker: usize,
    life: u64,
    shared: &Shared,
    plan: &WorkerPlan,
    devices: &mut WorkerDevices,
    first: &mut Option<&mpsc::Sender<Result<(), WorkerError>>>,
) -> Result<(), WorkerError> {
    let options = RegionOptions { populate: false, huge_pages: true };
    let mut region = Region::anonymous(Forwarder::region_size(plan.flows, plan.ipv6_flows), options)
        .map_err(|source| WorkerError::Region { worker, source })?;
    let [a, b, c, d] = plan.secret;
    // Odd constants, so that no two workers or lives share a key.
    let number = (worker as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ life.wrapping_mul(0xd6e8_feb8_6659_fd93);
    let config = ForwarderConfig {
        worker: WorkerIndex(worker as u16),
        workers: shared.links.len() as u16,
        flows: plan.flows,
        ipv6_flows: plan.ipv6_flows,
        secret: [a ^ number, b.wrapping_add(number), c ^ number.rotate_left(32), d],
        ports: shared.ports.lock().map_or_else(|poisoned| poisoned.into_inner().clone(), |ports| ports.clone()),
    };
    let tables_version = shared.tables.version();
    let link = &shared.links[worker];
    let snapshot = shared.tables.load();
    link.loops.generation.set(snapshot.generation.0);
    let mut forwarder =
        Forwarder::new(&config, region.bytes_mut(), snapshot, plan.ownership.clone(), link.counters.clone())
            .map_err(|source| WorkerError::Forwarder { worker, source })?;
    forwarder.share(shared.limits.clone());
    let mut running = Worker::new(worker, devices, forwarder, shared, tables_version);
    if let Some(started) = first.take() {
        info!(worker, cpu = ?plan.cpus.get(worker), "worker started");
        drop(started.send(Ok(())));
    }
    running.run(plan.policy);
    Ok(())
}

/// Brings the counters in order after a panic: no frame is held and no flow lives any more, and frames that the worker had
/// in its hands are drops.
fn settle(counters: &WorkerCounters) {
    let WorkerCounters { held, flows, half_open, flows_ended, endpoints, targets, .. } = counters;
    flows_ended.add(flows.get());
    for gauge in [held, flows, half_open] {
        gauge.set(0);
    }
    endpoints.iter().for_each(|endpoint| endpoint.flows.set(0));
    targets.iter().for_each(|target| target.flows.set(0));
    let lost = u64::try_from(counters.imbalance()).unwrap_or(0);
    counters.count_drop(DropReason::WorkerRestarted, lost);
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;

//! The gateway's side of the push protocol: a thread of its own connects to control, applies what it sends, keeps it on disk,
//! and reports. A slow or dead control holds up neither workers nor ARP: the thread shares with the control-side thread one
//! bounded channel of tables to be published, and reads what workers count.

pub mod back_off;
pub mod capabilities;
pub mod state_file;
pub mod target_views;
pub mod usage;

mod applier;
mod connection;
mod report;
mod session;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postern_forwarding::WorkerCounters;
use postern_measurement::Counter;
use postern_tables::check::ControlSettings;
use postern_tables::{Change, Checked, Tables};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use applier::Applier;
pub use applier::{AppliedState, Publication};
use back_off::BackOff;
pub use connection::ConnectionError;
use report::StatusReader;
use session::{End, Session, Work};
use state_file::{StateError, StateFile};
use target_views::TargetViews;
use usage::UsageBook;

use crate::inspection::report::ControlStatus;

/// A stream that went on for so long was good.
const GOOD: Duration = Duration::from_secs(10);
/// How long a write to disk may take at the end.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// What a gateway has before it hears of control.
#[derive(Debug)]
pub struct ColdStart {
    /// The tables that were applied last; without endpoints if there are none.
    pub tables: Tables,
    /// What they are.
    pub applied: AppliedState,
    /// Where the next ones are kept.
    pub state: StateFile,
}

/// Reads the tables that were applied last from the state directory. If they cannot be used, that is logged, and the gateway
/// starts with no endpoints.
///
/// # Errors
/// When the state directory cannot be made, or another gateway uses it.
pub fn cold_start(checked: &Checked, settings: &ControlSettings) -> Result<ColdStart, StateError> {
    let (state, restored) = StateFile::open(&settings.state_directory, &checked.gateway.name)?;
    let mut tables = Tables::new(checked);
    let mut applied = AppliedState::default();
    if let Some(restored) = restored {
        let known =
            AppliedState { catalog: restored.catalog, generation: restored.generation, digest: restored.digest };
        let everything =
            Change { full: true, changed: restored.resources.into_values().collect(), removed: Vec::new() };
        match tables.update(everything) {
            Ok(_) => applied = known,
            Err(errors) => {
                error!(
                    "the tables of generation {} do not fit {} any more; starting with no endpoints until control is there",
                    known.generation, checked.file
                );
                errors.to_string().lines().for_each(|line| error!("{line}"));
            }
        }
    }
    Ok(ColdStart { tables, applied, state })
}

/// Who a gateway is to control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub gateway: String,
    /// Different in every life of the process.
    pub boot_id: String,
    /// Linux names of its ports.
    pub ports: Vec<String>,
}

/// What the link works with.
#[derive(Debug)]
pub struct LinkParts {
    /// How to reach control.
    pub settings: ControlSettings,
    /// Who this is.
    pub identity: Identity,
    /// The one writer of the tables.
    pub tables: Arc<Mutex<Tables>>,
    /// What they are, and workers forward by.
    pub applied: AppliedState,
    /// Where they are kept.
    pub state: StateFile,
    /// What each worker counts.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// Where new tables go.
    pub publications: mpsc::Sender<Publication>,
    /// What is thought of the targets.
    pub views: Arc<TargetViews>,
}

/// The running link. Dropped: ended, and what is being written to disk is written.
#[derive(Debug)]
pub struct ControlLink {
    settings: watch::Sender<ControlSettings>,
    status: Arc<LinkStatus>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlLink {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(parts: LinkParts) -> io::Result<Self> {
        let status = Arc::new(LinkStatus::new(parts.settings.address.to_string(), &parts.applied));
        let (settings, changes) = watch::channel(parts.settings.clone());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shown = status.clone();
        let thread = thread::Builder::new().name("control-link".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = run(parts, changes, shown) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(LAST_WRITE);
        })?;
        Ok(Self { settings, status, stop: Some(stop), thread: Some(thread) })
    }

    /// Connects anew if address or credentials are others.
    pub fn configure(&self, settings: &ControlSettings) {
        let changed = self.settings.send_if_modified(|current| {
            let changed = current != settings;
            current.clone_from(settings);
            changed
        });
        if changed {
            self.status.words().address = settings.address.to_string();
        }
    }

    /// How the link is, now and later.
    #[must_use]
    pub fn status(&self) -> Arc<LinkStatus> {
        self.status.clone()
    }
}

impl Drop for ControlLink {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the link to control had failed by a fault in postern");
        }
    }
}

/// The life of the link.
async fn run(parts: LinkParts, mut settings: watch::Receiver<ControlSettings>, status: Arc<LinkStatus>) {
    let LinkParts { identity, tables, applied, state, counters, publications, views, .. } = parts;
    let snapshot = tables.lock().unwrap_or_else(PoisonError::into_inner).snapshot().clone();
    let usage = Arc::new(Mutex::new(UsageBook::new(counters.clone(), snapshot)));
    let reader = StatusReader::new(counters, usage.clone(), views);
    let state = Arc::new(Mutex::new(state));
    let applier = Applier::new(tables, state, applied, publications, usage, status.clone());
    let (work, to_do) = mpsc::channel(1);
    let (ask, asked) = mpsc::channel(1);
    tokio::spawn(apply(applier, to_do, asked));
    let mut back_off = BackOff::new(seed(&identity.boot_id));
    let mut session = Session { identity, work, applied: ask, reader, status: status.clone() };
    let mut said = String::new();
    loop {
        let now = settings.borrow_and_update().clone();
        let mut welcomed = None;
        let end = tokio::select! {
            end = session.run(&now, || welcomed = Some(Instant::now())) => Some(end),
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
                None
            }
        };
        status.connected(false);
        let address = &now.address;
        if welcomed.is_some_and(|since| since.elapsed() > GOOD) {
            back_off.succeeded();
        }
        let pause = match end {
            None => {
                info!("address or credentials of control changed; connecting anew");
                continue;
            }
            Some(End::Broken(text)) => {
                status.failed(text.clone());
                if welcomed.is_some() || said != text {
                    warn!(
                        "no connection to control at {address}: {text}; traffic goes on by the tables that are applied"
                    );
                } else {
                    debug!("no connection to control at {address}: {text}");
                }
                said = text;
                back_off.failed()
            }
            Some(End::Refused(text)) => {
                status.failed(text.clone());
                if said != text {
                    error!("control at {address} refuses this gateway: {text}; trying again every half minute or so");
                }
                said = text;
                back_off.refused()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
                said.clear();
            }
        }
    }
}

/// Applies one update after the other, whatever becomes of the stream that it came by.
async fn apply(
    mut applier: Applier,
    mut work: mpsc::Receiver<Work>,
    mut asked: mpsc::Receiver<oneshot::Sender<AppliedState>>,
) {
    loop {
        tokio::select! {
            // What was taken from a stream is applied before the next one says what is applied.
            biased;
            Some(Work { catalog, update, outcome }) = work.recv() => {
                // The stream may have broken meanwhile.
                let _ = outcome.send(applier.apply(&catalog, update).await);
                applier.tidy().await;
            }
            Some(to) = asked.recv() => drop(to.send(applier.applied().clone())),
            else => return,
        }
    }
}

fn seed(boot_id: &str) -> u64 {
    // FNV-1a: the boot id is random already.
    boot_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// How the link is, for whoever looks in. The link alone writes.
#[derive(Debug)]
pub struct LinkStatus {
    counters: LinkCounters,
    words: Mutex<Words>,
}

/// What the link counts.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// 1 while a stream is open.
    pub connected: Counter,
    /// Generation of control's catalog that is applied.
    pub generation: Counter,
    /// Streams that control welcomed.
    pub streams: Counter,
    /// Updates that were applied.
    pub applied: Counter,
    /// Updates that were refused.
    pub refused: Counter,
    /// Times that applied tables could not be written to disk.
    pub disk_failures: Counter,
}

#[derive(Debug)]
struct Words {
    address: String,
    catalog: String,
    last_error: Option<String>,
}

impl LinkStatus {
    fn new(address: String, applied: &AppliedState) -> Self {
        let counters = LinkCounters::default();
        counters.generation.set(applied.generation);
        let words = Words { address, catalog: applied.catalog.clone(), last_error: None };
        Self { counters, words: Mutex::new(words) }
    }

    /// The counters.
    #[must_use]
    pub const fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    /// What is shown of the link.
    #[must_use]
    pub fn report(&self) -> ControlStatus {
        let words = self.words();
        ControlStatus {
            address: words.address.clone(),
            connected: self.counters.connected.get() > 0,
            catalog: words.catalog.clone(),
            generation: self.counters.generation.get(),
            last_error: words.last_error.clone(),
        }
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, connected: bool) {
        self.counters.connected.set(connected.into());
        if connected {
            self.counters.streams.add(1);
            self.words().last_error = None;
        }
    }

    fn applied(&self, applied: &AppliedState) {
        self.counters.applied.add(1);
        self.counters.generation.set(applied.generation);
        self.words().catalog.clone_from(&applied.catalog);
    }

    fn refused(&self, text: String) {
        self.counters.refused.add(1);
        self.failed(text);
    }

    fn not_saved(&self, text: String) {
        self.counters.disk_failures.add(1);
        self.failed(text);
    }

    fn failed(&self, text: String) {
        self.words().last_error = Some(text);
    }
}

#[cfg(test)]
mod tests;

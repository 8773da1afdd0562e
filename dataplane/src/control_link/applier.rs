//! From an update to tables that every worker forwards by, and that are on disk.
//!
//! In order: the tables check the whole update and compile it, beside the threads that forward and look after the ports; then
//! it is published and, at the same time, written to disk. It counts as applied when every worker forwards by it, addresses
//! are steered and announced or silent, *and* it is on disk. So whatever was acknowledged is there at the next start.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_push::proto::{self, Update};
use postern_push::{Assembled, ConversionError};
use postern_tables::{Errors, Snapshot, Tables};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::LinkStatus;
use super::state_file::StateFile;
use super::usage::UsageBook;

/// Reasons of one refusal that are sent.
const REASONS: usize = 100;
/// Pause before the disk is tried again, where not even an old file can be removed.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// Tables that are to be forwarded by.
#[derive(Debug)]
pub struct Publication {
    /// The tables.
    pub snapshot: Arc<Snapshot>,
    /// To be told when every worker forwards by them, new addresses are announced and removed ones are silent.
    pub settled: oneshot::Sender<()>,
}

/// What is applied: on every worker and on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The catalog that it came from; empty: nothing was ever applied.
    pub catalog: String,
    /// Its generation there.
    pub generation: u64,
    /// The digest that came with it.
    pub digest: Vec<u8>,
}

/// What became of an update.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is applied.
    Applied,
    /// Nothing of it is.
    Refused(Vec<String>),
    /// The gateway is stopping.
    Stopping,
}

/// The one who applies.
#[derive(Debug)]
pub(super) struct Applier {
    tables: Arc<Mutex<Tables>>,
    state: Arc<Mutex<StateFile>>,
    applied: AppliedState,
    publications: mpsc::Sender<Publication>,
    usage: Arc<Mutex<UsageBook>>,
    status: Arc<LinkStatus>,
    /// What every worker forwards by, if the usage does not know yet.
    settled: Option<Arc<Snapshot>>,
}

impl Applier {
    pub(super) fn new(
        tables: Arc<Mutex<Tables>>,
        state: Arc<Mutex<StateFile>>,
        applied: AppliedState,
        publications: mpsc::Sender<Publication>,
        usage: Arc<Mutex<UsageBook>>,
        status: Arc<LinkStatus>,
    ) -> Self {
        Self { tables, state, applied, publications, usage, status, settled: None }
    }

    /// What is applied.
    pub(super) const fn applied(&self) -> &AppliedState {
        &self.applied
    }

    /// Applies an update of a catalog.
    pub(super) async fn apply(&mut self, catalog: &str, update: Assembled) -> Outcome {
        let generation = update.generation;
        let full = update.change.full;
        if !full && catalog != self.applied.catalog {
            let has = &self.applied.catalog;
            return self.refuse(
                generation,
                vec![format!("a change of catalog \"{catalog}\" does not fit tables of \"{has}\"")],
            );
        }
        let saved = match saved(&update) {
            Ok(saved) => saved,
            Err(error) => return self.refuse(generation, vec![error.to_string()]),
        };
        let confirms = !full && update.change.changed.is_empty() && update.change.removed.is_empty();
        let state = AppliedState { catalog: catalog.to_owned(), generation, digest: update.digest.clone() };
        let mut settled = None;
        if !confirms {
            let tables = self.tables.clone();
            let compiled = spawn_blocking(move || compile(&tables, update)).await;
            let snapshot = match compiled {
                Ok(Ok(snapshot)) => snapshot,
                Ok(Err(reasons)) => return self.refuse(generation, reasons),
                Err(panic) => {
                    return self
                        .refuse(generation, vec![format!("compiling failed, which is a fault in postern: {panic}")]);
                }
            };
            let (to, from) = oneshot::channel();
            let publication = Publication { snapshot: snapshot.clone(), settled: to };
            if self.publications.send(publication).await.is_err() {
                return Outcome::Stopping;
            }
            settled = Some((from, snapshot));
        }
        let is_settled = async {
            match settled {
                Some((settled, snapshot)) => settled.await.map(|()| Some(snapshot)),
                None => Ok(None),
            }
        };
        let (is_settled, ()) = tokio::join!(is_settled, self.save(&state, saved));
        let Ok(snapshot) = is_settled else {
            return Outcome::Stopping;
        };
        if snapshot.is_some() {
            info!(generation, full, "tables of control are applied");
            self.settled = snapshot;
        }
        self.applied = state;
        self.status.applied(&self.applied);
        Outcome::Applied
    }

    /// What is left to do after an update, when nobody waits for it any more, and before the next one: the last reading of
    /// endpoints that left, and a file written anew, if the changes in it outweigh the rest.
    pub(super) async fn tidy(&mut self) {
        if let Some(snapshot) = self.settled.take() {
            lock(&self.usage).settled(snapshot);
        }
        if !lock(&self.state).is_grown() {
            return;
        }
        let (tables, state, applied) = (self.tables.clone(), self.state.clone(), self.applied.clone());
        let written = spawn_blocking(move || write_all(&tables, &state, &applied)).await;
        if let Ok(Err(error)) = written {
            // The changes in it are as good.
            warn!("cannot write {} anew: {error}", lock(&self.state).path().display());
        }
    }

    /// Returns when the update is on disk, or when nothing is there that is older.
    async fn save(&self, applied: &AppliedState, update: Update) {
        let update = Arc::new(update);
        let mut said = false;
        loop {
            let (state, tables) = (self.state.clone(), self.tables.clone());
            let (applied, update) = (applied.clone(), update.clone());
            let saved = spawn_blocking(move || save(&state, &tables, &applied, &update)).await;
            let (written, removed) = match saved {
                Ok(Ok(())) => return,
                Ok(Err(failed)) => failed,
                Err(panic) => (io::Error::other(panic.to_string()), false),
            };
            let path = lock(&self.state).path();
            let path = path.display();
            let text = if removed {
                format!("cannot write {path}: {written}; a start without control would have no endpoints")
            } else {
                format!("can neither write nor remove {path}: {written}; what control sends is not acknowledged")
            };
            if !std::mem::replace(&mut said, true) {
                error!("{text}");
            }
            self.status.not_saved(text);
            if removed {
                return;
            }
            tokio::time::sleep(DISK_RETRY).await;
        }
    }

    fn refuse(&self, generation: u64, reasons: Vec<String>) -> Outcome {
        error!(
            "generation {generation} of control is refused; traffic goes on by generation {}",
            self.applied.generation
        );
        for reason in &reasons {
            error!("{reason}");
        }
        let first = reasons.first().map(String::as_str).unwrap_or_default();
        self.status.refused(format!("generation {generation} refused: {first}"));
        Outcome::Refused(reasons)
    }
}

/// The update as it is kept on disk.
fn saved(update: &Assembled) -> Result<Update, ConversionError> {
    let changed: Result<Vec<_>, _> = update.change.changed.iter().map(proto::Resource::try_from).collect();
    Ok(Update {
        generation: update.generation,
        full: update.change.full,
        complete: true,
        changed: changed?,
        removed: update.change.removed.iter().map(proto::Key::from).collect(),
        digest: update.digest.clone(),
    })
}

fn compile(tables: &Mutex<Tables>, update: Assembled) -> Result<Arc<Snapshot>, Vec<String>> {
    let poisoned = |_| vec!["an earlier update failed by a fault in postern; restart the gateway".to_owned()];
    let mut tables = tables.lock().map_err(poisoned)?;
    tables.update(update.change).map_err(|errors| reasons(&errors))
}

fn reasons(errors: &Errors) -> Vec<String> {
    let mut reasons: Vec<_> = errors.iter().take(REASONS).map(ToString::to_string).collect();
    if let Some(more) = errors.iter().count().checked_sub(REASONS).filter(|more| *more > 0) {
        reasons.push(format!("… and {more} more"));
    }
    reasons
}

/// Appends, or writes everything where that is what came or what is needed. If that fails, at least what is older goes; the
/// error says whether it did.
fn save(
    state: &Mutex<StateFile>,
    tables: &Mutex<Tables>,
    applied: &AppliedState,
    update: &Update,
) -> Result<(), (io::Error, bool)> {
    let written = if update.full {
        lock(state).replace(&applied.catalog, update)
    } else if lock(state).has(&applied.catalog) {
        lock(state).append(update)
    } else {
        write_all(tables, state, applied)
    };
    written.map_err(|error| (error, lock(state).remove().is_ok()))
}

fn write_all(tables: &Mutex<Tables>, state: &Mutex<StateFile>, applied: &AppliedState) -> io::Result<()> {
    let changed: Result<Vec<_>, _> =
        lock(tables).resources().map(|resource| proto::Resource::try_from(&resource)).collect();
    let update = Update {
        generation: applied.generation,
        full: true,
        complete: true,
        changed: changed.map_err(io::Error::other)?,
        removed: Vec::new(),
        digest: applied.digest.clone(),
    };
    lock(state).replace(&applied.catalog, &update)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

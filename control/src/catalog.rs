//! What was declared, by whom, and what became of it.
//!
//! All objects are in memory, with indices, and in a [`Store`]. A change is worked out on a draft (`draft::Draft`), checked
//! as a whole, made durable in one transaction together with its events and its generation, and only then seen by
//! readers, who never wait for the disk. Calls that change something block until the disk has it.

mod access;
mod addresses;
mod apply;
mod change;
mod check;
mod credentials;
mod draft;
mod life;
mod listing;
pub mod model;
mod object;
mod refusal;
mod reports;
mod resolve;
mod state;
mod writing;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

pub use apply::{Action, Difference, Plan, Step};
pub use credentials::TokenInfo;
pub use life::Connection;
pub use listing::{Filter, Listing, Page};
use model::{Event, Kind, Role};
pub use object::{AnyObject, Manifest, Spec};
pub use refusal::{Code, Refusal};
pub use state::State;

use crate::store::{Store, StoreError};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Name of the principal.
    pub principal: String,
    /// What it may do.
    pub role: Role,
}

impl Caller {
    /// Whether it may see and change what others own.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.role == Role::Operator
    }
}

/// An object to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct New {
    /// Its name; `None`: its id.
    pub name: Option<String>,
    /// Whose it is to be; `None`: the caller's. Only operators make objects for others.
    pub owner: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// What it is to be.
    pub spec: Spec,
}

/// Gives the time in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a catalog is opened with.
#[derive(Clone)]
pub struct Settings {
    /// The time.
    pub clock: Clock,
}

impl Default for Settings {
    /// The system's time.
    fn default() -> Self {
        let now = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        };
        Self { clock: Arc::new(now) }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// Why a catalog cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store failed.
    #[error("the catalog cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The store has a value that no catalog wrote.
    #[error(
        "the catalog cannot be opened: {key} in the store is not what it should be ({problem}); nothing was changed"
    )]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The store was written by another version of the program.
    #[error("the catalog cannot be opened: the store has catalog format {found}; this program reads format {known}")]
    Format {
        /// The format that it has.
        found: u64,
        /// The one that is known.
        known: u64,
    },
    /// Another process changed the store meanwhile.
    #[error("the catalog cannot be opened: another process changes the store")]
    Conflict,
}

/// A committed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The generation that it made.
    pub generation: u64,
    /// What is new, changed or gone.
    pub touched: Vec<(Kind, String)>,
}

/// The catalog.
pub struct Catalog {
    id: String,
    store: Arc<dyn Store>,
    settings: Settings,
    state: RwLock<State>,
    /// The one who changes something.
    writer: Mutex<writing::Writer>,
    events: RwLock<VecDeque<Event>>,
    reports: RwLock<reports::Reports>,
    changes: broadcast::Sender<Arc<Change>>,
    last_event: watch::Sender<u64>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Committed changes that a receiver may be behind before it has to read everything anew.
const CHANGES_ROOM: usize = 16_384;

impl Catalog {
    /// Made once, with the store: `cat-` and 17 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Everything, as it is now. No change can be seen, so nothing may wait while this is held.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every change from now on, in order. A receiver that lags (`RecvError::Lagged`) reads everything anew.
    /// Who subscribes before reading misses nothing.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }

    /// An object, by its id, or by its name among the caller's own.
    ///
    /// # Errors
    /// When there is none, or it belongs to another.
    pub fn one(&self, caller: &Caller, kind: Kind, reference: &str) -> Result<AnyObject, Refusal> {
        let state = self.read();
        let draft = draft::Draft::new(&state, self.now());
        let object = access::find(&draft, caller, kind, reference)?;
        Ok(self.presented(&state, object))
    }

    /// Events that concern the caller, after a sequence number, at most `limit`.
    #[must_use]
    pub fn events(&self, caller: &Caller, after: u64, limit: usize) -> Vec<Event> {
        let events = self.events.read().unwrap_or_else(PoisonError::into_inner);
        let start = events.partition_point(|event| event.sequence <= after);
        let concerns = |event: &&Event| {
            caller.is_operator() || event.provider == caller.principal || event.consumer == caller.principal
        };
        events.range(start..).filter(concerns).take(limit).cloned().collect()
    }

    /// The sequence number of the last event, to wait for new ones.
    #[must_use]
    pub fn last_event(&self) -> watch::Receiver<u64> {
        self.last_event.subscribe()
    }

    fn now(&self) -> u64 {
        (self.settings.clock)()
    }
}

#[cfg(test)]
mod tests;

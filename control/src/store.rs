//! Where the catalog is kept: keys and values, changed by transactions that are compared with revisions.
//!
//! The trait asks for no more than a distributed store such as etcd offers: conditions on the revisions of keys, ranges
//! by prefix, and a watch. A transaction that was answered survives whatever happens to the process.

pub mod memory;
pub mod redb;
#[cfg(test)]
mod suite;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use memory::MemoryStore;
pub use redb::RedbStore;

/// A store. Calls block until they are done; a commit, until it is durable.
pub trait Store: Send + Sync {
    /// Makes all changes of the transaction, or none if a condition does not hold. When it returns, they are durable.
    ///
    /// # Errors
    /// When the store failed. Whether the changes were made is then unknown until it is opened again.
    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// The value of a key.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn entry(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Keys that begin with `prefix`, in order, after `after` if given, at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Entry)>, StoreError>;

    /// Tells of every change to keys that begin with `prefix` from now on.
    fn watch(&self, prefix: &str) -> Watch;
}

/// A value and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Revision of the store at which the key was written last, from 1.
    pub revision: u64,
    /// The value.
    pub value: Vec<u8>,
}

/// What is to be changed together, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Keys with their new values; `None` removes the key, which need not be there. The last one for a key counts.
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

/// A key must have been written last at this revision; 0: must not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: String,
    /// Its revision.
    pub revision: u64,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; every key in it has this revision.
    Committed(u64),
    /// A condition does not hold; nothing was changed.
    Conflict,
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is a file, but no store in it that can be trusted.
    #[error(
        "{path}: is damaged ({problem}); it was left as it is: restore it from a backup, or move it away to begin anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A store of another program version.
    #[error("{path}: has format {found}; this program reads format {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that it has.
        found: String,
        /// The one that is known.
        known: u64,
    },
    /// Another process has it open.
    #[error("{path}: is used by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened, read or written.
    #[error("{path}: {problem}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// A change that a watch tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Revision of the transaction.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// Its value; `None`: removed.
    pub value: Option<Vec<u8>>,
}

/// Changes in the order in which they were made.
#[derive(Debug)]
pub struct Watch {
    transactions: Receiver<Vec<Change>>,
    pending: VecDeque<Change>,
}

/// Why a watch tells no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// None in that time.
    Timeout,
    /// Changes were missed, because too many were not taken, or the store is closed: read anew and watch again.
    Lost,
}

impl Watch {
    /// The next change.
    ///
    /// # Errors
    /// When there was none in that time, or when changes were missed.
    pub fn next(&mut self, timeout: Duration) -> Result<Change, WatchEnd> {
        if self.pending.is_empty() {
            self.pending = match self.transactions.recv_timeout(timeout) {
                Ok(changes) => changes.into(),
                Err(RecvTimeoutError::Timeout) => return Err(WatchEnd::Timeout),
                Err(RecvTimeoutError::Disconnected) => return Err(WatchEnd::Lost),
            };
        }
        self.pending.pop_front().ok_or(WatchEnd::Timeout)
    }
}

/// Transactions that a watch may be behind.
const WATCH_ROOM: usize = 1024;

/// The watches of a store in this process.
#[derive(Debug, Default)]
struct Watches(Mutex<Vec<(String, SyncSender<Vec<Change>>)>>);

impl Watches {
    fn add(&self, prefix: &str) -> Watch {
        let (sender, transactions) = sync_channel(WATCH_ROOM);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((prefix.to_owned(), sender));
        Watch { transactions, pending: VecDeque::new() }
    }

    /// Tells of a transaction. A watch that is too far behind, or gone, ends.
    fn tell(&self, revision: u64, changes: &[(String, Option<Vec<u8>>)]) {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|(prefix, sender)| {
            let seen = changes.iter().filter(|(key, _)| key.starts_with(prefix.as_str()));
            let seen: Vec<_> =
                seen.map(|(key, value)| Change { revision, key: key.clone(), value: value.clone() }).collect();
            if seen.is_empty() {
                return true;
            }
            match sender.try_send(seen) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            }
        });
    }
}

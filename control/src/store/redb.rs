//! A store in one file, by redb: every commit is on the disk when it is answered, and a process that is killed at any
//! point leaves the last answered state.
//!
//! A file is read through once, every checksum compared, before anything may write to it. That reading works on a copy
//! of the changed pages in memory, so a damaged file stays as it is for whoever wants to rescue something.
//!
//! When the disk fails, or is full, redb takes nothing more. The file is then opened anew for the next call, as after a
//! crash, so that it is enough to make room.

#[cfg(test)]
pub(super) mod tests;
mod untouched;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Entry, Outcome, Store, StoreError, Transaction, Watch, Watches};
use untouched::Untouched;

/// Values with the revision in front, eight bytes, big-endian.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// `format` and `revision`.
const HEADER: TableDefinition<'_, &str, u64> = TableDefinition::new("header");
/// What [`ENTRIES`] and [`HEADER`] look like.
const FORMAT: u64 = 1;

/// A store in a file.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    /// `None` after a failure of the disk, until the next call.
    database: RwLock<Option<Database>>,
    watches: Watches,
    /// Held while a transaction is made and told.
    order: Mutex<()>,
    /// Other processes stay out as long as it is locked.
    _lock: File,
}

impl RedbStore {
    /// Opens the file, or makes it if it is not there.
    ///
    /// # Errors
    /// When another process has it open, it is damaged or of another format (it is then left as it is), or the disk fails.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |error: io::Error| StoreError::Io { path: path.to_owned(), problem: error.to_string() };
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(beside(path, ".lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        if path.try_exists().map_err(io)? {
            verify(path)?;
        } else {
            make(path)?;
        }
        let database = Database::open(path).map_err(|error| failed(path, error))?;
        let database = RwLock::new(Some(database));
        Ok(Self { path: path.to_owned(), database, watches: Watches::default(), order: Mutex::new(()), _lock: lock })
    }

    /// Does something with the database, which is opened anew if the disk had failed.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.open_again()?;
        let result = match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            // Another call has met a failing disk since.
            None => Err(redb::Error::PreviousIo),
        };
        result.map_err(|error| {
            if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
                *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            failed(&self.path, error)
        })
    }

    fn open_again(&self) -> Result<(), StoreError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            verify(&self.path)?;
            *database = Some(Database::open(&self.path).map_err(|error| failed(&self.path, error))?);
        }
        Ok(())
    }

    fn commit_in_order(database: &Database, transaction: &Transaction) -> Result<Outcome, redb::Error> {
        let mut write = database.begin_write()?;
        write.set_durability(Durability::Immediate).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let revision;
        {
            let mut entries = write.open_table(ENTRIES)?;
            for condition in &transaction.conditions {
                let found = entries.get(condition.key.as_str())?.map_or(Some(0), |value| revision_of(value.value()));
                if found != Some(condition.revision) {
                    return Ok(Outcome::Conflict);
                }
            }
            let mut header = write.open_table(HEADER)?;
            revision = header.get("revision")?.map_or(0, |value| value.value()) + 1;
            header.insert("revision", revision)?;
            for (key, value) in &transaction.changes {
                match value {
                    Some(value) => {
                        let value = [&revision.to_be_bytes()[..], value].concat();
                        entries.insert(key.as_str(), value.as_slice())?;
                    }
                    None => {
                        entries.remove(key.as_str())?;
                    }
                }
            }
        }
        write.commit()?;
        Ok(Outcome::Committed(revision))
    }

    fn entries(
        database: &Database,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, redb::Error> {
        let entries = database.begin_read()?.open_table(ENTRIES)?;
        let after = after.filter(|&after| after >= prefix);
        let mut found = Vec::new();
        for entry in entries.range(after.unwrap_or(prefix)..)? {
            let (key, value) = entry?;
            let key = key.value();
            if !key.starts_with(prefix) || found.len() == limit {
                break;
            }
            if Some(key) != after {
                found.push((key.to_owned(), decoded(value.value())?));
            }
        }
        Ok(found)
    }
}

impl Store for RedbStore {
    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.with(|database| Self::commit_in_order(database, transaction))?;
        if let Outcome::Committed(revision) = outcome {
            self.watches.tell(revision, &transaction.changes);
        }
        Ok(outcome)
    }

    fn entry(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.with(|database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            entries.get(key)?.map(|value| decoded(value.value())).transpose()
        })
    }

    fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Entry)>, StoreError> {
        self.with(|database| Self::entries(database, prefix, after, limit))
    }

    fn watch(&self, prefix: &str) -> Watch {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.watches.add(prefix)
    }
}

/// Makes an empty store. It appears under its name only when it is whole.
fn make(path: &Path) -> Result<(), StoreError> {
    let io = |error: io::Error| StoreError::Io { path: path.to_owned(), problem: error.to_string() };
    let unfinished = beside(path, ".new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let write = || -> Result<(), redb::Error> {
        let database = Database::create(&unfinished)?;
        let write = database.begin_write()?;
        write.open_table(HEADER)?.insert("format", FORMAT)?;
        write.open_table(ENTRIES)?;
        write.commit()?;
        Ok(())
    };
    write().map_err(|error| failed(path, error))?;
    fs::rename(&unfinished, path).map_err(io)?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

/// Reads the whole file, without writing to it.
fn verify(path: &Path) -> Result<(), StoreError> {
    let file =
        File::open(path).map_err(|error| StoreError::Io { path: path.to_owned(), problem: error.to_string() })?;
    if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        return Err(StoreError::Damaged { path: path.to_owned(), problem: "it is empty".to_owned() });
    }
    let read = || -> Result<Option<u64>, redb::Error> {
        let backend = Untouched::new(file)?;
        let database = Database::builder().set_check_integrity_on_open(true).create_with_backend(backend)?;
        let read = database.begin_read()?;
        for entry in read.open_table(ENTRIES)?.range::<&str>(..)? {
            decoded(entry?.1.value())?;
        }
        let format = read.open_table(HEADER)?.get("format")?.map(|value| value.value());
        Ok(format)
    };
    // What redb takes for impossible, it says by a panic.
    let found = match catch_unwind(AssertUnwindSafe(read)) {
        Ok(found) => found.map_err(|error| match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
            error => StoreError::Damaged { path: path.to_owned(), problem: error.to_string() },
        })?,
        Err(_) => {
            let problem = "its pages contradict each other".to_owned();
            return Err(StoreError::Damaged { path: path.to_owned(), problem });
        }
    };
    match found {
        Some(FORMAT) => Ok(()),
        found => {
            let found = found.map_or("none".to_owned(), |format| format.to_string());
            Err(StoreError::Format { path: path.to_owned(), found, known: FORMAT })
        }
    }
}

fn failed(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        redb::Error::Corrupted(problem) => StoreError::Damaged { path: path.to_owned(), problem },
        error => StoreError::Io { path: path.to_owned(), problem: error.to_string() },
    }
}

fn revision_of(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|revision| u64::from_be_bytes(*revision))
}

fn decoded(value: &[u8]) -> Result<Entry, redb::Error> {
    match revision_of(value) {
        Some(revision) => Ok(Entry { revision, value: value[8..].to_vec() }),
        None => Err(redb::Error::Corrupted("an entry has no revision".to_owned())),
    }
}

/// `path` with an ending added.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

//! A store in memory, for tests and for labs that keep nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Entry, Outcome, Store, StoreError, Transaction, Watch, Watches};

/// A store that ends with its process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    content: Mutex<Content>,
    watches: Watches,
}

#[derive(Debug, Default)]
struct Content {
    revision: u64,
    entries: BTreeMap<String, Entry>,
}

impl MemoryStore {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let mut content = self.content();
        let revision_of = |key: &str| content.entries.get(key).map_or(0, |entry| entry.revision);
        if transaction.conditions.iter().any(|condition| revision_of(&condition.key) != condition.revision) {
            return Ok(Outcome::Conflict);
        }
        content.revision += 1;
        let revision = content.revision;
        for (key, value) in &transaction.changes {
            match value {
                Some(value) => content.entries.insert(key.clone(), Entry { revision, value: value.clone() }),
                None => content.entries.remove(key),
            };
        }
        self.watches.tell(revision, &transaction.changes);
        Ok(Outcome::Committed(revision))
    }

    fn entry(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.content().entries.get(key).cloned())
    }

    fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Entry)>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let content = self.content();
        let entries = content.entries.range::<str, _>((start, Bound::Unbounded));
        let entries = entries.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
        Ok(entries.map(|(key, entry)| (key.clone(), entry.clone())).collect())
    }

    fn watch(&self, prefix: &str) -> Watch {
        let _content = self.content();
        self.watches.add(prefix)
    }
}

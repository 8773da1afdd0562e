//! What a file lives through: processes that are killed, and bytes that are changed.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::{Outcome, Store, StoreError, Transaction};
use super::RedbStore;

/// A directory that goes with the test.
pub(in crate::store) struct Directory(PathBuf);

impl Directory {
    pub(in crate::store) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("postern-store-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(in crate::store) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn put(store: &dyn Store, key: &str, value: &[u8]) {
    let changes = vec![(key.to_owned(), Some(value.to_vec()))];
    assert!(matches!(store.commit(&Transaction { conditions: Vec::new(), changes }), Ok(Outcome::Committed(_))));
}

/// A store with something in it, closed.
fn filled(path: &Path) {
    let store = RedbStore::open(path).unwrap();
    for number in 0..20 {
        put(&store, &format!("key/{number:03}"), &[number; 700]);
    }
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let directory = Directory::new();
    let path = directory.path("store");
    filled(&path);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.range("key/", None, 100).unwrap().len(), 20);
    let before = store.entry("key/019").unwrap().unwrap();
    assert_eq!(before.value, [19; 700]);
    put(&store, "key/019", b"new");
    assert!(store.entry("key/019").unwrap().unwrap().revision > before.revision, "revisions go on where they were");
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let directory = Directory::new();
    let path = directory.path("store");
    let first = RedbStore::open(&path).unwrap();
    assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse { .. })));
    drop(first);
    RedbStore::open(&path).unwrap();
}

/// The other side of the next test: writes, and reports what was answered, until it is killed.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = env::var_os("POSTERN_STORE_TO_WRITE") else { return };
    let store = RedbStore::open(Path::new(&path)).unwrap();
    let first = store.range("n/", None, 100_000).unwrap().len();
    // A bound for a parent that is gone; it never comes to that.
    for number in first..first + 10_000 {
        let value = format!("{number}").repeat(50);
        let changes = vec![
            (format!("n/{number:08}"), Some(value.clone().into_bytes())),
            ("last".to_owned(), Some(number.to_string().into_bytes())),
        ];
        store.commit(&Transaction { conditions: Vec::new(), changes }).unwrap();
        let line = format!("answered {number}\n");
        if std::io::stderr().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn a_process_that_is_killed_at_any_point_loses_nothing_that_was_answered() {
    let directory = Directory::new();
    let path = directory.path("store");
    for round in 0..6_usize {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["child_that_writes_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env("POSTERN_STORE_TO_WRITE", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answered = None;
        let mut seen = 0;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut take = |line: &str| {
            if let Some(number) = line.strip_prefix("answered ") {
                answered = Some(number.parse::<usize>().unwrap());
                seen += 1;
            }
            seen
        };
        for line in &mut lines {
            // The kill comes while later commits are under way, at a point that nobody chose.
            if take(&line.unwrap()) > round * 7 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it could still report before it was gone.
        lines.map_while(Result::ok).for_each(|line| {
            take(&line);
        });
        let answered = answered.expect("the child wrote something");
        let store = RedbStore::open(&path).unwrap();
        let found = store.range("n/", None, 100_000).unwrap();
        assert!(found.len() > answered, "{} are there, {answered} was answered", found.len());
        for (at, (key, entry)) in found.iter().enumerate() {
            assert_eq!(*key, format!("n/{at:08}"), "no transaction between is missing");
            assert_eq!(entry.value, format!("{at}").repeat(50).into_bytes());
        }
        let last = store.entry("last").unwrap().unwrap();
        assert_eq!(
            last.value,
            (found.len() - 1).to_string().into_bytes(),
            "a transaction is there whole or not at all"
        );
    }
}

/// Opening must be refused in a sentence that names the file, or give what was written; the file stays as it is when
/// refused. Whether it was refused.
fn refused(path: &Path) -> bool {
    let before = fs::read(path).unwrap();
    match RedbStore::open(path) {
        Ok(store) => {
            let found = store.range("key/", None, 100).unwrap();
            assert_eq!(found.len(), 20, "a store that opens has all that was answered");
            for (number, (_, entry)) in found.iter().enumerate() {
                assert_eq!(entry.value, [number as u8; 700]);
            }
            false
        }
        Err(error) => {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert!(matches!(error, StoreError::Damaged { .. } | StoreError::Format { .. } | StoreError::Io { .. }));
            assert!(fs::read(path).unwrap() == before, "a damaged file was changed");
            true
        }
    }
}

#[test]
fn a_truncated_file_is_refused_and_left_as_it_is() {
    let directory = Directory::new();
    let path = directory.path("store");
    filled(&path);
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 63, 64, 320, 4095, 4096, 5000, whole.len() / 2] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(refused(&path), "{length} of {} bytes were opened", whole.len());
    }
    fs::write(&path, b"this is a text, not a store\n".repeat(500)).unwrap();
    assert!(refused(&path));
    fs::write(&path, &whole).unwrap();
    assert!(!refused(&path), "the whole file is still good");
}

#[test]
fn a_file_with_changed_bytes_is_refused_or_gives_what_was_written() {
    let directory = Directory::new();
    let path = directory.path("store");
    filled(&path);
    let whole = fs::read(&path).unwrap();
    let value =
        whole.windows(700).position(|bytes| bytes.iter().all(|&byte| byte == 7)).expect("values stand in the file");
    let mut places: Vec<_> = (0..24).map(|at| at * whole.len() / 24).collect();
    places.push(value + 300);
    for &place in &places {
        let mut damaged = whole.clone();
        for byte in damaged.iter_mut().skip(place).take(16) {
            *byte ^= 0x5a;
        }
        fs::write(&path, &damaged).unwrap();
        let was_refused = refused(&path);
        assert!(was_refused || place != value + 300, "a changed value was not noticed");
    }
}

#[test]
fn a_store_of_another_format_is_refused_and_left_as_it_is() {
    let directory = Directory::new();
    let path = directory.path("store");
    filled(&path);
    {
        let database = redb::Database::open(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(super::HEADER).unwrap().insert("format", 9).unwrap();
        write.commit().unwrap();
    }
    let before = fs::read(&path).unwrap();
    let error = RedbStore::open(&path).unwrap_err();
    assert!(error.to_string().ends_with("has format 9; this program reads format 1"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

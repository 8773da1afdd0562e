//! What every store must do: one suite, run on each implementation.

use std::sync::Arc;
use std::time::Duration;

use super::{Condition, Entry, MemoryStore, Outcome, RedbStore, Store, Transaction, WatchEnd};

fn put(key: &str, value: &str) -> (String, Option<Vec<u8>>) {
    (key.to_owned(), Some(value.as_bytes().to_vec()))
}

fn write(store: &dyn Store, changes: &[(String, Option<Vec<u8>>)]) -> u64 {
    match store.commit(&Transaction { conditions: Vec::new(), changes: changes.to_vec() }).unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("a transaction without conditions has a conflict"),
    }
}

fn keys(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    store.range(prefix, after, limit).unwrap().into_iter().map(|(key, _)| key).collect()
}

fn what_is_committed_is_read(store: &dyn Store) {
    assert_eq!(store.entry("a").unwrap(), None);
    let first = write(store, &[put("a", "1"), put("b", "2")]);
    let second = write(store, &[put("a", "3"), ("b".to_owned(), None), ("missing".to_owned(), None)]);
    assert!(second > first);
    assert_eq!(store.entry("a").unwrap(), Some(Entry { revision: second, value: b"3".to_vec() }));
    assert_eq!(store.entry("b").unwrap(), None);
}

fn a_transaction_whose_condition_does_not_hold_changes_nothing(store: &dyn Store) {
    let revision = write(store, &[put("key", "1")]);
    let conditional = |key: &str, revision, value: &str| {
        let conditions = vec![Condition { key: key.to_owned(), revision }];
        store.commit(&Transaction { conditions, changes: vec![put("key", value), put("other", value)] }).unwrap()
    };
    assert_eq!(conditional("key", revision + 1, "2"), Outcome::Conflict);
    assert_eq!(conditional("key", 0, "2"), Outcome::Conflict, "0 means that it must not be there");
    assert_eq!(conditional("absent", 1, "2"), Outcome::Conflict);
    assert_eq!(store.entry("other").unwrap(), None);
    let Outcome::Committed(next) = conditional("key", revision, "3") else { panic!("the condition holds") };
    assert_eq!(conditional("key", revision, "4"), Outcome::Conflict, "the revision is that of the last write");
    assert!(matches!(conditional("key", next, "5"), Outcome::Committed(_)));
    assert!(matches!(conditional("absent", 0, "6"), Outcome::Committed(_)));
}

fn ranges_are_by_prefix_in_order_and_in_pages(store: &dyn Store) {
    write(store, &[put("b/2", ""), put("b/1", ""), put("b/10", ""), put("a/9", ""), put("b0", ""), put("c", "")]);
    assert_eq!(keys(store, "b/", None, 10), ["b/1", "b/10", "b/2"]);
    assert_eq!(keys(store, "b/", None, 2), ["b/1", "b/10"]);
    assert_eq!(keys(store, "b/", Some("b/10"), 2), ["b/2"]);
    assert_eq!(keys(store, "b/", Some("b/11"), 2), ["b/2"], "a key that is gone still has its place");
    assert_eq!(keys(store, "b/", Some("a/9"), 1), ["b/1"], "before the prefix is its beginning");
    assert_eq!(keys(store, "b/", Some("b/2"), 9), Vec::<String>::new());
    assert_eq!(keys(store, "", None, 9).len(), 6);
    assert_eq!(keys(store, "b/", None, 0), Vec::<String>::new());
}

fn a_watch_tells_every_change_in_order(store: &dyn Store) {
    write(store, &[put("w/before", "")]);
    let mut watch = store.watch("w/");
    let revisions = [
        write(store, &[put("w/1", "a"), put("elsewhere", "")]),
        write(store, &[put("elsewhere", "")]),
        write(store, &[("w/1".to_owned(), None), put("w/2", "b")]),
    ];
    let mut next = || watch.next(Duration::from_secs(60)).map(|change| (change.revision, change.key, change.value));
    assert_eq!(next(), Ok((revisions[0], "w/1".to_owned(), Some(b"a".to_vec()))));
    assert_eq!(next(), Ok((revisions[2], "w/1".to_owned(), None)));
    assert_eq!(next(), Ok((revisions[2], "w/2".to_owned(), Some(b"b".to_vec()))));
    assert_eq!(watch.next(Duration::ZERO), Err(WatchEnd::Timeout));
}

fn a_watch_that_is_too_far_behind_says_so(store: &dyn Store) {
    let mut watch = store.watch("");
    for _ in 0..super::WATCH_ROOM + 1 {
        write(store, &[put("k", "")]);
    }
    let told = std::iter::from_fn(|| watch.next(Duration::from_secs(60)).ok()).count();
    assert_eq!(told, super::WATCH_ROOM);
    assert_eq!(watch.next(Duration::from_secs(60)), Err(WatchEnd::Lost));
}

fn transactions_of_many_threads_happen_one_after_the_other(store: &Arc<dyn Store>) {
    const THREADS: u64 = 4;
    const EACH: u64 = 10;
    let count = |store: &dyn Store| {
        for _ in 0..EACH {
            loop {
                let entry = store.entry("count").unwrap();
                let revision = entry.as_ref().map_or(0, |entry| entry.revision);
                let value = entry.map_or(0, |entry| u64::from_be_bytes(entry.value.try_into().unwrap()));
                let conditions = vec![Condition { key: "count".to_owned(), revision }];
                let changes = vec![("count".to_owned(), Some((value + 1).to_be_bytes().to_vec()))];
                if store.commit(&Transaction { conditions, changes }).unwrap() != Outcome::Conflict {
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| count(&**store));
        }
    });
    let entry = store.entry("count").unwrap().unwrap();
    assert_eq!(entry.value, (THREADS * EACH).to_be_bytes());
}

fn run(make: &dyn Fn() -> Arc<dyn Store>) {
    what_is_committed_is_read(&*make());
    a_transaction_whose_condition_does_not_hold_changes_nothing(&*make());
    ranges_are_by_prefix_in_order_and_in_pages(&*make());
    a_watch_tells_every_change_in_order(&*make());
    transactions_of_many_threads_happen_one_after_the_other(&make());
}

#[test]
fn the_store_in_memory_does_what_a_store_must() {
    run(&|| Arc::new(MemoryStore::new()));
    a_watch_that_is_too_far_behind_says_so(&MemoryStore::new());
}

#[test]
fn the_store_in_a_file_does_what_a_store_must() {
    let directory = super::redb::tests::Directory::new();
    let number = std::cell::Cell::new(0);
    run(&|| {
        number.set(number.get() + 1);
        Arc::new(RedbStore::open(&directory.path(&format!("{}.redb", number.get()))).unwrap())
    });
}

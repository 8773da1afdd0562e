use std::collections::BTreeSet;

use postern_push::proto;
use postern_tables::declaration::Vpc;
use proptest::prelude::*;

use super::*;

fn vpc(number: u32) -> Resource {
    Resource::Vpc(Vpc { id: format!("vpc-{number}") })
}

fn update(generation: u64, full: bool, changed: &[u32], removed: &[u32]) -> Update {
    Update {
        generation,
        full,
        complete: true,
        changed: changed.iter().map(|number| proto::Resource::try_from(&vpc(*number)).unwrap()).collect(),
        removed: removed.iter().map(|number| proto::Key::from(&vpc(*number).key())).collect(),
        digest: generation.to_be_bytes().to_vec(),
    }
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("postern-state-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&path));
    path
}

/// Generation and VPCs.
fn state(restored: &Restored) -> (u64, BTreeSet<String>) {
    (restored.generation, restored.resources.keys().map(|key| key.name.clone()).collect())
}

fn expected(generation: u64, vpcs: &[u32]) -> (u64, BTreeSet<String>) {
    (generation, vpcs.iter().map(|number| format!("vpc-{number}")).collect())
}

/// A file with three updates, and the states that it went through.
fn file(directory: &Path) -> (Vec<u8>, Vec<(u64, BTreeSet<String>)>) {
    let (mut state, restored) = StateFile::open(directory, "gateway-1").unwrap();
    assert_eq!(restored, None);
    state.replace("catalog-a", &update(7, true, &[1, 2], &[])).unwrap();
    state.append(&update(8, false, &[3], &[1])).unwrap();
    state.append(&update(9, false, &[4], &[])).unwrap();
    let states = vec![expected(7, &[1, 2]), expected(8, &[2, 3]), expected(9, &[2, 3, 4])];
    (fs::read(state.path()).unwrap(), states)
}

#[test]
fn what_was_written_is_read_back_and_goes_on_being_written() {
    let path = directory("round");
    let (_, states) = file(&path);
    for generation in 10..12_u64 {
        let (mut state, restored) = StateFile::open(&path, "gateway-1").unwrap();
        let restored = restored.unwrap();
        assert_eq!(restored.catalog, "catalog-a");
        assert_eq!(restored.digest, (generation - 1_u64).to_be_bytes());
        if generation == 10 {
            assert_eq!(self::state(&restored), states[2]);
        }
        assert!(state.has("catalog-a") && !state.has("catalog-b") && !state.is_grown());
        state.append(&update(generation, false, &[generation as u32], &[])).unwrap();
    }
    let (mut state, restored) = StateFile::open(&path, "gateway-1").unwrap();
    assert_eq!(self::state(&restored.unwrap()), expected(11, &[2, 3, 4, 10, 11]));
    state.replace("catalog-b", &update(1, true, &[], &[])).unwrap();
    assert!(state.has("catalog-b"));
    drop(state);
    let (mut state, restored) = StateFile::open(&path, "gateway-1").unwrap();
    assert_eq!(self::state(&restored.unwrap()), expected(1, &[]));
    state.remove().unwrap();
    assert!(state.append(&update(2, false, &[], &[])).is_err());
    drop(state);
    assert_eq!(StateFile::open(&path, "gateway-1").unwrap().1, None);
    fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_file_that_grew_asks_to_be_written_anew() {
    let path = directory("grown");
    let (mut state, _) = StateFile::open(&path, "gateway-1").unwrap();
    state.replace("catalog-a", &update(1, true, &[1], &[])).unwrap();
    let many: Vec<u32> = (0..20_000).collect();
    let mut generation = 2;
    while !state.is_grown() {
        state.append(&update(generation, false, &many, &[])).unwrap();
        generation += 1;
        assert!(generation < 100);
    }
    assert!(fs::metadata(state.path()).unwrap().len() > SMALL);
    state.replace("catalog-a", &update(generation, true, &[1], &[])).unwrap();
    assert!(!state.is_grown());
    fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_second_process_is_refused() {
    let path = directory("second");
    let first = StateFile::open(&path, "gateway-1").unwrap();
    assert!(matches!(StateFile::open(&path, "gateway-1"), Err(StateError::Occupied(_))));
    drop(first);
    StateFile::open(&path, "gateway-1").unwrap();
    fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_file_cut_anywhere_gives_a_state_that_it_had_or_nothing() {
    let path = directory("cut");
    let (bytes, states) = file(&path);
    let mut seen = BTreeSet::new();
    for length in 0..bytes.len() {
        match restore(&bytes[..length], "gateway-1") {
            Ok((restored, _, end)) => {
                assert!(end <= length && states.contains(&state(&restored)), "cut at {length}");
                seen.insert(restored.generation);
            }
            Err(damage) => {
                assert!(seen.is_empty(), "cut at {length}: {damage}");
                assert_eq!(damage, Damage::Short(length));
            }
        }
    }
    assert_eq!(seen, BTreeSet::from([7, 8]), "only a whole record counts");

    // What comes after the cut overwrites what is left of it.
    fs::write(path.join(NAME), &bytes[..bytes.len() - 1]).unwrap();
    let (mut file, restored) = StateFile::open(&path, "gateway-1").unwrap();
    assert_eq!(state(&restored.unwrap()), states[1]);
    file.append(&update(9, false, &[5], &[])).unwrap();
    drop(file);
    let (_, restored) = StateFile::open(&path, "gateway-1").unwrap();
    assert_eq!(state(&restored.unwrap()), expected(9, &[2, 3, 5]));
    fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let path = directory("flipped");
    let (bytes, _) = file(&path);
    for at in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        assert!(restore(&damaged, "gateway-1").is_err(), "bit {at}");
    }
    fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_damaged_or_foreign_file_is_set_aside_and_the_next_one_is_good() {
    let path = directory("aside");
    let (mut bytes, _) = file(&path);
    let last = bytes.len() - 1;
    bytes[last] ^= 0x10;
    for (name, contents) in [("gateway-1", &bytes[..]), ("gateway-1", b"GIF89a, not tables"), ("gateway-1", b"")] {
        fs::write(path.join(NAME), contents).unwrap();
        let (mut state, restored) = StateFile::open(&path, name).unwrap();
        assert_eq!(restored, None);
        assert_eq!(fs::read(path.join(DAMAGED)).unwrap(), contents);
        assert!(!path.join(NAME).exists());
        state.replace("catalog-a", &update(3, true, &[1], &[])).unwrap();
        drop(state);
        assert_eq!(state_of(&path, name), Some(expected(3, &[1])));
    }
    assert_eq!(state_of(&path, "gateway-2"), None, "a copied disk announces nothing");
    fs::remove_dir_all(path).unwrap();
}

fn state_of(path: &Path, gateway: &str) -> Option<(u64, BTreeSet<String>)> {
    StateFile::open(path, gateway).unwrap().1.as_ref().map(state)
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_read_without_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kind in 0..3,
        lengths in any::<[u8; 4]>(),
    ) {
        let mut file = Vec::new();
        if kind > 0 {
            file.extend_from_slice(&MAGIC);
            file.extend_from_slice(&FORMAT.to_le_bytes());
        }
        if kind > 1 {
            file.extend(record(&Head { gateway: "gateway-1".to_owned(), catalog: String::new() }).unwrap());
            // A record whose checksums are right, with a body of anything.
            let mut head = (bytes.len() as u32).to_le_bytes().to_vec();
            head.extend(crc32fast::hash(&bytes).to_le_bytes());
            head.extend(crc32fast::hash(&head).to_le_bytes());
            file.extend(head);
        } else if let Some(start) = bytes.first_chunk_mut() {
            *start = lengths;
        }
        file.extend(bytes);
        let _ = restore(&file, "gateway-1");
    }
}

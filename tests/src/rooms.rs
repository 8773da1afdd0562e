//! The workspace is what the design says: a room uses only rooms below it, unsafe code has one place, and what is there
//! for tests and benchmarks stays out of the program.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What each room may use, `postern-` left out. Arrows that the design's picture does not have are decisions of their own:
/// `docs/decisions/`. A new room stands here before it is used.
const ALLOWED: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("measurement", &[]),
    ("prefetch", &[]),
    ("frame-io", &["wire"]),
    ("steering", &["wire"]),
    ("flows", &["wire", "measurement", "prefetch"]),
    ("selection", &["wire", "measurement"]),
    ("translation", &["wire", "measurement"]),
    ("tables", &["wire", "measurement", "selection"]),
    ("forwarding", &["wire", "measurement", "prefetch", "flows", "selection", "translation", "tables", "steering"]),
    ("push", &["tables"]),
    ("dataplane", &["wire", "measurement", "flows", "tables", "push", "forwarding", "frame-io", "steering"]),
    ("control", &["wire", "tables", "push"]),
    ("cli", &["control", "dataplane", "lab", "benches"]),
];

/// Tests and benches use anything.
const ANYTHING: &[&str] = &["benches", "tests", "lab"];

/// Where unsafe code may be.
const UNSAFE: &[&str] = &["frame-io", "prefetch"];

/// What must not be in the program.
const NOT_IN_THE_PROGRAM: &[&str] =
    &["criterion", "stats_alloc", "proptest", "etherparse", "libfuzzer-sys", "arbitrary", "postern-tests"];

struct Package {
    /// Without `postern-`.
    room: String,
    directory: PathBuf,
    /// Rooms that it uses outside its own tests.
    uses: BTreeSet<String>,
    /// Root files of its libraries and programs.
    roots: Vec<PathBuf>,
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--offline")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test, so it can be run");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

fn packages() -> Vec<Package> {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let room = |name: &Value| name.as_str().and_then(|name| name.strip_prefix("postern-")).map(str::to_owned);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let package = |package: &Value| {
        let uses = list(&package["dependencies"]);
        let is_root = |target: &&Value| {
            list(&target["kind"]).iter().any(|kind| matches!(kind.as_str(), Some("lib" | "bin" | "proc-macro")))
        };
        let path = |value: &Value| PathBuf::from(value.as_str().unwrap());
        Package {
            room: room(&package["name"]).expect("packages are named postern-<room>"),
            directory: path(&package["manifest_path"]).parent().unwrap().to_owned(),
            uses: uses.iter().filter(|uses| uses["kind"] != "dev").filter_map(|uses| room(&uses["name"])).collect(),
            roots: list(&package["targets"]).iter().filter(is_root).map(|target| path(&target["src_path"])).collect(),
        }
    };
    let packages: Vec<_> = list(&metadata["packages"]).iter().map(package).collect();
    assert!(packages.len() > 10, "the workspace was not read");
    packages
}

/// Uses of `room` that `ALLOWED` does not have.
fn forbidden(room: &str, uses: &BTreeSet<String>) -> Vec<String> {
    if ANYTHING.contains(&room) {
        return Vec::new();
    }
    let allowed = ALLOWED.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| allowed);
    uses.iter().filter(|used| !allowed.contains(&used.as_str())).cloned().collect()
}

#[test]
fn a_room_uses_only_rooms_below_it() {
    for Package { room, uses, .. } in packages() {
        let forbidden = forbidden(&room, &uses);
        assert!(forbidden.is_empty(), "postern-{room} may not use {forbidden:?}");
    }
}

#[test]
fn a_use_upwards_or_of_an_unknown_room_is_noticed() {
    let uses = |rooms: &[&str]| rooms.iter().map(|room| (*room).to_owned()).collect();
    assert_eq!(forbidden("flows", &uses(&["wire", "forwarding"])), ["forwarding"]);
    assert_eq!(forbidden("translation", &uses(&["frame-io", "wire"])), ["frame-io"]);
    assert_eq!(forbidden("new-room", &uses(&["wire"])), ["wire"]);
    assert!(forbidden("tests", &uses(&["forwarding"])).is_empty());
}

#[test]
fn the_allowed_uses_have_no_circle() {
    let mut order: Vec<&str> = Vec::new();
    while let Some((room, _)) = ALLOWED.iter().find(|(room, uses)| {
        let ready = |used: &&str| order.contains(used) || ANYTHING.contains(used);
        !order.contains(room) && uses.iter().all(ready)
    }) {
        order.push(room);
    }
    assert_eq!(order.len(), ALLOWED.len(), "only {order:?} can be built one after the other");
}

#[test]
fn every_crate_but_those_at_the_kernel_forbids_unsafe_code() {
    let keyword = ["un", "safe"].concat();
    for Package { room, directory, roots, .. } in packages() {
        if UNSAFE.contains(&room.as_str()) {
            continue;
        }
        for root in roots {
            let text = fs::read_to_string(&root).unwrap();
            assert!(text.contains(&format!("#![forbid({keyword}_code)]")), "{} does not forbid it", root.display());
        }
        // Tests and benches are crates of their own, without the attribute.
        for file in sources(&directory) {
            let text = fs::read_to_string(&file).unwrap();
            for form in ["{", "fn", "impl", "extern", "trait"] {
                assert!(!text.contains(&format!("{keyword} {form}")), "{} has {keyword} code", file.display());
            }
        }
    }
}

/// The package's own Rust files, without those of packages below it.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            if !entry.join("Cargo.toml").exists() && !entry.ends_with("target") {
                files.extend(sources(&entry));
            }
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files
}

#[test]
fn what_is_there_for_tests_stays_out_of_the_program() {
    let tree = cargo(&["tree", "-p", "postern-cli", "-e", "normal", "--prefix", "none", "--format", "{p}"]);
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains("postern-forwarding"), "the tree was not read: {tree}");
    for name in NOT_IN_THE_PROGRAM {
        assert!(!names.contains(name), "{name} is in the program");
    }
}

//! Where the `postern` binary is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The binary beside this test, built from the sources as they are now; or what `POSTERN_BINARY` names.
///
/// `cargo test --workspace` builds it before any test runs. `cargo test -p postern-tests` does not, so what is missing or
/// older than its sources is built here.
pub(crate) fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| match std::env::var_os("POSTERN_BINARY") {
        Some(path) => PathBuf::from(path),
        None => built(),
    });
    &BINARY
}

fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let profile = test.ancestors().nth(2).expect("tests are in target/PROFILE/deps");
    let binary = profile.join("postern");
    if !is_current(&binary) {
        let name = match profile.file_name().and_then(|name| name.to_str()) {
            None | Some("debug") => "dev",
            Some(name) => name,
        };
        let target = profile.parent().expect("a profile's directory is in the target directory");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--package", "postern-cli", "--bin", "postern", "--profile", name]);
        cargo.arg("--target-dir").arg(target).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let status = cargo.status().expect("cargo, which runs this test, can be run");
        assert!(status.success(), "cargo build of postern ended with {status}");
    }
    binary
}

/// Whether it exists and no source of the workspace is newer. (What cargo lists beside a binary is not there after
/// `cargo test`.)
fn is_current(binary: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let Some(built) = modified(binary) else { return false };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> =
        ["dataplane", "control", "benches", "tests/lab"].iter().map(|room| workspace.join(room)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                // Tests and benches of a room are not in the binary.
                if path.parent().is_some_and(|room| room.join("Cargo.toml").exists())
                    && path.file_name().is_some_and(|name| name == "tests" || name == "benches")
                {
                    continue;
                }
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "toml")
                && modified(&path).is_none_or(|modified| modified > built)
            {
                return false;
            }
        }
    }
    true
}

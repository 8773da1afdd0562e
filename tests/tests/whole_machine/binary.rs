//! Where the `postern` binary is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::SystemTime;

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

/// Whether it exists and none of its sources, which cargo lists beside it (`TARGET: SOURCE SOURCE …`), is newer.
fn is_current(binary: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let (Some(built), Ok(list)) = (modified(binary), fs::read_to_string(binary.with_extension("d"))) else {
        return false;
    };
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources);
    let newest: Option<SystemTime> = sources.split_whitespace().filter_map(|source| modified(Path::new(source))).max();
    newest.is_some_and(|newest| newest <= built)
}

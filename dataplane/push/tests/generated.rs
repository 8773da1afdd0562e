//! The committed code is what the proto file gives.

use std::fs;
use std::path::Path;

/// Writes the code instead of comparing it.
const REGENERATE: &str = "POSTERN_REGENERATE";

#[test]
fn the_committed_code_is_generated_from_the_proto_file() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(["postern/push/v1/push.proto"], [package.join("proto")]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    tonic_prost_build::configure().build_transport(false).out_dir(directory.path()).compile_fds(descriptors).unwrap();
    let generated = fs::read_to_string(directory.path().join("postern.push.v1.rs")).unwrap();
    let committed = package.join("src/generated/postern.push.v1.rs");
    if std::env::var_os(REGENERATE).is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    let committed = fs::read_to_string(committed).unwrap_or_default();
    assert!(
        committed == generated,
        "the proto file has changed: run `{REGENERATE}=1 cargo test -p postern-push` and commit what it writes"
    );
}

//! `postern bench compare` and `postern bench report`, with a peer that works and one that does not.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("bench").args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

/// The rows of a section's first table, each by its name.
fn row<'r>(report: &'r Value, section: &str, name: &str) -> Option<&'r Value> {
    let section = report["sections"].as_array()?.iter().find(|found| found["title"] == section)?;
    section["tables"][0]["rows"].as_array()?.iter().find(|row| row["name"] == name)
}

#[test]
fn a_comparison_has_every_contender_names_a_peer_that_fails_and_is_shown_again_from_its_file() {
    if !nix::unistd::geteuid().is_root() || Command::new("nft").arg("--version").output().is_err() {
        println!("skipped: needs root and the program nft");
        return;
    }
    let directory = std::env::temp_dir().join(format!("postern-cli-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = |name: &str| directory.join(name).display().to_string();
    let broken = "name = \"broken <peer>\"\nset_up = \"echo nothing works; exit 3\"\ntear_down = \"touch torn\"\n\
                  lines = [\"rtt\"]\n";
    fs::write(file("broken.toml"), broken).unwrap();
    let kernel = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/peers/kernel-nft.toml");

    let arguments = ["compare", "--quick", "--io", "af_packet", "--only", "rtt,udp_64", "--peer", kernel];
    let (json, html) = (file("run.json"), file("run.html"));
    let output = bench(&[&arguments[..], &["--peer", &file("broken.toml"), "--json", &json, "--html", &html]].concat());
    let (text, progress) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{progress}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    for section in ["Round trip", "UDP overload, 64 flows"] {
        for name in [
            "Postern, af_packet",
            "bare reflector, af_packet",
            "nftables, pinned",
            "nftables, inline",
            "kernel NAT from a peer file",
        ] {
            let row = row(&report, section, name).unwrap_or_else(|| panic!("{section}: {name}: {report}"));
            assert!(row["cells"][0]["median"].as_f64().is_some_and(|median| median > 0.0), "{row}\n{progress}");
        }
    }
    assert_eq!(row(&report, "Round trip", "broken <peer>").unwrap()["remark"], "1 of 1 turns failed");
    assert!(row(&report, "UDP overload, 64 flows", "broken <peer>").is_none(), "it takes part in one line only");
    let note =
        "broken <peer> failed in round 1: set_up of the peer failed (exit status: 3); its last words: nothing works";
    assert!(text.contains(note) && progress.contains("[1/"), "{text}\n{progress}");
    assert!(!report["machine"]["interfaces"].as_array().unwrap().is_empty(), "{report}");

    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("broken &lt;peer&gt;") && page.contains("<svg") && !page.contains("<script"));
    let again = bench(&["report", &json, "--html", "-"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), page);
    assert_eq!(String::from_utf8_lossy(&bench(&["report", &json]).stdout), text);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn what_is_no_report_or_no_peer_file_is_refused_with_its_name() {
    let path = std::env::temp_dir().join(format!("postern-cli-no-report-{}", std::process::id()));
    let name = path.display().to_string();
    fs::write(&path, "{}").unwrap();
    let output = bench(&["report", &name]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains(&name) && error.contains("no report of postern bench"),
        "{error}"
    );
    // Before anything is set up, so without privileges.
    fs::write(&path, "name = \"p\"\ncolour = 1\n").unwrap();
    let output = bench(&["compare", "--quick", "--peer", &name]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    fs::remove_file(&path).unwrap();
    assert!(!output.status.success() && error.contains(&name) && error.contains("unknown field `colour`"), "{error}");
}

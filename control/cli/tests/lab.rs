//! `postern lab` as people and programs use it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

/// The machine has few cores and one `/run/postern-lab`: one lab at a time.
static ONE: Mutex<()> = Mutex::new(());

fn postern(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("lab").args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    postern(arguments).output().unwrap()
}

/// Whether the machine lets us; otherwise prints why not.
fn root() -> bool {
    let root = geteuid().is_root();
    if !root {
        println!("skipped: this needs root");
    }
    root
}

/// Processes of this binary that have a word in their command line.
fn processes_with(mark: &str) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries
        .filter(|path| {
            let arguments = std::fs::read(path.join("cmdline")).unwrap_or_default();
            arguments.starts_with(env!("CARGO_BIN_EXE_postern").as_bytes())
                && String::from_utf8_lossy(&arguments).contains(mark)
        })
        .collect()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn demo(arguments: &[&str]) -> Value {
    let output = run(&[&["demo", "--json", "--requests", "60", "--bulk", "16"], arguments].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["problems"], serde_json::json!([]), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(report["passed"], true);
    assert!(output.status.success());
    report
}

#[test]
fn the_demonstration_moves_every_byte_and_all_targets_answer_both_consumers() {
    let _one = ONE.lock();
    if !root() {
        return;
    }
    for arguments in [&["--workers", "1"][..], &["--workers", "2", "--offloads", "off"], &["--wiring", "one-armed"]] {
        let report = demo(arguments);
        let series = report["series"].as_array().unwrap();
        assert_eq!(series.len(), 4);
        for series in series {
            assert_eq!(series["answered"], 60, "{arguments:?}");
            let by_target = series["by_target"].as_object().unwrap();
            assert_eq!(by_target.len(), 3, "{arguments:?}");
            assert_eq!(by_target.values().filter_map(Value::as_u64).sum::<u64>(), 60);
        }
        let bulk = report["bulk"].as_array().unwrap();
        assert_eq!(bulk.iter().filter_map(|bulk| bulk["bytes"].as_u64()).sum::<u64>(), 4 * (16 << 20));
        assert_eq!(report["checksum_errors"], 0);
        assert_eq!(report["counters"]["total"]["imbalance"], 0);
    }
}

#[test]
fn the_demonstration_works_without_root_where_the_host_allows_it() {
    let _one = ONE.lock();
    let mut command = postern(&["demo", "--json", "--requests", "50", "--bulk", "4"]);
    if geteuid().is_root() {
        use std::os::unix::process::CommandExt;
        // Nobody.
        command.uid(65_534).gid(65_534);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return println!("skipped: nobody may not run the binary: {error}"),
    };
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let message = report["problems"][0].as_str().unwrap_or_default();
    if message.contains("which this host refuses") {
        assert!(message.contains("sudo"), "no advice: {message}");
        return println!("skipped: {message}");
    }
    assert_eq!(report["problems"], serde_json::json!([]), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(report["user_namespace"], true);
    assert_eq!(report["workers"], 1);
}

fn demo_with_a_running_gateway() -> (Child, BTreeSet<PathBuf>) {
    let before = processes_with("dataplane");
    let arguments = ["demo", "--json", "--bulk", "65536"];
    let child = postern(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let gateway = || processes_with("dataplane").difference(&before).cloned().collect::<BTreeSet<_>>();
    eventually("the gateway starts", || !gateway().is_empty());
    (child, gateway())
}

#[test]
fn an_interrupted_or_killed_demonstration_leaves_nothing_behind() {
    let _one = ONE.lock();
    if !root() {
        return;
    }
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGTERM, Some(143)), (Signal::SIGKILL, None)] {
        let (mut child, gateway) = demo_with_a_running_gateway();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), code);
        eventually("the gateway is gone", || gateway.iter().all(|process| !process.exists()));
        assert!(!Path::new("/run/postern-lab").exists());
        let named = std::fs::read_dir(postern_lab::namespace::NAMED).into_iter().flatten().flatten();
        assert!(!named.into_iter().any(|name| name.file_name().to_string_lossy().starts_with("postern-client")));
    }
}

/// Takes the lab down also when the test fails.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        run(&["down"]);
    }
}

#[test]
fn a_lab_stays_up_until_it_is_taken_down() {
    let _one = ONE.lock();
    if !root() {
        return;
    }
    if Path::new("/run/postern-lab").exists() {
        println!("skipped: a lab is up on this machine");
        return;
    }
    assert_eq!(run(&["status"]).status.code(), Some(3));
    let _down = Down;
    let up = run(&["up"]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let again = run(&["up"]);
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("up already"));

    let status = run(&["status", "--json"]);
    assert!(status.status.success());
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let pids: Vec<u64> = status["processes"].as_array().unwrap().iter().filter_map(|one| one["pid"].as_u64()).collect();
    assert_eq!(pids.len(), 4);

    assert_eq!(run(&["exec", "client-a", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let own = run(&["exec", "client-b", "--", "cat", "/proc/self/net/dev"]);
    assert!(String::from_utf8_lossy(&own.stdout).contains("eth0"));
    let stranger = run(&["exec", "client-c", "--", "true"]);
    assert!(String::from_utf8_lossy(&stranger.stderr).contains("there are client-a, client-b"));

    // A gateway that dies is seen.
    let gateway = Pid::from_raw(i32::try_from(pids[3]).unwrap());
    kill(gateway, Signal::SIGKILL).unwrap();
    eventually("the loss is seen", || run(&["status"]).status.code() == Some(1));

    assert!(run(&["down"]).status.success());
    for pid in pids {
        assert!(!processes_with("lab").contains(&PathBuf::from(format!("/proc/{pid}"))));
    }
    assert!(!Path::new("/run/postern-lab").exists());
    assert!(!Path::new("/run/netns/postern-client-a").exists());
    assert_eq!(run(&["status"]).status.code(), Some(3));
    assert!(run(&["down"]).status.success(), "taking down what is down is no error");
}

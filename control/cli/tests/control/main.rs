//! The commands against a real `postern control` on a Unix socket, without a gateway and privileges; and `postern bench`.

mod bench;
mod tls;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A control with a directory of its own. Dropped: killed, and the directory removed.
struct Control {
    process: Child,
    directory: PathBuf,
}

impl Control {
    fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("postern-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (api, data) = (format!("unix:{}/api.sock", directory.display()), directory.join("data"));
        let settings = format!(
            "region = \"test\"\ndata_directory = {:?}\n[api]\nlisten = [{api:?}]\n",
            data.display().to_string()
        );
        fs::write(directory.join("control.toml"), settings).unwrap();
        let process = serve(&directory);
        let control = Self { process, directory };
        control.wait();
        control
    }

    fn wait(&self) {
        let end = Instant::now() + START;
        while self.postern("operator", "whoami").status.code() != Some(0) {
            let log = fs::read_to_string(self.directory.join("control.log")).unwrap_or_default();
            assert!(Instant::now() < end, "control does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn token(&self, who: &str) -> PathBuf {
        match who {
            "operator" => self.directory.join("data/operator.token"),
            other => self.directory.join(format!("{other}.token")),
        }
    }

    /// Runs a command as somebody.
    fn postern(&self, who: &str, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        for variable in ["POSTERN_TOKEN", "POSTERN_CA", "POSTERN_CERTIFICATE", "POSTERN_KEY"] {
            command.env_remove(variable);
        }
        command.args(line.split(' ')).stdin(Stdio::null());
        command.env("POSTERN_API", format!("unix:{}/api.sock", self.directory.display()));
        command.env("POSTERN_TOKEN_FILE", self.token(who)).output().unwrap()
    }

    /// The same for a command that must go well; what it prints as JSON.
    fn json(&self, who: &str, line: &str) -> Value {
        let output = self.postern(who, &format!("{line} --json"));
        assert!(output.status.success(), "{who}: {line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn text(&self, who: &str, line: &str) -> String {
        let output = self.postern(who, line);
        assert!(output.status.success(), "{who}: {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code and the words of a command that must not go well.
    fn refused(&self, who: &str, line: &str) -> (i32, String) {
        let output = self.postern(who, line);
        assert!(!output.status.success(), "{who}: {line}: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// Makes a tenant and its token.
    fn admit(&self, tenant: &str) {
        self.json("operator", &format!("principal create {tenant}"));
        fs::write(self.token(tenant), self.text("operator", &format!("principal token {tenant}"))).unwrap();
    }
}

fn serve(directory: &Path) -> Child {
    let log = fs::File::create(directory.join("control.log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.args(["control", "--config"]).arg(directory.join("control.toml"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(fs::remove_dir_all(&self.directory));
    }
}

#[test]
fn a_tenant_makes_lists_changes_and_deletes_its_objects_and_no_other_sees_them() {
    let control = Control::start();
    control.admit("alice");
    control.admit("bob");
    assert!(control.text("alice", "whoami").contains("alice"));

    let made = control.json("alice", "vpc create shop --prefix 10.0.0.0/24 --tag team=checkout");
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("vpc-"));
    assert_eq!((&made["owner"], &made["version"]), (&"alice".into(), &1.into()));
    let listing = control.text("alice", "vpc list");
    assert!(listing.contains(id) && listing.contains("10.0.0.0/24"), "{listing}");
    assert!(control.text("alice", "vpc show shop").contains("tags.team"));

    // What is not said stays.
    let changed = control.json("alice", "vpc update shop --tag stage=test --untag team");
    assert_eq!(changed["spec"]["prefixes"], serde_json::json!(["10.0.0.0/24"]));
    assert_eq!(changed["tags"], serde_json::json!({ "stage": "test" }));
    let (code, words) = control.refused("alice", "vpc update shop --prefix 10.1.0.0/24 --if-version 1");
    assert_eq!(code, 1);
    assert!(words.contains("version"), "{words}");

    let (code, words) = control.refused("bob", &format!("vpc show {id}"));
    assert_eq!(code, 1);
    assert!(words.contains(id), "{words}");
    assert_eq!(control.json("bob", "vpc list"), serde_json::json!([]));
    assert_eq!(control.json("operator", "vpc list --owner alice").as_array().unwrap().len(), 1);
    let (code, _) = control.refused("bob", "gateway create mine");
    assert_eq!(code, 1);

    assert!(control.text("alice", "vpc delete shop").contains("deleted vpc"));
    assert_eq!(control.json("alice", "vpc list"), serde_json::json!([]));
}

#[test]
fn a_long_listing_is_read_page_by_page_and_the_same_key_makes_one_object() {
    let control = Control::start();
    control.admit("alice");
    for _ in 0..2 {
        control.json("alice", "vpc create one --idempotency-key same");
    }
    control.json("alice", "vpc create two");
    control.json("alice", "vpc create three");
    let names = |line: &str| {
        let listing = control.json("alice", line);
        listing.as_array().unwrap().iter().map(|vpc| vpc["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("vpc list").len(), 3);
    assert_eq!(names("vpc list --limit 2").len(), 2);
    assert_eq!(names("vpc list --name two"), ["two"]);
}

#[test]
fn files_are_applied_with_a_plan_and_again_change_nothing_and_prune_deletes_the_rest() {
    let control = Control::start();
    control.admit("alice");
    let file = control.directory.join("network.toml");
    let file = file.to_str().unwrap();
    fs::write(file, "[[vpc]]\nname = \"a\"\nprefixes = [\"10.0.0.0/24\"]\n[[vpc]]\nname = \"b\"\n").unwrap();
    let plan = control.text("alice", &format!("apply -f {file} --dry-run"));
    assert!(plan.contains("+ vpc a\n") && plan.contains("2 would be made"), "{plan}");
    assert_eq!(control.json("alice", "vpc list"), serde_json::json!([]));
    control.text("alice", &format!("apply -f {file}"));
    let plan = control.text("alice", &format!("apply -f {file}"));
    assert!(plan.contains("0 are made, 0 changed, 0 deleted; 2 stay"), "{plan}");

    fs::write(file, "[[vpc]]\nname = \"a\"\nprefixes = [\"10.1.0.0/24\"]\n").unwrap();
    let plan = control.text("alice", &format!("apply -f {file} --prune"));
    for line in ["~ vpc a\n", "10.0.0.0/24 → 10.1.0.0/24", "- vpc b\n"] {
        assert!(plan.contains(line), "{line:?} is not in {plan}");
    }
    let left = control.json("alice", "vpc list");
    assert_eq!(left.as_array().unwrap().len(), 1);

    // All or nothing, and files that are not right are not sent.
    fs::write(file, "[[vpc]]\nname = \"c\"\n[[vpc]]\nname = \"d\"\nprefixes = [\"ten\"]\n").unwrap();
    let (code, words) = control.refused("alice", &format!("apply -f {file}"));
    assert_eq!(code, 1);
    assert!(words.contains("ten"), "{words}");
    assert_eq!(control.json("alice", "vpc list"), left);
    fs::write(file, "[[vpc]]\nname = \"c\"\nprefix = 1\n").unwrap();
    let (code, words) = control.refused("alice", &format!("apply -f {file}"));
    assert_eq!(code, 2);
    assert!(words.contains("network.toml") && words.contains("`prefix`"), "{words}");
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let mut control = Control::start();
    control.admit("alice");
    assert_eq!(control.refused("alice", "vpc create Shop").0, 1);
    assert_eq!(control.refused("alice", "vpc create shop --slots 3").0, 2);
    assert_eq!(control.refused("nobody", "vpc list").0, 2, "a token file that is not there");
    fs::write(control.token("mallory"), "invented").unwrap();
    assert_eq!(control.refused("mallory", "vpc list").0, 1);
    control.process.kill().unwrap();
    control.process.wait().unwrap();
    let (code, words) = control.refused("alice", "vpc list");
    assert_eq!(code, 3);
    assert!(words.contains("cannot be reached"), "{words}");

    // What was answered before is there after.
    drop(fs::remove_file(control.directory.join("api.sock")));
    control.process = serve(&control.directory);
    control.wait();
    assert!(control.text("alice", "whoami").contains("alice"));
}

#[test]
fn tokens_are_listed_without_the_tokens_and_a_revoked_one_is_nobodys() {
    let control = Control::start();
    control.admit("alice");
    let second = control.text("operator", "principal token alice");
    let listed = control.json("alice", "principal tokens alice");
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(|token| token["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2);
    assert!(!listed.to_string().contains(second.trim()), "a token is shown");
    assert!(control.text("alice", "principal tokens alice").contains(ids[0]));
    // The first one is the one that she uses.
    let left = control.json("operator", &format!("principal revoke alice {}", ids[0]));
    assert_eq!(left.as_array().unwrap().len(), 1);
    let (code, words) = control.refused("alice", "whoami");
    assert_eq!((code, words.contains("token")), (1, true), "{words}");
    fs::write(control.token("alice"), second).unwrap();
    control.text("alice", "whoami");
    let (code, words) = control.refused("alice", "principal revoke alice nothing");
    assert_eq!(code, 1);
    assert!(words.contains("no token of that id"), "{words}");
}

/// Bounds the size of files that a process may write, as a full disk would; `None`: no bound.
fn bound_files(process: &Child, bytes: Option<u64>) -> bool {
    let size = bytes.map_or_else(|| "unlimited:unlimited".to_owned(), |bytes| format!("{bytes}:unlimited"));
    let line = ["--pid".to_owned(), process.id().to_string(), format!("--fsize={size}")];
    Command::new("prlimit").args(line).status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_refuses_changes_whole_and_when_there_is_room_again_they_are_taken_without_a_restart() {
    let mut control = Control::start();
    control.admit("alice");
    control.process.kill().unwrap();
    control.process.wait().unwrap();
    drop(fs::remove_file(control.directory.join("api.sock")));
    // A write beyond the bound is to fail, not to end the process.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" control --config \"$1\"", env!("CARGO_BIN_EXE_postern")]);
    command.arg(control.directory.join("control.toml"));
    control.process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    control.wait();
    let size = fs::metadata(control.directory.join("data/control.redb")).unwrap().len();
    if !bound_files(&control.process, Some(size)) {
        println!("skipped: this needs prlimit (util-linux)");
        return;
    }
    let tags: String = (0..50).map(|at| format!(" --tag k{at}={}", "x".repeat(200))).collect();
    let mut made = Vec::new();
    let words = loop {
        let name = format!("n{}", made.len());
        let output = control.postern("alice", &format!("vpc create {name}{tags}"));
        if !output.status.success() {
            break String::from_utf8(output.stderr).unwrap();
        }
        made.push(name);
        assert!(made.len() < 2000, "the disk does not get full");
    };
    assert!(words.contains("the change was not stored"), "{words}");
    // Reading goes on, and nothing of what was refused is there; the next change is refused as well.
    let names = |control: &Control| {
        let listed = control.json("alice", "vpc list");
        let mut names: Vec<_> =
            listed.as_array().unwrap().iter().map(|vpc| vpc["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    made.sort();
    assert_eq!(names(&control), made);
    assert_eq!(control.refused("alice", &format!("vpc create more{tags}")).0, 1);
    assert!(bound_files(&control.process, None));
    control.json("alice", &format!("vpc create more{tags}"));
    made.push("more".to_owned());
    made.sort();
    assert_eq!(names(&control), made);
    control.process.kill().unwrap();
    control.process.wait().unwrap();
    drop(fs::remove_file(control.directory.join("api.sock")));
    control.process = serve(&control.directory);
    control.wait();
    assert_eq!(names(&control), made, "what was answered is there");
}

#[test]
fn settings_are_checked_and_shells_are_helped() {
    let postern = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_postern")).args(arguments).output().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/control.toml");
    assert!(postern(&["control", "check", example.to_str().unwrap()]).status.success());
    assert_eq!(postern(&["control", "check", "/nonexistent.toml"]).status.code(), Some(2));
    assert_eq!(postern(&["control", "--config", "/nonexistent.toml"]).status.code(), Some(2));
    for shell in ["bash", "zsh", "fish"] {
        let script = postern(&["completions", shell]);
        assert!(script.status.success());
        let script = String::from_utf8(script.stdout).unwrap();
        for word in ["load-balancer", "deregister", "acceptance-required"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
}

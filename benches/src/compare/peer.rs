//! Peers that a user describes: what to run so that something forwards between client and server, and how to take it away.
//!
//! Both are shell scripts, run in the gateway's network namespace. Where its interfaces and addresses are is told to them by
//! environment variables ([`PeerGateway::variables`]).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::Line;
use crate::nat::NatError;
use crate::nat::processor::{GATEWAY_CPU, cores};
use crate::nat::topology::{
    CLIENT, ENDPOINT, GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE, PORT, SNAT, TARGET, Topology,
};

/// Characters of a peer's name at most.
const NAME: usize = 40;

/// What can be wrong with a peer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The file cannot be read.
    #[error("cannot read the peer file {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// It is not TOML, has an unknown key, or a key is missing.
    #[error("the peer file {0} is wrong: {1}")]
    Syntax(PathBuf, toml::de::Error),
    /// A value is not possible.
    #[error("the peer file {0} is wrong: {1}")]
    Value(PathBuf, String),
    /// A script could not be started.
    #[error("cannot run {script} of the peer: {source}")]
    Run {
        /// `set_up` or `tear_down`.
        script: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A script took too long.
    #[error("{script} of the peer was ended after {seconds} s; its last words: {words}")]
    Hung {
        /// `set_up` or `tear_down`.
        script: &'static str,
        /// How long it was waited for.
        seconds: u32,
        /// Its last line of output.
        words: String,
    },
    /// A script failed.
    #[error("{script} of the peer failed ({status}); its last words: {words}")]
    Failed {
        /// `set_up` or `tear_down`.
        script: &'static str,
        /// How.
        status: ExitStatus,
        /// Its last line of output.
        words: String,
    },
}

/// A peer as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The name in tables.
    pub name: String,
    /// Makes it forward. May leave programs in the background.
    pub set_up: String,
    /// Takes everything away. Runs after every turn, whatever happened before.
    pub tear_down: String,
    /// How long each of them may take, 1…600 s.
    #[serde(default = "ten")]
    pub timeout_seconds: u32,
    /// Whether the kernel's work on what the gateway's interfaces receive is steered to the gateway's CPU: for peers inside
    /// the kernel, which have no threads to pin.
    #[serde(default)]
    pub pinned: bool,
    /// Lines in which it takes part; all, if there are none.
    #[serde(default)]
    pub lines: Vec<Line>,
}

const fn ten() -> u32 {
    10
}

impl Peer {
    /// Reads a peer file.
    ///
    /// # Errors
    /// When it cannot be read, or says something that is not possible.
    pub fn read(path: &Path) -> Result<Self, PeerError> {
        let text = fs::read_to_string(path).map_err(|error| PeerError::Read(path.to_owned(), error))?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, PeerError> {
        let peer: Self = toml::from_str(text).map_err(|error| PeerError::Syntax(path.to_owned(), error))?;
        let wrong = |what: String| Err(PeerError::Value(path.to_owned(), what));
        if peer.name.trim().is_empty() || peer.name.chars().count() > NAME || peer.name.contains(char::is_control) {
            return wrong(format!("name must be a line of 1 to {NAME} characters, not {:?}", peer.name));
        }
        for (key, script) in [("set_up", &peer.set_up), ("tear_down", &peer.tear_down)] {
            if script.trim().is_empty() {
                return wrong(format!("{key} must be a command; \"true\" does nothing"));
            }
        }
        if !(1..=600).contains(&peer.timeout_seconds) {
            return wrong(format!("timeout_seconds must be from 1 to 600, not {}", peer.timeout_seconds));
        }
        Ok(peer)
    }

    /// Whether it takes part in a line.
    #[must_use]
    pub fn takes_part(&self, line: Line) -> bool {
        self.lines.is_empty() || self.lines.contains(&line)
    }
}

/// A peer between client and server.
#[derive(Debug)]
pub struct PeerGateway {
    peer: Peer,
    topology: Topology,
    /// The link that shows which processes are in the gateway's namespace.
    namespace: String,
    directory: tempfile::TempDir,
}

impl PeerGateway {
    /// Builds the topology. The gateway's interfaces are up and have no address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn build(peer: Peer) -> Result<Self, NatError> {
        let topology = Topology::build()?;
        let namespace = super::namespace_link(topology.gateway())?;
        let directory = tempfile::tempdir().map_err(|error| NatError::Io("make a temporary directory", error))?;
        Ok(Self { peer, topology, namespace, directory })
    }

    /// What its file says.
    #[must_use]
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The namespaces.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// What scripts are told.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("POSTERN_CLIENT_INTERFACE", GATEWAY_CLIENT_INTERFACE.to_owned()),
            ("POSTERN_SERVER_INTERFACE", GATEWAY_SERVER_INTERFACE.to_owned()),
            ("POSTERN_CLIENT", CLIENT.to_string()),
            ("POSTERN_ENDPOINT", ENDPOINT.to_string()),
            ("POSTERN_SNAT", SNAT.to_string()),
            ("POSTERN_TARGET", TARGET.to_string()),
            ("POSTERN_PREFIX_LENGTH", "24".to_owned()),
            ("POSTERN_PORT", PORT.to_string()),
            ("POSTERN_CPU", GATEWAY_CPU.min(cores() - 1).to_string()),
            ("POSTERN_DIRECTORY", self.directory.path().display().to_string()),
        ]
    }

    /// Runs `set_up`. If that fails, `tear_down` has run when this returns.
    ///
    /// # Errors
    /// When it fails or hangs.
    pub fn start(&self) -> Result<RunningPeer<'_>, PeerError> {
        let running = RunningPeer { gateway: self, ended: false };
        self.run("set_up", &self.peer.set_up)?;
        Ok(running)
    }

    fn run(&self, script: &'static str, text: &str) -> Result<(), PeerError> {
        use std::os::unix::process::CommandExt;
        let failed = |source| PeerError::Run { script, source };
        let output = self.directory.path().join(format!("{script}.output"));
        let file = File::create(&output).map_err(failed)?;
        let mut command = Command::new("sh");
        command.args(["-eu", "-c", text]).envs(self.variables()).current_dir(self.directory.path());
        // Not a pipe: a program that stays in the background would keep it open.
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(failed)?).stderr(file).process_group(0);
        let started =
            self.topology.gateway().run(|| command.spawn()).map_err(|error| failed(std::io::Error::other(error)))?;
        let status = self.wait(started.map_err(failed)?).map_err(failed)?;
        let words = fs::read_to_string(&output).unwrap_or_default();
        let words = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(none)").trim().to_owned();
        match status {
            None => Err(PeerError::Hung { script, seconds: self.peer.timeout_seconds, words }),
            Some(status) if !status.success() => Err(PeerError::Failed { script, status, words }),
            Some(_) => Ok(()),
        }
    }

    /// Waits for a script, and ends its process group if it takes too long.
    fn wait(&self, mut child: Child) -> std::io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + Duration::from_secs(self.peer.timeout_seconds.into());
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                // Its leader has not been waited for, so the number is still the group's.
                let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
                child.wait()?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends what a peer has left behind in its namespace, where nothing else is. Returns how many processes.
    fn end_what_is_left(&self) -> usize {
        let this = std::process::id();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != this);
        let inside = |pid: &u32| {
            let link = fs::read_link(format!("/proc/{pid}/ns/net"));
            link.is_ok_and(|link| link.as_os_str() == self.namespace.as_str())
        };
        pids.filter(inside).filter(|pid| kill(Pid::from_raw(*pid as i32), Signal::SIGKILL).is_ok()).count()
    }
}

/// A peer that was set up. It is torn down with this value.
#[derive(Debug)]
pub struct RunningPeer<'g> {
    gateway: &'g PeerGateway,
    ended: bool,
}

impl RunningPeer<'_> {
    /// Tears it down, and says whether that worked.
    ///
    /// # Errors
    /// When it fails or hangs.
    pub fn end(mut self) -> Result<(), PeerError> {
        self.ended = true;
        let outcome = self.gateway.run("tear_down", &self.gateway.peer.tear_down);
        self.gateway.end_what_is_left();
        outcome
    }
}

impl Drop for RunningPeer<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.gateway.run("tear_down", &self.gateway.peer.tear_down);
            self.gateway.end_what_is_left();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Peer, String> {
        Peer::parse(text, Path::new("peer.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_peer_file_is_refused_with_the_key_that_is_wrong() {
        let good = "name = \"p\"\nset_up = \"true\"\ntear_down = \"true\"\n";
        assert!(parse(good).is_ok());
        let cases = [
            (format!("{good}colour = \"red\"\n"), "unknown field `colour`"),
            ("name = \"p\"\nset_up = \"true\"\n".to_owned(), "missing field `tear_down`"),
            ("set_up = \"true\"\ntear_down = \"true\"\n".to_owned(), "missing field `name`"),
            (good.replace("set_up = \"true\"", "set_up = \" \""), "set_up must be a command"),
            (good.replace("\"p\"", "\"\""), "name must be a line of 1 to 40 characters"),
            (format!("{good}timeout_seconds = 0\n"), "timeout_seconds must be from 1 to 600, not 0"),
            (format!("{good}lines = [\"icmp\"]\n"), "unknown variant `icmp`"),
            ("name = ".to_owned(), "peer.toml is wrong"),
        ];
        for (text, words) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let missing = Peer::read(Path::new("/nowhere/peer.toml")).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read the peer file /nowhere/peer.toml"), "{missing}");
    }

    #[test]
    fn without_lines_a_peer_takes_part_in_all() {
        let peer = parse("name = \"p\"\nset_up = \"true\"\ntear_down = \"true\"\nlines = [\"tcp_1_stream\"]").unwrap();
        assert!(peer.takes_part(Line::Tcp1) && !peer.takes_part(Line::Udp64));
        assert!(Peer { lines: Vec::new(), ..peer }.takes_part(Line::Udp64));
    }

    fn gateway(set_up: &str, tear_down: &str) -> Option<PeerGateway> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let text = format!("name = 'p'\ntimeout_seconds = 1\nset_up = '{set_up}'\ntear_down = '{tear_down}'\n");
        Some(PeerGateway::build(parse(&text).unwrap()).unwrap())
    }

    #[test]
    fn a_script_that_hangs_is_ended_and_torn_down() {
        let Some(gateway) = gateway("echo waiting; sleep 1000", "touch torn_down") else { return };
        let error = gateway.start().unwrap_err().to_string();
        assert_eq!(error, "set_up of the peer was ended after 1 s; its last words: waiting");
        assert!(gateway.directory.path().join("torn_down").exists());
        assert_eq!(gateway.end_what_is_left(), 0, "the whole group was ended");
    }

    #[test]
    fn a_script_that_fails_is_torn_down_and_its_last_words_are_told() {
        let Some(gateway) = gateway("echo no such thing >&2; false; touch not_reached", "touch torn_down") else {
            return;
        };
        let error = gateway.start().unwrap_err().to_string();
        assert!(error.starts_with("set_up of the peer failed") && error.ends_with("no such thing"), "{error}");
        let directory = gateway.directory.path();
        assert!(directory.join("torn_down").exists() && !directory.join("not_reached").exists());
    }

    #[test]
    fn scripts_run_in_the_gateways_namespace_and_what_they_leave_behind_is_ended() {
        let set_up =
            "test -e /proc/self/net/dev && grep -q \"$POSTERN_CLIENT_INTERFACE\" /proc/self/net/dev; sleep 1000 &";
        let Some(gateway) = gateway(set_up, "false") else { return };
        let running = gateway.start().unwrap();
        let error = running.end().unwrap_err().to_string();
        assert!(error.starts_with("tear_down of the peer failed"), "{error}");
        // It has been ended; until the kernel has let it go it may be seen again.
        let deadline = Instant::now() + Duration::from_secs(20);
        while gateway.end_what_is_left() > 0 {
            assert!(Instant::now() < deadline, "a process of the peer is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

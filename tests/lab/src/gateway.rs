//! The process under test: `postern dataplane` in the gateway's namespace.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::namespace::Namespace;
use crate::process::{Launcher, Process, ProcessError, describe};

/// What can go wrong with the gateway's process.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// One of its files could not be written or read.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be started or stopped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It ended before it was ready.
    #[error("{program} ended with {status} before it was ready; it said:\n{log}")]
    Ended {
        /// What was started.
        program: String,
        /// How it ended.
        status: String,
        /// The end of its standard error.
        log: String,
    },
    /// It did not become ready.
    #[error("{program} was not ready after {seconds} s; it said:\n{log}")]
    NotReady {
        /// What was started.
        program: String,
        /// How long was waited.
        seconds: u64,
        /// The end of its standard error.
        log: String,
    },
    /// It could not be asked.
    #[error("cannot read the gateway's {what}: {reason}")]
    Inspection {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

/// How long a start may take. Regions of memory are made and faulted in; machines that test are busy.
pub const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long it may drain at the end.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A running gateway, with a directory for its configuration, sockets and log. Dropped: killed.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    launcher: Launcher,
    namespace: Namespace,
    directory: PathBuf,
}

impl Gateway {
    /// Writes the configuration and starts the gateway; returns when it says that it is ready.
    pub fn start(
        launcher: &Launcher,
        namespace: &Namespace,
        directory: &Path,
        configuration: &str,
    ) -> Result<Self, GatewayError> {
        let file = configuration_file(directory);
        write(&file, configuration)?;
        let mut command = launcher.command(launcher.binary());
        command.args(["dataplane", "--config"]).arg(&file);
        let process = start_and_wait(namespace, command, directory, "gateway")?;
        Ok(Self { process, launcher: launcher.clone(), namespace: namespace.clone(), directory: directory.to_owned() })
    }

    /// Its namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its directory: `gateway.toml`, `control.sock`, `gateway.log`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&log_file(&self.directory, "gateway"))
    }

    /// Replaces the configuration and tells the gateway to read it (SIGHUP). It is taken, or refused, a moment later:
    /// see [`Gateway::wait_for_log`].
    pub fn reload(&mut self, configuration: &str) -> Result<(), GatewayError> {
        // As an operator's tools do: a reader sees the old file or the new one.
        let file = configuration_file(&self.directory);
        let next = file.with_extension("toml.new");
        write(&next, configuration)?;
        fs::rename(&next, &file).map_err(|source| GatewayError::File { path: file, source })?;
        Ok(self.process.signal(Signal::SIGHUP)?)
    }

    /// Waits until the log has `text` behind its first `from` bytes; false at the deadline.
    #[must_use]
    pub fn wait_for_log(&self, from: usize, text: &str, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        loop {
            if self.log().get(from..).is_some_and(|log| log.contains(text)) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All counters, as `postern counters --json` prints them.
    pub fn counters(&self) -> Result<serde_json::Value, GatewayError> {
        inspect(&self.launcher, &self.directory, "counters")
    }

    /// All flows, as `postern flows --json` prints them.
    pub fn flows(&self) -> Result<serde_json::Value, GatewayError> {
        inspect(&self.launcher, &self.directory, "flows")
    }

    /// Starts it again after it has ended, with the configuration that is there.
    pub fn restart(&mut self) -> Result<(), GatewayError> {
        self.process.kill()?;
        let configuration = configuration_file(&self.directory);
        let mut command = self.launcher.command(self.launcher.binary());
        command.args(["dataplane", "--config"]).arg(&configuration);
        self.process = start_and_wait(&self.namespace, command, &self.directory, "gateway")?;
        Ok(())
    }

    /// Asks it to end, and kills it at a deadline.
    pub fn stop(&mut self) -> Result<ExitStatus, GatewayError> {
        Ok(self.process.terminate(STOP_DEADLINE)?)
    }
}

/// The configuration in a gateway's directory.
#[must_use]
pub fn configuration_file(directory: &Path) -> PathBuf {
    directory.join("gateway.toml")
}

/// The standard error of a program in a lab's directory.
#[must_use]
pub fn log_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

/// Asks a running gateway through the command that an operator would type.
pub fn inspect(launcher: &Launcher, directory: &Path, what: &'static str) -> Result<serde_json::Value, GatewayError> {
    let failed = |reason: String| GatewayError::Inspection { what, reason };
    let mut command = Command::new(launcher.binary());
    command.arg(what).arg("--json").arg("--socket").arg(directory.join("control.sock"));
    let output = command.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("its answer is not JSON: {error}")))
}

/// Starts a program with its outputs in files of a directory, and waits for the line `ready` on its standard output.
pub fn start_and_wait(
    namespace: &Namespace,
    command: Command,
    directory: &Path,
    name: &str,
) -> Result<Process, GatewayError> {
    let (log, output) = (log_file(directory, name), output_file(directory, name));
    let mut process = spawn_logged(namespace, command, directory, name)?;
    let end = Instant::now() + START_DEADLINE;
    loop {
        if read_lossy(&output).lines().any(|line| line == "ready") {
            return Ok(process);
        }
        let said = || last_lines(&read_lossy(&log), 20);
        if let Some(status) = process.try_wait()? {
            return Err(GatewayError::Ended { program: name.to_owned(), status: describe(status), log: said() });
        }
        if Instant::now() > end {
            let seconds = START_DEADLINE.as_secs();
            return Err(GatewayError::NotReady { program: name.to_owned(), seconds, log: said() });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn output_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.out"))
}

/// Starts a program whose output goes to files in a directory: `NAME.out` and `NAME.log`.
pub(crate) fn spawn_logged(
    namespace: &Namespace,
    mut command: Command,
    directory: &Path,
    name: &str,
) -> Result<Process, GatewayError> {
    let open = |path: PathBuf| File::create(&path).map_err(|source| GatewayError::File { path, source });
    command.stdin(Stdio::null());
    command.stdout(open(output_file(directory, name))?).stderr(open(log_file(directory, name))?);
    Ok(namespace.spawn(command)?)
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), GatewayError> {
    fs::write(path, text).map_err(|source| GatewayError::File { path: path.to_owned(), source })
}

pub(crate) fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

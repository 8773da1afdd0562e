//! Programs that run in a namespace and end with whoever started them.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getppid, setsid};

use crate::namespace::{Namespace, NamespaceError};

/// What can go wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It could not be told something, or waited for.
    #[error("cannot {action} process {pid}: {source}")]
    Control {
        /// What was to be done.
        action: &'static str,
        /// Its process id.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// Starts programs through the `postern` binary itself (`postern lab launch`), which ties the program's life to the
/// starter's before it becomes the program: when the starter dies, however it dies, the kernel kills the program.
///
/// A safe `fork` hook to do this from outside does not exist; without a launcher a program is only ended by [`Process`].
#[derive(Debug, Clone)]
pub struct Launcher {
    binary: PathBuf,
}

impl Launcher {
    /// Uses a given `postern` binary.
    #[must_use]
    pub fn new(binary: &Path) -> Self {
        Self { binary: binary.to_owned() }
    }

    /// Uses the running program, which must be `postern`.
    pub fn current() -> Result<Self, ProcessError> {
        // The link, not its target: a binary replaced while it runs can still start itself.
        let binary = PathBuf::from("/proc/self/exe");
        match binary.try_exists() {
            Ok(true) => Ok(Self { binary: std::env::current_exe().unwrap_or(binary) }),
            Ok(false) => Err(ProcessError::Start { program: binary, source: io::ErrorKind::NotFound.into() }),
            Err(source) => Err(ProcessError::Start { program: binary, source }),
        }
    }

    /// The `postern` binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A command for `program` that the kernel kills when this process dies.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["lab", "launch", "--starter", &std::process::id().to_string(), "--"]).arg(program);
        command
    }

    /// A command for `program` in a session of its own that goes on when this process ends.
    #[must_use]
    pub fn background_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["lab", "launch", "--"]).arg(program);
        command
    }
}

/// The other half of [`Launcher`]: ties this process to `starter` (or to nobody, in a session of its own), and becomes the
/// program. Returns only if that fails.
#[must_use]
pub fn launch(starter: Option<i32>, program: &OsStr, arguments: &[impl AsRef<OsStr>]) -> ProcessError {
    let failed = |source| ProcessError::Start { program: PathBuf::from(program), source };
    // Whatever the starter had blocked for its own purposes, the program shall hear.
    if let Err(errno) = SigSet::all().thread_unblock() {
        return failed(errno.into());
    }
    match starter {
        Some(starter) => {
            if let Err(errno) = set_pdeathsig(Signal::SIGKILL) {
                return failed(errno.into());
            }
            // It may have died before the line above.
            if getppid() != Pid::from_raw(starter) {
                return failed(io::Error::other(format!("process {starter}, which asked for it, has ended")));
            }
        }
        None => {
            if let Err(errno) = setsid() {
                return failed(errno.into());
            }
        }
    }
    failed(Command::new(program).args(arguments).exec())
}

/// A child process in a namespace. Dropped: killed and waited for.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
    leave: bool,
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts all children. The kernel's parent-death signal follows the *thread* that forked, so children
/// must come from one that lives as long as the process does.
static NURSERY: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, work) = channel::<Job>();
    std::thread::spawn(move || work.into_iter().for_each(|job| job()));
    Mutex::new(jobs)
});

impl Process {
    pub(crate) fn start(namespace: &Namespace, mut command: Command) -> Result<Self, ProcessError> {
        let namespace = namespace.clone();
        let (answer, answers) = channel();
        let job: Job = Box::new(move || {
            let started = namespace.enter().map_err(ProcessError::from).and_then(|()| {
                let program = PathBuf::from(command.get_program());
                command.spawn().map_err(|source| ProcessError::Start { program, source })
            });
            drop(answer.send(started));
        });
        let lost = || ProcessError::Start {
            program: PathBuf::new(),
            source: io::Error::other("the thread that starts programs has ended"),
        };
        NURSERY.lock().unwrap_or_else(PoisonError::into_inner).send(job).map_err(|_| lost())?;
        let child = answers.recv().map_err(|_| lost())??;
        Ok(Self { child, ended: None, leave: false })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if it was piped and not taken before.
    pub const fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output, if it was piped and not taken before.
    pub const fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error, if it was piped and not taken before.
    pub const fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ProcessError> {
        if self.try_wait()?.is_some() {
            return Err(self.failed("signal", Errno::ESRCH.into()));
        }
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(|errno| self.failed("signal", errno.into()))
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(|source| self.failed("wait for", source))?;
        }
        Ok(self.ended)
    }

    /// Waits for it to end, for at most `deadline`; `None`: it still runs.
    pub fn wait(&mut self, deadline: Duration) -> Result<Option<ExitStatus>, ProcessError> {
        let end = Instant::now() + deadline;
        loop {
            match self.try_wait()? {
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
                other => return Ok(other),
            }
        }
    }

    /// Asks it to end (SIGTERM), and kills it at the deadline. Returns how it ended.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus, ProcessError> {
        if self.try_wait()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        if let Some(status) = self.wait(deadline)? {
            return Ok(status);
        }
        self.kill()
    }

    /// Kills it, as a crash would, and returns how it ended.
    pub fn kill(&mut self) -> Result<ExitStatus, ProcessError> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.child.kill().map_err(|source| self.failed("kill", source))?;
        let status = self.child.wait().map_err(|source| self.failed("wait for", source))?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Lets it go on without us; returns its process id.
    #[must_use]
    pub fn leave_running(mut self) -> u32 {
        self.leave = true;
        self.child.id()
    }

    fn failed(&self, action: &'static str, source: io::Error) -> ProcessError {
        ProcessError::Control { action, pid: self.child.id(), source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.leave {
            drop(self.kill());
        }
    }
}

/// `exit code 1`, `signal 9 (SIGKILL)`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("signal {number} ({signal})"),
            Err(_) => format!("signal {number}"),
        },
        (None, None) => "an unknown status".to_owned(),
    }
}

//! A lab that stays: named namespaces, servers and a gateway in the background, and a file that says what was started.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use postern_lab::control::{self, CONSUMERS, Commands, OPERATOR, PROVIDER};
use postern_lab::gateway::{configuration_file, log_file, start_and_wait};
use postern_lab::network::{ENDPOINT, NODES};
use postern_lab::{
    ControlError, GatewayError, Launcher, Namespace, NamespaceError, Network, NetworkError, Process, ProcessError,
    TopologyError, Wiring, declaration,
};
use serde::{Deserialize, Serialize};

use super::{Shape, usual_workers};

/// In front of a host's name in the name of its namespace.
const PREFIX: &str = "postern-";
/// Where control is: beside the gateway.
const CONTROL: &str = "control";
/// How long a process may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can go wrong with a lab in the background.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackgroundError {
    #[error(
        "this needs root: namespaces with names are the host's (sudo postern lab up); `postern lab demo` does without"
    )]
    NotRoot,
    #[error("the lab is up already ({0} exists); `postern lab status` shows it, `postern lab down` takes it down")]
    Up(PathBuf),
    #[error("the lab is not up ({0} does not exist); start it with `postern lab up`")]
    Down(PathBuf),
    #[error("{0} is not a host of the lab; there are {hosts}, and {CONTROL}", hosts = NODES.join(", "))]
    NoSuchNode(String),
    #[error("{0} is no principal of the lab; there are {list}", list = principals().join(", "))]
    NoSuchPrincipal(String),
    #[error("the lab is up without control; take it down, and bring it up with `postern lab up --control`")]
    NoControl,
    #[error("cannot use {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is not a lab's state: {source}; remove the directory after looking at it")]
    State { path: PathBuf, source: serde_json::Error },
    #[error("cannot run {program} on {node}: {source}")]
    Exec { program: String, node: String, source: io::Error },
    #[error("process {pid} ({name}) does not end")]
    Immortal { name: String, pid: i32 },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// What `lab up` started, so that `lab down` ends exactly that.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    workers: usize,
    processes: Vec<Started>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Started {
    name: String,
    pid: i32,
    /// When it started, in clock ticks since boot: a number that a later process with this pid does not have.
    start_time: u64,
}

impl Started {
    fn new(name: &str, process: Process) -> Self {
        let pid = process.leave_running().cast_signed();
        Self { name: name.to_owned(), pid, start_time: start_time(pid).unwrap_or_default() }
    }

    fn runs(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// Asks it to end, then makes it.
    fn end(&self) -> Result<(), BackgroundError> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if !self.runs() {
                return Ok(());
            }
            // It may end in between; then there is nothing to signal.
            let _ended = kill(Pid::from_raw(self.pid), signal);
            let deadline = Instant::now() + PATIENCE;
            while self.runs() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if self.runs() { Err(BackgroundError::Immortal { name: self.name.clone(), pid: self.pid }) } else { Ok(()) }
    }
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)); `None` where no such process runs, or only its exit status is left.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold spaces and parentheses itself.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(own) if !geteuid().is_root() => PathBuf::from(own).join("postern-lab"),
        _ => PathBuf::from("/run/postern-lab"),
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> BackgroundError {
    let path = path.to_owned();
    move |source| BackgroundError::File { path: path.clone(), source }
}

fn read_state(directory: &Path) -> Result<State, BackgroundError> {
    let path = directory.join("state.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| BackgroundError::State { path, source }),
        // Interrupted before anything was started.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(source) => Err(BackgroundError::File { path, source }),
    }
}

/// Saved after each start, so that an interrupted `up` can be taken down.
fn save(directory: &Path, state: &State) -> Result<(), BackgroundError> {
    let path = directory.join("state.json");
    let text =
        serde_json::to_vec_pretty(state).map_err(|source| BackgroundError::State { path: path.clone(), source })?;
    fs::write(&path, text).map_err(file_error(&path))
}

/// Brings it up; with control, if asked for.
pub(super) fn up(shape: &Shape, with_control: bool) -> Result<(), BackgroundError> {
    if !geteuid().is_root() {
        return Err(BackgroundError::NotRoot);
    }
    let directory = directory();
    match fs::create_dir(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(BackgroundError::Up(directory)),
        Err(error) => return Err(file_error(&directory)(error)),
    }
    if let Err(error) = start(shape, with_control, &directory) {
        if let Err(second) = down() {
            eprintln!("postern lab: and what was started could not be taken down: {second}");
        }
        return Err(error);
    }
    println!(
        "The lab is up: client-a and client-b, each in a VPC of its own with the same addresses, reach three targets"
    );
    println!("through the endpoint {ENDPOINT}. The gateway's files are in {}. Try:", directory.display());
    println!("  postern lab exec client-a -- curl http://{ENDPOINT}/");
    println!("  postern lab exec client-b -- ping -c 1 {ENDPOINT}");
    println!("  postern counters --socket {}", directory.join("control.sock").display());
    if with_control {
        println!("Control runs beside the gateway; the principals are {}:", principals().join(", "));
        println!("  postern lab exec control -- postern endpoint list");
        println!("  postern lab exec control --as provider -- postern service list");
    }
    println!("  postern lab down");
    Ok(())
}

fn start(shape: &Shape, with_control: bool, directory: &Path) -> Result<(), BackgroundError> {
    let launcher = Launcher::current()?;
    let plan = shape.plan(usual_workers());
    if with_control && plan.wiring == Wiring::OneArmed {
        return Err(TopologyError::OneNetwork.into());
    }
    let network = Network::build(&plan, |name| Namespace::named(&format!("{PREFIX}{name}")))?;
    let mut state = State { workers: plan.workers, processes: Vec::new() };
    for (node, name) in network.targets.iter().zip(&NODES[2..]) {
        let mut command = launcher.background_command(launcher.binary());
        command.args(["lab", "serve", name]);
        let server = start_and_wait(node.namespace(), command, directory, name)?;
        state.processes.push(Started::new(name, server));
        save(directory, &state)?;
    }
    let commands = Commands::new(&launcher, directory);
    let mut admitted = None;
    if with_control {
        let file = directory.join("control.toml");
        fs::write(&file, declaration::control_settings(directory)).map_err(file_error(&file))?;
        let command = launcher.background_command(launcher.binary());
        let process = control::start_and_wait(command, &network.gateway, directory)?;
        state.processes.push(Started::new("control", process));
        save(directory, &state)?;
        admitted = Some(control::admit(&commands)?);
    }
    let file = configuration_file(directory);
    let configuration = if with_control {
        declaration::with_control(&plan, directory)
    } else {
        declaration::configuration(&plan, directory)
    };
    fs::write(&file, configuration).map_err(file_error(&file))?;
    let mut command = launcher.background_command(launcher.binary());
    command.args(["dataplane", "--config"]).arg(&file);
    let gateway = start_and_wait(&network.gateway, command, directory, "gateway")?;
    state.processes.push(Started::new("gateway", gateway));
    save(directory, &state)?;
    if let Some(gateway) = admitted {
        control::connected(&commands, &gateway)?;
        let declared = control::declare(&commands, &plan, gateway)?;
        control::accept(&commands, &declared)?;
    }
    Ok(())
}

pub(super) fn down() -> Result<(), BackgroundError> {
    let directory = directory();
    if directory.exists() {
        // The gateway was started last and goes first.
        for process in read_state(&directory)?.processes.iter().rev() {
            process.end()?;
        }
    }
    for node in NODES {
        let name = format!("{PREFIX}{node}");
        if Path::new(postern_lab::namespace::NAMED).join(&name).exists() {
            Namespace::remove(&name)?;
        }
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(&directory)(error)),
        _ => Ok(()),
    }
}

pub(super) fn status(json: bool) -> ExitCode {
    /// As service managers have it: not running.
    const NOT_RUNNING: u8 = 3;
    let directory = directory();
    let state = if directory.exists() { read_state(&directory).map(Some) } else { Ok(None) };
    let state = match state {
        Ok(state) => state,
        Err(error) => return super::fail(&error),
    };
    // The gateway is the last that `up` starts.
    let whole = state.as_ref().is_some_and(|state| {
        state.processes.iter().any(|process| process.name == "gateway") && state.processes.iter().all(Started::runs)
    });
    if json {
        let processes = state.iter().flat_map(|state| &state.processes).map(|process| {
            let Started { name, pid, .. } = process;
            serde_json::json!({ "name": name, "pid": pid, "running": process.runs() })
        });
        let processes: Vec<_> = processes.collect();
        println!(
            "{}",
            serde_json::json!({
                "up": state.is_some(),
                "whole": whole,
                "workers": state.as_ref().map(|state| state.workers),
                "directory": directory,
                "processes": processes,
            })
        );
    } else if let Some(state) = &state {
        println!("{}", super::report::processes(&rows(state, &directory)));
    } else {
        println!("The lab is not up.");
    }
    match (&state, whole) {
        (None, _) => ExitCode::from(NOT_RUNNING),
        (Some(_), false) => ExitCode::FAILURE,
        (Some(_), true) => ExitCode::SUCCESS,
    }
}

fn rows(state: &State, directory: &Path) -> Vec<[String; 4]> {
    let row = |process: &Started| {
        let condition = if process.runs() { "runs" } else { "has ended" };
        let log = log_file(directory, &process.name).display().to_string();
        [process.name.clone(), process.pid.to_string(), condition.to_owned(), log]
    };
    state.processes.iter().map(row).collect()
}

/// Who asks control.
fn principals() -> [&'static str; 4] {
    [OPERATOR, PROVIDER, CONSUMERS[0], CONSUMERS[1]]
}

/// Becomes the command; returns only if that fails. Where control is, `postern` asks it as a principal.
pub(super) fn exec(node: &str, principal: Option<&str>, command: &[OsString]) -> BackgroundError {
    let is_control = node == CONTROL;
    if !NODES.contains(&node) && !is_control {
        return BackgroundError::NoSuchNode(node.to_owned());
    }
    let principal = principal.unwrap_or(OPERATOR);
    if !principals().contains(&principal) {
        return BackgroundError::NoSuchPrincipal(principal.to_owned());
    }
    let directory = directory();
    if !directory.exists() {
        return BackgroundError::Down(directory);
    }
    let mut program = Command::new(&command[0]);
    program.args(&command[1..]);
    if is_control {
        if !control::socket(&directory).exists() {
            return BackgroundError::NoControl;
        }
        program.env("POSTERN_API", control::api(&directory));
        program.env("POSTERN_TOKEN_FILE", control::token_file(&directory, principal)).env_remove("POSTERN_TOKEN");
    }
    let namespace = if is_control { "gateway" } else { node };
    let entered = Namespace::open(&format!("{PREFIX}{namespace}")).and_then(|namespace| namespace.enter());
    if let Err(error) = entered {
        return error.into();
    }
    let source = program.exec();
    let program = command[0].to_string_lossy().into_owned();
    BackgroundError::Exec { program, node: node.to_owned(), source }
}

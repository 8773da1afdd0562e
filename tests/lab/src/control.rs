//! The lab's control plane: `postern control` on the gateway's loopback interface and on a Unix socket, and what its users
//! type. Four principals: an operator, a provider and two consumers.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::declaration;
use crate::gateway::{GatewayError, START_DEADLINE, log_file, read_lossy, spawn_logged, write};
use crate::namespace::Namespace;
use crate::network::{ENDPOINT, PORTS, Plan, VLANS, Wiring};
use crate::process::{Launcher, Process, ProcessError, describe};

/// Address and port at which control awaits gateways, on the loopback interface of the gateway's namespace.
pub const PUSH: &str = "127.0.0.1:7481";
/// Who runs gateways and networks.
pub const OPERATOR: &str = "operator";
/// Who owns the service.
pub const PROVIDER: &str = "provider";
/// Who owns the endpoints.
pub const CONSUMERS: [&str; 2] = ["consumer-a", "consumer-b"];
/// Name of the gateway.
pub const GATEWAY: &str = "lab";
/// Time between probes of a target, in seconds: the shortest that there is.
pub const PROBE_INTERVAL: u64 = 5;

/// How long its start may take: it reads its whole store and compares every checksum; machines that test are busy.
const CONTROL_START: Duration = Duration::from_secs(120);

/// How long a change may take until the gateway has applied it; machines that test are busy.
const APPLIED: &str = "--wait=60";

/// What can go wrong with the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// With its process or files.
    #[error(transparent)]
    Process(#[from] GatewayError),
    /// A command could not be run.
    #[error("{who} cannot run postern {line}: {reason}")]
    Command {
        /// The principal.
        who: String,
        /// The command.
        line: String,
        /// Why not.
        reason: String,
    },
    /// A command was refused.
    #[error("{who}: postern {line} ended with exit code {code}: {message}")]
    Refused {
        /// The principal.
        who: String,
        /// The command.
        line: String,
        /// The exit code, -1 for a signal.
        code: i32,
        /// What it said.
        message: String,
    },
    /// Something did not become so in time.
    #[error("{what}: not within {} s", .within.as_secs())]
    NotInTime {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
    },
}

impl From<ProcessError> for ControlError {
    fn from(error: ProcessError) -> Self {
        Self::Process(error.into())
    }
}

/// What people type at `postern` to ask the lab's control.
#[derive(Debug, Clone)]
pub struct Commands {
    launcher: Launcher,
    directory: PathBuf,
}

impl Commands {
    /// Commands for the control plane whose files are in a directory.
    #[must_use]
    pub fn new(launcher: &Launcher, directory: &Path) -> Self {
        Self { launcher: launcher.clone(), directory: directory.to_owned() }
    }

    /// Runs `postern` as a principal; returns the JSON that it prints.
    pub fn run(&self, who: &str, arguments: &[&str]) -> Result<Value, ControlError> {
        let line = arguments.join(" ");
        let failed = |reason: String| ControlError::Command { who: who.to_owned(), line: line.clone(), reason };
        let mut command = Command::new(self.launcher.binary());
        command.args(arguments).arg("--json").stdin(Stdio::null());
        for variable in ["POSTERN_TOKEN", "POSTERN_CA", "POSTERN_CERTIFICATE", "POSTERN_KEY"] {
            command.env_remove(variable);
        }
        command.env("POSTERN_API", api(&self.directory)).env("POSTERN_TOKEN_FILE", token_file(&self.directory, who));
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let code = output.status.code().unwrap_or(-1);
            return Err(ControlError::Refused { who: who.to_owned(), line, code, message });
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("it did not print JSON: {error}")))
    }

    /// The same for a command of which the id of the object is all that matters.
    pub fn id(&self, who: &str, arguments: &[&str]) -> Result<String, ControlError> {
        Ok(self.run(who, arguments)?["id"].as_str().unwrap_or_default().to_owned())
    }

    /// State of an endpoint as its owner sees it.
    pub fn state(&self, consumer: usize, endpoint: &str) -> Result<String, ControlError> {
        let endpoint = self.run(CONSUMERS[consumer], &["endpoint", "show", endpoint])?;
        Ok(endpoint["status"]["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Asks until something is so.
    pub fn until(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool, ControlError>,
    ) -> Result<(), ControlError> {
        let end = Instant::now() + within;
        while !condition(self)? {
            if Instant::now() > end {
                return Err(ControlError::NotInTime { what: what.to_owned(), within });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A running `postern control`. Dropped: killed.
#[derive(Debug)]
pub struct Control {
    process: Process,
    launcher: Launcher,
    namespace: Namespace,
    directory: PathBuf,
}

impl Control {
    /// Writes the settings and starts control in a namespace; returns when it answers.
    pub fn start(launcher: &Launcher, namespace: &Namespace, directory: &Path) -> Result<Self, ControlError> {
        write(&directory.join("control.toml"), &declaration::control_settings(directory))?;
        let process = start_and_wait(launcher.command(launcher.binary()), namespace, directory)?;
        let (launcher, namespace, directory) = (launcher.clone(), namespace.clone(), directory.to_owned());
        Ok(Self { process, launcher, namespace, directory })
    }

    /// Its process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&log_file(&self.directory, "control"))
    }

    /// Starts it again after it has ended, on the data that is there.
    pub fn restart(&mut self) -> Result<(), ControlError> {
        self.process.kill()?;
        let command = self.launcher.command(self.launcher.binary());
        self.process = start_and_wait(command, &self.namespace, &self.directory)?;
        Ok(())
    }
}

/// Starts `postern control` by a command that a [`Launcher`] made; returns when its API answers.
pub fn start_and_wait(mut command: Command, namespace: &Namespace, directory: &Path) -> Result<Process, ControlError> {
    // A socket that an earlier process left answers nobody.
    drop(fs::remove_file(socket(directory)));
    command.args(["control", "--config"]).arg(directory.join("control.toml"));
    let mut process = spawn_logged(namespace, command, directory, "control")?;
    let end = Instant::now() + CONTROL_START;
    loop {
        if UnixStream::connect(socket(directory)).is_ok() && token_file(directory, OPERATOR).exists() {
            return Ok(process);
        }
        let log = || read_lossy(&log_file(directory, "control"));
        if let Some(status) = process.try_wait()? {
            let (program, status) = ("control".to_owned(), describe(status));
            return Err(GatewayError::Ended { program, status, log: log() }.into());
        }
        if Instant::now() > end {
            let (program, seconds) = ("control".to_owned(), CONTROL_START.as_secs());
            return Err(GatewayError::NotReady { program, seconds, log: log() }.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Path of the API's Unix socket.
#[must_use]
pub fn socket(directory: &Path) -> PathBuf {
    directory.join("api.sock")
}

/// The API's address as commands take it.
#[must_use]
pub fn api(directory: &Path) -> String {
    format!("unix:{}", socket(directory).display())
}

/// File of a principal's token.
#[must_use]
pub fn token_file(directory: &Path, principal: &str) -> PathBuf {
    match principal {
        OPERATOR => directory.join("control").join("operator.token"),
        other => directory.join(format!("{other}.token")),
    }
}

/// What was declared.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Declared {
    /// Id of the gateway.
    pub gateway: String,
    /// Id of the service.
    pub service: String,
    /// Ids of the consumers' endpoints.
    pub endpoints: [String; 2],
    /// Whether the gateway probes the targets.
    pub probed: bool,
}

/// The operator's first steps: a principal and a token for each who calls, the gateway among them. To be done before the
/// gateway starts; returns the gateway's id.
pub fn admit(commands: &Commands) -> Result<String, ControlError> {
    for principal in [PROVIDER, CONSUMERS[0], CONSUMERS[1]] {
        commands.run(OPERATOR, &["principal", "create", principal])?;
        make_token(commands, principal)?;
    }
    let gateway = commands.id(OPERATOR, &["gateway", "create", GATEWAY])?;
    commands.run(OPERATOR, &["principal", "create", GATEWAY])?;
    make_token(commands, GATEWAY)?;
    Ok(gateway)
}

fn make_token(commands: &Commands, principal: &str) -> Result<(), ControlError> {
    let token = commands.run(OPERATOR, &["principal", "token", principal])?;
    let token = token["token"].as_str().unwrap_or_default();
    Ok(write(&token_file(&commands.directory, principal), token)?)
}

/// What operator, provider and consumers declare once the gateway is connected: networks, the service, and an endpoint of
/// each consumer, both of which wait for the provider's word.
pub fn declare(commands: &Commands, plan: &Plan, gateway: String) -> Result<Declared, ControlError> {
    let owners = [CONSUMERS[0], CONSUMERS[1], PROVIDER];
    for (at, owner) in owners.into_iter().enumerate() {
        let (name, prefix) = (declaration::VPCS[at], if at == 2 { "10.9.0.0/24" } else { "10.0.0.0/24" });
        let vpc = commands.id(owner, &["vpc", "create", name, "--prefix", prefix])?;
        let vlan = VLANS.get(at).filter(|_| plan.wiring == Wiring::Vlans).map(u16::to_string);
        let port = if vlan.is_some() { PORTS[0] } else { PORTS[at] };
        let mut attachment = vec!["attachment", "create", name, "--gateway", &gateway, "--vpc", &vpc];
        attachment.extend(["--port", port, "--prefix", prefix]);
        attachment.extend(vlan.iter().flat_map(|vlan| ["--vlan", vlan]));
        commands.run(OPERATOR, &attachment)?;
    }
    let file = commands.directory.join("provider.toml");
    let shown = commands.run(OPERATOR, &["gateway", "show", &gateway])?;
    let capabilities = shown["status"]["capabilities"].as_array().into_iter().flatten();
    let probed = capabilities.into_iter().any(|capability| capability == "health-checks");
    write(&file, &declaration::provider(probed.then_some(PROBE_INTERVAL)))?;
    commands.run(PROVIDER, &["apply", "-f", &file.display().to_string()])?;
    let service = commands.id(PROVIDER, &["service", "show", "service"])?;
    let address = ENDPOINT.to_string();
    let ask = |consumer: usize| {
        let vpc = declaration::VPCS[consumer];
        let arguments = ["endpoint", "create", "web", "--vpc", vpc, "--service", &service, "--address", &address];
        commands.id(CONSUMERS[consumer], &arguments)
    };
    let endpoints = [ask(0)?, ask(1)?];
    Ok(Declared { gateway, service, endpoints, probed })
}

/// The provider's word: both endpoints are accepted. Returns when the gateway forwards for both.
pub fn accept(commands: &Commands, declared: &Declared) -> Result<(), ControlError> {
    for endpoint in &declared.endpoints {
        commands.run(PROVIDER, &["service", "accept", &declared.service, endpoint, APPLIED])?;
    }
    Ok(())
}

/// Waits until control hears the gateway.
pub fn connected(commands: &Commands, gateway: &str) -> Result<(), ControlError> {
    commands.until("the gateway connects to control", START_DEADLINE, |commands| {
        Ok(commands.run(OPERATOR, &["gateway", "show", gateway])?["status"]["connected"] == true)
    })
}

//! From a configuration file to a gateway that forwards, and orderly back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_forwarding::WorkerCounters;
use postern_frame_io::DeviceError;
use postern_frame_io::pin::{PinError, allowed_cpus};
use postern_steering::Ownership;
use postern_tables::declaration::Polling;
use postern_tables::{Checked, Snapshot, Tables};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::configuration::{self, ConfigurationError};
use crate::control_link::state_file::{StateError, StateFile};
use crate::control_link::{AppliedState, ColdStart, ControlLink, Identity, LinkParts, Publication, cold_start};
use crate::control_side::ControlSide;
use crate::health::{HealthError, HealthNews, HealthThread};
use crate::inspection::collect;
use crate::inspection::report::{NeighbourStatus, PortStatus, StatusReport};
use crate::inspection::server::{self, Inspector, Query, ServerError};
use crate::link::{Shared, WorkerDevices};
use crate::polling::IdlePolicy;
use crate::ports::{PortError, Ports};
use crate::run_directory::{RunDirectory, RunDirectoryError};
use crate::supervisor::{WorkerError, WorkerPlan, Workers};

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The configuration.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// The run directory.
    #[error(transparent)]
    RunDirectory(#[from] RunDirectoryError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// A port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The health checks.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// The Unix socket or the metrics page.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The CPUs cannot be read.
    #[error(transparent)]
    Cpus(#[from] PinError),
    /// Spinning workers would take turns on a core.
    #[error(
        "workers.polling = \"spin\" needs a core for each worker: workers.count = {workers}, but this process may use \
         {cores}; lower the count, or set polling = \"adaptive\""
    )]
    Spinning {
        /// Workers.
        workers: u16,
        /// Cores.
        cores: usize,
    },
    /// The system.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Runs a gateway until SIGTERM or SIGINT.
///
/// Prints `ready` on standard output, and tells systemd, when traffic is forwarded and addresses are announced.
///
/// # Errors
/// Why it could not start; then every port is as it was.
pub fn run(path: &Path) -> Result<(), StartupError> {
    let checked = configuration::load(path)?;
    for warning in &checked.warnings {
        warn!("{warning}");
    }
    let gateway = Gateway::start(path, checked)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| StartupError::System { operation: "start the control side", source })?;
    runtime.block_on(gateway.serve())
}

/// Undoes what a gateway that was killed left changed on its ports.
///
/// # Errors
/// When a gateway runs with this run directory, or its list cannot be read.
pub fn restore(run_directory: &Path) -> Result<(), StartupError> {
    // Opening restores.
    RunDirectory::open(run_directory)?;
    Ok(())
}

/// A gateway whose workers forward.
struct Gateway {
    path: PathBuf,
    checked: Checked,
    snapshot: Arc<Snapshot>,
    shared: Arc<Shared>,
    /// The only writer of tables: reloads, control and health change them.
    tables: Arc<Mutex<Tables>>,
    /// What the link to control begins with, until it runs.
    cold: Option<(AppliedState, StateFile)>,
    side: ControlSide,
    /// Ends before the workers.
    health: HealthThread,
    /// Ends before the ports are given back.
    workers: Workers,
}

impl Gateway {
    fn start(path: &Path, checked: Checked) -> Result<Self, StartupError> {
        let settings = &checked.workers;
        let cores = allowed_cpus()?.len();
        let count = settings.count;
        if settings.polling == Polling::Spin && usize::from(count) > cores {
            return Err(StartupError::Spinning { workers: count, cores });
        }
        let [a, b, c, d, e, f] = random()?;
        let ownership = Arc::new(Ownership::even(count, [e, f]));
        let cold = checked.control.as_ref().map(|settings| cold_start(&checked, settings)).transpose()?;
        let (tables, cold) = match cold {
            Some(ColdStart { tables, applied, state }) => (tables, Some((applied, state))),
            None => (Tables::new(&checked), None),
        };
        let snapshot = tables.snapshot().clone();
        let mut tables = tables;
        // From here on targets are probed: one that comes later passes first.
        tables.await_first_pass();
        let tables = Arc::new(Mutex::new(tables));
        let mut run = RunDirectory::open(&checked.gateway.run_directory)?;
        let mut ports = Ports::check(&checked, &snapshot, &ownership)?;

        let opened = open_devices(&mut ports, &mut run, count);
        let (devices, transmitters) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                run.restore()?;
                return Err(error);
            }
        };
        let (endpoints, targets) = (checked.limits.endpoints as usize, checked.limits.targets as usize);
        let counters = (0..count).map(|_| Arc::new(WorkerCounters::new(endpoints, targets))).collect();
        let shared = Shared::new(snapshot.clone(), ports.infos(), counters);
        let shared = Arc::new(shared.map_err(|source| StartupError::System { operation: "make an eventfd", source })?);
        let plan = WorkerPlan {
            flows: settings.flows,
            ipv6_flows: settings.ipv6_flows,
            cpus: settings.cpus.clone(),
            policy: IdlePolicy::new(settings.polling),
            ownership,
            secret: [a, b, c, d],
        };
        let started = Workers::start(&shared, &plan, devices);
        let mut side = ControlSide::new(shared.clone(), ports, transmitters, run, shared.clock.now());
        let hidden = started.map_err(StartupError::from).and_then(|workers| {
            side.hide_from_host()?;
            Ok((workers, HealthThread::start(&shared, random()?[0])?))
        });
        match hidden {
            Ok((workers, health)) => {
                Ok(Self { path: path.to_owned(), checked, snapshot, shared, tables, cold, side, health, workers })
            }
            Err(error) => {
                side.restore();
                Err(error)
            }
        }
    }

    async fn serve(mut self) -> Result<(), StartupError> {
        let served = self.serve_until_stopped().await;
        info!("stopping");
        notify("STOPPING=1");
        drop(self.health);
        drop(self.workers);
        self.side.restore();
        let socket = &self.checked.gateway.control_socket;
        if served.is_ok()
            && let Err(error) = std::fs::remove_file(socket)
        {
            warn!("cannot remove {}: {error}", socket.display());
        }
        served
    }

    async fn serve_until_stopped(&mut self) -> Result<(), StartupError> {
        let system = |operation| move |source| StartupError::System { operation, source };
        let mut terminate = signal(SignalKind::terminate()).map_err(system("take SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("take SIGINT"))?;
        let mut hang_up = signal(SignalKind::hangup()).map_err(system("take SIGHUP"))?;

        let (publications, mut published) = mpsc::channel(1);
        let link = self.link(publications)?;
        // Told when the tables that are being published are settled.
        let mut publishing: Option<oneshot::Sender<()>> = None;
        let (ask, mut queries) = mpsc::channel(16);
        let inspector = Inspector::new(self.checked.gateway.name.clone(), self.shared.clone(), ask);
        let inspector = Arc::new(inspector.with_control(link.as_ref().map(ControlLink::status)));
        let listener = server::listen(&self.checked.gateway.control_socket)?;
        tokio::spawn(server::serve(listener, inspector.clone()));
        if let Some(address) = self.checked.gateway.metrics {
            tokio::spawn(server::serve_metrics(address, inspector).await?);
        }

        self.side.turn(self.shared.clock.now());
        ready();
        let mut reload = Reload::default();
        let mut health = HealthUpdate::default();
        loop {
            self.side.turn(self.shared.clock.now());
            // Before the sleep: the turn may have been the one in which the last worker had taken the tables.
            if self.side.is_settled() {
                if let Some(settled) = publishing.take() {
                    // The link may be gone.
                    let _ = settled.send(());
                }
                reload.start(&self.path, &self.checked, &self.tables);
                health.settled(&self.shared, &self.tables);
            }
            self.shared.control.about_to_sleep();
            let pause = match health.is_due(&self.shared) && self.side.is_settled() {
                true => Duration::ZERO,
                false => self.side.pause(self.shared.clock.now()),
            };
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hang_up.recv() => reload.ask(),
                () = self.shared.control.rung() => {}
                () = tokio::time::sleep(pause) => {}
                Some(query) = queries.recv() => self.answer(query, &reload, link.as_ref()),
                result = reload.finished() => self.apply(result, &mut reload, link.as_ref()),
                snapshot = health.finished() => snapshot.into_iter().for_each(|snapshot| self.forward_by(snapshot)),
                Some(publication) = published.recv(), if self.side.is_settled() => {
                    publishing = Some(self.publish(publication));
                }
            }
            self.shared.control.awake();
        }
    }

    /// Starts the link to control, if there is one.
    fn link(&mut self, publications: mpsc::Sender<Publication>) -> Result<Option<ControlLink>, StartupError> {
        let (Some(cold), Some(settings)) = (self.cold.take(), &self.checked.control) else {
            return Ok(None);
        };
        let [a, b, ..] = random()?;
        let ports = self.checked.ports.iter().map(|port| port.interface.clone()).collect();
        let identity =
            Identity { gateway: self.checked.gateway.name.clone(), boot_id: format!("{a:016x}{b:016x}"), ports };
        let (applied, state) = cold;
        let link = ControlLink::start(LinkParts {
            settings: settings.clone(),
            identity,
            tables: self.tables.clone(),
            applied,
            state,
            counters: self.shared.links.iter().map(|link| link.counters.clone()).collect(),
            publications,
            views: self.shared.health.views.clone(),
        });
        let failed = |source| StartupError::System { operation: "start the link to control", source };
        Ok(Some(link.map_err(failed)?))
    }

    /// Publishes tables that came from control; returns who is to be told when they are settled.
    fn publish(&mut self, publication: Publication) -> oneshot::Sender<()> {
        let Publication { snapshot, settled } = publication;
        self.forward_by(snapshot);
        settled
    }

    /// Publishes tables, unless newer ones are published, in which every earlier change is.
    fn forward_by(&mut self, snapshot: Arc<Snapshot>) {
        if snapshot.generation > self.snapshot.generation {
            self.snapshot = snapshot.clone();
            self.side.publish(snapshot);
        }
    }

    fn apply(&mut self, result: Reloaded, reload: &mut Reload, link: Option<&ControlLink>) {
        match result {
            Ok((checked, snapshot)) => {
                for warning in &checked.warnings {
                    warn!("{warning}");
                }
                info!(generation = snapshot.generation.0, "configuration reloaded");
                if let (Some(link), Some(settings)) = (link, &checked.control) {
                    // The tables are control's.
                    link.configure(settings);
                } else {
                    self.forward_by(snapshot);
                }
                self.checked = checked;
                reload.refused = None;
            }
            Err(error) => {
                let generation = self.snapshot.generation.0;
                error!("reload refused; traffic goes on by generation {generation}");
                for line in error.to_string().lines() {
                    error!("{line}");
                }
                reload.refused = Some(error.to_string());
            }
        }
    }

    /// Answers what only this thread knows. Whoever asked may be gone.
    fn answer(&self, query: Query, reload: &Reload, link: Option<&ControlLink>) {
        match query {
            Query::Status(to) => drop(to.send(self.status(reload, link))),
            Query::Counters(to) => {
                drop(to.send((self.side.neighbours().counters(), self.side.ports().back_ends())));
            }
        }
    }

    fn status(&self, reload: &Reload, link: Option<&ControlLink>) -> StatusReport {
        let ports = self.side.ports();
        let infos = ports.infos().into_iter().enumerate();
        let attachments = &self.snapshot.attachments;
        let neighbours = self.side.neighbours();
        let mut known: Vec<_> = neighbours
            .known()
            .filter_map(|known| {
                let attachment = attachments.get(usize::from(known.attachment.0))?.name.clone();
                Some(NeighbourStatus { attachment, address: known.address, mac: known.mac?.to_string() })
            })
            .collect();
        known.sort_by(|a, b| (&a.attachment, a.address).cmp(&(&b.attachment, b.address)));
        StatusReport {
            gateway: self.checked.gateway.name.clone(),
            process: std::process::id(),
            generation: self.snapshot.generation.0,
            uptime_seconds: collect::uptime(&self.shared),
            ports: infos
                .map(|(at, info)| PortStatus {
                    interface: ports.name(at).to_owned(),
                    shared: ports.is_shared(at),
                    io: ports.back_end(at).to_string(),
                    up: info.up,
                    mtu: info.mtu,
                    mac: info.mac.to_string(),
                })
                .collect(),
            workers: collect::worker_statuses(&self.shared),
            neighbours: known,
            unresolved: neighbours.unresolved(),
            targets: collect::target_statuses(&self.shared),
            refused_reload: reload.refused.clone(),
            control: link.map(|link| link.status().report()),
        }
    }
}

/// What a reload brings: the declaration and its tables.
type Reloaded = Result<(Checked, Arc<Snapshot>), ConfigurationError>;

/// A reload that was asked for or is on its way. It reads, checks and compiles beside the control-side thread.
#[derive(Debug, Default)]
struct Reload {
    asked: bool,
    task: Option<JoinHandle<Reloaded>>,
    refused: Option<String>,
}

impl Reload {
    fn ask(&mut self) {
        self.asked = true;
    }

    fn start(&mut self, path: &Path, checked: &Checked, tables: &Arc<Mutex<Tables>>) {
        if !self.asked || self.task.is_some() {
            return;
        }
        self.asked = false;
        let (path, checked, tables) = (path.to_owned(), checked.clone(), tables.clone());
        self.task = Some(tokio::task::spawn_blocking(move || configuration::reload(&path, &checked, &tables)));
    }

    /// Waits for the reload that is on its way, for ever if there is none. May be dropped and called again.
    async fn finished(&mut self) -> Reloaded {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let result = task.await;
        self.task = None;
        result.unwrap_or_else(|panic| Err(ConfigurationError::Panicked(panic.to_string())))
    }
}

/// Tables that are being changed by what is known of the targets' health, beside the control-side thread.
#[derive(Debug, Default)]
struct HealthUpdate {
    task: Option<JoinHandle<(Option<Arc<Snapshot>>, HealthNews)>>,
    /// What is shown when the tables that have it are settled.
    done: Option<HealthNews>,
}

impl HealthUpdate {
    /// Whether there is something to begin with.
    fn is_due(&self, shared: &Shared) -> bool {
        self.task.is_none() && shared.health.has_news()
    }

    /// Every worker forwards by the tables that were published: what they have is shown, and the next change begins.
    fn settled(&mut self, shared: &Shared, tables: &Arc<Mutex<Tables>>) {
        if let Some(news) = self.done.take() {
            news.show(&shared.health);
        }
        if self.task.is_some() {
            return;
        }
        let (Some(news), tables) = (shared.health.take_news(), tables.clone()) else { return };
        self.task = Some(tokio::task::spawn_blocking(move || {
            // What a panic left is whole: tables are replaced at once.
            let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
            (tables.set_health(&news.usages()), news)
        }));
    }

    /// Waits for the change that is on its way, for ever if there is none. May be dropped and called again.
    async fn finished(&mut self) -> Option<Arc<Snapshot>> {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let result = task.await;
        self.task = None;
        match result {
            Ok((snapshot, news)) => {
                self.done = Some(news);
                snapshot
            }
            Err(panic) => {
                error!("a change of the targets' health is lost: {panic}");
                None
            }
        }
    }
}

/// Each worker's devices, and the control side's transmitters by port.
type Opened = (Vec<WorkerDevices>, Vec<postern_frame_io::af_packet::PacketTransmitter>);

fn open_devices(ports: &mut Ports, run: &mut RunDirectory, workers: u16) -> Result<Opened, StartupError> {
    let mut devices: Vec<WorkerDevices> = (0..workers).map(|_| WorkerDevices::default()).collect();
    let mut transmitters = Vec::new();
    for port in 0..ports.len() {
        ports.prepare(port, run)?;
        for (worker, device) in devices.iter_mut().zip(ports.open(port)?) {
            worker.push(device);
        }
        transmitters.push(ports.open_transmitter(port)?);
    }
    Ok((devices, transmitters))
}

/// Six words from the system's random source.
fn random() -> Result<[u64; 6], StartupError> {
    let mut bytes = [[0; 8]; 6];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(bytes.as_flattened_mut()));
    read.map_err(|source| StartupError::System { operation: "read /dev/urandom", source })?;
    Ok(bytes.map(u64::from_ne_bytes))
}

/// Says that the gateway forwards.
fn ready() {
    info!("ready");
    // Whoever started us may not listen.
    let _ = writeln!(io::stdout(), "ready").and_then(|()| io::stdout().flush());
    notify("READY=1");
}

/// Tells systemd, where it has started us (sd_notify(3)).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let Ok(socket) = UnixDatagram::unbound() else {
        return;
    };
    let text = path.to_string_lossy();
    let sent = match text.strip_prefix('@') {
        Some(name) => {
            SocketAddr::from_abstract_name(name).and_then(|address| socket.send_to_addr(state.as_bytes(), &address))
        }
        None => socket.send_to(state.as_bytes(), &path),
    };
    if let Err(error) = sent {
        warn!("cannot tell systemd {state}: {error}");
    }
}

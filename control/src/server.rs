//! The process `postern control`: store, catalog, listeners, and an orderly end.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::api::{self, ListenError, Listener, Patience, stopped};
use crate::catalog::model::Role;
use crate::catalog::{self, Caller, Catalog, CatalogError, Clock, Refusal};
use crate::metering::{EndpointUsage, Ledger, Metering, MeteringError};
use crate::push;
use crate::settings::{ListenAddress, Settings};
use crate::store::{RedbStore, Store, StoreError};
use crate::tls::{ListenerTls, TlsError};

/// File of the store, in the data directory.
const STORE: &str = "control.redb";
/// File of the first operator's token, in the data directory.
const TOKEN: &str = "operator.token";
/// Name of the first operator.
const OPERATOR: &str = "operator";
/// How often the catalog looks what has become due.
const TICK: Duration = Duration::from_secs(1);
/// How often counters of endpoints that are gone are looked for, and how long they stay, in milliseconds.
const CLEANING: Duration = Duration::from_secs(6 * 3600);
const COUNTERS_STAY: u64 = 7 * 24 * 3600 * 1000;

/// Why control does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory.
    #[error("cannot use data directory {path}: {source}")]
    DataDirectory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The ledger.
    #[error(transparent)]
    Metering(#[from] MeteringError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The listener of gateways.
    #[error("cannot listen for gateways at {address}: {source}")]
    Gateways {
        /// Where.
        address: std::net::SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The first operator.
    #[error("the first operator cannot be made: {0}")]
    Operator(Refusal),
    /// Its token.
    #[error("cannot write the operator's token to {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
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

/// Runs control until SIGTERM or SIGINT; SIGHUP reads the certificates anew. Prints `ready` on standard output, and tells
/// systemd, when it serves.
///
/// # Errors
/// Why it could not start.
pub async fn run(settings: Settings) -> Result<(), ServerError> {
    let system = |operation| move |source| ServerError::System { operation, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("take SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("take SIGINT"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("take SIGHUP"))?;
    let server = Server::start(&settings).await?;
    for address in server.addresses() {
        info!(%address, "serving the API");
    }
    info!("ready");
    // Whoever started us may not listen.
    let _ = writeln!(io::stdout(), "ready").and_then(|()| io::stdout().flush());
    notify("READY=1");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => match server.reload_certificates() {
                Ok(0) => info!("SIGHUP: no listener has a certificate to be read anew"),
                Ok(listeners) => info!(listeners, "SIGHUP: certificates are read anew, for new connections"),
                Err(error) => tracing::error!("SIGHUP: {error}; the certificates that were read before stay"),
            },
        }
    }
    info!("stopping");
    notify("STOPPING=1");
    server.stop().await;
    Ok(())
}

/// Control, serving.
#[derive(Debug)]
pub struct Server {
    catalog: Arc<Catalog>,
    metering: Arc<Metering>,
    addresses: Vec<ListenAddress>,
    gateways: Option<std::net::SocketAddr>,
    certificates: Vec<ListenerTls>,
    ready: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Opens the store in the data directory and serves.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn start(settings: &Settings) -> Result<Self, ServerError> {
        let directory = &settings.data_directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| ServerError::DataDirectory { path: directory.clone(), source })?;
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(&directory.join(STORE))?);
        let server = Self::start_with(settings, store, Patience::default(), catalog::Settings::default().clock).await?;
        if let Some(path) = first_operator(&server.catalog, directory)? {
            info!("made the first operator, \"{OPERATOR}\"; its token is in {}", path.display());
        }
        Ok(server)
    }

    /// Serves what is in a store. There is no operator unless the store has one.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn start_with(
        settings: &Settings,
        store: Arc<dyn Store>,
        patience: Patience,
        clock: Clock,
    ) -> Result<Self, ServerError> {
        let catalog = Arc::new(Catalog::open(store.clone(), catalog::Settings { clock: clock.clone() })?);
        let metering = Arc::new(Metering::new(catalog.clone(), Ledger::open(store)?, clock.clone()));
        let (ready, is_ready) = watch::channel(false);
        let (stop, stopping) = watch::channel(false);
        let router = api::router(catalog.clone(), metering.clone(), patience, is_ready, stopping.clone());
        let tls = ListenerTls::read(&settings.api.transport, &[b"http/1.1"])?;
        let mut certificates: Vec<_> = tls.iter().cloned().collect();
        let mut listeners = Vec::new();
        for address in &settings.api.listen {
            listeners.push(Listener::bind(address, tls.clone()).await?);
        }
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();

        let mut tasks = JoinSet::new();
        let mut gateways = None;
        if let Some(settings) = &settings.push {
            let refused = |source| ServerError::Gateways { address: settings.listen, source };
            let tls = ListenerTls::read(&settings.transport, &[b"h2"])?;
            certificates.extend(tls.clone());
            let listener = tokio::net::TcpListener::bind(settings.listen).await.map_err(refused)?;
            gateways = Some(listener.local_addr().map_err(refused)?);
            let settings = push::Settings { tls, ..push::Settings::default() };
            let (catalog, usage) = (catalog.clone(), usage_sink(metering.clone()));
            let mut stopping = stopping.clone();
            tasks.spawn(async move {
                let shutdown = async move { stopped(&mut stopping).await };
                if let Err(error) = push::serve(catalog, usage, settings, listener, shutdown).await {
                    tracing::error!("{error}");
                }
            });
        }
        let places = Arc::new(Semaphore::new(settings.api.connections));
        for listener in listeners {
            tasks.spawn(listener.serve(router.clone(), places.clone(), patience, stopping.clone()));
        }
        tasks.spawn(metering.clone().run(stopping.clone()));
        tasks.spawn(tick(catalog.clone(), clock.clone(), stopping.clone()));
        tasks.spawn(clean(metering.clone(), clock, stopping));
        let _ = ready.send(true);
        Ok(Self { catalog, metering, addresses, gateways, certificates, ready, stop, tasks })
    }

    /// The catalog that is served.
    #[must_use]
    pub const fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The metering.
    #[must_use]
    pub const fn metering(&self) -> &Arc<Metering> {
        &self.metering
    }

    /// Where the API is served.
    #[must_use]
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Where gateways are served, if they are.
    #[must_use]
    pub const fn gateways(&self) -> Option<std::net::SocketAddr> {
        self.gateways
    }

    /// Reads the certificates of all listeners anew, for connections from now on. Returns how many listeners have any.
    ///
    /// # Errors
    /// When a file cannot be read or used: every listener keeps what it had.
    pub fn reload_certificates(&self) -> Result<usize, TlsError> {
        ListenerTls::reload(&self.certificates)?;
        Ok(self.certificates.len())
    }

    /// Ends in order: nothing new is taken, what has begun comes to its end, at the latest after [`Patience::drain`].
    pub async fn stop(mut self) {
        let _ = self.ready.send(false);
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Counts what gateways report.
fn usage_sink(metering: Arc<Metering>) -> push::UsageSink {
    Arc::new(move |gateway, boot_id, endpoints| {
        let usage = endpoints.iter().map(|endpoint| EndpointUsage {
            endpoint: endpoint.endpoint.clone(),
            connections: endpoint.new_connections,
            packets: endpoint.packets,
            bytes: endpoint.bytes,
        });
        if let Err(error) = metering.record(gateway, boot_id, &usage.collect::<Vec<_>>()) {
            warn!("the counters of gateway {gateway} are counted later: {error}");
        }
    })
}

/// Lets the catalog do what has become due.
async fn tick(catalog: Arc<Catalog>, clock: Clock, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return,
            _ = ticks.tick() => {}
        }
        let (catalog, now) = (catalog.clone(), clock());
        if let Ok(Err(refusal)) = tokio::task::spawn_blocking(move || catalog.tick(now)).await {
            warn!("what is due is done later: {refusal}");
        }
    }
}

/// Forgets what no gateway tells of any more.
async fn clean(metering: Arc<Metering>, clock: Clock, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(CLEANING);
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return,
            _ = ticks.tick() => {}
        }
        let (metering, before) = (metering.clone(), clock().saturating_sub(COUNTERS_STAY));
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || metering.forget_counters(before)).await {
            warn!("old counters are forgotten later: {error}");
        }
    }
}

/// Makes the first operator, if there is none, and writes its token to a file that only its owner may read.
fn first_operator(catalog: &Catalog, directory: &Path) -> Result<Option<PathBuf>, ServerError> {
    let path = directory.join(TOKEN);
    let error = |source| ServerError::Token { path: path.clone(), source };
    // The file is opened first: a token that nobody can read would lock everybody out.
    let unfinished = directory.join(format!("{TOKEN}.new"));
    // Only a process that ended between the next lines leaves it: an operator may be there whose token nobody has.
    let interrupted = unfinished.exists();
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished).map_err(error)?;
    let token = catalog.begin_with_operator(OPERATOR).map_err(ServerError::Operator)?;
    let caller = Caller { principal: OPERATOR.into(), role: Role::Operator };
    let token = match token {
        None if interrupted => catalog.make_token(&caller, OPERATOR).ok(),
        token => token,
    };
    let Some(token) = token else {
        fs::remove_file(&unfinished).map_err(error)?;
        return Ok(None);
    };
    writeln!(file, "{token}").and_then(|()| file.sync_all()).map_err(error)?;
    fs::rename(&unfinished, &path).map_err(error)?;
    Ok(Some(path))
}

/// Tells systemd, where it has started us (sd_notify(3)).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
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

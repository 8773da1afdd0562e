//! The Unix socket and the Prometheus page.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::flows::FlowReader;
use super::report::{ControlReport, StatusReport};
use super::{Answer, Request, collect, prometheus};
use crate::back_end::BackEnd;
use crate::control_link::LinkStatus;
use crate::link::Shared;
use crate::neighbours::NeighbourCounters;

/// Longest request, in bytes.
const LONGEST_REQUEST: u64 = 4096;
/// Connections at once; more wait.
const CONNECTIONS: usize = 16;
/// How long a client may be silent, or not read.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the control-side thread for what only it knows.
#[derive(Debug)]
pub enum Query {
    /// How the gateway is.
    Status(oneshot::Sender<StatusReport>),
    /// What the neighbours counted, and the back end of each port.
    Counters(oneshot::Sender<(NeighbourCounters, Vec<BackEnd>)>),
}

/// Why nobody can look in.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket.
    #[error("cannot listen on Unix socket {path}: {source}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The page.
    #[error("cannot serve metrics on {address}: {source}")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

/// What answers are made of.
#[derive(Debug)]
pub struct Inspector {
    gateway: String,
    shared: Arc<Shared>,
    flows: FlowReader,
    queries: mpsc::Sender<Query>,
    control: Option<Arc<LinkStatus>>,
}

impl Inspector {
    /// Looks into `shared`, and asks the control-side thread through `queries`.
    #[must_use]
    pub fn new(gateway: String, shared: Arc<Shared>, queries: mpsc::Sender<Query>) -> Self {
        Self { gateway, flows: FlowReader::new(shared.clone()), shared, queries, control: None }
    }

    /// Shows a link to control too.
    #[must_use]
    pub fn with_control(mut self, control: Option<Arc<LinkStatus>>) -> Self {
        self.control = control;
        self
    }

    async fn query<T>(&self, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, String> {
        let (to, from) = oneshot::channel();
        let stopping = || "the gateway is stopping".to_owned();
        self.queries.send(query(to)).await.map_err(|_| stopping())?;
        from.await.map_err(|_| stopping())
    }

    async fn counters(&self) -> Result<super::CountersReport, String> {
        let (neighbours, back_ends) = self.query(Query::Counters).await?;
        let control = self.control.as_ref().map(|status| ControlReport::read(status.counters()));
        let report = collect::counters(&self.gateway, &self.shared, &neighbours, &back_ends);
        Ok(super::CountersReport { control, ..report })
    }

    async fn answer(&self, line: &str, to: &mut Lines) -> io::Result<()> {
        let answer = match serde_json::from_str(line) {
            Ok(Request::Status) => self.query(Query::Status).await.map(Answer::Status),
            Ok(Request::Counters) => self.counters().await.map(|report| Answer::Counters(Box::new(report))),
            Ok(Request::Flows(filter)) => {
                let (send, mut flows) = mpsc::channel(4);
                let write = async {
                    while let Some(slice) = flows.recv().await {
                        for flow in slice {
                            to.write(&Answer::Flow(flow)).await?;
                        }
                    }
                    // Dropping the receiver ends the reading.
                    drop(flows);
                    io::Result::Ok(())
                };
                let (end, written) = tokio::join!(self.flows.read(&filter, send), write);
                written?;
                Ok(Answer::End(end))
            }
            Err(error) => Err(format!("not a request: {error}")),
        };
        to.write(&answer.unwrap_or_else(Answer::Error)).await?;
        to.flush().await
    }
}

/// JSON lines to a client that reads them.
struct Lines(BufWriter<OwnedWriteHalf>);

impl Lines {
    async fn write(&mut self, answer: &Answer) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        timeout(PATIENCE, self.0.write_all(&line)).await?
    }

    async fn flush(&mut self) -> io::Result<()> {
        timeout(PATIENCE, self.0.flush()).await?
    }
}

/// Listens on a Unix socket that only its owner may use, in place of one that an earlier process left.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    let error = |source| ServerError::Socket { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

/// Answers on the Unix socket until the task is dropped.
pub async fn serve(listener: UnixListener, inspector: Arc<Inspector>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let inspector = inspector.clone();
                tokio::spawn(async move {
                    // A client that goes away is no matter.
                    let _ = converse(stream, &inspector).await;
                    drop(place);
                });
            }
            // No descriptor is left: others may close theirs.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: UnixStream, inspector: &Inspector) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut lines = Lines(BufWriter::new(write));
    loop {
        let mut line = String::new();
        let length = timeout(PATIENCE, (&mut read).take(LONGEST_REQUEST).read_line(&mut line)).await??;
        if length == 0 {
            return Ok(());
        }
        inspector.answer(line.trim(), &mut lines).await?;
        if length as u64 == LONGEST_REQUEST {
            return Ok(());
        }
    }
}

/// Serves the Prometheus page until the task is dropped.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve_metrics(
    address: SocketAddr,
    inspector: Arc<Inspector>,
) -> Result<impl Future<Output = io::Result<()>>, ServerError> {
    let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Metrics { address, source })?;
    let page = move || async move {
        let report = inspector.counters().await.unwrap_or_default();
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], prometheus::page(&report))
    };
    let router = Router::new().route("/metrics", get(page));
    Ok(async move { axum::serve(listener, router).await })
}

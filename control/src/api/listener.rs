//! Connections of the API: accepted, bounded in number, secured, and cut where a client is slow.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::settings::ListenAddress;
use crate::tls::{ListenerTls, accept, begins_as_tls, certificate_name, read_out};

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request; also between two requests of a connection.
    pub head: Duration,
    /// For the body of a request.
    pub body: Duration,
    /// To take any part of an answer.
    pub answer: Duration,
    /// For what goes on when the process is to end.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            body: Duration::from_secs(60),
            answer: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Name in its client certificate, which an authority of ours has signed.
    pub(super) certificate_name: Option<Arc<str>>,
    /// Whether it showed one at all.
    pub(super) has_certificate: bool,
}

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: ListenAddress,
        /// The system's answer.
        source: io::Error,
    },
    /// There is something else in the socket's place.
    #[error("cannot listen on unix:{path}: there is something else than a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
}

/// An open socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: ListenAddress,
    tls: Option<ListenerTls>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Opens a socket. A Unix socket is made for its owner only, in place of one that an earlier process left, and has
    /// no TLS.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(address: &ListenAddress, tls: Option<ListenerTls>) -> Result<Self, ListenError> {
        let error = |source| ListenError::Listen { address: address.clone(), source };
        match address {
            ListenAddress::Tcp(wanted) => {
                let socket = TcpListener::bind(wanted).await.map_err(error)?;
                let address = ListenAddress::Tcp(socket.local_addr().map_err(error)?);
                Ok(Self { socket: Socket::Tcp(socket), address, tls })
            }
            ListenAddress::Unix(path) => {
                match fs::symlink_metadata(path) {
                    Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(error)?,
                    Ok(_) => return Err(ListenError::NotASocket { path: path.clone() }),
                    Err(_) => {}
                }
                let socket = UnixListener::bind(path).map_err(error)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(error)?;
                Ok(Self { socket: Socket::Unix(socket), address: address.clone(), tls: None })
            }
        }
    }

    /// Where it listens; the port is the one that was found free where 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Answers until `stop` is true, then lets what has begun come to its end for [`Patience::drain`].
    pub async fn serve(
        self,
        router: Router,
        places: Arc<Semaphore>,
        patience: Patience,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = self.accept(&places) => accepted,
            };
            let Some((stream, place)) = accepted else { continue };
            let (router, tls, stop) = (router.clone(), self.tls.clone(), stop.clone());
            connections.spawn(async move {
                converse(stream, tls, router, patience, stop).await;
                drop(place);
            });
        }
        let drained = timeout(patience.drain, async { while connections.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            warn!(connections = connections.len(), "connections are cut: they did not end in time");
        }
        if let ListenAddress::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
    }

    /// A connection and its place, once there is one.
    async fn accept(&self, places: &Arc<Semaphore>) -> Option<(Accepted, tokio::sync::OwnedSemaphorePermit)> {
        let place = places.clone().acquire_owned().await.ok()?;
        let accepted = match &self.socket {
            Socket::Tcp(socket) => socket.accept().await.map(|(stream, _)| {
                // Answers are written whole; waiting for more only delays them.
                let _ = stream.set_nodelay(true);
                Accepted::Tcp(stream)
            }),
            Socket::Unix(socket) => socket.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        };
        match accepted {
            Ok(stream) => Some((stream, place)),
            Err(error) => {
                // No descriptor is left, or the client is gone already: others may close theirs.
                debug!("cannot accept a connection: {error}");
                sleep(Duration::from_millis(50)).await;
                None
            }
        }
    }
}

/// A connection as the kernel gives it.
enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A byte stream of any kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// From the first byte of a connection to its last.
async fn converse(
    stream: Accepted,
    tls: Option<ListenerTls>,
    router: Router,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
) {
    let mut peer = Peer::default();
    let stream: Box<dyn Stream> = match (stream, tls) {
        (Accepted::Unix(stream), _) => Box::new(stream),
        (Accepted::Tcp(stream), None) => Box::new(stream),
        (Accepted::Tcp(stream), Some(tls)) => match timeout(patience.handshake, secure(stream, &tls)).await {
            Ok(Ok(secured)) => {
                if let Some(certificate) = secured.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                    peer.has_certificate = true;
                    peer.certificate_name = certificate_name(certificate).map(Arc::from);
                }
                Box::new(secured)
            }
            Ok(Err(error)) => return debug!("no TLS: {error}"),
            Err(_) => return debug!("no TLS in time"),
        },
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience.head).max_buf_size(64 * 1024);
    let connection = builder.serve_connection(TokioIo::new(Impatient::new(stream, patience.answer)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!("a connection was cut: {error}");
    }
}

/// What is said to who speaks plain text where TLS is wanted.
const TLS_WANTED: &str = "{\"code\":\"TlsRequired\",\"message\":\"this port speaks TLS only: the address of the API \
                          has to begin with https://\",\"field\":null,\"users\":[]}\n";

async fn secure(mut stream: TcpStream, tls: &ListenerTls) -> io::Result<TlsStream<TcpStream>> {
    if begins_as_tls(&stream).await? {
        return accept(tls, stream).await;
    }
    let length = TLS_WANTED.len();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{TLS_WANTED}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    read_out(&mut stream).await?;
    Err(io::Error::new(io::ErrorKind::InvalidData, "plain text where TLS is wanted"))
}

/// Waits until the process is to end.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A stream whose writes fail when nothing of them is taken in time.
struct Impatient {
    stream: Box<dyn Stream>,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    const fn new(stream: Box<dyn Stream>, patience: Duration) -> Self {
        Self { stream, patience, waiting: None }
    }

    /// Passes on what a write came to, unless it has waited too long.
    fn bounded<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.bounded(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.bounded(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.bounded(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

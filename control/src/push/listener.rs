//! Connections of gateways, with whom their certificates stand for.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::refusals::Refusals;
use crate::tls::{ListenerTls, accept, begins_as_tls, certificate_name, read_out};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at a time: they cost much, and strangers can ask for them.
const HANDSHAKES: usize = 256;

/// A connection.
pub(super) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    address: Option<SocketAddr>,
    /// Whom the certificate that came with it stands for.
    pub(super) certificate: Option<String>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("an unknown address"),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Plain(stream) => Peer { address: stream.peer_addr().ok(), certificate: None },
            Self::Tls(stream) => {
                let (socket, tls) = stream.get_ref();
                let certificate = tls.peer_certificates().and_then(<[_]>::first).and_then(certificate_name);
                Peer { address: socket.peer_addr().ok(), certificate }
            }
        }
    }
}

/// Accepts connections. One that is slow with its handshake holds up no other.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<ListenerTls>,
    refusals: Arc<Refusals>,
) -> impl Stream<Item = io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(HANDSHAKES);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // Out of descriptors, or reset before it was accepted: others may do better.
                Err(error) => {
                    tracing::warn!("a connection of a gateway cannot be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let Some(tls) = tls.clone() else {
                if ready.send(Ok(Connection::Plain(stream))).await.is_err() {
                    return;
                }
                continue;
            };
            let (ready, refusals) = (ready.clone(), refusals.clone());
            let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
            tokio::spawn(async move {
                let result = tokio::time::timeout(HANDSHAKE, secure(stream, &tls)).await;
                drop(permit);
                match result {
                    Ok(Ok(stream)) => drop(ready.send(Ok(Connection::Tls(stream))).await),
                    Ok(Err(error)) => refusals.say(&format!("a gateway's connection from {peer} is refused: {error}")),
                    Err(_) => refusals.say(&format!(
                        "a gateway's connection from {peer} is refused: no TLS handshake within {} s",
                        HANDSHAKE.as_secs()
                    )),
                }
            });
        }
    });
    futures_util::stream::unfold(connections, |mut connections| async move {
        connections.recv().await.map(|connection| (connection, connections))
    })
}

/// What is said to who speaks plain text where TLS is wanted.
const TLS_WANTED: &str = "this port speaks TLS only: the address of control has to begin with https://";

/// Why a connection has no TLS.
#[derive(Debug, thiserror::Error)]
enum Insecure {
    #[error("it speaks plain text, and this port TLS only")]
    Plain,
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[from] io::Error),
}

async fn secure(mut stream: TcpStream, tls: &ListenerTls) -> Result<Box<TlsStream<TcpStream>>, Insecure> {
    if begins_as_tls(&stream).await? {
        return Ok(Box::new(accept(tls, stream).await?));
    }
    // Who speaks HTTP/2 without TLS can read this.
    stream.write_all(&go_away(TLS_WANTED)).await?;
    // It closes when it has read the word. An end of ours could reach it between its first request and the word.
    read_out(&mut stream).await?;
    Err(Insecure::Plain)
}

/// A server's first frame of HTTP/2, its settings, and its last one, with a word why (RFC 9113, sections 6.5, 6.8 and 7).
fn go_away(why: &str) -> Vec<u8> {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const INADEQUATE_SECURITY: u32 = 0xc;
    let frame = |kind: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        // Length in 24 bits, type, flags, stream 0.
        let head = [length[1], length[2], length[3], kind, 0, 0, 0, 0, 0];
        [&head[..], payload].concat()
    };
    let last_stream = 0_u32.to_be_bytes();
    let payload = [&last_stream[..], &INADEQUATE_SECURITY.to_be_bytes(), why.as_bytes()].concat();
    [frame(SETTINGS, &[]), frame(GOAWAY, &payload)].concat()
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

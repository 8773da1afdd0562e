//! What a target runs: a web page that says who answered whom, a UDP echo that says the same, and a bulk service.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::namespace::{Namespace, NamespaceError};
use crate::stream::Stream;

/// Port of the page: HTTP over TCP.
pub const PAGE_PORT: u16 = 80;
/// Port of the echo: UDP.
pub const ECHO_PORT: u16 = 7;
/// Port of bulk transfers: TCP.
pub const BULK_PORT: u16 = 9000;

/// How long a connection may stand still before the server gives it up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a server looks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(20);

/// What can go wrong with the servers of a target.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A port could not be opened.
    #[error("{name} cannot listen on {protocol} port {port}: {source}")]
    Listen {
        /// Name of the target.
        name: String,
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// The answer of the page and of the echo: who answered, and whom it saw.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the target.
    pub target: String,
    /// Source address and port that the target saw.
    pub seen: SocketAddr,
}

/// What a bulk client asks for: 32 bytes at the beginning of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BulkRequest {
    /// Whether the client sends.
    pub(crate) upload: bool,
    /// Seed of the stream.
    pub(crate) seed: u64,
    /// Its length in bytes.
    pub(crate) length: u64,
}

/// What the server says after an upload: 16 bytes. Bytes that arrived as they were sent, and whether all did.
pub(crate) const RECEIPT_LENGTH: usize = 16;

impl BulkRequest {
    pub(crate) const LENGTH: usize = 32;
    const MAGIC: [u8; 8] = *b"bulk 1\r\n";

    pub(crate) fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&Self::MAGIC);
        bytes[8] = u8::from(self.upload);
        bytes[16..24].copy_from_slice(&self.seed.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::LENGTH]) -> io::Result<Self> {
        if bytes[..8] != Self::MAGIC {
            return Err(io::Error::new(ErrorKind::InvalidData, "not a bulk request"));
        }
        let number = |at: usize| bytes[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(Self { upload: bytes[8] != 0, seed: number(16), length: number(24) })
    }
}

/// The servers of one target, on threads of this process. Dropped: the ports are closed.
#[derive(Debug)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Opens the three ports on every address of a namespace.
    pub fn start(namespace: &Namespace, name: &str) -> Result<Self, ServerError> {
        namespace.run(|| Self::start_here(name))?
    }

    /// Opens them in the namespace of the calling thread.
    pub fn start_here(name: &str) -> Result<Self, ServerError> {
        let failed =
            |protocol, port| move |source| ServerError::Listen { name: name.to_owned(), protocol, port, source };
        let listen = |port| {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
            let ready = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            ready.map_err(failed("TCP", port))
        };
        let (page, bulk) = (listen(PAGE_PORT)?, listen(BULK_PORT)?);
        let echo = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT));
        let echo = echo.and_then(|socket| socket.set_read_timeout(Some(GLANCE)).map(|()| socket));
        let echo = echo.map_err(failed("UDP", ECHO_PORT))?;

        let stop = Arc::new(AtomicBool::new(false));
        let name: Arc<str> = Arc::from(name);
        let mut servers = Self { stop, threads: Vec::new() };
        let own = Arc::clone(&name);
        servers.thread(move |stop| accept(&page, stop, move |stream| serve_page(&stream, &own)));
        servers.thread(move |stop| accept(&bulk, stop, |stream| serve_bulk(&stream)));
        servers.thread(move |stop| serve_echo(&echo, stop, &name));
        Ok(servers)
    }

    fn thread(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || work(&stop)));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// One thread for each connection; those that are still open when the server stops end by themselves, as their clients do.
fn accept(
    listener: &TcpListener,
    stop: &AtomicBool,
    serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    while !stop.load(Ordering::Relaxed) {
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let glance = PollTimeout::try_from(GLANCE).unwrap_or(PollTimeout::ZERO);
        if !matches!(poll(&mut waiting, glance), Ok(1..)) {
            continue;
        }
        while let Ok((stream, _)) = listener.accept() {
            let serve = serve.clone();
            std::thread::spawn(move || {
                let prepared = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
                // A client that goes away in the middle is the client's matter; it is the one that reports.
                drop(prepared.and_then(|()| stream.set_write_timeout(Some(PATIENCE))).and_then(|()| serve(stream)));
            });
        }
    }
}

/// One request, one answer; the client closes first or right after.
fn serve_page(stream: &TcpStream, name: &str) -> io::Result<()> {
    const LONGEST_REQUEST: u64 = 16 * 1024;
    let mut lines = BufReader::new(stream.take(LONGEST_REQUEST));
    let mut line = String::new();
    while lines.read_line(&mut line)? > 2 {
        line.clear();
    }
    let answer = Answer { target: name.to_owned(), seen: stream.peer_addr()? };
    let body = serde_json::to_string(&answer)?;
    let length = body.len() + 1;
    let page = format!(
        "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}\n"
    );
    let mut stream = stream;
    stream.write_all(page.as_bytes())
}

/// Answers a datagram with a line that says who answered whom, and the datagram behind it.
fn serve_echo(socket: &UdpSocket, stop: &AtomicBool, name: &str) {
    let mut datagram = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, seen)) = socket.recv_from(&mut datagram) else { continue };
        let Ok(line) = serde_json::to_vec(&Answer { target: name.to_owned(), seen }) else { continue };
        let reply = [&line[..], b"\n", &datagram[..length]].concat();
        // Too long for one datagram: no answer, like any echo.
        drop(socket.send_to(&reply, seen));
    }
}

fn serve_bulk(stream: &TcpStream) -> io::Result<()> {
    let mut stream = stream;
    let mut request = [0; BulkRequest::LENGTH];
    stream.read_exact(&mut request)?;
    let request = BulkRequest::from_bytes(&request)?;
    if !request.upload {
        return send_stream(stream, request.seed, request.length);
    }
    let received = receive_stream(stream, request.seed, request.length);
    let correct = match received {
        Ok(()) => request.length,
        Err(BulkError::Differs(at)) => at,
        Err(BulkError::Io(error)) => return Err(error),
    };
    let mut receipt = [0; RECEIPT_LENGTH];
    receipt[..8].copy_from_slice(&correct.to_be_bytes());
    receipt[8] = u8::from(correct == request.length);
    stream.write_all(&receipt)
}

/// Why a stream did not arrive as it was sent.
#[derive(Debug)]
pub(crate) enum BulkError {
    /// The byte at this position is another.
    Differs(u64),
    /// The connection broke.
    Io(io::Error),
}

/// Large enough that the stack can make super-frames of it.
const PIECE: usize = 256 * 1024;

pub(crate) fn send_stream(mut to: impl Write, seed: u64, length: u64) -> io::Result<()> {
    let mut stream = Stream::new(seed);
    let mut piece = vec![0; PIECE];
    while stream.position() < length {
        let size = usize::try_from(length - stream.position()).map_or(PIECE, |left| left.min(PIECE));
        stream.fill(&mut piece[..size]);
        to.write_all(&piece[..size])?;
    }
    Ok(())
}

pub(crate) fn receive_stream(mut from: impl Read, seed: u64, length: u64) -> Result<(), BulkError> {
    let mut stream = Stream::new(seed);
    let mut piece = vec![0; PIECE];
    while stream.position() < length {
        let size = usize::try_from(length - stream.position()).map_or(PIECE, |left| left.min(PIECE));
        match from.read(&mut piece[..size]) {
            Ok(0) => return Err(BulkError::Io(ErrorKind::UnexpectedEof.into())),
            Ok(count) => stream.check(&piece[..count]).map_err(BulkError::Differs)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(BulkError::Io(error)),
        }
    }
    Ok(())
}

//! What a consumer runs: requests to an endpoint whose answers are checked to the last byte.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::server::{Answer, BulkError, BulkRequest, RECEIPT_LENGTH, receive_stream, send_stream};
use crate::stream::Stream;

/// What can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection.
    #[error("cannot connect to {to} from port {from}: {source}")]
    Connect {
        /// The endpoint's address and port.
        to: SocketAddrV4,
        /// The client's port; 0: chosen by the kernel.
        from: u16,
        /// Why not.
        source: io::Error,
    },
    /// The connection or the answer broke off.
    #[error("no complete answer from {to}: {source}")]
    Broken {
        /// The endpoint's address and port.
        to: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// What came is not an answer.
    #[error("{to} answered what no target says: {text:?}")]
    Strange {
        /// The endpoint's address and port.
        to: SocketAddrV4,
        /// The first bytes of it.
        text: String,
    },
    /// A byte of the payload is another than was sent.
    #[error("byte {at} of {length} to or from {to} is not the one that was sent")]
    Differs {
        /// The endpoint's address and port.
        to: SocketAddrV4,
        /// Position, from 0.
        at: u64,
        /// Length of the payload in bytes.
        length: u64,
    },
}

/// One request's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Who answered whom.
    pub answer: Answer,
    /// The client's own address and port.
    pub local: SocketAddr,
    /// From the first byte asked (with TCP: the SYN) to the last answered.
    pub elapsed: Duration,
}

/// One bulk transfer that arrived whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// Bytes of payload.
    pub bytes: u64,
    /// From the request to the last byte (or to the receipt for all of them).
    pub elapsed: Duration,
}

impl Transfer {
    /// Payload in gigabits per second.
    #[must_use]
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9) / 1e9
    }
}

/// Which way a bulk transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the consumer to the target.
    Upload,
    /// From the target to the consumer.
    Download,
}

/// A client in the calling thread's namespace. Nothing it does takes much longer than its deadline.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// How long one step (a connection, an answer, a piece of a transfer) may take.
    pub deadline: Duration,
}

impl Default for Client {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(3) }
    }
}

impl Client {
    /// Opens a TCP connection from a port (0: of the kernel's choice).
    pub fn connect(&self, to: SocketAddrV4, from: u16) -> Result<TcpStream, RequestError> {
        let connect = || -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if from != 0 {
                socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, from).into())?;
            }
            socket.connect_timeout(&to.into(), self.deadline)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(self.deadline))?;
            stream.set_write_timeout(Some(self.deadline))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        connect().map_err(|source| RequestError::Connect { to, from, source })
    }

    /// Asks the page at an endpoint who answers.
    pub fn ask_tcp(&self, to: SocketAddrV4, from: u16) -> Result<Reply, RequestError> {
        let start = Instant::now();
        let mut stream = self.connect(to, from)?;
        let mut page = String::new();
        let mut ask = || -> io::Result<SocketAddr> {
            write!(stream, "GET / HTTP/1.0\r\nHost: {to}\r\n\r\n")?;
            stream.read_to_string(&mut page)?;
            stream.local_addr()
        };
        let local = ask().map_err(|source| RequestError::Broken { to, source: in_words(source) })?;
        let body = page.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.0 200"));
        let answer = body.and_then(|(_, body)| serde_json::from_str(body).ok());
        let answer = answer.ok_or_else(|| strange(to, page.as_bytes()))?;
        Ok(Reply { answer, local, elapsed: start.elapsed() })
    }

    /// Sends a datagram of `length` bytes of a seed's stream to the echo at an endpoint, and checks what comes back.
    pub fn ask_udp(&self, to: SocketAddrV4, from: u16, seed: u64, length: usize) -> Result<Reply, RequestError> {
        let start = Instant::now();
        let mut payload = vec![0; length];
        Stream::new(seed).fill(&mut payload);
        let mut datagram = vec![0; 65_536];
        let mut ask = || -> io::Result<(usize, SocketAddr)> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, from))?;
            socket.set_read_timeout(Some(self.deadline))?;
            socket.connect(to)?;
            socket.send(&payload)?;
            Ok((socket.recv(&mut datagram)?, socket.local_addr()?))
        };
        let (received, local) = ask().map_err(|source| RequestError::Broken { to, source: in_words(source) })?;
        let reply = &datagram[..received];
        let line = reply.iter().position(|byte| *byte == b'\n').ok_or_else(|| strange(to, reply))?;
        let answer = serde_json::from_slice(&reply[..line]).map_err(|_| strange(to, reply))?;
        let echoed = &reply[line + 1..];
        if let Err(at) = Stream::new(seed).check(echoed) {
            return Err(RequestError::Differs { to, at, length: length as u64 });
        }
        if echoed.len() != length {
            return Err(RequestError::Differs { to, at: echoed.len().min(length) as u64, length: length as u64 });
        }
        Ok(Reply { answer, local, elapsed: start.elapsed() })
    }

    /// Moves `length` bytes of a seed's stream one way; every byte is checked where it arrives.
    pub fn bulk(&self, to: SocketAddrV4, way: Way, seed: u64, length: u64) -> Result<Transfer, RequestError> {
        let mut stream = self.connect(to, 0)?;
        let broken = |source| RequestError::Broken { to, source: in_words(source) };
        let differs = |at| RequestError::Differs { to, at, length };
        let start = Instant::now();
        let request = BulkRequest { upload: way == Way::Upload, seed, length };
        stream.write_all(&request.to_bytes()).map_err(broken)?;
        match way {
            Way::Upload => {
                send_stream(&stream, seed, length).map_err(broken)?;
                let mut receipt = [0; RECEIPT_LENGTH];
                stream.read_exact(&mut receipt).map_err(broken)?;
                let correct = receipt[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                if receipt[8] != 1 || correct != length {
                    return Err(differs(correct));
                }
            }
            Way::Download => match receive_stream(&stream, seed, length) {
                Ok(()) => {}
                Err(BulkError::Differs(at)) => return Err(differs(at)),
                Err(BulkError::Io(source)) => return Err(broken(source)),
            },
        }
        Ok(Transfer { bytes: length, elapsed: start.elapsed() })
    }

    /// Opens a connection and drops it with a RST instead of a FIN.
    pub fn reset(&self, to: SocketAddrV4, from: u16) -> Result<(), RequestError> {
        let stream = self.connect(to, from)?;
        let linger = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        linger.map_err(|source| RequestError::Broken { to, source })
    }
}

fn strange(to: SocketAddrV4, bytes: &[u8]) -> RequestError {
    const SHOWN: usize = 80;
    RequestError::Strange { to, text: String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned() }
}

/// A read that ran out of time is called "Resource temporarily unavailable" by the kernel.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => io::Error::new(ErrorKind::TimedOut, "nothing came in time"),
        _ => error,
    }
}

//! Client — gateway — server: three namespaces and two veth pairs, the same for every contender.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use postern_lab::{Namespace, VethEnd};
use postern_wire::MacAddress;

use super::NatError;

/// How long the path through a gateway may take to be there, on a machine that is busy with other things.
const PATH: Duration = Duration::from_secs(30);

/// The client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 71, 1, 2);
/// The address that the client connects to.
pub const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 71, 1, 100);
/// What the server sees as the source: the SNAT address, and the reference's address for masquerading.
pub const SNAT: Ipv4Addr = Ipv4Addr::new(10, 71, 2, 1);
/// The server.
pub const TARGET: Ipv4Addr = Ipv4Addr::new(10, 71, 2, 2);
/// The endpoint's and the server's port, TCP and UDP.
pub const PORT: u16 = 5201;
/// The client's interface.
pub const CLIENT_INTERFACE: &str = "client0";
/// The server's interface.
pub const SERVER_INTERFACE: &str = "server0";
/// The gateway's interface toward the client.
pub const GATEWAY_CLIENT_INTERFACE: &str = "consumer0";
/// The gateway's interface toward the server.
pub const GATEWAY_SERVER_INTERFACE: &str = "provider0";

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(3);
/// After this long an accept gives up.
const ACCEPT: i64 = 500_000;

/// The namespaces. They vanish with the last clone of this value, or with the process.
#[derive(Debug, Clone)]
pub struct Topology {
    client: Namespace,
    gateway: Namespace,
    server: Namespace,
    gateway_mac: MacAddress,
    /// Of client and server.
    end_macs: [MacAddress; 2],
    /// Where the server listens.
    server_address: Ipv4Addr,
}

impl Topology {
    /// Makes the namespaces, the veth pairs, and the addresses of client and server. The gateway's interfaces are up and
    /// have no address.
    ///
    /// # Errors
    /// When the kernel refuses; most often for want of privilege.
    pub fn build() -> Result<Self, NatError> {
        let client = Namespace::anonymous("bench-client")?;
        let gateway = Namespace::anonymous("bench-gateway")?;
        let server = Namespace::anonymous("bench-server")?;
        let (client_end, consumer) = VethEnd::new(&client, CLIENT_INTERFACE)
            .pair(&VethEnd::new(&gateway, GATEWAY_CLIENT_INTERFACE))
            .map_err(NatError::Interface)?;
        let (server_end, provider) = VethEnd::new(&server, SERVER_INTERFACE)
            .pair(&VethEnd::new(&gateway, GATEWAY_SERVER_INTERFACE))
            .map_err(NatError::Interface)?;
        for interface in [&client_end, &consumer, &server_end, &provider] {
            interface.disable_ipv6()?;
        }
        client_end.add_address(IpAddr::V4(CLIENT), 24)?;
        server_end.add_address(IpAddr::V4(TARGET), 24)?;
        // Connections in turn: every port may be used, and again a second after its connection was closed.
        client.set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        client.set_sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        let gateway_mac = consumer.mac()?;
        let end_macs = [client_end.mac()?, server_end.mac()?];
        Ok(Self { client, gateway, server, gateway_mac, end_macs, server_address: TARGET })
    }

    /// Gives the server the endpoint's address, in the client's network: for a gateway that translates nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn serve_at_endpoint(&mut self) -> Result<(), NatError> {
        self.server.interface(SERVER_INTERFACE).add_address(IpAddr::V4(ENDPOINT), 24)?;
        self.server_address = ENDPOINT;
        Ok(())
    }

    /// The endpoint's address and port.
    #[must_use]
    pub const fn endpoint() -> SocketAddrV4 {
        SocketAddrV4::new(ENDPOINT, PORT)
    }

    /// The client's namespace.
    #[must_use]
    pub const fn client(&self) -> &Namespace {
        &self.client
    }

    /// The gateway's namespace.
    #[must_use]
    pub const fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    /// The server's namespace.
    #[must_use]
    pub const fn server(&self) -> &Namespace {
        &self.server
    }

    /// The MAC address of the gateway's interface toward the client.
    #[must_use]
    pub const fn gateway_mac(&self) -> MacAddress {
        self.gateway_mac
    }

    /// The MAC addresses of client and server.
    #[must_use]
    pub const fn end_macs(&self) -> [MacAddress; 2] {
        self.end_macs
    }

    /// Runs something in the client's namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn at_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NatError> {
        Ok(self.client.run(work)?)
    }

    /// Runs something in the server's namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn at_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NatError> {
        Ok(self.server.run(work)?)
    }

    /// A listener at the server. Accepting gives up after half a second.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen_tcp(&self) -> Result<TcpListener, NatError> {
        let listener = self.at_server(|| TcpListener::bind((self.server_address, PORT)))?;
        let listener = listener.map_err(|error| NatError::Io("listen at the server", error))?;
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(0, ACCEPT))
            .map_err(|error| NatError::Kernel("set a time-out", error))?;
        Ok(listener)
    }

    /// A connection from the client to the endpoint.
    ///
    /// # Errors
    /// When it does not open in time.
    pub fn connect_tcp(&self) -> Result<TcpStream, NatError> {
        self.at_client(|| TcpStream::connect_timeout(&Self::endpoint().into(), CONNECT))?
            .map_err(|error| NatError::Io("connect to the endpoint", error))
    }

    /// A UDP socket at the server.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind_udp_server(&self) -> Result<UdpSocket, NatError> {
        let deadline = Instant::now() + CONNECT;
        loop {
            match self.at_server(|| UdpSocket::bind((self.server_address, PORT)))? {
                // The socket of the measurement before is let go by its thread.
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                outcome => return outcome.map_err(|error| NatError::Io("bind a socket at the server", error)),
            }
        }
    }

    /// A UDP socket of the client's, connected to the endpoint.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn connect_udp(&self) -> Result<UdpSocket, NatError> {
        let connect = || {
            let socket = UdpSocket::bind((CLIENT, 0))?;
            socket.connect(SocketAddr::from(Self::endpoint()))?;
            Ok(socket)
        };
        self.at_client(connect)?.map_err(|error| NatError::Io("make a socket at the client", error))
    }

    /// Sends a datagram from the client until the server answers it, for at most half a minute: the path is up.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn exchange_one_datagram(&self) -> Result<(), NatError> {
        let (server, client) = (self.bind_udp_server()?, self.connect_udp()?);
        let patience = Some(Duration::from_millis(20));
        for socket in [&server, &client] {
            socket.set_read_timeout(patience).map_err(|error| NatError::Io("set a time-out", error))?;
        }
        let deadline = Instant::now() + PATH;
        let mut buffer = [0; 16];
        while Instant::now() < deadline {
            // An error left over from a refused datagram is of no interest.
            let _ = client.send(b"postern?");
            if let Ok((length, from)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..length], from);
            }
            if client.recv(&mut buffer).is_ok() {
                return Ok(());
            }
        }
        Err(NatError::NoPath)
    }

    /// Sends a byte over TCP from the client until the server answers it, for at most half a minute: the path is up, also where
    /// a proxy accepts connections before it has one to the server.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn exchange_over_tcp(&self) -> Result<(), NatError> {
        let listener = self.listen_tcp()?;
        let once = || -> std::io::Result<()> {
            let mut client = self.connect_tcp().map_err(std::io::Error::other)?;
            let (mut server, _) = listener.accept()?;
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            }
            let mut byte = [1];
            client.write_all(&byte)?;
            server.read_exact(&mut byte)?;
            server.write_all(&byte)?;
            client.read_exact(&mut byte)
        };
        let deadline = Instant::now() + PATH;
        while Instant::now() < deadline {
            if once().is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(NatError::NoPath)
    }

    /// Chooses the CPUs (a bit mask, 0: where the frame came from) that work on what the gateway's interfaces receive.
    ///
    /// # Errors
    /// When the kernel has no receive packet steering.
    pub fn steer_gateway(&self, cpus: usize) -> Result<(), NatError> {
        steer(&self.gateway, &[GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE], cpus)
    }

    /// Chooses the CPUs that work on what the server's interface receives.
    ///
    /// # Errors
    /// When the kernel has no receive packet steering.
    pub fn steer_server(&self, cpus: usize) -> Result<(), NatError> {
        steer(&self.server, &[SERVER_INTERFACE], cpus)
    }
}

/// Receive packet steering is set in sysfs, which shows the namespace in which it was mounted: so it is mounted for a
/// moment, seen by one thread only.
fn steer(namespace: &Namespace, interfaces: &[&'static str], cpus: usize) -> Result<(), NatError> {
    namespace.run(|| {
        let kernel = |error| NatError::Kernel("mount sysfs for the namespace", error);
        unshare(CloneFlags::CLONE_NEWNS).map_err(kernel)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(kernel)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).map_err(kernel)?;
        for interface in interfaces {
            let path = format!("/sys/class/net/{interface}/queues/rx-0/rps_cpus");
            std::fs::write(path, format!("{cpus:x}"))
                .map_err(|error| NatError::Io("set the CPUs of an interface (rps_cpus)", error))?;
        }
        Ok(())
    })?
}

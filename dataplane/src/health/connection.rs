//! One probe: a TCP connection of its own, in a network stack of its own (smoltcp), whose packets go in and come out as
//! bytes. It has an SNAT address and one of the ports that are kept for probes, like any consumer's flow on the targets'
//! side, so VPCs whose addresses overlap cannot meet in it.

use std::net::{IpAddr, SocketAddr};

use postern_measurement::Now;
use postern_tables::health::HealthCheck;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::exchange::{Exchange, Failure, Outcome, Tls};

/// Largest IP packet of a probe, in bytes: what every IPv4 path carries whole (RFC 791).
const MTU: usize = 576;
/// The same of IPv6 (RFC 8200 §5).
pub(crate) const MTU_V6: usize = 1280;
/// Bytes of an answer that may wait. Small, so that no super-frame of it is larger than a worker's small buffer.
const RECEIVE: usize = 1400;
/// Bytes that may be on their way to the target.
const SEND: usize = 1024;
/// How long a target may take to close a connection whose question is answered, in milliseconds. Then it is reset.
const LINGER: u64 = 1000;

/// A connection to a target.
pub(super) struct Connection {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    exchange: Exchange,
    timeout_seconds: u16,
    deadline: Now,
    /// The outcome was told.
    told: bool,
}

impl Connection {
    /// Begins to connect: the first packet comes out of the first [`Self::pass`].
    pub(super) fn open(
        check: &HealthCheck,
        local: SocketAddr,
        target: SocketAddr,
        tls: &Tls,
        seed: u64,
        now: Now,
    ) -> Result<Self, Failure> {
        let exchange = Exchange::new(&check.question, target, tls)?;
        let mtu = if target.is_ipv4() { MTU } else { MTU_V6 };
        let mut wire = Wire { mtu, ..Wire::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(now));
        interface.update_ip_addrs(|addresses| {
            let (address, bits) = match local.ip() {
                IpAddr::V4(address) => (IpAddress::Ipv4(address), 32),
                IpAddr::V6(address) => (IpAddress::Ipv6(address), 128),
            };
            let pushed = addresses.push(IpCidr::new(address, bits));
            debug_assert!(pushed.is_ok(), "an interface has room for an address");
        });
        let routed = match local.ip() {
            IpAddr::V4(address) => interface.routes_mut().add_default_ipv4_route(address).is_ok(),
            IpAddr::V6(address) => interface.routes_mut().add_default_ipv6_route(address).is_ok(),
        };
        debug_assert!(routed, "an interface has room for a route");
        let (receive, send) = if exchange.is_connect() { (64, 64) } else { (RECEIVE, SEND) };
        let mut socket = Socket::new(SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; send]));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let connected = socket.connect(interface.context(), target, local);
        debug_assert!(connected.is_ok(), "a fresh socket connects to any unicast address and port");
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let socket = sockets.add(socket);
        let deadline = now.plus_milliseconds(u64::from(check.timeout_seconds) * 1000);
        let timeout_seconds = check.timeout_seconds;
        Ok(Self { wire, interface, sockets, socket, exchange, timeout_seconds, deadline, told: false })
    }

    /// Takes an IP packet of the target.
    pub(super) fn receive(&mut self, packet: &[u8]) {
        self.wire.inward = Some(packet.to_vec());
    }

    /// Does what can be done now: takes what was received, speaks, and puts packets to send into `outward`. `Some` once,
    /// when the outcome is known.
    pub(super) fn pass(&mut self, now: Now, outward: &mut Vec<Vec<u8>>) -> Option<Outcome> {
        self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
        let outcome = if self.told { self.drain(now) } else { self.speak(now) };
        // What was said or closed leaves at once.
        self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
        outward.append(&mut self.wire.outward);
        outcome
    }

    /// Whether nothing is to come any more.
    pub(super) fn is_over(&self) -> bool {
        self.told && matches!(self.sockets.get::<Socket<'_>>(self.socket).state(), State::Closed | State::TimeWait)
    }

    /// When [`Self::pass`] has something to do, if no packet comes before.
    pub(super) fn next_due(&mut self, now: Now) -> Now {
        let delay = self.interface.poll_delay(instant(now), &self.sockets);
        let due = delay.map(|delay| now.plus_milliseconds(delay.total_millis().max(1)));
        due.map_or(self.deadline, |due| due.min(self.deadline))
    }

    fn speak(&mut self, now: Now) -> Option<Outcome> {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        let outcome = converse(socket, &mut self.exchange);
        let late = now >= self.deadline && outcome.is_none();
        let outcome = if late { Some(Err(Failure::Timeout(self.timeout_seconds))) } else { outcome };
        if outcome.is_some() {
            self.told = true;
            self.deadline = now.plus_milliseconds(LINGER);
            if late { socket.abort() } else { socket.close() }
        }
        outcome
    }

    /// After the outcome: lets the target close its side.
    fn drain(&mut self, now: Now) -> Option<Outcome> {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        // More than a status line is read by nobody.
        let unread = socket.can_recv() && socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|count| count > 0);
        if unread || now >= self.deadline {
            socket.abort();
        }
        None
    }
}

/// Passes bytes between socket and exchange.
fn converse(socket: &mut Socket<'_>, exchange: &mut Exchange) -> Option<Outcome> {
    match socket.state() {
        State::SynSent => return None,
        State::Closed => return Some(Err(Failure::Reset)),
        _ if exchange.is_connect() => return Some(Ok(())),
        _ => {}
    }
    while socket.can_recv() {
        let outcome = socket.recv(|bytes| (bytes.len(), exchange.read(bytes)));
        if let Ok(Some(outcome)) = outcome {
            return Some(outcome);
        }
    }
    while socket.can_send() {
        match socket.send(|room| match exchange.write(room) {
            Ok(count) => (count, Ok(count)),
            Err(failure) => (0, Err(failure)),
        }) {
            Ok(Ok(count)) if count > 0 => {}
            Ok(Err(failure)) => return Some(Err(failure)),
            _ => break,
        }
    }
    (!socket.may_recv()).then_some(Err(Failure::Closed))
}

/// The packets of one connection on their way in and out.
#[derive(Default)]
struct Wire {
    mtu: usize,
    inward: Option<Vec<u8>>,
    outward: Vec<Vec<u8>>,
}

impl Device for Wire {
    type RxToken<'a> = Inward;
    type TxToken<'a> = Outward<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Inward, Outward<'_>)> {
        let packet = self.inward.take()?;
        Some((Inward(packet), Outward(&mut self.outward)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outward<'_>> {
        Some(Outward(&mut self.outward))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // What comes in was checked before, as far as its sender's offloads had completed it.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Inward(Vec<u8>);

impl RxToken for Inward {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Outward<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Outward<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}

fn instant(now: Now) -> Instant {
    Instant::from_millis(i64::try_from(now.milliseconds()).unwrap_or(i64::MAX))
}

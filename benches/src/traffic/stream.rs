//! The test frames: whose, how long, and with what in them. Addresses and ports come from a permutation of all that there are
//! (RFC 4814 §4.5), so that millions of flows are distinct without a table of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use postern_wire::MacAddress;
use postern_wire::checksum::{fold, sum};
use postern_wire::parse::{PROTOCOL_TCP, PROTOCOL_UDP};
use serde::Serialize;

use super::permutation::Permutation;
use super::stamp::{FLOWS, STAMP, Stamp};
use crate::packet::{Carried, frame};

/// Bytes of a frame check sequence, which sizes count and frames in memory do not have.
pub const CHECK_SEQUENCE: usize = 4;
/// Bytes of the Ethernet header.
const ETHERNET: usize = 14;
/// The lowest source port (RFC 6335 §6: below are system ports).
const FIRST_PORT: u64 = 1024;
/// How many source ports there are.
const PORTS: u64 = 65_536 - FIRST_PORT;
/// The order in which IMIX sizes come: 7 of 64, 4 of 594 and 1 of 1,518 bytes.
const IMIX: [u16; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];
/// RST (RFC 9293 §3.1).
const RST: u8 = 0x04;

/// Sizes of frames in bytes, frame check sequence included, as RFC 2544 §9 counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Sizes {
    /// All of one size, 64…9,018.
    Fixed(u16),
    /// 7 of 64, 4 of 594 and 1 of 1,518 bytes.
    Imix,
}

impl Sizes {
    /// The size of a frame by its sequence number.
    #[must_use]
    pub const fn of(self, sequence: u64) -> u16 {
        match self {
            Self::Fixed(size) => size,
            Self::Imix => IMIX[(sequence % IMIX.len() as u64) as usize],
        }
    }

    /// The size, if all are of one.
    #[must_use]
    pub const fn fixed(self) -> Option<u16> {
        match self {
            Self::Fixed(size) => Some(size),
            Self::Imix => None,
        }
    }

    /// The mean size.
    #[must_use]
    pub fn mean(self) -> f64 {
        match self {
            Self::Fixed(size) => f64::from(size),
            Self::Imix => IMIX.iter().copied().map(f64::from).sum::<f64>() / IMIX.len() as f64,
        }
    }

    /// The largest size.
    #[must_use]
    pub const fn largest(self) -> u16 {
        match self {
            Self::Fixed(size) => size,
            Self::Imix => 1518,
        }
    }

    /// Each size once.
    fn distinct(self) -> Vec<u16> {
        match self {
            Self::Fixed(size) => vec![size],
            Self::Imix => vec![64, 594, 1518],
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

impl From<Sizes> for String {
    fn from(sizes: Sizes) -> Self {
        sizes.to_string()
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(size @ 64..=9018) => Ok(Self::Fixed(size)),
            _ if text.eq_ignore_ascii_case("imix") => Ok(Self::Imix),
            _ => {
                Err("a frame size is a number of bytes from 64 to 9018, frame check sequence included, or imix".into())
            }
        }
    }
}

/// What the flows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP with timestamps.
    Tcp,
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A datagram or segment with a stamp.
    Data,
    /// A SYN; its sequence number is the flow's.
    Open,
    /// A FIN.
    Close,
    /// A RST.
    Reset,
}

/// Between whom frames pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ends {
    /// The generator's MAC address, and that of the device under test on the generator's side.
    pub macs: (MacAddress, MacAddress),
    /// The first of the clients' addresses.
    pub clients: IpAddr,
    /// How many addresses clients have, from the first on, 1…2²⁴.
    pub hosts: u32,
    /// Where the frames go.
    pub destination: SocketAddr,
}

/// What can be wrong with a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Headers and stamp do not fit.
    #[error(
        "a frame of {size} bytes has no room for its headers and the test's stamp: {least} bytes are the least here"
    )]
    TooSmall {
        /// The size that was asked for.
        size: u16,
        /// The smallest.
        least: usize,
    },
    /// There are not so many flows.
    #[error("{flows} flows: 1 to {most} are possible with {hosts} client addresses")]
    TooManyFlows {
        /// What was asked for.
        flows: u32,
        /// How many there can be.
        most: u64,
        /// Client addresses.
        hosts: u32,
    },
    /// IPv4 and IPv6.
    #[error("clients at {clients} cannot reach {destination}: one is IPv4, the other IPv6")]
    Families {
        /// The first client.
        clients: IpAddr,
        /// The destination.
        destination: IpAddr,
    },
}

/// A stream of test frames.
#[derive(Debug, Clone)]
pub struct Stream {
    ends: Ends,
    transport: Transport,
    flows: u32,
    sizes: Sizes,
    tuples: Permutation,
    data: Vec<Template>,
    open: Template,
    close: Template,
    reset: Template,
}

/// A frame in which only the client's address and port, TCP's numbers and the stamp are missing.
#[derive(Debug, Clone)]
struct Template {
    bytes: Vec<u8>,
    /// Where the transport header begins, and the payload.
    transport: usize,
    payload: usize,
    checksum: usize,
    /// Sum of the pseudo-header, the header and the payload, as far as they are there.
    partial: u64,
}

impl Stream {
    /// A stream of `flows` flows. The seed decides which addresses and ports they have.
    ///
    /// # Errors
    /// When the frames are too small, the flows too many, or the ends of different families.
    pub fn new(ends: Ends, transport: Transport, flows: u32, sizes: Sizes, seed: u64) -> Result<Self, StreamError> {
        let (clients, destination) = (ends.clients, ends.destination.ip());
        if clients.is_ipv6() != destination.is_ipv6() {
            return Err(StreamError::Families { clients, destination });
        }
        let tuples = u64::from(ends.hosts) * PORTS;
        let most = tuples.min(u64::from(FLOWS));
        if flows == 0 || u64::from(flows) > most {
            return Err(StreamError::TooManyFlows { flows, most, hosts: ends.hosts });
        }
        let tcp = |flags| Carried::Tcp { flags, sequence: 0 };
        let carried = match transport {
            Transport::Udp => Carried::Udp,
            Transport::Tcp => tcp(Carried::PSH | Carried::ACK),
        };
        let template = |carried, size: u16| Template::new(&ends, carried, usize::from(size) - CHECK_SEQUENCE);
        let mut data = Vec::new();
        for size in sizes.distinct() {
            let template = template(carried, size);
            let least = template.payload + STAMP + CHECK_SEQUENCE;
            if least > usize::from(size) {
                if matches!(sizes, Sizes::Fixed(_)) {
                    return Err(StreamError::TooSmall { size, least });
                }
                // The smallest of a mix are as small as they can be.
                data.push(Template::new(&ends, carried, least - CHECK_SEQUENCE));
            } else {
                data.push(template);
            }
        }
        let [open, close, reset] =
            [Carried::SYN, Carried::FIN | Carried::ACK, RST].map(|flags| template(tcp(flags), 64));
        Ok(Self { ends, transport, flows, sizes, tuples: Permutation::new(tuples, seed), data, open, close, reset })
    }

    /// Number of flows.
    #[must_use]
    pub const fn flows(&self) -> u32 {
        self.flows
    }

    /// UDP or TCP.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// Sizes of the frames.
    #[must_use]
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The client's address and port of a flow.
    #[must_use]
    pub fn client(&self, flow: u32) -> SocketAddr {
        let tuple = self.tuples.at(u64::from(flow));
        let (host, port) = ((tuple / PORTS) as u32, (FIRST_PORT + tuple % PORTS) as u16);
        let address = match self.ends.clients {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(host)).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(u128::from(host))).into(),
        };
        SocketAddr::new(address, port)
    }

    /// Writes a frame of a flow to the beginning of `buffer`, and returns its length without frame check sequence. Data has
    /// a stamp with this sequence number and time.
    ///
    /// # Panics
    /// If the buffer is shorter than the frame.
    pub fn write(&self, kind: Kind, stamp: Stamp, buffer: &mut [u8]) -> usize {
        let flow = stamp.flow;
        let (template, number) = match kind {
            Kind::Data => (&self.data[self.size_index(stamp.sequence)], flow.wrapping_add(1)),
            Kind::Open => (&self.open, flow),
            Kind::Close => (&self.close, flow.wrapping_add(1)),
            Kind::Reset => (&self.reset, flow.wrapping_add(1)),
        };
        let Template { bytes, transport, payload, checksum, partial } = template;
        let frame = &mut buffer[..bytes.len()];
        frame.copy_from_slice(bytes);
        let client = self.client(flow);
        let mut total = *partial;
        match client.ip() {
            IpAddr::V4(address) => {
                frame[26..30].copy_from_slice(&address.octets());
                total += sum(&address.octets());
                frame[24..26].fill(0);
                let check = !fold(sum(&frame[ETHERNET..34]));
                frame[24..26].copy_from_slice(&check.to_le_bytes());
            }
            IpAddr::V6(address) => {
                frame[22..38].copy_from_slice(&address.octets());
                total += sum(&address.octets());
            }
        }
        let port = client.port().to_be_bytes();
        frame[*transport..transport + 2].copy_from_slice(&port);
        total += sum(&port);
        if self.transport == Transport::Tcp || kind != Kind::Data {
            let number = number.to_be_bytes();
            frame[transport + 4..transport + 8].copy_from_slice(&number);
            total += sum(&number);
        }
        if kind == Kind::Data {
            stamp.write(&mut frame[*payload..]);
            total += sum(&frame[*payload..payload + STAMP]);
        }
        // UDP sends a sum of zero as all ones (RFC 768), and TCP may.
        let check = match !fold(total) {
            0 => 0xffff,
            check => check,
        };
        frame[*checksum..checksum + 2].copy_from_slice(&check.to_le_bytes());
        bytes.len()
    }

    const fn size_index(&self, sequence: u64) -> usize {
        match self.sizes {
            Sizes::Fixed(_) => 0,
            Sizes::Imix => match self.sizes.of(sequence) {
                64 => 0,
                594 => 1,
                _ => 2,
            },
        }
    }
}

impl Template {
    fn new(ends: &Ends, carried: Carried, length: usize) -> Self {
        let nobody: IpAddr = match ends.destination.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let (own, device) = ends.macs;
        let mut bytes = frame((device, own), SocketAddr::new(nobody, 0), ends.destination, carried, length);
        let transport = ETHERNET + if nobody.is_ipv6() { 40 } else { 20 };
        let (protocol, at) = match carried {
            Carried::Udp => (PROTOCOL_UDP, 6),
            Carried::Tcp { .. } => (PROTOCOL_TCP, 16),
        };
        let header = match carried {
            Carried::Udp => 8,
            Carried::Tcp { .. } => usize::from(bytes[transport + 12] >> 4) * 4,
        };
        let checksum = transport + at;
        bytes[checksum..checksum + 2].fill(0);
        let octets = match ends.destination.ip() {
            IpAddr::V4(address) => sum(&address.octets()),
            IpAddr::V6(address) => sum(&address.octets()),
        };
        let length = (bytes.len() - transport) as u16;
        let partial = octets + sum(&[0, protocol]) + sum(&length.to_be_bytes()) + sum(&bytes[transport..]);
        Self { bytes, transport, payload: transport + header, checksum, partial }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use postern_wire::{Frame, PacketKind, parse};

    use super::*;

    fn ends(six: bool, hosts: u32) -> Ends {
        let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
        let [clients, destination] =
            if six { ["2001:db8:80::", "2001:db8::100"] } else { ["10.128.0.0", "10.71.1.100"] }
                .map(|text| text.parse::<IpAddr>().unwrap());
        Ends { macs, clients, hosts, destination: SocketAddr::new(destination, 5201) }
    }

    #[test]
    fn every_frame_has_right_checksums_its_size_and_its_stamp() {
        let mut buffer = vec![0; 9100];
        for (six, transport, sizes) in [
            (false, Transport::Udp, Sizes::Fixed(64)),
            (false, Transport::Udp, Sizes::Fixed(9018)),
            (false, Transport::Tcp, Sizes::Fixed(128)),
            (true, Transport::Udp, Sizes::Fixed(129)),
            (true, Transport::Tcp, Sizes::Imix),
            (false, Transport::Udp, Sizes::Imix),
        ] {
            let stream = Stream::new(ends(six, 100), transport, 1000, sizes, 5).unwrap();
            for sequence in 0..200u64 {
                let stamp = Stamp { sequence, flow: (sequence % 1000) as u32, time: 77 };
                let length = stream.write(Kind::Data, stamp, &mut buffer);
                let size = usize::from(sizes.of(sequence)) - CHECK_SEQUENCE;
                assert!(length == size || (sizes == Sizes::Imix && size == 60 && length > 60), "{length} {size}");
                let at = if six { 54 } else { 34 };
                let addresses = if six { 22..54 } else { 26..34 };
                let protocol = if transport == Transport::Udp { 17 } else { 6 };
                let pseudo = sum(&buffer[addresses]) + sum(&[0, protocol]) + sum(&((length - at) as u16).to_be_bytes());
                assert_eq!(fold(pseudo + sum(&buffer[at..length])), 0xffff);
                if !six {
                    assert_eq!(fold(sum(&buffer[14..34])), 0xffff);
                }
                let header = if transport == Transport::Udp { 8 } else { 32 };
                assert_eq!(Stamp::read(&buffer[at + header..length]), Some(stamp));
                let parsed = parse(&Frame::new(&mut buffer, 0, length).unwrap()).unwrap();
                let kind = if transport == Transport::Udp { PacketKind::Udp } else { PacketKind::Tcp };
                assert_eq!((parsed.kind, parsed.end as usize), (kind, length));
            }
        }
    }

    #[test]
    fn a_million_flows_have_a_million_different_clients() {
        let stream = Stream::new(ends(false, 256), Transport::Udp, 1 << 20, Sizes::Fixed(64), 9).unwrap();
        let clients: HashSet<SocketAddr> = (0..1 << 20).map(|flow| stream.client(flow)).collect();
        assert_eq!(clients.len(), 1 << 20);
        assert!(clients.iter().all(|client| client.port() >= 1024));
        let hosts: HashSet<IpAddr> = clients.iter().map(SocketAddr::ip).collect();
        assert_eq!(hosts.len(), 256);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_does() {
        let new =
            |six, transport, flows, size| Stream::new(ends(six, 2), transport, flows, Sizes::Fixed(size), 1).map(drop);
        assert_eq!(new(false, Transport::Udp, 1, 64), Ok(()));
        assert_eq!(new(true, Transport::Udp, 1, 83), Err(StreamError::TooSmall { size: 83, least: 84 }));
        assert_eq!(new(false, Transport::Tcp, 1, 64), Err(StreamError::TooSmall { size: 64, least: 88 }));
        let most = 2 * PORTS;
        assert_eq!(
            new(false, Transport::Udp, most as u32 + 1, 64),
            Err(StreamError::TooManyFlows { flows: most as u32 + 1, most, hosts: 2 })
        );
        assert!(
            "63".parse::<Sizes>().is_err() && "9019".parse::<Sizes>().is_err() && "IMIX".parse() == Ok(Sizes::Imix)
        );
    }
}

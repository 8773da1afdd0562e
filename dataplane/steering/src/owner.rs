//! `owner(frame) → worker` in Rust. [`crate::program`] says the same in BPF instructions, step by step.

use postern_wire::parse::{ETHERTYPE_IPV4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{AttachmentIndex, FlowKey};

use crate::addresses::{LocalAddresses, LocalKind};
use crate::ownership::Ownership;
use crate::packet::{Packet, be16, four};

/// The worker that takes what no flow owns: ARP, IPv6, other destinations, and packets that end inside a header.
pub const WORKER_OF_THE_REST: u16 = 0;

/// ICMP types whose message quotes a packet: destination unreachable, source quench, time exceeded, parameter problem
/// (RFC 792).
pub(crate) const ICMP_ERRORS: [u8; 4] = [3, 4, 11, 12];
/// Bytes of an ICMP message before the quoted packet.
pub(crate) const ICMP_HEADER: usize = 8;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;

/// Everything that decides which worker owns a frame of one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steering {
    /// Who owns which bucket and which block of SNAT ports.
    pub ownership: Ownership,
    /// The port's local addresses.
    pub addresses: LocalAddresses,
}

impl Steering {
    /// The worker that owns a frame.
    ///
    /// | destination and packet | worker |
    /// |---|---|
    /// | not local, not IPv4, or cut inside a header | [`WORKER_OF_THE_REST`] |
    /// | any fragment, the first included | bucket of (source, destination, protocol, identification, VLAN) |
    /// | TCP, UDP to an endpoint | bucket of the flow |
    /// | TCP, UDP to an SNAT address | block of the destination port |
    /// | ICMP error to an endpoint | bucket of the flow whose answer it quotes |
    /// | ICMP error to an SNAT address | block of the quoted source port |
    /// | anything else, also an ICMP error that quotes no TCP or UDP ports | bucket of (source, destination, protocol) |
    ///
    /// Lengths are those of the frame: a total length that contradicts it is the owner's to find.
    #[must_use]
    pub fn owner(&self, packet: Packet<'_>) -> u16 {
        if packet.ethertype != ETHERTYPE_IPV4 {
            return WORKER_OF_THE_REST;
        }
        let ip = packet.bytes;
        let Some(header_length) = header_length(ip) else { return WORKER_OF_THE_REST };
        let Some(kind) = self.addresses.kind(packet.vlan, four(ip, 16)) else { return WORKER_OF_THE_REST };
        let protocol = ip[9];
        if be16(ip, 6) & 0x3fff != 0 {
            let identification = u32::from(u16::from_le_bytes([ip[4], ip[5]]));
            return self.of_bucket(addresses(ip), identification | u32::from(packet.vlan) << 16, protocol);
        }
        let transport = &ip[header_length.min(ip.len())..];
        match protocol {
            PROTOCOL_TCP | PROTOCOL_UDP => {
                let Some(&ports) = transport.first_chunk::<4>() else { return WORKER_OF_THE_REST };
                match kind {
                    LocalKind::Snat => self.ownership.of_port(be16(&ports, 2)),
                    LocalKind::Endpoint => self.of_bucket(addresses(ip), u32::from_le_bytes(ports), protocol),
                }
            }
            PROTOCOL_ICMP => {
                let Some(icmp_type) = transport.first() else { return WORKER_OF_THE_REST };
                let quoted = if ICMP_ERRORS.contains(icmp_type) { Quoted::read(transport) } else { None };
                match (quoted, kind) {
                    (None, _) => self.of_bucket(addresses(ip), 0, PROTOCOL_ICMP),
                    (Some(quoted), LocalKind::Snat) => self.ownership.of_port(be16(&quoted.ports, 0)),
                    // The quoted packet went to the consumer; the flow's key is that of the opposite direction.
                    (Some(quoted), LocalKind::Endpoint) => self.of_bucket(
                        quoted.addresses.rotate_left(32),
                        u32::from_le_bytes(quoted.ports).rotate_left(16),
                        quoted.protocol,
                    ),
                }
            }
            _ => self.of_bucket(addresses(ip), 0, protocol),
        }
    }

    /// The owner of the bucket of these address bytes, port bytes (both read as little-endian) and protocol.
    fn of_bucket(&self, addresses: u64, ports: u32, protocol: u8) -> u16 {
        self.ownership.of_flow(FlowKey::from_wire(AttachmentIndex(0), protocol, addresses, ports))
    }
}

/// The packet that an ICMP error quotes, if its ports are there.
struct Quoted {
    addresses: u64,
    ports: [u8; 4],
    protocol: u8,
}

impl Quoted {
    fn read(icmp: &[u8]) -> Option<Self> {
        let ip = icmp.get(ICMP_HEADER..)?;
        let header_length = header_length(ip)?;
        let is_later_fragment = be16(ip, 6) & 0x1fff != 0;
        if is_later_fragment || !matches!(ip[9], PROTOCOL_TCP | PROTOCOL_UDP) {
            return None;
        }
        let &ports = ip.get(header_length..)?.first_chunk::<4>()?;
        Some(Self { addresses: addresses(ip), ports, protocol: ip[9] })
    }
}

/// Length of an IPv4 header of which at least the 20 fixed bytes are there; options may be cut.
fn header_length(ip: &[u8]) -> Option<usize> {
    let first = *ip.first()?;
    (ip.len() >= IPV4_HEADER && first >> 4 == 4 && first & 0x0f >= 5).then_some(usize::from(first & 0x0f) * 4)
}

/// Source and destination address of an IPv4 header, read as one little-endian integer.
fn addresses(ip: &[u8]) -> u64 {
    u64::from(u32::from_le_bytes(four(ip, 12))) | u64::from(u32::from_le_bytes(four(ip, 16))) << 32
}

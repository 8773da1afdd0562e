//! `owner(frame) → worker` in Rust. [`crate::program`] says the same in BPF instructions, step by step.

use postern_wire::ipv6::{self, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{AttachmentIndex, FlowKey};

use crate::addresses::{LocalAddresses, LocalKind};
use crate::ownership::Ownership;
use crate::packet::{Packet, be16, four};

/// The worker that takes what no flow owns: ARP, multicast, other destinations, and packets that end inside a header.
pub const WORKER_OF_THE_REST: u16 = 0;

/// ICMP types whose message quotes a packet: destination unreachable, source quench, time exceeded, parameter problem
/// (RFC 792).
pub(crate) const ICMP_ERRORS: [u8; 4] = [3, 4, 11, 12];
/// The same of ICMPv6 (RFC 4443 §2.1): destination unreachable, packet too big, time exceeded, parameter problem.
pub(crate) const ICMPV6_ERRORS: [u8; 4] = [1, 2, 3, 4];
/// Extension headers of IPv6 that are walked over.
pub(crate) const EXTENSIONS: [u8; 4] = [HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS];
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
    /// | not local, not IP, or cut inside a header | [`WORKER_OF_THE_REST`] |
    /// | any fragment, the first included | bucket of (source, destination, protocol, identification, VLAN) |
    /// | TCP, UDP to an endpoint | bucket of the flow |
    /// | TCP, UDP to an SNAT address | block of the destination port |
    /// | ICMP error to an endpoint | bucket of the flow whose answer it quotes |
    /// | ICMP error to an SNAT address | block of the quoted source port |
    /// | anything else, also an ICMP error that quotes no TCP or UDP ports | bucket of (source, destination, protocol) |
    ///
    /// IPv6 addresses are folded to 32 bits by [`ipv6::fold`]. Extension headers are walked over within the bounds of
    /// [`ipv6::upper`]; a packet beyond them is of the first row. A fragment's protocol is what its fragment header says comes
    /// next, and the VLAN does not count. An ICMPv6 error's quoted packet is looked into if its ports follow its first
    /// header; else the worker that gets it passes it on.
    ///
    /// Lengths are those of the frame: a total length that contradicts it is the owner's to find.
    #[must_use]
    pub fn owner(&self, packet: Packet<'_>) -> u16 {
        if packet.ethertype == ETHERTYPE_IPV6 {
            return self.owner6(packet).unwrap_or(WORKER_OF_THE_REST);
        }
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

    /// `None` for what is not local, or cut.
    fn owner6(&self, packet: Packet<'_>) -> Option<u16> {
        let ip = packet.bytes;
        let header: &[u8; ipv6::HEADER] = ip.first_chunk().filter(|header| header[0] >> 4 == 6)?;
        let kind = self.addresses.kind6(packet.vlan, *header.last_chunk()?)?;
        let folded = folded_addresses(header);
        let (mut protocol, mut at) = (header[ipv6::NEXT_HEADER], ipv6::HEADER);
        let mut extensions = 0;
        while EXTENSIONS.contains(&protocol) {
            extensions += 1;
            let extension: &[u8; 8] = ip.get(at..)?.first_chunk()?;
            if extensions > ipv6::MOST_EXTENSIONS {
                return None;
            }
            if protocol == FRAGMENT {
                if be16(extension, 2) & !6 != 0 {
                    return Some(self.of_bucket(folded, u32::from_le_bytes(four(extension, 4)), extension[0]));
                }
                at += ipv6::FRAGMENT_HEADER;
            } else {
                at += (usize::from(extension[1]) + 1) * 8;
            }
            protocol = extension[0];
            if at > ipv6::HEADER + ipv6::MOST_EXTENSION_BYTES {
                return None;
            }
        }
        let transport = &ip[at.min(ip.len())..];
        Some(match protocol {
            PROTOCOL_TCP | PROTOCOL_UDP => {
                let &ports = transport.first_chunk::<4>()?;
                match kind {
                    LocalKind::Snat => self.ownership.of_port(be16(&ports, 2)),
                    LocalKind::Endpoint => self.of_bucket(folded, u32::from_le_bytes(ports), protocol),
                }
            }
            PROTOCOL_ICMPV6 => {
                let is_error = ICMPV6_ERRORS.contains(transport.first()?);
                let quoted = if is_error { Quoted::read6(transport) } else { None };
                match (quoted, kind) {
                    (None, _) => self.of_bucket(folded, 0, PROTOCOL_ICMPV6),
                    (Some(quoted), LocalKind::Snat) => self.ownership.of_port(be16(&quoted.ports, 0)),
                    (Some(quoted), LocalKind::Endpoint) => self.of_bucket(
                        quoted.addresses.rotate_left(32),
                        u32::from_le_bytes(quoted.ports).rotate_left(16),
                        quoted.protocol,
                    ),
                }
            }
            _ => self.of_bucket(folded, 0, protocol),
        })
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

impl Quoted {
    fn read6(icmp: &[u8]) -> Option<Self> {
        let ip = icmp.get(ICMP_HEADER..)?;
        let header: &[u8; ipv6::HEADER] = ip.first_chunk().filter(|header| header[0] >> 4 == 6)?;
        let protocol = header[ipv6::NEXT_HEADER];
        if !matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
            return None;
        }
        let &ports = ip.get(ipv6::HEADER..)?.first_chunk::<4>()?;
        Some(Self { addresses: folded_addresses(header), ports, protocol })
    }
}

/// Source and destination address of an IPv6 header, folded, as [`addresses`] has those of IPv4.
fn folded_addresses(header: &[u8; ipv6::HEADER]) -> u64 {
    let Some(pair) = ipv6::addresses(header, 0) else { return 0 };
    let (source, destination) = ipv6::octets(pair);
    u64::from(ipv6::fold(source)) | u64::from(ipv6::fold(destination)) << 32
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);
    const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
    const SNAT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 5);
    const TARGET: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 77);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

    fn steering(workers: u16) -> Steering {
        Steering {
            ownership: Ownership::even(workers, [0x0f1e_2d3c_4b5a_6978, 0x8796_a5b4_c3d2_e1f0]),
            addresses: [(0, ENDPOINT, LocalKind::Endpoint), (0, SNAT, LocalKind::Snat)].into_iter().collect(),
        }
    }

    /// An IPv4 packet with `options` words of options; `flags` is the word with the fragment offset.
    fn ipv4(options: u8, flags: u16, protocol: u8, source: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45 + options, 0, 0, 0, 0x12, 0x34];
        bytes.extend(flags.to_be_bytes());
        bytes.extend([64, protocol, 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(to.octets());
        bytes.extend(std::iter::repeat_n(1, usize::from(options) * 4));
        bytes.extend(payload);
        bytes
    }

    fn ports(source: u16, destination: u16) -> Vec<u8> {
        [source.to_be_bytes(), destination.to_be_bytes(), [0; 2], [0; 2]].concat()
    }

    fn icmp_error(icmp_type: u8, quoted: &[u8]) -> Vec<u8> {
        [&[icmp_type, 0, 0, 0, 0, 0, 0, 0], quoted].concat()
    }

    const fn untagged(bytes: &[u8]) -> Packet<'_> {
        Packet { vlan: 0, ethertype: ETHERTYPE_IPV4, bytes }
    }

    fn flow(protocol: u8, port: u16) -> FlowKey {
        let (source, destination) = (SocketAddrV4::new(CLIENT, port), SocketAddrV4::new(ENDPOINT, 443));
        FlowKey::new(AttachmentIndex(3), protocol, source, destination)
    }

    #[test]
    fn a_consumers_packet_and_the_icmp_error_about_its_answer_reach_the_owner_of_the_flow() {
        let steering = steering(8);
        for port in (1..60_000).step_by(97) {
            for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
                let owner = steering.ownership.of_flow(flow(protocol, port));
                for options in [0, 1, 10] {
                    let packet = ipv4(options, 0x4000, protocol, CLIENT, ENDPOINT, &ports(port, 443));
                    assert_eq!(steering.owner(untagged(&packet)), owner);
                    let answer = ipv4(options, 0x4000, protocol, ENDPOINT, CLIENT, &ports(443, port));
                    for icmp_type in ICMP_ERRORS {
                        let error = ipv4(options, 0, 1, ROUTER, ENDPOINT, &icmp_error(icmp_type, &answer));
                        assert_eq!(steering.owner(untagged(&error)), owner);
                    }
                }
            }
        }
    }

    #[test]
    fn a_targets_answer_and_the_icmp_error_about_the_request_reach_the_owner_of_the_snat_port() {
        let steering = steering(8);
        for port in 0..=u16::MAX {
            let owner = steering.ownership.of_port(port);
            let answer = ipv4(0, 0x4000, PROTOCOL_TCP, TARGET, SNAT, &ports(443, port));
            assert_eq!(steering.owner(untagged(&answer)), owner);
            let request = ipv4(2, 0x4000, PROTOCOL_UDP, SNAT, TARGET, &ports(port, 443));
            let error = ipv4(0, 0, 1, ROUTER, SNAT, &icmp_error(11, &request));
            assert_eq!(steering.owner(untagged(&error)), owner);
        }
    }

    #[test]
    fn every_fragment_of_a_datagram_reaches_one_worker_and_datagrams_spread() {
        let steering = steering(8);
        let mut owners = [0; 8];
        for identification in 0..512_u16 {
            let owner_of = |flags: u16| {
                let mut fragment = ipv4(0, flags, PROTOCOL_UDP, CLIENT, ENDPOINT, &ports(flags, 53));
                fragment[4..6].copy_from_slice(&identification.to_be_bytes());
                steering.owner(untagged(&fragment))
            };
            let owner = owner_of(0x2000);
            assert!([0x2001, 0x20b9, 0x0172].iter().all(|&flags| owner_of(flags) == owner));
            owners[usize::from(owner)] += 1;
        }
        assert!(owners.iter().all(|&count| count > 32), "{owners:?}");
    }

    #[test]
    fn what_no_flow_can_own_goes_to_the_worker_of_the_rest() {
        let steering =
            Steering { ownership: Ownership { buckets: [3; 512], blocks: [4; 512], key: [1, 2] }, ..steering(1) };
        let packet = ipv4(0, 0x4000, PROTOCOL_TCP, CLIENT, ENDPOINT, &ports(1, 2));
        assert_eq!(steering.owner(untagged(&packet)), 3);
        for length in 0..24 {
            assert_eq!(steering.owner(untagged(&packet[..length])), WORKER_OF_THE_REST, "cut to {length} bytes");
        }
        assert_eq!(steering.owner(Packet { vlan: 5, ..untagged(&packet) }), WORKER_OF_THE_REST);
        assert_eq!(steering.owner(Packet { ethertype: 0x0806, ..untagged(&packet) }), WORKER_OF_THE_REST);
        let transit = ipv4(0, 0x4000, PROTOCOL_TCP, CLIENT, TARGET, &ports(1, 2));
        assert_eq!(steering.owner(untagged(&transit)), WORKER_OF_THE_REST);
    }

    #[test]
    fn flows_and_snat_ports_are_balanced_over_any_number_of_workers() {
        for workers in [1, 2, 3, 4, 8] {
            let steering = steering(workers);
            let (mut flows, mut snat_ports) = (vec![0_u32; usize::from(workers)], vec![0_u32; usize::from(workers)]);
            for port in 1024..=u16::MAX {
                flows[usize::from(steering.ownership.of_flow(flow(PROTOCOL_TCP, port)))] += 1;
                snat_ports[usize::from(steering.ownership.of_port(port))] += 1;
            }
            let share = 64_512 / u32::from(workers);
            // 512 buckets over 3 workers are uneven by 1 in 170; a flow hash of 64,512 flows adds its own spread.
            assert!(flows.iter().all(|count| count.abs_diff(share) < share / 20), "{workers} workers: {flows:?}");
            assert!(snat_ports.iter().all(|count| count.abs_diff(share) <= 128), "{workers} workers: {snat_ports:?}");
        }
    }
}

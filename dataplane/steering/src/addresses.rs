//! The addresses that Postern answers for on one port.

use std::collections::HashMap;
use std::net::IpAddr;

use postern_wire::arp;
use postern_wire::icmpv6::{NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use postern_wire::ipv6;
use postern_wire::parse::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMPV6};

use crate::packet::{Packet, four};

/// The first eight bytes of an ARP packet for IPv4 over Ethernet but the operation: hardware type 1, protocol type
/// 0x0800, lengths 6 and 4 (RFC 826).
pub(crate) const ARP_FOR_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Offset of the target protocol address in an ARP packet for IPv4 over Ethernet.
pub(crate) const ARP_TARGET_ADDRESS: usize = 24;
/// Offset of the destination address in an IPv4 header.
pub(crate) const IPV4_DESTINATION: usize = 16;
/// Offset of the destination address in an IPv6 header.
pub(crate) const IPV6_DESTINATION: usize = 24;
/// Offset of the target address of a neighbor solicitation or advertisement that follows an IPv6 header.
pub(crate) const DISCOVERY_TARGET: usize = ipv6::HEADER + 8;

/// What a local address is for, which decides how the owner of its packets is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum LocalKind {
    /// An interface endpoint's address: consumers send to it; packets belong to a bucket of the flow's hash.
    Endpoint = 1,
    /// An SNAT address: targets answer to it; packets belong to the block of the destination port.
    Snat = 2,
}

/// The local addresses of one port by (VLAN identifier, address). VLAN identifier 0 stands for untagged frames.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalAddresses {
    pub(crate) kinds: HashMap<(u16, [u8; 4]), LocalKind>,
    pub(crate) kinds6: HashMap<(u16, [u8; 16]), LocalKind>,
}

impl LocalAddresses {
    /// Adds an address, or changes what it is for. `vlan` is 0 for untagged frames, else 1…4094.
    pub fn insert(&mut self, vlan: u16, address: impl Into<IpAddr>, kind: LocalKind) {
        match address.into() {
            IpAddr::V4(address) => self.kinds.insert((vlan, address.octets()), kind),
            IpAddr::V6(address) => self.kinds6.insert((vlan, address.octets()), kind),
        };
    }

    /// What `address` is on `vlan`.
    #[must_use]
    pub fn kind(&self, vlan: u16, address: [u8; 4]) -> Option<LocalKind> {
        self.kinds.get(&(vlan, address)).copied()
    }

    /// What an IPv6 `address` is on `vlan`.
    #[must_use]
    pub fn kind6(&self, vlan: u16, address: [u8; 16]) -> Option<LocalKind> {
        self.kinds6.get(&(vlan, address)).copied()
    }

    /// How many there are, of both families.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kinds.len() + self.kinds6.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a frame is Postern's on a port that it shares with the host: IP to a local address, ARP that asks for or answers
    /// to one, or Neighbor Discovery about one. Everything else is the host's. [`crate::filter`] says the same to the kernel.
    #[must_use]
    pub fn claims(&self, packet: Packet<'_>) -> bool {
        let address = match packet.ethertype {
            ETHERTYPE_IPV4 if packet.bytes.len() >= 20 => four(packet.bytes, IPV4_DESTINATION),
            ETHERTYPE_ARP
                if packet.bytes.len() >= arp::LENGTH && packet.bytes[..ARP_FOR_IPV4.len()] == ARP_FOR_IPV4 =>
            {
                four(packet.bytes, ARP_TARGET_ADDRESS)
            }
            ETHERTYPE_IPV6 => return self.claims_ipv6(packet),
            _ => return false,
        };
        self.kind(packet.vlan, address).is_some()
    }
}

impl LocalAddresses {
    fn claims_ipv6(&self, packet: Packet<'_>) -> bool {
        let address = |at: usize| packet.bytes.get(at..).and_then(<[u8]>::first_chunk::<16>).copied();
        let is_local = |address: [u8; 16]| self.kind6(packet.vlan, address).is_some();
        if packet.bytes.len() < ipv6::HEADER {
            return false;
        }
        if address(IPV6_DESTINATION).is_some_and(is_local) {
            return true;
        }
        // Who asks does so by multicast, without extension headers.
        packet.bytes[ipv6::NEXT_HEADER] == PROTOCOL_ICMPV6
            && matches!(packet.bytes.get(ipv6::HEADER), Some(&(NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT)))
            && address(DISCOVERY_TARGET).is_some_and(is_local)
    }
}

impl<A: Into<IpAddr>> FromIterator<(u16, A, LocalKind)> for LocalAddresses {
    fn from_iter<T: IntoIterator<Item = (u16, A, LocalKind)>>(iter: T) -> Self {
        let mut addresses = Self::default();
        iter.into_iter().for_each(|(vlan, address, kind)| addresses.insert(vlan, address, kind));
        addresses
    }
}

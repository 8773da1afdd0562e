//! The addresses that Postern answers for on one port.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use postern_wire::arp;
use postern_wire::parse::{ETHERTYPE_ARP, ETHERTYPE_IPV4};

use crate::packet::{Packet, four};

/// The first eight bytes of an ARP packet for IPv4 over Ethernet but the operation: hardware type 1, protocol type
/// 0x0800, lengths 6 and 4 (RFC 826).
pub(crate) const ARP_FOR_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Offset of the target protocol address in an ARP packet for IPv4 over Ethernet.
pub(crate) const ARP_TARGET_ADDRESS: usize = 24;
/// Offset of the destination address in an IPv4 header.
pub(crate) const IPV4_DESTINATION: usize = 16;

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
}

impl LocalAddresses {
    /// Adds an address, or changes what it is for. `vlan` is 0 for untagged frames, else 1…4094.
    pub fn insert(&mut self, vlan: u16, address: Ipv4Addr, kind: LocalKind) {
        self.kinds.insert((vlan, address.octets()), kind);
    }

    /// What `address` is on `vlan`.
    #[must_use]
    pub fn kind(&self, vlan: u16, address: [u8; 4]) -> Option<LocalKind> {
        self.kinds.get(&(vlan, address)).copied()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Whether a frame is Postern's on a port that it shares with the host: IPv4 to a local address, or ARP that asks for
    /// or answers to one. Everything else is the host's. [`crate::filter`] says the same to the kernel.
    #[must_use]
    pub fn claims(&self, packet: Packet<'_>) -> bool {
        let address = match packet.ethertype {
            ETHERTYPE_IPV4 if packet.bytes.len() >= 20 => four(packet.bytes, IPV4_DESTINATION),
            ETHERTYPE_ARP
                if packet.bytes.len() >= arp::LENGTH && packet.bytes[..ARP_FOR_IPV4.len()] == ARP_FOR_IPV4 =>
            {
                four(packet.bytes, ARP_TARGET_ADDRESS)
            }
            _ => return false,
        };
        self.kind(packet.vlan, address).is_some()
    }
}

impl FromIterator<(u16, Ipv4Addr, LocalKind)> for LocalAddresses {
    fn from_iter<T: IntoIterator<Item = (u16, Ipv4Addr, LocalKind)>>(iter: T) -> Self {
        Self { kinds: iter.into_iter().map(|(vlan, address, kind)| ((vlan, address.octets()), kind)).collect() }
    }
}

//! The key by which a connection is found.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Index of an attachment (how the gateway reaches a VPC: a port, or a VLAN on a port) in a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct AttachmentIndex(pub u16);

/// Which half of a connection a packet belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the consumer to the target.
    Forward,
    /// From the target to the consumer.
    Reverse,
}

/// The version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    #[default]
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

impl Family {
    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Addresses, ports, protocol and attachment of one direction of a connection: 16 bytes.
///
/// Layout: source address, destination address (4 + 4), source port, destination port (2 + 2), all in network order
/// exactly as they stand in the packet, attachment (2, little-endian), protocol (1), [`Family`] (1).
///
/// In a key of an IPv6 packet, each address is an *address word*: a hash of 32 bits, under a secret of whoever keeps keys. Two
/// addresses may have one word, so whoever finds something by such a key compares the addresses themselves besides.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
pub struct FlowKey {
    /// Both addresses: the eight bytes at offset 12 of the IPv4 header, read as little-endian.
    pub addresses: u64,
    /// Bits 0…31 the four port bytes read as little-endian, 32…47 the attachment, 48…55 the protocol, 56…63 the family.
    pub rest: u64,
}

impl FlowKey {
    /// Builds a key from its parts.
    #[must_use]
    pub fn new(attachment: AttachmentIndex, protocol: u8, source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        let half = |address: Ipv4Addr| u64::from(u32::from_le_bytes(address.octets()));
        let port = |port: u16| u32::from(port.swap_bytes());
        Self::from_wire(
            attachment,
            protocol,
            half(*source.ip()) | half(*destination.ip()) << 32,
            port(source.port()) | port(destination.port()) << 16,
        )
    }

    /// Builds a key from the address bytes and port bytes of a packet, read as little-endian integers.
    #[inline]
    #[must_use]
    pub const fn from_wire(attachment: AttachmentIndex, protocol: u8, addresses: u64, ports: u32) -> Self {
        Self { addresses, rest: ports as u64 | (attachment.0 as u64) << 32 | (protocol as u64) << 48 }
    }

    /// The key of an IPv6 packet: address words of source and destination, and the port bytes read as little-endian.
    #[inline]
    #[must_use]
    pub const fn wide(attachment: AttachmentIndex, protocol: u8, words: [u32; 2], ports: u32) -> Self {
        let addresses = words[0] as u64 | (words[1] as u64) << 32;
        let key = Self::from_wire(attachment, protocol, addresses, ports);
        Self { rest: key.rest | (Family::V6 as u64) << 56, ..key }
    }

    /// Whether it is a key of IPv6 packets.
    #[inline]
    #[must_use]
    pub const fn is_wide(self) -> bool {
        self.rest >> 56 != 0
    }

    /// The family of the packets that have the key.
    #[inline]
    #[must_use]
    pub const fn family(self) -> Family {
        if self.is_wide() { Family::V6 } else { Family::V4 }
    }

    /// The same key with another destination, given by its address word.
    #[inline]
    #[must_use]
    pub const fn to_word(self, word: u32, port: u16) -> Self {
        Self {
            addresses: self.addresses & 0xffff_ffff | (word as u64) << 32,
            rest: self.rest & !0xffff_0000 | (port.swap_bytes() as u64) << 16,
        }
    }

    /// The key of the answering packet: source and destination exchanged.
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Self {
        let ports = (self.rest as u32).rotate_left(16);
        Self { addresses: self.addresses.rotate_left(32), rest: (self.rest & !0xffff_ffff) | ports as u64 }
    }

    /// The same key on another attachment.
    #[inline]
    #[must_use]
    pub const fn on(self, attachment: AttachmentIndex) -> Self {
        Self { addresses: self.addresses, rest: (self.rest & !(0xffff << 32)) | (attachment.0 as u64) << 32 }
    }

    /// The same key with another destination.
    #[inline]
    #[must_use]
    pub const fn to(self, address: Ipv4Addr, port: u16) -> Self {
        let address = u32::from_le_bytes(address.octets()) as u64;
        Self {
            addresses: self.addresses & 0xffff_ffff | address << 32,
            rest: self.rest & !0xffff_0000 | (port.swap_bytes() as u64) << 16,
        }
    }

    /// The four port bytes as they stand in the packet, read as little-endian.
    #[inline]
    #[must_use]
    pub const fn ports(self) -> u32 {
        self.rest as u32
    }

    /// Source address; of an IPv6 packet, its word.
    #[must_use]
    pub const fn source(self) -> Ipv4Addr {
        Ipv4Addr::from_octets((self.addresses as u32).to_le_bytes())
    }

    /// Destination address; of an IPv6 packet, its word.
    #[must_use]
    pub const fn destination(self) -> Ipv4Addr {
        Ipv4Addr::from_octets(((self.addresses >> 32) as u32).to_le_bytes())
    }

    /// Source port (TCP, UDP).
    #[must_use]
    pub const fn source_port(self) -> u16 {
        (self.rest as u16).swap_bytes()
    }

    /// Destination port (TCP, UDP).
    #[must_use]
    pub const fn destination_port(self) -> u16 {
        ((self.rest >> 16) as u16).swap_bytes()
    }

    /// Source address and port.
    #[must_use]
    pub const fn source_socket(self) -> SocketAddrV4 {
        SocketAddrV4::new(self.source(), self.source_port())
    }

    /// Destination address and port.
    #[must_use]
    pub const fn destination_socket(self) -> SocketAddrV4 {
        SocketAddrV4::new(self.destination(), self.destination_port())
    }

    /// The attachment on which packets of this direction arrive.
    #[inline]
    #[must_use]
    pub const fn attachment(self) -> AttachmentIndex {
        AttachmentIndex((self.rest >> 32) as u16)
    }

    /// IP protocol number (6 TCP, 17 UDP).
    #[inline]
    #[must_use]
    pub const fn protocol(self) -> u8 {
        (self.rest >> 48) as u8
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (self.source_socket(), self.destination_socket());
        let words = if self.is_wide() { " (address words)" } else { "" };
        write!(f, "{source} > {destination}{words} protocol {} attachment {}", self.protocol(), self.attachment().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_come_back_and_reversing_twice_is_the_identity() {
        let source = SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, 3), 12345);
        let destination = SocketAddrV4::new(Ipv4Addr::new(10, 9, 8, 7), 443);
        let key = FlowKey::new(AttachmentIndex(7), 6, source, destination);
        assert_eq!((key.source_socket(), key.destination_socket()), (source, destination));
        assert_eq!((key.attachment(), key.protocol()), (AttachmentIndex(7), 6));
        let back = key.reversed();
        assert_eq!((back.source_socket(), back.destination_socket()), (destination, source));
        assert_eq!(back.reversed(), key);
        assert_eq!(key.on(AttachmentIndex(2)).attachment(), AttachmentIndex(2));
        assert_eq!(key.on(AttachmentIndex(2)).protocol(), 6);
        let other = SocketAddrV4::new(Ipv4Addr::new(172, 16, 5, 4), 51_000);
        assert_eq!(key.to(*other.ip(), other.port()), FlowKey::new(AttachmentIndex(7), 6, source, other));
    }

    #[test]
    fn a_key_of_ipv6_is_none_of_ipv4_and_keeps_its_family() {
        let wide = FlowKey::wide(AttachmentIndex(7), 6, [1, 2], 0x1234_5678);
        let narrow = FlowKey::from_wire(AttachmentIndex(7), 6, 1 | 2 << 32, 0x1234_5678);
        assert_ne!(wide, narrow);
        assert_eq!((wide.family(), narrow.family()), (Family::V6, Family::V4));
        for key in [wide.reversed(), wide.on(AttachmentIndex(9)), wide.to_word(9, 80), wide.to(Ipv4Addr::LOCALHOST, 80)]
        {
            assert!(key.is_wide() && key.protocol() == 6, "{key:?}");
        }
        assert_eq!((wide.to_word(9, 80).destination_port(), wide.attachment()), (80, AttachmentIndex(7)));
        assert_eq!(wide.to_word(9, 80).addresses, 1 | 9 << 32);
    }
}

//! ARP for IPv4 over Ethernet (RFC 826): 28 bytes behind the Ethernet header.

use std::net::Ipv4Addr;

use crate::address::MacAddress;

/// Length of an ARP packet for IPv4 over Ethernet, in bytes.
pub const LENGTH: usize = 28;

/// Request or reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Who has the target address? (operation 1)
    Request,
    /// The sender has it. (operation 2)
    Reply,
}

/// An ARP packet. Layout: hardware type 1, protocol 0x0800, lengths 6 and 4, operation (8 bytes), sender MAC and
/// address, target MAC and address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpPacket {
    /// Request or reply.
    pub operation: Operation,
    /// Sender's hardware address.
    pub sender_mac: MacAddress,
    /// Sender's protocol address.
    pub sender: Ipv4Addr,
    /// Target's hardware address; zero in a request.
    pub target_mac: MacAddress,
    /// Target's protocol address.
    pub target: Ipv4Addr,
}

const FIXED: [u8; 6] = [0, 1, 8, 0, 6, 4];

impl ArpPacket {
    /// Reads a packet; `None` if it is short, not IPv4 over Ethernet, or neither request nor reply.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.first_chunk()?;
        if bytes[..6] != FIXED {
            return None;
        }
        let operation = match (bytes[6], bytes[7]) {
            (0, 1) => Operation::Request,
            (0, 2) => Operation::Reply,
            _ => return None,
        };
        let mac = |at: usize| {
            MacAddress([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[at + 4], bytes[at + 5]])
        };
        let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Some(Self { operation, sender_mac: mac(8), sender: address(14), target_mac: mac(18), target: address(24) })
    }

    /// Writes the packet.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..6].copy_from_slice(&FIXED);
        bytes[7] = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        bytes[8..14].copy_from_slice(&self.sender_mac.0);
        bytes[14..18].copy_from_slice(&self.sender.octets());
        bytes[18..24].copy_from_slice(&self.target_mac.0);
        bytes[24..28].copy_from_slice(&self.target.octets());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_survives_writing_and_parsing_and_a_foreign_one_is_refused() {
        let packet = ArpPacket {
            operation: Operation::Reply,
            sender_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            sender: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: MacAddress([2, 0, 0, 0, 0, 2]),
            target: Ipv4Addr::new(10, 0, 0, 2),
        };
        let mut bytes = packet.to_bytes();
        assert_eq!(ArpPacket::parse(&bytes), Some(packet));
        assert_eq!(ArpPacket::parse(&bytes[..27]), None);
        bytes[1] = 6;
        assert_eq!(ArpPacket::parse(&bytes), None);
    }
}

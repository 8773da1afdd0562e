//! ARP packets and messages of Neighbor Discovery in Ethernet frames, with an 802.1Q tag where the attachment has one.

use postern_wire::arp::ArpPacket;
use postern_wire::frame::NO_VLAN;
use postern_wire::nd::{self, NeighbourPacket};
use postern_wire::parse::{ETHERTYPE_ARP, ETHERTYPE_IPV6, ETHERTYPE_VLAN};
use postern_wire::{MacAddress, PortIndex};

/// Longest frame that is made or kept: Ethernet header, one tag, a solicitation with eight more options of eight bytes, in
/// bytes.
pub const LONGEST: usize = 14 + 4 + nd::LONGEST + 64;

/// A frame of ARP or Neighbor Discovery, made or received: bytes, without padding if made, and the port.
///
/// Layout: Ethernet header (14 bytes), 802.1Q tag (0 or 4), ARP packet (28) or IPv6 packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourFrame {
    /// The port that it leaves on or came in on.
    pub port: PortIndex,
    bytes: [u8; LONGEST],
    length: u8,
    /// Tag control information that the device took out, or [`NO_VLAN`].
    vlan: u16,
}

/// What a received ARP frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceivedArp {
    /// Ethernet destination.
    pub destination: MacAddress,
    /// VLAN identifier, 0 for none or a priority tag.
    pub vlan: u16,
    /// The packet.
    pub packet: ArpPacket,
}

/// What a received frame of Neighbor Discovery says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceivedDiscovery {
    /// Ethernet destination.
    pub destination: MacAddress,
    /// Ethernet source.
    pub source: MacAddress,
    /// VLAN identifier, 0 for none or a priority tag.
    pub vlan: u16,
    /// The packet.
    pub packet: NeighbourPacket,
}

impl NeighbourFrame {
    /// An ARP frame to send from `source` to `destination`, tagged with `vlan` if there is one.
    #[must_use]
    pub fn new(
        port: PortIndex,
        vlan: Option<u16>,
        source: MacAddress,
        destination: MacAddress,
        packet: &ArpPacket,
    ) -> Self {
        Self::with(port, vlan, source, destination, ETHERTYPE_ARP, &packet.to_bytes())
    }

    /// A frame of Neighbor Discovery to send from `source` to `destination`, tagged with `vlan` if there is one.
    #[must_use]
    pub fn discovery(
        port: PortIndex,
        vlan: Option<u16>,
        source: MacAddress,
        destination: MacAddress,
        packet: &NeighbourPacket,
    ) -> Self {
        let mut bytes = [0; nd::LONGEST];
        let length = packet.write(&mut bytes);
        Self::with(port, vlan, source, destination, ETHERTYPE_IPV6, &bytes[..length])
    }

    fn with(
        port: PortIndex,
        vlan: Option<u16>,
        source: MacAddress,
        destination: MacAddress,
        ethertype: u16,
        packet: &[u8],
    ) -> Self {
        let mut bytes = [0; LONGEST];
        bytes[..6].copy_from_slice(&destination.0);
        bytes[6..12].copy_from_slice(&source.0);
        let mut at = 12;
        if let Some(vlan) = vlan {
            bytes[12..14].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
            bytes[14..16].copy_from_slice(&vlan.to_be_bytes());
            at = 16;
        }
        bytes[at..at + 2].copy_from_slice(&ethertype.to_be_bytes());
        bytes[at + 2..at + 2 + packet.len()].copy_from_slice(packet);
        Self { port, bytes, length: (at + 2 + packet.len()) as u8, vlan: NO_VLAN }
    }

    /// Keeps the first [`LONGEST`] bytes of a received frame; `vlan` is the tag that the device took out.
    #[must_use]
    pub fn received(port: PortIndex, vlan: u16, frame: &[u8]) -> Self {
        let mut bytes = [0; LONGEST];
        let length = frame.len().min(LONGEST);
        bytes[..length].copy_from_slice(&frame[..length]);
        Self { port, bytes, length: length as u8, vlan }
    }

    /// The frame's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Reads the frame; `None` if it is not a whole ARP frame for IPv4 over Ethernet.
    #[must_use]
    pub fn parse(&self) -> Option<ReceivedArp> {
        let (ethertype, vlan, packet) = self.layers()?;
        let packet = (ethertype == ETHERTYPE_ARP).then(|| ArpPacket::parse(packet)).flatten()?;
        Some(ReceivedArp { destination: MacAddress(*self.bytes().first_chunk()?), vlan, packet })
    }

    /// Reads the frame; `None` if it is not a whole and valid neighbor solicitation or advertisement.
    #[must_use]
    pub fn parse_discovery(&self) -> Option<ReceivedDiscovery> {
        let (ethertype, vlan, packet) = self.layers()?;
        let packet = (ethertype == ETHERTYPE_IPV6).then(|| NeighbourPacket::parse(packet)).flatten()?;
        let (destination, source) = self.bytes().first_chunk::<12>()?.split_at(6);
        Some(ReceivedDiscovery {
            destination: MacAddress(*destination.first_chunk()?),
            source: MacAddress(*source.first_chunk()?),
            vlan,
            packet,
        })
    }

    /// EtherType, VLAN identifier and what follows.
    fn layers(&self) -> Option<(u16, u16, &[u8])> {
        let bytes = self.bytes();
        let be16 = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let (mut ethertype, mut at) = (be16(12)?, 14);
        let mut vlan = if self.vlan == NO_VLAN { 0 } else { self.vlan & 0x0fff };
        if ethertype == ETHERTYPE_VLAN && self.vlan == NO_VLAN {
            vlan = be16(14)? & 0x0fff;
            ethertype = be16(16)?;
            at = 18;
        }
        Some((ethertype, vlan, bytes.get(at..)?))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use postern_wire::arp::Operation;

    use super::*;

    #[test]
    fn a_tagged_frame_is_read_back_with_its_vlan_whether_the_tag_is_inside_or_beside() {
        let packet = ArpPacket {
            operation: Operation::Request,
            sender_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            sender: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: MacAddress::ZERO,
            target: Ipv4Addr::new(10, 0, 0, 2),
        };
        let tagged = NeighbourFrame::new(PortIndex(3), Some(7), packet.sender_mac, MacAddress::BROADCAST, &packet);
        assert_eq!(tagged.bytes().len(), 46);
        let read = NeighbourFrame::received(PortIndex(3), NO_VLAN, tagged.bytes()).parse().unwrap();
        assert_eq!((read.vlan, read.packet, read.destination), (7, packet, MacAddress::BROADCAST));

        let plain = NeighbourFrame::new(PortIndex(3), None, packet.sender_mac, MacAddress::BROADCAST, &packet);
        assert_eq!(plain.bytes().len(), 42);
        let beside = NeighbourFrame::received(PortIndex(3), 0x2007, plain.bytes()).parse().unwrap();
        assert_eq!((beside.vlan, beside.packet), (7, packet));
        for length in 0..42 {
            assert_eq!(NeighbourFrame::received(PortIndex(3), NO_VLAN, &plain.bytes()[..length]).parse(), None);
        }
    }
}

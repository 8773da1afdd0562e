//! Where things are in a frame that arrives, and how it is turned round: only what test frames have (Ethernet without tag, no
//! IP options, no extension headers).

use postern_wire::checksum::{fold, sum};
use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP, PROTOCOL_UDP};

/// Where the parts of a UDP datagram or TCP segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Whether it is TCP.
    pub(crate) tcp: bool,
    addresses: usize,
    address: usize,
    transport: usize,
    /// Where the payload begins and ends.
    pub(crate) payload: usize,
    pub(crate) end: usize,
}

impl Segment {
    /// Looks at a frame; `None` if it is something else.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let (addresses, address, transport, protocol, end) = match word(12)? {
            ETHERTYPE_IPV4 if *bytes.get(14)? == 0x45 => (26, 4, 34, *bytes.get(23)?, 14 + usize::from(word(16)?)),
            ETHERTYPE_IPV6 => (22, 16, 54, *bytes.get(20)?, 54 + usize::from(word(18)?)),
            _ => return None,
        };
        let (tcp, header) = match protocol {
            PROTOCOL_UDP => (false, 8),
            PROTOCOL_TCP => (true, usize::from(*bytes.get(transport + 12)? >> 4) * 4),
            _ => return None,
        };
        let payload = transport + header;
        (header >= 8 && payload <= end && end <= bytes.len()).then_some(Self {
            tcp,
            addresses,
            address,
            transport,
            payload,
            end,
        })
    }

    /// The destination port.
    pub(crate) fn destination_port(&self, bytes: &[u8]) -> u16 {
        u16::from_be_bytes([bytes[self.transport + 2], bytes[self.transport + 3]])
    }

    /// The source port.
    #[cfg(test)]
    pub(crate) fn source_port(&self, bytes: &[u8]) -> u16 {
        u16::from_be_bytes([bytes[self.transport], bytes[self.transport + 1]])
    }

    /// TCP's flags.
    pub(crate) fn flags(&self, bytes: &[u8]) -> u8 {
        bytes[self.transport + 13]
    }

    /// TCP's acknowledgement number.
    pub(crate) fn acknowledged(&self, bytes: &[u8]) -> u32 {
        self.number(bytes, 8)
    }

    fn number(&self, bytes: &[u8], at: usize) -> u32 {
        let at = self.transport + at;
        u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }

    /// Exchanges both MAC addresses, IP addresses and ports; checksums stay right.
    pub(crate) fn turn_round(&self, bytes: &mut [u8]) {
        let mut exchange = |one: usize, other: usize, length: usize| {
            for at in 0..length {
                bytes.swap(one + at, other + at);
            }
        };
        exchange(0, 6, 6);
        exchange(self.addresses, self.addresses + self.address, self.address);
        exchange(self.transport, self.transport + 2, 2);
    }

    /// Makes the TCP answer to a segment of one sequence number (a SYN, a FIN) out of it: turned round, with these flags and
    /// this sequence number (`None`: what was acknowledged), everything acknowledged.
    pub(crate) fn answer(&self, bytes: &mut [u8], flags: u8, sequence: Option<u32>) {
        let (came, acknowledged) = (self.number(bytes, 4), self.number(bytes, 8));
        self.turn_round(bytes);
        let at = self.transport;
        bytes[at + 4..at + 8].copy_from_slice(&sequence.unwrap_or(acknowledged).to_be_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&came.wrapping_add(1).to_be_bytes());
        bytes[at + 13] = flags;
        self.complete_checksum(bytes);
    }

    fn complete_checksum(&self, bytes: &mut [u8]) {
        let field = self.transport + if self.tcp { 16 } else { 6 };
        bytes[field..field + 2].fill(0);
        let protocol = if self.tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let length = (self.end - self.transport) as u16;
        let pseudo = sum(&bytes[self.addresses..self.addresses + 2 * self.address])
            + sum(&[0, protocol])
            + sum(&length.to_be_bytes());
        let check = !fold(pseudo + sum(&bytes[self.transport..self.end]));
        bytes[field..field + 2].copy_from_slice(&check.to_le_bytes());
    }

    /// The source address.
    #[cfg(test)]
    pub(crate) fn source(&self, bytes: &[u8]) -> std::net::IpAddr {
        let octets = &bytes[self.addresses..self.addresses + self.address];
        octets.first_chunk::<16>().map_or_else(
            || std::net::IpAddr::from(*octets.first_chunk::<4>().expect("an IPv4 address has four octets")),
            |octets| std::net::IpAddr::from(*octets),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use postern_wire::MacAddress;

    use super::*;
    use crate::packet::{Carried, frame};

    #[test]
    fn the_answer_to_a_syn_is_a_syn_ack_with_a_right_checksum() {
        for [client, server] in [["10.1.2.3:999", "10.9.8.7:53"], ["[2001:db8::1]:999", "[2001:db8::2]:53"]] {
            let [client, server]: [SocketAddr; 2] = [client, server].map(|text| text.parse().unwrap());
            let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
            let syn = Carried::Tcp { flags: Carried::SYN, sequence: 7 };
            let mut bytes = frame(macs, client, server, syn, 60);
            let segment = Segment::of(&bytes).unwrap();
            assert!(segment.tcp && segment.flags(&bytes) == Carried::SYN);
            segment.answer(&mut bytes, Carried::SYN | Carried::ACK, Some(1));
            let answer = Segment::of(&bytes).unwrap();
            assert_eq!((answer.source(&bytes), answer.source_port(&bytes)), (server.ip(), 53));
            assert_eq!((answer.destination_port(&bytes), answer.acknowledged(&bytes)), (999, 8));
            assert_eq!(bytes[..12], [4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2]);
            let mut again = bytes.clone();
            answer.complete_checksum(&mut again);
            assert_eq!(again, bytes);
            // The client's acknowledgement follows on.
            answer.answer(&mut bytes, Carried::ACK, None);
            assert_eq!((segment.number(&bytes, 4), segment.acknowledged(&bytes)), (8, 2));
        }
    }

    #[test]
    fn what_is_no_datagram_or_segment_or_is_cut_off_is_left_alone() {
        let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
        let [client, server]: [SocketAddr; 2] = ["10.1.2.3:999", "10.9.8.7:53"].map(|text| text.parse().unwrap());
        let bytes = frame(macs, client, server, Carried::Udp, 60);
        assert!(Segment::of(&bytes).is_some());
        for length in 0..bytes.len() {
            let _ = Segment::of(&bytes[..length]);
        }
        assert_eq!(Segment::of(&bytes[..50]), None);
        let mut arp = bytes.clone();
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(Segment::of(&arp), None);
    }
}

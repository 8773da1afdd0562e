//! Frames for generators and fixtures: Ethernet, IPv4 or IPv6, and TCP with timestamps or UDP, with correct checksums.

use std::net::{IpAddr, SocketAddr};

use postern_wire::MacAddress;
use postern_wire::parse::{PROTOCOL_TCP, PROTOCOL_UDP};

/// Bytes of the Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of the IPv4 header.
const IPV4: usize = 20;
/// Bytes of the IPv6 header.
const IPV6: usize = 40;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// A TCP segment with these flags (RFC 9293 §3.1) and sequence number. SYNs have an MSS option, all have timestamps
    /// (RFC 7323).
    Tcp {
        /// CWR…FIN.
        flags: u8,
        /// Sequence number.
        sequence: u32,
    },
    /// A UDP datagram.
    Udp,
}

impl Carried {
    /// FIN, SYN, RST, PSH and ACK.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;

    /// The transport header; the checksum is zero, and so is UDP's length.
    fn header(self, source: u16, destination: u16) -> Vec<u8> {
        let mut header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let Self::Tcp { flags, sequence } = self else {
            header.extend([0; 4]);
            return header;
        };
        let mut options = Vec::new();
        if flags & Self::SYN != 0 {
            options.extend([2, 4, 0x05, 0xb4]); // MSS 1460.
        }
        options.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0]); // Two NOPs, timestamps.
        let words = (20 + options.len()) / 4;
        header.extend(sequence.to_be_bytes());
        header.extend(if flags & Self::ACK != 0 { 1u32 } else { 0 }.to_be_bytes());
        header.extend([(words as u8) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        header.extend(options);
        header
    }
}

/// A frame of `length` bytes without frame check sequence (longer if the headers need more), payload zero, between two ends of
/// the same family.
#[must_use]
pub fn frame(
    macs: (MacAddress, MacAddress),
    source: impl Into<SocketAddr>,
    destination: impl Into<SocketAddr>,
    carried: Carried,
    length: usize,
) -> Vec<u8> {
    let (source, destination) = (source.into(), destination.into());
    let network = if source.is_ipv6() { IPV6 } else { IPV4 };
    let mut transport = carried.header(source.port(), destination.port());
    let headers = ETHERNET + network + transport.len();
    transport.resize(transport.len() + length.saturating_sub(headers), 0);
    let (protocol, checksum_at) = match carried {
        Carried::Tcp { .. } => (PROTOCOL_TCP, 16),
        Carried::Udp => {
            let datagram = transport.len() as u16;
            transport[4..6].copy_from_slice(&datagram.to_be_bytes());
            (PROTOCOL_UDP, 6)
        }
    };
    let pseudo = address_sum(source.ip()) + address_sum(destination.ip()) + u32::from(protocol);
    let sum = checksum(&transport, pseudo + transport.len() as u32);
    transport[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());

    let ip = header(source.ip(), destination.ip(), protocol, transport.len() as u16);
    let ethertype = if source.is_ipv6() { [0x86, 0xdd] } else { [0x08, 0x00] };
    let (to, from) = macs;
    [to.0.as_slice(), &from.0, &ethertype, &ip, &transport].concat()
}

/// An IP header in front of `length` bytes.
fn header(source: IpAddr, destination: IpAddr, protocol: u8, length: u16) -> Vec<u8> {
    let addresses = [octets(source), octets(destination)].concat();
    if source.is_ipv6() {
        let [high, low] = length.to_be_bytes();
        return [&[0x60, 0, 0, 0, high, low, protocol, 64][..], &addresses].concat();
    }
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    ip[2..4].copy_from_slice(&(IPV4 as u16 + length).to_be_bytes());
    ip.extend(addresses);
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_sum(address: IpAddr) -> u32 {
    octets(address).as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum()
}

/// The Internet checksum (RFC 1071) of some bytes, on top of `start`.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use postern_wire::{Frame, PacketKind, parse};

    #[test]
    fn frames_pass_the_parser_and_have_correct_transport_checksums() {
        let (a, b) =
            (SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, 3), 999), SocketAddrV4::new(Ipv4Addr::new(10, 9, 8, 7), 53));
        let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
        let syn = Carried::Tcp { flags: Carried::SYN, sequence: 7 };
        for (carried, kind) in [(syn, PacketKind::Tcp), (Carried::Udp, PacketKind::Udp)] {
            let mut bytes = frame(macs, a, b, carried, 75);
            let length = bytes.len();
            assert!(length >= 75);
            let pseudo = address_sum((*a.ip()).into()) + address_sum((*b.ip()).into()) + u32::from(bytes[23]);
            assert_eq!(checksum(&bytes[34..], pseudo + (length - 34) as u32), 0);
            let parsed = parse(&Frame::new(&mut bytes, 0, length).unwrap()).unwrap();
            assert_eq!((parsed.kind, parsed.key.source_socket(), parsed.key.destination_socket()), (kind, a, b));
            let [a, b]: [SocketAddr; 2] = ["[2001:db8::1]:999", "[2001:db8::2]:53"].map(|text| text.parse().unwrap());
            let mut bytes = frame(macs, a, b, carried, 96);
            let pseudo = address_sum(a.ip()) + address_sum(b.ip()) + u32::from(bytes[20]);
            assert_eq!(checksum(&bytes[54..], pseudo + 96 - 54), 0);
            let parsed = parse(&Frame::new(&mut bytes, 0, 96).unwrap()).unwrap();
            assert_eq!((parsed.kind, parsed.key.is_wide(), parsed.end), (kind, true, 96));
        }
    }
}

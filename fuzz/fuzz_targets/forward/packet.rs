//! Packets that are right but for what the input changes.

use postern_wire::Offload;
use postern_wire::checksum::checksum;

/// The address of both endpoints, the SNAT address, and a target.
pub(crate) const ENDPOINT: [u8; 4] = [10, 0, 0, 100];
pub(crate) const SNAT: [u8; 4] = [10, 9, 0, 200];
pub(crate) const TARGET: [u8; 4] = [10, 9, 0, 11];

/// The same of IPv6.
const ENDPOINT6: [u8; 16] = with_last([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0);
const CLIENT6: [u8; 16] = with_last([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 2);
const SNAT6: [u8; 16] = with_last([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0], 0);
const TARGET6: [u8; 16] = with_last([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0x11);

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const fn with_last(mut address: [u8; 16], last: u8) -> [u8; 16] {
    address[15] = last;
    address
}

/// The bytes of an input, one after the other; zeros behind its end.
pub(crate) struct Input<'i> {
    bytes: &'i [u8],
}

impl<'i> Input<'i> {
    pub(crate) const fn new(bytes: &'i [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        *first
    }

    pub(crate) fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub(crate) fn take(&mut self, length: usize) -> &'i [u8] {
        let (taken, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }
}

/// MAC address of a port.
pub(crate) const fn port_mac(port: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0xaa, port as u8]
}

/// MAC address of whoever has an address.
pub(crate) const fn station(address: [u8; 4]) -> [u8; 6] {
    [2, 1, address[0], address[1], address[2], address[3]]
}

/// A frame from one of a few clients to an endpoint, or from the provider's side to an SNAT port.
pub(crate) fn arriving(input: &mut Input<'_>) -> (u16, Vec<u8>) {
    let shape = input.byte();
    let port = u16::from(shape & 3) % 3;
    let number = input.byte();
    let payload = vec![0x5a; usize::from(input.byte()) * 8];
    let (source, destination) = if port == 2 { (TARGET, SNAT) } else { ([10, 0, 0, 2 + (number >> 6)], ENDPOINT) };
    let ports = if port == 2 { (80, 1024 + u16::from(number & 63)) } else { (4000 + u16::from(number & 63), 80) };
    let transport = match shape >> 2 & 7 {
        0..=2 => tcp(ports, [0x02, 0x10, 0x11, 0x04, 0x12, 0x14, 0x18, 0x00][usize::from(shape >> 5)], &payload),
        3 | 4 => udp(ports, &payload),
        5 => icmp([if port == 2 { 0 } else { 8 }, 0, 0, 0, 0, 7, 0, 1], &payload),
        6 => {
            // An error about a packet that the gateway sent from here.
            let quoted = ipv4(destination, source, TCP, 64, &tcp((ports.1, ports.0), 0x10, &payload));
            let quoted = &quoted[..quoted.len().min(28 + payload.len() / 2)];
            icmp([[3, 11, 12, 4][usize::from(shape >> 6)], shape >> 5 & 1, 0, 0, 0, 0, 2, 0x40], quoted)
        }
        _ => vec![0; 8],
    };
    let protocol = match shape >> 2 & 7 {
        0..=2 => TCP,
        3 | 4 => UDP,
        5 | 6 => ICMP,
        _ => 132,
    };
    (port, ethernet(port, source, &ipv4(source, destination, protocol, 64, &transport)))
}

/// The fragments of a frame's IPv4 packet, in an order, with omissions, copies and overlaps of the input's choice.
pub(crate) fn fragments(input: &mut Input<'_>, frame: &[u8]) -> Vec<Vec<u8>> {
    let l3 = if frame.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let Some((header, payload)) = frame.split_at_checked(l3 + 20).filter(|_| frame[l3] == 0x45) else {
        return vec![frame.to_vec()];
    };
    let how = input.byte();
    let unit = 8 * (1 + usize::from(how & 15));
    let identification = how >> 4 & 3;
    let mut starts: Vec<usize> = (0..payload.len()).step_by(unit).take(8).collect();
    if how & 0x40 != 0 {
        starts.reverse();
    }
    let change = if how & 0x80 != 0 { input.byte() } else { 0 };
    let at = usize::from(change >> 3) % starts.len().max(1);
    match change & 3 {
        1 => drop(starts.get(at).is_some().then(|| starts.remove(at))),
        2 => starts.extend(starts.get(at).copied()),
        3 => starts.extend(starts.get(at).map(|start| start + 8)),
        _ => {}
    }
    let cut = |start: usize| {
        let end = payload.len().min(start + unit);
        let part = payload.get(start..end).unwrap_or(&[]);
        let mut bytes = [header, part].concat();
        let ends = end == payload.len() || change & 4 != 0;
        let field = (start / 8) as u16 | if ends { 0 } else { 0x2000 };
        bytes[l3 + 4..l3 + 6].copy_from_slice(&[0, identification]);
        bytes[l3 + 6..l3 + 8].copy_from_slice(&field.to_be_bytes());
        mend(&mut bytes);
        bytes
    };
    starts.into_iter().map(cut).collect()
}

/// The same of IPv6. From the provider's side also packets to the IPv4 SNAT address belong to IPv6 clients.
pub(crate) fn arriving6(input: &mut Input<'_>) -> (u16, Vec<u8>) {
    let shape = input.byte();
    let port = u16::from(shape & 3) % 3;
    let number = input.byte();
    let payload = vec![0x5a; usize::from(input.byte()) * 8];
    let (source, destination) =
        if port == 2 { (TARGET6, SNAT6) } else { (with_last(CLIENT6, 2 + (number >> 6)), ENDPOINT6) };
    let ports = if port == 2 { (80, 1024 + u16::from(number & 63)) } else { (4000 + u16::from(number & 63), 80) };
    let (protocol, transport) = match shape >> 2 & 7 {
        0..=2 => (TCP, tcp(ports, [0x02, 0x10, 0x11, 0x04, 0x12, 0x14, 0x18, 0x00][usize::from(shape >> 5)], &payload)),
        3 | 4 => (UDP, udp(ports, &payload)),
        5 => (ICMPV6, [&[[128, 135, 136, 133][usize::from(shape >> 6)], 0, 0, 0, 0, 7, 0, 1][..], &payload].concat()),
        6 => {
            // An error about a packet that the gateway sent from here.
            let quoted = ipv6(destination, source, TCP, &tcp((ports.1, ports.0), 0x10, &payload));
            let quoted = &quoted[..quoted.len().min(48 + payload.len() / 2)];
            let kind = 1 + (shape >> 6);
            (ICMPV6, [&[kind, shape >> 5 & 1, 0, 0, 0, 0, 5, 0x40][..], quoted].concat())
        }
        _ => {
            let first = [0u8, 43, 44, 60][usize::from(shape >> 6)];
            let extension = [UDP, 0, if first == 43 { 2 } else { 0 }, shape >> 5 & 1, 0, 0, 0, 7];
            (first, [&extension[..], &udp(ports, &payload)].concat())
        }
    };
    let mut bytes = ethernet(port, [source[12], source[13], source[14], source[15]], &[]);
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&[0x86, 0xdd]);
    bytes.extend(ipv6(source, destination, protocol, &transport));
    mend(&mut bytes);
    (port, bytes)
}

/// The answer to a translated frame, as whoever got it would send it, with other TCP flags.
pub(crate) fn answer(frame: &[u8], flags: u8) -> Option<Vec<u8>> {
    let mut bytes = frame.to_vec();
    let l3 = if bytes.get(12..14)? == [0x81, 0] { 18 } else { 14 };
    if bytes.len() > l3 + 44 && bytes[l3] >> 4 == 6 {
        for at in 0..6 {
            bytes.swap(at, at + 6);
        }
        for at in l3 + 8..l3 + 24 {
            bytes.swap(at, at + 16);
        }
        bytes.swap(l3 + 40, l3 + 42);
        bytes.swap(l3 + 41, l3 + 43);
        if bytes[l3 + 6] == TCP && bytes.len() > l3 + 53 {
            bytes[l3 + 53] = flags;
        }
        return Some(bytes);
    }
    if bytes.len() < l3 + 24 || bytes[l3] != 0x45 {
        return None;
    }
    for at in 0..6 {
        bytes.swap(at, at + 6);
    }
    for at in l3 + 12..l3 + 16 {
        bytes.swap(at, at + 4);
    }
    bytes.swap(l3 + 20, l3 + 22);
    bytes.swap(l3 + 21, l3 + 23);
    if bytes[l3 + 9] == TCP && bytes.len() > l3 + 33 {
        bytes[l3 + 33] = flags;
    }
    Some(bytes)
}

/// Changes a few bytes; then makes lengths and the IPv4 checksum right again, if the input says so.
pub(crate) fn damage(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let how = input.byte();
    for _ in 0..how & 3 {
        let (at, value) = (usize::from(input.byte()), input.byte());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    if how & 4 != 0 {
        bytes.truncate(bytes.len().saturating_sub(usize::from(input.byte())));
    }
    if how & 8 != 0 {
        bytes.extend_from_slice(&[0; 7]);
    }
    if how & 16 == 0 {
        mend(bytes);
    }
}

/// Makes an IPv4 header's total length and checksum right, where there is one; of IPv6 the payload length and the checksum of
/// ICMPv6.
fn mend(bytes: &mut [u8]) {
    let l3 = if bytes.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let Some(ip) = bytes.get_mut(l3..).filter(|ip| ip.len() >= 20) else { return };
    if ip[0] >> 4 == 6 && ip.len() >= 48 {
        let length = ip.len() as u16 - 40;
        ip[4..6].copy_from_slice(&length.to_be_bytes());
        if let (ICMPV6, Some(addresses)) = (ip[6], postern_wire::ipv6::addresses(ip, 0).copied()) {
            postern_wire::icmpv6::complete_checksum(&mut ip[40..], &addresses);
        }
        return;
    }
    let header = usize::from(ip[0] & 15) * 4;
    if header < 20 || header > ip.len() {
        return;
    }
    let length = ip.len() as u16;
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip[10..12].fill(0);
    let sum = checksum(&ip[..header], 0);
    ip[10..12].copy_from_slice(&sum.to_le_bytes());
}

/// Offload state that may or may not fit the frame.
pub(crate) fn offload(input: &mut Input<'_>) -> Offload {
    let shape = input.byte();
    Offload {
        flags: shape & 3,
        segmentation_type: [0, 1, 4, 5, 0x81, 3, 1, 5][usize::from(shape >> 2 & 7)],
        header_length: if shape & 0x20 != 0 { input.word() } else { 54 },
        segment_size: if shape & 0x40 != 0 { input.word() } else { 500 },
        checksum_start: if shape & 0x80 != 0 { u16::from(input.byte()) } else { 34 },
        checksum_offset: if shape & 4 != 0 { 16 } else { 6 },
    }
}

fn tcp((source, destination): (u16, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    let options: &[u8] = if flags & 2 != 0 { &[2, 4, 5, 0xb4] } else { &[] };
    bytes.extend([(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(options);
    bytes.extend(payload);
    bytes
}

fn udp((source, destination): (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut bytes = [source, destination, length, 0].map(u16::to_be_bytes).concat();
    bytes.extend(payload);
    bytes
}

fn icmp(header: [u8; 8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&header, payload].concat();
    let sum = checksum(&bytes, 0);
    bytes[2..4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, ttl: u8, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, ttl, protocol, 0, 0];
    bytes.extend(source);
    bytes.extend(destination);
    let length = (20 + transport.len()) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum(&bytes, 0);
    bytes[10..12].copy_from_slice(&sum.to_le_bytes());
    bytes.extend(transport);
    bytes
}

fn ipv6(source: [u8; 16], destination: [u8; 16], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let [high, low] = (transport.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, protocol, 64];
    let mut transport = transport.to_vec();
    // A datagram must have some checksum, right or wrong.
    if protocol == UDP && transport[6..8] == [0, 0] {
        transport[7] = 1;
    }
    [&header[..], &source, &destination, &transport].concat()
}

fn ethernet(port: u16, source: [u8; 4], packet: &[u8]) -> Vec<u8> {
    let tag: &[u8] = if port == 1 { &[0x81, 0, 0, 5] } else { &[] };
    [&port_mac(port), &station(source), tag, &[8, 0], packet].concat()
}

//! Applying a plan to an IPv6 packet: addresses, ports, hop limit and the transport checksum, by incremental update.

use postern_wire::checksum::{Delta, sum};
use postern_wire::ipv6::{self, AddressPair};
use postern_wire::plain6::PLAIN6;
use postern_wire::{Frame, Offload, PacketKind, Parsed, tcp};

/// Offset of the checksum field in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// How to rewrite one direction of a flow between IPv6 ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WidePlan {
    /// New source and destination address.
    pub addresses: AddressPair,
    /// New source and destination port: the first four bytes of the transport header, little-endian.
    pub ports: u32,
    /// Change of the sum over the addresses.
    pub address_delta: Delta,
    /// Change of the sum over addresses and ports.
    pub full_delta: Delta,
}

impl WidePlan {
    /// The plan that turns packets with addresses and ports `from` into packets with those of `to`.
    #[must_use]
    pub fn between(from: (&AddressPair, u32), to: (&AddressPair, u32)) -> Self {
        let (old, new) = (sum(from.0), sum(to.0));
        Self {
            addresses: *to.0,
            ports: to.1,
            address_delta: Delta::between(old, new),
            full_delta: Delta::between(old + u64::from(from.1), new + u64::from(to.1)),
        }
    }
}

/// Rewrites a TCP or UDP packet by its plan and takes one from the hop limit, which is at least 2. Traffic class, flow label,
/// extension headers and payload stay.
///
/// A partial checksum (the device has still to add the segment's own sum) holds the plain pseudo-header sum: it takes the
/// change of the addresses only. A UDP checksum that comes out as zero is written as all ones (RFC 8200 §8.1).
pub fn rewrite6(frame: &mut Frame<'_>, parsed: &Parsed, plan: &WidePlan) {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let partial = frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4;
    let bytes = frame.bytes_mut();
    // `parse` has checked that both headers lie within the frame.
    let Some(ip) = bytes.get_mut(l3..).and_then(<[u8]>::first_chunk_mut::<{ ipv6::HEADER }>) else { return };
    ip[ipv6::HOP_LIMIT] = ip[ipv6::HOP_LIMIT].wrapping_sub(1);
    ip[ipv6::ADDRESSES..].copy_from_slice(&plan.addresses);
    // A fragment that is not the first has none of it.
    if parsed.kind != PacketKind::Fragment
        && let Some(transport) = bytes.get_mut(l4..)
    {
        rewrite_transport(
            transport,
            parsed.kind == PacketKind::Udp,
            partial,
            plan.ports,
            [plan.address_delta, plan.full_delta],
        );
    }
}

/// Writes the ports and brings the checksum of a TCP or UDP header in order, whose packet's addresses have changed. `deltas`
/// are the changes of the sum over the addresses, and over addresses and ports.
pub(crate) fn rewrite_transport(
    transport: &mut [u8],
    udp: bool,
    partial: bool,
    ports: u32,
    [address_delta, full_delta]: [Delta; 2],
) {
    let Some(old_ports) = transport.first_chunk_mut::<4>() else { return };
    *old_ports = ports.to_le_bytes();
    let at = if udp { UDP_CHECKSUM } else { tcp::CHECKSUM };
    let Some(field) = transport.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) else { return };
    let old = u16::from_le_bytes(*field);
    let new = match (partial, udp) {
        (true, _) => address_delta.apply_to_sum(old),
        (false, true) => full_delta.apply_to_udp(old),
        (false, false) => full_delta.apply(old),
    };
    *field = new.to_le_bytes();
}

/// [`rewrite6`] for a packet that [`parse_plain6`](postern_wire::plain6::parse_plain6) has taken: all offsets are fixed. `tcp`
/// says which of the two protocols it is, `source` and `destination` are the new addresses, `deltas` the changes of the sum
/// over the addresses, and over addresses and ports.
#[inline(always)]
pub fn rewrite_plain6(
    head: &mut [u8; PLAIN6],
    tcp: bool,
    [source, destination]: [&[u8; 16]; 2],
    ports: u32,
    [address_delta, full_delta]: [Delta; 2],
    offload: &Offload,
) {
    head[21] = head[21].wrapping_sub(1);
    head[22..38].copy_from_slice(source);
    head[38..54].copy_from_slice(destination);
    head[54..58].copy_from_slice(&ports.to_le_bytes());
    let at = if tcp { 70 } else { 60 };
    let field = u16::from_le_bytes([head[at], head[at + 1]]);
    let field = if offload.is_partial() && offload.checksum_start == 54 {
        address_delta.apply_to_sum(field)
    } else if tcp {
        full_delta.apply(field)
    } else {
        full_delta.apply_to_udp(field)
    };
    head[at..at + 2].copy_from_slice(&field.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use etherparse::PacketBuilder;
    use postern_wire::parse;
    use postern_wire::plain6::{parse_plain6, plain6};
    use proptest::prelude::*;

    use super::*;

    type Ends = (SocketAddrV6, SocketAddrV6);

    fn packet(tcp: bool, ends: Ends, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = etherparse::Ipv6Header { hop_limit, traffic_class: 0xb9, ..Default::default() };
        header.flow_label = 0x5_4321.try_into().unwrap();
        (header.source, header.destination) = (ends.0.ip().octets(), ends.1.ip().octets());
        let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ip(etherparse::IpHeaders::Ipv6(header, Default::default()));
        let mut bytes = Vec::new();
        if tcp {
            ip.tcp(ends.0.port(), ends.1.port(), 7, 1000).ack(9).write(&mut bytes, payload).unwrap();
        } else {
            ip.udp(ends.0.port(), ends.1.port()).write(&mut bytes, payload).unwrap();
        }
        bytes
    }

    fn plan(from: Ends, to: Ends) -> WidePlan {
        let pair = |ends: Ends| ipv6::pair(*ends.0.ip(), *ends.1.ip());
        let ports = |ends: Ends| u32::from(ends.0.port().swap_bytes()) | u32::from(ends.1.port().swap_bytes()) << 16;
        WidePlan::between((&pair(from), ports(from)), (&pair(to), ports(to)))
    }

    fn socket() -> impl Strategy<Value = SocketAddrV6> {
        (any::<u128>(), any::<u16>()).prop_map(|(ip, port)| SocketAddrV6::new(Ipv6Addr::from_bits(ip), port, 0, 0))
    }

    fn rewritten_plain(bytes: &[u8], plan: &WidePlan, offload: Offload) -> Option<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        let length = bytes.len();
        let head = bytes.first_chunk_mut::<PLAIN6>()?;
        let tcp = plain6(head, parse_plain6(head, length)?).kind == PacketKind::Tcp;
        let (source, destination) = ipv6::octets(&plan.addresses);
        rewrite_plain6(head, tcp, [source, destination], plan.ports, [plan.address_delta, plan.full_delta], &offload);
        Some(bytes)
    }

    proptest! {
        #[test]
        fn a_rewritten_ipv6_packet_is_the_one_that_the_new_ends_would_have_sent(
            tcp: bool, old in (socket(), socket()), new in (socket(), socket()),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = packet(tcp, old, 64, &payload);
            let wanted = packet(tcp, new, 63, &payload);
            let plan = plan(old, new);
            let plain = rewritten_plain(&bytes, &plan, Offload::NONE);
            let length = bytes.len();
            let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
            let parsed = parse(&frame).unwrap();
            rewrite6(&mut frame, &parsed, &plan);
            prop_assert_eq!(frame.bytes(), &wanted[..]);
            prop_assert_eq!(plain.is_some(), length >= PLAIN6);
            prop_assert!(plain.is_none_or(|plain| plain == wanted));
        }

        #[test]
        fn a_partial_checksum_of_ipv6_stays_a_pseudo_header_sum(tcp: bool, old in (socket(), socket()), new in (socket(), socket())) {
            let mut bytes = packet(tcp, old, 64, b"seven and five more");
            let (length, field) = (bytes.len(), if tcp { 70 } else { 60 });
            let pseudo = |ends: Ends| {
                let pair = ipv6::pair(*ends.0.ip(), *ends.1.ip());
                let protocol = if tcp { 6 } else { 17 };
                postern_wire::checksum::fold(postern_wire::checksum::pseudo_header_v6(&pair, protocol, (length - 54) as u16))
            };
            bytes[field..field + 2].copy_from_slice(&pseudo(old).to_le_bytes());
            let offload = Offload {
                flags: Offload::NEEDS_CHECKSUM, checksum_start: 54, checksum_offset: (field - 54) as u16, ..Offload::NONE
            };
            let plan = plan(old, new);
            let plain = rewritten_plain(&bytes, &plan, offload);
            let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
            frame.offload = offload;
            let parsed = parse(&frame).unwrap();
            rewrite6(&mut frame, &parsed, &plan);
            let found = u16::from_le_bytes([frame.bytes()[field], frame.bytes()[field + 1]]);
            prop_assert_eq!(found % 0xffff, pseudo(new) % 0xffff);
            prop_assert!(plain.is_none_or(|plain| plain == frame.bytes()));
        }
    }
}

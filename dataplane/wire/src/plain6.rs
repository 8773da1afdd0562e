//! The common case of [`parse()`](crate::parse()) for IPv6: an untagged frame with an IPv6 header, no extension headers, and a
//! whole TCP segment or UDP datagram, in at least [`PLAIN6`] bytes. All offsets are fixed.

use crate::key::{AttachmentIndex, FlowKey};
use crate::parse::{PROTOCOL_TCP, PROTOCOL_UDP, PacketKind, Parsed};

/// Bytes of a plain packet's headers: Ethernet, IPv6 without extension headers, TCP without options.
pub const PLAIN6: usize = 74;
/// Offset of the IPv6 header.
const L3: usize = 14;
/// Offset of the transport header.
const L4: usize = 54;

/// Checks a frame of `length` bytes that begins with `head` and is no super-frame. Gives its key, without attachment and
/// address words; `None` for everything that is not plain or not right: [`parse()`](crate::parse()) tells which.
#[inline(always)]
#[must_use]
pub fn parse_plain6(head: &[u8; PLAIN6], length: usize) -> Option<FlowKey> {
    // EtherType, version, traffic class, half of the flow label.
    let first = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let payload = u32::from(u16::from_be_bytes([head[18], head[19]]));
    // EtherType 0x86dd, version 6.
    if first & 0x00f0_ffff != 0x0060_dd86 || payload as usize + L4 > length {
        return None;
    }
    // Headers and, for UDP, its length must lie within the packet.
    let protocol = head[20];
    if protocol == PROTOCOL_TCP {
        let header = u32::from(head[66] >> 4) * 4;
        if header < 20 || header > payload {
            return None;
        }
    } else {
        let datagram = u32::from(u16::from_be_bytes([head[58], head[59]]));
        let no_checksum = head[60] | head[61] == 0;
        if protocol != PROTOCOL_UDP || datagram < 8 || datagram > payload || no_checksum {
            return None;
        }
    }
    let ports = u32::from_le_bytes([head[54], head[55], head[56], head[57]]);
    Some(FlowKey::wide(AttachmentIndex(0), protocol, [0; 2], ports))
}

/// Length of the IPv6 packet of a plain frame, header included, in bytes.
#[inline(always)]
#[must_use]
pub const fn plain6_length(head: &[u8; PLAIN6]) -> u32 {
    u16::from_be_bytes([head[18], head[19]]) as u32 + 40
}

/// Hop limit of a plain packet.
#[inline(always)]
#[must_use]
pub const fn plain6_hop_limit(head: &[u8; PLAIN6]) -> u8 {
    head[21]
}

/// TCP flags of a plain packet that carries TCP.
#[inline(always)]
#[must_use]
pub const fn plain6_tcp_flags(head: &[u8; PLAIN6]) -> u8 {
    head[67]
}

/// Both addresses of a plain packet.
#[inline(always)]
#[must_use]
pub fn plain6_addresses(head: &[u8; PLAIN6]) -> &[u8; 32] {
    let Some(addresses) = head[22..].first_chunk() else { unreachable!("22 and 32 are less than 74") };
    addresses
}

/// All that [`parse()`](crate::parse()) finds in a plain packet, whose key [`parse_plain6`] has given.
#[must_use]
pub fn plain6(head: &[u8; PLAIN6], key: FlowKey) -> Parsed {
    let tcp = key.protocol() == PROTOCOL_TCP;
    Parsed {
        key,
        kind: if tcp { PacketKind::Tcp } else { PacketKind::Udp },
        tcp_flags: if tcp { plain6_tcp_flags(head) } else { 0 },
        ttl: plain6_hop_limit(head),
        l3: L3 as u16,
        l4: L4 as u16,
        end: L3 as u32 + plain6_length(head),
        vlan: 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Frame, Offload};
    use crate::parse::{ParseError, parse};

    /// A packet as etherparse makes it, perhaps with extension headers, then damaged.
    fn packet() -> impl Strategy<Value = Vec<u8>> {
        let ends = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>(), any::<u16>());
        let damage = proptest::collection::vec((0usize..90, any::<u8>()), 0..3);
        let extensions = prop_oneof![3 => Just(0u8), 1 => 0u8..16];
        (any::<bool>(), ends, proptest::collection::vec(any::<u8>(), 0..40), damage, 0usize..8, extensions).prop_map(
            |(tcp, (source, destination, from, to), payload, damage, cut, extensions)| {
                use etherparse::*;
                let options = || Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]).unwrap();
                let headers = Ipv6Extensions {
                    hop_by_hop_options: (extensions & 1 != 0).then(options),
                    destination_options: (extensions & 2 != 0).then(options),
                    fragment: (extensions & 4 != 0).then(|| {
                        let more = extensions & 8 != 0;
                        Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::ZERO, more, 77)
                    }),
                    ..Ipv6Extensions::default()
                };
                let header =
                    Ipv6Header { source, destination, hop_limit: 9, traffic_class: 7, ..Ipv6Header::default() };
                let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(IpHeaders::Ipv6(header, headers));
                let mut bytes = Vec::new();
                if tcp {
                    ip.tcp(from, to, 1, 2).syn().write(&mut bytes, &payload).unwrap();
                } else {
                    ip.udp(from, to).write(&mut bytes, &payload).unwrap();
                }
                for (at, value) in damage {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                bytes.truncate(bytes.len() - cut.min(bytes.len()));
                bytes
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_plain_case_of_ipv6_finds_what_the_general_one_finds_or_nothing(mut bytes in packet()) {
            let length = bytes.len();
            let head = bytes.first_chunk::<PLAIN6>().copied();
            let found = head.and_then(|head| Some(plain6(&head, parse_plain6(&head, length)?)));
            let general = parse(&Frame::new(&mut bytes, 0, length).unwrap());
            if let Some(found) = found {
                prop_assert_eq!(format!("{:?}", general.unwrap()), format!("{found:?}"));
            } else if let Ok(general) = general {
                // Only what is not plain may be left to the general case.
                prop_assert!(
                    length < PLAIN6
                        || !general.key.is_wide()
                        || general.l4 != 54
                        || !matches!(general.kind, PacketKind::Tcp | PacketKind::Udp),
                    "{general:?}"
                );
            }
        }

        #[test]
        fn etherparse_agrees_on_what_is_found_in_ipv6(mut bytes in packet()) {
            let length = bytes.len();
            let parsed = parse(&Frame::new(&mut bytes, 0, length).unwrap());
            let Ok(parsed) = parsed else { return Ok(()) };
            if !parsed.key.is_wide() || !matches!(parsed.kind, PacketKind::Tcp | PacketKind::Udp) {
                return Ok(());
            }
            prop_assert!(parsed.end as usize <= length && u32::from(parsed.l4) <= parsed.end);
            let sliced = etherparse::SlicedPacket::from_ethernet(&bytes).unwrap();
            let transport = match (&sliced.transport, parsed.kind) {
                (Some(etherparse::TransportSlice::Tcp(tcp)), PacketKind::Tcp) => tcp.slice(),
                (Some(etherparse::TransportSlice::Udp(udp)), PacketKind::Udp) => udp.slice(),
                _ => panic!("{parsed:?} of {sliced:?}"),
            };
            prop_assert_eq!(&bytes[usize::from(parsed.l4)..][..4], &transport[..4]);
            prop_assert_eq!(parsed.key.ports().to_le_bytes(), &transport[..4]);
        }
    }

    fn read(bytes: &mut [u8], offload: Offload) -> Result<Parsed, ParseError> {
        let length = bytes.len();
        let mut frame = Frame::new(bytes, 0, length).unwrap();
        frame.offload = offload;
        parse(&frame)
    }

    fn udp(extension: Option<(u8, [u8; 8])>, checksum: [u8; 2]) -> Vec<u8> {
        let datagram = [0, 7, 0, 8, 0, 12, checksum[0], checksum[1], 1, 2, 3, 4];
        let payload = [extension.map_or(vec![], |(_, header)| header.to_vec()), datagram.to_vec()].concat();
        let mut bytes = [&[2; 12][..], &[0x86, 0xdd], &[0; 40], &payload].concat();
        let first = extension.map_or(17, |(number, _)| number);
        let header = bytes[14..].first_chunk_mut().unwrap();
        crate::ipv6::write_header(header, &[7; 32], first, payload.len() as u16, 9);
        bytes
    }

    #[test]
    fn ipv6_udp_without_a_checksum_is_refused_unless_the_device_has_still_to_make_it() {
        assert_eq!(read(&mut udp(None, [1, 1]), Offload::NONE).unwrap().kind, PacketKind::Udp);
        assert_eq!(read(&mut udp(None, [0, 0]), Offload::NONE).unwrap_err(), ParseError::UdpChecksum);
        let partial = Offload { flags: 1, checksum_start: 54, checksum_offset: 6, ..Offload::NONE };
        assert!(read(&mut udp(None, [0, 0]), partial).is_ok());
    }

    #[test]
    fn ipv6_fragments_are_known_by_protocol_and_atomic_ones_are_whole_packets() {
        let atomic = read(&mut udp(Some((44, [17, 0, 0, 0, 1, 2, 3, 4])), [1, 1]), Offload::NONE).unwrap();
        assert_eq!((atomic.kind, atomic.l4, atomic.key.ports()), (PacketKind::Udp, 62, 0x0800_0700));
        let fragment = read(&mut udp(Some((44, [17, 0, 0, 1, 1, 2, 3, 4])), [1, 1]), Offload::NONE).unwrap();
        assert_eq!((fragment.kind, fragment.l4, fragment.key.ports()), (PacketKind::Fragment, 62, 0));
        assert_eq!((fragment.key.protocol(), fragment.key.is_wide()), (17, true));
        let routed = read(&mut udp(Some((43, [17, 0, 2, 1, 0, 0, 0, 0])), [1, 1]), Offload::NONE);
        assert_eq!(routed.unwrap_err(), ParseError::Extensions);
    }

    #[test]
    fn ipv6_kinds_are_told_apart() {
        let kind = |next: u8, first: u8| {
            let mut bytes = udp(None, [1, 1]);
            (bytes[20], bytes[54]) = (next, first);
            read(&mut bytes, Offload::NONE).map(|parsed| parsed.kind)
        };
        assert_eq!(kind(58, 1), Ok(PacketKind::Icmpv6));
        assert_eq!(kind(58, 128), Ok(PacketKind::Icmpv6));
        for neighbour in 133..=137 {
            assert_eq!(kind(58, neighbour), Ok(PacketKind::NeighbourDiscovery));
        }
        // No next header, AH, ICMP of IPv4.
        for other in [59, 51, 1] {
            assert_eq!(kind(other, 0), Ok(PacketKind::OtherProtocol));
        }
        let mut bytes = udp(None, [1, 1]);
        bytes[14] = 0x45;
        assert_eq!(read(&mut bytes, Offload::NONE).unwrap_err(), ParseError::IpHeader);
        bytes[14] = 0x60;
        bytes[19] += 1;
        assert_eq!(read(&mut bytes, Offload::NONE).unwrap_err(), ParseError::IpLength);
    }

    #[test]
    fn ipv6_super_frames_have_the_type_of_their_family() {
        let frame = |segmentation_type| {
            let mut bytes = [&[2; 12][..], &[0x86, 0xdd], &[0; 40], &[0; 200]].concat();
            crate::ipv6::write_header(bytes[14..].first_chunk_mut().unwrap(), &[7; 32], 6, 200, 9);
            bytes[66] = 0x50;
            let offload = Offload {
                flags: 1,
                segmentation_type,
                segment_size: 60,
                checksum_start: 54,
                checksum_offset: 16,
                ..Offload::NONE
            };
            read(&mut bytes, offload).map(|parsed| parsed.kind)
        };
        assert_eq!(frame(Offload::TCP_V6), Ok(PacketKind::Tcp));
        assert_eq!(frame(Offload::TCP_V4), Err(ParseError::Offload));
        assert_eq!(frame(Offload::UDP_L4), Err(ParseError::Offload));
    }
}

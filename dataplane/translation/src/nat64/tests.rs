//! Translated packets and errors against those that etherparse makes between the new ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{IpHeaders, PacketBuilder};
use postern_wire::checksum::{Delta, checksum, fold, pseudo_header, pseudo_header_v6, sum};
use postern_wire::icmpv6::complete_checksum;
use postern_wire::{Frame, Offload, Parsed, ipv4, ipv6, parse};
use proptest::prelude::*;

use super::*;
use crate::icmp::quote;
use crate::icmpv6::quote6;

type Ends = (SocketAddr, SocketAddr);

const CLASS: u8 = 0xb9;
const ROOM: usize = 128;

fn socket4() -> impl Strategy<Value = SocketAddr> {
    (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(Ipv4Addr::from_bits(ip).into(), port))
}

fn socket6() -> impl Strategy<Value = SocketAddr> {
    (any::<u128>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(Ipv6Addr::from_bits(ip).into(), port))
}

/// An IP packet between two ends; of IPv4 with this identification and, perhaps, DF.
fn packet(tcp: bool, ends: Ends, ttl: u8, (identification, whole): (u16, bool), payload: &[u8]) -> Vec<u8> {
    let headers = match (ends.0.ip(), ends.1.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let protocol = etherparse::IpNumber(if tcp { 6 } else { 17 });
            let mut header =
                etherparse::Ipv4Header::new(0, ttl, protocol, source.octets(), destination.octets()).unwrap();
            (header.identification, header.dont_fragment) = (identification, whole);
            header.dscp = (CLASS >> 2).try_into().unwrap();
            header.ecn = (CLASS & 3).try_into().unwrap();
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = etherparse::Ipv6Header { hop_limit: ttl, traffic_class: CLASS, ..Default::default() };
            (header.source, header.destination) = (source.octets(), destination.octets());
            IpHeaders::Ipv6(header, Default::default())
        }
        other => unreachable!("{other:?}"),
    };
    let mut bytes = Vec::new();
    let ip = PacketBuilder::ip(headers);
    if tcp {
        ip.tcp(ends.0.port(), ends.1.port(), 7, 1000).ack(9).write(&mut bytes, payload).unwrap();
    } else {
        ip.udp(ends.0.port(), ends.1.port()).write(&mut bytes, payload).unwrap();
    }
    bytes
}

/// A frame with room in front.
fn framed(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
    [&[0; ROOM][..], &[2; 12], &ethertype, packet, &[0xee; 3]].concat()
}

fn addresses4(ends: Ends) -> u64 {
    let (IpAddr::V4(a), IpAddr::V4(b)) = (ends.0.ip(), ends.1.ip()) else { unreachable!() };
    u64::from(u32::from_le_bytes(a.octets())) | u64::from(u32::from_le_bytes(b.octets())) << 32
}

fn addresses6(ends: Ends) -> ipv6::AddressPair {
    let (IpAddr::V6(a), IpAddr::V6(b)) = (ends.0.ip(), ends.1.ip()) else { unreachable!() };
    ipv6::pair(a, b)
}

fn address_sum(ends: Ends) -> u64 {
    if ends.0.is_ipv4() { sum(&addresses4(ends).to_le_bytes()) } else { sum(&addresses6(ends)) }
}

fn ports(ends: Ends) -> u32 {
    u32::from(ends.0.port().swap_bytes()) | u32::from(ends.1.port().swap_bytes()) << 16
}

fn new_ends(from: Ends, to: Ends) -> NewEnds {
    let (before, after) = (address_sum(from), address_sum(to));
    NewEnds {
        ports: ports(to),
        address_delta: Delta::between(before, after),
        full_delta: Delta::between(before + u64::from(ports(from)), after + u64::from(ports(to))),
    }
}

fn with_frame<T>(bytes: &mut [u8], offload: Offload, act: impl FnOnce(&mut Frame<'_>, Parsed) -> T) -> T {
    let length = bytes.len() - ROOM;
    let mut frame = Frame::new(bytes, ROOM, length).unwrap();
    frame.offload = offload;
    let parsed = parse(&frame).unwrap();
    act(&mut frame, parsed)
}

proptest! {
    #[test]
    fn a_nat64_packet_to_ipv4_is_the_one_that_the_new_ends_would_have_sent(
        tcp: bool, old in (socket6(), socket6()), new in (socket4(), socket4()),
        payload in proptest::collection::vec(any::<u8>(), 0..200), whole: bool, identification: u16, options: bool,
    ) {
        let mut from = packet(tcp, old, 64, (0, false), &payload);
        if options {
            let next = std::mem::replace(&mut from[6], 60);
            from.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
            from[5] += 8;
        }
        let wanted = packet(tcp, new, 63, (identification, whole), &payload);
        with_frame(&mut framed(&from), Offload::NONE, |frame, parsed| {
            let found = to_ipv4(frame, &parsed, addresses4(new), &new_ends(old, new), whole, identification).unwrap();
            prop_assert_eq!(frame.bytes(), &wanted[..]);
            prop_assert_eq!((found.l3, found.l4, found.end as usize), (0, 20, wanted.len()));
            prop_assert_eq!((found.key.is_wide(), found.key.ports(), found.key.addresses), (false, ports(new), addresses4(new)));
            Ok(())
        })?;
    }

    #[test]
    fn a_nat64_packet_to_ipv6_is_the_one_that_the_new_ends_would_have_sent(
        tcp: bool, old in (socket4(), socket4()), new in (socket6(), socket6()),
        payload in proptest::collection::vec(any::<u8>(), 0..200), options in 0usize..3, without_checksum: bool,
    ) {
        let mut from = packet(tcp, old, 64, (7, true), &payload);
        if without_checksum && !tcp {
            from[26..28].fill(0);
        }
        if options > 0 {
            from.splice(20..20, vec![1; options * 4]);
            from[0] += options as u8;
            from[3] += options as u8 * 4;
            ipv4::complete_checksum(&mut from[..20 + options * 4]);
        }
        let wanted = packet(tcp, new, 63, (0, false), &payload);
        with_frame(&mut framed(&from), Offload::NONE, |frame, parsed| {
            let found = to_ipv6(frame, &parsed, &addresses6(new), &new_ends(old, new)).unwrap();
            prop_assert_eq!(frame.bytes(), &wanted[..]);
            prop_assert_eq!((found.l3, found.l4, found.end as usize), (0, 40, wanted.len()));
            prop_assert_eq!((found.key.is_wide(), found.key.ports()), (true, ports(new)));
            Ok(())
        })?;
    }

    #[test]
    fn a_nat64_super_frame_keeps_its_pseudo_header_sum_and_gets_the_other_type(
        tcp: bool, wide in (socket6(), socket6()), narrow in (socket4(), socket4()), there: bool,
    ) {
        let (old, new) = if there { (wide, narrow) } else { (narrow, wide) };
        let (protocol, field) = if tcp { (6, 16) } else { (17, 6) };
        let payload = [7; 4000];
        let mut from = packet(tcp, old, 64, (7, true), &payload);
        let header = |ends: Ends| if ends.0.is_ipv4() { 20 } else { 40 };
        let length = (from.len() - header(old)) as u16;
        let pseudo = |ends: Ends| {
            fold(if ends.0.is_ipv4() { pseudo_header(addresses4(ends), protocol, length) } else { pseudo_header_v6(&addresses6(ends), protocol, length) })
        };
        let at = header(old) + field;
        from[at..at + 2].copy_from_slice(&pseudo(old).to_le_bytes());
        let types = if !tcp { [Offload::UDP_L4; 2] } else if there { [Offload::TCP_V6, Offload::TCP_V4] } else { [Offload::TCP_V4, Offload::TCP_V6] };
        let offload = Offload {
            flags: 1, segmentation_type: types[0] | Offload::ECN, header_length: (14 + header(old) + 20) as u16, segment_size: 1400,
            checksum_start: (14 + header(old)) as u16, checksum_offset: field as u16,
        };
        with_frame(&mut framed(&from), offload, |frame, parsed| {
            if there {
                to_ipv4(frame, &parsed, addresses4(new), &new_ends(old, new), true, 7).unwrap();
            } else {
                to_ipv6(frame, &parsed, &addresses6(new), &new_ends(old, new)).unwrap();
            }
            let at = header(new) + field;
            let found = u16::from_le_bytes([frame.bytes()[at], frame.bytes()[at + 1]]);
            prop_assert_eq!(found % 0xffff, pseudo(new) % 0xffff);
            let offload = frame.offload;
            prop_assert_eq!(offload.segmentation_type, types[1] | Offload::ECN);
            prop_assert_eq!((usize::from(offload.checksum_start), usize::from(offload.header_length)), (header(new), header(new) + 20));
            Ok(())
        })?;
    }

    #[test]
    fn a_nat64_icmp_error_to_ipv6_is_about_the_packet_that_the_client_sent(
        tcp: bool, sent in (socket6(), socket6()), seen in (socket4(), socket4()), outer: [u8; 32],
        payload in proptest::collection::vec(any::<u8>(), 0..1500), cut in 8usize..1500,
    ) {
        let original = packet(tcp, sent, 60, (0, false), &payload);
        let mut quoted = packet(tcp, seen, 60, (5, true), &payload);
        quoted.truncate(20 + cut);
        let frame = icmp_frame((3, 3), [0; 4], &quoted, *ipv4_of(seen.0));
        let parsed = parsed(&frame);
        let found = quote(&frame, &parsed).unwrap();
        let inner = TranslatedQuote { addresses: addresses6(sent), ports: ports(sent), full_delta: new_ends(seen, sent).full_delta };
        let mut out = [0xee; LONGEST_TRANSLATED_ERROR];
        let length = error_to_ipv6(&mut out, &frame, &parsed, &found, &outer, &inner, MTUS).unwrap();
        check6(&out[..length]);
        prop_assert_eq!((&out[8..40], out[7], &out[40..42]), (&outer[..], 63, &[1, 4][..]));
        let wanted = &original[..original.len().min(40 + cut).min(1280 - 48)];
        prop_assert_eq!(length, 48 + wanted.len());
        let half = usize::from(tcp && quoted.len() == 20 + 17);
        prop_assert_eq!(&out[48..length - half], &wanted[..wanted.len() - half]);
    }

    #[test]
    fn a_nat64_icmp_error_to_ipv4_is_about_the_packet_that_the_target_sent(
        tcp: bool, sent in (socket4(), socket4()), seen in (socket6(), socket6()), outer: u64,
        payload in proptest::collection::vec(any::<u8>(), 0..1500), cut in 8usize..1100,
    ) {
        let original = packet(tcp, sent, 60, (0, true), &payload);
        let mut quoted = packet(tcp, seen, 60, (0, false), &payload);
        quoted.truncate(40 + cut);
        let frame = icmpv6_frame((1, 4), [0; 4], &quoted);
        let parsed = parsed(&frame);
        let found = quote6(&frame, &parsed).unwrap();
        let inner = TranslatedQuote { addresses: addresses4(sent), ports: ports(sent), full_delta: new_ends(seen, sent).full_delta };
        let mut out = [0xee; LONGEST_TRANSLATED_ERROR];
        let length = error_to_ipv4(&mut out, &frame, &parsed, &found, outer, &inner, MTUS).unwrap();
        check4(&out[..length]);
        prop_assert_eq!((&out[12..20], out[8], &out[20..22]), (&outer.to_le_bytes()[..], 63, &[3, 3][..]));
        let wanted = &original[..original.len().min(20 + cut).min(576 - 28)];
        prop_assert_eq!(length, 28 + wanted.len());
        let half = usize::from(tcp && quoted.len() == 40 + 17);
        prop_assert_eq!(&out[28..length - half], &wanted[..wanted.len() - half]);
    }

    #[test]
    fn no_nat64_icmp_error_makes_it_panic(
        wide: bool, kind: (u8, u8), rest: [u8; 4], noise in proptest::collection::vec(any::<u8>(), 0..300),
        damage in proptest::collection::vec((0usize..80, any::<u8>()), 0..4),
    ) {
        let ends = if wide { ("[2001:db8::1]:1", "[2001:db8::2]:2") } else { ("10.0.0.1:1", "10.0.0.2:2") };
        let mut quoted = packet(true, (ends.0.parse().unwrap(), ends.1.parse().unwrap()), 60, (5, true), &noise);
        for (at, byte) in damage {
            if let Some(at) = quoted.get_mut(at) {
                *at = byte;
            }
        }
        if !wide {
            ipv4::complete_checksum(&mut quoted[..20]);
        }
        let kind = (kind.0 % 13, kind.1 % 17);
        let mut out = [0; LONGEST_TRANSLATED_ERROR];
        let full_delta = Delta(7);
        if wide {
            let frame = icmpv6_frame(kind, rest, &quoted);
            let parsed = parsed(&frame);
            let Ok(found) = quote6(&frame, &parsed) else { return Ok(()) };
            let inner = TranslatedQuote { addresses: 77, ports: 9, full_delta };
            if let Some(length) = error_to_ipv4(&mut out, &frame, &parsed, &found, 3, &inner, MTUS) {
                check4(&out[..length]);
            }
        } else {
            let frame = icmp_frame(kind, rest, &quoted, Ipv4Addr::LOCALHOST);
            let parsed = parsed(&frame);
            let Ok(found) = quote(&frame, &parsed) else { return Ok(()) };
            let inner = TranslatedQuote { addresses: [3; 32], ports: 9, full_delta };
            if let Some(length) = error_to_ipv6(&mut out, &frame, &parsed, &found, &[7; 32], &inner, MTUS) {
                check6(&out[..length]);
            }
        }
    }
}

const MTUS: Mtus = Mtus { ipv4: 1500, ipv6: 1500 };

fn ipv4_of(socket: SocketAddr) -> Box<Ipv4Addr> {
    let IpAddr::V4(address) = socket.ip() else { unreachable!() };
    Box::new(address)
}

fn parsed(bytes: &[u8]) -> Parsed {
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    parse(&Frame::new(&mut bytes, 0, length).unwrap()).unwrap()
}

/// A frame with an ICMP error from a router.
fn icmp_frame((kind, code): (u8, u8), rest: [u8; 4], quoted: &[u8], to: Ipv4Addr) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], &rest[..], quoted].concat();
    let sum = checksum(&message, 0);
    message[2..4].copy_from_slice(&sum.to_le_bytes());
    let mut header = [0; 20];
    ipv4::write_header(&mut header, Ipv4Addr::new(192, 0, 2, 9), to, 1, (20 + message.len()) as u16, 64);
    [&[2; 12][..], &[8, 0], &header, &message].concat()
}

fn icmpv6_frame((kind, code): (u8, u8), rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], &rest[..], quoted].concat();
    complete_checksum(&mut message, &[7; 32]);
    let mut header = [0; 40];
    ipv6::write_header(&mut header, &[7; 32], 58, message.len() as u16, 64);
    [&[2; 12][..], &[0x86, 0xdd], &header, &message].concat()
}

/// Lengths and checksums of an ICMPv6 packet are right.
fn check6(packet: &[u8]) {
    let ip = etherparse::Ipv6Slice::from_slice(packet).unwrap();
    assert_eq!(usize::from(ip.header().payload_length()) + 40, packet.len());
    let icmp = etherparse::Icmpv6Slice::from_slice(ip.payload().payload).unwrap();
    assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
}

/// The same of ICMP, and of the quoted header.
fn check4(packet: &[u8]) {
    let ip = etherparse::Ipv4Slice::from_slice(packet).unwrap();
    let header = ip.header().to_header();
    assert_eq!((header.calc_header_checksum(), usize::from(header.total_len)), (header.header_checksum, packet.len()));
    assert_eq!(checksum(&packet[20..], 0), 0, "ICMP checksum");
    assert_eq!(checksum(&packet[28..48], 0), 0, "checksum of the quoted header");
}

fn translated6(kind: (u8, u8), rest: [u8; 4], mtus: Mtus) -> Option<[u8; 8]> {
    let ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let frame = icmp_frame(kind, rest, &packet(true, ends, 60, (5, true), &[7; 1400]), Ipv4Addr::LOCALHOST);
    let parsed = parsed(&frame);
    let inner = TranslatedQuote { addresses: [3; 32], ports: 9, full_delta: Delta(0) };
    let mut out = [0; LONGEST_TRANSLATED_ERROR];
    let length = error_to_ipv6(&mut out, &frame, &parsed, &quote(&frame, &parsed).ok()?, &[7; 32], &inner, mtus)?;
    check6(&out[..length]);
    Some([out[40], out[41], 0, 0, out[44], out[45], out[46], out[47]])
}

fn translated4(kind: (u8, u8), rest: [u8; 4], mtus: Mtus) -> Option<[u8; 8]> {
    let ends = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
    let frame = icmpv6_frame(kind, rest, &packet(true, ends, 60, (5, true), b"x"));
    let parsed = parsed(&frame);
    let inner = TranslatedQuote { addresses: 3, ports: 9, full_delta: Delta(0) };
    let mut out = [0; LONGEST_TRANSLATED_ERROR];
    let length = error_to_ipv4(&mut out, &frame, &parsed, &quote6(&frame, &parsed).ok()?, 7, &inner, mtus)?;
    check4(&out[..length]);
    Some([out[20], out[21], 0, 0, out[24], out[25], out[26], out[27]])
}

#[test]
fn every_nat64_icmp_type_has_the_counterpart_of_rfc_7915() {
    let plain = |kind, code| Some([kind, code, 0, 0, 0, 0, 0, 0]);
    for (code, wanted) in [
        (0, plain(1, 0)),
        (1, plain(1, 0)),
        (2, Some([4, 1, 0, 0, 0, 0, 0, 6])),
        (3, plain(1, 4)),
        (5, plain(1, 0)),
        (9, plain(1, 1)),
        (10, plain(1, 1)),
        (13, plain(1, 1)),
        (14, None),
        (15, plain(1, 1)),
        (16, None),
    ] {
        assert_eq!(translated6((3, code), [0; 4], MTUS), wanted, "3/{code}");
    }
    assert_eq!(translated6((4, 0), [0; 4], MTUS), None);
    assert_eq!(translated6((11, 0), [0; 4], MTUS), plain(3, 0));
    assert_eq!(translated6((11, 1), [0; 4], MTUS), plain(3, 1));
    for (pointer, wanted) in [
        (0, Some(0)),
        (1, Some(1)),
        (2, Some(4)),
        (5, None),
        (8, Some(7)),
        (9, Some(6)),
        (10, None),
        (14, Some(8)),
        (16, Some(24)),
        (20, None),
    ] {
        let wanted = wanted.map(|pointer| [4, 0, 0, 0, 0, 0, 0, pointer]);
        assert_eq!(translated6((12, 0), [pointer, 0, 0, 0], MTUS), wanted, "pointer {pointer}");
    }
    assert_eq!(translated6((12, 1), [0; 4], MTUS), None);
    for (code, wanted) in
        [(0, plain(3, 1)), (1, plain(3, 10)), (2, plain(3, 1)), (3, plain(3, 1)), (4, plain(3, 3)), (5, None)]
    {
        assert_eq!(translated4((1, code), [0; 4], MTUS), wanted, "1/{code}");
    }
    assert_eq!(translated4((3, 0), [0; 4], MTUS), plain(11, 0));
    assert_eq!(translated4((4, 1), [0; 4], MTUS), plain(3, 2));
    assert_eq!(translated4((4, 2), [0; 4], MTUS), None);
    for (pointer, wanted) in
        [(0, Some(0)), (3, None), (4, Some(2)), (6, Some(9)), (7, Some(8)), (20, Some(12)), (39, Some(16)), (40, None)]
    {
        let wanted = wanted.map(|pointer| [12, 0, 0, 0, pointer, 0, 0, 0]);
        assert_eq!(translated4((4, 0), [0, 0, 0, pointer], MTUS), wanted, "pointer {pointer}");
    }
}

#[test]
fn a_nat64_mtu_is_that_of_the_other_version_and_fits_both_links() {
    let to6 = |mtu: u16, mtus: Mtus| {
        let [high, low] = mtu.to_be_bytes();
        let found = translated6((3, 4), [0, 0, high, low], mtus).unwrap();
        assert_eq!(found[..2], [2, 0]);
        u32::from_be_bytes([found[4], found[5], found[6], found[7]])
    };
    let to4 = |mtu: u32, mtus: Mtus| {
        let found = translated4((2, 0), mtu.to_be_bytes(), mtus).unwrap();
        assert_eq!(found[..2], [3, 4]);
        u16::from_be_bytes([found[6], found[7]])
    };
    let mtus = |ipv4, ipv6| Mtus { ipv4, ipv6 };
    assert_eq!(to6(1400, mtus(1500, 1500)), 1420);
    assert_eq!(to6(1490, mtus(1500, 1500)), 1500, "the IPv6 link");
    assert_eq!(to6(1490, mtus(1400, 1500)), 1420, "the IPv4 link");
    assert_eq!(to6(576, mtus(1500, 1500)), 1280, "never below the least of IPv6");
    assert_eq!(to6(0, mtus(1500, 1500)), 1280, "a plateau below the packet's length: 1,006");
    assert_eq!(to4(1400, mtus(1500, 1500)), 1380);
    assert_eq!(to4(9000, mtus(1400, 1500)), 1400);
    assert_eq!(to4(9000, mtus(1500, 1400)), 1380);
}

#[test]
fn nat64_packets_without_a_form_in_the_other_version_stay_as_they_are() {
    let narrow: Ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let wide: Ends = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
    let mut routed = packet(false, narrow, 60, (1, true), b"x");
    routed.splice(20..20, [1, 131, 7, 4, 10, 0, 0, 9]);
    (routed[0], routed[3]) = (0x47, routed[3] + 8);
    ipv4::complete_checksum(&mut routed[..28]);
    let offload = Offload { segmentation_type: Offload::UDP_L4, segment_size: 100, ..Offload::NONE };
    let mut run = packet(false, narrow, 60, (1, true), &[7; 1000]);
    run[26..28].fill(0);
    for (bytes, offload, wanted) in
        [(routed.clone(), Offload::NONE, Nat64Error::SourceRoute), (run, offload, Nat64Error::NoChecksum)]
    {
        let mut bytes = framed(&bytes);
        let before = bytes.clone();
        let found = with_frame(&mut bytes, offload, |frame, parsed| {
            to_ipv6(frame, &parsed, &addresses6(wide), &new_ends(narrow, wide)).unwrap_err()
        });
        assert_eq!((found, bytes), (wanted, before));
    }
    // A source route at its end is no more than an option that nobody reads.
    routed[23] = 8;
    ipv4::complete_checksum(&mut routed[..28]);
    with_frame(&mut framed(&routed), Offload::NONE, |frame, parsed| {
        assert!(to_ipv6(frame, &parsed, &addresses6(wide), &new_ends(narrow, wide)).is_ok());
    });
    let long = packet(false, wide, 60, (0, false), &vec![7; 65_508]);
    let found = with_frame(&mut framed(&long), Offload::NONE, |frame, parsed| {
        to_ipv4(frame, &parsed, addresses4(narrow), &new_ends(wide, narrow), true, 1).unwrap_err()
    });
    assert_eq!(found, Nat64Error::TooLong(20 + 8 + 65_508));
}

#[test]
fn a_nat64_fragment_of_ipv4_becomes_one_of_ipv6() {
    let narrow: Ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let wide: Ends = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
    let fragment = |field: u16, payload: &[u8]| {
        let mut bytes = packet(false, narrow, 60, (0x1234, false), payload);
        bytes[6..8].copy_from_slice(&field.to_be_bytes());
        ipv4::complete_checksum(&mut bytes[..20]);
        bytes
    };
    for (field, first) in [(0x2000, true), (0x2005, false), (0x0005, false)] {
        let bytes = fragment(field, &[7; 24]);
        with_frame(&mut framed(&bytes), Offload::NONE, |frame, mut parsed| {
            if first {
                parsed.kind = postern_wire::PacketKind::Udp;
            }
            let found = to_ipv6(frame, &parsed, &addresses6(wide), &new_ends(narrow, wide)).unwrap();
            let header = ipv6::upper(frame.bytes()).unwrap();
            let fragment = header.fragment.unwrap();
            assert_eq!((header.protocol, header.at, found.l4), (17, 48, 48));
            assert_eq!((fragment.offset, fragment.more), ((field & 0x1fff) * 8, field & 0x2000 != 0));
            assert_eq!(fragment.identification, 0x1234);
            let whole = packet(false, wide, 59, (0, false), &[7; 24]);
            let payload = if first { &whole[40..] } else { &bytes[20..] };
            assert_eq!((&frame.bytes()[48..], usize::from(frame.bytes()[5])), (payload, payload.len() + 8));
        });
    }
}

#[test]
fn a_nat64_atomic_fragment_lends_its_identification() {
    let narrow: Ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let wide: Ends = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
    let mut bytes = packet(false, wide, 60, (0, false), &[7; 1300]);
    bytes.splice(40..40, [17, 0, 0, 0, 0xaa, 0xbb, 0x12, 0x34]);
    bytes[6] = 44;
    let payload = (bytes.len() - 40) as u16;
    bytes[4..6].copy_from_slice(&payload.to_be_bytes());
    with_frame(&mut framed(&bytes), Offload::NONE, |frame, parsed| {
        to_ipv4(frame, &parsed, addresses4(narrow), &new_ends(wide, narrow), true, 1).unwrap();
        assert_eq!(frame.bytes(), &packet(false, narrow, 59, (0x1234, false), &[7; 1300])[..]);
    });
}

#[test]
fn extensions_of_a_nat64_icmp_error_follow_the_longer_or_shorter_quote() {
    let narrow: Ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let extension = [0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4];
    let quoted = packet(false, narrow, 60, (5, true), &[7; 100]);
    assert_eq!(quoted.len(), 128);
    let frame = icmp_frame((11, 0), [0, 32, 0, 0], &[&quoted[..], &extension].concat(), Ipv4Addr::LOCALHOST);
    let message = parsed(&frame);
    let inner = TranslatedQuote { addresses: [3; 32], ports: 9, full_delta: Delta(0) };
    let mut out = [0; LONGEST_TRANSLATED_ERROR];
    let found = quote(&frame, &message).unwrap();
    let length = error_to_ipv6(&mut out, &frame, &message, &found, &[7; 32], &inner, MTUS).unwrap();
    check6(&out[..length]);
    assert_eq!((out[44], length), (19, 48 + 152 + 12), "148 bytes of quote, padded to words of eight");
    assert_eq!(out[48 + 152..length], extension);

    let wide: Ends = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
    let quoted = packet(false, wide, 60, (5, true), &[7; 80]);
    let frame = icmpv6_frame((3, 0), [16, 0, 0, 0], &[&quoted[..], &extension].concat());
    let message = parsed(&frame);
    let inner = TranslatedQuote { addresses: 3, ports: 9, full_delta: Delta(0) };
    let found = quote6(&frame, &message).unwrap();
    let length = error_to_ipv4(&mut out, &frame, &message, &found, 7, &inner, MTUS).unwrap();
    check4(&out[..length]);
    assert_eq!((out[25], length), (32, 28 + 128 + 12), "108 bytes of quote, padded to the least");
    assert_eq!(out[28 + 128..length], extension);
}

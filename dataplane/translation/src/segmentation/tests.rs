//! Segments against etherparse: headers, checksums and payload of every frame.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use postern_wire::checksum::{fold, pseudo_header};
use postern_wire::{Frame, parse};
use proptest::prelude::*;

use super::*;

const SOURCE: [u8; 4] = [10, 0, 0, 1];
const DESTINATION: [u8; 4] = [10, 0, 0, 2];
const SEQUENCE: u32 = u32::MAX - 500;

fn tcp_header(options: usize) -> etherparse::TcpHeader {
    let mut header = etherparse::TcpHeader::new(1234, 80, SEQUENCE, 1000);
    header.set_options_raw(&vec![1; options * 4]).unwrap();
    (header.cwr, header.ack, header.psh, header.fin) = (true, true, true, true);
    header.acknowledgment_number = 77;
    header
}

/// Puts the folded pseudo-header sum where the checksum will be, as a device with checksum offload leaves it.
fn make_partial(frame: &mut [u8], l3: usize, l4: usize, protocol: u8, field: usize) {
    let length = (frame.len() - l4) as u16;
    let sum = pseudo_header(ipv4_addresses(frame, l3), protocol, length);
    put(frame, l4 + field, fold(sum).to_le_bytes());
}

fn offload(kind: u8, size: u16, start: usize, field: usize) -> Offload {
    Offload {
        flags: Offload::NEEDS_CHECKSUM,
        segmentation_type: kind,
        segment_size: size,
        checksum_start: start as u16,
        checksum_offset: field as u16,
        ..Offload::NONE
    }
}

fn tcp_super_frame(payload: &[u8], options: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut ip = etherparse::Ipv4Header::new(0, 61, etherparse::IpNumber::TCP, SOURCE, DESTINATION).unwrap();
    ip.identification = 0xffff;
    ip.dont_fragment = true;
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        .tcp_header(tcp_header(options))
        .write(&mut frame, payload)
        .unwrap();
    make_partial(&mut frame, 14, 34, PROTOCOL_TCP, tcp::CHECKSUM);
    frame
}

fn udp_super_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(SOURCE, DESTINATION, 64)
        .udp(1234, 53)
        .write(&mut frame, payload)
        .unwrap();
    make_partial(&mut frame, 14, 34, PROTOCOL_UDP, UDP_CHECKSUM);
    frame
}

/// Which tunnel, and what is in it.
#[derive(Clone, Copy, Debug)]
struct Tunnel {
    geneve_options: Option<usize>,
    vlan: bool,
    v6: bool,
    outer_checksum: bool,
}

/// A tunnelled super-frame and the offset of its inner TCP header.
fn tunnelled(payload: &[u8], tunnel: Tunnel) -> (Vec<u8>, usize) {
    let mut inner = Vec::new();
    let ethernet = PacketBuilder::ethernet2([6; 6], [8; 6]);
    let (v4, v6) = ((SOURCE, DESTINATION), ([1; 16], [3; 16]));
    let builder = match (tunnel.vlan, tunnel.v6) {
        (false, false) => ethernet.ipv4(v4.0, v4.1, 64),
        (false, true) => ethernet.ipv6(v6.0, v6.1, 64),
        (true, false) => ethernet.single_vlan(7.try_into().unwrap()).ipv4(v4.0, v4.1, 64),
        (true, true) => ethernet.single_vlan(7.try_into().unwrap()).ipv6(v6.0, v6.1, 64),
    };
    builder.tcp_header(tcp_header(3)).write(&mut inner, payload).unwrap();
    let header = match tunnel.geneve_options {
        None => vec![8, 0, 0, 0, 0, 0, 7, 0],
        Some(words) => {
            let mut header = vec![words as u8, 0, 0x65, 0x58, 0, 0, 7, 0];
            header.resize(8 + words * 4, 0x11);
            header
        }
    };
    let start = 42 + header.len() + 14 + if tunnel.vlan { 4 } else { 0 } + if tunnel.v6 { 40 } else { 20 };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64)
        .udp(5555, 9999)
        .write(&mut frame, &[header, inner].concat())
        .unwrap();
    let field = if tunnel.outer_checksum { [0xab, 0xcd] } else { [0, 0] };
    put(&mut frame, 40, field);
    put(&mut frame, start + tcp::CHECKSUM, [0x12, 0x34]);
    (frame, start)
}

fn parsed(frame: &[u8], offload: Offload) -> Parsed {
    let mut bytes = frame.to_vec();
    let length = bytes.len();
    let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
    frame.offload = offload;
    parse(&frame).unwrap()
}

fn cut(frame: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let segments = Segments::new(frame, offload, &parsed(frame, offload)).unwrap();
    let all: Vec<Vec<u8>> = (0..segments.len())
        .map(|index| {
            let mut out = vec![0xee; segments.longest()];
            let length = segments.write(index, &mut out);
            assert_ne!(length, 0);
            out.truncate(length);
            out
        })
        .collect();
    assert_eq!(segments.write(segments.len(), &mut vec![0; 70_000]), 0);
    assert_eq!(segments.write(0, &mut vec![0; all[0].len() - 1]), 0);
    all
}

/// Checks one whole frame by etherparse and returns its transport payload.
fn checked(frame: &[u8]) -> (Vec<u8>, Option<etherparse::TcpHeader>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let transport = packet.transport.unwrap();
    let end = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            usize::from(header.total_len)
        }
        NetSlice::Ipv6(ip) => 40 + usize::from(ip.header().payload_length()),
        NetSlice::Arp(_) => unreachable!("the tests make no ARP"),
    };
    let l3 = frame.len() - end;
    assert!(l3 == 14 || l3 == 18, "the IP length says {end} of {} bytes", frame.len());
    match (packet.net.unwrap(), transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.calc_checksum_ipv4(source, destination).unwrap(), tcp.checksum());
            (tcp.payload().to_vec(), Some(tcp.to_header()))
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.calc_checksum_ipv6(source, destination).unwrap(), tcp.checksum());
            (tcp.payload().to_vec(), Some(tcp.to_header()))
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            assert_eq!(usize::from(header.length), udp.payload().len() + 8);
            if header.checksum != 0 {
                let wanted = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
                assert_eq!(wanted, header.checksum);
            }
            (udp.payload().to_vec(), None)
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let wanted = udp
                .to_header()
                .calc_checksum_ipv6_raw(ip.header().source(), ip.header().destination(), udp.payload())
                .unwrap();
            assert_eq!(wanted, udp.checksum());
            (udp.payload().to_vec(), None)
        }
        other => unreachable!("the tests make no {other:?}"),
    }
}

/// Checks sequence numbers and flags, and returns the payload put together again.
fn reassembled(segments: &[(Vec<u8>, Option<etherparse::TcpHeader>)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, (part, header)) in segments.iter().enumerate() {
        if let Some(header) = header {
            let last = index + 1 == segments.len();
            assert_eq!(header.sequence_number, SEQUENCE.wrapping_add(payload.len() as u32));
            assert_eq!((header.cwr, header.ack, header.psh, header.fin), (index == 0, true, last, last));
            assert_eq!((header.acknowledgment_number, header.window_size), (77, 1000));
        }
        payload.extend(part);
    }
    payload
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (0..=most, any::<u8>()).prop_map(|(length, seed)| {
        (0..length).map(|at| (at as u32).wrapping_mul(0x9e37_79b9).to_be_bytes()[1] ^ seed).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tcp_segments_are_whole_and_add_up(payload in bytes(20_000), size in 8u16..9000, options in 0usize..=10) {
        let frame = tcp_super_frame(&payload, options);
        let segments = cut(&frame, offload(Offload::TCP_V4, size, 34, tcp::CHECKSUM));
        prop_assert_eq!(segments.len(), payload.len().div_ceil(usize::from(size)).max(1));
        for (index, segment) in segments.iter().enumerate() {
            prop_assert_eq!(&segment[..14], &frame[..14]);
            prop_assert_eq!(&segment[26..34], &frame[26..34]);
            prop_assert_eq!(&segment[18..20], &0xffffu16.wrapping_add(index as u16).to_be_bytes());
            prop_assert_eq!((segment[20], segment[22]), (0x40, 61));
        }
        let segments: Vec<_> = segments.iter().map(|segment| checked(segment)).collect();
        prop_assert!(segments.iter().rev().skip(1).all(|(part, _)| part.len() == usize::from(size)));
        prop_assert_eq!(reassembled(&segments), payload);
    }

    #[test]
    fn ipv6_segments_are_whole_and_add_up(tcp: bool, payload in bytes(20_000), size in 8u16..9000, options in 0usize..=10) {
        let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([7; 16], [9; 16], 61);
        let mut frame = Vec::new();
        let (kind, field) = if tcp {
            ip.tcp_header(tcp_header(options)).write(&mut frame, &payload).unwrap();
            (Offload::TCP_V6, tcp::CHECKSUM)
        } else {
            ip.udp(1234, 53).write(&mut frame, &payload).unwrap();
            (Offload::UDP_L4, UDP_CHECKSUM)
        };
        put(&mut frame, 54 + field, [0x12, 0x34]);
        let segments = cut(&frame, offload(kind, size, 54, field));
        prop_assert_eq!(segments.len(), payload.len().div_ceil(usize::from(size)).max(1));
        prop_assert!(segments.iter().all(|segment| segment[..18] == frame[..18] && segment[20..54] == frame[20..54]));
        let segments: Vec<_> = segments.iter().map(|segment| checked(segment)).collect();
        prop_assert_eq!(reassembled(&segments), payload);
    }

    #[test]
    fn udp_segments_are_datagrams_with_complete_checksums(payload in bytes(20_000), size in 100u16..9000) {
        let frame = udp_super_frame(&payload);
        let segments = cut(&frame, offload(Offload::UDP_L4, size, 34, UDP_CHECKSUM));
        prop_assert!(segments.iter().all(|segment| segment[40..42] != [0, 0]));
        let segments: Vec<_> = segments.iter().map(|segment| checked(segment)).collect();
        prop_assert_eq!(reassembled(&segments), payload);
    }

    #[test]
    fn tunnelled_segments_are_whole_outside_and_inside(
        payload in bytes(20_000),
        size in 8u16..9000,
        geneve_options in proptest::option::of(0usize..8),
        (vlan, v6, outer_checksum) in any::<(bool, bool, bool)>(),
    ) {
        let tunnel = Tunnel { geneve_options, vlan, v6, outer_checksum };
        let (frame, start) = tunnelled(&payload, tunnel);
        let kind = if v6 { Offload::TCP_V6 } else { Offload::TCP_V4 };
        let header_length = 8 + geneve_options.unwrap_or(0) * 4;
        let mut inner = Vec::new();
        for segment in cut(&frame, offload(kind, size, start, tcp::CHECKSUM)) {
            prop_assert_eq!(segment[40..42] != [0, 0], outer_checksum);
            let (datagram, _) = checked(&segment);
            prop_assert_eq!(&datagram[..header_length], &frame[42..42 + header_length]);
            inner.push(checked(&datagram[header_length..]));
        }
        prop_assert_eq!(reassembled(&inner), payload);
    }

    #[test]
    fn no_offload_state_and_no_bytes_make_it_panic(
        mut frame in proptest::collection::vec(any::<u8>(), 42..200),
        tunnel: bool,
        raw: [u16; 4],
        kind in 0u8..7,
        damage in proptest::collection::vec((42usize..120, any::<u8>()), 0..4),
    ) {
        if tunnel {
            frame = tunnelled(&frame, Tunnel { geneve_options: None, vlan: false, v6: raw[3] % 2 == 0, outer_checksum: true }).0;
            for (at, byte) in damage {
                frame[at] = byte;
            }
        } else {
            let payload = frame.split_off(42);
            frame = udp_super_frame(&payload);
        }
        let mut state = offload(kind, raw[0] % 64, usize::from(raw[1] % 200), usize::from(raw[2]));
        if raw[3] % 3 > 0 {
            state.checksum_start = if raw[3] % 2 == 0 { 104 } else { 84 };
        }
        let parsed = parsed(&frame, Offload::NONE);
        if let Ok(segments) = Segments::new(&frame, state, &parsed) {
            let mut out = vec![0; segments.longest()];
            for index in 0..segments.len() {
                prop_assert_ne!(segments.write(index, &mut out), 0);
            }
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero_in_every_segment() {
    let mut frame = udp_super_frame(&[7; 3000]);
    put(&mut frame, 40, [0, 0]);
    let mut state = offload(Offload::UDP_L4, 1000, 34, UDP_CHECKSUM);
    state.flags = 0;
    let segments = cut(&frame, state);
    assert_eq!(segments.len(), 3);
    assert!(segments.iter().all(|segment| segment[40..42] == [0, 0] && checked(segment).0 == [7; 1000]));
}

#[test]
fn ethernet_padding_is_not_sent_as_payload() {
    let mut frame = tcp_super_frame(&[7; 100], 0);
    frame.extend([0xff; 9]);
    let segments = cut(&frame, offload(Offload::TCP_V4, 60, 34, tcp::CHECKSUM));
    assert_eq!(segments.iter().map(Vec::len).collect::<Vec<_>>(), [54 + 60, 54 + 40]);
}

#[test]
fn what_cannot_be_cut_is_named() {
    let frame = tcp_super_frame(&[7; 100], 0);
    let error = |frame: &[u8], state: Offload| Segments::new(frame, state, &parsed(frame, Offload::NONE)).unwrap_err();
    let size = |size| offload(Offload::TCP_V4, size, 34, tcp::CHECKSUM);
    assert_eq!(error(&frame, size(0)), SegmentationError::SegmentSize(0));
    assert_eq!(error(&frame, size(7)), SegmentationError::SegmentSize(7));
    assert_eq!(error(&frame, Offload::NONE), SegmentationError::Type(0));
    assert_eq!(error(&frame, offload(3, 100, 34, 16)), SegmentationError::Type(3));
    assert_eq!(error(&frame, offload(Offload::UDP_L4, 100, 34, 6)), SegmentationError::Type(5));
    assert_eq!(error(&frame, offload(Offload::TCP_V6, 100, 34, 16)), SegmentationError::Type(4));
    let tunnel = Tunnel { geneve_options: None, vlan: false, v6: false, outer_checksum: false };
    let (mut frame, start) = tunnelled(&[7; 100], tunnel);
    let at = |start| offload(Offload::TCP_V4, 50, start, tcp::CHECKSUM);
    assert_eq!(error(&frame, at(start + 1)), SegmentationError::ChecksumStart(start as u16 + 1));
    assert_eq!(error(&frame, Offload { segmentation_type: Offload::TCP_V6, ..at(start) }), SegmentationError::Type(4));
    assert!(Segments::new(&frame, at(start), &parsed(&frame, Offload::NONE)).is_ok());
    frame[start - 20 + 3] -= 1;
    assert_eq!(error(&frame, at(start)), SegmentationError::Length);
}

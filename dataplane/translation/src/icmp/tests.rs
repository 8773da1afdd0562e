//! Errors, resets and replies against etherparse and the RFCs.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice, Ipv4Slice, PacketBuilder, TcpSlice};
use postern_wire::checksum::{checksum, fold, sum};
use postern_wire::parse::{PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{AttachmentIndex, FlowKey, Frame, Offload, Parsed, icmp, ipv4, parse, tcp};
use proptest::prelude::*;

use super::*;
use crate::plan::RewritePlan;

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

type Ends = (SocketAddrV4, SocketAddrV4);

fn key(protocol: u8, ends: Ends) -> FlowKey {
    FlowKey::new(AttachmentIndex(0), protocol, ends.0, ends.1)
}

/// An IPv4 packet with 4·`options` bytes of IP options.
fn packet(protocol: u8, ends: Ends, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut ip =
        etherparse::Ipv4Header::new(0, 60, protocol.into(), ends.0.ip().octets(), ends.1.ip().octets()).unwrap();
    ip.identification = 4711;
    ip.options = vec![1; options * 4].as_slice().try_into().unwrap();
    let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()));
    let mut bytes = Vec::new();
    if protocol == PROTOCOL_TCP {
        builder.tcp(ends.0.port(), ends.1.port(), 9, 1000).ack(3).write(&mut bytes, payload).unwrap();
    } else {
        builder.udp(ends.0.port(), ends.1.port()).write(&mut bytes, payload).unwrap();
    }
    bytes
}

fn ethernet(packet: &[u8]) -> Vec<u8> {
    [&MAC[..], &MAC[..], &[8, 0], packet].concat()
}

/// A frame with an ICMP error from the router to `destination` about `quoted`, with extensions behind it.
fn error_frame(kind: u8, code: u8, rest: [u8; 4], destination: Ipv4Addr, quoted: &[u8], extensions: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], &rest[..], quoted, extensions].concat();
    let sum = checksum(&message, 0);
    message[2..4].copy_from_slice(&sum.to_le_bytes());
    let mut ip = etherparse::Ipv4Header::new(
        message.len() as u16,
        60,
        etherparse::IpNumber::ICMP,
        ROUTER.octets(),
        destination.octets(),
    )
    .unwrap();
    ip.header_checksum = ip.calc_header_checksum();
    ethernet(&[&ip.to_bytes()[..], &message].concat())
}

fn parsed(bytes: &[u8]) -> Parsed {
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    parse(&Frame::new(&mut bytes, 0, length).unwrap()).unwrap()
}

fn quoted_by(bytes: &[u8]) -> Result<Quote, QuoteError> {
    quote(bytes, &parsed(bytes))
}

fn addresses(source: Ipv4Addr, destination: Ipv4Addr) -> u64 {
    key(0, (SocketAddrV4::new(source, 0), SocketAddrV4::new(destination, 0))).addresses
}

fn ends(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16) -> Ends {
    (SocketAddrV4::new(source.into(), source_port), SocketAddrV4::new(destination.into(), destination_port))
}

fn sent() -> Ends {
    ends([10, 200, 0, 1], 40_000, [10, 9, 0, 5], 8080)
}

fn original() -> Ends {
    ends([10, 0, 0, 7], 51_000, [10, 0, 0, 100], 80)
}

/// A frame with these bytes recomputed to the valid sums that a check of the whole frame expects.
fn sums_are_right(frame: &[u8]) {
    let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap().to_header();
    assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
    assert_eq!(fold(sum(&frame[34..])), 0xffff, "the ICMP checksum is wrong");
}

fn socket() -> impl Strategy<Value = SocketAddrV4> {
    (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| SocketAddrV4::new(ip.into(), port))
}

proptest! {
    #[test]
    fn a_translated_error_is_the_one_about_the_packet_that_the_sender_sent(
        tcp: bool,
        ends in (socket(), socket()),
        originals in (socket(), socket()),
        client: u32,
        options in 0usize..=10,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        (cut, (kind, code), rest) in (8usize..300, prop_oneof![Just((3u8, 3u8)), Just((3, 4)), Just((4, 0)), Just((11, 0)), Just((12, 0))], any::<[u8; 2]>()),
        without_checksum: bool,
    ) {
        let protocol = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let header = 20 + options * 4;
        let make = |ends: Ends| {
            let mut packet = packet(protocol, ends, options, &payload);
            if !tcp && without_checksum {
                packet[header + 6..header + 8].fill(0);
            }
            packet.truncate(header + cut);
            packet
        };
        let (quoted, wanted) = (make(ends), make(originals));
        let rest = [0, 0, rest[0], rest[1]];
        let mut frame = error_frame(kind, code, rest, *ends.0.ip(), &quoted, &[]);
        let parsed = parsed(&frame);
        let quote = quote(&frame, &parsed).unwrap();
        prop_assert_eq!((quote.key, quote.kind, quote.code), (key(protocol, ends), kind, code));
        let outer = (Ipv4Addr::from_bits(!client), Ipv4Addr::from_bits(client));
        let plan = RewritePlan::between(quote.key, key(protocol, originals));
        translate_error(&mut frame, &parsed, &quote, addresses(outer.0, outer.1), &plan);
        sums_are_right(&frame);
        // Half a transport checksum stays as it is, see the test of that.
        let half = usize::from(quoted.len() == header + tcp::CHECKSUM + 1 && tcp);
        prop_assert_eq!(&frame[42..frame.len() - half], &wanted[..wanted.len() - half], "the quote");
        prop_assert_eq!((frame[22], frame[34], frame[35]), (59, kind, code));
        prop_assert_eq!(&frame[38..42], &rest);
        prop_assert_eq!(&frame[26..34], &addresses(outer.0, outer.1).to_le_bytes());
    }

    #[test]
    fn no_bytes_behind_a_right_checksum_make_it_panic(
        kind in prop_oneof![Just(3u8), Just(11), Just(12), Just(4), any::<u8>()],
        rest: [u8; 4],
        noise in proptest::collection::vec(any::<u8>(), 0..100),
        damage in proptest::collection::vec((0usize..60, any::<u8>()), 0..4),
        whole: bool,
    ) {
        let mut quoted = if whole { packet(PROTOCOL_TCP, sent(), 3, &noise) } else { noise };
        for (at, byte) in damage {
            if let Some(at) = quoted.get_mut(at) {
                *at = byte;
            }
        }
        let mut frame = error_frame(kind, 0, rest, ROUTER, &quoted, &[]);
        let parsed = parsed(&frame);
        if let Ok(quote) = quote(&frame, &parsed) {
            let plan = RewritePlan::between(quote.key, key(quote.key.protocol(), original()));
            translate_error(&mut frame, &parsed, &quote, 0, &plan);
            sums_are_right(&frame);
        }
    }
}

#[test]
fn quotes_of_every_length_are_understood_from_the_eighth_transport_byte_on() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let whole = packet(protocol, sent(), 2, b"payload");
        for length in 0..=whole.len() {
            let frame = error_frame(3, 3, [0; 4], ROUTER, &whole[..length], &[]);
            match quoted_by(&frame) {
                Ok(quote) => {
                    assert!(length >= 28 + 8, "{length} bytes");
                    assert_eq!(quote.key, key(protocol, sent()));
                    let has_checksum = length >= 28 + if protocol == PROTOCOL_TCP { 18 } else { 8 };
                    assert_eq!(quote.checksum.is_some(), has_checksum, "{length} bytes");
                }
                Err(error) => {
                    assert!(length < 28 + 8, "{length} bytes");
                    assert_eq!(error, QuoteError::Truncated(length as u16));
                }
            }
        }
    }
}

#[test]
fn half_a_quoted_checksum_stays_and_the_icmp_checksum_is_right() {
    let quoted = &packet(PROTOCOL_TCP, sent(), 0, b"x")[..20 + tcp::CHECKSUM + 1];
    let mut frame = error_frame(3, 3, [0; 4], ROUTER, quoted, &[]);
    let parsed = parsed(&frame);
    let quote = quote(&frame, &parsed).unwrap();
    assert_eq!(quote.checksum, None);
    translate_error(&mut frame, &parsed, &quote, 0, &RewritePlan::between(quote.key, key(PROTOCOL_TCP, original())));
    sums_are_right(&frame);
    let wanted = packet(PROTOCOL_TCP, original(), 0, b"x");
    assert_eq!(frame[42..78], wanted[..36]);
    assert_eq!(frame[78], quoted[36]);
}

#[test]
fn extensions_and_padding_stay_and_hold_no_checksum() {
    // RFC 4884: 128 bytes of original datagram, of which the packet is the first 32; the rest is padding.
    let mut ip_and_8 = packet(PROTOCOL_TCP, sent(), 0, &[]);
    ip_and_8.truncate(28);
    let mut wanted = packet(PROTOCOL_TCP, original(), 0, &[]);
    wanted.truncate(28);
    for quoted in [&mut ip_and_8, &mut wanted] {
        // Of a packet whose sender says that it ends there.
        quoted[2..4].copy_from_slice(&28u16.to_be_bytes());
        ipv4::complete_checksum(&mut quoted[..20]);
        quoted.resize(128, 0);
    }
    let extensions = [0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 0xde, 0xad, 0xbe, 0xef];
    let mut frame = error_frame(11, 0, [0, 32, 0, 0], ROUTER, &ip_and_8, &extensions);
    let parsed = parsed(&frame);
    let quote = quote(&frame, &parsed).unwrap();
    assert_eq!(quote.checksum, None);
    let plan = RewritePlan::between(quote.key, key(PROTOCOL_TCP, original()));
    translate_error(&mut frame, &parsed, &quote, addresses(ROUTER, *original().0.ip()), &plan);
    sums_are_right(&frame);
    assert_eq!(frame[38..], [&[0, 32, 0, 0], &wanted[..], &extensions].concat());
    // Extensions right behind ports are no transport checksum either.
    let frame = error_frame(11, 0, [0, 7, 0, 0], ROUTER, &packet(PROTOCOL_TCP, sent(), 0, &[])[..28], &extensions);
    assert_eq!(quoted_by(&frame).unwrap().checksum, None);
}

#[test]
fn what_is_not_to_be_translated_is_named() {
    let good = packet(PROTOCOL_TCP, sent(), 0, b"x");
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut quoted = good.clone();
        change(&mut quoted);
        ipv4::complete_checksum(&mut quoted[..20]);
        quoted_by(&error_frame(3, 4, [0; 4], ROUTER, &quoted, &[]))
    };
    assert!(with(&|_| {}).is_ok());
    assert!(with(&|quoted| quoted[6] = 0x20).is_ok(), "a first fragment has ports");
    assert_eq!(with(&|quoted| quoted[7] = 1), Err(QuoteError::Fragment));
    assert_eq!(with(&|quoted| quoted[9] = 47), Err(QuoteError::Protocol(47)));
    assert_eq!(with(&|quoted| quoted[0] = 0x44), Err(QuoteError::IpHeader(0x44)));
    assert_eq!(with(&|quoted| quoted[0] = 0x65), Err(QuoteError::IpHeader(0x65)));
    let mut wrong = good.clone();
    wrong[8] = 1;
    assert_eq!(quoted_by(&error_frame(3, 4, [0; 4], ROUTER, &wrong, &[])), Err(QuoteError::IpChecksum));
    assert_eq!(quoted_by(&error_frame(8, 0, [0; 4], ROUTER, &good, &[])), Err(QuoteError::Kind(8)));
    assert_eq!(quoted_by(&error_frame(5, 0, [0; 4], ROUTER, &good, &[])), Err(QuoteError::Kind(5)));
    let mut frame = error_frame(3, 4, [0; 4], ROUTER, &good, &[]);
    *frame.last_mut().unwrap() ^= 1;
    assert_eq!(quoted_by(&frame), Err(QuoteError::Checksum));
    assert_eq!(quoted_by(&ethernet(&good)), Err(QuoteError::Truncated(0)));
}

#[test]
fn an_error_of_our_own_quotes_what_fits_576_bytes() {
    for (payload, length) in [(0, 68), (3, 71), (508, 576), (509, 576), (1400, 576)] {
        let quoted = packet(PROTOCOL_TCP, original(), 0, &vec![7; payload]);
        let mut out = [0xee; 700];
        let written = icmp_error(
            &mut out,
            ROUTER,
            *original().0.ip(),
            3,
            icmp::FRAGMENTATION_NEEDED,
            [0, 0, 0x05, 0xdc],
            &quoted,
        );
        assert_eq!(written, length);
        let ip = Ipv4Slice::from_slice(&out[..written]).unwrap();
        let header = ip.header().to_header();
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
        assert_eq!((header.source, header.destination), (ROUTER.octets(), original().0.ip().octets()));
        assert_eq!((header.time_to_live, header.dont_fragment, out[1]), (64, false, 0xc0));
        let message = Icmpv4Slice::from_slice(ip.payload().payload).unwrap();
        assert_eq!(fold(sum(message.slice())), 0xffff);
        let Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) = message.icmp_type()
        else {
            panic!("{:?}", message.icmp_type());
        };
        assert_eq!((next_hop_mtu, message.payload()), (1500, &quoted[..length - 28]));
        assert!(out[written..].iter().all(|byte| *byte == 0xee));
    }
    assert_eq!(icmp_error(&mut [0; 28], ROUTER, ROUTER, 3, 1, [0; 4], &[1]), 0);
    assert_eq!(icmp_error(&mut [0; 100], ROUTER, ROUTER, 3, 1, [0; 4], &[]), 0);
}

#[test]
fn errors_fragments_and_packets_to_or_from_many_are_not_answered() {
    let answered = |frame: &[u8]| may_answer(&parsed(frame), frame);
    let plain = ethernet(&packet(PROTOCOL_UDP, original(), 0, b"x"));
    assert!(answered(&plain));
    let changed = |at: usize, byte: u8| {
        let mut frame = plain.clone();
        frame[at] = byte;
        ipv4::complete_checksum(&mut frame[14..34]);
        frame
    };
    assert!(!answered(&changed(0, 3)), "an Ethernet group");
    assert!(!answered(&changed(26, 224)), "from a multicast address");
    assert!(!answered(&changed(26, 127)), "from loopback");
    assert!(!answered(&changed(26, 0xf0)), "from a reserved address");
    assert!(!answered(&changed(30, 239)), "to a multicast address");
    assert!(!answered(&changed(21, 1)), "a fragment that is not the first");
    assert!(answered(&changed(20, 0x20)), "a first fragment");
    for (kind, expected) in [(0, true), (3, false), (4, false), (5, false), (8, true), (11, false), (12, false)] {
        let mut frame = error_frame(kind, 0, [0; 4], ROUTER, &[], &[]);
        assert_eq!(answered(&frame), expected, "type {kind}");
        // The same as a first fragment.
        frame[20] = 0x20;
        ipv4::complete_checksum(&mut frame[14..34]);
        assert_eq!(answered(&frame), expected, "type {kind} in a first fragment");
    }
}

/// Sends a segment with these flags and payload, sequence 100 and acknowledgement 900, and reads the reset.
fn reset_for(flags: u8, payload: &[u8]) -> Option<etherparse::TcpHeader> {
    let mut frame = ethernet(&packet(PROTOCOL_TCP, original(), 0, payload));
    frame[38..42].copy_from_slice(&100u32.to_be_bytes());
    frame[42..46].copy_from_slice(&900u32.to_be_bytes());
    frame[47] = flags;
    // Padding of the Ethernet frame is not payload.
    frame.extend([0; 6]);
    let mut out = [0; 60];
    let length = tcp_reset(&mut out, &parsed(&frame), &frame)?;
    let ip = Ipv4Slice::from_slice(&out[..length]).unwrap();
    let header = ip.header().to_header();
    assert_eq!(header.calc_header_checksum(), header.header_checksum);
    let reset = TcpSlice::from_slice(ip.payload().payload).unwrap();
    assert_eq!(reset.calc_checksum_ipv4(header.source, header.destination).unwrap(), reset.checksum());
    let (from, to) = original();
    assert_eq!((header.source, header.destination), (to.ip().octets(), from.ip().octets()));
    assert_eq!((reset.source_port(), reset.destination_port()), (to.port(), from.port()));
    assert_eq!((reset.payload().len(), reset.rst(), header.time_to_live), (0, true, 64));
    Some(reset.to_header())
}

#[test]
fn a_reset_has_the_numbers_that_the_segments_sender_accepts() {
    let numbers = |flags, payload| {
        let header = reset_for(flags, payload).unwrap();
        (header.sequence_number, header.ack.then_some(header.acknowledgment_number))
    };
    assert_eq!(numbers(tcp::ACK, b"data"), (900, None));
    assert_eq!(numbers(tcp::SYN | tcp::ACK, b""), (900, None));
    assert_eq!(numbers(tcp::SYN, b""), (0, Some(101)));
    assert_eq!(numbers(tcp::SYN, b"fast"), (0, Some(105)));
    assert_eq!(numbers(tcp::FIN, b"abc"), (0, Some(104)));
    assert_eq!(numbers(0, b"abc"), (0, Some(103)));
    assert_eq!(reset_for(tcp::RST, b""), None);
    assert_eq!(reset_for(tcp::RST | tcp::ACK, b""), None);
}

#[test]
fn an_echo_request_becomes_its_reply_and_the_checksums_follow() {
    let request =
        error_frame(icmp::ECHO_REQUEST, 0, [0x12, 0x34, 0, 7], original().0.ip().to_owned(), b"ping data", &[]);
    let mut bytes = request.clone();
    let length = bytes.len();
    let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
    let parsed = parse(&frame).unwrap();
    assert!(echo_reply(&mut frame, &parsed));
    sums_are_right(frame.bytes());
    assert_eq!(frame.bytes()[26..34], [&request[30..34], &request[26..30]].concat());
    assert_eq!((frame.bytes()[22], frame.bytes()[34]), (64, icmp::ECHO_REPLY));
    assert_eq!(frame.bytes()[38..], request[38..]);
    assert!(!echo_reply(&mut frame, &parsed), "a reply is no request");

    let mut bytes = request.clone();
    let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
    frame.offload = Offload { flags: Offload::NEEDS_CHECKSUM, checksum_start: 34, checksum_offset: 2, ..Offload::NONE };
    assert!(echo_reply(&mut frame, &parsed));
    assert_eq!(frame.bytes()[36..38], request[36..38], "a partial checksum is still to be made");
}

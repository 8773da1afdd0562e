//! Errors, resets and replies over IPv6 against etherparse and the RFCs.

use std::net::{Ipv6Addr, SocketAddrV6};

use etherparse::{Icmpv6Slice, Ipv6Slice, PacketBuilder, SlicedPacket, TransportSlice};
use postern_wire::icmpv6::complete_checksum;
use postern_wire::ipv6::{self, AddressPair};
use postern_wire::parse::{PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{Frame, Parsed, parse, tcp};
use proptest::prelude::*;

use super::*;
use crate::WidePlan;
use crate::icmp::QuoteError;

type Ends = (SocketAddrV6, SocketAddrV6);

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn packet(tcp: bool, ends: Ends, payload: &[u8]) -> Vec<u8> {
    let ip = PacketBuilder::ipv6(ends.0.ip().octets(), ends.1.ip().octets(), 60);
    let mut bytes = Vec::new();
    if tcp {
        ip.tcp(ends.0.port(), ends.1.port(), 9, 1000).ack(3).write(&mut bytes, payload).unwrap();
    } else {
        ip.udp(ends.0.port(), ends.1.port()).write(&mut bytes, payload).unwrap();
    }
    bytes
}

/// A frame with an ICMPv6 error from a router to `destination` about `quoted`.
fn error_frame(kind: u8, code: u8, rest: [u8; 4], destination: Ipv6Addr, quoted: &[u8]) -> Vec<u8> {
    let router = "2001:db8:9::1".parse().unwrap();
    let mut bytes = [&MAC[..], &MAC[..], &[0x86, 0xdd], &[0; 40], &[kind, code, 0, 0], &rest, quoted].concat();
    let (addresses, length) = (ipv6::pair(router, destination), bytes.len() - 54);
    ipv6::write_header(bytes[14..].first_chunk_mut().unwrap(), &addresses, 58, length as u16, 60);
    complete_checksum(&mut bytes[54..], &addresses);
    bytes
}

fn parsed(bytes: &[u8]) -> Parsed {
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    parse(&Frame::new(&mut bytes, 0, length).unwrap()).unwrap()
}

fn pair(ends: Ends) -> AddressPair {
    ipv6::pair(*ends.0.ip(), *ends.1.ip())
}

fn plan(from: Ends, to: Ends) -> WidePlan {
    let ports = |ends: Ends| u32::from(ends.0.port().swap_bytes()) | u32::from(ends.1.port().swap_bytes()) << 16;
    WidePlan::between((&pair(from), ports(from)), (&pair(to), ports(to)))
}

fn checksum_is_right(packet: &[u8]) {
    let ip = Ipv6Slice::from_slice(packet).unwrap();
    let (source, destination) = (ip.header().source(), ip.header().destination());
    let icmp = Icmpv6Slice::from_slice(ip.payload().payload).unwrap();
    assert!(icmp.is_checksum_valid(source, destination), "the ICMPv6 checksum is wrong");
}

fn socket() -> impl Strategy<Value = SocketAddrV6> {
    (any::<u128>(), any::<u16>()).prop_map(|(ip, port)| SocketAddrV6::new(Ipv6Addr::from_bits(ip), port, 0, 0))
}

fn ends() -> Ends {
    let socket = |text: &str| text.parse().unwrap();
    (socket("[2001:db8::1]:4000"), socket("[2001:db8::2]:80"))
}

proptest! {
    #[test]
    fn a_translated_icmp_error_of_ipv6_is_the_one_about_the_packet_that_the_sender_sent(
        tcp: bool,
        ends in (socket(), socket()),
        originals in (socket(), socket()),
        outer in (any::<u128>(), any::<u128>()),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        (cut, (kind, code), rest) in (8usize..300, prop_oneof![Just((1u8, 4u8)), Just((2, 0)), Just((3, 0)), Just((4, 1))], any::<[u8; 4]>()),
    ) {
        let make = |ends: Ends| {
            let mut packet = packet(tcp, ends, &payload);
            packet.truncate(40 + cut);
            packet
        };
        let (quoted, wanted) = (make(ends), make(originals));
        let rest = if kind == 2 || kind == 4 { rest } else { [0; 4] };
        let mut frame = error_frame(kind, code, rest, *ends.0.ip(), &quoted);
        let parsed = parsed(&frame);
        let quote = quote6(&frame, &parsed).unwrap();
        let protocol = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        prop_assert_eq!((quote.key.protocol(), quote.key.source_port()), (protocol, ends.0.port()));
        prop_assert_eq!((quote.addresses, quote.kind, quote.code), (pair(ends), kind, code));
        let outer = ipv6::pair(Ipv6Addr::from_bits(outer.0), Ipv6Addr::from_bits(outer.1));
        translate_error6(&mut frame, &parsed, &quote, &outer, &plan(ends, originals));
        checksum_is_right(&frame[14..]);
        // Half a transport checksum stays as it is.
        let half = usize::from(quoted.len() == 40 + tcp::CHECKSUM + 1 && tcp);
        prop_assert_eq!(&frame[62..frame.len() - half], &wanted[..wanted.len() - half], "the quote");
        prop_assert_eq!((frame[21], frame[54], frame[55], &frame[58..62]), (59, kind, code, &rest[..]));
        prop_assert_eq!(ipv6::addresses(&frame, 14), Some(&outer));
    }

    #[test]
    fn no_bytes_behind_a_right_checksum_of_icmpv6_make_it_panic(
        kind in prop_oneof![Just(1u8), Just(2), Just(3), Just(4), any::<u8>()],
        rest: [u8; 4],
        noise in proptest::collection::vec(any::<u8>(), 0..100),
        damage in proptest::collection::vec((0usize..80, any::<u8>()), 0..4),
        whole: bool,
    ) {
        let mut quoted = if whole { packet(true, ends(), &noise) } else { noise };
        for (at, byte) in damage {
            if let Some(at) = quoted.get_mut(at) {
                *at = byte;
            }
        }
        let mut frame = error_frame(kind, 0, rest, Ipv6Addr::LOCALHOST, &quoted);
        let parsed = parsed(&frame);
        if let Ok(quote) = quote6(&frame, &parsed) {
            prop_assert!(quote.end <= parsed.end && u32::from(quote.l4) + 8 <= quote.end);
            translate_error6(&mut frame, &parsed, &quote, &[7; 32], &plan(ends(), ends()));
            checksum_is_right(&frame[14..]);
        }
    }

    #[test]
    fn a_reset_of_ipv6_is_accepted_by_whoever_sent_the_segment(
        ends in (socket(), socket()), sequence: u32, acknowledgement: u32, ack: bool, syn: bool, fin: bool,
        payload in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut header = etherparse::TcpHeader::new(ends.0.port(), ends.1.port(), sequence, 1000);
        (header.acknowledgment_number, header.ack, header.syn, header.fin) = (acknowledgement, ack, syn, fin);
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(MAC, MAC).ipv6(ends.0.ip().octets(), ends.1.ip().octets(), 60)
            .tcp_header(header).write(&mut bytes, &payload).unwrap();
        let mut out = [0; RESET6_LENGTH];
        let written = tcp_reset6(&mut out, &parsed(&bytes), &bytes);
        let single = |ip: &Ipv6Addr| !ip.is_multicast() && !ip.is_unspecified() && !ip.is_loopback();
        prop_assert_eq!(written.is_some(), single(ends.0.ip()) && single(ends.1.ip()));
        if written.is_none() {
            return Ok(());
        }
        let reset = SlicedPacket::from_ip(&out).unwrap();
        let Some(TransportSlice::Tcp(reset)) = reset.transport else { panic!("no TCP") };
        let (source, destination) = (ends.1.ip().octets(), ends.0.ip().octets());
        prop_assert_eq!(reset.calc_checksum_ipv6(source, destination).unwrap(), reset.checksum());
        prop_assert_eq!((&out[8..24], &out[24..40]), (&source[..], &destination[..]));
        prop_assert!(reset.rst());
        let length = payload.len() as u32 + u32::from(syn) + u32::from(fin);
        let wanted = if ack { (acknowledgement, 0, false) } else { (0, sequence.wrapping_add(length), true) };
        prop_assert_eq!((reset.sequence_number(), reset.acknowledgment_number(), reset.ack()), wanted);
    }
}

#[test]
fn an_icmp_echo_of_ipv6_is_turned_around_with_a_right_checksum() {
    let (client, endpoint) = ends();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(MAC, MAC)
        .ipv6(client.ip().octets(), endpoint.ip().octets(), 3)
        .icmpv6_echo_request(7, 9)
        .write(&mut bytes, b"ping!")
        .unwrap();
    let parsed = parsed(&bytes);
    let length = bytes.len();
    let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
    assert!(echo_reply6(&mut frame, &parsed));
    assert!(!echo_reply6(&mut frame, &parsed), "a reply is not answered");
    checksum_is_right(&bytes[14..]);
    assert_eq!((bytes[54], bytes[21], &bytes[62..]), (129, 64, &b"ping!"[..]));
    assert_eq!(ipv6::addresses(&bytes, 14), Some(&pair((endpoint, client))));
}

#[test]
fn an_icmp_error_of_ipv6_quotes_what_fits_into_the_least_mtu() {
    let quoted = packet(false, ends(), &[7; 2000]);
    let mut out = [0; 3000];
    let length = icmpv6_error(&mut out, &pair(ends()), (2, 0), 1500, &quoted);
    assert_eq!(length, 1280);
    checksum_is_right(&out[..length]);
    assert_eq!((&out[40..42], &out[44..48], &out[48..1280]), (&[2, 0][..], &[0, 0, 5, 0xdc][..], &quoted[..1232]));
    assert_eq!(icmpv6_error(&mut out[..48], &pair(ends()), (2, 0), 1500, &quoted), 0);
}

#[test]
fn icmp_errors_of_ipv6_answer_neither_errors_nor_what_was_sent_to_many() {
    let (client, endpoint) = ends();
    let may = |bytes: &[u8]| may_answer6(&parsed(bytes), bytes);
    let to = |source: SocketAddrV6, destination: SocketAddrV6| {
        [&MAC[..], &MAC, &[0x86, 0xdd], &packet(false, (source, destination), b"x")].concat()
    };
    let at = |text: &str| SocketAddrV6::new(text.parse().unwrap(), 5, 0, 0);
    assert!(may(&to(client, endpoint)));
    for (source, destination) in
        [(at("::"), endpoint), (at("ff02::1"), endpoint), (at("::1"), endpoint), (client, at("ff02::1"))]
    {
        assert!(!may(&to(source, destination)));
    }
    let mut group = to(client, endpoint);
    group[0] = 0x33;
    assert!(!may(&group));
    let quoted = packet(false, ends(), b"x");
    assert!(!may(&error_frame(3, 0, [0; 4], *endpoint.ip(), &quoted)));
    assert!(!may(&error_frame(127, 0, [0; 4], *endpoint.ip(), &quoted)));
    assert!(!may(&error_frame(137, 0, [0; 4], *endpoint.ip(), &quoted)));
    assert!(may(&error_frame(128, 0, [0; 4], *endpoint.ip(), &quoted)));
}

#[test]
fn extensions_of_an_icmp_error_of_ipv6_are_told_from_its_quote() {
    let quoted = [packet(false, ends(), b"12345678").as_slice(), &[0; 72]].concat();
    assert_eq!(quoted.len(), 128);
    let with = [&quoted[..], &[0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4]].concat();
    let frame = error_frame(1, 4, [16, 0, 0, 0], *ends().0.ip(), &with);
    let quote = quote6(&frame, &parsed(&frame)).unwrap();
    assert_eq!((quote.end, quote.extensions), (62 + 56, Some(62 + 128)));
    let frame = error_frame(2, 0, [16, 0, 0, 0], *ends().0.ip(), &with);
    assert_eq!(quote6(&frame, &parsed(&frame)).unwrap().extensions, None, "in a packet too big it is the MTU");
}

#[test]
fn what_an_icmp_error_of_ipv6_does_not_quote_is_named() {
    let read = |quoted: &[u8], kind: u8| {
        let frame = error_frame(kind, 0, [0; 4], *ends().0.ip(), quoted);
        quote6(&frame, &parsed(&frame)).unwrap_err()
    };
    let whole = packet(true, ends(), b"");
    assert_eq!(read(&whole, 128), QuoteError::Kind(128));
    assert_eq!(read(&whole[..47], 1), QuoteError::Truncated(47));
    let mut other = whole.clone();
    other[6] = 58;
    assert_eq!(read(&other, 1), QuoteError::Protocol(58));
    other[0] = 0x45;
    assert_eq!(read(&other, 1), QuoteError::IpHeader(0x45));
    let mut later = whole.clone();
    later.splice(40..40, [6, 0, 0, 8, 1, 2, 3, 4]);
    later[6] = 44;
    assert_eq!(read(&later, 1), QuoteError::Fragment);
    let mut frame = error_frame(1, 0, [0; 4], *ends().0.ip(), &whole);
    frame[60] ^= 1;
    assert_eq!(quote6(&frame, &parsed(&frame)), Err(QuoteError::Checksum));
}

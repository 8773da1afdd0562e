use std::net::SocketAddrV4;

use postern_wire::{AttachmentIndex, parse};
use proptest::prelude::*;

use super::*;

const START: u32 = 5000;

/// A segment with these options, which fill whole words.
fn segment(flags: u8, (sequence, acknowledgement): (u32, u32), options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(1234, 80, sequence, 777);
    header.set_options_raw(options).unwrap();
    header.acknowledgment_number = acknowledgement;
    header.syn = flags & tcp::SYN != 0;
    header.ack = flags & tcp::ACK != 0;
    header.fin = flags & tcp::FIN != 0;
    header.psh = flags & tcp::PSH != 0;
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp_header(header)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// What `change` makes of a frame: with a right checksum it is as if the new segment had been sent so, and with a partial one
/// the same but for the field, which holds the pseudo-header's sum.
fn changed(bytes: &[u8], change: impl Fn(&mut Frame<'_>, &mut Parsed)) -> Vec<u8> {
    let apply = |bytes: &[u8], offload: Offload| {
        let mut buffer = vec![0; 160 + bytes.len()];
        buffer[160..].copy_from_slice(bytes);
        let mut frame = Frame::new(&mut buffer, 160, bytes.len()).unwrap();
        frame.offload = offload;
        let mut parsed = parse(&frame).unwrap();
        change(&mut frame, &mut parsed);
        assert_eq!(parsed.end as usize, frame.len());
        assert_eq!(frame.offload.checksum_start, offload.checksum_start);
        frame.bytes().to_vec()
    };
    let pseudo = |bytes: &[u8]| {
        let length = u16::from_be_bytes([bytes[16], bytes[17]]) - 20;
        let addresses = u64::from_le_bytes(*bytes[26..].first_chunk::<8>().unwrap());
        postern_wire::checksum::fold(pseudo_header(addresses, PROTOCOL_TCP, length))
    };
    let whole = apply(bytes, Offload::NONE);
    let ip = etherparse::Ipv4Slice::from_slice(&whole[14..]).unwrap();
    assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
    let tcp = etherparse::TcpSlice::from_slice(ip.payload().payload).unwrap();
    let wanted = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap();
    assert_eq!(tcp.checksum(), wanted, "complete checksum");
    let mut partial = bytes.to_vec();
    partial[50..52].copy_from_slice(&pseudo(bytes).to_le_bytes());
    let offload = Offload { flags: Offload::NEEDS_CHECKSUM, checksum_start: 34, checksum_offset: 16, ..Offload::NONE };
    let mut partial = apply(&partial, offload);
    let found = u16::from_le_bytes([partial[50], partial[51]]);
    assert_eq!(found % 0xffff, pseudo(&partial) % 0xffff, "partial checksum");
    partial[50..52].copy_from_slice(&whole[50..52]);
    assert_eq!(partial, whole);
    whole
}

proptest! {
    #[test]
    fn inserted_data_is_as_if_the_sender_had_sent_it(
        data in proptest::collection::vec(any::<u8>(), 1..124), at in any::<u32>(), padding in 0usize..8,
    ) {
        let ack = segment(tcp::ACK, (START, 9), &[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4], b"");
        let mut padded = ack.clone();
        padded.resize(ack.len() + padding, 0xee);
        let found = changed(&padded, |frame, parsed| assert!(insert(frame, parsed, &data, at, 16)));
        let wanted = segment(tcp::ACK | tcp::PSH, (at, 9), &[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4], &data);
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn a_stripped_segment_is_as_if_it_had_carried_nothing(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let found = changed(&segment(tcp::SYN, (START, 0), &[2, 4, 5, 180], &data), |frame, parsed| {
            strip_payload(frame, parsed);
            set_sequence(frame, parsed, START - 100);
        });
        prop_assert_eq!(found, segment(tcp::SYN, (START - 100, 0), &[2, 4, 5, 180], b""));
    }

    #[test]
    fn a_wrong_checksum_stays_wrong(flip in 1u16.., data in proptest::collection::vec(any::<u8>(), 0..50)) {
        let mut bytes = segment(tcp::ACK, (START, 9), &[], b"");
        let right = u16::from_le_bytes([bytes[50], bytes[51]]);
        bytes[50..52].copy_from_slice(&(right ^ flip).to_le_bytes());
        let length = bytes.len();
        let mut buffer = [vec![0; 200], bytes].concat();
        let mut frame = Frame::new(&mut buffer, 200, length).unwrap();
        let mut parsed = parse(&frame).unwrap();
        prop_assert!(insert(&mut frame, &mut parsed, &data, 1, 0));
        let ip = etherparse::Ipv4Slice::from_slice(&frame.bytes()[14..]).unwrap();
        let tcp = etherparse::TcpSlice::from_slice(ip.payload().payload).unwrap();
        let right = tcp.calc_checksum_ipv4([10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        // Zero and all ones are the same number.
        prop_assume!(flip != 0xffff);
        prop_assert_ne!(tcp.checksum() % 0xffff, right % 0xffff);
    }
}

#[test]
fn numbers_below_the_start_are_lifted_and_all_others_stay() {
    for (number, lifted) in [(START - 100, START), (START - 1, START), (START, START), (START + 1, START + 1)] {
        let found = changed(&segment(tcp::ACK, (1, number), &[], b"x"), |frame, parsed| {
            assert_eq!(lift_acknowledgement(frame, parsed, START, 100), number < START);
        });
        assert_eq!(found, segment(tcp::ACK, (1, lifted), &[], b"x"));
    }
    // An acknowledgement of something else altogether.
    let other = segment(tcp::ACK, (1, START - 101), &[], b"");
    assert_eq!(changed(&other, |frame, parsed| assert!(!lift_acknowledgement(frame, parsed, START, 100))), other);
    // Numbers wrap.
    let wrapped = segment(tcp::ACK, (1, u32::MAX - 50), &[], b"");
    let found = changed(&wrapped, |frame, parsed| assert!(lift_acknowledgement(frame, parsed, 40, 100)));
    assert_eq!(found, segment(tcp::ACK, (1, 40), &[], b""));
}

/// Options with SACK blocks, as Linux lays them out.
fn sack(blocks: &[(u32, u32)]) -> Vec<u8> {
    let mut options = vec![1, 1, 5, blocks.len() as u8 * 8 + 2];
    for (first, behind) in blocks {
        options.extend(first.to_be_bytes());
        options.extend(behind.to_be_bytes());
    }
    options
}

#[test]
fn sack_blocks_below_the_start_go_and_those_above_it_stay() {
    let lifted = |blocks: &[(u32, u32)]| {
        let bytes = segment(tcp::ACK, (1, START), &sack(blocks), b"");
        changed(&bytes, |frame, parsed| lift_sack_blocks(frame, parsed, START, 100))[54..].to_vec()
    };
    let above = [(START + 10, START + 20), (START + 30, START + 40)];
    assert_eq!(lifted(&above), sack(&above));
    // The inserted bytes came twice.
    assert_eq!(lifted(&[(START - 100, START)]), [1; 12]);
    let mut wanted = sack(&above);
    wanted.extend([1; 8]);
    assert_eq!(lifted(&[(START - 100, START), above[0], above[1]]), wanted);
    // One that begins in them.
    assert_eq!(lifted(&[(START - 100, START + 5)]), sack(&[(START, START + 5)]));
    // A segment without blocks, and one whose blocks are cut short.
    let plain = segment(tcp::ACK, (1, START), &[5, 6, 0, 0, 0, 1, 0, 0], b"");
    assert_eq!(changed(&plain, |frame, parsed| lift_sack_blocks(frame, parsed, START, 100)), plain);
}

#[test]
fn a_segment_with_data_or_without_room_takes_no_more() {
    let bytes = segment(tcp::ACK, (1, 2), &[], b"x");
    assert_eq!(changed(&bytes, |frame, parsed| assert!(!insert(frame, parsed, b"y", 1, 0))), bytes);
    let bytes = segment(tcp::ACK, (1, 2), &[], b"");
    assert_eq!(changed(&bytes, |frame, parsed| assert!(!insert(frame, parsed, b"y", 1, 160))), bytes);
}

#[test]
fn a_segment_of_our_own_is_what_etherparse_would_send() {
    let ends: (SocketAddrV4, SocketAddrV4) = ("10.0.0.1:1234".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let key = FlowKey::new(AttachmentIndex(0), PROTOCOL_TCP, ends.0, ends.1);
    for timestamps in [None, Some((0x102, 0x304))] {
        let own = Segment {
            sequence: 7,
            acknowledgement: 9,
            flags: tcp::ACK | tcp::PSH,
            window: 777,
            timestamps,
            data: b"hello",
        };
        let mut out = [0; 200];
        let length = write_segment(&mut out, key, &own);
        let options: &[u8] = if timestamps.is_some() { &[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4] } else { &[] };
        let mut wanted = segment(tcp::ACK | tcp::PSH, (7, 9), options, b"hello")[14..].to_vec();
        // Etherparse leaves DF clear.
        wanted[6] = out[6];
        wanted[10..12].copy_from_slice(&out[10..12]);
        assert_eq!(out[..length], wanted);
        assert_eq!(write_segment(&mut out[..length - 1], key, &own), 0);
    }
}

#[test]
fn what_a_segment_says_is_read_from_it() {
    let mut bytes = segment(tcp::ACK, (7, 9), &[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4], b"data");
    let length = bytes.len();
    let frame = Frame::new(&mut bytes, 0, length).unwrap();
    let parsed = parse(&frame).unwrap();
    assert_eq!((sequence(&frame, &parsed), acknowledgement(&frame, &parsed)), (7, 9));
    assert_eq!((window(&frame, &parsed), payload(&frame, &parsed)), (777, 4));
    assert_eq!(timestamps(&frame, &parsed), Some((0x102, 0x304)));
}

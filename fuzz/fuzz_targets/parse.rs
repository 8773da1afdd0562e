//! Whatever bytes and offload state a device delivers, parsing does not panic, and every offset that it returns lies
//! within the frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_wire::frame::NO_VLAN;
use postern_wire::{Frame, Offload, PacketKind, parse};

/// Ten bytes of offload state and two of a VLAN tag beside the frame stand before the frame.
const STATE: usize = 12;

fuzz_target!(|input: &[u8]| {
    let Some((state, bytes)) = input.split_at_checked(STATE) else { return };
    let word = |at: usize| u16::from_le_bytes([state[at], state[at + 1]]);
    let mut buffer = bytes.to_vec();
    let Some(mut frame) = Frame::new(&mut buffer, 0, bytes.len()) else { return };
    frame.offload = Offload {
        flags: state[0],
        segmentation_type: state[1],
        header_length: word(2),
        segment_size: word(4),
        checksum_start: word(6),
        checksum_offset: word(8),
    };
    frame.vlan = if word(10) & 1 == 0 { NO_VLAN } else { word(10) >> 1 };
    let length = frame.len();
    let Ok(parsed) = parse(&frame) else { return };
    assert!(parsed.vlan < 4096);
    assert!(usize::from(parsed.l3) <= length && parsed.end as usize <= length);
    if parsed.kind != PacketKind::Arp {
        let header = if parsed.key.is_wide() { 40 } else { 20 };
        assert!(parsed.l3 + header <= parsed.l4 && u32::from(parsed.l4) <= parsed.end);
    }
    if parsed.kind == PacketKind::Fragment && parsed.key.is_wide() {
        assert!(parsed.l3 + 48 <= parsed.l4);
    }
    let transport = parsed.end - u32::from(parsed.l4);
    match parsed.kind {
        PacketKind::Tcp => assert!(transport >= 20),
        PacketKind::Udp => assert!(transport >= 8),
        _ => {}
    }
});

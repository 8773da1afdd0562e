//! `struct virtio_net_hdr` (virtio 1.2 §5.1.6) as `PACKET_VNET_HDR` carries it: ten bytes, host byte order, in front of the
//! Ethernet header. (`PACKET_VNET_HDR_SZ` = 12 is not used: behind a ring the kernel puts that header two bytes off.)

use postern_wire::frame::NO_VLAN;
use postern_wire::{Frame, Offload, Segmentation};

use crate::vlan;

/// Its length in bytes.
pub(crate) const HEADER: usize = 10;

/// What stands in front of the frame that begins at `start`.
#[inline]
pub(crate) fn read_before(buffer: &[u8], start: usize) -> Offload {
    let mut bytes = [0; HEADER];
    bytes.copy_from_slice(&buffer[start - HEADER..start]);
    read(bytes)
}

/// Reads it.
#[inline]
const fn read(bytes: [u8; HEADER]) -> Offload {
    let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
    Offload {
        flags,
        segmentation_type: kind,
        header_length: u16::from_ne_bytes([h0, h1]),
        segment_size: u16::from_ne_bytes([s0, s1]),
        checksum_start: u16::from_ne_bytes([c0, c1]),
        checksum_offset: u16::from_ne_bytes([o0, o1]),
    }
}

/// What to send in front of this frame.
#[inline]
fn header_of(frame: &Frame<'_>) -> [u8; HEADER] {
    let offload = &frame.offload;
    let mut bytes = [0; HEADER];
    if offload.is_partial() {
        bytes[0] = Offload::NEEDS_CHECKSUM;
        bytes[6..8].copy_from_slice(&offload.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&offload.checksum_offset.to_ne_bytes());
    }
    if offload.is_segmented() {
        bytes[1] = offload.segmentation_type;
        bytes[2..4].copy_from_slice(&linear_length(frame).to_ne_bytes());
        bytes[4..6].copy_from_slice(&offload.segment_size.to_ne_bytes());
    }
    bytes
}

/// The frame as it is sent: tagged, with its offload state in front; `None` if there is no room for that.
#[inline]
pub(crate) fn with_offload_state<'f>(frame: &'f mut Frame<'_>) -> Option<&'f mut [u8]> {
    if frame.vlan != NO_VLAN {
        let tag = frame.vlan;
        if !vlan::insert(frame, vlan::ETHERTYPE, tag) {
            return None;
        }
        frame.vlan = NO_VLAN;
    }
    let header = header_of(frame);
    let (buffer, start, length) = frame.parts_mut();
    let bytes = buffer.get_mut(start.checked_sub(HEADER)?..start + length)?;
    bytes[..HEADER].copy_from_slice(&header);
    Some(bytes)
}

/// How many bytes of a super-frame the kernel is to lay out contiguously: its headers through L4. What the kernel gave on
/// receive is no measure: it may be the whole frame, for which the kernel would then look for contiguous pages.
fn linear_length(frame: &Frame<'_>) -> u16 {
    let offload = &frame.offload;
    if !offload.is_partial() {
        return offload.header_length;
    }
    let start = offload.checksum_start;
    let l4 = match offload.segmentation() {
        Segmentation::UdpL4 => 8,
        _ => {
            let data_offset = frame.bytes().get(usize::from(start) + 12).map_or(0, |byte| u16::from(byte >> 4) * 4);
            data_offset.max(20)
        }
    };
    start.saturating_add(l4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_writing_and_reading() {
        let mut buffer = [0u8; 200];
        buffer[34 + 12] = 0x80;
        let mut frame = Frame::new(&mut buffer, 0, 200).unwrap();
        frame.offload = Offload {
            flags: Offload::NEEDS_CHECKSUM,
            segmentation_type: Offload::TCP_V4 | Offload::ECN,
            header_length: 60_000,
            segment_size: 1448,
            checksum_start: 34,
            checksum_offset: 16,
        };
        // The header length becomes 14 + 20 + 32, however long the received linear part was.
        assert_eq!(read(header_of(&frame)), Offload { header_length: 66, ..frame.offload });
    }

    #[test]
    fn an_ordinary_frame_with_a_checked_checksum_is_sent_with_a_zero_header() {
        let mut buffer = [0u8; 60];
        let mut frame = Frame::new(&mut buffer, 0, 60).unwrap();
        frame.offload = Offload { flags: Offload::CHECKSUM_VALID, header_length: 54, ..Offload::NONE };
        assert_eq!(header_of(&frame), [0; HEADER]);
    }

    #[test]
    fn a_udp_super_frame_has_eight_bytes_of_l4_header() {
        let mut buffer = [0xffu8; 100];
        let mut frame = Frame::new(&mut buffer, 0, 100).unwrap();
        frame.offload = Offload {
            flags: Offload::NEEDS_CHECKSUM,
            segmentation_type: Offload::UDP_L4,
            segment_size: 20,
            checksum_start: 34,
            checksum_offset: 6,
            header_length: 0,
        };
        assert_eq!(read(header_of(&frame)).header_length, 42);
    }
}

//! The 802.1Q tag: where the kernel keeps it beside a frame, and where it stands in one.

use postern_wire::Frame;
use postern_wire::frame::NO_VLAN;

/// EtherType of a customer tag.
pub(crate) const ETHERTYPE: u16 = 0x8100;
/// Both MAC addresses, behind which the tag stands.
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// Notes the tag that the kernel took out of a received frame, as it always does with the outer one. One that
/// [`Frame::vlan`] cannot hold (another EtherType, or a tag that looks like "none") goes back in front of the frame's
/// EtherType.
#[cold]
pub(crate) fn set(frame: &mut Frame<'_>, ethertype: Option<u16>, tci: u16) {
    let ethertype = ethertype.unwrap_or(ETHERTYPE);
    if ethertype == ETHERTYPE && tci != NO_VLAN {
        frame.vlan = tci;
    } else {
        let inserted = insert(frame, ethertype, tci);
        debug_assert!(inserted, "a received frame has room in front");
    }
}

/// Puts a tag into the frame, and moves its offload offsets; false, with nothing changed, if there is no room in front.
pub(crate) fn insert(frame: &mut Frame<'_>, ethertype: u16, tci: u16) -> bool {
    if frame.len() < ADDRESSES || !frame.resize_front(0, TAG) {
        return false;
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(TAG..TAG + ADDRESSES, 0);
    bytes[ADDRESSES..ADDRESSES + 2].copy_from_slice(&ethertype.to_be_bytes());
    bytes[ADDRESSES + 2..ADDRESSES + TAG].copy_from_slice(&tci.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::Offload;

    #[test]
    fn a_tag_goes_behind_the_addresses_and_the_checksum_start_moves() {
        let mut buffer: Vec<u8> = (0..40).collect();
        let mut frame = Frame::new(&mut buffer, 8, 32).unwrap();
        frame.offload = Offload { flags: Offload::NEEDS_CHECKSUM, checksum_start: 20, ..Offload::NONE };
        assert!(insert(&mut frame, ETHERTYPE, 0x2064));
        let expected: Vec<u8> = (8..20).chain([0x81, 0, 0x20, 0x64]).chain(20..40).collect();
        assert_eq!(frame.bytes(), expected);
        assert_eq!(frame.offload.checksum_start, 24);
        assert!(insert(&mut frame, ETHERTYPE, 1));
        assert!(!insert(&mut frame, ETHERTYPE, 1), "there is no room for a third");
    }
}

//! A frame as steering sees it: what the Ethernet header says, and the bytes from the network header on.

use postern_wire::Frame;
use postern_wire::frame::NO_VLAN;
use postern_wire::parse::ETHERTYPE_VLAN;

/// What a frame carries. The same three values come from a frame with its tag in it and from one whose tag the kernel
/// took out, and the kernel's programs derive them in the same way.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// 802.1Q VLAN identifier, 0 for none or for a priority tag.
    pub vlan: u16,
    /// EtherType behind the tag.
    pub ethertype: u16,
    /// The frame from its network header on, Ethernet padding included.
    pub bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads an Ethernet frame. `tag` is the tag control information of an 802.1Q tag that was taken out of it; without
    /// one, a tag in the frame counts. `None` for a frame that ends inside its Ethernet header or tag.
    #[inline]
    #[must_use]
    pub fn from_ethernet(frame: &'a [u8], tag: Option<u16>) -> Option<Self> {
        let (header, bytes) = frame.split_at_checked(14)?;
        let ethertype = be16(header, 12);
        match tag {
            Some(tag) => Some(Self { vlan: tag & 0x0fff, ethertype, bytes }),
            None if ethertype != ETHERTYPE_VLAN => Some(Self { vlan: 0, ethertype, bytes }),
            None => {
                let (tag, bytes) = bytes.split_at_checked(4)?;
                Some(Self { vlan: be16(tag, 0) & 0x0fff, ethertype: be16(tag, 2), bytes })
            }
        }
    }

    /// Reads a frame that a device lent.
    #[inline]
    #[must_use]
    pub fn from_frame(frame: &'a Frame<'_>) -> Option<Self> {
        Self::from_ethernet(frame.bytes(), (frame.vlan != NO_VLAN).then_some(frame.vlan))
    }
}

/// Two big-endian bytes at `at`, which the caller has checked to be there.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes at `at`, which the caller has checked to be there.
#[inline]
pub(crate) fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

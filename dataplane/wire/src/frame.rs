//! A frame: bytes in a buffer with room in front, and the offload state that travels with them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Index of a port (an interface that the gateway uses) in the order of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct PortIndex(pub u16);

/// The room, in bytes, that every device leaves in front of a received frame.
pub const HEADROOM: usize = 128;

/// No 802.1Q tag travels beside the frame.
pub const NO_VLAN: u16 = 0xffff;

/// How the kernel or the NIC is asked to cut a super-frame (virtio 1.2 §5.1.6, `virtio_net_hdr.gso_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segmentation {
    /// One ordinary frame.
    None,
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    TcpV4,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    TcpV6,
    /// UDP segmentation offload (`VIRTIO_NET_HDR_GSO_UDP_L4`): each segment is a datagram of its own.
    UdpL4,
    /// A type that Postern does not know; such a frame is dropped and counted.
    Unknown(u8),
}

/// The offload state of a frame: the ten bytes of `struct virtio_net_hdr` (virtio 1.2 §5.1.6) in host byte order, as
/// AF_PACKET's `PACKET_VNET_HDR` carries it.
///
/// Layout: flags (1), segmentation type (1), header length (2), segment size (2), checksum start (2), checksum
/// offset (2). Offsets count from the first byte of the Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Offload {
    /// [`Offload::NEEDS_CHECKSUM`], [`Offload::CHECKSUM_VALID`].
    pub flags: u8,
    /// Raw segmentation type; [`Offload::segmentation`] decodes it.
    pub segmentation_type: u8,
    /// Length of all headers together, a hint for how much must be contiguous.
    pub header_length: u16,
    /// Payload bytes of each segment but the last.
    pub segment_size: u16,
    /// Where the sum that is still to be made starts.
    pub checksum_start: u16,
    /// Where the checksum field is, from `checksum_start`.
    pub checksum_offset: u16,
}

impl Offload {
    /// The L4 checksum field holds only the folded pseudo-header sum; the rest is to be added (`CHECKSUM_PARTIAL`).
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// The device has checked the L4 checksum (`CHECKSUM_UNNECESSARY`).
    pub const CHECKSUM_VALID: u8 = 2;
    /// Bit in the segmentation type: the first segment carries CWR (`VIRTIO_NET_HDR_GSO_ECN`).
    pub const ECN: u8 = 0x80;
    /// `VIRTIO_NET_HDR_GSO_TCPV4`.
    pub const TCP_V4: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_TCPV6`.
    pub const TCP_V6: u8 = 4;
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`.
    pub const UDP_L4: u8 = 5;
    /// An ordinary frame with complete checksums.
    pub const NONE: Self = Self {
        flags: 0,
        segmentation_type: 0,
        header_length: 0,
        segment_size: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Whether the L4 checksum is only partly there.
    #[inline]
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.flags & Self::NEEDS_CHECKSUM != 0
    }

    /// Whether this is a super-frame.
    #[inline]
    #[must_use]
    pub const fn is_segmented(&self) -> bool {
        self.segmentation_type & !Self::ECN != 0
    }

    /// The segmentation type.
    #[must_use]
    pub const fn segmentation(&self) -> Segmentation {
        match self.segmentation_type & !Self::ECN {
            0 => Segmentation::None,
            Self::TCP_V4 => Segmentation::TcpV4,
            Self::TCP_V6 => Segmentation::TcpV6,
            Self::UDP_L4 => Segmentation::UdpL4,
            other => Segmentation::Unknown(other),
        }
    }

    /// Moves every offset when `added` bytes (negative: removed) are put in front of the frame's network header.
    #[inline]
    pub fn shift(&mut self, added: isize) {
        let shift = added as u16;
        if self.is_partial() {
            self.checksum_start = self.checksum_start.wrapping_add(shift);
        }
        if self.header_length != 0 {
            self.header_length = self.header_length.wrapping_add(shift);
        }
    }
}

/// A frame that is lent by a device (or a test): bytes in a buffer, with room in front to prepend headers.
///
/// The first byte is the Ethernet destination address. Length and start may change within the buffer.
#[derive(Debug)]
pub struct Frame<'a> {
    buffer: &'a mut [u8],
    start: u32,
    length: u32,
    /// Segmentation and checksum state.
    pub offload: Offload,
    /// The port on which the frame came in.
    pub ingress: PortIndex,
    /// The tag control information of an 802.1Q tag that the device took out of the frame, or [`NO_VLAN`].
    pub vlan: u16,
}

impl<'a> Frame<'a> {
    /// A frame of `length` bytes that begins at `start` of `buffer`.
    ///
    /// `None` if it would not lie within the buffer, or the buffer is larger than `u32` can count.
    #[inline]
    #[must_use]
    pub fn new(buffer: &'a mut [u8], start: usize, length: usize) -> Option<Self> {
        let end = start.checked_add(length)?;
        if end > buffer.len() {
            return None;
        }
        Some(Self {
            start: u32::try_from(start).ok()?,
            length: u32::try_from(length).ok()?,
            buffer,
            offload: Offload::NONE,
            ingress: PortIndex(0),
            vlan: NO_VLAN,
        })
    }

    /// The frame's bytes.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let start = self.start as usize;
        &self.buffer[start..start + self.length as usize]
    }

    /// The frame's bytes, to be changed.
    #[inline]
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.start as usize;
        &mut self.buffer[start..start + self.length as usize]
    }

    /// The first `N` bytes, where the frame has so many.
    #[inline(always)]
    #[must_use]
    pub fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        if self.len() < N {
            return None;
        }
        let start = self.start as usize;
        self.buffer.get(start..start + N)?.first_chunk()
    }

    /// The first `N` bytes, where the frame has so many, to be changed, and the offload state.
    #[inline(always)]
    #[must_use]
    pub fn head_mut<const N: usize>(&mut self) -> Option<(&mut [u8; N], &Offload)> {
        if self.len() < N {
            return None;
        }
        let start = self.start as usize;
        Some((self.buffer.get_mut(start..start + N)?.first_chunk_mut()?, &self.offload))
    }

    /// Length in bytes, without frame check sequence.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether the frame has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes of room in front of the frame.
    #[inline]
    #[must_use]
    pub const fn headroom(&self) -> usize {
        self.start as usize
    }

    /// The whole buffer and where the frame begins in it: for devices, which put their own header in front.
    #[inline]
    #[must_use]
    pub fn parts_mut(&mut self) -> (&mut [u8], usize, usize) {
        (self.buffer, self.start as usize, self.length as usize)
    }

    /// Replaces the first `old` bytes by `new` bytes of room and moves the offload offsets with them.
    ///
    /// Returns false, with nothing changed, if the frame is shorter than `old` or the room in front is too small.
    #[inline]
    #[must_use]
    pub fn resize_front(&mut self, old: usize, new: usize) -> bool {
        if old == new {
            return old <= self.length as usize;
        }
        let start = self.start as usize + old;
        if old > self.length as usize || start < new {
            return false;
        }
        self.start = (start - new) as u32;
        self.length = self.length - old as u32 + new as u32;
        self.offload.shift(new as isize - old as isize);
        true
    }

    /// Cuts the frame to `length` bytes; a longer `length` changes nothing. Takes padding and trailers off.
    #[inline]
    pub fn truncate(&mut self, length: usize) {
        if length < self.len() {
            self.length = length as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resizing_the_front_moves_the_checksum_start_and_keeps_the_payload() {
        let mut buffer = [0u8; 64];
        buffer[20 + 14] = 0x45;
        let mut frame = Frame::new(&mut buffer, 20, 40).unwrap();
        frame.offload =
            Offload { flags: Offload::NEEDS_CHECKSUM, checksum_start: 34, checksum_offset: 16, ..Offload::NONE };
        assert!(frame.resize_front(14, 18));
        assert_eq!((frame.len(), frame.headroom(), frame.offload.checksum_start), (44, 16, 38));
        assert_eq!(frame.bytes()[18], 0x45);
        assert!(!frame.resize_front(18, 60));
        assert_eq!(frame.len(), 44);
    }

    #[test]
    fn a_head_is_the_first_bytes_of_a_frame_that_has_them() {
        let mut buffer = [0, 1, 2, 3, 4, 5, 6, 7];
        let mut frame = Frame::new(&mut buffer, 2, 4).unwrap();
        assert_eq!(frame.head(), Some(&[2, 3, 4, 5]));
        assert_eq!(frame.head_mut(), Some((&mut [2, 3], &Offload::NONE)));
        assert_eq!(frame.head::<5>(), None);
        assert_eq!(frame.head_mut::<5>(), None);
    }

    #[test]
    fn a_frame_outside_its_buffer_is_refused() {
        let mut buffer = [0u8; 8];
        assert!(Frame::new(&mut buffer, 4, 5).is_none());
        assert!(Frame::new(&mut buffer, usize::MAX, 2).is_none());
    }
}

//! The TPACKET_V2 receive ring: memory that the kernel and we own slot by slot.
//!
//! A slot holds `struct tpacket2_hdr`, `struct sockaddr_ll`, room in front, the `virtio_net_hdr`, the frame. Whose it is says
//! the first word of its header: 0 the kernel's, else ours.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::socket::PacketSocket;
use super::virtio;
use crate::device::DeviceError;

/// What we ask the kernel to leave in front of the frame, in bytes. It adds 24 behind its own header, so that a frame begins
/// 142 bytes behind that header, and its IP header at a multiple of 16.
const RESERVE: u32 = 118;
/// From the slot's start to the first byte that is ours to lend: `tpacket2_hdr` padded to 16, and `sockaddr_ll`.
const HEADER: usize = libc::TPACKET2_HDRLEN;
/// Where the kernel puts an Ethernet frame in its slot: net/packet/af_packet.c, `tpacket_rcv`.
const FRAME: usize = (HEADER + 16).next_multiple_of(16) + RESERVE as usize + virtio::HEADER - 14;
/// Preferred size of a block: the kernel looks for so much contiguous memory, and falls back to pages.
const BLOCK: usize = 256 << 10;

const _: () = assert!(FRAME - HEADER >= postern_wire::frame::HEADROOM);

/// A receive ring, mapped.
#[derive(Debug)]
pub(super) struct Ring {
    start: NonNull<u8>,
    length: usize,
    block: usize,
    slots_per_block: u32,
    slot: usize,
    slots: u32,
}

// SAFETY: needed because a `NonNull` is not `Send`; sound because the mapping belongs to no thread.
unsafe impl Send for Ring {}

/// A slot's header: what the kernel says of its frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotHeader {
    /// `TP_STATUS_…` bits.
    pub(super) status: u32,
    /// Length of the frame on the wire, in bytes.
    pub(super) length: u32,
    /// Bytes of it in the slot.
    pub(super) captured: u32,
    /// Where it begins in the slot.
    pub(super) offset: u16,
    /// 802.1Q tag, if the status says so.
    pub(super) vlan_tci: u16,
    /// Its EtherType, if the status says so.
    pub(super) vlan_tpid: u16,
}

impl Ring {
    /// Asks for a ring of about `slots` slots for frames of an interface with this MTU, on a socket that is not yet bound.
    pub(super) fn map(socket: &PacketSocket, slots: u32, mtu: u32) -> Result<Self, DeviceError> {
        // Ethernet, one tag that stayed inside.
        let slot = slot_size(FRAME + 14 + 4 + mtu as usize);
        let block = BLOCK.max(slot.next_multiple_of(4096));
        let slots_per_block = (block / slot) as u32;
        let blocks = slots.div_ceil(slots_per_block).max(1);
        let slots = blocks * slots_per_block;

        let version = libc::tpacket_versions::TPACKET_V2 as i32;
        socket.set_packet(libc::PACKET_VERSION, &version, "choose TPACKET_V2")?;
        socket.set_packet(libc::PACKET_RESERVE, &RESERVE, "reserve room in front of frames")?;
        socket.set_packet(libc::PACKET_VNET_HDR, &1i32, "ask for offload state (PACKET_VNET_HDR)")?;
        socket.set_packet(libc::PACKET_COPY_THRESH, &1i32, "ask for frames larger than a slot")?;
        let request = libc::tpacket_req {
            tp_block_size: block as u32,
            tp_block_nr: blocks,
            tp_frame_size: slot as u32,
            tp_frame_nr: slots,
        };
        socket.set_packet(libc::PACKET_RX_RING, &request, "allocate the receive ring")?;

        let length = block * blocks as usize;
        let error = |source| socket.error("map the receive ring", source);
        let size = length.try_into().map_err(|_| error(Errno::EINVAL))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: needed to reach the ring; sound because the kernel chooses a free address, and the socket has a ring of
        // exactly this size.
        let start =
            unsafe { mmap(None, size, access, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE, socket.as_fd(), 0) };
        let start = start.map_err(error)?.cast();
        Ok(Self { start, length, block, slots_per_block, slot, slots })
    }

    /// How many slots there are.
    pub(super) const fn slots(&self) -> u32 {
        self.slots
    }

    /// The slot behind `slot`, at the end the first.
    #[inline]
    pub(super) const fn after(&self, slot: u32) -> u32 {
        if slot + 1 == self.slots { 0 } else { slot + 1 }
    }

    #[inline]
    fn slot(&self, slot: u32) -> *mut u8 {
        assert!(slot < self.slots);
        let offset =
            (slot / self.slots_per_block) as usize * self.block + (slot % self.slots_per_block) as usize * self.slot;
        // SAFETY: needed to address a slot of mapped memory; sound because `slot < slots`, so that the offset is within
        // `blocks * block` bytes.
        unsafe { self.start.as_ptr().add(offset) }
    }

    #[inline]
    fn status(&self, slot: u32) -> &AtomicU32 {
        // SAFETY: needed because the kernel changes this word beside us; sound because it is mapped as long as `self`
        // lives, aligned (slots are multiples of 16 from a page's start), and only ever accessed atomically.
        unsafe { AtomicU32::from_ptr(self.slot(slot).cast::<u32>()) }
    }

    /// The header of a slot, if the slot is ours.
    #[inline]
    pub(super) fn received(&self, slot: u32) -> Option<SlotHeader> {
        let status = self.status(slot).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: needed to read what the kernel wrote; sound because the slot is ours since the acquiring load, it begins
        // with a `tpacket2_hdr` of integers, and slots are aligned to 16.
        let header = unsafe { self.slot(slot).cast::<libc::tpacket2_hdr>().read() };
        Some(SlotHeader {
            status,
            length: header.tp_len,
            captured: header.tp_snaplen,
            offset: header.tp_mac,
            vlan_tci: header.tp_vlan_tci,
            vlan_tpid: header.tp_vlan_tpid,
        })
    }

    /// Everything of a slot behind the kernel's headers, and where the frame begins in it; `None` if the header does not
    /// describe a frame with offload state within the slot.
    ///
    /// # Safety
    /// The slot is ours ([`Ring::received`]), and the result is dead before the slot is given back or lent again.
    #[inline]
    pub(super) unsafe fn lend<'a>(&self, slot: u32, header: &SlotHeader) -> Option<(&'a mut [u8], usize)> {
        let start = usize::from(header.offset).checked_sub(HEADER)?;
        let room = self.slot - HEADER;
        if start < virtio::HEADER || start + header.captured as usize > room {
            return None;
        }
        // SAFETY: needed to lend the frame without a copy; sound because these bytes are within the slot, the kernel does
        // not write to a slot that is ours, and the caller keeps the result from outliving that.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.slot(slot).add(HEADER), room) };
        Some((bytes, start))
    }

    /// Gives a slot back to the kernel.
    #[inline]
    pub(super) fn give_back(&self, slot: u32) {
        self.status(slot).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: needed to give the mapping back; sound because whatever was lent from it borrowed its owner.
        let unmapped = unsafe { munmap(self.start.cast(), self.length) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// The smallest slot for `bytes` bytes: 2, 4 KB, then multiples of 1 KB, so that little of a block is wasted.
const fn slot_size(bytes: usize) -> usize {
    if bytes <= 2048 {
        2048
    } else if bytes <= 4096 {
        4096
    } else {
        bytes.next_multiple_of(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_usual_mtus_are_small() {
        assert_eq!(FRAME, 194);
        assert_eq!(slot_size(FRAME + 18 + 1500), 2048);
        assert_eq!(slot_size(FRAME + 18 + 9000), 9216);
    }
}

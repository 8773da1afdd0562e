//! Buffers that the kernel takes for frames: memory, and the ring by which the kernel is given them
//! (io_uring_register_buf_ring(3)).

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;

use super::ring::errno;
use crate::af_packet::large::STRIDE;
use crate::region::{Region, RegionError, RegionOptions};

/// Bytes of an entry of the ring, `struct io_uring_buf`: address (8), length (4), buffer (2), of the first entry the ring's
/// tail (2).
const ENTRY: usize = 16;
const TAIL: usize = 14;

/// The group by which requests name the buffers.
pub(super) const GROUP: u16 = 0;

/// The buffers, and the ring of those that the kernel may take.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: Region,
    entries: Region,
    count: u16,
    /// Entries that were written since the beginning, modulo 65,536.
    tail: u16,
}

impl Buffers {
    /// So many buffers, a power of two.
    pub(super) fn new(count: u16) -> Result<Self, RegionError> {
        let memory = Region::anonymous(usize::from(count) * STRIDE, RegionOptions::default())?;
        let entries = Region::anonymous(
            (usize::from(count) * ENTRY).next_multiple_of(4096),
            RegionOptions { populate: true, huge_pages: false },
        )?;
        let mut buffers = Self { memory, entries, count, tail: 0 };
        (0..count).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    /// Makes them known to the kernel, which writes to them from then on.
    ///
    /// # Safety
    /// They live for as long as a request of this ring may take one.
    pub(super) unsafe fn register(&self, uring: &IoUring) -> Result<(), nix::errno::Errno> {
        let address = self.entries.start().as_ptr() as u64;
        // SAFETY: needed to register the ring of buffers; sound because it has `count` entries from a page's start on, which
        // are memory of buffers of our own, and by this function's own condition.
        unsafe { uring.submitter().register_buf_ring_with_flags(address, self.count, GROUP, 0) }
            .map_err(|error| errno(&error))
    }

    /// Gives a buffer back to the kernel.
    #[inline]
    pub(super) fn give_back(&mut self, buffer: u16) {
        let at = usize::from(self.tail & (self.count - 1)) * ENTRY;
        let address = self.buffer(buffer).as_ptr() as u64;
        // SAFETY: needed because the kernel reads these entries beside us; sound because `at` is within the ring, it is aligned
        // to 16, the kernel does not look at an entry behind the tail, and the last two bytes, which of the first entry are
        // the tail, are left as they are.
        unsafe {
            let entry = self.entries.start().as_ptr().add(at);
            entry.cast::<u64>().write(address);
            entry.add(8).cast::<u32>().write(STRIDE as u32);
            entry.add(12).cast::<u16>().write(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: needed because the kernel reads this word beside us; sound because it is mapped as long as `self` lives,
        // aligned, and only ever accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(self.entries.start().as_ptr().add(TAIL).cast()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Lends a buffer that the kernel has filled.
    ///
    /// # Safety
    /// A completion has named the buffer, and the result is dead before the buffer is given back.
    #[inline]
    pub(super) unsafe fn lend<'a>(&self, buffer: u16) -> &'a mut [u8] {
        // SAFETY: needed to lend the frame without a copy; sound because the buffer is within the memory, the kernel does not
        // write to a buffer that it was not given back, and the caller keeps the result from outliving that.
        unsafe { std::slice::from_raw_parts_mut(self.buffer(buffer).as_ptr(), STRIDE) }
    }

    fn buffer(&self, buffer: u16) -> NonNull<u8> {
        assert!(buffer < self.count, "there is no buffer {buffer}");
        // SAFETY: needed to address a buffer; sound because the memory has `count` of them.
        unsafe { self.memory.start().add(usize::from(buffer) * STRIDE) }
    }
}

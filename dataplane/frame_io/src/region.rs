//! Memory regions of fixed size: zeroed, page-aligned, outside the heap.

use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Why a region cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} a memory region of {length} bytes: {source}")]
pub struct RegionError {
    /// What was tried.
    pub operation: &'static str,
    /// Bytes asked for.
    pub length: usize,
    /// The kernel's answer.
    pub source: Errno,
}

/// How a region's pages come into being.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegionOptions {
    /// All pages at once, so that no page fault comes later.
    pub populate: bool,
    /// Ask for huge pages. The kernel may ignore it, and does for memfds unless `shmem_enabled` allows it.
    pub huge_pages: bool,
}

/// A zeroed region of memory of fixed size, freed with its owner.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    length: usize,
    memfd: Option<OwnedFd>,
}

// SAFETY: needed because a `NonNull` is not `Send`; sound because a region is plain memory that belongs to no thread.
unsafe impl Send for Region {}
// SAFETY: needed for the same reason; sound because `&Region` gives only shared access to the bytes.
unsafe impl Sync for Region {}

impl Region {
    /// A region that no other process can have.
    ///
    /// # Errors
    /// If `length` is 0 or the memory cannot be had.
    pub fn anonymous(length: usize, options: RegionOptions) -> Result<Self, RegionError> {
        let error = |source| RegionError { operation: "map", length, source };
        let size = NonZeroUsize::new(length).ok_or_else(|| error(Errno::EINVAL))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: needed to have memory outside the heap; sound because the kernel chooses a free address.
        let start = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE) };
        Self::finish(start.map_err(error)?, length, None, options)
    }

    /// A region in a memfd of this name, which another process can adopt through [`Region::memfd`].
    ///
    /// # Errors
    /// If `length` is 0 or the memory cannot be had.
    pub fn in_memfd(name: &CStr, length: usize, options: RegionOptions) -> Result<Self, RegionError> {
        let error = |operation| move |source| RegionError { operation, length, source };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memfd = memfd_create(name, flags).map_err(error("create"))?;
        let size = i64::try_from(length).map_err(|_| error("size")(Errno::EFBIG))?;
        nix::unistd::ftruncate(&memfd, size).map_err(error("size"))?;
        // Nobody can make it shorter under us, which would end in SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).map_err(error("seal"))?;
        Self::adopt(memfd, length, options)
    }

    /// The region in a memfd that some process made with [`Region::in_memfd`]; its bytes are what they were. That process
    /// must have let go of it: memory that two processes write is not a region.
    ///
    /// # Errors
    /// If `length` is 0, or the memfd is shorter than `length` (`ERANGE`), could become so (`EPERM`), or cannot be mapped.
    pub fn adopt(memfd: OwnedFd, length: usize, options: RegionOptions) -> Result<Self, RegionError> {
        let error = |operation| move |source| RegionError { operation, length, source };
        let size = NonZeroUsize::new(length).ok_or_else(|| error("map")(Errno::EINVAL))?;
        let existing = nix::sys::stat::fstat(&memfd).map_err(error("inspect"))?.st_size;
        if u64::try_from(existing).unwrap_or(0) < length as u64 {
            return Err(error("adopt")(Errno::ERANGE));
        }
        let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(error("inspect"))?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(error("adopt")(Errno::EPERM));
        }
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: needed to reach the memfd's pages; sound because the kernel chooses a free address, and the file is at
        // least as long as the mapping and sealed against shrinking.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, &memfd, 0) };
        Self::finish(start.map_err(error("map"))?, length, Some(memfd), options)
    }

    fn finish(
        start: NonNull<std::ffi::c_void>,
        length: usize,
        memfd: Option<OwnedFd>,
        options: RegionOptions,
    ) -> Result<Self, RegionError> {
        let region = Self { start: start.cast(), length, memfd };
        if options.huge_pages {
            // SAFETY: needed to advise on the mapping; sound because the advice does not change its contents. A kernel
            // without huge pages refuses it, which changes nothing, so the result is not looked at.
            let _ = unsafe { madvise(start, length, MmapAdvise::MADV_HUGEPAGE) };
        }
        if options.populate {
            // Behind the advice, so that the pages that come are huge ones.
            // SAFETY: needed to fault pages in; sound because it does not change their contents.
            unsafe { madvise(start, length, MmapAdvise::MADV_POPULATE_WRITE) }.map_err(|source| RegionError {
                operation: "populate",
                length,
                source,
            })?;
        }
        Ok(region)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: needed to lend mapped memory; sound because `start` is mapped readable for `length` bytes as long as
        // `self` lives, and the shared borrow keeps `bytes_mut` away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The bytes, to be changed.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: needed to lend mapped memory; sound because `start` is mapped writable for `length` bytes as long as
        // `self` lives, and the exclusive borrow keeps everyone else away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// Lends the bytes for the rest of the process's life.
    #[must_use]
    pub fn leak(self) -> &'static mut [u8] {
        let mut region = std::mem::ManuallyDrop::new(self);
        // SAFETY: needed to make the lifetime `'static`; sound because the region is never dropped, and `self` is gone, so
        // that nobody else can lend the bytes.
        unsafe { std::slice::from_raw_parts_mut(region.start.as_mut(), region.length) }
    }

    /// The memfd behind the region, if it has one.
    #[must_use]
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(AsFd::as_fd)
    }

    /// Where the region begins, for rings of this crate that lend parts of it.
    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: needed to give the memory back; sound because every borrow of the bytes has ended with `self`.
        let unmapped = unsafe { munmap(self.start.cast(), self.length) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zeroed_and_keeps_what_is_written() {
        for options in [RegionOptions::default(), RegionOptions { populate: true, huge_pages: true }] {
            let mut region = Region::anonymous(1 << 20, options).unwrap();
            assert!(region.bytes().iter().all(|byte| *byte == 0));
            region.bytes_mut()[1_000_000] = 7;
            assert_eq!(region.bytes()[1_000_000], 7);
        }
    }

    #[test]
    fn a_region_in_a_memfd_can_be_adopted_with_its_contents() {
        let mut region = Region::in_memfd(c"flows", 8192, RegionOptions::default()).unwrap();
        region.bytes_mut()[8191] = 9;
        let memfd = region.memfd().unwrap().try_clone_to_owned().unwrap();
        drop(region);
        let adopted = Region::adopt(memfd, 8192, RegionOptions::default()).unwrap();
        assert_eq!(adopted.bytes()[8191], 9);
        let memfd = adopted.memfd().unwrap().try_clone_to_owned().unwrap();
        let error = Region::adopt(memfd, 8193, RegionOptions::default()).unwrap_err();
        assert_eq!(error.source, Errno::ERANGE);
    }

    #[test]
    fn a_memfd_that_could_shrink_is_not_adopted() {
        let memfd = memfd_create(c"other", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&memfd, 4096).unwrap();
        assert_eq!(Region::adopt(memfd, 4096, RegionOptions::default()).unwrap_err().source, Errno::EPERM);
        let region = Region::in_memfd(c"flows", 4096, RegionOptions::default()).unwrap();
        assert_eq!(nix::unistd::ftruncate(region.memfd().unwrap(), 0), Err(Errno::EPERM));
    }

    #[test]
    fn a_region_without_bytes_is_refused() {
        assert!(Region::anonymous(0, RegionOptions::default()).is_err());
    }

    #[test]
    fn a_leaked_region_stays() {
        let bytes = Region::anonymous(4096, RegionOptions::default()).unwrap().leak();
        bytes[0] = 1;
        assert_eq!(bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 1);
    }
}

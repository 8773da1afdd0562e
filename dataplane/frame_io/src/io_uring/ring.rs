//! A ring of requests and completions for one socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread::{self, ThreadId};

use io_uring::types::Fixed;
use io_uring::{IoUring, cqueue, squeue};
use nix::errno::Errno;

use crate::af_packet::socket::PacketSocket;
use crate::device::DeviceError;

/// The socket of a ring: the only file that is registered with it.
pub(super) const SOCKET: Fixed = Fixed(0);

/// How long the kernel's thread looks for work before it sleeps, in milliseconds.
const KERNEL_THREAD_IDLE: u32 = 5;

/// A ring. Unless a kernel thread serves it, all its requests come from one thread, the first that uses it: it is made
/// disabled, so that it may be made by another.
pub(super) struct Ring {
    uring: IoUring,
    kernel_thread: bool,
    user: Option<ThreadId>,
}

impl Ring {
    /// A ring for so many requests and completions, powers of two, at a time, with `socket` registered.
    pub(super) fn open(
        socket: &PacketSocket,
        requests: u32,
        completions: u32,
        kernel_thread: bool,
    ) -> Result<Self, DeviceError> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(completions);
        if kernel_thread {
            builder.setup_sqpoll(KERNEL_THREAD_IDLE);
        } else {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_r_disabled();
        }
        let uring = builder.build(requests).map_err(|error| refused(socket, errno(&error)))?;
        let registered = uring.submitter().register_files(&[socket.as_fd().as_raw_fd()]);
        registered.map_err(|error| socket.error("register a socket with io_uring", errno(&error)))?;
        Ok(Self { uring, kernel_thread, user: None })
    }

    /// Whether a thread of the kernel serves it.
    pub(super) const fn has_kernel_thread(&self) -> bool {
        self.kernel_thread
    }

    /// Makes the calling thread the one that uses the ring, at its first use. The kernel would refuse the requests of
    /// another, and they would wait in the ring while what they point to is gone: so it is asked for before any is made.
    ///
    /// # Errors
    /// `EEXIST` if another thread uses the ring, or what the kernel said.
    #[inline]
    pub(super) fn enable(&mut self) -> Result<(), Errno> {
        let current = thread::current().id();
        match self.user {
            Some(user) if user == current => Ok(()),
            Some(_) => Err(Errno::EEXIST),
            None => {
                if !self.kernel_thread {
                    self.uring.submitter().register_enable_rings().map_err(|error| errno(&error))?;
                }
                self.user = Some(current);
                Ok(())
            }
        }
    }

    /// The ring itself.
    pub(super) const fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// Adds a request; false if there is no room.
    ///
    /// # Safety
    /// What the request points to stays valid until its last completion.
    #[inline]
    pub(super) unsafe fn push(&mut self, request: &squeue::Entry) -> bool {
        // SAFETY: needed to hand a request to the kernel; sound by this function's own condition.
        unsafe { self.uring.submission().push(request) }.is_ok()
    }

    /// Takes the next completion.
    #[inline]
    pub(super) fn completion(&mut self) -> Option<cqueue::Entry> {
        self.uring.completion().next()
    }

    /// Whether there is something that only [`Ring::enter`] makes the kernel do.
    #[inline]
    pub(super) fn has_work(&mut self) -> bool {
        let requests = self.uring.submission();
        requests.taskrun() || requests.cq_overflow() || !requests.is_empty()
    }

    /// Hands new requests to the kernel, lets it do what it has to do, and waits for `completions` of them.
    #[inline]
    pub(super) fn enter(&self, completions: usize) -> Result<usize, Errno> {
        self.uring.submitter().submit_and_wait(completions).map_err(|error| errno(&error))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: needed because the crate lends its descriptor as a number; sound because the ring that owns it is borrowed
        // for as long.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("kernel_thread", &self.kernel_thread).finish_non_exhaustive()
    }
}

/// The errno of an error that came from the kernel.
pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn refused(socket: &PacketSocket, source: Errno) -> DeviceError {
    let reason = match source {
        Errno::ENOSYS => "this kernel has no io_uring",
        Errno::EPERM | Errno::EACCES => {
            "it is not permitted here (sysctl kernel.io_uring_disabled, or a seccomp filter of the container)"
        }
        Errno::EINVAL => "this kernel's io_uring is too old: 6.1 is needed",
        Errno::ENOMEM => "there is no memory for a ring (ulimit -l)",
        Errno::EMFILE | Errno::ENFILE => "there are too many open files",
        _ => "the kernel refused a ring",
    };
    DeviceError::NoIoUring { interface: socket.interface().to_owned(), reason, source }
}

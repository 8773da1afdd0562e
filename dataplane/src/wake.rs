//! Waking a thread that sleeps in the kernel, at the price of one atomic load while it is awake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes one sleeper. The sleeper calls [`Wake::about_to_sleep`], looks once more whether there is work, sleeps on the
/// descriptor, and calls [`Wake::awake`]. Whoever makes work calls [`Wake::wake`] behind it. Then no work is slept over.
#[derive(Debug)]
pub struct Wake {
    event: EventFd,
    sleeping: AtomicBool,
}

impl Wake {
    /// An eventfd and a flag.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, sleeping: AtomicBool::new(false) })
    }

    /// Wakes the sleeper if it sleeps or is about to.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.ring();
        }
    }

    /// Says that whatever is found from here on to be missing will be slept on.
    pub fn about_to_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends the sleep and empties the eventfd.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        // Nothing to read means that something else ended the sleep.
        let _ = self.event.read();
    }

    #[cold]
    fn ring(&self) {
        // It fails only when the counter is full, and then the descriptor is readable already.
        let _ = self.event.write(1);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn readable(wake: &Wake) -> bool {
        poll(&mut [PollFd::new(wake.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn only_a_sleeper_is_rung_and_only_once() {
        let wake = Wake::new().unwrap();
        wake.wake();
        assert!(!readable(&wake));
        wake.about_to_sleep();
        wake.wake();
        wake.wake();
        assert!(readable(&wake));
        wake.awake();
        assert!(!readable(&wake));
    }
}

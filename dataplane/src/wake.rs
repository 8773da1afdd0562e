//! Waking a thread that sleeps in the kernel, at the price of one atomic load while it is awake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use postern_frame_io::poll::{Waker, sleep};
use tokio::sync::Notify;

/// Wakes one sleeper. The sleeper calls [`Wake::about_to_sleep`], looks once more whether there is work, sleeps on the
/// descriptor, and calls [`Wake::awake`]. Whoever makes work calls [`Wake::wake`] behind it. Then no work is slept over.
#[derive(Debug)]
pub struct Wake {
    waker: Waker,
    sleeping: AtomicBool,
}

impl Wake {
    /// An eventfd and a flag.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { waker: Waker::new()?, sleeping: AtomicBool::new(false) })
    }

    /// Wakes the sleeper if it sleeps or is about to.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    /// Says that whatever is found from here on to be missing will be slept on.
    pub fn about_to_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeps until [`Wake::wake`], until one of `descriptors` is readable, or for `timeout`; false if it was time.
    pub fn sleep<'d>(&self, descriptors: impl IntoIterator<Item = BorrowedFd<'d>>, timeout: Duration) -> bool {
        sleep(descriptors, Some(&self.waker), timeout)
    }

    /// Ends the sleep and empties the eventfd.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        self.waker.reset();
    }
}

/// Wakes the control-side thread, which sleeps in tokio; otherwise as [`Wake`].
#[derive(Debug, Default)]
pub struct Bell {
    notify: Notify,
    sleeping: AtomicBool,
}

impl Bell {
    /// Wakes the sleeper if it sleeps or is about to.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.notify.notify_one();
        }
    }

    /// Says that whatever is found from here on to be missing will be slept on.
    pub fn about_to_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends when [`Bell::wake`] was called.
    pub async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Ends the sleep.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(wake: &Wake) -> bool {
        sleep([wake.as_fd()], None, Duration::ZERO)
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

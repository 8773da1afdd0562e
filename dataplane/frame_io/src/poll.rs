//! Sleeping until one of several devices has frames, another thread wakes us, or time is up.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Most descriptors that are slept on together, the waker's included.
pub const MOST_DESCRIPTORS: usize = 64;

/// Wakes a thread that sleeps in [`sleep`]. Clones wake the same thread.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    /// A waker that nobody has used yet.
    ///
    /// # Errors
    /// If there are too many open files.
    pub fn new() -> Result<Self, Errno> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// Ends the sleep that goes on, or else the next one. Never blocks.
    pub fn wake(&self) {
        // Fails only if the counter is full, and then the sleeper will wake all the same.
        let _ = self.event.write(1);
    }

    /// Makes the next sleep last; true if there was a wake since the last call.
    pub fn reset(&self) -> bool {
        self.event.read().is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Sleeps until one of `descriptors` is readable or has an error, or the waker is used, at most for `timeout` (nanoseconds
/// count). Returns whether there was anything; early returns are allowed.
///
/// A packet device says readable as long as buffers are lent: ask it until it returns 0 before.
///
/// # Panics
/// If there are [`MOST_DESCRIPTORS`] descriptors or more.
pub fn sleep<'d>(
    descriptors: impl IntoIterator<Item = BorrowedFd<'d>>,
    waker: Option<&Waker>,
    timeout: Duration,
) -> bool {
    let unused = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let mut entries = [unused; MOST_DESCRIPTORS];
    let mut count = 0;
    let mut add = |descriptor: BorrowedFd<'_>| {
        entries[count] = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        count += 1;
    };
    descriptors.into_iter().for_each(&mut add);
    if let Some(waker) = waker {
        add(waker.as_fd());
    }
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // SAFETY: needed to make a system call; sound because `entries` has `count` elements, and all pointers live through the
    // call.
    let ready =
        unsafe { libc::ppoll(entries.as_mut_ptr(), count as libc::nfds_t, &raw const timeout, std::ptr::null()) };
    if let Some(waker) = waker.filter(|_| ready > 0 && entries[count - 1].revents != 0) {
        waker.reset();
    }
    ready > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_wake_ends_one_sleep_also_when_it_came_before() {
        let waker = Waker::new().unwrap();
        waker.clone().wake();
        assert!(sleep([], Some(&waker), Duration::from_secs(10)));
        assert!(!sleep([], Some(&waker), Duration::from_millis(1)));
        let other = waker.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            other.wake();
        });
        let start = Instant::now();
        assert!(sleep([], Some(&waker), Duration::from_secs(10)));
        assert!(start.elapsed() < Duration::from_secs(5));
        thread.join().unwrap();
    }

    #[test]
    fn a_sleep_of_less_than_a_millisecond_ends() {
        let start = Instant::now();
        assert!(!sleep([], None, Duration::from_micros(200)));
        assert!(start.elapsed() >= Duration::from_micros(200));
    }

    #[test]
    fn a_readable_descriptor_ends_the_sleep() {
        let (waker, device) = (Waker::new().unwrap(), Waker::new().unwrap());
        device.wake();
        assert!(sleep([device.as_fd()], Some(&waker), Duration::from_secs(10)));
        assert!(!waker.reset());
        assert!(device.reset());
    }
}

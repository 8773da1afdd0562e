//! Sleeping in the kernel until a port has frames or another thread rings.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::link::WorkerDevices;
use crate::wake::Wake;

/// How long is slept where a device has nothing to sleep on.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(1);

/// An epoll instance with every port's descriptor and the worker's eventfd.
#[derive(Debug)]
pub(super) struct Sleeper {
    epoll: Epoll,
    longest: Duration,
}

impl Sleeper {
    pub(super) fn new(devices: &WorkerDevices, wake: &Wake) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let mut longest = Duration::MAX;
        for device in &devices.receive {
            match device.poll_fd() {
                Some(descriptor) => epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, 0))?,
                None => longest = WITHOUT_DESCRIPTOR,
            }
        }
        Ok(Self { epoll, longest })
    }

    /// Sleeps for at most `longest`; true if something ended the sleep before.
    pub(super) fn sleep(&self, longest: Duration) -> io::Result<bool> {
        let milliseconds = u16::try_from(longest.min(self.longest).as_millis()).unwrap_or(u16::MAX);
        match self.epoll.wait(&mut [EpollEvent::empty(); 8], EpollTimeout::from(milliseconds)) {
            Ok(events) => Ok(events > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

//! What a device is: one half that receives bursts of frames, one half that transmits them.
//!
//! The halves are apart, so that a worker can receive on one port and send the same buffers out of another without a copy:
//!
//! ```
//! use postern_frame_io::{Burst, DeviceError, Receive, Transmit, TransmitReport};
//!
//! fn step(from: &mut dyn Receive, to: &mut dyn Transmit, report: &mut TransmitReport) -> Result<usize, DeviceError> {
//!     let mut burst = Burst::new();
//!     let received = from.receive(&mut burst)?;
//!     // … a verdict for each of burst.frames_mut() …
//!     let selected: Vec<u8> = (0..received as u8).collect(); // a worker keeps this array
//!     to.transmit(burst.frames_mut(), &selected, report);
//!     Ok(report.accepted())
//! }
//! ```

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use postern_wire::Frame;

/// Largest number of frames in a burst.
pub const BURST: usize = 64;

/// The receiving half of a device.
pub trait Receive: Send {
    /// Adds received frames to `burst` until it is full or nothing more is there, and returns how many. Never blocks.
    ///
    /// The buffers stay lent until the burst is let go; the next call gives them back to the kernel. So a burst is a
    /// fresh [`Burst`] for each call, and a device that is to be slept on is first asked until it returns 0.
    ///
    /// # Errors
    /// [`DeviceError::Down`] once when the interface goes down, [`DeviceError::Gone`] once when it is deleted; the device
    /// can be asked again in both cases.
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError>;

    /// Gives lent buffers back to the kernel before the next [`Receive::receive`] would.
    fn release(&mut self);

    /// What was received and lost since the device was made.
    fn statistics(&mut self) -> ReceiveStatistics;

    /// What to sleep on until frames are there; `None` if the device is always ready.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// The transmitting half of a device.
pub trait Transmit: Send {
    /// Sends `frames[selected[0]]`, `frames[selected[1]]`, … in this order, in as few kernel calls as the device allows,
    /// and writes one result for each into `report`. Never blocks for longer than a millisecond.
    ///
    /// The device writes into the room in front of a frame, and puts the tag of [`Frame::vlan`] into it: what is to leave
    /// untagged must have [`NO_VLAN`](postern_wire::frame::NO_VLAN) there. A frame is not to be used after it was sent.
    ///
    /// # Panics
    /// If more than [`BURST`] frames are selected, or one that does not exist.
    fn transmit(&mut self, frames: &mut [Frame<'_>], selected: &[u8], report: &mut TransmitReport);

    /// What the device can carry.
    fn capabilities(&self) -> Capabilities;

    /// What was sent since the device was made.
    fn statistics(&self) -> TransmitStatistics;
}

/// Up to [`BURST`] frames, without memory of its own beyond their descriptions.
pub struct Burst<'a> {
    frames: [MaybeUninit<Frame<'a>>; BURST],
    length: usize,
}

impl<'a> Burst<'a> {
    /// No frames.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self { frames: [const { MaybeUninit::uninit() }; BURST], length: 0 }
    }

    /// Adds a frame; gives it back if the burst is full.
    ///
    /// # Errors
    /// The frame.
    #[inline]
    pub fn push(&mut self, frame: Frame<'a>) -> Result<(), Frame<'a>> {
        match self.frames.get_mut(self.length) {
            Some(place) => {
                place.write(frame);
                self.length += 1;
                Ok(())
            }
            None => Err(frame),
        }
    }

    /// Lets all frames go.
    #[inline]
    pub const fn clear(&mut self) {
        self.length = 0;
    }

    /// Lets the frames from this position on go.
    #[inline]
    pub const fn truncate(&mut self, length: usize) {
        if length < self.length {
            self.length = length;
        }
    }

    /// How many frames there are.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there is none.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether there is no room for another.
    #[inline]
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.length == BURST
    }

    /// The frames.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> &[Frame<'a>] {
        // SAFETY: needed because the array is filled as frames come, to spare zeroing 2.5 KB per burst; sound because
        // `push` is the only place that raises `length`, right behind writing that element.
        unsafe { self.frames[..self.length].assume_init_ref() }
    }

    /// The frames, to be changed.
    #[inline]
    #[must_use]
    pub fn frames_mut(&mut self) -> &mut [Frame<'a>] {
        // SAFETY: needed and sound for the reason given in `frames`.
        unsafe { self.frames[..self.length].assume_init_mut() }
    }
}

impl Default for Burst<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Burst<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.frames()).finish()
    }
}

/// What the kernel said to each frame of one [`Transmit::transmit`]. Made once and used for all.
#[derive(Clone)]
pub struct TransmitReport {
    /// 0 or an errno, by position in `selected`.
    results: [i32; BURST],
    frames: usize,
    accepted: usize,
}

impl TransmitReport {
    /// A report of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { results: [0; BURST], frames: 0, accepted: 0 }
    }

    /// Begins a report of no frames.
    #[inline]
    pub const fn clear(&mut self) {
        self.frames = 0;
        self.accepted = 0;
    }

    /// Notes that the next `count` frames were accepted.
    #[inline]
    pub fn accept(&mut self, count: usize) {
        self.results[self.frames..self.frames + count].fill(0);
        self.frames += count;
        self.accepted += count;
    }

    /// Notes that the next frame was refused.
    #[inline]
    pub fn refuse(&mut self, error: Errno) {
        self.results[self.frames] = error as i32;
        self.frames += 1;
    }

    /// How many frames were tried.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frames
    }

    /// Whether no frame was tried.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// How many frames the kernel accepted.
    #[inline]
    #[must_use]
    pub const fn accepted(&self) -> usize {
        self.accepted
    }

    /// How many frames the kernel refused.
    #[inline]
    #[must_use]
    pub const fn refused(&self) -> usize {
        self.frames - self.accepted
    }

    /// What was said to the frame at this position of `selected`.
    ///
    /// # Errors
    /// The errno with which it was refused.
    ///
    /// # Panics
    /// If no frame was tried at this position.
    #[inline]
    pub fn result(&self, position: usize) -> Result<(), Errno> {
        match self.results[..self.frames][position] {
            0 => Ok(()),
            error => Err(Errno::from_raw(error)),
        }
    }

    /// Position in `selected` and errno of each refused frame.
    pub fn refusals(&self) -> impl Iterator<Item = (usize, Errno)> + '_ {
        let results = self.results[..self.frames].iter().enumerate();
        results.filter(|(_, error)| **error != 0).map(|(position, error)| (position, Errno::from_raw(*error)))
    }
}

impl Default for TransmitReport {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TransmitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransmitReport")
            .field("accepted", &self.accepted)
            .field("refusals", &self.refusals().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// What a receiving half counted, in frames unless said otherwise, since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiveStatistics {
    /// Frames delivered in bursts.
    pub delivered: u64,
    /// Frames that the kernel dropped because the ring or the socket's queue was full.
    pub kernel_drops: u64,
    /// Of the delivered, frames larger than a slot, which took a system call of their own.
    pub large: u64,
    /// Large frames dropped because what `recv` brought was not the slot's frame.
    pub pairing_mismatches: u64,
    /// Large frames dropped because `recv` failed.
    pub receive_failures: u64,
    /// Large frames dropped while the order of slots and receive queue was being found again.
    pub unpaired: u64,
    /// How often the receive queue was emptied to find the order of slots and queue again.
    pub resynchronisations: u64,
    /// Frames dropped because they were cut short: larger than the largest buffer, or larger than a slot while the socket's
    /// receive queue was full.
    pub truncated: u64,
}

/// What a transmitting half counted since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransmitStatistics {
    /// Frames that the kernel accepted.
    pub accepted: u64,
    /// Frames that the kernel refused.
    pub refused: u64,
    /// System calls that sent frames.
    pub calls: u64,
    /// How often a full send buffer was waited for.
    pub waits: u64,
}

/// What a transmitting half can carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// Super-frames, which something behind the device segments.
    pub super_frames: bool,
    /// Frames whose L4 checksum is still partial, which something behind the device completes.
    pub partial_checksums: bool,
}

/// Why a device cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no interface of this name.
    #[error("there is no interface \"{0}\" in this network namespace")]
    NoInterface(String),
    /// The capability is missing.
    #[error("cannot {operation} on interface \"{interface}\": it needs CAP_NET_RAW and CAP_NET_ADMIN")]
    Permission {
        /// The interface.
        interface: String,
        /// What was tried.
        operation: &'static str,
    },
    /// A system call failed.
    #[error("cannot {operation} on interface \"{interface}\": {source}")]
    Operation {
        /// The interface.
        interface: String,
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// A setting is out of its range.
    #[error("{setting} = {value} on interface \"{interface}\": {allowed}")]
    Setting {
        /// The interface.
        interface: String,
        /// Name of the setting.
        setting: &'static str,
        /// What was given.
        value: u64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// io_uring is not there, or not as it is needed.
    #[error("cannot use io_uring on interface \"{interface}\": {reason} ({source}); packet sockets work without it")]
    NoIoUring {
        /// The interface.
        interface: String,
        /// What that means.
        reason: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The interface went down. The device works again when it is up.
    #[error("interface \"{0}\" is down")]
    Down(String),
    /// The interface was deleted. The device must be bound to its successor.
    #[error("interface \"{0}\" was deleted")]
    Gone(String),
    /// A capture file cannot be read or written.
    #[error("capture file: {0}")]
    Capture(#[from] pcap_file::PcapError),
}

impl DeviceError {
    /// The error of a system call on an interface.
    pub(crate) fn operation(interface: &str, operation: &'static str, source: Errno) -> Self {
        let interface = interface.to_owned();
        match source {
            Errno::EPERM | Errno::EACCES => Self::Permission { interface, operation },
            source => Self::Operation { interface, operation, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_takes_sixty_four_frames_and_gives_the_next_one_back() {
        let mut buffers = vec![[0u8; 8]; BURST + 1];
        let mut burst = Burst::new();
        for (at, buffer) in buffers.iter_mut().enumerate() {
            buffer[0] = at as u8;
            let pushed = burst.push(Frame::new(buffer, 0, 8).unwrap());
            assert_eq!(pushed.is_ok(), at < BURST);
        }
        assert!(burst.is_full());
        assert!(burst.frames().iter().enumerate().all(|(at, frame)| frame.bytes()[0] == at as u8));
        burst.frames_mut()[3].bytes_mut()[0] = 77;
        assert_eq!(burst.frames()[3].bytes()[0], 77);
        burst.clear();
        assert_eq!(burst.frames().len(), 0);
    }

    #[test]
    fn a_report_tells_each_frame_s_result_and_forgets_the_last_call() {
        let mut report = TransmitReport::new();
        report.accept(2);
        report.refuse(Errno::EMSGSIZE);
        report.accept(1);
        assert_eq!((report.len(), report.accepted(), report.refused()), (4, 3, 1));
        assert_eq!(report.result(1), Ok(()));
        assert_eq!(report.result(2), Err(Errno::EMSGSIZE));
        assert_eq!(report.refusals().collect::<Vec<_>>(), [(2, Errno::EMSGSIZE)]);
        report.clear();
        report.accept(3);
        assert_eq!(report.refusals().count(), 0);
    }
}

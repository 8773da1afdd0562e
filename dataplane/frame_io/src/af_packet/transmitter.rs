//! The transmitting half: `sendmmsg` straight out of the buffers that frames were received into.

use std::mem;
use std::os::fd::AsRawFd;

use libc::c_void;
use nix::errno::Errno;
use postern_wire::Frame;

use super::socket::PacketSocket;
use super::virtio;
use crate::device::{BURST, Capabilities, DeviceError, Transmit, TransmitReport, TransmitStatistics};
use crate::interface::Interface;

/// Bytes that may wait to be sent, unless something else is asked for: some hundred super-frames.
pub const SEND_BUFFER: u32 = 16 << 20;

/// The transmitting half of a packet socket device. It receives nothing (protocol 0).
#[derive(Debug)]
pub struct PacketTransmitter {
    socket: PacketSocket,
    messages: Box<Messages>,
    statistics: TransmitStatistics,
}

/// What `sendmmsg` takes: one piece a message.
struct Messages {
    headers: [libc::mmsghdr; BURST],
    pieces: [libc::iovec; BURST],
}

// SAFETY: needed because the messages have pointers; sound because they are written and used only within one `transmit`,
// which has the transmitter and the frames exclusively.
unsafe impl Send for Messages {}

impl PacketTransmitter {
    /// Opens a socket that sends on `interface`; `send_buffer` is how many bytes may wait to be sent ([`SEND_BUFFER`]).
    ///
    /// # Errors
    /// If a capability is missing or the kernel refuses.
    pub fn open(interface: &Interface, send_buffer: u32) -> Result<Self, DeviceError> {
        let socket = PacketSocket::open(interface.name())?;
        socket.set_send_buffer(send_buffer)?;
        socket.set_packet(libc::PACKET_VNET_HDR, &1i32, "ask to send offload state (PACKET_VNET_HDR)")?;
        socket.bind(interface.index(), 0)?;
        Ok(Self { socket, messages: Box::new(Messages::none()), statistics: TransmitStatistics::default() })
    }

    /// Binds to the successor of a deleted interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn rebind(&mut self, interface: &Interface) -> Result<(), DeviceError> {
        self.socket.bind(interface.index(), 0)
    }

    /// The index of the interface to which the socket is bound; `None` after that interface was deleted.
    #[must_use]
    pub fn bound_interface(&self) -> Option<u32> {
        self.socket.bound_interface()
    }

    /// Sends the first `count` messages, and reports each.
    fn send(&mut self, count: usize, report: &mut TransmitReport) {
        let mut at = 0;
        let mut may_wait = true;
        while at < count {
            match self.send_from(at, count) {
                Ok(sent) => {
                    report.accept(sent);
                    at += sent;
                }
                Err(Errno::EINTR) => {}
                // The send buffer or the queue of the interface is full.
                Err(Errno::EAGAIN | Errno::ENOBUFS) if may_wait => {
                    may_wait = false;
                    self.statistics.waits += 1;
                    self.socket.wait_for_room();
                }
                // The error of the socket, and so of all frames that are left.
                Err(error @ (Errno::EAGAIN | Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)) => {
                    for _ in at..count {
                        report.refuse(error);
                    }
                    at = count;
                }
                // The error of one frame: the kernel has sent those before it and looked at none behind it.
                Err(error) => {
                    report.refuse(error);
                    at += 1;
                }
            }
        }
    }

    fn send_from(&mut self, at: usize, count: usize) -> Result<usize, Errno> {
        self.statistics.calls += 1;
        let messages = &mut self.messages.headers[at..count];
        let length = messages.len() as u32;
        // SAFETY: needed to make a system call; sound because `transmit` has just written these messages: each has one
        // piece in `self.messages`, which is a frame's bytes and the offload state in front, borrowed by `transmit`.
        let sent =
            unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), length, libc::MSG_DONTWAIT) };
        Errno::result(sent).map(|sent| sent as usize)
    }
}

impl Transmit for PacketTransmitter {
    fn transmit(&mut self, frames: &mut [Frame<'_>], selected: &[u8], report: &mut TransmitReport) {
        assert!(selected.len() <= BURST, "{} frames were selected, a burst has {BURST}", selected.len());
        report.clear();
        let mut count = 0;
        for &index in selected {
            match virtio::with_offload_state(&mut frames[usize::from(index)]) {
                Some(bytes) => {
                    self.messages.set(count, bytes);
                    count += 1;
                }
                None => {
                    // Keeps the order: what is in front is sent first.
                    self.send(count, report);
                    count = 0;
                    report.refuse(Errno::EINVAL);
                }
            }
        }
        self.send(count, report);
        self.statistics.accepted += report.accepted() as u64;
        self.statistics.refused += report.refused() as u64;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { super_frames: true, partial_checksums: true }
    }

    fn statistics(&self) -> TransmitStatistics {
        self.statistics
    }
}

impl Messages {
    const fn none() -> Self {
        // SAFETY: needed because the structure may have private padding and so cannot be written out; sound because it is
        // made of integers and pointers that may be null.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        let piece = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { headers: [header; BURST], pieces: [piece; BURST] }
    }

    #[inline]
    fn set(&mut self, at: usize, bytes: &mut [u8]) {
        let piece = &mut self.pieces[at];
        *piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast::<c_void>(), iov_len: bytes.len() };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_iov = piece;
        header.msg_iovlen = 1;
    }
}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

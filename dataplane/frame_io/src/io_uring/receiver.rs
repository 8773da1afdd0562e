//! The receiving half.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use io_uring::{cqueue, opcode};
use nix::errno::Errno;
use postern_wire::{Frame, PortIndex};

use super::buffers::{Buffers, GROUP};
use super::ring::{Ring, SOCKET};
use crate::af_packet::PacketFanout;
use crate::af_packet::large::START;
use crate::af_packet::socket::{Intake, PacketSocket};
use crate::af_packet::virtio;
use crate::device::{BURST, Burst, DeviceError, Receive, ReceiveStatistics};
use crate::interface::Interface;
use crate::vlan;

/// `struct io_uring_recvmsg_out`, with which a buffer begins: lengths of name, control data and payload, and flags.
const OUT: usize = 16;
/// Room for control data behind it: what one message takes, and so much more that the frame begins at [`START`].
const CONTROL: usize = START - virtio::HEADER - OUT;
/// `struct cmsghdr`.
const CONTROL_HEADER: usize = 16;

const _: () = assert!(CONTROL >= CONTROL_HEADER + size_of::<libc::tpacket_auxdata>());

/// How often a burst makes the kernel work. Each time it receives up to 32 frames.
const ROUNDS: u32 = 2;

/// How a packet socket receives through io_uring.
#[derive(Clone, Copy, Debug)]
pub struct RingReceiverConfig<'p> {
    /// What frames say of where they came in.
    pub port: PortIndex,
    /// Buffers, a power of two, 2…16,384. Each takes 66 KB of address space, and of memory what the frames in it have
    /// touched, at least 4 KB.
    pub buffers: u16,
    /// Bytes of frames that may wait in the socket's receive queue, by the kernel's own count.
    pub receive_buffer: u32,
    /// Receive unicast frames for other stations too.
    pub promiscuous: bool,
    /// The fan-out group to join; `None` to receive every frame of the interface.
    pub fanout: Option<PacketFanout<'p>>,
    /// A loaded program of type BPF_PROG_TYPE_SOCKET_FILTER that says which frames are received.
    pub filter: Option<BorrowedFd<'p>>,
    /// Whether a thread of the kernel receives, on a CPU of its own as long as frames come (`IORING_SETUP_SQPOLL`).
    pub kernel_thread: bool,
}

impl Default for RingReceiverConfig<'_> {
    fn default() -> Self {
        Self {
            port: PortIndex(0),
            buffers: 128,
            receive_buffer: 16 << 20,
            promiscuous: false,
            fanout: None,
            filter: None,
            kernel_thread: false,
        }
    }
}

/// The receiving half of a packet socket device on io_uring. All calls of [`Receive::receive`] come from one thread.
#[derive(Debug)]
pub struct RingReceiver {
    ring: Ring,
    /// Freed when no request can take one any more.
    buffers: mem::ManuallyDrop<Buffers>,
    socket: PacketSocket,
    message: Message,
    port: PortIndex,
    /// The multishot request is on its way.
    armed: bool,
    /// There was no buffer for the next frame.
    starved: bool,
    /// Buffers of the last burst.
    lent: [u16; BURST],
    lent_count: usize,
    /// An error that came behind frames.
    failed: Option<Errno>,
    statistics: ReceiveStatistics,
}

/// What `RECVMSG` is asked for: no name, and control data of one length.
#[derive(Debug)]
struct Message(Box<libc::msghdr>);

// SAFETY: needed because the message has pointers; sound because they are null.
unsafe impl Send for Message {}

enum Taken<'a> {
    Frame(Frame<'a>),
    Lost,
}

impl RingReceiver {
    /// Opens a socket on `interface`; it receives as soon as the first call of [`Receive::receive`] was made.
    ///
    /// Members of a fan-out group are opened in the order of their numbers, while the interface is up.
    ///
    /// # Errors
    /// If a setting is out of range, a capability is missing, or the kernel refuses or has no io_uring that suffices.
    pub fn open(interface: &Interface, config: &RingReceiverConfig<'_>) -> Result<Self, DeviceError> {
        let count = config.buffers;
        if !count.is_power_of_two() || !(2..=1 << 14).contains(&count) {
            return Err(DeviceError::Setting {
                interface: interface.name().to_owned(),
                setting: "buffers",
                value: u64::from(count),
                allowed: "a power of two, 2…16384, is allowed",
            });
        }
        let socket = PacketSocket::open(interface.name())?;
        socket.set_receive_buffer(config.receive_buffer)?;
        socket.set_packet(libc::PACKET_IGNORE_OUTGOING, &1i32, "ignore our own outgoing frames")?;
        socket.set_packet(libc::PACKET_VNET_HDR, &1i32, "ask for offload state (PACKET_VNET_HDR)")?;
        socket.set_packet(libc::PACKET_AUXDATA, &1i32, "ask for VLAN tags (PACKET_AUXDATA)")?;
        // A completion for each buffer, and errors.
        let ring = Ring::open(&socket, 4, 2 * u32::from(count), config.kernel_thread)?;
        let buffers = Buffers::new(count).map_err(|error| socket.error("map the buffers for frames", error.source))?;
        // SAFETY: needed to give the kernel our buffers; sound because `drop` frees them only when no request of the ring can
        // take one any more.
        unsafe { buffers.register(ring.uring()) }
            .map_err(|error| socket.error("register buffers with io_uring", error))?;
        let RingReceiverConfig { promiscuous, fanout, filter, .. } = *config;
        socket.start(interface, &Intake { promiscuous, fanout, filter })?;
        Ok(Self {
            ring,
            buffers: mem::ManuallyDrop::new(buffers),
            socket,
            message: Message::new(),
            port: config.port,
            armed: false,
            starved: false,
            lent: [0; BURST],
            lent_count: 0,
            failed: None,
            statistics: ReceiveStatistics::default(),
        })
    }

    /// The index of the interface to which the socket is bound; `None` after that interface was deleted.
    #[must_use]
    pub fn bound_interface(&self) -> Option<u32> {
        self.socket.bound_interface()
    }

    /// Starts the multishot request, unless it is on its way; it ends when there is no buffer for a frame, and with every
    /// error.
    fn arm(&mut self) {
        if self.armed || (self.starved && self.lent_count > 0) {
            return;
        }
        let request = opcode::RecvMsgMulti::new(SOCKET, &raw const *self.message.0, GROUP).build();
        // SAFETY: needed to hand the request to the kernel; sound because the message is boxed and lives with the ring, and the
        // buffers live until no request can take one any more.
        self.armed = unsafe { self.ring.push(&request) };
        self.starved = false;
    }

    /// Takes completions into the burst until it is full or there are none.
    fn reap<'a>(&mut self, burst: &mut Burst<'a>) {
        while !burst.is_full() && self.lent_count < BURST {
            let Some(completion) = self.ring.completion() else { return };
            self.armed &= cqueue::more(completion.flags());
            match (u32::try_from(completion.result()), cqueue::buffer_select(completion.flags())) {
                (Ok(length), Some(buffer)) => {
                    self.lent[self.lent_count] = buffer;
                    self.lent_count += 1;
                    if let Taken::Frame(frame) = self.take(buffer, length as usize) {
                        let pushed = burst.push(frame);
                        debug_assert!(pushed.is_ok(), "the burst is not full");
                    }
                }
                (Ok(_), None) => {}
                (Err(_), _) => match Errno::from_raw(-completion.result()) {
                    Errno::ENOBUFS => self.starved = true,
                    Errno::EINTR | Errno::EAGAIN | Errno::ECANCELED => {}
                    error => self.failed = Some(error),
                },
            }
        }
    }

    /// The frame in a buffer of which the kernel has filled `length` bytes.
    fn take<'a>(&mut self, buffer: u16, length: usize) -> Taken<'a> {
        // SAFETY: needed to lend the buffer without a copy; sound because a completion has just named it, and it is given back
        // only by `release`, which needs `self` exclusively and so comes after the borrow of `receive` has ended.
        let bytes = unsafe { self.buffers.lend(buffer) };
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (control, payload, flags) = (word(4) as usize, word(8) as usize, word(12));
        let whole = flags & libc::MSG_TRUNC as u32 == 0 && payload >= virtio::HEADER && length >= START;
        let auxiliary = auxiliary_data(&bytes[OUT..OUT + control.min(CONTROL)]);
        let offload = virtio::read_before(bytes, START);
        let frame = if whole { Frame::new(bytes, START, payload - virtio::HEADER) } else { None };
        let Some(mut frame) = frame else {
            self.statistics.truncated += 1;
            return Taken::Lost;
        };
        frame.offload = offload;
        frame.ingress = self.port;
        if let Some((status, tci, tpid)) = auxiliary.filter(|data| data.0 & libc::TP_STATUS_VLAN_VALID != 0) {
            vlan::set(&mut frame, (status & libc::TP_STATUS_VLAN_TPID_VALID != 0).then_some(tpid), tci);
        }
        Taken::Frame(frame)
    }
}

impl Receive for RingReceiver {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError> {
        self.release();
        self.ring.enable().map_err(|error| self.socket.error("take over a ring of io_uring", error))?;
        let before = burst.len();
        for round in 0..=ROUNDS {
            self.reap(burst);
            if burst.len() == before {
                // What came was lost.
                self.release();
            }
            if round == ROUNDS || burst.is_full() || self.lent_count == BURST {
                break;
            }
            self.arm();
            if !self.ring.has_work() {
                break;
            }
            match self.ring.enter(0) {
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => {}
                Err(error) => self.failed = Some(error),
            }
        }
        let received = burst.len() - before;
        self.statistics.delivered += received as u64;
        match self.failed.take() {
            Some(error) if received == 0 => Err(self.socket.receive_error(error)),
            // The frames come first.
            failed => {
                self.failed = failed;
                Ok(received)
            }
        }
    }

    fn release(&mut self) {
        for at in 0..self.lent_count {
            self.buffers.give_back(self.lent[at]);
        }
        self.lent_count = 0;
    }

    fn statistics(&mut self) -> ReceiveStatistics {
        self.statistics.kernel_drops += self.socket.new_drops().map_or(0, u64::from);
        self.statistics
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        // The kernel's thread takes frames out of the socket and leaves completions. Without it nobody takes a frame before
        // we do, and the socket wakes us with one step less.
        Some(if self.ring.has_kernel_thread() { self.ring.as_fd() } else { self.socket.as_fd() })
    }
}

impl Drop for RingReceiver {
    fn drop(&mut self) {
        // Without a thread of the kernel's, buffers are filled only while `receive` lets the kernel work, and so not any more.
        // That thread may be filling one now, but not after the ring of buffers was taken from it.
        let taken_back = self.ring.uring().submitter().unregister_buf_ring(GROUP).is_ok();
        if taken_back || !self.ring.has_kernel_thread() {
            // SAFETY: needed because the buffers are freed on this condition only; sound because this is the only place, and
            // nobody uses them any more.
            unsafe { mem::ManuallyDrop::drop(&mut self.buffers) };
        }
    }
}

impl Message {
    fn new() -> Self {
        // SAFETY: needed because the structure may have private padding and so cannot be written out; sound because it is made
        // of integers and pointers that may be null.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { mem::zeroed() });
        header.msg_controllen = CONTROL as _;
        Self(header)
    }
}

/// Status, tag and the tag's EtherType out of a `tpacket_auxdata` message, if there is one.
#[inline]
fn auxiliary_data(control: &[u8]) -> Option<(u32, u16, u16)> {
    let data = control.get(CONTROL_HEADER..CONTROL_HEADER + size_of::<libc::tpacket_auxdata>())?;
    let half = |at: usize| u16::from_ne_bytes([data[at], data[at + 1]]);
    let level = &control[8..12] == libc::SOL_PACKET.to_ne_bytes().as_slice();
    let kind = &control[12..16] == libc::PACKET_AUXDATA.to_ne_bytes().as_slice();
    let status = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]);
    (level && kind).then(|| (status, half(16), half(18)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_data_is_read_only_out_of_its_own_message() {
        let mut control = [0u8; 40];
        control[0] = 36;
        control[8..12].copy_from_slice(&libc::SOL_PACKET.to_ne_bytes());
        control[12..16].copy_from_slice(&libc::PACKET_AUXDATA.to_ne_bytes());
        control[16..20].copy_from_slice(&(libc::TP_STATUS_VLAN_VALID | 1).to_ne_bytes());
        control[32..34].copy_from_slice(&100u16.to_ne_bytes());
        control[34..36].copy_from_slice(&0x88a8u16.to_ne_bytes());
        assert_eq!(auxiliary_data(&control), Some((libc::TP_STATUS_VLAN_VALID | 1, 100, 0x88a8)));
        assert_eq!(auxiliary_data(&control[..35]), None);
        control[12] ^= 1;
        assert_eq!(auxiliary_data(&control), None);
    }
}

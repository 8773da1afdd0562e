//! Frames larger than a slot: the slot has their first bytes, and the whole comes by one `recv`.
//!
//! Slot and receive queue are coupled only by their order. If that is lost (a `recv` failed, something else read from the
//! socket), one frame's bytes could go out under another's header. So each pair is compared: length, offload state, and every
//! byte that the slot has. On a mismatch or failure the queue is emptied; from then on a slot is only taken together with
//! the queue's first frame if the two agree, and dropped if they do not: everything still in the queue came after what was
//! taken out, so its slot is yet to come. The first pair that agrees ends this.

use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_void};
use nix::errno::Errno;

use super::virtio;
use crate::device::{DeviceError, ReceiveStatistics};
use crate::region::{Region, RegionOptions};

/// Largest frame: the largest IPv4 packet, Ethernet, and tags.
pub(crate) const LARGEST: usize = 65_535 + 14 + 8;
/// Where a frame begins in its buffer: more than the headroom that is promised, and its IP header at a multiple of 16.
pub(crate) const START: usize = 130;
/// Distance between buffers: a multiple of 64, not of 4096, so that they do not compete for the same cache sets.
pub(crate) const STRIDE: usize = (START + LARGEST).next_multiple_of(64) + 64;

const _: () = assert!(START >= postern_wire::frame::HEADROOM);

/// The slot's part of a large frame.
pub(super) struct Beginning<'s> {
    /// Length of the whole frame.
    pub(super) length: usize,
    /// The offload state and the first bytes, as they stand in the slot.
    pub(super) bytes: &'s [u8],
}

/// Buffers for the large frames of one burst, and whether slots and queue are in step.
#[derive(Debug)]
pub(super) struct LargeFrames {
    memory: Region,
    buffers: usize,
    lent: usize,
    /// Slots dropped since the queue was emptied, while out of step.
    out_of_step: Option<u32>,
    patience: u32,
}

/// What became of a large frame.
pub(super) enum Received {
    /// It lies in the `buffer` that [`LargeFrames::lend`] lends, at the given place.
    Whole,
    /// It is lost, and counted.
    Lost,
    /// All buffers are lent: try again in the next burst.
    NoBuffer,
}

impl LargeFrames {
    /// Buffers for `buffers` large frames a burst; out of step for at most `patience` slots until the queue is emptied again.
    pub(super) fn new(interface: &str, buffers: usize, patience: u32) -> Result<Self, DeviceError> {
        let memory = Region::anonymous(buffers.max(1) * STRIDE, RegionOptions::default())
            .map_err(|e| DeviceError::operation(interface, "map the buffers for large frames", e.source))?;
        Ok(Self { memory, buffers: buffers.max(1), lent: 0, out_of_step: None, patience })
    }

    /// Takes all buffers back.
    pub(super) const fn release(&mut self) {
        self.lent = 0;
    }

    /// Receives the frame that begins so into the next buffer.
    pub(super) fn receive(
        &mut self,
        socket: &impl AsFd,
        beginning: &Beginning<'_>,
        statistics: &mut ReceiveStatistics,
    ) -> Received {
        if self.lent == self.buffers {
            return Received::NoBuffer;
        }
        if self.out_of_step.is_some() {
            return self.find_step(socket, beginning, statistics);
        }
        match self.receive_next(socket, libc::MSG_TRUNC) {
            Ok(length) if self.agrees(length, beginning) => {
                if beginning.length <= LARGEST {
                    return Received::Whole;
                }
                statistics.truncated += 1;
            }
            Ok(_) => {
                statistics.pairing_mismatches += 1;
                self.resynchronise(socket, statistics);
            }
            Err(_) => {
                statistics.receive_failures += 1;
                self.resynchronise(socket, statistics);
            }
        }
        Received::Lost
    }

    /// Out of step: takes the queue's first frame only if it is the slot's.
    fn find_step(
        &mut self,
        socket: &impl AsFd,
        beginning: &Beginning<'_>,
        statistics: &mut ReceiveStatistics,
    ) -> Received {
        let next = self.receive_next(socket, libc::MSG_TRUNC | libc::MSG_PEEK);
        if next.is_ok_and(|length| beginning.length <= LARGEST && self.agrees(length, beginning)) {
            self.out_of_step = None;
            // Fails only with an error that the kernel kept for the socket, which it tells once.
            let _ = discard(socket).or_else(|_| discard(socket));
            return Received::Whole;
        }
        statistics.unpaired += 1;
        // The queue's first frame belongs to a slot that is yet to come, unless something else went wrong meanwhile.
        let dropped = self.out_of_step.map_or(1, |dropped| dropped + 1);
        self.out_of_step = Some(dropped);
        if dropped >= self.patience {
            self.resynchronise(socket, statistics);
        }
        Received::Lost
    }

    fn resynchronise(&mut self, socket: &impl AsFd, statistics: &mut ReceiveStatistics) {
        statistics.resynchronisations += 1;
        self.out_of_step = Some(0);
        // Bounded, because the kernel may go on filling the queue. An error that the kernel kept for the socket is told once,
        // and takes nothing out of the queue.
        for _ in 0..4096 {
            if discard(socket) == Err(Errno::EAGAIN) {
                break;
            }
        }
    }

    /// The whole of the last frame received: its buffer, where it begins, how long it is.
    ///
    /// # Safety
    /// [`LargeFrames::receive`] has just said [`Received::Whole`], and the result is dead before [`LargeFrames::release`].
    pub(super) unsafe fn lend<'a>(&mut self) -> (&'a mut [u8], usize) {
        let buffer = self.buffer();
        self.lent += 1;
        // SAFETY: needed to lend several buffers at once; sound because each is lent once until `release`, before which the
        // caller drops the result, and lies within the region (`lent < buffers` when `receive` said `Whole`).
        (unsafe { std::slice::from_raw_parts_mut(buffer, STRIDE) }, START)
    }

    fn buffer(&self) -> *mut u8 {
        assert!(self.lent < self.buffers);
        // SAFETY: needed to address a buffer; sound because the region has `buffers` of them.
        unsafe { self.memory.start().as_ptr().add(self.lent * STRIDE) }
    }

    /// Receives into the next buffer, and returns the frame's true length.
    fn receive_next(&self, socket: &impl AsFd, flags: c_int) -> Result<usize, Errno> {
        let place = START - virtio::HEADER;
        // SAFETY: needed to address the place of the offload state, right in front of the frame; sound because it is within
        // the buffer.
        let target = unsafe { self.buffer().add(place) };
        // SAFETY: needed to make a system call; sound because the kernel writes at most to the end of a buffer that is not
        // lent.
        unsafe { receive(socket, target, STRIDE - place, flags) }.map(|length| length.saturating_sub(virtio::HEADER))
    }

    /// Whether the frame of this length in the next buffer begins as the slot does.
    fn agrees(&self, length: usize, beginning: &Beginning<'_>) -> bool {
        if length != beginning.length || beginning.bytes.len() > length + virtio::HEADER {
            return false;
        }
        let known = beginning.bytes.len().min(STRIDE - START);
        // SAFETY: needed to look at the buffer that `receive_next` has filled; sound because it is not lent, and `known` bytes
        // from there lie within it.
        let received = unsafe { std::slice::from_raw_parts(self.buffer().add(START - virtio::HEADER), known) };
        received == &beginning.bytes[..known]
    }
}

/// Takes one frame out of the queue.
fn discard(socket: &impl AsFd) -> Result<(), Errno> {
    let mut beginning = [0u8; 16];
    // SAFETY: needed to make a system call; sound because the kernel writes at most to the end of `beginning`.
    unsafe { receive(socket, beginning.as_mut_ptr(), beginning.len(), libc::MSG_TRUNC) }.map(drop)
}

/// # Safety
/// `length` bytes from `target` on may be written.
unsafe fn receive(socket: &impl AsFd, target: *mut u8, length: usize, flags: c_int) -> Result<usize, Errno> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: needed to make a system call; sound by this function's own condition.
    let received = unsafe { libc::recv(socket.as_fd().as_raw_fd(), target.cast::<c_void>(), length, flags) };
    Errno::result(received).map(|length| length as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// How much of a frame its slot has, offload state included.
    const IN_SLOT: usize = 64;

    /// A kernel: a slot and a place in the receive queue for each frame.
    struct Kernel {
        queue: UnixDatagram,
        slots: VecDeque<Vec<u8>>,
        sent: u32,
    }

    impl Kernel {
        fn new() -> (Self, UnixDatagram) {
            let (queue, socket) = UnixDatagram::pair().unwrap();
            queue.set_nonblocking(true).unwrap();
            socket.set_nonblocking(true).unwrap();
            (Self { queue, slots: VecDeque::new(), sent: 0 }, socket)
        }

        /// A frame of a length and contents of its own; false if the queue is full.
        fn send(&mut self) -> bool {
            let length = virtio::HEADER + 200 + self.sent as usize * 37 % 1300;
            let mut frame = vec![self.sent as u8; length];
            frame[virtio::HEADER..virtio::HEADER + 4].copy_from_slice(&self.sent.to_be_bytes());
            let sent = self.queue.send(&frame).is_ok();
            if sent {
                self.sent += 1;
                self.slots.push_back(frame);
            }
            sent
        }
    }

    /// Receives the next slot's frame, and checks that it is that and no other; whether it came.
    fn receive_slot(
        large: &mut LargeFrames,
        kernel: &mut Kernel,
        socket: &UnixDatagram,
        statistics: &mut ReceiveStatistics,
    ) -> Option<bool> {
        let frame = kernel.slots.pop_front()?;
        let beginning = Beginning { length: frame.len() - virtio::HEADER, bytes: &frame[..IN_SLOT] };
        large.release();
        match large.receive(socket, &beginning, statistics) {
            Received::Whole => {
                // SAFETY: needed to look at the frame; sound because `receive` has just said `Whole`, and the frame is dead
                // before the next `release`.
                let (buffer, start) = unsafe { large.lend() };
                assert!(buffer[start..start + beginning.length] == frame[virtio::HEADER..], "mispaired");
                Some(true)
            }
            Received::Lost => Some(false),
            Received::NoBuffer => unreachable!("all buffers were released"),
        }
    }

    #[test]
    fn whatever_is_lost_of_the_queue_no_frame_is_mispaired_and_order_comes_back() {
        let (mut lost, mut came) = (0, 0);
        for seed in 0..200u64 {
            let (mut kernel, socket) = Kernel::new();
            let mut large = LargeFrames::new("test", 2, 1000).unwrap();
            let mut statistics = ReceiveStatistics::default();
            let mut state = seed;
            for _ in 0..200 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                match state >> 60 {
                    0..8 => {
                        kernel.send();
                    }
                    8 => {
                        // Something takes a frame out of the queue.
                        let _ = discard(&socket);
                    }
                    _ => match receive_slot(&mut large, &mut kernel, &socket, &mut statistics) {
                        Some(true) => came += 1,
                        Some(false) => lost += 1,
                        None => {}
                    },
                }
            }
            // What is still there may be lost, but nothing that comes after it.
            while receive_slot(&mut large, &mut kernel, &socket, &mut statistics).is_some() {}
            for _ in 0..5 {
                assert!(kernel.send());
                assert_eq!(receive_slot(&mut large, &mut kernel, &socket, &mut statistics), Some(true), "seed {seed}");
            }
            let lost = statistics.pairing_mismatches + statistics.receive_failures + statistics.unpaired;
            assert!(statistics.resynchronisations <= lost);
        }
        assert!(came > 5000 && lost > 500, "{came} came, {lost} were lost");
    }

    #[test]
    fn a_frame_in_the_queue_that_has_no_slot_costs_one_frame() {
        let (mut kernel, socket) = Kernel::new();
        let mut large = LargeFrames::new("test", 2, 1000).unwrap();
        let mut statistics = ReceiveStatistics::default();
        assert!(kernel.send());
        kernel.slots.clear();
        assert!(kernel.send());
        assert_eq!(receive_slot(&mut large, &mut kernel, &socket, &mut statistics), Some(false));
        assert!(kernel.send());
        assert_eq!(receive_slot(&mut large, &mut kernel, &socket, &mut statistics), Some(true));
        assert_eq!((statistics.pairing_mismatches, statistics.resynchronisations), (1, 1));
    }

    #[test]
    fn a_frame_larger_than_every_buffer_is_counted_and_the_next_comes() {
        let (mut kernel, socket) = Kernel::new();
        let mut large = LargeFrames::new("test", 2, 1000).unwrap();
        let mut statistics = ReceiveStatistics::default();
        let giant = vec![1; virtio::HEADER + 100_000];
        kernel.queue.send(&giant).unwrap();
        kernel.slots.push_back(giant);
        assert_eq!(receive_slot(&mut large, &mut kernel, &socket, &mut statistics), Some(false));
        assert!(kernel.send());
        assert_eq!(receive_slot(&mut large, &mut kernel, &socket, &mut statistics), Some(true));
        assert_eq!(statistics, ReceiveStatistics { truncated: 1, ..ReceiveStatistics::default() });
    }
}

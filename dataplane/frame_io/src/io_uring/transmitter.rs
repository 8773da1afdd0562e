//! The transmitting half: one `SEND` for each frame, all submitted and completed by one system call, straight out of the
//! buffers that frames were received into. (A packet socket is bound, so that `SENDMSG` would only have the kernel copy a
//! header that says nothing; zero-copy sends are not for packet sockets.)

use io_uring::opcode;
use nix::errno::Errno;
use postern_wire::Frame;

use super::ring::{Ring, SOCKET};
use crate::af_packet::socket::PacketSocket;
use crate::af_packet::virtio;
use crate::device::{BURST, Capabilities, DeviceError, Transmit, TransmitReport, TransmitStatistics};
use crate::interface::Interface;

/// The transmitting half of a packet socket device on io_uring. It receives nothing (protocol 0). All calls of
/// [`Transmit::transmit`] come from one thread.
#[derive(Debug)]
pub struct RingTransmitter {
    ring: Ring,
    socket: PacketSocket,
    /// By position in `selected`: 0 or an errno.
    results: [i32; BURST],
    statistics: TransmitStatistics,
}

impl RingTransmitter {
    /// Opens a socket that sends on `interface`; `send_buffer` is how many bytes may wait to be sent
    /// ([`SEND_BUFFER`](crate::af_packet::SEND_BUFFER)).
    ///
    /// # Errors
    /// If a capability is missing, or the kernel refuses or has no io_uring that suffices.
    pub fn open(interface: &Interface, send_buffer: u32) -> Result<Self, DeviceError> {
        let socket = PacketSocket::open(interface.name())?;
        socket.set_send_buffer(send_buffer)?;
        socket.set_packet(libc::PACKET_VNET_HDR, &1i32, "ask to send offload state (PACKET_VNET_HDR)")?;
        socket.bind(interface.index(), 0)?;
        let ring = Ring::open(&socket, BURST as u32, 2 * BURST as u32, false)?;
        Ok(Self { ring, socket, results: [0; BURST], statistics: TransmitStatistics::default() })
    }

    /// Sends the selected frames from position `from` on, and writes what the kernel said to each into `results`.
    fn send(&mut self, frames: &mut [Frame<'_>], selected: &[u8], from: usize) {
        let mut submitted = 0;
        for at in from..selected.len() {
            let Some(bytes) = virtio::with_offload_state(&mut frames[usize::from(selected[at])]) else {
                self.results[at] = libc::EINVAL;
                continue;
            };
            let request = opcode::Send::new(SOCKET, bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_DONTWAIT)
                .build()
                .user_data(at as u64);
            // SAFETY: needed to hand the frame to the kernel; sound because `complete` does not return before the request is
            // completed, and `frames` is borrowed for longer.
            if unsafe { self.ring.push(&request) } {
                submitted += 1;
            } else {
                self.results[at] = libc::ENOBUFS;
            }
        }
        self.complete(submitted);
    }

    /// Submits so many requests and takes all their completions.
    fn complete(&mut self, mut outstanding: usize) {
        while outstanding > 0 {
            self.statistics.calls += 1;
            match self.ring.enter(outstanding) {
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM) => {}
                // None of these comes of a ring and requests that are in order. The kernel still has frames that it would send
                // when they are long ours again, so that a panic, which a worker outlives, is not enough.
                Err(error) => {
                    eprintln!("io_uring failed in the middle of a burst: {error}");
                    std::process::abort();
                }
            }
            while let Some(completion) = self.ring.completion() {
                let at = completion.user_data() as usize;
                self.results[at] = completion.result().min(0).wrapping_neg();
                outstanding -= 1;
            }
        }
    }
}

impl Transmit for RingTransmitter {
    fn transmit(&mut self, frames: &mut [Frame<'_>], selected: &[u8], report: &mut TransmitReport) {
        let count = selected.len();
        assert!(count <= BURST, "{count} frames were selected, a burst has {BURST}");
        report.clear();
        if count == 0 {
            return;
        }
        match self.ring.enable() {
            Ok(()) => {
                self.send(frames, selected, 0);
                // Those for which there was no room are tried once more, unless a frame behind them has left: order is kept.
                let had_room = |result: &i32| !matches!(*result, libc::EAGAIN | libc::ENOBUFS);
                let from = self.results[..count].iter().rposition(had_room).map_or(0, |last| last + 1);
                if from < count {
                    self.statistics.waits += 1;
                    self.socket.wait_for_room();
                    self.send(frames, selected, from);
                }
            }
            Err(error) => self.results[..count].fill(error as i32),
        }
        for &result in &self.results[..count] {
            match result {
                0 => report.accept(1),
                error => report.refuse(Errno::from_raw(error)),
            }
        }
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

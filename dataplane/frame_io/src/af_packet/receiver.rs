//! The receiving half.

use std::os::fd::{AsFd, BorrowedFd};

use postern_wire::{Frame, PortIndex};

use super::fanout::PacketFanout;
use super::large::{Beginning, LargeFrames, Received};
use super::ring::{Ring, SlotHeader};
use super::socket::{Intake, PacketSocket};
use super::virtio;
use crate::device::{BURST, Burst, DeviceError, Receive, ReceiveStatistics};
use crate::interface::Interface;
use crate::vlan;

/// How often in a row there may be nothing before the socket is asked for an error that the kernel keeps for it: until it is
/// asked for, `poll` returns at once.
const EMPTY_BEFORE_CHECK: u32 = 16;

/// How a packet socket receives.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverConfig<'p> {
    /// What frames say of where they came in.
    pub port: PortIndex,
    /// Slots of the ring, 64…1,048,576; each takes 2 KB at an MTU of 1,500. Rounded up to whole blocks of 256 KB.
    pub slots: u32,
    /// Buffers of 66 KB for the frames larger than a slot in one burst, 1…64.
    pub large_buffers: u32,
    /// Bytes of frames larger than a slot that may wait in the socket's receive queue.
    pub receive_buffer: u32,
    /// Receive unicast frames for other stations too.
    pub promiscuous: bool,
    /// The fan-out group to join; `None` to receive every frame of the interface.
    pub fanout: Option<PacketFanout<'p>>,
    /// A loaded program of type BPF_PROG_TYPE_SOCKET_FILTER that says which frames are received.
    pub filter: Option<BorrowedFd<'p>>,
}

impl Default for ReceiverConfig<'_> {
    fn default() -> Self {
        Self {
            port: PortIndex(0),
            slots: 16_384,
            large_buffers: 16,
            receive_buffer: 16 << 20,
            promiscuous: false,
            fanout: None,
            filter: None,
        }
    }
}

/// The receiving half of a packet socket device.
#[derive(Debug)]
pub struct PacketReceiver {
    // Before the socket, so that it is unmapped first.
    ring: Ring,
    socket: PacketSocket,
    large: LargeFrames,
    port: PortIndex,
    /// The slot to look at next.
    next: u32,
    /// Slots right before `next` that are still ours.
    lent: u32,
    empty: u32,
    statistics: ReceiveStatistics,
}

impl PacketReceiver {
    /// Opens a socket on `interface` and begins to receive.
    ///
    /// Members of a fan-out group are opened in the order of their numbers, while the interface is up.
    ///
    /// # Errors
    /// If a setting is out of range, a capability is missing, or the kernel refuses.
    pub fn open(interface: &Interface, config: &ReceiverConfig<'_>) -> Result<Self, DeviceError> {
        let check = |setting, value: u32, range: std::ops::RangeInclusive<u32>, allowed| {
            if range.contains(&value) {
                return Ok(());
            }
            let interface = interface.name().to_owned();
            Err(DeviceError::Setting { interface, setting, value: u64::from(value), allowed })
        };
        check("slots", config.slots, 64..=1 << 20, "64…1048576 is allowed")?;
        check("large_buffers", config.large_buffers, 1..=64, "1…64 is allowed")?;

        let socket = PacketSocket::open(interface.name())?;
        socket.set_receive_buffer(config.receive_buffer)?;
        socket.set_packet(libc::PACKET_IGNORE_OUTGOING, &1i32, "ignore our own outgoing frames")?;
        let ring = Ring::map(&socket, config.slots, interface.mtu())?;
        let large = LargeFrames::new(interface.name(), config.large_buffers as usize, ring.slots())?;
        let ReceiverConfig { promiscuous, fanout, filter, .. } = *config;
        socket.start(interface, &Intake { promiscuous, fanout, filter })?;
        let port = config.port;
        Ok(Self { ring, socket, large, port, next: 0, lent: 0, empty: 0, statistics: ReceiveStatistics::default() })
    }

    /// Moves to the successor of a deleted interface, or to one whose MTU was changed, with a new socket: a ring's slots are of
    /// one size, and a member of a fan-out group cannot be bound again. Frames in the old ring are lost. Statistics go on.
    ///
    /// All members of a group move to a group of another number, in the order of their own.
    ///
    /// # Errors
    /// As [`PacketReceiver::open`]; the device stays as it was.
    pub fn rebind(&mut self, interface: &Interface, config: &ReceiverConfig<'_>) -> Result<(), DeviceError> {
        let mut successor = Self::open(interface, config)?;
        successor.statistics = self.statistics();
        *self = successor;
        Ok(())
    }

    /// The index of the interface to which the socket is bound; `None` after that interface was deleted.
    #[must_use]
    pub fn bound_interface(&self) -> Option<u32> {
        self.socket.bound_interface()
    }

    fn take<'a>(&mut self, slot: u32, header: &SlotHeader) -> Taken<'a> {
        // SAFETY: needed to lend the slot without a copy; sound because the slot is ours, and is given back only by
        // `release`, which needs `self` exclusively and so comes after the borrow of `receive` has ended.
        let Some((buffer, start)) = (unsafe { self.ring.lend(slot, header) }) else {
            self.statistics.truncated += 1;
            return Taken::Lost;
        };
        let offload = virtio::read_before(buffer, start);
        let frame = if header.captured == header.length {
            Frame::new(buffer, start, header.length as usize)
        } else if header.status & libc::TP_STATUS_COPY != 0 {
            let end = start + header.captured as usize;
            let beginning = Beginning { length: header.length as usize, bytes: &buffer[start - virtio::HEADER..end] };
            match self.large.receive(&self.socket, &beginning, &mut self.statistics) {
                Received::NoBuffer => return Taken::NoBuffer,
                Received::Lost => return Taken::Lost,
                Received::Whole => {}
            }
            self.statistics.large += 1;
            // SAFETY: needed to lend the buffer; sound because `receive` has just filled it, and buffers are taken back only
            // by `release`.
            let (buffer, start) = unsafe { self.large.lend() };
            Frame::new(buffer, start, header.length as usize)
        } else {
            self.statistics.truncated += 1;
            return Taken::Lost;
        };
        let Some(mut frame) = frame else {
            self.statistics.truncated += 1;
            return Taken::Lost;
        };
        frame.offload = offload;
        frame.ingress = self.port;
        if header.status & libc::TP_STATUS_VLAN_VALID != 0 {
            let tpid = (header.status & libc::TP_STATUS_VLAN_TPID_VALID != 0).then_some(header.vlan_tpid);
            vlan::set(&mut frame, tpid, header.vlan_tci);
        }
        Taken::Frame(frame)
    }

    /// What the kernel says went wrong with the interface.
    fn check(&mut self) -> Result<(), DeviceError> {
        self.empty = 0;
        self.socket.take_error().map_or(Ok(()), |error| Err(self.socket.receive_error(error)))
    }
}

enum Taken<'a> {
    Frame(Frame<'a>),
    Lost,
    NoBuffer,
}

impl Receive for PacketReceiver {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError> {
        self.release();
        let before = burst.len();
        while !burst.is_full() && self.lent < BURST as u32 {
            let Some(header) = self.ring.received(self.next) else { break };
            match self.take(self.next, &header) {
                Taken::Frame(frame) => {
                    let pushed = burst.push(frame);
                    debug_assert!(pushed.is_ok(), "the burst is not full");
                }
                Taken::Lost => {}
                Taken::NoBuffer => break,
            }
            self.next = self.ring.after(self.next);
            self.lent += 1;
        }
        let received = burst.len() - before;
        self.statistics.delivered += received as u64;
        if self.lent > 0 {
            self.empty = 0;
        } else {
            self.empty += 1;
            if self.empty >= EMPTY_BEFORE_CHECK {
                self.check()?;
            }
        }
        Ok(received)
    }

    fn release(&mut self) {
        self.large.release();
        let mut slot = (self.next + self.ring.slots() - self.lent) % self.ring.slots();
        for _ in 0..self.lent {
            self.ring.give_back(slot);
            slot = self.ring.after(slot);
        }
        self.lent = 0;
    }

    fn statistics(&mut self) -> ReceiveStatistics {
        self.statistics.kernel_drops += self.socket.new_drops().map_or(0, u64::from);
        self.statistics
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

//! Fan-out groups (packet(7), `PACKET_FANOUT`): several workers' sockets share one interface's frames.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket::PacketSocket;
use crate::device::DeviceError;

/// How a group chooses the member that receives a frame.
#[derive(Clone, Copy, Debug)]
pub enum FanoutMode<'p> {
    /// By the kernel's hash of the flow, which has a random key and the same value for both directions.
    Hash,
    /// By the value that a loaded program of type BPF_PROG_TYPE_SOCKET_FILTER returns, modulo the number of members. The
    /// frame's data begins at its network header.
    Program(BorrowedFd<'p>),
}

/// Membership in a fan-out group: all members' sockets are on the same interface.
///
/// A member's number is the order in which it joined. When one leaves, the last takes its number, so a worker that
/// restarts is lent its old socket rather than given a new one.
#[derive(Clone, Copy, Debug)]
pub struct PacketFanout<'p> {
    /// Names the group in this network namespace; one group for each interface.
    pub group: u16,
    /// How a member is chosen.
    pub mode: FanoutMode<'p>,
}

impl PacketFanout<'_> {
    /// Joins with a socket that is bound to an interface that is up.
    pub(crate) fn join(&self, socket: &PacketSocket) -> Result<(), DeviceError> {
        let mode = match self.mode {
            FanoutMode::Hash => libc::PACKET_FANOUT_HASH,
            FanoutMode::Program(_) => libc::PACKET_FANOUT_EBPF,
        };
        // A group does not inherit its members' PACKET_IGNORE_OUTGOING: without the flag our own frames come back.
        let flags = mode | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        socket.set_packet(libc::PACKET_FANOUT, &(u32::from(self.group) | flags << 16), "join the fan-out group")?;
        match self.mode {
            FanoutMode::Hash => Ok(()),
            FanoutMode::Program(program) => {
                socket.set_packet(libc::PACKET_FANOUT_DATA, &program.as_raw_fd(), "attach the fan-out program")
            }
        }
    }
}

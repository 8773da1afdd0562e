//! Which back end a port's devices have, and how they are opened.

use std::fmt;
use std::os::fd::BorrowedFd;

use postern_frame_io::DeviceError;
use postern_frame_io::af_packet::{PacketFanout, PacketReceiver, PacketTransmitter, ReceiverConfig, SEND_BUFFER};
use postern_frame_io::interface::Interface;
use postern_frame_io::io_uring::{RingReceiver, RingReceiverConfig, RingTransmitter};
use postern_tables::declaration::Io;
use postern_wire::PortIndex;

use crate::link::PortDevice;

/// Slots of a ring: at an MTU of 1,500 8 MB for each worker and port.
const SLOTS: u32 = 4096;
/// Super-frames in one burst.
const LARGE_BUFFERS: u32 = 32;
/// Bytes of frames that may wait in a socket: super-frames, with io_uring all.
const RECEIVE_BUFFER: u32 = 32 << 20;

/// Buffers of a device on io_uring: those of one burst, and the 32 that the kernel may fill beyond it.
const BUFFERS: u16 = 128;
/// The same where a thread of the kernel fills them while the worker does something else.
const BUFFERS_OF_KERNEL_THREAD: u16 = 1024;

/// What a port's devices are made of: a choice that was made, unlike [`Io`], which may leave it open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackEnd {
    /// Packet sockets with a receive ring.
    AfPacket,
    /// Packet sockets through io_uring.
    IoUring,
}

/// Why a port cannot have the back end that is wanted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackEndError {
    /// This version has no such back end.
    #[error("\"{0}\" is not in this version of postern; allowed are \"af_packet\" and \"io_uring\"")]
    Absent(Io),
}

/// What is to be opened: a port, for every worker.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'p> {
    /// The interface.
    pub interface: &'p Interface,
    /// What frames say of where they came in.
    pub port: PortIndex,
    /// How many devices: one for each worker.
    pub workers: u16,
    /// Whether frames to other stations are received too.
    pub promiscuous: bool,
    /// How the workers share the frames; `None` with one worker.
    pub fanout: Option<PacketFanout<'p>>,
    /// The program that says which frames are received; `None`: all.
    pub filter: Option<BorrowedFd<'p>>,
    /// Whether threads of the kernel receive, where the back end is io_uring.
    pub kernel_thread: bool,
}

impl BackEnd {
    /// The back end for what was declared.
    ///
    /// # Errors
    /// When there is none.
    pub const fn choose(io: Io) -> Result<Self, BackEndError> {
        match io {
            Io::AfPacket => Ok(Self::AfPacket),
            Io::IoUring => Ok(Self::IoUring),
            Io::AfXdp | Io::Auto => Err(BackEndError::Absent(io)),
        }
    }

    /// Opens a port's devices, by worker.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(self, opening: &Opening<'_>) -> Result<Vec<PortDevice>, DeviceError> {
        match self {
            Self::AfPacket => (0..opening.workers).map(|_| af_packet(opening)).collect(),
            Self::IoUring => (0..opening.workers).map(|_| io_uring(opening)).collect(),
        }
    }
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AfPacket => "af_packet",
            Self::IoUring => "io_uring",
        })
    }
}

fn af_packet(opening: &Opening<'_>) -> Result<PortDevice, DeviceError> {
    let config = ReceiverConfig {
        port: opening.port,
        slots: SLOTS,
        large_buffers: LARGE_BUFFERS,
        receive_buffer: RECEIVE_BUFFER,
        promiscuous: opening.promiscuous,
        fanout: opening.fanout,
        filter: opening.filter,
    };
    Ok(PortDevice {
        receive: Box::new(PacketReceiver::open(opening.interface, &config)?),
        transmit: Box::new(PacketTransmitter::open(opening.interface, SEND_BUFFER)?),
    })
}

fn io_uring(opening: &Opening<'_>) -> Result<PortDevice, DeviceError> {
    let config = RingReceiverConfig {
        port: opening.port,
        buffers: if opening.kernel_thread { BUFFERS_OF_KERNEL_THREAD } else { BUFFERS },
        receive_buffer: RECEIVE_BUFFER,
        promiscuous: opening.promiscuous,
        fanout: opening.fanout,
        filter: opening.filter,
        kernel_thread: opening.kernel_thread,
    };
    Ok(PortDevice {
        receive: Box::new(RingReceiver::open(opening.interface, &config)?),
        transmit: Box::new(RingTransmitter::open(opening.interface, SEND_BUFFER)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_is_called_as_it_is_declared_and_what_is_not_there_is_said() {
        for io in [Io::AfPacket, Io::IoUring] {
            assert_eq!(BackEnd::choose(io).map(|back_end| back_end.to_string()), Ok(io.to_string()));
        }
        let error = BackEnd::choose(Io::AfXdp).unwrap_err().to_string();
        assert_eq!(error, "\"af_xdp\" is not in this version of postern; allowed are \"af_packet\" and \"io_uring\"");
    }
}

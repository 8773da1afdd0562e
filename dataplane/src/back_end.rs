//! Which back end a port's devices have, and how they are opened.

use std::fmt;
use std::fs;
use std::os::fd::BorrowedFd;

use postern_frame_io::DeviceError;
use postern_frame_io::af_packet::{PacketFanout, PacketReceiver, PacketTransmitter, ReceiverConfig, SEND_BUFFER};
use postern_frame_io::features::{self, Features};
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

/// A back end, and why it is that one, in words for an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The back end.
    pub back_end: BackEnd,
    /// Why.
    pub reason: String,
}

/// Why a port cannot have the back end that is wanted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackEndError {
    /// This version has no such back end.
    #[error("\"{0}\" is not in this version of postern; allowed are \"af_packet\", \"io_uring\" and \"auto\"")]
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
    /// The back end for what was declared of the port with this interface, which may not be there.
    ///
    /// # Errors
    /// When there is none.
    pub fn choose(io: Io, interface: &str) -> Result<Choice, BackEndError> {
        let declared = |back_end| Ok(Choice { back_end, reason: "as declared".to_owned() });
        match io {
            Io::AfPacket => declared(Self::AfPacket),
            Io::IoUring => declared(Self::IoUring),
            Io::Auto => Ok(auto(interface)),
            Io::AfXdp => Err(BackEndError::Absent(io)),
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

/// Both back ends carry the same frames on every interface, and io_uring takes more CPU time for small ones (decision 0024), so
/// that the interface decides nothing yet; what it offers is said all the same, because it decides how fast the port can be.
fn auto(interface: &str) -> Choice {
    let offers = match Features::read(interface) {
        Err(error) => error.to_string(),
        Ok(features) => {
            let segments = if features.is_active(features::TCP_SEGMENTATION) { "takes" } else { "does not take" };
            format!("{}, {}; the interface {segments} TCP super-frames", driver(interface), queues(interface))
        }
    };
    let reason = format!(
        "small frames take less CPU time by the ring of a packet socket than by io_uring, super-frames the same ({offers})"
    );
    Choice { back_end: BackEnd::AfPacket, reason }
}

/// The driver, as far as sysfs shows this network namespace.
fn driver(interface: &str) -> String {
    let link = fs::read_link(format!("/sys/class/net/{interface}/device/driver"));
    let name = link.ok().and_then(|path| Some(format!("driver {}", path.file_name()?.to_string_lossy())));
    name.unwrap_or_else(|| "a virtual interface".to_owned())
}

fn queues(interface: &str) -> String {
    let entries = fs::read_dir(format!("/sys/class/net/{interface}/queues"));
    let receive = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("rx-");
    match entries.map(|entries| entries.flatten().filter(receive).count()) {
        Ok(1) => "1 receive queue".to_owned(),
        Ok(count) => format!("{count} receive queues"),
        Err(_) => "an unknown number of receive queues".to_owned(),
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
            let choice = BackEnd::choose(io, "lo").unwrap();
            assert_eq!((choice.back_end.to_string(), choice.reason), (io.to_string(), "as declared".to_owned()));
        }
        let error = BackEnd::choose(Io::AfXdp, "lo").unwrap_err().to_string();
        let expected =
            "\"af_xdp\" is not in this version of postern; allowed are \"af_packet\", \"io_uring\" and \"auto\"";
        assert_eq!(error, expected);
    }

    #[test]
    fn what_is_chosen_is_explained_by_the_interface_also_if_there_is_none() {
        let choice = BackEnd::choose(Io::Auto, "lo").unwrap();
        assert_eq!(choice.back_end, BackEnd::AfPacket);
        assert!(choice.reason.contains("1 receive queue; the interface"), "{}", choice.reason);
        let choice = BackEnd::choose(Io::Auto, "not-there").unwrap();
        assert!(choice.reason.contains("there is no interface \"not-there\""), "{}", choice.reason);
    }
}

//! Packet sockets (packet(7), Documentation/networking/packet_mmap.rst): the device that works on any interface.
//!
//! One [`PacketReceiver`] and one [`PacketTransmitter`] for each port and worker. Frames travel with the ten bytes of
//! `virtio_net_hdr` (`PACKET_VNET_HDR`), so that super-frames and partial checksums cross user space as they are. They are
//! received from a TPACKET_V2 ring whose slots fit the port's MTU; larger frames come by one `recv` each
//! (`PACKET_COPY_THRESH`). TPACKET_V3 would cost a millisecond of latency, and `PACKET_QDISC_BYPASS` would lose
//! super-frames that the interface cannot segment.

mod fanout;
pub(crate) mod large;
mod receiver;
mod ring;
pub(crate) mod socket;
mod transmitter;
pub(crate) mod virtio;

pub use fanout::{FanoutMode, PacketFanout};
pub use receiver::{PacketReceiver, ReceiverConfig};
pub use transmitter::{PacketTransmitter, SEND_BUFFER};

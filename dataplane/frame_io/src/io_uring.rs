//! Packet sockets through io_uring (io_uring(7)): the same sockets, offload state, filters and fan-out groups as
//! [`af_packet`](crate::af_packet), driven by rings of requests and completions.
//!
//! The receiving half keeps one multishot `RECVMSG` in its ring: each frame that comes takes a buffer out of a ring of
//! provided buffers and puts a completion into the ring, and the buffer goes back when its burst was let go. VLAN tags come
//! beside the frame (`PACKET_AUXDATA`). Every buffer holds the largest super-frame, because what does not fit a buffer is
//! lost, and only the pages that frames have touched are memory.
//! The transmitting half sends a burst by one system call that submits one `SEND` a frame and takes their completions.
//!
//! The kernel does its part of the work when a worker asks for it (`IORING_SETUP_DEFER_TASKRUN`), never in the middle of
//! something else, or, if so wanted, in a thread of its own (`IORING_SETUP_SQPOLL`). Needs kernel 6.1.

mod buffers;
mod receiver;
mod ring;
mod transmitter;

pub use receiver::{RingReceiver, RingReceiverConfig};
pub use transmitter::RingTransmitter;

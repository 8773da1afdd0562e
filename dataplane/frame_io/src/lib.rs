//! Kernel to frames: devices, rings, fan-out, bpf(2), pinning. All unsafe code lives here.

pub mod af_packet;
pub mod bpf;
pub mod capture;
pub mod device;
pub mod fault;
pub mod features;
pub mod interface;
pub mod io_uring;
pub mod memory;
pub mod pin;
pub mod poll;
pub mod region;
pub mod tc;
mod vlan;

pub use device::{
    BURST, Burst, Capabilities, DeviceError, Receive, ReceiveStatistics, Transmit, TransmitReport, TransmitStatistics,
};
pub use nix::errno::Errno;

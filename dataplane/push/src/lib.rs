//! The protocol between control and gateways: its messages, what of the tables they carry, and how a change is cut into
//! parts and put together again.
//!
//! [`proto`] is generated from `proto/postern/push/v1/push.proto`, where each message and the order of messages are
//! described; a test keeps it the same as the file. Either side enables what it needs of tonic's transport.
#![forbid(unsafe_code)]

mod resource;
mod update;

/// The messages, the client of gateways and the server of control, as generated.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, rustdoc::all)]
pub mod proto {
    include!("generated/postern.push.v1.rs");
}

pub use resource::ConversionError;
pub use update::{Assembled, Assembler, AssemblyError, parts};

/// The version of the protocol that this program speaks, and the only one.
pub const VERSION: u32 = 1;

/// Parts of an update are cut at so many bytes. One object may be larger.
pub const PART_BYTES: usize = 1 << 20;

/// Largest message that either side takes, in bytes: a part that ends with the largest object, a target group of 65,535
/// targets.
pub const MESSAGE_BYTES: usize = 8 << 20;

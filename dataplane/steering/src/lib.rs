//! `owner(frame) → worker`: one meaning, computed here in Rust and by BPF instructions from the same description.
//!
//! A [`Steering`] describes one port: who owns which bucket and block ([`Ownership`]) and which addresses are Postern's
//! there ([`LocalAddresses`]). From it come the answer in Rust ([`Steering::owner`], [`LocalAddresses::claims`]), the
//! programs that give the same answer in the kernel ([`program::fan_out`], [`filter`]), and the contents of their maps
//! ([`maps`]). Nothing here calls the kernel: whoever holds the descriptors loads the programs and fills the maps.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod assembler;
pub mod filter;
pub mod maps;
pub mod owner;
pub mod ownership;
pub mod packet;
pub mod program;

pub use addresses::{LocalAddresses, LocalKind};
pub use maps::{AddressChanges, MapSlot};
pub use owner::Steering;
pub use ownership::{BLOCK_PORTS, BLOCKS, BUCKETS, Ownership};
pub use packet::Packet;
pub use program::Program;

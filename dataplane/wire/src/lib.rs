//! Bytes to meaning and back: frames with their offload state, header views, checksums, flow keys, address types.
//!
//! Everything here is pure and allocates nothing. Multi-byte header fields are big-endian on the wire; the accessors
//! return host integers. Words that only take part in one's complement sums are kept in memory order (RFC 1071 §2 (B):
//! the sum is independent of the byte order), so that no byte is swapped on the packet path.
#![forbid(unsafe_code)]

pub mod address;
pub mod arp;
pub mod checksum;
pub mod fragment;
pub mod frame;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod key;
pub mod nd;
pub mod parse;
pub mod plain6;
pub mod tcp;

pub use address::{IpPrefix, Ipv4Prefix, Ipv6Prefix, MacAddress};
pub use fragment::{Fragment, FragmentError};
pub use frame::{Frame, Offload, PortIndex, Segmentation};
pub use key::{AttachmentIndex, Direction, Family, FlowKey};
pub use parse::{PacketKind, ParseError, Parsed, parse};

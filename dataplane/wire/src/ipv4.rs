//! The IPv4 header (RFC 791 §3.1), for packets that Postern makes itself.

use std::net::Ipv4Addr;

use crate::checksum::checksum;

/// Length of a header without options, in bytes.
pub const HEADER: usize = 20;

/// Writes a 20-byte header with DF set, identification 0 (RFC 6864 §4.1: atomic datagrams) and a right checksum.
///
/// `length` is the total length, header included.
pub fn write_header(
    bytes: &mut [u8; HEADER],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    length: u16,
    ttl: u8,
) {
    bytes.fill(0);
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[6] = 0x40;
    bytes[8] = ttl;
    bytes[9] = protocol;
    bytes[12..16].copy_from_slice(&source.octets());
    bytes[16..20].copy_from_slice(&destination.octets());
    let sum = checksum(bytes.as_slice(), 0);
    bytes[10..12].copy_from_slice(&sum.to_le_bytes());
}

//! The IPv4 header (RFC 791 §3.1), for packets that Postern makes itself.

use std::net::Ipv4Addr;

use crate::checksum::checksum;

/// Length of a header without options, in bytes.
pub const HEADER: usize = 20;

/// Offset of the type of service: DSCP and ECN.
pub const TYPE_OF_SERVICE: usize = 1;
/// Offset of the total length.
pub const TOTAL_LENGTH: usize = 2;
/// Offset of the identification.
pub const IDENTIFICATION: usize = 4;
/// Offset of the flags and the fragment offset.
pub const FRAGMENT: usize = 6;
/// Offset of the time to live.
pub const TTL: usize = 8;
/// Offset of the protocol.
pub const PROTOCOL: usize = 9;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address, behind which is the destination address.
pub const ADDRESSES: usize = 12;

/// Length of the header, in bytes, that its first byte says: 20…60. `None` if the version is not 4 or the length below 20.
#[inline]
#[must_use]
pub const fn header_length(first: u8) -> Option<usize> {
    let length = (first & 0x0f) as usize * 4;
    if first >> 4 == 4 && length >= HEADER { Some(length) } else { None }
}

/// Writes the right checksum into a header with its options.
///
/// # Panics
/// If `header` is shorter than 12 bytes.
pub fn complete_checksum(header: &mut [u8]) {
    header[CHECKSUM..CHECKSUM + 2].fill(0);
    let sum = checksum(header, 0);
    header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
}

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

//! ICMPv6 (RFC 4443): types and codes that a translator handles, and the checksum, which covers the pseudo-header.

use crate::checksum::{checksum, pseudo_header_v6};
use crate::ipv6::AddressPair;
use crate::parse::PROTOCOL_ICMPV6;

/// Destination unreachable.
pub const DESTINATION_UNREACHABLE: u8 = 1;
/// Packet too big: the second word of the header is the MTU.
pub const PACKET_TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem: the second word of the header is a pointer into the quoted packet.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Router solicitation (RFC 4861 §4.1), the first type of Neighbor Discovery.
pub const ROUTER_SOLICITATION: u8 = 133;
/// Neighbor solicitation (RFC 4861 §4.3).
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Neighbor advertisement (RFC 4861 §4.4).
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Redirect (RFC 4861 §4.5), the last type of Neighbor Discovery.
pub const REDIRECT: u8 = 137;

/// Code of [`DESTINATION_UNREACHABLE`]: no route to the destination.
pub const NO_ROUTE: u8 = 0;
/// Code of [`DESTINATION_UNREACHABLE`]: administratively prohibited.
pub const ADMINISTRATIVELY_PROHIBITED: u8 = 1;
/// Code of [`DESTINATION_UNREACHABLE`]: address unreachable.
pub const ADDRESS_UNREACHABLE: u8 = 3;
/// Code of [`DESTINATION_UNREACHABLE`]: port unreachable.
pub const PORT_UNREACHABLE: u8 = 4;
/// Code of [`TIME_EXCEEDED`]: hop limit exceeded in transit.
pub const HOP_LIMIT_EXCEEDED: u8 = 0;
/// Code of [`PARAMETER_PROBLEM`]: erroneous header field.
pub const ERRONEOUS_FIELD: u8 = 0;
/// Code of [`PARAMETER_PROBLEM`]: unrecognised next header.
pub const UNRECOGNISED_NEXT_HEADER: u8 = 1;

/// Offset of the checksum field in the header.
pub const CHECKSUM: usize = 2;
/// Offset in the header of the quote's length in words of 64 bits, 0 for "up to the end" (RFC 4884 §4.4, 4.5).
pub const QUOTE_LENGTH: usize = 4;
/// Length of the header in front of a quoted packet, in bytes.
pub const HEADER: usize = 8;

/// Whether a message of this type quotes the packet that caused it, and is one that a translator knows.
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, DESTINATION_UNREACHABLE | PACKET_TOO_BIG | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// Writes the right checksum into a message that is sent between these addresses.
///
/// # Panics
/// If `message` is shorter than 4 bytes.
pub fn complete_checksum(message: &mut [u8], addresses: &AddressPair) {
    message[CHECKSUM..CHECKSUM + 2].fill(0);
    let sum = checksum(message, pseudo_header_v6(addresses, PROTOCOL_ICMPV6, message.len() as u16));
    message[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
}

/// Whether the checksum of a message that was sent between these addresses is right.
#[must_use]
pub fn checksum_is_right(message: &[u8], addresses: &AddressPair) -> bool {
    checksum(message, pseudo_header_v6(addresses, PROTOCOL_ICMPV6, message.len() as u16)) == 0
}

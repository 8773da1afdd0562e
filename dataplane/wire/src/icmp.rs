//! ICMP (RFC 792): types and codes that a translator handles.

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Source quench (RFC 6633: obsolete, still translated).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect: an error message that is never translated, but nothing may answer it either.
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Code of [`DESTINATION_UNREACHABLE`]: fragmentation needed and DF set (RFC 1191).
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`DESTINATION_UNREACHABLE`]: host unreachable.
pub const HOST_UNREACHABLE: u8 = 1;
/// Code of [`DESTINATION_UNREACHABLE`]: communication administratively prohibited (RFC 1812 §5.2.7.1).
pub const ADMINISTRATIVELY_PROHIBITED: u8 = 13;
/// Code of [`TIME_EXCEEDED`]: time to live exceeded in transit.
pub const TTL_EXCEEDED: u8 = 0;
/// Offset of the checksum field in the ICMP header.
pub const CHECKSUM: usize = 2;
/// Offset in the ICMP header of the quote's length in words of 32 bits, 0 for "up to the end" (RFC 4884 §4).
pub const QUOTE_LENGTH: usize = 5;
/// Length of the ICMP header in front of a quoted packet, in bytes.
pub const HEADER: usize = 8;

/// Whether a message of this type quotes the packet that caused it.
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, DESTINATION_UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

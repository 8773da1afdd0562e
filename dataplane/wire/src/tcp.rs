//! The TCP header (RFC 9293 §3.1): flags and options.

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgement number is valid.
pub const ACK: u8 = 0x10;

/// Offset of the checksum field in the header.
pub const CHECKSUM: usize = 16;
/// Length of a header without options, in bytes.
pub const HEADER: usize = 20;
/// Kind of the maximum segment size option (RFC 9293 §3.7.1).
pub const OPTION_MSS: u8 = 2;

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
/// The urgent pointer is valid.
pub const URG: u8 = 0x20;
/// ECN echo (RFC 3168 §6.1).
pub const ECE: u8 = 0x40;
/// Congestion window reduced (RFC 3168 §6.1).
pub const CWR: u8 = 0x80;

/// Offset of the sequence number.
pub const SEQUENCE: usize = 4;
/// Offset of the acknowledgement number.
pub const ACKNOWLEDGEMENT: usize = 8;
/// Offset of the data offset, in the upper four bits.
pub const DATA_OFFSET: usize = 12;
/// Offset of the flags.
pub const FLAGS: usize = 13;
/// Offset of the checksum field in the header.
pub const CHECKSUM: usize = 16;
/// Length of a header without options, in bytes.
pub const HEADER: usize = 20;
/// Kind of the maximum segment size option (RFC 9293 §3.7.1).
pub const OPTION_MSS: u8 = 2;

/// Length of the header, in bytes, that its data offset says: 0…60. [`crate::parse()`] has checked that a segment's is at
/// least 20 and within the packet.
#[inline]
#[must_use]
pub const fn header_length(data_offset: u8) -> usize {
    (data_offset >> 4) as usize * 4
}

/// An option of a TCP header, without its kind and length bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpOption {
    /// Kind (IANA, TCP Option Kind Numbers).
    pub kind: u8,
    /// Offset of its data in the header.
    pub data: usize,
    /// Length of its data in bytes.
    pub length: usize,
}

/// The options of a TCP header of which `header` is all bytes; ends at the end of the list (kind 0), and at the first option
/// that is malformed. Padding (kind 1) is passed over.
pub fn options(header: &[u8]) -> impl Iterator<Item = TcpOption> + '_ {
    let mut at = HEADER;
    std::iter::from_fn(move || {
        let option = option_at(header, at);
        // Nothing behind a malformed option can be trusted.
        at = option.map_or(header.len(), |option| option.data + option.length);
        option
    })
}

/// The first option at `at` or, behind padding, after it; `None` at the end of the list and where it is malformed.
#[inline]
#[must_use]
pub fn option_at(header: &[u8], mut at: usize) -> Option<TcpOption> {
    // Kind and length; a last byte without one is padding or nothing.
    while at + 1 < header.len() {
        let kind = header[at];
        if kind == 1 {
            at += 1;
            continue;
        }
        let length = usize::from(header[at + 1]);
        let is_whole = kind != 0 && length >= 2 && at + length <= header.len();
        return is_whole.then_some(TcpOption { kind, data: at + 2, length: length.wrapping_sub(2) });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_behind_padding_and_end_at_a_malformed_one() {
        let mut header = [0u8; 40];
        header[20..27].copy_from_slice(&[1, 2, 4, 0x05, 0xb4, 1, 1]);
        header[27..30].copy_from_slice(&[3, 3, 7]);
        let kinds = |header: &[u8]| options(header).map(|option| (option.kind, option.data)).collect::<Vec<_>>();
        assert_eq!(kinds(&header), [(2, 23), (3, 29)]);
        header[28] = 1;
        assert_eq!(kinds(&header), [(2, 23)]);
        header[28] = 14;
        assert_eq!(kinds(&header), [(2, 23)]);
        assert_eq!(kinds(&header[..22]), []);
        assert_eq!(kinds(&header[..20]), []);
    }
}

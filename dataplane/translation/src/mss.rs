//! Clamping the maximum segment size that a SYN offers, so that neither end sends what a later hop cannot carry.

use postern_wire::checksum::Delta;
use postern_wire::{Frame, PacketKind, Parsed, tcp};

/// Length of the option's data, in bytes.
const MSS_LENGTH: usize = 2;

/// Lowers the maximum segment size option (RFC 9293 §3.7.1) of a SYN or SYN-ACK to `mss` bytes; true if that changed the
/// packet. A smaller offer stays, and no option is added. The walk over the options ends at the first of this kind, as a
/// segment has one at most, and at a malformed one.
///
/// A complete checksum is updated. A partial one holds the pseudo-header's sum only and stays as it is.
pub fn clamp(frame: &mut Frame<'_>, parsed: &Parsed, mss: u16) -> bool {
    if parsed.kind != PacketKind::Tcp || parsed.tcp_flags & tcp::SYN == 0 {
        return false;
    }
    let l4 = usize::from(parsed.l4);
    let partial = frame.offload.is_partial() && frame.offload.checksum_start == parsed.l4;
    let Some(segment) = frame.bytes_mut().get_mut(l4..) else { return false };
    let Some(length) = segment.get(tcp::DATA_OFFSET).map(|byte| tcp::header_length(*byte)) else { return false };
    let Some(header) = segment.get_mut(..length) else { return false };
    let mut next = tcp::HEADER;
    while let Some(tcp::TcpOption { kind, data: at, length }) = tcp::option_at(header, next) {
        if kind == tcp::OPTION_MSS && length == MSS_LENGTH {
            return lower(header, at, mss, partial);
        }
        next = at + length;
    }
    false
}

/// Lowers the offer at an offset of a TCP header, if it is above `mss`.
#[inline(always)]
fn lower(header: &mut [u8], at: usize, mss: u16, partial: bool) -> bool {
    let offered = [header[at], header[at + 1]];
    if u16::from_be_bytes(offered) <= mss {
        return false;
    }
    header[at..at + 2].copy_from_slice(&mss.to_be_bytes());
    if !partial {
        // An option may begin anywhere. At an odd offset its bytes are the second of one word and the first of the next.
        let sum =
            |bytes| u64::from(if at.is_multiple_of(2) { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) });
        let delta = Delta::between(sum(offered), sum(mss.to_be_bytes()));
        let field = u16::from_le_bytes([header[tcp::CHECKSUM], header[tcp::CHECKSUM + 1]]);
        header[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&delta.apply(field).to_le_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use postern_wire::{Offload, parse};
    use proptest::prelude::*;

    use super::*;

    /// A SYN whose header carries these bytes of options, with a right checksum.
    fn syn(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut header = etherparse::TcpHeader::new(1234, 80, 7, 1000);
        header.set_options_raw(&options).unwrap();
        header.syn = flags & tcp::SYN != 0;
        header.ack = flags & tcp::ACK != 0;
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp_header(header)
            .write(&mut bytes, b"data")
            .unwrap();
        bytes
    }

    fn checksum_is_right(bytes: &[u8]) -> bool {
        let ip = etherparse::Ipv4Slice::from_slice(&bytes[14..]).unwrap();
        let tcp = etherparse::TcpSlice::from_slice(ip.payload().payload).unwrap();
        let header = ip.header();
        tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap() == tcp.checksum()
    }

    fn clamped(bytes: &mut [u8], offload: Offload, mss: u16) -> bool {
        let length = bytes.len();
        let mut frame = Frame::new(bytes, 0, length).unwrap();
        frame.offload = offload;
        let parsed = parse(&frame).unwrap();
        clamp(&mut frame, &parsed, mss)
    }

    #[test]
    fn an_offer_above_the_clamp_is_lowered_and_one_below_stays() {
        for flags in [tcp::SYN, tcp::SYN | tcp::ACK] {
            let mut bytes = syn(flags, &[2, 4, 0x05, 0x78]);
            assert!(!clamped(&mut bytes, Offload::NONE, 1500));
            assert_eq!(bytes, syn(flags, &[2, 4, 0x05, 0x78]));
            assert!(clamped(&mut bytes, Offload::NONE, 1000));
            assert_eq!(bytes, syn(flags, &[2, 4, 0x03, 0xe8]));
        }
    }

    #[test]
    fn nothing_is_added_to_a_syn_without_the_option_and_nothing_else_is_touched() {
        for (flags, options) in
            [(tcp::SYN, &[1u8, 1, 3, 3, 7][..]), (tcp::ACK, &[2, 4, 0x05, 0x78]), (tcp::SYN, &[2, 3, 5])]
        {
            let mut bytes = syn(flags, options);
            assert!(!clamped(&mut bytes, Offload::NONE, 1000));
            assert_eq!(bytes, syn(flags, options));
        }
    }

    #[test]
    fn a_partial_checksum_stays_as_it_is() {
        let mut bytes = syn(tcp::SYN, &[2, 4, 0x05, 0x78]);
        let field = [0xab, 0xcd];
        bytes[50..52].copy_from_slice(&field);
        let offload =
            Offload { flags: Offload::NEEDS_CHECKSUM, checksum_start: 34, checksum_offset: 16, ..Offload::NONE };
        assert!(clamped(&mut bytes, offload, 1000));
        assert_eq!((&bytes[50..52], &bytes[56..58]), (&field[..], &[0x03, 0xe8][..]));
    }

    proptest! {
        #[test]
        fn at_any_offset_the_checksum_is_right_afterwards(offered: u16, mss: u16, padding in 0usize..30) {
            let mut options = vec![1; padding];
            options.extend([2, 4]);
            options.extend(offered.to_be_bytes());
            let mut bytes = syn(tcp::SYN, &options);
            prop_assert_eq!(clamped(&mut bytes, Offload::NONE, mss), offered > mss);
            let at = 54 + padding + 2;
            prop_assert_eq!(u16::from_be_bytes([bytes[at], bytes[at + 1]]), offered.min(mss));
            prop_assert!(checksum_is_right(&bytes));
        }

        #[test]
        fn no_options_make_it_panic_or_break_the_checksum(options in proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..=40), mss: u16) {
            let mut bytes = syn(tcp::SYN, &options);
            clamped(&mut bytes, Offload::NONE, mss);
            prop_assert!(checksum_is_right(&bytes));
        }
    }
}

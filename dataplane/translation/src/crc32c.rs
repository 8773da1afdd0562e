//! CRC-32C (Castagnoli; RFC 3720 appendix B.4): the checksum of PROXY protocol headers, once for each connection. A table of 1 KB and a
//! step for each byte: a hundred bytes are not worth a dependency.

/// The polynomial 0x1EDC6F41, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut remainder = at as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ (if remainder & 1 != 0 { POLYNOMIAL } else { 0 });
            bit += 1;
        }
        table[at] = remainder;
        at += 1;
    }
    table
};

/// The checksum of `bytes`.
#[must_use]
pub const fn crc32c(bytes: &[u8]) -> u32 {
    let mut remainder = u32::MAX;
    let mut at = 0;
    while at < bytes.len() {
        remainder = TABLE[(remainder as u8 ^ bytes[at]) as usize] ^ remainder >> 8;
        at += 1;
    }
    !remainder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_3720_come_out() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        // The RFC prints the bytes as they are sent, lowest first.
        for (bytes, wanted) in [
            (&[0; 32][..], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32][..], [0x43, 0xab, 0xa8, 0x62]),
            (&ascending[..], [0x4e, 0x79, 0xdd, 0x46]),
            (&descending[..], [0x5c, 0xdb, 0x3f, 0x11]),
        ] {
            assert_eq!(crc32c(bytes).to_le_bytes(), wanted);
        }
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}

//! Keyed choice: where in the port space a flow lands must not be guessed by who sees other ports (RFC 6056 §3).

use super::region::Region;

/// Bits that a lease from the hand needs.
pub(super) const FEW_BITS: u32 = 21;

impl Region<'_> {
    /// The next 64 bits of the stream.
    #[inline(never)]
    pub(super) fn draw(&mut self) -> u64 {
        let header = &mut *self.header;
        header.draws = header.draws.wrapping_add(1);
        draw(header.secret, header.draws)
    }

    /// The next [`FEW_BITS`] bits: each draw serves three times.
    #[inline]
    pub(super) fn draw_few(&mut self) -> u32 {
        if self.header.spares == 0 {
            (self.header.spare, self.header.spares) = (self.draw(), 3);
        }
        let random = self.header.spare as u32 % (1 << FEW_BITS);
        self.header.spare >>= FEW_BITS;
        self.header.spares -= 1;
        random
    }
}

/// SipHash-1-3 of one word under a 128-bit key: the stream of draws is this function of a counter.
pub(super) const fn draw(key: [u64; 2], counter: u64) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    v[3] ^= counter;
    v = round(v);
    v[0] ^= counter;
    // The closing block: eight bytes were hashed.
    let last = 8 << 56;
    v[3] ^= last;
    v = round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    v = round(round(round(v)));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// Keyed hash for the indexes of lanes and blocks, whose keys are declared by operators: two folded multiplications. The
/// constants keep it sound under a weak secret, such as tests like to use.
pub(super) const fn index_hash(secret: [u64; 2], first: u64, second: u64) -> u64 {
    let mixed = folded_multiply(first ^ secret[0] ^ 0xa076_1d64_78bd_642f, second ^ secret[1] ^ 0xe703_7ed1_a0b4_28db);
    folded_multiply(mixed ^ secret[1], 0x9e37_79b9_7f4a_7c15)
}

const fn folded_multiply(left: u64, right: u64) -> u64 {
    let product = left as u128 * right as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The standard library's default hasher is SipHash-1-3 under a key of zero.
    #[test]
    fn a_draw_is_siphash_1_3() {
        use std::hash::{DefaultHasher, Hasher};
        for counter in [0, 1, 0x0706_0504_0302_0100, u64::MAX] {
            let mut theirs = DefaultHasher::new();
            theirs.write(&counter.to_le_bytes());
            assert_eq!(draw([0, 0], counter), theirs.finish());
        }
        assert_ne!(draw([0, 1], 7), draw([1, 0], 7));
    }
}

//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! All words are read in memory order with `from_le_bytes`, on every machine; RFC 1071 §2 (B) shows that sums made so
//! are the byte-swapped sums, and a field that is read and written the same way comes out right.

/// Folds a sum of 16-bit words into 16 bits with end-around carry.
#[inline]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    // In the high half of a number plus itself with both halves exchanged is their sum, carry included.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// One's complement sum of `bytes`, not folded; an odd last byte is padded with zero. Exact up to 2^32 words.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_le_bytes(*word))).sum();
    let mut last = [0u8; 4];
    last[..tail.len()].copy_from_slice(tail);
    total += u64::from(u32::from_le_bytes(last));
    total
}

/// The checksum field over `bytes` (whose own field is zero) plus `initial`, for instance a pseudo-header sum: the
/// complement of the folded sum, to be stored with `to_le_bytes`.
#[must_use]
pub fn checksum(bytes: &[u8], initial: u64) -> u16 {
    !fold(sum(bytes) + initial)
}

/// The sum of the TCP or UDP pseudo-header (RFC 9293 §3.1, RFC 768): addresses, protocol, length.
///
/// `addresses` are the eight address bytes read as little-endian; `length` counts header and payload.
#[must_use]
pub const fn pseudo_header(addresses: u64, protocol: u8, length: u16) -> u64 {
    (addresses & 0xffff_ffff) + (addresses >> 32) + ((protocol as u64) << 8) + length.swap_bytes() as u64
}

/// The same for IPv6 (RFC 8200 §8.1): `addresses` are source and destination as they stand in the header.
#[inline]
#[must_use]
pub fn pseudo_header_v6(addresses: &[u8; 32], protocol: u8, length: u16) -> u64 {
    sum(addresses) + pseudo_header(0, protocol, length)
}

/// The change of a one's complement sum when some words are replaced by others (RFC 1624: `m' - m`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(pub u16);

impl Delta {
    /// The change when words that sum to `old` are replaced by words that sum to `new`; sums as [`sum`] gives them, below
    /// 2⁵⁵.
    #[inline(always)]
    #[must_use]
    pub const fn between(old: u64, new: u64) -> Self {
        // A multiple of all ones adds nothing, and keeps the difference above zero.
        Self(fold((0xffff << 40) - old + new))
    }

    /// The change in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn negated(self) -> Self {
        Self(!self.0)
    }

    /// The change in the other direction if `reverse`, without a branch.
    #[inline(always)]
    #[must_use]
    pub const fn negated_if(self, reverse: bool) -> Self {
        Self(self.0 ^ (reverse as u16).wrapping_neg())
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(other.apply_to_sum(self.0))
    }

    /// The new value of a complete checksum field, read and to be written little-endian. RFC 1624 equation 4, whose
    /// subtraction, with the borrow taken from the lowest bit, gives what equation 3 gives for every field and change.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, field: u16) -> u16 {
        let (difference, borrow) = field.overflowing_sub(self.0);
        difference.wrapping_sub(borrow as u16)
    }

    /// The new value of a complete UDP checksum field that is not zero: never zero, which says that there is no checksum
    /// (RFC 768).
    #[inline(always)]
    #[must_use]
    pub const fn apply_to_udp(self, field: u16) -> u16 {
        // Adding the complement gives what subtracting gives, but all ones instead of zero.
        self.negated().apply_to_sum(field)
    }

    /// The new value of a field that holds a plain, not complemented sum: a partial checksum.
    #[inline(always)]
    #[must_use]
    pub const fn apply_to_sum(self, field: u16) -> u16 {
        let (sum, carry) = field.overflowing_add(self.0);
        sum.wrapping_add(carry as u16)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_incremental_update_equals_the_full_checksum(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..200),
            at in 0usize..8,
            new in any::<[u8; 4]>(),
        ) {
            // A field that is never zero keeps the sum from being the degenerate all-zero one.
            bytes[19] |= 1;
            let at = at * 2;
            let old_checksum = checksum(&bytes, 0);
            let old = sum(&bytes[at..at + 4]);
            bytes[at..at + 4].copy_from_slice(&new);
            let delta = Delta::between(old, sum(&new));
            prop_assert_eq!(delta.apply(old_checksum), checksum(&bytes, 0));
            prop_assert_eq!(delta.negated().apply(delta.apply(old_checksum)), old_checksum);
        }

        #[test]
        fn equations_3_and_4_of_rfc_1624_give_the_same_field(field: u16, change: u16) {
            let delta = Delta(change);
            prop_assert_eq!(delta.apply(field), !delta.apply_to_sum(!field));
        }

        #[test]
        fn a_udp_checksum_never_becomes_zero(field in 1..=u16::MAX, change: u16) {
            for change in [change, field] {
                let wanted = match Delta(change).apply(field) {
                    0 => 0xffff,
                    field => field,
                };
                prop_assert_eq!(Delta(change).apply_to_udp(field), wanted);
            }
        }

        #[test]
        fn folding_keeps_the_sum_and_makes_zero_of_zero_only(sum: u64) {
            let folded = fold(sum);
            prop_assert_eq!(u64::from(folded) % 0xffff, sum % 0xffff);
            prop_assert_eq!(folded == 0, sum == 0);
        }

        #[test]
        fn the_sum_agrees_with_etherparse(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let theirs = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes).ones_complement();
            prop_assert_eq!(checksum(&bytes, 0), theirs);
        }
    }
}

//! The hash that chooses a target. Equal on every gateway and in every process, for years.

use postern_wire::FlowKey;

/// A keyed hash of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectionHash {
    key: [u64; 2],
}

impl SelectionHash {
    /// With a configured key of 128 bits.
    #[must_use]
    pub const fn new(key: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = key;
        Self { key: [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])] }
    }

    /// Hash of protocol, addresses and ports of `key` (its attachment does not count) and, for TCP, the initial
    /// sequence number; 0 for UDP.
    #[must_use]
    pub fn hash(&self, key: FlowKey, initial_sequence_number: u32) -> u64 {
        let rest = (key.rest & 0x00ff_0000_ffff_ffff) ^ (u64::from(initial_sequence_number) << 32).rotate_left(29);
        let mix = |a: u64, b: u64| {
            let p = u128::from(a) * u128::from(b);
            (p as u64) ^ (p >> 64) as u64
        };
        mix(mix(key.addresses ^ self.key[0], 0x9e37_79b9_7f4a_7c15) ^ rest, self.key[1] | 1)
    }
}

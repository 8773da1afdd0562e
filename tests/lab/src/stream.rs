//! Bytes that anyone who knows the seed can check, wherever in the stream they stand.

/// A pseudorandom stream of bytes: word *i* (little-endian, 64 bits) is a mix of the seed and *i*, so that a byte that is
/// lost, doubled, moved or changed shows at its place.
#[derive(Debug, Clone)]
pub struct Stream {
    seed: u64,
    position: u64,
}

impl Stream {
    /// The stream of a seed, at its beginning.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// How many bytes were taken, in bytes.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Writes the next bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = (self.position % 8) as usize;
            if offset == 0 {
                let whole = rest.len() / 8 * 8;
                let (words, tail) = rest.split_at_mut(whole);
                for (at, word) in (self.position / 8..).zip(words.chunks_exact_mut(8)) {
                    word.copy_from_slice(&self.word(at).to_le_bytes());
                }
                self.position += whole as u64;
                rest = tail;
            }
            let offset = (self.position % 8) as usize;
            let word = self.word(self.position / 8).to_le_bytes();
            let count = rest.len().min(8 - offset);
            rest[..count].copy_from_slice(&word[offset..offset + count]);
            self.position += count as u64;
            rest = &mut rest[count..];
        }
    }

    /// Compares the next bytes; `Err` carries the position of the first that differs.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), u64> {
        let mut expected = [0; 4096];
        for chunk in bytes.chunks(expected.len()) {
            let start = self.position;
            let expected = &mut expected[..chunk.len()];
            self.fill(expected);
            if chunk != expected {
                let at = chunk.iter().zip(&*expected).position(|(one, other)| one != other).unwrap_or_default();
                return Err(start + at as u64);
            }
        }
        Ok(())
    }

    /// The finaliser of SplitMix64 over a Weyl sequence (Steele, Lea, Flood: Fast splittable pseudorandom number
    /// generators, 2014).
    const fn word(&self, at: u64) -> u64 {
        let mut value = self.seed.wrapping_add(at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_same_however_it_is_cut() {
        let mut whole = vec![0; 10_000];
        Stream::new(7).fill(&mut whole);
        let mut pieces = Stream::new(7);
        let mut checked = Stream::new(7);
        let mut at = 0;
        for length in (1..).take_while(|length| length * (length + 1) / 2 < 10_000) {
            let mut piece = vec![0; length];
            pieces.fill(&mut piece);
            assert_eq!(piece, whole[at..at + length]);
            assert_eq!(checked.check(&piece), Ok(()));
            at += length;
        }
        assert_eq!(pieces.position(), at as u64);
    }

    #[test]
    fn a_changed_byte_and_a_lost_byte_are_found_at_their_place() {
        let mut bytes = vec![0; 9_000];
        Stream::new(1).fill(&mut bytes);
        bytes[8_191] ^= 1;
        assert_eq!(Stream::new(1).check(&bytes), Err(8_191));
        bytes[8_191] ^= 1;
        bytes.remove(5_000);
        assert!(Stream::new(1).check(&bytes).is_err_and(|at| (5_000..5_010).contains(&at)));
        assert!(Stream::new(2).check(&bytes).is_err());
    }
}

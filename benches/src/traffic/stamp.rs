//! What every test frame carries at the beginning of its payload, 18 bytes: the sequence number, when it was sent, its flow,
//! and a check over these and the rest of the payload. 18 bytes are what a 64-byte frame has room for with IPv4 and UDP.

/// Bytes of a stamp.
pub const STAMP: usize = 18;
/// Sequence numbers are below this.
pub const SEQUENCES: u64 = 1 << 40;
/// Flow numbers are below this.
pub const FLOWS: u32 = 1 << 24;

/// A stamp: sequence number (5 bytes), flow (3), nanoseconds since the generator was made (6), check (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the frame, below [`SEQUENCES`].
    pub sequence: u64,
    /// Number of its flow, below [`FLOWS`].
    pub flow: u32,
    /// When it was sent, in nanoseconds since the generator was made; 2⁴⁸ are three days.
    pub time: u64,
}

impl Stamp {
    /// Writes the stamp in front of a payload whose rest is filled already.
    ///
    /// # Panics
    /// If the payload is shorter than [`STAMP`].
    pub fn write(&self, payload: &mut [u8]) {
        let (stamp, rest) = payload.split_at_mut(STAMP);
        let head = u128::from(self.sequence & (SEQUENCES - 1)) << 72
            | u128::from(self.flow & (FLOWS - 1)) << 48
            | u128::from(self.time & ((1 << 48) - 1));
        stamp[..14].copy_from_slice(&head.to_be_bytes()[2..]);
        let check = check(&stamp[..14], rest);
        stamp[14..].copy_from_slice(&check.to_be_bytes());
    }

    /// Reads the stamp of a payload; `None` if the check says that it is none, or not what was sent.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (stamp, rest) = payload.split_first_chunk::<STAMP>()?;
        if check(&stamp[..14], rest).to_be_bytes() != stamp[14..] {
            return None;
        }
        let mut head = [0; 16];
        head[2..].copy_from_slice(&stamp[..14]);
        let head = u128::from_be_bytes(head);
        let part = |shift: u32, bits: u32| (head >> shift) as u64 & ((1 << bits) - 1);
        Some(Self { sequence: part(72, 40), flow: part(48, 24) as u32, time: part(0, 48) })
    }
}

/// CRC-32 of stamp and rest, other than the plain one, so that a payload of zeroes has no right check.
fn check(stamp: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(0x5057_4e52);
    hasher.update(stamp);
    hasher.update(rest);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written_and_a_changed_bit_anywhere_is_noticed() {
        let stamp = Stamp { sequence: SEQUENCES - 2, flow: FLOWS - 3, time: (1 << 48) - 5 };
        for length in [STAMP, 19, 100] {
            let mut payload = vec![0xa5; length];
            stamp.write(&mut payload);
            assert_eq!(Stamp::read(&payload), Some(stamp));
            for bit in 0..length * 8 {
                payload[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Stamp::read(&payload), None, "bit {bit}");
                payload[bit / 8] ^= 1 << (bit % 8);
            }
        }
        assert_eq!((Stamp::read(&[0; 17]), Stamp::read(&[0; 60])), (None, None));
    }
}

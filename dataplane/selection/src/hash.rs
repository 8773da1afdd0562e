//! The hash that chooses a target. Equal on every gateway and in every process, for years.

use postern_wire::FlowKey;
use postern_wire::ipv6::AddressPair;

/// A keyed hash of the connection: version 2.
///
/// SipHash-1-3 (Aumasson and Bernstein, 2012; one round a word, three at the end) under a key of 128 bits, over these 20
/// bytes, in the order in which they stand in the consumer's first packet:
///
/// | bytes | what |
/// |---|---|
/// | 4 | source address |
/// | 4 | destination address |
/// | 2 | source port |
/// | 2 | destination port |
/// | 1 | IP protocol number |
/// | 3 | zero |
/// | 4 | TCP: initial sequence number; UDP: zero |
///
/// Of a consumer's IPv6 packet they are these 44 bytes:
///
/// | bytes | what |
/// |---|---|
/// | 16 | source address |
/// | 16 | destination address |
/// | 2 | source port |
/// | 2 | destination port |
/// | 1 | IP protocol number |
/// | 3 | zero |
/// | 4 | TCP: initial sequence number; UDP: zero |
///
/// It is computed for first packets only. A consumer that does not know the key cannot aim its flows at one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectionHash {
    key: [u64; 2],
}

impl SelectionHash {
    /// Version of the function. Gateways choose the same targets only if this and the key are the same.
    pub const VERSION: u32 = 2;

    /// The key of a gateway that configures none. It is public, so consumers can compute their target with it.
    pub const DEFAULT_KEY: [u8; 16] = *b"Postern/select/1";

    /// With a configured key of 128 bits.
    #[must_use]
    pub const fn new(key: [u8; 16]) -> Self {
        let key = u128::from_le_bytes(key);
        Self { key: [key as u64, (key >> 64) as u64] }
    }

    /// Hash of protocol, addresses and ports of `key` (its attachment does not count) and, for TCP, the initial
    /// sequence number; 0 for UDP.
    #[inline]
    #[must_use]
    pub const fn hash(&self, key: FlowKey, initial_sequence_number: u32) -> u64 {
        let rest = key.ports() as u64 | (key.protocol() as u64) << 32;
        // The last block ends with the length of the message in bytes.
        let last = initial_sequence_number.swap_bytes() as u64 | 20 << 56;
        let mut state = State::new(self.key);
        state.absorb(key.addresses);
        state.absorb(rest);
        state.absorb(last);
        state.finish()
    }

    /// The same for an IPv6 packet: its `addresses` as they stand in the header, protocol and ports of `key`, and the initial
    /// sequence number of TCP.
    #[must_use]
    pub fn hash_v6(&self, addresses: &AddressPair, key: FlowKey, initial_sequence_number: u32) -> u64 {
        let mut state = State::new(self.key);
        for word in addresses.as_chunks::<8>().0 {
            state.absorb(u64::from_le_bytes(*word));
        }
        state.absorb(u64::from(key.ports()) | u64::from(key.protocol()) << 32);
        state.absorb(u64::from(initial_sequence_number.swap_bytes()) | 44 << 56);
        state.finish()
    }
}

impl Default for SelectionHash {
    fn default() -> Self {
        Self::new(Self::DEFAULT_KEY)
    }
}

/// The four words of SipHash.
struct State([u64; 4]);

impl State {
    #[inline(always)]
    const fn new([low, high]: [u64; 2]) -> Self {
        Self([
            low ^ 0x736f_6d65_7073_6575,
            high ^ 0x646f_7261_6e64_6f6d,
            low ^ 0x6c79_6765_6e65_7261,
            high ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline(always)]
    const fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    #[inline(always)]
    const fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.0[0] ^ self.0[1] ^ self.0[2] ^ self.0[3]
    }

    #[inline(always)]
    const fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
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
        self.0 = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;
    use std::net::{Ipv4Addr, SocketAddrV4};

    use postern_wire::AttachmentIndex;
    use proptest::prelude::*;

    use super::*;

    fn key(protocol: u8, source: (u32, u16), destination: (u32, u16)) -> FlowKey {
        let socket = |(address, port)| SocketAddrV4::new(Ipv4Addr::from_bits(address), port);
        FlowKey::new(AttachmentIndex(0), protocol, socket(source), socket(destination))
    }

    /// The documented bytes, hashed by the standard library's SipHash-1-3, whose key is zero.
    fn oracle(protocol: u8, source: (u32, u16), destination: (u32, u16), sequence: u32) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&source.0.to_be_bytes());
        hasher.write(&destination.0.to_be_bytes());
        hasher.write(&source.1.to_be_bytes());
        hasher.write(&destination.1.to_be_bytes());
        hasher.write(&[protocol, 0, 0, 0]);
        hasher.write(&sequence.to_be_bytes());
        hasher.finish()
    }

    proptest! {
        #[test]
        fn the_hash_is_siphash_1_3_of_the_documented_bytes(
            protocol: u8, source: (u32, u16), destination: (u32, u16), sequence: u32, attachment: u16,
        ) {
            let flow = key(protocol, source, destination).on(AttachmentIndex(attachment));
            let expected = oracle(protocol, source, destination, sequence);
            prop_assert_eq!(SelectionHash::new([0; 16]).hash(flow, sequence), expected);
        }

        #[test]
        fn the_hash_of_ipv6_is_siphash_1_3_of_the_documented_bytes(
            protocol: u8, addresses: [u8; 32], ports: [u16; 2], sequence: u32, attachment: u16, words: [u32; 2],
        ) {
            let mut hasher = std::hash::DefaultHasher::new();
            hasher.write(&addresses);
            hasher.write(&ports[0].to_be_bytes());
            hasher.write(&ports[1].to_be_bytes());
            hasher.write(&[protocol, 0, 0, 0]);
            hasher.write(&sequence.to_be_bytes());
            let on_wire = u32::from(ports[0].swap_bytes()) | u32::from(ports[1].swap_bytes()) << 16;
            let flow = FlowKey::wide(AttachmentIndex(attachment), protocol, words, on_wire);
            prop_assert_eq!(SelectionHash::new([0; 16]).hash_v6(&addresses, flow, sequence), hasher.finish());
        }
    }

    #[test]
    fn version_2_gives_the_same_values_for_years() {
        let hash = SelectionHash::default();
        let tcp = key(6, (0x0a00_0001, 12345), (0x0a00_000a, 80));
        let udp = key(17, (0x0a00_0001, 12345), (0x0a00_000a, 80));
        assert_eq!(SelectionHash::VERSION, 2);
        assert_eq!(hash.hash(tcp, 0), GOLDEN[0]);
        assert_eq!(hash.hash(tcp, 0x1234_5678), GOLDEN[1]);
        assert_eq!(hash.hash(udp, 0), GOLDEN[2]);
        assert_eq!(SelectionHash::new([0; 16]).hash(FlowKey::default(), 0), GOLDEN[3]);
    }

    /// Made by another implementation, under the default key and, the last, under a key of zero.
    const GOLDEN: [u64; 4] =
        [0x29c0_9b8f_2fdd_1d3b, 0x3075_27dd_74cc_1e62, 0x0b7a_bdcf_7363_4f12, 0x24de_1cc7_95c4_00b0];

    #[test]
    fn every_part_of_the_connection_counts() {
        let hash = SelectionHash::default();
        let base = hash.hash(key(6, (1, 2), (3, 4)), 5);
        for other in [
            hash.hash(key(17, (1, 2), (3, 4)), 5),
            hash.hash(key(6, (9, 2), (3, 4)), 5),
            hash.hash(key(6, (1, 9), (3, 4)), 5),
            hash.hash(key(6, (1, 2), (9, 4)), 5),
            hash.hash(key(6, (1, 2), (3, 9)), 5),
            hash.hash(key(6, (1, 2), (3, 4)), 9),
            SelectionHash::new([1; 16]).hash(key(6, (1, 2), (3, 4)), 5),
        ] {
            assert_ne!(base, other);
        }
    }
}

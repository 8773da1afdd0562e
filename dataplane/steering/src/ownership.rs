//! Who owns what: buckets of consumer-side flows and blocks of SNAT ports, both as indirection tables.

use postern_wire::FlowKey;

/// Buckets of the consumer side's hash.
pub const BUCKETS: usize = 512;
/// Blocks of SNAT ports: the whole range 0…65535.
pub const BLOCKS: usize = 512;
/// Ports in a block.
pub const BLOCK_PORTS: u16 = 128;

/// The indirection tables. Never a modulus, so that buckets and blocks can move when workers change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ownership {
    /// Bucket to worker.
    pub buckets: [u16; BUCKETS],
    /// Block of SNAT ports to worker.
    pub blocks: [u16; BLOCKS],
    /// Secret of the bucket hash.
    pub key: [u64; 2],
}

impl Ownership {
    /// Buckets and blocks dealt out in turn to `workers` (at least 1) workers.
    #[must_use]
    pub fn even(workers: u16, key: [u64; 2]) -> Self {
        let workers = workers.max(1);
        Self {
            buckets: std::array::from_fn(|at| at as u16 % workers),
            blocks: std::array::from_fn(|at| at as u16 % workers),
            key,
        }
    }

    /// The bucket of a consumer-side key, 0…511: addresses, ports and protocol count, the attachment does not.
    ///
    /// Three rounds of xor and multiplication in 64-bit arithmetic, so that BPF computes the same:
    /// `h = (addresses ^ key₀) · C₀; h ^= h >> 32; h = (h ^ ports ^ protocol << 32 ^ key₁) · C₁; h ^= h >> 32; h = h · C₀;
    /// bucket = h >> 55`. Without the third, the ports that a client uses one after the other would fall to some workers only.
    #[inline]
    #[must_use]
    pub const fn bucket(&self, key: FlowKey) -> usize {
        let mut hash = (key.addresses ^ self.key[0]).wrapping_mul(HASH_MULTIPLIERS[0]);
        hash ^= hash >> 32;
        let rest = key.ports() as u64 | (key.protocol() as u64) << 32;
        hash = (hash ^ rest ^ self.key[1]).wrapping_mul(HASH_MULTIPLIERS[1]);
        hash ^= hash >> 32;
        (hash.wrapping_mul(HASH_MULTIPLIERS[0]) >> 55) as usize
    }

    /// The worker that owns a consumer-side flow.
    #[inline]
    #[must_use]
    pub const fn of_flow(&self, key: FlowKey) -> u16 {
        self.buckets[self.bucket(key)]
    }

    /// The worker that owns an SNAT port.
    #[inline]
    #[must_use]
    pub const fn of_port(&self, port: u16) -> u16 {
        self.blocks[(port / BLOCK_PORTS) as usize]
    }
}

/// The odd multipliers C₀ and C₁ of [`Ownership::bucket`].
pub const HASH_MULTIPLIERS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use postern_wire::AttachmentIndex;

    use super::*;

    #[test]
    fn ports_used_one_after_the_other_spread_over_all_workers_under_any_key() {
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 100), 80);
        for seed in 1..200u64 {
            let key = [seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seed.wrapping_mul(0xbf58_476d_1ce4_e5b9)];
            for workers in [2, 3, 4, 8] {
                let ownership = Ownership::even(workers, key);
                let mut flows = vec![0u32; usize::from(workers)];
                for port in 20_000..20_000 + 2048 {
                    let client = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), port);
                    let key = FlowKey::new(AttachmentIndex(0), 6, client, endpoint);
                    flows[usize::from(ownership.of_flow(key))] += 1;
                }
                let fair = 2048 / u32::from(workers);
                assert!(flows.iter().all(|flows| flows.abs_diff(fair) < fair / 2), "{flows:?} under {key:x?}");
            }
        }
    }
}

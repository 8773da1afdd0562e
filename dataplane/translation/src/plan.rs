//! The plan by which every packet of a known flow is rewritten.

use postern_wire::FlowKey;
use postern_wire::checksum::Delta;

/// How to rewrite one direction of a flow: a plain value that could be handed to another executor (a kernel program).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RewritePlan {
    /// New source and destination address: the eight bytes for offset 12 of the IPv4 header, little-endian.
    pub addresses: u64,
    /// New source and destination port: the first four bytes of the transport header, little-endian.
    pub ports: u32,
    /// Change of the sum over the addresses.
    pub address_delta: Delta,
    /// Change of the sum over addresses and ports.
    pub full_delta: Delta,
}

impl RewritePlan {
    /// The plan that turns packets with key `from` into packets with key `to`.
    #[must_use]
    pub const fn between(from: FlowKey, to: FlowKey) -> Self {
        Self {
            addresses: to.addresses,
            ports: to.ports(),
            address_delta: Delta::between(sum64(from.addresses), sum64(to.addresses)),
            full_delta: Delta::between(
                sum64(from.addresses) + from.ports() as u64,
                sum64(to.addresses) + to.ports() as u64,
            ),
        }
    }
}

const fn sum64(addresses: u64) -> u64 {
    (addresses & 0xffff_ffff) + (addresses >> 32)
}

//! The addresses of flows with an IPv6 side, which do not fit into a key: 64 bytes beside the record of each such flow.

use postern_wire::Direction;
use postern_wire::ipv6::{self, AddressPair};
use std::net::{IpAddr, Ipv6Addr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Who talks to whom on both sides of a flow. An IPv4 address stands as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WideAddresses {
    /// Client and endpoint: source and destination of what the consumer sends. (0…31)
    pub forward: AddressPair,
    /// Target and SNAT address: source and destination of what the target sends. (32…63)
    pub reverse: AddressPair,
}

const _: () = assert!(size_of::<WideAddresses>() == 64);

impl WideAddresses {
    /// What stands beside a record that is not in use.
    pub const NONE: Self = Self { forward: [0; 32], reverse: [0; 32] };

    /// Of these four addresses.
    #[must_use]
    pub fn new(client: IpAddr, endpoint: IpAddr, target: IpAddr, snat: IpAddr) -> Self {
        Self {
            forward: ipv6::pair(mapped(client), mapped(endpoint)),
            reverse: ipv6::pair(mapped(target), mapped(snat)),
        }
    }

    /// Source and destination of the packets of a direction.
    #[inline]
    #[must_use]
    pub const fn of(&self, direction: Direction) -> &AddressPair {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Reverse => &self.reverse,
        }
    }

    /// The client's address.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        ipv6::source(&self.forward).to_canonical()
    }

    /// The endpoint's address.
    #[must_use]
    pub fn endpoint(&self) -> IpAddr {
        ipv6::destination(&self.forward).to_canonical()
    }

    /// The target's address.
    #[must_use]
    pub fn target(&self) -> IpAddr {
        ipv6::source(&self.reverse).to_canonical()
    }

    /// The SNAT address.
    #[must_use]
    pub fn snat(&self) -> IpAddr {
        ipv6::destination(&self.reverse).to_canonical()
    }
}

/// An address in the form that it has among [`WideAddresses`].
#[must_use]
pub const fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_and_ipv4_addresses_come_back_as_they_were() {
        let [client, endpoint, target, snat]: [IpAddr; 4] =
            ["2001:db8::1", "2001:db8::2", "10.9.0.1", "10.9.0.200"].map(|text| text.parse().unwrap());
        let wide = WideAddresses::new(client, endpoint, target, snat);
        assert_eq!([wide.client(), wide.endpoint(), wide.target(), wide.snat()], [client, endpoint, target, snat]);
        assert_eq!(wide.of(Direction::Forward)[..16], [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(wide.of(Direction::Reverse)[10..16], [0xff, 0xff, 10, 9, 0, 1]);
    }
}

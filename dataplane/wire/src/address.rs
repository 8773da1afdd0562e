//! MAC addresses and prefixes of both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A 48-bit Ethernet address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, which no station may use.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether the group bit (IEEE 802, least significant bit of the first octet) is set; true for broadcast too.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an address or prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not six colon-separated pairs of hexadecimal digits.
    #[error("\"{0}\" is not a MAC address such as 02:00:00:00:00:01")]
    Mac(String),
    /// Not an IPv4 prefix.
    #[error("\"{0}\" is not an IPv4 prefix such as 10.0.0.0/24")]
    Prefix(String),
    /// The address has bits set below the prefix length.
    #[error("\"{0}\" has host bits set; the network is {1}")]
    HostBits(String, Ipv4Prefix),
    /// Not an IPv6 prefix.
    #[error("\"{0}\" is not an IPv6 prefix such as 2001:db8::/64")]
    Prefix6(String),
    /// The address has bits set below the prefix length.
    #[error("\"{0}\" has host bits set; the network is {1}")]
    HostBits6(String, Ipv6Prefix),
}

impl FromStr for MacAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError::Mac(text.to_owned());
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(octets)) }
    }
}

/// An IPv4 network in CIDR form (RFC 4632). Host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    network: Ipv4Addr,
    length: u8,
}

impl Ipv4Prefix {
    /// The network of `length` bits (0…32) that `address` is in; host bits are cleared. `None` above 32.
    #[must_use]
    pub fn containing(address: Ipv4Addr, length: u8) -> Option<Self> {
        (length <= 32).then(|| Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(length)), length })
    }

    /// The network's first address.
    #[must_use]
    pub const fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The number of leading bits that are fixed, 0…32.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Whether `address` is in the network.
    #[inline]
    #[must_use]
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.length) == self.network.to_bits()
    }
}

/// The leading `length` (0…32) bits.
#[inline]
const fn mask(length: u8) -> u32 {
    // In 64 bits, so that a shift by 32 is one.
    (u32::MAX as u64).wrapping_shl(32 - length as u32) as u32
}

impl FromStr for Ipv4Prefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError::Prefix(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let length: u8 = length.parse().map_err(|_| error())?;
        let prefix = Self::containing(address, length).ok_or_else(error)?;
        if prefix.network == address { Ok(prefix) } else { Err(AddressError::HostBits(text.to_owned(), prefix)) }
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl fmt::Debug for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv6 network in CIDR form (RFC 4291 §2.3). Host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv6Prefix {
    network: Ipv6Addr,
    length: u8,
}

impl Ipv6Prefix {
    /// The network of `length` bits (0…128) that `address` is in; host bits are cleared. `None` above 128.
    #[must_use]
    pub fn containing(address: Ipv6Addr, length: u8) -> Option<Self> {
        (length <= 128).then(|| Self { network: Ipv6Addr::from_bits(address.to_bits() & mask6(length)), length })
    }

    /// The network's first address.
    #[must_use]
    pub const fn network(self) -> Ipv6Addr {
        self.network
    }

    /// The number of leading bits that are fixed, 0…128.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Whether `address` is in the network.
    #[inline]
    #[must_use]
    pub const fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask6(self.length) == self.network.to_bits()
    }
}

/// The leading `length` (0…128) bits.
#[inline]
const fn mask6(length: u8) -> u128 {
    match u128::MAX.checked_shl(128 - length as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

impl FromStr for Ipv6Prefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError::Prefix6(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv6Addr = address.parse().map_err(|_| error())?;
        let length: u8 = length.parse().map_err(|_| error())?;
        let prefix = Self::containing(address, length).ok_or_else(error)?;
        if prefix.network == address { Ok(prefix) } else { Err(AddressError::HostBits6(text.to_owned(), prefix)) }
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl fmt::Debug for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network of either family in CIDR form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpPrefix {
    /// Of IPv4.
    V4(Ipv4Prefix),
    /// Of IPv6.
    V6(Ipv6Prefix),
}

impl IpPrefix {
    /// The network's first address.
    #[must_use]
    pub const fn network(self) -> IpAddr {
        match self {
            Self::V4(prefix) => IpAddr::V4(prefix.network()),
            Self::V6(prefix) => IpAddr::V6(prefix.network()),
        }
    }

    /// The number of leading bits that are fixed, 0…32 or 0…128.
    #[must_use]
    pub const fn length(self) -> u8 {
        match self {
            Self::V4(prefix) => prefix.length(),
            Self::V6(prefix) => prefix.length(),
        }
    }

    /// Whether `address` is in the network; never where it is of the other family.
    #[must_use]
    pub const fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(prefix), IpAddr::V4(address)) => prefix.contains(address),
            (Self::V6(prefix), IpAddr::V6(address)) => prefix.contains(address),
            _ => false,
        }
    }
}

impl FromStr for IpPrefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') { text.parse().map(Self::V6) } else { text.parse().map(Self::V4) }
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(prefix) => fmt::Display::fmt(prefix, f),
            Self::V6(prefix) => fmt::Display::fmt(prefix, f),
        }
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_with_host_bits_is_refused_and_the_network_named() {
        let error = "10.0.0.7/24".parse::<Ipv4Prefix>().unwrap_err();
        assert_eq!(error.to_string(), "\"10.0.0.7/24\" has host bits set; the network is 10.0.0.0/24");
    }

    #[test]
    fn the_default_route_contains_everything() {
        let all: Ipv4Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn an_ipv6_prefix_contains_its_network_and_nothing_else() {
        let prefix: Ipv6Prefix = "2001:db8:7::/48".parse().unwrap();
        assert!(prefix.contains("2001:db8:7:ffff::1".parse().unwrap()));
        assert!(!prefix.contains("2001:db8:8::1".parse().unwrap()));
        let (all, one): (Ipv6Prefix, Ipv6Prefix) = ("::/0".parse().unwrap(), "2001:db8::1/128".parse().unwrap());
        assert!(all.contains(Ipv6Addr::from_bits(u128::MAX)) && all.contains(Ipv6Addr::LOCALHOST));
        assert!(one.contains(one.network()) && !one.contains("2001:db8::2".parse().unwrap()));
        assert_eq!(prefix.to_string(), "2001:db8:7::/48");
        let error = "2001:db8::7/64".parse::<Ipv6Prefix>().unwrap_err();
        assert_eq!(error.to_string(), "\"2001:db8::7/64\" has host bits set; the network is 2001:db8::/64");
        for text in ["2001:db8::/129", "10.0.0.0/8", "2001:db8::", "2001:db8::/"] {
            assert_eq!(text.parse::<Ipv6Prefix>(), Err(AddressError::Prefix6(text.to_owned())));
        }
        for text in ["10.0.0.0/8", "2001:db8::/32"] {
            let prefix: IpPrefix = text.parse().unwrap();
            assert_eq!((prefix.to_string(), prefix.contains(prefix.network())), (text.to_owned(), true));
            assert!(!prefix.contains(Ipv4Addr::from_octets([10, 0, 0, 1]).to_ipv6_mapped().into()));
        }
    }

    #[test]
    fn a_mac_address_survives_printing_and_parsing() {
        let mac = MacAddress([2, 0, 0xab, 0, 0, 1]);
        assert_eq!(mac.to_string().parse::<MacAddress>(), Ok(mac));
        assert!("02:00:00:00:00".parse::<MacAddress>().is_err());
        assert!("02:00:00:00:00:01:02".parse::<MacAddress>().is_err());
    }
}

//! The maps that the programs read, and what belongs into them.

use std::net::IpAddr;

use crate::addresses::{LocalAddresses, LocalKind};
use crate::ownership::{BLOCKS, BUCKETS};

/// A key of the address map: VLAN identifier as a `u32` in the host's byte order, then the address as in the packet.
pub type AddressKey = [u8; 8];

/// A key of the map of IPv6 addresses, likewise.
pub type AddressKey6 = [u8; 20];

/// A map that a program names. One set of maps serves every program of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MapSlot {
    /// Array of [`BUCKETS`] `u32`: bucket of the flow hash to worker.
    Buckets,
    /// Array of [`BLOCKS`] `u32`: block of SNAT ports to worker.
    Blocks,
    /// Hash of [`AddressKey`] to `u32` ([`LocalKind`]): the local IPv4 addresses.
    Addresses,
    /// Hash of [`AddressKey6`] to `u32` ([`LocalKind`]): the local IPv6 addresses.
    Addresses6,
}

impl MapSlot {
    /// Name, at most 15 characters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Buckets => "postern_buckets",
            Self::Blocks => "postern_blocks",
            Self::Addresses => "postern_address",
            Self::Addresses6 => "postern_addr_v6",
        }
    }

    /// Bytes of a key.
    #[must_use]
    pub const fn key_size(self) -> usize {
        match self {
            Self::Buckets | Self::Blocks => 4,
            Self::Addresses => size_of::<AddressKey>(),
            Self::Addresses6 => size_of::<AddressKey6>(),
        }
    }

    /// Bytes of a value.
    #[must_use]
    pub const fn value_size(self) -> usize {
        4
    }

    /// Entries of an array map; `None` for a hash map, whose capacity is configuration.
    #[must_use]
    pub const fn array_length(self) -> Option<u32> {
        match self {
            Self::Buckets => Some(BUCKETS as u32),
            Self::Blocks => Some(BLOCKS as u32),
            Self::Addresses | Self::Addresses6 => None,
        }
    }
}

/// Keys and values of an array map that holds `workers`, each one behind the other: what a batch update takes.
#[must_use]
pub fn array_contents(workers: &[u16]) -> (Vec<u8>, Vec<u8>) {
    let keys = (0..workers.len() as u32).flat_map(u32::to_ne_bytes).collect();
    let values = workers.iter().flat_map(|&worker| u32::from(worker).to_ne_bytes()).collect();
    (keys, values)
}

/// What has to be done to the address maps. Empty lists where nothing changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AddressChanges {
    /// Keys to take out.
    pub removed: Vec<AddressKey>,
    /// Keys to set, one behind the other.
    pub keys: Vec<u8>,
    /// Their values, one behind the other.
    pub values: Vec<u8>,
    /// Keys to take out of the map of IPv6 addresses.
    pub removed6: Vec<AddressKey6>,
    /// Keys to set in it, one behind the other.
    pub keys6: Vec<u8>,
    /// Their values, one behind the other.
    pub values6: Vec<u8>,
}

impl AddressChanges {
    /// Sets what `address` is on `vlan`, 0 for untagged frames.
    pub fn set(&mut self, vlan: u16, address: IpAddr, kind: LocalKind) {
        match address {
            IpAddr::V4(address) => {
                self.keys.extend_from_slice(&address_key(vlan, address.octets()));
                self.values.extend_from_slice(&address_value(kind));
            }
            IpAddr::V6(address) => {
                self.keys6.extend_from_slice(&address_key6(vlan, address.octets()));
                self.values6.extend_from_slice(&address_value(kind));
            }
        }
    }

    /// Takes `address` on `vlan` out.
    pub fn remove(&mut self, vlan: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.removed.push(address_key(vlan, address.octets())),
            IpAddr::V6(address) => self.removed6.push(address_key6(vlan, address.octets())),
        }
    }
}

impl LocalAddresses {
    /// The changes that turn a map with the addresses `before` into one with these. From an empty set: the whole contents.
    #[must_use]
    pub fn changes_from(&self, before: &Self) -> AddressChanges {
        let mut changes = AddressChanges::default();
        for (&(vlan, address), &kind) in &self.kinds {
            if before.kind(vlan, address) != Some(kind) {
                changes.set(vlan, address.into(), kind);
            }
        }
        for (&(vlan, address), &kind) in &self.kinds6 {
            if before.kind6(vlan, address) != Some(kind) {
                changes.set(vlan, address.into(), kind);
            }
        }
        let gone = before.kinds.keys().filter(|key| !self.kinds.contains_key(key));
        gone.for_each(|&(vlan, address)| changes.remove(vlan, address.into()));
        let gone = before.kinds6.keys().filter(|key| !self.kinds6.contains_key(key));
        gone.for_each(|&(vlan, address)| changes.remove(vlan, address.into()));
        changes
    }
}

fn address_key(vlan: u16, address: [u8; 4]) -> AddressKey {
    let [a, b, c, d] = u32::from(vlan).to_ne_bytes();
    let [e, f, g, h] = address;
    [a, b, c, d, e, f, g, h]
}

fn address_key6(vlan: u16, address: [u8; 16]) -> AddressKey6 {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(vlan).to_ne_bytes());
    key[4..].copy_from_slice(&address);
    key
}

const fn address_value(kind: LocalKind) -> [u8; 4] {
    (kind as u32).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn set(entries: &[(u16, u32, LocalKind)]) -> LocalAddresses {
        entries.iter().map(|&(vlan, address, kind)| (vlan, Ipv4Addr::from_bits(address), kind)).collect()
    }

    #[test]
    fn applying_the_changes_to_the_old_map_gives_the_new_map_and_touches_nothing_else() {
        use LocalKind::{Endpoint, Snat};
        let before = set(&[(0, 1, Endpoint), (0, 2, Endpoint), (7, 1, Snat), (7, 3, Snat)]);
        let after = set(&[(0, 1, Endpoint), (7, 1, Endpoint), (7, 3, Snat), (9, 9, Snat)]);
        let mut map: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let mut touched = 0;
        for (from, to) in [(&LocalAddresses::default(), &before), (&before, &after)] {
            let changes = to.changes_from(from);
            touched = changes.removed.len() + changes.keys.len() / 8;
            for key in changes.removed {
                assert!(map.remove(key.as_slice()).is_some());
            }
            for (key, value) in changes.keys.chunks(8).zip(changes.values.chunks(4)) {
                map.insert(key.to_vec(), value.to_vec());
            }
        }
        let expected = after.changes_from(&LocalAddresses::default());
        assert_eq!(map.len(), after.len());
        for (key, value) in expected.keys.chunks(8).zip(expected.values.chunks(4)) {
            assert_eq!(map[key], value);
        }
        // One gone, one changed, one new.
        assert_eq!(touched, 3);
        assert_eq!(after.changes_from(&after), AddressChanges::default());
    }

    #[test]
    fn ipv6_addresses_change_their_own_map_only() {
        let address = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
        let of = |list: &[(u16, u16, LocalKind)]| -> LocalAddresses {
            list.iter().map(|&(vlan, last, kind)| (vlan, address(last), kind)).collect()
        };
        let before = of(&[(0, 1, LocalKind::Endpoint), (7, 2, LocalKind::Snat)]);
        let after = of(&[(0, 1, LocalKind::Endpoint), (7, 1, LocalKind::Snat)]);
        let changes = after.changes_from(&before);
        assert_eq!(changes.keys6, address_key6(7, address(1).octets()));
        assert_eq!(changes.values6, 2_u32.to_ne_bytes());
        assert_eq!(changes.removed6, [address_key6(7, address(2).octets())]);
        assert!(changes.keys.is_empty() && changes.values.is_empty() && changes.removed.is_empty());
        assert_eq!((after.len(), after.kind6(7, address(1).octets())), (2, Some(LocalKind::Snat)));
    }

    #[test]
    fn array_contents_count_positions_from_zero() {
        let (keys, values) = array_contents(&[5, 0, 3]);
        assert_eq!(keys, [0_u32, 1, 2].map(u32::to_ne_bytes).concat());
        assert_eq!(values, [5_u32, 0, 3].map(u32::to_ne_bytes).concat());
    }
}

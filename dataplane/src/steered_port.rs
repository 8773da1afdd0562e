//! The kernel programs of one port: who of the workers gets a frame, and whether the host does.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use postern_frame_io::bpf::{self, BpfError, Map, MapKind, ProgramKind};
use postern_frame_io::interface::Interface;
use postern_frame_io::tc::{IngressProgram, TcError};
use postern_steering::maps::AddressChanges;
use postern_steering::maps::array_contents;
use postern_steering::{LocalAddresses, LocalKind, MapSlot, Ownership, filter, program};
use postern_tables::Snapshot;
use postern_tables::sharded::Sharded;
use postern_tables::snapshot::{Attachment, LocalAddress, VpcIndex};
use postern_wire::PortIndex;

/// Programs of one port, and the map of its addresses. The programs themselves hold the maps of buckets and blocks.
#[derive(Debug)]
pub struct SteeredPort {
    port: PortIndex,
    addresses: Map,
    addresses6: Map,
    published: Published,
    fan_out: bpf::Program,
    claimed: Option<bpf::Program>,
    ingress: bpf::Program,
    attached: Option<IngressProgram>,
}

/// What the address map was made of.
#[derive(Debug, Default)]
struct Published {
    attachments: Arc<Vec<Attachment>>,
    /// VLAN identifiers of the port by VPC, 0 for untagged frames.
    vlans: HashMap<VpcIndex, Vec<u16>>,
    local: Sharded<(VpcIndex, Ipv4Addr), LocalAddress>,
    local6: Sharded<(VpcIndex, Ipv6Addr), LocalAddress>,
    /// Entries of both maps.
    length: usize,
}

impl SteeredPort {
    /// Loads the programs of a port, `shared` with the host or not, and fills their maps. `addresses` is the most that the
    /// port will ever have.
    ///
    /// # Errors
    /// [`BpfError::NotPermitted`] in a user namespace; else what the kernel said.
    pub fn load(
        port: PortIndex,
        shared: bool,
        ownership: &Ownership,
        snapshot: &Snapshot,
        addresses: u32,
    ) -> Result<Self, BpfError> {
        let map = |slot: MapSlot| {
            let (kind, capacity) = match slot.array_length() {
                Some(length) => (MapKind::Array, length),
                None => (MapKind::Hash, addresses),
            };
            Map::create(kind, slot.name(), slot.key_size(), slot.value_size(), capacity)
        };
        let (buckets, blocks) = (map(MapSlot::Buckets)?, map(MapSlot::Blocks)?);
        let (addresses, addresses6) = (map(MapSlot::Addresses)?, map(MapSlot::Addresses6)?);
        for (map, workers) in [(&buckets, &ownership.buckets[..]), (&blocks, &ownership.blocks[..])] {
            let (keys, values) = array_contents(workers);
            map.update_batch(&keys, &values)?;
        }
        let load = |kind, program: &postern_steering::Program| {
            let maps = program.maps.iter().map(|(at, slot)| {
                let map = match slot {
                    MapSlot::Buckets => &buckets,
                    MapSlot::Blocks => &blocks,
                    MapSlot::Addresses => &addresses,
                    MapSlot::Addresses6 => &addresses6,
                };
                (*at, map)
            });
            bpf::Program::load(kind, program.name, &program.instructions, &maps.collect::<Vec<_>>())
        };
        let fan_out = load(ProgramKind::SocketFilter, &program::fan_out(ownership))?;
        let claimed = shared.then(|| load(ProgramKind::SocketFilter, &filter::claimed())).transpose()?;
        let hide = if shared { filter::hide_claimed() } else { filter::hide_everything() };
        let ingress = load(ProgramKind::Classifier, &hide)?;
        let published = Published::default();
        let mut steered = Self { port, addresses, addresses6, published, fan_out, claimed, ingress, attached: None };
        steered.publish(snapshot)?;
        Ok(steered)
    }

    /// Brings the address map up to a snapshot. Costs what changed, unless attachments did.
    ///
    /// # Errors
    /// [`BpfError::Full`], or what the kernel said; addresses that were set stay set.
    pub fn publish(&mut self, snapshot: &Snapshot) -> Result<(), BpfError> {
        let next = self.published.next(snapshot, self.port);
        let (changes, length) = next.changes_from(&self.published);
        for key in &changes.removed {
            self.addresses.delete(key)?;
        }
        self.addresses.update_batch(&changes.keys, &changes.values)?;
        for key in &changes.removed6 {
            self.addresses6.delete(key)?;
        }
        self.addresses6.update_batch(&changes.keys6, &changes.values6)?;
        self.published = Published { length, ..next };
        Ok(())
    }

    /// The program of the fan-out group.
    #[must_use]
    pub const fn fan_out(&self) -> &bpf::Program {
        &self.fan_out
    }

    /// The socket filter, on a shared port.
    #[must_use]
    pub const fn claimed(&self) -> Option<&bpf::Program> {
        self.claimed.as_ref()
    }

    /// Takes from the host what is Postern's: the frames of its addresses on a shared port, else all. Returns whether the
    /// kernel undoes it when the process ends.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn attach(&mut self, interface: &Interface) -> Result<bool, TcError> {
        self.attached = None;
        let attached = IngressProgram::attach(interface.index(), &self.ingress)?;
        Ok(self.attached.insert(attached).ends_with_process())
    }

    /// Gives it back.
    pub fn detach(&mut self) {
        self.attached = None;
    }

    /// How many addresses the port has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.published.length
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.published.length == 0
    }
}

impl Published {
    /// What a snapshot has for a port; the length is not known yet.
    fn next(&self, snapshot: &Snapshot, port: PortIndex) -> Self {
        let same = Arc::ptr_eq(&self.attachments, &snapshot.attachments);
        let mut vlans: HashMap<VpcIndex, Vec<u16>> = HashMap::new();
        if same {
            vlans.clone_from(&self.vlans);
        } else {
            for attachment in snapshot.attachments.iter().filter(|attachment| attachment.port == port) {
                vlans.entry(attachment.vpc).or_default().push(attachment.vlan.unwrap_or(0));
            }
        }
        Self {
            attachments: snapshot.attachments.clone(),
            vlans,
            local: snapshot.local.clone(),
            local6: snapshot.local6.clone(),
            length: 0,
        }
    }

    /// What is to be done to a map with the entries of `before`, and how many it has then.
    fn changes_from(&self, before: &Self) -> (AddressChanges, usize) {
        if self.vlans != before.vlans {
            let (next, before) = (self.addresses(), before.addresses());
            return (next.changes_from(&before), next.len());
        }
        let mut changes = AddressChanges::default();
        let mut length = before.length;
        let narrow = self.local.differences(&before.local);
        let narrow = narrow.map(|((vpc, address), was, is)| (vpc, IpAddr::V4(address), was, is));
        let wide = self.local6.differences(&before.local6);
        let wide = wide.map(|((vpc, address), was, is)| (vpc, IpAddr::V6(address), was, is));
        for (vpc, address, was, is) in narrow.chain(wide) {
            for &vlan in self.vlans.get(&vpc).into_iter().flatten() {
                match is {
                    Some(is) if was.map(kind) != Some(kind(is)) => changes.set(vlan, address, kind(is)),
                    Some(_) => {}
                    None => changes.remove(vlan, address),
                }
                length = length + usize::from(was.is_none()) - usize::from(is.is_none());
            }
        }
        (changes, length)
    }

    /// All addresses that Postern answers for on the port, by VLAN.
    fn addresses(&self) -> LocalAddresses {
        let mut addresses = LocalAddresses::default();
        for ((vpc, address), local) in self.local6.iter() {
            for &vlan in self.vlans.get(vpc).into_iter().flatten() {
                addresses.insert(vlan, *address, kind(*local));
            }
        }
        for ((vpc, address), local) in self.local.iter() {
            for &vlan in self.vlans.get(vpc).into_iter().flatten() {
                addresses.insert(vlan, *address, kind(*local));
            }
        }
        addresses
    }
}

fn kind(local: LocalAddress) -> LocalKind {
    match local {
        LocalAddress::Endpoint(_) => LocalKind::Endpoint,
        LocalAddress::Snat(_) => LocalKind::Snat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_tables::snapshot::{EndpointIndex, PoolIndex, ReturnPath};

    fn attachment(vpc: u32, vlan: Option<u16>) -> Attachment {
        Attachment {
            name: format!("{vpc}"),
            vpc: VpcIndex(vpc),
            port: PortIndex(0),
            vlan,
            mtu: None,
            return_path: ReturnPath::Route,
            prefixes: Vec::new(),
            prefixes6: Vec::new(),
            mac: None,
        }
    }

    #[test]
    fn an_address_map_follows_by_differences_to_what_it_would_be_made_of_at_once() {
        let mut snapshot = Snapshot {
            attachments: Arc::new(vec![attachment(0, None), attachment(1, Some(7)), attachment(1, Some(8))]),
            ..Snapshot::default()
        };
        let mut published = Published::default();
        let mut map: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        let endpoint = LocalAddress::Endpoint(EndpointIndex(1));
        let snat = LocalAddress::Snat(PoolIndex(0));
        let steps: [(u32, u8, Option<LocalAddress>); 7] = [
            (0, 1, Some(endpoint)),
            (1, 1, Some(endpoint)),
            (1, 2, Some(snat)),
            (2, 9, Some(endpoint)),
            (1, 1, Some(snat)),
            (0, 1, None),
            (1, 2, None),
        ];
        for (at, (vpc, last, local)) in steps.into_iter().enumerate() {
            let key = (VpcIndex(vpc), address(last));
            match local {
                Some(local) => snapshot.local.insert(key, local),
                None => drop(snapshot.local.remove(&key)),
            }
            if at == 5 {
                Arc::make_mut(&mut snapshot.attachments)[2].vlan = Some(9);
            }
            let next = published.next(&snapshot, PortIndex(0));
            let (changes, length) = next.changes_from(&published);
            changes.removed.iter().for_each(|key| drop(map.remove(&key[..]).expect("only what is there is removed")));
            for (key, value) in changes.keys.chunks(8).zip(changes.values.chunks(4)) {
                map.insert(key.to_vec(), value.to_vec());
            }
            published = Published { length, ..next };
            let whole = published.addresses().changes_from(&LocalAddresses::default());
            let expected: HashMap<Vec<u8>, Vec<u8>> =
                whole.keys.chunks(8).map(<[u8]>::to_vec).zip(whole.values.chunks(4).map(<[u8]>::to_vec)).collect();
            assert_eq!((&map, map.len()), (&expected, published.length), "step {at}");
        }
        assert_eq!(published.length, 2);
    }
}

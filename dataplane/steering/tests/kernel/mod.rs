//! Joins steering's descriptions to the kernel, as the dataplane does: one set of maps for the programs of a port.
#![allow(dead_code, unreachable_pub, reason = "shared by tests that each use a part")]

use postern_frame_io::bpf::{BpfError, Map, MapKind, Program, ProgramKind};
use postern_steering::maps::array_contents;
use postern_steering::{LocalAddresses, MapSlot, Ownership, Program as Assembled, Steering};

/// The maps of one port.
pub struct Maps {
    buckets: Map,
    blocks: Map,
    addresses: Map,
    addresses6: Map,
}

impl Maps {
    /// Makes and fills the maps.
    pub fn create(steering: &Steering) -> Result<Self, BpfError> {
        let create = |slot: MapSlot| {
            let (kind, capacity) = match slot.array_length() {
                Some(length) => (MapKind::Array, length),
                None => (MapKind::Hash, 4096),
            };
            Map::create(kind, slot.name(), slot.key_size(), slot.value_size(), capacity)
        };
        let maps = Self {
            buckets: create(MapSlot::Buckets)?,
            blocks: create(MapSlot::Blocks)?,
            addresses: create(MapSlot::Addresses)?,
            addresses6: create(MapSlot::Addresses6)?,
        };
        maps.own(&steering.ownership)?;
        maps.replace(&LocalAddresses::default(), &steering.addresses)?;
        Ok(maps)
    }

    /// Hands buckets and blocks to their workers.
    pub fn own(&self, ownership: &Ownership) -> Result<(), BpfError> {
        for (map, workers) in [(&self.buckets, &ownership.buckets[..]), (&self.blocks, &ownership.blocks[..])] {
            let (keys, values) = array_contents(workers);
            map.update_batch(&keys, &values)?;
        }
        Ok(())
    }

    /// Turns the addresses `before` into `after`.
    pub fn replace(&self, before: &LocalAddresses, after: &LocalAddresses) -> Result<(), BpfError> {
        let changes = after.changes_from(before);
        for key in &changes.removed {
            self.addresses.delete(key)?;
        }
        self.addresses.update_batch(&changes.keys, &changes.values)?;
        for key in &changes.removed6 {
            self.addresses6.delete(key)?;
        }
        self.addresses6.update_batch(&changes.keys6, &changes.values6)
    }

    /// Loads a program with these maps.
    pub fn load(&self, kind: ProgramKind, program: &Assembled) -> Result<Program, BpfError> {
        let maps: Vec<_> = program.maps.iter().map(|&(at, slot)| (at, self.map(slot))).collect();
        Program::load(kind, program.name, &program.instructions, &maps)
    }

    fn map(&self, slot: MapSlot) -> &Map {
        match slot {
            MapSlot::Buckets => &self.buckets,
            MapSlot::Blocks => &self.blocks,
            MapSlot::Addresses => &self.addresses,
            MapSlot::Addresses6 => &self.addresses6,
        }
    }
}

/// The maps, or `None` with a printed reason where BPF is not permitted.
pub fn maps_or_skip(steering: &Steering) -> Option<Maps> {
    match Maps::create(steering) {
        Ok(maps) => Some(maps),
        Err(error) if error.is_not_permitted() => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

//! The kernel programs of one port: who of the workers gets a frame, and whether the host does.

use postern_frame_io::bpf::{self, BpfError, Map, MapKind, ProgramKind};
use postern_frame_io::interface::Interface;
use postern_frame_io::tc::{IngressProgram, TcError};
use postern_steering::maps::array_contents;
use postern_steering::{LocalAddresses, LocalKind, MapSlot, Ownership, filter, program};
use postern_tables::Snapshot;
use postern_tables::snapshot::LocalAddress;
use postern_wire::PortIndex;

/// Programs of one port, and the map of its addresses. The programs themselves hold the maps of buckets and blocks.
#[derive(Debug)]
pub struct SteeredPort {
    port: PortIndex,
    addresses: Map,
    published: LocalAddresses,
    fan_out: bpf::Program,
    claimed: Option<bpf::Program>,
    ingress: bpf::Program,
    attached: Option<IngressProgram>,
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
        let (buckets, blocks, addresses) = (map(MapSlot::Buckets)?, map(MapSlot::Blocks)?, map(MapSlot::Addresses)?);
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
                };
                (*at, map)
            });
            bpf::Program::load(kind, program.name, &program.instructions, &maps.collect::<Vec<_>>())
        };
        let fan_out = load(ProgramKind::SocketFilter, &program::fan_out(ownership))?;
        let claimed = shared.then(|| load(ProgramKind::SocketFilter, &filter::claimed())).transpose()?;
        let hide = if shared { filter::hide_claimed() } else { filter::hide_everything() };
        let ingress = load(ProgramKind::Classifier, &hide)?;
        let published = LocalAddresses::default();
        let mut steered = Self { port, addresses, published, fan_out, claimed, ingress, attached: None };
        steered.publish(snapshot)?;
        Ok(steered)
    }

    /// Brings the address map up to a snapshot.
    ///
    /// # Errors
    /// [`BpfError::Full`], or what the kernel said; addresses that were set stay set.
    pub fn publish(&mut self, snapshot: &Snapshot) -> Result<(), BpfError> {
        let next = local_addresses(snapshot, self.port);
        let changes = next.changes_from(&self.published);
        for key in &changes.removed {
            self.addresses.delete(key)?;
        }
        self.addresses.update_batch(&changes.keys, &changes.values)?;
        self.published = next;
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
        self.published.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.published.is_empty()
    }
}

/// The addresses that Postern answers for on a port, by VLAN.
fn local_addresses(snapshot: &Snapshot, port: PortIndex) -> LocalAddresses {
    let mut addresses = LocalAddresses::default();
    for attachment in snapshot.attachments.iter().filter(|attachment| attachment.port == port) {
        for ((_, address), kind) in snapshot.local.iter().filter(|((vpc, _), _)| *vpc == attachment.vpc) {
            let kind = match kind {
                LocalAddress::Endpoint(_) => LocalKind::Endpoint,
                LocalAddress::Snat(_) => LocalKind::Snat,
            };
            addresses.insert(attachment.vlan.unwrap_or(0), *address, kind);
        }
    }
    addresses
}

//! Next hops of one worker: where translated packets go and the bytes in front of them.
//!
//! A hop is a neighbour on an attachment, or the station that a request came from (`return = "last_hop"`). Flows hold the
//! hop's index; a changed MAC address touches no flow. Hops that no flow holds are reused when the table is full.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use postern_tables::Snapshot;
use postern_tables::snapshot::Attachment;
use postern_wire::frame::NO_VLAN;
use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, PLAIN};
use postern_wire::plain6::PLAIN6;
use postern_wire::{AttachmentIndex, Family, Frame, MacAddress, PortIndex};

use crate::forwarder::PortInfo;

/// Most bytes in front of an IP packet: Ethernet and one VLAN tag today.
const HEADER: usize = 18;
/// Most hops of a worker.
pub(crate) const CAPACITY: usize = 65_536;
/// Hops looked at for one to reuse.
const SWEEP: usize = 64;
/// Neighbours that are found without a search.
const RECENT: usize = 256;

/// Where packets go. In a cache line of its own: every packet reads one.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct NextHop {
    header: [u8; HEADER],
    header_length: u8,
    /// The MTU where the hop is resolved and its header is Ethernet's without a tag, else 0.
    pub(crate) plain_mtu: u16,
    /// Whether the destination MAC address is known.
    pub(crate) resolved: bool,
    /// Port to send on.
    pub(crate) port: PortIndex,
    /// Largest IP datagram, in bytes.
    pub(crate) mtu: u16,
    pub(crate) attachment: AttachmentIndex,
    /// The neighbour; unspecified for a last hop. Packets are of its family.
    pub(crate) address: IpAddr,
    mac: MacAddress,
    references: u32,
}

/// What a hop is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct HopKey {
    /// The attachment, in bit 16 whether it is a station, in bit 17 the family.
    place: u32,
    /// IP or MAC address.
    address: u128,
}

impl HopKey {
    fn neighbour(attachment: AttachmentIndex, address: IpAddr) -> Self {
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        Self { place: Self::place(attachment, false, Family::of(address)), address: bits }
    }

    fn station(attachment: AttachmentIndex, MacAddress([a, b, c, d, e, f]): MacAddress, family: Family) -> Self {
        let bits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        Self { place: Self::place(attachment, true, family), address: u128::from(bits) }
    }

    fn place(attachment: AttachmentIndex, is_station: bool, family: Family) -> u32 {
        u32::from(attachment.0) | u32::from(is_station) << 16 | (family as u32) << 17
    }
}

/// The hops of a worker.
#[derive(Debug)]
pub(crate) struct NextHops {
    hops: Vec<NextHop>,
    found: HashMap<HopKey, u32, Secret>,
    /// Neighbours found last, by [`recent_place`]. Only hints: the hop itself says whether it is the one.
    recent: [u32; RECENT],
    hand: usize,
}

/// Where in [`NextHops::recent`] a neighbour stands.
const fn recent_place(attachment: AttachmentIndex, address: Ipv4Addr) -> usize {
    // The high bits of a product depend on all bits of the factors.
    ((address.to_bits() ^ attachment.0 as u32).wrapping_mul(0x9e37_79b1) >> 24) as usize % RECENT
}

/// The same of an IPv6 neighbour.
const fn recent_place6(attachment: AttachmentIndex, address: Ipv6Addr) -> usize {
    let folded = address.to_bits() ^ (address.to_bits() >> 64);
    recent_place(attachment, Ipv4Addr::from_bits((folded ^ (folded >> 32)) as u32))
}

impl NextHops {
    pub(crate) fn new(secret: u64) -> Self {
        Self {
            hops: Vec::with_capacity(CAPACITY),
            found: HashMap::with_capacity_and_hasher(CAPACITY, Secret(secret)),
            recent: [0; RECENT],
            hand: 0,
        }
    }

    /// The hop at an index, if there is one.
    #[inline(always)]
    pub(crate) fn hop(&self, index: u32) -> Option<&NextHop> {
        self.hops.get(index as usize)
    }

    /// The hop at an index that a flow holds.
    #[inline(always)]
    pub(crate) fn at(&self, index: u32) -> &NextHop {
        &self.hops[index as usize]
    }

    /// The hop to a neighbour; made unresolved if it is new. `None` if the table is full.
    #[inline]
    pub(crate) fn neighbour(
        &mut self,
        snapshot: &Snapshot,
        ports: &[PortInfo],
        attachment: AttachmentIndex,
        address: Ipv4Addr,
    ) -> Option<u32> {
        let recent = self.recent[recent_place(attachment, address)];
        if let Some(hop) = self.hop(recent)
            && hop.address == IpAddr::V4(address)
            && hop.attachment == attachment
        {
            return Some(recent);
        }
        self.search(snapshot, ports, attachment, address)
    }

    /// The hop to an IPv6 neighbour, likewise.
    pub(crate) fn neighbour6(
        &mut self,
        snapshot: &Snapshot,
        ports: &[PortInfo],
        attachment: AttachmentIndex,
        address: Ipv6Addr,
    ) -> Option<u32> {
        let place = recent_place6(attachment, address);
        let recent = self.recent[place];
        if let Some(hop) = self.hop(recent)
            && hop.address == IpAddr::V6(address)
            && hop.attachment == attachment
        {
            return Some(recent);
        }
        let index = self.find(snapshot, ports, attachment, IpAddr::V6(address))?;
        self.recent[place] = index;
        Some(index)
    }

    #[inline(never)]
    fn search(
        &mut self,
        snapshot: &Snapshot,
        ports: &[PortInfo],
        attachment: AttachmentIndex,
        address: Ipv4Addr,
    ) -> Option<u32> {
        let index = self.find(snapshot, ports, attachment, IpAddr::V4(address))?;
        self.recent[recent_place(attachment, address)] = index;
        Some(index)
    }

    fn find(
        &mut self,
        snapshot: &Snapshot,
        ports: &[PortInfo],
        attachment: AttachmentIndex,
        address: IpAddr,
    ) -> Option<u32> {
        let key = HopKey::neighbour(attachment, address);
        match self.found.get(&key) {
            Some(index) => Some(*index),
            None => self.add(key, NextHop::new(snapshot, ports, attachment, address, None)?),
        }
    }

    /// The hop to the station that a frame came from, for packets of a family.
    pub(crate) fn station(
        &mut self,
        snapshot: &Snapshot,
        ports: &[PortInfo],
        attachment: AttachmentIndex,
        mac: MacAddress,
        family: Family,
    ) -> Option<u32> {
        let key = HopKey::station(attachment, mac, family);
        if let Some(index) = self.found.get(&key) {
            return Some(*index);
        }
        let nobody = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.add(key, NextHop::new(snapshot, ports, attachment, nobody, Some(mac))?)
    }

    fn add(&mut self, key: HopKey, hop: NextHop) -> Option<u32> {
        let index = if self.hops.len() < CAPACITY {
            self.hops.push(hop);
            self.hops.len() - 1
        } else {
            let index = self.unused()?;
            let old = self.hops[index].key();
            self.found.remove(&old);
            self.hops[index] = hop;
            index
        };
        self.found.insert(key, index as u32);
        Some(index as u32)
    }

    fn unused(&mut self) -> Option<usize> {
        for _ in 0..SWEEP {
            self.hand = (self.hand + 1) % self.hops.len();
            if self.hops[self.hand].references == 0 {
                return Some(self.hand);
            }
        }
        None
    }

    pub(crate) fn hold(&mut self, index: u32) {
        self.hops[index as usize].references += 1;
    }

    pub(crate) fn let_go(&mut self, index: u32) {
        let hop = &mut self.hops[index as usize];
        hop.references = hop.references.saturating_sub(1);
    }

    /// Learns or forgets a neighbour's MAC address; returns the hop if there is one.
    pub(crate) fn learn(
        &mut self,
        attachment: AttachmentIndex,
        address: IpAddr,
        mac: Option<MacAddress>,
    ) -> Option<u32> {
        let index = *self.found.get(&HopKey::neighbour(attachment, address))?;
        let hop = &mut self.hops[index as usize];
        hop.resolved = mac.is_some();
        hop.mac = mac.unwrap_or_default();
        hop.header[..6].copy_from_slice(&hop.mac.0);
        hop.settle();
        Some(index)
    }

    /// Rewrites every hop for changed attachments or ports.
    pub(crate) fn refresh(&mut self, snapshot: &Snapshot, ports: &[PortInfo]) {
        for hop in &mut self.hops {
            let mac = hop.resolved.then_some(hop.mac);
            if let Some(mut new) = NextHop::new(snapshot, ports, hop.attachment, hop.address, mac) {
                new.references = hop.references;
                *hop = new;
            } else {
                hop.resolved = false;
                hop.settle();
            }
        }
    }
}

impl NextHop {
    fn new(
        snapshot: &Snapshot,
        ports: &[PortInfo],
        index: AttachmentIndex,
        address: IpAddr,
        mac: Option<MacAddress>,
    ) -> Option<Self> {
        let attachment = snapshot.attachments.get(usize::from(index.0))?;
        let port = ports.get(usize::from(attachment.port.0))?;
        let mut header = [0; HEADER];
        header[..6].copy_from_slice(&mac.unwrap_or_default().0);
        header[6..12].copy_from_slice(&own_mac(attachment, port).0);
        let ethertype = if address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let header_length = if let Some(vlan) = attachment.vlan {
            header[12..14].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
            header[14..16].copy_from_slice(&vlan.to_be_bytes());
            header[16..18].copy_from_slice(&ethertype.to_be_bytes());
            18
        } else {
            header[12..14].copy_from_slice(&ethertype.to_be_bytes());
            14
        };
        let mut hop = Self {
            header,
            header_length,
            plain_mtu: 0,
            resolved: mac.is_some(),
            port: attachment.port,
            mtu: attachment.mtu.map_or(port.mtu, |mtu| mtu.min(port.mtu)),
            attachment: index,
            address,
            mac: mac.unwrap_or_default(),
            references: 0,
        };
        hop.settle();
        Some(hop)
    }

    /// Works out what follows from the other fields.
    fn settle(&mut self) {
        self.plain_mtu = if self.resolved && self.header_length == 14 { self.mtu } else { 0 };
    }

    fn key(&self) -> HopKey {
        if self.address.is_unspecified() {
            HopKey::station(self.attachment, self.mac, Family::of(self.address))
        } else {
            HopKey::neighbour(self.attachment, self.address)
        }
    }

    /// The bytes to put in front of an IP packet.
    #[inline]
    pub(crate) fn header(&self) -> &[u8] {
        &self.header[..usize::from(self.header_length)]
    }

    /// Replaces the Ethernet header of a plain frame; for hops whose `plain_mtu` is not 0.
    #[inline(always)]
    pub(crate) fn write_plain(&self, head: &mut [u8; PLAIN]) {
        head[..14].copy_from_slice(&self.header[..14]);
    }

    /// The same of IPv6.
    #[inline(always)]
    pub(crate) fn write_plain6(&self, head: &mut [u8; PLAIN6]) {
        head[..14].copy_from_slice(&self.header[..14]);
    }

    /// Replaces the first `l3` bytes of a frame by this hop's header; false if there is no room for it.
    #[inline]
    pub(crate) fn write(&self, frame: &mut Frame<'_>, l3: usize) -> bool {
        // A tag that came beside the frame belongs to the attachment it came from; this one's is in the header.
        frame.vlan = NO_VLAN;
        if l3 == 14 && self.header_length == 14 {
            let Some(front) = frame.bytes_mut().first_chunk_mut::<14>() else { return false };
            front.copy_from_slice(&self.header[..14]);
            return true;
        }
        if !frame.resize_front(l3, usize::from(self.header_length)) {
            return false;
        }
        frame.bytes_mut()[..usize::from(self.header_length)].copy_from_slice(self.header());
        true
    }
}

/// The MAC address under which the gateway appears on an attachment.
pub(crate) fn own_mac(attachment: &Attachment, port: &PortInfo) -> MacAddress {
    attachment.mac.unwrap_or(port.mac)
}

/// A keyed hasher for small keys: folded multiplications, as in the flow table. Strangers choose source addresses.
#[derive(Debug, Clone, Copy)]
struct Secret(u64);

#[derive(Debug)]
struct SecretHasher {
    secret: u64,
    state: u64,
}

impl BuildHasher for Secret {
    type Hasher = SecretHasher;

    fn build_hasher(&self) -> SecretHasher {
        SecretHasher { secret: self.0, state: self.0 }
    }
}

impl Hasher for SecretHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.secret | 1);
        self.state = (product as u64 ^ (product >> 64) as u64).rotate_left(23);
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    #[inline]
    fn finish(&self) -> u64 {
        let product = u128::from(self.state) * u128::from(self.secret.rotate_left(17) | 1);
        product as u64 ^ (product >> 64) as u64
    }
}

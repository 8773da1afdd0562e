//! The flow table: a region with its header, index, wheel, records and addresses.
//!
//! There are two classes of flows, each with records of its own: narrow ones, whose addresses are all IPv4 and stand in their
//! keys, and wide ones, which have [`WideAddresses`] besides. Records 0…narrow-1 are narrow; wide ones follow.

use postern_prefetch::prefetch;
use postern_wire::ipv6::{AddressPair, octets};
use postern_wire::{Direction, FlowKey};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::index::{self, Bucket, REVERSE, buckets_for};
use crate::record::{FlowRecord, NONE};
use crate::wheel::{self, SLOTS};
use crate::wide::WideAddresses;

/// `"POSTERNF"`, little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"POSTERNF");
/// Version of the region's layout; a region of another version is refused.
pub const LAYOUT_VERSION: u32 = 4;

/// The first 128 bytes of a region.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    /// Narrow records.
    narrow: u32,
    size: u64,
    /// Secret of the hash.
    secret: [u64; 4],
    /// First free narrow record, or [`NONE`].
    free: u32,
    /// Narrow records from here on were never used.
    fresh: u32,
    live: u32,
    /// Wide records.
    wide: u32,
    /// The wheel has been turned up to this second.
    turned: u64,
    /// First free wide record, or [`NONE`].
    wide_free: u32,
    /// Wide records from here on were never used.
    wide_fresh: u32,
    padding: [u64; 5],
}

const _: () = assert!(size_of::<Header>() == 128);

/// Why a region cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Too small for what it is to hold.
    #[error("the flow region has {given} bytes, {needed} are needed")]
    Size {
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Does not begin at a multiple of eight.
    #[error("the flow region is not aligned to 8 bytes")]
    Alignment,
    /// Not a flow region, or of another layout.
    #[error("the flow region has layout version {found}, this program knows {LAYOUT_VERSION}")]
    Layout {
        /// Version found; 0 where there is no flow region at all.
        found: u32,
    },
}

/// Why a flow cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// All records are in use.
    #[error("the flow table is full")]
    TableFull,
    /// Both buckets of one of the keys are full.
    #[error("both index buckets of the flow are full")]
    BucketFull,
}

/// A record that a key leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found(u32);

impl Found {
    /// No record.
    pub const NOTHING: Self = Self(NONE);

    /// Whether there is none.
    #[inline]
    #[must_use]
    pub const fn is_nothing(self) -> bool {
        self.0 == NONE
    }

    /// Number of the record.
    #[inline]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 & !REVERSE
    }

    /// Whether the key is the record's reverse key.
    #[inline]
    #[must_use]
    pub const fn is_reverse(self) -> bool {
        self.0 & REVERSE != 0
    }

    /// The direction of the packets that have the key.
    #[inline]
    #[must_use]
    pub const fn direction(self) -> Direction {
        if self.is_reverse() { Direction::Reverse } else { Direction::Forward }
    }
}

/// A flow table in a region.
#[derive(Debug)]
pub struct FlowTable<'m> {
    header: &'m mut Header,
    buckets: &'m mut [Bucket],
    slots: &'m mut [u32],
    records: &'m mut [FlowRecord],
    /// Of the wide records.
    wide: &'m mut [WideAddresses],
    secret: [u64; 4],
}

impl<'m> FlowTable<'m> {
    /// Bytes of a region for so many narrow and wide flows.
    #[must_use]
    pub const fn region_size(flows: u32, wide: u32) -> usize {
        size_of::<Header>()
            + buckets_for(flows.saturating_add(wide)) * size_of::<Bucket>()
            + SLOTS * size_of::<u32>()
            + (flows as usize + wide as usize) * size_of::<FlowRecord>()
            + wide as usize * size_of::<WideAddresses>()
    }

    /// Makes an empty table in zeroed memory. Records are not touched, so memory is used as flows come.
    ///
    /// # Errors
    /// When the memory is too small or not aligned to 8 bytes.
    pub fn create(memory: &'m mut [u8], flows: u32, wide: u32, secret: [u64; 4]) -> Result<Self, RegionError> {
        let size = Self::region_size(flows, wide);
        let table = Self::lay_out(memory, flows, wide, size)?;
        *table.header = Header {
            magic: MAGIC,
            version: LAYOUT_VERSION,
            narrow: flows,
            size: size as u64,
            secret,
            free: NONE,
            fresh: 0,
            live: 0,
            wide,
            turned: 0,
            wide_free: NONE,
            wide_fresh: flows,
            padding: [0; 5],
        };
        table.slots.fill(NONE);
        Ok(Self { secret, ..table })
    }

    /// Opens a table that is already in the memory, with its flows.
    ///
    /// # Errors
    /// When the memory holds no table of this layout, or only a part of one.
    pub fn open(memory: &'m mut [u8]) -> Result<Self, RegionError> {
        let given = memory.len();
        let (header, _) =
            Header::read_from_prefix(memory).map_err(|_| RegionError::Size { given, needed: size_of::<Header>() })?;
        if header.magic != MAGIC || header.version != LAYOUT_VERSION {
            let found = if header.magic == MAGIC { header.version } else { 0 };
            return Err(RegionError::Layout { found });
        }
        let size = Self::region_size(header.narrow, header.wide);
        let table = Self::lay_out(memory, header.narrow, header.wide, size)?;
        Ok(Self { secret: header.secret, ..table })
    }

    fn lay_out(memory: &'m mut [u8], flows: u32, wide: u32, needed: usize) -> Result<Self, RegionError> {
        let given = memory.len();
        let error = |_: ()| RegionError::Alignment;
        let memory = memory.get_mut(..needed).ok_or(RegionError::Size { given, needed })?;
        let (all, wide) = (flows.saturating_add(wide), wide as usize);
        let (header, rest) = Header::mut_from_prefix(memory).map_err(|_| ()).map_err(error)?;
        let (buckets, rest) =
            <[Bucket]>::mut_from_prefix_with_elems(rest, buckets_for(all)).map_err(|_| ()).map_err(error)?;
        let (slots, rest) = <[u32]>::mut_from_prefix_with_elems(rest, SLOTS).map_err(|_| ()).map_err(error)?;
        let (records, rest) =
            <[FlowRecord]>::mut_from_prefix_with_elems(rest, all as usize).map_err(|_| ()).map_err(error)?;
        let (wide, _) = <[WideAddresses]>::mut_from_prefix_with_elems(rest, wide).map_err(|_| ()).map_err(error)?;
        Ok(Self { header, buckets, slots, records, wide, secret: [0; 4] })
    }

    /// Keyed hash of a key: two folded 64 × 64-bit multiplications with 256 bits of secret.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self, key: FlowKey) -> u64 {
        let once = fold_multiply(key.addresses ^ self.secret[0], key.rest ^ self.secret[1]);
        fold_multiply(once ^ self.secret[2], self.secret[3])
    }

    /// What makes the address words of this table's keys.
    #[inline(always)]
    #[must_use]
    pub const fn address_words(&self) -> AddressWords {
        AddressWords([self.secret[2], self.secret[3]])
    }

    /// The address words of source and destination.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self, addresses: &AddressPair) -> [u32; 2] {
        self.address_words().of(addresses)
    }

    /// Where the look-up of a hash begins.
    #[inline(always)]
    #[must_use]
    pub const fn place(&self, hash: u64) -> usize {
        index::first_place(self.buckets, hash)
    }

    /// Brings the bucket at a place on its way into the cache.
    #[inline(always)]
    pub fn prefetch_bucket(&self, place: usize) {
        prefetch(self.buckets, place);
    }

    /// The record that a key with this hash and [`Self::place`] most likely leads to, found without looking at records;
    /// [`Self::confirm`] tells whether it does.
    #[inline(always)]
    #[must_use]
    pub fn candidate(&self, place: usize, hash: u64) -> Found {
        index::candidate(self.buckets, place, hash).map_or(Found::NOTHING, Found)
    }

    /// Brings a record on its way into the cache.
    #[inline(always)]
    pub fn prefetch_record(&self, found: Found) {
        prefetch(self.records, found.index() as usize);
    }

    /// Brings the addresses of a wide record on their way into the cache.
    #[inline(always)]
    pub fn prefetch_wide(&self, found: Found) {
        prefetch(self.wide, found.index().wrapping_sub(self.header.narrow) as usize);
    }

    /// Whether a record is a wide one.
    #[inline]
    #[must_use]
    pub const fn is_wide(&self, index: u32) -> bool {
        index >= self.header.narrow
    }

    /// The addresses beside a record; `None` if it is narrow.
    #[inline(always)]
    #[must_use]
    pub fn wide(&self, index: u32) -> Option<&WideAddresses> {
        self.wide.get(index.wrapping_sub(self.header.narrow) as usize)
    }

    /// The record and its addresses, if the key of an IPv6 packet with these addresses leads to it.
    #[inline(always)]
    #[must_use]
    pub fn confirm_wide(
        &mut self,
        found: Found,
        key: FlowKey,
        addresses: &AddressPair,
    ) -> Option<(&mut FlowRecord, &WideAddresses)> {
        let wide = self.wide.get(found.index().wrapping_sub(self.header.narrow) as usize)?;
        let record = self.records.get_mut(found.index() as usize)?;
        let direction = found.direction();
        (record.key(direction) == key && wide.of(direction) == addresses).then_some((record, wide))
    }

    /// The record of an IPv6 packet with this key and these addresses.
    #[must_use]
    pub fn find_wide(&self, key: FlowKey, hash: u64, addresses: &AddressPair) -> Found {
        let is = |entry: u32| {
            let (index, direction) = (Found(entry).index(), Found(entry).direction());
            self.records[index as usize].key(direction) == key
                && self.wide(index).is_some_and(|wide| wide.of(direction) == addresses)
        };
        index::find(self.buckets, self.place(hash), hash, is).map_or(Found::NOTHING, Found)
    }

    /// The record, if the key leads to it.
    #[inline(always)]
    #[must_use]
    pub fn confirm(&mut self, found: Found, key: FlowKey) -> Option<&mut FlowRecord> {
        self.records.get_mut(found.index() as usize).filter(|record| record.key(found.direction()) == key)
    }

    /// The record of a key.
    #[must_use]
    pub fn find(&self, key: FlowKey, hash: u64) -> Found {
        // Both keys lie in the record's first half; which is meant is in the entry.
        let is = |entry: u32| self.records[Found(entry).index() as usize].key(Found(entry).direction()) == key;
        index::find(self.buckets, self.place(hash), hash, is).map_or(Found::NOTHING, Found)
    }

    /// The record of a key, hash included.
    #[must_use]
    pub fn find_key(&self, key: FlowKey) -> Found {
        self.find(key, self.hash(key))
    }

    /// Records a flow that ends `record.idle_seconds` after `record.last_seen` unless packets come. `seconds` is the
    /// present time.
    ///
    /// # Errors
    /// When there is no room; nothing is changed then.
    pub fn insert(&mut self, record: FlowRecord, seconds: u64) -> Result<u32, InsertError> {
        self.insert_with(self.hash(record.forward), seconds, &record, |_| {})
    }

    /// Records a flow whose forward key will have this hash: a copy of `model`, which `complete` makes the flow's own, in its
    /// place.
    ///
    /// # Errors
    /// As [`Self::insert`].
    #[inline]
    pub fn insert_with(
        &mut self,
        hash: u64,
        seconds: u64,
        model: &FlowRecord,
        complete: impl FnOnce(&mut FlowRecord),
    ) -> Result<u32, InsertError> {
        let index = if self.header.free != NONE { self.header.free } else { self.header.fresh };
        if index >= self.header.narrow {
            return Err(InsertError::TableFull);
        }
        let next_free = self.fill(index, hash, seconds, model, complete)?;
        if self.header.free != NONE {
            self.header.free = next_free;
        } else {
            self.header.fresh += 1;
        }
        Ok(index)
    }

    /// Records a wide flow. See [`Self::insert_with`].
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn insert_wide(
        &mut self,
        hash: u64,
        seconds: u64,
        model: &FlowRecord,
        addresses: &WideAddresses,
        complete: impl FnOnce(&mut FlowRecord),
    ) -> Result<u32, InsertError> {
        let index = if self.header.wide_free != NONE { self.header.wide_free } else { self.header.wide_fresh };
        let next_free = self.fill(index, hash, seconds, model, complete)?;
        self.wide[(index - self.header.narrow) as usize] = *addresses;
        if self.header.wide_free != NONE {
            self.header.wide_free = next_free;
        } else {
            self.header.wide_fresh += 1;
        }
        Ok(index)
    }

    /// Fills a free record, indexes it and sets its timer; returns what came after it in the free list.
    #[inline(always)]
    fn fill(
        &mut self,
        index: u32,
        hash: u64,
        seconds: u64,
        model: &FlowRecord,
        complete: impl FnOnce(&mut FlowRecord),
    ) -> Result<u32, InsertError> {
        let Some(record) = self.records.get_mut(index as usize) else { return Err(InsertError::TableFull) };
        let next_free = record.timer_next;
        // Written before it is indexed: making room for its second key may move the entry of its first, which takes the
        // hash from the record.
        *record = *model;
        complete(record);
        record.flags |= FlowRecord::FLAG_LIVE;
        let (reverse, is_note) = (record.reverse, record.flags & FlowRecord::FLAG_AWAY != 0);
        let idle_seconds = record.idle_seconds;
        if !self.index_insert(hash, index) {
            self.release(index, next_free);
            return Err(InsertError::BucketFull);
        }
        // A note of a flow that lives elsewhere is found by its forward key only.
        if !is_note && !self.index_insert(self.hash(reverse), index | REVERSE) {
            index::remove(self.buckets, hash, index);
            self.release(index, next_free);
            return Err(InsertError::BucketFull);
        }
        self.header.live += 1;
        // One more second, because the slot is turned when its second begins.
        wheel::link(self.slots, self.records, index, seconds + u64::from(idle_seconds) + 1);
        Ok(next_free)
    }

    #[inline]
    fn index_insert(&mut self, hash: u64, entry: u32) -> bool {
        index::insert_first(self.buckets, hash, entry) || self.index_insert_elsewhere(hash, entry)
    }

    #[cold]
    #[inline(never)]
    fn index_insert_elsewhere(&mut self, hash: u64, entry: u32) -> bool {
        let (records, secret) = (&*self.records, &self.secret);
        let hash_of = |entry: u32| {
            let record = &records[(entry & !REVERSE) as usize];
            let key = if entry & REVERSE == 0 { record.forward } else { record.reverse };
            fold_multiply(fold_multiply(key.addresses ^ secret[0], key.rest ^ secret[1]) ^ secret[2], secret[3])
        };
        index::insert_elsewhere(self.buckets, hash, entry, hash_of)
    }

    /// Ends a flow: its keys are found no more, its record is free.
    pub fn remove(&mut self, index: u32) {
        let record = self.records[index as usize];
        if !record.is_live() {
            return;
        }
        index::remove(self.buckets, self.hash(record.forward), index);
        if record.flags & FlowRecord::FLAG_AWAY == 0 {
            index::remove(self.buckets, self.hash(record.reverse), index | REVERSE);
        }
        wheel::unlink(self.slots, self.records, index);
        if let Some(wide) = self.wide.get_mut(index.wrapping_sub(self.header.narrow) as usize) {
            *wide = WideAddresses::NONE;
            self.release(index, self.header.wide_free);
            self.header.wide_free = index;
        } else {
            self.release(index, self.header.free);
            self.header.free = index;
        }
        self.header.live -= 1;
    }

    /// Empties a record. Its keys go too: a tag may seem to match a free way of the index, whose entry still names the
    /// record, and then the keys must not match.
    #[cold]
    fn release(&mut self, index: u32, next_free: u32) {
        self.records[index as usize] = FlowRecord { timer_next: next_free, ..FlowRecord::default() };
    }

    /// Moves the flow's deadline to where its idle time now says; needed where the idle time has become shorter.
    pub fn reschedule(&mut self, index: u32, seconds: u64) {
        wheel::unlink(self.slots, self.records, index);
        let idle = u64::from(self.records[index as usize].idle_seconds);
        wheel::link(self.slots, self.records, index, seconds + idle + 1);
    }

    /// Turns the wheel up to the present and returns the next flow that has expired, still in the table; the caller removes
    /// it and asks again. `budget` is taken down by every record looked at; at 0 nothing is returned although more may be
    /// due.
    pub fn next_expired(&mut self, milliseconds: u64, budget: &mut u32) -> Option<u32> {
        let seconds = milliseconds / 1000;
        if self.header.turned == 0 || seconds.saturating_sub(self.header.turned) > SLOTS as u64 {
            // First use, or asleep for longer than a whole turn: every slot is looked at once.
            self.header.turned = seconds.saturating_sub(SLOTS as u64 - 1).max(1);
        }
        while *budget > 0 {
            let Some(index) = wheel::first(self.slots, self.header.turned) else {
                if self.header.turned >= seconds {
                    return None;
                }
                self.header.turned += 1;
                // Empty slots are cheap, but not free: a long sleep must not be made up for in one step.
                *budget -= u32::from(self.header.turned.is_multiple_of(64));
                continue;
            };
            *budget -= 1;
            let record = &self.records[index as usize];
            if record.is_expired(milliseconds as u32) {
                return Some(index);
            }
            let age = (milliseconds as u32).wrapping_sub(record.last_seen);
            let left = (u32::from(record.idle_seconds) * 1000).saturating_sub(age);
            wheel::unlink(self.slots, self.records, index);
            wheel::link(self.slots, self.records, index, seconds + u64::from(left) / 1000 + 1);
        }
        None
    }

    /// Whether the wheel lags behind the present.
    #[must_use]
    pub fn is_due(&self, milliseconds: u64) -> bool {
        self.header.turned < milliseconds / 1000
    }

    /// A record.
    #[inline]
    #[must_use]
    pub fn record(&self, index: u32) -> &FlowRecord {
        &self.records[index as usize]
    }

    /// A record, to be changed. Keys and links must stay.
    #[inline]
    #[must_use]
    pub fn record_mut(&mut self, index: u32) -> &mut FlowRecord {
        &mut self.records[index as usize]
    }

    /// Live flows, notes of flows that live elsewhere included.
    #[must_use]
    pub const fn live(&self) -> u32 {
        self.header.live
    }

    /// The first record from `index` on that was ever used; `None` if there is none. Others hold nothing.
    #[must_use]
    pub const fn used_from(&self, index: u32) -> Option<u32> {
        let index = if index >= self.header.fresh && index < self.header.narrow { self.header.narrow } else { index };
        if index < self.header.wide_fresh { Some(index) } else { None }
    }
}

/// Makes address words: what stands for IPv6 addresses in the keys of one table.
#[derive(Clone, Copy, Debug)]
pub struct AddressWords([u64; 2]);

impl AddressWords {
    /// The word of an address: a folded 64 × 64-bit multiplication with 128 bits of secret.
    #[inline(always)]
    #[must_use]
    pub const fn word(&self, address: &[u8; 16]) -> u32 {
        let address = u128::from_le_bytes(*address);
        // In the low half of the folded product every bit of both factors counts.
        fold_multiply(address as u64 ^ self.0[0], (address >> 64) as u64 ^ self.0[1]) as u32
    }

    /// The words of source and destination.
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, addresses: &AddressPair) -> [u32; 2] {
        let (source, destination) = octets(addresses);
        [self.word(source), self.word(destination)]
    }
}

/// Both halves of the 128-bit product, folded together.
#[inline(always)]
const fn fold_multiply(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, SocketAddrV4};

    use postern_wire::AttachmentIndex;

    use super::*;

    fn record(number: u32, idle_seconds: u16, tick: u32) -> FlowRecord {
        let client = SocketAddrV4::new(Ipv4Addr::from_bits(0x0a00_0000 + number), 1000);
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 100), 80);
        let target = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), 8080);
        let snat = SocketAddrV4::new(Ipv4Addr::from_bits(0x0a09_0000 + (number >> 16)), number as u16);
        FlowRecord {
            forward: FlowKey::new(AttachmentIndex(0), 17, client, endpoint),
            reverse: FlowKey::new(AttachmentIndex(1), 17, target, snat),
            idle_seconds,
            last_seen: tick,
            ..FlowRecord::default()
        }
    }

    fn memory(flows: u32) -> Vec<u64> {
        vec![0; FlowTable::region_size(flows, 0) / 8 + 1]
    }

    const SECRET: [u64; 4] = [1, 0x1234_5678_9abc_def1, 3, 0x9e37_79b9_7f4a_7c15];

    #[test]
    fn a_crowded_table_finds_every_live_flow_and_no_removed_one_however_often_it_is_filled() {
        // Few buckets, so that both keys of a flow often meet in one that is full.
        let flows = 128;
        let mut memory = memory(flows);
        let mut table = FlowTable::create(memory.as_mut_bytes(), flows, 0, SECRET).unwrap();
        for round in 0..2000 {
            let flow = |at: u32| record(round * 64 + at, 120, 1000);
            // A flow that finds no room, as may happen so close to the limit, is refused.
            let inserted: Vec<(u32, Option<u32>)> = (0..flows).map(|at| (at, table.insert(flow(at), 1).ok())).collect();
            for (at, index) in &inserted {
                let keys = [flow(*at).forward, flow(*at).reverse];
                let found =
                    keys.map(|key| table.find_key(key)).map(|found| (!found.is_nothing()).then(|| found.index()));
                assert_eq!(found, [*index; 2], "round {round}, flow {at}");
            }
            // First every other one, so that removed flows lie among live ones.
            for (removed, parity) in [(flows / 2, 0), (flows, 1)] {
                inserted.iter().filter(|(at, _)| at % 2 == parity).filter_map(|(_, index)| *index).for_each(|index| {
                    table.remove(index);
                });
                for at in (0..flows).filter(|at| removed == flows || at % 2 == 0) {
                    assert!(table.find_key(flow(at).forward).is_nothing(), "round {round}, flow {at}");
                    assert!(table.find_key(flow(at).reverse).is_nothing(), "round {round}, flow {at}");
                }
            }
            assert_eq!(table.live(), 0);
        }
    }

    #[test]
    fn a_candidate_is_confirmed_by_its_key_only_and_no_longer_once_its_flow_has_ended() {
        let mut memory = memory(100);
        let mut table = FlowTable::create(memory.as_mut_bytes(), 100, 0, SECRET).unwrap();
        let flow = record(1, 120, 1000);
        let index = table.insert(flow, 1).unwrap();
        for key in [flow.forward, flow.reverse] {
            let hash = table.hash(key);
            let candidate = table.candidate(table.place(hash), hash);
            assert_eq!(candidate, table.find(key, hash));
            assert!(table.confirm(candidate, key).is_some());
            assert!(table.confirm(candidate, key.reversed()).is_none());
        }
        let hash = table.hash(flow.forward);
        let candidate = table.candidate(table.place(hash), hash);
        table.remove(index);
        assert!(table.confirm(candidate, flow.forward).is_none());
        // Its number goes to another flow.
        assert_eq!(table.insert(record(2, 120, 1000), 1), Ok(index));
        assert!(table.confirm(candidate, flow.forward).is_none());
        assert!(table.confirm(Found::NOTHING, flow.forward).is_none());
    }

    #[test]
    fn a_copied_region_opens_with_the_same_flows() {
        let mut first = memory(1000);
        let mut table = FlowTable::create(first.as_mut_bytes(), 1000, 0, SECRET).unwrap();
        for number in 0..1000 {
            table.insert(record(number, 120, 1000), 1).unwrap();
        }
        assert_eq!(table.insert(record(1000, 120, 1000), 1), Err(InsertError::TableFull));
        let mut copy = first.clone();
        drop(first);
        let mut table = FlowTable::open(copy.as_mut_bytes()).unwrap();
        assert_eq!(table.live(), 1000);
        for number in 0..1000 {
            let wanted = record(number, 120, 1000);
            let forward = table.find_key(wanted.forward);
            let reverse = table.find_key(wanted.reverse);
            assert!(!forward.is_nothing() && !forward.is_reverse());
            assert!(reverse.is_reverse());
            assert_eq!(forward.index(), reverse.index());
            table.remove(forward.index());
            assert!(table.find_key(wanted.reverse).is_nothing());
        }
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn a_foreign_or_cut_region_is_refused() {
        let mut bytes = memory(10);
        assert_eq!(FlowTable::open(bytes.as_mut_bytes()).err(), Some(RegionError::Layout { found: 0 }));
        FlowTable::create(bytes.as_mut_bytes(), 10, 0, SECRET).unwrap();
        let cut = &mut bytes.as_mut_bytes()[..500];
        assert!(matches!(FlowTable::open(cut), Err(RegionError::Size { .. })));
        let shifted = &mut bytes.as_mut_bytes()[1..];
        assert!(FlowTable::create(shifted, 10, 0, SECRET).is_err());
    }

    #[test]
    fn flows_expire_when_their_idle_time_is_over_and_not_before() {
        let mut bytes = memory(100);
        let mut table = FlowTable::create(bytes.as_mut_bytes(), 100, 0, SECRET).unwrap();
        let quiet = table.insert(record(1, 10, 1000), 1).unwrap();
        let busy = table.insert(record(2, 10, 1000), 1).unwrap();
        let mut expired = HashMap::new();
        for milliseconds in (1000..60_000).step_by(100) {
            if milliseconds < 30_000 {
                table.record_mut(busy).last_seen = milliseconds as u32;
            }
            let mut budget = 100;
            while let Some(index) = table.next_expired(milliseconds, &mut budget) {
                expired.insert(index, milliseconds);
                table.remove(index);
            }
        }
        assert!((11_000..=12_100).contains(&expired[&quiet]), "{expired:?}");
        assert!((39_900..=41_100).contains(&expired[&busy]), "{expired:?}");
    }

    #[test]
    fn a_shortened_idle_time_takes_effect_after_rescheduling() {
        let mut bytes = memory(100);
        let mut table = FlowTable::create(bytes.as_mut_bytes(), 100, 0, SECRET).unwrap();
        let index = table.insert(record(1, 350, 1000), 1).unwrap();
        assert_eq!(table.next_expired(2000, &mut 10_000), None);
        table.record_mut(index).idle_seconds = 4;
        table.reschedule(index, 1);
        assert_eq!(table.next_expired(7000, &mut 10_000), Some(index));
    }

    #[test]
    fn the_budget_bounds_what_one_call_looks_at() {
        let mut bytes = memory(1000);
        let mut table = FlowTable::create(bytes.as_mut_bytes(), 1000, 0, SECRET).unwrap();
        for number in 0..1000 {
            table.insert(record(number, 10, 1000), 1).unwrap();
        }
        let mut calls = 0;
        while table.live() > 0 {
            let mut budget = 64;
            let mut seen = 0;
            while let Some(index) = table.next_expired(100_000, &mut budget) {
                table.remove(index);
                seen += 1;
            }
            assert!(seen <= 64);
            calls += 1;
            assert!(calls < 1000);
        }
    }

    #[test]
    fn per_flow_memory_stays_below_its_mark() {
        let flows = 1 << 20;
        let bytes = FlowTable::region_size(flows, 0) as f64 / f64::from(flows);
        assert!(bytes <= 147.0, "{bytes}");
    }

    #[test]
    fn memory_of_an_ipv6_flow_stays_below_its_mark() {
        let (flows, wide) = (1 << 20, 1 << 18);
        let bytes = (FlowTable::region_size(flows, wide) - FlowTable::region_size(flows, 0)) as f64 / f64::from(wide);
        assert!(bytes <= 211.0, "{bytes}");
    }

    mod wide {
        use std::net::{IpAddr, Ipv6Addr};

        use proptest::prelude::*;

        use super::*;

        /// Few addresses of each kind, so that flows differ by any part.
        fn address(prefix: u16, number: u8) -> IpAddr {
            Ipv6Addr::new(0xfd00, prefix, 0, 0, 0, 0, 0, u16::from(number)).into()
        }

        fn addresses(number: u32, nat64: bool) -> WideAddresses {
            let [a, b, ..] = number.to_le_bytes();
            let target: IpAddr = if nat64 { Ipv4Addr::new(10, 9, 0, 1).into() } else { address(9, 1) };
            let snat: IpAddr = if nat64 { Ipv4Addr::new(10, 9, 1, b).into() } else { address(8, b) };
            WideAddresses::new(address(1, a), address(2, b), target, snat)
        }

        /// A wide flow; `collide` gives all addresses one word.
        fn flow(table: &FlowTable<'_>, number: u32, nat64: bool, collide: bool) -> (FlowRecord, WideAddresses) {
            let wide = addresses(number, nat64);
            let words = |pair: &AddressPair| if collide { [7, 7] } else { table.words(pair) };
            let port = 0x1000 | u32::from(nat64) | u32::from(collide) << 1;
            let forward = FlowKey::wide(AttachmentIndex(0), 17, words(&wide.forward), 0x5000 << 16 | port);
            let reverse = match (wide.target(), wide.snat()) {
                (IpAddr::V4(target), IpAddr::V4(snat)) => FlowKey::new(
                    AttachmentIndex(1),
                    17,
                    SocketAddrV4::new(target, 80),
                    SocketAddrV4::new(snat, number as u16),
                ),
                _ => FlowKey::wide(AttachmentIndex(1), 17, words(&wide.reverse), number << 16 | 0x5000),
            };
            let record = FlowRecord { forward, reverse, idle_seconds: 60, last_seen: 1000, ..FlowRecord::default() };
            (record, wide)
        }

        fn insert(table: &mut FlowTable<'_>, (record, wide): &(FlowRecord, WideAddresses)) -> Result<u32, InsertError> {
            table.insert_wide(table.hash(record.forward), 1, record, wide, |_| {})
        }

        fn find(table: &FlowTable<'_>, (record, wide): &(FlowRecord, WideAddresses)) -> [Option<u32>; 2] {
            let forward = table.find_wide(record.forward, table.hash(record.forward), &wide.forward);
            let reverse = if record.reverse.is_wide() {
                table.find_wide(record.reverse, table.hash(record.reverse), &wide.reverse)
            } else {
                table.find_key(record.reverse)
            };
            assert!(forward.is_nothing() || !forward.is_reverse());
            assert!(reverse.is_nothing() || reverse.is_reverse());
            [forward, reverse].map(|found| (!found.is_nothing()).then(|| found.index()))
        }

        const NARROW: u32 = 64;
        const WIDE: u32 = 48;

        fn room() -> Vec<u64> {
            vec![0; FlowTable::region_size(NARROW, WIDE) / 8 + 1]
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(60))]

            #[test]
            fn ipv6_and_ipv4_flows_come_and_go_as_in_a_map(
                steps in proptest::collection::vec((0u32..300, 0u8..4), 1..600),
                copy_at in 0usize..600,
            ) {
                let mut memory = room();
                let mut table = FlowTable::create(memory.as_mut_bytes(), NARROW, WIDE, SECRET).unwrap();
                let mut live: HashMap<(u32, u8), u32> = HashMap::new();
                let mut other = Vec::new();
                for (at, (number, kind)) in steps.into_iter().enumerate() {
                    if at == copy_at {
                        other = memory.clone();
                        memory.fill(0);
                        table = FlowTable::open(other.as_mut_bytes()).unwrap();
                    }
                    // Two keys of one word live by their addresses alone: few of them, as all are in two buckets.
                    let number = if kind == 2 { number % 8 } else { number };
                    if let Some(index) = live.remove(&(number, kind)) {
                        table.remove(index);
                    } else {
                        let inserted = match kind {
                            0 => table.insert(record(number, 60, 1000), 1),
                            kind => {
                                let flow = flow(&table, number, kind == 3, kind == 2);
                                insert(&mut table, &flow)
                            }
                        };
                        match inserted {
                            Ok(index) => {
                                prop_assert_eq!(table.is_wide(index), kind > 0);
                                prop_assert!(!live.values().any(|other| *other == index));
                                live.insert((number, kind), index);
                            }
                            Err(InsertError::TableFull) => {
                                let of_class = live.keys().filter(|(_, other)| (*other > 0) == (kind > 0)).count();
                                prop_assert_eq!(of_class as u32, if kind > 0 { WIDE } else { NARROW });
                            }
                            Err(InsertError::BucketFull) => {}
                        }
                    }
                    prop_assert_eq!(table.live() as usize, live.len());
                }
                for number in 0..300 {
                    for kind in 0..4 {
                        let wanted = live.get(&(number, kind)).copied();
                        let found = if kind == 0 {
                            let wanted = record(number, 60, 1000);
                            [wanted.forward, wanted.reverse].map(|key| table.find_key(key))
                                .map(|found| (!found.is_nothing()).then(|| found.index()))
                        } else {
                            find(&table, &flow(&table, number, kind == 3, kind == 2))
                        };
                        prop_assert_eq!(found, [wanted; 2], "{} {}", number, kind);
                        if let (Some(index), true) = (wanted, kind > 0) {
                            prop_assert_eq!(table.wide(index), Some(&addresses(number, kind == 3)));
                        }
                    }
                }
                let mut listed = Vec::new();
                let mut cursor = 0;
                while let Some(index) = table.used_from(cursor) {
                    if table.record(index).is_live() {
                        listed.push(index);
                    }
                    cursor = index + 1;
                }
                let mut all: Vec<u32> = live.values().copied().collect();
                all.sort_unstable();
                prop_assert_eq!(listed, all);
                drop(other);
            }
        }

        #[test]
        fn ipv6_flows_are_confirmed_by_their_addresses_and_not_by_the_words_of_these() {
            let mut memory = room();
            let mut table = FlowTable::create(memory.as_mut_bytes(), NARROW, WIDE, SECRET).unwrap();
            let (record, wide) = flow(&table, 1, false, true);
            let index = insert(&mut table, &(record, wide)).unwrap();
            let hash = table.hash(record.forward);
            let found = table.candidate(table.place(hash), hash);
            assert!(table.confirm_wide(found, record.forward, &wide.forward).is_some());
            let stranger = addresses(2, false);
            assert!(table.confirm_wide(found, record.forward, &stranger.forward).is_none());
            assert!(table.find_wide(record.forward, hash, &stranger.forward).is_nothing());
            assert!(table.confirm_wide(Found::NOTHING, record.forward, &wide.forward).is_none());
            table.remove(index);
            assert!(table.confirm_wide(found, record.forward, &wide.forward).is_none());
        }
    }
}

//! A hash map of which a change copies only the shard that it touches; the others are shared with the map before.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::ops::Index;
use std::sync::Arc;

use crate::lookup::AddressHash;

/// Entries of a shard, when shards are made.
const FEW: usize = 64;
/// Entries of a shard, on average, above which there are made more.
const MANY: usize = 256;

type Shard<K, V> = HashMap<Hashed<K>, V, BuildHasherDefault<Known>>;

/// A key with its hash, which chooses the shard and the place in it, so that a look-up computes it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hashed<K> {
    hash: u64,
    key: K,
}

impl<K> Hash for Hashed<K> {
    #[inline]
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

/// Gives back the hash that it is given.
#[derive(Clone, Copy, Debug, Default)]
struct Known(u64);

impl Hasher for Known {
    #[inline]
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("a hashed key writes its hash alone");
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A map from addresses. A clone shares all shards; a change copies one.
#[derive(Clone, Debug)]
pub struct Sharded<K, V> {
    /// As many as a power of two, or none.
    shards: Vec<Arc<Shard<K, V>>>,
    length: usize,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Self { shards: Vec::new(), length: 0 }
    }
}

impl<K: Hash + Eq + Copy, V: Copy + PartialEq> Sharded<K, V> {
    /// The value of `key`.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let key = hashed(*key);
        self.shards.get(self.shard(&key))?.get(&key)
    }

    /// Whether `key` has a value.
    #[inline]
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// How many keys there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|(key, value)| (&key.key, value))
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Gives `key` a value. A shard in which nothing changes stays shared.
    pub fn insert(&mut self, key: K, value: V) {
        if self.length >= self.shards.len() * MANY {
            self.spread();
        }
        let key = hashed(key);
        let at = self.shard(&key);
        let shard = &mut self.shards[at];
        if shard.get(&key) != Some(&value) {
            self.length += usize::from(Arc::make_mut(shard).insert(key, value).is_none());
        }
    }

    /// Takes the value of `key` away.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let key = hashed(*key);
        let at = self.shard(&key);
        let shard = self.shards.get_mut(at).filter(|shard| shard.contains_key(&key))?;
        self.length -= 1;
        Arc::make_mut(shard).remove(&key)
    }

    /// What differs from an older map: key, value there, value here. Costs what the changed shards hold.
    pub fn differences<'m>(&'m self, older: &'m Self) -> impl Iterator<Item = (K, Option<V>, Option<V>)> + 'm {
        let alike = self.shards.len() == older.shards.len();
        let changed = move |at: &usize| !alike || !Arc::ptr_eq(&self.shards[*at], &older.shards[*at]);
        let gone = (0..older.shards.len()).filter(changed).flat_map(|at| older.shards[at].iter());
        let gone = gone.map(|(key, value)| (key.key, Some(*value), None));
        let gone = gone.filter(|(key, ..)| !self.contains_key(key));
        let here = (0..self.shards.len()).filter(changed).flat_map(|at| self.shards[at].iter());
        let here = here.map(|(key, value)| (key.key, older.get(&key.key).copied(), Some(*value)));
        gone.chain(here.filter(|(_, before, after)| before != after))
    }

    #[inline]
    fn shard(&self, key: &Hashed<K>) -> usize {
        // Within a shard the map uses the lowest and the highest bits.
        (key.hash >> 24) as usize & self.shards.len().wrapping_sub(1)
    }

    /// Makes as many shards as hold few entries each.
    #[cold]
    fn spread(&mut self) {
        let count = (self.length / FEW).max(1).next_power_of_two();
        let empty = Self { shards: vec![Arc::default(); count], length: self.length };
        let mut shards: Vec<Shard<K, V>> = vec![Shard::default(); count];
        for (key, value) in self.shards.iter().flat_map(|shard| shard.iter()) {
            shards[empty.shard(key)].insert(*key, *value);
        }
        self.shards = shards.into_iter().map(Arc::new).collect();
    }
}

#[inline]
fn hashed<K: Hash>(key: K) -> Hashed<K> {
    Hashed { hash: AddressHash::default().hash_one(&key), key }
}

impl<K: Hash + Eq + Copy, V: Copy + PartialEq> Index<&K> for Sharded<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key has a value")
    }
}

impl<K: Hash + Eq + Copy, V: Copy + PartialEq> FromIterator<(K, V)> for Sharded<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        entries.into_iter().for_each(|(key, value)| map.insert(key, value));
        map
    }
}

impl<K: Hash + Eq + Copy, V: Copy + PartialEq> PartialEq for Sharded<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn it_is_a_map_and_knows_what_differs_from_an_older_one(
            before in prop::collection::hash_map(0u32..2000, 0u8..4, 0..900),
            steps in prop::collection::vec((0u32..2000, prop::option::of(0u8..4)), 0..300),
        ) {
            let old: Sharded<u32, u8> = before.iter().map(|(key, value)| (*key, *value)).collect();
            let (mut map, mut model) = (old.clone(), before.clone());
            for (key, value) in steps {
                match value {
                    Some(value) => {
                        map.insert(key, value);
                        model.insert(key, value);
                    }
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
            }
            prop_assert_eq!(map.len(), model.len());
            for key in 0..2000 {
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(old.get(&key), before.get(&key));
            }
            let differences: HashMap<_, _> = map.differences(&old).map(|(key, was, is)| (key, (was, is))).collect();
            for key in 0..2000 {
                let (was, is) = (before.get(&key).copied(), model.get(&key).copied());
                prop_assert_eq!(differences.get(&key).copied(), (was != is).then_some((was, is)));
            }
        }
    }

    #[test]
    fn a_change_copies_one_shard() {
        let old: Sharded<u32, u32> = (0..10_000).map(|at| (at, at)).collect();
        let mut new = old.clone();
        new.insert(20_000, 1);
        let copied = old.shards.iter().zip(&new.shards).filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
        assert_eq!((copied, old.shards.len() > 32), (1, true));
    }
}

//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, §3.4).

/// A selection table: slot to backend position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaglevTable {
    slots: Box<[u16]>,
}

impl MaglevTable {
    /// The backend position for a hash.
    #[must_use]
    pub fn lookup(&self, hash: u64) -> usize {
        let at = (u128::from(hash) * self.slots.len() as u128) >> 64;
        usize::from(self.slots[at as usize])
    }
}

//! Which bytes of a datagram have come, and whether a new fragment agrees with those before it.

use postern_wire::Fragment;

/// Most fragments of one datagram: 65,535 bytes in fragments of 552, what fits an MTU of 576.
pub const MOST_FRAGMENTS: usize = 128;

/// What a fragment is beside those that came before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// New bytes.
    New,
    /// The same bytes of the datagram as one before: their content may differ, so only one of the two may go on.
    Duplicate,
    /// It overlaps another in part, or contradicts what is known of the datagram's end (RFC 1858 §4, RFC 3128, RFC 5722).
    Conflict,
    /// The datagram has more fragments than [`MOST_FRAGMENTS`].
    TooMany,
}

/// The fragments of one datagram so far, each with its exact place: a byte that comes twice is always noticed.
#[derive(Clone, Copy, Debug)]
pub struct Coverage {
    places: [(u16, u16); MOST_FRAGMENTS],
    count: u8,
    /// Bytes of all fragments together.
    covered: u16,
    /// Length of the datagram's payload; 0 until the last fragment has come.
    total: u16,
}

impl Default for Coverage {
    fn default() -> Self {
        Self::new()
    }
}

impl Coverage {
    /// Nothing has come.
    #[must_use]
    pub const fn new() -> Self {
        Self { places: [(0, 0); MOST_FRAGMENTS], count: 0, covered: 0, total: 0 }
    }

    /// Adds a fragment; only one that is [`Seen::New`] changes anything.
    pub fn add(&mut self, fragment: &Fragment) -> Seen {
        let (start, end) = (fragment.start, fragment.end);
        let places = &self.places[..usize::from(self.count)];
        let duplicate = places.contains(&(start, end));
        if duplicate && (self.total == end) != fragment.more {
            return Seen::Duplicate;
        }
        let contradicts_end = if self.total == 0 {
            !fragment.more && places.iter().any(|place| place.1 > end)
        } else {
            end > self.total || fragment.more == (end == self.total)
        };
        if contradicts_end || places.iter().any(|place| start < place.1 && place.0 < end) {
            return Seen::Conflict;
        }
        let Some(place) = self.places.get_mut(usize::from(self.count)) else { return Seen::TooMany };
        *place = (start, end);
        self.count += 1;
        self.covered += end - start;
        if !fragment.more {
            self.total = end;
        }
        Seen::New
    }

    /// Whether every byte has come.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.total != 0 && self.covered == self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn fragment(start: u16, end: u16, more: bool) -> Fragment {
        Fragment { identification: 7, start, end, more }
    }

    #[test]
    fn a_datagram_is_complete_when_its_last_byte_is_in_whatever_the_order() {
        let parts = [fragment(0, 24, true), fragment(24, 40, true), fragment(40, 43, false)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut coverage = Coverage::new();
            for (count, at) in order.into_iter().enumerate() {
                assert!(!coverage.is_complete());
                assert_eq!(coverage.add(&parts[at]), Seen::New);
                assert_eq!(coverage.add(&parts[at]), Seen::Duplicate, "after {count}");
            }
            assert!(coverage.is_complete());
        }
    }

    #[test]
    fn overlap_in_part_or_inside_and_a_second_end_are_conflicts() {
        for (first, second) in [
            (fragment(0, 24, true), fragment(16, 40, true)),
            (fragment(0, 48, true), fragment(24, 32, false)),
            (fragment(0, 48, true), fragment(24, 32, true)),
            (fragment(24, 32, true), fragment(0, 48, true)),
            (fragment(24, 32, false), fragment(24, 32, true)),
            (fragment(24, 32, true), fragment(24, 32, false)),
            (fragment(24, 32, false), fragment(32, 40, true)),
            (fragment(24, 32, true), fragment(0, 8, false)),
            (fragment(24, 32, false), fragment(0, 8, false)),
        ] {
            let mut coverage = Coverage::new();
            assert_eq!(coverage.add(&first), Seen::New);
            assert_eq!(coverage.add(&second), Seen::Conflict, "{first:?} {second:?}");
        }
    }

    #[test]
    fn there_are_no_more_fragments_than_there_is_room_for() {
        let mut coverage = Coverage::new();
        for at in 0..MOST_FRAGMENTS as u16 {
            assert_eq!(coverage.add(&fragment(at * 8, at * 8 + 8, true)), Seen::New);
        }
        assert_eq!(coverage.add(&fragment(8000, 8008, true)), Seen::TooMany);
    }

    proptest! {
        #[test]
        fn no_byte_is_ever_new_twice(parts in proptest::collection::vec((0u16..60, 1u16..60, any::<bool>()), 1..40)) {
            let mut coverage = Coverage::new();
            let (mut seen, mut total) = ([false; 1000], None);
            for (start, length, more) in parts {
                let (start, end) = (start * 8, start * 8 + if more { length * 8 } else { length });
                if coverage.add(&fragment(start, end, more)) == Seen::New {
                    for byte in &mut seen[usize::from(start)..usize::from(end)] {
                        prop_assert!(!*byte);
                        *byte = true;
                    }
                    if !more {
                        prop_assert_eq!(total.replace(end), None);
                    }
                }
                let whole = total.is_some_and(|total| seen[..usize::from(total)].iter().all(|byte| *byte));
                prop_assert_eq!(coverage.is_complete(), whole);
            }
        }
    }
}

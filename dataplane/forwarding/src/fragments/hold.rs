//! Fragments that wait for the first of their datagram: as they came, in chunks of a fixed amount of memory.

use postern_wire::{Frame, PortIndex};

use super::table::Datagrams;

/// Bytes of a chunk: a frame of the usual MTU.
const CHUNK: usize = 2048;
/// Chunks of a worker: 8 MB.
const CHUNKS: usize = 4096;
/// Chunks that the sources of one place hold at most: 512 kB.
const CHUNKS_OF_A_SET: u16 = 256;
const NONE: u16 = u16::MAX;

/// Held fragments of one datagram, as a list of their first chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct List {
    first: u16,
}

impl List {
    pub(crate) const EMPTY: Self = Self { first: NONE };

    pub(crate) const fn is_empty(self) -> bool {
        self.first == NONE
    }
}

/// What is known of a chunk; of a frame's first, also the frame.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// The next chunk of the frame.
    next: u16,
    /// The first chunk of the datagram's next frame.
    next_frame: u16,
    length: u32,
    ingress: PortIndex,
    vlan: u16,
}

/// Why a fragment cannot be held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoRoom {
    /// The sources of its place hold as much as they may.
    Share,
    /// All memory is in use.
    Memory,
    /// No frame is that large.
    Length,
}

/// A frame that was taken out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) length: usize,
    pub(crate) ingress: PortIndex,
    pub(crate) vlan: u16,
}

/// The memory for held fragments.
#[derive(Debug)]
pub(crate) struct HoldingRoom {
    memory: Vec<u8>,
    chunks: Vec<Chunk>,
    free: Vec<u16>,
    /// Chunks in use, by set of the sources.
    of_set: Vec<u16>,
}

impl HoldingRoom {
    pub(crate) fn new() -> Self {
        Self {
            memory: vec![0; CHUNK * CHUNKS],
            chunks: Vec::with_capacity(CHUNKS),
            free: Vec::with_capacity(CHUNKS),
            of_set: vec![0; Datagrams::SETS],
        }
    }

    /// The set that holds most.
    pub(crate) fn fullest(&self) -> usize {
        (0..self.of_set.len()).max_by_key(|set| self.of_set[*set]).unwrap_or(0)
    }

    /// Copies a frame to the front of a list.
    pub(crate) fn keep(&mut self, list: &mut List, set: usize, frame: &Frame<'_>) -> Result<(), NoRoom> {
        let bytes = frame.bytes();
        let needed = bytes.len().div_ceil(CHUNK);
        if needed == 0 || bytes.len() > crate::outbox::BUFFER {
            return Err(NoRoom::Length);
        }
        if usize::from(self.of_set[set]) + needed > usize::from(CHUNKS_OF_A_SET) {
            return Err(NoRoom::Share);
        }
        if self.free.len() + (CHUNKS - self.chunks.len()) < needed {
            return Err(NoRoom::Memory);
        }
        let mut next = NONE;
        // From the last to the first, which comes to the list.
        for part in (0..needed).rev() {
            let chunk = Chunk {
                next,
                next_frame: list.first,
                length: bytes.len() as u32,
                ingress: frame.ingress,
                vlan: frame.vlan,
            };
            let at = match self.free.pop() {
                Some(at) => {
                    self.chunks[usize::from(at)] = chunk;
                    at
                }
                None => {
                    self.chunks.push(chunk);
                    (self.chunks.len() - 1) as u16
                }
            };
            let part = &bytes[part * CHUNK..bytes.len().min((part + 1) * CHUNK)];
            self.memory[usize::from(at) * CHUNK..][..part.len()].copy_from_slice(part);
            next = at;
        }
        list.first = next;
        self.of_set[set] += needed as u16;
        Ok(())
    }

    /// Takes a frame out of a list, into `buffer`, which is as large as any frame.
    pub(crate) fn take(&mut self, list: &mut List, set: usize, buffer: &mut [u8]) -> Option<Taken> {
        let first = *self.chunks.get(usize::from(list.first))?;
        let length = first.length as usize;
        let mut at = list.first;
        for part in buffer.get_mut(..length)?.chunks_mut(CHUNK) {
            part.copy_from_slice(&self.memory[usize::from(at) * CHUNK..][..part.len()]);
            self.free.push(at);
            at = self.chunks[usize::from(at)].next;
        }
        self.of_set[set] -= length.div_ceil(CHUNK) as u16;
        list.first = first.next_frame;
        Some(Taken { length, ingress: first.ingress, vlan: first.vlan })
    }

    /// Gives up a list; returns how many frames it had.
    pub(crate) fn discard(&mut self, list: &mut List, set: usize) -> u64 {
        let mut frames = 0;
        while let Some(first) = self.chunks.get(usize::from(list.first)).copied() {
            let mut at = list.first;
            while at != NONE {
                self.free.push(at);
                self.of_set[set] -= 1;
                at = self.chunks[usize::from(at)].next;
            }
            list.first = first.next_frame;
            frames += 1;
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_out_as_it_went_in_and_no_memory_is_lost() {
        let mut room = HoldingRoom::new();
        for _ in 0..3 {
            let mut list = List::EMPTY;
            let lengths = [1, 60, 2047, 2048, 2049, 9014, 65_549];
            for length in lengths {
                let mut bytes = vec![0; length];
                bytes[length - 1] = length as u8;
                let mut frame = Frame::new(&mut bytes, 0, length).unwrap();
                (frame.ingress, frame.vlan) = (PortIndex(2), 7);
                room.keep(&mut list, 5, &frame).unwrap();
            }
            let mut buffer = vec![0; 70_000];
            for length in lengths.into_iter().rev().take(4) {
                let taken = room.take(&mut list, 5, &mut buffer).unwrap();
                assert_eq!((taken.length, taken.ingress, taken.vlan), (length, PortIndex(2), 7));
                assert_eq!(buffer[length - 1], length as u8);
            }
            assert_eq!(room.discard(&mut list, 5), 3);
            assert!(list.is_empty());
            assert!(room.take(&mut list, 5, &mut buffer).is_none());
            assert_eq!((room.free.len(), room.of_set[5]), (room.chunks.len(), 0));
        }
    }

    #[test]
    fn no_source_holds_more_than_its_share_and_all_together_no_more_than_there_is() {
        let mut room = HoldingRoom::new();
        let mut bytes = [0; 100];
        let frame = Frame::new(&mut bytes, 0, 100).unwrap();
        let mut held = 0;
        for set in 0..=CHUNKS / usize::from(CHUNKS_OF_A_SET) {
            let mut list = List::EMPTY;
            let refused = loop {
                match room.keep(&mut list, set, &frame) {
                    Ok(()) => held += 1,
                    Err(refused) => break refused,
                }
            };
            assert!(room.of_set[set] <= CHUNKS_OF_A_SET);
            assert_eq!(refused, if room.of_set[set] > 0 { NoRoom::Share } else { NoRoom::Memory }, "{set}: {held}");
        }
        assert_eq!(held, CHUNKS);
    }
}

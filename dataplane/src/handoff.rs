//! Bounded rings between workers: frames that belong to another worker, and messages about lent flows. One pair of
//! rings for each ordered pair of workers; buffers go around and are never allocated while frames flow.

use crossbeam_queue::ArrayQueue;
use postern_forwarding::{HandoffNote, PeerMessage};
use postern_wire::frame::HEADROOM;
use postern_wire::{Frame, Offload, PortIndex};

/// Bytes of a small buffer, headroom included: a frame of the usual MTU.
const SMALL: usize = 2048;
/// Bytes of a large buffer, headroom included: a super-frame.
const LARGE: usize = HEADROOM + 65_536 + 64;
/// Small buffers into one worker, over all the others.
const SMALL_BUFFERS: usize = 2048;
/// Large buffers into one worker, over all the others.
const LARGE_BUFFERS: usize = 64;
/// Messages that a ring holds.
const MESSAGES: usize = 4096;

/// A frame on its way to another worker.
#[derive(Debug)]
pub struct HandedFrame {
    buffer: Box<[u8]>,
    start: u32,
    length: u32,
    offload: Offload,
    ingress: PortIndex,
    vlan: u16,
    note: HandoffNote,
}

impl HandedFrame {
    /// The frame, and what its owner must know.
    #[must_use]
    pub fn frame(&mut self) -> Option<(Frame<'_>, HandoffNote)> {
        let mut frame = Frame::new(&mut self.buffer, self.start as usize, self.length as usize)?;
        frame.offload = self.offload;
        frame.ingress = self.ingress;
        frame.vlan = self.vlan;
        Some((frame, self.note))
    }
}

/// The way from one worker to another.
#[derive(Debug)]
pub struct HandoffRing {
    frames: ArrayQueue<HandedFrame>,
    small: ArrayQueue<Box<[u8]>>,
    large: ArrayQueue<Box<[u8]>>,
    messages: ArrayQueue<PeerMessage>,
}

impl HandoffRing {
    /// A ring for one of `workers` (at least 2) workers to another.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let others = workers.saturating_sub(1).max(1);
        Self::with_room((SMALL_BUFFERS / others).max(128), (LARGE_BUFFERS / others).max(8), MESSAGES)
    }

    /// A ring with so many small buffers (2 kB with headroom), large buffers (super-frames) and messages (at least 1).
    #[must_use]
    pub fn with_room(small: usize, large: usize, messages: usize) -> Self {
        let pool = |count: usize, size: usize| {
            let pool = ArrayQueue::new(count.max(1));
            for _ in 0..count {
                let pushed = pool.push(vec![0; size].into_boxed_slice());
                debug_assert!(pushed.is_ok());
            }
            pool
        };
        Self {
            frames: ArrayQueue::new(small + large),
            small: pool(small, SMALL),
            large: pool(large, LARGE),
            messages: ArrayQueue::new(messages),
        }
    }

    /// Copies a frame into the ring; false if there is no room.
    pub fn push(&self, frame: &Frame<'_>, note: HandoffNote) -> bool {
        let bytes = frame.bytes();
        let pool = if HEADROOM + bytes.len() <= SMALL { &self.small } else { &self.large };
        let Some(mut buffer) = pool.pop() else {
            return false;
        };
        let Some(place) = buffer.get_mut(HEADROOM..HEADROOM + bytes.len()) else {
            self.recycle(buffer);
            return false;
        };
        place.copy_from_slice(bytes);
        let handed = HandedFrame {
            buffer,
            start: HEADROOM as u32,
            length: bytes.len() as u32,
            offload: frame.offload,
            ingress: frame.ingress,
            vlan: frame.vlan,
            note,
        };
        match self.frames.push(handed) {
            Ok(()) => true,
            Err(handed) => {
                self.recycle(handed.buffer);
                false
            }
        }
    }

    /// Takes the oldest frame.
    #[must_use]
    pub fn pop(&self) -> Option<HandedFrame> {
        self.frames.pop()
    }

    /// Gives a taken frame's buffer back.
    pub fn done(&self, handed: HandedFrame) {
        self.recycle(handed.buffer);
    }

    /// Sends a message; gives it back if there is no room.
    ///
    /// # Errors
    /// The message.
    pub fn tell(&self, message: PeerMessage) -> Result<(), PeerMessage> {
        self.messages.push(message)
    }

    /// Takes the oldest message.
    #[must_use]
    pub fn hear(&self) -> Option<PeerMessage> {
        self.messages.pop()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.messages.is_empty()
    }

    fn recycle(&self, buffer: Box<[u8]>) {
        let pool = if buffer.len() == SMALL { &self.small } else { &self.large };
        let pushed = pool.push(buffer);
        debug_assert!(pushed.is_ok(), "a pool has room for every buffer that came from it");
    }
}

/// The rings between all workers.
#[derive(Debug)]
pub struct HandoffRings {
    workers: usize,
    /// By sender, then receiver; `None` from a worker to itself.
    rings: Vec<Option<HandoffRing>>,
}

impl HandoffRings {
    /// Rings between `workers` workers; one worker needs none.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let ring = |at: usize| (at / workers != at % workers).then(|| HandoffRing::new(workers));
        Self { workers, rings: (0..workers * workers).map(ring).collect() }
    }

    /// The ring from one worker to another; `None` if there is none.
    #[inline]
    #[must_use]
    pub fn ring(&self, from: usize, to: usize) -> Option<&HandoffRing> {
        if to >= self.workers {
            return None;
        }
        self.rings.get(from * self.workers + to)?.as_ref()
    }

    /// The rings that lead to a worker.
    pub fn into_worker(&self, to: usize) -> impl Iterator<Item = &HandoffRing> {
        (0..self.workers).filter_map(move |from| self.ring(from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_arrives_with_everything_that_travels_with_it_and_its_buffer_goes_around() {
        let rings = HandoffRings::new(2);
        let ring = rings.ring(0, 1).unwrap();
        for length in [60, 65_000] {
            for round in 0..10_000u32 {
                let mut buffer = vec![7; HEADROOM + length];
                buffer[HEADROOM..HEADROOM + 4].copy_from_slice(&round.to_ne_bytes());
                let mut frame = Frame::new(&mut buffer, HEADROOM, length).unwrap();
                frame.ingress = PortIndex(3);
                frame.vlan = 9;
                frame.offload.segment_size = 1448;
                assert!(ring.push(&frame, HandoffNote::Owned));
                let mut handed = ring.pop().unwrap();
                let (got, note) = handed.frame().unwrap();
                assert_eq!(
                    (got.bytes(), got.ingress, got.vlan, got.offload),
                    (frame.bytes(), PortIndex(3), 9, frame.offload)
                );
                assert_eq!((note, got.headroom()), (HandoffNote::Owned, HEADROOM));
                ring.done(handed);
                if length > SMALL && round > 200 {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_full_ring_refuses_and_no_ring_leads_to_oneself() {
        let rings = HandoffRings::new(3);
        let ring = rings.ring(2, 0).unwrap();
        let mut buffer = [0; HEADROOM + 60];
        let frame = Frame::new(&mut buffer, HEADROOM, 60).unwrap();
        let accepted = (0..10_000).filter(|_| ring.push(&frame, HandoffNote::Owned)).count();
        assert_eq!(accepted, SMALL_BUFFERS / 2);
        assert!(rings.ring(1, 1).is_none());
        assert_eq!(rings.into_worker(0).count(), 2);
        assert!(HandoffRings::new(1).ring(0, 0).is_none());
    }
}

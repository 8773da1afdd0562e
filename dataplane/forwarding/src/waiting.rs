//! Frames that wait for a neighbour: translated already, copied into buffers of their own, bounded in number and time.

use postern_measurement::Now;
use postern_wire::Offload;

use crate::next_hops::NextHop;
use crate::outbox::{Origin, Outbox};

/// Frames that one worker holds at most.
const FRAMES: usize = 64;
/// Frames that wait for one hop at most.
const FRAMES_PER_HOP: usize = 16;
/// Largest IP packet.
const PACKET: usize = 65_536;
/// After so many milliseconds a frame is given up, whatever the neighbours' owner says.
const PATIENCE: u64 = 5_000;

#[derive(Debug)]
struct Waiting {
    hop: u32,
    since: Now,
    length: usize,
    offload: Offload,
    endpoint: u32,
    origin: Origin,
    buffer: usize,
}

/// The held frames of one worker.
#[derive(Debug)]
pub(crate) struct WaitingRoom {
    waiting: Vec<Waiting>,
    buffers: Vec<Box<[u8]>>,
    free: Vec<usize>,
}

impl WaitingRoom {
    pub(crate) fn new() -> Self {
        Self {
            waiting: Vec::with_capacity(FRAMES),
            buffers: (0..FRAMES).map(|_| vec![0; PACKET].into_boxed_slice()).collect(),
            free: (0..FRAMES).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many more packets may wait for a hop.
    pub(crate) fn room(&self, hop: u32) -> usize {
        let of_hop = self.waiting.iter().filter(|waiting| waiting.hop == hop).count();
        FRAMES_PER_HOP.saturating_sub(of_hop).min(self.free.len())
    }

    /// Keeps a translated IP packet, whose offload offsets count from its first byte; false if there is no room.
    pub(crate) fn keep(&mut self, hop: u32, endpoint: u32, packet: &[u8], offload: Offload, now: Now) -> bool {
        packet.len() <= PACKET
            && self.keep_with(hop, endpoint, Origin::Held, offload, now, |room| {
                room[..packet.len()].copy_from_slice(packet);
                packet.len()
            })
    }

    /// The same for a packet that `write` puts into the room and whose length it returns. One of several that a received
    /// frame has become is [`Origin::Held`] and counts as that frame.
    pub(crate) fn keep_with(
        &mut self,
        hop: u32,
        endpoint: u32,
        origin: Origin,
        offload: Offload,
        now: Now,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        if self.room(hop) == 0 {
            return false;
        }
        let Some(buffer) = self.free.pop() else { return false };
        let length = write(&mut self.buffers[buffer]);
        self.waiting.push(Waiting { hop, since: now, length, offload, endpoint, origin, buffer });
        true
    }

    /// Sends what waited for a hop that is resolved now; returns how many received frames found room in the outbox. The rest
    /// stays.
    pub(crate) fn send(&mut self, index: u32, hop: &NextHop, outbox: &mut Outbox) -> u64 {
        let mut sent = 0;
        let (buffers, free) = (&self.buffers, &mut self.free);
        self.waiting.retain(|waiting| {
            if waiting.hop != index {
                return true;
            }
            let packet = &buffers[waiting.buffer][..waiting.length];
            let header = hop.header();
            let mut offload = waiting.offload;
            offload.shift(header.len() as isize);
            let pushed = outbox.push(hop.port, waiting.origin, offload, header.len() + packet.len(), |room| {
                room[..header.len()].copy_from_slice(header);
                room[header.len()..].copy_from_slice(packet);
                room.len()
            });
            if pushed {
                free.push(waiting.buffer);
                sent += u64::from(waiting.origin == Origin::Held);
            }
            !pushed
        });
        sent
    }

    /// Gives up the frames of a hop that does not answer; tells the endpoint of each.
    pub(crate) fn give_up(&mut self, index: u32, mut dropped: impl FnMut(u32)) {
        self.discard(|waiting| waiting.hop == index, &mut dropped);
    }

    /// Gives up the frames that have waited for too long.
    pub(crate) fn expire(&mut self, now: Now, mut dropped: impl FnMut(u32)) {
        self.discard(|waiting| now.milliseconds() > waiting.since.milliseconds() + PATIENCE, &mut dropped);
    }

    /// Hops that frames wait for.
    pub(crate) fn hops(&self) -> impl Iterator<Item = u32> + '_ {
        self.waiting.iter().map(|waiting| waiting.hop)
    }

    fn discard(&mut self, which: impl Fn(&Waiting) -> bool, dropped: &mut impl FnMut(u32)) {
        let free = &mut self.free;
        self.waiting.retain(|waiting| {
            let gone = which(waiting);
            if gone {
                free.push(waiting.buffer);
                if waiting.origin == Origin::Held {
                    dropped(waiting.endpoint);
                }
            }
            !gone
        });
    }
}

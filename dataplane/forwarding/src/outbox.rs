//! Frames of the forwarder's own making, and frames that had waited: preallocated buffers that the worker sends or hands over.

use postern_wire::frame::HEADROOM;
use postern_wire::ipv6::AddressPair;
use postern_wire::{AttachmentIndex, Frame, Offload, PortIndex};
use std::net::IpAddr;

use crate::verdict::{HandoffNote, WorkerIndex};

/// What a frame in the outbox is, for the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A received frame that had been held; counts as forwarded once the kernel accepts it, else as refused.
    Held,
    /// Made by the forwarder.
    Made,
}

#[derive(Debug)]
struct Entry {
    way: Way,
    length: usize,
    offload: Offload,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Out(PortIndex, Origin),
    /// To another worker, as it came: with the port and the tag beside it.
    Over(WorkerIndex, HandoffNote, PortIndex, u16),
}

/// A request to the one owner of the neighbour tables: find the MAC address of a next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct NeighbourRequest {
    /// Where to ask.
    pub attachment: AttachmentIndex,
    /// Whom.
    pub address: IpAddr,
}

/// From one worker to another, beside handed frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerMessage {
    /// The flow of this consumer-side key lives at the sender, with one of its ports.
    Lent {
        /// The forward key. Address words in it are the sender's and mean nothing to others.
        key: postern_wire::FlowKey,
        /// The addresses, if they are of IPv6.
        addresses: Option<AddressPair>,
        /// Where the flow lives.
        holder: WorkerIndex,
    },
    /// That flow has ended.
    Returned {
        /// The forward key, as in [`PeerMessage::Lent`].
        key: postern_wire::FlowKey,
        /// The addresses, if they are of IPv6.
        addresses: Option<AddressPair>,
        /// Where the flow lived.
        holder: WorkerIndex,
    },
}

/// Bounded room for frames to send, neighbour requests and messages to other workers. The worker empties it after each call.
#[derive(Debug)]
pub struct Outbox {
    buffers: Vec<Box<[u8]>>,
    entries: Vec<Entry>,
    requests: Vec<NeighbourRequest>,
    messages: Vec<(WorkerIndex, PeerMessage)>,
}

/// Size of an outbox buffer behind its headroom, in bytes: a super-frame with its Ethernet header.
pub const BUFFER: usize = 65_536 + 64;

impl Outbox {
    /// Room for `frames` frames, and as many requests and messages.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        Self {
            buffers: (0..frames).map(|_| vec![0; HEADROOM + BUFFER].into_boxed_slice()).collect(),
            entries: Vec::with_capacity(frames),
            requests: Vec::with_capacity(frames),
            messages: Vec::with_capacity(frames),
        }
    }

    /// Adds a frame of at most `length` bytes that `write` fills in and whose length it returns; false if there is no room.
    pub fn push(
        &mut self,
        egress: PortIndex,
        origin: Origin,
        offload: Offload,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        let at = self.entries.len();
        let Some(buffer) = self.buffers.get_mut(at).filter(|_| length <= BUFFER) else {
            return false;
        };
        let written = write(&mut buffer[HEADROOM..HEADROOM + length]).min(length);
        self.entries.push(Entry { way: Way::Out(egress, origin), length: written, offload });
        true
    }

    /// Adds a received frame that had been held, to be handed to another worker as it came. There must be room.
    pub fn hand_over(&mut self, to: WorkerIndex, note: HandoffNote, frame: &Frame<'_>) {
        let bytes = frame.bytes();
        let room = self.buffers.get_mut(self.entries.len());
        debug_assert!(room.is_some(), "the caller has looked whether there is room");
        if let Some(room) = room.and_then(|buffer| buffer.get_mut(HEADROOM..HEADROOM + bytes.len())) {
            room.copy_from_slice(bytes);
            let way = Way::Over(to, note, frame.ingress, frame.vlan);
            self.entries.push(Entry { way, length: bytes.len(), offload: frame.offload });
        }
    }

    /// How many more frames fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.buffers.len() - self.entries.len()
    }

    /// Asks for a neighbour; a request that does not fit is lost (the frame that needs it will ask again).
    pub fn request(&mut self, request: NeighbourRequest) {
        if self.requests.len() < self.requests.capacity() && !self.requests.contains(&request) {
            self.requests.push(request);
        }
    }

    /// Adds a message to another worker; false if there is no room.
    pub fn message(&mut self, to: WorkerIndex, message: PeerMessage) -> bool {
        let fits = self.messages.len() < self.messages.capacity();
        if fits {
            self.messages.push((to, message));
        }
        fits
    }

    /// The frames to send: egress port, what it is, frame.
    pub fn frames(&mut self) -> impl Iterator<Item = (PortIndex, Origin, Frame<'_>)> {
        self.buffers.iter_mut().zip(&self.entries).filter_map(|(buffer, entry)| {
            let Way::Out(egress, origin) = entry.way else { return None };
            let mut frame = Frame::new(buffer, HEADROOM, entry.length)?;
            frame.offload = entry.offload;
            Some((egress, origin, frame))
        })
    }

    /// The frames for other workers, which come behind those whose verdict says the same.
    pub fn handed(&mut self) -> impl Iterator<Item = (WorkerIndex, HandoffNote, Frame<'_>)> {
        self.buffers.iter_mut().zip(&self.entries).filter_map(|(buffer, entry)| {
            let Way::Over(to, note, ingress, vlan) = entry.way else { return None };
            let mut frame = Frame::new(buffer, HEADROOM, entry.length)?;
            (frame.offload, frame.ingress, frame.vlan) = (entry.offload, ingress, vlan);
            Some((to, note, frame))
        })
    }

    /// Neighbour requests.
    #[must_use]
    pub fn requests(&self) -> &[NeighbourRequest] {
        &self.requests
    }

    /// Messages to other workers.
    #[must_use]
    pub fn messages(&self) -> &[(WorkerIndex, PeerMessage)] {
        &self.messages
    }

    /// Takes the messages out; frames and requests stay.
    pub fn take_messages(&mut self) -> impl Iterator<Item = (WorkerIndex, PeerMessage)> + '_ {
        self.messages.drain(..)
    }

    /// Whether there is nothing to do.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.requests.is_empty() && self.messages.is_empty()
    }

    /// Empties it; buffers stay.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.requests.clear();
        self.messages.clear();
    }
}

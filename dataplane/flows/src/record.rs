//! One connection in 128 bytes: two cache lines, the first with all that rewriting needs, the second with counts and links.

use std::hint::select_unpredictable;

use postern_wire::{Direction, FlowKey};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// No record: the end of a list.
pub const NONE: u32 = u32::MAX;

/// A connection. Layout in bytes: see the fields, in order, without gaps; little-endian machines and big-endian ones
/// each write their own order, so a region moves between processes of one machine only.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
pub struct FlowRecord {
    /// Consumer → endpoint. (0…15)
    pub forward: FlowKey,
    /// Target → SNAT address. (16…31) The packets of one direction become the reverse of the other direction's key.
    pub reverse: FlowKey,
    /// Change of the address sum from consumer's to provider's side; the other direction negates it. (32…33)
    pub address_delta: u16,
    /// Change of the sum over addresses and ports. (34…35)
    pub full_delta: u16,
    /// Next hop toward the target. (36…39)
    pub forward_hop: u32,
    /// Next hop toward the consumer. (40…43)
    pub reverse_hop: u32,
    /// Low 32 bits of the time of the last packet, in milliseconds. (44…47)
    pub last_seen: u32,
    /// [`crate::tcp::State`] as a byte, and [`FlowRecord::LONG_WAY`]. (48)
    pub state: u8,
    /// See the `FLAG_` constants. (49)
    pub flags: u8,
    /// Seconds without a packet after which the flow ends in its present state. (50…51)
    pub idle_seconds: u16,
    /// Endpoint index. (52…55)
    pub endpoint: u32,
    /// The endpoint's policy epoch under which this flow was last judged. (56…59)
    pub policy_epoch: u32,
    /// Target index. (60…63)
    pub target: u32,
    /// IP datagrams from the consumer. (64…71)
    pub forward_packets: u64,
    /// IP datagrams to the consumer. (72…79)
    pub reverse_packets: u64,
    /// Bytes from the consumer. (80…87)
    pub forward_bytes: u64,
    /// Bytes to the consumer. (88…95)
    pub reverse_bytes: u64,
    /// Next record in the wheel slot, or in the free list. (96…99)
    pub timer_next: u32,
    /// Previous record in the wheel slot, or the slot itself. (100…103)
    pub timer_previous: u32,
    /// Next half-open flow of the same lane. (104…107)
    pub half_open_next: u32,
    /// Previous half-open flow of the same lane. (108…111)
    pub half_open_previous: u32,
    /// Lane of the SNAT port, for its release. (112…115)
    pub lane: u32,
    /// The target's incarnation. (116…119)
    pub target_incarnation: u32,
    /// Low 32 bits of the time of the first packet, in milliseconds. (120…123)
    pub started: u32,
    /// The listener's idle time, in seconds: what `idle_seconds` becomes when established. (124…125)
    pub listener_idle_seconds: u16,
    /// Rest of the SNAT port after the flow's end, in seconds. (126)
    pub rest_seconds: u8,
    /// The worker whose bucket the flow hashes to, where [`FlowRecord::FLAG_LENT`] is set. (127)
    pub bucket_owner: u8,
}

const _: () = assert!(size_of::<FlowRecord>() == 128);

impl FlowRecord {
    /// The record is live.
    pub const FLAG_LIVE: u8 = 1;
    /// The flow is in its lane's half-open list.
    pub const FLAG_HALF_OPEN: u8 = 2;
    /// The flow's bucket belongs to worker `bucket_owner`, which must be told of its end.
    pub const FLAG_LENT: u8 = 4;
    /// Not a flow of this worker: only a note that the flow lives at worker `target`.
    pub const FLAG_AWAY: u8 = 8;
    /// Both ends are to be told of the flow's end where it was idle for too long.
    pub const FLAG_TELL_ENDS: u8 = 16;
    /// In `state`: the flow's packets need more than the plan. The steady way compares the whole byte, so that such a flow
    /// falls out of it at no cost to others.
    pub const LONG_WAY: u8 = 0x80;

    /// Whether the record is in use.
    #[inline]
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.flags & Self::FLAG_LIVE != 0
    }

    /// Whether the flow's packets need more than the plan.
    #[inline]
    #[must_use]
    pub const fn goes_long_way(&self) -> bool {
        self.state & Self::LONG_WAY != 0
    }

    /// The key by which packets of a direction are found.
    #[inline]
    #[must_use]
    pub const fn key(&self, direction: Direction) -> FlowKey {
        match direction {
            Direction::Forward => self.forward,
            Direction::Reverse => self.reverse,
        }
    }

    /// Counts packets of one direction.
    #[inline(always)]
    pub fn count(&mut self, reverse: bool, packets: u64, bytes: u64) {
        *select_unpredictable(reverse, &mut self.reverse_packets, &mut self.forward_packets) += packets;
        *select_unpredictable(reverse, &mut self.reverse_bytes, &mut self.forward_bytes) += bytes;
    }

    /// Whether the flow has been idle for longer than it may.
    #[inline]
    #[must_use]
    pub const fn is_expired(&self, tick: u32) -> bool {
        tick.wrapping_sub(self.last_seen) > self.idle_seconds as u32 * 1000
    }
}

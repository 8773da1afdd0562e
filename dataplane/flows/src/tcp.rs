//! The TCP tracker: states, and one table of what each segment does to them. No window is tracked (behaviour: "closing
//! flows linger in a short transitory state; a RST starts the short RST state, data from either side restores the flow").

use postern_wire::Direction;
use postern_wire::tcp::{ACK, FIN, RST, SYN};

/// State of a flow, as it is stored in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum State {
    /// A UDP flow.
    Udp = 0,
    /// The client's SYN was forwarded.
    SynSent = 1,
    /// The target's SYN-ACK was forwarded.
    SynReceived = 2,
    /// The handshake is complete.
    Established = 3,
    /// The client has closed its half.
    ClientClosed = 4,
    /// The target has closed its half.
    TargetClosed = 5,
    /// Both halves are closed: retransmissions pass for a short time.
    Closing = 6,
    /// A RST was forwarded; data from either side restores the flow.
    Reset = 7,
}

/// Seconds that a target has to answer a SYN, and the client to complete the handshake.
pub const HANDSHAKE_SECONDS: u16 = 30;
/// Seconds that a flow lingers after both sides have closed.
pub const CLOSING_SECONDS: u16 = 4;
/// Seconds that a flow lingers after a RST.
pub const RESET_SECONDS: u16 = 2;

/// What a segment is to the tracker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// SYN without ACK.
    Syn = 0,
    /// SYN and ACK.
    SynAck = 1,
    /// FIN, with or without data.
    Fin = 2,
    /// RST.
    Rst = 3,
    /// Anything else: acknowledgements and data.
    Data = 4,
}

impl Segment {
    /// The kind of a segment with these flags: RST before SYN before FIN.
    #[must_use]
    pub const fn of(flags: u8) -> Self {
        if flags & RST != 0 {
            Self::Rst
        } else if flags & SYN != 0 {
            if flags & ACK != 0 { Self::SynAck } else { Self::Syn }
        } else if flags & FIN != 0 {
            Self::Fin
        } else {
            Self::Data
        }
    }
}

impl State {
    /// Reads the byte of a record; an unknown byte is [`State::Reset`], the shortest-lived.
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Udp,
            1 => Self::SynSent,
            2 => Self::SynReceived,
            3 => Self::Established,
            4 => Self::ClientClosed,
            5 => Self::TargetClosed,
            6 => Self::Closing,
            _ => Self::Reset,
        }
    }

    /// The name in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::SynSent => "syn_sent",
            Self::SynReceived => "syn_received",
            Self::Established => "established",
            Self::ClientClosed => "client_closed",
            Self::TargetClosed => "target_closed",
            Self::Closing => "closing",
            Self::Reset => "reset",
        }
    }

    /// Whether the handshake is not complete.
    #[inline]
    #[must_use]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived)
    }

    /// Whether a SYN from the client begins a new connection with this tuple.
    #[must_use]
    pub const fn may_reopen(self) -> bool {
        matches!(self, Self::Closing | Self::Reset)
    }

    /// The seconds without a packet after which a flow in this state ends, where the listener's idle time is `idle`.
    #[must_use]
    pub const fn idle_seconds(self, idle: u16) -> u16 {
        match self {
            Self::SynSent | Self::SynReceived => HANDSHAKE_SECONDS,
            Self::Closing => CLOSING_SECONDS,
            Self::Reset => RESET_SECONDS,
            Self::Udp | Self::Established | Self::ClientClosed | Self::TargetClosed => idle,
        }
    }

    /// The state after a segment from `direction`. Every segment of a known flow is forwarded; states only decide how
    /// long the flow lives.
    ///
    /// A client's SYN in a state that [may reopen](Self::may_reopen) is not asked here: it makes a new flow.
    #[must_use]
    pub const fn after(self, direction: Direction, segment: Segment) -> Self {
        use Direction::{Forward, Reverse};
        match (self, segment, direction) {
            (Self::Udp, _, _) => Self::Udp,
            // A client that has only sent a SYN resets what it did not mean: the answer of a connection that its target
            // remembers under this port (RFC 9293 §3.10.7.3). The target forgets it, and the client sends its SYN again.
            (Self::SynSent, Segment::Rst, Forward) => Self::SynSent,
            (_, Segment::Rst, _) => Self::Reset,
            (Self::SynSent, Segment::SynAck, Reverse) => Self::SynReceived,
            (Self::SynReceived, Segment::Data, Forward) => Self::Established,
            (Self::SynReceived | Self::Established, Segment::Fin, Forward) => Self::ClientClosed,
            (Self::SynReceived | Self::Established, Segment::Fin, Reverse) => Self::TargetClosed,
            (Self::ClientClosed, Segment::Fin, Reverse) | (Self::TargetClosed, Segment::Fin, Forward) => Self::Closing,
            (Self::Reset, Segment::Data | Segment::Fin, _) => Self::Established,
            (state, _, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Forward, Reverse};
    use State::*;

    /// The whole table: state, then the outcome of Syn, SynAck, Fin, Rst, Data from the client, then from the target.
    const GOLDEN: [(State, [State; 5], [State; 5]); 8] = [
        (Udp, [Udp; 5], [Udp; 5]),
        (SynSent, [SynSent, SynSent, SynSent, SynSent, SynSent], [SynSent, SynReceived, SynSent, Reset, SynSent]),
        (
            SynReceived,
            [SynReceived, SynReceived, ClientClosed, Reset, Established],
            [SynReceived, SynReceived, TargetClosed, Reset, SynReceived],
        ),
        (
            Established,
            [Established, Established, ClientClosed, Reset, Established],
            [Established, Established, TargetClosed, Reset, Established],
        ),
        (
            ClientClosed,
            [ClientClosed, ClientClosed, ClientClosed, Reset, ClientClosed],
            [ClientClosed, ClientClosed, Closing, Reset, ClientClosed],
        ),
        (
            TargetClosed,
            [TargetClosed, TargetClosed, Closing, Reset, TargetClosed],
            [TargetClosed, TargetClosed, TargetClosed, Reset, TargetClosed],
        ),
        (Closing, [Closing, Closing, Closing, Reset, Closing], [Closing, Closing, Closing, Reset, Closing]),
        (Reset, [Reset, Reset, Established, Reset, Established], [Reset, Reset, Established, Reset, Established]),
    ];

    #[test]
    fn every_state_segment_and_direction_has_the_outcome_of_the_table() {
        let segments = [Segment::Syn, Segment::SynAck, Segment::Fin, Segment::Rst, Segment::Data];
        for (state, from_client, from_target) in GOLDEN {
            for (at, segment) in segments.into_iter().enumerate() {
                assert_eq!(state.after(Forward, segment), from_client[at], "{state:?} {segment:?} from the client");
                assert_eq!(state.after(Reverse, segment), from_target[at], "{state:?} {segment:?} from the target");
            }
        }
    }

    #[test]
    fn a_reset_counts_before_any_other_flag() {
        assert_eq!(Segment::of(RST | SYN | FIN | ACK), Segment::Rst);
        assert_eq!(Segment::of(SYN | FIN), Segment::Syn);
        assert_eq!(Segment::of(FIN | ACK), Segment::Fin);
        assert_eq!(Segment::of(ACK), Segment::Data);
    }

    #[test]
    fn bytes_of_records_come_back_as_states() {
        for (state, _, _) in GOLDEN {
            assert_eq!(State::from_byte(state as u8), state);
        }
        assert_eq!(State::from_byte(200), Reset);
    }
}

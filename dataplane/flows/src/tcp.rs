//! The TCP tracker: states, and one table of what each segment does to them. No window is tracked (behaviour: "closing
//! flows linger in a short transitory state; a RST starts the short RST state, data from either side restores the flow").

use postern_wire::Direction;
use postern_wire::tcp::{ACK, FIN, RST, SYN};

use crate::record::FlowRecord;

/// State of a flow, as it is stored in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum State {
    /// A UDP flow.
    Udp = 0,
    /// The client's SYN was forwarded.
    SynSent = 1,
    /// The target's SYN was forwarded, most often with its acknowledgement.
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
/// Seconds without a packet that a flow lingers after both sides have closed.
pub const CLOSING_SECONDS: u16 = 4;
/// Seconds that a flow lingers after a RST.
pub const RESET_SECONDS: u16 = 2;

/// What a segment is to the tracker: all that its flags say. PSH, URG and the flags of ECN (RFC 3168 §6.1) say nothing
/// about the connection's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// SYN alone.
    Syn = 0,
    /// SYN and ACK.
    SynAck = 1,
    /// ACK alone: an acknowledgement, data, or both.
    Ack = 2,
    /// FIN and ACK.
    Fin = 3,
    /// RST alone.
    Rst = 4,
    /// RST and ACK.
    RstAck = 5,
    /// Neither SYN nor ACK, FIN or RST: the "null" segment.
    Null = 6,
    /// What no TCP sends: FIN without ACK (with PSH and URG, the "Christmas tree"), and more than one of SYN, FIN and RST.
    Nonsense = 7,
}

impl Segment {
    /// The kind of a segment with these flags.
    #[must_use]
    pub const fn of(flags: u8) -> Self {
        const SYN_ACK: u8 = SYN | ACK;
        const FIN_ACK: u8 = FIN | ACK;
        const RST_ACK: u8 = RST | ACK;
        match flags & (SYN | ACK | FIN | RST) {
            SYN => Self::Syn,
            SYN_ACK => Self::SynAck,
            ACK => Self::Ack,
            FIN_ACK => Self::Fin,
            RST => Self::Rst,
            RST_ACK => Self::RstAck,
            0 => Self::Null,
            _ => Self::Nonsense,
        }
    }
}

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It goes on to the other side.
    Forward,
    /// It is dropped.
    Drop,
    /// It is dropped, and its sender told by a RST that there is no such connection.
    Refuse,
    /// It begins a new connection with the tuple of one that has ended: the flow ends, and the segment is a first packet.
    Reopen,
}

/// What a segment does to its flow, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The state after it.
    pub next: State,
    /// What becomes of it.
    pub action: Action,
    /// Whether the flow's time without a packet begins anew. A change of state begins it anyway.
    pub refreshes: bool,
}

/// Forwarded; the flow's time runs on, so that retransmissions do not keep it in a state that it should leave.
const fn pass(next: State) -> Outcome {
    Outcome { next, action: Action::Forward, refreshes: false }
}

/// Forwarded; a sign of life.
const fn live(next: State) -> Outcome {
    Outcome { next, action: Action::Forward, refreshes: true }
}

const fn drop(next: State) -> Outcome {
    Outcome { next, action: Action::Drop, refreshes: false }
}

const fn refuse(next: State) -> Outcome {
    Outcome { next, action: Action::Refuse, refreshes: false }
}

const fn reopen(next: State) -> Outcome {
    Outcome { next, action: Action::Reopen, refreshes: false }
}

/// The table: by state, by direction (from the client, from the target), by [`Segment`] in its order.
///
/// - **SYN sent.** The target may answer with the SYN of a simultaneous open (RFC 9293 §3.5). A target that remembers an
///   older connection under this port answers with an ACK or FIN of that; the client resets what it did not mean
///   (RFC 9293 §3.10.7.3), the target forgets it, and the client sends its SYN again: all of which must pass and change
///   nothing. A RST without ACK means nothing to a client that has only sent a SYN (RFC 9293 §3.10.7.3). A client
///   that sends ACK or FIN has a connection that is gone.
/// - **SYN received.** Any ACK of the client completes the handshake: its last segment may have been lost on the way here,
///   and data followed. Of a simultaneous open, the client's SYN-ACK does.
/// - **Established, half closed.** A SYN of the client (it has crashed, or reuses its port) goes to the target, which answers
///   with a challenge (RFC 5961 §4), which the client resets; then its next SYN opens anew. A target can never open.
/// - **Closing, reset.** The client's SYN opens a new connection at once. An old duplicate of one does no harm, because
///   the new connection has another SNAT port toward the target, where nothing of the old one is remembered; where only the old
///   port is free, the target judges the sequence number itself (RFC 9293 §3.6.1, RFC 6191). The target's SYN must not
///   become a way to the client.
/// - **Reset.** Whoever goes on sending has not taken the RST (RFC 5961 §3): the flow is what it was.
///
/// `Null` and `Nonsense` go nowhere; but in the established state a `Null` segment goes the way of data, which looks for
/// SYN, FIN and RST only, and its receiver drops it.
#[rustfmt::skip]
const TABLE: [[[Outcome; 8]; 2]; 8] = {
    use State::{Udp as U, SynSent as S, SynReceived as R, Established as E, ClientClosed as C, TargetClosed as T,
        Closing as L, Reset as X};
    [
        // State, from      SYN        SYN-ACK    ACK        FIN        RST      RST-ACK  null     nonsense
        [/* udp, client */ [live(U),   live(U),   live(U),   live(U),   live(U), live(U), live(U), live(U)],
         /*      target */ [live(U),   live(U),   live(U),   live(U),   live(U), live(U), live(U), live(U)]],
        [/* syn sent    */ [pass(S),   drop(S),   refuse(S), refuse(S), pass(S), pass(S), drop(S), drop(S)],
         /*             */ [live(R),   live(R),   pass(S),   pass(S),   pass(S), live(X), drop(S), drop(S)]],
        [/* syn received*/ [pass(R),   live(E),   live(E),   live(C),   live(X), live(X), drop(R), drop(R)],
         /*             */ [pass(R),   pass(R),   pass(R),   live(T),   live(X), live(X), drop(R), drop(R)]],
        [/* established */ [pass(E),   pass(E),   live(E),   live(C),   live(X), live(X), live(E), drop(E)],
         /*             */ [drop(E),   pass(E),   live(E),   live(T),   live(X), live(X), live(E), drop(E)]],
        [/* client      */ [pass(C),   pass(C),   live(C),   live(C),   live(X), live(X), drop(C), drop(C)],
         /*    closed   */ [drop(C),   pass(C),   live(C),   live(L),   live(X), live(X), drop(C), drop(C)]],
        [/* target      */ [pass(T),   pass(T),   live(T),   live(L),   live(X), live(X), drop(T), drop(T)],
         /*    closed   */ [drop(T),   pass(T),   live(T),   live(T),   live(X), live(X), drop(T), drop(T)]],
        [/* closing     */ [reopen(L), drop(L),   live(L),   live(L),   live(X), live(X), drop(L), drop(L)],
         /*             */ [drop(L),   pass(L),   live(L),   live(L),   live(X), live(X), drop(L), drop(L)]],
        [/* reset       */ [reopen(X), drop(X),   live(E),   live(C),   pass(X), pass(X), drop(X), drop(X)],
         /*             */ [drop(X),   pass(X),   live(E),   live(T),   pass(X), pass(X), drop(X), drop(X)]],
    ]
};

impl State {
    /// Reads the byte of a record; [`FlowRecord::LONG_WAY`] is no part of the state. An unknown byte is [`State::Reset`], the
    /// shortest-lived.
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte & !FlowRecord::LONG_WAY {
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

    /// The state of a record.
    #[inline]
    #[must_use]
    pub const fn of(record: &FlowRecord) -> Self {
        Self::from_byte(record.state)
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

    /// What a segment from `direction` does in this state.
    #[must_use]
    pub const fn outcome(self, direction: Direction, segment: Segment) -> Outcome {
        TABLE[self as usize][direction as usize][segment as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::tcp::{CWR, ECE, PSH, URG};

    const STATES: [State; 8] = [
        State::Udp,
        State::SynSent,
        State::SynReceived,
        State::Established,
        State::ClientClosed,
        State::TargetClosed,
        State::Closing,
        State::Reset,
    ];

    /// Every outcome in words: state, side, then for each set of SYN, FIN, RST and ACK what happens; `+` where the
    /// flow's time begins anew.
    fn outcomes() -> String {
        let mut text = String::new();
        for state in STATES {
            for (side, direction) in [("client", Direction::Forward), ("target", Direction::Reverse)] {
                text += &format!("{} {side}\n", state.name());
                for flags in 0..16u8 {
                    let names = [(1, "SYN", SYN), (2, "FIN", FIN), (4, "RST", RST), (8, "ACK", ACK)];
                    let set: Vec<_> = names.iter().filter(|(bit, _, _)| flags & bit != 0).collect();
                    let bits = set.iter().fold(0, |bits, (_, _, bit)| bits | bit);
                    let name: Vec<_> = set.iter().map(|(_, name, _)| *name).collect();
                    let Outcome { next, action, refreshes } = state.outcome(direction, Segment::of(bits));
                    let action = format!("{action:?}").to_lowercase();
                    let mark = if refreshes { " +" } else { "" };
                    let name = if name.is_empty() { "none".to_owned() } else { name.join(" ") };
                    text += &format!("  {name}: {action}, {}{mark}\n", next.name());
                    // The other flags change nothing.
                    for others in (0..=255u8).filter(|others| others & (SYN | FIN | RST | ACK) == 0) {
                        assert_eq!(others & !(PSH | URG | ECE | CWR), 0);
                        assert_eq!(Segment::of(bits | others), Segment::of(bits));
                    }
                }
            }
        }
        text
    }

    #[test]
    fn every_state_direction_and_set_of_flags_has_the_outcome_of_the_golden_table() {
        let golden = include_str!("tcp_outcomes.txt");
        assert!(outcomes() == golden, "outcomes have changed; they are now:\n{}", outcomes());
    }

    #[test]
    fn nothing_that_no_tcp_sends_goes_on_or_changes_anything() {
        for state in STATES.into_iter().filter(|state| *state != State::Udp) {
            for direction in [Direction::Forward, Direction::Reverse] {
                for flags in [SYN | FIN, SYN | RST, FIN | PSH | URG, 0, RST | FIN, SYN | FIN | RST | ACK, 255] {
                    let outcome = state.outcome(direction, Segment::of(flags));
                    assert_eq!(outcome.next, state);
                    let passes = state == State::Established && flags == 0;
                    assert_eq!(outcome.action == Action::Drop, !passes, "{state:?} {flags:#x}");
                }
            }
        }
    }

    #[test]
    fn a_target_can_open_nothing_and_no_client_completes_a_handshake_that_no_target_has_begun() {
        for state in
            STATES.into_iter().filter(|state| !matches!(state, State::Udp | State::SynSent | State::SynReceived))
        {
            assert_eq!(state.outcome(Direction::Reverse, Segment::Syn).action, Action::Drop);
        }
        let kinds = [Segment::Syn, Segment::SynAck, Segment::Ack, Segment::Fin, Segment::Rst, Segment::RstAck];
        for segment in kinds {
            assert_eq!(State::SynSent.outcome(Direction::Forward, segment).next, State::SynSent);
        }
    }

    #[test]
    fn bytes_of_records_come_back_as_states_whatever_way_the_flow_goes() {
        for state in STATES {
            assert_eq!(State::from_byte(state as u8), state);
            assert_eq!(State::from_byte(state as u8 | FlowRecord::LONG_WAY), state);
        }
        assert_eq!(State::from_byte(100), State::Reset);
    }
}

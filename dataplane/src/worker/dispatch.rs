//! What becomes of frames once their verdicts are known, and of what the forwarder put into its outbox.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use postern_forwarding::{DropReason, HandoffNote, Origin, Outbox, PeerMessage, Verdict, WorkerIndex};
use postern_frame_io::{BURST, Burst, Errno, Transmit, TransmitReport};
use postern_wire::{Frame, PortIndex};

use crate::link::{Shared, WorkerLink};
use crate::neighbours::neighbour_frame::NeighbourFrame;

/// Verdicts of frames that do not exist.
pub(super) const NO_VERDICTS: [Verdict; BURST] = [Verdict::Hold; BURST];
/// Frames that an outbox holds.
const OUTBOX: usize = 128;
/// Messages to other workers that wait for room, before memory is asked for.
const BACKLOG: usize = 4096;

/// Positions of the frames of a burst that leave on one port.
#[derive(Clone, Debug)]
struct Selection {
    positions: [u8; BURST],
    length: usize,
}

impl Selection {
    const EMPTY: Self = Self { positions: [0; BURST], length: 0 };

    #[inline]
    fn push(&mut self, position: usize) {
        self.positions[self.length] = position as u8;
        self.length += 1;
    }

    fn positions(&self) -> &[u8] {
        &self.positions[..self.length]
    }
}

/// Sends, hands over, punts and counts.
#[derive(Debug)]
pub(super) struct Dispatch<'w> {
    index: usize,
    shared: &'w Shared,
    link: &'w WorkerLink,
    outbox: Outbox,
    report: TransmitReport,
    selections: Vec<Selection>,
    /// Messages for which a ring had no room: none may be lost, or two workers would hold one flow.
    backlog: VecDeque<(WorkerIndex, PeerMessage)>,
    /// Workers that got something in this step, one bit each.
    touched: u64,
    touched_control: bool,
    touched_health: bool,
}

impl<'w> Dispatch<'w> {
    pub(super) fn new(index: usize, ports: usize, shared: &'w Shared) -> Self {
        Self {
            index,
            shared,
            link: &shared.links[index],
            outbox: Outbox::new(OUTBOX),
            report: TransmitReport::new(),
            selections: vec![Selection::EMPTY; ports],
            backlog: VecDeque::with_capacity(BACKLOG),
            touched: 0,
            touched_control: false,
            touched_health: false,
        }
    }

    /// Where the forwarder puts what it makes.
    #[inline]
    pub(super) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Does what the verdicts say.
    pub(super) fn dispatch(
        &mut self,
        frames: &mut [Frame<'_>],
        verdicts: &[Verdict],
        transmit: &mut [Box<dyn Transmit>],
    ) {
        self.pass_messages();
        for (position, (frame, verdict)) in frames.iter().zip(verdicts).enumerate() {
            match *verdict {
                Verdict::Forward(port) | Verdict::Reply(port) => match self.selections.get_mut(usize::from(port.0)) {
                    Some(selection) => selection.push(position),
                    None => self.link.counters.count_drop(DropReason::PortDown, 1),
                },
                Verdict::Punt => self.punt(frame),
                Verdict::Probe => self.pass_probe(frame),
                Verdict::Handoff(to, note) => {
                    self.touched |= hand_over(self.shared, self.index, to, note, frame);
                }
                Verdict::Hold | Verdict::Drop(_) => {}
            }
        }
        for (selection, transmit) in self.selections.iter_mut().zip(transmit) {
            if selection.length > 0 {
                transmit.transmit(frames, selection.positions(), &mut self.report);
                count_verdicts(self.link, selection.positions(), verdicts, &self.report);
                selection.length = 0;
            }
        }
    }

    /// Sends what the forwarder made, and passes on what it asked for.
    #[inline]
    pub(super) fn send_outbox(&mut self, transmit: &mut [Box<dyn Transmit>]) {
        if !self.outbox.is_empty() {
            self.empty_outbox(transmit);
        }
    }

    /// Wakes the threads that were given something, and tries messages again that had no room.
    #[inline]
    pub(super) fn wake_others(&mut self) {
        if !self.backlog.is_empty() {
            self.send_messages();
        }
        while self.touched != 0 {
            let worker = self.touched.trailing_zeros();
            self.touched &= self.touched - 1;
            self.shared.links[worker as usize].wake.wake();
        }
        if std::mem::take(&mut self.touched_control) {
            self.shared.control.wake();
        }
        if std::mem::take(&mut self.touched_health) {
            self.shared.health.wake.wake();
        }
    }

    fn punt(&mut self, frame: &Frame<'_>) {
        if self.link.punted.push(NeighbourFrame::received(frame.ingress, frame.vlan, frame.bytes())).is_ok() {
            self.touched_control = true;
            self.link.counters.punted.add(1);
        } else {
            self.link.counters.count_drop(DropReason::PuntFull, 1);
        }
    }

    /// Gives a target's answer to a probe to the health thread.
    #[cold]
    fn pass_probe(&mut self, frame: &Frame<'_>) {
        if self.link.probed.push(frame, HandoffNote::Owned) {
            self.touched_health = true;
            self.link.counters.punted.add(1);
        } else {
            self.link.counters.count_drop(DropReason::PuntFull, 1);
        }
    }

    #[cold]
    fn empty_outbox(&mut self, transmit: &mut [Box<dyn Transmit>]) {
        self.pass_messages();
        let mut sent = self.outbox.frames().peekable();
        while sent.peek().is_some() {
            let mut burst = Burst::new();
            let mut origins = [(PortIndex(0), Origin::Made); BURST];
            while !burst.is_full()
                && let Some((port, origin, frame)) = sent.next()
            {
                origins[burst.len()] = (port, origin);
                let pushed = burst.push(frame);
                debug_assert!(pushed.is_ok());
            }
            let frames = burst.frames_mut();
            for (port, transmit) in transmit.iter_mut().enumerate() {
                let mut selection = Selection::EMPTY;
                let leaving = |position: &usize| usize::from(origins[*position].0.0) == port;
                (0..frames.len()).filter(leaving).for_each(|position| selection.push(position));
                if selection.length > 0 {
                    transmit.transmit(frames, selection.positions(), &mut self.report);
                    for (at, position) in selection.positions().iter().enumerate() {
                        count_origin(self.link, origins[usize::from(*position)].1, self.report.result(at));
                    }
                }
            }
            for (port, origin) in &origins[..frames.len()] {
                if usize::from(port.0) >= self.selections.len() {
                    count_origin(self.link, *origin, Err(Errno::ENODEV));
                }
            }
        }
        drop(sent);
        for (to, note, frame) in self.outbox.handed() {
            self.touched |= hand_over(self.shared, self.index, to, note, &frame);
        }
        for request in self.outbox.requests() {
            self.touched_control = true;
            if self.link.requests.push(*request).is_err() {
                self.link.loops.requests_lost.add(1);
            }
        }
        self.outbox.clear();
    }

    /// Passes on what the forwarder says to other workers. Before any frame leaves: the answer to the first packet of a lent
    /// flow may make its client's next packet come to the other worker within microseconds.
    #[inline]
    fn pass_messages(&mut self) {
        if !self.outbox.messages().is_empty() {
            self.backlog.extend(self.outbox.take_messages());
            self.send_messages();
        }
    }

    fn send_messages(&mut self) {
        while let Some((to, message)) = self.backlog.front() {
            let ring = self.shared.handoff.ring(self.index, usize::from(to.0));
            if ring.is_some_and(|ring| ring.tell(*message).is_err()) {
                break;
            }
            if let Some(link) = self.shared.links.get(usize::from(to.0)) {
                link.told.store(true, Ordering::Release);
            }
            self.touched |= 1 << to.0;
            self.backlog.pop_front();
        }
    }
}

/// Puts a frame into the ring to another worker; returns that worker's bit if there was room.
#[inline]
fn hand_over(shared: &Shared, from: usize, to: WorkerIndex, note: HandoffNote, frame: &Frame<'_>) -> u64 {
    let counters = &shared.links[from].counters;
    let ring = shared.handoff.ring(from, usize::from(to.0));
    if ring.is_some_and(|ring| ring.push(frame, note)) {
        counters.handed_out.add(1);
        1 << to.0
    } else {
        counters.count_drop(DropReason::HandoffFull, 1);
        0
    }
}

/// Counts what the kernel said to the frames of one port.
#[inline]
fn count_verdicts(link: &WorkerLink, positions: &[u8], verdicts: &[Verdict], report: &TransmitReport) {
    let is_answer = |position: u8| matches!(verdicts[usize::from(position)], Verdict::Reply(_));
    let mut answered = positions.iter().filter(|position| is_answer(**position)).count() as u64;
    let mut forwarded = positions.len() as u64 - answered;
    if report.refused() > 0 {
        for (at, error) in report.refusals() {
            if is_answer(positions[at]) {
                answered -= 1;
            } else {
                forwarded -= 1;
            }
            count_errno(link, error);
            link.counters.count_drop(refusal(error), 1);
        }
    }
    link.counters.forwarded.add(forwarded);
    link.counters.answered.add(answered);
}

fn count_origin(link: &WorkerLink, origin: Origin, result: Result<(), Errno>) {
    let counters = &link.counters;
    match (origin, result) {
        (Origin::Held, Ok(())) => counters.forwarded.add(1),
        (Origin::Made, Ok(())) => counters.made.add(1),
        (Origin::Held, Err(error)) => {
            counters.count_drop(refusal(error), 1);
            count_errno(link, error);
        }
        (Origin::Made, Err(error)) => {
            counters.made_refused.add(1);
            count_errno(link, error);
        }
    }
}

fn count_errno(link: &WorkerLink, error: Errno) {
    let refused = &link.loops.refused;
    refused[(error as usize).min(refused.len() - 1)].add(1);
}

/// Why a frame that the kernel refused counts as dropped.
const fn refusal(error: Errno) -> DropReason {
    match error {
        Errno::ENETDOWN | Errno::ENODEV | Errno::ENXIO => DropReason::PortDown,
        _ => DropReason::TransmitRefused,
    }
}

//! A wrapper that loses, repeats and reorders received frames, the same ones for the same seed. For tests.

use std::os::fd::BorrowedFd;

use postern_wire::Frame;
use postern_wire::frame::HEADROOM;

use crate::device::{BURST, Burst, DeviceError, Receive, ReceiveStatistics};

/// How often frames suffer, each in thousandths of the frames that come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Frames that are lost.
    pub lost: u16,
    /// Frames that come twice, the second time at the end of the burst; not where the burst is full.
    pub repeated: u16,
    /// Frames that change places with another of their burst.
    pub reordered: u16,
}

/// A receiving half whose frames suffer [`Faults`].
#[derive(Debug)]
pub struct FaultInjector<D> {
    device: D,
    faults: Faults,
    state: u64,
    copies: Vec<Vec<u8>>,
    injected: [u64; 3],
}

impl<D: Receive> FaultInjector<D> {
    /// Wraps a receiving half.
    pub fn new(device: D, faults: Faults, seed: u64) -> Self {
        let copies = (0..BURST).map(|_| Vec::new()).collect();
        Self { device, faults, state: seed, copies, injected: [0; 3] }
    }

    /// How many frames were lost, repeated and reordered so far.
    #[must_use]
    pub const fn injected(&self) -> [u64; 3] {
        self.injected
    }
}

/// The next of a sequence of well-mixed numbers (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
const fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

impl<D: Receive> Receive for FaultInjector<D> {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError> {
        let before = burst.len();
        self.device.receive(burst)?;
        let state = &mut self.state;
        let happens = |state: &mut u64, thousandths: u16| next(state) % 1000 < u64::from(thousandths);

        let mut kept = before;
        for at in before..burst.len() {
            if happens(state, self.faults.lost) {
                self.injected[0] += 1;
            } else {
                burst.frames_mut().swap(kept, at);
                kept += 1;
            }
        }
        burst.truncate(kept);

        for (at, copy) in (before..kept).zip(&mut self.copies) {
            if burst.is_full() || !happens(state, self.faults.repeated) {
                continue;
            }
            let original = &burst.frames()[at];
            copy.clear();
            copy.resize(HEADROOM, 0);
            copy.extend_from_slice(original.bytes());
            let (offload, ingress, vlan, length) = (original.offload, original.ingress, original.vlan, original.len());
            if let Some(mut frame) = Frame::new(copy, HEADROOM, length) {
                (frame.offload, frame.ingress, frame.vlan) = (offload, ingress, vlan);
                self.injected[1] += u64::from(burst.push(frame).is_ok());
            }
        }

        let count = burst.len() - before;
        for at in 0..count {
            if count > 1 && happens(state, self.faults.reordered) {
                self.injected[2] += 1;
                let other = (at + 1 + (next(state) as usize) % (count - 1)) % count;
                burst.frames_mut()[before..].swap(at, other);
            }
        }
        Ok(count)
    }

    fn release(&mut self) {
        self.device.release();
    }

    fn statistics(&mut self) -> ReceiveStatistics {
        self.device.statistics()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.poll_fd()
    }
}

#[cfg(test)]
mod tests {
    use postern_wire::PortIndex;

    use super::*;
    use crate::device::{Transmit, TransmitReport};
    use crate::memory;

    /// The numbers of the frames that come of 32 bursts of 16, and what was injected.
    fn suffer(faults: Faults, seed: u64) -> (Vec<u16>, [u64; 3]) {
        let (mut transmitter, receiver) = memory::link(PortIndex(0), 64, 100).unwrap();
        let mut injector = FaultInjector::new(receiver, faults, seed);
        let mut came = Vec::new();
        for round in 0..32u16 {
            for number in round * 16..round * 16 + 16 {
                let mut buffer = number.to_be_bytes();
                let mut frames = [Frame::new(&mut buffer, 0, 2).unwrap()];
                transmitter.transmit(&mut frames, &[0], &mut TransmitReport::new());
            }
            let mut burst = Burst::new();
            assert_eq!(injector.receive(&mut burst).unwrap(), burst.len());
            came.extend(burst.frames().iter().map(|frame| u16::from_be_bytes([frame.bytes()[0], frame.bytes()[1]])));
        }
        (came, injector.injected())
    }

    #[test]
    fn without_faults_everything_comes_in_order() {
        assert_eq!(suffer(Faults::default(), 1), ((0..512).collect(), [0; 3]));
    }

    #[test]
    fn frames_are_lost_and_repeated_as_often_as_was_counted_and_the_same_for_the_same_seed() {
        let faults = Faults { lost: 100, repeated: 100, reordered: 100 };
        let (mut came, [lost, repeated, reordered]) = suffer(faults, 7);
        assert_eq!(suffer(faults, 7).0, came);
        assert_ne!(suffer(faults, 8).0, came);
        assert!(lost > 20 && repeated > 20 && reordered > 20);
        assert!(!came.is_sorted());
        assert_eq!(came.len() as u64, 512 - lost + repeated);
        came.sort_unstable();
        came.dedup();
        assert_eq!(came.len() as u64, 512 - lost);
    }

    #[test]
    fn everything_can_be_lost() {
        assert_eq!(suffer(Faults { lost: 1000, ..Faults::default() }, 3), (vec![], [512, 0, 0]));
    }
}

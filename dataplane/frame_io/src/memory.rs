//! A device without a kernel: frames wait in bounded queues in memory. For tests and benches.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use postern_wire::frame::HEADROOM;
use postern_wire::{Frame, Offload, PortIndex};

use crate::device::{
    BURST, Burst, Capabilities, DeviceError, Receive, ReceiveStatistics, Transmit, TransmitReport, TransmitStatistics,
};
use crate::poll::Waker;

/// Both halves of a memory device.
#[derive(Debug)]
pub struct MemoryPort {
    /// Frames from the other port.
    pub receive: MemoryReceiver,
    /// Frames to the other port.
    pub transmit: MemoryTransmitter,
}

/// Two ports that are connected, like a veth pair. `capacity` frames of at most `largest` bytes wait in each direction; beyond
/// that they are refused (`ENOBUFS`, `EMSGSIZE`).
///
/// # Errors
/// If there are too many open files.
pub fn pair(ports: [PortIndex; 2], capacity: usize, largest: usize) -> Result<[MemoryPort; 2], Errno> {
    let [port0, port1] = ports;
    let (transmit1, receive0) = link(port0, capacity, largest)?;
    let (transmit0, receive1) = link(port1, capacity, largest)?;
    let port0 = MemoryPort { receive: receive0, transmit: transmit0 };
    Ok([port0, MemoryPort { receive: receive1, transmit: transmit1 }])
}

/// One direction of a [`pair`]; received frames say that they came in on `port`.
///
/// # Errors
/// If there are too many open files.
pub fn link(port: PortIndex, capacity: usize, largest: usize) -> Result<(MemoryTransmitter, MemoryReceiver), Errno> {
    let waiting = VecDeque::with_capacity(capacity);
    let buffer = || Stored { bytes: vec![0; HEADROOM + largest].into(), length: 0, offload: Offload::NONE, vlan: 0 };
    // Lent buffers are neither free nor waiting.
    let free = (0..capacity + BURST).map(|_| buffer()).collect();
    let queue = Arc::new(Queue { stored: Mutex::new(Buffers { waiting, free, capacity }), waker: Waker::new()? });
    let transmitter = MemoryTransmitter { queue: Arc::clone(&queue), statistics: TransmitStatistics::default() };
    let statistics = ReceiveStatistics::default();
    Ok((transmitter, MemoryReceiver { queue, lent: Vec::with_capacity(BURST), port, statistics }))
}

/// A frame that waits, or room for one.
#[derive(Debug)]
struct Stored {
    bytes: Box<[u8]>,
    length: usize,
    offload: Offload,
    vlan: u16,
}

#[derive(Debug)]
struct Buffers {
    waiting: VecDeque<Stored>,
    free: Vec<Stored>,
    capacity: usize,
}

#[derive(Debug)]
struct Queue {
    stored: Mutex<Buffers>,
    waker: Waker,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Buffers> {
        // A thread that panicked left whole frames in whole queues.
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers {
    fn push(&mut self, frame: &Frame<'_>) -> Result<(), Errno> {
        if self.waiting.len() == self.capacity {
            return Err(Errno::ENOBUFS);
        }
        let mut stored = self.free.pop().ok_or(Errno::ENOBUFS)?;
        let Some(place) = stored.bytes.get_mut(HEADROOM..HEADROOM + frame.len()) else {
            self.free.push(stored);
            return Err(Errno::EMSGSIZE);
        };
        place.copy_from_slice(frame.bytes());
        (stored.length, stored.offload, stored.vlan) = (frame.len(), frame.offload, frame.vlan);
        self.waiting.push_back(stored);
        Ok(())
    }
}

/// The receiving half of a memory device.
#[derive(Debug)]
pub struct MemoryReceiver {
    queue: Arc<Queue>,
    lent: Vec<Stored>,
    port: PortIndex,
    statistics: ReceiveStatistics,
}

impl Receive for MemoryReceiver {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError> {
        self.release();
        {
            let mut stored = self.queue.lock();
            let count = stored.waiting.len().min(BURST - burst.len());
            self.lent.extend(stored.waiting.drain(..count));
            if stored.waiting.is_empty() {
                self.queue.waker.reset();
            }
        }
        let received = self.lent.len();
        self.statistics.delivered += received as u64;
        for stored in &mut self.lent {
            let frame = Frame::new(&mut stored.bytes, HEADROOM, stored.length);
            let pushed = frame.map(|mut frame| {
                (frame.offload, frame.vlan, frame.ingress) = (stored.offload, stored.vlan, self.port);
                burst.push(frame).is_ok()
            });
            debug_assert_eq!(pushed, Some(true), "what was stored fits, and no more was taken than there is room");
        }
        Ok(received)
    }

    fn release(&mut self) {
        if !self.lent.is_empty() {
            self.queue.lock().free.append(&mut self.lent);
        }
    }

    fn statistics(&mut self) -> ReceiveStatistics {
        self.statistics
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.waker.as_fd())
    }
}

/// The transmitting half of a memory device.
#[derive(Debug)]
pub struct MemoryTransmitter {
    queue: Arc<Queue>,
    statistics: TransmitStatistics,
}

impl Transmit for MemoryTransmitter {
    fn transmit(&mut self, frames: &mut [Frame<'_>], selected: &[u8], report: &mut TransmitReport) {
        assert!(selected.len() <= BURST, "{} frames were selected, a burst has {BURST}", selected.len());
        report.clear();
        let mut stored = self.queue.lock();
        let before = stored.waiting.len();
        for &index in selected {
            match stored.push(&frames[usize::from(index)]) {
                Ok(()) => report.accept(1),
                Err(error) => report.refuse(error),
            }
        }
        if before == 0 && report.accepted() > 0 {
            self.queue.waker.wake();
        }
        drop(stored);
        self.statistics.calls += 1;
        self.statistics.accepted += report.accepted() as u64;
        self.statistics.refused += report.refused() as u64;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { super_frames: true, partial_checksums: true }
    }

    fn statistics(&self) -> TransmitStatistics {
        self.statistics
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::poll::sleep;

    fn send(transmitter: &mut MemoryTransmitter, lengths: &[usize]) -> Vec<(usize, Errno)> {
        let mut buffers: Vec<_> = lengths.iter().map(|length| vec![*length as u8; *length]).collect();
        let mut burst = Burst::new();
        for buffer in &mut buffers {
            let length = buffer.len();
            let mut frame = Frame::new(buffer, 0, length).unwrap();
            frame.vlan = length as u16;
            frame.offload.segment_size = length as u16;
            burst.push(frame).unwrap();
        }
        let selected: Vec<u8> = (0..burst.len() as u8).collect();
        let mut report = TransmitReport::new();
        transmitter.transmit(burst.frames_mut(), &selected, &mut report);
        report.refusals().collect()
    }

    #[test]
    fn frames_come_out_as_they_went_in_with_room_in_front() {
        let [mut port0, mut port1] = pair([PortIndex(3), PortIndex(4)], 100, 1514).unwrap();
        assert!(!sleep(port1.receive.poll_fd(), None, Duration::ZERO));
        for lengths in [[60, 70, 80], [61, 71, 81]] {
            assert_eq!(send(&mut port0.transmit, &lengths), []);
            assert!(sleep(port1.receive.poll_fd(), None, Duration::ZERO));
            let mut burst = Burst::new();
            assert_eq!(port1.receive.receive(&mut burst).unwrap(), 3);
            for (frame, length) in burst.frames().iter().zip(lengths) {
                assert_eq!(frame.bytes(), vec![length as u8; length]);
                assert_eq!((frame.headroom(), frame.ingress), (HEADROOM, PortIndex(4)));
                assert_eq!((frame.vlan, frame.offload.segment_size), (length as u16, length as u16));
            }
        }
        assert_eq!(port0.receive.receive(&mut Burst::new()).unwrap(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_all_buffers_come_back() {
        let (mut transmitter, mut receiver) = link(PortIndex(0), 5, 100).unwrap();
        for _ in 0..100 {
            let refusals = send(&mut transmitter, &[60, 101, 60, 60, 60, 60, 60]);
            assert_eq!(refusals, [(1, Errno::EMSGSIZE), (6, Errno::ENOBUFS)]);
            assert_eq!(receiver.receive(&mut Burst::new()).unwrap(), 5);
        }
        assert_eq!((transmitter.statistics().accepted, transmitter.statistics().refused), (500, 200));
        assert_eq!(receiver.statistics().delivered, 500);
    }
}

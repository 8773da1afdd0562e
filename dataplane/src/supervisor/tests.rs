use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;

use postern_frame_io::{Burst, DeviceError, Receive, ReceiveStatistics};
use postern_tables::declaration::Polling;

use super::*;
use crate::link::PortDevice;
use crate::test_bed::*;

/// Panics at the third frame.
struct Cursed {
    device: Box<dyn Receive>,
    received: usize,
}

impl Receive for Cursed {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError> {
        let before = self.received;
        let count = self.device.receive(burst)?;
        self.received += count;
        assert!(!(before < 3 && self.received >= 3), "the third frame is cursed");
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

fn plan() -> WorkerPlan {
    WorkerPlan {
        flows: 1024,
        ipv6_flows: 1024,
        cpus: Vec::new(),
        policy: IdlePolicy::new(Polling::Sleep),
        ownership: ownership(1),
        secret: [1, 2, 3, 4],
    }
}

fn wait_for(what: impl Fn() -> bool) -> bool {
    (0..500).any(|_| {
        what() || {
            thread::sleep(Duration::from_millis(10));
            false
        }
    })
}

#[test]
fn a_worker_that_panics_is_counted_and_started_again_on_the_same_devices() {
    let (shared, mut devices, mut wires) = bed(1);
    let (device, wire) = device(CONSUMER, 1024);
    let mut old = devices[0].replace(CONSUMER, device);
    wires[0][CONSUMER] = wire;
    old.receive = std::mem::replace(&mut devices[0].receive[CONSUMER], old.receive);
    let cursed = Box::new(Cursed { device: old.receive, received: 0 });
    drop(devices[0].replace(CONSUMER, PortDevice { receive: cursed, transmit: old.transmit }));
    let workers = Workers::start(&shared, &plan(), devices).unwrap();
    let link = &shared.links[0];
    let mut send = |port| {
        let from = SocketAddrV4::new(CLIENT, port);
        wires[0][CONSUMER].send(&datagram(CONSUMER, from, SERVICE, b"x"));
        link.wake.wake();
    };
    for port in [5000, 5001] {
        send(port);
    }
    assert!(wait_for(|| link.counters.received.get() == 2));
    send(5002);
    assert!(wait_for(|| link.loops.restarts.get() == 1));
    introduce(&shared, 0);
    link.wake.wake();
    send(5003);
    assert!(wait_for(|| link.counters.forwarded.get() == 1), "the restarted worker forwards");
    drop(workers);
    let counters = &link.counters;
    let lost = counters.drops[DropReason::WorkerRestarted as usize].get();
    assert_eq!((lost, counters.held.get(), counters.flows.get()), (2, 0, 1), "the two held frames are lost");
    assert_eq!(counters.imbalance(), 0);
    assert_eq!(wires[0][PROVIDER].received().len(), 1);
}

#[test]
fn a_worker_that_cannot_have_its_cpu_says_which() {
    let (shared, devices, _wires) = bed(1);
    let plan = WorkerPlan { cpus: vec![1023], ..plan() };
    let error = Workers::start(&shared, &plan, devices).unwrap_err();
    assert!(matches!(error, WorkerError::Pin { worker: 0, .. }), "{error}");
}

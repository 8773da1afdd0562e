//! Packet devices that are bound again to an interface of the same name, and what a port costs.

use nix::time::{ClockId, clock_gettime};
use postern_frame_io::DeviceError;

use super::*;

/// Receives until the device tells an error, at most as often as it may take to be told.
fn error_of(receiver: &mut PacketReceiver) -> Option<DeviceError> {
    (0..40).find_map(|_| receiver.receive(&mut Burst::new()).err())
}

#[test]
fn an_interface_that_is_deleted_is_told_and_its_successor_is_bound() {
    let Some(topology) = Topology::new() else { return };
    let before = topology.middle.interface("port0");
    let mut receiver = receiver(&topology.middle, "port0", &small());
    let mut answering = transmitter(&topology.middle, "port0");
    assert_eq!(send(&mut transmitter(&topology.left, "eth0"), &[numbered(1, 60)], NO_VLAN), []);
    assert_eq!(collect(&mut receiver, 1).len(), 1);
    assert_eq!(receiver.bound_interface(), Some(before.index()));

    topology.delete_left();
    let error = error_of(&mut receiver);
    assert!(matches!(&error, Some(DeviceError::Gone(name)) if name == "port0"), "{error:?}");
    assert_eq!((receiver.bound_interface(), answering.bound_interface()), (None, None));
    assert_eq!(send(&mut answering, &[numbered(1, 60)], NO_VLAN).len(), 1);

    topology.make_left();
    let after = topology.middle.run(|| before.refresh().unwrap());
    assert_ne!(after.index(), before.index());
    topology.middle.run(|| {
        receiver.rebind(&after, &small()).unwrap();
        answering.rebind(&after).unwrap();
    });
    let mut peer = super::receiver(&topology.left, "eth0", &small());
    assert_eq!(send(&mut transmitter(&topology.left, "eth0"), &[numbered(2, 60)], NO_VLAN), []);
    assert_eq!(collect(&mut receiver, 1).len(), 1);
    assert_eq!(receiver.statistics().delivered, 2, "statistics go on");
    assert_eq!(send(&mut answering, &[numbered(3, 60)], NO_VLAN), []);
    assert_eq!(collect(&mut peer, 1)[0].bytes, numbered(3, 60));
}

#[test]
fn a_port_without_the_capability_or_with_a_wrong_setting_is_refused_in_words() {
    let Some(topology) = Topology::new() else { return };
    let interface = topology.middle.interface("port0");
    let config = ReceiverConfig { slots: 1, ..ReceiverConfig::default() };
    let error = PacketReceiver::open(&interface, &config).unwrap_err();
    assert_eq!(error.to_string(), "slots = 1 on interface \"port0\": 64…1048576 is allowed");
}

/// What the calling thread has used of a processor, so that others' load does not count.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
#[ignore = "measures; run it alone and in release"]
fn a_bridge_of_two_ports_costs_less_than_2500_nanoseconds_a_packet() {
    let Some(topology) = Topology::new() else { return };
    let mut bridge = Bridge::open(&topology, &ReceiverConfig::default());
    let mut from = transmitter(&topology.left, "eth0");
    let selected: [u8; BURST] = std::array::from_fn(|at| at as u8);
    let mut report = TransmitReport::new();
    let (mut busy, mut frames) = (Duration::ZERO, 0);
    let bursts = vec![numbered(0, 60); 8192];
    for _ in 0..50 {
        assert_eq!(send(&mut from, &bursts, NO_VLAN), []);
        let start = processor_time();
        loop {
            match bridge.step(&selected, &mut report, &mut |_| {}) {
                0 => break,
                passed => frames += passed,
            }
        }
        busy += processor_time() - start;
    }
    let nanoseconds = busy.as_nanos() as f64 / frames as f64;
    eprintln!("{frames} frames of 60 bytes, {nanoseconds:.0} ns each, receive and transmit");
    assert!(nanoseconds < 2500.0);
}

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use postern_forwarding::{DropReason, NeighbourRequest};
use postern_frame_io::Errno;
use postern_measurement::Now;
use postern_tables::compile;
use postern_wire::AttachmentIndex;
use postern_wire::arp::{ArpPacket, Operation};
use postern_wire::{FlowKey, MacAddress, PortIndex};

use super::*;
use crate::neighbours::neighbour_frame::NeighbourFrame;
use crate::test_bed::*;

fn at(milliseconds: u64) -> Now {
    Now::from_milliseconds(milliseconds)
}

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(CLIENT, port)
}

#[test]
fn a_datagram_waits_for_its_target_and_leaves_translated_and_the_reply_comes_back() {
    let (shared, mut devices, mut wires) = bed(1);
    let [wire_c, wire_p] = &mut wires[0];
    let mut worker = Worker::new(0, &mut devices[0], forwarder(&shared, 0), &shared, 1);
    let link = &shared.links[0];
    wire_c.send(&datagram(CONSUMER, client(5000), SERVICE, b"question"));
    worker.step(at(1000));
    assert_eq!(
        link.requests.pop(),
        Some(NeighbourRequest { attachment: AttachmentIndex(1), address: (*TARGET.ip()).into() })
    );
    assert!(wire_p.received().is_empty());
    assert_eq!((link.counters.held.get(), link.counters.imbalance()), (1, 0));

    introduce(&shared, 0);
    worker.step(at(1001));
    let out = wire_p.received();
    let (snat, target) = addresses(&out[0]);
    assert_eq!((out.len(), *snat.ip(), target), (1, Ipv4Addr::new(10, 0, 0, 200), TARGET));
    assert_eq!((link.counters.held.get(), link.counters.forwarded.get()), (0, 1));

    wire_p.send(&datagram(PROVIDER, TARGET, snat, b"answer"));
    worker.step(at(1002));
    let back = wire_c.received();
    assert_eq!((back.len(), addresses(&back[0])), (1, (SERVICE, client(5000))));
    let counters = &link.counters;
    assert_eq!((counters.received.get(), counters.forwarded.get(), counters.dropped()), (2, 2, 0));
    assert_eq!((counters.flows.get(), counters.imbalance()), (1, 0));
}

#[test]
fn arp_goes_to_the_control_side_until_its_ring_is_full_and_then_is_a_counted_drop() {
    let (shared, mut devices, mut wires) = bed(1);
    let mut worker = Worker::new(0, &mut devices[0], forwarder(&shared, 0), &shared, 1);
    let packet = ArpPacket {
        operation: Operation::Request,
        sender_mac: CLIENT_MAC,
        sender: CLIENT,
        target_mac: MacAddress::ZERO,
        target: *SERVICE.ip(),
    };
    let frame = NeighbourFrame::new(PortIndex(0), None, CLIENT_MAC, MacAddress::BROADCAST, &packet);
    let link = &shared.links[0];
    let room = link.punted.capacity() as u64;
    for _ in 0..room + 3 {
        wires[0][CONSUMER].send(frame.bytes());
    }
    while worker.step(at(1000)) {}
    assert_eq!(link.punted.pop().unwrap().parse().unwrap().packet, packet);
    let drops = link.counters.drops[DropReason::PuntFull as usize].get();
    assert_eq!((link.counters.punted.get(), drops, link.counters.imbalance()), (room, 3, 0));
}

#[test]
fn a_frame_that_another_worker_owns_is_handed_over_and_leaves_there() {
    let (shared, mut devices, mut wires) = bed(2);
    let owned_by_1 =
        (5000..).find(|port| ownership(2).of_flow(FlowKey::new(AttachmentIndex(0), 17, client(*port), SERVICE)) == 1);
    let from = client(owned_by_1.unwrap());
    let [devices0, devices1] = &mut devices[..] else { unreachable!() };
    let mut workers = [
        Worker::new(0, devices0, forwarder(&shared, 0), &shared, 1),
        Worker::new(1, devices1, forwarder(&shared, 1), &shared, 1),
    ];
    introduce(&shared, 0);
    introduce(&shared, 1);
    wires[0][CONSUMER].send(&datagram(CONSUMER, from, SERVICE, b"question"));
    for worker in &mut workers {
        worker.step(at(1000));
    }
    let out = wires[1][PROVIDER].received();
    assert_eq!((out.len(), addresses(&out[0]).1), (1, TARGET));
    assert!(wires[0][PROVIDER].received().is_empty());
    let [first, second] = [0, 1].map(|worker: usize| &shared.links[worker].counters);
    assert_eq!((first.received.get(), first.handed_out.get(), first.imbalance()), (1, 1, 0));
    assert_eq!((second.handed_in.get(), second.forwarded.get(), second.imbalance()), (1, 1, 0));
}

#[test]
fn a_frame_that_the_kernel_refuses_is_a_drop_with_its_errno() {
    let (shared, mut devices, mut wires) = bed(1);
    let (small, _wire) = device(PROVIDER, 1);
    drop(devices[0].replace(PROVIDER, small));
    let mut worker = Worker::new(0, &mut devices[0], forwarder(&shared, 0), &shared, 1);
    for port in [5000, 5001, 5002] {
        wires[0][CONSUMER].send(&datagram(CONSUMER, client(port), SERVICE, b"x"));
    }
    worker.step(at(1000));
    // They have waited for the target's MAC address; with it all leave at once.
    introduce(&shared, 0);
    worker.step(at(1001));
    let link = &shared.links[0];
    let refused = link.counters.drops[DropReason::TransmitRefused as usize].get();
    assert_eq!((link.counters.forwarded.get(), refused, link.counters.imbalance()), (1, 2, 0));
    assert_eq!(link.loops.refused[Errno::ENOBUFS as usize].get(), 2);
}

#[test]
fn new_tables_are_taken_between_bursts_and_the_old_ones_freed_by_their_publisher() {
    let (shared, mut devices, _wires) = bed(1);
    let mut worker = Worker::new(0, &mut devices[0], forwarder(&shared, 0), &shared, 1);
    let old = shared.tables.load();
    let next = Arc::new(compile(&checked(), Some(&old)));
    drop(shared.tables.publish(next.clone()));
    assert!(worker.has_work());
    worker.step(at(1000));
    let returned = shared.links[0].returned.pop().unwrap();
    assert!(Arc::ptr_eq(&returned, &old));
    drop(old);
    assert_eq!(Arc::strong_count(&returned), 1, "the worker kept nothing of it");
    assert_eq!(shared.links[0].loops.generation.get(), next.generation.0);
    assert!(!worker.has_work());
}

#[test]
fn a_device_in_another_s_place_counts_on_and_the_old_one_is_given_back() {
    let (shared, mut devices, mut wires) = bed(1);
    let mut worker = Worker::new(0, &mut devices[0], forwarder(&shared, 0), &shared, 1);
    wires[0][CONSUMER].send(&datagram(CONSUMER, client(5000), SERVICE, b"x"));
    worker.step(at(1000));
    let (successor, mut wire) = device(CONSUMER, 16);
    assert!(shared.links[0].replacements.push((CONSUMER, successor)).is_ok());
    worker.take_replacements();
    assert_eq!(shared.links[0].replaced.len(), 1);
    wire.send(&datagram(CONSUMER, client(5000), SERVICE, b"x"));
    worker.step(at(1200));
    worker.publish(at(1200));
    assert_eq!(shared.links[0].ports[CONSUMER].received().delivered, 2);
}

#[test]
fn flows_are_listed_in_slices_and_a_reader_that_does_not_read_stops_nothing() {
    let (shared, mut devices, mut wires) = bed(1);
    let mut worker = Worker::new(0, &mut devices[0], forwarder(&shared, 0), &shared, 1);
    let link = &shared.links[0];
    for port in 0..600 {
        if port == 1 {
            introduce(&shared, 0);
        }
        wires[0][CONSUMER].send(&datagram(CONSUMER, client(2000 + port), SERVICE, b"x"));
        worker.step(at(1001));
        wires[0][PROVIDER].received();
    }
    link.listing.store(7, Ordering::Release);
    let mut flows = 0;
    for _ in 0..100 {
        worker.step(at(1002));
        if let Some(slice) = link.slices.pop() {
            assert_eq!(slice.listing, 7);
            flows += slice.views.len();
            link.free_slices.push(slice.views).unwrap();
        }
    }
    assert_eq!(flows, 600);
    // Nobody reads the next listing: the worker goes idle all the same.
    while link.free_slices.pop().is_some() {}
    link.listing.store(8, Ordering::Release);
    worker.step(at(1003));
    assert!(!worker.step(at(1003)) && !worker.has_work());
}

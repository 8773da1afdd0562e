//! The programs at the places where they work: a fan-out group and socket filters, in a namespace of their own.

mod frames;
mod kernel;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;

use frames::Frames;
use kernel::maps_or_skip;
use postern_frame_io::af_packet::{FanoutMode, PacketFanout, PacketReceiver, PacketTransmitter, ReceiverConfig};
use postern_frame_io::bpf::ProgramKind;
use postern_frame_io::interface::Interface;
use postern_frame_io::{Burst, Receive, Transmit, TransmitReport};
use postern_lab::Namespace;
use postern_steering::{LocalAddresses, LocalKind, Ownership, Packet, Steering, filter, program};
use postern_wire::Frame;
use socket2::{Domain, Protocol, Socket, Type};

const WORKERS: u16 = 4;
/// Sent in one go, with room in the receivers' rings.
const BURSTS: usize = 8;

fn steering(addresses: LocalAddresses) -> Steering {
    Steering { ownership: Ownership::even(WORKERS, [0x1234_5678, 0x9abc_def0]), addresses }
}

/// A namespace, or `None` with a printed reason where the machine does not let us make one.
fn namespace() -> Option<Namespace> {
    Namespace::anonymous("steering").inspect_err(|error| println!("skipped: {error}")).ok()
}

/// Sends `count` bursts of 64 random frames on the loopback interface; those that the kernel took.
fn send_random(transmitter: &mut PacketTransmitter, frames: &mut Frames, count: usize) -> Vec<Vec<u8>> {
    let selected: Vec<u8> = (0..64).collect();
    let mut sent = Vec::new();
    for _ in 0..count {
        let originals: Vec<Vec<u8>> = (0..64).map(|_| frames.next_frame().to_vec()).collect();
        let mut buffers: Vec<Vec<u8>> = originals.iter().map(|frame| [&[0; 128][..], frame].concat()).collect();
        let mut burst: Vec<Frame<'_>> = buffers
            .iter_mut()
            .map(|buffer| {
                let length = buffer.len() - 128;
                Frame::new(buffer, 128, length).unwrap()
            })
            .collect();
        let mut report = TransmitReport::default();
        transmitter.transmit(&mut burst, &selected, &mut report);
        let kept = originals.into_iter().enumerate().filter(|(at, _)| report.result(*at).is_ok());
        sent.extend(kept.map(|(_, frame)| frame));
    }
    sent
}

/// Hands what the receiver has by now to `look`.
fn drain(receiver: &mut PacketReceiver, mut look: impl FnMut(Packet<'_>)) -> usize {
    let mut count = 0;
    loop {
        let mut burst = Burst::new();
        if receiver.receive(&mut burst).unwrap() == 0 {
            return count;
        }
        count += burst.len();
        for frame in burst.frames() {
            look(Packet::from_frame(frame).unwrap());
        }
    }
}

/// Whether the kernel lets the frame through to packet sockets: it drops one that ends right behind a tag.
fn arrives(frame: &[u8]) -> bool {
    !matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]) || frame.len() >= 14 + 4 + 2
}

#[test]
fn a_fan_out_group_gives_each_worker_the_frames_that_rust_says_it_owns() {
    let Some(namespace) = namespace() else { return };
    let steering = steering(frames::addresses());
    let Some(maps) = maps_or_skip(&steering) else { return };
    let program = maps.load(ProgramKind::SocketFilter, &program::fan_out(&steering.ownership)).unwrap();
    namespace
        .run(|| {
            let interface = Interface::by_name("lo").unwrap();
            let mut receivers = open_group(&interface, &program);
            let mut transmitter = PacketTransmitter::open(&interface, 16 << 20).unwrap();
            let mut frames = Frames::new(23);
            let mut owned = [0; WORKERS as usize];
            for _ in 0..10 {
                let sent = send_random(&mut transmitter, &mut frames, BURSTS);
                let expected = sent.iter().filter(|frame| arrives(frame)).count();
                let mut count = 0;
                for (worker, receiver) in (0..).zip(&mut receivers) {
                    let received =
                        drain(receiver, |packet| assert_eq!(steering.owner(packet), worker, "{packet:02x?}"));
                    owned[usize::from(worker)] += received;
                    count += received;
                }
                assert_eq!(count, expected);
            }
            assert!(owned.iter().all(|&count| count > 300), "{owned:?}");
        })
        .unwrap();
}

#[test]
fn a_frame_whose_headers_the_kernel_has_left_in_pages_reaches_its_owner() {
    let Some(namespace) = namespace() else { return };
    // The kernel lays out only the IP header of a large packet from a raw socket contiguously.
    let addresses =
        [(0, Ipv4Addr::new(127, 0, 0, 1), LocalKind::Endpoint), (0, Ipv4Addr::new(127, 0, 0, 2), LocalKind::Snat)];
    let steering = steering(addresses.into_iter().collect());
    let Some(maps) = maps_or_skip(&steering) else { return };
    let program = maps.load(ProgramKind::SocketFilter, &program::fan_out(&steering.ownership)).unwrap();
    namespace
        .run(|| {
            let interface = Interface::by_name("lo").unwrap();
            let mut receivers = open_group(&interface, &program);
            for port in 0..40_u16 {
                for address in [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)] {
                    send_large(Protocol::TCP, address, &transport(port * 1000)).unwrap();
                    send_large(Protocol::ICMPV4, address, &icmp_error(address, port * 1000)).unwrap();
                }
            }
            let mut large = [0; WORKERS as usize];
            for (worker, receiver) in (0..).zip(&mut receivers) {
                drain(receiver, |packet| {
                    assert_eq!(steering.owner(packet), worker, "{:02x?}", &packet.bytes[..64.min(packet.bytes.len())]);
                    large[usize::from(worker)] += usize::from(packet.bytes.len() > LARGE);
                });
            }
            assert_eq!(large.iter().sum::<usize>(), 160);
            assert!(large.iter().all(|&count| count > 10), "{large:?}");
        })
        .unwrap();
}

#[test]
fn the_socket_filter_of_a_shared_port_lets_in_exactly_what_postern_claims() {
    let Some(namespace) = namespace() else { return };
    let steering = steering(frames::addresses());
    let Some(maps) = maps_or_skip(&steering) else { return };
    let filter = maps.load(ProgramKind::SocketFilter, &filter::claimed()).unwrap();
    namespace
        .run(|| {
            let interface = Interface::by_name("lo").unwrap();
            let config = ReceiverConfig { slots: 1024, filter: Some(filter.as_fd()), ..ReceiverConfig::default() };
            let mut receiver = PacketReceiver::open(&interface, &config).unwrap();
            let mut transmitter = PacketTransmitter::open(&interface, 16 << 20).unwrap();
            let mut frames = Frames::new(29);
            let mut total = 0;
            for _ in 0..10 {
                let sent = send_random(&mut transmitter, &mut frames, BURSTS);
                let claimed = |frame: &&Vec<u8>| {
                    Packet::from_ethernet(frame, None).is_some_and(|packet| steering.addresses.claims(packet))
                };
                let expected = sent.iter().filter(|frame| arrives(frame)).filter(claimed).count();
                let count = drain(&mut receiver, |packet| assert!(steering.addresses.claims(packet), "{packet:02x?}"));
                assert_eq!(count, expected);
                total += count;
            }
            assert!(total > 1_000, "{total}");
        })
        .unwrap();
}

/// The workers' receivers, in order.
fn open_group(interface: &Interface, program: &postern_frame_io::bpf::Program) -> Vec<PacketReceiver> {
    let fanout = PacketFanout { group: 7, mode: FanoutMode::Program(program.as_fd()) };
    let config = ReceiverConfig { slots: 1024, fanout: Some(fanout), ..ReceiverConfig::default() };
    (0..WORKERS).map(|_| PacketReceiver::open(interface, &config).unwrap()).collect()
}

/// More than the kernel allocates contiguously for a packet (16 KB).
const LARGE: usize = 20_000;

fn send_large(protocol: Protocol, address: Ipv4Addr, start: &[u8]) -> io::Result<usize> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol))?;
    let mut message = start.to_vec();
    message.resize(LARGE, 0);
    socket.send_to(&message, &SocketAddrV4::new(address, 0).into())
}

fn transport(port: u16) -> Vec<u8> {
    [port.to_be_bytes(), port.wrapping_mul(7).to_be_bytes(), [0, 0], [0, 0]].concat()
}

/// Destination unreachable that quotes a TCP segment from `address`.
fn icmp_error(address: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut message = vec![3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    message.extend(address.octets());
    message.extend([10, 0, 0, 99]);
    message.extend(transport(port));
    message
}

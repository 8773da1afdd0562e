//! What a gateway does alike with every back end: real TCP and UDP stacks through it, with and without offloads, by 1 to 4
//! workers, with ordinary and jumbo frames, in VLANs, under overload, and while its interfaces go and come. Every counter is
//! compared.

use std::time::Duration;

use nix::sys::signal::Signal;
use postern_frame_io::af_packet::SEND_BUFFER;
use postern_frame_io::interface::Interface;
use postern_frame_io::io_uring::RingTransmitter;
use postern_lab::network::{self, CLIENT};
use postern_lab::topology::Builder;
use postern_lab::{Offloads, Topology};
use postern_tables::declaration::Mode;

use crate::bed::Bed;
use crate::counters::{ANY, Expected, SOME};
use crate::frames::Sender;
use crate::noise::frame;
use crate::traffic::PingPong;
use crate::wiring::datagram;
use crate::{failures, matrix, sizes, wiring};

/// Where many threads share few cores, a segment is repeated, and comes when its connection is closed.
const REPEATED: &[Expected<'_>] = &[("endpoints.client_resets", ANY)];

/// A back end, as a test sees it.
#[derive(Clone, Copy)]
struct BackEnd {
    /// The value of `io`.
    io: &'static str,
    /// Whether threads of the kernel receive (`io_uring_sqpoll`).
    sqpoll: bool,
    /// Whether a super-frame crosses as one frame.
    super_frames: bool,
}

impl BackEnd {
    fn builder(self) -> Builder {
        let sqpoll = self.sqpoll;
        let builder = Topology::builder().io(self.io).flows(16_384);
        builder.configure(move |text| match sqpoll {
            true => text.replacen("[gateway]", "[gateway]\nio_uring_sqpoll = true", 1),
            false => text,
        })
    }

    /// Whether this machine has it; says why if not.
    fn is_possible(self) -> bool {
        // In this namespace, whose loopback interface is always there.
        let refused = match self.io {
            "io_uring" => Interface::by_name("lo").and_then(|lo| RingTransmitter::open(&lo, SEND_BUFFER)).err(),
            _ => None,
        };
        if let Some(reason) = &refused {
            println!("skipped: {reason}");
        }
        refused.is_none()
    }
}

/// Each test for each back end: a new back end is one line.
macro_rules! each_back_end {
    ($($module:ident: $io:literal, sqpoll $sqpoll:literal, super_frames $super_frames:literal;)*) => {
        $(mod $module {
            use super::{BackEnd, Offloads};

            const BACK_END: BackEnd = BackEnd { io: $io, sqpoll: $sqpoll, super_frames: $super_frames };

            #[test]
            fn one_worker_forwards_everything_with_offloads() {
                super::forwards_everything(BACK_END, 1, Offloads::On);
            }

            #[test]
            fn one_worker_forwards_everything_without_offloads() {
                super::forwards_everything(BACK_END, 1, Offloads::Off);
            }

            #[test]
            fn two_workers_forward_everything_with_offloads() {
                super::forwards_everything(BACK_END, 2, Offloads::On);
            }

            #[test]
            fn three_workers_forward_everything_without_offloads() {
                super::forwards_everything(BACK_END, 3, Offloads::Off);
            }

            #[test]
            fn four_workers_forward_everything_with_offloads() {
                super::forwards_everything(BACK_END, 4, Offloads::On);
            }

            #[test]
            fn a_burst_of_segments_arrives_as_its_datagrams() {
                super::a_burst_of_segments_arrives_as_its_datagrams(BACK_END);
            }

            #[test]
            fn transfers_cross_between_ordinary_and_jumbo_frames() {
                super::transfers_cross_between_ordinary_and_jumbo_frames(BACK_END);
            }

            #[test]
            fn frames_in_vlans_are_forwarded_also_on_a_port_that_the_host_shares() {
                super::frames_in_vlans_are_forwarded_also_on_a_port_that_the_host_shares(BACK_END);
            }

            #[test]
            fn under_overload_every_lost_frame_is_counted_and_live_flows_go_on() {
                super::under_overload_every_lost_frame_is_counted_and_live_flows_go_on(BACK_END);
            }

            #[test]
            fn an_interface_that_goes_down_and_comes_up_goes_on() {
                super::an_interface_that_goes_down_and_comes_up_goes_on(BACK_END);
            }

            #[test]
            fn an_interface_that_is_deleted_and_made_again_is_taken_up_again() {
                super::an_interface_that_is_deleted_and_made_again_is_taken_up_again(BACK_END);
            }
        })*
    };
}

each_back_end! {
    af_packet: "af_packet", sqpoll false, super_frames true;
    io_uring: "io_uring", sqpoll false, super_frames true;
    io_uring_sqpoll: "io_uring", sqpoll true, super_frames true;
}

#[test]
fn auto_chooses_says_why_and_forwards() {
    let Some(bed) = Bed::start(Topology::builder().io("auto")) else { return };
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    let report = bed.expect_counters(REPEATED);
    assert!(report.ports.iter().all(|port| port.io == "af_packet"), "{:?}", report.ports);
    let log = bed.gateway().log();
    assert_eq!(log.matches("take less CPU time by the ring of a packet socket").count(), report.ports.len(), "{log}");
}

fn start(back_end: BackEnd, builder: Builder) -> Option<Bed> {
    back_end.is_possible().then(|| Bed::start(builder)).flatten()
}

fn forwards_everything(back_end: BackEnd, workers: usize, offloads: Offloads) {
    let Some(bed) = start(back_end, back_end.builder().workers(workers).offloads(offloads)) else { return };
    let report = matrix::use_everything(&bed, workers, REPEATED);
    assert!(report.ports.iter().all(|port| port.io == back_end.io), "another back end is at work");
    let packets: u64 =
        report.endpoints.iter().map(|one| one.traffic.packets_forward + one.traffic.packets_reverse).sum();
    let frames = report.total.frames.forwarded;
    if back_end.super_frames && offloads == Offloads::On {
        assert!(packets > 4 * frames, "{packets} packets crossed as {frames} frames: super-frames were cut");
    }
    if offloads == Offloads::Off {
        assert!(packets >= frames);
    }
}

fn a_burst_of_segments_arrives_as_its_datagrams(back_end: BackEnd) {
    if !back_end.super_frames {
        println!("skipped: {} carries no super-frames", back_end.io);
        return;
    }
    let Some(bed) = start(back_end, back_end.builder().workers(2)) else { return };
    matrix::send_a_burst_of_segments(&bed);
}

fn transfers_cross_between_ordinary_and_jumbo_frames(back_end: BackEnd) {
    for (consumers, provider, offloads) in [
        (9000, 1500, Offloads::On),
        (1500, 9000, Offloads::Off),
        (9000, 9000, Offloads::On),
        (9000, 9000, Offloads::Off),
    ] {
        let builder = back_end.builder().mtus(consumers, provider).offloads(offloads);
        let Some(bed) = start(back_end, builder) else { return };
        sizes::transfer_as_large_as_fits(&bed, consumers.min(provider));
    }
}

fn frames_in_vlans_are_forwarded_also_on_a_port_that_the_host_shares(back_end: BackEnd) {
    if !back_end.is_possible() {
        return;
    }
    for mode in [Mode::Own, Mode::Shared] {
        let io = back_end.io;
        let started = wiring::trunk(back_end.builder().workers(2), false, true, mode);
        let Some((switch, bed)) = started else { return };
        bed.use_everything();
        assert_eq!(switch.strays(), 0);
        let report = bed.expect_counters(REPEATED);
        assert!(report.ports.iter().all(|port| port.io == io), "another back end is at work");
    }
}

/// The gateway is stopped, so that nobody takes frames out of what the kernel keeps them in, and that overflows.
fn under_overload_every_lost_frame_is_counted_and_live_flows_go_on(back_end: BackEnd) {
    const FRAMES: usize = 60_000;
    let Some(mut bed) = start(back_end, back_end.builder()) else { return };
    let live = PingPong::start(bed.client(1));
    let mut sender = Sender::new(bed.client(0).namespace(), "eth0");
    // To an address that nobody has, so that each frame that comes is one drop.
    let bytes = [frame(&datagram(CLIENT, [10, 0, 0, 99].into(), 7)), vec![0; 1300]].concat();
    bed.gateway_mut().process().signal(Signal::SIGSTOP).unwrap();
    sender.flood(&bytes, FRAMES);
    bed.gateway_mut().process().signal(Signal::SIGCONT).unwrap();
    live.wait_for_more(Duration::from_secs(10));
    // And once more while it works as fast as it can.
    sender.flood(&bytes, FRAMES);
    live.wait_for_more(Duration::from_secs(10));
    let lost = live.stop();
    assert!(lost.len() <= 10, "{} datagrams of a live flow were lost", lost.len());
    let report = bed.expect_counters(&[
        ("received.kernel_drops", SOME),
        ("drops.not_local", SOME),
        // The flow's own, where it found no room either.
        ("received.truncated", 0..=0),
        ("frames.held", 0..=0),
        ("neighbours.unreachable", ANY),
        ("drops.neighbour_unreachable", ANY),
        ("endpoints.drops", ANY),
    ]);
    let flooded = &report.ports[0];
    let sum = report.total.drops["not_local"] + flooded.received.kernel_drops;
    assert_eq!(sum, 2 * FRAMES as u64, "frames are missing: {flooded:?}");
}

fn an_interface_that_goes_down_and_comes_up_goes_on(back_end: BackEnd) {
    let Some(bed) = start(back_end, back_end.builder().workers(2)) else { return };
    failures::take_a_port_down_and_up(&bed);
}

fn an_interface_that_is_deleted_and_made_again_is_taken_up_again(back_end: BackEnd) {
    let Some(bed) = start(back_end, back_end.builder().workers(2)) else { return };
    failures::delete_a_port_and_make_it_again(&bed);
}

//! The kernel's programs give the same answer as Rust, for a million random frames.

mod frames;
mod kernel;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use frames::Frames;
use kernel::maps_or_skip;
use postern_frame_io::bpf::{Program, ProgramKind};
use postern_steering::filter::{self, NEXT, SHOT};
use postern_steering::{Ownership, Packet, Steering, program};

const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn steering(workers: u16) -> Steering {
    Steering { ownership: Ownership::even(workers, KEY), addresses: frames::addresses() }
}

/// Runs `program` on `count` random frames; `expected` says what it must return. How many frames gave each answer.
fn compare(program: &Program, count: usize, seed: u64, expected: impl Fn(Packet<'_>) -> u32) -> BTreeMap<u32, usize> {
    const NOTHING: Packet<'static> = Packet { vlan: 0, ethertype: 0, bytes: &[] };
    let mut frames = Frames::new(seed);
    let mut answers = BTreeMap::new();
    let mut compared = 0;
    while compared < count {
        let frame = frames.next_frame();
        if is_refused_by_test_run(frame) {
            continue;
        }
        let (answer, _) = program.test_run(frame, 1).unwrap_or_else(|error| panic!("{frame:02x?}: {error}"));
        let expected = expected(Packet::from_ethernet(frame, None).unwrap_or(NOTHING));
        assert_eq!(answer, expected, "frame {compared}: {frame:02x?}");
        *answers.entry(answer).or_insert(0) += 1;
        compared += 1;
    }
    answers
}

/// BPF_PROG_TEST_RUN takes no frame whose IPv4 or IPv6 header is cut. Behind a tag it does not look, so that cut headers are
/// tried there.
fn is_refused_by_test_run(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => frame.len() < 14 + 20,
        [0x86, 0xdd] => frame.len() < 14 + 40,
        _ => false,
    }
}

#[test]
fn rust_and_bpf_name_the_same_owner_for_a_million_random_frames() {
    let start = Instant::now();
    for (workers, count) in [(8, 600_000), (3, 400_000)] {
        let steering = steering(workers);
        let Some(maps) = maps_or_skip(&steering) else { return };
        let program = maps.load(ProgramKind::SocketFilter, &program::fan_out(&steering.ownership)).unwrap();
        let answers = compare(&program, count, 7, |packet| u32::from(steering.owner(packet)));
        // The frames are worth something only if every worker is the answer to many of them.
        assert_eq!(answers.len(), usize::from(workers), "{answers:?}");
        assert!(answers.values().all(|&frames| frames > count / 40), "{answers:?}");
        println!("{workers} workers: {answers:?}, {:?}", start.elapsed());
    }
}

#[test]
fn tc_takes_from_the_host_exactly_what_postern_claims() {
    let steering = steering(4);
    let Some(maps) = maps_or_skip(&steering) else { return };
    let program = maps.load(ProgramKind::Classifier, &filter::hide_claimed()).unwrap();
    let claims = |packet: Packet<'_>| if steering.addresses.claims(packet) { SHOT } else { NEXT };
    let answers = compare(&program, 200_000, 11, claims);
    assert!(answers.len() == 2 && answers.values().all(|&frames| frames > 20_000), "{answers:?}");
    let everything = maps.load(ProgramKind::Classifier, &filter::hide_everything()).unwrap();
    assert_eq!(compare(&everything, 1_000, 13, |_| SHOT), BTreeMap::from([(SHOT, 1_000)]));
}

#[test]
fn moved_buckets_blocks_and_addresses_change_the_answer_of_a_loaded_program() {
    let mut steering = steering(2);
    let Some(maps) = maps_or_skip(&steering) else { return };
    let program = maps.load(ProgramKind::SocketFilter, &program::fan_out(&steering.ownership)).unwrap();
    let before = steering.clone();
    steering.ownership.buckets.rotate_left(1);
    steering.ownership.blocks.fill(5);
    steering.addresses = frames::other_addresses();
    maps.own(&steering.ownership).unwrap();
    maps.replace(&before.addresses, &steering.addresses).unwrap();
    let answers = compare(&program, 50_000, 17, |packet| u32::from(steering.owner(packet)));
    assert!(answers.get(&5).is_some_and(|&frames| frames > 500), "{answers:?}");
}

#[test]
fn steering_a_frame_costs_well_under_a_microsecond() {
    let steering = steering(4);
    let Some(maps) = maps_or_skip(&steering) else { return };
    let program = maps.load(ProgramKind::SocketFilter, &program::fan_out(&steering.ownership)).unwrap();
    let frame = frames::tcp_to_endpoint();
    let cost = (0..5).map(|_| program.test_run(&frame, 100_000).unwrap().1).min().unwrap();
    println!("owner of a TCP frame: {cost:?}");
    assert!(cost < Duration::from_micros(2), "{cost:?}");
}

//! Leases against a slow obvious model, and the promises one by one.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

const ALL: [u64; 8] = [u64::MAX; 8];
const RANGE: RangeInclusive<u16> = 1024..=65535;
const REST: u32 = 60_000;
const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn memory(capacity: &PortCapacity) -> Vec<u64> {
    // Not zeroed: an allocator must not count on it.
    vec![0xa5a5_a5a5_a5a5_a5a5; PortAllocator::region_size(capacity).div_ceil(8)]
}

fn allocator(memory: &mut [u64], capacity: PortCapacity, secret: [u64; 2]) -> PortAllocator<'_> {
    let mut ports = PortAllocator::create(memory.as_mut_bytes(), capacity, secret).unwrap();
    ports.set_owned(ALL);
    ports
}

fn lane(target: u16) -> LaneKey {
    let (snat, host) = (Ipv4Addr::new(10, 200, 0, 1), Ipv4Addr::new(10, 0, (target >> 8) as u8, target as u8));
    LaneKey { snat, target: host, target_port: 443, vpc: 3, protocol: 6 }
}

const fn at(milliseconds: u64) -> Now {
    Now::from_milliseconds(milliseconds)
}

#[test]
fn one_worker_leases_exactly_64512_ports_none_twice_and_then_refuses() {
    let capacity = PortCapacity::for_flows(65_536);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let mut seen = HashSet::new();
    for _ in 0..64_512 {
        let lease = ports.allocate(lane(1), RANGE, Need::Any, at(0)).unwrap();
        assert!(lease.port >= 1024 && !lease.early && seen.insert(lease.port));
    }
    assert_eq!(ports.allocate(lane(1), RANGE, Need::Any, at(0)), Err(Refusal::Exhausted));
    // Another target has all of them again, and a freed one comes back.
    assert!(ports.allocate(lane(2), RANGE, Need::Rested, at(0)).is_ok());
    let first = ports.find(lane(1)).unwrap();
    assert!(ports.release(first, 40_000, 0, at(0)));
    let again = ports.allocate(lane(1), RANGE, Need::Rested, at(0));
    assert_eq!(again, Ok(Lease { lane: first, port: 40_000, early: false }));
    assert_eq!(ports.in_use(), 64_513);
}

#[test]
fn any_number_of_workers_lease_every_port_once_between_them() {
    for workers in [2u16, 3, 4, 8] {
        let mut seen = HashSet::new();
        for worker in 0..workers {
            let capacity = PortCapacity::for_flows(65_536);
            let mut memory = memory(&capacity);
            let mut ports = allocator(&mut memory, capacity, SECRET);
            let mut owned = [0; 8];
            (worker..512).step_by(usize::from(workers)).for_each(|block| insert(&mut owned, block));
            ports.set_owned(owned);
            while let Ok(lease) = ports.allocate(lane(1), RANGE, Need::Rested, at(0)) {
                assert_eq!(lease.port / 128 % workers, worker);
                assert!(seen.insert(lease.port));
            }
        }
        assert_eq!(seen.len(), 64_512, "{workers} workers");
    }
}

#[test]
fn the_edges_of_a_range_that_cuts_blocks_are_leased_and_nothing_beyond() {
    let capacity = PortCapacity::for_flows(1024);
    for range in [1100..=1500, 2047..=2048, 2000..=2100, 65_500..=65_535, 1024..=1024, 1024..=1151] {
        let mut memory = memory(&capacity);
        let mut ports = allocator(&mut memory, capacity, SECRET);
        let mut seen = BTreeSet::new();
        while let Ok(lease) = ports.allocate(lane(1), range.clone(), Need::Any, at(0)) {
            assert!(seen.insert(lease.port));
        }
        assert!(seen.into_iter().eq(range));
    }
}

#[test]
fn a_freed_port_is_not_leased_again_before_its_rest_is_over_while_another_is_free() {
    let capacity = PortCapacity::for_flows(1024);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let range = 2000..=2009;
    let mut lane_index = 0;
    for _ in range.clone() {
        lane_index = ports.allocate(lane(1), range.clone(), Need::Rested, at(0)).unwrap().lane;
    }
    assert!(ports.release(lane_index, 2003, REST, at(1000)));
    assert!(ports.release(lane_index, 2007, REST, at(2000)));
    assert!(ports.release(lane_index, 2001, 0, at(2000)));
    // The free one first, even under need.
    let free = ports.allocate(lane(1), range.clone(), Need::Any, at(3000));
    assert_eq!(free, Ok(Lease { lane: lane_index, port: 2001, early: false }));
    let refused = ports.allocate(lane(1), range.clone(), Need::Rested, at(60_999));
    assert_eq!(refused, Err(Refusal::Exhausted));
    // Rested, though nobody has called `advance`.
    let rested = ports.allocate(lane(1), range.clone(), Need::Rested, at(61_000));
    assert_eq!(rested, Ok(Lease { lane: lane_index, port: 2003, early: false }));
    // Under need the remaining one goes early.
    let early = ports.allocate(lane(1), range.clone(), Need::Any, at(61_000));
    assert_eq!(early, Ok(Lease { lane: lane_index, port: 2007, early: true }));
    assert_eq!(ports.allocate(lane(1), range, Need::Any, at(61_000)), Err(Refusal::Exhausted));
}

#[test]
fn under_need_the_port_that_was_freed_first_goes_first() {
    let capacity = PortCapacity::for_flows(65_536);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let leases: Vec<_> = (0..64_512).map(|_| ports.allocate(lane(1), RANGE, Need::Rested, at(0)).unwrap()).collect();
    for (later, lease) in (0u64..).zip(&leases[..5000]) {
        assert!(ports.release(lease.lane, lease.port, REST, at(later)));
    }
    for lease in &leases[..5000] {
        let early = ports.allocate(lane(1), RANGE, Need::Any, at(5000));
        assert_eq!(early, Ok(Lease { early: true, ..*lease }));
    }
}

#[test]
fn a_pool_of_one_port_is_leased_again_after_its_rest_or_under_need_and_never_while_leased() {
    let capacity = PortCapacity::for_flows(1024);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let range = 4000..=4000;
    let mut now = 0;
    for round in 0..100u32 {
        let lease = ports.allocate(lane(1), range.clone(), Need::Any, at(now)).unwrap();
        assert_eq!((lease.port, lease.early), (4000, round % 2 == 1));
        assert_eq!(ports.allocate(lane(1), range.clone(), Need::Any, at(now)), Err(Refusal::Exhausted));
        assert!(ports.release(lease.lane, 4000, REST, at(now)));
        assert!(!ports.release(lease.lane, 4000, REST, at(now)), "a port was taken back twice");
        assert_eq!(ports.allocate(lane(1), range.clone(), Need::Rested, at(now)), Err(Refusal::Exhausted));
        now += if round % 2 == 1 { u64::from(REST) } else { 1 };
    }
    assert!(!ports.advance(at(now + u64::from(REST)), 1000));
    assert_eq!(ports.statistics(), PortStatistics::default());
}

#[test]
fn rests_end_in_slices_no_larger_than_the_budget() {
    let capacity = PortCapacity::for_flows(4096);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let leases: Vec<_> = (0..1000).map(|_| ports.allocate(lane(1), RANGE, Need::Rested, at(0)).unwrap()).collect();
    for lease in &leases {
        assert!(ports.release(lease.lane, lease.port, REST, at(0)));
    }
    assert!(!ports.advance(at(59_999), 2000));
    assert_eq!(ports.statistics().resting, 1000);
    assert!(ports.advance(at(60_000), 300));
    assert_eq!(ports.statistics().resting, 700);
    assert!(ports.advance(at(60_000), 699));
    assert!(!ports.advance(at(60_000), 1));
    assert_eq!(ports.statistics(), PortStatistics::default());
    assert_eq!(ports.find(lane(1)), None);
}

#[test]
fn when_the_ring_is_full_the_oldest_rest_ends_early_and_is_counted() {
    let capacity = PortCapacity { lanes: 2, blocks: 16, resting: 3 };
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let range = 2000..=2004;
    let leases: Vec<_> =
        range.clone().map(|_| ports.allocate(lane(1), range.clone(), Need::Rested, at(0)).unwrap()).collect();
    for lease in &leases {
        assert!(ports.release(lease.lane, lease.port, REST, at(0)));
    }
    assert_eq!((ports.statistics().resting, ports.statistics().rests_cut_short), (3, 2));
    let free: BTreeSet<_> =
        (0..2).map(|_| ports.allocate(lane(1), range.clone(), Need::Rested, at(1)).unwrap().port).collect();
    assert_eq!(free, leases[..2].iter().map(|lease| lease.port).collect());
}

#[test]
fn full_lanes_and_blocks_are_refused_by_name_and_rests_make_room_under_need() {
    let capacity = PortCapacity { lanes: 2, blocks: 2, resting: 8 };
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let one = ports.allocate(lane(1), RANGE, Need::Rested, at(0)).unwrap();
    ports.allocate(lane(2), RANGE, Need::Rested, at(0)).unwrap();
    assert_eq!(ports.allocate(lane(3), RANGE, Need::Any, at(0)), Err(Refusal::LanesFull));
    assert!(ports.release(one.lane, one.port, REST, at(0)));
    assert_eq!(ports.allocate(lane(3), RANGE, Need::Rested, at(0)), Err(Refusal::LanesFull));
    let three = ports.allocate(lane(3), RANGE, Need::Any, at(0)).unwrap();
    assert_eq!(ports.statistics().rests_cut_short, 1);
    for _ in 1..128 {
        ports.allocate(lane(3), RANGE, Need::Rested, at(0)).unwrap();
    }
    assert_eq!(ports.allocate(lane(3), RANGE, Need::Any, at(0)), Err(Refusal::BlocksFull));
    assert!(ports.is_leased(three.lane, three.port));
    // A refused first port leaves no lane behind.
    let capacity = PortCapacity { lanes: 2, blocks: 1, resting: 8 };
    let mut memory = self::memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    ports.allocate(lane(1), RANGE, Need::Rested, at(0)).unwrap();
    for target in 2..100 {
        assert_eq!(ports.allocate(lane(target), RANGE, Need::Rested, at(0)), Err(Refusal::BlocksFull));
    }
    assert_eq!(ports.statistics().lanes, 1);
}

#[test]
fn a_worker_that_owns_nothing_of_the_range_refuses_and_keeps_no_lane() {
    let capacity = PortCapacity::for_flows(1024);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    ports.set_owned([0; 8]);
    assert_eq!(ports.allocate(lane(1), RANGE, Need::Any, at(0)), Err(Refusal::Exhausted));
    let mut owned = [0; 8];
    insert(&mut owned, 20);
    ports.set_owned(owned);
    assert_eq!(ports.allocate(lane(1), 1024..=2559, Need::Any, at(0)), Err(Refusal::Exhausted));
    assert_eq!(ports.allocate(lane(1), NO_RANGE, Need::Any, at(0)), Err(Refusal::Exhausted));
    assert_eq!(ports.statistics(), PortStatistics::default());
    assert_eq!(ports.allocate(lane(1), 1024..=2560, Need::Any, at(0)).map(|lease| lease.port), Ok(2560));
}

#[test]
fn a_changed_range_or_ownership_passes_over_resting_ports_outside_of_it() {
    let capacity = PortCapacity::for_flows(4096);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let wide: Vec<_> = (0..10).map(|_| ports.allocate(lane(1), 2000..=2009, Need::Rested, at(0)).unwrap()).collect();
    for lease in &wide {
        assert!(ports.release(lease.lane, lease.port, REST, at(0)));
    }
    let narrow = ports.allocate(lane(1), 2009..=2009, Need::Any, at(1)).unwrap();
    assert_eq!((narrow.port, narrow.early), (2009, true));
    assert_eq!(ports.allocate(lane(1), 2009..=2009, Need::Any, at(1)), Err(Refusal::Exhausted));
}

#[test]
fn the_port_that_comes_next_is_hard_to_guess() {
    let capacity = PortCapacity::for_flows(65_536);
    let sequence = |secret, spacing: u32| {
        let mut memory = memory(&capacity);
        let mut ports = allocator(&mut memory, capacity, secret);
        (0..10_000)
            .map(|_| {
                let lease = ports.allocate(lane(1), RANGE, Need::Rested, at(0)).unwrap();
                if spacing > 0 {
                    assert!(ports.release(lease.lane, lease.port, 0, at(0)));
                }
                lease.port
            })
            .collect::<Vec<u16>>()
    };
    for spacing in [0, 1] {
        let ports = sequence(SECRET, spacing);
        let mut sixteenths = [0u32; 16];
        ports.iter().for_each(|port| sixteenths[usize::from(*port) / 4096] += 1);
        // 10,000 / 16 is 625; the first sixteenth lacks 1,024 of its 4,096 ports. Leases that are kept share blocks, 64 in
        // each, so a sixteenth varies by the luck of 156 blocks.
        let wanted = if spacing == 0 { 100..1600 } else { 380..750 };
        assert!(sixteenths.iter().all(|count| wanted.contains(count)), "{sixteenths:?}");
        let mut differences = HashMap::new();
        for pair in ports.windows(2) {
            *differences.entry(pair[1].wrapping_sub(pair[0])).or_insert(0u32) += 1;
        }
        let most = differences.values().max().unwrap();
        assert!(*most < 50, "one difference came {most} times");
        let other = sequence([SECRET[0], SECRET[1] ^ 1], spacing);
        let same = ports.iter().zip(&other).filter(|(left, right)| left == right).count();
        assert!(same < 20, "two secrets gave the same port {same} times of 10,000");
    }
    // Who has just seen a port of a small lane knows little of the next: it is seldom of the same block.
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let few: Vec<_> = (0..200).map(|_| ports.allocate(lane(9), RANGE, Need::Rested, at(0)).unwrap().port).collect();
    let blocks: HashSet<_> = few.iter().map(|port| port / 128).collect();
    let same = few.windows(2).filter(|pair| pair[0] / 128 == pair[1] / 128).count();
    assert!(blocks.len() >= 8 && same < 80, "{} blocks, {same} of 199 in the same as before", blocks.len());
}

#[test]
fn a_lane_with_many_open_blocks_draws_from_all_of_them() {
    let capacity = PortCapacity::for_flows(65_536);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    (0..10_000).for_each(|_| assert!(ports.allocate(lane(1), RANGE, Need::Rested, at(0)).is_ok()));
    let blocks = ports.statistics().blocks;
    let mut drawn = HashSet::new();
    for _ in 0..4000 {
        let lease = ports.allocate(lane(1), RANGE, Need::Rested, at(0)).unwrap();
        assert!(ports.release(lease.lane, lease.port, 0, at(0)));
        drawn.insert(lease.port / 128);
    }
    assert!(drawn.len() * 10 > blocks as usize * 7, "{} of {blocks} blocks", drawn.len());
}

#[test]
fn a_copied_region_opens_with_the_same_leases_rests_and_future() {
    let capacity = PortCapacity::for_flows(4096);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    let leases: Vec<_> =
        (0..900).map(|flow| ports.allocate(lane(flow % 7), RANGE, Need::Rested, at(0)).unwrap()).collect();
    for lease in &leases[..300] {
        assert!(ports.release(lease.lane, lease.port, REST, at(5)));
    }
    let list = HalfOpenList { first: 17, last: 99 };
    *ports.half_open(leases[0].lane) = list;
    let before = ports.statistics();
    let mut copy = memory.clone();
    let future = |ports: &mut PortAllocator<'_>| {
        let mut leases: Vec<_> =
            (0..500).map(|flow| ports.allocate(lane(flow % 9), RANGE, Need::Any, at(10)).unwrap()).collect();
        ports.advance(at(100_000), 1000);
        leases.extend((0..500).map(|flow| ports.allocate(lane(flow % 9), RANGE, Need::Any, at(10)).unwrap()));
        (leases, ports.statistics())
    };
    let mut opened = PortAllocator::open(copy.as_mut_bytes()).unwrap();
    assert_eq!(opened.statistics(), before);
    assert_eq!(opened.find(lane(0)), Some(leases[0].lane));
    assert_eq!(*opened.half_open(leases[0].lane), list);
    assert!(leases[300..].iter().all(|lease| opened.is_leased(lease.lane, lease.port)));
    assert!(leases[..300].iter().all(|lease| !opened.is_leased(lease.lane, lease.port)));
    let theirs = future(&mut opened);
    let mut original = PortAllocator::open(memory.as_mut_bytes()).unwrap();
    assert_eq!(future(&mut original), theirs);
}

#[test]
fn memory_that_is_no_region_is_refused_and_the_reason_named() {
    let capacity = PortCapacity { lanes: 3, blocks: 5, resting: 7 };
    let mut memory = memory(&capacity);
    let needed = PortAllocator::region_size(&capacity);
    let given = needed - 8;
    let error = PortAllocator::create(&mut memory.as_mut_bytes()[..given], capacity, SECRET).unwrap_err();
    assert_eq!(error, RegionError::TooSmall { given, needed });
    let none = PortCapacity { lanes: 0, ..capacity };
    assert_eq!(
        PortAllocator::create(memory.as_mut_bytes(), none, SECRET).unwrap_err().to_string(),
        "a capacity of 0 lanes, 5 blocks and 7 resting ports is not within 1 to 268435456 each"
    );
    assert!(matches!(PortAllocator::open(memory.as_mut_bytes()), Err(RegionError::Magic(_))));
    allocator(&mut memory, capacity, SECRET);
    assert!(PortAllocator::open(memory.as_mut_bytes()).is_ok());
    assert!(matches!(PortAllocator::open(&mut memory.as_mut_bytes()[..given]), Err(RegionError::TooSmall { .. })));
    assert!(matches!(PortAllocator::open(&mut []), Err(RegionError::TooSmall { .. })));
    memory.as_mut_bytes()[16] += 1;
    let error = PortAllocator::open(memory.as_mut_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "the SNAT port region has layout version 3, this program has 2");
    let mut shifted = vec![0u64; memory.len() + 1];
    let shifted = &mut shifted.as_mut_bytes()[1..];
    assert_eq!(PortAllocator::create(shifted, capacity, SECRET).unwrap_err(), RegionError::Misaligned);
}

#[test]
fn a_million_flows_cost_less_than_twelve_bytes_each_and_two_in_blocks() {
    const FLOWS: u32 = 1_000_000;
    let capacity = PortCapacity::for_flows(FLOWS);
    assert!(PortAllocator::region_size(&capacity) <= 12 * FLOWS as usize);
    let mut memory = memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    for flow in 0..FLOWS {
        assert!(ports.allocate(lane((flow % 100) as u16), RANGE, Need::Rested, at(0)).is_ok());
    }
    let statistics = ports.statistics();
    assert_eq!((statistics.leased, statistics.lanes), (FLOWS, 100));
    assert!(statistics.blocks as usize * size_of::<region::Block>() <= 2 * FLOWS as usize, "{statistics:?}");
    // Spread over as many lanes as there is room for, a million still fit.
    let mut memory = self::memory(&capacity);
    let mut ports = allocator(&mut memory, capacity, SECRET);
    for flow in 0..FLOWS {
        let target = (flow % capacity.lanes) as u16;
        assert!(ports.allocate(lane(target), RANGE, Need::Rested, at(0)).is_ok(), "flow {flow}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { target: u16, need: Need },
    Release { which: usize, rest: u32 },
    ReleaseAgain { which: usize },
    Pass { milliseconds: u32 },
    Advance { budget: u32 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u16..4, prop_oneof![Just(Need::Rested), Just(Need::Any)])
            .prop_map(|(target, need)| Step::Allocate { target, need }),
        6 => (any::<usize>(), prop_oneof![Just(0u32), Just(1000)]).prop_map(|(which, rest)| Step::Release { which, rest }),
        1 => any::<usize>().prop_map(|which| Step::ReleaseAgain { which }),
        2 => (0u32..400).prop_map(|milliseconds| Step::Pass { milliseconds }),
        2 => (0u32..20).prop_map(|budget| Step::Advance { budget }),
        1 => Just(Step::Reopen),
    ]
}

/// Ports of a lane in the model: leased, and resting in the order of release with the end of the rest.
#[derive(Default)]
struct Model {
    leased: HashSet<u16>,
    resting: VecDeque<(u16, u64)>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn leases_agree_with_a_slow_obvious_model(steps in proptest::collection::vec(step(), 1..400)) {
        // One range for each target, so that a lane's resting ports are all in it.
        let ranges = [5000..=5000, 5115..=5124, 6000..=6600, 1024..=1300];
        let capacity = PortCapacity { lanes: 8, blocks: 64, resting: 1024 };
        let mut memory = memory(&capacity);
        let mut ports = allocator(&mut memory, capacity, SECRET);
        let mut now = 1000u64;
        let mut model: HashMap<u16, Model> = HashMap::new();
        let mut leases: Vec<(u16, Lease)> = Vec::new();
        let mut ended: Vec<Lease> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate { target, need } => {
                    let range = ranges[usize::from(target)].clone();
                    let lane_model = model.entry(target).or_default();
                    let pending: Vec<_> = lane_model.resting.iter().filter(|(_, due)| *due > now).copied().collect();
                    let busy = lane_model.leased.len() + pending.len();
                    let result = ports.allocate(lane(target), range.clone(), need, at(now));
                    match result {
                        Ok(lease) => {
                            prop_assert!(range.contains(&lease.port));
                            prop_assert!(lane_model.leased.insert(lease.port), "{} was leased twice", lease.port);
                            let first_pending = pending.first().map(|(port, _)| *port);
                            let is_pending = pending.iter().any(|(port, _)| *port == lease.port);
                            prop_assert_eq!(lease.early, is_pending);
                            if is_pending {
                                prop_assert_eq!(need, Need::Any);
                                prop_assert_eq!(Some(lease.port), first_pending);
                                prop_assert_eq!(busy, range.len(), "a port was free");
                            }
                            lane_model.resting.retain(|(port, _)| *port != lease.port);
                            leases.push((target, lease));
                        }
                        Err(refusal) => {
                            prop_assert_eq!(refusal, Refusal::Exhausted);
                            prop_assert_eq!(if need == Need::Any { lane_model.leased.len() } else { busy }, range.len());
                        }
                    }
                }
                Step::Release { which, rest } if !leases.is_empty() => {
                    let (target, lease) = leases.swap_remove(which % leases.len());
                    prop_assert!(ports.release(lease.lane, lease.port, rest, at(now)));
                    let lane_model = model.get_mut(&target).unwrap();
                    lane_model.leased.remove(&lease.port);
                    if rest > 0 {
                        lane_model.resting.push_back((lease.port, now + u64::from(rest)));
                    }
                    ended.push(lease);
                }
                Step::ReleaseAgain { which } if !ended.is_empty() => {
                    let lease = ended[which % ended.len()];
                    if !leases.iter().any(|(_, live)| (live.lane, live.port) == (lease.lane, lease.port)) {
                        prop_assert!(!ports.release(lease.lane, lease.port, 1000, at(now)));
                    }
                }
                Step::Release { .. } | Step::ReleaseAgain { .. } => {}
                Step::Pass { milliseconds } => now += u64::from(milliseconds),
                Step::Advance { budget } => {
                    ports.advance(at(now), budget);
                }
                Step::Reopen => {
                    memory = memory.clone();
                    ports = PortAllocator::open(memory.as_mut_bytes()).unwrap();
                }
            }
            prop_assert_eq!(ports.in_use() as usize, leases.len());
        }
        for (_, lease) in leases {
            prop_assert!(ports.release(lease.lane, lease.port, 0, at(now)));
        }
        prop_assert!(!ports.advance(at(now + 1000), 2000));
        prop_assert_eq!(ports.statistics(), PortStatistics::default());
    }
}

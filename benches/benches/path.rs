//! The packet path in memory, no kernel: parsing, flow look-up, established and new flows, selection tables, snapshot
//! swap, expiry. `-- --test` runs everything once, with few flows.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use postern_benches::bed::{self, ALL_TARGETS, Bed, FRAMES, HOT_FLOWS, Protocol};
use postern_benches::packet::{Carried, frame};
use postern_flows::{FlowRecord, FlowTable};
use postern_frame_io::region::{Region, RegionOptions};
use postern_selection::MaglevTable;
use postern_wire::{AttachmentIndex, FlowKey, Frame, MacAddress, parse};

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")];

/// Whether every bench is to run just once, as a test.
fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// A number of flows; in test mode at most 4,096.
fn scaled(flows: u32) -> u32 {
    if is_test() { flows.min(4096) } else { flows }
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let socket = |last, port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), port);
    let data = Carried::Tcp { flags: Carried::ACK | Carried::PSH, sequence: 1 };
    for (carried, name) in [(data, "tcp"), (Carried::Udp, "udp")] {
        let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
        let mut bytes = frame(macs, socket(1, 1000), socket(2, 443), carried, bed::FRAME);
        let length = bytes.len();
        let frame = Frame::new(&mut bytes, 0, length).expect("a frame fits its own bytes");
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| bencher.iter(|| parse(black_box(&frame))));
    }
}

/// Bursts of 32 random keys among so many flows, found as a worker finds them: all buckets fetched, all records fetched,
/// then all looked up.
fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow_lookup");
    for flows in [1_000, 100_000, 1_000_000, 4_000_000] {
        let live = scaled(flows);
        let options = RegionOptions { populate: false, huge_pages: true };
        let mut region =
            Region::anonymous(FlowTable::region_size(live, 0), options).expect("memory for the flow table");
        let mut table = FlowTable::create(region.bytes_mut(), live, 0, [11, 22, 33, 44]).expect("a new flow table");
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(172, 20, 0, 100), 443);
        let client = |number: u32| SocketAddrV4::new(Ipv4Addr::from_bits(0x0a00_0000 + number), 40_000);
        let forward = |number| FlowKey::new(AttachmentIndex(0), 6, client(number), endpoint);
        for number in 0..live {
            let target = SocketAddrV4::new(Ipv4Addr::new(192, 168, 2, 1), (number >> 16) as u16 + 1);
            let snat = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 1), number as u16);
            let reverse = FlowKey::new(AttachmentIndex(1), 6, target, snat);
            let record = FlowRecord { forward: forward(number), reverse, idle_seconds: 350, ..FlowRecord::default() };
            table.insert(record, 1).expect("a table with room");
        }
        // A multiplicative walk meets every flow once before it meets one twice (the step is odd, not a factor).
        let mut at = 0u32;
        group.throughput(Throughput::Elements(FRAMES as u64));
        group.bench_function(BenchmarkId::from_parameter(flows), |bencher| {
            bencher.iter(|| {
                let keys: [FlowKey; FRAMES] = std::array::from_fn(|_| {
                    at = (u64::from(at) + 2_654_435_761) as u32;
                    forward(((u64::from(at) * u64::from(live)) >> 32) as u32)
                });
                let hashes = keys.map(|key| table.hash(key));
                hashes.iter().for_each(|hash| table.prefetch_bucket(table.place(*hash)));
                let found = hashes.map(|hash| table.candidate(table.place(hash), hash));
                found.iter().for_each(|found| table.prefetch_record(*found));
                for (key, hash) in keys.into_iter().zip(hashes) {
                    assert!(!table.find(key, hash).is_nothing());
                }
            });
        });
    }
}

/// Established flows through `Forwarder::process`, and the same with nothing in its place (`fixture`): subtract it.
fn established(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("established");
    for (protocol, name) in PROTOCOLS {
        for flows in [HOT_FLOWS, 1_000_000] {
            let live = scaled(flows);
            let capacity = live.next_power_of_two();
            let mut region = bed::region(capacity).expect("memory for the flows");
            let mut bed = Bed::new(region.bytes_mut(), capacity).expect("a forwarder");
            let bursts = bed::shuffled::<FRAMES>(&bed.establish(protocol, 0..live).expect("handshakes"));
            let mut at = 0;
            let mut next = || {
                at = if at + 1 < bursts.len() { at + 1 } else { 0 };
                &bursts[at]
            };
            group.throughput(Throughput::Elements(FRAMES as u64));
            group.bench_function(BenchmarkId::new(name, flows), |bencher| {
                bencher.iter(|| assert_eq!(bed.burst(next()), FRAMES));
            });
            group.bench_function(BenchmarkId::new(format!("{name}_fixture"), flows), |bencher| {
                bencher.iter(|| bed.empty_burst(next()));
            });
        }
    }
}

/// First packets: decision, port, record. Flows of earlier iterations expire outside of the measured time.
fn new_flows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("new_flow");
    // Half-open flows may have a sixteenth of the room: that must be more than the flows that are open before.
    let capacity: u32 = if is_test() { 1 << 14 } else { 1 << 17 };
    for (protocol, name) in PROTOCOLS {
        let mut region = bed::region(capacity).expect("memory for the flows");
        let mut bed = Bed::new(region.bytes_mut(), capacity).expect("a forwarder");
        bed.establish(protocol, 0..ALL_TARGETS).expect("handshakes");
        let packets = Bed::first_packets(protocol, ALL_TARGETS..capacity / 16);
        let bursts = packets.as_chunks::<FRAMES>().0;
        let mut at = 0;
        group.throughput(Throughput::Elements(FRAMES as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut time = Duration::ZERO;
                for _ in 0..iterations {
                    if at == bursts.len() {
                        at = 0;
                        // Longer than any idle time, and than the ports rest.
                        bed.advance(420);
                    }
                    let start = Instant::now();
                    let forwarded = bed.burst(&bursts[at]);
                    time += start.elapsed();
                    assert_eq!(forwarded, FRAMES);
                    at += 1;
                }
                time
            });
        });
    }
}

fn maglev(criterion: &mut Criterion) {
    let backends: Vec<(u64, u16)> = (0..1000u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15), 1)).collect();
    criterion.bench_function("maglev_build/65537_slots_1000_targets", |bencher| {
        bencher.iter(|| MaglevTable::build(black_box(&backends), 65_537).expect("a prime number of slots"));
    });
}

/// What a worker pays to take new tables, at a burst boundary; the old ones are freed by the publisher.
fn swap(criterion: &mut Criterion) {
    let mut region = bed::region(1024).expect("memory for the flows");
    let mut bed = Bed::new(region.bytes_mut(), 1024).expect("a forwarder");
    bed.establish(Protocol::Tcp, 0..512).expect("handshakes");
    let first = bed::snapshot(16, None).expect("tables");
    let second = bed::snapshot(16, Some(&first)).expect("tables");
    let mut next = Arc::new(second);
    bed.forwarder().apply(Arc::new(first));
    criterion.bench_function("snapshot_swap", |bencher| {
        bencher.iter(|| next = bed.forwarder().apply(next.clone()));
    });
}

/// A million UDP flows that all fall due while nobody looks: the whole of the housekeeping until the last is gone.
fn expiry(criterion: &mut Criterion) {
    let flows = scaled(1_000_000);
    let capacity = flows.next_power_of_two();
    let mut region = bed::region(capacity).expect("memory for the flows");
    let mut bed = Bed::new(region.bytes_mut(), capacity).expect("a forwarder");
    let packets = Bed::first_packets(Protocol::Udp, ALL_TARGETS..flows);
    let mut group = criterion.benchmark_group("expiry");
    group.sample_size(10).throughput(Throughput::Elements(u64::from(flows)));
    group.bench_function("udp_1000000", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut time = Duration::ZERO;
            for _ in 0..iterations {
                bed.establish(Protocol::Udp, 0..ALL_TARGETS).expect("handshakes");
                for burst in packets.as_chunks::<FRAMES>().0 {
                    bed.burst(burst);
                }
                bed.sleep(300);
                let start = Instant::now();
                bed.housekeeping();
                time += start.elapsed();
                assert_eq!(bed.forwarder().counters().flows.get(), 0);
            }
            time
        });
    });
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .without_plots()
}

criterion_group! {
    name = path;
    config = short();
    targets = parsing, lookup, established, new_flows, maglev, swap, expiry
}
criterion_main!(path);

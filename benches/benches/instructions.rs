//! Instructions of a packet, allocations, and bytes of a flow, as `NAME COUNT` lines.
//!
//! The program runs itself under `valgrind --tool=callgrind` twice for each case: once with a number of bursts through
//! `Forwarder::process`, once with as many bursts through the same fixture with nothing in its place (frames copied into
//! the receive buffers, verdicts looked at, received and forwarded counted). Everything else is the same in both runs, so
//! the difference, divided by the packets, is what `process` itself executes for a packet; the fixture's share appears in
//! neither. Counts are exact and repeatable: the secrets are fixed, time is passed in.
//!
//! `-- --test` runs few bursts; `-- --only NAME` runs the cases whose name contains NAME.

use std::alloc::System;
use std::process::{Command, ExitCode};

use postern_benches::bed::{self, ALL_TARGETS, Bed, BedError, Ends, FRAMES, HOT_FLOWS, Protocol, Template};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region as Allocations, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What a child process is told: case, bursts, whether to process.
const CHILD: &str = "POSTERN_INSTRUCTIONS_CASE";

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    ends: Ends,
    protocol: Protocol,
    packets: Packets,
}

#[derive(Clone, Copy, PartialEq)]
enum Packets {
    /// Bursts of 32 distinct flows out of 1,024, both directions mixed.
    Established,
    /// The same, one by one.
    EstablishedOne,
    /// Bursts of 32 first packets.
    First,
}

const fn case(name: &'static str, ends: Ends, protocol: Protocol, packets: Packets) -> Case {
    Case { name, ends, protocol, packets }
}

const CASES: [Case; 10] = [
    case("established_tcp", Ends::V4, Protocol::Tcp, Packets::Established),
    case("established_udp", Ends::V4, Protocol::Udp, Packets::Established),
    case("established_tcp_burst1", Ends::V4, Protocol::Tcp, Packets::EstablishedOne),
    case("established_udp_burst1", Ends::V4, Protocol::Udp, Packets::EstablishedOne),
    case("new_flow_tcp", Ends::V4, Protocol::Tcp, Packets::First),
    case("new_flow_udp", Ends::V4, Protocol::Udp, Packets::First),
    case("established_tcp6", Ends::V6, Protocol::Tcp, Packets::Established),
    case("established_udp6", Ends::V6, Protocol::Udp, Packets::Established),
    case("new_flow_tcp6", Ends::V6, Protocol::Tcp, Packets::First),
    case("established_nat64", Ends::Nat64, Protocol::Tcp, Packets::Established),
];

/// Room for flows.
const CAPACITY: u32 = 16_384;
/// The same where all of a run's flows are half open, of which an endpoint may have a sixteenth.
const FIRST_CAPACITY: u32 = 1 << 18;

/// What a run did.
#[derive(Debug, PartialEq)]
struct Done {
    packets: u64,
    forwarded: u64,
    allocations: u64,
}

impl Case {
    /// Sends at least `packets` packets through the fixture, with or without the forwarder in it.
    fn run(self, packets: u64, process: bool) -> Result<Done, BedError> {
        let capacity = if self.packets == Packets::First { FIRST_CAPACITY } else { CAPACITY };
        let mut region = bed::region_of(self.ends, capacity)?;
        let mut bed = Bed::between(self.ends, region.bytes_mut(), capacity)?;
        match self.packets {
            Packets::Established => {
                let bursts = bed::shuffled::<FRAMES>(&bed.establish(self.protocol, 0..HOT_FLOWS)?);
                Ok(repeat(&mut bed, &bursts, packets, process))
            }
            Packets::EstablishedOne => {
                let bursts = bed::shuffled::<1>(&bed.establish(self.protocol, 0..HOT_FLOWS)?);
                Ok(repeat(&mut bed, &bursts, packets, process))
            }
            Packets::First => {
                // Makes the neighbours known.
                bed.establish(self.protocol, 0..ALL_TARGETS)?;
                let numbers = ALL_TARGETS..ALL_TARGETS + packets as u32;
                let first = Bed::first_packets_between(self.ends, self.protocol, numbers);
                Ok(repeat(&mut bed, first.as_chunks::<FRAMES>().0, packets, process))
            }
        }
    }
}

fn repeat<const N: usize>(bed: &mut Bed<'_>, bursts: &[[Template; N]], packets: u64, process: bool) -> Done {
    let allocations = Allocations::new(ALLOCATOR);
    let mut done = Done { packets: 0, forwarded: 0, allocations: 0 };
    for burst in bursts.iter().cycle() {
        if done.packets >= packets {
            break;
        }
        let forwarded = if process { bed.burst(burst) } else { bed.empty_burst(burst) };
        done.packets += N as u64;
        done.forwarded += forwarded as u64;
    }
    done.allocations = allocations.change().allocations as u64;
    done
}

/// Bytes of memory that a flow needs: the region, and what the forwarder takes from the heap beyond a small one.
fn flow_bytes(capacity: u32, live: u32) -> Result<u64, BedError> {
    let (_, small) = fill(1024, ALL_TARGETS)?;
    let (region, heap) = fill(capacity, live)?;
    Ok((region + heap.saturating_sub(small)).div_ceil(u64::from(live)))
}

/// Bytes of the region and of the heap with so many live flows, the fixture included.
fn fill(capacity: u32, live: u32) -> Result<(u64, u64), BedError> {
    let mut region = bed::region(capacity)?;
    let heap = Allocations::new(ALLOCATOR);
    let mut bed = Bed::new(region.bytes_mut(), capacity)?;
    bed.establish(Protocol::Udp, 0..ALL_TARGETS)?;
    for start in (ALL_TARGETS..live).step_by(FRAMES) {
        for burst in Bed::first_packets(Protocol::Udp, start..start + FRAMES as u32).as_chunks::<FRAMES>().0 {
            bed.burst(burst);
        }
    }
    let change = heap.change();
    assert!(bed.forwarder().counters().flows.get() >= u64::from(live), "every first packet makes a flow");
    drop(bed);
    Ok((region.bytes().len() as u64, change.bytes_allocated.saturating_sub(change.bytes_deallocated) as u64))
}

/// Instructions that a run of this program with these arguments executes.
fn count(case: Case, packets: u64, process: bool) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .env(CHILD, format!("{} {packets} {process}", case.name))
        .output()
        .map_err(|error| format!("valgrind is needed to count instructions, and cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match collected {
        Some(instructions) if output.status.success() => Ok(instructions),
        _ => Err(format!("valgrind failed for {}: {}", case.name, text.trim())),
    }
}

/// The child's part: one case, nothing printed.
fn child(request: &str) -> Result<(), String> {
    let mut words = request.split(' ');
    let case = words.next().and_then(|name| CASES.into_iter().find(|case| case.name == name));
    let packets = words.next().and_then(|packets| packets.parse().ok());
    let (Some(case), Some(packets)) = (case, packets) else {
        return Err(format!("\"{request}\" is not a case and a number of packets"));
    };
    let process = words.next() == Some("true");
    case.run(packets, process).map(drop).map_err(|error| error.to_string())
}

fn parent(arguments: &[String]) -> Result<(), String> {
    let test = arguments.iter().any(|argument| argument == "--test");
    let only = arguments.iter().position(|argument| argument == "--only").and_then(|at| arguments.get(at + 1));
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only.as_str()));
    // Whole rounds over the 1,024 flows, and no more first packets than there is room for.
    let packets = if test { 1024 } else { 8192 };
    for case in CASES.into_iter().filter(|case| wanted(case.name)) {
        let done = case.run(packets, true).map_err(|error| error.to_string())?;
        if done.forwarded != done.packets {
            return Err(format!("{}: only {} of {} packets were forwarded", case.name, done.forwarded, done.packets));
        }
        let (with, without) = (count(case, packets, true)?, count(case, packets, false)?);
        println!("{} {}", case.name, with.saturating_sub(without) / done.packets);
        println!("{}_allocations {}", case.name, done.allocations);
    }
    if wanted("flow_bytes") {
        let (capacity, live) = if test { (1 << 14, 1 << 14) } else { (1_000_000, 1_000_000) };
        println!("flow_bytes {}", flow_bytes(capacity, live).map_err(|error| error.to_string())?);
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match std::env::var(CHILD) {
        Ok(request) => child(&request),
        Err(_) => parent(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

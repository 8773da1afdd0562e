//! Interfaces that send more slowly than they are given frames.

use postern_frame_io::Errno;

use super::*;
use crate::conformance::Kind;

/// Bytes a second that the slow interface sends: a frame of these tests each millisecond.
const SLOW: u32 = 1_000_000;

/// Makes the middle's `port0` slow; `None`, with the reason printed, where the kernel cannot.
fn slow(topology: &Topology, limit: u32) -> Option<()> {
    let index = topology.middle.interface("port0").index();
    match topology.middle.run(|| netlink::slow_down(index, SLOW, limit)) {
        Ok(()) => Some(()),
        Err(error) => {
            println!("skipped: the kernel has no token bucket filter (sch_tbf): {error}");
            None
        }
    }
}

/// The numbers of the frames that were not refused.
fn accepted(frames: &[Vec<u8>], refusals: &[(usize, Errno)]) -> Vec<Vec<u8>> {
    let refused = |at: &usize| refusals.iter().any(|(position, _)| position == at);
    (0..frames.len()).filter(|at| !refused(at)).map(|at| frames[at].clone()).collect()
}

pub(crate) fn a_full_send_buffer_is_waited_for_once_a_call_and_then_its_frames_are_refused_and_later_ones_go(
    kind: Kind,
    topology: &Topology,
) {
    let Some(()) = slow(topology, 1 << 20) else { return };
    let mut peer = receiver(&topology.left, "eth0", &small());
    let mut slow = kind.transmitter_with(&topology.middle, "port0", 16 << 10);
    let frames: Vec<_> = (0..2 * BURST as u32).map(|number| numbered(number, 1000)).collect();
    let refusals = send(slow.as_mut(), &frames, NO_VLAN);
    assert!(refusals.len() > BURST, "{} of {} were refused", refusals.len(), frames.len());
    assert!(refusals.iter().all(|(_, error)| *error == Errno::EAGAIN), "{refusals:?}");
    let statistics = slow.statistics();
    assert_eq!((statistics.accepted + statistics.refused, statistics.refused as usize), (128, refusals.len()));
    assert_eq!(statistics.waits, 2, "once for each of the two calls");
    // Not a call for each frame of which the answer is known.
    assert!(statistics.calls < 16, "{} calls", statistics.calls);

    let sent = accepted(&frames, &refusals);
    let seen: Vec<_> = collect(&mut peer, sent.len()).into_iter().map(|seen| seen.bytes).collect();
    assert_eq!(seen, sent, "what was accepted arrives, and nothing else");
    let next = [numbered(1000, 1000)];
    assert_eq!(send(slow.as_mut(), &next, NO_VLAN), []);
    assert_eq!(collect(&mut peer, 1)[0].bytes, next[0]);
}

pub(crate) fn frames_that_the_queue_of_an_interface_drops_are_refused_one_by_one_and_nothing_else_is_lost(
    kind: Kind,
    topology: &Topology,
) {
    let Some(()) = slow(topology, 10_000) else { return };
    let mut peer = receiver(&topology.left, "eth0", &small());
    let mut slow = kind.transmitter(&topology.middle, "port0");
    let frames: Vec<_> = (0..BURST as u32).map(|number| numbered(number, 1000)).collect();
    let refusals = send(slow.as_mut(), &frames, NO_VLAN);
    assert!(!refusals.is_empty() && refusals.len() < frames.len(), "{refusals:?}");
    assert!(refusals.iter().all(|(_, error)| *error == Errno::ENOBUFS), "{refusals:?}");
    let sent = accepted(&frames, &refusals);
    let seen: Vec<_> = collect(&mut peer, sent.len()).into_iter().map(|seen| seen.bytes).collect();
    assert_eq!(seen, sent, "what was accepted arrives, and nothing else");
    topology.middle.run(|| netlink::full_speed(topology.middle.interface("port0").index())).unwrap();
    assert_eq!(send(slow.as_mut(), &frames, NO_VLAN), []);
    assert_eq!(collect(&mut peer, frames.len()).len(), frames.len());
}

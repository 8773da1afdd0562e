//! How probes leave: the control-side thread puts them on the wire, because it knows the neighbours.

use std::collections::VecDeque;
use std::net::IpAddr;

use postern_measurement::Now;
use postern_tables::Snapshot;
use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN};
use postern_wire::{AttachmentIndex, PortIndex};

use super::{HealthLink, ProbePacket};
use crate::neighbours::{Neighbours, Output};

/// Packets of probes taken in a turn.
const PACKETS: usize = 256;
/// Packets that may wait for a neighbour.
const MOST_WAITING: usize = 4096;
/// How long a packet waits for its neighbour, in milliseconds. Then its sender has sent it again.
const PATIENCE: u64 = 3000;

/// Packets that wait for their neighbours.
#[derive(Debug, Default)]
pub struct ProbeEgress {
    waiting: VecDeque<(Now, ProbePacket)>,
}

impl ProbeEgress {
    /// Sends what can be sent, through `send`, and asks for neighbours that are not known.
    pub fn turn(
        &mut self,
        link: &HealthLink,
        snapshot: &Snapshot,
        neighbours: &mut Neighbours,
        now: Now,
        output: &mut Output,
        mut send: impl FnMut(PortIndex, &[u8]),
    ) {
        let old = self.waiting.len();
        let fresh = (0..PACKETS).map_while(|_| link.packets.pop());
        self.waiting.extend(fresh.map(|packet| (now.plus_milliseconds(PATIENCE), packet)));
        for at in 0..self.waiting.len() {
            let Some((until, packet)) = self.waiting.pop_front() else { break };
            let Some((attachment, neighbour)) = way(snapshot, &packet) else { continue };
            if let Some(frame) = frame(neighbours, attachment, neighbour, &packet.bytes) {
                send(frame.0, &frame.1);
                continue;
            }
            if at >= old {
                neighbours.request(
                    postern_forwarding::NeighbourRequest { attachment, address: neighbour },
                    now,
                    output,
                );
            }
            if now < until && self.waiting.len() < MOST_WAITING {
                self.waiting.push_back((until, packet));
            }
        }
    }
}

/// The attachment and the neighbour to send to.
fn way(snapshot: &Snapshot, packet: &ProbePacket) -> Option<(AttachmentIndex, IpAddr)> {
    let target: IpAddr = match packet.bytes.first()? >> 4 {
        6 => (*packet.bytes.get(24..)?.first_chunk::<16>()?).into(),
        _ => (*packet.bytes.get(16..)?.first_chunk::<4>()?).into(),
    };
    snapshot.way_to(packet.vpc, target)
}

/// The frame for a packet, and the port that it leaves on; `None` while the neighbour is not known.
fn frame(
    neighbours: &Neighbours,
    attachment: AttachmentIndex,
    neighbour: IpAddr,
    packet: &[u8],
) -> Option<(PortIndex, Vec<u8>)> {
    let station = neighbours.station(attachment, neighbour)?;
    let mut frame = Vec::with_capacity(18 + packet.len());
    frame.extend(station.mac.0);
    frame.extend(station.own_mac.0);
    if let Some(vlan) = station.vlan {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    let ethertype = if neighbour.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    frame.extend(ethertype.to_be_bytes());
    frame.extend_from_slice(packet);
    Some((station.port, frame))
}

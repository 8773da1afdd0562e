//! Neighbor Discovery (RFC 4861): the same rules as with ARP, in messages of ICMPv6. Questions come from an address that Postern
//! holds, where it holds one in the VPC: on a port that it shares with the host, answers to that one are Postern's. Else they
//! come from the link-local address that our MAC address makes.

use std::net::{IpAddr, Ipv6Addr};

use postern_forwarding::NeighbourEvent;
use postern_measurement::Now;
use postern_wire::nd::{ALL_NODES, Kind, NeighbourPacket, link_local, multicast_mac, solicited_node};
use postern_wire::{AttachmentIndex, MacAddress, PortIndex};

use super::entries::Ask;
use super::neighbour_frame::{NeighbourFrame, ReceivedDiscovery};
use super::{Neighbours, Output, attachment_of};

/// What is said of an address of ours to whom did not ask.
const UNASKED: Kind = Kind::Advertisement { router: false, solicited: false, overrides: true };
/// What is said of it to whom asked.
const ASKED: Kind = Kind::Advertisement { router: false, solicited: true, overrides: true };

impl Neighbours {
    pub(super) fn receive_discovery(
        &mut self,
        port: PortIndex,
        message: &ReceivedDiscovery,
        now: Now,
        output: &mut Output,
    ) {
        let attachment = self.snapshot.attachment(port, message.vlan);
        let Some((attachment, own)) = attachment.and_then(|at| Some((at, self.mac(at)?))) else {
            self.counters.ignored += 1;
            return;
        };
        // RFC 4861 §7.2.3: the option may be left out of a message to a single station.
        let mac = message.packet.mac.unwrap_or(message.source);
        if mac.is_group() || mac == MacAddress::ZERO || mac == own || message.source == own {
            self.counters.ignored += 1;
            return;
        }
        match message.packet.kind {
            Kind::Solicitation => self.answer_solicitation(attachment, own, mac, &message.packet, now, output),
            Kind::Advertisement { solicited, .. } => {
                let NeighbourPacket { destination, target, .. } = message.packet;
                let to_us = message.destination == own && destination == self.wide_sender_for(attachment, own, target);
                self.learn_wide(attachment, mac, target, solicited && to_us, now, output);
            }
        }
    }

    fn answer_solicitation(
        &mut self,
        attachment: AttachmentIndex,
        own: MacAddress,
        mac: MacAddress,
        packet: &NeighbourPacket,
        now: Now,
        output: &mut Output,
    ) {
        let NeighbourPacket { source, target, .. } = *packet;
        if self.snapshot.local6(attachment, source).is_some() {
            self.defend(attachment, source.into(), now, output);
            return;
        }
        if self.snapshot.local6(attachment, target).is_some() || target == link_local(own) {
            // Who has no address yet asks whether it may take this one (RFC 4862 §5.4.3): all are told that it may not.
            let (to, at, kind) = if source.is_unspecified() {
                (ALL_NODES, multicast_mac(ALL_NODES), UNASKED)
            } else {
                (source, mac, ASKED)
            };
            let answer = NeighbourPacket { source: target, destination: to, kind, target, mac: Some(own) };
            if self.send_discovery(attachment, at, &answer, output) {
                self.counters.answered += 1;
            }
        }
        if !source.is_unspecified() {
            self.suspect(attachment, source.into(), mac, now, output);
        }
    }

    fn learn_wide(
        &mut self,
        attachment: AttachmentIndex,
        mac: MacAddress,
        target: Ipv6Addr,
        to_us: bool,
        now: Now,
        output: &mut Output,
    ) {
        let address = IpAddr::V6(target);
        if self.snapshot.local6(attachment, target).is_some() {
            self.defend(attachment, address, now, output);
        } else if !to_us || !self.entries.answer((attachment, address), mac, now) {
            self.counters.unsolicited += 1;
            self.suspect(attachment, address, mac, now, output);
        } else if self.entries.take_changed() {
            output.events.push(NeighbourEvent { attachment, address, mac: Some(mac) });
        }
    }

    /// Tells all nodes of the link where an address of ours is (RFC 4861 §7.2.6).
    pub(super) fn announce_wide(&mut self, attachment: AttachmentIndex, address: Ipv6Addr, output: &mut Output) {
        let mac = self.mac(attachment);
        let packet = NeighbourPacket { source: address, destination: ALL_NODES, kind: UNASKED, target: address, mac };
        if self.send_discovery(attachment, multicast_mac(ALL_NODES), &packet, output) {
            self.counters.announced += 1;
        }
    }

    /// Asks for a neighbour: those who may be it, or the station that we know (RFC 4861 §7.2.2, §7.3.3).
    pub(super) fn solicit(&mut self, attachment: AttachmentIndex, address: Ipv6Addr, ask: Ask, output: &mut Output) {
        let Some(own) = self.mac(attachment) else { return };
        let (destination, mac) = match ask {
            Ask::Everyone => (solicited_node(address), multicast_mac(solicited_node(address))),
            Ask::Known(mac) => (address, mac),
        };
        let packet = NeighbourPacket {
            source: self.wide_sender_for(attachment, own, address),
            destination,
            kind: Kind::Solicitation,
            target: address,
            mac: Some(own),
        };
        if self.send_discovery(attachment, mac, &packet, output) {
            self.counters.asked += 1;
        }
    }

    /// The address that we ask with: one that Postern holds in the VPC, in the on-link prefix of `address` if it can be; the
    /// link-local address where Postern holds none.
    fn wide_sender_for(&self, attachment: AttachmentIndex, own: MacAddress, address: Ipv6Addr) -> Ipv6Addr {
        let held = attachment_of(&self.snapshot, attachment).and_then(|at| Some((at, self.held.get(&at.vpc)?)));
        let Some((attachment, held)) = held else { return link_local(own) };
        let first_from = |network: Ipv6Addr| match held.range(IpAddr::V6(network)..).next() {
            Some(IpAddr::V6(held)) => Some(*held),
            _ => None,
        };
        let mut near = attachment.prefixes6.iter().filter(|prefix| prefix.contains(address));
        let near = near.find_map(|prefix| first_from(prefix.network()).filter(|held| prefix.contains(*held)));
        near.or_else(|| first_from(Ipv6Addr::UNSPECIFIED)).unwrap_or_else(|| link_local(own))
    }

    /// Sends a message; false if the attachment or its port is gone.
    fn send_discovery(
        &self,
        attachment: AttachmentIndex,
        destination: MacAddress,
        packet: &NeighbourPacket,
        output: &mut Output,
    ) -> bool {
        let Some((at, own)) = attachment_of(&self.snapshot, attachment).zip(self.mac(attachment)) else {
            return false;
        };
        output.frames.push(NeighbourFrame::discovery(at.port, at.vlan, own, destination, packet));
        true
    }
}

#[cfg(test)]
mod tests;

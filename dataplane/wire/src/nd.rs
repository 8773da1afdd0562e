//! Neighbor Discovery (RFC 4861): neighbor solicitations and advertisements, which do for IPv6 what ARP does for IPv4.

use std::net::Ipv6Addr;

use crate::address::MacAddress;
use crate::icmpv6::{self, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use crate::ipv6::{self, AddressPair};
use crate::parse::PROTOCOL_ICMPV6;

/// The hop limit of every message: no router has passed it on (RFC 4861 §7.1).
pub const HOP_LIMIT: u8 = 255;
/// Longest packet that [`NeighbourPacket::write`] makes, IPv6 header included, in bytes.
pub const LONGEST: usize = ipv6::HEADER + MESSAGE + OPTION;
/// Length of a message without options, in bytes.
const MESSAGE: usize = 24;
/// Length of a link-layer address option for Ethernet, in bytes.
const OPTION: usize = 8;
/// Kind of the option with the sender's MAC address, in a solicitation.
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
/// Kind of the option with the target's MAC address, in an advertisement.
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// Most options that are looked at.
const MOST_OPTIONS: usize = 16;

/// `ff02::1`, all nodes of a link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Who has the target address? (type 135)
    Solicitation,
    /// The target address is here. (type 136)
    Advertisement {
        /// The sender is a router.
        router: bool,
        /// The message answers a solicitation.
        solicited: bool,
        /// What is known of the address is to be replaced.
        overrides: bool,
    },
}

/// A neighbor solicitation or advertisement with its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourPacket {
    /// Source address; unspecified in a solicitation by which the sender checks that nobody has the address (RFC 4862 §5.4).
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Solicitation or advertisement.
    pub kind: Kind,
    /// The address that the message is about.
    pub target: Ipv6Addr,
    /// The option with the source's (solicitation) or target's (advertisement) MAC address.
    pub mac: Option<MacAddress>,
}

impl NeighbourPacket {
    /// Reads an IPv6 packet, from its header to its end, Ethernet padding excluded. `None` if it is neither of the two
    /// messages or fails one of the checks of RFC 4861 §7.1.1 and §7.1.2: hop limit 255, checksum, code 0, lengths, a
    /// target that is no multicast address, and what an unspecified source allows.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let header: &[u8; ipv6::HEADER] = packet.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let message = packet.get(ipv6::HEADER..ipv6::HEADER + length)?;
        let addresses = ipv6::addresses(packet, 0)?;
        let fixed: &[u8; MESSAGE] = message.first_chunk()?;
        if header[0] >> 4 != 6
            || header[ipv6::NEXT_HEADER] != PROTOCOL_ICMPV6
            || header[ipv6::HOP_LIMIT] != HOP_LIMIT
            || fixed[1] != 0
            || !icmpv6::checksum_is_right(message, addresses)
        {
            return None;
        }
        let (kind, option) = match fixed[0] {
            NEIGHBOUR_SOLICITATION => (Kind::Solicitation, SOURCE_LINK_LAYER_ADDRESS),
            NEIGHBOUR_ADVERTISEMENT => {
                let has = |bit: u8| fixed[4] & bit != 0;
                let kind = Kind::Advertisement { router: has(0x80), solicited: has(0x40), overrides: has(0x20) };
                (kind, TARGET_LINK_LAYER_ADDRESS)
            }
            _ => return None,
        };
        let (source, destination) = (ipv6::source(addresses), ipv6::destination(addresses));
        let target = Ipv6Addr::from_octets(*fixed[8..].first_chunk()?);
        let mac = link_layer_address(&message[MESSAGE..], option)?;
        let is_wrong = target.is_multicast()
            || source.is_multicast()
            || match kind {
                Kind::Solicitation => {
                    source.is_unspecified() && (mac.is_some() || destination != solicited_node(target))
                }
                Kind::Advertisement { solicited, .. } => destination.is_multicast() && solicited,
            };
        (!is_wrong).then_some(Self { source, destination, kind, target, mac })
    }

    /// Writes the packet, from its IPv6 header on, and returns its length, at most [`LONGEST`].
    pub fn write(&self, out: &mut [u8; LONGEST]) -> usize {
        let length = MESSAGE + if self.mac.is_some() { OPTION } else { 0 };
        let addresses: AddressPair = ipv6::pair(self.source, self.destination);
        let Some((header, message)) = out.split_first_chunk_mut() else { return 0 };
        ipv6::write_header(header, &addresses, PROTOCOL_ICMPV6, length as u16, HOP_LIMIT);
        let message = &mut message[..length];
        message.fill(0);
        let option = match self.kind {
            Kind::Solicitation => {
                message[0] = NEIGHBOUR_SOLICITATION;
                SOURCE_LINK_LAYER_ADDRESS
            }
            Kind::Advertisement { router, solicited, overrides } => {
                message[0] = NEIGHBOUR_ADVERTISEMENT;
                message[4] = u8::from(router) << 7 | u8::from(solicited) << 6 | u8::from(overrides) << 5;
                TARGET_LINK_LAYER_ADDRESS
            }
        };
        message[8..MESSAGE].copy_from_slice(&self.target.octets());
        if let Some(mac) = self.mac {
            message[MESSAGE] = option;
            message[MESSAGE + 1] = 1;
            message[MESSAGE + 2..].copy_from_slice(&mac.0);
        }
        icmpv6::complete_checksum(message, &addresses);
        ipv6::HEADER + length
    }
}

/// The MAC address in the first option of this kind, if there is one; `None` outside if an option is malformed (RFC 4861
/// §4.6: a length of zero, or beyond the packet).
fn link_layer_address(mut options: &[u8], wanted: u8) -> Option<Option<MacAddress>> {
    let mut found = None;
    for _ in 0..MOST_OPTIONS {
        if options.is_empty() {
            return Some(found);
        }
        let length = usize::from(*options.get(1)?) * 8;
        if length == 0 {
            return None;
        }
        let option = options.get(..length)?;
        if option[0] == wanted && length == OPTION && found.is_none() {
            found = option[2..].first_chunk().map(|octets| MacAddress(*octets));
        }
        options = &options[length..];
    }
    None
}

/// The solicited-node multicast address of an address (RFC 4291 §2.7.1): `ff02::1:ff` and its last three octets.
#[must_use]
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a as u16, (b as u16) << 8 | c as u16)
}

/// The MAC address that frames to a multicast address have (RFC 2464 §7): `33:33` and its last four octets.
#[must_use]
pub const fn multicast_mac(address: Ipv6Addr) -> MacAddress {
    let [.., a, b, c, d] = address.octets();
    MacAddress([0x33, 0x33, a, b, c, d])
}

/// The link-local address that a MAC address makes (RFC 4291 §2.5.6, appendix A): `fe80::` and its modified EUI-64.
#[must_use]
pub const fn link_local(MacAddress([a, b, c, d, e, f]): MacAddress) -> Ipv6Addr {
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = Ipv6Addr> {
        any::<[u8; 15]>().prop_map(|rest| {
            let mut octets = [0xfd; 16];
            octets[1..].copy_from_slice(&rest);
            Ipv6Addr::from_octets(octets)
        })
    }

    fn packet() -> impl Strategy<Value = NeighbourPacket> {
        let kind = prop_oneof![
            Just(Kind::Solicitation),
            any::<(bool, bool, bool)>().prop_map(|(router, solicited, overrides)| Kind::Advertisement {
                router,
                solicited,
                overrides
            })
        ];
        (address(), address(), kind, address(), proptest::option::of(any::<[u8; 6]>())).prop_map(
            |(source, destination, kind, target, mac)| NeighbourPacket {
                source,
                destination,
                kind,
                target,
                mac: mac.map(MacAddress),
            },
        )
    }

    proptest! {
        #[test]
        fn ipv6_neighbour_messages_survive_writing_and_etherparse_finds_them_right(packet in packet()) {
            let mut bytes = [0xee; LONGEST];
            let length = packet.write(&mut bytes);
            prop_assert_eq!(NeighbourPacket::parse(&bytes[..length]), Some(packet));
            let sliced = etherparse::SlicedPacket::from_ip(&bytes[..length]).unwrap();
            let Some(etherparse::TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("no ICMPv6") };
            prop_assert!(icmp.is_checksum_valid(packet.source.octets(), packet.destination.octets()));
            let wanted = if packet.kind == Kind::Solicitation { 135 } else { 136 };
            prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (wanted, 0));
        }

        #[test]
        fn ipv6_neighbour_messages_that_were_damaged_are_refused(packet in packet(), at in 0usize..LONGEST, bit in 0u32..8) {
            let mut bytes = [0; LONGEST];
            let length = packet.write(&mut bytes);
            let at = at % length;
            bytes[at] ^= 1 << bit;
            // Traffic class and flow label are in no sum.
            let unprotected = at < 4 && !(at == 0 && bit >= 4);
            prop_assert_eq!(NeighbourPacket::parse(&bytes[..length]).is_some(), unprotected);
        }

        #[test]
        fn no_options_make_it_panic(options in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = [0; LONGEST];
            let mac = None;
            let (source, target) = (link_local(MacAddress([2; 6])), link_local(MacAddress([4; 6])));
            let packet = NeighbourPacket { source, destination: target, kind: Kind::Solicitation, target, mac };
            let length = packet.write(&mut bytes);
            let mut bytes = [&bytes[..length], &options].concat();
            let payload = (bytes.len() - 40) as u16;
            bytes[4..6].copy_from_slice(&payload.to_be_bytes());
            let addresses = *ipv6::addresses(&bytes, 0).unwrap();
            icmpv6::complete_checksum(&mut bytes[40..], &addresses);
            let _ = NeighbourPacket::parse(&bytes);
        }
    }

    #[test]
    fn an_ipv6_address_check_has_no_source_and_no_option_and_goes_to_the_solicited_node_address() {
        let target: Ipv6Addr = "2001:db8::1:2:3".parse().unwrap();
        let packet = NeighbourPacket {
            source: Ipv6Addr::UNSPECIFIED,
            destination: solicited_node(target),
            kind: Kind::Solicitation,
            target,
            mac: None,
        };
        let read = |packet: NeighbourPacket| {
            let mut bytes = [0; LONGEST];
            let length = packet.write(&mut bytes);
            NeighbourPacket::parse(&bytes[..length])
        };
        assert_eq!(read(packet), Some(packet));
        assert_eq!(read(NeighbourPacket { mac: Some(MacAddress([2; 6])), ..packet }), None);
        assert_eq!(read(NeighbourPacket { destination: ALL_NODES, ..packet }), None);
        assert_eq!(read(NeighbourPacket { target: ALL_NODES, source: target, ..packet }), None);
        let solicited = Kind::Advertisement { router: false, solicited: true, overrides: true };
        let answer = NeighbourPacket { source: target, destination: ALL_NODES, kind: solicited, ..packet };
        assert_eq!(read(answer), None);
    }

    #[test]
    fn ipv6_addresses_that_follow_from_others_are_those_of_the_rfcs() {
        assert_eq!(solicited_node("4037::01:800:200e:8c6c".parse().unwrap()).to_string(), "ff02::1:ff0e:8c6c");
        assert_eq!(multicast_mac(ALL_NODES).to_string(), "33:33:00:00:00:01");
        assert_eq!(
            link_local(MacAddress([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde])).to_string(),
            "fe80::3656:78ff:fe9a:bcde"
        );
    }
}

//! Finding the inner network header of a tunnelled super-frame. The tunnel is not known by its UDP port, which the rewrite
//! may have changed, but by its headers, which must end exactly where the checksum starts.

use postern_wire::ipv6::{DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING};
use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN};
use postern_wire::{ipv4, ipv6};

use super::{Network, UDP_HEADER};

/// EtherType of an Ethernet frame in Geneve (Transparent Ethernet Bridging).
const ETHERTYPE_BRIDGING: u16 = 0x6558;
/// Length of the VXLAN header (RFC 7348 §5) and of Geneve's without options (RFC 8926 §3.4), in bytes.
const TUNNEL_HEADER: usize = 8;
/// The flag that a VXLAN header must have: the VNI is valid.
const VXLAN_VNI_VALID: u8 = 0x08;
/// Length of an Ethernet header and of a VLAN tag, in bytes.
const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// Most VLAN tags that are passed over.
const MOST_TAGS: usize = 2;
/// Most IPv6 extension headers that are passed over.
const MOST_EXTENSIONS: usize = 4;
/// Kind and offset of the network header in the tunnel whose UDP header is at `udp`, if that packet's transport header, of
/// `protocol`, is at `transport`.
pub(super) fn inner_network(bytes: &[u8], udp: usize, transport: usize, protocol: u8) -> Option<(Network, usize)> {
    let tunnel = udp + UDP_HEADER;
    let header: &[u8; TUNNEL_HEADER] = bytes.get(tunnel..)?.first_chunk()?;
    let ends = |(ethertype, l3): (u16, usize)| {
        let network = network_of(ethertype)?;
        (network_end(bytes, network, l3, protocol)? == transport).then_some((network, l3))
    };
    let vxlan = (header[0] & VXLAN_VNI_VALID != 0)
        .then(|| behind_ethernet(bytes, tunnel + TUNNEL_HEADER))
        .flatten()
        .and_then(ends);
    vxlan.or_else(|| {
        // Version 0 in the upper two bits, option length in words of four bytes in the rest.
        let options = (header[0] >> 6 == 0).then(|| usize::from(header[0] & 0x3f) * 4)?;
        let inner = tunnel + TUNNEL_HEADER + options;
        match u16::from_be_bytes([header[2], header[3]]) {
            ETHERTYPE_BRIDGING => ends(behind_ethernet(bytes, inner)?),
            ethertype => ends((ethertype, inner)),
        }
    })
}

fn network_of(ethertype: u16) -> Option<Network> {
    match ethertype {
        ETHERTYPE_IPV4 => Some(Network::V4),
        ETHERTYPE_IPV6 => Some(Network::V6),
        _ => None,
    }
}

/// EtherType and offset of what lies behind an Ethernet header and its VLAN tags.
fn behind_ethernet(bytes: &[u8], at: usize) -> Option<(u16, usize)> {
    let mut next = at + ETHERNET;
    for _ in 0..=MOST_TAGS {
        let ethertype = u16::from_be_bytes(*bytes.get(next - 2..)?.first_chunk()?);
        if !matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
            return Some((ethertype, next));
        }
        next += VLAN_TAG;
    }
    None
}

/// Where the network header at `l3` with its options or extensions ends, if `protocol` follows it and it is no fragment.
fn network_end(bytes: &[u8], network: Network, l3: usize, protocol: u8) -> Option<usize> {
    let packet = bytes.get(l3..)?;
    match network {
        Network::V4 => {
            let ip = packet.first_chunk::<{ ipv4::HEADER }>()?;
            let length = ipv4::header_length(ip[0])?;
            let fragment = u16::from_be_bytes([ip[ipv4::FRAGMENT], ip[ipv4::FRAGMENT + 1]]) & 0x3fff;
            (ip[ipv4::PROTOCOL] == protocol && fragment == 0).then_some(l3 + length)
        }
        Network::V6 => {
            let ip = packet.first_chunk::<{ ipv6::HEADER }>()?;
            let (mut next, mut at) = (ip[6], ipv6::HEADER);
            for _ in 0..MOST_EXTENSIONS {
                if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
                    break;
                }
                let [following, length] = *packet.get(at..)?.first_chunk::<2>()?;
                next = following;
                at += (usize::from(length) + 1) * 8;
            }
            (ip[0] >> 4 == 6 && next == protocol).then_some(l3 + at)
        }
    }
}

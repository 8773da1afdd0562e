//! One look at a received frame: every check that a packet must pass before anything is decided, and the offsets and
//! flow key that all later steps use. Nothing behind this point reads outside what was checked here.

use crate::checksum::fold;
use crate::frame::{Frame, NO_VLAN};
use crate::ipv6::{self, ExtensionError};
use crate::key::{AttachmentIndex, FlowKey};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of an IEEE 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an IEEE 802.1ad service tag.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// What kind of packet a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketKind {
    /// A whole TCP segment (or super-segment); the key has both ports.
    Tcp,
    /// A whole UDP datagram (or a run of them); the key has both ports.
    Udp,
    /// ICMP; the key's port bytes are zero.
    Icmp,
    /// A fragment of any protocol, the first included (RFC 791: offset or more-fragments set); port bytes zero. Of IPv6 the
    /// eight bytes before `l4` are the fragment header, and the key's protocol is what that says comes next; an atomic
    /// fragment (RFC 6946) is no fragment.
    Fragment,
    /// Any other IP protocol; port bytes zero.
    OtherProtocol,
    /// ARP for IPv4 over Ethernet; see [`crate::arp`].
    Arp,
    /// ICMPv6 other than Neighbor Discovery; port bytes zero.
    Icmpv6,
    /// One of the five messages of Neighbor Discovery (RFC 4861 §4); see [`crate::nd`]. Port bytes zero.
    NeighbourDiscovery,
}

/// Why a frame cannot be understood. Each is a drop reason of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum ParseError {
    /// Shorter than its headers say.
    #[error("the frame ends inside a header")]
    Truncated,
    /// An EtherType that is none of IPv4, IPv6 and ARP.
    #[error("the EtherType is none of IPv4, IPv6 and ARP")]
    EtherType,
    /// IP version other than the EtherType's, or an IPv4 header length below 20 bytes.
    #[error("the IP version or header length is impossible")]
    IpHeader,
    /// Total or payload length below the header or beyond the frame.
    #[error("the IP total or payload length does not fit the frame")]
    IpLength,
    /// The IPv4 header checksum is wrong.
    #[error("the IPv4 header checksum is wrong")]
    IpChecksum,
    /// TCP data offset below 5 words or beyond the packet.
    #[error("the TCP data offset is impossible")]
    TcpHeader,
    /// UDP length below 8 or beyond the packet.
    #[error("the UDP length does not fit the packet")]
    UdpLength,
    /// A UDP datagram over IPv6 without a checksum (RFC 8200 §8.1).
    #[error("the UDP datagram has no checksum, which IPv6 does not allow")]
    UdpChecksum,
    /// Extension headers of IPv6 that end too late or ask for what is not done; see [`ExtensionError`].
    #[error("the IPv6 extension headers are too many or too long, or have a routing header that is to be followed")]
    Extensions,
    /// The device said that a checksum starts where no L4 header of this packet starts, or a segmentation type that
    /// does not match the protocol.
    #[error("the offload state does not match the packet")]
    Offload,
}

/// What [`parse`] found. All offsets count from the frame's first byte and lie within it.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Addresses, ports and protocol, with attachment 0. Of IPv6 without address words, which need a secret;
    /// [`ipv6::addresses`] gives the addresses.
    pub key: FlowKey,
    /// Kind of packet.
    pub kind: PacketKind,
    /// TCP flags (RFC 9293 §3.1, CWR…FIN), zero otherwise.
    pub tcp_flags: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Offset of the network header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset just behind the IP datagram; Ethernet padding and trailers lie behind it.
    pub end: u32,
    /// 802.1Q VLAN identifier, 0 for none or for a priority tag.
    pub vlan: u16,
}

/// Reads two big-endian bytes.
#[inline]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Checks a frame from the Ethernet header to the transport header.
///
/// Checked: lengths of all headers, the IPv4 header checksum, the UDP length. Not checked: transport checksums, which
/// are updated incrementally, so that a wrong one stays wrong. One 802.1Q tag is understood, in the frame or beside it.
/// Extension headers of IPv6 are walked over as far as [`ipv6::upper`] goes.
///
/// # Errors
/// A [`ParseError`] names the first check that failed.
#[inline]
pub fn parse(frame: &Frame<'_>) -> Result<Parsed, ParseError> {
    let bytes = frame.bytes();
    // 34 bytes hold every header up to and including a plain IPv4 header.
    let Some(head) = bytes.first_chunk::<34>() else {
        return parse_short(frame);
    };
    let ethertype = u16::from_be_bytes([head[12], head[13]]);
    if ethertype == ETHERTYPE_IPV4 {
        let vlan = if frame.vlan == NO_VLAN { 0 } else { frame.vlan & 0x0fff };
        parse_ipv4(bytes, 14, vlan, frame)
    } else {
        parse_uncommon(frame, ethertype)
    }
}

/// A frame that is too short for an IPv4 header can only be ARP with its padding cut, or broken.
#[cold]
fn parse_short(frame: &Frame<'_>) -> Result<Parsed, ParseError> {
    let bytes = frame.bytes();
    if bytes.len() < 14 {
        return Err(ParseError::Truncated);
    }
    parse_uncommon(frame, be16(bytes, 12))
}

#[cold]
fn parse_uncommon(frame: &Frame<'_>, ethertype: u16) -> Result<Parsed, ParseError> {
    let bytes = frame.bytes();
    let (mut ethertype, mut l3, mut vlan) =
        (ethertype, 14, if frame.vlan == NO_VLAN { 0 } else { frame.vlan & 0x0fff });
    if ethertype == ETHERTYPE_VLAN && frame.vlan == NO_VLAN {
        if bytes.len() < 18 {
            return Err(ParseError::Truncated);
        }
        vlan = be16(bytes, 14) & 0x0fff;
        ethertype = be16(bytes, 16);
        l3 = 18;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(bytes, l3, vlan, frame),
        ETHERTYPE_IPV6 => parse_ipv6(bytes, l3, vlan, frame),
        ETHERTYPE_ARP if bytes.len() >= l3 + crate::arp::LENGTH => Ok(Parsed {
            key: FlowKey::default(),
            kind: PacketKind::Arp,
            tcp_flags: 0,
            ttl: 0,
            l3: l3 as u16,
            l4: l3 as u16,
            end: (l3 + crate::arp::LENGTH) as u32,
            vlan,
        }),
        ETHERTYPE_ARP => Err(ParseError::Truncated),
        _ => Err(ParseError::EtherType),
    }
}

/// Bytes of a plain packet's headers: Ethernet, IPv4 without options, TCP without options.
pub const PLAIN: usize = 54;

/// The common case of [`parse`]: an untagged frame with an IPv4 header without options that carries a whole TCP segment
/// or UDP datagram, in at least [`PLAIN`] bytes. All offsets are fixed, so nothing is looked for and little is compared.
///
/// `head` is the start of a frame of `length` bytes that is no super-frame. Gives the key, on no attachment yet; `None`
/// for everything that is not plain or not right: [`parse`] tells which.
#[inline(always)]
#[must_use]
pub fn parse_plain(head: &[u8; PLAIN], length: usize) -> Option<FlowKey> {
    let total = plain_length(head);
    // Identification, flags and offset, time to live, protocol, checksum.
    let middle = word::<8>(head, 18);
    // EtherType 0x0800; version 4, header length 5; neither an offset nor more fragments.
    if [head[12], head[13]] != [8, 0]
        || head[14] != 0x45
        || middle & 0xff3f_0000 != 0
        || usize::from(total) + 14 > length
    {
        return None;
    }
    // The sum of all words folds to all ones if it is right (RFC 1071 §1): as it is not zero, if 0xffff divides it. So
    // it does after any fold; this is the one to 64 bits.
    let addresses = word::<8>(head, 26);
    let (sum, carry) = middle.carrying_add(word::<4>(head, 14), false);
    let (sum, carry) = sum.carrying_add(addresses, carry);
    if sum.wrapping_add(u64::from(carry)) % 0xffff != 0 {
        return None;
    }
    // Headers and, for UDP, its length must lie within the packet.
    let protocol = (middle >> 40) as u8;
    if protocol == PROTOCOL_TCP {
        let header = u16::from(head[46] >> 4) * 4;
        if header < 20 || header + 20 > total {
            return None;
        }
    } else {
        let datagram = u32::from(u16::from_be_bytes([head[38], head[39]]));
        if protocol != PROTOCOL_UDP || datagram < 8 || datagram + 20 > u32::from(total) {
            return None;
        }
    }
    Some(FlowKey::from_wire(AttachmentIndex(0), protocol, addresses, word::<4>(head, 34) as u32))
}

/// `N` bytes of a plain packet, at most eight, as a little-endian integer.
#[inline(always)]
fn word<const N: usize>(head: &[u8; PLAIN], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(&head[at..at + N]);
    u64::from_le_bytes(bytes)
}

/// Length of the IP datagram of a plain packet, in bytes.
#[inline(always)]
#[must_use]
pub const fn plain_length(head: &[u8; PLAIN]) -> u16 {
    u16::from_be_bytes([head[16], head[17]])
}

/// Time to live of a plain packet.
#[inline(always)]
#[must_use]
pub const fn plain_ttl(head: &[u8; PLAIN]) -> u8 {
    head[22]
}

/// TCP flags of a plain packet that carries TCP.
#[inline(always)]
#[must_use]
pub const fn plain_tcp_flags(head: &[u8; PLAIN]) -> u8 {
    head[47]
}

/// All that [`parse`] finds in a plain packet, whose key [`parse_plain`] has given.
#[must_use]
pub fn plain(head: &[u8; PLAIN], key: FlowKey) -> Parsed {
    let tcp = key.protocol() == PROTOCOL_TCP;
    Parsed {
        key,
        kind: if tcp { PacketKind::Tcp } else { PacketKind::Udp },
        tcp_flags: if tcp { plain_tcp_flags(head) } else { 0 },
        ttl: plain_ttl(head),
        l3: 14,
        l4: 34,
        end: u32::from(plain_length(head)) + 14,
        vlan: 0,
    }
}

#[inline]
fn parse_ipv4(bytes: &[u8], l3: usize, vlan: u16, frame: &Frame<'_>) -> Result<Parsed, ParseError> {
    let packet = bytes.get(l3..).ok_or(ParseError::Truncated)?;
    let Some(ip) = packet.first_chunk::<20>() else {
        return Err(ParseError::Truncated);
    };
    let header_length = usize::from(ip[0] & 0x0f) * 4;
    if ip[0] != 0x45 && (ip[0] >> 4 != 4 || header_length < 20) {
        return Err(ParseError::IpHeader);
    }
    let total_length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    if total_length < header_length || total_length > packet.len() {
        return Err(ParseError::IpLength);
    }
    let word = |at: usize| u64::from(u32::from_le_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]));
    let mut sum = word(0) + word(4) + word(8) + word(12) + word(16);
    if header_length > 20 {
        sum += crate::checksum::sum(&packet[20..header_length]);
    }
    if fold(sum) != 0xffff {
        return Err(ParseError::IpChecksum);
    }
    let addresses = word(12) | word(16) << 32;
    let protocol = ip[9];
    let l4 = l3 + header_length;
    let transport = &packet[header_length..total_length];
    let is_fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    let (kind, ports, tcp_flags) = if is_fragment {
        (PacketKind::Fragment, 0, 0)
    } else if protocol == PROTOCOL_TCP {
        let Some(tcp) = transport.first_chunk::<20>() else {
            return Err(ParseError::Truncated);
        };
        let tcp_length = usize::from(tcp[12] >> 4) * 4;
        if tcp_length < 20 || tcp_length > transport.len() {
            return Err(ParseError::TcpHeader);
        }
        (PacketKind::Tcp, u32::from_le_bytes([tcp[0], tcp[1], tcp[2], tcp[3]]), tcp[13])
    } else if protocol == PROTOCOL_UDP {
        let Some(udp) = transport.first_chunk::<8>() else {
            return Err(ParseError::Truncated);
        };
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        if length < 8 || length > transport.len() {
            return Err(ParseError::UdpLength);
        }
        (PacketKind::Udp, u32::from_le_bytes([udp[0], udp[1], udp[2], udp[3]]), 0)
    } else if protocol == PROTOCOL_ICMP {
        if transport.len() < 8 {
            return Err(ParseError::Truncated);
        }
        (PacketKind::Icmp, 0, 0)
    } else {
        (PacketKind::OtherProtocol, 0, 0)
    };
    if frame.offload.is_segmented() && !segmentation_fits(frame, kind, false) {
        return Err(ParseError::Offload);
    }
    Ok(Parsed {
        key: FlowKey::from_wire(AttachmentIndex(0), protocol, addresses, ports),
        kind,
        tcp_flags,
        ttl: ip[8],
        l3: l3 as u16,
        l4: l4 as u16,
        end: (l3 + total_length) as u32,
        vlan,
    })
}

fn parse_ipv6(bytes: &[u8], l3: usize, vlan: u16, frame: &Frame<'_>) -> Result<Parsed, ParseError> {
    let packet = bytes.get(l3..).ok_or(ParseError::Truncated)?;
    let ip = packet.first_chunk::<{ ipv6::HEADER }>().ok_or(ParseError::Truncated)?;
    if ip[0] >> 4 != 6 {
        return Err(ParseError::IpHeader);
    }
    let end = ipv6::HEADER + usize::from(be16(ip, ipv6::PAYLOAD_LENGTH));
    let packet = packet.get(..end).ok_or(ParseError::IpLength)?;
    let upper = ipv6::upper(packet).map_err(|error| match error {
        ExtensionError::Truncated => ParseError::Truncated,
        ExtensionError::TooMany | ExtensionError::Routing => ParseError::Extensions,
    })?;
    let transport = &packet[upper.at..];
    let l4 = (l3 + upper.at) as u16;
    let (kind, ports, tcp_flags) = match upper.protocol {
        _ if upper.fragment.is_some_and(|fragment| !fragment.is_atomic()) => (PacketKind::Fragment, 0, 0),
        PROTOCOL_TCP => {
            let tcp = transport.first_chunk::<20>().ok_or(ParseError::Truncated)?;
            let tcp_length = usize::from(tcp[12] >> 4) * 4;
            if tcp_length < 20 || tcp_length > transport.len() {
                return Err(ParseError::TcpHeader);
            }
            (PacketKind::Tcp, u32::from_le_bytes([tcp[0], tcp[1], tcp[2], tcp[3]]), tcp[13])
        }
        PROTOCOL_UDP => {
            let udp = transport.first_chunk::<8>().ok_or(ParseError::Truncated)?;
            let length = usize::from(be16(udp, 4));
            if length < 8 || length > transport.len() {
                return Err(ParseError::UdpLength);
            }
            let partial = frame.offload.is_partial() && frame.offload.checksum_start == l4;
            if udp[6..] == [0, 0] && !partial {
                return Err(ParseError::UdpChecksum);
            }
            (PacketKind::Udp, u32::from_le_bytes([udp[0], udp[1], udp[2], udp[3]]), 0)
        }
        PROTOCOL_ICMPV6 => {
            let icmp = transport.first_chunk::<8>().ok_or(ParseError::Truncated)?;
            let kind = match icmp[0] {
                crate::icmpv6::ROUTER_SOLICITATION..=crate::icmpv6::REDIRECT => PacketKind::NeighbourDiscovery,
                _ => PacketKind::Icmpv6,
            };
            (kind, 0, 0)
        }
        _ => (PacketKind::OtherProtocol, 0, 0),
    };
    if frame.offload.is_segmented() && !segmentation_fits(frame, kind, true) {
        return Err(ParseError::Offload);
    }
    Ok(Parsed {
        key: FlowKey::wide(AttachmentIndex(0), upper.protocol, [0; 2], ports),
        kind,
        tcp_flags,
        ttl: ip[ipv6::HOP_LIMIT],
        l3: l3 as u16,
        l4,
        end: (l3 + end) as u32,
        vlan,
    })
}

/// A super-frame of ours has a type that the protocol can have. (One whose checksum starts elsewhere is a tunnelled
/// one, which is segmented in software before it is sent.)
fn segmentation_fits(frame: &Frame<'_>, kind: PacketKind, wide: bool) -> bool {
    use crate::frame::Segmentation::{None, TcpV4, TcpV6, UdpL4, Unknown};
    match (frame.offload.segmentation(), kind) {
        (TcpV4, PacketKind::Tcp) => !wide && frame.offload.segment_size > 0,
        (TcpV6, PacketKind::Tcp) => wide && frame.offload.segment_size > 0,
        (None, _) | (UdpL4 | TcpV4 | TcpV6, PacketKind::Udp) => frame.offload.segment_size > 0,
        (Unknown(_), _) => false,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet as etherparse makes it, then damaged.
    fn packet() -> impl Strategy<Value = Vec<u8>> {
        let ends = (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u16>(), any::<u16>());
        let damage = proptest::collection::vec((0usize..70, any::<u8>()), 0..3);
        (any::<bool>(), ends, proptest::collection::vec(any::<u8>(), 0..40), damage, 0usize..8, any::<bool>()).prop_map(
            |(tcp, (source, destination, from, to), payload, damage, cut, mend)| {
                let ip = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, destination, 9);
                let mut bytes = Vec::new();
                if tcp {
                    ip.tcp(from, to, 1, 2).syn().write(&mut bytes, &payload).unwrap();
                } else {
                    ip.udp(from, to).write(&mut bytes, &payload).unwrap();
                }
                for (at, value) in damage {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                if mend {
                    bytes[24..26].fill(0);
                    let sum = crate::checksum::checksum(&bytes[14..34], 0);
                    bytes[24..26].copy_from_slice(&sum.to_le_bytes());
                }
                bytes.truncate(bytes.len() - cut.min(bytes.len()));
                bytes
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_plain_case_finds_what_the_general_one_finds_or_nothing(mut bytes in packet()) {
            let length = bytes.len();
            let head = bytes.first_chunk::<PLAIN>().copied();
            let found = head.and_then(|head| Some(plain(&head, parse_plain(&head, length)?)));
            let general = parse(&Frame::new(&mut bytes, 0, length).unwrap());
            if let Some(found) = found {
                prop_assert_eq!(format!("{:?}", general.unwrap()), format!("{found:?}"));
            } else if let Ok(general) = general {
                // Only what is not plain may be left to the general case.
                prop_assert!(
                    length < PLAIN || general.l4 != 34 || !matches!(general.kind, PacketKind::Tcp | PacketKind::Udp),
                    "{general:?}"
                );
            }
        }

        #[test]
        fn etherparse_agrees_on_what_is_found(mut bytes in packet()) {
            let length = bytes.len();
            let sliced = etherparse::SlicedPacket::from_ethernet(&bytes).ok().map(|packet| format!("{:?}", packet.transport.is_some()));
            if let Ok(parsed) = parse(&Frame::new(&mut bytes, 0, length).unwrap())
                && matches!(parsed.kind, PacketKind::Tcp | PacketKind::Udp)
            {
                prop_assert_eq!(sliced, Some("true".to_owned()));
            }
        }
    }
}

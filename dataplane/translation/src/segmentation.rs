//! Segmentation in software of super-frames that cannot be sent as they are.
//!
//! The kernel's packet socket cannot say "cut the TCP inside this tunnel": a VXLAN or Geneve super-frame that is sent as it
//! came is refused, and the inner connection collapses. Such a frame is cut here, after its outer headers were rewritten,
//! into whole frames with complete checksums. Ordinary TCP and UDP super-frames can be cut too, for devices that take none.

mod tunnel;

use postern_wire::checksum::{checksum, pseudo_header, sum};
use postern_wire::parse::{PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{Offload, PacketKind, Parsed, Segmentation, ipv4, ipv6, tcp};

/// Length of a UDP header, in bytes.
const UDP_HEADER: usize = 8;
/// Offsets of the length and checksum fields in a UDP header.
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
/// Smallest segment of TCP that the kernel makes (`TCP_MIN_GSO_SIZE`): bounds how much traffic a frame can become.
const LEAST_TCP_SEGMENT: u16 = 8;

/// Why a frame cannot be segmented. The frame is dropped and counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum SegmentationError {
    /// An ordinary frame, or a segmentation type that is not known or not that of the packet.
    #[error("segmentation type {0} does not match the packet")]
    Type(u8),
    /// A segment size of zero, or below 8 for TCP.
    #[error("a segment size of {0} bytes is too small")]
    SegmentSize(u16),
    /// The checksum start is neither the packet's transport header nor one within a VXLAN or Geneve tunnel.
    #[error("no transport header is known at offset {0}, where the checksum starts")]
    ChecksumStart(u16),
    /// A header's length field or the frame's end contradicts another.
    #[error("the headers' lengths contradict each other")]
    Length,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Network {
    V4,
    V6,
}

/// A super-frame that can be cut into segments.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    bytes: &'a [u8],
    /// Kind and offset of the outer network header, and the outer UDP header, if the segments travel in a tunnel.
    outer: Option<(Network, usize, usize)>,
    network: Network,
    /// Offsets of the (inner) network and transport header.
    l3: usize,
    l4: usize,
    /// TCP or UDP, of the (inner) packet.
    protocol: u8,
    /// Whether a UDP datagram carries a checksum.
    checksummed: bool,
    /// Where the payload starts, which is the length of all headers, and ends.
    payload: usize,
    end: usize,
    segment_size: usize,
}

impl<'a> Segments<'a> {
    /// Looks at a super-frame, which begins at its Ethernet header and whose outer headers may already be rewritten.
    ///
    /// # Errors
    /// When the offload state does not fit the packet, or headers contradict each other.
    pub fn new(bytes: &'a [u8], offload: Offload, parsed: &Parsed) -> Result<Self, SegmentationError> {
        let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), parsed.end as usize);
        let bytes = bytes.get(..end).ok_or(SegmentationError::Length)?;
        let (protocol, least) = match offload.segmentation() {
            Segmentation::TcpV4 | Segmentation::TcpV6 => (PROTOCOL_TCP, LEAST_TCP_SEGMENT),
            Segmentation::UdpL4 => (PROTOCOL_UDP, 1),
            Segmentation::None | Segmentation::Unknown(_) => {
                return Err(SegmentationError::Type(offload.segmentation_type));
            }
        };
        if offload.segment_size < least {
            return Err(SegmentationError::SegmentSize(offload.segment_size));
        }
        let inner_start = usize::from(offload.checksum_start);
        let tunnelled = parsed.kind == PacketKind::Udp && offload.is_partial() && inner_start != l4;
        let own = if parsed.key.is_wide() { Network::V6 } else { Network::V4 };
        let (outer, network, l3, l4) = if tunnelled {
            let (network, inner_l3) = tunnel::inner_network(bytes, l4, inner_start, protocol)
                .ok_or(SegmentationError::ChecksumStart(offload.checksum_start))?;
            (Some((own, l3, l4)), network, inner_l3, inner_start)
        } else {
            (None, own, l3, l4)
        };
        let expected = match (protocol, network) {
            (PROTOCOL_TCP, Network::V4) => Segmentation::TcpV4,
            (PROTOCOL_TCP, Network::V6) => Segmentation::TcpV6,
            _ => Segmentation::UdpL4,
        };
        let kind = if protocol == PROTOCOL_TCP { PacketKind::Tcp } else { PacketKind::Udp };
        if offload.segmentation() != expected || (!tunnelled && parsed.kind != kind) {
            return Err(SegmentationError::Type(offload.segmentation_type));
        }
        let header_length = if protocol == PROTOCOL_UDP {
            UDP_HEADER
        } else {
            tcp::header_length(*bytes.get(l4 + tcp::DATA_OFFSET).ok_or(SegmentationError::Length)?)
        };
        let payload = l4 + header_length;
        let least = if protocol == PROTOCOL_UDP { UDP_HEADER } else { tcp::HEADER };
        if header_length < least || payload > end {
            return Err(SegmentationError::Length);
        }
        let field = [bytes[l4 + UDP_CHECKSUM], bytes[l4 + UDP_CHECKSUM + 1]];
        let segments = Self {
            bytes,
            outer,
            network,
            l3,
            l4,
            protocol,
            checksummed: protocol == PROTOCOL_TCP || offload.is_partial() || field != [0, 0],
            payload,
            end,
            segment_size: usize::from(offload.segment_size),
        };
        if segments.lengths_agree() { Ok(segments) } else { Err(SegmentationError::Length) }
    }

    /// How many segments there are, at least 1.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.end - self.payload).div_ceil(self.segment_size).max(1)
    }

    /// Whether there are none, which is never so: a frame without payload is one segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Length of the longest segment's frame, in bytes.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.payload + self.segment_size.min(self.end - self.payload)
    }

    /// Writes the frame of segment `index` (0…) into `out` and returns its length, Ethernet header included; all its
    /// checksums are complete. Returns 0 if there is no such segment or `out` is shorter than the frame.
    pub fn write(&self, index: usize, out: &mut [u8]) -> usize {
        let offset = index.saturating_mul(self.segment_size);
        if index >= self.len() {
            return 0;
        }
        let from = self.payload + offset;
        let until = (from + self.segment_size).min(self.end);
        let length = self.payload + until - from;
        let Some(frame) = out.get_mut(..length) else { return 0 };
        frame[..self.payload].copy_from_slice(&self.bytes[..self.payload]);
        frame[self.payload..].copy_from_slice(&self.bytes[from..until]);

        complete_network(frame, self.network, self.l3, index);
        if self.protocol == PROTOCOL_TCP {
            self.complete_tcp(frame, index, offset);
        } else {
            let transport_length = (length - self.l4) as u16;
            put(frame, self.l4 + UDP_LENGTH, transport_length.to_be_bytes());
            if self.checksummed {
                self.complete_checksum(frame, UDP_CHECKSUM);
            }
        }
        if let Some((network, l3, l4)) = self.outer {
            complete_network(frame, network, l3, index);
            complete_outer_udp(frame, network, l3, l4);
        }
        length
    }

    /// Sequence number and flags of a segment: CWR belongs to the first (RFC 3168 §6.1.2), FIN and PSH to the last.
    fn complete_tcp(&self, frame: &mut [u8], index: usize, offset: usize) {
        let at = self.l4 + tcp::SEQUENCE;
        let sequence = u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        frame[at..at + 4].copy_from_slice(&sequence.wrapping_add(offset as u32).to_be_bytes());
        let flags = &mut frame[self.l4 + tcp::FLAGS];
        if index > 0 {
            *flags &= !tcp::CWR;
        }
        if index + 1 < self.len() {
            *flags &= !(tcp::FIN | tcp::PSH);
        }
        self.complete_checksum(frame, tcp::CHECKSUM);
    }

    /// Writes the whole transport checksum, whose field is at `field` of the transport header.
    fn complete_checksum(&self, frame: &mut [u8], field: usize) {
        let pseudo = pseudo(frame, self.network, self.l3, self.l4, self.protocol);
        write_checksum(frame, self.l4, field, pseudo, self.protocol == PROTOCOL_UDP);
    }

    /// Whether every length field says that the frame ends where it ends.
    fn lengths_agree(&self) -> bool {
        let field = |at: usize| usize::from(u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]));
        let network = match self.network {
            Network::V4 => self.l3 + field(self.l3 + ipv4::TOTAL_LENGTH),
            Network::V6 => self.l3 + ipv6::HEADER + field(self.l3 + ipv6::PAYLOAD_LENGTH),
        };
        let udp_agrees = |l4: usize| l4 + field(l4 + UDP_LENGTH) == self.end;
        network == self.end
            && (self.protocol == PROTOCOL_TCP || udp_agrees(self.l4))
            && self.outer.is_none_or(|(_, _, l4)| udp_agrees(l4))
    }
}

/// Total length, identification (counted up by segment, as the kernel does) and checksum of the packet `packet`.
fn complete_ipv4(packet: &mut [u8], index: usize) {
    let length = packet.len() as u16;
    put(packet, ipv4::TOTAL_LENGTH, length.to_be_bytes());
    let at = ipv4::IDENTIFICATION;
    let identification = u16::from_be_bytes([packet[at], packet[at + 1]]).wrapping_add(index as u16);
    put(packet, at, identification.to_be_bytes());
    // Checked before: by `parse`, or when the tunnel was looked into.
    let header_length = ipv4::header_length(packet[0]).unwrap_or(ipv4::HEADER);
    ipv4::complete_checksum(&mut packet[..header_length]);
}

/// Length and, of IPv4, identification and checksum of the packet at `l3`, which ends with the frame.
fn complete_network(frame: &mut [u8], network: Network, l3: usize, index: usize) {
    match network {
        Network::V4 => complete_ipv4(&mut frame[l3..], index),
        Network::V6 => {
            let payload_length = (frame.len() - l3 - ipv6::HEADER) as u16;
            put(frame, l3 + ipv6::PAYLOAD_LENGTH, payload_length.to_be_bytes());
        }
    }
}

/// The sum of the pseudo-header of what begins at `l4` and ends with the frame.
fn pseudo(frame: &[u8], network: Network, l3: usize, l4: usize, protocol: u8) -> u64 {
    let length = (frame.len() - l4) as u16;
    match network {
        Network::V4 => pseudo_header(ipv4_addresses(frame, l3), protocol, length),
        Network::V6 => pseudo_header(0, protocol, length) + sum(&frame[l3 + ipv6::ADDRESSES..l3 + ipv6::HEADER]),
    }
}

/// Length and checksum of the tunnel's datagram. A checksum of zero says that there is none (RFC 7348 §5) and stays.
fn complete_outer_udp(frame: &mut [u8], network: Network, l3: usize, l4: usize) {
    let length = (frame.len() - l4) as u16;
    put(frame, l4 + UDP_LENGTH, length.to_be_bytes());
    if frame[l4 + UDP_CHECKSUM..l4 + UDP_HEADER] != [0, 0] {
        let pseudo = pseudo(frame, network, l3, l4, PROTOCOL_UDP);
        write_checksum(frame, l4, UDP_CHECKSUM, pseudo, true);
    }
}

fn write_checksum(frame: &mut [u8], l4: usize, field: usize, pseudo: u64, is_udp: bool) {
    put(frame, l4 + field, [0, 0]);
    let value = match checksum(&frame[l4..], pseudo) {
        0 if is_udp => 0xffff,
        value => value,
    };
    put(frame, l4 + field, value.to_le_bytes());
}

/// The eight address bytes of an IPv4 header, little-endian.
fn ipv4_addresses(frame: &[u8], l3: usize) -> u64 {
    frame[l3 + ipv4::ADDRESSES..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn put(bytes: &mut [u8], at: usize, value: [u8; 2]) {
    bytes[at..at + 2].copy_from_slice(&value);
}

#[cfg(test)]
mod tests;

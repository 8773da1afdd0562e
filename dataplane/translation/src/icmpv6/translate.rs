//! ICMPv6 errors in transit: the quoted packet is recognised and, with the outer header, translated back into what its
//! sender sent.

use postern_wire::checksum::{Delta, sum};
use postern_wire::icmpv6;
use postern_wire::ipv6::{self, AddressPair};
use postern_wire::parse::{PROTOCOL_TCP, PROTOCOL_UDP};
use postern_wire::{AttachmentIndex, FlowKey, PacketKind, Parsed, tcp};

use crate::icmp::QuoteError;
use crate::ipv6::WidePlan;

/// Bytes of the transport header that a quote must have: the ports and, for TCP, the sequence number.
const LEAST_TRANSPORT: usize = 8;
/// Offset of the checksum field in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// What an ICMPv6 error quotes. All offsets count from the frame's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote6 {
    /// Key of the quoted packet, as it was sent to where the error comes from, without attachment and address words.
    pub key: FlowKey,
    /// Its addresses.
    pub addresses: AddressPair,
    /// ICMPv6 type.
    pub kind: u8,
    /// ICMPv6 code.
    pub code: u8,
    /// Offset of the quoted IPv6 header.
    pub l3: u16,
    /// Offset of the quoted transport header, of which at least 8 bytes are there.
    pub l4: u16,
    /// Offset just behind the quoted packet, as far as it is there; padding and extensions (RFC 4884) follow.
    pub end: u32,
    /// Offset of the extensions, if there are any.
    pub extensions: Option<u32>,
    /// Offset of the quoted transport checksum, if it lies within the quote.
    pub checksum: Option<u16>,
}

/// Checks an ICMPv6 error and finds out which packet it quotes.
///
/// # Errors
/// When it is no error, its checksum is wrong (the quoted transport checksum is not looked at), or too little is quoted to
/// know the flow.
pub fn quote6(bytes: &[u8], parsed: &Parsed) -> Result<Quote6, QuoteError> {
    let start = usize::from(parsed.l4);
    let message = bytes.get(start..parsed.end as usize).unwrap_or(&[]);
    let outer = ipv6::addresses(bytes, usize::from(parsed.l3)).ok_or(QuoteError::Truncated(0))?;
    let (Some(header), PacketKind::Icmpv6) = (message.first_chunk::<{ icmpv6::HEADER }>(), parsed.kind) else {
        return Err(QuoteError::Truncated(0));
    };
    let kind = header[0];
    if !icmpv6::is_error(kind) {
        return Err(QuoteError::Kind(kind));
    }
    if !icmpv6::checksum_is_right(message, outer) {
        return Err(QuoteError::Checksum);
    }
    let room = message.len() - icmpv6::HEADER;
    // RFC 4884 §4.4, §4.5: with a length attribute, extensions follow the quote. The other errors have none.
    let attribute = match kind {
        icmpv6::DESTINATION_UNREACHABLE | icmpv6::TIME_EXCEEDED => usize::from(header[icmpv6::QUOTE_LENGTH]) * 8,
        _ => 0,
    };
    let length = if attribute == 0 { room } else { attribute.min(room) };
    let quoted = &message[icmpv6::HEADER..icmpv6::HEADER + length];

    let truncated = QuoteError::Truncated(length as u16);
    let ip = quoted.first_chunk::<{ ipv6::HEADER }>().ok_or(truncated)?;
    if ip[0] >> 4 != 6 {
        return Err(QuoteError::IpHeader(ip[0]));
    }
    // Behind the quoted packet's own end is padding.
    let payload = usize::from(u16::from_be_bytes([ip[ipv6::PAYLOAD_LENGTH], ip[ipv6::PAYLOAD_LENGTH + 1]]));
    let quoted = &quoted[..quoted.len().min(ipv6::HEADER + payload)];
    let upper = ipv6::upper(quoted).map_err(|_| truncated)?;
    if upper.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return Err(QuoteError::Fragment);
    }
    let checksum_at = match upper.protocol {
        PROTOCOL_TCP => tcp::CHECKSUM,
        PROTOCOL_UDP => UDP_CHECKSUM,
        other => return Err(QuoteError::Protocol(other)),
    };
    let transport = quoted.get(upper.at..).and_then(<[u8]>::first_chunk::<LEAST_TRANSPORT>).ok_or(truncated)?;
    let ports = u32::from_le_bytes([transport[0], transport[1], transport[2], transport[3]]);
    let l3 = start + icmpv6::HEADER;
    let checksum = upper.at + checksum_at;
    Ok(Quote6 {
        key: FlowKey::wide(AttachmentIndex(0), upper.protocol, [0; 2], ports),
        addresses: *ipv6::addresses(ip, 0).ok_or(truncated)?,
        kind,
        code: header[1],
        l3: l3 as u16,
        l4: (l3 + upper.at) as u16,
        end: (l3 + quoted.len()) as u32,
        extensions: (attribute != 0 && length < room).then_some((l3 + length) as u32),
        checksum: (checksum + 2 <= quoted.len()).then_some((l3 + checksum) as u16),
    })
}

/// Translates an ICMPv6 error: `outer` become the outer source and destination, one is taken from the outer hop limit, which
/// is at least 2, and the quoted packet is rewritten by `inner`, the plan from the quoted addresses and ports to those that
/// its sender used.
///
/// The quoted transport checksum follows, if its field is there, and the ICMPv6 checksum. The MTU or pointer, extensions
/// (RFC 4884) and all other bytes stay.
pub fn translate_error6(bytes: &mut [u8], parsed: &Parsed, quote: &Quote6, outer: &AddressPair, inner: &WidePlan) {
    let Some(ip) = bytes.get_mut(usize::from(parsed.l3)..).and_then(<[u8]>::first_chunk_mut::<{ ipv6::HEADER }>) else {
        return;
    };
    ip[ipv6::HOP_LIMIT] = ip[ipv6::HOP_LIMIT].wrapping_sub(1);
    let (mut before, mut after) = (sum(&ip[ipv6::ADDRESSES..]), sum(outer));
    ip[ipv6::ADDRESSES..].copy_from_slice(outer);

    // Every field lies at an even offset of the ICMPv6 message, so the changes add up.
    let at = usize::from(quote.l3) + ipv6::ADDRESSES;
    let Some(addresses) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<32>) else { return };
    before += sum(addresses);
    after += sum(&inner.addresses);
    *addresses = inner.addresses;
    let Some(ports) = bytes.get_mut(usize::from(quote.l4)..).and_then(<[u8]>::first_chunk_mut::<4>) else { return };
    before += u64::from(u32::from_le_bytes(*ports));
    after += u64::from(inner.ports);
    *ports = inner.ports.to_le_bytes();
    if let Some(at) = quote.checksum
        && let Some(field) = bytes.get_mut(usize::from(at)..).and_then(<[u8]>::first_chunk_mut::<2>)
    {
        let old = u16::from_le_bytes(*field);
        let new = if quote.key.protocol() == PROTOCOL_UDP {
            inner.full_delta.apply_to_udp(old)
        } else {
            inner.full_delta.apply(old)
        };
        before += u64::from(old);
        after += u64::from(new);
        *field = new.to_le_bytes();
    }
    let at = usize::from(parsed.l4) + icmpv6::CHECKSUM;
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *field = Delta::between(before, after).apply(u16::from_le_bytes(*field)).to_le_bytes();
    }
}

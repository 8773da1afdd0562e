//! What first packets of IPv6 need besides what all first packets need.

use std::net::IpAddr;

use postern_flows::{AddressWords, FlowRecord, WideAddresses};
use postern_tables::snapshot::ReturnPath;
use postern_translation::mss;
use postern_wire::checksum::{Delta, sum};
use postern_wire::ipv6::{self, AddressPair};
use postern_wire::{AttachmentIndex, Family, FlowKey, Frame, MacAddress, Parsed};

use crate::forwarder::Forwarder;
use crate::next_hops::NextHop;
use crate::outbox::PeerMessage;
use crate::verdict::DropReason;
use crate::ways::Way;

impl Forwarder<'_> {
    /// The worker that owns the bucket of a consumer's IPv6 packet.
    pub(crate) fn bucket_owner(&self, frame: &Frame<'_>, parsed: &Parsed) -> u16 {
        let addresses = ipv6::addresses(frame.bytes(), usize::from(parsed.l3));
        addresses.map_or(self.worker.0, |addresses| self.ownership.of_flow(folded(addresses, parsed.key)))
    }

    /// Tells the owner of a packet's bucket that the flow lives here.
    pub(crate) fn lent(&self, frame: &Frame<'_>, parsed: &Parsed) -> PeerMessage {
        PeerMessage::Lent { key: parsed.key, addresses: consumer_addresses(frame, parsed), holder: self.worker }
    }

    /// The hop for replies to an IPv6 client: by route, or to where the request came from.
    pub(crate) fn return_hop6(&mut self, frame: &Frame<'_>, parsed: &Parsed) -> Result<u32, DropReason> {
        let attachment = parsed.key.attachment();
        let at = self.snapshot.attachments.get(usize::from(attachment.0)).ok_or(DropReason::NoRoute)?;
        let hop = match at.return_path {
            ReturnPath::LastHop => {
                let station = frame.bytes().get(6..12).and_then(<[u8]>::first_chunk).ok_or(DropReason::Truncated)?;
                self.hops.station(&self.snapshot, &self.ports, attachment, MacAddress(*station), Family::V6)
            }
            ReturnPath::Route => {
                let addresses = ipv6::addresses(frame.bytes(), usize::from(parsed.l3)).ok_or(DropReason::Truncated)?;
                let client = ipv6::source(addresses);
                let route = self.snapshot.route6(at.vpc, client).ok_or(DropReason::NoRoute)?;
                let (attachment, neighbour) = (route.attachment, route.via.unwrap_or(client));
                self.hops.neighbour6(&self.snapshot, &self.ports, attachment, neighbour)
            }
        };
        hop.ok_or(DropReason::NextHopsFull)
    }

    /// Lowers the MSS option of a SYN or SYN-ACK of an IPv6 client's flow to what fits both ways. Toward an IPv4 target the
    /// headers are shorter.
    pub(crate) fn clamp_to6(
        &self,
        frame: &mut Frame<'_>,
        parsed: &Parsed,
        hops: [u32; 2],
        endpoint_mtu: u16,
        configured: Option<u16>,
    ) {
        let [forward, reverse] = hops.map(|hop| most_of(self.hops.at(hop)));
        let most = endpoint_mtu.saturating_sub(HEADERS_V6).min(forward).min(reverse);
        mss::clamp(frame, parsed, configured.map_or(most, |mss| mss.min(most)));
    }
}

/// IP and TCP headers without options: what the MSS does not count (RFC 9293 §3.7.1).
const HEADERS_V4: u16 = 40;
const HEADERS_V6: u16 = 60;

/// The largest MSS that fits a hop.
fn most_of(hop: &NextHop) -> u16 {
    hop.mtu.saturating_sub(if hop.address.is_ipv6() { HEADERS_V6 } else { HEADERS_V4 })
}

/// The key by which the worker of an IPv6 packet's bucket is found: its addresses are folded.
pub(crate) fn folded(addresses: &AddressPair, key: FlowKey) -> FlowKey {
    let (source, destination) = ipv6::octets(addresses);
    let folded = u64::from(ipv6::fold(source)) | u64::from(ipv6::fold(destination)) << 32;
    FlowKey::from_wire(AttachmentIndex(0), key.protocol(), folded, key.ports())
}

/// The addresses of an IPv6 packet, which its key lacks; `None` for IPv4.
pub(crate) fn consumer_addresses(frame: &Frame<'_>, parsed: &Parsed) -> Option<AddressPair> {
    ipv6::addresses(frame.bytes(), usize::from(parsed.l3)).copied().filter(|_| parsed.key.is_wide())
}

/// The four addresses of a flow that a client's packet opens.
pub(crate) fn wide_addresses(frame: &Frame<'_>, parsed: &Parsed, way: &Way, snat: IpAddr) -> Option<WideAddresses> {
    let forward = *ipv6::addresses(frame.bytes(), usize::from(parsed.l3))?;
    let target = way.wide.map_or(IpAddr::V4(way.record.reverse.source()), |wide| IpAddr::V6(wide.target));
    let [client, endpoint] = [ipv6::source(&forward), ipv6::destination(&forward)].map(IpAddr::V6);
    Some(WideAddresses { forward, ..WideAddresses::new(client, endpoint, target, snat) })
}

/// Completes the record of an IPv6 client's flow, whose SNAT port is leased: the reverse key, and how sums change.
pub(crate) fn aim_wide(record: &mut FlowRecord, addresses: &WideAddresses, port: u16, words: AddressWords) {
    let snat = addresses.snat();
    record.reverse = match snat {
        IpAddr::V4(snat) => record.reverse.to(snat, port),
        IpAddr::V6(snat) => record.reverse.to_word(words.word(&snat.octets()), port),
    };
    let [before, after] = sums(record, addresses);
    let ports = [record.forward.ports(), record.reverse.ports()].map(u64::from);
    record.address_delta = Delta::between(before, after).0;
    // The sum does not ask which port is which.
    record.full_delta = Delta::between(before + ports[0], after + ports[1]).0;
    if snat.is_ipv4() {
        record.state |= FlowRecord::LONG_WAY;
    }
}

/// Sums over the addresses on the consumer's and on the provider's side.
fn sums(record: &FlowRecord, addresses: &WideAddresses) -> [u64; 2] {
    let provider =
        if record.reverse.is_wide() { sum(&addresses.reverse) } else { sum(&record.reverse.addresses.to_le_bytes()) };
    [sum(&addresses.forward), provider]
}

/// Whether a packet's source can be no host: its own destination, unspecified, loopback, multicast, or an IPv4 address in
/// the place of an IPv6 one.
pub(crate) fn is_bad_source6(addresses: &AddressPair) -> bool {
    let source = ipv6::source(addresses);
    addresses[..16] == addresses[16..]
        || source.is_unspecified()
        || source.is_loopback()
        || source.is_multicast()
        || source.to_ipv4_mapped().is_some()
}

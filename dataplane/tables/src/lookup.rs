//! What a snapshot precomputes for the packet path.

use std::hash::{BuildHasherDefault, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};

use postern_wire::{AttachmentIndex, Ipv4Prefix, Ipv6Prefix, PortIndex};

use crate::snapshot::{Attachment, Route, Route6};

/// A quick hasher for addresses in VPCs. It has no secret and needs none: operators choose what is in these tables, and
/// strangers only what is looked up.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddressHasher(u64);

/// Makes [`AddressHasher`]s.
pub type AddressHash = BuildHasherDefault<AddressHasher>;

impl Hasher for AddressHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u32(u32::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.0 = (self.0.rotate_left(29) ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    #[inline]
    fn write_u16(&mut self, word: u16) {
        self.write_u32(u32::from(word));
    }

    /// The length of an address, which is always the same.
    #[inline]
    fn write_usize(&mut self, _length: usize) {}

    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Up to so many routes are tried one by one.
const FEW_ROUTES: usize = 16;

/// The route with the longest prefix that contains `destination`.
///
/// `routes` stand longest prefix first, equal lengths by network address.
#[inline]
#[must_use]
pub fn longest_match(routes: &[Route], destination: Ipv4Addr) -> Option<&Route> {
    if routes.len() <= FEW_ROUTES {
        return routes.iter().find(|route| route.destination.contains(destination));
    }
    longest_match_of_many(routes, destination)
}

fn longest_match_of_many(routes: &[Route], destination: Ipv4Addr) -> Option<&Route> {
    let mut rest = routes;
    while let Some(first) = rest.first() {
        let length = first.destination.length();
        let (equal, shorter) = rest.split_at(rest.partition_point(|route| route.destination.length() == length));
        let network = Ipv4Prefix::containing(destination, length)?;
        if let Ok(at) = equal.binary_search_by_key(&network, |route| route.destination) {
            return Some(&equal[at]);
        }
        rest = shorter;
    }
    None
}

/// The IPv6 route with the longest prefix that contains `destination`.
///
/// `routes` stand longest prefix first, equal lengths by network address.
#[inline]
#[must_use]
pub fn longest_match6(routes: &[Route6], destination: Ipv6Addr) -> Option<&Route6> {
    if routes.len() <= FEW_ROUTES {
        return routes.iter().find(|route| route.destination.contains(destination));
    }
    let mut rest = routes;
    while let Some(first) = rest.first() {
        let length = first.destination.length();
        let (equal, shorter) = rest.split_at(rest.partition_point(|route| route.destination.length() == length));
        let network = Ipv6Prefix::containing(destination, length)?;
        if let Ok(at) = equal.binary_search_by_key(&network, |route| route.destination) {
            return Some(&equal[at]);
        }
        rest = shorter;
    }
    None
}

/// From port and VLAN to attachment.
#[derive(Clone, Debug, Default)]
pub struct AttachmentLookup {
    by_port: Vec<PortLookup>,
    attachments: usize,
}

#[derive(Clone, Debug, Default)]
struct PortLookup {
    untagged: Option<AttachmentIndex>,
    /// By VLAN identifier; empty where the port has no tagged attachment.
    tagged: Vec<Option<AttachmentIndex>>,
}

/// VLAN identifiers have 12 bits.
const VLANS: usize = 4096;

impl AttachmentLookup {
    /// Of attachments in the order of their indices.
    #[must_use]
    pub fn new(attachments: &[Attachment]) -> Self {
        let mut by_port: Vec<PortLookup> = Vec::new();
        for (at, attachment) in attachments.iter().enumerate() {
            if attachment.is_removed() {
                continue;
            }
            let port = usize::from(attachment.port.0);
            if by_port.len() <= port {
                by_port.resize_with(port + 1, PortLookup::default);
            }
            let index = Some(AttachmentIndex(at as u16));
            let lookup = &mut by_port[port];
            match attachment.vlan {
                None | Some(0) => lookup.untagged = index,
                Some(vlan) => {
                    lookup.tagged.resize(VLANS, None);
                    lookup.tagged[usize::from(vlan) % VLANS] = index;
                }
            }
        }
        Self { by_port, attachments: attachments.len() }
    }

    /// Whether it was made of so many attachments.
    #[inline]
    pub(crate) const fn covers(&self, attachments: usize) -> bool {
        self.attachments == attachments
    }

    /// The attachment of frames that come in on `port` with VLAN identifier `vlan` (0: untagged).
    #[inline]
    #[must_use]
    pub fn find(&self, port: PortIndex, vlan: u16) -> Option<AttachmentIndex> {
        let lookup = self.by_port.get(usize::from(port.0))?;
        if vlan == 0 { lookup.untagged } else { *lookup.tagged.get(usize::from(vlan))? }
    }
}

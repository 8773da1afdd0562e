//! Prefixes, what an address means in a VPC, and the choice of free ones.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use postern_tables::check::text;
use postern_tables::error::Problem;
use postern_wire::address::AddressError;
use postern_wire::{IpPrefix, Ipv4Prefix, Ipv6Prefix};

use super::draft::Draft;
use super::model::Kind;
use super::writing::random;
use super::{Code, Refusal};

/// An IPv4 or IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Prefix {
    V4(Ipv4Prefix),
    V6(Ipv6Addr, u8),
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(prefix) => prefix.fmt(f),
            Self::V6(network, length) => write!(f, "{network}/{length}"),
        }
    }
}

impl Prefix {
    /// Reads a prefix without host bits.
    pub(super) fn parse(field: impl FnOnce() -> String, written: &str) -> Result<Self, Refusal> {
        const FORM: &str = "a prefix such as 10.0.0.0/24 or 2001:db8::/64";
        if written.is_empty() {
            return Err(Refusal::missing(field(), FORM));
        }
        let host_bits = |network: &dyn fmt::Display| {
            format!("a network address, because host bits are set; the network is {network}")
        };
        let six = written.split_once('/').and_then(|(address, length)| {
            let length = length.parse::<u8>().ok().filter(|&length| length <= 128)?;
            Some((address.parse::<Ipv6Addr>().ok()?, length))
        });
        if let Some((address, length)) = six {
            let network = masked(address, length);
            if network != address {
                return Err(Refusal::form(field(), written, host_bits(&format_args!("{network}/{length}"))));
            }
            return Ok(Self::V6(network, length));
        }
        written.parse().map(Self::V4).map_err(|error| match error {
            AddressError::HostBits(_, network) => Refusal::form(field(), written, host_bits(&network)),
            _ => Refusal::form(field(), written, FORM),
        })
    }

    pub(super) fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(prefix), IpAddr::V4(address)) => prefix.contains(address),
            (Self::V6(network, length), IpAddr::V6(address)) => masked(address, length) == network,
            _ => false,
        }
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }

    pub(super) const fn is_ipv6(self) -> bool {
        matches!(self, Self::V6(..))
    }

    fn network(self) -> IpAddr {
        match self {
            Self::V4(prefix) => prefix.network().into(),
            Self::V6(network, _) => network.into(),
        }
    }

    /// Whether the address is the network's own or the broadcast address, or the anycast address of its routers.
    fn end(self, address: IpAddr) -> Option<String> {
        let prefix = match self {
            Self::V4(prefix) => IpPrefix::V4(prefix),
            Self::V6(network, length) => IpPrefix::V6(Ipv6Prefix::containing(network, length)?),
        };
        let what = text::network_end(prefix, address)?;
        Some(format!("the {what} address of {prefix}"))
    }
}

fn masked(address: Ipv6Addr, length: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

/// Refuses addresses that no host can have.
pub(super) fn unicast(field: impl FnOnce() -> String, address: IpAddr) -> Result<(), Refusal> {
    match text::why_not_unicast(address) {
        Some(what) => Err(Refusal::value(field(), address, Problem::Address { what: what.to_owned() })),
        None => Ok(()),
    }
}

/// What the addresses of a VPC mean.
pub(super) struct Network {
    pub(super) vpc: String,
    /// From which endpoint addresses are chosen.
    pub(super) prefixes: Vec<Prefix>,
    pub(super) reaches: Vec<Reach>,
}

/// How a gateway reaches the VPC.
pub(super) struct Reach {
    /// Id of the attachment.
    pub(super) attachment: String,
    /// Id of the gateway.
    pub(super) gateway: String,
    pub(super) on_link: Vec<Prefix>,
    routes: Vec<Prefix>,
    routers: Vec<IpAddr>,
}

impl Network {
    /// Of a VPC that is there; what is malformed in it is refused where it stands.
    pub(super) fn of(draft: &Draft<'_>, vpc: &str) -> Option<Self> {
        let parse = |text: &String| Prefix::parse(String::new, text).ok();
        let spec = &draft.object(Kind::Vpc, vpc)?.as_vpc()?.spec;
        let attachments = draft.users_of_kind(vpc, Kind::Attachment);
        let attachments = attachments.filter_map(|id| draft.object(Kind::Attachment, id)?.as_attachment());
        let reach = |attachment: &super::model::Object<super::model::AttachmentSpec>| Reach {
            attachment: attachment.metadata.id.clone(),
            gateway: attachment.spec.gateway.clone(),
            on_link: attachment.spec.prefixes.iter().filter_map(parse).collect(),
            routes: attachment.spec.routes.iter().filter_map(|route| parse(&route.destination)).collect(),
            routers: attachment.spec.routes.iter().filter_map(|route| route.via).collect(),
        };
        let prefixes = spec.prefixes.iter().filter_map(parse).collect();
        Some(Self { vpc: vpc.to_owned(), prefixes, reaches: attachments.map(reach).collect() })
    }

    /// Why an endpoint or a pool cannot have the address, whoever uses it.
    pub(super) fn unfit(&self, address: IpAddr) -> Option<String> {
        if let Some(end) = self.end(address) {
            return Some(end);
        }
        let reach = self.reaches.iter().find(|reach| reach.routers.contains(&address))?;
        Some(format!("the address of a router of attachment {}", reach.attachment))
    }

    /// Whether the address is the network's or broadcast address of a prefix of the VPC or of an attachment.
    pub(super) fn end(&self, address: IpAddr) -> Option<String> {
        let on_link = self.reaches.iter().flat_map(|reach| &reach.on_link);
        self.prefixes.iter().chain(on_link).find_map(|prefix| prefix.end(address))
    }

    /// A gateway from which no attachment or route of the VPC leads to the address.
    pub(super) fn gateway_without_route(&self, address: IpAddr) -> Option<&str> {
        let leads = |reach: &&Reach| reach.on_link.iter().chain(&reach.routes).any(|prefix| prefix.contains(address));
        let with: BTreeSet<_> = self.reaches.iter().filter(leads).map(|reach| reach.gateway.as_str()).collect();
        self.reaches.iter().map(|reach| reach.gateway.as_str()).find(|gateway| !with.contains(gateway))
    }

    /// On-link prefixes of the VPC's attachments.
    pub(super) fn on_link(&self) -> BTreeSet<Prefix> {
        self.reaches.iter().flat_map(|reach| reach.on_link.iter().copied()).collect()
    }

    /// Where addresses are chosen: the VPC's prefixes as far as they are on-link, where neighbours ask for them; all, if
    /// nothing is.
    fn choices(&self) -> Vec<Ipv4Prefix> {
        let four = |prefix: &Prefix| match prefix {
            Prefix::V4(prefix) => Some(*prefix),
            Prefix::V6(..) => None,
        };
        let own: Vec<_> = self.prefixes.iter().filter_map(four).collect();
        let mut common = BTreeSet::new();
        for on_link in self.on_link().iter().filter_map(four) {
            for prefix in &own {
                if prefix.contains(on_link.network()) && prefix.length() <= on_link.length() {
                    common.insert(on_link);
                } else if on_link.contains(prefix.network()) {
                    common.insert(*prefix);
                }
            }
        }
        if common.is_empty() { own } else { common.into_iter().collect() }
    }

    /// A free address. Where it lies cannot be foreseen, so that what was deleted is not soon taken again.
    ///
    /// # Errors
    /// When none is free.
    pub(super) fn choose(&self, draft: &Draft<'_>, taken: &BTreeSet<IpAddr>) -> Result<IpAddr, Refusal> {
        /// Tries before all addresses are gone through: in a VPC that is nine tenths full, one in a million fails them.
        const TRIES: usize = 128;
        let choices = self.choices();
        if choices.is_empty() {
            return self.choose_wide(draft, taken);
        }
        let size = |prefix: &Ipv4Prefix| 1_u64 << (32 - prefix.length());
        let total: u64 = choices.iter().map(size).sum();
        let address = |mut offset: u64| {
            for prefix in &choices {
                if offset < size(prefix) {
                    return Some(Ipv4Addr::from_bits(prefix.network().to_bits() + offset as u32));
                }
                offset -= size(prefix);
            }
            None
        };
        let free = |address: &Ipv4Addr| {
            let first_host = self.prefixes.iter().any(|prefix| is_first_host(*prefix, *address));
            let address = IpAddr::V4(*address);
            !first_host
                && !taken.contains(&address)
                && self.unfit(address).is_none()
                && draft.claims(&self.vpc, address).next().is_none()
                && unicast(String::new, address).is_ok()
        };
        let mut offset = 0;
        if total > 0 {
            for _ in 0..TRIES {
                offset = u64::from_ne_bytes(random()?) % total;
                if let Some(found) = address(offset).filter(free) {
                    return Ok(found.into());
                }
            }
        }
        let all = (offset..total).chain(0..offset);
        all.filter_map(address).find(free).map(IpAddr::V4).ok_or_else(|| self.none_free())
    }

    /// A free address of a VPC that has IPv6 prefixes only: of an on-link one, if there is one in it.
    fn choose_wide(&self, draft: &Draft<'_>, taken: &BTreeSet<IpAddr>) -> Result<IpAddr, Refusal> {
        /// Addresses of one prefix are so many that one that is taken is met by chance only, unless the prefix is small.
        const TRIES: usize = 256;
        let six = |prefix: &Prefix| match *prefix {
            Prefix::V6(network, length) => Some((network, length)),
            Prefix::V4(_) => None,
        };
        let own: Vec<_> = self.prefixes.iter().filter_map(six).collect();
        let inside = |(network, length): &(Ipv6Addr, u8)| {
            own.iter().any(|(of, shorter)| shorter <= length && masked(*network, *shorter) == *of)
        };
        let on_link = self.on_link().iter().filter_map(six).find(inside);
        let Some((network, length)) = on_link.or_else(|| own.first().copied()) else { return Err(self.none_free()) };
        // The low 64 bits are an interface identifier (RFC 4291 §2.5.1).
        let bits = u32::from(128 - length).min(64);
        for _ in 0..TRIES {
            let host = u64::from_ne_bytes(random()?).checked_shr(64 - bits).unwrap_or(0);
            let address = IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | u128::from(host)));
            let free = !taken.contains(&address)
                && self.unfit(address).is_none()
                && draft.claims(&self.vpc, address).next().is_none()
                && unicast(String::new, address).is_ok();
            if free {
                return Ok(address);
            }
        }
        Err(self.none_free())
    }

    fn none_free(&self) -> Refusal {
        let prefixes: Vec<_> = self.prefixes.iter().map(ToString::to_string).collect();
        let prefixes = if prefixes.is_empty() { "it has no prefixes".to_owned() } else { prefixes.join(", ") };
        Refusal::new(Code::TooLarge, format!("no address of VPC {} is free ({prefixes})", self.vpc))
            .at("spec.addresses")
    }
}

/// Whether the address is the one that routers often have.
fn is_first_host(prefix: Prefix, address: Ipv4Addr) -> bool {
    match prefix {
        Prefix::V4(prefix) => prefix.length() <= 30 && address.to_bits() == prefix.network().to_bits() + 1,
        Prefix::V6(..) => false,
    }
}

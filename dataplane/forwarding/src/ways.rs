//! The ways that new flows take: what is the same for all flows of one endpoint, listener and target is worked out once, and
//! each of them begins with a copy of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use postern_flows::{AddressWords, FlowRecord};
use postern_tables::Snapshot;
use postern_tables::snapshot::{EndpointIndex, ListenerIndex, PoolIndex, ProxyProtocol, SnatPool, TargetIndex};
use postern_translation::ports::LaneKey;
use postern_wire::parse::PROTOCOL_TCP;
use postern_wire::{AttachmentIndex, Family, FlowKey};

use crate::verdict::DropReason;

/// Ways that are remembered. With more in use some are worked out again and again, which costs time and nothing else.
const WAYS: usize = 1024;

/// What a way is found by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WayKey {
    pub(crate) endpoint: EndpointIndex,
    pub(crate) listener: ListenerIndex,
    pub(crate) target: TargetIndex,
    /// The target group's.
    pub(crate) pool: PoolIndex,
}

impl WayKey {
    #[inline(always)]
    const fn place(&self) -> usize {
        (self.target.0 ^ self.endpoint.0.rotate_left(5) ^ self.listener.0.rotate_left(3)) as usize % WAYS
    }
}

/// From an endpoint through a listener to a target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    key: WayKey,
    /// When it was worked out; see [`Ways::forget`].
    era: u32,
    pub(crate) pool: PoolIndex,
    /// The endpoint's.
    pub(crate) mtu: u16,
    /// The listener's upper bound.
    pub(crate) mss: Option<u16>,
    /// Whether something may keep a client from it: security groups, limits.
    pub(crate) guarded: bool,
    /// The attachment behind which the target is, and the neighbour to send to.
    pub(crate) attachment: AttachmentIndex,
    pub(crate) neighbour: Ipv4Addr,
    /// The same of a target with an IPv6 address.
    pub(crate) wide: Option<WideWay>,
    /// The record of every flow that goes this way, as far as it is known before the packet. Its reverse key lacks the SNAT
    /// address and port, which are zero.
    pub(crate) record: FlowRecord,
}

/// What a way to an IPv6 target has besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WideWay {
    pub(crate) target: Ipv6Addr,
    pub(crate) neighbour: Ipv6Addr,
}

/// The addresses of a pool that targets of one family see.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SnatAddresses<'s> {
    V4(&'s [Ipv4Addr]),
    V6(&'s [Ipv6Addr]),
}

impl SnatAddresses<'_> {
    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::V4(addresses) => addresses.len(),
            Self::V6(addresses) => addresses.len(),
        }
    }

    pub(crate) fn at(&self, at: usize) -> Option<IpAddr> {
        match self {
            Self::V4(addresses) => addresses.get(at).copied().map(IpAddr::V4),
            Self::V6(addresses) => addresses.get(at).copied().map(IpAddr::V6),
        }
    }
}

impl Way {
    /// What stands in a place where nothing was worked out yet.
    fn none() -> Self {
        let key = WayKey {
            endpoint: EndpointIndex(0),
            listener: ListenerIndex(0),
            target: TargetIndex(0),
            pool: PoolIndex(0),
        };
        Self {
            key,
            era: 0,
            pool: key.pool,
            mtu: 0,
            mss: None,
            guarded: false,
            attachment: AttachmentIndex(0),
            neighbour: Ipv4Addr::UNSPECIFIED,
            wide: None,
            record: FlowRecord::default(),
        }
    }

    fn new(snapshot: &Snapshot, key: WayKey, era: u32, words: AddressWords) -> Result<Self, DropReason> {
        let endpoint = snapshot.endpoint(key.endpoint).ok_or(DropReason::NotLocal)?;
        let listener = snapshot.listeners.get(key.listener.at()).ok_or(DropReason::NoListener)?;
        let target = snapshot.target(key.target).ok_or(DropReason::NoTarget)?;
        let (attachment, neighbour) = snapshot.way_to(target.vpc, target.address).ok_or(DropReason::NoRoute)?;
        let family = Family::of(target.address);
        let pool = snapshot.pools.get(key.pool.at()).filter(|pool| pool.has(family));
        let pool = pool.ok_or(DropReason::NoSnatAddress)?;
        let reverse = match target.address {
            IpAddr::V4(address) => {
                let socket = SocketAddrV4::new(address, target.port);
                let nothing = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
                FlowKey::new(attachment, listener.protocol, socket, nothing)
            }
            IpAddr::V6(address) => {
                let port = u32::from(target.port.swap_bytes());
                FlowKey::wide(attachment, listener.protocol, [words.word(&address.octets()), 0], port)
            }
        };
        let wide = match (target.address, neighbour) {
            (IpAddr::V6(target), IpAddr::V6(neighbour)) => Some(WideWay { target, neighbour }),
            _ => None,
        };
        let has_header = listener.protocol == PROTOCOL_TCP && target.proxy_protocol != ProxyProtocol::Off;
        let record = FlowRecord {
            reverse,
            listener_idle_seconds: listener.idle_seconds,
            endpoint: key.endpoint.0,
            policy_epoch: endpoint.policy_epoch,
            target: key.target.0,
            target_incarnation: target.incarnation,
            rest_seconds: pool.rest_seconds.min(240) as u8,
            flags: if listener.reset_on_expiry { FlowRecord::FLAG_TELL_ENDS } else { 0 },
            state: if has_header { FlowRecord::LONG_WAY } else { 0 },
            half_open_next: postern_flows::NONE,
            half_open_previous: postern_flows::NONE,
            ..FlowRecord::default()
        };
        Ok(Self {
            key,
            era,
            pool: key.pool,
            mtu: endpoint.mtu,
            mss: listener.mss,
            guarded: !endpoint.security_groups.is_empty()
                || !listener.security_groups.is_empty()
                || endpoint.limits.are_set(),
            attachment,
            neighbour: match neighbour {
                IpAddr::V4(neighbour) => neighbour,
                IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
            },
            wide,
            record,
        })
    }

    /// Those of a pool's addresses that the target sees.
    #[inline]
    pub(crate) fn snat_addresses<'s>(&self, pool: &'s SnatPool) -> SnatAddresses<'s> {
        if self.wide.is_some() { SnatAddresses::V6(&pool.addresses6) } else { SnatAddresses::V4(&pool.addresses) }
    }

    /// The lane of an SNAT address toward the target, where the address is given by its word if it is one of IPv6. Two
    /// addresses with one word share a lane, and so never a port.
    #[inline]
    pub(crate) const fn lane(&self, snat: Ipv4Addr) -> LaneKey {
        let target = &self.record.reverse;
        LaneKey {
            snat,
            target: target.source(),
            target_port: target.source_port(),
            vpc: self.attachment.0,
            protocol: target.protocol(),
        }
    }
}

/// The ways of a worker: a place for each key, which the next key with the same place takes over.
#[derive(Debug)]
pub(crate) struct Ways {
    places: Box<[Way]>,
    words: AddressWords,
    /// Never zero, which is that of [`Way::none`].
    era: u32,
}

impl Ways {
    pub(crate) fn new(words: AddressWords) -> Self {
        Self { places: vec![Way::none(); WAYS].into_boxed_slice(), words, era: 1 }
    }

    /// The lane of an SNAT address of either family toward a way's target.
    pub(crate) fn lane(&self, way: &Way, snat: IpAddr) -> LaneKey {
        way.lane(match snat {
            IpAddr::V4(snat) => snat,
            IpAddr::V6(snat) => Ipv4Addr::from_bits(self.words.word(&snat.octets())),
        })
    }

    /// The way at a place that [`Self::find`] gave.
    #[inline]
    pub(crate) fn at(&self, place: usize) -> Option<&Way> {
        self.places.get(place)
    }

    /// The place of a way, worked out if it is not known.
    ///
    /// # Errors
    /// Why there is no such way.
    #[inline]
    pub(crate) fn find(&mut self, snapshot: &Snapshot, key: WayKey) -> Result<usize, DropReason> {
        let place = key.place();
        match self.at(place) {
            Some(way) if way.key == key && way.era == self.era => Ok(place),
            _ => self.learn(snapshot, key.endpoint, key.listener, key.target, key.pool),
        }
    }

    // The parts of the key one by one: whole, it would be written to memory before it is known whether it is needed.
    #[cold]
    #[inline(never)]
    fn learn(
        &mut self,
        snapshot: &Snapshot,
        endpoint: EndpointIndex,
        listener: ListenerIndex,
        target: TargetIndex,
        pool: PoolIndex,
    ) -> Result<usize, DropReason> {
        let key = WayKey { endpoint, listener, target, pool };
        let place = key.place();
        self.places[place] = Way::new(snapshot, key, self.era, self.words)?;
        Ok(place)
    }

    /// All that is known is out of date: there is another snapshot.
    pub(crate) fn forget(&mut self) {
        self.era = self.era.wrapping_add(1);
        if self.era == 0 {
            self.places.fill(Way::none());
            self.era = 1;
        }
    }
}

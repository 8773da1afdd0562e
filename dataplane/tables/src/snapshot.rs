//! The compiled tables. A snapshot never changes; workers share it by pointer and take a new one at a burst boundary.
//!
//! Everything is an index into a vector of this snapshot. Indices of endpoints and targets stay the same from one
//! snapshot to the next for as long as the object lives; flows store them with the object's incarnation.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use postern_selection::{MaglevTable, SelectionHash};
use postern_wire::{AttachmentIndex, Family, Ipv4Prefix, Ipv6Prefix, MacAddress, PortIndex};

use crate::declaration::{Exhausted, Io};
use crate::health::HealthSettings;
use crate::history::History;
use crate::lookup::{AttachmentLookup, longest_match, longest_match6};
use crate::pages::Pages;
use crate::security::Rules;
use crate::sharded::Sharded;

/// Counts snapshots: a larger one is newer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Generation(pub u64);

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The index as a position in its vector.
            #[inline]
            #[must_use]
            pub const fn at(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index! {
    /// Index of a VPC.
    VpcIndex
}
index! {
    /// Index of an interface endpoint's address. An endpoint with two addresses has two, with the same id.
    EndpointIndex
}
index! {
    /// Index of an endpoint service.
    ServiceIndex
}
index! {
    /// Index of a listener.
    ListenerIndex
}
index! {
    /// Index of a target group.
    TargetGroupIndex
}
index! {
    /// Index of a target.
    TargetIndex
}
index! {
    /// Index of a security group.
    SecurityGroupIndex
}
index! {
    /// Index of an SNAT pool.
    PoolIndex
}

/// Everything that the workers of a gateway need to decide. A clone shares what is large, and so does a snapshot with the
/// one that it was made of.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Which snapshot this is.
    pub generation: Generation,
    /// Ports, in the order of the configuration. Fixed for the life of the process.
    pub ports: Vec<Port>,
    /// Tenants' networks.
    pub vpcs: Arc<Vec<Vpc>>,
    /// How the gateway reaches the VPCs; by [`AttachmentIndex`].
    pub attachments: Arc<Vec<Attachment>>,
    /// Endpoint addresses by [`EndpointIndex`]; `None` where an index is free.
    pub endpoints: Pages<Endpoint>,
    /// What the packet path must know of them, by the same index, made of `endpoints`; see [`Snapshot::index`]. One flat
    /// vector, copied by each change, because every packet reads it.
    pub policies: Vec<EndpointPolicy>,
    /// Services by [`ServiceIndex`].
    pub services: Pages<Service>,
    /// Listeners by [`ListenerIndex`].
    pub listeners: Pages<Listener>,
    /// Target groups by [`TargetGroupIndex`].
    pub target_groups: Pages<TargetGroup>,
    /// Targets by [`TargetIndex`]; `None` where an index is free.
    pub targets: Pages<Target>,
    /// Security groups by [`SecurityGroupIndex`].
    pub security_groups: Pages<SecurityGroup>,
    /// SNAT pools by [`PoolIndex`].
    pub pools: Arc<Vec<SnatPool>>,
    /// IPv4 endpoint and SNAT addresses: what Postern answers for.
    pub local: Sharded<(VpcIndex, Ipv4Addr), LocalAddress>,
    /// The same of IPv6.
    pub local6: Sharded<(VpcIndex, Ipv6Addr), LocalAddress>,
    /// IPv4 addresses and ports of all targets, with the number of groups that have each: who may be told by a RST that a
    /// connection is gone.
    pub registered: Sharded<(VpcIndex, Ipv4Addr, u16), u32>,
    /// The same of IPv6.
    pub registered6: Sharded<(VpcIndex, Ipv6Addr, u16), u32>,
    /// Incarnations of targets that were taken out of their groups and whose flows end, at most [`Self::MOST_ENDED`].
    pub ended: Arc<BTreeSet<u32>>,
    /// Keyed hash of the target choice; the same on every gateway.
    pub selection: SelectionHash,
    /// Attachments by port and VLAN, made of `attachments`; see [`Snapshot::index`].
    pub attachment_lookup: Arc<AttachmentLookup>,
    /// Names of zones, of [`Zone`] 1 first. It only grows, to at most [`Self::MOST_ZONES`].
    pub zones: Arc<Vec<Arc<str>>>,
    /// What the next compilation must know.
    pub history: History,
}

/// An availability zone: 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Zone(pub u16);

impl Zone {
    /// No zone.
    pub const NONE: Self = Self(0);
}

/// An interface that the gateway uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Linux interface name.
    pub interface: String,
    /// Whether the host uses the interface too.
    pub shared: bool,
    /// How frames come in and go out.
    pub io: Io,
}

/// A tenant's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vpc {
    /// `vpc-…`.
    pub id: String,
    /// IPv4 routes of all its attachments, longest prefix first, equal lengths by network address.
    pub routes: Vec<Route>,
    /// IPv6 routes, in the same order.
    pub routes6: Vec<Route6>,
}

/// One way out of a VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub destination: Ipv4Prefix,
    /// The attachment to send on.
    pub attachment: AttachmentIndex,
    /// The router, or `None` where destinations are neighbours themselves (on-link).
    pub via: Option<Ipv4Addr>,
}

/// One way out of a VPC for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route6 {
    /// Destinations.
    pub destination: Ipv6Prefix,
    /// The attachment to send on.
    pub attachment: AttachmentIndex,
    /// The router, or `None` where destinations are neighbours themselves (on-link).
    pub via: Option<Ipv6Addr>,
}

/// How replies find their way to a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReturnPath {
    /// By the VPC's routes.
    #[default]
    Route,
    /// To the MAC address from which the flow's first packet came.
    LastHop,
}

/// How the gateway reaches a VPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Name from the configuration.
    pub name: String,
    /// The VPC behind it.
    pub vpc: VpcIndex,
    /// The port that carries it.
    pub port: PortIndex,
    /// 802.1Q VLAN identifier, 1…4094; `None` for untagged.
    pub vlan: Option<u16>,
    /// Largest IP datagram that may be sent, in bytes; `None`: the interface's own MTU.
    pub mtu: Option<u16>,
    /// How replies go back.
    pub return_path: ReturnPath,
    /// On-link prefixes of IPv4.
    pub prefixes: Vec<Ipv4Prefix>,
    /// On-link prefixes of IPv6.
    pub prefixes6: Vec<Ipv6Prefix>,
    /// A MAC address of its own, where the port's is not to be used.
    pub mac: Option<MacAddress>,
}

impl Attachment {
    /// The port of an attachment that was removed by a reload. Its index stays unused, because flows hold it.
    pub const REMOVED: PortIndex = PortIndex(u16::MAX);

    /// Whether the attachment was removed by a reload.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.port == Self::REMOVED
    }
}

impl Endpoint {
    /// [`Endpoint::mtu`] where nothing else is declared.
    pub const MTU: u16 = 8500;
}

impl Listener {
    /// The target group for the selection hash of an IPv4 client's flow; `None` where all groups have weight 0.
    ///
    /// The high bits of the hash decide; [`MaglevTable::lookup`] uses the others.
    #[inline]
    #[must_use]
    pub fn group(&self, hash: u64) -> Option<TargetGroupIndex> {
        group_of(&self.groups, hash)
    }

    /// The target group for the selection hash of an IPv6 client's flow.
    #[inline]
    #[must_use]
    pub fn group6(&self, hash: u64) -> Option<TargetGroupIndex> {
        group_of(&self.groups6, hash)
    }
}

#[inline(always)]
fn group_of(groups: &[(u32, TargetGroupIndex)], hash: u64) -> Option<TargetGroupIndex> {
    let total = groups.last()?.0;
    let share = ((u128::from(hash) * u128::from(total)) >> 64) as u32;
    groups.iter().find(|(above, _)| share < *above).map(|(_, group)| *group)
}

impl TargetGroup {
    /// The target for a flow's selection hash; `None` where no member has weight.
    #[inline]
    #[must_use]
    pub fn target(&self, hash: u64) -> Option<TargetIndex> {
        self.members.get(self.table.as_ref()?.lookup(hash)).copied()
    }

    /// Whether a target is chosen by more than the flow's hash.
    #[inline]
    #[must_use]
    pub fn is_particular(&self) -> bool {
        self.mapping.is_some() || self.sticky_seconds != 0 || !self.zonal.is_empty()
    }

    /// The target that `port` of the listener leads to, in a group that maps ports; `None` where it leads to none, or to one
    /// that may have no new flows.
    #[must_use]
    pub fn mapped(&self, mapping: &[(u16, u16)], port: u16) -> Option<TargetIndex> {
        let at = mapping.binary_search_by_key(&port, |(port, _)| *port).ok()?;
        let member = usize::from(mapping[at].1);
        self.shares.get(member).filter(|share| **share > 0)?;
        self.members.get(member).copied()
    }

    /// The target for a flow's selection hash among those of a zone; where none of these may have flows, among all.
    #[must_use]
    pub fn target_in(&self, zone: Zone, hash: u64) -> Option<TargetIndex> {
        match self.zonal.binary_search_by_key(&zone, |(zone, _)| *zone) {
            Ok(at) => self.members.get(self.zonal[at].1.lookup(hash)).copied(),
            Err(_) => self.target(hash),
        }
    }

    /// Whether a target is one of its members, and may have new flows.
    #[must_use]
    pub fn offers(&self, target: TargetIndex) -> bool {
        let at = self.members.iter().position(|member| *member == target);
        at.is_some_and(|at| self.shares.get(at).is_some_and(|share| *share > 0))
    }
}

/// What an address that Postern answers for is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAddress {
    /// An interface endpoint's address.
    Endpoint(EndpointIndex),
    /// An address of an SNAT pool.
    Snat(PoolIndex),
}

/// One address of an interface endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `vpce-` and 17 hexadecimal digits.
    pub id: Arc<str>,
    /// The consumer's VPC.
    pub vpc: VpcIndex,
    /// The address in it.
    pub address: IpAddr,
    /// What it stands for.
    pub service: ServiceIndex,
    /// Distinguishes the holders of one index.
    pub incarnation: u32,
    /// Moves when the access or the rules of this endpoint change, or a target of its is cut; never the same for two endpoints or incarnations, so
    /// that one comparison tells a flow whether it must be judged again. Zero is never used.
    pub policy_epoch: u32,
    /// The epoch that it got when access or rules changed last. The policy epoch also moves when a target's flows are cut, and
    /// then flows that were judged since are not asked for more than their target.
    pub access_epoch: u32,
    /// Largest IP datagram through this endpoint, in bytes.
    pub mtu: u16,
    /// Whether ICMP echo to the address is answered.
    pub echo: bool,
    /// One of these must let a client in; empty: all come in.
    pub security_groups: Arc<[SecurityGroupIndex]>,
    /// The epoch that it got when a rule was withdrawn that cuts flows; 0: never.
    pub guard_epoch: u32,
    /// What it may have at most.
    pub limits: EndpointLimits,
    /// The zone whose targets get its flows.
    pub zone: Zone,
}

/// What an endpoint address may have at most, on all workers together; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointLimits {
    /// SNAT ports in use.
    pub ports: Option<u32>,
    /// Live flows.
    pub flows: Option<u32>,
    /// New flows in a second, and at once.
    pub new_flows_per_second: Option<u32>,
    /// Bytes of IP datagrams in a second, both directions together.
    pub bytes_per_second: Option<u64>,
}

impl EndpointLimits {
    /// Whether there is any.
    #[must_use]
    pub fn are_set(&self) -> bool {
        *self != Self::default()
    }
}

/// What every packet of a flow is judged by: a few bytes, because every packet reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointPolicy {
    /// [`Endpoint::policy_epoch`]; 0 where there is no endpoint.
    pub epoch: u32,
    /// [`Endpoint::mtu`].
    pub mtu: u16,
}

impl EndpointPolicy {
    /// Of all endpoints.
    pub(crate) fn of(endpoints: &Pages<Endpoint>) -> Vec<Self> {
        let policy = |endpoint: &Endpoint| Self { epoch: endpoint.policy_epoch, mtu: endpoint.mtu };
        endpoints.iter().map(|endpoint| endpoint.map_or(Self::default(), policy)).collect()
    }
}

/// An endpoint service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `vpce-svc-` and 17 hexadecimal digits.
    pub id: Arc<str>,
    /// Listeners with one port by (IP protocol number, port), sorted.
    pub listeners: Arc<[((u8, u16), ListenerIndex)]>,
    /// Those with more than one port by (IP protocol number, first port, last port), sorted.
    pub ranges: Arc<[PortRange]>,
}

/// A listener by IP protocol number, first and last port.
pub type PortRange = ((u8, u16, u16), ListenerIndex);

impl Service {
    /// The listener whose ports a port is among.
    #[cold]
    fn range(&self, protocol: u8, port: u16) -> Option<ListenerIndex> {
        let below = self.ranges.partition_point(|((of, first, _), _)| (*of, *first) <= (protocol, port));
        let ((of, _, last), listener) = self.ranges.get(below.checked_sub(1)?)?;
        (*of == protocol && port <= *last).then_some(*listener)
    }
}

/// A listener of a load balancer.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Name of its load balancer.
    pub load_balancer: Arc<str>,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// Port, 1…65535; of several the first.
    pub port: u16,
    /// The last port.
    pub last_port: u16,
    /// Whether clients stay with their targets in one of its groups: then the client decides which group it is, too.
    pub sticky: bool,
    /// Whether an endpoint address has targets of all zones.
    pub cross_zone: bool,
    /// Target groups of IPv4 clients with cumulative weights: a flow whose hash, reduced to 0…total-1, is below the first
    /// larger value goes there. Groups of weight 0 are not in the list, nor are those with IPv6 targets.
    pub groups: Arc<[(u32, TargetGroupIndex)]>,
    /// The same of IPv6 clients: all groups, of whatever family.
    pub groups6: Arc<[(u32, TargetGroupIndex)]>,
    /// Idle time of an established flow, in seconds: TCP 60…6000 (350), UDP 10…6000 (120).
    pub idle_seconds: u16,
    /// Upper bound of the MSS option in SYN and SYN-ACK, in bytes; `None`: from the MTUs only.
    pub mss: Option<u16>,
    /// Whether both ends of a TCP flow that was idle for too long are told by a RST.
    pub reset_on_expiry: bool,
    /// The load balancer's: one of these must let a client in; empty: all come in.
    pub security_groups: Arc<[SecurityGroupIndex]>,
}

/// Who may open flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Name from the configuration.
    pub name: Arc<str>,
    /// Its rules.
    pub rules: Arc<Rules>,
    /// Whether live flows end that no rule allows any more.
    pub cut_flows: bool,
}

/// Targets with a selection table.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetGroup {
    /// Name from the configuration.
    pub name: Arc<str>,
    /// The provider's VPC.
    pub vpc: VpcIndex,
    /// The addresses and ports that the targets see.
    pub pool: PoolIndex,
    /// That of all its members' addresses; IPv4 where it has none.
    pub family: Family,
    /// Members, in the order of the selection table's numbering.
    pub members: Arc<[TargetIndex]>,
    /// Shares of new flows, by member: its weight, or 0 where it may not have any.
    pub shares: Arc<[u16]>,
    /// Whether no member with a weight may have new flows, so that all get them. Such flows are to be counted.
    pub fail_open: bool,
    /// Slots of the selection table.
    pub slots: u32,
    /// Hash to position in `members`; `None` when no member has a share, or no listener leads here.
    pub table: Option<Arc<MaglevTable>>,
    /// The same for targets of one zone only, by zone, sorted; no zone in which no target has a share, and none at all where
    /// every listener that leads here sends across zones.
    pub zonal: Arc<[(Zone, Arc<MaglevTable>)]>,
    /// Positions in `members` by the listener's port that leads there alone, sorted; `None`: flows are shared.
    pub mapping: Option<Arc<[(u16, u16)]>>,
    /// How long a client's new flows go to the target of its last one, in seconds; 0: each flow is sent by itself.
    pub sticky_seconds: u32,
    /// How its targets are probed, and what becomes of flows to those that are not healthy.
    pub health: Arc<HealthSettings>,
}

/// A target: an address and port of the provider's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its VPC.
    pub vpc: VpcIndex,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Name of the group, for counters and listings.
    pub group: Arc<str>,
    /// Weight, 0…999.
    pub weight: u16,
    /// Distinguishes the holders of one index.
    pub incarnation: u32,
    /// Whether its flows end.
    pub cut: bool,
    /// The header that tells it who is calling: its group's.
    pub proxy_protocol: ProxyProtocol,
    /// Where it is.
    pub zone: Zone,
    /// The listener's port that leads to it alone; 0: none.
    pub mapped_port: u16,
}

/// The header of the PROXY protocol, version 2, that targets get in front of each TCP connection's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// None.
    #[default]
    Off,
    /// With AWS' TLVs: CRC32C, the endpoint's id, padding.
    Aws,
    /// With Google's TLV: the connection id.
    Google,
    /// With Azure's TLV: the link id.
    Azure,
}

/// Addresses and ports that targets see as the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnatPool {
    /// Name from the configuration.
    pub name: String,
    /// The provider's VPC.
    pub vpc: VpcIndex,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub addresses6: Vec<Ipv6Addr>,
    /// Those of its addresses that get no new flows, in neither of the above; live ones go on.
    pub draining: Vec<IpAddr>,
    /// What a client is told for whom there is no port.
    pub exhausted: Exhausted,
    /// Ports of each address, within 1024…65535.
    pub ports: RangeInclusive<u16>,
    /// How long a freed port rests before it is used again toward the same target, in seconds, 0…240 (60).
    pub rest_seconds: u16,
}

impl SnatPool {
    /// Its addresses of both families, draining ones too.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let wide = self.addresses6.iter().map(|address| IpAddr::V6(*address));
        self.addresses.iter().map(|address| IpAddr::V4(*address)).chain(wide).chain(self.draining.iter().copied())
    }

    /// Its first address of a family.
    #[must_use]
    pub fn first_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.addresses.first().map(|address| IpAddr::V4(*address)),
            Family::V6 => self.addresses6.first().map(|address| IpAddr::V6(*address)),
        }
    }

    /// Whether it has an address of a family.
    #[must_use]
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => !self.addresses.is_empty(),
            Family::V6 => !self.addresses6.is_empty(),
        }
    }
}

/// Up to so many listeners of a service are tried one by one.
const FEW_LISTENERS: usize = 8;

impl Snapshot {
    /// Most incarnations in [`Self::ended`]; of more the oldest are forgotten, whose flows have ended or been idle for long.
    pub const MOST_ENDED: usize = 1 << 16;
    /// Most names of zones in the life of the tables; addresses and targets of further ones are taken for such without a zone.
    pub const MOST_ZONES: usize = 1024;

    /// The attachment whose frames come in on `port` with VLAN identifier `vlan` (0: untagged).
    #[inline]
    #[must_use]
    pub fn attachment(&self, port: PortIndex, vlan: u16) -> Option<AttachmentIndex> {
        if self.attachment_lookup.covers(self.attachments.len()) {
            return self.attachment_lookup.find(port, vlan);
        }
        self.search_attachment(port, vlan)
    }

    /// Makes again what is made of `attachments` and `endpoints`, after they were changed by hand.
    pub fn index(&mut self) {
        self.policies = EndpointPolicy::of(&self.endpoints);
        self.attachment_lookup = Arc::new(AttachmentLookup::new(&self.attachments));
    }

    #[cold]
    fn search_attachment(&self, port: PortIndex, vlan: u16) -> Option<AttachmentIndex> {
        let matches = |attachment: &Attachment| attachment.port == port && attachment.vlan.unwrap_or(0) == vlan;
        self.attachments.iter().position(matches).map(|at| AttachmentIndex(at as u16))
    }

    /// What `address` is to Postern in the VPC behind `attachment`.
    #[inline]
    #[must_use]
    pub fn local(&self, attachment: AttachmentIndex, address: Ipv4Addr) -> Option<LocalAddress> {
        let vpc = self.attachments.get(usize::from(attachment.0))?.vpc;
        self.local.get(&(vpc, address)).copied()
    }

    /// What an IPv6 `address` is to Postern in the VPC behind `attachment`.
    #[inline]
    #[must_use]
    pub fn local6(&self, attachment: AttachmentIndex, address: Ipv6Addr) -> Option<LocalAddress> {
        let vpc = self.attachments.get(usize::from(attachment.0))?.vpc;
        self.local6.get(&(vpc, address)).copied()
    }

    /// What an address of either family is to Postern in the VPC behind `attachment`.
    #[must_use]
    pub fn local_of(&self, attachment: AttachmentIndex, address: IpAddr) -> Option<LocalAddress> {
        match address {
            IpAddr::V4(address) => self.local(attachment, address),
            IpAddr::V6(address) => self.local6(attachment, address),
        }
    }

    /// Whether an address of either family is Postern's in a VPC.
    #[must_use]
    pub fn holds(&self, vpc: VpcIndex, address: IpAddr) -> bool {
        self.local_in(vpc, address).is_some()
    }

    /// What an address of either family is to Postern in a VPC.
    pub(crate) fn local_in(&self, vpc: VpcIndex, address: IpAddr) -> Option<LocalAddress> {
        match address {
            IpAddr::V4(address) => self.local.get(&(vpc, address)).copied(),
            IpAddr::V6(address) => self.local6.get(&(vpc, address)).copied(),
        }
    }

    /// Says what an address is to Postern in a VPC: nothing, with `None`.
    pub(crate) fn set_local(&mut self, vpc: VpcIndex, address: IpAddr, local: Option<LocalAddress>) {
        match (address, local) {
            (IpAddr::V4(address), Some(local)) => self.local.insert((vpc, address), local),
            (IpAddr::V6(address), Some(local)) => self.local6.insert((vpc, address), local),
            (IpAddr::V4(address), None) => drop(self.local.remove(&(vpc, address))),
            (IpAddr::V6(address), None) => drop(self.local6.remove(&(vpc, address))),
        }
    }

    /// One more or one less group has a target's address and port.
    pub(crate) fn count_registered(&mut self, target: &Target, by: i32) {
        fn count<K: Hash + Eq + Copy>(registered: &mut Sharded<K, u32>, key: K, by: i32) {
            match registered.get(&key).copied().unwrap_or(0).saturating_add_signed(by) {
                0 => drop(registered.remove(&key)),
                groups => registered.insert(key, groups),
            }
        }
        match target.address {
            IpAddr::V4(address) => count(&mut self.registered, (target.vpc, address, target.port), by),
            IpAddr::V6(address) => count(&mut self.registered6, (target.vpc, address, target.port), by),
        }
    }

    /// Whether a target with this address and port is registered.
    #[must_use]
    pub fn is_target(&self, vpc: VpcIndex, address: Ipv4Addr, port: u16) -> bool {
        self.registered.contains_key(&(vpc, address, port))
    }

    /// Whether a target with this IPv6 address and port is registered.
    #[must_use]
    pub fn is_target6(&self, vpc: VpcIndex, address: Ipv6Addr, port: u16) -> bool {
        self.registered6.contains_key(&(vpc, address, port))
    }

    /// The best route to `destination` in a VPC.
    #[inline]
    #[must_use]
    pub fn route(&self, vpc: VpcIndex, destination: Ipv4Addr) -> Option<&Route> {
        longest_match(&self.vpcs.get(vpc.at())?.routes, destination)
    }

    /// The best route to an IPv6 `destination` in a VPC.
    #[inline]
    #[must_use]
    pub fn route6(&self, vpc: VpcIndex, destination: Ipv6Addr) -> Option<&Route6> {
        longest_match6(&self.vpcs.get(vpc.at())?.routes6, destination)
    }

    /// The attachment and the neighbour by which packets to `destination` leave a VPC, of either family.
    #[must_use]
    pub fn way_to(&self, vpc: VpcIndex, destination: IpAddr) -> Option<(AttachmentIndex, IpAddr)> {
        match destination {
            IpAddr::V4(address) => {
                self.route(vpc, address).map(|route| (route.attachment, route.via.unwrap_or(address).into()))
            }
            IpAddr::V6(address) => {
                self.route6(vpc, address).map(|route| (route.attachment, route.via.unwrap_or(address).into()))
            }
        }
    }

    /// The endpoint at an index.
    #[inline]
    #[must_use]
    pub fn endpoint(&self, index: EndpointIndex) -> Option<&Endpoint> {
        self.endpoints.get(index.at())
    }

    /// The target at an index.
    #[inline]
    #[must_use]
    pub fn target(&self, index: TargetIndex) -> Option<&Target> {
        self.targets.get(index.at())
    }

    /// Whether one of security groups, which are at least one, lets a client reach a port by an IP protocol.
    #[must_use]
    pub fn admits(&self, groups: &[SecurityGroupIndex], protocol: u8, client: IpAddr, port: u16) -> bool {
        let mut groups = groups.iter().filter_map(|group| self.security_groups.get(group.at()));
        groups.any(|group| group.rules.allow(protocol, client, port))
    }

    /// The names of security groups.
    pub(crate) fn security_group_names(&self, groups: &[SecurityGroupIndex]) -> Vec<String> {
        let groups = groups.iter().filter_map(|group| self.security_groups.get(group.at()));
        groups.map(|group| group.name.to_string()).collect()
    }

    /// The listener of a service for an IP protocol and port.
    #[inline]
    #[must_use]
    pub fn listener(&self, service: ServiceIndex, protocol: u8, port: u16) -> Option<ListenerIndex> {
        let number = |protocol: u8, port: u16| u32::from(protocol) << 16 | u32::from(port);
        let service = self.services.get(service.at())?;
        let listeners = &service.listeners;
        let found = if listeners.len() <= FEW_LISTENERS {
            listeners.iter().position(|(of, _)| *of == (protocol, port))
        } else {
            let of = |((protocol, port), _): &((u8, u16), _)| number(*protocol, *port);
            listeners.binary_search_by_key(&number(protocol, port), of).ok()
        };
        match found {
            Some(at) => Some(listeners[at].1),
            None if service.ranges.is_empty() => None,
            None => service.range(protocol, port),
        }
    }

    /// The number of a zone, which gets one if it has none.
    pub(crate) fn zone(&mut self, name: &Arc<str>) -> Zone {
        if name.is_empty() {
            return Zone::NONE;
        }
        let at = match self.zones.iter().position(|zone| zone == name) {
            Some(at) => at,
            None if self.zones.len() == Self::MOST_ZONES => return Zone::NONE,
            None => {
                Arc::make_mut(&mut self.zones).push(name.clone());
                self.zones.len() - 1
            }
        };
        Zone(at as u16 + 1)
    }

    /// The name of a zone; empty for none.
    #[must_use]
    pub fn zone_name(&self, zone: Zone) -> Arc<str> {
        let name = usize::from(zone.0).checked_sub(1).and_then(|at| self.zones.get(at));
        name.cloned().unwrap_or_default()
    }
}

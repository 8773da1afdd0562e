//! What happens to a frame, and the one list of reasons for which frames are dropped.

use postern_wire::{ParseError, PortIndex};

/// Number of a worker, 0…count-1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WorkerIndex(pub u16);

/// What happens to one received frame. Exactly one verdict a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Translated; to be sent on this port.
    Forward(PortIndex),
    /// Turned into an answer (ICMP echo, ICMP error, RST); to be sent on this port.
    Reply(PortIndex),
    /// For the control-side thread: ARP.
    Punt,
    /// For the health thread: a target's answer to a probe. Counts as punted.
    Probe,
    /// Kept by the forwarder until a neighbour is known; comes out of the outbox later, or is dropped and counted.
    Hold,
    /// Not this worker's: to go over the handoff ring to its owner, with the note.
    Handoff(WorkerIndex, HandoffNote),
    /// Dropped and counted.
    Drop(DropReason),
}

/// What the owner must know of a frame that was handed to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandoffNote {
    /// The frame belongs to a flow (or a port block, or a bucket) of the receiver; of a fragment that is not the first, the
    /// first has gone ahead.
    Owned,
    /// A fragment of a datagram whose fragments all meet at the receiver.
    Gather,
    /// A first packet whose own worker `origin` has no free port toward the target. The receiver lends one if it can, else
    /// passes the frame on.
    Borrow {
        /// The worker whose bucket the flow hashes to.
        origin: WorkerIndex,
        /// Workers asked so far, `origin` included.
        asked: u16,
        /// 0: only rested ports; 1: also ports that still rest, then half-open flows are evicted.
        round: u8,
    },
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $label:literal,)*) => {
        /// Why a frame was dropped. The enum is the counter array, the metric labels and the documentation.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])* $name,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counter array.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The label in metrics and listings.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// What it means, as a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*),)* }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends inside a header.
    Truncated = "truncated",
    /// The EtherType is none of IPv4, IPv6 and ARP.
    EtherType = "ethertype",
    /// The IP version or header length is impossible.
    IpHeader = "ip_header",
    /// The IP total or payload length does not fit the frame.
    IpLength = "ip_length",
    /// The IPv4 header checksum is wrong.
    IpChecksum = "ip_checksum",
    /// The TCP data offset is impossible.
    TcpHeader = "tcp_header",
    /// The UDP length does not fit the packet.
    UdpLength = "udp_length",
    /// A UDP datagram over IPv6 without a checksum.
    UdpChecksum = "udp_checksum",
    /// IPv6 extension headers that are too many or too long, or a routing header that is to be followed.
    Ipv6Extensions = "ipv6_extensions",
    /// The offload state does not match the packet.
    Offload = "offload",
    /// The frame is addressed to another station.
    ForeignMac = "foreign_mac",
    /// No attachment has this port and VLAN.
    NoAttachment = "no_attachment",
    /// Source address is multicast, broadcast, loopback, unspecified, or the same as the destination.
    BadSource = "bad_source",
    /// The destination is none of the addresses that the gateway answers for.
    NotLocal = "not_local",
    /// A fragment that can be part of no datagram, or a first one without the whole TCP or UDP header (RFC 1858, RFC 3128).
    FragmentHeader = "fragment_header",
    /// A fragment that overlaps another of its datagram, or any other fragment of such a datagram.
    FragmentOverlap = "fragment_overlap",
    /// A fragment that had come already.
    FragmentDuplicate = "fragment_duplicate",
    /// A fragment whose datagram's first fragment was dropped, or never came here.
    FragmentRefused = "fragment_refused",
    /// A fragment whose datagram's first fragment did not come in time.
    FragmentTimeout = "fragment_timeout",
    /// No room for a fragment beside others of the same source, or of all; or one of a datagram with more than 128.
    FragmentFull = "fragment_full",
    /// An IP protocol other than TCP, UDP, ICMP in IPv4 and ICMPv6 in IPv6.
    Protocol = "protocol",
    /// The endpoint's service has no listener on this protocol and port.
    NoListener = "no_listener",
    /// The listener has no target with weight.
    NoTarget = "no_target",
    /// No route leads to the target or back to the client.
    NoRoute = "no_route",
    /// From the consumer's side, no flow: a TCP segment that is not a SYN, answered with a RST where the limit allows.
    NoFlow = "no_flow",
    /// From the provider's side, no flow: connections are opened by consumers only.
    Unsolicited = "unsolicited",
    /// The provider's packet answers an SNAT address and port, but another target's.
    WrongTarget = "wrong_target",
    /// No rule of the security groups lets the client in, or not any more.
    SecurityGroup = "security_group",
    /// The endpoint's access was withdrawn.
    AccessWithdrawn = "access_withdrawn",
    /// The flow's target is unhealthy, and its flows end; both ends of TCP are told by a RST where the limit allows.
    TargetUnhealthy = "target_unhealthy",
    /// The flow's target was taken out of its group, which ends its flows; both ends of TCP are told by a RST where the limit
    /// allows.
    TargetDeregistered = "target_deregistered",
    /// A TCP segment that the state of its flow does not allow.
    TcpState = "tcp_state",
    /// A TCP segment with flags that no TCP sends.
    TcpFlags = "tcp_flags",
    /// Every port of the SNAT pool toward the target is in use.
    PortsExhausted = "ports_exhausted",
    /// The endpoint has all SNAT ports of its budget in use.
    PortBudget = "port_budget",
    /// The endpoint has as many live flows as it may.
    FlowLimit = "flow_limit",
    /// The endpoint has had as many new flows in this second as it may.
    NewFlowRate = "new_flow_rate",
    /// The endpoint's bandwidth is used up.
    Bandwidth = "bandwidth",
    /// The pool has no SNAT address.
    NoSnatAddress = "no_snat_address",
    /// The flow table is full.
    FlowTableFull = "flow_table_full",
    /// There are as many half-open flows as may be, and the oldest was not found at once.
    HalfOpenFull = "half_open_full",
    /// No room to remember another PROXY header that its target has not acknowledged.
    ProxyHeadersFull = "proxy_headers_full",
    /// Both index buckets of the flow are full.
    FlowBucketFull = "flow_bucket_full",
    /// The table of next hops is full.
    NextHopsFull = "next_hops_full",
    /// Time to live expired; answered with ICMP time exceeded where the limit allows.
    TtlExpired = "ttl_expired",
    /// Larger than the MTU with DF set; answered with ICMP 3/4 where the limit allows.
    TooBig = "too_big",
    /// A super-frame that can neither be sent as it is nor segmented.
    Unsegmentable = "unsegmentable",
    /// An ICMP message that is neither an echo to an endpoint nor an error.
    IcmpType = "icmp_type",
    /// A message of Neighbor Discovery that is not for the gateway: of routers, a redirect, or with a hop limit below 255.
    NeighbourDiscovery = "neighbour_discovery",
    /// A packet between an IPv6 client and an IPv4 target that the other version of IP has no form for: a source route, a
    /// super-frame without checksums, an ICMP error without counterpart, or one that would have to be fragmented.
    Nat64 = "nat64",
    /// An ICMP message with a wrong checksum.
    IcmpChecksum = "icmp_checksum",
    /// An ICMP error that quotes no packet of a live flow.
    IcmpUnknownQuote = "icmp_unknown_quote",
    /// ICMP echo to an endpoint that does not answer it.
    EchoDisabled = "echo_disabled",
    /// The next hop did not answer in time.
    NeighbourUnreachable = "neighbour_unreachable",
    /// No room to hold the frame until its neighbour is known.
    HoldFull = "hold_full",
    /// No room for a frame of the forwarder's own making.
    OutboxFull = "outbox_full",
    /// The handoff ring to the owner was full.
    HandoffFull = "handoff_full",
    /// The ring to the control-side thread was full.
    PuntFull = "punt_full",
    /// The kernel refused the frame at transmission.
    TransmitRefused = "transmit_refused",
    /// The port to send on is down or gone.
    PortDown = "port_down",
    /// In the hands of a worker that had to be restarted.
    WorkerRestarted = "worker_restarted",
}

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Truncated => Self::Truncated,
            ParseError::EtherType => Self::EtherType,
            ParseError::IpHeader => Self::IpHeader,
            ParseError::IpLength => Self::IpLength,
            ParseError::IpChecksum => Self::IpChecksum,
            ParseError::TcpHeader => Self::TcpHeader,
            ParseError::UdpLength => Self::UdpLength,
            ParseError::UdpChecksum => Self::UdpChecksum,
            ParseError::Extensions => Self::Ipv6Extensions,
            ParseError::Offload => Self::Offload,
        }
    }
}

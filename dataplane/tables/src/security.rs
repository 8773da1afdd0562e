//! Rules of security groups, compiled so that a flow's first packet is judged in a few steps however many rules there are.
//!
//! For each protocol the ports fall into intervals in which the same rules hold. The intervals are the leaves of a tree; a rule
//! stands at the few nodes that together cover its ports, and a node has the sources of its rules as disjoint ranges of addresses
//! in order. A packet is looked up at the nodes from its port's leaf to the root: with 1,000 rules at most eleven binary searches.

use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Most security groups of a gateway: each has a counter at every worker.
pub const GROUPS: usize = 4096;
/// Most rules of a group.
pub const RULES: usize = 1000;
/// Most prefixes that a group stands for as a source, and most sources of all rules of a group together.
pub const PREFIXES: usize = 1000;
/// Most sources of all rules of a group, those of named groups counted for each rule.
pub const SOURCES: usize = 16_384;

/// Protocols that rules tell apart: TCP, UDP, ICMP of both families.
const PROTOCOLS: usize = 3;

/// What a rule allows by protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleProtocol {
    /// All that an endpoint takes.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo to the endpoint.
    Icmp,
}

/// Addresses of one family from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// IPv4.
    V4(u32, u32),
    /// IPv6.
    V6(u128, u128),
}

/// A rule as it was checked: clients with these addresses may reach these ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Protocol.
    pub protocol: RuleProtocol,
    /// Ports of the endpoint; of no meaning for ICMP.
    pub ports: RangeInclusive<u16>,
    /// Where the client may be.
    pub sources: Vec<Source>,
}

/// The rules of a security group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    protocols: [Ports; PROTOCOLS],
}

impl Source {
    /// The addresses of a prefix, written as `ADDRESS/LENGTH`.
    ///
    /// # Errors
    /// What it should be instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || "an IPv4 or IPv6 prefix such as 10.0.0.0/8 or 2001:db8::/32".to_owned();
        let (address, length) = text.split_once('/').ok_or_else(form)?;
        if length.is_empty() || length.len() > 3 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(form());
        }
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let length: u32 = length.parse().map_err(|_| form())?;
        let host_bits = |network: IpAddr| {
            format!("a network address, because host bits are set; the network is {network}/{length}")
        };
        match address {
            IpAddr::V4(address) if length <= 32 => {
                let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
                let first = address.to_bits();
                let network = first & !hosts;
                if first == network {
                    Ok(Self::V4(first, first | hosts))
                } else {
                    Err(host_bits(IpAddr::V4(network.into())))
                }
            }
            IpAddr::V6(address) if length <= 128 => {
                let hosts = u128::MAX.checked_shr(length).unwrap_or(0);
                let first = address.to_bits();
                let network = first & !hosts;
                if first == network {
                    Ok(Self::V6(first, first | hosts))
                } else {
                    Err(host_bits(IpAddr::V6(network.into())))
                }
            }
            _ => Err(form()),
        }
    }
}

impl Rules {
    /// Compiles rules, whose order has no meaning.
    #[must_use]
    pub fn new(rules: &[Rule]) -> Self {
        let of = |protocol: RuleProtocol| {
            let rules = rules.iter().filter(|rule| rule.protocol == RuleProtocol::Any || rule.protocol == protocol);
            Ports::new(&rules.collect::<Vec<_>>(), protocol == RuleProtocol::Icmp)
        };
        Self { protocols: [of(RuleProtocol::Tcp), of(RuleProtocol::Udp), of(RuleProtocol::Icmp)] }
    }

    /// Whether a client may reach a port by an IP protocol. Of ICMP the port has no meaning. An address ::ffff:a.b.c.d is IPv6.
    #[must_use]
    pub fn allow(&self, protocol: u8, client: IpAddr, port: u16) -> bool {
        let ports = match protocol {
            6 => &self.protocols[0],
            17 => &self.protocols[1],
            1 | 58 => &self.protocols[2],
            _ => return false,
        };
        ports.allow(client, port)
    }
}

/// The rules of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ports {
    /// First port of each interval, in order; the first is 0.
    starts: Box<[u16]>,
    /// Twice as many as intervals: node 1 is the root, node n has 2n and 2n + 1 below it, the leaves come last. Node 0 is none.
    nodes: Box<[Addresses]>,
}

impl Ports {
    fn new(rules: &[&Rule], any_port: bool) -> Self {
        if rules.is_empty() {
            return Self::default();
        }
        let ports = |rule: &Rule| if any_port { 0..=u16::MAX } else { rule.ports.clone() };
        let ends = rules.iter().filter_map(|rule| ports(rule).end().checked_add(1));
        let mut starts: Vec<u16> = rules.iter().map(|rule| *ports(rule).start()).chain(ends).chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let intervals = starts.len();
        let leaf = |port: u16| intervals + starts.partition_point(|start| *start <= port) - 1;
        let mut sources = vec![Vec::new(); 2 * intervals];
        for rule in rules {
            let (mut low, mut high) = (leaf(*ports(rule).start()), leaf(*ports(rule).end()) + 1);
            while low < high {
                if low % 2 == 1 {
                    sources[low].extend_from_slice(&rule.sources);
                    low += 1;
                }
                if high % 2 == 1 {
                    high -= 1;
                    sources[high].extend_from_slice(&rule.sources);
                }
                (low, high) = (low / 2, high / 2);
            }
        }
        Self { nodes: sources.iter().map(|sources| Addresses::new(sources)).collect(), starts: starts.into() }
    }

    fn allow(&self, client: IpAddr, port: u16) -> bool {
        let after = self.starts.partition_point(|start| *start <= port);
        let Some(interval) = after.checked_sub(1) else { return false };
        let mut node = self.starts.len() + interval;
        while node > 0 {
            if self.nodes[node].contain(client) {
                return true;
            }
            node /= 2;
        }
        false
    }
}

/// Ranges of addresses from first to last, in order, without overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Addresses {
    fn new(sources: &[Source]) -> Self {
        let v4 = sources.iter().filter_map(|source| match *source {
            Source::V4(first, last) => Some((first, last)),
            Source::V6(..) => None,
        });
        let v6 = sources.iter().filter_map(|source| match *source {
            Source::V6(first, last) => Some((first, last)),
            Source::V4(..) => None,
        });
        Self { v4: joined(v4.collect()), v6: joined(v6.collect()) }
    }

    fn contain(&self, client: IpAddr) -> bool {
        match client {
            IpAddr::V4(address) => contain(&self.v4, address.to_bits()),
            IpAddr::V6(address) => contain(&self.v6, address.to_bits()),
        }
    }
}

fn joined<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut joined: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined.into()
}

fn contain<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after > 0 && address <= ranges[after - 1].1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same as [`Rules::allow`], one rule after the other.
    fn slowly(rules: &[Rule], protocol: u8, client: IpAddr, port: u16) -> bool {
        rules.iter().any(|rule| {
            let of_protocol = match rule.protocol {
                // All that an endpoint takes.
                RuleProtocol::Any => protocol != 47,
                RuleProtocol::Tcp => protocol == 6,
                RuleProtocol::Udp => protocol == 17,
                RuleProtocol::Icmp => protocol == 1 || protocol == 58,
            };
            let of_port = protocol == 1 || protocol == 58 || rule.ports.contains(&port);
            let from = rule.sources.iter().any(|source| match (*source, client) {
                (Source::V4(first, last), IpAddr::V4(client)) => (first..=last).contains(&client.to_bits()),
                (Source::V6(first, last), IpAddr::V6(client)) => (first..=last).contains(&client.to_bits()),
                _ => false,
            });
            of_protocol && of_port && from
        })
    }

    fn source() -> impl Strategy<Value = Source> {
        // Few addresses, so that ranges touch, overlap and are met.
        prop_oneof![
            (0u32..64, 0u32..6)
                .prop_map(|(at, bits)| (at >> bits << bits, (at | ((1 << bits) - 1))))
                .prop_map(|(a, b)| Source::V4(a, b)),
            (0u128..64, 0u32..6)
                .prop_map(|(at, bits)| (at >> bits << bits, (at | ((1 << bits) - 1))))
                .prop_map(|(a, b)| Source::V6(a, b)),
        ]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let protocol =
            prop::sample::select(&[RuleProtocol::Any, RuleProtocol::Tcp, RuleProtocol::Udp, RuleProtocol::Icmp][..]);
        let port = || prop_oneof![0u16..32, Just(u16::MAX), Just(u16::MAX - 1)];
        (protocol, port(), port(), prop::collection::vec(source(), 0..4)).prop_map(|(protocol, a, b, sources)| Rule {
            protocol,
            ports: a.min(b)..=a.max(b),
            sources,
        })
    }

    proptest! {
        #[test]
        fn a_security_group_allows_what_one_of_its_rules_allows(
            rules in prop::collection::vec(rule(), 0..24),
            packets in prop::collection::vec((prop::sample::select(&[1u8, 6, 17, 58, 47][..]), any::<bool>(), 0u32..64, prop_oneof![0u16..34, Just(u16::MAX)]), 64),
        ) {
            let compiled = Rules::new(&rules);
            for (protocol, four, address, port) in packets {
                let client = if four { IpAddr::V4(address.into()) } else { IpAddr::V6(u128::from(address).into()) };
                prop_assert_eq!(compiled.allow(protocol, client, port), slowly(&rules, protocol, client, port));
            }
        }
    }

    #[test]
    fn a_security_group_of_a_thousand_rules_takes_a_few_steps() {
        let rule = |at: u16| Rule {
            protocol: RuleProtocol::Tcp,
            ports: at * 60..=at * 60 + 59,
            sources: vec![Source::V4(u32::from(at) << 8, u32::from(at) << 8 | 255)],
        };
        let rules: Vec<Rule> = (0..1000).map(rule).collect();
        let compiled = Rules::new(&rules);
        // The way from a leaf to the root, and the longest list on it.
        let [tcp, udp, _] = &compiled.protocols;
        assert_eq!(tcp.starts.len(), 1001);
        assert!(tcp.nodes.iter().all(|node| node.v4.len() <= 1));
        assert!(udp.nodes.is_empty());
        for at in [0u16, 1, 500, 999] {
            assert!(compiled.allow(6, IpAddr::V4((u32::from(at) << 8 | 9).into()), at * 60 + 59));
            assert!(!compiled.allow(6, IpAddr::V4((u32::from(at) << 8 | 9).into()), at * 60 + 60));
        }
        // A thousand sources of one port are one list in order.
        let rules: Vec<Rule> = rules.into_iter().map(|rule| Rule { ports: 443..=443, ..rule }).collect();
        let compiled = Rules::new(&rules);
        assert_eq!(compiled.protocols[0].starts.len(), 3);
        assert!(compiled.allow(6, "0.3.231.255".parse().unwrap(), 443));
        assert!(!compiled.allow(6, "0.3.232.0".parse().unwrap(), 443));
    }

    #[test]
    fn a_source_is_a_prefix_of_either_family() {
        assert_eq!(Source::parse("10.1.0.0/16"), Ok(Source::V4(0x0a01_0000, 0x0a01_ffff)));
        assert_eq!(Source::parse("0.0.0.0/0"), Ok(Source::V4(0, u32::MAX)));
        assert_eq!(Source::parse("10.0.0.1/32"), Ok(Source::V4(0x0a00_0001, 0x0a00_0001)));
        assert_eq!(Source::parse("::/0"), Ok(Source::V6(0, u128::MAX)));
        assert_eq!(Source::parse("2001:db8::1/128"), Ok(Source::V6(0x2001_0db8 << 96 | 1, 0x2001_0db8 << 96 | 1)));
        assert!(Source::parse("10.0.0.1/24").unwrap_err().ends_with("the network is 10.0.0.0/24"));
        assert!(Source::parse("fe80::1/64").unwrap_err().ends_with("the network is fe80::/64"));
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "x/8", "/8"] {
            assert!(Source::parse(wrong).is_err(), "{wrong}");
        }
    }
}

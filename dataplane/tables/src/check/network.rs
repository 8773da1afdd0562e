//! Ports, VPCs, attachments, routes, SNAT pools: what an address means where.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use postern_wire::{AttachmentIndex, Family, IpPrefix, MacAddress, PortIndex};

use super::{Checker, Keys, Names, World, text};
use crate::declaration::{self, Declaration, Io, Mode};
use crate::error::Problem;
use crate::lookup::{longest_match, longest_match6};
use crate::resource::ResourceKind;
use crate::snapshot::{Attachment, Port, ReturnPath, Route, Route6, SnatPool, VpcIndex};

pub(super) fn ports(checker: &mut Checker<'_>, ports: &[declaration::Port], io: Option<Io>) -> Vec<Port> {
    const ALLOWED: &str = "the name of an interface, 1 to 15 bytes without blanks, / and :";
    let key = |at: usize| format!("port[{at}].interface");
    if ports.is_empty() {
        checker.error("port", "", Problem::Missing("at least one [[port]] with an interface"));
    }
    if ports.len() > 256 {
        checker.number(&|| "port".to_owned(), ports.len() as i64, (1, 256), " ports");
    }
    for (at, port) in ports.iter().enumerate() {
        let name = port.interface.as_str();
        let fits = |character: char| !character.is_whitespace() && !character.is_control() && !"/:".contains(character);
        if name.is_empty() {
            checker.error(key(at), name, Problem::Missing(ALLOWED));
        } else if name.len() > 15 || !name.chars().all(fits) || [".", ".."].contains(&name) {
            checker.error(key(at), name, Problem::Form(ALLOWED.to_owned()));
        }
    }
    checker.unique(ports.iter().map(|port| port.interface.as_str()), key);
    let checked = |port: &declaration::Port| Port {
        interface: port.interface.clone(),
        shared: port.mode == Mode::Shared,
        io: port.io.or(io).unwrap_or_default(),
    };
    ports.iter().map(checked).collect()
}

pub(super) fn vpcs(checker: &mut Checker<'_>, vpcs: &[declaration::Vpc]) -> Vec<String> {
    let keys = checker.keys;
    let key = |at: usize| format!("{}.id", keys.place("vpc", at, &vpcs[at].id));
    for (at, vpc) in vpcs.iter().enumerate() {
        checker.identifier(|| key(at), &vpc.id, "vpc-");
    }
    checker.unique(vpcs.iter().map(|vpc| vpc.id.as_str()), key);
    vpcs.iter().map(|vpc| vpc.id.clone()).collect()
}

/// The MTU that every link with IPv6 has at least (RFC 8200 §5), in bytes.
pub(super) const LEAST_MTU: u16 = 1280;

/// Largest number of attachments.
const ATTACHMENTS: usize = 32_768;

pub(super) fn attachments(
    checker: &mut Checker<'_>,
    attachments: &[declaration::Attachment],
    vpcs: &Names<'_>,
    ports: &Names<'_>,
) -> Vec<Attachment> {
    let keys = checker.keys;
    let place = |at: usize| keys.place("attachment", at, &attachments[at].name);
    let key = |at: usize, field: &str| format!("{}.{field}", place(at));
    if attachments.len() > ATTACHMENTS {
        let declared = attachments.len() as i64;
        checker.number(&|| "attachment".to_owned(), declared, (0, ATTACHMENTS as i64), " attachments");
    }
    checker.unique(attachments.iter().map(|attachment| attachment.name.as_str()), |at| key(at, "name"));
    let mut wires = HashMap::new();
    let mut on_link = HashMap::new();
    let mut checked = Vec::new();
    for (at, written) in attachments.iter().enumerate() {
        checker.name(|| key(at, "name"), &written.name);
        let vpc = checker.reference(|| key(at, "vpc"), &written.vpc, vpcs);
        let port = checker.reference(|| key(at, "port"), &written.port, ports);
        let vlan = written.vlan.map(|vlan| checker.number(&|| key(at, "vlan"), vlan, (1, 4094), "") as u16);
        let mtu = written.mtu.map(|mtu| checker.number(&|| key(at, "mtu"), mtu, (576, 65_535), " bytes") as u16);
        if let Some(port) = port
            && let Some(earlier) = wires.insert((port, vlan), at)
        {
            let tag = vlan.map_or("untagged frames".to_owned(), |vlan| format!("VLAN {vlan}"));
            let first = format!("{} for {tag}", key(earlier, "port"));
            checker.error(key(at, "port"), &written.port, Problem::Duplicate(first));
        }
        let (mut prefixes, mut prefixes6) = (Vec::new(), Vec::new());
        for (position, prefix) in written.prefixes.iter().enumerate() {
            let key = || format!("{}.prefixes[{position}]", place(at));
            let Some(checked) = checker.prefix(&key, prefix) else { continue };
            match checked {
                IpPrefix::V4(prefix) => prefixes.push(prefix),
                IpPrefix::V6(prefix) => prefixes6.push(prefix),
            }
            if let Some(vpc) = vpc
                && let Some(earlier) = on_link.insert((vpc, checked), key())
            {
                checker.error(key(), prefix, Problem::Duplicate(earlier));
            }
        }
        if !prefixes6.is_empty()
            && let Some(mtu) = mtu.filter(|mtu| *mtu < LEAST_MTU)
        {
            let range = (i64::from(LEAST_MTU), 65_535);
            checker.number(&|| key(at, "mtu"), mtu.into(), range, " bytes with IPv6 prefixes");
        }
        checked.push(Attachment {
            name: written.name.clone(),
            vpc: VpcIndex(vpc.unwrap_or(0) as u32),
            port: PortIndex(port.unwrap_or(0) as u16),
            vlan,
            mtu,
            return_path: match written.return_path {
                declaration::ReturnPath::Route => ReturnPath::Route,
                declaration::ReturnPath::LastHop => ReturnPath::LastHop,
            },
            prefixes,
            prefixes6,
            mac: written.mac.as_deref().and_then(|text| mac(checker, &|| key(at, "mac"), text)),
        });
    }
    checked
}

impl Attachment {
    /// On-link prefixes of both families.
    pub(crate) fn all_prefixes(&self) -> impl Iterator<Item = IpPrefix> + '_ {
        let wide = self.prefixes6.iter().map(|prefix| IpPrefix::V6(*prefix));
        self.prefixes.iter().map(|prefix| IpPrefix::V4(*prefix)).chain(wide)
    }
}

fn mac(checker: &mut Checker<'_>, key: &dyn Fn() -> String, text: &str) -> Option<MacAddress> {
    match text.parse::<MacAddress>() {
        Ok(mac) if !mac.is_group() && mac != MacAddress::ZERO => Some(mac),
        _ => {
            checker.error(key(), text, Problem::Form("a unicast MAC address such as 02:00:00:00:00:01".to_owned()));
            None
        }
    }
}

/// Declared and on-link routes with the declared index of their VPC, longest prefix first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    pub(crate) v4: Vec<(usize, Route)>,
    pub(crate) v6: Vec<(usize, Route6)>,
}

impl Routes {
    /// Adds a route; one whose router is of the other family was reported, and is passed over.
    fn add(&mut self, vpc: usize, destination: IpPrefix, attachment: AttachmentIndex, via: Option<IpAddr>) {
        match (destination, via) {
            (IpPrefix::V4(destination), None) => self.v4.push((vpc, Route { destination, attachment, via: None })),
            (IpPrefix::V6(destination), None) => self.v6.push((vpc, Route6 { destination, attachment, via: None })),
            (IpPrefix::V4(destination), Some(IpAddr::V4(via))) => {
                self.v4.push((vpc, Route { destination, attachment, via: Some(via) }));
            }
            (IpPrefix::V6(destination), Some(IpAddr::V6(via))) => {
                self.v6.push((vpc, Route6 { destination, attachment, via: Some(via) }));
            }
            _ => {}
        }
    }

    fn sort(&mut self) {
        self.v4.sort_by_key(|(vpc, route)| (*vpc, Reverse(route.destination.length()), route.destination));
        self.v6.sort_by_key(|(vpc, route)| (*vpc, Reverse(route.destination.length()), route.destination));
    }
}

pub(super) fn routes(checker: &mut Checker<'_>, declaration: &Declaration, attachments: &[Attachment]) -> Routes {
    let keys = checker.keys;
    let names = Names::of("attachment", declaration.attachments.iter().map(|attachment| &attachment.name));
    let mut routes = Routes::default();
    let mut taken: HashMap<(usize, IpPrefix), String> = HashMap::new();
    for (at, attachment) in attachments.iter().enumerate() {
        let written = &declaration.attachments[at].prefixes;
        for destination in attachment.all_prefixes() {
            taken.entry((attachment.vpc.at(), destination)).or_insert_with(|| {
                let position = written.iter().position(|text| text.parse() == Ok(destination)).unwrap_or(0);
                format!("{}.prefixes[{position}]", keys.place("attachment", at, &attachment.name))
            });
            routes.add(attachment.vpc.at(), destination, AttachmentIndex(at as u16), None);
        }
    }
    for (at, written) in declaration.routes.iter().enumerate() {
        let key = |field: &str| match keys {
            Keys::Positions => format!("route[{at}].{field}"),
            // Where there is no file, routes belong to their attachment.
            Keys::Names => {
                let before = declaration.routes[..at].iter().filter(|route| route.attachment == written.attachment);
                format!("{}.routes[{}].{field}", keys.place("attachment", at, &written.attachment), before.count())
            }
        };
        let attachment = checker.reference(|| key("attachment"), &written.attachment, &names);
        let destination = checker.prefix(&|| key("destination"), &written.destination);
        let via = written.via.as_deref().map(|text| (text, checker.router(&|| key("via"), text)));
        let (Some(index), Some(destination)) = (attachment, destination) else { continue };
        let attachment = &attachments[index];
        if let Some((text, Some(via))) = via {
            router(checker, &|| key("via"), text, via, attachment, destination);
        }
        let vpc = attachment.vpc.at();
        if let Some(earlier) = taken.insert((vpc, destination), key("destination")) {
            checker.error(key("destination"), &written.destination, Problem::Duplicate(earlier));
        }
        let via = via.and_then(|(_, via)| via);
        routes.add(vpc, destination, AttachmentIndex(index as u16), via);
    }
    routes.sort();
    routes
}

fn router(
    checker: &mut Checker<'_>,
    key: &dyn Fn() -> String,
    text: &str,
    via: IpAddr,
    attachment: &Attachment,
    destination: IpPrefix,
) {
    let (router, destination) = (Family::of(via), Family::of(destination.network()));
    if router != destination {
        checker.error(key(), text, Problem::RouterFamily { router, destination });
        return;
    }
    // Link-local addresses are on every link.
    if matches!(via, IpAddr::V6(via) if via.is_unicast_link_local()) {
        return;
    }
    match attachment.all_prefixes().find(|prefix| prefix.contains(via)) {
        Some(prefix) => {
            // A packet to the routers' anycast address reaches a router.
            if let Some(end) = text::network_end(prefix, via).filter(|_| router == Family::V4) {
                checker.error(key(), text, Problem::network_end(end, via, prefix));
            }
        }
        None => {
            let list = attachment.all_prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>();
            let prefixes = if list.is_empty() { "it has none".to_owned() } else { list.join(", ") };
            let problem = Problem::RouterNotOnLink { attachment: attachment.name.clone(), prefixes };
            checker.error(key(), text, problem);
        }
    }
}

/// What VPCs, attachments and routes say of addresses. VPCs are declared indices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) vpcs: Vec<String>,
    /// On-link prefixes by VPC.
    on_link: Vec<Vec<IpPrefix>>,
    routes: Vec<Vec<Route>>,
    routes6: Vec<Vec<Route6>>,
    /// Whether no route was left out because of an error, so that an address without a route is one.
    all_routes: bool,
    routers: HashSet<(usize, IpAddr)>,
    attached: Vec<bool>,
}

impl Facts {
    pub(super) fn new(vpcs: &[String], attachments: &[Attachment], routes: &Routes, all_routes: bool) -> Self {
        let mut facts = Self {
            vpcs: vpcs.to_vec(),
            on_link: vec![Vec::new(); vpcs.len()],
            routes: vec![Vec::new(); vpcs.len()],
            routes6: vec![Vec::new(); vpcs.len()],
            all_routes,
            routers: HashSet::new(),
            attached: vec![false; vpcs.len()],
        };
        for attachment in attachments {
            // An attachment whose VPC is unknown was reported, and stands at 0, where there may be none.
            if let Some(attached) = facts.attached.get_mut(attachment.vpc.at()) {
                *attached = true;
                facts.on_link[attachment.vpc.at()].extend(attachment.all_prefixes());
            }
        }
        for (vpc, route) in &routes.v4 {
            if let Some(routes) = facts.routes.get_mut(*vpc) {
                routes.push(*route);
                facts.routers.extend(route.via.map(|via| (*vpc, via.into())));
            }
        }
        for (vpc, route) in &routes.v6 {
            if let Some(routes) = facts.routes6.get_mut(*vpc) {
                routes.push(*route);
                facts.routers.extend(route.via.map(|via| (*vpc, via.into())));
            }
        }
        facts
    }

    pub(super) fn vpc_id(&self, vpc: usize) -> &str {
        &self.vpcs[vpc]
    }

    pub(super) fn is_attached(&self, vpc: usize) -> bool {
        self.attached[vpc]
    }

    pub(super) fn has_route(&self, vpc: usize, address: IpAddr) -> bool {
        !self.all_routes
            || match address {
                IpAddr::V4(address) => longest_match(&self.routes[vpc], address).is_some(),
                IpAddr::V6(address) => longest_match6(&self.routes6[vpc], address).is_some(),
            }
    }

    /// Whether an address is an end of an on-link prefix of the VPC: the error for it.
    pub(super) fn network_end(&self, vpc: usize, address: IpAddr) -> Option<Problem> {
        let ends = |prefix: &IpPrefix| text::network_end(*prefix, address).map(|what| (what, *prefix));
        let (what, prefix) = self.on_link[vpc].iter().find_map(ends)?;
        Some(Problem::network_end(what, address, prefix))
    }
}

/// Who has which address: for the checks of everything that has one.
pub(crate) struct Network<'a> {
    pub(super) facts: &'a Facts,
    declaration: &'a Declaration,
    keys: Keys,
    world: Option<&'a World<'a>>,
    /// Endpoint and SNAT addresses of `declaration`.
    local: HashMap<(usize, IpAddr), LocalKey>,
}

/// Where a local address stands in the file, without a text for each of 100,000.
#[derive(Clone, Copy)]
pub(super) struct LocalKey {
    pub(super) kind: ResourceKind,
    pub(super) at: usize,
    pub(super) position: usize,
}

impl<'a> Network<'a> {
    pub(crate) fn new(
        facts: &'a Facts,
        declaration: &'a Declaration,
        keys: Keys,
        world: Option<&'a World<'a>>,
    ) -> Self {
        Self { facts, declaration, keys, world, local: HashMap::new() }
    }

    pub(super) fn text(&self, key: LocalKey) -> String {
        let LocalKey { kind, at, position } = key;
        let place = match kind {
            ResourceKind::SnatPool => self.keys.place("snat_pool", at, &self.declaration.snat_pools[at].name),
            _ => self.keys.place("endpoint", at, &self.declaration.endpoints[at].id),
        };
        format!("{place}.addresses[{position}]")
    }

    /// The key of what has an address.
    pub(super) fn local_key(&self, vpc: usize, address: IpAddr) -> Option<String> {
        match self.local.get(&(vpc, address)) {
            Some(key) => Some(self.text(*key)),
            None => self.world?.holder(vpc, address),
        }
    }

    /// Takes an address for Postern, or says why it cannot have it.
    pub(super) fn claim(&mut self, checker: &mut Checker<'_>, vpc: usize, key: LocalKey, address: IpAddr) {
        let facts = self.facts;
        if let Some(problem) = facts.network_end(vpc, address) {
            checker.error(self.text(key), &address.to_string(), problem);
        } else if facts.routers.contains(&(vpc, address)) {
            let problem = Problem::Duplicate("a [[route]]'s via".to_owned());
            checker.error(self.text(key), &address.to_string(), problem);
        } else if let Some(earlier) = self.local_key(vpc, address) {
            checker.error(self.text(key), &address.to_string(), Problem::Duplicate(earlier));
        } else {
            self.local.insert((vpc, address), key);
            if facts.attached[vpc] && !facts.on_link[vpc].iter().any(|prefix| prefix.contains(address)) {
                checker.warn(self.text(key), &address.to_string(), Problem::NotOnLink(facts.vpcs[vpc].clone()));
            }
        }
    }
}

pub(super) fn pools(
    checker: &mut Checker<'_>,
    pools: &[declaration::SnatPool],
    vpcs: &Names<'_>,
    network: &mut Network<'_>,
) -> Vec<SnatPool> {
    let keys = checker.keys;
    let key = |at: usize, field: &str| format!("{}.{field}", keys.place("snat_pool", at, &pools[at].name));
    checker.unique(pools.iter().map(|pool| pool.name.as_str()), |at| key(at, "name"));
    let mut checked = Vec::new();
    for (at, written) in pools.iter().enumerate() {
        checker.name(|| key(at, "name"), &written.name);
        let vpc = checker.reference(|| key(at, "vpc"), &written.vpc, vpcs);
        if let Some(vpc) = vpc
            && !network.facts.is_attached(vpc)
        {
            checker.error(key(at, "vpc"), &written.vpc, Problem::NoAttachment);
        }
        let (mut addresses, mut addresses6) = (Vec::new(), Vec::new());
        for (position, text) in written.addresses.iter().enumerate() {
            let place = LocalKey { kind: ResourceKind::SnatPool, at, position };
            let Some(address) = checker.address(&|| network.text(place), text) else { continue };
            match address {
                IpAddr::V4(address) => addresses.push(address),
                IpAddr::V6(address) => addresses6.push(address),
            }
            if let Some(vpc) = vpc {
                network.claim(checker, vpc, place, address);
            }
        }
        let mut draining = Vec::new();
        for (position, text) in written.draining.iter().enumerate() {
            let key = || key(at, &format!("draining[{position}]"));
            let Some(address) = checker.address(&key, text) else { continue };
            let known = match &address {
                IpAddr::V4(address) => addresses.contains(address),
                IpAddr::V6(address) => addresses6.contains(address),
            };
            if !known {
                checker.error(key(), text, Problem::Form("one of the pool's addresses".to_owned()));
            } else if !draining.contains(&address) {
                draining.push(address);
            }
        }
        addresses.retain(|address| !draining.contains(&IpAddr::V4(*address)));
        addresses6.retain(|address| !draining.contains(&IpAddr::V6(*address)));
        let ports = written.ports.as_deref().unwrap_or("1024-65535");
        let range = text::port_range(ports).unwrap_or_else(|| {
            let form = "a range of ports; allowed is FIRST-LAST within 1024-65535".to_owned();
            checker.error(key(at, "ports"), ports, Problem::Form(form));
            1024..=65_535
        });
        let rest = written.rest_seconds.unwrap_or(60);
        checked.push(SnatPool {
            name: written.name.clone(),
            vpc: VpcIndex(vpc.unwrap_or(0) as u32),
            addresses,
            addresses6,
            draining,
            exhausted: written.exhausted.unwrap_or_default(),
            ports: range,
            rest_seconds: checker.number(&|| key(at, "rest_seconds"), rest, (0, 240), " seconds") as u16,
        });
    }
    checked
}

//! The checks of what was declared. What comes out is [`Checked`]: every reference resolved, every value in range.

mod control;
mod families;
mod health;
mod network;
mod process;
pub mod range;
mod security;
mod services;
pub mod text;
mod world;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use postern_selection::SelectionHash;
use postern_wire::address::AddressError;
use postern_wire::{Family, IpPrefix};

use crate::declaration::Declaration;
use crate::error::{ConfigurationError, Errors, Problem, shorten};
use crate::health::HealthSettings;
use crate::resource::ResourceKind;
use crate::security::Rules;
use crate::snapshot::{self, ProxyProtocol};

pub use control::{ControlAddress, ControlCredentials, ControlSettings};
pub(crate) use network::{Facts, Network, Routes};
pub(crate) use world::World;

pub use process::{GatewaySettings, Limits, WorkerSettings};

/// A declaration in which everything is right. Made by [`Declaration::check`] only.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Name of the file.
    pub file: String,
    /// What concerns the process.
    pub gateway: GatewaySettings,
    /// Where the rest is declared; `None`: in this file.
    pub control: Option<ControlSettings>,
    /// The threads that forward.
    pub workers: WorkerSettings,
    /// Room that is made once.
    pub limits: Limits,
    /// Interfaces, by `PortIndex`.
    pub ports: Vec<snapshot::Port>,
    /// What is doubtful, but allowed; to be logged.
    pub warnings: Vec<ConfigurationError>,
    pub(crate) limits_written: [bool; 2],
    pub(crate) selection: SelectionHash,
    /// Everything below refers to VPCs, attachments and pools by declared index.
    pub(crate) facts: Facts,
    /// Routes with the declared index of their VPC, longest prefix first.
    pub(crate) routes: Routes,
    pub(crate) attachments: Vec<snapshot::Attachment>,
    pub(crate) pools: Vec<snapshot::SnatPool>,
    pub(crate) objects: Objects,
    /// As written.
    pub(crate) declaration: Arc<Declaration>,
}

/// What changes often, checked. References among these are names; to VPCs and pools, declared indices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) security_groups: Vec<CheckedSecurityGroup>,
    pub(crate) groups: Vec<CheckedGroup>,
    pub(crate) load_balancers: Vec<CheckedBalancer>,
    pub(crate) services: Vec<CheckedService>,
    pub(crate) endpoints: Vec<CheckedEndpoint>,
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedSecurityGroup {
    pub(crate) name: String,
    pub(crate) rules: Rules,
    pub(crate) cut_flows: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedGroup {
    pub(crate) name: String,
    pub(crate) vpc: usize,
    pub(crate) pool: usize,
    pub(crate) slots: usize,
    pub(crate) health: Arc<HealthSettings>,
    pub(crate) proxy_protocol: ProxyProtocol,
    /// How long clients stay with their targets, in seconds; 0: they do not.
    pub(crate) sticky_seconds: u32,
    /// Sorted.
    pub(crate) targets: Vec<CheckedTarget>,
}

/// A target, ordered by address and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CheckedTarget {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) weight: u16,
    /// The listener's port that leads to it alone; 0: none.
    pub(crate) mapped_port: u16,
    /// Empty: none.
    pub(crate) zone: Arc<str>,
}

impl CheckedGroup {
    /// That of all targets; IPv4 where there are none.
    pub(crate) fn family(&self) -> Family {
        self.targets.first().map_or(Family::V4, |target| Family::of(target.address))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedBalancer {
    pub(crate) name: String,
    pub(crate) listeners: Vec<CheckedListener>,
    /// Those that are enforced.
    pub(crate) security_groups: Vec<String>,
    pub(crate) cross_zone: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedListener {
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// The last of its ports.
    pub(crate) last_port: u16,
    /// Names of target groups with their weights; none is 0.
    pub(crate) shares: Vec<(u32, String)>,
    pub(crate) idle_seconds: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) reset_on_expiry: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedService {
    pub(crate) id: String,
    pub(crate) load_balancers: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedEndpoint {
    pub(crate) id: String,
    pub(crate) vpc: usize,
    pub(crate) service: String,
    /// Each with its zone; empty: none.
    pub(crate) addresses: Vec<(IpAddr, Arc<str>)>,
    /// What was written: MTU and answer to echo.
    pub(crate) written: (Option<u16>, Option<bool>),
    pub(crate) security_groups: Vec<String>,
    pub(crate) limits: snapshot::EndpointLimits,
}

impl Declaration {
    /// Checks everything: ranges, forms, references, addresses, and what belongs together.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn check(self) -> Result<Checked, Errors> {
        self.check_as(Keys::Positions)
    }

    pub(crate) fn check_as(self, keys: Keys) -> Result<Checked, Errors> {
        let mut checker = Checker::new(&self.file, keys);
        let gateway = process::gateway(&mut checker, &self.gateway);
        let control = control::control(&mut checker, &self);
        let workers = process::workers(&mut checker, &self.workers);
        let selection = process::selection(&mut checker, &self.selection);
        let limits = process::limits(&mut checker, &self);
        let ports = network::ports(&mut checker, &self.ports, self.gateway.io);
        let port_names = Names::of("port", self.ports.iter().map(|port| &port.interface));
        let vpcs = network::vpcs(&mut checker, &self.vpcs);
        let vpc_names = Names::of("VPC", vpcs.iter());
        let attachments = network::attachments(&mut checker, &self.attachments, &vpc_names, &port_names);
        let before = checker.errors.len();
        let routes = network::routes(&mut checker, &self, &attachments);
        let all_routes = checker.errors.len() == before;
        let facts = Facts::new(&vpcs, &attachments, &routes, all_routes);
        let mut network = Network::new(&facts, &self, keys, None);
        let pools = network::pools(&mut checker, &self.snat_pools, &vpc_names, &mut network);
        let pool_names = Names::of("snat_pool", self.snat_pools.iter().map(|pool| &pool.name));
        let pool_vpcs: Vec<_> = self.snat_pools.iter().map(|pool| vpc_names.find(&pool.vpc)).collect();
        let objects = objects(&mut checker, &self, &vpc_names, (&pool_names, &pool_vpcs), &mut network, None);
        let Checker { errors, warnings, .. } = checker;
        Errors::unless_empty(errors)?;
        Ok(Checked {
            gateway,
            control,
            workers,
            limits,
            ports,
            warnings,
            limits_written: [self.limits.endpoints.is_some(), self.limits.targets.is_some()],
            selection,
            routes,
            attachments,
            pools,
            objects,
            facts,
            file: self.file.clone(),
            declaration: Arc::new(self),
        })
    }
}

impl Checked {
    /// The process part, and what VPCs, attachments and routes say of addresses.
    pub(crate) fn without_objects(&self) -> Self {
        let Declaration { file, gateway, workers, selection, limits, ports, .. } = &*self.declaration;
        let declaration = Declaration {
            file: file.clone(),
            gateway: gateway.clone(),
            workers: workers.clone(),
            selection: selection.clone(),
            limits: limits.clone(),
            ports: ports.clone(),
            ..Declaration::default()
        };
        Self {
            file: self.file.clone(),
            gateway: self.gateway.clone(),
            control: self.control.clone(),
            workers: self.workers.clone(),
            limits: self.limits,
            ports: self.ports.clone(),
            warnings: Vec::new(),
            limits_written: self.limits_written,
            selection: self.selection.clone(),
            facts: self.facts.clone(),
            routes: Routes::default(),
            attachments: Vec::new(),
            pools: Vec::new(),
            objects: Objects::default(),
            declaration: Arc::new(declaration),
        }
    }
}

/// Checks target groups, load balancers, services and endpoints: those that `declaration` has. What else there is,
/// `world` knows.
pub(crate) fn objects(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    vpcs: &Names<'_>,
    (pools, pool_vpcs): (&Names<'_>, &[Option<usize>]),
    network: &mut Network<'_>,
    world: Option<&World<'_>>,
) -> Objects {
    let security_groups = security::groups(checker, declaration, world);
    let groups = services::groups(checker, declaration, vpcs, (pools, pool_vpcs), network);
    let load_balancers = services::load_balancers(checker, declaration, world);
    let services = services::services(checker, declaration, &load_balancers, world);
    let endpoints = services::endpoints(checker, declaration, vpcs, network, world);
    services::targets_are_not_local(checker, declaration, &groups, network, world);
    let objects = Objects { security_groups, groups, load_balancers, services, endpoints };
    families::endpoints_lead_somewhere(checker, &objects, world);
    objects
}

/// How errors say where a declared object stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keys {
    /// By its position in the file, counted from 0.
    Positions,
    /// By its name, where there is no file.
    Names,
}

impl Keys {
    /// Where the object `name` of a table stands.
    pub(crate) fn place(self, table: &str, at: usize, name: &str) -> String {
        match self {
            Self::Positions => format!("{table}[{at}]"),
            Self::Names => format!("{table}[{}]", shorten(name)),
        }
    }
}

/// Collects what is wrong.
pub(crate) struct Checker<'a> {
    pub(crate) file: &'a str,
    pub(crate) keys: Keys,
    pub(crate) errors: Vec<ConfigurationError>,
    pub(crate) warnings: Vec<ConfigurationError>,
}

impl<'a> Checker<'a> {
    pub(crate) const fn new(file: &'a str, keys: Keys) -> Self {
        Self { file, keys, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Notes that the value of `key` is wrong.
    pub(crate) fn error(&mut self, key: impl Into<String>, value: impl Shown, problem: Problem) {
        let error = ConfigurationError { file: self.file.to_owned(), key: key.into(), value: value.shown(), problem };
        self.errors.push(error);
    }

    /// Notes that the value of `key` is allowed but doubtful.
    pub(crate) fn warn(&mut self, key: impl Into<String>, value: impl Shown, problem: Problem) {
        let warning = ConfigurationError { file: self.file.to_owned(), key: key.into(), value: value.shown(), problem };
        self.warnings.push(warning);
    }

    /// A number in a range, or the low end with an error noted.
    pub(crate) fn number(
        &mut self,
        key: &dyn Fn() -> String,
        value: i64,
        range: (i64, i64),
        unit: &'static str,
    ) -> i64 {
        let (low, high) = range;
        if (low..=high).contains(&value) {
            return value;
        }
        self.error(key(), value, Problem::Range { low, high, unit });
        low
    }

    /// The declared index that `name` refers to; 0 with an error noted if there is none.
    pub(crate) fn reference(&mut self, key: impl FnOnce() -> String, name: &str, names: &Names<'_>) -> Option<usize> {
        let found = names.find(name);
        if found.is_none() {
            self.error(key(), name, Problem::Unknown { kind: names.kind, known: names.known() });
        }
        found
    }

    /// Whether `name` refers to an object, declared here or in the world; if not, an error is noted.
    pub(crate) fn refers(
        &mut self,
        key: impl FnOnce() -> String,
        name: &str,
        names: &Names<'_>,
        world: Option<(&World<'_>, ResourceKind)>,
    ) -> bool {
        if names.find(name).is_some() || world.is_some_and(|(world, kind)| world.has(kind, name)) {
            return true;
        }
        let known = match world {
            None => names.known(),
            Some((world, kind)) => names.known_with(world.names(kind)),
        };
        self.error(key(), name, Problem::Unknown { kind: names.kind, known });
        false
    }

    /// Notes all but the first of equal values.
    pub(crate) fn unique<'v>(&mut self, values: impl Iterator<Item = &'v str>, key: impl Fn(usize) -> String) {
        let mut first = HashMap::new();
        for (at, value) in values.enumerate() {
            // An empty value is reported as missing.
            if value.is_empty() {
                continue;
            }
            if let Some(earlier) = first.insert(value, at) {
                first.insert(value, earlier);
                self.error(key(at), value, Problem::Duplicate(key(earlier)));
            }
        }
    }

    /// An address that a host can have, not of one link alone.
    pub(crate) fn address(&mut self, key: &dyn Fn() -> String, value: &str) -> Option<IpAddr> {
        self.address_unless(key, value, text::why_not_unicast)
    }

    /// An address that a router can have on its link.
    pub(crate) fn router(&mut self, key: &dyn Fn() -> String, value: &str) -> Option<IpAddr> {
        self.address_unless(key, value, text::why_not_router)
    }

    fn address_unless(
        &mut self,
        key: &dyn Fn() -> String,
        value: &str,
        why_not: fn(IpAddr) -> Option<&'static str>,
    ) -> Option<IpAddr> {
        const ALLOWED: &str = "an IP address such as 10.0.0.10 or 2001:db8::10";
        match value.parse::<IpAddr>() {
            Err(_) if value.is_empty() => {
                self.error(key(), value, Problem::Missing(ALLOWED));
                None
            }
            Err(_) => {
                self.error(key(), value, Problem::Form(ALLOWED.to_owned()));
                None
            }
            Ok(address) => match why_not(address) {
                Some(what) => {
                    self.error(key(), value, Problem::Address { what: what.to_owned() });
                    None
                }
                None => Some(address),
            },
        }
    }

    /// A prefix.
    pub(crate) fn prefix(&mut self, key: &dyn Fn() -> String, value: &str) -> Option<IpPrefix> {
        const ALLOWED: &str = "an IP prefix such as 10.0.0.0/24 or 2001:db8::/64";
        if value.is_empty() {
            self.error(key(), value, Problem::Missing(ALLOWED));
            return None;
        }
        match value.parse() {
            Ok(prefix) => Some(prefix),
            Err(error) => {
                let network: Option<&dyn std::fmt::Display> = match &error {
                    AddressError::HostBits(_, network) => Some(network),
                    AddressError::HostBits6(_, network) => Some(network),
                    _ => None,
                };
                let text = network.map_or(ALLOWED.to_owned(), |network| {
                    format!("a network address, because host bits are set; the network is {network}")
                });
                self.error(key(), value, Problem::Form(text));
                None
            }
        }
    }
}

/// A value as an error shows it.
pub(crate) trait Shown {
    /// As it would stand in the file, shortened.
    fn shown(&self) -> String;
}

impl Shown for &str {
    fn shown(&self) -> String {
        format!("\"{}\"", shorten(self))
    }
}

impl Shown for &String {
    fn shown(&self) -> String {
        self.as_str().shown()
    }
}

impl Shown for i64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for &[i64] {
    fn shown(&self) -> String {
        shorten(&format!("{self:?}"))
    }
}

impl Shown for usize {
    fn shown(&self) -> String {
        self.to_string()
    }
}

/// Most names of what is declared that an error lists.
pub(crate) const LISTED: usize = 8;

/// Names of one kind of object, to find the declared index by.
pub(crate) struct Names<'a> {
    kind: &'static str,
    index: Index<'a>,
    /// The first ones, as far as they fit an error.
    first: Vec<&'a str>,
}

enum Index<'a> {
    Made(HashMap<&'a str, usize>),
    Kept(&'a HashMap<String, usize>),
}

impl<'a> Names<'a> {
    pub(crate) fn of(kind: &'static str, names: impl Iterator<Item = &'a String>) -> Self {
        let mut index = HashMap::new();
        let mut first = Vec::new();
        for (at, name) in names.enumerate() {
            // An empty name is reported as missing.
            if !name.is_empty() && !index.contains_key(name.as_str()) {
                index.insert(name.as_str(), at);
                if first.len() < LISTED {
                    first.push(name.as_str());
                }
            }
        }
        Self { kind, index: Index::Made(index), first }
    }

    /// Names whose index was made before; `names` are the same in the order of the index.
    pub(crate) fn kept(
        kind: &'static str,
        index: &'a HashMap<String, usize>,
        names: impl Iterator<Item = &'a String>,
    ) -> Self {
        Self { kind, index: Index::Kept(index), first: names.take(LISTED).map(String::as_str).collect() }
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        match &self.index {
            Index::Made(index) => index.get(name).copied(),
            Index::Kept(index) => index.get(name).copied(),
        }
    }

    fn len(&self) -> usize {
        match &self.index {
            Index::Made(index) => index.len(),
            Index::Kept(index) => index.len(),
        }
    }

    /// What is declared, as far as it fits an error.
    fn known(&self) -> String {
        list(&self.first, self.len())
    }

    /// What is declared, here and elsewhere.
    fn known_with<'n>(&'n self, elsewhere: impl Iterator<Item = &'n str>) -> String {
        let own = match &self.index {
            Index::Made(index) => index.keys().copied().collect::<Vec<&str>>(),
            Index::Kept(index) => index.keys().map(String::as_str).collect(),
        };
        let all: BTreeSet<&str> = own.into_iter().chain(elsewhere).collect();
        list(&all.iter().copied().take(LISTED).collect::<Vec<_>>(), all.len())
    }
}

fn list(first: &[&str], all: usize) -> String {
    if first.is_empty() {
        return "none is declared".to_owned();
    }
    let names = first.iter().map(Shown::shown).collect::<Vec<_>>().join(", ");
    match all.checked_sub(first.len()) {
        None | Some(0) => format!("declared are {names}"),
        Some(more) => format!("declared are {names} and {more} more"),
    }
}

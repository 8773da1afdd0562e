//! The checks of what was declared. What comes out is [`Checked`]: every reference resolved, every value in range.

mod control;
mod health;
mod network;
mod process;
mod services;
pub mod text;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use postern_selection::SelectionHash;
use postern_wire::Ipv4Prefix;

use crate::declaration::Declaration;
use crate::error::{ConfigurationError, Errors, Problem, shorten};
use crate::health::HealthSettings;
use crate::snapshot;

pub use control::{ControlAddress, ControlCredentials, ControlSettings};
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
    /// As written.
    pub(crate) declaration: Arc<Declaration>,
    pub(crate) limits_written: [bool; 2],
    pub(crate) selection: SelectionHash,
    /// Identifiers by declared index; everything below refers to declared indices.
    pub(crate) vpcs: Vec<String>,
    /// Routes with the declared index of their VPC, longest prefix first.
    pub(crate) routes: Vec<(usize, snapshot::Route)>,
    pub(crate) attachments: Vec<snapshot::Attachment>,
    pub(crate) pools: Vec<snapshot::SnatPool>,
    pub(crate) groups: Vec<CheckedGroup>,
    pub(crate) load_balancers: Vec<Vec<snapshot::Listener>>,
    pub(crate) services: Vec<CheckedService>,
    pub(crate) endpoints: Vec<CheckedEndpoint>,
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedGroup {
    pub(crate) name: String,
    pub(crate) vpc: usize,
    pub(crate) pool: usize,
    pub(crate) slots: usize,
    pub(crate) health: Arc<HealthSettings>,
    /// Address, port and weight, sorted.
    pub(crate) targets: Vec<(Ipv4Addr, u16, u16)>,
}

#[derive(Clone, Debug)]
pub(crate) struct CheckedService {
    pub(crate) id: String,
    pub(crate) load_balancers: Vec<usize>,
}

/// One address of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct CheckedEndpoint {
    pub(crate) id: String,
    pub(crate) vpc: usize,
    pub(crate) service: usize,
    pub(crate) address: Ipv4Addr,
    pub(crate) mtu: u16,
    pub(crate) echo: bool,
}

impl Declaration {
    /// Checks everything: ranges, forms, references, addresses, and what belongs together.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn check(self) -> Result<Checked, Errors> {
        let mut checker = Checker { file: &self.file, errors: Vec::new(), warnings: Vec::new() };
        let gateway = process::gateway(&mut checker, &self.gateway);
        let control = control::control(&mut checker, &self);
        let workers = process::workers(&mut checker, &self.workers);
        let selection = process::selection(&mut checker, &self.selection);
        let limits = process::limits(&mut checker, &self);
        let ports = network::ports(&mut checker, &self.ports);
        let port_names = Names::of("port", self.ports.iter().map(|port| &port.interface));
        let vpcs = network::vpcs(&mut checker, &self.vpcs);
        let vpc_names = Names::of("VPC", vpcs.iter());
        let attachments = network::attachments(&mut checker, &self.attachments, &vpc_names, &port_names);
        let before = checker.errors.len();
        let routes = network::routes(&mut checker, &self, &attachments);
        let all_routes = checker.errors.len() == before;
        let mut network = network::Network::new(&vpcs, &attachments, &routes, all_routes);
        let pools = network::pools(&mut checker, &self.snat_pools, &vpc_names, &mut network);
        let groups = services::groups(&mut checker, &self, &vpc_names, &pools, &network);
        let load_balancers = services::load_balancers(&mut checker, &self);
        let checked_services = services::services(&mut checker, &self, &load_balancers);
        let endpoints = services::endpoints(&mut checker, &self, &vpc_names, &mut network);
        services::targets_are_not_local(&mut checker, &self, &groups, &network);
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
            vpcs,
            routes,
            attachments,
            pools,
            groups,
            load_balancers,
            services: checked_services,
            endpoints,
            file: self.file.clone(),
            declaration: Arc::new(self),
        })
    }
}

/// Collects what is wrong.
pub(crate) struct Checker<'a> {
    pub(crate) file: &'a str,
    pub(crate) errors: Vec<ConfigurationError>,
    pub(crate) warnings: Vec<ConfigurationError>,
}

impl Checker<'_> {
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

    /// An address that a host can have.
    pub(crate) fn address(&mut self, key: &dyn Fn() -> String, value: &str) -> Option<Ipv4Addr> {
        match value.parse::<Ipv4Addr>() {
            Err(_) if value.is_empty() => {
                self.error(key(), value, Problem::Missing("an IPv4 address such as 10.0.0.10"));
                None
            }
            Err(_) => {
                self.error(key(), value, Problem::Form("an IPv4 address such as 10.0.0.10".to_owned()));
                None
            }
            Ok(address) => match text::why_not_unicast(address) {
                Some(what) => {
                    self.error(key(), value, Problem::Address { what: what.to_owned() });
                    None
                }
                None => Some(address),
            },
        }
    }

    /// A prefix.
    pub(crate) fn prefix(&mut self, key: &dyn Fn() -> String, value: &str) -> Option<Ipv4Prefix> {
        if value.is_empty() {
            self.error(key(), value, Problem::Missing("an IPv4 prefix such as 10.0.0.0/24"));
            return None;
        }
        match value.parse() {
            Ok(prefix) => Some(prefix),
            Err(error) => {
                let text = match error {
                    postern_wire::address::AddressError::HostBits(_, network) => {
                        format!("a network address, because host bits are set; the network is {network}")
                    }
                    _ => "an IPv4 prefix such as 10.0.0.0/24".to_owned(),
                };
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

/// Names of one kind of object, to find the declared index by.
pub(crate) struct Names<'a> {
    kind: &'static str,
    index: HashMap<&'a str, usize>,
    /// The first ones, as far as they fit an error.
    first: Vec<&'a str>,
}

impl<'a> Names<'a> {
    pub(crate) fn of(kind: &'static str, names: impl Iterator<Item = &'a String>) -> Self {
        let mut index = HashMap::new();
        let mut first = Vec::new();
        for (at, name) in names.enumerate() {
            // An empty name is reported as missing.
            if !name.is_empty() && !index.contains_key(name.as_str()) {
                index.insert(name.as_str(), at);
                if first.len() < 8 {
                    first.push(name.as_str());
                }
            }
        }
        Self { kind, index, first }
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// What is declared, as far as it fits an error.
    fn known(&self) -> String {
        if self.first.is_empty() {
            return "none is declared".to_owned();
        }
        let names = self.first.iter().map(Shown::shown).collect::<Vec<_>>().join(", ");
        match self.index.len().checked_sub(self.first.len()) {
            None | Some(0) => format!("declared are {names}"),
            Some(more) => format!("declared are {names} and {more} more"),
        }
    }
}

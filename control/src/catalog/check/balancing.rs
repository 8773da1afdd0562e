//! Target groups, load balancers, services, security groups.

use std::ops::RangeInclusive;

use postern_tables::check::range;
use postern_tables::error::Problem;

use super::super::Refusal;
use super::super::access::called;
use super::super::addresses::{Network, Prefix, unicast};
use super::super::model::{
    HealthCheckSpec, Kind, ListenerSpec, LoadBalancerSpec, PlainSpec, Protocol, ProxyProtocol, RuleProtocol,
    SecurityGroupSpec, ServiceSpec, TargetGroupSpec, TargetSpec,
};
use super::super::object::AnyObject;
use super::super::resolve::SLOTS;
use super::network::few;
use super::{Checker, number, unique, zone};

/// Most targets of a group.
const TARGETS: usize = u16::MAX as usize;

impl Checker<'_, '_> {
    pub(super) fn target_group(&self, id: &str, spec: &TargetGroupSpec) -> Result<(), Refusal> {
        let slots = spec.slots.unwrap_or(SLOTS[0]);
        if !SLOTS.contains(&slots) {
            let problem = Problem::Form("a number of slots; allowed is 16381 or 65537".to_owned());
            return Err(Refusal::value("spec.slots", slots, problem));
        }
        few("spec.targets", spec.targets.len(), TARGETS.min(slots as usize), " targets")?;
        if let Some(check) = &spec.health_check {
            health_check(check)?;
        }
        if let Some(seconds) = spec.unhealthy_drain_seconds {
            number(|| "spec.unhealthy_drain_seconds".to_owned(), seconds, (0, 360_000), " seconds")?;
        }
        if let Some(seconds) = spec.deregistration_delay_seconds {
            number(|| "spec.deregistration_delay_seconds".to_owned(), seconds, (0, 3600), " seconds")?;
        }
        if let Some(seconds) = spec.sticky_seconds {
            number(|| "spec.sticky_seconds".to_owned(), seconds, range::STICKY_SECONDS, " seconds")?;
            if spec.targets.iter().any(|target| target.mapped_port.is_some()) {
                let problem = "is not for a group that maps ports, where the port says which target it is";
                return Err(Refusal::value("spec.sticky_seconds", seconds, problem));
            }
        }
        mapped_ports(&spec.targets)?;
        if spec.proxy_protocol != ProxyProtocol::Off {
            let names = |listener: &ListenerSpec| {
                listener.protocol == Protocol::Udp
                    && listener.target_groups.iter().any(|group| group.target_group == id)
            };
            let users = self.draft.users_of_kind(id, Kind::LoadBalancer);
            let users = users.filter_map(|id| self.draft.object(Kind::LoadBalancer, id));
            let is_udp = |object: &&std::sync::Arc<AnyObject>| {
                object.as_load_balancer().is_some_and(|balancer| balancer.spec.listeners.iter().any(names))
            };
            if let Some(user) = users.into_iter().find(is_udp) {
                let problem = format!("is for TCP only, but {} has a UDP listener that leads here", called(user));
                return Err(Refusal::value("spec.proxy_protocol", spec.proxy_protocol.name(), problem));
            }
        }
        self.pool_in("spec.snat_pool", &spec.snat_pool, &spec.vpc)?;
        self.targets("spec.targets", &spec.targets, &spec.vpc, &spec.snat_pool)
    }

    /// A pool and what uses it must be in one VPC.
    fn pool_in(&self, field: &str, pool: &str, vpc: &str) -> Result<(), Refusal> {
        let object = self.draft.object(Kind::SnatPool, pool).and_then(|object| object.as_snat_pool());
        match object.map(|pool| &pool.spec.vpc).filter(|of_pool| *of_pool != vpc) {
            Some(other) => {
                let problem = format!("is in VPC {other}, but its targets are in VPC {vpc}; both must be in one VPC");
                Err(Refusal::value(field, pool, problem))
            }
            None => Ok(()),
        }
    }

    fn targets(&self, field: &str, targets: &[TargetSpec], vpc: &str, pool: &str) -> Result<(), Refusal> {
        let pool = self.draft.object(Kind::SnatPool, pool).and_then(|object| object.as_snat_pool());
        let of_pool = pool.and_then(|pool| pool.spec.addresses.first()).map(std::net::IpAddr::is_ipv6);
        let six = of_pool.or_else(|| targets.first().map(|target| target.address.is_ipv6()));
        let network = self.network(vpc);
        for (at, target) in targets.iter().enumerate() {
            let address = || format!("{field}[{at}].address");
            number(|| format!("{field}[{at}].port"), target.port, (1, 65_535), "")?;
            number(|| format!("{field}[{at}].weight"), target.weight, (0, 999), "")?;
            zone(format!("{field}[{at}].zone"), target.zone.as_deref())?;
            unicast(address, target.address)?;
            if Some(target.address.is_ipv6()) != six {
                let family = if six == Some(true) { "IPv6" } else { "IPv4" };
                let of = if of_pool.is_some() { "its SNAT pool" } else { "the first target" };
                let problem = format!("is of the wrong family; {of} is {family}, so allowed are {family} addresses");
                return Err(Refusal::value(address(), target.address, problem));
            }
            if let Some(network) = &network {
                self.target(network, &address, target)?;
            }
        }
        let shown = |(address, port): &(std::net::IpAddr, u16)| format!("{address} port {port}");
        unique(targets.iter().map(|target| (target.address, target.port)), |at| format!("{field}[{at}].address"), shown)
    }

    /// A target that a gateway could not reach would make it refuse its tables.
    fn target(&self, network: &Network, field: &dyn Fn() -> String, target: &TargetSpec) -> Result<(), Refusal> {
        if let Some(what) = network.end(target.address) {
            return Err(Refusal::value(field(), target.address, Problem::Address { what }));
        }
        if let Some(gateway) = network.gateway_without_route(target.address) {
            let gateway = self.draft.object(Kind::Gateway, gateway).map_or("", |object| &object.metadata().name);
            let problem =
                format!("is in no on-link prefix and behind no route of VPC {} on gateway {gateway}", network.vpc);
            return Err(Refusal::value(field(), target.address, problem));
        }
        let own = |kind: &Kind| matches!(kind, Kind::Endpoint | Kind::SnatPool);
        let claim = self.draft.claims(&network.vpc, target.address).find(|(kind, _)| own(kind));
        if let Some(object) = claim.and_then(|(kind, id)| self.draft.object(kind, id)) {
            let problem = format!("is an address of {}; a gateway cannot be its own target", called(object));
            return Err(Refusal::value(field(), target.address, problem));
        }
        Ok(())
    }

    pub(super) fn load_balancer(&self, spec: &LoadBalancerSpec) -> Result<(), Refusal> {
        few("spec.listeners", spec.listeners.len(), 1000, " listeners")?;
        few("spec.security_groups", spec.security_groups.len(), 16, " security groups")?;
        unique(spec.security_groups.iter(), |at| format!("spec.security_groups[{at}]"), |id| (*id).clone())?;
        let mut first: Vec<(Protocol, RangeInclusive<u16>, usize)> = Vec::new();
        let mut family = None;
        for (at, listener) in spec.listeners.iter().enumerate() {
            let ports = check_listener(&format!("spec.listeners[{at}]"), listener)?;
            if let Some((port, first)) = overlap(&first, listener.protocol, &ports) {
                let first = format!("spec.listeners[{first}].port");
                return Err(twice(format!("spec.listeners[{at}].port"), listener, port, "load balancer", first));
            }
            first.push((listener.protocol, ports, at));
            for (number, group) in listener.target_groups.iter().enumerate() {
                if listener.protocol == Protocol::Udp && self.has_header(&group.target_group) {
                    let field = format!("spec.listeners[{at}].target_groups[{number}].target_group");
                    return Err(Refusal::value(field, &group.target_group, Problem::ProxyTcpOnly));
                }
                let of = self.family(&group.target_group);
                if of.is_some() && *family.get_or_insert(of) != of {
                    let field = format!("spec.listeners[{at}].target_groups[{number}].target_group");
                    let problem = "is of another family than the groups before it; a load balancer has one family";
                    return Err(Refusal::value(field, &group.target_group, problem));
                }
            }
        }
        Ok(())
    }

    /// Whether a group's targets get a PROXY protocol header.
    fn has_header(&self, group: &str) -> bool {
        let group = self.draft.object(Kind::TargetGroup, group).and_then(|object| object.as_target_group());
        group.is_some_and(|group| group.spec.proxy_protocol != ProxyProtocol::Off)
    }

    /// Whether a group's targets, or its pool, are IPv6; `None` if there is neither.
    fn family(&self, group: &str) -> Option<bool> {
        let group = &self.draft.object(Kind::TargetGroup, group)?.as_target_group()?.spec;
        let pool = self.draft.object(Kind::SnatPool, &group.snat_pool)?.as_snat_pool()?;
        let target = group.targets.first().map(|target| target.address);
        target.or_else(|| pool.spec.addresses.first().copied()).map(|address| address.is_ipv6())
    }

    pub(super) fn service(&self, spec: &ServiceSpec) -> Result<(), Refusal> {
        few("spec.load_balancers", spec.load_balancers.len(), 10, " load balancers")?;
        few("spec.allowed_principals", spec.allowed_principals.len(), 10_000, " principals")?;
        unique(spec.load_balancers.iter(), |at| format!("spec.load_balancers[{at}]"), |id| (*id).clone())?;
        unique(spec.allowed_principals.iter(), |at| format!("spec.allowed_principals[{at}]"), |name| (*name).clone())?;
        for (at, name) in spec.allowed_principals.iter().enumerate() {
            if name != "*" {
                super::name(name).map_err(|_| {
                    let form = "the name of a principal; allowed is 1 to 128 of a-z, 0-9, - and ., or * for all";
                    Refusal::form(format!("spec.allowed_principals[{at}]"), name, form)
                })?;
            }
        }
        if let Some(name) = &spec.private_dns_name {
            dns_name("spec.private_dns_name", name)?;
        }
        let mut first: Vec<(Protocol, RangeInclusive<u16>, &String)> = Vec::new();
        for (at, id) in spec.load_balancers.iter().enumerate() {
            let balancer = self.draft.object(Kind::LoadBalancer, id).and_then(|object| object.as_load_balancer());
            let Some(balancer) = balancer else { continue };
            for listener in &balancer.spec.listeners {
                let Some(ports) = ports_of(listener) else { continue };
                let earlier = overlap(&first, listener.protocol, &ports);
                if let Some((port, earlier)) = earlier.filter(|(_, earlier)| ***earlier != balancer.metadata.name) {
                    let first = format!("that of load balancer \"{earlier}\"");
                    return Err(twice(format!("spec.load_balancers[{at}]"), listener, port, "service", first));
                }
                first.push((listener.protocol, ports, &balancer.metadata.name));
            }
        }
        match &spec.plain {
            Some(_) if !spec.load_balancers.is_empty() => {
                let problem = "does not go together with spec.load_balancers; allowed is one of the two";
                Err(Refusal::value("spec.plain", "{…}", problem))
            }
            Some(plain) => self.plain(plain),
            None => Ok(()),
        }
    }

    fn plain(&self, plain: &PlainSpec) -> Result<(), Refusal> {
        number(|| "spec.plain.port".to_owned(), plain.port, (1, 65_535), "")?;
        few("spec.plain.targets", plain.targets.len(), SLOTS[0] as usize, " targets")?;
        self.pool_in("spec.plain.snat_pool", &plain.snat_pool, &plain.vpc)?;
        self.targets("spec.plain.targets", &plain.targets, &plain.vpc, &plain.snat_pool)
    }

    pub(super) fn security_group(&self, spec: &SecurityGroupSpec) -> Result<(), Refusal> {
        few("spec.rules", spec.rules.len(), 1000, " rules")?;
        for (at, rule) in spec.rules.iter().enumerate() {
            Prefix::parse(|| format!("spec.rules[{at}].source"), &rule.source)?;
            if let Some(ports) = rule.ports.as_ref().filter(|_| rule.protocol == Some(RuleProtocol::Icmp)) {
                let form = "for ICMP, which has no ports; leave it out";
                return Err(Refusal::form(format!("spec.rules[{at}].ports"), ports, form));
            }
            if let Some(ports) = &rule.ports
                && numbers(ports).is_none_or(|range| *range.start() < 1 || *range.end() > 65_535)
            {
                let form = "a port or a range of ports; allowed is PORT or FIRST-LAST within 1-65535";
                return Err(Refusal::form(format!("spec.rules[{at}].ports"), ports, form));
            }
        }
        Ok(())
    }
}

/// Either all targets have a mapped port, each another, or none has.
fn mapped_ports(targets: &[TargetSpec]) -> Result<(), Refusal> {
    if targets.iter().all(|target| target.mapped_port.is_none()) {
        return Ok(());
    }
    let field = |at: usize| format!("spec.targets[{at}].mapped_port");
    for (at, target) in targets.iter().enumerate() {
        let Some(port) = target.mapped_port else {
            let problem = "is required, because other targets of the group have one; allowed is 1 to 65535";
            return Err(Refusal::value(field(at), "null", problem));
        };
        number(|| field(at), port, (1, 65_535), "")?;
    }
    unique(targets.iter().filter_map(|target| target.mapped_port), field, ToString::to_string)
}

/// The ports of a listener; `None` where they make no sense.
fn ports_of(listener: &ListenerSpec) -> Option<RangeInclusive<u16>> {
    match &listener.ports {
        None => Some(listener.port..=listener.port),
        Some(ports) => {
            let range = numbers(ports)?;
            Some(u16::try_from(*range.start()).ok()?..=u16::try_from(*range.end()).ok()?)
        }
    }
    .filter(|range| *range.start() > 0)
}

/// A port that a listener would take from one before, and what that one is.
fn overlap<'t, T>(
    taken: &'t [(Protocol, RangeInclusive<u16>, T)],
    protocol: Protocol,
    ports: &RangeInclusive<u16>,
) -> Option<(u16, &'t T)> {
    taken.iter().find_map(|(of, other, what)| {
        let port = *other.start().max(ports.start());
        (*of == protocol && other.contains(&port) && ports.contains(&port)).then_some((port, what))
    })
}

/// Returns its ports.
fn check_listener(prefix: &str, listener: &ListenerSpec) -> Result<RangeInclusive<u16>, Refusal> {
    let field = |name: &str| format!("{prefix}.{name}");
    let tcp = listener.protocol == Protocol::Tcp;
    let ports = match &listener.ports {
        None => number(|| field("port"), listener.port, (1, 65_535), "").map(|()| listener.port..=listener.port)?,
        Some(ports) if listener.port != 0 => {
            return Err(Refusal::value(
                field("ports"),
                ports,
                "does not go together with port; allowed is one of the two",
            ));
        }
        Some(ports) => ports_of(listener).ok_or_else(|| {
            Refusal::form(field("ports"), ports, "a range of ports; allowed is FIRST-LAST within 1-65535")
        })?,
    };
    if let Some(idle) = listener.idle_seconds {
        let (range, unit) = if tcp { ((60, 6000), " seconds for TCP") } else { ((10, 6000), " seconds for UDP") };
        number(|| field("idle_seconds"), idle, range, unit)?;
    }
    if let Some(mss) = listener.mss {
        if !tcp {
            return Err(Refusal::value(field("mss"), mss, Problem::TcpOnly));
        }
        number(|| field("mss"), mss, (88, 65_495), " bytes")?;
    }
    if listener.reset_on_expiry == Some(true) && !tcp {
        return Err(Refusal::value(field("reset_on_expiry"), "true", Problem::TcpOnly));
    }
    let groups = &listener.target_groups;
    if !(1..=5).contains(&groups.len()) {
        return Err(Refusal::range(field("target_groups"), groups.len() as i64, (1, 5), " target groups"));
    }
    for (at, group) in groups.iter().enumerate() {
        number(|| format!("{prefix}.target_groups[{at}].weight"), group.weight, (0, 999), "")?;
    }
    let place = |at: usize| format!("{prefix}.target_groups[{at}].target_group");
    unique(groups.iter().map(|group| &group.target_group), place, |id| (*id).clone())?;
    Ok(ports)
}

fn twice(field: String, listener: &ListenerSpec, port: u16, of: &'static str, first: String) -> Refusal {
    let protocol = if listener.protocol == Protocol::Tcp { "tcp" } else { "udp" };
    let problem = Problem::ListenerTwice { protocol, port, of, first };
    match &listener.ports {
        Some(ports) => Refusal::value(field, ports, problem),
        None => Refusal::value(field, port, problem),
    }
}

fn health_check(check: &HealthCheckSpec) -> Result<(), Refusal> {
    use super::super::model::HealthCheckProtocol::Tcp;
    let field = |name: &str| format!("spec.health_check.{name}");
    if let Some(port) = check.port {
        number(|| field("port"), port, (1, 65_535), "")?;
    }
    if let Some(seconds) = check.interval_seconds {
        number(|| field("interval_seconds"), seconds, (5, 300), " seconds")?;
    }
    if let Some(seconds) = check.timeout_seconds {
        number(|| field("timeout_seconds"), seconds, (2, 120), " seconds")?;
    }
    if let Some(times) = check.healthy_threshold {
        number(|| field("healthy_threshold"), times, (2, 10), " probes")?;
    }
    if let Some(times) = check.unhealthy_threshold {
        number(|| field("unhealthy_threshold"), times, (2, 10), " probes")?;
    }
    for (name, value) in [("path", &check.path), ("matcher", &check.matcher)] {
        if let Some(value) = value.as_ref().filter(|_| check.protocol == Tcp) {
            return Err(Refusal::value(field(name), format_args!("\"{value}\""), "is for HTTP and HTTPS probes only"));
        }
    }
    if let Some(path) = &check.path
        && (!path.starts_with('/') || path.len() > 1024 || !path.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        let form = "a path; allowed is / and up to 1,023 printable characters without blanks";
        return Err(Refusal::form(field("path"), path, form));
    }
    if let Some(matcher) = &check.matcher
        && !matcher
            .split(',')
            .all(|part| numbers(part).is_some_and(|range| *range.start() >= 200 && *range.end() <= 599))
    {
        let form = "status codes; allowed are codes and ranges within 200-599, as 200-399 or 200,204";
        return Err(Refusal::form(field("matcher"), matcher, form));
    }
    Ok(())
}

/// `443` or `1000-2000`.
fn numbers(text: &str) -> Option<RangeInclusive<u32>> {
    let number = |text: &str| Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok();
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some(first..=last)
}

/// RFC 1035 §2.3.1 as of RFC 1123 §2.1, in lower case, with at least two labels.
fn dns_name(field: &str, name: &str) -> Result<(), Refusal> {
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() <= 253 && name.contains('.') && name.split('.').all(label) {
        return Ok(());
    }
    Err(Refusal::form(field, name, "a DNS name such as db.example.com, in lower case"))
}

//! Security groups.

use super::{CheckedSecurityGroup, Checker, Names, World, text};
use crate::declaration::{Declaration, RuleProtocol as Written, SecurityGroup, SecurityRule};
use crate::error::Problem;
use crate::resource::ResourceKind;
use crate::security::{GROUPS, PREFIXES, RULES, Rule, RuleProtocol, Rules, SOURCES, Source};

/// Most security groups of an endpoint or load balancer.
const OF_ONE: usize = 16;

pub(super) fn groups(
    checker: &mut Checker<'_>,
    declaration: &Declaration,
    world: Option<&World<'_>>,
) -> Vec<CheckedSecurityGroup> {
    let keys = checker.keys;
    let groups = &declaration.security_groups;
    let place = |at: usize| keys.place("security_group", at, &groups[at].name);
    let key = |at: usize| format!("{}.name", place(at));
    checker.unique(groups.iter().map(|group| group.name.as_str()), key);
    let elsewhere = world.map_or(0, |world| world.names(ResourceKind::SecurityGroup).count());
    at_most(checker, "security_group", groups.len() + elsewhere, GROUPS, " security groups");
    let names = Names::of("security_group", groups.iter().map(|group| &group.name));
    let mut checked = Vec::new();
    for (at, written) in groups.iter().enumerate() {
        checker.name(|| key(at), &written.name);
        let place = place(at);
        at_most(checker, &format!("{place}.prefixes"), written.prefixes.len(), PREFIXES, " prefixes");
        at_most(checker, &format!("{place}.rules"), written.rules.len(), RULES, " rules");
        sources(checker, &format!("{place}.prefixes"), &written.prefixes);
        let mut rules = Vec::new();
        for (position, rule) in written.rules.iter().enumerate().take(RULES) {
            let place = format!("{place}.rules[{position}]");
            let group = rule.source_group.as_deref().and_then(|name| {
                let of_world = world.map(|world| (world, ResourceKind::SecurityGroup));
                checker.refers(|| format!("{place}.source_group"), name, &names, of_world);
                let here = names.find(name).map(|at| &groups[at]);
                here.or_else(|| world?.security_group(name))
            });
            rules.push(check_rule(checker, &place, rule, group));
        }
        let all = rules.iter().map(|rule| rule.sources.len()).sum();
        at_most(checker, &format!("{place}.rules"), all, SOURCES, " prefixes of all rules together");
        let rules = Rules::new(&rules);
        checked.push(CheckedSecurityGroup {
            name: written.name.clone(),
            rules,
            cut_flows: written.cut_flows.unwrap_or(false),
        });
    }
    checked
}

fn check_rule(checker: &mut Checker<'_>, place: &str, written: &SecurityRule, group: Option<&SecurityGroup>) -> Rule {
    let protocol = match written.protocol {
        None => RuleProtocol::Any,
        Some(Written::Tcp) => RuleProtocol::Tcp,
        Some(Written::Udp) => RuleProtocol::Udp,
        Some(Written::Icmp) => RuleProtocol::Icmp,
    };
    let ports = written.ports.as_deref().and_then(|ports| {
        let key = format!("{place}.ports");
        if protocol == RuleProtocol::Icmp {
            checker.error(key, ports, Problem::Form("for ICMP, which has no ports; leave it out".to_owned()));
            return None;
        }
        let range = text::ports(ports);
        if range.is_none() {
            let form = "a port or a range of ports; allowed is 443 or 1000-2000 within 0-65535".to_owned();
            checker.error(key, ports, Problem::Form(form));
        }
        range
    });
    let sources = match (&written.source, &written.source_group) {
        (Some(source), None) => sources(checker, &format!("{place}.source"), std::slice::from_ref(source)),
        // What is wrong with the group's own prefixes is reported there.
        (None, Some(_)) => group
            .iter()
            .flat_map(|group| &group.prefixes)
            .take(PREFIXES)
            .filter_map(|prefix| Source::parse(prefix).ok())
            .collect(),
        (None, None) => {
            checker.error(format!("{place}.source"), "", Problem::Missing("a prefix, or source_group"));
            Vec::new()
        }
        (Some(source), Some(_)) => {
            let form = "alone; allowed is one of source and source_group".to_owned();
            checker.error(format!("{place}.source"), source, Problem::Form(form));
            Vec::new()
        }
    };
    Rule { protocol, ports: ports.unwrap_or(0..=u16::MAX), sources }
}

fn sources(checker: &mut Checker<'_>, key: &str, prefixes: &[String]) -> Vec<Source> {
    let mut sources = Vec::with_capacity(prefixes.len());
    for (at, prefix) in prefixes.iter().enumerate() {
        match Source::parse(prefix) {
            Ok(source) => sources.push(source),
            Err(form) => {
                let key = if key.ends_with(".source") { key.to_owned() } else { format!("{key}[{at}]") };
                checker.error(key, prefix, Problem::Form(form));
            }
        }
    }
    sources
}

/// The security groups that an endpoint or load balancer names.
pub(super) fn references(
    checker: &mut Checker<'_>,
    key: &dyn Fn() -> String,
    written: &[String],
    declaration: &Declaration,
    world: Option<&World<'_>>,
) -> Vec<String> {
    if written.is_empty() {
        return Vec::new();
    }
    at_most(checker, &key(), written.len(), OF_ONE, " security groups");
    checker.unique(written.iter().map(String::as_str), |at| format!("{}[{at}]", key()));
    let names = Names::of("security_group", declaration.security_groups.iter().map(|group| &group.name));
    for (at, name) in written.iter().enumerate() {
        let world = world.map(|world| (world, ResourceKind::SecurityGroup));
        checker.refers(|| format!("{}[{at}]", key()), name, &names, world);
    }
    written.to_vec()
}

fn at_most(checker: &mut Checker<'_>, key: &str, number: usize, most: usize, unit: &'static str) {
    if number > most {
        checker.error(key, number, Problem::Range { low: 0, high: most as i64, unit });
    }
}

//! The files in `configs/` are right and complete.

use std::collections::BTreeSet;

use postern_tables::declaration::{
    Attachment, Control, Endpoint, Exhausted, Gateway, HealthCheck, HealthCheckProtocol, Io, Limits, Listener,
    LoadBalancer, Mode, Polling, Port, Protocol, ProxyProtocol, ReturnPath, Route, RuleProtocol, SecurityGroup,
    SecurityRule, Selection, Service, SnatPool, Target, TargetGroup, Vpc, WeightedGroup, Workers,
};
use postern_tables::{Checked, Declaration, compile};

const GATEWAY: &str = include_str!("../../../configs/gateway.toml");
const WITH_CONTROL: &str = include_str!("../../../configs/gateway-with-control.toml");
const SINGLE_NIC: &str = include_str!("../../../configs/single-nic.toml");

fn check(text: &str, file: &str) -> Checked {
    Declaration::from_toml(text, file).and_then(Declaration::check).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The text with its commented keys (`#key = …`) in force; explanations (`# …`) stay comments.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|first: char| first.is_ascii_lowercase()) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// All keys as `table.key`, lists of tables without positions.
fn keys(prefix: &str, table: &toml::Table, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        let tables: Vec<&toml::Table> = match value {
            toml::Value::Table(table) => vec![table],
            toml::Value::Array(list) => list.iter().filter_map(toml::Value::as_table).collect(),
            _ => Vec::new(),
        };
        tables.iter().for_each(|table| keys(&format!("{path}."), table, found));
        found.insert(path);
    }
}

/// A declaration in which every key has a value. No field is left to a default, so a new key must come here too.
fn every_key() -> Declaration {
    let text = || "text".to_owned();
    Declaration {
        file: text(),
        gateway: Gateway {
            name: Some(text()),
            run_directory: Some(text()),
            metrics: Some(text()),
            metrics_public: Some(true),
            control_socket: Some(text()),
            io: Some(Io::Auto),
            io_uring_sqpoll: Some(true),
        },
        control: Some(Control {
            address: text(),
            ca: Some(text()),
            certificate: Some(text()),
            key: Some(text()),
            token_file: Some(text()),
            state_directory: Some(text()),
        }),
        workers: Workers {
            count: Some(1),
            cpus: Some(vec![1]),
            polling: Some(Polling::Sleep),
            flows: Some(1),
            ipv6_flows: Some(1),
        },
        selection: Selection { key: Some(text()) },
        limits: Limits { endpoints: Some(1), targets: Some(1) },
        ports: vec![Port { interface: text(), mode: Mode::Own, io: Some(Io::Auto) }],
        vpcs: vec![Vpc { id: text() }],
        attachments: vec![Attachment {
            name: text(),
            vpc: text(),
            port: text(),
            vlan: Some(1),
            prefixes: vec![text()],
            mtu: Some(1),
            return_path: ReturnPath::LastHop,
            mac: Some(text()),
        }],
        routes: vec![Route { attachment: text(), destination: text(), via: Some(text()) }],
        snat_pools: vec![SnatPool {
            name: text(),
            vpc: text(),
            addresses: vec![text()],
            ports: Some(text()),
            rest_seconds: Some(1),
            draining: vec![text()],
            exhausted: Some(Exhausted::Reset),
        }],
        security_groups: vec![SecurityGroup {
            name: text(),
            prefixes: vec![text()],
            cut_flows: Some(true),
            rules: vec![SecurityRule {
                protocol: Some(RuleProtocol::Icmp),
                ports: Some(text()),
                source: Some(text()),
                source_group: Some(text()),
            }],
        }],
        target_groups: vec![TargetGroup {
            name: text(),
            vpc: text(),
            snat_pool: text(),
            slots: Some(1),
            health_check: Some(HealthCheck {
                protocol: HealthCheckProtocol::Https,
                port: Some(1),
                path: Some(text()),
                matcher: Some(text()),
                interval_seconds: Some(1),
                timeout_seconds: Some(1),
                healthy_threshold: Some(1),
                unhealthy_threshold: Some(1),
            }),
            unhealthy_drain_seconds: Some(1),
            deregistration_delay_seconds: Some(1),
            deregistration_ends_flows: Some(true),
            proxy_protocol: Some(ProxyProtocol::Google),
            sticky_seconds: Some(1),
            targets: vec![Target {
                address: text(),
                port: 1,
                weight: Some(1),
                mapped_port: Some(1),
                zone: Some(text()),
            }],
        }],
        load_balancers: vec![LoadBalancer {
            name: text(),
            security_groups: vec![text()],
            enforce_on_private_link: Some(true),
            cross_zone: Some(true),
            listeners: vec![Listener {
                protocol: Protocol::Udp,
                port: 1,
                ports: Some(text()),
                idle_seconds: Some(1),
                mss: Some(1),
                reset_on_expiry: Some(true),
                target_groups: vec![WeightedGroup { name: text(), weight: Some(1) }],
            }],
        }],
        services: vec![Service { id: text(), load_balancers: vec![text()] }],
        endpoints: vec![Endpoint {
            id: text(),
            vpc: text(),
            service: text(),
            addresses: vec![text()],
            zones: vec![text()],
            mtu: Some(1),
            echo: Some(true),
            security_groups: vec![text()],
            snat_port_budget: Some(1),
            max_flows: Some(1),
            new_flows_per_second: Some(1),
            bytes_per_second: Some(1),
        }],
    }
}

#[test]
fn both_examples_compile_without_a_warning() {
    for (text, file) in [(GATEWAY, "gateway.toml"), (SINGLE_NIC, "single-nic.toml")] {
        let checked = check(text, file);
        assert_eq!(checked.warnings, []);
        assert!(!compile(&checked, None).local.is_empty());
    }
    assert!(check(SINGLE_NIC, "single-nic.toml").ports.iter().all(|port| port.shared));
}

#[test]
fn every_key_of_the_format_stands_in_an_example_with_a_value_that_is_allowed() {
    let [mut shown, mut known] = [BTreeSet::new(), BTreeSet::new()];
    for (text, file) in [(GATEWAY, "gateway.toml"), (WITH_CONTROL, "gateway-with-control.toml")] {
        let text = uncommented(text);
        check(&text, file);
        keys("", &text.parse().unwrap(), &mut shown);
    }
    keys("", &every_key().to_toml().parse().unwrap(), &mut known);
    assert_eq!(shown, known);
}

#[test]
fn the_example_with_control_shows_the_defaults_and_declares_nothing_but_the_process() {
    let [plain, full] = [check(WITH_CONTROL, ""), check(&uncommented(WITH_CONTROL), "")];
    assert_eq!((&plain.warnings, &full.warnings), (&vec![], &vec![]));
    assert_eq!((plain.control.clone(), plain.limits), (full.control, full.limits));
    let control = plain.control.as_ref().unwrap();
    assert_eq!(control.address.to_string(), "https://control.example.com:7443");
    assert!(control.credentials.ca.is_some() && control.credentials.identity.is_some());
    assert!(compile(&plain, None).local.is_empty());
}

#[test]
fn the_commented_values_are_the_defaults_where_there_are_defaults() {
    let [mut plain, mut full] = [check(GATEWAY, ""), check(&uncommented(GATEWAY), "")];
    // Examples of keys without a fixed default.
    assert_eq!(plain.workers.cpus, [] as [usize; 0]);
    plain.workers.cpus.clone_from(&full.workers.cpus);
    let [one, other] = [&mut plain, &mut full].map(|checked| compile(checked, None));
    assert_eq!((plain.gateway, plain.workers, plain.limits), (full.gateway, full.workers, full.limits));
    assert_eq!(one.selection, other.selection);
    assert_eq!(one.pools, other.pools);
    assert_eq!(one.endpoints, other.endpoints);
    assert_eq!(one.targets, other.targets);
    assert_eq!(one.attachments[0].return_path, other.attachments[0].return_path);
    assert_eq!(one.listeners[0].idle_seconds, other.listeners[0].idle_seconds);
}

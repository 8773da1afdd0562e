//! What is refused, and that nothing of it is stored.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::builder::{World, new};
use crate::catalog::model::{Kind, feature};
use crate::catalog::{Code, New};

/// Refused with this field, in a sentence that has the value in it, and nothing stored.
fn refused(world: &World, kind: Kind, value: Value, field: &str, part: &str) {
    let before = world.catalog.read().clone();
    let caller = match kind {
        Kind::Attachment | Kind::Gateway => &world.operator,
        Kind::Endpoint => &world.consumer,
        _ => &world.provider,
    };
    let refusal = match world.try_make(caller, kind, "bad", value.clone()) {
        Ok(_) => panic!("{kind} {value} was taken"),
        Err(refusal) => refusal,
    };
    assert_eq!(refusal.field.as_deref(), Some(field), "{}", refusal.message);
    assert!(refusal.message.contains(part), "{}", refusal.message);
    assert_eq!(*world.catalog.read(), before, "something was kept of {value}");
}

#[test]
fn values_out_of_range_are_refused_with_field_value_and_what_is_allowed() {
    let world = World::with_service(json!({ "allowed_principals": ["*"] }));
    let group = |more: Value| {
        let mut group = json!({ "vpc": "shop-net", "snat_pool": "pool" });
        group.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        group
    };
    let listener = |more: Value| {
        let mut listener = json!({ "port": 80, "target_groups": [{ "target_group": "web" }] });
        listener.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "listeners": [listener] })
    };
    let target = |more: Value| {
        let mut target = json!({ "address": "10.1.0.11", "port": 80 });
        target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        group(json!({ "targets": [target] }))
    };
    refused(
        &world,
        Kind::Vpc,
        json!({ "prefixes": ["10.0.0.1/24"] }),
        "spec.prefixes[0]",
        "the network is 10.0.0.0/24",
    );
    let twice = json!({ "prefixes": ["10.0.0.0/8", "10.9.0.0/16"] });
    refused(&world, Kind::Vpc, twice, "spec.prefixes[1]", "overlaps 10.0.0.0/8");
    refused(
        &world,
        Kind::TargetGroup,
        target(json!({ "port": 0 })),
        "spec.targets[0].port",
        "= 0: is out of range; allowed is 1 to 65535",
    );
    refused(
        &world,
        Kind::TargetGroup,
        target(json!({ "weight": 1000 })),
        "spec.targets[0].weight",
        "allowed is 0 to 999",
    );
    refused(
        &world,
        Kind::TargetGroup,
        target(json!({ "address": "127.0.0.1" })),
        "spec.targets[0].address",
        "loopback",
    );
    refused(
        &world,
        Kind::TargetGroup,
        target(json!({ "address": "10.1.0.255" })),
        "spec.targets[0].address",
        "broadcast",
    );
    refused(
        &world,
        Kind::TargetGroup,
        target(json!({ "address": "10.1.9.9" })),
        "spec.targets[0].address",
        "on gateway gw1",
    );
    refused(
        &world,
        Kind::TargetGroup,
        target(json!({ "address": "10.1.0.200" })),
        "spec.targets[0].address",
        "its own target",
    );
    refused(
        &world,
        Kind::TargetGroup,
        target(json!({ "address": "2001:db8::1" })),
        "spec.targets[0].address",
        "wrong family",
    );
    refused(&world, Kind::TargetGroup, group(json!({ "slots": 7 })), "spec.slots", "16381 or 65537");
    refused(&world, Kind::TargetGroup, group(json!({ "sticky_seconds": 0 })), "spec.sticky_seconds", "1 to 604800");
    let both = json!({ "targets": [
        { "address": "10.1.0.11", "port": 80, "mapped_port": 7 }, { "address": "10.1.0.12", "port": 80 },
    ] });
    refused(
        &world,
        Kind::TargetGroup,
        group(both),
        "spec.targets[1].mapped_port",
        "other targets of the group have one",
    );
    let ports = json!({ "port": 0, "ports": "90-80" });
    refused(&world, Kind::LoadBalancer, listener(ports), "spec.listeners[0].ports", "FIRST-LAST within 1-65535");
    let ports = json!({ "ports": "90-95" });
    refused(&world, Kind::LoadBalancer, listener(ports), "spec.listeners[0].ports", "one of the two");
    let overlapping = json!({ "listeners": [
        { "port": 80, "target_groups": [{ "target_group": "web" }] },
        { "ports": "70-90", "target_groups": [{ "target_group": "web" }] },
    ] });
    refused(&world, Kind::LoadBalancer, overlapping, "spec.listeners[1].port", "tcp port 80");
    refused(&world, Kind::TargetGroup, json!({ "vpc": "shop-net" }), "spec.snat_pool", "is required");
    let check = group(json!({ "health_check": { "interval_seconds": 4 } }));
    refused(&world, Kind::TargetGroup, check, "spec.health_check.interval_seconds", "5 to 300 seconds");
    let check = group(json!({ "health_check": { "protocol": "http", "matcher": "99" } }));
    refused(&world, Kind::TargetGroup, check, "spec.health_check.matcher", "200-599");
    refused(&world, Kind::LoadBalancer, listener(json!({ "port": 0 })), "spec.listeners[0].port", "1 to 65535");
    refused(
        &world,
        Kind::LoadBalancer,
        listener(json!({ "idle_seconds": 59 })),
        "spec.listeners[0].idle_seconds",
        "60 to 6000",
    );
    refused(
        &world,
        Kind::LoadBalancer,
        listener(json!({ "protocol": "udp", "mss": 1400 })),
        "spec.listeners[0].mss",
        "TCP",
    );
    refused(
        &world,
        Kind::LoadBalancer,
        listener(json!({ "target_groups": [] })),
        "spec.listeners[0].target_groups",
        "1 to 5",
    );
    let pool = |address: &str| json!({ "vpc": "shop-net", "addresses": [address] });
    refused(&world, Kind::SnatPool, pool("10.1.5.5"), "spec.addresses[0]", "on-link prefix");
    refused(&world, Kind::SnatPool, pool("10.1.0.200"), "spec.addresses[0]", "snat-pool \"pool\"");
    refused(&world, Kind::SnatPool, pool("10.1.0.10"), "spec.addresses[0]", "target-group \"web\"");
    let ports = json!({ "vpc": "shop-net", "ports": "80-90" });
    refused(&world, Kind::SnatPool, ports, "spec.ports", "1024-65535");
    let vpc =
        world.catalog.one(&world.operator, Kind::Vpc, world.catalog.read().vpcs().next().unwrap().metadata.id.as_str());
    let vpc = vpc.unwrap().id().to_owned();
    let attachment = |more: Value| {
        let mut attachment = json!({ "gateway": "gw1", "vpc": vpc, "port": "eth5" });
        attachment.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        attachment
    };
    refused(&world, Kind::Attachment, attachment(json!({ "vlan": 4095 })), "spec.vlan", "1 to 4094");
    refused(&world, Kind::Attachment, attachment(json!({ "port": "eth1", "vlan": 10 })), "spec.port", "VLAN 10");
    refused(&world, Kind::Attachment, attachment(json!({ "mac": "01:00:5e:00:00:01" })), "spec.mac", "unicast MAC");
    let routes = json!({ "routes": [{ "destination": "10.9.0.0/16", "via": "10.8.0.1" }] });
    refused(&world, Kind::Attachment, attachment(routes), "spec.routes[0].via", "must be a neighbour");
    let service = world.service_id();
    let endpoint =
        |address: &str| json!({ "vpc": "bank-net", "service": service, "addresses": [{ "address": address }] });
    refused(&world, Kind::Endpoint, endpoint("10.3.0.1"), "spec.addresses[0].address", "10.2.0.0/24");
    refused(&world, Kind::Endpoint, endpoint("10.2.0.0"), "spec.addresses[0].address", "network address");
    let mtu = json!({ "vpc": "bank-net", "service": service, "mtu": 100 });
    refused(&world, Kind::Endpoint, mtu, "spec.mtu", "576 to 65535 bytes");
    world.make(&world.consumer, Kind::Endpoint, "good", endpoint("10.2.0.9"));
    refused(&world, Kind::Endpoint, endpoint("10.2.0.9"), "spec.addresses[0].address", "endpoint \"good\"");
    let tags: BTreeMap<_, _> = (0..51).map(|number| (number.to_string(), String::new())).collect();
    let refusal =
        world.catalog.create(&world.provider, New { tags, ..new(Kind::Vpc, "t", json!({})) }, None).unwrap_err();
    assert_eq!((refusal.code, refusal.field.as_deref()), (Code::TooLarge, Some("tags")));
    for name in ["", "Upper", "a b", "vpc-0123456789abcdef0"] {
        assert_eq!(world.try_make(&world.provider, Kind::Vpc, name, json!({})).unwrap_err().code, Code::Invalid);
    }
    assert_eq!(
        world.try_make(&world.provider, Kind::Vpc, "shop-net", json!({})).unwrap_err().code,
        Code::AlreadyExists
    );
}

#[test]
fn two_listeners_on_one_port_of_a_service_are_refused_also_when_a_load_balancer_changes_later() {
    let world = World::with_service(json!({}));
    let listeners =
        |port: u16| json!({ "listeners": [{ "port": port, "target_groups": [{ "target_group": "web" }] }] });
    world.make(&world.provider, Kind::LoadBalancer, "second", listeners(443));
    let both = json!({ "load_balancers": ["front", "second"] });
    let refusal = world.change(&world.provider, Kind::Service, "api", both.clone()).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("spec.load_balancers[1]"));
    assert!(refusal.message.contains("tcp port 443"), "{}", refusal.message);
    world.change(&world.provider, Kind::LoadBalancer, "second", listeners(444)).unwrap();
    world.change(&world.provider, Kind::Service, "api", both).unwrap();
    let refusal = world.change(&world.provider, Kind::LoadBalancer, "second", listeners(443)).unwrap_err();
    assert!(refusal.message.contains("service \"api\"") && refusal.message.contains("443"), "{}", refusal.message);
    assert_eq!(refusal.users, [world.service_id()]);
}

#[test]
fn what_a_gateway_cannot_enforce_is_refused_and_not_stored() {
    let world = World::with_service(json!({ "allowed_principals": ["*"] }));
    world.make(&world.consumer, Kind::SecurityGroup, "sg", json!({ "rules": [{ "source": "10.0.0.0/8" }] }));
    world.make(&world.provider, Kind::SecurityGroup, "sg", json!({ "rules": [] }));
    let service = world.service_id();
    let target = json!([{ "address": "10.1.0.12", "port": 1, "zone": "a" }]);
    let listeners = json!([{ "port": 1, "target_groups": [{ "target_group": "web" }] }]);
    let mapped = |port: u16| json!([{ "address": "10.1.0.12", "port": 1, "mapped_port": port }]);
    let ranges = json!([{ "ports": "9000-9001", "target_groups": [{ "target_group": "web" }] }]);
    let cases = [
        (
            Kind::Endpoint,
            json!({ "vpc": "bank-net", "service": service, "security_groups": ["sg"] }),
            feature::SECURITY_GROUPS,
        ),
        (Kind::Endpoint, json!({ "vpc": "bank-net", "service": service, "snat_port_budget": 5 }), feature::BUDGETS),
        (Kind::Endpoint, json!({ "vpc": "bank-net", "service": service, "max_flows": 5 }), feature::BUDGETS),
        (Kind::Endpoint, json!({ "vpc": "bank-net", "service": service, "new_flows_per_second": 5 }), feature::BUDGETS),
        (Kind::Endpoint, json!({ "vpc": "bank-net", "service": service, "bytes_per_second": 50000 }), feature::BUDGETS),
        (
            Kind::TargetGroup,
            json!({ "vpc": "shop-net", "snat_pool": "pool", "targets": mapped(9092) }),
            feature::PORT_MAPPING,
        ),
        (
            Kind::TargetGroup,
            json!({ "vpc": "shop-net", "snat_pool": "pool", "sticky_seconds": 5 }),
            feature::STICKINESS,
        ),
        (Kind::LoadBalancer, json!({ "listeners": ranges }), feature::PORT_MAPPING),
        (Kind::TargetGroup, json!({ "vpc": "shop-net", "snat_pool": "pool", "targets": target }), feature::ZONES),
        (
            Kind::TargetGroup,
            json!({ "vpc": "shop-net", "snat_pool": "pool", "health_check": {} }),
            feature::HEALTH_CHECKS,
        ),
        (Kind::LoadBalancer, json!({ "listeners": listeners, "cross_zone": false }), feature::ZONES),
        (Kind::LoadBalancer, json!({ "listeners": listeners, "security_groups": ["sg"] }), feature::SECURITY_GROUPS),
        (Kind::Vpc, json!({ "prefixes": ["2001:db8::/64"] }), feature::IPV6),
    ];
    for (kind, value, feature) in cases {
        let caller = if kind == Kind::Endpoint { &world.consumer } else { &world.provider };
        world.capable(&[]);
        let before = world.catalog.read().clone();
        let refusal = world.try_make(caller, kind, "needy", value.clone()).unwrap_err();
        assert_eq!(refusal.code, Code::NotSupportedByGateway);
        assert_eq!(*world.catalog.read(), before);
        if feature == feature::IPV6 {
            assert!(refusal.message.contains("no gateway is attached"), "{}", refusal.message);
            continue;
        }
        assert_eq!(refusal.message, format!("not supported by gateway gw1: {feature}"));
        world.capable(&[feature]);
        world.make(caller, kind, "needy", value);
        world.catalog.delete(caller, kind, "needy", None).unwrap();
        world.compare_with_store();
    }
}

#[test]
fn a_gateway_that_cannot_enforce_what_a_network_has_is_not_attached_to_it() {
    let world = World::with_service(json!({}));
    world.capable(&[feature::HEALTH_CHECKS]);
    let group = json!({ "vpc": "shop-net", "snat_pool": "pool", "health_check": {} });
    world.make(&world.provider, Kind::TargetGroup, "probed", group);
    world.make(&world.operator, Kind::Gateway, "gw2", json!({}));
    let vpc = world.catalog.one(&world.provider, Kind::Vpc, "shop-net").unwrap().id().to_owned();
    let attachment = json!({ "gateway": "gw2", "vpc": vpc, "port": "eth1", "prefixes": ["10.1.0.0/24"] });
    let refusal = world.try_make(&world.operator, Kind::Attachment, "second", attachment).unwrap_err();
    assert_eq!(refusal.code, Code::NotSupportedByGateway);
    assert!(refusal.message.ends_with("not supported by gateway gw2: health-checks"), "{}", refusal.message);
}

#[test]
fn chosen_addresses_fill_a_prefix_but_for_its_ends_its_first_host_and_what_is_taken() {
    let world = World::bare();
    let vpc = world.make(&world.consumer, Kind::Vpc, "small", json!({ "prefixes": ["10.9.0.0/28"] }));
    let routes = json!([{ "destination": "10.10.0.0/16", "via": "10.9.0.2" }]);
    let attachment =
        json!({ "gateway": "gw1", "vpc": vpc.id(), "port": "eth1", "prefixes": ["10.9.0.0/28"], "routes": routes });
    world.make(&world.operator, Kind::Attachment, "a", attachment);
    world.make(&world.provider, Kind::Service, "api", json!({ "allowed_principals": ["*"] }));
    let endpoint = json!({ "vpc": "small", "service": world.service_id() });
    let mut chosen = BTreeSet::new();
    // 16, without network, broadcast, first host and router.
    for number in 0..12 {
        world.make(&world.consumer, Kind::Endpoint, &format!("e{number}"), endpoint.clone());
        let address = world.endpoint(&format!("e{number}"))["addresses"][0]["address"].as_str().unwrap().to_owned();
        assert!(chosen.insert(address.parse::<std::net::Ipv4Addr>().unwrap()));
    }
    let expected: BTreeSet<_> = (3..15).map(|host| std::net::Ipv4Addr::new(10, 9, 0, host)).collect();
    assert_eq!(chosen, expected);
    let refusal = world.try_make(&world.consumer, Kind::Endpoint, "more", endpoint).unwrap_err();
    assert!(refusal.message.contains("no address of VPC") && refusal.message.contains("10.9.0.0/28"));
}

#[test]
fn a_service_of_plain_targets_needs_no_load_balancer() {
    let world = World::with_service(json!({}));
    let plain = json!({ "vpc": "shop-net", "snat_pool": "pool", "port": 5432, "targets": [{ "address": "10.1.0.20", "port": 5432 }] });
    world.make(&world.provider, Kind::Service, "db", json!({ "plain": plain, "allowed_principals": ["bank"] }));
    let refusal = world.catalog.delete(&world.provider, Kind::SnatPool, "pool", None).unwrap_err();
    assert!(refusal.message.contains("service \"db\""), "{}", refusal.message);
    refused(
        &world,
        Kind::Service,
        json!({ "plain": plain, "load_balancers": ["front"] }),
        "spec.plain",
        "load_balancers",
    );
    world.compare_with_store();
}

#[test]
fn targets_are_registered_and_deregistered_one_by_one() {
    let world = World::with_service(json!({}));
    let target = |host: u8, weight| {
        serde_json::from_value(json!({ "address": format!("10.1.0.{host}"), "port": 8443, "weight": weight })).unwrap()
    };
    let group = world.catalog.register_targets(&world.provider, "web", vec![target(10, 7), target(11, 1)]).unwrap();
    let targets = &group.as_target_group().unwrap().spec.targets;
    assert_eq!((targets.len(), targets[0].weight), (2, 7));
    let refusal = world.catalog.register_targets(&world.provider, "web", vec![target(200, 1)]).unwrap_err();
    assert_eq!(refusal.code, Code::Invalid);
    world.catalog.deregister_targets(&world.provider, "web", &[("10.1.0.10".parse().unwrap(), 8443)]).unwrap();
    let refusal = world.catalog.deregister_targets(&world.provider, "web", &[("10.1.0.10".parse().unwrap(), 8443)]);
    assert_eq!(refusal.unwrap_err().code, Code::NotFound);
    world.compare_with_store();
}

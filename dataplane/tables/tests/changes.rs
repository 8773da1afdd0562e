//! Any sequence of changes gives the tables that a file with the same content gives, and what is wrong is refused with the
//! same words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use postern_tables::declaration::{
    Endpoint, Listener, LoadBalancer, Protocol, Service, Target, TargetGroup, WeightedGroup,
};
use postern_tables::error::Problem;
use postern_tables::snapshot::{LocalAddress, VpcIndex};
use postern_tables::{Change, Declaration, Errors, Resource, ResourceKey, ResourceKind, Snapshot, Tables, compile};
use proptest::prelude::*;

/// Two consumers with the same addresses, one provider.
const LAB: &str = include_str!("lab.toml");

/// Ports, VPCs, attachments, routes and pool of the lab.
fn network() -> Declaration {
    let mut declaration = Declaration::from_toml(LAB, "lab.toml").unwrap();
    declaration.endpoints.clear();
    declaration.services.clear();
    declaration.load_balancers.clear();
    declaration.target_groups.clear();
    declaration
}

/// What is declared beyond it.
type Model = BTreeMap<ResourceKey, Resource>;

/// As a file, objects of one kind by name.
fn file(model: &Model) -> Declaration {
    let mut declaration = network();
    for resource in model.values().cloned() {
        match resource {
            Resource::TargetGroup(group) => declaration.target_groups.push(group),
            Resource::LoadBalancer(balancer) => declaration.load_balancers.push(balancer),
            Resource::Service(service) => declaration.services.push(service),
            Resource::Endpoint(endpoint) => declaration.endpoints.push(endpoint),
            Resource::SnatPool(pool) => {
                declaration.snat_pools.retain(|other| other.name != pool.name);
                declaration.snat_pools.push(pool);
            }
            other => panic!("{other:?}"),
        }
    }
    declaration
}

/// Errors with names in the place of positions, those of duplicates apart: which of two is blamed depends on what changed.
fn words(errors: &Errors, declaration: &Declaration) -> (BTreeSet<String>, Vec<String>) {
    let (mut duplicates, mut others) = (Vec::new(), BTreeSet::new());
    for error in errors {
        if matches!(error.problem, Problem::Duplicate(_)) {
            duplicates.push(error.value.clone());
            continue;
        }
        let mut text = format!("{} = {}: {}", error.key, error.value, error.problem);
        let names: [(&str, Vec<&String>); 4] = [
            ("target_group", declaration.target_groups.iter().map(|group| &group.name).collect()),
            ("load_balancer", declaration.load_balancers.iter().map(|balancer| &balancer.name).collect()),
            ("service", declaration.services.iter().map(|service| &service.id).collect()),
            ("endpoint", declaration.endpoints.iter().map(|endpoint| &endpoint.id).collect()),
        ];
        for (table, names) in names {
            for (at, name) in names.iter().enumerate() {
                text = text.replace(&format!("{table}[{at}]."), &format!("{table}[{name}]."));
            }
        }
        others.insert(text);
    }
    duplicates.sort();
    (others, duplicates)
}

/// Everything that a packet could find, without an index.
fn meaning(snapshot: &Snapshot) -> BTreeSet<String> {
    let vpc = |vpc: VpcIndex| snapshot.vpcs[vpc.at()].id.as_str();
    let mut facts = BTreeSet::new();
    for ((of, address), local) in snapshot.local.iter() {
        facts.insert(match local {
            LocalAddress::Endpoint(index) => {
                let endpoint = snapshot.endpoint(*index).unwrap();
                assert_eq!((endpoint.vpc, endpoint.address), (*of, (*address).into()));
                let policy = snapshot.policies[index.at()];
                assert_eq!((policy.epoch, policy.mtu), (endpoint.policy_epoch, endpoint.mtu));
                let service = &snapshot.services[endpoint.service.at()].id;
                let zone = snapshot.zone_name(endpoint.zone);
                let (id, mtu, echo) = (&endpoint.id, endpoint.mtu, endpoint.echo);
                format!("{} {address} is {id} for {service}, {mtu} {echo}, in \"{zone}\"", vpc(*of))
            }
            LocalAddress::Snat(pool) => format!("{} {address} is of {}", vpc(*of), snapshot.pools[pool.at()].name),
        });
    }
    let free = |at: &usize| snapshot.endpoints.get(*at).is_none();
    assert!((0..snapshot.endpoints.len()).filter(free).all(|at| snapshot.policies[at].epoch == 0));
    for service in snapshot.services.iter().flatten() {
        for ((protocol, port), listener) in service.listeners.iter() {
            let listener = &snapshot.listeners[listener.at()];
            assert_eq!((listener.protocol, listener.port), (*protocol, *port));
            let groups: Vec<_> = listener
                .groups
                .iter()
                .map(|(above, group)| (*above, &snapshot.target_groups[group.at()].name))
                .collect();
            assert_eq!(listener.last_port, *port, "one port stands among listeners, several among ranges");
            let way = (listener.sticky, listener.cross_zone);
            let of = &listener.load_balancer;
            let idle = listener.idle_seconds;
            facts.insert(format!("{} {protocol}/{port} by {of} {idle} {way:?} to {groups:?}", service.id));
        }
        for ((protocol, first, last), listener) in service.ranges.iter() {
            let listener = &snapshot.listeners[listener.at()];
            assert_eq!((listener.protocol, listener.port, listener.last_port), (*protocol, *first, *last));
            let groups: Vec<_> = listener
                .groups
                .iter()
                .map(|(above, group)| (*above, &snapshot.target_groups[group.at()].name))
                .collect();
            let way = (listener.sticky, listener.cross_zone);
            let of = &listener.load_balancer;
            facts.insert(format!("{} {protocol}/{first}-{last} by {of} {way:?} to {groups:?}", service.id));
        }
        facts.insert(format!("{}", service.id));
    }
    let listeners = snapshot.listeners.iter().flatten();
    let used: BTreeSet<usize> =
        listeners.flat_map(|listener| listener.groups.iter().map(|(_, group)| group.at())).collect();
    let within_zones = snapshot.listeners.iter().flatten().filter(|listener| !listener.cross_zone);
    let zonal: BTreeSet<usize> =
        within_zones.flat_map(|listener| listener.groups.iter().map(|(_, group)| group.at())).collect();
    let zones = |group: &postern_tables::snapshot::TargetGroup| -> BTreeSet<_> {
        let zones = group.members.iter().map(|member| snapshot.target(*member).unwrap().zone);
        zones.map(|zone| (snapshot.zone_name(zone).to_string(), zone)).filter(|(name, _)| !name.is_empty()).collect()
    };
    for (at, group) in snapshot.target_groups.iter().enumerate().filter_map(|(at, group)| Some((at, group?))) {
        let target = |index: &postern_tables::snapshot::TargetIndex| {
            let target = snapshot.target(*index).unwrap();
            let std::net::IpAddr::V4(address) = target.address else { panic!("{target:?}") };
            assert!(snapshot.is_target(target.vpc, address, target.port));
            assert_eq!((target.group.clone(), target.vpc), (group.name.clone(), group.vpc));
            (target.address, target.port, target.weight)
        };
        let members: Vec<_> = group.members.iter().map(target).collect();
        // A group that no listener leads to any more may have the table that it had.
        let hashes = 0..if used.contains(&at) { 32u64 } else { 0 };
        let chosen: Vec<_> = hashes.map(|at| group.target(at << 27 | at).map(|index| target(&index))).collect();
        let pool = &snapshot.pools[group.pool.at()].name;
        let sticky = group.sticky_seconds;
        facts.insert(format!("{} in {} by {pool}: {members:?} {chosen:?} {sticky}", group.name, vpc(group.vpc)));
        let mapping = group.mapping.iter().flat_map(|mapping| mapping.iter());
        let mapped = mapping.map(|(port, _)| (*port, group.mapped(group.mapping.as_ref().unwrap(), *port)));
        let mapped: Vec<_> = mapped.map(|(port, index)| (port, index.map(|index| target(&index)))).collect();
        facts.insert(format!("{} maps {mapped:?}", group.name));
        let zoned: BTreeSet<_> = if zonal.contains(&at) { zones(group) } else { BTreeSet::new() };
        for (name, zone) in zoned {
            let chosen: Vec<_> =
                (0..32u64).map(|at| group.target_in(zone, at << 27 | at).map(|index| target(&index))).collect();
            facts.insert(format!("{} in zone {name}: {chosen:?}", group.name));
        }
    }
    facts.insert(format!("{} targets", snapshot.registered.len()));
    facts
}

/// What lives on from `old` to `new` is where it was.
fn lives_on(old: &Snapshot, new: &Snapshot) {
    for (at, before) in old.endpoints.iter().enumerate() {
        let Some(before) = before else { continue };
        let same = |endpoint: &&postern_tables::snapshot::Endpoint| {
            (&endpoint.id, endpoint.vpc, endpoint.address) == (&before.id, before.vpc, before.address)
        };
        if let Some(after) = new.endpoints.iter().flatten().find(same) {
            assert_eq!(new.endpoints.get(at), Some(after), "its index");
            assert_eq!(after.incarnation, before.incarnation);
            let service = |of: &Snapshot, endpoint: &postern_tables::snapshot::Endpoint| {
                of.services[endpoint.service.at()].id.clone()
            };
            let same_service = service(old, before) == service(new, after);
            assert_eq!(after.policy_epoch == before.policy_epoch, same_service);
        } else if let Some(other) = new.endpoints.get(at) {
            assert_ne!(other.incarnation, before.incarnation);
        }
    }
    for (at, before) in old.targets.iter().enumerate() {
        let Some(before) = before else { continue };
        let same = |target: &&postern_tables::snapshot::Target| {
            (&target.group, target.vpc, target.address, target.port)
                == (&before.group, before.vpc, before.address, before.port)
        };
        match new.targets.iter().flatten().find(same) {
            Some(after) => assert_eq!((new.targets.get(at), after.incarnation), (Some(after), before.incarnation)),
            None => assert!(new.targets.get(at).is_none_or(|other| other.incarnation != before.incarnation)),
        }
    }
    fn keep<T>(
        old: &postern_tables::pages::Pages<T>,
        new: &postern_tables::pages::Pages<T>,
        name: impl Fn(&T) -> String,
    ) {
        let at: BTreeMap<String, usize> =
            new.iter().enumerate().filter_map(|(at, one)| Some((name(one?), at))).collect();
        for (before, one) in old.iter().enumerate().filter_map(|(at, one)| Some((at, one?))) {
            assert!(at.get(&name(one)).is_none_or(|after| *after == before), "{} moved", name(one));
        }
    }
    keep(&old.services, &new.services, |service| service.id.to_string());
    keep(&old.target_groups, &new.target_groups, |group| group.name.to_string());
    keep(&old.listeners, &new.listeners, |one| format!("{} {} {}", one.load_balancer, one.protocol, one.port));
}

fn group() -> impl Strategy<Value = Resource> {
    let zone = prop_oneof![4 => Just(None), 2 => Just(Some("a")), 2 => Just(Some("b")), 1 => Just(Some("-B"))];
    let target = (10u8..16, 0u16..2, 0i64..3, zone).prop_map(|(host, port, weight, zone)| Target {
        address: format!("192.168.0.{host}"),
        port: i64::from(8080 + port),
        weight: (weight < 2).then_some(weight),
        mapped_port: None,
        zone: zone.map(str::to_owned),
    });
    let sticky = prop_oneof![4 => Just(None), 1 => Just(Some(9)), 1 => Just(Some(0))];
    let group = (0u8..4, prop::collection::vec(target, 0..4), prop::bool::weighted(0.2), sticky);
    group.prop_map(|(name, mut targets, mapped, sticky_seconds)| {
        for (at, target) in targets.iter_mut().enumerate().filter(|_| mapped) {
            target.mapped_port = Some(80 + at as i64);
        }
        Resource::TargetGroup(TargetGroup {
            name: format!("group-{name}"),
            vpc: "vpc-provider".to_owned(),
            snat_pool: "pool".to_owned(),
            slots: None,
            sticky_seconds,
            targets,
            ..TargetGroup::default()
        })
    })
}

fn balancer() -> impl Strategy<Value = Resource> {
    let ports = prop_oneof![5 => (80i64..83).prop_map(|port| (port, None)), 1 => (80i64..84, 80i64..84).prop_map(
        |(first, last)| (0, Some(format!("{first}-{last}")))
    )];
    let listener = (any::<bool>(), ports, prop::collection::btree_map(0u8..5, 0i64..3, 1..3));
    let listener = listener.prop_map(|(udp, (port, ports), groups)| Listener {
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        port,
        ports,
        target_groups: groups
            .into_iter()
            .map(|(name, weight)| WeightedGroup { name: format!("group-{name}"), weight: Some(weight) })
            .collect(),
        ..Listener::default()
    });
    let cross_zone = prop::option::of(any::<bool>());
    (0u8..4, prop::collection::vec(listener, 0..3), cross_zone).prop_map(|(name, listeners, cross_zone)| {
        let name = format!("balancer-{name}");
        Resource::LoadBalancer(LoadBalancer { name, listeners, cross_zone, ..LoadBalancer::default() })
    })
}

fn service() -> impl Strategy<Value = Resource> {
    (0u8..4, prop::collection::vec(0u8..5, 0..3)).prop_map(|(id, balancers)| {
        Resource::Service(Service {
            id: format!("vpce-svc-{id}"),
            load_balancers: balancers.into_iter().map(|name| format!("balancer-{name}")).collect(),
        })
    })
}

fn endpoint() -> impl Strategy<Value = Resource> {
    let address = prop_oneof![
        8 => (1u8..30).prop_map(|host| format!("10.0.0.{host}")),
        1 => (10u8..14).prop_map(|host| format!("192.168.0.{host}")),
        1 => Just("10.0.0.300".to_owned()),
    ];
    let addresses = prop::collection::vec(address, 1..3);
    let mtu = prop_oneof![6 => Just(None), 2 => Just(Some(1500)), 1 => Just(Some(5))];
    let zones =
        prop_oneof![3 => Just(vec![]), 2 => Just(vec!["a"]), 2 => Just(vec!["", "b"]), 1 => Just(vec!["b", "a"])];
    (0u8..12, 0u8..5, 0usize..8, addresses, mtu, prop::option::of(any::<bool>()), zones).prop_map(
        |(id, service, vpc, addresses, mtu, echo, zones)| {
            let vpcs = ["vpc-a", "vpc-a", "vpc-a", "vpc-b", "vpc-b", "vpc-b", "vpc-provider", "vpc-none"];
            Resource::Endpoint(Endpoint {
                id: format!("vpce-{id}"),
                vpc: vpcs[vpc].to_owned(),
                service: format!("vpce-svc-{service}"),
                addresses,
                zones: zones.into_iter().map(str::to_owned).collect(),
                mtu,
                echo,
                ..Endpoint::default()
            })
        },
    )
}

/// An object to declare, or whether one that is there is to go.
fn edit() -> impl Strategy<Value = (Resource, bool)> {
    let resource = prop_oneof![3 => group(), 3 => balancer(), 3 => service(), 6 => endpoint()];
    (resource, prop::bool::weighted(0.2))
}

fn change(edits: Vec<(Resource, bool)>) -> Change {
    let mut change = Change::default();
    for (resource, gone) in edits {
        if gone { change.removed.push(resource.key()) } else { change.changed.push(resource) }
    }
    change
}

fn after(model: &Model, change: &Change) -> Model {
    let mut model = model.clone();
    change.removed.iter().for_each(|key| drop(model.remove(key)));
    model.extend(change.changed.iter().map(|resource| (resource.key(), resource.clone())));
    model
}

/// Makes the change in tables and model; what comes out must be what a file gives.
fn step(tables: &mut Tables, model: &mut Model, change: Change) -> bool {
    let next = after(model, &change);
    let declaration = file(&next);
    let (before, resources) = (tables.snapshot().clone(), tables.resources().collect::<Vec<_>>());
    let expected = declaration.clone().check();
    match (tables.update(change), expected) {
        (Ok(snapshot), Ok(checked)) => {
            assert_eq!(meaning(&snapshot), meaning(&compile(&checked, None)));
            lives_on(&before, &snapshot);
            let declared: Vec<_> = tables.resources().filter(|one| next.contains_key(&one.key())).collect();
            assert_eq!(declared, next.values().cloned().collect::<Vec<_>>());
            *model = next;
            true
        }
        (Err(errors), Err(expected)) => {
            assert_eq!(words(&errors, &declaration), words(&expected, &declaration));
            assert!(Arc::ptr_eq(&before, tables.snapshot()));
            assert_eq!(resources, tables.resources().collect::<Vec<_>>());
            false
        }
        (got, expected) => panic!("changed: {:?}\nas a file: {:?}", got.map(|_| ()), expected.map(|_| ())),
    }
}

fn empty() -> Tables {
    Tables::new(&network().check().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn changes_one_after_the_other_give_the_tables_of_a_file_and_are_refused_as_a_file_is(
        steps in prop::collection::vec(prop::collection::vec(edit(), 1..6), 1..24),
    ) {
        let (mut tables, mut model) = (empty(), Model::new());
        for edits in steps {
            step(&mut tables, &mut model, change(edits));
        }
        // All of it once more is no change; all of it in empty tables is the same tables.
        let full = Change { full: true, changed: tables.resources().collect(), removed: Vec::new() };
        let snapshot = tables.snapshot().clone();
        prop_assert!(Arc::ptr_eq(&snapshot, &tables.update(full.clone()).unwrap()));
        let mut other = empty();
        prop_assert_eq!(meaning(&other.update(full).unwrap()), meaning(&snapshot));
    }

    #[test]
    fn objects_that_fit_each_other_are_taken_one_by_one(order in Just((0..8u8).collect::<Vec<_>>()).prop_shuffle()) {
        let (mut tables, mut model) = (empty(), Model::new());
        let group = |at| Resource::TargetGroup(TargetGroup {
            name: format!("group-{at}"),
            vpc: "vpc-provider".to_owned(),
            snat_pool: "pool".to_owned(),
            targets: vec![Target { address: format!("192.168.0.{}", 20 + at), port: 80, ..Target::default() }],
            ..TargetGroup::default()
        });
        let balancer = |at| Resource::LoadBalancer(LoadBalancer {
            name: format!("balancer-{at}"),
            listeners: vec![Listener {
                port: 80,
                target_groups: vec![WeightedGroup { name: format!("group-{at}"), weight: None }],
                ..Listener::default()
            }],
            ..LoadBalancer::default()
        });
        let service = |at| Resource::Service(Service {
            id: format!("vpce-svc-{at}"),
            load_balancers: vec![format!("balancer-{at}")],
        });
        let endpoint = |at: u8, of: u8| Resource::Endpoint(Endpoint {
            id: format!("vpce-{at}"),
            vpc: "vpc-a".to_owned(),
            service: format!("vpce-svc-{of}"),
            addresses: vec![format!("10.0.0.{}", 50 + at)],
            ..Endpoint::default()
        });
        let one = |resource| Change { changed: vec![resource], ..Change::default() };
        for &at in &order {
            for resource in [group(at), balancer(at), service(at), endpoint(at, at)] {
                prop_assert!(step(&mut tables, &mut model, one(resource)));
            }
        }
        // What is used cannot go …
        for kind in [group(0), balancer(0), service(0)] {
            let removed = vec![kind.key()];
            let taken = step(&mut tables, &mut model, Change { removed, ..Change::default() });
            prop_assert!(!taken);
        }
        // … until nothing uses it. A service goes as another comes, and an endpoint moves.
        let both = Change { changed: vec![endpoint(0, 1)], removed: vec![service(0).key()], ..Change::default() };
        prop_assert!(step(&mut tables, &mut model, both));
        let all = Change { removed: vec![balancer(0).key(), group(0).key()], ..Change::default() };
        prop_assert!(step(&mut tables, &mut model, all));
        // A change of the network compiles all anew, and everything stays where it is.
        let before = tables.snapshot().clone();
        let mut pool = network().snat_pools.remove(0);
        pool.addresses.push("192.168.0.252".to_owned());
        let mut with_pool = model.clone();
        let snapshot = tables.update(one(Resource::SnatPool(pool.clone()))).unwrap();
        with_pool.insert(Resource::SnatPool(pool.clone()).key(), Resource::SnatPool(pool));
        lives_on(&before, &snapshot);
        prop_assert_eq!(meaning(&snapshot), meaning(&compile(&file(&with_pool).check().unwrap(), None)));
        let address = (VpcIndex(2), Ipv4Addr::new(192, 168, 0, 252));
        prop_assert!(matches!(snapshot.local.get(&address), Some(LocalAddress::Snat(_))));
    }
}

#[test]
fn what_is_pushed_is_named_by_its_name_in_errors() {
    let mut tables = empty();
    let endpoint = Resource::Endpoint(Endpoint {
        id: "vpce-1".to_owned(),
        vpc: "vpc-a".to_owned(),
        service: "vpce-svc-1".to_owned(),
        addresses: vec!["10.0.0.0".to_owned()],
        ..Endpoint::default()
    });
    let change = Change { changed: vec![endpoint], ..Change::default() };
    let pool = Resource::SnatPool(network().snat_pools.remove(0));
    let wrong = tables.update(change.clone()).unwrap_err().to_string();
    let expected = "pushed tables: endpoint[vpce-1].service = \"vpce-svc-1\": is not the name of a declared service; none is \
                    declared\npushed tables: endpoint[vpce-1].addresses[0] = \"10.0.0.0\": is the network address 10.0.0.0 \
                    of 10.0.0.0/24; allowed is a unicast address of the VPC";
    assert_eq!(wrong, expected);
    // With a change of the network too.
    let removed = vec![pool.key()];
    assert_eq!(tables.update(Change { removed, ..change }).unwrap_err().to_string(), expected);
}

#[test]
fn more_endpoint_addresses_than_there_is_room_for_are_refused() {
    let mut declaration = network();
    declaration.limits.endpoints = Some(1);
    let mut tables = Tables::new(&declaration.check().unwrap());
    let service = Resource::Service(Service { id: "vpce-svc-1".to_owned(), load_balancers: Vec::new() });
    let endpoint = |addresses: &[&str]| {
        Resource::Endpoint(Endpoint {
            id: "vpce-1".to_owned(),
            vpc: "vpc-a".to_owned(),
            service: "vpce-svc-1".to_owned(),
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
            ..Endpoint::default()
        })
    };
    let change = |resources: &[Resource]| Change { changed: resources.to_vec(), ..Change::default() };
    tables.update(change(&[service, endpoint(&["10.0.0.10"])])).unwrap();
    tables.update(change(&[endpoint(&["10.0.0.11"])])).unwrap();
    let wrong = tables.update(change(&[endpoint(&["10.0.0.10", "10.0.0.11"])])).unwrap_err().to_string();
    assert_eq!(
        wrong,
        "pushed tables: limits.endpoints = 1: 2 are declared, but this process has room for 1; raise limits.endpoints and \
         restart"
    );
    let removed = vec![ResourceKey { kind: ResourceKind::Endpoint, name: "vpce-1".to_owned() }];
    let snapshot = tables.update(Change { removed, ..Change::default() }).unwrap();
    assert!(snapshot.endpoints.iter().flatten().next().is_none());
}

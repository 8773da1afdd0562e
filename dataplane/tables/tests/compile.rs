//! From a declaration to a snapshot, and from one snapshot to the next.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use postern_tables::snapshot::{Attachment, Generation, LocalAddress, ReturnPath, VpcIndex};
use postern_tables::{Checked, Declaration, Snapshot, compile, declaration};
use postern_wire::{AttachmentIndex, PortIndex};
use proptest::prelude::*;

/// Two consumers with the same addresses, one provider with three targets.
const LAB: &str = include_str!("lab.toml");

fn lab() -> Declaration {
    Declaration::from_toml(LAB, "lab.toml").unwrap()
}

fn check(declaration: Declaration) -> Checked {
    declaration.check().unwrap_or_else(|errors| panic!("{errors}"))
}

fn next(declaration: &Declaration, previous: &Snapshot) -> Snapshot {
    compile(&check(declaration.clone()), Some(previous))
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[test]
fn what_was_declared_is_found_by_what_a_packet_carries() {
    let checked = check(lab());
    assert_eq!((checked.limits.endpoints, checked.limits.targets), (4096, 4096));
    assert_eq!(checked.gateway.control_socket.to_str(), Some("/run/postern/control.sock"));
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
    let snapshot = compile(&checked, None);
    assert_eq!(snapshot.generation, Generation(1));

    let [a, b, provider] =
        [(0, 0), (1, 20), (1, 0)].map(|(port, vlan)| snapshot.attachment(PortIndex(port), vlan).unwrap());
    assert_eq!([a, b, provider], [0, 1, 2].map(AttachmentIndex));
    assert_eq!(
        [(0, 20), (1, 21), (1, 4095), (2, 0)].map(|(port, vlan)| snapshot.attachment(PortIndex(port), vlan)),
        [None; 4]
    );
    assert_eq!(snapshot.attachments[1].return_path, ReturnPath::LastHop);

    let endpoint = |attachment| match snapshot.local(attachment, address("10.0.0.10")) {
        Some(LocalAddress::Endpoint(index)) => snapshot.endpoint(index).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((&*endpoint(a).id, &*endpoint(b).id), ("vpce-0a", "vpce-0b"));
    assert_eq!((endpoint(a).mtu, endpoint(a).echo), (8500, true));
    assert_ne!(endpoint(a).policy_epoch, endpoint(b).policy_epoch);
    assert_eq!(snapshot.local(provider, address("10.0.0.10")), None);
    let Some(LocalAddress::Snat(pool)) = snapshot.local(provider, address("192.168.0.251")) else { panic!() };
    assert_eq!((snapshot.pools[pool.at()].ports.clone(), snapshot.pools[pool.at()].rest_seconds), (1024..=65_535, 60));

    let service = endpoint(a).service;
    let [tcp, udp] = [(6, 80), (17, 53)].map(|(protocol, port)| snapshot.listener(service, protocol, port).unwrap());
    let [tcp, udp] = [tcp, udp].map(|listener| &snapshot.listeners[listener.at()]);
    assert_eq!((tcp.idle_seconds, tcp.mss, udp.idle_seconds, udp.mss), (350, Some(1400), 120, None));
    assert_eq!(snapshot.listener(service, 6, 53), None);
    let group = &snapshot.target_groups[tcp.group(0).unwrap().at()];
    assert_eq!((&*group.name, group.members.len(), group.pool), ("web", 3, pool));
    let hit: HashSet<_> = (0..64u64).map(|at| group.target(at << 26).unwrap()).collect();
    assert_eq!(hit.len(), 3);

    let vpc = snapshot.attachments[2].vpc;
    let route = |text| snapshot.route(vpc, address(text)).map(|route| (route.attachment, route.via));
    assert_eq!(route("192.168.0.11"), Some((provider, None)));
    assert_eq!(route("172.16.0.13"), Some((provider, Some(address("192.168.0.1")))));
    assert_eq!(snapshot.route(snapshot.attachments[0].vpc, address("172.16.0.13")), None);
}

#[test]
fn a_declaration_survives_being_written_and_read() {
    let mut declaration = lab();
    declaration.endpoints[0].echo = Some(false);
    declaration.workers.cpus = Some(vec![1]);
    declaration.workers.polling = Some(declaration::Polling::Spin);
    let text = declaration.to_toml();
    assert_eq!(Declaration::from_toml(&text, "lab.toml").unwrap(), declaration, "{text}");
}

#[test]
fn a_reload_of_the_same_file_changes_only_the_generation() {
    let first = compile(&check(lab()), None);
    let mut shuffled = lab();
    shuffled.endpoints.reverse();
    shuffled.target_groups[0].targets.reverse();
    shuffled.attachments.reverse();
    shuffled.vpcs.reverse();
    let second = next(&shuffled, &first);
    assert_eq!(second.generation, Generation(2));
    assert_eq!(second.endpoints, first.endpoints);
    assert_eq!(second.targets, first.targets);
    assert_eq!(second.attachments, first.attachments);
    assert_eq!(second.vpcs, first.vpcs);
    assert_eq!(second.local, first.local);
    assert_eq!(second.target_groups[0].members, first.target_groups[0].members);
    let [one, other] = [&first, &second].map(|snapshot| snapshot.target_groups[0].table.as_ref().unwrap());
    assert!(Arc::ptr_eq(one, other), "an unchanged group's table was built again");
}

#[test]
fn a_changed_weight_makes_a_new_table_with_the_same_targets() {
    let first = compile(&check(lab()), None);
    let mut declaration = lab();
    declaration.target_groups[0].targets[0].weight = Some(0);
    let second = next(&declaration, &first);
    assert_eq!(second.target_groups[0].members, first.target_groups[0].members);
    assert_ne!(second.target_groups[0].table, first.target_groups[0].table);
    let incarnations =
        |snapshot: &Snapshot| snapshot.targets.iter().flatten().map(|target| target.incarnation).collect::<Vec<_>>();
    assert_eq!(incarnations(&first), incarnations(&second));
    let drained = address("192.168.0.12");
    let hit = |hash: u64| second.target(second.target_groups[0].target(hash).unwrap()).unwrap().address;
    assert!((0..1000u64).all(|at| hit(at << 22) != drained));
    declaration.target_groups[0].targets.iter_mut().for_each(|target| target.weight = Some(0));
    assert_eq!(next(&declaration, &second).target_groups[0].target(0), None);
}

#[test]
fn a_free_index_is_given_again_with_a_new_incarnation_the_longest_free_first() {
    let mut declaration = lab();
    let endpoint = |number: u8| declaration::Endpoint {
        id: format!("vpce-{number:017x}"),
        vpc: "vpc-a".to_owned(),
        service: "vpce-svc-web".to_owned(),
        addresses: vec![format!("10.0.0.{number}")],
        ..Default::default()
    };
    let at = |snapshot: &Snapshot, number: u8| {
        let key = (VpcIndex(0), Ipv4Addr::new(10, 0, 0, number));
        match snapshot.local[&key] {
            LocalAddress::Endpoint(index) => (index.0, snapshot.endpoint(index).unwrap().incarnation),
            other => panic!("{other:?}"),
        }
    };
    let with = |declaration: &mut Declaration, numbers: &[u8]| {
        declaration.endpoints = numbers.iter().map(|&number| endpoint(number)).collect();
        declaration.clone()
    };
    let first = compile(&check(with(&mut declaration, &[20, 21, 22, 23])), None);
    let second = next(&with(&mut declaration, &[20, 21, 23]), &first);
    let third = next(&with(&mut declaration, &[21, 23]), &second);
    assert_eq!(third.endpoints.iter().map(|slot| slot.is_some()).collect::<Vec<_>>(), [false, true, false, true]);
    let fourth = next(&with(&mut declaration, &[21, 23, 30, 31, 32]), &third);
    assert_eq!([30, 31, 32].map(|number| at(&fourth, number).0), [2, 0, 4]);
    assert_eq!([21, 23].map(|number| at(&fourth, number)), [21, 23].map(|number| at(&first, number)));
    let before: HashSet<u32> = first.endpoints.iter().flatten().map(|endpoint| endpoint.incarnation).collect();
    assert!([30, 31, 32].iter().all(|&number| !before.contains(&at(&fourth, number).1)));
    // The same endpoint again is another incarnation.
    let fifth = next(&with(&mut declaration, &[20]), &fourth);
    assert!(!before.contains(&at(&fifth, 20).1));
}

#[test]
fn a_policy_epoch_moves_when_the_service_changes_and_at_no_other_time() {
    let mut declaration = lab();
    declaration.services.push(declaration::Service { id: "vpce-svc-other".to_owned(), load_balancers: vec![] });
    let epochs =
        |snapshot: &Snapshot| -> Vec<u32> { snapshot.endpoints.iter().flatten().map(|e| e.policy_epoch).collect() };
    let first = compile(&check(declaration.clone()), None);
    assert!(epochs(&first).iter().all(|&epoch| epoch != 0));

    declaration.endpoints[0].mtu = Some(1500);
    declaration.services.reverse();
    declaration.load_balancers[0].listeners.remove(0);
    declaration.target_groups[0].targets.remove(0);
    let second = next(&declaration, &first);
    assert_eq!(epochs(&second), epochs(&first));

    declaration.endpoints[0].service = "vpce-svc-other".to_owned();
    let third = next(&declaration, &second);
    assert_eq!(epochs(&third)[1], epochs(&first)[1]);
    assert!(!epochs(&first).contains(&epochs(&third)[0]));
    let incarnation = |snapshot: &Snapshot| snapshot.endpoints[0].incarnation;
    assert_eq!(incarnation(&third), incarnation(&first));
}

#[test]
fn an_attachment_keeps_its_index_and_a_removed_one_leaves_its_index_unused() {
    let first = compile(&check(lab()), None);
    let mut declaration = lab();
    declaration.attachments.remove(0);
    declaration.endpoints.remove(0);
    declaration.attachments.push(declaration::Attachment {
        name: "c".to_owned(),
        vpc: "vpc-a".to_owned(),
        port: "trunk".to_owned(),
        vlan: Some(30),
        ..Default::default()
    });
    let second = next(&declaration, &first);
    assert!(second.attachments[0].is_removed());
    assert_eq!(second.attachment(PortIndex(0), 0), None);
    assert_eq!(second.attachment(Attachment::REMOVED, 0), None);
    assert_eq!(second.attachment(PortIndex(1), 20), Some(AttachmentIndex(1)));
    assert_eq!(second.attachment(PortIndex(1), 30), Some(AttachmentIndex(3)));
    let third = next(&lab(), &second);
    assert_eq!(third.attachment(PortIndex(0), 0), Some(AttachmentIndex(0)));
    assert!(third.attachments[3].is_removed());
}

#[test]
fn an_attachment_pushed_by_hand_is_found() {
    let mut snapshot = compile(&check(lab()), None);
    let attachment = Attachment { vlan: Some(99), ..snapshot.attachments[1].clone() };
    Arc::make_mut(&mut snapshot.attachments).push(attachment);
    assert_eq!(snapshot.attachment(PortIndex(1), 99), Some(AttachmentIndex(3)));
    snapshot.index();
    assert_eq!(snapshot.attachment(PortIndex(1), 99), Some(AttachmentIndex(3)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_longest_prefix_wins_among_any_number_of_routes(
        routes in prop::collection::btree_set((0u8..=32, any::<u32>()), 0..60),
        destinations in prop::collection::vec(any::<u32>(), 20),
    ) {
        let mut declaration = lab();
        declaration.target_groups[0].targets.truncate(2);
        declaration.routes.clear();
        let prefixes: HashSet<_> = routes
            .iter()
            .filter_map(|&(length, bits)| postern_wire::Ipv4Prefix::containing(Ipv4Addr::from_bits(bits & 0x3fff_ffff), length))
            .collect();
        for prefix in &prefixes {
            declaration.routes.push(declaration::Route {
                attachment: "a".to_owned(),
                destination: prefix.to_string(),
                via: Some("10.0.0.1".to_owned()),
            });
        }
        prop_assume!(!prefixes.iter().any(|prefix| prefix.to_string() == "10.0.0.0/24"));
        let snapshot = compile(&check(declaration), None);
        let vpc = snapshot.attachments[0].vpc;
        let near = prefixes.iter().map(|prefix| prefix.network());
        for destination in destinations.into_iter().map(Ipv4Addr::from_bits).chain(near) {
            let expected = snapshot.vpcs[vpc.at()]
                .routes
                .iter()
                .filter(|route| route.destination.contains(destination))
                .max_by_key(|route| route.destination.length());
            prop_assert_eq!(snapshot.route(vpc, destination), expected);
        }
    }

    #[test]
    fn no_two_live_objects_ever_share_an_index_with_an_incarnation(
        steps in prop::collection::vec(prop::collection::btree_set(1u8..40, 0..20), 1..12),
    ) {
        let mut declaration = lab();
        let mut snapshot = compile(&check(declaration.clone()), None);
        let mut holders = HashMap::new();
        let mut most = 2;
        for (step, numbers) in steps.iter().enumerate() {
            declaration.endpoints = numbers.iter().map(|number| declaration::Endpoint {
                id: format!("vpce-{number}"),
                vpc: "vpc-b".to_owned(),
                service: "vpce-svc-web".to_owned(),
                addresses: vec![format!("10.0.0.{number}")],
                ..Default::default()
            }).collect();
            snapshot = next(&declaration, &snapshot);
            most = most.max(numbers.len());
            prop_assert!(snapshot.endpoints.len() <= most, "an index was made while one was free");
            prop_assert_eq!(snapshot.endpoints.iter().flatten().count(), numbers.len());
            for (index, endpoint) in snapshot.endpoints.iter().enumerate() {
                let Some(endpoint) = endpoint else { continue };
                let (holder, last) = holders
                    .entry((index, endpoint.incarnation))
                    .or_insert_with(|| (endpoint.id.clone(), step));
                prop_assert_eq!(&*holder, &endpoint.id);
                prop_assert!(step - *last <= 1, "an incarnation came back");
                *last = step;
            }
        }
    }
}

/// `endpoints` spread over `services` with a group of `targets` each.
fn large(endpoints: u32, services: u32, targets: u32) -> Declaration {
    let mut declaration = lab();
    declaration.attachments[0].prefixes = vec!["10.0.0.0/8".to_owned()];
    declaration.attachments[2].prefixes.push("172.16.0.0/12".to_owned());
    for number in 0..services {
        declaration.target_groups.push(declaration::TargetGroup {
            name: format!("group-{number}"),
            vpc: "vpc-provider".to_owned(),
            snat_pool: "pool".to_owned(),
            targets: (0..targets)
                .map(|target| declaration::Target {
                    address: Ipv4Addr::from_bits(0xac10_0101 + number * targets + target).to_string(),
                    port: 443,
                    ..declaration::Target::default()
                })
                .collect(),
            ..declaration::TargetGroup::default()
        });
        declaration.load_balancers.push(declaration::LoadBalancer {
            name: format!("balancer-{number}"),
            listeners: vec![declaration::Listener {
                port: 443,
                target_groups: vec![declaration::WeightedGroup { name: format!("group-{number}"), weight: None }],
                ..Default::default()
            }],
            ..Default::default()
        });
        declaration.services.push(declaration::Service {
            id: format!("vpce-svc-{number:017x}"),
            load_balancers: vec![format!("balancer-{number}")],
        });
    }
    declaration.endpoints.extend((0..endpoints).map(|number| declaration::Endpoint {
        id: format!("vpce-{number:017x}"),
        vpc: "vpc-a".to_owned(),
        service: format!("vpce-svc-{:017x}", number % services),
        addresses: vec![Ipv4Addr::from_bits(0x0a01_0000 + number).to_string()],
        ..Default::default()
    }));
    declaration
}

#[test]
fn a_hundred_thousand_endpoints_compile_and_a_reload_keeps_every_one() {
    let mut declaration = large(100_000, 1_000, 10);
    let first = compile(&check(declaration.clone()), None);
    assert_eq!(first.endpoints.len(), 100_002);
    assert_eq!(first.targets.len(), 10_003);
    assert_eq!(first.local.len(), 100_004);
    declaration.endpoints.swap_remove(7);
    let second = next(&declaration, &first);
    let changed = first.endpoints.iter().zip(second.endpoints.iter()).filter(|(old, new)| old != new).count();
    assert_eq!(changed, 1);
    let shared = first.target_groups.iter().zip(second.target_groups.iter()).filter(|(old, new)| {
        let table = |group: Option<&postern_tables::snapshot::TargetGroup>| group.unwrap().table.clone();
        matches!((table(*old), table(*new)), (Some(old), Some(new)) if Arc::ptr_eq(&old, &new))
    });
    assert_eq!(shared.count(), 1_001);
}

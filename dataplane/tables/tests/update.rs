//! Changes of what is declared, one after the other.

use std::collections::BTreeSet;

use postern_tables::snapshot::EndpointIndex;
use postern_tables::{Change, Checked, Declaration, Resource, ResourceKey, ResourceKind, Snapshot, Tables, Usable};

/// Two consumers with the same addresses, one provider with three targets.
const LAB: &str = include_str!("lab.toml");

fn lab() -> Declaration {
    Declaration::from_toml(LAB, "lab.toml").unwrap()
}

fn tables() -> Tables {
    Tables::new(&checked())
}

fn checked() -> Checked {
    lab().check().unwrap()
}

fn endpoint(id: &str, address: &str) -> Resource {
    let mut endpoint = lab().endpoints.remove(0);
    endpoint.id = id.to_owned();
    endpoint.addresses = vec![address.to_owned()];
    Resource::Endpoint(endpoint)
}

#[test]
fn an_endpoint_comes_and_goes_and_the_others_keep_their_indices() {
    let mut tables = tables();
    let before: Vec<_> = (0..2).map(|at| tables.snapshot().endpoint(EndpointIndex(at)).cloned()).collect();
    let added = endpoint("vpce-new", "10.0.0.77");
    let key = added.key();
    tables.update(Change { changed: vec![added.clone()], ..Change::default() }).unwrap();
    assert!(tables.resources().any(|resource| resource == added));
    let after: Vec<_> = (0..2).map(|at| tables.snapshot().endpoint(EndpointIndex(at)).cloned()).collect();
    assert_eq!(before, after);
    let snapshot = tables.update(Change { removed: vec![key], ..Change::default() }).unwrap();
    assert!(!tables.resources().any(|resource| resource == added));
    assert_eq!(before, (0..2).map(|at| snapshot.endpoint(EndpointIndex(at)).cloned()).collect::<Vec<_>>());
}

#[test]
fn a_refused_change_leaves_everything_as_it_was() {
    let mut tables = tables();
    let (snapshot, resources) = (tables.snapshot().clone(), tables.resources().collect::<Vec<_>>());
    let service = lab().services[0].id.clone();
    let change = Change {
        changed: vec![endpoint("vpce-new", "10.0.0.77")],
        removed: vec![ResourceKey { kind: ResourceKind::Service, name: service }],
        ..Change::default()
    };
    let errors = tables.update(change).unwrap_err().to_string();
    assert!(errors.contains("is not the name of a declared service"), "{errors}");
    assert!(std::sync::Arc::ptr_eq(&snapshot, tables.snapshot()));
    assert_eq!(resources, tables.resources().collect::<Vec<_>>());
}

#[test]
fn tables_of_a_gateway_with_control_take_what_is_pushed() {
    let process = "[control]\naddress = \"http://localhost:1\"\ntoken_file = \"/t\"\n";
    let ports = LAB.split("[[vpc]]").next().unwrap();
    let ports = &ports[ports.find("[[port]]").unwrap()..];
    let process = Declaration::from_toml(&format!("{process}{ports}"), "gateway.toml").unwrap().check().unwrap();
    let mut tables = Tables::new(&process);
    let lab = Declaration::from_toml(LAB, "lab.toml").unwrap();
    let snapshot = tables.update(Change::full(&lab)).unwrap();
    assert!(snapshot.endpoint(EndpointIndex(0)).is_some());
    tables.update(Change { full: true, ..Change::default() }).unwrap();
    tables.update(Change::full(&lab)).unwrap();
}

fn usable(name: &str, address: &str, usable: Usable) -> (String, std::net::IpAddr, u16, Usable) {
    (name.to_owned(), address.parse().unwrap(), 8080, usable)
}

/// The addresses that new flows go to.
fn chosen(snapshot: &Snapshot) -> BTreeSet<String> {
    let group = &snapshot.target_groups[0];
    let target = |hash: u64| snapshot.target(group.target(hash).unwrap()).unwrap().address.to_string();
    (0..200u64).map(|at| target(at << 25 | at)).collect()
}

#[test]
fn a_target_without_new_flows_leaves_the_selection_and_comes_back_with_the_same_table() {
    let mut tables = tables();
    let before = tables.snapshot().clone();
    assert_eq!(chosen(&before).len(), 3);
    let snapshot = tables.set_health(&[usable("web", "192.168.0.11", Usable::NoNewFlows)]).unwrap();
    assert!(snapshot.generation > before.generation);
    assert_eq!(chosen(&snapshot), BTreeSet::from(["172.16.0.13".to_owned(), "192.168.0.12".to_owned()]));
    assert!(snapshot.targets.iter().flatten().all(|target| !target.cut));
    assert_eq!(snapshot.policies, before.policies);
    // A change of tables keeps what is known of health; what is said again changes nothing.
    let snapshot =
        tables.update(Change { changed: vec![endpoint("vpce-new", "10.0.0.77")], ..Change::default() }).unwrap();
    assert_eq!(chosen(&snapshot).len(), 2);
    assert!(tables.set_health(&[usable("web", "192.168.0.11", Usable::NoNewFlows)]).is_none());
    let unknown = [usable("web", "192.168.0.99", Usable::CutFlows), usable("none", "192.168.0.11", Usable::CutFlows)];
    assert!(tables.set_health(&unknown).is_none());
    let snapshot = tables.set_health(&[usable("web", "192.168.0.11", Usable::Usable)]).unwrap();
    assert_eq!(snapshot.target_groups[0].table, before.target_groups[0].table);
}

#[test]
fn a_group_without_a_usable_target_fails_open_and_cuts_nothing() {
    let mut tables = tables();
    let all = ["192.168.0.11", "192.168.0.12", "172.16.0.13"].map(|address| usable("web", address, Usable::CutFlows));
    let snapshot = tables.set_health(&all[..2]).unwrap();
    assert_eq!((chosen(&snapshot).len(), snapshot.target_groups[0].fail_open), (1, false));
    assert_eq!(snapshot.targets.iter().flatten().filter(|target| target.cut).count(), 2);
    let snapshot = tables.set_health(&all[2..]).unwrap();
    assert_eq!((chosen(&snapshot).len(), snapshot.target_groups[0].fail_open), (3, true));
    assert!(snapshot.targets.iter().flatten().all(|target| !target.cut));
    // One is well again: the flows of the others end after all.
    let epochs = |snapshot: &Snapshot| snapshot.policies.iter().map(|policy| policy.epoch).collect::<Vec<_>>();
    let before = epochs(&snapshot);
    let snapshot = tables.set_health(&[usable("web", "192.168.0.11", Usable::Usable)]).unwrap();
    assert_eq!(chosen(&snapshot), BTreeSet::from(["192.168.0.11".to_owned()]));
    assert!(epochs(&snapshot).iter().all(|epoch| !before.contains(epoch)));
    assert_eq!(snapshot.endpoints.iter().flatten().map(|of| of.policy_epoch).collect::<Vec<_>>(), epochs(&snapshot));
}

/// The lab's file with a health check, and more, in its first group, whose targets are those of `text` that are not `without`.
fn checked_lab(more: &str, without: &str) -> Declaration {
    let text = LAB.replacen("snat_pool = \"pool\"", &format!("snat_pool = \"pool\"\n{more}"), 1);
    let mut declaration = Declaration::from_toml(&text, "lab.toml").unwrap();
    declaration.target_groups[0].targets.retain(|target| target.address != without);
    declaration
}

const CHECK: &str = "health_check = { protocol = \"tcp\" }";

#[test]
fn a_new_target_of_a_checked_group_gets_no_flows_before_it_has_passed_unless_no_other_may() {
    for (probes, check, new) in [(true, CHECK, false), (false, CHECK, true), (true, "", true)] {
        let mut tables = Tables::new(&checked_lab(check, "172.16.0.13").check().unwrap());
        if probes {
            tables.await_first_pass();
        }
        let before = chosen(tables.snapshot());
        assert_eq!(before.len(), 2, "targets that were there stay");
        let snapshot = tables.update(Change::full(&checked_lab(check, ""))).unwrap();
        assert_eq!(chosen(&snapshot).contains("172.16.0.13"), new, "{probes} {check}");
        // Whatever else changes, it has to pass first.
        let snapshot =
            tables.update(Change { changed: vec![endpoint("vpce-new", "10.0.0.77")], ..Change::default() }).unwrap();
        assert_eq!(chosen(&snapshot).contains("172.16.0.13"), new);
        let others = ["192.168.0.11", "192.168.0.12"].map(|address| usable("web", address, Usable::NoNewFlows));
        assert_eq!(chosen(&tables.set_health(&others).unwrap()).len(), if new { 1 } else { 3 }, "fail open");
        tables.set_health(&[usable("web", "172.16.0.13", Usable::Usable)]);
        assert_eq!(chosen(tables.snapshot()), BTreeSet::from(["172.16.0.13".to_owned()]));
        // Taken out and put in again, it is new.
        tables.set_health(&[usable("web", "192.168.0.11", Usable::Usable)]);
        tables.update(Change::full(&checked_lab(check, "172.16.0.13"))).unwrap();
        let snapshot = tables.update(Change::full(&checked_lab(check, ""))).unwrap();
        assert_eq!(chosen(&snapshot).contains("172.16.0.13"), new);
    }
}

#[test]
fn flows_of_a_target_that_left_end_when_health_says_so_and_the_group_did() {
    for (ends, more) in [(true, "deregistration_ends_flows = true"), (false, "")] {
        let mut tables = Tables::new(&checked_lab(more, "").check().unwrap());
        let there = |snapshot: &Snapshot| {
            let target =
                snapshot.targets.iter().flatten().find(|target| target.address.to_string().starts_with("172."));
            target.map(|target| target.incarnation)
        };
        let incarnation = there(tables.snapshot()).unwrap();
        let snapshot = tables.update(Change::full(&checked_lab(more, "172.16.0.13"))).unwrap();
        assert!(snapshot.ended.is_empty() && there(&snapshot).is_none(), "the delay is not over");
        let epochs = |snapshot: &Snapshot| snapshot.policies.iter().map(|policy| policy.epoch).collect::<Vec<_>>();
        let before = epochs(&snapshot);
        let over = [usable("web", "172.16.0.13", Usable::CutFlows)];
        let snapshot = tables.set_health(&over);
        assert_eq!(snapshot.is_some(), ends);
        if let Some(snapshot) = snapshot {
            assert_eq!(*snapshot.ended, BTreeSet::from([incarnation]));
            assert!(epochs(&snapshot).iter().zip(before).all(|(now, before)| *now > before), "flows are judged again");
        }
        assert!(tables.set_health(&over).is_none(), "once");
        // The same address again is another target, and its flows go on.
        let snapshot = tables.update(Change::full(&checked_lab(more, ""))).unwrap();
        assert!(there(&snapshot).is_some_and(|again| again > incarnation && !snapshot.ended.contains(&again)));
        // Also where the whole group goes.
        let again = there(&snapshot).unwrap();
        tables.update(Change { full: true, ..Change::default() }).unwrap();
        assert_eq!(tables.set_health(&over).is_some_and(|snapshot| snapshot.ended.contains(&again)), ends);
    }
}

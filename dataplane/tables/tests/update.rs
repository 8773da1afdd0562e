//! Changes of what is declared, one after the other.

use postern_tables::snapshot::EndpointIndex;
use postern_tables::{Change, Checked, Declaration, Resource, ResourceKey, ResourceKind, Tables};

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

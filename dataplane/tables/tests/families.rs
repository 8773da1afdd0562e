//! IPv6 beside IPv4: what a declaration of both becomes, and what is refused.

use std::net::IpAddr;

use postern_tables::compile;
use postern_tables::declaration::Declaration;
use postern_tables::snapshot::LocalAddress;
use postern_wire::{AttachmentIndex, Family};

const FILE: &str = r#"
[[port]]
interface = "eth1"
[[vpc]]
id = "vpc-a"
[[vpc]]
id = "vpc-b"
[[attachment]]
name = "consumer"
vpc = "vpc-a"
port = "eth1"
vlan = 1
prefixes = ["10.0.0.0/24", "2001:db8:a::/64"]
[[attachment]]
name = "provider"
vpc = "vpc-b"
port = "eth1"
vlan = 2
prefixes = ["10.9.0.0/24", "2001:db8:b::/64"]
[[route]]
attachment = "provider"
destination = "2001:db8:c::/48"
via = "fe80::1"
[[snat_pool]]
name = "pool"
vpc = "vpc-b"
addresses = ["10.9.0.200", "2001:db8:b::200"]
[[target_group]]
name = "four"
vpc = "vpc-b"
snat_pool = "pool"
target = [{ address = "10.9.0.10", port = 80 }]
[[target_group]]
name = "six"
vpc = "vpc-b"
snat_pool = "pool"
target = [{ address = "2001:db8:b::10", port = 80 }, { address = "2001:db8:c::10", port = 80 }]
[[load_balancer]]
name = "both"
listener = [{ port = 80, target_groups = [{ name = "four" }, { name = "six" }] }]
[[service]]
id = "vpce-svc-1"
load_balancers = ["both"]
[[endpoint]]
id = "vpce-1"
vpc = "vpc-a"
service = "vpce-svc-1"
addresses = ["10.0.0.10", "2001:db8:a::10"]
"#;

fn error(from: &str, to: &str) -> String {
    assert!(FILE.contains(from), "{from}");
    let text = FILE.replacen(from, to, 1);
    Declaration::from_toml(&text, "lab.toml").unwrap().check().unwrap_err().to_string()
}

#[test]
fn an_ipv6_declaration_becomes_tables_of_both_families() {
    let checked = Declaration::from_toml(FILE, "lab.toml").unwrap().check().unwrap();
    let snapshot = compile(&checked, None);
    let (consumer, provider) = (AttachmentIndex(0), AttachmentIndex(1));
    let local = |at, text: &str| snapshot.local_of(at, text.parse().unwrap());
    let (Some(LocalAddress::Endpoint(four)), Some(LocalAddress::Endpoint(six))) =
        (local(consumer, "10.0.0.10"), local(consumer, "2001:db8:a::10"))
    else {
        panic!()
    };
    assert_ne!(four, six);
    assert_eq!(snapshot.endpoint(four).unwrap().id, snapshot.endpoint(six).unwrap().id);
    assert!(matches!(local(provider, "2001:db8:b::200"), Some(LocalAddress::Snat(_))));
    assert_eq!(local(provider, "2001:db8:a::10"), None);
    let vpc = snapshot.attachments[1].vpc;
    let way = |text: &str| snapshot.way_to(vpc, text.parse().unwrap());
    let neighbour = |text: &str| Some((provider, text.parse::<IpAddr>().unwrap()));
    assert_eq!(way("2001:db8:b::10"), neighbour("2001:db8:b::10"));
    assert_eq!(way("2001:db8:c::10"), neighbour("fe80::1"));
    assert_eq!(way("2001:db8:d::10"), None);
    assert!(snapshot.is_target6(vpc, "2001:db8:c::10".parse().unwrap(), 80));
    let listener = snapshot.listeners.iter().flatten().next().unwrap();
    let family =
        |(_, group): &(u32, postern_tables::snapshot::TargetGroupIndex)| snapshot.target_groups[group.at()].family;
    assert_eq!(listener.groups.iter().map(family).collect::<Vec<_>>(), [Family::V4]);
    assert_eq!(listener.groups6.iter().map(family).collect::<Vec<_>>(), [Family::V4, Family::V6]);
    assert_eq!((listener.groups[0].0, listener.groups6[1].0), (1, 2));
}

#[test]
fn an_ipv4_endpoint_of_a_service_with_ipv6_targets_only_is_refused() {
    let text = error("{ name = \"four\" }, ", "");
    assert!(text.contains("endpoint[0].addresses[0] = \"10.0.0.10\""), "{text}");
    assert!(text.contains("all listeners of service \"vpce-svc-1\" lead to IPv6 targets"), "{text}");
}

#[test]
fn ipv6_addresses_that_no_endpoint_or_target_can_have_are_refused() {
    for (address, why) in [
        ("fe80::10", "a link-local address"),
        ("ff02::1", "a multicast address"),
        ("::1", "a loopback address"),
        ("::", "the unspecified address"),
        ("::ffff:10.0.0.1", "an IPv4-mapped address"),
        ("2001:db8:a::", "the routers' anycast address 2001:db8:a:: of 2001:db8:a::/64"),
    ] {
        let text = error("2001:db8:a::10", address);
        assert!(text.contains(why) && text.contains("endpoint[0].addresses[1]"), "{text}");
    }
    let text = error(
        "{ address = \"10.9.0.10\", port = 80 }",
        "{ address = \"10.9.0.10\", port = 80 }, { address = \"2001:db8:b::9\", port = 80 }",
    );
    assert!(text.contains("target_group[0].target[1].address") && text.contains("of one family"), "{text}");
    let text = error("fe80::1", "10.9.0.1");
    assert!(text.contains("route[0].via") && text.contains("both must be of one family"), "{text}");
}

//! From a declaration to a snapshot, and from one snapshot to the next.

use postern_tables::{Declaration, compile};

/// Two consumers with the same addresses, one provider with three targets.
const LAB: &str = r#"
[gateway]
name = "lab"

[[port]]
interface = "consumer-a"
mode = "own"

[[port]]
interface = "trunk"

[[vpc]]
id = "vpc-a"
[[vpc]]
id = "vpc-b"
[[vpc]]
id = "vpc-provider"

[[attachment]]
name = "a"
vpc = "vpc-a"
port = "consumer-a"
prefixes = ["10.0.0.0/24"]

[[attachment]]
name = "b"
vpc = "vpc-b"
port = "trunk"
vlan = 20
prefixes = ["10.0.0.0/24"]
return = "last_hop"

[[attachment]]
name = "provider"
vpc = "vpc-provider"
port = "trunk"
prefixes = ["192.168.0.0/24"]

[[route]]
attachment = "provider"
destination = "0.0.0.0/0"
via = "192.168.0.1"

[[snat_pool]]
name = "pool"
vpc = "vpc-provider"
addresses = ["192.168.0.250", "192.168.0.251"]

[[target_group]]
name = "web"
vpc = "vpc-provider"
snat_pool = "pool"
[[target_group.target]]
address = "192.168.0.12"
port = 8080
[[target_group.target]]
address = "192.168.0.11"
port = 8080
[[target_group.target]]
address = "172.16.0.13"
port = 8080

[[load_balancer]]
name = "balancer"
[[load_balancer.listener]]
protocol = "udp"
port = 53
target_groups = [{ name = "web" }]
[[load_balancer.listener]]
protocol = "tcp"
port = 80
mss = 1400
target_groups = [{ name = "web", weight = 10 }]

[[service]]
id = "vpce-svc-web"
load_balancers = ["balancer"]

[[endpoint]]
id = "vpce-0a"
vpc = "vpc-a"
service = "vpce-svc-web"
addresses = ["10.0.0.10"]

[[endpoint]]
id = "vpce-0b"
vpc = "vpc-b"
service = "vpce-svc-web"
addresses = ["10.0.0.10"]
"#;

#[test]
fn a_lab_compiles() {
    let checked = Declaration::from_toml(LAB, "lab.toml").unwrap().check().unwrap_or_else(|errors| panic!("{errors}"));
    let snapshot = compile(&checked, None);
    assert_eq!(snapshot.local.len(), 4);
}

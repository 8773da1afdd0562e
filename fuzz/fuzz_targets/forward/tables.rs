//! The tables that the gateway goes through, each made from the one before, as reloads do.

use std::sync::{Arc, LazyLock};

use postern_tables::{Declaration, Snapshot, compile};

/// Two consumers with the same addresses, the second behind a VLAN, and a provider, all with both families; IPv6 clients have
/// targets of both. The pool is so small that ports run out and workers borrow.
const BASE: &str = r#"
[[port]]
interface = "a"
[[port]]
interface = "b"
[[port]]
interface = "p"
[[vpc]]
id = "vpc-a"
[[vpc]]
id = "vpc-b"
[[vpc]]
id = "vpc-p"
[[attachment]]
name = "a"
vpc = "vpc-a"
port = "a"
prefixes = ["10.0.0.0/24", "2001:db8:1::/64"]
[[attachment]]
name = "b"
vpc = "vpc-b"
port = "b"
vlan = 5
prefixes = ["10.0.0.0/24", "2001:db8:1::/64"]
return = "last_hop"
[[attachment]]
name = "p"
vpc = "vpc-p"
port = "p"
prefixes = ["10.9.0.0/24", "2001:db8:9::/64"]
[[snat_pool]]
name = "pool"
vpc = "vpc-p"
addresses = ["10.9.0.200", "2001:db8:9::200"]
ports = "1024-1050"
rest_seconds = 5
[[target_group]]
name = "web6"
vpc = "vpc-p"
snat_pool = "pool"
[[target_group.target]]
address = "2001:db8:9::11"
port = 80
[[target_group]]
name = "web"
vpc = "vpc-p"
snat_pool = "pool"
[[target_group.target]]
address = "10.9.0.11"
port = 80
[[load_balancer]]
name = "lb"
[[load_balancer.listener]]
protocol = "tcp"
port = 80
target_groups = [{ name = "web" }, { name = "web6" }]
[[load_balancer.listener]]
protocol = "udp"
port = 80
idle_seconds = 10
target_groups = [{ name = "web" }, { name = "web6" }]
[[service]]
id = "vpce-svc-web"
load_balancers = ["lb"]
[[endpoint]]
id = "vpce-b"
vpc = "vpc-b"
service = "vpce-svc-web"
addresses = ["10.0.0.100", "2001:db8:1::100"]
mtu = 1400
"#;

const ENDPOINT_A: &str = r#"
[[endpoint]]
id = "vpce-a"
vpc = "vpc-a"
service = "vpce-svc-web"
addresses = ["10.0.0.100", "2001:db8:1::100"]
"#;

/// All tables, in the order in which they are applied.
pub(crate) static SNAPSHOTS: LazyLock<Vec<Arc<Snapshot>>> = LazyLock::new(|| {
    let whole = format!("{BASE}{ENDPOINT_A}");
    let texts = [
        whole.clone(),
        // An endpoint goes …
        BASE.to_owned(),
        // … and comes back.
        whole.clone(),
        // A second target, and no share for the first.
        whole.replace(
            "port = 80\n[[load",
            "port = 80\nweight = 0\n[[target_group.target]]\naddress = \"10.9.0.12\"\nport = 80\n[[load",
        ),
        // The listeners move, the pool loses its address, an MTU shrinks.
        whole.replace("udp\"\nport = 80", "udp\"\nport = 81"),
        whole.replace("[\"10.9.0.200\", \"2001:db8:9::200\"]", "[]"),
        whole.replace("port = \"p\"\n", "port = \"p\"\nmtu = 1280\n"),
        whole,
    ];
    let mut snapshots: Vec<Arc<Snapshot>> = Vec::new();
    for text in texts {
        let checked = Declaration::from_toml(&text, "fuzz.toml").and_then(Declaration::check);
        let checked = checked.unwrap_or_else(|errors| panic!("{errors}"));
        let snapshot = compile(&checked, snapshots.last().map(|last| &**last));
        snapshots.push(Arc::new(snapshot));
    }
    snapshots
});

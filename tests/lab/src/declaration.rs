//! What the operator of the lab's gateway would write: its configuration file.

use std::fmt::Write;
use std::path::Path;

use crate::network::{ENDPOINT, PORTS, Plan, SNAT, TARGETS, VLANS, Wiring};
use crate::server::{BULK_PORT, ECHO_PORT, PAGE_PORT};

/// Identifiers of the two consumer VPCs and the provider's.
pub const VPCS: [&str; 3] = ["vpc-a", "vpc-b", "vpc-p"];
/// Identifiers of the endpoints of the two consumers.
pub const ENDPOINTS: [&str; 2] = ["vpce-0000000000000000a", "vpce-0000000000000000b"];
/// Identifier of the service.
pub const SERVICE: &str = "vpce-svc-00000000000000001";

/// Writes the gateway's file; `directory` is its run directory.
#[must_use]
pub fn configuration(plan: &Plan, directory: &Path) -> String {
    let mut text = String::new();
    write_into(&mut text, plan, directory).expect("a String takes everything that is written");
    text
}

fn write_into(text: &mut String, plan: &Plan, directory: &Path) -> std::fmt::Result {
    let one_armed = plan.wiring == Wiring::OneArmed;
    let provider = if one_armed { VPCS[0] } else { VPCS[2] };
    writeln!(text, "[gateway]\nname = \"lab\"\nrun_directory = {:?}\n", directory.display().to_string())?;
    let Plan { workers, polling, flows, .. } = plan;
    writeln!(text, "[workers]\ncount = {workers}\npolling = \"{polling}\"\nflows = {flows}\n")?;

    let ports: &[&str] = match plan.wiring {
        Wiring::Ports => &PORTS,
        Wiring::Vlans => &[PORTS[0], PORTS[2]],
        Wiring::OneArmed => &[PORTS[2]],
    };
    for port in ports {
        writeln!(text, "[[port]]\ninterface = \"{port}\"\nmode = \"own\"\n")?;
    }
    for vpc in if one_armed { &VPCS[..1] } else { &VPCS[..] } {
        writeln!(text, "[[vpc]]\nid = \"{vpc}\"\n")?;
    }
    match plan.wiring {
        Wiring::OneArmed => attachment(text, VPCS[0], PORTS[2], None, r#""10.0.0.0/24", "10.9.0.0/24""#)?,
        Wiring::Ports | Wiring::Vlans => {
            for consumer in 0..2 {
                let vlan = (plan.wiring == Wiring::Vlans).then_some(VLANS[consumer]);
                let port = if vlan.is_some() { PORTS[0] } else { PORTS[consumer] };
                attachment(text, VPCS[consumer], port, vlan, r#""10.0.0.0/24""#)?;
            }
            attachment(text, VPCS[2], PORTS[2], None, r#""10.9.0.0/24""#)?;
        }
    }
    let addresses = SNAT.map(|address| format!("\"{address}\"")).join(", ");
    writeln!(text, "[[snat_pool]]\nname = \"pool\"\nvpc = \"{provider}\"\naddresses = [{addresses}]\n")?;

    let listeners = [("page", "tcp", PAGE_PORT), ("echo", "udp", ECHO_PORT), ("bulk", "tcp", BULK_PORT)];
    for (name, _, port) in listeners {
        writeln!(text, "[[target_group]]\nname = \"{name}\"\nvpc = \"{provider}\"\nsnat_pool = \"pool\"")?;
        for target in TARGETS {
            writeln!(text, "[[target_group.target]]\naddress = \"{target}\"\nport = {port}")?;
        }
        writeln!(text)?;
    }
    writeln!(text, "[[load_balancer]]\nname = \"balancer\"")?;
    for (name, protocol, port) in listeners {
        writeln!(text, "[[load_balancer.listener]]\nprotocol = \"{protocol}\"\nport = {port}")?;
        writeln!(text, "target_groups = [{{ name = \"{name}\" }}]")?;
    }
    writeln!(text, "\n[[service]]\nid = \"{SERVICE}\"\nload_balancers = [\"balancer\"]\n")?;
    for consumer in 0..if one_armed { 1 } else { 2 } {
        let (id, vpc) = (ENDPOINTS[consumer], VPCS[consumer]);
        writeln!(text, "[[endpoint]]\nid = \"{id}\"\nvpc = \"{vpc}\"")?;
        writeln!(text, "service = \"{SERVICE}\"\naddresses = [\"{ENDPOINT}\"]\n")?;
    }
    Ok(())
}

fn attachment(text: &mut String, vpc: &str, port: &str, vlan: Option<u16>, prefixes: &str) -> std::fmt::Result {
    writeln!(text, "[[attachment]]\nname = \"{vpc}\"\nvpc = \"{vpc}\"\nport = \"{port}\"\nprefixes = [{prefixes}]")?;
    match vlan {
        Some(vlan) => writeln!(text, "vlan = {vlan}\n"),
        None => writeln!(text),
    }
}

//! What the operator of the lab's gateway would write: its configuration file; and what the users of its control would.

use std::fmt::Write;
use std::path::Path;

use crate::control::{self, GATEWAY};
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

/// Writes the file of a gateway that control tells the rest.
#[must_use]
pub fn with_control(plan: &Plan, directory: &Path) -> String {
    let mut text = String::new();
    let write = |text: &mut String| {
        write_process(text, plan, directory)?;
        let (address, token) = (control::PUSH, control::token_file(directory, GATEWAY));
        writeln!(text, "[control]\naddress = \"http://{address}\"\ntoken_file = {:?}", token.display().to_string())?;
        writeln!(text, "state_directory = {:?}", directory.join("state").display().to_string())
    };
    write(&mut text).expect("a String takes everything that is written");
    text
}

/// Writes control's settings; its files are in `directory`.
#[must_use]
pub fn control_settings(directory: &Path) -> String {
    let data = directory.join("control").display().to_string();
    let api = control::api(directory);
    format!(
        "region = \"lab\"\ndata_directory = {data:?}\n\n[api]\nlisten = [{api:?}]\n\n[push]\nlisten = {:?}\n",
        control::PUSH
    )
}

/// Writes what the provider applies: pool, target groups with health checks if they are to be probed, load balancer and service.
#[must_use]
pub fn provider(probe_interval_seconds: Option<u64>) -> String {
    let mut text = String::new();
    let write = |text: &mut String| {
        let provider = VPCS[2];
        let addresses = SNAT.map(|address| format!("\"{address}\"")).join(", ");
        writeln!(text, "[[snat_pool]]\nname = \"pool\"\nvpc = \"{provider}\"\naddresses = [{addresses}]\n")?;
        for (name, _, port) in LISTENERS {
            writeln!(text, "[[target_group]]\nname = \"{name}\"\nvpc = \"{provider}\"\nsnat_pool = \"pool\"")?;
            if let Some(seconds) = probe_interval_seconds {
                writeln!(text, "[target_group.health_check]\nprotocol = \"tcp\"\nport = {PAGE_PORT}")?;
                writeln!(text, "interval_seconds = {seconds}\ntimeout_seconds = 2")?;
            }
            for target in TARGETS {
                writeln!(text, "[[target_group.targets]]\naddress = \"{target}\"\nport = {port}")?;
            }
            writeln!(text)?;
        }
        writeln!(text, "[[load_balancer]]\nname = \"balancer\"")?;
        for (name, protocol, port) in LISTENERS {
            writeln!(text, "[[load_balancer.listeners]]\nprotocol = \"{protocol}\"\nport = {port}")?;
            writeln!(text, "target_groups = [{{ target_group = \"{name}\" }}]")?;
        }
        let allowed = control::CONSUMERS.map(|consumer| format!("{consumer:?}")).join(", ");
        writeln!(text, "\n[[service]]\nname = \"service\"\nload_balancers = [\"balancer\"]")?;
        writeln!(text, "allowed_principals = [{allowed}]\nacceptance_required = true")
    };
    write(&mut text).expect("a String takes everything that is written");
    text
}

/// Name, protocol and port of each listener.
const LISTENERS: [(&str, &str, u16); 3] =
    [("page", "tcp", PAGE_PORT), ("echo", "udp", ECHO_PORT), ("bulk", "tcp", BULK_PORT)];

/// What belongs to the process, whoever declares the rest.
fn write_process(text: &mut String, plan: &Plan, directory: &Path) -> std::fmt::Result {
    let Plan { workers, polling, flows, io, .. } = plan;
    let directory = directory.display().to_string();
    writeln!(text, "[gateway]\nname = \"{GATEWAY}\"\nrun_directory = {directory:?}\nio = \"{io}\"\n")?;
    writeln!(text, "[workers]\ncount = {workers}\npolling = \"{polling}\"\nflows = {flows}\n")?;
    let ports: &[&str] = match plan.wiring {
        Wiring::Ports => &PORTS,
        Wiring::Vlans => &[PORTS[0], PORTS[2]],
        Wiring::OneArmed => &[PORTS[2]],
    };
    for port in ports {
        writeln!(text, "[[port]]\ninterface = \"{port}\"\nmode = \"own\"\n")?;
    }
    Ok(())
}

fn write_into(text: &mut String, plan: &Plan, directory: &Path) -> std::fmt::Result {
    let one_armed = plan.wiring == Wiring::OneArmed;
    let provider = if one_armed { VPCS[0] } else { VPCS[2] };
    write_process(text, plan, directory)?;
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

    for (name, _, port) in LISTENERS {
        writeln!(text, "[[target_group]]\nname = \"{name}\"\nvpc = \"{provider}\"\nsnat_pool = \"pool\"")?;
        for target in TARGETS {
            writeln!(text, "[[target_group.target]]\naddress = \"{target}\"\nport = {port}")?;
        }
        writeln!(text)?;
    }
    writeln!(text, "[[load_balancer]]\nname = \"balancer\"")?;
    for (name, protocol, port) in LISTENERS {
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

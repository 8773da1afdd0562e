//! What a gateway leaves behind: nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use postern_lab::offload::Offload;
use postern_lab::{Client, Servers, Topology, network};

use crate::bed::{Bed, eventually};
use crate::binary::binary;

/// What Postern switches on at its ports.
const SWITCHED: [Offload; 2] = [Offload::GenericReceive, Offload::UdpReceiveForwarding];
/// An address of the host's on a port.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Whether all, or none, of the ports have what Postern switches on.
fn switched(bed: &Bed) -> bool {
    let ports = network::PORTS.map(|port| bed.network().gateway.interface(port));
    let states: Vec<bool> =
        ports.iter().flat_map(|port| SWITCHED.map(|offload| port.offload(offload).unwrap())).collect();
    assert!(states.iter().all(|on| *on == states[0]), "half of it is on: {states:?}");
    states[0]
}

/// Whether the host gets the frames that are sent to it on a port of Postern's own.
fn host_hears(bed: &Bed) -> bool {
    let client = Client { deadline: Duration::from_millis(300) };
    bed.ask(0, |_| client.ask_udp(SocketAddrV4::new(HOST, network::echo().port()), 0, 1, 10).is_ok())
}

fn builder() -> postern_lab::topology::Builder {
    Topology::builder().prepare(|network| {
        let ports = network::PORTS.map(|port| network.gateway.interface(port));
        ports.iter().for_each(|port| port.set_offloads(&SWITCHED, false).unwrap());
        ports[0].add_address(IpAddr::V4(HOST), 24).unwrap();
    })
}

#[test]
fn a_gateway_that_is_stopped_gives_its_ports_back_as_they_were() {
    let Some(mut bed) = Bed::start(builder()) else { return };
    let _servers = Servers::start(&bed.network().gateway, "host").unwrap();
    assert!(switched(&bed));
    assert!(!host_hears(&bed));
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    bed.expect_counters(&[("drops.not_local", 0..=u64::MAX)]);
    let directory = bed.gateway().directory().to_owned();
    assert!(directory.join("ports.json").exists());

    let status = bed.gateway_mut().stop().unwrap();
    assert!(status.success(), "{status}");
    assert!(!switched(&bed));
    // The client's kernel asks for the host's MAC address once a second.
    eventually("the host is heard", Duration::from_secs(5), || host_hears(&bed));
    for file in ["ports.json", "control.sock"] {
        assert!(!directory.join(file).exists(), "{file} is left");
    }
}

#[test]
fn after_a_gateway_that_was_killed_the_ports_are_restored_by_hand_or_by_the_next_start() {
    let Some(mut bed) = Bed::start(builder()) else { return };
    let _servers = Servers::start(&bed.network().gateway, "host").unwrap();
    let configuration = bed.gateway().directory().join("gateway.toml");
    // While it runs nobody can take its ports away.
    let refused = restore(&bed, &configuration);
    assert!(!refused.0 && refused.1.contains("running"), "{}", refused.1);
    assert!(switched(&bed));

    bed.gateway_mut().process().kill().unwrap();
    assert!(switched(&bed), "nobody was there to switch it off");
    let (restored, log) = restore(&bed, &configuration);
    assert!(restored, "{log}");
    assert!(!switched(&bed));
    // The client's kernel asks for the host's MAC address once a second.
    eventually("the host is heard", Duration::from_secs(5), || host_hears(&bed));
    assert!(!bed.gateway().directory().join("ports.json").exists());

    bed.gateway_mut().restart().unwrap();
    bed.gateway_mut().process().kill().unwrap();
    // The next start does it too, or it would take what it finds for what was there before.
    bed.gateway_mut().restart().unwrap();
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    bed.expect_counters(&[]);
    assert!(bed.gateway_mut().stop().unwrap().success());
    assert!(!switched(&bed));
}

/// `postern dataplane restore` in the gateway's namespace: whether it went well, and what it said.
fn restore(bed: &Bed, configuration: &Path) -> (bool, String) {
    let restore = || {
        let mut command = Command::new(binary());
        command.args(["dataplane", "restore", "--config"]).arg(configuration).output().unwrap()
    };
    let output = bed.network().gateway.run(restore).unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

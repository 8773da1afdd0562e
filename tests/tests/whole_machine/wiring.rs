//! One port for all, VLANs on a trunk, and tenants that share a wire.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use postern_lab::network::{self, ENDPOINT, SNAT, TARGETS};
use postern_lab::topology::Builder;
use postern_lab::{Client, Network, Offloads, Topology, VethEnd, Way, Wiring};
use postern_tables::declaration::{Declaration, Mode, Port};
use postern_wire::MacAddress;

use crate::bed::{Bed, run};
use crate::frames::{Sender, VlanSwitch};

const REQUESTS: u16 = 32;
const BULK: u64 = 8 << 20;

impl Bed {
    /// Requests over both protocols and transfers both ways from both consumers at once.
    pub(crate) fn use_everything(&self) {
        thread::scope(|scope| {
            for consumer in 0..2 {
                scope.spawn(move || {
                    self.ask(consumer, |client| {
                        let mut targets = BTreeSet::new();
                        for port in 20_000..20_000 + REQUESTS {
                            targets.insert(client.ask_tcp(network::page(), port).unwrap().answer.target);
                            client.ask_udp(network::echo(), port, 3, 700).unwrap();
                        }
                        assert_eq!(targets.len(), 3);
                        client.bulk(network::bulk(), Way::Upload, 4, BULK).unwrap();
                        client.bulk(network::bulk(), Way::Download, 5, BULK).unwrap();
                    });
                });
            }
        });
    }
}

#[test]
fn consumers_and_targets_may_be_behind_one_port() {
    for (workers, offloads) in [(1, Offloads::On), (2, Offloads::Off), (3, Offloads::On)] {
        let builder = Topology::builder().wiring(Wiring::OneArmed).workers(workers).offloads(offloads);
        let Some(bed) = Bed::start(builder) else { return };
        bed.use_everything();
        let report = bed.expect_counters(&[]);
        assert_eq!(report.ports.len(), 1);
        assert_eq!(report.total.frames.flows_new, 2 * (2 * u64::from(REQUESTS) + 2));
    }
}

/// Moves the clients' wires, and the provider's if so wanted, to the namespace of a switch, which has one wire to the gateway.
fn to_switch(network: &Network, provider_too: bool) {
    for (client, port) in network.clients.iter().zip(["a", "b"]) {
        client.interface().delete().unwrap();
        VethEnd::new(client.namespace(), "eth0").pair(&VethEnd::new(&network.consumers, port)).unwrap();
        client.interface().add_address(IpAddr::V4(client.address()), 24).unwrap();
    }
    if provider_too {
        network.gateway.interface("vpc-p").delete().unwrap();
        let end = VethEnd::new(&network.provider, "gateway");
        let (end, _) = end.pair(&VethEnd::new(&network.consumers, "p")).unwrap();
        end.attach_to(&network.provider.interface("switch")).unwrap();
    }
    let end = VethEnd::new(&network.gateway, "trunk").mac(MacAddress([2, 0, 0, 0, 0x77, 1]));
    end.pair(&VethEnd::new(&network.consumers, "trunk")).unwrap();
}

/// The clients on VLANs 101 and 102 (the first one untagged if `native`) of the port "trunk"; the provider there too,
/// untagged, if it has no port of its own.
fn on_trunk(declaration: &mut Declaration, native: bool, provider_too: bool, mode: Mode) {
    let vlans = [(!native).then_some(101), Some(102)];
    declaration.ports.retain(|port| port.interface == "vpc-p" && !provider_too);
    declaration.ports.push(Port { interface: "trunk".into(), mode, ..Port::default() });
    for (attachment, vlan) in declaration.attachments.iter_mut().zip(vlans) {
        "trunk".clone_into(&mut attachment.port);
        attachment.vlan = vlan;
    }
    if provider_too {
        "trunk".clone_into(&mut declaration.attachments[2].port);
    }
}

pub(crate) fn trunk(builder: Builder, native: bool, provider_too: bool, mode: Mode) -> Option<(VlanSwitch, Bed)> {
    let bed = Bed::start_with(builder.prepare(move |network| to_switch(network, provider_too)), move |declaration| {
        on_trunk(declaration, native, provider_too, mode);
    })?;
    let mut access = vec![("a", (!native).then_some(101)), ("b", Some(102))];
    if provider_too {
        access.push(("p", None));
    }
    Some((VlanSwitch::start(&bed.network().consumers, &access, "trunk"), bed))
}

#[test]
fn two_consumers_with_the_same_addresses_share_a_trunk() {
    for (workers, native) in [(1, false), (2, false), (2, true)] {
        let Some((switch, bed)) = trunk(Topology::builder().workers(workers), native, false, Mode::Own) else { return };
        bed.use_everything();
        assert_eq!(switch.strays(), 0);
        bed.expect_counters(&[]);
    }
}

#[test]
fn one_port_carries_consumers_on_vlans_and_the_provider_untagged_also_shared_with_the_host() {
    for mode in [Mode::Own, Mode::Shared] {
        let Some((switch, bed)) = trunk(Topology::builder().workers(2), false, true, mode) else { return };
        bed.use_everything();
        assert_eq!(switch.strays(), 0);
        bed.expect_counters(&[]);
    }
}

#[test]
fn a_vlan_of_nobody_and_an_address_of_another_vpc_lead_nowhere() {
    let Some((switch, bed)) = trunk(Topology::builder(), false, false, Mode::Own) else { return };
    bed.ask(0, |client| drop(client.ask_udp(network::echo(), 0, 1, 10).unwrap()));
    // The same frame as of the first consumer in its VLAN, in a VLAN that nobody has, and untagged.
    let mut sender = Sender::new(&bed.network().consumers, "trunk");
    for tag in [&[0x81, 0, 0, 103][..], &[]] {
        let ethernet = [&[2, 0, 0, 0, 0x77, 1][..], &[2, 0, 0, 0, 0, 9], tag, &[8, 0]].concat();
        sender.send(&[&ethernet[..], &datagram(network::CLIENT, ENDPOINT, 7)].concat());
    }
    assert_eq!(switch.strays(), 0);
    bed.expect_counters(&[("drops.no_attachment", 2..=2)]);
}

#[test]
fn nothing_leaks_between_vpcs_on_ports_of_their_own() {
    let visitor = Ipv4Addr::new(10, 0, 0, 101);
    let start = Bed::start_with(Topology::builder(), move |declaration| {
        declaration.endpoints[0].addresses.push(visitor.to_string());
    });
    let Some(bed) = start else { return };
    let sent = |bed: &Bed| {
        let interfaces = bed.network().gateway.interfaces().unwrap();
        interfaces.into_iter().map(|(_, statistics)| statistics.transmit_packets).sum::<u64>()
    };
    // Announcements of the start are over after two seconds.
    thread::sleep(Duration::from_millis(2300));
    let before = sent(&bed);
    let frames = [
        // The second consumer to an address of the first, to the provider's network, to a target itself.
        ("eth0", bed.client(1), [2, 0, 0, 0, 0x0b, 1], datagram(network::CLIENT, visitor, 7)),
        ("eth0", bed.client(1), [2, 0, 0, 0, 0x0b, 1], datagram(network::CLIENT, SNAT[0], 7)),
        ("eth0", bed.client(1), [2, 0, 0, 0, 0x0b, 1], datagram(network::CLIENT, TARGETS[0], 7)),
        // The provider to an endpoint and to a client.
        ("eth0", bed.targets()[0].node(), [2, 0, 0, 0, 0x90, 1], datagram(TARGETS[0], ENDPOINT, 7)),
        ("eth0", bed.targets()[0].node(), [2, 0, 0, 0, 0x90, 1], datagram(TARGETS[0], network::CLIENT, 7)),
    ];
    for (interface, node, to, packet) in &frames {
        let ethernet = [&to[..], &[2, 0, 0, 0, 0, 9], &[8, 0]].concat();
        Sender::new(node.namespace(), interface).send(&[&ethernet[..], packet].concat());
    }
    // Nor does ARP answer for another VPC's address.
    run(bed.client(1), || {
        let client = Client { deadline: Duration::from_millis(200) };
        client.ask_udp(std::net::SocketAddrV4::new(visitor, 7), 0, 1, 1).unwrap_err();
    });
    let report = bed.expect_counters(&[("drops.not_local", 5..=5)]);
    assert_eq!((report.total.frames.flows_new, report.neighbours.answered), (0, 0));
    assert_eq!(sent(&bed), before, "something came out");
}

/// A UDP datagram with right checksums, as an IPv4 packet.
pub(crate) fn datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    use postern_wire::checksum::checksum;
    let payload = b"leak?";
    let length = 8 + payload.len() as u16;
    let mut udp =
        [&40_000_u16.to_be_bytes()[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 17], &length.to_be_bytes(), &udp].concat();
    let sum = checksum(&pseudo, 0);
    udp[6..8].copy_from_slice(&sum.to_le_bytes());
    let total = 20 + length;
    let mut ip =
        [&[0x45, 0][..], &total.to_be_bytes(), &[0, 1, 0x40, 0, 64, 17, 0, 0], &from.octets(), &to.octets()].concat();
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_le_bytes());
    ip.extend(udp);
    ip
}

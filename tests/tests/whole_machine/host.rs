//! Each frame is taken once: by Postern or by the host.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::thread;

use postern_lab::network::{self, ENDPOINT, SNAT, TARGETS};
use postern_lab::server::{BULK_PORT, ECHO_PORT, PAGE_PORT};
use postern_lab::{Client, Servers, Topology, Way};
use postern_tables::declaration::Mode;

use crate::bed::{Bed, run};

/// Addresses of the gateway's host in the first consumer's network and in the provider's.
const HOST: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 9, 0, 1)];

impl Bed {
    fn host_address(&self, port: &str, address: Ipv4Addr, length: u8) {
        self.network().gateway.interface(port).add_address(IpAddr::V4(address), length).unwrap();
    }

    /// What the host's own stack has done so far.
    fn host_counter(&self, name: &str) -> i64 {
        self.network().gateway.statistics().unwrap().counter(name)
    }
}

#[test]
fn a_host_that_forwards_and_holds_the_addresses_itself_sees_nothing_of_postern_s_own_ports() {
    let Some(bed) = Bed::start(Topology::builder().workers(2).prepare(|network| {
        network.gateway.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    })) else {
        return;
    };
    bed.host_address("vpc-a", HOST[0], 24);
    bed.host_address("vpc-p", HOST[1], 24);
    // Even the very addresses that Postern answers for.
    bed.host_address("vpc-a", ENDPOINT, 32);
    for snat in SNAT {
        bed.host_address("vpc-p", snat, 32);
    }
    for consumer in 0..2 {
        bed.ask(consumer, |client| {
            for _ in 0..32 {
                client.ask_tcp(network::page(), 0).unwrap();
                client.ask_udp(network::echo(), 0, 1, 500).unwrap();
            }
            client.bulk(network::bulk(), Way::Upload, 1, 8 << 20).unwrap();
            client.bulk(network::bulk(), Way::Download, 2, 8 << 20).unwrap();
        });
    }
    for name in ["Ip.InReceives", "Ip.ForwDatagrams", "Tcp.OutRsts", "Tcp.InSegs", "Udp.NoPorts", "Icmp.OutMsgs"] {
        assert_eq!(bed.host_counter(name), 0, "the host counts {name}");
    }
    let report = bed.expect_counters(&[]);
    // On the wires is what Postern counts, and not one frame more.
    let interfaces = bed.network().gateway.interfaces().unwrap();
    let wire: u64 = interfaces.iter().map(|(_, statistics)| statistics.transmit_packets).sum();
    let sent: u64 = report.ports.iter().map(|port| port.sent.accepted).sum();
    let arp = report.neighbours.answered + report.neighbours.asked + report.neighbours.announced;
    assert_eq!(wire, sent + arp);
}

#[test]
fn on_shared_ports_the_host_s_own_connections_and_the_endpoints_go_on_side_by_side() {
    for workers in [1, 2] {
        let start = Bed::start_with(Topology::builder().workers(workers), |declaration| {
            declaration.ports.iter_mut().for_each(|port| port.mode = Mode::Shared);
        });
        let Some(bed) = start else { return };
        bed.host_address("vpc-a", HOST[0], 24);
        bed.host_address("vpc-p", HOST[1], 24);
        let _servers = Servers::start(&bed.network().gateway, "host").unwrap();
        thread::scope(|scope| {
            // The client to the host itself, as by ssh, and to the endpoint; the host to a target.
            scope.spawn(|| {
                run(bed.client(0), || {
                    let client = Client::default();
                    for _ in 0..32 {
                        let reply = client.ask_tcp(SocketAddrV4::new(HOST[0], PAGE_PORT), 0).unwrap();
                        assert_eq!((reply.answer.target.as_str(), reply.answer.seen), ("host", reply.local));
                        client.ask_udp(SocketAddrV4::new(HOST[0], ECHO_PORT), 0, 1, 900).unwrap();
                    }
                    client.bulk(SocketAddrV4::new(HOST[0], BULK_PORT), Way::Upload, 1, 16 << 20).unwrap();
                    client.bulk(SocketAddrV4::new(HOST[0], BULK_PORT), Way::Download, 2, 16 << 20).unwrap();
                });
            });
            scope.spawn(|| {
                let gateway = &bed.network().gateway;
                gateway
                    .run(|| {
                        let client = Client::default();
                        for target in TARGETS {
                            let reply = client.ask_tcp(SocketAddrV4::new(target, PAGE_PORT), 0).unwrap();
                            assert_eq!(reply.answer.seen.ip(), IpAddr::V4(HOST[1]));
                            client.bulk(SocketAddrV4::new(target, BULK_PORT), Way::Download, 3, 8 << 20).unwrap();
                        }
                    })
                    .unwrap();
            });
            for consumer in 0..2 {
                let bed = &bed;
                scope.spawn(move || {
                    bed.ask(consumer, |client| {
                        for _ in 0..32 {
                            let reply = client.ask_tcp(network::page(), 0).unwrap();
                            assert!(reply.answer.target.starts_with("target-"));
                        }
                        client.bulk(network::bulk(), Way::Upload, 4, 8 << 20).unwrap();
                        client.bulk(network::bulk(), Way::Download, 5, 8 << 20).unwrap();
                    });
                });
            }
        });
        assert_eq!(bed.host_counter("Tcp.OutRsts"), 0, "the host reset what was not its own");
        assert_eq!(bed.host_counter("Ip.ForwDatagrams"), 0);
        assert_eq!(bed.host_counter("Tcp.InCsumErrors"), 0);
        // The host's frames are not in the rings at all.
        bed.expect_counters(&[]);
    }
}

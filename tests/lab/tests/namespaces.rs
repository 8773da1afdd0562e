//! Namespaces, interfaces and processes do what they say and leave nothing behind.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use postern_lab::{Interface, InterfaceError, Namespace, Offload, VethEnd};
use postern_wire::MacAddress;

const LEFT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Two namespaces, or `None` with a printed reason where the machine does not let us make them.
fn namespaces() -> Option<(Namespace, Namespace)> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return None;
    }
    Some((Namespace::anonymous("left").unwrap(), Namespace::anonymous("right").unwrap()))
}

fn joined() -> Option<(Interface, Interface)> {
    let (left, right) = namespaces()?;
    let ends = VethEnd::new(&left, "eth0").pair(&VethEnd::new(&right, "eth0")).unwrap();
    ends.0.add_address(IpAddr::V4(LEFT), 24).unwrap();
    ends.1.add_address(IpAddr::V4(RIGHT), 24).unwrap();
    Some(ends)
}

fn exchange(left: &Namespace, right: &Namespace, address: Ipv4Addr) {
    let listener = right.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        scope.spawn(|| listener.accept().unwrap().0.write_all(b"hello").unwrap());
        let mut stream = left.run(|| TcpStream::connect((address, port))).unwrap().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
    });
}

#[test]
fn a_veth_pair_joins_two_namespaces_and_carries_tcp() {
    let Some((left, right)) = joined() else { return };
    exchange(left.namespace(), right.namespace(), RIGHT);
    assert!(left.statistics().unwrap().transmit_packets > 0);
    assert!(right.statistics().unwrap().receive_packets > 0);
    assert_eq!(right.namespace().statistics().unwrap().checksum_errors(), 0);
    assert_eq!(right.namespace().statistics().unwrap().counter("Tcp.PassiveOpens"), 1);
}

#[test]
fn loopback_is_up_in_a_new_namespace() {
    let Some((left, _)) = namespaces() else { return };
    exchange(&left, &left, Ipv4Addr::LOCALHOST);
}

#[test]
fn a_namespace_sees_nothing_of_another() {
    let Some((left, right)) = joined() else { return };
    let stranger = Namespace::anonymous("stranger").unwrap();
    assert!(!stranger.interface("eth0").exists().unwrap());
    assert!(left.exists().unwrap() && right.exists().unwrap());
    let bound = stranger.run(|| UdpSocket::bind((LEFT, 0))).unwrap();
    assert!(bound.is_err(), "an address of another namespace could be bound");
}

#[test]
fn deleting_one_end_of_a_pair_deletes_the_other_and_it_can_be_made_again() {
    let Some((left, right)) = joined() else { return };
    left.delete().unwrap();
    assert!(!left.exists().unwrap());
    assert!(!right.exists().unwrap());
    VethEnd::new(left.namespace(), "eth0").pair(&VethEnd::new(right.namespace(), "eth0")).unwrap();
    assert!(left.exists().unwrap() && right.exists().unwrap());
}

#[test]
fn names_macs_and_mtus_are_as_asked() {
    let Some((left, right)) = namespaces() else { return };
    let mac = MacAddress([2, 0, 0, 0, 0, 7]);
    let (a, b) = VethEnd::new(&left, "one").mac(mac).mtu(9000).pair(&VethEnd::new(&right, "other")).unwrap();
    assert_eq!(a.mac().unwrap(), mac);
    assert_eq!((a.name(), b.name()), ("one", "other"));
    let mtu = |end: &Interface| {
        let path = format!("/proc/sys/net/ipv6/conf/{}/mtu", end.name());
        end.namespace().run(|| std::fs::read_to_string(path)).unwrap().unwrap().trim().to_owned()
    };
    assert_eq!((mtu(&a), mtu(&b)), ("9000".to_owned(), "1500".to_owned()));
    let changed = MacAddress([2, 0, 0, 0, 0, 8]);
    a.set_mac(changed).unwrap();
    assert_eq!(a.mac().unwrap(), changed);
}

#[test]
fn a_vlan_carries_tagged_traffic() {
    let Some((left, right)) = namespaces() else { return };
    let (a, b) = VethEnd::new(&left, "eth0").pair(&VethEnd::new(&right, "eth0")).unwrap();
    for (end, address) in [(a, LEFT), (b, RIGHT)] {
        match end.add_vlan(100) {
            Ok(vlan) => vlan.add_address(IpAddr::V4(address), 24).unwrap(),
            Err(error @ InterfaceError::NoVlans { .. }) => {
                println!("skipped: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        }
    }
    exchange(&left, &right, RIGHT);
}

#[test]
fn bridges_routes_and_neighbours_carry_traffic() {
    let Some((left, right)) = namespaces() else { return };
    let switch = Namespace::anonymous("switch").unwrap();
    let bridge = Interface::bridge(&switch, "bridge", 1500).unwrap();
    for (namespace, port, address) in [(&left, "left", LEFT), (&right, "right", RIGHT)] {
        let (end, attached) = VethEnd::new(namespace, "eth0").pair(&VethEnd::new(&switch, port)).unwrap();
        attached.attach_to(&bridge).unwrap();
        end.add_address(IpAddr::V4(address), 24).unwrap();
    }
    exchange(&left, &right, RIGHT);
    let remote = Ipv4Addr::new(192, 0, 2, 1);
    right.interface("lo").add_address(IpAddr::V4(remote), 32).unwrap();
    left.add_route(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), 24, IpAddr::V4(RIGHT)).unwrap();
    exchange(&left, &right, remote);
    // A neighbour that nobody is: nothing arrives any more.
    let nobody = MacAddress([2, 0, 0, 0, 0, 99]);
    left.interface("eth0").add_neighbour(IpAddr::V4(RIGHT), nobody).unwrap();
    let before = right.statistics().unwrap().counter("Udp.NoPorts");
    left.run(|| UdpSocket::bind((LEFT, 0)).unwrap().send_to(b"?", (RIGHT, 9)).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(right.statistics().unwrap().counter("Udp.NoPorts"), before);
}

#[test]
fn a_link_that_is_down_carries_nothing_until_it_is_up_again() {
    let Some((left, right)) = joined() else { return };
    left.down().unwrap();
    let sent = left.namespace().run(|| UdpSocket::bind((LEFT, 0)).unwrap().send_to(b"?", (RIGHT, 9))).unwrap();
    assert!(sent.is_err());
    left.up().unwrap();
    exchange(left.namespace(), right.namespace(), RIGHT);
}

#[test]
fn offloads_can_be_switched_off_and_on_and_traffic_goes_on() {
    let Some((left, right)) = joined() else { return };
    let both = [Offload::TransmitChecksum, Offload::TcpSegmentation];
    assert!(left.offload(Offload::TransmitChecksum).unwrap());
    left.set_offloads(&both, false).unwrap();
    assert!(!left.offload(Offload::TransmitChecksum).unwrap());
    assert!(!left.offload(Offload::TcpSegmentation).unwrap());
    assert!(right.offload(Offload::TransmitChecksum).unwrap(), "the other end is not touched");
    exchange(left.namespace(), right.namespace(), RIGHT);
    left.set_offloads(&both, true).unwrap();
    assert!(left.offload(Offload::TcpSegmentation).unwrap());
    left.set_offloads(&[Offload::GenericReceive], true).unwrap();
    assert!(left.offload(Offload::GenericReceive).unwrap());
}

#[test]
fn kernel_settings_belong_to_the_namespace() {
    let Some((left, right)) = joined() else { return };
    left.namespace().set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    assert_eq!(left.namespace().sysctl("net.ipv4.ip_forward").unwrap(), "1");
    assert_eq!(right.namespace().sysctl("net.ipv4.ip_forward").unwrap(), "0");
    left.disable_ipv6().unwrap();
    assert_eq!(left.namespace().sysctl("net.ipv6.conf.eth0.disable_ipv6").unwrap(), "1");
}

#[test]
fn a_process_runs_in_its_namespace_and_ends_when_it_is_dropped() {
    let Some((left, right)) = joined() else { return };
    let mut command = Command::new("sh");
    command.args(["-c", "readlink /proc/self/ns/net; sleep 60"]).stdout(std::process::Stdio::piped());
    let mut process = left.namespace().spawn(command).unwrap();
    let mut output = process.take_stdout().unwrap();
    let mut seen = [0; 64];
    let length = output.read(&mut seen).unwrap();
    let of = |namespace: &Namespace| namespace.run(|| std::fs::read_link("/proc/thread-self/ns/net")).unwrap().unwrap();
    let seen = String::from_utf8_lossy(&seen[..length]);
    assert_eq!(seen.trim(), of(left.namespace()).to_string_lossy());
    assert_ne!(seen.trim(), of(right.namespace()).to_string_lossy());
    let pid = process.pid();
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_process_that_ignores_the_request_to_end_is_killed_at_the_deadline() {
    let Some((left, _)) = namespaces() else { return };
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' TERM; echo; while :; do sleep 1; done"]).stdout(std::process::Stdio::piped());
    let mut process = left.spawn(command).unwrap();
    process.take_stdout().unwrap().read_exact(&mut [0]).unwrap();
    let status = process.terminate(Duration::from_millis(50)).unwrap();
    assert_eq!(postern_lab::process::describe(status), "signal 9 (SIGKILL)");
}

#[test]
fn a_named_namespace_is_found_by_name_until_it_is_removed() {
    if namespaces().is_none() {
        return;
    }
    let name = format!("postern-test-{}", std::process::id());
    let made = Namespace::named(&name).unwrap();
    let again = Namespace::named(&name).unwrap_err().to_string();
    let found = Namespace::open(&name).unwrap();
    made.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    let seen = found.sysctl("net.ipv4.ip_forward");
    Namespace::remove(&name).unwrap();
    assert_eq!(seen.unwrap(), "1");
    assert!(again.contains("exists already"), "{again}");
    assert!(Namespace::open(&name).is_err());
}

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use postern_tables::{Declaration, compile};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Loopback, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::*;
use TargetHealth::{Draining, Healthy, Initial, Unavailable, Unhealthy, UnhealthyDraining, Unused};

/// What a target does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Behaviour {
    /// Answers each request with this status.
    Status(u16),
    /// Accepts, and says nothing.
    Mute,
    /// Refuses connections.
    Closed,
    /// Nobody is there.
    Gone,
}

/// What flows may do with a target; one of its variants has its name.
type Allowed = postern_tables::Usable;

/// A host with a server, in a network stack of its own. Its loopback device carries what it is given and what it sends.
struct Host {
    behaviour: Behaviour,
    device: Loopback,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

impl Host {
    fn new(address: Ipv4Addr, behaviour: Behaviour) -> Self {
        let mut device = Loopback::new(Medium::Ip);
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(IpAddress::Ipv4(address), 32)).unwrap());
        interface.routes_mut().add_default_ipv4_route(address).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || SocketBuffer::new(vec![0; 2048]);
        let socket = sockets.add(Socket::new(buffer(), buffer()));
        Self { behaviour, device, interface, sockets, socket }
    }

    /// What it sends when a packet arrives.
    fn receive(&mut self, packet: &[u8], port: u16, now: Now) -> Vec<Vec<u8>> {
        use smoltcp::phy::{Device, RxToken, TxToken};
        if self.behaviour == Gone {
            return Vec::new();
        }
        let now = Instant::from_millis(now.milliseconds() as i64);
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        if self.behaviour == Closed {
            socket.abort();
        } else if !socket.is_open() || socket.state() == State::TimeWait {
            socket.abort();
            socket.listen(port).unwrap();
        }
        self.device.transmit(now).unwrap().consume(packet.len(), |room| room.copy_from_slice(packet));
        self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets);
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        let mut request = Vec::new();
        while socket.can_recv() {
            let take = |bytes: &mut [u8]| {
                request.extend_from_slice(bytes);
                (bytes.len(), ())
            };
            socket.recv(take).unwrap();
        }
        if let Status(status) = self.behaviour
            && request.ends_with(b"\r\n\r\n")
        {
            socket.send_slice(format!("HTTP/1.1 {status} As you like\r\n\r\nbody").as_bytes()).unwrap();
            socket.close();
        }
        if socket.state() == State::CloseWait {
            socket.close();
        }
        self.interface.poll_egress(now, &mut self.device, &mut self.sockets);
        let mut sent = Vec::new();
        while let Some((packet, _)) = self.device.receive(now) {
            sent.push(packet.consume(<[u8]>::to_vec));
        }
        sent
    }
}

/// A prober, targets, and a time that passes only when it is told to.
struct Bed {
    prober: Prober,
    hosts: HashMap<(VpcIndex, SocketAddr), Host>,
    output: Output,
    now: Now,
    snapshot: Arc<Snapshot>,
    /// What flows may do with targets, by last byte of the address and group.
    usages: HashMap<(String, u8), Allowed>,
    views: HashMap<(String, u8), TargetView>,
    /// Largest number of packets in flight at one moment, and local ends seen.
    locals: HashSet<SocketAddr>,
}

const CHECK: &str =
    r#"{ protocol = "http", matcher = "200", interval_seconds = 5, timeout_seconds = 2, healthy_threshold = 3 }"#;

/// Tables of one VPC with a group `web` of targets 10.9.0.`last`:80.
fn tables(check: &str, more: &str, lasts: &[u8]) -> String {
    let mut text = format!(
        r#"
        [[port]]
        interface = "eth1"
        [[vpc]]
        id = "vpc-p"
        [[attachment]]
        name = "p"
        vpc = "vpc-p"
        port = "eth1"
        prefixes = ["10.9.0.0/24"]
        [[snat_pool]]
        name = "pool"
        vpc = "vpc-p"
        addresses = ["10.9.0.5"]
        [[load_balancer]]
        name = "lb"
        listener = [{{ port = 80, target_groups = [{{ name = "web" }}] }}]
        [[target_group]]
        name = "web"
        vpc = "vpc-p"
        snat_pool = "pool"
        {more}
        "#
    );
    if !check.is_empty() {
        writeln!(text, "health_check = {check}").unwrap();
    }
    for last in lasts {
        write!(text, "[[target_group.target]]\naddress = \"10.9.0.{last}\"\nport = 80\n").unwrap();
    }
    text
}

impl Bed {
    fn new(text: &str) -> Self {
        let mut bed = Self {
            prober: Prober::new(Tls::new().unwrap(), 7),
            hosts: HashMap::new(),
            output: Output::default(),
            now: Now::from_milliseconds(1000),
            snapshot: Arc::default(),
            usages: HashMap::new(),
            views: HashMap::new(),
            locals: HashSet::new(),
        };
        bed.declare(text);
        bed
    }

    fn declare(&mut self, text: &str) {
        let checked = Declaration::from_toml(text, "test.toml").and_then(Declaration::check).unwrap();
        self.snapshot = Arc::new(compile(&checked, Some(&self.snapshot)));
        self.prober.apply(&self.snapshot, self.now, &mut self.output);
        self.settle();
    }

    fn host(&mut self, last: u8, behaviour: Behaviour) {
        self.host_in("vpc-p", last, behaviour);
    }

    fn host_in(&mut self, vpc: &str, last: u8, behaviour: Behaviour) {
        let at = self.snapshot.vpcs.iter().position(|known| *known.id == *vpc).unwrap();
        let address = Ipv4Addr::new(10, 9, 0, last);
        let key = (VpcIndex(at as u32), SocketAddr::new(address.into(), 80));
        self.hosts.entry(key).or_insert_with(|| Host::new(address, behaviour)).behaviour = behaviour;
    }

    /// Lets time pass.
    fn pass(&mut self, milliseconds: u64) {
        let end = self.now.plus_milliseconds(milliseconds);
        while let Some(due) = self.prober.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.prober.pass(self.now, &mut self.output);
            self.settle();
        }
        self.now = end;
    }

    /// Carries packets to and fro until none is left, and notes what was said.
    fn settle(&mut self) {
        while !self.output.packets.is_empty() {
            for (vpc, packet) in std::mem::take(&mut self.output.packets) {
                // Read as from the target, so that the ends are exchanged.
                let ConnectionKey { local: target, target: local, .. } = connection_of(vpc, &packet).unwrap();
                self.locals.insert(local);
                let Some(host) = self.hosts.get_mut(&(vpc, target)) else { continue };
                for answer in host.receive(&packet, target.port(), self.now) {
                    self.prober.receive(vpc, &answer, self.now, &mut self.output);
                }
            }
        }
        for (key, usage) in self.output.usages.drain(..) {
            self.usages.insert((key.group.to_string(), last(key.address)), usage);
        }
        for (key, view) in self.output.views.drain(..) {
            let name = (key.group.to_string(), last(key.address));
            match view {
                Some(view) => drop(self.views.insert(name, view)),
                None => drop(self.views.remove(&name)),
            }
        }
    }

    fn states(&self, lasts: &[u8]) -> Vec<TargetHealth> {
        lasts.iter().map(|last| self.views[&("web".to_owned(), *last)].state).collect()
    }

    fn usages(&self, lasts: &[u8]) -> Vec<Allowed> {
        lasts.iter().map(|last| self.usages[&("web".to_owned(), *last)]).collect()
    }

    fn reason(&self, last: u8) -> &str {
        &self.views[&("web".to_owned(), last)].reason
    }
}

fn last(address: IpAddr) -> u8 {
    let IpAddr::V4(address) = address else { panic!("{address}") };
    address.octets()[3]
}

use Behaviour::{Closed, Gone, Mute, Status};
use postern_tables::Usable::{CutFlows, NoNewFlows, Usable};

#[test]
fn targets_are_told_apart_by_what_they_answer_and_the_reason_is_given() {
    let lasts = [11, 12, 13, 14, 15];
    let mut bed = Bed::new(&tables(CHECK, "", &lasts));
    for (last, behaviour) in lasts.iter().zip([Status(200), Status(503), Mute, Closed, Gone]) {
        bed.host(*last, behaviour);
    }
    assert_eq!(bed.states(&lasts), [Initial; 5]);
    // Nothing is known yet: all are used.
    assert_eq!(bed.usages(&lasts), [Usable; 5]);
    bed.pass(1000);
    assert_eq!(bed.states(&lasts), [Healthy, Initial, Initial, Initial, Initial]);
    assert_eq!(bed.usages(&lasts), [Usable, NoNewFlows, NoNewFlows, NoNewFlows, NoNewFlows]);
    bed.pass(12_000);
    assert_eq!(bed.states(&lasts), [Healthy, Unhealthy, Unhealthy, Unhealthy, Unhealthy]);
    assert_eq!(bed.usages(&lasts), [Usable, CutFlows, CutFlows, CutFlows, CutFlows]);
    let reasons = [11, 12, 13, 14, 15].map(|last| bed.reason(last).to_owned());
    let late = "no answer within 2 seconds";
    assert_eq!(reasons, ["", "HTTP status 503", late, "the connection was refused or reset", late]);
    let groups = bed.prober.groups();
    assert_eq!((groups.len(), groups[0].healthy, groups[0].unhealthy, groups[0].fails_open), (1, 1, 4, false));
}

#[test]
fn a_target_that_dies_gets_no_new_flows_within_twelve_seconds_and_comes_back_after_its_passes() {
    for check in [CHECK, r#"{ interval_seconds = 5, timeout_seconds = 2, healthy_threshold = 3 }"#] {
        for death in [Gone, Closed] {
            let mut bed = Bed::new(&tables(check, "", &[11, 12]));
            bed.host(11, Status(200));
            bed.host(12, Status(200));
            bed.pass(60_000);
            assert_eq!(bed.usages(&[11, 12]), [Usable, Usable], "{check}");
            bed.host(12, death);
            bed.pass(12_000);
            assert_eq!(bed.usages(&[11, 12]), [Usable, CutFlows], "{check} {death:?}");
            bed.host(12, Status(200));
            bed.pass(9_000);
            assert_eq!(bed.states(&[12]), [Unhealthy], "{check}: three passes take more than two intervals");
            bed.pass(9_000);
            assert_eq!((bed.states(&[12]), bed.usages(&[12])), (vec![Healthy], vec![Usable]), "{check}");
        }
    }
}

#[test]
fn when_no_target_is_known_to_be_healthy_all_are_used_and_their_flows_are_counted() {
    let mut bed = Bed::new(&tables(CHECK, "", &[11, 12]));
    bed.host(11, Status(200));
    bed.host(12, Gone);
    bed.pass(20_000);
    bed.prober.count_flows(|_| 100);
    assert_eq!(bed.prober.groups()[0].unhealthy_routing_flows, 0);
    assert_eq!(bed.usages(&[11, 12]), [Usable, CutFlows]);
    bed.host(11, Closed);
    bed.pass(12_000);
    assert_eq!(bed.states(&[11, 12]), [Unhealthy, Unhealthy]);
    assert_eq!(bed.usages(&[11, 12]), [Usable, Usable]);
    bed.prober.count_flows(|_| 107);
    let group = bed.prober.groups().remove(0);
    assert_eq!((group.fails_open, group.unhealthy_routing_flows), (true, 14));
    bed.host(11, Status(200));
    bed.pass(20_000);
    assert_eq!(bed.usages(&[11, 12]), [Usable, CutFlows]);
    bed.prober.count_flows(|_| 150);
    assert_eq!(bed.prober.groups()[0].unhealthy_routing_flows, 14);
}

#[test]
fn flows_of_an_unhealthy_target_may_go_on_where_the_group_says_so() {
    let mut bed = Bed::new(&tables(CHECK, "unhealthy_drain_seconds = 60", &[11, 12]));
    bed.host(11, Status(200));
    bed.host(12, Status(500));
    bed.pass(13_000);
    assert_eq!((bed.states(&[12]), bed.usages(&[12])), (vec![UnhealthyDraining], vec![NoNewFlows]));
    bed.pass(61_000);
    assert_eq!((bed.states(&[12]), bed.usages(&[12])), (vec![Unhealthy], vec![CutFlows]));
}

#[test]
fn a_target_that_is_taken_out_drains_and_is_forgotten_and_its_flows_end_only_if_the_group_says_so() {
    for (more, end) in [("", Usable), ("deregistration_ends_flows = true", CutFlows)] {
        let more = format!("deregistration_delay_seconds = 20\n{more}");
        let mut bed = Bed::new(&tables(CHECK, &more, &[11, 12]));
        bed.host(11, Status(200));
        bed.host(12, Status(200));
        bed.pass(5_000);
        bed.declare(&tables(CHECK, &more, &[11]));
        let sent = bed.prober.counters().sent;
        bed.pass(19_000);
        assert_eq!(bed.states(&[11, 12]), [Healthy, Draining]);
        assert_eq!(bed.usages(&[12]), [Usable]);
        bed.pass(2_000);
        assert!(!bed.views.contains_key(&("web".to_owned(), 12)));
        assert_eq!(bed.usages(&[12]), [end]);
        assert!(bed.prober.counters().sent > sent, "the other is still probed");
        // Put in again, it is new.
        bed.declare(&tables(CHECK, &more, &[11, 12]));
        assert_eq!((bed.states(&[12]), bed.usages(&[12])), (vec![Initial], vec![NoNewFlows]));
        bed.pass(1_000);
        assert_eq!((bed.states(&[12]), bed.usages(&[12])), (vec![Healthy], vec![Usable]));
    }
}

#[test]
fn a_group_without_check_or_listener_is_not_probed() {
    let mut bed = Bed::new(&tables("", "", &[11]));
    bed.pass(60_000);
    assert_eq!((bed.states(&[11]), bed.usages(&[11])), (vec![Unavailable], vec![Usable]));
    bed.declare(&tables(CHECK, "", &[11]).replace(r#"{ name = "web" }"#, r#"{ name = "web", weight = 0 }"#));
    bed.pass(60_000);
    assert_eq!((bed.states(&[11]), bed.prober.counters()), (vec![Unused], ProbeCounters::default()));
    bed.declare(&tables(CHECK, "", &[11]));
    bed.host(11, Status(200));
    bed.pass(1_000);
    assert_eq!(bed.states(&[11]), [Healthy]);
}

#[test]
fn targets_of_two_providers_with_one_address_are_two_targets() {
    let other = tables(CHECK, "", &[11]).replace("[[port]]\n        interface = \"eth1\"", "");
    let other = other.replace("vpc-p", "vpc-q").replace("\"web\"", "\"two\"").replace("\"pool\"", "\"pool-q\"");
    let other = other.replace("\"lb\"", "\"lb-q\"").replace("name = \"p\"", "name = \"q\"\nvlan = 7");
    let mut bed = Bed::new(&(tables(CHECK, "", &[11]) + &other));
    bed.host(11, Status(200));
    bed.host_in("vpc-q", 11, Closed);
    bed.pass(12_000);
    assert_eq!(bed.states(&[11]), [Healthy]);
    assert_eq!(bed.views[&("two".to_owned(), 11)].state, Unhealthy);
}

#[test]
fn probes_of_many_targets_are_spread_over_the_interval_and_their_ports_go_around() {
    let lasts: Vec<u8> = (11..211).collect();
    let mut bed = Bed::new(&tables(CHECK, "", &lasts));
    lasts.iter().for_each(|last| bed.host(*last, Status(200)));
    bed.pass(10_000);
    let mut busiest = 0;
    for _ in 0..50 {
        let before = bed.prober.counters().passed;
        bed.pass(100);
        busiest = busiest.max(bed.prober.counters().passed - before);
    }
    // 200 probes in 5 seconds: 4 in a tenth of a second on average.
    assert!(busiest <= 20, "{busiest} probes in a tenth of a second");
    let counters = bed.prober.counters();
    assert_eq!((counters.failed, counters.late, counters.stray), (0, 0, 0));
    assert!(bed.locals.iter().all(|local| PROBE_PORTS.contains(&local.port())));
    assert!(bed.locals.len() > 100, "{} ports were used", bed.locals.len());
    assert!(bed.prober.connections.is_empty(), "{} connections are left", bed.prober.connections.len());
}

#[test]
fn packets_that_belong_to_no_probe_are_counted_and_nothing_else() {
    let mut bed = Bed::new(&tables(CHECK, "", &[11]));
    bed.pass(1_000);
    let mut packet = vec![0x45; 40];
    for length in 0..40 {
        bed.prober.receive(VpcIndex(0), &packet[..length], bed.now, &mut bed.output);
    }
    packet[..20].fill(0xff);
    bed.prober.receive(VpcIndex(9), &packet, bed.now, &mut bed.output);
    assert_eq!((bed.prober.counters().stray, bed.output.packets.len()), (41, 0));
}

//! Three network namespaces in a row: left —veth— middle —veth— right. They are gone with their last descriptor.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use postern_frame_io::interface::Interface;
use postern_wire::frame::NO_VLAN;

use crate::{netlink, numbered, send, transmitter};

pub(crate) const LEFT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// A network namespace of our own.
pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self, String> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("a network namespace cannot be made: {e}"))?;
            // No router solicitations or listener reports among the frames.
            for scope in ["all", "default"] {
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
            }
            File::open("/proc/thread-self/ns/net").map(Self).map_err(|e| e.to_string())
        };
        thread::spawn(make).join().unwrap()
    }

    /// Runs `work` on a thread of its own in this namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    pub(crate) fn interface(&self, name: &str) -> Interface {
        self.run(|| Interface::by_name(name).unwrap())
    }

    pub(crate) fn set_up(&self, name: &str, up: bool) {
        self.run(|| netlink::set_up(Interface::by_name(name).unwrap().index(), up).unwrap());
    }

    /// Frames that an interface has received.
    fn received(&self, name: &str) -> u64 {
        let text = self.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let counters = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')).unwrap();
        counters.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A counter of `/proc/net/snmp`.
    pub(crate) fn counter(&self, protocol: &str, name: &str) -> u64 {
        let text = self.run(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let prefix = format!("{protocol}: ");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|candidate| candidate == name).unwrap();
        values.split(' ').nth(at).unwrap().parse().unwrap()
    }
}

/// left `eth0` — `port0` middle `port1` — `eth0` right.
pub(crate) struct Topology {
    pub(crate) left: Namespace,
    pub(crate) middle: Namespace,
    pub(crate) right: Namespace,
}

impl Topology {
    /// `None`, with the reason printed, where no namespaces can be made.
    pub(crate) fn new() -> Option<Self> {
        let made = (|| {
            let topology = Self { left: Namespace::new()?, middle: Namespace::new()?, right: Namespace::new()? };
            topology.connect("port0", &topology.left, LEFT)?;
            topology.connect("port1", &topology.right, RIGHT)?;
            Ok(topology)
        })();
        made.map_err(|reason: String| eprintln!("skipped: {reason}")).ok()
    }

    fn connect(&self, port: &str, peer: &Namespace, address: Ipv4Addr) -> Result<(), String> {
        let error = |error| format!("{port} cannot be made: {error}");
        self.middle.run(|| netlink::add_veth(port, "eth0", peer.0.as_fd())).map_err(error)?;
        peer.run(|| {
            let index = Interface::by_name("eth0").unwrap().index();
            netlink::add_address(index, address)?;
            netlink::set_up(index, true)
        })
        .map_err(error)?;
        self.middle.set_up(port, true);
        self.wait_for_carrier(port, peer)?;
        self.wait_for_passage(port, peer)
    }

    /// A new veth says that it has its carrier some time before the kernel lets it send; until then it drops.
    fn wait_for_passage(&self, port: &str, peer: &Namespace) -> Result<(), String> {
        let passes = |from: &Namespace, from_name: &str, to: &Namespace, to_name: &str| {
            let before = to.received(to_name);
            let refused = send(&mut transmitter(from, from_name), &[numbered(0, 60)], NO_VLAN);
            thread::sleep(Duration::from_millis(2));
            refused.is_empty() && to.received(to_name) > before
        };
        for _ in 0..400 {
            if passes(peer, "eth0", &self.middle, port) && passes(&self.middle, port, peer, "eth0") {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(3));
        }
        Err(format!("{port} lets nothing pass"))
    }

    /// A veth has its carrier as soon as both ends are up, but says so, and sends, up to a second later.
    pub(crate) fn wait_for_carrier(&self, port: &str, peer: &Namespace) -> Result<(), String> {
        for _ in 0..400 {
            if peer.interface("eth0").is_running() && self.middle.interface(port).is_running() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(format!("{port} has no carrier"))
    }

    /// Makes the left veth pair again: same names, other indices.
    pub(crate) fn make_left(&self) {
        self.connect("port0", &self.left, LEFT).unwrap();
    }

    /// Deletes the left veth pair.
    pub(crate) fn delete_left(&self) {
        let index = self.middle.interface("port0").index();
        self.middle.run(|| netlink::delete_link(index).unwrap());
    }
}

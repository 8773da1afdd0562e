//! What every test stands on: a lab of its own that is taken down whatever happens, and a bound on its time.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use postern_lab::topology::Builder;
use postern_lab::{Client, Gateway, Node, Topology};
use postern_tables::declaration::Declaration;

use crate::binary::binary;

/// Gateways at once: tests measure nothing, but they have deadlines, and machines that test have few cores.
const PLACES: usize = 2;
/// No test takes as long; one that does is stuck.
const LIMIT: Duration = Duration::from_secs(300);

static FREE: Mutex<usize> = Mutex::new(PLACES);
static FREED: Condvar = Condvar::new();

/// One of the places for gateways; given back when dropped.
struct Place;

impl Place {
    fn take() -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = FREED.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREED.notify_one();
    }
}

/// Ends the whole run if a test is stuck: the kernel then ends the gateways, and the namespaces go with them.
pub(crate) struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        let (alive, watch) = channel::<()>();
        let name = thread::current().name().unwrap_or("a test").to_owned();
        thread::spawn(move || {
            if watch.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} is not done after {} s", LIMIT.as_secs());
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Whether the machine lets these tests run; says why if not.
pub(crate) fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        println!("skipped: namespaces, packet sockets and BPF programs need root");
    }
    root
}

/// A running lab.
pub(crate) struct Bed {
    lab: Topology,
    _watchdog: Watchdog,
    // Last: the place is free when the lab is gone.
    _place: Place,
}

impl Bed {
    /// Builds and starts a lab; `None` where the machine does not let us.
    pub(crate) fn start(builder: Builder) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let binary = binary();
        let place = Place::take();
        let watchdog = Watchdog::new();
        let lab = builder.build(binary).unwrap_or_else(|error| panic!("{error}"));
        Some(Self { lab, _watchdog: watchdog, _place: place })
    }

    /// The same with a configuration that `edit` has changed.
    pub(crate) fn start_with(builder: Builder, edit: impl FnOnce(&mut Declaration) + 'static) -> Option<Self> {
        Self::start(builder.configure(|text| edited(&text, edit)))
    }

    pub(crate) const fn client(&self, at: usize) -> &Node {
        &self.lab.clients()[at]
    }

    pub(crate) const fn gateway(&self) -> &Gateway {
        self.lab.gateway()
    }

    /// The configuration that it started with, changed.
    pub(crate) fn configuration(&self, edit: impl FnOnce(&mut Declaration)) -> String {
        edited(self.lab.configuration(), edit)
    }

    /// Runs a client in a client's namespace.
    pub(crate) fn ask<T: Send>(&self, at: usize, work: impl FnOnce(Client) -> T + Send) -> T {
        run(self.client(at), || work(Client::default()))
    }
}

impl std::ops::Deref for Bed {
    type Target = Topology;

    fn deref(&self) -> &Topology {
        &self.lab
    }
}

impl std::ops::DerefMut for Bed {
    fn deref_mut(&mut self) -> &mut Topology {
        &mut self.lab
    }
}

impl Drop for Bed {
    /// A test that fails shows what the gateway said.
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the gateway's log\n{}", self.gateway().log());
            if let Ok(counters) = self.gateway().counters() {
                eprintln!("--- its counters, as far as they moved\n{}", crate::counters::moved(&counters).join("\n"));
            }
        }
    }
}

/// Runs something in a host's namespace.
pub(crate) fn run<T: Send>(node: &Node, work: impl FnOnce() -> T + Send) -> T {
    node.run(work).unwrap_or_else(|error| panic!("{error}"))
}

/// A configuration file, changed.
pub(crate) fn edited(text: &str, edit: impl FnOnce(&mut Declaration)) -> String {
    let mut declaration = Declaration::from_toml(text, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
    edit(&mut declaration);
    declaration.to_toml()
}

/// Waits until a condition holds; fails with its name if it does not in time.
pub(crate) fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {} ms", within.as_millis());
        thread::sleep(Duration::from_millis(10));
    }
}

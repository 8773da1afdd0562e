//! Network namespaces and code that runs in them.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::interface::{Interface, InterfaceError};
use crate::process::{Process, ProcessError};
use crate::statistics::{InterfaceStatistics, ProtocolStatistics};

/// Where named namespaces are kept, as by `ip netns`.
pub const NAMED: &str = "/run/netns";

/// What can go wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel did not make one.
    #[error(
        "cannot make the network namespace {name}: {source}; this needs root (CAP_SYS_ADMIN), or a user namespace \
         (sysctl user.max_net_namespaces must not be 0)"
    )]
    Create {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A name is taken.
    #[error("the network namespace {0} exists already; remove it with `postern lab down` or `ip netns delete`")]
    Exists(PathBuf),
    /// A namespace of that name cannot be opened.
    #[error("cannot open the network namespace {path}: {source}")]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread could not move into it.
    #[error("cannot enter the network namespace {name}: {source}")]
    Enter {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A name could not be removed.
    #[error("cannot remove the network namespace {path}: {source}")]
    Remove {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kernel setting could not be written or read.
    #[error("cannot access the kernel setting {key} in the network namespace {name}: {source}")]
    Sysctl {
        /// The namespace.
        name: String,
        /// The setting, with dots.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// A statistics file of the kernel could not be read.
    #[error("cannot read {path} in the network namespace {name}: {source}")]
    Statistics {
        /// The namespace.
        name: String,
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A network namespace, held open. Clones hold the same one.
///
/// Without a name it lives as long as a clone of this value, a process or a socket in it does; the kernel then removes
/// it with its interfaces. With a name (`/run/netns/NAME`) it lives until [`Namespace::remove`].
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    handle: Arc<File>,
}

impl Namespace {
    /// Makes a namespace without a name in the file system; `name` is for messages only. Its `lo` is up.
    pub fn anonymous(name: &str) -> Result<Self, NamespaceError> {
        Self::create(name, |_| Ok(()))
    }

    /// Makes a namespace that stays after this process has ended, and that `ip netns exec NAME` finds. Its `lo` is up.
    pub fn named(name: &str) -> Result<Self, NamespaceError> {
        let path = Path::new(NAMED).join(name);
        let failed = |source| NamespaceError::Create { name: name.to_owned(), source };
        fs::create_dir_all(NAMED).map_err(failed)?;
        match File::create_new(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(NamespaceError::Exists(path)),
            Err(error) => return Err(failed(error)),
        }
        let bind = |own: &Path| Ok(mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?);
        Self::create(name, bind).inspect_err(|_| drop(fs::remove_file(&path)))
    }

    /// Opens a namespace by its name.
    pub fn open(name: &str) -> Result<Self, NamespaceError> {
        let path = Path::new(NAMED).join(name);
        match File::open(&path) {
            Ok(handle) => Ok(Self { name: name.to_owned(), handle: Arc::new(handle) }),
            Err(source) => Err(NamespaceError::Open { path, source }),
        }
    }

    /// Takes the name away. The namespace ends with its last process and holder.
    pub fn remove(name: &str) -> Result<(), NamespaceError> {
        let path = Path::new(NAMED).join(name);
        let failed = |source: io::Error| NamespaceError::Remove { path: path.clone(), source };
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Not a mount point: the name of a namespace that was never finished.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        fs::remove_file(&path).map_err(failed)
    }

    fn create(name: &str, keep: impl FnOnce(&Path) -> Result<(), io::Error> + Send) -> Result<Self, NamespaceError> {
        let failed = |source| NamespaceError::Create { name: name.to_owned(), source };
        let handle = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = PathBuf::from(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid()));
            keep(&own)?;
            File::open(own)
        });
        let namespace = Self { name: name.to_owned(), handle: Arc::new(handle.map_err(failed)?) };
        // A namespace whose loopback is down answers nobody, not even itself.
        if let Err(error) = namespace.interface("lo").up() {
            return Err(failed(io::Error::other(error)));
        }
        Ok(namespace)
    }

    /// The name that it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure on a fresh thread inside the namespace and returns what it returns. Sockets that it opens belong to
    /// the namespace wherever they are used later. A panic in it goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        in_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> Result<(), NamespaceError> {
        setns(&*self.handle, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NamespaceError::Enter { name: self.name.clone(), source: errno.into() })
    }

    /// Starts a program inside the namespace. See [`Process`] for how it ends.
    pub fn spawn(&self, command: Command) -> Result<Process, ProcessError> {
        Process::start(self, command)
    }

    /// An interface of the namespace, by its name, whether it exists or not.
    #[must_use]
    pub fn interface(&self, name: &str) -> Interface {
        Interface::new(self, name)
    }

    /// Adds a route to a prefix (`address/length`) through a router.
    pub fn add_route(&self, destination: IpAddr, length: u8, via: IpAddr) -> Result<(), InterfaceError> {
        crate::interface::add_route(self, destination, length, via)
    }

    /// Writes a kernel setting such as `net.ipv4.ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), NamespaceError> {
        let written = self.run(|| fs::write(sysctl_path(key), value))?;
        written.map_err(|source| NamespaceError::Sysctl { name: self.name.clone(), key: key.to_owned(), source })
    }

    /// Reads a kernel setting.
    pub fn sysctl(&self, key: &str) -> Result<String, NamespaceError> {
        match self.run(|| fs::read_to_string(sysctl_path(key)))? {
            Ok(value) => Ok(value.trim_end().to_owned()),
            Err(source) => Err(NamespaceError::Sysctl { name: self.name.clone(), key: key.to_owned(), source }),
        }
    }

    /// The counters of TCP, UDP, IP and ICMP (`/proc/net/snmp` and `/proc/net/netstat`) of the namespace's own stack.
    pub fn statistics(&self) -> Result<ProtocolStatistics, NamespaceError> {
        let mut text = self.read("/proc/thread-self/net/snmp")?;
        text.push_str(&self.read("/proc/thread-self/net/netstat")?);
        Ok(ProtocolStatistics::parse(&text))
    }

    /// The counters of every interface, by name.
    pub fn interfaces(&self) -> Result<Vec<(String, InterfaceStatistics)>, NamespaceError> {
        Ok(InterfaceStatistics::parse(&self.read("/proc/thread-self/net/dev")?))
    }

    fn read(&self, path: &'static str) -> Result<String, NamespaceError> {
        self.run(|| fs::read_to_string(path))?.map_err(|source| NamespaceError::Statistics {
            name: self.name.clone(),
            path,
            source,
        })
    }

    pub(crate) fn raw_handle(&self) -> i32 {
        self.handle.as_raw_fd()
    }
}

impl std::os::fd::AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// `net.ipv4.conf.eth0/100.rp_filter` → `/proc/sys/net/ipv4/conf/eth0.100/rp_filter`, as sysctl(8) writes it.
fn sysctl_path(key: &str) -> PathBuf {
    let swapped = key.chars().map(|letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    Path::new("/proc/sys").join(swapped.collect::<String>())
}

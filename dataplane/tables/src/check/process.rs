//! What concerns the process: paths, threads, room. Fixed at its start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use postern_selection::SelectionHash;

use super::{Checked, Checker, text};
use crate::declaration::{self, Declaration, Polling};
use crate::error::{Errors, Problem};

/// What concerns the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    /// Name in logs and metrics.
    pub name: String,
    /// Directory for sockets and for what is to be restored.
    pub run_directory: PathBuf,
    /// Where the Prometheus page is served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Unix socket for inspection.
    pub control_socket: PathBuf,
    /// Whether threads of the kernel receive for ports with io_uring.
    pub io_uring_sqpoll: bool,
}

/// The threads that forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSettings {
    /// How many, 1…64.
    pub count: u16,
    /// The CPU of each worker; empty: not pinned.
    pub cpus: Vec<usize>,
    /// What a worker does when there is nothing to do.
    pub polling: Polling,
    /// Most live flows of each worker, 1,024…16,777,216.
    pub flows: u32,
    /// Most live flows of each worker beside these with an IPv6 client or target, 0 or 1,024…16,777,216.
    pub ipv6_flows: u32,
}

/// Room that is made once, at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most endpoint addresses.
    pub endpoints: u32,
    /// Most targets.
    pub targets: u32,
}

pub(super) fn gateway(checker: &mut Checker<'_>, gateway: &declaration::Gateway) -> GatewaySettings {
    let name = gateway.name.as_deref().unwrap_or("gateway");
    checker.name(|| "gateway.name".to_owned(), name);
    let run_directory = path(checker, "gateway.run_directory", gateway.run_directory.as_deref())
        .unwrap_or_else(|| PathBuf::from("/run/postern"));
    let control_socket = path(checker, "gateway.control_socket", gateway.control_socket.as_deref())
        .unwrap_or_else(|| run_directory.join("control.sock"));
    let metrics = gateway.metrics.as_deref().and_then(|text| {
        let Ok(address) = text.parse::<SocketAddr>() else {
            let form = "an address and port such as 127.0.0.1:9464".to_owned();
            checker.error("gateway.metrics", text, Problem::Form(form));
            return None;
        };
        if !address.ip().is_loopback() && !gateway.metrics_public.unwrap_or(false) {
            checker.error("gateway.metrics", text, Problem::PublicMetrics);
        }
        Some(address)
    });
    let io_uring_sqpoll = gateway.io_uring_sqpoll.unwrap_or(false);
    GatewaySettings { name: name.to_owned(), run_directory, metrics, control_socket, io_uring_sqpoll }
}

pub(super) fn path(checker: &mut Checker<'_>, key: &str, value: Option<&str>) -> Option<PathBuf> {
    let text = value?;
    let path = Path::new(text);
    if !path.is_absolute() || text.contains('\0') {
        checker.error(key, text, Problem::Form("an absolute path such as /run/postern".to_owned()));
    }
    Some(path.to_owned())
}

pub(super) fn workers(checker: &mut Checker<'_>, workers: &declaration::Workers) -> WorkerSettings {
    let count = checker.number(&|| "workers.count".to_owned(), workers.count.unwrap_or(1), (1, 64), "");
    let flows = checker.number(
        &|| "workers.flows".to_owned(),
        workers.flows.unwrap_or(1 << 20),
        (1024, 1 << 24),
        " flows for each worker",
    );
    let ipv6_flows = workers.ipv6_flows.unwrap_or(flows / 4);
    // None at all is allowed, and so is the default of the fewest flows.
    let ipv6_flows = if ipv6_flows == 0 || workers.ipv6_flows.is_none() {
        ipv6_flows
    } else {
        checker.number(
            &|| "workers.ipv6_flows".to_owned(),
            ipv6_flows,
            (1024, 1 << 24),
            " IPv6 flows for each worker, or 0 for none",
        )
    };
    let polling = workers.polling.unwrap_or_default();
    let mut cpus = Vec::new();
    if let Some(listed) = &workers.cpus {
        if listed.len() as i64 != count {
            let problem = Problem::Count { given: listed.len(), needed: count };
            checker.error("workers.cpus", listed.as_slice(), problem);
        }
        for (at, &cpu) in listed.iter().enumerate().take(count as usize) {
            let key = || format!("workers.cpus[{at}]");
            cpus.push(checker.number(&key, cpu, (0, 4095), "") as usize);
            if polling == Polling::Spin && listed[..at].contains(&cpu) {
                checker.error(key(), cpu, Problem::SpinningTogether(cpu));
            }
        }
    }
    WorkerSettings { count: count as u16, cpus, polling, flows: flows as u32, ipv6_flows: ipv6_flows as u32 }
}

pub(super) fn selection(checker: &mut Checker<'_>, selection: &declaration::Selection) -> SelectionHash {
    let Some(text) = &selection.key else { return SelectionHash::default() };
    let Some(key) = text::key_bytes(text) else {
        checker.error("selection.key", text, Problem::Form("a key of 32 hexadecimal digits".to_owned()));
        return SelectionHash::default();
    };
    SelectionHash::new(key)
}

pub(super) fn limits(checker: &mut Checker<'_>, declaration: &Declaration) -> Limits {
    let endpoints = declaration.endpoints.iter().map(|endpoint| endpoint.addresses.len()).sum();
    let targets = declaration.target_groups.iter().map(|group| group.targets.len()).sum();
    let remote = declaration.control.is_some();
    let mut room = |key: &'static str, written: Option<i64>, declared: usize, from_control: u32| {
        let Some(written) = written else {
            return if remote { from_control } else { (2 * declared).next_power_of_two().max(4096) as u32 };
        };
        let room = checker.number(&|| key.to_owned(), written, (1, 1 << 24), "") as u32;
        // A number out of range was reported.
        if declared > room as usize && i64::from(room) == written {
            checker.error(key, written, Problem::NoRoom { declared, room, key });
        }
        room
    };
    Limits {
        endpoints: room("limits.endpoints", declaration.limits.endpoints, endpoints, 1 << 17),
        targets: room("limits.targets", declaration.limits.targets, targets, 1 << 15),
    }
}

impl Checked {
    /// Whether a process that was started with `running` can take this declaration in. What comes back has the process's
    /// own room, and is what the next reload is compared with.
    ///
    /// # Errors
    /// All changes that need a restart: of `[gateway]`, `[workers]`, `[limits]` and `[[port]]`, whether there is a `[control]`
    /// and its state directory; and more endpoint addresses or targets than there is room for.
    pub fn reload(mut self, running: &Self) -> Result<Self, Errors> {
        let mut checker =
            Checker { file: &self.file, keys: super::Keys::Positions, errors: Vec::new(), warnings: Vec::new() };
        let mut fixed = |key: &str, old: String, new: String| {
            if old != new {
                checker.error(key, Verbatim(new), Problem::NeedsRestart(old));
            }
        };
        let quoted = |text: &dyn std::fmt::Display| format!("\"{text}\"");
        let (old, new) = (&running.gateway, &self.gateway);
        fixed("gateway.name", quoted(&old.name), quoted(&new.name));
        let path = |path: &Path| quoted(&path.display());
        fixed("gateway.run_directory", path(&old.run_directory), path(&new.run_directory));
        fixed("gateway.control_socket", path(&old.control_socket), path(&new.control_socket));
        fixed("gateway.io_uring_sqpoll", old.io_uring_sqpoll.to_string(), new.io_uring_sqpoll.to_string());
        let metrics = |address: Option<SocketAddr>| address.map_or("not set".to_owned(), |address| quoted(&address));
        fixed("gateway.metrics", metrics(old.metrics), metrics(new.metrics));
        super::control::reload(&mut fixed, running, &self);
        let (old, new) = (&running.workers, &self.workers);
        fixed("workers.count", old.count.to_string(), new.count.to_string());
        fixed("workers.cpus", format!("{:?}", old.cpus), format!("{:?}", new.cpus));
        fixed("workers.polling", quoted(&old.polling), quoted(&new.polling));
        fixed("workers.flows", old.flows.to_string(), new.flows.to_string());
        fixed("workers.ipv6_flows", old.ipv6_flows.to_string(), new.ipv6_flows.to_string());
        for (key, written, old, new) in [
            ("limits.endpoints", self.limits_written[0], running.limits.endpoints, self.limits.endpoints),
            ("limits.targets", self.limits_written[1], running.limits.targets, self.limits.targets),
        ] {
            if written {
                fixed(key, old.to_string(), new.to_string());
            }
        }
        let ports = |checked: &Self| {
            let port = |port: &crate::snapshot::Port| {
                format!("{} ({}, {})", port.interface, if port.shared { "shared" } else { "own" }, port.io)
            };
            checked.ports.iter().map(port).collect::<Vec<_>>().join(", ")
        };
        fixed("port", ports(running), ports(&self));
        let endpoints = self.objects.endpoints.iter().map(|endpoint| endpoint.addresses.len()).sum();
        let targets = self.objects.groups.iter().map(|group| group.targets.len()).sum();
        for (key, declared, room) in [
            ("limits.endpoints", endpoints, running.limits.endpoints),
            ("limits.targets", targets, running.limits.targets),
        ] {
            if declared > room as usize {
                checker.error(key, i64::from(room), Problem::NoRoom { declared, room, key });
            }
        }
        Errors::unless_empty(checker.errors)?;
        self.limits = running.limits;
        Ok(self)
    }
}

/// A value that is written already.
struct Verbatim(String);

impl super::Shown for Verbatim {
    fn shown(&self) -> String {
        self.0.clone()
    }
}

//! What the machine did during a turn: the CPU time by mode, and how much of it belongs to others.
//!
//! Ours are this process and its descendants, and whatever runs in the network namespaces of the comparison (a peer may have
//! daemons). The kernel's own threads and soft interrupts serve the traffic. All else, and time that the hypervisor took, is
//! disturbance.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use nix::unistd::{SysconfVar, sysconf};

use crate::nat::NatError;

/// Share of one CPU that others may use before a turn counts as disturbed.
const TOLERATED: f64 = 0.05;
/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What a turn took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Used {
    /// Seconds of the clock.
    pub elapsed: f64,
    /// CPU seconds of all CPUs in user mode.
    pub user: f64,
    /// CPU seconds in the kernel, called by processes.
    pub system: f64,
    /// CPU seconds in interrupts and soft interrupts.
    pub interrupts: f64,
    /// CPU seconds that the hypervisor took.
    pub stolen: f64,
    /// CPU seconds of processes that have nothing to do with the comparison.
    pub others: f64,
    /// The process that took most of them.
    pub culprit: Option<String>,
    /// The share of the worker's CPU time that it spent in user mode, 0…1; `None` without worker.
    pub worker_user_share: Option<f64>,
}

impl Used {
    /// CPUs that something else used meanwhile.
    #[must_use]
    pub fn disturbance(&self) -> f64 {
        (self.stolen + self.others) / self.elapsed.max(1e-9)
    }

    /// Whether something else used more than can be tolerated.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        self.disturbance() > TOLERATED
    }
}

/// The machine at one moment.
#[derive(Debug, Clone)]
pub struct Moment {
    at: Instant,
    ticks: Ticks,
    /// User-mode ticks of our processes, waited-for children included.
    own_user: u64,
    /// Ticks of each of the others: process and start time, for a number is used again.
    others: BTreeMap<(u32, u64), (String, u64)>,
    /// User and system ticks of the worker's threads.
    worker: Option<(u64, u64)>,
}

impl Moment {
    /// Looks now. `namespaces` are the links `/proc/PID/ns/net` of our network namespaces, `gateway` is the process whose
    /// worker is of interest.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn now(namespaces: &BTreeSet<String>, gateway: Option<u32>) -> Result<Self, NatError> {
        let failed = |error| NatError::Io("read /proc", error);
        let stat = fs::read_to_string("/proc/stat").map_err(failed)?;
        let ticks = Ticks::of(&stat).ok_or(NatError::ProcStat)?;
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir("/proc").map_err(failed)?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // What has ended since the directory was read is not there.
            if let Some(process) =
                fs::read_to_string(entry.path().join("stat")).ok().and_then(|stat| Process::of(&stat))
            {
                processes.insert(pid, process);
            }
        }
        let in_namespace = |pid: u32| {
            let link = fs::read_link(format!("/proc/{pid}/ns/net"));
            link.is_ok_and(|link| link.to_str().is_some_and(|link| namespaces.contains(link)))
        };
        let own = own(&processes, std::process::id(), in_namespace);
        let own_user = own.iter().map(|pid| processes[pid].user + processes[pid].children_user).sum();
        let others = processes
            .into_iter()
            .filter(|(pid, process)| !own.contains(pid) && process.flags & KERNEL_THREAD == 0)
            .map(|(pid, process)| ((pid, process.started), (process.name, process.user + process.system)))
            .collect();
        Ok(Self { at: Instant::now(), ticks, own_user, others, worker: gateway.and_then(worker) })
    }

    /// What was used from this moment until `then`.
    #[must_use]
    pub fn until(&self, then: &Self) -> Used {
        let hertz = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
        let seconds = |before: u64, after: u64| after.saturating_sub(before) as f64 / hertz;
        let mut by_name: BTreeMap<&str, f64> = BTreeMap::new();
        for (key, (name, ticks)) in &then.others {
            let before = self.others.get(key).map_or(0, |(_, ticks)| *ticks);
            *by_name.entry(name).or_default() += seconds(before, *ticks);
        }
        let seen: f64 = by_name.values().sum();
        let culprit = by_name.iter().max_by(|one, other| one.1.total_cmp(other.1)).filter(|most| *most.1 > 0.0);
        // What others began and ended in between is in no list, but in the sum of user time.
        let user = seconds(self.ticks.user, then.ticks.user);
        let unseen = user - seconds(self.own_user, then.own_user);
        let worker = self.worker.zip(then.worker).and_then(|(before, after)| {
            let (user, system) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
            (user + system > 0).then(|| user as f64 / (user + system) as f64)
        });
        Used {
            elapsed: then.at.duration_since(self.at).as_secs_f64(),
            user,
            system: seconds(self.ticks.system, then.ticks.system),
            interrupts: seconds(self.ticks.interrupts, then.ticks.interrupts),
            stolen: seconds(self.ticks.stolen, then.ticks.stolen),
            others: seen.max(unseen).max(0.0),
            culprit: culprit.map(|(name, _)| (*name).to_owned()),
            worker_user_share: worker,
        }
    }
}

/// Ticks of all CPUs since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    user: u64,
    system: u64,
    interrupts: u64,
    stolen: u64,
}

impl Ticks {
    fn of(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let columns: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        // user nice system idle iowait irq softirq steal …
        let &[user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = columns.as_slice() else { return None };
        Some(Self { user: user + nice, system, interrupts: irq + softirq, stolen })
    }
}

/// A line of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    name: String,
    parent: u32,
    flags: u64,
    user: u64,
    system: u64,
    children_user: u64,
    started: u64,
}

impl Process {
    fn of(stat: &str) -> Option<Self> {
        // The name may have spaces and parentheses itself.
        let (name, rest) = (stat.split_once('(')?.1.rsplit_once(')')?.0, stat.rsplit_once(')')?.1);
        // The third field, the state, comes first here.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            name: name.to_owned(),
            parent: u32::try_from(number(4)?).ok()?,
            flags: number(9)?,
            user: number(14)?,
            system: number(15)?,
            children_user: number(16)?,
            started: number(22)?,
        })
    }
}

/// This process, its descendants, and what runs in our namespaces.
fn own(processes: &BTreeMap<u32, Process>, this: u32, in_namespace: impl Fn(u32) -> bool) -> BTreeSet<u32> {
    let descends = |mut pid: u32| {
        // No chain is longer than there are processes, even if the list changed while it was read.
        for _ in 0..=processes.len() {
            if pid == this {
                return true;
            }
            match processes.get(&pid) {
                Some(process) => pid = process.parent,
                None => return false,
            }
        }
        false
    };
    processes.keys().copied().filter(|pid| descends(*pid) || in_namespace(*pid)).collect()
}

/// User and system ticks of a gateway's workers.
fn worker(gateway: u32) -> Option<(u64, u64)> {
    let tasks = fs::read_dir(Path::new("/proc").join(gateway.to_string()).join("task")).ok()?;
    let threads = tasks.flatten().filter_map(|task| Process::of(&fs::read_to_string(task.path().join("stat")).ok()?));
    threads
        .filter(|thread| thread.name.starts_with("worker-"))
        .map(|thread| (thread.user, thread.system))
        .reduce(|sum, more| (sum.0 + more.0, sum.1 + more.1))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    fn stat(name: &str, parent: u32, flags: u64, user: u64) -> Process {
        Process::of(&format!("7 ({name}) S {parent} 1 1 0 -1 {flags} 0 0 0 0 {user} 3 2 1 20 0 1 0 99 0")).unwrap()
    }

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let process = stat("a b) (c", 5, 1, 10);
        let fields = (process.name.as_str(), process.parent, process.user, process.system, process.children_user);
        assert_eq!((fields, process.started), (("a b) (c", 5, 10, 3, 2), 99));
        assert_eq!(Process::of("7 (short) S 1"), None);
    }

    #[test]
    fn descendants_and_what_runs_in_our_namespaces_are_ours() {
        let processes = [(1, 0), (2, 1), (3, 2), (4, 1), (5, 1)].map(|(pid, parent)| (pid, stat("x", parent, 0, 0)));
        let own = own(&processes.into(), 2, |pid| pid == 5);
        assert_eq!(own, BTreeSet::from([2, 3, 5]));
    }

    #[test]
    fn time_of_others_and_stolen_time_disturb_and_our_own_does_not() {
        let moment = |user, stolen, own_user, other: &[(u32, u64)]| Moment {
            at: Instant::now(),
            ticks: Ticks { user, system: 0, interrupts: 0, stolen },
            own_user,
            others: other.iter().map(|(pid, ticks)| ((*pid, 1), (format!("p{pid}"), *ticks))).collect(),
            worker: None,
        };
        let used = |after: Moment| Used { elapsed: 1.0, ..moment(0, 0, 0, &[(1, 500)]).until(&after) };
        assert!(!used(moment(200, 0, 200, &[(1, 500)])).is_disturbed());
        assert!(used(moment(200, 50, 200, &[(1, 500)])).is_disturbed(), "stolen");
        let busy = used(moment(200, 0, 200, &[(1, 501), (2, 50)]));
        assert!(busy.is_disturbed() && busy.culprit.as_deref() == Some("p2"), "{busy:?}");
        let gone = used(moment(250, 0, 200, &[(1, 500)]));
        assert!(gone.is_disturbed() && gone.culprit.is_none(), "began and ended in between: {gone:?}");
    }

    #[test]
    fn the_time_of_a_child_is_ours() {
        let before = Moment::now(&BTreeSet::new(), None).unwrap();
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        // Until it has had some time, however busy the machine is.
        let mut used = 0;
        for _ in 0..500 {
            std::thread::sleep(Duration::from_millis(20));
            used = Moment::now(&BTreeSet::new(), None).unwrap().own_user - before.own_user;
            if used >= 5 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let after = Moment::now(&BTreeSet::new(), None).unwrap();
        assert!(used >= 5 && after.own_user >= before.own_user + 5, "also after it was waited for");
    }
}

//! The machine under the measurement: what it is, which CPU a thread runs on, and how much CPU time everything took.

use std::fs;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::Serialize;

use super::NatError;

/// The CPU of clients, servers and generators.
pub const LOAD_CPU: usize = 0;
/// The CPU of the gateway, where the machine has two.
pub const GATEWAY_CPU: usize = 1;

/// What the numbers were measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// CPU model as the kernel names it.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cores: usize,
    /// Whether it runs under a hypervisor.
    pub virtual_machine: bool,
    /// Offload features of the veth devices.
    pub offloads: String,
}

impl Machine {
    /// Describes this machine.
    #[must_use]
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kernel: kernel.trim().to_owned(),
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: cores(),
            virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            offloads: "veth defaults: TSO, USO and partial checksums at clients and servers; nothing changed for \
                       nftables, Postern turns GRO on at its ports"
                .to_owned(),
        }
    }
}

/// CPUs that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Pins the calling thread to a CPU; where the machine has not that many, to the last one.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(cpu: usize) -> Result<(), NatError> {
    let mut set = CpuSet::new();
    set.set(cpu.min(cores() - 1)).map_err(|error| NatError::Kernel("pin a thread", error))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|error| NatError::Kernel("pin a thread", error))
}

/// CPU seconds that the whole machine has been busy since it started: user, nice, system, interrupts and soft
/// interrupts of all CPUs from `/proc/stat`, without time stolen by the hypervisor. The kernel counts in ticks of
/// 1/100 s.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn busy_seconds() -> Result<f64, NatError> {
    let stat = fs::read_to_string("/proc/stat").map_err(|error| NatError::Io("read /proc/stat", error))?;
    let ticks = busy_ticks(&stat).ok_or(NatError::ProcStat)?;
    let hertz = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Ok(ticks as f64 / hertz as f64)
}

fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let columns: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    // user nice system idle iowait irq softirq steal …
    let &[user, nice, system, _idle, _iowait, irq, softirq, ..] = columns.as_slice() else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy_time() {
        let stat = "cpu  10 1 20 4000 500 3 6 77 0 0\ncpu0 10 1 20 4000 500 3 6 77 0 0\n";
        assert_eq!(busy_ticks(stat), Some(40));
        assert_eq!(busy_ticks("intr 1 2 3\n"), None);
    }
}

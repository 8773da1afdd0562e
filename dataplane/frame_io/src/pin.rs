//! Which CPUs a thread may run on.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Why a thread cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The CPU is not one that the process may use.
    #[error("CPU {0} is not one that this process may use ({1:?})")]
    NotAllowed(usize, Vec<usize>),
    /// The kernel refused.
    #[error("cannot {operation} the CPUs of a thread: {source}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

/// The CPUs that the calling thread may run on, in order.
///
/// # Errors
/// If the kernel refuses (it has more CPUs than a set of 1,024 can hold).
pub fn allowed_cpus() -> Result<Vec<usize>, PinError> {
    let set = sched_getaffinity(Pid::from_raw(0));
    let set = set.map_err(|source| PinError::Kernel { operation: "read", source })?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect())
}

/// Makes the calling thread run on this CPU only.
///
/// # Errors
/// If the CPU is not allowed (a container's set, an offline CPU).
pub fn pin_to_cpu(cpu: usize) -> Result<(), PinError> {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    match pinned {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL) => Err(PinError::NotAllowed(cpu, allowed_cpus()?)),
        Err(source) => Err(PinError::Kernel { operation: "set", source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_its_cpu_only() {
        let cpu = *allowed_cpus().unwrap().last().unwrap();
        let after = std::thread::spawn(move || {
            pin_to_cpu(cpu).unwrap();
            allowed_cpus().unwrap()
        });
        assert_eq!(after.join().unwrap(), [cpu]);
    }

    #[test]
    fn an_absent_cpu_is_refused_by_number() {
        assert!(matches!(pin_to_cpu(1023), Err(PinError::NotAllowed(1023, _))));
        assert!(matches!(pin_to_cpu(1 << 20), Err(PinError::NotAllowed(1_048_576, _))));
    }
}

//! What is said where the kernel has no io_uring for us.

use postern_frame_io::io_uring::{RingReceiver, RingReceiverConfig, RingTransmitter};
use postern_frame_io::{DeviceError, Errno};

use super::*;

/// Lets every `io_uring_setup` of this thread, and of those that it starts, fail with an errno (seccomp(2)).
fn forbid_io_uring(errno: Errno) {
    let step = |code: u32, k: u32, otherwise: u8| libc::sock_filter { code: code as u16, jt: 0, jf: otherwise, k };
    let (load, equal, answer) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET);
    let mut program = [
        step(load, 0, 0),
        step(equal, libc::SYS_io_uring_setup as u32, 1),
        step(answer, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
        step(answer, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: needed because there is no safe way to set a filter; sound because the kernel copies the program, which lives
    // through the calls, and only this thread, which ends with the test, loses a system call.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    assert!(set, "{}", Errno::last());
}

#[test]
fn a_kernel_that_forbids_or_lacks_io_uring_is_told_apart_in_words() {
    let Some(topology) = Topology::new() else { return };
    let interface = topology.middle.interface("port0");
    for (errno, expected) in [
        (
            Errno::EPERM,
            "cannot use io_uring on interface \"port0\": it is not permitted here (sysctl kernel.io_uring_disabled, or a \
             seccomp filter of the container) (EPERM: Operation not permitted); packet sockets work without it",
        ),
        (
            Errno::ENOSYS,
            "cannot use io_uring on interface \"port0\": this kernel has no io_uring (ENOSYS: Function not implemented); \
             packet sockets work without it",
        ),
        (
            Errno::EINVAL,
            "cannot use io_uring on interface \"port0\": this kernel's io_uring is too old: 6.1 is needed (EINVAL: Invalid \
             argument); packet sockets work without it",
        ),
    ] {
        let errors: [DeviceError; 2] = topology.middle.run(|| {
            forbid_io_uring(errno);
            let receiver = RingReceiver::open(&interface, &RingReceiverConfig::default()).unwrap_err();
            [receiver, RingTransmitter::open(&interface, SEND_BUFFER).unwrap_err()]
        });
        assert_eq!(errors.map(|error| error.to_string()), [expected, expected]);
    }
}

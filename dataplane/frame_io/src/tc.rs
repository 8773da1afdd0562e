//! tc ingress: a program that decides whether the host gets a frame. Packet sockets see the frame before it does.
//!
//! From Linux 6.6 on a program is attached by a TCX link, which lives as long as its descriptor: when the process ends, in
//! whatever way, the kernel detaches it. Older kernels get a `clsact` queueing discipline and a `bpf` filter over
//! rtnetlink. That filter outlives a process that is killed; it always has the same place, so that the next start
//! replaces it, and [`detach_leftover`] removes it.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use crate::bpf::{self, BpfError, LINK_CREATE, Program};

/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`: without a relative program, before all others.
const BEFORE: u32 = 1 << 3;

/// Preference of the filter on kernels without TCX.
const FILTER_PREFERENCE: u16 = 0x504f;
/// Handle of the filter on kernels without TCX.
const FILTER_HANDLE: u32 = 1;
/// Name of the filter on kernels without TCX, as `tc filter show` prints it.
const FILTER_NAME: &[u8] = b"postern\0";

/// `TC_H_CLSACT`: the parent of the queueing discipline.
const CLSACT: u32 = 0xffff_fff1;
/// Handle of the queueing discipline.
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`: the parent of ingress filters.
const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// `TCA_KIND`.
const KIND: u16 = 1;
/// `TCA_OPTIONS`.
const OPTIONS: u16 = 2;
/// `TCA_BPF_FD`.
const BPF_DESCRIPTOR: u16 = 6;
/// `TCA_BPF_NAME`.
const BPF_NAME: u16 = 7;
/// `TCA_BPF_FLAGS`.
const BPF_FLAGS: u16 = 8;
/// `TCA_BPF_FLAG_ACT_DIRECT`: the program's result is the verdict.
const DIRECT_ACTION: u32 = 1;

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum TcError {
    /// The process lacks CAP_NET_ADMIN or CAP_BPF.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Neither way exists.
    #[error(
        "cannot attach a program at ingress of interface {interface}: the kernel needs TCX (Linux 6.6 or newer) or the \
         sch_ingress and cls_bpf modules; without, it said: {source}"
    )]
    Unsupported {
        /// Index of the interface.
        interface: u32,
        /// What the older way returned.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("there is no interface with index {interface}")]
    NoInterface {
        /// The index that was given.
        interface: u32,
    },
    /// Anything else.
    #[error("cannot attach a program at ingress of interface {interface}: {source}")]
    System {
        /// Index of the interface.
        interface: u32,
        /// What the call returned.
        source: io::Error,
    },
}

/// A program at the ingress of an interface; dropping it detaches the program.
#[derive(Debug)]
pub struct IngressProgram {
    attachment: Attachment,
}

#[derive(Debug)]
enum Attachment {
    /// Held for its `Drop`.
    Link(#[expect(dead_code, reason = "closing the descriptor detaches the program")] OwnedFd),
    Filter {
        interface: u32,
    },
}

impl IngressProgram {
    /// Attaches a [`bpf::ProgramKind::Classifier`] before all other programs at ingress of the interface with this index.
    ///
    /// # Errors
    /// A [`TcError`] says what is missing.
    pub fn attach(interface: u32, program: &Program) -> Result<Self, TcError> {
        match link(interface, program) {
            Ok(link) => Ok(Self { attachment: Attachment::Link(link) }),
            // A kernel before 6.6 does not know this kind of link.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                Self::attach_filter(interface, program)
            }
            Err(error) => Err(attach_error(interface, error)),
        }
    }

    /// Attaches by the older way.
    fn attach_filter(interface: u32, program: &Program) -> Result<Self, TcError> {
        let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        match RtnetlinkRequest::new(libc::RTM_NEWQDISC, create, interface, CLSACT_HANDLE, CLSACT, 0)
            .attribute(KIND, b"clsact\0")
            .send()
        {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(filter_error(interface, error));
            }
            _ => {}
        }
        let descriptor = program.as_fd().as_raw_fd() as u32;
        let mut options = Vec::new();
        put_attribute(&mut options, BPF_DESCRIPTOR, &descriptor.to_ne_bytes());
        put_attribute(&mut options, BPF_NAME, FILTER_NAME);
        put_attribute(&mut options, BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
        // Without NLM_F_EXCL: what an earlier process left behind is replaced.
        filter_request(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE as u16, interface)
            .attribute(KIND, b"bpf\0")
            .attribute(OPTIONS, &options)
            .send()
            .map_err(|error| filter_error(interface, error))?;
        Ok(Self { attachment: Attachment::Filter { interface } })
    }

    /// Whether the kernel itself detaches the program when the process ends. If not, it is a change of the host that has to be
    /// undone after a crash.
    #[must_use]
    pub const fn ends_with_process(&self) -> bool {
        matches!(self.attachment, Attachment::Link(_))
    }
}

impl Drop for IngressProgram {
    fn drop(&mut self) {
        if let Attachment::Filter { interface } = self.attachment {
            // Fails only if the filter or the interface is gone already, which is what is wanted.
            let _ = detach_leftover(interface);
        }
    }
}

/// Removes the filter that a killed process left at ingress of an interface on a kernel without TCX; false if there was none.
/// The `clsact` discipline stays, since others may use it.
///
/// # Errors
/// What rtnetlink said.
pub fn detach_leftover(interface: u32) -> io::Result<bool> {
    match filter_request(libc::RTM_DELTFILTER, 0, interface).attribute(KIND, b"bpf\0").send() {
        Ok(()) => Ok(true),
        // No such filter, no such discipline, no such interface.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    zero: u32,
    expected_revision: u64,
}
// SAFETY: six words, then one double word on its boundary: no padding, no pointers.
unsafe impl bpf::Attributes for LinkCreate {}

fn link(interface: u32, program: &Program) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        prog_fd: program.as_fd().as_raw_fd() as u32,
        target_ifindex: interface,
        attach_type: TCX_INGRESS,
        flags: BEFORE,
        relative_fd: 0,
        zero: 0,
        expected_revision: 0,
    };
    bpf::bpf(LINK_CREATE, &mut attributes).map(bpf::owned)
}

fn attach_error(interface: u32, source: io::Error) -> TcError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            BpfError::NotPermitted { operation: format!("attach a program at ingress of interface {interface}") }.into()
        }
        Some(libc::ENODEV) => TcError::NoInterface { interface },
        _ => TcError::System { interface, source },
    }
}

fn filter_error(interface: u32, source: io::Error) -> TcError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => TcError::Unsupported { interface, source },
        _ => attach_error(interface, source),
    }
}

/// A request about Postern's filter.
fn filter_request(message_type: u16, flags: u16, interface: u32) -> RtnetlinkRequest {
    let all_protocols = (libc::ETH_P_ALL as u16).to_be();
    let info = u32::from(FILTER_PREFERENCE) << 16 | u32::from(all_protocols);
    RtnetlinkRequest::new(message_type, flags, interface, FILTER_HANDLE, CLSACT_INGRESS, info)
}

/// One rtnetlink message: `struct nlmsghdr` (16 bytes), `struct tcmsg` (20), attributes.
struct RtnetlinkRequest {
    bytes: Vec<u8>,
}

impl RtnetlinkRequest {
    fn new(message_type: u16, flags: u16, interface: u32, handle: u32, parent: u32, info: u32) -> Self {
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(message_type.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence number and port are not needed by a socket that is used once; family unspecified.
        bytes.extend([0; 12]);
        for word in [interface, handle, parent, info] {
            bytes.extend(word.to_ne_bytes());
        }
        Self { bytes }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        put_attribute(&mut self.bytes, kind, value);
        self
    }

    /// Sends the request and waits for the acknowledgement.
    fn send(mut self) -> io::Result<()> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let protocol = socket2::Protocol::from(libc::NETLINK_ROUTE);
        let mut socket =
            socket2::Socket::new(socket2::Domain::from(libc::AF_NETLINK), socket2::Type::RAW, Some(protocol))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(&self.bytes)?;
        let mut reply = [0; 4096];
        let length = socket.read(&mut reply)?;
        let reply = &reply[..length];
        // `struct nlmsgerr` behind the header: an errno, negated, or 0.
        let message_type = reply.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        let error = reply.get(16..20).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        match (message_type, error) {
            (Some(kind), Some(0)) if i32::from(kind) == libc::NLMSG_ERROR => Ok(()),
            (Some(kind), Some(error)) if i32::from(kind) == libc::NLMSG_ERROR => {
                Err(io::Error::from_raw_os_error(-error))
            }
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

/// Appends a netlink attribute: length and kind (2 + 2 bytes), value, padding to four bytes.
fn put_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::bpf::ProgramKind;

    /// `r0 = 2 (TC_ACT_SHOT); exit`.
    const SHOOT: [bpf::Instruction; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    /// Index of the loopback interface of every network namespace.
    const LOOPBACK: u32 = 1;

    /// Runs `test` in a network namespace of its own with the loopback interface up, or says why not.
    fn in_namespace(test: impl FnOnce(Program) + Send + 'static) {
        let thread = std::thread::spawn(move || {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                println!("skipped: cannot make a network namespace: {error}");
                return;
            }
            let shoot = match Program::load(ProgramKind::Classifier, "shoot", &SHOOT, &[]) {
                Err(error) if error.is_not_permitted() => return println!("skipped: {error}"),
                result => result.unwrap(),
            };
            loopback_up();
            test(shoot);
        });
        thread.join().unwrap();
    }

    /// RTM_NEWLINK of `struct ifinfomsg` with IFF_UP, which has the size and the index at the place of `struct tcmsg`'s first
    /// fields.
    fn loopback_up() {
        let up = libc::IFF_UP as u32;
        let mut request = RtnetlinkRequest::new(libc::RTM_NEWLINK, 0, LOOPBACK, up, up, 0);
        request.bytes.truncate(32);
        request.send().unwrap();
    }

    fn arrives() -> bool {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut [0; 1]).is_ok()
    }

    #[test]
    fn an_attached_program_takes_frames_from_the_host_until_it_is_dropped() {
        in_namespace(|shoot| {
            assert!(arrives());
            let attached = IngressProgram::attach(LOOPBACK, &shoot).unwrap();
            assert!(!arrives());
            drop(attached);
            assert!(arrives());
            let error = IngressProgram::attach(77, &shoot).unwrap_err();
            assert!(matches!(error, TcError::NoInterface { interface: 77 }), "{error}");
        });
    }

    #[test]
    fn on_an_older_kernel_a_filter_does_the_same_and_one_left_behind_is_replaced_or_removed() {
        in_namespace(|shoot| {
            assert!(!detach_leftover(LOOPBACK).unwrap());
            match IngressProgram::attach_filter(LOOPBACK, &shoot) {
                Err(error @ TcError::Unsupported { .. }) => return println!("skipped: {error}"),
                result => std::mem::forget(result.unwrap()),
            }
            assert!(!arrives());
            let attached = IngressProgram::attach_filter(LOOPBACK, &shoot).unwrap();
            assert!(!attached.ends_with_process());
            assert!(!arrives());
            drop(attached);
            assert!(arrives());
            std::mem::forget(IngressProgram::attach_filter(LOOPBACK, &shoot).unwrap());
            assert!(detach_leftover(LOOPBACK).unwrap());
            assert!(!detach_leftover(LOOPBACK).unwrap());
            assert!(arrives());
        });
    }
}

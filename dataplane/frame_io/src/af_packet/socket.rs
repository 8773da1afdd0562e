//! A packet socket and its options.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, socklen_t};
use nix::errno::Errno;

use super::fanout::PacketFanout;
use crate::device::DeviceError;
use crate::interface::Interface;

/// What a receiving socket lets in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intake<'p> {
    /// Unicast frames for other stations too.
    pub(crate) promiscuous: bool,
    /// As a member of this fan-out group.
    pub(crate) fanout: Option<PacketFanout<'p>>,
    /// What this program accepts.
    pub(crate) filter: Option<BorrowedFd<'p>>,
}

/// How long a full send buffer is waited for, at most once in a call of `transmit`, in nanoseconds.
const WAIT: i64 = 200_000;

/// A packet socket, and the interface that it is for.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    interface: String,
}

impl PacketSocket {
    /// A raw, non-blocking socket that receives nothing until it is bound to a protocol.
    pub(crate) fn open(interface: &str) -> Result<Self, DeviceError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: needed to make a system call; sound because no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        let fd = Errno::result(fd).map_err(|e| DeviceError::operation(interface, "open a packet socket", e))?;
        // SAFETY: needed to own the descriptor; sound because the kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, interface: interface.to_owned() })
    }

    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    pub(crate) fn error(&self, operation: &'static str, source: Errno) -> DeviceError {
        DeviceError::operation(&self.interface, operation, source)
    }

    /// Sets an option whose value is a plain kernel structure.
    pub(crate) fn set<T: Copy>(
        &self,
        level: c_int,
        option: c_int,
        value: &T,
        operation: &'static str,
    ) -> Result<(), DeviceError> {
        let length = size_of::<T>() as socklen_t;
        let value: *const T = value;
        // SAFETY: needed to make a system call; sound because the kernel reads `length` bytes of `value`, which is that
        // large, and keeps no pointer.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, value.cast::<c_void>(), length) };
        Errno::result(result).map(drop).map_err(|e| self.error(operation, e))
    }

    /// Sets a packet option.
    pub(crate) fn set_packet<T: Copy>(
        &self,
        option: c_int,
        value: &T,
        operation: &'static str,
    ) -> Result<(), DeviceError> {
        self.set(libc::SOL_PACKET, option, value, operation)
    }

    /// Reads an option into a plain kernel structure of which every bit pattern is a value.
    fn read<T: Plain>(&self, level: c_int, option: c_int) -> Result<T, Errno> {
        let mut value = T::ZERO;
        let mut length = size_of::<T>() as socklen_t;
        let target: *mut T = &raw mut value;
        // SAFETY: needed to make a system call; sound because the kernel writes at most `length` bytes, and every bit
        // pattern is a `T` (`Plain`).
        let result =
            unsafe { libc::getsockopt(self.fd.as_raw_fd(), level, option, target.cast::<c_void>(), &raw mut length) };
        Errno::result(result).map(|_| value)
    }

    /// Frames dropped for want of a free slot since the last call: reading clears the kernel's count.
    pub(crate) fn new_drops(&self) -> Result<u32, Errno> {
        self.read::<libc::tpacket_stats>(libc::SOL_PACKET, libc::PACKET_STATISTICS)
            .map(|statistics| statistics.tp_drops)
    }

    /// The error that the kernel keeps for this socket (the interface went down), which reading clears.
    pub(crate) fn take_error(&self) -> Option<Errno> {
        match self.read::<c_int>(libc::SOL_SOCKET, libc::SO_ERROR) {
            Ok(0) => None,
            Ok(error) => Some(Errno::from_raw(error)),
            Err(error) => Some(error),
        }
    }

    /// The index of the interface to which the socket is bound; `None` after that interface was deleted.
    pub(crate) fn bound_interface(&self) -> Option<u32> {
        let mut address = link_address(0, 0);
        let mut length = size_of::<libc::sockaddr_ll>() as socklen_t;
        let target: *mut libc::sockaddr_ll = &raw mut address;
        // SAFETY: needed to make a system call; sound because the kernel writes at most `length` bytes of integers.
        let result =
            unsafe { libc::getsockname(self.fd.as_raw_fd(), target.cast::<libc::sockaddr>(), &raw mut length) };
        Errno::result(result).ok()?;
        u32::try_from(address.sll_ifindex).ok().filter(|index| *index != 0)
    }

    /// Sets how many bytes may wait in the socket's receive queue, beyond the system's limit where that is allowed (in a user
    /// namespace it is not).
    pub(crate) fn set_receive_buffer(&self, bytes: u32) -> Result<(), DeviceError> {
        self.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes, "set the receive buffer")
    }

    /// Sets how many bytes may wait to be sent, as [`PacketSocket::set_receive_buffer`].
    pub(crate) fn set_send_buffer(&self, bytes: u32) -> Result<(), DeviceError> {
        self.set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, bytes, "set the send buffer")
    }

    fn set_buffer(
        &self,
        force: c_int,
        within_limit: c_int,
        bytes: u32,
        operation: &'static str,
    ) -> Result<(), DeviceError> {
        // The kernel doubles what it is given and counts its own overhead against it (socket(7)).
        let bytes = (bytes / 2).min(i32::MAX as u32 / 2) as c_int;
        self.set(libc::SOL_SOCKET, force, &bytes, operation)
            .or_else(|_| self.set(libc::SOL_SOCKET, within_limit, &bytes, operation))
    }

    /// Begins to receive: no frame comes in before the socket has joined its group and has its filter, for it would be
    /// somebody else's.
    pub(crate) fn start(&self, interface: &Interface, intake: &Intake<'_>) -> Result<(), DeviceError> {
        self.reject_all()?;
        self.bind(interface.index(), libc::ETH_P_ALL)?;
        if intake.promiscuous {
            self.set_promiscuous(interface.index())?;
        }
        if let Some(fanout) = &intake.fanout {
            fanout.join(self)?;
        }
        self.accept(intake.filter)
    }

    /// What an error of receiving means for the device.
    pub(crate) fn receive_error(&self, error: Errno) -> DeviceError {
        match error {
            // An interface that is deleted goes down first; from then on the socket is bound to none.
            Errno::ENETDOWN if self.bound_interface().is_some() => DeviceError::Down(self.interface.clone()),
            Errno::ENETDOWN => DeviceError::Gone(self.interface.clone()),
            error => self.error("receive", error),
        }
    }

    /// Waits a moment for room in the send buffer. What came of it does not matter: what was refused is tried once more in
    /// any case.
    pub(crate) fn wait_for_room(&self) {
        let mut entry = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: WAIT };
        // SAFETY: needed to make a system call; sound because both pointers are to live values, and the count is one.
        unsafe { libc::ppoll(&raw mut entry, 1, &raw const timeout, std::ptr::null()) };
    }

    /// Lets no frame in, until [`PacketSocket::accept`].
    fn reject_all(&self) -> Result<(), DeviceError> {
        // BPF_RET | BPF_K, 0
        let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
        let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter, "close the socket's filter")
    }

    /// Lets in what `filter` (a loaded BPF_PROG_TYPE_SOCKET_FILTER) accepts, or everything.
    fn accept(&self, filter: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        match filter {
            Some(program) => {
                self.set(libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &program.as_raw_fd(), "attach the socket filter")
            }
            None => self.set(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32, "open the socket's filter"),
        }
    }

    /// Receives foreign unicast frames too. The kernel ends it with the socket.
    fn set_promiscuous(&self, interface_index: u32) -> Result<(), DeviceError> {
        let membership = libc::packet_mreq {
            mr_ifindex: interface_index as c_int,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set_packet(libc::PACKET_ADD_MEMBERSHIP, &membership, "enter promiscuous mode")
    }

    /// Binds to an interface; protocol 0 receives nothing.
    pub(crate) fn bind(&self, interface_index: u32, protocol: c_int) -> Result<(), DeviceError> {
        let address = link_address(interface_index, protocol);
        let length = size_of_val(&address) as socklen_t;
        let pointer: *const libc::sockaddr_ll = &raw const address;
        // SAFETY: needed to make a system call; sound because the kernel reads `length` bytes of `address`.
        let result = unsafe { libc::bind(self.fd.as_raw_fd(), pointer.cast::<libc::sockaddr>(), length) };
        Errno::result(result).map(drop).map_err(|e| self.error("bind a packet socket", e))
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> c_int {
        self.fd.as_raw_fd()
    }
}

fn link_address(interface_index: u32, protocol: c_int) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (protocol as u16).to_be(),
        sll_ifindex: interface_index as c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Kernel structures made of integers only: every bit pattern is a value.
trait Plain: Copy {
    const ZERO: Self;
}

impl Plain for c_int {
    const ZERO: Self = 0;
}

impl Plain for libc::tpacket_stats {
    const ZERO: Self = Self { tp_packets: 0, tp_drops: 0 };
}

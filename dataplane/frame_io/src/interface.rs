//! Interfaces of the current network namespace: what a device and the role must know of them, and what may be changed.

use std::ffi::CString;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use postern_wire::MacAddress;

use crate::device::DeviceError;

/// An interface as it was when it was looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    name: String,
    index: u32,
    mac: MacAddress,
    mtu: u32,
    up: bool,
    running: bool,
}

impl Interface {
    /// Looks an interface of the calling thread's network namespace up.
    ///
    /// # Errors
    /// [`DeviceError::NoInterface`] if there is none of this name.
    pub fn by_name(name: &str) -> Result<Self, DeviceError> {
        let requests = Requests::open(name)?;
        let index = requests.read(libc::SIOCGIFINDEX, "look up")?;
        let mtu = requests.read(libc::SIOCGIFMTU, "read the MTU")?;
        let flags = requests.read(libc::SIOCGIFFLAGS, "read the flags")?;
        let hardware = requests.read(libc::SIOCGIFHWADDR, "read the MAC address")?;
        // SAFETY: needed because the answer is a union; sound because each field is the one that its request fills in, and
        // all are integers.
        let (index, mtu, flags, hardware) =
            unsafe { (index.ifru_ifindex, mtu.ifru_mtu, flags.ifru_flags, hardware.ifru_hwaddr.sa_data) };
        let mac = std::array::from_fn(|at| hardware[at] as u8);
        let flags = i32::from(flags);
        Ok(Self {
            name: name.to_owned(),
            index: index as u32,
            mac: MacAddress(mac),
            mtu: mtu as u32,
            up: flags & libc::IFF_UP != 0,
            running: flags & libc::IFF_RUNNING != 0,
        })
    }

    /// Looks it up again, by name: the successor of a deleted interface has another index.
    ///
    /// # Errors
    /// As [`Interface::by_name`].
    pub fn refresh(&self) -> Result<Self, DeviceError> {
        Self::by_name(&self.name)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index in the network namespace, from 1.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Its MAC address.
    #[must_use]
    pub const fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Its MTU: the largest IP packet, in bytes.
    #[must_use]
    pub const fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Whether it is switched on (`IFF_UP`).
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// Whether it has a carrier (`IFF_RUNNING`).
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.running
    }
}

/// Interface requests (netdevice(7)) by name.
pub(crate) struct Requests<'n> {
    socket: OwnedFd,
    name: &'n str,
    terminated: CString,
}

impl<'n> Requests<'n> {
    pub(crate) fn open(name: &'n str) -> Result<Self, DeviceError> {
        let terminated = CString::new(name).ok().filter(|name| (1..libc::IFNAMSIZ).contains(&name.count_bytes()));
        let terminated = terminated.ok_or_else(|| DeviceError::NoInterface(name.to_owned()))?;
        // SAFETY: needed to make a system call; sound because no memory is passed.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        let socket = Errno::result(socket).map_err(|e| DeviceError::operation(name, "open a socket", e))?;
        // SAFETY: needed to own the descriptor; sound because the kernel has just made it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Self { socket, name, terminated })
    }

    fn read(
        &self,
        request: libc::c_ulong,
        operation: &'static str,
    ) -> Result<libc::__c_anonymous_ifr_ifru, DeviceError> {
        let mut argument = self.request();
        // SAFETY: needed to make a system call; sound because the requests that are given here write at most one `ifreq`.
        unsafe { self.call(request, &mut argument) }.map_err(|e| self.error(operation, e))?;
        Ok(argument.ifr_ifru)
    }

    /// A request for this interface, otherwise zero.
    pub(crate) fn request(&self) -> libc::ifreq {
        // SAFETY: needed because a union cannot be written out; sound because zeros are an `ifreq`: integers, and pointers
        // that may be null.
        let mut argument: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in argument.ifr_name.iter_mut().zip(self.terminated.as_bytes()) {
            *to = *from as libc::c_char;
        }
        argument
    }

    /// # Safety
    /// The kernel may do to `argument`, and to what it points to, what `request` says.
    pub(crate) unsafe fn call(&self, request: libc::c_ulong, argument: &mut libc::ifreq) -> Result<(), Errno> {
        let argument: *mut libc::ifreq = argument;
        // SAFETY: needed to make a system call; sound by this function's own condition.
        Errno::result(unsafe { libc::ioctl(self.socket.as_raw_fd(), request, argument) }).map(drop)
    }

    pub(crate) fn error(&self, operation: &'static str, source: Errno) -> DeviceError {
        match source {
            Errno::ENODEV => DeviceError::NoInterface(self.name.to_owned()),
            source => DeviceError::operation(self.name, operation, source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_a_missing_interface_is_named() {
        let loopback = Interface::by_name("lo").unwrap();
        assert!(loopback.index() > 0);
        assert!(loopback.mtu() >= 1500);
        assert_eq!(loopback.mac(), MacAddress::ZERO);
        assert_eq!(loopback.refresh().unwrap(), loopback);
        for name in ["postern-none", "", "a-name-that-is-too-long", "nul\0"] {
            let error = Interface::by_name(name).unwrap_err();
            assert_eq!(error.to_string(), format!("there is no interface \"{name}\" in this network namespace"));
        }
    }
}

//! As much of rtnetlink(7) as a test needs to make its own links.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const ACK: u16 = 0x4 | 0x1;
const CREATE: u16 = 0x400 | 0x200;
const NESTED: u16 = 0x8000;

/// A request: `nlmsghdr`, a fixed part, attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | ACK).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// An attribute made of a fixed part and attributes.
    fn nested(mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self = fill(self.attribute(kind | NESTED, fixed));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn send(mut self) -> Result<(), Errno> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = SockFlag::SOCK_CLOEXEC;
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        send(netlink.as_raw_fd(), &self.0, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // nlmsgerr: the errno, negative, behind the header.
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            error => Err(Errno::from_raw(-error)),
        }
    }
}

/// `ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// Makes a veth pair: `name` here, `peer` in another network namespace.
pub(crate) fn add_veth(name: &str, peer: &str, namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    let (newlink, ifname, net_ns_fd) = (16, 3, 28);
    let (linkinfo, info_kind, info_data, veth_peer) = (18, 1, 2, 1);
    Request::new(newlink, CREATE, &link(0, 0, 0))
        .attribute(ifname, name.as_bytes())
        .nested(linkinfo, &[], |request| {
            request.attribute(info_kind, b"veth").nested(info_data, &[], |request| {
                request.nested(veth_peer, &link(0, 0, 0), |request| {
                    request
                        .attribute(ifname, peer.as_bytes())
                        .attribute(net_ns_fd, &namespace.as_raw_fd().to_ne_bytes())
                })
            })
        })
        .send()
}

/// Deletes a link; of a veth pair both ends go.
pub(crate) fn delete_link(index: u32) -> Result<(), Errno> {
    Request::new(17, 0, &link(index, 0, 0)).send()
}

/// Switches a link on or off.
pub(crate) fn set_up(index: u32, up: bool) -> Result<(), Errno> {
    Request::new(16, 0, &link(index, u32::from(up), 1)).send()
}

/// Gives a link an address in a network of 24 bits.
pub(crate) fn add_address(index: u32, address: Ipv4Addr) -> Result<(), Errno> {
    let mut fixed = [libc::AF_INET as u8, 24, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    Request::new(20, CREATE, &fixed).attribute(2, &address.octets()).attribute(1, &address.octets()).send()
}

/// Lets a link send `bytes_per_second` only, after a burst of 2,000 bytes; frames beyond `limit` bytes that wait are dropped
/// (tc-tbf(8), `struct tc_tbf_qopt` of linux/pkt_sched.h).
pub(crate) fn slow_down(index: u32, bytes_per_second: u32, limit: u32) -> Result<(), Errno> {
    let (newqdisc, kind, options, parameters, burst) = (36, 1, 2, 1, 6);
    let root = u32::MAX;
    let mut fixed = [0; 20];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[12..16].copy_from_slice(&root.to_ne_bytes());
    // Two rates of 12 bytes, the rate itself last; limit; buffer and MTU, which `burst` replaces.
    let mut rates = [0; 36];
    rates[1] = 1; // TC_LINKLAYER_ETHERNET
    rates[8..12].copy_from_slice(&bytes_per_second.to_ne_bytes());
    rates[24..28].copy_from_slice(&limit.to_ne_bytes());
    let fill = |request: Request| request.attribute(parameters, &rates).attribute(burst, &2000u32.to_ne_bytes());
    Request::new(newqdisc, CREATE, &fixed).attribute(kind, b"tbf\0").nested(options, &[], fill).send()
}

/// Takes away what [`slow_down`] has set: what waits is dropped.
pub(crate) fn full_speed(index: u32) -> Result<(), Errno> {
    let mut fixed = [0; 20];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
    Request::new(37, 0, &fixed).send()
}

//! Offload switches of an interface, by the kernel's ethtool netlink family (Documentation/networking/ethtool-netlink).

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

use crate::interface::Interface;
use crate::namespace::NamespaceError;

/// What an interface may do on behalf of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Transmit checksums: off, the stack finishes each checksum itself.
    TransmitChecksum,
    /// TCP segmentation (TSO): on, the stack hands over TCP super-frames.
    TcpSegmentation,
    /// UDP segmentation (USO) for `UDP_SEGMENT` senders.
    UdpSegmentation,
    /// Segmentation in the stack just before the device (GSO).
    GenericSegmentation,
    /// Joining received segments (GRO).
    GenericReceive,
    /// Joining received UDP datagrams for forwarding.
    UdpReceiveForwarding,
}

impl Offload {
    /// All that belong to sending.
    pub const TRANSMIT: [Self; 4] =
        [Self::TransmitChecksum, Self::TcpSegmentation, Self::UdpSegmentation, Self::GenericSegmentation];

    /// The kernel's feature names (net/ethtool/common.c).
    const fn features(self) -> &'static [&'static str] {
        match self {
            Self::TransmitChecksum => &["tx-checksum-ip-generic"],
            Self::TcpSegmentation => &["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation"],
            Self::UdpSegmentation => &["tx-udp-segmentation"],
            Self::GenericSegmentation => &["tx-generic-segmentation"],
            Self::GenericReceive => &["rx-gro"],
            Self::UdpReceiveForwarding => &["rx-udp-gro-forwarding"],
        }
    }
}

/// What can go wrong with an offload switch.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// The conversation with the kernel failed.
    #[error("cannot use ethtool netlink for {interface}: {source} (needs Linux 5.6 or newer and CAP_NET_ADMIN)")]
    Netlink {
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The interface did not do as asked.
    #[error("{interface} keeps {feature} {state}")]
    Refused {
        /// The interface.
        interface: String,
        /// The kernel's feature name.
        feature: &'static str,
        /// `on` or `off`.
        state: &'static str,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

impl Interface {
    /// Switches offloads on or off, and checks that the interface obeyed.
    pub fn set_offloads(&self, offloads: &[Offload], on: bool) -> Result<(), OffloadError> {
        let features: Vec<&'static str> = offloads.iter().flat_map(|offload| offload.features()).copied().collect();
        let active = self.ethtool(|ethtool| {
            ethtool.set_features(self.name(), &features, on)?;
            ethtool.active_features(self.name())
        })?;
        match features.into_iter().find(|feature| active.iter().any(|name| name == feature) != on) {
            None => Ok(()),
            Some(feature) => {
                let state = if on { "off" } else { "on" };
                Err(OffloadError::Refused { interface: self.name().to_owned(), feature, state })
            }
        }
    }

    /// Whether an offload is on (for several features of one name: all of them).
    pub fn offload(&self, offload: Offload) -> Result<bool, OffloadError> {
        let active = self.ethtool(|ethtool| ethtool.active_features(self.name()))?;
        Ok(offload.features().iter().all(|feature| active.iter().any(|name| name == feature)))
    }

    fn ethtool<T: Send>(&self, work: impl FnOnce(&mut Ethtool) -> io::Result<T> + Send) -> Result<T, OffloadError> {
        let outcome = self.namespace().run(|| work(&mut Ethtool::open()?))?;
        outcome.map_err(|source| OffloadError::Netlink { interface: self.name().to_owned(), source })
    }
}

const GENL_CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;
const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLMSG_ERROR: u16 = 2;
const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;

/// A generic netlink socket and the number of the ethtool family.
struct Ethtool {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl Ethtool {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(nix::libc::NETLINK_GENERIC as isize)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut ethtool = Self { socket, family: GENL_CONTROLLER, sequence: 0 };
        let mut name = Vec::new();
        attribute(&mut name, CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
        let answer = ethtool.request(CTRL_CMD_GETFAMILY, 1, &name)?;
        let found = attributes(&answer).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
        let id = found.and_then(|(_, value)| Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?)));
        ethtool.family = id.ok_or(io::ErrorKind::Unsupported)?;
        Ok(ethtool)
    }

    fn set_features(&mut self, interface: &str, names: &[&str], on: bool) -> io::Result<()> {
        let mut bits = Vec::new();
        for name in names {
            let mut bit = Vec::new();
            attribute(&mut bit, ETHTOOL_A_BITSET_BIT_NAME, &terminated(name));
            if on {
                attribute(&mut bit, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
            }
            nested(&mut bits, ETHTOOL_A_BITSET_BITS_BIT, &bit);
        }
        let mut bitset = Vec::new();
        nested(&mut bitset, ETHTOOL_A_BITSET_BITS, &bits);
        let mut body = header(interface);
        nested(&mut body, ETHTOOL_A_FEATURES_WANTED, &bitset);
        self.request(ETHTOOL_MSG_FEATURES_SET, 1, &body).map(drop)
    }

    /// Names of the features that are on.
    fn active_features(&mut self, interface: &str) -> io::Result<Vec<String>> {
        let answer = self.request(ETHTOOL_MSG_FEATURES_GET, 1, &header(interface))?;
        let mut names = Vec::new();
        for (_, bitset) in attributes(&answer).filter(|(kind, _)| *kind == ETHTOOL_A_FEATURES_ACTIVE) {
            for (_, bits) in attributes(bitset).filter(|(kind, _)| *kind == ETHTOOL_A_BITSET_BITS) {
                for (_, bit) in attributes(bits) {
                    let name = attributes(bit).find(|(kind, _)| *kind == ETHTOOL_A_BITSET_BIT_NAME);
                    if let Some((_, name)) = name {
                        names.push(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
                    }
                }
            }
        }
        Ok(names)
    }

    /// Sends one command and returns the attributes of its answer: those of the data message if there is one.
    fn request(&mut self, command: u8, version: u8, body: &[u8]) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        let length = (NLMSG_HEADER + GENL_HEADER + body.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&self.family.to_ne_bytes());
        message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&[command, version, 0, 0]);
        message.extend_from_slice(body);
        self.socket.send(&message, 0)?;
        let mut answer = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some((kind, sequence, payload, next)) = split_message(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                if kind == NLMSG_ERROR {
                    let code = payload.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return if code == 0 { Ok(answer) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                answer = payload.get(GENL_HEADER..).unwrap_or_default().to_vec();
            }
        }
    }
}

fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let payload = bytes.get(NLMSG_HEADER..length)?;
    Some((kind, sequence, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn header(interface: &str) -> Vec<u8> {
    let mut name = Vec::new();
    attribute(&mut name, ETHTOOL_A_HEADER_DEV_NAME, &terminated(interface));
    let mut body = Vec::new();
    nested(&mut body, ETHTOOL_A_FEATURES_HEADER, &name);
    body
}

fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Appends a netlink attribute: length, kind, value, padding to 4 bytes.
fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn nested(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    const NLA_F_NESTED: u16 = 0x8000;
    attribute(to, kind | NLA_F_NESTED, value);
}

/// Attributes with the flag bits of their kind removed; stops at the first that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

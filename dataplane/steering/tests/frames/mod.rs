//! Random frames that reach every branch: the kinds of packets that a gateway meets, and damaged ones.
#![allow(dead_code, unreachable_pub, reason = "shared by tests that each use a part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use postern_steering::{LocalAddresses, LocalKind};

/// Addresses that the frames use. The first four are local on some VLAN.
const ADDRESSES: [[u8; 4]; 6] =
    [[10, 0, 0, 10], [10, 0, 0, 11], [10, 9, 0, 5], [10, 9, 0, 6], [10, 0, 0, 99], [8, 8, 8, 8]];

/// The local addresses that the programs are tried with: some on several VLANs, with different meanings.
pub fn addresses() -> LocalAddresses {
    use LocalKind::{Endpoint, Snat};
    local(&[
        (0, 0, Endpoint),
        (0, 1, Endpoint),
        (0, 2, Snat),
        (0, 3, Snat),
        (7, 0, Snat),
        (7, 2, Endpoint),
        (94, 1, Snat),
    ])
}

/// The addresses after a change: some gone, some with another meaning, some new.
pub fn other_addresses() -> LocalAddresses {
    use LocalKind::{Endpoint, Snat};
    local(&[(0, 0, Snat), (0, 2, Endpoint), (0, 3, Snat), (0, 4, Snat), (7, 0, Snat), (9, 5, Endpoint)])
}

fn local(list: &[(u16, usize, LocalKind)]) -> LocalAddresses {
    let narrow = list.iter().map(|&(vlan, at, kind)| (vlan, IpAddr::V4(Ipv4Addr::from_octets(ADDRESSES[at])), kind));
    let wide = list.iter().map(|&(vlan, at, kind)| (vlan, IpAddr::V6(wide(ADDRESSES[at])), kind));
    narrow.chain(wide).collect()
}

/// The IPv6 address that goes with one of [`ADDRESSES`]: all its bytes count in it.
fn wide([a, b, c, d]: [u8; 4]) -> Ipv6Addr {
    Ipv6Addr::from_octets([0x20, 1, 0xd, 0xb8, a, b, 1, 2, c, 0, 3, 4, 5, a ^ d, 0, d])
}

/// A TCP frame to an endpoint.
pub fn tcp_to_endpoint() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend([8, 0, 0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 99, 10, 0, 0, 10]);
    frame.extend([0x9c, 0x40, 1, 0xbb]);
    frame.resize(60, 0);
    frame
}

/// A source of frames. The same seed gives the same frames.
pub struct Frames {
    state: u64,
    frame: Vec<u8>,
}

impl Frames {
    /// A source with this seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed, frame: Vec::new() }
    }

    /// The next frame. Never shorter than an Ethernet header.
    pub fn next_frame(&mut self) -> &[u8] {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        match self.below(8) {
            0 | 1 => {
                let vlan = [0, 7, 7, 94, 9][self.below(5)];
                let priority = (self.below(16) as u16) << 12;
                frame.extend([0x81, 0]);
                frame.extend((priority | vlan).to_be_bytes());
            }
            2 if self.below(8) == 0 => frame.extend([0x88, 0xa8, 0, 7]),
            _ => {}
        }
        match self.below(16) {
            0 => self.put_random_type(&mut frame),
            1 => self.put_arp(&mut frame),
            2..=7 => {
                frame.extend([0x86, 0xdd]);
                self.put_ipv6(&mut frame, true);
            }
            _ => {
                frame.extend([8, 0]);
                self.put_ipv4(&mut frame, true);
            }
        }
        match self.below(8) {
            // Cut anywhere behind the Ethernet header.
            0 => {
                let length = 14 + self.below(frame.len() - 13);
                frame.truncate(length);
            }
            1 => {
                let padding = self.below(24);
                frame.extend(std::iter::repeat_n(0, padding));
            }
            _ => {}
        }
        // A bit flipped anywhere behind the MAC addresses.
        if self.below(16) == 0 {
            let at = 12 + self.below(frame.len() - 12);
            frame[at] ^= 1 << self.below(8);
        }
        self.frame = frame;
        &self.frame
    }

    fn put_random_type(&mut self, frame: &mut Vec<u8>) {
        let ethertype: u16 = [0x86dd, 0x0800, 0x8100, 0x0806, 0x88cc, 60][self.below(6)];
        frame.extend(ethertype.to_be_bytes());
        for _ in 0..self.below(80) {
            frame.push(self.next() as u8);
        }
    }

    fn put_arp(&mut self, frame: &mut Vec<u8>) {
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + self.below(2) as u8]);
        frame.extend([2, 0, 0, 0, 0, 2]);
        frame.extend(self.address());
        frame.extend([0; 6]);
        frame.extend(self.address());
        if self.below(8) == 0 {
            // Damage a field of the fixed part.
            let at = frame.len() - 28 + self.below(8);
            frame[at] = self.next() as u8;
        }
    }

    /// An IPv4 packet; an ICMP error in an `outer` one quotes another.
    fn put_ipv4(&mut self, frame: &mut Vec<u8>, outer: bool) {
        let start = frame.len();
        let options = if self.below(8) == 0 { self.below(11) } else { 0 };
        let protocol = [6, 17, 6, 17, 1, 1, 47, self.next() as u8][self.below(8)];
        let fragment: u16 = match self.below(8) {
            0 => 0x2000,
            1 => self.next() as u16,
            // Neither offset nor more-fragments: only the two bits that do not make a fragment.
            _ => (self.below(4) as u16) << 14,
        };
        frame.extend([0x45 + options as u8, 0]);
        frame.extend((self.next() as u16 % 1500).to_be_bytes());
        frame.extend((self.next() as u16).to_be_bytes());
        frame.extend(fragment.to_be_bytes());
        frame.extend([self.next() as u8, protocol, 0, 0]);
        frame.extend(self.address());
        frame.extend(self.address());
        for _ in 0..options * 4 {
            frame.push(self.next() as u8);
        }
        if self.below(64) == 0 {
            // Another version or an impossible header length.
            frame[start] = self.next() as u8;
        }
        if protocol == 1 {
            let icmp_type = [3, 3, 4, 11, 12, 0, 8, self.next() as u8][self.below(8)];
            frame.extend([icmp_type, 0, 0, 0, 0, 0, 0, 0]);
            if outer {
                self.put_ipv4(frame, false);
            }
        } else {
            // Ports, and as much behind them as an ICMP error quotes at least.
            frame.extend(self.next().to_be_bytes());
        }
    }

    /// An IPv6 packet with up to ten extension headers; an ICMPv6 error in an `outer` one quotes another.
    fn put_ipv6(&mut self, frame: &mut Vec<u8>, outer: bool) {
        let start = frame.len();
        let protocol = [6, 17, 6, 17, 58, 58, 58, self.next() as u8][self.below(8)];
        let extensions = match self.below(8) {
            0 => self.below(11),
            1 | 2 => self.below(3),
            _ => 0,
        };
        let mut numbers: Vec<u8> = (0..extensions).map(|_| [0, 43, 44, 60][self.below(4)]).collect();
        numbers.push(protocol);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((self.next() as u16 % 1500).to_be_bytes());
        frame.extend([numbers[0], 255]);
        let (source, destination) = (self.address(), self.address());
        frame.extend(wide(source).octets());
        frame.extend(if self.below(6) == 0 {
            [[0xff, 2], [0, 1]].concat()
        } else {
            wide(destination).octets()[..4].to_vec()
        });
        frame.extend(&wide(destination).octets()[4..]);
        for pair in numbers.windows(2) {
            if pair[0] == 44 {
                let field = if self.below(2) == 0 { self.next() as u16 & 6 } else { self.next() as u16 };
                frame.extend([pair[1], 0]);
                frame.extend(field.to_be_bytes());
                frame.extend((self.next() as u32).to_be_bytes());
            } else {
                let length = [0, 0, 1, 2, self.below(40)][self.below(5)];
                frame.extend([pair[1], length as u8]);
                frame.extend((0..length * 8 + 6).map(|at| at as u8));
            }
        }
        if self.below(64) == 0 {
            frame[start] = self.next() as u8;
        }
        if protocol == 58 {
            match self.below(3) {
                0 if outer => {
                    frame.extend([1 + self.below(5) as u8, 0, 0, 0, 0, 0, 0, 0]);
                    self.put_ipv6(frame, false);
                }
                1 => {
                    frame.extend([[135, 136, 134][self.below(3)], 0, 0, 0, 0, 0, 0, 0]);
                    let target = self.address();
                    frame.extend(wide(target).octets());
                }
                _ => frame.extend([self.next() as u8, 0, 0, 0, 0, 0, 0, 0]),
            }
        } else {
            frame.extend(self.next().to_be_bytes());
        }
    }

    fn address(&mut self) -> [u8; 4] {
        match self.below(8) {
            0 => (self.next() as u32).to_be_bytes(),
            at => ADDRESSES[at % ADDRESSES.len()],
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// The next 64 random bits (SplitMix64).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }
}

//! Who takes a frame, Postern or the host: programs for the ports.
//!
//! On a port that both use, [`claimed`] on each of Postern's sockets lets only Postern's frames in, and
//! [`hide_claimed`] at tc ingress takes exactly those from the host. On a port of Postern's own, [`hide_everything`] at tc
//! ingress keeps every frame from the host, even from one that forwards. Packet sockets see a frame before tc does.
//! [`crate::LocalAddresses::claims`] is the same decision in Rust.

use postern_wire::icmpv6::{NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use postern_wire::ipv6;
use postern_wire::parse::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMPV6};

use crate::addresses::{ARP_FOR_IPV4, ARP_TARGET_ADDRESS, DISCOVERY_TARGET, IPV4_DESTINATION, IPV6_DESTINATION};
use crate::assembler::{Assembler, Condition, Label, Operation, Register, Width};
use crate::program::{ADDRESS_KEY, ADDRESS_KEY6, NetworkHeader, Program, SMALL, network_order};

use Condition::Different;
use Register::{Frame, R0, R7, R8, R9};

/// Result of a socket filter: the socket gets the whole frame.
pub const WHOLE_FRAME: u32 = u32::MAX;
/// Result of a socket filter: the socket does not get the frame.
pub const NO_FRAME: u32 = 0;
/// `TC_ACT_SHOT`: the host does not get the frame.
pub const SHOT: u32 = 2;
/// `TC_ACT_UNSPEC`, `TCX_NEXT`: the next program decides, at the end the host gets the frame.
pub const NEXT: u32 = u32::MAX;

/// Socket filter of a shared port (`BPF_PROG_TYPE_SOCKET_FILTER`, raw packet sockets): [`WHOLE_FRAME`] for what Postern
/// claims, else [`NO_FRAME`].
#[must_use]
pub fn claimed() -> Program {
    decide("postern_claimed", WHOLE_FRAME, NO_FRAME)
}

/// tc ingress program of a shared port (`BPF_PROG_TYPE_SCHED_CLS`): [`SHOT`] for what Postern claims, else [`NEXT`].
#[must_use]
pub fn hide_claimed() -> Program {
    decide("postern_hide", SHOT, NEXT)
}

/// tc ingress program of a port of Postern's own (`BPF_PROG_TYPE_SCHED_CLS`): [`SHOT`] for everything.
#[must_use]
pub fn hide_everything() -> Program {
    let mut code = Assembler::default();
    code.set(R0, SHOT as i32);
    code.exit();
    Program::new("postern_hide_all", code)
}

fn decide(name: &'static str, claimed: u32, other: u32) -> Program {
    let mut code = Assembler::default();
    let (hosts, arp, look_up) = (code.label(), code.label(), code.label());
    let (wide, other_destination, about_ours) = (code.label(), code.label(), code.label());
    code.read_ethernet(NetworkHeader::BehindEthernet, hosts);
    code.copy(R9, R0);
    code.jump_if(Condition::Equal, R9, network_order(ETHERTYPE_ARP), arp);
    code.jump_if(Condition::Equal, R9, network_order(ETHERTYPE_IPV6), wide);
    code.jump_if(Different, R9, network_order(ETHERTYPE_IPV4), hosts);
    code.read_address(IPV4_DESTINATION, hosts);
    code.jump(look_up);

    code.place(arp);
    for (at, field) in ARP_FOR_IPV4.chunks_exact(2).enumerate() {
        code.read_at(2 * at, SMALL, 2, hosts);
        code.load(Width::Half, R0, Frame, SMALL);
        code.jump_if(Different, R0, network_order(u16::from_be_bytes([field[0], field[1]])), hosts);
    }
    code.read_address(ARP_TARGET_ADDRESS, hosts);

    code.place(look_up);
    code.look_up_address(hosts);
    code.set(R0, claimed as i32);
    code.exit();

    code.place(wide);
    code.store(Width::Word, Frame, ADDRESS_KEY6, R8);
    code.read_at(IPV6_DESTINATION, ADDRESS_KEY6 + 4, 16, hosts);
    code.look_up_address6(other_destination);
    code.set(R0, claimed as i32);
    code.exit();

    code.place(other_destination);
    code.read_at(ipv6::NEXT_HEADER, SMALL, 1, hosts);
    code.load(Width::Byte, R0, Frame, SMALL);
    code.jump_if(Different, R0, i32::from(PROTOCOL_ICMPV6), hosts);
    code.read_at(ipv6::HEADER, SMALL, 1, hosts);
    code.load(Width::Byte, R0, Frame, SMALL);
    code.jump_if(Condition::Equal, R0, i32::from(NEIGHBOUR_SOLICITATION), about_ours);
    code.jump_if(Different, R0, i32::from(NEIGHBOUR_ADVERTISEMENT), hosts);
    code.place(about_ours);
    code.read_at(DISCOVERY_TARGET, ADDRESS_KEY6 + 4, 16, hosts);
    code.look_up_address6(hosts);
    code.set(R0, claimed as i32);
    code.exit();

    code.place(hosts);
    code.set(R0, other as i32);
    code.exit();
    Program::new(name, code)
}

impl Assembler {
    /// Copies the address at `at` of the network header to the address key.
    fn read_address(&mut self, at: usize, cut: Label) {
        self.read_at(at, ADDRESS_KEY + 4, 4, cut);
    }

    /// Copies `length` bytes at `at` of the network header to the stack. Destroys R9.
    fn read_at(&mut self, at: usize, to: i16, length: usize, cut: Label) {
        self.copy(R9, R7);
        self.operate_constant(Operation::Add, R9, at as i32);
        self.read(R9, to, length, cut);
    }
}

//! `owner(frame) → worker` in BPF instructions: step by step what [`crate::Steering::owner`] does.
//!
//! Packet bytes are read by `bpf_skb_load_bytes` at offsets from the start of the data, not relative to the network header
//! by `bpf_skb_load_bytes_relative`: that one sees only the linear part of a packet, and drivers may leave all but the
//! Ethernet header in pages until the IP layer pulls it (virtio_net does with large frames). Where the network header is
//! depends on the hook, which `NetworkHeader` names.

use postern_wire::ipv6;
use postern_wire::parse::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
};

use crate::addresses::LocalKind;
pub use crate::assembler::Instruction;
use crate::assembler::{Assembler, Condition, KernelFunction, Label, Operation, Register, Width};
use crate::maps::MapSlot;
use crate::owner::{EXTENSIONS, ICMP_ERRORS, ICMP_HEADER, ICMPV6_ERRORS, IPV4_HEADER, WORKER_OF_THE_REST};
use crate::ownership::{BLOCK_PORTS, BUCKETS, HASH_MULTIPLIERS, Ownership};

use Condition::{AnyBit, Different, Equal, Greater, Less};
use Operation::{Add, And, Multiply, Or, ShiftLeft, ShiftRight, Xor};
use Register::{Frame, R0, R1, R2, R3, R4, R6, R7, R8, R9};
use Width::{Byte, Double, Half, Word};

/// A program and the places in it that take maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Name, at most 15 characters.
    pub name: &'static str,
    /// The instructions.
    pub instructions: Vec<Instruction>,
    /// Positions of the 64-bit loads that take the descriptor of a map.
    pub maps: Vec<(usize, MapSlot)>,
}

impl Program {
    pub(crate) fn new(name: &'static str, code: Assembler) -> Self {
        let (instructions, maps) = code.finish();
        Self { name, instructions, maps }
    }
}

/// Where the network header stands in the data that a program is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NetworkHeader {
    /// At the start: a fan-out group's program.
    AtStart = 0,
    /// Behind an Ethernet header without tag: a filter on a raw packet socket, tc.
    BehindEthernet = 14,
}

/// Fields of `struct __sk_buff` (`linux/bpf.h`).
const SKB_PROTOCOL: i16 = 16;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_VLAN_TCI: i16 = 24;
const SKB_VLAN_PROTOCOL: i16 = 28;

/// Stack: the IPv4 header, so placed that both addresses (at 12) can be read as one aligned double word.
const IP: i16 = -28;
/// Stack: the quoted IPv4 header, likewise.
const QUOTED_IP: i16 = -76;
/// Stack: key of the address map; its first word is the VLAN identifier.
pub(crate) const ADDRESS_KEY: i16 = -40;
/// Stack: key of an array map.
const INDEX: i16 = -44;
/// Stack: ports, an ICMP type, or a VLAN tag.
pub(crate) const SMALL: i16 = -48;
/// Stack: the first eight bytes of an IPv6 extension header.
const EXTENSION: i16 = -88;
/// Stack: key of the map of IPv6 addresses; its first word is the VLAN identifier.
pub(crate) const ADDRESS_KEY6: i16 = -112;
/// Stack: the IPv6 header, so placed that the addresses (at 8 and 24) can be read as aligned double words.
const IP6: i16 = -152;
/// Stack: the quoted IPv6 header, likewise.
const QUOTED_IP6: i16 = -192;
/// Stack: the number of the header at R9, as a word.
const NEXT: i16 = -196;

/// The program of a fan-out group (`BPF_PROG_TYPE_SOCKET_FILTER`): returns the worker, which is the position of its socket
/// in the group. The key of the bucket hash becomes part of the instructions; the tables are in the maps.
#[must_use]
pub fn fan_out(ownership: &Ownership) -> Program {
    let mut code = Assembler::default();
    let (rest, plain, fragment, transport) = (code.label(), code.label(), code.label(), code.label());
    let (icmp, bucket, block, table) = (code.label(), code.label(), code.label(), code.label());

    let wide = code.label();
    code.read_ethernet(NetworkHeader::AtStart, rest);
    code.jump_if(Equal, R0, network_order(ETHERTYPE_IPV6), wide);
    code.jump_if(Different, R0, network_order(ETHERTYPE_IPV4), rest);

    // R9: offset of the transport header.
    code.read_ipv4(R7, IP, rest);
    code.copy(R9, R0);
    code.load(Word, R0, Frame, IP + 16);
    code.store(Word, Frame, ADDRESS_KEY + 4, R0);
    code.look_up_address(rest);
    // From here on R8 is the kind of the address.
    code.load(Word, R8, R0, 0);

    code.load(Half, R0, Frame, IP + 6);
    code.big_endian(R0, 16);
    code.jump_if(AnyBit, R0, 0x3fff, fragment);
    code.load(Byte, R3, Frame, IP + 9);
    code.jump_if(Equal, R3, i32::from(PROTOCOL_TCP), transport);
    code.jump_if(Equal, R3, i32::from(PROTOCOL_UDP), transport);
    code.jump_if(Equal, R3, i32::from(PROTOCOL_ICMP), icmp);
    code.jump(plain);

    code.place(transport);
    code.read(R9, SMALL, 4, rest);
    code.load(Half, R1, Frame, SMALL + 2);
    code.big_endian(R1, 16);
    code.jump_if(Equal, R8, LocalKind::Snat as i32, block);
    code.load(Double, R1, Frame, IP + 12);
    code.little_endian(R1, 64);
    code.load(Word, R2, Frame, SMALL);
    code.little_endian(R2, 32);
    code.load(Byte, R3, Frame, IP + 9);
    code.jump(bucket);

    code.place(icmp);
    code.read(R9, SMALL, 1, rest);
    code.load(Byte, R0, Frame, SMALL);
    let error = code.label();
    for icmp_type in ICMP_ERRORS {
        code.jump_if(Equal, R0, i32::from(icmp_type), error);
    }
    code.jump(plain);

    code.place(error);
    code.operate_constant(Add, R9, ICMP_HEADER as i32);
    code.read_ipv4(R9, QUOTED_IP, plain);
    code.copy(R9, R0);
    code.load(Half, R0, Frame, QUOTED_IP + 6);
    code.big_endian(R0, 16);
    code.jump_if(AnyBit, R0, 0x1fff, plain);
    let has_ports = code.label();
    code.load(Byte, R0, Frame, QUOTED_IP + 9);
    code.jump_if(Equal, R0, i32::from(PROTOCOL_TCP), has_ports);
    code.jump_if(Different, R0, i32::from(PROTOCOL_UDP), plain);
    code.place(has_ports);
    code.read(R9, SMALL, 4, plain);
    code.load(Half, R1, Frame, SMALL);
    code.big_endian(R1, 16);
    code.jump_if(Equal, R8, LocalKind::Snat as i32, block);
    // The quoted packet went the other way: exchange source and destination.
    code.load(Double, R1, Frame, QUOTED_IP + 12);
    code.little_endian(R1, 64);
    code.exchange_halves(R1, 32);
    code.load(Word, R2, Frame, SMALL);
    code.little_endian(R2, 32);
    code.exchange_halves(R2, 16);
    code.set_wide(R4, 0xffff_ffff);
    code.operate(And, R2, R4);
    code.load(Byte, R3, Frame, QUOTED_IP + 9);
    code.jump(bucket);

    code.place(fragment);
    code.load(Double, R1, Frame, IP + 12);
    code.little_endian(R1, 64);
    code.load(Half, R2, Frame, IP + 4);
    code.little_endian(R2, 16);
    code.load(Word, R0, Frame, ADDRESS_KEY);
    code.operate_constant(ShiftLeft, R0, 16);
    code.operate(Or, R2, R0);
    code.load(Byte, R3, Frame, IP + 9);
    code.jump(bucket);

    code.place(wide);
    code.decide_wide(bucket, block, rest);

    code.place(plain);
    code.load(Double, R1, Frame, IP + 12);
    code.little_endian(R1, 64);
    code.set(R2, 0);
    code.load(Byte, R3, Frame, IP + 9);

    code.place(bucket);
    code.hash(ownership.key);
    code.store(Word, Frame, INDEX, R1);
    code.set_map(R1, MapSlot::Buckets);
    code.jump(table);

    code.place(block);
    code.operate_constant(ShiftRight, R1, BLOCK_PORTS.trailing_zeros() as i32);
    code.store(Word, Frame, INDEX, R1);
    code.set_map(R1, MapSlot::Blocks);

    code.place(table);
    code.copy(R2, Frame);
    code.operate_constant(Add, R2, i32::from(INDEX));
    code.call(KernelFunction::MapLookup);
    code.jump_if(Equal, R0, 0, rest);
    code.load(Word, R0, R0, 0);
    code.exit();

    code.place(rest);
    code.set(R0, i32::from(WORKER_OF_THE_REST));
    code.exit();
    Program::new("postern_fan_out", code)
}

/// A 16-bit field of a header as a program reads it that does not convert it.
pub(crate) const fn network_order(value: u16) -> i32 {
    value.to_be() as i32
}

/// The steps that programs share.
impl Assembler {
    /// Starts a program: context to R6, offset of the network header to R7, VLAN identifier to R8 and to the address
    /// key, EtherType in network order to R0. Goes to `other` for a tag that is no 802.1Q tag, or a cut one.
    pub(crate) fn read_ethernet(&mut self, network: NetworkHeader, other: Label) {
        let (untagged, known) = (self.label(), self.label());
        self.copy(R6, R1);
        self.set(R7, network as i32);
        self.load(Word, R0, R6, SKB_VLAN_PRESENT);
        self.jump_if(Equal, R0, 0, untagged);
        // The kernel took the outer tag out of the frame.
        self.load(Word, R0, R6, SKB_VLAN_PROTOCOL);
        self.jump_if(Different, R0, network_order(ETHERTYPE_VLAN), other);
        self.load(Word, R8, R6, SKB_VLAN_TCI);
        self.operate_constant(And, R8, 0x0fff);
        self.load(Word, R0, R6, SKB_PROTOCOL);
        self.jump(known);

        self.place(untagged);
        self.set(R8, 0);
        self.load(Word, R0, R6, SKB_PROTOCOL);
        self.jump_if(Different, R0, network_order(ETHERTYPE_VLAN), known);
        // A tag that is still in the frame.
        self.read(R7, SMALL, 4, other);
        self.load(Half, R8, Frame, SMALL);
        self.big_endian(R8, 16);
        self.operate_constant(And, R8, 0x0fff);
        self.operate_constant(Add, R7, 4);
        self.load(Half, R0, Frame, SMALL + 2);

        self.place(known);
        self.store(Word, Frame, ADDRESS_KEY, R8);
    }

    /// Copies `length` bytes at `offset` of the data to the stack; goes to `cut` if the packet ends before.
    pub(crate) fn read(&mut self, offset: Register, to: i16, length: usize, cut: Label) {
        self.copy(R1, R6);
        self.copy(R2, offset);
        self.copy(R3, Frame);
        self.operate_constant(Add, R3, i32::from(to));
        self.set(R4, length as i32);
        self.call(KernelFunction::LoadBytes);
        self.jump_if(Different, R0, 0, cut);
    }

    /// Looks up the key on the stack in the address map: R0 becomes the address of the kind. Goes to `foreign` if there is
    /// none.
    pub(crate) fn look_up_address(&mut self, foreign: Label) {
        self.set_map(R1, MapSlot::Addresses);
        self.copy(R2, Frame);
        self.operate_constant(Add, R2, i32::from(ADDRESS_KEY));
        self.call(KernelFunction::MapLookup);
        self.jump_if(Equal, R0, 0, foreign);
    }

    /// The same of the 16 bytes behind the VLAN identifier in [`ADDRESS_KEY6`].
    pub(crate) fn look_up_address6(&mut self, foreign: Label) {
        self.set_map(R1, MapSlot::Addresses6);
        self.copy(R2, Frame);
        self.operate_constant(Add, R2, i32::from(ADDRESS_KEY6));
        self.call(KernelFunction::MapLookup);
        self.jump_if(Equal, R0, 0, foreign);
    }

    /// An IPv6 packet: goes on at `bucket` with what [`Self::hash`] takes, or at `block` with the port in R1.
    fn decide_wide(&mut self, bucket: Label, block: Label, rest: Label) {
        let (transport, icmp, plain, fragment) = (self.label(), self.label(), self.label(), self.label());
        let upper = self.label();
        self.store(Word, Frame, ADDRESS_KEY6, R8);
        self.read_ipv6(R7, IP6, rest);
        for at in (0..16).step_by(4) {
            self.load(Word, R0, Frame, IP6 + 24 + at);
            self.store(Word, Frame, ADDRESS_KEY6 + 4 + at, R0);
        }
        self.look_up_address6(rest);
        // From here on R8 is the kind of the address, R9 the offset of the header whose number is in NEXT.
        self.load(Word, R8, R0, 0);
        self.copy(R9, R7);
        self.operate_constant(Add, R9, ipv6::HEADER as i32);
        self.load(Byte, R0, Frame, IP6 + ipv6::NEXT_HEADER as i16);
        self.store(Word, Frame, NEXT, R0);
        for extensions in 0..=ipv6::MOST_EXTENSIONS {
            let (is_extension, is_fragment, next) = (self.label(), self.label(), self.label());
            self.load(Word, R0, Frame, NEXT);
            for number in EXTENSIONS {
                self.jump_if(Equal, R0, i32::from(number), is_extension);
            }
            self.jump(upper);
            self.place(is_extension);
            if extensions == ipv6::MOST_EXTENSIONS {
                self.jump(rest);
                // These are never reached, and stand because labels that are used must.
                self.place(is_fragment);
                self.place(next);
                break;
            }
            self.read(R9, EXTENSION, 8, rest);
            self.load(Byte, R1, Frame, EXTENSION);
            self.load(Word, R0, Frame, NEXT);
            self.store(Word, Frame, NEXT, R1);
            self.jump_if(Equal, R0, i32::from(ipv6::FRAGMENT), is_fragment);
            self.load(Byte, R0, Frame, EXTENSION + 1);
            self.operate_constant(Add, R0, 1);
            self.operate_constant(ShiftLeft, R0, 3);
            self.operate(Add, R9, R0);
            self.jump(next);
            self.place(is_fragment);
            self.load(Half, R0, Frame, EXTENSION + 2);
            self.big_endian(R0, 16);
            self.jump_if(AnyBit, R0, 0xfff9, fragment);
            self.operate_constant(Add, R9, ipv6::FRAGMENT_HEADER as i32);
            self.place(next);
            self.copy(R0, R9);
            self.operate(Operation::Subtract, R0, R7);
            self.jump_if(Greater, R0, (ipv6::HEADER + ipv6::MOST_EXTENSION_BYTES) as i32, rest);
        }

        self.place(upper);
        self.jump_if(Equal, R0, i32::from(PROTOCOL_TCP), transport);
        self.jump_if(Equal, R0, i32::from(PROTOCOL_UDP), transport);
        self.jump_if(Equal, R0, i32::from(PROTOCOL_ICMPV6), icmp);
        self.jump(plain);

        self.place(transport);
        self.read(R9, SMALL, 4, rest);
        self.load(Half, R1, Frame, SMALL + 2);
        self.big_endian(R1, 16);
        self.jump_if(Equal, R8, LocalKind::Snat as i32, block);
        self.fold_addresses(IP6 + 8, IP6 + 24);
        self.load(Word, R2, Frame, SMALL);
        self.little_endian(R2, 32);
        self.load(Word, R3, Frame, NEXT);
        self.jump(bucket);

        self.place(icmp);
        let error = self.label();
        self.read(R9, SMALL, 1, rest);
        self.load(Byte, R0, Frame, SMALL);
        for icmp_type in ICMPV6_ERRORS {
            self.jump_if(Equal, R0, i32::from(icmp_type), error);
        }
        self.jump(plain);

        self.place(error);
        let has_ports = self.label();
        self.operate_constant(Add, R9, ICMP_HEADER as i32);
        self.read_ipv6(R9, QUOTED_IP6, plain);
        self.load(Byte, R0, Frame, QUOTED_IP6 + ipv6::NEXT_HEADER as i16);
        self.jump_if(Equal, R0, i32::from(PROTOCOL_TCP), has_ports);
        self.jump_if(Different, R0, i32::from(PROTOCOL_UDP), plain);
        self.place(has_ports);
        self.operate_constant(Add, R9, ipv6::HEADER as i32);
        self.read(R9, SMALL, 4, plain);
        self.load(Half, R1, Frame, SMALL);
        self.big_endian(R1, 16);
        self.jump_if(Equal, R8, LocalKind::Snat as i32, block);
        // The quoted packet went the other way: exchange source and destination.
        self.fold_addresses(QUOTED_IP6 + 24, QUOTED_IP6 + 8);
        self.load(Word, R2, Frame, SMALL);
        self.little_endian(R2, 32);
        self.exchange_halves(R2, 16);
        self.set_wide(R4, 0xffff_ffff);
        self.operate(And, R2, R4);
        self.load(Byte, R3, Frame, QUOTED_IP6 + ipv6::NEXT_HEADER as i16);
        self.jump(bucket);

        self.place(fragment);
        self.fold_addresses(IP6 + 8, IP6 + 24);
        self.load(Word, R2, Frame, EXTENSION + 4);
        self.little_endian(R2, 32);
        self.load(Word, R3, Frame, NEXT);
        self.jump(bucket);

        self.place(plain);
        self.fold_addresses(IP6 + 8, IP6 + 24);
        self.set(R2, 0);
        self.load(Word, R3, Frame, NEXT);
        self.jump(bucket);
    }

    /// Copies the IPv6 header at `offset` to the stack. Goes to `broken` for another version or a cut header.
    fn read_ipv6(&mut self, offset: Register, to: i16, broken: Label) {
        self.read(offset, to, ipv6::HEADER, broken);
        self.load(Byte, R0, Frame, to);
        self.operate_constant(ShiftRight, R0, 4);
        self.jump_if(Different, R0, 6, broken);
    }

    /// Sets R1 to the fold of the address at `low` of the stack, and above it that of the one at `high`. Destroys R0 and R2.
    fn fold_addresses(&mut self, low: i16, high: i16) {
        self.fold(R1, low);
        self.fold(R2, high);
        self.operate_constant(ShiftLeft, R2, 32);
        self.operate(Or, R1, R2);
    }

    /// [`ipv6::fold`] of the address at `at` of the stack. Destroys R0.
    fn fold(&mut self, to: Register, at: i16) {
        self.load(Double, to, Frame, at);
        self.load(Double, R0, Frame, at + 8);
        self.operate(Xor, to, R0);
        self.little_endian(to, 64);
        self.copy(R0, to);
        self.operate_constant(ShiftRight, R0, 32);
        self.operate(Xor, to, R0);
        self.operate_constant(ShiftLeft, to, 32);
        self.operate_constant(ShiftRight, to, 32);
    }

    /// Copies the fixed part of the IPv4 header at `offset` to the stack and sets R0 to the offset behind the whole header.
    /// Goes to `broken` for another version, an impossible length, or a cut header.
    fn read_ipv4(&mut self, offset: Register, to: i16, broken: Label) {
        self.read(offset, to, IPV4_HEADER, broken);
        self.load(Byte, R0, Frame, to);
        self.copy(R1, R0);
        self.operate_constant(ShiftRight, R1, 4);
        self.jump_if(Different, R1, 4, broken);
        self.operate_constant(And, R0, 0x0f);
        self.jump_if(Less, R0, 5, broken);
        self.operate_constant(ShiftLeft, R0, 2);
        self.operate(Add, R0, offset);
    }

    /// Exchanges the two halves, of `bits` each, of a register whose other bits are zero. With fewer than 64 bits, bits above
    /// the two halves are left over. Destroys R0.
    fn exchange_halves(&mut self, register: Register, bits: i32) {
        self.copy(R0, register);
        self.operate_constant(ShiftRight, R0, bits);
        self.operate_constant(ShiftLeft, register, bits);
        self.operate(Or, register, R0);
    }

    /// [`Ownership::bucket`]: from addresses in R1, ports in R2 and protocol in R3 to the bucket in R1. Destroys R0, R2, R3.
    fn hash(&mut self, key: [u64; 2]) {
        self.set_wide(R0, key[0]);
        self.operate(Xor, R1, R0);
        self.set_wide(R0, HASH_MULTIPLIERS[0]);
        self.operate(Multiply, R1, R0);
        self.copy(R0, R1);
        self.operate_constant(ShiftRight, R0, 32);
        self.operate(Xor, R1, R0);
        self.operate_constant(ShiftLeft, R3, 32);
        self.operate(Or, R2, R3);
        self.operate(Xor, R1, R2);
        self.set_wide(R0, key[1]);
        self.operate(Xor, R1, R0);
        self.set_wide(R0, HASH_MULTIPLIERS[1]);
        self.operate(Multiply, R1, R0);
        self.copy(R0, R1);
        self.operate_constant(ShiftRight, R0, 32);
        self.operate(Xor, R1, R0);
        self.set_wide(R0, HASH_MULTIPLIERS[0]);
        self.operate(Multiply, R1, R0);
        self.operate_constant(ShiftRight, R1, (u64::BITS - BUCKETS.trailing_zeros()) as i32);
    }
}

//! `owner(frame) → worker` in BPF instructions: step by step what [`crate::Steering::owner`] does.
//!
//! Packet bytes are read by `bpf_skb_load_bytes` at offsets from the start of the data, not relative to the network header
//! by `bpf_skb_load_bytes_relative`: that one sees only the linear part of a packet, and drivers may leave all but the
//! Ethernet header in pages until the IP layer pulls it (virtio_net does with large frames). Where the network header is
//! depends on the hook, which `NetworkHeader` names.

use postern_wire::parse::{ETHERTYPE_IPV4, ETHERTYPE_VLAN, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};

use crate::addresses::LocalKind;
pub use crate::assembler::Instruction;
use crate::assembler::{Assembler, Condition, KernelFunction, Label, Operation, Register, Width};
use crate::maps::MapSlot;
use crate::owner::{ICMP_ERRORS, ICMP_HEADER, IPV4_HEADER, WORKER_OF_THE_REST};
use crate::ownership::{BLOCK_PORTS, BUCKETS, HASH_MULTIPLIERS, Ownership};

use Condition::{AnyBit, Different, Equal, Less};
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

/// The program of a fan-out group (`BPF_PROG_TYPE_SOCKET_FILTER`): returns the worker, which is the position of its socket
/// in the group. The key of the bucket hash becomes part of the instructions; the tables are in the maps.
#[must_use]
pub fn fan_out(ownership: &Ownership) -> Program {
    let mut code = Assembler::default();
    let (rest, plain, fragment, transport) = (code.label(), code.label(), code.label(), code.label());
    let (icmp, bucket, block, table) = (code.label(), code.label(), code.label(), code.label());

    code.read_ethernet(NetworkHeader::AtStart, rest);
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

//! Frames from inside the kernel: an XDP program that is run on frames of its own making and sends them out of the
//! client's interface (`BPF_PROG_RUN` with live frames, Linux 5.18). It costs a fraction of a system call that sends, so
//! that one CPU overloads what another forwards.

use nix::net::if_::if_nametoindex;
use postern_frame_io::bpf::{BpfError, Map, MapKind, Program, ProgramKind};
use postern_steering::MapSlot;
use postern_steering::assembler::{Assembler, Condition, Instruction, KernelFunction, Operation, Register, Width};

use super::NatError;

/// Frames that go at a time. The flows are used in turn, and no batch has two frames of one flow, so that the receiving side
/// has nothing to aggregate.
const BATCH: u32 = 64;
/// Frames of a system call. The kernel takes some 20 ms to set a call up and to clear away after it, whatever their number;
/// with so many a call lasts about half a second, which is how late the generator ends after it was told to.
const CALL: u32 = 1 << 19;
/// Offset of the UDP source port in a frame without VLAN tag and IP options, in bytes.
const SOURCE_PORT: i16 = 34;
/// Offset of the IPv4 header checksum.
const HEADER_CHECKSUM: i16 = 24;
/// Offset of the lower half of the source address.
const SOURCE_ADDRESS: i16 = 28;
/// Offset of the UDP checksum.
const CHECKSUM: i16 = 40;
/// Source ports that one source address uses, at most.
pub const PORTS: u32 = 1 << 14;

/// A generator of one frame with changing source ports.
#[derive(Debug)]
pub struct LiveFrames {
    program: Program,
    frame: Vec<u8>,
    /// Frames made so far.
    counter: Map,
}

impl LiveFrames {
    /// Makes a generator that sends `frame`, UDP over IPv4, out of `interface` of the calling thread's namespace, with
    /// `flows` source ports in turn, beginning with the one in `frame`; more than [`PORTS`] flows have further source addresses,
    /// counted up from the one in `frame`. `flows` is a power of two up to 2²², and frames are 60 bytes or a multiple of 4 more.
    /// The checksums of `frame` must be larger than what is added to port and address.
    ///
    /// # Errors
    /// [`NatError::Bpf`] where the kernel cannot or may not.
    pub fn new(interface: &str, frame: &[u8], flows: u32) -> Result<Self, NatError> {
        let index = if_nametoindex(interface).map_err(|error| NatError::Kernel("find an interface", error))?;
        let counter = Map::create(MapKind::Array, "generator", 4, 8, 1)?;
        let (instructions, maps) = program(index, frame, flows);
        let maps: Vec<_> = maps.into_iter().map(|at| (at, &counter)).collect();
        let program = Program::load(ProgramKind::Xdp, "generator", &instructions, &maps)?;
        Ok(Self { program, frame: frame.to_vec(), counter })
    }

    /// Sends for about half a second. To be called in the namespace of the interface.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self) -> Result<(), BpfError> {
        self.program.run_live(&self.frame, CALL, BATCH)
    }

    /// Frames sent so far; may be asked while another thread sends.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn count(&self) -> Result<u64, BpfError> {
        let mut value = [0; 8];
        self.counter.lookup(&[0; 4], &mut value)?;
        Ok(u64::from_ne_bytes(value))
    }
}

/// Writes the whole frame, because pages come back with the changes that the gateway made, then sends it.
fn program(interface: u32, frame: &[u8], flows: u32) -> (Vec<Instruction>, Vec<usize>) {
    let mut code = Assembler::default();
    let drop = code.label();
    // struct xdp_md: data, data_end.
    code.load(Width::Word, Register::R7, Register::R1, 0);
    code.load(Width::Word, Register::R6, Register::R1, 4);
    code.copy(Register::R2, Register::R7);
    code.operate_constant(Operation::Add, Register::R2, frame.len() as i32);
    code.jump_if_registers(Condition::Greater, Register::R2, Register::R6, drop);
    // The next flow. One CPU generates, so nothing else counts at the same time.
    code.set(Register::R1, 0);
    code.store(Width::Word, Register::Frame, -4, Register::R1);
    code.set_map(Register::R1, MapSlot::Blocks);
    code.copy(Register::R2, Register::Frame);
    code.operate_constant(Operation::Add, Register::R2, -4);
    code.call(KernelFunction::MapLookup);
    code.jump_if(Condition::Equal, Register::R0, 0, drop);
    code.load(Width::Double, Register::R8, Register::R0, 0);
    code.copy(Register::R1, Register::R8);
    code.operate_constant(Operation::Add, Register::R1, 1);
    code.store(Width::Double, Register::R0, 0, Register::R1);
    code.operate_constant(Operation::And, Register::R8, flows as i32 - 1);
    let many = flows > PORTS;
    if many {
        // Which address, and which of its ports.
        code.copy(Register::R9, Register::R8);
        code.operate_constant(Operation::ShiftRight, Register::R9, PORTS.trailing_zeros() as i32);
        code.operate_constant(Operation::And, Register::R8, PORTS as i32 - 1);
    }
    let (doubles, rest) = frame.as_chunks::<8>();
    let mut at = 0;
    for double in doubles {
        code.set_wide(Register::R1, u64::from_ne_bytes(*double));
        code.store(Width::Double, Register::R7, at, Register::R1);
        at += 8;
    }
    for word in rest.as_chunks::<4>().0 {
        code.set(Register::R1, i32::from_ne_bytes(*word));
        code.store(Width::Word, Register::R7, at, Register::R1);
        at += 4;
    }
    let half = |at: i16| i32::from(u16::from_be_bytes([frame[at as usize], frame[at as usize + 1]]));
    code.set(Register::R1, half(SOURCE_PORT));
    code.operate(Operation::Add, Register::R1, Register::R8);
    code.big_endian(Register::R1, 16);
    code.store(Width::Half, Register::R7, SOURCE_PORT, Register::R1);
    // What the port has more the checksum has less (RFC 1624); it is large enough that nothing is carried.
    code.set(Register::R1, half(CHECKSUM));
    code.operate(Operation::Subtract, Register::R1, Register::R8);
    if many {
        code.operate(Operation::Subtract, Register::R1, Register::R9);
    }
    code.big_endian(Register::R1, 16);
    code.store(Width::Half, Register::R7, CHECKSUM, Register::R1);
    if many {
        for (at, operation) in [(SOURCE_ADDRESS, Operation::Add), (HEADER_CHECKSUM, Operation::Subtract)] {
            code.set(Register::R1, half(at));
            code.operate(operation, Register::R1, Register::R9);
            code.big_endian(Register::R1, 16);
            code.store(Width::Half, Register::R7, at, Register::R1);
        }
    }
    code.set(Register::R1, interface as i32);
    code.set(Register::R2, 0);
    code.call(KernelFunction::Redirect);
    code.exit();
    code.place(drop);
    const XDP_DROP: i32 = 1;
    code.set(Register::R0, XDP_DROP);
    code.exit();
    let (instructions, maps) = code.finish();
    (instructions, maps.into_iter().map(|(at, _)| at).collect())
}

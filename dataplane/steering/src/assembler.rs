//! A small assembler for BPF: the instructions that the programs need, with labels (`linux/bpf.h`, RFC 9669).

use crate::maps::MapSlot;

/// One instruction: the eight bytes of `struct bpf_insn` in the host's byte order.
pub type Instruction = [u8; 8];

/// A register. `R0` is the result, `R1`…`R5` are arguments that a call destroys, `R6`…`R9` survive calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// The result.
    R0,
    /// First argument; the program's context at its start.
    R1,
    /// Second argument.
    R2,
    /// Third argument.
    R3,
    /// Fourth argument.
    R4,
    /// Survives calls.
    R6 = 6,
    /// Survives calls.
    R7,
    /// Survives calls.
    R8,
    /// Survives calls.
    R9,
    /// The end of the program's 512 bytes of stack.
    Frame,
}

/// How many bytes a load or store moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 1 byte.
    Byte = 0x10,
    /// 2 bytes.
    Half = 0x08,
    /// 4 bytes.
    Word = 0x00,
    /// 8 bytes.
    Double = 0x18,
}

/// A 64-bit operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `+`
    Add = 0x00,
    /// `-`
    Subtract = 0x10,
    /// `*`
    Multiply = 0x20,
    /// `|`
    Or = 0x40,
    /// `&`
    And = 0x50,
    /// `<<`
    ShiftLeft = 0x60,
    /// `>>`, zeros come in.
    ShiftRight = 0x70,
    /// `^`
    Xor = 0xa0,
    /// The second operand.
    Move = 0xb0,
}

/// A comparison of a register with a constant or another register. All are unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// `==`
    Equal = 0x10,
    /// `>`
    Greater = 0x20,
    /// They have a bit in common.
    AnyBit = 0x40,
    /// `!=`
    Different = 0x50,
    /// `<`
    Less = 0xa0,
}

/// A function of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelFunction {
    /// `bpf_map_lookup_elem(map, key)`: address of the value or zero.
    MapLookup = 1,
    /// `bpf_redirect(interface, flags)`: the verdict that sends the frame out of an interface.
    Redirect = 23,
    /// `bpf_skb_load_bytes(skb, offset, to, length)`: zero, or an error if the packet ends before.
    LoadBytes = 26,
}

/// A place to jump to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(usize);

/// A program in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    /// Where each label stands.
    labels: Vec<Option<usize>>,
    /// Jumps whose distance is still to be filled in.
    jumps: Vec<(usize, Label)>,
    maps: Vec<(usize, MapSlot)>,
}

impl Assembler {
    /// A label that does not stand anywhere yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts a label before the next instruction.
    pub fn place(&mut self, label: Label) {
        debug_assert!(self.labels[label.0].is_none(), "a label stands in one place");
        self.labels[label.0] = Some(self.instructions.len());
    }

    /// `to = to operation from`.
    pub fn operate(&mut self, operation: Operation, to: Register, from: Register) {
        self.emit(0x0f | operation as u8, to, from as u8, 0, 0);
    }

    /// `to = to operation constant`.
    pub fn operate_constant(&mut self, operation: Operation, to: Register, constant: i32) {
        self.emit(0x07 | operation as u8, to, 0, 0, constant);
    }

    /// `to = from`.
    pub fn copy(&mut self, to: Register, from: Register) {
        self.operate(Operation::Move, to, from);
    }

    /// `to = constant`, sign-extended.
    pub fn set(&mut self, to: Register, constant: i32) {
        self.operate_constant(Operation::Move, to, constant);
    }

    /// `to = constant`.
    pub fn set_wide(&mut self, to: Register, constant: u64) {
        self.emit(0x18, to, 0, 0, constant as i32);
        self.emit(0, Register::R0, 0, 0, (constant >> 32) as i32);
    }

    /// `to = ` the map in `slot`; whoever loads the program fills it in.
    pub fn set_map(&mut self, to: Register, slot: MapSlot) {
        self.maps.push((self.instructions.len(), slot));
        self.set_wide(to, 0);
    }

    /// `to = memory[from + offset]`, zero-extended.
    pub fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.emit(0x61 | width as u8, to, from as u8, offset, 0);
    }

    /// `memory[to + offset] = from`.
    pub fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.emit(0x63 | width as u8, to, from as u8, offset, 0);
    }

    /// Turns the low `bits` of a register between big-endian and the host's byte order; the others become zero.
    pub fn big_endian(&mut self, register: Register, bits: i32) {
        self.emit(0xdc, register, 0, 0, bits);
    }

    /// Turns the low `bits` of a register between little-endian and the host's byte order; the others become zero.
    pub fn little_endian(&mut self, register: Register, bits: i32) {
        self.emit(0xd4, register, 0, 0, bits);
    }

    /// Goes on at `label`, which stands further down.
    pub fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(0x05, Register::R0, 0, 0, 0);
    }

    /// Goes on at `label`, which stands further down, if the condition holds.
    pub fn jump_if(&mut self, condition: Condition, register: Register, constant: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(0x05 | condition as u8, register, 0, 0, constant);
    }

    /// Goes on at `label`, which stands further down, if the condition holds between two registers.
    pub fn jump_if_registers(&mut self, condition: Condition, left: Register, right: Register, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(0x0d | condition as u8, left, right as u8, 0, 0);
    }

    /// Calls a function of the kernel: result in `R0`, `R1`…`R5` are gone.
    pub fn call(&mut self, function: KernelFunction) {
        self.emit(0x85, Register::R0, 0, 0, function as i32);
    }

    /// Ends the program with `R0` as its result.
    pub fn exit(&mut self) {
        self.emit(0x95, Register::R0, 0, 0, 0);
    }

    /// The instructions and the places of the maps.
    ///
    /// # Panics
    /// When a label is used that was never placed: a mistake in the program's text.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Instruction>, Vec<(usize, MapSlot)>) {
        for (at, label) in self.jumps {
            // Invariant of this crate's programs, proven by the kernel's verifier in their tests: each label that is
            // used is placed, further down, and no program has 32,768 instructions.
            let target = self.labels[label.0].unwrap_or_else(|| unreachable!("label {} is never placed", label.0));
            let distance = (target - at - 1) as i16;
            self.instructions[at][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        (self.instructions, self.maps)
    }

    fn emit(&mut self, opcode: u8, to: Register, from: u8, offset: i16, constant: i32) {
        // The two register fields are bit fields, whose order follows the byte order.
        let registers = if cfg!(target_endian = "little") { from << 4 | to as u8 } else { (to as u8) << 4 | from };
        let [o0, o1] = offset.to_ne_bytes();
        let [c0, c1, c2, c3] = constant.to_ne_bytes();
        self.instructions.push([opcode, registers, o0, o1, c0, c1, c2, c3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_have_the_bytes_that_rfc_9669_gives_them() {
        let mut code = Assembler::default();
        let end = code.label();
        code.load(Width::Half, Register::R3, Register::Frame, -8);
        code.jump_if(Condition::Different, Register::R3, 0x1234, end);
        code.set_map(Register::R1, MapSlot::Blocks);
        code.operate(Operation::Xor, Register::R2, Register::R9);
        code.place(end);
        code.exit();
        let (instructions, maps) = code.finish();
        assert_eq!(
            instructions,
            [
                [0x69, 0xa3, 0xf8, 0xff, 0, 0, 0, 0],
                [0x55, 0x03, 3, 0, 0x34, 0x12, 0, 0],
                [0x18, 0x01, 0, 0, 0, 0, 0, 0],
                [0x00, 0x00, 0, 0, 0, 0, 0, 0],
                [0xaf, 0x92, 0, 0, 0, 0, 0, 0],
                [0x95, 0x00, 0, 0, 0, 0, 0, 0],
            ]
        );
        assert_eq!(maps, [(2, MapSlot::Blocks)]);
    }
}

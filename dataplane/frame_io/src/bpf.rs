//! bpf(2), as much of it as Postern needs: maps, programs that are assembled elsewhere, and trying a program on a frame.
//!
//! This module knows nothing of what a program computes. A program is a list of eight-byte instructions
//! (`struct bpf_insn` of `linux/bpf.h`); the places where it names a map are given beside it and filled in here.
//! Maps and programs live as long as someone holds a descriptor: a socket holds its filter, a program its maps.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const MAP_UPDATE_BATCH: libc::c_int = 26;
pub(crate) const LINK_CREATE: libc::c_int = 28;

/// `BPF_F_TEST_XDP_LIVE_FRAMES`: what the program says is done.
const LIVE_FRAMES: u32 = 2;
/// `BPF_F_NO_PREALLOC`: memory of a hash map follows its entries, not its capacity.
const NO_PREALLOCATION: u32 = 1;
/// `BPF_PSEUDO_MAP_FD`: marks a 64-bit load whose immediate is a map descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// Opcode of the 64-bit immediate load (`BPF_LD | BPF_IMM | BPF_DW`).
const LOAD_IMMEDIATE_64: u8 = 0x18;
/// Bytes of the verifier's log that are kept.
const LOG_LENGTH: usize = 256 * 1024;
/// Bytes of its end that an error shows.
const LOG_SHOWN: usize = 2000;

/// One instruction: the eight bytes of `struct bpf_insn` in the host's byte order.
pub type Instruction = [u8; 8];

/// Why the kernel did not do what was asked through bpf(2).
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The process lacks the capabilities.
    #[error(
        "the kernel does not permit to {operation}: run Postern as root, or give its service \
         AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_NET_RAW"
    )]
    NotPermitted {
        /// What was tried.
        operation: String,
    },
    /// The kernel has no bpf(2) or not this part of it.
    #[error("this kernel cannot {operation}: it needs Linux {needs} or newer with CONFIG_BPF_SYSCALL")]
    Unsupported {
        /// What was tried.
        operation: String,
        /// The first kernel version that can.
        needs: &'static str,
    },
    /// The map has as many entries as it was made for.
    #[error("BPF map {map} is full: it was made for {capacity} entries")]
    Full {
        /// Name of the map.
        map: String,
        /// Entries it can hold.
        capacity: u32,
    },
    /// The verifier found fault with a program.
    #[error("the kernel's verifier refused program {program} ({source}); its log ends: {log}")]
    Refused {
        /// Name of the program.
        program: String,
        /// The end of the verifier's log.
        log: String,
        /// What the call returned.
        source: io::Error,
    },
    /// A key or value of another size than the map's.
    #[error("map {map} has keys of {key_size} and values of {value_size} bytes, which the given bytes do not fit")]
    Size {
        /// Name of the map.
        map: String,
        /// Bytes of a key.
        key_size: usize,
        /// Bytes of a value.
        value_size: usize,
    },
    /// A place that was said to name a map does not hold a 64-bit load.
    #[error("instruction {instruction} of program {program} does not load a map")]
    NotAMapReference {
        /// Name of the program.
        program: String,
        /// Position in the list of instructions.
        instruction: usize,
    },
    /// Anything else.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: String,
        /// What the call returned.
        source: io::Error,
    },
}

impl BpfError {
    pub(crate) fn from_system(operation: impl Into<String>, needs: &'static str, source: io::Error) -> Self {
        let operation = operation.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { operation },
            Some(libc::ENOSYS) => Self::Unsupported { operation, needs },
            _ => Self::System { operation, source },
        }
    }

    /// Whether the process lacks the capabilities, so that a test can skip itself.
    #[must_use]
    pub const fn is_not_permitted(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }
}

/// A member of `union bpf_attr`: `repr(C)`, integers only, no padding.
///
/// # Safety
/// Each pointer field must be valid, for as long as the call lasts, for what the command does with it.
pub(crate) unsafe trait Attributes {}

/// Calls bpf(2).
pub(crate) fn bpf<T: Attributes>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: libc has no wrapper for bpf(2). The kernel reads and writes at most the given size at the given address,
    // which is exactly the borrowed value; what the value points to is vouched for by the implementation of `Attributes`
    // and by the function that fills it in.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// Takes ownership of a descriptor that bpf(2) has just returned.
pub(crate) fn owned(descriptor: libc::c_int) -> OwnedFd {
    // SAFETY: called only with the result of a bpf(2) command that creates a descriptor; nobody else knows it, so it is
    // open and closed by no one but the new owner.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// The kernel's 16-byte object name: letters, digits, `_` and `.` only.
fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = if from.is_ascii_alphanumeric() || from == b'.' { from } else { b'_' };
    }
    bytes
}

fn address_of<T: ?Sized>(bytes: &T) -> u64 {
    std::ptr::from_ref(bytes).cast::<u8>().expose_provenance() as u64
}

/// What kind of map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_ARRAY`: keys are the `u32` positions 0…capacity-1, all present from the start, values zero.
    Array,
    /// `BPF_MAP_TYPE_HASH`: empty at first; memory follows the entries.
    Hash,
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}
// SAFETY: eleven words without padding, no pointers.
unsafe impl Attributes for MapCreate {}

#[repr(C)]
struct Element {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}
// SAFETY: the two 32-bit words fill the room before the 64-bit ones; `Map` checks the lengths behind both pointers.
unsafe impl Attributes for Element {}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}
// SAFETY: no padding; `Map::update_batch` checks the lengths behind both pointers.
unsafe impl Attributes for Batch {}

/// A map that kernel programs and this process share.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    name: String,
    key_size: usize,
    value_size: usize,
    capacity: u32,
}

impl Map {
    /// Makes a map for `capacity` entries; sizes are in bytes. An array's key size is 4.
    ///
    /// # Errors
    /// [`BpfError::NotPermitted`] without CAP_BPF; else what the kernel said.
    pub fn create(
        kind: MapKind,
        name: &str,
        key_size: usize,
        value_size: usize,
        capacity: u32,
    ) -> Result<Self, BpfError> {
        let (map_type, map_flags) = match kind {
            MapKind::Hash => (1, NO_PREALLOCATION),
            MapKind::Array => (2, 0),
        };
        let mut attributes = MapCreate {
            map_type,
            key_size: key_size as u32,
            value_size: value_size as u32,
            max_entries: capacity,
            map_flags,
            inner_map_fd: 0,
            numa_node: 0,
            map_name: object_name(name),
        };
        let descriptor = bpf(MAP_CREATE, &mut attributes).map_err(|error| {
            BpfError::from_system(format!("make BPF map {name} of {capacity} entries"), "5.8", error)
        })?;
        Ok(Self { descriptor: owned(descriptor), name: name.to_owned(), key_size, value_size, capacity })
    }

    /// Entries it was made for.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Sets one entry.
    ///
    /// # Errors
    /// [`BpfError::Size`] if key or value do not fit; [`BpfError::Full`]; else what the kernel said.
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<(), BpfError> {
        if key.len() != self.key_size || value.len() != self.value_size {
            return Err(self.wrong_size());
        }
        bpf(MAP_UPDATE_ELEM, &mut self.element(key, address_of(value)))
            .map_err(|error| self.failed("change", error))?;
        Ok(())
    }

    /// Sets many entries, with one system call where the kernel can (5.6 and newer). `keys` and `values` hold one behind
    /// the other. Each entry changes at once for the programs that read, the whole batch does not.
    ///
    /// # Errors
    /// As [`Map::update`]; entries before the one that failed are set.
    pub fn update_batch(&self, keys: &[u8], values: &[u8]) -> Result<(), BpfError> {
        let count = keys.len() / self.key_size;
        if keys.len() != count * self.key_size || values.len() != count * self.value_size {
            return Err(self.wrong_size());
        }
        if count == 0 {
            return Ok(());
        }
        let mut attributes = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: address_of(keys),
            values: address_of(values),
            count: u32::try_from(count).map_err(|_| self.wrong_size())?,
            map_fd: self.descriptor.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        match bpf(MAP_UPDATE_BATCH, &mut attributes) {
            Ok(_) => Ok(()),
            // A kernel without batches, or one that the batch failed on: the entry that is wrong is found one by one.
            Err(_) => keys
                .chunks_exact(self.key_size)
                .zip(values.chunks_exact(self.value_size))
                .try_for_each(|(key, value)| self.update(key, value)),
        }
    }

    /// Takes one entry of a hash map out; false if there was none.
    ///
    /// # Errors
    /// [`BpfError::Size`] if the key does not fit; else what the kernel said.
    pub fn delete(&self, key: &[u8]) -> Result<bool, BpfError> {
        if key.len() != self.key_size {
            return Err(self.wrong_size());
        }
        match bpf(MAP_DELETE_ELEM, &mut self.element(key, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.failed("delete from", error)),
        }
    }

    /// Reads one entry into `value`; false, with `value` unchanged, if there is none.
    ///
    /// # Errors
    /// [`BpfError::Size`] if key or value do not fit; else what the kernel said.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<bool, BpfError> {
        if key.len() != self.key_size || value.len() != self.value_size {
            return Err(self.wrong_size());
        }
        let address = value.as_mut_ptr().expose_provenance() as u64;
        match bpf(MAP_LOOKUP_ELEM, &mut self.element(key, address)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    fn element(&self, key: &[u8], value: u64) -> Element {
        Element { map_fd: self.descriptor.as_raw_fd() as u32, zero: 0, key: address_of(key), value, flags: 0 }
    }

    fn wrong_size(&self) -> BpfError {
        BpfError::Size { map: self.name.clone(), key_size: self.key_size, value_size: self.value_size }
    }

    fn failed(&self, verb: &str, error: io::Error) -> BpfError {
        if error.raw_os_error() == Some(libc::E2BIG) {
            return BpfError::Full { map: self.name.clone(), capacity: self.capacity };
        }
        BpfError::from_system(format!("{verb} BPF map {}", self.name), "5.8", error)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Where a program may be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProgramKind {
    /// `BPF_PROG_TYPE_SOCKET_FILTER`: socket filters and the choice of a fan-out group.
    SocketFilter,
    /// `BPF_PROG_TYPE_SCHED_CLS`: tc.
    Classifier,
    /// `BPF_PROG_TYPE_XDP`: frames before the kernel has made anything of them.
    Xdp,
}

#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}
// SAFETY: no padding; `Program::load` keeps instructions, licence and log alive over the call and gives their lengths.
unsafe impl Attributes for ProgramLoad {}

#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}
// SAFETY: no padding; `data_in` is a borrowed slice of the given length, the other pointers are null.
unsafe impl Attributes for TestRun {}

/// A program that the kernel has verified.
#[derive(Debug)]
pub struct Program {
    descriptor: OwnedFd,
}

impl Program {
    /// Loads a program. Each pair of `maps` says which instruction (a 64-bit immediate load) takes which map.
    ///
    /// # Errors
    /// [`BpfError::Refused`] with the verifier's last words; [`BpfError::NotPermitted`] without CAP_BPF (and
    /// CAP_NET_ADMIN for [`ProgramKind::Classifier`]).
    pub fn load(
        kind: ProgramKind,
        name: &str,
        instructions: &[Instruction],
        maps: &[(usize, &Map)],
    ) -> Result<Self, BpfError> {
        let mut instructions = instructions.to_vec();
        for &(at, map) in maps {
            let instruction = instructions
                .get_mut(at)
                .filter(|instruction| instruction[0] == LOAD_IMMEDIATE_64)
                .ok_or_else(|| BpfError::NotAMapReference { program: name.to_owned(), instruction: at })?;
            // The source register's half of the register byte says what the immediate is.
            instruction[1] = if cfg!(target_endian = "little") {
                instruction[1] & 0x0f | PSEUDO_MAP_FD << 4
            } else {
                instruction[1] & 0xf0 | PSEUDO_MAP_FD
            };
            instruction[4..].copy_from_slice(&map.descriptor.as_raw_fd().to_ne_bytes());
        }
        let licence = CString::from(c"Apache-2.0");
        let mut attributes = ProgramLoad {
            prog_type: match kind {
                ProgramKind::SocketFilter => 1,
                ProgramKind::Classifier => 3,
                ProgramKind::Xdp => 6,
            },
            insn_cnt: instructions.len() as u32,
            insns: address_of(instructions.as_slice()),
            license: address_of(licence.as_bytes_with_nul()),
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: object_name(name),
        };
        let error = match bpf(PROG_LOAD, &mut attributes) {
            Ok(descriptor) => return Ok(Self { descriptor: owned(descriptor) }),
            Err(error) => error,
        };
        if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) {
            return Err(BpfError::from_system(format!("load BPF program {name}"), "5.8", error));
        }
        // Once more with a log, to be able to say why. (EACCES, too, is the verifier's.)
        let mut log = vec![0_u8; LOG_LENGTH];
        attributes.log_level = 1;
        attributes.log_size = LOG_LENGTH as u32;
        attributes.log_buf = log.as_mut_ptr().expose_provenance() as u64;
        match bpf(PROG_LOAD, &mut attributes) {
            Ok(descriptor) => Ok(Self { descriptor: owned(descriptor) }),
            Err(source) => Err(BpfError::Refused { program: name.to_owned(), log: end_of_log(&log), source }),
        }
    }

    /// Runs the program once on an Ethernet frame of at least 14 bytes as if it had just been received
    /// (`BPF_PROG_TEST_RUN`), `repeat` times in a row; returns its result and the mean time of a run.
    ///
    /// A socket filter sees the frame from the network header on, a classifier from the Ethernet header on.
    ///
    /// # Errors
    /// What the kernel said: it refuses frames shorter than an Ethernet header or longer than about a page.
    pub fn test_run(&self, frame: &[u8], repeat: u32) -> Result<(u32, Duration), BpfError> {
        let mut attributes = self.run_of(frame, repeat);
        bpf(PROG_TEST_RUN, &mut attributes)
            .map_err(|error| BpfError::from_system("try a BPF program on a frame", "5.8", error))?;
        Ok((attributes.retval, Duration::from_nanos(u64::from(attributes.duration))))
    }

    /// Gives `count` copies of a frame to an XDP program, which are then really sent, passed on or dropped as it says
    /// (`BPF_F_TEST_XDP_LIVE_FRAMES`, Documentation/bpf/bpf_prog_run.rst). The kernel uses pages again without writing the
    /// frame anew, so the program must write whatever was changed on the way. `batch` frames, 1…256, go at a time.
    ///
    /// The program runs as if it were attached to the loopback interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// What the kernel said: [`BpfError::NotPermitted`] without CAP_NET_ADMIN and CAP_BPF; kernels before 5.18 refuse.
    pub fn run_live(&self, frame: &[u8], count: u32, batch: u32) -> Result<(), BpfError> {
        let mut attributes = TestRun { flags: LIVE_FRAMES, batch_size: batch, ..self.run_of(frame, count) };
        bpf(PROG_TEST_RUN, &mut attributes)
            .map_err(|error| BpfError::from_system("run a BPF program on live frames", "5.18", error))?;
        Ok(())
    }

    fn run_of(&self, frame: &[u8], repeat: u32) -> TestRun {
        TestRun {
            prog_fd: self.descriptor.as_raw_fd() as u32,
            retval: 0,
            data_size_in: frame.len() as u32,
            data_size_out: 0,
            data_in: address_of(frame),
            data_out: 0,
            repeat,
            duration: 0,
            ctx_size_in: 0,
            ctx_size_out: 0,
            ctx_in: 0,
            ctx_out: 0,
            flags: 0,
            cpu: 0,
            batch_size: 0,
            padding: 0,
        }
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The readable end of the verifier's log.
fn end_of_log(log: &[u8]) -> String {
    let length = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let start = length.saturating_sub(LOG_SHOWN);
    String::from_utf8_lossy(&log[start..length]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r0 = value; exit`.
    fn constant(value: i32) -> [Instruction; 2] {
        let value = value.to_ne_bytes();
        [[0xb7, 0, 0, 0, value[0], value[1], value[2], value[3]], [0x95, 0, 0, 0, 0, 0, 0, 0]]
    }

    /// The result, or `None` with a printed reason where BPF is not permitted.
    fn permitted<T>(result: Result<T, BpfError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.is_not_permitted() => {
                println!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn entries_of_a_hash_map_come_back_until_they_are_deleted() {
        let Some(map) = permitted(Map::create(MapKind::Hash, "test", 4, 8, 3)) else { return };
        map.update(&[1; 4], &[2; 8]).unwrap();
        map.update_batch(&[[3; 4], [4; 4]].concat(), &[[5; 8], [6; 8]].concat()).unwrap();
        let mut value = [0; 8];
        assert!(map.lookup(&[4; 4], &mut value).unwrap());
        assert_eq!(value, [6; 8]);
        assert!(matches!(map.update(&[9; 4], &[0; 8]), Err(BpfError::Full { capacity: 3, .. })));
        assert!(map.delete(&[4; 4]).unwrap());
        assert!(!map.delete(&[4; 4]).unwrap());
        assert!(!map.lookup(&[4; 4], &mut value).unwrap());
        assert!(matches!(map.update(&[1; 3], &[2; 8]), Err(BpfError::Size { key_size: 4, .. })));
    }

    #[test]
    fn a_loaded_program_runs_and_a_bad_one_is_refused_with_the_verifiers_words() {
        let Some(program) = permitted(Program::load(ProgramKind::SocketFilter, "seven", &constant(7), &[])) else {
            return;
        };
        assert_eq!(program.test_run(&[0; 64], 1).unwrap().0, 7);
        let error = Program::load(ProgramKind::SocketFilter, "endless", &constant(7)[..1], &[]).unwrap_err();
        assert!(matches!(&error, BpfError::Refused { log, .. } if !log.is_empty()), "{error}");
        let Some(map) = permitted(Map::create(MapKind::Array, "test", 4, 4, 1)) else { return };
        let error = Program::load(ProgramKind::SocketFilter, "mapless", &constant(7), &[(0, &map)]).unwrap_err();
        assert!(matches!(error, BpfError::NotAMapReference { instruction: 0, .. }), "{error}");
    }
}

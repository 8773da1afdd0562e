//! A file that is read, and what would be written to it, in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use redb::StorageBackend;

/// What is written is kept by pieces of this size.
const PIECE: u64 = 4096;

/// A file that stays as it is.
#[derive(Debug)]
pub(super) struct Untouched {
    file: File,
    changed: Mutex<Changed>,
}

#[derive(Debug)]
struct Changed {
    /// Length as the writer sees it.
    length: u64,
    /// Bytes of the file that are still valid: what was cut off once reads as zero.
    valid: u64,
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Untouched {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, changed: Mutex::new(Changed { length, valid: length, pieces: BTreeMap::new() }) })
    }

    /// A piece as it is in the file, zeroes behind its end.
    fn original(&self, piece: u64, valid: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; PIECE as usize];
        let start = piece * PIECE;
        let length = valid.saturating_sub(start).min(PIECE) as usize;
        self.file.read_exact_at(&mut bytes[..length], start)?;
        Ok(bytes)
    }
}

impl StorageBackend for Untouched {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changed.lock().unwrap_or_else(PoisonError::into_inner).length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset.checked_add(out.len() as u64).filter(|&end| end <= changed.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let from_file = changed.valid.saturating_sub(offset).min(out.len() as u64) as usize;
        self.file.read_exact_at(&mut out[..from_file], offset)?;
        out[from_file..].fill(0);
        for (&piece, bytes) in changed.pieces.range(offset / PIECE..end.div_ceil(PIECE)) {
            let start = piece * PIECE;
            let (first, last) = (start.max(offset), (start + PIECE).min(end));
            let to = (first - offset) as usize..(last - offset) as usize;
            out[to].copy_from_slice(&bytes[(first - start) as usize..(last - start) as usize]);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if length < changed.length {
            changed.valid = changed.valid.min(length);
            changed.pieces.split_off(&length.div_ceil(PIECE));
            if let Some(last) = changed.pieces.get_mut(&(length / PIECE)) {
                last[(length % PIECE) as usize..].fill(0);
            }
        }
        changed.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= changed.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        for piece in offset / PIECE..end.div_ceil(PIECE) {
            let start = piece * PIECE;
            if !changed.pieces.contains_key(&piece) {
                let original = self.original(piece, changed.valid)?;
                changed.pieces.insert(piece, original);
            }
            let Some(bytes) = changed.pieces.get_mut(&piece) else { continue };
            let (first, last) = (start.max(offset), (start + PIECE).min(end));
            let from = (first - offset) as usize..(last - offset) as usize;
            bytes[(first - start) as usize..(last - start) as usize].copy_from_slice(&data[from]);
        }
        Ok(())
    }
}

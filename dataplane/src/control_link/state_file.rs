//! The tables that were applied last, on disk: `tables.bin` in the state directory.
//!
//! A file begins with `MAGIC` and `FORMAT`, then come records: a `Head` that says whose tables these are, a full update
//! with everything, and each change since as it came. A record is its length, the CRC-32 of its body and the CRC-32 of these
//! two numbers, all little-endian, then the body, a message of the push protocol. A change is appended and synchronised, so
//! that it costs what it touches; when the changes outweigh the full update, the file is written anew beside the old one and
//! takes its place.
//!
//! Every change is in the file before it is acknowledged to control. So a file that ends within its last record lost nothing
//! that was acknowledged: it was cut by a crash, and what comes before is good. Everything else that does not fit is damage:
//! then nothing of the file is used, because an older state could bring back an address that another gateway holds by now.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use postern_push::proto::Update;
use postern_push::{Assembled, Assembler};
use postern_tables::{Resource, ResourceKey};
use prost::Message;
use tracing::{error, info, warn};

/// How every file begins.
const MAGIC: [u8; 8] = *b"PSTNTBL\n";
/// Version of the form that is described above.
const FORMAT: u32 = 1;
/// Bytes of a record in front of its body.
const RECORD_HEAD: usize = 12;
/// Changes that a file may grow by before it is written anew, in bytes, at least.
const SMALL: u64 = 1 << 20;
/// No file is larger: 100,000 endpoints take some 15 MB.
const LARGEST: u64 = 4 << 30;

const NAME: &str = "tables.bin";
const NEW: &str = "tables.bin.new";
const DAMAGED: &str = "tables.bin.damaged";
const LOCK: &str = "lock";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has it.
    #[error("another postern dataplane is running with state directory {0}; stop it, or set control.state_directory")]
    Occupied(PathBuf),
}

/// Why a file is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The first bytes are others.
    #[error("it is not a file of tables")]
    Foreign,
    /// Of another version.
    #[error("its form is version {0}; this program reads version {FORMAT}")]
    Format(u32),
    /// It is too large to be one.
    #[error("it has {0} bytes")]
    Size(u64),
    /// A checksum is wrong, or what it covers makes no sense.
    #[error("the record at byte {at} is damaged: {reason}")]
    Record {
        /// Where the record begins.
        at: usize,
        /// What is wrong.
        reason: String,
    },
    /// It ends before there is anything in it.
    #[error("it ends after {0} bytes, before the tables are complete")]
    Short(usize),
    /// Tables of another gateway: this disk is a copy.
    #[error("it has the tables of gateway \"{0}\"; addresses may be on one gateway only")]
    OtherGateway(String),
}

/// Whose tables a file has.
#[derive(Clone, PartialEq, Eq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    gateway: String,
    #[prost(string, tag = "2")]
    catalog: String,
}

/// What a file had.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    /// The catalog that it came from.
    pub catalog: String,
    /// The last generation.
    pub generation: u64,
    /// The digest that came with it.
    pub digest: Vec<u8>,
    /// Everything that is declared.
    pub resources: BTreeMap<ResourceKey, Resource>,
}

/// The state directory, locked.
#[derive(Debug)]
pub struct StateFile {
    directory: PathBuf,
    gateway: String,
    /// Where changes are appended, if there is a good file.
    open: Option<Open>,
    /// Held for its lock, which ends with the process at the latest.
    _lock: File,
}

#[derive(Debug)]
struct Open {
    file: File,
    catalog: String,
    /// Bytes up to the end of the full update.
    full: u64,
    /// Bytes that are good.
    length: u64,
}

impl StateFile {
    /// Makes the directory where it is missing, locks it, and reads what is there. A file that cannot be used is set aside and
    /// logged.
    ///
    /// # Errors
    /// When the directory cannot be made or another process has it.
    pub fn open(directory: &Path, gateway: &str) -> Result<(Self, Option<Restored>), StateError> {
        let error = |operation| move |source| StateError::File { operation, path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(error("make state directory"))?;
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(directory.join(LOCK));
        let lock = lock.map_err(error("lock state directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::Occupied(directory.to_owned())),
            Err(TryLockError::Error(source)) => return Err(error("lock state directory")(source)),
        }
        let mut state = Self { directory: directory.to_owned(), gateway: gateway.to_owned(), open: None, _lock: lock };
        let path = state.path();
        let restored = match state.read() {
            Ok(restored) => restored,
            Err(Unreadable::System(error)) if error.kind() == io::ErrorKind::NotFound => {
                info!("there are no tables of an earlier run in {}", directory.display());
                None
            }
            Err(Unreadable::System(error)) => {
                error!("cannot read {}: {error}; starting with no endpoints", path.display());
                None
            }
            Err(Unreadable::Damage(damage)) => {
                state.set_aside(&damage);
                None
            }
        };
        Ok((state, restored))
    }

    /// Replaces everything: what is in the file after this is `update`, which is full.
    ///
    /// # Errors
    /// The system's answer. What was there before stays.
    pub fn replace(&mut self, catalog: &str, update: &Update) -> io::Result<()> {
        let head = Head { gateway: self.gateway.clone(), catalog: catalog.to_owned() };
        let mut bytes = Vec::with_capacity(update.encoded_len() + 256);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend(record(&head)?);
        bytes.extend(record(update)?);
        let new = self.directory.join(NEW);
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.directory)?.sync_all()?;
        let length = bytes.len() as u64;
        self.open = Some(Open { file, catalog: catalog.to_owned(), full: length, length });
        Ok(())
    }

    /// Adds a change to what is there.
    ///
    /// # Errors
    /// The system's answer, or that there is nothing to add to; then the file must be replaced.
    pub fn append(&mut self, update: &Update) -> io::Result<()> {
        let record = record(update)?;
        let Some(open) = &mut self.open else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no file to add to"));
        };
        let written = open.file.seek(SeekFrom::Start(open.length)).and_then(|_| open.file.write_all(&record));
        match written.and_then(|()| open.file.sync_data()) {
            Ok(()) => {
                open.length += record.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a record at the end is read as one that was cut. Nothing may come behind it.
                self.open = None;
                Err(error)
            }
        }
    }

    /// Removes what is there: better nothing than tables that are older than those that were acknowledged.
    ///
    /// # Errors
    /// The system's answer.
    pub fn remove(&mut self) -> io::Result<()> {
        self.open = None;
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a change of this catalog can be added.
    #[must_use]
    pub fn has(&self, catalog: &str) -> bool {
        self.open.as_ref().is_some_and(|open| open.catalog == catalog)
    }

    /// Whether the changes outweigh the full update, so that the file should be written anew.
    #[must_use]
    pub fn is_grown(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.length - open.full > open.full.max(SMALL))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    fn read(&mut self) -> Result<Option<Restored>, Unreadable> {
        let path = self.path();
        let mut file = File::options().read(true).write(true).open(&path)?;
        let size = file.metadata()?.len();
        if size > LARGEST {
            return Err(Damage::Size(size).into());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        io::Read::read_to_end(&mut file, &mut bytes)?;
        let (restored, full, length) = restore(&bytes, &self.gateway)?;
        if length < bytes.len() {
            warn!(
                "{} ends within a change that was never acknowledged; going on without it, from generation {}",
                path.display(),
                restored.generation
            );
            file.set_len(length as u64)?;
        }
        info!(
            generation = restored.generation,
            resources = restored.resources.len(),
            "read the tables that were applied last from {}",
            path.display()
        );
        let catalog = restored.catalog.clone();
        self.open = Some(Open { file, catalog, full: full as u64, length: length as u64 });
        Ok(Some(restored))
    }

    fn set_aside(&self, damage: &Damage) {
        let (path, aside) = (self.path(), self.directory.join(DAMAGED));
        match fs::rename(&path, &aside) {
            Ok(()) => error!(
                "cannot use {}: {damage}; it is kept as {}; starting with no endpoints until control is there",
                path.display(),
                aside.display()
            ),
            Err(error) => error!(
                "cannot use {}: {damage}; nor set it aside: {error}; starting with no endpoints until control is there",
                path.display()
            ),
        }
    }
}

enum Unreadable {
    System(io::Error),
    Damage(Damage),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Damage> for Unreadable {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

fn record(body: &impl Message) -> io::Result<Vec<u8>> {
    let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, "a record of more than 4 GB");
    let length = u32::try_from(body.encoded_len()).map_err(too_large)?;
    let mut bytes = vec![0; RECORD_HEAD];
    bytes.reserve(length as usize);
    body.encode(&mut bytes).expect("a vector has room");
    let checksum = crc32fast::hash(&bytes[RECORD_HEAD..]);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..8]);
    bytes[8..RECORD_HEAD].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// What the bytes of a file stand for, where its full update ends, and where what is good ends.
fn restore(bytes: &[u8], gateway: &str) -> Result<(Restored, usize, usize), Damage> {
    let number = |at: usize| bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if bytes.get(..MAGIC.len()).is_none_or(|magic| magic != MAGIC) {
        return Err(if MAGIC.starts_with(bytes) { Damage::Short(bytes.len()) } else { Damage::Foreign });
    }
    match number(MAGIC.len()) {
        Some(FORMAT) => {}
        Some(format) => return Err(Damage::Format(format)),
        None => return Err(Damage::Short(bytes.len())),
    }
    let mut records = Records { bytes, at: MAGIC.len() + 4 };
    let short = || Damage::Short(bytes.len());
    let (_, head) = records.next::<Head>()?.ok_or_else(short)?;
    if head.gateway != gateway {
        return Err(Damage::OtherGateway(head.gateway));
    }
    let mut restored = Restored { catalog: head.catalog, ..Restored::default() };
    let (at, full) = records.next::<Update>()?.ok_or_else(short)?;
    if !full.full {
        return Err(Damage::Record { at, reason: "the first update is not a full one".to_owned() });
    }
    restored.apply(full).map_err(|reason| Damage::Record { at, reason })?;
    let end_of_full = records.at;
    while let Some((at, update)) = records.next::<Update>()? {
        restored.apply(update).map_err(|reason| Damage::Record { at, reason })?;
    }
    Ok((restored, end_of_full, records.at))
}

struct Records<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Records<'_> {
    /// The next record and where it begins; `None` at the end, also where it was cut.
    fn next<M: Message + Default>(&mut self) -> Result<Option<(usize, M)>, Damage> {
        let at = self.at;
        let damage = |reason: &str| Damage::Record { at, reason: reason.to_owned() };
        let rest = &self.bytes[at..];
        let Some((head, rest)) = rest.split_first_chunk::<RECORD_HEAD>() else {
            return Ok(None);
        };
        let [length, of_body, of_head] =
            [0, 4, 8].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        if crc32fast::hash(&head[..8]) != of_head {
            return Err(damage("the checksum of its length is wrong"));
        }
        let Some(body) = rest.get(..length as usize) else {
            return Ok(None);
        };
        if crc32fast::hash(body) != of_body {
            return Err(damage("its checksum is wrong"));
        }
        let message = M::decode(body).map_err(|error| Damage::Record { at, reason: error.to_string() })?;
        self.at = at + RECORD_HEAD + length as usize;
        Ok(Some((at, message)))
    }
}

impl Restored {
    fn apply(&mut self, update: Update) -> Result<(), String> {
        let whole = Assembler::default().add(update).map_err(|error| error.to_string())?;
        let Some(Assembled { generation, digest, change }) = whole else {
            return Err("its update is not complete".to_owned());
        };
        (self.generation, self.digest) = (generation, digest);
        if change.full {
            self.resources.clear();
        }
        for key in &change.removed {
            self.resources.remove(key);
        }
        self.resources.extend(change.changed.into_iter().map(|resource| (resource.key(), resource)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;

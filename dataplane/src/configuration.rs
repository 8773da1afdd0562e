//! The configuration file: read, checked and compiled as a whole, or refused as a whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_tables::{Checked, Declaration, Errors, Snapshot, compile};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something in it is wrong: every mistake, one a line.
    #[error(transparent)]
    Refused(#[from] Errors),
    /// Checking or compiling it failed for a fault of ours.
    #[error("the configuration could not be compiled, which is a fault in postern: {0}")]
    Panicked(String),
}

/// Reads and checks a file.
///
/// # Errors
/// All mistakes at once.
pub fn load(path: &Path) -> Result<Checked, ConfigurationError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
    Ok(Declaration::from_toml(&text, &path.display().to_string())?.check()?)
}

/// Reads and checks a file that is to replace a running configuration, and compiles it to the next generation.
///
/// # Errors
/// All mistakes at once, changes among them that need a restart. The running tables stay.
pub fn reload(
    path: &Path,
    running: &Checked,
    tables: &Snapshot,
) -> Result<(Checked, Arc<Snapshot>), ConfigurationError> {
    let checked = load(path)?.reload(running)?;
    let snapshot = Arc::new(compile(&checked, Some(tables)));
    Ok((checked, snapshot))
}

//! The configuration file: read, checked and compiled as a whole, or refused as a whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use postern_tables::{Checked, Declaration, Errors, Snapshot, Tables};

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

/// Reads and checks a file that is to replace a running configuration, and compiles it to the next generation. With
/// `[control]` the tables are not the file's: those that run come back.
///
/// # Errors
/// All mistakes at once, changes among them that need a restart. The running tables stay.
pub fn reload(
    path: &Path,
    running: &Checked,
    tables: &Mutex<Tables>,
) -> Result<(Checked, Arc<Snapshot>), ConfigurationError> {
    let checked = load(path)?.reload(running)?;
    // What a panic left is whole: tables are replaced at once.
    let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
    let snapshot = if checked.control.is_some() { tables.snapshot().clone() } else { tables.reload(&checked) };
    Ok((checked, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_bed::CONFIGURATION;

    #[test]
    fn a_reload_with_mistakes_is_refused_whole_and_one_without_is_the_next_generation() {
        let file = std::env::temp_dir().join(format!("postern-reload-{}.toml", std::process::id()));
        fs::write(&file, CONFIGURATION).unwrap();
        let running = load(&file).unwrap();
        let tables = Mutex::new(Tables::new(&running));
        let first = tables.lock().unwrap().snapshot().generation;

        let two_mistakes =
            CONFIGURATION.replace("port = 8080", "port = 80800").replace("\"10.0.0.200\"", "\"10.0.0.300\"");
        fs::write(&file, two_mistakes).unwrap();
        let error = reload(&file, &running, &tables).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert!(error.lines().all(|line| line.starts_with(&format!("{}: ", file.display()))), "{error}");
        assert!(error.contains("80800") && error.contains("10.0.0.300"), "{error}");

        fs::write(&file, format!("{CONFIGURATION}\n[workers]\ncount = 2\n")).unwrap();
        let error = reload(&file, &running, &tables).unwrap_err().to_string();
        assert!(error.contains("workers.count") && error.contains("restart"), "{error}");

        fs::write(&file, CONFIGURATION.replace("port = 8080", "port = 8081")).unwrap();
        let (_, next) = reload(&file, &running, &tables).unwrap();
        assert!(next.generation > first);
        fs::remove_file(file).unwrap();
    }
}

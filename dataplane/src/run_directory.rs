//! The run directory: one process at a time, and what was changed on the host's interfaces, written down before it is done
//! so that it can be undone at the end, by the next start, or by hand.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use postern_frame_io::features::{Features, set_features};
use postern_frame_io::interface::Interface;
use postern_frame_io::{DeviceError, tc};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// File with the changes, in JSON.
const CHANGES: &str = "ports.json";
/// File that the running process has locked.
const LOCK: &str = "lock";

/// Why the run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
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
    #[error("another postern dataplane is running with run directory {0}; stop it, or set gateway.run_directory")]
    Occupied(PathBuf),
    /// The file is not what was written.
    #[error("{path} is not a list of port changes ({source}); look at it, undo what it says, and delete it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// What was changed on one interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortChange {
    /// Name of the interface.
    pub interface: String,
    /// Its index when it was changed. A successor of the same name was not changed.
    pub index: u32,
    /// Offload features, and whether they were on.
    pub features: Vec<(String, bool)>,
    /// Whether an ingress filter may have outlived the process.
    pub ingress_filter: bool,
}

/// The run directory, locked.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    changes: Vec<PortChange>,
    /// Held for its lock, which ends with the process at the latest.
    _lock: File,
}

impl RunDirectory {
    /// Makes the directory where it is missing, locks it, and undoes what an earlier process left behind.
    ///
    /// # Errors
    /// When another process has the lock, or a file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, RunDirectoryError> {
        let error = |operation| move |source| RunDirectoryError::File { operation, path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(error("make directory"))?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK));
        let lock = lock.map_err(error("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RunDirectoryError::Occupied(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(error("lock")(source)),
        }
        let changes = read_changes(&path.join(CHANGES))?;
        let mut directory = Self { path: path.to_owned(), changes, _lock: lock };
        if !directory.changes.is_empty() {
            info!("an earlier process left ports changed; restoring them");
            directory.restore()?;
        }
        Ok(directory)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Switches features of an interface, after writing down what they were. What the interface cannot do is left.
    ///
    /// # Errors
    /// When it cannot be written down; then nothing was switched.
    pub fn switch_features(&mut self, interface: &Interface, wanted: &[(&str, bool)]) -> Result<(), RunDirectoryError> {
        let features = match Features::read(interface.name()) {
            Ok(features) => features,
            Err(error) => {
                warn!("{error}; its offload features stay as they are");
                return Ok(());
            }
        };
        let differs = |(name, on): &&(&str, bool)| {
            features.feature(name).is_some_and(|feature| feature.changeable && feature.active != *on)
        };
        let wanted: Vec<_> = wanted.iter().filter(differs).copied().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let before = wanted.iter().map(|(name, on)| ((*name).to_owned(), !on)).collect();
        self.change(interface).features = before;
        self.write()?;
        if let Err(error) = set_features(interface.name(), &wanted) {
            warn!("{error}; throughput may suffer");
        }
        Ok(())
    }

    /// Writes down that an ingress filter is about to be attached.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record_ingress_filter(&mut self, interface: &Interface) -> Result<(), RunDirectoryError> {
        self.change(interface).ingress_filter = true;
        self.write()
    }

    /// Undoes every change and forgets it. What cannot be undone is logged.
    ///
    /// # Errors
    /// When the list of changes cannot be removed.
    pub fn restore(&mut self) -> Result<(), RunDirectoryError> {
        for change in self.changes.drain(..) {
            if let Err(error) = undo(&change) {
                warn!("cannot restore interface {}: {error}", change.interface);
            }
        }
        let file = self.path.join(CHANGES);
        match fs::remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RunDirectoryError::File { operation: "remove", path: file, source })
            }
            _ => Ok(()),
        }
    }

    /// The entry of an interface; a successor of the same name gets a new one.
    fn change(&mut self, interface: &Interface) -> &mut PortChange {
        self.changes.retain(|change| change.interface != interface.name() || change.index == interface.index());
        let at = self.changes.iter().position(|change| change.interface == interface.name());
        let at = at.unwrap_or_else(|| {
            self.changes.push(PortChange {
                interface: interface.name().to_owned(),
                index: interface.index(),
                features: Vec::new(),
                ingress_filter: false,
            });
            self.changes.len() - 1
        });
        &mut self.changes[at]
    }

    /// Replaces the file at once: a crash leaves the old list or the new one.
    fn write(&self) -> Result<(), RunDirectoryError> {
        let (file, new) = (self.path.join(CHANGES), self.path.join("ports.json.new"));
        let text = serde_json::to_string_pretty(&self.changes).expect("a list of plain values is JSON");
        let write = || {
            let mut to = File::create(&new)?;
            to.write_all(text.as_bytes())?;
            to.sync_all()?;
            fs::rename(&new, &file)
        };
        write().map_err(|source| RunDirectoryError::File { operation: "write", path: file.clone(), source })
    }
}

fn read_changes(file: &Path) -> Result<Vec<PortChange>, RunDirectoryError> {
    match fs::read_to_string(file) {
        Ok(text) => {
            serde_json::from_str(&text).map_err(|source| RunDirectoryError::Damaged { path: file.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(RunDirectoryError::File { operation: "read", path: file.to_owned(), source }),
    }
}

fn undo(change: &PortChange) -> Result<(), Box<dyn std::error::Error>> {
    match Interface::by_name(&change.interface) {
        Ok(interface) if interface.index() == change.index => {}
        // It was deleted with everything on it; one of the same name is another.
        Ok(_) | Err(DeviceError::NoInterface(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let features: Vec<_> = change.features.iter().map(|(name, on)| (name.as_str(), *on)).collect();
    set_features(&change.interface, &features)?;
    if change.ingress_filter {
        tc::detach_leftover(change.index)?;
    }
    info!(interface = change.interface, "restored");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("postern-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_second_process_is_refused_until_the_first_lets_go() {
        let path = directory("occupied");
        let first = RunDirectory::open(&path).unwrap();
        assert!(matches!(RunDirectory::open(&path), Err(RunDirectoryError::Occupied(_))));
        drop(first);
        RunDirectory::open(&path).unwrap();
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn changes_of_an_interface_that_is_gone_are_forgotten_and_a_damaged_list_is_not() {
        let path = directory("changes");
        fs::create_dir_all(&path).unwrap();
        let gone = PortChange {
            interface: "postern-gone".into(),
            index: 4_000_000,
            features: vec![("rx-gro".into(), true)],
            ingress_filter: true,
        };
        fs::write(path.join(CHANGES), serde_json::to_string(&[gone]).unwrap()).unwrap();
        drop(RunDirectory::open(&path).unwrap());
        assert!(!path.join(CHANGES).exists());
        fs::write(path.join(CHANGES), "[{\"interface\"").unwrap();
        assert!(matches!(RunDirectory::open(&path), Err(RunDirectoryError::Damaged { .. })));
        assert!(path.join(CHANGES).exists());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_is_switched_is_written_down_before_and_restored_by_the_next_start() {
        let path = directory("switched");
        let interface = Interface::by_name("lo").unwrap();
        let mut run = RunDirectory::open(&path).unwrap();
        // Nothing differs: nothing is written.
        let gro = Features::read("lo").unwrap().is_active("rx-gro");
        run.switch_features(&interface, &[("rx-gro", gro)]).unwrap();
        assert!(!path.join(CHANGES).exists());
        run.record_ingress_filter(&interface).unwrap();
        let changes = read_changes(&path.join(CHANGES)).unwrap();
        assert_eq!((changes.len(), changes[0].interface.as_str(), changes[0].ingress_filter), (1, "lo", true));
        run.restore().unwrap();
        assert!(!path.join(CHANGES).exists());
        fs::remove_dir_all(path).unwrap();
    }
}

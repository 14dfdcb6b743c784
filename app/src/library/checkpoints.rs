//! What is saved of a machine: its suspended state, and the points it can go back to.
//!
//! Each is a checkpoint of the monitor's in `checkpoints/`, with two files of ours in it: `about.json`, and a picture of the
//! screen.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm_core::checkpoint::{Checkpoint, CheckpointError, Store};
use vmm_core::config::VmConfig;

use super::machine::paths_mut;
use super::{LibraryError, Machine, Timestamp, files};
use crate::control::Power;

/// Its folder in the machine's.
const FOLDER: &str = "checkpoints";
/// What we say of a checkpoint.
pub const ABOUT: &str = "about.json";
/// Its screen.
pub const SCREEN: &str = "screen.png";
/// The most that is read of [`ABOUT`].
const MAX_ABOUT: u64 = 1 << 20;

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The machine was suspended: it goes on from here when it is started, once.
    Suspended,
}

/// What we say of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is for.
    pub kind: Kind,
    /// When it was made.
    pub created: Timestamp,
}

/// The checkpoints of a machine.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    store: Store,
}

/// A checkpoint and what we say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its name.
    pub id: String,
    /// The rest.
    pub about: About,
}

impl Machine {
    /// What is saved of it.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints { store: Store::new(self.folder().join(FOLDER)) }
    }
}

impl Checkpoints {
    /// The monitor's view of them.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A name that no checkpoint has.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn new_id() -> Result<String, LibraryError> {
        files::random_hex().map_err(LibraryError::io("read", &PathBuf::from("/dev/urandom")))
    }

    /// All that can be read, the oldest first.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn list(&self) -> Result<Vec<Saved>, LibraryError> {
        let ids = self.store.list()?;
        let mut all: Vec<Saved> =
            ids.into_iter().filter_map(|id| Some(Saved { about: self.about(&id)?, id })).collect();
        all.sort_by(|a, b| (a.about.created, &a.id).cmp(&(b.about.created, &b.id)));
        Ok(all)
    }

    fn about(&self, id: &str) -> Option<About> {
        use std::io::Read;
        let mut text = Vec::new();
        let file = std::fs::File::open(self.store.path(id).join(ABOUT)).ok()?;
        file.take(MAX_ABOUT).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What the machine goes on from when it is started, if it was suspended.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn suspended(&self) -> Result<Option<Saved>, LibraryError> {
        Ok(self.list()?.into_iter().rfind(|saved| saved.about.kind == Kind::Suspended))
    }

    /// What a machine that does not run is: suspended, or stopped.
    pub fn power(&self) -> Power {
        match self.suspended() {
            Ok(Some(_)) => Power::Suspended,
            _ => Power::Stopped,
        }
    }

    /// Gives up what the machine would go on from: its next start is one after power-off. The caller holds its lock.
    ///
    /// # Errors
    /// The files can't be removed.
    pub fn discard_suspended(&self) -> Result<(), LibraryError> {
        while let Some(saved) = self.suspended()? {
            self.store.remove(&saved.id)?;
        }
        Ok(())
    }

    /// Reads the checkpoint `id` of a machine that is still what it was when that was made.
    ///
    /// # Errors
    /// It is missing, damaged, or the machine was changed.
    pub fn load(&self, id: &str, machine: &Machine) -> Result<Checkpoint, LibraryError> {
        let checkpoint = self.store.load(id)?;
        if hardware(&checkpoint.manifest.config) != hardware(&machine.resolved()) {
            return Err(LibraryError::Changed { name: machine.name.clone() });
        }
        Ok(checkpoint)
    }
}

/// A configuration without what may differ between the times a machine is saved and goes on: where its files are, its
/// window.
fn hardware(config: &VmConfig) -> VmConfig {
    let mut config = config.clone();
    for path in paths_mut(&mut config) {
        *path = PathBuf::new();
    }
    config.display = Default::default();
    // A drive's medium is in the checkpoint.
    config.cdroms.iter_mut().for_each(|drive| drive.path = None);
    config.uuid = None;
    config
}

impl From<CheckpointError> for LibraryError {
    fn from(error: CheckpointError) -> LibraryError {
        LibraryError::Checkpoint(error)
    }
}

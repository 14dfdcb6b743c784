//! What is saved of a machine: its suspended state, and the points it can go back to.
//!
//! Each is a checkpoint of the monitor's in `checkpoints/`, with two files of ours in it: `about.json`, and a picture of the
//! screen.

use std::collections::BTreeMap;
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
    /// A point that a person took.
    Snapshot,
    /// A point that was taken by itself.
    Timeline,
}

/// What we say of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is for.
    pub kind: Kind,
    /// When it was made.
    pub created: Timestamp,
    /// What it is called; nothing for one that nobody sees.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What a person wrote of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The snapshot that was the present when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The machine's file as it was. Its disks are the images that stay as they were.
    pub machine: String,
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
    /// The checkpoint that its next start goes on from, if it does: a snapshot that it was set back to, or what it was
    /// suspended in.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn goes_on_from(&self) -> Result<Option<String>, LibraryError> {
        if self.resume.is_some() {
            return Ok(self.resume.clone());
        }
        if self.restoring.is_some() {
            // Its disks are others by now.
            return Ok(None);
        }
        Ok(self.checkpoints().suspended()?.map(|saved| saved.id))
    }

    /// What it is while it does not run: suspended, or stopped.
    pub fn power_at_rest(&self) -> Power {
        match self.goes_on_from() {
            Ok(Some(_)) => Power::Suspended,
            _ => Power::Stopped,
        }
    }

    /// Gives up what it would go on from: its next start is one after power-off. The caller holds its lock.
    ///
    /// # Errors
    /// The files can't be changed.
    pub fn discard_suspended(&mut self) -> Result<(), LibraryError> {
        if self.resume.take().is_some() {
            self.write()?;
        }
        self.checkpoints().discard_suspended()
    }

    /// The same, and what it was suspended in becomes a checkpoint of its timeline. The caller holds its lock.
    ///
    /// # Errors
    /// The host has no room, or the files can't be changed: it is still suspended then.
    pub fn keep_suspended(&mut self) -> Result<(), LibraryError> {
        self.finish_what_was_begun()?;
        let Some(mut saved) = self.checkpoints().suspended()?.filter(|_| self.resume.is_none()) else {
            return self.discard_suspended();
        };
        let overlays = self.make_overlays(&Checkpoints::new_id()?)?;
        let mut changed = self.with_overlays(&overlays);
        // They read as the old ones do, which stay as they are from here on: it can still go on where it was.
        if let Err(error) = changed.write() {
            self.go_back_to_images(&overlays);
            return Err(error);
        }
        *self = changed.clone();
        saved.about.kind = Kind::Timeline;
        self.checkpoints().describe(&saved.id, &saved.about)?;
        changed.present = Some(saved.id);
        *self = changed;
        self.write()
    }
}

impl Saved {
    /// The machine as it was, in the folder of what it is now.
    ///
    /// # Errors
    /// What was kept of it can't be understood.
    pub fn machine(&self, now: &Machine) -> Result<Machine, LibraryError> {
        let path = now.checkpoints().store.path(&self.id).join(ABOUT);
        Machine::from_text(now.folder(), &path, &self.about.machine)
    }
}

impl About {
    /// The file's contents.
    pub fn text(&self) -> Vec<u8> {
        // Its shape has string keys only: it always serialises.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }
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
        // Of those of one second, what came after another comes after it.
        let parents: BTreeMap<String, Option<String>> =
            all.iter().map(|saved| (saved.id.clone(), saved.about.parent.clone())).collect();
        let depth = |saved: &Saved| {
            let mut at = &saved.about.parent;
            // Files may say anything, also that each comes after the other.
            (0..parents.len())
                .take_while(|_| at.as_ref().and_then(|id| parents.get(id)).map(|up| at = up).is_some())
                .count()
        };
        all.sort_by_cached_key(|saved| (saved.about.created, depth(saved), saved.id.clone()));
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

    /// Whether everything there is can be understood: else nothing that may be needed is removed.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn can_be_read(&self) -> Result<bool, LibraryError> {
        Ok(self.store.list()?.iter().all(|id| self.about(id).is_some()))
    }

    /// Writes again what is said of a checkpoint.
    ///
    /// # Errors
    /// The file can't be written; the old one is then still there.
    pub fn describe(&self, id: &str, about: &About) -> Result<(), LibraryError> {
        let path = self.store.path(id).join(ABOUT);
        files::write_atomic(&path, &about.text()).map_err(LibraryError::io("write", &path))
    }

    /// Removes what the machine was suspended in.
    pub(super) fn discard_suspended(&self) -> Result<(), LibraryError> {
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
        if hardware(&checkpoint.config) != hardware(&machine.resolved()) {
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
    // A copy has other addresses, and may not be plugged in.
    for net in &mut config.nets {
        (net.tap, net.mac) = (None, None);
    }
    config
}

impl From<CheckpointError> for LibraryError {
    fn from(error: CheckpointError) -> LibraryError {
        LibraryError::Checkpoint(error)
    }
}

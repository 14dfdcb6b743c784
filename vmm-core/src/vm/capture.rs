//! A running machine's checkpoint: what is asked, and what comes of it.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use super::CommandError;
use super::control::Hold;
use crate::backend::disk::Format;
use crate::base::{OldPages, PageTable};
use crate::checkpoint::{CheckpointError, Draft, Moment, Store};
use crate::config::VmConfig;

/// A disk that goes on with another image, which reads the same: what it was stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSwitch {
    /// Which disk, from 0; not one that is read-only.
    pub disk: usize,
    /// The image.
    pub path: PathBuf,
    /// The image is to stand on this one from now on, which holds the same as what it stands on: its name in the image's
    /// own folder, and its format.
    pub onto: Option<(PathBuf, Format)>,
}

/// What the control thread needs to stop the machine for a moment.
pub(super) struct Capture {
    /// The machine runs on at once; else it stays paused.
    pub going_on: bool,
    /// Images that disks go on with.
    pub disks: Vec<DiskSwitch>,
    /// Where the pages go.
    pub to: File,
    /// The layers that the store has.
    pub known: Vec<String>,
    /// Pages to compare with.
    pub old: Option<(OldPages, PageTable)>,
}

/// A machine's moment that is still to be written.
pub struct Captured {
    pub(super) draft: Draft,
    pub(super) moment: Moment,
    pub(super) config: VmConfig,
    pub(super) stopped: Duration,
    /// Dropped last.
    pub(super) _hold: Option<Hold>,
}

impl Captured {
    /// How long the guest was stopped; until now, where it stays paused.
    pub fn stopped(&self) -> Duration {
        self.stopped
    }

    /// Adds a file to the checkpoint, see [`Draft::add`].
    pub fn add(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.draft.add(name, bytes)
    }

    /// Writes the checkpoint. `progress` hears of pages that were looked at and of all, and says whether to go on.
    pub fn write(self, mut progress: impl FnMut(u64, u64) -> bool) -> Result<(), CheckpointError> {
        self.draft.write(self.moment, &self.config, |done| progress(done.done, done.total))
    }
}

/// Why a machine can't be taken for a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Its state refuses it.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The checkpoint can't be begun.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Prepares what needs no machine: begins the checkpoint, and maps the pages of the `last` one, so that only what changed
/// since is written.
pub(super) fn prepare(
    store: &Store,
    id: &str,
    last: Option<&str>,
    size: u64,
    going_on: bool,
    disks: Vec<DiskSwitch>,
) -> Result<(Draft, Capture), CheckpointError> {
    let draft = store.begin(id)?;
    // One that can't be read is no reason not to save: more is written then.
    let old = last.and_then(|last| store.old_pages(last, size).ok().flatten());
    let to = draft.memory()?;
    Ok((draft, Capture { going_on, disks, to, known: store.layers()?, old }))
}

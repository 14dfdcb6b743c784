//! Checkpoints on disk: a machine as it was at one moment, RAM and devices, in a folder (docs/checkpoints.md).
//!
//! - `manifest.json` says what there is, and is written last: a folder without it is no checkpoint.
//! - `state` has the sections of CPUs and devices, one behind another.
//! - `memory` has the pages that no older checkpoint has, each at its own place: the file is sparse.
//! - `pages` says which checkpoint's `memory` has each page. Pages that are nowhere are zeroes.
//!
//! A checkpoint is written beside its place, made durable and renamed. One that is removed leaves its `memory` as long as
//! another needs pages of it.
//!
//! A checkpoint that goes straight to another process on this computer, a fork, is handed over in memory ([`handover`]).

mod handover;
mod manifest;
mod store;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use manifest::Manifest;
pub use store::{Draft, Sharing, Store};

use crate::base::{PageTable, RamCopy, Section, StateError};
use crate::config::VmConfig;

/// A checkpoint that was read: what a machine is restored from.
pub struct Checkpoint {
    /// The machine, as it was built.
    pub config: VmConfig,
    /// CPUs and devices; none where the machine was off.
    pub sections: Vec<Section>,
    /// RAM, bytes.
    pub size: u64,
    /// Where RAM is.
    pub pages: PageTable,
}

/// A machine at one moment, whose RAM is still to be copied ([`Draft::write`]).
pub struct Moment {
    /// CPUs and devices.
    pub sections: Vec<Section>,
    /// RAM, bytes.
    pub size: u64,
    /// Copies what is not in `base`.
    pub copy: RamCopy,
    /// Where the other pages are.
    pub base: PageTable,
    /// What pages are in that were found the same as in an older checkpoint.
    pub old: PageTable,
    /// The layer that the running machine has of the pages that are copied; it is in the store afterwards.
    pub layer: Option<std::sync::Arc<crate::base::Layer>>,
}

/// Why a checkpoint can't be written, read or removed. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The host refused.
    #[error("could not {action} {}", path.display())]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The disk is full.
    #[error("there is no room for {}: free some space and try again", path.display())]
    Full {
        /// What was written.
        path: PathBuf,
    },
    /// There is none of that name.
    #[error("there is no checkpoint {id}")]
    Missing {
        /// The name.
        id: String,
    },
    /// It is from a newer program.
    #[error(
        "the checkpoint {id} was made by a newer Orangery (format {found}; this one reads up to {known}): use that"
    )]
    Newer {
        /// Its name.
        id: String,
        /// Its format.
        found: u32,
        /// The newest that is understood.
        known: u32,
    },
    /// It is not what was written.
    #[error("the checkpoint {id} is damaged: {why}")]
    Damaged {
        /// Its name.
        id: String,
        /// What is wrong with it.
        why: String,
    },
    /// A device can't be saved.
    #[error("the machine's state can't be saved")]
    State(#[from] StateError),
    /// Whoever asked for it did not want to wait.
    #[error("it was cancelled")]
    Cancelled,
}

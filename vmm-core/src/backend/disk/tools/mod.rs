//! What is done to disk images that no machine is using.

mod check;
mod compact;
mod compare;
mod convert;
mod info;
mod resize;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

pub use check::check;
pub use compact::compact;
pub use compare::is_same;
pub use convert::{Target, convert, start};
pub use info::{Info, Layer, info};
pub use resize::grow;

use super::DiskError;
use super::foreign::ForeignError;
use super::image::OpenError;
use super::qcow2::{CreateError, Merge};

/// Bytes that are copied at once.
const CHUNK: u64 = 1 << 20;

/// Why a tool failed. The image is as it was, or as it was with a part of the work done, which changes nothing that a
/// guest sees.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// An image can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A new one can't be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Reading or writing an image failed.
    #[error("could not {action} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: DiskError,
    },
    /// A foreign image can't be read.
    #[error("could not read {}", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ForeignError,
    },
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
    /// It makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The caller wanted it to end.
    #[error("cancelled; nothing was changed that a guest could see")]
    Cancelled,
}

impl ToolError {
    fn from_merge(error: Merge, path: &std::path::Path) -> ToolError {
        match error {
            Merge::Open(error) => ToolError::Open(error),
            Merge::Disk { action, source } => ToolError::Disk { action, path: path.into(), source },
            Merge::Cancelled => ToolError::Cancelled,
        }
    }
}

/// How far a tool is, and whether it is to go on.
pub struct Job<'a> {
    /// Hears how many bytes are done, and of how many.
    pub progress: &'a mut dyn FnMut(u64, u64),
    /// Set by whoever wants it to end.
    pub cancel: &'a AtomicBool,
}

impl Job<'_> {
    fn at(&mut self, done: u64, all: u64) -> Result<(), ToolError> {
        (self.progress)(done, all);
        if self.cancel.load(Ordering::Relaxed) { Err(ToolError::Cancelled) } else { Ok(()) }
    }
}

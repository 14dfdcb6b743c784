//! Looks for what is wrong in an image's own tables, and puts right what can be.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::{Job, ToolError};
use crate::backend::disk::open::{Format, detect};
use crate::backend::disk::qcow2::{self, Findings};

/// Compares what an image counts with what it uses; with `repair`, takes leaked space back and counts again what is used. A raw
/// image has no tables: nothing can be wrong with it. Given up, or killed, at any instant it holds what it held.
pub fn check(path: &Path, repair: bool, job: &mut Job<'_>) -> Result<Findings, ToolError> {
    if detect(path)? == Format::Raw {
        return Ok(Findings::default());
    }
    let Job { progress, cancel } = job;
    let mut look = |done: u64, all: u64| {
        progress(done, all);
        !cancel.load(Ordering::Relaxed)
    };
    let found = if repair { qcow2::repair_file(path, &mut look) } else { qcow2::check(path, &mut look) };
    match found {
        Err(_) if cancel.load(Ordering::Relaxed) => Err(ToolError::Cancelled),
        found => Ok(found?),
    }
}

//! Whether two images hold the same disk: what a copy has to prove before the first one goes.

use std::path::Path;

use super::convert::Source;
use super::{CHUNK, Job, ToolError};
use crate::backend::disk::SECTOR;

/// Compares the disks of two images, of any formats that can be read, byte for byte.
pub fn is_same(one: &Path, other: &Path, job: &mut Job<'_>) -> Result<bool, ToolError> {
    let mut sources = [(Source::open(one)?, one), (Source::open(other)?, other)];
    let [size, theirs] = [sources[0].0.size(), sources[1].0.size()];
    if size != theirs {
        return Ok(false);
    }
    let mut offset = 0;
    while offset < size {
        job.at(offset, size)?;
        // For how much neither has anything.
        let mut empty = size - offset;
        for (source, path) in &mut sources {
            let (data, len) = source.extent(path, offset)?;
            empty = if data { 0 } else { empty.min(len) };
        }
        if offset + empty < size {
            // A part of a sector is none.
            empty = empty / SECTOR * SECTOR;
        }
        if empty > 0 {
            offset += empty;
            continue;
        }
        let len = CHUNK.min(size - offset) as usize;
        let [(first, one), (second, other)] = &mut sources;
        if first.read(one, offset, len)? != second.read(other, offset, len)? {
            return Ok(false);
        }
        offset += len as u64;
    }
    job.at(size, size)?;
    Ok(true)
}

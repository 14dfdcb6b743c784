//! A part of a file with what is to be written there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::backend::disk::Buffers;
use crate::backend::disk::buffers::Scratch;
use crate::backend::disk::job::Job;

/// See the module.
#[derive(Clone)]
pub struct Piece {
    offset: u64,
    bytes: Arc<Scratch>,
    len: usize,
}

impl Piece {
    /// These bytes at this offset. They are padded with zeroes to whole sectors.
    pub fn new(offset: u64, bytes: &[u8]) -> Piece {
        let len = bytes.len().next_multiple_of(512);
        let mut scratch = Scratch::new(len);
        scratch.bytes()[..bytes.len()].copy_from_slice(bytes);
        Piece { offset, bytes: Arc::new(scratch), len }
    }

    /// Writes it at once.
    pub fn write(&self, file: &File) -> io::Result<()> {
        // SAFETY: nobody writes to a piece after it was made, and self keeps it.
        let bytes = unsafe { std::slice::from_raw_parts(self.bytes.start(), self.len) };
        file.write_all_at(bytes, self.offset)
    }

    /// The job that writes it.
    pub fn job(&self) -> Job {
        Job::write(self.offset, Buffers::own(&self.bytes, self.len))
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x}", self.len, self.offset)
    }
}

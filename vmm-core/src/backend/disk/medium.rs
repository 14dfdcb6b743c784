//! A CD or DVD: a read-only image in blocks of 2048 bytes, read by whoever waits for it.

use std::path::Path;

use super::image::{Image, OpenError, OpenOptions};
use super::job::Job;
use super::{Buffers, DiskError, Request};

/// Bytes in a block of a data disc.
pub const BLOCK: u64 = 2048;

/// See the module.
pub struct Medium {
    image: Image,
}

impl Medium {
    /// Opens an ISO file, or the host's own drive, for reading. Others may read it at the same time.
    pub fn open(path: &Path) -> Result<Medium, OpenError> {
        Ok(Medium { image: Image::open(path, OpenOptions { readonly: true, direct: false })? })
    }

    /// How many blocks there are; what the last one lacks in the file reads as zeroes.
    pub fn blocks(&self) -> u64 {
        self.image.geometry.size.div_ceil(BLOCK)
    }

    /// Fills the buffers from byte `offset` on as far as there are bytes, then with zeroes.
    pub fn read(&self, offset: u64, buffers: Buffers) -> Result<(), DiskError> {
        let offset = offset.min(self.image.geometry.size);
        let left = self.image.geometry.size - offset;
        let (now, mut beyond) = buffers.split(left);
        Job::new(Request::Read { offset, buffers: now }, &self.image, 1).run(&self.image)?;
        beyond.fill_zero();
        Ok(())
    }
}

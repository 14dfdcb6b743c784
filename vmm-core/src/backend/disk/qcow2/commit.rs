//! Moves what an image has of its own into the one that it stands on.
//!
//! It may be done while a machine reads through both: what is written below is what the image above has in the same place,
//! so nobody sees the change. Interrupted at any instant, it is simply done again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::chain::{self, Roots};
use super::read::Place;
use super::{Key, Qcow2Disk};
use crate::backend::disk::buffers::Scratch;
use crate::backend::disk::image::{Image, Lock, OpenError, OpenOptions};
use crate::backend::disk::open::Format;
use crate::backend::disk::pool::Way;
use crate::backend::disk::raw::RawDisk;
use crate::backend::disk::{Buffers, Disk, DiskError, Request};

/// Bytes that are copied at once, and how many of these beside each other.
const CHUNK: u64 = 1 << 20;
const DEPTH: usize = 8;

/// Why an image was not merged into the one below. That one may hold parts of it, which nobody can tell.
#[derive(Debug, thiserror::Error)]
pub enum Merge {
    /// One of the two can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Reading or writing failed.
    #[error("could not {action} while merging: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: DiskError,
    },
    /// The caller wanted it to end.
    #[error("the merge was cancelled")]
    Cancelled,
}

/// What an image has of its own in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Nothing.
    Hole,
    /// Zeroes.
    Zero,
    /// Data.
    Data,
}

impl Qcow2Disk {
    /// What the top image alone has from `offset` on, and for how many bytes.
    pub(crate) fn extent(&mut self, offset: u64) -> Result<(Extent, u64), DiskError> {
        loop {
            let left = self.geometry.size - offset;
            let Some(top) = self.layers.first_mut() else { return Ok((Extent::Hole, left)) };
            let inside = top.size.saturating_sub(offset).min(left);
            if inside == 0 {
                return Ok((Extent::Zero, left));
            }
            use super::table::Found;
            match top.find(offset, inside)? {
                Found::Data { len, .. } | Found::Packed { len, .. } => return Ok((Extent::Data, len)),
                Found::Zero { len } => return Ok((Extent::Zero, len)),
                Found::Hole { len } => return Ok((Extent::Hole, len)),
                Found::Missing(slice) => self.load_now(Key::Slice { layer: 0, slice })?,
            }
        }
    }
}

impl Qcow2Disk {
    /// Whether the whole chain has something else than zeroes from `offset` on, and for how many bytes that is so.
    pub(crate) fn extent_of_all(&mut self, offset: u64) -> Result<(Extent, u64), DiskError> {
        loop {
            match self.resolve(0, offset, self.geometry.size - offset)? {
                Ok((Place::Zero, len)) => return Ok((Extent::Zero, len)),
                Ok((_, len)) => return Ok((Extent::Data, len)),
                Err(key) => self.load_now(key)?,
            }
        }
    }
}

fn failed(action: &'static str) -> impl Fn(DiskError) -> Merge {
    move |source| Merge::Disk { action, source }
}

/// Writes what `top` has of its own into `base`, and returns when that is on stable storage. Then nothing that stands on
/// `top` sees a difference when it stands on `base`. `progress` hears how many bytes of the disk are done, and of how many;
/// `cancel` is looked at between parts. Nobody else may stand on `base` than `top` and what stands on that.
pub fn commit(
    top: &Path,
    base: &Path,
    base_format: Format,
    progress: &mut dyn FnMut(u64, u64),
    cancel: &AtomicBool,
) -> Result<(), Merge> {
    let reading = OpenOptions { readonly: true, direct: false };
    let layer = chain::open_one(top, reading, Lock::Shared, Some("qcow2"))?;
    let mut source = Qcow2Disk::with_layers(top, vec![layer], reading, Way::Best)?;
    let size = source.geometry().size;
    let mut target = open_base(base, base_format, size)?;
    let mut copier = Copier::new();
    let mut offset = 0;
    while offset < size {
        if cancel.load(Ordering::Relaxed) {
            return Err(Merge::Cancelled);
        }
        progress(offset, size);
        let mut parts = Vec::new();
        while offset < size && parts.len() < DEPTH {
            let (extent, len) = source.extent(offset).map_err(failed("read the upper image"))?;
            match extent {
                Extent::Hole => {}
                Extent::Zero => {
                    let request = Request::WriteZeroes { offset, len, unmap: true, durable: false };
                    perform(&mut *target, request).map_err(failed("write the lower image"))?;
                }
                Extent::Data => {
                    let mut at = offset;
                    while at < offset + len {
                        let now = (offset + len - at).min(CHUNK);
                        parts.push((at, now));
                        at += now;
                    }
                }
            }
            offset += len;
        }
        for parts in parts.chunks(DEPTH) {
            copier.copy(&mut source, &mut *target, parts, false)?;
            if cancel.load(Ordering::Relaxed) {
                return Err(Merge::Cancelled);
            }
        }
    }
    target.settle().map_err(failed("write the lower image"))?;
    progress(size, size);
    Ok(())
}

/// Opens the lower image beside those who read it, at least as large as the upper one.
fn open_base(path: &Path, format: Format, size: u64) -> Result<Box<dyn Disk>, Merge> {
    let options = OpenOptions { readonly: false, direct: false };
    Ok(match format {
        Format::Raw => {
            let image = Image::open_locked(path, options, Lock::Beside)?;
            let image = if image.geometry.size < size && !image.is_block_device {
                let host = |source| OpenError::Host { action: "enlarge", path: path.into(), source };
                image.extend(size).map_err(host)?;
                drop(image);
                Image::open_locked(path, options, Lock::Beside)?
            } else {
                image
            };
            Box::new(RawDisk::with(path, image, Way::Best)?)
        }
        Format::Qcow2 => {
            let mut disk = Qcow2Disk::open_with(path, options, &Roots::of(path), Way::Best, true)?;
            if disk.geometry().size < size {
                disk.grow(size).map_err(failed("enlarge the lower image"))?;
            }
            Box::new(disk)
        }
    })
}

/// Has a disk perform a request, and waits.
pub(crate) fn perform(disk: &mut dyn Disk, request: Request) -> Result<(), DiskError> {
    disk.submit(0, request);
    disk.drain();
    let mut result = Ok(());
    while let Some(completion) = disk.completed() {
        result = result.and(completion.result);
    }
    result
}

/// Copies parts of one disk to another.
pub(crate) struct Copier {
    scratch: Vec<Arc<Scratch>>,
}

impl Copier {
    /// The most parts that are copied beside each other.
    pub const DEPTH: usize = DEPTH;

    /// These bytes as what a request takes.
    pub fn buffers(bytes: &[u8]) -> Buffers {
        let mut scratch = Scratch::new(bytes.len());
        scratch.bytes()[..bytes.len()].copy_from_slice(bytes);
        Buffers::own(&Arc::new(scratch), bytes.len())
    }

    /// Where something else than zeroes is, in blocks: starts and lengths.
    pub fn runs(bytes: &[u8]) -> Vec<(u64, u64)> {
        const BLOCK: usize = 64 << 10;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (at, block) in bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
            let (start, len) = ((at * BLOCK) as u64, block.len() as u64);
            match runs.last_mut() {
                Some((first, all)) if *first + *all == start => *all += len,
                _ => runs.push((start, len)),
            }
        }
        runs
    }

    pub fn new() -> Copier {
        Copier { scratch: (0..DEPTH).map(|_| Arc::new(Scratch::new(CHUNK as usize))).collect() }
    }

    /// Copies these parts, each of at most [`CHUNK`] bytes, and at most [`DEPTH`]. `sparse`: what is all zeroes is left out.
    pub fn copy(
        &mut self,
        source: &mut dyn Disk,
        target: &mut dyn Disk,
        parts: &[(u64, u64)],
        sparse: bool,
    ) -> Result<(), Merge> {
        for (&(offset, len), scratch) in parts.iter().zip(&self.scratch) {
            source.submit(0, Request::Read { offset, buffers: Buffers::own(scratch, len as usize) });
        }
        finish(source).map_err(failed("read"))?;
        for (&(offset, len), scratch) in parts.iter().zip(&mut self.scratch) {
            let all = vec![(0, len)];
            let runs = match Arc::get_mut(scratch) {
                Some(scratch) if sparse => Copier::runs(&scratch.bytes()[..len as usize]),
                _ => all,
            };
            for (start, len) in runs {
                let (_, rest) = Buffers::own(scratch, (start + len) as usize).split(start);
                target.submit(0, Request::Write { offset: offset + start, buffers: rest, durable: false });
            }
        }
        finish(target).map_err(failed("write"))
    }
}

fn finish(disk: &mut dyn Disk) -> Result<(), DiskError> {
    disk.drain();
    let mut result = Ok(());
    while let Some(completion) = disk.completed() {
        result = result.and(completion.result);
    }
    result
}

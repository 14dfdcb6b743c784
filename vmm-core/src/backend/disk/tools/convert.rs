//! Makes a copy of an image in another format, or without what stands in the way of using it. The copy is made beside its
//! place, and takes it when it is whole and on stable storage.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::{CHUNK, Job, ToolError};
use crate::backend::disk::foreign::ForeignDisk;
use crate::backend::disk::image::OpenOptions;
use crate::backend::disk::open::{Format, Identity, identify};
use crate::backend::disk::part::Part;
use crate::backend::disk::qcow2::{Copier, CreateOptions, Extent, Qcow2Disk, Roots, format, perform};
use crate::backend::disk::raw::RawDisk;
use crate::backend::disk::{Buffers, Disk, Request, SECTOR, Scratch};
use crate::base::data_at;

/// What the copy is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its format.
    pub format: Format,
    /// Bytes of a cluster of a qcow2 image; `None`: what suits a thin disk.
    pub cluster: Option<u32>,
}

/// Where bytes of the source are something else than zeroes.
pub(super) enum Source {
    Foreign(ForeignDisk),
    Qcow2(Box<Qcow2Disk>),
    Raw(Box<RawDisk>, File),
}

impl Source {
    pub fn open(path: &Path) -> Result<Source, ToolError> {
        let options = OpenOptions { readonly: true, direct: false };
        Ok(match identify(path)? {
            Identity::Foreign(kind) => Source::Foreign(ForeignDisk::open(path, kind)?),
            Identity::Own(Format::Qcow2) => {
                Source::Qcow2(Box::new(Qcow2Disk::open_among(path, options, &Roots::of(path))?))
            }
            Identity::Own(Format::Raw) => {
                let disk = RawDisk::open(path, options)?;
                let file =
                    File::open(path).map_err(|source| ToolError::Host { action: "open", path: path.into(), source })?;
                Source::Raw(Box::new(disk), file)
            }
        })
    }

    pub fn size(&self) -> u64 {
        match self {
            Source::Foreign(disk) => disk.size(),
            Source::Qcow2(disk) => disk.geometry().size,
            Source::Raw(disk, _) => disk.geometry().size,
        }
    }

    /// Whether there is something at `offset`, and for how many bytes that is so.
    pub fn extent(&mut self, path: &Path, offset: u64) -> Result<(bool, u64), ToolError> {
        let left = self.size() - offset;
        Ok(match self {
            Source::Foreign(disk) => disk.extent(offset).map_err(|e| foreign(path, e))?,
            Source::Qcow2(disk) => {
                let (extent, len) = disk.extent_of_all(offset).map_err(|source| failed("read", path, source))?;
                (extent == Extent::Data, len)
            }
            Source::Raw(_, file) => data_at(file, offset, left),
        })
    }

    /// Reads whole sectors within the disk.
    pub fn read(&mut self, path: &Path, offset: u64, len: usize) -> Result<Vec<u8>, ToolError> {
        let mut scratch = Arc::new(Scratch::new(len));
        let request = Request::Read { offset, buffers: Buffers::own(&scratch, len) };
        match self {
            Source::Qcow2(disk) => perform(&mut **disk, request).map_err(|error| failed("read", path, error))?,
            Source::Raw(disk, _) => perform(&mut **disk, request).map_err(|error| failed("read", path, error))?,
            Source::Foreign(disk) => {
                let mut bytes = vec![0; len];
                disk.read(offset, &mut bytes).map_err(|error| foreign(path, error))?;
                return Ok(bytes);
            }
        }
        let bytes = Arc::get_mut(&mut scratch).map(|scratch| scratch.bytes()[..len].to_vec());
        Ok(bytes.unwrap_or_default())
    }
}

fn foreign(path: &Path, source: crate::backend::disk::foreign::ForeignError) -> ToolError {
    ToolError::Foreign { path: path.into(), source }
}

fn failed(action: &'static str, path: &Path, source: crate::backend::disk::DiskError) -> ToolError {
    ToolError::Disk { action, path: path.into(), source }
}

/// Copies `from` to `to`, where nothing may be yet.
pub fn convert(from: &Path, to: &Path, target: Target, job: &mut Job<'_>) -> Result<(), ToolError> {
    if to.symlink_metadata().is_ok() {
        return Err(ToolError::Refused(format!(
            "{} is there already; choose another name or move it away",
            to.display()
        )));
    }
    let mut source = Source::open(from)?;
    let size = source.size();
    let host = |action| move |source| ToolError::Host { action, path: to.into(), source };
    let (part, file) = Part::begin(to).map_err(host("create"))?;
    match target.format {
        Format::Qcow2 => {
            let thin = CreateOptions::thin(size);
            let options = CreateOptions { cluster: target.cluster.unwrap_or(thin.cluster), ..thin };
            format(&part.path, &file, options)?;
        }
        Format::Raw => file.set_len(size).map_err(host("create"))?,
    }
    part.let_go(file);
    let options = OpenOptions { readonly: false, direct: false };
    let mut disk: Box<dyn Disk> = match target.format {
        Format::Qcow2 => Box::new(Qcow2Disk::open(&part.path, options)?),
        Format::Raw => Box::new(RawDisk::open(&part.path, options)?),
    };
    copy(&mut source, from, &mut *disk, to, job)?;
    disk.settle().map_err(|error| failed("write", to, error))?;
    drop(disk);
    part.put_in_place().map_err(host("create"))
}

fn copy(source: &mut Source, from: &Path, disk: &mut dyn Disk, to: &Path, job: &mut Job<'_>) -> Result<(), ToolError> {
    let (size, mut copier, mut offset) = (source.size(), Copier::new(), 0);
    let mut parts = Vec::new();
    while offset < size {
        job.at(offset, size)?;
        let (data, len) = source.extent(from, offset)?;
        if !data {
            offset += len;
            continue;
        }
        let now = len.min(CHUNK - offset % CHUNK);
        // Whole sectors, from where one starts.
        let (start, end) = (offset / SECTOR * SECTOR, (offset + now).next_multiple_of(SECTOR).min(size));
        parts.push((start, end - start));
        offset = end;
        if parts.len() == Copier::DEPTH {
            copy_parts(source, from, disk, to, &mut copier, &mut parts)?;
        }
    }
    copy_parts(source, from, disk, to, &mut copier, &mut parts)?;
    job.at(size, size)
}

fn copy_parts(
    source: &mut Source,
    from: &Path,
    disk: &mut dyn Disk,
    to: &Path,
    copier: &mut Copier,
    parts: &mut Vec<(u64, u64)>,
) -> Result<(), ToolError> {
    let result = match source {
        Source::Qcow2(qcow2) => copier.copy(&mut **qcow2, disk, parts, true),
        Source::Raw(raw, _) => copier.copy(&mut **raw, disk, parts, true),
        Source::Foreign(foreign_disk) => {
            for &(offset, len) in parts.iter() {
                let mut bytes = vec![0; len as usize];
                foreign_disk.read(offset, &mut bytes).map_err(|error| foreign(from, error))?;
                for (start, len) in Copier::runs(&bytes) {
                    let buffers = Copier::buffers(&bytes[start as usize..(start + len) as usize]);
                    let request = Request::Write { offset: offset + start, buffers, durable: false };
                    perform(disk, request).map_err(|error| failed("write", to, error))?;
                }
            }
            Ok(())
        }
    };
    parts.clear();
    result.map_err(|error| ToolError::from_merge(error, to))
}

/// The first bytes of the disk in an image, at most `len`, and the disk's size. A machine may be using it for reading.
pub fn start(path: &Path, len: usize) -> Result<(Vec<u8>, u64), ToolError> {
    let mut source = Source::open(path)?;
    let size = source.size();
    let len = size.min(len as u64) as usize;
    Ok((source.read(path, 0, len)?, size))
}

/// Whether all of a block of a file is zeroes.
pub(super) fn is_zero(file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<bool> {
    file.read_exact_at(bytes, offset)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

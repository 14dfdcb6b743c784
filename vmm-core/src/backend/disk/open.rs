//! Opens a disk of whichever format it has.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::foreign::{self, Foreign};
use super::image::{OpenError, OpenOptions};
use super::qcow2::{self, FormatError, Qcow2Disk, Roots};
use super::raw::RawDisk;
use super::{Disk, SECTOR};

/// What a file is to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes.
    Raw,
    /// See [`Qcow2Disk`].
    Qcow2,
}

impl Format {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// What a file is at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// A machine can use it.
    Own(Format),
    /// It can be converted.
    Foreign(Foreign),
}

/// A guest can write what it likes to the start of a raw disk. A file with this ending is raw, whatever it starts with.
const RAW_ENDING: &str = "raw";

/// What a file is, by its first bytes. Block devices, and files that end in `.raw`, are raw.
pub fn identify(path: &Path) -> Result<Identity, OpenError> {
    let host = |source| OpenError::Host { action: "open", path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(host)?;
    let kind = metadata.file_type();
    if kind.is_block_device() || !kind.is_file() || path.extension().is_some_and(|e| e == RAW_ENDING) {
        return Ok(Identity::Own(Format::Raw));
    }
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(host)?;
    if qcow2::is_qcow2_file(&file) {
        return Ok(Identity::Own(Format::Qcow2));
    }
    let foreign = foreign::detect(&file, path, metadata.len());
    Ok(foreign.map_or(Identity::Own(Format::Raw), Identity::Foreign))
}

/// The format of a file that a machine can use.
pub fn detect(path: &Path) -> Result<Format, OpenError> {
    match identify(path)? {
        Identity::Own(format) => Ok(format),
        Identity::Foreign(kind) => {
            Err(OpenError::Format { path: path.into(), source: FormatError::Foreign(kind.name()) })
        }
    }
}

/// What a disk's image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub format: Format,
    /// Bytes of the disk.
    pub size: u64,
    /// The file that it stands on, which is there.
    pub backing: Option<PathBuf>,
}

/// Reads what an image says of itself. Takes no lock: whoever uses it may be changing it.
pub fn facts(path: &Path) -> Result<Facts, OpenError> {
    let format = detect(path)?;
    let (size, backing) = match format {
        Format::Qcow2 => {
            let looked = qcow2::look(path, &Roots::of(path))?;
            (looked.size, looked.backing.transpose()?.map(|(path, _)| path))
        }
        Format::Raw => {
            let host = |source| OpenError::Host { action: "measure", path: path.into(), source };
            let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(host)?;
            // A block device has no length but an end.
            (file.seek(SeekFrom::End(0)).map_err(host)?.next_multiple_of(SECTOR), None)
        }
    };
    Ok(Facts { format, size, backing })
}

/// Opens and locks a disk of whichever format it has, and all that it stands on (in its own folder or that machine's).
pub fn open(path: &Path, options: OpenOptions) -> Result<Box<dyn Disk>, OpenError> {
    open_as(path, detect(path)?, options, &Roots::of(path))
}

/// Opens and locks a disk whose format is known; what it stands on is in these folders.
pub fn open_as(path: &Path, format: Format, options: OpenOptions, roots: &Roots) -> Result<Box<dyn Disk>, OpenError> {
    Ok(match format {
        Format::Raw => Box::new(RawDisk::open(path, options)?),
        Format::Qcow2 => Box::new(Qcow2Disk::open_among(path, options, roots)?),
    })
}

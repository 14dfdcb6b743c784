//! Images of other virtual machines, which are only read, to be converted: VMDK, VDI, VHD and VHDX.
//!
//! The files come from anywhere. Every number in them is checked before it is used; what is kept in memory is bounded by
//! the file's own length.

#[cfg(test)]
mod tests;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::SECTOR;
use super::image::{Image, Lock, OpenError, OpenOptions};
use super::qcow2::FormatError;

/// The largest virtual disk that is read.
const MAX_SIZE: u64 = 64 << 40;
/// The most that one table may take in memory.
const MAX_TABLE: u64 = 256 << 20;
/// The largest grain that is inflated.
const MAX_GRAIN: u64 = 64 << 20;

/// Which program's an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's and Hyper-V's old one.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl Foreign {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Foreign::Vmdk => "VMDK",
            Foreign::Vdi => "VDI",
            Foreign::Vhd => "VHD",
            Foreign::Vhdx => "VHDX",
        }
    }
}

/// Where bytes of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Zero,
    /// In this file, at this offset.
    At {
        file: usize,
        offset: u64,
    },
    /// In a compressed grain of this many bytes, `within` of them before what is looked for.
    Packed {
        file: usize,
        offset: u64,
        grain: u64,
        within: u64,
    },
}

/// Tells where bytes of the disk are.
trait Locate: Send {
    /// Where the bytes from `offset` on are, which is inside the disk, and how many are there in a row, at least one.
    fn locate(&mut self, files: &[Image], offset: u64) -> Result<(Place, u64), ForeignError>;
}

/// Why a foreign image can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// It breaks its format's rules, or uses what is not read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The host failed.
    #[error("could not read it")]
    Host(#[from] io::Error),
    /// Another of its files can't be opened.
    #[error(transparent)]
    Open(#[from] Box<OpenError>),
}

fn damaged(what: impl Into<String>) -> ForeignError {
    FormatError::Damaged(what.into()).into()
}

fn unsupported(what: impl Into<String>) -> ForeignError {
    FormatError::Unsupported(what.into()).into()
}

/// An open foreign image.
pub struct ForeignDisk {
    files: Vec<Image>,
    size: u64,
    locate: Box<dyn Locate>,
    /// The last grain that was inflated: its file, offset and bytes.
    inflated: Option<(usize, u64, Vec<u8>)>,
}

/// What is read of a file's start to tell its format.
const START: usize = 512;

/// Whose image a file is, if it is a foreign one. `length`: of the whole file.
pub fn detect(file: &File, path: &Path, length: u64) -> Option<Foreign> {
    let mut start = [0; START];
    let count = file.read_at(&mut start, 0).ok()?;
    let start = &start[..count];
    if vmdk::is(start) {
        Some(Foreign::Vmdk)
    } else if vdi::is(start) {
        Some(Foreign::Vdi)
    } else if vhdx::is(start) {
        Some(Foreign::Vhdx)
    } else if vhd::is(start) {
        Some(Foreign::Vhd)
    } else {
        // A fixed VHD is a raw disk with a footer: only its name tells that it was meant.
        let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("vhd") || e.eq_ignore_ascii_case("vpc"));
        let mut footer = [0; START];
        let at = length.checked_sub(START as u64)?;
        (named && file.read_exact_at(&mut footer, at).is_ok() && vhd::is(&footer)).then_some(Foreign::Vhd)
    }
}

impl ForeignDisk {
    /// Opens an image, with all its files, for reading.
    pub fn open(path: &Path, kind: Foreign) -> Result<ForeignDisk, OpenError> {
        let image = open_file(path)?;
        let opened = match kind {
            Foreign::Vmdk => vmdk::open(image),
            Foreign::Vdi => vdi::open(image),
            Foreign::Vhd => vhd::open(image),
            Foreign::Vhdx => vhdx::open(image),
        };
        let (files, size, locate) = opened.map_err(|error| match error {
            ForeignError::Format(source) => OpenError::Format { path: path.into(), source },
            ForeignError::Host(source) => OpenError::Host { action: "read", path: path.into(), source },
            ForeignError::Open(error) => *error,
        })?;
        Ok(ForeignDisk { files, size, locate, inflated: None })
    }

    /// Bytes of the virtual disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether something other than zeroes may be at `offset`, and for how many bytes that is so.
    pub fn extent(&mut self, offset: u64) -> Result<(bool, u64), ForeignError> {
        let left = self.size.saturating_sub(offset);
        let (place, len) = self.locate.locate(&self.files, offset)?;
        Ok((place != Place::Zero, len.clamp(1, left.max(1))))
    }

    /// Reads a part of the disk; what is beyond its end, or its file's, is zeroes.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), ForeignError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            if at >= self.size {
                bytes[done..].fill(0);
                return Ok(());
            }
            let (place, len) = self.locate.locate(&self.files, at)?;
            let now = ((bytes.len() - done) as u64).min(len).min(self.size - at).max(1) as usize;
            let part = &mut bytes[done..done + now];
            match place {
                Place::Zero => part.fill(0),
                Place::At { file, offset } => read_padded(self.file(file)?, offset, part)?,
                Place::Packed { file, offset, grain, within } => {
                    if !matches!(&self.inflated, Some((f, o, _)) if (*f, *o) == (file, offset)) {
                        let inflated = vmdk::inflate(self.file(file)?, offset, grain)?;
                        self.inflated = Some((file, offset, inflated));
                    }
                    let from = within as usize;
                    match self.inflated.as_ref().and_then(|(_, _, grain)| grain.get(from..from + now)) {
                        Some(found) => part.copy_from_slice(found),
                        None => return Err(damaged("a grain is shorter than it should be")),
                    }
                }
            }
            done += now;
        }
        Ok(())
    }

    fn file(&self, file: usize) -> Result<&Image, ForeignError> {
        self.files.get(file).ok_or_else(|| damaged("one of its files is missing"))
    }
}

fn open_file(path: &Path) -> Result<Image, OpenError> {
    Image::open_locked(path, OpenOptions { readonly: true, direct: false }, Lock::Shared)
}

/// Reads what the file has there, and zeroes beyond.
fn read_padded(image: &Image, offset: u64, bytes: &mut [u8]) -> Result<(), ForeignError> {
    let mut done = 0;
    while done < bytes.len() {
        match image.file().read_at(&mut bytes[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

/// A table that must be in the file.
fn read_table(image: &Image, offset: u64, len: u64, what: &str) -> Result<Vec<u8>, ForeignError> {
    read_table_within(image, image.length, offset, len, what)
}

/// A table that must be in the first `length` bytes, which the file has or, as zeroes, would have.
fn read_table_within(image: &Image, length: u64, offset: u64, len: u64, what: &str) -> Result<Vec<u8>, ForeignError> {
    let inside = offset.checked_add(len).is_some_and(|end| end <= length);
    if !inside || len > MAX_TABLE {
        return Err(damaged(format!("its {what} is not in the file")));
    }
    let mut bytes = vec![0; len as usize];
    read_padded(image, offset, &mut bytes)?;
    Ok(bytes)
}

/// Numbers at a place of a header, which must be there.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], ForeignError> {
        self.0.get(at..).and_then(|b| b.first_chunk()).copied().ok_or_else(|| damaged("its header is too short"))
    }

    fn le16(&self, at: usize) -> Result<u16, ForeignError> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn le32(&self, at: usize) -> Result<u32, ForeignError> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn le64(&self, at: usize) -> Result<u64, ForeignError> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    fn be32(&self, at: usize) -> Result<u32, ForeignError> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn be64(&self, at: usize) -> Result<u64, ForeignError> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

/// A size that a disk may have.
fn check_size(size: u64) -> Result<u64, ForeignError> {
    match size {
        0 => Err(damaged("its disk is empty")),
        size if size > MAX_SIZE => Err(unsupported(format!("a virtual disk of {} TiB", size >> 40))),
        size if !size.is_multiple_of(SECTOR) => Err(damaged("its disk is no whole number of sectors")),
        size => Ok(size),
    }
}

/// What opening gives: the files, the disk's size, and the tables.
type Opened = (Vec<Image>, u64, Box<dyn Locate>);

/// A disk in one piece of a file.
struct Flat {
    size: u64,
    offset: u64,
}

impl Locate for Flat {
    fn locate(&mut self, _files: &[Image], offset: u64) -> Result<(Place, u64), ForeignError> {
        Ok((Place::At { file: 0, offset: self.offset + offset }, self.size.saturating_sub(offset)))
    }
}

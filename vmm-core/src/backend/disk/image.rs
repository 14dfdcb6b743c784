//! A file or block device on the host that holds an image: opened, locked and measured.
//!
//! As a raw disk, a file whose length is no multiple of 512 is a disk of the next larger size: the missing bytes of its last sector
//! read as zeroes, and the file grows to the whole sector when the guest writes it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::buffers::Scratch;
use super::qcow2::FormatError;
use super::{Geometry, SECTOR};
use crate::base::take_lock;

/// How an image is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// The guest may not write. Any number of machines may share such a disk.
    pub readonly: bool,
    /// Goes around the host's page cache where the file system can.
    pub direct: bool,
}

/// Why an image can't be opened. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host refused.
    #[error("could not {action} the disk image {}", path.display())]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another machine or program holds it.
    #[error("the disk image {} is in use by another machine or program; stop that first", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("{} is no disk image: a disk is a file or a block device", path.display())]
    NoDisk {
        /// What was given.
        path: PathBuf,
    },
    /// It holds nothing.
    #[error("the disk image {} is empty; give it a size first", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// What is in it can't be used as it is.
    #[error("could not use the disk image {}", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What it is about.
        #[source]
        source: FormatError,
    },
    /// It stands on another image that is not among those it may name.
    #[error(
        "the disk image {} says that it stands on {backing:?}, outside its own folder: such an image is not followed; \
         put both into one folder", path.display()
    )]
    Outside {
        /// The image.
        path: PathBuf,
        /// What it names.
        backing: String,
    },
    /// The image that it stands on can't be opened.
    #[error("could not open what the disk image {} stands on", path.display())]
    Backing {
        /// The upper image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
    /// Too many images stand on one another, or one on itself.
    #[error("the disk image {} stands on a chain of more than {most} others; merge some, or mend its references", path.display())]
    TooDeep {
        /// The top image.
        path: PathBuf,
        /// The most that is opened.
        most: usize,
    },
}

/// The alignment of memory, offset and length with which every O_DIRECT request here is made.
pub(super) const DIRECT_ALIGN: usize = SECTOR as usize;

/// Memory that is aligned for O_DIRECT.
#[repr(C, align(4096))]
pub(super) struct Aligned<const N: usize>(pub [u8; N]);

/// What else may be done to a file while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Others may read it.
    Shared,
    /// Nothing.
    Exclusive,
    /// Others read what this one does not change; nobody else changes anything.
    Beside,
}

/// An open image.
pub(super) struct Image {
    file: File,
    /// Where it was when it was opened.
    pub path: PathBuf,
    /// Bytes that were there when it was opened, to the last.
    pub length: u64,
    pub geometry: Geometry,
    pub is_block_device: bool,
    direct: AtomicBool,
}

impl Image {
    pub fn open(path: &Path, options: OpenOptions) -> Result<Image, OpenError> {
        let lock = if options.readonly { Lock::Shared } else { Lock::Exclusive };
        Image::open_locked(path, options, lock)
    }

    pub fn open_locked(path: &Path, options: OpenOptions, kind_of_lock: Lock) -> Result<Image, OpenError> {
        let OpenOptions { readonly, direct } = options;
        let host = |action| move |source| OpenError::Host { action, path: path.into(), source };
        // A path that is no disk must not be waited for (a FIFO) and not be written to.
        let kind = std::fs::metadata(path).map_err(host("open"))?.file_type();
        let is_block_device = kind.is_block_device();
        if !is_block_device && !kind.is_file() {
            return Err(OpenError::NoDisk { path: path.into() });
        }
        let file = File::options().read(true).write(!readonly).open(path).map_err(host("open"))?;
        lock(&file, kind_of_lock).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse { path: path.into() },
            _ => host("lock")(error),
        })?;
        let length = length(&file, is_block_device).map_err(host("measure"))?;
        if length == 0 {
            return Err(OpenError::Empty { path: path.into() });
        }
        let block = preferred_block(&file, is_block_device).map_err(host("measure"))?;
        let geometry = Geometry {
            size: length.next_multiple_of(SECTOR),
            readonly,
            physical_block: block,
            discard_granularity: if readonly { 0 } else { block },
        };
        let direct = direct && can_direct(&file);
        Ok(Image { file, path: path.into(), length, geometry, is_block_device, direct: direct.into() })
    }

    /// The file, for what is done at once.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Goes around the page cache from now on, where the file system can.
    pub fn go_direct(&self) {
        self.direct.store(can_direct(&self.file), Ordering::Relaxed);
    }

    /// Reads whole sectors at once, whichever way the image is open. What is beyond its end reads as zeroes.
    pub fn read_aligned(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut scratch = Scratch::new(len);
        let mut done = 0;
        while done < len {
            match self.file.read_at(&mut scratch.bytes()[done..len], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.is_direct() && !done.is_multiple_of(DIRECT_ALIGN) {
                break;
            }
        }
        Ok(scratch.bytes()[..len].to_vec())
    }

    /// Makes the file longer; what is added reads as zeroes.
    pub fn extend(&self, length: u64) -> io::Result<()> {
        #[cfg(test)]
        super::power::extended(self, length);
        self.file.set_len(length)
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether requests go around the page cache, and must be aligned.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Goes through the page cache from now on: for a file system that takes back what it promised.
    pub fn give_up_direct(&self) {
        if self.direct.swap(false, Ordering::Relaxed) {
            // Where even that is refused, the next request fails with the host's reason.
            let _ = set_direct(&self.file, false);
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// The byte that says that somebody changes the file, beyond all that files have. Those who use an image lock all of it,
/// this byte included for a writer, and all but it for a reader.
const CHANGES: libc::off_t = libc::off_t::MAX - 1;

/// Takes the lock that says who uses the image. It belongs to the open file, so it ends with it, however the process
/// ends.
fn lock(file: &File, kind: Lock) -> io::Result<()> {
    let (exclusive, start, len) = match kind {
        Lock::Shared => (false, 0, CHANGES),
        Lock::Exclusive => (true, 0, 0),
        Lock::Beside => (true, CHANGES, 1),
    };
    // SAFETY: flock is plain data for which zeroes are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start;
    lock.l_len = len;
    take_lock(|| {
        // SAFETY: the descriptor is open and the kernel only reads the struct, which outlives the call.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })
}

/// Takes the lock of one who writes a file that nobody else may use.
pub(super) fn lock_alone(file: &File) -> io::Result<()> {
    lock(file, Lock::Exclusive)
}

/// Gives up the locks of an open file. The kernel may keep that a little longer than we do: for a ring that ends, or for a child
/// that is just becoming another program.
pub(super) fn unlock(file: &File) {
    // SAFETY: flock is plain data for which zeroes are valid; they mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_UNLCK as libc::c_short;
    // SAFETY: the descriptor is open and the kernel only reads the struct, which outlives the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
}

/// Linux's block device ioctls (`linux/fs.h`).
pub(super) const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

fn length(file: &File, is_block_device: bool) -> io::Result<u64> {
    if !is_block_device {
        return Ok(file.metadata()?.len());
    }
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64, which lives here.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}

fn preferred_block(file: &File, is_block_device: bool) -> io::Result<u32> {
    let mut bytes = 0u32;
    if is_block_device {
        // SAFETY: BLKPBSZGET writes one unsigned int, which lives here.
        if unsafe { libc::ioctl(file.as_raw_fd(), BLKPBSZGET, &raw mut bytes) } < 0 {
            return Err(io::Error::last_os_error());
        }
    } else {
        bytes = u32::try_from(file.metadata()?.blksize()).unwrap_or(u32::MAX);
    }
    // Some file systems prefer megabytes; a guest that aligned everything to that would waste space.
    Ok(if bytes.is_power_of_two() { bytes.clamp(SECTOR as u32, 64 * 1024) } else { 4096 })
}

fn set_direct(file: &File, on: bool) -> io::Result<()> {
    // SAFETY: plain flag operations on an open descriptor.
    let result = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        if flags < 0 {
            flags
        } else {
            let flags = if on { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
            libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags)
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Switches O_DIRECT on if single sectors can be read with it. Where the host's sectors are larger, a guest's could
/// only be written by reading around them, which the page cache does better.
fn can_direct(file: &File) -> bool {
    if set_direct(file, true).is_err() {
        return false;
    }
    let mut probe = Aligned([0; 2 * DIRECT_ALIGN]);
    let works = file.read_at(&mut probe.0[DIRECT_ALIGN..], 0).is_ok();
    // A file system that can't switch it off again fails each request, and says so.
    works || set_direct(file, false).is_err()
}

//! What a disk controller sees of a disk: its geometry, and requests that run beside each other and complete by an
//! event. [`open`] opens whichever kind an image is; a device gets it as a value.

mod buffers;
mod complaint;
pub mod foreign;
mod image;
mod job;
mod medium;
#[cfg(any(test, feature = "testkit"))]
#[allow(clippy::expect_used)]
mod memory;
mod open;
mod part;
mod pool;
#[cfg(test)]
mod power;
mod qcow2;
mod raw;
mod switch;
#[cfg(test)]
mod tests;
pub mod tools;
mod uring;
mod worker;

use std::io;
use std::os::fd::RawFd;

pub use buffers::{Buffers, Scratch};
pub use complaint::Complaints;
pub use image::{OpenError, OpenOptions};
pub use medium::{BLOCK, Medium};
#[cfg(any(test, feature = "testkit"))]
pub use memory::{Control, MemoryDisk};
pub use open::{Facts, Format, Identity, detect, facts, identify, open, open_as};
pub use qcow2::{
    CreateError, CreateOptions, Findings, FormatError, Merge as MergeError, Qcow2Disk, Roots, commit, create,
    create_overlay, create_raw, rebase_header,
};
pub use raw::RawDisk;
pub use switch::{Switch, SwitchDisk};

/// Bytes in the unit that all sizes and offsets are multiples of.
pub const SECTOR: u64 = 512;

/// A disk's measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes, a multiple of [`SECTOR`].
    pub size: u64,
    /// Writes, discards and zeroing are refused.
    pub readonly: bool,
    /// The host's unit of efficient writing, bytes, a power of two from [`SECTOR`] on. Guests align to it.
    pub physical_block: u32,
    /// What is freed at once by a discard, bytes; 0 where discards are of no use.
    pub discard_granularity: u32,
}

/// What can be asked of a disk. Offsets and lengths are bytes, multiples of [`SECTOR`].
pub enum Request {
    /// Fills the buffers from `offset` on.
    Read {
        /// Where.
        offset: u64,
        /// Where to, and how much.
        buffers: Buffers,
    },
    /// Writes the buffers from `offset` on.
    Write {
        /// Where.
        offset: u64,
        /// What.
        buffers: Buffers,
        /// It is on stable storage when it completes.
        durable: bool,
    },
    /// Everything that completed before is on stable storage when this completes. It waits for nothing that is still
    /// in flight.
    Flush,
    /// The contents are of no use any more. What is read there afterwards is undefined.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Reads as zeroes from now on.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// The space may be given back to the host.
        unmap: bool,
        /// It is on stable storage when it completes.
        durable: bool,
    },
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no room on the host for what the guest wrote. Nothing is wrong with the disk: once there is room, the
    /// same request succeeds.
    #[error("the host has no space left for the image")]
    Full,
    /// The file is shorter than it was when it was opened.
    #[error("the image was cut short by another program")]
    Shrunk,
    /// The request leaves the disk, or its size is no multiple of [`SECTOR`].
    #[error("the request is not within the disk")]
    OutOfRange,
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The image's own tables make no sense.
    #[error("the image is damaged: {0}; 'orangery disk check' says more")]
    Damaged(&'static str),
    /// The host failed.
    #[error("the host failed: {0}")]
    Host(io::Error),
}

/// A request's end.
#[derive(Debug)]
pub struct Completion {
    /// The number it was submitted with.
    pub token: u64,
    /// Whether it did all it was to do. The buffers of a read that failed hold anything.
    pub result: Result<(), DiskError>,
}

/// A disk in use by one device. Dropping it waits for what is in flight.
pub trait Disk: Send {
    /// Its measures; they never change.
    fn geometry(&self) -> Geometry;

    /// Takes a request; it may start only with the next [`Disk::kick`]. It completes exactly once, in any order with
    /// others; two writes to the same place that are in flight together end in either order.
    fn submit(&mut self, token: u64, request: Request);

    /// Starts what was submitted.
    fn kick(&mut self);

    /// A request that ended, if there is one. Whoever takes one and submits another takes until there is none, or kicks:
    /// only a kick signals the event for what ended at once.
    fn completed(&mut self) -> Option<Completion>;

    /// An eventfd that is signalled whenever requests may have ended, or [`Disk::kick`] has more to do.
    fn event(&self) -> RawFd;

    /// Starts all that was submitted and waits until nothing is in flight; what ended is in [`Disk::completed`].
    fn drain(&mut self);

    /// Waits until nothing is in flight, and leaves the image as if it were closed: all that was written is on stable
    /// storage, and nothing in it says that it is in use. More requests may follow.
    fn settle(&mut self) -> Result<(), DiskError>;
}

impl Disk for Box<dyn Disk> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }
    fn submit(&mut self, token: u64, request: Request) {
        (**self).submit(token, request);
    }
    fn kick(&mut self) {
        (**self).kick();
    }
    fn completed(&mut self) -> Option<Completion> {
        (**self).completed()
    }
    fn event(&self) -> RawFd {
        (**self).event()
    }
    fn drain(&mut self) {
        (**self).drain();
    }
    fn settle(&mut self) -> Result<(), DiskError> {
        (**self).settle()
    }
}

impl DiskError {
    fn from_errno(errno: i32) -> DiskError {
        match errno {
            libc::ENOSPC | libc::EDQUOT => DiskError::Full,
            _ => DiskError::Host(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The same error, for another request that it is the end of.
    fn again(&self) -> DiskError {
        match self {
            DiskError::Full => DiskError::Full,
            DiskError::Shrunk => DiskError::Shrunk,
            DiskError::OutOfRange => DiskError::OutOfRange,
            DiskError::ReadOnly => DiskError::ReadOnly,
            DiskError::Damaged(what) => DiskError::Damaged(what),
            DiskError::Host(error) => DiskError::from_errno(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

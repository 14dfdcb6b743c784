//! One request on its way through system calls: which comes next, and what its result means. Both engines run it, so
//! that short transfers, fallbacks and bounce buffers are the same for both.

use libc::{c_int, iovec};

use super::image::{Aligned, BLKDISCARD, DIRECT_ALIGN, Image};
use super::{Buffers, DiskError, Request};

/// The most runs that one system call takes (`UIO_MAXIOV`).
const MAX_RUNS: usize = 1024;
/// Guest buffers that O_DIRECT can't take go through a copy of this size, again and again.
const BOUNCE: usize = 64 * 1024;

/// What zeroes are written from, many times over in one call.
static ZEROES: Aligned<BOUNCE> = Aligned([0; BOUNCE]);
/// How often in one call: 1 MiB.
const ZERO_RUNS: u64 = 16;

/// A system call on the image's descriptor. Its pointers are good until the job hears of its result.
#[derive(Clone, Copy)]
pub(super) enum Call {
    Read {
        runs: *const iovec,
        count: u32,
        offset: u64,
    },
    Write {
        runs: *const iovec,
        count: u32,
        offset: u64,
    },
    Sync,
    Allocate {
        mode: c_int,
        offset: u64,
        len: u64,
    },
    /// Only synchronously: it has no place in an io_uring.
    Discard {
        offset: u64,
        len: u64,
    },
}

// SAFETY: the pointers are to memory of the job that made the call, whichever thread makes it happen.
unsafe impl Send for Call {}

pub(super) enum Step {
    Call(Call),
    Done(Result<(), DiskError>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Discard,
    /// By making a hole.
    Unmap,
    /// By the file system's own means.
    ZeroRange,
    /// By writing them.
    WriteZeroes,
}

pub(super) struct Job {
    kind: Kind,
    offset: u64,
    len: u64,
    done: u64,
    buffers: Option<Buffers>,
    /// A sync is still to follow.
    durable: bool,
    /// A sync was the last call.
    syncing: bool,
    /// The last call was made with O_DIRECT.
    direct: bool,
    failed: Option<DiskError>,
    /// The file may end anywhere: what is beyond reads as zeroes.
    open_ended: bool,
    /// The runs of a call that are not the guest's.
    own_runs: Vec<iovec>,
    bounce: Option<Box<Aligned<BOUNCE>>>,
    /// Bytes of the bounce buffer that the last call was about.
    bounced: usize,
}

// SAFETY: the pointers in `own_runs` are to the job's own bounce buffer or to the static zeroes.
unsafe impl Send for Job {}

impl Job {
    /// A request whose offset and length are to be multiples of `unit`.
    pub fn new(request: Request, image: &Image, unit: u64) -> Job {
        let (kind, offset, len, buffers, durable) = match request {
            Request::Read { offset, buffers } => (Kind::Read, offset, buffers.len(), Some(buffers), false),
            Request::Write { offset, buffers, durable } => (Kind::Write, offset, buffers.len(), Some(buffers), durable),
            Request::Flush => (Kind::Read, 0, 0, None, !image.geometry.readonly),
            Request::Discard { offset, len } => (Kind::Discard, offset, len, None, false),
            Request::WriteZeroes { offset, len, unmap, durable } => {
                (if unmap { Kind::Unmap } else { Kind::ZeroRange }, offset, len, None, durable)
            }
        };
        let inside = offset.checked_add(len).is_some_and(|end| end <= image.geometry.size);
        let failed = if !inside || !(offset | len).is_multiple_of(unit) {
            Some(DiskError::OutOfRange)
        } else if kind != Kind::Read && image.geometry.readonly {
            Some(DiskError::ReadOnly)
        } else {
            None
        };
        Job { durable, failed, open_ended: false, ..Job::part(kind, offset, len, buffers) }
    }

    /// Reads a part of a file that may end anywhere.
    pub fn read(offset: u64, buffers: Buffers) -> Job {
        Job::part(Kind::Read, offset, buffers.len(), Some(buffers))
    }

    /// Writes a part of a file.
    pub fn write(offset: u64, buffers: Buffers) -> Job {
        Job::part(Kind::Write, offset, buffers.len(), Some(buffers))
    }

    /// Has a part of a file read as zeroes, its space kept.
    pub fn zero(offset: u64, len: u64) -> Job {
        Job::part(Kind::ZeroRange, offset, len, None)
    }

    /// Gives a part of a file back to the host, where the host can take it.
    pub fn punch(offset: u64, len: u64) -> Job {
        Job::part(Kind::Discard, offset, len, None)
    }

    /// Has all that was written before on stable storage.
    pub fn sync() -> Job {
        Job { durable: true, ..Job::part(Kind::Read, 0, 0, None) }
    }

    fn part(kind: Kind, offset: u64, len: u64, buffers: Option<Buffers>) -> Job {
        Job {
            kind,
            offset,
            len,
            done: 0,
            buffers,
            durable: false,
            syncing: false,
            direct: false,
            failed: None,
            open_ended: true,
            own_runs: Vec::new(),
            bounce: None,
            bounced: 0,
        }
    }

    /// Whether it is a write that nothing else is to follow, of which nothing was done yet.
    pub fn is_plain_write(&self) -> bool {
        self.kind == Kind::Write && !self.durable && self.failed.is_none() && self.done == 0
    }

    /// Makes one of this plain write and another, if that one begins where this one ends and they are no more than `most` bytes
    /// together; else the other comes back.
    pub fn join(&mut self, mut other: Job, most: u64) -> Option<Job> {
        let follows = self.offset + self.len == other.offset && self.len + other.len <= most;
        let Some(buffers) = self.buffers.as_mut().filter(|_| follows) else { return Some(other) };
        if let Some(more) = other.buffers.take() {
            buffers.append(more);
        }
        self.len += other.len;
        None
    }

    /// Does all of it, and waits.
    pub fn run(mut self, image: &Image) -> Result<(), DiskError> {
        loop {
            match self.next(image) {
                Step::Call(call) => self.result(image, perform(call, image)),
                Step::Done(result) => return result,
            }
        }
    }

    /// What is to be done now.
    pub fn next(&mut self, image: &Image) -> Step {
        if let Some(error) = self.failed.take() {
            return Step::Done(Err(error));
        }
        if self.done == self.len {
            self.syncing = std::mem::take(&mut self.durable);
            return if self.syncing { Step::Call(Call::Sync) } else { Step::Done(Ok(())) };
        }
        let (offset, len) = (self.offset + self.done, self.len - self.done);
        match self.kind {
            // The part of the last sector that the file does not have.
            Kind::Read if !self.open_ended && offset >= image.length => {
                self.end_in_zeroes();
                self.next(image)
            }
            Kind::Read | Kind::Write => self.transfer(offset, image),
            Kind::Discard if image.is_block_device => Step::Call(Call::Discard { offset, len }),
            Kind::Discard | Kind::Unmap => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                Step::Call(Call::Allocate { mode, offset, len })
            }
            Kind::ZeroRange => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                Step::Call(Call::Allocate { mode, offset, len })
            }
            Kind::WriteZeroes => {
                self.own_runs.clear();
                let mut left = len.min(ZERO_RUNS * BOUNCE as u64);
                while left > 0 {
                    let now = left.min(BOUNCE as u64);
                    self.own_runs.push(run(&ZEROES.0[..now as usize]));
                    left -= now;
                }
                Step::Call(Call::Write { runs: self.own_runs.as_ptr(), count: self.own_runs.len() as u32, offset })
            }
        }
    }

    fn transfer(&mut self, offset: u64, image: &Image) -> Step {
        let Some(buffers) = &self.buffers else {
            return Step::Done(Err(DiskError::OutOfRange));
        };
        self.direct = image.is_direct();
        let (runs, count) = if self.direct && !buffers.aligned(DIRECT_ALIGN) {
            let bounce = self.bounce.get_or_insert_with(|| Box::new(Aligned([0; BOUNCE])));
            self.bounced = buffers.len().min(BOUNCE as u64) as usize;
            if self.kind == Kind::Write {
                buffers.copy_to(&mut bounce.0[..self.bounced]);
            }
            self.own_runs.clear();
            self.own_runs.push(run(&bounce.0[..self.bounced]));
            (self.own_runs.as_ptr(), 1)
        } else {
            self.bounced = 0;
            (buffers.runs().as_ptr(), buffers.runs().len().min(MAX_RUNS) as u32)
        };
        match self.kind {
            Kind::Write => Step::Call(Call::Write { runs, count, offset }),
            _ => Step::Call(Call::Read { runs, count, offset }),
        }
    }

    /// Hears what the last call gave: a count of bytes, or an error number.
    pub fn result(&mut self, image: &Image, result: Result<usize, c_int>) {
        match result {
            Err(libc::EINTR | libc::EAGAIN) => {
                // The next step is the same call once more.
                self.durable |= self.syncing;
            }
            Err(libc::EINVAL) if std::mem::take(&mut self.direct) => image.give_up_direct(),
            Err(libc::EOPNOTSUPP | libc::EINVAL) if !self.syncing && self.fall_back() => {}
            Err(errno) => self.failed = Some(DiskError::from_errno(errno)),
            Ok(_) if self.syncing => {}
            Ok(count) => self.progress(count),
        }
    }

    /// Finds another way to do what this host's file system can't. False: there is none.
    fn fall_back(&mut self) -> bool {
        match self.kind {
            Kind::Read | Kind::Write | Kind::WriteZeroes => return false,
            // Only advice.
            Kind::Discard => self.done = self.len,
            Kind::Unmap => self.kind = Kind::ZeroRange,
            Kind::ZeroRange => self.kind = Kind::WriteZeroes,
        }
        true
    }

    fn progress(&mut self, count: usize) {
        match self.kind {
            Kind::Discard | Kind::Unmap | Kind::ZeroRange => self.done = self.len,
            Kind::Read if count == 0 && self.open_ended => self.end_in_zeroes(),
            Kind::Read if count == 0 => self.failed = Some(DiskError::Shrunk),
            Kind::Write | Kind::WriteZeroes if count == 0 => self.failed = Some(DiskError::Full),
            Kind::Read | Kind::Write | Kind::WriteZeroes => {
                if let Some(buffers) = &mut self.buffers {
                    match &self.bounce {
                        Some(bounce) if self.bounced > 0 && self.kind == Kind::Read => {
                            buffers.copy_from(&bounce.0[..count]);
                        }
                        _ => buffers.advance(count),
                    }
                }
                self.done += count as u64;
                // Past the page cache only the file's end gives less than whole sectors, and nothing starts there.
                if self.direct && self.open_ended && self.kind == Kind::Read && !count.is_multiple_of(DIRECT_ALIGN) {
                    self.end_in_zeroes();
                }
            }
        }
    }

    /// The rest is beyond the file's end.
    fn end_in_zeroes(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.fill_zero();
        }
        self.done = self.len;
    }
}

fn run(bytes: &[u8]) -> iovec {
    iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// Makes a call if it can be done without waiting for a drive: what is read is in the page cache, or is written there.
/// `None`: it is for another thread.
pub(super) fn perform_at_once(call: Call, image: &Image) -> Option<Result<usize, c_int>> {
    if image.is_direct() {
        return None;
    }
    match call {
        Call::Read { runs, count, offset } => {
            // SAFETY: as in `perform`.
            let result =
                unsafe { libc::preadv2(image.fd(), runs, count as c_int, offset as libc::off_t, libc::RWF_NOWAIT) };
            usize::try_from(result).ok().map(Ok)
        }
        Call::Write { .. } => Some(perform(call, image)),
        Call::Sync | Call::Allocate { .. } | Call::Discard { .. } => None,
    }
}

/// Makes a call and waits for it.
pub(super) fn perform(call: Call, image: &Image) -> Result<usize, c_int> {
    let fd = image.fd();
    // SAFETY: the descriptor is open as long as the image is; the runs point to memory that the job which made the call
    // keeps mapped until it hears of the result.
    let result = unsafe {
        match call {
            Call::Read { runs, count, offset } => libc::preadv(fd, runs, count as c_int, offset as libc::off_t),
            Call::Write { runs, count, offset } => libc::pwritev(fd, runs, count as c_int, offset as libc::off_t),
            Call::Sync => libc::fdatasync(fd) as isize,
            Call::Allocate { mode, offset, len } => {
                libc::fallocate(fd, mode, offset as libc::off_t, len as libc::off_t) as isize
            }
            Call::Discard { offset, len } => {
                let range = [offset, len];
                libc::ioctl(fd, BLKDISCARD, range.as_ptr()) as isize
            }
        }
    };
    usize::try_from(result).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

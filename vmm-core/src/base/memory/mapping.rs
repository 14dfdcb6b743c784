//! The address space that guest RAM is in: reserved once, at one place for the machine's life, and filled with what the
//! moment asks for.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

use super::PAGE;

/// Runs of pages, counted from the start of RAM. They never overlap and are in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// The first page.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl PageRun {
    /// The page after the last.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// Memory of this process, unmapped when dropped.
pub(super) struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: it is a place in the address space, which all threads share; what is there is accessed by volatile slices only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

fn checked(result: *mut libc::c_void) -> io::Result<*mut u8> {
    if result == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(result.cast()) }
}

impl Mapping {
    /// `len` bytes (whole pages) that read as zeroes and cost nothing until they are written.
    pub fn zeroes(len: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel finds room touches nothing of ours.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        Ok(Mapping { start: checked(start)?, len })
    }

    /// All of a file that stays as long as `len`, shared with whoever else maps it.
    pub fn shared(file: &File, len: usize) -> io::Result<Mapping> {
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping where the kernel finds room touches nothing of ours.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED | libc::MAP_NORESERVE, fd, 0) };
        Ok(Mapping { start: checked(start)?, len })
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Pages.
    pub fn pages(&self) -> u64 {
        self.len as u64 / PAGE
    }

    /// Where a run is in this process; `None` outside.
    fn place(&self, run: PageRun) -> Option<(*mut u8, usize)> {
        let end = run.first.checked_add(run.count)?;
        // In bounds: the offset is smaller than the mapping's length.
        (end <= self.pages())
            .then(|| (self.start.wrapping_add((run.first * PAGE) as usize), (run.count * PAGE) as usize))
    }

    /// Has a run be a file's pages, the same ones counted from its start, copied when they are written. The file never
    /// changes from now on. What was at this place is gone.
    pub fn copy_on_write(&self, run: PageRun, file: &File) -> io::Result<()> {
        let (start, len) = self.place(run).ok_or(io::ErrorKind::InvalidInput)?;
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE);
        let offset = (run.first * PAGE) as libc::off_t;
        // SAFETY: the place is inside this mapping, which is guest memory: nothing refers to it but volatile accesses,
        // which find what is there then.
        checked(unsafe { libc::mmap(start.cast(), len, prot, flags, file.as_raw_fd(), offset) }).map(drop)
    }

    /// Moves what is mapped to another place and leaves a file's pages in its stead, copied when they are written. Takes
    /// some milliseconds a GiB: dropping what is returned takes longer, and can wait.
    pub fn replace_by_copy(&self, file: &File) -> io::Result<Mapping> {
        let spare = Mapping::zeroes(self.len)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both places are whole mappings of this length and ours; no thread uses guest memory now.
        checked(unsafe {
            libc::mremap(self.start.cast(), self.len, self.len, flags, spare.start.cast::<libc::c_void>())
        })?;
        self.copy_on_write(PageRun { first: 0, count: self.pages() }, file)?;
        Ok(spare)
    }

    /// Drops the copies of a run's pages: what was there before is there again.
    pub fn forget(&self, run: PageRun) -> io::Result<()> {
        let (start, len) = self.place(run).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the place is inside this mapping, which is guest memory: volatile accesses find what is there then.
        let result = unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Writes a run's pages to a file, at the same place. Nobody writes to them meanwhile.
    pub fn write(&self, run: PageRun, file: &File) -> io::Result<()> {
        let (start, len) = self.place(run).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the run is inside this mapping.
        let written = unsafe { super::copy::write_all(file.as_raw_fd(), start, len, run.first * PAGE) };
        written.map_err(io::Error::from_raw_os_error)
    }

    /// Reads a run's pages from a file, the same ones counted from its start.
    pub fn read(&self, run: PageRun, file: &File) -> io::Result<()> {
        let (start, len) = self.place(run).ok_or(io::ErrorKind::InvalidInput)?;
        let mut done = 0;
        while done < len {
            let offset = (run.first * PAGE) as usize + done;
            // SAFETY: the rest of the run is inside this mapping; nothing else refers to it.
            let count =
                unsafe { libc::pread(file.as_raw_fd(), start.add(done).cast(), len - done, offset as libc::off_t) };
            match count {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                1.. => done += count as usize,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the place is ours; whoever made slices of it has borrowed or shared its owner.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// A file in memory that has no name.
pub(super) fn memory_file(len: u64) -> io::Result<File> {
    // SAFETY: the name is a valid C string; the call touches no memory of ours.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fd was just made and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

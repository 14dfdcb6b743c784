//! Which pages of a mapping are this process's own: /proc/self/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst).
//!
//! Usable in a process that was just forked: no memory is allocated here.

use std::io;
use std::os::fd::RawFd;

use super::{PAGE, PageRun};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is a file's (a copy on write that has not been written), or shared.
const OF_FILE: u64 = 1 << 61;
/// Entries read at once.
const BATCH: usize = 512;

/// An open pagemap of this process.
pub(super) struct PageMap {
    fd: RawFd,
}

impl PageMap {
    pub fn open() -> io::Result<PageMap> {
        // SAFETY: the path is a valid C string.
        let fd = unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(PageMap { fd }) }
    }

    /// Tells `found` of the pages of a private mapping at `start` that were written and are `inside`, a run counted from there:
    /// in order, in runs as long as they are.
    pub fn written(
        &self,
        start: *const u8,
        inside: PageRun,
        mut found: impl FnMut(PageRun) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut entries = [0u64; BATCH];
        let mut run = PageRun { first: 0, count: 0 };
        let mut page = inside.first;
        while page < inside.end() {
            let count = (inside.end() - page).min(BATCH as u64) as usize;
            let offset = (start as u64 / PAGE + page) * size_of::<u64>() as u64;
            // SAFETY: the buffer has room for as many entries as are asked for.
            let read = unsafe {
                let bytes = count * size_of::<u64>();
                libc::pread(self.fd, entries.as_mut_ptr().cast(), bytes, offset as libc::off_t)
            };
            if read <= 0 {
                return Err(io::Error::last_os_error());
            }
            let count = read as usize / size_of::<u64>();
            for &entry in &entries[..count] {
                if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                    if run.count > 0 && run.end() == page {
                        run.count += 1;
                    } else {
                        if run.count > 0 {
                            found(run)?;
                        }
                        run = PageRun { first: page, count: 1 };
                    }
                }
                page += 1;
            }
        }
        if run.count > 0 { found(run) } else { Ok(()) }
    }
}

impl Drop for PageMap {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(self.fd) };
    }
}

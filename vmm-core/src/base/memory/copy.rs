//! Copies RAM as it was at one moment into a layer, while the guest waits or goes on.
//!
//! What is not copied is only told: pages of zeroes, and pages that are what they were in an older checkpoint.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::mapping::Mapping;
use super::pagemap::PageMap;
use super::{GuestMemory, PAGE, PageRun, PageTable};

/// The most that is written at once, pages.
const CHUNK: u64 = 256;
/// Clean pages between two that changed that are copied with them, so that a layer has fewer, longer runs.
pub(super) const GAP: u64 = 4;

/// What became of a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They are in the new layer.
    Written,
    /// They are zeroes.
    Zero,
    /// They are what they were.
    Same,
}

/// The pages of an older checkpoint, to compare with.
pub struct OldPages {
    mapping: Mapping,
}

impl OldPages {
    /// Maps them; `size` is the RAM's, bytes.
    pub fn new(size: u64, table: &PageTable) -> io::Result<OldPages> {
        let mapping = Mapping::zeroes(size as usize)?;
        for (run, layer) in table.iter() {
            mapping.copy_on_write(run, &layer.file)?;
        }
        Ok(OldPages { mapping })
    }
}

/// Who still has RAM as it was.
enum Source {
    /// The machine itself: it does not run until the copy is made.
    Machine(GuestMemory),
    /// The file that RAM was; what was mapped there before is unmapped with it.
    Frozen { ram: Mapping, _before: Mapping },
    /// A process that was forked off, and copies by itself.
    Process { pid: libc::pid_t, records: File },
}

/// A copy that is to be made. Dropped, it is not made.
pub struct RamCopy {
    source: Source,
    /// What may have changed; of a process it knows itself.
    runs: Vec<PageRun>,
    old: Option<OldPages>,
    to: File,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Pages that were looked at.
    pub done: u64,
    /// Pages that are to be looked at.
    pub total: u64,
}

impl RamCopy {
    /// A copy of the machine itself, which does not run until it is made.
    pub(super) fn of_machine(memory: &GuestMemory, runs: Vec<PageRun>, old: Option<OldPages>, to: File) -> RamCopy {
        RamCopy { source: Source::Machine(memory.clone()), runs, old, to }
    }

    /// A copy of the file that RAM was until now.
    pub(super) fn of_file(ram: Mapping, before: Mapping, runs: Vec<PageRun>, to: File) -> RamCopy {
        RamCopy { source: Source::Frozen { ram, _before: before }, runs, old: None, to }
    }

    /// Forks off a process that keeps the mapping as it is, and makes the copy of what was written there and of `runs`.
    pub(super) fn by_process(
        ram: &Mapping,
        runs: Vec<PageRun>,
        old: Option<OldPages>,
        to: File,
    ) -> io::Result<RamCopy> {
        let mut pipe = [0; 2];
        // SAFETY: the array has room for the two descriptors.
        if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were just made and nothing else owns them.
        let [read, write] = pipe.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let parent = std::process::id();
        // SAFETY: the child calls nothing but system calls and code that allocates nothing and takes no lock, and leaves by
        // _exit.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            let job = Child { ram, runs: &runs, old: old.as_ref(), to: to.as_raw_fd(), records: write.as_raw_fd() };
            job.run(parent);
        }
        Ok(RamCopy { source: Source::Process { pid, records: read.into() }, runs: Vec::new(), old, to })
    }

    /// Makes the copy. `report` hears of every run, in no order, and says whether to go on.
    ///
    /// # Errors
    /// The file can't be written; or [`io::ErrorKind::Interrupted`]: `report` said no.
    pub fn run(mut self, mut report: impl FnMut(Fate, PageRun, Progress) -> bool) -> io::Result<()> {
        let (start, pages) = match &self.source {
            Source::Machine(memory) => (memory.ram.mapping.start().cast_const(), memory.ram.mapping.pages()),
            Source::Frozen { ram, .. } => (ram.start().cast_const(), ram.pages()),
            Source::Process { .. } => return self.hear(report),
        };
        let total = self.runs.iter().map(|run| run.count).sum();
        let mut progress = Progress { done: 0, total };
        let old = self.old.as_ref().map(|old| old.mapping.start().cast_const());
        for run in std::mem::take(&mut self.runs) {
            debug_assert!(run.end() <= pages);
            // SAFETY: the run is inside the mapping, nobody writes there while the copy is made, and the older pages are as
            // many.
            let copied = unsafe {
                copy_run(start, old, self.to.as_raw_fd(), run, |fate, run| {
                    progress.done += run.count;
                    if report(fate, run, progress) { Ok(()) } else { Err(libc::EINTR) }
                })
            };
            copied.map_err(io::Error::from_raw_os_error)?;
        }
        Ok(())
    }

    /// Hears what the process does.
    fn hear(&mut self, mut report: impl FnMut(Fate, PageRun, Progress) -> bool) -> io::Result<()> {
        use std::io::Read;
        let Source::Process { records, .. } = &mut self.source else { return Ok(()) };
        let mut progress = Progress { done: 0, total: 0 };
        loop {
            let mut record = [0; RECORD];
            match records.read_exact(&mut record) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::other("the process that copied the guest's memory was killed"));
                }
                Err(error) => return Err(error),
            }
            let [tag, first, count] = [0, 8, 16].map(|at| {
                let mut word = [0; 8];
                word.copy_from_slice(&record[at..at + 8]);
                u64::from_ne_bytes(word)
            });
            let fate = match tag {
                record::TOTAL => {
                    progress.total = count;
                    continue;
                }
                record::END if first == 0 => return Ok(()),
                record::END => return Err(io::Error::from_raw_os_error(first as i32)),
                record::WRITTEN => Fate::Written,
                record::ZERO => Fate::Zero,
                _ => Fate::Same,
            };
            progress.done += count;
            progress.total = progress.total.max(progress.done);
            if !report(fate, PageRun { first, count }, progress) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }
}

impl Drop for RamCopy {
    fn drop(&mut self) {
        if let Source::Process { pid, .. } = self.source {
            // SAFETY: the child was not waited for yet, so the number is still its.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// What the process tells: three words each.
mod record {
    pub const TOTAL: u64 = 0;
    pub const WRITTEN: u64 = 1;
    pub const ZERO: u64 = 2;
    pub const SAME: u64 = 3;
    /// The last; its first word is an error number or 0.
    pub const END: u64 = 4;
}
const RECORD: usize = 24;

/// What runs in the process that was forked off. Nothing here allocates or locks.
struct Child<'a> {
    ram: &'a Mapping,
    runs: &'a [PageRun],
    old: Option<&'a OldPages>,
    to: RawFd,
    records: RawFd,
}

impl Child<'_> {
    fn run(&self, parent: u32) -> ! {
        // It must not outlive the machine, nor keep its files open: those have locks. The machine is more urgent.
        // SAFETY: plain system calls.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
            let mut first = 0;
            for kept in [self.to.min(self.records), self.to.max(self.records)] {
                if kept > first {
                    libc::syscall(libc::SYS_close_range, first, kept - 1, 0);
                }
                first = kept + 1;
            }
            libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
            libc::setpriority(libc::PRIO_PROCESS, 0, 10);
        }
        let error = self.copy().err().unwrap_or(0);
        let _ = self.tell(record::END, error as u64, 0);
        // SAFETY: ends this process alone, and runs nothing of the machine's.
        unsafe { libc::_exit(0) }
    }

    fn copy(&self) -> Result<(), i32> {
        let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        let map = PageMap::open().map_err(number)?;
        let (start, all) = (self.ram.start().cast_const(), PageRun { first: 0, count: self.ram.pages() });
        let mut total: u64 = self.runs.iter().map(|run| run.count).sum();
        map.written(start, all, |run| {
            total += run.count;
            Ok(())
        })
        .map_err(number)?;
        self.tell(record::TOTAL, 0, total)?;
        for &run in self.runs {
            self.copy_run(run)?;
        }
        let mut gathered = PageRun { first: 0, count: 0 };
        map.written(start, all, |run| {
            if gathered.count > 0 && run.first - gathered.end() <= GAP {
                gathered.count = run.end() - gathered.first;
                return Ok(());
            }
            let whole = std::mem::replace(&mut gathered, run);
            self.copy_run(whole).map_err(io::Error::from_raw_os_error)
        })
        .map_err(number)?;
        self.copy_run(gathered)
    }

    fn copy_run(&self, run: PageRun) -> Result<(), i32> {
        let old = self.old.map(|old| old.mapping.start().cast_const());
        // SAFETY: runs are of this mapping, which is this process's own, and which has one thread; the older pages are as many.
        unsafe {
            copy_run(self.ram.start(), old, self.to, run, |fate, run| {
                let tag = match fate {
                    Fate::Written => record::WRITTEN,
                    Fate::Zero => record::ZERO,
                    Fate::Same => record::SAME,
                };
                self.tell(tag, run.first, run.count)
            })
        }
    }

    fn tell(&self, tag: u64, first: u64, count: u64) -> Result<(), i32> {
        let mut bytes = [0; RECORD];
        for (at, word) in [(0, tag), (8, first), (16, count)] {
            bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        // A pipe takes so few bytes as a whole.
        // SAFETY: the bytes live here.
        let written = unsafe { libc::write(self.records, bytes.as_ptr().cast(), RECORD) };
        if written == RECORD as isize { Ok(()) } else { Err(libc::EPIPE) }
    }
}

/// Joins runs that have no more than `gap` pages between them.
pub(super) fn gather(runs: &[PageRun], gap: u64) -> Vec<PageRun> {
    let mut gathered: Vec<PageRun> = Vec::new();
    for run in runs {
        match gathered.last_mut() {
            Some(last) if run.first - last.end() <= gap => last.count = run.end() - last.first,
            _ => gathered.push(*run),
        }
    }
    gathered
}

/// Copies a run of pages to the same place in the file `to`, and tells what became of each part of it. Errors are numbers.
///
/// # Safety
/// `ram` and `old` are mapped as far as the run's end, and nobody writes to the run.
unsafe fn copy_run(
    ram: *const u8,
    old: Option<*const u8>,
    to: RawFd,
    run: PageRun,
    mut told: impl FnMut(Fate, PageRun) -> Result<(), i32>,
) -> Result<(), i32> {
    // SAFETY: as the caller promises.
    let page_at = |base: *const u8, page: u64| unsafe {
        std::slice::from_raw_parts(base.add((page * PAGE) as usize), PAGE as usize)
    };
    let fate = |page: u64| {
        let bytes = page_at(ram, page);
        match old {
            Some(old) if bytes == page_at(old, page) => Fate::Same,
            _ if is_zero(bytes) => Fate::Zero,
            _ => Fate::Written,
        }
    };
    let mut page = run.first;
    while page < run.end() {
        let (kind, first) = (fate(page), page);
        page += 1;
        while page < run.end() && page - first < CHUNK && fate(page) == kind {
            page += 1;
        }
        let part = PageRun { first, count: page - first };
        if kind == Fate::Written {
            // SAFETY: as the caller promises.
            unsafe { write_all(to, ram.add((first * PAGE) as usize), (part.count * PAGE) as usize, first * PAGE)? };
        }
        told(kind, part)?;
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    // SAFETY: any bytes are u64s.
    let (head, words, tail) = unsafe { page.align_to::<u64>() };
    head.iter().chain(tail).all(|&byte| byte == 0) && words.iter().all(|&word| word == 0)
}

/// # Safety
/// `len` bytes at `bytes` are mapped.
pub(super) unsafe fn write_all(to: RawFd, bytes: *const u8, len: usize, offset: u64) -> Result<(), i32> {
    let mut done = 0;
    while done < len {
        // SAFETY: the rest of what the caller promises.
        let count =
            unsafe { libc::pwrite(to, bytes.add(done).cast(), len - done, (offset + done as u64) as libc::off_t) };
        match count {
            0 => return Err(libc::ENOSPC),
            1.. => done += count as usize,
            _ => match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => {}
                errno => return Err(errno),
            },
        }
    }
    Ok(())
}

//! The memory that a request reads or writes, in the form in which the kernel takes it: guest RAM, or our own.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use libc::iovec;

use crate::base::{GuestAddress, GuestMemory, MemoryError, VolatileSlice};

/// Memory of our own, aligned for O_DIRECT. It can be looked at whenever no [`Buffers`] have it.
pub struct Scratch {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is plain memory that it owns; whoever has it alone may use it from any thread.
unsafe impl Send for Scratch {}
// SAFETY: a shared Scratch gives no access to its memory; the kernel's is by pointers that `Buffers` own.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// `len` bytes of zeroes; at least one page is taken.
    pub fn new(len: usize) -> Scratch {
        const PAGE: usize = 4096;
        // A length that no layout has, none of memory's has either.
        let layout =
            Layout::from_size_align(len.max(1), PAGE).unwrap_or_else(|_| handle_alloc_error(Layout::new::<u8>()));
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) };
        Scratch { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    /// What is in it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is that of the layout, initialised when it was made, and borrowed alone with self.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    /// Where it starts.
    pub(super) fn start(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Bytes.
    fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: made with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Runs of memory, those of guest RAM checked when they were added. They stay mapped as long as this lives.
pub struct Buffers {
    /// Keeps the runs mapped that are guest RAM.
    memory: Option<GuestMemory>,
    /// Keeps the others.
    own: Vec<Arc<Scratch>>,
    runs: Vec<iovec>,
    /// Runs that are used up.
    first: usize,
    len: u64,
}

// SAFETY: the pointers are into the mapping that `memory` shares and that is itself `Send`, or into what `own` keeps;
// nothing is thread-local.
unsafe impl Send for Buffers {}

impl Buffers {
    /// No runs yet.
    pub fn new(memory: &GuestMemory) -> Buffers {
        Buffers { memory: Some(memory.clone()), own: Vec::new(), runs: Vec::new(), first: 0, len: 0 }
    }

    /// These runs of RAM.
    pub fn from_runs(memory: &GuestMemory, runs: &[(GuestAddress, usize)]) -> Result<Buffers, MemoryError> {
        let mut buffers = Buffers::new(memory);
        buffers.runs.reserve_exact(runs.len());
        for &(address, len) in runs {
            buffers.push(address, len)?;
        }
        Ok(buffers)
    }

    /// The first `len` bytes of our own memory, or all.
    pub fn own(scratch: &Arc<Scratch>, len: usize) -> Buffers {
        let len = len.min(scratch.len());
        let run = iovec { iov_base: scratch.start.as_ptr().cast(), iov_len: len };
        let runs = if len > 0 { vec![run] } else { Vec::new() };
        Buffers { memory: None, own: vec![scratch.clone()], runs, first: 0, len: len as u64 }
    }

    /// Adds all runs of others behind these.
    pub(super) fn append(&mut self, other: Buffers) {
        self.runs.extend_from_slice(other.runs());
        self.len += other.len;
        self.own.extend(other.own);
        if self.memory.is_none() {
            self.memory = other.memory;
        }
    }

    /// Appends a run of RAM.
    pub fn push(&mut self, address: GuestAddress, len: usize) -> Result<(), MemoryError> {
        let Some(memory) = &self.memory else { return Err(MemoryError { address: address.0, len }) };
        let slice = memory.slice(address, len)?;
        if len > 0 {
            self.runs.push(iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: len });
            self.len += len as u64;
        }
        Ok(())
    }

    /// Bytes left.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes, or all, and what follows.
    pub(super) fn split(mut self, at: u64) -> (Buffers, Buffers) {
        let mut head =
            Buffers { runs: Vec::new(), memory: self.memory.clone(), own: self.own.clone(), first: 0, len: 0 };
        let mut left = at.min(self.len) as usize;
        head.len = left as u64;
        while left > 0 {
            let run = self.runs[self.first];
            let now = left.min(run.iov_len);
            head.runs.push(iovec { iov_base: run.iov_base, iov_len: now });
            self.advance(now);
            left -= now;
        }
        (head, self)
    }

    /// What is left, for a system call.
    pub(super) fn runs(&self) -> &[iovec] {
        &self.runs[self.first..]
    }

    /// Whether all of what is left starts and ends at multiples of `align`.
    pub(super) fn aligned(&self, align: usize) -> bool {
        self.runs().iter().all(|r| (r.iov_base as usize | r.iov_len).is_multiple_of(align))
    }

    /// Passes over `count` bytes.
    pub(super) fn advance(&mut self, count: usize) {
        let mut left = count;
        while let Some(run) = self.runs.get_mut(self.first) {
            let step = left.min(run.iov_len);
            run.iov_base = run.iov_base.wrapping_byte_add(step);
            run.iov_len -= step;
            self.len -= step as u64;
            left -= step;
            if run.iov_len > 0 {
                return;
            }
            self.first += 1;
        }
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.runs().iter().map(|run| {
            // SAFETY: the run was checked to be in `memory`, which is mapped as long as self is borrowed, or is in `own`; a
            // guest that writes at the same time is what volatile slices are for.
            unsafe { VolatileSlice::new(run.iov_base.cast(), run.iov_len) }
        })
    }

    /// Copies the next bytes out, without passing over them.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let mut done = 0;
        for slice in self.slices() {
            done += slice.copy_to(&mut bytes[done..]);
            if done == bytes.len() {
                return;
            }
        }
    }

    /// Writes zeroes to all that is left and passes over it.
    pub(super) fn fill_zero(&mut self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        while self.len > 0 {
            let now = self.len.min(ZEROES.len() as u64) as usize;
            self.copy_from(&ZEROES[..now]);
        }
    }

    /// Copies bytes in and passes over them.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        let mut done = 0;
        for slice in self.slices() {
            let now = slice.len().min(bytes.len() - done);
            slice.copy_from(&bytes[done..done + now]);
            done += now;
            if done == bytes.len() {
                break;
            }
        }
        self.advance(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_through_several_runs_and_what_is_passed_over_is_gone() {
        let memory = GuestMemory::new(0x4000).unwrap();
        let runs = [(GuestAddress(0x10), 3), (GuestAddress(0x100), 0), (GuestAddress(0x200), 5)];
        let mut buffers = Buffers::from_runs(&memory, &runs).unwrap();
        assert_eq!((buffers.len(), buffers.runs().len()), (8, 2));
        buffers.copy_from(b"abcd");
        assert_eq!((buffers.len(), buffers.runs().len()), (4, 1));
        let mut seen = [0; 4];
        memory.read(GuestAddress(0x200), &mut seen).unwrap();
        assert_eq!(&seen, b"d\0\0\0");
        memory.write(GuestAddress(0x201), b"xyz").unwrap();
        buffers.copy_to(&mut seen);
        assert_eq!(&seen, b"xyz\0");
        buffers.advance(4);
        assert!(buffers.is_empty() && buffers.runs().is_empty());
    }

    #[test]
    fn a_split_leaves_every_byte_in_one_part() {
        let memory = GuestMemory::new(0x4000).unwrap();
        for at in [0, 3, 5, 8, 100] {
            let runs = [(GuestAddress(0x10), 5), (GuestAddress(0x100), 3)];
            let (head, tail) = Buffers::from_runs(&memory, &runs).unwrap().split(at);
            assert_eq!((head.len(), tail.len()), (at.min(8), 8 - at.min(8)));
            let total = |b: &Buffers| b.runs().iter().map(|r| r.iov_len as u64).sum::<u64>();
            assert_eq!((total(&head), total(&tail)), (head.len(), tail.len()));
        }
    }

    #[test]
    fn runs_outside_ram_are_refused() {
        let memory = GuestMemory::new(0x4000).unwrap();
        let mut buffers = Buffers::new(&memory);
        for (address, len) in [(0x3fff, 2), (u64::MAX, 1), (0x8000, 512)] {
            assert!(buffers.push(GuestAddress(address), len).is_err());
        }
        assert!(buffers.is_empty());
    }

    #[test]
    fn alignment_is_of_starts_and_lengths() {
        let memory = GuestMemory::new(0x4000).unwrap();
        let aligned = |runs: &[(GuestAddress, usize)]| Buffers::from_runs(&memory, runs).unwrap().aligned(512);
        assert!(aligned(&[(GuestAddress(0x200), 0x400), (GuestAddress(0x1000), 0x200)]));
        assert!(!aligned(&[(GuestAddress(0x201), 0x200)]));
        assert!(!aligned(&[(GuestAddress(0x200), 0x100), (GuestAddress(0x400), 0x100)]));
    }
}

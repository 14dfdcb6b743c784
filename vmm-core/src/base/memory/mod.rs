//! Guest RAM: mapped once, seen by the guest as low memory from address 0 and the rest from 4 GiB.
//!
//! The guest changes it at any time, so nothing here hands out `&[u8]`: accesses copy, or go through volatile slices.
//!
//! A machine that starts has its RAM in a file of its own in memory. From the first checkpoint of a running machine on,
//! and in one that was restored, RAM is copy-on-write of pages that never change, [`Layer`]s; the pages that were written
//! since are the process's own, and the kernel knows which they are.

mod copy;
mod mapping;
mod pagemap;
mod runs;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use copy::{Fate, OldPages, Progress, RamCopy};
use mapping::Mapping;
pub use mapping::PageRun;
use pagemap::PageMap;
pub use runs::{Layer, PageTable};
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, VolatileMemory, VolatileSlice,
};

/// The most RAM below 4 GiB: the rest of that space is for PCI and the chipset.
pub const LOW_RAM_MAX: u64 = 2 << 30;
/// Where RAM goes on after [`LOW_RAM_MAX`].
pub const HIGH_RAM_START: u64 = 4 << 30;

/// The host's page size: this is an x86-64 program.
const PAGE: u64 = 4096;

/// An access that is not wholly inside guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at guest address {address:#x} are not all in RAM")]
pub struct MemoryError {
    /// First byte.
    pub address: u64,
    /// How many.
    pub len: usize,
}

/// A run of guest RAM, for whoever maps it into the guest.
#[derive(Debug, Clone, Copy)]
pub struct RamRegion {
    /// Where the guest sees it.
    pub start: GuestAddress,
    /// Bytes.
    pub len: u64,
    /// Where it is in this process; mapped as long as the [`GuestMemory`] lives.
    pub host: *mut u8,
}

/// The guest's RAM. Cheap to clone; the memory lives as long as any clone.
#[derive(Clone)]
pub struct GuestMemory {
    ram: Arc<Ram>,
    size: u64,
}

/// The fields' order is the order in which they are dropped.
struct Ram {
    mmap: GuestMemoryMmap<()>,
    mapping: Mapping,
    pages: Mutex<Pages>,
    /// How much of the end of low RAM is hidden, bytes.
    hidden: AtomicU64,
}

/// Where the pages are.
enum Pages {
    /// In this file, which is mapped as a whole and shared.
    File(File),
    /// The process's own where they were written, else in these layers.
    CopyOnWrite(PageTable),
}

/// The most mappings that RAM is put together from; the kernel allows a process 65,530. Shorter runs are read instead.
const MAX_MAPPINGS: usize = 16_384;
/// Pages that are looked at together when they are shared ahead of time: copying them all takes a millisecond or two.
const WINDOW: u64 = 512;

/// One pass over RAM that shares what was written, part by part: what is to come, and the layer that it goes to.
pub struct SharePass {
    layer: Arc<Layer>,
    next: u64,
}

impl GuestMemory {
    /// `size` bytes (a multiple of the page size) of zeroes. Costs nothing until it is touched.
    pub fn new(size: u64) -> io::Result<GuestMemory> {
        let file = mapping::memory_file(size)?;
        let mapping = Mapping::shared(&file, size as usize)?;
        GuestMemory::build(mapping, Pages::File(file), size)
    }

    /// `size` bytes as a checkpoint has them. Pages are read when they are touched.
    pub fn restored(size: u64, table: PageTable) -> io::Result<GuestMemory> {
        let mapping = Mapping::zeroes(size as usize)?;
        // The shortest that are mapped, where there are too many.
        let mut counts: Vec<u64> = table.iter().map(|(run, _)| run.count).collect();
        counts.sort_unstable_by_key(|&count| std::cmp::Reverse(count));
        let shortest = counts.get(MAX_MAPPINGS).map_or(0, |count| count + 1);
        for (run, layer) in table.iter() {
            match run.count >= shortest {
                true => mapping.copy_on_write(run, &layer.file)?,
                false => mapping.read(run, &layer.file)?,
            }
        }
        GuestMemory::build(mapping, Pages::CopyOnWrite(table), size)
    }

    fn build(mapping: Mapping, pages: Pages, size: u64) -> io::Result<GuestMemory> {
        let region = |start: u64, offset: u64, len: u64| {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_NORESERVE);
            let host = mapping.start().wrapping_add(offset as usize);
            // SAFETY: the part is inside the mapping, which is readable and writable and outlives the region: both are in
            // `Ram`, which drops the region first.
            let region = unsafe { MmapRegion::build_raw(host, len as usize, prot, flags) }.map_err(io::Error::other)?;
            GuestRegionMmap::new(region, GuestAddress(start))
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let low = size.min(LOW_RAM_MAX);
        let mut regions = vec![region(0, 0, low)?];
        if size > low {
            regions.push(region(HIGH_RAM_START, low, size - low)?);
        }
        let mmap = GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)?;
        Ok(GuestMemory {
            ram: Arc::new(Ram { mmap, mapping, pages: Mutex::new(pages), hidden: AtomicU64::new(0) }),
            size,
        })
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.ram.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers that RAM is copy-on-write of; none while it is a file of its own.
    pub fn layers(&self) -> PageTable {
        match &*self.pages() {
            Pages::File(_) => PageTable::default(),
            Pages::CopyOnWrite(table) => table.clone(),
        }
    }

    /// The pages that may differ from [`GuestMemory::layers`].
    pub fn changed(&self) -> io::Result<Vec<PageRun>> {
        match &*self.pages() {
            Pages::File(file) => data(file, self.size),
            Pages::CopyOnWrite(_) => self.written(&PageMap::open()?, self.all()),
        }
    }

    /// How many pages were written since RAM was shared last; none while it is a file of its own, which needs no copying.
    pub fn unshared(&self) -> io::Result<u64> {
        match &*self.pages() {
            Pages::File(_) => Ok(0),
            Pages::CopyOnWrite(_) => Ok(self.written(&PageMap::open()?, self.all())?.iter().map(|run| run.count).sum()),
        }
    }

    /// All pages.
    fn all(&self) -> PageRun {
        PageRun { first: 0, count: self.size / PAGE }
    }

    /// The pages of RAM that are the process's own, inside a run.
    fn written(&self, map: &PageMap, inside: PageRun) -> io::Result<Vec<PageRun>> {
        let mut runs = Vec::new();
        map.written(self.ram.mapping.start(), inside, |run| {
            runs.push(run);
            Ok(())
        })?;
        Ok(runs)
    }

    /// Prepares a copy of RAM as it is now in the file `to`: of all that is not in [`GuestMemory::layers`], and of `more`.
    /// Nobody uses RAM while this is called; with `going_on`, it may be used as soon as it has returned, else only when the
    /// copy is made. Pages that are as in `old` are not copied.
    ///
    /// With `going_on`, RAM that was a file of its own is copy-on-write of that file afterwards: that is the layer that is
    /// returned. All its pages are copied, so that the copy can stand for it.
    pub fn copy(
        &self,
        going_on: bool,
        more: &[PageRun],
        old: Option<OldPages>,
        to: File,
    ) -> io::Result<(RamCopy, Option<Arc<Layer>>)> {
        if !going_on {
            let mut runs = self.changed()?;
            runs.extend_from_slice(more);
            runs.sort_unstable_by_key(|run| run.first);
            return Ok((RamCopy::of_machine(self, copy::gather(&union(&runs), copy::GAP), old, to), None));
        }
        let Some((layer, before)) = self.freeze()? else {
            return Ok((RamCopy::by_process(&self.ram.mapping, union(more), old, to)?, None));
        };
        let ram = Mapping::shared(&layer.file, self.size as usize)?;
        let runs = data(&layer.file, self.size)?;
        Ok((RamCopy::of_file(ram, before, copy::gather(&runs, copy::GAP), to), Some(layer)))
    }

    /// RAM as it is now, as layers that another machine can start from. Nobody uses RAM meanwhile; afterwards this one is
    /// copy-on-write of them as well. Takes as long as copying what was written since the last time.
    pub fn share(&self) -> io::Result<PageTable> {
        if let Some((_, before)) = self.freeze()? {
            // Unmapping takes its time, and nobody waits for it.
            let _ = std::thread::Builder::new().name("unmap".into()).spawn(move || drop(before));
            return Ok(self.layers());
        }
        let layer = Layer::new(mapping::memory_file(self.size)?);
        let mut pages = self.pages();
        if let Pages::CopyOnWrite(table) = &mut *pages {
            self.move_to(&layer, &self.written(&PageMap::open()?, self.all())?, table)?;
        }
        drop(pages);
        Ok(self.layers())
    }

    /// Begins to share RAM ahead of [`GuestMemory::share`], so that less is left for that.
    pub fn share_pass(&self) -> io::Result<SharePass> {
        Ok(SharePass { layer: Layer::new(mapping::memory_file(self.size)?), next: 0 })
    }

    /// Goes on with a pass until it is through, or until a time, after some milliseconds at least. Nobody uses RAM meanwhile.
    /// Says whether there is more to do. RAM that is a file of its own needs no pass.
    pub fn share_ahead(&self, pass: &mut SharePass, until: Instant) -> io::Result<bool> {
        let mut pages = self.pages();
        let Pages::CopyOnWrite(table) = &mut *pages else { return Ok(false) };
        let (map, end) = (PageMap::open()?, self.size / PAGE);
        while pass.next < end {
            let window = PageRun { first: pass.next, count: WINDOW.min(end - pass.next) };
            self.move_to(&pass.layer, &self.written(&map, window)?, table)?;
            pass.next = window.end();
            if Instant::now() >= until {
                break;
            }
        }
        Ok(pass.next < end)
    }

    /// Moves pages that are the process's own to a layer, which had none of them, and puts it into the table. Nobody uses RAM
    /// meanwhile. Clean pages go with them where there would be too many mappings.
    fn move_to(&self, layer: &Arc<Layer>, written: &[PageRun], table: &mut PageTable) -> io::Result<()> {
        // A run may cut another in two, and more come with the next layers.
        let room = (MAX_MAPPINGS.saturating_sub(table.len()) / 4).max(1);
        let mut gap = copy::GAP;
        let mut runs = copy::gather(written, gap);
        while runs.len() > room {
            gap *= 2;
            runs = copy::gather(written, gap);
        }
        for &run in &runs {
            self.ram.mapping.write(run, &layer.file)?;
        }
        for &run in &runs {
            self.ram.mapping.copy_on_write(run, &layer.file)?;
            table.set(run, layer);
        }
        Ok(())
    }

    /// Makes RAM that is a file of its own copy-on-write of that file, which never changes from now on. Nobody uses RAM
    /// meanwhile. `None`: it is copy-on-write already.
    fn freeze(&self) -> io::Result<Option<(Arc<Layer>, Mapping)>> {
        let mut pages = self.pages();
        let Pages::File(file) = &*pages else { return Ok(None) };
        let file = file.try_clone()?;
        let before = self.ram.mapping.replace_by_copy(&file)?;
        let layer = Layer::new(file);
        let mut table = PageTable::default();
        table.set(self.all(), &layer);
        *pages = Pages::CopyOnWrite(table);
        Ok(Some((layer, before)))
    }

    /// The same memory as loaders of other crates take it.
    pub fn as_mmap(&self) -> &GuestMemoryMmap<()> {
        &self.ram.mmap
    }

    /// All of it, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first address above low RAM.
    pub fn low_top(&self) -> u64 {
        self.size.min(LOW_RAM_MAX)
    }

    /// Bytes from [`HIGH_RAM_START`] on.
    pub fn high_size(&self) -> u64 {
        self.size - self.low_top()
    }

    /// Its parts, in address order.
    pub fn regions(&self) -> Vec<RamRegion> {
        let region = |r: &vm_memory::GuestRegionMmap<()>| RamRegion {
            start: r.start_addr(),
            len: r.len(),
            host: r.get_mmap().as_ptr(),
        };
        self.ram.mmap.iter().map(region).collect()
    }

    /// Hides the last `len` bytes of low RAM: an access to them fails from now on, as if they were no RAM. 0 shows all.
    pub fn hide(&self, len: u64) {
        self.ram.hidden.store(len.min(self.low_top()), Ordering::SeqCst);
    }

    /// `len` bytes at `address` as a volatile slice, if they are RAM, and not hidden.
    pub fn slice(&self, address: GuestAddress, len: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        let outside = MemoryError { address: address.0, len };
        let shown = self.low_top() - self.ram.hidden.load(Ordering::Relaxed);
        // What crosses the end of low RAM is no slice anyway.
        if address.0 < LOW_RAM_MAX && address.0.checked_add(len as u64).is_none_or(|end| end > shown) {
            return Err(outside);
        }
        self.ram.mmap.get_slice(address, len).map_err(|_| outside)
    }

    /// Whether `len` bytes at `address` are all RAM.
    pub fn check(&self, address: GuestAddress, len: usize) -> Result<(), MemoryError> {
        self.slice(address, len).map(drop)
    }

    /// Copies from the guest.
    pub fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), MemoryError> {
        self.slice(address, data.len())?.copy_to(data);
        Ok(())
    }

    /// Copies to the guest.
    pub fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), MemoryError> {
        self.slice(address, data.len())?.copy_from(data);
        Ok(())
    }

    /// Reads a plain value.
    pub fn read_obj<T: ByteValued>(&self, address: GuestAddress) -> Result<T, MemoryError> {
        let error = MemoryError { address: address.0, len: size_of::<T>() };
        self.slice(address, size_of::<T>())?.read_obj(0).map_err(|_| error)
    }

    /// Writes a plain value.
    pub fn write_obj<T: ByteValued>(&self, address: GuestAddress, value: T) -> Result<(), MemoryError> {
        let error = MemoryError { address: address.0, len: size_of::<T>() };
        self.slice(address, size_of::<T>())?.write_obj(value, 0).map_err(|_| error)
    }

    /// Fills `len` bytes with `byte`.
    pub fn fill(&self, address: GuestAddress, len: usize, byte: u8) -> Result<(), MemoryError> {
        const CHUNK: [[u8; 4096]; 2] = [[0; 4096], [0xff; 4096]];
        let other;
        let chunk: &[u8] = match byte {
            0 => &CHUNK[0],
            0xff => &CHUNK[1],
            _ => {
                other = [byte; 4096];
                &other
            }
        };
        self.check(address, len)?;
        let mut done = 0;
        while done < len {
            let now = (len - done).min(chunk.len());
            self.write(GuestAddress(address.0 + done as u64), &chunk[..now])?;
            done += now;
        }
        Ok(())
    }

    /// Gives the whole pages inside `len` bytes at `address` back to the host: from now on they read as zeroes, or as what
    /// the last checkpoint has there, and cost memory again only when they are written. All of it must be in one run of RAM.
    pub fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        self.check(address, len as usize).map_err(|_| io::ErrorKind::InvalidInput)?;
        let region = self.ram.mmap.find_region(address).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = address.0 - region.start_addr().0;
        let end = offset.checked_add(len).filter(|&end| end <= region.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let (first, end) = (offset.next_multiple_of(PAGE), end & !(PAGE - 1));
        if first >= end {
            return Ok(());
        }
        let start = first + if region.start_addr().0 == 0 { 0 } else { LOW_RAM_MAX };
        match &*self.pages() {
            Pages::File(file) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: the call changes the file's contents inside this region alone, which is guest memory: nothing of
                // ours refers to it but by volatile accesses, which find zeroes.
                let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, start as i64, (end - first) as i64) };
                if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
            }
            Pages::CopyOnWrite(_) => {
                self.ram.mapping.forget(PageRun { first: start / PAGE, count: (end - first) / PAGE })
            }
        }
    }

    /// What the host has allocated for it alone, bytes.
    pub fn allocated(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        if let Pages::File(file) = &*self.pages() {
            return Ok(file.metadata()?.blocks() * 512);
        }
        Ok(self.changed()?.iter().map(|run| run.count * PAGE).sum())
    }

    /// Loads a little-endian u16 that the guest stores concurrently, before anything that is read after it.
    pub fn load_u16(&self, address: GuestAddress) -> Result<u16, MemoryError> {
        let slice = self.slice(address, 2)?;
        let error = MemoryError { address: address.0, len: 2 };
        let value = slice.get_atomic_ref::<AtomicU16>(0).map_err(|_| error)?.load(Ordering::Acquire);
        Ok(u16::from_le(value))
    }

    /// Stores a little-endian u16 that the guest loads concurrently, after everything that was written before it.
    pub fn store_u16(&self, address: GuestAddress, value: u16) -> Result<(), MemoryError> {
        let slice = self.slice(address, 2)?;
        let error = MemoryError { address: address.0, len: 2 };
        slice.get_atomic_ref::<AtomicU16>(0).map_err(|_| error)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    /// Loads a little-endian u32 that the guest stores concurrently, before anything that is read after it.
    pub fn load_u32(&self, address: GuestAddress) -> Result<u32, MemoryError> {
        let slice = self.slice(address, 4)?;
        let error = MemoryError { address: address.0, len: 4 };
        let value = slice.get_atomic_ref::<AtomicU32>(0).map_err(|_| error)?.load(Ordering::Acquire);
        Ok(u32::from_le(value))
    }

    /// Stores a little-endian u32 that the guest loads concurrently, after everything that was written before it.
    pub fn store_u32(&self, address: GuestAddress, value: u32) -> Result<(), MemoryError> {
        let slice = self.slice(address, 4)?;
        let error = MemoryError { address: address.0, len: 4 };
        slice.get_atomic_ref::<AtomicU32>(0).map_err(|_| error)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    /// Orders a store before a load of something else, as the notification protocol of virtqueues needs.
    pub fn full_fence() {
        fence(Ordering::SeqCst);
    }
}

/// The runs of pages that a file has something in.
fn data(file: &File, size: u64) -> io::Result<Vec<PageRun>> {
    let seek = |from: u64, whence| {
        // SAFETY: moves the descriptor's position, which nothing uses.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) };
        if found < 0 { Err(io::Error::last_os_error()) } else { Ok(found as u64) }
    };
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match seek(at, libc::SEEK_DATA) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            start => start?,
        };
        let end = seek(start, libc::SEEK_HOLE)?.min(size);
        let (first, last) = (start / PAGE, end.div_ceil(PAGE));
        runs.push(PageRun { first, count: last - first });
        at = end;
    }
    Ok(runs)
}

/// Runs in order that do not overlap, of runs in order of their first pages.
fn union(runs: &[PageRun]) -> Vec<PageRun> {
    let mut union: Vec<PageRun> = Vec::with_capacity(runs.len());
    for run in runs {
        match union.last_mut() {
            Some(last) if run.first <= last.end() => last.count = last.end().max(run.end()) - last.first,
            _ => union.push(*run),
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_above_the_low_top_goes_on_at_four_gib() {
        let memory = GuestMemory::new(LOW_RAM_MAX + 0x2000).unwrap();
        assert_eq!((memory.low_top(), memory.high_size()), (LOW_RAM_MAX, 0x2000));
        memory.write_obj(GuestAddress(HIGH_RAM_START + 0x1ffc), 7u32).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(HIGH_RAM_START + 0x1ffc)), Ok(7));
        for (address, len) in [(LOW_RAM_MAX - 2, 4), (LOW_RAM_MAX, 1), (HIGH_RAM_START + 0x2000, 1), (u64::MAX, 2)] {
            assert!(memory.check(GuestAddress(address), len).is_err(), "{address:#x}");
        }
    }

    #[test]
    fn fill_covers_exactly_its_range() {
        let memory = GuestMemory::new(0x10000).unwrap();
        memory.fill(GuestAddress(0x100), 9000, 0xab).unwrap();
        let mut bytes = vec![0; 9002];
        memory.read(GuestAddress(0xff), &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[9001]), (0, 0));
        assert!(bytes[1..9001].iter().all(|&b| b == 0xab));
        assert!(memory.fill(GuestAddress(0xf000), 0x1001, 0).is_err());
    }

    #[test]
    fn discarded_pages_read_as_zeroes_and_cost_nothing_and_their_neighbours_stay() {
        let memory = GuestMemory::new(LOW_RAM_MAX + 0x10000).unwrap();
        for base in [0x40000, HIGH_RAM_START] {
            memory.fill(GuestAddress(base), 0x8000, 0xcd).unwrap();
            let before = memory.allocated().unwrap();
            memory.discard(GuestAddress(base + 0x1001), 0x3fff).unwrap();
            assert_eq!(memory.allocated().unwrap(), before - 0x3000);
            let mut bytes = vec![0; 0x8000];
            memory.read(GuestAddress(base), &mut bytes).unwrap();
            assert!(bytes[..0x2000].iter().chain(&bytes[0x5000..]).all(|&b| b == 0xcd));
            assert!(bytes[0x2000..0x5000].iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn what_is_hidden_is_no_ram_for_anyone_until_it_is_shown() {
        const MIB: u64 = 1 << 20;
        let memory = GuestMemory::new(LOW_RAM_MAX + MIB).unwrap();
        let last = GuestAddress(LOW_RAM_MAX - 8);
        memory.write_obj(last, 0x1234u64).unwrap();
        memory.hide(MIB);
        let edge = GuestAddress(LOW_RAM_MAX - MIB - 4);
        assert!(memory.read_obj::<u64>(last).is_err() && memory.write_obj(last, 0u64).is_err());
        assert!(memory.read(edge, &mut [0; 5]).is_err() && memory.write(edge, &[0; 5]).is_err());
        assert!(memory.discard(GuestAddress(LOW_RAM_MAX - MIB), 4096).is_err());
        assert!(memory.fill(edge, 8, 1).is_err());
        memory.write(edge, &[1; 4]).unwrap();
        memory.write(GuestAddress(HIGH_RAM_START), &[1; 4]).unwrap();
        memory.hide(0);
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0x1234);
    }

    #[test]
    fn less_than_a_page_is_not_discarded_and_nothing_outside_ram() {
        let memory = GuestMemory::new(LOW_RAM_MAX + 0x2000).unwrap();
        memory.fill(GuestAddress(0), 0x4000, 1).unwrap();
        let before = memory.allocated().unwrap();
        for (address, len) in [(0x10, 0xff0), (0x10, 0x1fef), (0x1000, 0)] {
            memory.discard(GuestAddress(address), len).unwrap();
        }
        for (address, len) in [
            (LOW_RAM_MAX, 0x1000),
            (0, u64::MAX),
            (LOW_RAM_MAX - 0x1000, 0x2000),
            (u64::MAX, 1),
            (HIGH_RAM_START, 0x2001),
        ] {
            assert!(memory.discard(GuestAddress(address), len).is_err(), "{address:#x}");
        }
        assert_eq!(memory.allocated().unwrap(), before);
    }

    fn file() -> File {
        mapping::memory_file(0x40000).unwrap()
    }

    #[test]
    fn what_is_written_after_a_copy_was_prepared_is_not_in_it() {
        let memory = GuestMemory::new(0x40000).unwrap();
        memory.fill(GuestAddress(0x3000), 0x2000, 1).unwrap();
        // First by the file that RAM was, then by a process.
        for round in 1u8..4 {
            let to = file();
            let (copy, layer) = memory.copy(true, &[], None, to.try_clone().unwrap()).unwrap();
            assert_eq!(layer.is_some(), round == 1);
            memory.fill(GuestAddress(0x3000), 0x10000, round + 1).unwrap();
            let mut written = 0;
            copy.run(|fate, run, progress| {
                written += if fate == Fate::Written { run.count } else { 0 };
                progress.done <= progress.total
            })
            .unwrap();
            let mut bytes = [0; 0x10000];
            std::os::unix::fs::FileExt::read_exact_at(&to, &mut bytes, 0x3000).unwrap();
            let pages = if round == 1 { 2 } else { 16 };
            assert_eq!(written, pages);
            assert!(bytes[..pages as usize * 0x1000].iter().all(|&byte| byte == round), "{round}");
            assert!(bytes[pages as usize * 0x1000..].iter().all(|&byte| byte == 0), "{round}");
        }
    }

    #[test]
    fn ram_that_is_shared_in_parts_while_it_is_written_is_what_it_was_in_the_end() {
        let pages = 5 * WINDOW / 2;
        let memory = GuestMemory::new(pages * PAGE).unwrap();
        let set = |page: u64, value: u64| memory.write_obj(GuestAddress(page * PAGE + 24), value).unwrap();
        // A file of its own needs no pass, and is a layer afterwards.
        assert!(!memory.share_ahead(&mut memory.share_pass().unwrap(), Instant::now()).unwrap());
        memory.share().unwrap();
        (0..pages).step_by(3).for_each(|page| set(page, page + 1));
        let mut pass = memory.share_pass().unwrap();
        let mut parts = 0;
        while memory.share_ahead(&mut pass, Instant::now()).unwrap() {
            parts += 1;
            // Pages that were shared already, and some that come yet.
            (0..pages).step_by(97 + parts).for_each(|page| set(page, page << 8));
        }
        assert_eq!(parts, 2);
        assert!(memory.changed().unwrap().iter().all(|run| run.first < pages - WINDOW / 2));
        let (expected, table) = ((0..pages).map(|page| page_word(&memory, page)).collect::<Vec<_>>(), memory.share());
        assert!(memory.changed().unwrap().is_empty());
        (0..pages).step_by(2).for_each(|page| set(page, 0));
        let other = GuestMemory::restored(pages * PAGE, table.unwrap()).unwrap();
        assert!((0..pages).all(|page| page_word(&other, page) == expected[page as usize]));
        assert!((1..pages).step_by(2).all(|page| page_word(&memory, page) == expected[page as usize]));
    }

    fn page_word(memory: &GuestMemory, page: u64) -> u64 {
        memory.read_obj(GuestAddress(page * PAGE + 24)).unwrap()
    }

    #[test]
    fn a_copy_that_fails_says_why_and_one_that_is_given_up_ends() {
        let memory = GuestMemory::new(0x40000).unwrap();
        memory.fill(GuestAddress(0), 0x40000, 1).unwrap();
        let full = || File::options().write(true).open("/dev/full").unwrap();
        for _ in 0..2 {
            let (copy, _) = memory.copy(true, &[], None, full()).unwrap();
            memory.fill(GuestAddress(0), 0x40000, 2).unwrap();
            assert_eq!(copy.run(|_, _, _| true).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
            let (copy, _) = memory.copy(true, &[], None, file()).unwrap();
            assert_eq!(copy.run(|_, _, _| false).unwrap_err().kind(), io::ErrorKind::Interrupted);
            drop(memory.copy(true, &[], None, file()).unwrap());
        }
    }

    #[test]
    fn many_short_runs_are_read_and_the_long_ones_mapped() {
        let pages = 4 * MAX_MAPPINGS as u64;
        let file = mapping::memory_file(pages * PAGE).unwrap();
        let mut table = PageTable::default();
        let layers = [Layer::new(file.try_clone().unwrap()), Layer::new(file.try_clone().unwrap())];
        for page in (0..pages).step_by(3) {
            let byte = [page as u8 | 1];
            std::os::unix::fs::FileExt::write_all_at(&file, &byte, page * PAGE + 7).unwrap();
            table.set(
                PageRun { first: page, count: (1 + page % 2).min(pages - page) },
                &layers[(page / 3 % 2) as usize],
            );
        }
        assert!(table.len() > MAX_MAPPINGS);
        let memory = GuestMemory::restored(pages * PAGE, table).unwrap();
        for page in 0..pages {
            let byte: u8 = memory.read_obj(GuestAddress(page * PAGE + 7)).unwrap();
            assert_eq!(byte, if page % 3 == 0 { page as u8 | 1 } else { 0 }, "{page}");
        }
    }
}

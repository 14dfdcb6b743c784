//! Guest RAM: one memfd, mapped once, seen by the guest as low memory from address 0 and the rest from 4 GiB.
//!
//! The guest changes it at any time, so nothing here hands out `&[u8]`: accesses copy, or go through volatile slices.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use vm_memory::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    VolatileMemory, VolatileSlice,
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
    mmap: Arc<GuestMemoryMmap<()>>,
    size: u64,
}

impl GuestMemory {
    /// `size` bytes (a multiple of the page size) of zeroes. Costs nothing until it is touched.
    pub fn new(size: u64) -> io::Result<GuestMemory> {
        // SAFETY: the name is a valid C string; the call touches no memory of ours.
        let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just made and nothing else owns it.
        let file = Arc::new(unsafe { File::from_raw_fd(fd) });
        file.set_len(size)?;
        let low = size.min(LOW_RAM_MAX);
        let mut ranges = vec![(GuestAddress(0), low as usize, Some(FileOffset::from_arc(file.clone(), 0)))];
        if size > low {
            let high = FileOffset::from_arc(file, low);
            ranges.push((GuestAddress(HIGH_RAM_START), (size - low) as usize, Some(high)));
        }
        let mmap = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
        Ok(GuestMemory { mmap: Arc::new(mmap), size })
    }

    /// The same memory as loaders of other crates take it.
    pub fn as_mmap(&self) -> &GuestMemoryMmap<()> {
        &self.mmap
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
        self.mmap.iter().map(region).collect()
    }

    /// `len` bytes at `address` as a volatile slice, if they are RAM.
    pub fn slice(&self, address: GuestAddress, len: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        self.mmap.get_slice(address, len).map_err(|_| MemoryError { address: address.0, len })
    }

    /// Whether `len` bytes at `address` are all RAM.
    pub fn check(&self, address: GuestAddress, len: usize) -> Result<(), MemoryError> {
        self.slice(address, len).map(drop)
    }

    /// Copies from the guest.
    pub fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), MemoryError> {
        let len = data.len();
        self.mmap.read_slice(data, address).map_err(|_| MemoryError { address: address.0, len })
    }

    /// Copies to the guest.
    pub fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), MemoryError> {
        let len = data.len();
        self.mmap.write_slice(data, address).map_err(|_| MemoryError { address: address.0, len })
    }

    /// Reads a plain value.
    pub fn read_obj<T: ByteValued>(&self, address: GuestAddress) -> Result<T, MemoryError> {
        self.mmap.read_obj(address).map_err(|_| MemoryError { address: address.0, len: size_of::<T>() })
    }

    /// Writes a plain value.
    pub fn write_obj<T: ByteValued>(&self, address: GuestAddress, value: T) -> Result<(), MemoryError> {
        self.mmap.write_obj(value, address).map_err(|_| MemoryError { address: address.0, len: size_of::<T>() })
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

    /// Gives the whole pages inside `len` bytes at `address` back to the host: from now on they read as zeroes, and cost
    /// memory again only when they are touched. All of it must be in one run of RAM.
    pub fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        let region = self.mmap.find_region(address).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = address.0 - region.start_addr().0;
        let end = offset.checked_add(len).filter(|&end| end <= region.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let (first, end) = (offset.next_multiple_of(PAGE), end & !(PAGE - 1));
        let Some(file) = region.file_offset().filter(|_| first < end) else { return Ok(()) };
        let start = file.start() + first;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call changes the file's contents inside this region alone, which is guest memory: nothing of ours
        // refers to it but by volatile accesses, which find zeroes.
        let result = unsafe { libc::fallocate(file.file().as_raw_fd(), mode, start as i64, (end - first) as i64) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What the host has allocated for it, bytes.
    pub fn allocated(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        // Every region is of the one file.
        let file = self.mmap.iter().find_map(|region| region.file_offset());
        Ok(file.map(|file| file.file().metadata()).transpose()?.map_or(0, |metadata| metadata.blocks() * 512))
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
}

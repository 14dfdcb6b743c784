//! Identity mapping of physical memory, and where RAM is.

use core::cell::UnsafeCell;

/// Present, writable, user.
const TABLE: u64 = 7;
/// The same, as a 2 MiB page.
const PAGE_2M: u64 = 0x87;
const GIB: u64 = 1 << 30;
/// Page directories for memory above 4 GiB, one for each GiB that is touched.
pub const HIGH_DIRECTORIES: usize = 64;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);
// SAFETY: only the boot processor maps memory.
unsafe impl Sync for Table {}

unsafe extern "C" {
    static pdpt: Table;
    static page_directories: [Table; 4];
    static image_end: u8;
}

static HIGH: [Table; HIGH_DIRECTORIES] = [const { Table(UnsafeCell::new([0; 512])) }; HIGH_DIRECTORIES];

fn fill(directory: &Table, base: u64) {
    for index in 0..512 {
        // SAFETY: the tables are this module's; entries only ever go from absent to the identity mapping.
        unsafe { (*directory.0.get())[index] = (base + (index as u64) * (2 << 20)) | PAGE_2M };
    }
}

fn point(gib: usize, directory: &Table) {
    // SAFETY: as in `fill`.
    unsafe { (*pdpt.0.get())[gib] = directory.0.get() as u64 | TABLE };
}

/// Maps the first 4 GiB; boot.s has mapped only what it needed.
pub fn map_low() {
    // SAFETY: the tables exist for the whole run.
    for (gib, directory) in unsafe { &page_directories }.iter().enumerate() {
        fill(directory, gib as u64 * GIB);
        point(gib, directory);
    }
    crate::cpu::fence();
}

/// Makes `[address, address + length)` accessible and says whether it is: up to 512 GiB, in 64 different GiB.
pub fn map(address: u64, length: u64) -> bool {
    let Some(last) = address.checked_add(length.max(1) - 1) else { return false };
    if last >= 512 * GIB {
        return false;
    }
    (address / GIB..=last / GIB).filter(|&gib| gib >= 4).all(|gib| {
        // SAFETY: reads the table entry that only this function writes.
        if unsafe { (*pdpt.0.get())[gib as usize] } != 0 {
            return true;
        }
        // SAFETY: reads tables that only this function writes.
        let Some(free) = HIGH.iter().find(|table| unsafe { (*table.0.get())[0] } == 0) else { return false };
        fill(free, gib * GIB);
        point(gib as usize, free);
        crate::cpu::fence();
        true
    })
}

/// First address after the probe's own image.
pub fn end_of_image() -> u64 {
    &raw const image_end as u64
}

/// One entry of the machine's memory map (ACPI address range descriptor).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub length: u64,
    /// 1 is RAM.
    pub kind: u32,
}

impl Range {
    /// Type of usable RAM.
    pub const RAM: u32 = 1;
}

/// The memory map, from the loader.
#[derive(Clone, Copy)]
pub struct Map {
    ranges: [Range; 64],
    length: usize,
}

impl Map {
    /// A map of nothing.
    pub const fn new() -> Map {
        Map { ranges: [Range { base: 0, length: 0, kind: 0 }; 64], length: 0 }
    }

    /// Adds a range; more than 64 are not kept.
    pub fn push(&mut self, range: Range) {
        if let Some(slot) = self.ranges.get_mut(self.length) {
            *slot = range;
            self.length += 1;
        }
    }

    /// All ranges, as given.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.length]
    }

    /// The ranges of usable RAM.
    pub fn ram(&self) -> impl Iterator<Item = &Range> {
        self.ranges().iter().filter(|range| range.kind == Range::RAM)
    }

    /// Bytes of usable RAM.
    pub fn ram_bytes(&self) -> u64 {
        self.ram().map(|range| range.length).sum()
    }

    /// End of the RAM range that holds the probe; 64 MiB when there is no map.
    pub fn end_of_low_ram(&self) -> u64 {
        let here = end_of_image();
        let range = self.ram().find(|range| range.base <= here && here < range.base + range.length);
        range.map_or(64 << 20, |range| range.base + range.length).min(4 * GIB)
    }
}

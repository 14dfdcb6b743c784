//! The two-level table of a qcow2 image that says where each guest cluster is. Level 1 is in memory; level 2 is loaded in
//! slices of a page, and forgotten again when there are too many.

use std::collections::VecDeque;

use super::format::{Header, entry};
use crate::backend::disk::DiskError;

/// Bytes of a slice, or of a cluster where that is smaller.
pub const SLICE_BYTES: usize = 4096;
/// Slices that an image keeps in memory, if nothing needs more: 32 MiB.
const KEPT: usize = 8192;

/// Where guest data is, and how many bytes are there in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// At this offset of the file.
    Data {
        /// The offset.
        at: u64,
        /// The cluster is this image's alone, and may be overwritten.
        own: bool,
        /// Bytes.
        len: u64,
    },
    /// It reads as zeroes.
    Zero {
        /// Bytes.
        len: u64,
    },
    /// In the image below.
    Hole {
        /// Bytes.
        len: u64,
    },
    /// Compressed, by its entry; to the end of the cluster at most.
    Packed {
        /// The entry.
        entry: u64,
        /// Bytes.
        len: u64,
    },
    /// This slice must be loaded first.
    Missing(u32),
}

/// A page of a table of level 2.
pub struct Slice {
    /// In the host's byte order; with subclusters, two words each: the entry, and which of them are here (the lower 32 bits) and
    /// which read as zeroes.
    pub entries: Box<[u64]>,
    /// Used since the last look.
    used: bool,
    /// Not yet handed to be written.
    pub dirty: bool,
    /// On its way to the file.
    pub writing: bool,
    /// Allocations that will change it.
    pub pins: u32,
}

/// See the module.
pub struct Map {
    /// Level 1.
    pub l1: Vec<u64>,
    /// Where that is.
    pub l1_offset: u64,
    /// Bytes of a cluster, as a power of two.
    pub cluster_bits: u32,
    /// Clusters of a slice, as a power of two.
    slice_bits: u32,
    /// Bytes of an entry, as a power of two: 8, or 16 where clusters have subclusters.
    entry_bits: u32,
    has_zero_flag: bool,
    slices: Vec<Option<Box<Slice>>>,
    loaded: VecDeque<u32>,
}

fn damaged(what: &'static str) -> DiskError {
    DiskError::Damaged(what)
}

impl Map {
    /// A map with this level 1.
    pub fn new(header: &Header, mut l1: Vec<u64>) -> Map {
        let entry_bits = header.entry_bits();
        let slice_bits = SLICE_BYTES.min(1 << header.cluster_bits).trailing_zeros() - entry_bits;
        l1.truncate(header.l1_needed() as usize);
        let slices = (l1.len() << (header.cluster_bits - entry_bits)) >> slice_bits;
        Map {
            l1,
            l1_offset: header.l1_offset,
            cluster_bits: header.cluster_bits,
            slice_bits,
            entry_bits,
            has_zero_flag: header.version > 2,
            slices: std::iter::repeat_with(|| None).take(slices).collect(),
            loaded: VecDeque::new(),
        }
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bits of the number of an entry in its table of level 2.
    fn l2_bits(&self) -> u32 {
        self.cluster_bits - self.entry_bits
    }

    /// Bytes of an entry.
    pub fn entry_bytes(&self) -> usize {
        1 << self.entry_bits
    }

    /// Bytes of a slice.
    pub fn slice_bytes(&self) -> usize {
        1 << (self.slice_bits + self.entry_bits)
    }

    /// Slices of one table of level 2.
    pub fn slices_per_table(&self) -> u32 {
        1 << (self.l2_bits() - self.slice_bits)
    }

    /// The slice that a guest cluster is in, and the entry there.
    pub fn place(&self, cluster: u64) -> (u32, usize) {
        ((cluster >> self.slice_bits) as u32, (cluster & ((1 << self.slice_bits) - 1)) as usize)
    }

    /// The entry of level 1 that a slice is under.
    pub fn table_of(&self, slice: u32) -> usize {
        (slice / self.slices_per_table()) as usize
    }

    /// Where a slice is in the file; `None` if there is no such table.
    pub fn slice_offset(&self, slice: u32) -> Option<u64> {
        let table = self.l1.get(self.table_of(slice))? & entry::OFFSET;
        let within = u64::from(slice % self.slices_per_table()) * self.slice_bytes() as u64;
        (table != 0).then_some(table + within)
    }

    /// A loaded slice.
    pub fn slice(&mut self, slice: u32) -> Option<&mut Slice> {
        let slice = self.slices.get_mut(slice as usize)?.as_deref_mut()?;
        slice.used = true;
        Some(slice)
    }

    /// Puts a slice in, from the file's bytes or as zeroes.
    pub fn insert(&mut self, slice: u32, bytes: Option<&[u8]>) {
        let count = self.slice_bytes() / size_of::<u64>();
        let entries = match bytes {
            Some(bytes) => {
                let words = bytes.chunks_exact(8).map(|w| w.first_chunk().map_or(0, |w| u64::from_be_bytes(*w)));
                words.chain(std::iter::repeat(0)).take(count).collect()
            }
            None => vec![0; count].into(),
        };
        if let Some(place) = self.slices.get_mut(slice as usize) {
            if place.is_none() {
                self.loaded.push_back(slice);
            }
            *place = Some(Box::new(Slice { entries, used: true, dirty: false, writing: false, pins: 0 }));
        }
        self.forget_some();
    }

    /// Takes a slice out that is not to be used.
    pub fn remove(&mut self, slice: u32) {
        if let Some(place) = self.slices.get_mut(slice as usize) {
            *place = None;
        }
        self.loaded.retain(|number| *number != slice);
    }

    /// Forgets slices that were not used for long, as long as there are too many.
    fn forget_some(&mut self) {
        let mut tries = 2 * self.loaded.len();
        while self.loaded.len() > KEPT && tries > 0 {
            tries -= 1;
            let Some(number) = self.loaded.pop_front() else { return };
            let Some(place) = self.slices.get_mut(number as usize) else { continue };
            match place {
                Some(s) if s.used || s.dirty || s.writing || s.pins > 0 => {
                    s.used = false;
                    self.loaded.push_back(number);
                }
                place => *place = None,
            }
        }
    }

    /// The offset of an entry's cluster.
    pub fn offset_of(&self, entry: u64) -> Result<u64, DiskError> {
        let at = entry & entry::OFFSET;
        if !at.is_multiple_of(self.cluster()) { Err(damaged("a cluster does not start where one may")) } else { Ok(at) }
    }

    /// Whether an entry reads as zeroes.
    pub fn is_zero(&self, entry: u64) -> bool {
        self.has_zero_flag && entry & (entry::COMPRESSED | entry::ZERO) == entry::ZERO
    }

    /// Where the bytes from `offset` on are, at most `len` of them, which are inside the disk.
    pub fn find(&mut self, offset: u64, len: u64) -> Result<Found, DiskError> {
        let (bits, l2_bits) = (self.cluster_bits, self.l2_bits());
        let first = offset >> bits;
        let within = offset & (self.cluster() - 1);
        let l1 = self.l1.get((first >> l2_bits) as usize).copied().unwrap_or(0);
        if l1 & entry::OFFSET == 0 {
            let table = 1u64 << (bits + l2_bits);
            return Ok(Found::Hole { len: len.min(table - (offset & (table - 1))) });
        }
        if self.offset_of(l1)? < self.cluster() {
            return Err(damaged("a table is where the header is"));
        }
        let (number, at) = self.place(first);
        let (has_zero_flag, cluster) = (self.has_zero_flag, self.cluster());
        let subclusters = self.entry_bits > 3;
        let Some(slice) = self.slice(number) else { return Ok(Found::Missing(number)) };
        if subclusters {
            return find_subclusters(slice.entries[2 * at], slice.entries[2 * at + 1], cluster, within, len);
        }
        let entries = &slice.entries[at..];
        let entry = entries[0];
        let wanted = (within + len).div_ceil(cluster) as usize;
        let run = |same: &dyn Fn(usize, u64) -> bool| {
            let count = entries.iter().take(wanted).enumerate().take_while(|(i, e)| same(*i, **e)).count();
            (count as u64 * cluster - within).min(len)
        };
        let is_zero = |e: u64| has_zero_flag && e & (entry::COMPRESSED | entry::ZERO) == entry::ZERO;
        let place = entry & entry::OFFSET;
        if entry & entry::COMPRESSED != 0 {
            return Ok(Found::Packed { entry, len: len.min(cluster - within) });
        }
        if is_zero(entry) {
            return Ok(Found::Zero { len: run(&|_, e| is_zero(e)) });
        }
        if place == 0 {
            return Ok(Found::Hole { len: run(&|_, e| e & (entry::COMPRESSED | entry::OFFSET) == 0 && !is_zero(e)) });
        }
        if !place.is_multiple_of(cluster) {
            return Err(damaged("a cluster does not start where one may"));
        }
        let mask = entry::OFFSET | entry::COPIED | entry::COMPRESSED | u64::from(has_zero_flag);
        let len = run(&|i, e| e & mask == (entry & mask) + i as u64 * cluster);
        Ok(Found::Data { at: place + within, own: entry & entry::COPIED != 0, len })
    }

    /// Where the compressed bytes of a cluster are, from its entry: offset and at most how many.
    pub fn packed(&self, entry: u64) -> (u64, usize) {
        let split = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << split) - 1);
        let sectors = (entry & !(entry::COPIED | entry::COMPRESSED)) >> split;
        (at, ((sectors + 1) * 512 - (at & 511)) as usize)
    }
}

/// Where the bytes at `within` a cluster that has subclusters are, at most `len` of them: its entry of two words, see
/// [`Slice::entries`].
fn find_subclusters(entry: u64, parts: u64, cluster: u64, within: u64, len: u64) -> Result<Found, DiskError> {
    const PARTS: u64 = 32;
    let (here, zero) = (parts as u32, (parts >> PARTS) as u32);
    let len = len.min(cluster - within);
    if entry & entry::COMPRESSED != 0 {
        return Ok(Found::Packed { entry, len });
    }
    let place = entry & entry::OFFSET;
    if here & zero != 0 || (here != 0 && place == 0) {
        return Err(damaged("a part of a cluster is in two places, or in none"));
    }
    if !place.is_multiple_of(cluster) {
        return Err(damaged("a cluster does not start where one may"));
    }
    let size = cluster / PARTS;
    let kind = |part: u64| (here >> part & 1, zero >> part & 1);
    let first = within / size;
    let count = (first..PARTS).take_while(|part| kind(*part) == kind(first)).count() as u64;
    let len = len.min((first + count) * size - within);
    Ok(match kind(first) {
        (1, _) => Found::Data { at: place + within, own: entry & entry::COPIED != 0, len },
        (_, 1) => Found::Zero { len },
        _ => Found::Hole { len },
    })
}

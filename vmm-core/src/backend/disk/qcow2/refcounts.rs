//! How often each cluster of a qcow2 image is used: all in memory, with what the file does not have yet, and which
//! clusters are free.

use std::collections::{BTreeMap, BTreeSet};

use super::format::MAX_REFTABLE_BYTES;
use super::piece::Piece;
use crate::backend::disk::DiskError;

/// Bytes that are written at once, or a cluster where that is smaller.
const SLICE: usize = 4096;

/// Clusters in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// They were never written, and read as zeroes.
    pub fresh: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Refcounts {
    cluster_bits: u32,
    order: u32,
    /// Where the blocks are.
    table: Vec<u64>,
    /// Where the table is.
    pub table_offset: u64,
    blocks: Vec<Option<Box<[u8]>>>,
    /// Runs of clusters that nobody uses, before `end`.
    free: BTreeMap<u64, u64>,
    /// No cluster from here on is used.
    end: u64,
    /// No cluster from here on was ever written.
    fresh_from: u64,
    pending: Pending,
    /// Clusters of tables that have moved, to be freed when that is durable.
    pub retired: Vec<(u64, u64)>,
}

/// What the file does not have yet.
#[derive(Debug, Default)]
pub struct Pending {
    /// Blocks that the table in the file does not name yet.
    blocks: BTreeSet<usize>,
    /// Parts of other blocks, by block and slice.
    slices: BTreeSet<(usize, usize)>,
    /// Slices of the table.
    table: BTreeSet<usize>,
    /// The table has another place than the header in the file says.
    moved: bool,
}

/// What is to be written, in this order, with a flush between any two.
#[derive(Debug, Default)]
pub struct Stages {
    /// New blocks, and the table if it has moved.
    pub first: Vec<Piece>,
    /// The header is to say where the table is.
    pub moved: bool,
    /// The rest.
    pub second: Vec<Piece>,
    /// What this was made from, in case it can't be written.
    pub taken: Pending,
}

impl Refcounts {
    /// With this table and these blocks; all clusters from `file_end` on were never written.
    pub fn new(
        cluster_bits: u32,
        order: u32,
        table_offset: u64,
        table: Vec<u64>,
        blocks: Vec<Option<Box<[u8]>>>,
        file_end: u64,
    ) -> Refcounts {
        let mut refs = Refcounts {
            cluster_bits,
            order,
            table,
            table_offset,
            blocks,
            free: BTreeMap::new(),
            end: 0,
            fresh_from: file_end,
            pending: Pending::default(),
            retired: Vec::new(),
        };
        refs.find_free();
        refs
    }

    /// Looks for the free clusters.
    pub fn find_free(&mut self) {
        self.free.clear();
        self.end = 0;
        let per_block = self.per_block();
        for block in 0..self.blocks.len() {
            let Some(bytes) = &self.blocks[block] else { continue };
            if bytes.iter().all(|b| *b == 0) {
                continue;
            }
            let first = block as u64 * per_block;
            for cluster in first..first + per_block {
                if self.get(cluster) > 0 {
                    if cluster > self.end {
                        self.free.insert(self.end, cluster - self.end);
                    }
                    self.end = cluster + 1;
                }
            }
        }
        self.fresh_from = self.fresh_from.max(self.end);
    }

    /// Has only clusters from this one on taken for free.
    pub fn only_behind(&mut self, cluster: u64) {
        self.free.clear();
        self.end = self.end.max(cluster);
    }

    /// Bytes of a cluster.
    fn cluster(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Refcounts in a block.
    pub fn per_block(&self) -> u64 {
        (self.cluster() as u64 * 8) >> self.order
    }

    /// No cluster from this on is used.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The largest refcount that there is room for.
    pub fn most(&self) -> u64 {
        if self.order == 6 { u64::MAX } else { (1 << (1 << self.order)) - 1 }
    }

    /// Where the blocks are.
    pub fn block_offsets(&self) -> impl Iterator<Item = u64> + '_ {
        self.table.iter().copied().filter(|at| *at != 0)
    }

    /// Clusters of the table.
    pub fn table_clusters(&self) -> u64 {
        (self.table.len() as u64 * 8).div_ceil(self.cluster() as u64)
    }

    /// How often a cluster is used.
    pub fn get(&self, cluster: u64) -> u64 {
        let (block, at) = ((cluster / self.per_block()) as usize, (cluster % self.per_block()) as usize);
        let Some(Some(bytes)) = self.blocks.get(block) else { return 0 };
        if self.order < 3 {
            let bit = at << self.order;
            return u64::from(bytes[bit / 8] >> (bit % 8)) & self.most();
        }
        let len = 1usize << (self.order - 3);
        bytes[at * len..(at + 1) * len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Says how often a cluster is used, whose block must be there.
    fn put(&mut self, cluster: u64, value: u64) {
        let (block, at) = ((cluster / self.per_block()) as usize, (cluster % self.per_block()) as usize);
        let (order, most) = (self.order, self.most());
        let Some(Some(bytes)) = self.blocks.get_mut(block) else { return };
        let byte = if order < 3 {
            let bit = at << order;
            let byte = &mut bytes[bit / 8];
            *byte = *byte & !((most as u8) << (bit % 8)) | (value as u8) << (bit % 8);
            bit / 8
        } else {
            let len = 1usize << (order - 3);
            bytes[at * len..(at + 1) * len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            at * len
        };
        if !self.pending.blocks.contains(&block) {
            self.pending.slices.insert((block, byte / SLICE));
        }
    }

    /// Takes up to `want` free clusters in a row, not yet counted.
    fn take(&mut self, want: u64) -> Run {
        if let Some((start, count)) = self.free.pop_first() {
            let now = count.min(want);
            if count > now {
                self.free.insert(start + now, count - now);
            }
            return Run { start, count: now, fresh: false };
        }
        self.take_at_end(want)
    }

    fn take_at_end(&mut self, count: u64) -> Run {
        let start = self.end;
        self.end += count;
        let fresh = start >= self.fresh_from;
        self.fresh_from = self.fresh_from.max(self.end);
        Run { start, count, fresh }
    }

    /// Allocates up to `want` clusters in a row, at least one.
    pub fn allocate(&mut self, want: u64) -> Result<Run, DiskError> {
        let run = self.take(want.max(1));
        self.count_in(run)?;
        Ok(run)
    }

    /// Allocates so many clusters in a row.
    pub fn allocate_exactly(&mut self, count: u64) -> Result<Run, DiskError> {
        let run = self.take_at_end(count);
        self.count_in(run)?;
        Ok(run)
    }

    fn count_in(&mut self, run: Run) -> Result<(), DiskError> {
        for cluster in run.start..run.start + run.count {
            self.set(cluster, 1)?;
        }
        Ok(())
    }

    /// Says how often a cluster is used.
    pub fn set(&mut self, cluster: u64, value: u64) -> Result<(), DiskError> {
        let block = (cluster / self.per_block()) as usize;
        if value > 0 && self.blocks.get(block).is_none_or(Option::is_none) {
            self.add_block(block)?;
        }
        self.put(cluster, value);
        Ok(())
    }

    fn add_block(&mut self, block: usize) -> Result<(), DiskError> {
        if block >= self.table.len() {
            self.grow_table(block + 1)?;
        }
        let at = self.take(1).start;
        self.table[block] = at << self.cluster_bits;
        if self.blocks.len() <= block {
            self.blocks.resize_with(block + 1, || None);
        }
        self.blocks[block] = Some(vec![0; self.cluster()].into());
        self.pending.blocks.insert(block);
        self.pending.table.insert(block * 8 / SLICE);
        self.set(at, 1)
    }

    /// Gives the table another place, with room for at least so many entries.
    fn grow_table(&mut self, entries: usize) -> Result<(), DiskError> {
        let bytes = (entries.max(2 * self.table.len()) * 8).next_multiple_of(self.cluster());
        let too_large = || DiskError::Host(std::io::Error::from_raw_os_error(libc::EFBIG));
        if bytes as u64 > MAX_REFTABLE_BYTES {
            return Err(too_large());
        }
        self.retired.push((self.table_offset >> self.cluster_bits, self.table_clusters()));
        let run = self.take_at_end((bytes / self.cluster()) as u64);
        self.table.resize(bytes / 8, 0);
        self.table_offset = run.start << self.cluster_bits;
        self.pending.moved = true;
        self.count_in(run)
    }

    /// Uses a cluster once less.
    pub fn release(&mut self, cluster: u64) {
        let now = self.get(cluster);
        if now > 0 {
            self.put(cluster, now - 1);
        }
        if now == 1 {
            self.add_free(cluster);
        }
    }

    fn add_free(&mut self, cluster: u64) {
        let (mut start, mut count) = (cluster, 1);
        if let Some((&before, &len)) = self.free.range(..cluster).next_back()
            && before + len == cluster
        {
            (start, count) = (before, len + 1);
            self.free.remove(&before);
        }
        if let Some(len) = self.free.remove(&(cluster + 1)) {
            count += len;
        }
        if start + count == self.end {
            self.end = start;
        } else {
            self.free.insert(start, count);
        }
    }

    /// Free runs of clusters before the end.
    pub fn free_runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.free.iter().map(|(start, count)| (*start, *count))
    }

    /// Whether the file lacks something.
    pub fn is_dirty(&self) -> bool {
        let Pending { blocks, slices, table, moved } = &self.pending;
        *moved || !(blocks.is_empty() && slices.is_empty() && table.is_empty())
    }

    /// What is to be written now; it counts as written until [`Refcounts::undo`].
    pub fn stages(&mut self) -> Stages {
        let taken = std::mem::take(&mut self.pending);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for &block in &taken.blocks {
            if let Some(Some(bytes)) = self.blocks.get(block) {
                first.push(Piece::new(self.table[block], bytes));
            }
        }
        for &(block, slice) in &taken.slices {
            if let Some(Some(bytes)) = self.blocks.get(block) {
                let (from, to) = (slice * SLICE, ((slice + 1) * SLICE).min(bytes.len()));
                second.push(Piece::new(self.table[block] + from as u64, &bytes[from..to]));
            }
        }
        if taken.moved {
            first.push(self.table_piece(0, self.table.len()));
        } else {
            let per_slice = SLICE / 8;
            let slices = taken.table.iter();
            second.extend(slices.map(|s| self.table_piece(s * per_slice, ((s + 1) * per_slice).min(self.table.len()))));
        }
        Stages { first, moved: taken.moved, second, taken }
    }

    fn table_piece(&self, from: usize, to: usize) -> Piece {
        let bytes: Vec<u8> = self.table[from..to].iter().flat_map(|at| at.to_be_bytes()).collect();
        Piece::new(self.table_offset + from as u64 * 8, &bytes)
    }

    /// What was taken could not be written.
    pub fn undo(&mut self, taken: Pending) {
        let Pending { blocks, slices, table, moved } = taken;
        self.pending.slices.extend(slices.into_iter().filter(|(block, _)| !blocks.contains(block)));
        self.pending.slices.retain(|(block, _)| !blocks.contains(block));
        self.pending.blocks.extend(blocks);
        self.pending.table.extend(table);
        self.pending.moved |= moved;
    }
}

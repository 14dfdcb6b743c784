//! How a qcow2 disk writes: in place where the top image has the cluster for itself, into new clusters elsewhere.
//!
//! A new cluster is named by the table only when its data is in the file's cache, so that no flush ever names one without.
//! Only one that was never written, over zeroes, is named at once: it reads as what was there before.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::flush::Cycle;
use super::format::{FormatError, Header, entry};
use super::layer::{Kind, Layer};
use super::read::take;
use super::refcounts::{Refcounts, Run};
use super::table::{Found, Map};
use super::{Active, Key, Next, Owner, Qcow2Disk, Tag, chain, repair};
use crate::backend::disk::buffers::Scratch;
use crate::backend::disk::image::{Image, OpenError};
use crate::backend::disk::job::Job;
use crate::backend::disk::{Buffers, DiskError};

/// The file is made longer in steps of so many bytes.
const GROWTH: u64 = 16 << 20;
/// Zeroes are written from memory of this size, again and again.
const ZEROES: usize = 64 << 10;

/// What is needed to change an image.
pub struct Writer {
    pub refs: Refcounts,
    /// Bytes of the file.
    length: u64,
    /// Clusters that hold tables, so that no damaged entry has the guest write there.
    tables: HashSet<u64>,
    /// Slices to be written.
    pub dirty: BTreeSet<u32>,
    /// Tables of level 2, by their entry of level 1, which the file does not name yet.
    pub unlinked: BTreeSet<usize>,
    /// The file's header says that refcounts may be out of date.
    pub marked: bool,
    /// Data was written since the last flush.
    pub unsynced: bool,
    /// Runs of clusters that no table in memory names any more, though those in the file may.
    pub dropped: Vec<(u64, u64)>,
    /// The same, after the flush: with the number of the last request that may still use them.
    pub ripe: Vec<(u64, Vec<(u64, u64)>)>,
    pub cycle: Option<Cycle>,
    /// Requests that wait for a flush that is yet to start.
    pub waiters: Vec<usize>,
    /// Allocations on their way, by their first guest cluster.
    busy: BTreeMap<u64, Allocation>,
    zeroes: Arc<Scratch>,
}

/// New clusters that get their data.
struct Allocation {
    run: Run,
    /// The request that it is a part of.
    slot: usize,
    /// The slice that will name them.
    slice: u32,
    /// The parts before and behind the data, and how many of them are still read.
    head: Option<Arc<Scratch>>,
    tail: Option<Arc<Scratch>>,
    filling: usize,
    gaps: (u64, u64),
    data: Option<Buffers>,
    failed: Option<DiskError>,
    /// Requests that want to change the same clusters.
    waiters: Vec<usize>,
}

impl Writer {
    /// Loads what is needed to change the top image, and repairs its refcounts if they may be out of date.
    pub(super) fn open(path: &Path, layers: &[Layer]) -> Result<Writer, OpenError> {
        let refused = |source| OpenError::Format { path: path.into(), source };
        let Some(Layer { image, kind: Kind::Qcow2(header, map), .. }) = layers.first() else {
            return Err(refused(FormatError::Damaged("it is no qcow2 image".into())));
        };
        header.check_writable().map_err(refused)?;
        if header.incompatible & super::format::incompatible::DIRTY != 0 {
            repair::repair(image, header, map).map_err(|error| error.on(path))?;
        }
        let refs = chain::load_refcounts(image, header).map_err(|error| error.on(path))?;
        let tables = tables(header, map, &refs).map_err(refused)?;
        Ok(Writer {
            refs,
            length: image.file().metadata().map_or(image.length, |m| m.len()),
            tables,
            dirty: BTreeSet::new(),
            unlinked: BTreeSet::new(),
            marked: false,
            unsynced: false,
            dropped: Vec::new(),
            ripe: Vec::new(),
            cycle: None,
            waiters: Vec::new(),
            busy: BTreeMap::new(),
            zeroes: Arc::new(Scratch::new(ZEROES)),
        })
    }

    /// The allocation that a guest cluster is in.
    fn busy_at(&mut self, cluster: u64) -> Option<&mut Allocation> {
        let (first, allocation) = self.busy.range_mut(..=cluster).next_back()?;
        (cluster < first + allocation.run.count).then_some(allocation)
    }

    /// The first guest cluster from this one on that is in an allocation.
    fn next_busy(&self, cluster: u64) -> u64 {
        self.busy.range(cluster..).next().map_or(u64::MAX, |(first, _)| *first)
    }

    /// Makes the file long enough for all clusters.
    pub(super) fn extend(&mut self, image: &Image, cluster_bits: u32) -> Result<(), DiskError> {
        let needed = self.refs.end() << cluster_bits;
        if needed > self.length {
            let length = needed.next_multiple_of(GROWTH);
            image.extend(length).map_err(|error| DiskError::from_errno(error.raw_os_error().unwrap_or(libc::EIO)))?;
            self.length = length;
        }
        Ok(())
    }

    pub(super) fn set_length(&mut self, length: u64) {
        self.length = length;
    }

    /// Notes that a table is elsewhere now, and what it had is free.
    pub(super) fn move_table(&mut self, old: (u64, u64), run: Run) {
        self.tables.retain(|cluster| !(old.0..old.0 + old.1).contains(cluster));
        self.tables.extend(run.start..run.start + run.count);
        self.dropped.push(old);
    }

    /// Notes that nothing names what an entry names any more.
    fn drop_entry(&mut self, map: &Map, old: u64) {
        if old & entry::COMPRESSED != 0 {
            let (at, len) = map.packed(old);
            let (first, last) = (at >> map.cluster_bits, (at + len as u64 - 1) >> map.cluster_bits);
            self.dropped.push((first, last - first + 1));
        } else if old & entry::OFFSET != 0 {
            let cluster = (old & entry::OFFSET) >> map.cluster_bits;
            match self.dropped.last_mut() {
                Some((start, count)) if *start + *count == cluster => *count += 1,
                _ => self.dropped.push((cluster, 1)),
            }
        }
    }
}

/// The clusters of all tables, each of which must be counted once.
fn tables(header: &Header, map: &Map, refs: &Refcounts) -> Result<HashSet<u64>, FormatError> {
    let bits = header.cluster_bits;
    let damaged = |what: &str| FormatError::Damaged(format!("{what}; 'orangery disk check --repair' may mend it"));
    let mut tables = HashSet::new();
    let mut add = |cluster: u64| {
        if !tables.insert(cluster) {
            return Err(damaged("two of its tables are in the same place"));
        }
        if refs.get(cluster) != 1 { Err(damaged("a table is not counted as used once")) } else { Ok(()) }
    };
    add(0)?;
    let l1_clusters = (u64::from(header.l1_entries) * 8).div_ceil(1 << bits);
    (0..l1_clusters).try_for_each(|i| add((header.l1_offset >> bits) + i))?;
    (0..refs.table_clusters()).try_for_each(|i| add((refs.table_offset >> bits) + i))?;
    refs.block_offsets().try_for_each(|at| add(at >> bits))?;
    for &l1 in &map.l1 {
        match l1 & entry::OFFSET {
            0 => {}
            at if at.trailing_zeros() < bits || l1 & entry::COPIED == 0 => {
                return Err(damaged("a table of level 2 is shared or not where one may be"));
            }
            at => add(at >> bits)?,
        }
    }
    Ok(tables)
}

impl Qcow2Disk {
    /// The image that is changed, its map, and what is needed for that.
    pub(super) fn top(&mut self) -> Result<(&Arc<Image>, &mut Map, &mut Writer), DiskError> {
        match (self.layers.first_mut(), &mut self.writer) {
            (Some(Layer { image, kind: Kind::Qcow2(_, map), .. }), Some(writer)) => Ok((image, map, writer)),
            _ => Err(DiskError::ReadOnly),
        }
    }

    /// Whether an entry that names nothing reads as zeroes, with no image below that could say otherwise.
    fn is_over_nothing(&self, offset: u64) -> bool {
        self.layers.get(1).is_none_or(|below| offset >= below.size)
    }

    /// Refuses a slice with entries that would have the guest write over tables, or over what is free.
    pub(super) fn check_slice(&mut self, slice: u32) -> Result<(), DiskError> {
        let Ok((_, map, writer)) = self.top() else { return Ok(()) };
        let bits = map.cluster_bits;
        let Some(loaded) = map.slice(slice) else { return Ok(()) };
        for &found in loaded.entries.iter().filter(|e| **e & (entry::COMPRESSED | entry::COPIED) == entry::COPIED) {
            let cluster = (found & entry::OFFSET) >> bits;
            if found & entry::OFFSET != 0 && (writer.tables.contains(&cluster) || writer.refs.get(cluster) != 1) {
                return Err(DiskError::Damaged("a cluster that should have one use has another"));
            }
        }
        Ok(())
    }

    /// Makes the table of level 2 that a guest cluster is under, if there is none.
    fn make_table(&mut self, cluster: u64) -> Result<(), DiskError> {
        let (image, map, writer) = self.top()?;
        let table = map.table_of(map.place(cluster).0);
        match map.l1.get(table) {
            Some(l1) if l1 & entry::OFFSET == 0 => {}
            _ => return Ok(()),
        }
        let run = writer.refs.allocate(1)?;
        writer.extend(image, map.cluster_bits)?;
        writer.tables.insert(run.start);
        map.l1[table] = run.start << map.cluster_bits | entry::COPIED;
        writer.unlinked.insert(table);
        let first = table as u32 * map.slices_per_table();
        for slice in first..first + map.slices_per_table() {
            map.insert(slice, None);
            if let Some(loaded) = map.slice(slice) {
                loaded.dirty = true;
                writer.dirty.insert(slice);
            }
        }
        Ok(())
    }

    /// Has the entry of a guest cluster, whose slice is loaded, name something else.
    fn put_entry(&mut self, cluster: u64, new: u64) -> Result<(), DiskError> {
        let (_, map, writer) = self.top()?;
        let (number, at) = map.place(cluster);
        let slice = map.slice(number).ok_or(DiskError::Damaged("a part of a table was lost"))?;
        let old = std::mem::replace(&mut slice.entries[at], new);
        if !std::mem::replace(&mut slice.dirty, true) {
            writer.dirty.insert(number);
        }
        writer.drop_entry(map, old);
        Ok(())
    }

    /// The next `len` bytes to be written: the request's, or zeroes.
    fn data(&mut self, request: &mut Active, len: u64, zeroes: bool) -> Result<Buffers, DiskError> {
        if !zeroes {
            return take(request, len);
        }
        request.offset += len;
        let (_, _, writer) = self.top()?;
        let mut left = len as usize;
        let mut data = Buffers::own(&writer.zeroes, left.min(ZEROES));
        left = left.saturating_sub(ZEROES);
        while left > 0 {
            data.append(Buffers::own(&writer.zeroes, left.min(ZEROES)));
            left = left.saturating_sub(ZEROES);
        }
        Ok(data)
    }

    /// Writes the next part of a request, or zeroes up to an offset.
    pub(super) fn write_step(
        &mut self,
        slot: usize,
        request: &mut Active,
        zeroes_to: Option<u64>,
    ) -> Result<Next, DiskError> {
        let end = zeroes_to.unwrap_or(request.end);
        let offset = request.offset;
        let (_, map, writer) = self.top()?;
        let (bits, cluster_size) = (map.cluster_bits, map.cluster());
        let first = offset >> bits;
        if let Some(allocation) = writer.busy_at(first) {
            allocation.waiters.push(slot);
            return Ok(Next::Wait);
        }
        let next_busy = writer.next_busy(first);
        match map.find(offset, end - offset)? {
            Found::Missing(slice) => return Ok(self.park(slot, Key::Slice { layer: 0, slice })),
            Found::Data { at, own: true, len } => {
                let data = self.data(request, len, zeroes_to.is_some())?;
                request.jobs += 1;
                let (image, ..) = self.top()?;
                let image = image.clone();
                self.pool.start(Tag::Part(slot), &image, Job::write(at, data));
                return Ok(Next::Step);
            }
            _ => {}
        }
        self.make_table(first)?;

        // Clusters in a row that are not the top image's own.
        let (_, map, _) = self.top()?;
        let (number, at) = map.place(first);
        let last = ((end - 1) >> bits).min(next_busy - 1);
        let Some(slice) = map.slice(number) else {
            return Ok(self.park(slot, Key::Slice { layer: 0, slice: number }));
        };
        let entries: Vec<u64> = {
            let shared = |e: &u64| {
                e & (entry::COMPRESSED | entry::COPIED) != entry::COPIED
                    || e & entry::OFFSET == 0
                    || e & entry::ZERO != 0
            };
            slice.entries[at..].iter().take((last - first + 1) as usize).copied().take_while(shared).collect()
        };
        let (image, map, writer) = self.top()?;
        let run = writer.refs.allocate(entries.len().max(1) as u64)?;
        if let Err(error) = writer.extend(image, bits) {
            (run.start..run.start + run.count).for_each(|c| writer.refs.release(c));
            return Err(error);
        }
        let (image, start) = (image.clone(), first << bits);
        let stop = start + run.count * cluster_size;
        let data_end = end.min(stop);
        let gaps = (offset - start, stop - data_end);
        let nothing = |(i, e): (usize, &u64)| (map.is_zero(*e) && *e & entry::OFFSET == 0, *e, i);
        let all: Vec<_> = entries[..run.count as usize].iter().enumerate().map(nothing).collect();
        let over_zeroes = all.iter().all(|(zero, e, i)| {
            *zero
                || (*e & (entry::COMPRESSED | entry::OFFSET) == 0
                    && self.is_over_nothing(start + *i as u64 * cluster_size))
        });
        let data = self.data(request, data_end - offset, zeroes_to.is_some())?;
        request.jobs += 1;
        let host = run.start << bits;
        if run.fresh && over_zeroes {
            self.name(first, run)?;
            self.pool.start(Tag::Part(slot), &image, Job::write(host + gaps.0, data));
            return Ok(Next::Step);
        }
        let (_, map, writer) = self.top()?;
        if let Some(slice) = map.slice(number) {
            slice.pins += 1;
        }
        let allocation = Allocation {
            run,
            slot,
            slice: number,
            head: None,
            tail: None,
            filling: 0,
            gaps,
            data: Some(data),
            failed: None,
            waiters: Vec::new(),
        };
        writer.busy.insert(first, allocation);
        if gaps == (0, 0) {
            self.write_allocation(first);
            return Ok(Next::Step);
        }
        for (from, len, is_head) in [(start, gaps.0, true), (data_end, gaps.1, false)] {
            if len > 0 {
                self.fill(first, from, len, is_head);
            }
        }
        Ok(Next::Step)
    }

    /// Reads what is around the data of an allocation.
    fn fill(&mut self, first: u64, from: u64, len: u64, is_head: bool) {
        let scratch = Arc::new(Scratch::new(len as usize));
        let buffers = Buffers::own(&scratch, len as usize);
        if let Some(allocation) = self.writer.as_mut().and_then(|w| w.busy.get_mut(&first)) {
            allocation.filling += 1;
            *(if is_head { &mut allocation.head } else { &mut allocation.tail }) = Some(scratch);
        }
        let seq = self.seq();
        let fill = Active {
            owner: Owner::Fill(first),
            kind: super::Kind::Read,
            offset: from,
            // The last cluster may go beyond the disk; what is there reads as zeroes.
            end: from + len,
            buffers: Some(buffers),
            jobs: 0,
            failed: None,
            durable: false,
            waiting: true,
            seq,
        };
        let slot = self.add(fill);
        // Later: the request that allocates is in the middle of its step.
        self.ready.push_back(slot);
        self.pool.signal();
    }

    /// A part around the data of an allocation was read, or not.
    pub(super) fn filled(&mut self, first: u64, result: Result<(), DiskError>) {
        let Some(allocation) = self.writer.as_mut().and_then(|w| w.busy.get_mut(&first)) else { return };
        allocation.filling -= 1;
        if let Err(error) = result {
            allocation.failed.get_or_insert(error);
        }
        if allocation.filling == 0 {
            match allocation.failed.take() {
                None => self.write_allocation(first),
                Some(error) => self.allocated(first, Err(error)),
            }
        }
    }

    /// Writes new clusters as a whole.
    fn write_allocation(&mut self, first: u64) {
        let Ok((image, map, writer)) = self.top() else { return };
        let (image, bits) = (image.clone(), map.cluster_bits);
        let Some(allocation) = writer.busy.get_mut(&first) else { return };
        let Some(data) = allocation.data.take() else { return };
        let (head, tail) = allocation.gaps;
        let mut all = data;
        if let Some(scratch) = allocation.head.take() {
            let mut joined = Buffers::own(&scratch, head as usize);
            joined.append(all);
            all = joined;
        }
        if let Some(scratch) = allocation.tail.take() {
            all.append(Buffers::own(&scratch, tail as usize));
        }
        let job = Job::write(allocation.run.start << bits, all);
        self.pool.start(Tag::Allocated(first), &image, job);
    }

    /// Has the table name new clusters.
    fn name(&mut self, first: u64, run: Run) -> Result<(), DiskError> {
        let bits = self.top()?.1.cluster_bits;
        (0..run.count).try_for_each(|i| self.put_entry(first + i, (run.start + i) << bits | entry::COPIED))
    }

    /// New clusters have their data, or not.
    pub(super) fn allocated(&mut self, first: u64, result: Result<(), DiskError>) {
        let Ok((_, map, writer)) = self.top() else { return };
        let Some(allocation) = writer.busy.remove(&first) else { return };
        writer.unsynced = true;
        if let Some(slice) = map.slice(allocation.slice) {
            slice.pins -= 1;
        }
        let result = match result {
            Ok(()) => self.name(first, allocation.run),
            Err(error) => {
                let Run { start, count, .. } = allocation.run;
                (start..start + count).for_each(|cluster| writer.refs.release(cluster));
                Err(error)
            }
        };
        self.part_ended(allocation.slot, result);
        self.ready.extend(allocation.waiters);
    }

    /// Has the next part of a request read as zeroes.
    pub(super) fn zero_step(&mut self, slot: usize, request: &mut Active, unmap: bool) -> Result<Next, DiskError> {
        let (offset, disk_end) = (request.offset, self.geometry.size);
        let version = self.layers.first().and_then(|top| top.header()).map_or(2, |header| header.version);
        let (_, map, writer) = self.top()?;
        let (bits, size) = (map.cluster_bits, map.cluster());
        let first = offset >> bits;
        let busy = writer.busy_at(first);
        if let Some(allocation) = busy {
            allocation.waiters.push(slot);
            return Ok(Next::Wait);
        }
        let next_busy = writer.next_busy(first).saturating_mul(size);
        let end = request.end.min(next_busy);
        let found = map.find(offset, end - offset)?;
        let cluster_end = (first + 1) << bits;
        // The disk's last cluster may be cut off.
        let covers = |from: u64, to: u64| from.is_multiple_of(size) && (to >= from + size || to == disk_end);
        let whole = covers(offset, end.min(cluster_end));
        match found {
            Found::Missing(slice) => return Ok(self.park(slot, Key::Slice { layer: 0, slice })),
            Found::Zero { len } => {
                request.offset += len;
                return Ok(Next::Step);
            }
            Found::Hole { len } if self.is_over_nothing(offset) => {
                request.offset += len;
                return Ok(Next::Step);
            }
            Found::Data { at, own: true, len } if !unmap => {
                request.offset += len;
                request.jobs += 1;
                let image = self.top()?.0.clone();
                self.pool.start(Tag::Part(slot), &image, Job::zero(at, len));
                return Ok(Next::Step);
            }
            Found::Hole { .. } | Found::Data { .. } | Found::Packed { .. } => {}
        }
        if !whole || (version < 3 && !self.is_over_nothing(offset)) {
            return self.write_step(slot, request, Some(end.min(cluster_end)));
        }
        let len = match found {
            Found::Data { len, .. } | Found::Hole { len } => len,
            _ => cluster_end - offset,
        };
        self.make_table(first)?;
        let mut cluster = first;
        while covers(cluster << bits, (offset + len).min((cluster + 1) << bits)) && cluster << bits < offset + len {
            let zero = if self.is_over_nothing(cluster << bits) { 0 } else { entry::ZERO };
            self.put_entry(cluster, zero)?;
            cluster += 1;
        }
        request.offset = (cluster << bits).min(request.end);
        Ok(Next::Step)
    }

    /// Gives up what is in the next part of a request, if it is whole clusters.
    pub(super) fn discard_step(&mut self, slot: usize, request: &mut Active) -> Result<Next, DiskError> {
        let offset = request.offset;
        let last = request.end == self.geometry.size;
        let (_, map, _) = self.top()?;
        let (bits, size) = (map.cluster_bits, map.cluster());
        let cluster_end = ((offset >> bits) + 1) << bits;
        if !offset.is_multiple_of(size) || (request.end < cluster_end && !last) {
            request.offset = request.end.min(cluster_end);
            return Ok(Next::Step);
        }
        match map.find(offset, request.end - offset)? {
            Found::Missing(slice) => Ok(self.park(slot, Key::Slice { layer: 0, slice })),
            // Nothing of the top image's is given back; what is below stays as it is.
            Found::Hole { len } | Found::Zero { len } => {
                request.offset = (offset + len).min(request.end);
                Ok(Next::Step)
            }
            Found::Data { .. } | Found::Packed { .. } => {
                let version = self.layers.first().and_then(|top| top.header()).map_or(2, |header| header.version);
                if version < 3 && !self.is_over_nothing(offset) {
                    request.offset = request.end.min(cluster_end);
                    return Ok(Next::Step);
                }
                self.zero_step(slot, request, true)
            }
        }
    }
}

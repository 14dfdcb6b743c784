//! The order in which a qcow2 disk's tables reach the file.
//!
//! 1. New blocks of refcounts, which nothing names yet, and before the first of them the mark in the header that refcounts
//!    may be out of date. Flush.
//! 2. Refcounts, and tables of level 2 that nothing names yet. Flush: now data, refcounts and new tables are there.
//! 3. Tables of level 2, and the entries of level 1 that name the new ones. Flush.
//!
//! Each step is left out where there is nothing to do. Wherever power fails, what a table names is there and counted; the
//! worst is a cluster that is counted and not used, which whoever opens the image next takes back, by the mark.
//! A cluster that is not used any more is counted less, given back to the host and used again only after step 3, and
//! after all requests that may still read or write it.

use std::collections::{BTreeSet, VecDeque};

use super::format::{entry, incompatible};
use super::piece::Piece;
use super::refcounts::Pending;
use super::table::{Map, SLICE_BYTES};
use super::{Owner, Qcow2Disk, Tag};
use crate::backend::disk::image::Image;
use crate::backend::disk::job::Job;
use crate::backend::disk::{DiskError, Request};

/// Clusters that are dropped before they are given back without the guest's flush, and changed slices that wait.
const MOST_DROPPED: u64 = 4096;
const MOST_DIRTY: usize = 2048;

/// A flush on its way.
pub struct Cycle {
    stages: VecDeque<Vec<Piece>>,
    /// Jobs of this stage that have not ended.
    jobs: usize,
    /// The last job was the flush at a stage's end.
    syncing: bool,
    failed: Option<DiskError>,
    /// Requests that end with it.
    waiters: Vec<usize>,
    // What it takes to the file.
    slices: Vec<u32>,
    linked: BTreeSet<usize>,
    refs: Pending,
    dropped: Vec<(u64, u64)>,
    marks: bool,
}

/// The image's first sector, changed.
pub(super) fn patched_header(image: &Image, change: impl FnOnce(&mut [u8])) -> Result<Piece, DiskError> {
    let mut sector = image.read_aligned(0, 512).map_err(DiskError::Host)?;
    change(&mut sector);
    Ok(Piece::new(0, &sector))
}

/// Sets or clears the mark that refcounts may be out of date.
pub(super) fn mark(sector: &mut [u8], on: bool) {
    let bit = incompatible::DIRTY as u8;
    sector[79] = if on { sector[79] | bit } else { sector[79] & !bit };
}

fn slice_piece(map: &mut Map, number: u32) -> Option<Piece> {
    let at = map.slice_offset(number)?;
    let slice = map.slice(number)?;
    slice.dirty = false;
    slice.writing = true;
    let bytes: Vec<u8> = slice.entries.iter().flat_map(|e| e.to_be_bytes()).collect();
    Some(Piece::new(at, &bytes))
}

impl Qcow2Disk {
    /// Has a request end with the next flush.
    pub(super) fn flush_for(&mut self, slot: usize) {
        match &mut self.writer {
            Some(writer) => writer.waiters.push(slot),
            None => self.part_ended(slot, Ok(())),
        }
        self.start_cycle();
    }

    /// Starts a flush, unless one is on its way.
    fn start_cycle(&mut self) {
        if self.writer.as_ref().is_none_or(|w| w.cycle.is_some()) {
            return;
        }
        match self.plan_cycle() {
            Ok(cycle) => {
                if let Some(writer) = &mut self.writer {
                    writer.cycle = Some(cycle);
                }
                self.next_stage();
            }
            Err(error) => {
                let waiters = self.writer.as_mut().map(|w| std::mem::take(&mut w.waiters)).unwrap_or_default();
                for slot in waiters {
                    self.part_ended(slot, Err(error.again()));
                }
            }
        }
    }

    fn plan_cycle(&mut self) -> Result<Cycle, DiskError> {
        let version = self.layers.first().and_then(|top| top.header()).map_or(2, |header| header.version);
        let (image, map, writer) = self.top()?;
        let changes = writer.refs.is_dirty() || !writer.dirty.is_empty() || !writer.unlinked.is_empty();
        let marks = changes && version > 2 && !writer.marked;
        let header = if marks { Some(patched_header(image, |sector| mark(sector, true))?) } else { None };
        let refs = writer.refs.stages();
        let mut stages = VecDeque::new();
        let mut first = refs.first;
        first.extend(header);
        if !first.is_empty() {
            stages.push_back(first);
        }
        if refs.moved {
            let (at, clusters) = (writer.refs.table_offset, writer.refs.table_clusters() as u32);
            stages.push_back(vec![patched_header(image, |sector| {
                mark(sector, version > 2);
                sector[48..56].copy_from_slice(&at.to_be_bytes());
                sector[56..60].copy_from_slice(&clusters.to_be_bytes());
            })?]);
        }
        let slices: Vec<u32> = std::mem::take(&mut writer.dirty).into_iter().collect();
        let linked = writer.unlinked.clone();
        let (mut second, mut third) = (refs.second, Vec::new());
        for &number in &slices {
            let new = writer.unlinked.contains(&map.table_of(number));
            (if new { &mut second } else { &mut third }).extend(slice_piece(map, number));
        }
        let per_slice = SLICE_BYTES / 8;
        let mut l1_slices: Vec<usize> = linked.iter().map(|table| table / per_slice).collect();
        l1_slices.dedup();
        for slice in l1_slices {
            let from = slice * per_slice;
            let to = (from + per_slice).min(map.l1.len());
            let bytes: Vec<u8> = map.l1[from..to].iter().flat_map(|e| e.to_be_bytes()).collect();
            third.push(Piece::new(map.l1_offset + from as u64 * 8, &bytes));
        }
        if writer.unsynced || !second.is_empty() || !third.is_empty() {
            stages.push_back(second);
        }
        if !third.is_empty() {
            stages.push_back(third);
        }
        writer.unsynced = false;
        let mut dropped = std::mem::take(&mut writer.dropped);
        dropped.append(&mut writer.refs.retired);
        Ok(Cycle {
            stages,
            jobs: 0,
            syncing: false,
            failed: None,
            waiters: std::mem::take(&mut writer.waiters),
            slices,
            linked,
            refs: refs.taken,
            dropped,
            marks,
        })
    }

    /// Starts the jobs of the next stage, or ends the flush.
    fn next_stage(&mut self) {
        let Ok((image, _, writer)) = self.top() else { return };
        let image = image.clone();
        let Some(cycle) = &mut writer.cycle else { return };
        cycle.syncing = false;
        let Some(pieces) = cycle.stages.pop_front() else { return self.end_cycle() };
        cycle.jobs = pieces.len();
        if pieces.is_empty() {
            return self.sync_stage();
        }
        for piece in pieces {
            self.pool.start(Tag::Flush, &image, piece.job());
        }
    }

    fn sync_stage(&mut self) {
        let Ok((image, _, writer)) = self.top() else { return };
        let image = image.clone();
        if let Some(cycle) = &mut writer.cycle {
            cycle.syncing = true;
            cycle.jobs = 1;
            self.pool.start(Tag::Flush, &image, Job::sync());
        }
    }

    /// A job of the flush has ended.
    pub(super) fn flush_job_ended(&mut self, result: Result<(), DiskError>) {
        let Some(cycle) = self.writer.as_mut().and_then(|w| w.cycle.as_mut()) else { return };
        if let Err(error) = result {
            cycle.failed.get_or_insert(error);
        }
        cycle.jobs -= 1;
        if cycle.jobs > 0 {
            return;
        }
        match (cycle.failed.is_some(), cycle.syncing) {
            (true, _) => self.end_cycle(),
            (false, true) => self.next_stage(),
            (false, false) => self.sync_stage(),
        }
    }

    fn end_cycle(&mut self) {
        let seq = self.next_seq;
        let Ok((_, map, writer)) = self.top() else { return };
        let Some(cycle) = writer.cycle.take() else { return };
        let Cycle { failed, waiters, slices, linked, refs, dropped, marks, .. } = cycle;
        for &number in &slices {
            if let Some(slice) = map.slice(number) {
                slice.writing = false;
                if failed.is_some() && !std::mem::replace(&mut slice.dirty, true) {
                    writer.dirty.insert(number);
                }
            }
        }
        match &failed {
            None => {
                writer.unlinked.retain(|table| !linked.contains(table));
                writer.marked |= marks;
                if !dropped.is_empty() {
                    writer.ripe.push((seq, dropped));
                }
            }
            Some(_) => {
                // All of it is written again with the next one.
                writer.refs.undo(refs);
                writer.dropped.extend(dropped);
                writer.unsynced = true;
            }
        }
        for slot in waiters {
            self.part_ended(slot, failed.as_ref().map_or(Ok(()), |error| Err(error.again())));
        }
    }

    /// Starts what is due without anybody asking for it.
    pub(super) fn keep_house(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let dropped: u64 = writer.dropped.iter().map(|(_, count)| count).sum();
        let due = !writer.waiters.is_empty() || dropped >= MOST_DROPPED || writer.dirty.len() >= MOST_DIRTY;
        if writer.cycle.is_none() && due {
            self.start_cycle();
        }
        self.give_back();
    }

    /// Gives clusters back that nothing uses any more.
    fn give_back(&mut self) {
        if self.writer.as_ref().is_none_or(|w| w.ripe.is_empty()) {
            return;
        }
        let oldest = self.requests.iter().flatten().map(|r| r.seq).min().unwrap_or(u64::MAX);
        let Ok((image, map, writer)) = self.top() else { return };
        let (image, bits) = (image.clone(), map.cluster_bits);
        let (ripe, later) = std::mem::take(&mut writer.ripe).into_iter().partition(|(seq, _)| *seq < oldest);
        writer.ripe = later;
        let ripe: Vec<(u64, Vec<(u64, u64)>)> = ripe;
        for (start, count) in ripe.into_iter().flat_map(|(_, runs)| runs) {
            let mut cluster = start;
            while cluster < start + count {
                let Ok((_, _, writer)) = self.top() else { return };
                if writer.refs.get(cluster) != 1 {
                    // Still used by others, such as another compressed cluster.
                    writer.refs.release(cluster);
                    cluster += 1;
                    continue;
                }
                let same = (cluster..start + count).take_while(|c| writer.refs.get(*c) == 1).count() as u64;
                let tag = Tag::Punched { start: cluster, count: same };
                self.pool.start(tag, &image, Job::punch(cluster << bits, same << bits));
                cluster += same;
            }
        }
    }

    /// Clusters were given back to the host, or could not be; they may be used again.
    pub(super) fn punched(&mut self, start: u64, count: u64) {
        if let Ok((_, _, writer)) = self.top() {
            (start..start + count).for_each(|cluster| writer.refs.release(cluster));
        }
    }

    /// Gives all free clusters back to the host. Nothing may be in flight.
    pub(crate) fn punch_free(&mut self) -> Result<(), DiskError> {
        self.close()?;
        let (image, map, writer) = self.top()?;
        let bits = map.cluster_bits;
        for (start, count) in writer.refs.free_runs() {
            Job::punch(start << bits, count << bits).run(image)?;
        }
        let end = writer.refs.end() << bits;
        let image = image.clone();
        image.file().set_len(end).map_err(DiskError::Host)?;
        writer.set_length(end);
        self.run_job(&image, Job::sync())
    }

    /// Waits for everything, has all of it on stable storage, and takes the mark off.
    pub(super) fn close(&mut self) -> Result<(), DiskError> {
        self.run_to_rest();
        if self.writer.is_none() {
            return Ok(());
        }
        loop {
            let (_, _, writer) = self.top()?;
            let due = writer.unsynced
                || writer.refs.is_dirty()
                || !(writer.dirty.is_empty() && writer.unlinked.is_empty())
                || !(writer.dropped.is_empty() && writer.refs.retired.is_empty());
            if !due {
                break;
            }
            self.flush_now()?;
        }
        let (image, map, writer) = self.top()?;
        if !std::mem::take(&mut writer.marked) {
            return Ok(());
        }
        let end = writer.refs.end() << map.cluster_bits;
        let image = image.clone();
        image.file().set_len(end).map_err(DiskError::Host)?;
        writer.set_length(end);
        let clean = patched_header(&image, |sector| mark(sector, false))?;
        self.run_job(&image, clean.job())?;
        self.run_job(&image, Job::sync())
    }

    /// Flushes while nothing else is on its way.
    pub(super) fn flush_now(&mut self) -> Result<(), DiskError> {
        let active = self.active(Owner::Own, Request::Flush);
        let slot = self.add(active);
        self.advance(slot);
        self.run_to_rest();
        self.own_flush.take().unwrap_or(Err(DiskError::Damaged("a flush was lost")))
    }

    /// Does a job while nothing else is on its way.
    pub(super) fn run_job(&mut self, image: &std::sync::Arc<Image>, job: Job) -> Result<(), DiskError> {
        self.pool.start(Tag::Flush, image, job);
        loop {
            self.pool.wait();
            match self.pool.completed() {
                Some((Tag::Flush, result)) => return result,
                Some(_) => {}
                None if self.pool.running() == 0 => return Err(DiskError::Damaged("a job was lost")),
                None => {}
            }
        }
    }
}

/// Level 1 as it was read, checked.
pub(super) fn parse_l1(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.chunks_exact(8).map(|w| w.first_chunk().map_or(0, |w| u64::from_be_bytes(*w)));
    words.map(|l1| l1 & (entry::OFFSET | entry::COPIED)).collect()
}

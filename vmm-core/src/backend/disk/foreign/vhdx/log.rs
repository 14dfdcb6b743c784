//! The log of a VHDX image that was not closed cleanly (MS-VHDX 1.0, 2.3): what its newest sequence of entries says is
//! put over what is read of the image's tables. The image itself stays as it is.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use super::super::{ForeignError, Image, Words, damaged, read_table, read_table_within, unsupported};
use super::crc;

/// The log and what it changes are made of these.
const SECTOR: usize = 4096;
/// Hyper-V and QEMU make logs of one MiB.
const MAX_LOG: u64 = 16 << 20;
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;

/// An image's tables, as they are once its log is replayed.
pub struct Replayed<'a> {
    image: &'a Image,
    /// Bytes of the file with what the log would add to it.
    length: u64,
    changes: Changes,
}

/// What the log puts somewhere in the file: one sector, or zeroes for as long as it says. Both are aligned to sectors.
struct Change {
    at: Range<u64>,
    sector: Option<Box<[u8; SECTOR]>>,
}

/// Changes that do not overlap, by where they end: however often a log says something of one place, it is put there once.
#[derive(Default)]
struct Changes(BTreeMap<u64, Change>);

impl Changes {
    /// The later one counts.
    fn push(&mut self, change: Change) {
        let Range { start, end } = change.at;
        if start == end {
            return;
        }
        let touched: Vec<u64> = self.within(start..end).map(|old| old.at.end).collect();
        for old in touched {
            let Some(old) = self.0.remove(&old) else { continue };
            // More than a sector is zeroes, of which there may be some before and some after.
            for rest in [old.at.start..start, end..old.at.end].into_iter().filter(|rest| !rest.is_empty()) {
                self.0.insert(rest.end, Change { at: rest, sector: None });
            }
        }
        self.0.insert(end, change);
    }

    /// Those that a part of the file has anything of.
    fn within(&self, part: Range<u64>) -> impl Iterator<Item = &Change> {
        let from = (Bound::Excluded(part.start), Bound::Unbounded);
        self.0.range(from).map(|(_, change)| change).take_while(move |change| change.at.start < part.end)
    }
}

/// An entry that is whole.
struct Entry {
    sectors: usize,
    /// The sector at which the sequence begins that this entry ends.
    tail: usize,
    number: u64,
    /// Bytes that the file had at least, and those that it has to have.
    flushed: u64,
    last: u64,
    changes: Vec<Change>,
}

impl<'a> Replayed<'a> {
    /// Nothing to replay.
    pub fn clean(image: &'a Image) -> Replayed<'a> {
        Replayed { image, length: image.length, changes: Changes::default() }
    }

    /// Reads the log with this id, whose place is `offset` and `len`. A log without a whole entry is one in which nothing
    /// was written yet.
    pub fn read(image: &'a Image, id: [u8; 16], offset: u64, len: u64) -> Result<Replayed<'a>, ForeignError> {
        if len > MAX_LOG {
            return Err(unsupported(format!("a log of {} MiB", len >> 20)));
        }
        if len == 0 || !len.is_multiple_of(SECTOR as u64) {
            return Err(damaged("its log is no whole number of sectors"));
        }
        let mut log = read_table(image, offset, len, "log")?;
        let count = log.len() / SECTOR;
        // It is a ring: an entry goes on at its start.
        log.extend_from_within(..);
        let found = (0..count).filter_map(|at| Some((at, Entry::read(&log[at * SECTOR..][..count * SECTOR], id)?)));
        let mut entries: BTreeMap<usize, Entry> = found.collect();
        let mut replayed = Replayed::clean(image);
        let Some(sequence) = newest_sequence(&entries, count) else { return Ok(replayed) };
        for at in sequence {
            let Some(entry) = entries.remove(&at) else { continue };
            if entry.flushed > image.length {
                return Err(damaged("the file is shorter than when its log was written"));
            }
            replayed.length = replayed.length.max(entry.last);
            entry.changes.into_iter().for_each(|change| replayed.changes.push(change));
        }
        Ok(replayed)
    }

    /// A table that must be in the file.
    pub fn table(&self, offset: u64, len: u64, what: &str) -> Result<Vec<u8>, ForeignError> {
        // The file may not have grown yet as the log says.
        let mut bytes = read_table_within(self.image, self.length, offset, len, what)?;
        let end = offset + len;
        for change in self.changes.within(offset..end) {
            let both = change.at.start.max(offset)..change.at.end.min(end);
            let place = &mut bytes[(both.start - offset) as usize..(both.end - offset) as usize];
            match &change.sector {
                None => place.fill(0),
                Some(sector) => {
                    place.copy_from_slice(&sector[(both.start - change.at.start) as usize..][..place.len()])
                }
            }
        }
        Ok(bytes)
    }

    /// Whether the log changes a part of the file.
    pub fn changes(&self, part: Range<u64>) -> bool {
        self.changes.within(part).next().is_some()
    }
}

/// Where the entries of the sequence are that counts: of those whose last entry tells their beginning and whose numbers
/// follow one another, the one with the highest number.
fn newest_sequence(entries: &BTreeMap<usize, Entry>, count: usize) -> Option<Vec<usize>> {
    let mut heads: Vec<(usize, &Entry)> = entries.iter().map(|(at, entry)| (*at, entry)).collect();
    heads.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.number));
    heads.into_iter().find_map(|(head, last)| {
        let (mut at, mut sequence, mut expected) = (last.tail, Vec::new(), None);
        loop {
            let entry = entries.get(&at).filter(|entry| expected.is_none_or(|number| entry.number == number))?;
            sequence.push(at);
            if at == head {
                return Some(sequence);
            }
            // Its number is less than the head's, so it ends.
            expected = Some(entry.number.checked_add(1).filter(|number| *number <= last.number)?);
            at = (at + entry.sectors) % count;
        }
    })
}

impl Entry {
    /// The entry at the start of these bytes, if there is one that is whole.
    ///
    /// Its parts have signatures at their sectors' starts that no other part may have there. So two entries that overlap
    /// are not both summed up, and a log is read in time that grows with its length.
    fn read(bytes: &[u8], id: [u8; 16]) -> Option<Entry> {
        let words = Words(bytes);
        let len = words.le32(8).ok()? as usize;
        let tail = words.le32(12).ok()? as usize;
        let number = words.le64(16).ok()?;
        let count = words.le32(24).ok()? as usize;
        let aligned = len.is_multiple_of(SECTOR) && tail.is_multiple_of(SECTOR) && tail < bytes.len();
        let mine = bytes.starts_with(b"loge") && words.bytes::<16>(32).ok()? == id && number != 0;
        let mut data = (HEADER + DESCRIPTOR.checked_mul(count)?).div_ceil(SECTOR);
        if !mine || !aligned || len > bytes.len() || data > len / SECTOR {
            return None;
        }
        let mut changes = Vec::new();
        for at in (0..count).map(|i| HEADER + DESCRIPTOR * i) {
            let (kind, offset) = (words.bytes::<4>(at).ok()?, words.le64(at + 16).ok()?);
            let (end, sector) = match &kind {
                b"zero" => (offset.checked_add(words.le64(at + 8).ok()?)?, None),
                b"desc" => {
                    let sector = bytes[..len].chunks_exact(SECTOR).nth(data)?.first_chunk::<SECTOR>()?;
                    let halves = (Words(sector).le32(4).ok()?, Words(sector).le32(SECTOR - 4).ok()?);
                    if !sector.starts_with(b"data") || halves != ((number >> 32) as u32, number as u32) {
                        return None;
                    }
                    data += 1;
                    // The signature and the numbers are where the descriptor has the bytes of.
                    let mut sector = Box::new(*sector);
                    sector[..8].copy_from_slice(&words.bytes::<8>(at + 8).ok()?);
                    sector[SECTOR - 4..].copy_from_slice(&words.bytes::<4>(at + 4).ok()?);
                    (offset.checked_add(SECTOR as u64)?, Some(sector))
                }
                _ => return None,
            };
            let aligned = (offset | end).is_multiple_of(SECTOR as u64);
            if !aligned || words.le64(at + 24).ok()? != number {
                return None;
            }
            changes.push(Change { at: offset..end, sector });
        }
        let whole = data * SECTOR == len && words.le32(4).ok()? == crc(&bytes[..len]);
        let (flushed, last) = (words.le64(48).ok()?, words.le64(56).ok()?);
        whole.then_some(Entry { sectors: len / SECTOR, tail: tail / SECTOR, number, flushed, last, changes })
    }
}

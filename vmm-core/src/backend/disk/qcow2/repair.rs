//! Counts what a qcow2 image uses, compares that with its refcounts, and puts those right.

use std::path::Path;

use super::chain::{Trouble, load_refcounts, read_tables};
use super::flush::{mark, patched_header};
use super::format::{FormatError, Header, entry, incompatible};
use super::refcounts::Refcounts;
use super::table::Map;
use crate::backend::disk::DiskError;
use crate::backend::disk::image::{Image, Lock, OpenError, OpenOptions};
use crate::backend::disk::qcow2::chain;

/// The most clusters of a file that is looked at: two bytes each are needed.
const MOST_CLUSTERS: u64 = 256 << 20;
/// Problems that are put into words; the rest is only counted.
const MOST_WORDS: usize = 20;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Clusters that are counted more often than they are used: space is wasted, nothing is wrong with the data.
    pub leaked: u64,
    /// What makes the image unsafe to write: clusters counted less often than they are used, entries that make no sense.
    pub errors: u64,
    /// The first of them in words.
    pub words: Vec<String>,
    /// Clusters with data, compressed ones included.
    pub data_clusters: u64,
    /// Clusters of the file that nothing uses, before its last used one.
    pub free_clusters: u64,
    /// The image says that its refcounts may be out of date.
    pub marked: bool,
}

impl Findings {
    fn error(&mut self, words: impl FnOnce() -> String) {
        self.errors += 1;
        if self.words.len() < MOST_WORDS {
            self.words.push(words());
        }
    }
}

/// Hears how many of an image's tables were looked at, and of how many, and says whether to go on.
pub type Look<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// How often each cluster is used.
struct Census {
    bits: u32,
    counts: Vec<u16>,
    findings: Findings,
}

impl Census {
    fn add(&mut self, what: &str, at: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = at.saturating_add(len - 1) >> self.bits;
        for cluster in at >> self.bits..=last {
            match self.counts.get_mut(cluster as usize) {
                Some(count) => *count = count.saturating_add(1),
                None => {
                    self.findings.error(|| format!("{what} at {at:#x} is beyond the end of the file"));
                    return;
                }
            }
        }
    }

    /// Counts what a table of level 1 leads to.
    fn walk(&mut self, image: &Image, map: &Map, l1: &[u64], active: bool, look: Look<'_>) -> Result<(), Trouble> {
        let (cluster, all) = (map.cluster(), l1.len() as u64);
        for (done, &l1) in (0..).zip(l1) {
            if !look(done, all) {
                return Err(Trouble::Host("look through", std::io::ErrorKind::Interrupted.into()));
            }
            let at = l1 & entry::OFFSET;
            if at == 0 {
                continue;
            }
            if !at.is_multiple_of(cluster) || at >> self.bits >= self.counts.len() as u64 {
                self.findings.error(|| format!("a table of level 2 is said to be at {at:#x}"));
                continue;
            }
            self.add("a table of level 2", at, cluster);
            let bytes = image.read_aligned(at, cluster as usize).map_err(|e| Trouble::Host("read", e))?;
            for word in bytes.chunks_exact(map.entry_bytes()) {
                let found = word.first_chunk().map_or(0, |w| u64::from_be_bytes(*w));
                if found & entry::COMPRESSED != 0 {
                    let (at, len) = map.packed(found);
                    self.add("a compressed cluster", at, len as u64);
                    self.findings.data_clusters += u64::from(active);
                } else if found & entry::OFFSET != 0 {
                    let at = found & entry::OFFSET;
                    if !at.is_multiple_of(cluster) {
                        self.findings.error(|| format!("a cluster is said to be at {at:#x}"));
                        continue;
                    }
                    self.add("a cluster", at, cluster);
                    self.findings.data_clusters += u64::from(active && !map.is_zero(found));
                }
            }
        }
        Ok(())
    }

    /// Counts the internal snapshots, with all that they lead to.
    fn walk_snapshots(&mut self, image: &Image, header: &Header, map: &Map, look: Look<'_>) -> Result<(), Trouble> {
        const HEAD: usize = 40;
        let host = |e| Trouble::Host("read", e);
        let mut at = header.snapshots_offset;
        for _ in 0..header.snapshots.min(65536) {
            let head = read_bytes(image, at, HEAD).map_err(host)?;
            let number =
                |from: usize, len: usize| head[from..from + len].iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            let (l1_offset, entries) = (number(0, 8), number(8, 4));
            let len = HEAD as u64 + number(36, 4) + number(12, 2) + number(14, 2);
            if entries * 8 > super::format::MAX_L1_BYTES || !l1_offset.is_multiple_of(map.cluster()) {
                self.findings.error(|| "a snapshot's table of level 1 makes no sense".into());
                return Ok(());
            }
            let bytes = read_bytes(image, l1_offset, entries as usize * 8).map_err(host)?;
            self.add("a snapshot's table of level 1", l1_offset, entries * 8);
            self.walk(image, map, &super::flush::parse_l1(&bytes), false, look)?;
            at = at.saturating_add(len.next_multiple_of(8));
        }
        self.add("the table of snapshots", header.snapshots_offset, at - header.snapshots_offset);
        Ok(())
    }
}

fn read_bytes(image: &Image, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let start = at & !511;
    let skip = (at - start) as usize;
    let mut bytes = image.read_aligned(start, (skip + len).next_multiple_of(512))?;
    bytes.drain(..skip);
    bytes.truncate(len);
    Ok(bytes)
}

fn count(image: &Image, header: &Header, map: &Map, refs: &Refcounts, look: Look<'_>) -> Result<Census, Trouble> {
    let length = image.file().metadata().map_err(|e| Trouble::Host("measure", e))?.len();
    let bits = header.cluster_bits;
    let clusters = length.div_ceil(1 << bits);
    if clusters > MOST_CLUSTERS {
        return Err(FormatError::Unsupported("more clusters than can be looked at".into()).into());
    }
    let mut census = Census { bits, counts: vec![0; clusters as usize], findings: Findings::default() };
    census.findings.marked = header.incompatible & incompatible::DIRTY != 0;
    census.add("the header", 0, 1);
    census.add("the table of level 1", header.l1_offset, u64::from(header.l1_entries) * 8);
    census.add("the refcount table", refs.table_offset, refs.table_clusters() << bits);
    for at in refs.block_offsets() {
        census.add("a refcount block", at, 1);
    }
    census.walk(image, map, &map.l1, true, look)?;
    if header.snapshots > 0 {
        census.walk_snapshots(image, header, map, look)?;
    }
    Ok(census)
}

/// Compares an image's refcounts with what it uses; given up with an error once `look` says no.
pub fn check(path: &Path, look: Look<'_>) -> Result<Findings, OpenError> {
    let options = OpenOptions { readonly: true, direct: false };
    let layer = chain::open_one(path, options, Lock::Shared, Some("qcow2"))?;
    check_image(&layer.image, look).map_err(|error| error.on(path))
}

/// Takes leaked clusters back and counts those that are used; given up with an error once `look` says no. What entries that make no
/// sense name stays as it is.
pub fn repair_file(path: &Path, look: Look<'_>) -> Result<Findings, OpenError> {
    let options = OpenOptions { readonly: false, direct: false };
    let layer = chain::open_one(path, options, Lock::Exclusive, Some("qcow2"))?;
    let mut run = || {
        let (header, map) = read_tables(&layer.image)?;
        if header.incompatible & incompatible::CORRUPT == 0 {
            header.check_writable()?;
        }
        repair_image(&layer.image, &header, &map, look)?;
        check_image(&layer.image, look)
    };
    run().map_err(|error| error.on(path))
}

fn check_image(image: &Image, look: Look<'_>) -> Result<Findings, Trouble> {
    let (header, map) = read_tables(image)?;
    let refs = load_refcounts(image, &header)?;
    let Census { counts, mut findings, .. } = count(image, &header, &map, &refs, look)?;
    let last = refs.end().max(counts.len() as u64);
    for cluster in 0..last {
        let (used, counted) = (u64::from(counts.get(cluster as usize).copied().unwrap_or(0)), refs.get(cluster));
        if counted > used {
            findings.leaked += 1;
        } else if counted < used {
            findings.error(|| format!("cluster {cluster} is used {used} times and counted {counted} times"));
        }
    }
    check_own(image, &map, &refs, &mut findings)?;
    findings.free_clusters = refs.free_runs().map(|(_, count)| count).sum();
    Ok(findings)
}

/// Looks for entries that say that they are the only use of what is used more often.
fn check_own(image: &Image, map: &Map, refs: &Refcounts, findings: &mut Findings) -> Result<(), Trouble> {
    let cluster = map.cluster();
    for &l1 in &map.l1 {
        let at = l1 & entry::OFFSET;
        if at == 0 || !at.is_multiple_of(cluster) {
            continue;
        }
        let bytes = image.read_aligned(at, cluster as usize).map_err(|e| Trouble::Host("read", e))?;
        for word in bytes.chunks_exact(map.entry_bytes()) {
            let found = word.first_chunk().map_or(0, |w| u64::from_be_bytes(*w));
            let at = found & entry::OFFSET;
            if found & (entry::COMPRESSED | entry::COPIED) == entry::COPIED && at != 0 && refs.get(at / cluster) != 1 {
                let count = refs.get(at / cluster);
                findings
                    .error(|| format!("the cluster at {at:#x} is said to have one use and is counted {count} times"));
            }
        }
    }
    Ok(())
}

/// Puts refcounts right and takes the mark off. Whatever is interrupted is done again by the next one.
pub fn repair(image: &Image, header: &Header, map: &Map) -> Result<(), Trouble> {
    repair_image(image, header, map, &mut |_, _| true)
}

fn repair_image(image: &Image, header: &Header, map: &Map, look: Look<'_>) -> Result<(), Trouble> {
    let mut refs = load_refcounts(image, header)?;
    let Census { counts, findings, .. } = count(image, header, map, &refs, look)?;
    if let Some(words) = findings.words.first() {
        return Err(FormatError::Damaged(words.clone()).into());
    }
    // Nothing that may be in use is taken for new blocks.
    refs.only_behind(counts.len() as u64);
    for (cluster, used) in counts.iter().enumerate() {
        let used = u64::from(*used);
        if used > refs.most() {
            return Err(FormatError::Damaged(format!("cluster {cluster} is used {used} times")).into());
        }
        if refs.get(cluster as u64) != used {
            refs.set(cluster as u64, used).map_err(Trouble::from)?;
        }
    }
    let host = |e| Trouble::Host("repair", e);
    let stages = refs.stages();
    let file = image.file();
    let all = |pieces: &[super::piece::Piece]| -> std::io::Result<()> {
        pieces.iter().try_for_each(|piece| piece.write(file))?;
        file.sync_data()
    };
    all(&stages.first).map_err(host)?;
    let table = (refs.table_offset, refs.table_clusters() as u32);
    if stages.moved {
        let piece = patched_header(image, |sector| {
            sector[48..56].copy_from_slice(&table.0.to_be_bytes());
            sector[56..60].copy_from_slice(&table.1.to_be_bytes());
        });
        all(&[piece.map_err(Trouble::from)?]).map_err(host)?;
    }
    all(&stages.second).map_err(host)?;
    if header.version > 2 {
        let piece = patched_header(image, |sector| mark(sector, false)).map_err(Trouble::from)?;
        all(&[piece]).map_err(host)?;
    }
    Ok(())
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        DiskError::Host(error).into()
    }
}

//! Hyper-V's disk images (MS-VHDX 1.0): two headers, of which the newer one counts, two tables of regions, metadata, and
//! a table of blocks. What a log holds that was not replayed counts.

mod log;
#[cfg(test)]
mod tests;

use super::{ForeignError, Image, Locate, Opened, Place, Words, check_size, damaged, unsupported};
use log::Replayed;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// GUIDs as they are in the file.
const BAT: u128 = u128::from_le_bytes(guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08));
const METADATA: u128 = u128::from_le_bytes(guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e));
const FILE_PARAMETERS: u128 = u128::from_le_bytes(guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b));
const DISK_SIZE: u128 = u128::from_le_bytes(guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8));
const LOGICAL_SECTOR: u128 = u128::from_le_bytes(guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f));
/// A required entry that is not known is one that matters.
const MOST_ENTRIES: u32 = 2047;

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// Whether these are the first bytes of one.
pub fn is(start: &[u8]) -> bool {
    start.starts_with(b"vhdxfile")
}

/// CRC-32C of bytes whose field at 4 counts as zeroes.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in bytes.iter().enumerate() {
        crc ^= if (4..8).contains(&at) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// A structure with a signature and a sum, if it is whole.
fn whole(tables: &Replayed<'_>, offset: u64, len: u64, signature: &[u8]) -> Option<Vec<u8>> {
    let bytes = tables.table(offset, len, "header").ok()?;
    (bytes.starts_with(signature) && Words(&bytes).le32(4).is_ok_and(|sum| sum == crc(&bytes))).then_some(bytes)
}

struct Table {
    entries: Vec<u64>,
    block: u64,
    /// Blocks between two entries for bitmaps.
    ratio: u64,
}

/// Opens one.
pub fn open(image: Image) -> Result<Opened, ForeignError> {
    let file = Replayed::clean(&image);
    let headers = [64 * KIB, 128 * KIB].into_iter().filter_map(|at| whole(&file, at, 4096, b"head"));
    let header =
        headers.max_by_key(|h| Words(h).le64(8).unwrap_or(0)).ok_or_else(|| damaged("neither header is whole"))?;
    let words = Words(&header);
    if words.le16(66)? != 1 {
        return Err(unsupported("another version of VHDX than 1"));
    }
    let tables = match words.bytes::<16>(48)? {
        id if id == [0; 16] => file,
        id if words.le16(64)? == 0 => Replayed::read(&image, id, words.le64(72)?, words.le32(68)?.into())?,
        _ => return Err(unsupported("a log of another version than 0")),
    };
    let regions = [192 * KIB, 256 * KIB].into_iter().find_map(|at| whole(&tables, at, 64 * KIB, b"regi"));
    let regions = regions.ok_or_else(|| damaged("neither table of regions is whole"))?;
    let (bat, metadata) = find_regions(&Words(&regions))?;
    let (block, size, sector) = read_metadata(&tables, metadata)?;
    let size = check_size(size)?;
    if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) || !matches!(sector, 512 | 4096) {
        return Err(damaged("its blocks or sectors are of no size that they may have"));
    }
    let ratio = (sector << 23) / block;
    let blocks = size.div_ceil(block);
    let count = blocks + (blocks - 1) / ratio;
    if count * 8 > bat.1 {
        return Err(damaged("its table of blocks is too small for its disk"));
    }
    let bytes = tables.table(bat.0, count * 8, "table of blocks")?;
    let entries: Vec<u64> =
        bytes.chunks_exact(8).map(|e| e.first_chunk().map_or(0, |e| u64::from_le_bytes(*e))).collect();
    // The log is for the tables: a disk's data is written to its place.
    let mut present = entries.iter().filter(|entry| **entry & 7 == PRESENT).map(|entry| place(*entry));
    if present.any(|start| tables.changes(start..start.saturating_add(block))) {
        return Err(damaged("its log changes data of the disk"));
    }
    Ok((vec![image], size, Box::new(Table { entries, block, ratio })))
}

/// The state of a block that is in the file, and where that is.
const PRESENT: u64 = 6;

fn place(entry: u64) -> u64 {
    entry >> 20 << 20
}

/// Offset and length of the table of blocks and of the metadata.
type Region = (u64, u64);

fn find_regions(words: &Words<'_>) -> Result<(Region, Region), ForeignError> {
    let (mut bat, mut metadata) = (None, None);
    let count = words.le32(8)?;
    for at in (0..count.min(MOST_ENTRIES)).map(|i| 16 + 32 * i as usize) {
        let region = (words.le64(at + 16)?, u64::from(words.le32(at + 24)?));
        match u128::from_le_bytes(words.bytes(at)?) {
            BAT => bat = Some(region),
            METADATA => metadata = Some(region),
            _ if words.le32(at + 28)? & 1 != 0 => return Err(unsupported("a region that must be understood")),
            _ => {}
        }
    }
    bat.zip(metadata).ok_or_else(|| damaged("a region is missing"))
}

/// Bytes of a block, of the disk, and of a sector.
fn read_metadata(tables: &Replayed<'_>, (offset, len): Region) -> Result<(u64, u64, u64), ForeignError> {
    let bytes = tables.table(offset, len.min(MIB), "metadata")?;
    let words = Words(&bytes);
    if !bytes.starts_with(b"metadata") {
        return Err(damaged("its metadata is not whole"));
    }
    let (mut block, mut size, mut sector) = (None, None, None);
    for at in (0..u32::from(words.le16(10)?).min(MOST_ENTRIES)).map(|i| 32 + 32 * i as usize) {
        let item = words.le32(at + 16)? as usize;
        match u128::from_le_bytes(words.bytes(at)?) {
            FILE_PARAMETERS => {
                if words.le32(item + 4)? & 2 != 0 {
                    return Err(unsupported("another VHDX image below it (a difference); merge it first"));
                }
                block = Some(u64::from(words.le32(item)?));
            }
            DISK_SIZE => size = Some(words.le64(item)?),
            LOGICAL_SECTOR => sector = Some(u64::from(words.le32(item)?)),
            _ => {}
        }
    }
    match (block, size, sector) {
        (Some(block), Some(size), Some(sector)) => Ok((block, size, sector)),
        _ => Err(damaged("its metadata lacks the size of its disk, blocks or sectors")),
    }
}

impl Locate for Table {
    fn locate(&mut self, _files: &[Image], offset: u64) -> Result<(Place, u64), ForeignError> {
        let (number, within) = (offset / self.block, offset % self.block);
        let len = self.block - within;
        let entry = self.entries.get((number + number / self.ratio) as usize).copied().unwrap_or(0);
        match entry & 7 {
            // Not present, undefined, zero, unmapped.
            0..=3 => Ok((Place::Zero, len)),
            PRESENT => Ok((Place::At { file: 0, offset: place(entry).saturating_add(within) }, len)),
            other => Err(damaged(format!("a block is in state {other}"))),
        }
    }
}

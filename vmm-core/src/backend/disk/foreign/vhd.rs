//! Virtual PC's disk images (VHD 1.0): a footer, and for a dynamic disk a header and a table of blocks. All numbers are
//! big-endian.

use super::{
    Flat, ForeignError, Image, Locate, Opened, Place, Words, check_size, damaged, read_padded, read_table, unsupported,
};

const UNUSED: u32 = u32::MAX;
const FOOTER: u64 = 512;

/// Whether these bytes are a footer, or the copy of it that a dynamic disk starts with.
pub fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(b"conectix")
}

struct Table {
    entries: Vec<u32>,
    block: u64,
    /// Bytes of the bitmap before each block.
    bitmap: u64,
}

/// The sum that headers have, with their own field, four bytes at `field`, left out.
fn sum(bytes: &[u8], field: usize) -> u32 {
    let bytes = bytes.iter().enumerate().filter(|(at, _)| !(field..field + 4).contains(at));
    !bytes.fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// Opens one.
pub fn open(image: Image) -> Result<Opened, ForeignError> {
    let mut footer = [0; FOOTER as usize];
    let end = image.length.saturating_sub(FOOTER);
    read_padded(&image, end, &mut footer)?;
    let valid = |footer: &[u8]| is(footer) && Words(footer).be32(64).is_ok_and(|s| s == sum(footer, 64));
    if !valid(&footer) {
        // A dynamic disk that was not closed has the copy only.
        read_padded(&image, 0, &mut footer)?;
        if !valid(&footer) {
            return Err(damaged("its footer is not whole"));
        }
    }
    let words = Words(&footer);
    let (header, size, kind) = (words.be64(16)?, words.be64(48)?, words.be32(60)?);
    let size = check_size(size)?;
    match kind {
        2 if size <= end => return Ok((vec![image], size, Box::new(Flat { size, offset: 0 }))),
        2 => return Err(damaged("the file is shorter than its disk")),
        3 => {}
        4 => return Err(unsupported("another VHD image below it (a difference); merge it first")),
        other => return Err(damaged(format!("it is of type {other}"))),
    }
    let header = read_table(&image, header, 1024, "header")?;
    let words = Words(&header);
    if !header.starts_with(b"cxsparse") || words.be32(36)? != sum(&header, 36) {
        return Err(damaged("its header is not whole"));
    }
    let (table, count, block) = (words.be64(16)?, u64::from(words.be32(28)?), u64::from(words.be32(32)?));
    if !block.is_power_of_two() || !(4096..=1 << 30).contains(&block) || count < size.div_ceil(block) {
        return Err(damaged("its blocks do not make up its disk"));
    }
    let bytes = read_table(&image, table, size.div_ceil(block) * 4, "table of blocks")?;
    let entries = bytes.chunks_exact(4).map(|e| e.first_chunk().map_or(UNUSED, |e| u32::from_be_bytes(*e))).collect();
    let bitmap = (block / 512 / 8).next_multiple_of(512);
    Ok((vec![image], size, Box::new(Table { entries, block, bitmap })))
}

impl Locate for Table {
    fn locate(&mut self, _files: &[Image], offset: u64) -> Result<(Place, u64), ForeignError> {
        let (number, within) = (offset / self.block, offset % self.block);
        let len = self.block - within;
        Ok(match self.entries.get(number as usize).copied().unwrap_or(UNUSED) {
            UNUSED => (Place::Zero, len),
            sector => (Place::At { file: 0, offset: u64::from(sector) * 512 + self.bitmap + within }, len),
        })
    }
}

//! VirtualBox's disk images (VDI 1.1): a header, a map of blocks, the blocks.

use super::{
    Flat, ForeignError, Image, Locate, Opened, Place, Words, check_size, damaged, read_padded, read_table, unsupported,
};

const SIGNATURE: u32 = 0xbeda_107f;
/// From this entry on a block has no place: it was never written, or is zeroes.
const NO_PLACE: u32 = 0xffff_fffe;

/// Whether these are the first bytes of one.
pub fn is(start: &[u8]) -> bool {
    Words(start).le32(0x40).is_ok_and(|signature| signature == SIGNATURE)
}

struct Map {
    entries: Vec<u32>,
    data: u64,
    block: u64,
}

/// Opens one.
pub fn open(image: Image) -> Result<Opened, ForeignError> {
    let mut header = [0; 512];
    read_padded(&image, 0, &mut header)?;
    let words = Words(&header);
    if words.le32(0x44)? >> 16 != 1 {
        return Err(unsupported("another version of VDI than 1"));
    }
    let (map, data) = (u64::from(words.le32(0x154)?), u64::from(words.le32(0x158)?));
    let (size, block) = (words.le64(0x170)?, u64::from(words.le32(0x178)?));
    let count = u64::from(words.le32(0x180)?);
    // Sizes that are no whole number of sectors are rounded up, as VirtualBox does.
    let size = check_size(size.checked_next_multiple_of(512).unwrap_or(0))?;
    match words.le32(0x4c)? {
        1 => {}
        2 => return Ok((vec![image], size, Box::new(Flat { size, offset: data }))),
        3 | 4 => return Err(unsupported("another VDI image below it (a difference); merge it in VirtualBox first")),
        other => return Err(damaged(format!("it is of type {other}"))),
    }
    if words.le32(0x17c)? != 0 {
        return Err(unsupported("extra bytes before each block"));
    }
    if !block.is_power_of_two() || !(4096..=1 << 30).contains(&block) || count < size.div_ceil(block) {
        return Err(damaged("its blocks do not make up its disk"));
    }
    let bytes = read_table(&image, map, size.div_ceil(block) * 4, "map of blocks")?;
    let entries = bytes.chunks_exact(4).map(|e| e.first_chunk().map_or(NO_PLACE, |e| u32::from_le_bytes(*e))).collect();
    Ok((vec![image], size, Box::new(Map { entries, data, block })))
}

impl Locate for Map {
    fn locate(&mut self, _files: &[Image], offset: u64) -> Result<(Place, u64), ForeignError> {
        let (number, within) = (offset / self.block, offset % self.block);
        let len = self.block - within;
        Ok(match self.entries.get(number as usize).copied().unwrap_or(NO_PLACE) {
            NO_PLACE.. => (Place::Zero, len),
            entry => (Place::At { file: 0, offset: self.data + u64::from(entry) * self.block + within }, len),
        })
    }
}

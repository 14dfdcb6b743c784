//! What a drive says of itself (ATA8-ACS §7.16, §7.17).

use super::disk::{MAX_MULTIPLE, MAX_TRIM_BLOCKS, Settings, transfer};
use super::registers::SLOTS;
use crate::backend::disk::{Geometry, SECTOR};

/// PxSIG of a packet device.
pub(super) const ATAPI: u32 = 0xeb14_0101;
/// PxSIG of a disk.
pub(super) const ATA: u32 = 0x0000_0101;

/// Puts text in words: two characters each, the first in the high byte, spaces behind.
fn text(words: &mut [u16], text: &str) {
    let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
    for word in words {
        *word = u16::from_be_bytes([bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')]);
    }
}

/// The answer to IDENTIFY PACKET DEVICE.
pub(super) fn packet_device(drive: usize) -> Vec<u8> {
    let mut words = [0u16; 256];
    // A CD-ROM drive with a removable medium, packets of 12 bytes, ready for one within 50 µs.
    words[0] = 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5;
    text(&mut words[10..20], &format!("CD{drive:04}"));
    text(&mut words[23..27], "1.0");
    text(&mut words[27..47], "Orangery CD-ROM");
    // LBA and DMA; words 64 to 70 and 88 are valid.
    words[49] = 1 << 9 | 1 << 8;
    words[53] = 1 << 2 | 1 << 1;
    // Multiword DMA 0 to 2; PIO 3 and 4; cycle times, ns.
    words[63] = 0x07;
    words[64] = 0x03;
    words[65..69].fill(120);
    // Serial ATA: generations 1 to 3.
    words[76] = 0x0e;
    // ATA/ATAPI-4 to ATA8-ACS.
    words[80] = 0x01f0;
    // The packet and device reset commands exist, and nothing else that is asked for here.
    words[82] = 1 << 9 | 1 << 4;
    words[83] = 1 << 14;
    words[84] = 1 << 14;
    words[85] = words[82];
    words[87] = 1 << 14;
    // Ultra DMA 0 to 5, 5 in use.
    words[88] = 0x203f;
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The answer to IDENTIFY DEVICE.
pub(super) fn disk(geometry: &Geometry, serial: &str, settings: &Settings) -> Vec<u8> {
    let mut words = [0u16; 256];
    let sectors = geometry.size / SECTOR;
    let short_sectors = u32::try_from(sectors).unwrap_or(u32::MAX).min(0x0fff_ffff);
    let dword = |value: u32| [value as u16, (value >> 16) as u16];
    // Not removable. The default translation of CHS addresses.
    words[0] = 1 << 6;
    words[1] = cylinders(sectors, 16, 63);
    words[3] = 16;
    words[6] = 63;
    text(&mut words[10..20], serial);
    text(&mut words[23..27], "1.0");
    // There is no bit for a disk that may not be written.
    text(&mut words[27..47], if geometry.readonly { "Orangery Disk (read-only)" } else { "Orangery Disk" });
    words[47] = 0x8000 | u16::from(MAX_MULTIPLE);
    // IORDY, LBA and DMA; words 54 to 58, 64 to 70 and 88 are valid.
    words[49] = 1 << 11 | 1 << 9 | 1 << 8;
    words[50] = 1 << 14;
    words[53] = 1 << 2 | 1 << 1 | 1;
    let (heads, per_track) = (u16::from(settings.heads), u16::from(settings.sectors));
    words[54] = cylinders(sectors, heads, per_track);
    words[55] = heads;
    words[56] = per_track;
    let translated = u32::from(words[54]) * u32::from(heads) * u32::from(per_track);
    words[57..59].copy_from_slice(&dword(translated));
    words[59] = if settings.multiple > 0 { 1 << 8 | u16::from(settings.multiple) } else { 0 };
    words[60..62].copy_from_slice(&dword(short_sectors));
    // Multiword DMA 0 to 2, PIO 3 and 4, Ultra DMA 0 to 6, and which is in use; cycle times, ns.
    words[63] = 0x07 | transfer::in_use(settings.transfer, transfer::MULTIWORD) << 8;
    words[64] = 0x03;
    words[65..69].fill(120);
    words[75] = SLOTS as u16 - 1;
    // Serial ATA: native command queueing, generations 1 to 3, the third in use; settings outlive a COMRESET.
    words[76] = 1 << 8 | 0x0e;
    words[77] = 3 << 1;
    words[78] = 1 << 6;
    words[79] = 1 << 6;
    // ATA/ATAPI-4 to ACS-2.
    words[80] = 0x03f0;
    // Power management, the write cache; flushes, 48-bit addresses; general purpose logs, FUA.
    let cache = u16::from(!geometry.readonly) << 5;
    words[82] = 1 << 3 | cache;
    words[83] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10;
    words[84] = 1 << 14 | 1 << 6 | 1 << 5;
    words[85] = 1 << 3 | if settings.write_cache { cache } else { 0 };
    words[86] = 1 << 15 | words[83] & 0x3fff;
    words[87] = words[84];
    words[88] = 0x7f | transfer::in_use(settings.transfer, transfer::ULTRA) << 8;
    let [a, b, c, d] = [0, 16, 32, 48].map(|shift| (sectors >> shift) as u16);
    words[100..104].copy_from_slice(&[a, b, c, d]);
    // So many logical sectors make a physical one, as a power of two, and the first one starts one.
    words[106] = 1 << 14 | 1 << 13 | (geometry.physical_block / SECTOR as u32).trailing_zeros() as u16;
    words[119] = 1 << 14;
    words[120] = 1 << 14;
    if geometry.discard_granularity > 0 {
        // TRIM; what is read afterwards is not promised.
        words[105] = MAX_TRIM_BLOCKS;
        words[169] = 1;
    }
    words[209] = 1 << 14;
    // It does not rotate.
    words[217] = 1;
    // Serial ATA, up to revision 2.6.
    words[222] = 1 << 12 | 0x3f;
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    // The integrity word: with it, all bytes add up to zero.
    bytes[510] = 0xa5;
    bytes[511] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    bytes
}

/// How many cylinders of CHS addresses a disk of so many sectors has.
fn cylinders(sectors: u64, heads: u16, per_track: u16) -> u16 {
    let per_cylinder = u64::from(heads) * u64::from(per_track);
    sectors.checked_div(per_cylinder).unwrap_or(0).clamp(1, 16383) as u16
}

//! What a drive says of itself (ATA8-ACS §7.16, §7.17).

/// PxSIG of a packet device.
pub(super) const ATAPI: u32 = 0xeb14_0101;

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

//! CRC-32 as in zlib and PNG, for comparing whole disks with their files.

/// A running checksum.
#[derive(Clone, Copy)]
pub struct Crc32(u32);

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 != 0 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

impl Crc32 {
    /// The checksum of nothing.
    pub const fn new() -> Crc32 {
        Crc32(u32::MAX)
    }

    /// Goes on with more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |crc, &byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize]);
    }

    /// The checksum.
    pub fn value(&self) -> u32 {
        !self.0
    }
}

//! The fw_cfg device: port and DMA reads, and its directory of files.

use crate::cpu::{inb, inl, outl, outw};
use crate::dma::Dma;
use crate::time;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;
/// "QEMU"
const KEY_SIGNATURE: u16 = 0;
/// Features, u32; bit 1 is DMA.
pub const KEY_FEATURES: u16 = 1;
/// Number of CPUs, u16.
pub const KEY_CPUS: u16 = 5;
/// Directory of files.
pub const KEY_DIRECTORY: u16 = 0x19;
const CONTROL_ERROR: u32 = 1;
const CONTROL_READ: u32 = 2;
const CONTROL_SELECT: u32 = 8;
/// More files than any machine has: the directory is not trusted to be sane.
const MAX_FILES: u32 = 512;
const ENTRY_BYTES: usize = 64;

/// Whether the device is there.
pub fn present() -> bool {
    let mut signature = [0; 4];
    read(KEY_SIGNATURE, &mut signature);
    signature == *b"QEMU"
}

/// Reads an item through the data port.
pub fn read(key: u16, into: &mut [u8]) {
    outw(SELECTOR, key);
    into.iter_mut().for_each(|byte| *byte = inb(DATA));
}

/// What the DMA address registers read: "QEMU CFG".
pub fn dma_signature() -> [u32; 2] {
    [inl(DMA_HIGH).swap_bytes(), inl(DMA_LOW).swap_bytes()]
}

/// Reads an item by DMA; false if the device reports an error or does not answer.
pub fn read_dma(key: u16, into: &Dma) -> bool {
    let control = Dma::new(16);
    control.write(0, (CONTROL_READ | CONTROL_SELECT | u32::from(key) << 16).to_be());
    control.write(4, (into.len() as u32).to_be());
    control.write(8, into.address().to_be());
    outl(DMA_HIGH, ((control.address() >> 32) as u32).to_be());
    outl(DMA_LOW, (control.address() as u32).to_be());
    time::wait_for(1_000_000, || u32::from_be(control.read(0)) & !CONTROL_ERROR == 0)
        && u32::from_be(control.read(0)) == 0
}

/// A file of the directory.
#[derive(Clone, Copy)]
pub struct File {
    /// Bytes.
    pub size: u32,
    /// Key to read it by.
    pub key: u16,
    name: [u8; 56],
}

impl File {
    /// Name, without padding.
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        core::str::from_utf8(&self.name[..end]).unwrap_or("?")
    }
}

/// Number of files in a directory.
pub fn file_count() -> u32 {
    let mut count = [0; 4];
    read(KEY_DIRECTORY, &mut count);
    u32::from_be_bytes(count).min(MAX_FILES)
}

/// Entry `index` of a directory that was read whole.
pub fn file(directory: &[u8], index: usize) -> Option<File> {
    let entry = directory.get(4 + index * ENTRY_BYTES..)?.first_chunk::<ENTRY_BYTES>()?;
    let mut name = [0; 56];
    name.copy_from_slice(&entry[8..]);
    Some(File {
        size: u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]),
        key: u16::from_be_bytes([entry[4], entry[5]]),
        name,
    })
}

/// Finds a file by name, through the data port.
pub fn find(name: &str) -> Option<File> {
    let count = file_count();
    outw(SELECTOR, KEY_DIRECTORY);
    (0..4).for_each(|_| _ = inb(DATA));
    (0..count).find_map(|_| {
        let mut entry = [0; 4 + ENTRY_BYTES];
        entry[4..].iter_mut().for_each(|byte| *byte = inb(DATA));
        file(&entry, 0).filter(|file| file.name() == name)
    })
}

//! What the loader hands over: the PVH start_info structure (Xen's x86/HVM direct boot ABI), and the command line.

use crate::memory::{Map, Range};
use core::ptr;

const MAGIC: u32 = 0x336e_c578;
/// Longest command line kept.
const COMMAND_LINE_BYTES: usize = 1024;

/// `struct hvm_start_info`, version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    base: u64,
    length: u64,
    kind: u32,
    reserved: u32,
}

/// The loader's gifts, copied out of memory that the probe will reuse.
pub struct Handover {
    /// Address of the ACPI root pointer; 0 if not given.
    pub rsdp: u64,
    /// The memory map; empty if not given.
    pub map: Map,
    /// The words that tell the probe what to do.
    pub words: Words,
}

impl Handover {
    /// Reads `start_info`; what it lacks stays empty.
    pub fn read(address: u32) -> Handover {
        let mut handover = Handover { rsdp: 0, map: Map::new(), words: Words::EMPTY };
        // SAFETY: below 4 GiB, all mapped; a wrong pointer reads some bytes, which the magic tells.
        let info: StartInfo = unsafe { ptr::read_unaligned(address as *const StartInfo) };
        if info.magic != MAGIC {
            return handover;
        }
        handover.rsdp = info.rsdp;
        if info.version >= 1 {
            for index in 0..u64::from(info.memory_map_entries.min(64)) {
                let address = info.memory_map + index * size_of::<MapEntry>() as u64;
                // SAFETY: as above; the loader vouches for its table.
                let entry: MapEntry = unsafe { ptr::read_unaligned(address as *const MapEntry) };
                handover.map.push(Range { base: entry.base, length: entry.length, kind: entry.kind });
            }
        }
        if info.command_line != 0 {
            handover.words = Words::copy(info.command_line);
        }
        handover
    }
}

/// A command line of words, `flag` or `name=value`.
#[derive(Clone, Copy)]
pub struct Words {
    bytes: [u8; COMMAND_LINE_BYTES],
    length: usize,
}

impl Words {
    /// No words.
    pub const EMPTY: Words = Words { bytes: [0; COMMAND_LINE_BYTES], length: 0 };

    fn copy(address: u64) -> Words {
        let mut words = Words::EMPTY;
        while words.length < COMMAND_LINE_BYTES {
            // SAFETY: the loader vouches for a string that ends in NUL.
            let byte = unsafe { ptr::read((address + words.length as u64) as *const u8) };
            if byte == 0 {
                break;
            }
            words.bytes[words.length] = byte;
            words.length += 1;
        }
        words
    }

    /// The whole line.
    pub fn line(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }

    /// Whether the word stands there by itself.
    pub fn has(&self, flag: &str) -> bool {
        self.line().split_ascii_whitespace().any(|word| word == flag)
    }

    /// The value of `name=value`.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.line().split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// The value as a number, decimal or with 0x.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.value(name).and_then(number)
    }
}

/// A number, decimal or with 0x.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

//! Where things are in the guest's physical address space (docs/platform.md has the whole map).

use crate::base::{GuestMemory, HIGH_RAM_START};
use crate::kvm::{RESERVED_LEN, RESERVED_START};

/// PCIEXBAR's place, as SeaBIOS and older OVMF choose it: the default where no firmware runs.
pub const ECAM: u64 = 0xb000_0000;
/// ECAM of 256 buses.
pub const ECAM_LEN: u64 = 256 << 20;
/// Where BARs go when no firmware places them.
pub const BARS: u64 = 0xc000_0000;
/// The first address above the BARs.
pub const BARS_END: u64 = 0xfec0_0000;
/// Where I/O BARs go when no firmware places them.
pub const IO_BARS: u16 = 0xc000;
/// The PM block's place, which the ACPI tables name.
pub const PM_BASE: u16 = 0x600;
/// Firmware's copy of itself below 1 MiB.
pub const BIOS_SHADOW: u64 = 0xe_0000;
/// Where systems look for the SMBIOS entry point (DSP0134 §5.2.2).
pub const SMBIOS: u64 = 0xf_0000;
/// The first address of extended memory.
pub const ONE_MIB: u64 = 0x10_0000;

/// Kinds of memory in an e820 map (ACPI 6.5 §15.1).
pub mod e820 {
    /// Usable.
    pub const RAM: u32 = 1;
    /// Not to be touched.
    pub const RESERVED: u32 = 2;
    /// ACPI tables, usable once they were read.
    pub const ACPI: u32 = 3;
    /// What ACPI refers to, and is read later.
    pub const NVS: u32 = 4;
}

/// A run of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// See [`e820`].
    pub kind: u32,
}

/// The map that firmware is given (fw_cfg `etc/e820`): one run of low RAM, high RAM, and what KVM keeps.
pub fn firmware_map(memory: &GuestMemory) -> Vec<Range> {
    let mut map = vec![
        Range { start: 0, len: memory.low_top(), kind: e820::RAM },
        Range { start: RESERVED_START, len: RESERVED_LEN, kind: e820::RESERVED },
    ];
    if memory.high_size() > 0 {
        map.push(Range { start: HIGH_RAM_START, len: memory.high_size(), kind: e820::RAM });
    }
    map
}

/// The page of the generation id where no firmware places it: the last of low RAM, behind the tables.
pub fn generation_page(memory: &GuestMemory) -> u64 {
    memory.low_top().saturating_sub(0x1000)
}

/// The map that a kernel is given where no firmware runs; `acpi` is what its tables take at the top of low RAM.
pub fn kernel_map(memory: &GuestMemory, acpi: u64) -> Vec<Range> {
    let tables = memory.low_top() - acpi;
    let mut map = vec![
        Range { start: 0, len: 0x9_fc00, kind: e820::RAM },
        Range { start: 0x9_fc00, len: ONE_MIB - 0x9_fc00, kind: e820::RESERVED },
        Range { start: ONE_MIB, len: tables.saturating_sub(ONE_MIB), kind: e820::RAM },
        Range { start: tables, len: acpi.saturating_sub(0x1000), kind: e820::ACPI },
        Range { start: generation_page(memory), len: 0x1000, kind: e820::NVS },
        Range { start: ECAM, len: ECAM_LEN, kind: e820::RESERVED },
        Range { start: RESERVED_START, len: RESERVED_LEN, kind: e820::RESERVED },
    ];
    if memory.high_size() > 0 {
        map.push(Range { start: HIGH_RAM_START, len: memory.high_size(), kind: e820::RAM });
    }
    map
}

/// The e820 entries as firmware and Linux read them: {u64 start, u64 length, u32 kind}, little-endian, packed.
pub fn encode(map: &[Range]) -> Vec<u8> {
    let entry = |r: &Range| [&r.start.to_le_bytes()[..], &r.len.to_le_bytes(), &r.kind.to_le_bytes()].concat();
    map.iter().flat_map(entry).collect()
}

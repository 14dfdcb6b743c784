//! ACPI tables: root pointer, XSDT, and what the probe reads of FADT, MADT and MCFG (ACPI 6.5 §5.2).

use crate::memory;
use core::ptr;

const HEADER_BYTES: u32 = 36;
/// A table larger than this is not believed.
const MAX_TABLE_BYTES: u32 = 4 << 20;

/// The root of the tables.
#[derive(Clone, Copy)]
pub struct Tables {
    /// Where the root pointer is.
    pub rsdp: u64,
    root: Table,
    /// Bytes of an entry in the root table: 8 for the XSDT, 4 for the RSDT.
    entry_bytes: u32,
}

/// One table.
#[derive(Clone, Copy)]
pub struct Table {
    address: u64,
    /// Bytes, header included.
    pub length: u32,
    /// Name.
    pub signature: [u8; 4],
}

/// What the probe wants of the MADT.
pub struct Madt {
    /// Enabled processors.
    pub cpus: usize,
    apic_ids: [u8; 64],
    /// Address of the first I/O APIC.
    pub io_apic: u64,
    /// Global interrupt of ISA IRQ 0, where an override says so.
    pub irq0: u32,
}

fn byte(address: u64) -> u8 {
    // SAFETY: callers have mapped the address; reading RAM or ROM has no effect.
    unsafe { ptr::read_volatile(address as *const u8) }
}

fn checksum(address: u64, length: u64) -> u8 {
    (address..address + length).fold(0, |sum, at| sum.wrapping_add(byte(at)))
}

fn is_rsdp(address: u64) -> bool {
    b"RSD PTR ".iter().zip(address..).all(|(&wanted, at)| byte(at) == wanted) && checksum(address, 20) == 0
}

fn number(address: u64, bytes: u32) -> u64 {
    (0..bytes).rev().fold(0, |value, index| value << 8 | u64::from(byte(address + u64::from(index))))
}

impl Tables {
    /// Finds the root pointer: where the loader says, or in the BIOS area.
    pub fn find(hint: u64) -> Option<Tables> {
        let rsdp = if hint != 0 && memory::map(hint, 36) && is_rsdp(hint) {
            hint
        } else {
            (0xe_0000..0x10_0000).step_by(16).find(|&address| is_rsdp(address))?
        };
        let revision = byte(rsdp + 15);
        let (address, entry_bytes) = if revision >= 2 { (number(rsdp + 24, 8), 8) } else { (number(rsdp + 16, 4), 4) };
        Some(Tables { rsdp, root: Table::at(address)?, entry_bytes })
    }

    /// The root table itself.
    pub fn root(&self) -> Table {
        self.root
    }

    /// All tables the root names; none in place of one that can't be read.
    pub fn iter(&self) -> impl Iterator<Item = Option<Table>> {
        let (root, step) = (self.root, self.entry_bytes);
        (HEADER_BYTES..root.length).step_by(step as usize).map(move |offset| Table::at(root.read(offset, step)))
    }

    /// The first table with a signature.
    pub fn table(&self, signature: &[u8; 4]) -> Option<Table> {
        self.iter().flatten().find(|table| table.signature == *signature)
    }

    /// The MADT, understood.
    pub fn madt(&self) -> Option<Madt> {
        let table = self.table(b"APIC")?;
        let mut madt = Madt { cpus: 0, apic_ids: [0; 64], io_apic: 0, irq0: 0 };
        let mut offset = HEADER_BYTES + 8;
        while offset + 2 <= table.length {
            let (kind, length) = (table.read(offset, 1), table.read(offset + 1, 1) as u32);
            if length < 2 {
                return None;
            }
            match kind {
                0 if table.read(offset + 4, 4) & 1 != 0 => {
                    if let Some(id) = madt.apic_ids.get_mut(madt.cpus) {
                        *id = table.read(offset + 3, 1) as u8;
                    }
                    madt.cpus += 1;
                }
                1 if madt.io_apic == 0 => madt.io_apic = table.read(offset + 4, 4),
                2 if table.read(offset + 3, 1) == 0 => madt.irq0 = table.read(offset + 4, 4) as u32,
                _ => {}
            }
            offset += length;
        }
        Some(madt)
    }
}

impl Madt {
    /// APIC id of an enabled processor.
    pub fn apic_id(&self, index: usize) -> u8 {
        self.apic_ids.get(index).copied().unwrap_or(0)
    }
}

impl Table {
    /// The table at an address, if its header makes sense.
    pub fn at(address: u64) -> Option<Table> {
        if address == 0 || !memory::map(address, u64::from(HEADER_BYTES)) {
            return None;
        }
        let length = number(address + 4, 4) as u32;
        let sane = (HEADER_BYTES..MAX_TABLE_BYTES).contains(&length) && memory::map(address, u64::from(length));
        sane.then(|| Table { address, length, signature: core::array::from_fn(|index| byte(address + index as u64)) })
    }

    /// Reads a little-endian number; 0 past the end.
    pub fn read(&self, offset: u32, bytes: u32) -> u64 {
        if offset + bytes > self.length { 0 } else { number(self.address + u64::from(offset), bytes) }
    }

    /// Sum of all bytes; 0 in a valid table.
    pub fn checksum(&self) -> u8 {
        checksum(self.address, u64::from(self.length))
    }

    /// Name, for messages.
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.signature).unwrap_or("????")
    }
}

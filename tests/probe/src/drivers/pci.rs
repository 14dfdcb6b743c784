//! PCI: configuration access by ports and by ECAM, enumeration, BARs, capabilities and MSI-X (PCI Local Bus 3.0).

use crate::cpu::{inb, inl, inw, outl, outw};
use crate::dma::Mmio;
use crate::drivers::lapic;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Register offsets of the common header.
pub mod register {
    /// Vendor id, 16 bits.
    pub const VENDOR: u8 = 0x00;
    /// Command, 16 bits.
    pub const COMMAND: u8 = 0x04;
    /// Revision, 8 bits, with the class in the upper 24 of the dword.
    pub const CLASS: u8 = 0x08;
    /// Header type, 8 bits; bit 7 says that more functions exist.
    pub const HEADER_TYPE: u8 = 0x0e;
    /// First of six base address registers.
    pub const BAR0: u8 = 0x10;
    /// Subsystem id, 16 bits.
    pub const SUBSYSTEM: u8 = 0x2e;
    /// First capability.
    pub const CAPABILITIES: u8 = 0x34;
}

const COMMAND_MEMORY: u16 = 2;
const COMMAND_IO: u16 = 1;
const COMMAND_MASTER: u16 = 4;
const CAPABILITY_MSI: u8 = 0x05;
const CAPABILITY_MSIX: u8 = 0x11;
/// Capability of a vendor's own, where virtio puts its structures.
pub const CAPABILITY_VENDOR: u8 = 0x09;

/// Where BARs go that no firmware has placed.
const WINDOW_START: u64 = 0xc000_0000;
const WINDOW_END: u64 = 0xfe00_0000;
static WINDOW_NEXT: AtomicU64 = AtomicU64::new(WINDOW_START);
/// The same for I/O BARs.
const IO_WINDOW_START: u64 = 0xc000;
static IO_NEXT: AtomicU64 = AtomicU64::new(IO_WINDOW_START);

/// A function on bus 0.
#[derive(Clone, Copy, Default)]
pub struct Function {
    /// Slot, 0–31.
    pub slot: u8,
    /// Function, 0–7.
    pub function: u8,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: u32,
}

impl fmt::Display for Function {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "00:{:02x}.{:x}", self.slot, self.function)
    }
}

/// A memory or I/O region of a function.
#[derive(Clone, Copy)]
pub struct Bar {
    /// Address, in memory or I/O space.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it is in I/O space.
    pub io: bool,
    /// Whether it takes two registers.
    pub wide: bool,
}

impl Function {
    fn select(&self, offset: u8) {
        let address =
            0x8000_0000 | u32::from(self.slot) << 11 | u32::from(self.function) << 8 | u32::from(offset & 0xfc);
        outl(CONFIG_ADDRESS, address);
    }

    /// Reads 8 bits of configuration space.
    pub fn read8(&self, offset: u8) -> u8 {
        self.select(offset);
        inb(CONFIG_DATA + u16::from(offset & 3))
    }

    /// Reads 16 bits of configuration space.
    pub fn read16(&self, offset: u8) -> u16 {
        self.select(offset);
        inw(CONFIG_DATA + u16::from(offset & 2))
    }

    /// Reads 32 bits of configuration space.
    pub fn read32(&self, offset: u8) -> u32 {
        self.select(offset);
        inl(CONFIG_DATA)
    }

    /// Writes 16 bits of configuration space.
    pub fn write16(&self, offset: u8, value: u16) {
        self.select(offset);
        outw(CONFIG_DATA + u16::from(offset & 2), value);
    }

    /// Writes 32 bits of configuration space.
    pub fn write32(&self, offset: u8, value: u32) {
        self.select(offset);
        outl(CONFIG_DATA, value);
    }

    /// Lets the function decode its regions and access memory.
    pub fn enable(&self) {
        let command = self.read16(register::COMMAND);
        self.write16(register::COMMAND, command | COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER);
    }

    /// Offsets of the capabilities with an id, at most 48 of them as the space has no room for more.
    pub fn capabilities(&self, id: u8) -> impl Iterator<Item = u8> {
        let mut next = self.read8(register::CAPABILITIES) & 0xfc;
        let mut left = 48;
        let function = *self;
        core::iter::from_fn(move || {
            while next >= 0x40 && left > 0 {
                left -= 1;
                let here = next;
                let header = function.read16(here);
                next = (header >> 8) as u8 & 0xfc;
                if header as u8 == id {
                    return Some(here);
                }
            }
            None
        })
    }

    /// Sizes and, where nobody has done so, places BAR `index`; none if there is none.
    pub fn bar(&self, index: u8) -> Option<Bar> {
        if index > 5 {
            return None;
        }
        let offset = register::BAR0 + 4 * index;
        let command = self.read16(register::COMMAND);
        let low = self.read32(offset);
        self.write16(register::COMMAND, command & !(COMMAND_IO | COMMAND_MEMORY));
        self.write32(offset, u32::MAX);
        let size_low = self.read32(offset);
        self.write32(offset, low);
        let io = low & 1 != 0;
        let wide = !io && low & 6 == 4 && index < 5;
        let (mut high, mut size_high) = (0, u32::MAX);
        if wide {
            high = self.read32(offset + 4);
            self.write32(offset + 4, u32::MAX);
            size_high = self.read32(offset + 4);
            self.write32(offset + 4, high);
        }
        let mask: u32 = if io { !3 } else { !15 };
        let bar = if size_low & mask == 0 && size_high == u32::MAX {
            None
        } else {
            let size_high = if io { u32::MAX } else { size_high };
            let bits = u64::from(size_high) << 32 | u64::from(size_low & mask | if io { 0xffff_0000 } else { 0 });
            let length = (!bits).wrapping_add(1);
            let mut address = u64::from(high) << 32 | u64::from(low & mask);
            if address == 0 {
                address = place(length, io)?;
                self.write32(offset, address as u32);
                if wide {
                    self.write32(offset + 4, (address >> 32) as u32);
                }
            }
            Some(Bar { address, length, io, wide })
        };
        self.write16(register::COMMAND, command);
        bar
    }

    /// Maps memory BAR `index`.
    pub fn map_bar(&self, index: u8) -> Option<Mmio> {
        let bar = self.bar(index).filter(|bar| !bar.io)?;
        self.enable();
        Mmio::at(bar.address, bar.length)
    }

    /// Finds and enables the function's MSI-X table, with every vector masked; none if it has no such capability.
    pub fn msix(&self) -> Option<Msix> {
        let capability = self.capabilities(CAPABILITY_MSIX).next()?;
        let control = self.read16(capability + 2);
        let location = self.read32(capability + 4);
        let vectors = (control & 0x7ff) + 1;
        let table = self.map_bar((location & 7) as u8)?.part(u64::from(location & !7), u64::from(vectors) * 16)?;
        for vector in 0..u64::from(vectors) {
            table.write32(vector * 16 + 12, 1);
        }
        let location = self.read32(capability + 8);
        let pending_bytes = u64::from(vectors).div_ceil(64) * 8;
        let pending = self.map_bar((location & 7) as u8)?.part(u64::from(location & !7), pending_bytes)?;
        self.write16(capability + 2, control & !0x4000 | 0x8000);
        Some(Msix { table, pending, vectors })
    }

    /// Sends the function's MSI (not MSI-X) as `vector` to the boot processor; false if it has no such capability.
    pub fn enable_msi(&self, vector: u8) -> bool {
        let Some(capability) = self.capabilities(CAPABILITY_MSI).next() else { return false };
        let control = self.read16(capability + 2);
        let wide = control & 0x80 != 0;
        self.write32(capability + 4, lapic::msi_address());
        if wide {
            self.write32(capability + 8, 0);
        }
        self.write16(capability + if wide { 12 } else { 8 }, u16::from(vector));
        self.write16(capability + 2, control & !0x70 | 1);
        true
    }
}

fn place(length: u64, io: bool) -> Option<u64> {
    let (next, end) = if io { (&IO_NEXT, 0x1_0000) } else { (&WINDOW_NEXT, WINDOW_END) };
    let address = next.load(Ordering::Relaxed).next_multiple_of(length.max(if io { 4 } else { 4096 }));
    if address + length > end {
        return None;
    }
    next.store(address + length, Ordering::Relaxed);
    Some(address)
}

/// A function's MSI-X table.
#[derive(Clone, Copy)]
pub struct Msix {
    table: Mmio,
    pending: Mmio,
    /// Entries.
    pub vectors: u16,
}

impl Msix {
    /// Sends entry `entry` as `vector` to the boot processor.
    pub fn route(&self, entry: u16, vector: u8) {
        let offset = u64::from(entry) * 16;
        self.table.write32(offset, lapic::msi_address());
        self.table.write32(offset + 4, 0);
        self.table.write32(offset + 8, u32::from(vector));
        self.table.write32(offset + 12, 0);
    }

    /// Masks or unmasks an entry.
    pub fn mask(&self, entry: u16, masked: bool) {
        self.table.write32(u64::from(entry) * 16 + 12, u32::from(masked));
    }

    /// Whether an entry has an interrupt waiting for its mask to go.
    pub fn pending(&self, entry: u16) -> bool {
        self.pending.read32(u64::from(entry / 32) * 4) & 1 << (entry % 32) != 0
    }
}

/// The functions of bus 0.
#[derive(Clone, Copy)]
pub struct Bus {
    functions: [Function; 64],
    length: usize,
}

impl Bus {
    /// Scans bus 0.
    pub fn scan() -> Bus {
        let mut bus = Bus { functions: [Function::default(); 64], length: 0 };
        for slot in 0..32 {
            let first = Function { slot, ..Function::default() };
            if first.read16(register::VENDOR) == 0xffff {
                continue;
            }
            let functions = if first.read8(register::HEADER_TYPE) & 0x80 != 0 { 8 } else { 1 };
            for function in 0..functions {
                let mut found = Function { slot, function, ..Function::default() };
                let id = found.read32(register::VENDOR);
                if id & 0xffff == 0xffff || bus.length == bus.functions.len() {
                    continue;
                }
                found.vendor = id as u16;
                found.device = (id >> 16) as u16;
                found.class = found.read32(register::CLASS) >> 8;
                bus.functions[bus.length] = found;
                bus.length += 1;
            }
        }
        bus
    }

    /// All functions, in order.
    pub fn functions(&self) -> &[Function] {
        &self.functions[..self.length]
    }

    /// Functions with a class code (class and subclass).
    pub fn class(&self, class: u32) -> impl Iterator<Item = &Function> {
        self.functions().iter().filter(move |function| function.class >> 8 == class)
    }

    /// Virtio functions of a type, modern or transitional (virtio 1.2 §5).
    pub fn virtio(&self, kind: u16) -> impl Iterator<Item = &Function> {
        self.functions().iter().filter(move |function| {
            let transitional = (0x1000..0x1040).contains(&function.device);
            let id =
                if transitional { function.read16(register::SUBSYSTEM) } else { function.device.wrapping_sub(0x1040) };
            function.vendor == 0x1af4 && id == kind
        })
    }
}

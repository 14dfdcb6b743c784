//! The I/O APIC (82093AA): routes the machine's global interrupts to vectors of the boot processor.

use crate::acpi::Tables;
use crate::dma::Mmio;
use crate::drivers::lapic;
use crate::machine::Machine;

const ADDRESS: u64 = 0xfec0_0000;
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;
/// First of the redirection entries, two registers each.
const REDIRECTION: u32 = 0x10;
const MASKED: u32 = 1 << 16;

/// The I/O APIC of the machine.
#[derive(Clone, Copy)]
pub struct IoApic {
    registers: Mmio,
    /// Global interrupt of the PIT (ISA IRQ 0).
    pub pit: u32,
}

impl IoApic {
    /// Finds it where ACPI says, or at its usual address; none if nothing answers.
    pub fn find(machine: &Machine) -> Option<IoApic> {
        let madt = Tables::find(machine.rsdp).and_then(|tables| tables.madt());
        let (address, pit) = match madt {
            Some(madt) if madt.io_apic != 0 => (madt.io_apic, madt.irq0),
            _ => (ADDRESS, 2),
        };
        let apic = IoApic { registers: Mmio::at(address, 0x20)?, pit };
        (apic.read(VERSION) != u32::MAX && apic.pins() >= 16).then_some(apic)
    }

    fn read(&self, register: u32) -> u32 {
        self.registers.write32(SELECT, register);
        self.registers.read32(WINDOW)
    }

    fn write(&self, register: u32, value: u32) {
        self.registers.write32(SELECT, register);
        self.registers.write32(WINDOW, value);
    }

    /// Number of inputs.
    pub fn pins(&self) -> u32 {
        (self.read(VERSION) >> 16 & 0xff) + 1
    }

    /// Sends an edge-triggered, active-high input as `vector` to the boot processor.
    pub fn route(&self, pin: u32, vector: u8) {
        self.write(REDIRECTION + 2 * pin + 1, u32::from(lapic::id()) << 24);
        self.write(REDIRECTION + 2 * pin, u32::from(vector));
    }

    /// Silences an input.
    pub fn mask(&self, pin: u32) {
        self.write(REDIRECTION + 2 * pin, MASKED);
    }
}

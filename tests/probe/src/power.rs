//! Power off and reset: the ACPI way first, then everything else that has ever ended a machine (platform.md of q35).

use crate::acpi::Tables;
use crate::cpu::{inb, outb, outw};
use crate::machine::Machine;
use crate::{println, time};

/// PM1a control register of a q35 machine; SLP_TYP 0 with SLP_EN is S5.
const PM1A_CNT: u16 = 0x604;
const SLP_EN: u16 = 1 << 13;
/// Reset control register of the ICH9; the value is a full reset.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_FULL: u8 = 6;
/// i8042 command port; pulses the reset line.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// System control port A; its lowest bit, when it rises, is a reset.
const SYSTEM_CONTROL_A: u16 = 0x92;
const INIT_NOW: u8 = 1;
/// Offsets in the FADT: the reset register's address and its value (ACPI 6.5 §5.2.9).
const FADT_RESET_ADDRESS: u32 = 120;
const FADT_RESET_VALUE: u32 = 128;
/// How long each way may take to work.
const PATIENCE_MICROS: u64 = 500_000;

/// Turns the machine off; on a machine that cannot, resets it (a monitor run with `-no-reboot` ends then).
pub fn off() -> ! {
    outw(PM1A_CNT, SLP_EN);
    time::sleep_micros(PATIENCE_MICROS);
    reset()
}

/// Resets the machine in one way, and in no other.
pub fn reset_by(machine: &Machine, way: &str) -> ! {
    match way {
        "acpi" => {
            if let Some(fadt) = Tables::find(machine.rsdp).and_then(|tables| tables.table(b"FACP")) {
                outb(fadt.read(FADT_RESET_ADDRESS, 8) as u16, fadt.read(FADT_RESET_VALUE, 1) as u8);
            }
        }
        "cf9" => outb(RESET_CONTROL, RESET_FULL),
        "port92" => {
            outb(SYSTEM_CONTROL_A, inb(SYSTEM_CONTROL_A) & !INIT_NOW);
            outb(SYSTEM_CONTROL_A, inb(SYSTEM_CONTROL_A) | INIT_NOW);
        }
        "i8042" => outb(I8042_COMMAND, I8042_RESET),
        "triple" => crate::cpu::triple_fault(),
        _ => {}
    }
    time::sleep_micros(PATIENCE_MICROS);
    println!("probe: no reset by {way}");
    off()
}

/// Resets the machine.
pub fn reset() -> ! {
    outb(RESET_CONTROL, RESET_FULL);
    time::sleep_micros(PATIENCE_MICROS);
    outb(I8042_COMMAND, I8042_RESET);
    time::sleep_micros(PATIENCE_MICROS);
    crate::cpu::triple_fault()
}

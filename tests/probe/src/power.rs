//! Power off and reset: the ACPI way first, then everything else that has ever ended a machine (platform.md of q35).

use crate::cpu::{outb, outw};
use crate::time;

/// PM1a control register of a q35 machine; SLP_TYP 0 with SLP_EN is S5.
const PM1A_CNT: u16 = 0x604;
const SLP_EN: u16 = 1 << 13;
/// Reset control register of the ICH9; the value is a full reset.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_FULL: u8 = 6;
/// i8042 command port; pulses the reset line.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// How long each way may take to work.
const PATIENCE_MICROS: u64 = 500_000;

/// Turns the machine off; on a machine that cannot, resets it (a monitor run with `-no-reboot` ends then).
pub fn off() -> ! {
    outw(PM1A_CNT, SLP_EN);
    time::sleep_micros(PATIENCE_MICROS);
    reset()
}

/// Resets the machine.
pub fn reset() -> ! {
    outb(RESET_CONTROL, RESET_FULL);
    time::sleep_micros(PATIENCE_MICROS);
    outb(I8042_COMMAND, I8042_RESET);
    time::sleep_micros(PATIENCE_MICROS);
    crate::cpu::triple_fault()
}

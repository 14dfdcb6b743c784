//! The i8042 keyboard controller with its PS/2 keyboard and mouse.

use crate::cpu::{inb, outb};
use crate::time;

const DATA: u16 = 0x60;
const STATUS: u16 = 0x64;
const COMMAND: u16 = 0x64;
const OUTPUT_FULL: u8 = 1;
const INPUT_FULL: u8 = 2;
const FROM_AUX: u8 = 0x20;
const PATIENCE_MICROS: u64 = 1_000_000;

/// Controller commands.
pub mod command {
    /// Reads the configuration byte.
    pub const READ_CONFIG: u8 = 0x20;
    /// Writes the configuration byte.
    pub const WRITE_CONFIG: u8 = 0x60;
    /// Disables the mouse.
    pub const DISABLE_AUX: u8 = 0xa7;
    /// Enables the mouse.
    pub const ENABLE_AUX: u8 = 0xa8;
    /// Tests the controller: 0x55.
    pub const SELF_TEST: u8 = 0xaa;
    /// Tests the keyboard's wires: 0.
    pub const TEST_KEYBOARD: u8 = 0xab;
    /// Disables the keyboard.
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    /// Enables the keyboard.
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    /// The next byte goes to the mouse.
    pub const WRITE_AUX: u8 = 0xd4;
}

/// Bits of the configuration byte.
pub mod config {
    /// Keyboard bytes raise IRQ 1.
    pub const KEYBOARD_IRQ: u8 = 1;
    /// Mouse bytes raise IRQ 12.
    pub const AUX_IRQ: u8 = 2;
    /// Scan codes of set 2 become set 1.
    pub const TRANSLATE: u8 = 0x40;
}

/// A byte of the controller's output buffer.
pub struct Byte {
    /// The byte.
    pub value: u8,
    /// Whether the mouse sent it.
    pub aux: bool,
}

/// Whether something other than an empty bus answers.
pub fn present() -> bool {
    inb(STATUS) != 0xff
}

/// The next byte, if one is waiting.
pub fn poll() -> Option<Byte> {
    let status = inb(STATUS);
    (status & OUTPUT_FULL != 0 && status != 0xff).then(|| Byte { value: inb(DATA), aux: status & FROM_AUX != 0 })
}

/// Throws away what is waiting.
pub fn drain() {
    for _ in 0..64 {
        if poll().is_none() {
            return;
        }
    }
}

/// The next byte, waited for.
pub fn read() -> Option<u8> {
    let mut byte = None;
    time::wait_for(PATIENCE_MICROS, || {
        byte = poll();
        byte.is_some()
    });
    byte.map(|byte| byte.value)
}

fn wait_writable() {
    time::wait_for(PATIENCE_MICROS, || inb(STATUS) & INPUT_FULL == 0);
}

/// Sends a command to the controller.
pub fn command(command: u8) {
    wait_writable();
    outb(COMMAND, command);
}

/// Sends a byte to the keyboard, or the argument of a command.
pub fn write(byte: u8) {
    wait_writable();
    outb(DATA, byte);
}

/// Sends a byte to the mouse.
pub fn write_aux(byte: u8) {
    command(command::WRITE_AUX);
    write(byte);
}

/// Sets the configuration byte.
pub fn configure(config: u8) {
    command(command::WRITE_CONFIG);
    write(config);
}

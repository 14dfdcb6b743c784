//! Output on COM1 (16550), as lines of the protocol in docs/probe.md.

use crate::cpu::{inb, outb};
use core::fmt;

/// COM1's first port.
pub const COM1: u16 = 0x3f8;
/// Line status register: the transmitter can take a byte.
const LSR: u16 = COM1 + 5;
const THR_EMPTY: u8 = 1 << 5;

/// The console; writing it never fails.
pub struct Serial;

impl Serial {
    fn byte(byte: u8) {
        // A transmitter that is never ready must not hang the probe.
        for _ in 0..100_000 {
            if inb(LSR) & THR_EMPTY != 0 {
                break;
            }
        }
        outb(COM1, byte);
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // A terminal goes down a line at one, and to its beginning at the other.
            if byte == b'\n' {
                Serial::byte(b'\r');
            }
            Serial::byte(byte);
        }
        Ok(())
    }
}

/// Prints a line on COM1.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // Writing to the serial port cannot fail.
        let _ = writeln!($crate::drivers::serial::Serial, $($argument)*);
    }};
}

//! The Bochs display interface: modes by ports 0x1CE and 0x1CF, and the linear frame buffer in BAR 0 of the VGA function.

use crate::cpu::{inw, outw};
use crate::dma::Mmio;
use crate::drivers::pci::{Bus, Function};

const INDEX: u16 = 0x1ce;
const DATA: u16 = 0x1cf;

/// Register indexes.
pub mod register {
    /// Identification, 0xB0C0–0xB0C5.
    pub const ID: u16 = 0;
    /// Width.
    pub const WIDTH: u16 = 1;
    /// Height.
    pub const HEIGHT: u16 = 2;
    /// Bits per pixel.
    pub const DEPTH: u16 = 3;
    /// Enable bits.
    pub const ENABLE: u16 = 4;
    /// Virtual width: pixels from one line to the next.
    pub const VIRTUAL_WIDTH: u16 = 6;
    /// Memory in units of 64 KiB.
    pub const MEMORY: u16 = 10;
}

/// Enabled, with a linear frame buffer.
const ENABLED_LINEAR: u16 = 0x41;
/// PCI class and subclass of a VGA-compatible controller.
pub const CLASS_VGA: u32 = 0x0300;

/// Reads a register.
pub fn read(register: u16) -> u16 {
    outw(INDEX, register);
    inw(DATA)
}

/// Writes a register.
pub fn write(register: u16, value: u16) {
    outw(INDEX, register);
    outw(DATA, value);
}

/// The VGA function whose display interface answers.
pub fn find(pci: &Bus) -> Option<&Function> {
    pci.class(CLASS_VGA).next().filter(|_| read(register::ID) & 0xfff0 == 0xb0c0)
}

/// Sets a mode of 32 bits per pixel.
pub fn set_mode(width: u16, height: u16) {
    write(register::ENABLE, 0);
    write(register::WIDTH, width);
    write(register::HEIGHT, height);
    write(register::DEPTH, 32);
    write(register::VIRTUAL_WIDTH, width);
    write(register::ENABLE, ENABLED_LINEAR);
}

/// Back to text mode.
pub fn disable() {
    write(register::ENABLE, 0);
}

/// The frame buffer.
pub fn frame_buffer(function: &Function) -> Option<Mmio> {
    function.map_bar(0)
}

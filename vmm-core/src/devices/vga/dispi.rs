//! The Bochs display interface: linear modes of any size, set through an index and a data port (1CEh, 1CFh).

use serde::{Deserialize, Serialize};

use crate::base::StateError;

/// The largest mode that is accepted, as the capabilities report it.
const MAX_WIDTH: u16 = 16_000;
const MAX_HEIGHT: u16 = 12_000;
const MAX_BPP: u16 = 32;
const ID: u16 = 0xb0c5;
const ID_FIRST: u16 = 0xb0c0;

const ENABLED: u16 = 0x01;
const GET_CAPABILITIES: u16 = 0x02;
const WIDE_DAC: u16 = 0x20;
const KEEP_MEMORY: u16 = 0x80;

/// See the module; also what a checkpoint keeps of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dispi {
    pub index: u16,
    id: u16,
    width: u16,
    height: u16,
    bpp: u16,
    enable: u16,
    pub bank: u16,
    virtual_width: u16,
    x: u16,
    y: u16,
}

/// A linear mode that is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinearMode {
    pub width: u32,
    pub height: u32,
    /// 4 (planar), 8, 15, 16, 24 or 32.
    pub bpp: u32,
    /// Bytes from one line to the next; of one plane if planar.
    pub pitch: usize,
    /// The first byte shown; of each plane if planar.
    pub start: usize,
}

impl Default for Dispi {
    fn default() -> Dispi {
        Dispi { index: 0, id: ID, width: 0, height: 0, bpp: 8, enable: 0, bank: 0, virtual_width: 0, x: 0, y: 0 }
    }
}

impl Dispi {
    /// Reads a register.
    pub fn read(&self, index: u16, vram: usize) -> u16 {
        let capabilities = self.enable & GET_CAPABILITIES != 0;
        match index {
            0 => self.id,
            1 if capabilities => MAX_WIDTH,
            2 if capabilities => MAX_HEIGHT,
            3 if capabilities => MAX_BPP,
            1 => self.width,
            2 => self.height,
            3 => self.bpp,
            4 => self.enable,
            5 => self.bank,
            6 => self.virtual_width,
            7 => (vram / self.pitch().max(1)).min(usize::from(u16::MAX)) as u16,
            8 => self.x,
            9 => self.y,
            10 => (vram >> 16) as u16,
            _ => 0,
        }
    }

    /// Writes a register. `Some(bytes)`: a mode was set that starts with that much of the memory cleared.
    pub fn write(&mut self, index: u16, value: u16, vram: usize) -> Option<usize> {
        match index {
            0 if (ID_FIRST..=ID).contains(&value) => self.id = value,
            1 if !self.is_enabled() => self.width = value.min(MAX_WIDTH) & !7,
            2 if !self.is_enabled() => self.height = value.min(MAX_HEIGHT),
            3 if !self.is_enabled() => {
                self.bpp = match value {
                    0 => 8,
                    4 | 8 | 15 | 16 | 24 | 32 => value,
                    _ => self.bpp,
                }
            }
            4 => return self.write_enable(value, vram),
            5 => self.bank = value,
            6 => self.virtual_width = value.clamp(self.width, MAX_WIDTH) & !7,
            8 => self.x = value,
            9 => self.y = value,
            _ => {}
        }
        None
    }

    fn write_enable(&mut self, value: u16, vram: usize) -> Option<usize> {
        let was = std::mem::replace(&mut self.enable, value) & ENABLED != 0;
        if value & ENABLED == 0 || was {
            return None;
        }
        self.virtual_width = self.width;
        self.x = 0;
        self.y = 0;
        self.bank = 0;
        let planes = if self.bpp == 4 { 4 } else { 1 };
        (value & KEEP_MEMORY == 0).then(|| (self.pitch() * usize::from(self.height) * planes).min(vram))
    }

    /// Whether it is this that the screen shows.
    pub fn is_enabled(&self) -> bool {
        self.enable & ENABLED != 0
    }

    /// Whether palette entries have 8 bits a colour instead of 6.
    pub fn wide_dac(&self) -> bool {
        self.enable & WIDE_DAC != 0
    }

    /// The bank of 64 KiB that the window at A0000h shows in a mode with whole bytes a pixel.
    pub fn window_bank(&self) -> Option<usize> {
        (self.is_enabled() && self.bpp >= 8).then_some(usize::from(self.bank))
    }

    /// The bank of 64 KiB addresses that the window shows in a planar mode.
    pub fn planar_bank(&self) -> usize {
        if self.is_enabled() { usize::from(self.bank) } else { 0 }
    }

    /// Bits of a pixel in memory; in each plane if planar.
    fn bits(&self) -> usize {
        if self.bpp == 4 { 1 } else { usize::from(self.bpp).next_multiple_of(8) }
    }

    fn pitch(&self) -> usize {
        usize::from(self.virtual_width) * self.bits() / 8
    }

    /// The mode that is on, if it makes sense: the lines that are not in memory are left out.
    pub fn mode(&self, vram: usize) -> Option<LinearMode> {
        let pitch = self.pitch();
        if !self.is_enabled() || self.width == 0 || self.height == 0 || pitch == 0 {
            return None;
        }
        let memory = if self.bpp == 4 { vram / 4 } else { vram };
        let start = usize::from(self.y) * pitch + usize::from(self.x) * self.bits() / 8;
        let line = usize::from(self.width) * self.bits() / 8;
        let fitting = memory.checked_sub(start + line)? / pitch + 1;
        let height = usize::from(self.height).min(fitting) as u32;
        Some(LinearMode { width: u32::from(self.width), height, bpp: u32::from(self.bpp), pitch, start })
    }

    /// Checks a restored state as far as [`Dispi::write`] does.
    pub fn check(self) -> Result<Dispi, StateError> {
        let known = matches!(self.bpp, 4 | 8 | 15 | 16 | 24 | 32);
        let sized = self.width <= MAX_WIDTH && self.height <= MAX_HEIGHT && self.virtual_width <= MAX_WIDTH;
        if known && sized { Ok(self) } else { Err(StateError::invalid("VGA", "its linear mode is impossible")) }
    }
}

/// What a driver writes to switch a mode on, for tests: enabled, with a linear frame buffer.
#[cfg(test)]
pub(super) const ENABLE_LINEAR: u16 = 0x41;

#[cfg(test)]
mod tests {
    use super::*;

    const VRAM: usize = 16 << 20;

    fn set(width: u16, height: u16, bpp: u16) -> Dispi {
        let mut dispi = Dispi::default();
        for (index, value) in [(4, 0), (1, width), (2, height), (3, bpp)] {
            assert_eq!(dispi.write(index, value, VRAM), None);
        }
        dispi.write(4, ENABLE_LINEAR, VRAM);
        dispi
    }

    #[test]
    fn every_depth_has_its_pitch() {
        for (bpp, pitch) in [(8, 640), (15, 1280), (16, 1280), (24, 1920), (32, 2560)] {
            let mode = set(640, 480, bpp).mode(VRAM).unwrap();
            assert_eq!((mode.pitch, mode.height, mode.start), (pitch, 480, 0), "{bpp} bpp");
        }
        assert_eq!(set(800, 600, 4).mode(VRAM).map(|m| (m.pitch, m.height)), Some((100, 600)));
    }

    #[test]
    fn a_mode_is_set_cleared_unless_asked_not_to_and_scrolls() {
        let mut dispi = set(800, 600, 32);
        assert_eq!(dispi.write(4, 0, VRAM), None);
        assert_eq!(dispi.write(4, ENABLE_LINEAR, VRAM), Some(800 * 600 * 4));
        assert_eq!(dispi.write(4, ENABLE_LINEAR, VRAM), None, "it is on already");
        dispi.write(6, 1024, VRAM);
        dispi.write(8, 16, VRAM);
        dispi.write(9, 2, VRAM);
        assert_eq!(dispi.mode(VRAM).map(|m| (m.pitch, m.start)), Some((4096, 2 * 4096 + 64)));
        assert_eq!(dispi.read(7, VRAM), 4096);
        dispi.write(1, 640, VRAM);
        assert_eq!(dispi.read(1, VRAM), 800, "the size of a mode in use can't be changed");
    }

    #[test]
    fn capabilities_and_identity_are_reported() {
        let mut dispi = Dispi::default();
        dispi.write(4, GET_CAPABILITIES, VRAM);
        assert_eq!([1, 2, 3, 10].map(|i| dispi.read(i, VRAM)), [16_000, 12_000, 32, 256]);
        assert_eq!(dispi.read(0, VRAM), 0xb0c5);
        dispi.write(0, 0xb0c2, VRAM);
        dispi.write(0, 0x1234, VRAM);
        assert_eq!(dispi.read(0, VRAM), 0xb0c2);
    }

    #[test]
    fn a_mode_larger_than_the_memory_shows_what_there_is() {
        let mode = set(16_000, 12_000, 32).mode(VRAM).unwrap();
        assert_eq!(mode.height, 262);
        let mut far = set(640, 480, 32);
        far.write(9, 0xffff, VRAM);
        assert_eq!(far.mode(VRAM), None);
        assert_eq!(set(0, 480, 32).mode(VRAM), None);
    }
}

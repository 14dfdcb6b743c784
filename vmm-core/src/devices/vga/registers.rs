//! The registers of the IBM VGA behind ports 3B0h to 3DFh: what they hold, not what they show.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::{Bytes, StateError};

/// The first of the ports.
pub(super) const FIRST_PORT: u16 = 0x3b0;
/// How many.
pub(super) const PORTS: u16 = 0x30;

/// Indices of registers that have a meaning here.
pub(super) mod index {
    pub const SEQ_CLOCKING: usize = 1;
    pub const SEQ_MAP_MASK: usize = 2;
    pub const SEQ_FONTS: usize = 3;
    pub const SEQ_MEMORY_MODE: usize = 4;
    pub const CRTC_COLUMNS: usize = 0x01;
    pub const CRTC_OVERFLOW: usize = 0x07;
    pub const CRTC_MAX_SCAN: usize = 0x09;
    pub const CRTC_CURSOR_START: usize = 0x0a;
    pub const CRTC_CURSOR_END: usize = 0x0b;
    pub const CRTC_START: usize = 0x0c;
    pub const CRTC_CURSOR: usize = 0x0e;
    pub const CRTC_RETRACE_END: usize = 0x11;
    pub const CRTC_LINES: usize = 0x12;
    pub const CRTC_OFFSET: usize = 0x13;
    pub const CRTC_UNDERLINE: usize = 0x14;
    pub const CRTC_MODE: usize = 0x17;
    pub const CRTC_LINE_COMPARE: usize = 0x18;
    pub const GFX_SET_RESET: usize = 0;
    pub const GFX_ENABLE_SET_RESET: usize = 1;
    pub const GFX_COLOR_COMPARE: usize = 2;
    pub const GFX_ROTATE: usize = 3;
    pub const GFX_READ_MAP: usize = 4;
    pub const GFX_MODE: usize = 5;
    pub const GFX_MISC: usize = 6;
    pub const GFX_COLOR_DONT_CARE: usize = 7;
    pub const GFX_BIT_MASK: usize = 8;
    pub const ATTR_MODE: usize = 0x10;
    pub const ATTR_OVERSCAN: usize = 0x11;
    pub const ATTR_PLANES: usize = 0x12;
    pub const ATTR_COLOR_SELECT: usize = 0x14;
}

/// Bits that exist in each register.
const SEQ_BITS: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
const GFX_BITS: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
const ATTR_BITS: [u8; 21] = {
    let mut bits = [0x3f; 21];
    bits[index::ATTR_MODE] = 0xef;
    bits[index::ATTR_OVERSCAN] = 0xff;
    bits[0x13] = 0x0f;
    bits[index::ATTR_COLOR_SELECT] = 0x0f;
    bits
};

/// The attribute index's bit that lets the palette drive the screen; without it the screen is dark.
const ATTR_SCREEN_ON: u8 = 0x20;
const SEQ_SCREEN_OFF: u8 = 0x20;
const CRTC_PROTECT: u8 = 0x80;
const MISC_COLOR_PORTS: u8 = 1;

/// A field at 70 Hz, and the part of it in which nothing is drawn.
const FIELD: Duration = Duration::from_micros(14_268);
const RETRACE: Duration = Duration::from_micros(1_500);
const STATUS_NO_DISPLAY: u8 = 1;
const STATUS_RETRACE: u8 = 8;

/// See the module.
#[derive(Clone)]
pub(super) struct Registers {
    pub misc: u8,
    feature: u8,
    seq_index: u8,
    pub seq: [u8; 5],
    crtc_index: u8,
    pub crtc: [u8; 25],
    gfx_index: u8,
    pub gfx: [u8; 9],
    attr_index: u8,
    attr_wants_data: bool,
    pub attr: [u8; 21],
    dac_mask: u8,
    dac_reading: bool,
    dac_index: u8,
    dac_step: u8,
    dac_latch: [u8; 2],
    pub dac: [u8; 768],
    toggle: bool,
}

/// What a checkpoint keeps of [`Registers`].
#[derive(Serialize, Deserialize)]
pub(super) struct RegistersState {
    misc: u8,
    feature: u8,
    indices: [u8; 4],
    seq: Bytes,
    crtc: Bytes,
    gfx: Bytes,
    attr_wants_data: bool,
    attr: Bytes,
    dac_mask: u8,
    dac_reading: bool,
    dac_index: u8,
    dac_step: u8,
    dac_latch: [u8; 2],
    dac: Bytes,
}

impl Default for Registers {
    fn default() -> Registers {
        Registers {
            misc: MISC_COLOR_PORTS,
            feature: 0,
            seq_index: 0,
            seq: [0; 5],
            crtc_index: 0,
            crtc: [0; 25],
            gfx_index: 0,
            gfx: [0; 9],
            attr_index: 0,
            attr_wants_data: false,
            attr: [0; 21],
            dac_mask: 0xff,
            dac_reading: false,
            dac_index: 0,
            dac_step: 0,
            dac_latch: [0; 2],
            dac: [0; 768],
            toggle: false,
        }
    }
}

impl Registers {
    /// Reads a port, `now` after the start of some field. `wide_dac`: colours have 8 bits.
    pub fn read(&mut self, port: u16, now: Duration, wide_dac: bool) -> u8 {
        match port {
            0x3c0 => self.attr_index,
            0x3c1 => self.attr.get(usize::from(self.attr_index & 0x1f)).copied().unwrap_or(0),
            // The monitor senses as a colour one.
            0x3c2 => 0x10,
            0x3c3 => 1,
            0x3c4 => self.seq_index,
            0x3c5 => self.seq.get(usize::from(self.seq_index)).copied().unwrap_or(0),
            0x3c6 => self.dac_mask,
            0x3c7 => 3 * u8::from(self.dac_reading),
            0x3c8 => self.dac_index,
            0x3c9 => {
                let value = self.dac[usize::from(self.dac_index) * 3 + usize::from(self.dac_step)];
                self.step_dac();
                if wide_dac { value } else { value & 0x3f }
            }
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.gfx_index,
            0x3cf => self.gfx.get(usize::from(self.gfx_index)).copied().unwrap_or(0),
            _ => match self.crtc_port(port) {
                Some(4) => self.crtc_index,
                Some(5) => self.crtc.get(usize::from(self.crtc_index)).copied().unwrap_or(0),
                Some(0xa) => {
                    self.attr_wants_data = false;
                    self.status(now)
                }
                _ => 0xff,
            },
        }
    }

    /// Writes a port. True: what is shown, or how memory is seen, may differ now.
    pub fn write(&mut self, port: u16, value: u8, wide_dac: bool) -> bool {
        let set = |slot: &mut u8, value: u8| std::mem::replace(slot, value) != value;
        match port {
            0x3c0 if self.attr_wants_data => {
                self.attr_wants_data = false;
                let at = usize::from(self.attr_index & 0x1f);
                // The palette can be written only while it does not drive the screen.
                let free = at >= 16 || self.attr_index & ATTR_SCREEN_ON == 0;
                free && self.attr.get_mut(at).is_some_and(|slot| set(slot, value & ATTR_BITS[at]))
            }
            0x3c0 => {
                self.attr_wants_data = true;
                let old = std::mem::replace(&mut self.attr_index, value & 0x3f);
                (old ^ value) & ATTR_SCREEN_ON != 0
            }
            0x3c2 => set(&mut self.misc, value),
            0x3c4 => {
                self.seq_index = value & 7;
                false
            }
            0x3c5 => {
                let at = usize::from(self.seq_index);
                self.seq.get_mut(at).is_some_and(|slot| set(slot, value & SEQ_BITS[at]))
            }
            0x3c6 => set(&mut self.dac_mask, value),
            0x3c7 | 0x3c8 => {
                self.dac_reading = port == 0x3c7;
                self.dac_index = value;
                self.dac_step = 0;
                false
            }
            0x3c9 => {
                let value = if wide_dac { value } else { value & 0x3f };
                let step = usize::from(self.dac_step);
                let at = usize::from(self.dac_index) * 3;
                self.step_dac();
                match self.dac_latch.get_mut(step) {
                    Some(latch) => {
                        *latch = value;
                        false
                    }
                    None => {
                        let color = [self.dac_latch[0], self.dac_latch[1], value];
                        let changed = self.dac[at..at + 3] != color;
                        self.dac[at..at + 3].copy_from_slice(&color);
                        changed
                    }
                }
            }
            0x3ce => {
                self.gfx_index = value & 0xf;
                false
            }
            0x3cf => {
                let at = usize::from(self.gfx_index);
                self.gfx.get_mut(at).is_some_and(|slot| set(slot, value & GFX_BITS[at]))
            }
            _ => match self.crtc_port(port) {
                Some(4) => {
                    self.crtc_index = value & 0x3f;
                    false
                }
                Some(5) => self.write_crtc(usize::from(self.crtc_index), value),
                Some(0xa) => {
                    self.feature = value;
                    false
                }
                _ => false,
            },
        }
    }

    fn write_crtc(&mut self, at: usize, value: u8) -> bool {
        let protected = at <= 7 && self.crtc[index::CRTC_RETRACE_END] & CRTC_PROTECT != 0;
        let Some(slot) = self.crtc.get_mut(at) else { return false };
        let value = match at {
            // Bit 8 of the line compare is never protected.
            index::CRTC_OVERFLOW if protected => (*slot & !0x10) | value & 0x10,
            _ if protected => return false,
            _ => value,
        };
        std::mem::replace(slot, value) != value
    }

    fn step_dac(&mut self) {
        self.dac_step += 1;
        if self.dac_step == 3 {
            self.dac_step = 0;
            self.dac_index = self.dac_index.wrapping_add(1);
        }
    }

    /// The low digit of a port of the CRT controller's, if it is where the miscellaneous register puts them.
    fn crtc_port(&self, port: u16) -> Option<u16> {
        let base = if self.misc & MISC_COLOR_PORTS != 0 { 0x3d0 } else { 0x3b0 };
        port.checked_sub(base).filter(|&low| low < 0x10)
    }

    /// Input status 1: programs wait for the retrace to come and go.
    fn status(&mut self, now: Duration) -> u8 {
        let at = now.as_nanos() % FIELD.as_nanos();
        if at < RETRACE.as_nanos() {
            return STATUS_RETRACE | STATUS_NO_DISPLAY;
        }
        // Lines come and go too fast to be timed.
        self.toggle = !self.toggle;
        if self.toggle { STATUS_NO_DISPLAY } else { 0 }
    }

    /// Whether the screen is dark whatever the memory holds.
    pub fn is_dark(&self) -> bool {
        self.attr_index & ATTR_SCREEN_ON == 0 || self.seq[index::SEQ_CLOCKING] & SEQ_SCREEN_OFF != 0
    }

    /// A CRT controller register pair, high byte first.
    pub fn crtc_pair(&self, at: usize) -> u32 {
        u32::from(self.crtc[at]) << 8 | u32::from(self.crtc[at + 1])
    }

    /// The number of lines that are shown.
    pub fn lines(&self) -> u32 {
        let overflow = u32::from(self.crtc[index::CRTC_OVERFLOW]);
        (u32::from(self.crtc[index::CRTC_LINES]) | (overflow & 2) << 7 | (overflow & 0x40) << 3) + 1
    }

    /// The last line before the screen splits and goes on at address 0.
    pub fn line_compare(&self) -> u32 {
        let overflow = u32::from(self.crtc[index::CRTC_OVERFLOW]);
        let max_scan = u32::from(self.crtc[index::CRTC_MAX_SCAN]);
        u32::from(self.crtc[index::CRTC_LINE_COMPARE]) | (overflow & 0x10) << 4 | (max_scan & 0x40) << 3
    }

    /// A palette entry as XRGB8888.
    pub fn color(&self, entry: u8, wide_dac: bool) -> u32 {
        let at = usize::from(entry & self.dac_mask) * 3;
        let expand = |value: u8| u32::from(if wide_dac { value } else { value << 2 | value >> 4 });
        expand(self.dac[at]) << 16 | expand(self.dac[at + 1]) << 8 | expand(self.dac[at + 2])
    }

    /// The palette entry of one of the 16 attribute colours.
    pub fn attribute_entry(&self, color: u8) -> u8 {
        let (own, select) = (self.attr[usize::from(color & 15)], self.attr[index::ATTR_COLOR_SELECT]);
        if self.attr[index::ATTR_MODE] & 0x80 != 0 { own & 0x0f | select << 4 } else { own | (select & 0x0c) << 4 }
    }

    pub fn save(&self) -> RegistersState {
        let Registers {
            misc,
            feature,
            seq_index,
            seq,
            crtc_index,
            crtc,
            gfx_index,
            gfx,
            attr_index,
            attr_wants_data,
            attr,
            dac_mask,
            dac_reading,
            dac_index,
            dac_step,
            dac_latch,
            dac,
            toggle: _,
        } = self;
        RegistersState {
            misc: *misc,
            feature: *feature,
            indices: [*seq_index, *crtc_index, *gfx_index, *attr_index],
            seq: Bytes(seq.to_vec()),
            crtc: Bytes(crtc.to_vec()),
            gfx: Bytes(gfx.to_vec()),
            attr_wants_data: *attr_wants_data,
            attr: Bytes(attr.to_vec()),
            dac_mask: *dac_mask,
            dac_reading: *dac_reading,
            dac_index: *dac_index,
            dac_step: *dac_step,
            dac_latch: *dac_latch,
            dac: Bytes(dac.to_vec()),
        }
    }

    pub fn restore(state: RegistersState) -> Result<Registers, StateError> {
        fn exact<const N: usize>(what: &str, bytes: Bytes) -> Result<[u8; N], StateError> {
            let wrong = |b: Vec<u8>| StateError::invalid("VGA", format!("it has {} bytes of {what}", b.len()));
            bytes.0.try_into().map_err(wrong)
        }
        let RegistersState {
            misc,
            feature,
            indices: [seq_index, crtc_index, gfx_index, attr_index],
            seq,
            crtc,
            gfx,
            attr_wants_data,
            attr,
            dac_mask,
            dac_reading,
            dac_index,
            dac_step,
            dac_latch,
            dac,
        } = state;
        if dac_step > 2 {
            return Err(StateError::invalid("VGA", format!("its palette is at component {dac_step} of 3")));
        }
        Ok(Registers {
            misc,
            feature,
            seq_index,
            seq: exact("sequencer registers", seq)?,
            crtc_index,
            crtc: exact("CRT controller registers", crtc)?,
            gfx_index,
            gfx: exact("graphics registers", gfx)?,
            attr_index,
            attr_wants_data,
            attr: exact("attribute registers", attr)?,
            dac_mask,
            dac_reading,
            dac_index,
            dac_step,
            dac_latch,
            dac: exact("palette", dac)?,
            toggle: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn indexed_registers_keep_their_bits_and_absent_ones_keep_nothing() {
        let mut r = Registers::default();
        for (index_port, data_port, at, kept) in
            [(0x3c4, 0x3c5, 4, 0x0e), (0x3c4, 0x3c5, 6, 0), (0x3ce, 0x3cf, 5, 0x7b), (0x3d4, 0x3d5, 0x13, 0xff)]
        {
            r.write(index_port, at, false);
            r.write(data_port, 0xff, false);
            assert_eq!(r.read(data_port, NOW, false), kept, "{data_port:#x} {at}");
        }
        assert_eq!(r.read(0x3b5, NOW, false), 0xff, "the monochrome ports are elsewhere");
        r.write(0x3c2, 0, false);
        assert_eq!((r.read(0x3b5, NOW, false), r.read(0x3d5, NOW, false)), (0xff, 0xff));
        assert_eq!(r.read(0x3b4, NOW, false), 0x13);
    }

    #[test]
    fn the_attribute_port_alternates_and_the_status_port_realigns_it() {
        let mut r = Registers::default();
        r.write(0x3c0, 0x10, false);
        r.read(0x3da, NOW, false);
        r.write(0x3c0, 0x03, false);
        r.write(0x3c0, 0x2a, false);
        assert_eq!(r.attr[3], 0x2a);
        r.write(0x3c0, 0x20, false);
        assert!(!r.is_dark());
        r.write(0x3c0, 0x11, false);
        assert_eq!(r.attr[0], 0, "a palette in use can't be written");
    }

    #[test]
    fn colours_are_written_and_read_in_threes() {
        let mut r = Registers::default();
        r.write(0x3c8, 1, false);
        assert!(!r.write(0x3c9, 0xff, false));
        assert!(!r.write(0x3c9, 0, false));
        assert!(r.write(0x3c9, 0x20, false));
        assert_eq!(r.color(1, false), 0xff_0082);
        r.write(0x3c7, 1, false);
        assert_eq!([(); 3].map(|()| r.read(0x3c9, NOW, false)), [0x3f, 0, 0x20]);
        assert_eq!((r.read(0x3c8, NOW, false), r.read(0x3c7, NOW, false)), (2, 3));
    }

    #[test]
    fn the_first_crtc_registers_can_be_protected() {
        let mut r = Registers::default();
        r.write_crtc(index::CRTC_RETRACE_END, 0x80);
        assert!(!r.write_crtc(0, 0x55));
        assert!(r.write_crtc(index::CRTC_OVERFLOW, 0xff));
        assert_eq!((r.crtc[0], r.crtc[index::CRTC_OVERFLOW]), (0, 0x10));
    }

    #[test]
    fn a_loop_that_waits_for_the_retrace_ends() {
        let mut r = Registers::default();
        assert_eq!(r.read(0x3da, NOW, false), 9);
        let drawing: Vec<u8> = (0..4).map(|_| r.read(0x3da, RETRACE, false)).collect();
        assert_eq!(drawing, [1, 0, 1, 0]);
    }

    #[test]
    fn a_saved_state_comes_back_and_a_damaged_one_is_refused() {
        let mut r = Registers::default();
        r.write(0x3c8, 7, false);
        r.write(0x3c9, 1, false);
        r.write_crtc(0x13, 0x28);
        let mut back = Registers::restore(r.save()).unwrap();
        assert_eq!((back.crtc, back.read(0x3c8, NOW, false), back.dac_step), (r.crtc, 7, 1));
        let short = RegistersState { dac: Bytes(vec![0; 3]), ..r.save() };
        assert!(Registers::restore(short).is_err());
    }
}

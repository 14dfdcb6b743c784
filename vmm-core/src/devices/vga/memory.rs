//! The VGA's memory as a CPU sees it through the window at A0000h, with latches, write modes and the planes behind it.
//!
//! Two stores hold it. Whatever is addressed plane by plane, or as one linear frame buffer, is in the video memory
//! (plane `p` of address `a` is byte `4 * a + p`, so that 256-colour modes are linear). Whatever is addressed in pairs of
//! even and odd bytes (text, and CGA's graphics) is in the text memory, byte for byte as the CPU sees it. So both can
//! be shown to the guest as plain RAM in the modes where nothing else is to be done.

use std::sync::Arc;

use super::dispi::Dispi;
use super::registers::{Registers, index};
use crate::hw::SharedRegion;

/// The start and length of the window.
pub(super) const WINDOW: u64 = 0xa_0000;
pub(super) const WINDOW_SIZE: u64 = 0x2_0000;
/// The memory that text modes use: as much as the window at B8000h shows.
pub(super) const TEXT_SIZE: usize = 0x8000;
/// A bank of the linear modes, and the addresses of a plane.
const BANK: usize = 0x1_0000;

const SEQ_SEQUENTIAL: u8 = 4;
const SEQ_CHAIN4: u8 = 8;
const GFX_ODD_EVEN: u8 = 0x10;
const GFX_READ_COMPARE: u8 = 8;

/// A store that the guest may change while it is read.
#[derive(Clone)]
pub(super) struct Store(pub Arc<SharedRegion>);

impl Store {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// A byte; zero beyond the end.
    pub fn get(&self, at: usize) -> u8 {
        let mut byte = [0];
        self.copy_to(at, &mut byte);
        byte[0]
    }

    /// Sets a byte, if it exists.
    pub fn set(&self, at: usize, value: u8) {
        self.copy_from(at, &[value]);
    }

    /// Reads bytes; those beyond the end stay as they are in `out`.
    pub fn copy_to(&self, at: usize, out: &mut [u8]) {
        let len = out.len().min(self.len().saturating_sub(at));
        if let Some(slice) = self.0.slice(at, len) {
            slice.copy_to(&mut out[..len]);
        }
    }

    /// Writes bytes; those beyond the end are lost.
    pub fn copy_from(&self, at: usize, data: &[u8]) {
        let len = data.len().min(self.len().saturating_sub(at));
        if let Some(slice) = self.0.slice(at, len) {
            slice.copy_from(&data[..len]);
        }
    }

    /// Zeroes `len` bytes from the start. Pages that were never written stay without memory of the host's.
    pub fn clear(&self, len: usize) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut page = ZEROES;
        for at in (0..len).step_by(page.len()) {
            let now = (len - at).min(page.len());
            self.copy_to(at, &mut page[..now]);
            if page[..now] != ZEROES[..now] {
                self.copy_from(at, &ZEROES[..now]);
            }
        }
    }
}

/// A part of a store that the window can show as plain RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// Guest address.
    pub address: u64,
    /// The text memory, not the video memory.
    pub text: bool,
    /// Where in the store it starts.
    pub offset: usize,
    pub len: usize,
}

/// What a write changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    Nothing,
    Text,
    /// This byte of the video memory, or others of the same page.
    Video(usize),
}

/// How an access through the window is taken.
enum Target {
    /// The byte of a store.
    Text(usize),
    Linear(usize),
    /// An address of all planes.
    Planes(usize),
    /// A byte of one plane, latches not involved.
    Plane(usize, usize),
}

/// The first address that the graphics controller's map shows, and how far.
fn map(registers: &Registers) -> (u64, u64) {
    match registers.gfx[index::GFX_MISC] >> 2 & 3 {
        0 => (0, 0x2_0000),
        1 => (0, 0x1_0000),
        2 => (0x1_0000, 0x8000),
        _ => (0x1_8000, 0x8000),
    }
}

/// Whether writes go straight into memory: nothing is rotated, masked, combined or set.
fn plain(registers: &Registers) -> bool {
    let gfx = &registers.gfx;
    gfx[index::GFX_MODE] & (3 | GFX_READ_COMPARE) == 0
        && gfx[index::GFX_ROTATE] == 0
        && gfx[index::GFX_ENABLE_SET_RESET] == 0
        && gfx[index::GFX_BIT_MASK] == 0xff
}

/// What the window shows while it can be shown as RAM; `None` while every access has to be looked at.
pub(super) fn view(registers: &Registers, dispi: &Dispi, video_len: usize) -> Option<View> {
    if let Some(bank) = dispi.window_bank() {
        let offset = bank * BANK;
        return (offset + BANK <= video_len).then_some(View { address: WINDOW, text: false, offset, len: BANK });
    }
    if dispi.is_enabled() || !plain(registers) {
        return None;
    }
    let (start, len) = map(registers);
    let masks = registers.seq[index::SEQ_MAP_MASK];
    let mode = registers.seq[index::SEQ_MEMORY_MODE];
    if mode & SEQ_CHAIN4 != 0 {
        let whole = masks == 0xf && start == 0;
        return whole.then_some(View { address: WINDOW, text: false, offset: 0, len: BANK });
    }
    let pairs = mode & SEQ_SEQUENTIAL == 0 && registers.gfx[index::GFX_MODE] & GFX_ODD_EVEN != 0;
    let first_planes = masks & 3 == 3 && registers.gfx[index::GFX_READ_MAP] & 2 == 0;
    (pairs && first_planes && len == TEXT_SIZE as u64).then_some(View {
        address: WINDOW + start,
        text: true,
        offset: 0,
        len: TEXT_SIZE,
    })
}

/// The window's accesses that have to be looked at.
pub(super) struct Planes<'a> {
    pub registers: &'a Registers,
    pub dispi: &'a Dispi,
    pub video: &'a Store,
    pub text: &'a Store,
    pub latch: &'a mut [u8; 4],
}

impl Planes<'_> {
    /// What `offset` in the window stands for.
    fn target(&self, offset: u64, odd_even: bool, plane_pair: usize) -> Option<Target> {
        if let Some(bank) = self.dispi.window_bank() {
            return (offset < BANK as u64).then_some(Target::Linear(bank * BANK + offset as usize));
        }
        let (start, len) = if self.dispi.is_enabled() { (0, BANK as u64) } else { map(self.registers) };
        let at = offset.checked_sub(start).filter(|&at| at < len)? as usize;
        Some(if self.registers.seq[index::SEQ_MEMORY_MODE] & SEQ_CHAIN4 != 0 && !self.dispi.is_enabled() {
            Target::Linear(at & (BANK - 1))
        } else if odd_even {
            match plane_pair {
                0 => Target::Text(at & (TEXT_SIZE - 1)),
                _ => Target::Plane(at >> 1 & (BANK - 1), 2 | at & 1),
            }
        } else {
            Target::Planes(self.dispi.planar_bank() * BANK + (at & (BANK - 1)))
        })
    }

    /// Reads a byte at `offset` in the window.
    pub fn read(&mut self, offset: u64) -> u8 {
        let gfx = &self.registers.gfx;
        let read_map = usize::from(gfx[index::GFX_READ_MAP]);
        match self.target(offset, gfx[index::GFX_MODE] & GFX_ODD_EVEN != 0, read_map & 2) {
            None => 0xff,
            Some(Target::Text(at)) => self.text.get(at),
            Some(Target::Linear(at)) => self.video.get(at),
            Some(Target::Plane(at, plane)) => self.video.get(4 * at + plane),
            Some(Target::Planes(at)) => {
                self.video.copy_to(4 * at, self.latch);
                if gfx[index::GFX_MODE] & GFX_READ_COMPARE == 0 {
                    return self.latch[read_map];
                }
                // Read mode 1: a bit is set where the pixel has the colour, as far as it is cared for.
                let (color, care) = (gfx[index::GFX_COLOR_COMPARE], gfx[index::GFX_COLOR_DONT_CARE]);
                let differs = |plane: usize| {
                    let wanted = if color >> plane & 1 != 0 { 0xff } else { 0 };
                    if care >> plane & 1 != 0 { self.latch[plane] ^ wanted } else { 0 }
                };
                !(0..4).fold(0, |all, plane| all | differs(plane))
            }
        }
    }

    /// Writes a byte at `offset` in the window.
    pub fn write(&mut self, offset: u64, value: u8) -> Touched {
        let masks = self.registers.seq[index::SEQ_MAP_MASK];
        let odd_even = self.registers.seq[index::SEQ_MEMORY_MODE] & SEQ_SEQUENTIAL == 0;
        let pair = if masks & 3 == 0 { 2 } else { 0 };
        match self.target(offset, odd_even, pair) {
            Some(Target::Text(at)) if masks >> (at & 1) & 1 != 0 => {
                self.text.set(at, value);
                Touched::Text
            }
            Some(Target::Linear(at)) if self.dispi.is_enabled() || masks >> (at & 3) & 1 != 0 => {
                self.video.set(at, value);
                Touched::Video(at)
            }
            Some(Target::Plane(at, plane)) if masks >> plane & 1 != 0 => {
                self.video.set(4 * at + plane, value);
                Touched::Video(4 * at)
            }
            Some(Target::Planes(at)) => {
                let pixels = self.combine(value);
                for plane in (0..4).filter(|plane| masks >> plane & 1 != 0) {
                    self.video.set(4 * at + plane, pixels[plane]);
                }
                Touched::Video(4 * at)
            }
            _ => Touched::Nothing,
        }
    }

    /// What the four write modes make of a byte of the CPU's, for each plane.
    fn combine(&self, value: u8) -> [u8; 4] {
        let gfx = &self.registers.gfx;
        let mode = gfx[index::GFX_MODE] & 3;
        if mode == 1 {
            return *self.latch;
        }
        let rotated = value.rotate_right(u32::from(gfx[index::GFX_ROTATE] & 7));
        let fill = |set: bool| if set { 0xff } else { 0 };
        let set_reset = |plane: usize| fill(gfx[index::GFX_SET_RESET] >> plane & 1 != 0);
        let mask = gfx[index::GFX_BIT_MASK] & if mode == 3 { rotated } else { 0xff };
        let mut pixels = [0; 4];
        for (plane, pixel) in pixels.iter_mut().enumerate() {
            let source = match mode {
                0 if gfx[index::GFX_ENABLE_SET_RESET] >> plane & 1 == 0 => rotated,
                2 => fill(value >> plane & 1 != 0),
                _ => set_reset(plane),
            };
            let latch = self.latch[plane];
            let combined = match gfx[index::GFX_ROTATE] >> 3 & 3 {
                0 => source,
                1 => source & latch,
                2 => source | latch,
                _ => source ^ latch,
            };
            *pixel = combined & mask | latch & !mask;
        }
        pixels
    }
}

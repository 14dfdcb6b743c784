//! Graphics modes, line by line: the linear ones of the Bochs display interface, and the VGA's planar, 256-colour and
//! CGA-compatible ones, which are drawn as the dots and lines that a monitor got.

use super::dispi::{Dispi, LinearMode};
use super::memory::{Store, TEXT_SIZE};
use super::registers::{Registers, index};
use crate::backend::display::Mode;

/// Addresses of a plane.
const PLANE: usize = 0x1_0000;

/// How lines are found in memory, in the VGA's own modes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scan {
    start: usize,
    pitch: usize,
    /// Lines that show the same memory.
    repeat: u32,
    /// Lines of a "character": the address moves on by the pitch after them.
    height: u32,
    split: u32,
    /// Address bits 13 and 14 come from the line within the character.
    banks: [bool; 2],
    /// Each dot is two wide.
    wide: bool,
}

impl Scan {
    fn new(r: &Registers) -> Scan {
        let max_scan = r.crtc[index::CRTC_MAX_SCAN];
        let mode = r.crtc[index::CRTC_MODE];
        Scan {
            start: r.crtc_pair(index::CRTC_START) as usize,
            pitch: 2 * usize::from(r.crtc[index::CRTC_OFFSET]),
            repeat: if max_scan & 0x80 != 0 { 2 } else { 1 },
            height: u32::from(max_scan & 0x1f) + 1,
            split: r.line_compare() + 1,
            banks: [mode & 1 == 0, mode & 2 == 0],
            wide: r.seq[index::SEQ_CLOCKING] & 8 != 0,
        }
    }

    /// Where a line of the screen starts, in bytes of memory that has `bytes` at each address.
    fn address(&self, line: u32, bytes: usize) -> usize {
        let (first, line) = match line.checked_sub(self.split) {
            Some(behind) => (0, behind),
            None => (self.start, line),
        };
        let line = line / self.repeat;
        let mut at = bytes * ((first + (line / self.height) as usize * self.pitch) % PLANE);
        let within = line % self.height;
        for (bit, &used) in self.banks.iter().enumerate() {
            if used {
                at = (at & !(0x2000 << bit)) | (within as usize >> bit & 1) << (13 + bit);
            }
        }
        at
    }
}

/// What memory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// Whole bytes, or 5-5-5 and 5-6-5, one line behind the other.
    Linear(LinearMode),
    /// A bit of each plane makes a colour, in a linear mode.
    LinearPlanes(LinearMode),
    /// The same, in a VGA mode.
    Planes(Scan),
    /// A byte a pixel, each two dots wide.
    Bytes(Scan),
    /// Two bits a pixel, in the text memory.
    Pairs(Scan),
}

/// A graphics mode as the registers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Graphics {
    mode: Mode,
    layout: Layout,
    /// Colours of a byte, where that is what a pixel is.
    palette: Vec<u32>,
    /// Colours of four planes' bits.
    colors: [u32; 16],
}

impl Graphics {
    /// The linear mode that is on, if it makes sense.
    pub fn linear(r: &Registers, dispi: &Dispi, video_len: usize) -> Option<Graphics> {
        let linear = dispi.mode(video_len)?;
        let mode = Mode { width: linear.width, height: linear.height };
        let layout = if linear.bpp == 4 { Layout::LinearPlanes(linear) } else { Layout::Linear(linear) };
        Some(Graphics::new(mode, layout, r, dispi.wide_dac()))
    }

    /// The VGA's own mode, if it makes sense.
    pub fn vga(r: &Registers, wide_dac: bool) -> Option<Graphics> {
        let scan = Scan::new(r);
        let columns = u32::from(r.crtc[index::CRTC_COLUMNS]) + 1;
        let mode = Mode { width: columns * if scan.wide { 16 } else { 8 }, height: r.lines() };
        let layout = match r.gfx[index::GFX_MODE] >> 5 & 3 {
            0 => Layout::Planes(scan),
            1 => Layout::Pairs(scan),
            _ => Layout::Bytes(scan),
        };
        (columns >= 2 && mode.height >= 8).then(|| Graphics::new(mode, layout, r, wide_dac))
    }

    fn new(mode: Mode, layout: Layout, r: &Registers, wide_dac: bool) -> Graphics {
        let palette = match &layout {
            Layout::Linear(LinearMode { bpp: 8, .. }) | Layout::Bytes(_) => {
                (0..=255).map(|i| r.color(i, wide_dac)).collect()
            }
            _ => Vec::new(),
        };
        let enabled = r.attr[index::ATTR_PLANES] & 15;
        let colors = std::array::from_fn(|i| r.color(r.attribute_entry(i as u8 & enabled), wide_dac));
        Graphics { mode, layout, palette, colors }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The lines that the bytes from `from` to `to` of the video memory may show on: whatever is dirty there.
    pub fn lines_of(&self, from: usize, to: usize) -> std::ops::Range<u32> {
        match &self.layout {
            Layout::Linear(LinearMode { pitch, start, .. }) => {
                let first = from.saturating_sub(*start) / pitch;
                let end = to.saturating_sub(*start).div_ceil(*pitch);
                first.min(self.mode.height as usize) as u32..end.min(self.mode.height as usize) as u32
            }
            _ => 0..self.mode.height,
        }
    }

    /// Whether it shows the text memory.
    pub fn shows_text_memory(&self) -> bool {
        matches!(self.layout, Layout::Pairs(_))
    }

    /// Draws a line into `out`, which has the mode's width in XRGB8888.
    pub fn draw_line(&self, line: u32, video: &Store, text: &Store, out: &mut [u8]) {
        match &self.layout {
            Layout::Linear(linear) => self.draw_linear(linear, line, video, out),
            Layout::LinearPlanes(linear) => {
                let at = linear.start + line as usize * linear.pitch;
                self.draw_planes(at, usize::MAX, 1, video, out);
            }
            Layout::Planes(scan) => {
                self.draw_planes(scan.address(line, 1), PLANE, if scan.wide { 2 } else { 1 }, video, out);
            }
            Layout::Bytes(scan) => {
                let width = if scan.wide { 4 } else { 2 };
                let mut bytes = vec![0; self.mode.width as usize / width];
                copy_wrapped(video, 4 * scan.address(line, 1), 4 * PLANE, &mut bytes);
                for (pixel, byte) in out.chunks_exact_mut(4 * width).zip(bytes) {
                    put(pixel, self.palette[usize::from(byte)]);
                }
            }
            Layout::Pairs(scan) => {
                let width = if scan.wide { 2 } else { 1 };
                let mut bytes = vec![0; self.mode.width as usize / width / 4];
                copy_wrapped(text, scan.address(line, 2) % TEXT_SIZE, TEXT_SIZE, &mut bytes);
                let pairs = bytes.iter().flat_map(|byte| [6, 4, 2, 0].map(|shift| byte >> shift & 3));
                for (pixel, pair) in out.chunks_exact_mut(4 * width).zip(pairs) {
                    put(pixel, self.colors[usize::from(pair)]);
                }
            }
        }
    }

    fn draw_linear(&self, linear: &LinearMode, line: u32, video: &Store, out: &mut [u8]) {
        let at = linear.start + line as usize * linear.pitch;
        let width = self.mode.width as usize;
        if linear.bpp == 32 {
            return video.copy_to(at, out);
        }
        let mut bytes = vec![0; width * linear.bpp.next_multiple_of(8) as usize / 8];
        video.copy_to(at, &mut bytes);
        let pixels = out.chunks_exact_mut(4);
        match linear.bpp {
            8 => pixels.zip(&bytes).for_each(|(p, &byte)| put(p, self.palette[usize::from(byte)])),
            15 => pixels.zip(bytes.chunks_exact(2)).for_each(|(p, b)| {
                let value = u32::from(b[0]) | u32::from(b[1]) << 8;
                put(p, expand(value >> 10, 5) << 16 | expand(value >> 5, 5) << 8 | expand(value, 5));
            }),
            16 => pixels.zip(bytes.chunks_exact(2)).for_each(|(p, b)| {
                let value = u32::from(b[0]) | u32::from(b[1]) << 8;
                put(p, expand(value >> 11, 5) << 16 | expand(value >> 5, 6) << 8 | expand(value, 5));
            }),
            _ => pixels.zip(bytes.chunks_exact(3)).for_each(|(p, b)| p[..3].copy_from_slice(b)),
        }
    }

    fn draw_planes(&self, at: usize, wrap: usize, width: usize, video: &Store, out: &mut [u8]) {
        let mut bytes = vec![0; self.mode.width as usize / width / 2];
        copy_wrapped(video, 4 * at, wrap.saturating_mul(4), &mut bytes);
        let mut pixels = out.chunks_exact_mut(4 * width);
        for planes in bytes.chunks_exact(4) {
            for bit in (0..8).rev() {
                let color = (0..4).fold(0, |color, plane| color | (planes[plane] >> bit & 1) << plane);
                if let Some(pixel) = pixels.next() {
                    put(pixel, self.colors[usize::from(color)]);
                }
            }
        }
    }
}

/// Fills one pixel, however many dots it has.
fn put(pixel: &mut [u8], color: u32) {
    for dot in pixel.chunks_exact_mut(4) {
        dot.copy_from_slice(&color.to_le_bytes());
    }
}

/// The lowest `bits` of a value as 8 bits.
fn expand(value: u32, bits: u32) -> u32 {
    let value = value & ((1 << bits) - 1);
    value << (8 - bits) | value >> (2 * bits - 8)
}

/// Reads bytes from memory that goes on at its start after `wrap` bytes.
fn copy_wrapped(store: &Store, at: usize, wrap: usize, out: &mut [u8]) {
    let first = out.len().min(wrap.saturating_sub(at));
    let (head, tail) = out.split_at_mut(first);
    store.copy_to(at, head);
    store.copy_to(0, tail);
}

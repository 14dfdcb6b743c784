//! Text modes: cells of a character and an attribute, drawn with the fonts in plane 2.
//!
//! Blinking characters and the cursor stand still, so that a screen on which nothing happens costs nothing.

use super::memory::{Store, TEXT_SIZE};
use super::registers::{Registers, index};
use crate::backend::display::{Mode, Rect};

/// A font in plane 2: 256 characters of 32 lines, of which a cell's height is used.
const FONT_SIZE: usize = 256 * 32;
const CELLS: u32 = TEXT_SIZE as u32 / 2;

/// Everything about a text mode but what is written in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Style {
    mode: Mode,
    columns: u32,
    rows: u32,
    /// 8 or 9 dots.
    cell_width: u32,
    /// Lines of a character, each drawn `repeat` times.
    cell_height: u32,
    repeat: u32,
    /// Each dot is two wide.
    wide: bool,
    palette: [u32; 16],
    /// Addresses in plane 2 of the fonts for attribute bit 3 clear and set.
    fonts: [usize; 2],
    /// Attribute bit 7 is blinking, not a bright background.
    blink: bool,
    /// The ninth dot of the line-drawing characters continues the eighth.
    join_lines: bool,
    underline: u32,
    cursor_lines: Option<(u32, u32)>,
}

/// A text mode as the registers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    style: Style,
    start: u32,
    pitch: u32,
    /// The first row behind a split of the screen.
    split: u32,
    cursor: u32,
}

impl Text {
    /// The mode that the registers describe, if it makes sense.
    pub fn new(r: &Registers, wide_dac: bool) -> Option<Text> {
        let columns = u32::from(r.crtc[index::CRTC_COLUMNS]) + 1;
        let cell_width = if r.seq[index::SEQ_CLOCKING] & 1 != 0 { 8 } else { 9 };
        let wide = r.seq[index::SEQ_CLOCKING] & 8 != 0;
        let max_scan = r.crtc[index::CRTC_MAX_SCAN];
        let cell_height = u32::from(max_scan & 0x1f) + 1;
        let repeat = if max_scan & 0x80 != 0 { 2 } else { 1 };
        let (lines, row) = (r.lines(), cell_height * repeat);
        let rows = lines / row;
        if columns < 2 || rows < 1 || lines < 8 {
            return None;
        }
        let start_line = u32::from(r.crtc[index::CRTC_CURSOR_START]);
        let end_line = u32::from(r.crtc[index::CRTC_CURSOR_END] & 0x1f);
        let shown = start_line & 0x20 == 0 && start_line & 0x1f <= end_line;
        let font = |high: u8, low: u8| usize::from(high & 1 | low << 1 & 6) * FONT_SIZE;
        let fonts = r.seq[index::SEQ_FONTS];
        let style = Style {
            mode: Mode { width: columns * cell_width * if wide { 2 } else { 1 }, height: lines },
            columns,
            rows,
            cell_width,
            cell_height,
            repeat,
            wide,
            palette: std::array::from_fn(|i| r.color(r.attribute_entry(i as u8), wide_dac)),
            fonts: [font(fonts >> 4, fonts), font(fonts >> 5, fonts >> 2)],
            blink: r.attr[index::ATTR_MODE] & 8 != 0,
            join_lines: r.attr[index::ATTR_MODE] & 4 != 0,
            underline: u32::from(r.crtc[index::CRTC_UNDERLINE] & 0x1f),
            cursor_lines: shown.then_some((start_line & 0x1f, end_line)),
        };
        Some(Text {
            style,
            start: r.crtc_pair(index::CRTC_START),
            pitch: 2 * u32::from(r.crtc[index::CRTC_OFFSET]),
            split: (r.line_compare() + 1).div_ceil(row),
            cursor: r.crtc_pair(index::CRTC_CURSOR),
        })
    }

    pub fn mode(&self) -> Mode {
        self.style.mode
    }
}

/// A character, its attribute, and whether the cursor is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    character: u8,
    attribute: u8,
    cursor: bool,
}

/// Draws a text mode, remembering what it drew.
#[derive(Default)]
pub(super) struct TextPainter {
    style: Option<Style>,
    fonts: Vec<u8>,
    cells: Vec<Cell>,
}

impl TextPainter {
    /// Forgets what was drawn: the next call draws everything.
    pub fn forget(&mut self) {
        self.style = None;
    }

    /// Draws what changed into `pixels`, which has the mode's size, and adds the rectangles to `damage`.
    pub fn draw(&mut self, text: &Text, video: &Store, memory: &Store, pixels: &mut [u8], damage: &mut Vec<Rect>) {
        let style = &text.style;
        let mut fonts = vec![0; 2 * FONT_SIZE];
        for (font, &start) in fonts.chunks_exact_mut(FONT_SIZE).zip(&style.fonts) {
            let mut planes = vec![0; 4 * FONT_SIZE];
            video.copy_to(4 * start, &mut planes);
            for (byte, planes) in font.iter_mut().zip(planes.chunks_exact(4)) {
                *byte = planes[2];
            }
        }
        let all = self.style.as_ref() != Some(style) || self.fonts != fonts;
        self.fonts = fonts;

        let mut bytes = vec![0; TEXT_SIZE];
        memory.copy_to(0, &mut bytes);
        let mut cells = Vec::with_capacity((style.columns * style.rows) as usize);
        for row in 0..style.rows {
            let first = match row.checked_sub(text.split) {
                Some(behind) => behind * text.pitch,
                None => text.start + row * text.pitch,
            };
            for column in 0..style.columns {
                let address = (first + column) % CELLS;
                let at = 2 * address as usize;
                let cursor = style.cursor_lines.is_some() && address == text.cursor % CELLS;
                cells.push(Cell { character: bytes[at], attribute: bytes[at + 1], cursor });
            }
        }

        if all {
            pixels.fill(0);
            self.cells.clear();
        }
        let columns = style.columns as usize;
        let mut run: Option<Rect> = None;
        for row in 0..style.rows as usize {
            let new = &cells[row * columns..][..columns];
            let old = self.cells.get(row * columns..).unwrap_or_default();
            let differs = |&column: &usize| old.get(column) != Some(&new[column]);
            let mut changed = (0..columns).filter(differs).peekable();
            let Some(&first) = changed.peek() else {
                damage.extend(run.take());
                continue;
            };
            let mut last = first;
            for column in changed {
                self.draw_cell(style, new[column], column as u32, row as u32, pixels);
                last = column;
            }
            let (x, height) = (style.mode.width / style.columns, style.cell_height * style.repeat);
            let rect =
                Rect { x: x * first as u32, y: height * row as u32, width: x * (last - first + 1) as u32, height };
            run = Some(run.unwrap_or_default().union(rect));
        }
        damage.extend(run);
        if all {
            damage.clear();
            damage.push(Rect::full(style.mode));
            self.style = Some(style.clone());
        }
        self.cells = cells;
    }

    fn draw_cell(&self, style: &Style, cell: Cell, column: u32, row: u32, pixels: &mut [u8]) {
        let Cell { character, attribute, cursor } = cell;
        let font = &self.fonts[usize::from(attribute >> 3 & 1) * FONT_SIZE..];
        let glyph = &font[usize::from(character) * 32..][..32];
        let ink = style.palette[usize::from(attribute & 15)];
        let paper = style.palette[usize::from(attribute >> 4 & if style.blink { 7 } else { 15 })];
        let joined = style.join_lines && (0xc0..=0xdf).contains(&character);
        let dot_width = if style.wide { 2 } else { 1 };
        let stride = style.mode.width as usize * 4;
        let left = (column * style.cell_width * dot_width) as usize * 4;
        for line in 0..style.cell_height {
            let on_cursor = cursor && style.cursor_lines.is_some_and(|(start, end)| (start..=end).contains(&line));
            let underlined = attribute & 7 == 1 && line == style.underline;
            let bits = u32::from(glyph[line as usize]);
            // The dots from the highest of nine bits on.
            let dots = if on_cursor || underlined { 0x1ff } else { bits << 1 | u32::from(joined) & bits };
            for repeat in 0..style.repeat {
                let y = ((row * style.cell_height + line) * style.repeat + repeat) as usize;
                let target = &mut pixels[y * stride + left..][..(style.cell_width * dot_width) as usize * 4];
                for (x, pixel) in target.chunks_exact_mut(4).enumerate() {
                    let color = if dots >> (8 - x as u32 / dot_width) & 1 != 0 { ink } else { paper };
                    pixel.copy_from_slice(&color.to_le_bytes());
                }
            }
        }
    }
}

//! The demo's panels of text: the machine, the self-test, what is typed and where the pointer is.

use super::canvas::{Area, Canvas, Colour};
use super::scene::{Layout, palette};
use super::{font, keys};
use crate::machine::Machine;
use crate::report::Summary;
use crate::text::Text;
use crate::{text, time};
use core::arch::x86_64::__cpuid;
use core::fmt::Write as _;

/// Units between lines.
const LINE: i32 = 22;
/// Keys that are remembered.
const KEYS: usize = 2;
/// Characters that are remembered.
const TYPED: usize = 200;

/// The part of a panel below its title.
fn inside(layout: &Layout, panel: Area) -> Area {
    let area = panel.inset(layout.units(14));
    Area { top: area.top + layout.units(LINE + 2), ..area }
}

fn line(layout: &Layout, area: Area, number: i32) -> Area {
    let top = area.top + layout.units(LINE) * number;
    Area { top, bottom: (top + layout.units(LINE)).min(area.bottom + layout.units(8)), ..area }
}

/// Facts about the machine, once for each picture.
pub fn machine(canvas: &Canvas, layout: &Layout, machine: &Machine, display: &str, input: &str) {
    let area = inside(layout, layout.machine);
    let processor = brand();
    let rows = [
        ("CPUs", text!("{} x {}", machine.cpus, processor.as_str().trim())),
        ("Memory", text!("{} MiB", machine.map.ram_bytes().div_ceil(1 << 20))),
        ("Display", text!("{display}, {}x{}", canvas.width, canvas.height)),
        ("Input", text!("{input}")),
    ];
    for (number, (name, value)) in rows.iter().enumerate() {
        let row = line(layout, area, number as i32);
        canvas.text(row, row.left, row.top, layout.scale, palette::DIM, name);
        fit(canvas, layout, Area { left: row.left + layout.units(84), ..row }, palette::TEXT, value.as_str());
    }
}

/// Draws text into an area; what does not fit ends in two dots.
fn fit(canvas: &Canvas, layout: &Layout, area: Area, colour: Colour, text: &str) {
    let columns = (area.width() / layout.units(font::ADVANCE as i32)).max(2) as usize;
    let shown = match text.char_indices().nth(columns) {
        None => text!("{text}"),
        Some(_) => {
            let end = text.char_indices().nth(columns - 2).map_or(0, |(index, _)| index);
            text!("{}..", &text[..end])
        }
    };
    canvas.text(area, area.left, area.top, layout.scale, colour, shown.as_str());
}

/// The processor's name, from CPUID.
fn brand() -> Text {
    let mut name = Text::new();
    if __cpuid(0x8000_0000).eax < 0x8000_0004 {
        let _ = write!(name, "x86-64");
        return name;
    }
    for leaf in 0x8000_0002..=0x8000_0004 {
        let leaf = __cpuid(leaf);
        for register in [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] {
            for byte in register.to_le_bytes().into_iter().filter(|byte| (0x20..0x7f).contains(byte)) {
                // Text never fails.
                let _ = name.write_char(char::from(byte));
            }
        }
    }
    // Some hosts leave it empty.
    if name.as_str().trim().is_empty() { text!("x86-64") } else { name }
}

/// Frames so far and in a second: the line below the facts.
pub fn frames(canvas: &Canvas, base: &Canvas, layout: &Layout, frame: u32, rate: u32) -> Area {
    let row = line(layout, inside(layout, layout.machine), 4);
    canvas.restore(base, row);
    canvas.text(row, row.left, row.top, layout.scale, palette::DIM, "Frame");
    let value = text!("{frame}, {rate} a second");
    canvas.text(row, row.left + layout.units(84), row.top, layout.scale, palette::TEXT, value.as_str());
    row
}

/// One line for each test.
pub fn results(canvas: &Canvas, layout: &Layout, summary: &Summary) {
    let area = inside(layout, layout.results);
    let (ok, failed, absent) = summary.counts();
    let verdict = text!("{ok} passed, {failed} failed, {absent} absent");
    let colour = if failed == 0 { palette::GREEN } else { palette::RED };
    let left = area.left + layout.units(104);
    canvas.text(layout.results, left, layout.results.top + layout.units(10), layout.scale, colour, verdict.as_str());
    let room = area.height() / layout.units(LINE);
    for (number, result) in summary.lines().iter().take(room.max(0) as usize).enumerate() {
        let row = line(layout, area, number as i32);
        let (mark, colour) = match result.ok {
            Some(true) => ("\u{2713}", palette::GREEN),
            Some(false) => ("\u{2717}", palette::RED),
            None => ("\u{2022}", palette::DIM),
        };
        canvas.text(row, row.left, row.top, layout.scale, colour, mark);
        let name = if result.ok.is_some() { palette::TEXT } else { palette::DIM };
        canvas.text(row, row.left + layout.units(20), row.top, layout.scale, name, result.name.as_str());
        let details = if result.ok.is_none() { "not there" } else { result.details.as_str() };
        fit(canvas, layout, Area { left: row.left + layout.units(128), ..row }, palette::DIM, details);
    }
}

/// What is typed.
pub struct Typing {
    typed: Text,
    shift: bool,
    last: [Option<(u16, u32)>; KEYS],
}

impl Typing {
    /// Nothing yet.
    pub const fn new() -> Typing {
        Typing { typed: Text::new(), shift: false, last: [None; KEYS] }
    }

    /// A key went down, up, or repeats.
    pub fn key(&mut self, code: u16, value: u32) {
        self.last.copy_within(..KEYS - 1, 1);
        self.last[0] = Some((code, value));
        if keys::SHIFT.contains(&code) {
            self.shift = value != 0;
        }
        if value == 0 {
            return;
        }
        if code == keys::BACKSPACE {
            self.typed.pop();
        } else if keys::ENTER.contains(&code) {
            self.typed = Text::new();
        } else if let Some(character) = keys::character(code, self.shift) {
            if self.typed.as_str().len() >= TYPED {
                self.typed.drop_front(1);
            }
            // Text never fails.
            let _ = self.typed.write_char(character);
        }
    }

    /// Draws the panel; returns what was drawn over.
    pub fn draw(&self, canvas: &Canvas, base: &Canvas, layout: &Layout) -> Area {
        let area = inside(layout, layout.keyboard);
        canvas.restore(base, area);
        let columns = (area.width() / layout.units(9) - 2).max(1) as usize;
        let typed = self.typed.as_str();
        // Only ASCII is typed, so bytes are characters.
        let shown = &typed[typed.len().saturating_sub(columns)..];
        let row = line(layout, area, 0);
        if typed.is_empty() {
            canvas.text(row, row.left, row.top, layout.scale, palette::DIM, "Type something: it shows here");
        }
        let end = canvas.text(row, row.left, row.top, layout.scale, palette::TEXT, shown);
        if !typed.is_empty() {
            let caret = Area { left: end + layout.units(2), right: end + layout.units(4), ..row };
            canvas.fill(caret.cut(row), palette::ORANGE);
        }
        for (number, (code, value)) in self.last.iter().flatten().enumerate() {
            let row = line(layout, area, 1 + number as i32);
            let action = ["up", "down", "repeats"][(*value as usize).min(2)];
            let name = match (keys::name(*code), keys::character(*code, false)) {
                (Some(name), _) => text!("{name}"),
                (None, Some(character)) => text!("{}", character.to_ascii_uppercase()),
                (None, None) => text!("key"),
            };
            let colour = if number == 0 { palette::TEXT } else { palette::DIM };
            let entry = text!("{name} (code {code}) {action}");
            canvas.text(row, row.left, row.top, layout.scale, colour, entry.as_str());
        }
        area
    }
}

/// Draws the pointer's panel; returns what was drawn over.
pub fn pointer(
    canvas: &Canvas,
    base: &Canvas,
    layout: &Layout,
    at: Option<(i32, i32)>,
    buttons: u8,
    wheel: i32,
) -> Area {
    let area = inside(layout, layout.pointer);
    canvas.restore(base, area);
    let row = line(layout, area, 0);
    let place = match at {
        Some((x, y)) => text!("x {x}  y {y}"),
        None => text!("Move it over the screen"),
    };
    let colour = if at.is_some() { palette::TEXT } else { palette::DIM };
    canvas.text(row, row.left, row.top, layout.scale, colour, place.as_str());
    let row = line(layout, area, 1);
    let turned = text!("wheel {wheel}");
    canvas.text(row, row.left, row.top, layout.scale, palette::DIM, turned.as_str());
    let row = line(layout, area, 2);
    for (bit, name) in ["left", "middle", "right"].into_iter().enumerate() {
        // evdev counts left, right, middle.
        let pressed = buttons & [1, 4, 2][bit] != 0;
        let width = layout.units(66);
        let pill = Area::new(row.left + bit as i32 * (width + layout.units(8)), row.top, width, layout.units(22));
        let (fill, amount, ink) = if pressed { (palette::ORANGE, 255, 0x2b1400) } else { (0xffffff, 26, palette::DIM) };
        canvas.panel(pill, layout.units(7), fill, amount);
        let text = pill.left + (width - layout.units(9) * name.len() as i32) / 2;
        canvas.text(pill, text, pill.top + layout.units(1), layout.scale, ink, name);
    }
    area
}

/// Frames in the last second.
pub struct Rate {
    since: u64,
    frames: u32,
    /// As measured last.
    pub value: u32,
}

impl Rate {
    /// From now on.
    pub fn new() -> Rate {
        Rate { since: time::micros(), frames: 0, value: 0 }
    }

    /// Counts a frame.
    pub fn frame(&mut self) {
        self.frames += 1;
        let passed = time::micros() - self.since;
        if passed >= 1_000_000 {
            self.value = (u64::from(self.frames) * 1_000_000 / passed) as u32;
            self.since += passed;
            self.frames = 0;
        }
    }
}

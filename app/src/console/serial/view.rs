//! The terminal as egui draws it: its characters in cells of whole pixels, its cursor, and selecting with the pointer.

use alacritty_terminal::grid::Indexed;
use alacritty_terminal::term::cell::{Cell, Flags};
use alacritty_terminal::vte::ansi::{Color, CursorShape, NamedColor};
use egui::emath::GuiRounding as _;
use egui::text::LayoutJob;
use egui::text_selection::accesskit_text::update_accesskit_for_text_widget;
use egui::{Color32, CursorIcon, FontId, Id, Pos2, Rect, Response, Sense, Stroke, StrokeKind, TextFormat, Ui};
use egui::{WidgetInfo, WidgetType, accesskit, pos2, vec2};

use super::terminal::{MIN_SIZE, Place, Select, Size, Terminal};
use crate::theme::tokens::{self, DARK};
use crate::theme::{UiExt, size};

/// What the terminal is called.
const NAME: &str = "Serial terminal";
/// The smallest characters, points: below, what does not fit is cut off.
const MIN_TEXT: f32 = 5.0;
/// How far a point's size is tried smaller until the smallest grid fits.
const STEP: f32 = 0.5;

/// The terminal's identity in egui: what has the keyboard when nothing of the toolbar has.
pub fn id() -> Id {
    Id::new("serial terminal")
}

/// Where the characters are.
struct Cells {
    font: FontId,
    /// Upper left corner of the first.
    origin: Pos2,
    width: f32,
    height: f32,
    /// What is added after each glyph, so that it is as wide as a cell.
    spacing: f32,
    pixel: f32,
}

impl Cells {
    /// Cells of the usual size, or as small as it takes for the smallest grid to fit.
    fn new(ui: &Ui, area: Rect) -> Cells {
        let pixel = 1.0 / ui.ctx().pixels_per_point();
        let mut points = size::TEXT;
        loop {
            let font = FontId::monospace(points);
            let (glyph, row) = ui.fonts_mut(|fonts| (fonts.glyph_width(&font, 'M'), fonts.row_height(&font)));
            let whole = |length: f32| ((length / pixel).round() * pixel).max(pixel);
            let (width, height) = (whole(glyph), whole(row));
            let fits =
                width * MIN_SIZE.columns as f32 <= area.width() && height * MIN_SIZE.lines as f32 <= area.height();
            if fits || points <= MIN_TEXT {
                let origin = area.min.round_to_pixels(1.0 / pixel);
                return Cells { font, origin, width, height, spacing: width - glyph, pixel };
            }
            points -= STEP;
        }
    }

    /// The grid that fits.
    fn room(&self, area: Rect) -> Size {
        Size { columns: (area.width() / self.width) as usize, lines: (area.height() / self.height) as usize }
    }

    fn corner(&self, column: usize, line: usize) -> Pos2 {
        self.origin + vec2(column as f32 * self.width, line as f32 * self.height)
    }

    /// Some cells of a line.
    fn rect(&self, column: usize, line: usize, columns: usize) -> Rect {
        Rect::from_min_size(self.corner(column, line), vec2(columns as f32 * self.width, self.height))
    }

    fn place(&self, at: Pos2) -> Place {
        let from = at - self.origin;
        Place { line: (from.y / self.height).max(0.0) as usize, column: from.x / self.width }
    }
}

/// How a character looks.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Look {
    text: Color32,
    behind: Color32,
    bold: bool,
    italic: bool,
    underline: bool,
    strike: bool,
    hidden: bool,
}

impl Look {
    fn of(cell: &Cell, selected: bool) -> Look {
        let has = |flags| cell.flags.intersects(flags);
        let bold = has(Flags::BOLD);
        // As on a PC's own console: bold of the eight dark colours is bright.
        let text = match cell.fg {
            Color::Named(named) if bold => Color::Named(named.to_bright()),
            Color::Indexed(n @ 0..=7) if bold => Color::Indexed(n + 8),
            color => color,
        };
        let (mut text, mut behind) = (color(text), color(cell.bg));
        if has(Flags::DIM) {
            text = behind.lerp_to_gamma(text, DIM);
        }
        if has(Flags::INVERSE) {
            std::mem::swap(&mut text, &mut behind);
        }
        if selected {
            behind = DARK.selection;
        }
        Look {
            text,
            behind,
            bold,
            italic: has(Flags::ITALIC),
            underline: has(Flags::ALL_UNDERLINES),
            strike: has(Flags::STRIKEOUT),
            hidden: has(Flags::HIDDEN),
        }
    }
}

/// How much of its colour dim text has.
const DIM: f32 = 0.6;

/// A colour as a guest names it.
fn color(color: Color) -> Color32 {
    match color {
        Color::Spec(rgb) => Color32::from_rgb(rgb.r, rgb.g, rgb.b),
        Color::Indexed(n) => indexed(n),
        Color::Named(NamedColor::Background) => DARK.screen,
        // The first are numbered as the 16 colours are; the others are the text's own.
        Color::Named(named) => tokens::ANSI.get(named as usize).copied().unwrap_or(DARK.text),
    }
}

/// xterm's 256 colours: the 16 of the theme, a cube of 6 × 6 × 6, 24 greys.
fn indexed(n: u8) -> Color32 {
    match n {
        0..=15 => tokens::ANSI[usize::from(n)],
        16..=231 => {
            let level = |n: u8| if n == 0 { 0 } else { 55 + 40 * n };
            let n = n - 16;
            Color32::from_rgb(level(n / 36), level(n / 6 % 6), level(n % 6))
        }
        232..=255 => Color32::from_gray(8 + 10 * (n - 232)),
    }
}

/// What a person asked for in the terminal's menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The selected text, for the clipboard.
    Copy,
    /// The clipboard's text, for the guest.
    Paste,
}

/// Draws the terminal over all of `area`, as large a grid as there is room for.
pub fn show(ui: &mut Ui, area: Rect, terminal: &mut Terminal) -> Option<Wish> {
    let inner = area.shrink(size::GAP_SMALL);
    let cells = Cells::new(ui, inner);
    terminal.resize(cells.room(inner));
    let response = ui.interact(inner, id(), Sense::click_and_drag()).on_hover_cursor(CursorIcon::Text);
    if ui.memory(|m| m.focused().is_none()) {
        response.request_focus();
    }
    select(ui, &response, &cells, terminal);
    let ui_clip = ui.clip_rect();
    ui.set_clip_rect(area);
    ui.painter().rect_filled(area, 0.0, DARK.screen);
    let awake = response.has_focus() && ui.input(|input| input.focused);
    paint(ui, &cells, terminal, awake);
    scroll_bar(ui, area, terminal);
    ui.set_clip_rect(ui_clip);
    tell(ui, &response, &cells, terminal);
    menu(&response, terminal)
}

/// Selects what the pointer is drawn over; a word with two clicks, a line with three.
fn select(ui: &Ui, response: &Response, cells: &Cells, terminal: &mut Terminal) {
    let pointer = response.interact_pointer_pos();
    let pressed = response.is_pointer_button_down_on() && ui.input(|input| input.pointer.primary_pressed());
    if response.triple_clicked() || response.double_clicked() {
        let kind = if response.triple_clicked() { Select::Lines } else { Select::Words };
        if let Some(at) = pointer {
            terminal.select(kind, cells.place(at));
        }
    } else if pressed && let Some(at) = pointer {
        if ui.input(|input| input.modifiers.shift) {
            terminal.extend_selection(cells.place(at));
        } else {
            terminal.select(Select::Characters, cells.place(at));
        }
    } else if response.dragged_by(egui::PointerButton::Primary)
        && let Some(at) = pointer
    {
        // Beyond the edges the text moves along.
        if at.y < response.rect.top() {
            terminal.scroll(1);
        } else if at.y >= response.rect.bottom() {
            terminal.scroll(-1);
        }
        terminal.extend_selection(cells.place(at));
    }
}

/// A piece of a line that looks the same all along.
struct Run {
    line: usize,
    column: usize,
    columns: usize,
    text: String,
    look: Look,
    /// Nothing is added to it.
    alone: bool,
}

fn paint(ui: &Ui, cells: &Cells, terminal: &Terminal, awake: bool) {
    let content = terminal.content();
    let line = |point: alacritty_terminal::index::Point| {
        usize::try_from(point.line.0 + content.display_offset as i32).unwrap_or(usize::MAX)
    };
    let cursor = content.cursor;
    let solid = awake && cursor.shape == CursorShape::Block;
    let mut runs: Vec<Run> = Vec::new();
    for indexed in content.display_iter {
        let Indexed { point, cell } = indexed;
        if cell.flags.intersects(Flags::WIDE_CHAR_SPACER | Flags::LEADING_WIDE_CHAR_SPACER) {
            continue;
        }
        let selected = content.selection.is_some_and(|range| range.contains(point));
        let mut look = Look::of(cell, selected);
        if solid && point == cursor.point {
            look = Look { text: DARK.screen, behind: DARK.text, ..look };
        }
        let columns = if cell.flags.contains(Flags::WIDE_CHAR) { 2 } else { 1 };
        // What another typeface lends is as wide as it likes: it stands alone, so that what follows is in its place.
        let odd = !cell.c.is_ascii() && {
            let width = ui.fonts_mut(|fonts| fonts.glyph_width(&cells.font, cell.c));
            (width + cells.spacing - cells.width).abs() > cells.pixel / 4.0
        };
        match runs.last_mut() {
            Some(run) if run.line == line(point) && run.look == look && !run.alone && !odd && columns == 1 => {
                run.text.push(cell.c);
                run.columns += 1;
            }
            _ => {
                let (line, column) = (line(point), point.column.0);
                runs.push(Run { line, column, columns, text: cell.c.into(), look, alone: odd || columns != 1 });
            }
        }
    }
    for run in runs.iter().filter(|run| run.look.behind != DARK.screen) {
        ui.painter().rect_filled(cells.rect(run.column, run.line, run.columns), 0.0, run.look.behind);
    }
    for run in &runs {
        glyphs(ui, cells, run);
    }
    if !solid && cursor.shape != CursorShape::Hidden {
        let rect = cells.rect(cursor.point.column.0, line(cursor.point), 1);
        let painter = ui.painter();
        match cursor.shape {
            CursorShape::Underline if awake => {
                painter.rect_filled(rect.with_min_y(rect.bottom() - 2.0 * cells.pixel), 0.0, DARK.text)
            }
            CursorShape::Beam if awake => {
                painter.rect_filled(rect.with_max_x(rect.left() + 2.0 * cells.pixel), 0.0, DARK.text)
            }
            _ => painter.rect_stroke(rect, 0.0, Stroke::new(size::LINE, DARK.text_muted), StrokeKind::Inside),
        };
    }
}

fn glyphs(ui: &Ui, cells: &Cells, run: &Run) {
    let look = run.look;
    let plain = !look.underline && !look.strike;
    if look.hidden || (plain && run.text.bytes().all(|byte| byte == b' ')) {
        return;
    }
    let line_of = |drawn: bool| if drawn { Stroke::new(size::LINE, look.text) } else { Stroke::NONE };
    let format = TextFormat {
        font_id: cells.font.clone(),
        extra_letter_spacing: cells.spacing,
        color: look.text,
        italics: look.italic,
        underline: line_of(look.underline),
        strikethrough: line_of(look.strike),
        ..TextFormat::default()
    };
    let mut job = LayoutJob::single_section(run.text.clone(), format);
    job.wrap.max_width = f32::INFINITY;
    let galley = ui.fonts_mut(|fonts| fonts.layout_job(job));
    let at = cells.corner(run.column, run.line);
    if look.bold {
        // There is one weight of the typeface: a second stroke beside the first makes it bold.
        ui.painter().galley(at + vec2(cells.pixel, 0.0), galley.clone(), look.text);
    }
    ui.painter().galley(at, galley, look.text);
}

/// Where in the scrollback the screen is, while it is scrolled back.
fn scroll_bar(ui: &Ui, area: Rect, terminal: &Terminal) {
    let (offset, history) = terminal.scrolled();
    if offset == 0 {
        return;
    }
    let lines = terminal.size().lines as f32;
    let all = history as f32 + lines;
    let length = (area.height() * lines / all).max(size::CONTROL);
    let top = area.top() + (area.height() - length) * (1.0 - offset as f32 / history as f32);
    let bar = Rect::from_min_size(pos2(area.right() - size::METER, top), vec2(size::METER, length));
    ui.painter().rect_filled(bar, size::METER / 2.0, DARK.text_muted);
}

/// Tells a screen reader what is on the screen.
fn tell(ui: &Ui, response: &Response, cells: &Cells, terminal: &Terminal) {
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Other, true, NAME));
    if ui.ctx().accesskit_node_builder(response.id, |_| ()).is_none() {
        return;
    }
    let text = terminal.text().join("\n");
    let galley = ui.fonts_mut(|fonts| fonts.layout_no_wrap(text, cells.font.clone(), DARK.text));
    let place = egui::emath::TSTransform::from_translation(cells.origin.to_vec2());
    update_accesskit_for_text_widget(ui.ctx(), response.id, None, accesskit::Role::Terminal, place, &galley);
}

fn menu(response: &Response, terminal: &mut Terminal) -> Option<Wish> {
    let mut wish = None;
    response.context_menu(|ui| {
        ui.spacing_mut().item_spacing.y = 0.0;
        let nothing = terminal.selected().is_none().then_some("Nothing is selected");
        if ui.menu_item(egui_phosphor::regular::COPY, "Copy", "Ctrl+Shift+C", nothing).clicked() {
            wish = Some(Wish::Copy);
        }
        if ui.menu_item(egui_phosphor::regular::CLIPBOARD_TEXT, "Paste", "Ctrl+Shift+V", None).clicked() {
            wish = Some(Wish::Paste);
        }
        if ui.menu_item(egui_phosphor::regular::SELECTION_ALL, "Select all", "", None).clicked() {
            terminal.select_all();
        }
    });
    wish
}

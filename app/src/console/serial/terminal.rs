//! The terminal: what a guest's serial output makes of a grid of characters, its scrollback, and what of it is selected.
//! Sequences are those of xterm (ECMA-48 and DEC's), as alacritty_terminal understands them.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use alacritty_terminal::Term;
use alacritty_terminal::event::{Event, EventListener};
use alacritty_terminal::grid::{Dimensions, Scroll};
use alacritty_terminal::index::{Column, Line, Point, Side};
use alacritty_terminal::selection::{Selection, SelectionType};
use alacritty_terminal::term::cell::Flags;
use alacritty_terminal::term::{Config, Osc52, RenderableContent, TermMode};
use alacritty_terminal::vte::ansi::{Processor, Timeout};

use super::filter::Filter;

/// The smallest grid: what a guest that is told nothing takes a terminal for, and GRUB's and firmware's lines.
pub const MIN_SIZE: Size = Size { columns: 80, lines: 25 };
/// The largest, so that no monitor makes the scrollback too large.
const MAX_SIZE: Size = Size { columns: 500, lines: 200 };
/// Lines that are kept when they have left the screen.
const SCROLLBACK: usize = 5000;

/// The size of a grid, characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub columns: usize,
    /// Lines on the screen.
    pub lines: usize,
}

impl Dimensions for Size {
    fn total_lines(&self) -> usize {
        self.lines
    }

    fn screen_lines(&self) -> usize {
        self.lines
    }

    fn columns(&self) -> usize {
        self.columns
    }
}

/// A place on the screen as it is scrolled now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// The line on the screen, from 0.
    pub line: usize,
    /// How many characters it is from the left edge; the fraction says in which half of the character.
    pub column: f32,
}

/// What a selection grows by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// Characters.
    Characters,
    /// Words.
    Words,
    /// Lines.
    Lines,
}

/// What the terminal itself has to say to the guest.
struct Replies(Sender<String>);

impl EventListener for Replies {
    fn send_event(&self, event: Event) {
        if let Event::PtyWrite(text) = event {
            // The other end lives as long as this one.
            let _ = self.0.send(text);
        }
    }
}

/// Shows synchronized updates (DEC mode 2026) as they come: a guest that never ends one must not freeze the screen.
#[derive(Default)]
struct AtOnce;

impl Timeout for AtOnce {
    fn set_timeout(&mut self, _duration: Duration) {}

    fn clear_timeout(&mut self) {}

    fn pending_timeout(&self) -> bool {
        false
    }
}

/// A terminal.
pub struct Terminal {
    term: Term<Replies>,
    parser: Processor<AtOnce>,
    filter: Filter,
    replies: Receiver<String>,
}

impl Default for Terminal {
    fn default() -> Terminal {
        let (sender, replies) = mpsc::channel();
        let config = Config { scrolling_history: SCROLLBACK, osc52: Osc52::Disabled, ..Config::default() };
        Terminal {
            term: Term::new(config, &MIN_SIZE, Replies(sender)),
            parser: Processor::new(),
            filter: Filter::default(),
            replies,
        }
    }
}

impl Terminal {
    /// Takes in what the guest sent. Gives what the terminal answers to the questions in it (DA, DSR).
    pub fn feed(&mut self, bytes: &[u8]) -> String {
        let bytes = self.filter.pass(bytes);
        self.parser.advance(&mut self.term, bytes.as_bytes());
        self.mend();
        self.replies.try_iter().collect()
    }

    /// The grid's size.
    pub fn size(&self) -> Size {
        Size { columns: self.term.columns(), lines: self.term.screen_lines() }
    }

    /// Makes the grid as large as there is room, within bounds.
    pub fn resize(&mut self, room: Size) {
        let columns = room.columns.clamp(MIN_SIZE.columns, MAX_SIZE.columns);
        let lines = room.lines.clamp(MIN_SIZE.lines, MAX_SIZE.lines);
        self.term.resize(Size { columns, lines });
        self.mend();
    }

    /// Where a guest deleted the left half of a wide character in the first column, the emulator would look for it outside
    /// of the grid: for the cursor, and for what is selected.
    fn mend(&mut self) {
        let cursor = self.term.grid().cursor.point.line;
        let lines = match self.term.selection {
            Some(_) => self.term.topmost_line()..=self.term.bottommost_line(),
            None => cursor..=cursor,
        };
        for line in lines.start().0..=lines.end().0 {
            self.term.grid_mut()[Line(line)][Column(0)].flags.remove(Flags::WIDE_CHAR_SPACER);
        }
    }

    /// The modes that the guest set.
    pub fn mode(&self) -> TermMode {
        *self.term.mode()
    }

    /// What there is to draw.
    pub fn content(&self) -> RenderableContent<'_> {
        self.term.renderable_content()
    }

    /// Scrolls by so many lines, upwards into what was if positive.
    pub fn scroll(&mut self, lines: i32) {
        self.term.scroll_display(Scroll::Delta(lines));
    }

    /// Scrolls by a screen, upwards or downwards.
    pub fn scroll_page(&mut self, up: bool) {
        self.term.scroll_display(if up { Scroll::PageUp } else { Scroll::PageDown });
    }

    /// Scrolls to the first line kept, or to where the guest writes.
    pub fn scroll_to_end(&mut self, top: bool) {
        self.term.scroll_display(if top { Scroll::Top } else { Scroll::Bottom });
    }

    /// How far it is scrolled back, and how many lines there are above the screen.
    pub fn scrolled(&self) -> (usize, usize) {
        (self.term.grid().display_offset(), self.term.grid().history_size())
    }

    fn point(&self, place: Place) -> (Point, Side) {
        let size = self.size();
        let line = place.line.min(size.lines - 1) as i32 - self.scrolled().0 as i32;
        let column = place.column.clamp(0.0, size.columns as f32 - 0.01);
        let side = if column.fract() < 0.5 { Side::Left } else { Side::Right };
        (Point::new(Line(line), Column(column as usize)), side)
    }

    /// Begins a selection.
    pub fn select(&mut self, kind: Select, place: Place) {
        let (point, side) = self.point(place);
        let kind = match kind {
            Select::Characters => SelectionType::Simple,
            Select::Words => SelectionType::Semantic,
            Select::Lines => SelectionType::Lines,
        };
        self.term.selection = Some(Selection::new(kind, point, side));
        self.mend();
    }

    /// Moves the selection's end.
    pub fn extend_selection(&mut self, place: Place) {
        let (point, side) = self.point(place);
        if let Some(selection) = &mut self.term.selection {
            selection.update(point, side);
        }
    }

    /// Selects all there is, the scrollback too.
    pub fn select_all(&mut self) {
        let (first, last) = (self.term.topmost_line(), self.term.bottommost_line());
        let mut selection = Selection::new(SelectionType::Lines, Point::new(first, Column(0)), Side::Left);
        selection.update(Point::new(last, self.term.last_column()), Side::Right);
        self.term.selection = Some(selection);
        self.mend();
    }

    /// Selects nothing.
    pub fn clear_selection(&mut self) {
        self.term.selection = None;
    }

    /// The selected text.
    pub fn selected(&self) -> Option<String> {
        self.term.selection_to_string().filter(|text| !text.is_empty())
    }

    /// The text on the screen as it is scrolled now, a line each.
    pub fn text(&self) -> Vec<String> {
        let mut lines = vec![String::new(); self.size().lines];
        let content = self.content();
        for cell in content.display_iter {
            let line = usize::try_from(cell.point.line.0 + content.display_offset as i32).ok();
            if let Some(line) = line.and_then(|line| lines.get_mut(line)) {
                line.push(cell.c);
            }
        }
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal(output: &[u8]) -> Terminal {
        let mut terminal = Terminal::default();
        terminal.feed(output);
        terminal
    }

    fn lines(terminal: &Terminal) -> String {
        terminal.text().join("\n").trim_end().to_owned()
    }

    #[test]
    fn the_grid_is_never_smaller_than_80_by_25() {
        let mut terminal = Terminal::default();
        assert_eq!(terminal.size(), MIN_SIZE);
        terminal.resize(Size { columns: 10, lines: 3 });
        assert_eq!(terminal.size(), MIN_SIZE);
        terminal.resize(Size { columns: 132, lines: 43 });
        assert_eq!(terminal.size(), Size { columns: 132, lines: 43 });
        terminal.resize(Size { columns: 9999, lines: 9999 });
        assert_eq!(terminal.size(), MAX_SIZE);
    }

    #[test]
    fn what_left_the_screen_is_scrolled_back_to_and_bounded() {
        let mut terminal = Terminal::default();
        for n in 0..SCROLLBACK + 100 {
            terminal.feed(format!("line {n}\r\n").as_bytes());
        }
        assert_eq!(terminal.scrolled(), (0, SCROLLBACK));
        terminal.scroll(3);
        terminal.feed(b"more\r\n");
        assert_eq!(terminal.scrolled().0, 4, "what is read stays in place");
        terminal.scroll_to_end(true);
        assert_eq!(terminal.text()[0], "line 77");
        terminal.scroll_to_end(false);
        assert_eq!(terminal.scrolled().0, 0);
    }

    #[test]
    fn the_alternate_screen_gives_the_first_one_back() {
        let mut terminal = terminal(b"shell\x1b[?1049h\x1b[H\x1b[2Jeditor");
        assert_eq!(lines(&terminal), "editor");
        terminal.feed(b"\x1b[?1049l");
        assert_eq!(lines(&terminal), "shell");
    }

    #[test]
    fn lines_of_the_dec_character_set_are_lines() {
        assert_eq!(lines(&terminal(b"\x1b(0lqk\x1b(B")), "\u{250c}\u{2500}\u{2510}");
    }

    #[test]
    fn questions_are_answered() {
        let mut terminal = Terminal::default();
        assert_eq!(terminal.feed(b"\x1b[3;5H\x1b[6n"), "\x1b[3;5R");
        assert_eq!(terminal.feed(b"\x1b[18t"), "\x1b[8;25;80t");
        assert_eq!(terminal.feed(b"plain"), "");
    }

    #[test]
    fn a_selection_gives_its_text_and_follows_it() {
        let mut terminal = terminal(b"one two\r\nthree\r\n");
        terminal.select(Select::Characters, Place { line: 0, column: 4.0 });
        terminal.extend_selection(Place { line: 1, column: 4.9 });
        assert_eq!(terminal.selected().as_deref(), Some("two\nthree"));
        for _ in 0..30 {
            terminal.feed(b"\r\n");
        }
        assert_eq!(terminal.selected().as_deref(), Some("two\nthree"));
        terminal.scroll_to_end(true);
        terminal.select(Select::Words, Place { line: 0, column: 5.2 });
        assert_eq!(terminal.selected().as_deref(), Some("two"));
        terminal.select(Select::Lines, Place { line: 1, column: 70.0 });
        assert_eq!(terminal.selected().as_deref(), Some("three\n"));
        terminal.clear_selection();
        assert_eq!(terminal.selected(), None);
    }

    #[test]
    fn all_that_is_there_can_be_selected() {
        let mut terminal = Terminal::default();
        for n in 0..60 {
            terminal.feed(format!("{n}\r\n").as_bytes());
        }
        terminal.select_all();
        let text = terminal.selected().unwrap_or_default();
        assert!(text.starts_with("0\n1\n") && text.contains("\n59\n"), "{text:?}");
    }

    #[test]
    fn places_outside_of_the_grid_are_its_edges() {
        let mut terminal = terminal(b"word");
        terminal.select(Select::Characters, Place { line: 0, column: -5.0 });
        terminal.extend_selection(Place { line: 999, column: 999.0 });
        assert_eq!(terminal.selected().map(|text| text.trim_end().to_owned()).as_deref(), Some("word"));
    }

    #[test]
    fn half_a_wide_character_under_the_cursor_is_nothing_to_fall_over() {
        let terminal = terminal("\u{6f22}\x1b[1`\x1b[1P".as_bytes());
        assert_eq!(terminal.content().cursor.point.column.0, 0);
    }

    #[test]
    fn an_update_that_never_ends_is_shown() {
        assert_eq!(lines(&terminal(b"\x1b[?2026hnow")), "now");
    }

    proptest::proptest! {
        #[test]
        fn any_output_and_any_size_leave_a_terminal(
            pieces in proptest::collection::vec(
                proptest::prop_oneof![
                    proptest::collection::vec(proptest::num::u8::ANY, 0..200),
                    "(\x1b\\[[?>]?[0-9;]{0,12}[@-~]|[a-z\r\n\t]|\u{6f22}){0,40}".prop_map(String::into_bytes),
                ],
                0..12,
            ),
            sizes in proptest::collection::vec((0usize..600, 0usize..300), 12),
        ) {
            let mut terminal = Terminal::default();
            for (piece, &(columns, lines)) in pieces.iter().zip(&sizes) {
                terminal.feed(piece);
                terminal.select(Select::Words, Place { line: lines, column: columns as f32 });
                terminal.resize(Size { columns, lines });
                terminal.scroll(lines as i32 - 100);
                terminal.extend_selection(Place { line: columns, column: lines as f32 });
                let _ = (terminal.selected(), terminal.text());
            }
        }
    }

    use proptest::strategy::Strategy as _;
}

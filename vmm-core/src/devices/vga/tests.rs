//! The whole face, driven as a guest does: through ports, BARs, the window, and memory that is shown as RAM.

use super::dispi::ENABLE_LINEAR;
use super::refresh::{Canvas, Refresh};
use super::*;
use crate::backend::display::{Cursor, DisplaySink, Frame, Rect, Screen};
use crate::backend::monitor::Painter;
use crate::base::{Executor, InlineExecutor};
use crate::testkit::FakeSlots;

const BAR: u64 = 0xd000_0000;
const TEXT: u64 = 0xb_8000;

/// A machine with just a VGA.
struct Machine {
    vga: Arc<Vga>,
    slots: FakeSlots,
    memory: Bus,
    ports: Bus,
    screen: Screen,
    canvas: Canvas,
}

impl Machine {
    fn new() -> Machine {
        let slots = FakeSlots::default();
        let screen = Screen::new(|| ());
        let monitor = Monitor::new(screen.sink(), Mode { width: 1280, height: 800 }).unwrap();
        let vga = Vga::new(Arc::new(slots.clone()), monitor).unwrap();
        let (memory, ports) = (Bus::default(), Bus::default());
        assert!(vga.attach(&memory, &ports));
        vga.bar_moved(VIDEO_BAR, Some(BAR));
        Machine { vga, slots, memory, ports, screen, canvas: Canvas::default() }
    }

    fn out(&self, port: u16, value: u8) {
        self.ports.write(u64::from(port), &[value]);
    }

    fn out_word(&self, port: u16, value: u16) {
        self.ports.write(u64::from(port), &value.to_le_bytes());
    }

    fn dispi(&self, index: u16, value: u16) {
        self.out_word(0x1ce, index);
        self.out_word(0x1cf, value);
    }

    /// An access of the CPU's: RAM where a slot shows some, else the bus.
    fn poke(&self, address: u64, data: &[u8]) {
        if !self.slots.write(address, data) {
            self.memory.write(address, data);
        }
    }

    fn peek(&self, address: u64) -> u8 {
        let mut byte = [0];
        self.memory.read(address, &mut byte);
        byte[0]
    }

    /// Programs a mode: miscellaneous, sequencer, CRT controller, graphics, attributes (the tables of IBM's BIOS).
    fn set_mode(&self, misc: u8, seq: &[u8], crtc: &[u8], gfx: &[u8], attr: &[u8]) {
        self.out(0x3c2, misc);
        for (i, &value) in seq.iter().enumerate() {
            self.out_word(0x3c4, u16::from(value) << 8 | i as u16);
        }
        self.out_word(0x3d4, 0x0011);
        for (i, &value) in crtc.iter().enumerate() {
            self.out_word(0x3d4, u16::from(value) << 8 | i as u16);
        }
        for (i, &value) in gfx.iter().enumerate() {
            self.out_word(0x3ce, u16::from(value) << 8 | i as u16);
        }
        self.ports.read(0x3da, &mut [0]);
        for (i, &value) in attr.iter().enumerate() {
            self.out(0x3c0, i as u8);
            self.out(0x3c0, value);
        }
        self.out(0x3c0, 0x20);
        // 64 colours, two bits each of red, green and blue, as the attributes of EGA spell them.
        self.out(0x3c8, 0);
        for color in 0..64u8 {
            for high in [2, 1, 0] {
                let (strong, weak) = (color >> high & 1, color >> (high + 3) & 1);
                self.out(0x3c9, strong * 0x2a + weak * 0x15);
            }
        }
    }

    fn text_mode(&self) {
        self.set_mode(0x67, &[3, 0, 3, 0, 2], &TEXT_CRTC, &[0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff], &TEXT_ATTR);
    }

    /// Loads a font as a BIOS does: character c has the bits c in all its lines.
    fn load_font(&self) {
        for (index, value) in [(0, 1), (2, 4), (4, 7), (0, 3)] {
            self.out_word(0x3c4, value << 8 | index);
        }
        for (index, value) in [(4, 2), (5, 0), (6, 4)] {
            self.out_word(0x3ce, value << 8 | index);
        }
        for character in 0..256 {
            for line in 0..16 {
                self.poke(0xa_0000 + character * 32 + line, &[character as u8]);
            }
        }
        for (index, value) in [(0, 1), (2, 3), (4, 3), (0, 3)] {
            self.out_word(0x3c4, value << 8 | index);
        }
        for (index, value) in [(4, 0), (5, 0x10), (6, 0x0e)] {
            self.out_word(0x3ce, value << 8 | index);
        }
    }

    fn linear(&self, width: u16, height: u16, bpp: u16) {
        for (index, value) in [(4, 0), (1, width), (2, height), (3, bpp), (4, ENABLE_LINEAR)] {
            self.dispi(index, value);
        }
        self.ports.read(0x3da, &mut [0]);
        self.out(0x3c0, 0x20);
    }

    fn look(&mut self) -> Vec<Rect> {
        match self.vga.take_changes(false) {
            Some(changes) => self.canvas.update(&changes, &self.vga.video, &self.vga.text),
            None => Vec::new(),
        }
    }

    fn mode(&self) -> (u32, u32) {
        self.canvas.frame().map(|f| (f.mode.width, f.mode.height)).unwrap()
    }

    fn pixel(&self, x: usize, y: usize) -> u32 {
        let frame = self.canvas.frame().unwrap();
        let bytes = &frame.pixels[y * frame.stride + 4 * x..][..4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
    }

    fn row(&self, y: usize, from: usize, count: usize) -> Vec<u32> {
        (from..from + count).map(|x| self.pixel(x, y)).collect()
    }
}

const TEXT_CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x1f,
    0x96, 0xb9, 0xa3, 0xff,
];
const TEXT_ATTR: [u8; 20] =
    [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x0c, 0, 0x0f, 8];
const GRAPHICS_ATTR: [u8; 20] =
    [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 1, 0, 0x0f, 0];

const GREY: u32 = 0xaa_aaaa;
const BLUE: u32 = 0x00_00aa;
const WHITE: u32 = 0xff_ffff;

#[test]
fn text_is_drawn_cell_by_cell_and_only_what_changed_is_reported() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    m.poke(TEXT, &[0xa5, 0x07]);
    assert_eq!(m.look(), [Rect { x: 0, y: 0, width: 720, height: 400 }]);
    assert_eq!(m.row(3, 0, 9), [GREY, 0, GREY, 0, 0, GREY, 0, GREY, 0]);
    assert!(m.look().is_empty(), "nothing changed");

    m.poke(TEXT + 2 * (80 * 24 + 79), &[0xff, 0x1f]);
    assert_eq!(m.look(), [Rect { x: 711, y: 384, width: 9, height: 16 }]);
    assert_eq!(m.row(399, 711, 9), [WHITE, WHITE, WHITE, WHITE, WHITE, WHITE, WHITE, WHITE, BLUE]);

    // The same again is no change.
    m.poke(TEXT + 2 * (80 * 24 + 79), &[0xff, 0x1f]);
    assert!(m.look().is_empty());
}

#[test]
fn text_memory_is_ram_from_its_first_use_until_the_font_is_loaded() {
    let m = Machine::new();
    m.text_mode();
    assert_eq!(m.slots.shown(), [(BAR, VIDEO_SIZE as u64)], "nothing is shown before it is used");
    m.poke(TEXT + 2, &[b'A', 7]);
    assert_eq!(m.slots.shown()[1..], [(TEXT, 0x8000)]);
    m.poke(TEXT + 4, &[b'B', 7]);
    m.out_word(0x3c4, 0x0402);
    assert_eq!(m.slots.shown().len(), 1, "the map mask makes every access count");
    m.out_word(0x3c4, 0x0302);
    let cells: Vec<u8> = (2..6).map(|i| m.peek(TEXT + i)).collect();
    assert_eq!(cells, [b'A', 7, b'B', 7]);
    assert_eq!(m.slots.shown().len(), 2);
}

#[test]
fn a_scrolled_screen_starts_elsewhere_and_can_be_split() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    m.poke(TEXT, &[0xff, 0x02]);
    m.poke(TEXT + 160, &[0xff, 0x07]);
    m.look();
    assert_ne!(m.pixel(0, 0), GREY);
    m.out_word(0x3d4, 80 << 8 | 0x0d);
    m.look();
    assert_eq!(m.pixel(0, 0), GREY, "the second row is the first now");
    // Split behind line 31: the third row is address 0.
    m.out_word(0x3d4, 0x0f07);
    m.out_word(0x3d4, 0x0f09);
    m.out_word(0x3d4, 0x1f18);
    m.look();
    assert_eq!((m.pixel(0, 0), m.pixel(0, 32)), (GREY, 0x00_aa00));
}

#[test]
fn the_cursor_is_drawn_moves_and_can_be_off() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    m.poke(TEXT, &[0, 7, 0, 7]);
    m.look();
    assert_eq!([12, 13, 14, 15].map(|y| m.pixel(0, y)), [0, GREY, GREY, 0]);
    m.out_word(0x3d4, 0x010f);
    let damage = m.look();
    assert_eq!(damage, [Rect { x: 0, y: 0, width: 18, height: 16 }]);
    assert_eq!((m.pixel(0, 13), m.pixel(9, 13)), (0, GREY));
    m.out_word(0x3d4, 0x200a);
    m.look();
    assert_eq!(m.pixel(9, 13), 0);
}

#[test]
fn lines_join_underlines_show_and_bright_paper_replaces_blinking() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    // C1h ends in a set bit; 81h does too but is no line.
    m.poke(TEXT, &[0xc1, 7, 0x81, 7, 0, 0xf0, 0, 1]);
    m.out_word(0x3d4, 0x0f14);
    m.out_word(0x3d4, 0x200a);
    m.look();
    assert_eq!([7, 8, 16, 17].map(|x| m.pixel(x, 0)), [GREY, GREY, GREY, 0]);
    assert_eq!(m.pixel(18, 0), GREY, "blinking: the paper has three bits");
    assert_eq!((m.pixel(27, 14), m.pixel(27, 15)), (0, BLUE));
    m.ports.read(0x3da, &mut [0]);
    m.out(0x3c0, 0x30);
    m.out(0x3c0, 0x04);
    m.look();
    assert_eq!(m.pixel(18, 0), WHITE);
}

#[test]
fn a_second_font_and_eight_dot_cells_and_forty_columns_work() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    // Font 1 (at 16 KiB) stays empty; attribute bit 3 clear selects it.
    m.out_word(0x3c4, 0x0103);
    m.out_word(0x3c4, 0x0901);
    m.out_word(0x3d4, 0x0e11);
    m.out_word(0x3d4, 0x2701);
    m.out_word(0x3d4, 0x1413);
    m.poke(TEXT, &[0xff, 0x0f, 0xff, 0x07]);
    m.look();
    assert_eq!(m.mode(), (640, 400));
    assert_eq!((m.pixel(15, 0), m.pixel(16, 0)), (WHITE, 0));
}

#[test]
fn a_palette_change_redraws_the_screen() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    m.poke(TEXT, &[0xff, 7]);
    m.look();
    m.out(0x3c8, 7);
    for value in [63, 0, 0] {
        m.out(0x3c9, value);
    }
    assert_eq!(m.look().len(), 1);
    assert_eq!(m.pixel(0, 0), 0xff_0000);
}

#[test]
fn every_linear_depth_shows_its_colours() {
    for (bpp, bytes, expected) in [
        (8, &[1, 63][..], [BLUE, WHITE]),
        (15, &[0x1f, 0x7c, 0xe0, 0x03], [0xff_00ff, 0x00_ff00]),
        (16, &[0x1f, 0xf8, 0xe0, 0x07], [0xff_00ff, 0x00_ff00]),
        (24, &[1, 2, 3, 4, 5, 6], [0x03_0201, 0x06_0504]),
        (32, &[1, 2, 3, 9, 4, 5, 6, 9], [0x03_0201, 0x06_0504]),
    ] {
        let mut m = Machine::new();
        m.text_mode();
        m.linear(640, 480, bpp);
        m.look();
        assert_eq!(m.mode(), (640, 480));
        m.poke(BAR, bytes);
        assert_eq!(m.look(), [Rect { x: 0, y: 0, width: 2, height: 1 }], "{bpp} bpp");
        assert_eq!(m.row(0, 0, 3), [expected[0], expected[1], 0], "{bpp} bpp");
    }
}

#[test]
fn a_linear_mode_scrolls_and_reports_only_the_lines_that_changed() {
    let mut m = Machine::new();
    m.linear(640, 480, 32);
    m.look();
    m.poke(BAR + 4 * (640 * 100 + 20), &[0xff; 8]);
    m.poke(BAR + 4 * (640 * 101 + 10), &[0xff; 4]);
    m.poke(BAR + 4 * (640 * 300), &[0xff; 4]);
    let expected = [Rect { x: 10, y: 100, width: 12, height: 2 }, Rect { x: 0, y: 300, width: 1, height: 1 }];
    assert_eq!(m.look(), expected);
    m.dispi(9, 100);
    m.look();
    assert_eq!(m.pixel(20, 0) & 0xff_ffff, WHITE);
}

#[test]
fn the_window_shows_a_bank_of_a_linear_mode() {
    let mut m = Machine::new();
    m.linear(640, 480, 8);
    m.dispi(5, 1);
    m.poke(0xa_0000, &[1]);
    assert_eq!(m.slots.shown()[1..], [(0xa_0000, 0x1_0000)]);
    m.poke(0xa_0001, &[2]);
    let mut seen = [0; 2];
    m.vga.read_bar(VIDEO_BAR, 0x1_0000, &mut seen);
    assert_eq!(seen, [1, 2]);
    m.look();
    m.poke(0xa_0002, &[3]);
    assert_eq!(m.look().len(), 0, "an unset colour is as black as before");
    m.dispi(5, 300);
    m.poke(0xa_0000, &[9]);
    assert_eq!(m.peek(0xa_0000), 0, "there is nothing in a bank beyond the memory");
}

#[test]
fn a_256_colour_mode_is_linear_and_twice_as_large_on_the_monitor() {
    let mut m = Machine::new();
    let crtc = [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x40, 0x96,
        0xb9, 0xa3, 0xff,
    ];
    m.set_mode(0x63, &[3, 1, 0x0f, 0, 0x0e], &crtc, &[0, 0, 0, 0, 0, 0x40, 5, 0x0f, 0xff], &GRAPHICS_ATTR);
    m.poke(0xa_0000 + 320 * 199 + 319, &[63]);
    m.poke(0xa_0000, &[1, 7]);
    assert_eq!(m.slots.shown().len(), 2);
    m.look();
    assert_eq!(m.mode(), (640, 400));
    assert_eq!(m.row(1, 0, 5), [BLUE, BLUE, GREY, GREY, 0]);
    assert_eq!((m.pixel(638, 398), m.pixel(639, 399)), (WHITE, WHITE));
}

const PLANAR_CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x8c, 0xdf, 0x28, 0, 0xe7, 0x04,
    0xe3, 0xff,
];

fn planar() -> Machine {
    let m = Machine::new();
    m.set_mode(0xe3, &[3, 1, 0x0f, 0, 6], &PLANAR_CRTC, &[0, 0, 0, 0, 0, 0, 5, 0x0f, 0xff], &GRAPHICS_ATTR);
    m
}

#[test]
fn planes_make_a_colour_together() {
    let mut m = planar();
    for (plane, bits) in [(1, 0b1010_0000), (2, 0b0110_0000), (8, 0b1000_0000)] {
        m.out_word(0x3c4, plane << 8 | 2);
        m.poke(0xa_0000 + 80 * 479 + 79, &[bits]);
    }
    m.look();
    assert_eq!(m.mode(), (640, 480));
    assert_eq!(m.row(479, 632, 4), [0x55_55ff, 0x00_aa00, 0x00_aaaa, 0]);
    assert_eq!(m.slots.shown().len(), 1, "planes are never plain RAM");
}

#[test]
fn the_write_modes_combine_with_the_latches() {
    let m = planar();
    let gfx = |index: u16, value: u16| m.out_word(0x3ce, value << 8 | index);
    let plane = |plane: u16| {
        gfx(4, plane);
        m.peek(0xa_0000)
    };
    let planes = || [0, 1, 2, 3].map(plane);
    m.poke(0xa_0000, &[0x0f]);
    assert_eq!(planes(), [0x0f; 4]);
    // Mode 0 with set/reset in planes 0 and 1, and the mask.
    gfx(0, 1);
    gfx(1, 3);
    gfx(8, 0xf0);
    m.peek(0xa_0000);
    m.poke(0xa_0000, &[0]);
    assert_eq!(planes(), [0xff, 0x0f, 0x0f, 0x0f]);
    // Mode 0, rotated and exclusive-or.
    gfx(1, 0);
    gfx(8, 0xff);
    gfx(3, 0x18 | 4);
    m.peek(0xa_0000);
    m.poke(0xa_0000, &[0xf0]);
    assert_eq!(planes(), [0xf0, 0, 0, 0]);
    // Mode 1 copies.
    gfx(5, 1);
    m.peek(0xa_0000);
    m.poke(0xa_0001, &[0x55]);
    gfx(4, 0);
    assert_eq!(m.peek(0xa_0001), 0xf0);
    // Mode 2: a colour, through the mask.
    gfx(5, 2);
    gfx(3, 0);
    gfx(8, 0x81);
    m.peek(0xa_0000);
    m.poke(0xa_0000, &[0b0110]);
    assert_eq!(planes(), [0x70, 0x81, 0x81, 0]);
    // Mode 3: the byte is a mask for set/reset.
    gfx(5, 3);
    gfx(0, 8);
    gfx(8, 0xff);
    m.peek(0xa_0000);
    m.poke(0xa_0000, &[0x80]);
    assert_eq!(planes(), [0x70, 0x01, 0x01, 0x80]);
    // Read mode 1: where the colour is 8, and only plane 3 counts.
    gfx(5, 8);
    gfx(2, 8);
    gfx(7, 8);
    assert_eq!(m.peek(0xa_0000), 0x80);
}

#[test]
fn cga_graphics_interleave_their_lines_in_the_text_memory() {
    let mut m = Machine::new();
    let crtc = [
        0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14, 0, 0x96,
        0xb9, 0xa2, 0xff,
    ];
    m.set_mode(0x63, &[3, 9, 3, 0, 2], &crtc, &[0, 0, 0, 0, 0, 0x30, 0x0f, 0, 0xff], &GRAPHICS_ATTR);
    m.poke(TEXT, &[0b00_01_10_11]);
    m.poke(TEXT + 0x2000, &[0b11_00_00_00]);
    m.poke(TEXT + 80, &[0b01_00_00_00]);
    m.look();
    assert_eq!(m.mode(), (640, 400));
    assert_eq!(m.row(0, 0, 8), [0, 0, BLUE, BLUE, 0x00_aa00, 0x00_aa00, 0x00_aaaa, 0x00_aaaa]);
    assert_eq!([2, 4].map(|y| m.pixel(0, y)), [0x00_aaaa, BLUE]);
}

#[test]
fn a_dark_screen_is_shown_as_such_when_it_stays_dark() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    m.poke(TEXT, &[0xff, 7]);
    m.look();
    m.ports.read(0x3da, &mut [0]);
    m.out(0x3c0, 0);
    let look = |m: &mut Machine| m.vga.take_changes(true).map(|c| m.canvas.update(&c, &m.vga.video, &m.vga.text));
    assert_eq!(look(&mut m), Some(vec![]));
    assert_eq!(look(&mut m), Some(vec![]));
    assert_eq!(m.pixel(0, 0), GREY);
    assert_eq!(look(&mut m).map(|d| d.len()), Some(1));
    assert_eq!(m.pixel(0, 0), 0);
    m.out(0x3c0, 0x20);
    m.look();
    m.ports.read(0x3da, &mut [0]);
    m.out(0x3c0, 0x20);
    m.look();
    assert_eq!(m.pixel(0, 0), GREY);
}

#[test]
fn the_registers_are_in_the_bar_too() {
    let m = Machine::new();
    let read = |offset: u64, len: usize| {
        let mut data = [0xff; 8];
        m.vga.read_bar(REGISTER_BAR, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    };
    assert_eq!(read(0x500, 2) & 0xffff, 0xb0c5);
    m.vga.write_bar(REGISTER_BAR, 0x502, &800u16.to_le_bytes());
    assert_eq!(read(0x502, 2) & 0xffff, 800);
    m.out_word(0x1ce, 1);
    let mut word = [0; 2];
    m.ports.read(0x1d0, &mut word);
    assert_eq!(u16::from_le_bytes(word), 800);
    m.vga.write_bar(REGISTER_BAR, 0x404, &[2, 5]);
    m.out(0x3c4, 2);
    let mut byte = [0];
    m.ports.read(0x3c5, &mut byte);
    assert_eq!(byte, [5]);
    assert_eq!((read(0x600, 4) as u32, read(0x604, 4) as u32), (8, LITTLE_ENDIAN));
    assert_eq!(read(0, 8), u64::from_le_bytes([0, 255, 255, 255, 255, 255, 255, 0]));
    assert_eq!(read(0x700, 1) & 0xff, 0xff);
}

#[test]
fn the_frame_buffer_moves_with_its_bar() {
    let m = Machine::new();
    m.vga.bar_moved(VIDEO_BAR, None);
    assert!(m.slots.shown().is_empty());
    m.vga.bar_moved(VIDEO_BAR, Some(0xe000_0000));
    assert_eq!(m.slots.shown(), [(0xe000_0000, VIDEO_SIZE as u64)]);
    // A place that is taken already: accesses exit, and work.
    m.vga.bar_moved(VIDEO_BAR, None);
    let other = SharedRegion::new(PAGE).unwrap();
    m.slots.map(0xf000_0000, &other, 0, PAGE as u64).unwrap();
    m.vga.bar_moved(VIDEO_BAR, Some(0xf000_0000));
    m.vga.write_bar(VIDEO_BAR, VIDEO_SIZE as u64 - 4, &[1, 2, 3, 4]);
    let mut data = [0; 4];
    m.vga.read_bar(VIDEO_BAR, VIDEO_SIZE as u64 - 4, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
}

#[test]
fn a_checkpoint_brings_the_same_picture_back_and_a_reset_takes_it() {
    let mut m = Machine::new();
    m.text_mode();
    m.load_font();
    m.poke(TEXT, &[0xa5, 0x1f]);
    m.look();
    let saved = m.vga.save().unwrap();
    let mut other = Machine::new();
    other.vga.restore(&saved).unwrap();
    other.look();
    assert_eq!(other.canvas.frame().unwrap().pixels, m.canvas.frame().unwrap().pixels);
    assert_eq!(other.vga.save().unwrap(), saved);
    let damaged = Section { bytes: saved.bytes[..saved.bytes.len() / 2].to_vec(), ..saved };
    assert!(other.vga.restore(&damaged).is_err());
    m.vga.reset();
    assert_eq!(m.vga.save().unwrap(), Machine::new().vga.save().unwrap());
}

#[test]
fn the_refresh_paints_while_the_monitor_is_its_own_and_again_when_it_comes_back() {
    let m = Machine::new();
    let executor = InlineExecutor::new().unwrap();
    m.text_mode();
    m.load_font();
    m.poke(TEXT, &[0xff, 7]);
    executor.submit(m.vga.refresh().unwrap());
    executor.flush();
    let (mode, vga_pixels) = m.screen.snapshot().unwrap();
    assert_eq!((mode.width, mode.height), (720, 400));
    assert_eq!(vga_pixels[..3], [0xaa; 3]);

    m.vga.monitor.give_to(Painter::Gpu);
    executor.flush();
    let small = Mode { width: 16, height: 16 };
    m.vga.monitor.paint(Painter::Gpu, |sink| {
        sink.mode(0, Some(small));
        sink.present(0, Frame { mode: small, stride: 64, pixels: &[0; 1024] }, Rect::full(small));
    });
    m.poke(TEXT, &[0, 7]);
    executor.flush();
    assert_eq!(m.screen.snapshot().unwrap().0, small);

    m.vga.monitor.give_to(Painter::Vga);
    executor.flush();
    let (mode, pixels) = m.screen.snapshot().unwrap();
    assert_eq!((mode.width, mode.height), (720, 400));
    assert_ne!(pixels, vga_pixels, "what changed meanwhile is shown");
}

/// Counts what reaches the monitor.
#[derive(Clone, Default)]
struct Counter(Arc<Mutex<(usize, usize)>>);

impl DisplaySink for Counter {
    fn mode(&mut self, _: u32, _: Option<Mode>) {
        self.0.lock().unwrap().0 += 1;
    }
    fn present(&mut self, _: u32, _: Frame<'_>, _: Rect) {
        self.0.lock().unwrap().1 += 1;
    }
    fn cursor(&mut self, _: u32, _: Cursor) {}
}

#[test]
fn looks_without_a_change_reach_nobody_and_end_in_a_rest() {
    let counter = Counter::default();
    let monitor = Monitor::new(Box::new(counter.clone()), Mode { width: 640, height: 480 }).unwrap();
    let mut m = Machine::new();
    m.vga = Vga::new(Arc::new(m.slots.clone()), monitor).unwrap();
    (m.memory, m.ports) = (Bus::default(), Bus::default());
    assert!(m.vga.attach(&m.memory, &m.ports));
    m.text_mode();
    let mut refresh = Refresh::new(m.vga.clone()).unwrap();
    refresh.start();
    let after_start = *counter.0.lock().unwrap();
    assert_eq!(after_start, (1, 1));
    for _ in 0..100 {
        refresh.ready(0);
    }
    assert_eq!(*counter.0.lock().unwrap(), after_start);
    assert!(m.vga.resting.load(Ordering::Acquire));
    m.out_word(0x3d4, 0x050f);
    assert!(!m.vga.resting.load(Ordering::Acquire), "a moving cursor ends the rest");
    assert_eq!(m.vga.bell.read().unwrap(), 1);
}

mod anything {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever a guest writes to ports, window and Bochs registers, something is drawn or nothing, and no more.
        #[test]
        fn no_register_contents_break_the_drawing(
            start in 0usize..4,
            writes in prop::collection::vec((0u8..8, any::<u16>(), any::<u16>()), 0..60),
        ) {
            let mut m = if start == 1 { planar() } else { Machine::new() };
            match start {
                2 => m.text_mode(),
                3 => m.linear(320, 200, 16),
                _ => {}
            }
            for (kind, a, b) in writes {
                match kind {
                    0 => m.out(0x3b0 + a % 0x30, b as u8),
                    1 => m.out_word(0x3d4, (a % 25) | b << 8),
                    2 => m.out_word(0x3c4, (a % 5) | b << 8),
                    3 => m.out_word(0x3ce, (a % 9) | b << 8),
                    4 => m.dispi(a % 12, b),
                    5 => m.poke(0xa_0000 + u64::from(a) * 2, &b.to_le_bytes()),
                    6 => drop(m.peek(0xa_0000 + u64::from(a) * 2)),
                    _ => drop(m.look()),
                }
            }
            m.ports.read(0x3da, &mut [0]);
            m.out(0x3c0, 0x20);
            let damage = m.look();
            if let Some(frame) = m.canvas.frame() {
                prop_assert_eq!(frame.pixels.len(), frame.stride * frame.mode.height as usize);
                for rect in damage {
                    prop_assert_eq!(rect.clip(frame.mode), rect);
                }
            }
            let saved = m.vga.save().unwrap();
            m.vga.restore(&saved).unwrap();
            prop_assert_eq!(m.vga.save().unwrap(), saved);
        }
    }
}

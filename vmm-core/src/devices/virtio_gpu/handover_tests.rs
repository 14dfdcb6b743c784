//! The monitor's way from the VGA to the driver and back, as the sequence of what it is given: each picture is whole and of
//! whoever has the turn, and nothing of before comes back.

use std::sync::Mutex;

use super::tests::{Driver, PICTURE};
use super::*;
use crate::backend::display::{DisplaySink, Screen};
use crate::base::{Component, Task};
use crate::devices::vga::Vga;
use crate::testkit::{FakeSlots, Guest};
use crate::virtio::{Face, Layout};

/// The refresh's timer.
const TIMER: u32 = 0;
const VIDEO: usize = 0;
/// The VGA's picture is of this size, the driver's of 32 by 16.
const WIDTH: u16 = 64;
const HEIGHT: u16 = 8;

/// What a monitor was given.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    Mode(Option<(u32, u32)>),
    /// All of a picture, of one colour.
    Whole(u32),
    /// Part of one, or one of several colours.
    Other,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Given>>>);

impl Recorder {
    fn take(&self) -> Vec<Given> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl DisplaySink for Recorder {
    fn mode(&mut self, _: u32, mode: Option<Mode>) {
        self.0.lock().unwrap().push(Given::Mode(mode.map(|mode| (mode.width, mode.height))));
    }

    fn present(&mut self, _: u32, frame: Frame<'_>, damage: Rect) {
        let colors: Vec<u32> = (0..frame.mode.height as usize)
            .flat_map(|y| frame.pixels[y * frame.stride..][..frame.mode.width as usize * 4].chunks_exact(4))
            .map(|pixel| u32::from_le_bytes([pixel[0], pixel[1], pixel[2], 0]))
            .collect();
        let whole = damage == Rect::full(frame.mode) && colors.iter().all(|color| *color == colors[0]);
        self.0.lock().unwrap().push(if whole { Given::Whole(colors[0]) } else { Given::Other });
    }

    fn cursor(&mut self, _: u32, _: Cursor) {}
}

struct Machine {
    driver: Driver,
    vga: Arc<Vga>,
    refresh: Box<dyn Task>,
    given: Recorder,
}

impl Machine {
    fn new() -> Machine {
        let given = Recorder::default();
        let monitor = Monitor::new(Box::new(given.clone()), Mode { width: 1280, height: 800 }).unwrap();
        let vga = Vga::new(Arc::new(FakeSlots::default()), monitor.clone()).unwrap();
        let guest = Guest::with_face(Gpu::new(monitor.clone()), Layout::VGA, Some(vga.clone()));
        let refresh = vga.refresh().unwrap();
        Machine { driver: Driver { guest, monitor, screen: Screen::new(|| ()) }, vga, refresh, given }
    }

    /// Firmware sets a linear mode and paints it in one colour.
    fn firmware(&mut self, color: u32) {
        for (index, value) in [(4, 0), (1, WIDTH), (2, HEIGHT), (3, 32), (4, 0x41)] {
            self.driver.guest.write(0x500 + 2 * index, &value.to_le_bytes());
        }
        let mut shown = [0];
        self.driver.guest.read(0x41a, &mut shown);
        self.driver.guest.write(0x400, &[0x20]);
        self.vga_paints(color);
    }

    fn vga_paints(&mut self, color: u32) {
        for pixel in 0..u64::from(WIDTH) * u64::from(HEIGHT) {
            self.vga.write_bar(VIDEO, 4 * pixel, &color.to_le_bytes());
        }
    }

    /// The driver shows a picture of one colour; the VGA's refresh looks between any two commands.
    fn driver_shows(&mut self, color: u32) {
        self.driver.guest.start();
        self.looks();
        self.driver.paint(0, &[color; 32 * 16]);
        self.driver.create(1, 2, 32, 16);
        self.looks();
        self.driver.attach(1, &[(PICTURE, 32 * 16 * 4)]);
        self.driver.transfer(1, [0, 0, 32, 16], 0);
        self.looks();
        self.driver.scanout(1, [0, 0, 32, 16]);
        self.looks();
        self.driver.flush(1, [0, 0, 32, 16]);
        self.looks();
    }

    fn looks(&mut self) {
        for _ in 0..5 {
            self.refresh.ready(TIMER);
        }
    }
}

const VGA_MODE: Given = Given::Mode(Some((WIDTH as u32, HEIGHT as u32)));
const GPU_MODE: Given = Given::Mode(Some((32, 16)));

#[test]
fn the_driver_takes_over_with_a_whole_picture_and_the_vga_with_what_it_has_then() {
    let mut m = Machine::new();
    m.firmware(0x11_1111);
    m.looks();
    assert_eq!(m.given.take(), [VGA_MODE, Given::Whole(0x11_1111)]);
    m.driver_shows(0x22_2222);
    let given = m.given.take();
    assert_eq!(given[..2], [GPU_MODE, Given::Whole(0x22_2222)]);
    assert!(given[2..].iter().all(|more| *more == Given::Whole(0x22_2222)), "{given:?}");
    // What is written to the VGA's memory meanwhile is not to be seen, until the driver lets go.
    m.vga_paints(0x33_3333);
    m.looks();
    assert_eq!(m.given.take(), []);
    m.driver.guest.reset();
    m.looks();
    assert_eq!(m.given.take(), [VGA_MODE, Given::Whole(0x33_3333)]);
}

#[test]
fn a_reset_of_the_machine_shows_nothing_of_the_vga_s_from_before_it() {
    let mut m = Machine::new();
    m.firmware(0x11_1111);
    m.looks();
    m.driver_shows(0x22_2222);
    m.given.take();
    m.driver.guest.pause();
    m.driver.guest.transport.reset();
    m.driver.guest.resume();
    // Once is too early to say that the screen stays dark: what was shown last is there still.
    m.refresh.ready(TIMER);
    assert_eq!(m.given.take(), []);
    m.looks();
    assert_eq!(m.given.take(), [VGA_MODE, Given::Whole(0)], "dark, not what the VGA showed before");
    m.driver.guest.map();
    m.firmware(0x44_4444);
    m.looks();
    assert_eq!(m.given.take(), [Given::Whole(0x44_4444)]);
}

#[test]
fn firmware_that_is_quick_is_what_is_seen_next_after_a_reset() {
    let mut m = Machine::new();
    m.firmware(0x11_1111);
    m.looks();
    m.driver_shows(0x22_2222);
    m.given.take();
    m.driver.guest.pause();
    m.driver.guest.transport.reset();
    m.driver.guest.resume();
    m.refresh.ready(TIMER);
    m.driver.guest.map();
    m.firmware(0x44_4444);
    m.looks();
    assert_eq!(m.given.take(), [VGA_MODE, Given::Whole(0x44_4444)]);
}

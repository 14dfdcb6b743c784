//! The VGA: any ports, Bochs registers, accesses to its window and its memory, on a screen that checks what it is shown.
//! What was painted piece by piece is what a machine that takes over the state paints at once.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::backend::display::{Cursor, DisplaySink, Frame, Mode, Rect};
use vmm_core::backend::monitor::Monitor;
use vmm_core::base::Task;
use vmm_core::devices::vga::Vga;
use vmm_core::hw::Bus;
use vmm_core::testkit::FakeSlots;
use vmm_core::virtio::Face;

const STEPS: usize = 200;
/// Looking is what takes time.
const LOOKS: usize = 8;
const BAR: u64 = 0xd000_0000;
const VIDEO_BAR: usize = 0;
const REGISTER_BAR: usize = 2;
/// The refresh's timer.
const TIMER: u32 = 0;
/// Pixels of the largest picture that is painted in a test: larger ones only take longer.
const MAX_PIXELS: u32 = 128 * 128;
/// Modes as a BIOS sets them: miscellaneous, sequencer, CRT controller, graphics, attribute mode.
const MODES: &[(u8, [u8; 5], [u8; 25], [u8; 9], u8)] = &[
    // 3: text.
    (
        0x67,
        [3, 0, 3, 0, 2],
        [
            0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28,
            0x1f, 0x96, 0xb9, 0xa3, 0xff,
        ],
        [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff],
        0x0c,
    ),
    // 0Dh: 320×200 in four planes.
    (
        0x63,
        [3, 9, 0x0f, 0, 6],
        [
            0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14, 0, 0x96,
            0xb9, 0xe3, 0xff,
        ],
        [0, 0, 0, 0, 0, 0, 5, 0x0f, 0xff],
        1,
    ),
    // 13h: 320×200, a byte a pixel.
    (
        0x63,
        [3, 1, 0x0f, 0, 0x0e],
        [
            0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x40,
            0x96, 0xb9, 0xa3, 0xff,
        ],
        [0, 0, 0, 0, 0, 0x40, 5, 0x0f, 0xff],
        0x41,
    ),
    // 4: 320×200 in pairs of bits.
    (
        0x63,
        [3, 9, 3, 0, 2],
        [
            0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14, 0, 0x96,
            0xb9, 0xa2, 0xff,
        ],
        [0, 0, 0, 0, 0, 0x30, 0x0f, 0, 0xff],
        1,
    ),
];

/// A screen that is shown only what the contract allows.
#[derive(Default, Clone)]
struct Checked(Arc<Mutex<(Option<Mode>, Vec<u8>)>>);

impl DisplaySink for Checked {
    fn mode(&mut self, scanout: u32, mode: Option<Mode>) {
        assert_eq!(scanout, 0);
        let len = mode.map_or(0, |mode| mode.width as usize * mode.height as usize * 4);
        *self.0.lock().expect("no panic before") = (mode, vec![0; len]);
    }

    fn present(&mut self, scanout: u32, frame: Frame<'_>, damage: Rect) {
        let mut screen = self.0.lock().expect("no panic before");
        let (mode, pixels) = &mut *screen;
        assert_eq!((scanout, Some(frame.mode)), (0, *mode));
        let Mode { width, height } = frame.mode;
        assert!(width > 0 && height > 0 && !damage.is_empty(), "{:?} {damage:?}", frame.mode);
        assert!(damage.x + damage.width <= width && damage.y + damage.height <= height, "{:?} {damage:?}", frame.mode);
        let row = width as usize * 4;
        for y in damage.y as usize..(damage.y + damage.height) as usize {
            let (left, len) = (damage.x as usize * 4, damage.width as usize * 4);
            pixels[y * row + left..][..len].copy_from_slice(&frame.pixels[y * frame.stride + left..][..len]);
        }
    }

    fn cursor(&mut self, _: u32, _: Cursor) {}
}

struct Machine {
    vga: Arc<Vga>,
    slots: FakeSlots,
    memory: Bus,
    ports: Bus,
    screen: Checked,
    refresh: Box<dyn Task>,
}

impl Machine {
    fn new() -> Machine {
        let (slots, screen) = (FakeSlots::default(), Checked::default());
        let monitor = Monitor::new(Box::new(screen.clone()), Mode { width: 640, height: 480 }).expect("a monitor");
        let vga = Vga::new(Arc::new(slots.clone()), monitor).expect("a VGA");
        let (memory, ports) = (Bus::default(), Bus::default());
        assert!(vga.attach(&memory, &ports));
        vga.bar_moved(VIDEO_BAR, Some(BAR));
        let refresh = vga.refresh().expect("a task");
        Machine { vga, slots, memory, ports, screen, refresh }
    }

    fn out(&self, port: u64, data: &[u8]) {
        self.ports.write(port, data);
    }

    fn indexed(&self, port: u64, index: u8, value: u8) {
        self.out(port, &[index, value]);
    }

    fn dispi(&self, index: u16, value: u16) {
        self.out(0x1ce, &index.to_le_bytes());
        self.out(0x1cf, &value.to_le_bytes());
    }

    /// Sets a mode; mostly with ten columns and 64 lines, which are painted faster and just the same.
    fn set_mode(&self, choice: u8) {
        let (misc, seq, mut crtc, gfx, attribute) = MODES[usize::from(choice) % MODES.len()];
        if choice < 0xfe {
            (crtc[1], crtc[7], crtc[0x12], crtc[0x13]) = (9, 0x10, 63, crtc[0x13] / 8);
        }
        self.dispi(4, 0);
        self.out(0x3c2, &[misc]);
        (0..).zip(seq).for_each(|(i, value)| self.indexed(0x3c4, i, value));
        self.indexed(0x3d4, 0x11, 0);
        (0..).zip(crtc).for_each(|(i, value)| self.indexed(0x3d4, i, value));
        (0..).zip(gfx).for_each(|(i, value)| self.indexed(0x3ce, i, value));
        self.ports.read(0x3da, &mut [0]);
        for (index, value) in (0..16u8).map(|i| (i, i)).chain([(0x10, attribute), (0x12, 0x0f)]) {
            self.out(0x3c0, &[index]);
            self.out(0x3c0, &[value]);
        }
        self.out(0x3c0, &[0x20]);
    }

    /// Whether what the registers describe is small enough to be painted a million times.
    fn is_small(&self) -> bool {
        let linear = self.dispi_read(4) & 1 != 0;
        !linear || u32::from(self.dispi_read(1)) * u32::from(self.dispi_read(2)) <= MAX_PIXELS
    }

    fn dispi_read(&self, index: u16) -> u16 {
        // Through the BAR, which leaves the index port as it is.
        let mut bytes = [0; 2];
        self.vga.read_bar(REGISTER_BAR, 0x500 + 2 * u64::from(index), &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn look(&mut self) {
        if self.is_small() {
            self.refresh.ready(TIMER);
        }
    }

    fn picture(&self) -> (Option<Mode>, Vec<u8>) {
        self.screen.0.lock().expect("no panic before").clone()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let mut machine = Machine::new();
    // Rarely, as it looks at all of the memory; by the length, which a fuzzer has less reason to keep.
    let compare = data.len() % 32 == 31;
    machine.set_mode(choices.u8());
    let mut looks = 0;
    for _ in 0..STEPS {
        if !choices.any() {
            break;
        }
        match choices.u8() % 16 {
            0 | 1 => {
                let port = choices.one_of(&[0x3c4u64, 0x3ce, 0x3d4]);
                machine.indexed(port, choices.u8() & 0x1f, choices.u8());
            }
            2 => machine.out(0x3b0 + u64::from(choices.u8() % 0x30), choices.bytes(1)),
            3 => {
                machine.ports.read(0x3da, &mut [0]);
                machine.out(0x3c0, &[choices.u8() & 0x3f]);
                machine.out(0x3c0, &[choices.u8()]);
            }
            4 => {
                let width = usize::from(choices.u8() % 9);
                let at = choices.one_of(&[0x1ceu64, 0x1cf, 0x1d0, 0x3b0, 0x3c0, 0x3c4, 0x3d4, 0x3d8]);
                machine.out(at, choices.bytes(width));
                machine.ports.read(at, &mut vec![0; width]);
            }
            5 => {
                // A linear mode, mostly a small one.
                machine.dispi(4, 0);
                for (index, value) in [(1, choices.u16() % 136), (2, choices.u16() % 136)] {
                    machine.dispi(index, if choices.u8() % 32 == 0 { choices.u16() } else { value });
                }
                machine.dispi(3, choices.one_of(&[4, 8, 15, 16, 24, 32]));
                machine.dispi(4, choices.one_of(&[0x41, 0xc1, 0xe1, 0x01, 0x61]));
            }
            6 => machine.dispi(u16::from(choices.u8() % 12), choices.u16()),
            7..=9 => {
                let at = 0xa_0000 + u64::from(choices.u32()) % 0x2_0000;
                let len = choices.one_of(&[1usize, 1, 2, 4, 8]);
                let data = choices.bytes(len);
                if !data.is_empty() && !machine.slots.write(at, data) {
                    machine.memory.write(at, data);
                }
            }
            10 => {
                let (at, len) = (0xa_0000 + u64::from(choices.u32()) % 0x2_0000, usize::from(choices.u8() % 9));
                machine.memory.read(at, &mut vec![0; len]);
            }
            11 => {
                let at = u64::from(choices.u32()) % (16 << 20);
                let at = if choices.u8() % 4 == 0 { at } else { at % 0x8_0000 };
                let data = choices.bytes(4);
                if data.is_empty() || !machine.slots.write(BAR + at, data) {
                    machine.vga.write_bar(VIDEO_BAR, at, data);
                }
            }
            12 => {
                let at = u64::from(choices.u16()) % 0x700;
                machine.vga.read_bar(REGISTER_BAR, at, &mut [0; 4]);
                let len = choices.one_of(&[1, 2, 4]);
                machine.vga.write_bar(REGISTER_BAR, at, choices.bytes(len));
            }
            13 => machine.set_mode(choices.u8()),
            14 if choices.u8() % 8 == 0 => {
                let place = (choices.u8() % 2 == 0).then_some(BAR);
                machine.vga.bar_moved(VIDEO_BAR, place);
            }
            15 if looks < LOOKS => {
                looks += 1;
                machine.look();
            }
            _ => {}
        }
    }
    machine.look();
    if compare {
        let section = machine.vga.save().expect("a state");
        let mut other = Machine::new();
        other.vga.restore(&section).expect("its own state");
        assert!(other.vga.save().expect("a state") == section, "the state is another one");
        other.look();
        let (mode, pixels) = other.picture();
        // A screen that is dark, or whose registers make no sense, keeps what it had.
        if mode.is_some() {
            assert!(machine.picture() == (mode, pixels), "what was painted is not what there is");
        }
        machine.vga.reset();
        machine.look();
    }
});

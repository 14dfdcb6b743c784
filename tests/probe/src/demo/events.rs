//! Where the demo's input comes from: virtio-input devices, or the PS/2 keyboard and mouse where there are none.

use super::keys;
use crate::drivers::i8042::{self, command, config};
use crate::drivers::input::{self, Event, Input, event};
use crate::drivers::virtio::kind;
use crate::machine::Machine;

const MAX_DEVICES: usize = 4;
const ABS_X: u16 = 0;
const ABS_Y: u16 = 1;
const REL_X: u16 = 0;
const REL_Y: u16 = 1;
const REL_WHEEL: u16 = 8;

/// What happened, independent of the device.
#[derive(Clone, Copy)]
pub enum Happening {
    /// A key or button went down (1), up (0) or repeats (2).
    Key {
        /// evdev code.
        code: u16,
        /// 1, 0 or 2.
        value: u32,
    },
    /// The pointer is at a place, as 65536ths of the screen.
    To {
        /// Horizontal, if it moved that way.
        x: Option<u32>,
        /// Vertical.
        y: Option<u32>,
    },
    /// The pointer moved by pixels.
    By {
        /// To the right.
        x: i32,
        /// Down.
        y: i32,
    },
    /// The wheel turned.
    Wheel(i32),
}

/// Least and greatest value of the horizontal and the vertical axis.
type Ranges = [(u32, u32); 2];

/// All input.
pub struct Sources {
    devices: [Option<(Input, Ranges)>; MAX_DEVICES],
    ps2: Option<Ps2>,
    /// Every event is printed too.
    echo: bool,
}

/// The decoder's state between bytes.
#[derive(Default)]
struct Ps2 {
    extended: bool,
    packet: [u8; 3],
    filled: usize,
    buttons: u8,
}

impl Sources {
    /// Starts whatever there is.
    pub fn open(machine: &Machine) -> Sources {
        let mut devices = [const { None }; MAX_DEVICES];
        let found = machine.pci.virtio(kind::INPUT).filter_map(|function| Input::open(function).ok());
        for (slot, input) in devices.iter_mut().zip(found) {
            let range = |axis| input.axis(axis).ok().flatten().filter(|(low, high)| high > low).unwrap_or((0, 32767));
            let ranges = [range(ABS_X), range(ABS_Y)];
            *slot = Some((input, ranges));
        }
        let none = devices.iter().all(Option::is_none);
        let echo = machine.words.has("inputecho");
        Sources { devices, ps2: (none && i8042::present()).then(Ps2::start), echo }
    }

    /// What the devices are, for a person.
    pub fn describe(&self) -> &'static str {
        match (&self.devices[0], &self.ps2) {
            (Some(_), _) => "virtio-input",
            (None, Some(_)) => "PS/2",
            (None, None) => "none",
        }
    }

    /// Hands over everything that has happened since the last call.
    pub fn poll(&mut self, mut tell: impl FnMut(Happening)) {
        for (device, (input, ranges)) in self.devices.iter_mut().flatten().enumerate() {
            while let Some(event) = input.poll() {
                if self.echo {
                    event.print(device);
                }
                if let Some(happening) = translate(event, ranges) {
                    tell(happening);
                }
            }
        }
        if let Some(ps2) = &mut self.ps2 {
            // Bounded, should a controller always have one more byte.
            for _ in 0..256 {
                let Some(byte) = i8042::poll() else { break };
                if byte.aux { ps2.mouse(byte.value, &mut tell) } else { ps2.keyboard(byte.value, &mut tell) }
            }
        }
    }
}

fn translate(event: Event, ranges: &Ranges) -> Option<Happening> {
    let share = |(low, high): (u32, u32)| {
        let value = event.value.clamp(low, high) - low;
        (u64::from(value) * 65536 / u64::from(high - low)) as u32
    };
    let input::Event { kind, code, value } = event;
    match (kind, code) {
        (event::KEY, _) => Some(Happening::Key { code, value }),
        (event::ABS, ABS_X) => Some(Happening::To { x: Some(share(ranges[0])), y: None }),
        (event::ABS, ABS_Y) => Some(Happening::To { x: None, y: Some(share(ranges[1])) }),
        (event::REL, REL_X) => Some(Happening::By { x: value as i32, y: 0 }),
        (event::REL, REL_Y) => Some(Happening::By { x: 0, y: value as i32 }),
        (event::REL, REL_WHEEL) => Some(Happening::Wheel(value as i32)),
        _ => None,
    }
}

impl Ps2 {
    fn start() -> Ps2 {
        i8042::command(command::ENABLE_KEYBOARD);
        i8042::command(command::ENABLE_AUX);
        i8042::configure(config::TRANSLATE);
        i8042::drain();
        i8042::write(0xf4);
        i8042::read();
        i8042::write_aux(0xf4);
        i8042::read();
        Ps2::default()
    }

    fn keyboard(&mut self, byte: u8, tell: &mut impl FnMut(Happening)) {
        if byte == 0xe0 {
            self.extended = true;
            return;
        }
        let extended = core::mem::take(&mut self.extended);
        if let Some(code) = keys::from_scan_code(byte & 0x7f, extended) {
            tell(Happening::Key { code, value: u32::from(byte & 0x80 == 0) });
        }
    }

    fn mouse(&mut self, byte: u8, tell: &mut impl FnMut(Happening)) {
        // Bit 3 of the first byte is always one: a way to find it again.
        if self.filled == 0 && byte & 8 == 0 {
            return;
        }
        self.packet[self.filled] = byte;
        self.filled += 1;
        if self.filled < 3 {
            return;
        }
        self.filled = 0;
        let [flags, x, y] = self.packet;
        let signed = |value: u8, negative: u8| i32::from(value) - if flags & negative != 0 { 256 } else { 0 };
        tell(Happening::By { x: signed(x, 0x10), y: -signed(y, 0x20) });
        for bit in 0..3 {
            let now = flags >> bit & 1;
            if now != self.buttons >> bit & 1 {
                tell(Happening::Key { code: keys::BUTTON_LEFT + bit, value: u32::from(now) });
            }
        }
        self.buttons = flags & 7;
    }
}

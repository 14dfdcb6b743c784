//! The keyboard controller i8042 at ports 0x60 and 0x64 (IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device
//! Controller"), with a PS/2 keyboard and mouse.
//!
//! They get what the person at the console does as long as the guest has no better driver: a device that the guest
//! drives through virtio claims its port, and this one leaves it alone.

mod keyboard;
mod keys;
mod mouse;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use self::keyboard::{Keyboard, KeyboardState, RELEASE, Sent};
use self::mouse::{Mouse, MouseState, button};
use super::clock::Timer;
use super::{Work, lock};
use crate::backend::input::{InputEvent, InputPort, code, ev};
use crate::base::{Component, Executor, SavedState, Section, StateError, Task};
use crate::hw::{Action, BusDevice, IrqLine};

/// Offsets of the two ports; between them there are others' (0x61 is the timer's and the speaker's).
const DATA: u64 = 0;
const COMMAND: u64 = 4;
/// How many ports lie from the first to the last.
pub const I8042_PORTS: u64 = 5;

mod command {
    pub const READ_RAM: u8 = 0x20;
    pub const WRITE_RAM: u8 = 0x60;
    pub const TEST_PASSWORD: u8 = 0xa4;
    pub const DISABLE_MOUSE: u8 = 0xa7;
    pub const ENABLE_MOUSE: u8 = 0xa8;
    pub const TEST_MOUSE: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT: u8 = 0xc0;
    pub const READ_OUTPUT: u8 = 0xd0;
    pub const WRITE_OUTPUT: u8 = 0xd1;
    pub const LOOP_KEYBOARD: u8 = 0xd2;
    pub const LOOP_MOUSE: u8 = 0xd3;
    pub const TO_MOUSE: u8 = 0xd4;
    pub const A20_OFF: u8 = 0xdd;
    pub const A20_ON: u8 = 0xdf;
    /// The lowest four bits: output lines that go low for a moment where they are 0.
    pub const PULSE: u8 = 0xf0;
}

/// The first byte of the controller's RAM, the "command byte".
mod control {
    pub const KEYBOARD_INTERRUPT: u8 = 1;
    pub const MOUSE_INTERRUPT: u8 = 2;
    /// Shown in the status register too.
    pub const SYSTEM: u8 = 4;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const MOUSE_OFF: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
    /// A PC's firmware leaves it like this.
    pub const RESET: u8 = KEYBOARD_INTERRUPT | MOUSE_INTERRUPT | TRANSLATE;
    pub const ALL: u8 = RESET | SYSTEM | KEYBOARD_OFF | MOUSE_OFF;
}

mod status {
    pub const OUTPUT_FULL: u8 = 1;
    pub const SYSTEM: u8 = 4;
    pub const COMMAND: u8 = 8;
    pub const UNLOCKED: u8 = 0x10;
    pub const FROM_MOUSE: u8 = 0x20;
}

/// The output port.
mod output {
    /// Low: the machine is in reset.
    pub const RESET: u8 = 1;
    /// Address line 20 is passed through; it always is.
    pub const A20: u8 = 2;
    pub const KEYBOARD_FULL: u8 = 0x10;
    pub const MOUSE_FULL: u8 = 0x20;
    /// The clock and data lines of the keyboard idle high.
    pub const IDLE: u8 = 0xc0;
}

/// No password, no test wires: the input port.
const INPUT_PORT: u8 = 0x80;
const SELF_TEST_PASSED: u8 = 0x55;
const INTERFACE_GOOD: u8 = 0;
const NO_PASSWORD: u8 = 0xf1;
/// Answers of the controller that wait.
const MAX_REPLIES: usize = 16;

/// Who put a byte into the output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    /// The keyboard, or the controller itself.
    Keyboard,
    Mouse,
}

/// The controller and its two devices.
pub struct I8042 {
    shared: Arc<Shared>,
    work: Work,
}

struct Shared {
    keyboard_irq: Arc<dyn IrqLine>,
    mouse_irq: Arc<dyn IrqLine>,
    keyboard_port: InputPort,
    pointer_port: InputPort,
    state: Mutex<State>,
}

struct State {
    ram: [u8; 32],
    a20: bool,
    /// The command whose parameter comes next.
    awaiting: Option<u8>,
    wrote_command: bool,
    replies: VecDeque<(u8, Source)>,
    /// The output buffer while it is full.
    full: Option<Source>,
    /// What it holds, or held last.
    buffer: u8,
    keyboard: Keyboard,
    mouse: Mouse,
    timer: Timer,
}

/// What a checkpoint keeps of the controller.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    ram: [u8; 32],
    a20: bool,
    awaiting: Option<u8>,
    wrote_command: bool,
    replies: Vec<(u8, Source)>,
    full: Option<Source>,
    buffer: u8,
    keyboard: KeyboardState,
    mouse: MouseState,
}

impl SavedState for I8042State {
    const VERSION: u32 = 1;
}

impl State {
    fn power_on(timer: Timer) -> State {
        let mut ram = [0; 32];
        ram[0] = control::RESET;
        State {
            ram,
            a20: true,
            awaiting: None,
            wrote_command: true,
            replies: VecDeque::new(),
            full: None,
            buffer: 0,
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
            timer,
        }
    }

    fn control(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    fn set_control(&mut self, bit: u8, on: bool) {
        self.ram[0] = if on { self.ram[0] | bit } else { self.ram[0] & !bit };
    }

    fn status(&self) -> u8 {
        let mut value = status::UNLOCKED;
        match self.full {
            Some(Source::Keyboard) => value |= status::OUTPUT_FULL,
            Some(Source::Mouse) => value |= status::OUTPUT_FULL | status::FROM_MOUSE,
            None => (),
        }
        if self.control(control::SYSTEM) {
            value |= status::SYSTEM;
        }
        if self.wrote_command {
            value |= status::COMMAND;
        }
        value
    }

    fn output_port(&self) -> u8 {
        let a20 = if self.a20 { output::A20 } else { 0 };
        let full = match self.full {
            Some(Source::Keyboard) => output::KEYBOARD_FULL,
            Some(Source::Mouse) => output::MOUSE_FULL,
            None => 0,
        };
        output::IDLE | output::RESET | a20 | full
    }

    fn reply(&mut self, byte: u8, source: Source) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back((byte, source));
        }
    }

    /// The next byte from the keyboard, as the guest is to see it.
    fn next_from_keyboard(&mut self) -> Option<u8> {
        match self.keyboard.pop()? {
            Sent::Code(byte) | Sent::Reply(byte) if !self.control(control::TRANSLATE) => Some(byte),
            Sent::Reply(byte) => Some(keys::translate(byte)),
            Sent::Code(RELEASE) => match self.keyboard.pop()? {
                Sent::Code(byte) | Sent::Reply(byte) => Some(keys::translate(byte) | 0x80),
            },
            Sent::Code(byte) => Some(keys::translate(byte)),
        }
    }

    /// Fills the output buffer, if it is empty and somebody has something for it.
    fn fill(&mut self) {
        if self.full.is_some() {
            return;
        }
        let mut next = self.replies.pop_front();
        if next.is_none() && !self.control(control::KEYBOARD_OFF) {
            next = self.next_from_keyboard().map(|byte| (byte, Source::Keyboard));
        }
        if next.is_none() && !self.control(control::MOUSE_OFF) {
            next = self.mouse.pop().map(|byte| (byte, Source::Mouse));
        }
        if let Some((byte, source)) = next {
            self.buffer = byte;
            self.full = Some(source);
        }
    }

    fn command(&mut self, byte: u8) -> Option<Action> {
        self.awaiting = None;
        match byte {
            0x20..0x40 => self.reply(self.ram[usize::from(byte - command::READ_RAM)], Source::Keyboard),
            0x60..0x80 | command::WRITE_OUTPUT | command::LOOP_KEYBOARD | command::LOOP_MOUSE | command::TO_MOUSE => {
                self.awaiting = Some(byte)
            }
            command::TEST_PASSWORD => self.reply(NO_PASSWORD, Source::Keyboard),
            command::DISABLE_MOUSE | command::ENABLE_MOUSE => {
                self.set_control(control::MOUSE_OFF, byte == command::DISABLE_MOUSE);
            }
            command::DISABLE_KEYBOARD | command::ENABLE_KEYBOARD => {
                self.set_control(control::KEYBOARD_OFF, byte == command::DISABLE_KEYBOARD);
            }
            command::TEST_MOUSE | command::TEST_KEYBOARD => self.reply(INTERFACE_GOOD, Source::Keyboard),
            command::SELF_TEST => {
                self.set_control(control::SYSTEM, true);
                self.reply(SELF_TEST_PASSED, Source::Keyboard);
            }
            command::READ_INPUT => self.reply(INPUT_PORT, Source::Keyboard),
            command::READ_OUTPUT => self.reply(self.output_port(), Source::Keyboard),
            command::A20_OFF | command::A20_ON => self.a20 = byte == command::A20_ON,
            command::PULSE.. if byte & output::RESET == 0 => return Some(Action::Reset),
            _ => (),
        }
        None
    }

    fn data(&mut self, byte: u8) -> Option<Action> {
        match self.awaiting.take() {
            Some(command @ 0x60..0x80) => {
                let at = usize::from(command - command::WRITE_RAM);
                self.ram[at] = if at == 0 { byte & control::ALL } else { byte };
            }
            Some(command::WRITE_OUTPUT) => {
                self.a20 = byte & output::A20 != 0;
                if byte & output::RESET == 0 {
                    return Some(Action::Reset);
                }
            }
            Some(command::LOOP_KEYBOARD) => self.reply(byte, Source::Keyboard),
            Some(command::LOOP_MOUSE) => self.reply(byte, Source::Mouse),
            // Talking to a device switches its interface on.
            Some(command::TO_MOUSE) => {
                self.set_control(control::MOUSE_OFF, false);
                self.mouse.write(byte);
            }
            _ => {
                self.set_control(control::KEYBOARD_OFF, false);
                self.keyboard.write(byte);
            }
        }
        None
    }

    fn pointer(&mut self, event: InputEvent) {
        let InputEvent { kind, code, value } = event;
        match (kind, code) {
            (ev::REL, code::REL_X) => self.mouse.moved(value, 0),
            (ev::REL, code::REL_Y) => self.mouse.moved(0, value),
            (ev::REL, code::REL_WHEEL) => self.mouse.turned(value),
            (ev::KEY, code::BTN_LEFT) => self.mouse.pressed(button::LEFT, value != 0),
            (ev::KEY, code::BTN_RIGHT) => self.mouse.pressed(button::RIGHT, value != 0),
            (ev::KEY, code::BTN_MIDDLE) => self.mouse.pressed(button::MIDDLE, value != 0),
            (ev::KEY, code::BTN_SIDE) => self.mouse.pressed(button::SIDE, value != 0),
            (ev::KEY, code::BTN_EXTRA) => self.mouse.pressed(button::EXTRA, value != 0),
            (ev::SYN, _) => self.mouse.end_report(),
            // A PS/2 mouse knows no positions, and one wheel.
            _ => (),
        }
    }
}

impl Shared {
    /// Fills the buffer, and has lines and timer follow.
    fn update(&self, state: &mut State) {
        state.fill();
        let raised = |source, bit| state.full == Some(source) && state.control(bit);
        self.keyboard_irq.set(raised(Source::Keyboard, control::KEYBOARD_INTERRUPT));
        self.mouse_irq.set(raised(Source::Mouse, control::MOUSE_INTERRUPT));
        let waits = state.keyboard.has_codes() || state.full == Some(Source::Keyboard);
        if !waits && !self.keyboard_port.is_claimed() {
            self.keyboard_port.tell_taken();
        }
        if let Some(delay) = state.keyboard.take_timer() {
            state.timer.arm(delay);
        }
    }

    fn read_data(&self) -> u8 {
        let mut state = lock(&self.state);
        let byte = state.buffer;
        if state.full.take().is_some() {
            // The lines fall between two bytes: interrupts come at their edges.
            self.keyboard_irq.set(false);
            self.mouse_irq.set(false);
            self.update(&mut state);
        }
        byte
    }

    /// Takes what the person did, unless a better driver has the port.
    fn take_keys(&self, state: &mut State) {
        while !self.keyboard_port.is_claimed() {
            let Some(event) = self.keyboard_port.receive() else { return };
            // The keyboard repeats by itself.
            if event.kind == ev::KEY && event.value != 2 {
                state.keyboard.key(event.code, event.value != 0);
            }
        }
        state.keyboard.release_all();
    }

    fn take_pointer(&self, state: &mut State) {
        while !self.pointer_port.is_claimed() {
            let Some(event) = self.pointer_port.receive() else { return };
            state.pointer(event);
        }
        state.mouse.release_all();
    }
}

impl I8042 {
    /// A controller that raises interrupts 1 and 12 and takes input from the two ports while nobody claims them, on
    /// `executor`. Fails when the host is out of file descriptors.
    pub fn new(
        keyboard_port: InputPort,
        pointer_port: InputPort,
        keyboard_irq: Arc<dyn IrqLine>,
        mouse_irq: Arc<dyn IrqLine>,
        executor: Arc<dyn Executor>,
    ) -> std::io::Result<I8042> {
        let state = Mutex::new(State::power_on(Timer::new()?));
        let shared = Shared { keyboard_irq, mouse_irq, keyboard_port, pointer_port, state };
        Ok(I8042 { shared: Arc::new(shared), work: Work::new(executor) })
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (DATA, [byte]) => *byte = self.shared.read_data(),
            (COMMAND, [byte]) => *byte = lock(&self.shared.state).status(),
            _ => (),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let &[byte] = data else { return None };
        let mut state = lock(&self.shared.state);
        let action = match offset {
            DATA => {
                state.wrote_command = false;
                state.data(byte)
            }
            COMMAND => {
                state.wrote_command = true;
                state.command(byte)
            }
            _ => None,
        };
        self.shared.update(&mut state);
        action
    }
}

/// Tokens of the descriptors.
const KEYBOARD: u32 = 0;
const POINTER: u32 = 1;
const REPEAT: u32 = 2;

struct Intake(Arc<Shared>);

impl Task for Intake {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        let shared = &self.0;
        vec![
            (shared.keyboard_port.as_fd().as_raw_fd(), KEYBOARD),
            (shared.pointer_port.as_fd().as_raw_fd(), POINTER),
            (lock(&shared.state).timer.descriptor(), REPEAT),
        ]
    }

    fn start(&mut self) {
        self.ready(KEYBOARD);
        self.ready(POINTER);
    }

    fn ready(&mut self, token: u32) {
        let mut state = lock(&self.0.state);
        match token {
            KEYBOARD => self.0.take_keys(&mut state),
            POINTER => self.0.take_pointer(&mut state),
            // One that is armed again has not expired for the key that repeats now.
            _ if !state.timer.is_armed() => state.keyboard.repeat(),
            _ => (),
        }
        self.0.update(&mut state);
    }

    fn stopped(self: Box<Self>) {}
}

impl Component for I8042 {
    fn name(&self) -> String {
        "i8042".into()
    }

    fn pause(&self) {
        self.work.stop();
    }

    fn resume(&self) {
        self.work.start(|| Box::new(Intake(self.shared.clone())));
    }

    fn reset(&self) {
        // What was typed was meant for the guest that is gone.
        self.shared.keyboard_port.clear();
        self.shared.pointer_port.clear();
        let mut state = lock(&self.shared.state);
        let State { ram, a20, awaiting, wrote_command, replies, full, buffer, keyboard, mouse, timer: _ } = &mut *state;
        *ram = [0; 32];
        ram[0] = control::RESET;
        (*a20, *awaiting, *wrote_command) = (true, None, true);
        replies.clear();
        (*full, *buffer) = (None, 0);
        *keyboard = Keyboard::default();
        *mouse = Mouse::default();
        self.shared.update(&mut state);
    }

    fn save(&self) -> Result<Section, StateError> {
        let state = lock(&self.shared.state);
        let State { ram, a20, awaiting, wrote_command, replies, full, buffer, keyboard, mouse, timer: _ } = &*state;
        let kept = I8042State {
            ram: *ram,
            a20: *a20,
            awaiting: *awaiting,
            wrote_command: *wrote_command,
            replies: replies.iter().copied().collect(),
            full: *full,
            buffer: *buffer,
            keyboard: keyboard.save(),
            mouse: mouse.save(),
        };
        Section::encode(&self.name(), &kept)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let I8042State { ram, a20, awaiting, wrote_command, replies, full, buffer, keyboard, mouse } =
            section.decode()?;
        let wrong = |why: &str| StateError::invalid(self.name(), why);
        if replies.len() > MAX_REPLIES {
            return Err(wrong("more bytes wait than the controller keeps"));
        }
        let (keyboard, mouse) = (Keyboard::restore(keyboard).map_err(wrong)?, Mouse::restore(mouse).map_err(wrong)?);
        let mut state = lock(&self.shared.state);
        state.ram = ram;
        state.ram[0] &= control::ALL;
        state.a20 = a20;
        state.awaiting = awaiting;
        state.wrote_command = wrote_command;
        state.replies = replies.into();
        state.full = full;
        state.buffer = buffer;
        state.keyboard = keyboard;
        state.mouse = mouse;
        self.shared.update(&mut state);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

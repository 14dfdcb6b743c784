//! The PS/2 mouse at the controller's second port (IBM PS/2 Technical Reference, "Mouse"; the wheel and the fourth and
//! fifth button are Microsoft's, which a driver asks for by sample rates that mean nothing else).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

mod command {
    pub const SCALING_1_1: u8 = 0xe6;
    pub const SCALING_2_1: u8 = 0xe7;
    pub const SET_RESOLUTION: u8 = 0xe8;
    pub const STATUS: u8 = 0xe9;
    pub const STREAM_MODE: u8 = 0xea;
    pub const READ_DATA: u8 = 0xeb;
    pub const RESET_WRAP_MODE: u8 = 0xec;
    pub const WRAP_MODE: u8 = 0xee;
    pub const REMOTE_MODE: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const SET_SAMPLE_RATE: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;

/// Identities: plain, with a wheel, with a wheel and five buttons.
const PLAIN: u8 = 0;
const WHEEL: u8 = 3;
const FIVE_BUTTONS: u8 = 4;
/// The sample rates, in their order, that ask for them.
const ASKS_FOR_WHEEL: [u8; 3] = [200, 100, 80];
const ASKS_FOR_FIVE_BUTTONS: [u8; 3] = [200, 200, 80];

/// Bits of the buttons, as the first byte of a packet has the first three.
pub mod button {
    pub const LEFT: u8 = 1;
    pub const RIGHT: u8 = 2;
    pub const MIDDLE: u8 = 4;
    pub const SIDE: u8 = 8;
    pub const EXTRA: u8 = 16;
    pub const ALL: u8 = 31;
}

/// The farthest movement that one packet can tell of, and one notch count of the wheel.
const MAX_STEP: i32 = 255;
const MAX_NOTCHES: i32 = 7;
/// The farthest movement that is remembered for a guest that does not look.
const MAX_MOVEMENT: i32 = 2048;
const MAX_REMEMBERED_NOTCHES: i32 = 64;
/// Bytes that wait for such a guest; then changes of buttons are not told one by one any more.
const MAX_WAITING: usize = 64;
const MAX_REPLIES: usize = 8;

/// The mouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mouse {
    reporting: bool,
    remote: bool,
    wrapped: bool,
    double: bool,
    resolution: u8,
    rate: u8,
    identity: u8,
    last_rates: [u8; 3],
    /// The command whose parameter comes next.
    awaiting: Option<u8>,
    buttons: u8,
    /// The buttons in the newest packet.
    told_buttons: u8,
    /// Movement that no packet told of yet; up is positive.
    movement: [i32; 2],
    /// Notches towards the user.
    notches: i32,
    /// Answers go before packets.
    replies: VecDeque<u8>,
    packets: VecDeque<u8>,
    last_sent: u8,
}

/// What a checkpoint keeps of the mouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MouseState {
    reporting: bool,
    remote: bool,
    wrapped: bool,
    double: bool,
    resolution: u8,
    rate: u8,
    identity: u8,
    last_rates: [u8; 3],
    awaiting: Option<u8>,
    buttons: u8,
    told_buttons: u8,
    movement: [i32; 2],
    notches: i32,
    replies: Vec<u8>,
    packets: Vec<u8>,
    last_sent: u8,
}

impl Default for Mouse {
    fn default() -> Mouse {
        Mouse {
            reporting: false,
            remote: false,
            wrapped: false,
            double: false,
            resolution: 2,
            rate: 100,
            identity: PLAIN,
            last_rates: [0; 3],
            awaiting: None,
            buttons: 0,
            told_buttons: 0,
            movement: [0; 2],
            notches: 0,
            replies: VecDeque::new(),
            packets: VecDeque::new(),
            last_sent: 0,
        }
    }
}

impl Mouse {
    /// The guest sends a byte.
    pub fn write(&mut self, byte: u8) {
        if self.wrapped && byte != command::RESET && byte != command::RESET_WRAP_MODE {
            return self.reply(&[byte]);
        }
        match self.awaiting.take() {
            Some(command) if byte < command::SCALING_1_1 => self.parameter(command, byte),
            _ => self.command(byte),
        }
    }

    fn command(&mut self, byte: u8) {
        match byte {
            command::SCALING_1_1 | command::SCALING_2_1 => self.double = byte == command::SCALING_2_1,
            command::SET_RESOLUTION | command::SET_SAMPLE_RATE => self.awaiting = Some(byte),
            command::STATUS => {
                let status = self.status();
                return self.reply(&[ACK, status, self.resolution, self.rate]);
            }
            command::STREAM_MODE => self.remote = false,
            command::REMOTE_MODE => self.remote = true,
            command::WRAP_MODE => self.wrapped = true,
            command::RESET_WRAP_MODE => self.wrapped = false,
            command::READ_DATA => {
                self.reply(&[ACK]);
                let packet = self.packet();
                return self.reply(&packet);
            }
            command::IDENTIFY => return self.reply(&[ACK, self.identity]),
            command::ENABLE => {
                self.forget_movement();
                self.reporting = true;
            }
            command::DISABLE => self.reporting = false,
            command::DEFAULTS => self.set_defaults(),
            command::RESEND => return self.reply(&[self.last_sent]),
            command::RESET => {
                *self = Mouse { buttons: self.buttons, told_buttons: self.buttons, ..Mouse::default() };
                return self.reply(&[ACK, SELF_TEST_PASSED, PLAIN]);
            }
            _ => return self.reply(&[RESEND]),
        }
        self.reply(&[ACK]);
    }

    fn parameter(&mut self, command: u8, byte: u8) {
        if command == command::SET_RESOLUTION {
            self.resolution = byte & 3;
        } else {
            self.rate = byte;
            self.last_rates = [self.last_rates[1], self.last_rates[2], byte];
            match self.last_rates {
                ASKS_FOR_WHEEL => self.identity = WHEEL,
                ASKS_FOR_FIVE_BUTTONS => self.identity = FIVE_BUTTONS,
                _ => (),
            }
        }
        self.reply(&[ACK]);
    }

    fn set_defaults(&mut self) {
        let defaults = Mouse::default();
        self.reporting = false;
        self.remote = false;
        self.double = false;
        self.resolution = defaults.resolution;
        self.rate = defaults.rate;
        self.forget_movement();
    }

    fn forget_movement(&mut self) {
        self.packets.clear();
        self.movement = [0; 2];
        self.notches = 0;
        self.told_buttons = self.buttons;
    }

    /// The first of the three status bytes.
    fn status(&self) -> u8 {
        let bit = |on: bool, at: u8| u8::from(on) << at;
        let pressed = |which: u8| self.buttons & which != 0;
        bit(self.remote, 6)
            | bit(self.reporting, 5)
            | bit(self.double, 4)
            | bit(pressed(button::LEFT), 2)
            | bit(pressed(button::MIDDLE), 1)
            | bit(pressed(button::RIGHT), 0)
    }

    fn reply(&mut self, bytes: &[u8]) {
        if self.replies.len() + bytes.len() > MAX_REPLIES {
            // A guest that never reads what it asks for gets the newest answer.
            self.replies.clear();
        }
        self.replies.extend(bytes);
    }

    /// The next byte for the controller.
    pub fn pop(&mut self) -> Option<u8> {
        if self.replies.is_empty() && self.packets.is_empty() && self.streams() && self.has_news() {
            self.queue_packet();
        }
        let byte = self.replies.pop_front().or_else(|| self.packets.pop_front())?;
        self.last_sent = byte;
        Some(byte)
    }

    fn streams(&self) -> bool {
        self.reporting && !self.remote && !self.wrapped
    }

    fn shown_buttons(&self) -> u8 {
        if self.identity == FIVE_BUTTONS { button::ALL } else { button::LEFT | button::RIGHT | button::MIDDLE }
    }

    fn has_news(&self) -> bool {
        let changed = (self.buttons ^ self.told_buttons) & self.shown_buttons() != 0;
        changed || self.movement != [0; 2] || (self.identity != PLAIN && self.notches != 0)
    }

    /// Moves by so many counts to the right and down.
    pub fn moved(&mut self, right: i32, down: i32) {
        let [x, y] = &mut self.movement;
        *x = x.saturating_add(right).clamp(-MAX_MOVEMENT, MAX_MOVEMENT);
        *y = y.saturating_sub(down).clamp(-MAX_MOVEMENT, MAX_MOVEMENT);
    }

    /// The wheel turns by so many notches away from the user.
    pub fn turned(&mut self, away: i32) {
        self.notches = self.notches.saturating_sub(away).clamp(-MAX_REMEMBERED_NOTCHES, MAX_REMEMBERED_NOTCHES);
    }

    /// A button goes down or up.
    pub fn pressed(&mut self, which: u8, pressed: bool) {
        let before = self.buttons;
        self.buttons = if pressed { before | which } else { before & !which };
        // A packet of its own, so that a click between two looks of the guest is not lost.
        if self.buttons != before && self.streams() && self.has_news() && self.packets.len() < MAX_WAITING {
            self.queue_packet();
        }
    }

    /// All buttons go up.
    pub fn release_all(&mut self) {
        self.pressed(button::ALL, false);
    }

    /// Ends a report. Without a guest that listens, movement is not remembered.
    pub fn end_report(&mut self) {
        if !self.streams() && !self.remote {
            self.forget_movement();
        }
    }

    fn queue_packet(&mut self) {
        let packet = self.packet();
        self.packets.extend(packet);
    }

    /// Tells of as much movement as fits; the rest stays for the next packet.
    fn packet(&mut self) -> Vec<u8> {
        let mut step = [0; 2];
        for (step, rest) in step.iter_mut().zip(&mut self.movement) {
            let most = if self.double && !self.remote { MAX_STEP / 2 } else { MAX_STEP };
            *step = (*rest).clamp(-most, most);
            *rest -= *step;
            if self.double && !self.remote {
                *step = doubled(*step);
            }
        }
        let [x, y] = step;
        let signs = u8::from(x < 0) << 4 | u8::from(y < 0) << 5;
        let basic = button::LEFT | button::RIGHT | button::MIDDLE;
        let mut packet = vec![8 | signs | (self.buttons & basic), x as u8, y as u8];
        if self.identity != PLAIN {
            let notches = self.notches.clamp(-MAX_NOTCHES, MAX_NOTCHES);
            self.notches -= notches;
            packet.push(match self.identity {
                FIVE_BUTTONS => (notches as u8 & 0xf) | (self.buttons & (button::SIDE | button::EXTRA)) << 1,
                _ => notches as u8,
            });
        } else {
            self.notches = 0;
        }
        self.told_buttons = self.buttons;
        packet
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> MouseState {
        let Mouse {
            reporting,
            remote,
            wrapped,
            double,
            resolution,
            rate,
            identity,
            last_rates,
            awaiting,
            buttons,
            told_buttons,
            movement,
            notches,
            replies,
            packets,
            last_sent,
        } = self.clone();
        MouseState {
            reporting,
            remote,
            wrapped,
            double,
            resolution,
            rate,
            identity,
            last_rates,
            awaiting,
            buttons,
            told_buttons,
            movement,
            notches,
            replies: replies.into(),
            packets: packets.into(),
            last_sent,
        }
    }

    /// A mouse in this state, if it is one that a mouse can be in. Nobody holds its buttons any more.
    pub fn restore(state: MouseState) -> Result<Mouse, &'static str> {
        let MouseState {
            reporting,
            remote,
            wrapped,
            double,
            resolution,
            rate,
            identity,
            last_rates,
            awaiting,
            buttons,
            told_buttons,
            movement,
            notches,
            replies,
            packets,
            last_sent,
        } = state;
        if ![PLAIN, WHEEL, FIVE_BUTTONS].contains(&identity) {
            return Err("there is no such kind of mouse");
        }
        if replies.len() > MAX_REPLIES || packets.len() > 2 * MAX_WAITING {
            return Err("more bytes wait than a mouse keeps");
        }
        let mut mouse = Mouse {
            reporting,
            remote,
            wrapped,
            double,
            resolution: resolution & 3,
            rate,
            identity,
            last_rates,
            awaiting,
            buttons: buttons & button::ALL,
            told_buttons: told_buttons & button::ALL,
            movement: movement.map(|m| m.clamp(-MAX_MOVEMENT, MAX_MOVEMENT)),
            notches: notches.clamp(-MAX_REMEMBERED_NOTCHES, MAX_REMEMBERED_NOTCHES),
            replies: replies.into(),
            packets: packets.into(),
            last_sent,
        };
        mouse.release_all();
        Ok(mouse)
    }
}

/// Scaling 2:1: slow movement stays slow.
fn doubled(step: i32) -> i32 {
    let size = match step.abs() {
        small @ (0 | 1) => small,
        2 => 1,
        3 => 3,
        4 => 6,
        5 => 9,
        large => 2 * large,
    };
    size * step.signum()
}

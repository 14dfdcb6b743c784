//! The PS/2 keyboard at the controller's first port (IBM PS/2 Technical Reference, "Keyboard"): 102 keys and more,
//! three scan code sets, and repetition of its own.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{self, ALTS, CTRLS, MAKE_ONLY, PAUSE, SHIFTS, SYSRQ};

mod command {
    pub const SET_LEDS: u8 = 0xed;
    pub const ECHO: u8 = 0xee;
    pub const SCAN_CODE_SET: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const SET_TYPEMATIC: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const DEFAULTS: u8 = 0xf6;
    /// Set 3 only: what all keys send. Here each key always repeats and tells of its release.
    pub const ALL_KEYS_FIRST: u8 = 0xf7;
    pub const ALL_KEYS_LAST: u8 = 0xfa;
    /// Set 3 only: what the keys send that are named next, to the same effect.
    pub const SOME_KEYS_FIRST: u8 = 0xfb;
    pub const SOME_KEYS_LAST: u8 = 0xfd;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const IDENTITY: [u8; 2] = [0xab, 0x83];
/// In sets 2 and 3 the next byte is a release; in set 1 a release has the highest bit.
pub const RELEASE: u8 = 0xf0;
const RELEASED: u8 = 0x80;
/// 10.9 characters a second after half a second.
const DEFAULT_TYPEMATIC: u8 = 0x2b;
/// Bytes that wait for a guest that does not look; then presses are dropped. A release is never: each belongs to a
/// press that was not.
const MAX_WAITING: usize = 64;
/// The most bytes that may wait in a restored state: the above and the releases of all keys.
const MAX_RESTORED: usize = 2048;
const MAX_REPLIES: usize = 8;

/// The keyboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyboard {
    scanning: bool,
    set: u8,
    leds: u8,
    typematic: u8,
    /// The command whose parameter comes next.
    awaiting: Option<u8>,
    /// Answers go before keys.
    replies: VecDeque<u8>,
    codes: VecDeque<u8>,
    last_sent: u8,
    /// Keys whose press was sent, and whose release was not.
    down: BTreeSet<u16>,
    /// The key that repeats.
    repeating: Option<u16>,
    /// What the host timer is to do, if that changed.
    timer: Option<Option<Duration>>,
}

/// What a checkpoint keeps of the keyboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardState {
    scanning: bool,
    set: u8,
    leds: u8,
    typematic: u8,
    awaiting: Option<u8>,
    replies: Vec<u8>,
    codes: Vec<u8>,
    last_sent: u8,
    down: Vec<u16>,
}

/// A byte on its way to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Part of a key's code.
    Code(u8),
    /// Part of an answer.
    Reply(u8),
}

impl Default for Keyboard {
    fn default() -> Keyboard {
        Keyboard {
            scanning: true,
            set: 2,
            leds: 0,
            typematic: DEFAULT_TYPEMATIC,
            awaiting: None,
            replies: VecDeque::new(),
            codes: VecDeque::new(),
            last_sent: 0,
            down: BTreeSet::new(),
            repeating: None,
            timer: Some(None),
        }
    }
}

impl Keyboard {
    /// The guest sends a byte.
    pub fn write(&mut self, byte: u8) {
        // A command in place of a parameter begins anew.
        match self.awaiting.take().filter(|_| byte < command::SET_LEDS) {
            Some(command) => self.parameter(command, byte),
            None => self.command(byte),
        }
    }

    fn command(&mut self, byte: u8) {
        match byte {
            command::SET_LEDS | command::SCAN_CODE_SET | command::SET_TYPEMATIC => {
                self.awaiting = Some(byte);
                self.reply(&[ACK]);
            }
            command::SOME_KEYS_FIRST..=command::SOME_KEYS_LAST => {
                self.awaiting = Some(byte);
                self.reply(&[ACK]);
            }
            command::ALL_KEYS_FIRST..=command::ALL_KEYS_LAST => self.reply(&[ACK]),
            command::ECHO => self.reply(&[command::ECHO]),
            command::IDENTIFY => self.reply(&[ACK, IDENTITY[0], IDENTITY[1]]),
            command::ENABLE => {
                self.codes.clear();
                self.scanning = true;
                self.reply(&[ACK]);
            }
            command::DISABLE | command::DEFAULTS => {
                self.set_defaults();
                self.scanning = byte == command::DEFAULTS;
                self.reply(&[ACK]);
            }
            command::RESEND => {
                let byte = self.last_sent;
                self.reply(&[byte]);
            }
            command::RESET => {
                *self = Keyboard::default();
                self.reply(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.reply(&[RESEND]),
        }
    }

    fn parameter(&mut self, command: u8, byte: u8) {
        match (command, byte) {
            (command::SET_LEDS, _) => self.leds = byte & 7,
            (command::SET_TYPEMATIC, _) => self.typematic = byte & 0x7f,
            (command::SCAN_CODE_SET, 0) => {
                let set = self.set;
                return self.reply(&[ACK, set]);
            }
            (command::SCAN_CODE_SET, 1..=3) => {
                self.codes.clear();
                self.set = byte;
            }
            (command::SCAN_CODE_SET, _) => return self.reply(&[RESEND]),
            // More keys may follow.
            _ => self.awaiting = Some(command),
        }
        self.reply(&[ACK]);
    }

    fn set_defaults(&mut self) {
        self.codes.clear();
        self.set = 2;
        self.typematic = DEFAULT_TYPEMATIC;
        self.stop_repeating();
    }

    fn reply(&mut self, bytes: &[u8]) {
        if self.replies.len() + bytes.len() > MAX_REPLIES {
            // A guest that never reads what it asks for gets the newest answer.
            self.replies.clear();
        }
        self.replies.extend(bytes);
    }

    /// Whether codes of keys wait for the guest.
    pub fn has_codes(&self) -> bool {
        !self.codes.is_empty()
    }

    /// The next byte for the controller.
    pub fn pop(&mut self) -> Option<Sent> {
        let sent = match self.replies.pop_front() {
            Some(byte) => Sent::Reply(byte),
            None => Sent::Code(self.codes.pop_front()?),
        };
        let (Sent::Code(byte) | Sent::Reply(byte)) = sent;
        self.last_sent = byte;
        Some(sent)
    }

    /// A key goes down or up, by its Linux key code.
    pub fn key(&mut self, key: u16, pressed: bool) {
        if pressed {
            if self.scanning && !self.down.contains(&key) && self.codes.len() < MAX_WAITING && self.send(key, true) {
                self.down.insert(key);
                if key != PAUSE {
                    self.repeating = Some(key);
                    self.timer = Some(Some(self.delay()));
                }
            }
        } else if self.down.remove(&key) {
            if self.repeating == Some(key) {
                self.stop_repeating();
            }
            if self.scanning {
                self.send(key, false);
            }
        }
    }

    /// All keys go up.
    pub fn release_all(&mut self) {
        for key in self.down.clone() {
            self.key(key, false);
        }
    }

    /// The host timer expired: the key that is held repeats, if the guest keeps up.
    pub fn repeat(&mut self) {
        let Some(key) = self.repeating else { return };
        if self.scanning && self.codes.is_empty() {
            self.send(key, true);
        }
        self.timer = Some(Some(self.period()));
    }

    fn stop_repeating(&mut self) {
        self.repeating = None;
        self.timer = Some(None);
    }

    /// What the host timer is to do now: expire after a while, or never. `None`: what it does already.
    pub fn take_timer(&mut self) -> Option<Option<Duration>> {
        self.timer.take()
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(250 * (1 + u64::from(self.typematic >> 5 & 3)))
    }

    fn period(&self) -> Duration {
        let rate = u64::from(self.typematic);
        // (8 + bits 2:0) x 2^(bits 4:3) / 240 s.
        Duration::from_micros(((8 + (rate & 7)) << (rate >> 3 & 3)) * 1_000_000 / 240)
    }

    fn any_down(&self, keys: [u16; 2]) -> bool {
        keys.iter().any(|key| self.down.contains(key))
    }

    /// Appends what a key sends. False: nothing, there is no such key.
    fn send(&mut self, key: u16, pressed: bool) -> bool {
        if self.set == 3 {
            let code = match key {
                SYSRQ => 0x57,
                PAUSE => 0x62,
                _ => match keys::codes(key).and_then(|c| c.set3) {
                    Some(code) => code,
                    None => return false,
                },
            };
            if !pressed {
                self.codes.push_back(RELEASE);
            }
            self.codes.push_back(code);
            return true;
        }
        // Codes of set 2 in their order; what follows the colon is released.
        let (press, release): (&[u16], &[u16]) = match key {
            SYSRQ if self.any_down(ALTS) => (&[0x84], &[0x84]),
            SYSRQ if self.any_down(SHIFTS) || self.any_down(CTRLS) => (&[0xe07c], &[0xe07c]),
            SYSRQ => (&[0xe012, 0xe07c], &[0xe07c, 0xe012]),
            PAUSE if self.any_down(CTRLS) => {
                if pressed {
                    self.push(0xe07e, true);
                    self.push(0xe07e, false);
                }
                return true;
            }
            PAUSE => {
                if pressed {
                    self.push_pause();
                }
                return true;
            }
            _ => match keys::codes(key) {
                Some(codes) => {
                    if pressed || !MAKE_ONLY.contains(&key) {
                        self.push(codes.set2, pressed);
                    }
                    return true;
                }
                None => return false,
            },
        };
        for &code in if pressed { press } else { release } {
            self.push(code, pressed);
        }
        true
    }

    /// Appends one code of set 2 in the set that is chosen.
    fn push(&mut self, code: u16, pressed: bool) {
        let [prefix, code] = code.to_be_bytes();
        if prefix != 0 {
            self.codes.push_back(prefix);
        }
        if self.set == 1 {
            self.codes.push_back(keys::translate(code) | if pressed { 0 } else { RELEASED });
        } else {
            if !pressed {
                self.codes.push_back(RELEASE);
            }
            self.codes.push_back(code);
        }
    }

    /// Pause is pressed and released in one: E1, and control with num lock as old keyboards had it.
    fn push_pause(&mut self) {
        for pressed in [true, false] {
            self.codes.push_back(0xe1);
            self.push(0x14, pressed);
            self.push(0x77, pressed);
        }
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> KeyboardState {
        let Keyboard {
            scanning,
            set,
            leds,
            typematic,
            awaiting,
            replies,
            codes,
            last_sent,
            down,
            repeating: _,
            timer: _,
        } = self.clone();
        KeyboardState {
            scanning,
            set,
            leds,
            typematic,
            awaiting,
            replies: replies.into(),
            codes: codes.into(),
            last_sent,
            down: down.into_iter().collect(),
        }
    }

    /// A keyboard in this state, if it is one that a keyboard can be in. Nobody holds its keys any more.
    pub fn restore(state: KeyboardState) -> Result<Keyboard, &'static str> {
        let KeyboardState { scanning, set, leds, typematic, awaiting, replies, codes, last_sent, down } = state;
        if !(1..=3).contains(&set) {
            return Err("there are only three scan code sets");
        }
        if replies.len() > MAX_REPLIES || codes.len() > MAX_RESTORED {
            return Err("more bytes wait than a keyboard keeps");
        }
        let mut keyboard = Keyboard {
            scanning,
            set,
            leds: leds & 7,
            typematic: typematic & 0x7f,
            awaiting,
            replies: replies.into(),
            codes: codes.into(),
            last_sent,
            down: down.into_iter().filter(|&key| keys::codes(key).is_some() || key == SYSRQ || key == PAUSE).collect(),
            repeating: None,
            timer: Some(None),
        };
        keyboard.release_all();
        Ok(keyboard)
    }
}

//! The keyboard on its way to the guest: which keys are down there, what the host key means, and when nothing is sent.
//!
//! Keys are Linux evdev codes (`linux/input-event-codes.h`), which is also what virtio-input carries. A key that is
//! held repeats in the guest's own driver when that is virtio-input; a PS/2 keyboard repeats in the device, so
//! repeats (value 2) go only to a guest whose keyboard port is not claimed by a virtio driver.

use vmm_core::backend::input::{InputEvent, ev};

/// The evdev codes that the window itself knows.
pub mod key {
    /// Backspace.
    pub const BACKSPACE: u16 = 14;
    /// Tab.
    pub const TAB: u16 = 15;
    /// Left Ctrl.
    pub const LEFT_CTRL: u16 = 29;
    /// Left Alt.
    pub const LEFT_ALT: u16 = 56;
    /// F1; F2 to F10 follow.
    pub const F1: u16 = 59;
    /// F4.
    pub const F4: u16 = 62;
    /// F11; F12 follows.
    pub const F11: u16 = 87;
    /// Right Ctrl: the host key.
    pub const RIGHT_CTRL: u16 = 97;
    /// Print Screen and SysRq.
    pub const SYSRQ: u16 = 99;
    /// Home.
    pub const HOME: u16 = 102;
    /// Left arrow.
    pub const LEFT: u16 = 105;
    /// Right arrow.
    pub const RIGHT: u16 = 106;
    /// Delete.
    pub const DELETE: u16 = 111;
    /// Left Super (the logo key).
    pub const LEFT_META: u16 = 125;
}

/// The host key of a fresh installation.
pub const HOST_KEY: u16 = key::RIGHT_CTRL;

/// The keys that are down in the guest because of this window.
#[derive(Debug, Default)]
pub struct HeldKeys {
    down: Vec<u16>,
}

impl HeldKeys {
    /// What to tell the guest when a key goes down (`repeat`: it was down already) or up. Nothing for the release
    /// of a key that the guest never saw pressed, like the host key's.
    pub fn change(&mut self, code: u16, pressed: bool, repeat: bool) -> Option<InputEvent> {
        let held = self.down.iter().position(|&k| k == code);
        match (pressed, held) {
            (true, Some(_)) => repeat.then_some(InputEvent { kind: ev::KEY, code, value: 2 }),
            // A repeat of a key that is not down in the guest: its press belonged to the host.
            (true, None) if repeat => None,
            (true, None) => {
                self.down.push(code);
                Some(InputEvent::key(code, true))
            }
            (false, Some(at)) => {
                self.down.remove(at);
                Some(InputEvent::key(code, false))
            }
            (false, None) => None,
        }
    }

    /// Releases every key, the last pressed first.
    pub fn release_all(&mut self) -> Vec<InputEvent> {
        self.down.drain(..).rev().map(|code| InputEvent::key(code, false)).collect()
    }

    /// Whether exactly these keys are down.
    pub fn are_exactly(&self, keys: &[u16]) -> bool {
        self.down.len() == keys.len() && keys.iter().all(|k| self.down.contains(k))
    }
}

/// One key going down or up, as the window system tells it.
#[derive(Debug, Clone, Copy)]
pub struct Stroke {
    /// Its evdev code.
    pub code: u16,
    /// What the layout makes of it, lower case, if that is one character.
    pub character: Option<char>,
    /// Down or up.
    pub pressed: bool,
    /// It was down already.
    pub repeat: bool,
}

/// What a stroke is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The guest's.
    Guest,
    /// The host key and whatever is pressed with it: not the guest's.
    Host,
    /// Host key and this stroke together.
    Chord(Stroked),
    /// The host key went down and up alone.
    Tapped,
}

/// The key of a chord.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroked {
    /// By what it types, so that the letter on the key cap counts.
    Character(char),
    /// By its place.
    Code(u16),
}

/// Finds the host key and its chords in the stream of strokes.
#[derive(Debug, Default)]
pub struct HostKey {
    down: bool,
    alone: bool,
    /// Keys whose press was the host's: their repeats and releases are too.
    swallowed: Vec<u16>,
}

impl HostKey {
    /// Judges one stroke.
    pub fn judge(&mut self, stroke: Stroke) -> Verdict {
        if stroke.code == HOST_KEY {
            let tapped = !stroke.pressed && self.down && self.alone;
            if !stroke.repeat {
                self.down = stroke.pressed;
                self.alone = stroke.pressed;
            }
            return if tapped { Verdict::Tapped } else { Verdict::Host };
        }
        let swallowed = self.swallowed.iter().position(|&k| k == stroke.code);
        if let Some(at) = swallowed {
            if !stroke.pressed {
                self.swallowed.remove(at);
            }
            return Verdict::Host;
        }
        if !self.down || !stroke.pressed {
            return Verdict::Guest;
        }
        self.alone = false;
        self.swallowed.push(stroke.code);
        match stroke.character {
            Some(c) => Verdict::Chord(Stroked::Character(c)),
            None => Verdict::Chord(Stroked::Code(stroke.code)),
        }
    }

    /// Something other than a key was done with the host key down: it is no tap any more.
    pub fn used(&mut self) {
        self.alone = false;
    }

    /// The window lost the keyboard: whatever was down is not.
    pub fn forget(&mut self) {
        *self = HostKey::default();
    }
}

/// Left Ctrl and left Alt pressed and let go with no other key: the second way out of a capture.
#[derive(Debug, Default)]
pub struct ReleaseChord {
    armed: bool,
}

impl ReleaseChord {
    /// Looks at a stroke after `held` took it in; `true` when the capture is to end.
    pub fn judge(&mut self, stroke: Stroke, held: &HeldKeys) -> bool {
        if stroke.pressed {
            if !stroke.repeat {
                self.armed = held.are_exactly(&[key::LEFT_CTRL, key::LEFT_ALT]);
            }
            return false;
        }
        let ours = stroke.code == key::LEFT_CTRL || stroke.code == key::LEFT_ALT;
        std::mem::take(&mut self.armed) && ours
    }
}

/// What a key of a US keyboard types, lower case, for layouts whose characters no chord uses (Greek, Cyrillic …).
pub fn us_character(code: u16) -> Option<char> {
    const ROWS: [(u16, &str); 4] = [(2, "1234567890-="), (16, "qwertyuiop"), (30, "asdfghjkl"), (44, "zxcvbnm,./")];
    ROWS.iter().find_map(|(first, row)| row.chars().nth(usize::from(code.checked_sub(*first)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stroke(code: u16, pressed: bool) -> Stroke {
        Stroke { code, character: us_character(code), pressed, repeat: false }
    }

    fn judge(host: &mut HostKey, strokes: &[(u16, bool)]) -> Vec<Verdict> {
        strokes.iter().map(|&(code, pressed)| host.judge(stroke(code, pressed))).collect()
    }

    const F: u16 = 33;

    #[test]
    fn losing_the_focus_releases_every_key_once() {
        let mut held = HeldKeys::default();
        held.change(key::LEFT_META, true, false);
        held.change(18, true, false);
        assert_eq!(held.change(18, false, false), Some(InputEvent::key(18, false)));
        held.change(19, true, false);
        assert_eq!(held.release_all(), [InputEvent::key(19, false), InputEvent::key(key::LEFT_META, false)]);
        assert!(held.release_all().is_empty());
        assert_eq!(held.change(19, false, false), None);
    }

    #[test]
    fn a_second_press_is_a_repeat_or_nothing() {
        let mut held = HeldKeys::default();
        assert_eq!(held.change(30, true, true), None);
        assert_eq!(held.change(30, true, false), Some(InputEvent::key(30, true)));
        assert_eq!(held.change(30, true, true), Some(InputEvent { kind: ev::KEY, code: 30, value: 2 }));
        assert_eq!(held.change(30, true, false), None);
    }

    #[test]
    fn the_host_key_alone_is_a_tap() {
        let mut host = HostKey::default();
        assert_eq!(judge(&mut host, &[(HOST_KEY, true), (HOST_KEY, false)]), [Verdict::Host, Verdict::Tapped]);
    }

    #[test]
    fn the_host_key_with_a_click_is_no_tap() {
        let mut host = HostKey::default();
        host.judge(stroke(HOST_KEY, true));
        host.used();
        assert_eq!(host.judge(stroke(HOST_KEY, false)), Verdict::Host);
    }

    #[test]
    fn a_chord_is_hidden_from_the_guest_whichever_key_goes_up_first() {
        for ups in [[HOST_KEY, F], [F, HOST_KEY]] {
            let mut host = HostKey::default();
            let verdicts = judge(&mut host, &[(HOST_KEY, true), (F, true), (ups[0], false), (ups[1], false)]);
            let chord = Verdict::Chord(Stroked::Character('f'));
            assert_eq!(verdicts, [Verdict::Host, chord, Verdict::Host, Verdict::Host]);
            assert_eq!(judge(&mut host, &[(F, true), (F, false)]), [Verdict::Guest; 2]);
        }
    }

    #[test]
    fn a_key_held_before_the_host_key_is_still_released_in_the_guest() {
        let mut host = HostKey::default();
        let verdicts = judge(&mut host, &[(F, true), (HOST_KEY, true), (F, false)]);
        assert_eq!(verdicts, [Verdict::Guest, Verdict::Host, Verdict::Guest]);
    }

    #[test]
    fn keys_that_type_nothing_are_chords_by_their_place() {
        let mut host = HostKey::default();
        let verdicts = judge(&mut host, &[(HOST_KEY, true), (key::DELETE, true)]);
        assert_eq!(verdicts[1], Verdict::Chord(Stroked::Code(key::DELETE)));
    }

    #[test]
    fn a_forgotten_host_key_does_not_swallow_what_follows() {
        let mut host = HostKey::default();
        host.judge(stroke(HOST_KEY, true));
        host.forget();
        assert_eq!(host.judge(stroke(F, true)), Verdict::Guest);
        assert_eq!(host.judge(stroke(HOST_KEY, false)), Verdict::Host);
    }

    #[test]
    fn left_ctrl_and_alt_alone_release_but_not_with_a_third_key() {
        let run = |strokes: &[(u16, bool)]| {
            let (mut held, mut chord) = (HeldKeys::default(), ReleaseChord::default());
            strokes.iter().any(|&(code, pressed)| {
                held.change(code, pressed, false);
                chord.judge(stroke(code, pressed), &held)
            })
        };
        let (ctrl, alt) = (key::LEFT_CTRL, key::LEFT_ALT);
        assert!(run(&[(ctrl, true), (alt, true), (alt, false), (ctrl, false)]));
        assert!(!run(&[(ctrl, true), (alt, true), (key::F1, true), (key::F1, false), (alt, false), (ctrl, false)]));
        assert!(!run(&[(ctrl, true), (ctrl, false), (alt, true), (alt, false)]));
    }

    #[test]
    fn the_us_table_agrees_with_the_letters_of_the_chords() {
        let typed: String = [F, 25, 19, 35, 16, 46, 47, 53].iter().filter_map(|&c| us_character(c)).collect();
        assert_eq!(typed, "fprhqcv/");
        assert_eq!(us_character(key::DELETE), None);
        assert_eq!(us_character(28), None);
    }
}

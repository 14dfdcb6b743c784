//! All that goes from this window to the guest's two input devices, and whether it goes at all.

use vmm_core::backend::input::{InputEvent, InputPort};

use super::actions::Combination;
use super::keys::{HeldKeys, HostKey, ReleaseChord, Stroke, Stroked, Verdict};
use super::pointer::{Button, Pointer};

/// What a stroke means to the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEffect {
    /// Nothing: the guest has it, or nobody.
    None,
    /// It is the host key, or was pressed with it: nobody else's.
    Host,
    /// The host key and this one together.
    Chord(Stroked),
    /// The capture begins or ends.
    ToggleCapture,
    /// The capture ends.
    Release,
}

/// The window's side of the guest's keyboard and pointer.
pub struct Input {
    keyboard: InputPort,
    pointer_port: InputPort,
    held: HeldKeys,
    host: HostKey,
    release: ReleaseChord,
    pointer: Pointer,
    had_tablet: bool,
    /// The guest runs: presses are for it. What a stopped guest is sent would only come all at once, later.
    live: bool,
}

impl Input {
    /// For these two devices.
    pub fn new(keyboard: InputPort, pointer: InputPort) -> Input {
        Input {
            had_tablet: pointer.is_claimed(),
            keyboard,
            pointer_port: pointer,
            held: HeldKeys::default(),
            host: HostKey::default(),
            release: ReleaseChord::default(),
            pointer: Pointer::default(),
            live: false,
        }
    }

    /// Whether the guest takes absolute positions. A change drops what the old device held.
    pub fn has_tablet(&mut self) -> bool {
        let has = self.pointer_port.is_claimed();
        if has != self.had_tablet {
            self.had_tablet = has;
            self.pointer.release_all();
        }
        has
    }

    /// The guest runs, or does not.
    pub fn set_live(&mut self, live: bool) {
        if self.live && !live {
            self.release_all();
        }
        self.live = live;
    }

    /// Whether the guest runs.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// A key went down or up. `for_guest` is false while the overlay has the keyboard: then only the host key counts,
    /// and releases of what the guest saw pressed.
    pub fn key(&mut self, stroke: Stroke, for_guest: bool) -> KeyEffect {
        match self.host.judge(stroke) {
            Verdict::Host => KeyEffect::Host,
            Verdict::Tapped => KeyEffect::ToggleCapture,
            Verdict::Chord(with) => KeyEffect::Chord(with),
            Verdict::Guest => {
                if stroke.pressed && !(for_guest && self.live) {
                    return KeyEffect::None;
                }
                if let Some(event) = self.held.change(stroke.code, stroke.pressed, stroke.repeat)
                    // virtio-input's guest driver repeats by itself; a PS/2 keyboard does so in the device.
                    && !(event.value == 2 && self.keyboard.is_claimed())
                {
                    self.keyboard.send(&[event, InputEvent::SYN]);
                }
                if self.release.judge(stroke, &self.held) { KeyEffect::Release } else { KeyEffect::None }
            }
        }
    }

    /// Presses and releases a combination.
    pub fn send_keys(&mut self, combination: &Combination) {
        if self.live {
            for event in combination.reports() {
                self.keyboard.send(&[event, InputEvent::SYN]);
            }
        }
    }

    /// The pointer is at this absolute position.
    pub fn absolute(&mut self, at: (u32, u32)) {
        if self.live {
            let report = self.pointer.absolute(at);
            self.send_pointer(report);
        }
    }

    /// The pointer moved by so many pixels.
    pub fn relative(&mut self, dx: f64, dy: f64) {
        if self.live {
            let report = self.pointer.relative(dx, dy);
            self.send_pointer(report);
        }
    }

    /// A button went down or up.
    pub fn button(&mut self, button: Button, pressed: bool) {
        if self.live || !pressed {
            let report = self.pointer.button(button, pressed);
            self.send_pointer(report);
        }
    }

    /// The wheel turned, in notches.
    pub fn scroll_notches(&mut self, x: f64, y: f64) {
        if self.live {
            let report = self.pointer.scroll_notches(x, y);
            self.send_pointer(report);
        }
    }

    /// Two fingers moved, in pixels.
    pub fn scroll_pixels(&mut self, x: f64, y: f64) {
        if self.live {
            let report = self.pointer.scroll_pixels(x, y);
            self.send_pointer(report);
        }
    }

    /// A button was used: if the host key is down, it was not pressed for itself.
    pub fn pointer_used(&mut self) {
        self.host.used();
    }

    /// Whether a button is down in the guest.
    pub fn is_dragging(&self) -> bool {
        self.pointer.is_dragging()
    }

    /// Lets go of every key and button in the guest.
    pub fn release_all(&mut self) {
        for event in self.held.release_all() {
            self.keyboard.send(&[event, InputEvent::SYN]);
        }
        let released = self.pointer.release_all();
        if !released.is_empty() {
            self.pointer_port.send(&released);
        }
    }

    /// The window lost the keyboard: nothing is down any more, in the guest or here.
    pub fn lose_focus(&mut self) {
        self.release_all();
        self.host.forget();
        self.release = ReleaseChord::default();
    }

    fn send_pointer(&self, report: Option<Vec<InputEvent>>) {
        if let Some(report) = report {
            self.pointer_port.send(&report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::keys::{HOST_KEY, key};
    use vmm_core::backend::input::ev;

    fn input() -> (Input, InputPort, InputPort) {
        let (keyboard, pointer) = (InputPort::new().unwrap(), InputPort::new().unwrap());
        let mut input = Input::new(keyboard.clone(), pointer.clone());
        input.set_live(true);
        (input, keyboard, pointer)
    }

    fn stroke(code: u16, pressed: bool) -> Stroke {
        Stroke { code, character: None, pressed, repeat: false }
    }

    fn received(port: &InputPort) -> Vec<InputEvent> {
        std::iter::from_fn(|| port.receive()).filter(|e| *e != InputEvent::SYN).collect()
    }

    #[test]
    fn a_guest_with_a_virtio_keyboard_gets_no_repeats() {
        let (mut input, keyboard, _) = input();
        let repeat = Stroke { repeat: true, ..stroke(30, true) };
        input.key(stroke(30, true), true);
        input.key(repeat, true);
        assert_eq!(received(&keyboard).last().map(|e| e.value), Some(2));
        keyboard.claim(true);
        input.key(repeat, true);
        assert!(received(&keyboard).is_empty());
    }

    #[test]
    fn a_key_pressed_in_the_guest_is_released_there_even_when_a_dialog_has_the_keyboard() {
        let (mut input, keyboard, _) = input();
        input.key(stroke(30, true), true);
        input.key(stroke(30, false), false);
        input.key(stroke(31, true), false);
        assert_eq!(received(&keyboard), [InputEvent::key(30, true), InputEvent::key(30, false)]);
    }

    #[test]
    fn a_stopped_guest_is_let_go_and_sent_nothing() {
        let (mut input, keyboard, pointer) = input();
        input.key(stroke(30, true), true);
        input.button(Button::Left, true);
        input.set_live(false);
        assert_eq!(received(&keyboard), [InputEvent::key(30, true), InputEvent::key(30, false)]);
        assert_eq!(received(&pointer).len(), 2);
        input.key(stroke(31, true), true);
        input.absolute((1, 1));
        input.relative(5.0, 5.0);
        input.button(Button::Left, true);
        assert!(received(&keyboard).is_empty() && received(&pointer).is_empty());
    }

    #[test]
    fn the_focus_takes_the_host_key_with_it() {
        let (mut input, keyboard, _) = input();
        input.key(stroke(HOST_KEY, true), true);
        input.lose_focus();
        input.key(stroke(30, true), true);
        assert_eq!(received(&keyboard), [InputEvent::key(30, true)]);
    }

    #[test]
    fn a_position_is_sent_again_when_the_guest_gets_its_tablet() {
        let (mut input, _, pointer) = input();
        input.absolute((7, 7));
        received(&pointer);
        input.absolute((7, 7));
        assert!(received(&pointer).is_empty());
        pointer.claim(true);
        assert!(input.has_tablet());
        input.absolute((7, 7));
        assert_eq!(received(&pointer)[0].kind, ev::ABS);
    }

    #[test]
    fn a_combination_reaches_the_guest_key_by_key() {
        let (mut input, keyboard, _) = input();
        input.send_keys(&crate::console::actions::COMBINATIONS[0]);
        let codes: Vec<_> = received(&keyboard).iter().map(|e| (e.code, e.value)).collect();
        let (ctrl, alt, del) = (key::LEFT_CTRL, key::LEFT_ALT, key::DELETE);
        assert_eq!(codes, [(ctrl, 1), (alt, 1), (del, 1), (del, 0), (alt, 0), (ctrl, 0)]);
    }
}

//! The pointer on its way to the guest: positions, movement, buttons and wheels as evdev reports.

use vmm_core::backend::input::{InputEvent, code, ev};

use super::keys::HeldKeys;

/// How many pixels of a touchpad's smooth scrolling make one notch of a wheel.
const PIXELS_PER_NOTCH: f64 = 40.0;

/// What of the pointer is not whole yet, and which buttons are down in the guest.
#[derive(Debug, Default)]
pub struct Pointer {
    buttons: HeldKeys,
    any_down: u32,
    /// Movement and scrolling smaller than one unit, carried to the next event: x, y.
    motion: (f64, f64),
    wheel: (f64, f64),
    last_absolute: Option<(u32, u32)>,
}

/// The buttons of a mouse, in evdev's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Button {
    /// The main one.
    Left,
    /// The context menu's.
    Right,
    /// The wheel's.
    Middle,
    /// "Back".
    Side,
    /// "Forward".
    Extra,
}

impl Button {
    fn code(self) -> u16 {
        match self {
            Button::Left => code::BTN_LEFT,
            Button::Right => code::BTN_RIGHT,
            Button::Middle => code::BTN_MIDDLE,
            Button::Side => code::BTN_SIDE,
            Button::Extra => code::BTN_EXTRA,
        }
    }
}

impl Pointer {
    /// The report of a new absolute position, if it is new.
    pub fn absolute(&mut self, at: (u32, u32)) -> Option<Vec<InputEvent>> {
        if self.last_absolute.replace(at) == Some(at) {
            return None;
        }
        let axis = |code, value: u32| InputEvent { kind: ev::ABS, code, value: value.cast_signed() };
        Some(vec![axis(code::ABS_X, at.0), axis(code::ABS_Y, at.1), InputEvent::SYN])
    }

    /// The report of a movement, as far as it is whole units.
    pub fn relative(&mut self, dx: f64, dy: f64) -> Option<Vec<InputEvent>> {
        let (x, y) = whole(&mut self.motion, dx, dy);
        report(ev::REL, [(code::REL_X, x), (code::REL_Y, y)])
    }

    /// The report of a wheel's notches, in winit's sense: positive moves the content right and down.
    pub fn scroll_notches(&mut self, x: f64, y: f64) -> Option<Vec<InputEvent>> {
        let (x, y) = whole(&mut self.wheel, x, y);
        report(ev::REL, [(code::REL_WHEEL, y), (code::REL_HWHEEL, -x)])
    }

    /// The report of smooth scrolling by so many pixels.
    pub fn scroll_pixels(&mut self, x: f64, y: f64) -> Option<Vec<InputEvent>> {
        self.scroll_notches(x / PIXELS_PER_NOTCH, y / PIXELS_PER_NOTCH)
    }

    /// The report of a button; nothing for the release of one that the guest never saw pressed.
    pub fn button(&mut self, button: Button, pressed: bool) -> Option<Vec<InputEvent>> {
        let event = self.buttons.change(button.code(), pressed, false)?;
        self.any_down = if pressed { self.any_down + 1 } else { self.any_down.saturating_sub(1) };
        Some(vec![event, InputEvent::SYN])
    }

    /// Whether a button is down in the guest: the pointer is the guest's until it is up, wherever it goes.
    pub fn is_dragging(&self) -> bool {
        self.any_down > 0
    }

    /// Releases every button and forgets what is not whole; the next position is sent whatever it is.
    pub fn release_all(&mut self) -> Vec<InputEvent> {
        let mut released = self.buttons.release_all();
        if !released.is_empty() {
            released.push(InputEvent::SYN);
        }
        *self = Pointer::default();
        released
    }
}

/// Adds to what was left over, takes the whole part out.
fn whole(left: &mut (f64, f64), x: f64, y: f64) -> (i32, i32) {
    let take = |left: &mut f64, by: f64| {
        *left += by;
        let whole = left.trunc();
        *left -= whole;
        whole as i32
    };
    (take(&mut left.0, x), take(&mut left.1, y))
}

fn report(kind: u16, axes: [(u16, i32); 2]) -> Option<Vec<InputEvent>> {
    let mut events: Vec<_> =
        axes.iter().filter(|a| a.1 != 0).map(|&(code, value)| InputEvent { kind, code, value }).collect();
    if events.is_empty() {
        return None;
    }
    events.push(InputEvent::SYN);
    Some(events)
}

/// Movement read from a pointer that is put back to the middle of the window before it can meet an edge: X11 cannot
/// lock a pointer in place, and its raw motion comes twice while the pointer is confined.
#[derive(Debug)]
pub struct Recentring {
    centre: (f64, f64),
    reach: f64,
    last: (f64, f64),
    /// How many times it was sent back and has not arrived yet.
    sent_back: u32,
}

/// What to do after a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recentred {
    /// By how much the pointer moved.
    pub moved: (f64, f64),
    /// Put it back in the middle.
    pub warp: bool,
}

impl Recentring {
    /// In a window of this size (physical pixels); the pointer was just put in its middle.
    pub fn new(width: u32, height: u32) -> Recentring {
        let centre = (f64::from(width / 2), f64::from(height / 2));
        Recentring { centre, reach: centre.0.min(centre.1) / 2.0, last: centre, sent_back: 1 }
    }

    /// The middle.
    pub fn centre(&self) -> (f64, f64) {
        self.centre
    }

    /// Takes in where the pointer is.
    pub fn moved_to(&mut self, x: f64, y: f64) -> Recentred {
        let off = (x - self.centre.0, y - self.centre.1);
        if self.sent_back > 0 && off.0.abs() <= 1.0 && off.1.abs() <= 1.0 {
            // Our own doing, not the hand's. Positions that were on their way before it are still relative to `last`.
            self.sent_back -= 1;
            self.last = (x, y);
            return Recentred { moved: (0.0, 0.0), warp: false };
        }
        let moved = (x - self.last.0, y - self.last.1);
        self.last = (x, y);
        // A second time only near the edge: the first one got lost.
        let far = if self.sent_back == 0 { self.reach } else { 1.9 * self.reach };
        let warp = off.0.abs().max(off.1.abs()) > far;
        self.sent_back += u32::from(warp);
        Recentred { moved, warp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_core::backend::input::ABS_MAX;

    #[test]
    fn the_same_position_is_sent_once() {
        let mut p = Pointer::default();
        let report = p.absolute((0, ABS_MAX)).unwrap();
        assert_eq!(report[1], InputEvent { kind: ev::ABS, code: code::ABS_Y, value: 0x7fff });
        assert_eq!(report[2], InputEvent::SYN);
        assert_eq!(p.absolute((0, ABS_MAX)), None);
        assert!(p.absolute((1, ABS_MAX)).is_some());
    }

    #[test]
    fn small_movements_add_up_and_lose_nothing() {
        let mut p = Pointer::default();
        let mut total = 0;
        for _ in 0..10 {
            let report = p.relative(0.3, -0.7).unwrap_or_default();
            total += report.iter().filter(|e| e.kind == ev::REL && e.code == code::REL_Y).map(|e| e.value).sum::<i32>();
        }
        assert!((-7..=-6).contains(&total));
    }

    #[test]
    fn a_wheel_turns_the_way_linux_counts() {
        let mut p = Pointer::default();
        let report = p.scroll_notches(1.0, 1.0).unwrap();
        assert_eq!(report[0], InputEvent { kind: ev::REL, code: code::REL_WHEEL, value: 1 });
        assert_eq!(report[1], InputEvent { kind: ev::REL, code: code::REL_HWHEEL, value: -1 });
        assert_eq!(p.scroll_pixels(0.0, PIXELS_PER_NOTCH / 2.0), None);
        assert!(p.scroll_pixels(0.0, PIXELS_PER_NOTCH / 2.0).is_some());
    }

    #[test]
    fn buttons_held_at_the_loss_of_the_pointer_are_released() {
        let mut p = Pointer::default();
        p.button(Button::Left, true);
        p.button(Button::Extra, true);
        assert!(p.is_dragging());
        let released = p.release_all();
        assert_eq!(released.len(), 3);
        assert!(!p.is_dragging());
        assert_eq!(p.button(Button::Left, false), None);
        assert!(p.release_all().is_empty());
    }

    #[test]
    fn recentring_reports_the_hands_movement_only() {
        let mut r = Recentring::new(400, 400);
        assert_eq!(r.moved_to(200.0, 200.0).moved, (0.0, 0.0));
        assert_eq!(r.moved_to(230.0, 190.0), Recentred { moved: (30.0, -10.0), warp: false });
        assert_eq!(r.moved_to(320.0, 190.0), Recentred { moved: (90.0, 0.0), warp: true });
        // One more was on its way before the warp took effect; it asks for no second warp.
        assert_eq!(r.moved_to(325.0, 190.0), Recentred { moved: (5.0, 0.0), warp: false });
        assert_eq!(r.moved_to(200.0, 200.0).moved, (0.0, 0.0));
        assert_eq!(r.moved_to(201.0, 200.0).moved, (1.0, 0.0));
    }

    #[test]
    fn a_pointer_passing_the_middle_by_hand_still_moves() {
        let mut r = Recentring::new(400, 400);
        r.moved_to(200.0, 200.0);
        r.moved_to(180.0, 200.0);
        assert_eq!(r.moved_to(200.0, 200.0).moved, (20.0, 0.0));
    }
}

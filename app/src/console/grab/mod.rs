//! The keyboard grab: while it holds, the desktop's own shortcuts reach the guest.

mod wayland;
mod x11;

use winit::window::Window;

/// Holds the keyboard for one window, or not.
///
/// Where the window system refuses or cannot, the window goes on without: it has the focus, only the desktop's shortcuts
/// stay the desktop's.
#[derive(Default)]
pub struct KeyboardGrab {
    x11: x11::KeyboardGrab,
    wayland: wayland::ShortcutsInhibitor,
}

impl KeyboardGrab {
    /// Takes or gives back the keyboard.
    pub fn set(&mut self, window: &Window, hold: bool) {
        self.x11.set(window, hold);
        self.wayland.set(window, hold);
    }

    /// The window is about to close, and what it holds with it.
    pub fn forget(&mut self) {
        *self = KeyboardGrab::default();
    }
}

//! The keyboard grab of X11 (Xlib, XGrabKeyboard).

use raw_window_handle::{HasDisplayHandle, HasWindowHandle, RawDisplayHandle, RawWindowHandle};
use winit::window::Window;
use x11_dl::xlib::{self, Xlib};

/// Holds the keyboard for one window of X11, or not.
#[derive(Default)]
pub struct KeyboardGrab {
    held: bool,
    xlib: Option<Xlib>,
}

impl KeyboardGrab {
    /// Takes or gives back the keyboard; nothing under another window system. Refused while another window holds it.
    pub fn set(&mut self, window: &Window, hold: bool) {
        if hold == self.held {
            return;
        }
        let (Some(display), Some(id)) = (display_of(window), window_of(window)) else { return };
        if self.xlib.is_none() {
            self.xlib = Xlib::open().ok();
        }
        let Some(xlib) = &self.xlib else { return };
        // SAFETY: the display is winit's own open connection and the window is alive: `window` is borrowed. The calls
        // keep no pointer.
        unsafe {
            if hold {
                let mode = xlib::GrabModeAsync;
                let status = (xlib.XGrabKeyboard)(display, id, xlib::True, mode, mode, xlib::CurrentTime);
                self.held = status == xlib::GrabSuccess;
            } else {
                (xlib.XUngrabKeyboard)(display, xlib::CurrentTime);
                self.held = false;
            }
            (xlib.XFlush)(display);
        }
    }
}

fn display_of(window: &Window) -> Option<*mut xlib::Display> {
    match window.display_handle().ok()?.as_raw() {
        RawDisplayHandle::Xlib(handle) => handle.display.map(|d| d.as_ptr().cast()),
        _ => None,
    }
}

fn window_of(window: &Window) -> Option<xlib::Window> {
    match window.window_handle().ok()?.as_raw() {
        RawWindowHandle::Xlib(handle) => Some(handle.window),
        _ => None,
    }
}

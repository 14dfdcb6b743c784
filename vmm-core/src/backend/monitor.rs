//! The monitor that a machine's graphics function is plugged into: one cable, two who may drive it (the VGA face until
//! the guest's virtio-gpu driver takes over, and again after the driver's reset).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::display::{DisplaySink, Mode};
use super::edid::{edid, fit};

/// Who drives the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Painter {
    /// The VGA face: firmware, boot loaders, and systems without a driver.
    Vga,
    /// The virtio-gpu driver.
    Gpu,
}

/// The monitor. Cheap to clone; the machine keeps one to tell of a new window size.
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    resized: EventFd,
    handed_over: EventFd,
}

struct Inner {
    sink: Box<dyn DisplaySink>,
    preferred: Mode,
    painter: Painter,
    turns: u64,
}

impl Monitor {
    /// A monitor that shows on `sink` and would best like `preferred`. Fails when the host is out of file descriptors.
    pub fn new(sink: Box<dyn DisplaySink>, preferred: Mode) -> io::Result<Monitor> {
        let inner = Inner { sink, preferred: fit(preferred), painter: Painter::Vga, turns: 0 };
        Ok(Monitor {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                resized: EventFd::new(EFD_NONBLOCK)?,
                handed_over: EventFd::new(EFD_NONBLOCK)?,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The window has room for this many pixels now: the guest is offered the mode, or the nearest there can be.
    pub fn resize(&self, mode: Mode) {
        let mode = fit(mode);
        let changed = {
            let mut inner = self.lock();
            std::mem::replace(&mut inner.preferred, mode) != mode
        };
        if changed {
            let _ = self.shared.resized.write(1);
        }
    }

    /// The mode that fits the window.
    pub fn preferred(&self) -> Mode {
        self.lock().preferred
    }

    /// What the monitor tells of itself.
    pub fn edid(&self) -> Vec<u8> {
        edid(self.preferred())
    }

    /// Becomes readable when the preferred mode changed.
    pub fn resized(&self) -> RawFd {
        self.shared.resized.as_raw_fd()
    }

    /// Becomes readable when [`Monitor::give_to`] changed the painter.
    pub fn handed_over(&self) -> RawFd {
        self.shared.handed_over.as_raw_fd()
    }

    /// Changes who drives the monitor. The picture stays until the new one paints.
    pub fn give_to(&self, painter: Painter) {
        let changed = {
            let mut inner = self.lock();
            inner.turns += u64::from(inner.painter != painter);
            std::mem::replace(&mut inner.painter, painter) != painter
        };
        if changed {
            let _ = self.shared.handed_over.write(1);
        }
    }

    /// Who drives it, and how often that changed: a painter whose turn is a new one paints everything.
    pub fn turn(&self) -> (Painter, u64) {
        let inner = self.lock();
        (inner.painter, inner.turns)
    }

    /// Lets `painter` show something, if the monitor is its own; says whether it was.
    pub fn paint(&self, painter: Painter, work: impl FnOnce(&mut dyn DisplaySink)) -> bool {
        let mut inner = self.lock();
        let own = inner.painter == painter;
        if own {
            work(&mut *inner.sink);
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::display::{Frame, Rect, Screen};

    const MODE: Mode = Mode { width: 640, height: 480 };

    #[test]
    fn only_the_painter_whose_turn_it_is_can_show_something() {
        let screen = Screen::new(|| ());
        let monitor = Monitor::new(screen.sink(), MODE).unwrap();
        let pixels = vec![7; 640 * 480 * 4];
        let show = |painter| {
            monitor.paint(painter, |sink| {
                sink.mode(0, Some(MODE));
                sink.present(0, Frame { mode: MODE, stride: 640 * 4, pixels: &pixels }, Rect::full(MODE));
            })
        };
        assert!(!show(Painter::Gpu));
        assert!(screen.snapshot().is_none());
        assert!(show(Painter::Vga));
        monitor.give_to(Painter::Gpu);
        monitor.give_to(Painter::Gpu);
        assert_eq!((monitor.turn(), show(Painter::Vga)), ((Painter::Gpu, 1), false));
        assert!(screen.snapshot().is_some(), "the old picture stays until there is a new one");
    }

    #[test]
    fn a_new_size_is_told_once() {
        let monitor = Monitor::new(Screen::new(|| ()).sink(), MODE).unwrap();
        monitor.resize(MODE);
        assert!(monitor.shared.resized.read().is_err());
        monitor.resize(Mode { width: 800, ..MODE });
        assert_eq!(monitor.shared.resized.read().unwrap(), 1);
        assert_eq!(monitor.preferred().width, 800);
        monitor.resize(Mode { width: 0, height: 0 });
        assert!(monitor.preferred().width > 0, "a window that is folded away is no monitor without pixels");
    }
}

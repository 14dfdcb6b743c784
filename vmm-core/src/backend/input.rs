//! What a person does at the console, on its way to the guest: a bounded ring of evdev-shaped events.
//!
//! The window sends; virtio-input drains it once the guest's driver is up, the i8042 until then. Types and codes are
//! Linux's (`linux/input-event-codes.h`), the ones virtio-input carries (virtio 1.2 §5.8).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Event types.
pub mod ev {
    /// End of a report.
    pub const SYN: u16 = 0;
    /// A key or button: 1 pressed, 0 released, 2 repeated.
    pub const KEY: u16 = 1;
    /// A relative movement.
    pub const REL: u16 = 2;
    /// An absolute position.
    pub const ABS: u16 = 3;
    /// A keyboard LED, guest to host.
    pub const LED: u16 = 0x11;
}

/// Codes of relative axes, absolute axes and buttons.
pub mod code {
    /// Relative X.
    pub const REL_X: u16 = 0;
    /// Relative Y.
    pub const REL_Y: u16 = 1;
    /// Horizontal wheel, notches.
    pub const REL_HWHEEL: u16 = 6;
    /// Vertical wheel, notches, away from the user is positive.
    pub const REL_WHEEL: u16 = 8;
    /// Absolute X.
    pub const ABS_X: u16 = 0;
    /// Absolute Y.
    pub const ABS_Y: u16 = 1;
    /// Left button.
    pub const BTN_LEFT: u16 = 0x110;
    /// Right button.
    pub const BTN_RIGHT: u16 = 0x111;
    /// Middle button.
    pub const BTN_MIDDLE: u16 = 0x112;
    /// Side ("back") button.
    pub const BTN_SIDE: u16 = 0x113;
    /// Extra ("forward") button.
    pub const BTN_EXTRA: u16 = 0x114;
}

/// The largest value of an absolute axis; 0 is the left or upper edge.
pub const ABS_MAX: u32 = 0x7fff;

/// One event, as `struct input_event` without its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputEvent {
    /// See [`ev`].
    pub kind: u16,
    /// A key, button or axis.
    pub code: u16,
    /// What it is now, or by how much it moved.
    pub value: i32,
}

impl InputEvent {
    /// Ends a report.
    pub const SYN: InputEvent = InputEvent { kind: ev::SYN, code: 0, value: 0 };

    /// A key or button goes down or up.
    pub fn key(code: u16, pressed: bool) -> InputEvent {
        InputEvent { kind: ev::KEY, code, value: i32::from(pressed) }
    }
}

/// Which of the two input devices an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// Keys.
    Keyboard,
    /// Buttons, movement and wheels.
    Pointer,
}

/// The most reports that wait for a guest that does not look; then whole reports are dropped, releases never.
const MAX_EVENTS: usize = 1024;

/// One input device's ring: the window holds a clone and sends, the device holds a clone and receives.
#[derive(Clone)]
pub struct InputPort {
    shared: Arc<PortShared>,
}

struct PortShared {
    ring: Mutex<VecDeque<InputEvent>>,
    ready: EventFd,
    claimed: AtomicBool,
    /// The guest has all that was sent.
    taken: AtomicBool,
    leds: AtomicU8,
}

impl InputPort {
    /// An empty ring. Fails when the host is out of file descriptors.
    pub fn new() -> std::io::Result<InputPort> {
        Ok(InputPort {
            shared: Arc::new(PortShared {
                ring: Mutex::default(),
                ready: EventFd::new(EFD_NONBLOCK)?,
                claimed: AtomicBool::new(false),
                taken: AtomicBool::new(true),
                leds: AtomicU8::new(0),
            }),
        })
    }

    /// Puts one report (its events, ended by SYN) in the ring. A full ring takes key releases only, so that nothing
    /// sticks; anything else is dropped.
    pub fn send(&self, report: &[InputEvent]) {
        let mut ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let full = ring.len() + report.len() > MAX_EVENTS;
        if full {
            if ring.len() > 2 * MAX_EVENTS {
                return;
            }
            let releases = report.iter().filter(|e| e.kind == ev::KEY && e.value == 0);
            let before = ring.len();
            ring.extend(releases);
            if ring.len() > before {
                ring.push_back(InputEvent::SYN);
            }
        } else {
            ring.extend(report);
            if report.last() != Some(&InputEvent::SYN) {
                ring.push_back(InputEvent::SYN);
            }
        }
        self.shared.taken.store(false, Ordering::Release);
        drop(ring);
        // A full eventfd counter still reads as ready, which is all that matters.
        let _ = self.shared.ready.write(1);
    }

    /// Takes the oldest event.
    pub fn receive(&self) -> Option<InputEvent> {
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Throws away everything that waits: the guest that it was for is gone.
    pub fn clear(&self) {
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Resets the readiness of the descriptor, before [`InputPort::receive`] is called until it returns `None`.
    pub fn acknowledge(&self) {
        let _ = self.shared.ready.read();
    }

    /// The guest has taken from the device all that was received from here.
    pub fn tell_taken(&self) {
        let ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.is_empty() {
            self.shared.taken.store(true, Ordering::Release);
        }
    }

    /// Whether the guest has taken all that was sent. While it has not, the device is woken to look: not every guest says so.
    pub fn is_taken(&self) -> bool {
        let taken = self.shared.taken.load(Ordering::Acquire);
        if !taken {
            let _ = self.shared.ready.write(1);
        }
        taken
    }

    /// The virtio driver is up (`true`): it alone receives from now on; or gone (`false`): the i8042 does again.
    pub fn claim(&self, claimed: bool) {
        self.shared.claimed.store(claimed, Ordering::Release);
        let _ = self.shared.ready.write(1);
    }

    /// The guest switched the keyboard's lights: bit 0 num lock, bit 1 caps lock, bit 2 scroll lock.
    pub fn set_leds(&self, leds: u8) {
        self.shared.leds.store(leds, Ordering::Release);
    }

    /// The keyboard's lights, as [`InputPort::set_leds`] has them.
    pub fn leds(&self) -> u8 {
        self.shared.leds.load(Ordering::Acquire)
    }

    /// Whether the virtio driver has it. For the pointer: whether the guest takes absolute positions.
    pub fn is_claimed(&self) -> bool {
        self.shared.claimed.load(Ordering::Acquire)
    }
}

impl AsFd for InputPort {
    /// Readable when something was sent or the claim changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives in the Arc that self keeps alive for the borrow.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.shared.ready)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_in_order_and_is_ended() {
        let port = InputPort::new().unwrap();
        port.send(&[InputEvent::key(30, true)]);
        assert_eq!(port.receive(), Some(InputEvent::key(30, true)));
        assert_eq!(port.receive(), Some(InputEvent::SYN));
        assert_eq!(port.receive(), None);
    }

    #[test]
    fn a_full_ring_drops_presses_but_keeps_releases() {
        let port = InputPort::new().unwrap();
        while port.shared.ring.lock().unwrap().len() + 2 <= MAX_EVENTS {
            port.send(&[InputEvent::key(30, true)]);
        }
        port.send(&[InputEvent::key(31, true)]);
        port.send(&[InputEvent::key(32, false)]);
        let all: Vec<_> = std::iter::from_fn(|| port.receive()).collect();
        assert!(!all.contains(&InputEvent::key(31, true)));
        assert!(all.contains(&InputEvent::key(32, false)));
    }
}

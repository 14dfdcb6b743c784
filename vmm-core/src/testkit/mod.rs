//! A machine without a machine, for tests and fuzzing: fake interrupts and doorbells, and [`Guest`], a driver that
//! talks to a device through the real PCI transport, honestly or not.

mod conformance;
mod guest;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

pub use conformance::*;
pub use guest::{Guest, Segments};
use vmm_sys_util::eventfd::EventFd;

use crate::hw::{Doorbells, IrqLine, MsiMessage, MsiRoute, MsiSink};

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects the messages that devices send.
#[derive(Default, Clone)]
pub struct FakeMsi {
    sent: Arc<Mutex<Vec<MsiMessage>>>,
}

impl FakeMsi {
    /// What was sent since the last call.
    pub fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut lock(&self.sent))
    }
}

struct FakeRoute {
    sent: Arc<Mutex<Vec<MsiMessage>>>,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiSink for FakeMsi {
    fn route(&self) -> io::Result<Arc<dyn MsiRoute>> {
        Ok(Arc::new(FakeRoute { sent: self.sent.clone(), message: Mutex::new(None) }))
    }
}

impl MsiRoute for FakeRoute {
    fn set(&self, message: MsiMessage) -> io::Result<()> {
        *lock(&self.message) = Some(message);
        Ok(())
    }

    fn trigger(&self) {
        if let Some(message) = *lock(&self.message) {
            lock(&self.sent).push(message);
        }
    }
}

/// An interrupt line that remembers its level.
#[derive(Default, Clone)]
pub struct FakeLine {
    level: Arc<Mutex<(bool, usize)>>,
}

impl FakeLine {
    /// Whether it is asserted.
    pub fn level(&self) -> bool {
        lock(&self.level).0
    }

    /// How often it rose.
    pub fn edges(&self) -> usize {
        lock(&self.level).1
    }
}

impl IrqLine for FakeLine {
    fn set(&self, level: bool) {
        let mut state = lock(&self.level);
        if level && !state.0 {
            state.1 += 1;
        }
        state.0 = level;
    }
}

/// Doorbells that never ring by themselves: every write takes the way through the register.
pub struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn register(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn unregister(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

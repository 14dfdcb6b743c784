//! The chipset as firmware expects it: the parts of Intel's Q35 and ICH9 that SeaBIOS, OVMF and operating systems use.

mod host_bridge;
mod lpc;
mod pirq;

pub use host_bridge::HostBridge;
pub use lpc::Lpc;
pub use pirq::Pirq;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Subsystem of the chipset's functions: SeaBIOS trusts fw_cfg only if the host bridge has it.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `len` bytes at `offset` touch `[start, end)`.
fn touches(offset: usize, len: usize, start: usize, end: usize) -> bool {
    offset < end && offset.saturating_add(len) > start
}

//! What a PC has at fixed ports since before PCI, and the firmware's own devices.

mod apm;
mod clock;
mod debugcon;
mod fw_cfg;
mod i8042;
mod pflash;
mod pm;
mod reset;
mod rtc;
mod serial;

pub use apm::Apm;
pub use clock::{Clock, HostClock};
pub use debugcon::DebugCon;
pub use fw_cfg::{FwCfg, FwCfgError, FwCfgItems, key as fw_cfg_key};
pub use i8042::{I8042, I8042_PORTS};
pub use pflash::Pflash;
pub use pm::PmBlock;
pub use reset::{Port92, ResetControl};
pub use rtc::{CmosSizes, Rtc};
pub use serial::Serial;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::{Executor, Task, TaskId};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device's task, which exists while the device is not paused.
struct Work {
    executor: Arc<dyn Executor>,
    task: Mutex<Option<TaskId>>,
}

impl Work {
    fn new(executor: Arc<dyn Executor>) -> Work {
        Work { executor, task: Mutex::new(None) }
    }

    /// Starts the task, if it does not run already.
    fn start(&self, task: impl FnOnce() -> Box<dyn Task>) {
        lock(&self.task).get_or_insert_with(|| self.executor.submit(task()));
    }

    /// Stops the task and waits until it has stopped.
    fn stop(&self) {
        if let Some(id) = lock(&self.task).take() {
            self.executor.stop(id);
            self.executor.flush();
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(id) = lock(&self.task).take() {
            self.executor.stop(id);
        }
    }
}

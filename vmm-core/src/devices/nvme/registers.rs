//! The controller's registers (NVM Express base 1.4 §3.1) and what writing them asks of the controller's thread.

use serde::{Deserialize, Serialize};

/// Entries of the largest queue.
pub(super) const MAX_ENTRIES: u32 = 1024;
/// The smallest memory page, as a shift.
pub(super) const MIN_PAGE_SHIFT: u32 = 12;
/// CAP.MPSMAX: pages up to 64 KiB.
const MAX_PAGE: u32 = 4;
/// CAP.TO, in units of 500 ms: a reset waits for the host's disk.
const TIMEOUT: u64 = 60;
/// MQES, contiguous queues only, TO, the NVM command set, MPSMAX. Doorbells are four bytes apart.
pub(super) const CAP: u64 = (MAX_ENTRIES as u64 - 1) | 1 << 16 | TIMEOUT << 24 | 1 << 37 | (MAX_PAGE as u64) << 52;
/// 1.4.
pub(super) const VERSION: u32 = 0x0001_0400;

const CC_ENABLE: u32 = 1;
const CC_WRITABLE: u32 = 0x00ff_fff1;
const CC_SHUTDOWN: u32 = 3 << 14;
const CSTS_READY: u32 = 1;
const CSTS_FATAL: u32 = 1 << 1;
const CSTS_SHUTDOWN: u32 = 3 << 2;
const CSTS_SHUTTING_DOWN: u32 = 1 << 2;
const CSTS_SHUT_DOWN: u32 = 2 << 2;

/// Where the admin queues are, and the page size, as the driver enables the controller with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setup {
    /// Bytes in a memory page.
    pub page: u64,
    /// Guest address of the admin submission queue, and its entries.
    pub submission: (u64, u32),
    /// Guest address of the admin completion queue, and its entries.
    pub completion: (u64, u32),
}

/// What the driver wants of the controller's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// All queues go, whatever is in flight.
    Reset,
    /// Start; `None`: with settings that this controller lacks.
    Enable(Option<Setup>),
    /// Everything to stable storage.
    Shutdown,
}

/// What a register write changes beyond the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Effect {
    /// The controller's thread has something to do.
    pub ring: bool,
    /// The interrupt mask may be another one.
    pub mask: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Registers {
    configuration: u32,
    status: u32,
    admin_sizes: u32,
    submission: u64,
    completion: u64,
    mask: u32,
    /// The controller was disabled since the thread last looked.
    reset: bool,
}

/// What a checkpoint keeps of the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersState {
    configuration: u32,
    status: u32,
    admin_sizes: u32,
    submission: u64,
    completion: u64,
    mask: u32,
    reset: bool,
}

impl Registers {
    /// Reads a register, `offset` a multiple of four.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => CAP as u32,
            0x04 => (CAP >> 32) as u32,
            0x08 => VERSION,
            0x0c | 0x10 => self.mask,
            0x14 => self.configuration,
            0x1c => self.status,
            0x24 => self.admin_sizes,
            0x28 => self.submission as u32,
            0x2c => (self.submission >> 32) as u32,
            0x30 => self.completion as u32,
            0x34 => (self.completion >> 32) as u32,
            _ => 0,
        }
    }

    /// Writes a register, `offset` a multiple of four.
    pub fn write(&mut self, offset: u64, value: u32) -> Effect {
        let low = |old: u64, value: u32| old & !0xffff_ffff | u64::from(value & !0xfff);
        let high = |old: u64, value: u32| old & 0xffff_ffff | u64::from(value) << 32;
        let mut effect = Effect::default();
        match offset {
            0x0c => {
                self.mask |= value;
                effect.mask = true;
            }
            0x10 => {
                self.mask &= !value;
                effect.mask = true;
            }
            0x14 => effect.ring = self.configure(value & CC_WRITABLE),
            0x24 => self.admin_sizes = value & 0x0fff_0fff,
            0x28 => self.submission = low(self.submission, value),
            0x2c => self.submission = high(self.submission, value),
            0x30 => self.completion = low(self.completion, value),
            0x34 => self.completion = high(self.completion, value),
            _ => {}
        }
        effect
    }

    fn configure(&mut self, value: u32) -> bool {
        let was = std::mem::replace(&mut self.configuration, value);
        let mut ring = (was ^ value) & CC_ENABLE != 0;
        if was & CC_ENABLE != 0 && value & CC_ENABLE == 0 {
            self.reset = true;
        }
        if was & CC_ENABLE == 0 && value & CC_ENABLE != 0 {
            // One that was shut down while it was disabled was reset before, and starts afresh (§3.1.6, SHST).
            self.status &= !CSTS_SHUTDOWN;
        }
        if was & CC_SHUTDOWN == 0 && value & CC_SHUTDOWN != 0 && self.status & CSTS_SHUTDOWN == 0 {
            self.status |= CSTS_SHUTTING_DOWN;
            ring = true;
        }
        ring
    }

    /// What the driver wants next, until it is answered by one of the methods below.
    pub fn wish(&mut self) -> Option<Wish> {
        if self.reset {
            Some(Wish::Reset)
        } else if self.status & CSTS_SHUTDOWN == CSTS_SHUTTING_DOWN {
            Some(Wish::Shutdown)
        } else if self.configuration & CC_ENABLE != 0 && self.status & (CSTS_READY | CSTS_FATAL) == 0 {
            Some(Wish::Enable(self.setup()))
        } else {
            None
        }
    }

    fn setup(&self) -> Option<Setup> {
        let field = |shift: u32, bits: u32| self.configuration >> shift & ((1 << bits) - 1);
        let (command_set, page, arbitration) = (field(4, 3), field(7, 4), field(11, 3));
        let (submission, completion) = (self.admin_sizes & 0xfff, self.admin_sizes >> 16);
        let known = command_set == 0 && page <= MAX_PAGE && arbitration == 0 && submission > 0 && completion > 0;
        known.then(|| Setup {
            page: 1 << (MIN_PAGE_SHIFT + page),
            submission: (self.submission, submission + 1),
            completion: (self.completion, completion + 1),
        })
    }

    /// The reset is over: no queue is left.
    pub fn was_reset(&mut self) {
        self.reset = false;
        self.status = 0;
    }

    /// The controller takes commands.
    pub fn is_ready(&mut self) {
        self.status |= CSTS_READY;
    }

    /// The controller can't go on until it is reset.
    pub fn failed(&mut self) {
        self.status |= CSTS_FATAL;
    }

    /// Everything is on stable storage.
    pub fn has_shut_down(&mut self) {
        self.status = self.status & !CSTS_SHUTDOWN | CSTS_SHUT_DOWN;
    }

    /// Whether commands are to be taken now.
    pub fn takes_commands(&self) -> bool {
        !self.reset && self.status & (CSTS_READY | CSTS_FATAL | CSTS_SHUTDOWN) == CSTS_READY
    }

    /// CC.IOSQES and CC.IOCQES are those of this controller: 64 and 16 bytes.
    pub fn has_entry_sizes(&self) -> (bool, bool) {
        (self.configuration >> 16 & 0xf == 6, self.configuration >> 20 & 0xf == 4)
    }

    /// Whether pin interrupts of vector 0 are masked.
    pub fn masks_pin(&self) -> bool {
        self.mask & 1 != 0
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> RegistersState {
        let Registers { configuration, status, admin_sizes, submission, completion, mask, reset } = *self;
        RegistersState { configuration, status, admin_sizes, submission, completion, mask, reset }
    }

    /// Takes over a state. Whether the controller was live must agree with it.
    pub fn restore(&mut self, state: &RegistersState, live: bool) -> Result<(), &'static str> {
        let RegistersState { configuration, status, admin_sizes, submission, completion, mask, reset } = *state;
        if live != (status & CSTS_READY != 0) || status & !(CSTS_READY | CSTS_FATAL | CSTS_SHUTDOWN) != 0 {
            return Err("its status register does not go with its queues");
        }
        *self = Registers {
            configuration: configuration & CC_WRITABLE,
            status,
            admin_sizes: admin_sizes & 0x0fff_0fff,
            submission: submission & !0xfff,
            completion: completion & !0xfff,
            mask,
            reset,
        };
        Ok(())
    }
}

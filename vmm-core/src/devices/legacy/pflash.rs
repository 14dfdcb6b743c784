//! The flash chip that holds UEFI's variables: the part of the CFI command set 1 (Intel; JEDEC JEP137) that OVMF's
//! `QemuFlashFvbServicesRuntimeDxe` uses, a command a byte, in blocks of 4 KiB.
//!
//! The guest reads the array as memory: it is a read-only slot, which goes only while the guest reads the status register.
//! Writes exit, and come here.

use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Work, lock};
use crate::backend::nvram::Nvram;
use crate::base::{Bytes, Component, Executor, SavedState, Section, StateError, Task};
use crate::hw::{Action, BusDevice, MemorySlots, ProblemSink, SlotId};

/// Commands.
mod command {
    pub const PROGRAM: u8 = 0x10;
    pub const PROGRAM_ALTERNATE: u8 = 0x40;
    pub const ERASE: u8 = 0x20;
    pub const CLEAR_STATUS: u8 = 0x50;
    pub const READ_STATUS: u8 = 0x70;
    /// The second cycle of an erasure.
    pub const CONFIRM: u8 = 0xd0;
}

/// The status register.
mod status {
    /// The chip is ready for the next command.
    pub const READY: u8 = 1 << 7;
    /// An erasure failed.
    pub const ERASE_ERROR: u8 = 1 << 5;
    /// A programming failed. Both: the commands made no sense.
    pub const PROGRAM_ERROR: u8 = 1 << 4;
}

/// What one erasure covers, bytes.
pub const BLOCK: usize = 4096;
const ERASED: [u8; BLOCK] = [0xff; BLOCK];

/// What the chip does with the next access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// Reads see the array.
    Array,
    /// Reads see the status register, and the array is out of the guest's sight.
    Status,
    /// The next write is a byte of the array. Reads see the array: no driver reads before it has written.
    Program,
    /// The next write confirms an erasure.
    Erase,
}

/// See the module.
pub struct Pflash {
    shared: Arc<Shared>,
    slots: Arc<dyn MemorySlots>,
    address: u64,
    chip: Mutex<Chip>,
    /// Only firmware in system management mode may write.
    guarded: bool,
    work: Work,
}

/// What the chip and the task that makes its contents durable have in common.
struct Shared {
    nvram: Nvram,
    /// Something was written to the file.
    written: EventFd,
    problems: ProblemSink,
}

struct Chip {
    mode: Mode,
    status: u8,
    slot: Option<SlotId>,
    /// What the file does not have yet.
    unkept: Option<Range<usize>>,
    /// The host was told to have failed, and has not succeeded since.
    failed: bool,
}

/// What a checkpoint keeps of the chip.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PflashState {
    mode: Mode,
    status: u8,
    contents: Bytes,
}

impl SavedState for PflashState {
    const VERSION: u32 = 1;
}

impl Pflash {
    /// A chip at guest address `address` with the contents of `nvram`, whole blocks, shown to the guest. What is
    /// programmed is made durable on `executor`.
    pub fn new(
        address: u64,
        nvram: Nvram,
        slots: Arc<dyn MemorySlots>,
        executor: Arc<dyn Executor>,
        problems: ProblemSink,
    ) -> std::io::Result<Pflash> {
        let written = EventFd::new(EFD_NONBLOCK)?;
        let chip = Chip { mode: Mode::Array, status: status::READY, slot: None, unkept: None, failed: false };
        let shared = Arc::new(Shared { nvram, written, problems });
        let flash =
            Pflash { shared, slots, address, chip: Mutex::new(chip), guarded: false, work: Work::new(executor) };
        lock(&flash.chip).slot = Some(flash.map()?);
        Ok(flash)
    }

    /// The same, whose contents only a CPU in system management mode can change: there firmware looks at what the guest asks
    /// for.
    pub fn guarded(self) -> Pflash {
        Pflash { guarded: true, ..self }
    }

    /// Its size, bytes.
    pub fn size(&self) -> u64 {
        self.shared.nvram.contents().len() as u64
    }

    fn map(&self) -> std::io::Result<SlotId> {
        self.slots.map_readonly(self.address, self.shared.nvram.contents(), 0, self.size())
    }

    /// Shows the array to the guest, or hides it, as the mode wants.
    fn show(&self, chip: &mut Chip) {
        let result = match (chip.mode == Mode::Status, chip.slot) {
            (true, Some(slot)) => {
                chip.slot = None;
                self.slots.unmap(slot)
            }
            (false, None) => self.map().map(|slot| chip.slot = Some(slot)),
            _ => Ok(()),
        };
        if let Err(error) = result {
            // Then every read comes here, and is answered all the same.
            (self.shared.problems)("flash", format!("the firmware's variables are slow to read: {error}"));
        }
    }

    /// Changes the array at `offset`. What is beyond its end is dropped.
    fn store(&self, chip: &mut Chip, offset: usize, data: &[u8]) {
        let Some(part) = self.shared.nvram.contents().slice(offset, data.len()) else { return };
        part.copy_from(data);
        let new = offset..offset + data.len();
        chip.unkept = Some(match chip.unkept.take() {
            Some(old) => old.start.min(new.start)..old.end.max(new.end),
            None => new,
        });
    }

    /// Writes to the file what it does not have yet.
    fn keep(&self, chip: &mut Chip) {
        let Some(part) = chip.unkept.clone() else { return };
        match self.shared.nvram.keep(part.start, part.len()) {
            Ok(()) => {
                chip.unkept = None;
                chip.failed = false;
                // The counter can't run over: the task need not come.
                let _ = self.shared.written.write(1);
            }
            Err(error) => {
                chip.status |= status::PROGRAM_ERROR;
                if !std::mem::replace(&mut chip.failed, true) {
                    self.shared.complain(&error);
                }
            }
        }
    }

    /// The first cycle of a command.
    fn command(&self, chip: &mut Chip, command: u8) {
        // A driver that programs byte by byte goes back to the array when it is done: then the file gets them all.
        if !matches!(command, command::PROGRAM | command::PROGRAM_ALTERNATE | command::ERASE) {
            self.keep(chip);
        }
        chip.mode = match command {
            command::PROGRAM | command::PROGRAM_ALTERNATE => Mode::Program,
            command::ERASE => Mode::Erase,
            command::READ_STATUS => Mode::Status,
            command::CLEAR_STATUS => {
                chip.status = 0;
                Mode::Array
            }
            // Read array (0xff, 0xf0, 0x00), and all that the driver never uses.
            _ => Mode::Array,
        };
    }
}

impl Shared {
    fn complain(&self, error: &std::io::Error) {
        let text = format!("the firmware's variables can't be kept, and are lost when the machine stops: {error}");
        (self.problems)("flash", text);
    }
}

/// Makes durable what was written to the file.
struct Sync(Arc<Shared>);

impl Task for Sync {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(self.0.written.as_raw_fd(), 0)]
    }

    fn ready(&mut self, _: u32) {
        // Read first, so that what is written meanwhile brings another turn.
        let _ = self.0.written.read();
        if let Err(error) = self.0.nvram.sync() {
            self.0.complain(&error);
        }
    }

    fn stopped(self: Box<Self>) {}
}

impl BusDevice for Pflash {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let chip = lock(&self.chip);
        if chip.mode == Mode::Status {
            data.fill(chip.status);
        } else if let Some(part) = self.shared.nvram.contents().slice(offset as usize, data.len()) {
            // Another CPU has shown the array again since the access began.
            part.copy_to(data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        if self.guarded { None } else { self.write_in_smm(offset, data) }
    }

    fn write_in_smm(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let &first = data.first()?;
        let mut chip = lock(&self.chip);
        let chip = &mut *chip;
        let offset = offset as usize;
        match chip.mode {
            Mode::Array | Mode::Status => self.command(chip, first),
            Mode::Program => {
                // QEMU's chip sets bits as well as clearing them, and firmware is tested on that one.
                self.store(chip, offset, data);
                chip.status = status::READY;
                chip.mode = Mode::Array;
            }
            Mode::Erase if first == command::CONFIRM => {
                self.store(chip, offset / BLOCK * BLOCK, &ERASED);
                chip.status = status::READY;
                chip.mode = Mode::Array;
            }
            Mode::Erase => {
                chip.status = status::READY | status::ERASE_ERROR | status::PROGRAM_ERROR;
                chip.mode = Mode::Array;
            }
        }
        self.show(chip);
        None
    }
}

impl Component for Pflash {
    fn name(&self) -> String {
        "flash".into()
    }

    fn pause(&self) {
        self.work.stop();
        self.keep(&mut lock(&self.chip));
        if let Err(error) = self.shared.nvram.sync() {
            self.shared.complain(&error);
        }
    }

    fn resume(&self) {
        self.work.start(|| Box::new(Sync(self.shared.clone())));
    }

    fn reset(&self) {
        let mut chip = lock(&self.chip);
        self.keep(&mut chip);
        // What the file does not have yet and whether the host failed are no state of the chip's.
        let Chip { mode, status, slot: _, unkept: _, failed: _ } = &mut *chip;
        (*mode, *status) = (Mode::Array, status::READY);
        self.show(&mut chip);
    }

    fn save(&self) -> Result<Section, StateError> {
        let chip = lock(&self.chip);
        let Chip { mode, status, slot: _, unkept: _, failed: _ } = &*chip;
        let contents = Bytes(self.shared.nvram.copy());
        Section::encode(&self.name(), &PflashState { mode: *mode, status: *status, contents })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let PflashState { mode, status, contents: Bytes(contents) } = section.decode()?;
        if contents.len() as u64 != self.size() {
            let why = format!("it has {} bytes of variables, this machine's flash {}", contents.len(), self.size());
            return Err(StateError::invalid(self.name(), why));
        }
        let mut chip = lock(&self.chip);
        (chip.mode, chip.status) = (mode, status);
        self.store(&mut chip, 0, &contents);
        self.keep(&mut chip);
        self.show(&mut chip);
        Ok(())
    }
}

#[cfg(test)]
#[path = "pflash_tests.rs"]
mod tests;

//! A SATA controller, ICH9's, with CD-ROM drives behind ATAPI (AHCI 1.3.1, Serial ATA 2.6, ATA8-ACS, MMC-3): what
//! firmware and installers of every system know how to read an ISO from.
//!
//! A vCPU only stores registers and rings; commands run on the task's thread, one after another.

mod cdrom;
mod command;
mod identify;
mod registers;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::backend::disk::Medium;
use crate::base::{Component, Executor, GuestMemory, MemoryError, SavedState, Section, StateError, Task, TaskId};
use crate::hw::{Action, IrqLine, MsiMessage, MsiRoute, MsiSink, ProblemSink};
use crate::pci::{BarKind, ConfigSpace, ConfigState, Identity, PciDevice, cap};
use cdrom::{CdDrive, Reply, Sense};
use command::{Command, TaskFile};
use registers::{Effect, Hba, is, status};

pub use cdrom::CdState;
pub use registers::{HbaState, PORTS};

/// The BAR with the registers.
const ABAR: usize = 5;
const ABAR_SIZE: u32 = 0x1000;
/// Commands in a row before the thread's other devices have a turn.
const MAX_TURN: usize = 64;

/// What the machine gives the controller.
pub struct AhciParts {
    /// A name that is unique in the machine, for problems and checkpoints.
    pub name: String,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The thread that runs commands.
    pub executor: Arc<dyn Executor>,
    /// Where message-signalled interrupts go.
    pub msi: Arc<dyn MsiSink>,
    /// INTA#.
    pub line: Arc<dyn IrqLine>,
    /// Who is told when the host fails.
    pub problems: ProblemSink,
    /// Called with a drive's number when the guest ejected its medium; on the controller's thread.
    pub ejected: Arc<dyn Fn(usize) + Send + Sync>,
}

/// Why a medium was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such drive.
    #[error("the machine has no CD-ROM drive {0}")]
    NoDrive(usize),
    /// The guest locked the tray.
    #[error("the guest uses the disc in drive {0} and was asked to let go of it; eject it there, or try again")]
    Locked(usize),
}

/// Message-signalled interrupts (PCI 3.0 §6.8.1), one message.
struct Msi {
    sink: Arc<dyn MsiSink>,
    route: Option<Arc<dyn MsiRoute>>,
    enabled: bool,
}

struct Shared {
    name: String,
    memory: GuestMemory,
    hba: Mutex<Hba>,
    drives: Vec<Mutex<CdDrive>>,
    bell: EventFd,
    msi: Mutex<Msi>,
    line: Arc<dyn IrqLine>,
    intx_disabled: AtomicBool,
    problems: ProblemSink,
    ejected: Arc<dyn Fn(usize) + Send + Sync>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a command ended.
enum Outcome {
    /// The device returned this.
    Done(TaskFile),
    /// The device sent so many bytes by programmed I/O and then returned this.
    PioIn(TaskFile, u16),
    /// The control register was written.
    Control(u8),
    /// The FIS was none that can be sent.
    Unknown,
}

/// The status of a device that is ready for the next command.
const GOOD: u8 = status::READY | status::SEEK_COMPLETE;
/// In the error register: the command was aborted.
const ABORTED: u8 = 1 << 2;
/// In the count register of a packet's end: a status, to the host (SFF-8020i).
const PACKET_OVER: u16 = 3;

fn good() -> TaskFile {
    TaskFile { status: GOOD, ..TaskFile::default() }
}

fn aborted() -> TaskFile {
    TaskFile { status: GOOD | status::ERROR, error: ABORTED, ..TaskFile::default() }
}

/// What a device says of itself after a reset.
fn identity(signature: u32) -> TaskFile {
    let (count, lba) = ((signature & 0xff) as u16, u64::from(signature >> 8));
    TaskFile { status: GOOD, error: 1, count, lba, device: 0 }
}

impl Shared {
    /// Runs commands until none is left, or others should have a turn.
    fn work(&self) {
        let mut left = MAX_TURN;
        let mut any = true;
        while any {
            any = false;
            for port in 0..self.drives.len() {
                if self.run(port) {
                    any = true;
                    left -= 1;
                    if left == 0 {
                        let _ = self.bell.write(1);
                        return;
                    }
                }
            }
        }
    }

    /// Runs a port's next command. False: there is none.
    fn run(&self, port: usize) -> bool {
        let (slot, epoch, list) = {
            let mut hba = lock(&self.hba);
            let registers = &mut hba.ports[port];
            let Some(slot) = registers.take() else { return false };
            (slot, registers.epoch, registers.list)
        };
        let outcome = self.execute(port, slot, epoch, list);
        let mut hba = lock(&self.hba);
        let registers = &mut hba.ports[port];
        registers.running = false;
        if registers.epoch == epoch {
            let bits = match outcome.and_then(|outcome| self.finish(registers, slot, outcome)) {
                Ok(bits) => bits,
                Err(_) => {
                    registers.halt();
                    is::HOST_BUS_FATAL
                }
            };
            let wanted = registers.raise(bits);
            self.interrupt(&mut hba, wanted);
        } else {
            // Stopped or reset in the meantime: nobody waits for the result.
            hba.settle();
        }
        true
    }

    /// Shows a command's end in memory and registers; returns the interrupts it causes.
    fn finish(&self, port: &mut registers::Port, slot: u32, outcome: Outcome) -> Result<u32, MemoryError> {
        let receives = port.receives();
        let (task_file, pio) = match outcome {
            Outcome::Done(task_file) => (task_file, None),
            Outcome::PioIn(task_file, len) => (task_file, Some(len)),
            Outcome::Unknown => (aborted(), None),
            Outcome::Control(control) => {
                port.retire(slot);
                // SRST set, then cleared, is a reset (Serial ATA 2.6 §11.4).
                if control & 4 != 0 {
                    port.soft_reset = true;
                    return Ok(0);
                }
                if !std::mem::take(&mut port.soft_reset) {
                    return Ok(0);
                }
                port.reset_device();
                if receives {
                    identity(port.signature()).send_register(&self.memory, port.fises, false)?;
                }
                return Ok(0);
            }
        };
        let failed = task_file.status & status::ERROR != 0;
        let mut bits = is::D2H;
        if receives {
            match pio.filter(|_| !failed) {
                Some(len) => {
                    let start = TaskFile { status: GOOD | status::DATA_REQUEST, ..task_file };
                    start.send_pio_setup(&self.memory, port.fises, task_file.status, len)?;
                    bits = is::PIO_SETUP;
                }
                None => task_file.send_register(&self.memory, port.fises, true)?,
            }
        }
        port.task_file = task_file.register();
        if failed {
            port.halt();
            bits |= is::TASK_FILE_ERROR;
        } else {
            port.retire(slot);
        }
        Ok(bits)
    }

    /// Lets the guest know; `again` where something new happened that a message has to tell.
    fn interrupt(&self, hba: &mut Hba, again: bool) {
        let pending = hba.interrupts();
        let msi = lock(&self.msi);
        if msi.enabled {
            self.line.set(false);
            if let (true, Some(route)) = (pending && again, &msi.route) {
                route.trigger();
            }
        } else {
            self.line.set(pending && !self.intx_disabled.load(Ordering::Acquire));
        }
    }

    /// Whether a command's result is still wanted.
    fn wanted(&self, port: usize, epoch: u64) -> bool {
        lock(&self.hba).ports[port].epoch == epoch
    }

    fn execute(&self, port: usize, slot: u32, epoch: u64, list: u64) -> Result<Outcome, MemoryError> {
        let mut command = Command::read(&self.memory, list, slot)?;
        if !command.is_known() {
            return Ok(Outcome::Unknown);
        }
        if !command.is_command() {
            return Ok(Outcome::Control(command.control()));
        }
        {
            let mut hba = lock(&self.hba);
            let registers = &mut hba.ports[port];
            if registers.epoch == epoch {
                registers.task_file |= u32::from(status::BUSY);
            }
        }
        let outcome = self.cdrom(port, epoch, &mut command)?;
        command.report(&self.memory)?;
        Ok(outcome)
    }

    /// Commands of a packet device (ATA8-ACS §7).
    fn cdrom(&self, port: usize, epoch: u64, command: &mut Command) -> Result<Outcome, MemoryError> {
        const DEVICE_RESET: u8 = 0x08;
        const EXECUTE_DIAGNOSTIC: u8 = 0x90;
        const PACKET: u8 = 0xa0;
        const IDENTIFY_PACKET_DEVICE: u8 = 0xa1;
        const STANDBY_IMMEDIATE: u8 = 0xe0;
        const IDLE_IMMEDIATE: u8 = 0xe1;
        const CHECK_POWER_MODE: u8 = 0xe5;
        const SLEEP: u8 = 0xe6;
        const FLUSH_CACHE: u8 = 0xe7;
        const IDENTIFY_DEVICE: u8 = 0xec;
        const SET_FEATURES: u8 = 0xef;
        const SET_TRANSFER_MODE: u8 = 0x03;
        let task_file = match command.code() {
            PACKET => return self.packet(port, epoch, command).map(Outcome::Done),
            IDENTIFY_PACKET_DEVICE => {
                let data = identify::packet_device(port);
                command.list.write(&self.memory, &data)?;
                return Ok(Outcome::PioIn(good(), data.len() as u16));
            }
            // A packet device answers this by saying what it is.
            IDENTIFY_DEVICE => TaskFile { error: ABORTED, status: GOOD | status::ERROR, ..identity(identify::ATAPI) },
            DEVICE_RESET | EXECUTE_DIAGNOSTIC => identity(identify::ATAPI),
            CHECK_POWER_MODE => TaskFile { count: 0xff, ..good() },
            SET_FEATURES if command.features() == SET_TRANSFER_MODE => good(),
            STANDBY_IMMEDIATE | IDLE_IMMEDIATE | SLEEP | FLUSH_CACHE => good(),
            _ => aborted(),
        };
        Ok(Outcome::Done(task_file))
    }

    fn packet(&self, port: usize, epoch: u64, command: &mut Command) -> Result<TaskFile, MemoryError> {
        let over = TaskFile { count: PACKET_OVER, ..good() };
        let failed = |sense: Sense| TaskFile {
            status: GOOD | status::ERROR,
            error: sense.key << 4 | ABORTED,
            count: PACKET_OVER,
            ..TaskFile::default()
        };
        let reply = lock(&self.drives[port]).execute(&command.packet);
        Ok(match reply {
            Reply::Done => over,
            Reply::Ejected => {
                (self.ejected)(port);
                over
            }
            Reply::Failed(sense) => failed(sense),
            Reply::Data(bytes) => {
                command.list.write(&self.memory, &bytes)?;
                over
            }
            Reply::Read { medium, offset, len } => {
                while command.list.done() < len && self.wanted(port, epoch) {
                    let done = command.list.done();
                    let buffers = command.list.take(&self.memory, len - done)?;
                    if buffers.is_empty() {
                        break;
                    }
                    if let Err(error) = medium.read(offset + done, buffers) {
                        (self.problems)(&self.name, format!("the disc in drive {port} can't be read: {error}"));
                        lock(&self.drives[port]).fail(Sense::UNREADABLE);
                        return Ok(failed(Sense::UNREADABLE));
                    }
                }
                over
            }
        })
    }

    /// Does what a register write asks for.
    fn apply(&self, hba: &mut Hba, effect: Effect) {
        for (index, port) in hba.ports.iter().enumerate() {
            if effect.signature & 1 << index != 0 && port.receives() {
                // An area that is no RAM is the driver's loss: nothing is waiting for this FIS.
                let _ = identity(port.signature()).send_register(&self.memory, port.fises, false);
            }
        }
        self.interrupt(hba, effect.interrupt);
        if effect.ring {
            let _ = self.bell.write(1);
        }
    }
}

/// The task that runs commands.
struct Worker {
    shared: Arc<Shared>,
}

impl Task for Worker {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(self.shared.bell.as_raw_fd(), 0)]
    }

    fn start(&mut self) {
        self.shared.work();
    }

    fn ready(&mut self, _token: u32) {
        self.shared.work();
    }

    fn stopped(self: Box<Self>) {}
}

/// What a checkpoint keeps of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AhciState {
    pci: ConfigState,
    hba: HbaState,
    drives: Vec<CdState>,
}

impl SavedState for AhciState {
    const VERSION: u32 = 1;
}

/// The controller as a PCI function; goes to 00:1f.2.
pub struct Ahci {
    pci: Mutex<ConfigSpace>,
    msi_capability: usize,
    shared: Arc<Shared>,
    executor: Arc<dyn Executor>,
    task: Mutex<Option<TaskId>>,
}

impl Ahci {
    /// A controller with these drives, at most [`PORTS`], in the order of the ports; each may be empty. Fails when the
    /// host is out of file descriptors.
    pub fn new(parts: AhciParts, drives: Vec<Option<Medium>>) -> io::Result<Arc<Ahci>> {
        let AhciParts { name, memory, executor, msi, line, problems, ejected } = parts;
        let drives: Vec<_> = drives.into_iter().take(PORTS).map(|medium| Mutex::new(CdDrive::new(medium))).collect();
        let identity = Identity {
            vendor: 0x8086,
            device: 0x2922,
            revision: 2,
            class: [0x01, 0x06, 0x01],
            subsystem: (0x1af4, 0x1100),
        };
        let mut pci = ConfigSpace::new(identity);
        pci.use_intx();
        pci.add_bar(ABAR, BarKind::Memory, ABAR_SIZE);
        // 64-bit address, one message.
        let body = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let writable = [0x01, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let msi_capability = pci.add_capability(cap::MSI, &body, &writable);
        // ICH9's own (§12.1.30): AHCI mode, ports enabled.
        let ports = (1u8 << drives.len()) - 1;
        pci.set(0x90, &[0x40, 0, ports, 0]);
        pci.allow(0x92, &[0x3f]);
        let signature = |port: usize| drives.get(port).map(|_| identify::ATAPI);
        let shared = Arc::new(Shared {
            name,
            memory,
            hba: Mutex::new(Hba::new(std::array::from_fn(signature))),
            drives,
            bell: EventFd::new(EFD_NONBLOCK)?,
            msi: Mutex::new(Msi { sink: msi, route: None, enabled: false }),
            line,
            intx_disabled: AtomicBool::new(false),
            problems,
            ejected,
        });
        let task = executor.submit(Box::new(Worker { shared: shared.clone() }));
        Ok(Arc::new(Ahci { pci: Mutex::new(pci), msi_capability, shared, executor, task: Mutex::new(Some(task)) }))
    }

    /// Puts a medium in a drive in place of the one that is there, or takes it out. A guest that locked the tray is
    /// asked to let go of it, unless `force`.
    pub fn change(&self, drive: usize, medium: Option<Medium>, force: bool) -> Result<(), ChangeError> {
        let slot = self.shared.drives.get(drive).ok_or(ChangeError::NoDrive(drive))?;
        if lock(slot).change(medium, force) { Ok(()) } else { Err(ChangeError::Locked(drive)) }
    }

    /// Whether there is a medium in a drive.
    pub fn has_medium(&self, drive: usize) -> bool {
        self.shared.drives.get(drive).is_some_and(|d| lock(d).has_medium())
    }

    /// Takes over what the guest wrote in configuration space.
    fn config_changed(&self) {
        let (control, address, data, disabled) = {
            let pci = lock(&self.pci);
            let dword = |at: usize| pci.dword(self.msi_capability + at);
            let address = u64::from(dword(4)) | u64::from(dword(8)) << 32;
            ((dword(0) >> 16) as u16, address, dword(12) & 0xffff, pci.intx_disabled())
        };
        self.shared.intx_disabled.store(disabled, Ordering::Release);
        {
            let mut msi = lock(&self.shared.msi);
            msi.enabled = control & 1 != 0;
            if msi.enabled {
                if msi.route.is_none() {
                    msi.route = msi.sink.route().ok();
                }
                let set = msi.route.as_ref().map(|route| route.set(MsiMessage { address, data }));
                if !matches!(set, Some(Ok(()))) {
                    let why = "the host can't route the controller's interrupt";
                    (self.shared.problems)(&self.shared.name, why.into());
                }
            }
        }
        let mut hba = lock(&self.shared.hba);
        self.shared.interrupt(&mut hba, true);
    }
}

impl PciDevice for Ahci {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.pci
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let pending = lock(&self.shared.hba).interrupts();
        let mut pci = lock(&self.pci);
        pci.set_interrupt_status(pending);
        pci.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Option<Action> {
        lock(&self.pci).write(offset, data);
        self.config_changed();
        None
    }

    fn read_bar(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        let hba = lock(&self.shared.hba);
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset as u32 + i as u32;
            *byte = (hba.read(at & !3) >> (8 * (at & 3))) as u8;
        }
    }

    fn write_bar(&self, _bar: usize, offset: u64, data: &[u8]) -> Option<Action> {
        // Registers are written whole (§3): anything else is dropped.
        if offset.is_multiple_of(4) && data.len().is_multiple_of(4) {
            let mut hba = lock(&self.shared.hba);
            for (i, word) in data.chunks_exact(4).enumerate() {
                let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                let effect = hba.write(offset as u32 + 4 * i as u32, value);
                self.shared.apply(&mut hba, effect);
            }
        }
        None
    }
}

impl Component for Ahci {
    fn name(&self) -> String {
        self.shared.name.clone()
    }

    fn pause(&self) {
        if let Some(task) = lock(&self.task).take() {
            self.executor.stop(task);
        }
        self.executor.flush();
    }

    fn resume(&self) {
        lock(&self.task).get_or_insert_with(|| self.executor.submit(Box::new(Worker { shared: self.shared.clone() })));
        let _ = self.shared.bell.write(1);
    }

    fn reset(&self) {
        for drive in &self.shared.drives {
            lock(drive).reset();
        }
        lock(&self.shared.hba).reset();
        lock(&self.pci).reset();
        self.config_changed();
    }

    fn save(&self) -> Result<Section, StateError> {
        let state = AhciState {
            pci: lock(&self.pci).save(),
            hba: lock(&self.shared.hba).save(),
            drives: self.shared.drives.iter().map(|d| lock(d).save()).collect(),
        };
        Section::encode(&self.shared.name, &state)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let AhciState { pci, hba, drives } = section.decode()?;
        if drives.len() != self.shared.drives.len() {
            let why = format!("it has {} drives, not {}", drives.len(), self.shared.drives.len());
            return Err(StateError::invalid(&self.shared.name, why));
        }
        lock(&self.pci).restore(&pci)?;
        lock(&self.shared.hba).restore(&hba).map_err(|why| StateError::invalid(&self.shared.name, why))?;
        for (drive, state) in self.shared.drives.iter().zip(&drives) {
            lock(drive).restore(state);
        }
        self.config_changed();
        Ok(())
    }
}

impl Drop for Ahci {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            self.executor.stop(task);
        }
    }
}

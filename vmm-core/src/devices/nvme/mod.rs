//! An NVM Express controller with one namespace on a disk (NVM Express base specification 1.4; PCI transport): the
//! controller that current systems know without a driver of ours, Windows among them.
//!
//! A vCPU stores registers and doorbells and wakes the controller's thread; everything else happens there. A driver that
//! keeps shadow doorbells (Linux) wakes it without a trip through a vCPU's thread.

mod admin;
mod controller;
mod doorbells;
mod features;
mod identify;
mod log;
mod namespace;
mod prp;
mod queues;
mod registers;
mod sgl;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::backend::disk::Disk;
use crate::base::{Component, Executor, GuestMemory, Section, StateError, Task, TaskId};
use crate::hw::{self, Action, IrqLine, MsiSink, ProblemSink};
use crate::pci::{BarKind, ConfigSpace, Identity, Msix, PciDevice};
use controller::Controller;
use doorbells::Doorbells;
use registers::{Effect, Registers};

pub use state::NvmeState;

/// I/O queue pairs that a driver may create: as many as a machine has CPUs.
pub const MAX_QUEUES: u16 = 64;

/// The BAR with everything in it.
const BAR: usize = 0;
const BAR_SIZE: u32 = 0x4000;
/// Doorbells, four bytes each: submission and completion queue of each pair (§3.1).
const DOORBELLS: u64 = 0x1000;
/// MSI-X table and pending bits.
const TABLE: u64 = 0x2000;
const PENDING: u64 = 0x3000;
/// PCI power management (PCI 3.0 appendix H); it has nothing to do here but to be there (§2.3).
const POWER_MANAGEMENT: u8 = 0x01;

/// What the machine gives a controller.
pub struct NvmeParts {
    /// A name that is unique in the machine, for problems and checkpoints.
    pub name: String,
    /// The serial number that the guest sees, its first 20 characters; its names are derived from all of it.
    pub serial: String,
    /// I/O queue pairs, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The thread that runs commands.
    pub executor: Arc<dyn Executor>,
    /// Where message-signalled interrupts go.
    pub msi: Arc<dyn MsiSink>,
    /// INTA#.
    pub line: Arc<dyn IrqLine>,
    /// Doorbells without a vCPU exit.
    pub doorbells: Arc<dyn hw::Doorbells>,
    /// Who is told when the host fails.
    pub problems: ProblemSink,
    /// Who is told that the host has no room for what the guest writes: the machine is to be paused.
    pub stalls: ProblemSink,
}

/// Doorbells that ring without an exit.
#[derive(Default)]
struct Wiring {
    /// Where the guest sees the BAR.
    bar: Option<u64>,
    /// Queues whose driver keeps a shadow of them.
    queues: Vec<u16>,
    /// Addresses that ring.
    wired: BTreeSet<u64>,
}

/// What vCPUs and the controller's thread share.
struct Shared {
    name: String,
    memory: GuestMemory,
    registers: Mutex<Registers>,
    doorbells: Doorbells,
    /// Held by the thread while it works, and by whoever stopped it; never by a vCPU.
    controller: Mutex<Controller>,
    bell: EventFd,
    msix: Msix,
    line: Arc<dyn IrqLine>,
    /// Held while the line's level is found and set.
    level: Mutex<()>,
    pin_masked: AtomicBool,
    intx_disabled: AtomicBool,
    wires: Arc<dyn hw::Doorbells>,
    wiring: Mutex<Wiring>,
    problems: ProblemSink,
    stalls: ProblemSink,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn ring(&self) {
        // A counter that is full still wakes the thread.
        let _ = self.bell.write(1);
    }

    /// Sends a vector's message, where the guest uses messages.
    fn message(&self, vector: u16) {
        if self.msix.is_enabled() {
            self.msix.trigger(vector);
        }
    }

    fn pin(&self) -> bool {
        !self.msix.is_enabled() && self.doorbells.pending()
    }

    /// Brings INTA# to where completions and masks want it.
    fn drive_line(&self) {
        let _level = lock(&self.level);
        let off = self.pin_masked.load(Ordering::Acquire) || self.intx_disabled.load(Ordering::Acquire);
        self.line.set(!off && self.pin());
    }

    /// Has the submission doorbells of these queues ring by themselves, and no others.
    fn wire(&self, queues: Vec<u16>) {
        let mut wiring = lock(&self.wiring);
        wiring.queues = queues;
        self.rewire(&mut wiring);
    }

    fn rewire(&self, wiring: &mut Wiring) {
        let address = |bar: u64, queue: u16| bar + DOORBELLS + 8 * u64::from(queue);
        let wanted: BTreeSet<u64> = match wiring.bar {
            Some(bar) => wiring.queues.iter().map(|&queue| address(bar, queue)).collect(),
            None => BTreeSet::new(),
        };
        for &old in wiring.wired.difference(&wanted) {
            let _ = self.wires.unregister(old, &self.bell);
        }
        // Where the host has no room for another, the write exits to the vCPU and rings there.
        let kept = |&address: &u64| wiring.wired.contains(&address) || self.wires.register(address, &self.bell).is_ok();
        wiring.wired = wanted.into_iter().filter(kept).collect();
    }
}

/// The task that runs the controller.
struct Worker {
    shared: Arc<Shared>,
    disk: RawFd,
}

impl Worker {
    fn work(&self) {
        if lock(&self.shared.controller).work(&self.shared) {
            self.shared.ring();
        }
    }
}

impl Task for Worker {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(self.shared.bell.as_raw_fd(), 0), (self.disk, 1)]
    }

    fn start(&mut self) {
        lock(&self.shared.controller).resume();
        self.work();
    }

    fn ready(&mut self, _token: u32) {
        self.work();
    }

    fn stopped(self: Box<Self>) {
        lock(&self.shared.controller).pause(&self.shared);
    }
}

/// The controller as a PCI function.
pub struct Nvme {
    pci: Mutex<ConfigSpace>,
    msix_capability: usize,
    shared: Arc<Shared>,
    executor: Arc<dyn Executor>,
    task: Mutex<Option<TaskId>>,
}

impl Nvme {
    /// A controller whose namespace is this disk. Fails when the host is out of file descriptors.
    pub fn new(parts: NvmeParts, disk: Box<dyn Disk>) -> io::Result<Arc<Nvme>> {
        let NvmeParts { name, serial, queues, memory, executor, msi, line, doorbells, problems, stalls } = parts;
        let pairs = queues.clamp(1, MAX_QUEUES) + 1;
        let identity = Identity {
            // QEMU's: Red Hat's number for an NVMe controller, which needs no driver but the class's.
            vendor: identify::VENDOR,
            device: 0x0010,
            revision: 2,
            class: [0x01, 0x08, 0x02],
            subsystem: identify::SUBSYSTEM,
        };
        let mut pci = ConfigSpace::new(identity);
        pci.use_intx();
        pci.add_bar(BAR, BarKind::Memory, BAR_SIZE);
        // Version 3; nothing is lost on the way back from D3hot.
        pci.add_capability(POWER_MANAGEMENT, &[3, 0, 8, 0, 0, 0], &[0, 0, 3, 0, 0, 0]);
        let msix = Msix::new(pairs, msi);
        let msix_capability = msix.add_capability(&mut pci, BAR as u8, TABLE as u32, PENDING as u32);
        let shared = Arc::new(Shared {
            name,
            memory,
            registers: Mutex::default(),
            doorbells: Doorbells::new(pairs),
            controller: Mutex::new(Controller::new(disk, serial, pairs)),
            bell: EventFd::new(EFD_NONBLOCK)?,
            msix,
            line,
            level: Mutex::default(),
            pin_masked: AtomicBool::new(false),
            intx_disabled: AtomicBool::new(false),
            wires: doorbells,
            wiring: Mutex::default(),
            problems,
            stalls,
        });
        let nvme = Nvme { pci: Mutex::new(pci), msix_capability, shared, executor, task: Mutex::default() };
        nvme.resume();
        Ok(Arc::new(nvme))
    }

    fn msix_control(&self) -> u16 {
        (lock(&self.pci).dword(self.msix_capability) >> 16) as u16
    }

    /// Takes over what the guest wrote in configuration space.
    fn config_changed(&self) {
        let disabled = lock(&self.pci).intx_disabled();
        self.shared.intx_disabled.store(disabled, Ordering::Release);
        self.shared.msix.set_control(self.msix_control());
        self.shared.drive_line();
    }

    fn apply(&self, effect: Effect) {
        if effect.mask {
            let masked = lock(&self.shared.registers).masks_pin();
            self.shared.pin_masked.store(masked, Ordering::Release);
            self.shared.drive_line();
        }
        if effect.ring {
            self.shared.ring();
        }
    }

    fn write_doorbell(&self, index: u64, value: u32) {
        let rung = self.shared.doorbells.write(index, value);
        if rung.line && !self.shared.msix.is_enabled() {
            self.shared.drive_line();
        }
        if rung.ring {
            self.shared.ring();
        }
    }

    /// Bytes of the MSI-X table.
    fn table_len(&self) -> u64 {
        16 * u64::from(self.shared.msix.vectors())
    }
}

impl PciDevice for Nvme {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.pci
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let pending = self.shared.pin();
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
        match offset {
            0..DOORBELLS => {
                let registers = lock(&self.shared.registers);
                for (at, byte) in (offset..).zip(data.iter_mut()) {
                    *byte = (registers.read(at & !3) >> (8 * (at & 3))) as u8;
                }
            }
            TABLE..PENDING if offset - TABLE < self.table_len() => self.shared.msix.read_table(offset - TABLE, data),
            PENDING.. => self.shared.msix.read_pba(offset - PENDING, data),
            // Doorbells can only be written.
            _ => data.fill(0),
        }
    }

    fn write_bar(&self, _bar: usize, offset: u64, data: &[u8]) -> Option<Action> {
        if (TABLE..PENDING).contains(&offset) {
            self.shared.msix.write_table(offset - TABLE, data);
            return None;
        }
        // Registers are written whole (§3.1): anything else is dropped.
        if !offset.is_multiple_of(4) {
            return None;
        }
        match (offset, data) {
            (0..DOORBELLS, [_, _, _, _] | [_, _, _, _, _, _, _, _]) => {
                for (at, word) in (offset..).step_by(4).zip(data.as_chunks::<4>().0) {
                    let effect = lock(&self.shared.registers).write(at, u32::from_le_bytes(*word));
                    self.apply(effect);
                }
            }
            (DOORBELLS..TABLE, &[a, b, c, d]) => {
                self.write_doorbell((offset - DOORBELLS) / 4, u32::from_le_bytes([a, b, c, d]));
            }
            _ => {}
        }
        None
    }

    fn bar_moved(&self, bar: usize, address: Option<u64>) {
        if bar == BAR {
            let mut wiring = lock(&self.shared.wiring);
            wiring.bar = address;
            self.shared.rewire(&mut wiring);
        }
    }
}

impl Component for Nvme {
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
        let disk = lock(&self.shared.controller).event();
        let worker = || Box::new(Worker { shared: self.shared.clone(), disk });
        lock(&self.task).get_or_insert_with(|| self.executor.submit(worker()));
    }

    fn reset(&self) {
        lock(&self.shared.controller).reset(&self.shared);
        *lock(&self.shared.registers) = Registers::default();
        self.shared.pin_masked.store(false, Ordering::Release);
        self.shared.msix.reset();
        lock(&self.pci).reset();
        self.config_changed();
    }

    fn save(&self) -> Result<Section, StateError> {
        let state = NvmeState {
            pci: lock(&self.pci).save(),
            msix: self.shared.msix.save(),
            registers: lock(&self.shared.registers).save(),
            controller: lock(&self.shared.controller).save(&self.shared),
        };
        Section::encode(&self.shared.name, &state)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let NvmeState { pci, msix, registers, controller } = section.decode()?;
        let invalid = |why: String| StateError::invalid(&self.shared.name, why);
        lock(&self.shared.controller).restore(&self.shared, &controller).map_err(invalid)?;
        {
            let mut own = lock(&self.shared.registers);
            own.restore(&registers, controller.live.is_some()).map_err(|why| invalid(why.into()))?;
            self.shared.pin_masked.store(own.masks_pin(), Ordering::Release);
        }
        lock(&self.pci).restore(&pci)?;
        self.shared.msix.restore(&msix, self.msix_control())?;
        self.config_changed();
        Ok(())
    }
}

impl Drop for Nvme {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            self.executor.stop(task);
        }
    }
}

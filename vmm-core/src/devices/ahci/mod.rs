//! A SATA controller, ICH9's, with disks and with CD-ROM drives behind ATAPI (AHCI 1.3.1, Serial ATA 2.6, ATA8-ACS,
//! MMC-3): what firmware and installers of every system have a driver for.
//!
//! A vCPU only stores registers and rings; commands run on the task's thread ([`engine`]).

mod cdrom;
mod command;
mod disk;
#[cfg(test)]
mod disk_tests;
mod engine;
mod identify;
mod registers;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::backend::disk::{Disk, Medium};
use crate::base::{Component, Executor, GuestMemory, SavedState, Section, StateError, TaskId};
use crate::hw::{Action, IrqLine, MsiMessage, MsiRoute, MsiSink, ProblemSink};
use crate::pci::{BarKind, ConfigSpace, ConfigState, Identity, PciDevice, cap};
use cdrom::CdDrive;
use command::TaskFile;
use disk::AtaDisk;
use engine::{Device, Shared, Worker, lock};
use registers::{Hba, status};

pub use cdrom::CdState;
pub use disk::DiskState;
pub use registers::{HbaState, PORTS};

/// The BAR with the registers.
const ABAR: usize = 5;
const ABAR_SIZE: u32 = 0x1000;

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
    /// Who is told when the host's disk is full, and pauses the machine until there is room.
    pub stalls: ProblemSink,
    /// Called with a drive's number when the guest ejected its medium; on the controller's thread.
    pub ejected: Arc<dyn Fn(usize) + Send + Sync>,
}

/// What is connected to a port.
pub enum Drive {
    /// A CD-ROM drive and the medium in it.
    Cd(Option<Medium>),
    /// A disk, and its name in problems, which is its serial number too (20 characters of it).
    Disk(Box<dyn Disk>, String),
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

/// What a checkpoint keeps of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AhciState {
    pci: ConfigState,
    hba: HbaState,
    drives: Vec<DriveState>,
}

/// What a checkpoint keeps of what is on a port. Version 1 knew CD-ROM drives only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum DriveState {
    Disk(DiskState),
    Cd(CdState),
}

impl SavedState for AhciState {
    const VERSION: u32 = 2;
}

/// How a command ended.
enum Outcome {
    /// The device returned this.
    Done(TaskFile),
    /// The device sent data by programmed I/O, this many bytes in the last block, and then returned this.
    PioIn(TaskFile, u16),
    /// A queued command did all that it was to do.
    Queued,
    /// A queued command failed, and with it the queue.
    QueueFailed(TaskFile),
    /// The host's disk is full: it is to be done again. True: it is a queued command.
    Returned(bool),
    /// The control register was written.
    Control(u8),
}

/// The status of a device that is ready for the next command.
const GOOD: u8 = status::READY | status::SEEK_COMPLETE;
/// In the error register: the command was aborted.
const ABORTED: u8 = 1 << 2;

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

/// The controller as a PCI function; goes to 00:1f.2.
pub struct Ahci {
    pci: Mutex<ConfigSpace>,
    msi_capability: usize,
    shared: Arc<Shared>,
    executor: Arc<dyn Executor>,
    task: Mutex<Option<TaskId>>,
}

impl Ahci {
    /// A controller with these drives, at most [`PORTS`], in the order of the ports. Fails when the host is out of file
    /// descriptors.
    pub fn new(parts: AhciParts, drives: Vec<Drive>) -> io::Result<Arc<Ahci>> {
        let AhciParts { name, memory, executor, msi, line, problems, stalls, ejected } = parts;
        let devices = drives.into_iter().take(PORTS).map(|drive| match drive {
            Drive::Cd(medium) => Device::Cd(Mutex::new(CdDrive::new(medium))),
            Drive::Disk(disk, name) => Device::Disk(Box::new(Mutex::new(AtaDisk::new(disk, name)))),
        });
        let devices: Vec<_> = devices.collect();
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
        let ports = (1u8 << devices.len()) - 1;
        pci.set(0x90, &[0x40, 0, ports, 0]);
        pci.allow(0x92, &[0x3f]);
        let signature = |port: usize| {
            devices.get(port).map(|device| match device {
                Device::Cd(_) => identify::ATAPI,
                Device::Disk(_) => identify::ATA,
            })
        };
        let shared = Arc::new(Shared {
            name,
            memory,
            hba: Mutex::new(Hba::new(std::array::from_fn(signature))),
            devices,
            bell: EventFd::new(EFD_NONBLOCK)?,
            msi: Mutex::new(Msi { sink: msi, route: None, enabled: false }),
            line,
            intx_disabled: AtomicBool::new(false),
            problems,
            stalls,
            ejected,
        });
        let task = executor.submit(Box::new(Worker { shared: shared.clone() }));
        Ok(Arc::new(Ahci { pci: Mutex::new(pci), msi_capability, shared, executor, task: Mutex::new(Some(task)) }))
    }

    /// Puts a medium in a drive in place of the one that is there, or takes it out. A guest that locked the tray is
    /// asked to let go of it, unless `force`.
    pub fn change(&self, drive: usize, medium: Option<Medium>, force: bool) -> Result<(), ChangeError> {
        let Some(Device::Cd(slot)) = self.shared.devices.get(drive) else { return Err(ChangeError::NoDrive(drive)) };
        if lock(slot).change(medium, force) { Ok(()) } else { Err(ChangeError::Locked(drive)) }
    }

    /// Whether there is a medium in a CD-ROM drive.
    pub fn has_medium(&self, drive: usize) -> bool {
        matches!(self.shared.devices.get(drive), Some(Device::Cd(slot)) if lock(slot).has_medium())
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

impl Device {
    fn save(&self) -> DriveState {
        match self {
            Device::Cd(drive) => DriveState::Cd(lock(drive).save()),
            Device::Disk(disk) => DriveState::Disk(lock(disk).save()),
        }
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
        // There may be room again.
        lock(&self.shared.hba).go_on();
        lock(&self.task).get_or_insert_with(|| self.executor.submit(Box::new(Worker { shared: self.shared.clone() })));
        let _ = self.shared.bell.write(1);
    }

    fn reset(&self) {
        for device in &self.shared.devices {
            match device {
                Device::Cd(drive) => lock(drive).reset(),
                Device::Disk(disk) => lock(disk).reset(),
            }
        }
        lock(&self.shared.hba).reset();
        lock(&self.pci).reset();
        self.config_changed();
    }

    fn save(&self) -> Result<Section, StateError> {
        let state = AhciState {
            pci: lock(&self.pci).save(),
            hba: lock(&self.shared.hba).save(),
            drives: self.shared.devices.iter().map(Device::save).collect(),
        };
        Section::encode(&self.shared.name, &state)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let AhciState { pci, hba, drives } = section.decode()?;
        let invalid = |why| StateError::invalid(&self.shared.name, why);
        let count = self.shared.devices.len();
        if drives.len() != count {
            return Err(invalid(format!("it has {} drives, not {count}", drives.len())));
        }
        lock(&self.pci).restore(&pci)?;
        lock(&self.shared.hba).restore(&hba).map_err(invalid)?;
        for (port, (device, state)) in self.shared.devices.iter().zip(&drives).enumerate() {
            match (device, state) {
                (Device::Cd(drive), DriveState::Cd(state)) => lock(drive).restore(state),
                (Device::Disk(disk), DriveState::Disk(state)) => lock(disk).restore(state).map_err(invalid)?,
                _ => return Err(invalid(format!("port {port} had a drive of another kind"))),
            }
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

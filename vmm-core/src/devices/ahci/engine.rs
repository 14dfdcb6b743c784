//! Runs the commands of all ports on the task's thread (AHCI 1.3.1 §5): takes them from the driver's lists, hands them
//! to the devices, and shows how they ended. A disk's commands run beside each other, a CD-ROM drive's one by one.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::cdrom::{CdDrive, Reply, Sense};
use super::command::{Command, TaskFile};
use super::disk::{self, AtaDisk, Finished, Owner, Started};
use super::registers::{self, Effect, Hba, SLOTS, Taken, is, status};
use super::{ABORTED, GOOD, Msi, Outcome, aborted, good, identify, identity};
use crate::backend::disk::DiskError;
use crate::base::{GuestMemory, MemoryError, Task};
use crate::hw::{IrqLine, ProblemSink};

/// Commands in a row before the thread's other devices have a turn.
const MAX_TURN: u32 = 64;
/// In the count register of a packet's end: a status, to the host (SFF-8020i).
const PACKET_OVER: u16 = 3;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is on a port.
pub(super) enum Device {
    Cd(Mutex<CdDrive>),
    Disk(Box<Mutex<AtaDisk>>),
}

/// What registers and commands are about, on whichever thread.
pub(super) struct Shared {
    pub name: String,
    pub memory: GuestMemory,
    pub hba: Mutex<Hba>,
    /// By port.
    pub devices: Vec<Device>,
    pub bell: EventFd,
    pub msi: Mutex<Msi>,
    pub line: Arc<dyn IrqLine>,
    pub intx_disabled: AtomicBool,
    pub problems: ProblemSink,
    pub stalls: ProblemSink,
    pub ejected: Arc<dyn Fn(usize) + Send + Sync>,
}

/// Queued commands that ended well and are to be told of together.
#[derive(Default)]
struct Batch {
    epoch: u64,
    tags: u32,
}

impl Shared {
    /// Runs commands until none is left, or others should have a turn.
    fn work(&self) {
        let mut left = MAX_TURN;
        let mut any = true;
        while any {
            any = false;
            for (port, device) in self.devices.iter().enumerate() {
                let most = match device {
                    Device::Cd(_) => 1,
                    Device::Disk(_) => SLOTS,
                };
                let mut started = 0;
                while started < most.min(left) && self.run(port, device) {
                    started += 1;
                }
                if let Device::Disk(disk) = device {
                    if started > 0 {
                        lock(disk).kick();
                    }
                    // What the host has in its cache is done already.
                    any |= self.reap(port, disk);
                }
                any |= started > 0;
                left -= started;
                if left == 0 {
                    let _ = self.bell.write(1);
                    return;
                }
            }
        }
    }

    /// Takes a port's next command. False: there is none.
    fn run(&self, port: usize, device: &Device) -> bool {
        let Some(taken) = lock(&self.hba).ports[port].take() else { return false };
        let owner = Owner { slot: taken.slot, epoch: taken.epoch };
        match self.start(port, device, &taken) {
            Ok(Started::Done(outcome)) => self.conclude(port, owner, Ok(outcome)),
            Ok(Started::Running) => {}
            Err(error) => self.conclude(port, owner, Err(error)),
        }
        true
    }

    fn start(&self, port: usize, device: &Device, taken: &Taken) -> Result<Started, MemoryError> {
        let &Taken { slot, epoch, list, queued } = taken;
        let mut command = Command::read(&self.memory, list, slot)?;
        if !command.is_known() {
            return Ok(Started::Done(Outcome::Done(aborted())));
        }
        if !command.is_command() {
            return Ok(Started::Done(Outcome::Control(command.control())));
        }
        let queue = matches!(device, Device::Disk(_)) && disk::is_queued(&command);
        if queued != 0 && !queue || queue && (disk::tag(&command) != slot || queued & 1 << slot != 0) {
            // Beside queued commands there is none that is not, and no tag twice: all are aborted (ATA8-ACS §4.15).
            return Ok(Started::Done(Outcome::Done(aborted())));
        }
        {
            let mut hba = lock(&self.hba);
            let registers = &mut hba.ports[port];
            if registers.epoch != epoch {
                // Nobody waits for it any more.
                return Ok(Started::Done(Outcome::Queued));
            }
            if queue {
                registers.enqueue(slot);
                registers.task_file = good().register();
                if registers.receives() {
                    good().send_register(&self.memory, registers.fises, false)?;
                }
            } else {
                registers.task_file |= u32::from(status::BUSY);
            }
        }
        match device {
            Device::Cd(drive) => {
                let outcome = self.cdrom(port, drive, epoch, &mut command)?;
                command.report(&self.memory)?;
                Ok(Started::Done(outcome))
            }
            Device::Disk(disk) => lock(disk).start(&self.memory, Owner { slot, epoch }, command),
        }
    }

    /// Shows the ends of a disk's commands. True: there were some.
    fn reap(&self, port: usize, disk: &Mutex<AtaDisk>) -> bool {
        let mut any = false;
        let mut batch = Batch::default();
        loop {
            let epoch = lock(&self.hba).ports[port].epoch;
            let mut disk = lock(disk);
            let Some(Finished { owner, outcome, complaint }) = disk.finished(&self.memory, epoch) else { break };
            any = true;
            if let Some(complaint) = complaint {
                (self.problems)(&disk.name, complaint);
            }
            let returned = owner.epoch == epoch && matches!(outcome, Ok(Outcome::Returned(_)));
            if returned && lock(&self.hba).ports[port].stall() {
                (self.stalls)(&disk.name, format!("{}; free some, then resume the machine", DiskError::Full));
            }
            drop(disk);
            if matches!(outcome, Ok(Outcome::Queued)) && owner.epoch == epoch {
                batch.epoch = epoch;
                batch.tags |= 1 << owner.slot;
            } else {
                self.conclude_batch(port, std::mem::take(&mut batch));
                self.conclude(port, owner, outcome);
            }
        }
        self.conclude_batch(port, batch);
        any
    }

    /// Waits until nothing runs on the host's side.
    fn drain(&self) {
        for (port, device) in self.devices.iter().enumerate() {
            let Device::Disk(disk) = device else { continue };
            // A round ends each command or takes it a piece further.
            while lock(disk).is_busy() {
                lock(disk).drain();
                self.reap(port, disk);
            }
        }
    }

    /// Shows how a command ended, if anybody waits for it.
    fn conclude(&self, port: usize, owner: Owner, outcome: Result<Outcome, MemoryError>) {
        let mut hba = lock(&self.hba);
        self.release(&mut hba, port, 1);
        let registers = &mut hba.ports[port];
        // Stopped or reset in the meantime: nobody waits for the result.
        if registers.epoch == owner.epoch {
            let bits = match outcome.and_then(|outcome| self.finish(registers, owner.slot, outcome)) {
                Ok(bits) => bits,
                Err(_) => {
                    registers.halt();
                    is::HOST_BUS_FATAL
                }
            };
            let wanted = registers.raise(bits);
            self.interrupt(&mut hba, wanted);
        }
        hba.settle();
    }

    fn conclude_batch(&self, port: usize, batch: Batch) {
        let Batch { epoch, tags } = batch;
        if tags == 0 {
            return;
        }
        let mut hba = lock(&self.hba);
        self.release(&mut hba, port, tags.count_ones());
        let registers = &mut hba.ports[port];
        if registers.epoch == epoch {
            let bits = match self.finish_queued(registers, tags, good()) {
                Ok(bits) => bits,
                Err(_) => {
                    registers.halt();
                    is::HOST_BUS_FATAL
                }
            };
            let wanted = registers.raise(bits);
            self.interrupt(&mut hba, wanted);
        }
        hba.settle();
    }

    /// Gives the memory of commands back; a device whose reset waited for that shows its signature.
    fn release(&self, hba: &mut Hba, port: usize, commands: u32) {
        let registers = &mut hba.ports[port];
        if registers.release(commands) && registers.receives() {
            // As in `apply`.
            let _ = identity(registers.signature()).send_register(&self.memory, registers.fises, false);
        }
    }

    /// Shows a command's end in memory and registers; returns the interrupts it causes.
    fn finish(&self, port: &mut registers::Port, slot: u32, outcome: Outcome) -> Result<u32, MemoryError> {
        let receives = port.receives();
        let (task_file, pio) = match outcome {
            Outcome::Done(task_file) => (task_file, None),
            Outcome::PioIn(task_file, len) => (task_file, Some(len)),
            Outcome::Queued => return self.finish_queued(port, 1 << slot, good()),
            Outcome::Returned(queued) => {
                port.put_back(slot, queued);
                return Ok(0);
            }
            Outcome::QueueFailed(task_file) => {
                let bits = self.finish_queued(port, 0, task_file)?;
                port.halt();
                return Ok(bits | is::TASK_FILE_ERROR);
            }
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

    /// Shows the end of queued commands.
    fn finish_queued(&self, port: &mut registers::Port, tags: u32, end: TaskFile) -> Result<u32, MemoryError> {
        if port.receives() {
            end.send_device_bits(&self.memory, port.fises, tags)?;
        }
        port.task_file = end.register();
        port.dequeue(tags);
        Ok(is::DEVICE_BITS)
    }

    /// Lets the guest know; `again` where something new happened that a message has to tell.
    pub fn interrupt(&self, hba: &mut Hba, again: bool) {
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

    /// Commands of a packet device (ATA8-ACS §7).
    fn cdrom(
        &self,
        port: usize,
        drive: &Mutex<CdDrive>,
        epoch: u64,
        command: &mut Command,
    ) -> Result<Outcome, MemoryError> {
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
            PACKET => return self.packet(port, drive, epoch, command).map(Outcome::Done),
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

    fn packet(
        &self,
        port: usize,
        drive: &Mutex<CdDrive>,
        epoch: u64,
        command: &mut Command,
    ) -> Result<TaskFile, MemoryError> {
        let over = TaskFile { count: PACKET_OVER, ..good() };
        let failed = |sense: Sense| TaskFile {
            status: GOOD | status::ERROR,
            error: sense.key << 4 | ABORTED,
            count: PACKET_OVER,
            ..TaskFile::default()
        };
        let reply = lock(drive).execute(&command.packet);
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
                        lock(drive).fail(Sense::UNREADABLE);
                        return Ok(failed(Sense::UNREADABLE));
                    }
                }
                over
            }
        })
    }

    /// Does what a register write asks for.
    pub fn apply(&self, hba: &mut Hba, effect: Effect) {
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
pub(super) struct Worker {
    pub shared: Arc<Shared>,
}

impl Task for Worker {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        let disks = self.shared.devices.iter().filter_map(|device| match device {
            Device::Disk(disk) => Some(lock(disk).event()),
            Device::Cd(_) => None,
        });
        [self.shared.bell.as_raw_fd()].into_iter().chain(disks).map(|fd| (fd, 0)).collect()
    }

    fn start(&mut self) {
        self.shared.work();
    }

    fn ready(&mut self, _token: u32) {
        self.shared.work();
    }

    fn stopped(self: Box<Self>) {
        self.shared.drain();
    }
}

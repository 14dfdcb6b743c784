//! An ATA disk (ATA8-ACS, ACS-2 for DATA SET MANAGEMENT, Serial ATA 2.6 §13.6 for queued commands): turns commands into
//! requests of a [`Disk`], any number of them in flight. Knows nothing of ports, but that a command has a slot and an
//! epoch.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::command::{Command, TaskFile};
use super::registers::{SLOTS, status};
use super::{ABORTED, GOOD, Outcome, aborted, good, identify, identity};
use crate::backend::disk::{Complaints, Completion, Disk, DiskError, Geometry, Request, SECTOR};
use crate::base::{GuestMemory, MemoryError};

/// Command codes (ATA8-ACS §7; the last six from ATA-3 and ATA/ATAPI-6, for systems of their time).
mod op {
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const READ_SECTORS: u8 = 0x20;
    pub const READ_SECTORS_EXT: u8 = 0x24;
    pub const READ_DMA_EXT: u8 = 0x25;
    pub const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const READ_LOG_EXT: u8 = 0x2f;
    pub const WRITE_SECTORS: u8 = 0x30;
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    pub const WRITE_DMA_EXT: u8 = 0x35;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub const READ_VERIFY: u8 = 0x40;
    pub const READ_VERIFY_EXT: u8 = 0x42;
    pub const READ_LOG_DMA_EXT: u8 = 0x47;
    pub const READ_FPDMA_QUEUED: u8 = 0x60;
    pub const WRITE_FPDMA_QUEUED: u8 = 0x61;
    pub const EXECUTE_DIAGNOSTIC: u8 = 0x90;
    pub const READ_MULTIPLE: u8 = 0xc4;
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    pub const SET_MULTIPLE: u8 = 0xc6;
    pub const READ_DMA: u8 = 0xc8;
    pub const WRITE_DMA: u8 = 0xca;
    pub const WRITE_MULTIPLE_FUA_EXT: u8 = 0xce;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const STANDBY: u8 = 0xe2;
    pub const IDLE: u8 = 0xe3;
    pub const CHECK_POWER_MODE: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const FLUSH_CACHE: u8 = 0xe7;
    pub const FLUSH_CACHE_EXT: u8 = 0xea;
    pub const IDENTIFY_DEVICE: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
    pub const RECALIBRATE: u8 = 0x10;
    pub const READ_SECTORS_ONCE: u8 = 0x21;
    pub const WRITE_SECTORS_ONCE: u8 = 0x31;
    pub const SEEK: u8 = 0x70;
    pub const INITIALIZE_DEVICE_PARAMETERS: u8 = 0x91;
    pub const READ_NATIVE_MAX: u8 = 0xf8;
}

/// Subcommands of SET FEATURES (§7.45).
mod feature {
    pub const WRITE_CACHE_ON: u8 = 0x02;
    pub const TRANSFER_MODE: u8 = 0x03;
    pub const WRITE_CACHE_OFF: u8 = 0x82;
}

/// Transfer modes as SET FEATURES counts them (§7.45.10): the kind in the high bits, its number in the low ones.
pub(super) mod transfer {
    pub const MULTIWORD: u8 = 0x20;
    pub const ULTRA: u8 = 0x40;
    /// What a disk powers on with: Ultra DMA 5.
    pub const DEFAULT: u8 = ULTRA | 5;

    /// Whether the disk has the mode.
    pub fn is_known(mode: u8) -> bool {
        matches!(mode, 0 | 1 | 0x08..=0x0c | 0x20..=0x22 | 0x40..=0x46)
    }

    /// For IDENTIFY DEVICE: the bit of the mode of this kind that is in use.
    pub fn in_use(mode: u8, kind: u8) -> u16 {
        if mode & !7 == kind { 1 << (mode & 7) } else { 0 }
    }
}

/// The error register: the sectors are not there.
const ID_NOT_FOUND: u8 = 1 << 4;
/// The error register: the data can't be read.
const UNCORRECTABLE: u8 = 1 << 6;
/// The device register: the address is an LBA; the access is to reach stable storage.
const LBA: u8 = 1 << 6;
const FUA: u8 = 1 << 7;
/// In the features of DATA SET MANAGEMENT.
const TRIM: u8 = 1;
/// Bytes of a range in its data: 48 bits of LBA, 16 bits of sectors.
const RANGE: usize = 8;

/// Sectors in a block of READ MULTIPLE, at most.
pub(super) const MAX_MULTIPLE: u8 = 16;
/// Blocks of 512 bytes in the data of one DATA SET MANAGEMENT command, at most.
pub(super) const MAX_TRIM_BLOCKS: u16 = 8;

/// What the guest set up, and what it is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub write_cache: bool,
    /// Sectors in a block of READ MULTIPLE; 0: the command is not to be used.
    pub multiple: u8,
    /// The transfer mode, as SET FEATURES has it.
    pub transfer: u8,
    /// The translation of CHS addresses.
    pub heads: u8,
    pub sectors: u8,
    /// The queued command that failed, until it was asked for: its tag and how it ended.
    pub failed: Option<FailedTag>,
}

/// A queued command that failed (log page 10h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FailedTag {
    tag: u8,
    status: u8,
    error: u8,
    lba: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        let multiple = MAX_MULTIPLE;
        Settings { write_cache: true, multiple, transfer: transfer::DEFAULT, heads: 16, sectors: 63, failed: None }
    }
}

/// What a checkpoint keeps of a disk: the guest's settings, and what the disk must be again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Bytes.
    size: u64,
    readonly: bool,
    settings: Settings,
}

/// Whose a command is: where its result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// The slot, which is a queued command's tag.
    pub slot: u32,
    /// The port's, when the command started.
    pub epoch: u64,
}

/// What became of a command.
pub(super) enum Started {
    /// It is over.
    Done(Outcome),
    /// [`AtaDisk::finished`] will tell.
    Running,
}

/// A command that ended after it had started.
pub(super) struct Finished {
    pub owner: Owner,
    pub outcome: Result<Outcome, MemoryError>,
    /// What to tell the person.
    pub complaint: Option<String>,
}

/// What a command asks for.
enum Plan {
    /// Nothing that takes time.
    Done(TaskFile),
    /// These bytes, by programmed I/O or by DMA.
    Data { bytes: Vec<u8>, pio: bool },
    /// Sectors.
    Transfer { transfer: Transfer, offset: u64, len: u64 },
    /// What is in the host's cache is to be on stable storage.
    Flush,
    /// Ranges are of no use any more; so many blocks of them are in the guest's memory.
    Trim(u16),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Read { pio: bool },
    Write { durable: bool },
}

/// A command that waits for the disk.
struct Pending {
    owner: Owner,
    queued: bool,
    command: Command,
    transfer: Option<Transfer>,
    /// Where its next sectors are, and the bytes that are still to be asked for.
    offset: u64,
    left: u64,
    /// Where the sectors are that the disk is at.
    current: u64,
    /// Answers of the disk still to come.
    parts: usize,
    failed: Option<TaskFile>,
    /// The host's disk had no room: it is to be done again, from its start.
    full: bool,
    broken: Option<MemoryError>,
    complaint: Option<String>,
}

/// The disk.
pub(super) struct AtaDisk {
    disk: Box<dyn Disk>,
    geometry: Geometry,
    /// Its name in problems, and its serial number.
    pub name: String,
    settings: Settings,
    /// By slot, which is the token that the disk gets.
    pending: [Option<Pending>; SLOTS as usize],
    /// Slots whose commands came to an end without the disk.
    ended: VecDeque<usize>,
    complaints: Complaints,
}

/// Whether a command is one that the device queues.
pub(super) fn is_queued(command: &Command) -> bool {
    matches!(command.code(), op::READ_FPDMA_QUEUED | op::WRITE_FPDMA_QUEUED)
}

/// A queued command's tag.
pub(super) fn tag(command: &Command) -> u32 {
    u32::from(command.count() as u8 >> 3)
}

fn failed(error: u8, lba: u64) -> TaskFile {
    TaskFile { status: GOOD | status::ERROR, error, lba, ..TaskFile::default() }
}

impl AtaDisk {
    pub fn new(disk: Box<dyn Disk>, name: String) -> AtaDisk {
        let geometry = disk.geometry();
        AtaDisk {
            disk,
            geometry,
            name,
            settings: Settings::default(),
            pending: std::array::from_fn(|_| None),
            ended: VecDeque::new(),
            complaints: Complaints::default(),
        }
    }

    /// Back to power-on. Nothing runs.
    pub fn reset(&mut self) {
        self.settings = Settings::default();
        self.complaints.reset();
    }

    pub fn save(&self) -> DiskState {
        let AtaDisk { disk: _, geometry, name: _, settings, pending: _, ended: _, complaints: _ } = self;
        DiskState { size: geometry.size, readonly: geometry.readonly, settings: settings.clone() }
    }

    /// Takes over a state of a disk that is as large as this.
    pub fn restore(&mut self, state: &DiskState) -> Result<(), String> {
        let DiskState { size, readonly, settings } = state;
        if *size != self.geometry.size || *readonly != self.geometry.readonly {
            return Err(format!("{} had {size} bytes, and has {} now", self.name, self.geometry.size));
        }
        let multiple = settings.multiple;
        if multiple > MAX_MULTIPLE
            || settings.sectors == 0
            || settings.heads == 0
            || !transfer::is_known(settings.transfer)
        {
            return Err(format!("{} has settings that no guest can make", self.name));
        }
        self.settings = settings.clone();
        Ok(())
    }

    /// Signalled whenever commands may have ended.
    pub fn event(&self) -> RawFd {
        self.disk.event()
    }

    /// Starts the requests of the commands that were started.
    pub fn kick(&mut self) {
        self.disk.kick();
    }

    /// Whether commands run.
    pub fn is_busy(&self) -> bool {
        self.pending.iter().any(Option::is_some)
    }

    /// Waits for the requests in flight; [`AtaDisk::finished`] may start more.
    pub fn drain(&mut self) {
        self.disk.drain();
    }

    /// Starts a command. A queued one is never over at once.
    pub fn start(&mut self, memory: &GuestMemory, owner: Owner, command: Command) -> Result<Started, MemoryError> {
        let slot = owner.slot as usize;
        let queued = is_queued(&command);
        let plan = self.plan(&command);
        let mut pending = Pending {
            owner,
            queued,
            command,
            transfer: None,
            offset: 0,
            left: 0,
            current: 0,
            parts: 0,
            failed: None,
            full: false,
            broken: None,
            complaint: None,
        };
        match plan {
            Plan::Done(task_file) if queued => pending.failed = Some(task_file),
            Plan::Done(task_file) => return done(pending, memory, Outcome::Done(task_file)),
            Plan::Data { bytes, pio } => {
                pending.command.list.write(memory, &bytes)?;
                let outcome = if pio { Outcome::PioIn(good(), SECTOR as u16) } else { Outcome::Done(good()) };
                return done(pending, memory, outcome);
            }
            Plan::Transfer { transfer, offset, len } => {
                pending.transfer = Some(transfer);
                pending.offset = offset;
                pending.left = len;
                self.ask(memory, slot, &mut pending);
            }
            Plan::Flush => {
                pending.parts = 1;
                self.disk.submit(slot as u64, Request::Flush);
            }
            Plan::Trim(blocks) => {
                let ranges = match self.ranges(memory, &mut pending.command, blocks)? {
                    Ok(ranges) => ranges,
                    Err(task_file) => return done(pending, memory, Outcome::Done(task_file)),
                };
                if ranges.is_empty() {
                    return done(pending, memory, Outcome::Done(good()));
                }
                pending.parts = ranges.len();
                for (offset, len) in ranges {
                    self.disk.submit(slot as u64, Request::Discard { offset, len });
                }
            }
        }
        if pending.parts == 0 {
            self.ended.push_back(slot);
        }
        if let Some(place) = self.pending.get_mut(slot) {
            *place = Some(pending);
        }
        Ok(Started::Running)
    }

    /// The next command that ended. Those that the port abandoned, of another epoch than `now`, ask for no more.
    pub fn finished(&mut self, memory: &GuestMemory, now: u64) -> Option<Finished> {
        loop {
            let slot = match self.ended.pop_front() {
                Some(slot) => slot,
                None => self.answered()?,
            };
            let Some(mut pending) = self.pending.get_mut(slot).and_then(Option::take) else { continue };
            let given_up = pending.failed.is_some() || pending.full || pending.broken.is_some();
            let over = given_up || pending.owner.epoch != now;
            if pending.parts == 0 && pending.left > 0 && !over {
                self.ask(memory, slot, &mut pending);
                self.disk.kick();
            }
            if pending.parts == 0 {
                return Some(self.end(memory, pending, now));
            }
            self.pending[slot] = Some(pending);
        }
    }

    /// The slot of the next answer of the disk.
    fn answered(&mut self) -> Option<usize> {
        let Completion { token, result } = self.disk.completed()?;
        let slot = token as usize;
        if let Some(pending) = self.pending.get_mut(slot).and_then(Option::as_mut) {
            pending.parts = pending.parts.saturating_sub(1);
            if matches!(result, Err(DiskError::Full)) {
                pending.full = true;
            } else if let Err(error) = result {
                pending.complaint = self.complaints.about(&error).or(pending.complaint.take());
                let error =
                    if matches!(pending.transfer, Some(Transfer::Read { .. })) { UNCORRECTABLE } else { ABORTED };
                pending.failed = Some(failed(error, pending.current / SECTOR));
            }
        }
        Some(slot)
    }

    /// Asks the disk for a command's next piece; where that can't be, notes why.
    fn ask(&mut self, memory: &GuestMemory, slot: usize, pending: &mut Pending) {
        let buffers = match pending.command.list.take_units(memory, pending.left, SECTOR) {
            Ok(buffers) => buffers,
            Err(error) => return pending.broken = Some(error),
        };
        let len = buffers.len();
        if len == 0 || !len.is_multiple_of(SECTOR) {
            // The guest's list ends before the sectors do.
            return pending.failed = Some(failed(ABORTED, pending.offset / SECTOR));
        }
        let offset = pending.offset;
        let request = match pending.transfer {
            Some(Transfer::Write { durable }) => Request::Write { offset, buffers, durable },
            _ => Request::Read { offset, buffers },
        };
        pending.current = offset;
        pending.offset += len;
        pending.left -= len;
        pending.parts = 1;
        self.disk.submit(slot as u64, request);
    }

    fn end(&mut self, memory: &GuestMemory, mut pending: Pending, now: u64) -> Finished {
        let complaint = pending.complaint.take();
        let owner = pending.owner;
        if pending.full && pending.broken.is_none() {
            return Finished { owner, outcome: Ok(Outcome::Returned(pending.queued)), complaint };
        }
        let outcome = match (pending.broken.take(), pending.failed, pending.queued) {
            (Some(error), ..) => Err(error),
            (None, None, true) => Ok(Outcome::Queued),
            (None, Some(task_file), true) => {
                let TaskFile { status, error, lba, .. } = task_file;
                if owner.epoch == now {
                    self.settings.failed = Some(FailedTag { tag: owner.slot as u8, status, error, lba });
                }
                Ok(Outcome::QueueFailed(task_file))
            }
            (None, failed, false) => {
                let pio = matches!(pending.transfer, Some(Transfer::Read { pio: true }));
                let outcome = match failed {
                    Some(task_file) => Outcome::Done(task_file),
                    None if pio => Outcome::PioIn(good(), SECTOR as u16),
                    None => Outcome::Done(good()),
                };
                pending.command.report(memory).map(|()| outcome)
            }
        };
        Finished { owner, outcome, complaint }
    }

    /// What a command comes to; nothing is transferred yet.
    fn plan(&mut self, command: &Command) -> Plan {
        let write_cache = self.settings.write_cache;
        let read = |pio| Transfer::Read { pio };
        let write = Transfer::Write { durable: !write_cache };
        let durable = Transfer::Write { durable: true };
        let code = command.code();
        match code {
            op::READ_DMA => self.transfer(command, read(false)),
            op::READ_SECTORS | op::READ_SECTORS_ONCE => self.transfer(command, read(true)),
            op::WRITE_DMA | op::WRITE_SECTORS | op::WRITE_SECTORS_ONCE => self.transfer(command, write),
            op::READ_DMA_EXT => self.transfer_ext(command, read(false)),
            op::READ_SECTORS_EXT => self.transfer_ext(command, read(true)),
            op::WRITE_DMA_EXT | op::WRITE_SECTORS_EXT => self.transfer_ext(command, write),
            op::WRITE_DMA_FUA_EXT => self.transfer_ext(command, durable),
            op::READ_MULTIPLE
            | op::READ_MULTIPLE_EXT
            | op::WRITE_MULTIPLE
            | op::WRITE_MULTIPLE_EXT
            | op::WRITE_MULTIPLE_FUA_EXT
                if self.settings.multiple == 0 =>
            {
                Plan::Done(aborted())
            }
            op::READ_MULTIPLE => self.transfer(command, read(true)),
            op::READ_MULTIPLE_EXT => self.transfer_ext(command, read(true)),
            op::WRITE_MULTIPLE => self.transfer(command, write),
            op::WRITE_MULTIPLE_EXT => self.transfer_ext(command, write),
            op::WRITE_MULTIPLE_FUA_EXT => self.transfer_ext(command, durable),
            op::READ_FPDMA_QUEUED | op::WRITE_FPDMA_QUEUED => {
                let write = Transfer::Write { durable: !write_cache || command.device() & FUA != 0 };
                let transfer = if code == op::READ_FPDMA_QUEUED { read(false) } else { write };
                self.sectors(transfer, Some(command.lba().1), long(command.long_features()))
            }
            // What is stored can be read, as far as the host knows.
            op::READ_VERIFY => self.verify(self.transfer(command, read(false))),
            op::READ_VERIFY_EXT => self.verify(self.transfer_ext(command, read(false))),
            op::FLUSH_CACHE | op::FLUSH_CACHE_EXT => Plan::Flush,
            op::DATA_SET_MANAGEMENT => {
                let known = command.features() & TRIM != 0 && self.geometry.discard_granularity > 0;
                match command.count() {
                    blocks @ 1..=MAX_TRIM_BLOCKS if known && !self.geometry.readonly => Plan::Trim(blocks),
                    _ => Plan::Done(aborted()),
                }
            }
            op::IDENTIFY_DEVICE => {
                Plan::Data { bytes: identify::disk(&self.geometry, &self.name, &self.settings), pio: true }
            }
            op::READ_LOG_EXT | op::READ_LOG_DMA_EXT => match self.log(command) {
                Some(bytes) => Plan::Data { bytes, pio: code == op::READ_LOG_EXT },
                None => Plan::Done(aborted()),
            },
            op::SET_FEATURES | op::SET_MULTIPLE | op::INITIALIZE_DEVICE_PARAMETERS => {
                Plan::Done(if self.set(command) { good() } else { aborted() })
            }
            op::READ_NATIVE_MAX | op::READ_NATIVE_MAX_EXT => Plan::Done(self.native_max(code)),
            op::EXECUTE_DIAGNOSTIC => Plan::Done(identity(identify::ATA)),
            // It is active, always.
            op::CHECK_POWER_MODE => Plan::Done(TaskFile { count: 0xff, ..good() }),
            op::STANDBY_IMMEDIATE | op::IDLE_IMMEDIATE | op::STANDBY | op::IDLE | op::SLEEP => Plan::Done(good()),
            _ if matches!(code & 0xf0, op::RECALIBRATE | op::SEEK) => Plan::Done(good()),
            // With PACKET, IDENTIFY PACKET DEVICE and SMART, whose feature sets IDENTIFY DEVICE does not name.
            _ => Plan::Done(aborted()),
        }
    }

    /// A command with an address of 28 bits, or in cylinders, heads and sectors, and a count of 8 bits.
    fn transfer(&self, command: &Command, transfer: Transfer) -> Plan {
        let count = match command.count() as u8 {
            0 => 256,
            count => u64::from(count),
        };
        let (low, device) = (command.lba().0, command.device());
        let head = u32::from(device & 0xf);
        let first = if device & LBA != 0 {
            Some(u64::from(low | head << 24))
        } else {
            let (cylinder, sector) = (low >> 8, low & 0xff);
            let (heads, sectors) = (u32::from(self.settings.heads), u32::from(self.settings.sectors));
            let within = head < heads && (1..=sectors).contains(&sector);
            // At most 16 bits by 4 bits by 8 bits.
            within.then(|| u64::from((cylinder * heads + head) * sectors + sector - 1))
        };
        self.sectors(transfer, first, count)
    }

    /// A command with an address of 48 bits and a count of 16.
    fn transfer_ext(&self, command: &Command, transfer: Transfer) -> Plan {
        self.sectors(transfer, Some(command.lba().1), long(command.count()))
    }

    fn sectors(&self, transfer: Transfer, first: Option<u64>, count: u64) -> Plan {
        if self.geometry.readonly && matches!(transfer, Transfer::Write { .. }) {
            return Plan::Done(failed(ABORTED, first.unwrap_or(0)));
        }
        let len = count * SECTOR;
        match first.and_then(|first| self.range(first, len)) {
            Some(offset) => Plan::Transfer { transfer, offset, len },
            None => Plan::Done(failed(ID_NOT_FOUND, first.unwrap_or(0))),
        }
    }

    /// The offset of so many bytes from a sector on, if they are inside the disk.
    fn range(&self, first: u64, len: u64) -> Option<u64> {
        let offset = first.checked_mul(SECTOR)?;
        (offset.checked_add(len)? <= self.geometry.size).then_some(offset)
    }

    fn verify(&self, plan: Plan) -> Plan {
        if matches!(plan, Plan::Transfer { .. }) { Plan::Done(good()) } else { plan }
    }

    /// SET FEATURES, SET MULTIPLE MODE and INITIALIZE DEVICE PARAMETERS. False: not with these values.
    fn set(&mut self, command: &Command) -> bool {
        let count = command.count() as u8;
        match (command.code(), command.features()) {
            (op::SET_MULTIPLE, _) if count == 0 || count.is_power_of_two() && count <= MAX_MULTIPLE => {
                self.settings.multiple = count;
            }
            (op::INITIALIZE_DEVICE_PARAMETERS, _) if count > 0 => {
                self.settings.heads = (command.device() & 0xf) + 1;
                self.settings.sectors = count;
            }
            (op::SET_FEATURES, feature::TRANSFER_MODE) if transfer::is_known(count) => self.settings.transfer = count,
            (op::SET_FEATURES, feature::WRITE_CACHE_ON) if !self.geometry.readonly => self.settings.write_cache = true,
            (op::SET_FEATURES, feature::WRITE_CACHE_OFF) if !self.geometry.readonly => {
                self.settings.write_cache = false
            }
            _ => return false,
        }
        true
    }

    /// The address of the last sector, as far as the command has room for it.
    fn native_max(&self, code: u8) -> TaskFile {
        let last = (self.geometry.size / SECTOR).saturating_sub(1);
        if code == op::READ_NATIVE_MAX_EXT {
            return TaskFile { lba: last, ..good() };
        }
        let last = last.min(0x0fff_ffff);
        TaskFile { lba: last & 0xff_ffff, device: LBA | (last >> 24) as u8, ..good() }
    }

    /// A log's page (§7.24 and annex A): the directory, and the queued command that failed, which is forgotten then.
    fn log(&mut self, command: &Command) -> Option<Vec<u8>> {
        const DIRECTORY: u8 = 0x00;
        const QUEUED_ERROR: u8 = 0x10;
        let lba = command.lba().1.to_le_bytes();
        let (log, page) = (lba[0], u16::from_le_bytes([lba[1], lba[4]]));
        if command.count() != 1 || page != 0 {
            return None;
        }
        let mut bytes = vec![0; SECTOR as usize];
        match log {
            // Its version, and one page of the other.
            DIRECTORY => {
                bytes[0] = 1;
                bytes[usize::from(QUEUED_ERROR) * 2] = 1;
            }
            QUEUED_ERROR => {
                match self.settings.failed.take() {
                    Some(FailedTag { tag, status, error, lba }) => {
                        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
                        bytes[..11].copy_from_slice(&[tag, 0, status, error, a, b, c, LBA, d, e, f]);
                    }
                    // The last error was of no queued command.
                    None => bytes[0] = 1 << 7,
                }
                bytes[511] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
            }
            _ => return None,
        }
        Some(bytes)
    }

    /// The ranges of a TRIM, bytes, those that follow one another as one; or how the command fails.
    fn ranges(
        &self,
        memory: &GuestMemory,
        command: &mut Command,
        blocks: u16,
    ) -> Result<Result<Vec<(u64, u64)>, TaskFile>, MemoryError> {
        let mut bytes = vec![0; usize::from(blocks) * SECTOR as usize];
        if !command.list.read(memory, &mut bytes)? {
            return Ok(Err(aborted()));
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let (entries, _) = bytes.as_chunks::<RANGE>();
        for &entry in entries {
            let entry = u64::from_le_bytes(entry);
            let (first, len) = (entry & 0xffff_ffff_ffff, (entry >> 48) * SECTOR);
            if len == 0 {
                continue;
            }
            let Some(offset) = self.range(first, len) else { return Ok(Err(failed(ID_NOT_FOUND, first))) };
            match ranges.last_mut() {
                Some((start, before)) if *start + *before == offset => *before += len,
                _ => ranges.push((offset, len)),
            }
        }
        Ok(Ok(ranges))
    }
}

/// A count of 16 bits, in which 0 is 65536.
fn long(count: u16) -> u64 {
    if count == 0 { 1 << 16 } else { u64::from(count) }
}

/// A command that is over at once: tells the driver what was transferred.
fn done(pending: Pending, memory: &GuestMemory, outcome: Outcome) -> Result<Started, MemoryError> {
    pending.command.report(memory)?;
    Ok(Started::Done(outcome))
}

//! A command as the driver put it in memory: header, FIS, packet and scatter list (AHCI 1.3.1 §4.2). Nothing in it is
//! trusted: each loop ends with the list or with what the device has to transfer.

use crate::backend::disk::Buffers;
use crate::base::{GuestAddress, GuestMemory, MemoryError};

/// The most runs of RAM in one piece of a transfer, but for what completes its last unit.
const MAX_RUNS: usize = 512;
/// The most bytes in one piece: the requests of most systems are one.
const MAX_PIECE: u64 = 2 << 20;

const FIS_H2D: u8 = 0x27;
const FIS_COMMAND: u8 = 1 << 7;

/// A command, copied out of the guest's reach.
pub(super) struct Command {
    header: GuestAddress,
    /// Dwords of the FIS that count (CFL).
    fis_len: u32,
    /// The FIS that goes to the device.
    fis: [u8; 20],
    /// The packet of a PACKET command.
    pub packet: [u8; 16],
    pub list: ScatterList,
}

impl Command {
    /// Reads the command of a slot.
    pub fn read(memory: &GuestMemory, list: u64, slot: u32) -> Result<Command, MemoryError> {
        let header = GuestAddress(list.wrapping_add(32 * u64::from(slot)));
        let [flags, _done, table_low, table_high]: [u32; 4] = memory.read_obj(header)?;
        let table = u64::from(u32::from_le(table_low) & !0x7f) | u64::from(u32::from_le(table_high)) << 32;
        // A table at the end of the address space can't be in RAM; saturating says so.
        let fis = memory.read_obj(GuestAddress(table))?;
        let packet = memory.read_obj(GuestAddress(table.saturating_add(0x40)))?;
        let fis_len = u32::from_le(flags) & 0x1f;
        let entries = u32::from_le(flags) >> 16;
        let list = ScatterList { table: table.saturating_add(0x80), entries, next: 0, run: (0, 0), done: 0 };
        Ok(Command { header, fis_len, fis, packet, list })
    }

    /// Whether the FIS is one from host to device, which is all that there is to send, and whole up to its control
    /// register.
    pub fn is_known(&self) -> bool {
        self.fis[0] == FIS_H2D && (4..=16).contains(&self.fis_len)
    }

    /// Whether it is a command rather than a write to the control register.
    pub fn is_command(&self) -> bool {
        self.fis[1] & FIS_COMMAND != 0
    }

    /// Command register.
    pub fn code(&self) -> u8 {
        self.fis[2]
    }

    /// Features register, the low byte.
    pub fn features(&self) -> u8 {
        self.fis[3]
    }

    /// Features register, both bytes: the count of a queued command.
    pub fn long_features(&self) -> u16 {
        u16::from_le_bytes([self.fis[3], self.fis[11]])
    }

    /// Device register.
    pub fn device(&self) -> u8 {
        self.fis[7]
    }

    /// LBA registers: the low three bytes, and all six.
    pub fn lba(&self) -> (u32, u64) {
        let [a, b, c, d, e, f] = [4, 5, 6, 8, 9, 10].map(|at| self.fis[at]);
        (u32::from_le_bytes([a, b, c, 0]), u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// Count register, both bytes. The tag of a queued command is in bits 7:3.
    pub fn count(&self) -> u16 {
        u16::from_le_bytes([self.fis[12], self.fis[13]])
    }

    /// Control register.
    pub fn control(&self) -> u8 {
        self.fis[15]
    }

    /// Tells the driver how many bytes were transferred (PRDBC, §4.2.2).
    pub fn report(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        let done = u32::try_from(self.list.done).unwrap_or(u32::MAX);
        memory.write_obj(GuestAddress(self.header.0 + 4), done.to_le())
    }
}

/// The physical region descriptor table, used front to back.
pub(super) struct ScatterList {
    table: u64,
    entries: u32,
    next: u32,
    /// What is left of the current entry: address and bytes.
    run: (u64, u64),
    /// Bytes handed out.
    done: u64,
}

impl ScatterList {
    /// Bytes handed out so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The next bytes of the list, at most `limit` and at most a piece; empty at the list's end.
    pub fn take(&mut self, memory: &GuestMemory, limit: u64) -> Result<Buffers, MemoryError> {
        self.take_units(memory, limit, 1)
    }

    /// The same in whole units of so many bytes (a divisor of a piece's size and of `limit`), as far as the list goes.
    pub fn take_units(&mut self, memory: &GuestMemory, limit: u64, unit: u64) -> Result<Buffers, MemoryError> {
        let mut buffers = Buffers::new(memory);
        let mut left = limit.min(MAX_PIECE);
        // An entry has two bytes at least, so that a unit is complete after so many more.
        for run in 0..MAX_RUNS + unit as usize / 2 {
            if run >= MAX_RUNS {
                left = buffers.len().next_multiple_of(unit) - buffers.len();
            }
            if left == 0 {
                break;
            }
            if self.run.1 == 0 {
                if self.next == self.entries {
                    break;
                }
                let at = GuestAddress(self.table.saturating_add(16 * u64::from(self.next)));
                let [low, high, _, flags]: [u32; 4] = memory.read_obj(at)?;
                let address = u64::from(u32::from_le(low)) | u64::from(u32::from_le(high)) << 32;
                // Bytes, less one; always even.
                self.run = (address & !1, u64::from(u32::from_le(flags) & 0x3f_ffff | 1) + 1);
                self.next += 1;
            }
            let now = self.run.1.min(left);
            buffers.push(GuestAddress(self.run.0), now as usize)?;
            self.run = (self.run.0.saturating_add(now), self.run.1 - now);
            self.done += now;
            left -= now;
        }
        Ok(buffers)
    }

    /// Reads bytes from the guest. False: the list has fewer.
    pub fn read(&mut self, memory: &GuestMemory, mut bytes: &mut [u8]) -> Result<bool, MemoryError> {
        while !bytes.is_empty() {
            let buffers = self.take(memory, bytes.len() as u64)?;
            if buffers.is_empty() {
                return Ok(false);
            }
            let (now, rest) = bytes.split_at_mut(buffers.len() as usize);
            buffers.copy_to(now);
            bytes = rest;
        }
        Ok(true)
    }

    /// Writes bytes to the guest, as many as the list has room for.
    pub fn write(&mut self, memory: &GuestMemory, mut bytes: &[u8]) -> Result<(), MemoryError> {
        while !bytes.is_empty() {
            let mut buffers = self.take(memory, bytes.len() as u64)?;
            if buffers.is_empty() {
                break;
            }
            let (now, rest) = bytes.split_at(buffers.len() as usize);
            buffers.copy_from(now);
            bytes = rest;
        }
        Ok(())
    }
}

/// The task file as a device returns it in a FIS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TaskFile {
    pub status: u8,
    pub error: u8,
    pub count: u16,
    pub lba: u64,
    pub device: u8,
}

impl TaskFile {
    /// PxTFD.
    pub fn register(&self) -> u32 {
        u32::from(self.status) | u32::from(self.error) << 8
    }

    /// Fills a FIS from device to host of this kind (Serial ATA 2.6 §10.3.5).
    fn fis(&self, kind: u8, interrupt: bool) -> [u8; 20] {
        let [a, b, c, d, e, f, ..] = self.lba.to_le_bytes();
        let [low, high] = self.count.to_le_bytes();
        let flags = if interrupt { 0x40 } else { 0 };
        let mut fis = [0; 20];
        fis[..14].copy_from_slice(&[kind, flags, self.status, self.error, a, b, c, self.device, d, e, f, 0, low, high]);
        fis
    }

    /// Puts the register FIS in the area for received ones (§4.2.1).
    pub fn send_register(&self, memory: &GuestMemory, area: u64, interrupt: bool) -> Result<(), MemoryError> {
        memory.write(GuestAddress(area.saturating_add(0x40)), &self.fis(0x34, interrupt))
    }

    /// Puts a set device bits FIS there: the commands of these tags are done (Serial ATA 2.6 §10.3.6).
    pub fn send_device_bits(&self, memory: &GuestMemory, area: u64, tags: u32) -> Result<(), MemoryError> {
        let [a, b, c, d] = tags.to_le_bytes();
        let fis = [0xa1, 0x40, self.status & 0x77, self.error, a, b, c, d];
        memory.write(GuestAddress(area.saturating_add(0x58)), &fis)
    }

    /// Puts a PIO setup FIS there: `self` is the state before the data, `end` the status after it.
    pub fn send_pio_setup(&self, memory: &GuestMemory, area: u64, end: u8, len: u16) -> Result<(), MemoryError> {
        let mut fis = self.fis(0x5f, true);
        // From device to host.
        fis[1] |= 0x20;
        fis[15] = end;
        fis[16..18].copy_from_slice(&len.to_le_bytes());
        memory.write(GuestAddress(area.saturating_add(0x20)), &fis)
    }
}

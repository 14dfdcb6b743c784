//! AHCI 1.3.1: ports, ATA and ATAPI commands by DMA, one at a time, and queued ATA commands, many at a time.

use crate::dma::{Dma, Mmio};
use crate::drivers::pci::Function;
use crate::report::Outcome;
use crate::{ensure, fail, time, trap};

/// PCI class and subclass.
pub const CLASS: u32 = 0x0106;
/// Signatures of what hangs on a port.
pub const SIGNATURE_ATA: u32 = 0x0000_0101;
/// A packet device: CD-ROM.
pub const SIGNATURE_ATAPI: u32 = 0xeb14_0101;

/// Registers of the controller.
const CAP: u64 = 0x00;
const GHC: u64 = 0x04;
const IS: u64 = 0x08;
const PI: u64 = 0x0c;
const CAP_QUEUES: u32 = 1 << 30;
const GHC_AHCI: u32 = 1 << 31;
const GHC_IE: u32 = 1 << 1;
/// Registers of a port, from 0x100 in steps of 0x80.
const PORT_CLB: u64 = 0x00;
const PORT_FB: u64 = 0x08;
const PORT_IS: u64 = 0x10;
const PORT_IE: u64 = 0x14;
const PORT_CMD: u64 = 0x18;
const PORT_TFD: u64 = 0x20;
const PORT_SIG: u64 = 0x24;
const PORT_SSTS: u64 = 0x28;
const PORT_SERR: u64 = 0x30;
const PORT_SACT: u64 = 0x34;
const PORT_CI: u64 = 0x38;
const CMD_START: u32 = 1;
const CMD_FIS_ENABLE: u32 = 1 << 4;
const CMD_FIS_RUNNING: u32 = 1 << 14;
const CMD_RUNNING: u32 = 1 << 15;
const TFD_ERROR: u32 = 1;
const TFD_BUSY: u32 = 0x88;
/// Device to host, PIO set-up, set device bits and task file error interrupts.
const INTERRUPTS: u32 = 0x4000_000b;
const IS_TASK_FILE_ERROR: u32 = 1 << 30;

const FIS_HOST_TO_DEVICE: u8 = 0x27;
/// ATA commands.
pub mod ata {
    /// IDENTIFY DEVICE.
    pub const IDENTIFY: u8 = 0xec;
    /// IDENTIFY PACKET DEVICE.
    pub const IDENTIFY_PACKET: u8 = 0xa1;
    /// PACKET.
    pub const PACKET: u8 = 0xa0;
    /// READ DMA EXT.
    pub const READ_DMA_EXT: u8 = 0x25;
    /// WRITE DMA EXT.
    pub const WRITE_DMA_EXT: u8 = 0x35;
    /// FLUSH CACHE EXT.
    pub const FLUSH_EXT: u8 = 0xea;
    /// READ LOG EXT.
    pub const READ_LOG_EXT: u8 = 0x2f;
    /// DATA SET MANAGEMENT, whose one function is TRIM.
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    /// READ FPDMA QUEUED.
    pub const READ_QUEUED: u8 = 0x60;
    /// WRITE FPDMA QUEUED.
    pub const WRITE_QUEUED: u8 = 0x61;
}

const PATIENCE_MICROS: u64 = 10_000_000;
/// Most pieces of a transfer.
const MAX_PIECES: usize = 64;
/// Queued commands at once.
pub const QUEUE: usize = 32;
/// Bytes of a queued command's table: FIS and one piece.
const QUEUED_TABLE: usize = 0x100;

/// A controller.
#[derive(Clone, Copy)]
pub struct Controller {
    registers: Mmio,
    /// Vector of its MSI; 0 if it has none.
    pub vector: u8,
}

/// A port with a device.
pub struct Port {
    controller: Controller,
    registers: Mmio,
    /// Its number.
    pub number: u32,
    /// What kind of device.
    pub signature: u32,
    command_list: Dma,
    table: Dma,
    queued_tables: Dma,
}

/// A queued command: sectors from `address` on, to or from one piece of memory.
#[derive(Clone, Copy)]
pub struct Queued {
    /// [`ata::READ_QUEUED`] or [`ata::WRITE_QUEUED`].
    pub command: u8,
    /// The first sector.
    pub address: u64,
    /// Whole sectors.
    pub memory: Dma,
}

/// What a command does with its data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Device to memory, or none.
    In,
    /// Memory to device.
    Out,
}

/// How a command ended: the status and error registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Whether the error bit is clear.
    pub ok: bool,
    /// Error register; the upper four bits are the sense key of a packet command.
    pub error: u8,
    /// Bytes transferred, as the controller counts.
    pub bytes: u32,
}

impl Controller {
    /// Enables the controller at a function.
    pub fn open(function: &Function) -> Outcome<Controller> {
        let Some(registers) = function.map_bar(5) else { fail!("BAR 5 is not there") };
        registers.write32(GHC, registers.read32(GHC) | GHC_AHCI);
        let vector = trap::allocate_vector();
        let vector = if function.enable_msi(vector) { vector } else { 0 };
        registers.write32(IS, u32::MAX);
        registers.write32(GHC, registers.read32(GHC) | GHC_IE);
        Ok(Controller { registers, vector })
    }

    /// Number of the `index`th implemented port with a device.
    pub fn occupied(&self, index: usize) -> Option<u32> {
        let implemented = self.registers.read32(PI);
        (0..32)
            .filter(|&port| implemented & 1 << port != 0)
            .filter(|&port| self.port(port).is_some_and(|registers| registers.read32(PORT_SSTS) & 0xf == 3))
            .nth(index)
    }

    fn port(&self, number: u32) -> Option<Mmio> {
        self.registers.part(0x100 + u64::from(number) * 0x80, 0x80)
    }

    /// Starts a port.
    pub fn start(&self, number: u32) -> Outcome<Port> {
        let Some(registers) = self.port(number) else { fail!("port {number} is outside of the registers") };
        let running = CMD_RUNNING | CMD_FIS_RUNNING;
        registers.write32(PORT_CMD, registers.read32(PORT_CMD) & !(CMD_START | CMD_FIS_ENABLE));
        ensure!(
            time::wait_for(PATIENCE_MICROS, || registers.read32(PORT_CMD) & running == 0),
            "port {number} does not stop"
        );
        let command_list = Dma::new(1024);
        let received = Dma::new(256);
        let table = Dma::new(0x80 + 16 * MAX_PIECES);
        let queued_tables = Dma::new(QUEUE * QUEUED_TABLE);
        for (register, memory) in [(PORT_CLB, &command_list), (PORT_FB, &received)] {
            registers.write32(register, memory.address() as u32);
            registers.write32(register + 4, (memory.address() >> 32) as u32);
        }
        registers.write32(PORT_SERR, u32::MAX);
        registers.write32(PORT_IS, u32::MAX);
        registers.write32(PORT_IE, INTERRUPTS);
        registers.write32(PORT_CMD, registers.read32(PORT_CMD) | CMD_FIS_ENABLE);
        ensure!(
            time::wait_for(PATIENCE_MICROS, || registers.read32(PORT_TFD) & TFD_BUSY == 0),
            "the device on port {number} stays busy (task file {:#x})",
            registers.read32(PORT_TFD)
        );
        registers.write32(PORT_CMD, registers.read32(PORT_CMD) | CMD_START);
        let signature = registers.read32(PORT_SIG);
        Ok(Port { controller: *self, registers, number, signature, command_list, table, queued_tables })
    }
}

impl Port {
    /// Runs an ATA command with 48-bit address and count.
    pub fn ata(&self, command: u8, address: u64, count: u16, direction: Direction, pieces: &[Dma]) -> Outcome<Ended> {
        let lba = address.to_le_bytes();
        let count = count.to_le_bytes();
        let fis = [
            FIS_HOST_TO_DEVICE,
            0x80, // this is a command
            command,
            u8::from(command == ata::DATA_SET_MANAGEMENT), // TRIM
            lba[0],
            lba[1],
            lba[2],
            0x40, // LBA
            lba[3],
            lba[4],
            lba[5],
            0,
            count[0],
            count[1],
            0,
            0,
        ];
        self.run(&fis, None, direction, pieces)
    }

    /// Runs a packet command by DMA.
    pub fn packet(&self, packet: &[u8; 12], pieces: &[Dma]) -> Outcome<Ended> {
        let mut fis = [0; 16];
        fis[..4].copy_from_slice(&[FIS_HOST_TO_DEVICE, 0x80, ata::PACKET, u8::from(!pieces.is_empty())]);
        self.run(&fis, Some(packet), Direction::In, pieces)
    }

    /// Whether controller and device, whose identity this is, queue commands.
    pub fn queues(&self, identity: &Dma) -> bool {
        self.controller.registers.read32(CAP) & CAP_QUEUES != 0 && identity.read::<u16>(2 * 76) & 1 << 8 != 0
    }

    /// Writes a queued command into the slot of this number, its tag.
    pub fn prepare(&self, tag: usize, command: &Queued) {
        let lba = command.address.to_le_bytes();
        let [low, high] = ((command.memory.len() / 512) as u16).to_le_bytes();
        let table = self.queued_tables.part(tag * QUEUED_TABLE, QUEUED_TABLE);
        let fis = [
            FIS_HOST_TO_DEVICE,
            0x80,
            command.command,
            low,
            lba[0],
            lba[1],
            lba[2],
            0x40,
            lba[3],
            lba[4],
            lba[5],
            high,
            (tag as u8) << 3,
            0,
            0,
            0,
        ];
        table.put(0, &fis);
        table.write(0x80, command.memory.address());
        table.write(0x88, 0u32);
        table.write(0x8c, command.memory.len() as u32 - 1);
        let write = u32::from(command.command == ata::WRITE_QUEUED);
        self.command_list.write(32 * tag, 5 | write << 6 | 1 << 16);
        self.command_list.write(32 * tag + 4, 0u32);
        self.command_list.write(32 * tag + 8, table.address());
    }

    /// Starts the prepared commands of these tags; bits.
    pub fn issue(&self, tags: u32) {
        self.registers.write32(PORT_SACT, tags);
        self.registers.write32(PORT_CI, tags);
    }

    /// The tags that are not done.
    pub fn active(&self) -> u32 {
        self.registers.read32(PORT_SACT)
    }

    /// Clears what the controller interrupted for; the next completion interrupts again.
    pub fn acknowledge(&self) {
        self.registers.write32(PORT_IS, u32::MAX);
        self.controller.registers.write32(IS, 1 << self.number);
    }

    /// Whether the port stopped at an error since it was acknowledged.
    pub fn failed(&self) -> bool {
        self.registers.read32(PORT_IS) & IS_TASK_FILE_ERROR != 0
    }

    /// The vector of the controller's interrupt; 0 if it has none.
    pub fn vector(&self) -> u8 {
        self.controller.vector
    }

    /// Runs queued commands, all at once, at most [`QUEUE`]; returns the tags that were not done when one failed.
    pub fn queue(&self, commands: &[Queued]) -> Outcome<u32> {
        ensure!(commands.len() <= QUEUE, "a queue of {} commands is longer than a port's", commands.len());
        let mut tags = 0;
        for (tag, command) in commands.iter().enumerate() {
            self.prepare(tag, command);
            tags |= 1 << tag;
        }
        self.acknowledge();
        let interrupts = trap::count(self.vector());
        self.issue(tags);
        let ended = time::wait_for(PATIENCE_MICROS, || self.active() & tags == 0 || self.failed());
        let left = self.active() & tags;
        ensure!(ended, "queued commands {left:#x} do not end (task file {:#x})", self.registers.read32(PORT_TFD));
        let heard = || trap::count(self.vector()) != interrupts;
        ensure!(
            self.vector() == 0 || time::wait_for(PATIENCE_MICROS, heard),
            "queued commands ended without an interrupt"
        );
        if self.failed() {
            self.restart();
        }
        Ok(left)
    }

    /// Gets a port that stopped at an error going again (§6.2.2.1).
    fn restart(&self) {
        let registers = &self.registers;
        registers.write32(PORT_CMD, registers.read32(PORT_CMD) & !CMD_START);
        time::wait_for(PATIENCE_MICROS, || registers.read32(PORT_CMD) & CMD_RUNNING == 0);
        registers.write32(PORT_SERR, u32::MAX);
        registers.write32(PORT_IS, u32::MAX);
        registers.write32(PORT_CMD, registers.read32(PORT_CMD) | CMD_START);
    }

    fn run(&self, fis: &[u8; 16], packet: Option<&[u8; 12]>, direction: Direction, pieces: &[Dma]) -> Outcome<Ended> {
        ensure!(pieces.len() <= MAX_PIECES, "a transfer of {} pieces is more than this driver builds", pieces.len());
        let registers = &self.registers;
        self.table.fill(0);
        self.table.put(0, fis);
        if let Some(packet) = packet {
            self.table.put(0x40, packet);
        }
        for (index, piece) in pieces.iter().enumerate() {
            let at = 0x80 + 16 * index;
            self.table.write(at, piece.address());
            self.table.write(at + 8, 0u32);
            self.table.write(at + 12, piece.len() as u32 - 1);
        }
        let flags = 5 | u32::from(packet.is_some()) << 5 | u32::from(direction == Direction::Out) << 6;
        self.command_list.write(0, flags | (pieces.len() as u32) << 16);
        self.command_list.write(4, 0u32);
        self.command_list.write(8, self.table.address());
        registers.write32(PORT_IS, u32::MAX);
        self.controller.registers.write32(IS, 1 << self.number);
        let interrupts = trap::count(self.controller.vector);
        registers.write32(PORT_CI, 1);
        let ended = time::wait_for(PATIENCE_MICROS, || {
            registers.read32(PORT_CI) & 1 == 0 || registers.read32(PORT_IS) & IS_TASK_FILE_ERROR != 0
        });
        ensure!(ended, "command {:#x} does not end (task file {:#x})", fis[2], registers.read32(PORT_TFD));
        let vector = self.controller.vector;
        ensure!(
            vector == 0 || time::wait_for(PATIENCE_MICROS, || trap::count(vector) != interrupts),
            "command {:#x} ended without an interrupt",
            fis[2]
        );
        let task_file = registers.read32(PORT_TFD);
        if task_file & TFD_ERROR != 0 {
            self.restart();
        }
        Ok(Ended { ok: task_file & TFD_ERROR == 0, error: (task_file >> 8) as u8, bytes: self.command_list.read(4) })
    }
}

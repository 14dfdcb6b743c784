//! AHCI 1.3.1: ports, ATA and ATAPI commands by DMA, one at a time.

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
const GHC: u64 = 0x04;
const IS: u64 = 0x08;
const PI: u64 = 0x0c;
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
const PORT_CI: u64 = 0x38;
const CMD_START: u32 = 1;
const CMD_FIS_ENABLE: u32 = 1 << 4;
const CMD_FIS_RUNNING: u32 = 1 << 14;
const CMD_RUNNING: u32 = 1 << 15;
const TFD_ERROR: u32 = 1;
const TFD_BUSY: u32 = 0x88;
/// Device to host, PIO set-up and task file error interrupts.
const INTERRUPTS: u32 = 0x4000_0003;
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
}

const PATIENCE_MICROS: u64 = 10_000_000;
/// Most pieces of a transfer.
const MAX_PIECES: usize = 64;

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
        Ok(Port { controller: *self, registers, number, signature, command_list, table })
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
            0,
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
            // An error stops the port's list; start it again (§6.2.2.1).
            registers.write32(PORT_CMD, registers.read32(PORT_CMD) & !CMD_START);
            time::wait_for(PATIENCE_MICROS, || registers.read32(PORT_CMD) & CMD_RUNNING == 0);
            registers.write32(PORT_SERR, u32::MAX);
            registers.write32(PORT_IS, u32::MAX);
            registers.write32(PORT_CMD, registers.read32(PORT_CMD) | CMD_START);
        }
        Ok(Ended { ok: task_file & TFD_ERROR == 0, error: (task_file >> 8) as u8, bytes: self.command_list.read(4) })
    }
}

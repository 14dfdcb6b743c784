//! A TPM 2.0 behind a command response buffer (TCG PC Client Platform TPM Profile §6.5.3), found by the ACPI table TPM2.

use crate::acpi::Tables;
use crate::dma::Mmio;
use crate::machine::Machine;
use crate::report::Outcome;
use crate::time;
use crate::{ensure, fail};

/// The start method of the TPM2 table that is the buffer itself.
const COMMAND_RESPONSE_BUFFER: u64 = 7;
/// The control area is here in a locality's page.
const CONTROL_AREA: u64 = 0x40;
const PAGE: u64 = 0x1000;
const LOC_STATE: u64 = 0x00;
const LOC_CTRL: u64 = 0x08;
const LOC_STS: u64 = 0x0c;
const INTF_ID: u64 = 0x30;
const CTRL_REQ: u64 = 0x40;
const CTRL_STS: u64 = 0x44;
const CTRL_START: u64 = 0x4c;
const CMD_SIZE: u64 = 0x58;
const CMD_ADDR: u64 = 0x5c;
const HEADER: usize = 10;
/// A software TPM on a slow host may think for long about a key, never so long about what is asked here.
const PATIENCE_MICROS: u64 = 60_000_000;
const SHORT_MICROS: u64 = 2_000_000;

/// A TPM, taken for locality 0.
pub struct Tpm {
    registers: Mmio,
    buffer: Mmio,
}

impl Tpm {
    /// Finds the TPM and takes it; none if the machine has none.
    pub fn take(machine: &Machine) -> Outcome<Option<Tpm>> {
        let Some(table) = Tables::find(machine.rsdp).and_then(|tables| tables.table(b"TPM2")) else { return Ok(None) };
        let (area, method) = (table.read(40, 8), table.read(48, 4));
        ensure!(method == COMMAND_RESPONSE_BUFFER, "the TPM2 table has start method {method}");
        let Some(registers) = Mmio::at(area - CONTROL_AREA, PAGE) else { fail!("its registers are at {area:#x}") };
        let id = registers.read32(INTF_ID);
        ensure!(id & 0xff == 0x11, "it says it is no CRB of version 1 ({id:#x})");
        registers.write32(LOC_CTRL, 1);
        let taken = time::wait_for(SHORT_MICROS, || registers.read32(LOC_STATE) & 0x9e == 0x82);
        ensure!(taken, "it does not give itself to locality 0 (state {:#x})", registers.read32(LOC_STATE));
        ensure!(registers.read32(LOC_STS) & 1 == 1, "locality 0 has it without being told");
        let (size, address) = (registers.read32(CMD_SIZE), registers.read32(CMD_ADDR));
        let Some(buffer) = Mmio::at(u64::from(address), u64::from(size)) else {
            fail!("its buffer is at {address:#x}")
        };
        ensure!(size >= 1024, "its buffer has {size} bytes");
        Ok(Some(Tpm { registers, buffer }))
    }

    /// Sends a command; reads the response, as long as there is room for it, and returns its code.
    pub fn command(&self, command: &[u8], response: &mut [u8]) -> Outcome<u32> {
        self.registers.write32(CTRL_REQ, 1);
        let ready = time::wait_for(SHORT_MICROS, || {
            self.registers.read32(CTRL_REQ) & 1 == 0 && self.registers.read32(CTRL_STS) & 2 == 0
        });
        ensure!(ready, "it does not get ready");
        for (&byte, at) in command.iter().zip(0..) {
            self.buffer.write8(at, byte);
        }
        self.registers.write32(CTRL_START, 1);
        let done = time::wait_for(PATIENCE_MICROS, || self.registers.read32(CTRL_START) & 1 == 0);
        ensure!(done, "it does not answer");
        let number = |at: u64| u32::from_be_bytes(core::array::from_fn(|index| self.buffer.read8(at + index as u64)));
        let (size, code) = (number(2), number(6));
        ensure!(size as usize >= HEADER && u64::from(size) <= self.buffer.len(), "its answer has {size} bytes");
        for (byte, at) in response.iter_mut().zip(0..u64::from(size)) {
            *byte = self.buffer.read8(at);
        }
        Ok(code)
    }

    /// Puts it to sleep and gives it up.
    pub fn give_up(self) -> Outcome<()> {
        self.registers.write32(CTRL_REQ, 2);
        ensure!(time::wait_for(SHORT_MICROS, || self.registers.read32(CTRL_STS) & 2 == 2), "it does not go to sleep");
        self.registers.write32(LOC_CTRL, 2);
        let free = time::wait_for(SHORT_MICROS, || self.registers.read32(LOC_STATE) & 2 == 0);
        ensure!(free, "locality 0 can't give it up");
        Ok(())
    }
}
